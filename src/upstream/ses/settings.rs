//! What the configuration says about an SES upstream.

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;

use crate::mail::{AddressError, Mailbox};
use crate::policy::routing::Pattern;
use crate::secret::Credentials;

/// One account and region of Amazon SES.
#[derive(Clone, PartialEq, Debug)]
pub struct Settings {
    /// Its name in the configuration.
    pub name: String,
    /// The region, as `eu-west-1`; without one the secret's, and then the AWS chain's.
    pub region: Option<String>,
    /// Another place than the region's own: an emulator, a VPC endpoint. `http` or `https`.
    pub endpoint: Option<String>,
    /// Whether the credentials come from a secret of ours; else from the AWS default chain.
    pub secret: bool,
    /// Authorities beside the system's, in PEM.
    pub ca_file: Option<PathBuf>,
    /// The configuration set to send with.
    pub configuration_set: Option<String>,
    /// Tags on every message, beside the queue id and the attempt.
    pub tags: Vec<(String, String)>,
    /// Where bounces go instead of the From address; must be verified.
    pub feedback_address: Option<String>,
    /// Which senders it may send for.
    pub sender: SenderPolicy,
    /// Keep the message's own DKIM-Signature. SES changes Date and Message-ID, so it seldom verifies.
    pub keep_dkim: bool,
    /// Octets of a message before base64.
    pub max_size: u64,
    /// Recipients of the day's quota that are left to others.
    pub day_reserve: u64,
    /// Requests at once.
    pub max_connections: usize,
    /// The limit for a connection, TLS included.
    pub connect_timeout: Duration,
    /// The limit for a whole request.
    pub request_timeout: Duration,
    /// How often the account is asked for its quota. At least a minute but in tests.
    pub account_every: Duration,
}

/// Which senders an upstream may send for: it refuses identities that are not verified there.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SenderPolicy {
    /// The identities it may send for; empty: all.
    pub allowed: Vec<Pattern>,
    /// Put in place of a From that is not allowed, whose address then goes to Reply-To. Without one
    /// here or in the secret such a message is not for this upstream.
    pub default: Option<String>,
}

impl SenderPolicy {
    /// Whether mail may be sent for this address.
    pub(super) fn allows(&self, address: &Mailbox) -> bool {
        self.allowed.is_empty() || self.allowed.iter().any(|pattern| pattern.contains(address))
    }

    /// This, with the secret's sender as default where there is none. A sender that is no address,
    /// or that is not allowed itself, is left out.
    pub fn filled(&self, secret: Option<&Credentials>) -> Cow<'_, Self> {
        let allowed = |from: &&String| {
            !self.allowed.is_empty()
                && Mailbox::parse(from.as_bytes()).is_ok_and(|mailbox| self.allows(&mailbox))
        };
        let said = secret.and_then(|secret| secret.place.from.as_ref()).filter(allowed);
        match said {
            Some(from) if self.default.is_none() => {
                Cow::Owned(Self { default: Some(from.clone()), ..self.clone() })
            }
            _ => Cow::Borrowed(self),
        }
    }

    /// Whether a default is an address, and one that is allowed.
    pub(super) fn check(&self) -> Result<(), SettingsError> {
        let Some(default) = &self.default else { return Ok(()) };
        let address = default.clone();
        let mailbox = Mailbox::parse(default.as_bytes())
            .map_err(|source| SettingsError::Sender { address, source })?;
        if self.allows(&mailbox) {
            Ok(())
        } else {
            Err(SettingsError::SenderNotAllowed(default.clone()))
        }
    }
}

/// Why an SES upstream cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// [`Settings::endpoint`] is no `http` or `https` URL of a host.
    #[error("endpoint {0:?} is not an http or https URL")]
    Endpoint(String),
    /// [`Settings::ca_file`] cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// [`Settings::ca_file`] holds something else.
    #[error("{} holds no certificate authority: {why}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What was wrong with it.
        why: String,
    },
    /// The TLS library refused what it was given.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
    /// [`SenderPolicy::default`] is no address.
    #[error("default sender {address:?}: {source}")]
    Sender {
        /// The address.
        address: String,
        /// What is wrong with it.
        source: AddressError,
    },
    /// [`SenderPolicy::default`] is not one of [`SenderPolicy::allowed`].
    #[error("default sender {0:?} is not one of the allowed senders")]
    SenderNotAllowed(String),
}

/// Settings for tests.
#[cfg(test)]
pub(super) fn sample() -> Settings {
    Settings {
        name: "ses".into(),
        region: Some("eu-west-1".into()),
        endpoint: None,
        secret: true,
        ca_file: None,
        configuration_set: None,
        tags: vec![],
        feedback_address: None,
        sender: SenderPolicy::default(),
        keep_dkim: false,
        max_size: 1 << 20,
        day_reserve: 0,
        max_connections: 2,
        connect_timeout: Duration::from_secs(2),
        request_timeout: Duration::from_secs(5),
        account_every: Duration::from_mins(1),
    }
}
