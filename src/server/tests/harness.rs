//! A spool that can be told to misbehave, a server on loopback, and a client that reads replies.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::super::{Bound, ListenerSettings, ListenerTls, Policy, bind, run};
use crate::clock::{SystemClock, Timestamp};
use crate::mail::header;
use crate::mail::{Body, Mailbox, Message, QueueId};
use crate::policy::admission::Limits;
use crate::policy::networks::Networks;
use crate::smtp::{BareNewline, Settings};
use crate::spool::{Action, Claim, Draft, Entry, Settlement, Spool, SpoolError, Stats};

/// Longer than anything here takes; a test that hangs fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the fake spool holds.
pub(super) struct Stored {
    pub(super) message: Message,
    pub(super) body: Vec<u8>,
    pub(super) largest_chunk: usize,
}

/// A spool in memory, for receiving only.
pub(super) struct FakeSpool {
    pub(super) stored: Mutex<Vec<Stored>>,
    pub(super) full: AtomicBool,
    pub(super) draft_error: Mutex<Option<SpoolError>>,
    pub(super) write_error: Mutex<Option<SpoolError>>,
    pub(super) commit_error: Mutex<Option<SpoolError>>,
    /// Drafts that are open.
    pub(super) drafts: AtomicUsize,
    /// Commits that were called.
    pub(super) commits: AtomicUsize,
    /// A commit returns when it gets a permit.
    pub(super) gate: Semaphore,
    next: AtomicU64,
}

impl FakeSpool {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            stored: Mutex::default(),
            full: AtomicBool::new(false),
            draft_error: Mutex::default(),
            write_error: Mutex::default(),
            commit_error: Mutex::default(),
            drafts: AtomicUsize::new(0),
            commits: AtomicUsize::new(0),
            gate: Semaphore::new(Semaphore::MAX_PERMITS >> 1),
            next: AtomicU64::new(0),
        })
    }

    pub(super) fn count(&self) -> usize {
        self.stored.lock().unwrap().len()
    }

    pub(super) fn last(&self) -> (Message, Vec<u8>) {
        let stored = self.stored.lock().unwrap();
        let last = stored.last().expect("a message is stored");
        (last.message.clone(), last.body.clone())
    }
}

pub(super) fn disk_error() -> SpoolError {
    SpoolError::Io {
        action: "sync",
        path: "segment".into(),
        source: Arc::new(std::io::Error::other("broken")),
    }
}

struct FakeDraft {
    spool: Arc<FakeSpool>,
    id: QueueId,
    body: Vec<u8>,
    largest_chunk: usize,
}

impl Drop for FakeDraft {
    fn drop(&mut self) {
        self.spool.drafts.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Draft for FakeDraft {
    fn id(&self) -> QueueId {
        self.id
    }

    async fn write(&mut self, chunk: Bytes) -> Result<(), SpoolError> {
        if let Some(e) = self.spool.write_error.lock().unwrap().clone() {
            return Err(e);
        }
        self.largest_chunk = self.largest_chunk.max(chunk.len());
        self.body.extend_from_slice(&chunk);
        Ok(())
    }

    async fn commit(mut self: Box<Self>, message: Message) -> Result<Message, SpoolError> {
        self.spool.commits.fetch_add(1, Ordering::SeqCst);
        let spool = self.spool.clone();
        spool.gate.acquire().await.expect("the gate is never closed").forget();
        if let Some(e) = spool.commit_error.lock().unwrap().clone() {
            return Err(e);
        }
        let (body, largest_chunk) = (std::mem::take(&mut self.body), self.largest_chunk);
        let stored = Stored { message: message.clone(), body, largest_chunk };
        spool.stored.lock().unwrap().push(stored);
        Ok(message)
    }
}

/// The spool as the server sees it.
struct Handle(Arc<FakeSpool>);

#[async_trait]
impl Spool for Handle {
    async fn draft(&self) -> Result<Box<dyn Draft>, SpoolError> {
        if let Some(e) = self.0.draft_error.lock().unwrap().clone() {
            return Err(e);
        }
        self.0.drafts.fetch_add(1, Ordering::SeqCst);
        let id = QueueId::from_u64(self.0.next.fetch_add(1, Ordering::SeqCst) + 1);
        Ok(Box::new(FakeDraft { spool: self.0.clone(), id, body: Vec::new(), largest_chunk: 0 }))
    }

    async fn claim(
        &self,
        _: crate::spool::Room,
        _: Timestamp,
        _: usize,
        _: Duration,
    ) -> Result<Vec<Claim>, SpoolError> {
        Ok(Vec::new())
    }

    async fn body(&self, claim: &Claim) -> Result<Body, SpoolError> {
        Err(SpoolError::NotFound(claim.message.id))
    }

    async fn content(&self, id: QueueId) -> Result<Body, SpoolError> {
        Err(SpoolError::NotFound(id))
    }

    async fn settle(&self, claim: &Claim, _: Settlement) -> Result<(), SpoolError> {
        Err(SpoolError::Stale(claim.message.id))
    }

    async fn note(&self, _: &Claim) -> Result<(), SpoolError> {
        unreachable!("nothing is delivered here")
    }

    fn regroup(&self) {}

    fn next_due(&self, _: crate::spool::Room) -> Option<Timestamp> {
        None
    }

    async fn wait(&self) {
        std::future::pending::<()>().await;
    }

    fn stats(&self) -> Stats {
        Stats::default()
    }

    fn refusal(&self) -> Option<SpoolError> {
        self.0.full.load(Ordering::SeqCst).then_some(SpoolError::Full("test"))
    }

    async fn list(&self, _: Option<QueueId>, _: usize) -> Result<Vec<Entry>, SpoolError> {
        Ok(Vec::new())
    }

    async fn show(&self, _: QueueId) -> Result<Option<Entry>, SpoolError> {
        Ok(None)
    }

    async fn act(&self, id: QueueId, _: Action, _: Timestamp) -> Result<(), SpoolError> {
        Err(SpoolError::NotFound(id))
    }

    async fn close(&self) {}
}

/// A policy that lets loopback in.
pub(super) fn policy() -> Policy {
    Policy {
        smtp: Arc::new(Settings {
            hostname: "gate.example".into(),
            postmaster: Mailbox::parse(b"postmaster@gate.example").unwrap(),
            max_message_size: 64 << 20,
            max_recipients: 100,
            max_text_line: 1 << 20,
            max_errors: 20,
            max_messages: 100,
            command_timeout: PATIENCE,
            data_timeout: PATIENCE,
            bare_newline: BareNewline::Normalize,
            starttls: false,
        }),
        networks: Networks::parse(&["127.0.0.0/8", "[::1]/128"]).unwrap(),
        header: header::Settings {
            hostname: "gate.example".into(),
            max_header: 1 << 20,
            max_hops: 50,
            show_address: true,
            show_helo: true,
        },
        wanted_headers: Vec::new(),
        limits: Limits { total: 100, per_peer: 50 },
        refused: Limits { total: 10, per_peer: 5 },
        tls: std::collections::BTreeMap::new(),
        tls_timeout: PATIENCE,
        linger: Duration::from_secs(1),
    }
}

pub(super) fn listener(address: &str, tls: ListenerTls) -> ListenerSettings {
    ListenerSettings { name: "in".into(), address: address.parse().unwrap(), tls }
}

/// A running server.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) policy: Arc<ArcSwap<Policy>>,
    pub(super) spool: Arc<FakeSpool>,
    pub(super) shutdown: CancellationToken,
    pub(super) task: JoinHandle<std::io::Result<()>>,
}

impl Server {
    pub(super) fn start(policy: Policy) -> Self {
        let bound = bind(&[listener("127.0.0.1:0", ListenerTls::None)], Vec::new()).unwrap();
        Self::start_on(bound, policy, PATIENCE)
    }

    pub(super) fn start_on(bound: Vec<Bound>, policy: Policy, drain: Duration) -> Self {
        let address = bound[0].local_addr().unwrap();
        let policy = Arc::new(ArcSwap::from_pointee(policy));
        let (spool, shutdown) = (FakeSpool::new(), CancellationToken::new());
        let handle = Arc::new(Handle(spool.clone()));
        let clock = Arc::new(SystemClock);
        let task = run(bound, policy.clone(), handle, clock, shutdown.clone(), drain);
        Self { address, policy, spool, shutdown, task: tokio::spawn(task) }
    }

    pub(super) async fn client(&self) -> Client<TcpStream> {
        Client::new(TcpStream::connect(self.address).await.unwrap())
    }

    /// A client with a source address of its own.
    pub(super) async fn client_from(&self, source: &str) -> Client<TcpStream> {
        let socket = TcpSocket::new_v4().unwrap();
        let source: IpAddr = source.parse().unwrap();
        socket.bind(SocketAddr::new(source, 0)).unwrap();
        Client::new(socket.connect(self.address).await.unwrap())
    }

    pub(super) async fn stopped(self) {
        let stopped = tokio::time::timeout(PATIENCE, self.task).await;
        stopped.expect("the server stops").unwrap().unwrap();
    }
}

/// Waits until something holds that another task brings about.
pub(super) async fn until(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("it holds in the end");
}

/// An SMTP client.
pub(super) struct Client<S>(BufReader<S>);

impl Client<TcpStream> {
    /// Whether the server said something that was not read yet.
    pub(super) fn has_unread(&self) -> bool {
        let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
        let there = rustix::net::recv(self.0.get_ref(), &mut [0; 1], flags);
        !self.0.buffer().is_empty() || there.is_ok()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub(super) fn new(stream: S) -> Self {
        Self(BufReader::new(stream))
    }

    pub(super) fn into_stream(self) -> S {
        self.0.into_inner()
    }

    /// Sends octets and waits for nothing.
    pub(super) async fn send(&mut self, text: impl AsRef<[u8]>) {
        self.0.write_all(text.as_ref()).await.unwrap();
        self.0.flush().await.unwrap();
    }

    /// Closes the client's half.
    pub(super) async fn shutdown(&mut self) {
        self.0.get_mut().shutdown().await.unwrap();
    }

    /// One line, or nothing when the server closed.
    pub(super) async fn line(&mut self) -> String {
        let mut line = String::new();
        let read = tokio::time::timeout(PATIENCE, self.0.read_line(&mut line)).await;
        match read.expect("the server answers") {
            Ok(_) => line.trim_end().to_owned(),
            Err(_) => String::new(),
        }
    }

    /// The last line of a reply.
    pub(super) async fn reply(&mut self) -> String {
        loop {
            let line = self.line().await;
            if line.as_bytes().get(3) != Some(&b'-') {
                return line;
            }
        }
    }

    /// Reads a reply that has to start so.
    pub(super) async fn expect(&mut self, start: &str) -> String {
        let reply = self.reply().await;
        assert!(reply.starts_with(start), "{start} expected, got {reply:?}");
        reply
    }

    /// Sends a command whose reply has to start so.
    pub(super) async fn say(&mut self, command: &str, start: &str) -> String {
        self.send(format!("{command}\r\n")).await;
        self.expect(start).await
    }

    /// Up to the 354.
    pub(super) async fn start_mail(&mut self, recipients: &[&str]) {
        self.say("MAIL FROM:<a@example.com>", "250").await;
        for recipient in recipients {
            self.say(&format!("RCPT TO:<{recipient}>"), "250").await;
        }
        self.say("DATA", "354").await;
    }

    /// A client that was greeted and said EHLO.
    pub(super) async fn greeted(mut self) -> Self {
        self.expect("220 gate.example ESMTP").await;
        self.say("EHLO c.example", "250").await;
        self
    }

    /// The server has closed, and said nothing more.
    pub(super) async fn expect_closed(&mut self) {
        assert_eq!(self.line().await, "");
    }
}
