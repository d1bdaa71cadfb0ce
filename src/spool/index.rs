//! What is in the spool, in memory: one small entry for each message, the due order, the claims.
//! Both stores keep one, so they can't differ on who may have a message when.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::rooms::Rooms;
use super::rules;
use super::{Action, Room, SpoolError, Stats};
use crate::clock::Timestamp;
use crate::mail::{QueueId, QueueState};

/// A message, as far as it is held in memory. `P` is where the store has the rest of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Slot<P> {
    /// What is stored: never active, never sent.
    pub(super) state: QueueState,
    /// Where it waits. Only what nobody has can be elsewhere than at the entry.
    pub(super) room: Room,
    pub(super) due: Timestamp,
    /// Octets of the body.
    pub(super) size: u64,
    pub(super) place: P,
}

impl<P> Slot<P> {
    /// Whether it waits for a time.
    const fn waits(&self) -> bool {
        matches!(self.state, QueueState::Incoming | QueueState::Deferred)
    }
}

/// A message's slot as the world sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct View<P> {
    pub(super) id: QueueId,
    /// Active while it is claimed.
    pub(super) state: QueueState,
    /// When it falls due, where it waits for a time.
    pub(super) due: Option<Timestamp>,
    pub(super) place: P,
}

/// Who has a message.
#[derive(Clone, Copy, Debug)]
struct Lease {
    epoch: u64,
    until: Timestamp,
    /// A record is on its way to the disk: nobody may claim the message before it is there.
    writing: bool,
}

/// All messages.
#[derive(Debug)]
pub(super) struct Index<P> {
    slots: BTreeMap<QueueId, Slot<P>>,
    leases: HashMap<QueueId, Lease>,
    /// What waits for a time, claims until their lease lapses included.
    rooms: Rooms,
    stats: Stats,
    epoch: u64,
}

impl<P> Default for Index<P> {
    fn default() -> Self {
        Self {
            slots: BTreeMap::new(),
            leases: HashMap::new(),
            rooms: Rooms::default(),
            stats: Stats::default(),
            epoch: 0,
        }
    }
}

impl<P: Copy> Index<P> {
    /// How much is in it.
    pub(super) const fn stats(&self) -> Stats {
        self.stats
    }

    /// When the next message of a room falls due; at the entry, or the next lease lapses.
    pub(super) fn next_due(&self, room: Room) -> Option<Timestamp> {
        self.rooms.next_due(room)
    }

    /// The slot of a message.
    pub(super) fn slot(&self, id: QueueId) -> Option<&Slot<P>> {
        self.slots.get(&id)
    }

    /// All slots, by id.
    pub(super) fn slots(&self) -> impl Iterator<Item = (QueueId, &Slot<P>)> {
        self.slots.iter().map(|(id, slot)| (*id, slot))
    }

    /// Up to `limit` slots above `after`, by id.
    pub(super) fn slots_after(
        &self,
        after: Option<QueueId>,
        limit: usize,
    ) -> Vec<(QueueId, Slot<P>)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let range = (after.map_or(Unbounded, Excluded), Unbounded);
        self.slots.range(range).take(limit).map(|(id, slot)| (*id, *slot)).collect()
    }

    /// An index of these slots, which are in the order of their ids. Much quicker, and half as
    /// large, as when they are put in one after another.
    pub(super) fn of(slots: Vec<(QueueId, Slot<P>)>) -> Self {
        let mut index = Self::default();
        for (_, slot) in &slots {
            *counter(&mut index.stats, slot.state) += 1;
            index.stats.bytes += slot.size;
        }
        let waiting = slots.iter().filter(|(_, slot)| slot.waits());
        index.rooms = Rooms::at_entry(waiting.map(|(id, slot)| (slot.state, slot.due, *id)));
        index.slots = slots.into_iter().collect();
        index
    }

    /// A message as the world sees it.
    pub(super) fn view(&self, id: QueueId) -> Option<View<P>> {
        let slot = self.slots.get(&id)?;
        let state = self.state(id, slot);
        let due = matches!(state, QueueState::Incoming | QueueState::Deferred).then_some(slot.due);
        Some(View { id, state, due, place: slot.place })
    }

    /// Up to `limit` messages above `after`.
    pub(super) fn page(&self, after: Option<QueueId>, limit: usize) -> Vec<View<P>> {
        use std::ops::Bound::{Excluded, Unbounded};
        let range = (after.map_or(Unbounded, Excluded), Unbounded);
        self.slots.range(range).take(limit).filter_map(|(id, _)| self.view(*id)).collect()
    }

    /// Puts a message in, or in another state; what was claimed of it no longer is.
    pub(super) fn put(&mut self, id: QueueId, slot: Slot<P>) -> Option<P> {
        let old = self.remove(id);
        self.slots.insert(id, slot);
        self.enter(id);
        old
    }

    /// The rest of a message is somewhere else now; nothing else changed.
    pub(super) fn relocate(&mut self, id: QueueId, place: P) {
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.place = place;
        }
    }

    /// Takes a message out.
    pub(super) fn remove(&mut self, id: QueueId) -> Option<P> {
        self.leave(id);
        self.leases.remove(&id);
        self.slots.remove(&id).map(|s| s.place)
    }

    /// Claims up to `limit` messages of a room that are due, new and deferred ones in turns.
    pub(super) fn claim(
        &mut self,
        room: Room,
        now: Timestamp,
        limit: usize,
        lease: Duration,
    ) -> Vec<(QueueId, u64)> {
        let until = now.after(lease);
        let due = self.rooms.due(room, now, limit);
        due.into_iter().map(|id| (id, self.lease(id, until, false))).collect()
    }

    /// Everything goes back to the entry; whether anything was elsewhere.
    pub(super) fn regroup(&mut self) -> bool {
        let any = self.rooms.regroup();
        if any {
            self.slots.values_mut().for_each(|slot| slot.room = Room::ENTRY);
        }
        any
    }

    /// Whether a claim is the current one, and nothing of it is on its way to the disk.
    pub(super) fn check(&self, id: QueueId, epoch: u64) -> Result<(), SpoolError> {
        match self.leases.get(&id).filter(|lease| lease.epoch == epoch) {
            Some(lease) if lease.writing => Err(SpoolError::InDelivery(id)),
            Some(_) => Ok(()),
            None => Err(SpoolError::Stale(id)),
        }
    }

    /// Begins to write down what a claim says.
    pub(super) fn begin(&mut self, id: QueueId, epoch: u64) -> Result<(), SpoolError> {
        self.check(id, epoch)?;
        self.set_writing(id, true);
        Ok(())
    }

    /// Ends a claim of which nothing is to be written down.
    pub(super) fn release(
        &mut self,
        id: QueueId,
        epoch: u64,
        room: Room,
        due: Timestamp,
    ) -> Result<(), SpoolError> {
        self.check(id, epoch)?;
        self.change(id, |leases, slot| {
            leases.remove(&id);
            (slot.room, slot.due) = (room, due);
        });
        Ok(())
    }

    /// Begins an operator's action: nobody may claim the message until it is written down.
    pub(super) fn act(
        &mut self,
        id: QueueId,
        action: Action,
        now: Timestamp,
    ) -> Result<(Slot<P>, u64), SpoolError> {
        let slot = *self.slots.get(&id).ok_or(SpoolError::NotFound(id))?;
        let lease = self.leases.get(&id);
        if lease.is_some_and(|l| l.writing || l.until > now) {
            return Err(SpoolError::InDelivery(id));
        }
        rules::check(id, slot.state, action)?;
        Ok((slot, self.lease(id, now, true)))
    }

    /// What was begun with [`begin`](Self::begin) or [`act`](Self::act) was a note and is written,
    /// or could not be written: the claim goes on, and the message is due again when its lease ends.
    pub(super) fn resume(&mut self, id: QueueId) {
        self.set_writing(id, false);
    }

    /// Gives a message to someone, under a new epoch. It leaves its room for good: what it waited
    /// for there may be another thing when it comes back.
    fn lease(&mut self, id: QueueId, until: Timestamp, writing: bool) -> u64 {
        self.epoch += 1;
        let lease = Lease { epoch: self.epoch, until, writing };
        self.change(id, |leases, slot| {
            slot.room = Room::ENTRY;
            leases.insert(id, lease);
        });
        self.epoch
    }

    fn set_writing(&mut self, id: QueueId, writing: bool) {
        self.change(id, |leases, _| {
            if let Some(lease) = leases.get_mut(&id) {
                lease.writing = writing;
            }
        });
    }

    /// Gives up what was begun with [`act`](Self::act), its message as it was; unless someone has
    /// claimed it since.
    pub(super) fn unclaim(&mut self, id: QueueId, epoch: u64) {
        if self.leases.get(&id).is_some_and(|lease| lease.epoch == epoch) {
            self.change(id, |leases, _| leases.remove(&id));
        }
    }

    /// The slot of a message whose stored record can't be read: kept back, for the operator.
    pub(super) fn hold(&mut self, id: QueueId) {
        self.change(id, |leases, slot| {
            leases.remove(&id);
            slot.state = QueueState::Held;
        });
    }

    fn change<T>(
        &mut self,
        id: QueueId,
        f: impl FnOnce(&mut HashMap<QueueId, Lease>, &mut Slot<P>) -> T,
    ) {
        self.leave(id);
        if let Some(slot) = self.slots.get_mut(&id) {
            f(&mut self.leases, slot);
        }
        self.enter(id);
    }

    fn state(&self, id: QueueId, slot: &Slot<P>) -> QueueState {
        if self.leases.contains_key(&id) { QueueState::Active } else { slot.state }
    }

    /// When a message is to be looked at again.
    fn turn(&self, id: QueueId, slot: &Slot<P>) -> Option<Timestamp> {
        let time = match self.leases.get(&id) {
            Some(lease) => (!lease.writing).then_some(lease.until),
            None => Some(slot.due),
        };
        time.filter(|_| slot.waits())
    }

    /// Counts a message where it now stands.
    fn enter(&mut self, id: QueueId) {
        let Some(slot) = self.slots.get(&id).copied() else { return };
        let state = self.state(id, &slot);
        *counter(&mut self.stats, state) += 1;
        self.stats.bytes += slot.size;
        if let Some(turn) = self.turn(id, &slot) {
            self.rooms.enter(slot.room, slot.state, turn, id);
        }
    }

    /// Takes a message out of all counts, before it changes.
    fn leave(&mut self, id: QueueId) {
        let Some(slot) = self.slots.get(&id).copied() else { return };
        let state = self.state(id, &slot);
        *counter(&mut self.stats, state) -= 1;
        self.stats.bytes -= slot.size;
        if let Some(turn) = self.turn(id, &slot) {
            self.rooms.leave(slot.room, slot.state, turn, id);
        }
    }
}

const fn counter(stats: &mut Stats, state: QueueState) -> &mut u64 {
    match state {
        QueueState::Incoming => &mut stats.incoming,
        QueueState::Active | QueueState::Sent => &mut stats.active,
        QueueState::Deferred => &mut stats.deferred,
        QueueState::Held => &mut stats.held,
        QueueState::Dead => &mut stats.dead,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(5);
    const LEASE: Duration = Duration::from_secs(1);

    fn index_of(messages: u64) -> Index<()> {
        let (state, room) = (QueueState::Incoming, Room::ENTRY);
        let slot = Slot { state, room, due: NOW, size: 1, place: () };
        Index::of((1..=messages).map(|n| (QueueId::from_u64(n), slot)).collect())
    }

    #[test]
    fn an_action_that_failed_takes_no_claim_away_that_came_after_it() {
        let (id, mut index) = (QueueId::from_u64(1), index_of(1));
        let (_, epoch) = index.act(id, Action::Retry, NOW).unwrap();
        // The writer tells the index first, and whoever waits for it afterwards.
        index.resume(id);
        let claimed = index.claim(Room::ENTRY, NOW, 1, LEASE);
        index.unclaim(id, epoch);
        assert_eq!(index.stats().active, 1);
        assert!(index.claim(Room::ENTRY, NOW, 1, LEASE).is_empty());
        assert!(index.begin(id, claimed[0].1).is_ok());
    }

    #[test]
    fn what_is_regrouped_while_an_action_is_written_is_at_the_entry_when_that_failed() {
        let (id, mut index) = (QueueId::from_u64(1), index_of(1));
        let (_, epoch) = index.claim(Room::ENTRY, NOW, 1, LEASE)[0];
        index.release(id, epoch, Room(7), NOW).unwrap();
        let (_, epoch) = index.act(id, Action::Retry, NOW).unwrap();
        index.regroup();
        index.unclaim(id, epoch);
        assert_eq!((index.next_due(Room(7)), index.next_due(Room::ENTRY)), (None, Some(NOW)));
    }

    #[test]
    fn while_a_note_is_on_its_way_the_claim_can_neither_lapse_nor_end() {
        let (id, mut index) = (QueueId::from_u64(1), index_of(1));
        let (_, epoch) = index.claim(Room::ENTRY, NOW, 1, LEASE)[0];
        index.begin(id, epoch).unwrap();
        assert_eq!(index.next_due(Room::ENTRY), None);
        let refused = index.release(id, epoch, Room::ENTRY, NOW);
        assert!(matches!(refused, Err(SpoolError::InDelivery(_))), "{refused:?}");
        assert!(matches!(index.act(id, Action::Delete, NOW), Err(SpoolError::InDelivery(_))));
        index.resume(id);
        assert_eq!(index.next_due(Room::ENTRY), Some(NOW.after(LEASE)));
        index.release(id, epoch, Room::ENTRY, NOW).unwrap();
    }

    /// Prints how long a million parked messages take: `--run-ignored all --no-capture`.
    #[test]
    #[ignore = "a measurement"]
    #[expect(clippy::disallowed_methods, reason = "it reads a clock")]
    fn a_million_messages_are_parked_and_regrouped() {
        let mut index = index_of(1_000_000);
        let begun = std::time::Instant::now();
        for (id, epoch) in index.claim(Room::ENTRY, NOW, usize::MAX, LEASE) {
            index.release(id, epoch, Room(1), NOW).unwrap();
        }
        eprintln!("parked after {:?}", begun.elapsed());
        let begun = std::time::Instant::now();
        assert!(index.regroup());
        eprintln!("regrouped in {:?}", begun.elapsed());
        assert_eq!((index.next_due(Room(1)), index.next_due(Room::ENTRY)), (None, Some(NOW)));
    }
}
