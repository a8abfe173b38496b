//! Errors as a caller sees them: the one place that knows HTTP statuses, and where a failure is logged.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tracing::Level;

use super::webhook_event::Unreadable;
use super::{OUTCOME, outcome_header};
use crate::clients;
use crate::clock::Timestamp;
use crate::fleet::NoSuchVm;
use crate::identity::Untrusted;
use crate::lifecycle;
use crate::lifecycle::registration::Refusal;
use crate::secret::Refused;
use crate::throttle::Throttle;

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
    /// The caller's identity token is not accepted.
    #[error("the caller is refused: {0}")]
    Untrusted(#[from] Untrusted),
    /// Google's keys could not be fetched.
    #[error("the caller's token could not be verified ({0}): ask again")]
    NotVerified(clients::Error),
    #[error("shutting down: ask again")]
    ShuttingDown,
    #[error("an internal error; the log says more")]
    Panicked,
}

impl ApiError {
    fn status(&self) -> StatusCode {
        match self {
            Self::Refused(_) | Self::Untrusted(_) => StatusCode::UNAUTHORIZED,
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
            Self::Repeat(_) | Self::NotVerified(_) | Self::Panicked => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            Self::ShuttingDown | Self::NotNow(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// The body of an error reply.
#[derive(Serialize)]
struct Detail<'a> {
    detail: &'a str,
}

/// The log line of a failed request. The router writes it, which knows the path.
#[derive(Clone)]
pub(super) struct Failure {
    line: String,
    level: Level,
    /// The names of the error's variants, without their values.
    kind: String,
}

impl Failure {
    fn of(error: &ApiError, line: String) -> Self {
        let level = match error {
            ApiError::NoSuchPath | ApiError::NoSuchMethod => Level::DEBUG,
            ApiError::ShuttingDown => Level::INFO,
            // A caller without a valid token can cause it.
            ApiError::NotNow(Refusal::Upstream(_) | Refusal::Online { .. })
            | ApiError::NotVerified(_) => Level::WARN,
            _ if error.status().is_client_error() => Level::WARN,
            _ => Level::ERROR,
        };
        let kind = format!("{error:?}");
        let is_name = |c: &char| c.is_ascii_alphanumeric() || *c == '(';
        Self { line, level, kind: kind.chars().take_while(is_name).collect() }
    }

    /// Logs the line, unless too many like it were logged lately. Callers that know the secret cause errors only.
    pub(super) fn log(&self, path: &str, throttle: &Throttle, now: Timestamp) {
        let Self { line, level, kind } = self;
        if *level == Level::DEBUG {
            tracing::debug!("{line}");
            return;
        }
        if *level == Level::ERROR {
            tracing::error!("{line}");
            return;
        }
        let line = match throttle.admit(&format!("{path} {kind}"), now) {
            None => return,
            Some(0) => line.clone(),
            Some(more) => format!("{line} (and {more} more like this since the last such line)"),
        };
        if *level == Level::INFO {
            tracing::info!("{line}");
        } else {
            tracing::warn!("{line}");
        }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            refusal @ (Refusal::Upstream(_) | Refusal::MayNot { .. } | Refusal::Online { .. }) => {
                Self::NotNow(refusal)
            }
            refusal => Self::NoRegistration(refusal),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status();
        let detail = self.to_string();
        let line = match &self {
            Self::NoRegistration(why) => format!("{status}: a registration was refused: {why}"),
            _ => format!("{status}: {detail}"),
        };
        let mut response = (status, Json(Detail { detail: &detail })).into_response();
        response.extensions_mut().insert(Failure::of(&self, line));
        let headers = response.headers_mut();
        headers.insert(OUTCOME, outcome_header(&detail));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
