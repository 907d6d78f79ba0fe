//! `[process]`: as whom the gateway serves, and what becomes of system calls that it has no use for.

use crate::config::model::{CallFilter, Process};
use crate::config::report::{Fault, Report, quoted};
use crate::config::sections::TOP;
use crate::config::table::Table;
use crate::config::{AccountError, Surroundings};

const USER: &str = "a user of this machine";
const GROUP: &str = "a group of this machine";

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
    let account = user_item.zip(user).and_then(|(item, user)| {
        // A group that is no text has been told of already.
        let group_item = group_item.zip(group);
        let group = group_item.as_ref().map(|(_, group)| *group);
        let error = match around.files.account(user, group) {
            Ok(account) => return Some(account),
            Err(error) => error,
        };
        match (error, group_item) {
            (AccountError::NoGroup, Some((item, group))) => {
                let fault = Fault::new(format!("there is no group {}", quoted(group)), GROUP);
                item.error(report, fault);
            }
            (AccountError::NoUser, _) => {
                let fault = Fault::new(format!("there is no user {}", quoted(user)), USER);
                let command = format!("useradd --system --shell /usr/sbin/nologin {user}");
                item.error(report, fault.hint(command));
            }
            (error, _) => {
                item.error(
                    report,
                    Fault::new(format!("{} cannot be had: {error}", quoted(user)), USER),
                );
            }
        }
        None
    });
    table.finish(report, TOP);
    Process { account, filter }
}
