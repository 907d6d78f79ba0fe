//! The kernels, and a shell, as Debian packages them.

use std::path::{Path, PathBuf};

use tlsplice_fixtures::archive;
use tlsplice_fixtures::{Error, Result};

use super::kernel::Kernel;

/// Releases whose kernels are used, with the one under development.
const SUITES: &str = "bullseye bookworm trixie sid";

/// Packages of [`SUITES`], unpacked.
pub(crate) struct Archive {
    directory: PathBuf,
    archive: archive::Archive,
}

impl Archive {
    /// Opens the archive under `directory`; the lists are fetched when they are missing.
    pub(crate) fn open(directory: &Path) -> Result<Self> {
        let archive = archive::Archive::open(directory, SUITES, "busybox-static")?;
        Ok(Self { directory: directory.to_owned(), archive })
    }

    /// The unpacked packages of a kernel; None when they cannot be had and need not.
    pub(crate) fn kernel(&self, kernel: &Kernel) -> Result<Option<PathBuf>> {
        let mut chosen = Vec::new();
        for prefix in kernel.packages {
            let names =
                self.archive.names(&format!("^{}.*-cloud-amd64$", prefix.replace('.', "\\.")))?;
            match names.into_iter().max_by_key(|name| numbers(name)) {
                Some(name) => chosen.push(name),
                None if kernel.is_optional => return Ok(None),
                None => {
                    return Err(Error::failed(format!(
                        "no package {prefix}*-cloud-amd64 is known to apt"
                    )));
                }
            }
        }
        let root = self.directory.join("kernels").join(&chosen[0]);
        if !root.exists() {
            self.archive.unpack(&chosen, &root)?;
        }
        Ok(Some(root))
    }

    /// A shell and its tools, static.
    pub(crate) fn busybox(&self) -> Result<PathBuf> {
        let root = self.directory.join("busybox");
        if !root.exists() {
            self.archive.unpack(&["busybox-static".to_owned()], &root)?;
        }
        let places = ["usr/bin/busybox", "bin/busybox"].map(|place| root.join(place));
        let found = places.into_iter().find(|place| place.exists());
        found.ok_or_else(|| Error::failed("the package busybox-static has no busybox"))
    }
}

/// All numbers in a name, for comparing versions.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|byte: char| !byte.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(numbers("linux-image-6.1.0-50-x") > numbers("linux-image-6.1.0-9-x"));
    }
}
