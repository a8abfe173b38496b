//! The drain: a stop that cuts no job short.
//!
//! Between the last reading of the lists and the stop, GitHub may give the VM's runner a job. So the runner is removed
//! first: GitHub refuses that while the runner is busy, and gives a removed runner no job any more. Its flag lags, so a
//! removal may succeed although the runner has just got a job. Such a job shows in the lists, which are read once more: it
//! runs, or for a few seconds it is still queued. The VM registers its runner again at its next boot.

use http::StatusCode;
use tracing::warn;

use super::context::Turn;
use super::decide::Facts;
use super::demand::{self, Extent, RunnerLists};
use super::outcome::{Outcome, Status};
use super::scan::Coverage;
use super::task::JobRef;
use crate::clients::github::{Runner, RunnerScope};

/// The result of a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drained {
    /// No runner of the VM can get a job.
    Yes,
    /// There was none to remove, or it may not be removed: the stop is an ordinary one.
    Nothing,
}

/// Removes the VM's runners, and looks for a job that one of them got before.
///
/// # Errors
/// The VM must not be stopped: the outcome says why.
pub(super) async fn drain(
    turn: &Turn<'_>,
    facts: &Facts<'_>,
    lists: &RunnerLists,
) -> Result<Drained, Outcome> {
    let registered = lists.iter().filter_map(|(scope, list)| Some((scope, list.as_ref().ok()?)));
    let runners: Vec<(&RunnerScope, &Runner)> = registered
        .flat_map(|(scope, list)| list.iter().map(move |runner| (scope, runner)))
        .collect();
    for (scope, runner) in &runners {
        let vm = &turn.vm.vm;
        match turn.cx.github.remove_runner(scope, runner.id, turn.questions()).await {
            Ok(()) => {
                tracing::info!("VM {vm}: its runner {} was removed from {scope}", runner.name)
            }
            Err(error) if error.is_not_found() => {}
            Err(error) if error.status() == Some(StatusCode::UNPROCESSABLE_ENTITY) => {
                let because = format!("GitHub does not remove its runner from {scope}: it is busy");
                return Err(Outcome::new(Status::Busy, because));
            }
            Err(error) if error.is_forbidden() => {
                let permission = match scope {
                    RunnerScope::Repository(_) => "Administration: write",
                    RunnerScope::Organization(_) => "Self-hosted runners: write",
                };
                warn!(
                    "VM {vm}: it is stopped without a drain: its runner in {scope} may not be removed: grant the GitHub \
                     App {permission} ({error})"
                );
                return Ok(Drained::Nothing);
            }
            Err(error) => {
                let because = format!("its runner could not be removed from {scope} ({error})");
                return Err(Outcome::new(Status::Unknown, because));
            }
        }
    }
    if runners.is_empty() {
        return Ok(Drained::Nothing);
    }
    let demand = demand::jobs(turn, true, Extent::ToARunningJob, None).await;
    let counts = |job: &&JobRef| {
        let fits = facts.runner.as_ref().is_none_or(|runner| runner.fits(&job.labels));
        fits && !facts.vm.given_up.contains(&job.id)
    };
    if let Some(job) = demand.queued.iter().find(counts) {
        // The next pass knows: by then it runs, or it waits for a runner.
        let because = format!("{job} may have come to its runner just before that was removed");
        return Err(Outcome::new(Status::StopScheduled, because));
    }
    match (demand.running, demand.coverage) {
        (Some(job), _) => Err(Outcome::new(
            Status::Busy,
            format!("{job} came to its runner just before that was removed"),
        )),
        (None, Coverage::Partial { because, .. }) => Err(Outcome::new(
            Status::Unknown,
            format!("its runner was removed, but the open jobs were not all read ({because})"),
        )),
        (None, Coverage::Complete | Coverage::Forbidden(_)) => Ok(Drained::Yes),
    }
}
