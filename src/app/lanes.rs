//! From the configuration to routes and lanes: what mail is handed to, and what that logs in with.

use std::sync::Arc;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::build::BuildError;
use crate::clock::{Clock, SystemClock};
use crate::config::{self, Config, UpstreamKind};
use crate::delivery::{self, Lane, Limits, Plan};
use crate::policy::eligibility::Rules;
use crate::secret::Credentials;
use crate::secrets::Secrets;
use crate::upstream::Upstream;
use crate::upstream::forced::Forced;
use crate::upstream::maildir::MaildirUpstream;
use crate::upstream::ses::SesUpstream;
use crate::upstream::smtp::SmtpUpstream;

/// The latest credentials of a secret.
type Login = watch::Receiver<Option<Arc<Credentials>>>;

/// Routes and lanes as the configuration says. `wake` is told when an upstream can do more than
/// before.
pub(super) fn plan(
    config: &Config,
    secrets: &Arc<Secrets>,
    wake: &Arc<Notify>,
) -> Result<Plan, BuildError> {
    let lanes = config.upstreams.iter().map(|upstream| {
        let (made, rules) = make(upstream, secrets, wake)?;
        let forced = config.force_fail.as_deref() == Some(&*upstream.name);
        let made = if forced { Arc::new(Forced::new(made)) } else { made };
        let limits = Limits {
            capacity: upstream.max_connections,
            rate: upstream.rate,
            breaker: upstream.breaker,
            rules,
        };
        Ok(Arc::new(Lane::new(made, limits, refused(upstream, secrets), SystemClock.wall())))
    });
    let lanes = lanes.collect::<Result<Vec<_>, BuildError>>()?;
    let settings = delivery::Settings {
        max_active: config.delivery.max_active,
        backoff: config.retry.backoff,
        max_age: config.retry.max_age,
    };
    Ok(Plan::new(settings, config.routes.clone(), lanes)?)
}

/// An upstream, and what it is known to refuse.
fn make(
    upstream: &config::Upstream,
    secrets: &Arc<Secrets>,
    wake: &Arc<Notify>,
) -> Result<(Arc<dyn Upstream>, Option<Rules>), BuildError> {
    let name = || upstream.name.clone();
    Ok(match &upstream.kind {
        UpstreamKind::Smtp(settings) => {
            let smarthost = SmtpUpstream::new((**settings).clone(), login(upstream, secrets));
            let failed = |source| BuildError::Smarthost { name: name(), source };
            (Arc::new(smarthost.map_err(failed)?), None)
        }
        UpstreamKind::Ses(ses) => {
            let (login, clock) = (login(upstream, secrets), Arc::new(SystemClock));
            let made = SesUpstream::new(ses.settings.clone(), login, clock, Arc::clone(wake));
            let failed = |source| BuildError::Ses { name: name(), source };
            (Arc::new(made.map_err(failed)?), Some(ses.rules.clone()))
        }
        UpstreamKind::Maildir(maildir) => {
            let made = MaildirUpstream::new(&upstream.name, &maildir.path, Arc::new(SystemClock));
            let failed = |source| BuildError::Maildir { name: name(), source };
            (Arc::new(made.map_err(failed)?), None)
        }
    })
}

fn login(upstream: &config::Upstream, secrets: &Secrets) -> Login {
    let channel = upstream.secret.as_ref().and_then(|name| secrets.channel(name));
    channel.unwrap_or_else(|| watch::channel(None).1)
}

/// What to do when an upstream refuses our login: the secret may have changed.
fn refused(upstream: &config::Upstream, secrets: &Arc<Secrets>) -> Box<dyn Fn() + Send + Sync> {
    let Some(name) = upstream.secret.clone() else { return Box::new(|| {}) };
    let secrets = Arc::clone(secrets);
    Box::new(move || {
        secrets.refresh(&name);
    })
}

/// Tells `wake` whenever a secret changes: an upstream that waited for it can go on. Ends when the
/// set is dropped.
pub(super) fn watch_secrets(config: &Config, secrets: &Secrets, wake: &Arc<Notify>) -> JoinSet<()> {
    let channels = config.upstreams.iter().filter_map(|u| secrets.channel(u.secret.as_ref()?));
    let mut tasks = JoinSet::new();
    for mut channel in channels {
        let wake = Arc::clone(wake);
        tasks.spawn(async move {
            while channel.changed().await.is_ok() {
                wake.notify_one();
            }
        });
    }
    tasks
}
