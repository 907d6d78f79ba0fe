//! Every bound in one place. Memory per connection is the sum of these, so each has a reason.

/// Largest plaintext of one TLS record, in bytes (RFC 8446 §5.1).
pub const RECORD_PLAINTEXT_MAX: usize = 1 << 14;

/// Header of a TLS record: type, version, length (RFC 8446 §5.1).
pub const RECORD_HEADER_BYTES: usize = 5;

/// Largest record on the wire, in bytes: the TLS 1.2 bound, which covers TLS 1.3 (RFC 5246 §6.2.3).
pub const RECORD_WIRE_MAX: usize = RECORD_HEADER_BYTES + RECORD_PLAINTEXT_MAX + 2048;

const _: () = assert!(RECORD_WIRE_MAX < 32 * 1024, "a record must fit the usual receive buffer");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_the_largest_size_has_the_length_the_rfc_gives() {
        assert_eq!(RECORD_WIRE_MAX - RECORD_HEADER_BYTES, 18_432);
    }
}
