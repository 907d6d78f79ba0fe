use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tlsplice_fixtures::process::Process;

use crate::{PATIENCE, certificate, target, wait_for};

/// Names a binary to be tested instead of the one that cargo builds: for machines without a workspace.
pub const BINARY_VARIABLE: &str = "TLSPLICE_TEST_BINARY";

/// Sets `offload` of the https listener: the same tests prove every path of the record layer.
pub const OFFLOAD_VARIABLE: &str = "TLSPLICE_TEST_OFFLOAD";

/// Sets `splice` of the https listener, likewise.
pub const SPLICE_VARIABLE: &str = "TLSPLICE_TEST_SPLICE";

/// Sets how much the gateway says on standard error; debug unless a test sets it.
pub const LEVEL_VARIABLE: &str = "TLSPLICE_LOG";

/// What every gateway listens on: TLS, in the mode that the environment or `offload` says, and plain requests to be redirected.
#[must_use]
pub fn listeners(offload: Option<&str>) -> String {
    let variable = |name| std::env::var(name).unwrap_or_else(|_| "auto".to_owned());
    let offload = offload.map_or_else(|| variable(OFFLOAD_VARIABLE), str::to_owned);
    let splice = variable(SPLICE_VARIABLE);
    format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\noffload = {offload:?}\nsplice = {splice:?}\n\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\nservice = \"redirect\"\n"
    )
}

/// The binary under test, built on first use.
///
/// # Panics
/// When it cannot be built.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os(BINARY_VARIABLE) {
        return path.into();
    }
    static BUILD: Once = Once::new();
    BUILD.call_once(|| {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let arguments = ["build", "--quiet", "--locked", "--package", "tlsplice"];
        let status = Command::new(cargo).args(arguments).status().expect("cargo runs");
        assert!(status.success(), "the gateway does not build");
    });
    target().join("debug/tlsplice")
}

/// `tlsplice` with these arguments, to its end.
///
/// # Panics
/// When it cannot be run.
pub fn tlsplice(arguments: &[&str]) -> Output {
    Command::new(binary()).args(arguments).output().expect("tlsplice runs")
}

/// A configuration: what differs from test to test.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Keys of the top of the file.
    pub top: String,
    /// Keys of `[limits]`.
    pub limits: String,
    /// How many workers serve, if not two.
    pub workers: Option<u16>,
    /// All other tables.
    pub tables: String,
    /// Where the access log goes, if not to its usual file.
    pub log: Option<PathBuf>,
    /// `offload` of the https listener, whatever [`OFFLOAD_VARIABLE`] says.
    pub offload: Option<&'static str>,
}

impl Config {
    /// One route for everything to this upstream.
    #[must_use]
    pub fn to(upstream: SocketAddr) -> Self {
        Self::default().with(&format!("[[route]]\nupstream = \"http://{upstream}\"\n"))
    }

    /// With further tables.
    #[must_use]
    pub fn with(mut self, tables: &str) -> Self {
        self.tables.push_str(tables);
        self.tables.push('\n');
        self
    }

    /// With keys of the top of the file.
    #[must_use]
    pub fn with_top(mut self, keys: &str) -> Self {
        let _ = writeln!(self.top, "{keys}");
        self
    }

    /// With keys of `[limits]`.
    #[must_use]
    pub fn with_limits(mut self, keys: &str) -> Self {
        let _ = writeln!(self.limits, "{keys}");
        self
    }

    /// With so many workers.
    #[must_use]
    pub fn with_workers(mut self, workers: u16) -> Self {
        self.workers = Some(workers);
        self
    }

    /// With another target of the access log.
    #[must_use]
    pub fn with_log(mut self, path: &Path) -> Self {
        self.log = Some(path.to_owned());
        self
    }

    /// With this `offload` of the https listener.
    #[must_use]
    pub fn with_offload(mut self, offload: &'static str) -> Self {
        self.offload = Some(offload);
        self
    }

    fn text(&self, directory: &Path) -> String {
        let certificate = certificate();
        let Self { top, limits, workers, tables, log, offload } = self;
        let workers = workers.unwrap_or(2);
        let log = log.clone().unwrap_or_else(|| directory.join("access.log"));
        let listeners = listeners(*offload);
        format!(
            "workers = {workers}\n{top}\n{listeners}\n\
             [tls]\ncertificate = {:?}\nkey = {:?}\n\n{tables}\n[limits]\n{limits}\n\
             [access_log]\ntarget = {log:?}\n",
            certificate.chain, certificate.key,
        )
    }
}

/// A running gateway with an https and a redirect listener, two workers and an access log. Killed when dropped.
pub struct Gateway {
    process: Process,
    directory: TempDir,
    diagnostics: Arc<Mutex<String>>,
    /// Where it speaks https.
    pub https: SocketAddr,
    /// Where it redirects to https.
    pub http: SocketAddr,
}

impl Gateway {
    /// Starts it and waits until it serves.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start(config: &Config) -> Self {
        Self::start_as(config, &mut Command::new(binary()))
    }

    /// The same with a command that ends up as the gateway and passes its arguments on.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start_as(config: &Config, command: &mut Command) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("tlsplice.toml");
        fs::write(&file, config.text(directory.path())).expect("the configuration is written");
        command.arg("run").arg("--config").arg(&file).stderr(Stdio::piped());
        if !command.get_envs().any(|(name, _)| name == LEVEL_VARIABLE) {
            command.env(LEVEL_VARIABLE, "debug");
        }
        let mut process = Process::spawn("the gateway", command).expect("it starts");
        let diagnostics = Arc::new(Mutex::new(String::new()));
        let stderr = process.child_mut().stderr.take().expect("stderr is piped");
        let seen = Arc::clone(&diagnostics);
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let _ = writeln!(seen.lock().unwrap_or_else(PoisonError::into_inner), "{line}");
            }
        });
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut gateway = Self { process, directory, diagnostics, https: nowhere, http: nowhere };
        wait_for("the start of the gateway", || {
            let ended = gateway.process.try_wait().expect("it can be waited for");
            assert!(ended.is_none(), "the gateway ended at once:\n{}", gateway.diagnostics());
            gateway.diagnostics().contains("\n  TLS  ").then_some(())
        });
        gateway.https = gateway.listener("https://");
        gateway.http = gateway.listener("http://");
        gateway
    }

    /// The further listener with `service = "http"` that the configuration of the test has.
    ///
    /// # Panics
    /// When it has none.
    #[must_use]
    pub fn plain(&self) -> SocketAddr {
        let text = self.diagnostics();
        let line = text.lines().find(|line| line.ends_with("(without TLS)"));
        let address =
            line.and_then(|line| line.split("http://").nth(1)?.split(' ').next()?.parse().ok());
        address.expect("a listener without TLS")
    }

    fn listener(&self, scheme: &str) -> SocketAddr {
        let text = self.diagnostics();
        let address = text.lines().find_map(|line| {
            let place = line.trim_start().strip_prefix("listening")?.trim_start();
            place.strip_prefix(scheme)?.split(' ').next()?.parse().ok()
        });
        address.expect("the start-up report names the listener")
    }

    /// Everything it has said on standard error.
    #[must_use]
    pub fn diagnostics(&self) -> String {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, String> {
        self.diagnostics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it has said `text`.
    ///
    /// # Panics
    /// When it does not.
    pub fn wait_for_diagnostic(&self, text: &str) {
        wait_for(&format!("the diagnostic {text:?}"), || self.lock().contains(text).then_some(()));
    }

    /// The lines of the access log so far.
    #[must_use]
    pub fn access_log(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.directory.path().join("access.log")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for a line of the access log.
    ///
    /// # Panics
    /// When there is none that `is_it` accepts.
    pub fn wait_for_access(&self, is_it: impl Fn(&Value) -> bool) -> Value {
        let find = || self.access_log().into_iter().find(|line| is_it(line));
        wait_for("the line in the access log", find)
    }

    /// Writes another configuration and sends SIGHUP.
    ///
    /// # Panics
    /// When that cannot be done.
    pub fn reload(&mut self, config: &Config) {
        self.reload_text(&config.text(self.directory.path()));
    }

    /// The same with any text.
    ///
    /// # Panics
    /// When that cannot be done.
    pub fn reload_text(&mut self, text: &str) {
        let file = self.directory.path().join("tlsplice.toml");
        fs::write(file, text).expect("the configuration is written");
        self.signal(Signal::HUP);
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// When it cannot be sent.
    pub fn signal(&mut self, signal: Signal) {
        self.process.signal(signal).expect("it can be signalled");
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end.
    pub fn wait(&mut self) -> ExitStatus {
        self.process.wait(PATIENCE).expect("it ends")
    }

    /// The number of its process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// How many descriptors it has open.
    ///
    /// # Panics
    /// When the kernel does not tell.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.process.id())).expect("its descriptors").count()
    }

    /// How many ends of pipes it has open.
    ///
    /// # Panics
    /// When the kernel does not tell.
    #[must_use]
    pub fn pipe_ends(&self) -> usize {
        let entries = fs::read_dir(format!("/proc/{}/fd", self.process.id()));
        let links = entries
            .expect("its descriptors")
            .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        links.filter(|link| link.to_string_lossy().starts_with("pipe:")).count()
    }

    /// How much memory it has in use.
    ///
    /// # Panics
    /// When the kernel does not tell.
    #[must_use]
    pub fn resident_bytes(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()));
        let status = status.expect("its status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let size = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<usize>().ok());
        size.expect("its memory") * 1024
    }

    /// Names of its threads, each with the list of processors it may run on.
    ///
    /// # Panics
    /// When the kernel does not tell.
    #[must_use]
    pub fn threads(&self) -> Vec<(String, String)> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.process.id())).expect("its threads");
        let describe = |path: PathBuf| {
            let name = fs::read_to_string(path.join("comm")).ok()?;
            let status = fs::read_to_string(path.join("status")).ok()?;
            let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
            Some((name.trim().to_owned(), list.trim().to_owned()))
        };
        tasks.filter_map(|task| describe(task.ok()?.path())).collect()
    }

    /// What its threads have had of the processors.
    ///
    /// # Panics
    /// When the kernel does not tell.
    #[must_use]
    pub fn processor_time(&self) -> Duration {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.process.id())).expect("its threads");
        let nanoseconds = |path: PathBuf| {
            let text = fs::read_to_string(path.join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        };
        Duration::from_nanos(tasks.filter_map(|task| nanoseconds(task.ok()?.path())).sum())
    }

    /// The number of the thread with this name.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn thread(&self, name: &str) -> String {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.process.id())).expect("its threads");
        let mut paths = tasks.filter_map(|task| Some(task.ok()?.path()));
        let is_it = |path: &PathBuf| {
            fs::read_to_string(path.join("comm")).is_ok_and(|found| found.trim() == name)
        };
        let path = paths.find(is_it).unwrap_or_else(|| panic!("no thread {name}"));
        path.file_name().expect("its number").to_string_lossy().into_owned()
    }

    /// Whether it still runs.
    ///
    /// # Panics
    /// When that cannot be found out.
    pub fn is_running(&mut self) -> bool {
        self.process.try_wait().expect("it can be waited for").is_none()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if thread::panicking() {
            let text = self.diagnostics();
            let lines: Vec<&str> = text.lines().collect();
            let tail = lines[lines.len().saturating_sub(40)..].join("\n");
            eprintln!("what the gateway said last:\n{tail}");
        }
    }
}
