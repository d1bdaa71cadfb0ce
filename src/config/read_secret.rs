//! Reading `[vault]`, `[secrets.NAME]` and the `auth` of upstreams: where passwords come from.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use super::document::Place;
use super::read::known_name;
use super::read_upstream::is_name;
use super::section::{Section, words};
use super::units::{hours, mins, secs};
use super::values::Url;
use super::{files, section};
use crate::secrets::{Fields, Given, SecretSettings, Settings, Source, VaultAuth, VaultSettings};

/// A part of a secret, and the keys that say where it is.
pub(super) struct Part {
    /// What the program calls it.
    means: &'static str,
    /// The key for the value itself.
    literal: &'static str,
    /// Whether the value may stand in the file.
    public: bool,
    file: &'static str,
    environment: &'static str,
    /// Whether a login needs it.
    needed: bool,
}

/// What SMTP AUTH needs.
pub(super) const SMTP: [Part; 2] = [
    Part {
        means: "username",
        literal: "username",
        public: true,
        file: "username_file",
        environment: "username_env",
        needed: true,
    },
    Part {
        means: "password",
        literal: "password",
        public: false,
        file: "password_file",
        environment: "password_env",
        needed: true,
    },
];

/// What AWS needs.
pub(super) const AWS: [Part; 3] = [
    Part {
        means: "username",
        literal: "access_key_id",
        public: true,
        file: "access_key_id_file",
        environment: "access_key_id_env",
        needed: true,
    },
    Part {
        means: "password",
        literal: "secret_access_key",
        public: false,
        file: "secret_access_key_file",
        environment: "secret_access_key_env",
        needed: true,
    },
    Part {
        means: "session_token",
        literal: "session_token",
        public: false,
        file: "session_token_file",
        environment: "session_token_env",
        needed: false,
    },
];

/// What else the environment may say: the key, and what it means.
const ELSEWHERE: [(&str, &str); 5] = [
    ("host_env", "host"),
    ("port_env", "port"),
    ("use_tls_env", "use_tls"),
    ("from_env", "from"),
    ("region_env", "region"),
];

/// The keys of `fields` and `fallback_env`, and what they mean.
const FIELDS: [(&str, &str); 10] = [
    ("username", "username"),
    ("password", "password"),
    ("access_key_id", "username"),
    ("secret_access_key", "password"),
    ("session_token", "session_token"),
    ("host", "host"),
    ("port", "port"),
    ("use_tls", "use_tls"),
    ("from", "from"),
    ("region", "region"),
];

/// The secrets that upstreams may name, while the upstreams are read.
pub(super) struct Secrets<'a> {
    settings: Settings,
    /// Every `[secrets.NAME]`, also a wrong one, and where it begins.
    sections: Vec<(String, Place)>,
    used: BTreeSet<String>,
    reading: &'a section::Reading<'a>,
}

/// How an upstream logs in.
pub(super) struct Login {
    /// The secret's name.
    pub(super) secret: String,
    /// What it may say of the place it is for; `None`: anything.
    gives: Option<BTreeSet<String>>,
}

impl Login {
    /// Whether the secret may say what the upstream's own keys leave out.
    pub(super) fn gives(&self, what: &str) -> bool {
        self.gives.as_ref().is_none_or(|gives| gives.contains(what))
    }
}

/// Reads `[vault]` and `[secrets]`.
pub(super) fn secrets<'a>(top: &mut Section<'a>) -> Secrets<'a> {
    let mut section = top.section("vault");
    let refresh = if top.has("vault") { refresh(&mut section, mins(5)) } else { mins(5) };
    let vault = if top.has("vault") { vault(section) } else { None };
    let mut all = Secrets {
        settings: Settings { vault, secrets: BTreeMap::new() },
        sections: Vec::new(),
        used: BTreeSet::new(),
        reading: top.reading,
    };
    let mut from_vault = false;
    for (name, mut section) in top.named_sections("secrets") {
        if !is_name(&name) {
            let message = format!("secrets: \"{name}\" is no name");
            let cure = "write letters, digits, - and _".to_owned();
            section.reading.error(&section.place, message, cure);
        }
        from_vault |= section.has("path");
        if section.has("path") && !top.has("vault") {
            let cure = "write [vault] with address = \"https://…:8200\" and auth = { … }";
            section.error("path", "needs a [vault]", cure);
        }
        if let Some(secret) = secret(&mut section, refresh) {
            all.settings.secrets.insert(name.clone(), secret);
        }
        all.sections.push((name, section.place.clone()));
        section.finish();
    }
    if top.has("vault") && !from_vault {
        let cure = "write [secrets.NAME] with path = \"secret/keybuzz/smtp\", or leave vault out";
        top.warning("vault", "holds no secret of ours", cure);
    }
    all
}

impl Secrets<'_> {
    /// Reads the `auth` of an upstream: the name of a secret, or the parts of one.
    pub(super) fn login(
        &mut self,
        upstream: &str,
        auth: &mut Section<'_>,
        parts: &[Part],
    ) -> Option<Login> {
        let name: Option<String> = auth.optional("secret");
        let given = self::parts(auth, parts, !auth.has("secret"));
        if auth.has("secret") {
            if let Some(part) = given.keys().next() {
                let message = format!("{} has both a secret and a {part}", auth.path);
                auth.reading.error(&auth.place, message, "keep one of them".to_owned());
            }
            return name.map(|name| self.named(name, auth));
        }
        if let Some((name, _)) = self.sections.iter().find(|(name, _)| name == upstream) {
            let message = format!("{} is a second secret \"{name}\"", auth.path);
            let cure =
                format!("write auth = {{ secret = \"{name}\" }}, or rename [secrets.{name}]");
            auth.reading.error(&auth.place, message, cure);
            return None;
        }
        let gives = Some(given.keys().cloned().collect());
        let secret = SecretSettings {
            source: Source::Parts(given),
            refresh: PARTS_REFRESH,
            fields: Fields::new(),
            fallback: BTreeMap::new(),
        };
        self.settings.secrets.insert(upstream.into(), secret);
        self.used.insert(upstream.into());
        Some(Login { secret: upstream.into(), gives })
    }

    fn named(&mut self, name: String, auth: &Section<'_>) -> Login {
        let names: Vec<String> = self.sections.iter().map(|(name, _)| name.clone()).collect();
        if !names.contains(&name) {
            let cure = if names.is_empty() {
                format!("write [secrets.{name}]")
            } else {
                known_name(&name, &names)
            };
            auth.error("secret", format_args!("\"{name}\" is not known"), cure);
        }
        self.used.insert(name.clone());
        // A wrong or unknown one may be meant to say anything.
        let gives = match self.settings.secrets.get(&name).map(|secret| &secret.source) {
            Some(Source::Parts(parts)) => Some(parts.keys().cloned().collect()),
            Some(Source::Vault { .. }) | None => None,
        };
        Login { secret: name, gives }
    }

    /// All secrets, when every upstream has been read.
    pub(super) fn finish(self) -> Settings {
        for (name, place) in self.sections.iter().filter(|(name, _)| !self.used.contains(name)) {
            let message = format!("secrets.{name} is used by no upstream");
            let cure = format!("write auth = {{ secret = \"{name}\" }}, or leave it out");
            self.reading.warning(place, message, cure);
        }
        self.settings
    }
}

/// How often files are looked at, if nothing else is said: it costs nothing, and whoever changes one
/// looks for the effect.
const PARTS_REFRESH: Duration = Duration::from_secs(10);

fn refresh(section: &mut Section<'_>, default: Duration) -> Duration {
    section.within("refresh", default, secs(1)..=hours(24))
}

fn secret(section: &mut Section<'_>, default: Duration) -> Option<SecretSettings> {
    let source = source(section);
    let default = if section.has("path") { default } else { PARTS_REFRESH };
    let refresh = refresh(section, default);
    let mut texts = |key| {
        if section.has(key) && !section.has("path") {
            section.warning(key, "has no effect without path", "leave it out");
        }
        fields(section.section(key))
    };
    let (fields, fallback) = (texts("fields"), texts("fallback_env"));
    Some(SecretSettings { source: source?, refresh, fields, fallback })
}

fn source(section: &mut Section<'_>) -> Option<Source> {
    let by_path = section.has("path");
    let keys = |parts: &[Part]| {
        let given = |part: &Part| {
            [part.literal, part.file, part.environment].iter().any(|key| section.has(key))
        };
        parts.iter().any(given)
    };
    let (smtp, aws) = (keys(&SMTP), keys(&AWS));
    if !by_path && !smtp && !aws {
        let message = format!("{} says neither where it is nor what", section.path);
        let cure = "write path = \"secret/keybuzz/smtp\", or username = \"…\" and \
                    password_file = \"…\"";
        section.reading.error(&section.place, message, cure.to_owned());
    }
    if smtp && aws {
        let message = format!("{} is for both SMTP and AWS", section.path);
        section.reading.error(&section.place, message, "make two of it".to_owned());
    }
    let mut given = parts(section, &SMTP, smtp && !by_path);
    given.extend(parts(section, &AWS, aws && !by_path));
    for (key, means) in ELSEWHERE {
        given.extend(variable(section, key).map(|given| (means.to_owned(), given)));
    }
    let path: Option<String> = section.optional("path");
    let mount: Option<String> = section.optional("mount");
    if !by_path {
        return Some(Source::Parts(given));
    }
    if let Some(part) = given.keys().next() {
        let message = format!("{} has both a path and a {part}", section.path);
        let cure = "keep one of them; values for when Vault is away are in fallback_env";
        section.reading.error(&section.place, message, cure.to_owned());
    }
    kv_path(section, &path?, mount)
}

/// `secret/keybuzz/smtp`, or `keybuzz/smtp` in a mount that is named.
fn kv_path(section: &Section<'_>, written: &str, mount: Option<String>) -> Option<Source> {
    let parted = match mount {
        Some(mount) => Some((mount, written)),
        None => written.split_once('/').map(|(mount, path)| (mount.to_owned(), path)),
    };
    let is_path = |path: &str| path.split('/').all(|part| !matches!(part, "" | "." | ".."));
    let Some((mount, path)) = parted.filter(|(mount, path)| is_path(mount) && is_path(path)) else {
        let cure = "write the mount and the path in it: path = \"secret/keybuzz/smtp\"";
        section.error("path", format_args!("\"{written}\" is no path"), cure);
        return None;
    };
    if let Some((word, rest)) =
        path.split_once('/').filter(|(w, _)| matches!(*w, "data" | "metadata"))
    {
        let cure = format!("write {mount}/{rest}: KV version 2 adds {word}/ itself");
        section.error("path", format_args!("\"{written}\" holds {word}/"), cure);
        return None;
    }
    Some(Source::Vault { mount, path: path.into() })
}

/// The table of `fields` or `fallback_env`, by what its keys mean.
fn fields(mut section: Section<'_>) -> Fields {
    let mut fields = Fields::new();
    for (key, means) in FIELDS {
        let Some(text) = section.optional::<String>(key) else { continue };
        if text.is_empty() {
            section.error(key, "is empty", "write a name, or leave it out");
        }
        if fields.insert(means.into(), text).is_some() {
            section.error(key, format_args!("and {means} mean the same"), "keep one of them");
        }
    }
    section.finish();
    fields
}

/// The parts of a secret that are given, by what they mean.
fn parts(section: &mut Section<'_>, known: &[Part], needed: bool) -> BTreeMap<String, Given> {
    let mut given = BTreeMap::new();
    for part in known {
        let keys = [part.literal, part.file, part.environment];
        let mut keys = keys.into_iter().filter(|key| *key != part.literal || part.public);
        let literal = if part.public {
            section.optional(part.literal).map(Given::Literal)
        } else {
            refuse(section, part);
            None
        };
        let file = files::secret(section, part.file).map(Given::File);
        let environment = variable(section, part.environment);
        let here: Vec<&str> = keys.by_ref().filter(|key| section.has(key)).collect();
        match here.as_slice() {
            [] if needed && part.needed && !is_refused(section, part) => lacks(section, part),
            [first, second, ..] => {
                let message = format!("and {first} are both given");
                section.error(second, message, "keep one of them");
            }
            _ => {
                let one = literal.or(file).or(environment);
                given.extend(one.map(|one| (part.means.to_owned(), one)));
            }
        }
    }
    given
}

/// A value that must not stand in the file.
fn refuse(section: &mut Section<'_>, part: &Part) {
    let cure = format!(
        "write {} = \"$CREDENTIALS_DIRECTORY/NAME\" or {} = \"NAME\"",
        part.file, part.environment
    );
    section.refuse(part.literal, "must not stand in the configuration", &cure);
    if part.literal == "password" {
        section.refuse("pass", "must not stand in the configuration", &cure);
    }
}

fn is_refused(section: &Section<'_>, part: &Part) -> bool {
    !part.public && (section.has(part.literal) || section.has("pass"))
}

fn lacks(section: &Section<'_>, part: &Part) {
    let keys = if part.public {
        format!("{}, {} or {}", part.literal, part.file, part.environment)
    } else {
        format!("{} or {}", part.file, part.environment)
    };
    let message = format!("{} lacks {keys}", section.path);
    section.reading.error(&section.place, message, format!("add {keys}"));
}

/// The environment variable a key names.
fn variable(section: &mut Section<'_>, key: &'static str) -> Option<Given> {
    let name: String = section.optional(key)?;
    if !section.reading.environment.contains_key(&name) {
        let message = format!("cannot be checked: ${name} is not set here");
        section.warning(key, message, "it must be set where Postgate runs");
    }
    Some(Given::Environment(name))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    AppRole,
    Token,
}
words!(Method { "approle" => Self::AppRole, "token" => Self::Token });

fn vault(mut section: Section<'_>) -> Option<VaultSettings> {
    let address = section.required("address", "\"https://vault.internal:8200\"");
    if address.as_ref().is_some_and(Url::is_open) {
        let message = "would send passwords over the network in clear";
        section.warning("address", message, "write https://, with ca_file for an own authority");
    }
    let namespace = section.optional("namespace");
    let ca_file: Option<PathBuf> = files::existing(&mut section, "ca_file");
    if let Some(path) = &ca_file {
        files::check_certificates(&section, "ca_file", path);
    }
    let timeout = section.within("timeout", secs(5), Duration::from_millis(100)..=mins(1));
    if !section.has("auth") {
        let cure = "write auth = { method = \"approle\", role_id = \"…\", secret_id_file = \"…\" }";
        section.error("auth", "is missing", cure);
        section.finish();
        return None;
    }
    let auth = vault_auth(section.section("auth"));
    section.finish();
    Some(VaultSettings { address: address?.0, namespace, ca_file, auth: auth?, timeout })
}

fn vault_auth(mut section: Section<'_>) -> Option<VaultAuth> {
    let auth = match section.required("method", "\"approle\" or \"token\"") {
        Some(Method::AppRole) => app_role(&mut section),
        Some(Method::Token) => token(&mut section),
        // What the other keys should be is not known.
        None => return None,
    };
    section.finish();
    auth
}

fn app_role(section: &mut Section<'_>) -> Option<VaultAuth> {
    let role_id = section.required("role_id", "\"…\"");
    let cure = "write secret_id_file = \"$CREDENTIALS_DIRECTORY/vault-secret-id\"";
    section.refuse("secret_id", "must not stand in the configuration", cure);
    let refused = section.has("secret_id");
    let secret_id_file = files::secret(section, "secret_id_file");
    if !refused && !section.has("secret_id_file") {
        section.error("secret_id_file", "is missing", cure);
    }
    let mount = section.or("mount", "approle".to_owned());
    let wrapped = section.or("wrapped", false);
    Some(VaultAuth::AppRole { mount, role_id: role_id?, secret_id_file: secret_id_file?, wrapped })
}

fn token(section: &mut Section<'_>) -> Option<VaultAuth> {
    let cure = "write token_file = \"$CREDENTIALS_DIRECTORY/vault-token\" or \
                token_env = \"VAULT_TOKEN\"";
    section.refuse("token", "must not stand in the configuration", cure);
    let file = files::secret(section, "token_file").map(VaultAuth::TokenFile);
    let environment = match variable(section, "token_env") {
        Some(Given::Environment(name)) => Some(VaultAuth::TokenEnvironment(name)),
        _ => None,
    };
    match (section.has("token_file"), section.has("token_env")) {
        (true, true) => section.error("token_env", "and token_file are both given", "keep one"),
        (false, false) if !section.has("token") => {
            section.error("token_file", "is missing", cure);
        }
        _ => return file.or(environment),
    }
    None
}
