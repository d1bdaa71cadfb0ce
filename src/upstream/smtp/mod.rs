//! The smarthost upstream: SMTP submission and relay (RFC 5321, RFC 6409) over pooled connections.
//!
//! A message's way through this module: [`pool`] finds a connection or [`connect`] opens one,
//! [`transaction`] hands the message over, [`classify`] says what a refusal means. `mail-send` does
//! the TCP connect, the TLS handshake and the SASL encoding; its reply reader and its way of
//! sending lose what has to be known here (replies before an error, the phase, recipients).

mod capabilities;
mod classify;
mod connect;
mod dialogue;
mod error;
mod pool;
mod reply;
mod settings;
mod tls;
mod transaction;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::Instant;

pub(crate) use capabilities::Capabilities;
pub(crate) use connect::{Connection, Connector, Observer, Seen};
pub(crate) use error::{Cause, Problem};
pub use settings::{
    DEFAULT_PORT, Mechanism, PoolSettings, Settings, SettingsError, Target, Timeouts, TlsMode,
    Verify,
};

use super::{Leaving, NO_CREDENTIALS, Standing, Upstream};
use crate::mail::{Body, Envelope, Handoff, Outcome, RecipientOutcome, Stage};
use crate::secret::Credentials;
use pool::Pool;
use transaction::{Condition, Finished, transact};

/// A smarthost.
pub struct SmtpUpstream {
    connector: Connector,
    credentials: watch::Receiver<Option<Arc<Credentials>>>,
    pool: Arc<Pool>,
}

impl SmtpUpstream {
    /// An upstream that logs in with the latest credentials, if the settings ask for a login.
    ///
    /// `None` in the channel means that there are none yet: then every attempt is deferred.
    pub fn new(
        settings: Settings,
        credentials: watch::Receiver<Option<Arc<Credentials>>>,
    ) -> Result<Self, SettingsError> {
        let pool = Pool::new(settings.pool);
        Ok(Self { connector: Connector::new(settings)?, credentials, pool })
    }

    /// Closes idle connections, and each busy one when its message is done. For the drain.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// One attempt: over an idle connection if there is one, and should that turn out to be dead,
    /// over a fresh one.
    async fn attempt(
        &self,
        envelope: &Envelope,
        body: &Body,
        leaving: &dyn Leaving,
        deadline: Instant,
    ) -> Outcome {
        let timeouts = &self.connector.settings().timeouts;
        let mut trace = Trace::new();
        let Some(_place) = self.pool.place(deadline).await else {
            let waited = Cause::TimedOut(trace.begun.elapsed());
            return trace.failed(envelope, &waited.at(Stage::Pool));
        };
        let credentials = self.current_credentials();
        let version = credentials.as_ref().map(|c| c.version);
        if let Some(mut connection) = self.pool.take(version) {
            trace.using(&connection);
            connection.dialogue.set_deadline(deadline);
            let finished = transact(&mut connection, envelope, body, leaving, timeouts).await;
            if finished.condition != Condition::Stale {
                return self.done(connection, finished, trace);
            }
        }
        let place = credentials.as_deref().map(|c| &c.place);
        trace.host = self.connector.settings().host(place).map(str::to_owned);
        match self.connector.open(credentials, deadline, &mut trace).await {
            Ok(mut connection) => {
                trace.using(&connection);
                let finished = transact(&mut connection, envelope, body, leaving, timeouts).await;
                self.done(connection, finished, trace)
            }
            Err(problem) => trace.failed(envelope, &problem),
        }
    }

    fn done(&self, connection: Connection, finished: Finished, trace: Trace) -> Outcome {
        match finished.condition {
            Condition::Good => self.pool.give(connection),
            Condition::Unwanted => pool::drop_politely(connection),
            Condition::Stale | Condition::Broken => drop(connection),
        }
        trace.outcome(finished.recipients)
    }

    fn current_credentials(&self) -> Option<Arc<Credentials>> {
        let wanted = self.connector.settings().auth_required;
        self.credentials.borrow().clone().filter(|_| wanted)
    }
}

#[async_trait]
impl Upstream for SmtpUpstream {
    fn name(&self) -> &str {
        &self.connector.settings().name
    }

    fn standing(&self) -> Standing {
        let credentials = self.credentials.borrow();
        let lacking = self.connector.settings().auth_required && credentials.is_none();
        let place = credentials.as_deref().map(|c| &c.place);
        let wanting = match self.connector.settings().host(place) {
            _ if lacking => Some(NO_CREDENTIALS.to_owned()),
            None => Some(Cause::NoHost.to_string()),
            Some(_) => None,
        };
        Standing {
            wanting,
            secret: credentials.as_ref().map_or(0, |c| c.version),
            ..Standing::default()
        }
    }

    async fn deliver(
        &self,
        envelope: &Envelope,
        body: &Body,
        leaving: &dyn Leaving,
        deadline: std::time::Instant,
    ) -> Outcome {
        self.attempt(envelope, body, leaving, Instant::from_std(deadline)).await
    }
}

/// What an outcome tells besides the recipients.
struct Trace {
    host: Option<String>,
    begun: Instant,
    relay: Option<String>,
    tls: Option<String>,
    connected: Option<Instant>,
}

impl Trace {
    fn new() -> Self {
        Self { host: None, begun: Instant::now(), relay: None, tls: None, connected: None }
    }

    /// A connection is there, and the transaction begins.
    fn using(&mut self, connection: &Connection) {
        self.relay = Some(connection.relay.clone());
        self.tls.clone_from(&connection.tls);
        self.connected = Some(Instant::now());
    }

    fn failed(self, envelope: &Envelope, problem: &Problem) -> Outcome {
        let outcome = classify::lost(problem, Handoff::NotSent);
        self.outcome(vec![outcome; envelope.recipients.len()])
    }

    fn outcome(self, recipients: Vec<RecipientOutcome>) -> Outcome {
        let now = Instant::now();
        let connected = self.connected.unwrap_or(now);
        Outcome {
            recipients,
            relay: self.relay,
            tls: self.tls,
            connection_setup: connected - self.begun,
            transmission: now - connected,
        }
    }
}

/// `mail-core-01[10.0.0.5]:587`.
fn relay(host: &str, peer: SocketAddr) -> String {
    format!("{host}[{}]:{}", peer.ip(), peer.port())
}

impl Observer for Trace {
    fn seen(&mut self, step: Seen<'_>) {
        match step {
            Seen::Connected(_, peer) => {
                self.relay = self.host.as_deref().map(|host| relay(host, peer));
            }
            Seen::Secured(version, _) => self.tls = Some(version.to_owned()),
            _ => {}
        }
    }
}
