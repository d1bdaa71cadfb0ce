//! Postgate: the gate a company's mail leaves by.
//!
//! Mail flows through these modules in this order:
//!
//! 1. [`server`] accepts a connection if [`policy`] lets the peer in, and drives an [`smtp`]
//!    session, which is pure: octets in, replies out.
//! 2. A complete message ([`mail`]) goes to the [`spool`]. When the spool says it is durable, and
//!    not before, the client gets its 250.
//! 3. [`delivery`] claims what is due, and hands it to an [`upstream`] when that one's breaker
//!    ([`policy`]) admits it. What came of it is settled in the spool.
//!
//! The two halves meet only at the spool: `server` and `delivery` do not know each other.
//!
//! Around them: [`config`] reads and checks the one file, [`app`] builds everything from it and
//! stops it in order, [`admin`] is the operator's door and [`cli`] what knocks there, [`event`] is
//! the only place that logs, [`telemetry`] is where the lines go. [`clock`] and [`secret`] are the
//! two things nobody else may handle by hand.
//!
//! Which module may use which is a table in `docs/architecture.md`, enforced by `tests/tidy.rs`.

pub mod admin;
pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod delivery;
pub mod event;
pub mod mail;
pub mod policy;
pub mod secret;
pub mod secrets;
pub mod server;
pub mod smtp;
pub mod spool;
pub mod telemetry;
pub mod upstream;
