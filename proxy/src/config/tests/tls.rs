//! Certificates and keys: what is refused, and with which words.

use super::*;
use crate::config::{Config, Disk};
use std::os::unix::fs::PermissionsExt;

pub(super) const HTTPS: &str = "\
[[listener]]
address = \"127.0.0.1:443\"
[[route]]
upstream = \"http://127.0.0.1:8080\"
";

pub(super) const TLS: &str = "[tls]\ncertificate = \"cert.pem\"\nkey = \"key.pem\"\n";

fn lines(report: &Report) -> Vec<String> {
    let line = |problem: &Problem| match &problem.hint {
        Some(hint) => format!("{} | {hint}", problem.message),
        None => problem.message.clone(),
    };
    report.problems().iter().map(line).collect()
}

/// The verdict on `cert.pem` and `key.pem` with these contents.
fn judge(certificate: &str, key: &str, mode: u32) -> Result<Loaded, Vec<String>> {
    let mut memory = Memory::default();
    memory.put_mode("/etc/tlsplice/cert.pem", certificate, 0o644);
    memory.put_mode("/etc/tlsplice/key.pem", key, mode);
    memory.parse(&format!("{HTTPS}{TLS}")).map_err(|report| lines(&report))
}

fn refused(certificate: &str, key: &str) -> Vec<String> {
    judge(certificate, key, 0o600).map(|_| "accepted").unwrap_err()
}

fn warned(certificate: &str, key: &str) -> Vec<String> {
    lines(&judge(certificate, key, 0o600).unwrap_or_else(|lines| panic!("{lines:?}")).warnings)
}

#[test]
fn a_key_that_others_can_read_is_refused_with_the_cure() {
    let pair = pair(&["a"]);
    for mode in [0o640, 0o604, 0o620, 0o644, 0o666, 0o601] {
        assert_eq!(
            judge(&pair.certificate, &pair.key, mode).unwrap_err(),
            [format!(
                "`tls.key`: /etc/tlsplice/key.pem has mode {mode:04o}: others than its owner can \
                 use the key | chmod 600 /etc/tlsplice/key.pem"
            )]
        );
    }
    for mode in [0o600, 0o400, 0o700] {
        assert!(judge(&pair.certificate, &pair.key, mode).is_ok());
    }
}

#[test]
fn files_in_each_others_place_are_recognised() {
    let pair = pair(&["a"]);
    assert_eq!(
        refused(&pair.key, &pair.certificate),
        [
            "`tls.certificate`: /etc/tlsplice/cert.pem holds no certificate | it holds a private \
             key: are `certificate` and `key` swapped?",
            "`tls.key`: /etc/tlsplice/key.pem holds no private key | it holds a certificate: are \
             `certificate` and `key` swapped?",
        ]
    );
}

#[test]
fn files_with_something_else_are_refused() {
    let good = pair(&["a"]);
    let encrypted = good.key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    assert_eq!(
        refused(&good.certificate, &encrypted),
        ["`tls.key`: /etc/tlsplice/key.pem holds no private key | it holds one under a \
             passphrase; take that off: openssl pkey -in /etc/tlsplice/key.pem -out NEW.pem"]
    );
    assert_eq!(
        refused("x", "x"),
        [
            "`tls.certificate`: /etc/tlsplice/cert.pem holds no certificate | it must contain \
             -----BEGIN CERTIFICATE-----; DER files are not read",
            "`tls.key`: /etc/tlsplice/key.pem holds no private key | it must contain -----BEGIN \
             PRIVATE KEY-----; DER files are not read",
        ]
    );
    let cut = |text: &str| text.split("-----END").next().unwrap().to_owned();
    assert_eq!(
        refused(&cut(&good.certificate), &cut(&good.key)),
        [
            "`tls.certificate`: /etc/tlsplice/cert.pem is damaged: its PEM text cannot be decoded",
            "`tls.key`: /etc/tlsplice/key.pem is damaged: its PEM text cannot be decoded",
        ]
    );
    let empty = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert_eq!(
        refused(&format!("{}{empty}", good.certificate), &good.key),
        ["`tls.certificate`: certificate 2 in /etc/tlsplice/cert.pem is damaged"]
    );
    let no_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    assert_eq!(
        refused(&good.certificate, no_key),
        ["`tls.key`: /etc/tlsplice/key.pem holds a key that cannot be used"]
    );
    assert_eq!(
        refused(&good.certificate.repeat(17), &good.key),
        ["`tls.certificate`: /etc/tlsplice/cert.pem holds more than 16 certificates"]
    );
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let (one, other) = (pair(&["a"]), pair(&["a"]));
    assert_eq!(
        refused(&one.certificate, &other.key),
        ["`tls.key`: /etc/tlsplice/key.pem is not the key of the first certificate in \
             /etc/tlsplice/cert.pem"]
    );
}

#[test]
fn a_chain_begins_with_the_server_and_each_is_issued_by_the_next() {
    let (leaf, authority) = issued(&["a"], (2027, 1, 1));
    let ordered = format!("{}{}", leaf.certificate, authority.certificate);
    assert!(warned(&ordered, &leaf.key).is_empty());
    let reversed = format!("{}{}", authority.certificate, leaf.certificate);
    assert_eq!(
        refused(&reversed, &leaf.key),
        ["`tls.key`: /etc/tlsplice/key.pem is not the key of the first certificate in \
             /etc/tlsplice/cert.pem | it is the key of certificate 2: the server's own must come \
             first"]
    );
    let stranger = pair(&["b"]);
    let mixed = format!("{}{}", leaf.certificate, stranger.certificate);
    assert_eq!(
        warned(&mixed, &leaf.key),
        ["`tls.certificate`: certificate 1 in /etc/tlsplice/cert.pem is not issued by the one \
             after it | server first, then each issuer; some clients do not sort"]
    );
}

#[test]
fn dates_are_judged_by_the_clock_passed_in() {
    let between = |from, until| pair_between(&["a"], from, until);
    let old = between((2024, 1, 1), (2025, 12, 31));
    assert_eq!(
        refused(&old.certificate, &old.key),
        ["`tls.certificate`: the certificate in /etc/tlsplice/cert.pem expired on \
             2025-12-31T00:00:00Z | renew it"]
    );
    let early = between((2026, 1, 2), (2027, 1, 1));
    assert_eq!(
        refused(&early.certificate, &early.key),
        ["`tls.certificate`: the certificate in /etc/tlsplice/cert.pem is not valid before \
             2026-01-02T00:00:00Z | this machine's clock says 2026-01-01T00:00:00Z"]
    );
    let soon = between((2025, 1, 1), (2026, 1, 30));
    assert_eq!(
        warned(&soon.certificate, &soon.key),
        ["`tls.certificate`: the certificate in /etc/tlsplice/cert.pem expires on \
             2026-01-30T00:00:00Z | renew it"]
    );
    let month = between((2025, 1, 1), (2026, 1, 31));
    assert!(warned(&month.certificate, &month.key).is_empty());
    // Six days in all: the last two are worth a word.
    let short = between((2025, 12, 30), (2026, 1, 5));
    assert!(warned(&short.certificate, &short.key).is_empty());
    let short = between((2025, 12, 27), (2026, 1, 2));
    assert_eq!(warned(&short.certificate, &short.key).len(), 1);
}

#[test]
fn an_expired_intermediate_is_named() {
    let (leaf, authority) = issued(&["a"], (2025, 12, 1));
    let chain = format!("{}{}", leaf.certificate, authority.certificate);
    assert_eq!(
        refused(&chain, &leaf.key),
        ["`tls.certificate`: intermediate certificate 2 in /etc/tlsplice/cert.pem expired on \
             2025-12-01T00:00:00Z | renew it"]
    );
}

/// `[tls]` for desk.example.org, a site by its own names and one by names that are given.
fn sites(tls: &str) -> Result<Loaded, Report> {
    let mut memory = Memory::with_certificate();
    for (file, names) in
        [("one", &["One.example.org", "*.one.example.org"][..]), ("two", &["two.org"])]
    {
        let pair = pair(names);
        memory.put(&format!("/etc/tlsplice/{file}.pem"), &pair.certificate);
        memory.put(&format!("/etc/tlsplice/{file}-key.pem"), &pair.key);
    }
    let nameless = pair(&[]);
    memory.put("/etc/tlsplice/nameless.pem", &nameless.certificate);
    memory.put("/etc/tlsplice/nameless-key.pem", &nameless.key);
    memory.parse(&format!("{HTTPS}{tls}"))
}

pub(super) fn site(file: &str, rest: &str) -> String {
    format!("[[tls.site]]\ncertificate = \"{file}.pem\"\nkey = \"{file}-key.pem\"\n{rest}")
}

#[test]
fn sites_are_listed_with_the_names_they_answer_to() {
    let text = format!("{TLS}{}{}", site("one", ""), site("two", "names = [\"two.org\"]\n"));
    let loaded = sites(&text).unwrap();
    assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
    let names: Vec<&[String]> =
        loaded.config.certificates.iter().map(|summary| &summary.names[..]).collect();
    assert_eq!(
        names,
        [
            &["desk.example.org", "*.apps.example.org"][..],
            &["one.example.org", "*.one.example.org"],
            &["two.org"],
        ]
    );
    assert_eq!(loaded.config.certificates[0].not_after, 1_798_761_600);
    assert_eq!(loaded.config.certificates[1].file, Path::new("/etc/tlsplice/one.pem"));
}

#[test]
fn a_site_takes_its_name_from_the_default_certificate() {
    let text = format!("{TLS}{}", site("two", "names = \"desk.example.org\"\n"));
    let loaded = sites(&text).unwrap();
    let names: Vec<&[String]> =
        loaded.config.certificates.iter().map(|summary| &summary.names[..]).collect();
    assert_eq!(names, [&["*.apps.example.org"][..], &["desk.example.org"]]);
}

#[test]
fn sites_that_contradict_each_other_are_refused() {
    let refused = |text: &str| lines(&sites(text).map(|_| "accepted").unwrap_err());
    assert_eq!(
        refused(&format!("{TLS}{}{}", site("two", ""), site("one", "names = \"TWO.org\"\n"))),
        ["`tls.site[2].names`: two.org is another site's name | a name has one certificate"]
    );
    assert_eq!(
        refused(&format!("{TLS}{}{}", site("two", ""), site("two", ""))),
        ["`tls.site[2].certificate`: two.org is another site's name | a name has one certificate"]
    );
    assert_eq!(
        refused(&format!("{TLS}{}", site("two", "names = []\n"))),
        ["`tls.site[1].names` is an empty list"]
    );
    assert_eq!(
        refused(&format!("{TLS}{}", site("nameless", ""))),
        ["`tls.site[1].names` is missing | the certificate names no host itself"]
    );
    assert_eq!(
        refused(&format!("[tls]\n{}", site("two", ""))).len(),
        2,
        "without a default, unknown names need `refuse`"
    );
    let wrong = format!("{TLS}{}", site("two", "names = \"*\"\nname = \"x\"\n"));
    assert_eq!(
        refused(&wrong),
        [
            "`tls.site[1].names`: \"*\" has `*` where it cannot stand",
            "`tls.site[1].name` is not a known key | did you mean `names`?",
        ]
    );
}

#[test]
fn a_name_that_the_certificate_does_not_cover_is_pointed_out() {
    let text = format!(
        "{TLS}{}",
        site(
            "one",
            "names = [\"a.one.example.org\", \"a.b.one.example.org\", \"*.example.org\"]\n"
        )
    );
    assert_eq!(
        lines(&sites(&text).unwrap().warnings),
        [
            "`tls.site[1].names[2]`: the certificate does not cover a.b.one.example.org | browsers \
             will refuse it for this name",
            "`tls.site[1].names[3]`: the certificate does not cover *.example.org | browsers will \
             refuse it for this name",
        ]
    );
}

#[test]
fn the_disk_is_read_with_its_modes() {
    let directory = std::env::temp_dir().join(format!("tlsplice-config-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let put = |name: &str, text: &[u8], mode| {
        let file = directory.join(name);
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        file
    };
    // Valid today, whenever that is.
    let pair = pair_between(&["a"], (2020, 1, 1), (2120, 1, 1));
    put("cert.pem", pair.certificate.as_bytes(), 0o644);
    put("key.pem", pair.key.as_bytes(), 0o640);
    let file = put("tlsplice.toml", format!("{HTTPS}{TLS}").as_bytes(), 0o644);
    let report = Config::load(&file).map(|_| "accepted").unwrap_err();
    assert!(lines(&report)[0].contains("has mode 0640"), "{report}");
    put("key.pem", pair.key.as_bytes(), 0o600);
    assert!(Config::load(&file).unwrap().warnings.is_empty());

    let binary = put("binary.toml", b"a = \"\xff\"", 0o644);
    let missing = directory.join("none.toml");
    let large = put("large.toml", &vec![b'#'; 1 << 21], 0o644);
    // Nobody writes to it; opening it must not wait for somebody.
    let fifo = directory.join("fifo.toml");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    for (file, expected) in [
        (&fifo, "it is not a regular file"),
        (&binary, "is not UTF-8 text (at byte 5)"),
        (&missing, "no such file"),
        (&large, "it is larger than 1 MiB"),
        (&directory, "it is not a regular file"),
    ] {
        let report = Config::load(file).map(|_| "accepted").unwrap_err();
        assert!(report.to_string().contains(expected), "{report}");
    }
    assert!(Disk::new().is_directory(&directory));
    std::fs::remove_dir_all(&directory).unwrap();
}
