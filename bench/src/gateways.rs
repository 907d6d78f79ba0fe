//! The gateways under test: tlsplice and its rivals, each with the configuration of its experts.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tlsplice_fixtures::process::Process;
use tlsplice_fixtures::{Error, Result, free_port};

use crate::certificate::Certificates;
use crate::load::Fronts;
use crate::measure;

const START: Duration = Duration::from_secs(20);
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

/// A program that is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// This project, with the path that a byte takes in it.
    Tlsplice(Route),
    /// nginx.
    Nginx,
    /// HAProxy.
    Haproxy,
    /// Apache httpd with the event MPM.
    Apache,
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
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Apache => "apache",
        }
    }

    /// Whether it is this project.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        matches!(self, Self::Tlsplice(_))
    }

    /// What it says about its version, in one line.
    #[must_use]
    pub fn version(&self, binary: &Path) -> String {
        let (program, argument): (&Path, &str) = match self {
            Self::Tlsplice(_) => (binary, "--version"),
            Self::Nginx => (Path::new("/usr/sbin/nginx"), "-v"),
            Self::Haproxy => (Path::new("/usr/sbin/haproxy"), "-v"),
            Self::Apache => (Path::new("/usr/sbin/apache2"), "-v"),
        };
        let Ok(output) = Command::new(program).arg(argument).output() else { return String::new() };
        let text = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned()
    }
}

/// What all gateways share.
#[derive(Clone, Debug)]
pub struct Setting {
    /// For configurations and logs.
    pub directory: PathBuf,
    /// The `tlsplice` program.
    pub binary: PathBuf,
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
}

/// A running gateway. Killed when dropped.
#[derive(Debug)]
pub struct Gateway {
    process: Process,
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
        if kind.is_ours() {
            // It chooses the certificate by name, on one listener.
            fronts.rsa = fronts.tls;
        }
        let fill = |template: &str| fill(template, &directory, setting, fronts, kind);
        let (template, file): (&str, &str) = match kind {
            Kind::Tlsplice(_) => (include_str!("../rivals/tlsplice.toml"), "tlsplice.toml"),
            Kind::Nginx => (include_str!("../rivals/nginx.conf"), "nginx.conf"),
            Kind::Haproxy => (include_str!("../rivals/haproxy.cfg"), "haproxy.cfg"),
            Kind::Apache => {
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
        match kind {
            Kind::Tlsplice(_) => command.arg(&setting.binary).args(["run", "--config"]).arg(&file),
            Kind::Nginx => command.arg("nginx").arg("-c").arg(&file),
            Kind::Haproxy => command.args(["haproxy", "-db", "-f"]).arg(&file),
            Kind::Apache => command.args(["apache2", "-DFOREGROUND", "-f"]).arg(&file),
        };
        command.stdin(Stdio::null()).stderr(output.try_clone().map_err(failed())?).stdout(output);
        let mut process = Process::spawn(kind.name(), &mut command)?;
        let deadline = Instant::now() + START;
        while TcpStream::connect(fronts.plain).is_err() || TcpStream::connect(fronts.tls).is_err() {
            let is_over = process.try_wait()?.is_some() || Instant::now() > deadline;
            if is_over {
                return Err(Error::failed(format!(
                    "{} did not start; what it said is in {}",
                    kind.name(),
                    log.display()
                )));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(Self { process, fronts })
    }

    /// All its processes.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        measure::tree(self.process.id())
    }

    /// The first of its processes.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }
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
    let values: [(&str, &dyn std::fmt::Display); 15] = [
        ("{directory}", &directory.display()),
        ("{workers}", &setting.workers),
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
