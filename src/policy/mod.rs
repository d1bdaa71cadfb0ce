//! Decisions: pure functions and state machines that are given the time.

pub mod admission;
pub mod backoff;
pub mod breaker;
pub mod bucket;
pub mod eligibility;
pub mod networks;
pub mod routing;

pub use backoff::Backoff;
pub use breaker::Breaker;
pub use bucket::Bucket;
