//! A control group of version 1 that turns off programs of version 2: before Linux 5.14 they are not run any more for new
//! sockets once a `net_cls` group is in use, until the machine is restarted. `cargo xtask vm` runs this last in its guests.

use std::fs;
use std::process::Command;

use tlsplice_tests::bpf::{Kernel, serves_without};
use tlsplice_tests::gateway::{Config, Gateway};
use tlsplice_tests::origin::Origin;
use tlsplice_tests::plain::{ask, connect, listener, port};

/// Whether `release`, such as `5.10.0-33-amd64`, has the conflict.
fn has_conflict(release: &str) -> bool {
    let mut numbers = release.split('.').map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) < (Some(5), Some(14))
}

/// Puts a `net_cls` group into use.
fn conflict() {
    let directory = tempfile::tempdir().expect("a directory").keep();
    let mut mount = Command::new("mount");
    mount.args(["-t", "cgroup", "-o", "net_cls", "net_cls"]).arg(&directory);
    let mounted = mount.status().expect("mount runs");
    assert!(mounted.success(), "this kernel has no net_cls");
    let group = directory.join("group");
    fs::create_dir(&group).expect("a group");
    fs::write(group.join("net_cls.classid"), "65537").expect("it has a class");
}

#[test]
#[ignore = "changes the whole kernel until it is restarted: cargo xtask vm runs it"]
fn a_net_cls_group_in_use_ends_measuring_on_old_kernels_and_nothing_else() {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    // Each request has a connection of its own to the upstream: those made earlier stay in their group.
    let origin = Origin::start(|connection| {
        connection.request()?;
        connection.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
    });
    let config = Config::to(origin.address()).with(&listener("127.0.0.1:0"));
    let gateway = Gateway::start(&config);
    let served = || {
        let mut stream = connect(gateway.plain());
        ask(&mut stream, b"ok");
        gateway.wait_for_access(|line| line["port"] == port(&stream))
    };
    assert_eq!(served()["flush_count"], 1);
    conflict();
    let line = served();
    assert_eq!(line["client"], "127.0.0.1");
    if !has_conflict(&release) {
        assert_eq!(line["flush_count"], 1, "{release}");
        drop(Kernel::of_running(&Gateway::start(&config)));
        return;
    }
    assert_eq!(line["flush_count"], 0, "what comes from the upstream is not seen any more");
    let later = Gateway::start(&config);
    serves_without(
        &later,
        "does not run programs for this process's sockets",
        "remove those groups",
    );
}

#[test]
fn kernels_with_the_conflict_are_told_from_those_without() {
    assert!(has_conflict("5.10.0-33-amd64") && has_conflict("5.13.1"));
    assert!(!has_conflict("5.14.0-1") && !has_conflict("6.1.0-28-amd64"));
}
