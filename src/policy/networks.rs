//! `mynetworks`: who may send.
//!
//! The syntax is Postfix's: `10.0.0.0/16`, `[::1]/128`, a bare address for one host. What Postfix
//! would take and an operator would regret (host bits, a prefix with a leading zero, the whole
//! Internet) is refused with what to write instead.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The bits of an IPv4-mapped IPv6 prefix, `::ffff:0:0/96` (RFC 4291 section 2.5.5.2).
const MAPPED_BITS: u8 = 96;

/// The shortest prefixes that are accepted: those of the widest private networks, `10.0.0.0/8` and
/// `fc00::/7`. Nobody's own network is wider.
const SHORTEST_V4: u8 = 8;
const SHORTEST_V6: u8 = 7;

/// What is not reachable from the Internet: RFC 1918, loopback, link-local, and the space shared
/// behind a carrier's NAT (RFC 6598).
const PRIVATE_V4: [(Ipv4Addr, u8); 6] = [
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
];

/// Loopback, unique local (RFC 4193) and link-local.
const PRIVATE_V6: [(Ipv6Addr, u8); 3] = [
    (Ipv6Addr::LOCALHOST, 128),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
];

/// The networks whose hosts may send. Empty admits nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(Vec<IpNet>);

/// Why an entry of the list was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{entry}\" {problem}")]
pub struct NetworkError {
    /// Its place in the list, from 0.
    pub index: usize,
    /// The entry as written.
    pub entry: String,
    /// What is wrong with it.
    pub problem: NetworkProblem,
}

/// What can be wrong with an entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkProblem {
    /// Not an address, with or without a prefix length.
    #[error("is not a network")]
    Syntax,
    /// Several entries in one text.
    #[error("holds more than one entry")]
    Several,
    /// `fe80::1%eth0`.
    #[error("names an interface")]
    Zone,
    /// A prefix length that is no number, has a leading zero, or is longer than an address.
    #[error("has an invalid prefix length")]
    Prefix {
        /// The longest there is for this kind of address.
        longest: u8,
    },
    /// Bits behind the prefix that are not zero.
    #[error("has host bits set")]
    HostBits {
        /// The network it is in.
        network: IpNet,
        /// The host it names.
        host: IpNet,
    },
    /// Wider than any private network.
    #[error("is wider than any network of one's own")]
    TooWide {
        /// The shortest prefix length accepted.
        shortest: u8,
    },
}

impl NetworkProblem {
    /// What to write instead.
    pub fn cure(&self) -> String {
        match self {
            Self::Syntax => {
                "write an address or a network: \"10.0.0.0/16\", \"[fd00::]/64\", \"10.0.0.5\"; \
                 names, files and \"!\" are not understood"
                    .into()
            }
            Self::Several => "write one string for each network: [\"127.0.0.0/8\", \"…\"]".into(),
            Self::Zone => "write the address without %interface".into(),
            Self::Prefix { longest } => {
                format!("write a number from 0 to {longest} without leading zeros")
            }
            Self::HostBits { network, host } => {
                format!("write {network} (the network) or {host} (that one host)")
            }
            Self::TooWide { shortest } => {
                format!("it would admit strangers; list your own networks (/{shortest} or longer)")
            }
        }
    }
}

impl Networks {
    /// Reads the entries, and reports every one that is wrong.
    pub fn parse<S: AsRef<str>>(entries: &[S]) -> Result<Self, Vec<NetworkError>> {
        let (mut networks, mut errors) = (Vec::new(), Vec::new());
        for (index, entry) in entries.iter().map(AsRef::as_ref).enumerate() {
            match parse_entry(entry) {
                Ok(network) => networks.push(network),
                Err(problem) => errors.push(NetworkError { index, entry: entry.into(), problem }),
            }
        }
        if errors.is_empty() { Ok(Self(networks)) } else { Err(errors) }
    }

    /// Whether a peer may send. IPv4-mapped IPv6 addresses count as the IPv4 address within; other
    /// addresses that carry an IPv4 address (NAT64, 6to4, compatible) do not.
    pub fn contains(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.0.iter().any(|network| network.contains(&peer))
    }

    /// Whether the list admits nobody.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The networks, in the order of the entries.
    pub fn iter(&self) -> impl Iterator<Item = IpNet> {
        self.0.iter().copied()
    }

    /// The entries, with their index, that hold addresses of the public Internet.
    pub fn public(&self) -> impl Iterator<Item = (usize, IpNet)> {
        self.iter().enumerate().filter(|(_, network)| is_public(network))
    }
}

fn is_public(network: &IpNet) -> bool {
    let within = |addr: IpAddr, bits: u8| {
        IpNet::new(addr, bits).is_ok_and(|private| private.contains(network))
    };
    !PRIVATE_V4.iter().any(|(addr, bits)| within((*addr).into(), *bits))
        && !PRIVATE_V6.iter().any(|(addr, bits)| within((*addr).into(), *bits))
}

fn parse_entry(entry: &str) -> Result<IpNet, NetworkProblem> {
    if entry.trim().contains([',', ' ', '\t', '\n']) {
        return Err(NetworkProblem::Several);
    }
    let (addr, prefix) = match entry.split_once('/') {
        Some((addr, prefix)) => (addr, Some(prefix)),
        None => (entry, None),
    };
    let addr = parse_addr(addr)?;
    let longest = if addr.is_ipv4() { 32 } else { 128 };
    let bits = prefix.map_or(Ok(longest), |p| parse_prefix(p, longest))?;
    let network = unmapped(addr, bits).ok_or(NetworkProblem::Prefix { longest })?;
    if network.trunc() != network {
        return Err(NetworkProblem::HostBits {
            network: network.trunc(),
            host: IpNet::from(network.addr()),
        });
    }
    let shortest = if network.addr().is_ipv4() { SHORTEST_V4 } else { SHORTEST_V6 };
    if network.prefix_len() < shortest {
        return Err(NetworkProblem::TooWide { shortest });
    }
    Ok(network)
}

/// An address; IPv6 in brackets as Postfix wants it, or without.
fn parse_addr(text: &str) -> Result<IpAddr, NetworkProblem> {
    if text.contains('%') {
        return Err(NetworkProblem::Zone);
    }
    let addr = match text.strip_prefix('[') {
        Some(rest) => {
            rest.strip_suffix(']').and_then(|v6| v6.parse::<Ipv6Addr>().ok()).map(IpAddr::V6)
        }
        None => text.parse().ok(),
    };
    addr.ok_or(NetworkProblem::Syntax)
}

fn parse_prefix(text: &str, longest: u8) -> Result<u8, NetworkProblem> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    let bits = text.parse().ok().filter(|bits| plain && *bits <= longest);
    bits.ok_or(NetworkProblem::Prefix { longest })
}

/// The network, as an IPv4 one when it lies within `::ffff:0:0/96`: peers are compared so.
fn unmapped(addr: IpAddr, bits: u8) -> Option<IpNet> {
    match addr {
        IpAddr::V4(v4) => Ipv4Net::new(v4, bits).ok().map(IpNet::V4),
        IpAddr::V6(v6) => match (v6.to_ipv4_mapped(), bits.checked_sub(MAPPED_BITS)) {
            (Some(v4), Some(bits)) => Ipv4Net::new(v4, bits).ok().map(IpNet::V4),
            _ => Ipv6Net::new(v6, bits).ok().map(IpNet::V6),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn networks(entries: &[&str]) -> Networks {
        Networks::parse(entries).unwrap_or_else(|e| panic!("{entries:?}: {e:?}"))
    }

    fn problem(entry: &str) -> NetworkProblem {
        let mut errors = Networks::parse(&["10.0.0.0/8", entry]).expect_err(entry);
        assert_eq!((errors.len(), errors[0].index), (1, 1), "{entry}");
        errors.remove(0).problem
    }

    fn admits(list: &Networks, peer: &str) -> bool {
        list.contains(peer.parse().unwrap())
    }

    #[test]
    fn an_empty_list_admits_nobody() {
        let list = networks(&[]);
        assert!(list.is_empty());
        assert!(!admits(&list, "127.0.0.1") && !admits(&list, "::1"));
    }

    #[test]
    fn entries_are_read_as_postfix_reads_them() {
        let list =
            networks(&["127.0.0.0/8", "[::1]/128", "10.0.0.250", "[fd00:1::]/64", "fe80::/10"]);
        for peer in ["127.255.255.255", "::1", "10.0.0.250", "fd00:1::ffff", "fe80::1"] {
            assert!(admits(&list, peer), "{peer}");
        }
        for peer in ["128.0.0.0", "::2", "10.0.0.249", "10.0.0.251", "fd00:1:0:1::", "fec0::1"] {
            assert!(!admits(&list, peer), "{peer}");
        }
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_address_within_on_both_sides() {
        let list = networks(&["10.0.0.0/24"]);
        assert!(admits(&list, "::ffff:10.0.0.250"));
        assert!(!admits(&list, "::ffff:10.0.1.0"));
        let mapped = networks(&["::ffff:10.0.0.0/120", "[::ffff:192.168.1.1]"]);
        assert_eq!(mapped, networks(&["10.0.0.0/24", "192.168.1.1/32"]));
        assert!(admits(&mapped, "10.0.0.255") && !admits(&mapped, "10.0.1.0"));
    }

    #[test]
    fn other_addresses_with_an_ipv4_address_in_them_are_not_that_address() {
        let list = networks(&["10.0.0.0/8", "[::1]/128"]);
        let peers = ["64:ff9b::10.0.0.250", "2002:a00:fa::1", "::10.0.0.250", "::127.0.0.1"];
        for peer in peers {
            assert!(!admits(&list, peer), "{peer}");
        }
    }

    #[test]
    fn host_bits_are_refused_with_both_readings() {
        for (entry, cure) in [
            ("10.0.0.5/16", "write 10.0.0.0/16 (the network) or 10.0.0.5/32 (that one host)"),
            ("[fd00::5]/64", "write fd00::/64 (the network) or fd00::5/128 (that one host)"),
            (
                "::ffff:10.0.0.5/120",
                "write 10.0.0.0/24 (the network) or 10.0.0.5/32 (that one host)",
            ),
        ] {
            assert_eq!(problem(entry).cure(), cure);
        }
    }

    #[test]
    fn what_would_admit_the_internet_is_refused() {
        for entry in ["0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "10.0.0.0/7", "::ffff:0:0/96"] {
            assert_eq!(problem(entry), NetworkProblem::TooWide { shortest: 8 }, "{entry}");
        }
        for entry in ["::/0", "[::]/0", "2000::/3", "fc00::/6"] {
            assert_eq!(problem(entry), NetworkProblem::TooWide { shortest: 7 }, "{entry}");
        }
        assert!(!networks(&["10.0.0.0/8", "fc00::/7"]).is_empty());
    }

    #[test]
    fn public_networks_are_found_and_private_ones_are_not() {
        let private = [
            "10.0.0.0/8",
            "172.16.0.0/12",
            "192.168.255.255",
            "127.0.0.1",
            "169.254.0.0/16",
            "100.64.0.0/10",
            "::1",
            "fd00::/8",
            "fe80::/64",
        ];
        assert_eq!(networks(&private).public().count(), 0);
        let public = ["8.8.8.8", "172.0.0.0/8", "192.168.0.0/15", "2001:db8::/32", "::/96"];
        let list: Vec<&str> = private.into_iter().chain(public).collect();
        let found: Vec<usize> = networks(&list).public().map(|(i, _)| i).collect();
        assert_eq!(found, (private.len()..list.len()).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for entry in [
            "",
            "host.example",
            "10.0.0",
            "10.0.0/24",
            "010.0.0.1",
            "[10.0.0.1]",
            "[::1",
            "::1]",
            "!10.0.0.1",
            "/etc/postfix/net",
            "hash:/etc/x",
            "10.0.0.1:25",
            " 10.0.0.1",
        ] {
            assert_eq!(problem(entry), NetworkProblem::Syntax, "{entry:?}");
        }
        for entry in ["127.0.0.0/8, 10.0.0.0/8", "127.0.0.0/8 [::1]/128"] {
            assert_eq!(problem(entry), NetworkProblem::Several, "{entry:?}");
        }
        for entry in ["fe80::1%eth0", "[fe80::1%eth0]/128"] {
            assert_eq!(problem(entry), NetworkProblem::Zone, "{entry:?}");
        }
        for entry in [
            "10.0.0.0/08",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            "10.0.0.0/8/8",
            "10.0.0.0/255.0.0.0",
            "10.0.0.0/256",
            "::1/129",
        ] {
            assert!(matches!(problem(entry), NetworkProblem::Prefix { .. }), "{entry:?}");
        }
    }

    /// The definition: the first `bits` bits are those of the network. All addresses are IPv6 here,
    /// an IPv4 address being its mapped form.
    fn reference(list: &[(u128, u32)], peer: u128) -> bool {
        let same = |a: u128, i: u32| (a >> (127 - i)) & 1 == (peer >> (127 - i)) & 1;
        list.iter().any(|(first, bits)| (0..*bits).all(|i| same(*first, i)))
    }

    fn entry(first: u128, bits: u32) -> String {
        let addr = Ipv6Addr::from_bits(first);
        match addr.to_ipv4_mapped() {
            Some(v4) => format!("{v4}/{}", bits - u32::from(MAPPED_BITS)),
            None => format!("[{addr}]/{bits}"),
        }
    }

    fn network() -> impl Strategy<Value = (u128, u32)> {
        let masked = |addr: u128, bits: u32| (addr & (u128::MAX << (128 - bits)), bits);
        let v4 = (any::<u32>(), 104_u32..=128)
            .prop_map(move |(a, bits)| masked(0xffff_0000_0000 | u128::from(a), bits));
        // In 2000::/3, so that no IPv6 network holds the mapped addresses.
        let v6 =
            (any::<u128>(), 7_u32..=128).prop_map(move |(a, bits)| masked(a >> 3 | 1 << 125, bits));
        prop_oneof![v4, v6]
    }

    proptest! {
        #[test]
        fn both_edges_of_every_network_are_where_the_reference_has_them(
            list in proptest::collection::vec(network(), 0..8),
        ) {
            let entries: Vec<String> = list.iter().map(|(a, bits)| entry(*a, *bits)).collect();
            let parsed = Networks::parse(&entries).unwrap();
            for (first, bits) in &list {
                let last = first | u128::MAX.checked_shr(*bits).unwrap_or(0);
                for peer in [first - 1, *first, first + 1, last - 1, last, last.saturating_add(1)] {
                    let expected = reference(&list, peer);
                    let addr = IpAddr::V6(Ipv6Addr::from_bits(peer));
                    prop_assert_eq!(parsed.contains(addr), expected, "{} in {:?}", addr, entries);
                    let addr = addr.to_canonical();
                    prop_assert_eq!(parsed.contains(addr), expected, "{} in {:?}", addr, entries);
                }
            }
        }

        #[test]
        fn no_text_makes_it_panic(entry in ".{0,24}") {
            let _ = Networks::parse(&[entry]);
        }
    }
}
