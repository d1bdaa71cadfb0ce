//! A real Postfix in a folder: plain relaying for 127.0.0.1, and a submission service with STARTTLS
//! and SASL through a real Dovecot. Both relay to a [`Sink`](super::sink::Sink).

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::process::{Part, find, run};
use super::{PATIENCE, eventually, free_port, local};

/// The account the submission service knows.
pub const USER: &str = "relay@example.test";
pub const PASSWORD: &str = "s3cret and long";

/// Folders that Postfix wants, and whether its setgid group may use them.
const FOLDERS: [(&str, u32, bool); 13] = [
    ("active", 0o700, false),
    ("bounce", 0o700, false),
    ("corrupt", 0o700, false),
    ("defer", 0o700, false),
    ("deferred", 0o700, false),
    ("flush", 0o700, false),
    ("hold", 0o700, false),
    ("incoming", 0o700, false),
    ("private", 0o700, false),
    ("saved", 0o700, false),
    ("trace", 0o700, false),
    ("maildrop", 0o730, true),
    ("public", 0o710, true),
];

const SERVICES: &str = "
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
tlsmgr unix - - n 1000? 1 tlsmgr
postlog unix-dgram n - n - 1 postlogd
";

/// A running Postfix with its Dovecot.
pub struct Postfix {
    dir: TempDir,
    /// Relays for 127.0.0.1 without a login.
    pub plain: SocketAddr,
    /// Relays after STARTTLS and AUTH only.
    pub submission: SocketAddr,
    master: Option<Part>,
    _dovecot: Part,
}

impl Postfix {
    /// Starts both; what they accept goes on to `next`.
    pub fn start(next: SocketAddr) -> Self {
        let dir = tempfile::Builder::new().prefix("pfx").tempdir().unwrap();
        mode(dir.path(), 0o755);
        certificate(dir.path());
        let dovecot = start_dovecot(dir.path());
        let (plain, submission) = (local(free_port()), local(free_port()));
        lay_folders(dir.path());
        fs::write(dir.path().join("etc/main.cf"), main_cf(dir.path(), next)).unwrap();
        fs::write(dir.path().join("etc/master.cf"), master_cf(plain, submission)).unwrap();
        let mut postfix = Self { dir, plain, submission, master: None, _dovecot: dovecot };
        postfix.up();
        postfix
    }

    pub fn up(&mut self) {
        let mut master = Command::new("/usr/lib/postfix/sbin/master");
        master.arg("-c").arg(self.dir.path().join("etc")).arg("-d");
        let output = self.dir.path().join("master.out");
        self.master = Some(Part::spawn(&master, "TERM", &output));
        for address in [self.plain, self.submission] {
            eventually(PATIENCE, &format!("Postfix: {}", self.log()), || {
                TcpStream::connect(address).ok()
            });
        }
    }

    pub fn go_down(&mut self) {
        self.master = None;
    }

    /// As a crash would: all its processes at once.
    pub fn kill(&mut self) {
        self.master.take().unwrap().kill();
    }

    /// From now on the account has this password and no other; who is logged in stays so.
    pub fn set_password(&self, password: &str) {
        write_account(self.dir.path(), password);
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("mail.log")).unwrap_or_default()
    }

    /// The submission service's certificate, which signs itself.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("cert.pem")
    }
}

fn main_cf(dir: &Path, next: SocketAddr) -> String {
    let d = dir.display();
    format!(
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
local_transport = error:no mailbox here
disable_dns_lookups = yes
default_transport = smtp:[127.0.0.1]:{port}
mynetworks = 127.0.0.1/32
smtpd_relay_restrictions = permit_mynetworks, reject
local_header_rewrite_clients =
smtp_line_length_limit = 0
message_size_limit = 52428800
smtpd_client_connection_count_limit = 0
smtpd_error_sleep_time = 0
in_flow_delay = 0
minimal_backoff_time = 1s
maximal_backoff_time = 2s
queue_run_delay = 1s
enable_long_queue_ids = yes
smtpd_tls_cert_file = {d}/cert.pem
smtpd_tls_key_file = {d}/key.pem
smtpd_sasl_type = dovecot
smtpd_sasl_path = {d}/auth
",
        port = next.port()
    )
}

fn master_cf(plain: SocketAddr, submission: SocketAddr) -> String {
    format!(
        "{plain} inet n - n - - smtpd
{submission} inet n - n - - smtpd
  -o smtpd_tls_security_level=encrypt
  -o smtpd_sasl_auth_enable=yes
  -o smtpd_tls_auth_only=yes
  -o smtpd_relay_restrictions=permit_sasl_authenticated,reject
{SERVICES}"
    )
}

fn lay_folders(dir: &Path) {
    for folder in ["etc", "data", "q", "q/pid"] {
        fs::create_dir(dir.join(folder)).unwrap();
        mode(&dir.join(folder), 0o755);
    }
    let mut folders = vec!["data".to_owned()];
    let mut group = Vec::new();
    for (name, bits, setgid) in FOLDERS {
        let path = dir.join("q").join(name);
        fs::create_dir(&path).unwrap();
        mode(&path, bits);
        if setgid { &mut group } else { &mut folders }.push(format!("q/{name}"));
    }
    chown(dir, "postfix", &folders);
    chown(dir, "postfix:postdrop", &group);
}

fn chown(dir: &Path, owner: &str, paths: &[String]) {
    let mut chown = Command::new("chown");
    chown.arg(owner).args(paths.iter().map(|p| dir.join(p)));
    run(&mut chown, b"", PATIENCE).expect_code(0);
}

fn mode(path: &Path, bits: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(bits)).unwrap();
}

/// As operators make one: signs itself, and names the host.
fn certificate(dir: &Path) {
    let mut openssl = Command::new("openssl");
    openssl.args("req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=core.test".split(' '));
    openssl.args(["-addext", "subjectAltName=DNS:core.test,IP:127.0.0.1"]);
    openssl.arg("-keyout").arg(dir.join("key.pem")).arg("-out").arg(dir.join("cert.pem"));
    run(&mut openssl, b"", PATIENCE).expect_code(0);
}

/// Dovecot reads its accounts anew when the file is another one.
fn write_account(dir: &Path, password: &str) {
    fs::write(dir.join("new"), format!("{USER}:{{PLAIN}}{password}:::::\n")).unwrap();
    fs::rename(dir.join("new"), dir.join("users")).unwrap();
}

fn start_dovecot(dir: &Path) -> Part {
    find("dovecot");
    let d = dir.display();
    let socket = dir.join("auth");
    let config = dir.join("dovecot.conf");
    let text = format!(
        "protocols =
base_dir = {d}/dovecot
log_path = {d}/dovecot.log
ssl = no
disable_plaintext_auth = no
auth_mechanisms = plain login
auth_failure_delay = 0
passdb {{
  driver = passwd-file
  args = scheme=PLAIN username_format=%u {d}/users
}}
service auth {{
  unix_listener {d}/auth {{
    mode = 0666
  }}
}}
# Who failed is not made to wait the next times.
service anvil {{
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
"
    );
    fs::write(&config, text).unwrap();
    write_account(dir, PASSWORD);
    let mut dovecot = Command::new("dovecot");
    dovecot.arg("-F").arg("-c").arg(&config);
    let part = Part::spawn(&dovecot, "TERM", &dir.join("dovecot.out"));
    eventually(PATIENCE, "Dovecot's socket", || {
        std::os::unix::net::UnixStream::connect(&socket).ok()
    });
    part
}
