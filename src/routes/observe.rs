//! `GET /runner/status`: the fleet as it is, for who knows the secret.

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use super::error::ApiError;
use super::extract::Authorized;
use super::info::SERVICE;
use crate::clock::Deadline;
use crate::lifecycle::CALLBACK_TIME;
use crate::lifecycle::status::{self, Report};
use crate::state::AppState;

#[derive(Serialize)]
pub(super) struct Status {
    service: &'static str,
    version: &'static str,
    #[serde(flatten)]
    report: Report,
}

/// The extractor is the proof; the request's body says nothing.
pub(super) async fn status(
    State(app): State<AppState>,
    _: Authorized,
) -> Result<Json<Status>, ApiError> {
    let report = status::report(&app, Deadline::after(CALLBACK_TIME)).await;
    Ok(Json(Status { service: SERVICE, version: env!("CARGO_PKG_VERSION"), report }))
}
