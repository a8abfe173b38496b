//! `POST /github/webhook`: what happens to jobs.

use axum::extract::State;
use axum::http::HeaderValue;

use super::error::ApiError;
use super::extract::{Event, SignedDelivery, WorkflowJobEvent};
use super::{OUTCOME, log, outcome_header};
use crate::clock::Deadline;
use crate::fleet::Label;
use crate::lifecycle::job_completed::job_completed;
use crate::lifecycle::job_queued::{job_pending_review, job_queued};
use crate::lifecycle::task::WaitingJob;
use crate::lifecycle::{Outcome, WEBHOOK_TIME};
use crate::state::AppState;

/// The reply is the same for every event that was understood; the header tells them apart.
type Reply = ([(&'static str, HeaderValue); 2], &'static str);

pub(super) async fn receive(
    State(app): State<AppState>,
    delivery: SignedDelivery,
) -> Result<Reply, ApiError> {
    let deadline = Deadline::after(WEBHOOK_TIME);
    let outcome = match delivery.into_event() {
        Event::WorkflowJob(event) => on_workflow_job(&app, *event, deadline).await?,
        Event::Other(name) => {
            let name: String =
                name.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').take(60).collect();
            nothing_to_do(format!("the event {name} is not one that needs a VM"))
        }
    };
    let json = ("content-type", HeaderValue::from_static("application/json"));
    Ok(([json, (OUTCOME, outcome_header(&outcome))], r#"{"status":"ok"}"#))
}

/// What was done, in words.
async fn on_workflow_job(
    app: &AppState,
    event: WorkflowJobEvent,
    deadline: Deadline,
) -> Result<String, ApiError> {
    let WorkflowJobEvent { action, workflow_job: job, repository } = event;
    let repo = repository.full_name;
    let vm = match action.as_str() {
        "queued" => app.fleet.route(&repo, &job.labels),
        "completed" => app.fleet.route_finished(&repo, &job.labels, job.runner_name.as_deref()),
        _ => {
            return Ok(nothing_to_do(format!(
                "job {}: only queued and completed need something done",
                job.id
            )));
        }
    };
    let Some(vm) = vm else {
        let labels = job.labels.iter().map(Label::as_str).collect::<Vec<_>>().join(", ");
        // They are anybody's text: a line break must not begin a line of the log.
        let labels = labels.escape_default();
        return Ok(nothing_to_do(format!(
            "job {} of {}: no entry of RUNNER_CONFIG matches [{labels}]",
            job.id,
            repo.as_str().escape_default()
        )));
    };
    let outcome = if action == "completed" {
        job_completed(app, vm, job.id, deadline).await?
    } else {
        // From this event on it waits for a runner, however long it waited for a review before.
        let waiting = WaitingJob { repo, id: job.id, queued_at: app.clock.now().unix_seconds() };
        if job.status.as_deref() == Some("waiting") {
            job_pending_review(app, vm, waiting, deadline).await?
        } else {
            job_queued(app, vm, waiting, deadline).await?
        }
    };
    log(&vm.vm, &outcome);
    Ok(told(&vm.vm.name, &outcome))
}

fn told(vm: &str, outcome: &Outcome) -> String {
    format!("{vm}: {outcome}")
}

fn nothing_to_do(why: String) -> String {
    tracing::info!("nothing to do: {why}");
    format!("nothing to do: {why}")
}
