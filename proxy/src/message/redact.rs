//! What of a target may be written to a log.

use std::borrow::Cow;

const REDACTED: &str = "[redacted]";

/// The target `path` + `query` without session secrets: the value of `token=` (Guacamole's session token), the UUID of
/// `tunnel?read:UUID:n`, which is as good as one, and a `;jsessionid=`.
#[must_use]
pub fn target<'b>(path: &'b str, query: &'b str) -> Cow<'b, str> {
    let has_session = path.to_ascii_lowercase().contains(";jsessionid=");
    if query.is_empty() && !has_session {
        return Cow::Borrowed(path);
    }
    let mut out = String::with_capacity(path.len() + query.len());
    if has_session {
        out.push_str(&path[..path.find(';').unwrap_or(path.len())]);
        out.push(';');
        out.push_str(REDACTED);
    } else {
        out.push_str(path);
    }
    for (index, part) in query.split_inclusive(['?', '&']).enumerate() {
        let body = part.trim_end_matches('&');
        let tail = &part[body.len()..];
        if index == 0 {
            out.push_str(part);
            continue;
        }
        let secret = ["token=", "read:", "write:"]
            .into_iter()
            .find(|prefix| super::fields::starts_with_ignore_case(body, prefix));
        match secret {
            Some(prefix) => {
                out.push_str(prefix);
                out.push_str(REDACTED);
                if prefix == "read:"
                    && let Some((_, number)) = body.rsplit_once(':')
                {
                    out.push(':');
                    out.push_str(number);
                }
            }
            None => out.push_str(body),
        }
        out.push_str(tail);
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::target;

    #[test]
    fn secrets_disappear_and_the_rest_stays() {
        for (path, query, expected) in [
            ("/a", "", "/a"),
            ("/a", "?x=1&y", "/a?x=1&y"),
            ("/w", "?token=ABC&GUAC_ID=1", "/w?token=[redacted]&GUAC_ID=1"),
            ("/w", "?a=1&TOKEN=ABC", "/w?a=1&token=[redacted]"),
            ("/tunnel", "?read:1234-5678:7", "/tunnel?read:[redacted]:7"),
            ("/tunnel", "?write:1234-5678", "/tunnel?write:[redacted]"),
            ("/tunnel", "?connect", "/tunnel?connect"),
            ("/a;JSESSIONID=7", "", "/a;[redacted]"),
        ] {
            assert_eq!(target(path, query), expected);
        }
    }
}
