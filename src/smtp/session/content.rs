//! The octets of a message, after DATA or in chunks.

use super::{Progress, Session, State};
use crate::smtp::replies;
use crate::smtp::transaction::{Chunk, Content};

impl Session {
    pub(super) fn read_data(&mut self, mut content: Box<Content>) -> Progress {
        if self.lines.octets().is_empty() {
            self.state = State::Data(content);
            return Progress::Starved;
        }
        let piece = content.read(self.lines.octets());
        self.lines.consume(piece.consumed);
        if piece.ended {
            self.progress = true;
            self.end_of_message(*content);
        } else {
            self.state = State::Data(content);
        }
        piece.step.map_or(Progress::Made, Progress::Step)
    }

    pub(super) fn read_chunk(&mut self, mut content: Box<Content>, mut chunk: Chunk) -> Progress {
        let there = chunk.within(self.lines.octets());
        if there.is_empty() && chunk.left > 0 {
            self.state = State::Chunk(content, chunk);
            return Progress::Starved;
        }
        let done = chunk.left == there.len() as u64;
        let piece = content.read_chunk(there, done && chunk.last);
        chunk.left -= piece.consumed as u64;
        self.lines.consume(piece.consumed);
        if !done {
            self.state = State::Chunk(content, chunk);
        } else if let Some(error) = content.error() {
            self.progress = true;
            self.state = State::Idle;
            self.say(error.reply());
        } else if chunk.last {
            self.progress = true;
            self.end_of_message(*content);
        } else {
            self.progress = true;
            self.state = State::BetweenChunks(content);
            self.say(&format!("{}: {} octets", replies::OK, chunk.size));
        }
        piece.step.map_or(Progress::Made, Progress::Step)
    }

    /// The transaction is over, and nothing of it stays for the next, whatever came of it.
    fn end_of_message(&mut self, content: Content) {
        match content.error() {
            None => self.state = State::Complete(Box::new(content.into_envelope())),
            Some(error) => {
                self.state = State::Idle;
                self.say(error.reply());
            }
        }
    }

    pub(super) fn skip_chunk(&mut self, left: u64, reply: &'static str) -> Progress {
        let there = self.lines.octets().len();
        let skipped = usize::try_from(left).unwrap_or(usize::MAX).min(there);
        self.lines.consume(skipped);
        let left = left - skipped as u64;
        if left == 0 {
            self.state = State::Idle;
            self.progress = true;
            return self.fail(reply);
        }
        self.state = State::UnwantedChunk { left, reply };
        Progress::Starved
    }
}
