//! `GET /health` and `GET /`: open to everybody, and silent about everything that is not theirs to know.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::fleet::{Entry, Label};
use crate::state::AppState;

/// For Cloud Run's probes.
pub(super) async fn health() -> Json<Value> {
    Json(json!({ "status": "healthy" }))
}

/// What this service is and which VMs it manages.
pub(super) async fn service(State(app): State<AppState>) -> Json<Value> {
    Json(json!({
        "service": "GitHub Runner Manager",
        "inactive_minutes": app.inactive.as_secs() / 60,
        "runner_configs": app.fleet.entries().iter().map(shown).collect::<Vec<_>>(),
    }))
}

fn shown(entry: &Entry) -> Value {
    json!({
        "repo": entry.repo.as_str(),
        "labels": entry.labels.iter().map(Label::as_str).collect::<Vec<_>>(),
        "vm_instance_name": entry.vm.name,
        "vm_instance_zone": entry.vm.zone,
    })
}
