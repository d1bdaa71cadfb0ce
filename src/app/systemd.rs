//! What systemd is told, and what it hands over. Without systemd all of this does nothing.

use std::io;
use std::net::TcpListener;

use sd_notify::NotifyState;
use tokio::task::JoinHandle;

/// The listening sockets of a socket unit.
pub(super) fn inherited() -> io::Result<Vec<TcpListener>> {
    let mut fds = listenfd::ListenFd::from_env();
    let mut sockets = Vec::with_capacity(fds.len());
    for i in 0..fds.len() {
        sockets.extend(fds.take_tcp_listener(i)?);
    }
    Ok(sockets)
}

/// Stops the watchdog when it is dropped.
pub(super) struct Watchdog(Option<JoinHandle<()>>);

impl Drop for Watchdog {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// Says that mail is taken, and from then on that the runtime is alive, twice as often as asked.
pub(super) fn ready() -> Watchdog {
    tell(&[NotifyState::Ready]);
    Watchdog(sd_notify::watchdog_enabled().map(|interval| {
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(interval / 2);
            loop {
                tick.tick().await;
                tell(&[NotifyState::Watchdog]);
            }
        })
    }))
}

pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(since) => tell(&[NotifyState::Reloading, since]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

pub(super) fn reloaded() {
    tell(&[NotifyState::Ready]);
}

pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(states: &[NotifyState<'_>]) {
    // Who does not listen is not told; mail does not depend on it.
    let _ = sd_notify::notify(states);
}
