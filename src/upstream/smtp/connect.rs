//! From a name to a connection that takes mail: DNS, TCP, greeting, EHLO, STARTTLS, login.
//!
//! The probe and every delivery walk the same path; the probe only watches closer.

use std::net::SocketAddr;
use std::sync::Arc;

use mail_send::{Credentials as Sasl, SmtpClient};
use rustls::pki_types::CertificateDer;
use smtp_proto::{AUTH_LOGIN, AUTH_PLAIN};
use tokio::net::TcpStream;
use tokio::time::{Duration, Instant};
use tokio_rustls::client::TlsStream;
use zeroize::Zeroizing;

use super::capabilities::Capabilities;
use super::dialogue::{Dialogue, Wire};
use super::error::{Cause, Problem};
use super::relay;
use super::reply::BadReply;
use super::settings::{Mechanism, Settings, SettingsError, Target, TlsMode};
use super::tls::Tls;
use crate::mail::{Reply, Stage};
use crate::secret::Credentials;

/// A connection that takes mail.
pub(crate) struct Connection {
    /// The dialogue on it.
    pub(crate) dialogue: Dialogue<Box<dyn Wire>>,
    /// What was offered last.
    pub(crate) capabilities: Capabilities,
    /// `host[address]:port`.
    pub(crate) relay: String,
    /// `TLSv1.3` and the like; `None` in clear.
    pub(crate) tls: Option<String>,
    /// The version of the credentials it was opened with.
    pub(crate) credentials: Option<u64>,
    /// When it was opened.
    pub(crate) opened: Instant,
    /// Transactions begun on it.
    pub(crate) transactions: u32,
    /// Whether a transaction was left open, so that RSET must come before the next.
    pub(crate) needs_reset: bool,
}

/// One step of the path, done.
pub(crate) enum Seen<'a> {
    /// The addresses to try.
    Resolved(&'a [SocketAddr]),
    /// Our end and theirs.
    Connected(Option<SocketAddr>, SocketAddr),
    /// The 220.
    Greeted(&'a Reply),
    /// What is offered in clear, or with implicit TLS.
    Ehlo(&'a Capabilities),
    /// The 220 to STARTTLS.
    StartTls(&'a Reply),
    /// The handshake is done and the certificate accepted: protocol version, certificates.
    Secured(&'a str, &'a [CertificateDer<'static>]),
    /// What is offered within TLS, after STARTTLS.
    EhloTls(&'a Capabilities),
    /// The login was accepted.
    LoggedIn(Mechanism, &'a Reply),
}

/// Who watches the path.
pub(crate) trait Observer: Send {
    /// A step is done.
    fn seen(&mut self, step: Seen<'_>);
}

/// Opens connections to one upstream.
pub(crate) struct Connector {
    settings: Settings,
    tls: Option<Tls>,
}

impl Connector {
    /// Checks the settings and loads the certificates.
    pub(crate) fn new(settings: Settings) -> Result<Self, SettingsError> {
        let is_name = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_graphic());
        if !is_name(&settings.helo) {
            return Err(SettingsError::Helo(settings.helo));
        }
        let may_follow = settings.auth_required.then_some("the secret's");
        if settings.host.as_deref().or(may_follow).is_none_or(str::is_empty) {
            return Err(SettingsError::Host);
        }
        if settings.auth_required && settings.mechanisms.is_empty() {
            return Err(SettingsError::NoMechanism);
        }
        if settings.pool.max_connections == 0 {
            return Err(SettingsError::NoConnections);
        }
        let tls = Tls::new(&settings)?;
        Ok(Self { settings, tls })
    }

    /// What it was made with.
    pub(crate) const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The certificates that were presented first, leaf first.
    pub(crate) fn presented(&self) -> &[CertificateDer<'static>] {
        self.tls.as_ref().and_then(|tls| tls.presented.get()).map_or(&[], Vec::as_slice)
    }

    /// Walks the whole path.
    pub(crate) async fn open(
        &self,
        credentials: Option<Arc<Credentials>>,
        deadline: Instant,
        observer: &mut dyn Observer,
    ) -> Result<Connection, Problem> {
        let start = Instant::now();
        let end = deadline.min(start + self.settings.timeouts.connect);
        let place = credentials.as_deref().map(|c| &c.place);
        let target = self.settings.target(place);
        let target = target.ok_or_else(|| Cause::NoHost.at(Stage::Dns))?;
        let addresses = self.resolve(&target, end).await.map_err(|c| c.at(Stage::Dns))?;
        observer.seen(Seen::Resolved(&addresses));
        let (client, peer) = dial(&addresses, end).await.map_err(|c| c.at(Stage::Connect))?;
        observer.seen(Seen::Connected(client.stream.local_addr().ok(), peer));
        let relay = relay(&target.host, peer);
        let wanted = self.tls.as_ref().filter(|_| target.tls != TlsMode::None);
        let (mut dialogue, capabilities, tls) = match (target.tls, wanted) {
            (TlsMode::Implicit, Some(tls)) => {
                let tls = (tls, tls.server_name(&target.host));
                let (client, version) = self.handshake(tls, client, deadline, observer).await?;
                let mut dialogue = Dialogue::new(client, deadline).boxed();
                let offered = self.greet(&mut dialogue, observer).await?;
                (dialogue, offered, Some(version))
            }
            (_, tls) => {
                let mut dialogue = Dialogue::new(client, deadline);
                let offered = self.greet(&mut dialogue, observer).await?;
                self.secure(dialogue, offered, (&target, tls), deadline, observer).await?
            }
        };
        if self.settings.auth_required {
            let credentials = credentials.as_deref();
            self.login(&mut dialogue, &capabilities, tls.is_some(), credentials, observer).await?;
        }
        Ok(Connection {
            dialogue,
            capabilities,
            relay,
            tls,
            credentials: credentials.map(|c| c.version),
            opened: start,
            transactions: 0,
            needs_reset: false,
        })
    }

    /// The addresses to try, in the resolver's order.
    async fn resolve(&self, target: &Target, end: Instant) -> Result<Vec<SocketAddr>, Cause> {
        let address = &self.settings.address;
        let Target { host, port, .. } = target;
        if !address.is_empty() {
            return Ok(address.iter().map(|ip| SocketAddr::new(*ip, *port)).collect());
        }
        let start = Instant::now();
        let looked_up = tokio::net::lookup_host((host.as_str(), *port));
        let found: Vec<SocketAddr> = match tokio::time::timeout_at(end, looked_up).await {
            Ok(Ok(found)) => found.collect(),
            Ok(Err(source)) => return Err(Cause::Resolve { host: host.clone(), source }),
            Err(_) => return Err(Cause::TimedOut(end - start)),
        };
        if found.is_empty() { Err(Cause::NoAddress(host.clone())) } else { Ok(found) }
    }

    /// Greeting and EHLO, as they go at the start of a session.
    async fn greet<S: Wire + 'static>(
        &self,
        dialogue: &mut Dialogue<S>,
        observer: &mut dyn Observer,
    ) -> Result<Capabilities, Problem> {
        let failed = |cause: Cause| cause.at(Stage::Greeting);
        let greeting = dialogue.reply(self.settings.timeouts.greeting).await.map_err(failed)?;
        positive(&greeting).map_err(failed)?;
        observer.seen(Seen::Greeted(&greeting));
        let offered = self.ehlo(dialogue).await.map_err(|c| c.at(Stage::Ehlo))?;
        observer.seen(Seen::Ehlo(&offered));
        Ok(offered)
    }

    /// EHLO; or HELO for an upstream that does not know EHLO (RFC 5321 section 3.2), which then
    /// offers nothing.
    async fn ehlo<S: Wire>(&self, dialogue: &mut Dialogue<S>) -> Result<Capabilities, Cause> {
        let Settings { helo, timeouts, .. } = &self.settings;
        let reply = dialogue.command(&format!("EHLO {helo}\r\n"), timeouts.command).await?;
        if matches!(reply.code(), 500 | 502 | 504) {
            let reply = dialogue.command(&format!("HELO {helo}\r\n"), timeouts.command).await?;
            positive(&reply)?;
            return Ok(Capabilities::default());
        }
        positive(&reply)?;
        Ok(Capabilities::read(&reply))
    }

    /// STARTTLS where it is wanted and offered.
    async fn secure(
        &self,
        mut dialogue: Dialogue<TcpStream>,
        offered: Capabilities,
        (target, tls): (&Target, Option<&Tls>),
        deadline: Instant,
        observer: &mut dyn Observer,
    ) -> Result<(Dialogue<Box<dyn Wire>>, Capabilities, Option<String>), Problem> {
        let failed = |cause: Cause| cause.at(Stage::Tls);
        let Some(tls) = tls else { return Ok((dialogue.boxed(), offered, None)) };
        if !offered.starttls {
            return match target.tls {
                TlsMode::Opportunistic => Ok((dialogue.boxed(), offered, None)),
                _ => Err(failed(Cause::NoStartTls)),
            };
        }
        let limit = self.settings.timeouts.command;
        let reply = dialogue.command("STARTTLS\r\n", limit).await.map_err(failed)?;
        positive(&reply).map_err(failed)?;
        observer.seen(Seen::StartTls(&reply));
        let client = dialogue.into_client().map_err(failed)?;
        let tls = (tls, tls.server_name(&target.host));
        let (client, version) = self.handshake(tls, client, deadline, observer).await?;
        let mut dialogue = Dialogue::new(client, deadline);
        let offered = self.ehlo(&mut dialogue).await.map_err(|c| c.at(Stage::Ehlo))?;
        observer.seen(Seen::EhloTls(&offered));
        Ok((dialogue.boxed(), offered, Some(version)))
    }

    /// The TLS handshake, with the certificate's verification; and the version agreed on.
    async fn handshake(
        &self,
        (tls, server_name): (&Tls, &str),
        mut client: SmtpClient<TcpStream>,
        deadline: Instant,
        observer: &mut dyn Observer,
    ) -> Result<(SmtpClient<TlsStream<TcpStream>>, String), Problem> {
        let left = deadline.saturating_duration_since(Instant::now());
        client.timeout = self.settings.timeouts.connect.min(left);
        let limit = client.timeout;
        let client = match client.into_tls(&tls.connector, server_name).await {
            Ok(client) => client,
            Err(e) => return Err(sort(e, limit).at(Stage::Tls)),
        };
        let version = client.tls_connection().protocol_version();
        let version = version.and_then(|v| v.as_str()).unwrap_or("TLS").replace("TLSv1_", "TLSv1.");
        let presented = client.tls_connection().peer_certificates().unwrap_or_default();
        observer.seen(Seen::Secured(&version, presented));
        Ok((client, version))
    }

    /// AUTH with the first of our mechanisms that is offered (RFC 4954).
    async fn login<S: Wire>(
        &self,
        dialogue: &mut Dialogue<S>,
        offered: &Capabilities,
        encrypted: bool,
        credentials: Option<&Credentials>,
        observer: &mut dyn Observer,
    ) -> Result<(), Problem> {
        let failed = |cause: Cause| cause.at(Stage::Auth);
        let credentials = credentials.ok_or_else(|| failed(Cause::NoCredentials))?;
        if credentials.username.is_empty() && credentials.password.expose().is_empty() {
            return Ok(());
        }
        if !encrypted {
            return Err(failed(Cause::ClearText));
        }
        let usable = self.settings.mechanisms.iter().copied().find(|m| offered.offers(*m));
        let mechanism = usable.ok_or_else(|| failed(Cause::NoMechanism(offered.auth.clone())))?;
        let limit = self.settings.timeouts.command;
        let reply = auth(dialogue, mechanism, credentials, limit).await.map_err(failed)?;
        observer.seen(Seen::LoggedIn(mechanism, &reply));
        Ok(())
    }
}

/// The AUTH dialogue. The prompts of LOGIN are not looked at: user name comes first for everyone.
async fn auth<S: Wire>(
    dialogue: &mut Dialogue<S>,
    mechanism: Mechanism,
    credentials: &Credentials,
    limit: Duration,
) -> Result<Reply, Cause> {
    let sasl = Sasl::Plain {
        username: credentials.username.as_str(),
        secret: credentials.password.expose(),
    };
    let encode = |kind, prompt| {
        let text = sasl.encode(kind, prompt).unwrap_or_default();
        Zeroizing::new(text)
    };
    let secret = match mechanism {
        Mechanism::Plain => encode(AUTH_PLAIN, ""),
        Mechanism::Login => encode(AUTH_LOGIN, PASSWORD_PROMPT),
    };
    let mut answers = match mechanism {
        Mechanism::Plain => vec![Zeroizing::new(format!("AUTH PLAIN {}\r\n", *secret))],
        Mechanism::Login => vec![
            Zeroizing::new(format!("{}\r\n", *secret)),
            Zeroizing::new(format!("{}\r\n", *encode(AUTH_LOGIN, USERNAME_PROMPT))),
            Zeroizing::new("AUTH LOGIN\r\n".to_owned()),
        ],
    };
    loop {
        let line = answers.pop().unwrap_or_else(|| Zeroizing::new("*\r\n".into()));
        let answer = dialogue.command(&line, limit).await;
        let reply = discreet(answer, [&secret, credentials.password.expose()])?;
        match reply.code() {
            235 => return Ok(reply),
            334 if !answers.is_empty() => {}
            400..600 => return Err(Cause::Refused(reply)),
            _ => return Err(Cause::Unexpected(reply)),
        }
    }
}

/// The answer without its text if a piece of a secret is in it: there are servers that repeat a
/// command they don't understand, and answers are logged, stored and shown.
fn discreet(answer: Result<Reply, Cause>, secrets: [&str; 2]) -> Result<Reply, Cause> {
    const TEXT: &str = "[redacted: the upstream repeats what only it may know]";
    /// Octets that are no coincidence.
    const PIECE: usize = 8;
    let text = match &answer {
        Ok(reply) => reply.text(),
        Err(cause) => cause.to_string(),
    };
    let repeats = |secret: &&str| {
        let mut pieces = secret.as_bytes().windows(secret.len().clamp(1, PIECE));
        pieces.any(|piece| memchr::memmem::find(text.as_bytes(), piece).is_some())
    };
    if !secrets.iter().any(repeats) {
        return answer;
    }
    let reply = |reply: &Reply| match reply.status() {
        Some(status) => Reply::new(reply.code(), status, TEXT),
        None => Reply::bare(reply.code(), TEXT),
    };
    match answer {
        Ok(told) => Ok(reply(&told)),
        Err(Cause::Refused(told)) => Err(Cause::Refused(reply(&told))),
        Err(Cause::BadReply(BadReply::Syntax(_))) => Err(BadReply::Syntax(TEXT.to_owned()).into()),
        // Words of ours.
        Err(other) => Err(other),
    }
}

/// `Username:` and `Password:` in base 64, by which mail-send tells which answer is wanted.
const USERNAME_PROMPT: &str = "VXNlcm5hbWU6";
const PASSWORD_PROMPT: &str = "UGFzc3dvcmQ6";

/// Tries each address, giving each an equal share of what is left of the time.
async fn dial(
    addresses: &[SocketAddr],
    end: Instant,
) -> Result<(SmtpClient<TcpStream>, SocketAddr), Cause> {
    let mut last = Cause::Closed;
    for (i, address) in addresses.iter().enumerate() {
        let left = end.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(addresses.len() - i).unwrap_or(1).max(1);
        match SmtpClient::connect(*address, share).await {
            Ok(client) => {
                client.stream.set_nodelay(true)?;
                return Ok((client, *address));
            }
            Err(e) => last = of(*address, sort(e, share)),
        }
    }
    Err(last)
}

/// The cause, told of the address it came from.
fn of(address: SocketAddr, cause: Cause) -> Cause {
    match cause {
        Cause::Io(e) => Cause::Io(std::io::Error::new(e.kind(), format!("{address}: {e}"))),
        other => other,
    }
}

/// mail-send's errors in our words.
fn sort(error: mail_send::Error, limit: Duration) -> Cause {
    match error {
        mail_send::Error::Tls(e) => Cause::Tls(e),
        mail_send::Error::Timeout => Cause::TimedOut(limit),
        mail_send::Error::Io(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Cause::Closed,
        mail_send::Error::Io(e) => Cause::Io(e),
        other => Cause::Io(std::io::Error::other(other.to_string())),
    }
}

/// 2xx, or what else it means.
fn positive(reply: &Reply) -> Result<(), Cause> {
    match reply.code() {
        200..300 => Ok(()),
        300..400 => Err(Cause::Unexpected(reply.clone())),
        _ => Err(Cause::Refused(reply.clone())),
    }
}
