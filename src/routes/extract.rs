//! Verified requests. A value of one of these types is the proof: its fields are private, and the extractor is its only
//! constructor.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::error::ApiError;
use super::webhook_event::{self, WebhookEvent};
use crate::clock::Deadline;
use crate::identity::{self, Untrusted};
use crate::lifecycle::events::WEBHOOK_TIME;
use crate::lifecycle::registration;
use crate::secret::Signature;
use crate::state::AppState;

/// The largest body. GitHub's own limit is 25 MB; a `workflow_job` has about 15 KB.
pub const LARGEST_BODY: usize = 1 << 20;

/// The longest time in which a body may arrive: its sender is not authenticated yet.
const SLOWEST_BODY: Duration = Duration::from_secs(5);

/// A webhook event whose signature was verified.
pub struct SignedDelivery(WebhookEvent);

impl SignedDelivery {
    pub(super) fn into_event(self) -> WebhookEvent {
        self.0
    }
}

impl FromRequest<AppState> for SignedDelivery {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &AppState) -> Result<Self, ApiError> {
        let (head, body) = request.into_parts();
        // A request that cannot be right is refused before its body is read.
        let signature = head.headers.get("x-hub-signature-256").map(|value| value.as_bytes());
        let signature = Signature::parse(signature)?;
        let body = read(&head.headers, body).await?;
        // The signature covers the bytes as sent, so nothing is parsed before it holds.
        app.secret.verify_signature(&signature, &body)?;
        let event = head.headers.get("x-github-event").ok_or(ApiError::NoEvent)?;
        let as_form =
            head.headers.get(header::CONTENT_TYPE).is_some_and(|kind| is_form(kind.as_bytes()));
        if event != webhook_event::WORKFLOW_JOB {
            // The payload is not read.
            return Ok(Self(WebhookEvent::of(&String::from_utf8_lossy(event.as_bytes()), b"")?));
        }
        let payload = webhook_event::payload(&body, as_form)?;
        Ok(Self(WebhookEvent::of(webhook_event::WORKFLOW_JOB, &payload)?))
    }
}

/// The media type's parameters do not count, nor does its case.
fn is_form(content_type: &[u8]) -> bool {
    let kind = content_type.split(|byte| *byte == b';').next().unwrap_or_default();
    kind.trim_ascii().eq_ignore_ascii_case(b"application/x-www-form-urlencoded")
}

/// A command whose caller knows the secret, or is the account as which Cloud Tasks calls.
pub(super) struct Authorized {
    caller: Caller,
    body: Bytes,
}

/// The caller of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// Cloud Tasks, with a task that is due.
    CloudTasks,
    /// Any other caller.
    Operator,
}

impl Authorized {
    /// The caller, by a header that Cloud Tasks adds. An operator could add it too, but it grants nothing more.
    pub(super) fn caller(&self) -> Caller {
        self.caller
    }

    /// The command's body. An empty one is the default value.
    pub(super) fn body<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        body_of(&self.body)
    }
}

impl FromRequest<AppState> for Authorized {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &AppState) -> Result<Self, ApiError> {
        let (head, body) = request.into_parts();
        let secret = head.headers.get("x-runner-secret");
        match (secret, bearer_token(&head.headers), &app.cx.callback_account) {
            (None, Some(token), Some(account)) => {
                let deadline = Deadline::after(WEBHOOK_TIME);
                is_of_account(app, &token, account, deadline).await?;
            }
            _ => app.secret.verify_secret(secret.map(|value| value.as_bytes()))?,
        }
        let scheduled = head.headers.contains_key("x-cloudtasks-taskname");
        let caller = if scheduled { Caller::CloudTasks } else { Caller::Operator };
        Ok(Self { caller, body: read(&head.headers, body).await? })
    }
}

/// A request by a VM: its identity token, not verified yet, and its body.
pub(super) struct Bearer {
    token: String,
    body: Bytes,
}

impl Bearer {
    /// The token in `Authorization: Bearer …`. It has the form of an identity token.
    pub(super) fn token(&self) -> &str {
        &self.token
    }

    /// The body. An empty one is the default value.
    pub(super) fn body<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        body_of(&self.body)
    }
}

impl FromRequest<AppState> for Bearer {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &AppState) -> Result<Self, ApiError> {
        let (head, body) = request.into_parts();
        let token = registration::plausible(&app.cx, bearer_token(&head.headers))?;
        Ok(Self { token, body: read(&head.headers, body).await? })
    }
}

/// The token in `Authorization: Bearer …`.
fn bearer_token(headers: &HeaderMap) -> Option<String> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("Bearer").then(|| token.trim().to_owned())
}

/// Verifies that the token was issued to this service account, for this service.
async fn is_of_account(
    app: &AppState,
    token: &str,
    account: &str,
    deadline: Deadline,
) -> Result<(), ApiError> {
    let cx = &app.cx;
    let key = cx.google_keys.key(&identity::key_id(token)?, deadline).await;
    let key = key.map_err(ApiError::NotVerified)?.ok_or(Untrusted::UnknownKey)?;
    identity::verify_account(token, &key, (&cx.service_url, account), cx.clock.now())?;
    Ok(())
}

fn body_of<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    let body: &[u8] = if body.trim_ascii().is_empty() { b"{}" } else { body };
    Ok(webhook_event::json(body)?)
}

/// Reads the body, unless it is too large. An announced length is checked before reading.
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
