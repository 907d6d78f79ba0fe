//! Input that comes in bulk: what has come is taken when it is forwarded, and not before.
//!
//! Of transfers that take turns ([`crate::turnstile`]), each would find its bytes outside the processor's cache when its turn comes,
//! had they been received when they came. So nobody here waits with a buffer: one that a transfer has just forwarded from is warm, and
//! is the next one's.

use super::records::Layer;
use super::{Demand, Fill, Reader};
use crate::buffers::Class;
use crate::limits::REST_BYTES_MIN;
use crate::stream::StreamError;
use crate::transport::Transport;

impl<T: Transport> Reader<T> {
    /// Whether much has come that nobody has taken yet: it is for [`Reader::take_rest`], a long step.
    #[must_use]
    pub fn has_rest(&self) -> bool {
        self.has_rest
    }

    /// Notes as a rest what presumably was left, because the last receive got all that it asked for; whether there is any. The
    /// kernel is not asked.
    pub fn note_rest(&mut self) -> bool {
        let leaves_more = std::mem::take(&mut self.leaves_more);
        self.has_rest = leaves_more && self.plain == 0 && self.end.is_none();
        self.has_rest
    }

    /// Takes, without waiting, what has come in bulk. Who forwards it does that at once, while the processor's cache has it.
    ///
    /// # Errors
    /// As [`Reader::fill`].
    pub fn take_rest(&mut self) -> Result<(), StreamError> {
        if std::mem::take(&mut self.has_rest) { self.receive_bulk() } else { Ok(()) }
    }

    /// Waits as [`Reader::fill`] does. Of what comes in bulk it takes nothing when it is much, and then has a rest. No buffer is
    /// pinned meanwhile.
    ///
    /// # Errors
    /// As [`Reader::fill`].
    pub async fn fill_or_rest(&mut self) -> Result<Fill, StreamError> {
        // Linux 6.1 reports a socket whose records the kernel opens as readable though nothing can be received.
        let tells_readiness = !matches!(self.layer, Layer::Kernel(_));
        let is_free = self.in_flight.is_none() && self.plain == 0 && self.failure.is_none();
        if self.is_bulk() && tells_readiness && is_free {
            // On the heap, because a tunnel keeps room for what is here as long as it lives.
            Box::pin(self.wait_for_bulk()).await
        } else {
            self.fill().await
        }
    }

    async fn wait_for_bulk(&mut self) -> Result<Fill, StreamError> {
        loop {
            if let Some(end) = self.end {
                return Ok(Fill::End(end));
            }
            self.pin_little();
            if self.note_rest() {
                return Ok(Fill::Data);
            }
            self.readable().await?;
            if self.io.holds(REST_BYTES_MIN) {
                self.has_rest = true;
                return Ok(Fill::Data);
            }
            self.receive_bulk()?;
            if self.plain > 0 {
                return Ok(Fill::Data);
            }
            self.tell_swallowed();
        }
    }

    /// Gives the buffer away, but for a part of a record that it holds.
    fn pin_little(&mut self) {
        let kept = self.buffer.len() - self.wire;
        let class = Class::holding(kept);
        if kept == 0 {
            self.wire = 0;
            self.buffers.give(std::mem::take(&mut self.buffer));
        } else if class.bytes() < self.buffer.capacity() {
            self.move_to(class);
        }
    }

    /// Receives into a buffer for bulk, without waiting.
    fn receive_bulk(&mut self) -> Result<(), StreamError> {
        self.buffer.consume(self.wire);
        self.wire = 0;
        if self.buffer.is_empty() {
            self.buffers.give(std::mem::take(&mut self.buffer));
        }
        if self.buffer.capacity() < Class::Bulk.bytes() {
            self.move_to(Class::Bulk);
        } else {
            self.buffer.compact();
        }
        let record_len = usize::from(self.record_len);
        let count = whole_records(self.buffer.len(), self.buffer.spare(), record_len);
        let result = self.io.try_recv(&mut self.buffer, count);
        self.leaves_more = result.as_ref().is_ok_and(|&received| received == count);
        self.on_received(result, Demand::Everything)?;
        self.open_records()
    }
}

/// How much to receive behind `kept` bytes of a record into `spare` bytes: where all records are as long as the last one, which had
/// `record_len` bytes, no part of one, which would have to be kept until more comes.
fn whole_records(kept: usize, spare: usize, record_len: usize) -> usize {
    let whole = (kept + spare).checked_div(record_len).unwrap_or(0) * record_len;
    if whole > kept { whole - kept } else { spare }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_part_of_a_record_is_received_where_all_are_of_one_length() {
        assert_eq!(whole_records(0, 1000, 0), 1000, "nothing is known of records");
        assert_eq!(whole_records(0, 1000, 300), 900);
        assert_eq!(whole_records(100, 900, 300), 800, "the rest of one, and two");
        assert_eq!(whole_records(0, 900, 300), 900);
        // A record is longer than the one before it.
        assert_eq!(whole_records(950, 50, 300), 50);
        assert_eq!(whole_records(0, 200, 300), 200);
    }
}
