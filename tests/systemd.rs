//! The units are well-formed, and lock the service in as far as we promise.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at the first thing that is not as it should be"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

/// Tenths: what `systemd-analyze security` may say at most.
const EXPOSURE_MAX: &str = "16";

#[test]
fn the_units_are_well_formed() {
    let dir = installed();
    for unit in ["postgate.service", "postgate.socket"] {
        let problems = verify(&dir.path().join(unit));
        assert!(problems.is_empty(), "{unit}: {problems}");
    }
}

#[test]
fn a_misspelt_setting_in_a_unit_is_noticed() {
    let dir = installed();
    let unit = dir.path().join("postgate.service");
    fs::write(&unit, fs::read_to_string(&unit).unwrap().replace("UMask=", "UMaks=")).unwrap();
    assert!(verify(&unit).contains("UMaks"));
}

#[test]
fn the_service_is_exposed_no_more_than_we_promise() {
    let analyze = |unit: &Path| {
        let mut analyze = Command::new("systemd-analyze");
        analyze.args(["security", "--offline=true", "--no-pager"]);
        run(analyze.arg(format!("--threshold={EXPOSURE_MAX}")).arg(unit))
    };
    let dir = installed();
    let unit = dir.path().join("postgate.service");
    let said = analyze(&unit);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stdout));
    let open = fs::read_to_string(&unit).unwrap().replace("SystemCallFilter=", "# ");
    fs::write(&unit, open).unwrap();
    assert!(!analyze(&unit).status.success(), "the check notices nothing");
}

#[test]
fn the_service_is_given_the_time_it_needs_to_start_and_to_stop() {
    let unit = fs::read_to_string(source("postgate.service")).unwrap();
    let value = |key: &str| {
        let lines = || unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        assert_eq!(lines().count(), 1, "{key}");
        lines().next().unwrap()
    };
    assert_eq!((value("TimeoutStartSec"), value("StartLimitIntervalSec")), ("infinity", "0"));
    let file = Path::new("minimal.toml");
    let minimal = include_str!("config/valid/minimal.toml");
    let (config, _) = postgate::config::parse(file, minimal, &BTreeMap::new()).unwrap();
    // Both drains run side by side; then the spool is closed and the operator's door.
    let stop = Duration::from_secs(value("TimeoutStopSec").parse().unwrap());
    assert!(stop >= config.delivery.drain_timeout + Duration::from_secs(10), "{stop:?}");
}

#[test]
fn the_user_and_the_folders_are_understood() {
    let sysusers = source("postgate.sysusers");
    let said = run(Command::new("systemd-sysusers").arg("--dry-run").arg(sysusers));
    let told = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success() && told.contains("user 'postgate'"), "{told}");
    assert!(!told.contains("ignoring"), "{told}");

    let root = tempfile::tempdir().unwrap();
    let lines = fs::read_to_string(source("postgate.tmpfiles")).unwrap();
    // The group exists only where the package is installed.
    let file = root.path().join("postgate.conf");
    fs::write(&file, lines.replace(" postgate ", " root ")).unwrap();
    let mut tmpfiles = Command::new("systemd-tmpfiles");
    let said = run(tmpfiles.arg("--create").arg("--root").arg(root.path()).arg(&file));
    assert!(said.stderr.is_empty(), "{said:?}");
    assert!(root.path().join("etc/postgate/credentials").is_dir());
}

/// What `systemd-analyze verify` says; it ends well even when it found something.
fn verify(unit: &Path) -> String {
    let said = run(Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(unit));
    let failed = if said.status.success() { "" } else { "it failed" };
    format!(
        "{failed}{}{}",
        String::from_utf8_lossy(&said.stdout),
        String::from_utf8_lossy(&said.stderr)
    )
}

/// The units, with the program where this build put it.
fn installed() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for unit in ["postgate.service", "postgate.socket"] {
        let text = fs::read_to_string(source(unit)).unwrap();
        let text = text.replace("/usr/bin/postgate", env!("CARGO_BIN_EXE_postgate"));
        fs::write(dir.path().join(unit), text).unwrap();
    }
    dir
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(name)
}

fn run(command: &mut Command) -> Output {
    let name = command.get_program().to_owned();
    command.output().unwrap_or_else(|e| panic!("{}: {e}; tests/run installs it", name.display()))
}
