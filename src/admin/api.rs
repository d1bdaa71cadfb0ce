//! The requests, and those about the program as a whole.

use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::serve::IncomingStream;
use axum::{Json, Router};
use serde_json::json;
use tokio::net::UnixListener;
use tokio::sync::oneshot;

use super::change::Change;
use super::problem::Problem;
use super::{Handles, control, queue};
use crate::event::AdminAction;

/// Octets of a request's body: room for a reason, however it is escaped.
const BODY_MAX: usize = 8 << 10;

/// Who is at the other end of the socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    pub(super) uid: Option<u32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self { uid: stream.io().peer_cred().ok().map(|cred| cred.uid()) }
    }
}

pub(super) fn router(handles: Handles) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/ready", get(ready))
        .route("/v1/queue", get(queue::list))
        .route("/v1/queue/{id}", get(queue::show))
        .route("/v1/queue/{id}/body", get(queue::content))
        .route("/v1/queue/{id}/explain", get(queue::explain))
        .route("/v1/queue/{id}/{action}", post(queue::act))
        .route("/v1/upstreams", get(control::upstreams))
        .route("/v1/upstreams/{name}/{operation}", post(control::operate))
        .route("/v1/secrets", get(control::secrets))
        .route("/v1/secrets/refresh", post(control::refresh_all))
        .route("/v1/secrets/{name}/refresh", post(control::refresh_one))
        .route("/v1/reload", post(reload))
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "no such request"))
        .method_not_allowed_fallback(async || {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "changes are POST, questions are GET")
        })
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(handles)
}

/// What the program as a whole is doing, and its upstreams and secrets.
async fn status(State(handles): State<Handles>) -> Json<serde_json::Value> {
    let mut status = (handles.status)();
    if let Some(members) = status.as_object_mut() {
        members.insert("upstreams".into(), json!((handles.upstreams)()));
        members.insert("secrets".into(), json!((handles.secrets)()));
    }
    Json(status)
}

async fn ready(State(handles): State<Handles>) -> Result<Json<serde_json::Value>, Problem> {
    match handles.spool.refusal() {
        None => Ok(Json(json!({ "ready": true }))),
        Some(error) => Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())),
    }
}

async fn reload(
    State(handles): State<Handles>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    change: Change,
) -> Result<Json<serde_json::Value>, Problem> {
    let reason = change.lasting()?;
    let (answer, answered) = oneshot::channel();
    let gone = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "Postgate is shutting down");
    handles.reload.send(answer).await.map_err(|_| gone())?;
    let done = answered.await.map_err(|_| gone())?;
    let error = done.as_ref().err().map(String::as_str);
    let reason = reason.as_deref();
    AdminAction { uid: caller.uid, action: "reload", reason, error, ..AdminAction::default() }
        .emit();
    match done {
        Ok(message) => Ok(Json(json!({ "message": message }))),
        Err(detail) => Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail)),
    }
}
