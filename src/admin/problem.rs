//! Errors as RFC 9457 writes them.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::view::Refused;
use crate::spool::SpoolError;

/// Why a request has no better answer.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    detail: String,
}

impl Problem {
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into() }
    }

    /// The request is not understood.
    pub(super) fn bad(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
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

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        let status = match &refused {
            Refused::NoUpstream(_) | Refused::NoSecret(_) => StatusCode::NOT_FOUND,
            Refused::NotNow(_) => StatusCode::CONFLICT,
        };
        Self::new(status, refused.to_string())
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
