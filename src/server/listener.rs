//! The listening sockets: bound by us, or inherited from systemd.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// Ports below this need a privilege.
const FIRST_FREE_PORT: u16 = 1024;

/// Where and how clients connect.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListenerSettings {
    /// Its name in logs.
    pub name: String,
    /// Where it listens; port 0 lets the system choose.
    pub address: SocketAddr,
    /// Whether and when TLS starts.
    pub tls: ListenerTls,
}

/// Whether and when TLS starts on a listener.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum ListenerTls {
    /// Never.
    #[default]
    None,
    /// When the client asks for it (RFC 3207).
    StartTls(Certificate),
    /// At once (RFC 8314).
    Implicit(Certificate),
}

/// The files of a certificate, in PEM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Certificate {
    /// The chain, our own certificate first.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// A socket that listens.
#[derive(Debug)]
pub struct Bound {
    pub(super) settings: ListenerSettings,
    pub(super) listener: TcpListener,
}

impl Bound {
    /// The listener's name.
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// Where it listens in fact.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Why there is no socket to listen on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The system refused.
    #[error("cannot listen on {address}: {source}{}", cure(*address, source))]
    Bind {
        /// Which address.
        address: SocketAddr,
        /// What it said.
        source: io::Error,
    },
    /// systemd handed over a socket that no listener of the configuration wants.
    #[error("inherited socket {address} is not the address of any listener")]
    Unwanted {
        /// Its address.
        address: SocketAddr,
    },
    /// systemd handed over something that cannot be asked for its address.
    #[error("inherited socket: {source}")]
    Inherited {
        /// What the system said.
        source: io::Error,
    },
}

/// What the operator can do about it, to follow the error.
fn cure(address: SocketAddr, source: &io::Error) -> String {
    let port = address.port();
    match source.kind() {
        io::ErrorKind::PermissionDenied if port < FIRST_FREE_PORT => {
            "; ports below 1024 need CAP_NET_BIND_SERVICE (AmbientCapabilities= in the unit) or \
             socket activation"
                .into()
        }
        io::ErrorKind::AddrInUse => format!("; `ss -ltnp sport = :{port}` shows who has it"),
        _ => String::new(),
    }
}

/// Opens a socket for each listener, or takes the `inherited` one that has its address.
///
/// A socket on `[::]` also serves a listener on `0.0.0.0` with the same port: systemd binds so.
pub fn bind(
    listeners: &[ListenerSettings],
    inherited: Vec<TcpListener>,
) -> Result<Vec<Bound>, BindError> {
    let mut waiting = Vec::with_capacity(inherited.len());
    for listener in inherited {
        let address = listener.local_addr().map_err(|source| BindError::Inherited { source })?;
        waiting.push((address, listener));
    }
    let mut bound = Vec::with_capacity(listeners.len());
    for settings in listeners {
        let address = settings.address;
        let exact = waiting.iter().position(|(a, _)| *a == address);
        let dual = || waiting.iter().position(|(a, _)| is_dual_stack_of(*a, address));
        let listener = match exact.or_else(dual) {
            Some(i) => waiting.swap_remove(i).1,
            None => open(address).map_err(|source| BindError::Bind { address, source })?,
        };
        listener.set_nonblocking(true).map_err(|source| BindError::Bind { address, source })?;
        bound.push(Bound { settings: settings.clone(), listener });
    }
    match waiting.first() {
        Some((address, _)) => Err(BindError::Unwanted { address: *address }),
        None => Ok(bound),
    }
}

fn is_dual_stack_of(socket: SocketAddr, wanted: SocketAddr) -> bool {
    socket.is_ipv6()
        && socket.ip().is_unspecified()
        && wanted.ip().is_unspecified()
        && socket.port() == wanted.port()
}

fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // Each family has its own listener; nothing depends on a sysctl.
        socket.set_only_v6(true)?;
    }
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(address: &str) -> ListenerSettings {
        ListenerSettings {
            name: "in".into(),
            address: address.parse().unwrap(),
            tls: ListenerTls::None,
        }
    }

    #[test]
    fn an_inherited_socket_is_used_by_the_listener_with_its_address() {
        let inherited = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = inherited.local_addr().unwrap();
        let listeners = [settings("127.0.0.1:0"), settings(&address.to_string())];
        let bound = bind(&listeners, vec![inherited]).unwrap();
        assert_ne!(bound[0].local_addr().unwrap(), address);
        assert_eq!(bound[1].local_addr().unwrap(), address);
        let stray = TcpListener::bind("127.0.0.1:0").unwrap();
        let e = bind(&listeners[..1], vec![stray]).unwrap_err();
        assert!(matches!(e, BindError::Unwanted { .. }), "{e}");
    }

    #[test]
    fn a_wildcard_socket_of_systemd_serves_the_wildcard_listener_of_either_family() {
        let inherited = open("[::]:0".parse().unwrap()).unwrap();
        let port = inherited.local_addr().unwrap().port();
        let bound = bind(&[settings(&format!("0.0.0.0:{port}"))], vec![inherited]).unwrap();
        assert_eq!(bound[0].local_addr().unwrap().port(), port);
    }

    #[test]
    fn an_address_that_is_taken_is_named_with_the_way_to_find_out() {
        let first = bind(&[settings("127.0.0.1:0")], Vec::new()).unwrap();
        let address = first[0].local_addr().unwrap();
        let e = bind(&[settings(&address.to_string())], Vec::new()).unwrap_err().to_string();
        assert!(e.contains(&address.to_string()) && e.contains("ss -ltnp"), "{e}");
    }

    #[test]
    fn a_missing_privilege_is_named_with_its_cure() {
        let denied = |port: u16| BindError::Bind {
            address: SocketAddr::from(([0, 0, 0, 0], port)),
            source: io::Error::from(io::ErrorKind::PermissionDenied),
        };
        for (port, cure) in [(25, true), (1023, true), (1024, false)] {
            let e = denied(port).to_string();
            assert_eq!(e.contains("CAP_NET_BIND_SERVICE"), cure, "{e}");
        }
    }
}
