//! Secrets from a Vault that has the faults Vaults have, and from files.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test stops at the first thing that is not as it should be"
)]

#[path = "support/vault.rs"]
mod vault;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use postgate::clock::SystemClock;
use postgate::secret::Credentials;
use postgate::secrets::{
    Fields, Given, SecretSettings, SecretState, SecretStatus, Secrets, Settings, SettingsError,
    Source, VaultAuth, VaultSettings, WRAPPED, read_once, try_once,
};
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::watch;
use vault::{FakeVault, Fault};

/// What must never be seen.
const PLANTED: &str = "hunter2-planted";
const HOUR: Duration = Duration::from_hours(1);
/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(30);
const SMTP: &str = "secret/keybuzz/smtp";
const READ: &str = "GET /v1/secret/data/keybuzz/smtp";

/// A Vault with a role and a secret, and the settings to read it.
struct Place {
    vault: FakeVault,
    folder: TempDir,
    settings: Settings,
}

impl Place {
    async fn new() -> Self {
        Self::with(FakeVault::start().await, HOUR)
    }

    fn with(vault: FakeVault, ttl: Duration) -> Self {
        vault.role("role", "id-1", ttl, ttl * 2);
        vault.put(SMTP, login("relay", PLANTED));
        let folder = tempfile::tempdir().unwrap();
        let secret_id_file = private(&folder, "secret-id", "id-1\n");
        let auth = VaultAuth::AppRole {
            mount: vault::APPROLE.into(),
            role_id: "role".into(),
            secret_id_file,
            wrapped: false,
        };
        let vault_settings = VaultSettings {
            address: vault.address(),
            namespace: None,
            ca_file: None,
            auth,
            timeout: Duration::from_millis(500),
        };
        let secrets = BTreeMap::from([("smtp".to_owned(), in_vault("keybuzz/smtp"))]);
        let settings = Settings { vault: Some(vault_settings), secrets };
        Self { vault, folder, settings }
    }

    fn vault_settings(&mut self) -> &mut VaultSettings {
        self.settings.vault.as_mut().unwrap()
    }

    fn secret_id(&self, id: &str) {
        private(&self.folder, "secret-id", id);
    }

    fn wrapped(&mut self) {
        let VaultAuth::AppRole { wrapped, .. } = &mut self.vault_settings().auth else { panic!() };
        *wrapped = true;
    }

    fn start(&self) -> Secrets {
        Secrets::start(&self.settings, Arc::new(SystemClock)).unwrap()
    }
}

type Channel = watch::Receiver<Option<Arc<Credentials>>>;

fn login(user: &str, password: &str) -> serde_json::Value {
    json!({"user": user, "password": password})
}

fn in_vault(path: &str) -> SecretSettings {
    secret(Source::Vault { mount: "secret".into(), path: path.into() })
}

fn in_files(user: &str, password: &Path) -> SecretSettings {
    let parts = [
        ("username".to_owned(), Given::Literal(user.into())),
        ("password".to_owned(), Given::File(password.into())),
    ];
    secret(Source::Parts(parts.into()))
}

/// Read often, so that a test need not wait.
fn secret(source: Source) -> SecretSettings {
    let refresh = Duration::from_millis(20);
    SecretSettings { source, refresh, fields: Fields::new(), fallback: BTreeMap::new() }
}

/// A file as systemd's credentials are, replaced at once.
fn private(folder: &TempDir, name: &str, content: &str) -> PathBuf {
    let path = folder.path().join(name);
    let new = folder.path().join("new");
    fs::write(&new, content).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o400)).unwrap();
    fs::rename(&new, &path).unwrap();
    path
}

/// The credentials when they are these.
async fn has(channel: &mut Channel, password: &str) -> Arc<Credentials> {
    let wanted =
        |c: &Option<Arc<Credentials>>| c.as_ref().is_some_and(|c| c.password.expose() == password);
    let found = tokio::time::timeout(PATIENCE, channel.wait_for(wanted)).await;
    found.unwrap_or_else(|_| panic!("no {password} in time")).unwrap().clone().unwrap()
}

/// The status of the one secret when it is so.
async fn status(secrets: &Secrets, so: impl Fn(&SecretStatus) -> bool) -> SecretStatus {
    let end = Instant::now() + PATIENCE;
    loop {
        let now = secrets.status().remove(0);
        if so(&now) {
            return now;
        }
        assert!(Instant::now() < end, "it does not become so: {now:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn error_with(words: &'static str) -> impl Fn(&SecretStatus) -> bool {
    move |s| s.last_error.as_ref().is_some_and(|e| e.contains(words))
}

#[tokio::test]
async fn a_secret_is_read_with_its_version_after_an_approle_login() {
    let place = Place::new().await;
    place.vault.put(
        SMTP,
        json!({"SMTP_USER": "relay", "SMTP_PASS": PLANTED, "host": "mail.example", "port": 587,
            "use_tls": true, "default_from": "noreply@keybuzz.example"}),
    );
    let secrets = place.start();
    let found = has(&mut secrets.channel("smtp").unwrap(), PLANTED).await;
    assert_eq!((found.username.as_str(), found.version), ("relay", 1));
    let at = &found.place;
    assert_eq!(
        (at.host.as_deref(), at.port, at.use_tls),
        (Some("mail.example"), Some(587), Some(true))
    );
    assert_eq!(at.from.as_deref(), Some("noreply@keybuzz.example"));
    let now = status(&secrets, |s| s.state == SecretState::Current).await;
    assert_eq!((now.location.as_str(), now.source_version), ("vault secret/keybuzz/smtp", Some(2)));
    assert!(now.vault_token_expires.is_some() && now.last_success.is_some());
    let log = place.vault.log();
    assert_eq!(log[0].what, "POST /v1/auth/approle/login");
    assert_eq!(log[0].token, None, "no token goes along with a login");
    assert_eq!(place.vault.asked("login"), 1, "one login for all that follows");
}

#[tokio::test]
async fn a_new_version_is_told_and_one_that_says_the_same_is_not() {
    let place = Place::new().await;
    let secrets = place.start();
    let mut channel = secrets.channel("smtp").unwrap();
    has(&mut channel, PLANTED).await;
    place.vault.put(SMTP, login("relay", PLANTED));
    let now = status(&secrets, |s| s.source_version == Some(2)).await;
    assert_eq!(now.version, 1);
    place.vault.put(SMTP, login("relay", "new"));
    assert_eq!(has(&mut channel, "new").await.version, 2);
    assert_eq!(status(&secrets, |s| s.source_version == Some(3)).await.version, 2);
}

#[tokio::test]
async fn whatever_vault_does_the_last_good_value_is_kept() {
    let mut place = Place::new().await;
    place.vault_settings().timeout = Duration::from_millis(150);
    let elsewhere = FakeVault::start().await;
    let secrets = place.start();
    let mut channel = secrets.channel("smtp").unwrap();
    has(&mut channel, PLANTED).await;
    channel.borrow_and_update();
    let long = format!("{{\"data\":\"{}\"}}", "x".repeat(1024 * 1024));
    let leaky = format!("{{\"data\":{{\"data\":{{\"password\":\"{PLANTED}\"}},\"metadata\":7}}}}");
    for (fault, words) in [
        (Fault::Status(403), "denies reading secret/data/keybuzz/smtp; the policy"),
        (Fault::Status(404), "nothing at secret/data/keybuzz/smtp"),
        (Fault::Status(400), "failed with status 400"),
        (Fault::Status(500), "failed with status 500"),
        (Fault::Status(502), "failed with status 502"),
        (Fault::Status(503), "sealed"),
        (Fault::Status(429), "standby"),
        (Fault::Status(472), "standby"),
        (Fault::Body(b"<html>not Vault".to_vec()), "not the JSON"),
        (Fault::Body(b"{}".to_vec()), "not the JSON"),
        (Fault::Body(vec![0xff; 9]), "not the JSON"),
        (Fault::Body(leaky.into_bytes()), "not the JSON"),
        (Fault::Body(long.into_bytes()), "longer than a megabyte"),
        (Fault::Slow(PATIENCE), "no answer from Vault"),
        (Fault::Hang, "no answer from Vault"),
        (Fault::Drop, "cannot reach Vault"),
        (Fault::Redirect(elsewhere.address()), "redirect (307), which is not followed"),
    ] {
        place.vault.fault("keybuzz/smtp", fault.clone());
        let now = status(&secrets, error_with(words)).await;
        assert_eq!(now.state, SecretState::Kept, "{fault:?}");
        assert!(!format!("{now:?}").contains(PLANTED), "{now:?}");
        place.vault.heal();
        status(&secrets, |s| s.state == SecretState::Current).await;
    }
    assert!(!channel.has_changed().unwrap(), "nobody was told of all that");
    assert!(elsewhere.log().is_empty(), "the token went elsewhere");
    place.vault.put(SMTP, login("relay", "new"));
    assert_eq!(has(&mut channel, "new").await.version, 2);
}

#[tokio::test]
async fn a_sealed_or_stopped_vault_is_waited_for() {
    let place = Place::new().await;
    let secrets = place.start();
    let mut channel = secrets.channel("smtp").unwrap();
    has(&mut channel, PLANTED).await;
    place.vault.seal(true);
    status(&secrets, error_with("unseal it")).await;
    place.vault.seal(false);
    place.vault.standby(true);
    status(&secrets, error_with("name the active node")).await;
    place.vault.standby(false);
    place.vault.stop().await;
    let now = status(&secrets, error_with("cannot reach Vault")).await;
    assert_eq!(now.state, SecretState::Kept);
    place.vault.put(SMTP, login("relay", "new"));
    place.vault.resume();
    has(&mut channel, "new").await;
}

#[tokio::test]
async fn without_vault_at_the_start_the_channel_waits_and_the_environment_may_help() {
    let mut place = Place::new().await;
    place.vault.stop().await;
    let mut helped = in_vault("keybuzz/smtp");
    helped.fallback = BTreeMap::from([
        ("username".to_owned(), "CARGO_PKG_NAME".to_owned()),
        ("password".to_owned(), "CARGO_PKG_VERSION".to_owned()),
    ]);
    place.settings.secrets.insert("zz-helped".into(), helped);
    let secrets = place.start();
    secrets.tried().await;
    let mut channel = secrets.channel("smtp").unwrap();
    assert!(channel.borrow().is_none());
    assert_eq!(secrets.status()[0].state, SecretState::Missing);
    assert_eq!(secrets.status()[1].state, SecretState::Fallback);
    let helped = secrets.channel("zz-helped").unwrap().borrow().clone().unwrap();
    assert_eq!((helped.username.as_str(), helped.version), ("postgate", 1));

    place.vault.resume();
    assert_eq!(has(&mut channel, PLANTED).await.version, 1);
    assert_eq!(has(&mut secrets.channel("zz-helped").unwrap(), PLANTED).await.version, 2);
    place.vault.stop().await;
    status(&secrets, |s| s.state == SecretState::Kept).await;
    has(&mut secrets.channel("zz-helped").unwrap(), PLANTED).await;
}

#[tokio::test]
async fn a_deleted_version_is_not_an_empty_password() {
    let place = Place::new().await;
    let secrets = place.start();
    let mut channel = secrets.channel("smtp").unwrap();
    has(&mut channel, PLANTED).await;
    place.vault.delete_latest(SMTP);
    status(&secrets, error_with("latest version (1) of secret/data/keybuzz/smtp")).await;
    place.vault.put(SMTP, json!({}));
    status(&secrets, error_with("has no username: looked for username, user, ")).await;
    place.vault.put(SMTP, json!({"user": "relay", "password": ""}));
    status(&secrets, error_with("field password is empty")).await;
    place.vault.put(SMTP, json!({"user": "relay", "password": [PLANTED]}));
    status(&secrets, error_with("it has user, password (no text)")).await;
    place.vault.delete_all(SMTP);
    let now = status(&secrets, error_with("nothing at secret/data/keybuzz/smtp")).await;
    assert_eq!(now.state, SecretState::Kept);
    has(&mut channel, PLANTED).await;
}

#[tokio::test]
async fn a_token_is_renewed_in_time_and_replaced_when_that_ends() {
    let place = Place::with(FakeVault::start().await, Duration::from_secs(2));
    let secrets = place.start();
    has(&mut secrets.channel("smtp").unwrap(), PLANTED).await;
    let vault = &place.vault;
    let all = async {
        vault.until_asked("renew-self", 1).await;
        // Its maximal life is twice its life.
        vault.until_asked("login", 2).await;
        vault.until_asked("renew-self", 3).await;
    };
    tokio::time::timeout(PATIENCE, all).await.unwrap();
    let refused = vault.log().into_iter().filter(|a| a.status == 403).count();
    assert_eq!(refused, 0, "no token was used beyond its life");
    assert_eq!(secrets.status()[0].state, SecretState::Current);
}

#[tokio::test]
async fn a_revoked_token_is_replaced_at_once() {
    let place = Place::new().await;
    let secrets = place.start();
    let mut channel = secrets.channel("smtp").unwrap();
    has(&mut channel, PLANTED).await;
    place.vault.revoke_all();
    place.vault.put(SMTP, login("relay", "new"));
    has(&mut channel, "new").await;
    assert_eq!(place.vault.asked("login"), 2);
}

#[tokio::test]
async fn a_denied_path_is_no_reason_to_log_in_again_and_again() {
    let place = Place::new().await;
    place.vault.deny(SMTP, true);
    let secrets = place.start();
    status(&secrets, error_with("denies reading")).await;
    tokio::time::timeout(PATIENCE, place.vault.until_asked(READ, 10)).await.unwrap();
    assert_eq!(place.vault.asked("login"), 1);
    place.vault.deny(SMTP, false);
    has(&mut secrets.channel("smtp").unwrap(), PLANTED).await;
}

#[tokio::test]
async fn a_refused_secret_id_is_tried_once_and_a_new_one_in_its_file_at_once() {
    let place = Place::new().await;
    let secrets = place.start();
    let mut channel = secrets.channel("smtp").unwrap();
    has(&mut channel, PLANTED).await;
    place.vault.rotate_secret_id("role", "id-2");
    place.vault.revoke_all();
    place.vault.put(SMTP, login("relay", "new"));
    let now = status(&secrets, error_with("refuses the role id or the secret id in")).await;
    assert_eq!(now.state, SecretState::Kept);
    for _ in 0..10 {
        secrets.refresh_all();
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    assert_eq!(place.vault.asked("login"), 2, "a refused login is not repeated for a while");
    place.secret_id("id-2");
    has(&mut channel, "new").await;
}

#[tokio::test]
async fn a_wrapping_token_is_used_once_and_what_was_in_it_is_remembered() {
    let mut place = Place::new().await;
    place.wrapped();
    place.vault.wrap("hvs.wrapping-1", "id-1");
    place.secret_id("hvs.wrapping-1\n");
    let secrets = place.start();
    let mut channel = secrets.channel("smtp").unwrap();
    has(&mut channel, PLANTED).await;
    place.vault.revoke_all();
    place.vault.put(SMTP, login("relay", "second"));
    has(&mut channel, "second").await;
    assert_eq!((place.vault.asked("unwrap"), place.vault.asked("login")), (1, 2));

    place.vault_settings().timeout = Duration::from_millis(400);
    let reloaded = secrets.reload(&place.settings).unwrap();
    drop(secrets);
    place.vault.put(SMTP, login("relay", "third"));
    has(&mut reloaded.channel("smtp").unwrap(), "third").await;
    assert_eq!(place.vault.asked("unwrap"), 1);

    place.secret_id("hvs.used-up");
    place.vault.revoke_all();
    status(&reloaded, error_with("is used up or has expired")).await;
    place.vault.wrap("hvs.wrapping-2", "id-1");
    place.secret_id("hvs.wrapping-2");
    status(&reloaded, |s| s.state == SecretState::Current).await;
}

#[tokio::test]
async fn a_token_from_a_file_or_the_environment_will_do() {
    let mut place = Place::new().await;
    place.vault.token("postgate", None, false);
    place.vault_settings().auth = VaultAuth::TokenEnvironment("CARGO_PKG_NAME".into());
    let secrets = place.start();
    has(&mut secrets.channel("smtp").unwrap(), PLANTED).await;
    assert_eq!(secrets.status()[0].vault_token_expires, None, "a root token does not end");

    place.vault.token("hvs.file", Some(HOUR), true);
    let file = private(&place.folder, "token", "hvs.file\n");
    place.vault_settings().auth = VaultAuth::TokenFile(file);
    let secrets = place.start();
    let mut channel = secrets.channel("smtp").unwrap();
    has(&mut channel, PLANTED).await;
    place.vault.revoke_all();
    place.vault.put(SMTP, login("relay", "new"));
    status(&secrets, error_with("is refused: expired or revoked")).await;
    assert_eq!(place.vault.asked("POST"), 0, "nobody logs in");
    place.vault.token("hvs.next", Some(HOUR), true);
    private(&place.folder, "token", "hvs.next\n");
    has(&mut channel, "new").await;
}

#[tokio::test]
async fn a_token_in_a_file_is_renewed_too() {
    let mut place = Place::new().await;
    place.vault.token("hvs.file", Some(Duration::from_secs(3)), true);
    let file = private(&place.folder, "token", "hvs.file");
    place.vault_settings().auth = VaultAuth::TokenFile(file);
    let _secrets = place.start();
    let renewed = place.vault.until_asked("renew-self", 3);
    tokio::time::timeout(PATIENCE, renewed).await.unwrap();
    assert!(place.vault.log().iter().all(|asked| asked.status == 200));
}

#[tokio::test]
async fn what_cannot_be_a_token_or_is_open_to_everyone_is_not_sent() {
    let mut place = Place::new().await;
    let file = private(&place.folder, "token", "");
    place.vault_settings().auth = VaultAuth::TokenFile(file.clone());
    for (content, words) in [
        ("", "is empty"),
        ("hvs.a\nhvs.b", "line breaks"),
        ("hvs.\u{1}", "line breaks"),
        ("two words", "blanks"),
    ] {
        private(&place.folder, "token", content);
        let secrets = place.start();
        secrets.tried().await;
        assert!(error_with(words)(&secrets.status()[0]), "{:?}", secrets.status());
    }
    private(&place.folder, "token", "hvs.good");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let secrets = place.start();
    secrets.tried().await;
    assert!(error_with("can be read by everyone (mode 0644)")(&secrets.status()[0]));
    fs::remove_file(&file).unwrap();
    let secrets = place.start();
    secrets.tried().await;
    assert!(error_with("no login to Vault: token: cannot read")(&secrets.status()[0]));
    assert!(place.vault.log().is_empty());
}

#[tokio::test]
async fn a_namespace_is_named_and_tls_is_verified_with_the_own_authority() {
    let mut place = Place::with(FakeVault::start_tls().await, HOUR);
    place.vault.namespace("keybuzz/mail");
    let secrets = place.start();
    status(&secrets, error_with("cannot reach Vault at https://127.0.0.1")).await;
    assert!(place.vault.log().is_empty(), "nothing is said to a stranger");
    let ca_file = place.folder.path().join("ca.pem");
    fs::write(&ca_file, place.vault.ca_pem()).unwrap();
    place.vault_settings().ca_file = Some(ca_file);
    let secrets = secrets.reload(&place.settings).unwrap();
    status(&secrets, error_with("nothing at auth/approle/login")).await;
    place.vault_settings().namespace = Some("keybuzz/mail".into());
    let secrets = secrets.reload(&place.settings).unwrap();
    has(&mut secrets.channel("smtp").unwrap(), PLANTED).await;
    // Those of the settings before are still there, and ask in vain.
    let log = place.vault.log();
    let answered = log.iter().rfind(|asked| asked.status == 200).unwrap();
    assert_eq!(answered.namespace.as_deref(), Some("keybuzz/mail"));
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused_at_once() {
    let mut place = Place::new().await;
    let refused = |settings: &Settings| {
        Secrets::start(settings, Arc::new(SystemClock)).err().expect("refused")
    };
    place.vault_settings().address = "vault.example:8200".into();
    assert!(matches!(refused(&place.settings), SettingsError::Address { .. }));
    place.vault_settings().address = place.vault.address();
    place.vault_settings().namespace = Some("a\nb".into());
    assert!(matches!(refused(&place.settings), SettingsError::Namespace(_)));
    place.vault_settings().namespace = None;
    let empty = place.folder.path().join("ca.pem");
    fs::write(&empty, "").unwrap();
    for ca_file in [empty, "/nowhere/ca.pem".into()] {
        place.vault_settings().ca_file = Some(ca_file);
        assert!(matches!(refused(&place.settings), SettingsError::CaFile { .. }));
    }
    place.settings.vault = None;
    assert!(matches!(refused(&place.settings), SettingsError::NoVault(_)));
}

#[tokio::test]
async fn a_vault_that_takes_its_time_holds_nobody_else_up() {
    let mut place = Place::new().await;
    place.vault_settings().timeout = PATIENCE;
    place.vault.put("secret/keybuzz/ses", json!({"access_key": "AKIA1", "secret_key": "ses-1"}));
    place.vault.fault("keybuzz/smtp", Fault::Slow(PATIENCE));
    place.settings.secrets.insert("ses".into(), in_vault("keybuzz/ses"));
    let file = private(&place.folder, "pw", "filed\n");
    place.settings.secrets.insert("local".into(), in_files("relay", &file));
    let secrets = place.start();
    has(&mut secrets.channel("ses").unwrap(), "ses-1").await;
    has(&mut secrets.channel("local").unwrap(), "filed").await;
    place.vault.put("secret/keybuzz/ses", json!({"access_key": "AKIA1", "secret_key": "ses-2"}));
    has(&mut secrets.channel("ses").unwrap(), "ses-2").await;
    private(&place.folder, "pw", "changed\n");
    assert_eq!(has(&mut secrets.channel("local").unwrap(), "changed").await.version, 2);
    assert!(secrets.channel("smtp").unwrap().borrow().is_none());
}

#[tokio::test]
async fn a_file_is_read_again_and_kept_when_it_goes() {
    let folder = tempfile::tempdir().unwrap();
    let file = private(&folder, "pw", "one\n");
    let secrets = BTreeMap::from([("smtp".to_owned(), in_files("relay", &file))]);
    let settings = Settings { vault: None, secrets };
    let secrets = Secrets::start(&settings, Arc::new(SystemClock)).unwrap();
    let mut channel = secrets.channel("smtp").unwrap();
    has(&mut channel, "one").await;
    // As long as the old one, and perhaps within the same tick of the file system's clock.
    private(&folder, "pw", "two\n");
    has(&mut channel, "two").await;
    private(&folder, "pw", "");
    status(&secrets, error_with("field password is empty")).await;
    fs::remove_file(&file).unwrap();
    status(&secrets, error_with("password: cannot read")).await;
    private(&folder, "pw", "two\nlines\n");
    status(&secrets, error_with("has a line break")).await;
    let now = status(&secrets, |s| s.state == SecretState::Kept).await;
    let location = format!("password from {}, username from the configuration", file.display());
    assert_eq!(now.location, location);
    has(&mut channel, "two").await;
    private(&folder, "pw", "three");
    assert_eq!(has(&mut channel, "three").await.version, 3);
}

#[tokio::test]
async fn a_reload_while_vault_is_down_loses_nothing() {
    let mut place = Place::new().await;
    let old = place.start();
    has(&mut old.channel("smtp").unwrap(), PLANTED).await;
    place.vault.stop().await;
    place.settings.secrets.insert("ses".into(), in_vault("keybuzz/ses"));
    let new = old.reload(&place.settings).unwrap();
    drop(old);
    let mut channel = new.channel("smtp").unwrap();
    assert_eq!(channel.borrow().as_ref().unwrap().version, 1);
    place.vault_settings().timeout = Duration::from_millis(200);
    place.settings.secrets.get_mut("smtp").unwrap().refresh = Duration::from_millis(10);
    let newer = new.reload(&place.settings).unwrap();
    drop(new);
    assert_eq!(has(&mut newer.channel("smtp").unwrap(), PLANTED).await.version, 1);
    let ended = tokio::time::timeout(PATIENCE, channel.wait_for(|_| false)).await;
    assert!(ended.unwrap().is_err(), "the old ones have stopped");
    place.settings.secrets.remove("smtp");
    let without = newer.reload(&place.settings).unwrap();
    assert!(without.channel("smtp").is_none());
}

#[tokio::test]
async fn one_reading_for_a_check_says_what_is_there_or_what_is_wrong() {
    let place = Place::new().await;
    let once = |name| read_once(&place.settings, name, Arc::new(SystemClock));
    let found = once("smtp").await.unwrap().unwrap();
    assert_eq!(found.password.expose(), PLANTED);
    place.vault.seal(true);
    assert!(once("smtp").await.unwrap().unwrap_err().contains("unseal"));
    assert!(once("other").await.is_none());
}

#[tokio::test]
async fn a_check_leaves_a_wrapping_token_to_who_needs_it() {
    let mut place = Place::new().await;
    place.wrapped();
    place.vault.wrap("hvs.wrapping-1", "id-1");
    place.secret_id("hvs.wrapping-1\n");
    let file = private(&place.folder, "pw", "filed\n");
    place.settings.secrets.insert("local".into(), in_files("relay", &file));
    let once = |name| read_once(&place.settings, name, Arc::new(SystemClock));
    assert_eq!(once("smtp").await.unwrap().unwrap_err(), WRAPPED);
    assert_eq!(once("local").await.unwrap().unwrap().password.expose(), "filed");
    let all = try_once(&place.settings, Arc::new(SystemClock)).await.unwrap();
    assert_eq!(all.status().len(), 1);
    assert!(place.vault.log().is_empty());
    has(&mut place.start().channel("smtp").unwrap(), PLANTED).await;
}

#[tokio::test]
async fn the_shipped_policies_allow_what_is_asked_and_no_more() {
    let place = Place::with(FakeVault::start().await, Duration::from_secs(2));
    let secrets = place.start();
    has(&mut secrets.channel("smtp").unwrap(), PLANTED).await;
    tokio::time::timeout(PATIENCE, place.vault.until_asked("renew-self", 1)).await.unwrap();
    place.vault.deny(SMTP, true);
    tokio::time::timeout(PATIENCE, place.vault.until_asked("lookup-self", 1)).await.unwrap();
    let policy = include_str!("../config/vault-policy.hcl");
    let rules: Vec<(&str, &str)> = policy
        .split("path \"")
        .skip(1)
        .map(|rule| (rule.split('"').next().unwrap(), rule.split('"').nth(2).unwrap()))
        .collect();
    let mut used = BTreeSet::new();
    for asked in place.vault.log().iter().filter(|asked| asked.token.is_some()) {
        let (method, path) = asked.what.split_once(" /v1/").unwrap();
        let capability = if method == "GET" { "read" } else { "update" };
        let covers = |rule: &&str| match rule.strip_suffix('*') {
            Some(start) => path.starts_with(start),
            None => *path == **rule,
        };
        let found = rules.iter().find(|(rule, _)| covers(rule));
        assert_eq!(found.map(|(_, can)| *can), Some(capability), "{}", asked.what);
        used.extend(found.copied());
    }
    assert_eq!(used.len(), rules.len(), "it allows what nobody asks for");

    let policy: serde_json::Value =
        serde_json::from_str(include_str!("../config/iam-policy.json")).unwrap();
    let statements = policy["Statement"].as_array().unwrap();
    assert_eq!(statements[0]["Action"], json!(["ses:SendEmail", "ses:SendRawEmail"]));
    let resources = statements[0]["Resource"].as_array().unwrap();
    let resources: Vec<&str> = resources.iter().filter_map(|arn| arn.as_str()).collect();
    let [identity, set] = resources[..] else { panic!("{resources:?}") };
    let arn = "arn:aws:ses:eu-west-1:111122223333:";
    assert!(identity.starts_with(&format!("{arn}identity/")) && !identity.contains('*'));
    assert!(set.starts_with(&format!("{arn}configuration-set/")) && !set.contains('*'));
    assert_eq!(statements[1]["Action"], "ses:GetAccount");
    assert_eq!((statements.len(), &statements[1]["Resource"]), (2, &json!("*")));
}

#[tokio::test]
async fn the_fake_vault_is_one_for_vaultrs_own_client() {
    use vaultrs::client::{Client, VaultClient, VaultClientSettingsBuilder};
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let place = Place::new().await;
    place.vault.wrap("hvs.wrapping", "id-1");
    let settings = VaultClientSettingsBuilder::default()
        .address(place.vault.address())
        .token("")
        .verify(true)
        .ca_certs(vec![])
        .identity(None)
        .build()
        .unwrap();
    let mut client = VaultClient::new(settings).unwrap();
    let wrapped: serde_json::Value =
        vaultrs::sys::wrapping::unwrap(&client, Some("hvs.wrapping")).await.unwrap();
    let secret_id = wrapped["secret_id"].as_str().unwrap();
    let auth = vaultrs::auth::approle::login(&client, "approle", "role", secret_id).await.unwrap();
    assert_eq!((auth.lease_duration, auth.renewable), (3600, true));
    client.set_token(&auth.client_token);
    assert!(vaultrs::token::lookup_self(&client).await.unwrap().ttl > 3590);
    assert!(vaultrs::token::renew_self(&client, None).await.unwrap().lease_duration > 3590);
    place.vault.put(SMTP, login("relay", "new"));
    let found: serde_json::Value =
        vaultrs::kv2::read(&client, "secret", "keybuzz/smtp").await.unwrap();
    assert_eq!(found["password"], "new");
    let metadata = vaultrs::kv2::read_metadata(&client, "secret", "keybuzz/smtp").await.unwrap();
    assert_eq!(metadata.current_version, 2);
    vaultrs::token::revoke_self(&client).await.unwrap();
    assert!(vaultrs::token::lookup_self(&client).await.is_err());
}

#[test]
fn a_hardened_process_leaves_no_core_dump() {
    use rustix::process::{DumpableBehavior, Resource, dumpable_behavior, getrlimit};
    postgate::secrets::harden().unwrap();
    assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
    assert_eq!(getrlimit(Resource::Core).current, Some(0));
}

/// Where the log goes.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_secret_is_in_any_output_whatever_is_logged() {
    let log = Log::default();
    let writer = log.clone();
    let everything = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(everything);
    let planted = ["planted-password", "planted-wrapping", "planted-secret-id", "planted-token"];
    let mut place = Place::new().await;
    place.wrapped();
    place.vault.role("role", planted[2], HOUR, HOUR);
    place.vault.wrap(planted[1], planted[2]);
    place.secret_id(planted[1]);
    place.vault.put(SMTP, login("relay", planted[0]));
    let secrets = place.start();
    let mut channel = secrets.channel("smtp").unwrap();
    let mut shown = vec![format!("{:?}", has(&mut channel, planted[0]).await)];
    let everything = planted.join(" ");
    for body in [
        everything.clone(),
        json!({"errors": [everything]}).to_string(),
        json!({"data": {"data": everything, "metadata": {"version": 1}}}).to_string(),
    ] {
        place.vault.fault("keybuzz/smtp", Fault::Body(body.into_bytes()));
        shown.push(format!("{:?}", status(&secrets, |s| s.last_error.is_some()).await));
        shown.push(serde_json::to_string(&secrets.status()).unwrap());
        place.vault.heal();
        status(&secrets, |s| s.state == SecretState::Current).await;
    }
    place.vault.put(SMTP, json!({"user": "relay", "password": format!("{}\n", planted[0])}));
    shown.push(format!("{:?}", status(&secrets, error_with("line break")).await));
    let token = private(&place.folder, "token", planted[3]);
    place.vault_settings().auth = VaultAuth::TokenFile(token);
    let reloaded = secrets.reload(&place.settings).unwrap();
    shown.push(format!("{:?}", status(&reloaded, error_with("is refused")).await));
    shown.push(format!("{:?}", place.settings));
    let written = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    assert!(
        written.contains("secret changed") && written.contains("logged in to Vault"),
        "{written}"
    );
    shown.push(written);
    for text in &shown {
        for secret in planted {
            let line = text.lines().find(|line| line.contains(secret));
            assert_eq!(line, None, "{secret} is shown");
        }
    }
}
