//! `cargo xtask fuzz`: the properties of `tests/fuzz`, tried by libFuzzer.
//!
//! The instrumentation is part of stable compilers; only sanitizers are not, and the code that could need them (`unsafe`)
//! is outside of what is tried here.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use tlsplice_fixtures::{Error, Result};

use crate::tools;

/// Counts how often each edge is taken and shows what is compared with what, as libFuzzer wants it.
const INSTRUMENTATION: [&str; 6] = [
    "-Copt-level=1",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// Seconds for each target within the test command.
const SHORT_SECONDS: u32 = 3;

/// Seconds after which one input is a hang.
const INPUT_SECONDS: u32 = 20;

/// What is tried, and for how long.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The target; all of them in turn without it.
    target: Option<String>,
    /// How long each target runs.
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Print the targets and what must hold in each.
    #[arg(long)]
    list: bool,
    /// Add what was found to the corpora under `tests/fuzz/corpus`: as few inputs as reach the same code.
    #[arg(long)]
    keep: bool,
}

/// Runs the command.
pub(crate) fn command(options: &Options) -> Result<ExitCode> {
    if options.list {
        for target in targets()? {
            println!("{:<14} {}", target.name, target.about);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut chosen = targets()?;
    if let Some(name) = &options.target {
        chosen.retain(|target| target.name == *name);
        if chosen.is_empty() {
            return Err(Error::failed(format!("there is no target {name:?}; --list shows them")));
        }
    }
    let is_good = run(&chosen, options.seconds, options.keep)?;
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A line of `targets.txt`.
struct Target {
    name: String,
    bytes_max: u32,
    /// Without one the bytes are numbers.
    dictionary: Option<PathBuf>,
    about: String,
}

impl Target {
    fn read(line: &str) -> Option<Self> {
        let mut words = line.splitn(4, ' ');
        let mut word = || words.next();
        let (name, bytes_max, dictionary, about) = (word()?, word()?, word()?, word()?);
        let path = sources().join("words").join(format!("{dictionary}.dict"));
        Some(Self {
            name: name.to_owned(),
            bytes_max: bytes_max.parse().ok()?,
            dictionary: (dictionary != "-").then_some(path),
            about: about.to_owned(),
        })
    }

    /// The inputs that are kept beside the sources.
    fn corpus(&self) -> PathBuf {
        sources().join("corpus").join(&self.name)
    }
}

fn sources() -> PathBuf {
    tools::workspace().join("tests/fuzz")
}

fn targets() -> Result<Vec<Target>> {
    let path = sources().join("targets.txt");
    let text =
        fs::read_to_string(&path).map_err(Error::io(format!("cannot read {}", path.display())))?;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let read = |line| {
        Target::read(line)
            .ok_or_else(|| Error::failed(format!("{}: {line:?} is no target", path.display())))
    };
    lines.map(read).collect()
}

/// All targets for a moment; false when a property was broken.
pub(crate) fn short() -> Result<bool> {
    run(&targets()?, SHORT_SECONDS, false)
}

fn run(targets: &[Target], seconds: u32, keep: bool) -> Result<bool> {
    let program = build()?;
    println!("target            inputs   per second  edges  kept  result");
    let mut is_good = true;
    for target in targets {
        let found = Engine { program: &program, target }.run(seconds)?;
        println!("{}", found.line(&target.name));
        is_good &= found.crash.is_none();
        if keep && found.crash.is_none() {
            Engine { program: &program, target }.keep()?;
        }
    }
    Ok(is_good)
}

/// Where everything that fuzzing makes is kept.
fn folder() -> PathBuf {
    tools::target().join("fuzz")
}

/// Builds the engine, with stable Rust. The crates of this workspace are instrumented, and fast enough to be tried often;
/// what they stand on is taken as the tests have it.
fn build() -> Result<PathBuf> {
    tools::ensure_packages(&["g++"])?;
    let flags = INSTRUMENTATION.join(" ");
    let wrapper = tools::compiler_wrapper(&folder(), &flags)?;
    let mut command = tools::cargo(&["build", "--quiet", "--locked", "--package", "tlsplice-fuzz"]);
    command.args(["--features", "engine", "--bin", "tlsplice-fuzz", "--message-format=json"]);
    command.env("RUSTC_WORKSPACE_WRAPPER", wrapper);
    eprintln!("building the instrumented targets");
    tools::executable_of(&mut command)
}

struct Engine<'a> {
    program: &'a Path,
    target: &'a Target,
}

/// What libFuzzer said at its end.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    inputs: u64,
    per_second: u64,
    edges: u64,
    corpus: u64,
    /// Where the input is that broke the property.
    crash: Option<String>,
    /// The last lines before that.
    words: Vec<String>,
}

impl Engine<'_> {
    fn command(&self) -> Command {
        let mut command = Command::new(self.program);
        command
            .env("TLSPLICE_FUZZ_TARGET", &self.target.name)
            .arg(format!("-max_len={}", self.target.bytes_max))
            .arg(format!("-timeout={INPUT_SECONDS}"))
            .arg("-rss_limit_mb=2048");
        command
    }

    fn work(&self) -> PathBuf {
        folder().join("corpus").join(&self.target.name)
    }

    fn run(&self, seconds: u32) -> Result<Found> {
        let (work, crashes) = (self.work(), folder().join("crashes"));
        for folder in [&work, &crashes] {
            fs::create_dir_all(folder)
                .map_err(Error::io(format!("cannot make {}", folder.display())))?;
        }
        let mut command = self.command();
        if let Some(words) = &self.target.dictionary {
            command.arg(format!("-dict={}", words.display()));
        }
        let mut child = command
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-artifact_prefix={}/{}-", crashes.display(), self.target.name))
            .args(["-print_final_stats=1", "-reload=0"])
            .args([&work, &self.target.corpus()])
            .stderr(Stdio::piped())
            .spawn()
            .map_err(Error::io("cannot run the fuzz targets"))?;
        let mut found = Found::default();
        if let Some(output) = child.stderr.take() {
            for line in BufReader::new(output).split(b'\n') {
                let line = line.map_err(Error::io("cannot read what the fuzzer says"))?;
                found.on_line(&String::from_utf8_lossy(&line));
            }
        }
        let status = child.wait().map_err(Error::io("cannot wait for the fuzzer"))?;
        if !status.success() && found.crash.is_none() {
            let words = found.words.join("\n");
            return Err(Error::failed(format!("the fuzzer failed ({status}):\n{words}")));
        }
        Ok(found)
    }

    /// Puts the fewest inputs with the same coverage into the corpus that is kept.
    fn keep(&self) -> Result<()> {
        let (kept, work) = (self.target.corpus(), self.work());
        fs::create_dir_all(&kept).map_err(Error::io(format!("cannot make {}", kept.display())))?;
        let mut command = self.command();
        command.arg("-set_cover_merge=1").args([&kept, &work]).stderr(Stdio::null());
        tools::must_succeed("the choice of inputs", &mut command)
    }
}

impl Found {
    fn on_line(&mut self, line: &str) {
        /// As much as explains a panic.
        const WORDS: usize = 40;
        if let Some(number) = line.strip_prefix("stat::number_of_executed_units:") {
            self.inputs = number.trim().parse().unwrap_or(0);
        } else if let Some(number) = line.strip_prefix("stat::average_exec_per_sec:") {
            self.per_second = number.trim().parse().unwrap_or(0);
        } else if let Some((_, path)) = line.split_once("Test unit written to ") {
            self.crash = Some(path.to_owned());
        } else if let Some((_, rest)) = line.split_once("cov: ") {
            let mut words = rest.split_whitespace();
            self.edges = words.next().and_then(|number| number.parse().ok()).unwrap_or(0);
            let corpus = words.skip_while(|word| *word != "corp:").nth(1);
            let corpus = corpus.and_then(|text| text.split('/').next()?.parse().ok());
            self.corpus = corpus.unwrap_or(self.corpus);
        } else if self.words.len() < WORDS && self.crash.is_none() && !line.starts_with("INFO: ") {
            self.words.push(line.to_owned());
        }
    }

    fn line(&self, name: &str) -> String {
        let Self { inputs, per_second, edges, corpus, .. } = self;
        let result = match &self.crash {
            None => "holds".to_owned(),
            Some(path) => format!("BROKEN by {path}\n{}", self.words.join("\n")),
        };
        format!("{name:<14} {inputs:>9} {per_second:>12} {edges:>6} {corpus:>5}  {result}")
    }
}

#[cfg(test)]
mod tests {
    use super::{Found, Target};

    #[test]
    fn what_libfuzzer_says_is_understood() {
        let mut found = Found::default();
        for line in [
            "#1024\tNEW    cov: 310 ft: 512 corp: 33/1021b lim: 40 exec/s: 512 rss: 50Mb L: 3/9 MS: 1 ChangeBit-",
            "thread '<unnamed>' panicked at src/paths.rs:1:1:",
            "artifact_prefix='/t/'; Test unit written to /t/route-crash-12",
            "stat::number_of_executed_units: 2048",
            "stat::average_exec_per_sec:     1024",
        ] {
            found.on_line(line);
        }
        assert_eq!(
            (found.inputs, found.per_second, found.edges, found.corpus),
            (2048, 1024, 310, 33)
        );
        assert_eq!(found.crash.as_deref(), Some("/t/route-crash-12"));
        assert!(found.line("route").contains("panicked at src/paths.rs:1:1"));
    }

    #[test]
    fn targets_are_read() {
        let target = Target::read("flow 300 - no byte is lost").expect("a target");
        assert_eq!((target.name.as_str(), target.bytes_max), ("flow", 300));
        assert_eq!((target.dictionary, target.about.as_str()), (None, "no byte is lost"));
        assert!(Target::read("flow 300 words").is_none());
    }
}
