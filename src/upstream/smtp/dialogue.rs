//! One connection's octets: commands out, replies in, each within its time.

use std::time::Duration;

use futures_util::FutureExt;
use mail_send::SmtpClient;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use super::error::Cause;
use super::reply::ReplyReader;
use crate::mail::Reply;

/// A byte stream, in clear or in TLS.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Unpin + Send + Sync {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + Sync> Wire for T {}

/// How a write ended that did not succeed.
#[derive(Debug)]
pub(crate) struct Unwritten {
    /// What went wrong.
    pub(crate) cause: Cause,
    /// Whether the transport had taken every octet all the same.
    pub(crate) complete: bool,
}

/// A dialogue over `S`. After an error it is of no more use.
///
/// mail-send's client holds the stream and does the handshake. Commands and replies are ours: its
/// reader loses the replies before an error and what follows one, and has no time-out of its own.
pub(crate) struct Dialogue<S: AsyncRead + AsyncWrite> {
    client: SmtpClient<S>,
    reader: ReplyReader,
    deadline: Instant,
}

impl<S: Wire + 'static> Dialogue<S> {
    /// A dialogue that has not begun; nothing waits beyond `deadline`.
    pub(crate) fn new(client: SmtpClient<S>, deadline: Instant) -> Self {
        Self { client, reader: ReplyReader::default(), deadline }
    }

    /// The stream below, for the handshake. Octets that wait in clear then are an attack.
    pub(crate) fn into_client(mut self) -> Result<SmtpClient<S>, Cause> {
        match self.quiet() {
            Ok(()) => Ok(self.client),
            Err(Cause::Closed) => Err(Cause::Closed),
            Err(_) => Err(Cause::Injected),
        }
    }

    /// The same dialogue, its stream's type forgotten.
    pub(crate) fn boxed(self) -> Dialogue<Box<dyn Wire>> {
        let SmtpClient { stream, timeout } = self.client;
        let client = SmtpClient { stream: Box::new(stream) as Box<dyn Wire>, timeout };
        Dialogue { client, reader: self.reader, deadline: self.deadline }
    }
}

impl<S: Wire> Dialogue<S> {
    /// Nothing waits beyond this.
    pub(crate) fn set_deadline(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }

    /// Sends one command and waits for its reply.
    pub(crate) async fn command(&mut self, line: &str, limit: Duration) -> Result<Reply, Cause> {
        self.send(line.as_bytes(), limit).await?;
        self.reply(limit).await
    }

    /// Sends octets, if the upstream has said nothing unasked.
    pub(crate) async fn send(&mut self, octets: &[u8], limit: Duration) -> Result<(), Cause> {
        self.quiet()?;
        self.write(octets, limit).await.map_err(|e| e.cause)
    }

    /// Sends octets, and tells what became of them when that fails.
    pub(crate) async fn write(&mut self, octets: &[u8], limit: Duration) -> Result<(), Unwritten> {
        let mut rest = octets;
        let stream = &mut self.client.stream;
        let sending = async {
            while !rest.is_empty() {
                match stream.write(rest).await? {
                    0 => return Err(Cause::Closed),
                    n => rest = rest.get(n..).unwrap_or_default(),
                }
            }
            Ok(stream.flush().await?)
        };
        let result = within(limit, self.deadline, sending).await;
        result.map_err(|cause| Unwritten { cause, complete: rest.is_empty() })
    }

    /// Waits for the next reply; `limit` is for all of it.
    pub(crate) async fn reply(&mut self, limit: Duration) -> Result<Reply, Cause> {
        let (stream, reader) = (&mut self.client.stream, &mut self.reader);
        let reading = async {
            let mut chunk = [0; 4096];
            loop {
                if let Some(reply) = reader.next()? {
                    return Ok(reply);
                }
                match stream.read(&mut chunk).await? {
                    0 => return Err(Cause::Closed),
                    n => reader.push(chunk.get(..n).unwrap_or_default()),
                }
            }
        };
        within(limit, self.deadline, reading).await
    }

    /// Checks, without waiting, that the upstream has said nothing since the last reply.
    ///
    /// A refusal that came unasked (421 at shutdown, 451 after a long pause) is given as such, for
    /// it tells why; anything else means that replies and commands no longer match.
    pub(crate) fn quiet(&mut self) -> Result<(), Cause> {
        let mut chunk = [0; 1024];
        let mut end = None;
        while end.is_none() && self.reader.is_empty() {
            match self.client.stream.read(&mut chunk).now_or_never() {
                None => return Ok(()),
                Some(Ok(0)) => end = Some(Cause::Closed),
                Some(Ok(n)) => self.reader.push(chunk.get(..n).unwrap_or_default()),
                Some(Err(e)) => end = Some(e.into()),
            }
        }
        match (self.reader.next(), end) {
            (Ok(Some(reply)), _) if reply.is_transient() || reply.is_permanent() => {
                Err(Cause::Refused(reply))
            }
            (_, Some(cause)) => Err(cause),
            _ => Err(Cause::Surplus),
        }
    }

    /// Takes leave, not waiting long and not minding what comes of it.
    pub(crate) async fn quit(mut self) {
        const PATIENCE: Duration = Duration::from_secs(2);
        self.deadline = Instant::now() + PATIENCE;
        if self.command("QUIT\r\n", PATIENCE).await.is_ok() {
            let _ =
                within(PATIENCE, self.deadline, async { Ok(self.client.stream.shutdown().await?) })
                    .await;
        }
    }
}

/// Gives `work` as long as `limit`, and not beyond `deadline`.
async fn within<T>(
    limit: Duration,
    deadline: Instant,
    work: impl Future<Output = Result<T, Cause>>,
) -> Result<T, Cause> {
    let start = Instant::now();
    let end = (start + limit).min(deadline);
    let late = |_| Err(Cause::TimedOut(end.saturating_duration_since(start)));
    timeout_at(end, work).await.unwrap_or_else(late)
}
