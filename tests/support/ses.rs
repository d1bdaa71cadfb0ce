//! A stand-in for the SES v2 API: `SendEmail` and `GetAccount` over HTTP/1.1 on 127.0.0.1, which
//! keeps what it was sent and fails as it is told to.
//!
//! It looks at the access key id of a signature and not at its arithmetic.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// The header `POST /v2/email/outbound-emails` comes with must fit this.
const HEAD_MAX: usize = 64 * 1024;
/// And its body this: 40 MB, as SES counts, and what JSON adds.
const BODY_MAX: usize = 42_000_000;

/// A running fake; it stops when it is dropped.
pub struct FakeSes {
    pub address: SocketAddr,
    inner: Arc<Inner>,
    serving: JoinHandle<()>,
}

/// How it answers, and what it has seen.
#[derive(Default)]
pub struct State {
    /// What becomes of the next `SendEmail` requests, in order; then all goes well.
    pub faults: VecDeque<Fault>,
    /// What becomes of every request when none of those is left.
    pub always: Option<Fault>,
    /// What `GetAccount` says.
    pub account: Account,
    /// The access key ids that are good; empty: all.
    pub keys: BTreeSet<String>,
    /// Those whose temporary credentials are over.
    pub expired: BTreeSet<String>,
    /// Addresses that spoil a request.
    pub bad: BTreeSet<String>,
    /// In the sandbox: the recipients and senders that are verified.
    pub verified: BTreeSet<String>,
    /// Requests with more recipients than are left are throttled; `None`: there is no limit.
    pub recipients_left: Option<usize>,
    /// What it took.
    pub sent: Vec<Sent>,
    /// `SendEmail` requests that came with their whole body.
    pub sends: usize,
    /// `GetAccount` requests.
    pub asked: usize,
    /// Connections that were made.
    pub connections: usize,
    /// The access key id of each request.
    pub keys_seen: Vec<String>,
}

/// What becomes of `GetAccount`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asking {
    Answered,
    /// The key may not ask.
    Forbidden,
    /// There is no such operation, as with some emulators.
    Missing,
}

/// What `GetAccount` says.
#[derive(Clone)]
pub struct Account {
    pub asking: Asking,
    pub sending: bool,
    pub production: bool,
    pub enforcement: &'static str,
    pub max: f64,
    pub sent: f64,
    pub rate: f64,
}

impl Default for Account {
    fn default() -> Self {
        Self {
            asking: Asking::Answered,
            sending: true,
            production: true,
            enforcement: "HEALTHY",
            max: 50_000.0,
            sent: 0.0,
            rate: 14.0,
        }
    }
}

/// What goes wrong with a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This answer, as SES words it.
    Error(u16, &'static str, &'static str),
    /// This answer from something that is not SES.
    Page(u16),
    /// Taken, and answered without a message id.
    NoMessageId,
    /// Taken, and answered with what is no JSON.
    Garbage,
    /// No answer; whether it was taken.
    Hang { taken: bool },
    /// The connection is reset when the whole request was read; whether it was taken.
    Reset { taken: bool },
    /// The connection is closed when the whole request was read.
    Close { taken: bool },
    /// The connection is reset before the body is read.
    ResetEarly,
    /// The answer breaks off in the middle; the mail was taken.
    Cut,
    /// All goes well, after a while.
    Slow(Duration),
}

/// A mail that was taken.
#[derive(Clone, Debug)]
pub struct Sent {
    pub message_id: String,
    pub raw: Vec<u8>,
    pub to: Vec<String>,
    pub tags: BTreeMap<String, String>,
    pub configuration_set: Option<String>,
    pub feedback: Option<String>,
    pub key: String,
    /// The request as it came.
    pub request: Value,
}

struct Inner {
    state: Mutex<State>,
    changed: Notify,
}

impl FakeSes {
    /// Starts one on a free port of 127.0.0.1.
    pub async fn start() -> Self {
        Self::start_on("127.0.0.1:0".parse().unwrap()).await
    }

    /// Starts one there.
    pub async fn start_on(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let inner = Arc::new(Inner { state: Mutex::new(State::default()), changed: Notify::new() });
        let serving = tokio::spawn(serve(listener, Arc::clone(&inner)));
        Self { address, inner, serving }
    }

    /// `http://127.0.0.1:port`
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What becomes of the next requests.
    pub fn then(&self, faults: impl IntoIterator<Item = Fault>) {
        self.state().faults.extend(faults);
    }

    /// How it answers and what it has seen.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state()
    }

    /// Everything that was taken.
    pub fn sent(&self) -> Vec<Sent> {
        self.state().sent.clone()
    }

    /// Returns when this holds of what it has seen.
    pub async fn until(&self, holds: impl Fn(&State) -> bool) {
        loop {
            let changed = self.inner.changed.notified();
            if holds(&self.state()) {
                return;
            }
            changed.await;
        }
    }
}

impl Drop for FakeSes {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changed.notify_waiters();
    }
}

async fn serve(listener: TcpListener, inner: Arc<Inner>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        inner.state().connections += 1;
        let inner = Arc::clone(&inner);
        connections.spawn(async move {
            let _ = connection(stream, &inner).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

/// What is written, and what becomes of the connection then.
enum Answer {
    Write(Vec<u8>),
    WriteAndClose(Vec<u8>),
    Reset,
    Hang,
}

async fn connection(mut stream: TcpStream, inner: &Inner) -> std::io::Result<()> {
    let mut input = Vec::new();
    loop {
        let Some(request) = read_head(&mut stream, &mut input).await? else { return Ok(()) };
        let sending = request.is("POST", "/v2/email/outbound-emails");
        if sending && matches!(inner.state().faults.front(), Some(Fault::ResetEarly)) {
            inner.state().faults.pop_front();
            return reset(&stream);
        }
        while input.len() < request.length {
            if stream.read_buf(&mut input).await? == 0 {
                return Ok(());
            }
        }
        let body: Vec<u8> = input.drain(..request.length).collect();
        let answer = if sending {
            let fault = {
                let mut state = inner.state();
                state.sends += 1;
                state.faults.pop_front().or_else(|| state.always.clone())
            };
            if let Some(Fault::Slow(time)) = fault {
                tokio::time::sleep(time).await;
            }
            send_email(&mut inner.state(), &request, &body, fault.as_ref())
        } else if request.is("GET", "/v2/email/account") {
            account(&mut inner.state(), &request)
        } else if request.is("GET", "/credentials") {
            Answer::Write(response(200, "", &credentials()))
        } else {
            Answer::Write(page(404))
        };
        inner.changed();
        match answer {
            Answer::Write(octets) => stream.write_all(&octets).await?,
            Answer::WriteAndClose(octets) => return stream.write_all(&octets).await,
            Answer::Reset => return reset(&stream),
            Answer::Hang => std::future::pending().await,
        }
    }
}

fn reset(stream: &TcpStream) -> std::io::Result<()> {
    socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO))
}

struct Request {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
    length: usize,
}

impl Request {
    fn is(&self, method: &str, path: &str) -> bool {
        self.method == method && self.path.split('?').next() == Some(path)
    }

    /// The access key id of a signature of version 4 for SES.
    fn key(&self) -> Option<String> {
        let authorization = self.headers.get("authorization")?;
        let rest = authorization.strip_prefix("AWS4-HMAC-SHA256 Credential=")?;
        let (credential, rest) = rest.split_once(',')?;
        let signed = rest.contains("SignedHeaders=") && rest.contains("Signature=");
        let parts: Vec<&str> = credential.split('/').collect();
        let [key, _date, _region, "ses", "aws4_request"] = parts[..] else { return None };
        (signed && self.headers.contains_key("x-amz-date")).then(|| key.to_owned())
    }
}

/// Reads up to the empty line; what follows stays in `input`. `None`: no more requests.
async fn read_head(
    stream: &mut TcpStream,
    input: &mut Vec<u8>,
) -> std::io::Result<Option<Request>> {
    let end = loop {
        if let Some(at) = input.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        if input.len() > HEAD_MAX || stream.read_buf(input).await? == 0 {
            return Ok(None);
        }
    };
    let head: Vec<u8> = input.drain(..end).collect();
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut lines = head.split("\r\n");
    let mut first = lines.next().unwrap_or_default().split(' ').map(ToOwned::to_owned);
    let (method, path) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
    let headers: BTreeMap<_, _> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.get("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
    assert!(length <= BODY_MAX && !headers.contains_key("transfer-encoding"));
    Ok(Some(Request { method, path, headers, length }))
}

/// The answer of SES: the error's name in a header, its text in JSON.
fn error(status: u16, code: &str, message: &str) -> Answer {
    let header = format!("x-amzn-errortype: {code}:http://internal.amazon.com/coral/{code}/\r\n");
    Answer::Write(response(status, &header, &json!({ "message": message }).to_string()))
}

fn page(status: u16) -> Vec<u8> {
    let body = format!("<html><body>{status}</body></html>");
    let length = body.len();
    format!(
        "HTTP/1.1 {status} X\r\ncontent-type: text/html\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

fn response(status: u16, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "HTTP/1.1 {status} X\r\nx-amzn-requestid: 0f3a\r\n{headers}\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Whether the signature is good enough, and whose it is.
fn key(state: &mut State, request: &Request) -> Result<String, Answer> {
    let Some(key) = request.key() else {
        let text = "Missing Authentication Token";
        return Err(error(403, "MissingAuthenticationTokenException", text));
    };
    state.keys_seen.push(key.clone());
    if state.expired.contains(&key) {
        let text = "The security token included in the request is expired";
        return Err(error(403, "ExpiredTokenException", text));
    }
    if !state.keys.is_empty() && !state.keys.contains(&key) {
        let text = "The security token included in the request is invalid.";
        return Err(error(403, "UnrecognizedClientException", text));
    }
    Ok(key)
}

fn account(state: &mut State, request: &Request) -> Answer {
    state.asked += 1;
    let a = state.account.clone();
    if a.asking == Asking::Missing {
        return Answer::Write(page(404));
    }
    if let Err(answer) = key(state, request) {
        return answer;
    }
    if a.asking == Asking::Forbidden {
        return error(403, "AccessDeniedException", "not authorized to perform: ses:GetAccount");
    }
    let body = json!({
        "DedicatedIpAutoWarmupEnabled": false,
        "EnforcementStatus": a.enforcement,
        "ProductionAccessEnabled": a.production,
        "SendQuota": {
            "Max24HourSend": a.max, "MaxSendRate": a.rate, "SentLast24Hours": a.sent,
        },
        "SendingEnabled": a.sending,
    });
    Answer::Write(response(200, "", &body.to_string()))
}

/// What a container's credentials endpoint answers.
fn credentials() -> String {
    json!({
        "AccessKeyId": "AKIDCONTAINER",
        "SecretAccessKey": "s3cret",
        "Token": "t0ken",
        "Expiration": "2099-01-01T00:00:00Z",
    })
    .to_string()
}

fn send_email(state: &mut State, request: &Request, body: &[u8], fault: Option<&Fault>) -> Answer {
    let key = match key(state, request) {
        Ok(key) => key,
        Err(answer) => return answer,
    };
    match fault {
        Some(Fault::Error(status, code, message)) => return error(*status, code, message),
        Some(Fault::Page(status)) => return Answer::Write(page(*status)),
        Some(Fault::Hang { taken: false }) => return Answer::Hang,
        Some(Fault::Reset { taken: false }) => return Answer::Reset,
        Some(Fault::Close { taken: false }) => return Answer::WriteAndClose(vec![]),
        _ => {}
    }
    let sent = match read(body, key) {
        Ok(sent) => sent,
        Err(text) => return error(400, "BadRequestException", &text),
    };
    if let Some(answer) = refusal(state, &sent) {
        return answer;
    }
    let message_id = format!("0102018f{:08x}-000000", state.sent.len());
    let answer = response(200, "", &json!({ "MessageId": message_id }).to_string());
    state.sent.push(Sent { message_id, ..sent });
    match fault {
        Some(Fault::NoMessageId) => Answer::Write(response(200, "", "{}")),
        Some(Fault::Garbage) => Answer::Write(page(200)),
        Some(Fault::Hang { .. }) => Answer::Hang,
        Some(Fault::Reset { .. }) => Answer::Reset,
        Some(Fault::Close { .. }) => Answer::WriteAndClose(vec![]),
        Some(Fault::Cut) => Answer::WriteAndClose(answer[..answer.len() - 4].to_vec()),
        _ => Answer::Write(answer),
    }
}

/// Why SES would not take it, from what the account may do.
fn refusal(state: &mut State, sent: &Sent) -> Option<Answer> {
    if !state.account.sending {
        return Some(error(400, "SendingPausedException", "Email sending is disabled."));
    }
    if sent.to.len() > 50 {
        let text = "Recipient count exceeds 50.";
        return Some(error(400, "BadRequestException", text));
    }
    let bad = |to: &&String| state.bad.contains(*to) || !to.is_ascii();
    if let Some(to) = sent.to.iter().find(bad) {
        let text = format!("Local address contains control or whitespace: {to}");
        return Some(error(400, "BadRequestException", &text));
    }
    if !state.account.production {
        let unverified: Vec<&str> =
            sent.to.iter().filter(|to| !state.verified.contains(*to)).map(|s| &**s).collect();
        if !unverified.is_empty() {
            let text = "Email address is not verified. The following identities failed the check \
                        in region EU-WEST-1";
            return Some(error(
                400,
                "MessageRejected",
                &format!("{text}: {}", unverified.join(", ")),
            ));
        }
    }
    if let Some(left) = &mut state.recipients_left {
        if *left < sent.to.len() {
            let text = "Maximum sending rate exceeded.";
            return Some(error(429, "TooManyRequestsException", text));
        }
        *left -= sent.to.len();
    }
    None
}

/// A request's meaning; an error says what SES would not understand.
fn read(body: &[u8], key: String) -> Result<Sent, String> {
    let request: Value = serde_json::from_slice(body).map_err(|e| e.to_string())?;
    let text = |value: &Value| value.as_str().map(ToOwned::to_owned);
    let raw = request["Content"]["Raw"]["Data"].as_str().ok_or("no raw content")?;
    let mut to = Vec::new();
    for list in ["ToAddresses", "CcAddresses", "BccAddresses"] {
        let addresses = request["Destination"][list].as_array().into_iter().flatten();
        to.extend(addresses.filter_map(text));
    }
    if to.is_empty() {
        return Err("no recipients".into());
    }
    let mut tags = BTreeMap::new();
    for tag in request["EmailTags"].as_array().into_iter().flatten() {
        let (name, value) = (text(&tag["Name"]), text(&tag["Value"]));
        let (Some(name), Some(value)) = (name, value) else { return Err("bad tag".into()) };
        let good = |s: &str| {
            (1..=256).contains(&s.len())
                && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
        };
        if !good(&name) || !good(&value) {
            return Err(format!("Invalid tag {name}={value}"));
        }
        tags.insert(name, value);
    }
    Ok(Sent {
        message_id: String::new(),
        raw: base64(raw).ok_or("bad base64")?,
        to,
        tags,
        configuration_set: text(&request["ConfigurationSetName"]),
        feedback: text(&request["FeedbackForwardingEmailAddress"]),
        key,
        request,
    })
}

/// RFC 4648 section 4.
fn base64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held) = (0_u32, 0);
    for b in text.trim_end_matches('=').bytes() {
        let six = match b {
            b'A'..=b'Z' => b - b'A',
            b'a'..=b'z' => b - b'a' + 26,
            b'0'..=b'9' => b - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(six);
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push(u8::try_from((bits >> held) & 0xff).ok()?);
        }
    }
    Some(out)
}
