//! What can be changed while running, and the change itself: all of it, or nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::build::{self, BuildError};
use super::lanes;
use crate::clock::SystemClock;
use crate::config::{self, Config};
use crate::delivery::Plan;
use crate::secrets::Secrets;
use crate::server::Policy;
use crate::telemetry::Telemetry;

/// The parts of the daemon that a reload swaps.
pub(super) struct Live {
    /// The configuration in effect.
    pub(super) config: Config,
    /// Who may send, and what.
    pub(super) policy: Arc<ArcSwap<Policy>>,
    /// Where mail goes, and how it is sent.
    pub(super) plan: Arc<ArcSwap<Plan>>,
    /// What that logs in with.
    pub(super) secrets: Arc<ArcSwap<Secrets>>,
    /// Wakes who sends it.
    pub(super) wake: Arc<Notify>,
    /// Tells `wake` of new secrets.
    watching: JoinSet<()>,
    /// The configuration the daemon was started with: what cannot be changed is still as it says.
    started: Config,
    path: PathBuf,
    pub(super) telemetry: Telemetry,
}

impl Live {
    pub(super) fn build(
        path: &Path,
        config: Config,
        telemetry: Telemetry,
    ) -> Result<Self, BuildError> {
        // Without its login mail is taken all the same; it waits until the secret comes.
        let secrets = Arc::new(Secrets::start(&config.secrets, Arc::new(SystemClock))?);
        let wake = Arc::new(Notify::new());
        Ok(Self {
            policy: Arc::new(ArcSwap::from_pointee(build::policy(&config, &config)?)),
            plan: Arc::new(ArcSwap::from_pointee(lanes::plan(&config, &secrets, &wake, None)?)),
            watching: lanes::watch_secrets(&config, &secrets, &wake),
            secrets: Arc::new(ArcSwap::new(secrets)),
            wake,
            started: config.clone(),
            config,
            path: path.into(),
            telemetry,
        })
    }

    /// Reads the configuration again, and all secrets. `Err` says what is wrong with it; the old one
    /// then stays.
    pub(super) fn reload(&mut self) -> Result<String, String> {
        let (config, warnings) = config::load(&self.path, &config::environment())
            .map_err(|report| report.to_string())?;
        let policy = build::policy(&config, &self.started).map_err(|e| e.to_string())?;
        let (old_secrets, old_plan) = (self.secrets.load_full(), self.plan.load_full());
        let secrets = old_secrets.reload(&config.secrets).map_err(|e| e.to_string())?;
        let secrets = Arc::new(secrets);
        let before = lanes::Before { config: &self.config, secrets: &old_secrets, plan: &old_plan };
        let mut plan =
            lanes::plan(&config, &secrets, &self.wake, Some(&before)).map_err(|e| e.to_string())?;
        // From here on nothing can fail.
        plan.take_over(&old_plan);
        self.watching = lanes::watch_secrets(&config, &secrets, &self.wake);
        self.policy.store(Arc::new(policy));
        self.plan.store(Arc::new(plan));
        self.secrets.store(secrets);
        self.wake.notify_one();
        self.telemetry.set_level(config.log.level);
        self.config = config;
        let mut answer = String::from("reloaded");
        let fixed = self.started.needs_restart(&self.config);
        if !fixed.is_empty() {
            answer = format!("{answer}; these take effect at a restart: {}", fixed.join(", "));
        }
        if !warnings.problems.is_empty() {
            answer = format!("{answer}\n{warnings}");
        }
        Ok(answer)
    }
}
