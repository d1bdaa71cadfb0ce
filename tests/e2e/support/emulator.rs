//! Stand-ins for Amazon SES, as the second upstream of a route: our own, which fails as it is told,
//! and two that others have written.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::MutexGuard;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::http::{get_json, post};
use super::mail::message_id;
use super::process::Part;
use super::{PATIENCE, eventually, free_port, local};
use crate::ses::{FakeSes, State};

/// Where `tests/run` installs the Node.js packages, and moto.
const NODE: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/node/node_modules");
const PYTHON: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/python/bin");

/// What an emulator took.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Taken {
    pub message_id: String,
    /// `None` where the emulator does not keep them.
    pub to: Option<Vec<String>>,
}

/// An emulator of SES.
pub trait Emulator {
    fn address(&self) -> SocketAddr;
    /// Everything it took.
    fn taken(&self) -> Vec<Taken>;

    /// The Message-IDs of what it took.
    fn arrivals(&self) -> Vec<String> {
        self.taken().into_iter().map(|taken| taken.message_id).collect()
    }
}

/// Our own.
pub struct Fake {
    ses: FakeSes,
    _runtime: Runtime,
}

impl Fake {
    pub fn start() -> Self {
        let threads =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = threads.unwrap();
        let ses = runtime.block_on(FakeSes::start());
        ses.state().account.rate = 1000.0;
        Self { ses, _runtime: runtime }
    }

    /// How it answers and what it has seen.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.ses.state()
    }

    /// Waits until it has taken this message.
    #[track_caller]
    pub fn wait_for(&self, id: &str) {
        eventually(PATIENCE, id, || self.arrivals().iter().any(|got| got == id).then_some(()));
    }
}

impl Emulator for Fake {
    fn address(&self) -> SocketAddr {
        self.ses.address
    }

    fn taken(&self) -> Vec<Taken> {
        let taken = |sent: crate::ses::Sent| Taken {
            message_id: message_id(&sent.raw).unwrap_or_default(),
            to: Some(sent.to),
        };
        self.ses.sent().into_iter().map(taken).collect()
    }
}

/// moto's server. It has no `GetAccount`.
pub struct Moto {
    address: SocketAddr,
    _part: Part,
    _dir: TempDir,
}

impl Moto {
    /// Starts it, with this domain verified.
    pub fn start(domain: &str) -> Self {
        let address = local(free_port());
        let mut moto = Command::new(installed(&format!("{PYTHON}/moto_server")));
        moto.args(["-H", "127.0.0.1", "-p", &address.port().to_string()]);
        let (part, dir) = serve(&moto, address, "/moto-api/data.json");
        // It tells its services apart by what the request is signed for.
        let signed = "Authorization: AWS4-HMAC-SHA256 Credential=AKIDTEST/20261121/eu-west-1/ses/\
                      aws4_request, SignedHeaders=host, Signature=0\r\n";
        let identity = json!({ "EmailIdentity": domain });
        let answer = post(address, "/v2/email/identities", signed, &identity);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Self { address, _part: part, _dir: dir }
    }
}

impl Emulator for Moto {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn taken(&self) -> Vec<Taken> {
        let data = get_json(self.address, "/moto-api/data.json").unwrap();
        let raw = data["ses"]["RawMessage"].as_array().into_iter().flatten();
        // It adds the To header's mailbox, which has a name.
        let asked = |to: &Value| to.as_str().filter(|to| !to.contains('<')).map(ToOwned::to_owned);
        let taken = |message: &Value| Taken {
            message_id: message_id(message["raw_data"].as_str().unwrap().as_bytes()).unwrap(),
            to: message["destinations"]
                .as_array()
                .map(|all| all.iter().filter_map(asked).collect()),
        };
        raw.map(taken).collect()
    }
}

/// The npm package aws-ses-v2-local. It takes the recipients from the header.
pub struct SesLocal {
    address: SocketAddr,
    _part: Part,
    _dir: TempDir,
}

impl SesLocal {
    pub fn start() -> Self {
        let address = local(free_port());
        let mut node = Command::new("node");
        node.arg(installed(&format!("{NODE}/aws-ses-v2-local/dist/cli.js")));
        node.args(["--host", "127.0.0.1", "--port", &address.port().to_string()]);
        let review = json!({ "CaseId": "1", "Status": "GRANTED" });
        let account = json!({
            "DedicatedIpAutoWarmupEnabled": false,
            "Details": {
                "AdditionalContactEmailAddresses": [], "ContactLanguage": "EN",
                "MailType": "TRANSACTIONAL", "ReviewDetails": review,
                "UseCaseDescription": "tests", "WebsiteURL": "https://example.test",
            },
            "EnforcementStatus": "HEALTHY",
            "ProductionAccessEnabled": true,
            "SendingEnabled": true,
            "SendQuota": { "Max24HourSend": 50_000, "MaxSendRate": 1000, "SentLast24Hours": 0 },
            "SuppressionAttributes": { "SuppressedReasons": [] },
        });
        node.env("AWS_SES_ACCOUNT", account.to_string());
        let (part, dir) = serve(&node, address, "/store");
        Self { address, _part: part, _dir: dir }
    }
}

impl Emulator for SesLocal {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn taken(&self) -> Vec<Taken> {
        let store = get_json(self.address, "/store").unwrap();
        // It keeps the subject, and neither the Message-ID nor the content.
        let id = |email: &Value| {
            let subject = email["subject"].as_str().unwrap();
            format!("{}@test", subject.strip_prefix("test ").unwrap())
        };
        let emails = store["emails"].as_array().unwrap();
        emails.iter().map(|email| Taken { message_id: id(email), to: None }).collect()
    }
}

/// Keys for SES, in files that can be written anew.
pub struct Keys(TempDir);

impl Keys {
    pub fn new(id: &str) -> Self {
        let keys = Self(tempfile::tempdir().unwrap());
        keys.write(id);
        keys
    }

    /// Puts other keys in their place.
    pub fn write(&self, id: &str) {
        for (name, text) in [("id", id), ("secret", "s3cret")] {
            let (path, new) = (self.0.path().join(name), self.0.path().join("new"));
            fs::write(&new, text).unwrap();
            fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
            fs::rename(new, path).unwrap();
        }
    }

    /// The sections for an upstream `ses` there; `more` lines are part of it.
    pub fn sections(&self, address: SocketAddr, more: &str) -> String {
        let (id, secret) = (self.0.path().join("id"), self.0.path().join("secret"));
        format!(
            "[secrets.ses]
access_key_id_file = {id:?}
secret_access_key_file = {secret:?}
refresh = \"1s\"

[upstreams.ses]
type = \"ses\"
region = \"eu-west-1\"
endpoint_url = \"http://{address}\"
auth = {{ secret = \"ses\" }}
{more}
"
        )
    }
}

fn installed(path: &str) -> &str {
    assert!(fs::exists(path).unwrap(), "{path} is missing; tests/run installs it");
    path
}

/// Starts a server and waits until it answers.
fn serve(command: &Command, address: SocketAddr, path: &str) -> (Part, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let mut part = Part::spawn(command, "KILL", &log);
    eventually(PATIENCE, "an emulator that answers", || {
        assert!(part.is_running(), "it ended: {}", fs::read_to_string(&log).unwrap());
        get_json(address, path)
    });
    (part, dir)
}
