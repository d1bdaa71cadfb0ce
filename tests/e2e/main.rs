//! End to end: the real program between real parts.
//!
//! Every test starts what it needs on 127.0.0.1, in a folder of its own, and stops it by process
//! id. A part that is not installed fails the test; `tests/run` installs them all.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::missing_panics_doc,
    clippy::unnecessary_debug_formatting,
    missing_docs,
    unreachable_pub,
    reason = "a test stops at the first thing that is not as it should be"
)]

#[path = "../support/conversation.rs"]
mod conversation;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../support/ses.rs"]
mod ses;
mod support;
#[path = "../support/vault.rs"]
mod vault;

mod admission;
mod bad_input;
mod cli;
mod clients;
mod conversations;
mod crash;
mod exact;
mod failover;
mod fallback;
mod full_disk;
mod lifecycle;
mod metrics;
mod operate;
mod parts;
mod places;
mod secrecy;
mod secrets;
mod smarthost;
mod spool_tools;
mod steer;
mod tls;
mod unconfirmed;
