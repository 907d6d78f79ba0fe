//! Programs of this machine that the guests run too, each with the libraries it needs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use tlsplice_fixtures::{Error, Result, packages};

use super::Program;

/// Programs, and their names as packages.
const NAMES: [&str; 3] = ["curl", "openssl", "strace"];

/// Finds them, installing what is missing; they keep their places.
pub(super) fn programs() -> Result<Vec<Program>> {
    packages::ensure(&NAMES)?;
    let mut files = BTreeSet::new();
    for name in NAMES {
        let program = Path::new("/usr/bin").join(name);
        files.extend(libraries(&program)?);
        files.insert(program);
    }
    let in_place = |file: PathBuf| Program { place: file.display().to_string(), file };
    Ok(files.into_iter().map(in_place).collect())
}

/// What the loader of programs says: `name => path (address)`, or the path of the loader itself.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let failed = || format!("cannot list the libraries of {}", program.display());
    let output = Command::new("ldd").arg(program).output().map_err(Error::io(failed()))?;
    if !output.status.success() {
        return Err(Error::failed(failed()));
    }
    Ok(paths(&String::from_utf8_lossy(&output.stdout)))
}

fn paths(listing: &str) -> Vec<PathBuf> {
    let path = |line: &str| {
        let place = line.split_once(" => ").map_or(line, |(_, place)| place).trim();
        place.starts_with('/').then(|| place.split(" (").next().unwrap_or(place).into())
    };
    listing.lines().filter_map(path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_found() {
        let listing = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x2)\n\t/lib64/ld.so (0x3)\n";
        assert_eq!(paths(listing), ["/lib/x/libc.so.6", "/lib64/ld.so"].map(PathBuf::from));
    }
}
