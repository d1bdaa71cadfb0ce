//! The Maildir upstream: files each message instead of sending it.
//!
//! For trying Postgate without anything else, and for staging environments that must not send. The
//! file holds `X-Envelope-From` and one `X-Envelope-To` for each recipient, then the message octet
//! for octet, CRLF line ends included.

use std::fmt::Write as _;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use async_trait::async_trait;

use super::{About, Leaving, Upstream};
use crate::clock::Clock;
use crate::mail::{
    Blame, Body, EnhancedStatus, Envelope, Failure, Handoff, Outcome, RecipientOutcome, Remedy,
    Reply, Stage,
};

/// Octets copied at a time.
const BLOCK: usize = 256 * 1024;

/// A Maildir that takes every message.
pub struct MaildirUpstream {
    name: String,
    maildir: Arc<Maildir>,
    clock: Arc<dyn Clock>,
    count: AtomicU64,
}

struct Maildir {
    path: PathBuf,
    host: String,
}

/// The Maildir cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot create Maildir {}: {source}", path.display())]
pub struct MaildirError {
    /// The directory.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

impl MaildirUpstream {
    /// A Maildir at `path`; it, `tmp`, `new` and `cur` are created with mode 0700 where missing.
    pub fn new(name: &str, path: &Path, clock: Arc<dyn Clock>) -> Result<Self, MaildirError> {
        for sub in ["", "tmp", "new", "cur"] {
            let directory = path.join(sub);
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
            made.and_then(|()| sync_directory(path))
                .map_err(|source| MaildirError { path: directory, source })?;
        }
        let maildir = Arc::new(Maildir { path: path.into(), host: host_name() });
        Ok(Self { name: name.into(), maildir, clock, count: AtomicU64::new(0) })
    }

    /// A name no other file has: time, process, and count within the process.
    fn file_name(&self) -> String {
        let now = self.clock.wall();
        let (seconds, ms) = (now.as_secs(), now.as_millis() % 1000);
        let (pid, n) = (std::process::id(), self.count.fetch_add(1, Ordering::Relaxed));
        format!("{seconds}.M{ms}P{pid}Q{n}.{}", self.maildir.host)
    }
}

#[async_trait]
impl Upstream for MaildirUpstream {
    fn name(&self) -> &str {
        &self.name
    }

    fn about(&self) -> About {
        About { kind: "maildir", account: serde_json::Value::Null, forced: false }
    }

    /// The deadline is not kept: what a disk has begun cannot be called back.
    async fn deliver(
        &self,
        envelope: &Envelope,
        body: &Body,
        leaving: &dyn Leaving,
        _deadline: Instant,
    ) -> Outcome {
        let begun = self.clock.now();
        if let Err(why) = leaving.content_leaves(&[]).await {
            let outcome = Unfiled::from(io::Error::other(why)).outcome();
            return Outcome::all(envelope.recipients.len(), &outcome);
        }
        let name = self.file_name();
        let (maildir, head, body) = (Arc::clone(&self.maildir), head(envelope), body.clone());
        let file = name.clone();
        let filing = tokio::task::spawn_blocking(move || maildir.file(&file, &head, &body));
        let outcome = match filing.await {
            Ok(Ok(())) => {
                let status = EnhancedStatus::new(2, 0, 0);
                let reply = Reply::new(250, status, format!("filed as {name}"));
                RecipientOutcome::Sent { reply }
            }
            Ok(Err(unfiled)) => unfiled.outcome(),
            Err(e) => Unfiled { error: io::Error::other(e), handoff: Handoff::Unknown }.outcome(),
        };
        let transmission = self.clock.now().saturating_duration_since(begun);
        let relay = Some(self.maildir.path.display().to_string());
        Outcome { relay, transmission, ..Outcome::all(envelope.recipients.len(), &outcome) }
    }
}

/// Why a message was not filed.
struct Unfiled {
    error: io::Error,
    handoff: Handoff,
}

impl From<io::Error> for Unfiled {
    fn from(error: io::Error) -> Self {
        Self { error, handoff: Handoff::NotSent }
    }
}

impl Unfiled {
    fn outcome(self) -> RecipientOutcome {
        let failure = Failure {
            stage: Stage::Storage,
            blame: Blame::Local,
            handoff: self.handoff,
            remedy: Remedy::Time,
            reply: None,
            status: EnhancedStatus::new(4, 3, 0),
            detail: self.error.to_string(),
        };
        match self.handoff {
            Handoff::NotSent => RecipientOutcome::Deferred(failure),
            Handoff::Unknown => RecipientOutcome::Unconfirmed(failure),
        }
    }
}

impl Maildir {
    /// Writes `tmp/name` durably and moves it to `new`.
    fn file(&self, name: &str, head: &[u8], body: &Body) -> Result<(), Unfiled> {
        let (tmp, new) = (self.path.join("tmp").join(name), self.path.join("new"));
        let moved = write(&tmp, head, body).and_then(|()| fs::rename(&tmp, new.join(name)));
        if let Err(error) = moved {
            let _ = fs::remove_file(&tmp);
            return Err(error.into());
        }
        // Readers see it from here on, so it may have been taken even if this fails.
        sync_directory(&new).map_err(|error| Unfiled { error, handoff: Handoff::Unknown })
    }
}

fn write(path: &Path, head: &[u8], body: &Body) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(head)?;
    let mut offset = 0;
    while offset < body.len() {
        let block = body.chunk(offset, BLOCK)?;
        if block.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        file.write_all(&block)?;
        offset += block.len() as u64;
    }
    file.sync_all()
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// The envelope as header fields. A mailbox cannot hold a line end.
fn head(envelope: &Envelope) -> Vec<u8> {
    let mut head = format!("X-Envelope-From: <{}>\r\n", envelope.reverse_path);
    for recipient in &envelope.recipients {
        let _ = write!(head, "X-Envelope-To: <{}>\r\n", recipient.path);
    }
    head.into_bytes()
}

/// The machine's name, as a part of a file name.
fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let name: String = name.chars().filter(|c| safe(*c)).take(64).collect();
    if name.is_empty() { "localhost".into() } else { name }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::clock::{ManualClock, Timestamp};
    use crate::mail::{BodyKind, ForwardPath, Mailbox, ReversePath};
    use crate::upstream::Free;

    fn envelope() -> Envelope {
        let to = |s: &str| ForwardPath(Mailbox::parse(s.as_bytes()).unwrap()).into();
        Envelope {
            reverse_path: ReversePath::Null,
            recipients: vec![to("a@b.example"), to("\"c d\"@e.example")],
            body: BodyKind::SevenBit,
            smtputf8: false,
            ret: None,
            envid: None,
        }
    }

    fn open(path: &Path) -> MaildirUpstream {
        let clock = ManualClock::new(Timestamp::from_millis(1_795_252_321_431));
        MaildirUpstream::new("outbox", path, Arc::new(clock)).unwrap()
    }

    #[tokio::test]
    async fn messages_are_filed_each_under_a_name_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/outbox");
        let upstream = open(&path);
        let now = upstream.clock.now();
        for n in 1..=3 {
            let body = Body::Memory("Subject: x\r\n\r\n.hi\r\n".into());
            let outcome = upstream.deliver(&envelope(), &body, &Free, now).await;
            assert_eq!(outcome.recipients.len(), 2);
            let RecipientOutcome::Sent { reply } = &outcome.recipients[0] else { panic!() };
            let reply = reply.to_string();
            let name = reply.strip_prefix("250 2.0.0 filed as ").unwrap();
            let text = fs::read_to_string(path.join("new").join(name)).unwrap();
            let head = "X-Envelope-From: <>\r\nX-Envelope-To: <a@b.example>\r\n\
                        X-Envelope-To: <\"c d\"@e.example>\r\n";
            assert_eq!(text, format!("{head}Subject: x\r\n\r\n.hi\r\n"));
            assert_eq!(fs::read_dir(path.join("new")).unwrap().count(), n);
        }
        assert_eq!(fs::read_dir(path.join("tmp")).unwrap().count(), 0);
        for sub in ["", "tmp", "new", "cur"] {
            let mode = fs::metadata(path.join(sub)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "{sub}");
        }
    }

    #[tokio::test]
    async fn what_cannot_be_filed_is_deferred_and_leaves_nothing() {
        struct Broken;
        impl crate::mail::ReadAt for Broken {
            fn read_exact_at(&self, _: &mut [u8], _: u64) -> io::Result<()> {
                Err(io::ErrorKind::InvalidData.into())
            }
        }
        let directory = tempfile::tempdir().unwrap();
        let upstream = open(directory.path());
        let now = upstream.clock.now();
        let body = Body::Stored { source: Arc::new(Broken), len: 10 };
        let outcome = upstream.deliver(&envelope(), &body, &Free, now).await;
        let RecipientOutcome::Deferred(failure) = &outcome.recipients[1] else { panic!() };
        assert_eq!((failure.stage, failure.blame), (Stage::Storage, Blame::Local));
        for sub in ["tmp", "new"] {
            assert_eq!(fs::read_dir(directory.path().join(sub)).unwrap().count(), 0);
        }
    }
}
