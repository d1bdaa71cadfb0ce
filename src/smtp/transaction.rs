//! A mail transaction: what MAIL and RCPT said, then the content.

use bytes::Bytes;

use super::command::{Mail, Rcpt};
use super::data::{DataError, Decoder, Limits};
use super::session::{Settings, Step};
use crate::mail::{Envelope, ForwardPath, Mailbox, Recipient};

/// From MAIL to DATA or BDAT. Its content cannot be asked for: it is not there yet.
#[derive(Debug)]
pub(super) struct Transaction {
    envelope: Envelope,
}

impl Transaction {
    pub(super) fn new(mail: Mail) -> Self {
        let Mail { reverse_path, size: _, body, smtputf8, ret, envid } = mail;
        let recipients = Vec::new();
        Self { envelope: Envelope { reverse_path, recipients, body, smtputf8, ret, envid } }
    }

    pub(super) fn recipients(&self) -> &[Recipient] {
        &self.envelope.recipients
    }

    /// Adds a recipient; false if the address would need the SMTPUTF8 that MAIL did not give.
    pub(super) fn add(&mut self, rcpt: Rcpt, postmaster: &Mailbox) -> bool {
        let Rcpt { path, notify, orcpt } = rcpt;
        let path = path.unwrap_or_else(|| ForwardPath(postmaster.clone()));
        let ascii = path.0.is_ascii() && orcpt.as_deref().is_none_or(str::is_ascii);
        let fits = ascii || self.envelope.smtputf8;
        if fits {
            self.envelope.recipients.push(Recipient { path, notify, orcpt });
        }
        fits
    }

    /// The message follows DATA.
    pub(super) fn data(self, settings: &Settings) -> Content {
        Content { envelope: self.envelope, decoder: Decoder::data(limits(settings)), void: false }
    }

    /// The message follows in chunks.
    pub(super) fn chunks(self, settings: &Settings) -> Content {
        Content { envelope: self.envelope, decoder: Decoder::chunks(limits(settings)), void: false }
    }
}

fn limits(settings: &Settings) -> Limits {
    Limits {
        size: settings.max_message_size,
        line: settings.max_text_line,
        bare_newline: settings.bare_newline,
    }
}

/// A transaction whose message is being read.
#[derive(Debug)]
pub(super) struct Content {
    envelope: Envelope,
    decoder: Decoder,
    /// Whether [`Step::Discard`] was given.
    void: bool,
}

/// What came of some octets.
#[derive(Debug)]
pub(super) struct Piece {
    /// How many of them are used up.
    pub(super) consumed: usize,
    /// Whether the message is complete.
    pub(super) ended: bool,
    /// What the driver has to know about them.
    pub(super) step: Option<Step>,
}

impl Content {
    /// Reads octets after DATA.
    pub(super) fn read(&mut self, octets: &[u8]) -> Piece {
        let mut text = self.room_for(octets);
        let decoded = self.decoder.decode(octets, &mut text);
        Piece { consumed: decoded.consumed, ended: decoded.ended, step: self.step(text) }
    }

    /// Reads octets of a chunk; `last` if there are no more.
    pub(super) fn read_chunk(&mut self, octets: &[u8], last: bool) -> Piece {
        let mut text = self.room_for(octets);
        let decoded = self.decoder.decode(octets, &mut text);
        if last {
            self.decoder.finish(&mut text);
        }
        Piece { consumed: decoded.consumed, ended: last, step: self.step(text) }
    }

    pub(super) fn recipients(&self) -> &[Recipient] {
        &self.envelope.recipients
    }

    /// Why the message cannot be taken.
    pub(super) const fn error(&self) -> Option<DataError> {
        self.decoder.error()
    }

    /// The message is complete.
    pub(super) fn into_envelope(self) -> Envelope {
        self.envelope
    }

    /// Most text comes out as long as it went in.
    fn room_for(&self, octets: &[u8]) -> Vec<u8> {
        Vec::with_capacity(if self.error().is_some() { 0 } else { octets.len() })
    }

    /// The text, or once that all of it is void.
    fn step(&mut self, text: Vec<u8>) -> Option<Step> {
        if self.error().is_some() {
            return (!std::mem::replace(&mut self.void, true)).then_some(Step::Discard);
        }
        (!text.is_empty()).then(|| Step::Body(Bytes::from(text)))
    }
}

/// Where we are in a BDAT chunk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunk {
    /// Octets still to come.
    pub(super) left: u64,
    /// Octets in all.
    pub(super) size: u64,
    /// Whether it is the last of its message.
    pub(super) last: bool,
}

impl Chunk {
    /// The part of `octets` that belongs to it.
    pub(super) fn within(self, octets: &[u8]) -> &[u8] {
        let n = usize::try_from(self.left).unwrap_or(usize::MAX).min(octets.len());
        octets.get(..n).unwrap_or_default()
    }
}
