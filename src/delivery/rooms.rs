//! What messages wait for, and in which room of the spool each kind waits.

use std::collections::HashMap;

use crate::policy::routing::Priority;
use crate::spool::Room;

/// What a message waits for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Wants {
    /// Who goes first.
    pub(super) priority: Priority,
    /// The ways its recipients may take, each a list of lanes, the preferred one first. Sorted, no
    /// way twice. Any of them will do.
    pub(super) ways: Vec<Vec<usize>>,
}

/// The rooms that are in use.
#[derive(Debug, Default)]
pub(super) struct Rooms {
    /// The one that was not served for the longest time first.
    wants: Vec<Wants>,
    by_wants: HashMap<Wants, Room>,
}

impl Rooms {
    /// The room of those who want this. `None` when there are more kinds than rooms: no
    /// configuration that a human wrote has so many.
    pub(super) fn of(&mut self, wants: &Wants) -> Option<Room> {
        if let Some(room) = self.by_wants.get(wants) {
            return Some(*room);
        }
        let room = Room(u16::try_from(self.wants.len() + 1).ok()?);
        self.wants.push(wants.clone());
        self.by_wants.insert(wants.clone(), room);
        Some(room)
    }

    /// Those who want this were served: others of their priority go before them the next time.
    pub(super) fn had_its_turn(&mut self, wants: &Wants) {
        if let Some(at) = self.wants.iter().position(|known| known == wants) {
            let served = self.wants.remove(at);
            self.wants.push(served);
        }
    }

    /// All rooms and what is wanted there: the higher priority first, and within it the room that
    /// was not served for the longest time.
    pub(super) fn in_order(&self) -> Vec<(Room, Wants)> {
        let mut rooms: Vec<_> =
            self.wants.iter().map(|wants| (self.by_wants.get(wants), wants)).collect();
        rooms.sort_by_key(|(_, wants)| wants.priority);
        rooms.into_iter().filter_map(|(room, wants)| Some((*room?, wants.clone()))).collect()
    }

    /// Forgets all: the lanes are others now.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wants(priority: Priority, way: usize) -> Wants {
        Wants { priority, ways: vec![vec![way]] }
    }

    #[test]
    fn who_wants_the_same_waits_in_the_same_room_and_never_at_the_entry() {
        let mut rooms = Rooms::default();
        let a = rooms.of(&wants(Priority::Normal, 0)).unwrap();
        let b = rooms.of(&wants(Priority::Normal, 1)).unwrap();
        assert_eq!(rooms.of(&wants(Priority::Normal, 0)), Some(a));
        assert!(a != b && a != Room::ENTRY && b != Room::ENTRY);
        rooms.clear();
        assert!(rooms.in_order().is_empty());
    }

    #[test]
    fn priority_goes_first_and_equals_take_turns() {
        let mut rooms = Rooms::default();
        let low = rooms.of(&wants(Priority::Low, 0)).unwrap();
        let a = rooms.of(&wants(Priority::Normal, 0)).unwrap();
        let b = rooms.of(&wants(Priority::Normal, 1)).unwrap();
        let high = rooms.of(&wants(Priority::High, 0)).unwrap();
        let order = |rooms: &Rooms| -> Vec<Room> {
            rooms.in_order().into_iter().map(|(room, _)| room).collect()
        };
        assert_eq!(order(&rooms), [high, a, b, low]);
        for (served, first, second) in [(0, b, a), (0, b, a), (1, a, b), (0, b, a)] {
            rooms.had_its_turn(&wants(Priority::Normal, served));
            assert_eq!(order(&rooms), [high, first, second, low]);
        }
    }

    #[test]
    fn there_are_as_many_rooms_as_have_a_number() {
        let mut rooms = Rooms::default();
        for way in 0..usize::from(u16::MAX) {
            assert!(rooms.of(&wants(Priority::Normal, way)).is_some());
        }
        assert_eq!(rooms.of(&wants(Priority::Normal, usize::MAX)), None);
        assert!(rooms.of(&wants(Priority::Normal, 7)).is_some(), "those that are there stay");
    }
}
