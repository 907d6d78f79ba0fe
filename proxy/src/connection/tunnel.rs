//! The tunnel that an upgrade opens: bytes both ways, for hours, in as little memory as that takes. It begins when
//! everything that its request needed is gone.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::moved::Moved;
use super::session::Session;
use super::{After, Core, KEY_WORN, count, write_record};
use crate::error::Fault;
use crate::generation::Generation;
use crate::message::framing::Framing;
use crate::pool::{Lease, Network};
use crate::relay::{self, Ending, Gaps};
use crate::telemetry::{Doing, Kind, Outcome, Record};
use crate::timers::Activity;

/// A tunnel that was agreed upon.
pub(super) struct Tunnel<N: Network> {
    /// The configuration of its request.
    pub generation: Rc<Generation<N>>,
    /// The upstream's end.
    pub lease: Lease<N::Io>,
    /// What is written when it is over.
    pub record: Record,
    /// When its request began.
    pub start: Instant,
}

impl<N: Network> Tunnel<N> {
    /// Both directions without looking, until both have ended.
    pub(super) async fn run(
        mut self: Box<Self>,
        core: &Core<N>,
        session: &mut Session<N::Io>,
    ) -> After {
        let after = self.relay(session).await;
        let Self { generation, lease, mut record, start } = *self;
        drop(lease);
        record.total = start.elapsed();
        count(core, &generation, &record);
        write_record(&generation, &mut record, session.gauge.as_deref());
        after
    }

    async fn relay(&mut self, session: &mut Session<N::Io>) -> After {
        let Self { generation, lease, record, .. } = self;
        let routes = &generation.shared.config.routes;
        let idle_timeout = routes[record.route_index.unwrap_or_default()].tunnel_idle_timeout;
        record.kind = Kind::Tunnel;
        session.watch.set_activity(Activity::Tunnel);
        session.live.set_doing(Doing::Tunnel);
        let (read_before, sent_before) = (session.reader.count(), session.writer.count());
        let before = Moved::until_now(session, lease);
        let watch = Rc::clone(&session.watch);
        let gaps = Gaps::counting(watch.now(), Arc::clone(&session.live.risk));
        let result = relay::tunnel(
            (&mut session.reader, &mut session.writer),
            (&mut lease.connection.reader, &mut lease.connection.writer),
            idle_timeout,
            &gaps,
        )
        .await;
        gaps.on_bytes(watch.now());
        record.unstable_risk = Some(gaps.risk());
        watch.receive_at_leisure();
        record.bytes_in = session.reader.count() - read_before;
        record.bytes_out = session.writer.count() - sent_before;
        before.tell(session, lease, Framing::None, record);
        match result {
            Ok(ending) => {
                record.outcome = match ending {
                    Ending::Closed => Outcome::Complete,
                    Ending::Idle => Outcome::Idle,
                    Ending::Drained => Outcome::Drained,
                    Ending::KeyWorn => {
                        tracing::info!(client = %record.client, "{KEY_WORN}");
                        Outcome::KeyWorn
                    }
                };
                After::Close
            }
            Err(error) => {
                lease.abandon();
                record.upstream = Some(lease.endpoint().to_owned());
                record.outcome = Outcome::Aborted;
                record.fault = Some(error.fault(Fault::Downstream, Fault::Upstream));
                record.reason = Some(format!("the tunnel: {error}"));
                After::Abort
            }
        }
    }
}
