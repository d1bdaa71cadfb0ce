//! The sending side: takes what is due from the spool, finds the upstream that may have it, hands it
//! over, and settles what came of it.
//!
//! A message's way through this module: [`scheduler`] claims it when there is room, [`plan`] decides
//! for each recipient which upstream may have it now, [`lane`] is one upstream with its breaker, rate
//! and places, [`attempt`] is one claim from the decision to the settlement. What cannot go now waits
//! in the spool, in the room ([`rooms`]) of what it waits for. Nothing here knows how mail came in.

pub mod attempt;
pub mod lane;
pub mod plan;
pub mod rooms;
pub mod scheduler;

use std::time::Duration;

use crate::policy::Backoff;

pub use lane::{Lane, Limits};
pub use plan::Plan;
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
