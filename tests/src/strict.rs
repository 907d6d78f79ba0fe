//! A second parser of requests, written apart from the gateway's and stricter: it takes exactly what the gateway is
//! meant to emit. What it refuses, an upstream could read differently.

/// One request as it came over the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The method.
    pub method: String,
    /// The target as it came.
    pub target: String,
    /// The head as text in lower case, with its empty line.
    pub head: String,
    /// The body without framing.
    pub body: Vec<u8>,
}

/// The body of a request.
enum Length {
    Known(usize),
    Chunked,
}

/// A head that has arrived.
pub struct Head {
    /// The request without its body.
    pub request: Request,
    length: Length,
    /// Bytes of the head.
    pub len: usize,
}

/// The head at the front of `bytes`; None while it is incomplete.
///
/// # Errors
/// With what is wrong, also when httparse reads something else.
pub fn head(bytes: &[u8]) -> Result<Option<Head>, String> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let raw = &bytes[..end + 4];
    let text: String = raw.iter().map(|&byte| char::from(byte)).collect();
    let wrong = |what: &str| format!("{what}: {}", raw.escape_ascii());
    let mut lines = text.trim_end_matches("\r\n").split("\r\n");
    let words: Vec<&str> = lines.next().unwrap_or("").split(' ').collect();
    let [method, target, "HTTP/1.1"] = words[..] else { return Err(wrong("start line")) };
    if method.is_empty() || !method.bytes().all(|byte| byte.is_ascii_uppercase()) {
        return Err(wrong("method"));
    }
    if !target.starts_with('/') && target != "*" || !target.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(wrong("target"));
    }
    let (mut hosts, mut length, mut fields) = (0, None, Vec::new());
    for line in lines {
        let (name, value) = line.split_once(": ").ok_or_else(|| wrong("field"))?;
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^`|~".contains(&byte);
        if name.is_empty() || !name.bytes().all(is_name) {
            return Err(wrong("name"));
        }
        if value.chars().any(|letter| letter < ' ' && letter != '\t' || letter == '\u{7f}') {
            return Err(wrong("value"));
        }
        fields.push((name, value));
        let framing = match name.to_ascii_lowercase().as_str() {
            "host" => {
                hosts += 1;
                None
            }
            "content-length" => {
                let number: usize = value.parse().map_err(|_| wrong("length"))?;
                if number.to_string() != value {
                    return Err(wrong("length"));
                }
                Some(Length::Known(number))
            }
            "transfer-encoding" if value == "chunked" => Some(Length::Chunked),
            "transfer-encoding" => return Err(wrong("coding")),
            _ => None,
        };
        if framing.is_some() && length.is_some() {
            return Err(wrong("two framings"));
        }
        length = framing.or(length);
    }
    if hosts != 1 {
        return Err(wrong("hosts"));
    }
    agree(raw, method, target, &fields).map_err(|what| wrong(&what))?;
    let request = Request {
        method: method.to_owned(),
        target: target.to_owned(),
        head: text.to_ascii_lowercase(),
        body: Vec::new(),
    };
    Ok(Some(Head { request, length: length.unwrap_or(Length::Known(0)), len: end + 4 }))
}

/// httparse must find the same.
fn agree(raw: &[u8], method: &str, target: &str, fields: &[(&str, &str)]) -> Result<(), String> {
    let mut room = vec![httparse::EMPTY_HEADER; 300];
    let mut other = httparse::Request::new(&mut room);
    let found = other.parse(raw).map_err(|error| format!("httparse: {error}"))?;
    let is_same = found == httparse::Status::Complete(raw.len())
        && other.method == Some(method)
        && other.path == Some(target)
        && other.version == Some(1)
        && other.headers.len() == fields.len()
        && other.headers.iter().zip(fields).all(|(one, (name, value))| {
            let latin: String = one.value.iter().map(|&byte| char::from(byte)).collect();
            one.name == *name && latin == value.trim_matches([' ', '\t'])
        });
    if is_same { Ok(()) } else { Err("httparse reads something else".to_owned()) }
}

impl Head {
    /// Whether no body follows.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        matches!(self.length, Length::Known(0))
    }

    /// The body at the front of `bytes`, and how many bytes it takes there; None while it is incomplete.
    ///
    /// # Errors
    /// With what is wrong.
    pub fn body(&self, bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>, String> {
        match self.length {
            Length::Known(count) => Ok(bytes.get(..count).map(|body| (body.to_vec(), count))),
            Length::Chunked => chunks(bytes),
        }
    }
}

fn chunks(bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>, String> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let rest = &bytes[at..];
        let Some(end) = rest.windows(2).position(|two| two == b"\r\n") else { return Ok(None) };
        let digits = std::str::from_utf8(&rest[..end]).unwrap_or("");
        let size = usize::from_str_radix(digits, 16).map_err(|_| format!("chunk {digits:?}"))?;
        if format!("{size:x}") != digits {
            return Err(format!("chunk {digits:?}"));
        }
        let Some(data) = rest.get(end + 2..end + 4 + size) else { return Ok(None) };
        if !data.ends_with(b"\r\n") {
            return Err("a chunk without its end".to_owned());
        }
        body.extend_from_slice(&data[..size]);
        at += end + 4 + size;
        if size == 0 {
            return Ok(Some((body, at)));
        }
    }
}
