//! The network that is measured in: a namespace of its own, in which nobody else sends, and every connection has the congestion
//! control that was asked for, whatever the machine's own is.
//!
//! One that paces (BBR) has a timer fire for each segment. Where a virtual machine must be left for each timer, that costs more
//! than all the rest of a bulk transfer, and is on the account of whoever runs when it fires.

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};

use rustix::net::sockopt::tcp_congestion;
use tlsplice_fixtures::{Error, Result, packages};

use crate::options::Options;

/// What Linux, and so Debian, has where nobody has chosen another one.
const USUAL: &str = "cubic";

/// For the network as it is.
const OF_THE_MACHINE: &str = "machine";

/// Readies a new network for the program behind `$0`, the congestion control: as an attribute of routes (ip-route(8)), because
/// the sysctl may be read-only in a container.
const READY: &str = "\
    ip link set lo up && \
    for to in 127.0.0.0/8 127.0.0.1; do \
        ip route replace local $to dev lo table local proto kernel scope host src 127.0.0.1 congctl \"$0\" || exit; \
    done && \
    exec \"$@\"";

/// Starts this program again in a network of its own, and returns only where it is in one already or none can be had, which
/// is told.
///
/// # Errors
/// When the user has named a congestion control that cannot be had.
pub fn enter(options: &Options) -> Result<()> {
    let wanted = options.congestion_control.as_deref();
    if options.in_own_network || wanted == Some(OF_THE_MACHINE) {
        return Ok(());
    }
    let name = wanted.unwrap_or(USUAL);
    match ready(name) {
        Ok(()) => {}
        Err(error) if wanted.is_some() => return Err(error),
        Err(error) => {
            let present = congestion_control().unwrap_or_default();
            eprintln!(
                "{error}. All connections are made in the network of this machine, with its congestion control, {present}: \
                 figures can be compared with each other, and not with those of a machine that has another one."
            );
            return Ok(());
        }
    }
    let program = std::env::current_exe().map_err(Error::io("this program cannot be found"))?;
    let mut command = inside(name);
    command.arg(program).args(std::env::args_os().skip(1)).arg("--in-own-network");
    Err(Error::io("cannot start again in a network of its own")(command.exec()))
}

/// Whether such a network can be had.
fn ready(name: &str) -> Result<()> {
    packages::ensure(&["iproute2"])?;
    let output = inside(name).arg("true").output();
    let output: Output = output.map_err(Error::io("cannot run unshare"))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(Error::failed(format!(
        "there is no network of its own with the congestion control {name:?} (root can have one, with any of \
         /proc/sys/net/ipv4/tcp_available_congestion_control): {}",
        words.trim()
    )))
}

/// What runs a program, yet to be named, in such a network.
fn inside(name: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-c", READY, name]);
    command
}

/// The congestion control of a connection over loopback.
///
/// # Errors
/// When none can be made.
pub fn congestion_control() -> io::Result<String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(tcp_congestion(TcpStream::connect(listener.local_addr()?)?)?)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn what_cannot_be_had_is_an_error_where_it_was_asked_for() {
        let words = ["bench", "--tlsplice", "/t", "--congestion-control", "none-such"];
        let error = enter(&Options::parse_from(words)).expect_err("it does not exist").to_string();
        assert!(error.contains("\"none-such\""), "{error}");
        let words = ["bench", "--tlsplice", "/t", "--congestion-control", OF_THE_MACHINE];
        enter(&Options::parse_from(words)).expect("nothing is done");
    }
}
