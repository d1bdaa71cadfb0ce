//! An SMTP client that is cheap and exact about time: it costs less than what it measures.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{interval, timeout};

/// Content of more than this is not copied behind its header, but written in pieces.
const WHOLE: usize = 64 * 1024;
/// Nobody is waited for longer.
const PATIENCE: Duration = Duration::from_mins(2);

/// How a message is handed over.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Way {
    /// Each command waits for the reply to the one before, as most clients do.
    Plain,
    /// MAIL, RCPT and DATA go together, behind the content before them (RFC 2920).
    Pipelined,
    /// MAIL, RCPT, BDAT and the content go together (RFC 3030).
    Bdat,
}

/// The part of every message that is the same.
pub struct Content {
    text: Vec<u8>,
}

impl Content {
    /// Lines of text; with [`header`] a message of about `size` octets.
    pub fn new(size: usize) -> Self {
        let line =
            b"The quick brown fox jumps over the lazy dog, and the dog does not even mind.\r\n";
        let mut text: Vec<u8> = line.iter().copied().cycle().take(size.max(300) - 200).collect();
        text.truncate(text.len() - 2);
        text.extend(b"\r\n");
        Self { text }
    }
}

/// One session.
pub struct Client {
    stream: TcpStream,
    got: BytesMut,
    /// Whether MAIL, RCPT and DATA of the next message are out already.
    ahead: Option<u64>,
}

impl Client {
    /// Connects and says EHLO.
    pub async fn hello(to: SocketAddr) -> Result<Self, String> {
        let stream = TcpStream::connect(to).await.map_err(|e| format!("connect: {e}"))?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        let mut client = Self { stream, got: BytesMut::with_capacity(4096), ahead: None };
        client.expect("220").await?;
        client.write(b"EHLO bench.test\r\n").await?;
        client.expect("250").await?;
        Ok(client)
    }

    /// Sends message `number`. Gives the time from its last octet to the 250. When pipelining,
    /// the commands of the `next` one go with the end of this.
    pub async fn send(
        &mut self,
        way: Way,
        domain: &str,
        number: u64,
        content: &Content,
        next: Option<u64>,
    ) -> Result<Duration, String> {
        let mail = |n: u64| format!("MAIL FROM:<app@bench.test>\r\nRCPT TO:<m{n}@{domain}>\r\n");
        let header = header(number);
        match way {
            Way::Plain => {
                for command in mail(number).split_inclusive("\r\n") {
                    self.write(command.as_bytes()).await?;
                    self.expect("250").await?;
                }
                self.write(b"DATA\r\n").await?;
                self.expect("354").await?;
                let asked = self.content(&header, content, b".\r\n").await?;
                self.expect("250").await?;
                Ok(asked.elapsed())
            }
            Way::Pipelined => {
                if self.ahead != Some(number) {
                    self.write(format!("{}DATA\r\n", mail(number)).as_bytes()).await?;
                }
                self.replies(&["250", "250", "354"]).await?;
                self.ahead = next;
                let follows = next.map_or_else(String::new, |n| format!("{}DATA\r\n", mail(n)));
                let end = format!(".\r\n{follows}");
                let asked = self.content(&header, content, end.as_bytes()).await?;
                self.expect("250").await?;
                Ok(asked.elapsed())
            }
            Way::Bdat => {
                let size = header.len() + content.text.len();
                let commands = format!("{}BDAT {size} LAST\r\n{header}", mail(number));
                let asked = self.content(&commands, content, b"").await?;
                self.replies(&["250", "250", "250"]).await?;
                Ok(asked.elapsed())
            }
        }
    }

    /// Begins a message, up to its content.
    pub async fn begin(&mut self, number: u64) -> Result<(), String> {
        self.write(
            format!("MAIL FROM:<app@bench.test>\r\nRCPT TO:<m{number}@sink.test>\r\n").as_bytes(),
        )
        .await?;
        self.replies(&["250", "250"]).await?;
        self.write(b"DATA\r\n").await?;
        self.expect("354").await
    }

    /// Begins a message and sends all of it but its end.
    pub async fn upload(&mut self, number: u64, content: &Content) -> Result<(), String> {
        self.begin(number).await?;
        self.content(&header(number), content, b"").await.map(|_| ())
    }

    /// Sends content octet by octet, one at each tick of `pace`, and not its end.
    pub async fn drip(&mut self, content: &Content, pace: Duration) -> Result<(), String> {
        let mut ticks = interval(pace);
        for octet in &content.text {
            ticks.tick().await;
            self.write(&[*octet]).await?;
        }
        Ok(())
    }

    /// Ends what [`upload`](Self::upload) began.
    pub async fn finish(&mut self) -> Result<(), String> {
        self.write(b".\r\n").await?;
        self.expect("250").await
    }

    pub async fn quit(mut self) {
        // What is counted has been acknowledged; how the other side parts is its affair.
        let _ = self.write(b"QUIT\r\n").await;
        let _ = timeout(Duration::from_secs(1), self.expect("221")).await;
    }

    /// Writes a message; gives the time just before its last octets went out.
    async fn content(
        &mut self,
        before: &str,
        content: &Content,
        end: &[u8],
    ) -> Result<Instant, String> {
        if content.text.len() <= WHOLE {
            let whole = [before.as_bytes(), &content.text, end].concat();
            let asked = Instant::now();
            self.write(&whole).await?;
            return Ok(asked);
        }
        let (most, rest) = content.text.split_at(content.text.len() - WHOLE);
        self.write(before.as_bytes()).await?;
        self.write(most).await?;
        let last = [rest, end].concat();
        let asked = Instant::now();
        self.write(&last).await?;
        Ok(asked)
    }

    async fn write(&mut self, octets: &[u8]) -> Result<(), String> {
        let written = timeout(PATIENCE, self.stream.write_all(octets)).await;
        written.map_err(|_| "write: stuck".to_owned())?.map_err(|e| format!("write: {e}"))
    }

    async fn replies(&mut self, codes: &[&str]) -> Result<(), String> {
        for code in codes {
            self.expect(code).await?;
        }
        Ok(())
    }

    /// Reads one reply, of any number of lines.
    async fn expect(&mut self, code: &str) -> Result<(), String> {
        loop {
            while let Some(end) = memchr::memchr(b'\n', &self.got) {
                let line = self.got.split_to(end + 1);
                if line.get(3) == Some(&b'-') {
                    continue;
                }
                if line.starts_with(code.as_bytes()) {
                    return Ok(());
                }
                return Err(format!("not {code}: {}", String::from_utf8_lossy(&line).trim_end()));
            }
            if !self.got.has_remaining() {
                self.got.reserve(4096);
            }
            let read = timeout(PATIENCE, self.stream.read_buf(&mut self.got)).await;
            match read.map_err(|_| format!("no {code} in {PATIENCE:?}"))? {
                Ok(0) => return Err(format!("closed instead of {code}")),
                Ok(_) => {}
                Err(e) => return Err(format!("{e} instead of {code}")),
            }
        }
    }
}

fn header(number: u64) -> String {
    format!(
        "From: app@bench.test\r\nTo: m{number}@sink.test\r\nSubject: Bench\r\n\
         Date: Sat, 21 Nov 2026 12:00:00 +0000\r\nMessage-ID: <b{number}@bench.test>\r\n\r\n"
    )
}
