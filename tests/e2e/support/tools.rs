//! The clients people use, each sending through one server.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::process::{Output, run};

const LIMIT: Duration = Duration::from_mins(1);
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/clients");
/// Where `tests/run` installs the Node.js packages.
const NODE: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/node");

/// swaks sends this content; it stuffs dots and makes every line end CRLF.
pub fn swaks(server: SocketAddr, content: &[u8], more: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    // It ends what it sends with a line end of its own.
    let file = write(dir.path(), content.strip_suffix(b"\r\n").unwrap());
    let mut swaks = Command::new("swaks");
    swaks.arg("--server").arg(server.ip().to_string()).arg("--port").arg(server.port().to_string());
    swaks.args("--helo client.test --from app@example.test --to ana@example.test".split(' '));
    swaks.arg("--data").arg(format!("@{}", file.display())).args(more);
    run(&mut swaks, b"", LIMIT)
}

/// curl sends this content.
pub fn curl(server: SocketAddr, content: &[u8], more: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let file = write(dir.path(), content);
    let mut curl = Command::new("curl");
    curl.args(["-sS", "-v", "--url", &format!("smtp://{server}/client.test")]);
    curl.args("--mail-from app@example.test --mail-rcpt ana@example.test".split(' '));
    curl.arg("--mail-rcpt").arg("bob@example.test").arg("--upload-file").arg(file).args(more);
    run(&mut curl, b"", LIMIT)
}

/// msmtp sends this content.
pub fn msmtp(server: SocketAddr, content: &[u8]) -> Output {
    let mut msmtp = Command::new("msmtp");
    msmtp.env("HOME", "/nonexistent");
    msmtp.args([format!("--host={}", server.ip()), format!("--port={}", server.port())]);
    msmtp.args("--from=app@example.test --tls=off --auth=off --timeout=30".split(' '));
    msmtp.args(["--file=/dev/null", "--", "ana@example.test", "bob@example.test"]);
    // It reads a Unix text file.
    let text = String::from_utf8(content.to_vec()).unwrap().replace("\r\n", "\n");
    run(&mut msmtp, text.as_bytes(), LIMIT)
}

/// Python's smtplib sends this content twice over one connection, once to two recipients.
pub fn smtplib(server: SocketAddr, content: &[u8]) -> Output {
    let mut python = Command::new("python3");
    python.arg(format!("{SOURCE}/smtplib_client.py"));
    python.args([server.ip().to_string(), server.port().to_string()]);
    run(&mut python, content, LIMIT)
}

/// nodemailer sends a set of messages of its own making through a pool. `package` is the name in
/// `tests/e2e/clients/package.json`. It prints one line of JSON for each message.
pub fn nodemailer(server: SocketAddr, package: &str) -> Output {
    let modules = format!("{NODE}/node_modules");
    let installed = Path::new(&modules).join(package);
    assert!(installed.is_dir(), "{} is missing; tests/run installs it", installed.display());
    let mut node = Command::new("node");
    node.arg(format!("{SOURCE}/nodemailer_client.js")).env("NODE_PATH", modules);
    node.args([package, &server.ip().to_string(), &server.port().to_string()]);
    run(&mut node, b"", LIMIT)
}

/// nmap's test for open relays, whatever the port is thought to be.
pub fn nmap_open_relay(server: SocketAddr) -> Output {
    let mut nmap = Command::new("nmap");
    nmap.args([
        "--unprivileged",
        "-n",
        "-Pn",
        "-p",
        &server.port().to_string(),
        "--script",
        "+smtp-open-relay",
    ]);
    nmap.args([
        "--script-args",
        "smtp-open-relay.domain=example.test,smtp-open-relay.ip=127.0.0.1",
    ]);
    if server.is_ipv6() {
        nmap.arg("-6");
    }
    nmap.arg(server.ip().to_string());
    run(&mut nmap, b"", Duration::from_mins(2))
}

fn write(dir: &Path, content: &[u8]) -> PathBuf {
    let file = dir.join("message.eml");
    std::fs::write(&file, content).unwrap();
    file
}
