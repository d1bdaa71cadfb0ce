//! Decisions: pure functions and state machines that are given the time.

pub mod networks;
