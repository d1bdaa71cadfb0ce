//! Random lives against a map that can't be wrong.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::mail::RecipientStatus;
use crate::spool::conformance::failure;
use crate::spool::{Action, Claim, Entry};

#[derive(Clone, Debug)]
enum Step {
    Put(usize),
    Settle(Settlement),
    Note,
    Regroup,
    Act(prop::sample::Index, Action),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let settlement = prop_oneof![
        3 => Just(Settlement::Finished),
        2 => Just(Settlement::Deferred(NOON)),
        1 => Just(Settlement::Dead),
        1 => Just(Settlement::Held),
        2 => (0..3_u16).prop_map(|room| Settlement::Released(Room(room), NOON)),
    ];
    let action = prop::sample::select(vec![
        Action::Retry,
        Action::Hold,
        Action::Release,
        Action::Requeue,
        Action::Confirm,
        Action::Resend,
        Action::Delete,
    ]);
    prop_oneof![
        4 => prop::sample::select(vec![0, 10, 3000, 20_000, 600_000]).prop_map(Step::Put),
        4 => settlement.prop_map(Step::Settle),
        2 => Just(Step::Note),
        1 => Just(Step::Regroup),
        3 => (any::<prop::sample::Index>(), action).prop_map(|(i, a)| Step::Act(i, a)),
        1 => Just(Step::Reopen),
    ]
}

/// What the map says of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Modelled {
    state: QueueState,
    attempts: u32,
    unconfirmed: bool,
    size: u64,
}

impl Modelled {
    fn of(entry: &Entry) -> Self {
        let Entry { state, message, .. } = entry;
        let unconfirmed = message.status[0].unconfirmed().is_some();
        Self { state: *state, attempts: message.attempts, unconfirmed, size: message.size }
    }
}

/// A message of whichever room has one.
async fn claim(log: &SegmentLog) -> Option<Claim> {
    for room in 0..3 {
        let claims = log.claim(Room(room), NOON, 1, Duration::from_mins(1)).await.unwrap();
        if let Some(claim) = claims.into_iter().next() {
            return Some(claim);
        }
    }
    None
}

/// Settles one claim in both.
async fn settle(log: &SegmentLog, model: &mut BTreeMap<QueueId, Modelled>, settlement: Settlement) {
    let Some(mut claim) = claim(log).await else {
        let waits = |m: &Modelled| matches!(m.state, QueueState::Incoming | QueueState::Deferred);
        assert!(!model.values().any(waits));
        return;
    };
    let id = claim.message.id;
    claim.message.attempts += 1;
    let body = log.body(&claim).await.unwrap();
    assert_eq!(body.len(), model[&id].size);
    log.settle(&claim, settlement).await.unwrap();
    let to = match settlement {
        Settlement::Finished => {
            model.remove(&id);
            return;
        }
        Settlement::Deferred(_) => QueueState::Deferred,
        Settlement::Dead => QueueState::Dead,
        Settlement::Held => QueueState::Held,
        Settlement::Released(..) => return,
    };
    let modelled = model.get_mut(&id).unwrap();
    modelled.state = to;
    modelled.attempts += 1;
}

/// Writes a note in both, and lets the process die before its claim is settled.
async fn note(log: &SegmentLog, model: &mut BTreeMap<QueueId, Modelled>) {
    let Some(mut claim) = claim(log).await else { return };
    let upstream = "core".into();
    claim.message.status[0] = RecipientStatus::Unconfirmed { upstream, failure: failure() };
    for _ in 0..2 {
        claim.message.attempts += 1;
        log.note(&claim).await.unwrap();
    }
    let modelled = model.get_mut(&claim.message.id).unwrap();
    modelled.unconfirmed = true;
    modelled.attempts += 2;
}

/// Does an operator's action in both.
async fn act(
    log: &SegmentLog,
    model: &mut BTreeMap<QueueId, Modelled>,
    id: QueueId,
    action: Action,
) {
    use QueueState::{Dead, Deferred, Held, Incoming};
    let done = log.act(id, action, NOON).await;
    let modelled = model.get_mut(&id).unwrap();
    let to = match (action, modelled.state) {
        (Action::Confirm | Action::Resend, _) if !modelled.unconfirmed => None,
        (Action::Delete | Action::Confirm, _) => {
            model.remove(&id);
            assert!(done.is_ok());
            return;
        }
        (Action::Retry, s @ (Incoming | Deferred)) => Some(s),
        (Action::Hold, Incoming | Deferred) => Some(Held),
        (Action::Release, Held) => Some(if modelled.attempts == 0 { Incoming } else { Deferred }),
        (Action::Resend, _) | (Action::Requeue, Dead) => Some(Deferred),
        _ => None,
    };
    assert_eq!(done.is_ok(), to.is_some(), "{action:?}");
    modelled.state = to.unwrap_or(modelled.state);
    modelled.unconfirmed &= to.is_none() || action != Action::Resend;
}

async fn agree(log: &SegmentLog, model: &BTreeMap<QueueId, Modelled>) {
    let entries = log.list(None, 10_000).await.unwrap();
    let found: BTreeMap<_, _> = entries.iter().map(|e| (e.message.id, Modelled::of(e))).collect();
    assert_eq!(&found, model);
    let stats = log.stats();
    assert_eq!(stats.messages(), model.len() as u64);
    assert_eq!(stats.bytes, model.values().map(|m| m.size).sum::<u64>());
}

fn reopened(log: SegmentLog, path: &Path) -> SegmentLog {
    drop(log);
    let (log, recovered) = open(path);
    assert!(recovered.damage.is_empty() && !recovered.torn_tail);
    assert_eq!(recovered.orphans, 0);
    log
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn any_life_is_the_same_after_a_restart(steps in prop::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let dir = directory();
            let mut model = BTreeMap::new();
            let mut log = open(dir.path()).0;
            for step in steps {
                match step {
                    Step::Put(n) => {
                        let id = put(&log, 0, &vec![b'x'; n]).await.unwrap();
                        let (state, size) = (QueueState::Incoming, n as u64);
                        let stored = Modelled { state, attempts: 0, unconfirmed: false, size };
                        model.insert(id, stored);
                    }
                    Step::Settle(settlement) => settle(&log, &mut model, settlement).await,
                    Step::Act(index, action) if !model.is_empty() => {
                        let id = *model.keys().nth(index.index(model.len())).unwrap();
                        act(&log, &mut model, id, action).await;
                    }
                    Step::Act(..) => {}
                    Step::Regroup => log.regroup(),
                    Step::Note => {
                        note(&log, &mut model).await;
                        log = reopened(log, dir.path());
                    }
                    Step::Reopen => log = reopened(log, dir.path()),
                }
                agree(&log, &model).await;
            }
            drop(log);
            agree(&open(dir.path()).0, &model).await;
        });
    }
}
