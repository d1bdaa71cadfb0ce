//! The API over a real socket, with a queue that is a map.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tracing_subscriber::util::SubscriberInitExt;

use super::*;
use crate::clock::{ManualClock, Timestamp};
use crate::mail::{
    Blame, Body, EnhancedStatus, Failure, Handoff, Message, QueueId, QueueState, ReadAt,
    RecipientStatus, Remedy, Stage,
};
use crate::spool::{Action, Claim, Draft, Entry, Settlement, SpoolError, Stats};

/// A queue that is a map; `broken` makes every later page fail.
#[derive(Default)]
struct Map {
    entries: Mutex<BTreeMap<QueueId, Entry>>,
    acted: Mutex<Vec<Action>>,
    broken: bool,
}

#[async_trait]
impl Spool for Map {
    async fn draft(&self) -> Result<Box<dyn Draft>, SpoolError> {
        Err(SpoolError::Closed)
    }

    async fn claim(
        &self,
        _: crate::spool::Room,
        _: Timestamp,
        _: usize,
        _: Duration,
    ) -> Result<Vec<Claim>, SpoolError> {
        Err(SpoolError::Closed)
    }

    async fn body(&self, _: &Claim) -> Result<Body, SpoolError> {
        Err(SpoolError::Closed)
    }

    async fn content(&self, id: QueueId) -> Result<Body, SpoolError> {
        match self.entries.lock().unwrap().contains_key(&id) {
            false => Err(SpoolError::NotFound(id)),
            true if self.broken => Ok(Body::Stored { source: Arc::new(Cut), len: CONTENT_LEN }),
            true => Ok(Body::Stored { source: Arc::new(Whole), len: CONTENT_LEN }),
        }
    }

    async fn settle(&self, _: &Claim, _: Settlement) -> Result<(), SpoolError> {
        Err(SpoolError::Closed)
    }

    async fn note(&self, _: &Claim) -> Result<(), SpoolError> {
        unreachable!("nothing is delivered here")
    }

    fn regroup(&self) {}

    fn next_due(&self, _: crate::spool::Room) -> Option<Timestamp> {
        None
    }

    async fn wait(&self) {}

    fn stats(&self) -> Stats {
        Stats::default()
    }

    fn refusal(&self) -> Option<SpoolError> {
        self.broken.then_some(SpoolError::Full("the disk"))
    }

    async fn list(&self, after: Option<QueueId>, limit: usize) -> Result<Vec<Entry>, SpoolError> {
        if self.broken && after.is_some() {
            return Err(SpoolError::Closed);
        }
        let entries = self.entries.lock().unwrap();
        let later = entries.values().filter(|e| after.is_none_or(|a| e.message.id > a));
        Ok(later.take(limit).cloned().collect())
    }

    async fn show(&self, id: QueueId) -> Result<Option<Entry>, SpoolError> {
        Ok(self.entries.lock().unwrap().get(&id).cloned())
    }

    async fn act(&self, id: QueueId, action: Action, now: Timestamp) -> Result<(), SpoolError> {
        let mut entries = self.entries.lock().unwrap();
        let entry = entries.get_mut(&id).ok_or(SpoolError::NotFound(id))?;
        self.acted.lock().unwrap().push(action);
        match action {
            Action::Hold => entry.state = QueueState::Held,
            Action::Retry if entry.state == QueueState::Active => {
                return Err(SpoolError::InDelivery(id));
            }
            Action::Requeue => return Err(SpoolError::WrongState(id, entry.state.word())),
            Action::Confirm | Action::Resend | Action::Retry | Action::Release => {
                entry.due = Some(now);
            }
            Action::Delete => drop(entries.remove(&id)),
        }
        Ok(())
    }

    async fn close(&self) {}
}

/// More than is read at once.
const CONTENT_LEN: u64 = 3 * queue::PIECE as u64 + 17;

fn octet(at: u64) -> u8 {
    b'a' + u8::try_from(at % 23).unwrap()
}

struct Whole;

impl ReadAt for Whole {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        buf.iter_mut().zip(offset..).for_each(|(b, at)| *b = octet(at));
        Ok(())
    }
}

/// A file that fails from its second piece on.
struct Cut;

impl ReadAt for Cut {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if offset > 0 { Err(io::ErrorKind::Other.into()) } else { Whole.read_exact_at(buf, 0) }
    }
}

fn entry(n: u64, state: QueueState) -> Entry {
    let id = QueueId::from_u64(n);
    let message = Message::sample(id, Timestamp::from_millis(1000), &["a@example.com"]);
    Entry { message, state, due: None }
}

/// What the program was asked to do with its upstreams and secrets.
type Asked = Arc<Mutex<Vec<String>>>;

struct Server {
    socket: PathBuf,
    spool: Arc<Map>,
    asked: Asked,
    reloads: mpsc::Receiver<oneshot::Sender<Result<String, String>>>,
    _directory: tempfile::TempDir,
}

fn core() -> UpstreamView {
    UpstreamView {
        name: "core".into(),
        kind: "smtp".into(),
        routes: vec!["default".into()],
        breaker: "open".into(),
        since: Some(Timestamp::from_millis(7)),
        until_seconds: Some(20),
        last_failure: Some("connect: refused".into()),
        connections: Connections { running: 1, capacity: 8 },
        ..UpstreamView::default()
    }
}

fn secret() -> SecretView {
    SecretView {
        name: "smtp".into(),
        from: "vault secret/keybuzz/smtp".into(),
        version: Some(7),
        read: Some(Timestamp::from_millis(7)),
        state: "current".into(),
        reason: None,
    }
}

fn verdict(message: &Message, place: usize) -> Verdict {
    Verdict {
        recipient: message.envelope.recipients[place].path.to_string(),
        route: "default".into(),
        priority: "normal".into(),
        upstream: "core".into(),
        verdict: May::Waits,
        reason: Some("its breaker is open".into()),
    }
}

fn unconfirmed() -> RecipientStatus {
    let failure = Failure {
        stage: Stage::EndOfData,
        blame: Blame::Upstream,
        handoff: Handoff::Unknown,
        remedy: Remedy::Time,
        reply: None,
        status: EnhancedStatus::new(4, 4, 2),
        detail: "connection lost".into(),
    };
    RecipientStatus::Unconfirmed { upstream: "core".into(), failure }
}

fn start(spool: Map) -> Server {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("new/admin.sock");
    let (reload, reloads) = mpsc::channel(1);
    let spool = Arc::new(spool);
    let asked = Asked::default();
    let (operated, refreshed) = (Arc::clone(&asked), Arc::clone(&asked));
    let handles = Handles {
        spool: spool.clone(),
        status: Arc::new(|| json!({ "state": "running" })),
        upstreams: Arc::new(|| vec![core()]),
        operate: Arc::new(move |name, intervention| match name {
            "core" => {
                operated.lock().unwrap().push(format!("{intervention:?}"));
                Ok(())
            }
            "busy" => Err(Refused::NotNow("busy is forced to fail".into())),
            _ => Err(Refused::NoUpstream(name.into())),
        }),
        explain: Arc::new(|message| {
            message.pending().map(|place| verdict(message, place)).collect()
        }),
        secrets: Arc::new(|| vec![secret()]),
        refresh: Arc::new(move |name| match name {
            None | Some("smtp") => {
                refreshed.lock().unwrap().push(format!("refresh {name:?}"));
                Ok(())
            }
            Some(name) => Err(Refused::NoSecret(name.into())),
        }),
        reload,
        clock: Arc::new(ManualClock::new(Timestamp::from_millis(42))),
    };
    let listener = bind(&socket).unwrap();
    tokio::spawn(serve(listener, handles, std::future::pending()));
    Server { socket, spool, asked, reloads, _directory: directory }
}

fn queue(entries: impl IntoIterator<Item = Entry>) -> Map {
    let entries = entries.into_iter().map(|e| (e.message.id, e)).collect();
    Map { entries: Mutex::new(entries), ..Map::default() }
}

/// Sends a request and gives all that comes back. What follows the request in braces is its body.
async fn exchange(server: &Server, line: &str) -> String {
    let mut stream = UnixStream::connect(&server.socket).await.unwrap();
    let (line, body) = line.find(" {").map_or((line, ""), |at| (&line[..at], &line[at + 1..]));
    let head = format!(
        "{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Sends a request and gives the status and all that follows the header.
async fn request(server: &Server, line: &str) -> (u16, String) {
    let answer = exchange(server, line).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.into())
}

async fn get(server: &Server, line: &str) -> (u16, Value) {
    let (status, body) = request(server, line).await;
    (status, serde_json::from_str(&body).unwrap_or_else(|e| panic!("{e}: {body}")))
}

#[tokio::test]
async fn a_message_is_shown_and_acted_on() {
    let server = start(queue([entry(7, QueueState::Deferred)]));
    let id = QueueId::from_u64(7);
    let (status, shown) = get(&server, &format!("GET /v1/queue/{id}")).await;
    assert_eq!((status, &shown["state"]), (200, &json!("deferred")));
    let (status, done) = get(&server, &format!("POST /v1/queue/{id}/retry")).await;
    assert_eq!((status, done), (200, json!({ "queue_id": id, "action": "retry" })));
    let due = server.spool.entries.lock().unwrap()[&id].due;
    assert_eq!(due, Some(Timestamp::from_millis(42)));
    assert_eq!(get(&server, &format!("POST /v1/queue/{id}/hold")).await.0, 200);
    assert_eq!(get(&server, &format!("POST /v1/queue/{id}/delete")).await.0, 200);
    assert!(server.spool.entries.lock().unwrap().is_empty());
}

#[tokio::test]
async fn what_cannot_be_done_is_told_as_a_problem() {
    let server = start(queue([entry(7, QueueState::Active)]));
    let (id, other) = (QueueId::from_u64(7), QueueId::from_u64(8));
    for (line, status, detail) in [
        (format!("GET /v1/queue/{other}"), 404, "no message"),
        (format!("POST /v1/queue/{other}/hold"), 404, "no message"),
        (format!("POST /v1/queue/{id}/retry"), 409, "being delivered"),
        (format!("POST /v1/queue/{id}/requeue"), 409, "is active"),
        (format!("POST /v1/queue/{id}/explode"), 404, "the actions are"),
        ("GET /v1/queue/nonsense".into(), 400, "not a queue id"),
        ("GET /v1/queue?state=lost".into(), 400, "lost"),
        ("GET /v1/queue?stat=held".into(), 400, "stat"),
        (format!("GET /v1/queue/{id}/hold"), 405, "POST"),
        ("GET /etc/passwd".into(), 404, "no such request"),
    ] {
        let (got, problem) = get(&server, &line).await;
        assert_eq!((got, problem["status"].as_u64()), (status, Some(status.into())), "{line}");
        assert!(problem["detail"].as_str().unwrap().contains(detail), "{line}: {problem}");
    }
}

#[tokio::test]
async fn an_upstream_is_shown_and_operated_on() {
    let server = start(Map::default());
    let (status, shown) = get(&server, "GET /v1/upstreams").await;
    assert_eq!((status, &shown), (200, &json!([core()])));
    assert_eq!(shown[0]["connections"], json!({ "running": 1, "capacity": 8 }));
    let again: Vec<UpstreamView> = serde_json::from_value(shown).unwrap();
    assert_eq!(again, [core()]);

    let longest = "x".repeat(change::LINE_MAX);
    for (request, lasts, reason) in [
        ("pause".to_owned(), None, None),
        (
            r#"pause {"for_seconds":1800,"reason":"new kernel"}"#.into(),
            Some(1800),
            Some("new kernel"),
        ),
        (r#"trip {"for_seconds":1}"#.into(), Some(1), None),
        ("trip {}".into(), None, None),
        (r#"resume {"reason":"mended"}"#.into(), None, Some("mended")),
        (format!(r#"reset {{"reason":"{longest}"}}"#), None, Some(longest.as_str())),
    ] {
        let (status, done) = get(&server, &format!("POST /v1/upstreams/core/{request}")).await;
        let word = request.split(' ').next().unwrap();
        assert_eq!((status, done), (200, json!({ "upstream": "core", "action": word })));
        let intervention = Intervention {
            operation: serde_json::from_value(json!(word)).unwrap(),
            lasts: lasts.map(Duration::from_secs),
            reason: reason.map(Into::into),
        };
        assert_eq!(server.asked.lock().unwrap().pop(), Some(format!("{intervention:?}")));
    }
}

#[tokio::test]
async fn a_wrong_wish_for_an_upstream_or_a_secret_reaches_nothing() {
    let server = start(queue([entry(7, QueueState::Deferred)]));
    let id = QueueId::from_u64(7);
    let long = "x".repeat(change::LINE_MAX + 1);
    let huge = "x".repeat(16 << 10);
    for (line, status, detail) in [
        ("POST /v1/upstreams/nowhere/pause".to_owned(), 404, "no upstream is named nowhere"),
        ("POST /v1/upstreams/a%2fb%20c/pause".into(), 404, "no upstream is named a/b c"),
        ("POST /v1/upstreams/a%0ab/pause".into(), 400, "a name is one line"),
        (format!("POST /v1/upstreams/{long}/pause"), 400, "a name has at most 200"),
        ("POST /v1/secrets/a%1bb/refresh".into(), 400, "a name is one line"),
        ("POST /v1/upstreams/busy/reset".into(), 409, "forced to fail"),
        ("POST /v1/upstreams/core/explode".into(), 404, "pause, resume, trip and reset"),
        ("GET /v1/upstreams/core/pause".into(), 405, "POST"),
        (r#"POST /v1/upstreams/core/pause {"for_seconds":"30m"}"#.into(), 400, "invalid type"),
        (r#"POST /v1/upstreams/core/pause {"for_seconds":0}"#.into(), 400, "from one second"),
        (r#"POST /v1/upstreams/core/resume {"for_seconds":9}"#.into(), 400, "pause and trip"),
        (format!(r#"POST /v1/upstreams/core/pause {{"reason":"{long}"}}"#), 400, "at most 200"),
        (format!(r#"POST /v1/upstreams/core/pause {{"reason":"{huge}"}}"#), 413, "limit"),
        (r#"POST /v1/upstreams/core/pause {"reason":"a\nb"}"#.into(), 400, "one line"),
        (format!(r#"POST /v1/queue/{id}/retry {{"reason":"a\u001bb"}}"#), 400, "one line"),
        (format!(r#"POST /v1/queue/{id}/hold {{"for_seconds":9}}"#), 400, "pause and trip"),
        (r#"POST /v1/reload {"reson":"x"}"#.into(), 400, "reson"),
        ("POST /v1/secrets/nothing/refresh".into(), 404, "no secret is named nothing"),
        (r#"POST /v1/secrets/refresh {"for_seconds":9}"#.into(), 400, "pause and trip"),
    ] {
        let (got, problem) = get(&server, &line).await;
        assert_eq!((got, problem["status"].as_u64()), (status, Some(status.into())), "{line}");
        assert!(problem["detail"].as_str().unwrap().contains(detail), "{line}: {problem}");
    }
    assert!(server.asked.lock().unwrap().is_empty());
    assert_eq!(server.spool.entries.lock().unwrap()[&id], entry(7, QueueState::Deferred));
}

/// What was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(octets);
        Ok(octets.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn every_change_is_logged_with_who_and_why_also_one_that_is_refused() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().json().flatten_event(true).with_writer(move || writer.clone());
    let _logging = subscriber.set_default();
    let server = start(queue([entry(7, QueueState::Deferred)]));
    let uid = rustix::process::getuid().as_raw();
    let id = QueueId::from_u64(7);
    for (line, fields) in [
        (
            r#"POST /v1/upstreams/core/pause {"for_seconds":60,"reason":"new kernel"}"#.to_owned(),
            json!({ "action": "pause", "upstream": "core", "for_seconds": 60, "reason": "new kernel" }),
        ),
        (
            r#"POST /v1/upstreams/nowhere/reset {"reason":"try"}"#.into(),
            json!({ "action": "reset", "upstream": "nowhere", "reason": "try",
                "error": "no upstream is named nowhere" }),
        ),
        ("POST /v1/secrets/smtp/refresh".into(), json!({ "action": "refresh", "secret": "smtp" })),
        (
            format!(r#"POST /v1/queue/{id}/hold {{"reason":"see ticket 7"}}"#),
            json!({ "action": "hold", "queue_id": id, "reason": "see ticket 7" }),
        ),
        (
            format!("POST /v1/queue/{id}/requeue"),
            json!({ "action": "requeue", "queue_id": id, "error": format!("message {id} is held") }),
        ),
    ] {
        log.0.lock().unwrap().clear();
        request(&server, &line).await;
        let logged: Value = serde_json::from_slice(&log.0.lock().unwrap()).unwrap();
        assert_eq!((&logged["event"], &logged["uid"]), (&json!("admin"), &json!(uid)), "{line}");
        for (key, value) in fields.as_object().unwrap() {
            assert_eq!(&logged[key], value, "{line}: {logged}");
        }
        for key in ["upstream", "secret", "queue_id", "for_seconds", "reason", "error"] {
            assert_eq!(logged.get(key).is_some(), fields.get(key).is_some(), "{line}: {logged}");
        }
    }
}

#[tokio::test]
async fn a_secret_is_shown_and_read_again() {
    let server = start(Map::default());
    assert_eq!(get(&server, "GET /v1/secrets").await, (200, json!([secret()])));
    for (line, name) in [
        ("POST /v1/secrets/refresh", None),
        (r#"POST /v1/secrets/smtp/refresh {"reason":"rotated"}"#, Some("smtp")),
    ] {
        let done = get(&server, line).await;
        assert_eq!(done, (200, json!({ "secret": name, "action": "refresh" })));
        assert_eq!(server.asked.lock().unwrap().pop(), Some(format!("refresh {name:?}")));
    }
}

#[tokio::test]
async fn a_message_is_explained_as_things_are_now() {
    let server = start(queue([entry(7, QueueState::Deferred)]));
    let id = QueueId::from_u64(7);
    let (status, shown) = get(&server, &format!("GET /v1/queue/{id}/explain")).await;
    let expected = json!({
        "queue_id": id,
        "state": "deferred",
        "verdicts": [{
            "recipient": "a@example.com",
            "route": "default",
            "priority": "normal",
            "upstream": "core",
            "verdict": "waits",
            "reason": "its breaker is open",
        }],
    });
    assert_eq!((status, shown), (200, expected));
    let other = QueueId::from_u64(8);
    assert_eq!(get(&server, &format!("GET /v1/queue/{other}/explain")).await.0, 404);
    assert_eq!(get(&server, "GET /v1/queue/nonsense/explain").await.0, 400);
}

#[tokio::test]
async fn unconfirmed_mail_is_found_in_whichever_state_and_settled_by_hand() {
    let mut lost = entry(7, QueueState::Held);
    lost.message.status[0] = unconfirmed();
    // The answer for this one may still come.
    let mut awaited = entry(9, QueueState::Active);
    awaited.message.status[0] = unconfirmed();
    let server = start(queue([lost, entry(8, QueueState::Held), awaited]));
    let (status, body) = request(&server, "GET /v1/queue?state=unconfirmed").await;
    let ids: Vec<&str> = body.lines().filter(|l| l.starts_with('{')).collect();
    let id = QueueId::from_u64(7);
    assert_eq!((status, ids.len()), (200, 1), "{body}");
    assert!(ids[0].contains(&id.to_string()));
    for action in ["confirm", "resend"] {
        let line = format!(r#"POST /v1/queue/{id}/{action} {{"reason":"seen in their log"}}"#);
        let done = get(&server, &line).await;
        assert_eq!(done, (200, json!({ "queue_id": id, "action": action })));
    }
    assert_eq!(server.spool.acted.lock().unwrap().as_slice(), [Action::Confirm, Action::Resend]);
}

#[tokio::test]
async fn a_listing_is_whole_at_the_edges_of_a_page() {
    for n in [0, 1, queue::PAGE - 1, queue::PAGE, queue::PAGE + 1, 2 * queue::PAGE + 1] {
        let states = [QueueState::Held, QueueState::Deferred];
        let entries = (0..n).map(|i| entry(i as u64, states[i % 2]));
        let server = start(queue(entries));
        for (line, expected) in [("GET /v1/queue", n), ("GET /v1/queue?state=held", n.div_ceil(2))]
        {
            let (status, body) = request(&server, line).await;
            let lines = body.lines().filter(|l| l.starts_with('{')).count();
            assert_eq!((status, lines), (200, expected), "{line} of {n}");
        }
    }
}

#[tokio::test]
async fn a_listing_that_fails_on_the_way_is_cut_short_and_not_ended() {
    let entries = (0..=queue::PAGE).map(|i| entry(i as u64, QueueState::Held));
    let server = start(Map { broken: true, ..queue(entries) });
    let answer = exchange(&server, "GET /v1/queue").await;
    assert!(!answer.ends_with("\r\n0\r\n\r\n"), "the chunked body must not look complete");
}

#[tokio::test]
async fn a_content_comes_octet_for_octet_and_a_cut_one_does_not_look_whole() {
    let server = start(queue([entry(7, QueueState::Held)]));
    let line = format!("GET /v1/queue/{}/body", QueueId::from_u64(7));
    let answer = exchange(&server, &line).await;
    let (head, content) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("message/rfc822"), "{head}");
    assert!(content.bytes().eq((0..CONTENT_LEN).map(octet)), "{} octets", content.len());
    let other = format!("GET /v1/queue/{}/body", QueueId::from_u64(8));
    assert_eq!(request(&server, &other).await.0, 404);

    let server = start(Map { broken: true, ..queue([entry(7, QueueState::Held)]) });
    let (_, content) = request(&server, &line).await;
    assert!((content.len() as u64) < CONTENT_LEN, "{} octets", content.len());
}

#[tokio::test]
async fn readiness_is_that_of_the_spool() {
    assert_eq!(get(&start(Map::default()), "GET /v1/ready").await.0, 200);
    let broken = Map { broken: true, ..Map::default() };
    let (status, problem) = get(&start(broken), "GET /v1/ready").await;
    assert_eq!((status, &problem["detail"]), (503, &json!("spool is full: the disk")));
    let (status, shown) = get(&start(Map::default()), "GET /v1/status").await;
    assert_eq!((status, &shown["state"]), (200, &json!("running")));
    assert_eq!(shown["upstreams"], json!([core()]));
    assert_eq!(shown["secrets"], json!([secret()]));
}

#[tokio::test]
async fn a_reload_answers_what_came_of_it() {
    let mut server = start(Map::default());
    for (result, status, key) in [
        (Ok("reloaded".to_owned()), 200, "message"),
        (Err("mynetworks is missing".to_owned()), 422, "detail"),
    ] {
        let text = result.clone().unwrap_or_else(|e| e);
        let mut reloads = server.reloads;
        let program = tokio::spawn(async move {
            reloads.recv().await.unwrap().send(result).unwrap();
            reloads
        });
        server.reloads = mpsc::channel(1).1;
        let (got, answer) = get(&server, "POST /v1/reload").await;
        assert_eq!((got, answer[key].as_str()), (status, Some(text.as_str())));
        server.reloads = program.await.unwrap();
    }
    server.reloads.close();
    assert_eq!(get(&server, "POST /v1/reload").await.0, 503);
}

#[tokio::test]
async fn the_socket_is_for_owner_and_group_and_never_taken_from_another() {
    let server = start(Map::default());
    let mode = std::fs::metadata(&server.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, SOCKET_MODE);
    assert!(matches!(bind(&server.socket), Err(BindError::InUse(_))));
    assert_eq!(get(&server, "GET /v1/status").await.0, 200);

    let stale = server.socket.with_file_name("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    assert!(bind(&stale).is_ok());

    let file = server.socket.with_file_name("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(matches!(bind(&file), Err(BindError::NotASocket(_))));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}
