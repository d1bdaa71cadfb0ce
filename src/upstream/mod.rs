//! Upstreams: what a message can be handed to.

pub mod maildir;
pub mod probe;
pub mod smtp;

use std::time::Instant;

use async_trait::async_trait;

use crate::mail::{Body, Envelope, Outcome};

/// A next hop: a smarthost, or a Maildir.
#[async_trait]
pub trait Upstream: Send + Sync + 'static {
    /// Its name in the configuration.
    fn name(&self) -> &str;

    /// Hands a message over.
    ///
    /// There is no `Result`: a failed attempt is data. The outcome holds one entry for each recipient
    /// of `envelope`, in its order. An attempt that is not over at `deadline` ends as it would at a
    /// time-out of the stage it is in. The future must not be dropped before it ends, or it is not
    /// known whether the upstream took the message.
    async fn deliver(&self, envelope: &Envelope, body: &Body, deadline: Instant) -> Outcome;
}
