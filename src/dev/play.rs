//! The `/play` endpoints of the embedded cloud, for actions that have no API: a job is queued, a VM is preempted.

use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use serde::Deserialize;

use crate::emulators::Cloud;
use crate::emulators::github::Permission;

pub(super) fn router(cloud: Cloud) -> Router {
    Router::new()
        .route("/play/job", post(job))
        .route("/play/vm", post(vm))
        .route("/play/github", post(github))
        .route("/play/lose", post(lose))
        .route("/play/identity", get(identity))
        .route("/play/forbid", post(forbid))
        .route("/play/permit", post(permit))
        .with_state(cloud)
}

type PlayResult = Result<String, (StatusCode, String)>;

fn bad_request(why: impl Into<String>) -> (StatusCode, String) {
    (StatusCode::BAD_REQUEST, format!("{}\n", why.into()))
}

#[derive(Deserialize)]
struct Job {
    repo: String,
    #[serde(default = "self_hosted")]
    labels: String,
    #[serde(default = "two_minutes")]
    seconds: u64,
}

fn self_hosted() -> String {
    "self-hosted".into()
}

fn two_minutes() -> u64 {
    120
}

async fn job(State(cloud): State<Cloud>, Query(job): Query<Job>) -> PlayResult {
    if !["acme/app", "acme/web"].iter().any(|known| known.eq_ignore_ascii_case(&job.repo)) {
        return Err(bad_request("repo must be acme/app or acme/web"));
    }
    let labels = job.labels.split(',').map(|label| label.trim().to_owned());
    let id = cloud.github.queue_job(&job.repo, labels, Duration::from_secs(job.seconds));
    Ok(format!("job {id} is queued\n"))
}

#[derive(Deserialize)]
struct VmAction {
    name: String,
    #[serde(rename = "do")]
    action: String,
}

async fn vm(
    State(cloud): State<Cloud>,
    Query(VmAction { name, action }): Query<VmAction>,
) -> PlayResult {
    if !cloud.compute.instances().contains(&name) {
        return Err(bad_request(format!(
            "name must be one of: {}",
            cloud.compute.instances().join(", ")
        )));
    }
    match action.as_str() {
        "preempt" => cloud.compute.preempt(&name),
        "stop" => cloud.compute.stop_by_hand(&name),
        "start" => cloud.compute.start_by_hand(&name),
        _ => return Err(bad_request("do must be preempt, stop or start")),
    }
    Ok(format!("{name} is {}\n", cloud.compute.status(&name)))
}

#[derive(Deserialize)]
struct Outage {
    outage: bool,
}

async fn github(State(cloud): State<Cloud>, Query(outage): Query<Outage>) -> PlayResult {
    cloud.github.outage(outage.outage);
    Ok(format!("GitHub is {}\n", if outage.outage { "down" } else { "back" }))
}

#[derive(Deserialize)]
struct Loss {
    webhooks: u32,
}

async fn lose(State(cloud): State<Cloud>, Query(Loss { webhooks }): Query<Loss>) -> PlayResult {
    cloud.github.lose_next_webhook(webhooks);
    Ok(format!("the next {webhooks} webhook(s) will be lost\n"))
}

#[derive(Deserialize)]
struct IdentityOf {
    vm: String,
    zone: String,
    audience: String,
}

/// The identity token that a VM's metadata server would issue.
async fn identity(State(cloud): State<Cloud>, Query(vm): Query<IdentityOf>) -> String {
    cloud.identities.sign(&cloud.identities.claims(&vm.vm, &vm.zone, &vm.audience))
}

#[derive(Deserialize)]
struct PermissionName {
    permission: String,
}

/// A permission by its name in GitHub's API; other names are permissions of Compute Engine.
fn github_permission(name: &str) -> Option<Permission> {
    match name {
        "actions" => Some(Permission::Actions),
        "administration" => Some(Permission::Administration),
        "organization_self_hosted_runners" => Some(Permission::OrgRunners),
        _ => None,
    }
}

async fn forbid(
    State(cloud): State<Cloud>,
    Query(PermissionName { permission }): Query<PermissionName>,
) -> PlayResult {
    match github_permission(&permission) {
        Some(github) => cloud.github.forbid(github),
        None => cloud.compute.forbid(&permission),
    }
    Ok(format!("{permission} is forbidden\n"))
}

async fn permit(
    State(cloud): State<Cloud>,
    Query(PermissionName { permission }): Query<PermissionName>,
) -> PlayResult {
    match github_permission(&permission) {
        Some(github) => cloud.github.permit(github),
        None => cloud.compute.permit(&permission),
    }
    Ok(format!("{permission} is permitted\n"))
}
