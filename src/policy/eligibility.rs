//! Whether an upstream would take a message at all, told from what was seen in it.

use crate::mail::{EnhancedStatus, Message};
use crate::policy::routing::Pattern;

/// What an upstream is known to refuse.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rules {
    /// Octets of a message.
    pub max_size: u64,
    /// The senders it may send for; empty: all.
    pub senders: Vec<Pattern>,
    /// Whether another sender is put in place of one that is not allowed.
    pub rewrites_sender: bool,
}

/// Why an upstream would refuse a message, or one recipient of it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Ineligible {
    /// `MAIL FROM:<>` cannot be expressed there.
    #[error("the null sender cannot be sent by the SES API")]
    NullSender,
}

impl Ineligible {
    /// Its status for reports.
    pub const fn status(&self) -> EnhancedStatus {
        EnhancedStatus::new(5, 7, 1)
    }
}

/// Whether the upstream would take the message for the recipient at `place`.
pub fn judge(
    _rules: &Rules,
    _message: &Message,
    _place: usize,
    _sandbox: bool,
) -> Result<(), Ineligible> {
    Ok(())
}
