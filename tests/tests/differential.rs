//! What the gateway lets through, and how many requests real servers see in it.

use std::io::Write as _;
use std::net::SocketAddr;

use tlsplice_fixtures::packages;
use tlsplice_fixtures::tomcat::Tomcat;
use tlsplice_tests::client::Client;
use tlsplice_tests::gateway::{Config, Gateway};
use tlsplice_tests::servers::{Kind, Server};
use tlsplice_tests::table::{self, Vector};
use tlsplice_tests::{target, wait_for};

/// The groups in which parsers can come to different ends: framing, chunks, paths.
const GROUPS: [&str; 4] = [
    include_str!("../attacks/a.txt"),
    include_str!("../attacks/b.txt"),
    include_str!("../attacks/c.txt"),
    include_str!("../attacks/e.txt"),
];

fn send(gateway: &Gateway, vector: &Vector) {
    let mut client = Client::tls(gateway.https);
    // The gateway may have refused it half-way, and that is not what is looked at here.
    drop(client.try_send(&vector.bytes));
    drop(client.try_finish());
    while client.receive().unwrap_or(false) {}
}

/// Sends everything that has an expectation through a gateway to `origin`, whose log tells method and target of each
/// request, in order; what is not what was meant comes back.
fn differences(origin: SocketAddr, log: impl Fn() -> Vec<String>) -> Vec<String> {
    let mut config = Config::default().with_limits("head_timeout = \"2s\"");
    for path in ["/guacamole/", "/poison", "/next"] {
        config = config.with(&format!(
            "[[route]]\nhost = \"a\"\npath = \"{path}\"\nupstream = \"http://{origin}\"\nbody_bytes_max = \"1GiB\"\n",
        ));
    }
    let gateway = Gateway::start(&config);
    let told = |from| log().split_off(from);
    let (mut wrong, mut count) = (Vec::new(), 0);
    for row in GROUPS.iter().flat_map(|group| table::read(group)) {
        for vector in row.vectors.iter().filter(|vector| vector.reply.is_none()) {
            let Some(expected) = &vector.upstream else { continue };
            let expected: Vec<String> =
                expected.iter().map(|(method, target, _)| format!("{method} {target}")).collect();
            let from = log().len();
            send(&gateway, vector);
            count += 1;
            let marker = format!("/next/{count}");
            Client::tls(gateway.https).ask(format!("GET {marker} HTTP/1.1\r\nHost: a\r\n\r\n"));
            let marker = format!("GET {marker}");
            wait_for("the marker in the log of the origin", || {
                let told = told(from);
                (told.contains(&marker) && told.len() > expected.len()).then_some(())
            });
            let mut found = told(from);
            found.retain(|request| *request != marker);
            // A body that is wrong is found wrong behind its head, which the origin then tells of.
            let is_cut = expected.is_empty() && found == ["POST /guacamole/"];
            if found != expected && !is_cut {
                wrong.push(format!("row {}: {found:?}: {:.120}", row.id, vector.text));
            }
        }
    }
    assert!(count > 100, "only {count} vectors were sent");
    wrong
}

/// The first two words behind `skipped` others.
fn request(line: &str, skipped: usize) -> String {
    let mut words = line.split(' ').skip(skipped);
    format!("{} {}", words.next().unwrap_or(""), words.next().unwrap_or(""))
}

#[test]
fn tomcat_sees_the_requests_that_were_meant_and_no_other() {
    packages::ensure(packages::TOMCAT).expect("the packages can be installed");
    let tomcat = Tomcat::start(&target().join("tests/tomcat-differential")).expect("it starts");
    let log = || tomcat.access_log().iter().map(|line| request(line, 1)).collect();
    let wrong = differences(tomcat.address(), log);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The same with another server; where it cannot be had, that is said and nothing is judged.
fn another_sees_the_same(kind: Kind) {
    let server = match Server::start(kind) {
        Ok(server) => server,
        Err(why) => {
            // Past the test harness, which shows no words of tests that pass.
            let mut terminal = std::io::stderr();
            drop(writeln!(terminal, "SKIPPED: there is no {} here: {why}", kind.name()));
            return;
        }
    };
    let log = || server.access_log().iter().map(|line| request(line, 0)).collect();
    let wrong = differences(server.address(), log);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn nginx_sees_the_requests_that_were_meant_and_no_other() {
    another_sees_the_same(Kind::Nginx);
}

#[test]
fn apache_sees_the_requests_that_were_meant_and_no_other() {
    another_sees_the_same(Kind::Apache);
}
