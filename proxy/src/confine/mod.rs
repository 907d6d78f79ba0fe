//! What the gateway gives up before it serves.
//!
//! Everything that needs privilege comes first: keys are read, addresses bound, programs loaded into the kernel, rings
//! made. Then each thread gives up identity, capabilities and files ([`Confinement::enter`]), the process gives up all
//! system calls but those it serves with ([`Confinement::seal`]), and what the kernel then says of every thread is
//! compared with what was promised. A step that fails ends the start.

mod calls;
mod files;
mod places;
mod status;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid};
use thiserror::Error;

use crate::config::{Account, CallFilter, Config};
use files::Files;
pub use files::{Place, Use};

/// More capabilities than any kernel has.
const CAPABILITIES_MAX: u32 = 64;

/// Why the gateway could not give up what it has to.
#[derive(Debug, Error)]
pub enum ConfineError {
    /// The process is not allowed to become the configured user.
    #[error(
        "process.user: cannot become {0}: {1}; start the gateway as root, or as that user without this key"
    )]
    Identity(Account, #[source] io::Error),
    /// A call that takes a right away failed.
    #[error("cannot give up {0}: {1}")]
    Call(&'static str, #[source] io::Error),
    /// A directory that has to stay usable.
    #[error("cannot confine the gateway to {0}: {1}")]
    Place(PathBuf, String),
    /// The kernel refused a list of files or of system calls.
    #[error("cannot confine the gateway's {0}: {1}")]
    Refused(&'static str, String),
    /// The kernel says that a thread still has what was given up.
    #[error("thread {thread} still has what it should have given up: {what}")]
    Kept {
        /// Its name.
        thread: String,
        /// The lines of its status that are not as promised.
        what: String,
    },
}

/// What is given up, and by whom. Made with all privileges, entered by each thread.
#[derive(Debug)]
pub struct Confinement {
    account: Option<Account>,
    filter: CallFilter,
    /// The only capabilities that stay.
    kept: CapabilitySet,
    files: Files,
}

/// Takes away what could carry keys out of a process that crashes, before one is read: core dumps, and the memory as
/// other processes of the same user see it.
///
/// # Errors
/// [`ConfineError::Call`].
pub fn hide_memory() -> Result<(), ConfineError> {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(Resource::Core, none).map_err(failed("core dumps"))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(failed("being read by others"))
}

/// Lets this process lock as much memory as it likes, which rings are made of before Linux 5.12 and BPF maps before
/// 5.11. Where that is not allowed, the limit stays what it is.
pub fn raise_locked_memory() {
    let _ = rustix::process::setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None });
}

/// Takes the capabilities out of effect, without giving them up, for as long as `attempt` runs in this thread.
fn without_capabilities<T>(attempt: impl FnOnce() -> T) -> Result<T, ConfineError> {
    let failed = failed("capabilities");
    let before = rustix::thread::capabilities(None).map_err(&failed)?;
    let none = CapabilitySets { effective: CapabilitySet::empty(), ..before };
    rustix::thread::set_capabilities(None, none).map_err(&failed)?;
    let outcome = attempt();
    rustix::thread::set_capabilities(None, before).map_err(&failed)?;
    Ok(outcome)
}

impl Confinement {
    /// Prepares everything while the process can still see all files: those that `config`, which was read from `file`,
    /// names, and `others`. `is_measuring` asks the kernel's maps: kernels before 5.19 that forbid BPF to others answer
    /// with `CAP_BPF` only, which is kept there.
    ///
    /// # Errors
    /// When something that has to stay usable cannot be opened.
    pub fn new(
        config: &Config,
        file: &Path,
        others: impl IntoIterator<Item = Place>,
        is_measuring: impl FnOnce() -> bool,
    ) -> Result<Self, ConfineError> {
        let kept = match without_capabilities(is_measuring)? {
            true => CapabilitySet::empty(),
            false => CapabilitySet::BPF,
        };
        Ok(Self {
            account: config.process.account.clone(),
            filter: config.process.filter,
            kept,
            files: Files::new(places::of(config, file).into_iter().chain(others).collect())?,
        })
    }

    /// Gives up what belongs to the calling thread: the identity it was started with, capabilities, files.
    ///
    /// # Errors
    /// [`ConfineError`]; what has been given up by then stays given up.
    pub fn enter(&self) -> Result<(), ConfineError> {
        empty_bounding_set()?;
        if let Some(account) = &self.account {
            become_account(account)
                .map_err(|error| ConfineError::Identity(account.clone(), error.into()))?;
        }
        let failed = failed("capabilities");
        // ENOSYS and EINVAL: a kernel before 4.3, which has no such set.
        rustix::thread::clear_ambient_capability_set().map_err(&failed)?;
        let permitted = rustix::thread::capabilities(None).map_err(&failed)?.permitted;
        let kept = self.kept & permitted;
        let sets = CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        };
        rustix::thread::set_capabilities(None, sets).map_err(&failed)?;
        rustix::thread::set_no_new_privs(true)
            .map_err(self::failed("gaining privileges by programs"))?;
        self.files.enter()
    }

    /// Gives up all system calls but those that serving needs, in all threads, which have to have [entered] before, and
    /// has the kernel confirm all that was given up. No ring can be made from here on.
    ///
    /// [entered]: Confinement::enter
    ///
    /// # Errors
    /// [`ConfineError`].
    pub fn seal(&self) -> Result<(), ConfineError> {
        // A change of identity may have reset it.
        hide_memory()?;
        calls::restrict(self.filter)?;
        status::verify(self.account.as_ref(), self.kept)
    }

    /// For the start-up report.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = match &self.account {
            Some(account) => format!("user {account}"),
            None if rustix::process::geteuid().is_root() => {
                "root without its capabilities (process.user names another user)".to_owned()
            }
            None => format!("user {}", rustix::process::geteuid().as_raw()),
        };
        let kept = if self.kept.is_empty() {
            "no capability"
        } else {
            "CAP_BPF alone (before Linux 5.19)"
        };
        let calls = match self.filter {
            CallFilter::Kill => format!("{} system calls", calls::count()),
            CallFilter::Log => {
                "any system call (process.filter), others than the usual logged".to_owned()
            }
        };
        // Writing to a string cannot fail.
        let _ = write!(text, "; {kept}, {calls}, {}", self.files.describe());
        text
    }

    /// The first directory that another configuration needs and that is closed by now, if there is one.
    #[must_use]
    pub fn closed_to(&self, config: &Config, file: &Path) -> Option<Place> {
        self.files.first_closed(places::of(config, file))
    }
}

fn failed<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> ConfineError {
    move |error| ConfineError::Call(what, error.into())
}

/// Nothing that this process might start could gain a capability. Without `CAP_SETPCAP` the set stays as whoever
/// started this process left it; no program can be started anyway.
fn empty_bounding_set() -> Result<(), ConfineError> {
    for number in 0..CAPABILITIES_MAX {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // The kernel knows no further one.
            Err(rustix::io::Errno::INVAL) => return Ok(()),
            Err(rustix::io::Errno::PERM) => return Ok(()),
            Err(error) => return Err(failed("the bounding set")(error)),
        }
    }
    Ok(())
}

/// Becomes another user, if this thread is not that user already; capabilities stay permitted, for the caller to choose.
fn become_account(account: &Account) -> rustix::io::Result<()> {
    let (user, group) = (Uid::from_raw(account.user), Gid::from_raw(account.group));
    let groups: Vec<Gid> = account.groups.iter().copied().map(Gid::from_raw).collect();
    let is_there = rustix::process::getuid() == user
        && rustix::process::geteuid() == user
        && rustix::process::getgid() == group
        && rustix::process::getegid() == group;
    if is_there && !user.is_root() {
        return Ok(());
    }
    rustix::thread::set_keep_capabilities(true)?;
    rustix::thread::set_thread_groups(&groups)?;
    rustix::thread::set_thread_res_gid(group, group, group)?;
    rustix::thread::set_thread_res_uid(user, user, user)?;
    rustix::thread::set_keep_capabilities(false)
}
