//! What the user can ask for: the options of `cargo xtask bench`, which hands them over as they are.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use tlsplice_fixtures::{Error, Result};

use crate::gateways::{Kind, Release, Route};

/// What `--quick` may take. Rounds that do not fit are left out, and it is told.
const QUICK_BOUND: Duration = Duration::from_secs(220);
/// What the whole may take.
const WHOLE_BOUND: Duration = Duration::from_secs(1680);

/// Compares tlsplice with nginx, HAProxy and Apache on this machine, and with itself.
///
/// Installs what is missing, starts everything itself, runs all gateways in turn, and writes a table here, and
/// report.json, report.html, summary.md and summary.svg into a folder. Figures are only as quiet as the machine; CPU per
/// unit is what noise changes least.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench", max_term_width = 100)]
pub struct Options {
    /// The points that matter most, in less than 4 minutes instead of 30.
    #[arg(long)]
    pub quick: bool,
    /// Only this scenario; `--list` names them.
    #[arg(long, value_name = "S")]
    pub scenario: Option<String>,
    /// Only the points of which this is a part of the name.
    #[arg(long, value_name = "TEXT")]
    pub point: Option<String>,
    /// Rivals, separated by commas: nginx, haproxy, apache, nginx-next and haproxy-next (those of Debian's next release,
    /// unpacked beside the system); or `none`. [default: all, with --quick those of this system]
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    pub rivals: Option<Vec<String>>,
    /// Another build of tlsplice, which is then the first rival: what a change of this project gains or costs.
    #[arg(long, value_name = "FILE", conflicts_with = "paths")]
    pub against: Option<PathBuf>,
    /// Where the report is written [default: target/bench].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Compare TLS in user space with TLS in the kernel on this machine, and say which `offload` is best.
    #[arg(long)]
    pub paths: bool,
    /// Count instructions and allocations of steps of the hot path, and of whole requests, by valgrind instead.
    #[arg(long)]
    pub micro: bool,
    /// List the scenarios and end.
    #[arg(long)]
    pub list: bool,
    /// Runs of each gateway and point; up to twice as many where there is a bar.
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub runs: usize,
    /// Milliseconds that count in each run, of which 60 % do where there is no bar [default: 500, with --quick 250].
    #[arg(long, value_name = "N")]
    pub window_ms: Option<u64>,
    /// Congestion control of all connections, which are made in a network namespace of their own; `machine` for the
    /// machine's own network and what it has there [default: cubic, the usual one of Linux, if that can be had].
    #[arg(long, value_name = "NAME")]
    pub congestion_control: Option<String>,
    /// The gateway's program.
    #[arg(long, hide = true, value_name = "FILE")]
    pub tlsplice: PathBuf,
}

impl Options {
    /// What counts in each run.
    #[must_use]
    pub fn window(&self) -> Duration {
        let default = if self.quick { 250 } else { 500 };
        Duration::from_millis(self.window_ms.unwrap_or(default).max(1))
    }

    /// What comes before that.
    #[must_use]
    pub fn warm_up(&self) -> Duration {
        self.window() / 4
    }

    /// After this, what is left is skipped and told.
    #[must_use]
    pub fn bound(&self) -> Duration {
        if self.quick { QUICK_BOUND } else { WHOLE_BOUND }
    }

    /// Everything that is made and need not be kept: the folder `bench` beside that of the build.
    #[must_use]
    pub fn scratch(&self) -> PathBuf {
        let target = self.tlsplice.parent().and_then(|release| release.parent());
        target.unwrap_or(&self.tlsplice).join("bench")
    }

    /// Where the report is written.
    #[must_use]
    pub fn out(&self) -> PathBuf {
        self.out.clone().unwrap_or_else(|| self.scratch())
    }

    /// Rivals as they were named, or the usual ones.
    ///
    /// # Errors
    /// When one is unknown.
    pub fn rivals(&self) -> Result<Vec<Kind>> {
        const SYSTEM: [Kind; 3] =
            [Kind::Nginx(Release::System), Kind::Haproxy(Release::System), Kind::Apache];
        const NEXT: [Kind; 2] = [Kind::Nginx(Release::Next), Kind::Haproxy(Release::Next)];
        let Some(named) = &self.rivals else {
            let next = if self.quick { &[][..] } else { &NEXT[..] };
            return Ok([&SYSTEM[..], next].concat());
        };
        let find = |name: &String| {
            let known = SYSTEM.iter().chain(&NEXT).find(|kind| kind.name() == name);
            known.cloned().ok_or_else(|| {
                let names: Vec<&str> = SYSTEM.iter().chain(&NEXT).map(Kind::name).collect();
                Error::failed(format!(
                    "unknown rival {name:?}; there are {} and none",
                    names.join(", ")
                ))
            })
        };
        named.iter().filter(|name| *name != "none").map(find).collect()
    }

    /// All gateways that are compared, ours first. `has_kernel_tls`: the kernel takes TLS over.
    ///
    /// # Errors
    /// When a rival is unknown.
    pub fn kinds(&self, has_kernel_tls: bool) -> Result<Vec<Kind>> {
        let routes: &[Route] = match (self.paths, has_kernel_tls) {
            (false, _) => {
                let ours = [Kind::Tlsplice(Route::Auto)].into_iter();
                let another = self.against.clone().map(Kind::Another);
                return Ok(ours.chain(another).chain(self.rivals()?).collect());
            }
            (true, true) => &[Route::UserCopy, Route::KernelCopy, Route::KernelSplice],
            (true, false) => &[Route::UserCopy],
        };
        Ok(routes.iter().copied().map(Kind::Tlsplice).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(arguments: &[&str]) -> Options {
        let fixed = ["bench", "--tlsplice", "/t/release/tlsplice"];
        Options::try_parse_from([&fixed[..], arguments].concat()).expect("they are valid")
    }

    fn names(arguments: &[&str]) -> Vec<&'static str> {
        let kinds = options(arguments).kinds(true).expect("known rivals");
        kinds.iter().map(Kind::name).collect()
    }

    #[test]
    fn rivals_are_all_or_those_of_the_system_or_as_named() {
        let all = ["tlsplice", "nginx", "haproxy", "apache", "nginx-next", "haproxy-next"];
        assert_eq!(names(&[]), all);
        assert_eq!(names(&["--quick"]), all[..4]);
        assert_eq!(names(&["--rivals", "haproxy-next,apache"]), ["tlsplice", all[5], all[3]]);
        assert_eq!(names(&["--rivals", "none"]), ["tlsplice"]);
        let another = ["--against", "/old/tlsplice", "--rivals", "none"];
        assert_eq!(names(&another), ["tlsplice", "another"]);
        assert_eq!(names(&["--paths"]), ["user/copy", "kernel/copy", "kernel/splice"]);
        let error = options(&["--rivals", "caddy"]).rivals().expect_err("unknown").to_string();
        assert!(error.contains("\"caddy\"") && error.contains("nginx-next"), "{error}");
    }

    #[test]
    fn scratch_lies_beside_the_build_and_the_report_with_it() {
        assert_eq!(options(&[]).out(), PathBuf::from("/t/bench"));
        let elsewhere = options(&["--out", "x"]);
        assert_eq!((elsewhere.out(), elsewhere.scratch()), ("x".into(), "/t/bench".into()));
    }
}
