//! A smarthost for tests: it does what RFC 5321 says, except where it is told otherwise.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::dialogue::Wire;
use super::settings::{Settings, Timeouts, TlsMode, Verify};

/// What to do when a command comes.
#[derive(Clone, Debug)]
pub(crate) enum Do {
    /// Write this.
    Say(String),
    /// Write this and close.
    Close(String),
    /// Nothing more, ever.
    Hang,
}

pub(crate) fn say(text: &str) -> Do {
    Do::Say(text.into())
}

pub(crate) fn close() -> Do {
    Do::Close(String::new())
}

/// What happened.
#[derive(Default, Debug, Clone)]
pub(crate) struct Log {
    pub(crate) connections: usize,
    pub(crate) commands: Vec<String>,
    pub(crate) messages: Vec<String>,
}

#[derive(Default)]
struct Plan {
    extensions: Vec<&'static str>,
    extensions_tls: Vec<&'static str>,
    /// Prefix of a command (or `GREETING`, `CONTENT`, `.`), what to do, and whether for good.
    rules: Vec<(&'static str, Do, bool)>,
    tls: Option<TlsAcceptor>,
    implicit: bool,
    log: Log,
}

/// A smarthost on a port of its own.
#[derive(Clone)]
pub(crate) struct Fake {
    pub(crate) port: u16,
    plan: Arc<Mutex<Plan>>,
}

impl Fake {
    pub(crate) async fn start(extensions: &[&'static str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let plan = Arc::new(Mutex::new(Plan {
            extensions: extensions.to_vec(),
            extensions_tls: extensions.to_vec(),
            ..Plan::default()
        }));
        let fake = Self { port, plan };
        let server = fake.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                server.plan.lock().unwrap().log.connections += 1;
                tokio::spawn(server.clone().serve(Box::new(stream)));
            }
        });
        fake
    }

    /// Does this whenever such a command comes.
    pub(crate) fn on(self, command: &'static str, what: Do) -> Self {
        self.plan.lock().unwrap().rules.push((command, what, true));
        self
    }

    /// Does this the next time such a command comes.
    pub(crate) fn once(self, command: &'static str, what: Do) -> Self {
        self.plan.lock().unwrap().rules.push((command, what, false));
        self
    }

    pub(crate) fn with_tls(self, identity: &Identity, extensions: &[&'static str]) -> Self {
        let mut plan = self.plan.lock().unwrap();
        plan.tls = Some(identity.acceptor());
        plan.extensions_tls = extensions.to_vec();
        drop(plan);
        self
    }

    pub(crate) fn implicit(self) -> Self {
        self.plan.lock().unwrap().implicit = true;
        self
    }

    pub(crate) fn log(&self) -> Log {
        self.plan.lock().unwrap().log.clone()
    }

    /// Settings for a client in clear, with short waits.
    pub(crate) fn settings(&self) -> Settings {
        let wait = Duration::from_millis(250);
        let long = Duration::from_secs(20);
        let mut settings = Settings::new("core", "localhost", self.port, "gate.example");
        settings.address = vec!["127.0.0.1".parse().unwrap()];
        settings.tls = Some(TlsMode::None);
        settings.timeouts = Timeouts {
            connect: long,
            greeting: wait,
            command: wait,
            data: wait,
            end_of_data: wait,
        };
        settings
    }

    /// Settings for STARTTLS, trusting what is in `pem`.
    pub(crate) fn tls_settings(&self, pem: &Pem) -> Settings {
        let mut settings = self.settings();
        settings.tls = Some(TlsMode::StartTls);
        settings.verify = Verify::Full;
        settings.ca_file = Some(pem.path().to_owned());
        settings.timeouts.command = Duration::from_secs(20);
        settings
    }

    fn rule(&self, command: &str) -> Option<Do> {
        let mut plan = self.plan.lock().unwrap();
        let i = plan.rules.iter().position(|(prefix, ..)| command.starts_with(prefix))?;
        let (_, what, forever) = plan.rules[i].clone();
        if !forever {
            plan.rules.remove(i);
        }
        Some(what)
    }

    async fn serve(self, mut stream: Box<dyn Wire>) {
        let (tls, implicit) = {
            let plan = self.plan.lock().unwrap();
            (plan.tls.clone(), plan.implicit)
        };
        let mut encrypted = false;
        if let Some(acceptor) = tls.as_ref().filter(|_| implicit) {
            let Ok(secured) = acceptor.accept(stream).await else { return };
            (stream, encrypted) = (Box::new(secured), true);
        }
        let mut input = Vec::new();
        if !self.act("GREETING", "220 fake ESMTP\r\n", &mut stream).await {
            return;
        }
        while let Some(line) = until(&mut stream, &mut input, b"\r\n").await {
            self.plan.lock().unwrap().log.commands.push(line.clone());
            let usual = self.usual(&line, encrypted);
            if !self.act(&line, &usual, &mut stream).await {
                return;
            }
            let Some(acceptor) = &tls else {
                if line == "DATA" && !self.content(&mut stream, &mut input).await {
                    return;
                }
                continue;
            };
            if line == "STARTTLS" {
                let Ok(secured) = acceptor.accept(stream).await else { return };
                (stream, encrypted) = (Box::new(secured), true);
                input.clear();
            } else if line == "DATA" && !self.content(&mut stream, &mut input).await {
                return;
            }
        }
    }

    async fn content(&self, stream: &mut Box<dyn Wire>, input: &mut Vec<u8>) -> bool {
        if self.rule("NO CONTENT").is_some() {
            return true;
        }
        if !self.act("CONTENT", "", stream).await {
            return false;
        }
        input.splice(0..0, *b"\r\n");
        let Some(message) = until(stream, input, b"\r\n.\r\n").await else { return false };
        let message = message.strip_prefix("\r\n").unwrap_or(&message).to_owned();
        self.plan.lock().unwrap().log.messages.push(message);
        self.act(".", "250 2.0.0 Ok: queued as 4FAKE\r\n", stream).await
    }

    fn usual(&self, line: &str, encrypted: bool) -> String {
        let plan = self.plan.lock().unwrap();
        let extensions = if encrypted { &plan.extensions_tls } else { &plan.extensions };
        match line.split([' ', ':']).next().unwrap_or_default() {
            "EHLO" => {
                let lines: Vec<_> = extensions.iter().map(|e| format!("250-{e}\r\n")).collect();
                let lines = format!("250-fake\r\n{}", lines.concat());
                let at = lines.rfind("250-").unwrap();
                format!("{}250 {}", &lines[..at], &lines[at + 4..])
            }
            "DATA" => "354 go\r\n".into(),
            "QUIT" => "221 2.0.0 Bye\r\n".into(),
            "STARTTLS" => "220 2.0.0 go\r\n".into(),
            "AUTH" if line == "AUTH LOGIN" => "334 VXNlcm5hbWU6\r\n".into(),
            "cmVsYXk=" => "334 UGFzc3dvcmQ6\r\n".into(),
            "AUTH" | "c2VjcmV0" => "235 2.7.0 ok\r\n".into(),
            _ => "250 2.1.0 Ok\r\n".into(),
        }
    }

    /// What the rules say, or else the usual; whether to go on.
    async fn act(&self, command: &str, usual: &str, stream: &mut Box<dyn Wire>) -> bool {
        let what = self.rule(command).unwrap_or_else(|| say(usual));
        let (text, go_on) = match what {
            Do::Say(text) => (text, !command.starts_with("QUIT")),
            Do::Close(text) => (text, false),
            Do::Hang => {
                std::future::pending::<()>().await;
                return false;
            }
        };
        stream.write_all(text.as_bytes()).await.is_ok() && stream.flush().await.is_ok() && go_on
    }
}

async fn until(stream: &mut Box<dyn Wire>, input: &mut Vec<u8>, end: &[u8]) -> Option<String> {
    loop {
        if let Some(at) = input.windows(end.len()).position(|w| w == end) {
            let found: Vec<u8> = input.drain(..at + end.len()).collect();
            return Some(String::from_utf8_lossy(&found[..at]).into_owned());
        }
        let mut chunk = [0; 4096];
        let n = stream.read(&mut chunk).await.ok().filter(|n| *n > 0)?;
        input.extend_from_slice(&chunk[..n]);
    }
}

/// A certificate and its key.
pub(crate) struct Identity {
    pub(crate) certificate: CertificateDer<'static>,
    key: KeyPair,
}

/// A file of certificates.
pub(crate) type Pem = tempfile::NamedTempFile;

/// An authority, as a file to trust, and a certificate for `name` signed by it.
pub(crate) fn signed(name: &str, until_year: i32) -> (Pem, Identity) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::<String>::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name.push(DnType::CommonName, "Test CA");
    let pem = pem(&ca.self_signed(&ca_key).unwrap().pem());
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate().unwrap();
    let mut leaf = CertificateParams::new(vec![name.to_owned()]).unwrap();
    leaf.not_before = date_time_ymd(2020, 1, 1);
    leaf.not_after = date_time_ymd(until_year, 1, 1);
    let certificate = leaf.signed_by(&key, &issuer).unwrap().der().clone();
    (pem, Identity { certificate, key })
}

/// A certificate for `name` as `openssl req -x509` makes it, and the file that pins it.
pub(crate) fn self_signed(name: &str, until_year: i32) -> (Pem, Identity) {
    let key = KeyPair::generate().unwrap();
    let mut leaf = CertificateParams::new(vec![name.to_owned()]).unwrap();
    leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    leaf.not_before = date_time_ymd(2020, 1, 1);
    leaf.not_after = date_time_ymd(until_year, 1, 1);
    let certificate = leaf.self_signed(&key).unwrap();
    (pem(&certificate.pem()), Identity { certificate: certificate.der().clone(), key })
}

fn pem(text: &str) -> Pem {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

impl Identity {
    fn acceptor(&self) -> TlsAcceptor {
        let key = PrivateKeyDer::try_from(self.key.serialize_der()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.clone()], key)
            .unwrap();
        Arc::new(config).into()
    }
}
