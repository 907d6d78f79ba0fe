//! `tlsplice tomcat-valve`, believed by a real Tomcat.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};

use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use tlsplice_fixtures::packages;
use tlsplice_fixtures::tomcat::Tomcat;
use tlsplice_tests::gateway::{Config, Gateway, tlsplice};
use tlsplice_tests::{certificate, target, wait_for};

/// A client that is not the gateway.
const CLIENT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);

/// GET of a page of the test application from [`CLIENT`], with a claim to be another.
fn whoami(to: SocketAddr, target: &str) -> String {
    let IpAddr::V4(ip) = to.ip() else { panic!("an IPv4 address") };
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    bind(&socket, &SocketAddrV4::new(CLIENT, 0)).expect("a loopback address");
    connect(&socket, &SocketAddrV4::new(ip, to.port())).expect("it listens");
    let mut stream = TcpStream::from(socket);
    write!(
        stream,
        "GET {target} HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 203.0.113.66\r\n\
         Connection: close\r\n\r\n"
    )
    .expect("it reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it answers");
    text
}

#[test]
fn tomcat_sees_the_true_client_and_lints_clean() {
    packages::ensure(packages::TOMCAT).expect("the packages can be installed");
    let certificate = certificate();
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("tlsplice.toml");
    let file_name = file.display().to_string();
    let text = format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\n[tls]\ncertificate = {:?}\nkey = {:?}\n\
         [[upstream]]\nname = \"t\"\nendpoints = [\"http://127.0.0.1:8080\", \"http://[::1]:8080\"]\n\
         [[route]]\nupstream = \"t\"\n",
        certificate.chain, certificate.key
    );
    fs::write(&file, text).expect("it is written");
    let printed = tlsplice(&["tomcat-valve", "--config", &file_name]);
    let printed = String::from_utf8(printed.stdout).expect("text");
    let start = printed.find("<Valve").expect("an element");
    let end = start + printed[start..].find("/>").expect("its end") + 2;

    let tomcat =
        Tomcat::start_with_valve(&target().join("tests/tomcat-valve"), &printed[start..end])
            .expect("Tomcat starts");
    let port = tomcat.address().port();
    let gateway = Gateway::start(&Config::default().with(&format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\nservice = \"http\"\n\
         [[route]]\npath = \"/four\"\nupstream = \"http://127.0.0.1:{port}/test/\"\n\
         [[route]]\npath = \"/six\"\nupstream = \"http://[::1]:{port}/test/\"\n"
    )));
    for route in ["/four", "/six"] {
        let page = whoami(gateway.plain(), &format!("{route}/whoami.jsp?{route}-{port}"));
        assert!(page.contains("remoteAddr=127.0.0.9\n"), "{route}: {page}");
        // And so says the access log, for whatever the gateway's own address is.
        let line = wait_for("the line in Tomcat's access log", || {
            let query = format!("?{route}-{port} ");
            tomcat.access_log().into_iter().find(|line| line.contains(&query))
        });
        assert!(line.starts_with("127.0.0.9 "), "{line}");
    }
    // Past the gateway, the same claim is not believed.
    let page = whoami(tomcat.address(), "/test/whoami.jsp");
    assert!(page.contains("remoteAddr=127.0.0.9\n"), "{page}");

    let server_xml = tomcat.server_xml();
    let lint = |xml: &str| tlsplice(&["tomcat-valve", "--config", &file_name, "--lint", xml]);
    let good = lint(&server_xml.display().to_string());
    assert_eq!(good.status.code(), Some(0), "{good:?}");

    // What Tomcat believes by default, this client among it, is found.
    let wide = directory.path().join("server.xml");
    let text = fs::read_to_string(&server_xml).expect("it is there");
    let text = text.replace("proxiesHeader=", "remoteIpProxiesHeader=");
    let text = text.replace(r"internalProxies=", r"colour=");
    fs::write(&wide, text).expect("it is written");
    let found = lint(&wide.display().to_string());
    assert_eq!(found.status.code(), Some(1), "{found:?}");
    let said = String::from_utf8_lossy(&found.stdout).into_owned();
    for part in ["server.xml: line ", "write \"proxiesHeader\"", "\"colour\"", "trusts too much"] {
        assert!(said.contains(part), "{part} is not in\n{said}");
    }
}
