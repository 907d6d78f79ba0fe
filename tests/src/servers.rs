use std::fs;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;
use tlsplice_fixtures::process::Process;
use tlsplice_fixtures::{free_port, packages};

use crate::origin::{Connection, Origin};
use crate::wait_for;

/// A server that reads whole requests before it answers them, and writes down what it made of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// nginx.
    Nginx,
    /// Apache httpd.
    Apache,
}

/// A running one, with an application behind it. Killed when dropped.
pub struct Server {
    directory: TempDir,
    address: SocketAddr,
    _application: Origin,
    _process: Process,
}

impl Kind {
    /// What people call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Apache => "Apache",
        }
    }

    fn package(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Apache => "apache2-bin",
        }
    }

    fn program(self) -> &'static Path {
        Path::new(match self {
            Self::Nginx => "/usr/sbin/nginx",
            Self::Apache => "/usr/sbin/apache2",
        })
    }

    /// Its configuration: everything goes to the application, and bodies are read to their end before.
    fn configuration(self, directory: &Path, own: SocketAddr, application: SocketAddr) -> String {
        let directory = directory.display();
        match self {
            Self::Nginx => format!(
                "daemon off;\nworker_processes 1;\npid {directory}/pid;\nerror_log {directory}/errors crit;\n\
                 events {{ worker_connections 512; }}\n\
                 http {{\n\
                 log_format requests '$request_method $request_uri $status';\n\
                 access_log {directory}/access requests;\n\
                 client_max_body_size 0;\nlarge_client_header_buffers 8 128k;\nmerge_slashes off;\n\
                 client_body_temp_path {directory}/body;\nproxy_temp_path {directory}/proxy;\n\
                 fastcgi_temp_path {directory}/fastcgi;\nuwsgi_temp_path {directory}/uwsgi;\n\
                 scgi_temp_path {directory}/scgi;\n\
                 server {{\nlisten {own};\nlocation / {{ proxy_pass http://{application}; }}\n}}\n}}\n"
            ),
            Self::Apache => {
                let modules: String = ["mpm_event", "authz_core", "env", "proxy", "proxy_http"]
                    .map(|name| {
                        format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n")
                    })
                    .concat();
                format!(
                    "ServerRoot {directory}\nServerName localhost\nPidFile {directory}/pid\n\
                     DefaultRuntimeDir {directory}\nMutex pthread\nErrorLog {directory}/errors\nLogLevel crit\n\
                     User nobody\nGroup nogroup\n{modules}\
                     StartServers 1\nMinSpareThreads 1\nLimitRequestLine 131072\nLimitRequestFieldSize 131072\n\
                     MaxKeepAliveRequests 0\nAllowEncodedSlashes NoDecode\n\
                     LogFormat \"%r %>s\" requests\nCustomLog {directory}/access requests\n\
                     SetEnv proxy-sendcl 1\nSetEnv proxy-nokeepalive 1\n\
                     ProxyRequests Off\nProxyPass / http://{application}/ nocanon\nListen {own}\n"
                )
            }
        }
    }
}

impl Server {
    /// Installs it where it is missing, and starts it.
    ///
    /// # Errors
    /// Why it cannot be installed.
    ///
    /// # Panics
    /// When it is there and does not start.
    pub fn start(kind: Kind) -> Result<Self, String> {
        if !kind.program().exists() {
            packages::ensure(&[kind.package()]).map_err(|error| error.to_string())?;
        }
        let application = Origin::start(application);
        let directory = tempfile::tempdir().expect("a directory");
        let address = SocketAddr::from(([127, 0, 0, 1], free_port().expect("a port")));
        let file = directory.path().join("server.conf");
        let text = kind.configuration(directory.path(), address, application.address());
        fs::write(&file, text).expect("it can be written");
        let output = fs::File::create(directory.path().join("said")).expect("it can be written");
        let mut command = Command::new(kind.program());
        match kind {
            Kind::Nginx => command.arg("-c").arg(&file),
            Kind::Apache => command.args(["-DFOREGROUND", "-f"]).arg(&file),
        };
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
        let mut process = Process::spawn(kind.name(), &mut command).expect("it can be run");
        let is_up = wait_for("the start of the server", || {
            let is_over = !matches!(process.try_wait(), Ok(None));
            if is_over { Some(false) } else { TcpStream::connect(address).ok().map(|_| true) }
        });
        let said = || fs::read_to_string(directory.path().join("said")).unwrap_or_default();
        assert!(is_up, "{} does not start: {}", kind.name(), said());
        Ok(Self { directory, address, _application: application, _process: process })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Method, target and status of the requests so far, as it understood them.
    #[must_use]
    pub fn access_log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.directory.path().join("access")).unwrap_or_default();
        // A line that is still being written has no end.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(ToOwned::to_owned).collect()
    }
}

/// Reads each request to its end; whoever is in front of it has made its length certain.
fn application(connection: &mut Connection) -> io::Result<()> {
    loop {
        let head = connection.request()?;
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
        });
        connection.take(length.unwrap_or(0))?;
        if head.starts_with("HEAD ") {
            connection.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n")?;
        } else {
            connection.respond("x")?;
        }
    }
}
