//! Decisions: pure functions and state machines that are given the time.

pub mod admission;
pub mod backoff;
pub mod breaker;
pub mod networks;

pub use backoff::Backoff;
pub use breaker::Breaker;
