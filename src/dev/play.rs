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

/// The App's permissions, by their names in GitHub's API.
const OF_GITHUB: [(&str, Permission); 4] = [
    ("actions", Permission::Actions),
    ("administration", Permission::Administration),
    ("organization_self_hosted_runners", Permission::OrgRunners),
    ("registration", Permission::Registration),
];

const OF_COMPUTE_ENGINE: [&str; 7] = [
    "compute.instances.get",
    "compute.instances.list",
    "compute.instances.resume",
    "compute.instances.setLabels",
    "compute.instances.start",
    "compute.instances.stop",
    "compute.zoneOperations.list",
];

const OF_CLOUD_TASKS: [&str; 2] = ["cloudtasks.queues.get", "cloudtasks.tasks.create"];

/// Grants the permission, or takes it away.
fn grant(cloud: &Cloud, name: &str, granted: bool) -> PlayResult {
    let github = OF_GITHUB.iter().find(|(known, _)| *known == name);
    match (github, granted) {
        (Some((_, permission)), true) => cloud.github.permit(*permission),
        (Some((_, permission)), false) => cloud.github.forbid(*permission),
        (None, true) if OF_COMPUTE_ENGINE.contains(&name) => cloud.compute.permit(name),
        (None, false) if OF_COMPUTE_ENGINE.contains(&name) => cloud.compute.forbid(name),
        (None, true) if OF_CLOUD_TASKS.contains(&name) => cloud.tasks.permit(name),
        (None, false) if OF_CLOUD_TASKS.contains(&name) => cloud.tasks.forbid(name),
        (None, _) => {
            let of_github = OF_GITHUB.iter().map(|(name, _)| *name);
            let all = OF_COMPUTE_ENGINE.into_iter().chain(OF_CLOUD_TASKS).chain(of_github);
            let all: Vec<&str> = all.collect();
            return Err(bad_request(format!("permission must be one of: {}", all.join(", "))));
        }
    }
    Ok(format!("{name} is {}\n", if granted { "permitted" } else { "forbidden" }))
}

async fn forbid(
    State(cloud): State<Cloud>,
    Query(PermissionName { permission }): Query<PermissionName>,
) -> PlayResult {
    grant(&cloud, &permission, false)
}

async fn permit(
    State(cloud): State<Cloud>,
    Query(PermissionName { permission }): Query<PermissionName>,
) -> PlayResult {
    grant(&cloud, &permission, true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulators::testing::World;

    #[tokio::test(start_paused = true)]
    async fn only_permissions_that_count_can_be_taken_away() {
        let cloud = World::new().await.cloud;
        let of_github = OF_GITHUB.iter().map(|(name, _)| *name);
        for name in OF_COMPUTE_ENGINE.into_iter().chain(OF_CLOUD_TASKS).chain(of_github) {
            assert_eq!(grant(&cloud, name, false), Ok(format!("{name} is forbidden\n")));
            assert_eq!(grant(&cloud, name, true), Ok(format!("{name} is permitted\n")));
        }
        let (status, problem) = grant(&cloud, "compute.instances.fly", false).unwrap_err();
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(problem.contains("must be one of: compute.instances.get, "), "{problem}");
    }
}
