//! Start, reload, stop, and sockets that systemd holds.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use crate::support::client::{Client, stuffed};
use crate::support::gate::{Gate, Settings};
use crate::support::mail::message;
use crate::support::sink::{Act, Fault, Sink, Stage};
use crate::support::{PATIENCE, eventually};

#[test]
fn sigterm_finishes_what_is_being_delivered_and_keeps_the_rest() {
    let sink = Sink::start();
    let mut gate = Gate::start(&Settings::plain(sink.address));
    sink.fail(&[Fault::once(Stage::EndOfData, Act::Delay(Duration::from_millis(700)))]);
    let mut client = Client::hello(gate.address);
    client.send("a@example.test", &["b@example.test"], &message("slow"));
    sink.wait_struck(1, PATIENCE);
    gate.term();
    // A session is told, and nobody new gets in.
    let told = eventually(PATIENCE, "421 or the end", || match client.try_command("NOOP") {
        Ok(reply) if reply.code == 250 => None,
        Ok(reply) => Some(reply.code),
        Err(_) => Some(421),
    });
    assert_eq!(told, 421);
    assert!(gate.ended(PATIENCE).success());
    assert_eq!(sink.counts()["slow@test"], 1);
    assert!(Client::try_connect(gate.address, None).is_err());

    gate.up();
    assert!(gate.queue().is_empty(), "{:?}", gate.queue());
    gate.term();
    assert!(gate.ended(PATIENCE).success());
    assert_eq!(sink.counts()["slow@test"], 1);
}

#[test]
fn sigterm_does_not_wait_for_a_smarthost_that_never_answers() {
    let sink = Sink::start();
    let settings = Settings::plain(sink.address);
    let mut gate = Gate::start(&settings);
    sink.fail(&[Fault::always(Stage::Greeting, Act::Hang)]);
    for n in 0..5 {
        Client::hello(gate.address).send(
            "a@b.test",
            &["c@d.test"],
            &message(&format!("stuck-{n}")),
        );
    }
    sink.wait_struck(1, PATIENCE);
    gate.term();
    assert!(gate.ended(PATIENCE).success());
    sink.recover();
    gate.up();
    sink.wait_count(5, PATIENCE);
    assert!(sink.counts().values().all(|n| *n == 1), "{:?}", sink.counts());
}

#[test]
fn what_comes_in_while_stopping_is_kept_for_the_next_start() {
    let sink = Sink::start();
    let mut gate = Gate::start(&Settings::plain(sink.address));
    let mut client = Client::hello(gate.address);
    client.envelope("a@example.test", &["b@example.test"]);
    client.command("DATA").expect(354);
    gate.term();
    gate.wait_event("stopping", |_| true);
    // The transaction may finish, and the 250 is a debt as any other.
    client.write(&stuffed(&message("last"))).unwrap();
    client.reply().unwrap().expect(250);
    assert!(gate.ended(PATIENCE).success());
    assert_eq!(sink.connections(), 0, "an attempt was started while stopping");
    gate.up();
    sink.wait_for("last@test", PATIENCE);
    gate.wait_empty(PATIENCE);
    assert_eq!(sink.counts()["last@test"], 1);
}

#[test]
fn sighup_takes_a_good_configuration_and_keeps_the_old_one_when_it_is_bad() {
    let sink = Sink::start();
    let settings = Settings::plain(sink.address);
    let gate = Gate::start(&settings);
    let stranger = || {
        let ip = "127.0.0.66".parse().unwrap();
        Client::connect_from(ip, gate.address).greeting.code
    };
    assert_eq!(stranger(), 554);

    gate.configure(&Settings { mynetworks: vec!["127.0.0.0/33"], ..settings.clone() });
    gate.hup();
    let kept = gate.wait_event("config", |e| e["level"] != "INFO");
    assert!(kept["error"].as_str().unwrap().contains("127.0.0.0/33"), "{kept}");
    assert_eq!(stranger(), 554);
    Client::hello(gate.address).send("a@b.test", &["c@d.test"], &message("old"));
    sink.wait_for("old@test", PATIENCE);

    gate.configure(&Settings { mynetworks: vec!["127.0.0.0/8"], ..settings });
    gate.hup();
    eventually(PATIENCE, "the new mynetworks", || (stranger() == 220).then_some(()));
}

#[test]
fn reload_tells_what_came_of_it_and_mail_goes_where_the_new_configuration_says() {
    let (sink, other) = (Sink::start(), Sink::start());
    let settings = Settings::plain(sink.address);
    let gate = Gate::start(&settings);
    let send = |id: &str| {
        Client::hello(gate.address).send("a@b.test", &["c@d.test"], &message(id));
    };
    gate.configure(&Settings { more: "[spol]\n", ..settings.clone() });
    let socket = gate.dir.path().join("admin.sock");
    let said = gate.cli(&["--socket", socket.to_str().unwrap(), "reload"]).expect_code(78).stderr;
    assert!(said.contains("spol"), "{said}");
    send("kept");
    sink.wait_for("kept@test", PATIENCE);

    gate.configure(&Settings { mynetworks: vec!["127.0.0.0/8"], ..Settings::plain(other.address) });
    let said = gate.cli(&["reload"]).expect_code(0);
    assert!(format!("{}{}", said.stdout, said.stderr).contains("reloaded"), "{said:?}");
    send("moved");
    other.wait_for("moved@test", PATIENCE);
    assert_eq!(sink.accepted().len(), 1);
    let stranger = Client::connect_from("127.0.0.66".parse().unwrap(), gate.address);
    assert_eq!(stranger.greeting.code, 220);
}

#[test]
fn systemd_is_told_of_start_reload_stop_and_that_it_is_alive() {
    let sink = Sink::start();
    let mut gate = Gate::stopped(&Settings::plain(sink.address));
    let path = gate.dir.path().join("notify");
    let systemd = UnixDatagram::bind(&path).unwrap();
    systemd.set_read_timeout(Some(PATIENCE)).unwrap();
    let wait = |wanted: &str| {
        let mut buffer = [0; 1024];
        loop {
            let n = systemd.recv(&mut buffer).unwrap_or_else(|e| panic!("no {wanted}: {e}"));
            let said = String::from_utf8_lossy(&buffer[..n]);
            if said.lines().any(|line| line == wanted) {
                return;
            }
        }
    };
    let path = path.to_str().unwrap();
    gate.up_with(&[("NOTIFY_SOCKET", path), ("WATCHDOG_USEC", "200000")]);
    wait("READY=1");
    wait("WATCHDOG=1");
    wait("WATCHDOG=1");
    gate.hup();
    wait("RELOADING=1");
    wait("READY=1");
    wait("WATCHDOG=1");
    gate.term();
    wait("STOPPING=1");
    assert!(gate.ended(PATIENCE).success());
}

#[test]
fn a_bad_configuration_is_told_with_its_places_and_exit_78() {
    let sink = Sink::start();
    let mut settings = Settings::plain(sink.address);
    let gate = Gate::stopped(&settings);
    gate.cli(&["check-config"]).expect_code(0);

    settings.mynetworks = vec!["10.0.0.5/16"];
    settings.more = "[spol]\npath = \"/nowhere\"\n";
    gate.configure(&settings);
    let said = gate.cli(&["check-config"]).expect_code(78);
    let said = format!("{}{}", said.stdout, said.stderr);
    for part in ["10.0.0.5/16", "10.0.0.0/16", ":2:", "spol", "spool", "2 errors"] {
        assert!(said.contains(part), "no {part} in {said}");
    }
    gate.cli(&["run"]).expect_code(78);
}

#[test]
fn systemd_may_hold_the_socket_while_nothing_runs() {
    let sink = Sink::start();
    let mut gate = Gate::stopped(&Settings::plain(sink.address));
    gate.activate(&gate.address.to_string());
    Client::hello(gate.address).send("a@b.test", &["c@d.test"], &message("activated"));
    sink.wait_for("activated@test", PATIENCE);
    gate.term();
    assert!(gate.ended(PATIENCE).success());
}
