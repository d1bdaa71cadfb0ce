//! Records and segment headers as bytes (`docs/spool.md`). Pure: what is read here is what a disk
//! gave back, so nothing in it is believed before its checksum is.

use crate::clock::Timestamp;
use crate::mail::{QueueId, QueueState};

/// Octets of a record before its metadata.
pub(super) const HEADER: usize = 56;
/// Octets of a segment before its first record.
pub(super) const SEGMENT_HEADER: usize = 64;
/// The first octets of every record.
pub(super) const MAGIC: [u8; 4] = *b"EPGV";
/// More metadata than any message has.
pub(super) const META_MAX: usize = 64 << 20;

const SEGMENT_MAGIC: [u8; 8] = *b"PGATESEG";
const SEGMENT_VERSION: u32 = 1;
const META_VERSION: u8 = 1;

/// What a record does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// A message, its body in the record.
    Enqueue,
    /// New metadata and a new state for a message.
    State,
    /// The end of a message.
    Done,
    /// A message, its body in a file of its own.
    EnqueueBig,
}

/// The header of a record, without what only the log knows (segment and sequence).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    pub(super) kind: Kind,
    /// [`QueueState::Sent`] for [`Kind::Done`].
    pub(super) state: QueueState,
    pub(super) id: QueueId,
    pub(super) due: Timestamp,
    /// Octets of the body, in the record or in the file.
    pub(super) body_len: u64,
    pub(super) body_crc: u32,
}

/// A header that was read, and what the log adds to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Decoded {
    pub(super) header: Header,
    pub(super) sequence: u64,
    pub(super) meta_len: usize,
}

/// Why octets are no record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Bad {
    /// No magic, a wrong checksum, or an unknown type or version.
    Header,
    /// The header is sound, and what follows it is damaged or cut off.
    Payload(Decoded),
}

/// What a segment says about itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SegmentHeader {
    pub(super) number: u32,
    pub(super) salt: u32,
    /// The greatest id of a message stored before.
    pub(super) floor: u64,
    /// The sequence number of its first record.
    pub(super) sequence: u64,
    /// The segment before, zero for none, and where that one ends, zero for unknown.
    pub(super) previous: u32,
    pub(super) previous_end: u32,
}

/// Where the checksum of every record of a segment starts from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Seed(u32);

impl Seed {
    /// The seed of segment `number` in the spool with this salt.
    pub(super) fn new(salt: u32, number: u32) -> Self {
        Self(crc32c::crc32c_append(crc32c::crc32c(&salt.to_le_bytes()), &number.to_le_bytes()))
    }
}

impl Decoded {
    /// Octets of the body that are in the record itself.
    pub(super) fn inline_len(&self) -> u64 {
        if self.header.kind == Kind::Enqueue { self.header.body_len } else { 0 }
    }

    /// From the first octet of this record to the first of the next.
    pub(super) fn len(&self) -> u64 {
        padded(HEADER as u64 + self.meta_len as u64 + self.inline_len())
    }
}

/// Octets of a record with this much metadata and inline body.
pub(super) const fn padded(n: u64) -> u64 {
    n.next_multiple_of(8)
}

/// Appends a record to `out`.
pub(super) fn encode(
    out: &mut Vec<u8>,
    seed: Seed,
    sequence: u64,
    header: &Header,
    meta: &[u8],
    body: &[u8],
) {
    let mut fixed = Vec::with_capacity(HEADER - 8);
    fixed.extend_from_slice(&[kind_byte(header.kind), META_VERSION, state_byte(header.state), 0]);
    fixed.extend_from_slice(&u32::try_from(meta.len()).unwrap_or(u32::MAX).to_le_bytes());
    fixed.extend_from_slice(&header.body_len.to_le_bytes());
    fixed.extend_from_slice(&header.body_crc.to_le_bytes());
    fixed.extend_from_slice(&crc32c::crc32c(meta).to_le_bytes());
    fixed.extend_from_slice(&header.id.as_u64().to_le_bytes());
    fixed.extend_from_slice(&header.due.as_millis().to_le_bytes());
    fixed.extend_from_slice(&sequence.to_le_bytes());
    let crc = crc32c::crc32c_append(seed.0, &fixed);
    let start = out.len();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&fixed);
    out.extend_from_slice(meta);
    out.extend_from_slice(body);
    out.resize(start + (out.len() - start).next_multiple_of(8), 0);
}

/// Reads the record at the start of `bytes`, all but its body.
///
/// The header has a checksum of its own, so that looking for the next good record after a bad one
/// costs the same at every offset, whatever lengths the octets there pretend.
pub(super) fn decode(bytes: &[u8], seed: Seed) -> Result<(Decoded, &[u8]), Bad> {
    let decoded = decode_header(bytes, seed)?;
    let meta = bytes.get(HEADER..HEADER + decoded.meta_len).ok_or(Bad::Payload(decoded))?;
    let crc = crc32c::crc32c(meta);
    if u32_at(bytes, 28) == Some(crc) { Ok((decoded, meta)) } else { Err(Bad::Payload(decoded)) }
}

/// Reads the record at the start of `bytes`, and checks its body too.
pub(super) fn decode_whole(bytes: &[u8], seed: Seed) -> Result<(Decoded, &[u8], &[u8]), Bad> {
    let (decoded, meta) = decode(bytes, seed)?;
    let start = HEADER + decoded.meta_len;
    let len = usize::try_from(decoded.inline_len()).unwrap_or(usize::MAX);
    let body = bytes.get(start..start.saturating_add(len)).ok_or(Bad::Payload(decoded))?;
    let sound =
        decoded.header.kind != Kind::Enqueue || crc32c::crc32c(body) == decoded.header.body_crc;
    if sound { Ok((decoded, meta, body)) } else { Err(Bad::Payload(decoded)) }
}

/// Reads a header, checked.
pub(super) fn decode_header(bytes: &[u8], seed: Seed) -> Result<Decoded, Bad> {
    let head = bytes.get(..HEADER).ok_or(Bad::Header)?;
    let fixed = head.get(8..).ok_or(Bad::Header)?;
    if !head.starts_with(&MAGIC) || u32_at(head, 4) != Some(crc32c::crc32c_append(seed.0, fixed)) {
        return Err(Bad::Header);
    }
    fields(head).ok_or(Bad::Header)
}

/// The checksum in the header of the record at an offset: with its place it names the record.
pub(super) fn mark(bytes: &[u8], at: usize) -> Option<u32> {
    u32_at(bytes, at.checked_add(4)?)
}

/// The sequence number a header gives itself, unchecked: it tells a torn write from an old one.
pub(super) fn claimed_sequence(bytes: &[u8]) -> Option<u64> {
    if bytes.starts_with(&MAGIC) { u64_at(bytes, 48) } else { None }
}

fn fields(head: &[u8]) -> Option<Decoded> {
    let &[kind, version, state, _] = head.get(8..12)?.first_chunk()?;
    let meta_len = usize::try_from(u32_at(head, 12)?).ok()?;
    let kind = kind_of(kind)?;
    let header = Header {
        kind,
        state: state_of(state)?,
        id: QueueId::from_u64(u64_at(head, 32)?),
        due: Timestamp::from_millis(u64_at(head, 40)?),
        body_len: u64_at(head, 16)?,
        body_crc: u32_at(head, 24)?,
    };
    let fits =
        meta_len <= META_MAX && (kind != Kind::Enqueue || u32::try_from(header.body_len).is_ok());
    (version == META_VERSION && fits).then_some(Decoded {
        header,
        sequence: u64_at(head, 48)?,
        meta_len,
    })
}

impl SegmentHeader {
    /// The header's octets.
    pub(super) fn encode(&self) -> [u8; SEGMENT_HEADER] {
        let mut rest = Vec::with_capacity(SEGMENT_HEADER - 12);
        rest.extend_from_slice(&SEGMENT_VERSION.to_le_bytes());
        rest.extend_from_slice(&self.number.to_le_bytes());
        rest.extend_from_slice(&self.salt.to_le_bytes());
        rest.extend_from_slice(&self.floor.to_le_bytes());
        rest.extend_from_slice(&self.sequence.to_le_bytes());
        rest.extend_from_slice(&self.previous.to_le_bytes());
        rest.extend_from_slice(&self.previous_end.to_le_bytes());
        rest.resize(SEGMENT_HEADER - 12, 0);
        let mut out = [0; SEGMENT_HEADER];
        let parts = SEGMENT_MAGIC.into_iter().chain(crc32c::crc32c(&rest).to_le_bytes());
        for (to, from) in out.iter_mut().zip(parts.chain(rest)) {
            *to = from;
        }
        out
    }

    /// Its checksum.
    pub(super) fn mark(&self) -> u32 {
        u32_at(&self.encode(), 8).unwrap_or(0)
    }

    /// Reads a header; `None` when it is not one, or damaged.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..SEGMENT_HEADER)?;
        let sound = bytes.starts_with(&SEGMENT_MAGIC)
            && u32_at(bytes, 8) == Some(crc32c::crc32c(bytes.get(12..)?))
            && u32_at(bytes, 12) == Some(SEGMENT_VERSION);
        sound.then_some(Self {
            number: u32_at(bytes, 16)?,
            salt: u32_at(bytes, 20)?,
            floor: u64_at(bytes, 24)?,
            sequence: u64_at(bytes, 32)?,
            previous: u32_at(bytes, 40)?,
            previous_end: u32_at(bytes, 44)?,
        })
    }
}

/// The number at an offset.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}

/// The number at an offset.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|b| u64::from_le_bytes(*b))
}

const fn kind_byte(kind: Kind) -> u8 {
    match kind {
        Kind::Enqueue => 1,
        Kind::State => 2,
        Kind::Done => 3,
        Kind::EnqueueBig => 4,
    }
}

const fn kind_of(byte: u8) -> Option<Kind> {
    Some(match byte {
        1 => Kind::Enqueue,
        2 => Kind::State,
        3 => Kind::Done,
        4 => Kind::EnqueueBig,
        _ => return None,
    })
}

/// Active is a matter of memory: a claimed message is stored as what it was before.
pub(super) const fn state_byte(state: QueueState) -> u8 {
    match state {
        QueueState::Sent => 0,
        QueueState::Incoming | QueueState::Active => 1,
        QueueState::Deferred => 2,
        QueueState::Held => 3,
        QueueState::Dead => 4,
    }
}

/// The state that is stored as this octet.
pub(super) const fn state_of(byte: u8) -> Option<QueueState> {
    Some(match byte {
        0 => QueueState::Sent,
        1 => QueueState::Incoming,
        2 => QueueState::Deferred,
        3 => QueueState::Held,
        4 => QueueState::Dead,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(kind: Kind, body: &[u8]) -> Header {
        Header {
            kind,
            state: if kind == Kind::Done { QueueState::Sent } else { QueueState::Deferred },
            id: QueueId::from_u64(77),
            due: Timestamp::from_millis(1_795_252_321_431),
            body_len: body.len() as u64,
            body_crc: crc32c::crc32c(body),
        }
    }

    #[test]
    fn a_record_reads_back_what_was_written_and_ends_where_it_says() {
        let seed = Seed::new(9, 42);
        for kind in [Kind::Enqueue, Kind::State, Kind::Done, Kind::EnqueueBig] {
            for n in 0..17 {
                let (meta, body) = (vec![b'm'; n], vec![b'b'; n * 3]);
                let inline = if kind == Kind::Enqueue { body.as_slice() } else { &[] };
                let mut out = vec![1, 2, 3];
                encode(&mut out, seed, 5, &header(kind, &body), &meta, inline);
                let (decoded, read) = decode(&out[3..], seed).unwrap();
                assert_eq!((decoded.header, decoded.sequence), (header(kind, &body), 5));
                assert_eq!((read, decoded.len()), (meta.as_slice(), (out.len() - 3) as u64));
            }
        }
    }

    #[test]
    fn a_record_of_another_segment_or_spool_does_not_pass() {
        let mut out = Vec::new();
        encode(&mut out, Seed::new(9, 42), 5, &header(Kind::State, b""), b"{}", b"");
        assert!(decode(&out, Seed::new(9, 42)).is_ok());
        assert_eq!(decode(&out, Seed::new(9, 43)), Err(Bad::Header));
        assert_eq!(decode(&out, Seed::new(8, 42)), Err(Bad::Header));
    }

    #[test]
    fn every_flipped_bit_of_header_and_metadata_is_noticed() {
        let mut out = Vec::new();
        encode(&mut out, Seed::new(1, 1), 5, &header(Kind::State, b""), b"{\"a\":1}", b"");
        let meaningful = HEADER + 7;
        for bit in 0..meaningful * 8 {
            out[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&out, Seed::new(1, 1)).is_err(), "bit {bit}");
            out[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_segment_header_reads_back_and_every_flipped_bit_is_noticed() {
        let header = SegmentHeader {
            number: 42,
            salt: 0x9f3a_77c1,
            floor: u64::MAX - 5,
            sequence: 1 << 40,
            previous: 41,
            previous_end: 64 << 20,
        };
        let mut bytes = header.encode();
        assert_eq!(SegmentHeader::decode(&bytes), Some(header));
        for bit in 0..SEGMENT_HEADER * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(&bytes), None, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn no_octets_make_the_decoder_panic(mut bytes: Vec<u8>, with_magic: bool) {
            if with_magic && bytes.len() >= 4 {
                bytes[..4].copy_from_slice(&MAGIC);
            }
            let _ = decode(&bytes, Seed::new(1, 1));
            let _ = SegmentHeader::decode(&bytes);
        }
    }
}
