//! The attack table: what hostile clients and upstreams send, in every cut, and what comes of it on both sides.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tlsplice_tests::client::{Client, Response};
use tlsplice_tests::gateway::{Config, Gateway, SPLICE_VARIABLE};
use tlsplice_tests::recorder::{Recorder, Seen};
use tlsplice_tests::table::{self, End, Row, Vector};
use tlsplice_tests::{PATIENCE, wait_for};

/// The groups of the table, and how many rows each has.
const GROUPS: [(&str, &str, std::ops::RangeInclusive<u32>); 8] = [
    ("A", include_str!("../attacks/a.txt"), 1..=38),
    ("B", include_str!("../attacks/b.txt"), 39..=54),
    ("C", include_str!("../attacks/c.txt"), 55..=75),
    ("D", include_str!("../attacks/d.txt"), 76..=93),
    ("E", include_str!("../attacks/e.txt"), 94..=101),
    ("F", include_str!("../attacks/f.txt"), 102..=123),
    ("G", include_str!("../attacks/g.txt"), 124..=136),
    ("H", include_str!("../attacks/h.txt"), 137..=144),
];

/// Where the tests are that rows name.
const PROOFS: [(&str, &str); 10] = [
    ("amounts", include_str!("amounts.rs")),
    ("http", include_str!("http.rs")),
    ("identity", include_str!("identity.rs")),
    ("operations", include_str!("operations.rs")),
    ("preambles", include_str!("preambles.rs")),
    ("records", include_str!("records.rs")),
    ("refusals", include_str!("refusals.rs")),
    ("splice", include_str!("splice.rs")),
    ("tls", include_str!("tls.rs")),
    ("websocket", include_str!("websocket.rs")),
];

/// Set where machines are slow: no cuts but the whole and single bytes, and fewer of those.
const SHORT: &str = "TLSPLICE_TEST_SHORT";

/// Vectors up to this length are cut at each byte, longer ones at some.
const CUT_BYTES_MAX: usize = 300;

/// Cuts of longer vectors.
const CUTS_OF_LONG: usize = 8;

/// Vectors are sent in single bytes up to here, and the rest of them at once.
const SINGLE_BYTES_MAX: usize = 400;

#[derive(Clone, Copy, Debug)]
enum Cut {
    Whole,
    At(usize),
    SingleBytes,
}

struct Stage {
    gateway: Gateway,
    plain: SocketAddr,
    origin: Recorder,
    next: AtomicU32,
    /// Requests that the origin answered with 200, and how often.
    sent: RefCell<BTreeMap<String, u32>>,
}

impl Stage {
    fn start() -> Self {
        let origin = Recorder::start();
        let mut config = Config::default()
            .with("[[listener]]\naddress = \"127.0.0.1:0\"\nservice = \"http\"\n")
            .with(&format!(
                "[[upstream]]\nname = \"origin\"\nendpoints = \"http://{}\"\nkeep_alive_timeout = \"1s\"\n\
                 eject_after = 1000\nresponse_timeout = \"3s\"\n",
                origin.address()
            ));
        for path in ["/guacamole/", "/poison", "/next"] {
            config = config.with(&format!(
                "[[route]]\npath = \"{path}\"\nupstream = \"origin\"\nbody_bytes_max = \"1GiB\"\n\
                 allowed_origins = \"https://a\"\n"
            ));
        }
        // A row about hosts needs one that is not ours.
        let config = Config {
            tables: config.tables.replace("[[route]]", "[[route]]\nhost = \"a\""),
            ..config
        };
        let gateway = Gateway::start(&config);
        let plain = gateway.plain();
        Self { gateway, plain, origin, next: AtomicU32::new(0), sent: RefCell::default() }
    }

    /// Sends one vector in one cut and judges what came of it.
    fn run(&self, vector: &Vector, cut: Cut) -> Result<(), String> {
        self.origin.reply(vector.reply.clone());
        let mut client = match cut {
            Cut::At(_) => Client::plain(self.plain),
            Cut::Whole | Cut::SingleBytes => Client::tls(self.gateway.https),
        };
        send(&mut client, &vector.bytes, cut);
        if vector.finishes {
            // It may have closed already, which is seen next.
            drop(client.try_finish());
        }
        let answers = answers(&mut client, vector, cut)?;
        self.origin.reply(None);
        self.second_client()?;
        let seen = self.origin.take();
        self.count(vector, &seen);
        judge(vector, &answers, &seen)
    }

    fn count(&self, vector: &Vector, seen: &Seen) {
        let mut sent = self.sent.borrow_mut();
        // A scripted answer is told of as 200 when it is one, and whole.
        let is_good =
            vector.end != End::Cut && vector.statuses.iter().any(|these| these[..] == [200]);
        let is_scripted_good = is_good
            && vector.reply.as_ref().is_some_and(|reply| reply.starts_with(b"HTTP/1.1 200"));
        let scripted = seen.scripted.iter().filter(|_| is_scripted_good);
        for request in seen.complete.iter().chain(scripted) {
            *sent.entry(line_of(&request.method, &request.target)).or_default() += 1;
        }
    }

    /// Whoever comes next gets an answer of its own.
    fn second_client(&self) -> Result<(), String> {
        self.ask(Client::plain(self.plain))
    }

    fn ask(&self, mut client: Client) -> Result<(), String> {
        let target = format!("/next/{}", self.next.fetch_add(1, Ordering::Relaxed));
        client.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
        let answer = client.try_response().map_err(|error| format!("the next client: {error}"))?;
        if answer.status == 200 && answer.text() == target {
            Ok(())
        } else {
            Err(format!("the next client got {} {:?}", answer.status, answer.text()))
        }
    }
}

fn send(client: &mut Client, bytes: &[u8], cut: Cut) {
    // The gateway may have refused before everything was sent.
    let mut push = |bytes: &[u8]| bytes.is_empty() || client.try_send(bytes).is_ok();
    match cut {
        Cut::Whole => {
            push(bytes);
        }
        Cut::At(at) => {
            if push(&bytes[..at]) {
                std::thread::sleep(Duration::from_micros(300));
                push(&bytes[at..]);
            }
        }
        Cut::SingleBytes => {
            let single = bytes.len().min(SINGLE_BYTES_MAX);
            if bytes[..single].chunks(1).all(&mut push) {
                push(&bytes[single..]);
            }
        }
    }
}

/// Receives what the vector lets the client expect, and the end.
fn answers(client: &mut Client, vector: &Vector, cut: Cut) -> Result<Vec<Response>, String> {
    let mut answers: Vec<Response> = Vec::new();
    for (index, statuses) in vector.statuses.iter().enumerate() {
        let to_head = vector.bytes.starts_with(b"HEAD ") && index == 0;
        let begun = Instant::now();
        let is_last_cut = vector.end == End::Cut && index + 1 == vector.statuses.len();
        let answer = if to_head || is_last_cut { client.try_head() } else { client.try_response() };
        let answer = answer.map_err(|error| {
            format!(
                "answer {}: {error} after {:?} instead of {statuses:?}",
                index + 1,
                begun.elapsed()
            )
        })?;
        if !statuses.contains(&answer.status) {
            return Err(format!("answer {} is {}, not {statuses:?}", index + 1, answer.status));
        }
        answers.push(answer);
    }
    let is_error = answers.last().is_none_or(|last| last.status >= 400 && last.status != 404);
    let by_gateway = vector.end != End::Usual
        || is_error && vector.reply.is_none() && !answers.iter().any(|a| a.status == 403);
    if !by_gateway && !vector.finishes {
        // It may have closed already, which is seen next.
        drop(client.try_finish());
    }
    let is_clean = loop {
        match client.receive() {
            Ok(true) if vector.end == End::Any || vector.end == End::Cut => {}
            Ok(true) => return Err("more came behind the last answer".to_owned()),
            Ok(false) => break true,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                return Err("the connection stays open".to_owned());
            }
            Err(_) => break false,
        }
    };
    match (vector.end, is_clean) {
        (End::Any, _) | (End::Cut, false) | (End::Usual | End::Close, true) => Ok(answers),
        // Without TLS the missing rest is all that can be seen.
        (End::Cut, true) if matches!(cut, Cut::At(_)) => Ok(answers),
        (End::Cut, true) => Err("closed as if everything had been said".to_owned()),
        (End::Usual | End::Close, false) => Err("closed without close_notify".to_owned()),
    }
}

fn judge(vector: &Vector, answers: &[Response], seen: &Seen) -> Result<(), String> {
    if let Some(wrong) = seen.wrong.first() {
        return Err(format!("the origin got {wrong}"));
    }
    let of_vector =
        |request: &&tlsplice_tests::strict::Request| !request.target.starts_with("/next/");
    let mut complete: Vec<_> = seen.complete.iter().filter(of_vector).cloned().collect();
    if vector.reply.is_some() {
        complete = seen.scripted.iter().cloned().chain(complete).collect();
    }
    if let Some(expected) = &vector.upstream {
        let found: Vec<_> = complete
            .iter()
            .map(|one| (one.method.clone(), one.target.clone(), one.body.clone()))
            .collect();
        if found != *expected {
            return Err(format!("the origin got {found:?}"));
        }
        if vector.reply.is_none() && vector.statuses.iter().flatten().all(|&status| status == 200) {
            for (answer, (method, target, _)) in answers.iter().zip(expected) {
                if method != "HEAD" && answer.text() != *target {
                    return Err(format!("{target} was answered {:?}", answer.text()));
                }
            }
        }
    }
    let poison = |request: &&tlsplice_tests::strict::Request| request.target.starts_with("/poison");
    if let Some(cut) = seen.cut.iter().find(poison) {
        return Err(format!("the origin got a part of {}", cut.target));
    }
    let heads: String = complete.iter().map(|request| request.head.as_str()).collect();
    for (text, is_there) in &vector.heads {
        if heads.contains(text.as_str()) != *is_there {
            return Err(format!("{text:?} within {heads:?}"));
        }
    }
    let said = format!("{answers:?}").to_lowercase();
    let fields: String = answers
        .iter()
        .flat_map(|answer| &answer.fields)
        .map(|(name, value)| format!("{name}: {value}\n").to_lowercase())
        .collect();
    for (text, is_there) in &vector.answers {
        if (said.contains(text.as_str()) || fields.contains(text.as_str())) != *is_there {
            return Err(format!("{text:?} within {fields}"));
        }
    }
    Ok(())
}

fn cuts(len: usize) -> Vec<Cut> {
    let mut cuts = vec![Cut::Whole, Cut::SingleBytes];
    if std::env::var_os(SHORT).is_some() {
        return cuts;
    }
    let step = if len <= CUT_BYTES_MAX { 1 } else { len / CUTS_OF_LONG };
    cuts.extend((1..len).step_by(step.max(1)).map(Cut::At));
    cuts
}

/// Whether the test that a row names exists.
fn is_proven(name: &str) -> bool {
    // Tests with Tomcat are not part of every machine's set, and so not of the list.
    let (file, function) = name.split_once("::").expect("file::name");
    file == "tomcat"
        || PROOFS.iter().any(|(known, text)| {
            *known == file && text.contains(&format!("#[test]\nfn {function}()"))
        })
}

fn group(name: &str) {
    let (_, text, ids) = GROUPS.iter().find(|(group, ..)| *group == name).expect("a group").clone();
    let rows = table::read(text);
    let found: BTreeSet<u32> = rows.iter().map(|row| row.id).collect();
    assert_eq!(found, ids.collect(), "every row is there");
    let stage = Stage::start();
    stage.second_client().expect("it serves");
    stage.ask(Client::tls(stage.gateway.https)).expect("it serves, over TLS too");
    stage.count(&Vector::default(), &stage.origin.take());
    let before = stage.gateway.descriptors();
    let (mut failures, mut counts) = (Vec::new(), [0, 0, 0]);
    for row in &rows {
        let wrong = failures_of(&stage, row);
        let is_shown = !row.vectors.is_empty() || !row.by.is_empty();
        counts[if !wrong.is_empty() {
            1
        } else if is_shown {
            0
        } else {
            2
        }] += 1;
        if let Some(reason) = &row.not_applicable {
            println!("REASON {} {reason}", row.id);
        }
        failures.extend(wrong);
    }
    println!("GROUP {name} {} {counts:?}", place(&stage.gateway));
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    stage.origin.reply(None);
    let late = stage.origin.take().complete;
    assert!(late.iter().all(|one| one.target.starts_with("/next/")), "late: {late:?}");
    wait_for("the release of descriptors", || {
        (stage.gateway.descriptors() <= before).then_some(())
    });
    logged_is_sent(&stage);
}

/// The kernel, and the path that the data of TLS connections takes: who runs the record layer, and whether bulk data may
/// be spliced.
fn place(gateway: &Gateway) -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let log = gateway.access_log();
    let copies = std::env::var(SPLICE_VARIABLE).is_ok_and(|value| value == "never");
    // Keys of a connection whose client has gone before they were handed over stay in user space, whatever the path.
    let path = match log.iter().any(|line| line["tls"] == "kernel") {
        true if copies => "kernel/copy",
        true => "kernel/splice",
        false => "user/copy",
    };
    format!("{} {path}", release.trim())
}

fn failures_of(stage: &Stage, row: &Row) -> Vec<String> {
    let mut failures = Vec::new();
    for name in row.by.iter().filter(|name| !is_proven(name)) {
        failures.push(format!("row {}: there is no test {name}", row.id));
    }
    for vector in &row.vectors {
        for cut in cuts(vector.bytes.len()) {
            if let Err(wrong) = stage.run(vector, cut) {
                let line: String = vector.text.chars().take(150).collect();
                failures
                    .push(format!("row {} ({}), {cut:?}: {wrong}\n    {line}", row.id, row.title));
                // Another cut of it would most likely say the same.
                stage.origin.reply(None);
                drop(stage.second_client());
                drop(stage.origin.take());
                break;
            }
        }
    }
    failures
}

/// What the origin got to its end is what the log tells of as answered, each as often: the origin's parsers and the
/// gateway's came to the same requests.
fn logged_is_sent(stage: &Stage) {
    let sent = stage.sent.borrow();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut told = BTreeMap::new();
        for line in stage.gateway.access_log() {
            let is_answered = line["status"] == 200 && line["outcome"] == "complete";
            if let (true, Some(method), Some(target)) =
                (is_answered, line["method"].as_str(), line["target"].as_str())
            {
                *told.entry(line_of(method, target)).or_insert(0) += 1;
            }
        }
        if told == *sent {
            return;
        }
        let is_late = Instant::now() > deadline;
        let differs =
            told.iter().chain(sent.iter()).find(|(line, _)| told.get(*line) != sent.get(*line));
        assert!(!is_late, "the log and the origin differ: {differs:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A request, without what the log does not tell.
fn line_of(method: &str, target: &str) -> String {
    let path = target.split(';').next().unwrap_or(target);
    format!("{method} {path}")
}

macro_rules! groups {
    ($($test:ident $name:literal),*) => {
        $(#[test]
        fn $test() {
            group($name);
        })*
    };
}

groups!(
    a_length_framing "A",
    b_chunked_coding "B",
    c_start_line_and_fields "C",
    d_host_and_identity "D",
    e_paths "E",
    f_upgrades_and_responses "F",
    g_tls "G",
    h_resources "H"
);
