//! `[admin]`: where administrators ask.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::path;
use crate::config::Surroundings;
use crate::config::model::Admin;
use crate::config::report::{Fault, Report};
use crate::config::scalar;
use crate::config::sections::TOP;
use crate::config::table::{Item, Table};

/// Longest path of a unix socket, in bytes (`sun_path` of unix(7), without its zero).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Reads `[admin]`; without it, there is no endpoint.
pub(in crate::config) fn admin(
    root: &mut Table<'_>,
    report: &mut Report,
    around: &mut Surroundings<'_>,
) -> Option<Admin> {
    let item = root.get("admin")?;
    let mut table = item.note(report, item.table())?;
    let socket_item = table.get("socket");
    let address_item = table.get("address");
    if socket_item.is_none() && address_item.is_none() {
        let fault = Fault::that("names no place", "`socket`, `address`, or both");
        item.error(report, fault.hint("for example: socket = \"/run/tlsplice/admin.sock\""));
    }
    let socket = socket_item.and_then(|item| socket(&item, report, around));
    let address = address_item.and_then(|item| address(&item, report));
    table.finish(report, TOP);
    Some(Admin { socket, address })
}

fn socket(item: &Item<'_>, report: &mut Report, around: &mut Surroundings<'_>) -> Option<PathBuf> {
    let socket = path(item, report, around.directory)?;
    let length = socket.as_os_str().len();
    if length > SOCKET_PATH_BYTES_MAX {
        let fault = Fault::that(
            format!("is a path of {length} bytes"),
            format!("at most {SOCKET_PATH_BYTES_MAX} bytes, the bound of the kernel"),
        );
        item.error(report, fault);
        return None;
    }
    let directory = socket.parent().unwrap_or(around.directory);
    if !around.files.is_directory(directory) {
        let fault = Fault::new(
            format!("there is no directory {}", directory.display()),
            "a path in a directory that exists",
        );
        item.error(report, fault);
        return None;
    }
    Some(socket)
}

fn address(item: &Item<'_>, report: &mut Report) -> Option<SocketAddr> {
    let read = item.str().and_then(scalar::socket_address).and_then(|address| {
        if address.ip().to_canonical().is_loopback() {
            return Ok(address);
        }
        let fault = Fault::new(
            format!(
                "{address} can be reached from other machines, and nobody is asked who they are"
            ),
            "a loopback address, such as \"127.0.0.1:9180\"",
        );
        Err(fault.hint("for other machines, put a server before it that asks them"))
    });
    item.note(report, read)
}
