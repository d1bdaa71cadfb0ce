//! The SMTP protocol core, sans I/O: octets and verdicts in, one [`Step`] out.
//!
//! [`session`] is one client's session; it reads lines with [`command`] and message text with
//! [`data`]. [`stuff`] is the way out: the DATA octets that the smarthost gets. Nothing here knows
//! sockets, time or tasks, so every path is a test that needs none. `docs/smtp.md` is the prose.

pub mod command;
pub mod data;
mod extensions;
mod lines;
mod parameters;
mod replies;
pub mod session;
pub mod stuff;
mod transaction;

pub use lines::COMMAND_LINE_MAX;
pub use session::{BareNewline, Begin, Session, Settings, Step, Verdict};
