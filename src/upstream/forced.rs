//! An upstream that is made to fail, to try the fallback on purpose.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;

use super::{About, Leaving, Standing, Upstream};
use crate::mail::{
    Blame, Body, EnhancedStatus, Envelope, Failure, Handoff, Outcome, RecipientOutcome, Remedy,
    Stage,
};

/// Stands in front of an upstream and fails each attempt as if nobody answered there.
pub struct Forced(Arc<dyn Upstream>);

impl Forced {
    /// Puts `upstream` out of reach.
    pub fn new(upstream: Arc<dyn Upstream>) -> Self {
        Self(upstream)
    }
}

#[async_trait]
impl Upstream for Forced {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn standing(&self) -> Standing {
        self.0.standing()
    }

    fn about(&self) -> About {
        About { forced: true, ..self.0.about() }
    }

    async fn deliver(&self, envelope: &Envelope, _: &Body, _: &dyn Leaving, _: Instant) -> Outcome {
        let failure = Failure {
            stage: Stage::Connect,
            blame: Blame::Upstream,
            handoff: Handoff::NotSent,
            remedy: Remedy::Time,
            reply: None,
            status: EnhancedStatus::new(4, 4, 1),
            detail: "made to fail by POSTGATE_FORCE_FAIL".into(),
        };
        Outcome::all(envelope.recipients.len(), &RecipientOutcome::Deferred(failure))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::{BodyKind, ForwardPath, Mailbox, ReversePath};
    use crate::upstream::Free;

    struct Willing;

    #[async_trait]
    impl Upstream for Willing {
        fn name(&self) -> &'static str {
            "willing"
        }

        async fn deliver(&self, _: &Envelope, _: &Body, _: &dyn Leaving, _: Instant) -> Outcome {
            unreachable!("it is out of reach")
        }
    }

    #[tokio::test]
    async fn each_recipient_is_deferred_by_the_upstreams_fault_and_nothing_was_sent() {
        let forced = Forced::new(Arc::new(Willing));
        assert_eq!(forced.name(), "willing");
        let mailbox = |text: &str| Mailbox::parse(text.as_bytes()).unwrap();
        let envelope = Envelope {
            reverse_path: ReversePath::Null,
            recipients: ["a@x", "b@x"].iter().map(|r| ForwardPath(mailbox(r)).into()).collect(),
            body: BodyKind::SevenBit,
            smtputf8: false,
            ret: None,
            envid: None,
        };
        let body = Body::Memory(bytes::Bytes::new());
        let now = crate::clock::Clock::now(&crate::clock::SystemClock);
        let outcome = forced.deliver(&envelope, &body, &Free, now).await;
        assert_eq!(outcome.recipients.len(), 2);
        let failure = outcome.upstream_failure().unwrap();
        assert_eq!((failure.blame, failure.handoff), (Blame::Upstream, Handoff::NotSent));
    }
}
