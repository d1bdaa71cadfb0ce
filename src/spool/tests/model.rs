//! Random lives against a map that can't be wrong.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::spool::Action;
use crate::spool::Room;

#[derive(Clone, Debug)]
enum Step {
    Put(usize),
    Settle(Settlement),
    Act(prop::sample::Index, Action),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let settlement = prop_oneof![
        3 => Just(Settlement::Finished),
        2 => Just(Settlement::Deferred(NOON)),
        1 => Just(Settlement::Dead),
        1 => Just(Settlement::Released(Room::ENTRY, NOON)),
    ];
    let action = prop::sample::select(vec![
        Action::Retry,
        Action::Hold,
        Action::Release,
        Action::Requeue,
        Action::Delete,
    ]);
    prop_oneof![
        4 => prop::sample::select(vec![0, 10, 3000, 20_000, 600_000]).prop_map(Step::Put),
        4 => settlement.prop_map(Step::Settle),
        2 => (any::<prop::sample::Index>(), action).prop_map(|(i, a)| Step::Act(i, a)),
        1 => Just(Step::Reopen),
    ]
}

/// What the map says of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Modelled {
    state: QueueState,
    attempts: u32,
    size: u64,
}

/// Settles one claim in both.
async fn settle(log: &SegmentLog, model: &mut BTreeMap<QueueId, Modelled>, settlement: Settlement) {
    let Some(mut claim) =
        log.claim(Room::ENTRY, NOON, 1, Duration::from_mins(1)).await.unwrap().pop()
    else {
        let waits = |m: &Modelled| matches!(m.state, QueueState::Incoming | QueueState::Deferred);
        assert!(!model.values().any(waits));
        return;
    };
    let id = claim.message.id;
    claim.message.attempts += 1;
    let body = log.body(&claim).await.unwrap();
    assert_eq!(body.len(), model[&id].size);
    log.settle(&claim, settlement).await.unwrap();
    let modelled = model.get_mut(&id).unwrap();
    match settlement {
        Settlement::Finished => {
            model.remove(&id);
        }
        Settlement::Deferred(_) => {
            modelled.state = QueueState::Deferred;
            modelled.attempts += 1;
        }
        Settlement::Dead => {
            modelled.state = QueueState::Dead;
            modelled.attempts += 1;
        }
        Settlement::Held | Settlement::Released(..) => {}
    }
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
        (Action::Delete, _) => {
            model.remove(&id);
            assert!(done.is_ok());
            return;
        }
        (Action::Retry, s @ (Incoming | Deferred)) => Some(s),
        (Action::Hold, Incoming | Deferred) => Some(Held),
        (Action::Release, Held) => Some(if modelled.attempts == 0 { Incoming } else { Deferred }),
        (Action::Requeue, Dead) => Some(Deferred),
        _ => None,
    };
    assert_eq!(done.is_ok(), to.is_some(), "{action:?}");
    modelled.state = to.unwrap_or(modelled.state);
}

async fn agree(log: &SegmentLog, model: &BTreeMap<QueueId, Modelled>) {
    let entries = log.list(None, 10_000).await.unwrap();
    let found: BTreeMap<_, _> = entries
        .iter()
        .map(|e| {
            let (state, attempts, size) = (e.state, e.message.attempts, e.message.size);
            (e.message.id, Modelled { state, attempts, size })
        })
        .collect();
    assert_eq!(&found, model);
    let stats = log.stats();
    assert_eq!(stats.messages(), model.len() as u64);
    assert_eq!(stats.bytes, model.values().map(|m| m.size).sum::<u64>());
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
                        let state = QueueState::Incoming;
                        model.insert(id, Modelled { state, attempts: 0, size: n as u64 });
                    }
                    Step::Settle(settlement) => settle(&log, &mut model, settlement).await,
                    Step::Act(index, action) if !model.is_empty() => {
                        let id = *model.keys().nth(index.index(model.len())).unwrap();
                        act(&log, &mut model, id, action).await;
                    }
                    Step::Act(..) => {}
                    Step::Reopen => {
                        drop(log);
                        let (again, recovered) = open(dir.path());
                        assert!(recovered.damage.is_empty() && !recovered.torn_tail);
                        assert_eq!(recovered.orphans, 0);
                        log = again;
                    }
                }
                agree(&log, &model).await;
            }
            drop(log);
            agree(&open(dir.path()).0, &model).await;
        });
    }
}
