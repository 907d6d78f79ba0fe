//! The gateways under test: tlsplice and its rivals, each with the configuration of its experts.

use std::ffi::OsString;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tlsplice_fixtures::process::Process;
use tlsplice_fixtures::{Error, Result, free_port};

use crate::certificate::Certificates;
use crate::floor::Floor;
use crate::load::Fronts;
use crate::measure;

const START: Duration = Duration::from_secs(20);
/// The same under a wrapper, which may slow it down a hundredfold.
const WRAPPED_START: Duration = Duration::from_secs(120);
const APACHE_MODULES: &str = "/usr/lib/apache2/modules";

/// Where TLS is done, and how bodies move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// What the gateway chooses.
    Auto,
    /// TLS in this process, which implies copying.
    UserCopy,
    /// TLS in the kernel, bodies copied.
    KernelCopy,
    /// TLS in the kernel, bodies spliced.
    KernelSplice,
}

impl Route {
    /// Keys of the listener. What is the default is not written.
    fn keys(self) -> &'static str {
        match self {
            Self::Auto => "",
            Self::UserCopy => "offload = \"never\"",
            Self::KernelCopy => "offload = \"always\"\nsplice = \"never\"",
            Self::KernelSplice => "offload = \"always\"",
        }
    }
}

/// Whose package a program is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// This system's.
    System,
    /// That of the release after it, unpacked.
    Next,
}

/// A program that is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// This project, with the path that a byte takes in it.
    Tlsplice(Route),
    /// Another build of it, to compare with.
    Another(PathBuf),
    /// nginx.
    Nginx(Release),
    /// HAProxy.
    Haproxy(Release),
    /// Apache httpd with the event MPM.
    Apache,
    /// A relay that looks at nothing: see [`crate::floor`].
    Floor(Floor),
}

impl Kind {
    /// How reports call it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Tlsplice(Route::Auto) => "tlsplice",
            Self::Tlsplice(Route::UserCopy) => "user/copy",
            Self::Tlsplice(Route::KernelCopy) => "kernel/copy",
            Self::Tlsplice(Route::KernelSplice) => "kernel/splice",
            Self::Another(_) => "another",
            Self::Nginx(Release::System) => "nginx",
            Self::Nginx(Release::Next) => "nginx-next",
            Self::Haproxy(Release::System) => "haproxy",
            Self::Haproxy(Release::Next) => "haproxy-next",
            Self::Apache => "apache",
            Self::Floor(floor) => floor.name(),
        }
    }

    /// The package of this system that it comes from.
    #[must_use]
    pub fn package(&self) -> Option<&'static str> {
        match self {
            Self::Nginx(Release::System) => Some("nginx"),
            Self::Haproxy(Release::System) => Some("haproxy"),
            Self::Apache => Some("apache2"),
            _ => None,
        }
    }

    /// Whether it is this project.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        matches!(self, Self::Tlsplice(_))
    }

    /// Whether it is what ours is compared with.
    #[must_use]
    pub fn is_rival(&self) -> bool {
        matches!(self, Self::Another(_) | Self::Nginx(_) | Self::Haproxy(_) | Self::Apache)
    }

    /// The words that start it: the program, or what loads it with libraries of its own.
    fn program(&self, binary: &Path, next: &Path) -> Vec<OsString> {
        let (name, release) = match self {
            Self::Tlsplice(_) => return vec![binary.into()],
            Self::Another(program) => return vec![program.into()],
            Self::Floor(_) => {
                let own = std::env::current_exe().unwrap_or_else(|_| "tlsplice-bench".into());
                return vec![own.into()];
            }
            Self::Nginx(release) => ("nginx", *release),
            Self::Haproxy(release) => ("haproxy", *release),
            Self::Apache => ("apache2", Release::System),
        };
        let program = Path::new("/usr/sbin").join(name);
        match (release, loader(next)) {
            (Release::Next, Some(loader)) => {
                let libraries = loader.parent().unwrap_or(next).into();
                let program = next.join("usr/sbin").join(name).into();
                vec![loader.into(), "--library-path".into(), libraries, program]
            }
            _ => vec![program.into()],
        }
    }

    /// What it says about its version, in one line.
    #[must_use]
    pub fn version(&self, binary: &Path, next: &Path) -> String {
        let argument = match self {
            Self::Tlsplice(_) | Self::Another(_) | Self::Floor(_) => "--version",
            Self::Nginx(_) | Self::Haproxy(_) | Self::Apache => "-v",
        };
        let words = self.program(binary, next);
        let Ok(output) = Command::new(&words[0]).args(&words[1..]).arg(argument).output() else {
            return String::new();
        };
        let text = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned()
    }
}

/// The dynamic loader of a release that was unpacked at `root`.
fn loader(root: &Path) -> Option<PathBuf> {
    let folders = fs::read_dir(root.join("usr/lib")).into_iter().flatten().flatten();
    let files = folders.filter_map(|folder| fs::read_dir(folder.path()).ok()).flatten().flatten();
    files.map(|file| file.path()).find(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ld-linux"))
    })
}

/// What all gateways share.
#[derive(Clone, Debug)]
pub struct Setting {
    /// For configurations and logs.
    pub directory: PathBuf,
    /// The `tlsplice` program.
    pub binary: PathBuf,
    /// Where the next release of Debian is unpacked.
    pub next: PathBuf,
    /// What is served.
    pub certificates: Certificates,
    /// The benchmark's own origin.
    pub origin: SocketAddr,
    /// Tomcat, if it runs; else the origin again.
    pub tomcat: SocketAddr,
    /// Worker threads or processes.
    pub workers: usize,
    /// Cores they may use, as `taskset --cpu-list` takes them.
    pub cores: String,
    /// Threads of a gateway that takes one for each tunnel.
    pub threads: usize,
    /// A program that runs the gateway, with its options; none as a rule.
    pub wrapper: Vec<String>,
}

/// A running gateway. Killed when dropped.
#[derive(Debug)]
pub struct Gateway {
    process: Process,
    log: PathBuf,
    /// Where it listens.
    pub fronts: Fronts,
}

impl Gateway {
    /// Writes the configuration, starts it, and waits until it answers.
    ///
    /// # Errors
    /// When it does not; the text says where its log is.
    pub fn start(kind: &Kind, setting: &Setting) -> Result<Self> {
        let directory = setting.directory.join(kind.name().replace('/', "-"));
        fs::create_dir_all(&directory)
            .map_err(Error::io(format!("cannot make {}", directory.display())))?;
        let address = || free_port().map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let mut fronts = Fronts { tls: address()?, rsa: address()?, plain: address()? };
        match kind {
            // They have one listener with TLS; the gateway chooses the certificate by name.
            Kind::Tlsplice(_) | Kind::Another(_) | Kind::Floor(_) => fronts.rsa = fronts.tls,
            _ => {}
        }
        let fill = |template: &str| fill(template, &directory, setting, fronts, kind);
        let (template, file): (&str, &str) = match kind {
            Kind::Tlsplice(_) | Kind::Another(_) => {
                (include_str!("../rivals/tlsplice.toml"), "tlsplice.toml")
            }
            Kind::Floor(_) => ("", "none"),
            Kind::Nginx(_) => (include_str!("../rivals/nginx.conf"), "nginx.conf"),
            Kind::Haproxy(_) => (include_str!("../rivals/haproxy.cfg"), "haproxy.cfg"),
            Kind::Apache => {
                // One that was killed left its number behind, which may be another process's by now.
                let _ = fs::remove_file(directory.join("apache.pid"));
                let routes = fill(include_str!("../rivals/apache-routes.conf"));
                write(&directory.join("routes.conf"), &routes)?;
                (include_str!("../rivals/apache.conf"), "apache.conf")
            }
        };
        let file = directory.join(file);
        write(&file, &fill(template))?;
        let log = directory.join("output.log");
        let failed = || Error::io(format!("cannot write {}", log.display()));
        let output = fs::File::create(&log).map_err(failed())?;
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", &setting.cores]);
        command.args(&setting.wrapper).args(kind.program(&setting.binary, &setting.next));
        match kind {
            Kind::Tlsplice(_) | Kind::Another(_) => command.args(["run", "--config"]).arg(&file),
            Kind::Nginx(_) => command.arg("-c").arg(&file),
            Kind::Haproxy(_) => command.args(["-db", "-f"]).arg(&file),
            Kind::Apache => command.args(["-DFOREGROUND", "-f"]).arg(&file),
            Kind::Floor(floor) => {
                let addresses = [fronts.plain, fronts.tls, setting.origin];
                let files = &setting.certificates.ecdsa;
                command
                    .arg(floor.name())
                    .args(addresses.map(|address| address.to_string()))
                    .args([&files.certificate, &files.key])
            }
        };
        command.stdin(Stdio::null()).stderr(output.try_clone().map_err(failed())?).stdout(output);
        let mut process = Process::spawn(kind.name(), &mut command)?;
        let bound = if setting.wrapper.is_empty() { START } else { WRAPPED_START };
        let deadline = Instant::now() + bound;
        while TcpStream::connect(fronts.plain).is_err() || TcpStream::connect(fronts.tls).is_err() {
            let is_over = process.try_wait()?.is_some() || Instant::now() > deadline;
            if is_over {
                return Err(told(format!("{} did not start", kind.name()), &log));
            }
            thread::sleep(Duration::from_millis(20));
        }
        // These listen before they have made who works.
        let forks = matches!(kind, Kind::Nginx(_) | Kind::Apache);
        while forks && measure::tree(process.id()).len() < 2 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
        Ok(Self { process, log, fronts })
    }

    /// All its processes.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        measure::tree(self.process.id())
    }

    /// An error that met its clients, and where to find its own account of it.
    #[must_use]
    pub fn failed(&self, error: &std::io::Error) -> Error {
        told(error.to_string(), &self.log)
    }

    /// Ends it in good order; returns what it has said.
    ///
    /// # Errors
    /// When it cannot be ended, or has left no log.
    pub fn end(mut self) -> Result<String> {
        self.process.terminate(WRAPPED_START)?;
        fs::read_to_string(&self.log)
            .map_err(Error::io(format!("cannot read {}", self.log.display())))
    }

    /// Whether it has ended.
    pub fn is_over(&mut self) -> bool {
        !matches!(self.process.try_wait(), Ok(None))
    }
}

fn told(what: String, log: &Path) -> Error {
    Error::failed(format!("{what}; what the gateway said is in {}", log.display()))
}

fn fill(
    template: &str,
    directory: &Path,
    setting: &Setting,
    fronts: Fronts,
    kind: &Kind,
) -> String {
    let Certificates { ecdsa, rsa } = &setting.certificates;
    let route = if let Kind::Tlsplice(route) = kind { route.keys() } else { "" };
    let values: [(&str, &dyn std::fmt::Display); 16] = [
        ("{directory}", &directory.display()),
        ("{workers}", &setting.workers),
        ("{threads}", &setting.threads),
        ("{origin}", &setting.origin),
        ("{tomcat}", &setting.tomcat),
        ("{tls}", &fronts.tls),
        ("{rsa}", &fronts.rsa),
        ("{plain}", &fronts.plain),
        ("{route}", &route),
        ("{modules}", &APACHE_MODULES),
        ("{ecdsa_certificate}", &ecdsa.certificate.display()),
        ("{ecdsa_key}", &ecdsa.key.display()),
        ("{ecdsa_pem}", &ecdsa.pem.display()),
        ("{rsa_certificate}", &rsa.certificate.display()),
        ("{rsa_key}", &rsa.key.display()),
        ("{rsa_pem}", &rsa.pem.display()),
    ];
    values
        .iter()
        .fold(template.to_owned(), |text, (name, value)| text.replace(name, &value.to_string()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(Error::io(format!("cannot write {}", path.display())))
}
