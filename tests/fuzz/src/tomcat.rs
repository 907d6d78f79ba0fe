//! What servers make of a path, written from their sources and not from the gateway's.

/// How a server reads a path. The first is Tomcat as it comes; the others do what administrators can switch on, or what
/// frameworks behind it do once more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Habit {
    /// Parameters go before the path is decoded (Tomcat), or behind that.
    strips_first: bool,
    /// How often `%XX` is decoded.
    decodings: usize,
    /// `%2F` is decoded (`encodedSolidusHandling="decode"`), not refused.
    decodes_slash: bool,
    /// `\` is a `/` (`ALLOW_BACKSLASH`), not refused.
    takes_backslash: bool,
}

pub(crate) const HABITS: [Habit; 4] = [
    Habit { strips_first: true, decodings: 1, decodes_slash: false, takes_backslash: false },
    Habit { strips_first: true, decodings: 1, decodes_slash: true, takes_backslash: true },
    Habit { strips_first: false, decodings: 1, decodes_slash: true, takes_backslash: true },
    Habit { strips_first: true, decodings: 2, decodes_slash: true, takes_backslash: true },
];

impl Habit {
    /// The path that is served; None: it is refused. The steps are those of `CoyoteAdapter.postParseRequest`.
    pub(crate) fn serves(self, path: &[u8]) -> Option<Vec<u8>> {
        let mut path = path.to_vec();
        if self.strips_first {
            path = without_parameters(&path);
        }
        for _ in 0..self.decodings {
            path = self.decode(&path)?;
        }
        if !self.strips_first {
            path = without_parameters(&path);
        }
        self.normalize(path)
    }

    fn decode(self, path: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        let mut rest = path;
        while let Some((&byte, behind)) = rest.split_first() {
            rest = behind;
            if byte != b'%' {
                out.push(byte);
                continue;
            }
            let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
            if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return None;
            }
            let decoded = u8::from_str_radix(digits, 16).ok()?;
            if decoded == b'/' && !self.decodes_slash {
                return None;
            }
            out.push(decoded);
            rest = &rest[2..];
        }
        Some(out)
    }

    /// `CoyoteAdapter.normalize`.
    fn normalize(self, mut path: Vec<u8>) -> Option<Vec<u8>> {
        if path == b"*" {
            return Some(path);
        }
        for byte in &mut path {
            match *byte {
                b'\\' if self.takes_backslash => *byte = b'/',
                b'\\' | 0 => return None,
                _ => {}
            }
        }
        if path.first() != Some(&b'/') {
            return None;
        }
        path.dedup_by(|second, first| *first == b'/' && *second == b'/');
        if path.ends_with(b"/.") || path.ends_with(b"/..") {
            path.push(b'/');
        }
        while let Some(at) = find(&path, b"/./") {
            path.drain(at..at + 2);
        }
        while let Some(at) = find(&path, b"/../") {
            let parent = path[..at].iter().rposition(|&byte| byte == b'/')?;
            path.drain(parent..at + 3);
        }
        Some(path)
    }
}

/// `CoyoteAdapter.parsePathParameters`: from each semicolon to the next slash.
fn without_parameters(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for (index, segment) in path.split(|&byte| byte == b'/').enumerate() {
        if index > 0 {
            out.push(b'/');
        }
        out.extend(segment.iter().take_while(|&&byte| byte != b';'));
    }
    out
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::HABITS;

    #[test]
    fn the_model_leaves_prefixes_as_tomcat_does() {
        let served = |path: &[u8]| {
            HABITS[0].serves(path).map(|path| String::from_utf8_lossy(&path).into_owned())
        };
        assert_eq!(served(b"/guacamole/..;/manager/html").as_deref(), Some("/manager/html"));
        assert_eq!(served(b"/guacamole;x=1/./%2e%2E//m").as_deref(), Some("/m"));
        assert_eq!(served(b"/a/b/..").as_deref(), Some("/a/"));
        assert_eq!(served(b"/a%3b/..").as_deref(), Some("/"));
        assert_eq!(served(b"/../a"), None);
        assert_eq!(served(b"/a%2fb"), None);
        assert_eq!(served(b"/a%5cb"), None);
        assert_eq!(HABITS[1].serves(b"/a%2f..%5cb"), Some(b"/b".to_vec()));
        assert_eq!(HABITS[2].serves(b"/a/..%3bx/b"), Some(b"/b".to_vec()));
        assert_eq!(HABITS[3].serves(b"/a/%252e%252e/b"), Some(b"/b".to_vec()));
    }
}
