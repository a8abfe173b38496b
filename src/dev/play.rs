//! What a player does to the embedded cloud: the part of the world that has no API of its own.

use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use serde::Deserialize;

use crate::emulators::Cloud;
use crate::emulators::github::Permission;

/// The paths below `/play`, which none of the APIs has.
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

type Reply = Result<String, (StatusCode, String)>;

fn bad(why: impl Into<String>) -> (StatusCode, String) {
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

async fn job(State(cloud): State<Cloud>, Query(job): Query<Job>) -> Reply {
    if !["acme/app", "acme/web"].iter().any(|known| known.eq_ignore_ascii_case(&job.repo)) {
        return Err(bad("repo is acme/app or acme/web"));
    }
    let labels = job.labels.split(',').map(|label| label.trim().to_owned());
    let id = cloud.github.queue_job(&job.repo, labels, Duration::from_secs(job.seconds));
    Ok(format!("job {id} is queued\n"))
}

#[derive(Deserialize)]
struct Deed {
    name: String,
    #[serde(rename = "do")]
    deed: String,
}

async fn vm(State(cloud): State<Cloud>, Query(Deed { name, deed }): Query<Deed>) -> Reply {
    if !cloud.compute.instances().contains(&name) {
        return Err(bad(format!("name is one of: {}", cloud.compute.instances().join(", "))));
    }
    match deed.as_str() {
        "preempt" => cloud.compute.preempt(&name),
        "stop" => cloud.compute.stop_by_hand(&name),
        "start" => cloud.compute.start_by_hand(&name),
        _ => return Err(bad("do is preempt, stop or start")),
    }
    Ok(format!("{name} is {}\n", cloud.compute.status(&name)))
}

#[derive(Deserialize)]
struct Weather {
    outage: bool,
}

async fn github(State(cloud): State<Cloud>, Query(weather): Query<Weather>) -> Reply {
    cloud.github.outage(weather.outage);
    Ok(format!("GitHub is {}\n", if weather.outage { "down" } else { "back" }))
}

#[derive(Deserialize)]
struct Loss {
    webhooks: u32,
}

async fn lose(State(cloud): State<Cloud>, Query(Loss { webhooks }): Query<Loss>) -> Reply {
    cloud.github.lose_next_webhook(webhooks);
    Ok(format!("the next webhooks to be lost: {webhooks}\n"))
}

#[derive(Deserialize)]
struct Who {
    vm: String,
    zone: String,
    audience: String,
}

/// What the metadata server of a VM says: who it is, signed.
async fn identity(State(cloud): State<Cloud>, Query(who): Query<Who>) -> String {
    cloud.identities.sign(&cloud.identities.claims(&who.vm, &who.zone, &who.audience))
}

#[derive(Deserialize)]
struct Named {
    permission: String,
}

/// GitHub's permissions by the names of its settings page; all others are Compute Engine's.
fn github_permission(name: &str) -> Option<Permission> {
    match name {
        "actions" => Some(Permission::Actions),
        "administration" => Some(Permission::Administration),
        "organization_self_hosted_runners" => Some(Permission::OrgRunners),
        _ => None,
    }
}

async fn forbid(State(cloud): State<Cloud>, Query(Named { permission }): Query<Named>) -> Reply {
    match github_permission(&permission) {
        Some(github) => cloud.github.forbid(github),
        None => cloud.compute.forbid(&permission),
    }
    Ok(format!("{permission} is forbidden\n"))
}

async fn permit(State(cloud): State<Cloud>, Query(Named { permission }): Query<Named>) -> Reply {
    match github_permission(&permission) {
        Some(github) => cloud.github.permit(github),
        None => cloud.compute.permit(&permission),
    }
    Ok(format!("{permission} is permitted\n"))
}
