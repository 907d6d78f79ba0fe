//! Code put in a new order after it was linked, by LLVM's BOLT: what runs in a row lies in a row, and what hardly ever runs lies
//! elsewhere. The compiler, which has the same record of what is done often, decides within a function; this goes by the
//! program as it has become, and across functions.
//!
//! `proxy/rustc-VERSION.layout.gz` is the record: how often each block of each function ran. It holds for the code that this
//! compiler makes with its own record; what has changed since is inferred as far as it resembles what was recorded.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::UNIX_EPOCH;

use tlsplice_fixtures::{Error, Result};

use crate::{compiler, tools};

/// Has the linker keep what is needed to move code, which the program as it is installed no longer has.
pub(crate) const MOVABLE: &str = "-Clink-arg=-Wl,--emit-relocs";

/// The library that encrypts stays as its authors made it: much of it is assembly written for its order, and moving it gained
/// nothing.
const FIXED: &str = "--skip-funcs=.*aws_lc.*";

/// Blocks by what follows what, functions by who calls whom, and what never ran, for errors too, out of the way. Who asks for the line
/// of an address (`addr2line`) still gets it.
const ORDER: [&str; 7] = [
    "--infer-stale-profile",
    "--reorder-blocks=ext-tsp",
    "--reorder-functions=cdsort",
    "--split-functions",
    "--split-all-cold",
    "--split-eh",
    "--update-debug-sections",
];

/// A change of some functions leaves more than this share of a record's functions as they were, per cent.
const FIT_PERCENT_MIN: usize = 90;

/// BOLT of the compiler's LLVM.
pub(crate) struct Bolt {
    directory: PathBuf,
}

impl Bolt {
    /// Debian's, installed when missing.
    pub(crate) fn find() -> Result<Self> {
        Ok(Self { directory: compiler::ensure_llvm("bolt")? })
    }

    /// Replaces `program`, which was linked with [`MOVABLE`], by the same with its code in the order that `record` tells. What was
    /// made last is kept in `cache`, and used again for the same program and record.
    pub(crate) fn apply(&self, program: &Path, record: &Path, cache: &Path) -> Result<()> {
        let (made, stamp) = (cache.join("ordered"), cache.join("ordered-of"));
        let text = cache.join("layout.yaml");
        let identity = identity(program, record)?;
        if fs::read_to_string(&stamp).ok().as_deref() != Some(&identity) {
            eprintln!("ordering the code by what runs in a row (takes some ten seconds)");
            fs::create_dir_all(cache).map_err(Error::io("cannot make a folder"))?;
            // From here on it is nobody's, until it is whole.
            let failed = || Error::io(format!("cannot write {}", stamp.display()));
            fs::write(&stamp, "").map_err(failed())?;
            let mut unpack = Command::new("gzip");
            unpack.args(["-d", "-c"]).arg(record).stdout(create(&text)?);
            tools::must_succeed("gzip", &mut unpack)?;
            let (data, output) = (joined("--data=", &text), joined("-o=", &made));
            let arguments =
                ORDER.iter().map(OsStr::new).chain([data.as_os_str(), output.as_os_str()]);
            self.bolt(program, arguments, &cache.join("ordered.log"))?;
            fs::write(&stamp, identity).map_err(failed())?;
        }
        warn_of_other_code(program, &text)?;
        // The build's own file is another name of what cargo keeps: it is replaced, not written.
        let next = program.with_extension("ordered");
        fs::copy(&made, &next).map_err(Error::io(format!("cannot write {}", next.display())))?;
        fs::rename(&next, program)
            .map_err(Error::io(format!("cannot replace {}", program.display())))
    }

    /// Makes a program that counts its blocks, and at its end writes what it has counted into a file in `counts`.
    pub(crate) fn instrument(&self, program: &Path, counting: &Path, counts: &Path) -> Result<()> {
        let file = joined("--instrumentation-file=", &counts.join("of"));
        let options = ["--instrument", "--instrumentation-file-append-pid"].map(OsStr::new);
        let output = joined("-o=", counting);
        let arguments = options.into_iter().chain([file.as_os_str(), output.as_os_str()]);
        self.bolt(program, arguments, &counting.with_extension("log"))
    }

    /// Makes the record of all that was counted while `program` ran as [`Bolt::instrument`] made it.
    pub(crate) fn record(&self, program: &Path, counts: &Path, record: &Path) -> Result<()> {
        let all = counts.join("all");
        let mut merge = Command::new(self.directory.join("merge-fdata"));
        for entry in fs::read_dir(counts).map_err(Error::io("cannot list the counts"))? {
            merge.arg(entry.map_err(Error::io("cannot list the counts"))?.path());
        }
        merge.stdout(create(&all)?).stderr(Stdio::null());
        tools::must_succeed("merge-fdata", &mut merge)?;
        let text = counts.join("layout.yaml");
        let arguments =
            [joined("--data=", &all), joined("-w=", &text), joined("-o=", &counts.join("unused"))];
        self.bolt(program, arguments.iter().map(AsRef::as_ref), &counts.join("log"))?;
        // Without name and time, so that equal records are equal files.
        let mut pack = Command::new("gzip");
        pack.args(["-9", "-n", "-c"]).arg(&text).stdout(create(record)?);
        tools::must_succeed("gzip", &mut pack)
    }

    /// What it says goes into a file: it has hundreds of remarks about a program that is as it should be.
    fn bolt<'a>(
        &self,
        program: &Path,
        arguments: impl Iterator<Item = &'a OsStr>,
        log: &Path,
    ) -> Result<()> {
        let mut command = Command::new(self.directory.join("llvm-bolt"));
        command.arg(program).arg(FIXED).args(arguments);
        command.stdout(Stdio::null()).stderr(create(log)?);
        tools::must_succeed(&format!("llvm-bolt (it says why in {})", log.display()), &mut command)
    }
}

/// Says so when too many functions of `record` are not in `program`. A name stands for the function with its crate and everything
/// that is built on: another version of one dependency gives most functions another name, and both records are then of no use
/// to them.
fn warn_of_other_code(program: &Path, record: &Path) -> Result<()> {
    let mut list = Command::new("nm");
    list.args(["--defined-only", "--format=just-symbols"]).arg(program);
    let listed = list.output().map_err(Error::io("cannot run nm"))?;
    if !listed.status.success() {
        return Err(Error::failed(format!(
            "nm of {} failed: {}",
            program.display(),
            listed.status
        )));
    }
    let record = fs::read_to_string(record).map_err(Error::io("cannot read the record"))?;
    let (known, all) = fit(&record, &String::from_utf8_lossy(&listed.stdout));
    if known * 100 < all * FIT_PERCENT_MIN {
        eprintln!(
            "of {all} functions that were recorded only {known} are in this program: a small request costs about a tenth more than \
             with a record of these sources, which `cargo xtask profile` makes"
        );
    }
    Ok(())
}

/// How many of the functions in a record are among the symbols of a program, and how many there are.
fn fit(record: &str, symbols: &str) -> (usize, usize) {
    let symbols: HashSet<&str> = symbols.lines().map(bare).collect();
    let names = record.lines().filter_map(|line| line.strip_prefix("  - name:"));
    let names: HashSet<&str> = names.map(|name| bare(name.trim().trim_matches('\''))).collect();
    (names.intersection(&symbols).count(), names.len())
}

/// A name without what the compiler puts behind that of a local function, and BOLT behind those of equal names.
fn bare(name: &str) -> &str {
    let name = name.split_once("(*").map_or(name, |(name, _)| name);
    let name = name.split_once(".llvm.").map_or(name, |(name, _)| name);
    name.split_once('/').map_or(name, |(name, _)| name)
}

/// Tells what comes of `program` and `record` with these options from what came of others.
fn identity(program: &Path, record: &Path) -> Result<String> {
    let of = |path: &Path| {
        let seen = fs::metadata(path).and_then(|seen| Ok((seen.len(), seen.modified()?)));
        let (len, time) = seen.map_err(Error::io(format!("cannot see {}", path.display())))?;
        let time = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(format!("{len:x}-{:x}", time.as_nanos()))
    };
    Ok(format!("{} {} {FIXED} {}", of(program)?, of(record)?, ORDER.join(" ")))
}

/// An option with a path, which may be no text.
fn joined(option: &str, path: &Path) -> OsString {
    let mut argument = OsString::from(option);
    argument.push(path);
    argument
}

fn create(path: &Path) -> Result<File> {
    File::create(path).map_err(Error::io(format!("cannot write {}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_program_or_record_is_told_from_the_one_before() {
        let directory = tempfile::tempdir().unwrap();
        let (program, record) = (directory.path().join("program"), directory.path().join("record"));
        fs::write(&program, "a").unwrap();
        fs::write(&record, "b").unwrap();
        let first = identity(&program, &record).unwrap();
        assert_eq!(identity(&program, &record).unwrap(), first);
        fs::write(&record, "bb").unwrap();
        let second = identity(&program, &record).unwrap();
        fs::write(&program, "aa").unwrap();
        let third = identity(&program, &record).unwrap();
        assert!(first != second && second != third);
        assert!(identity(&directory.path().join("none"), &record).is_err());
    }

    #[test]
    fn functions_of_a_record_are_found_by_name_whatever_stands_behind_it() {
        let record = "functions:\n  - name:            _ZN1a17h01E\n    fid:  1\n  - name:  '_ZN1b17h02E.llvm.7/1(*2)'\n  - \
                      name:  '_ZN1b17h02E/2'\n  - name:  _ZN1c17h03E\n";
        let symbols = "_ZN1a17h01E\n_ZN1b17h02E.llvm.99\n_ZN1c17h04E\n";
        assert_eq!(fit(record, symbols), (2, 3));
        assert_eq!(fit("", symbols), (0, 0));
    }
}
