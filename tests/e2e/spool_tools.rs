//! `postgate spool`: what operators do with a spool that is stopped, copied, or in use.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::support::client::Client;
use crate::support::gate::{Gate, Settings};
use crate::support::mail::{below_received, message, message_id, with_body};
use crate::support::sink::{Act, Fault, Sink, Stage};
use crate::support::{PATIENCE, eventually};

const UNAVAILABLE: i32 = 69;
const USAGE: i32 = 64;
/// Too large for the log.
const LARGE: usize = 700_000;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// A stopped Postgate with mail in its spool; the ids.
fn stopped(sink: &Sink) -> (Gate, Vec<String>) {
    let mut gate = Gate::start(&Settings::plain(sink.address));
    let mut client = Client::hello(gate.address);
    let mut ids = Vec::new();
    for n in 0..4 {
        ids.push(client.send("", &["b@c.test"], &message(&format!("small-{n}"))));
    }
    client.command("MAIL FROM:<a@b.test> RET=HDRS ENVID=QQ314 BODY=8BITMIME SMTPUTF8").expect(250);
    let rcpt = "RCPT TO:<c@d.test> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;x+2By@d.test";
    client.command(rcpt).expect(250);
    client.command("RCPT TO:<e@f.test>").expect(250);
    let body = b"0123456789\r\n".repeat(LARGE / 12);
    ids.push(client.data(&with_body("large", &body)).expect(250).queue_id());
    gate.term();
    assert!(gate.ended(PATIENCE).success());
    (gate, ids)
}

#[test]
fn verify_tells_damage_by_its_exit_code_and_never_writes() {
    let (gate, ids) = stopped(&Sink::down());
    let said = gate.cli(&["spool", "verify"]).expect_code(0);
    assert!(said.stdout.starts_with("sound: 5 messages, "), "{}", said.stdout);
    assert_eq!(said.stderr, "", "a bar is for terminals");
    let found = json(&gate.cli(&["spool", "verify", "--json"]).expect_code(0).stdout);
    assert_eq!((&found["sound"], &found["messages"]), (&true.into(), &5.into()));

    // A copy, without a configuration, damaged in both places where mail is.
    let copy = gate.dir.path().join("copy");
    let copied = std::process::Command::new("cp").arg("-a").arg(gate.spool()).arg(&copy).status();
    assert!(copied.unwrap().success());
    let segment = copy.join("seg/0000000001.seg");
    let mut octets = fs::read(&segment).unwrap();
    octets[64 + 70] ^= 1;
    fs::write(&segment, &octets).unwrap();
    let body = files(&copy.join("big")).into_iter().find(|f| is(f, "eml")).unwrap();
    let mut large = fs::read(&body).unwrap();
    large[LARGE / 2] ^= 1;
    fs::write(&body, &large).unwrap();
    let verify = ["spool", "verify", "--path", copy.to_str().unwrap()];
    let said = gate.cli(&verify).expect_code(1).stdout;
    let damaged = "damaged: segment 1, octets 64 to ";
    assert!(said.starts_with(damaged) && said.contains(&ids[0]), "{said}");
    assert!(said.contains(&format!("damaged body: message {}", ids[4])), "{said}");
    assert!(said.contains("DAMAGED: 4 messages"), "{said}");
    let found = json(&gate.cli(&[&verify[..], &["--json"]].concat()).expect_code(1).stdout);
    assert_eq!((&found["sound"], &found["damage"][0]["start"]), (&false.into(), &64.into()));
    assert_eq!(found["damaged_bodies"][0], ids[4].as_str());
    assert!(fs::read(&segment).unwrap() == octets && fs::read(&body).unwrap() == large);
    assert!(!copy.join("quarantine").exists());
}

#[test]
fn what_is_exported_is_imported_elsewhere_once_and_delivered_as_it_was() {
    let (gate, ids) = stopped(&Sink::down());
    let dir = gate.dir.path().join("out");
    let to = dir.to_str().unwrap();
    let said = gate.cli(&["spool", "export", to, "--json"]).expect_code(0).stdout;
    assert_eq!(json(&said), serde_json::json!({"exported": 5, "failed": 0, "running": false}));
    gate.cli(&["spool", "export", to]).expect_code(USAGE);
    let eml = fs::read_to_string(dir.join(format!("{}.eml", ids[4]))).unwrap();
    let head = format!(
        "X-Queue-Id: {}\r\nX-Envelope-From: <a@b.test>\r\nX-Envelope-To: <c@d.test>\r\n\
         X-Envelope-To: <e@f.test>\r\nReceived: ",
        ids[4]
    );
    assert!(eml.starts_with(&head), "{}", &eml[..400]);

    let sink = Sink::start();
    let mut other = Gate::stopped(&Settings::plain(sink.address));
    let said = other.cli(&["spool", "import", to, "--json"]).expect_code(0).stdout;
    let imported: HashMap<String, String> = said
        .lines()
        .map(json)
        .map(|line| {
            (line["from"].as_str().unwrap().into(), line["queue_id"].as_str().unwrap().into())
        })
        .collect();
    assert_eq!(imported.len(), 5);
    assert!(ids.iter().all(|id| imported.contains_key(id)), "{imported:?}");

    // Again: nothing, and not silently.
    let again = other.cli(&["spool", "import", to]).expect_code(0);
    assert_eq!(again.stdout, "0 messages imported\n");
    assert_eq!(again.stderr, "5 messages imported before\n");
    // Nor when the marks are lost.
    for id in &ids {
        let sheet = dir.join(format!("{id}.json"));
        fs::rename(dir.join(format!("{id}.json.imported")), sheet).unwrap();
    }
    let again = other.cli(&["spool", "import", to]).expect_code(1);
    assert_eq!(again.stdout, "0 messages imported\n");
    assert_eq!(again.stderr.matches("in the spool already").count(), 5, "{}", again.stderr);

    other.up();
    let arrived = sink.wait_count(5, PATIENCE);
    other.wait_empty(PATIENCE);
    assert!(sink.counts().values().all(|n| *n == 1), "{:?}", sink.counts());
    let large = arrived.iter().find(|a| a.message_id() == "large@test").unwrap();
    for part in ["<a@b.test>", "RET=HDRS", "ENVID=QQ314", "BODY=8BITMIME", "SMTPUTF8"] {
        assert!(large.mail.contains(part), "no {part} in {}", large.mail);
    }
    assert_eq!(
        large.recipients,
        ["<c@d.test> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;x+2By@d.test", "<e@f.test>"]
    );
    assert!(large.content == eml.as_bytes()[head.len() - "Received: ".len()..]);

    // What the running one has is not touched.
    for tool in [&["spool", "import", to][..], &["spool", "compact"], &["spool", "verify"]] {
        let said = other.cli(tool).expect_code(UNAVAILABLE).stderr;
        assert!(said.contains(&format!("process {}", other.pid())), "{said}");
    }
}

#[test]
fn an_export_while_mail_comes_and_goes_holds_whole_messages_that_were_queued() {
    let sink = Sink::start();
    let busy = Fault::always(Stage::Rcpt, Act::Reply("451 4.2.0 mailbox busy"));
    // Slow, so that there always is a queue.
    let slow = Fault::always(Stage::EndOfData, Act::Delay(Duration::from_millis(400)));
    sink.fail(&[Fault { only: "later@", ..busy }, slow]);
    let gate = Gate::start(&Settings::plain(sink.address));
    // Some wait all the while: every export has them.
    let mut client = Client::hello(gate.address);
    let waiting: HashSet<String> = (0..20)
        .map(|n| client.send("a@b.test", &["later@d.test"], &message(&format!("wait-{n}"))))
        .collect();
    let stop = AtomicBool::new(false);
    let sent = Mutex::new(HashMap::new());
    std::thread::scope(|scope| {
        for client in 0..3 {
            let (stop, sent, address) = (&stop, &sent, gate.address);
            scope.spawn(move || {
                let mut connection = Client::hello(address);
                for n in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let id = format!("live-{client}-{n}");
                    let lines = if n % 10 == 0 { LARGE / 12 } else { 50 };
                    let content = with_body(&id, &b"0123456789\r\n".repeat(lines));
                    sent.lock().unwrap().insert(format!("{id}@test"), content.clone());
                    connection.send("a@b.test", &["c@d.test"], &content);
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
        }
        let mut live = 0;
        for round in 0..5 {
            let more = waiting.len() + 20;
            eventually(PATIENCE, "a queue", || (gate.queue().len() > more).then_some(()));
            let dir = gate.dir.path().join(format!("live-{round}"));
            let export = ["spool", "export", dir.to_str().unwrap(), "--json"];
            let said = json(&gate.cli(&export).expect_code(0).stdout);
            assert_eq!((&said["running"], &said["failed"]), (&true.into(), &0.into()));
            let sheets: HashSet<PathBuf> = files(&dir).into_iter().collect();
            for id in &waiting {
                let sheet = dir.join(format!("{id}.json"));
                assert!(sheets.contains(&sheet), "{id} is missing");
            }
            let exported = exported(&dir);
            assert_eq!(said["exported"], exported.len());
            live += exported.len() - waiting.len();
            for content in exported {
                let id = message_id(&content).unwrap();
                let Some(whole) = sent.lock().unwrap().get(&id).cloned() else { continue };
                assert!(below_received(&content, 1).1 == whole, "{id} is not whole");
            }
        }
        stop.store(true, Ordering::SeqCst);
        eprintln!("{live} exported on their way, {} sent", sent.lock().unwrap().len());
        assert!(live > 0);
    });
    sink.recover();
    gate.wait_empty(PATIENCE);
}

/// The contents of an export, without what stands above them.
fn exported(dir: &Path) -> Vec<Vec<u8>> {
    let sheets = files(dir).into_iter().filter(|file| is(file, "json"));
    let eml = sheets.map(|file| fs::read(file.with_extension("eml")).unwrap());
    eml.map(|content| {
        let at = content.windows(10).position(|w| w == b"Received: ").unwrap();
        content[at..].to_vec()
    })
    .collect()
}

#[test]
fn compact_gives_back_what_finished_messages_took() {
    let mut sink = Sink::down();
    let (mut gate, _) = stopped(&sink);
    sink.up();
    gate.up();
    // Several segments of bodies that are delivered at once.
    let mut client = Client::hello(gate.address);
    let body = b"0123456789\r\n".repeat(40_000);
    for n in 0..300 {
        client.send("a@b.test", &["c@d.test"], &with_body(&format!("fill-{n}"), &body));
    }
    sink.go_down();
    let last = client.send("a@b.test", &["c@d.test"], &message("last"));
    gate.term();
    assert!(gate.ended(PATIENCE).success());
    let verdict = gate.cli(&["spool", "verify", "--json"]).expect_code(0).stdout;
    let said = json(&gate.cli(&["spool", "compact", "--json"]).expect_code(0).stdout);
    assert_eq!(said["messages"], json(&verdict)["messages"]);
    assert!(said["after"].as_u64() < said["before"].as_u64(), "{said}");
    assert!(said["after"].as_u64() <= Some(128 << 20), "{said}");
    let said = gate.cli(&["spool", "verify"]).expect_code(0).stdout;
    assert!(said.starts_with("sound: "), "{said}");
    sink.up();
    gate.up();
    sink.wait_for("last@test", PATIENCE);
    gate.wait_empty(PATIENCE);
    assert_eq!(gate.show(&last)["queue_name"], "sent");
}

fn is(file: &Path, kind: &str) -> bool {
    file.extension().is_some_and(|extension| extension == kind)
}

/// All files below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}
