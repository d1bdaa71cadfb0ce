//! Debian's Postfix: `master.cf` as the package has it, without its chroot; of `main.cf` what a
//! relay has to be told. The tuned one follows its `TUNING_README` and `QSHAPE_README`.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use super::super::process::run;
use super::{Onward, PATIENCE, Plan, command, first_line, mode};

const MASTER: &str = "/usr/lib/postfix/sbin/master";
const SERVICES: &str = "/usr/share/postfix/master.cf.dist";

/// What the documentation advises for a relay with much mail and few destinations: processes for
/// all clients and deliveries, no brake on the input, no pauses for clients, everything in the
/// active queue, connections that are kept.
const TUNED: &str = "default_process_limit = 400
smtpd_client_connection_count_limit = 0
smtpd_error_sleep_time = 0
in_flow_delay = 0
qmgr_message_active_limit = 100000
qmgr_message_recipient_limit = 100000
initial_destination_concurrency = 50
default_destination_concurrency_limit = 100
smtp_connection_cache_destinations = static:all
smtp_connection_reuse_count_limit = 1000
smtpd_peername_lookup = no
max_use = 10000
";

pub fn version() -> Option<String> {
    let shipped = Path::new(MASTER).is_file() && Path::new(SERVICES).is_file();
    let version = || first_line(&mut command("postconf", &["-dh", "mail_version"]));
    shipped.then(version).flatten().map(|version| format!("Postfix {version}"))
}

pub fn plan(home: &Path, address: SocketAddr, onward: Onward, tuned: bool) -> Plan {
    lay_folders(home);
    fs::write(home.join("etc/main.cf"), main_cf(home, onward, tuned)).unwrap();
    fs::write(home.join("etc/master.cf"), master_cf(address)).unwrap();
    let etc = home.join("etc").to_string_lossy().into_owned();
    Plan {
        run: command(MASTER, &["-c", &etc, "-d"]),
        then: Vec::new(),
        flush: vec![command("postqueue", &["-c", &etc, "-f"])],
        list: command("postqueue", &["-c", &etc, "-p"]),
    }
}

fn main_cf(home: &Path, onward: Onward, tuned: bool) -> String {
    let d = home.display();
    let mut text = format!(
        "compatibility_level = 3.6
queue_directory = {d}/q
data_directory = {d}/data
maillog_file = {d}/mail.log
maillog_file_prefixes = {d}
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = core.test
mydestination =
alias_maps =
local_recipient_maps =
disable_dns_lookups = yes
mynetworks = 127.0.0.1/32
message_size_limit = 52428800
smtpd_client_connection_count_limit = 10000
"
    );
    let _ = match onward {
        Onward::Held => writeln!(text, "smtpd_client_restrictions = static:HOLD"),
        Onward::To(to) | Onward::ToFirst(to) => {
            writeln!(text, "default_transport = smtp:[127.0.0.1]:{}", to.port())
        }
    };
    if tuned { text + TUNED } else { text }
}

fn master_cf(address: SocketAddr) -> String {
    let shipped = fs::read_to_string(SERVICES).unwrap();
    let services = shipped.lines().filter(|line| !line.starts_with('#'));
    let mut text = String::new();
    for line in services {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        if line.starts_with(' ') || words.len() < 8 {
            text += line;
        } else {
            words[4] = if words[4] == "y" { "n" } else { words[4] };
            let (service, rest) = words.split_first().unwrap();
            let own = address.to_string();
            let inet = (*service, rest[0]) == ("smtp", "inet");
            text += &[if inet { own.as_str() } else { *service }, &rest.join(" ")].join(" ");
        }
        text.push('\n');
    }
    text
}

/// As `postfix check` would make them.
fn lay_folders(home: &Path) {
    let private = "active bounce corrupt defer deferred flush hold incoming private saved trace";
    let mut chown = command("chown", &["postfix"]);
    for folder in ["etc", "q", "q/pid", "data"] {
        fs::create_dir(home.join(folder)).unwrap();
        mode(&home.join(folder), 0o755);
    }
    for folder in private.split(' ') {
        let path = home.join("q").join(folder);
        fs::create_dir(&path).unwrap();
        mode(&path, 0o700);
        chown.arg(path);
    }
    run(chown.arg(home.join("data")), b"", PATIENCE).expect_code(0);
    let mut chown = command("chown", &["postfix:postdrop"]);
    for (folder, bits) in [("maildrop", 0o730), ("public", 0o710)] {
        let path = home.join("q").join(folder);
        fs::create_dir(&path).unwrap();
        mode(&path, bits);
        chown.arg(path);
    }
    run(&mut chown, b"", PATIENCE).expect_code(0);
}
