//! Values that must never be seen: passwords and keys.

use std::fmt;

use zeroize::Zeroizing;

/// A secret text. `Debug` and `Display` print `[redacted]`; the memory is wiped when it is dropped.
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
        f.write_str("[redacted]")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_printed() {
        let c = Credentials::new("relay".into(), Secret::new("hunter2".into()), 1);
        assert!(!format!("{c:?} {}", c.password).contains("hunter2"));
        assert_eq!(c.password.expose(), "hunter2");
    }
}
