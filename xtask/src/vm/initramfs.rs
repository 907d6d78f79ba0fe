//! The file system that a guest starts with: a cpio archive in the format `newc`
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use tlsplice_fixtures::{Error, Result};

use super::kernel::Kernel;
use super::{Program, Unpacked, kernel, plan};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// Writes the archive for a kernel and returns its place.
pub(super) fn write(
    directory: &Path,
    kernel: &Kernel,
    unpacked: &Unpacked,
    programs: &[Program],
    plan: plan::Plan<'_>,
) -> Result<PathBuf> {
    let read =
        |path: &Path| fs::read(path).map_err(Error::io(format!("cannot read {}", path.display())));
    let mut archive = Archive::default();
    for path in ["bin", "dev", "etc", "modules", "proc", "root", "run", "sys", "tmp", "t/tests"] {
        archive.add_directory(Path::new(path));
    }
    archive.add_device("dev/console", 5, 1);
    archive.add("bin/busybox", PROGRAM, &read(&unpacked.busybox)?);
    let users = "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n";
    archive.add("etc/passwd", FILE, users.as_bytes());
    archive.add("etc/group", FILE, b"root:x:0:\nnogroup:x:65534:\n");
    archive.add("etc/hosts", FILE, b"127.0.0.1 localhost\n");
    let modules = kernel::in_order(&unpacked.modules)?;
    for (name, bytes) in &modules {
        archive.add(&format!("modules/{name}.ko"), FILE, bytes);
    }
    for program in programs {
        let place = program.place.trim_start_matches('/');
        archive.add_directory(Path::new(place).parent().unwrap_or(Path::new("")));
        archive.add(place, PROGRAM, &read(&program.file)?);
    }
    let names: Vec<&str> = modules.iter().map(|(name, _)| name.as_str()).collect();
    let script = plan::script(&names, &plan.runs(kernel), plan);
    archive.add("init", PROGRAM, script.as_bytes());
    archive.add(plan::ONE_TEST_PLACE, PROGRAM, plan::one_test().as_bytes());
    let path = directory.join(format!("initramfs-{}.cpio", kernel.name));
    fs::write(&path, archive.finish())
        .map_err(Error::io(format!("cannot write {}", path.display())))?;
    Ok(path)
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    directories: BTreeSet<PathBuf>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entry(name, mode, content, (0, 0));
    }

    /// With those above it, each once.
    fn add_directory(&mut self, path: &Path) {
        let Some(above) = path.parent() else { return };
        self.add_directory(above);
        if self.directories.insert(path.to_owned()) {
            self.add(&path.display().to_string(), DIRECTORY, &[]);
        }
    }

    fn add_device(&mut self, name: &str, major: u32, minor: u32) {
        self.entry(name, CHARACTER_DEVICE, &[], (major, minor));
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8], (major, minor): (u32, u32)) {
        self.entries += 1;
        // Inode, mode, user, group, links, time, size, device of the file system, device, length of the name, checksum.
        let fields = [
            self.entries as usize,
            mode as usize,
            0,
            0,
            1,
            0,
            content.len(),
            0,
            0,
            major as usize,
            minor as usize,
            name.len() + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[], (0, 0));
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_come_once_and_before_what_is_in_them() {
        let mut archive = Archive::default();
        archive.add_directory(Path::new("a/b"));
        archive.add_directory(Path::new("a/c"));
        assert_eq!(archive.entries, 3);
        assert!(archive.directories.contains(Path::new("a")));
    }

    #[test]
    fn entries_are_aligned_and_end_with_a_trailer() {
        let mut archive = Archive::default();
        archive.add("a", FILE, b"12345");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(&bytes[..6], b"070701");
        // Header of 110 bytes, name with NUL, padding, content.
        assert_eq!(&bytes[112..117], b"12345");
        assert!(String::from_utf8_lossy(&bytes).contains("TRAILER!!!"));
    }
}
