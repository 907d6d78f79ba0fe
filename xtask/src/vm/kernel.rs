//! The kernels, what is expected of each, and their modules.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tlsplice_fixtures::{Error, Result};

/// A kernel of the lane.
pub(crate) struct Kernel {
    /// What the command line calls it.
    pub(crate) name: &'static str,
    /// What the names of its packages begin with; the last number is left open.
    pub(crate) packages: &'static [&'static str],
    /// Nobody else has it, so that its lack is no failure.
    pub(crate) is_optional: bool,
    /// What it can do for TLS.
    pub(crate) tls: Tls,
}

/// What a kernel is expected to do for TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tls {
    /// Nothing: Debian builds it without.
    None,
    /// All ciphers.
    Keys,
    /// All ciphers, and keys change.
    Rekey,
}

/// The one that the short form of the lane tests most on: it can always be had, and leaves TLS and payload to the kernel.
pub(crate) const REFERENCE: &str = "6.12";

/// Oldest first.
pub(crate) const ALL: [Kernel; 4] = [
    Kernel { name: "5.10", packages: &["linux-image-5.10."], is_optional: false, tls: Tls::None },
    Kernel { name: "6.1", packages: &["linux-image-6.1."], is_optional: false, tls: Tls::Keys },
    Kernel { name: "6.12", packages: &["linux-image-6.12."], is_optional: false, tls: Tls::Keys },
    Kernel {
        name: "newest",
        packages: &["linux-binary-", "linux-modules-"],
        is_optional: true,
        tls: Tls::Rekey,
    },
];

/// What is needed, whichever of them exist: the network device, sockets that see the wire, TLS itself and implementations
/// of its ciphers.
const WANTED: [&str; 14] = [
    "virtio_pci",
    "virtio_net",
    "af_packet",
    "tls",
    "aesni_intel",
    "ghash_clmulni_intel",
    "ghash_generic",
    "gcm",
    "ctr",
    "chacha20poly1305",
    "chacha",
    "chacha_generic",
    "chacha_x86_64",
    "poly1305_x86_64",
];

/// The image and the modules below `root`, an unpacked package.
pub(crate) fn find(root: &Path) -> Result<(PathBuf, Vec<(String, PathBuf)>)> {
    let (mut image, mut modules, mut open) = (None, Vec::new(), vec![root.to_owned()]);
    while let Some(directory) = open.pop() {
        let entries = fs::read_dir(&directory)
            .map_err(Error::io(format!("cannot read {}", directory.display())))?;
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && !path.is_symlink() {
                open.push(path);
            } else if name.starts_with("vmlinuz") {
                image = Some(path);
            } else if let Some((module, _)) = name.split_once(".ko") {
                modules.push((module.replace('-', "_"), path));
            }
        }
    }
    let image = image.ok_or_else(|| Error::failed(format!("no kernel in {}", root.display())))?;
    Ok((image, modules))
}

/// The modules that are wanted, each behind those it depends on.
pub(crate) fn in_order(modules: &[(String, PathBuf)]) -> Result<Vec<(String, Vec<u8>)>> {
    let (mut ordered, mut seen) = (Vec::new(), BTreeSet::new());
    for name in WANTED {
        add(name, modules, &mut seen, &mut ordered)?;
    }
    Ok(ordered)
}

fn add(
    name: &str,
    modules: &[(String, PathBuf)],
    seen: &mut BTreeSet<String>,
    ordered: &mut Vec<(String, Vec<u8>)>,
) -> Result<()> {
    let Some((_, path)) = modules.iter().find(|(known, _)| known == name) else { return Ok(()) };
    if !seen.insert(name.to_owned()) {
        return Ok(());
    }
    let bytes = read(path)?;
    for dependency in dependencies(&bytes) {
        add(&dependency.replace('-', "_"), modules, seen, ordered)?;
    }
    ordered.push((name.to_owned(), bytes));
    Ok(())
}

/// The module itself; Debian compresses those of newer kernels.
fn read(path: &Path) -> Result<Vec<u8>> {
    let failed = || Error::io(format!("cannot read {}", path.display()));
    if path.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(path).map_err(failed());
    }
    let output = Command::new("xz").arg("--decompress").arg("--stdout").arg(path).output();
    let output = output.map_err(failed())?;
    if !output.status.success() {
        return Err(Error::failed(format!("xz cannot unpack {}", path.display())));
    }
    Ok(output.stdout)
}

/// The `depends=` entry of a module's information: names with commas between, ended by a NUL.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = &module[at + KEY.len()..];
    let end = value.iter().position(|&byte| byte == 0).unwrap_or(value.len());
    let text = String::from_utf8_lossy(&value[..end]);
    text.split(',').filter(|name| !name.is_empty()).map(ToOwned::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_the_information_of_a_module() {
        assert_eq!(
            dependencies(b"ELF\0license=GPL\0depends=cryptd,gf128mul\0x"),
            ["cryptd", "gf128mul"]
        );
        assert!(dependencies(b"ELF\0depends=\0").is_empty());
        assert!(dependencies(b"ELF").is_empty());
    }
}
