//! The keeper, before sources that do what they are told, in virtual time.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::keeper::{ASKED_MIN, Legacy};
use super::*;
use crate::clock::Timestamp;
use crate::secret::Secret;

/// tokio's clock, so that time passes while nobody has anything to do.
struct Virtual;

impl Clock for Virtual {
    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn wall(&self) -> Timestamp {
        Timestamp::from_millis(1_795_252_321_431)
    }

    fn chance(&self) -> f64 {
        0.5
    }
}

/// Gives what is prepared, and the last of it again and again.
#[derive(Clone)]
struct Script {
    answers: Arc<Mutex<VecDeque<Result<Fetched, FetchError>>>>,
    asked: Arc<Mutex<Vec<tokio::time::Instant>>>,
}

#[async_trait]
impl SecretSource for Script {
    async fn fetch(&self) -> Result<Fetched, FetchError> {
        self.asked.lock().unwrap().push(tokio::time::Instant::now());
        let mut answers = self.answers.lock().unwrap();
        if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() }.unwrap()
    }
}

impl Script {
    fn new(answers: impl IntoIterator<Item = Result<Fetched, FetchError>>) -> Self {
        let answers = Arc::new(Mutex::new(answers.into_iter().collect()));
        Self { answers, asked: Arc::default() }
    }

    fn times(&self) -> Vec<u64> {
        let asked = self.asked.lock().unwrap();
        asked.iter().map(|at| (*at - asked[0]).as_secs()).collect()
    }
}

#[expect(clippy::unnecessary_wraps, reason = "it is an answer")]
fn login(password: &str, version: u64) -> Result<Fetched, FetchError> {
    let text = |s: &str| Secret::new(s.to_owned());
    let fields = [("user".to_owned(), text("relay")), ("pass".to_owned(), text(password))];
    Ok(Fetched { fields: fields.into(), version: Some(version), unusable: vec![] })
}

fn down() -> Result<Fetched, FetchError> {
    Err(FetchError::Sealed { address: "https://vault.example:8200".into() })
}

fn settings(fallback: &[(&str, &str)]) -> SecretSettings {
    let fallback = fallback.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let source = Source::Vault { mount: "secret".into(), path: "smtp".into() };
    SecretSettings { source, refresh: Duration::from_mins(1), fields: Fields::new(), fallback }
}

fn keep(script: &Script, settings: &SecretSettings, legacy: Legacy) -> Secrets {
    let (source, clock) = (Box::new(script.clone()), Arc::new(Virtual));
    let keeper = Keeper::new("smtp", settings, source, Arc::clone(&clock) as _, legacy);
    let kept = BTreeMap::from([("smtp".to_owned(), Arc::new(Kept::new(keeper)))]);
    Secrets { kept, vault: None, clock }
}

fn password(secrets: &Secrets) -> Option<(String, u64)> {
    let channel = secrets.channel("smtp").unwrap();
    let told = channel.borrow();
    told.as_ref().map(|c| (c.password.expose().to_owned(), c.version))
}

fn status(secrets: &Secrets) -> SecretStatus {
    secrets.status().pop().unwrap()
}

#[tokio::test(start_paused = true)]
async fn it_is_read_at_once_then_at_its_pace_and_after_failures_sooner() {
    let script = Script::new([login("a", 1), down(), down(), down(), login("a", 1)]);
    let _secrets = keep(&script, &settings(&[]), Legacy::default());
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(script.times(), [0, 60, 61, 63, 67, 127, 187]);
}

#[tokio::test(start_paused = true)]
async fn the_version_grows_with_the_content_and_only_then() {
    let script = Script::new([login("a", 1), login("a", 2), login("b", 3)]);
    let secrets = keep(&script, &settings(&[]), Legacy::default());
    let mut channel = secrets.channel("smtp").unwrap();
    channel.changed().await.unwrap();
    assert_eq!(password(&secrets), Some(("a".into(), 1)));
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!((status(&secrets).version, status(&secrets).source_version), (1, Some(2)));
    channel.changed().await.unwrap();
    assert_eq!(password(&secrets), Some(("b".into(), 2)));
    assert_eq!(script.times(), [0, 60, 120]);
}

#[tokio::test(start_paused = true)]
async fn what_was_read_last_is_kept() {
    let script = Script::new([login("a", 1), down()]);
    let secrets = keep(&script, &settings(&[("password", "CARGO_PKG_NAME")]), Legacy::default());
    tokio::time::sleep(Duration::from_hours(1)).await;
    assert_eq!(password(&secrets), Some(("a".into(), 1)));
    let now = status(&secrets);
    assert_eq!((now.state, now.age_seconds), (SecretState::Kept, Some(3600)));
    assert!(now.last_error.unwrap().contains("sealed"));
}

#[tokio::test(start_paused = true)]
async fn the_environment_helps_until_the_source_has_given_once() {
    let fallback = [("username", "CARGO_PKG_NAME"), ("password", "CARGO_PKG_VERSION")];
    let script = Script::new([down(), login("a", 1), down()]);
    let secrets = keep(&script, &settings(&fallback), Legacy::default());
    secrets.tried().await;
    assert_eq!(password(&secrets), Some((env!("CARGO_PKG_VERSION").into(), 1)));
    assert_eq!(status(&secrets).state, SecretState::Fallback);
    tokio::time::sleep(Duration::from_mins(10)).await;
    assert_eq!(password(&secrets), Some(("a".into(), 2)));
    assert_eq!(status(&secrets).state, SecretState::Kept);
}

#[tokio::test(start_paused = true)]
async fn without_anything_the_channel_is_empty_and_both_reasons_are_told() {
    let fallback = [("username", "POSTGATE_NOT_SET"), ("password", "CARGO_PKG_VERSION")];
    let secrets = keep(&Script::new([down()]), &settings(&fallback), Legacy::default());
    secrets.tried().await;
    assert_eq!(password(&secrets), None);
    let now = status(&secrets);
    assert_eq!((now.state, now.version), (SecretState::Missing, 0));
    let error = now.last_error.unwrap();
    assert!(error.contains("sealed") && error.contains("POSTGATE_NOT_SET is not set"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn who_asks_is_answered_at_once_and_then_not_for_ten_seconds() {
    let script = Script::new([login("a", 1)]);
    let secrets = keep(&script, &settings(&[]), Legacy::default());
    secrets.tried().await;
    for _ in 0..100 {
        assert!(secrets.refresh("smtp"));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(script.times(), [0, 0]);
    for _ in 0..100 {
        secrets.refresh_all();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(script.times(), [0, 0]);
    tokio::time::sleep(ASKED_MIN).await;
    assert_eq!(script.times(), [0, 0, 10]);
    assert!(!secrets.refresh("other"));
}

#[tokio::test(start_paused = true)]
async fn refreshed_waits_for_an_attempt_that_began_later() {
    let script = Script::new([login("a", 1), login("b", 2)]);
    let secrets = keep(&script, &settings(&[]), Legacy::default());
    secrets.tried().await;
    assert!(secrets.refreshed("smtp").await);
    assert_eq!(password(&secrets), Some(("b".into(), 2)));
    assert!(!secrets.refreshed("other").await);
}

#[tokio::test(start_paused = true)]
async fn a_new_keeper_goes_on_with_what_is_known_unless_it_reads_something_else() {
    let old = keep(&Script::new([login("a", 7)]), &settings(&[]), Legacy::default());
    old.tried().await;
    let mut wanted = settings(&[]);
    wanted.refresh = Duration::from_secs(5);
    let legacy = old.kept["smtp"].keeper.legacy(&wanted);
    let script = Script::new([down(), login("a", 7)]);
    let new = keep(&script, &wanted, legacy);
    assert_eq!(password(&new), Some(("a".into(), 1)));
    new.tried().await;
    assert_eq!((password(&new), status(&new).state), (Some(("a".into(), 1)), SecretState::Kept));
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(status(&new).state, SecretState::Current);

    wanted.source = Source::Vault { mount: "secret".into(), path: "other".into() };
    let legacy = new.kept["smtp"].keeper.legacy(&wanted);
    let other = keep(&Script::new([login("a", 1)]), &wanted, legacy);
    assert_eq!(password(&other), None);
    assert_eq!(status(&other).version, 0, "what was read elsewhere is not told of");
    other.tried().await;
    assert_eq!(password(&other), Some(("a".into(), 2)), "a number is used once");
}

#[tokio::test(start_paused = true)]
async fn when_the_secrets_are_dropped_nobody_reads_any_more() {
    let script = Script::new([login("a", 1)]);
    let secrets = keep(&script, &settings(&[]), Legacy::default());
    let mut channel = secrets.channel("smtp").unwrap();
    secrets.tried().await;
    drop(secrets);
    channel.borrow_and_update();
    assert!(channel.changed().await.is_err());
    tokio::time::sleep(Duration::from_mins(10)).await;
    assert_eq!(script.times(), [0]);
    assert!(channel.borrow().is_some(), "the channel keeps what it holds");
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_is_empty_means_no_login() {
    let mut empty = login("", 1).unwrap();
    empty.fields.insert("user".into(), Secret::new(String::new()));
    let secrets = keep(&Script::new([Ok(empty)]), &settings(&[]), Legacy::default());
    secrets.tried().await;
    assert_eq!(
        (password(&secrets), status(&secrets).state),
        (Some((String::new(), 1)), SecretState::NoLogin)
    );
    let gone = Script::new([login("a", 1), Ok(Fetched::default())]);
    let secrets = keep(&gone, &settings(&[]), Legacy::default());
    tokio::time::sleep(Duration::from_secs(70)).await;
    assert_eq!(password(&secrets), Some(("a".into(), 1)), "nothing in it is not an empty login");
    assert!(status(&secrets).last_error.unwrap().contains("has no username"));
}
