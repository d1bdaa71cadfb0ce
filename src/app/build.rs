//! From the configuration to each module's own settings. Nothing is decided here.

use std::sync::Arc;
use std::time::Duration;

use crate::config::Config;
use crate::delivery::plan::PlanError;
use crate::mail::header;
use crate::policy::admission::Limits;
use crate::policy::routing;
use crate::secrets;
use crate::server::{self, Policy};
use crate::smtp;
use crate::upstream::maildir::MaildirError;
use crate::upstream::ses;
use crate::upstream::smtp::SettingsError;

/// A valid configuration that does not work on this machine.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A certificate cannot be used.
    #[error("{0}")]
    Tls(#[from] server::TlsError),
    /// A smarthost's certificate file cannot be used.
    #[error("upstream {name}: {source}")]
    Smarthost {
        /// The upstream's name.
        name: String,
        /// Why not.
        source: SettingsError,
    },
    /// A Maildir cannot be made.
    #[error("upstream {name}: {source}")]
    Maildir {
        /// The upstream's name.
        name: String,
        /// Why not.
        source: MaildirError,
    },
    /// An SES upstream's certificates or endpoint cannot be used.
    #[error("upstream {name}: {source}")]
    Ses {
        /// The upstream's name.
        name: String,
        /// Why not.
        source: ses::SettingsError,
    },
    /// The secrets cannot be read as configured.
    #[error("{0}")]
    Secrets(#[from] secrets::SettingsError),
    /// A route leads nowhere; the configuration's check excludes it.
    #[error("{0}")]
    Plan(#[from] PlanError),
}

/// How many octets a message's header may have.
const HEADER_MAX: usize = 1024 * 1024;

/// How many refused clients are held at once to be told why, in total and for each peer.
const REFUSED_MAX: Limits = Limits { total: 100, per_peer: 4 };

/// How long a client may take for a TLS handshake.
const TLS_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a closed connection is kept for the client to read the last reply.
const LINGER: Duration = Duration::from_secs(2);

/// What may come in. The listeners are those of `started`: they cannot be changed while running.
pub(super) fn policy(config: &Config, started: &Config) -> Result<Policy, BuildError> {
    let limits = &config.limits;
    let smtp = smtp::Settings {
        hostname: config.hostname.clone(),
        postmaster: config.postmaster.clone(),
        max_message_size: limits.max_message_size,
        max_recipients: limits.max_recipients,
        max_text_line: limits.max_text_line,
        max_errors: limits.max_errors,
        max_messages: limits.max_messages_per_connection,
        command_timeout: limits.command_timeout,
        data_timeout: limits.data_timeout,
        bare_newline: limits.bare_newline,
        starttls: false,
    };
    Ok(Policy {
        smtp: Arc::new(smtp),
        networks: config.mynetworks.clone(),
        header: header::Settings {
            hostname: config.hostname.clone(),
            max_header: HEADER_MAX,
            max_hops: limits.max_hops,
            show_address: config.received.client_address,
            show_helo: config.received.helo,
        },
        wanted_headers: routing::headers(&config.routes),
        limits: Limits { total: limits.max_connections, per_peer: limits.max_connections_per_ip },
        refused: REFUSED_MAX,
        tls: server::tls::load(&started.listeners)?,
        tls_timeout: TLS_TIMEOUT,
        linger: LINGER,
    })
}
