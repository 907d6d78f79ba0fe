//! What the gateway has given up by the time it serves, as the kernel tells of it, and what it keeps to itself.

use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, chown};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tlsplice_fixtures::certificate::Certificate;
use tlsplice_fixtures::process::Process;
use tlsplice_tests::client::{Client, VERSIONS, tls_config};
use tlsplice_tests::gateway::{Config, Gateway, binary, listeners};
use tlsplice_tests::origin::Origin;
use tlsplice_tests::{PATIENCE, certificate, need, wait_for};

/// Every Debian has this user, who owns nothing.
const NOBODY: u32 = 65_534;
const AS_NOBODY: &str = "[process]\nuser = \"nobody\"\n";

/// The gateway as the shell starts it, with the directory of its configuration given to nobody first.
const START_FOR_NOBODY: &str =
    "chown -R nobody \"${3%/*}\" && ulimit -c unlimited && exec \"$0\" \"$@\"";

fn origin() -> Origin {
    Origin::start(|connection| {
        loop {
            connection.request()?;
            connection.respond("x")?;
        }
    })
}

fn start_for_nobody(config: &Config) -> Gateway {
    let mut command = Command::new("sh");
    command.args(["-c", START_FOR_NOBODY]).arg(binary());
    Gateway::start_as(config, &mut command)
}

/// `NAME: value` of a status, for the process and each of its threads.
fn statuses(gateway: &Gateway) -> Vec<HashMap<String, String>> {
    let tasks = fs::read_dir(format!("/proc/{}/task", gateway.id())).expect("its threads");
    let texts = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok());
    texts
        .map(|text| {
            let pairs = text.lines().filter_map(|line| line.split_once(':'));
            pairs.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
        })
        .collect()
}

/// Whether a capability may stay: kernels before 5.19 let nobody else ask for what they measured.
fn is_empty_or_bpf(value: &str) -> bool {
    const BPF: u64 = 1 << 39;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let kept = u64::from_str_radix(value, 16).expect("a set");
    kept == 0 || (kept == BPF && version < (5, 19))
}

#[test]
fn every_thread_of_a_gateway_that_serves_has_given_everything_up() {
    let origin = origin();
    let config = Config::to(origin.address());
    for user in [0, NOBODY] {
        let gateway = match user {
            NOBODY => start_for_nobody(&config.clone().with(AS_NOBODY)),
            _ => Gateway::start(&config),
        };
        assert_eq!(Client::tls(gateway.https).get("/").text(), "x");
        let statuses = statuses(&gateway);
        let names: Vec<&str> = statuses.iter().map(|status| &*status["Name"]).collect();
        for name in ["tlsplice", "worker-0", "worker-1", "signals", "access-log"] {
            assert!(names.contains(&name), "{name}: {names:?}");
        }
        for status in &statuses {
            let all = |name: &str, number: u32| {
                let numbers = status[name].split_whitespace();
                assert!(numbers.into_iter().all(|one| one == number.to_string()), "{status:?}");
            };
            if user != 0 {
                all("Uid", user);
                all("Gid", NOBODY);
                all("Groups", NOBODY);
            }
            for set in ["CapInh", "CapAmb", "CapBnd"] {
                assert_eq!(status[set], "0000000000000000", "{set}: {status:?}");
            }
            for set in ["CapPrm", "CapEff"] {
                assert!(is_empty_or_bpf(&status[set]), "{set}: {status:?}");
            }
            assert_eq!((&*status["NoNewPrivs"], &*status["Seccomp"]), ("1", "2"), "{status:?}");
        }
        let limits = fs::read_to_string(format!("/proc/{}/limits", gateway.id())).expect("limits");
        let core = limits.lines().find(|line| line.starts_with("Max core file size"));
        let core: Vec<&str> = core.expect("a limit").split_whitespace().collect();
        assert_eq!(core[4..6], ["0", "0"]);
        assert!(gateway.diagnostics().contains("\n  confined     "), "the report tells of it");
    }
}

/// Whether `nobody` can read a file.
fn nobody_reads(path: &str) -> bool {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups", "head", "-c1", path]);
    command.output().expect("setpriv runs").status.success()
}

#[test]
fn others_of_the_same_user_cannot_look_into_it() {
    let origin = origin();
    let gateway = start_for_nobody(&Config::to(origin.address()).with(AS_NOBODY));
    let mut other = Command::new("setpriv")
        .args(["--reuid=nobody", "--regid=nogroup", "--clear-groups", "sleep", "600"])
        .spawn()
        .expect("setpriv runs");
    let id = other.id();
    // It is setpriv for a moment.
    let can_see = wait_for("a process of nobody", || {
        let name = fs::read_to_string(format!("/proc/{id}/comm")).ok()?;
        (name.trim() == "sleep").then(|| nobody_reads(&format!("/proc/{id}/environ")))
    });
    other.kill().and_then(|()| other.wait()).expect("it ends");
    assert!(can_see, "otherwise the rest would prove nothing");
    for file in ["environ", "maps", "mem", "auxv", "io"] {
        assert!(!nobody_reads(&format!("/proc/{}/{file}", gateway.id())), "{file}");
    }
}

#[test]
fn a_crash_leaves_no_core() {
    let origin = origin();
    let directory = tempfile::tempdir().expect("a directory");
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -c unlimited && exec \"$0\" \"$@\""]).arg(binary());
    command.current_dir(directory.path());
    let mut gateway = Gateway::start_as(&Config::to(origin.address()), &mut command);
    gateway.signal(Signal::ABORT);
    let status = gateway.wait();
    assert_eq!((status.signal(), status.core_dumped()), (Some(6), false));
    assert_eq!(fs::read_dir(directory.path()).expect("it can be read").count(), 0);
}

#[test]
fn who_cannot_become_the_configured_user_does_not_serve() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("tlsplice.toml");
    let text = "[[listener]]\naddress = \"127.0.0.1:0\"\nservice = \"http\"\n[[route]]\nupstream = \
                \"http://127.0.0.1:1\"\n[process]\nuser = \"daemon\"\n";
    fs::write(&file, text).expect("it is written");
    let program = directory.path().join("tlsplice");
    fs::copy(binary(), &program).expect("it is copied");
    for path in [directory.path(), &file, &program] {
        chown(path, Some(NOBODY), Some(NOBODY)).expect("it is given away");
    }
    let output = Command::new("setpriv")
        .args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"])
        .arg(&program)
        .args(["run", "--config"])
        .arg(&file)
        .output()
        .expect("setpriv runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("process.user: cannot become daemon"), "{text}");
    assert!(!text.contains("is serving"), "{text}");
}

/// A directory of nobody's with a certificate for site.example.net.
struct Site {
    directory: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let site = Self { directory: tempfile::tempdir().expect("a directory") };
        chown(site.directory.path(), Some(NOBODY), None).expect("it is given away");
        site.renew("first");
        site
    }

    /// Another certificate under the same names.
    fn renew(&self, name: &str) -> Certificate {
        let made = tlsplice_tests::target().join("tests/posture").join(name);
        let certificate = Certificate::ensure(&made, &["site.example.net"]).expect("a certificate");
        for (from, to) in [(&certificate.chain, self.chain()), (&certificate.key, self.key())] {
            // As certificates are replaced: by a file that takes the name.
            let new = to.with_extension("new");
            fs::copy(from, &new).expect("it is copied");
            chown(&new, Some(NOBODY), None).expect("it is given away");
            fs::rename(&new, &to).expect("it is renamed");
        }
        certificate
    }

    fn chain(&self) -> PathBuf {
        self.directory.path().join("site.pem")
    }

    fn key(&self) -> PathBuf {
        self.directory.path().join("site.key")
    }

    fn table(&self, name: &str) -> String {
        let (chain, key) = (self.chain(), self.key());
        format!("[{name}]\ncertificate = {chain:?}\nkey = {key:?}\n")
    }
}

/// Whether the site's certificate is this one.
fn shows(gateway: SocketAddr, certificate: &Certificate) -> bool {
    let config = Arc::new(tlsplice_tests::client::tls_config_trusting(&certificate.authority));
    let mut client = Client::with(gateway, &config, "site.example.net");
    client
        .try_send("GET / HTTP/1.1\r\nHost: site.example.net\r\n\r\n")
        .and_then(|()| client.try_response())
        .is_ok()
}

#[test]
fn a_gateway_of_nobody_reloads_certificates_and_logs_and_nothing_from_elsewhere() {
    let (origin, site, logs) = (origin(), Site::new(), tempfile::tempdir().expect("a directory"));
    chown(logs.path(), Some(NOBODY), None).expect("it is given away");
    let log = logs.path().join("access.log");
    let config =
        Config::to(origin.address()).with(AS_NOBODY).with(&site.table("tls.site")).with_log(&log);
    let mut gateway = start_for_nobody(&config);
    // The key that all these tests share belongs to root, who read it.
    gateway.wait_for_diagnostic("cannot be read any more");
    let address = gateway.https;
    let shows = |certificate: &Certificate| shows(address, certificate);
    let listeners = listeners(None);
    let text = |log: &Path, upstream: &str| {
        format!(
            "workers = 2\n{listeners}\n{}\n[[route]]\nupstream = \"http://{upstream}\"\n{AS_NOBODY}\n\
             [access_log]\ntarget = {log:?}\n",
            site.table("tls"),
        )
    };
    let upstream = origin.address().to_string();
    let renewed = site.renew("second");
    fs::rename(&log, logs.path().join("access.log.1")).expect("it is rotated");
    gateway.reload_text(&text(&log, &upstream));
    gateway.wait_for_diagnostic("INFO reloaded");
    wait_for("the new certificate", || shows(&renewed).then_some(()));
    wait_for("a line in the new log", || {
        fs::read_to_string(&log).is_ok_and(|text| text.contains("site.example.net")).then_some(())
    });

    if gateway.diagnostics().contains("no Landlock") {
        return;
    }
    let elsewhere = tempfile::tempdir().expect("a directory");
    chown(elsewhere.path(), Some(NOBODY), None).expect("it is given away");
    gateway.reload_text(&text(&elsewhere.path().join("access.log"), &upstream));
    gateway.wait_for_diagnostic("which was closed to the gateway at its start; restart it");
    assert!(!elsewhere.path().join("access.log").exists());
    gateway.reload_text(&text(&log, "localhost:1"));
    gateway.wait_for_diagnostic("it needs /etc, which was closed");
    let moved = elsewhere.path().join("site.pem");
    fs::copy(site.chain(), &moved).expect("it is copied");
    chown(&moved, Some(NOBODY), None).expect("it is given away");
    let from = site.chain().to_string_lossy().into_owned();
    gateway.reload_text(&text(&log, &upstream).replace(&from, &moved.to_string_lossy()));
    gateway.wait_for_diagnostic("directories that its configuration named at the start");
    assert!(shows(&renewed), "the configuration in use stayed");
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait().code(), Some(0));
}

/// All memory of a process that it can write to.
fn memory(gateway: &Gateway) -> Vec<u8> {
    let maps = fs::read_to_string(format!("/proc/{}/maps", gateway.id())).expect("its maps");
    let file = fs::File::open(format!("/proc/{}/mem", gateway.id())).expect("its memory");
    let mut all = Vec::new();
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (start, end) =
            line.split(' ').next().and_then(|range| range.split_once('-')).expect("a range");
        let number = |text| u64::from_str_radix(text, 16).expect("an address");
        let length = usize::try_from(number(end) - number(start)).expect("a length");
        let at = all.len();
        all.resize(at + length, 0);
        // A ring's pages cannot be read this way.
        if file.read_exact_at(&mut all[at..], number(start)).is_err() {
            all.truncate(at);
        }
        all.extend_from_slice(&[0; 16]);
    }
    all
}

fn holds(memory: &[u8], needle: &[u8]) -> bool {
    assert!(needle.len() >= 16, "too short to be found by chance alone");
    memchr::memmem::find(memory, needle).is_some()
}

/// Panics when a part of the key in `file` is in memory, as text or decoded.
fn assert_key_is_not_in(memory: &[u8], file: &Path) {
    let pem = fs::read_to_string(file).expect("it can be read");
    for line in pem.lines().filter(|line| !line.starts_with('-') && line.len() >= 16) {
        assert!(!holds(memory, line.as_bytes()), "a line of the PEM file is in memory");
    }
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).expect("a key");
    assert!(!holds(memory, key.secret_der()), "the key as it is in the file is in memory");
}

#[test]
fn a_key_is_not_in_memory_as_it_is_in_its_file() {
    let origin = origin();
    let gateway = Gateway::start(&Config::to(origin.address()));
    for version in VERSIONS {
        let config = Arc::new(tls_config(&[version]));
        assert_eq!(Client::with(gateway.https, &config, "localhost").get("/").text(), "x");
    }
    let memory = memory(&gateway);
    let chain = CertificateDer::from_pem_file(&certificate().chain).expect("a certificate");
    assert!(holds(&memory, &chain), "what is public is there, so that the rest means something");
    assert_key_is_not_in(&memory, &certificate().key);
}

/// Whether memory that was given back still holds a key depends on what took its place. Here many keys leave many
/// places, and some lie in one file with their certificate.
#[test]
fn no_key_stays_in_memory_over_reloads() {
    const RELOADS: usize = 8;
    let (origin, site) = (origin(), Site::new());
    let listeners = listeners(None);
    let config = Config::to(origin.address()).with(AS_NOBODY).with(&site.table("tls.site"));
    let mut gateway = start_for_nobody(&config);
    let together = site.directory.path().join("together.pem");
    let mut keys = vec![certificate().key.clone()];
    for at in 0..RELOADS {
        let made = site.renew(&format!("reload-{at}"));
        let table = if at % 2 == 0 {
            site.table("tls")
        } else {
            let key = fs::read_to_string(site.key()).expect("it can be read");
            let chain = fs::read_to_string(site.chain()).expect("it can be read");
            fs::write(&together, key + &chain).expect("it is written");
            fs::set_permissions(&together, fs::Permissions::from_mode(0o600)).expect("its mode");
            chown(&together, Some(NOBODY), None).expect("it is given away");
            format!("[tls]\ncertificate = {together:?}\nkey = {together:?}\n")
        };
        let upstream = origin.address();
        let route = format!("[[route]]\nupstream = \"http://{upstream}\"\n");
        gateway.reload_text(&format!("workers = 2\n{listeners}\n{table}\n{route}{AS_NOBODY}"));
        wait_for("the new certificate", || shows(gateway.https, &made).then_some(()));
        keys.push(made.key);
    }
    let memory = memory(&gateway);
    for key in &keys {
        assert_key_is_not_in(&memory, key);
    }
}

/// What a service manager is told, message by message.
struct Manager {
    socket: UnixDatagram,
    directory: tempfile::TempDir,
}

impl Manager {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = UnixDatagram::bind(directory.path().join("notify")).expect("it binds");
        socket.set_read_timeout(Some(PATIENCE)).expect("a time");
        Self { socket, directory }
    }

    fn start(&self, config: &Config, watchdog: &str) -> Gateway {
        let mut command = Command::new(binary());
        command.env("NOTIFY_SOCKET", self.directory.path().join("notify"));
        command.env("WATCHDOG_USEC", watchdog);
        Gateway::start_as(config, &mut command)
    }

    fn next(&self) -> String {
        let mut message = [0; 4096];
        let length = self.socket.recv(&mut message).expect("a message");
        String::from_utf8_lossy(&message[..length]).trim().to_owned()
    }

    /// The next message but pings, which come when they do.
    fn news(&self) -> String {
        std::iter::repeat_with(|| self.next())
            .find(|message| message != "WATCHDOG=1")
            .expect("a message")
    }
}

#[test]
fn a_service_manager_is_told_of_every_step_and_that_the_workers_live() {
    let (origin, manager) = (origin(), Manager::new());
    let config = Config::to(origin.address());
    let mut gateway = manager.start(&config, "1000000");
    assert_eq!(manager.news(), "READY=1");
    for _ in 0..3 {
        assert_eq!(manager.next(), "WATCHDOG=1");
    }
    gateway.reload(&config);
    let reloading = manager.news();
    let (first, second) = reloading.split_once('\n').expect("two lines");
    assert_eq!(first, "RELOADING=1");
    let time = second.strip_prefix("MONOTONIC_USEC=").expect("a time");
    assert!(time.parse::<u64>().is_ok_and(|time| time > 0), "{time}");
    assert_eq!(manager.news(), "READY=1");
    gateway.reload_text("nonsense");
    assert!(manager.news().starts_with("RELOADING=1"));
    assert_eq!(manager.news(), "READY=1", "a reload that is refused is over, too");
    gateway.signal(Signal::TERM);
    assert_eq!(manager.news(), "STOPPING=1");
    assert_eq!(gateway.wait().code(), Some(0));
}

#[test]
fn a_worker_that_stands_still_makes_the_watchdog_bark() {
    need(&["strace"]);
    let (origin, manager) = (origin(), Manager::new());
    let gateway = manager.start(&Config::to(origin.address()), "400000");
    assert_eq!(manager.news(), "READY=1");
    assert_eq!(manager.next(), "WATCHDOG=1");
    let mut held = Command::new("strace");
    held.args(["-qq", "-e", "trace=io_uring_enter", "-e"]);
    held.args(["inject=io_uring_enter:delay_enter=3600000000:when=1", "-o", "/dev/null", "-p"]);
    held.arg(gateway.thread("worker-1"));
    let _held = Process::spawn("strace", &mut held).expect("it starts");
    gateway.wait_for_diagnostic("a worker stands still");
    // What was sent before is all there is.
    manager.socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a time");
    let mut message = [0; 64];
    let mut pings = 0;
    while manager.socket.recv(&mut message).is_ok() {
        pings += 1;
        assert!(pings < 1000, "pings go on");
    }
}

/// The unit that comes with the gateway.
fn unit() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../proxy/dist/tlsplice.service")
}

/// `systemd-analyze` with the unit in a directory of its own, where its program exists.
fn analyze(arguments: &[&str]) -> Option<std::process::Output> {
    let is_there = Command::new("systemd-analyze").arg("--version").output().is_ok();
    if !is_there {
        eprintln!("skipped: systemd-analyze is missing (Debian package systemd)");
        return None;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let text = fs::read_to_string(unit()).expect("the unit is there");
    let installed = "/usr/local/bin/tlsplice";
    assert!(text.contains(installed));
    let text = text.replace(installed, &binary().to_string_lossy());
    let path = directory.path().join("tlsplice.service");
    fs::write(&path, text).expect("it is written");
    let output = Command::new("systemd-analyze").args(arguments).arg(&path).output();
    Some(output.expect("systemd-analyze runs"))
}

#[test]
fn the_unit_is_what_systemd_understands() {
    let Some(output) = analyze(&["verify", "--man=no"]) else { return };
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    // Units of the machine that this one refers to have mistakes of their own.
    let ours: Vec<&str> = text.lines().filter(|line| line.contains("tlsplice")).collect();
    assert!(output.status.success() && ours.is_empty(), "{text}");
}

#[test]
fn the_unit_exposes_little() {
    let Some(output) = analyze(&["security", "--offline=true", "--no-pager"]) else { return };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line =
        text.lines().find(|line| line.contains("Overall exposure level")).expect("a verdict");
    let level =
        line.rsplit_once(": ").and_then(|(_, rest)| rest.split(' ').next()?.parse::<f64>().ok());
    assert!(level.is_some_and(|level| level <= 2.0), "{text}");
    println!("{line}");
}
