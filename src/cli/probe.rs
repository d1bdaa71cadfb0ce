//! `probe`: the way to a smarthost, one line a stage, and what to do where it ends; or what Amazon
//! SES says of the account.

use std::sync::Arc;

use serde_json::json;
use tokio::sync::{Notify, watch};

use super::args::{Global, Probe};
use super::out::Out;
use super::status::flatten;
use super::{Failure, exit};
use crate::clock::{Clock, SystemClock};
use crate::config::{self, Config, Upstream, UpstreamKind};
use crate::secret::Credentials;
use crate::secrets;
use crate::upstream::probe::{Options, Report, Status, probe};
use crate::upstream::ses::{self, SesUpstream};
use crate::upstream::smtp::{Settings, TlsMode, Verify};

/// Our name in EHLO where there is no configuration to tell it.
const HELO: &str = "postgate-probe.localdomain";

/// What is probed, and what it logs in with.
enum Target {
    Smtp(Box<Settings>, Option<Arc<Credentials>>),
    Ses(Box<ses::Settings>, Option<Arc<Credentials>>),
}

pub(super) async fn run(global: &Global, options: Probe, out: &mut Out) -> Result<(), Failure> {
    let config = config::load(&global.config(), &config::environment());
    let target = match (&options.target, &config) {
        (Some(target), Err(_)) => ad_hoc(target, HELO)?,
        (Some(target), Ok((config, _))) => named(config, target).await?,
        (None, Ok((config, _))) => preferred(config).await?,
        (None, Err(report)) => {
            let message = format!("{}\n{report}", report.summary());
            return Err(Failure::new(exit::CONFIG, message));
        }
    };
    match target {
        Target::Smtp(settings, credentials) => {
            smarthost(global, *settings, credentials, options, out).await
        }
        Target::Ses(settings, credentials) => account(global, *settings, credentials, out).await,
    }
}

async fn smarthost(
    global: &Global,
    settings: Settings,
    credentials: Option<Arc<Credentials>>,
    options: Probe,
    out: &mut Out,
) -> Result<(), Failure> {
    let head = head(&settings, credentials.as_deref());
    let asked = Options { rcpt: options.rcpt, from: options.from };
    let report = probe(settings, credentials, &asked, SystemClock.wall()).await;
    let report = report.map_err(|e| Failure::new(exit::CONFIG, e.to_string()))?;
    if global.json {
        out.json(&report)?;
    } else {
        out.line(&head)?;
        lines(&report).iter().try_for_each(|line| out.line(line))?;
    }
    if report.exit_code == exit::OK { Ok(()) } else { Err(Failure::silent(report.exit_code)) }
}

/// There are no stages on the way to SES: it is asked for the account, with the key and the region
/// that mail would go with.
async fn account(
    global: &Global,
    settings: ses::Settings,
    credentials: Option<Arc<Credentials>>,
    out: &mut Out,
) -> Result<(), Failure> {
    let name = settings.name.clone();
    let auth = credentials.as_ref().map_or("the AWS chain", |c| c.username.as_str()).to_owned();
    let answered = Arc::new(Notify::new());
    let (_told, login) = watch::channel(credentials);
    let ses = SesUpstream::new(settings, login, Arc::new(SystemClock), Arc::clone(&answered));
    let ses = ses.map_err(|e| Failure::new(exit::CONFIG, e.to_string()))?;
    // To look is to ask.
    ses.status();
    answered.notified().await;
    let status = ses.status();
    let value = serde_json::to_value(&status);
    let value = value.map_err(|e| Failure::new(exit::SOFTWARE, e.to_string()))?;
    if global.json {
        out.json(&json!({ "upstream": name, "account": value }))?;
    } else {
        out.line(&format!("{name}  ses  {}  auth={auth}", status.endpoint))?;
        out.line("Amazon SES has no way of SMTP to probe; this is what it says of the account:")?;
        let mut rows = Vec::new();
        flatten("", &value, &mut rows);
        rows.iter().try_for_each(|(key, value)| out.line(&format!("  {key:<14}  {value}")))?;
    }
    if status.error.is_none() { Ok(()) } else { Err(Failure::silent(exit::FAILED)) }
}

/// The upstream of that name, or any host and port.
async fn named(config: &Config, target: &str) -> Result<Target, Failure> {
    match config.upstream(target) {
        Some(upstream) => configured(config, upstream).await,
        None => ad_hoc(target, &config.hostname),
    }
}

/// The first smarthost of the route.
async fn preferred(config: &Config) -> Result<Target, Failure> {
    let names = config.routes.iter().flat_map(|route| &route.upstreams);
    let mut known = names.filter_map(|name| config.upstream(name));
    let first = known.find(|u| matches!(u.kind, UpstreamKind::Smtp(_)));
    let none = || Failure::new(exit::USAGE, "no smarthost is configured: name HOST:PORT");
    configured(config, first.ok_or_else(none)?).await
}

async fn configured(config: &Config, upstream: &Upstream) -> Result<Target, Failure> {
    match &upstream.kind {
        UpstreamKind::Smtp(smtp) => Ok(Target::Smtp(smtp.clone(), login(config, upstream).await?)),
        UpstreamKind::Ses(ses) => {
            Ok(Target::Ses(Box::new(ses.settings.clone()), login(config, upstream).await?))
        }
        UpstreamKind::Maildir(_) => {
            let message = format!("{} is a Maildir: there is no way to probe", upstream.name);
            Err(Failure::new(exit::USAGE, message))
        }
    }
}

/// What an upstream logs in with, read now.
async fn login(config: &Config, upstream: &Upstream) -> Result<Option<Arc<Credentials>>, Failure> {
    let Some(name) = &upstream.secret else { return Ok(None) };
    let read = secrets::read_once(&config.secrets, name, Arc::new(SystemClock)).await;
    let read = read.unwrap_or_else(|| Err("is not configured".to_owned()));
    let failed = |why| Failure::new(exit::UNAVAILABLE, format!("secret {name}: {why}"));
    read.map(Some).map_err(failed)
}

/// A server that is in no configuration: the TLS its port is known for, no login.
fn ad_hoc(target: &str, helo: &str) -> Result<Target, Failure> {
    let parsed = target.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    let Some((host, port)) = parsed.filter(|(host, _)| !host.is_empty()) else {
        let message = format!("{target} is neither a configured upstream nor HOST:PORT");
        return Err(Failure::new(exit::USAGE, message));
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let tls = match port {
        465 => TlsMode::Implicit,
        587 => TlsMode::StartTls,
        _ => TlsMode::Opportunistic,
    };
    let verify = if tls == TlsMode::Opportunistic { Verify::None } else { Verify::Full };
    let settings = Settings::new("ad-hoc", host, port, helo);
    Ok(Target::Smtp(Box::new(Settings { tls: Some(tls), verify, ..settings }), None))
}

/// Whom is probed, and how.
fn head(settings: &Settings, credentials: Option<&Credentials>) -> String {
    let Settings { name, verify, .. } = settings;
    let target = settings.target(credentials.map(|c| &c.place));
    let place = target.as_ref().map_or_else(|| "?".into(), |t| format!("{}:{}", t.host, t.port));
    let tls = target.map_or("?", |target| target.tls.word());
    let verify = match verify {
        Verify::Full => "full",
        Verify::CaOnly => "ca-only",
        Verify::Fingerprint(_) => "fingerprint",
        Verify::None => "none",
    };
    let auth = credentials.map_or("none", |c| c.username.as_str());
    format!("{name}  smtp  {place}  tls={tls} verify={verify}  auth={auth}")
}

/// The stages, then the diagnosis and what to do next.
fn lines(report: &Report) -> Vec<String> {
    let stage = |s: &crate::upstream::probe::StageReport| {
        let status = match s.status {
            Status::Ok => "ok",
            Status::Fail => "FAIL",
            Status::Skip => "skip",
        };
        let line = format!("  {status:<4}  {:<8}  {:<54}", s.stage.word(), s.detail);
        match s.status {
            Status::Skip => line.trim_end().to_owned(),
            _ => format!("{line}  {:>6}", format!("{} ms", s.duration_ms)),
        }
    };
    let mut lines: Vec<String> = report.stages.iter().map(stage).collect();
    if let Some(diagnosis) = &report.diagnosis {
        lines.push(format!("DIAGNOSIS  {}", diagnosis.text));
        let labels = std::iter::once("DO NEXT  ").chain(std::iter::repeat("         "));
        lines
            .extend(diagnosis.next.iter().zip(labels).map(|(next, label)| label.to_owned() + next));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::probe::{Diagnosis, StageReport, Step};

    #[test]
    fn the_report_is_one_line_a_stage_and_then_what_to_do() {
        let stage = |stage, status, detail: &str, duration_ms| StageReport {
            stage,
            status,
            detail: detail.into(),
            duration_ms,
        };
        let report = Report {
            upstream: "core".into(),
            target: "mail-core-01:587".into(),
            stages: vec![
                stage(Step::Dns, Status::Ok, "10.0.0.5", 1),
                stage(Step::Auth, Status::Fail, "535 5.7.8 authentication failed", 2013),
                stage(Step::Rcpt, Status::Skip, "needs auth", 0),
            ],
            diagnosis: Some(Diagnosis {
                text: "The path is right.".into(),
                next: vec!["on mail-core-01:  doveadm auth test".into(), "journalctl".into()],
            }),
            exit_code: 28,
        };
        let pad = " ".repeat(54 - "10.0.0.5".len());
        assert_eq!(
            lines(&report),
            [
                format!("  ok    dns       10.0.0.5{pad}    1 ms"),
                format!("  FAIL  auth      {:<54}  2013 ms", "535 5.7.8 authentication failed"),
                "  skip  rcpt      needs auth".into(),
                "DIAGNOSIS  The path is right.".into(),
                "DO NEXT  on mail-core-01:  doveadm auth test".into(),
                "         journalctl".into(),
            ]
        );
    }

    #[test]
    fn a_host_and_port_is_probed_as_its_port_is_known() {
        for (target, host, port, tls) in [
            ("mail:25", "mail", 25, TlsMode::Opportunistic),
            ("mail:587", "mail", 587, TlsMode::StartTls),
            ("[::1]:465", "::1", 465, TlsMode::Implicit),
        ] {
            let Ok(Target::Smtp(settings, credentials)) = ad_hoc(target, "h") else {
                panic!("{target}")
            };
            let target = settings.target(None).unwrap();
            assert_eq!((target.host.as_str(), target.port, target.tls), (host, port, tls));
            assert!(credentials.is_none() && !settings.auth_required);
        }
        for target in ["core", "mail:", ":25", "mail:smtp", "mail:65536"] {
            let refused = ad_hoc(target, "h").err().map(|failure| failure.code);
            assert_eq!(refused, Some(exit::USAGE), "{target}");
        }
    }
}
