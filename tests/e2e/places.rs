//! Where a spool may lie, and who may have it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use crate::support::client::Client;
use crate::support::disk::Disk;
use crate::support::gate::{Gate, Settings};
use crate::support::mail::message;
use crate::support::sink::Sink;
use crate::support::{PATIENCE, eventually};

const UNAVAILABLE: i32 = 69;
const NO_VOLATILE: &str = "min_free = \"1MiB\"";

#[test]
fn a_second_process_is_refused_and_told_the_pid_of_the_first() {
    let sink = Sink::start();
    let settings = Settings::plain(sink.address);
    let gate = Gate::start(&settings);
    let second = Gate::stopped(&Settings { spool_path: Some(gate.spool()), ..settings });
    let pid = gate.pid();
    let said = second.cli(&["run"]).expect_code(UNAVAILABLE).stderr;
    assert!(said.contains(&format!("is in use by process {pid}")), "{said}");
    // The very same configuration, too.
    let said = gate.cli(&["run"]).expect_code(UNAVAILABLE).stderr;
    assert!(said.contains(&format!("is in use by process {pid}")), "{said}");
    Client::hello(gate.address).send("a@b.test", &["c@d.test"], &message("first"));
    sink.wait_for("first@test", PATIENCE);
}

#[test]
fn what_forgets_at_power_off_is_refused_unless_that_is_allowed() {
    let sink = Sink::start();
    for (disk, name) in [(Disk::tmpfs(256), "tmpfs"), (Disk::overlay(), "overlayfs")] {
        let spool_path = Some(disk.path());
        let settings = Settings { spool_path, spool: NO_VOLATILE, ..Settings::plain(sink.address) };
        let mut gate = Gate::stopped(&settings);
        let said = gate.cli(&["run"]).expect_code(UNAVAILABLE).stderr;
        assert!(said.contains(&format!("is on {name}")), "{said}");
        assert!(!gate.dir.path().join("admin.sock").exists(), "in the way of the next start");
        assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 0, "{name}");

        gate.configure(&Settings { spool: Settings::plain(sink.address).spool, ..settings });
        gate.up();
        Client::hello(gate.address).send("a@b.test", &["c@d.test"], &message(name));
        sink.wait_for(&format!("{name}@test"), PATIENCE);
        gate.term();
        assert!(gate.ended(PATIENCE).success());
    }
}

#[test]
fn a_spool_that_others_own_or_can_look_into_is_refused_and_left_alone() {
    let sink = Sink::start();
    let gate = Gate::stopped(&Settings::plain(sink.address));
    let spool = gate.spool();
    fs::create_dir(&spool).unwrap();
    for mode in [0o701, 0o710, 0o740, 0o755, 0o777] {
        fs::set_permissions(&spool, fs::Permissions::from_mode(mode)).unwrap();
        let said = gate.cli(&["run"]).expect_code(UNAVAILABLE).stderr;
        assert!(said.contains(&format!("(mode {mode:03o}): chmod 700 it")), "{said}");
    }
    fs::set_permissions(&spool, fs::Permissions::from_mode(0o700)).unwrap();
    chown(&spool, Some(65_534), None).expect("this test changes owners, as root can");
    let said = gate.cli(&["run"]).expect_code(UNAVAILABLE).stderr;
    assert!(said.contains("belongs to uid 65534"), "{said}");
    assert_eq!(fs::read_dir(&spool).unwrap().count(), 0);
}

/// What becomes of a spool with a symbolic link in place of one of its parts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Then {
    Refused,
    /// It runs, and takes no mail.
    NoMail,
    Works,
}

#[test]
fn symbolic_links_in_a_spool_are_not_followed() {
    let sink = Sink::start();
    let parts = [
        ("LOCK", Then::Refused),
        ("FORMAT", Then::Refused),
        ("seg", Then::Refused),
        ("big", Then::Refused),
        ("quarantine", Then::Works),
        ("seg/0000000001.seg", Then::Works),
        ("seg/0000000002.seg", Then::Works),
        ("seg/reserve.seg", Then::NoMail),
        ("seg/spare-0000000001.seg", Then::Works),
    ];
    for (part, then) in parts {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("file"), "precious").unwrap();
        let target = match part {
            "seg" | "big" | "quarantine" => outside.path().to_owned(),
            _ => outside.path().join("file"),
        };
        let mut gate = Gate::stopped(&Settings::plain(sink.address));
        let spool = gate.spool();
        fs::DirBuilder::new().mode(0o700).recursive(true).create(spool.join("seg")).unwrap();
        if part == "seg" {
            fs::remove_dir(spool.join("seg")).unwrap();
        }
        symlink(&target, spool.join(part)).unwrap();
        if then == Then::Refused {
            let said = gate.cli(&["run"]).expect_code(UNAVAILABLE).stderr;
            assert!(said.contains(spool.to_str().unwrap()), "{part}: {said}");
        } else {
            gate.up();
            take_mail(&gate, &sink, part, then);
            gate.term();
            assert!(gate.ended(PATIENCE).success(), "{part}");
        }
        let found = files(outside.path());
        let precious = BTreeMap::from([(outside.path().join("file"), b"precious".to_vec())]);
        assert_eq!(found, precious, "{part}");
    }
}

fn take_mail(gate: &Gate, sink: &Sink, part: &str, then: Then) {
    let mut client = Client::hello(gate.address);
    if then == Then::NoMail {
        client.command("MAIL FROM:<a@b.test>").expect(452);
        return;
    }
    let id = part.replace('/', "-");
    // A name that is taken may put off one message, and the next name is free.
    eventually(PATIENCE, "250", || {
        client.envelope("a@b.test", &["c@d.test"]);
        let reply = client.data(&message(&id));
        assert!(matches!(reply.code, 250 | 451), "{part}: {}", reply.text());
        (reply.code == 250).then_some(())
    });
    sink.wait_for(&format!("{id}@test"), PATIENCE);
}

fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    entries.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}
