//! The messages that were finished lately, for the operator who asks a minute too late.

use std::collections::{HashMap, VecDeque};

use super::Entry;
use crate::mail::{Message, QueueId, QueueState};

/// How many are remembered.
pub(super) const KEPT: usize = 1000;

/// The last [`KEPT`] finished messages.
#[derive(Debug, Default)]
pub(super) struct Recent {
    order: VecDeque<QueueId>,
    messages: HashMap<QueueId, Message>,
}

impl Recent {
    /// Remembers a finished message, and forgets the oldest beyond [`KEPT`].
    pub(super) fn push(&mut self, message: Message) {
        if self.order.len() >= KEPT
            && let Some(oldest) = self.order.pop_front()
        {
            self.messages.remove(&oldest);
        }
        self.order.push_back(message.id);
        self.messages.insert(message.id, message);
    }

    /// A finished message that is still remembered.
    pub(super) fn entry(&self, id: QueueId) -> Option<Entry> {
        let message = self.messages.get(&id)?.clone();
        Some(Entry { message, state: QueueState::Sent, due: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::conformance::message;

    #[test]
    fn the_last_thousand_are_remembered_and_no_more() {
        let mut recent = Recent::default();
        for n in 0..=KEPT as u64 {
            recent.push(message(QueueId::from_u64(n), 0));
        }
        assert_eq!(recent.entry(QueueId::from_u64(0)), None);
        for n in [1, KEPT as u64] {
            let entry = recent.entry(QueueId::from_u64(n)).unwrap();
            assert_eq!((entry.message.id.as_u64(), entry.state), (n, QueueState::Sent));
        }
        assert_eq!((recent.order.len(), recent.messages.len()), (KEPT, KEPT));
    }
}
