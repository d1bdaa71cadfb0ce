//! The vocabulary of mail: values every other module speaks in. No input or output happens here.

pub mod address;
pub mod body;
pub mod envelope;
pub mod facts;
pub mod header;
pub mod message;
pub mod outcome;
pub mod queue_id;
pub mod reply;

pub use address::{AddressError, ForwardPath, Mailbox, ReversePath};
pub use body::{Body, ReadAt};
pub use envelope::{BodyKind, Envelope, Notify, Recipient, Ret};
pub use facts::Facts;
pub use message::{Attempt, Client, Message, QueueState, RecipientStatus, Refusal};
pub use outcome::{Blame, Failure, Handoff, Outcome, RecipientOutcome, Remedy, Stage};
pub use queue_id::{QueueId, QueueIdSequence};
pub use reply::{EnhancedStatus, Reply};
