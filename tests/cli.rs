//! The commands as an operator runs them, against servers that say what the test wants.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread;

const ENTRY: &str = concat!(
    r#"{"message":{"id":"0K3X8QZ1M7RWT","received":1795252321431,"size":2310,"#,
    r#""client":{"address":"10.0.1.12","helo":"app","listener":"backends"},"#,
    r#""envelope":{"reverse_path":"app@example.com","recipients":[{"path":"ana@example.com"}]},"#,
    r#""message_id":"<a1@app>","status":[{"status":"queued"}],"attempts":0},"state":"held"}"#
);

const SENT: &str = concat!(
    r#"{"message":{"id":"0K3X8QZ1M7RWT","received":1795252321431,"size":2310,"#,
    r#""client":{"address":"10.0.1.12","helo":"app","listener":"backends"},"#,
    r#""envelope":{"reverse_path":"app@example.com","recipients":[{"path":"ana@example.com"}]},"#,
    r#""message_id":"<a1@app>","status":[{"status":"sent","upstream":"core","at":1795252321431,"#,
    r#""reply":{"code":250,"status":"2.0.0","lines":["Ok: queued as 4XYZ"]}}],"attempts":1},"#,
    r#""state":"sent"}"#
);

fn postgate(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postgate"));
    command.args(args).env_clear().stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> (i32, String, String) {
    told(&postgate(args).output().unwrap())
}

fn told(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// A daemon that gives each request the answer for its first line and, behind it, its body.
struct Daemon {
    socket: PathBuf,
    _directory: tempfile::TempDir,
}

impl Daemon {
    fn start(answer: impl Fn(&str) -> (u16, String) + Send + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("admin.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut reader = BufReader::new(stream.unwrap());
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n")
                    && reader.read_until(b'\n', &mut head).unwrap() > 0
                {}
                let head = String::from_utf8(head).unwrap();
                let length = head.lines().find_map(|l| l.strip_prefix("content-length: "));
                let mut body = vec![0; length.map_or(0, |n| n.parse().unwrap())];
                reader.read_exact(&mut body).unwrap();
                let body = String::from_utf8(body).unwrap();
                let line = head.split(" HTTP").next().unwrap();
                let (status, body) = answer(format!("{line} {body}").trim_end());
                let length = body.len();
                let answer =
                    format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\r\n{body}");
                reader.get_mut().write_all(answer.as_bytes()).unwrap();
            }
        });
        Self { socket, _directory: directory }
    }

    fn run(&self, args: &[&str]) -> (i32, String, String) {
        run(&[&["--socket", self.socket.to_str().unwrap()], args].concat())
    }
}

fn problem(detail: &str) -> String {
    format!(r#"{{"title":"x","status":0,"detail":"{detail}"}}"#)
}

#[test]
fn help_names_every_command_and_a_wrong_one_is_a_usage_error() {
    let (code, help, _) = run(&["--help"]);
    assert_eq!(code, 0);
    for command in [
        "run",
        "check-config",
        "queue",
        "spool",
        "mailq",
        "status",
        "reload",
        "send",
        "probe",
        "healthcheck",
        "upstream",
        "explain",
        "secrets",
    ] {
        assert!(
            help.lines().any(|line| line.trim_start().starts_with(command)),
            "{command}\n{help}"
        );
    }
    for args in [
        &["frobnicate"][..],
        &[],
        &["queue"],
        &["queue", "show"],
        &["queue", "cat"],
        &["spool"],
        &["spool", "export"],
        &["send", "nobody"],
        &["upstream"],
        &["upstream", "pause"],
        &["upstream", "pause", "core", "--for", "30"],
        &["upstream", "reset", "core", "--for", "30m"],
        &["queue", "confirm"],
        &["queue", "list", "--state", "lost"],
        &["queue", "resend", "not-an-id"],
        &["explain", "not-an-id"],
        &["secrets"],
    ] {
        let (code, data, talk) = run(args);
        assert_eq!((code, data.as_str()), (64, ""), "{args:?}");
        assert!(!talk.is_empty());
    }
    assert_eq!(run(&["--version"]).1, format!("postgate {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn check_config_tells_all_on_stderr_and_ends_with_78() {
    let (code, data, talk) = run(&["-c", "config/quickstart.toml", "check-config"]);
    assert_eq!((code, data.as_str()), (0, ""));
    assert_eq!(talk, "config/quickstart.toml is valid.\n");

    let (code, data, talk) = run(&["-c", "tests/config/invalid/networks.toml", "check-config"]);
    assert_eq!((code, data.as_str()), (78, ""));
    assert!(talk.contains("networks.toml:3:3\n"), "{talk}");
    assert!(talk.ends_with("7 errors. A running Postgate was not touched.\n"), "{talk}");

    let warned = ["-c", "config/examples/postfix-587.toml", "check-config"];
    let (code, _, talk) = run(&warned);
    assert_eq!(code, 0);
    assert!(talk.contains("warning: ") && talk.contains("is valid (1 warning)"), "{talk}");
    assert_eq!(run(&[&warned[..], &["--deny-warnings"]].concat()).0, 78);

    let (code, _, talk) = run(&["-c", "/nowhere.toml", "check-config"]);
    assert_eq!(code, 78);
    assert!(talk.contains("cannot be read") && talk.contains("-c FILE"), "{talk}");
}

#[test]
fn check_config_prints_what_is_in_effect() {
    let (code, data, _) = run(&["-c", "config/quickstart.toml", "-q", "check-config", "--print"]);
    assert_eq!(code, 0);
    for line in [
        r#"hostname = "postgate.localdomain""#,
        r#"mynetworks = ["127.0.0.0/8", "::1/128"]"#,
        r#"listener.quickstart.address = "127.0.0.1:2525""#,
        r#"limits.max_message_size = "25MiB""#,
    ] {
        assert!(data.lines().any(|l| l == line), "{line}\n{data}");
    }
}

#[test]
fn without_a_running_postgate_it_says_so_and_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("none.sock");
    let socket = socket.to_str().unwrap();
    for args in [
        &["queue", "list"][..],
        &["status"],
        &["reload"],
        &["healthcheck"],
        &["mailq"],
        &["upstream", "list"],
        &["upstream", "pause", "core"],
        &["explain", "0K3X8QZ1M7RWT"],
        &["secrets", "status"],
        &["secrets", "refresh"],
    ] {
        let (code, data, talk) = run(&[&["--socket", socket], args].concat());
        assert_eq!((code, data.as_str()), (69, ""), "{args:?}");
        assert!(talk.contains(socket) && talk.contains("--socket PATH"), "{talk}");
    }
}

#[test]
fn the_queue_is_listed_for_eyes_and_as_json_lines() {
    let lines = format!("{ENTRY}\n{ENTRY}\n");
    let daemon = Daemon::start(move |request| {
        let lines = if request.ends_with("state=dead") { String::new() } else { lines.clone() };
        assert!(request.starts_with("GET /v1/queue"), "{request}");
        (200, lines)
    });
    let (code, data, _) = daemon.run(&["queue", "list"]);
    assert_eq!(code, 0);
    assert!(data.starts_with("ID ") && data.ends_with("2 messages, 4.6kB\n"), "{data}");
    assert!(data.contains("0K3X8QZ1M7RWT  held "), "{data}");
    let (_, data, _) = daemon.run(&["queue", "list", "--json"]);
    let values: Vec<serde_json::Value> =
        data.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(values.len(), 2);
    assert_eq!(values[0]["queue_name"], "hold");
    assert_eq!(values[0]["recipients"][0]["address"], "ana@example.com");
    let (_, data, _) = daemon.run(&["queue", "list", "--state", "dead"]);
    assert_eq!(data, "No dead messages.\n");
}

#[test]
fn a_configuration_that_is_wrong_never_leads_to_another_postgate() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("wrong.toml");
    std::fs::write(&path, "mynetwork = []\n").unwrap();
    let (code, data, talk) = run(&["-c", path.to_str().unwrap(), "queue", "list"]);
    assert_eq!((code, data.as_str()), (78, ""));
    assert!(talk.contains("name it with --socket"), "{talk}");
}

#[test]
fn called_as_mailq_it_lists_the_queue() {
    let daemon = Daemon::start(|_| (200, format!("{ENTRY}\n")));
    let mut mailq = postgate(&["--socket", daemon.socket.to_str().unwrap()]);
    let (code, data, talk) = told(&mailq.arg0("/usr/bin/mailq").output().unwrap());
    assert_eq!((code, talk.as_str()), (0, ""));
    assert_eq!(data, daemon.run(&["mailq"]).1);
    assert!(data.ends_with("1 message, 2.3kB\n"), "{data}");
}

#[test]
fn a_list_that_breaks_off_is_a_failure() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("admin.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let line = format!("{ENTRY}\n");
        write!(stream, "{head}{:x}\r\n{line}\r\n", line.len()).unwrap();
    });
    let (code, data, talk) =
        run(&["--socket", socket.to_str().unwrap(), "queue", "list", "--json"]);
    server.join().unwrap();
    assert_eq!((code, data.lines().count()), (1, 1), "{talk}");
    assert!(talk.contains("the list is not complete"), "{talk}");
}

#[test]
fn one_message_that_cannot_be_acted_on_does_not_stop_the_others() {
    let daemon = Daemon::start(|request| match request {
        "POST /v1/queue/0K3X8QZ1M7RWT/hold" => (200, "{}".into()),
        _ => (409, problem("message 0000000000001 is being delivered")),
    });
    let ids = ["queue", "hold", "0000000000001", "0K3X8QZ1M7RWT"];
    let (code, data, talk) = daemon.run(&ids);
    assert_eq!((code, data.as_str()), (1, "1 message held\n"));
    assert!(talk.contains("is being delivered") && talk.contains("queue release"), "{talk}");
    assert_eq!(daemon.run(&["queue", "hold", "0K3X8QZ1M7RWT"]).0, 0);
    let (code, data, _) = daemon.run(&["queue", "delete", "0K3X8QZ1M7RWT", "ALL"]);
    assert_eq!((code, data.as_str()), (64, ""), "nothing is done when an id is wrong");
}

#[test]
fn ids_are_read_from_stdin_too() {
    let daemon = Daemon::start(|_| (200, "{}".into()));
    let socket = daemon.socket.to_str().unwrap();
    let mut child = postgate(&["--socket", socket, "queue", "delete", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"0000000000001\n\n0000000000002 x\n").unwrap();
    let (code, data, _) = told(&child.wait_with_output().unwrap());
    assert_eq!((code, data.as_str()), (0, "2 messages deleted\n"));
}

#[test]
fn a_refused_reload_ends_with_78_and_tells_why() {
    let daemon = Daemon::start(|_| (422, problem("mynetworks is missing")));
    let (code, data, talk) = daemon.run(&["reload"]);
    assert_eq!((code, data.as_str(), talk.as_str()), (78, "", "postgate: mynetworks is missing\n"));
    let daemon = Daemon::start(|_| (503, problem("spool is full: the disk")));
    assert_eq!(daemon.run(&["healthcheck"]).0, 1);
}

#[test]
fn an_upstream_is_operated_on_with_the_time_and_the_reason() {
    let daemon = Daemon::start(|request| match request {
        r#"POST /v1/upstreams/core/pause {"for_seconds":1800,"reason":"new kernel"}"#
        | "POST /v1/upstreams/core/trip"
        | r#"POST /v1/upstreams/a%2Fb/resume {"reason":"mended"}"# => (200, r#"{"a":1}"#.into()),
        "POST /v1/upstreams/core/reset" => (409, problem("core is forced to fail")),
        r#"POST /v1/upstreams/core/trip {"for_seconds":2}"# => (400, problem("too long")),
        other => (404, problem(&format!("{} is not known", other.len()))),
    });
    let pause = ["upstream", "pause", "core", "--for", "30m", "--reason", "new kernel"];
    let (code, data, talk) = daemon.run(&pause);
    assert_eq!((code, data.as_str()), (0, "core is paused for 30m\n"), "{talk}");
    assert_eq!(talk, "undo it with: postgate upstream resume core\n");
    assert_eq!(daemon.run(&[&pause[..], &["--json"]].concat()).1, "{\"a\":1}\n");
    let (code, data, talk) = daemon.run(&["upstream", "trip", "core", "-q"]);
    assert_eq!((code, data.as_str(), talk.as_str()), (0, "core's breaker is open\n", ""));
    let (code, data, _) = daemon.run(&["upstream", "resume", "a/b", "--reason", "mended"]);
    assert_eq!((code, data.as_str()), (0, "a/b is not paused any more\n"));

    let (code, data, talk) = daemon.run(&["upstream", "reset", "core"]);
    assert_eq!((code, data.as_str()), (1, ""));
    assert!(talk.starts_with("postgate: core is forced to fail\n"), "{talk}");
    assert!(talk.ends_with("postgate upstream list\n"), "{talk}");
    assert_eq!(daemon.run(&["upstream", "pause", "nowhere"]).0, 1);
    // 1.5 seconds are asked for as two.
    assert_eq!(daemon.run(&["upstream", "trip", "core", "--for", "1500ms"]).0, 64);
}

#[test]
fn upstreams_and_secrets_are_listed_for_eyes_and_as_json_lines() {
    const UPSTREAMS: &str = r#"[{"name":"core","kind":"smtp","breaker":"held","member":1},
        {"name":"ses","kind":"ses","breaker":"closed"}]"#;
    const SECRETS: &str = r#"[{"name":"smtp","from":"environment","state":"current"}]"#;
    let daemon = Daemon::start(|request| match request {
        "GET /v1/upstreams" => (200, UPSTREAMS.into()),
        "GET /v1/secrets" => (200, SECRETS.into()),
        "GET /v1/status" => {
            (200, format!(r#"{{"state":"running","upstreams":{UPSTREAMS},"secrets":{SECRETS}}}"#))
        }
        "POST /v1/secrets/smtp/refresh" => (200, r#"{"secret":"smtp"}"#.into()),
        _ => (404, problem("no secret is named sntp")),
    });
    let (code, table, _) = daemon.run(&["upstream", "list"]);
    assert_eq!(code, 0);
    assert!(table.starts_with("NAME ") && table.contains("\ncore  smtp  HELD "), "{table}");
    let (_, lines, _) = daemon.run(&["upstream", "list", "--json"]);
    let values: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((values.len(), &values[0]["member"]), (2, &serde_json::json!(1)));

    let (_, table, _) = daemon.run(&["secrets", "status"]);
    assert!(table.contains("\nsmtp  environment  -        -    current\n"), "{table}");
    assert_eq!(daemon.run(&["secrets", "status", "--json"]).1.lines().count(), 1);
    let (code, data, talk) = daemon.run(&["secrets", "refresh", "smtp"]);
    assert_eq!((code, data.as_str()), (0, "the secret is read again within ten seconds\n"));
    assert!(talk.contains("postgate secrets status"), "{talk}");
    let (code, _, talk) = daemon.run(&["secrets", "refresh", "sntp"]);
    assert_eq!(code, 1);
    assert!(talk.contains("no secret is named sntp\n") && talk.contains("secrets status"));

    let (_, status, _) = daemon.run(&["status"]);
    let lines: Vec<&str> = status.lines().collect();
    assert_eq!((lines[0], lines[1]), ("state  running", "Upstreams"), "{status}");
    assert!(lines.iter().any(|line| line.starts_with("  smtp  environment ")), "{status}");
}

const EXPLANATION: &str = concat!(
    r#"{"queue_id":"0K3X8QZ1M7RWT","state":"held","verdicts":[{"recipient":"ana@example.com","#,
    r#""route":"default","priority":"normal","upstream":"core","verdict":"unconfirmed","#,
    r#""reason":"connection lost"}]}"#
);

#[test]
fn a_message_is_explained_and_shown_with_what_can_be_done() {
    let daemon = Daemon::start(|request| match request {
        "GET /v1/queue/0K3X8QZ1M7RWT/explain" => (200, EXPLANATION.into()),
        "GET /v1/queue/0K3X8QZ1M7RWT" => (200, ENTRY.into()),
        _ => (404, problem("no message 0000000000001")),
    });
    let (code, data, _) = daemon.run(&["explain", "0K3X8QZ1M7RWT"]);
    assert_eq!(code, 0);
    assert!(data.contains("  core  it may be there already: connection lost\n"), "{data}");
    let (_, json, _) = daemon.run(&["explain", "0K3X8QZ1M7RWT", "--json"]);
    let expected: serde_json::Value = serde_json::from_str(EXPLANATION).unwrap();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap(), expected);
    let (_, shown, _) = daemon.run(&["queue", "show", "0K3X8QZ1M7RWT"]);
    assert!(shown.contains("\n    core  unconfirmed  connection lost\n"), "{shown}");
    assert!(shown.contains("postgate queue confirm 0K3X8QZ1M7RWT"), "{shown}");
    let (_, json, _) = daemon.run(&["queue", "show", "0K3X8QZ1M7RWT", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["upstreams"], expected["verdicts"]);
    assert_eq!(daemon.run(&["explain", "0000000000001"]).0, 1);
}

#[test]
fn unconfirmed_mail_is_listed_and_settled() {
    let daemon = Daemon::start(|request| match request {
        "GET /v1/queue?state=unconfirmed" => (200, format!("{ENTRY}\n")),
        r#"POST /v1/queue/0K3X8QZ1M7RWT/confirm {"reason":"seen"}"# => (200, r#"{"n":1}"#.into()),
        "POST /v1/queue/0K3X8QZ1M7RWT/resend" => (200, r#"{"n":2}"#.into()),
        _ => (409, problem("message 0000000000001 has nothing unconfirmed")),
    });
    let (code, data, _) = daemon.run(&["queue", "list", "--state", "unconfirmed"]);
    assert_eq!((code, data.lines().last()), (0, Some("1 message, 2.3kB")));
    let confirm = ["queue", "confirm", "0K3X8QZ1M7RWT", "--reason", "seen"];
    let (code, data, talk) = daemon.run(&confirm);
    assert_eq!((code, data.as_str(), talk.as_str()), (0, "1 message confirmed\n", ""));
    let resend = ["queue", "resend", "0K3X8QZ1M7RWT", "0000000000001"];
    let (code, data, talk) = daemon.run(&resend);
    assert_eq!((code, data.as_str()), (1, "1 message to be sent again\n"));
    assert!(talk.starts_with("whoever did receive it receives it twice"), "{talk}");
    assert!(talk.contains("nothing unconfirmed"), "{talk}");
    let (code, data, _) = daemon.run(&[&resend[..], &["--json"]].concat());
    let values: Vec<serde_json::Value> =
        data.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((code, values.len(), &values[0]["n"]), (1, 2, &serde_json::json!(2)));
    assert_eq!(values[1]["queue_id"], "0000000000001");
    assert_eq!(values[1]["error"], "message 0000000000001 has nothing unconfirmed");
}

#[test]
fn the_other_commands_speak_json_too() {
    let object = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    let daemon = Daemon::start(|_| (200, r#"{"message":"reloaded"}"#.into()));
    assert_eq!(daemon.run(&["reload", "--json"]).1, "{\"message\":\"reloaded\"}\n");
    assert_eq!(daemon.run(&["healthcheck", "--json"]).1, "{\"ready\":true}\n");
    assert_eq!(daemon.run(&["healthcheck", "live", "--json"]).1, "{\"live\":true}\n");

    let check = ["-c", "config/quickstart.toml", "-q", "--json", "check-config", "--print"];
    let (code, data, talk) = run(&check);
    let value = object(&data);
    assert_eq!((code, talk.as_str(), data.lines().count()), (0, "", 1));
    assert_eq!((&value["valid"], &value["problems"]), (&true.into(), &serde_json::json!([])));
    assert_eq!(value["effective"]["limits.max_message_size"], r#""25MiB""#);

    let wrong = ["-c", "tests/config/invalid/networks.toml", "-q", "--json", "check-config"];
    let (code, data, talk) = run(&wrong);
    let value = object(&data);
    assert_eq!((code, talk.as_str(), &value["errors"]), (78, "", &7.into()));
    let problem = &value["problems"][0];
    assert_eq!((&problem["severity"], &problem["line"]), (&"error".into(), &3.into()));
    assert!(problem["message"].is_string() && value.get("effective").is_none());
}

#[test]
fn a_content_that_breaks_off_is_a_failure() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("admin.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 1024];
        let n = stream.read(&mut request).unwrap();
        assert!(request[..n].starts_with(b"GET /v1/queue/0K3X8QZ1M7RWT/body "));
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nA: b\r\n\r\nhalf").unwrap();
    });
    let cat = ["--socket", socket.to_str().unwrap(), "queue", "cat", "0K3X8QZ1M7RWT"];
    let (code, data, talk) = run(&cat);
    server.join().unwrap();
    assert_eq!((code, data.as_str()), (1, "A: b\r\n\r\nhalf"));
    assert!(talk.contains("the message is not complete"), "{talk}");
}

#[test]
fn a_spool_that_is_not_there_is_not_made_by_looking_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let nowhere = directory.path().join("spool");
    let nowhere = nowhere.to_str().unwrap();
    let out = directory.path().join("out");
    let export = ["spool", "--path", nowhere, "export", out.to_str().unwrap()];
    for args in [
        &["spool", "verify", "--path", nowhere][..],
        &["spool", "compact", "--path", nowhere],
        &export,
    ] {
        let (code, data, talk) = run(args);
        assert_eq!((code, data.as_str()), (69, ""), "{args:?}");
        assert!(talk.contains(nowhere), "{talk}");
    }
    let import = ["spool", "--path", nowhere, "import", out.to_str().unwrap()];
    assert_eq!(run(&import).0, 1);
    let named = ["-c", "tests/config/invalid/networks.toml", "spool", "verify"];
    assert_eq!(run(&named).0, 78);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

/// An SMTP server that answers the n-th thing said to it with the n-th reply.
fn smtp_server(replies: &'static [&'static str]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut lines = BufReader::new(stream);
        let mut in_text = false;
        for reply in replies {
            write!(lines.get_mut(), "{reply}\r\n").unwrap();
            let mut line = String::new();
            while lines.read_line(&mut line).unwrap() > 0 && in_text && line != ".\r\n" {
                line.clear();
            }
            in_text = line.starts_with("DATA") && !in_text;
        }
    });
    address
}

const GREETING: &str = "220 relay.example.com ESMTP";
const NO: &str = "554 5.7.1 client [127.0.0.1] not permitted here (mynetworks)";
const EHLO: &str = "250-relay.example.com\r\n250 PIPELINING";

#[test]
fn send_follows_the_message_to_the_answer_of_its_upstream() {
    const QUEUED: &str = "250 2.0.0 Ok: queued as 0K3X8QZ1M7RWT";
    let server = smtp_server(&[GREETING, EHLO, "250 ok", "250 ok", "354 go", QUEUED]);
    let daemon = Daemon::start(|_| (200, SENT.into()));
    let send = ["send", "ana@example.com", "--from", "app@example.com", "--server", &server];
    let (code, data, talk) = daemon.run(&send);
    assert_eq!(code, 0, "{talk}");
    assert!(data.starts_with(&format!("{server}  {QUEUED}\n")), "{data}");
    assert!(data.contains("sent <ana@example.com>  by core"), "{data}");
    assert!(data.ends_with("250 2.0.0 Ok: queued as 4XYZ\n"), "{data}");

    let server = smtp_server(&[GREETING, EHLO, "250 ok", "250 ok", "354 go", QUEUED]);
    let send = ["send", "a@x.example", "--from", "b@x.example", "--json", "--server", &server];
    let (code, data, talk) = daemon.run(&send);
    assert_eq!(code, 0, "{talk}");
    let values: Vec<serde_json::Value> =
        data.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((values.len(), &values[0]["reply"]), (2, &QUEUED.into()));
    assert!(values.iter().all(|value| value["queue_id"] == "0K3X8QZ1M7RWT"), "{data}");
    assert_eq!((&values[1]["status"], &values[1]["upstream"]), (&"sent".into(), &"core".into()));
}

#[test]
fn send_tells_the_stage_it_was_refused_at_by_its_exit_code() {
    let dialogues: [(&'static [&'static str], i32); 6] = [
        (&[NO], 21),
        (&[GREETING, NO], 22),
        (&[GREETING, EHLO, NO], 23),
        (&[GREETING, EHLO, "250 ok", NO], 24),
        (&[GREETING, EHLO, "250 ok", "250 ok", NO], 25),
        (&[GREETING, EHLO, "250 ok", "250 ok", "354 go", NO], 26),
    ];
    for (replies, expected) in dialogues {
        let server = smtp_server(replies);
        let send = ["send", "ana@example.com", "--from", "app@example.com", "--server", &server];
        let (code, data, talk) = run(&send);
        assert_eq!((code, data.as_str()), (expected, ""), "{talk}");
        assert!(talk.contains(NO), "{talk}");
    }
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (code, _, talk) = run(&["send", "a@b", "--from", "a@b", "--server", &nobody]);
    assert_eq!(code, 2, "{talk}");
}
