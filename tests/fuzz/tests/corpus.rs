//! Every property on every input that is kept, and on what the attack table sends.

use std::fs;
use std::path::Path;

use tlsplice_fuzz::{Property, TARGETS, corpus, find};
use tlsplice_tests::table;

/// What the parsers of heads and bodies are tried with, too.
const ATTACKS: [&str; 8] = [
    include_str!("../../attacks/a.txt"),
    include_str!("../../attacks/b.txt"),
    include_str!("../../attacks/c.txt"),
    include_str!("../../attacks/d.txt"),
    include_str!("../../attacks/e.txt"),
    include_str!("../../attacks/f.txt"),
    include_str!("../../attacks/g.txt"),
    include_str!("../../attacks/h.txt"),
];

fn target(name: &str) -> Property {
    find(name).expect("a target")
}

#[test]
fn every_corpus_is_replayed() {
    for (name, property) in TARGETS {
        let files = fs::read_dir(corpus(name)).expect("a corpus");
        let mut count = 0;
        for file in files {
            let path = file.expect("an entry").path();
            let bytes = fs::read(&path).expect("a file");
            println!("{}", path.display());
            property(&bytes);
            count += 1;
        }
        assert!(count > 0, "{} has inputs", name);
        property(b"");
    }
}

#[test]
fn attacks_hold_no_surprise_for_any_parser() {
    let mut count = 0;
    for row in ATTACKS.iter().flat_map(|text| table::read(text)) {
        for vector in row.vectors {
            for bytes in [Some(&vector.bytes), vector.reply.as_ref()].into_iter().flatten() {
                let bytes = &bytes[..bytes.len().min(4096)];
                target("request_head")(bytes);
                target("preamble")(bytes);
                for choices in [0, 1, 2, 3, 7, 0x80, 0x83, 0xbf] {
                    let chosen = [&[choices], bytes].concat();
                    target("response_head")(&chosen);
                    target("rewrite")(&chosen);
                }
                let words = bytes.split(|&byte| byte == b' ');
                words.for_each(target("route"));
                if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                    target("chunked")(&bytes[at + 4..bytes.len().min(at + 304)]);
                }
                count += 1;
            }
        }
    }
    assert!(count > 300, "only {count} inputs");
}

#[test]
fn the_list_names_every_target_with_its_dictionary() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let list = fs::read_to_string(here.join("targets.txt")).expect("the list");
    let mut names = Vec::new();
    for line in list.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        let [name, bytes_max, dictionary, _] = words[..] else { panic!("{line}") };
        assert!(bytes_max.parse::<usize>().is_ok_and(|most| most > 0), "{line}");
        let dictionary = here.join("words").join(format!("{dictionary}.dict"));
        assert!(line.contains(" - ") || dictionary.exists(), "{}", dictionary.display());
        names.push(name.to_owned());
    }
    assert_eq!(names, TARGETS.map(|(name, _)| name.to_owned()));
}
