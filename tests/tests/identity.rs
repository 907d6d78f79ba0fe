//! Who the upstream believes the client to be, and what of a message is the gateway's business alone.

use tlsplice_tests::client::Client;
use tlsplice_tests::gateway::{Config, Gateway};
use tlsplice_tests::origin::Origin;

/// Everything that a client could use to be taken for somebody else, and everything that is meant for us alone.
const FORGED: &str = "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: ftp\r\nX-Forwarded-Host: evil\r\n\
    X-Forwarded-Port: 1\r\nX-Forwarded-Server: evil\r\nForwarded: for=6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\n\
    REMOTE_USER: admin\r\nX-Client-Verified: yes\r\nX-Client-Certificate: x\r\nX_Forwarded_For: 6.6.6.6\r\n\
    Proxy: evil\r\nProxy-Connection: close\r\nTE: trailers\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\n\
    Connection: X-Hop, X-Forwarded-For, close\r\n";

fn seen(gateway: &Gateway, fields: &str) -> Vec<String> {
    let mut client = Client::tls(gateway.https);
    let text = client.ask(format!("GET / HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n")).text();
    text.lines().map(str::to_ascii_lowercase).collect()
}

#[test]
fn forged_identities_are_dropped_and_true_ones_set() {
    let origin = Origin::mirror();
    let gateway = Gateway::start(&Config::to(origin.address()));
    let lines = seen(&gateway, FORGED);
    let text = lines.join("\n");
    for forged in
        ["6.6.6.6", "evil", "ftp", "admin", "x-client", "x_forwarded", "x-hop", "keep-alive"]
    {
        assert!(!text.contains(forged), "{forged} got through:\n{text}");
    }
    let port = gateway.https.port();
    for expected in [
        "host: localhost".to_owned(),
        "x-forwarded-for: 127.0.0.1".to_owned(),
        "x-forwarded-proto: https".to_owned(),
        "x-forwarded-host: localhost".to_owned(),
        format!("x-forwarded-port: {port}"),
    ] {
        assert_eq!(
            lines.iter().filter(|line| **line == expected).count(),
            1,
            "{expected}:\n{text}"
        );
    }
}

#[test]
fn only_a_trusted_proxy_may_say_who_its_client_is() {
    let origin = Origin::mirror();
    let config = Config::to(origin.address()).with_top("trusted_proxies = [\"127.0.0.0/8\"]");
    let gateway = Gateway::start(&config);
    let lines = seen(&gateway, "X-Forwarded-For: 203.0.113.7,  198.51.100.1\r\n");
    assert!(
        lines.contains(&"x-forwarded-for: 203.0.113.7, 198.51.100.1, 127.0.0.1".to_owned()),
        "{lines:?}"
    );
}

#[test]
fn unknown_fields_and_odd_queries_pass_untouched() {
    let origin = Origin::start(|connection| {
        let head = connection.request()?;
        connection.send(
            "HTTP/1.1 200 OK\r\nGuacamole-Tunnel-Token: t\r\nGuacamole-Status-Code: 519\r\n\
             Connection: X-Mine\r\nX-Mine: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        )?;
        connection.send(format!("{:x}\r\n{head}\r\n0\r\n\r\n", head.len()))
    });
    let gateway = Gateway::start(&Config::to(origin.address()));
    let mut client = Client::tls(gateway.https);
    let response = client.ask(
        "GET /tunnel?read:1-2-3:0&a=b%20c+d;e HTTP/1.1\r\nHost: localhost\r\n\
         Guacamole-Tunnel-Token: abc\r\nX-Odd: \u{e4}\r\n\r\n",
    );
    let text = response.text();
    assert!(text.starts_with("GET /tunnel?read:1-2-3:0&a=b%20c+d;e HTTP/1.1\r\n"), "{text}");
    assert!(text.contains("Guacamole-Tunnel-Token: abc\r\n"), "{text}");
    assert!(text.contains("X-Odd: \u{e4}\r\n"), "{text}");
    assert_eq!(response.field("guacamole-tunnel-token"), Some("t"));
    assert_eq!(response.field("guacamole-status-code"), Some("519"));
    assert_eq!(response.field("x-mine"), None);
}

#[test]
fn the_redirect_listener_sends_everybody_to_https() {
    let origin = Origin::mirror();
    let gateway = Gateway::start(&Config::to(origin.address()));
    let mut client = Client::plain(gateway.http);
    let response = client.ask("GET /a?b HTTP/1.1\r\nHost: desk.example.org:8080\r\n\r\n");
    assert_eq!(response.status, 308);
    assert_eq!(response.field("location"), Some("https://desk.example.org/a?b"));
    assert_eq!(client.ask("GET / HTTP/1.1\r\nHost: x\"y\r\n\r\n").status, 400);
    assert_eq!(origin.accepted(), 0);
}

#[test]
fn routes_edits_and_access_rules_apply() {
    let origin = Origin::mirror();
    let config = Config::default().with(&format!(
        "[[upstream]]\nname = \"m\"\nendpoints = \"http://{0}\"\n\
         [[route]]\npath = \"/open\"\nupstream = \"m\"\nhsts = true\n\
         request_headers = {{ set = {{ X-Added = \"one\" }}, remove = [\"X-Gone\"] }}\n\
         response_headers = {{ set = {{ X-Frame-Options = \"DENY\" }} }}\n\
         [[route]]\npath = \"/open/closed\"\nupstream = \"m\"\ndeny = \"127.0.0.1\"\n\
         [[route]]\npath = \"/elsewhere\"\nupstream = \"m\"\nallow = \"192.0.2.0/24\"\n\
         [[route]]\nhost = \"desk.example.org\"\nupstream = \"m\"\nupstream_path = \"/desk\"\n",
        origin.address()
    ));
    let gateway = Gateway::start(&config);
    let mut client = Client::tls(gateway.https);
    let response = client.ask("GET /open/x HTTP/1.1\r\nHost: localhost\r\nX-Gone: 1\r\n\r\n");
    let text = response.text();
    assert!(text.contains("x-added: one\r\n") && !text.contains("X-Gone"), "{text}");
    assert_eq!(response.field("x-frame-options"), Some("DENY"));
    assert_eq!(response.field("strict-transport-security"), Some("max-age=31536000"));
    assert_eq!(client.get("/open/closed/x").status, 403);
    assert_eq!(client.get("/openclosed").status, 404);
    assert_eq!(client.get("/elsewhere/").status, 403);
    let text = client.ask("GET /a HTTP/1.1\r\nHost: Desk.Example.Org\r\n\r\n").text();
    assert!(text.starts_with("GET /desk/a HTTP/1.1\r\n"), "{text}");
}

#[test]
fn redirects_and_cookies_name_the_public_address() {
    let origin = Origin::start(|connection| {
        let host = loop {
            let head = connection.request()?;
            let address = connection.stream.local_addr()?;
            if head.contains("/end") {
                break head;
            }
            connection.send(format!(
                "HTTP/1.1 302 Found\r\nLocation: http://{address}/app/next?a=b\r\n\
                 Content-Location: /app/here\r\nSet-Cookie: a=b; Path=/app; HttpOnly\r\n\
                 Set-Cookie: c=d; Path=/other\r\nContent-Length: 0\r\n\r\n"
            ))?;
        };
        connection.respond(&host)
    });
    let config = Config::default().with(&format!(
        "[[route]]\npath = \"/desk\"\nupstream = \"http://{}/app/\"\n",
        origin.address()
    ));
    let gateway = Gateway::start(&config);
    let mut client = Client::tls(gateway.https);
    let host = format!("localhost:{}", gateway.https.port());
    let response = client.ask(format!("GET /desk/x HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    let expected = format!("https://{host}/desk/next?a=b");
    assert_eq!(response.field("location"), Some(expected.as_str()));
    assert_eq!(response.field("content-location"), Some("/desk/here"));
    let cookies: Vec<&str> = response
        .fields
        .iter()
        .filter(|(name, _)| name == "set-cookie")
        .map(|(_, value)| value.as_str())
        .collect();
    assert!(cookies[0].contains("a=b") && cookies[0].contains("Path=/desk"), "{cookies:?}");
    assert!(cookies[1].contains("Path=/other"), "a foreign path stays: {cookies:?}");
}
