//! `mynetworks`: who may send.
#![allow(clippy::all, clippy::pedantic, unused)]

use std::net::IpAddr;

/// The networks whose hosts may send. Empty admits nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(Vec<ipnet::IpNet>);

impl Networks {
    /// Whether a peer may send. IPv4-mapped IPv6 addresses count as the IPv4 address within.
    pub fn contains(&self, peer: IpAddr) -> bool {
        todo!()
    }
}
