//! The probe: the way to a smarthost walked stage by stage, and what to do where it ends.
//!
//! It opens a connection with the very code that deliveries use, and watches. Nothing is sent; with
//! a recipient given, MAIL and RCPT are asked and taken back by RSET.

mod diagnosis;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

pub use diagnosis::Diagnosis;

use crate::clock::Timestamp;
use crate::mail::{Mailbox, Stage};
use crate::secret::Credentials;
use crate::upstream::smtp::{
    Capabilities, Cause, Connection, Connector, Observer, Problem, Seen, Settings, SettingsError,
    TlsMode,
};
use diagnosis::{Context, diagnose};

/// What to probe besides the connection.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Ask whether this recipient would be accepted.
    pub rcpt: Option<Mailbox>,
    /// The sender to ask with; the null reverse-path if not given.
    pub from: Option<Mailbox>,
}

/// A stage of the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// The name's addresses.
    Dns,
    /// The TCP connection.
    Tcp,
    /// The 220.
    Greeting,
    /// EHLO, in clear or with implicit TLS.
    Ehlo,
    /// STARTTLS.
    Starttls,
    /// The TLS handshake and the certificate.
    Cert,
    /// EHLO after STARTTLS.
    #[serde(rename = "ehlo/tls")]
    EhloTls,
    /// The login.
    Auth,
    /// MAIL FROM, asked together with the recipient.
    Mail,
    /// RCPT TO.
    Rcpt,
}

impl Step {
    /// The word in reports.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Tcp => "tcp",
            Self::Greeting => "greeting",
            Self::Ehlo => "ehlo",
            Self::Starttls => "starttls",
            Self::Cert => "cert",
            Self::EhloTls => "ehlo/tls",
            Self::Auth => "auth",
            Self::Mail => "mail",
            Self::Rcpt => "rcpt",
        }
    }

    /// The exit code when it fails: that of swaks.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Dns | Self::Tcp => 2,
            Self::Greeting => 21,
            Self::Ehlo | Self::EhloTls => 22,
            Self::Mail => 23,
            Self::Rcpt => 24,
            Self::Auth => 28,
            Self::Starttls | Self::Cert => 29,
        }
    }
}

/// How a stage went.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Well.
    Ok,
    /// Not; nothing after it was tried.
    Fail,
    /// It was not needed or could not be tried.
    Skip,
}

/// One stage in the report.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct StageReport {
    /// Which.
    pub stage: Step,
    /// How it went.
    pub status: Status,
    /// One line.
    pub detail: String,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
}

/// What a probe found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Report {
    /// The upstream's name.
    pub upstream: String,
    /// `host:port`.
    pub target: String,
    /// Every stage in its order.
    pub stages: Vec<StageReport>,
    /// What the failure means and what to do; `None` when nothing failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diagnosis: Option<Diagnosis>,
    /// That of swaks: 0 when nothing failed.
    pub exit_code: u8,
}

/// Probes a smarthost. `now` is what certificates' ages are counted from.
///
/// Takes at most the sum of the settings' time-outs. Fails only when the settings cannot be used.
pub async fn probe(
    settings: Settings,
    credentials: Option<Arc<Credentials>>,
    options: &Options,
    now: Timestamp,
) -> Result<Report, SettingsError> {
    let place = credentials.as_deref().map(|c| &c.place);
    let target = settings.target(place).ok_or(SettingsError::Host)?;
    let connector = Connector::new(settings)?;
    let mut recorder = Recorder::new(target.tls, now);
    let t = &connector.settings().timeouts;
    let deadline = Instant::now() + t.connect * 2 + t.greeting + t.command * 8;
    let opened = connector.open(credentials.clone(), deadline, &mut recorder).await;
    let end = match opened {
        Ok(connection) => ask(connection, t.command, options, &mut recorder).await,
        Err(problem) => Err((recorder.step_of(&problem), problem.cause)),
    };
    let presented = connector.presented();
    let failed = end.as_ref().err().map(|(step, _)| *step);
    let diagnosis = end.err().map(|(step, cause)| {
        let mut detail = cause.to_string();
        if step == Step::Cert && !presented.is_empty() {
            detail = format!("{detail}; presented: {}", certificate(presented, now));
        }
        recorder.push(step, Status::Fail, detail);
        let context = Context {
            settings: connector.settings(),
            target: &target,
            credentials: credentials.as_deref(),
            local: recorder.local,
            names: presented.first().map(|c| names(c)).unwrap_or_default(),
            fingerprint: presented.first().map(|c| fingerprint(c)),
        };
        diagnose(step, &cause, &context)
    });
    let settings = connector.settings();
    Ok(Report {
        upstream: settings.name.clone(),
        target: format!("{}:{}", target.host, target.port),
        stages: recorder.complete(settings, failed),
        diagnosis,
        exit_code: failed.map_or(0, Step::exit_code),
    })
}

/// Asks whether the recipient would be accepted, and takes leave.
async fn ask(
    mut connection: Connection,
    limit: Duration,
    options: &Options,
    recorder: &mut Recorder,
) -> Result<(), (Step, Cause)> {
    if let Some(recipient) = &options.rcpt {
        let from = options.from.as_ref().map(ToString::to_string).unwrap_or_default();
        for (step, line) in [
            (Step::Mail, format!("MAIL FROM:<{from}>\r\n")),
            (Step::Rcpt, format!("RCPT TO:<{recipient}>\r\n")),
        ] {
            let reply = connection.dialogue.command(&line, limit).await.map_err(|c| (step, c))?;
            if !reply.is_positive() {
                connection.dialogue.quit().await;
                return Err((step, Cause::Refused(reply)));
            }
            if step == Step::Rcpt {
                recorder.push(step, Status::Ok, format!("<{recipient}>  {reply}"));
            }
        }
        let _ = connection.dialogue.command("RSET\r\n", limit).await;
    }
    connection.dialogue.quit().await;
    Ok(())
}

/// Writes down what happens on the way.
struct Recorder {
    tls: TlsMode,
    now: Timestamp,
    stages: Vec<StageReport>,
    last: Instant,
    local: Option<SocketAddr>,
}

impl Recorder {
    fn new(tls: TlsMode, now: Timestamp) -> Self {
        Self { tls, now, stages: Vec::new(), last: Instant::now(), local: None }
    }

    fn push(&mut self, stage: Step, status: Status, detail: String) {
        let now = Instant::now();
        let duration_ms = u64::try_from((now - self.last).as_millis()).unwrap_or(u64::MAX);
        self.last = now;
        self.stages.push(StageReport { stage, status, detail, duration_ms });
    }

    fn has(&self, step: Step) -> bool {
        self.stages.iter().any(|s| s.stage == step)
    }

    /// Where on the way a problem stands.
    fn step_of(&self, problem: &Problem) -> Step {
        let implicit = self.tls == TlsMode::Implicit;
        match problem.stage {
            Stage::Dns => Step::Dns,
            Stage::Greeting => Step::Greeting,
            Stage::Ehlo if self.has(Step::Cert) && !implicit => Step::EhloTls,
            Stage::Ehlo => Step::Ehlo,
            Stage::Tls if self.has(Step::Starttls) || implicit => Step::Cert,
            Stage::Tls => Step::Starttls,
            Stage::Auth => Step::Auth,
            _ => Step::Tcp,
        }
    }

    /// Adds the stages that were not come to, each with its reason.
    fn complete(mut self, settings: &Settings, failed: Option<Step>) -> Vec<StageReport> {
        use Step::{Auth, Cert, Dns, Ehlo, EhloTls, Greeting, Mail, Rcpt, Starttls, Tcp};
        let order = match self.tls {
            TlsMode::Implicit => vec![Dns, Tcp, Cert, Greeting, Ehlo, Auth, Mail, Rcpt],
            TlsMode::None => vec![Dns, Tcp, Greeting, Ehlo, Auth, Mail, Rcpt],
            _ => vec![Dns, Tcp, Greeting, Ehlo, Starttls, Cert, EhloTls, Auth, Mail, Rcpt],
        };
        for &step in &order {
            if self.has(step) || step == Mail {
                continue;
            }
            let detail = match (failed, step) {
                (Some(Step::Mail), Rcpt) => "needs mail".into(),
                (_, Auth) if !settings.auth_required => "no login configured".into(),
                (Some(failed), _) => format!("needs {}", failed.word()),
                (None, Auth) => "the credentials are empty".into(),
                (None, Rcpt) => "not asked for".into(),
                (None, _) => "STARTTLS not offered".into(),
            };
            let status = Status::Skip;
            self.stages.push(StageReport { stage: step, status, detail, duration_ms: 0 });
        }
        self.stages.sort_by_key(|s| order.iter().position(|step| *step == s.stage));
        self.stages
    }
}

impl Observer for Recorder {
    fn seen(&mut self, step: Seen<'_>) {
        let (step, detail) = match step {
            Seen::Resolved(addresses) => {
                let list: Vec<_> = addresses.iter().map(|a| a.ip().to_string()).collect();
                (Step::Dns, list.join(" "))
            }
            Seen::Connected(local, peer) => {
                self.local = local;
                let local = local.map(|l| format!("{l} -> ")).unwrap_or_default();
                (Step::Tcp, format!("{local}{peer}"))
            }
            Seen::Greeted(reply) => (Step::Greeting, reply.to_string()),
            Seen::Ehlo(offered) => (Step::Ehlo, offers(offered)),
            Seen::StartTls(reply) => (Step::Starttls, reply.to_string()),
            Seen::Secured(version, presented) => {
                (Step::Cert, format!("{version}, {}", certificate(presented, self.now)))
            }
            Seen::EhloTls(offered) => (Step::EhloTls, offers(offered)),
            Seen::LoggedIn(mechanism, reply) => {
                (Step::Auth, format!("{}  {reply}", mechanism.keyword()))
            }
        };
        self.push(step, Status::Ok, detail);
    }
}

fn offers(offered: &Capabilities) -> String {
    if offered.lines.is_empty() { "no extensions".into() } else { offered.lines.join(", ") }
}

/// The leaf in one line: its names, who issued it, the days it is still valid, its fingerprint.
fn certificate(presented: &[CertificateDer<'_>], now: Timestamp) -> String {
    const DAY: i64 = 86_400;
    let Some(leaf) = presented.first() else { return "no certificate".into() };
    let Ok((_, parsed)) = X509Certificate::from_der(leaf) else { return "not readable".into() };
    let names = names(leaf);
    let names = if names.is_empty() { "no name".into() } else { names.join(" ") };
    let issuer = if parsed.issuer() == parsed.subject() {
        "itself".into()
    } else {
        parsed.issuer().to_string()
    };
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let left = (parsed.validity().not_after.timestamp() - now).div_euclid(DAY);
    let dates = match left {
        ..0 => format!("expired {} days ago", -left),
        _ => format!("{left} days left"),
    };
    format!("{names}, issued by {issuer}, {dates}, sha256 {}", fingerprint(leaf))
}

/// The names a certificate is for.
fn names(leaf: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, parsed)) = X509Certificate::from_der(leaf) else { return vec![] };
    let alternative = parsed.subject_alternative_name().ok().flatten();
    let names = alternative.map(|a| a.value.general_names.as_slice()).unwrap_or_default();
    let names = names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(octets) => match octets.len() {
            4 => <[u8; 4]>::try_from(*octets).ok().map(|o| std::net::Ipv4Addr::from(o).to_string()),
            _ => {
                <[u8; 16]>::try_from(*octets).ok().map(|o| std::net::Ipv6Addr::from(o).to_string())
            }
        },
        _ => None,
    });
    names.collect()
}

/// SHA-256 in hexadecimal.
fn fingerprint(leaf: &CertificateDer<'_>) -> String {
    format!("{:x}", Sha256::digest(leaf))
}

#[cfg(test)]
mod tests;
