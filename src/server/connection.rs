//! The driver of one session: it does what each [`Step`] says.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::net::RecvFlags;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::WaitForCancellationFuture;

use super::accept::not_permitted;
use super::intake::{Intake, Origin};
use super::{ListenerSettings, ListenerTls, Policy, Shared};
use crate::event;
use crate::mail::Envelope;
use crate::smtp::{Session, Step, Verdict};

/// Octets that are read at once.
const READ_MAX: usize = 16 * 1024;

/// What is looked at before the greeting, and thrown away after the end, at once.
const GLANCE: usize = 1024;

/// Replies that are held back to be written at once.
const WRITE_MAX: usize = 16 * 1024;

/// What is read and thrown away after a close.
const LINGER_MAX: usize = 256 * 1024;

thread_local! {
    /// What every session of a thread reads into, so that one that waits holds no buffer.
    static SCRATCH: RefCell<[u8; READ_MAX]> = const { RefCell::new([0; READ_MAX]) };
}

/// One client.
pub(super) struct Connection {
    shared: Arc<Shared>,
    listener: Arc<ListenerSettings>,
    peer: IpAddr,
    session: Session,
    intake: Intake,
    replies: Vec<u8>,
    tls_active: bool,
    drained: bool,
    messages: usize,
    reason: Option<&'static str>,
    write_timeout: Duration,
    tls_timeout: Duration,
    linger: Duration,
}

/// How driving a stream ended.
enum End {
    /// By the session's will: the client may still have to read our last words.
    Closed,
    /// The client is gone.
    Lost,
    /// TLS is to start.
    StartTls,
}

/// What waiting for the client came to.
enum Waited {
    Received(usize),
    TimedOut,
    ShuttingDown,
}

impl Connection {
    pub(super) fn new(
        shared: Arc<Shared>,
        listener: Arc<ListenerSettings>,
        peer: IpAddr,
        session: Session,
        policy: &Policy,
    ) -> Self {
        let large_headers = shared.large_headers.clone();
        let intake = Intake::new(shared.spool.clone(), shared.clock.clone(), large_headers);
        Self {
            shared,
            listener,
            peer,
            session,
            intake,
            replies: Vec::new(),
            tls_active: false,
            drained: false,
            messages: 0,
            reason: None,
            write_timeout: policy.smtp.command_timeout,
            tls_timeout: policy.tls_timeout,
            linger: policy.linger,
        }
    }

    /// Serves the client until the connection is closed.
    pub(super) async fn serve(mut self, mut stream: TcpStream, tls: Option<Arc<ServerConfig>>) {
        // Replies are whole when they are written; waiting to fill a segment only costs time.
        let _ = stream.set_nodelay(true);
        if matches!(self.listener.tls, ListenerTls::Implicit(_)) {
            Box::pin(self.serve_tls(stream, tls, false)).await;
        } else {
            self.read_ahead(&stream);
            match self.drive(&mut stream).await {
                End::StartTls => Box::pin(self.serve_tls(stream, tls, true)).await,
                End::Closed => self.close(&mut stream).await,
                End::Lost => {}
            }
        }
        event::Disconnected {
            listener: &self.listener.name,
            peer: self.peer,
            messages: self.messages,
            reason: self.reason,
        }
        .emit();
    }

    /// Gives the session what came before its greeting, for it to judge. A peer that says more than
    /// one thing before it was greeted does not speak SMTP.
    fn read_ahead(&mut self, stream: &TcpStream) {
        let mut buffer = [0; GLANCE];
        if let Ok((n @ 1.., _)) = rustix::net::recv(stream, &mut buffer, RecvFlags::DONTWAIT) {
            let octets = buffer.get(..n).unwrap_or_default();
            self.session.receive(octets, self.shared.clock.now());
        }
    }

    async fn serve_tls(
        &mut self,
        stream: TcpStream,
        tls: Option<Arc<ServerConfig>>,
        asked_for: bool,
    ) {
        let Some(config) = tls else {
            self.reason = Some("no certificate");
            return;
        };
        let handshake = timeout(self.tls_timeout, TlsAcceptor::from(config).accept(stream));
        let Ok(Ok(mut stream)) = handshake.await else {
            self.reason = Some("TLS handshake failed");
            return;
        };
        self.tls_active = true;
        if asked_for {
            self.session.tls_started();
        }
        match self.drive(&mut stream).await {
            End::Closed => self.close(&mut stream).await,
            End::Lost | End::StartTls => {}
        }
    }

    async fn drive<S: AsyncRead + AsyncWrite + Unpin>(&mut self, stream: &mut S) -> End {
        let shared = self.shared.clone();
        let mut shutdown = pin!(shared.shutdown.cancelled());
        loop {
            match self.session.step(shared.clock.now()) {
                Step::Send(octets) => {
                    self.note_goodbye(&octets);
                    self.replies.extend_from_slice(&octets);
                    if self.replies.len() >= WRITE_MAX && self.flush(stream).await.is_err() {
                        return self.lost("cannot write");
                    }
                }
                Step::Begin(_) => self.begin(),
                Step::Body(piece) => self.body(piece).await,
                Step::Discard => self.intake.discard(),
                Step::Accept(envelope) => self.accept(envelope).await,
                Step::StartTls => {
                    let flushed = self.flush(stream).await;
                    return if flushed.is_ok() { End::StartTls } else { self.lost("cannot write") };
                }
                Step::Read { deadline } => {
                    if self.flush(stream).await.is_err() {
                        return self.lost("cannot write");
                    }
                    match self.wait(stream, deadline, shutdown.as_mut()).await {
                        Ok(Waited::Received(0)) | Err(_) => return self.lost("lost connection"),
                        Ok(Waited::Received(_)) => {}
                        Ok(Waited::TimedOut) => {
                            self.reason = Some("timeout");
                            self.session.timed_out();
                        }
                        Ok(Waited::ShuttingDown) => {
                            self.drained = true;
                            self.session.drain();
                        }
                    }
                }
                Step::Close => {
                    let flushed = self.flush(stream).await;
                    return if flushed.is_ok() { End::Closed } else { self.lost("cannot write") };
                }
            }
        }
    }

    /// Waits for octets and gives them to the session.
    async fn wait<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        deadline: Instant,
        shutdown: Pin<&mut WaitForCancellationFuture<'_>>,
    ) -> io::Result<Waited> {
        let drained = self.drained;
        let receive = poll_fn(|cx| self.poll_receive(Pin::new(&mut *stream), cx));
        tokio::select! {
            biased;
            () = shutdown, if !drained => Ok(Waited::ShuttingDown),
            read = timeout_at(deadline.into(), receive) => match read {
                Ok(received) => received.map(Waited::Received),
                Err(_) => Ok(Waited::TimedOut),
            },
        }
    }

    fn poll_receive<S: AsyncRead>(
        &mut self,
        stream: Pin<&mut S>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            ready!(stream.poll_read(cx, &mut buffer))?;
            let octets = buffer.filled();
            self.session.receive(octets, self.shared.clock.now());
            Poll::Ready(Ok(octets.len()))
        })
    }

    /// The networks are asked again for each message: a reload may have taken the peer out.
    fn begin(&mut self) {
        let permitted = self.shared.policy.load().networks.contains(self.peer);
        let verdict = if permitted {
            self.intake.begin()
        } else {
            Verdict::Refused(not_permitted(self.peer))
        };
        self.decided(verdict);
    }

    async fn body(&mut self, piece: Bytes) {
        let policy = self.shared.policy.load_full();
        let origin = origin(&self.session, self.peer, &self.listener, self.tls_active);
        self.intake.body(piece, &policy, origin).await;
    }

    async fn accept(&mut self, envelope: Envelope) {
        let policy = self.shared.policy.load_full();
        let origin = origin(&self.session, self.peer, &self.listener, self.tls_active);
        let verdict = self.intake.accept(envelope, &policy, origin).await;
        self.messages += usize::from(matches!(verdict, Verdict::Queued(_)));
        self.decided(verdict);
    }

    fn decided(&mut self, verdict: Verdict) {
        if let Verdict::Refused(reply) = &verdict {
            event::Rejected { listener: &self.listener.name, peer: self.peer, reply }.emit();
        }
        self.session.decided(verdict);
    }

    /// Remembers why we are about to close, when it is not the client's QUIT.
    fn note_goodbye(&mut self, replies: &[u8]) {
        let mut lines = replies.rsplit(|b| *b == b'\n').filter(|line| !line.is_empty());
        if lines.next().is_some_and(|last| last.starts_with(b"421")) {
            self.reason = self.reason.or(Some(if self.drained { "shutdown" } else { "refused" }));
        }
    }

    fn lost(&mut self, reason: &'static str) -> End {
        self.intake.discard();
        self.reason = self.reason.or(Some(reason));
        End::Lost
    }

    /// Writes the replies that were held back; a client that does not read them is given up.
    async fn flush<S: AsyncWrite + Unpin>(&mut self, stream: &mut S) -> io::Result<()> {
        if self.replies.is_empty() {
            return Ok(());
        }
        // Taken, not cleared: an idle connection holds no buffer.
        let replies = std::mem::take(&mut self.replies);
        timeout(self.write_timeout, async {
            stream.write_all(&replies).await?;
            stream.flush().await
        })
        .await?
    }

    /// Closes our half, then reads what the client still sends: closing a socket with unread octets
    /// resets the connection, and the client may never see the last reply.
    async fn close<S: AsyncRead + AsyncWrite + Unpin>(&mut self, stream: &mut S) {
        let _ = timeout(self.linger, async {
            if stream.shutdown().await.is_err() {
                return;
            }
            let mut scrap = [0; GLANCE];
            let mut left = LINGER_MAX;
            while let Ok(n @ 1..) = stream.read(&mut scrap).await {
                left = left.saturating_sub(n);
                if left == 0 {
                    return;
                }
            }
        })
        .await;
    }
}

fn origin<'a>(
    session: &'a Session,
    peer: IpAddr,
    listener: &'a ListenerSettings,
    tls_active: bool,
) -> Origin<'a> {
    let protocol = match session.protocol() {
        // The session of a listener with implicit TLS does not know about it.
        "ESMTP" if tls_active => "ESMTPS",
        other => other,
    };
    Origin {
        peer,
        listener: &listener.name,
        helo: session.helo(),
        protocol,
        recipients: session.recipients(),
    }
}
