//! The gateway with one worker that gives nothing up, for valgrind: that knows no seccomp(2), without which the gateway
//! does not serve, and its own system calls are not among those that are left afterwards. What a worker does with a byte
//! is the same. For measurements only: nothing protects the system from this program.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use signal_hook::consts::SIGTERM;
use tlsplice::accept::Admission;
use tlsplice::config::Config;
use tlsplice::generation::Shared;
use tlsplice::ktls::probe::Support;
use tlsplice::telemetry::{Meter, WorkerCounters};
use tlsplice::worker::{self, Orders, Phase};
use tlsplice::{confine, sys, uring};
use tlsplice_fixtures::{Error, Result};
use tokio::sync::watch;

/// How often it is looked whether to end.
const TICK: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let [run, option, file] = &arguments[..] else {
        eprintln!("usage: tlsplice-unconfined run --config FILE");
        return ExitCode::from(2);
    };
    if run != "run" || option != "--config" {
        eprintln!("there is nothing but `run --config FILE`");
        return ExitCode::from(2);
    }
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    match serve(Path::new(file)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until SIGTERM, and then to the end of what was begun.
fn serve(file: &Path) -> Result<()> {
    let config = Config::load(file).map_err(|report| Error::failed(report.render(false)))?.config;
    confine::raise_locked_memory();
    let descriptors = sys::raise_descriptors_max().map_err(Error::io("no limit of descriptors"))?;
    let is_ended = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGTERM, Arc::clone(&is_ended))
        .map_err(Error::io("cannot await signals"))?;
    let admission = Admission::new(&config.limits, descriptors);
    let kernel_tls = Arc::new(Support::probe());
    let meter = Meter::start(admission.connections_max());
    let counters = WorkerCounters::new(0);
    let addresses: Vec<SocketAddr> =
        config.listeners.iter().map(|listener| listener.address).collect();
    let shared = Shared::new(config).map_err(Error::io("cannot serve"))?;
    // Kept until the worker has ended: of an order whose sender has gone it takes no notice.
    let orders = Arc::new(watch::Sender::new(Orders { shared, phase: Phase::Serving }));
    let sender = Arc::clone(&orders);
    // On the thread of the worker: valgrind lets one thread run at a time, and none beside one that waits in its ring.
    let started = |_| {
        let taken = orders.subscribe();
        uring::spawn(async move {
            while !is_ended.load(Ordering::Relaxed) {
                uring::sleep(TICK).await;
                // To valgrind, waiting in a ring is no call that may wait, and signals come in one that may.
                thread::sleep(Duration::from_nanos(1));
            }
            sender.send_modify(|orders| orders.phase = Phase::Draining);
        });
        Some(taken)
    };
    worker::run(&addresses, &admission, &kernel_tls, &meter, &counters, started)
        .map_err(|error| Error::failed(error.to_string()))
}
