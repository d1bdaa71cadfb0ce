//! Conversations over loopback.

mod harness;
mod intake;
mod peers;
mod tls;
