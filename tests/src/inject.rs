use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use tlsplice_fixtures::process::Process;

use crate::{gateway, is_guest, need, wait_for};

/// For the configuration of a gateway whose calls are made to fail: what strace puts into the place of such a call is not on
/// the list of those that a gateway may make, and would end it.
pub const TRACED: &str = "[process]\nfilter = \"log\"\n";

/// A gateway with calls that fail from its start on, each given in the words of strace, such as `pipe2:error=EMFILE:when=1`:
/// for [`Gateway::start_as`](gateway::Gateway::start_as). Each thread counts its calls for itself.
#[must_use]
pub fn gateway_with(injections: &[&str]) -> Command {
    need(&["strace"]);
    let mut command = Command::new("strace");
    // The tracer is the one in the background, so that the process is the gateway's own.
    command.args(["-D", "-f", "-qq", "--seccomp-bpf", "-o", "/dev/null"]);
    let names: Vec<&str> = injections.iter().filter_map(|text| text.split(':').next()).collect();
    command.args(["-e", &format!("trace={}", names.join(","))]);
    for injection in injections {
        command.args(["-e", &format!("inject={injection}")]);
    }
    command.arg(gateway::binary());
    command
}

/// Calls of one thread that fail as long as this lives.
pub struct Injection(Process);

impl Injection {
    /// Has the calls named `call` of `thread` (its number) fail with `error`: those that `when` says, in the words of strace,
    /// such as `3` or `1+`. What it does goes to `log`. None where this user may not trace; a guest must.
    ///
    /// # Panics
    /// When strace cannot be started, or says something else.
    #[must_use]
    pub fn begin(thread: &str, call: &str, error: &str, when: &str, log: &Path) -> Option<Self> {
        need(&["strace"]);
        let mut command = Command::new("strace");
        command
            .args(["-p", thread, "-e", &format!("trace={call}"), "-o"])
            .arg(log)
            .args(["-e", &format!("inject={call}:error={error}:when={when}")])
            .stderr(Stdio::piped());
        let mut strace = Process::spawn("strace", &mut command).expect("it starts");
        let stderr = strace.child_mut().stderr.take().expect("it is piped");
        let mut said = String::new();
        BufReader::new(stderr).read_line(&mut said).expect("it can be read");
        if said.contains("not permitted") && !is_guest() {
            eprintln!("not run: this user may not trace");
            return None;
        }
        assert!(said.contains("attached"), "{said}");
        Some(Self(strace))
    }

    /// Lets calls succeed again.
    ///
    /// # Panics
    /// When strace does not end.
    pub fn end(mut self) {
        self.0.signal(Signal::TERM).expect("it runs");
        wait_for("the end of strace", || self.0.try_wait().expect("it can be waited for"));
    }
}
