//! What a confined process can still do, and what becomes of it when it tries more. Confinement has no way back, so each
//! attempt is made by a process of its own: this test binary, called to run one ignored test.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpStream, ToSocketAddrs as _, UdpSocket};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::process::{DumpableBehavior, Pid, Signal};
use socket2::{Domain, Protocol, Socket, Type};

use super::*;
use crate::config::tests::alone;
use crate::config::{AccessLog, LogFormat, LogTarget, Process};

/// What the child is to attempt.
const ATTEMPT: &str = "TLSPLICE_CONFINE_ATTEMPT";

/// Where it may do so.
const DIRECTORY: &str = "TLSPLICE_CONFINE_DIRECTORY";

const CONFIG: &str = "[[listener]]\naddress = \"127.0.0.1:0\"\nservice = \"http\"\n\
    [[route]]\nupstream = \"http://127.0.0.1:1\"\n";

/// The one attempt that is made with an upstream that has a name: resolvers read half of `/etc`.
const LOOKUP: &str = "a name looked up";

type Attempt = fn(&Path) -> std::io::Result<()>;

/// Calls that the kernel has to end the process for.
const KILLED: &[(&str, Attempt)] = &[
    ("a program", |_| Command::new("/bin/true").status().map(drop)),
    ("another log in place of one", |directory| fs::write(directory.join("logs/access.log"), "")),
    ("a file to be read and written", |directory| {
        OpenOptions::new().read(true).write(true).open(directory.join("logs/access.log")).map(drop)
    }),
    ("a signal to another process", |_| {
        // Which would ignore it.
        rustix::process::kill_process(Pid::INIT, Signal::URG).map_err(Into::into)
    }),
    ("another ring", |_| io_uring::IoUring::new(8).map(drop)),
    ("a raw socket", |_| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).map(drop)),
    ("a netlink socket to the packet filter", |_| {
        Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(12))).map(drop)
    }),
    ("another listener", |_| Socket::new(Domain::UNIX, Type::STREAM, None)?.listen(1)),
    ("another user", |_| {
        rustix::thread::set_thread_uid(rustix::process::getuid()).map_err(Into::into)
    }),
    ("capabilities", |_| {
        let none = CapabilitySet::empty();
        let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
        rustix::thread::set_capabilities(None, sets).map_err(Into::into)
    }),
    ("core dumps", |_| {
        let limit = Rlimit { current: Some(0), maximum: Some(0) };
        rustix::process::setrlimit(Resource::Core, limit).map_err(Into::into)
    }),
    ("being readable", |_| {
        rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable).map_err(Into::into)
    }),
    ("a map in the kernel", |_| {
        let made = aya::sys::is_map_supported(aya::maps::MapType::Array);
        made.map(drop).map_err(std::io::Error::other)
    }),
    ("a directory", |directory| fs::create_dir(directory.join("logs/sub"))),
    ("another name for a file", |directory| {
        fs::rename(directory.join("logs/access.log"), directory.join("logs/other.log"))
    }),
    ("other permissions", |directory| {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(directory.join("logs"), fs::Permissions::from_mode(0o777))
    }),
];

/// What Landlock, where the kernel has it, has to refuse.
const REFUSED: &[(&str, Attempt)] = &[
    ("a file of the system", |_| File::open("/etc/passwd").map(drop)),
    ("a list of files", |_| fs::read_dir("/").map(drop)),
    ("the memory of this process", |_| {
        OpenOptions::new().append(true).open("/proc/self/mem").map(drop)
    }),
    ("a log elsewhere", |directory| {
        OpenOptions::new().append(true).create(true).open(directory.join("new.log")).map(drop)
    }),
    ("a log to be read", |directory| File::open(directory.join("logs/access.log")).map(drop)),
    ("a log removed", |directory| fs::remove_file(directory.join("logs/access.log"))),
    ("a key changed", |directory| {
        OpenOptions::new().append(true).open(directory.join("keys/tlsplice.toml")).map(drop)
    }),
];

/// What serving needs.
const DONE: &[(&str, Attempt)] = &[
    ("the configuration read", |directory| {
        fs::read(directory.join("keys/tlsplice.toml")).map(drop)
    }),
    ("a log opened again", |directory| {
        let log = directory.join("logs/access.log");
        OpenOptions::new().append(true).create(true).open(log)?.write_all(b"line\n")
    }),
    ("a log made", |directory| {
        OpenOptions::new().append(true).create(true).open(directory.join("logs/new.log")).map(drop)
    }),
    ("a thread", |_| {
        let thread = std::thread::Builder::new().name("resolver".into()).spawn(|| {
            let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
            assert!(status.contains("Seccomp:\t2") && status.contains("NoNewPrivs:\t1"));
        })?;
        thread.join().map_err(|_| std::io::Error::other("it has more rights"))
    }),
    ("a connection", |_| match TcpStream::connect((Ipv4Addr::LOCALHOST, 1)) {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Ok(()),
        other => other.map(drop),
    }),
    (LOOKUP, |_| ("localhost", 80).to_socket_addrs().map(drop)),
    ("a question by UDP", |_| {
        UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.send_to(b"?", (Ipv4Addr::LOCALHOST, 9)).map(drop)
    }),
    ("a pipe that is filled by splicing", |_| {
        let (read, write, _) = crate::sys::pipe(crate::limits::PIPE_NARROW_BYTES)?;
        let _ = crate::sys::splice(
            std::os::fd::AsFd::as_fd(&read),
            std::os::fd::AsFd::as_fd(&write),
            1,
        );
        Ok(())
    }),
    ("a panic that is caught", |_| {
        let caught = std::panic::catch_unwind(|| panic!("on purpose"));
        caught.map_or(Ok(()), |()| Err(std::io::Error::other("no panic")))
    }),
    ("random numbers and much memory", |_| {
        let mut bytes = vec![0; 64 << 20];
        aws_lc_rs::rand::fill(&mut bytes[..64]).map_err(|_| std::io::Error::other("no numbers"))?;
        bytes.resize(128 << 20, 1);
        drop(bytes);
        Ok(())
    }),
];

/// A configuration whose file, log and key are in directories of their own.
fn confinement(directory: &Path, upstream: &str, filter: CallFilter) -> Confinement {
    let mut config = alone(&CONFIG.replace("127.0.0.1:1", upstream));
    let target = LogTarget::File(directory.join("logs/access.log"));
    config.access_log = Some(AccessLog { target, format: LogFormat::Json });
    config.process = Process { account: None, filter };
    Confinement::new(&config, &directory.join("keys/tlsplice.toml"), None, || true)
        .expect("it can be prepared")
}

#[test]
#[ignore = "run by the tests of this file, in a process of its own"]
fn attempt() {
    let (name, directory) = (std::env::var(ATTEMPT).unwrap(), std::env::var_os(DIRECTORY).unwrap());
    let directory = PathBuf::from(directory);
    let upstream = if name == LOOKUP { "localhost:1" } else { "127.0.0.1:1" };
    let filter = if name.starts_with("log:") { CallFilter::Log } else { CallFilter::Kill };
    let confinement = confinement(&directory, upstream, filter);
    hide_memory().unwrap();
    confinement.enter().unwrap();
    if name == "forgotten" {
        // The thread that started this one has not entered.
        println!("outcome: {:?}", confinement.seal().map_err(|error| error.to_string()));
        return;
    }
    calls::restrict(filter).unwrap();
    if name == "abort" {
        std::process::abort();
    }
    let name = name.trim_start_matches("log:");
    let all = KILLED.iter().chain(REFUSED).chain(DONE);
    let (_, attempt) = all.into_iter().find(|(found, _)| *found == name).expect("an attempt");
    match attempt(&directory) {
        Ok(()) => println!("outcome: done"),
        Err(error) => println!("outcome: {:?}", error.kind()),
    }
}

/// Runs one attempt in a process of its own.
fn run(name: &str) -> Output {
    let directory = std::env::temp_dir().join(format!(
        "tlsplice-confine-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    for part in ["keys", "logs"] {
        fs::create_dir_all(directory.join(part)).unwrap();
    }
    fs::write(directory.join("keys/tlsplice.toml"), CONFIG).unwrap();
    fs::write(directory.join("logs/access.log"), "").unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "confine::tests::attempt", "--ignored", "--nocapture"])
        .env(ATTEMPT, name)
        .env(DIRECTORY, &directory)
        .output()
        .unwrap();
    fs::remove_dir_all(&directory).unwrap();
    output
}

fn outcome(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find_map(|line| line.split_once("outcome: "));
    line.map_or_else(|| format!("{:?}: {text}", output.status), |(_, outcome)| outcome.to_owned())
}

#[test]
fn what_a_gateway_has_no_use_for_ends_it() {
    for (name, _) in KILLED {
        let output = run(name);
        assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{name}: {}", outcome(&output));
    }
}

#[test]
fn files_that_are_not_its_own_are_closed_to_it() {
    if Files::new(Vec::new()).unwrap().describe().contains("no Landlock") {
        eprintln!("skipped: this kernel has no Landlock");
        return;
    }
    for (name, _) in REFUSED {
        assert_eq!(outcome(&run(name)), "PermissionDenied", "{name}");
    }
}

#[test]
fn names_are_looked_up_only_where_an_upstream_has_one() {
    assert_eq!(outcome(&run(LOOKUP)), "done");
    let numbers = alone(CONFIG);
    let named = alone(&CONFIG.replace("127.0.0.1:1", "tomcat.internal:1"));
    let confinement =
        |config| Confinement::new(config, Path::new("/proc/self/status"), None, || true).unwrap();
    let closed = confinement(&numbers).closed_to(&named, Path::new("/proc/self/status"));
    let is_confined = !Files::new(Vec::new()).unwrap().describe().contains("no Landlock");
    assert_eq!(closed.is_some(), is_confined, "{closed:?}");
    assert_eq!(confinement(&named).closed_to(&numbers, Path::new("/proc/self/status")), None);
}

#[test]
fn what_serving_needs_can_still_be_done() {
    for (name, _) in DONE {
        assert_eq!(outcome(&run(name)), "done", "{name}");
    }
}

#[test]
fn the_list_may_only_be_told_of_while_it_is_tried_out() {
    assert_eq!(outcome(&run("log:core dumps")), "done");
}

#[test]
fn a_crash_leaves_no_memory_behind() {
    let output = run("abort");
    assert_eq!(output.status.signal(), Some(libc::SIGABRT));
    assert!(!output.status.core_dumped());
}

#[test]
fn a_thread_that_kept_its_rights_is_found_and_named() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: without root there is nothing to keep");
        return;
    }
    let outcome = outcome(&run("forgotten"));
    assert!(outcome.contains("still has what it should have given up: CapEff is"), "{outcome}");
}
