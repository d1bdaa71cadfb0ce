//! The SMTP protocol core, sans I/O: octets and verdicts in, one [`Step`] out.

pub mod session;

pub use session::{Begin, Session, Settings, Step, Verdict};
