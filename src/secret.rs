//! Values that must never be seen: passwords and keys.

use std::fmt;

use serde::{Serialize, Serializer};
use zeroize::Zeroizing;

/// What is shown in place of a secret.
const REDACTED: &str = "[redacted]";

/// A secret text. `Debug`, `Display` and serde's `Serialize` show `[redacted]`; the memory is wiped
/// when it is dropped. It cannot be deserialised: whoever reads one says so with [`Secret::new`].
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes charge of `value`.
    pub fn new(value: String) -> Self {
        Self(Zeroizing::new(value))
    }

    /// The text itself. Call it where the protocol needs it and nowhere else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(REDACTED)
    }
}

/// What a login needs: a user name and password for SMTP AUTH (RFC 4954), or an access key and its
/// secret for AWS; and what else the secret says of the place it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The authentication identity, or the access key's id.
    pub username: String,
    /// The password, or the secret access key.
    pub password: Secret,
    /// Grows with every change; connections made with an older one are retired.
    pub version: u64,
    /// AWS: the token of temporary credentials.
    pub session_token: Option<Secret>,
    /// What the secret says where the configuration says nothing.
    pub place: Place,
}

/// Where a secret is for, as far as it says so. The configuration wins.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Place {
    /// The smarthost.
    pub host: Option<String>,
    /// Its port.
    pub port: Option<u16>,
    /// Whether TLS is to be used.
    pub use_tls: Option<bool>,
    /// The sender to use.
    pub from: Option<String>,
    /// The AWS region.
    pub region: Option<String>,
}

impl Credentials {
    /// A login that says no more than that.
    pub fn new(username: String, password: Secret, version: u64) -> Self {
        Self { username, password, version, session_token: None, place: Place::default() }
    }

    /// Whether user name and password are empty: the place wants no login.
    pub fn is_anonymous(&self) -> bool {
        self.username.is_empty() && self.password.expose().is_empty()
    }

    /// Whether these say the same as `other`, whatever their versions.
    pub fn says_the_same(&self, other: &Self) -> bool {
        self.username == other.username
            && self.password == other.password
            && self.session_token == other.session_token
            && self.place == other.place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_printed() {
        let c = Credentials::new("relay".into(), Secret::new("hunter2".into()), 1);
        let json = serde_json::to_string(&c.password).unwrap();
        let shown = format!("{c:?} {c:#?} {} {json}", c.password);
        assert!(!shown.contains("hunter2"));
        assert_eq!(shown.matches("[redacted]").count(), 4);
        assert_eq!(c.password.expose(), "hunter2");
    }
}
