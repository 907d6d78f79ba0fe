//! What becomes of a gateway that cannot have the kernel measure: it says once why, what that costs and what to do, and
//! serves.

use std::fs;
use std::net::TcpStream;
use std::process::Command;
use std::thread;

use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
use tlsplice_tests::bpf::Kernel;
use tlsplice_tests::client::Client;
use tlsplice_tests::gateway::{Config, Gateway, binary};
use tlsplice_tests::origin::Origin;
use tlsplice_tests::plain::{ask, connect, listener, port};
use tlsplice_tests::wait_for;

const WARNING: &str = "WARN eBPF cannot be had: ";

/// A gateway serves, has no programs, and has said once why.
fn serves_without(gateway: &Gateway, cause: &str) {
    assert!(Kernel::of(gateway.id()).is_none());
    assert_eq!(Client::tls(gateway.https).get("/").status, 200);
    let said = gateway.diagnostics();
    let warnings: Vec<&str> = said.lines().filter(|line| line.contains(WARNING)).collect();
    assert_eq!(warnings.len(), 1, "{said}");
    assert!(warnings[0].contains(cause), "{warnings:?}");
    let line = gateway.wait_for_access(|line| line["status"] == 200);
    assert!(line.get("flush_p50_ms").is_none() && line["client"] == "127.0.0.1", "{line}");
}

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
        serves_without(
            &gateway.join().expect("it starts"),
            "give the process CAP_BPF and CAP_NET_ADMIN",
        );
    }
}

#[test]
fn two_capabilities_are_enough() {
    let origin = Origin::mirror();
    let config = Config::to(origin.address());
    let gateway = thread::spawn(move || {
        let kept = CapabilitySet::BPF | CapabilitySet::NET_ADMIN;
        // Linux 5.10 charges maps to a limit that only this one may raise.
        let kept = kept | CapabilitySet::SYS_RESOURCE;
        for capability in CapabilitySet::all().difference(kept).iter() {
            // Older kernels do not know the newest ones.
            let _ = remove_capability_from_bounding_set(capability);
        }
        Gateway::start(&config)
    });
    let gateway = gateway.join().expect("it starts");
    drop(Kernel::of_running(&gateway));
    assert_eq!(Client::tls(gateway.https).get("/").status, 200);
    gateway.wait_for_access(|line| line["flush_count"] == 1);
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
    serves_without(&gateway, "verifier refused");
}

#[test]
fn switched_off_it_says_nothing() {
    let origin = Origin::mirror();
    let config = Config::to(origin.address()).with("[telemetry]\nflush_latency = \"off\"\n");
    let gateway = Gateway::start(&config);
    assert!(Kernel::of(gateway.id()).is_none());
    assert_eq!(Client::tls(gateway.https).get("/").status, 200);
    let said = gateway.diagnostics();
    assert!(!said.contains(WARNING) && said.contains("off: it is switched off"), "{said}");
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
    assert_eq!(gateway.diagnostics().matches("a connection is not measured").count(), 1);
    // Their places are free again afterwards.
    drop(streams);
    let kernel = Kernel::of_running(&gateway);
    wait_for("the end of all connections", || (kernel.entries().2 == 0).then_some(()));
    let mut stream = connect(gateway.plain());
    ask(&mut stream, b"ok");
    assert!(measured(&stream));
}
