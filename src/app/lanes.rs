//! From the configuration to routes and lanes: what mail is handed to, and what that logs in with.

use std::sync::Arc;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::build::BuildError;
use crate::clock::{Clock, SystemClock};
use crate::config::{self, Config, UpstreamKind};
use crate::delivery::{self, Lane, Limits, Plan};
use crate::secret::Credentials;
use crate::secrets::Secrets;
use crate::upstream::Upstream;
use crate::upstream::forced::Forced;
use crate::upstream::maildir::MaildirUpstream;
use crate::upstream::ses::SesUpstream;
use crate::upstream::smtp::SmtpUpstream;

/// The latest credentials of a secret.
type Login = watch::Receiver<Option<Arc<Credentials>>>;

/// What was in force before a reload.
pub(super) struct Before<'a> {
    pub(super) config: &'a Config,
    pub(super) secrets: &'a Secrets,
    pub(super) plan: &'a Plan,
}

/// Routes and lanes as the configuration says. `wake` is told when an upstream can do more than
/// before.
pub(super) fn plan(
    config: &Config,
    secrets: &Arc<Secrets>,
    wake: &Arc<Notify>,
    before: Option<&Before<'_>>,
) -> Result<Plan, BuildError> {
    let lanes = config.upstreams.iter().map(|upstream| {
        let kept = before.and_then(|before| kept(config, upstream, secrets, before));
        let made = match kept {
            Some(kept) => kept,
            None => make(config, upstream, secrets, wake)?,
        };
        let rules = match &upstream.kind {
            UpstreamKind::Ses(ses) => Some(ses.rules.clone()),
            UpstreamKind::Smtp(_) | UpstreamKind::Maildir(_) => None,
        };
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

/// The upstream of before, when nothing it is made of has changed: it keeps its connections, and
/// what it knows of its account.
fn kept(
    config: &Config,
    upstream: &config::Upstream,
    secrets: &Secrets,
    before: &Before<'_>,
) -> Option<Arc<dyn Upstream>> {
    let old = before.config.upstream(&upstream.name)?;
    let same = old.kind == upstream.kind
        && !upstream.kind.reads_files()
        && before.config.force_fail == config.force_fail
        && match (channel(old, before.secrets), channel(upstream, secrets)) {
            (Some(old), Some(new)) => old.same_channel(&new),
            (old, new) => old.is_none() && new.is_none(),
        };
    let lane = before.plan.lane(&upstream.name).filter(|_| same)?;
    Some(Arc::clone(&lane.upstream))
}

fn make(
    config: &Config,
    upstream: &config::Upstream,
    secrets: &Secrets,
    wake: &Arc<Notify>,
) -> Result<Arc<dyn Upstream>, BuildError> {
    let name = || upstream.name.clone();
    let login = channel(upstream, secrets).unwrap_or_else(|| watch::channel(None).1);
    let made: Arc<dyn Upstream> = match &upstream.kind {
        UpstreamKind::Smtp(settings) => {
            let smarthost = SmtpUpstream::new((**settings).clone(), login);
            Arc::new(smarthost.map_err(|source| BuildError::Smarthost { name: name(), source })?)
        }
        UpstreamKind::Ses(ses) => {
            let (clock, wake) = (Arc::new(SystemClock), Arc::clone(wake));
            let made = SesUpstream::new(ses.settings.clone(), login, clock, wake);
            Arc::new(made.map_err(|source| BuildError::Ses { name: name(), source })?)
        }
        UpstreamKind::Maildir(maildir) => {
            let made = MaildirUpstream::new(&upstream.name, &maildir.path, Arc::new(SystemClock));
            Arc::new(made.map_err(|source| BuildError::Maildir { name: name(), source })?)
        }
    };
    let forced = config.force_fail.as_deref() == Some(&*upstream.name);
    Ok(if forced { Arc::new(Forced::new(made)) } else { made })
}

/// The latest credentials of an upstream.
fn channel(upstream: &config::Upstream, secrets: &Secrets) -> Option<Login> {
    upstream.secret.as_ref().and_then(|name| secrets.channel(name))
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
