//! Requests about upstreams and secrets.

use axum::Json;
use axum::extract::{ConnectInfo, Path, State};
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::Handles;
use super::api::Caller;
use super::change::{Change, one_line};
use super::problem::Problem;
use super::view::{Intervention, Operation, Refused, SecretView, UpstreamView};
use crate::event::AdminAction;

pub(super) async fn upstreams(State(handles): State<Handles>) -> Json<Vec<UpstreamView>> {
    Json((handles.upstreams)())
}

pub(super) async fn operate(
    State(handles): State<Handles>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    Path((name, operation)): Path<(String, String)>,
    change: Change,
) -> Result<Json<Value>, Problem> {
    one_line("a name", &name)?;
    let known: Result<Operation, _> = serde_json::from_value(json!(operation));
    let Ok(operation) = known else {
        let detail = "the actions are pause, resume, trip and reset";
        return Err(Problem::new(StatusCode::NOT_FOUND, detail));
    };
    let Change { lasts, reason } = change;
    if lasts.is_some() && !operation.can_last() {
        return Err(Problem::bad("only pause and trip can be for a time"));
    }
    let done = (handles.operate)(&name, Intervention { operation, lasts, reason: reason.clone() });
    let error = done.as_ref().err().map(ToString::to_string);
    AdminAction {
        uid: caller.uid,
        action: operation.word(),
        upstream: Some(&name),
        for_seconds: lasts.map(|lasts| lasts.as_secs()),
        reason: reason.as_deref(),
        error: error.as_deref(),
        ..AdminAction::default()
    }
    .emit();
    done?;
    Ok(Json(json!({ "upstream": name, "action": operation })))
}

pub(super) async fn secrets(State(handles): State<Handles>) -> Json<Vec<SecretView>> {
    Json((handles.secrets)())
}

pub(super) async fn refresh_all(
    State(handles): State<Handles>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    change: Change,
) -> Result<Json<Value>, Problem> {
    refresh(&handles, caller, None, change)
}

pub(super) async fn refresh_one(
    State(handles): State<Handles>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    Path(name): Path<String>,
    change: Change,
) -> Result<Json<Value>, Problem> {
    one_line("a name", &name)?;
    refresh(&handles, caller, Some(&name), change)
}

fn refresh(
    handles: &Handles,
    caller: Caller,
    secret: Option<&str>,
    change: Change,
) -> Result<Json<Value>, Problem> {
    let reason = change.lasting()?;
    let done: Result<(), Refused> = (handles.refresh)(secret);
    let error = done.as_ref().err().map(ToString::to_string);
    AdminAction {
        uid: caller.uid,
        action: "refresh",
        secret,
        reason: reason.as_deref(),
        error: error.as_deref(),
        ..AdminAction::default()
    }
    .emit();
    done?;
    Ok(Json(json!({ "secret": secret, "action": "refresh" })))
}
