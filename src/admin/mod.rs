//! The operator's door: an HTTP API on a unix socket. Who may open the socket may do everything.
//!
//! | Request | Answer |
//! |---|---|
//! | `GET /v1/status` | what the program is doing, one JSON object |
//! | `GET /v1/ready` | 200 while new mail is taken, 503 while it is not |
//! | `GET /v1/queue?state=S` | one JSON object in each line, oldest message first |
//! | `GET /v1/queue/{id}` | one message, also one that was finished lately |
//! | `GET /v1/queue/{id}/body` | its content, octet for octet |
//! | `GET /v1/queue/{id}/explain` | which upstreams may have it, and why not the others |
//! | `POST /v1/queue/{id}/{action}` | retry, hold, release, requeue, confirm, resend or delete |
//! | `GET /v1/upstreams` | every upstream and its breaker |
//! | `POST /v1/upstreams/{name}/{action}` | pause, resume, trip or reset |
//! | `GET /v1/secrets` | every secret, without what is secret in it |
//! | `POST /v1/secrets/refresh`, `POST /v1/secrets/{name}/refresh` | asks the source again, soon |
//! | `POST /v1/reload` | reads the configuration again |
//!
//! `state` is one of the queue's, or `unconfirmed` for mail an upstream may have without our
//! knowing. A change may have a body, a JSON object: `reason`, one line of at most 200 characters, and for
//! pause and trip `for_seconds`. Errors are problem details (RFC 9457). Every change is logged with
//! the caller's user id and reason.

mod api;
mod change;
mod control;
mod problem;
mod queue;
mod scrape;
#[cfg(test)]
mod tests;
mod view;

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};

use crate::clock::Clock;
use crate::mail::Message;
use crate::spool::Spool;

pub use scrape::{Probes, serve_probes};
pub use view::{
    Connections, Explanation, Intervention, May, Operation, Pause, Refused, SecretView, Selection,
    UpstreamView, Verdict,
};

/// Owner and group may connect.
const SOCKET_MODE: u32 = 0o660;

/// The directory of the socket, when it has to be made.
const DIRECTORY_MODE: u32 = 0o750;

/// Does something to a named upstream.
pub type Operate = Arc<dyn Fn(&str, Intervention) -> Result<(), Refused> + Send + Sync>;
/// Tells where the pending recipients of a message may go, as things are now.
pub type Explain = Arc<dyn Fn(&Message) -> Vec<Verdict> + Send + Sync>;
/// Has the named secret, or all, read again.
pub type Refresh = Arc<dyn Fn(Option<&str>) -> Result<(), Refused> + Send + Sync>;

/// What the API shows and acts on.
#[derive(Clone)]
pub struct Handles {
    /// The queue.
    pub spool: Arc<dyn Spool>,
    /// Gives the answer to `GET /v1/status`, without upstreams and secrets; must not block.
    pub status: Arc<dyn Fn() -> serde_json::Value + Send + Sync>,
    /// Every upstream, in the configuration's order; must not block.
    pub upstreams: Arc<dyn Fn() -> Vec<UpstreamView> + Send + Sync>,
    /// Does to the named upstream what the operator wants; must not block.
    pub operate: Operate,
    /// Where the pending recipients of a message may go, as things are now; must not block.
    pub explain: Explain,
    /// Every secret; must not block.
    pub secrets: Arc<dyn Fn() -> Vec<SecretView> + Send + Sync>,
    /// Has the named secret, or all, read again soon; must not wait for that.
    pub refresh: Refresh,
    /// Takes requests to reload; the answer is what was done, or why the old configuration stays.
    pub reload: mpsc::Sender<oneshot::Sender<Result<String, String>>>,
    /// The time of a change.
    pub clock: Arc<dyn Clock>,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Someone answers there already.
    #[error("another process listens on {0}")]
    InUse(PathBuf),
    /// Something else has that name, and is left alone.
    #[error("{0} is there and is not a socket")]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Makes the socket, mode 0660. A stale one, on which nobody listens, is replaced.
pub fn bind(path: &Path) -> Result<UnixListener, BindError> {
    let failed = |action| move |source| BindError::Io { action, path: path.into(), source };
    if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        let mut builder = DirBuilder::new();
        let made = builder.recursive(true).mode(DIRECTORY_MODE).create(directory);
        made.map_err(failed("make the directory of"))?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {
            remove_stale(path)?;
        }
        Ok(_) => return Err(BindError::NotASocket(path.into())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed("look at")(e)),
    }
    let listener = UnixListener::bind(path).map_err(failed("bind"))?;
    let mode = Permissions::from_mode(SOCKET_MODE);
    std::fs::set_permissions(path, mode).map_err(failed("set the mode of"))?;
    Ok(listener)
}

fn remove_stale(path: &Path) -> Result<(), BindError> {
    let failed = |action| move |source| BindError::Io { action, path: path.into(), source };
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(BindError::InUse(path.into())),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed("remove"))
        }
        Err(e) => Err(failed("connect to")(e)),
    }
}

/// Serves the API until `shutdown` ends, and then what is under way. Removing the socket's file is
/// the caller's, as making it was.
pub async fn serve(
    listener: UnixListener,
    handles: Handles,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let service = api::router(handles).into_make_service_with_connect_info::<api::Caller>();
    axum::serve(listener, service).with_graceful_shutdown(shutdown).await
}
