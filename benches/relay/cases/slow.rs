//! Clients that write octet by octet, and clients that never read: what they cost the others.

use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Outcome, Scenario, load_of, waits, warm};
use crate::args::Args;
use crate::client::{Client, Content};
use crate::load::{self, number};
use crate::peers::{Onward, System};
use crate::report::{Metric, Row};

const SIZE: usize = 10 << 10;
/// The sessions that are not slow.
const SESSIONS: usize = 50;
/// Between two octets.
const DRIP: Duration = Duration::from_millis(100);
/// Who cannot write for so long is stuck.
const STUCK: Duration = Duration::from_millis(500);

pub fn scenarios(args: &Args) -> [Scenario; 2] {
    let slow = args.slow;
    let beside = format!("{SESSIONS} sessions beside {slow} that drip and {slow} that do not read");
    let measure = |slow| move |args: &Args| ordinary(args, slow);
    [
        Scenario::of_ours(Row::new([5], format!("{SESSIONS} sessions alone")), measure(0)),
        Scenario::of_ours(Row::new([6, slow as u64], beside), measure(slow)),
    ]
}

/// The sessions that are not slow, beside so many that drip and so many that do not read.
fn ordinary(args: &Args, slow: usize) -> Outcome {
    let relay = System::Postgate.start(args, Onward::Held);
    let slow = Slow::start(relay.address, slow)?;
    let load = load_of(args, relay.address, SESSIONS, SIZE);
    warm(&load)?;
    let loaded = load::run(&load)?;
    slow.stop()?;
    let mut figures = waits(&loaded);
    figures.push((Metric::Rate, loaded.rate()));
    Ok(figures)
}

/// All of the slow clients, on a thread of their own.
struct Slow {
    end: oneshot::Sender<()>,
    thread: JoinHandle<Result<(), String>>,
}

impl Slow {
    /// Comes back when all of them are where they will stay.
    fn start(to: SocketAddr, count: usize) -> Result<Self, String> {
        let (end, ended) = oneshot::channel();
        let (up, is_up) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(be_slow(to, count, up, ended))
        });
        let slow = Self { end, thread };
        match is_up.recv() {
            Ok(()) => Ok(slow),
            // It says why.
            Err(_) => Err(slow.stop().err().unwrap_or_default()),
        }
    }

    /// Fails when one of them was not slow to the end.
    fn stop(self) -> Result<(), String> {
        drop(self.end);
        self.thread.join().map_err(|_| "the slow clients failed".to_owned())?
    }
}

async fn be_slow(
    to: SocketAddr,
    count: usize,
    up: mpsc::Sender<()>,
    ended: oneshot::Receiver<()>,
) -> Result<(), String> {
    let (mut writers, mut readers) = (JoinSet::new(), JoinSet::new());
    for _ in 0..count {
        writers.spawn(async move {
            let mut client = Client::hello(to).await?;
            client.begin(number()).await.map(|()| client)
        });
        readers.spawn(deaf(to));
    }
    let mut slow = JoinSet::new();
    let content = Arc::new(Content::new(SIZE));
    while let Some(client) = writers.join_next().await {
        let (mut client, content) = (client.unwrap()?, Arc::clone(&content));
        slow.spawn(async move { client.drip(&content, DRIP).await });
    }
    while let Some(client) = readers.join_next().await {
        let mut stream = client.unwrap()?;
        // As soon as a little room is there, it asks again.
        slow.spawn(async move {
            loop {
                ask(&mut stream).await?;
            }
        });
    }
    let _ = up.send(());
    tokio::select! {
        _ = ended => Ok(()),
        Some(left) = slow.join_next() => Err(format!("a slow one was left: {left:?}")),
    }
}

/// Asks and asks and never reads, not even the greeting, until it can write no more.
async fn deaf(to: SocketAddr) -> Result<TcpStream, String> {
    let socket = TcpSocket::new_v4().map_err(|e| e.to_string())?;
    // What the system would take for us is no measure of the relay.
    let small = socket.set_recv_buffer_size(4096).and_then(|()| socket.set_send_buffer_size(4096));
    small.map_err(|e| e.to_string())?;
    let mut stream = socket.connect(to).await.map_err(|e| format!("connect: {e}"))?;
    // Who speaks before the greeting is refused.
    stream.readable().await.map_err(|e| format!("greeting: {e}"))?;
    while let Ok(asked) = timeout(STUCK, ask(&mut stream)).await {
        asked?;
    }
    Ok(stream)
}

async fn ask(stream: &mut TcpStream) -> Result<(), String> {
    let asks = b"EHLO deaf.test\r\n".repeat(1000);
    stream.write_all(&asks).await.map_err(|e| format!("one that does not read: {e}"))
}
