//! Refusals as HTTP answers: a status and an [`ApiError`].

use crate::core::{DeployError, JoinError};
use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use gantry_api::http::ApiError;
use std::error::Error;

/// A request that was refused.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) status: StatusCode,
    pub(crate) error: ApiError,
}

impl Refused {
    fn new(status: StatusCode, code: &str, message: impl Into<String>, hint: Option<String>) -> Self {
        Self { status, error: ApiError { code: code.to_owned(), message: message.into(), hint } }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid", message, None)
    }

    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", message, None)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message, None)
    }

    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", message, None)
    }

    pub(crate) fn too_large(limit: usize) -> Self {
        let message = format!("the request's body is larger than {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid", message, None)
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message, None)
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.error.hint = Some(hint.into());
        self
    }
}

/// A failure of ours, with its whole chain of causes.
pub(crate) fn internal(error: &dyn Error, hint: Option<String>) -> Refused {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        message.push_str(": ");
        message.push_str(&source.to_string());
        cause = source.source();
    }
    Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message, hint)
}

impl From<DeployError> for Refused {
    fn from(error: DeployError) -> Self {
        let (status, code) = match &error {
            DeployError::Invalid { .. } | DeployError::Cycle(_) => (StatusCode::BAD_REQUEST, "invalid"),
            DeployError::Large { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "invalid"),
            DeployError::Port { .. } | DeployError::Volume { .. } | DeployError::Addresses => {
                (StatusCode::CONFLICT, "conflict")
            }
            DeployError::CannotFit(_) => (StatusCode::UNPROCESSABLE_ENTITY, "cannot_fit"),
            DeployError::NoApp(_) | DeployError::NoService { .. } => (StatusCode::NOT_FOUND, "not_found"),
        };
        let hint = error.hint();
        Self::new(status, code, error.to_string(), hint)
    }
}

impl From<JoinError> for Refused {
    fn from(error: JoinError) -> Self {
        let hint = error.hint();
        Self::new(StatusCode::CONFLICT, "conflict", error.to_string(), hint)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.status, Json(self.error)).into_response()
    }
}
