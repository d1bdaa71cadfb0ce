//! What the configuration says about secrets.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// What the configuration says about secrets.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Settings {
    /// The Vault, where there is one.
    pub vault: Option<VaultSettings>,
    /// The secrets by name.
    pub secrets: BTreeMap<String, SecretSettings>,
}

/// Which Vault, and how to log in there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VaultSettings {
    /// `https://vault.internal:8200`.
    pub address: String,
    /// The namespace, where there are some.
    pub namespace: Option<String>,
    /// An authority beside the system's, in PEM.
    pub ca_file: Option<PathBuf>,
    /// The login.
    pub auth: VaultAuth,
    /// The limit for one request.
    pub timeout: Duration,
}

/// How to log in to Vault.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VaultAuth {
    /// The token in this file; read again when it is refused.
    TokenFile(PathBuf),
    /// The token in this environment variable.
    TokenEnvironment(String),
    /// AppRole.
    AppRole {
        /// Where it is mounted, as `approle`.
        mount: String,
        /// The role.
        role_id: String,
        /// The file with the secret id, read at every login.
        secret_id_file: PathBuf,
        /// Whether the file holds a wrapping token in place of the secret id.
        wrapped: bool,
    },
}

/// One secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SecretSettings {
    /// Where it is.
    pub source: Source,
    /// How often it is looked at.
    pub refresh: Duration,
    /// Which fields hold what; what is not named is found under the usual spellings.
    pub fields: Fields,
    /// The environment variables it is taken from while the source has never given it: by the names
    /// of [`Fields`]' keys.
    pub fallback: BTreeMap<String, String>,
}

/// Where a secret is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// Vault KV version 2: `secret/keybuzz/smtp` is the mount `secret` and the path `keybuzz/smtp`.
    Vault {
        /// The mount.
        mount: String,
        /// The path in it, without `data/`.
        path: String,
    },
    /// Put together from parts, by the names of [`Fields`]' keys.
    Parts(BTreeMap<String, Given>),
}

/// One part.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Given {
    /// In the configuration: a user name.
    Literal(String),
    /// In a file, without its last newline; read again when it changes.
    File(PathBuf),
    /// In an environment variable.
    Environment(String),
}

/// The names a secret's values have, by what they are: `username`, `password`, `session_token`,
/// `host`, `port`, `use_tls`, `from`, `region`.
pub type Fields = BTreeMap<String, String>;
