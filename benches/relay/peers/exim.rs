//! Debian's Exim as a relay to a smarthost: its defaults, with the queue in a folder of our own.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::super::process;
use super::{Onward, PATIENCE, Plan, command, first_line};

/// The account Debian's Exim runs as.
const ACCOUNT: &str = "Debian-exim";

fn binary() -> Option<PathBuf> {
    let said = std::env::var_os("POSTGATE_BENCH_EXIM").map(PathBuf::from);
    let path = said.unwrap_or_else(|| "/usr/sbin/exim4".into());
    let accounts = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let account = accounts.lines().any(|line| line.split(':').next() == Some(ACCOUNT));
    (path.is_file() && account).then_some(path)
}

pub fn version() -> Option<String> {
    first_line(&mut command(binary()?, &["-C", "/dev/null", "-bV"]))
}

pub fn plan(home: &Path, address: SocketAddr, onward: Onward) -> Plan {
    for folder in ["queue", "log"] {
        fs::create_dir(home.join(folder)).unwrap();
        process::run(&mut owned(&home.join(folder)), b"", PATIENCE).expect_code(0);
    }
    let file = home.join("exim.conf");
    fs::write(&file, configuration(home, address, onward)).unwrap();
    let (exim, file) = (binary().unwrap(), file.to_string_lossy().into_owned());
    let cli = |words: &[&str]| command(&exim, &[&["-C", &file], words].concat());
    // It changes its account, and the kernel then forgets to end it with us; the shell does not.
    let mut run = command("sh", &["-c", "\"$@\" & trap \"kill $!\" TERM; wait", "exim"]);
    run.arg(&exim).args(["-C", &file, "-bdf", "-q1m"]);
    Plan { run, then: Vec::new(), flush: vec![cli(&["-qff"])], list: cli(&["-bp"]) }
}

fn owned(path: &Path) -> std::process::Command {
    let mut chown = command("chown", &[ACCOUNT]);
    chown.arg(path);
    chown
}

fn configuration(home: &Path, address: SocketAddr, onward: Onward) -> String {
    let d = home.display();
    let (held, to) = match onward {
        Onward::Held => ("queue_only", 25),
        Onward::To(to) | Onward::ToFirst(to) => ("", to.port()),
    };
    let (port, exim) = (address.port(), binary().unwrap_or_default());
    let exim = exim.display();
    format!(
        "{held}
exim_path = {exim}
primary_hostname = exim.test
spool_directory = {d}/queue
log_file_path = {d}/log/%slog
pid_file_path = {d}/queue/exim.pid
local_interfaces = 127.0.0.1
daemon_smtp_ports = {port}
hostlist relay_from = 127.0.0.1
acl_smtp_rcpt = accept_relay
host_lookup =
smtp_accept_max = 1000
smtp_connect_backlog = 1000
smtp_accept_max_per_connection = 1000000
smtp_accept_queue_per_connection = 0
message_size_limit = 50M
keep_environment =
tls_advertise_hosts =

begin acl
accept_relay:
  accept hosts = +relay_from

begin routers
smarthost:
  driver = manualroute
  route_list = * 127.0.0.1 byname
  self = send
  transport = smarthost

begin transports
smarthost:
  driver = smtp
  port = {to}
  hosts_try_dane =
  allow_localhost

begin retry
* * F,2h,1m
"
    )
}
