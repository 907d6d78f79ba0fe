//! The control group of this process: where the programs are attached, so that they see its sockets and no others.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// Begins the names of groups that gateways make; the number of the process follows.
const PREFIX: &str = "tlsplice-";

/// Why there is no group.
#[derive(Debug, thiserror::Error)]
pub(super) enum GroupError {
    /// The kernel, or its administrator, offers none.
    #[error("no cgroup2 file system is mounted")]
    NotMounted,
    /// A file of the group tree.
    #[error("{0}: {1}")]
    Io(PathBuf, #[source] io::Error),
}

/// A group to attach to.
#[derive(Debug)]
pub(super) struct Group {
    path: PathBuf,
    /// The group that this process came from, when the one in use was made for it.
    parent: Option<PathBuf>,
}

impl Group {
    /// Puts this process into a group of its own: the one it is in when nobody else is in there, as in a service's own,
    /// else a new one below it. Where none can be made, the one it is in serves, and others in it are observed for
    /// nothing. Sockets belong to the group in which they are made, so this comes before the first one.
    pub(super) fn join() -> Result<Self, GroupError> {
        let read = |path: &str| {
            fs::read_to_string(path).map_err(|error| GroupError::Io(path.into(), error))
        };
        let current = locate(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?)
            .ok_or(GroupError::NotMounted)?;
        if !current.is_dir() {
            return Err(GroupError::Io(current, io::ErrorKind::NotFound.into()));
        }
        let members = fs::read_to_string(current.join("cgroup.procs")).unwrap_or_default();
        let own = std::process::id().to_string();
        // The root has no file that tells of events; everything else that is alone in a group may keep it.
        let is_alone = members.lines().eq([own.as_str()]) && current.join("cgroup.events").exists();
        if is_alone {
            return Ok(Self { path: current, parent: None });
        }
        sweep(&current);
        let path = current.join(format!("{PREFIX}{own}"));
        let made = match fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made,
        };
        match made.and_then(|()| fs::write(path.join("cgroup.procs"), "0")) {
            Ok(()) => Ok(Self { path, parent: Some(current) }),
            Err(error) => {
                drop(fs::remove_dir(&path));
                tracing::debug!("{} cannot be had: {error}", path.display());
                Ok(Self { path: current, parent: None })
            }
        }
    }

    /// The group's directory, for programs to be attached to.
    pub(super) fn open(&self) -> Result<File, GroupError> {
        File::open(&self.path).map_err(|error| GroupError::Io(self.path.clone(), error))
    }

    /// The directory of the group that this process came from, when this one was made for it.
    pub(super) fn parent(&self) -> Option<&Path> {
        self.parent.as_deref()
    }

    /// Its directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(parent) = &self.parent
            && leave_for(parent).is_ok()
        {
            drop(fs::remove_dir(&self.path));
        }
    }
}

/// Moves this process. By then it may only append to files, which to the kernel is the same here.
fn leave_for(group: &Path) -> io::Result<()> {
    OpenOptions::new().append(true).open(group.join("cgroup.procs"))?.write_all(b"0")
}

/// Removes groups of gateways that were killed. One that is in use cannot be removed.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        let is_dead = |process: &str| !Path::new("/proc").join(process).exists();
        if process.is_some_and(|process| process.parse::<u32>().is_ok() && is_dead(process)) {
            drop(fs::remove_dir(entry.path()));
        }
    }
}

/// The directory of this process's group, from what the kernel tells of mounts and of the process.
fn locate(mounts: &str, groups: &str) -> Option<PathBuf> {
    let group = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    mounts.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        if source.split(' ').next()? != "cgroup2" {
            return None;
        }
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        // A container sees its own part of the tree only, and is named from there or from the top.
        let below = Path::new(group).strip_prefix(root).unwrap_or(Path::new(group));
        Some(Path::new(point).join(below.strip_prefix("/").unwrap_or(below)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "22 1 0:21 / /proc rw - proc proc rw\n\
        30 25 0:26 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";

    #[test]
    fn a_group_is_found_where_it_is_mounted() {
        let at = |groups| locate(MOUNTS, groups).unwrap();
        assert_eq!(at("1:cpu:/x\n0::/\n"), Path::new("/sys/fs/cgroup/unified"));
        assert_eq!(
            at("0::/system.slice/tlsplice.service\n"),
            Path::new("/sys/fs/cgroup/unified/system.slice/tlsplice.service")
        );
    }

    #[test]
    fn a_part_of_the_tree_is_mounted_in_a_container() {
        let mounts = "30 25 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        let at = |groups| locate(mounts, groups).unwrap();
        assert_eq!(at("0::/docker/abc/own\n"), Path::new("/sys/fs/cgroup/own"));
        assert_eq!(at("0::/\n"), Path::new("/sys/fs/cgroup"));
    }

    #[test]
    fn without_the_file_system_there_is_none() {
        assert_eq!(locate("22 1 0:21 / /proc rw - proc proc rw\n", "0::/\n"), None);
        assert_eq!(locate(MOUNTS, "1:cpu:/x\n"), None);
    }
}
