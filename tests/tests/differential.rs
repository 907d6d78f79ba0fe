//! What the gateway lets through, and how many requests a real Tomcat sees in it.

use tlsplice_fixtures::packages;
use tlsplice_fixtures::tomcat::Tomcat;
use tlsplice_tests::client::Client;
use tlsplice_tests::gateway::{Config, Gateway};
use tlsplice_tests::table::{self, Vector};
use tlsplice_tests::{target, wait_for};

/// The groups in which parsers can come to different ends: framing, chunks, paths.
const GROUPS: [&str; 4] = [
    include_str!("../attacks/a.txt"),
    include_str!("../attacks/b.txt"),
    include_str!("../attacks/c.txt"),
    include_str!("../attacks/e.txt"),
];

/// Method and target of the requests that Tomcat has told of since line `from` of its log.
fn told(tomcat: &Tomcat, from: usize) -> Vec<String> {
    let request = |line: &String| {
        let mut words = line.split(' ').skip(1);
        format!("{} {}", words.next().unwrap_or(""), words.next().unwrap_or(""))
    };
    tomcat.access_log().iter().skip(from).map(request).collect()
}

fn send(gateway: &Gateway, vector: &Vector) {
    let mut client = Client::tls(gateway.https);
    // The gateway may have refused it half-way, and that is not what is looked at here.
    drop(client.try_send(&vector.bytes));
    drop(client.try_finish());
    while client.receive().unwrap_or(false) {}
}

#[test]
fn tomcat_sees_the_requests_that_were_meant_and_no_other() {
    packages::ensure(packages::TOMCAT).expect("the packages can be installed");
    let tomcat = Tomcat::start(&target().join("tests/tomcat-differential")).expect("it starts");
    let mut config = Config::default().with_limits("head_timeout = \"2s\"");
    for path in ["/guacamole/", "/poison", "/next"] {
        config = config.with(&format!(
            "[[route]]\nhost = \"a\"\npath = \"{path}\"\nupstream = \"http://{}\"\nbody_bytes_max = \"1GiB\"\n",
            tomcat.address()
        ));
    }
    let gateway = Gateway::start(&config);
    let (mut wrong, mut count) = (Vec::new(), 0);
    for row in GROUPS.iter().flat_map(|group| table::read(group)) {
        for vector in row.vectors.iter().filter(|vector| vector.reply.is_none()) {
            let Some(expected) = &vector.upstream else { continue };
            let expected: Vec<String> =
                expected.iter().map(|(method, target, _)| format!("{method} {target}")).collect();
            let from = tomcat.access_log().len();
            send(&gateway, vector);
            count += 1;
            let marker = format!("/next/{count}");
            Client::tls(gateway.https).ask(format!("GET {marker} HTTP/1.1\r\nHost: a\r\n\r\n"));
            let marker = format!("GET {marker}");
            wait_for("the marker in the log of Tomcat", || {
                let told = told(&tomcat, from);
                (told.contains(&marker) && told.len() > expected.len()).then_some(())
            });
            let mut found = told(&tomcat, from);
            found.retain(|request| *request != marker);
            // A body that is wrong is found wrong behind its head, which Tomcat then tells of.
            let is_cut = expected.is_empty() && found == ["POST /guacamole/"];
            if found != expected && !is_cut {
                wrong.push(format!("row {}: {found:?}: {:.120}", row.id, vector.text));
            }
        }
    }
    assert!(count > 100, "only {count} vectors were sent");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
