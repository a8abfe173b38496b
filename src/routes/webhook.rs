//! `POST /github/webhook`: GitHub's deliveries about jobs.

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderValue;

use super::error::ApiError;
use super::extract::SignedDelivery;
use super::webhook_event::WebhookEvent;
use super::{OUTCOME, log, outcome_header};
use crate::clock::Deadline;
use crate::lifecycle::Outcome;
use crate::lifecycle::events::{
    CompletedJob, WEBHOOK_TIME, is_old, job_completed, job_queued, job_waiting, old_job_queued,
};
use crate::lifecycle::task::JobRef;
use crate::state::AppState;

/// The reply. Its body is the same for every event that was understood; the header has the outcome.
type Reply = ([(&'static str, HeaderValue); 2], &'static str);

pub(super) async fn receive(
    State(app): State<AppState>,
    delivery: SignedDelivery,
) -> Result<Reply, ApiError> {
    let deadline = Deadline::after(WEBHOOK_TIME);
    let outcome = act(&app, delivery.into_event(), deadline).await?;
    let json = ("content-type", HeaderValue::from_static("application/json"));
    Ok(([json, (OUTCOME, outcome_header(&outcome))], r#"{"status":"ok"}"#))
}

/// Acts on a delivery and describes the outcome.
async fn act(app: &AppState, event: WebhookEvent, deadline: Deadline) -> Result<String, ApiError> {
    let (cx, fleet) = (&app.cx, &app.cx.fleet);
    let (vm, outcome) = match event {
        WebhookEvent::Nothing(why) => return Ok(nothing_to_do(why)),
        WebhookEvent::Completed(job) => {
            let vm = fleet.route_finished(&job.repo, &job.labels, job.runner.as_deref());
            let Some(vm) = vm else { return Ok(nothing_to_do(job.unmatched())) };
            let pool = fleet.pool(&job.repo, &job.labels);
            let is_pooled = pool.is_some_and(|pool| pool.vms().len() > 1);
            let job = CompletedJob { id: job.id, completed_at: job.completed_at, is_pooled };
            (Arc::clone(vm), job_completed(cx, vm, job, deadline).await?)
        }
        WebhookEvent::Queued { job, awaits_review } => {
            let Some(pool) = fleet.pool(&job.repo, &job.labels) else {
                return Ok(nothing_to_do(job.unmatched()));
            };
            // The job waits for a runner from this event on, however long it waited for a review before.
            let now = cx.clock.now();
            let is_old = job.created_at.is_some_and(|created| is_old(pool, created, now));
            let job = JobRef { repo: job.repo, id: job.id, queued_at: now, labels: job.labels };
            match (awaits_review, is_old) {
                (true, _) => job_waiting(cx, pool, job, deadline).await?,
                (false, true) => old_job_queued(cx, pool, job, deadline).await?,
                (false, false) => job_queued(cx, pool, job, deadline).await?,
            }
        }
    };
    log(&vm.vm, &outcome);
    Ok(describe(&vm.vm.name, &outcome))
}

fn describe(vm: &str, outcome: &Outcome) -> String {
    format!("{vm}: {outcome}")
}

fn nothing_to_do(why: String) -> String {
    tracing::info!("nothing to do: {why}");
    format!("nothing to do: {why}")
}
