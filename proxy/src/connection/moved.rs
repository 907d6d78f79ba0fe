//! How payload was moved, and why not otherwise.

use super::session::Session;
use crate::config::Splice;
use crate::message::framing::Framing;
use crate::pool::Lease;
use crate::telemetry::{CopyReason, DataPath, Record, TlsPath};
use crate::transport::Transport;

/// What was spliced so far, and how often there was no pipe for it.
pub(super) struct Moved {
    spliced: u64,
    without_pipe: u64,
}

impl Moved {
    pub(super) fn until_now<T: Transport>(session: &Session<T>, lease: &Lease<T>) -> Self {
        let (up, down) = (&lease.connection.writer, &session.writer);
        let without_pipe = up.without_pipe() + down.without_pipe();
        Self { spliced: up.spliced() + down.spliced(), without_pipe }
    }

    /// Notes how payload has been moved since, in a response framed so.
    pub(super) fn tell<T: Transport>(
        &self,
        session: &Session<T>,
        lease: &Lease<T>,
        response: Framing,
        record: &mut Record,
    ) {
        let now = Self::until_now(session, lease);
        (record.path, record.path_reason) = if now.spliced != self.spliced {
            (DataPath::Splice, None)
        } else if session.splice == Splice::Never {
            (DataPath::Copy, Some(CopyReason::Configured))
        } else if session.tls == TlsPath::User {
            (DataPath::Copy, Some(CopyReason::UserTls))
        } else if now.without_pipe != self.without_pipe {
            (DataPath::Copy, Some(CopyReason::NoPipe))
        } else if response == Framing::UntilClose {
            (DataPath::Copy, Some(CopyReason::UnknownLength))
        } else {
            (DataPath::Copy, Some(CopyReason::NotBulk))
        };
    }
}
