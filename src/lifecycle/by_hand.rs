//! What an operator asks for.
//!
//! The same rules, once: an operator's start must not leak the VM either, and an operator's stop asks the
//! witnesses unless it is told not to. The mark, the hold and the second look are for scheduled stops only.

use super::mark::Mark;
use super::need::{Need, Started};
use super::schedule::{BUCKET, look_again};
use super::stop_check::{Asker, Check};
use super::task::{StartTask, StopTask};
use super::watch::Watch;
use super::{Error, Outcome, Phase, look, mark_of_event};
use crate::clock::Deadline;
use crate::fleet::ManagedVm;
use crate::state::AppState;

/// Starts the VM, with lease and mark. If it can't be started now, a start check without a job will.
///
/// # Errors
/// If the VM could not be read or started, or the lease not made; in that case it was not started.
pub async fn start(app: &AppState, vm: &ManagedVm, deadline: Deadline) -> Result<Outcome, Error> {
    let now = app.clock.now();
    let seen = look(app, &vm.vm, deadline).await?;
    let mut scheduled = None;
    if seen.status() == Phase::Leaving {
        scheduled = Some(schedule(app, vm, deadline).await?);
    }
    let need = Need { vm: &vm.vm, now, waiting: Watch::default(), renew: true, guarded: false };
    let started = need.act(app, &seen, deadline).await?;
    match (&started, scheduled) {
        (Started::Failed(error), _) => return Err(error.clone().into()),
        // It began to stop after it was read.
        (Started::NotNow(_), None) => scheduled = Some(schedule(app, vm, deadline).await?),
        _ => {}
    }
    let outcome = started.outcome().because_of("an operator asked for it");
    Ok(Outcome { again: scheduled, ..outcome })
}

async fn schedule(
    app: &AppState,
    vm: &ManagedVm,
    deadline: Deadline,
) -> Result<crate::clock::Timestamp, Error> {
    let now = app.clock.now();
    let due = look_again(now, BUCKET);
    StartTask::new(&vm.vm, mark_of_event(app, now), None, now).ask_at(app, due, deadline).await?;
    Ok(due)
}

/// Stops the VM if nothing needs it; `force` does not ask.
///
/// # Errors
/// If the VM could not be read or stopped, or the task that looks again not made.
pub async fn stop(
    app: &AppState,
    vm: &ManagedVm,
    force: bool,
    deadline: Deadline,
) -> Result<Outcome, Error> {
    let now = app.clock.now();
    let seen = look(app, &vm.vm, deadline).await?;
    let mark = (!app.marks.are_forbidden()).then(|| seen.mark.unwrap_or(Mark::BEFORE_ALL));
    let task = StopTask::new(&vm.vm, mark);
    let asker = if force { Asker::Insisting } else { Asker::Operator };
    Check { app, vm, asker, now, deadline }.answer(task, &seen).await
}
