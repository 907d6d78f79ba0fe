//! A private gateway, of this program and with the certificate of the configuration, between a client and an origin of
//! the doctor's own: whether chunks keep their cadence and claims of clients are dropped can be seen only from both ends,
//! whatever the application is.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};
use std::{fs, process};

use toml::de::DeTable;
use tungstenite::handshake::derive_accept_key;

use super::client::{Client, upgrade};
use super::{Finding, TIMEOUT};

/// Chunks that are sent, and the pause between them.
const CHUNKS: usize = 25;
const CADENCE: Duration = Duration::from_millis(20);

/// How long the private gateway may take to start: it asks the kernel everything that a gateway asks.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// An address that no client of this trial has (RFC 5737).
const FORGED: &str = "203.0.113.66";

/// Runs the whole trial.
pub(super) fn examine(config: &Path) -> Vec<Finding> {
    let (topic, cost) = ("trial", "flushing and identity could not be tried");
    let result = Origin::start().and_then(|origin| {
        let gateway = PrivateGateway::start(config, origin.address)?;
        Ok(vec![
            websocket(talk(gateway.address)),
            cadence(chunks(gateway.address, &origin)),
            identity(claims(gateway.address)),
        ])
    });
    result.unwrap_or_else(|error| {
        let fact = format!("a private gateway could not be tried: {error}");
        vec![Finding::warn(topic, fact, cost, "tlsplice check --config FILE, as the same user")]
    })
}

/// Answers `/echo` with a WebSocket, `/chunks` with chunks in cadence, and everything else with the head it received.
struct Origin {
    address: SocketAddr,
    /// When each chunk was sent.
    sent: mpsc::Receiver<Instant>,
}

impl Origin {
    fn start() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let (sender, sent) = mpsc::channel();
        // It ends with the process; a command has no other end.
        thread::Builder::new().name("origin".into()).spawn(move || {
            for stream in listener.incoming().flatten() {
                let sender = sender.clone();
                // A connection that breaks is seen at the client's end.
                thread::spawn(move || drop(serve(stream, &sender)));
            }
        })?;
        Ok(Self { address, sent })
    }
}

fn serve(mut stream: TcpStream, sent: &mpsc::Sender<Instant>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.extend_from_slice(&byte);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    if head.starts_with("GET /websocket-tunnel ") {
        let key = field(&head, "sec-websocket-key").unwrap_or_default();
        let accept = derive_accept_key(key.as_bytes());
        write!(
            stream,
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: guacamole\r\n\r\n"
        )?;
        let mut reader = stream.try_clone()?;
        return io::copy(&mut reader, &mut stream).map(drop);
    }
    if head.starts_with("GET /chunks ") {
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        for _ in 0..CHUNKS {
            thread::sleep(CADENCE);
            // The doctor may have given up.
            let _ = sent.send(Instant::now());
            stream.write_all(b"1\r\nx\r\n")?;
        }
        return stream.write_all(b"0\r\n\r\n");
    }
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{head}", head.len())
}

/// The value of a field of a head, whatever the case of its name.
fn field<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    let mut fields = head.lines().filter_map(|line| line.split_once(':'));
    fields.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

/// A gateway of this program. Killed, and its file removed, when dropped.
struct PrivateGateway {
    process: Child,
    file: PathBuf,
    address: SocketAddr,
}

impl PrivateGateway {
    fn start(config: &Path, origin: SocketAddr) -> io::Result<Self> {
        let text = fs::read_to_string(config)?;
        let directory = config
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let (certificate, key) = identity_files(&text, directory)
            .ok_or_else(|| io::Error::other("the configuration names no certificate"))?;
        let text = format!(
            "workers = 1\n[[listener]]\naddress = \"127.0.0.1:0\"\n[tls]\ncertificate = {certificate:?}\n\
             key = {key:?}\n[[route]]\nupstream = \"http://{origin}\"\napp = \"guacamole\"\n"
        );
        let file = std::env::temp_dir().join(format!("tlsplice-doctor-{}.toml", process::id()));
        // Somebody else's file or link of that name must not be written to.
        fs::File::create_new(&file)?.write_all(text.as_bytes())?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("run").arg("--config").arg(&file).env_remove("TLSPLICE_LOG");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let started = command.spawn();
        let mut process = match started {
            Ok(process) => process,
            Err(error) => {
                drop(fs::remove_file(&file));
                return Err(error);
            }
        };
        let stderr = process.stderr.take();
        let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let mut gateway = Self { process, file, address: nowhere };
        let (sender, addresses) = mpsc::channel();
        thread::spawn(move || {
            // Read to the end, so that it is never held up.
            for line in stderr
                .into_iter()
                .flat_map(|stderr| BufReader::new(stderr).lines().map_while(Result::ok))
            {
                drop(sender.send(line));
            }
        });
        let deadline = Instant::now() + START_TIMEOUT;
        let mut last = String::new();
        loop {
            match addresses.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    match line.split_once("https://").and_then(|(_, rest)| rest.parse().ok()) {
                        Some(address) => {
                            gateway.address = address;
                            return Ok(gateway);
                        }
                        None => last = line,
                    }
                }
                Err(_) => return Err(io::Error::other(format!("it does not start: {last}"))),
            }
        }
    }
}

impl Drop for PrivateGateway {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.process.kill());
        drop(self.process.wait());
        drop(fs::remove_file(&self.file));
    }
}

/// Certificate and key of `[tls]`, else of its first site, from the directory of the file.
fn identity_files(text: &str, directory: &Path) -> Option<(PathBuf, PathBuf)> {
    let document = DeTable::parse(text).ok()?;
    let tls = document.get_ref().get("tls")?.get_ref().as_table()?;
    let site = || tls.get("site")?.get_ref().as_array()?.first()?.get_ref().as_table();
    let table = if tls.contains_key("certificate") { tls } else { site()? };
    let path = |name: &str| Some(table.get(name)?.get_ref().as_str()?.to_owned());
    let directory = std::path::absolute(directory).ok()?;
    Some((directory.join(path("certificate")?), directory.join(path("key")?)))
}

/// Status and subprotocol of an upgrade, and whether bytes came back.
fn talk(address: SocketAddr) -> io::Result<(u16, Option<String>)> {
    let mut client = Client::connect(address, "localhost")?;
    client.send(upgrade("localhost", "/websocket-tunnel").as_bytes())?;
    let head = client.head()?;
    client.send(b"\x81\x84\0\0\0\0ping")?;
    client.until(b"ping")?;
    Ok((head.status, head.field("sec-websocket-protocol").map(str::to_owned)))
}

fn websocket(talked: io::Result<(u16, Option<String>)>) -> Finding {
    let topic = "websocket";
    match talked {
        Ok((101, Some(protocol))) if protocol == "guacamole" => {
            Finding::ok(topic, "a private gateway: 101, subprotocol echoed, bytes both ways")
        }
        Ok(other) => broken(topic, &format!("an upgrade was answered with {other:?}")),
        Err(error) => broken(topic, &format!("a WebSocket does not work: {error}")),
    }
}

fn broken(topic: &'static str, fact: &str) -> Finding {
    let fact = format!("a private gateway: {fact}");
    Finding::fail(topic, fact, "Guacamole does not work", "report it: this is a fault of tlsplice")
}

/// How long each chunk took from the origin's write to the client's read, shortest first.
fn chunks(address: SocketAddr, origin: &Origin) -> io::Result<Vec<Duration>> {
    let mut client = Client::connect(address, "localhost")?;
    client.send(b"GET /chunks HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    client.head()?;
    let mut delays = Vec::with_capacity(CHUNKS);
    for _ in 0..CHUNKS {
        client.until(b"x\r\n")?;
        let arrived = Instant::now();
        let sent = origin.sent.recv_timeout(TIMEOUT).map_err(io::Error::other)?;
        delays.push(arrived.saturating_duration_since(sent));
    }
    delays.sort_unstable();
    Ok(delays)
}

/// A chunk that is held back arrives with the next one, a whole pause later.
fn cadence(delays: io::Result<Vec<Duration>>) -> Finding {
    let topic = "cadence";
    let delays = match delays {
        Ok(delays) => delays,
        Err(error) => return broken(topic, &format!("chunks do not come through: {error}")),
    };
    let middle = delays.get(delays.len() / 2).copied().unwrap_or_default();
    let longest = delays.last().copied().unwrap_or_default();
    let shown = |delay: Duration| format!("{:.1} ms", delay.as_secs_f64() * 1e3);
    let fact = format!(
        "{} chunks of 1 byte, {} ms apart, were late by {} (median) and {} (longest)",
        delays.len(),
        CADENCE.as_millis(),
        shown(middle),
        shown(longest)
    );
    match (middle < CADENCE, longest < CADENCE) {
        (true, true) => Finding::ok(topic, fact),
        (true, false) => Finding::warn(
            topic,
            fact,
            "now and then a frame is late",
            "find what takes the CPU: top, and vmstat 1 for time stolen by the host",
        ),
        (false, _) => Finding::fail(
            topic,
            fact,
            "every frame is late",
            "find what takes the CPU: top, and vmstat 1 for time stolen by the host",
        ),
    }
}

/// The head that the origin gets for a request full of claims.
fn claims(address: SocketAddr) -> io::Result<String> {
    let mut client = Client::connect(address, "localhost")?;
    let request = format!(
        "GET /claims HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: {FORGED}\r\nForwarded: for={FORGED}\r\n\
         X-Real-IP: {FORGED}\r\nX-Forwarded-Proto: {FORGED}\r\nREMOTE_USER: {FORGED}\r\n\
         X-Client-Verified: {FORGED}\r\n\r\n"
    );
    client.send(request.as_bytes())?;
    client.head()?;
    client.until(b"\r\n\r\n")
}

fn identity(seen: io::Result<String>) -> Finding {
    let topic = "identity";
    let seen = match seen {
        Ok(seen) => seen,
        Err(error) => return broken(topic, &format!("a request is not answered: {error}")),
    };
    let forged: Vec<&str> = seen.lines().filter(|line| line.contains(FORGED)).collect();
    let address = field(&seen, "x-forwarded-for").unwrap_or("nothing");
    match (forged.is_empty(), address, field(&seen, "x-forwarded-proto")) {
        (true, "127.0.0.1", Some("https")) => Finding::ok(
            topic,
            "forged X-Forwarded-For and REMOTE_USER are dropped, the true ones told",
        ),
        _ => broken(topic, &format!("claims of a client come through: {forged:?}, from {address}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn the_files_are_those_of_tls_or_of_its_first_site() {
        let directory = Path::new("/etc/t");
        let files = |text: &str| identity_files(text, directory);
        let pair = |a: &str, b: &str| Some((PathBuf::from(a), PathBuf::from(b)));
        assert_eq!(
            files("[tls]\ncertificate = \"a.pem\"\nkey = \"/k.pem\"\n"),
            pair("/etc/t/a.pem", "/k.pem")
        );
        assert_eq!(
            files("[[tls.site]]\ncertificate = \"b.pem\"\nkey = \"b.key\"\n"),
            pair("/etc/t/b.pem", "/etc/t/b.key")
        );
        assert_eq!(files("[[listener]]\naddress = \"0.0.0.0:80\"\n"), None);
    }

    #[test]
    fn late_chunks_are_found() {
        let late = |middle, longest| {
            let mut delays = vec![Duration::from_millis(middle); 9];
            delays.push(Duration::from_millis(longest));
            cadence(Ok(delays)).verdict
        };
        assert_eq!(late(1, 3), Verdict::Ok);
        assert_eq!(late(1, 45), Verdict::Warn);
        assert_eq!(late(40, 45), Verdict::Fail);
    }

    #[test]
    fn a_claim_that_comes_through_is_a_failure() {
        let head = |rest: &str| {
            let head = format!(
                "GET / HTTP/1.1\r\nx-forwarded-for: 127.0.0.1\r\nx-forwarded-proto: https\r\n{rest}\r\n"
            );
            identity(Ok(head)).verdict
        };
        assert_eq!(head(""), Verdict::Ok);
        assert_eq!(head("REMOTE_USER: 203.0.113.66\r\n"), Verdict::Fail);
        assert_eq!(identity(Ok("GET / HTTP/1.1\r\n\r\n".into())).verdict, Verdict::Fail);
    }
}
