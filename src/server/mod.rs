//! Receiving: listeners, and a task for each connection that drives its [`smtp::Session`].
//!
//! The caller binds ([`bind`]), says what is allowed ([`Policy`]), and says when to stop ([`run`]).
//! Who a peer is gets decided before anything it says is looked at.

mod accept;
mod connection;
mod intake;
pub mod listener;
pub mod tls;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::mail::header;
use crate::policy::admission::Limits;
use crate::policy::networks::Networks;
use crate::smtp;
use crate::spool::Spool;

pub use listener::{BindError, Bound, Certificate, ListenerSettings, ListenerTls, bind};
pub use tls::TlsError;

/// What a reload can change. New connections are served by the newest one; an open session asks
/// [`networks`](Self::networks), [`header`](Self::header) and
/// [`wanted_headers`](Self::wanted_headers) of the newest one for each message.
#[derive(Clone, Debug)]
pub struct Policy {
    /// What a session may do. Whether STARTTLS is offered is decided for each listener.
    pub smtp: Arc<smtp::Settings>,
    /// Who may send.
    pub networks: Networks,
    /// The header work.
    pub header: header::Settings,
    /// Headers that are noted of each message, for routes and priorities: names in lower case.
    pub wanted_headers: Vec<String>,
    /// How many connections are served.
    pub limits: Limits,
    /// How many connections are held open to be told why they are not served. Above it they are
    /// told without waiting for a QUIT.
    pub refused: Limits,
    /// The certificates of the listeners, by name; see [`tls::load`].
    pub tls: BTreeMap<String, Arc<rustls::ServerConfig>>,
    /// How long a TLS handshake may take.
    pub tls_timeout: Duration,
    /// How long a client's last octets are waited for after a close, so that it can read the reply.
    pub linger: Duration,
}

/// What all connections share.
struct Shared {
    policy: Arc<ArcSwap<Policy>>,
    spool: Arc<dyn Spool>,
    clock: Arc<dyn Clock>,
    doors: accept::Doors,
    large_headers: Arc<Semaphore>,
    /// No new work.
    shutdown: CancellationToken,
    /// No work at all.
    abort: CancellationToken,
}

/// Serves until `shutdown`, then lets open transactions finish for at most `drain_timeout`.
///
/// Fails when a socket cannot be registered with the runtime; nothing was accepted then.
pub async fn run(
    bound: Vec<Bound>,
    policy: Arc<ArcSwap<Policy>>,
    spool: Arc<dyn Spool>,
    clock: Arc<dyn Clock>,
    shutdown: CancellationToken,
    drain_timeout: Duration,
) -> io::Result<()> {
    let mut listeners = Vec::with_capacity(bound.len());
    for Bound { settings, listener } in bound {
        listeners.push((settings, tokio::net::TcpListener::from_std(listener)?));
    }
    let abort = CancellationToken::new();
    let _stop_with_this_future = abort.clone().drop_guard();
    let doors = accept::Doors::default();
    let large_headers = Arc::new(Semaphore::new(intake::LARGE_HEADERS));
    let shared = Shared { policy, spool, clock, doors, large_headers, shutdown, abort };
    let shared = Arc::new(shared);
    let connections = TaskTracker::new();
    let mut accepting = JoinSet::new();
    for (settings, listener) in listeners {
        let (shared, connections) = (shared.clone(), connections.clone());
        accepting.spawn(accept::listen(settings, listener, shared, connections));
    }
    shared.shutdown.cancelled().await;
    while accepting.join_next().await.is_some() {}
    connections.close();
    if tokio::time::timeout(drain_timeout, connections.wait()).await.is_err() {
        shared.abort.cancel();
        connections.wait().await;
    }
    Ok(())
}
