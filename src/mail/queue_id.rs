//! Queue ids: 13 characters, time-ordered, never reused.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

/// Crockford's base 32: no I, L, O or U, so that an id can be read out over a telephone.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// The number of characters of a printed id.
pub const LENGTH: usize = 13;

/// Low bits that count ids within one millisecond.
const SEQUENCE_BITS: u32 = 20;

/// The name of a message for as long as Postgate knows it; the text after `queued as`.
///
/// 44 bits of milliseconds and 20 bits of sequence, so ids sort by time of arrival.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueId(u64);

impl QueueId {
    /// The id with this number, as the spool's records hold it.
    pub const fn from_u64(n: u64) -> Self {
        Self(n)
    }

    /// The number to store.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        for i in (0..LENGTH).rev() {
            let digit = (self.0 >> (5 * i)) & 31;
            let c = ALPHABET.get(usize::try_from(digit).unwrap_or(0)).copied().unwrap_or(b'0');
            f.write_char(char::from(c))?;
        }
        Ok(())
    }
}

impl fmt::Debug for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is no queue id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a queue id: 13 characters of 0-9 and A-Z without I, L, O and U are expected")]
pub struct InvalidQueueId;

impl FromStr for QueueId {
    type Err = InvalidQueueId;

    /// Reads an id in either letter case.
    fn from_str(s: &str) -> Result<Self, InvalidQueueId> {
        if s.len() != LENGTH {
            return Err(InvalidQueueId);
        }
        let mut n: u128 = 0;
        for b in s.bytes() {
            let digit = ALPHABET.iter().position(|a| *a == b.to_ascii_uppercase());
            n = n << 5 | digit.ok_or(InvalidQueueId)? as u128;
        }
        u64::try_from(n).map(Self).map_err(|_| InvalidQueueId)
    }
}

impl Serialize for QueueId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for QueueId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let s = std::borrow::Cow::<'de, str>::deserialize(d)?;
        s.parse().map_err(serde::de::Error::custom)
    }
}

/// Hands out ids, each greater than every one before it, also when the wall clock is set back.
#[derive(Debug)]
pub struct QueueIdSequence {
    last: u64,
}

impl QueueIdSequence {
    /// Starts above `floor`, the greatest id that was ever given out (zero for none).
    pub const fn above(floor: u64) -> Self {
        Self { last: floor }
    }

    /// The next id for a message that arrives at `now`.
    pub fn next(&mut self, now: Timestamp) -> QueueId {
        let by_time = now.as_millis() << SEQUENCE_BITS;
        self.last = by_time.max(self.last.saturating_add(1));
        QueueId(self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_what_it_prints() {
        for n in [0, 1, 31, 32, u64::MAX, 1_795_252_321_431 << SEQUENCE_BITS] {
            let id = QueueId::from_u64(n);
            assert_eq!(id.to_string().len(), LENGTH);
            assert_eq!(id.to_string().parse(), Ok(id));
            assert_eq!(id.to_string().to_lowercase().parse(), Ok(id));
        }
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for s in [
            "",
            "0K3X8QZ1M7RW",
            "0K3X8QZ1M7RWTT",
            "0K3X8QZ1M7RWI",
            "ZZZZZZZZZZZZZ",
            "../../passwd0",
        ] {
            assert_eq!(s.parse::<QueueId>(), Err(InvalidQueueId), "{s}");
        }
    }

    #[test]
    fn ids_grow_with_time_and_when_the_clock_is_set_back() {
        let mut ids = QueueIdSequence::above(0);
        let noon = Timestamp::from_millis(1_795_252_321_431);
        let (a, b) = (ids.next(noon), ids.next(noon));
        let c = ids.next(Timestamp::from_millis(5));
        let d = ids.next(Timestamp::from_millis(noon.as_millis() + 1));
        assert!(a < b && b < c && c < d);
        assert!(a.to_string() < b.to_string() && c.to_string() < d.to_string());
        assert!(QueueIdSequence::above(d.as_u64()).next(noon) > d);
    }
}
