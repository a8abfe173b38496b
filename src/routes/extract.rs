//! Requests that were proven: to hold one of these values is the proof. Their fields are private, and there
//! is no other way to one.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::error::ApiError;
use crate::fleet::{Label, RepoName};
use crate::state::AppState;

/// GitHub's own limit is 25 MB; a `workflow_job` has about 15 KB.
const LARGEST_BODY: usize = 1 << 20;

/// How long it may take to arrive: whoever sends it is not known yet.
const SLOWEST_BODY: Duration = Duration::from_secs(5);

/// An event that GitHub signed with our secret.
pub struct SignedDelivery(Event);

/// What a delivery tells.
pub(super) enum Event {
    /// Something happened to a job.
    WorkflowJob(Box<WorkflowJobEvent>),
    /// Another event, by its name.
    Other(String),
}

/// A `workflow_job` event, as far as it is read.
/// <https://docs.github.com/en/webhooks/webhook-events-and-payloads#workflow_job>
#[derive(Deserialize)]
pub(super) struct WorkflowJobEvent {
    pub(super) action: String,
    pub(super) workflow_job: WorkflowJob,
    pub(super) repository: Repository,
}

#[derive(Deserialize)]
pub(super) struct WorkflowJob {
    pub(super) id: u64,
    pub(super) labels: Vec<Label>,
    pub(super) status: Option<String>,
    pub(super) runner_name: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Repository {
    pub(super) full_name: RepoName,
}

impl SignedDelivery {
    pub(super) fn into_event(self) -> Event {
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
        Event::parse(&head.headers, &body).map(Self)
    }
}

impl Event {
    fn parse(headers: &HeaderMap, body: &[u8]) -> Result<Self, ApiError> {
        let name = headers.get("x-github-event").ok_or(ApiError::NoEvent)?;
        if name != "workflow_job" {
            return Ok(Self::Other(String::from_utf8_lossy(name.as_bytes()).into_owned()));
        }
        let is_form = headers
            .get(header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/x-www-form-urlencoded"));
        // curl calls JSON a form unless it is told otherwise.
        if !is_form || body.starts_with(b"{") {
            return json(body).map(Self::WorkflowJob);
        }
        let payload = form_urlencoded::parse(body).find(|(key, _)| key == "payload");
        let (_, payload) =
            payload.ok_or_else(|| ApiError::BadBody("the form has no field `payload`".into()))?;
        json(payload.as_bytes()).map(Self::WorkflowJob)
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
    if body.trim_ascii().is_empty() { json(b"{}") } else { json(body) }
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

/// Parses JSON; the error says where, and which field is missing, but repeats nothing of what was sent.
fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        let place = format!("line {}, column {}", error.line(), error.column());
        let text = error.to_string();
        let missing = text
            .starts_with("missing field")
            .then(|| text.split(" at line").next().unwrap_or_default());
        ApiError::BadBody(match (error.classify(), missing) {
            (serde_json::error::Category::Data, Some(missing)) => {
                format!("the body has a {missing}")
            }
            (serde_json::error::Category::Data, None) => {
                format!("the body has a value of the wrong type at {place}")
            }
            _ => format!("the body is not JSON: {place}"),
        })
    })
}
