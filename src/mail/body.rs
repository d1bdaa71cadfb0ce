//! The message as received: header, empty line and body, with the line ends it came with.

use std::fmt;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

/// Octets that can be read at any offset, by many readers at once.
pub trait ReadAt: Send + Sync {
    /// Fills `buf` from `offset`; fails when there are fewer octets than that. May block.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
}

/// The content of one message. Cheap to clone.
#[derive(Clone)]
pub enum Body {
    /// Held in memory.
    Memory(Bytes),
    /// Too large for that.
    Stored {
        /// Where the octets are.
        source: Arc<dyn ReadAt>,
        /// How many there are.
        len: u64,
    },
}

impl Body {
    /// The size in octets.
    pub fn len(&self) -> u64 {
        match self {
            Self::Memory(b) => b.len() as u64,
            Self::Stored { len, .. } => *len,
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The octets from `offset`, at most `max` of them; empty at the end. May block on the disk when
    /// [`is_stored`](Self::is_stored).
    pub fn chunk(&self, offset: u64, max: usize) -> io::Result<Bytes> {
        let rest = self.len().saturating_sub(offset);
        let n = usize::try_from(rest).unwrap_or(usize::MAX).min(max);
        match self {
            Self::Memory(b) => {
                let start = b.len() - usize::try_from(rest).unwrap_or(b.len());
                Ok(b.slice(start..start + n))
            }
            Self::Stored { .. } if n == 0 => Ok(Bytes::new()),
            Self::Stored { source, .. } => {
                let mut buf = vec![0; n];
                source.read_exact_at(&mut buf, offset)?;
                Ok(buf.into())
            }
        }
    }

    /// Whether reading may block on the disk.
    pub const fn is_stored(&self) -> bool {
        matches!(self, Self::Stored { .. })
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({} octets)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Disk(Vec<u8>);
    impl ReadAt for Disk {
        fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
            let start = usize::try_from(offset).unwrap();
            let from = self.0.get(start..start + buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            buf.copy_from_slice(from);
            Ok(())
        }
    }

    #[test]
    fn chunks_put_together_are_the_body_wherever_it_lies() {
        let octets: Vec<u8> = (0..=255).collect();
        let stored = Body::Stored { source: Arc::new(Disk(octets.clone())), len: 256 };
        for body in [Body::Memory(octets.clone().into()), stored] {
            for size in [1, 7, 255, 256, 257] {
                let mut got = Vec::new();
                loop {
                    let chunk = body.chunk(got.len() as u64, size).unwrap();
                    if chunk.is_empty() {
                        break;
                    }
                    got.extend_from_slice(&chunk);
                }
                assert_eq!(got, octets);
            }
            assert!(body.chunk(1000, 10).unwrap().is_empty());
        }
    }
}
