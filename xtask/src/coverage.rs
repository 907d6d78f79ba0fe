//! `cargo xtask coverage`: how much of the gateway the unit tests reach, by LLVM's own measure.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use tlsplice_fixtures::{Error, Result};

use crate::compiler::Llvm;
use crate::tools;

/// Modules in which nearly every line is worth a test, and the percentage of lines that is aimed at.
const AIMED_AT: [&str; 4] = ["handshake", "ktls", "message", "relay"];
const AIM: f64 = 95.0;

/// What is shown.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// List the lines that no test reaches, of files whose path contains this.
    #[arg(long, value_name = "PATH")]
    missing: Option<String>,
}

/// Lines of code, and those that ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Lines {
    all: u64,
    reached: u64,
}

impl Lines {
    fn percentage(self) -> f64 {
        if self.all == 0 {
            return 100.0;
        }
        self.reached as f64 * 100.0 / self.all as f64
    }
}

/// Runs the unit tests of the gateway and prints what they reach, for each module. Fails when a test does.
pub(crate) fn command(options: &Options) -> Result<ExitCode> {
    let llvm = Llvm::find()?;
    let directory = tools::target().join("coverage");
    let raw = directory.join("raw");
    // Counts of another build do not fit.
    tools::remove_folder(&raw)?;
    fs::create_dir_all(&raw).map_err(Error::io(format!("cannot make {}", raw.display())))?;
    let program = build(&directory)?;
    let mut tests = Command::new(&program);
    tests.arg("--quiet").current_dir(tools::workspace().join("proxy"));
    tests.env("LLVM_PROFILE_FILE", raw.join("%p-%m.profraw")).stdout(Stdio::null());
    tools::must_succeed("the unit tests", &mut tests)?;
    let profile = directory.join("tests.profdata");
    llvm.merge(&raw, &profile)?;
    let lcov = llvm.lcov(&program, &profile)?;
    let files = files(&lcov, |path| fs::read_to_string(path).unwrap_or_default());
    match &options.missing {
        Some(part) => print!("{}", unreached(&files, part)),
        None => print!("{}", table(&modules(&files))),
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds the unit tests with counters in the crates of this workspace alone; the others stay as they are.
fn build(directory: &Path) -> Result<PathBuf> {
    let wrapper = tools::compiler_wrapper(directory, "-Cinstrument-coverage")?;
    let mut command = tools::cargo(&["test", "--quiet", "--locked", "--package", "tlsplice"]);
    command.args(["--lib", "--no-run", "--message-format=json"]);
    command.env("RUSTC_WORKSPACE_WRAPPER", wrapper);
    tools::executable_of(&mut command)
}

/// The name of a source file below `proxy/src`; None for what is no part of the gateway: tests, and what only they use.
fn source(path: &str) -> Option<&str> {
    let (_, name) = path.split_once("/proxy/src/")?;
    let is_test = name.split(['/', '.']).any(|part| {
        part == "tests" || part == "testing" || part == "double" || part.ends_with("_tests")
    });
    (!is_test).then_some(name)
}

/// For each file its lines of code, and whether they ran. Tests at the end of a file do not count.
fn files(lcov: &str, read: impl Fn(&str) -> String) -> BTreeMap<String, Vec<(usize, bool)>> {
    let mut files: BTreeMap<String, Vec<(usize, bool)>> = BTreeMap::new();
    let mut current = None;
    for line in lcov.lines() {
        if let Some(path) = line.strip_prefix("SF:") {
            current = source(path).map(|name| (name.to_owned(), first_test_line(&read(path))));
        } else if let Some((name, end)) = &current
            && let Some((number, count)) =
                line.strip_prefix("DA:").and_then(|data| data.split_once(','))
            && let Ok(number) = number.parse()
            && number < *end
        {
            files.entry(name.clone()).or_default().push((number, count != "0"));
        }
    }
    files
}

/// The line that begins the tests within a file.
fn first_test_line(text: &str) -> usize {
    let mut lines = (1..).zip(text.lines()).peekable();
    while let Some((number, line)) = lines.next() {
        let begins = lines.peek().is_some_and(|(_, next)| next.starts_with("mod tests {"));
        if line == "#[cfg(test)]" && begins {
            return number;
        }
    }
    usize::MAX
}

/// Lines of each module; a file beside the modules is one of its own.
fn modules(files: &BTreeMap<String, Vec<(usize, bool)>>) -> BTreeMap<String, Lines> {
    let mut modules: BTreeMap<String, Lines> = BTreeMap::new();
    for (name, lines) in files {
        let module = name.split(['/', '.']).next().unwrap_or(name);
        let entry = modules.entry(module.to_owned()).or_default();
        entry.all += lines.len() as u64;
        entry.reached += lines.iter().filter(|(_, is_reached)| *is_reached).count() as u64;
    }
    modules
}

fn table(modules: &BTreeMap<String, Lines>) -> String {
    let mut text = "module        lines  reached  by unit tests\n".to_owned();
    let (mut sum, mut aimed) = (Lines::default(), Lines::default());
    let row = |name: &str, lines: Lines, note: &str| {
        let Lines { all, reached } = lines;
        format!("{name:<12}{all:>7}{reached:>9}{:>9.1} %{note}\n", lines.percentage())
    };
    for (name, lines) in modules {
        let is_aimed_at = AIMED_AT.contains(&name.as_str());
        let note = match is_aimed_at {
            true if lines.percentage() < AIM => "   below the aim of 95 %",
            true => "   as aimed at",
            false => "",
        };
        text += &row(name, *lines, note);
        for sum in [Some(&mut sum), is_aimed_at.then_some(&mut aimed)].into_iter().flatten() {
            sum.all += lines.all;
            sum.reached += lines.reached;
        }
    }
    text + &row("these four", aimed, "") + &row("everything", sum, "")
}

/// The lines that did not run, as `file: lines`.
fn unreached(files: &BTreeMap<String, Vec<(usize, bool)>>, part: &str) -> String {
    let mut text = String::new();
    for (name, lines) in files.iter().filter(|(name, _)| name.contains(part)) {
        let missing = lines.iter().filter(|(_, is_reached)| !is_reached);
        let numbers: Vec<String> = missing.map(|(number, _)| number.to_string()).collect();
        if !numbers.is_empty() {
            text += &format!("{name}: {}\n", numbers.join(" "));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of `all` lines, the first of which ran.
    fn lines(all: usize, reached: usize) -> Vec<(usize, bool)> {
        (1..=all).map(|number| (number, number <= reached)).collect()
    }

    #[test]
    fn lines_are_added_for_each_module() {
        let files = [
            ("message/a.rs", lines(90, 80)),
            ("message/b.rs", lines(10, 10)),
            ("relay/mod.rs", lines(100, 95)),
            ("addr.rs", lines(4, 1)),
        ];
        let modules = modules(&files.map(|(name, lines)| (name.to_owned(), lines)).into());
        assert_eq!(modules["message"], Lines { all: 100, reached: 90 });
        assert_eq!(modules.len(), 3);
        let text = table(&modules);
        assert!(text.contains("message         100       90     90.0 %   below"), "{text}");
        assert!(text.contains("relay           100       95     95.0 %   as aimed at"), "{text}");
        assert!(text.contains("everything      204      186     91.2 %"), "{text}");
    }

    #[test]
    fn tests_are_no_part_of_what_is_measured() {
        let lcov = "SF:/x/proxy/src/relay/a.rs\nDA:1,4\nDA:2,0\nDA:3,0\nDA:5,9\n\
                    SF:/x/proxy/src/relay/tests.rs\nDA:1,0\nSF:/x/proxy/src/transport/double.rs\nDA:1,0\n\
                    SF:/x/xtask/src/a.rs\nDA:1,0\n";
        let text = "fn a() {\n b();\n c() }\n#[cfg(test)]\nmod tests {\n}\n";
        let files = files(lcov, |_| text.to_owned());
        assert_eq!(files.len(), 1);
        assert_eq!(files["relay/a.rs"], [(1, true), (2, false), (3, false)]);
        assert_eq!(unreached(&files, "relay"), "relay/a.rs: 2 3\n");
    }
}
