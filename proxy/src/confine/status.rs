//! What the kernel says of the threads of this process, against what they were to give up.

use std::fmt::Write as _;
use std::{fs, io};

use rustix::thread::CapabilitySet;

use super::ConfineError;
use crate::config::Account;

/// Compares the status of every thread with the promise.
pub(super) fn verify(account: Option<&Account>, kept: CapabilitySet) -> Result<(), ConfineError> {
    let unreadable = |error: io::Error| ConfineError::Call("rights unseen (/proc)", error);
    for entry in fs::read_dir("/proc/self/task").map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let text = match fs::read_to_string(path.join("status")) {
            Ok(text) => text,
            // It has ended meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => continue,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(unreadable(error)),
        };
        let what = differences(&text, account, kept);
        if !what.is_empty() {
            let thread = field(&text, "Name").unwrap_or_default().to_owned();
            return Err(ConfineError::Kept { thread, what });
        }
    }
    Ok(())
}

fn field<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim())
}

/// The lines of a status that are not as promised.
fn differences(text: &str, account: Option<&Account>, kept: CapabilitySet) -> String {
    let mut found = String::new();
    let mut check = |name: &str, is_good: &dyn Fn(&str) -> bool| {
        let value = field(text, name).unwrap_or("nothing");
        if !is_good(value) {
            // Writing to a string cannot fail.
            let _ = write!(found, "{}{name} is {value}", if found.is_empty() { "" } else { ", " });
        }
    };
    let within = |bound: CapabilitySet| {
        move |value: &str| {
            u64::from_str_radix(value, 16).is_ok_and(|bits| bits & !bound.bits() == 0)
        }
    };
    check("CapEff", &within(kept));
    check("CapPrm", &within(kept));
    check("CapInh", &within(CapabilitySet::empty()));
    check("CapAmb", &within(CapabilitySet::empty()));
    check("NoNewPrivs", &|value| value == "1");
    check("Seccomp", &|value| value == "2");
    if let Some(account) = account {
        let all = |number: u32| {
            move |value: &str| value.split_whitespace().all(|one| one.parse() == Ok(number))
        };
        check("Uid", &all(account.user));
        check("Gid", &all(account.group));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "Name:\tworker-0\nUid:\t7\t7\t7\t7\nGid:\t8\t8\t8\t8\nCapInh:\t0000000000000000\n\
        CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\n\
        CapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n";

    fn account() -> Account {
        Account { name: "seven".into(), group_name: None, user: 7, group: 8, groups: vec![8] }
    }

    #[test]
    fn a_thread_that_kept_its_promise_has_no_differences() {
        assert_eq!(differences(GOOD, Some(&account()), CapabilitySet::empty()), "");
        let bpf = GOOD.replace("CapEff:\t0000000000000000", "CapEff:\t0000008000000000");
        assert_eq!(differences(&bpf, None, CapabilitySet::BPF), "");
    }

    #[test]
    fn whatever_is_kept_is_named() {
        for (from, to, name) in [
            ("Uid:\t7\t7\t7\t7", "Uid:\t7\t0\t7\t7", "Uid"),
            ("Gid:\t8\t8\t8\t8", "Gid:\t8\t8\t0\t8", "Gid"),
            ("CapEff:\t0000000000000000", "CapEff:\t0000008000000000", "CapEff"),
            ("CapPrm:\t0000000000000000", "CapPrm:\t0000000000000001", "CapPrm"),
            ("CapInh:\t0000000000000000", "CapInh:\t0000000000000400", "CapInh"),
            ("CapAmb:\t0000000000000000", "", "CapAmb"),
            ("NoNewPrivs:\t1", "NoNewPrivs:\t0", "NoNewPrivs"),
            ("Seccomp:\t2", "Seccomp:\t0", "Seccomp"),
        ] {
            let text = GOOD.replace(from, to);
            let found = differences(&text, Some(&account()), CapabilitySet::empty());
            assert!(found.starts_with(&format!("{name} is ")), "{name}: {found:?}");
        }
    }
}
