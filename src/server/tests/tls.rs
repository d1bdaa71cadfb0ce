//! Conversations under TLS.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::super::{Certificate, ListenerTls, Policy, bind, tls};
use super::harness::{Client, Server, listener, policy};
use crate::policy::networks::Networks;

struct Pki {
    dir: tempfile::TempDir,
    connector: TlsConnector,
}

fn pki() -> Pki {
    let made = rcgen::generate_simple_self_signed(vec!["gate.example".into()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(dir.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(made.cert.pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Pki { dir, connector: Arc::new(config).into() }
}

fn start(pki: &Pki, mode: fn(Certificate) -> ListenerTls, policy: Policy) -> Server {
    let file = |name: &str| pki.dir.path().join(name);
    let files = Certificate { cert: file("cert.pem"), key: file("key.pem") };
    let settings = listener("127.0.0.1:0", mode(files));
    let tls = tls::load(std::slice::from_ref(&settings)).unwrap();
    let bound = bind(&[settings], Vec::new()).unwrap();
    Server::start_on(bound, Policy { tls, ..policy }, Duration::from_secs(5))
}

async fn handshake(pki: &Pki, stream: TcpStream) -> Client<TlsStream<TcpStream>> {
    let name = ServerName::try_from("gate.example").unwrap();
    Client::new(pki.connector.connect(name, stream).await.unwrap())
}

#[tokio::test]
async fn starttls_forgets_what_was_said_in_clear() {
    let pki = pki();
    let server = start(&pki, ListenerTls::StartTls, policy());
    let mut c = server.client().await;
    c.expect("220").await;
    c.send("EHLO c.example\r\n").await;
    let mut offered = Vec::new();
    while offered.last().is_none_or(|l: &String| l.starts_with("250-")) {
        offered.push(c.line().await);
    }
    assert!(offered.iter().any(|l| l.ends_with("STARTTLS")), "{offered:?}");
    c.send("STARTTLS\r\nEHLO evil.example\r\nMAIL FROM:<evil@example.com>\r\n").await;
    c.expect("220").await;
    let mut c = handshake(&pki, c.into_stream()).await;
    c.say("MAIL FROM:<a@example.com>", "503").await;
    let ehlo = c.say("EHLO d.example", "250").await;
    assert!(!ehlo.contains("STARTTLS"), "{ehlo}");
    c.say("STARTTLS", "5").await;
    c.start_mail(&["b@example.org"]).await;
    c.say("Subject: x\r\n\r\nx\r\n.", "250 2.0.0").await;
    let body = String::from_utf8(server.spool.last().1).unwrap();
    assert!(body.starts_with("Received: from d.example") && body.contains("with ESMTPS id"));
    c.say("QUIT", "221").await;
}

#[tokio::test]
async fn implicit_tls_greets_inside_tls_and_says_so_in_the_trace() {
    let pki = pki();
    let server = start(&pki, ListenerTls::Implicit, policy());
    let stream = TcpStream::connect(server.address).await.unwrap();
    let mut c = handshake(&pki, stream).await.greeted().await;
    c.start_mail(&["b@example.org"]).await;
    c.say("Subject: x\r\n\r\nx\r\n.", "250 2.0.0").await;
    let body = String::from_utf8(server.spool.last().1).unwrap();
    assert!(body.contains("with ESMTPS id"), "{body}");
    let networks = Networks::parse(&["10.0.0.0/8"]).unwrap();
    let now = server.policy.load_full();
    server.policy.store(Arc::new(Policy { networks, ..(*now).clone() }));
    let stream = TcpStream::connect(server.address).await.unwrap();
    handshake(&pki, stream).await.expect("554 5.7.1").await;
}

#[tokio::test]
async fn a_handshake_that_fails_or_hangs_closes_the_connection_and_nothing_goes_on_in_clear() {
    let pki = pki();
    let quick = Policy { tls_timeout: Duration::from_millis(50), ..policy() };
    let server = start(&pki, ListenerTls::StartTls, quick);
    for garbage in ["EHLO in.clear\r\nMAIL FROM:<a@example.com>\r\n", ""] {
        let mut c = server.client().await.greeted().await;
        c.say("STARTTLS", "220").await;
        c.send(garbage).await;
        let mut stream = c.into_stream();
        let mut said = Vec::new();
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut said).await;
        assert!(!said.starts_with(b"250") && !said.starts_with(b"5"), "{said:?}");
    }
    server.client().await.greeted().await.say("NOOP", "250").await;
}

#[tokio::test]
async fn starttls_is_not_offered_where_there_is_no_certificate() {
    let pki = pki();
    let server = start(&pki, ListenerTls::StartTls, policy());
    server.policy.store(Arc::new(policy()));
    let mut c = server.client().await.greeted().await;
    c.say("STARTTLS", "502").await;
    c.say("NOOP", "250").await;
}
