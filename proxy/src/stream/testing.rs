//! Halves on sockets in memory, for the tests of everything that stands on streams.

use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use rustls::{CipherSuite, ClientConnection};

use super::{Fill, Reader, Writer};
use crate::buffers::Buffers;
use crate::handshake::testing;
use crate::ktls;
use crate::limits::TIMER_TICK;
use crate::timers::{Activity, Timers, Watched};
use crate::transport::Buffer;
use crate::transport::double::Double;

/// How long a [`Writer`] of these tests waits for its peer.
pub(crate) const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// What one worker has.
#[derive(Clone)]
pub(crate) struct Bench {
    pub(crate) timers: Rc<Timers<Double>>,
    pub(crate) buffers: Rc<Buffers>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self { timers: Timers::new(), buffers: Rc::new(Buffers::default()) }
    }

    /// Lets `duration` pass, and the tick by which a deadline may be late.
    pub(crate) fn advance(&self, duration: Duration) {
        self.timers.sweep_at(self.timers.now().after(duration).after(TIMER_TICK));
    }

    fn watch(&self, end: &Double) -> Rc<Watched<Double>> {
        Rc::new(self.timers.watch(end.clone(), Activity::Exchange))
    }

    /// Both halves without TLS.
    pub(crate) fn plain(&self, end: Double) -> (Reader<Double>, Writer<Double>) {
        let watch = self.watch(&end);
        let buffers = || Rc::clone(&self.buffers);
        (
            Reader::plain(Rc::clone(&watch), end.clone(), buffers()),
            Writer::plain(watch, end, buffers(), WRITE_TIMEOUT),
        )
    }

    /// Both halves without TLS of their own: records are opened and sealed below `end`, with keys that cannot be changed and
    /// have protected `records` records.
    pub(crate) fn kernel(&self, end: Double, records: u64) -> (Reader<Double>, Writer<Double>) {
        let mut client = testing::client(&testing::client_config(None, &[]));
        let done = testing::run(&mut client, testing::server(&[]), |asked| asked, b"x")
            .unwrap_or_else(|(error, _)| panic!("{error}"));
        let support = ktls::probe::Support::everything(false);
        let (opener, sealer) = ktls::kernel::handover(done.established, &end, &support)
            .unwrap_or_else(|error| panic!("{error}"));
        end.attach_records(records);
        let watch = self.watch(&end);
        let buffers = || Rc::clone(&self.buffers);
        (
            Reader::kernel(Rc::clone(&watch), end.clone(), buffers(), opener),
            Writer::kernel(watch, end, buffers(), WRITE_TIMEOUT, sealer),
        )
    }

    /// Both halves behind a handshake with the client that is returned too. `early` came with its last flight.
    pub(crate) fn tls(
        &self,
        end: Double,
        suite: Option<CipherSuite>,
        early: &[u8],
    ) -> (Reader<Double>, Writer<Double>, ClientConnection) {
        let mut client = testing::client(&testing::client_config(suite, &[]));
        let done = testing::run(&mut client, testing::server(&[]), |_| usize::MAX, early)
            .unwrap_or_else(|(error, _)| panic!("{error}"));
        let (opener, sealer) = ktls::session(done.established).expect("a known suite");
        let mut leftover = Buffer::with_capacity(done.leftover.len().max(1));
        leftover.append(done.leftover.filled());
        let watch = self.watch(&end);
        let buffers = || Rc::clone(&self.buffers);
        (
            Reader::tls(Rc::clone(&watch), end.clone(), buffers(), opener, leftover),
            Writer::tls(watch, end, buffers(), WRITE_TIMEOUT, sealer),
            client,
        )
    }
}

/// Runs to the end on this thread.
pub(crate) fn run<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, future)
}

/// Lets all tasks go on until they wait for something that does not come by itself.
pub(crate) async fn settle() {
    for _ in 0..64 {
        tokio::task::yield_now().await;
    }
}

/// Consumes everything until the end.
pub(crate) async fn read_all(reader: &mut Reader<Double>) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let fill = reader.fill().await.expect("input");
        all.extend_from_slice(reader.filled());
        let count = reader.filled().len();
        reader.consume(count);
        if let Fill::End(_) = fill {
            return all;
        }
    }
}

/// Pushes `bytes` and flushes them.
pub(crate) async fn write_all(writer: &mut Writer<Double>, bytes: &[u8]) {
    writer.push_all(bytes).await.expect("it is staged");
    writer.flush().await.expect("it is sent");
}

/// Bytes that differ everywhere, so that a loss, a repetition or a swap shows.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    (0..len as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}
