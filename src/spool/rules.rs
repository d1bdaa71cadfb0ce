//! What an operator's action makes of a message.

use super::{Action, SpoolError};
use crate::clock::Timestamp;
use crate::mail::{EnhancedStatus, Message, QueueId, QueueState, RecipientStatus, Reply};

/// Whether `action` fits a message in `state`.
pub(super) const fn check(
    id: QueueId,
    state: QueueState,
    action: Action,
) -> Result<(), SpoolError> {
    use QueueState::{Dead, Deferred, Held, Incoming};
    match (action, state) {
        (Action::Delete, _)
        | (Action::Retry | Action::Hold, Incoming | Deferred)
        | (Action::Release, Held)
        | (Action::Confirm | Action::Resend, Incoming | Deferred | Held | Dead)
        | (Action::Requeue, Dead) => Ok(()),
        _ => Err(SpoolError::WrongState(id, state.word())),
    }
}

/// Changes the message as `action` says; its new state, [`QueueState::Sent`] when it is finished,
/// and its due time. Deleting changes nothing: the message is gone.
///
/// Refuses to confirm or resend where nothing is unconfirmed; the message is unchanged then.
pub(super) fn apply(
    message: &mut Message,
    state: QueueState,
    due: Timestamp,
    action: Action,
    now: Timestamp,
) -> Result<(QueueState, Timestamp), SpoolError> {
    match action {
        Action::Hold => return Ok((QueueState::Held, due)),
        Action::Delete => return Ok((state, due)),
        Action::Confirm => {
            settle_unconfirmed(message, |upstream| {
                let status = EnhancedStatus::new(2, 0, 0);
                let reply = Reply::new(250, status, "confirmed by the operator");
                RecipientStatus::Sent { upstream, reply, at: now }
            })?;
            take_back(message, state, now);
            return Ok((after_confirmation(message), now));
        }
        Action::Resend => settle_unconfirmed(message, |_| RecipientStatus::Queued)?,
        Action::Requeue => message.status.iter_mut().for_each(try_again),
        Action::Retry | Action::Release => {}
    }
    take_back(message, state, now);
    // What an upstream had against it may be mended: each is asked again.
    message.refusals.clear();
    message.rests.clear();
    let state = match action {
        Action::Retry => state,
        Action::Release if message.attempts == 0 => QueueState::Incoming,
        _ => QueueState::Deferred,
    };
    Ok((state, now))
}

/// Gives every unconfirmed recipient the status that `becomes` makes of its upstream's name.
fn settle_unconfirmed(
    message: &mut Message,
    becomes: impl Fn(String) -> RecipientStatus,
) -> Result<(), SpoolError> {
    if message.status.iter().all(|status| status.unconfirmed().is_none()) {
        return Err(SpoolError::WrongState(message.id, "not unconfirmed"));
    }
    for status in &mut message.status {
        if let Some(upstream) = status.unconfirmed() {
            *status = becomes(upstream.to_owned());
        }
    }
    Ok(())
}

/// What was held or given up may be older than a message may become: it is given its time anew, or
/// it would be given up again before anyone was asked.
const fn take_back(message: &mut Message, state: QueueState, now: Timestamp) {
    if matches!(state, QueueState::Held | QueueState::Dead) {
        message.returned = Some(now);
    }
}

fn after_confirmation(message: &Message) -> QueueState {
    if message.is_pending() {
        QueueState::Deferred
    } else if message.has_failed() {
        QueueState::Dead
    } else {
        QueueState::Sent
    }
}

/// A failed recipient is pending again; one that an upstream may have served, at that one.
fn try_again(status: &mut RecipientStatus) {
    if !status.is_failed() {
        return;
    }
    let upstream = status.unconfirmed().map(str::to_owned);
    *status = match (upstream, status.failure().cloned()) {
        (Some(upstream), Some(failure)) => RecipientStatus::Unconfirmed { upstream, failure },
        // Nothing writes this; it stays with the dead letters until the operator knows.
        (Some(_), None) => return,
        (None, Some(failure)) => RecipientStatus::Deferred { failure },
        (None, None) => RecipientStatus::Queued,
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::Refusal;
    use crate::spool::conformance::failure;
    use QueueState::{Dead, Deferred, Held, Incoming, Sent};

    const ALL: [Action; 7] = [
        Action::Retry,
        Action::Hold,
        Action::Release,
        Action::Requeue,
        Action::Confirm,
        Action::Resend,
        Action::Delete,
    ];
    const DUE: Timestamp = Timestamp::from_millis(3);
    const NOW: Timestamp = Timestamp::from_millis(5);

    /// A message tried before, with a refusal, and a recipient for each letter: `q`ueued,
    /// `d`eferred, `u`nconfirmed, `s`ent, `b`ounced, e`x`pired untried, `e`xpired, `E`xpired while
    /// unconfirmed.
    fn message(letters: &str) -> Message {
        let status = |letter| match letter {
            'q' => RecipientStatus::Queued,
            'd' => RecipientStatus::Deferred { failure: failure() },
            'u' => RecipientStatus::Unconfirmed { upstream: "core".into(), failure: failure() },
            's' => {
                let reply =
                    Reply::new(250, EnhancedStatus::new(2, 0, 0), "confirmed by the operator");
                RecipientStatus::Sent { upstream: "core".into(), reply, at: NOW }
            }
            'b' => RecipientStatus::Bounced { failure: failure() },
            'x' => RecipientStatus::Expired { failure: None, unconfirmed: None },
            'e' => RecipientStatus::Expired { failure: Some(failure()), unconfirmed: None },
            'E' => RecipientStatus::Expired {
                failure: Some(failure()),
                unconfirmed: Some("core".into()),
            },
            other => panic!("{other}"),
        };
        let recipients = vec!["user@example.net"; letters.len()];
        let mut message = Message::sample(QueueId::from_u64(1), DUE, &recipients);
        message.status = letters.chars().map(status).collect();
        message.attempts = 1;
        let (upstream, recipients) = ("ses".into(), vec![0]);
        message.refusals = vec![Refusal { upstream, recipients, failure: failure() }];
        message
    }

    #[test]
    fn each_action_fits_these_states_and_no_other() {
        let fits = |action: Action| -> &[QueueState] {
            match action {
                Action::Retry | Action::Hold => &[Incoming, Deferred],
                Action::Release => &[Held],
                Action::Requeue => &[Dead],
                Action::Confirm | Action::Resend | Action::Delete => {
                    &[Incoming, Deferred, Held, Dead]
                }
            }
        };
        for action in ALL {
            for state in [Incoming, Deferred, Held, Dead] {
                let checked = check(QueueId::from_u64(1), state, action);
                assert_eq!(checked.is_ok(), fits(action).contains(&state), "{action:?} {state:?}");
            }
        }
    }

    #[test]
    fn each_action_makes_of_each_message_what_the_table_says() {
        let rows = [
            (Action::Retry, Incoming, "q", "q", Incoming),
            (Action::Retry, Deferred, "qdus", "qdus", Deferred),
            (Action::Hold, Deferred, "du", "du", Held),
            (Action::Release, Held, "du", "du", Deferred),
            (Action::Requeue, Dead, "sbxeEu", "sdqduu", Deferred),
            (Action::Confirm, Incoming, "u", "s", Sent),
            (Action::Confirm, Deferred, "us", "ss", Sent),
            (Action::Confirm, Deferred, "uq", "sq", Deferred),
            (Action::Confirm, Held, "uqb", "sqb", Deferred),
            (Action::Confirm, Held, "ub", "sb", Dead),
            (Action::Confirm, Dead, "E", "s", Sent),
            (Action::Confirm, Dead, "Ee", "se", Dead),
            (Action::Resend, Incoming, "u", "q", Deferred),
            (Action::Resend, Deferred, "usd", "qsd", Deferred),
            (Action::Resend, Held, "ub", "qb", Deferred),
            (Action::Resend, Dead, "Eb", "qb", Deferred),
        ];
        for (action, state, before, after, then) in rows {
            let mut changed = message(before);
            let applied = apply(&mut changed, state, DUE, action, NOW).unwrap();
            let context = format!("{action:?} {state:?} {before}");
            let due = if action == Action::Hold { DUE } else { NOW };
            assert_eq!(applied, (then, due), "{context}");
            assert_eq!(changed.status, message(after).status, "{context}");
            let keeps = matches!(action, Action::Hold | Action::Confirm);
            assert_eq!(!changed.refusals.is_empty(), keeps, "{context}");
        }
        let mut untried = Message { attempts: 0, ..message("q") };
        assert_eq!(apply(&mut untried, Held, DUE, Action::Release, NOW).unwrap(), (Incoming, NOW));
    }

    #[test]
    fn what_comes_back_from_the_operator_has_all_its_time_again() {
        for (action, state, since) in [
            (Action::Requeue, Dead, NOW),
            (Action::Release, Held, NOW),
            (Action::Resend, Held, NOW),
            (Action::Confirm, Held, NOW),
            (Action::Resend, Deferred, DUE),
            (Action::Retry, Deferred, DUE),
        ] {
            let mut changed = message("ux");
            apply(&mut changed, state, DUE, action, NOW).unwrap();
            assert_eq!(changed.waits_since(), since, "{action:?} {state:?}");
        }
    }

    #[test]
    fn nothing_is_confirmed_or_sent_again_that_is_not_unconfirmed() {
        for action in [Action::Confirm, Action::Resend] {
            let mut kept = message("qdsbxe");
            let refused = apply(&mut kept, Deferred, DUE, action, NOW).unwrap_err();
            assert_eq!(refused.to_string(), format!("message {} is not unconfirmed", kept.id));
            assert_eq!(kept, message("qdsbxe"));
        }
    }
}
