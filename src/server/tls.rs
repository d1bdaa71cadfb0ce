//! Certificates of the listeners.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::listener::{ListenerSettings, ListenerTls};

/// Why a listener has no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or there is no PEM in it.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: pem::Error,
    },
    /// The file has no certificate in it.
    #[error("no certificate in {path}")]
    Empty {
        /// Which file.
        path: PathBuf,
    },
    /// Key and certificate do not fit, or are of a kind that cannot be used.
    #[error("cannot use {cert} with {key}: {source}")]
    Pair {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why not.
        source: rustls::Error,
    },
}

/// Reads the certificates of all listeners that have one, by the listener's name. Each has its own
/// session cache, so that a session of one is not resumed on another.
pub fn load(
    listeners: &[ListenerSettings],
) -> Result<BTreeMap<String, Arc<ServerConfig>>, TlsError> {
    let mut configs = BTreeMap::new();
    for listener in listeners {
        if let ListenerTls::StartTls(files) | ListenerTls::Implicit(files) = &listener.tls {
            let config = server_config(&files.cert, &files.key)?;
            configs.insert(listener.name.clone(), Arc::new(config));
        }
    }
    Ok(configs)
}

fn server_config(cert: &Path, key: &Path) -> Result<ServerConfig, TlsError> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::Read { path, source }
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect)
        .map_err(unreadable(cert))?;
    if chain.is_empty() {
        return Err(TlsError::Empty { path: cert.to_owned() });
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(unreadable(key))?;
    ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|b| b.with_no_client_auth().with_single_cert(chain, private))
        .map_err(|source| TlsError::Pair { cert: cert.to_owned(), key: key.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::super::listener::Certificate;
    use super::*;

    fn listener(tls: ListenerTls) -> ListenerSettings {
        ListenerSettings { name: "in".into(), address: "127.0.0.1:0".parse().unwrap(), tls }
    }

    #[test]
    fn every_way_a_certificate_can_be_wrong_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        let files = Certificate { cert: cert.clone(), key: key.clone() };
        let with_tls = [listener(ListenerTls::StartTls(files))];
        let wrong = |what: &str| {
            let e = load(&with_tls).unwrap_err().to_string();
            assert!(e.contains(what) && e.contains(".pem"), "{e}");
        };
        wrong("cannot read");
        std::fs::write(&cert, "no pem").unwrap();
        wrong("no certificate");
        let made = rcgen::generate_simple_self_signed(vec!["gate.example".into()]).unwrap();
        std::fs::write(&cert, made.cert.pem()).unwrap();
        wrong("cannot read");
        std::fs::write(&key, rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
        wrong("cannot use");
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        assert!(load(&with_tls).unwrap().contains_key("in"));
        assert!(load(&[listener(ListenerTls::None)]).unwrap().is_empty());
    }
}
