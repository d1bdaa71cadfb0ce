//! Memory of Postgate: sessions that do nothing, and large messages from many at once.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::task::JoinSet;

use super::{Outcome, Scenario, octets};
use crate::args::Args;
use crate::client::{Client, Content, Way};
use crate::load::number;
use crate::peers::{Onward, System};
use crate::report::{Metric, Row};
use crate::usage::{Watch, memory};

/// The formula of docs/benchmarks.md, in MiB: an idle session; one that sends a message, beside what
/// all of them hold of their messages (`limits.memory`); and what malloc keeps for the next.
const SESSION: f64 = 12.0 / 1024.0;
const UPLOAD: f64 = 96.0 / 1024.0;
const POOL: f64 = 128.0;
const SLACK: f64 = 16.0;

pub fn scenarios(args: &Args) -> Vec<Scenario> {
    vec![
        Scenario::of_ours(
            Row::new([0, args.idle as u64], format!("{} idle sessions", args.idle)),
            |args| idle(args, false),
        ),
        Scenario::of_ours(
            Row::new(
                [0, args.idle as u64, 1],
                format!("{} idle sessions, after a message of 10 KiB in each", args.idle),
            ),
            |args| idle(args, true),
        ),
        Scenario::of_ours(
            Row::new(
                [1, args.uploads as u64, args.upload_size as u64],
                format!("{} uploads of {} at once", args.uploads, octets(args.upload_size)),
            ),
            uploads,
        ),
    ]
}

fn idle(args: &Args, after_mail: bool) -> Outcome {
    let relay = System::Postgate.start(args, Onward::Held);
    let content = Content::new(10 << 10);
    let before = memory(relay.pid());
    let runtime = runtime();
    let sessions = runtime.block_on(async {
        let mut sessions = Vec::with_capacity(args.idle);
        for _ in 0..args.idle {
            let mut client = Client::hello(relay.address).await?;
            if after_mail {
                client.send(Way::Plain, "sink.test", number(), &content, None).await?;
            }
            sessions.push(client);
        }
        Ok::<_, String>(sessions)
    })?;
    let after = memory(relay.pid());
    drop(sessions);
    within(before, args.idle as f64 * SESSION, after)
}

/// The figures, unless they are beyond the formula.
fn within(before: f64, more: f64, peak: f64) -> Outcome {
    let bound = before + more + SLACK;
    if peak > bound {
        return Err(format!("{peak:.1} MiB, and the formula gives {bound:.1}"));
    }
    Ok(vec![(Metric::IdleMemory, before), (Metric::PeakMemory, peak)])
}

/// All of each is sent, then all end at once.
fn uploads(args: &Args) -> Outcome {
    let relay = System::Postgate.start(args, Onward::Held);
    let before = memory(relay.pid());
    let watch = Watch::start(relay.pid());
    let content = Arc::new(Content::new(args.upload_size));
    runtime().block_on(async {
        let mut sent = JoinSet::new();
        for _ in 0..args.uploads {
            sent.spawn(upload(relay.address, Arc::clone(&content)));
        }
        let mut ending = JoinSet::new();
        while let Some(session) = sent.join_next().await {
            let mut client = session.unwrap()?;
            ending.spawn(async move { client.finish().await });
        }
        while let Some(ended) = ending.join_next().await {
            ended.unwrap()?;
        }
        Ok::<_, String>(())
    })?;
    within(before, POOL + args.uploads as f64 * UPLOAD, watch.peak())
}

async fn upload(to: SocketAddr, content: Arc<Content>) -> Result<Client, String> {
    let mut client = Client::hello(to).await?;
    client.upload(number(), &content).await?;
    Ok(client)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}
