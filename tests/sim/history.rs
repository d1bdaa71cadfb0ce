//! What happens in one history, drawn from its seed.

use std::time::Duration;

use postgate::delivery::lane::Intervention;
use postgate::mail::{QueueState, RecipientStatus};
use postgate::policy::routing::Unconfirmed;
use postgate::spool::{Action, Entry};

use crate::oracle::{self, Tally};
use crate::upstreams::Weather;
use crate::world::{Choices, DEAD, HOUR, MINUTE, Process, SECOND, World};

/// Lets a history happen, and judges it.
pub(crate) async fn play(seed: u64) -> Tally {
    let mut rng = fastrand::Rng::with_seed(seed);
    let choices = Choices {
        unconfirmed: if rng.u8(..4) == 0 { Unconfirmed::Hold } else { Unconfirmed::Retry },
        rate: rng.bool().then(|| f64::from(rng.u8(1..20))),
        max_active: rng.usize(1..12),
        max_age: if rng.u8(..4) == 0 { MINUTE * rng.u32(20..200) } else { HOUR * 24 * 30 },
        priorities: rng.u8(..3) == 0,
    };
    let world = World::new(seed, choices);
    let mut tally = Tally::default();
    let mut names = Vec::new();
    let mut process = world.start();
    for step in 0..rng.usize(8..44) {
        match rng.u8(..100) {
            0..45 => names.extend(mail(&world, &mut rng, step).await),
            45..65 => change(&world, &mut rng, &process),
            65..75 => operate(&world, &mut rng, &process, &mut tally).await,
            75..80 => {
                tally.reloads += 1;
                world.reload(&process);
            }
            80..90 => {
                tally.kills += 1;
                world.kill(process).await;
                process = world.start();
            }
            90..93 => {
                world.stop(process).await;
                process = world.start();
            }
            _ => pass(&mut rng, 30 * 60_000).await,
        }
        pass(&mut rng, 20_000).await;
    }
    recover(&world, &process, &mut tally).await;
    world.stop(process).await;
    oracle::judge(seed, &world, &names, &mut tally).await;
    tally
}

async fn pass(rng: &mut fastrand::Rng, most: u64) {
    tokio::time::sleep(Duration::from_millis(rng.u64(..most))).await;
}

/// A few messages; the names of their recipients.
async fn mail(world: &World, rng: &mut fastrand::Rng, step: usize) -> Vec<String> {
    let mut names = Vec::new();
    for n in 0..rng.usize(1..6) {
        let recipients: Vec<String> = (0..rng.usize(1..8))
            .map(|r| {
                let word = match rng.u8(..20) {
                    0 => "nobody",
                    1 => "not-ses",
                    _ => "user",
                };
                let domain = if rng.u8(..12) == 0 { DEAD } else { "example.com" };
                format!("{word}-{step}-{n}-{r}@{domain}")
            })
            .collect();
        world.submit(rng.u8(..), &recipients).await;
        names.extend(recipients);
    }
    names
}

fn change(world: &World, rng: &mut fastrand::Rng, process: &Process) {
    use Weather::{Down, Fair, Flaky, Locked, Throttling, Wanting};
    let weather = [Fair, Fair, Down, Down, Flaky, Locked, Throttling, Wanting];
    let Some(weather) = rng.choice(weather) else { return };
    let upstream = if rng.u8(..3) == 0 { &world.ses } else { &world.core };
    if rng.u8(..8) == 0 {
        upstream.learns_a_secret();
    } else {
        upstream.becomes(weather);
    }
    World::nudge(process);
}

async fn operate(world: &World, rng: &mut fastrand::Rng, process: &Process, tally: &mut Tally) {
    tally.interventions += 1;
    if rng.bool() {
        let lane = World::lane(process, if rng.bool() { "core" } else { "ses" });
        let lasting = rng.bool().then(|| SECOND * rng.u32(1..3600));
        let reason = "drill".to_owned();
        let intervention = match rng.u8(..4) {
            0 => Intervention::Pause { lasting, reason },
            1 => Intervention::Trip { lasting, reason },
            2 => Intervention::Resume,
            _ => Intervention::Reset,
        };
        let now = postgate::clock::Clock::now(&*world.clock);
        lane.intervene(intervention, now, postgate::clock::Clock::wall(&*world.clock));
        World::nudge(process);
        return;
    }
    let queue = world.queue().await;
    if rng.bool() {
        let unknown = |e: &&Entry| e.message.status.iter().any(|s| s.unconfirmed().is_some());
        let unknown: Vec<_> = queue.iter().filter(unknown).collect();
        let Some(entry) = rng.choice(unknown) else { return };
        // What an operator says of the unknown may be wrong.
        if rng.bool() {
            tally.confirmed += usize::from(world.say(entry, Action::Confirm).await);
        } else {
            tally.resent += usize::from(world.say(entry, Action::Resend).await);
        }
        return;
    }
    let Some(entry) = rng.choice(&queue) else { return };
    let actions = [Action::Retry, Action::Hold, Action::Release, Action::Requeue];
    let Some(action) = rng.choice(actions) else { return };
    world.act(entry.message.id, action).await;
}

/// All is well again, and there is time.
async fn recover(world: &World, process: &Process, tally: &mut Tally) {
    for upstream in [&world.core, &world.ses, &world.dead] {
        upstream.becomes(Weather::Fair);
    }
    for name in ["core", "ses"] {
        let now = postgate::clock::Clock::now(&*world.clock);
        let wall = postgate::clock::Clock::wall(&*world.clock);
        World::lane(process, name).intervene(Intervention::Resume, now, wall);
    }
    World::nudge(process);
    for entry in world.queue().await {
        if entry.state == QueueState::Held {
            world.act(entry.message.id, Action::Release).await;
        }
    }
    // Fair weather loses an answer now and then, and the pauses grow to an hour.
    for _ in 0..72 {
        let queue = world.queue().await;
        let old = |e: &&Entry| {
            let expired = |s: &RecipientStatus| matches!(s, RecipientStatus::Expired { .. });
            e.state == QueueState::Dead && e.message.status.iter().any(expired)
        };
        for entry in queue.iter().filter(old) {
            tally.expired += 1;
            world.act(entry.message.id, Action::Requeue).await;
        }
        let waits = |s: QueueState| !matches!(s, QueueState::Dead | QueueState::Held);
        if !world.queue().await.iter().any(|entry| waits(entry.state)) {
            break;
        }
        tokio::time::sleep(HOUR).await;
    }
}
