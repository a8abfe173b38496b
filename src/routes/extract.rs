//! Requests that were proven: to hold one of these values is the proof. Their fields are private, and there
//! is no other way to one.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::error::ApiError;
use super::meaning::{self, Meaning};
use crate::state::AppState;

/// GitHub's own limit is 25 MB; a `workflow_job` has about 15 KB.
pub const LARGEST_BODY: usize = 1 << 20;

/// How long it may take to arrive: whoever sends it is not known yet.
const SLOWEST_BODY: Duration = Duration::from_secs(5);

/// An event that GitHub signed with our secret.
pub struct SignedDelivery(Meaning);

impl SignedDelivery {
    pub(super) fn into_meaning(self) -> Meaning {
        self.0
    }
}

impl FromRequest<AppState> for SignedDelivery {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &AppState) -> Result<Self, ApiError> {
        let (head, body) = request.into_parts();
        let signature = head.headers.get("x-hub-signature-256").map(|value| value.as_bytes());
        if signature.is_none() {
            // Nobody needs to send a megabyte to be told so.
            app.secret.verify_signature(None, b"")?;
        }
        let body = read(&head.headers, body).await?;
        // The signature covers the bytes as sent, so nothing is parsed before it holds.
        app.secret.verify_signature(signature, &body)?;
        let event = head.headers.get("x-github-event").ok_or(ApiError::NoEvent)?;
        let is_form = head
            .headers
            .get(header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/x-www-form-urlencoded"));
        if event != meaning::WORKFLOW_JOB {
            // Whatever it carries is not looked at.
            return Ok(Self(Meaning::of(&String::from_utf8_lossy(event.as_bytes()), b"")?));
        }
        let payload = meaning::payload(&body, is_form)?;
        Ok(Self(Meaning::of(meaning::WORKFLOW_JOB, &payload)?))
    }
}

/// A command by someone who knows the secret.
pub(super) struct Authorized {
    caller: Caller,
    body: Bytes,
}

/// Who commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// A task that comes due.
    CloudTasks,
    /// Anybody else.
    Operator,
}

impl Authorized {
    /// Told by a header that Cloud Tasks adds. Who knows the secret may add it too: it opens no door.
    pub(super) fn caller(&self) -> Caller {
        self.caller
    }

    /// The command's body, which may be left out: then it is the value without any fields.
    pub(super) fn body<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        body_of(&self.body)
    }
}

impl FromRequest<AppState> for Authorized {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &AppState) -> Result<Self, ApiError> {
        let (head, body) = request.into_parts();
        app.secret
            .verify_secret(head.headers.get("x-runner-secret").map(|value| value.as_bytes()))?;
        let scheduled = head.headers.contains_key("x-cloudtasks-taskname");
        let caller = if scheduled { Caller::CloudTasks } else { Caller::Operator };
        Ok(Self { caller, body: read(&head.headers, body).await? })
    }
}

/// A request by a VM: the token that says who it is, not looked at yet, and what it says.
pub(super) struct Bearer {
    token: Option<String>,
    body: Bytes,
}

impl Bearer {
    /// What stands in `Authorization: Bearer …`.
    pub(super) fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// The body, which may be left out: then it is the value without any fields.
    pub(super) fn body<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        body_of(&self.body)
    }
}

impl FromRequest<AppState> for Bearer {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &AppState) -> Result<Self, ApiError> {
        let (head, body) = request.into_parts();
        let bearer = head.headers.get(header::AUTHORIZATION).and_then(|value| {
            let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
            scheme.eq_ignore_ascii_case("Bearer").then(|| token.trim().to_owned())
        });
        Ok(Self { token: bearer, body: read(&head.headers, body).await? })
    }
}

fn body_of<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    let body: &[u8] = if body.trim_ascii().is_empty() { b"{}" } else { body };
    Ok(meaning::json(body)?)
}

/// Reads the body, if it is not too large; where its length is announced, without reading it.
async fn read(headers: &HeaderMap, body: Body) -> Result<Bytes, ApiError> {
    let announced =
        headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: u64| length > LARGEST_BODY as u64) {
        return Err(ApiError::TooLarge);
    }
    let whole =
        tokio::time::timeout(SLOWEST_BODY, Limited::new(body, LARGEST_BODY).collect()).await;
    let whole = whole.map_err(|_| ApiError::BadBody("the body did not arrive in time".into()))?;
    whole.map(|body| body.to_bytes()).map_err(|error| {
        if error.is::<LengthLimitError>() {
            ApiError::TooLarge
        } else {
            ApiError::BadBody("the body broke off".into())
        }
    })
}
