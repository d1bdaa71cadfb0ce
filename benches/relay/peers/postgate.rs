//! Postgate with the configuration that is its default, but for what a load test from one address
//! would run into.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::{Onward, Plan, command, first_line, mode};

/// The program, or `POSTGATE_BIN`.
fn binary() -> PathBuf {
    std::env::var_os("POSTGATE_BIN")
        .map_or_else(|| env!("CARGO_BIN_EXE_postgate").into(), Into::into)
}

/// With a checksum of the program: two builds of one version are not the same.
pub fn version() -> Option<String> {
    static BUILD: OnceLock<u32> = OnceLock::new();
    let version = first_line(&mut command(binary(), &["--version"]))?;
    let build = BUILD.get_or_init(|| crc32c::crc32c(&fs::read(binary()).unwrap_or_default()));
    Some(format!("{version} (build {build:08x})"))
}

pub fn plan(home: &Path, address: SocketAddr, onward: Onward) -> Plan {
    let smarthost = match onward {
        Onward::To(smarthost) | Onward::ToFirst(smarthost) => smarthost,
        Onward::Held => super::free_address(),
    };
    fs::create_dir(spool(home)).unwrap();
    mode(&spool(home), 0o700);
    let file = home.join("postgate.toml");
    let upstreams = match onward {
        Onward::ToFirst(_) => "\"core\", \"nobody\"",
        Onward::To(_) | Onward::Held => "\"core\"",
    };
    fs::write(&file, toml(home, address, smarthost, upstreams)).unwrap();
    let file = file.to_string_lossy().into_owned();
    let cli = |words: &[&str]| command(binary(), &[&["-c", &file], words].concat());
    let held = matches!(onward, Onward::Held);
    Plan {
        run: cli(&["run"]),
        then: held.then(|| cli(&["upstream", "pause", "core"])).into_iter().collect(),
        flush: vec![cli(&["upstream", "reset", "core"])],
        list: cli(&["queue", "list"]),
    }
}

/// Its folder.
pub fn spool(home: &Path) -> PathBuf {
    home.join("spool")
}

/// `dead.test` has a route of its own, to a smarthost that is never there.
fn toml(home: &Path, address: SocketAddr, smarthost: SocketAddr, upstreams: &str) -> String {
    let (spool, socket) = (spool(home), home.join("admin.sock"));
    let (spool, socket) = (spool.display(), socket.display());
    let (port, nobody) = (smarthost.port(), super::free_address().port());
    format!(
        "hostname = \"gate.test\"
mynetworks = [\"127.0.0.1/32\"]

[[listener]]
name = \"bench\"
address = \"{address}\"

[limits]
max_connections = 20000
max_connections_per_ip = 20000
max_messages_per_connection = 1000000

[spool]
path = \"{spool}\"
allow_volatile = true
max_messages = 100000000

[upstreams.core]
type = \"smtp\"
host = \"127.0.0.1\"
port = {port}
tls = \"none\"

[upstreams.nobody]
type = \"smtp\"
host = \"127.0.0.1\"
port = {nobody}
tls = \"none\"

[[route]]
name = \"dead\"
match = {{ recipient = \"@dead.test\" }}
upstreams = [\"nobody\"]

[[route]]
name = \"default\"
upstreams = [{upstreams}]

[admin]
socket = \"{socket}\"
"
    )
}
