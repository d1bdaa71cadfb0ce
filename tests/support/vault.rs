//! A Vault as its HTTP API describes it, with the faults Vaults have.
//!
//! It speaks HTTP/1.1 over plain TCP or TLS: AppRole logins, wrapped secret ids, tokens that end,
//! are renewed up to a maximal life, looked up and revoked, KV version 2 with versions that are
//! deleted, namespaces, policies in their simplest form, and statuses of a Vault that is sealed or
//! a standby.
#![allow(dead_code, unreachable_pub, clippy::disallowed_methods)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

/// The mount of AppRole.
pub const APPROLE: &str = "approle";

/// A running Vault. Dropped, it is gone, and its connections with it.
pub struct FakeVault {
    state: Arc<Mutex<State>>,
    log: watch::Sender<Vec<Asked>>,
    address: SocketAddr,
    acceptor: Option<TlsAcceptor>,
    ca_pem: Option<String>,
    server: Mutex<Option<JoinHandle<()>>>,
}

/// A request that was answered, or hung up on.
#[derive(Clone, Debug)]
pub struct Asked {
    /// `GET /v1/secret/data/keybuzz/smtp`.
    pub what: String,
    /// The status of the answer; 0 without one.
    pub status: u16,
    /// The token that came with it.
    pub token: Option<String>,
    /// The namespace.
    pub namespace: Option<String>,
}

/// What goes wrong with requests to a path.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This status with `{"errors": []}`.
    Status(u16),
    /// 200 with this body.
    Body(Vec<u8>),
    /// The right answer, late.
    Slow(Duration),
    /// No answer.
    Hang,
    /// The connection is closed.
    Drop,
    /// 307 to this address, as a standby does.
    Redirect(String),
}

#[derive(Default)]
struct State {
    sealed: bool,
    standby: bool,
    namespace: Option<String>,
    faults: Vec<(String, Fault)>,
    tokens: BTreeMap<String, Token>,
    roles: BTreeMap<String, Role>,
    wrapped: BTreeMap<String, String>,
    secrets: BTreeMap<String, Vec<Version>>,
    /// Paths under which tokens may not read.
    denied: BTreeSet<String>,
    count: u64,
}

struct Token {
    ttl: Duration,
    ends: Option<Instant>,
    /// Not even renewal goes further.
    last: Option<Instant>,
    renewable: bool,
}

struct Role {
    secret_ids: BTreeSet<String>,
    ttl: Duration,
    max_ttl: Duration,
}

struct Version {
    data: Value,
    deleted: bool,
}

struct Request {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
    body: Value,
}

impl FakeVault {
    /// Starts one on a free port of 127.0.0.1.
    pub async fn start() -> Self {
        Self::start_with(None).await
    }

    /// Starts one that speaks TLS, with a certificate for `localhost` and 127.0.0.1 from an
    /// authority of its own.
    pub async fn start_tls() -> Self {
        Self::start_with(Some(authority())).await
    }

    async fn start_with(tls: Option<(TlsAcceptor, String)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (acceptor, ca_pem) = tls.unzip();
        let vault = Self {
            state: Arc::default(),
            log: watch::Sender::new(Vec::new()),
            address: listener.local_addr().unwrap(),
            acceptor,
            ca_pem,
            server: Mutex::default(),
        };
        vault.serve(listener);
        vault
    }

    /// `http://127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        let scheme = if self.acceptor.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// The authority's certificate.
    pub fn ca_pem(&self) -> &str {
        self.ca_pem.as_deref().expect("started with TLS")
    }

    /// A token; without a time to live it is a root token.
    pub fn token(&self, token: &str, ttl: Option<Duration>, renewable: bool) {
        let ends = ttl.map(|ttl| Instant::now() + ttl);
        let ttl = ttl.unwrap_or_default();
        let new = Token { ttl, ends, last: None, renewable };
        self.state().tokens.insert(token.to_owned(), new);
    }

    /// A role and one secret id for it.
    pub fn role(&self, role_id: &str, secret_id: &str, ttl: Duration, max_ttl: Duration) {
        let secret_ids = BTreeSet::from([secret_id.to_owned()]);
        self.state().roles.insert(role_id.to_owned(), Role { secret_ids, ttl, max_ttl });
    }

    /// From now on a role has this secret id and no other.
    pub fn rotate_secret_id(&self, role_id: &str, secret_id: &str) {
        let mut state = self.state();
        let role = state.roles.get_mut(role_id).unwrap();
        role.secret_ids = BTreeSet::from([secret_id.to_owned()]);
    }

    /// A wrapping token, good for one unwrapping of this secret id.
    pub fn wrap(&self, wrapping_token: &str, secret_id: &str) {
        self.state().wrapped.insert(wrapping_token.to_owned(), secret_id.to_owned());
    }

    /// A new version of a secret: `secret/keybuzz/smtp`, without `data/`.
    pub fn put(&self, path: &str, data: Value) -> u64 {
        let mut state = self.state();
        let versions = state.secrets.entry(path.to_owned()).or_default();
        versions.push(Version { data, deleted: false });
        versions.len() as u64
    }

    /// Deletes the latest version, as `vault kv delete` does.
    pub fn delete_latest(&self, path: &str) {
        self.state().secrets.get_mut(path).unwrap().last_mut().unwrap().deleted = true;
    }

    /// Deletes all versions, as `vault kv metadata delete` does.
    pub fn delete_all(&self, path: &str) {
        self.state().secrets.remove(path);
    }

    /// Policies no longer allow to read a secret; or do again.
    pub fn deny(&self, path: &str, denied: bool) {
        if denied {
            self.state().denied.insert(path.to_owned());
        } else {
            self.state().denied.remove(path);
        }
    }

    /// No token is good any more.
    pub fn revoke_all(&self) {
        self.state().tokens.clear();
    }

    /// Seals or unseals it.
    pub fn seal(&self, sealed: bool) {
        self.state().sealed = sealed;
    }

    /// Makes it a standby that answers 429, or the active node again.
    pub fn standby(&self, standby: bool) {
        self.state().standby = standby;
    }

    /// Everything is in this namespace; without its header there is nothing.
    pub fn namespace(&self, namespace: &str) {
        self.state().namespace = Some(namespace.to_owned());
    }

    /// Something goes wrong with requests whose path contains `part`.
    pub fn fault(&self, part: &str, fault: Fault) {
        self.state().faults.push((part.to_owned(), fault));
    }

    /// Nothing goes wrong any more.
    pub fn heal(&self) {
        self.state().faults.clear();
    }

    /// Stops to listen, and closes what is open.
    pub async fn stop(&self) {
        let server = self.server.lock().unwrap().take();
        if let Some(server) = server {
            server.abort();
            let _ = server.await;
        }
    }

    /// Listens again, at the same address.
    pub fn resume(&self) {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(self.address).unwrap();
        self.serve(socket.listen(64).unwrap());
    }

    /// All requests so far.
    pub fn log(&self) -> Vec<Asked> {
        self.log.borrow().clone()
    }

    /// How many requests so far have `part` in their method and path.
    pub fn asked(&self, part: &str) -> usize {
        self.log.borrow().iter().filter(|asked| asked.what.contains(part)).count()
    }

    /// Returns when there have been `n` requests with `part` in their method and path.
    pub async fn until_asked(&self, part: &str, n: usize) {
        let has = |log: &Vec<Asked>| log.iter().filter(|a| a.what.contains(part)).count() >= n;
        self.log.subscribe().wait_for(has).await.unwrap();
    }

    fn serve(&self, listener: TcpListener) {
        let (state, log) = (Arc::clone(&self.state), self.log.clone());
        let acceptor = self.acceptor.clone();
        let server = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (state, log) = (Arc::clone(&state), log.clone());
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    match acceptor {
                        None => converse(stream, &state, &log).await,
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                converse(stream, &state, &log).await;
                            }
                        }
                    }
                });
            }
        });
        *self.server.lock().unwrap() = Some(server);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Drop for FakeVault {
    fn drop(&mut self) {
        if let Some(server) = self.server.lock().unwrap().take() {
            server.abort();
        }
    }
}

/// Requests and answers on one connection, until it ends.
async fn converse<S>(stream: S, state: &Mutex<State>, log: &watch::Sender<Vec<Asked>>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut stream = BufReader::new(stream);
    while let Some(request) = read(&mut stream).await {
        let path = request.path.clone();
        let what = format!("{} {path}", request.method);
        let note = |status| {
            let header = |name: &str| request.headers.get(name).cloned();
            let (token, namespace) = (header("x-vault-token"), header("x-vault-namespace"));
            let asked = Asked { what: what.clone(), status, token, namespace };
            log.send_modify(|log| log.push(asked));
        };
        let fault = {
            let state = state.lock().unwrap();
            state.faults.iter().find(|(part, _)| path.contains(part)).map(|(_, f)| f.clone())
        };
        let mut location = String::new();
        let (status, body) = match fault {
            Some(Fault::Status(status)) => (status, json!({"errors": []}).to_string().into_bytes()),
            Some(Fault::Body(body)) => (200, body),
            Some(Fault::Redirect(to)) => {
                location = format!("Location: {to}{path}\r\n");
                (307, Vec::new())
            }
            Some(Fault::Drop) => return note(0),
            Some(Fault::Hang) => {
                note(0);
                return std::future::pending().await;
            }
            slow => {
                if let Some(Fault::Slow(wait)) = slow {
                    tokio::time::sleep(wait).await;
                }
                let (status, body) = state.lock().unwrap().answer(&request);
                (status, if status == 204 { Vec::new() } else { body.to_string().into_bytes() })
            }
        };
        // The log first: who was answered finds it there.
        note(status);
        let head =
            format!("HTTP/1.1 {status} X\r\n{location}Content-Length: {}\r\n\r\n", body.len());
        if stream.write_all(&[head.as_bytes(), &body].concat()).await.is_err() {
            return;
        }
        let _ = stream.flush().await;
    }
}

async fn read<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> Option<Request> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        let line = line.trim_end().to_owned();
        if line.is_empty() {
            break;
        }
        lines.push(line);
    }
    let mut first = lines.first()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?);
    let path = target.split('?').next()?.replace("%09", "").replace("//", "/");
    let header = |line: &String| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_ascii_lowercase(), value.trim().to_owned()))
    };
    let headers: BTreeMap<_, _> = lines.iter().skip(1).filter_map(header).collect();
    let length = headers.get("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    Some(Request { method, path, headers, body })
}

type Answer = (u16, Value);

impl State {
    fn answer(&mut self, request: &Request) -> Answer {
        if self.sealed {
            return refusal(503, "Vault is sealed");
        }
        if self.standby {
            return refusal(429, "standby");
        }
        if self.namespace.as_ref() != request.headers.get("x-vault-namespace") {
            return (404, json!({"errors": []}));
        }
        let path = request.path.trim_start_matches("/v1/").to_owned();
        let login = format!("auth/{APPROLE}/login");
        match (request.method.as_str(), path.as_str()) {
            ("POST", path) if path == login => return self.login(&request.body),
            ("POST", "sys/wrapping/unwrap") => return self.unwrap(request),
            _ => {}
        }
        let token = request.headers.get("x-vault-token").cloned().unwrap_or_default();
        if !self.tokens.get(&token).is_some_and(Token::is_alive) {
            return refusal(403, "permission denied");
        }
        match (request.method.as_str(), path.as_str()) {
            ("POST", "auth/token/renew-self") => self.renew(&token),
            ("GET", "auth/token/lookup-self") => self.look_up(&token),
            ("POST", "auth/token/revoke-self") => {
                self.tokens.remove(&token);
                (204, Value::Null)
            }
            ("GET", path) => self.read(path),
            _ => refusal(405, "unsupported operation"),
        }
    }

    fn login(&mut self, body: &Value) -> Answer {
        let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
        let Some(role) = self.roles.get(&text("role_id")) else {
            return refusal(400, "invalid role or secret ID");
        };
        if !role.secret_ids.contains(&text("secret_id")) {
            return refusal(400, "invalid role or secret ID");
        }
        self.count += 1;
        let (name, now) = (format!("hvs.login-{}", self.count), Instant::now());
        let (ttl, last) = (role.ttl, now + role.max_ttl);
        let token = Token { ttl, ends: Some(now + ttl), last: Some(last), renewable: true };
        let answer = auth(&name, ttl, true);
        self.tokens.insert(name, token);
        answer
    }

    fn unwrap(&mut self, request: &Request) -> Answer {
        let in_body = request.body["token"].as_str().map(str::to_owned);
        let in_header = request.headers.get("x-vault-token").cloned();
        let found = in_body.or(in_header).and_then(|token| self.wrapped.remove(&token));
        let Some(secret_id) = found else {
            return refusal(400, "wrapping token is not valid or does not exist");
        };
        (
            200,
            envelope(
                &json!({"secret_id": secret_id, "secret_id_accessor": "a", "secret_id_ttl": 0}),
            ),
        )
    }

    fn renew(&mut self, name: &str) -> Answer {
        let token = self.tokens.get_mut(name).unwrap();
        if !token.renewable {
            return refusal(400, "lease is not renewable");
        }
        let now = Instant::now();
        let ends = (now + token.ttl).min(token.last.unwrap_or(now + token.ttl));
        token.ends = Some(ends);
        auth(name, ends - now, true)
    }

    fn look_up(&self, name: &str) -> Answer {
        let token = &self.tokens[name];
        let left = token.ends.map(|ends| ends.saturating_duration_since(Instant::now()));
        let ttl = left.map_or(0, whole_seconds);
        let expire_time = left.map(|_| "2026-11-21T09:00:00Z");
        (
            200,
            envelope(&json!({
                "accessor": "a", "creation_time": 1, "creation_ttl": token.ttl.as_secs(),
                "display_name": "token", "entity_id": "", "expire_time": expire_time,
                "explicit_max_ttl": 0, "id": name, "meta": null, "num_uses": 0, "orphan": false,
                "path": "auth/token/create", "policies": ["postgate"], "ttl": ttl,
                "renewable": token.renewable, "type": "service"
            })),
        )
    }

    /// KV version 2 at any mount of one name.
    fn read(&self, path: &str) -> Answer {
        let Some((mount, rest)) = path.split_once('/') else { return missing() };
        let (kind, rest) = rest.split_once('/').unwrap_or((rest, ""));
        let name = format!("{mount}/{rest}");
        if self.denied.contains(&name) {
            return refusal(403, "1 error occurred:\n\t* permission denied\n\n");
        }
        let Some(versions) = self.secrets.get(&name) else { return missing() };
        let latest = versions.last().unwrap();
        let deletion = if latest.deleted { "2026-11-21T09:00:00Z" } else { "" };
        let metadata = json!({
            "created_time": "2026-11-20T09:00:00Z", "custom_metadata": null,
            "deletion_time": deletion, "destroyed": false, "version": versions.len()
        });
        match kind {
            "data" if latest.deleted => {
                (404, envelope(&json!({"data": null, "metadata": metadata})))
            }
            "data" => (200, envelope(&json!({"data": latest.data, "metadata": metadata}))),
            "metadata" => {
                let meta = json!({
                    "cas_required": false, "created_time": "2026-11-20T09:00:00Z",
                    "current_version": versions.len(), "custom_metadata": null,
                    "delete_version_after": "0s", "max_versions": 0, "oldest_version": 0,
                    "updated_time": "2026-11-20T09:00:00Z", "versions": {}
                });
                (200, envelope(&meta))
            }
            _ => missing(),
        }
    }
}

impl Token {
    fn is_alive(&self) -> bool {
        self.ends.is_none_or(|ends| Instant::now() < ends)
    }
}

fn refusal(status: u16, error: &str) -> Answer {
    (status, json!({"errors": [error]}))
}

fn missing() -> Answer {
    (404, json!({"errors": []}))
}

fn envelope(data: &Value) -> Value {
    json!({
        "request_id": "6d8b8d4c-0b0f-4f30-a9bd-7b9b4b1f7f4e", "lease_id": "", "renewable": false,
        "lease_duration": 0, "data": data, "wrap_info": null, "warnings": null, "auth": null,
        "mount_type": "kv"
    })
}

fn auth(token: &str, ttl: Duration, renewable: bool) -> Answer {
    let mut answer = envelope(&Value::Null);
    answer["auth"] = json!({
        "client_token": token, "accessor": "a", "policies": ["default", "postgate"],
        "token_policies": ["default", "postgate"], "metadata": {"role_name": "postgate"},
        "lease_duration": whole_seconds(ttl), "renewable": renewable, "entity_id": "e",
        "token_type": "service", "orphan": true, "mfa_requirement": null, "num_uses": 0
    });
    (200, answer)
}

/// As Vault rounds: the last second of a token is none.
fn whole_seconds(left: Duration) -> u64 {
    left.as_secs()
}

/// A certificate for this machine, and the authority that made it.
fn authority() -> (TlsAcceptor, String) {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let cert = CertificateParams::new(names).unwrap().signed_by(&key, &ca).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    (TlsAcceptor::from(Arc::new(config)), ca.pem())
}
