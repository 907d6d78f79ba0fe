//! Where files come from: the disk, or a test's own.

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{Group, User};
use zeroize::Zeroizing;

use super::model::Account;

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

/// Reads the files that a configuration names.
pub trait FileSource {
    /// Reads a whole regular file of at most [`FILE_BYTES_MAX`] bytes.
    ///
    /// # Errors
    /// Whatever the system says, or `InvalidData` for what is no regular file or too large.
    fn read(&mut self, path: &Path) -> io::Result<FileContents>;

    /// Whether `path` is a directory that can be seen.
    fn is_directory(&mut self, path: &Path) -> bool;

    /// A user of this machine, with its groups; None when there is none of this name.
    ///
    /// # Errors
    /// Whatever the system says.
    fn account(&mut self, user: &str) -> io::Result<Option<Account>>;

    /// The number of a group of this machine; None when there is none of this name.
    ///
    /// # Errors
    /// Whatever the system says.
    fn group(&mut self, name: &str) -> io::Result<Option<u32>>;
}

/// The file system.
#[derive(Debug, Default)]
pub struct Disk {
    /// Where systemd puts credentials, see systemd.exec(5).
    credentials: Option<PathBuf>,
}

impl Disk {
    /// The file system, with systemd's credential directory taken from the environment.
    #[must_use]
    pub fn new() -> Self {
        Self { credentials: std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from) }
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

    fn account(&mut self, user: &str) -> io::Result<Option<Account>> {
        let Some(found) = User::from_name(user)? else { return Ok(None) };
        let name = CString::new(user)?;
        let groups = nix::unistd::getgrouplist(&name, found.gid)?;
        Ok(Some(Account {
            name: found.name,
            user: found.uid.as_raw(),
            group: found.gid.as_raw(),
            groups: groups.into_iter().map(nix::unistd::Gid::as_raw).collect(),
        }))
    }

    fn group(&mut self, name: &str) -> io::Result<Option<u32>> {
        Ok(Group::from_name(name)?.map(|group| group.gid.as_raw()))
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
        let mode = |credentials| Disk { credentials }.read(&file).unwrap().mode;
        assert_eq!(mode(None), 0o444);
        assert_eq!(mode(Some(PathBuf::from("/run/credentials/other"))), 0o444);
        assert_eq!(mode(Some(directory.clone())), 0o404);
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
