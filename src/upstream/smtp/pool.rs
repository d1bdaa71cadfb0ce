//! Connections to one upstream: a bounded number, kept for the next message while they are good.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::connect::Connection;
use super::settings::PoolSettings;

/// The pool. A connection is opened only while none is idle, so idle and busy ones together are
/// never more than `max_connections`.
pub(crate) struct Pool {
    settings: PoolSettings,
    places: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The least recently used first.
    idle: Vec<Idle>,
    /// Whether someone looks after connections that stay idle.
    swept: bool,
    closed: bool,
}

struct Idle {
    connection: Connection,
    until: Instant,
}

/// The right to use one connection.
pub(crate) type Place = OwnedSemaphorePermit;

impl Pool {
    /// An empty pool.
    pub(crate) fn new(settings: PoolSettings) -> Arc<Self> {
        let places = Arc::new(Semaphore::new(settings.max_connections));
        Arc::new(Self { settings, places, state: Mutex::default() })
    }

    /// Waits for a place; `None` when there is none before `deadline` or the pool is closed.
    pub(crate) async fn place(&self, deadline: Instant) -> Option<Place> {
        let place = Arc::clone(&self.places).acquire_owned();
        timeout_at(deadline, place).await.ok()?.ok()
    }

    /// The connection that was used last, if there is one that was opened with these credentials.
    pub(crate) fn take(&self, credentials: Option<u64>) -> Option<Connection> {
        let now = Instant::now();
        loop {
            let idle = self.state().idle.pop()?;
            let mut connection = idle.connection;
            let fresh = now < idle.until && connection.credentials == credentials;
            // What the upstream said meanwhile can only be a farewell.
            if fresh && connection.dialogue.quiet().is_ok() {
                return Some(connection);
            }
            drop_politely(connection);
        }
    }

    /// Takes a good connection back for the next message, unless it has served enough.
    pub(crate) fn give(self: &Arc<Self>, connection: Connection) {
        let PoolSettings { max_idle, max_messages, max_age, .. } = self.settings;
        let now = Instant::now();
        let until = (now + max_idle).min(connection.opened + max_age);
        let mut state = self.state();
        if state.closed || connection.transactions >= max_messages || until <= now {
            drop(state);
            return drop_politely(connection);
        }
        state.idle.push(Idle { connection, until });
        if !std::mem::replace(&mut state.swept, true) {
            tokio::spawn(sweep(Arc::downgrade(self), until));
        }
    }

    /// Closes the idle connections, and each busy one when it comes back.
    pub(crate) async fn close(&self) {
        let idle = {
            let mut state = self.state();
            state.closed = true;
            std::mem::take(&mut state.idle)
        };
        futures_util::future::join_all(idle.into_iter().map(|i| i.connection.dialogue.quit()))
            .await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes out what was idle for too long; and when to look again.
    fn expired(&self, now: Instant) -> (Vec<Connection>, Option<Instant>) {
        let mut state = self.state();
        let gone = state.idle.extract_if(.., |i| i.until <= now).map(|i| i.connection).collect();
        let next = state.idle.iter().map(|i| i.until).min();
        state.swept = next.is_some();
        (gone, next)
    }
}

/// Closes connections that stay idle, as long as there are any.
async fn sweep(pool: Weak<Pool>, first: Instant) {
    let mut next = Some(first);
    while let Some(at) = next {
        sleep_until(at).await;
        let Some(pool) = pool.upgrade() else { return };
        let (gone, later) = pool.expired(Instant::now());
        gone.into_iter().for_each(drop_politely);
        next = later;
    }
}

/// QUIT, without anyone waiting for it.
pub(crate) fn drop_politely(connection: Connection) {
    tokio::spawn(connection.dialogue.quit());
}
