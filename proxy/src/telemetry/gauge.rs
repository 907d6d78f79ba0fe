//! One connection's part of the meter: what was begun for it is ended with it.

use std::sync::Arc;

use super::meter::{Direction, Meter, Reading};

/// Measures one client's connection until it is dropped.
#[derive(Debug)]
pub struct Gauge {
    meter: Arc<Meter>,
    client: u64,
}

impl Gauge {
    /// Begins to measure the connection whose socket has this cookie. None when it cannot be measured.
    #[must_use]
    pub fn begin(meter: &Arc<Meter>, client: u64) -> Option<Self> {
        meter.begin(client).then(|| Self { meter: Arc::clone(meter), client })
    }

    /// One of a meter that is off, for this client.
    #[cfg(test)]
    pub(crate) fn idle(client: u64) -> Self {
        Self { meter: Meter::disabled("a test"), client }
    }

    /// Bytes that came this way were consumed here: nothing will leave for them.
    pub fn swallowed(&self, direction: Direction) {
        self.meter.swallowed(self.client, direction);
    }

    /// What has been measured so far.
    #[must_use]
    pub fn reading(&self) -> Option<Reading> {
        self.meter.reading(self.client)
    }

    /// The number of the connection, as the kernel knows it.
    #[must_use]
    pub fn client(&self) -> u64 {
        self.client
    }
}

impl Drop for Gauge {
    fn drop(&mut self) {
        self.meter.forget(self.client);
    }
}

/// Whose bytes an upstream connection carries. It goes along with the connection into the pool and back, so that nothing
/// is to be told to the kernel while the same client comes back to it.
#[derive(Debug, Default)]
pub struct Hitch(Option<Hitched>);

#[derive(Debug)]
struct Hitched {
    meter: Arc<Meter>,
    upstream: u64,
    client: u64,
}

impl Hitch {
    /// Whose bytes it carries, by the number that the kernel knows.
    #[must_use]
    pub fn client(&self) -> Option<u64> {
        self.0.as_ref().map(|hitched| hitched.client)
    }

    /// From now on the connection, whose cookie is asked for when it is not yet known, carries what `gauge` measures.
    pub fn to(&mut self, gauge: &Gauge, cookie: impl FnOnce() -> Option<u64>) {
        match &mut self.0 {
            Some(hitched) if hitched.client == gauge.client => {}
            Some(hitched) => {
                gauge.meter.link(gauge.client, hitched.upstream);
                hitched.client = gauge.client;
            }
            None => {
                let Some(upstream) = cookie() else { return };
                gauge.meter.link(gauge.client, upstream);
                let (meter, client) = (Arc::clone(&gauge.meter), gauge.client);
                self.0 = Some(Hitched { meter, upstream, client });
            }
        }
    }

    /// The connection carries nobody's bytes for now: a client that is not measured has it.
    pub fn release(&mut self) {
        if let Some(Hitched { meter, upstream, client }) = self.0.take() {
            meter.unlink(upstream);
            // What came last, and broke the connection, will not go on.
            meter.swallowed(client, Direction::Down);
        }
    }
}

impl Drop for Hitch {
    fn drop(&mut self) {
        self.release();
    }
}
