//! `check-config --probe`: where each value of an upstream comes from, and whether its secret can
//! be read. Never what is secret in it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::table::table;
use super::{Failure, exit, format};
use crate::clock::{SystemClock, Timestamp};
use crate::config::{Config, Ses, Upstream, UpstreamKind};
use crate::secret::{Credentials, Place};
use crate::secrets::{self, Given, SecretState, SecretStatus, Source};
use crate::upstream::smtp::Settings;

/// What was found.
#[derive(Serialize)]
pub(super) struct Origins {
    values: Vec<Origin>,
    secrets: Vec<SecretStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vault: Option<VaultAnswer>,
    /// What is missing, and what to do.
    problems: Vec<String>,
    #[serde(skip)]
    code: u8,
}

/// A value and where it comes from.
#[derive(Serialize)]
struct Origin {
    upstream: String,
    key: &'static str,
    value: Option<String>,
    from: String,
}

/// How Vault is.
#[derive(Serialize)]
struct VaultAnswer {
    address: String,
    /// Whether it let us in.
    answered: bool,
    /// When our token ends.
    token_expires: Option<Timestamp>,
}

impl Origins {
    /// Reads every secret once.
    pub(super) async fn find(config: &Config) -> Result<Self, Failure> {
        let secrets = secrets::try_once(&config.secrets, Arc::new(SystemClock)).await;
        let secrets = secrets.map_err(|e| Failure::new(exit::CONFIG, e.to_string()))?;
        let status = secrets.status();
        let read = status.iter().map(|s| {
            let channel = secrets.channel(&s.name);
            (s.name.clone(), (s, channel.and_then(|channel| channel.borrow().clone())))
        });
        let finder = Finder { config, read: read.collect() };
        let values: Vec<Origin> = config.upstreams.iter().flat_map(|u| finder.values(u)).collect();
        let homeless = finder.homeless(&values);
        let failed: Vec<String> = status.iter().filter_map(|s| finder.failed(s)).collect();
        let code = match (homeless.is_empty(), failed.is_empty()) {
            (false, _) => exit::CONFIG,
            (true, false) => exit::UNAVAILABLE,
            (true, true) => exit::OK,
        };
        let problems = homeless.into_iter().chain(failed).chain(finder.left_out()).collect();
        let vault = finder.vault();
        drop(finder);
        Ok(Self { values, secrets: status, vault, problems, code })
    }

    /// What the command ends with.
    pub(super) const fn code(&self) -> u8 {
        self.code
    }

    /// What is missing, and what to do.
    pub(super) fn problems(&self) -> &[String] {
        &self.problems
    }

    /// Tables for people.
    pub(super) fn lines(&self, now: Timestamp) -> Vec<String> {
        let dash = || "-".to_owned();
        let value = |o: &Origin| {
            let value = o.value.clone().unwrap_or_else(dash);
            [o.upstream.clone(), o.key.to_owned(), value, o.from.clone()]
        };
        let secret = |s: &SecretStatus| {
            let version = s.source_version.map_or_else(dash, |version| version.to_string());
            [s.name.clone(), s.location.clone(), version, s.state.word().to_owned()]
        };
        let values: Vec<_> = self.values.iter().map(value).collect();
        let mut lines = table(["UPSTREAM", "KEY", "VALUE", "FROM"], &values);
        if !self.secrets.is_empty() {
            let secrets: Vec<_> = self.secrets.iter().map(secret).collect();
            lines.extend(table(["SECRET", "FROM", "VERSION", "STATE"], &secrets));
        }
        lines.extend(self.vault.as_ref().map(|vault| vault.line(now)));
        lines
    }
}

impl VaultAnswer {
    fn line(&self, now: Timestamp) -> String {
        let Self { address, answered, token_expires } = self;
        match (answered, token_expires) {
            (false, _) => format!("Vault at {address} gave nothing"),
            (true, None) => format!("Vault at {address} answered; our token does not end"),
            (true, Some(ends)) => {
                let left = format::age(ends.since(now));
                format!("Vault at {address} answered; our token lives for {left}")
            }
        }
    }
}

struct Finder<'a> {
    config: &'a Config,
    /// The secrets that were tried, by name, and what they say.
    read: BTreeMap<String, (&'a SecretStatus, Option<Arc<Credentials>>)>,
}

impl Finder<'_> {
    fn values(&self, upstream: &Upstream) -> Vec<Origin> {
        let found = match &upstream.kind {
            UpstreamKind::Smtp(smtp) => self.smtp(upstream, smtp),
            UpstreamKind::Ses(ses) => self.ses(upstream, ses),
            UpstreamKind::Maildir(_) => Vec::new(),
        };
        let origin =
            |(key, value, from)| Origin { upstream: upstream.name.clone(), key, value, from };
        found.into_iter().map(origin).collect()
    }

    fn smtp(&self, upstream: &Upstream, smtp: &Settings) -> Vec<Found> {
        let login = self.login(upstream);
        let nothing = Place::default();
        let place = login.map_or(&nothing, |login| &login.place);
        let target = smtp.target(Some(place));
        let from = |key, part, said: bool| self.from(upstream, key, part, said);
        // What is not known yet is the secret's to say.
        let open = login.is_none() && upstream.secret.is_some() && target.is_none();
        let host = target.as_ref().map(|target| target.host.clone());
        let port = target.as_ref().map(|target| target.port.to_string());
        let tls = target.as_ref().map(|target| target.tls.word().to_owned());
        let port_said = smtp.port.is_none() && (open || place.port.is_some());
        let tls_said = smtp.tls.is_none() && (open || place.use_tls.is_some());
        let host_from = if host.is_some() || open {
            from("host", "host", open || place.host.is_some())
        } else {
            "nowhere".to_owned()
        };
        let mut found = vec![
            ("host", host, host_from),
            ("port", port, from("port", "port", port_said)),
            ("tls", tls, from("tls", "use_tls", tls_said)),
        ];
        if smtp.auth_required {
            found.push(self.user(upstream));
        }
        if let Some(sender) = &place.from {
            let from = format!("{}; not used for SMTP", self.secret(upstream, "from"));
            found.push(("from", Some(sender.clone()), from));
        }
        found
    }

    fn ses(&self, upstream: &Upstream, ses: &Ses) -> Vec<Found> {
        let chain = || "the AWS chain: environment, profile, role".to_owned();
        let login = self.login(upstream);
        let said = login.and_then(|login| login.place.region.clone());
        let region = match (&ses.settings.region, said) {
            (Some(region), _) => ("region", Some(region.clone()), CONFIGURATION.to_owned()),
            (None, Some(region)) => ("region", Some(region), self.secret(upstream, "region")),
            (None, None) if login.is_none() && upstream.secret.is_some() => {
                ("region", None, self.secret(upstream, "region"))
            }
            (None, None) => ("region", None, chain()),
        };
        let user =
            if upstream.secret.is_some() { self.user(upstream) } else { ("login", None, chain()) };
        let mut found = vec![region, user];
        let policy = &ses.settings.sender;
        let said = login.and_then(|login| login.place.from.clone());
        let from = || self.secret(upstream, "from");
        match (&policy.default, said) {
            (Some(sender), _) => {
                found.push(("from", Some(sender.clone()), CONFIGURATION.to_owned()));
            }
            (None, Some(sender)) if policy.filled(login).default.is_some() => {
                found.push(("from", Some(sender), from()));
            }
            (None, Some(sender)) => {
                let from = format!("{}; not used: sender.allowed has it not", from());
                found.push(("from", Some(sender), from));
            }
            (None, None) => {}
        }
        found
    }

    fn user(&self, upstream: &Upstream) -> Found {
        let login = self.login(upstream);
        let user = login.map(|login| match login.username.as_str() {
            "" => "(none)".to_owned(),
            name => name.to_owned(),
        });
        ("login", user, self.secret(upstream, "username"))
    }

    /// What a secret says, as far as it was read.
    fn login(&self, upstream: &Upstream) -> Option<&Credentials> {
        self.read.get(upstream.secret.as_ref()?)?.1.as_deref()
    }

    /// Where the value of a key comes from; `said`: the secret fills it in.
    fn from(&self, upstream: &Upstream, key: &str, part: &str, said: bool) -> String {
        if self.config.is_given(&format!("upstreams.{}.{key}", upstream.name)) {
            CONFIGURATION.to_owned()
        } else if said {
            self.secret(upstream, part)
        } else {
            "default".to_owned()
        }
    }

    /// Where a part of an upstream's secret comes from.
    fn secret(&self, upstream: &Upstream, part: &str) -> String {
        let Some(name) = &upstream.secret else { return "nowhere".to_owned() };
        let given = self.config.secrets.secrets.get(name);
        let status = self.read.get(name).map(|(status, _)| *status);
        match given.map(|given| (&given.source, &given.fallback)) {
            Some((Source::Parts(parts), _)) => match parts.get(part) {
                Some(Given::File(path)) => path.display().to_string(),
                Some(Given::Environment(variable)) => format!("${variable}"),
                Some(Given::Literal(_)) | None => CONFIGURATION.to_owned(),
            },
            Some((_, fallback)) if status.is_some_and(|s| s.state == SecretState::Fallback) => {
                let variable = fallback.get(part).map_or("?", String::as_str);
                format!("${variable}, until secret {name} is read")
            }
            _ => match status.and_then(|status| status.source_version) {
                Some(version) => format!("secret {name}, version {version}"),
                None => format!("secret {name}"),
            },
        }
    }

    /// The upstreams that would connect nowhere although their secret was read.
    fn homeless(&self, values: &[Origin]) -> Vec<String> {
        let no_host = values.iter().filter(|o| o.key == "host" && o.value.is_none());
        let upstreams = no_host.filter_map(|o| self.config.upstream(&o.upstream));
        let read = upstreams.filter(|upstream| self.login(upstream).is_some());
        let say = |upstream: &Upstream| {
            let (name, secret) = (&upstream.name, upstream.secret.as_deref().unwrap_or("?"));
            format!(
                "upstream {name} has no host: write host in [upstreams.{name}], or into secret {secret}"
            )
        };
        read.map(say).collect()
    }

    /// Why a secret could not be read, and what comes of it.
    fn failed(&self, status: &SecretStatus) -> Option<String> {
        let error = status.last_error.as_ref()?;
        let users = self.config.upstreams.iter();
        let users = users.filter(|upstream| upstream.secret.as_ref() == Some(&status.name));
        let users: Vec<&str> = users.map(|upstream| upstream.name.as_str()).collect();
        let then = match status.state {
            SecretState::Fallback => "until then the environment is used".to_owned(),
            _ if users.is_empty() => "nothing waits for it".to_owned(),
            _ => format!("until then mail waits for upstream {}", users.join(", ")),
        };
        Some(format!("secret {}: {error}; {then}", status.name))
    }

    /// The secrets that were not tried.
    fn left_out(&self) -> Vec<String> {
        let all = self.config.secrets.secrets.keys();
        let left = all.filter(|name| !self.read.contains_key(*name));
        left.map(|name| format!("secret {name} {}", secrets::WRAPPED)).collect()
    }

    fn vault(&self) -> Option<VaultAnswer> {
        let vault = self.config.secrets.vault.as_ref()?;
        let inside = self.read.iter().filter(|(name, _)| {
            let secret = self.config.secrets.secrets.get(*name);
            secret.is_some_and(|secret| matches!(secret.source, Source::Vault { .. }))
        });
        let inside: Vec<&SecretStatus> = inside.map(|(_, (status, _))| *status).collect();
        let token_expires = inside.iter().find_map(|status| status.vault_token_expires);
        let read = inside.iter().any(|status| status.last_error.is_none());
        let answered = read || token_expires.is_some();
        (!inside.is_empty()).then(|| VaultAnswer {
            address: vault.address.clone(),
            answered,
            token_expires,
        })
    }
}

/// A key, its value and where that comes from.
type Found = (&'static str, Option<String>, String);

const CONFIGURATION: &str = "configuration";
