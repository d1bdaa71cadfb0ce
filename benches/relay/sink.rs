//! The smarthost behind every relay: takes everything, keeps nothing, and knows each message by the
//! number in its recipient. A message counts once, however often it comes.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// What has arrived.
#[derive(Default, Clone)]
pub struct Tally {
    seen: HashSet<u64>,
    /// Copies beyond the first of each.
    pub repeated: u64,
    pub first: Option<Instant>,
    /// When the last that was new arrived.
    pub last: Option<Instant>,
}

impl Tally {
    pub fn unique(&self) -> u64 {
        self.seen.len() as u64
    }

    fn arrived(&mut self, numbers: &[u64]) {
        let now = Instant::now();
        for number in numbers {
            if self.seen.insert(*number) {
                self.first.get_or_insert(now);
                self.last = Some(now);
            } else {
                self.repeated += 1;
            }
        }
    }
}

/// A listening sink on a thread of its own. Dropping it closes every connection.
pub struct Sink {
    tally: Arc<Mutex<Tally>>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Sink {
    pub fn listen(at: SocketAddr) -> Self {
        let tally = Arc::new(Mutex::new(Tally::default()));
        let (end, ended) = oneshot::channel();
        let (up, is_up) = std::sync::mpsc::channel();
        let shared = Arc::clone(&tally);
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind(at).await.unwrap();
                up.send(()).unwrap();
                tokio::select! {
                    () = accept(listener, shared) => {}
                    _ = ended => {}
                }
            });
        });
        is_up.recv().unwrap();
        Self { tally, end: Some(end), thread: Some(thread) }
    }

    /// What has arrived until now.
    pub fn tally(&self) -> Tally {
        lock(&self.tally).clone()
    }

    /// Waits until this many have arrived, but no longer than `limit`; gives what has.
    pub fn wait(&self, count: u64, limit: Duration) -> Tally {
        let begun = Instant::now();
        while lock(&self.tally).unique() < count && begun.elapsed() < limit {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.tally()
    }

    pub fn forget(&self) {
        *lock(&self.tally) = Tally::default();
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: TcpListener, tally: Arc<Mutex<Tally>>) {
    loop {
        // Out of descriptors for a moment: others close theirs.
        let Ok((stream, _)) = listener.accept().await else { continue };
        tokio::spawn(serve(stream, Arc::clone(&tally)));
    }
}

/// One connection, until it ends in whatever way.
async fn serve(mut stream: TcpStream, tally: Arc<Mutex<Tally>>) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    stream.write_all(b"220 sink.test ESMTP\r\n").await.ok()?;
    let mut dialogue = Dialogue::default();
    let mut got = BytesMut::with_capacity(64 * 1024);
    loop {
        got.reserve(64 * 1024);
        if stream.read_buf(&mut got).await.ok()? == 0 {
            return None;
        }
        let arrived = dialogue.take(&mut got);
        if !arrived.is_empty() {
            lock(&tally).arrived(&arrived);
        }
        stream.write_all(&dialogue.replies).await.ok()?;
        dialogue.replies.clear();
        if dialogue.over {
            return None;
        }
    }
}

#[derive(Default)]
struct Dialogue {
    recipients: Vec<u64>,
    in_content: bool,
    over: bool,
    replies: Vec<u8>,
}

impl Dialogue {
    /// Consumes what is complete; gives the messages that are.
    fn take(&mut self, got: &mut BytesMut) -> Vec<u64> {
        let mut arrived = Vec::new();
        loop {
            if self.in_content {
                let end = b"\r\n.\r\n";
                let Some(at) = memchr::memmem::find(got, end) else {
                    got.advance(got.len().saturating_sub(end.len() - 1));
                    return arrived;
                };
                got.advance(at + end.len());
                self.in_content = false;
                arrived.append(&mut self.recipients);
                self.reply("250 2.0.0 taken");
                continue;
            }
            let Some(at) = memchr::memchr(b'\n', got) else { return arrived };
            let line = got.split_to(at + 1);
            self.command(&line);
        }
    }

    fn command(&mut self, line: &[u8]) {
        match line.get(..4).map(<[u8]>::to_ascii_uppercase).as_deref() {
            Some(b"EHLO") => self.reply("250-sink.test\r\n250-PIPELINING\r\n250 8BITMIME"),
            Some(b"MAIL" | b"RSET") => {
                self.recipients.clear();
                self.reply("250 2.0.0 ok");
            }
            Some(b"RCPT") => {
                self.recipients.extend(numbered(line));
                self.reply("250 2.1.5 ok");
            }
            Some(b"DATA") => {
                self.in_content = true;
                self.reply("354 go on");
            }
            Some(b"QUIT") => {
                self.over = true;
                self.reply("221 2.0.0 bye");
            }
            _ => self.reply("250 2.0.0 ok"),
        }
    }

    fn reply(&mut self, text: &str) {
        self.replies.extend(text.as_bytes());
        self.replies.extend(b"\r\n");
    }
}

/// The number in `RCPT TO:<m123@...>`.
fn numbered(line: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(line).ok()?;
    text.split_once("<m")?.1.split_once('@')?.0.parse().ok()
}
