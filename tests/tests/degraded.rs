//! What becomes of a gateway that cannot have the kernel measure: it says once why, what that costs and what to do, and
//! serves.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
use tlsplice_tests::admin::{metrics, value};
use tlsplice_tests::bpf::{Kernel, serves_without};
use tlsplice_tests::brake::standing;
use tlsplice_tests::client::Client;
use tlsplice_tests::gateway::{Config, Gateway, binary};
use tlsplice_tests::inject::{TRACED, gateway_with};
use tlsplice_tests::origin::Origin;
use tlsplice_tests::plain::{ask, connect, listener, port};
use tlsplice_tests::wait_for;

/// What a warning says of the price.
const COST: &str = "flush latency, round-trip times and retransmissions are not measured";

#[test]
fn without_capabilities_it_serves_and_says_so() {
    let origin = Origin::mirror();
    for missing in [CapabilitySet::BPF, CapabilitySet::NET_ADMIN] {
        let config = Config::to(origin.address());
        // What a thread gives up is missing in the programs that it starts, and nowhere else.
        let gateway = thread::spawn(move || {
            for capability in [missing, CapabilitySet::SYS_ADMIN] {
                remove_capability_from_bounding_set(capability).expect("root may");
            }
            Gateway::start(&config)
        });
        let gateway = gateway.join().expect("it starts");
        let cure = "give the process CAP_BPF and CAP_NET_ADMIN";
        serves_without(&gateway, "the kernel does not permit BPF", cure);
    }
}

#[test]
fn two_capabilities_are_enough() {
    let origin = Origin::mirror();
    let config = Config::to(origin.address());
    let kept = CapabilitySet::BPF | CapabilitySet::NET_ADMIN;
    // Linux 5.10 charges maps to this limit: `LimitMEMLOCK=infinity` of a unit. Elsewhere it may be what it is.
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    if release.starts_with("5.10.") {
        setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None }).expect("root may");
    }
    let gateway = thread::spawn(move || {
        for capability in CapabilitySet::all().difference(kept).iter() {
            // Older kernels do not know the newest ones.
            let _ = remove_capability_from_bounding_set(capability);
        }
        // What a program that is started from here on can have at most.
        let status = fs::read_to_string("/proc/thread-self/status").expect("its status");
        let most = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).expect("its bound");
        let most = u64::from_str_radix(most.trim(), 16).expect("a number");
        assert_eq!(most, kept.bits(), "these and no other");
        Gateway::start(&config)
    });
    let gateway = gateway.join().expect("it starts");
    drop(Kernel::of_running(&gateway));
    assert_eq!(Client::tls(gateway.https).get("/").status, 200);
    gateway.wait_for_access(|line| line["flush_count"] == 1);
    assert!(!gateway.diagnostics().contains("WARN eBPF"), "{}", gateway.diagnostics());
}

#[test]
fn without_cgroup2_it_serves_and_says_so() {
    let origin = Origin::mirror();
    let mounts = fs::read_to_string("/proc/mounts").expect("the mounts");
    let points = mounts.lines().filter(|line| line.split(' ').nth(2) == Some("cgroup2"));
    let points: Vec<&str> = points.filter_map(|line| line.split(' ').nth(1)).collect();
    let mut command = Command::new("unshare");
    let script = format!(
        "for point in {}; do umount $point || exit 1; done; exec \"$0\" \"$@\"",
        points.join(" ")
    );
    command.args(["-m", "sh", "-c", &script]).arg(binary());
    serves_without(
        &Gateway::start_as(&Config::to(origin.address()), &mut command),
        "no cgroup2 file system",
        "mount -t cgroup2",
    );
}

#[test]
fn a_program_that_the_verifier_refuses_is_done_without() {
    // The last end of a program becomes a jump to nowhere, in a copy of the gateway.
    const OBJECT: &[u8] = include_bytes!("../../ebpf/tlsplice.bpf.o");
    const EXIT: [u8; 8] = [0x95, 0, 0, 0, 0, 0, 0, 0];
    let find =
        |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).position(|window| window == part);
    let mut bytes = fs::read(binary()).expect("the gateway");
    let start = find(&bytes, &OBJECT[..4096]).expect("the gateway holds the object");
    let exit = OBJECT.windows(8).rposition(|window| window == EXIT).expect("a program ends");
    let exit = start + exit;
    bytes[exit..exit + 8].copy_from_slice(&[0x05, 0, 0xff, 0x7f, 0, 0, 0, 0]);
    let directory = tempfile::tempdir().expect("a directory");
    let copy = directory.path().join("tlsplice");
    fs::write(&copy, bytes).expect("it is written");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    fs::set_permissions(&copy, executable).expect("it is made executable");
    let origin = Origin::mirror();
    let gateway = Gateway::start_as(&Config::to(origin.address()), &mut Command::new(copy));
    serves_without(&gateway, "verifier refused", "report this with the kernel's version");
}

#[test]
fn maps_that_the_kernel_has_no_memory_for_are_done_without() {
    let origin = Origin::mirror();
    let config =
        Config::to(origin.address()).with("[telemetry]\nconnections = 12345\n").with(TRACED);
    let gateway = Gateway::start_as(&config, &mut gateway_with(&["bpf:error=ENOMEM"]));
    serves_without(
        &gateway,
        "the kernel has no memory for 12345 connections",
        "lower telemetry.connections",
    );
}

#[test]
fn switched_off_it_says_nothing() {
    let origin = Origin::mirror();
    let config = Config::to(origin.address()).with("[telemetry]\nflush_latency = \"off\"\n");
    let gateway = Gateway::start(&config);
    assert!(Kernel::of(gateway.id()).is_none());
    assert_eq!(Client::tls(gateway.https).get("/").status, 200);
    let said = gateway.diagnostics();
    assert!(!said.contains("WARN eBPF") && said.contains("off: it is switched off"), "{said}");
}

/// One line, with cause, cost and cure.
#[track_caller]
fn assert_warns_once(gateway: &Gateway, cause: &str, cure: &str) {
    let said = gateway.diagnostics();
    let lines: Vec<&str> = said.lines().filter(|line| line.contains("WARN eBPF: ")).collect();
    assert_eq!(lines.len(), 1, "{said}");
    for part in [cause, COST, cure] {
        assert!(lines[0].contains(part), "{part:?} is missing: {lines:?}");
    }
}

#[test]
fn connections_beyond_the_bound_are_served_and_not_measured() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let config = Config::to(origin.address())
        .with(&listener("127.0.0.1:0"))
        .with("[telemetry]\nconnections = 2\n");
    let gateway = Gateway::start(&config);
    let mut streams: Vec<TcpStream> = (0..4).map(|_| connect(gateway.plain())).collect();
    for stream in &mut streams {
        ask(stream, b"ok");
    }
    let measured = |stream: &TcpStream| {
        let line = gateway.wait_for_access(|line| line["port"] == port(stream));
        line.get("flush_count").is_some()
    };
    assert_eq!(streams.iter().filter(|stream| measured(stream)).count(), 2);
    assert_warns_once(&gateway, "a connection is not measured", "raise telemetry.connections");
    // Their places are free again afterwards.
    drop(streams);
    let kernel = Kernel::of_running(&gateway);
    wait_for("the end of all connections", || (kernel.measured() == 0).then_some(()));
    let mut stream = connect(gateway.plain());
    ask(&mut stream, b"ok");
    assert!(measured(&stream));
}

#[test]
fn connections_that_the_kernel_has_no_place_for_are_served() {
    // Those that may wait to be accepted have places of their own.
    const CONNECTIONS: usize = 4096 + 100;
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("anybody may");
    let origin = Origin::mirror();
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("admin.sock");
    let config = Config::to(origin.address())
        .with_limits(
            "connections_per_address = 6000\nconnections = 6000\nhandshake_timeout = \"5m\"",
        )
        .with(&format!("[telemetry]\nconnections = 2\n[admin]\nsocket = {socket:?}"));
    let gateway = Gateway::start(&config);
    let silent: Vec<TcpStream> = (0..CONNECTIONS).map(|_| connect(gateway.https)).collect();
    let cause = "the kernel has no record of the connection from 127.0.0.1:";
    gateway.wait_for_diagnostic(cause);
    assert_eq!(Client::tls(gateway.https).get("/").status, 200);
    let errors = |cause| value(&metrics(&socket), "tlsplice_bpf_errors_total", &[("cause", cause)]);
    wait_for("the count of all", || (errors("unseen") >= 98.0).then_some(()));
    assert!(errors("map_full") >= 98.0, "{}", errors("map_full"));
    assert_warns_once(&gateway, "the map of connections is full", "raise telemetry.connections");
    drop(silent);
    let kernel = Kernel::of_running(&gateway);
    wait_for("the end of all connections", || (kernel.connections() == 0).then_some(()));
    assert_eq!(Client::tls(gateway.https).get("/").status, 200);
    gateway.wait_for_access(|line| line["flush_count"] == 1);
}

#[test]
fn connections_without_a_record_are_served() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let gateway = Gateway::start(&Config::to(origin.address()).with(&listener("127.0.0.1:0")));
    let mut kernel = Kernel::of_running(&gateway);
    // Those that end without a request, of which there may be many, change nothing about it.
    for _ in 0..5 {
        drop(connect(gateway.https));
    }
    wait_for("their end", || (kernel.connections() == 0).then_some(()));
    for _ in 0..3 {
        let mut stream = standing(&gateway, || {
            let stream = connect(gateway.plain());
            kernel.delete(port(&stream));
            stream
        });
        ask(&mut stream, b"ok");
        let line = gateway.wait_for_access(|line| line["port"] == port(&stream));
        assert_eq!(line["client"], "127.0.0.1", "as accept says");
    }
    let cause = "the kernel has no record of the connection from 127.0.0.1:";
    assert_warns_once(&gateway, cause, "restart the gateway");
}

#[test]
fn connections_that_end_before_they_are_accepted_are_no_complaint() {
    let origin = Origin::mirror();
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("admin.sock");
    let config = Config::to(origin.address())
        .with(&listener("127.0.0.1:0"))
        .with(&format!("[admin]\nsocket = {socket:?}"));
    let gateway = Gateway::start(&config);
    // As the checks of load balancers do.
    standing(&gateway, || {
        for _ in 0..10 {
            let stream = socket2::Socket::from(connect(gateway.plain()));
            stream.set_linger(Some(Duration::ZERO)).expect("a socket option");
        }
    });
    wait_for("all of them", || {
        let accepted = value(&metrics(&socket), "tlsplice_connections_accepted_total", &[]);
        (accepted >= 10.0).then_some(())
    });
    ask(&mut connect(gateway.plain()), b"\r\n");
    let unseen = value(&metrics(&socket), "tlsplice_bpf_errors_total", &[("cause", "unseen")]);
    assert_eq!(unseen, 0.0);
    assert!(!gateway.diagnostics().contains("WARN eBPF"), "{}", gateway.diagnostics());
}

/// A control group of its own, removed when dropped.
struct Group(PathBuf);

impl Group {
    fn new() -> Self {
        let mounts = fs::read_to_string("/proc/mounts").expect("the mounts");
        let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let mount = mounts.find(|fields| fields[2] == "cgroup2").expect("cgroup2");
        let path = Path::new(mount[1]).join(format!("exclusive-{}", std::process::id()));
        fs::create_dir(&path).expect("root may");
        Self(path)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // What was in it has been killed, but may not have ended.
        wait_for("an empty group", || fs::remove_dir(&self.0).ok());
    }
}

#[test]
fn a_group_that_another_program_has_for_itself_is_done_without() {
    // BPF_PROG_LOAD of what lets every packet pass, and BPF_PROG_ATTACH to egress with no flag: neither below nor beside it
    // may there be another. It stays until the group goes.
    const HOLDER: &str = r#"
        my ($call, $group) = @ARGV;
        my $pass = pack "C C s l C C s l", 0xb7, 0, 0, 1, 0x95, 0, 0, 0;
        my $load = pack "L L P P L L Q L L a16 L L", 8, 2, $pass, "GPL\0", 0, 0, 0, 0, 0, "", 0, 1;
        my $program = syscall(0 + $call, 5, $load, length $load);
        $program >= 0 or die "load: $!";
        open my $directory, "<", $group or sysopen($directory, $group, 0x10000) or die "$group: $!";
        my $attach = pack "L L L L", fileno $directory, $program, 1, 0;
        syscall(0 + $call, 8, $attach, length $attach) == 0 or die "attach: $!";
    "#;
    #[cfg(target_arch = "x86_64")]
    const BPF: &str = "321";
    #[cfg(target_arch = "aarch64")]
    const BPF: &str = "280";
    let group = Group::new();
    // Debian is never without Perl.
    let held = Command::new("perl").args(["-e", HOLDER, BPF]).arg(&group.0).output();
    let held = held.expect("it runs");
    assert!(held.status.success(), "{held:?}");
    let origin = Origin::mirror();
    let mut command = Command::new("sh");
    command.args(["-c", r#"echo 0 > "$0/cgroup.procs" && exec "$@""#]).arg(&group.0).arg(binary());
    let gateway = Gateway::start_as(&Config::to(origin.address()), &mut command);
    serves_without(&gateway, "holds the control group", "run the gateway in a group of its own");
}
