//! Errors as a caller sees them: the one place that knows HTTP statuses, and where a failure is logged.

use std::sync::atomic::{AtomicU64, Ordering};

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::webhook_event::Unreadable;
use super::{OUTCOME, outcome_header};
use crate::fleet::NoSuchVm;
use crate::lifecycle;
use crate::lifecycle::registration::Refusal;
use crate::secret::Refused;

/// The failure of a request. The replies have FastAPI's format, `{"detail": "…"}`.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("{0}")]
    BadBody(String),
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error("the header X-GitHub-Event is missing")]
    NoEvent,
    #[error(transparent)]
    NoSuchVm(#[from] NoSuchVm),
    #[error("the body is larger than 1 MiB")]
    TooLarge,
    #[error("Not Found")]
    NoSuchPath,
    #[error("Method Not Allowed")]
    NoSuchMethod,
    /// For an operator, or for GitHub, where a person can see the failure and repeat the request.
    #[error(transparent)]
    Lifecycle(#[from] lifecycle::Error),
    /// For Cloud Tasks, which repeats the task.
    #[error("{0}; Cloud Tasks repeats it")]
    Repeat(lifecycle::Error),
    /// For a VM. It is not told the reason, which is logged.
    #[error("no registration token is given for this; the service's log says why")]
    NoRegistration(Refusal),
    /// For a VM, which asks again.
    #[error("{0}: ask again later")]
    NotNow(Refusal),
    #[error("shutting down: ask again")]
    ShuttingDown,
    #[error("an internal error; the log says more")]
    Panicked,
}

impl ApiError {
    fn status(&self) -> StatusCode {
        match self {
            Self::Refused(_) => StatusCode::UNAUTHORIZED,
            Self::BadBody(_)
            | Self::Unreadable(_)
            | Self::NoEvent
            | Self::NoSuchVm(NoSuchVm::Ambiguous(_)) => StatusCode::BAD_REQUEST,
            Self::NoSuchVm(NoSuchVm::Unknown(_)) | Self::NoSuchPath => StatusCode::NOT_FOUND,
            Self::NoSuchMethod => StatusCode::METHOD_NOT_ALLOWED,
            Self::NoRegistration(_) => StatusCode::FORBIDDEN,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Lifecycle(lifecycle::Error::WouldLoseLocalSsd(_)) => StatusCode::CONFLICT,
            Self::Lifecycle(_) => StatusCode::BAD_GATEWAY,
            // Not 503, which would make Cloud Tasks slow the whole queue down.
            Self::Repeat(_) | Self::Panicked => StatusCode::INTERNAL_SERVER_ERROR,
            Self::ShuttingDown | Self::NotNow(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// The body of an error reply.
#[derive(Serialize)]
struct Detail<'a> {
    detail: &'a str,
}

/// Logs the first ten refusals of this instance, then every hundredth: any caller can be refused as often as it likes,
/// and log lines cost money.
fn warn_now_and_then(status: StatusCode, detail: &str) {
    static REFUSED: AtomicU64 = AtomicU64::new(0);
    let count = REFUSED.fetch_add(1, Ordering::Relaxed) + 1;
    if count <= 10 {
        tracing::warn!("{status}: {detail}");
    } else if count.is_multiple_of(100) {
        tracing::warn!("{status}: {detail}: {count} were refused since this instance was started");
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            refusal @ (Refusal::Upstream(_) | Refusal::MayNot { .. }) => Self::NotNow(refusal),
            refusal => Self::NoRegistration(refusal),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status();
        let detail = self.to_string();
        match &self {
            // Any caller can cause these, as often as it likes.
            Self::NoSuchPath | Self::NoSuchMethod => tracing::debug!("{status}: {detail}"),
            Self::Refused(_) => warn_now_and_then(status, &detail),
            Self::NoRegistration(why) => {
                warn_now_and_then(status, &format!("a registration was refused: {why}"));
            }
            _ if status.is_client_error() => tracing::warn!("{status}: {detail}"),
            _ => tracing::error!("{status}: {detail}"),
        }
        let mut response = (status, Json(Detail { detail: &detail })).into_response();
        let headers = response.headers_mut();
        headers.insert(OUTCOME, outcome_header(&detail));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
