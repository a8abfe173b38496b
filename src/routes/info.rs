//! `GET /health` and `GET /`: open to every caller, so the replies hold nothing private.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::page;
use crate::fleet::{Entry, Label, RepoName};
use crate::state::AppState;

/// The service's name.
pub const SERVICE: &str = "GitHub Runner Manager";

/// The reply to Cloud Run's probes.
pub(super) async fn health() -> Json<Health> {
    Json(Health { status: "healthy" })
}

/// The service's name and its VMs, as JSON. A browser gets the operator's page instead.
pub(super) async fn root(State(app): State<AppState>, headers: HeaderMap) -> Response {
    let mut response = if page::is_preferred(&headers) { page::page() } else { service(&app) };
    // A cache must not serve the page for the JSON, or the JSON for the page.
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}

fn service(app: &AppState) -> Response {
    let shown = Service {
        service: SERVICE,
        inactive_minutes: app.cx.inactive.as_secs() / 60,
        runner_configs: app.cx.fleet.entries().iter().map(RunnerConfig::from).collect(),
    };
    Json(shown).into_response()
}

#[derive(Serialize)]
pub(super) struct Health {
    status: &'static str,
}

#[derive(Serialize)]
struct Service<'a> {
    service: &'static str,
    inactive_minutes: u64,
    runner_configs: Vec<RunnerConfig<'a>>,
}

#[derive(Serialize)]
struct RunnerConfig<'a> {
    repo: &'a RepoName,
    labels: &'a [Label],
    vm_instance_name: &'a str,
    vm_instance_zone: &'a str,
}

impl<'a> From<&'a Entry> for RunnerConfig<'a> {
    fn from(entry: &'a Entry) -> Self {
        Self {
            repo: &entry.repo,
            labels: &entry.labels,
            vm_instance_name: &entry.vm.name,
            vm_instance_zone: &entry.vm.zone,
        }
    }
}
