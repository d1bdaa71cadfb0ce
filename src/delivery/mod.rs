//! The sending side: takes what is due from the spool, hands it to an upstream, and settles it.
//!
//! [`scheduler`] decides when and how many, [`lane`] is one upstream with its breaker, [`attempt`]
//! is one claim from taking to settling. Nothing here knows how mail came in.

pub mod attempt;
pub mod lane;
pub mod scheduler;
#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::policy::Backoff;

pub use lane::Lane;
pub use scheduler::Scheduler;

/// How mail is sent. Can be changed while running.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Messages being delivered at once, over all upstreams. At least 1.
    pub max_active: usize,
    /// Pauses between the attempts for a message.
    pub backoff: Backoff,
    /// How long a message may wait for delivery before it becomes a dead letter.
    pub max_age: Duration,
}

/// The longest an attempt may take. Each stage has its own, shorter limit; this one bounds their
/// sum for an upstream that is slow in every stage.
const ATTEMPT_MAX: Duration = Duration::from_hours(1);

/// How long a claim holds where only one process claims: for ever. Each attempt ends by itself, and a
/// claim that lapses meanwhile (the wall clock was set, the machine was suspended, the disk takes no
/// settlement for hours) would be given out again and its mail sent twice.
pub const LEASE: Duration = Duration::from_hours(24 * 365 * 100);
