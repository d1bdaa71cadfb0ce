//! Postfix's own generator and sink: what we measure with is checked against what others do.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::load::Loaded;
use super::peers::free_address;
use super::process::{self, Part};

/// smtp-sink, which stores nothing: the ceiling.
pub struct SmtpSink {
    pub address: SocketAddr,
    _part: Part,
}

impl SmtpSink {
    pub fn start(place: &Path) -> Self {
        let address = free_address();
        let mut sink = Command::new("smtp-sink");
        if rustix::process::getuid().is_root() {
            // It insists.
            sink.args(["-u", "postfix"]);
        }
        sink.args(["-m", "1000", &address.to_string(), "1000"]);
        let mut part = Part::spawn(&sink, "TERM", &place.join("smtp-sink.output"));
        while TcpStream::connect(address).is_err() {
            assert!(part.is_running(), "smtp-sink ended");
            std::thread::sleep(Duration::from_millis(2));
        }
        Self { address, _part: part }
    }
}

/// Sends with smtp-source: many messages a session, each command waits for the reply.
pub fn smtp_source(
    to: SocketAddr,
    sessions: usize,
    size: usize,
    messages: u64,
    limit: Duration,
) -> Result<Loaded, String> {
    let mut source = Command::new("smtp-source");
    source.arg("-d").args(["-N", "-f", "app@bench.test", "-t", "s@sink.test"]);
    for (option, value) in [("-s", sessions as u64), ("-l", size as u64), ("-m", messages)] {
        source.arg(option).arg(value.to_string());
    }
    let begun = Instant::now();
    let ended = process::run(source.arg(to.to_string()), b"", limit);
    if ended.code != Some(0) {
        return Err(format!("smtp-source: {}", ended.stderr.trim()));
    }
    Ok(Loaded { acknowledged: messages, took: begun.elapsed(), ..Loaded::default() })
}
