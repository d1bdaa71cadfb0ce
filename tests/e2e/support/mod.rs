//! The parts: processes, smarthosts, clients and messages.

pub mod client;
pub mod disk;
pub mod emulator;
pub mod gate;
pub mod http;
pub mod mail;
pub mod postfix;
pub mod process;
pub mod scene;
pub mod secrets;
pub mod sink;
pub mod tools;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Long enough for a busy machine; nothing waits this long unless it is broken.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Asks `look` until it sees something, and fails after `limit`.
pub fn eventually<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A port nobody uses, below the range the system takes for outgoing connections: it is still free
/// when a part is started again on it.
pub fn free_port() -> u16 {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..1000 {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let draw = std::process::id().wrapping_mul(97).wrapping_add(count * 31);
        let port = 20_000 + u16::try_from(draw % 12_000).unwrap();
        let free = |ip: IpAddr| TcpListener::bind(SocketAddr::new(ip, port)).is_ok();
        if free(Ipv4Addr::UNSPECIFIED.into()) && free(Ipv6Addr::LOCALHOST.into()) {
            return port;
        }
    }
    panic!("no free port");
}

/// `127.0.0.1:port`.
pub fn local(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)
}
