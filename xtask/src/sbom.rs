//! `cargo xtask sbom`: what the gateway is made of, as a CycloneDX 1.5 document.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use serde_json::{Value, json};
use tlsplice_fixtures::{Error, Result};

use crate::tools;

/// Where it goes.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The file to be written; `target/tlsplice.cdx.json` without.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// What the gateway is built for.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// Writes the document and prints how many crates there are.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let bill = Bill::read()?;
    let path = options.out.clone().unwrap_or_else(|| tools::target().join("tlsplice.cdx.json"));
    fs::write(&path, format!("{:#}\n", bill.document()))
        .map_err(Error::io(format!("cannot write {}", path.display())))?;
    println!("{}: {}", path.display(), bill.count());
    Ok(ExitCode::SUCCESS)
}

/// How a crate comes into the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// Its code runs in the compiler, or before it.
    Build,
    /// Its code is in the binary.
    Binary,
}

/// Crates by their identity in cargo's own account.
pub(crate) struct Bill {
    metadata: Value,
    root: String,
    parts: BTreeMap<String, Part>,
    checksums: BTreeMap<(String, String), String>,
}

impl Bill {
    /// Asks cargo, which needs no network when the crates are there.
    pub(crate) fn read() -> Result<Self> {
        let output = tools::cargo(&["metadata", "--format-version", "1", "--locked"])
            .args(["--filter-platform", PLATFORM])
            .stderr(std::process::Stdio::inherit())
            .output()
            .map_err(Error::io("cannot run cargo metadata"))?;
        let metadata = serde_json::from_slice(&output.stdout)
            .map_err(|error| Error::failed(format!("cargo metadata gave no account: {error}")))?;
        let lock = fs::read_to_string(tools::workspace().join("Cargo.lock"))
            .map_err(Error::io("cannot read Cargo.lock"))?;
        Self::of(metadata, &lock)
    }

    fn of(metadata: Value, lock: &str) -> Result<Self> {
        let root = packages(&metadata)
            .find(|package| package["name"] == "tlsplice")
            .map(|package| text(&package["id"]))
            .ok_or_else(|| Error::failed("cargo metadata knows no tlsplice"))?;
        let parts = parts(&metadata, &root);
        Ok(Self { metadata, root, parts, checksums: checksums(lock) })
    }

    /// One line for people.
    pub(crate) fn count(&self) -> String {
        // The gateway itself is no dependency.
        let others = || self.parts.iter().filter(|(id, _)| **id != self.root);
        let of = |wanted: Part| others().filter(|(_, part)| **part == wanted).count();
        format!(
            "{} crates: {} in the binary, {} that only build it",
            others().count(),
            of(Part::Binary),
            of(Part::Build)
        )
    }

    fn document(&self) -> Value {
        let ours =
            || packages(&self.metadata).filter(|one| self.parts.contains_key(&text(&one["id"])));
        let (root, components): (Vec<Value>, Vec<Value>) = ours()
            .map(|package| self.component(package))
            .partition(|one| one["type"] == "application");
        json!({
            "bomFormat": "CycloneDX",
            "specVersion": "1.5",
            "version": 1,
            "metadata": { "component": root.first() },
            "components": components,
            "dependencies": ours().map(|package| self.needs(package)).collect::<Vec<_>>(),
        })
    }

    fn component(&self, package: &Value) -> Value {
        let (name, version) = (text(&package["name"]), text(&package["version"]));
        let id = text(&package["id"]);
        let is_root = id == self.root;
        let mut component = json!({
            "type": if is_root { "application" } else { "library" },
            "bom-ref": reference(package),
            "name": name,
            "version": version,
            "purl": reference(package),
        });
        if !is_root {
            let scope = match self.parts[&id] {
                Part::Binary => "required",
                Part::Build => "excluded",
            };
            component["scope"] = scope.into();
        }
        if let Some(license) = package["license"].as_str() {
            // An older way to write "or".
            let expression = license.replace('/', " OR ");
            component["licenses"] = json!([{ "expression": expression }]);
        }
        if let Some(checksum) = self.checksums.get(&(name, version)) {
            component["hashes"] = json!([{ "alg": "SHA-256", "content": checksum }]);
        }
        component
    }

    fn needs(&self, package: &Value) -> Value {
        let mut needed = BTreeSet::new();
        let by_id: BTreeMap<String, &Value> =
            packages(&self.metadata).map(|one| (text(&one["id"]), one)).collect();
        for (id, _) in needs(&self.metadata, &text(&package["id"])) {
            if let (true, Some(one)) = (self.parts.contains_key(&id), by_id.get(&id)) {
                needed.insert(reference(one));
            }
        }
        json!({ "ref": reference(package), "dependsOn": needed })
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn reference(package: &Value) -> String {
    format!("pkg:cargo/{}@{}", text(&package["name"]), text(&package["version"]))
}

fn packages(metadata: &Value) -> impl Iterator<Item = &Value> {
    metadata["packages"].as_array().into_iter().flatten()
}

/// What a package needs, other than for its own tests, and whether to build only.
fn needs(metadata: &Value, id: &str) -> Vec<(String, Part)> {
    let nodes = metadata["resolve"]["nodes"].as_array();
    let node = nodes.into_iter().flatten().find(|node| node["id"] == id);
    let all = node.and_then(|node| node["deps"].as_array()).into_iter().flatten();
    let part = |dependency: &Value| {
        let kinds = dependency["dep_kinds"].as_array().into_iter().flatten();
        kinds
            .filter_map(|kind| match kind["kind"].as_str() {
                None => Some(Part::Binary),
                Some("build") => Some(Part::Build),
                Some(_) => None,
            })
            .max()
    };
    all.filter_map(|dependency| Some((text(&dependency["pkg"]), part(dependency)?))).collect()
}

/// Everything that the gateway needs, each in the way that brings it furthest.
fn parts(metadata: &Value, root: &str) -> BTreeMap<String, Part> {
    let is_macro = |package: &&Value| {
        let targets = package["targets"].as_array().into_iter().flatten();
        targets.into_iter().any(|target| {
            target["kind"]
                .as_array()
                .is_some_and(|kinds| kinds.iter().any(|kind| kind == "proc-macro"))
        })
    };
    let macros: BTreeSet<String> =
        packages(metadata).filter(is_macro).map(|package| text(&package["id"])).collect();
    let mut parts = BTreeMap::new();
    let mut open = vec![(root.to_owned(), Part::Binary)];
    while let Some((id, part)) = open.pop() {
        let part = if macros.contains(&id) { Part::Build } else { part };
        if parts.get(&id).is_some_and(|known| *known >= part) {
            continue;
        }
        parts.insert(id.clone(), part);
        let further = needs(metadata, &id).into_iter();
        open.extend(further.map(|(id, how)| (id, how.min(part))));
    }
    parts
}

/// The SHA-256 of each crate, by name and version.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let value = |block: &str, key: &str| {
        let line = block.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "));
        line.map(|line| line.trim_matches('"').to_owned())
    };
    let blocks = lock.split("[[package]]").skip(1);
    blocks
        .filter_map(|block| {
            let name = (value(block, "name")?, value(block, "version")?);
            Some((name, value(block, "checksum")?))
        })
        .collect()
}

/// Whether cargo-deny finds a database of advisories without the network.
fn has_advisories() -> bool {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    home.is_some_and(|home| is_fetched(&home.join("advisory-dbs")))
}

/// Whether a database was ever fetched into `databases`. That the folder is there says nothing:
/// cargo-deny makes it, with a lock in it, whenever it looks for a database, and be it in vain.
fn is_fetched(databases: &Path) -> bool {
    let is_clone = |entry: fs::DirEntry| {
        entry.file_name().to_string_lossy().starts_with("advisory-db-")
            && entry.path().join(".git").is_dir()
    };
    fs::read_dir(databases).is_ok_and(|entries| entries.flatten().any(is_clone))
}

/// cargo-deny's advisories, where there is a database of them; else a notice.
pub(crate) fn check_advisories(cargo_deny: &Path) -> Result<()> {
    if !has_advisories() {
        eprintln!(
            "    skipped: this machine has no advisory database (cargo deny fetch makes one)"
        );
        return Ok(());
    }
    let mut command = Command::new(cargo_deny);
    command.args(["--offline", "--all-features", "check", "--hide-inclusion-graph", "advisories"]);
    tools::must_succeed("cargo-deny", command.current_dir(tools::workspace()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata() -> Value {
        let package = |name: &str, kind: &str| {
            json!({ "id": name, "name": name, "version": "1.0.0", "license": "MIT/Apache-2.0",
                    "targets": [{ "kind": [kind] }] })
        };
        let needs =
            |name: &str, kind: Value| json!({ "pkg": name, "dep_kinds": [{ "kind": kind }] });
        json!({
            "packages": [
                package("tlsplice", "lib"), package("used", "lib"), package("derive", "proc-macro"),
                package("quote", "lib"), package("cc", "lib"), package("tester", "lib"),
                package("stranger", "lib"),
            ],
            "resolve": { "nodes": [
                { "id": "tlsplice", "deps": [
                    needs("used", Value::Null), needs("derive", Value::Null),
                    needs("cc", "build".into()), needs("tester", "dev".into()),
                ] },
                { "id": "derive", "deps": [needs("quote", Value::Null)] },
            ] },
        })
    }

    #[test]
    fn a_folder_for_databases_with_none_in_it_is_not_a_database() {
        let home = tempfile::tempdir().expect("a folder");
        let databases = home.path().join("advisory-dbs");
        assert!(!is_fetched(&databases), "no folder");
        // What a look in vain leaves behind.
        fs::create_dir(&databases).expect("a folder");
        fs::write(databases.join("db.lock"), []).expect("a file");
        assert!(!is_fetched(&databases), "a lock");
        let database = databases.join("advisory-db-3157b0e258782691");
        fs::create_dir(&database).expect("a folder");
        assert!(!is_fetched(&databases), "a fetch that failed");
        fs::create_dir(database.join(".git")).expect("a folder");
        assert!(is_fetched(&databases), "a clone");
    }

    #[test]
    fn what_is_in_the_binary_is_told_from_what_builds_it() {
        let lock = "[[package]]\nname = \"used\"\nversion = \"1.0.0\"\nchecksum = \"abc\"\n";
        let bill = Bill::of(metadata(), lock).expect("it has a root");
        assert_eq!(bill.count(), "4 crates: 1 in the binary, 3 that only build it");
        let document = bill.document();
        let components = document["components"].as_array().expect("a list");
        let names: Vec<String> = components.iter().map(|one| text(&one["name"])).collect();
        assert_eq!(names, ["used", "derive", "quote", "cc"]);
        assert_eq!(components[0]["hashes"][0]["content"], "abc");
        assert_eq!(components[0]["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert_eq!(
            (&components[0]["scope"], &components[1]["scope"]),
            (&"required".into(), &"excluded".into())
        );
        assert_eq!(document["metadata"]["component"]["purl"], "pkg:cargo/tlsplice@1.0.0");
        assert_eq!(document["dependencies"][0]["dependsOn"].as_array().map(Vec::len), Some(3));
    }
}
