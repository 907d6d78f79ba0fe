//! The attack table as data: what is sent, and what must come of it.
//!
//! ```text
//! == 37 bytes behind a body
//! 200,400 | {P}{CL}: 5⏎⏎helloXYZ⏎⏎ > POST /guacamole/ =hello
//! ```
//!
//! Before the bar stands what the client sees: statuses in order, alternatives with a slash, and at last perhaps how it
//! ends: `close` (without another word, in good order), `cut` (visibly cut off), `end` (either). `fin` before the bar: the
//! client says that it sends no more. Behind `>` stands what the origin gets, in order, with bodies; without it that are as
//! many GET or POST of `/guacamole/` as there are answers 200, and with nothing behind it, it is not looked at. Further
//! lines: `upstream`, `never` (text within the heads that the origin gets, or not), `seen`, `unseen` (text within what the
//! client gets), `reply` (what the origin answers to the vectors below), `by` (tests that show the row), `n/a`.

use crate::script;

/// A row.
#[derive(Debug)]
pub struct Row {
    /// Its number.
    pub id: u32,
    /// What it is about.
    pub title: String,
    /// What is sent.
    pub vectors: Vec<Vector>,
    /// Tests that show it, as `file::name`.
    pub by: Vec<String>,
    /// Why it does not apply, or not all of it.
    pub not_applicable: Option<String>,
}

/// One script.
#[derive(Debug, Default)]
pub struct Vector {
    /// Its text, for messages.
    pub text: String,
    /// What is sent.
    pub bytes: Vec<u8>,
    /// Statuses that the client may see, in order.
    pub statuses: Vec<Vec<u16>>,
    /// How it ends for the client.
    pub end: End,
    /// The client says that it sends no more.
    pub finishes: bool,
    /// Method, target and body of what the origin gets; None: it is not looked at.
    pub upstream: Option<Vec<(String, String, Vec<u8>)>>,
    /// Text, and whether the heads that the origin gets have it.
    pub heads: Vec<(String, bool)>,
    /// Text, and whether what the client gets has it.
    pub answers: Vec<(String, bool)>,
    /// What the origin answers.
    pub reply: Option<Vec<u8>>,
}

/// How it ends for the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum End {
    /// By the gateway in good order if the last answer is no success, else by the client.
    #[default]
    Usual,
    /// By the gateway, in good order.
    Close,
    /// By the gateway, visibly cut off.
    Cut,
    /// By the gateway in any way.
    Any,
}

/// Reads a group.
///
/// # Panics
/// When it is not in the format.
#[must_use]
pub fn read(text: &str) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let mut reply = None;
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(rest) = line.strip_prefix("== ") {
            let (id, title) = rest.split_once(' ').expect("a number and a title");
            reply = None;
            rows.push(Row {
                id: id.parse().expect("a number"),
                title: title.to_owned(),
                vectors: Vec::new(),
                by: Vec::new(),
                not_applicable: None,
            });
            continue;
        }
        let row = rows.last_mut().expect("a row comes first");
        if let Some((want, rest)) = line.split_once('|') {
            row.vectors.push(vector(line, want, rest, reply.clone()));
            continue;
        }
        let (key, value) = line.split_once(' ').expect("a key and a value");
        let last = |row: &mut Row| row.vectors.len() - 1;
        let folded = || String::from_utf8(script::bytes(value)).expect("UTF-8").to_lowercase();
        match key {
            "by" => row.by.push(value.to_owned()),
            "n/a" => row.not_applicable = Some(value.to_owned()),
            "reply" => {
                let (text, ends) = match value.strip_suffix("{END}") {
                    Some(text) => (text, true),
                    None => (value, false),
                };
                let end = if ends { crate::recorder::END } else { b"" };
                reply = Some([&script::bytes(text), end].concat());
            }
            "upstream" | "never" => {
                let at = last(row);
                row.vectors[at].heads.push((folded(), key == "upstream"));
            }
            "seen" | "unseen" => {
                let at = last(row);
                row.vectors[at].answers.push((folded(), key == "seen"));
            }
            _ => panic!("{key:?} is no key"),
        }
    }
    rows
}

fn vector(line: &str, want: &str, rest: &str, reply: Option<Vec<u8>>) -> Vector {
    let mut vector = Vector { text: line.to_owned(), reply, ..Vector::default() };
    let mut words = want.split_whitespace();
    let statuses = String::from_utf8(script::bytes(words.next().unwrap_or(""))).expect("ASCII");
    for status in statuses.split(',') {
        match status {
            "close" => vector.end = End::Close,
            "cut" => vector.end = End::Cut,
            "end" => vector.end = End::Any,
            status => vector
                .statuses
                .push(status.split('/').map(|one| one.parse().expect("a status")).collect()),
        }
    }
    vector.finishes = words.next() == Some("fin");
    let (sent, upstream) =
        match rest.rsplit_once(" > ").or_else(|| Some((rest.strip_suffix(" >")?, ""))) {
            Some((sent, upstream)) => (sent, Some(upstream)),
            None => (rest, None),
        };
    vector.bytes = script::bytes(sent.strip_prefix(' ').unwrap_or(sent));
    vector.upstream = match upstream {
        Some("") => None,
        Some(list) => Some(list.split(" ; ").map(request).collect()),
        None => {
            let count = vector.statuses.iter().filter(|these| these[..] == [200]).count();
            Some(vec![request("GET /guacamole/"); count])
        }
    };
    vector
}

fn request(text: &str) -> (String, String, Vec<u8>) {
    let mut words = text.trim().splitn(3, ' ');
    let mut word = || words.next().unwrap_or("");
    let (method, target) = (word().to_owned(), word());
    let target = String::from_utf8(script::bytes(target)).expect("ASCII");
    let body = word().strip_prefix('=').map(script::bytes).unwrap_or_default();
    (method, target, body)
}
