//! `[process]`: as whom the gateway serves, and what becomes of system calls that it has no use for.

use crate::config::Surroundings;
use crate::config::model::{CallFilter, Process};
use crate::config::report::{Fault, Report};
use crate::config::sections::TOP;
use crate::config::table::Table;

const FILTERS: &[(&str, CallFilter)] = &[("kill", CallFilter::Kill), ("log", CallFilter::Log)];

/// Reads `[process]`; without it, the gateway serves as whoever it was started as.
pub(in crate::config) fn process(
    root: &mut Table<'_>,
    report: &mut Report,
    around: &mut Surroundings<'_>,
) -> Process {
    let item = root.get("process");
    let table = item.as_ref().and_then(|item| item.note(report, item.table()));
    let Some(mut table) = table else { return Process::default() };
    let user_item = table.get("user");
    let group_item = table.get("group");
    let user = table.read(report, "user", |item| item.str());
    let group = table.read(report, "group", |item| item.str());
    let filter = table.read(report, "filter", |item| item.choice(FILTERS)).unwrap_or_default();
    if let (None, Some(item)) = (&user_item, &group_item) {
        item.error(report, Fault::that("stands alone", "a group for a `user`"));
    }
    let account = user_item.zip(user).and_then(|(item, name)| {
        let found = around
            .files
            .account(name)
            .map_err(|error| Fault::new(format!("user {name:?} cannot be looked up: {error}"), ""));
        let found = item.note(report, found)?;
        if found.is_none() {
            let fault = Fault::new(format!("there is no user {name:?}"), "a user of this machine");
            item.error(
                report,
                fault.hint(format!("useradd --system --shell /usr/sbin/nologin {name}")),
            );
        }
        found
    });
    let group = group_item.zip(group).and_then(|(item, name)| {
        let found = around.files.group(name).map_err(|error| {
            Fault::new(format!("group {name:?} cannot be looked up: {error}"), "")
        });
        let found = item.note(report, found)?;
        if found.is_none() {
            let fault =
                Fault::new(format!("there is no group {name:?}"), "a group of this machine");
            item.error(report, fault);
        }
        found
    });
    table.finish(report, TOP);
    let account = account.map(|mut account| {
        if let Some(group) = group {
            account.group = group;
            account.groups.push(group);
            account.groups.sort_unstable();
            account.groups.dedup();
        }
        account
    });
    Process { account, filter }
}
