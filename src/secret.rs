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

/// A user name and password for SMTP AUTH (RFC 4954).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The authentication identity.
    pub username: String,
    /// The password.
    pub password: Secret,
    /// Grows with every change; connections made with an older one are retired.
    pub version: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_printed() {
        let c = Credentials {
            username: "relay".into(),
            password: Secret::new("hunter2".into()),
            version: 1,
        };
        assert!(!format!("{c:?} {}", c.password).contains("hunter2"));
        assert_eq!(c.password.expose(), "hunter2");
    }
}
