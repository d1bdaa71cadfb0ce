//! PLACEHOLDER for `crate::smtp::stuff`, to be deleted when that is merged: same API, slower.

/// See `crate::smtp::stuff::Stuffer`.
#[derive(Debug, Default)]
pub(super) struct Stuffer {
    in_line: bool,
    after_cr: bool,
}

/// See `crate::smtp::stuff::BareNewline`.
#[derive(Debug)]
pub(super) struct BareNewline;

impl Stuffer {
    pub(super) fn push(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Result<(), BareNewline> {
        for &octet in chunk {
            if self.after_cr != (octet == b'\n') {
                return Err(BareNewline);
            }
            if !self.in_line && octet == b'.' {
                out.push(b'.');
            }
            self.after_cr = octet == b'\r';
            self.in_line = octet != b'\n';
            if !self.after_cr {
                if octet == b'\n' {
                    out.push(b'\r');
                }
                out.push(octet);
            }
        }
        Ok(())
    }

    pub(super) fn finish(self, out: &mut Vec<u8>) -> Result<(), BareNewline> {
        if self.after_cr {
            return Err(BareNewline);
        }
        out.extend_from_slice(if self.in_line { b"\r\n.\r\n" } else { b".\r\n" });
        Ok(())
    }
}
