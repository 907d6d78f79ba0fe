//! The two certificates that every gateway gets: P-256 and RSA with 2048 bits.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rcgen::{
    CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, SignatureAlgorithm,
};
use tlsplice_fixtures::{Error, Result};

/// One certificate as files, in the forms that the gateways want.
#[derive(Clone, Debug)]
pub struct Files {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Both in one file.
    pub pem: PathBuf,
}

/// Both certificates.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// Key on P-256, for any name.
    pub ecdsa: Files,
    /// RSA key with 2048 bits, for `rsa.test`.
    pub rsa: Files,
}

impl Certificates {
    /// Makes both in `directory`.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn make(directory: &Path) -> Result<Self> {
        Ok(Self {
            ecdsa: make(directory, "localhost", "ecdsa", &PKCS_ECDSA_P256_SHA256)?,
            rsa: make(directory, "rsa.test", "rsa", &PKCS_RSA_SHA256)?,
        })
    }
}

fn make(
    directory: &Path,
    name: &str,
    stem: &str,
    algorithm: &'static SignatureAlgorithm,
) -> Result<Files> {
    let failed = |error: rcgen::Error| Error::failed(format!("cannot make a certificate: {error}"));
    let key = KeyPair::generate_for(algorithm).map_err(failed)?;
    let mut parameters = CertificateParams::new(vec![name.to_owned()]).map_err(failed)?;
    // The default validity spans centuries, which strict servers warn about.
    parameters.not_before = std::time::SystemTime::now().into();
    parameters.not_after =
        (std::time::SystemTime::now() + std::time::Duration::from_secs(90 * 86_400)).into();
    let certificate = parameters.self_signed(&key).map_err(failed)?;
    let files = Files {
        certificate: directory.join(format!("{stem}.crt")),
        key: directory.join(format!("{stem}.key")),
        pem: directory.join(format!("{stem}.pem")),
    };
    write(&files.certificate, &certificate.pem())?;
    write(&files.key, &key.serialize_pem())?;
    write(&files.pem, &(certificate.pem() + &key.serialize_pem()))?;
    Ok(files)
}

fn write(path: &Path, text: &str) -> Result<()> {
    let failed = || Error::io(format!("cannot write {}", path.display()));
    fs::write(path, text).map_err(failed())?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed())
}
