//! What an operator's action makes of a message.

use super::{Action, SpoolError};
use crate::clock::Timestamp;
use crate::mail::{Message, QueueId, QueueState, RecipientStatus};

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
        | (Action::Confirm | Action::Resend, Incoming | Deferred | Held)
        | (Action::Requeue, Dead) => Ok(()),
        _ => Err(SpoolError::WrongState(id, state.word())),
    }
}

/// Changes the message as `action` says; its new state and due time. Deleting changes nothing: the
/// message is gone.
pub(super) fn apply(
    message: &mut Message,
    state: QueueState,
    due: Timestamp,
    action: Action,
    now: Timestamp,
) -> (QueueState, Timestamp) {
    match action {
        Action::Retry => (state, now),
        Action::Hold => (QueueState::Held, due),
        Action::Release if message.attempts == 0 => (QueueState::Incoming, now),
        Action::Release => (QueueState::Deferred, now),
        Action::Requeue => {
            message.status.iter_mut().for_each(try_again);
            (QueueState::Deferred, now)
        }
        Action::Confirm | Action::Resend | Action::Delete => (state, due),
    }
}

fn try_again(status: &mut RecipientStatus) {
    if status.is_failed() {
        *status = match status.failure().cloned() {
            Some(failure) => RecipientStatus::Deferred { failure },
            None => RecipientStatus::Queued,
        };
    }
}
