//! Every way a file can be wrong, with the exact words.

use super::*;

/// One line per problem: `line:column message | expected | hint`, empty parts left out.
fn brief(report: &Report) -> Vec<String> {
    let line = |problem: &Problem| {
        let mut parts = vec![format!("{}:{} {}", problem.line, problem.column, problem.message)];
        parts.extend(Some(problem.expected.clone()).filter(|expected| !expected.is_empty()));
        parts.extend(problem.hint.clone());
        match problem.severity {
            Severity::Error => parts.join(" | "),
            Severity::Warning => format!("(warning) {}", parts.join(" | ")),
        }
    };
    report.problems().iter().map(line).collect()
}

#[test]
fn every_refusal_reads_as_written() {
    let mut cases = 0;
    for case in include_str!("refusals.txt").split("\n=== ").skip(1) {
        // The file may be empty, so its line break before is kept until the marker is found.
        let (name, rest) = case.split_at(case.find('\n').unwrap());
        let (text, problems) = rest.split_once("\n---\n").unwrap();
        let text = text.strip_prefix('\n').unwrap_or(text);
        let problems: Vec<&str> = problems.lines().filter(|line| !line.is_empty()).collect();
        assert_eq!(brief(&refuse(text)), problems, "{name}:\n{text}");
        cases += 1;
    }
    assert!(cases > 50, "only {cases} cases were found");
}

#[test]
fn three_mistakes_are_three_reports_in_one_go() {
    let report = refuse(
        "\
wokers = 2
[[listener]]
address = \"0.0.0.0\"
service = \"http\"
[[route]]
upstream = \"tomcat\"
",
    );
    assert_eq!(
        report.to_string(),
        "\
error: `wokers` is not a known key
 --> tlsplice.toml:1:1
  |
1 | wokers = 2
  | ^^^^^^
  |
  = help: did you mean `workers`?

error: `listener[1].address`: \"0.0.0.0\" is not an address with a port
 --> tlsplice.toml:3:11
  |
3 | address = \"0.0.0.0\"
  |           ^^^^^^^^^ such as 0.0.0.0:443 or [::]:443
  |
  = help: add the port: \"0.0.0.0:443\"

error: `route[1].upstream`: there is no upstream named \"tomcat\"
 --> tlsplice.toml:6:12
  |
6 | upstream = \"tomcat\"
  |            ^^^^^^^^ a URL, or the name of an [[upstream]]
  |
  = help: this file has no [[upstream]]

tlsplice.toml: 3 errors
"
    );
}

#[test]
fn a_warning_alone_does_not_refuse() {
    let loaded = accept(&format!("trusted_proxies = \"0.0.0.0/0\"\n{PLAIN}"));
    assert!(!loaded.warnings.has_errors());
    assert_eq!(
        brief(&loaded.warnings),
        ["(warning) 1:19 `trusted_proxies` trusts every address | anybody can then forge the \
             client address that Tomcat sees"]
    );
}

#[test]
fn what_is_accepted_with_a_warning() {
    let unused = "[[upstream]]\nname = \"x\"\nendpoints = \"http://a\"\n";
    assert_eq!(
        brief(&accept(&format!("{PLAIN}{unused}")).warnings),
        ["(warning) 6:1 `upstream[1]`: no route uses this upstream"]
    );
    let slow = "app = \"guacamole\"\nupgrade_timeout = \"30s\"\n";
    assert_eq!(
        brief(&accept(&format!("{PLAIN}{slow}")).warnings),
        ["(warning) 7:19 `route[1].upgrade_timeout` is above 10s | at most 10s for Guacamole | \
             its client does not fall back to HTTP after an upgrade that hangs"]
    );
    let tls = "[tls]\ncertificate = \"cert.pem\"\nkey = \"key.pem\"\n";
    assert_eq!(
        brief(&accept(&format!("{PLAIN}{tls}")).warnings),
        ["(warning) 6:1 `tls`: no listener speaks https, so this is not used"]
    );
}

#[test]
fn key_material_never_reaches_a_report() {
    let key = pair(&["a"]).key;
    let inside = refuse(&format!("{PLAIN}[tls]\nkey = \"\"\"{key}\"\"\"\n"));
    let instead = refuse(&key);
    for report in [inside, instead] {
        for line in key.lines().filter(|line| !line.starts_with("-----")) {
            assert!(!report.to_string().contains(line), "{report}");
            assert!(!format!("{report:?}").contains(line));
        }
    }
}

proptest::proptest! {
    /// Any arrangement of plausible lines is judged without a panic, and every place lies in the
    /// file.
    #[test]
    fn no_file_makes_the_reader_panic(lines in proptest::collection::vec(0..LINES.len(), 0..25)) {
        let text: String = lines.iter().map(|at| LINES[*at]).collect();
        if let Err(report) = Memory::with_certificate_of(&SHARED).parse(&text) {
            proptest::prop_assert!(report.has_errors());
            proptest::prop_assert!(!report.render(false).is_empty());
            for problem in report.problems() {
                let span = problem.span.clone().unwrap();
                proptest::prop_assert!(text.get(span).is_some());
            }
        }
    }
}

static SHARED: std::sync::LazyLock<Pair> =
    std::sync::LazyLock::new(|| pair(&["desk.example.org", "*.apps.example.org"]));

const LINES: &[&str] = &[
    "[[listener]]\n",
    "[[route]]\n",
    "[[upstream]]\n",
    "[tls]\n",
    "[[tls.site]]\n",
    "[limits]\n",
    "[access_log]\n",
    "address = \"0.0.0.0:0\"\n",
    "address = [\"[::]:443\", \"é\", 1.5, {}]\n",
    "service = \"redirect\"\n",
    "certificate = \"cert.pem\"\n",
    "key = \"key.pem\"\n",
    "names = [\"*.a\", \"b\"]\n",
    "unknown_name = \"refuse\"\n",
    "name = \"t\"\n",
    "endpoints = [\"http://a:1\", \"unix:/x\"]\n",
    "upstream = \"t\"\n",
    "upstream = \"http://[::1]:8080/x\"\n",
    "host = \"*.é\"\n",
    "path = \"/\"\n",
    "hsts = false\n",
    "request_headers = { set = { \"é\" = \"\\u0000\" }, remove = 3 }\n",
    "workers = 1e3\n",
    "\"é\\u001b\" = 1979-05-27\n",
    "= \n",
];
