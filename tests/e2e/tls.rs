//! TLS on either side: what is offered to clients, and what a smarthost must show.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::support::client::Client;
use crate::support::gate::{Gate, Settings, right_password};
use crate::support::mail::message;
use crate::support::postfix::Postfix;
use crate::support::sink::Sink;
use crate::support::{PATIENCE, tools};

const NAME: &str = "gate.example.test";

#[test]
fn neither_starttls_nor_auth_is_offered_without_being_configured() {
    let sink = Sink::start();
    let gate = Gate::start(&Settings::plain(sink.address));
    let mut client = Client::connect(gate.address);
    let offered = client.command("EHLO client.test").expect(250).lines;
    let words: Vec<_> = offered.iter().filter_map(|l| l.split(' ').next()).collect();
    assert!(!words.contains(&"STARTTLS") && !words.contains(&"AUTH"), "{offered:?}");
    for wanted in ["PIPELINING", "SIZE", "8BITMIME", "SMTPUTF8", "CHUNKING", "DSN"] {
        assert!(words.contains(&wanted), "no {wanted} in {offered:?}");
    }
    assert!(words.contains(&"ENHANCEDSTATUSCODES"), "{offered:?}");
    assert!(matches!(client.command("STARTTLS").code, 500 | 502 | 503));
    assert!(matches!(client.command("AUTH PLAIN AGEAYg==").code, 500 | 502 | 503));
}

#[test]
fn a_client_may_encrypt_where_a_certificate_is_configured() {
    let dir = tempfile::tempdir().unwrap();
    let (cert, key, _) = certificate(dir.path());
    let sink = Sink::start();
    let listener = format!("tls = \"starttls\"\ncert = {cert:?}\nkey = {key:?}");
    let gate = Gate::start(&Settings { listener: &listener, ..Settings::plain(sink.address) });
    let said = tools::swaks(gate.address, &message("tls"), &["--tls"]).expect_code(0).stdout;
    assert!(said.contains("TLS started with cipher TLSv1.3"), "{said}");
    let content = String::from_utf8(sink.wait_for("tls@test", PATIENCE).content).unwrap();
    assert!(content.contains("with ESMTPS"), "{content}");
    tools::swaks(gate.address, &message("clear"), &[]).expect_code(0);
    sink.wait_for("clear@test", PATIENCE);
}

#[test]
fn commands_sent_in_clear_behind_starttls_are_never_obeyed() {
    let dir = tempfile::tempdir().unwrap();
    let (cert, key, trusted) = certificate(dir.path());
    let sink = Sink::start();
    let listener = format!("tls = \"starttls\"\ncert = {cert:?}\nkey = {key:?}");
    let gate = Gate::start(&Settings { listener: &listener, ..Settings::plain(sink.address) });

    let mut clear = BufReader::new(TcpStream::connect(gate.address).unwrap());
    clear.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(reply(&mut clear).starts_with("220"));
    clear.get_mut().write_all(b"EHLO client.test\r\n").unwrap();
    assert!(reply(&mut clear).starts_with("250"));
    clear.get_mut().write_all(b"STARTTLS\r\nMAIL FROM:<evil@example.test>\r\nNOOP\r\n").unwrap();
    assert!(reply(&mut clear).starts_with("220"));
    assert!(clear.buffer().is_empty(), "it answered what came behind STARTTLS");

    let name = ServerName::try_from(NAME).unwrap();
    let connection = ClientConnection::new(trust(trusted), name).unwrap();
    let mut secure = BufReader::new(StreamOwned::new(connection, clear.into_inner()));
    // What is known of the session is forgotten too (RFC 3207 section 4.2).
    secure.get_mut().write_all(b"RCPT TO:<b@example.test>\r\n").unwrap();
    assert!(reply(&mut secure).starts_with("503"));
    secure.get_mut().write_all(b"EHLO client.test\r\n").unwrap();
    assert!(!reply(&mut secure).contains("STARTTLS"));
    secure.get_mut().write_all(b"RCPT TO:<b@example.test>\r\n").unwrap();
    assert!(reply(&mut secure).starts_with("503"));
}

#[test]
fn a_smarthost_with_the_wrong_certificate_gets_neither_mail_nor_password() {
    let sink = Sink::start();
    let postfix = Postfix::start(sink.address);
    let dir = tempfile::tempdir().unwrap();
    let (other_cert, ..) = certificate(dir.path());
    let password = right_password(dir.path());
    let right = Settings::postfix_submission(&postfix, &password).upstream;
    let own = format!("{:?}", postfix.ca_file());
    let wrongs =
        [right.replace(&own, &format!("{other_cert:?}")), right.replace("core.test", "other.test")];
    for upstream in wrongs {
        let gate = Gate::start(&Settings { upstream, ..Settings::plain(postfix.submission) });
        let id = Client::hello(gate.address).send("a@b.test", &["c@d.test"], &message("wrong"));
        let event = gate.wait_event("delivery", |e| e["queue_id"] == id.as_str());
        assert_eq!(event["status"], "deferred", "{event}");
        assert!(event["reply"].as_str().unwrap().contains("tls"), "{event}");
    }
    assert!(sink.accepted().is_empty());
    assert!(!postfix.log().contains("sasl_method"), "{}", postfix.log());
}

/// A certificate that signs itself: its file, its key's file, and itself.
fn certificate(dir: &Path) -> (PathBuf, PathBuf, CertificateDer<'static>) {
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
    let (cert, key) = (dir.join("gate-cert.pem"), dir.join("gate-key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    (cert, key, made.cert.der().clone())
}

fn trust(certificate: CertificateDer<'static>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    Arc::new(builder.with_root_certificates(roots).with_no_client_auth())
}

fn reply(stream: &mut impl BufRead) -> String {
    let mut reply = String::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        let last = line.as_bytes().get(3) != Some(&b'-');
        reply += &line;
        if last {
            return reply;
        }
    }
}
