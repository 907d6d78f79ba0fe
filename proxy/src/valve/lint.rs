//! What is wrong with the valve in a `server.xml`.
//!
//! Tomcat takes an attribute name that it does not know for a warning in its log, and a wrong expression for no match at
//! all: both leave the address of the gateway where that of the client should be.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use regex::Regex;
use roxmltree::{Document, Node, ParsingOptions};

use super::pattern::java_text;
use super::{CLASS, Sources};
use crate::addr::CidrSet;

/// All attributes that the valve and its base class have, in Tomcat 9 to 11.
const ATTRIBUTES: [&str; 15] = [
    "className",
    "asyncSupported",
    "changeLocalName",
    "changeLocalPort",
    "hostHeader",
    "httpServerPort",
    "httpsServerPort",
    "internalProxies",
    "portHeader",
    "protocolHeader",
    "protocolHeaderHttpsValue",
    "proxiesHeader",
    "remoteIpHeader",
    "requestAttributesEnabled",
    "trustedProxies",
];

/// Addresses of every kind that a wide expression would take in.
const STRANGERS: [(&str, &str); 14] = [
    ("127.0.0.1", "loopback"),
    ("127.0.0.2", "loopback"),
    ("::1", "loopback"),
    ("10.1.2.3", "private"),
    ("10.255.255.254", "private"),
    ("172.16.5.4", "private"),
    ("172.31.9.9", "private"),
    ("192.168.1.10", "private"),
    ("169.254.7.7", "link-local"),
    ("100.64.3.3", "carrier-grade NAT"),
    ("8.8.8.8", "public"),
    ("203.0.113.77", "public"),
    ("fd12:3456:789a::1", "private"),
    ("2600::77", "public"),
];

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Line in the file, counted from 1.
    pub line: u32,
    /// What is wrong, and what it costs.
    pub message: String,
    /// What to do about it.
    pub cure: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}\n    do: {}", self.line, self.message, self.cure)
    }
}

/// What makes Tomcat see another client than the true one; empty when nothing does. Comments do not count.
#[must_use]
pub fn lint(xml: &str, sources: &Sources, trusted: &CidrSet) -> Vec<Finding> {
    let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
    let document = match Document::parse_with_options(xml, options) {
        Ok(document) => document,
        Err(error) => {
            let message = format!("this is no XML, Tomcat will not start: {error}");
            let cure = "correct the file".to_owned();
            return vec![Finding { line: error.pos().row, message, cure }];
        }
    };
    let is_valve = |node: &Node<'_, '_>| {
        node.tag_name().name() == "Valve" && node.attribute("className") == Some(CLASS)
    };
    let valves: Vec<_> = document.descendants().filter(is_valve).collect();
    let mut linter = Linter { document: &document, sources, trusted, findings: Vec::new() };
    if valves.is_empty() {
        linter.missing();
    }
    for valve in valves {
        linter.valve(valve);
    }
    linter.findings
}

struct Linter<'a, 'input> {
    document: &'a Document<'input>,
    sources: &'a Sources,
    trusted: &'a CidrSet,
    findings: Vec<Finding>,
}

impl Linter<'_, '_> {
    fn note(&mut self, at: usize, message: impl Into<String>, cure: impl Into<String>) {
        let line = self.document.text_pos_at(at).row;
        self.findings.push(Finding { line, message: message.into(), cure: cure.into() });
    }

    fn missing(&mut self) {
        let mut nodes = self.document.descendants();
        let comment = nodes.find(|node| {
            node.is_comment() && node.text().is_some_and(|text| text.contains("RemoteIpValve"))
        });
        let cost = "Tomcat takes the gateway for every client, and plain http for the scheme";
        let cure = "add what `tlsplice tomcat-valve` prints as the first valve inside <Host>";
        match comment {
            Some(comment) => {
                let message = format!("the RemoteIpValve is commented out: {cost}");
                self.note(comment.range().start, message, cure);
            }
            None => {
                let mut nodes = self.document.descendants();
                let host = nodes.find(|node| node.has_tag_name("Host"));
                let at = host.unwrap_or(self.document.root_element()).range().start;
                self.note(at, format!("there is no RemoteIpValve: {cost}"), cure);
            }
        }
    }

    fn valve(&mut self, valve: Node<'_, '_>) {
        let at = valve.range().start;
        let parent = valve.parent_element().map_or("", |parent| parent.tag_name().name());
        if !matches!(parent, "Engine" | "Host" | "Context") {
            let message = format!("a valve inside <{parent}> is never asked");
            self.note(at, message, "move it into <Host>");
        }
        for attribute in valve.attributes() {
            let name = attribute.name();
            if ATTRIBUTES.contains(&name) {
                continue;
            }
            let meant = match name {
                "remoteIpProxiesHeader" => Some("proxiesHeader"),
                _ => nearest(name),
            };
            let message = format!("Tomcat knows no attribute {name:?} and goes on without it");
            let cure = meant.map_or("remove it".to_owned(), |meant| format!("write {meant:?}"));
            self.note(attribute.range().start, message, cure);
        }
        for (name, wanted) in [
            ("remoteIpHeader", "x-forwarded-for"),
            ("protocolHeader", "x-forwarded-proto"),
            ("protocolHeaderHttpsValue", "https"),
        ] {
            let Some(attribute) = valve.attribute_node(name) else { continue };
            if !attribute.value().eq_ignore_ascii_case(wanted) {
                let message =
                    format!("{name} is {:?}, which this gateway does not send", attribute.value());
                self.note(attribute.range().start, message, format!("write {name}={wanted:?}"));
            }
        }
        if !valve.has_attribute("protocolHeader") {
            self.note(
                at,
                "protocolHeader is missing: older Tomcats then take every request for plain http, so that redirects \
                 and cookies are wrong",
                "write protocolHeader=\"x-forwarded-proto\"",
            );
        }
        self.believed(valve);
    }

    /// Whom the valve believes: our addresses, and nobody else's.
    fn believed(&mut self, valve: Node<'_, '_>) {
        let at = valve.range().start;
        let mut expressions = Vec::new();
        for name in ["internalProxies", "trustedProxies"] {
            let Some(attribute) = valve.attribute_node(name) else { continue };
            match java_regex(attribute.value()) {
                Ok(regex) => expressions.push(regex),
                Err(why) => {
                    let message = format!("{name} cannot be judged: {why}");
                    let cure = "use the expression that `tlsplice tomcat-valve` prints";
                    self.note(attribute.range().start, message, cure);
                    return;
                }
            }
        }
        let internal = valve.attribute_node("internalProxies");
        let believes = |address: IpAddr| {
            let by_default = internal.is_none() && is_default_proxy(address);
            by_default || expressions.iter().any(|regex| regex.is_match(&java_text(address)))
        };
        let place = internal.map_or(at, |attribute| attribute.range().start);
        let ours = self.sources.addresses();
        for &address in ours.iter().filter(|&&address| !believes(address)) {
            let message = format!(
                "the valve does not believe {}, which is this gateway: every client looks like it",
                java_text(address)
            );
            self.note(place, message, "use the expression that `tlsplice tomcat-valve` prints");
        }
        let is_stranger =
            |address: IpAddr| !ours.contains(&address) && !self.trusted.contains(address);
        let mut strangers: Vec<String> = Vec::new();
        for (text, kind) in STRANGERS {
            let Ok(address) = text.parse() else { continue };
            if is_stranger(address) && believes(address) {
                strangers.push(format!("{} ({kind})", java_text(address)));
            }
        }
        for neighbour in ours.iter().copied().flat_map(neighbours) {
            if is_stranger(neighbour) && believes(neighbour) {
                strangers.push(format!("{} (beside this gateway)", java_text(neighbour)));
            }
        }
        if let Some(first) = strangers.first() {
            let what = match internal {
                Some(_) => "the valve trusts too much",
                None => "internalProxies is missing, and Tomcat's default trusts too much",
            };
            let more = match strangers.len() {
                1 => String::new(),
                count => format!(" and {} more of the addresses tried", count - 1),
            };
            let message =
                format!("{what}: whoever connects from {first}{more} can claim to be anybody");
            self.note(place, message, "use the expression that `tlsplice tomcat-valve` prints");
        }
    }
}

/// The attribute that was probably meant.
fn nearest(name: &str) -> Option<&'static str> {
    let similar = ATTRIBUTES.iter().map(|&known| (strsim::damerau_levenshtein(known, name), known));
    similar.min().filter(|(distance, _)| *distance <= 3).map(|(_, known)| known)
}

/// Addresses that differ from one of ours in the last and in an earlier place.
fn neighbours(address: IpAddr) -> [IpAddr; 3] {
    match address {
        IpAddr::V4(address) => {
            let bits = address.to_bits();
            [bits ^ 1, bits ^ 0x0100, bits ^ 0x0001_0000]
                .map(|bits| Ipv4Addr::from_bits(bits).into())
        }
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            [bits ^ 1, bits ^ 1 << 48, bits ^ 1 << 80].map(|bits| Ipv6Addr::from_bits(bits).into())
        }
    }
}

/// What Tomcat believes when nothing is written.
fn is_default_proxy(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [a, b, ..] = address.octets();
            let is_shared = a == 100 && (64..128).contains(&b);
            address.is_private() || address.is_loopback() || address.is_link_local() || is_shared
        }
        IpAddr::V6(address) => {
            address.is_loopback() || address.is_unicast_link_local() || address.is_unique_local()
        }
    }
}

/// An expression of Java, matched against a whole text as Tomcat does.
fn java_regex(text: &str) -> Result<Regex, String> {
    if text.contains("${") {
        return Err("it has a property that Tomcat puts in when it starts".into());
    }
    // Of these, one dialect lacks the construct or gives it another meaning.
    for (construct, name) in [
        ("(?=", "look-ahead"),
        ("(?!", "look-ahead"),
        ("(?<=", "look-behind"),
        ("(?<!", "look-behind"),
        ("(?>", "an atomic group"),
        ("*+", "a possessive quantifier"),
        ("++", "a possessive quantifier"),
        ("?+", "a possessive quantifier"),
        ("\\Q", "quoting"),
    ] {
        if text.contains(construct) {
            return Err(format!("it uses {name} ({construct})"));
        }
    }
    let translated =
        text.replace(r"[\p{XDigit}]", "[0-9A-Fa-f]").replace(r"\p{XDigit}", "[0-9A-Fa-f]");
    // After a fixed count the possessive form means the same; after a range it may not.
    let translated = without_possessive_counts(&translated)?;
    Regex::new(&format!("^(?:{translated})$"))
        .map_err(|error| error.to_string().lines().last().unwrap_or_default().to_owned())
}

fn without_possessive_counts(text: &str) -> Result<String, String> {
    let mut rest = text;
    let mut out = String::with_capacity(text.len());
    while let Some(at) = rest.find("}+") {
        let (before, after) = rest.split_at(at + 1);
        let count = before.rsplit_once('{').map_or("", |(_, count)| count.trim_end_matches('}'));
        if count.is_empty() || !count.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err("it uses a possessive quantifier (}+)".into());
        }
        out.push_str(before);
        rest = after.get(1..).unwrap_or_default();
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::super::Sight;
    use super::*;

    /// The default of Tomcat 10.1 in its own words.
    const DEFAULT: &str = r"10\.\d{1,3}\.\d{1,3}\.\d{1,3}|192\.168\.\d{1,3}\.\d{1,3}|169\.254\.\d{1,3}\.\d{1,3}|127\.\d{1,3}\.\d{1,3}\.\d{1,3}|100\.6[4-9]{1}\.\d{1,3}\.\d{1,3}|100\.[7-9]{1}\d{1}\.\d{1,3}\.\d{1,3}|100\.1[0-1]{1}\d{1}\.\d{1,3}\.\d{1,3}|100\.12[0-7]{1}\.\d{1,3}\.\d{1,3}|172\.1[6-9]{1}\.\d{1,3}\.\d{1,3}|172\.2[0-9]{1}\.\d{1,3}\.\d{1,3}|172\.3[0-1]{1}\.\d{1,3}\.\d{1,3}|0:0:0:0:0:0:0:1|::1|fe[89ab]\p{XDigit}:.*|f[cd]\p{XDigit}{2}+:.*";

    fn findings(host: &str) -> Vec<Finding> {
        let sources = Sources {
            sights: vec![("t".into(), Sight::Address("10.0.0.5".parse().unwrap()))],
            added: Vec::new(),
        };
        let xml = format!(
            "<Server>\n<Service>\n<Engine>\n<Host>\n{host}\n</Host></Engine></Service></Server>"
        );
        lint(&xml, &sources, &CidrSet::default())
    }

    fn messages(attributes: &str) -> Vec<String> {
        let found = findings(&format!("<Valve className=\"{CLASS}\" {attributes}/>"));
        found.iter().map(|finding| format!("{}: {}", finding.message, finding.cure)).collect()
    }

    const GOOD: &str = r#"internalProxies="10\.0\.0\.5" protocolHeader="X-Forwarded-Proto""#;

    #[track_caller]
    fn assert_one(attributes: &str, parts: &[&str]) {
        let found = messages(attributes);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(parts.iter().all(|part| found[0].contains(part)), "{found:?}");
    }

    #[test]
    fn a_good_valve_has_no_findings() {
        assert_eq!(messages(GOOD), Vec::<String>::new());
    }

    #[test]
    fn a_missing_valve_is_found_and_a_commented_one_is_missing() {
        let found = findings("");
        assert_eq!((found.len(), found[0].line), (1, 4), "{found:?}");
        assert!(found[0].message.contains("there is no RemoteIpValve"));
        let found = findings(&format!("<!--\n<Valve className=\"{CLASS}\" {GOOD}/> -->"));
        assert_eq!((found.len(), found[0].line), (1, 5), "{found:?}");
        assert!(found[0].message.contains("commented out"));
    }

    #[test]
    fn unknown_attributes_are_found_with_the_right_name() {
        assert_one(
            &format!("{GOOD} remoteIpProxiesHeader=\"x\""),
            &["\"remoteIpProxiesHeader\"", "write \"proxiesHeader\""],
        );
        assert_one(&format!("{GOOD} remoteIPHeader=\"x\""), &["write \"remoteIpHeader\""]);
        assert_one(&format!("{GOOD} colour=\"x\""), &["\"colour\"", "remove it"]);
    }

    #[test]
    fn lines_are_those_of_the_attribute() {
        let found = findings(&format!(
            "<Valve className=\"{CLASS}\"\n  {GOOD}\n  remoteIpProxiesHeader=\"x\"/>"
        ));
        assert_eq!(found[0].line, 7, "{found:?}");
    }

    #[test]
    fn a_missing_protocol_and_foreign_headers_are_found() {
        assert_one(r#"internalProxies="10\.0\.0\.5""#, &["protocolHeader is missing"]);
        assert_one(&format!("{GOOD} remoteIpHeader=\"x-real-ip\""), &["does not send"]);
    }

    #[test]
    fn an_expression_that_does_not_match_us_is_found() {
        let protocol = "protocolHeader=\"x-forwarded-proto\"";
        assert_one(
            &format!(r#"{protocol} internalProxies="10\.0\.0\.50""#),
            &["does not believe 10.0.0.5"],
        );
        // Tomcat matches the whole text.
        assert_one(&format!(r#"{protocol} internalProxies="10\.0\.0\.""#), &["does not believe"]);
    }

    #[test]
    fn an_expression_that_trusts_too_much_is_found() {
        let protocol = "protocolHeader=\"x-forwarded-proto\"";
        assert_one(protocol, &["internalProxies is missing", "127.0.0.1 (loopback)", "more"]);
        assert_one(&format!("{protocol} internalProxies=\".*\""), &["trusts too much"]);
        assert_one(
            &format!(r#"{protocol} internalProxies="10\.0\.0\.\d{{1,3}}""#),
            &["10.0.0.4 (beside this gateway)"],
        );
        assert_one(&format!("{protocol} internalProxies=\"{DEFAULT}\""), &["trusts too much"]);
        assert_one(&format!(r#"{GOOD} trustedProxies="8\.8\..*""#), &["8.8.8.8 (public)"]);
    }

    #[test]
    fn tomcats_default_in_its_own_words_is_the_default() {
        let regex = java_regex(DEFAULT).unwrap();
        for (text, _) in STRANGERS {
            let address = text.parse().unwrap();
            assert_eq!(regex.is_match(&java_text(address)), is_default_proxy(address), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_judged_is_said() {
        for (expression, reason) in [
            (r"10\.0\.0\.(?=5)5", "look-ahead"),
            (r"10\.0\.0\.5*+", "possessive"),
            (r"10\.0\.0\.\d{1,3}+", "possessive"),
            ("${proxies}", "property"),
            ("(10", "unclosed group"),
        ] {
            let attributes =
                format!("protocolHeader=\"x-forwarded-proto\" internalProxies=\"{expression}\"");
            assert_one(&attributes, &["cannot be judged", reason]);
        }
    }

    #[test]
    fn what_is_no_xml_is_said_with_its_line() {
        let found = lint("<Server>\n<Host>\n</Server>", &Sources::default(), &CidrSet::default());
        assert_eq!((found.len(), found[0].line), (1, 3), "{found:?}");
    }

    #[test]
    fn a_valve_outside_a_container_is_found() {
        let xml =
            format!("<Server><Service><Valve className=\"{CLASS}\" {GOOD}/></Service></Server>");
        let sources = Sources {
            sights: vec![("t".into(), Sight::Address("10.0.0.5".parse().unwrap()))],
            added: Vec::new(),
        };
        let found = lint(&xml, &sources, &CidrSet::default());
        assert!(found[0].message.contains("<Service>"), "{found:?}");
    }
}
