//! Durations, sizes, networks, paths, names and URLs against naive models.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use proptest::prelude::*;

use crate::config::model::{EndpointAddr, Host};
use crate::config::scalar::*;

const ALL: std::ops::RangeInclusive<Duration> =
    std::ops::RangeInclusive::new(Duration::ZERO, Duration::MAX);

proptest! {
    #[test]
    fn a_duration_reads_back_as_it_was_shown(millis in 0..1_u64 << 50) {
        let value = Duration::from_millis(millis);
        prop_assert_eq!(duration(&show_duration(value), &ALL).unwrap(), value);
    }

    #[test]
    fn a_duration_is_its_number_times_its_unit(number in 0..1_u64 << 40, unit in 0..4_usize) {
        let (name, millis) = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)][unit];
        let value = duration(&format!("{number}{name}"), &ALL).unwrap();
        prop_assert_eq!(value, Duration::from_millis(number * millis));
    }

    #[test]
    fn bounds_of_a_duration_belong_to_it(a in 0..9_999_u64, b in 0..9_999_u64, x in 0..9_999_u64) {
        let bounds = Duration::from_millis(a.min(b))..=Duration::from_millis(a.max(b));
        let inside = a.min(b) <= x && x <= a.max(b);
        prop_assert_eq!(duration(&format!("{x}ms"), &bounds).is_ok(), inside);
    }

    #[test]
    fn any_text_is_judged_without_a_panic(text in "\\PC{0,40}|[a-z0-9:/.@\\[\\]*;%-]{0,40}") {
        let _ = duration(&text, &ALL);
        let _ = size(&text);
        let _ = network(&text);
        let _ = socket_address(&text);
        let _ = dns_name(&text);
        let _ = server_name(&text);
        let _ = route_host(&text);
        let _ = path_prefix(&text);
        let _ = upstream_url(&text);
        let _ = origin(&text);
        let _ = hsts(&text);
        let _ = upstream_name(&text);
    }

    #[test]
    fn a_size_is_its_number_times_its_unit(number in 0..1_u64 << 33, unit in 0..5_usize) {
        let (name, shift) = [("", 0), ("B", 0), ("KiB", 10), ("MiB", 20), ("GiB", 30)][unit];
        prop_assert_eq!(size(&format!("{number}{name}")).unwrap(), number << shift);
    }

    #[test]
    fn a_number_is_within_its_bounds_or_refused(a: u64, b: u64, x: i128) {
        let bounds = a.min(b)..=a.max(b);
        match within(x, &bounds) {
            Ok(value) => prop_assert!(i128::from(value) == x && bounds.contains(&value)),
            Err(_) => prop_assert!(u64::try_from(x).map_or(true, |x| !bounds.contains(&x))),
        }
    }

    #[test]
    fn a_network_is_read_as_written(bits in any::<u32>(), prefix in 0..=32_u8) {
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        let base = Ipv4Addr::from_bits(bits & mask);
        let read = network(&format!("{base}/{prefix}")).unwrap();
        prop_assert_eq!(read.to_string(), format!("{base}/{prefix}"));
        let stray = bits & !mask;
        let strayed = network(&format!("{}/{prefix}", Ipv4Addr::from_bits(bits)));
        prop_assert_eq!(strayed.is_ok(), stray == 0);
    }

    #[test]
    fn a_canonical_path_stays_as_it_is(path in "(/[a-zA-Z0-9._~-]{1,8}){0,4}/?") {
        if let Ok(canonical) = path_prefix(&path) {
            prop_assert!(canonical.starts_with('/') && canonical.ends_with('/'));
            prop_assert!(!canonical.contains("//"));
            prop_assert_eq!(path_prefix(&canonical).unwrap(), canonical.clone());
        } else {
            prop_assert!(path.is_empty() || path.split('/').any(|s| s == "." || s == ".."));
        }
    }
}

#[test]
fn a_size_that_overflows_is_refused() {
    assert!(size("17179869184GiB").is_err());
    assert!(size("18446744073709551616").is_err());
    assert_eq!(size("18446744073709551615").unwrap(), u64::MAX);
}

#[test]
fn one_address_is_a_network_of_one() {
    assert_eq!(network("192.0.2.1").unwrap().to_string(), "192.0.2.1/32");
    assert_eq!(network("2001:db8::1").unwrap().to_string(), "2001:db8::1/128");
    assert_eq!(network("::ffff:192.0.2.1").unwrap().to_string(), "192.0.2.1/32");
}

#[test]
fn a_path_of_more_than_1024_bytes_is_refused() {
    assert!(path_prefix(&"/a".repeat(512)).is_ok());
    assert!(path_prefix(&"/a".repeat(513)).is_err());
}

#[test]
fn names_are_bounded_by_label_and_in_all() {
    let label = "a".repeat(63);
    assert!(dns_name(&label).is_ok());
    assert!(dns_name(&format!("{label}a")).is_err());
    let name = format!("{label}.{label}.{label}.{}", "a".repeat(61));
    assert_eq!(name.len(), 253);
    assert!(dns_name(&name).is_ok());
    assert!(dns_name(&format!("{name}a")).is_err());
    assert_eq!(dns_name("Tomcat_1.Internal").unwrap(), "tomcat_1.internal");
}

#[test]
fn hosts_are_names_wildcards_and_addresses() {
    let exact = |text: &str| Host::Exact(text.to_owned());
    assert_eq!(route_host("Desk.Example.org").unwrap(), exact("desk.example.org"));
    assert_eq!(route_host("192.0.2.1").unwrap(), exact("192.0.2.1"));
    assert_eq!(route_host("[2001:DB8:0::1]").unwrap(), exact("[2001:db8::1]"));
    let wildcard = route_host("*.Example.org").unwrap();
    assert_eq!(wildcard, Host::Wildcard(".example.org".to_owned()));
    assert_eq!(wildcard.to_string(), "*.example.org");
    assert!(wildcard.matches("A.EXAMPLE.ORG"));
    for other in ["example.org", ".example.org", "a.b.example.org", "aexample.org"] {
        assert!(!wildcard.matches(other), "{other}");
    }
    assert!(server_name("192.0.2.1").is_err());
    assert!(route_host("*.*.org").is_err());
}

#[test]
fn an_upstream_url_is_an_endpoint_and_a_path() {
    let socket = |ip: IpAddr, port| EndpointAddr::Socket((ip, port).into());
    let name = |host: &str, port| EndpointAddr::Name { host: host.to_owned(), port };
    let read = |text: &str| upstream_url(text).unwrap();
    let v4 = IpAddr::from([10, 0, 0, 1]);
    assert_eq!(read("http://10.0.0.1:8080"), (socket(v4, 8080), None));
    assert_eq!(read("HTTP://10.0.0.1"), (socket(v4, 80), None));
    assert_eq!(
        read("http://[::1]:8080/"),
        (socket(Ipv6Addr::LOCALHOST.into(), 8080), Some("/".into()))
    );
    assert_eq!(read("http://[::1]"), (socket(Ipv6Addr::LOCALHOST.into(), 80), None));
    assert_eq!(read("http://Tomcat:8080/g"), (name("tomcat", 8080), Some("/g/".into())));
    assert_eq!(read("unix:/run/t.sock"), (EndpointAddr::Unix("/run/t.sock".into()), None));
    for wrong in [
        "http://a:+80",
        "http://a:",
        "http://a/..",
        "http://a/?q",
        "http://a#f",
        "http://",
        "unix:",
        "unix:///run/t.sock",
        "http://[::1]x:80",
        "http://[::1",
        "http://a b",
        "a",
    ] {
        assert!(upstream_url(wrong).is_err(), "{wrong}");
    }
    assert!(upstream_url(&format!("unix:/{}", "a".repeat(106))).is_ok());
    assert!(upstream_url(&format!("unix:/{}", "a".repeat(107))).is_err());
}

#[test]
fn an_origin_is_written_as_a_browser_does() {
    assert_eq!(origin("HTTPS://Desk.Example.org:443").unwrap(), "https://desk.example.org");
    assert_eq!(origin("http://desk:80").unwrap(), "http://desk");
    assert_eq!(origin("https://desk:80").unwrap(), "https://desk:80");
    assert_eq!(origin("https://desk").unwrap(), "https://desk");
    assert_eq!(origin("https://[::1]:8443").unwrap(), "https://[::1]:8443");
    assert_eq!(origin("https://192.0.2.1").unwrap(), "https://192.0.2.1");
}

#[test]
fn hsts_has_one_max_age_and_known_directives() {
    for good in ["max-age=0", "max-age=31536000; includeSubDomains; preload", "Max-Age = 1"] {
        assert_eq!(hsts(good).unwrap(), good);
    }
    for bad in [
        "",
        "max-age",
        "max-age=",
        "max-age=1; max-age=2",
        "max-age=1;\r\n preload",
        "x; max-age=1",
    ] {
        assert!(hsts(bad).is_err(), "{bad:?}");
    }
}
