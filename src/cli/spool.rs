//! `spool`: looking into, tidying and moving a spool.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use serde_json::json;

use super::args::{Global, SpoolArgs, SpoolTool};
use super::client::Client;
use super::out::Out;
use super::progress::{Bar, Unit};
use super::{Failure, exit, format};
use crate::clock::{Clock, SystemClock};
use crate::config;
use crate::mail::{QueueId, QueueState};
use crate::spool::tools::archive::{self, ArchiveError, Outgoing};
use crate::spool::tools::{self, Progress, Reader, ToolError, Verdict};
use crate::spool::{Entry, OpenError, SegmentLog, Settings, Spool, SpoolError};

/// Messages that are imported at once, so that they share syncs.
const AT_ONCE: u64 = 64;
/// Memory that one of them may take.
const SHARE: u64 = 1 << 20;
/// Messages that are read from the queue at a time.
const PAGE: usize = 500;

pub(super) async fn spool(
    global: &Global,
    args: SpoolArgs,
    client: impl FnOnce() -> Result<Client, Failure>,
    out: &mut Out,
) -> Result<(), Failure> {
    let path = args.path.as_deref();
    let settings = settings(global, path);
    match args.command {
        SpoolTool::Verify => verify(global, &settings?.path, out),
        SpoolTool::Compact => compact(global, settings?, out),
        SpoolTool::Export { dir } => {
            // Who names a directory does not mean the spool of the Postgate that runs. Who may not
            // read the configuration may still be allowed to ask that one.
            let client = path.is_none().then_some(client);
            let settings = match settings {
                Err(_) if path.is_none() && global.config.is_none() => None,
                settings => Some(settings?),
            };
            export(global, settings.as_ref().map(|s| s.path.as_path()), &dir, client, out).await
        }
        SpoolTool::Import { dir, duplicates } => {
            import(global, settings?, &dir, duplicates, out).await
        }
    }
}

/// The configuration's, for the directory that was named or is configured.
fn settings(global: &Global, path: Option<&Path>) -> Result<Settings, Failure> {
    match (config::load(&global.config(), &config::environment()), path) {
        (Ok((config, _)), Some(path)) => Ok(Settings { path: path.into(), ..config.spool }),
        (Ok((config, _)), None) => Ok(config.spool),
        (Err(_), Some(path)) if global.config.is_none() => Ok(Settings::new(path.into())),
        (Err(report), _) => Err(Failure::new(exit::CONFIG, report.to_string())),
    }
}

fn verify(global: &Global, path: &Path, out: &mut Out) -> Result<(), Failure> {
    let bar = Arc::new(Bar::new("verifying", Unit::Octets, global.quiet));
    let verdict = tools::verify(path, bar).map_err(|e| failure(&e))?;
    if global.json {
        out.line(&verdict_json(&verdict).to_string())?;
    } else {
        verdict_lines(&verdict).iter().try_for_each(|line| out.line(line))?;
    }
    if verdict.is_sound() { Ok(()) } else { Err(Failure::silent(exit::FAILED)) }
}

fn verdict_json(verdict: &Verdict) -> serde_json::Value {
    let found = &verdict.recovered;
    let damage = found.damage.iter().map(|d| {
        let (start, end) = (d.range.start, d.range.end);
        json!({ "segment": d.segment, "start": start, "end": end, "queue_id": d.id })
    });
    json!({
        "sound": verdict.is_sound(),
        "messages": found.messages,
        "octets": verdict.octets,
        "segments": verdict.segments,
        "damage": damage.collect::<Vec<_>>(),
        "without_body": found.without_body,
        "damaged_bodies": verdict.damaged_bodies,
        "torn_tail": found.torn_tail,
        "orphans": found.orphans,
    })
}

fn verdict_lines(verdict: &Verdict) -> Vec<String> {
    let found = &verdict.recovered;
    let mut lines = Vec::new();
    for d in &found.damage {
        let whose = d.id.map(|id| format!(", message {id}")).unwrap_or_default();
        let (start, end) = (d.range.start, d.range.end);
        lines.push(format!("damaged: segment {}, octets {start} to {end}{whose}", d.segment));
    }
    lines.extend(found.without_body.iter().map(|id| format!("no body file: message {id}")));
    lines.extend(verdict.damaged_bodies.iter().map(|id| format!("damaged body: message {id}")));
    if found.torn_tail {
        lines.push("a batch was cut off at the end; it was never acknowledged".into());
    }
    if found.orphans > 0 {
        lines.push(format!("body files of no message: {}", found.orphans));
    }
    let state = if verdict.is_sound() { "sound" } else { "DAMAGED" };
    let segments = plural(verdict.segments as u64, "segment");
    lines.push(format!("{state}: {}, {segments}", counted(found.messages, verdict.octets)));
    lines
}

fn compact(global: &Global, settings: Settings, out: &mut Out) -> Result<(), Failure> {
    let bar = Bar::new("compacting", Unit::Segments, global.quiet);
    let done = tools::compact(settings, Arc::new(SystemClock), &bar).map_err(|e| failure(&e))?;
    drop(bar);
    let (before, after) = (done.before, done.after);
    out.line(&if global.json {
        json!({ "messages": done.messages, "before": before, "after": after, "stuck": done.stuck })
            .to_string()
    } else {
        let messages = plural(done.messages, "message");
        format!("{messages}, log {} -> {}", format::octets(before), format::octets(after))
    })?;
    match done.stuck {
        None => Ok(()),
        Some(segment) => Err(Failure::new(
            exit::FAILED,
            format!("segment {segment} cannot be emptied; see: postgate spool verify"),
        )),
    }
}

/// What an export came to.
#[derive(Default)]
struct Exported {
    messages: u64,
    failed: u64,
}

async fn export(
    global: &Global,
    path: Option<&Path>,
    dir: &Path,
    client: Option<impl FnOnce() -> Result<Client, Failure>>,
    out: &mut Out,
) -> Result<(), Failure> {
    let reading = Arc::new(Bar::new("reading", Unit::Octets, global.quiet));
    let reader = path.map(|path| Reader::open(path, reading)).transpose();
    let bar = Bar::new("exporting", Unit::Messages, global.quiet);
    let client = client.filter(|_| reader.as_ref().map_or_else(is_anothers, Option::is_none));
    let (exported, running) = match (reader, client) {
        (_, Some(client)) => {
            let client = client()?;
            let ids = running_ids(&client).await?;
            archive::create(dir).map_err(|e| archive_failure(&e))?;
            (export_running(&client, ids, dir, &bar, out).await?, true)
        }
        (Ok(Some(reader)), None) => {
            archive::create(dir).map_err(|e| archive_failure(&e))?;
            (export_stopped(&reader, dir, &bar, out)?, false)
        }
        (Ok(None), None) => return Err(Failure::silent(exit::CONFIG)),
        (Err(e), None) => return Err(failure(&e.into())),
    };
    archive::sync(dir).map_err(|e| archive_failure(&e))?;
    drop(bar);
    let Exported { messages, failed } = exported;
    out.line(&if global.json {
        json!({ "exported": messages, "failed": failed, "running": running }).to_string()
    } else {
        format!("{} exported to {}", plural(messages, "message"), dir.display())
    })?;
    if failed == 0 { Ok(()) } else { Err(Failure::silent(exit::FAILED)) }
}

/// A running Postgate has it, or we may not see its directory: then it is asked.
fn is_anothers(error: &OpenError) -> bool {
    match error {
        OpenError::InUse { .. } => true,
        OpenError::Io { source, .. } => source.kind() == ErrorKind::PermissionDenied,
        _ => false,
    }
}

fn export_stopped(reader: &Reader, dir: &Path, bar: &Bar, out: &Out) -> Result<Exported, Failure> {
    let ids = reader.ids();
    bar.total(ids.len() as u64);
    let mut exported = Exported::default();
    for id in ids {
        bar.add(1);
        let (entry, body) = match reader.read(id) {
            Ok(read) => read,
            Err(e) => {
                bar.aside(|| out.complain(&format!("{id}: {e}")));
                exported.failed += 1;
                continue;
            }
        };
        let mut file = Outgoing::create(dir, entry).map_err(|e| archive_failure(&e))?;
        file.write_all(&body).and_then(|()| file.finish()).map_err(|e| archive_failure(&e))?;
        exported.messages += 1;
    }
    Ok(exported)
}

async fn running_ids(client: &Client) -> Result<Vec<QueueId>, Failure> {
    let mut ids = Vec::new();
    let each = |entry: Entry| {
        ids.push(entry.message.id);
        Ok(())
    };
    client.lines("/v1/queue", each).await?;
    Ok(ids)
}

/// Each message is asked for by itself, and is as it was at that moment. One that was delivered
/// before its turn is not exported.
async fn export_running(
    client: &Client,
    ids: Vec<QueueId>,
    dir: &Path,
    bar: &Bar,
    out: &Out,
) -> Result<Exported, Failure> {
    bar.total(ids.len() as u64);
    let mut exported = Exported::default();
    for id in ids {
        bar.add(1);
        match export_one(client, id, dir).await {
            Ok(true) => exported.messages += 1,
            Ok(false) => {}
            Err(Failure { code: exit::SOFTWARE, message }) => {
                let message = message.unwrap_or_default();
                bar.aside(|| out.complain(&format!("{id}: {message}")));
                exported.failed += 1;
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(exported)
}

/// Whether the message was still there.
async fn export_one(client: &Client, id: QueueId, dir: &Path) -> Result<bool, Failure> {
    let entry = match client.find::<Entry>(&format!("/v1/queue/{id}")).await? {
        Some(entry) if entry.state != QueueState::Sent => entry,
        _ => return Ok(false),
    };
    let mut file = Outgoing::create(dir, entry).map_err(|e| archive_failure(&e))?;
    let piece = |octets: &[u8]| {
        let written = file.write(octets).map_err(|e| archive_failure(&e));
        written.map(ControlFlow::Continue)
    };
    let read = client.octets(&format!("/v1/queue/{id}/body"), piece).await;
    let done = match &read {
        Ok(()) => file.finish().map(|()| true),
        Err(_) => file.discard().map(|()| false),
    };
    let done = done.map_err(|e| archive_failure(&e))?;
    if read.is_err()
        && client.find::<Entry>(&format!("/v1/queue/{id}")).await?.as_ref().is_some_and(is_queued)
    {
        read?;
    }
    Ok(done)
}

fn is_queued(entry: &Entry) -> bool {
    entry.state != QueueState::Sent
}

async fn import(
    global: &Global,
    settings: Settings,
    dir: &Path,
    duplicates: bool,
    out: &mut Out,
) -> Result<(), Failure> {
    let names = archive::names(dir).map_err(|e| archive_failure(&e))?;
    let at_once = (settings.memory / SHARE).clamp(1, AT_ONCE);
    let (spool, _) =
        SegmentLog::open(settings, Arc::new(SystemClock)).map_err(|e| failure(&e.into()))?;
    let known = if duplicates { HashSet::new() } else { known(&spool).await? };
    let bar = Bar::new("importing", Unit::Messages, global.quiet);
    bar.total(names.waiting.len() as u64);
    let run = Import {
        spool,
        dir,
        known,
        json: global.json,
        bar,
        out: RefCell::new(out),
        imported: Cell::new(0),
        left: Cell::new(0),
        stopped: RefCell::new(None),
    };
    let each = stream::iter(names.waiting).map(|id| run.one(id));
    let at_once = usize::try_from(at_once).unwrap_or(1);
    each.buffer_unordered(at_once).for_each(|()| std::future::ready(())).await;
    run.spool.close().await;
    // Else a power cut may bring names back, and what was delivered since would be imported again.
    let synced = archive::sync(dir).map_err(|e| archive_failure(&e));
    run.end(names.imported).and(synced)
}

/// What the spool holds already.
async fn known(spool: &SegmentLog) -> Result<HashSet<[u8; 32]>, Failure> {
    let (mut known, mut after) = (HashSet::new(), None);
    loop {
        let page = spool.list(after, PAGE).await.map_err(|e| failure(&e.into()))?;
        let Some(last) = page.last() else { return Ok(known) };
        after = Some(last.message.id);
        known.extend(page.iter().map(|entry| archive::fingerprint(&entry.message)));
    }
}

/// An import under way.
struct Import<'a> {
    spool: SegmentLog,
    dir: &'a Path,
    known: HashSet<[u8; 32]>,
    json: bool,
    bar: Bar,
    out: RefCell<&'a mut Out>,
    imported: Cell<u64>,
    /// Those that were told and left where they are.
    left: Cell<u64>,
    /// Why no more is tried.
    stopped: RefCell<Option<Failure>>,
}

impl Import<'_> {
    async fn one(&self, id: QueueId) {
        if self.stopped.borrow().is_some() {
            return;
        }
        self.bar.add(1);
        match self.try_one(id).await {
            Ok(new) => {
                self.imported.set(self.imported.get() + 1);
                if self.json {
                    let line = json!({ "from": id, "queue_id": new }).to_string();
                    let told = self.out.borrow_mut().line(&line);
                    self.stop_on(told.err());
                }
            }
            Err(Refused::This(why)) => {
                self.left.set(self.left.get() + 1);
                self.bar.aside(|| self.out.borrow().complain(&format!("{id}: {why}")));
            }
            Err(Refused::All(failure)) => self.stop_on(Some(failure)),
        }
    }

    async fn try_one(&self, id: QueueId) -> Result<QueueId, Refused> {
        let (entry, body) =
            archive::open(self.dir, id).map_err(|e| Refused::This(e.to_string()))?;
        if self.known.contains(&archive::fingerprint(&entry.message)) {
            let why = "it is in the spool already; --duplicates imports it all the same";
            return Err(Refused::This(why.into()));
        }
        let now = SystemClock.wall();
        let stored = tools::restore(&self.spool, &entry, &body, now).await;
        let new = stored.map_err(|e| Refused::All(failure(&e.into())))?;
        archive::mark(self.dir, id).map_err(|e| Refused::All(archive_failure(&e)))?;
        Ok(new)
    }

    fn stop_on(&self, failure: Option<Failure>) {
        let mut stopped = self.stopped.borrow_mut();
        if stopped.is_none() {
            *stopped = failure;
        }
    }

    /// Tells what came of it.
    fn end(self, before: usize) -> Result<(), Failure> {
        drop(self.bar);
        let out = self.out.into_inner();
        if before > 0 {
            out.note(&format!("{} imported before", plural(before as u64, "message")));
        }
        if !self.json {
            out.line(&format!("{} imported", plural(self.imported.get(), "message")))?;
        }
        if let Some(failure) = self.stopped.into_inner() {
            return Err(failure);
        }
        if self.left.get() == 0 { Ok(()) } else { Err(Failure::silent(exit::FAILED)) }
    }
}

/// Why a message was not imported.
enum Refused {
    /// The others may be.
    This(String),
    /// The others would not be either.
    All(Failure),
}

fn failure(error: &ToolError) -> Failure {
    let code = match error {
        ToolError::Open(OpenError::Io { source, .. })
            if source.kind() == ErrorKind::PermissionDenied =>
        {
            exit::PERMISSION
        }
        ToolError::Open(_) => exit::UNAVAILABLE,
        ToolError::Spool(SpoolError::Io { .. } | SpoolError::Damaged(_)) => exit::SOFTWARE,
        ToolError::Spool(_) => exit::FAILED,
    };
    Failure::new(code, error.to_string())
}

fn archive_failure(error: &ArchiveError) -> Failure {
    let code = match error {
        ArchiveError::NotEmpty(_) => exit::USAGE,
        ArchiveError::Broken { .. } => exit::SOFTWARE,
        ArchiveError::Io { source, .. } if source.kind() == ErrorKind::PermissionDenied => {
            exit::PERMISSION
        }
        ArchiveError::Io { .. } => exit::FAILED,
    };
    Failure::new(code, error.to_string())
}

fn counted(messages: u64, octets: u64) -> String {
    format!("{}, {}", plural(messages, "message"), format::octets(octets))
}

fn plural(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}
