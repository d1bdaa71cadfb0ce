//! The Amazon SES upstream: raw `SendEmail` of the v2 API.
//!
//! A message's way through this module: [`attempt`] reads it, has [`message`] make the copy that SES
//! is given, and asks [`client`] to send it, in parts when one recipient spoils it for the others;
//! [`classify`] says what each answer means. [`account`] asks SES how much it takes, and remembers
//! when it takes nothing.

mod account;
mod attempt;
mod classify;
mod client;
mod message;
mod sender;
mod settings;
mod trust;

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use async_trait::async_trait;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

pub use account::AccountStatus;
pub use settings::{SenderPolicy, Settings, SettingsError};

use super::{About, Leaving, NO_CREDENTIALS, Standing, Upstream};
use crate::clock::Clock;
use crate::mail::{Body, Envelope, Outcome};
use crate::policy::bucket::{Rate, Unit};
use crate::secret::Credentials;
use account::Account;
use client::Client;

/// Recipients of one call (SES quotas: "50 recipients per message").
pub const RECIPIENTS_MAX: usize = 50;

/// One account and region of Amazon SES.
pub struct SesUpstream {
    shared: Arc<Shared>,
    /// The task that asks for the account, once it was started.
    asking: OnceLock<AbortHandle>,
}

/// What attempts and the account's task have in common.
struct Shared {
    settings: Settings,
    client: Client,
    account: Account,
    credentials: watch::Receiver<Option<Arc<Credentials>>>,
    clock: Arc<dyn Clock>,
    places: tokio::sync::Semaphore,
}

impl SesUpstream {
    /// An upstream that signs with the latest credentials of the channel, or with those of the AWS
    /// default chain when the settings name no secret.
    ///
    /// `None` in the channel means that there are none yet. `changed` is told whenever its standing
    /// changes without an attempt.
    pub fn new(
        settings: Settings,
        credentials: watch::Receiver<Option<Arc<Credentials>>>,
        clock: Arc<dyn Clock>,
        changed: Arc<Notify>,
    ) -> Result<Self, SettingsError> {
        settings.sender.check()?;
        let client = Client::new(&settings, credentials.clone())?;
        let account = Account::new(&settings, changed);
        let places = tokio::sync::Semaphore::new(settings.max_connections.max(1));
        let shared = Shared { settings, client, account, credentials, clock, places };
        Ok(Self { shared: Arc::new(shared), asking: OnceLock::new() })
    }

    /// What is known of the account, for `upstream list` and the status page.
    pub fn status(&self) -> AccountStatus {
        self.start();
        let status = self.shared.account.status(self.shared.clock.now());
        AccountStatus { endpoint: self.shared.client.host(), ..status }
    }

    /// Starts to ask for the account, once there is a runtime to do so.
    fn start(&self) {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let shared = &self.shared;
            self.asking.get_or_init(|| {
                runtime.spawn(account::keep_asking(Arc::clone(shared))).abort_handle()
            });
        }
    }
}

impl Drop for SesUpstream {
    fn drop(&mut self) {
        if let Some(task) = self.asking.get() {
            task.abort();
        }
    }
}

#[async_trait]
impl Upstream for SesUpstream {
    fn name(&self) -> &str {
        &self.shared.settings.name
    }

    fn standing(&self) -> Standing {
        self.start();
        let Shared { settings, account, credentials, clock, .. } = &*self.shared;
        let status = account.status(clock.now());
        let credentials = credentials.borrow();
        let lacking = settings.secret && credentials.is_none();
        let sender = settings.sender.filled(credentials.as_deref());
        Standing {
            wanting: if lacking { Some(NO_CREDENTIALS.into()) } else { status.wanting },
            secret: credentials.as_ref().map_or(0, |c| c.version),
            rate: status
                .max_send_rate
                .filter(|rate| *rate > 0.0)
                .map(|per_second| Rate { per_second, of: Unit::Recipients }),
            max_recipients: RECIPIENTS_MAX,
            sandbox: status.sandbox == Some(true),
            // A secret that was not read yet may name a sender: no message is refused for that.
            rewrites_sender: lacking || sender.default.is_some(),
        }
    }

    fn about(&self) -> About {
        let account = serde_json::to_value(self.status()).unwrap_or_default();
        About { kind: "ses", account, forced: false }
    }

    /// Hands the message over, in several requests when SES refuses it for the sake of one of the
    /// recipients; `leaving` is asked once, before the first of them. An attempt of at most
    /// [`RECIPIENTS_MAX`] recipients makes at most twice as many requests, and may exceed the rate by
    /// those that were refused.
    async fn deliver(
        &self,
        envelope: &Envelope,
        body: &Body,
        leaving: &dyn Leaving,
        deadline: Instant,
    ) -> Outcome {
        let deadline = tokio::time::Instant::from_std(deadline);
        attempt::run(&self.shared, envelope, body, leaving, deadline).await
    }
}
