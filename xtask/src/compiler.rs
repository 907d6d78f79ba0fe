//! The compiler that cargo uses here, and LLVM's programs that go with it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tlsplice_fixtures::{Error, Result};

use crate::tools;

/// What the compiler answers.
fn ask(arguments: &[&str]) -> Result<String> {
    let compiler = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(&compiler).args(arguments).current_dir(tools::workspace()).output();
    let output = output.map_err(Error::io("cannot ask the compiler for its version"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The compiler's version, as in "1.95.0".
pub(crate) fn version() -> Result<String> {
    let known = value(&ask(&["-vV"])?, "release").map(ToOwned::to_owned);
    known.ok_or_else(|| Error::failed("rustc -vV does not name its release"))
}

/// Installs Debian's package `name` of the compiler's LLVM when it is missing, and tells where its programs are.
pub(crate) fn ensure_llvm(name: &str) -> Result<PathBuf> {
    let major = llvm_major(&ask(&["-vV"])?)
        .ok_or_else(|| Error::failed("rustc -vV does not name its LLVM"))?;
    tools::ensure_packages(&[&format!("{name}-{major}")])?;
    Ok(PathBuf::from(format!("/usr/lib/llvm-{major}/bin")))
}

/// LLVM's programs, which must be of the compiler's own version.
pub(crate) struct Llvm {
    directory: PathBuf,
}

impl Llvm {
    /// Those of the toolchain (rustup's component llvm-tools), else Debian's.
    pub(crate) fn find() -> Result<Self> {
        let own = PathBuf::from(ask(&["--print", "target-libdir"])?.trim()).join("../bin");
        if own.join("llvm-cov").exists() {
            return Ok(Self { directory: own });
        }
        Ok(Self { directory: ensure_llvm("llvm")? })
    }

    /// Makes one file of all counts in the folder `raw`, without what was never reached.
    pub(crate) fn merge(&self, raw: &Path, profile: &Path) -> Result<()> {
        let mut command = Command::new(self.directory.join("llvm-profdata"));
        command.args(["merge", "--sparse", "-o"]).arg(profile).arg(raw);
        tools::must_succeed("llvm-profdata", &mut command)
    }

    /// The counts of a program, line by line.
    pub(crate) fn lcov(&self, program: &Path, profile: &Path) -> Result<String> {
        let mut command = Command::new(self.directory.join("llvm-cov"));
        command.args(["export", "--format=lcov", "--instr-profile"]).arg(profile).arg(program);
        let output =
            command.stderr(Stdio::inherit()).output().map_err(Error::io("cannot run llvm-cov"))?;
        if !output.status.success() {
            return Err(Error::failed(format!("llvm-cov failed ({})", output.status)));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn value<'a>(version: &'a str, name: &str) -> Option<&'a str> {
    version.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

fn llvm_major(version: &str) -> Option<u32> {
    value(version, "LLVM version")?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versions_are_read() {
        let told = "rustc 1.95.0\nrelease: 1.95.0\nLLVM version: 22.1.2\n";
        assert_eq!((value(told, "release"), llvm_major(told)), (Some("1.95.0"), Some(22)));
        assert_eq!((value("", "release"), llvm_major("")), (None, None));
    }
}
