//! The workers from their start until they serve. Rings are made and addresses bound with the privileges that the process
//! was started with; then each thread gives up its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use tokio::sync::watch;

use super::{Event, GatewayError};
use crate::accept::Admission;
use crate::config::Config;
use crate::confine::{ConfineError, Confinement};
use crate::ktls::probe::Support;
use crate::telemetry::{Meter, WorkerCounters};
use crate::worker::{self, Orders, Started, WorkerError};

/// What all workers are given.
pub(super) struct Equipment {
    pub(super) admission: Arc<Admission>,
    pub(super) kernel_tls: Arc<Support>,
    pub(super) meter: Arc<Meter>,
    /// One for each worker.
    pub(super) counters: Vec<Arc<WorkerCounters>>,
}

/// What a worker that has its ring is told next.
enum Step {
    /// Give up what a thread has to.
    Enter(Arc<Confinement>),
    /// Accept connections.
    Serve(watch::Receiver<Orders>),
}

/// What a worker answers.
enum Report {
    Started(Started),
    Entered(Result<(), ConfineError>),
}

pub(super) type Handle = JoinHandle<Result<(), WorkerError>>;

struct Member {
    handle: Handle,
    steps: mpsc::Sender<Step>,
    reports: mpsc::Receiver<Report>,
}

/// Workers that have their rings and addresses, and do not serve yet. They end when it is dropped.
pub(super) struct Crew {
    members: Vec<Member>,
    /// What the first one reported; it takes the ports that the configuration leaves open.
    pub(super) started: Started,
}

impl Crew {
    /// Starts one worker after the other.
    pub(super) fn muster(
        config: &Config,
        equipment: &Equipment,
        events: &mpsc::Sender<Event>,
    ) -> Result<Self, GatewayError> {
        let mut addresses: Vec<SocketAddr> =
            config.listeners.iter().map(|listener| listener.address).collect();
        let cores = core_affinity::get_core_ids().unwrap_or_default();
        let mut members = Vec::new();
        let mut first = None;
        for index in 0..config.workers {
            let core = cores.get(index % cores.len().max(1)).copied();
            let member = start(index, core, addresses, equipment, events.clone())?;
            let Ok(Report::Started(started)) = member.reports.recv() else {
                return Err(lost(member.handle));
            };
            addresses = started.addresses.clone();
            first.get_or_insert(started);
            members.push(member);
        }
        Ok(Self { members, started: first.ok_or(GatewayError::WorkerLost)? })
    }

    /// Has every worker give up what a thread has to.
    pub(super) fn enter(&self, confinement: &Arc<Confinement>) -> Result<(), GatewayError> {
        for member in &self.members {
            let step = Step::Enter(Arc::clone(confinement));
            member.steps.send(step).map_err(|_| GatewayError::WorkerLost)?;
            match member.reports.recv() {
                Ok(Report::Entered(result)) => result?,
                Ok(Report::Started(_)) | Err(_) => return Err(GatewayError::WorkerLost),
            }
        }
        Ok(())
    }

    /// Has every worker accept connections.
    pub(super) fn serve(self, orders: &watch::Sender<Orders>) -> Result<Vec<Handle>, GatewayError> {
        let serve = |member: Member| {
            let step = Step::Serve(orders.subscribe());
            member.steps.send(step).map_err(|_| GatewayError::WorkerLost)?;
            Ok(member.handle)
        };
        self.members.into_iter().map(serve).collect()
    }
}

/// Tells that a worker has ended, also when a panic ended it: a gateway that lacks a worker without knowing would accept
/// less than it should, and wait for it for ever when it is to stop.
struct Farewell(mpsc::Sender<Event>);

impl Drop for Farewell {
    fn drop(&mut self) {
        // At the very end nobody asks any more.
        drop(self.0.send(Event::Ended));
    }
}

fn lost(handle: Handle) -> GatewayError {
    match handle.join() {
        Ok(Err(error)) => error.into(),
        Ok(Ok(())) | Err(_) => GatewayError::WorkerLost,
    }
}

fn start(
    index: usize,
    core: Option<core_affinity::CoreId>,
    addresses: Vec<SocketAddr>,
    equipment: &Equipment,
    events: mpsc::Sender<Event>,
) -> Result<Member, GatewayError> {
    let (steps, next_step) = mpsc::channel();
    let (answers, reports) = mpsc::channel();
    let Equipment { admission, kernel_tls, meter, counters } = equipment;
    let (admission, kernel_tls) = (Arc::clone(admission), Arc::clone(kernel_tls));
    let (meter, counters) = (Arc::clone(meter), Arc::clone(&counters[index]));
    let run = move || {
        let _farewell = Farewell(events);
        if let Some(core) = core
            && !core_affinity::set_for_current(core)
        {
            tracing::warn!("worker {index} cannot be pinned to core {}", core.id);
        }
        let started = |started| {
            answers.send(Report::Started(started)).ok()?;
            loop {
                match next_step.recv().ok()? {
                    Step::Enter(confinement) => {
                        answers.send(Report::Entered(confinement.enter())).ok()?;
                    }
                    Step::Serve(orders) => return Some(orders),
                }
            }
        };
        worker::run(&addresses, &admission, &kernel_tls, &meter, &counters, started)
    };
    let handle = thread::Builder::new().name(format!("worker-{index}")).spawn(run)?;
    Ok(Member { handle, steps, reports })
}
