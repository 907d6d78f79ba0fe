//! Gets what is compared and what compares, if it is missing.

use std::path::Path;
use std::process::{Command, Stdio};

use tlsplice_fixtures::archive::Archive;
use tlsplice_fixtures::{Result, packages};

use crate::gateways::{Kind, Release};
use crate::run::Plan;

/// The release that follows the one of the machines that this is made for.
const NEXT_SUITE: &str = "trixie";

/// The rivals of [`NEXT_SUITE`] with every library they load, so that nothing of the system's is mixed in.
const NEXT_PACKAGES: [&str; 16] = [
    "nginx",
    "haproxy",
    "libc6",
    "libcrypt1",
    "libpcre2-8-0",
    "libssl3t64",
    "zlib1g",
    "libzstd1",
    "liblua5.4-0",
    "libopentracing-c-wrapper0t64",
    "libopentracing1",
    "libjemalloc2",
    "libstdc++6",
    "libgcc-s1",
    "libcap2",
    "libsystemd0",
];

/// What is left out, by its name, and why.
pub type LeftOut = Vec<(String, String)>;

/// Those of `kinds` that can be had, installed; and what is left out, with the reason. What is unpacked goes to the folder `next`.
///
/// # Errors
/// When packages of this system cannot be installed.
pub fn rivals(kinds: Vec<Kind>, next: &Path) -> Result<(Vec<Kind>, LeftOut)> {
    let wanted: Vec<&str> = kinds.iter().filter_map(Kind::package).collect();
    let missing = packages::missing(&wanted)?;
    ensure(&wanted)?;
    for package in missing {
        // Their services take ports and time. This fails where no service manager runs: nothing was started then.
        let _ = Command::new("service")
            .args([package, "stop"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
    let is_next =
        |kind: &Kind| matches!(kind, Kind::Nginx(Release::Next) | Kind::Haproxy(Release::Next));
    if !kinds.iter().any(is_next) {
        return Ok((kinds, Vec::new()));
    }
    match unpack(next) {
        Ok(()) => Ok((kinds, Vec::new())),
        // What another release offers is worth having, and not worth failing for.
        Err(error) => {
            let (out, kept): (Vec<Kind>, Vec<Kind>) = kinds.into_iter().partition(is_next);
            let why = error.to_string();
            Ok((kept, out.iter().map(|kind| (kind.name().to_owned(), why.clone())).collect()))
        }
    }
}

fn unpack(next: &Path) -> Result<()> {
    if next.exists() {
        return Ok(());
    }
    let names: Vec<String> = NEXT_PACKAGES.into_iter().map(ToOwned::to_owned).collect();
    let lists = next.with_file_name("archive");
    Archive::open(&lists, NEXT_SUITE, "^nginx$")?.unpack(&names, next)
}

/// What the points of `plan` need beside gateways.
///
/// # Errors
/// When packages cannot be installed.
pub fn tools(plan: &Plan) -> Result<()> {
    let mut wanted = Vec::new();
    for (_, point) in plan.points() {
        wanted.extend(point.generator.map(|generator| generator.package()));
        if point.tomcat {
            wanted.extend(packages::TOMCAT);
        }
    }
    ensure(&wanted)
}

/// What counts instructions and allocations.
///
/// # Errors
/// When it cannot be installed.
pub fn valgrind() -> Result<()> {
    ensure(&["valgrind"])
}

fn ensure(wanted: &[&str]) -> Result<()> {
    let missing = packages::missing(wanted)?;
    if !missing.is_empty() {
        eprintln!("installing {} (takes a minute or two)", missing.join(" "));
    }
    packages::ensure(wanted).map(drop)
}
