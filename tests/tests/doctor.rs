//! `tlsplice doctor`: every class of trouble that can be made on a shared machine, and a gateway without any.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use tempfile::TempDir;
use tlsplice_fixtures::demo::Demo;
use tlsplice_fixtures::process::Process;
use tlsplice_tests::gateway::binary;
use tlsplice_tests::origin::Origin;
use tlsplice_tests::{certificate, need, wait_for};

/// What no examination takes longer than, even on a busy machine: single steps end after 3 s.
const BOUND: Duration = Duration::from_secs(30);

/// A configuration on disk, with a port of its own.
struct Setting {
    directory: TempDir,
    port: u16,
}

impl Setting {
    fn new(upstream: SocketAddr) -> Self {
        let certificate = certificate();
        Self::with_certificate(upstream, &certificate.chain, &certificate.key)
    }

    fn with_certificate(upstream: SocketAddr, chain: &Path, key: &Path) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let port = tlsplice_fixtures::free_port().expect("a port");
        let text = format!(
            "workers = 1\n[[listener]]\naddress = \"127.0.0.1:{port}\"\n[tls]\ncertificate = {chain:?}\n\
             key = {key:?}\n[[route]]\nupstream = \"http://{upstream}\"\napp = \"guacamole\"\n"
        );
        fs::write(directory.path().join("tlsplice.toml"), text).expect("it is written");
        Self { directory, port }
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("tlsplice.toml")
    }

    /// With further tables.
    fn with(self, tables: &str) -> Self {
        let text = fs::read_to_string(self.file()).expect("it is there");
        fs::write(self.file(), text + tables).expect("it is written");
        self
    }

    fn gateway(&self) -> Process {
        let mut command = Command::new(binary());
        command.arg("run").arg("--config").arg(self.file());
        let gateway = Process::spawn("the gateway", &mut command).expect("it starts");
        wait_for("the gateway", || TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok());
        gateway
    }

    /// The doctor under another program, such as `prlimit`, with its exit status.
    fn doctor_under(&self, wrapper: &[&str]) -> (Option<i32>, Vec<Value>) {
        self.doctor_with(wrapper, &[])
    }

    fn doctor_with(&self, wrapper: &[&str], more: &[&str]) -> (Option<i32>, Vec<Value>) {
        let mut words = wrapper.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        words.push(binary().display().to_string());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(["doctor", "--json", "--config"]).arg(self.file());
        let output = command.args(more).output().expect("it runs");
        (output.status.code(), findings(&output))
    }

    fn doctor(&self) -> (Option<i32>, Vec<Value>) {
        self.doctor_under(&[])
    }
}

fn findings(output: &Output) -> Vec<Value> {
    let json: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {output:?}"));
    json["findings"].as_array().expect("a list").clone()
}

/// Asserts that there is a finding of `topic` with this verdict whose fact contains `part`, and that it names a cure
/// when one is needed.
#[track_caller]
fn assert_found(findings: &[Value], topic: &str, verdict: &str, part: &str) {
    let is_it = |finding: &&Value| {
        finding["topic"] == topic
            && finding["verdict"] == verdict
            && finding["fact"].as_str().is_some_and(|fact| fact.contains(part))
    };
    let found = findings.iter().find(is_it);
    let found =
        found.unwrap_or_else(|| panic!("no {verdict} {topic} with {part:?}: {findings:#?}"));
    assert_eq!(found["cure"].is_string(), verdict != "ok", "{found}");
}

/// But for the cadence, which a busy machine does not keep.
#[track_caller]
fn assert_nothing_failed(findings: &[Value]) {
    let has_failed =
        |finding: &&Value| finding["verdict"] == "fail" && finding["topic"] != "cadence";
    assert_eq!(findings.iter().find(has_failed), None);
}

#[test]
fn a_running_gateway_is_seen_from_both_ends() {
    let demo = Demo::start().expect("it starts");
    let setting = Setting::new(demo.address());
    let _gateway = setting.gateway();
    let begun = Instant::now();
    let (_, found) = setting.doctor();
    assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
    assert_nothing_failed(&found);
    // Before Linux 5.19 a ring lacks something, which is a warning.
    let ring = found.iter().find(|finding| finding["topic"] == "io_uring").expect("it is told");
    assert!(ring["fact"].as_str().is_some_and(|fact| fact.contains("submissions")), "{ring}");
    assert_found(&found, "eBPF", "ok", "programs load and run: flush latency of up to ");
    assert_found(&found, "certificate", "ok", "more days, chain of 2");
    assert_found(&found, "upstream", "ok", "answers 200 to /");
    assert_found(&found, "port", "ok", "a running tlsplice");
    assert_found(&found, "handshake", "ok", "the configured certificate");
    assert_found(&found, "route", "ok", "answered with 200");
    // The demo has no Guacamole.
    assert_found(&found, "websocket", "warn", "refused with 404");
    assert_found(&found, "websocket", "ok", "a private gateway: 101");
    assert_found(&found, "identity", "ok", "forged X-Forwarded-For");
    let cadence =
        found.iter().find(|finding| finding["topic"] == "cadence").expect("it is measured");
    assert!(
        cadence["fact"].as_str().is_some_and(|fact| fact.starts_with("25 chunks")),
        "{cadence}"
    );
}

#[test]
fn a_stream_of_the_application_is_read_past_the_gateway_and_through_it() {
    let demo = Demo::start().expect("it starts");
    let setting = Setting::new(demo.address());
    let _gateway = setting.gateway();
    let target = "/stream?size=1&every_ms=40&count=30";
    let (_, found) = setting.doctor_with(&[], &["--stream", target]);
    let stream = found.iter().find(|finding| finding["topic"] == "stream").expect("it is read");
    // A pause of its own on a loaded machine is a warning; bytes that are held back are not.
    assert_ne!(stream["verdict"], "fail", "{stream}");
    let fact = stream["fact"].as_str().expect("text");
    assert!(fact.contains("through the gateway 25 pieces"), "{stream}");
    let (_, found) = setting.doctor_with(&[], &["--stream", "/bytes/10"]);
    assert_nothing_failed(&found);
    assert_found(&found, "stream", "warn", "/bytes/10");
}

#[test]
fn a_configuration_in_the_working_directory_is_tried_too() {
    let demo = Demo::start().expect("it starts");
    let setting = Setting::new(demo.address());
    for name in ["certificate", "key"] {
        let from = if name == "key" { &certificate().key } else { &certificate().chain };
        fs::copy(from, setting.directory.path().join(name)).expect("it is copied");
    }
    let text = fs::read_to_string(setting.file()).expect("it is there");
    let text = text.replace(&format!("{:?}", certificate().chain), "\"certificate\"");
    let text = text.replace(&format!("{:?}", certificate().key), "\"key\"");
    fs::write(setting.file(), text).expect("it is written");
    let mut command = Command::new(binary());
    command.args(["doctor", "--json", "--config", "tlsplice.toml"]);
    let output = command.current_dir(setting.directory.path()).output().expect("it runs");
    assert_found(&findings(&output), "identity", "ok", "forged");
}

#[test]
fn a_tunnel_with_its_subprotocol_is_good_and_one_without_is_not() {
    for (field, verdict, part) in [
        (
            "Sec-WebSocket-Protocol: guacamole\r\n",
            "ok",
            "*/websocket-tunnel: 101, subprotocol guacamole",
        ),
        ("", "fail", "*/websocket-tunnel: 101, but subprotocol None"),
    ] {
        let origin = Origin::start(move |connection| {
            let head = connection.request()?;
            let Some(key) = head.lines().find_map(|line| {
                let (name, value) = line.split_once(": ")?;
                name.eq_ignore_ascii_case("sec-websocket-key").then_some(value)
            }) else {
                return connection.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
            };
            let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
            connection.send(format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{field}\
                 Sec-WebSocket-Accept: {accept}\r\n\r\n"
            ))
        });
        let setting = Setting::new(origin.address());
        let _gateway = setting.gateway();
        let (_, found) = setting.doctor();
        assert_found(&found, "websocket", verdict, part);
    }
}

#[test]
fn a_port_that_another_program_holds_is_found_with_its_holder() {
    let demo = Demo::start().expect("it starts");
    let setting = Setting::new(demo.address());
    let _holder = TcpListener::bind((Ipv4Addr::LOCALHOST, setting.port)).expect("it is free");
    let (status, found) = setting.doctor();
    assert_eq!(status, Some(1));
    assert_found(&found, "port", "fail", &format!("(process {})", std::process::id()));
}

#[test]
fn an_upstream_that_is_down_or_speaks_something_else_is_found() {
    let nowhere = tlsplice_fixtures::free_port().expect("a port");
    let setting = Setting::new(SocketAddr::from((Ipv4Addr::LOCALHOST, nowhere)));
    let (status, found) = setting.doctor();
    assert_eq!(status, Some(1));
    assert_found(&found, "upstream", "fail", "is not reached");
    assert_found(&found, "port", "ok", "is free");

    let _gateway = setting.gateway();
    let (status, found) = setting.doctor();
    assert_eq!(status, Some(1));
    assert_found(&found, "route", "fail", "answered with 502");

    let origin = Origin::start(|connection| {
        connection.request()?;
        connection.send("SSH-2.0-OpenSSH_10.0 is no HTTP\r\n")
    });
    let (_, found) = Setting::new(origin.address()).doctor();
    assert_found(&found, "upstream", "fail", "no HTTP");
}

#[test]
fn the_admin_endpoint_is_seen_in_each_state() {
    let demo = Demo::start().expect("it starts");
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("admin.sock");
    let port = tlsplice_fixtures::free_port().expect("a port");
    let setting = Setting::new(demo.address())
        .with(&format!("[admin]\nsocket = {socket:?}\naddress = \"127.0.0.1:{port}\"\n"));
    let (_, found) = setting.doctor();
    assert_found(&found, "admin", "ok", "admin.sock is free");
    assert_found(&found, "admin", "ok", &format!("127.0.0.1:{port} is free"));
    let gateway = setting.gateway();
    let (_, found) = setting.doctor();
    let answers = |finding: &&Value| {
        let fact = finding["fact"].as_str().unwrap_or_default();
        finding["topic"] == "admin" && fact.ends_with("connections, measured by the kernel")
    };
    assert_eq!(found.iter().filter(answers).count(), 2, "{found:#?}");
    // It is killed and leaves its socket; then something else has both names.
    drop(gateway);
    let (_, found) = setting.doctor();
    assert_found(&found, "admin", "ok", "was left behind");
    fs::remove_file(&socket).expect("it is there");
    fs::write(&socket, "").expect("it is written");
    let foreign = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("it is free");
    std::thread::spawn(move || {
        for stream in foreign.incoming().flatten() {
            drop(std::io::Write::write_all(&mut &stream, b"HTTP/1.1 404 Not Found\r\n\r\n"));
        }
    });
    let (status, found) = setting.doctor();
    assert_eq!(status, Some(1));
    assert_found(&found, "admin", "fail", "exists and is no socket");
    assert_found(&found, "admin", "fail", "no admin endpoint of tlsplice");
}

#[test]
fn upstreams_that_hang_do_not_hold_the_doctor_up() {
    // It accepts and never answers.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = silent.local_addr().expect("its address");
    let setting = Setting::new(address);
    let mut text = fs::read_to_string(setting.file()).expect("it is there");
    for number in 0..10 {
        text += &format!(
            "[[route]]\npath = \"/{number}\"\nupstream = \"http://{address}\"\napp = \"guacamole\"\n"
        );
    }
    fs::write(setting.file(), text).expect("it is written");
    let _gateway = setting.gateway();
    let begun = Instant::now();
    let (status, found) = setting.doctor();
    assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
    assert_eq!(status, Some(1));
    assert_found(&found, "upstream", "fail", "is not reached");
    assert_found(&found, "route", "fail", "*/9/ is not answered");
    assert_found(&found, "websocket", "fail", "*/9/websocket-tunnel is not answered");
}

#[test]
fn an_expired_certificate_is_found() {
    let directory = tempfile::tempdir().expect("a directory");
    let (chain, key) = (directory.path().join("chain.pem"), directory.path().join("key.pem"));
    let mut parameters =
        rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    let day = Duration::from_secs(86_400);
    parameters.not_before = (SystemTime::now() - 10 * day).into();
    parameters.not_after = (SystemTime::now() - day).into();
    let pair = rcgen::KeyPair::generate().expect("a key");
    let expired = parameters.self_signed(&pair).expect("a certificate");
    fs::write(&chain, expired.pem()).expect("it is written");
    fs::write(&key, pair.serialize_pem()).expect("it is written");
    let chmod = Command::new("chmod").arg("600").arg(&key).status().expect("it runs");
    assert!(chmod.success());
    let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
    let (status, found) = Setting::with_certificate(nowhere, &chain, &key).doctor();
    assert_eq!(status, Some(1));
    assert_found(&found, "config", "fail", "expired on");
}

#[test]
fn few_descriptors_and_missing_capabilities_are_warnings() {
    let demo = Demo::start().expect("it starts");
    let setting = Setting::new(demo.address());
    let (_, found) = setting.doctor_under(&["prlimit", "--nofile=1024:1024"]);
    assert_nothing_failed(&found);
    assert_found(&found, "files", "warn", "enough for 448 connections");

    let wrapper = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"];
    let (_, found) = setting.doctor_under(&wrapper);
    assert_nothing_failed(&found);
    assert_found(&found, "eBPF", "warn", "lacks CAP_NET_ADMIN and CAP_BPF: the kernel does not");

    let quiet = Setting::new(demo.address()).with("[telemetry]\nflush_latency = \"off\"\n");
    assert_found(&quiet.doctor().1, "eBPF", "ok", "switched off");
}

#[test]
fn a_ring_for_which_there_is_no_descriptor_fails() {
    need(&["strace"]);
    // A ring needs no descriptor beside its own, and so does the program's loader: no limit is low enough for one only.
    let output = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=io_uring_setup"])
        .args(["-e", "inject=io_uring_setup:error=EMFILE"])
        .arg(binary())
        .args(["doctor", "--json"])
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    assert_found(&findings(&output), "io_uring", "fail", "descriptor");
}

/// A seccomp filter that answers one system call with this error and allows all others (`linux/filter.h`).
fn seccomp_filter(call: u32, errno: u32) -> Vec<u8> {
    let instruction = |code: u16, jump: [u8; 2], k: u32| {
        let mut bytes = code.to_ne_bytes().to_vec();
        bytes.extend(jump);
        bytes.extend(k.to_ne_bytes());
        bytes
    };
    [
        instruction(0x20, [0, 0], 0),    // load the number of the call
        instruction(0x15, [0, 1], call), // is it this one?
        instruction(0x06, [0, 0], 0x0005_0000 | errno), // yes: the error
        instruction(0x06, [0, 0], 0x7fff_0000), // no: go on
    ]
    .concat()
}

#[test]
fn a_seccomp_filter_that_refuses_or_hides_io_uring_fails() {
    const IO_URING_SETUP: u32 = 425;
    const EPERM: u32 = 1;
    const ENOSYS: u32 = 38;
    #[cfg(target_arch = "x86_64")]
    const PRCTL_AND_SECCOMP: &str = "157 317";
    #[cfg(target_arch = "aarch64")]
    const PRCTL_AND_SECCOMP: &str = "167 277";
    // PR_SET_NO_NEW_PRIVS, SECCOMP_SET_MODE_FILTER with a `sock_fprog`, and the program. Debian is never without Perl.
    const LOADER: &str = r#"
        my ($prctl, $seccomp) = split " ", shift; my $filter = pack "H*", shift;
        syscall($prctl, 38, 1, 0, 0, 0) == 0 or die "prctl: $!";
        my $program = pack "S x6 P", length($filter) / 8, $filter;
        syscall($seccomp, 1, 0, $program) == 0 or die "seccomp: $!";
        exec @ARGV or die "exec: $!";
    "#;
    for (errno, part) in [(EPERM, "seccomp filter"), (ENOSYS, "no io_uring, or a seccomp filter")] {
        let filter = seccomp_filter(IO_URING_SETUP, errno);
        let hex: String = filter.iter().map(|byte| format!("{byte:02x}")).collect();
        let output = Command::new("perl")
            .args(["-e", LOADER, PRCTL_AND_SECCOMP, &hex])
            .arg(binary())
            .args(["doctor", "--json"])
            .output()
            .expect("it runs");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert_found(&findings(&output), "io_uring", "fail", part);
    }
}

#[test]
fn without_a_configuration_the_kernel_alone_is_told_in_words() {
    let output = tlsplice_tests::gateway::tlsplice(&["doctor"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{text}");
    for topic in ["kernel", "io_uring", "kernel TLS", "splice", "cgroup2", "eBPF"] {
        assert!(text.lines().any(|line| line[6..].starts_with(topic)), "{topic}:\n{text}");
    }
}
