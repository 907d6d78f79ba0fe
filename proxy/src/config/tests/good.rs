//! What a good file means, key by key.

use std::net::SocketAddr;
use std::time::Duration;

use super::*;
use crate::config::{
    AccessLog, App, CallFilter, Config, EndpointAddr, FlushLatency, HeaderEdits, Host, Limits,
    Listener, LogFormat, LogTarget, Offload, Process, Service, Splice, Telemetry,
};

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// The one route of [`PLAIN`] with lines added to it.
fn route_with(lines: &str) -> Config {
    accept(&format!("{PLAIN}{lines}")).config
}

#[test]
fn a_minimal_file_for_guacamole_has_every_default() {
    let loaded = accept(
        "\
[[listener]]
address = [\"0.0.0.0:443\", \"[::]:443\"]
[tls]
certificate = \"cert.pem\"
key = \"/etc/tlsplice/key.pem\"
[[route]]
upstream = \"http://127.0.0.1:8080/guacamole/\"
app = \"guacamole\"
",
    );
    assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
    let config = loaded.config;
    let https = |text| Listener {
        address: address(text),
        service: Service::Https,
        offload: Offload::Auto,
        splice: Splice::Auto,
    };
    assert_eq!(config.listeners, [https("0.0.0.0:443"), https("[::]:443")]);
    assert!(config.tls.is_some());
    assert_eq!(config.workers, 4);
    assert_eq!(config.drain_timeout, secs(30));
    assert!(config.trusted_proxies.is_empty());
    assert_eq!(config.access_log, None);
    assert_eq!(
        config.limits,
        Limits {
            head_bytes: 32 * 1024,
            head_fields: 100,
            connections: 20_000,
            connections_per_address: 1_000,
            handshake_timeout: secs(10),
            head_timeout: secs(10),
            keep_alive_timeout: secs(75),
            body_rate_min: 128,
            write_timeout: secs(60),
        }
    );

    let [route] = &config.routes[..] else { panic!("one route") };
    assert_eq!((route.host.as_ref(), route.path.as_str()), (None, "/"));
    assert_eq!(route.upstream_path, "/guacamole/");
    assert_eq!(route.name, "*/");
    assert_eq!(route.app, App::Guacamole);
    assert_eq!(route.upgrade_timeout, secs(8));
    assert_eq!(route.tunnel_idle_timeout, secs(60));
    assert_eq!(route.hsts.as_deref(), Some("max-age=31536000"));
    assert_eq!(route.body_bytes_max, None);
    assert!(route.allow.is_empty() && route.deny.is_empty() && route.allowed_origins.is_empty());
    assert_eq!(route.request_headers, HeaderEdits::default());
    assert_eq!(route.response_headers, HeaderEdits::default());

    let upstream = &config.upstreams[route.upstream];
    assert_eq!(upstream.name, "http://127.0.0.1:8080");
    assert_eq!(upstream.endpoints, [EndpointAddr::Socket(address("127.0.0.1:8080"))]);
    assert_eq!(upstream.connect_timeout, secs(3));
    assert_eq!(upstream.response_timeout, secs(60));
    assert_eq!(upstream.idle_timeout, secs(60));
    assert_eq!(upstream.keep_alive_timeout, secs(15));
    assert_eq!(upstream.keep_alive_max, 64);
    assert_eq!((upstream.eject_after, upstream.eject_time), (3, secs(10)));
    assert_eq!(upstream.resolve_interval, secs(30));
}

#[test]
fn a_named_upstream_has_the_defaults_of_one_in_a_route() {
    let named = "[[upstream]]\nname = \"t\"\nendpoints = \"http://127.0.0.1:8080\"\n\
                 [[route]]\npath = \"/t/\"\nupstream = \"t\"\n";
    let config = route_with(named);
    let [one, other] = &config.upstreams[..] else { panic!("two upstreams") };
    let unnamed = |upstream| format!("{upstream:?}").split_once("endpoints").unwrap().1.to_owned();
    assert_eq!(unnamed(one), unnamed(other));
}

#[test]
fn every_key_is_read() {
    let loaded = accept(
        r#"
workers = 7
drain_timeout = "1m"
trusted_proxies = ["10.0.0.0/8", "2001:db8::1"]

[[listener]]
address = "0.0.0.0:80"
service = "redirect"
redirect_port = 8443

[[listener]]
address = ["[::1]:0", "[::1]:0"]
service = "http"

[[upstream]]
name = "tomcat"
endpoints = ["http://10.0.0.1:8080", "http://Tomcat.internal", "unix:/run/t.sock"]
connect_timeout = "250ms"
response_timeout = "2m"
idle_timeout = "3m"
keep_alive_timeout = "4s"
keep_alive_max = 0
eject_after = 5
eject_time = "6s"
resolve_interval = "1h"

[[route]]
host = "*.Example.org"
path = "/desk"
upstream = "tomcat"
upstream_path = "/guacamole"
app = "generic"
allow = "192.0.2.0/24"
deny = ["192.0.2.7", "192.0.2.8"]
hsts = "max-age=1; preload"
body_bytes_max = "4MiB"
upgrade_timeout = "1s"
tunnel_idle_timeout = "2s"
allowed_origins = ["https://A.example.org:443"]
request_headers = { set = { X-B = "2", X-A = "1" }, remove = ["X-C", "x_d"] }
response_headers = { remove = "Server" }

[limits]
head_bytes = 1024
head_fields = 1
connections = 3
handshake_timeout = "1s"
head_timeout = "2s"
keep_alive_timeout = "3s"
body_rate_min = 0
write_timeout = "4s"

[access_log]
target = "/var/log/access.log"
format = "combined"
"#,
    );
    assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
    let config = loaded.config;
    assert_eq!((config.workers, config.drain_timeout), (7, secs(60)));
    assert!(config.trusted_proxies.contains("10.1.2.3".parse().unwrap()));
    assert!(!config.trusted_proxies.contains("2001:db8::2".parse().unwrap()));
    assert_eq!(config.listeners[0].service, Service::RedirectToHttps { port: 8443 });
    assert_eq!(config.listeners.len(), 3, "port 0 may stand twice");
    assert!(config.tls.is_none() && config.certificates.is_empty());

    let [upstream] = &config.upstreams[..] else { panic!("one upstream") };
    assert_eq!(upstream.name, "tomcat");
    assert_eq!(
        upstream.endpoints,
        [
            EndpointAddr::Socket(address("10.0.0.1:8080")),
            EndpointAddr::Name { host: "tomcat.internal".into(), port: 80 },
            EndpointAddr::Unix("/run/t.sock".into()),
        ]
    );
    assert_eq!(upstream.connect_timeout, Duration::from_millis(250));
    assert_eq!((upstream.response_timeout, upstream.idle_timeout), (secs(120), secs(180)));
    assert_eq!((upstream.keep_alive_timeout, upstream.keep_alive_max), (secs(4), 0));
    assert_eq!((upstream.eject_after, upstream.eject_time), (5, secs(6)));
    assert_eq!(upstream.resolve_interval, secs(3600));

    let [route] = &config.routes[..] else { panic!("one route") };
    assert_eq!(route.host, Some(Host::Wildcard(".example.org".into())));
    assert_eq!((route.path.as_str(), route.upstream_path.as_str()), ("/desk/", "/guacamole/"));
    assert_eq!(route.name, "*.example.org/desk/");
    assert_eq!(route.app, App::Generic);
    assert!(route.allow.contains("192.0.2.7".parse().unwrap()));
    assert!(route.deny.contains("192.0.2.8".parse().unwrap()));
    assert_eq!(route.hsts.as_deref(), Some("max-age=1; preload"));
    assert_eq!(route.body_bytes_max, Some(4 << 20));
    assert_eq!((route.upgrade_timeout, route.tunnel_idle_timeout), (secs(1), secs(2)));
    assert_eq!(route.allowed_origins, ["https://a.example.org"]);
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(route.request_headers.set, [pair("x-a", "1"), pair("x-b", "2")]);
    assert_eq!(route.request_headers.remove, ["x-c", "x_d"]);
    assert_eq!(route.response_headers.remove, ["server"]);

    assert_eq!(
        config.limits,
        Limits {
            head_bytes: 1024,
            head_fields: 1,
            connections: 3,
            // Never above the bound for all.
            connections_per_address: 3,
            handshake_timeout: secs(1),
            head_timeout: secs(2),
            keep_alive_timeout: secs(3),
            body_rate_min: 0,
            write_timeout: secs(4),
        }
    );
    assert_eq!(
        config.access_log,
        Some(AccessLog {
            target: LogTarget::File("/var/log/access.log".into()),
            format: LogFormat::Combined,
        })
    );
}

#[test]
fn an_access_log_goes_to_standard_output_as_json_unless_told() {
    let expected = AccessLog { target: LogTarget::Stdout, format: LogFormat::Json };
    assert_eq!(route_with("[access_log]\n").access_log, Some(expected.clone()));
    assert_eq!(route_with("[access_log]\ntarget = \"stdout\"\n").access_log, Some(expected));
    let relative = route_with("[access_log]\ntarget = \"access.log\"\n").access_log.unwrap();
    assert_eq!(relative.target, LogTarget::File("/etc/tlsplice/access.log".into()));
}

#[test]
fn a_path_in_the_url_maps_and_its_absence_does_not() {
    let mapped = |lines: &str| {
        let text =
            format!("[[listener]]\naddress = \"[::1]:0\"\nservice = \"http\"\n[[route]]\n{lines}");
        let route = accept(&text).config.routes.remove(0);
        (route.path, route.upstream_path)
    };
    let pair = |path: &str, at: &str| (path.to_owned(), at.to_owned());
    assert_eq!(mapped("path = \"/g\"\nupstream = \"http://a\"\n"), pair("/g/", "/g/"));
    assert_eq!(mapped("path = \"/g/\"\nupstream = \"http://a/\"\n"), pair("/g/", "/"));
    assert_eq!(mapped("path = \"/g/\"\nupstream = \"http://a/x\"\n"), pair("/g/", "/x/"));
    assert_eq!(mapped("upstream = \"unix:/t\"\nupstream_path = \"/x\"\n"), pair("/", "/x/"));
}

#[test]
fn routes_to_the_same_url_share_one_upstream() {
    let config = route_with(
        "[[route]]\npath = \"/a/\"\nupstream = \"http://127.0.0.1:8080/b/\"\n\
         [[route]]\npath = \"/c/\"\nupstream = \"http://127.0.0.1:8081\"\n",
    );
    assert_eq!(config.upstreams.len(), 2);
    let indices: Vec<usize> = config.routes.iter().map(|route| route.upstream).collect();
    assert_eq!(indices, [0, 1, 0]);
}

#[test]
fn hsts_is_on_off_or_spelled_out() {
    let hsts = |line: &str| route_with(line).routes.remove(0).hsts;
    assert_eq!(hsts("hsts = true\n").as_deref(), Some("max-age=31536000"));
    assert_eq!(hsts("hsts = false\n"), None);
    assert_eq!(hsts("hsts = \"max-age=0\"\n").as_deref(), Some("max-age=0"));
}

#[test]
fn workers_follow_the_cores_within_their_bound() {
    let mut memory = Memory::default();
    for (cores, expected) in [(0, 1), (3, 3), (5_000, 1_024)] {
        let mut surroundings =
            Surroundings { files: &mut memory, directory: Path::new("/"), now: NOW, cores };
        let loaded = parse(PLAIN, Path::new("x"), &mut surroundings).unwrap();
        assert_eq!(loaded.config.workers, expected);
    }
}

#[test]
fn the_list_of_top_level_keys_is_complete() {
    let known = refuse(&format!("qqqqqqqqqq = 1\n{PLAIN}"));
    let hint = known.problems()[0].hint.clone().unwrap();
    let mut read: Vec<&str> = hint.strip_prefix("known here: ").unwrap().split(", ").collect();
    read.sort_unstable();
    assert_eq!(read, crate::config::sections::TOP);
}

#[test]
fn the_examples_of_the_readme_are_accepted() {
    let readme = include_str!("../../../../README.md");
    let mut memory = Memory::with_certificate();
    let other = pair(&["intranet.example.org"]);
    for file in ["/etc/tlsplice/fullchain.pem", "/etc/tlsplice/cert.pem"] {
        let own = memory.files[Path::new("/etc/tlsplice/cert.pem")].clone();
        memory.files.insert(file.into(), own);
    }
    memory.put("/etc/tlsplice/intranet.pem", &other.certificate);
    memory.put("/etc/tlsplice/intranet-key.pem", &other.key);
    let mut examples = 0;
    for block in readme.split("```toml\n").skip(1) {
        let example = block.split("```").next().unwrap();
        match memory.parse(example) {
            Ok(loaded) => assert!(loaded.warnings.is_empty(), "{}", loaded.warnings),
            Err(report) => panic!("{report}"),
        }
        examples += 1;
    }
    assert!(examples >= 2, "the README shows a minimal and a full file");
}

#[test]
fn what_is_measured_can_be_bounded_and_switched_off() {
    let of = |lines: &str| accept(&format!("{PLAIN}{lines}")).config.telemetry;
    assert_eq!(of(""), Telemetry { flush_latency: FlushLatency::Auto, connections: None });
    assert_eq!(
        of("[telemetry]\nflush_latency = \"off\"\nconnections = 7\n"),
        Telemetry { flush_latency: FlushLatency::Off, connections: Some(7) }
    );
    let report = refuse(&format!("{PLAIN}[telemetry]\nconnections = 0\nflush_latency = \"on\"\n"));
    assert_eq!(report.problems().len(), 2, "{report}");
}

#[test]
fn a_user_is_looked_up_with_its_groups() {
    let of = |lines: &str| accept(&format!("{PLAIN}{lines}")).config.process;
    assert_eq!(of(""), Process { account: None, filter: CallFilter::Kill });
    let process = of("[process]\nuser = \"tlsplice\"\ngroup = \"web\"\nfilter = \"log\"\n");
    assert_eq!(process.filter, CallFilter::Log);
    let account = process.account.unwrap();
    assert_eq!((account.user, account.group, &account.groups[..]), (900, 33, &[33][..]));
    assert_eq!(account.to_string(), "tlsplice (900:33)");
    for (lines, word) in [
        ("user = \"nobody-here\"", "useradd"),
        ("user = \"tlsplice\"\ngroup = \"none\"", "there is no group"),
        ("group = \"web\"", "stands alone"),
        ("user = 7", "whole number"),
        ("filter = \"off\"", "\"kill\" or \"log\""),
    ] {
        let report = refuse(&format!("{PLAIN}[process]\n{lines}\n"));
        assert_eq!(report.problems().len(), 1, "{report}");
        assert!(report.to_string().contains(word), "{report}");
    }
}

#[test]
fn administrators_ask_on_this_machine_only() {
    let of = |lines: &str| accept(&format!("{PLAIN}{lines}")).config.admin;
    assert_eq!(of(""), None);
    let admin = of("[admin]\nsocket = \"admin.sock\"\naddress = \"[::1]:9180\"\n").unwrap();
    assert!(admin.socket.is_some_and(|socket| socket.is_absolute()));
    assert_eq!(admin.address, Some("[::1]:9180".parse().unwrap()));
    let long = format!("socket = \"{}\"", "x".repeat(200));
    for (lines, word) in [
        ("address = \"0.0.0.0:9180\"", "loopback"),
        ("address = \"192.0.2.1:9180\"", "loopback"),
        ("", "socket"),
        ("socket = \"/nonexistent/admin.sock\"", "no directory /nonexistent"),
        (&long, "107"),
    ] {
        let report = refuse(&format!("{PLAIN}[admin]\n{lines}\n"));
        assert_eq!(report.problems().len(), 1, "{report}");
        assert!(report.to_string().contains(word), "{report}");
    }
}

#[test]
fn the_readme_describes_every_key() {
    let readme = include_str!("../../../../README.md");
    let (_, reference) = readme.split_once("## Configuration").unwrap();
    // A key that no table knows makes each of them list those it does.
    let stray = "qqqqqqqqqqqqqqqq = 1\n";
    let report = refuse(&format!(
        "{stray}[[listener]]\n{stray}[tls]\n{stray}[[tls.site]]\n{stray}[[upstream]]\n{stray}\
         [[route]]\n{stray}[limits]\n{stray}[access_log]\n{stray}[telemetry]\n{stray}[admin]\n{stray}[process]\n{stray}"
    ));
    let lists = report.problems().iter().filter_map(|problem| {
        problem.hint.as_deref().and_then(|hint| hint.strip_prefix("known here: "))
    });
    let tables = [
        "listener",
        "tls",
        "site",
        "upstream",
        "route",
        "limits",
        "access_log",
        "telemetry",
        "admin",
        "process",
    ];
    let mut keys = 0;
    for key in lists.flat_map(|list| list.split(", ")) {
        let table = reference.contains(&format!("\n### `[{key}]`"))
            || reference.contains(&format!("[[{key}]]`"))
            || reference.contains(&format!("[[tls.{key}]]`"));
        let row = reference.contains(&format!("\n| `{key}` |"));
        assert!(row || (table && tables.contains(&key)), "{key}");
        keys += 1;
    }
    assert!(keys > 50, "only {keys} keys were listed");
}
