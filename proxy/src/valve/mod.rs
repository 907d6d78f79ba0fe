//! Tomcat's side: the valve that makes it believe this gateway, and nobody else.
//!
//! [`Sources`] is found on the machine; everything else is pure text.

mod lint;
mod pattern;
mod sources;

use std::fmt::Write as _;

pub use lint::{Finding, lint};
pub use sources::{Sight, Sources};

use crate::addr::CidrSet;

/// The class of the valve.
const CLASS: &str = "org.apache.catalina.valves.RemoteIpValve";

/// The `RemoteIpValve` element for `server.xml`, and the environment of the Guacamole image, with an account of what each
/// endpoint sees. None when no endpoint sees an address.
#[must_use]
pub fn render(sources: &Sources, trusted: &CidrSet) -> Option<String> {
    let addresses = sources.addresses();
    if addresses.is_empty() {
        return None;
    }
    let internal = pattern::any_of(addresses.iter().copied().map(pattern::address).collect());
    let (described, beyond): (Vec<_>, Vec<_>) = trusted
        .networks()
        .iter()
        .map(|network| (network, pattern::network(*network)))
        .partition(|(_, pattern)| pattern.is_some());
    let proxies =
        pattern::any_of(described.into_iter().filter_map(|(_, pattern)| pattern).collect());

    let mut text = account(sources);
    let mut put = |line: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{line}");
    };
    put("\n<!-- server.xml: the first valve inside <Host> -->");
    put(&format!("<Valve className=\"{CLASS}\""));
    put(&format!("       internalProxies=\"{internal}\""));
    if !proxies.is_empty() {
        put(&format!("       trustedProxies=\"{proxies}\""));
    }
    put("       remoteIpHeader=\"x-forwarded-for\" proxiesHeader=\"x-forwarded-by\"");
    put(
        "       protocolHeader=\"x-forwarded-proto\" hostHeader=\"x-forwarded-host\" portHeader=\"x-forwarded-port\"/>",
    );
    put("<!-- An AccessLogValve shows the client only with requestAttributesEnabled=\"true\". -->");
    if !proxies.is_empty() {
        put(
            "<!-- trustedProxies are the trusted_proxies of this gateway. Tomcat believes them as direct peers too: its \
             port must not be reachable from there. -->",
        );
    }
    for (network, _) in beyond {
        put(&format!(
            "<!-- trusted_proxies {network} is left out: no exact expression. Name single addresses, or whole groups \
             of 16 bits without zeros. -->"
        ));
    }
    put(
        "\n# The same for the Docker image guacamole/guacamole, as a file for `docker run --env-file`.",
    );
    put(
        "# PROXY_BY_HEADER stays unset: the image turns it into an attribute that Tomcat does not know.",
    );
    put("REMOTE_IP_VALVE_ENABLED=true");
    let allowed = if proxies.is_empty() { internal } else { format!("{internal}|{proxies}") };
    put(&format!("PROXY_ALLOWED_IPS_REGEX={allowed}"));
    put("PROXY_IP_HEADER=x-forwarded-for");
    put("PROXY_PROTOCOL_HEADER=x-forwarded-proto");
    Some(text)
}

/// What each endpoint sees, as comments that both XML and a file of variables bear when cut out.
#[must_use]
pub fn account(sources: &Sources) -> String {
    let mut text = String::new();
    for (endpoint, sight) in &sources.sights {
        let line = match sight {
            Sight::Address(address) => format!("{endpoint} sees this gateway as {address}"),
            Sight::Unix => format!(
                "{endpoint} sees no address, and no valve can tell who connects: permissions of the socket do that"
            ),
            Sight::Unknown(why) => format!("{endpoint} is left out: {why}"),
        };
        let _ = writeln!(text, "# {line}");
    }
    for address in &sources.added {
        let _ = writeln!(text, "# {address} was named by --source");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen_from(addresses: &[&str]) -> Sources {
        let sight =
            |text: &&str| ("upstream:8080".to_owned(), Sight::Address(text.parse().unwrap()));
        Sources { sights: addresses.iter().map(sight).collect(), added: Vec::new() }
    }

    #[test]
    fn the_element_is_what_the_lint_accepts() {
        let trusted = CidrSet::new(vec![
            "192.0.2.0/28".parse().unwrap(),
            "2001:db8::/32".parse().unwrap(),
            "2001:db8:0:8000::/49".parse().unwrap(),
        ]);
        let sources = seen_from(&["10.0.0.5", "2001:db8:5::7"]);
        let text = render(&sources, &trusted).unwrap();
        let start = text.find("<Valve").unwrap();
        let end = text[start..].find("/>").unwrap() + start + 2;
        let xml = format!(
            "<Server><Service><Engine><Host>{}</Host></Engine></Service></Server>",
            &text[start..end]
        );
        assert_eq!(lint(&xml, &sources, &trusted), [], "{text}");
        assert!(text.contains("2001:db8:0:8000::/49 is left out"), "{text}");
        assert!(text.contains("# upstream:8080 sees this gateway as 10.0.0.5"), "{text}");
    }

    #[test]
    fn the_image_gets_the_names_that_it_reads() {
        let text = render(&seen_from(&["127.0.0.1", "::1"]), &CidrSet::default()).unwrap();
        for line in [
            "REMOTE_IP_VALVE_ENABLED=true",
            r"PROXY_ALLOWED_IPS_REGEX=127\.0\.0\.1|0:0:0:0:0:0:0:1|::1",
            "PROXY_IP_HEADER=x-forwarded-for",
            "PROXY_PROTOCOL_HEADER=x-forwarded-proto",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("trustedProxies") && !text.contains("\nPROXY_BY_HEADER"), "{text}");
    }

    #[test]
    fn without_an_address_there_is_no_valve() {
        let sources =
            Sources { sights: vec![("unix:/run/t".into(), Sight::Unix)], added: Vec::new() };
        assert_eq!(render(&sources, &CidrSet::default()), None);
        assert!(account(&sources).contains("permissions of the socket"));
    }
}
