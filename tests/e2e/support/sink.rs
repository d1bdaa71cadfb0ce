//! An SMTP server that keeps what it accepts, octet for octet, and fails as it is told.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use super::mail::message_id;
use super::{free_port, local};

/// Where in the dialogue a fault strikes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    Greeting,
    Ehlo,
    Mail,
    Rcpt,
    Data,
    /// After the first line of the content.
    Content,
    /// The reply to the final dot.
    EndOfData,
}

impl Stage {
    pub const ALL: [Self; 7] = [
        Self::Greeting,
        Self::Ehlo,
        Self::Mail,
        Self::Rcpt,
        Self::Data,
        Self::Content,
        Self::EndOfData,
    ];
}

/// What goes wrong there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Act {
    /// This reply in place of the usual one.
    Reply(&'static str),
    /// No reply, until the client gives up.
    Hang,
    /// The connection is closed.
    Drop,
    /// The message is accepted, and the connection closed without saying so.
    LoseReply,
    /// The usual reply, later.
    Delay(Duration),
}

/// A fault, and how often it strikes.
#[derive(Clone, Debug)]
pub struct Fault {
    pub stage: Stage,
    pub act: Act,
    /// Only for command lines that contain this.
    pub only: &'static str,
    pub times: usize,
}

impl Fault {
    pub const fn once(stage: Stage, act: Act) -> Self {
        Self { stage, act, only: "", times: 1 }
    }

    pub const fn always(stage: Stage, act: Act) -> Self {
        Self { stage, act, only: "", times: usize::MAX }
    }
}

/// A message the server took responsibility for.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// The MAIL command's line after the colon.
    pub mail: String,
    /// Each RCPT command's line after the colon.
    pub recipients: Vec<String>,
    /// Unstuffed, without the final dot.
    pub content: Vec<u8>,
}

impl Accepted {
    pub fn message_id(&self) -> String {
        message_id(&self.content).unwrap_or_default()
    }
}

#[derive(Default)]
struct State {
    accepted: Vec<Accepted>,
    faults: Vec<Fault>,
    struck: usize,
    connections: usize,
    open: HashMap<usize, TcpStream>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    stopping: AtomicBool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn change(&self, f: impl FnOnce(&mut State)) {
        f(&mut self.state());
        self.changed.notify_all();
    }

    fn strike(&self, stage: Stage, line: &str) -> Option<Act> {
        let mut state = self.state();
        let at = |f: &Fault| f.stage == stage && f.times > 0 && line.contains(f.only);
        let fault = state.faults.iter_mut().find(|f| at(f))?;
        fault.times -= 1;
        let act = fault.act.clone();
        state.struck += 1;
        self.changed.notify_all();
        Some(act)
    }
}

/// The server.
pub struct Sink {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Sink {
    pub fn start() -> Self {
        let mut sink = Self::down();
        sink.up();
        sink
    }

    /// One that does not listen yet: connections are refused until it is [`up`](Self::up).
    pub fn down() -> Self {
        Self { address: local(free_port()), shared: Arc::default(), acceptor: None }
    }

    pub fn up(&mut self) {
        let listener = TcpListener::bind(self.address).unwrap();
        self.shared.stopping.store(false, Ordering::SeqCst);
        let shared = Arc::clone(&self.shared);
        self.acceptor = Some(std::thread::spawn(move || accept(&listener, &shared)));
    }

    /// Stops listening and drops what is open; what was accepted stays known.
    pub fn go_down(&mut self) {
        let Some(acceptor) = self.acceptor.take() else { return };
        self.shared.stopping.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        acceptor.join().unwrap();
        for (_, stream) in self.shared.state().open.drain() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub fn fail(&self, faults: &[Fault]) {
        self.shared.change(|state| state.faults = faults.to_vec());
    }

    pub fn recover(&self) {
        self.fail(&[]);
    }

    /// How often a fault has struck.
    pub fn struck(&self) -> usize {
        self.shared.state().struck
    }

    pub fn connections(&self) -> usize {
        self.shared.state().connections
    }

    pub fn accepted(&self) -> Vec<Accepted> {
        self.shared.state().accepted.clone()
    }

    /// The Message-IDs of what was accepted, in that order.
    pub fn arrivals(&self) -> Vec<String> {
        self.shared.state().accepted.iter().map(Accepted::message_id).collect()
    }

    /// How often each message, by Message-ID, was accepted.
    pub fn counts(&self) -> HashMap<String, usize> {
        let mut counts = HashMap::new();
        for accepted in &self.shared.state().accepted {
            *counts.entry(accepted.message_id()).or_default() += 1;
        }
        counts
    }

    /// Waits until a message with this Message-ID was accepted.
    #[track_caller]
    pub fn wait_for(&self, message_id: &str, limit: Duration) -> Accepted {
        self.wait(limit, message_id, |state| {
            state.accepted.iter().find(|a| a.message_id() == message_id).cloned()
        })
    }

    /// Waits until this many messages were accepted.
    #[track_caller]
    pub fn wait_count(&self, count: usize, limit: Duration) -> Vec<Accepted> {
        self.wait(limit, &format!("{count} messages"), |state| {
            (state.accepted.len() >= count).then(|| state.accepted.clone())
        })
    }

    /// Waits until no connection is open.
    #[track_caller]
    pub fn wait_idle(&self, limit: Duration) {
        self.wait(limit, "no connection", |state| state.open.is_empty().then_some(()));
    }

    /// Waits until faults have struck this often.
    #[track_caller]
    pub fn wait_struck(&self, count: usize, limit: Duration) {
        self.wait(limit, &format!("{count} faults"), |state| (state.struck >= count).then_some(()));
    }

    #[track_caller]
    fn wait<T>(&self, limit: Duration, what: &str, look: impl Fn(&State) -> Option<T>) -> T {
        let (state, _) = self
            .shared
            .changed
            .wait_timeout_while(self.shared.state(), limit, |state| look(state).is_none())
            .unwrap();
        let seen: Vec<_> = state.accepted.iter().map(Accepted::message_id).collect();
        look(&state).unwrap_or_else(|| panic!("{what} not within {limit:?}; accepted: {seen:?}"))
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.go_down();
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let kept = stream.try_clone().unwrap();
        let mut number = 0;
        shared.change(|state| {
            // Never used again, also not after the sink was down: what is left of an old connection
            // ends that one.
            state.connections += 1;
            number = state.connections;
            state.open.insert(number, kept);
        });
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            Session::new(stream, &shared).serve();
            shared.change(|state| {
                if let Some(stream) = state.open.remove(&number) {
                    let _ = stream.shutdown(Shutdown::Both);
                }
            });
        });
    }
}

/// The connection is over.
struct Over;

struct Session<'a> {
    reader: BufReader<TcpStream>,
    shared: &'a Shared,
    mail: Option<String>,
    recipients: Vec<String>,
}

impl<'a> Session<'a> {
    fn new(stream: TcpStream, shared: &'a Shared) -> Self {
        let _ = stream.set_nodelay(true);
        let reader = BufReader::with_capacity(1 << 16, stream);
        Self { reader, shared, mail: None, recipients: Vec::new() }
    }

    fn serve(&mut self) {
        if self.answer(Stage::Greeting, "", "220 sink.test ESMTP").is_err() {
            return;
        }
        let mut line = Vec::new();
        loop {
            line.clear();
            match self.reader.read_until(b'\n', &mut line) {
                Ok(n) if n > 0 => {}
                _ => return,
            }
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if self.command(&text).is_err() {
                return;
            }
        }
    }

    fn command(&mut self, line: &str) -> Result<(), Over> {
        let verb = line.split([' ', ':']).next().unwrap_or_default().to_ascii_uppercase();
        let argument = || line.split_once(':').map_or("", |(_, rest)| rest).trim().to_owned();
        match verb.as_str() {
            "EHLO" => self.answer(
                Stage::Ehlo,
                line,
                "250-sink.test\r\n250-SIZE 0\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n\
                 250-DSN\r\n250 ENHANCEDSTATUSCODES",
            ),
            "HELO" => self.answer(Stage::Ehlo, line, "250 sink.test"),
            "MAIL" => {
                self.recipients.clear();
                self.mail = None;
                if self.answer(Stage::Mail, line, "250 2.1.0 ok")? {
                    self.mail = Some(argument());
                }
                return Ok(());
            }
            "RCPT" if self.mail.is_some() => {
                if self.answer(Stage::Rcpt, line, "250 2.1.5 ok")? {
                    self.recipients.push(argument());
                }
                return Ok(());
            }
            "DATA" if !self.recipients.is_empty() => return self.data(line),
            "RCPT" | "DATA" => self.say("503 5.5.1 out of order").map(|()| true),
            "RSET" | "NOOP" => {
                self.mail = None;
                self.recipients.clear();
                self.say("250 2.0.0 ok").map(|()| true)
            }
            "QUIT" => {
                self.say("221 2.0.0 bye")?;
                return Err(Over);
            }
            _ => self.say("502 5.5.2 unknown").map(|()| true),
        }
        .map(|_| ())
    }

    fn data(&mut self, line: &str) -> Result<(), Over> {
        if !self.answer(Stage::Data, line, "354 go ahead")? {
            return Ok(());
        }
        let mail = self.mail.take().unwrap_or_default();
        let recipients = std::mem::take(&mut self.recipients);
        let content = self.content()?;
        let accepted = Accepted { mail, recipients, content };
        match self.shared.strike(Stage::EndOfData, "") {
            Some(Act::LoseReply) => {
                self.shared.change(|state| state.accepted.push(accepted));
                Err(Over)
            }
            None => self.take(accepted),
            Some(Act::Delay(time)) => {
                std::thread::sleep(time);
                self.take(accepted)
            }
            Some(act) => self.act(&act).map(|_| ()),
        }
    }

    fn take(&mut self, accepted: Accepted) -> Result<(), Over> {
        let mut number = 0;
        self.shared.change(|state| {
            state.accepted.push(accepted);
            number = state.accepted.len();
        });
        self.say(&format!("250 2.0.0 ok: queued as SINK{number}"))
    }

    /// Reads to the final dot, and takes the stuffed dots out.
    fn content(&mut self) -> Result<Vec<u8>, Over> {
        let mut content = Vec::new();
        let mut line = Vec::new();
        let mut starts = true;
        loop {
            line.clear();
            match self.reader.read_until(b'\n', &mut line) {
                Ok(n) if n > 0 => {}
                _ => return Err(Over),
            }
            if starts && line == b".\r\n" {
                return Ok(content);
            }
            let stuffed = starts && line.starts_with(b".");
            content.extend_from_slice(&line[usize::from(stuffed)..]);
            starts = line.ends_with(b"\r\n");
            if let Some(act) = self.shared.strike(Stage::Content, "") {
                self.act(&act)?;
            }
        }
    }

    /// Says what the stage says, unless a fault strikes; whether that was the usual reply.
    fn answer(&mut self, stage: Stage, line: &str, usual: &str) -> Result<bool, Over> {
        if let Some(act) = self.shared.strike(stage, line)
            && !self.act(&act)?
        {
            return Ok(false);
        }
        self.say(usual).map(|()| true)
    }

    /// Whether the usual reply still follows.
    fn act(&mut self, act: &Act) -> Result<bool, Over> {
        match act {
            Act::Reply(reply) => {
                self.say(reply)?;
                if reply.starts_with("421") { Err(Over) } else { Ok(false) }
            }
            Act::Hang => {
                let _ = std::io::copy(&mut self.reader.by_ref(), &mut std::io::sink());
                Err(Over)
            }
            Act::Drop | Act::LoseReply => Err(Over),
            Act::Delay(time) => {
                std::thread::sleep(*time);
                Ok(true)
            }
        }
    }

    fn say(&mut self, reply: &str) -> Result<(), Over> {
        let wire = format!("{reply}\r\n");
        self.reader.get_mut().write_all(wire.as_bytes()).map_err(|_| Over)
    }
}
