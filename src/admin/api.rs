//! The requests and their answers.

use axum::body::Body;
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::IncomingStream;
use axum::{Json, Router};
use bytes::Bytes;
use futures_util::stream;
use serde::Deserialize;
use serde_json::json;
use tokio::net::UnixListener;
use tokio::sync::oneshot;

use super::Handles;
use crate::event::{AdminAction, SpoolFailed};
use crate::mail::{QueueId, QueueState};
use crate::spool::{Action, Entry, Spool, SpoolError};

/// Messages that are taken from the spool at a time while the queue is listed.
pub(super) const PAGE: usize = 500;
/// Octets of a content that are read at a time.
pub(super) const PIECE: usize = 256 << 10;

/// Who is at the other end of the socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    uid: Option<u32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self { uid: stream.io().peer_cred().ok().map(|cred| cred.uid()) }
    }
}

/// An error as RFC 9457 writes it.
#[derive(Debug)]
struct Problem {
    status: StatusCode,
    detail: String,
}

impl Problem {
    fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into() }
    }
}

impl From<SpoolError> for Problem {
    fn from(error: SpoolError) -> Self {
        let status = match &error {
            SpoolError::NotFound(_) => StatusCode::NOT_FOUND,
            SpoolError::Stale(_) | SpoolError::InDelivery(_) | SpoolError::WrongState(..) => {
                StatusCode::CONFLICT
            }
            SpoolError::Full(_) | SpoolError::Busy | SpoolError::Closed => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            SpoolError::Io { .. } | SpoolError::Damaged(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let title = self.status.canonical_reason().unwrap_or("error");
        let status = self.status.as_u16();
        let body = json!({ "title": title, "status": status, "detail": self.detail });
        let content_type = [(header::CONTENT_TYPE, "application/problem+json")];
        (self.status, content_type, body.to_string()).into_response()
    }
}

pub(super) fn router(handles: Handles) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/ready", get(ready))
        .route("/v1/queue", get(list))
        .route("/v1/queue/{id}", get(show))
        .route("/v1/queue/{id}/body", get(content))
        .route("/v1/queue/{id}/{action}", post(act))
        .route("/v1/reload", post(reload))
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "no such request"))
        .method_not_allowed_fallback(async || {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "changes are POST, questions are GET")
        })
        .with_state(handles)
}

async fn status(State(handles): State<Handles>) -> Json<serde_json::Value> {
    Json((handles.status)())
}

async fn ready(State(handles): State<Handles>) -> Result<Json<serde_json::Value>, Problem> {
    match handles.spool.refusal() {
        None => Ok(Json(json!({ "ready": true }))),
        Some(error) => Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Filter {
    state: Option<QueueState>,
}

/// The queue, a page at a time: a long queue never lies in memory as a whole, and a slow reader
/// holds up nobody.
async fn list(
    State(handles): State<Handles>,
    filter: Result<Query<Filter>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Problem> {
    let Query(filter) = filter.map_err(|e| Problem::new(StatusCode::BAD_REQUEST, e.body_text()))?;
    // The first page is read before anything is answered, so that a failure has a status.
    let first = handles.spool.list(None, PAGE).await?;
    let pages = stream::unfold(Pages::Read(first), move |pages| {
        let spool = handles.spool.clone();
        async move {
            let page = match pages {
                Pages::Read(entries) => Ok(entries),
                Pages::After(id) => next_page(spool.as_ref(), id).await,
                Pages::Ended => return None,
            };
            let last = page.as_ref().ok().and_then(|entries| entries.last());
            let rest = last.map_or(Pages::Ended, |entry| Pages::After(entry.message.id));
            Some((page.map(|entries| lines(&entries, filter.state)), rest))
        }
    });
    let content_type = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((content_type, Body::from_stream(pages)).into_response())
}

/// How far a listing has come.
enum Pages {
    Read(Vec<Entry>),
    After(QueueId),
    Ended,
}

async fn next_page(spool: &dyn Spool, after: QueueId) -> Result<Vec<Entry>, SpoolError> {
    let page = spool.list(Some(after), PAGE).await;
    if let Err(error) = &page {
        SpoolFailed { queue_id: None, error }.emit();
    }
    page
}

fn lines(entries: &[Entry], state: Option<QueueState>) -> Bytes {
    let mut out = Vec::new();
    for entry in entries.iter().filter(|e| state.is_none_or(|s| s == e.state)) {
        // Writing to memory does not fail, and the types have no maps with odd keys.
        if serde_json::to_writer(&mut out, entry).is_ok() {
            out.push(b'\n');
        }
    }
    out.into()
}

async fn show(
    State(handles): State<Handles>,
    Path(id): Path<String>,
) -> Result<Json<Entry>, Problem> {
    let id = parse_id(&id)?;
    let entry = handles.spool.show(id).await?.ok_or(SpoolError::NotFound(id))?;
    Ok(Json(entry))
}

/// A content, a piece at a time. It has a length, so that one that breaks off is seen to.
async fn content(
    State(handles): State<Handles>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let content = handles.spool.content(parse_id(&id)?).await?;
    let headers = [
        (header::CONTENT_TYPE, "message/rfc822".to_owned()),
        (header::CONTENT_LENGTH, content.len().to_string()),
    ];
    let pieces = stream::try_unfold(0, move |at| {
        let content = content.clone();
        async move {
            let piece = read_piece(content, at).await?;
            let next = at + piece.len() as u64;
            Ok::<_, std::io::Error>((!piece.is_empty()).then_some((piece, next)))
        }
    });
    Ok((headers, Body::from_stream(pieces)).into_response())
}

async fn read_piece(content: crate::mail::Body, at: u64) -> std::io::Result<Bytes> {
    if !content.is_stored() {
        return content.chunk(at, PIECE);
    }
    let read = tokio::task::spawn_blocking(move || content.chunk(at, PIECE));
    read.await.unwrap_or_else(|e| Err(std::io::Error::other(e)))
}

async fn act(
    State(handles): State<Handles>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    Path((id, action)): Path<(String, String)>,
) -> Result<Json<serde_json::Value>, Problem> {
    let id = parse_id(&id)?;
    let known: Result<Action, _> = serde_json::from_value(json!(action));
    let Ok(verb) = known else {
        let detail = "the actions are retry, hold, release, requeue and delete";
        return Err(Problem::new(StatusCode::NOT_FOUND, detail));
    };
    let done = handles.spool.act(id, verb, handles.clock.wall()).await;
    let error = done.as_ref().err().map(ToString::to_string);
    let (uid, error) = (caller.uid, error.as_deref());
    AdminAction { uid, action: &action, queue_id: Some(id), error }.emit();
    done?;
    Ok(Json(json!({ "queue_id": id, "action": action })))
}

async fn reload(
    State(handles): State<Handles>,
    ConnectInfo(caller): ConnectInfo<Caller>,
) -> Result<Json<serde_json::Value>, Problem> {
    let (answer, answered) = oneshot::channel();
    let gone = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "Postgate is shutting down");
    handles.reload.send(answer).await.map_err(|_| gone())?;
    let done = answered.await.map_err(|_| gone())?;
    let error = done.as_ref().err().map(String::as_str);
    AdminAction { uid: caller.uid, action: "reload", queue_id: None, error }.emit();
    match done {
        Ok(message) => Ok(Json(json!({ "message": message }))),
        Err(detail) => Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail)),
    }
}

fn parse_id(text: &str) -> Result<QueueId, Problem> {
    text.parse().map_err(|e: crate::mail::queue_id::InvalidQueueId| {
        Problem::new(StatusCode::BAD_REQUEST, e.to_string())
    })
}
