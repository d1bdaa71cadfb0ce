//! The client of the running Postgate: HTTP over its unix socket.

use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::{Failure, exit};

/// Knows the socket.
#[derive(Debug)]
pub(super) struct Client {
    socket: PathBuf,
}

/// What comes with a change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Change<'a> {
    /// For how long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) for_seconds: Option<u64>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<&'a str>,
}

impl Client {
    pub(super) const fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Asks a question that is answered with one JSON value.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        read(self.request(Method::GET, path, Bytes::new()).await?).await
    }

    /// Asks for something that may not be there.
    pub(super) async fn find<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, Failure> {
        let answer = self.ask(Method::GET, path, Bytes::new()).await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        read(succeeded(answer).await?).await.map(Some)
    }

    /// Asks for a change.
    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        change: Change<'_>,
    ) -> Result<T, Failure> {
        let body =
            if change == Change::default() { Ok(Vec::new()) } else { serde_json::to_vec(&change) };
        let body = body.map_err(|e| Failure::new(exit::SOFTWARE, e.to_string()))?;
        read(self.request(Method::POST, path, body.into()).await?).await
    }

    /// Asks a question that is answered with JSON Lines, and hands on each as it comes.
    pub(super) async fn lines<T: DeserializeOwned>(
        &self,
        path: &str,
        mut each: impl FnMut(T) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut rest = Vec::new();
        let lines = |octets: &[u8]| {
            rest.extend_from_slice(octets);
            let end = memchr::memrchr(b'\n', &rest).map_or(0, |i| i + 1);
            let (whole, cut) = rest.split_at(end);
            for line in whole.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
                each(serde_json::from_slice(line).map_err(|e| not_ours(&e))?)?;
            }
            rest = cut.to_vec();
            Ok(ControlFlow::Continue(()))
        };
        self.pieces("the list", path, lines).await
    }

    /// Asks for a content, and hands it on piece by piece until told to stop.
    pub(super) async fn octets(
        &self,
        path: &str,
        each: impl FnMut(&[u8]) -> Result<ControlFlow<()>, Failure>,
    ) -> Result<(), Failure> {
        self.pieces("the message", path, each).await
    }

    async fn pieces(
        &self,
        what: &str,
        path: &str,
        mut each: impl FnMut(&[u8]) -> Result<ControlFlow<()>, Failure>,
    ) -> Result<(), Failure> {
        let mut body = self.request(Method::GET, path, Bytes::new()).await?.into_body();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| {
                let message = format!("{what} is not complete: {e}; see Postgate's log");
                Failure::new(exit::FAILED, message)
            })?;
            if let Some(data) = frame.data_ref()
                && each(data)?.is_break()
            {
                break;
            }
        }
        Ok(())
    }

    /// Sends a request; an answer that is a problem becomes the failure it tells.
    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, Failure> {
        succeeded(self.ask(method, path, body).await?).await
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, Failure> {
        let stream = UnixStream::connect(&self.socket).await;
        let stream =
            stream.map_err(|e| unreachable(&self.socket, e.kind(), running_elsewhere()))?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|e| broken(&e))?;
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header("Host", "localhost");
        let request = request.body(Full::new(body));
        let request = request.map_err(|e| Failure::new(exit::USAGE, e.to_string()))?;
        sender.send_request(request).await.map_err(|e| broken(&e))
    }
}

/// A name as a part of a path: whatever is in it, it stays one part.
pub(super) fn segment(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_~".contains(&b);
    let encode = |b: u8| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") };
    name.bytes().map(encode).collect()
}

/// The answer, unless it is a problem.
async fn succeeded(answer: Response<Incoming>) -> Result<Response<Incoming>, Failure> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let body = answer.into_body().collect().await.map_err(|e| broken(&e))?.to_bytes();
    let problem: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
    let detail = problem.as_ref().and_then(|p| p.get("detail")?.as_str());
    let detail = detail.unwrap_or("Postgate refused without a reason").to_owned();
    let code = match status {
        StatusCode::BAD_REQUEST => exit::USAGE,
        StatusCode::INTERNAL_SERVER_ERROR => exit::SOFTWARE,
        StatusCode::UNPROCESSABLE_ENTITY => exit::CONFIG,
        _ => exit::FAILED,
    };
    Err(Failure::new(code, detail))
}

async fn read<T: DeserializeOwned>(answer: Response<Incoming>) -> Result<T, Failure> {
    let body = answer.into_body().collect().await.map_err(|e| broken(&e))?.to_bytes();
    serde_json::from_slice(&body).map_err(|e| not_ours(&e))
}

fn broken(error: &hyper::Error) -> Failure {
    let message = format!("Postgate did not answer: {error}; it may be shutting down");
    Failure::new(exit::UNAVAILABLE, message)
}

fn not_ours(error: &serde_json::Error) -> Failure {
    let message = format!("the answer is not understood: {error}; do the versions differ?");
    Failure::new(exit::SOFTWARE, message)
}

/// Which of the reasons it is that nobody answers, and what to do about it.
fn unreachable(socket: &Path, kind: ErrorKind, elsewhere: Option<u32>) -> Failure {
    let path = socket.display();
    if kind == ErrorKind::PermissionDenied {
        let message = format!(
            "no permission to open {path}\n  \
             join the group that owns it (ls -l shows it), or use sudo"
        );
        return Failure::new(exit::PERMISSION, message);
    }
    let message = match elsewhere {
        Some(pid) => format!(
            "nobody answers at {path}, but process {pid} is a running Postgate\n  \
             it has another socket: name it with --socket PATH, or its configuration with -c FILE"
        ),
        None => format!(
            "Postgate is not running: nobody answers at {path}\n  \
             start it (systemctl start postgate), or name another socket with --socket PATH"
        ),
    };
    Failure::new(exit::UNAVAILABLE, message)
}

/// The process id of a `postgate ... run`, as far as we may see processes.
fn running_elsewhere() -> Option<u32> {
    let processes = std::fs::read_dir("/proc").ok()?;
    let pids = processes.filter_map(|p| p.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| *pid != std::process::id()).find(|pid| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        is_running_postgate(&command)
    })
}

fn is_running_postgate(command_line: &[u8]) -> bool {
    let mut words = command_line.split(|b| *b == 0);
    let program = words.next().and_then(|path| path.rsplit(|b| *b == b'/').next());
    program == Some(b"postgate") && words.any(|word| word == b"run")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_which_reason_it_is_that_nobody_answers() {
        let socket = Path::new("/run/postgate/admin.sock");
        for (kind, elsewhere, code, word) in [
            (ErrorKind::NotFound, None, exit::UNAVAILABLE, "not running"),
            (ErrorKind::ConnectionRefused, None, exit::UNAVAILABLE, "not running"),
            (ErrorKind::NotFound, Some(812), exit::UNAVAILABLE, "process 812"),
            (ErrorKind::PermissionDenied, Some(812), exit::PERMISSION, "join the group"),
        ] {
            let failure = unreachable(socket, kind, elsewhere);
            let message = failure.message.unwrap();
            assert_eq!(failure.code, code);
            assert!(message.contains(word) && message.contains("admin.sock"), "{message}");
        }
    }

    #[test]
    fn a_name_stays_one_part_of_the_path() {
        assert_eq!(segment("mail-core_01"), "mail-core_01");
        assert_eq!(segment("../a b?é"), "%2E%2E%2Fa%20b%3F%C3%A9");
    }

    #[test]
    fn only_the_program_itself_is_taken_for_it() {
        assert!(is_running_postgate(b"/usr/bin/postgate\0-c\0x.toml\0run\0"));
        assert!(is_running_postgate(b"postgate\0run\0"));
        assert!(!is_running_postgate(b"postgate\0queue\0list\0"));
        assert!(!is_running_postgate(b"vi\0postgate\0run\0"));
        assert!(!is_running_postgate(b""));
    }
}
