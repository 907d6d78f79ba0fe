//! `[tls]` and `[[tls.site]]`: certificates, and which one a client gets.

use std::collections::HashSet;
use std::sync::Arc;

use rustls::sign::CertifiedKey;

use super::path;
use crate::config::Surroundings;
use crate::config::certificate::{self, Identity};
use crate::config::model::{CertificateSummary, Host, Listener, Service};
use crate::config::report::{Fault, Report};
use crate::config::scalar;
use crate::config::sections::TOP;
use crate::config::server::{self, Sites};
use crate::config::table::{Item, Table};

#[derive(Clone, Copy, PartialEq, Eq)]
enum UnknownName {
    Default,
    Refuse,
}

const UNKNOWN_NAMES: &[(&str, UnknownName)] =
    &[("default", UnknownName::Default), ("refuse", UnknownName::Refuse)];

/// What `[tls]` comes to.
#[derive(Default)]
pub(in crate::config) struct Tls {
    /// None when no listener speaks TLS, or when the file is refused.
    pub(in crate::config) server: Option<Arc<rustls::ServerConfig>>,
    pub(in crate::config) certificates: Vec<CertificateSummary>,
}

/// Reads `[tls]` and the files it names.
pub(in crate::config) fn tls(
    root: &mut Table<'_>,
    report: &mut Report,
    around: &mut Surroundings<'_>,
    listeners: &[Listener],
) -> Tls {
    let wanted = listeners.iter().any(|listener| listener.service == Service::Https);
    let Some(item) = root.get("tls") else {
        if wanted {
            let hint = "a listener speaks https: add [tls] with `certificate` and `key`, \
                        or give it service = \"http\"";
            root.missing(report, "tls", hint);
        }
        return Tls::default();
    };
    let Some(mut table) = item.note(report, item.table()) else { return Tls::default() };
    let unknown_name = table
        .read(report, "unknown_name", |item| item.choice(UNKNOWN_NAMES))
        .unwrap_or(UnknownName::Default);

    let mut sites = Sites::default();
    let mut taken = HashSet::new();
    let mut certificates = Vec::new();
    let mut site_tables = table.tables(report, "site", None);
    for site in &mut site_tables {
        if let Some(summary) = self::site(site, report, around, &mut sites, &mut taken) {
            certificates.push(summary);
        }
    }
    let has_sites = !site_tables.is_empty();
    for site in site_tables {
        site.finish(report, TOP);
    }

    // Without a default certificate, every name must be one of the sites'.
    let optional = has_sites && unknown_name == UnknownName::Refuse;
    if let Some(identity) = identity(&mut table, report, around, optional) {
        // A site that lists one of its names has been asked for by name.
        let names: Vec<&Host> =
            identity.names.iter().filter(|name| !taken.contains(*name)).collect();
        for name in &names {
            sites.insert((*name).clone(), Arc::clone(&identity.key));
        }
        if unknown_name == UnknownName::Default {
            sites.set_default(Arc::clone(&identity.key));
        }
        let names = names.iter().map(|name| name.to_string()).collect();
        certificates.insert(0, identity.summary(names));
    }
    table.finish(report, TOP);
    if !wanted && !listeners.is_empty() {
        item.warning(report, Fault::new("no listener speaks https, so this is not used", ""));
        return Tls { server: None, certificates };
    }
    match server::config(sites) {
        Ok(server) => Tls { server: Some(Arc::new(server)), certificates },
        Err(error) => {
            item.error(report, Fault::new(format!("TLS cannot be set up: {error}"), ""));
            Tls { server: None, certificates }
        }
    }
}

/// Reads `certificate` and `key`, both before either is judged.
fn identity(
    table: &mut Table<'_>,
    report: &mut Report,
    around: &mut Surroundings<'_>,
    optional: bool,
) -> Option<Identity> {
    let (certificate, key) = (table.get("certificate"), table.get("key"));
    if optional && certificate.is_none() && key.is_none() {
        return None;
    }
    if certificate.is_none() {
        table.missing(report, "certificate", "the file with the chain, such as fullchain.pem");
    }
    if key.is_none() {
        table.missing(report, "key", "the file with the private key of the certificate");
    }
    let certificate_file =
        certificate.as_ref().and_then(|item| path(item, report, around.directory));
    let key_file = key.as_ref().and_then(|item| path(item, report, around.directory));
    let certificate = certificate.zip(certificate_file);
    let key = key.zip(key_file);
    certificate::load(report, around, certificate, key)
}

fn site(
    table: &mut Table<'_>,
    report: &mut Report,
    around: &mut Surroundings<'_>,
    sites: &mut Sites,
    taken: &mut HashSet<Host>,
) -> Option<CertificateSummary> {
    let identity = identity(table, report, around, false);
    let names = table.get("names");
    let listed: Option<Vec<(Host, Item<'_>)>> = names.as_ref().map(|item| {
        let list = item.list();
        if list.is_empty() {
            item.error(report, Fault::that("is an empty list", "at least one name"));
        }
        list.into_iter()
            .filter_map(|element| {
                let read = element.str().and_then(scalar::server_name);
                element.note(report, read).map(|name| (name, element))
            })
            .collect()
    });
    let place = match (&listed, &identity) {
        (Some(_), _) => None,
        (None, Some(identity)) if identity.names.is_empty() => {
            table.missing(report, "names", "the certificate names no host itself");
            return None;
        }
        (None, Some(_)) => table.get("certificate"),
        (None, None) => return None,
    };
    let names: Vec<(Host, Option<Item<'_>>)> = match listed {
        Some(listed) => listed.into_iter().map(|(name, item)| (name, Some(item))).collect(),
        None => identity
            .iter()
            .flat_map(|identity| &identity.names)
            .map(|name| (name.clone(), place.clone()))
            .collect(),
    };
    for (name, item) in &names {
        if !taken.insert(name.clone()) {
            if let Some(item) = item {
                let fault = Fault::new(format!("{name} is another site's name"), "");
                item.error(report, fault.hint("a name has one certificate"));
            }
            continue;
        }
        let Some(identity) = &identity else { continue };
        if let (false, Some(item)) = (identity.covers(name), item) {
            let fault = Fault::new(format!("the certificate does not cover {name}"), "");
            item.warning(report, fault.hint("browsers will refuse it for this name"));
        }
        sites.insert(name.clone(), Arc::<CertifiedKey>::clone(&identity.key));
    }
    Some(identity?.summary(names.iter().map(|(name, _)| name.to_string()).collect()))
}
