//! Files the configuration names: that they are there, hold what they should, and keep secrets.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::section::Section;

/// Where systemd puts what `LoadCredential=` names.
const CREDENTIALS: &str = "$CREDENTIALS_DIRECTORY";

/// Permission bits that let others than owner and group read.
const OTHERS: u32 = 0o007;

/// A path with `$CREDENTIALS_DIRECTORY` replaced; `None` when that variable is not set.
pub(super) fn expand(path: &Path, environment: &BTreeMap<String, String>) -> Option<PathBuf> {
    match path.strip_prefix(CREDENTIALS) {
        Ok(rest) => {
            environment.get(CREDENTIALS.trim_start_matches('$')).map(|d| Path::new(d).join(rest))
        }
        Err(_) => Some(path.into()),
    }
}

/// The path of a file that must be there; the path as written when it cannot be looked for.
pub(super) fn existing(section: &mut Section<'_>, key: &'static str) -> Option<PathBuf> {
    let written: PathBuf = section.optional(key)?;
    let Some(path) = expand(&written, section.reading.environment) else {
        section.warning(
            key,
            "cannot be checked: $CREDENTIALS_DIRECTORY is not set here",
            "systemd sets it for the service; set it by hand to check this file",
        );
        return Some(written);
    };
    match std::fs::metadata(&path) {
        Ok(found) if found.is_file() => {}
        Ok(_) => {
            section.error(key, format_args!("{} is not a file", path.display()), "name a file");
        }
        Err(e) => section.error(
            key,
            format_args!("{}: {e}", path.display()),
            "the user Postgate runs as must be able to read it",
        ),
    }
    Some(path)
}

/// The path of a file that others must not be able to read.
pub(super) fn secret(section: &mut Section<'_>, key: &'static str) -> Option<PathBuf> {
    let path = existing(section, key)?;
    if let Ok(found) = std::fs::metadata(&path)
        && found.mode() & OTHERS != 0
    {
        let mode = found.mode() & 0o777;
        let message = format!("{} can be read by everyone (mode {mode:04o})", path.display());
        section.error(key, message, format!("chmod o-rwx {}", path.display()));
    }
    Some(path)
}

/// Checks that a file holds certificates.
pub(super) fn check_certificates(section: &Section<'_>, key: &str, path: &Path) {
    if path.is_file()
        && let Err(message) = certificates(path)
    {
        section.error(key, message, "it must hold certificates in PEM");
    }
}

/// Checks that a listener's certificate and key belong together; warns of a self-signed one.
pub(super) fn check_key_pair(section: &Section<'_>, cert: &Path, key: &Path) {
    if !cert.is_file() || !key.is_file() {
        return;
    }
    let chain = match certificates(cert) {
        Ok(chain) => chain,
        Err(message) => return section.error("cert", message, "it must hold certificates in PEM"),
    };
    let Ok(private) = PrivateKeyDer::from_pem_file(key) else {
        let message = format!("{} holds no private key", key.display());
        return section.error("key", message, "it must hold a private key in PEM, not encrypted");
    };
    if chain.first().is_some_and(is_self_signed) {
        section.warning(
            "cert",
            "is self-signed: clients that upgrade will refuse it",
            "nodemailer and others then send nothing; use tls = \"none\" or one they trust",
        );
    }
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    if let Err(e) = CertifiedKey::from_der(chain, private, &provider) {
        let message = format!("and cert do not belong together: {e}");
        section.error("key", message, "name the key the certificate was made for");
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(chain) if chain.is_empty() => Err(format!("{} holds no certificate", path.display())),
        Ok(chain) => Ok(chain),
        Err(e) => Err(format!("{}: {e}", path.display())),
    }
}

fn is_self_signed(cert: &CertificateDer<'static>) -> bool {
    x509_parser::parse_x509_certificate(cert)
        .is_ok_and(|(_, cert)| cert.subject().as_raw() == cert.issuer().as_raw())
}
