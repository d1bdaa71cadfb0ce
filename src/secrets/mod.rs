//! Where passwords and keys come from, and how they change while the program runs.
//!
//! [`Secrets`] reads each secret from its source, again and again, and tells whoever uses it
//! through a channel. What was read last is kept while a source is down, sealed, slow or talks
//! nonsense.
//!
//! A secret's way through this module: a [`SecretSource`] (`vault` or `parts`) gives named texts,
//! [`fields`](SPELLINGS) says what they mean, `keeper` compares, numbers and tells them.

mod error;
mod fields;
mod keeper;
mod parts;
mod process;
mod settings;
mod status;
#[cfg(test)]
mod tests;
mod vault;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

pub use error::{ContentError, FetchError, LoginError, PartError, SettingsError};
pub use fields::{Fetched, SPELLINGS};
pub use process::harden;
pub use settings::{Fields, Given, SecretSettings, Settings, Source, VaultAuth, VaultSettings};
pub use status::{SecretState, SecretStatus};

use crate::clock::Clock;
use crate::secret::Credentials;
use keeper::Keeper;
use vault::{Vault, VaultSecret};

/// A place that holds a secret.
#[async_trait]
pub trait SecretSource: Send + Sync + 'static {
    /// What it says now. It may take as long as it must; whoever asks has something older.
    async fn fetch(&self) -> Result<Fetched, FetchError>;
}

/// All secrets of the program. Dropped, it stops reading; the channels keep what they hold.
pub struct Secrets {
    kept: BTreeMap<String, Arc<Kept>>,
    vault: Option<Arc<KeptVault>>,
    clock: Arc<dyn Clock>,
}

/// A secret and the task that reads it.
struct Kept {
    keeper: Arc<Keeper>,
    _task: AbortOnDropHandle<()>,
}

/// A Vault and the task that keeps our token alive.
struct KeptVault {
    vault: Arc<Vault>,
    _task: AbortOnDropHandle<()>,
}

impl Secrets {
    /// Begins to read the secrets, each in its own task. Nothing is waited for: a channel holds
    /// `None` until its secret was read. To be called in a tokio runtime.
    pub fn start(settings: &Settings, clock: Arc<dyn Clock>) -> Result<Self, SettingsError> {
        Self::build(settings, clock, None)
    }

    /// The secrets by other settings. A secret whose settings are the same goes on with its
    /// channel, and is read at once; one that only moved to another Vault or is read at another pace
    /// begins with what is known, in a new channel; so a reload while Vault is down loses nothing.
    /// Version numbers go on.
    ///
    /// These secrets go on as well, until they are dropped.
    pub fn reload(&self, settings: &Settings) -> Result<Self, SettingsError> {
        Self::build(settings, Arc::clone(&self.clock), Some(self))
    }

    /// The channel of a secret: `None` in it as long as it has never been read.
    pub fn channel(&self, name: &str) -> Option<watch::Receiver<Option<Arc<Credentials>>>> {
        self.kept.get(name).map(|kept| kept.keeper.channel())
    }

    /// Reads a secret now: at once, or if it was asked for less than ten seconds ago, after these
    /// ten seconds. Many calls are as one. False if there is no such secret.
    pub fn refresh(&self, name: &str) -> bool {
        self.kept.get(name).map(|kept| kept.keeper.ask()).is_some()
    }

    /// Reads all secrets now, as [`refresh`](Self::refresh) does.
    pub fn refresh_all(&self) {
        self.kept.values().for_each(|kept| kept.keeper.ask());
    }

    /// Returns when each secret has been tried once, whatever came of it.
    pub async fn tried(&self) {
        for kept in self.kept.values() {
            // It ends early only with the keeper, and that one lives as long as we.
            let _ = kept.keeper.notes().wait_for(|notes| notes.ended > 0).await;
        }
    }

    /// Reads a secret as [`refresh`](Self::refresh) does, and returns when that is done. False if
    /// there is no such secret.
    pub async fn refreshed(&self, name: &str) -> bool {
        let Some(kept) = self.kept.get(name) else { return false };
        let mut notes = kept.keeper.notes();
        // An attempt under way may have read before whatever happened.
        let begun = notes.borrow_and_update().begun;
        kept.keeper.ask();
        notes.wait_for(|notes| notes.ended > begun).await.is_ok()
    }

    /// How the secrets are, by name.
    pub fn status(&self) -> Vec<SecretStatus> {
        let of = |kept: &Arc<Kept>| {
            let in_vault = matches!(kept.keeper.settings.source, Source::Vault { .. });
            let vault = self.vault.as_ref().filter(|_| in_vault);
            let ends = vault.and_then(|kept| kept.vault.token_ends());
            SecretStatus::of(&kept.keeper, ends, &*self.clock)
        };
        self.kept.values().map(of).collect()
    }

    fn build(
        settings: &Settings,
        clock: Arc<dyn Clock>,
        old: Option<&Self>,
    ) -> Result<Self, SettingsError> {
        let vault = match &settings.vault {
            Some(wanted) => Some(KeptVault::build(wanted, &clock, old)?),
            None => None,
        };
        let same_vault = old.is_some_and(|old| match (&old.vault, &vault) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (old, new) => old.is_none() && new.is_none(),
        });
        let mut kept = BTreeMap::new();
        for (name, wanted) in &settings.secrets {
            let known = old.and_then(|old| old.kept.get(name));
            let here = matches!(wanted.source, Source::Parts(_));
            if let Some(known) = known
                && known.keeper.settings == *wanted
                && (same_vault || here)
            {
                known.keeper.ask();
                kept.insert(name.clone(), Arc::clone(known));
                continue;
            }
            let legacy = known.map(|known| known.keeper.legacy(wanted)).unwrap_or_default();
            let source = source(name, wanted, vault.as_deref())?;
            let keeper = Keeper::new(name, wanted, source, Arc::clone(&clock), legacy);
            kept.insert(name.clone(), Arc::new(Kept::new(keeper)));
        }
        Ok(Self { kept, vault, clock })
    }
}

/// Reads a secret once, for a check: what it says, or why it cannot be read. `None`: there is no
/// such secret. Its version is 1. See [`try_once`].
pub async fn read_once(
    settings: &Settings,
    name: &str,
    clock: Arc<dyn Clock>,
) -> Option<Result<Arc<Credentials>, String>> {
    let wanted = settings.secrets.get(name)?.clone();
    let secrets = BTreeMap::from([(name.to_owned(), wanted)]);
    let secrets = match try_once(&Settings { vault: settings.vault.clone(), secrets }, clock).await
    {
        Ok(secrets) => secrets,
        Err(error) => return Some(Err(error.to_string())),
    };
    let Some(channel) = secrets.channel(name) else { return Some(Err(WRAPPED.to_owned())) };
    let found = channel.borrow().clone();
    let error = || secrets.status().pop().and_then(|status| status.last_error);
    Some(found.ok_or_else(|| error().unwrap_or_default()))
}

/// Why a secret is left out by [`try_once`].
pub const WRAPPED: &str = "is not read for a check: the wrapping token works once, and Postgate \
                           needs it; once it runs, `postgate secrets status` says how it is";

/// Reads secrets once, for a check, and returns when each was tried. Secrets behind a wrapped
/// secret id are left out: what is in the wrapping token can be had only once.
pub async fn try_once(
    settings: &Settings,
    clock: Arc<dyn Clock>,
) -> Result<Secrets, SettingsError> {
    let mut settings = settings.clone();
    let auth = settings.vault.as_ref().map(|vault| &vault.auth);
    if matches!(auth, Some(VaultAuth::AppRole { wrapped: true, .. })) {
        settings.secrets.retain(|_, secret| matches!(secret.source, Source::Parts(_)));
    }
    let secrets = Secrets::start(&settings, clock)?;
    secrets.tried().await;
    Ok(secrets)
}

impl KeptVault {
    /// The old one, if it is the same: its token is good, and a wrapping token works only once.
    fn build(
        wanted: &VaultSettings,
        clock: &Arc<dyn Clock>,
        old: Option<&Secrets>,
    ) -> Result<Arc<Self>, SettingsError> {
        let vault = Vault::new(wanted, Arc::clone(clock))?;
        if let Some(old) = old.and_then(|old| old.vault.as_ref()) {
            if vault.is_like(&old.vault) {
                return Ok(Arc::clone(old));
            }
            vault.inherit(&old.vault);
        }
        let task = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&vault).keep()));
        Ok(Arc::new(Self { vault, _task: task }))
    }
}

impl Kept {
    fn new(keeper: Arc<Keeper>) -> Self {
        let task = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&keeper).run()));
        Self { keeper, _task: task }
    }
}

fn source(
    name: &str,
    wanted: &SecretSettings,
    vault: Option<&KeptVault>,
) -> Result<Box<dyn SecretSource>, SettingsError> {
    match &wanted.source {
        Source::Parts(parts) => Ok(Box::new(parts::Parts(parts.clone()))),
        Source::Vault { mount, path } => {
            let kept = vault.ok_or_else(|| SettingsError::NoVault(name.to_owned()))?;
            let vault = Arc::clone(&kept.vault);
            Ok(Box::new(VaultSecret { vault, mount: mount.clone(), path: path.clone() }))
        }
    }
}
