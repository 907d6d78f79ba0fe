//! Where files come from: the disk, or a test's own.

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{Group, User};
use zeroize::Zeroizing;

use super::model::{Account, Process};

/// Largest file that is read, in bytes. A chain with many names has tens of kilobytes.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// A file as read, with its permissions at that moment.
#[derive(Debug)]
pub struct FileContents {
    /// The bytes; wiped when dropped, since they may be a key.
    pub bytes: Zeroizing<Vec<u8>>,
    /// Permission bits, as in chmod(1).
    pub mode: u32,
}

/// Why there is no such account.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// There is no such user.
    #[error("there is no such user")]
    NoUser,
    /// There is no such group.
    #[error("there is no such group")]
    NoGroup,
    /// The gateway runs as another one.
    #[error("the gateway runs as another one by now")]
    Settled,
    /// Whatever the system says.
    #[error("{0}")]
    System(#[from] io::Error),
}

/// Reads the files that a configuration names.
pub trait FileSource {
    /// Reads a whole regular file of at most [`FILE_BYTES_MAX`] bytes.
    ///
    /// # Errors
    /// Whatever the system says, or `InvalidData` for what is no regular file or too large.
    fn read(&mut self, path: &Path) -> io::Result<FileContents>;

    /// Whether `path` is a directory that can be seen.
    fn is_directory(&mut self, path: &Path) -> bool;

    /// A user of this machine, with its own group or with `group`, and all groups it is in.
    ///
    /// # Errors
    /// As [`AccountError`] says.
    fn account(&mut self, user: &str, group: Option<&str>) -> Result<Account, AccountError>;
}

/// The file system.
#[derive(Debug, Default)]
pub struct Disk {
    /// Where systemd puts credentials, see systemd.exec(5).
    credentials: Option<PathBuf>,
    /// As whom the process serves already, for the rest of its life.
    settled: Option<Process>,
}

impl Disk {
    /// The file system, with systemd's credential directory taken from the environment.
    #[must_use]
    pub fn new() -> Self {
        let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        Self { credentials, settled: None }
    }

    /// The same for a process that serves as `process` says. No other account can be had, and none is looked up: that
    /// may run any code of the system's, with which a confined process does not get along.
    #[must_use]
    pub fn settled(process: &Process) -> Self {
        Self { settled: Some(process.clone()), ..Self::new() }
    }
}

impl FileSource for Disk {
    fn read(&mut self, path: &Path) -> io::Result<FileContents> {
        // Without O_NONBLOCK, opening a FIFO would wait for a writer for ever.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        let metadata = file.metadata()?;
        let refuse = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidData, why.to_owned()));
        if !metadata.is_file() {
            return refuse("it is not a regular file");
        }
        if metadata.len() > FILE_BYTES_MAX {
            return refuse("it is larger than 1 MiB");
        }
        // Room for everything from the start: a buffer that grows leaves copies of a key behind.
        let capacity = usize::try_from(FILE_BYTES_MAX + 1).unwrap_or(usize::MAX);
        let mut bytes = Zeroizing::new(Vec::with_capacity(capacity));
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return refuse("it is larger than 1 MiB");
        }
        let mut mode = metadata.permissions().mode() & 0o7777;
        if self.credentials.as_ref().is_some_and(|directory| path.starts_with(directory)) {
            // systemd grants the service's user access by an ACL, and an ACL's mask is shown in the
            // place of the group bits. The group itself has no access.
            mode &= !0o070;
        }
        Ok(FileContents { bytes, mode })
    }

    fn is_directory(&mut self, path: &Path) -> bool {
        path.is_dir()
    }

    fn account(&mut self, user: &str, group: Option<&str>) -> Result<Account, AccountError> {
        if let Some(settled) = &self.settled {
            let same =
                |account: &&Account| account.name == user && account.group_name.as_deref() == group;
            let account = settled.account.as_ref().filter(same);
            return account.cloned().ok_or(AccountError::Settled);
        }
        let system = |errno: nix::Error| AccountError::System(errno.into());
        let found = User::from_name(user).map_err(system)?.ok_or(AccountError::NoUser)?;
        let named =
            group.map(|name| Group::from_name(name).map_err(system)?.ok_or(AccountError::NoGroup));
        let gid = named.transpose()?.map_or(found.gid, |group| group.gid);
        let name = CString::new(user).map_err(io::Error::from)?;
        let groups = nix::unistd::getgrouplist(&name, gid).map_err(system)?;
        Ok(Account {
            name: found.name,
            group_name: group.map(str::to_owned),
            user: found.uid.as_raw(),
            group: gid.as_raw(),
            groups: groups.into_iter().map(nix::unistd::Gid::as_raw).collect(),
        })
    }
}

/// What problems say of files that may not be read.
pub const PERMISSION_DENIED: &str = "permission denied";

/// A plain sentence for an error of [`FileSource::read`].
pub(super) fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file".to_owned(),
        io::ErrorKind::PermissionDenied => PERMISSION_DENIED.to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_bits_count_except_among_credentials() {
        let directory = std::env::temp_dir().join(format!("tlsplice-cred-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let file = directory.join("key.pem");
        std::fs::write(&file, "x").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o444)).unwrap();
        let mode = |credentials| Disk { credentials, settled: None }.read(&file).unwrap().mode;
        assert_eq!(mode(None), 0o444);
        assert_eq!(mode(Some(PathBuf::from("/run/credentials/other"))), 0o444);
        assert_eq!(mode(Some(directory.clone())), 0o404);
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
