//! Accepting connections, and deciding about a peer before it is listened to.

use std::io::{self, Write};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;

use super::connection::Connection;
use super::{ListenerSettings, ListenerTls, Policy, Shared};
use crate::event;
use crate::mail::{EnhancedStatus, Reply};
use crate::policy::admission::{Admission, Limits, Refusal};
use crate::smtp::{Session, Settings};

/// The pause after an accept that failed for want of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections until shutdown. The socket is closed when this returns.
pub(super) async fn listen(
    settings: ListenerSettings,
    listener: TcpListener,
    shared: Arc<Shared>,
    connections: TaskTracker,
) {
    let settings = Arc::new(settings);
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            biased;
            () = shared.shutdown.cancelled() => return,
            () = shared.abort.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) => {
                failing = false;
                let peer = address.ip().to_canonical();
                enter(&settings, stream, peer, &shared, &connections);
            }
            Err(error) if is_about_one_connection(&error) => {}
            Err(error) => {
                if !failing {
                    event::AcceptFailed { listener: &settings.name, error: &error }.emit();
                }
                failing = true;
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Linux hands the errors of a connection that is already gone to accept(2). Anything else, as too
/// few file descriptors, would come again at once.
fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, HostUnreachable, NetworkUnreachable};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | HostUnreachable | NetworkUnreachable
    ) || error.raw_os_error() == Some(libc::EPROTO)
}

/// Decides about a connection and starts its task.
fn enter(
    listener: &Arc<ListenerSettings>,
    stream: TcpStream,
    peer: IpAddr,
    shared: &Arc<Shared>,
    connections: &TaskTracker,
) {
    let policy = shared.policy.load();
    let (settings, tls) = for_listener(&policy, listener);
    let now = shared.clock.now();
    let (slot, session) = match decide(&policy, peer, shared) {
        Ok(slot) => (slot, Session::new(settings, now)),
        Err(reply) => {
            event::PeerRefused { listener: &listener.name, peer, reply: &reply }.emit();
            match Slot::take(shared, Door::Refused, peer, &policy.refused) {
                Ok(slot) => (slot, Session::refusing(settings, reply, now)),
                Err(_) => return turn_away(listener, stream, &reply),
            }
        }
    };
    let connection = Connection::new(shared.clone(), listener.clone(), peer, session, &policy);
    let abort = shared.abort.clone();
    connections.spawn(async move {
        let _slot = slot;
        tokio::select! {
            biased;
            () = abort.cancelled() => {}
            () = connection.serve(stream, tls) => {}
        }
    });
}

/// The session settings and the certificate of a listener.
fn for_listener(
    policy: &Policy,
    listener: &ListenerSettings,
) -> (Arc<Settings>, Option<Arc<ServerConfig>>) {
    let tls = policy.tls.get(&listener.name).cloned();
    let starttls = matches!(listener.tls, ListenerTls::StartTls(_)) && tls.is_some();
    let settings = if policy.smtp.starttls == starttls {
        policy.smtp.clone()
    } else {
        Arc::new(Settings { starttls, ..(*policy.smtp).clone() })
    };
    (settings, tls)
}

fn decide(policy: &Policy, peer: IpAddr, shared: &Arc<Shared>) -> Result<Slot, Reply> {
    if !policy.networks.contains(peer) {
        return Err(not_permitted(peer));
    }
    Slot::take(shared, Door::Admitted, peer, &policy.limits).map_err(Refusal::reply)
}

/// What a peer outside `mynetworks` is told.
pub(super) fn not_permitted(peer: IpAddr) -> Reply {
    let text = format!("client [{peer}] not permitted here (mynetworks)");
    Reply::new(554, EnhancedStatus::new(5, 7, 1), text)
}

/// Tells a peer in one write without waiting, as far as the empty socket buffer takes it. Under TLS
/// it could not read it.
fn turn_away(listener: &ListenerSettings, stream: TcpStream, reply: &Reply) {
    if matches!(listener.tls, ListenerTls::Implicit(_)) {
        return;
    }
    let mut text = Vec::new();
    reply.write_to(&mut text);
    if let Ok(mut stream) = stream.into_std() {
        let _ = stream.write(&text);
    }
}

/// The connections that are open, counted apart: who is refused takes no place from who is served.
#[derive(Default)]
pub(super) struct Doors {
    admitted: Mutex<Admission>,
    refused: Mutex<Admission>,
}

impl Doors {
    fn of(&self, door: Door) -> &Mutex<Admission> {
        match door {
            Door::Admitted => &self.admitted,
            Door::Refused => &self.refused,
        }
    }
}

#[derive(Clone, Copy)]
enum Door {
    Admitted,
    Refused,
}

/// A connection's place, given back when it is dropped.
struct Slot {
    shared: Arc<Shared>,
    door: Door,
    peer: IpAddr,
}

impl Slot {
    fn take(
        shared: &Arc<Shared>,
        door: Door,
        peer: IpAddr,
        limits: &Limits,
    ) -> Result<Self, Refusal> {
        let open = shared.doors.of(door);
        open.lock().unwrap_or_else(PoisonError::into_inner).enter(peer, limits)?;
        Ok(Self { shared: shared.clone(), door, peer })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let open = self.shared.doors.of(self.door);
        open.lock().unwrap_or_else(PoisonError::into_inner).leave(self.peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepting_pauses_when_the_next_try_would_fail_as_well() {
        for errno in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EBADF] {
            assert!(!is_about_one_connection(&io::Error::from_raw_os_error(errno)), "{errno}");
        }
        for errno in [libc::ECONNABORTED, libc::ECONNRESET, libc::EPROTO, libc::ENETUNREACH] {
            assert!(is_about_one_connection(&io::Error::from_raw_os_error(errno)), "{errno}");
        }
    }
}
