//! What measuring costs: instructions, time per packet, CPU per request with and without it.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use tlsplice_fixtures::process::Process;
use tlsplice_fixtures::{Error, Result};

use crate::{profile, tools};

/// Requests of one round.
const REQUESTS: u32 = 2_000;

/// Rounds of each kind, taken in turns so that a busy machine disturbs both alike.
const ROUNDS: usize = 40;

const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\n\
    0123456789012345678901234567890123456789012345678901234567890123";

/// A program that does nothing reads so much in the kernel's statistics, which is their own cost; measured on Linux 6.18.
const EMPTY_NS: u64 = 60;

/// Prints everything.
pub(super) fn print() -> Result<ExitCode> {
    profile::build_release(&[])?;
    let origin = serve()?;
    let with = Gateway::start(origin, "auto")?;
    let without = Gateway::start(origin, "off")?;
    let mut cpu = [Vec::new(), Vec::new()];
    let mut all = [Vec::new(), Vec::new()];
    for round in 0..=ROUNDS {
        for (index, gateway) in [&with, &without].into_iter().enumerate() {
            let (gateway_ns, all_ns) = gateway.round()?;
            // The first one warms up.
            if round > 0 {
                cpu[index].push(gateway_ns);
                all[index].push(all_ns);
            }
        }
    }
    // The kernel's statistics cost more than what they measure: they come last.
    let statistics = enable_stats(Stats::RunTime)
        .map_err(|error| Error::failed(format!("no statistics of programs: {error}")))?;
    with.round()?;
    drop(statistics);
    println!("| Program | Instructions | Verified | Runs | ns per run | net of an empty program |");
    println!("|---|---|---|---|---|---|");
    for program in loaded_programs().flatten() {
        let name = program.name_as_str().unwrap_or_default().to_owned();
        let runs = program.run_count();
        if !name.starts_with("tlsplice_") || runs == 0 {
            continue;
        }
        let each = u64::try_from(program.run_time().as_nanos()).unwrap_or(u64::MAX) / runs;
        println!(
            "| `{name}` | {} | {} | {runs} | {each} | {} |",
            program.size_translated().unwrap_or(0) / 8,
            program.verified_instruction_count().unwrap_or(0),
            each.saturating_sub(EMPTY_NS),
        );
    }
    println!(
        "\nCPU per request, median of {ROUNDS} interleaved rounds of {REQUESTS} (least to most):\n"
    );
    println!("| | with | without | difference of neighbouring rounds |");
    println!("|---|---|---|---|");
    for (name, rounds) in [("gateway", &cpu), ("gateway, client and upstream", &all)] {
        let difference = difference(&rounds[0], &rounds[1]);
        println!("| {name} | {} | {} | {difference} |", figures(&rounds[0]), figures(&rounds[1]));
    }
    Ok(ExitCode::SUCCESS)
}

/// The median of what a round with cost more than the one without beside it, in microseconds per request. It bears what
/// changes slowly, such as the speed of a busy machine.
fn difference(with: &[u64], without: &[u64]) -> String {
    let mut each: Vec<i128> = with
        .iter()
        .zip(without)
        .map(|(with, without)| i128::from(*with) - i128::from(*without))
        .collect();
    each.sort_unstable();
    let tenths = each.get(each.len() / 2).copied().unwrap_or(0) / i128::from(REQUESTS) / 100;
    let sign = if tenths < 0 { "-" } else { "+" };
    format!("{sign}{}.{} µs", tenths.abs() / 10, tenths.abs() % 10)
}

/// Median, least and most in microseconds per request.
fn figures(rounds: &[u64]) -> String {
    let mut sorted = rounds.to_vec();
    sorted.sort_unstable();
    let each = |ns: u64| {
        let tenths = ns / u64::from(REQUESTS) / 100;
        format!("{}.{}", tenths / 10, tenths % 10)
    };
    let (Some(&least), Some(&most)) = (sorted.first(), sorted.last()) else { return String::new() };
    format!("{} µs ({} to {})", each(sorted[sorted.len() / 2]), each(least), each(most))
}

struct Gateway {
    process: Process,
    address: SocketAddr,
}

impl Gateway {
    fn start(origin: SocketAddr, flush_latency: &str) -> Result<Self> {
        let file = tools::target().join(format!("ebpf/cost-{flush_latency}.toml"));
        let text = format!(
            "workers = 1\n[[listener]]\naddress = \"127.0.0.1:0\"\nservice = \"http\"\n\
             [[route]]\nupstream = \"http://{origin}\"\n[telemetry]\nflush_latency = \"{flush_latency}\"\n"
        );
        let io = || Error::io(format!("cannot write {}", file.display()));
        fs::create_dir_all(file.parent().unwrap_or(Path::new("."))).map_err(io())?;
        fs::write(&file, text).map_err(io())?;
        let mut command = Command::new(profile::gateway());
        command.arg("run").arg("--config").arg(&file).stderr(Stdio::piped());
        let mut process = Process::spawn("the gateway", &mut command)?;
        let stderr = process.child_mut().stderr.take();
        let stderr = stderr.ok_or_else(|| Error::failed("the gateway has no standard error"))?;
        let mut address = None;
        let mut lines = BufReader::new(stderr).lines();
        for line in lines.by_ref().map_while(std::result::Result::ok) {
            let word = |after: &str| line.trim_start().strip_prefix(after).map(str::trim_start);
            if let Some(place) = word("listening") {
                address = place
                    .strip_prefix("http://")
                    .and_then(|place| place.split(' ').next()?.parse().ok());
            }
            if let Some(state) = word("eBPF") {
                if flush_latency == "auto" && state.starts_with("off") {
                    return Err(Error::failed(format!("eBPF {state}")));
                }
                break;
            }
        }
        // A gateway whose diagnostics nobody reads would end at the first one.
        thread::spawn(move || lines.for_each(drop));
        let address = address.ok_or_else(|| Error::failed("the gateway named no address"))?;
        Ok(Self { process, address })
    }

    /// Makes requests; returns the CPU time of the gateway, and that of all who took part, in nanoseconds. What a
    /// packet costs on its arrival is the sender's on a loopback.
    fn round(&self) -> Result<(u64, u64)> {
        let own = std::process::id();
        let before = (cpu_ns(self.process.id())?, cpu_ns(own)?);
        requests(self.address).map_err(Error::io("a request failed"))?;
        let gateway = cpu_ns(self.process.id())? - before.0;
        Ok((gateway, gateway + cpu_ns(own)? - before.1))
    }
}

/// CPU time of all threads of a process so far.
fn cpu_ns(process: u32) -> Result<u64> {
    let tasks = fs::read_dir(format!("/proc/{process}/task"));
    let tasks = tasks.map_err(Error::io("cannot read the threads of a process"))?;
    let of = |task: fs::DirEntry| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    Ok(tasks.flatten().filter_map(of).sum())
}

fn requests(address: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    for _ in 0..REQUESTS {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")?;
        until(&mut stream, &RESPONSE[RESPONSE.len() - 64..])?;
    }
    Ok(())
}

/// An upstream that gives everybody the same response.
fn serve() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let listener = listener.map_err(Error::io("no port is free"))?;
    let address = listener.local_addr().map_err(Error::io("no port is free"))?;
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(std::result::Result::ok) {
            thread::spawn(move || {
                let _ = stream.set_nodelay(true);
                while until(&mut stream, b"\r\n\r\n").is_ok() {
                    if stream.write_all(RESPONSE).is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok(address)
}

fn until(stream: &mut TcpStream, end: &[u8]) -> std::io::Result<()> {
    let (mut received, mut piece) = (Vec::new(), [0; 4096]);
    while !received.ends_with(end) {
        match stream.read(&mut piece)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            count => received.extend_from_slice(&piece[..count]),
        }
    }
    Ok(())
}
