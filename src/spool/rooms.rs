//! What waits for a time, by the rooms it waits in: new and deferred messages, in turns.

use std::collections::{BTreeMap, BTreeSet};

use super::Room;
use crate::clock::Timestamp;
use crate::mail::{QueueId, QueueState};

/// The rooms in which something waits.
#[derive(Debug, Default)]
pub(super) struct Rooms(BTreeMap<Room, Waiting>);

/// What waits in one room.
#[derive(Debug, Default)]
struct Waiting {
    fresh: Order,
    deferred: Order,
    /// Whose turn it is when both have something due.
    deferred_next: bool,
}

/// Messages by the time at which they are to be looked at again.
type Order = BTreeSet<(Timestamp, QueueId)>;

impl Rooms {
    /// Everything at the entry. Much quicker, and half as large, as one after another.
    pub(super) fn at_entry(
        waiting: impl Iterator<Item = (QueueState, Timestamp, QueueId)>,
    ) -> Self {
        let (mut fresh, mut deferred) = (Vec::new(), Vec::new());
        for (state, due, id) in waiting {
            let order = if state == QueueState::Deferred { &mut deferred } else { &mut fresh };
            order.push((due, id));
        }
        let (fresh, deferred) = (fresh.into_iter().collect(), deferred.into_iter().collect());
        Self::from(Waiting { fresh, deferred, deferred_next: false })
    }

    /// When something in a room is next to be looked at.
    pub(super) fn next_due(&self, room: Room) -> Option<Timestamp> {
        let Waiting { fresh, deferred, .. } = self.0.get(&room)?;
        fresh.first().into_iter().chain(deferred.first()).map(|(due, _)| *due).min()
    }

    /// Up to `limit` messages of a room that are due: a new one, a deferred one, in turns for as
    /// long as there are both, so that neither kind waits for the other to be gone.
    pub(super) fn due(&mut self, room: Room, now: Timestamp, limit: usize) -> Vec<QueueId> {
        let Some(Waiting { fresh, deferred, deferred_next }) = self.0.get_mut(&room) else {
            return Vec::new();
        };
        let (mut fresh, mut deferred) = (due(fresh, now), due(deferred, now));
        let turns = std::iter::from_fn(|| {
            let (id, was_deferred) = if *deferred_next {
                deferred.next().map(|id| (id, true)).or_else(|| Some((fresh.next()?, false)))?
            } else {
                fresh.next().map(|id| (id, false)).or_else(|| Some((deferred.next()?, true)))?
            };
            *deferred_next = !was_deferred;
            Some(id)
        });
        turns.take(limit).collect()
    }

    /// Has a message, stored in this state, wait in a room.
    pub(super) fn enter(&mut self, room: Room, state: QueueState, due: Timestamp, id: QueueId) {
        self.0.entry(room).or_default().order(state).insert((due, id));
    }

    /// Takes out what [`enter`](Self::enter) put in. A room that is empty is gone.
    pub(super) fn leave(&mut self, room: Room, state: QueueState, due: Timestamp, id: QueueId) {
        let Some(waiting) = self.0.get_mut(&room) else { return };
        waiting.order(state).remove(&(due, id));
        if waiting.fresh.is_empty() && waiting.deferred.is_empty() {
            self.0.remove(&room);
        }
    }

    /// Puts everything back to the entry; whether anything was elsewhere.
    pub(super) fn regroup(&mut self) -> bool {
        if self.0.keys().all(|room| *room == Room::ENTRY) {
            return false;
        }
        let deferred_next = self.0.get(&Room::ENTRY).is_some_and(|entry| entry.deferred_next);
        let rooms = std::mem::take(&mut self.0).into_values();
        let (fresh, deferred): (Vec<_>, Vec<_>) = rooms.map(|r| (r.fresh, r.deferred)).unzip();
        // Each is in order, so collecting them is a merge.
        let (fresh, deferred) =
            (fresh.into_iter().flatten().collect(), deferred.into_iter().flatten().collect());
        *self = Self::from(Waiting { fresh, deferred, deferred_next });
        true
    }
}

impl From<Waiting> for Rooms {
    /// A house of one room, the entry.
    fn from(entry: Waiting) -> Self {
        let is_empty = entry.fresh.is_empty() && entry.deferred.is_empty();
        Self((!is_empty).then_some((Room::ENTRY, entry)).into_iter().collect())
    }
}

impl Waiting {
    const fn order(&mut self, state: QueueState) -> &mut Order {
        match state {
            QueueState::Deferred => &mut self.deferred,
            _ => &mut self.fresh,
        }
    }
}

/// What is due at `now`, the oldest first.
fn due(order: &Order, now: Timestamp) -> impl Iterator<Item = QueueId> {
    order.iter().take_while(move |(due, _)| *due <= now).map(|(_, id)| *id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(5);

    fn id(n: u64) -> QueueId {
        QueueId::from_u64(n)
    }

    #[test]
    fn an_empty_room_is_gone() {
        let mut rooms = Rooms::default();
        for state in [QueueState::Incoming, QueueState::Deferred] {
            rooms.enter(Room(3), state, NOW, id(1));
            assert_eq!((rooms.0.len(), rooms.next_due(Room(3))), (1, Some(NOW)));
            rooms.leave(Room(3), state, NOW, id(1));
            assert!(rooms.0.is_empty());
        }
        assert!(Rooms::at_entry(std::iter::empty()).0.is_empty());
    }

    #[test]
    fn regrouping_merges_all_rooms_in_order_and_keeps_the_turn_of_the_entry() {
        let mut rooms = Rooms::default();
        assert!(!rooms.regroup());
        let states = [QueueState::Incoming, QueueState::Deferred].into_iter().cycle();
        for ((n, state), room) in (0..9).zip(states).zip((0..3).cycle()) {
            rooms.enter(Room(room), state, Timestamp::from_millis(9 - n), id(n));
        }
        // A new one is taken, so it is the turn of the deferred.
        assert_eq!(rooms.due(Room::ENTRY, Timestamp::from_millis(9), 1), [id(6)]);
        assert!(rooms.regroup() && !rooms.regroup());
        assert_eq!(rooms.0.len(), 1);
        let all = rooms.due(Room::ENTRY, Timestamp::from_millis(9), 99);
        assert_eq!(all, [7, 8, 5, 6, 3, 4, 1, 2, 0].map(id));
    }
}
