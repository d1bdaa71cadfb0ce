//! Vault: a token that is kept alive, and secrets read with it from KV version 2.

mod http;
mod kv;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::http::{HeaderValue, StatusCode};
use async_trait::async_trait;
use tokio::sync::{Mutex, watch};
use vaultrs::api::AuthInfo;
use vaultrs::api::auth::approle::requests::LoginWithApproleRequest;
use vaultrs::api::kv2::requests::ReadSecretRequest;
use vaultrs::api::sys::requests::UnwrapRequest;
use vaultrs::api::token::requests::{LookupTokenSelfRequest, RenewTokenSelfRequest};

use super::SecretSource;
use super::error::{FetchError, LoginError, PartError, SettingsError};
use super::fields::Fetched;
use super::parts;
use super::settings::{VaultAuth, VaultSettings};
use crate::clock::{Clock, Timestamp};
use crate::event;
use crate::secret::Secret;
use http::{Answer, Http};

/// How long a login that was refused is not tried again with the same secret id or token.
const LOGIN_PAUSE: Duration = Duration::from_secs(10);

/// How long after a failure a token is renewed again, at most.
const RENEW_PAUSE: Duration = Duration::from_secs(10);

/// The shortest time between two renewals.
const RENEW_MIN: Duration = Duration::from_millis(500);

/// A longer life than this is not believed: the end of one could lie beyond what a clock can tell.
const LIFE_MAX: Duration = Duration::from_hours(10 * 365 * 24);

/// A token this old may lack policies its role has got since: a refusal is worth a new login.
const TOKEN_OLD: Duration = Duration::from_mins(10);

/// A Vault and our login there.
pub(super) struct Vault {
    http: Http,
    settings: VaultSettings,
    clock: Arc<dyn Clock>,
    token: watch::Sender<Option<Arc<Token>>>,
    login: Mutex<Login>,
}

/// What is remembered between logins. Its lock makes one login of many at once.
#[derive(Default)]
struct Login {
    /// The last one refused: with what, when, and the answer.
    refused: Option<(Secret, Instant, FetchError)>,
    /// A wrapping token works once: it, and the secret id that was in it.
    unwrapped: Option<(Secret, Secret)>,
}

struct Token {
    secret: Secret,
    since: Instant,
    /// The life it had when it was new to us.
    first: Duration,
    life: Option<Life>,
}

/// A token that does not live for ever.
struct Life {
    renewable: bool,
    renew_at: Instant,
    ends: Instant,
    ends_wall: Timestamp,
}

/// A secret in Vault KV version 2.
pub(super) struct VaultSecret {
    pub(super) vault: Arc<Vault>,
    pub(super) mount: String,
    pub(super) path: String,
}

#[async_trait]
impl SecretSource for VaultSecret {
    async fn fetch(&self) -> Result<Fetched, FetchError> {
        self.vault.read(&self.mount, &self.path).await
    }
}

impl Vault {
    pub(super) fn new(
        settings: &VaultSettings,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, SettingsError> {
        Ok(Arc::new(Self {
            http: Http::new(settings)?,
            settings: settings.clone(),
            clock,
            token: watch::Sender::new(None),
            login: Mutex::default(),
        }))
    }

    /// Whether this would do the same as `other`, certificates included.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.http.is_like(&other.http)
    }

    /// Takes over what can be had only once: the secret id from a wrapping token.
    pub(super) fn inherit(&self, old: &Self) {
        if let (Ok(mut ours), Ok(theirs)) = (self.login.try_lock(), old.login.try_lock()) {
            ours.unwrapped.clone_from(&theirs.unwrapped);
        }
    }

    /// When our token ends, if there is one and it does.
    pub(super) fn token_ends(&self) -> Option<Timestamp> {
        self.token.borrow().as_ref()?.life.as_ref().map(|life| life.ends_wall)
    }

    /// Keeps the token alive, for ever: renewed at two thirds of its life, and replaced by a new
    /// login when renewal comes to its end.
    pub(super) async fn keep(self: Arc<Self>) {
        let mut changes = self.token.subscribe();
        loop {
            let token = changes.borrow_and_update().clone();
            let due = token.as_ref().and_then(|t| t.life.as_ref()).map(|life| life.renew_at);
            let (Some(token), Some(due)) = (token, due) else {
                if changes.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let wait = due.saturating_duration_since(self.clock.now()).max(RENEW_MIN);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = changes.changed() => continue,
            }
            if self.prolong(&token).await.is_err() {
                tokio::time::sleep((token.first / 6).clamp(RENEW_MIN, RENEW_PAUSE)).await;
            }
        }
    }

    /// Reads a secret; with a new login, should the token be no good any more.
    async fn read(&self, mount: &str, path: &str) -> Result<Fetched, FetchError> {
        let token = self.living().await?;
        match self.read_with(&token, mount, path).await {
            Err(FetchError::Denied { .. }) if self.worth_a_login(&token).await => {
                let token = self.log_in(Some(&token)).await?;
                self.read_with(&token, mount, path).await
            }
            other => other,
        }
    }

    async fn read_with(
        &self,
        token: &Token,
        mount: &str,
        path: &str,
    ) -> Result<Fetched, FetchError> {
        let request = ReadSecretRequest::builder().mount(mount).path(path).build();
        let request = request.map_err(|_| self.http.garbage("the request cannot be made"))?;
        let answer = self.http.ask(Some(&token.secret), request).await?;
        let path = format!("{mount}/data/{path}");
        match answer.status {
            StatusCode::FORBIDDEN => return Err(FetchError::Denied { path }),
            // A deleted version is 404 with the data of a success; a missing one has only errors.
            StatusCode::NOT_FOUND => {
                let gone = self.http.parse::<kv::Read>(&answer).ok().and_then(|a| a.data);
                return Err(match gone.map(kv::Read::into_parts) {
                    Some((version, _)) => FetchError::Deleted { path, version },
                    None => FetchError::NotFound { path },
                });
            }
            status if !status.is_success() => return Err(self.http.failed(status)),
            _ => {}
        }
        let data = self.http.parse::<kv::Read>(&answer)?.data;
        match data.map(kv::Read::into_parts) {
            Some((_, Some(fetched))) => Ok(fetched),
            Some((version, None)) => Err(FetchError::Deleted { path, version }),
            None => Err(self.http.garbage("it holds no data")),
        }
    }

    /// Whether what this token was denied might be allowed to a new one.
    async fn worth_a_login(&self, token: &Token) -> bool {
        let old = self.clock.now().saturating_duration_since(token.since) > TOKEN_OLD;
        old || matches!(self.look_up(&token.secret).await, Ok(None))
    }

    /// The token, or a new one.
    async fn living(&self) -> Result<Arc<Token>, FetchError> {
        match self.current() {
            Some(token) => Ok(token),
            None => self.log_in(None).await,
        }
    }

    fn current(&self) -> Option<Arc<Token>> {
        let now = self.clock.now();
        let token = self.token.borrow().clone();
        token.filter(|token| token.life.as_ref().is_none_or(|life| now < life.ends))
    }

    /// Renews a token, or logs in anew where that is over.
    async fn prolong(&self, token: &Arc<Token>) -> Result<(), FetchError> {
        if token.life.as_ref().is_some_and(|life| life.renewable)
            && let Some(auth) = self.renew(token).await?
        {
            let ttl = Duration::from_secs(auth.lease_duration);
            self.adopt(&token.secret, Some(ttl), auth.renewable, Some(token));
            // Near its maximal life a renewal adds less and less.
            if ttl >= token.first / 2 || !self.is_approle() {
                return Ok(());
            }
        }
        // The old token stays until there is a new one.
        let current = self.token.borrow().clone();
        self.log_in(current.as_ref()).await.map(drop)
    }

    /// `None` when it is refused: the token has ended.
    async fn renew(&self, token: &Token) -> Result<Option<AuthInfo>, FetchError> {
        let request = RenewTokenSelfRequest::builder().build();
        let request = request.map_err(|_| self.http.garbage("the request cannot be made"))?;
        let answer = self.http.ask(Some(&token.secret), request).await?;
        match answer.status {
            StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => Ok(None),
            _ => self.auth(&answer).map(Some),
        }
    }

    /// A new token in place of `old`, unless someone else got one meanwhile.
    async fn log_in(&self, old: Option<&Arc<Token>>) -> Result<Arc<Token>, FetchError> {
        let mut login = self.login.lock().await;
        if let Some(token) = self.current()
            && old.is_none_or(|old| !Arc::ptr_eq(old, &token))
        {
            return Ok(token);
        }
        let input = self.input().await?;
        let now = self.clock.now();
        if let Some((with, at, error)) = &login.refused
            && *with == input
            && now.saturating_duration_since(*at) < LOGIN_PAUSE
        {
            return Err(error.clone());
        }
        match self.log_in_with(&input, &mut login).await {
            Ok(token) => {
                login.refused = None;
                Ok(token)
            }
            Err(error) => {
                if matches!(error, FetchError::Login(_)) {
                    login.refused = Some((input, now, error.clone()));
                }
                Err(error)
            }
        }
    }

    async fn log_in_with(
        &self,
        input: &Secret,
        login: &mut Login,
    ) -> Result<Arc<Token>, FetchError> {
        let VaultAuth::AppRole { mount, role_id, secret_id_file, wrapped } = &self.settings.auth
        else {
            let Some(looked) = self.look_up(input).await? else {
                return Err(LoginError::Token(self.described()).into());
            };
            let ttl = looked.expire_time.map(|_| Duration::from_secs(looked.ttl));
            return Ok(self.adopt(input, ttl, looked.renewable, None));
        };
        let secret_id =
            if *wrapped { self.unwrap(input, secret_id_file, login).await? } else { input.clone() };
        let request = LoginWithApproleRequest::builder()
            .mount(mount)
            .role_id(role_id)
            .secret_id(secret_id.expose())
            .build()
            .map_err(|_| self.http.garbage("the request cannot be made"))?;
        let answer = self.http.ask(None, request).await?;
        match answer.status {
            StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let (mount, file) = (mount.clone(), secret_id_file.clone());
                return Err(LoginError::Refused { mount, file }.into());
            }
            StatusCode::NOT_FOUND => {
                return Err(FetchError::NotFound { path: format!("auth/{mount}/login") });
            }
            _ => {}
        }
        let auth = self.auth(&answer)?;
        let token = self.usable(Secret::new(auth.client_token))?;
        // A login's token that does not end has a lease of nothing.
        let ttl = Some(Duration::from_secs(auth.lease_duration)).filter(|ttl| !ttl.is_zero());
        Ok(self.adopt(&token, ttl, auth.renewable, None))
    }

    /// The secret id in a wrapping token. A second time it is remembered.
    async fn unwrap(
        &self,
        wrapping: &Secret,
        file: &Path,
        login: &mut Login,
    ) -> Result<Secret, FetchError> {
        if let Some((known, secret_id)) = &login.unwrapped
            && known == wrapping
        {
            return Ok(secret_id.clone());
        }
        let request = UnwrapRequest { token: None };
        let answer = self.http.ask(Some(wrapping), request).await?;
        match answer.status {
            StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => {
                return Err(LoginError::Unwrap(file.into()).into());
            }
            status if !status.is_success() => return Err(self.http.failed(status)),
            _ => {}
        }
        let found = self.http.parse::<kv::Unwrapped>(&answer)?.data;
        let found = found.ok_or_else(|| self.http.garbage("it holds no secret id"))?.into_secret();
        login.unwrapped = Some((wrapping.clone(), found.clone()));
        Ok(found)
    }

    /// What a token says of itself; `None` when it is refused.
    async fn look_up(&self, token: &Secret) -> Result<Option<kv::Looked>, FetchError> {
        let request = LookupTokenSelfRequest::builder().build();
        let request = request.map_err(|_| self.http.garbage("the request cannot be made"))?;
        let answer = self.http.ask(Some(token), request).await?;
        match answer.status {
            StatusCode::FORBIDDEN => Ok(None),
            status if !status.is_success() => Err(self.http.failed(status)),
            _ => {
                let looked = self.http.parse::<kv::Looked>(&answer)?.data;
                looked.map(Some).ok_or_else(|| self.http.garbage("it holds no data"))
            }
        }
    }

    fn auth(&self, answer: &Answer) -> Result<AuthInfo, FetchError> {
        if !answer.status.is_success() {
            return Err(self.http.failed(answer.status));
        }
        let auth = self.http.parse::<()>(answer)?.auth;
        auth.ok_or_else(|| self.http.garbage("it holds no token"))
    }

    /// From now on this is the token; without `ttl` for ever. `before` is what it was when it is
    /// the same one renewed.
    fn adopt(
        &self,
        secret: &Secret,
        ttl: Option<Duration>,
        renewable: bool,
        before: Option<&Token>,
    ) -> Arc<Token> {
        let now = self.clock.now();
        let ttl = ttl.map(|ttl| ttl.min(LIFE_MAX));
        let life = ttl.map(|ttl| Life {
            renewable,
            renew_at: now + ttl * 2 / 3,
            ends: now + ttl,
            ends_wall: self.clock.wall().after(ttl),
        });
        let ends = life.as_ref().map(|life| life.ends_wall);
        let (since, first) = before
            .map_or_else(|| (now, ttl.unwrap_or_default()), |before| (before.since, before.first));
        let token = Arc::new(Token { secret: secret.clone(), since, first, life });
        self.token.send_replace(Some(Arc::clone(&token)));
        let address = self.http.address();
        event::VaultToken { address, renewed: before.is_some(), ends }.emit();
        token
    }

    fn is_approle(&self) -> bool {
        matches!(self.settings.auth, VaultAuth::AppRole { .. })
    }

    /// The secret id, wrapping token or token, as it is now.
    async fn input(&self) -> Result<Secret, FetchError> {
        let (auth, what) = (self.settings.auth.clone(), self.described());
        let read = tokio::task::spawn_blocking(move || match &auth {
            VaultAuth::TokenFile(path) => parts::file(path),
            VaultAuth::TokenEnvironment(name) => parts::variable(name),
            VaultAuth::AppRole { secret_id_file, .. } => parts::file(secret_id_file),
        });
        let read = read.await.unwrap_or(Err(PartError::Value {
            place: what,
            why: "cannot be read: the program stops",
        }));
        let what = if self.is_approle() { "secret id" } else { "token" };
        let input = read.map_err(|source| LoginError::Input { what, source })?;
        self.usable(input)
    }

    /// Only what fits in a header: vaultrs panics on other tokens.
    fn usable(&self, token: Secret) -> Result<Secret, FetchError> {
        let why = match token.expose() {
            "" => "is empty",
            text if HeaderValue::from_str(text).is_err() || text.contains(' ') => {
                "has blanks, line breaks or other characters that it can't have"
            }
            _ => return Ok(token),
        };
        let source = PartError::Value { place: self.described(), why };
        let what = if self.is_approle() { "secret id" } else { "token" };
        Err(LoginError::Input { what, source }.into())
    }

    /// Where the login comes from.
    fn described(&self) -> String {
        match &self.settings.auth {
            VaultAuth::TokenFile(path) => format!("the token in {}", path.display()),
            VaultAuth::TokenEnvironment(name) => format!("the token in ${name}"),
            VaultAuth::AppRole { secret_id_file, .. } => {
                format!("the secret id in {}", secret_id_file.display())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{ManualClock, Timestamp};

    #[test]
    fn no_life_that_vault_may_tell_of_stops_the_program() {
        let clock = Arc::new(ManualClock::new(Timestamp::from_millis(1_795_252_321_431)));
        let settings = VaultSettings {
            address: "http://127.0.0.1:8200".into(),
            namespace: None,
            ca_file: None,
            auth: VaultAuth::TokenEnvironment("VAULT_TOKEN".into()),
            timeout: Duration::from_secs(1),
        };
        let vault = Vault::new(&settings, Arc::clone(&clock) as _).unwrap();
        let second = Duration::from_secs(1);
        for (ttl, lives) in [
            (LIFE_MAX.saturating_sub(second), LIFE_MAX.saturating_sub(second)),
            (LIFE_MAX, LIFE_MAX),
            (LIFE_MAX + second, LIFE_MAX),
            (Duration::from_secs(u64::MAX), LIFE_MAX),
        ] {
            let token = vault.adopt(&Secret::new("hvs.x".into()), Some(ttl), true, None);
            let life = token.life.as_ref().unwrap();
            assert_eq!(life.ends.duration_since(clock.now()), lives, "{ttl:?}");
            assert!(life.renew_at < life.ends);
        }
    }
}
