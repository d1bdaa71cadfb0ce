//! Why a secret could not be read, in words that say what to do.
//!
//! No text here comes from an answer or a file: an answer that makes no sense may be the secret.

use std::path::PathBuf;
use std::time::Duration;

/// A secret could not be read now.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FetchError {
    /// No connection, or it broke, or no good certificate.
    #[error("cannot reach Vault at {address}: {why}")]
    Unreachable {
        /// Where.
        address: String,
        /// What the system or TLS said.
        why: String,
    },
    /// No answer in time.
    #[error("no answer from Vault at {address} within {limit:?}")]
    Slow {
        /// Where.
        address: String,
        /// How long we waited.
        limit: Duration,
    },
    /// 503 from a Vault that has been started and not unsealed.
    #[error("Vault at {address} is sealed or in maintenance (503); unseal it")]
    Sealed {
        /// Where.
        address: String,
    },
    /// 429, 472, 473: it is one that does not answer for the cluster.
    #[error("Vault at {address} is a standby or limits requests ({status}); name the active node")]
    Standby {
        /// Where.
        address: String,
        /// The HTTP status.
        status: u16,
    },
    /// It wants us to ask elsewhere, and the token stays here.
    #[error(
        "Vault at {address} answers with a redirect ({status}), which is not followed: \
         the token would go along; name the address it leads to"
    )]
    Redirected {
        /// Where.
        address: String,
        /// The HTTP status.
        status: u16,
    },
    /// Another status that is no success.
    #[error("Vault at {address} failed with status {status}; see its log")]
    Failed {
        /// Where.
        address: String,
        /// The HTTP status.
        status: u16,
    },
    /// The token is good and its policies don't allow it.
    #[error("Vault denies reading {path}; the policy of our token must allow \"read\" on it")]
    Denied {
        /// The path with `data/`, as a policy has it.
        path: String,
    },
    /// There is no such path.
    #[error(
        "Vault has nothing at {path}; check the mount and the path, and that it is KV version 2"
    )]
    NotFound {
        /// The path with `data/`.
        path: String,
    },
    /// The latest version was deleted or destroyed.
    #[error("the latest version ({version}) of {path} in Vault is deleted; undelete or write it")]
    Deleted {
        /// The path with `data/`.
        path: String,
        /// Which version.
        version: u64,
    },
    /// The answer is not what Vault answers.
    #[error("the answer from {address} makes no sense: {why}; is it Vault, with KV version 2?")]
    Garbage {
        /// Where.
        address: String,
        /// What is wrong with it; nothing of the answer itself.
        why: &'static str,
    },
    /// There is no token to ask with.
    #[error("no login to Vault: {0}")]
    Login(#[from] LoginError),
    /// A part of the secret cannot be had.
    #[error("{part}: {source}")]
    Part {
        /// Which part: `password`.
        part: String,
        /// Why.
        source: PartError,
    },
    /// It was read and is no use.
    #[error("{0}")]
    Content(#[from] ContentError),
}

/// There is no token to ask Vault with.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LoginError {
    /// The token, the secret id or the wrapping token cannot be had.
    #[error("{what}: {source}")]
    Input {
        /// What: `the secret id`.
        what: &'static str,
        /// Why not.
        source: PartError,
    },
    /// AppRole said no.
    #[error(
        "AppRole at auth/{mount} refuses the role id or the secret id in {file}; \
         write a new secret id there, it is read again"
    )]
    Refused {
        /// The mount.
        mount: String,
        /// The file.
        file: PathBuf,
    },
    /// The wrapping token is used up or expired.
    #[error(
        "the wrapping token in {0} is used up or has expired, or someone else used it; \
         write a new one there, it is read again"
    )]
    Unwrap(PathBuf),
    /// The token we were given has expired or was revoked.
    #[error("{0} is refused: expired or revoked; put a new one there, it is read again")]
    Token(String),
}

/// A file or an environment variable does not give a value.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PartError {
    /// The file cannot be read.
    #[error("cannot read {path}: {kind}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        kind: std::io::ErrorKind,
    },
    /// Others may read it.
    #[error("{path} can be read by everyone (mode {mode:04o}); chmod o-rwx it")]
    Open {
        /// Which.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Nothing in it, too much, or no text.
    #[error("{place} {why}")]
    Value {
        /// The file or the variable.
        place: String,
        /// What is wrong; nothing of the value.
        why: &'static str,
    },
    /// The variable is not set.
    #[error("the environment variable {0} is not set")]
    Variable(String),
}

/// A secret was read and is no use. The old one stays.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ContentError {
    /// A field is not there.
    #[error("has no {part}: looked for {wanted}; it has {present}")]
    Missing {
        /// Which part.
        part: &'static str,
        /// The names it could have.
        wanted: String,
        /// The names that are there.
        present: String,
    },
    /// Two fields say different things.
    #[error("says {part} in several fields that differ ({names}); name one under fields")]
    Ambiguous {
        /// Which part.
        part: &'static str,
        /// The fields.
        names: String,
    },
    /// A value cannot be.
    #[error("field {field} {why}")]
    Value {
        /// Which field.
        field: String,
        /// What is wrong; nothing of the value.
        why: &'static str,
    },
}

/// The settings do not work on this machine.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A secret is in Vault, and there is no `[vault]`.
    #[error("secret {0} is in Vault and there is no [vault]")]
    NoVault(String),
    /// Not an address.
    #[error("vault address {address}: {why}")]
    Address {
        /// As written.
        address: String,
        /// What is wrong.
        why: &'static str,
    },
    /// Not what an HTTP header can hold.
    #[error("vault namespace {0} has characters that no namespace has")]
    Namespace(String),
    /// The authority's certificate cannot be used.
    #[error("vault ca_file {path}: {why}")]
    CaFile {
        /// Which.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// TLS cannot be set up.
    #[error("vault: cannot set up TLS: {0}")]
    Tls(String),
}
