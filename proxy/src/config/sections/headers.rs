//! Edits of heads: which fields a file may name, and how a value may look.

use crate::config::model::HeaderEdits;
use crate::config::report::{Fault, Report, quoted};
use crate::config::sections::TOP;
use crate::config::table::{Item, Table};

/// Longest value that is set, in bytes.
const VALUE_BYTES_MAX: usize = 4096;

/// Fields that decide framing, routing or the connection (RFC 9112 §6, RFC 9110 §7.6.1), that say
/// who the client is, or that belong to the WebSocket handshake. The gateway sets and removes them
/// itself; an edit could only break that. Sorted.
const OURS: &[&str] = &[
    "connection",
    "content-length",
    "expect",
    "forwarded",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "remote_user",
    "sec-websocket-accept",
    "sec-websocket-extensions",
    "sec-websocket-key",
    "sec-websocket-protocol",
    "sec-websocket-version",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
    "x-client-certificate",
    "x-client-verified",
    "x-real-ip",
];

/// Every field of this family says who the client is.
const OURS_PREFIX: &str = "x-forwarded-";

/// Reads `request_headers` or `response_headers`.
pub(super) fn edits(table: &mut Table<'_>, report: &mut Report, key: &'static str) -> HeaderEdits {
    let mut edits = HeaderEdits::default();
    let Some(item) = table.get(key) else { return edits };
    let read = item
        .table()
        .map_err(|fault| fault.hint("for example: { set = { X-A = \"b\" }, remove = [\"X-C\"] }"));
    let Some(mut table) = item.note(report, read) else { return edits };
    if let Some(remove) = table.get("remove") {
        for element in remove.list() {
            let read = element.str().and_then(|name| unique(&edits, field_name(name)?));
            edits.remove.extend(element.note(report, read));
        }
    }
    if let Some(set) = table.get("set") {
        let read = set.table();
        for (name, at_name, value) in set.note(report, read).iter().flat_map(Table::entries) {
            let read = field_name(name).and_then(|name| unique(&edits, name));
            let name = at_name.note(report, read);
            let value = value.note(report, field_value(&value));
            edits.set.extend(name.zip(value));
        }
    }
    table.finish(report, TOP);
    edits
}

fn unique(edits: &HeaderEdits, name: String) -> Result<String, Fault> {
    if edits.remove.contains(&name) || edits.set.iter().any(|(known, _)| *known == name) {
        let fault = Fault::new(format!("{} is edited twice", quoted(&name)), "");
        return Err(fault.hint("`set` already removes what was there"));
    }
    Ok(name)
}

/// A field name in lower case (a token, RFC 9110 §5.1) that an edit may touch.
fn field_name(text: &str) -> Result<String, Fault> {
    let name = text.to_ascii_lowercase();
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || name.len() > 256 || !name.bytes().all(token) {
        return Err(Fault::new(
            format!("{} is not a field name", quoted(text)),
            "1 to 256 letters, digits, `-`",
        ));
    }
    if name == "strict-transport-security" {
        let fault = Fault::new("Strict-Transport-Security is not edited here", "");
        return Err(fault.hint("use `hsts` of the route"));
    }
    if name.starts_with(OURS_PREFIX) || OURS.binary_search(&name.as_str()).is_ok() {
        let fault = Fault::new(format!("{} is the gateway's own field", quoted(text)), "");
        return Err(
            fault.hint("fields of framing, connection, host and client identity cannot be edited")
        );
    }
    Ok(name)
}

/// A field value: visible ASCII with inner spaces and tabs (RFC 9110 §5.5, without obs-text).
fn field_value(item: &Item<'_>) -> Result<String, Fault> {
    // The value is not repeated in messages: it may be a credential.
    let value = item.str()?;
    let expected = "visible ASCII, spaces inside only";
    if value.len() > VALUE_BYTES_MAX {
        return Err(Fault::that(format!("is longer than {VALUE_BYTES_MAX} bytes"), expected));
    }
    if !value.bytes().all(|b| b.is_ascii_graphic() || b == b' ' || b == b'\t') {
        return Err(Fault::that(
            "has a line break, a control character or a byte outside ASCII",
            expected,
        ));
    }
    if value != value.trim() {
        return Err(Fault::that("begins or ends with a space", expected));
    }
    Ok(value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_own_fields_is_sorted_for_the_search() {
        assert!(OURS.is_sorted());
    }

    #[test]
    fn own_fields_are_refused_in_any_case() {
        for name in ["Host", "TRANSFER-ENCODING", "X-Forwarded-Anything", "REMOTE_USER", "te"] {
            assert!(field_name(name).is_err(), "{name}");
        }
        assert_eq!(field_name("X-Frame-Options").unwrap(), "x-frame-options");
    }
}
