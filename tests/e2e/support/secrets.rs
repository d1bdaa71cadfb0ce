//! A Vault for a real Postgate, and where the password it holds opens the door.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::gate::Settings;
use super::postfix::{Postfix, USER};
use super::sink::Sink;
use crate::vault::FakeVault;

/// Where the secret is in Vault.
pub const PATH: &str = "secret/keybuzz/mail";
/// The secret id that Postgate logs in to Vault with.
pub const SECRET_ID: &str = "planted-secret-id-5e1d";

/// A Vault, and the threads it runs on.
pub struct Safe {
    pub vault: FakeVault,
    pub runtime: Runtime,
    folder: TempDir,
}

impl Safe {
    /// One whose tokens live this long, and twice as long when they are renewed.
    pub fn with_tokens(ttl: Duration) -> Self {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().unwrap();
        let vault = runtime.block_on(FakeVault::start());
        vault.role("postgate", SECRET_ID, ttl, ttl * 2);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret-id");
        fs::write(&file, format!("{SECRET_ID}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o400)).unwrap();
        Self { vault, runtime, folder }
    }

    pub fn new() -> Self {
        Self::with_tokens(Duration::from_hours(1))
    }

    /// A new version of the secret.
    pub fn put(&self, secret: Value) {
        self.vault.put(PATH, secret);
    }

    pub fn stop(&self) {
        self.runtime.block_on(self.vault.stop());
    }

    pub fn resume(&self) {
        let _threads = self.runtime.enter();
        self.vault.resume();
    }

    pub fn secret_id_file(&self) -> PathBuf {
        self.folder.path().join("secret-id")
    }

    /// `[vault]` and `[secrets.mail]`, with more lines for the latter.
    pub fn sections(&self, refresh: &str, more: &str) -> &'static str {
        let (address, file) = (self.vault.address(), self.secret_id_file());
        let text = format!(
            "[vault]\naddress = {address:?}\ntimeout = \"500ms\"\n\
             auth = {{ method = \"approle\", role_id = \"postgate\", secret_id_file = {file:?} }}\n\
             [secrets.mail]\npath = {PATH:?}\nrefresh = {refresh:?}\n{more}"
        );
        text.leak()
    }

    /// Relays wherever the secret says; the secret is read this often.
    pub fn anywhere(&self, sink: &Sink, refresh: &str) -> Settings<'static> {
        Settings {
            upstream: "type = \"smtp\"\nauth = { secret = \"mail\" }".into(),
            more: self.sections(refresh, ""),
            ..Settings::plain(sink.address)
        }
    }

    /// Relays to a Postfix's submission service with the user and the password in Vault; no
    /// connection is used for more than a few messages.
    pub fn submission(&self, postfix: &Postfix, refresh: &str) -> Settings<'static> {
        let upstream = format!(
            "type = \"smtp\"\nhost = \"127.0.0.1\"\ntls_server_name = \"core.test\"\n\
             ca_file = {:?}\nauth = {{ secret = \"mail\" }}\n\
             pool = {{ max_connections = 4, max_messages = 3 }}",
            postfix.ca_file(),
        );
        Settings {
            upstream,
            more: self.sections(refresh, ""),
            ..Settings::plain(postfix.submission)
        }
    }
}

/// A secret that says where to, and that no login is wanted there.
pub fn leads_to(sink: &Sink) -> Value {
    let port = sink.address.port();
    json!({"user": "", "password": "", "host": "127.0.0.1", "port": port, "use_tls": false})
}

/// A secret for a Postfix's submission service.
pub fn login(postfix: &Postfix, password: &str) -> Value {
    json!({"SMTP_USER": USER, "SMTP_PASS": password, "port": postfix.submission.port()})
}
