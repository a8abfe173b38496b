//! `GET /runner/status`: the fleet's status; `POST /runner/reconcile`: the resync. Both need the secret.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderValue;
use serde::Serialize;

use super::error::ApiError;
use super::extract::Authorized;
use super::info::SERVICE;
use super::{OUTCOME, outcome_header};
use crate::clock::Deadline;
use crate::lifecycle::reconcile::PASS_TIME;
use crate::lifecycle::resync::{self, RESYNC_TIME};
use crate::lifecycle::status::{self, Report};
use crate::state::AppState;

#[derive(Serialize)]
pub(super) struct Status {
    service: &'static str,
    version: &'static str,
    #[serde(flatten)]
    report: Report,
}

/// Replies with the fleet's status. Only the extractor is needed: the body is not read.
pub(super) async fn status(
    State(app): State<AppState>,
    _: Authorized,
) -> Result<Json<Status>, ApiError> {
    let report = status::report(&app.cx, &app.status, Deadline::after(PASS_TIME)).await;
    Ok(Json(Status { service: SERVICE, version: env!("CARGO_PKG_VERSION"), report }))
}

#[derive(Serialize)]
pub(super) struct Resynced {
    status: &'static str,
    #[serde(flatten)]
    report: resync::Report,
}

/// Runs a resync. The body, which a scheduler may set, is not read.
pub(super) async fn reconcile(
    State(app): State<AppState>,
    _: Authorized,
) -> ([(&'static str, HeaderValue); 1], Json<Resynced>) {
    let report = resync::resync(&app.cx, Deadline::after(RESYNC_TIME)).await;
    let header = outcome_header(&report.summary());
    ([(OUTCOME, header)], Json(Resynced { status: "ok", report }))
}
