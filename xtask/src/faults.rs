//! `cargo xtask faults`: the fault table, and what came of each row.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::process::{ExitCode, Stdio};

use tlsplice_fixtures::{Error, Result};

use crate::tools;

/// The table. A row is `== NUMBER TITLE` and lines below it: `keeps` (invariants that its tests look at), `path` (how bytes
/// move in them), `by` (a test that shows it, as `binary::name`; `unit` are those beside the code), `long` (the same, only
/// with `--long`), `vm` (the same, in guests of `cargo xtask vm`, since this machine may lack what it takes), and `n/a`
/// (why it does not apply, or not all of it).
const TABLE: &str = include_str!("../../tests/faults/rows.txt");

/// What a row may be said to keep.
#[cfg(test)]
const INVARIANTS: [&str; 7] =
    ["exactly-once", "bytes", "bounds", "others", "recovery", "truth", "rest"];

/// What a test prints that cannot be run here.
const NOT_RUN: &str = "not run: ";

/// Which tests.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Also what takes minutes.
    #[arg(long)]
    long: bool,
    /// This row only.
    #[arg(long, value_name = "NUMBER")]
    row: Option<u32>,
}

#[derive(Debug)]
struct Row {
    id: u32,
    title: String,
    keeps: Vec<String>,
    path: String,
    tests: Vec<(Place, String)>,
    not_applicable: Option<String>,
}

/// Where and when a test is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Here,
    Long,
    Guest,
}

/// What became of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    Passed,
    Failed,
    /// It says why it could not be run.
    NotRun(String),
}

/// What became of a row. The order is that of the summary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Passed,
    Failed,
    NotRunHere,
    NotApplicable,
}

impl Verdict {
    const ALL: [Self; 4] = [Self::Passed, Self::Failed, Self::NotRunHere, Self::NotApplicable];

    fn label(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::NotRunHere => "not run here",
            Self::NotApplicable => "not applicable",
        }
    }
}

/// Runs the tests of the table and prints it.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let mut rows = read(TABLE);
    if let Some(number) = options.row {
        rows.retain(|row| row.id == number);
    }
    let is_wanted = |place: Place| match place {
        Place::Here => true,
        Place::Long => options.long,
        Place::Guest => false,
    };
    let mut binaries = BTreeMap::<&str, Vec<&str>>::new();
    for (_, name) in rows.iter().flat_map(|row| &row.tests).filter(|(place, _)| is_wanted(*place)) {
        if let Some((binary, name)) = name.split_once("::") {
            let names = binaries.entry(binary).or_default();
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    let mut fates = BTreeMap::new();
    for (binary, names) in binaries {
        run_binary(binary, &names, &mut fates)?;
    }
    let (text, is_good) = judge(&rows, &fates, is_wanted);
    print!("{text}");
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs some tests of a binary, and notes what became of each.
fn run_binary(binary: &str, names: &[&str], fates: &mut BTreeMap<String, Fate>) -> Result<()> {
    let failed = || Error::io(format!("cannot run the tests of {binary}"));
    let mut command = tools::cargo(&["test", "--locked", "--quiet"]);
    match binary {
        "unit" => command.args(["--package", "tlsplice", "--lib"]),
        _ => command.args(["--package", "tlsplice-tests", "--test", binary]),
    };
    command.args(["--", "--format=pretty", "--exact", "--include-ignored", "--show-output"]);
    let mut child = command.args(names).stdout(Stdio::piped()).spawn().map_err(failed())?;
    let mut output = Output { binary, fates, told: None };
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line.map_err(failed())?;
            if line.starts_with("test ") {
                eprintln!("{binary}: {line}");
            }
            output.on_line(&line);
            if output.tells_of_a_failure() {
                eprintln!("{line}");
            }
        }
    }
    // Its status says no more than the lines did.
    child.wait().map_err(failed())?;
    Ok(())
}

/// What a test binary prints, from line to line.
struct Output<'a> {
    binary: &'a str,
    fates: &'a mut BTreeMap<String, Fate>,
    /// The test whose own words come now.
    told: Option<String>,
}

impl Output<'_> {
    fn tells_of_a_failure(&self) -> bool {
        self.told.as_ref().is_some_and(|name| self.fates.get(name) == Some(&Fate::Failed))
    }

    fn on_line(&mut self, line: &str) {
        let full = |name: &str| format!("{}::{name}", self.binary);
        if let Some((name, fate)) =
            line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... "))
        {
            let fate = match fate {
                "ok" => Fate::Passed,
                _ => Fate::Failed,
            };
            self.fates.insert(full(name), fate);
        } else if let Some(name) =
            line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"))
        {
            self.told = Some(full(name));
        } else if let (Some(why), Some(name)) = (line.strip_prefix(NOT_RUN), &self.told) {
            self.fates.insert(name.clone(), Fate::NotRun(why.to_owned()));
        }
    }
}

/// The table as people read it, and whether nothing in it has failed.
fn judge(
    rows: &[Row],
    fates: &BTreeMap<String, Fate>,
    is_wanted: impl Fn(Place) -> bool,
) -> (String, bool) {
    let mut text = String::new();
    let mut counts = BTreeMap::<Verdict, usize>::new();
    for row in rows {
        let mut notes = Vec::new();
        let (mut passed, mut failed) = (0_usize, 0_usize);
        for (place, name) in &row.tests {
            if !is_wanted(*place) {
                let when = if *place == Place::Long { "with --long" } else { "in guests" };
                notes.push(format!("{when}: {name}"));
                continue;
            }
            match fates.get(name) {
                Some(Fate::Passed) => passed += 1,
                Some(Fate::NotRun(why)) => notes.push(format!("not run, {why}: {name}")),
                Some(Fate::Failed) => {
                    failed += 1;
                    notes.push(format!("failed: {name}"));
                }
                // A name in the table is no test yet.
                None => {
                    failed += 1;
                    notes.push(format!("there is no such test: {name}"));
                }
            }
        }
        let verdict = match (failed, passed, row.tests.is_empty()) {
            (1.., _, _) => Verdict::Failed,
            (0, 1.., _) => Verdict::Passed,
            (0, 0, false) => Verdict::NotRunHere,
            (0, 0, true) => Verdict::NotApplicable,
        };
        *counts.entry(verdict).or_default() += 1;
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:>3}  {:<15}{}", row.id, verdict.label(), row.title);
        if !row.keeps.is_empty() && verdict != Verdict::NotApplicable {
            let _ = writeln!(text, "     keeps {}; {}", row.keeps.join(", "), row.path);
        }
        for note in notes.iter().chain(&row.not_applicable) {
            let _ = writeln!(text, "     {note}");
        }
    }
    let count = |verdict| counts.get(&verdict).copied().unwrap_or(0);
    let summary: Vec<String> = Verdict::ALL
        .iter()
        .map(|&verdict| format!("{} {}", verdict.label(), count(verdict)))
        .collect();
    let _ = writeln!(text, "rows: {}", summary.join(", "));
    (text, count(Verdict::Failed) == 0)
}

/// Reads the table; it is part of this program, and a test below looks at its form.
fn read(table: &str) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for line in table.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        if key == "==" {
            let (id, title) = value.split_once(' ').unwrap_or((value, ""));
            rows.push(Row {
                id: id.parse().unwrap_or(0),
                title: title.to_owned(),
                keeps: Vec::new(),
                path: String::new(),
                tests: Vec::new(),
                not_applicable: None,
            });
        } else if let Some(row) = rows.last_mut() {
            match key {
                "keeps" => row.keeps = value.split(' ').map(str::to_owned).collect(),
                "path" => value.clone_into(&mut row.path),
                "by" => row.tests.push((Place::Here, value.to_owned())),
                "long" => row.tests.push((Place::Long, value.to_owned())),
                "vm" => row.tests.push((Place::Guest, value.to_owned())),
                _ => row.not_applicable = Some(value.to_owned()),
            }
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_is_there_once_and_says_who_shows_it_or_why_nobody_does() {
        let rows = read(TABLE);
        let ids: Vec<u32> = rows.iter().map(|row| row.id).collect();
        assert_eq!(ids, (1..=54).collect::<Vec<_>>());
        for row in &rows {
            assert!(!row.title.is_empty(), "row {}", row.id);
            assert!(!row.tests.is_empty() || row.not_applicable.is_some(), "row {}", row.id);
            assert!(row.tests.iter().all(|(_, name)| name.contains("::")), "row {}", row.id);
            assert_eq!(row.tests.is_empty(), row.keeps.is_empty(), "row {}", row.id);
            assert_eq!(row.tests.is_empty(), row.path.is_empty(), "row {}", row.id);
            let is_known = |word: &String| INVARIANTS.contains(&word.as_str());
            assert!(row.keeps.iter().all(is_known), "row {}: {:?}", row.id, row.keeps);
        }
        for line in TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let key = line.split(' ').next().unwrap_or_default();
            assert!(["==", "keeps", "path", "by", "long", "vm", "n/a"].contains(&key), "{line}");
        }
    }

    /// All sources below a folder, or those of one file.
    fn sources(path: &std::path::Path, text: &mut String) {
        let Ok(entries) = std::fs::read_dir(path) else {
            *text += &std::fs::read_to_string(path.with_extension("rs")).unwrap_or_default();
            return;
        };
        for entry in entries.filter_map(std::result::Result::ok) {
            sources(&entry.path(), text);
        }
    }

    #[test]
    fn each_test_that_a_row_names_is_there() {
        let rows = read(TABLE);
        for (_, full) in rows.iter().flat_map(|row| &row.tests) {
            let (binary, path) = full.split_once("::").expect("a binary and a name");
            let place = match binary {
                "unit" => "proxy/src".into(),
                _ => std::path::Path::new("tests/tests").join(binary),
            };
            let mut text = String::new();
            sources(&tools::workspace().join(place), &mut text);
            let name = path.rsplit("::").next().unwrap_or_default();
            assert!(text.contains(&format!("fn {name}(")), "{full}");
        }
    }

    #[test]
    fn a_row_counts_only_by_tests_that_have_run() {
        let rows = read(
            "== 1 good\nkeeps rest\npath copy\nby a::x\nlong a::slow\n== 2 bad\nby a::x\nby a::y\n\
             == 3 missing\nby a::z\n== 4 elsewhere\nvm a::v\n== 5 root only\nby a::r\n== 6 none\nn/a why\n",
        );
        let mut fates = BTreeMap::new();
        let mut output = Output { binary: "a", fates: &mut fates, told: None };
        for line in [
            "test x ... ok",
            "test y ... FAILED",
            "test r ... ok",
            "---- r stdout ----",
            "not run: only root may",
        ] {
            output.on_line(line);
        }
        let (text, is_good) = judge(&rows, &fates, |place| place == Place::Here);
        assert!(!is_good);
        for line in [
            "  1  passed         good\n     keeps rest; copy\n     with --long: a::slow\n",
            "  2  failed         bad\n     failed: a::y\n",
            "  3  failed         missing\n     there is no such test: a::z\n",
            "  4  not run here   elsewhere\n     in guests: a::v\n",
            "  5  not run here   root only\n     not run, only root may: a::r\n",
            "  6  not applicable none\n     why\n",
            "rows: passed 1, failed 2, not run here 2, not applicable 1\n",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
