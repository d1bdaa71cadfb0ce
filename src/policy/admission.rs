//! How many connections at once: in total, and for each peer.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::mail::{EnhancedStatus, Reply};

/// How many connections are served at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// From everybody together; 421 4.3.2 above.
    pub total: usize,
    /// From one address; 421 4.7.0 above.
    pub per_peer: usize,
}

/// Why one more connection is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// [`Limits::total`] is reached.
    #[error("too many connections")]
    Total,
    /// [`Limits::per_peer`] is reached.
    #[error("too many connections from one peer")]
    PerPeer,
}

impl Refusal {
    /// What the peer is told in the greeting.
    pub fn reply(self) -> Reply {
        match self {
            Self::Total => {
                Reply::new(421, EnhancedStatus::new(4, 3, 2), "too many connections, try later")
            }
            Self::PerPeer => Reply::new(
                421,
                EnhancedStatus::new(4, 7, 0),
                "too many connections from your address, try later",
            ),
        }
    }
}

/// The connections that are open. It holds one entry for each peer that has one.
#[derive(Debug, Default)]
pub struct Admission {
    total: usize,
    peers: HashMap<IpAddr, usize>,
}

impl Admission {
    /// Counts one more connection of `peer`, unless a limit forbids it. The limits are an argument
    /// because they change with a reload, while the connections stay.
    pub fn enter(&mut self, peer: IpAddr, limits: &Limits) -> Result<(), Refusal> {
        if self.total >= limits.total {
            return Err(Refusal::Total);
        }
        if self.peers.get(&peer).copied().unwrap_or(0) >= limits.per_peer {
            return Err(Refusal::PerPeer);
        }
        self.total += 1;
        *self.peers.entry(peer).or_insert(0) += 1;
        Ok(())
    }

    /// Counts one connection of `peer` less. Call it once for each [`enter`](Self::enter) that
    /// returned `Ok`.
    pub fn leave(&mut self, peer: IpAddr) {
        let Some(open) = self.peers.get_mut(&peer) else { return };
        *open -= 1;
        self.total -= 1;
        if *open == 0 {
            self.peers.remove(&peer);
        }
    }

    /// How many connections are open.
    pub const fn open(&self) -> usize {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, n])
    }

    #[test]
    fn connections_are_admitted_up_to_the_limits_and_again_when_one_has_gone() {
        let limits = Limits { total: 3, per_peer: 2 };
        let mut a = Admission::default();
        assert_eq!(a.enter(peer(1), &limits), Ok(()));
        assert_eq!(a.enter(peer(1), &limits), Ok(()));
        assert_eq!(a.enter(peer(1), &limits), Err(Refusal::PerPeer));
        assert_eq!(a.enter(peer(2), &limits), Ok(()));
        assert_eq!(a.enter(peer(3), &limits), Err(Refusal::Total));
        assert_eq!(a.enter(peer(1), &limits), Err(Refusal::Total));
        a.leave(peer(1));
        assert_eq!(a.enter(peer(1), &limits), Ok(()));
        assert_eq!((a.open(), Refusal::Total.reply().code()), (3, 421));
    }

    #[test]
    fn limits_that_shrink_hold_for_who_comes_next() {
        let mut a = Admission::default();
        for n in 1..=3 {
            assert_eq!(a.enter(peer(n), &Limits { total: 3, per_peer: 1 }), Ok(()));
        }
        let less = Limits { total: 2, per_peer: 1 };
        a.leave(peer(1));
        assert_eq!(a.enter(peer(1), &less), Err(Refusal::Total));
        a.leave(peer(2));
        assert_eq!(a.enter(peer(1), &less), Ok(()));
    }

    #[test]
    fn nothing_is_remembered_of_who_has_gone() {
        let (mut a, limits) = (Admission::default(), Limits { total: 300, per_peer: 2 });
        for n in 0..=255 {
            assert_eq!(a.enter(peer(n), &limits), Ok(()));
            a.leave(peer(n));
            a.leave(peer(n));
        }
        assert_eq!((a.open(), a.peers.len()), (0, 0));
        assert_eq!(a.enter(peer(1), &Limits { total: 0, per_peer: 1 }), Err(Refusal::Total));
        assert_eq!(a.enter(peer(1), &Limits { total: 1, per_peer: 0 }), Err(Refusal::PerPeer));
    }
}
