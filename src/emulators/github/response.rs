//! Responses and refusals in GitHub's form.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use crate::clock::Timestamp;
use crate::emulators::wire::json_response;

pub(super) type ApiResult = Result<Response, Refusal>;

/// The rate limit, in requests per hour.
pub(super) const LIMIT: u32 = 5000;

/// The lifetime of an installation token.
pub(super) const TOKEN_LIFETIME: Duration = Duration::from_secs(3600);

pub(super) const SUSPENDED: &str = "This installation has been suspended";

/// The time at which the rate limit is reset: the end of the hour.
pub(super) fn reset(now: Timestamp) -> u64 {
    (now.unix_seconds() / 3600 + 1) * 3600
}

pub(super) fn ok(value: &Value) -> Response {
    json_response(StatusCode::OK, value)
}

/// An error response.
#[derive(Clone, Debug)]
pub(in crate::emulators) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) message: String,
    /// The URL of a renamed repository.
    pub(super) location: Option<String>,
}

impl Refusal {
    pub(in crate::emulators) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), location: None }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut body = json!({
            "message": self.message,
            "documentation_url": "https://docs.github.com/rest",
            "status": self.status.as_u16().to_string(),
        });
        if let Some(location) = &self.location {
            body["url"] = json!(location);
        }
        let mut response = json_response(self.status, &body);
        if let Some(Ok(location)) = self.location.map(HeaderValue::try_from) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        response
    }
}

pub(in crate::emulators) fn not_found() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "Not Found")
}

pub(super) fn bad_credentials() -> Refusal {
    Refusal::new(StatusCode::UNAUTHORIZED, "Bad credentials")
}

pub(super) fn not_accessible() -> Refusal {
    Refusal::new(StatusCode::FORBIDDEN, "Resource not accessible by integration")
}

pub(super) fn unprocessable(what: &str) -> Refusal {
    Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, format!("Validation Failed: {what}"))
}
