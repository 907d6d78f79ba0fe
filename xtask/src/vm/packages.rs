//! Packages of other Debian releases, through the machine's own sources but in an apt root of our own: the running system
//! learns nothing of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tlsplice_fixtures::{Error, Result};

use super::kernel::Kernel;

/// Releases whose kernels are used, with the one under development.
const SUITES: &str = "bullseye bookworm trixie sid";

/// A private apt root with lists of [`SUITES`].
pub(crate) struct Archive {
    directory: PathBuf,
    root: PathBuf,
}

impl Archive {
    /// Opens the root under `directory`; the lists are fetched when they are missing.
    pub(crate) fn open(directory: &Path) -> Result<Self> {
        let root = directory.join("apt");
        let archive = Self { directory: directory.to_owned(), root };
        let sources = archive.root.join("etc/sources.list.d");
        for part in ["etc/sources.list.d", "state/lists/partial", "cache/archives/partial"] {
            let path = archive.root.join(part);
            fs::create_dir_all(&path)
                .map_err(Error::io(format!("cannot create {}", path.display())))?;
        }
        fs::write(sources.join("debian.sources"), source(&machine_sources()?)?)
            .map_err(Error::io("cannot write the sources of packages"))?;
        if archive.names("busybox-static")?.is_empty() {
            eprintln!("    fetching the lists of packages of {SUITES}");
            archive.apt("apt-get", &["-qq", "update"])?;
        }
        Ok(archive)
    }

    /// The unpacked packages of a kernel; None when they cannot be had and need not.
    pub(crate) fn kernel(&self, kernel: &Kernel) -> Result<Option<PathBuf>> {
        let mut chosen = Vec::new();
        for prefix in kernel.packages {
            let names = self.names(&format!("^{}.*-cloud-amd64$", prefix.replace('.', "\\.")))?;
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
            self.unpack(&chosen, &root)?;
        }
        Ok(Some(root))
    }

    /// A shell and its tools, static.
    pub(crate) fn busybox(&self) -> Result<PathBuf> {
        let root = self.directory.join("busybox");
        if !root.exists() {
            self.unpack(&["busybox-static".to_owned()], &root)?;
        }
        let places = ["usr/bin/busybox", "bin/busybox"].map(|place| root.join(place));
        let found = places.into_iter().find(|place| place.exists());
        found.ok_or_else(|| Error::failed("the package busybox-static has no busybox"))
    }

    /// Names of packages that match a regular expression.
    fn names(&self, pattern: &str) -> Result<Vec<String>> {
        let text = self.apt("apt-cache", &["search", "--names-only", pattern])?;
        Ok(text.lines().filter_map(|line| line.split(' ').next()).map(ToOwned::to_owned).collect())
    }

    fn unpack(&self, names: &[String], root: &Path) -> Result<()> {
        eprintln!("    fetching {}", names.join(" "));
        let failed = || Error::io(format!("cannot unpack {}", names.join(" ")));
        // In a place of its own until it is whole.
        let partial = root.with_extension("partial");
        drop(fs::remove_dir_all(&partial));
        let debs = partial.join("debs");
        fs::create_dir_all(&debs).map_err(failed())?;
        let mut arguments = vec!["-qq", "download"];
        arguments.extend(names.iter().map(String::as_str));
        self.apt_in(&debs, "apt-get", &arguments)?;
        for deb in fs::read_dir(&debs).map_err(failed())? {
            let deb = deb.map_err(failed())?.path();
            let status = Command::new("dpkg-deb").arg("--extract").arg(&deb).arg(&partial).status();
            if !status.map_err(failed())?.success() {
                return Err(Error::failed(format!("dpkg-deb cannot unpack {}", deb.display())));
            }
        }
        fs::remove_dir_all(&debs).map_err(failed())?;
        fs::rename(&partial, root).map_err(failed())
    }

    fn apt(&self, program: &str, arguments: &[&str]) -> Result<String> {
        self.apt_in(&self.root, program, arguments)
    }

    fn apt_in(&self, directory: &Path, program: &str, arguments: &[&str]) -> Result<String> {
        let option = |name: &str, value: &Path| format!("{name}={}", value.display());
        let output = Command::new(program)
            .current_dir(directory)
            .args(["-o", &option("Dir::Etc", &self.root.join("etc"))])
            // Proxies and the like of this machine still apply.
            .args(["-o", "Dir::Etc::Parts=/etc/apt/apt.conf.d"])
            .args(["-o", &option("Dir::State", &self.root.join("state"))])
            .args(["-o", "Dir::State::status=/dev/null"])
            .args(["-o", &option("Dir::Cache", &self.root.join("cache"))])
            .args(["-o", "APT::Sandbox::User=root"])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .map_err(Error::io(format!("cannot run {program}")))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(Error::failed(format!(
                "{program} {} failed:\n{text}",
                arguments.join(" ")
            )));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// All sources of this machine, in either format.
fn machine_sources() -> Result<String> {
    let mut text = fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
    let entries = fs::read_dir("/etc/apt/sources.list.d");
    for entry in entries.map_err(Error::io("cannot read the sources of packages"))?.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "sources" || extension == "list") {
            text.push_str("\n\n");
            text.push_str(&fs::read_to_string(&path).unwrap_or_default());
        }
    }
    Ok(text)
}

/// A source of [`SUITES`] at the place from which this machine has its main archive.
fn source(machine: &str) -> Result<String> {
    let words = machine.lines().filter(|line| !line.trim_start().starts_with('#'));
    let uri = words
        .flat_map(str::split_whitespace)
        .find(|word| word.contains("://") && word.trim_end_matches('/').ends_with("/debian"));
    let uri =
        uri.ok_or_else(|| Error::failed("apt has no source of the main archive of Debian"))?;
    Ok(format!(
        "Types: deb\nURIs: {uri}\nSuites: {SUITES}\nComponents: main\n\
         Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    ))
}

/// All numbers in a name, for comparing versions.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|byte: char| !byte.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_main_archive_is_found_in_either_format() {
        let deb822 =
            "Types: deb\n# http://old.test/debian\nURIs: http://a.test/debian\nSuites: bookworm";
        assert!(source(deb822).unwrap().contains("URIs: http://a.test/debian\n"));
        let line =
            "deb http://b.test/debian-security bookworm\ndeb http://b.test/debian/ bookworm main";
        assert!(source(line).unwrap().contains("URIs: http://b.test/debian/\n"));
        assert!(source("").is_err());
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(numbers("linux-image-6.1.0-50-x") > numbers("linux-image-6.1.0-9-x"));
    }
}
