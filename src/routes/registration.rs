//! `POST /runner/registration`: a VM proves its identity at boot and gets a token to register its runner with.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use serde::{Deserialize, Serialize};

use super::error::ApiError;
use super::extract::Bearer;
use crate::clock::Deadline;
use crate::fleet::{Label, RepoName};
use crate::lifecycle::reconcile::PASS_TIME;
use crate::lifecycle::registration::{Grant, RegistrationRequest, register};
use crate::state::AppState;

/// The body of the request.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Request {
    /// The repository to register in, if the VM's entries leave a choice.
    repo: Option<RepoName>,
}

#[derive(Serialize)]
pub(super) struct Response {
    url: String,
    token: String,
    expires_at: String,
    name: String,
    labels: Vec<Label>,
}

pub(super) async fn registration(
    State(app): State<AppState>,
    request: Bearer,
) -> Result<([(header::HeaderName, HeaderValue); 1], Json<Response>), ApiError> {
    let Request { repo } = request.body()?;
    let deadline = Deadline::after(PASS_TIME);
    let request = RegistrationRequest { token: request.token(), repo: repo.as_ref() };
    let grant = register(&app.cx, &app.registrations, request, deadline).await?;
    let Grant { url, token, name, labels } = grant;
    tracing::info!("VM {name}: it may register its runner in {url} until {}", token.expires_at);
    let response = Response {
        url,
        token: token.token.expose().to_owned(),
        expires_at: token.expires_at,
        name,
        labels,
    };
    Ok(([(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))], Json(response)))
}
