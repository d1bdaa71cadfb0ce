//! From what was observed to what it means and what to do. Pure.
//!
//! The texts are those of Postfix and Dovecot, for that is what most smarthosts are.

use std::io::ErrorKind;
use std::net::SocketAddr;

use rustls::{CertificateError, InvalidMessage};
use serde::Serialize;

use super::Step;
use crate::mail::Reply;
use crate::secret::Credentials;
use crate::upstream::smtp::{Cause, Settings, Target, TlsMode};

/// What a failure means and what to do about it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Diagnosis {
    /// What it means.
    pub text: String,
    /// What to do, a line each.
    pub next: Vec<String>,
}

/// What is known besides the failure.
pub(super) struct Context<'a> {
    pub(super) settings: &'a Settings,
    pub(super) target: &'a Target,
    pub(super) credentials: Option<&'a Credentials>,
    /// Our end of the connection.
    pub(super) local: Option<SocketAddr>,
    /// The names in the certificate that was presented.
    pub(super) names: Vec<String>,
    /// Its SHA-256.
    pub(super) fingerprint: Option<String>,
}

/// The diagnosis of a stage that failed.
pub(super) fn diagnose(step: Step, cause: &Cause, context: &Context<'_>) -> Diagnosis {
    match step {
        Step::Dns => dns(context),
        Step::Tcp => tcp(cause, context),
        Step::Greeting => greeting(cause, context),
        Step::Ehlo | Step::EhloTls => ehlo(cause, context),
        Step::Starttls => starttls(cause, context),
        Step::Cert => handshake(cause, context),
        Step::Auth => auth(cause, context),
        Step::Mail | Step::Rcpt => transaction(cause, context),
    }
}

fn say<const N: usize>(text: impl Into<String>, next: [String; N]) -> Diagnosis {
    Diagnosis { text: text.into(), next: next.into() }
}

impl Context<'_> {
    /// The line that sets a key of this upstream, ready to be pasted.
    fn set(&self, key: &str, value: &str) -> String {
        format!("set in [upstreams.{}]:  {key} = {value}", self.settings.name)
    }

    fn on_host(&self, command: &str) -> String {
        format!("on {}:  {command}", self.target.host)
    }

    fn our_address(&self) -> String {
        self.local.map_or_else(|| "our address".into(), |l| l.ip().to_string())
    }
}

fn dns(c: &Context<'_>) -> Diagnosis {
    let host = &c.target.host;
    say(
        format!("The name {host} cannot be resolved on this machine."),
        [format!("getent ahosts {host}"), c.set("address", "[\"192.0.2.1\"]  # the right one")],
    )
}

fn tcp(cause: &Cause, c: &Context<'_>) -> Diagnosis {
    let port = c.target.port;
    match cause {
        Cause::Io(e) if e.kind() == ErrorKind::ConnectionRefused => say(
            format!("The host answers, but nothing listens on port {port} there."),
            [c.on_host(&format!("ss -ltn 'sport = :{port}'"))],
        ),
        Cause::TimedOut(_) => say(
            format!(
                "No answer from port {port}: a firewall drops the packets, or a wrong address."
            ),
            [c.on_host("nft list ruleset"), format!("nc -vz {} {port}", c.target.host)],
        ),
        _ => say(
            "The network does not lead there.",
            [format!("ip route get {}", c.target.host), "check address and port".into()],
        ),
    }
}

fn greeting(cause: &Cause, c: &Context<'_>) -> Diagnosis {
    let clear = c.target.tls != TlsMode::Implicit;
    match cause {
        Cause::Refused(_) => say(
            format!(
                "The server turns {} away in its greeting; its text says why.",
                c.our_address()
            ),
            [c.on_host("postconf mynetworks smtpd_client_restrictions")],
        ),
        Cause::TimedOut(_) | Cause::Closed if clear && c.target.port == 465 => say(
            "Port 465 speaks TLS from the first octet and waits for us to begin.",
            [c.set("tls", "\"implicit\"")],
        ),
        Cause::TimedOut(_) | Cause::Closed => say(
            "Connected, but no greeting: the service is overloaded, lets this client wait, or a \
             proxy in between has nothing behind it.",
            [
                c.on_host("journalctl -u postfix -n 20"),
                "if the port expects TLS at once: tls = \"implicit\"".into(),
            ],
        ),
        Cause::BadReply(_) => say(
            "What answers there is not an SMTP server, or it speaks TLS from the first octet.",
            [c.set("port", "587"), "if the port is right: tls = \"implicit\"".into()],
        ),
        _ => say("The connection broke before the greeting.", []),
    }
}

fn ehlo(cause: &Cause, c: &Context<'_>) -> Diagnosis {
    match cause {
        Cause::Refused(_) => say(
            format!("The server does not like our EHLO name {}.", c.settings.helo),
            [
                "set hostname to a name that resolves to this machine".into(),
                c.on_host("postconf smtpd_helo_restrictions"),
            ],
        ),
        _ => say("The server stopped talking at EHLO.", [c.on_host("journalctl -u postfix -n 20")]),
    }
}

fn starttls(cause: &Cause, c: &Context<'_>) -> Diagnosis {
    match cause {
        Cause::NoStartTls => say(
            "STARTTLS is not offered: TLS is off there, or something in between removes it. Mail \
             is not sent in clear instead.",
            [
                c.on_host("postconf smtpd_tls_security_level   (may or encrypt is needed)"),
                format!("compare:  {}", s_client(c)),
            ],
        ),
        Cause::Refused(_) => say(
            "The server offers STARTTLS and then refuses it: its certificate or key is missing.",
            [c.on_host("postconf smtpd_tls_cert_file smtpd_tls_key_file smtpd_tls_chain_files")],
        ),
        Cause::Injected => say(
            "Text came between the reply to STARTTLS and TLS: someone on the way forges replies, \
             or the server is broken. The connection was given up.",
            [format!("from another network:  {}", s_client(c))],
        ),
        _ => say("The server stopped talking at STARTTLS.", []),
    }
}

fn s_client(c: &Context<'_>) -> String {
    let Target { host, port, tls } = c.target;
    let starttls = if *tls == TlsMode::Implicit { "" } else { "-starttls smtp " };
    format!("openssl s_client {starttls}-connect {host}:{port} -showcerts </dev/null")
}

fn handshake(cause: &Cause, c: &Context<'_>) -> Diagnosis {
    let Cause::Tls(error) = cause else {
        return say(
            "The TLS handshake was not finished: a firewall that inspects TLS, or no protocol in \
             common (TLS 1.2 or 1.3 is needed).",
            [s_client(c), c.on_host("postconf smtpd_tls_mandatory_protocols")],
        );
    };
    match error.as_ref() {
        rustls::Error::InvalidCertificate(e) => certificate(e, c),
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => say(
            "TLS was spoken to a server that still speaks in clear: this port wants STARTTLS.",
            [c.set("tls", "\"starttls\"")],
        ),
        _ => say(
            "The two sides agree on no TLS version or cipher.",
            [s_client(c), c.on_host("postconf smtpd_tls_mandatory_protocols")],
        ),
    }
}

fn certificate(error: &CertificateError, c: &Context<'_>) -> Diagnosis {
    use CertificateError as E;
    let pin = c.fingerprint.as_ref().map(|hash| c.set("verify", &format!("\"{hash}\"")));
    match error {
        E::NotValidForName | E::NotValidForNameContext { .. } => match c.names.first() {
            Some(name) => say(
                format!("The certificate is good, but for {}.", c.names.join(", ")),
                [c.set("tls_server_name", &format!("\"{name}\""))],
            ),
            None => say(
                "The certificate has no subjectAltName, so it is for no host.",
                [
                    c.set("verify", "\"ca-only\""),
                    "or make one with -addext subjectAltName=…".into(),
                ],
            ),
        },
        E::Expired | E::ExpiredContext { .. } => say(
            "The certificate has expired.",
            ["renew it, and reload the server".into(), "if it is new: check this clock".into()],
        ),
        E::NotValidYet | E::NotValidYetContext { .. } => {
            say("The certificate is not valid yet.", ["check this machine's clock: date".into()])
        }
        E::ApplicationVerificationFailure => say(
            "This is not the certificate whose fingerprint is configured.",
            [pin.unwrap_or_default(), "only if the change was yours".into()],
        ),
        _ => say(
            "The certificate is from an authority that is not trusted here: a private one, or \
             itself (self-signed).",
            [
                format!("{} | openssl x509 > smarthost.pem", s_client(c)),
                "compare it with the one on the server".into(),
                c.set("ca_file", "\"/etc/postgate/tls/smarthost.pem\""),
            ],
        ),
    }
}

fn auth(cause: &Cause, c: &Context<'_>) -> Diagnosis {
    match cause {
        Cause::NoCredentials => say(
            "A login is configured, and no user name and password are at hand.",
            ["check the source named in auth".into()],
        ),
        Cause::ClearText => say(
            "A password is never sent in clear.",
            [c.set("tls", "\"starttls\"   # or \"implicit\" on port 465")],
        ),
        Cause::NoMechanism(offered) if offered.is_empty() => not_enabled(c),
        Cause::NoMechanism(offered) => say(
            format!("The server offers {}; none is configured here.", offered.join(", ")),
            [c.on_host("doveconf auth_mechanisms   (plain login)")],
        ),
        Cause::Refused(reply) => login_refused(reply, c),
        _ => say("The connection broke at the login.", [c.on_host("journalctl -u postfix -n 20")]),
    }
}

fn login_refused(reply: &Reply, c: &Context<'_>) -> Diagnosis {
    match reply.code() {
        503 => not_enabled(c),
        530 | 538 | 504 => {
            say("The server wants TLS before a login.", [c.set("tls", "\"starttls\"")])
        }
        400..500 => say(
            "The server cannot check passwords at the moment (Dovecot down, or its socket not \
             readable). It is not your password.",
            [c.on_host("systemctl status dovecot"), c.on_host("postconf smtpd_sasl_path")],
        ),
        _ => {
            let user = c.credentials.map_or("the user", |u| &u.username);
            say(
                format!(
                    "Path, TLS and mechanism are right: the server understood the login and \
                     refused user or password.{}",
                    c.credentials.map(checked).unwrap_or_default()
                ),
                [
                    c.on_host(&format!("doveadm auth test -x service=smtp {user}")),
                    "  fails too: the password; works: the socket between Postfix and Dovecot"
                        .into(),
                    c.on_host("journalctl -g 'authentication failed' -n 3"),
                ],
            )
        }
    }
}

fn not_enabled(c: &Context<'_>) -> Diagnosis {
    say(
        "The server offers no login on this port.",
        [c.on_host("in master.cf, under submission:  -o smtpd_sasl_auth_enable=yes")],
    )
}

/// What can be said about a password without saying it.
fn checked(credentials: &Credentials) -> String {
    let (user, password) = (&credentials.username, credentials.password.expose());
    let clean = password.trim() == password && user.trim() == user;
    let ends = if clean { "no" } else { "there IS a" };
    let length = password.chars().count();
    format!(" The user is {user}, the password has {length} characters, {ends} blank at an end.")
}

fn transaction(cause: &Cause, c: &Context<'_>) -> Diagnosis {
    let Cause::Refused(reply) = cause else {
        return say("The connection broke in the transaction.", []);
    };
    let text = reply.text().to_ascii_lowercase();
    if text.contains("relay") {
        return if c.settings.auth_required {
            say(
                "The login is good, but gives no right to relay.",
                [c.on_host("postconf smtpd_relay_restrictions   (permit_sasl_authenticated)")],
            )
        } else {
            say(
                format!("{} may not relay there.", c.our_address()),
                [c.on_host("postconf mynetworks   (add that address)")],
            )
        };
    }
    if text.contains("not owned by user") {
        return say(
            "The login may not use this sender.",
            [c.on_host("postconf smtpd_sender_login_maps"), "probe with --from".into()],
        );
    }
    match reply.code() {
        530 => say(
            "The server wants TLS or a login before it takes mail.",
            [c.set("tls", "\"starttls\""), c.set("auth", "{ secret = \"smtp\" }")],
        ),
        400..500 => say("The server put it off; its text says why.", []),
        _ => say("The server refuses this sender or recipient; its text says why.", []),
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::Duration;

    use super::*;
    use crate::secret::Secret;

    fn refused(code: u16, text: &str) -> Cause {
        Cause::Refused(Reply::received(code, vec![text.into()]))
    }

    fn tls(error: rustls::Error) -> Cause {
        Cause::Tls(Box::new(error))
    }

    fn cert(error: CertificateError) -> Cause {
        tls(rustls::Error::InvalidCertificate(error))
    }

    #[test]
    fn each_observation_has_its_next_step() {
        let refused_port = || Cause::Io(io::ErrorKind::ConnectionRefused.into());
        let wait = || Cause::TimedOut(Duration::from_mins(1));
        let content_type = || rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType);
        let many = || Cause::NoMechanism(vec!["GSSAPI".into()]);
        for (step, port, cause, hint) in [
            (Step::Dns, 587, Cause::NoAddress("core".into()), "getent ahosts core"),
            (Step::Tcp, 587, refused_port(), "ss -ltn 'sport = :587'"),
            (Step::Tcp, 587, wait(), "nft list ruleset"),
            (Step::Greeting, 465, wait(), "tls = \"implicit\""),
            (Step::Greeting, 587, wait(), "journalctl"),
            (Step::Greeting, 25, refused(554, "5.7.1 no"), "postconf mynetworks"),
            (Step::Ehlo, 25, refused(504, "5.5.2 helo"), "hostname"),
            (Step::Starttls, 587, Cause::NoStartTls, "smtpd_tls_security_level"),
            (Step::Starttls, 587, refused(454, "4.7.0 TLS"), "smtpd_tls_cert_file"),
            (Step::Starttls, 587, Cause::Injected, "another network"),
            (Step::Cert, 587, tls(content_type()), "tls = \"starttls\""),
            (Step::Cert, 587, cert(CertificateError::UnknownIssuer), "ca_file = "),
            (
                Step::Cert,
                587,
                cert(CertificateError::NotValidForName),
                "tls_server_name = \"real\"",
            ),
            (Step::Cert, 587, cert(CertificateError::Expired), "renew"),
            (Step::Cert, 587, cert(CertificateError::NotValidYet), "clock"),
            (
                Step::Cert,
                587,
                cert(CertificateError::ApplicationVerificationFailure),
                "verify = \"abcd\"",
            ),
            (Step::Cert, 587, Cause::Closed, "smtpd_tls_mandatory_protocols"),
            (Step::Auth, 587, Cause::NoCredentials, "source"),
            (Step::Auth, 587, Cause::ClearText, "tls = \"starttls\""),
            (Step::Auth, 587, Cause::NoMechanism(vec![]), "smtpd_sasl_auth_enable=yes"),
            (Step::Auth, 587, refused(503, "5.5.1 not enabled"), "smtpd_sasl_auth_enable=yes"),
            (Step::Auth, 587, many(), "auth_mechanisms"),
            (Step::Auth, 587, refused(535, "5.7.8 UGFzc3dvcmQ6"), "doveadm auth test"),
            (Step::Auth, 587, refused(454, "4.7.0 lost"), "systemctl status dovecot"),
            (Step::Auth, 587, refused(504, "5.5.4 Encryption required"), "tls = \"starttls\""),
            (Step::Mail, 587, refused(530, "5.7.0 Must issue a STARTTLS"), "tls = \"starttls\""),
            (Step::Rcpt, 587, refused(554, "5.7.1 Relay access denied"), "permit_sasl"),
            (Step::Rcpt, 587, refused(553, "5.7.1 not owned by user"), "smtpd_sender_login_maps"),
        ] {
            let mut settings = Settings::new("core", "core", port, "gate");
            settings.auth_required = true;
            let context = Context {
                settings: &settings,
                target: &settings.target(None).unwrap(),
                credentials: None,
                local: None,
                names: vec!["real".into()],
                fingerprint: Some("abcd".into()),
            };
            let found = diagnose(step, &cause, &context);
            let next = found.next.join("\n");
            assert!(next.contains(hint), "{step:?} {cause}: {next}");
            assert!(!found.text.is_empty());
        }
    }

    #[test]
    fn a_refused_password_is_described_and_not_shown() {
        let password = Secret::new("hunter2\n".into());
        let credentials = Credentials::new("relay".into(), password, 1);
        let settings = Settings::new("core", "core", 587, "gate");
        let context = Context {
            settings: &settings,
            target: &settings.target(None).unwrap(),
            credentials: Some(&credentials),
            local: None,
            names: vec![],
            fingerprint: None,
        };
        let found = diagnose(Step::Auth, &refused(535, "5.7.8 no"), &context);
        assert!(found.text.contains("8 characters, there IS a blank at an end"));
        assert!(!format!("{found:?}").contains("hunter2"));
    }
}
