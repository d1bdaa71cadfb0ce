//! Requests about messages.

use axum::Json;
use axum::body::Body;
use axum::extract::{ConnectInfo, Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use serde::Deserialize;
use serde_json::json;

use super::Handles;
use super::api::Caller;
use super::change::Change;
use super::problem::Problem;
use super::view::{Explanation, Selection};
use crate::event::{AdminAction, SpoolFailed};
use crate::mail::QueueId;
use crate::spool::{Action, Entry, Spool, SpoolError};

/// Messages that are taken from the spool at a time while the queue is listed.
pub(super) const PAGE: usize = 500;
/// Octets of a content that are read at a time.
pub(super) const PIECE: usize = 256 << 10;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Filter {
    state: Option<String>,
}

/// The queue, a page at a time: a long queue never lies in memory as a whole, and a slow reader
/// holds up nobody.
pub(super) async fn list(
    State(handles): State<Handles>,
    filter: Result<Query<Filter>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Problem> {
    let Query(filter) = filter.map_err(|e| Problem::bad(e.body_text()))?;
    let only = filter.state.map(|state| state.parse::<Selection>()).transpose();
    let only = only.map_err(Problem::bad)?;
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
            Some((page.map(|entries| lines(&entries, only)), rest))
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

fn lines(entries: &[Entry], only: Option<Selection>) -> Bytes {
    let mut out = Vec::new();
    for entry in entries.iter().filter(|e| only.is_none_or(|s| s.has(e))) {
        // Writing to memory does not fail, and the types have no maps with odd keys.
        if serde_json::to_writer(&mut out, entry).is_ok() {
            out.push(b'\n');
        }
    }
    out.into()
}

pub(super) async fn show(
    State(handles): State<Handles>,
    Path(id): Path<String>,
) -> Result<Json<Entry>, Problem> {
    let id = parse_id(&id)?;
    let entry = handles.spool.show(id).await?.ok_or(SpoolError::NotFound(id))?;
    Ok(Json(entry))
}

/// A content, a piece at a time. It has a length, so that one that breaks off is seen to.
pub(super) async fn content(
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

/// Where the message may go, and why not elsewhere: computed now, from the configuration in force.
pub(super) async fn explain(
    State(handles): State<Handles>,
    Path(id): Path<String>,
) -> Result<Json<Explanation>, Problem> {
    let id = parse_id(&id)?;
    let entry = handles.spool.show(id).await?.ok_or(SpoolError::NotFound(id))?;
    let verdicts = (handles.explain)(&entry.message);
    Ok(Json(Explanation { queue_id: id, state: entry.state, verdicts }))
}

pub(super) async fn act(
    State(handles): State<Handles>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    Path((id, action)): Path<(String, String)>,
    change: Change,
) -> Result<Json<serde_json::Value>, Problem> {
    let id = parse_id(&id)?;
    let known: Result<Action, _> = serde_json::from_value(json!(action));
    let Ok(verb) = known else {
        let detail = "the actions are retry, hold, release, requeue, confirm, resend and delete";
        return Err(Problem::new(StatusCode::NOT_FOUND, detail));
    };
    let reason = change.lasting()?;
    let done = handles.spool.act(id, verb, handles.clock.wall()).await;
    let error = done.as_ref().err().map(ToString::to_string);
    AdminAction {
        uid: caller.uid,
        action: &action,
        queue_id: Some(id),
        reason: reason.as_deref(),
        error: error.as_deref(),
        ..AdminAction::default()
    }
    .emit();
    done?;
    Ok(Json(json!({ "queue_id": id, "action": action })))
}

fn parse_id(text: &str) -> Result<QueueId, Problem> {
    text.parse().map_err(|e: crate::mail::queue_id::InvalidQueueId| Problem::bad(e.to_string()))
}
