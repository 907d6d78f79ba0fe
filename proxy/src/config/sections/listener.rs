//! `[[listener]]`: where to bind and what is spoken there.

use crate::config::model::{Listener, Offload, Service, Splice};
use crate::config::report::{Fault, Report};
use crate::config::scalar;
use crate::config::sections::TOP;
use crate::config::table::Table;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Https,
    Http,
    Redirect,
}

const KINDS: &[(&str, Kind)] =
    &[("https", Kind::Https), ("http", Kind::Http), ("redirect", Kind::Redirect)];

/// Reads all listeners; addresses are distinct.
pub(in crate::config) fn listeners(root: &mut Table<'_>, report: &mut Report) -> Vec<Listener> {
    let hint = "begin with [[listener]] and address = \"0.0.0.0:443\"";
    let tables = root.tables(report, "listener", Some(hint));
    let mut listeners: Vec<(Listener, usize)> = Vec::new();
    for mut table in tables {
        let service = service(&mut table, report);
        let offload = offload(&mut table, report, service);
        let splice = splice(&mut table, report, service);
        let addresses = table.need(report, "address", "for example: address = \"0.0.0.0:443\"");
        let addresses = addresses.map(|item| (item.list(), item));
        if let Some((list, item)) = addresses {
            if list.is_empty() {
                item.error(report, Fault::that("is an empty list", "at least one address"));
            }
            for element in list {
                let read = element.str().and_then(scalar::socket_address).and_then(|address| {
                    // Port 0 lets the kernel choose, each time another one.
                    match listeners
                        .iter()
                        .find(|(known, _)| known.address == address && address.port() != 0)
                    {
                        Some((_, line)) => Err(Fault::new(
                            format!("{address} is listed twice"),
                            format!("first on line {line}"),
                        )),
                        None => Ok(address),
                    }
                });
                if let Some(address) = element.note(report, read) {
                    let line = report.line_of(element.span.start);
                    listeners.push((Listener { address, service, offload, splice }, line));
                }
            }
        }
        table.finish(report, TOP);
    }
    listeners.into_iter().map(|(listener, _)| listener).collect()
}

const OFFLOADS: &[(&str, Offload)] =
    &[("auto", Offload::Auto), ("always", Offload::Always), ("never", Offload::Never)];

fn offload(table: &mut Table<'_>, report: &mut Report, service: Service) -> Offload {
    let default = if service == Service::Https { Offload::Auto } else { Offload::Never };
    let Some(item) = table.get("offload") else { return default };
    if service != Service::Https {
        let fault = Fault::that("has no meaning for this service", "");
        item.error(report, fault.hint("there is no TLS to take over"));
    }
    item.note(report, item.choice(OFFLOADS)).unwrap_or(default)
}

const SPLICES: &[(&str, Splice)] = &[("auto", Splice::Auto), ("never", Splice::Never)];

fn splice(table: &mut Table<'_>, report: &mut Report, service: Service) -> Splice {
    let Some(item) = table.get("splice") else { return Splice::Auto };
    if let Service::RedirectToHttps { .. } = service {
        let fault = Fault::that("has no meaning for this service", "");
        item.error(report, fault.hint("there is no payload to move"));
    }
    item.note(report, item.choice(SPLICES)).unwrap_or(Splice::Auto)
}

fn service(table: &mut Table<'_>, report: &mut Report) -> Service {
    let kind = match table.get("service") {
        None => Kind::Https,
        // A service that is wrong must not ask for certificates as well.
        Some(item) => item.note(report, item.choice(KINDS)).unwrap_or(Kind::Http),
    };
    let port_item = table.get("redirect_port");
    let port = port_item.as_ref().and_then(|item| {
        if kind != Kind::Redirect {
            let fault = Fault::that("has no meaning for this service", "");
            item.error(report, fault.hint("it belongs to service = \"redirect\""));
        }
        item.note(report, item.number(&(1..=u64::from(u16::MAX))))
    });
    match kind {
        Kind::Https => Service::Https,
        Kind::Http => Service::Http,
        Kind::Redirect => Service::RedirectToHttps {
            port: port.and_then(|port| u16::try_from(port).ok()).unwrap_or(443),
        },
    }
}
