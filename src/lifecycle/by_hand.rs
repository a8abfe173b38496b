//! What an operator asks for.
//!
//! The same rules, once: an operator's start must not leak the VM either, and an operator's stop asks the
//! witnesses unless it is told not to. The mark, the hold and the second look are for scheduled stops only.

use std::time::Duration;

use super::hold;
use super::mark::Mark;
use super::need::{Need, Started};
use super::schedule::{BUCKET, MINUTE, look_again, rounded_up};
use super::stop_check::{Asker, Check};
use super::task::{StartTask, StopTask};
use super::watch::Watch;
use super::{Error, Outcome, Phase, Seen, Status, look, mark_of_event};
use crate::clock::{Deadline, Timestamp};
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

async fn schedule(app: &AppState, vm: &ManagedVm, deadline: Deadline) -> Result<Timestamp, Error> {
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
    let task = follow_up(app, vm, &seen);
    let asker = if force { Asker::Insisting } else { Asker::Operator };
    Check { app, vm, asker, now, deadline }.answer(task, &seen).await
}

/// Keeps scheduled stop checks from stopping the VM, until it is released.
///
/// # Errors
/// If the VM could not be read, or its label not set.
pub async fn hold(app: &AppState, vm: &ManagedVm, deadline: Deadline) -> Result<Outcome, Error> {
    let seen = look(app, &vm.vm, deadline).await?;
    hold::write(app, &vm.vm, true, &seen.instance, deadline).await?;
    Ok(Outcome::new(Status::Held, "an operator asked for it"))
}

/// Lets scheduled stop checks decide again. One is made first, since nobody else may be looking: a VM that somebody
/// started in the console, and held, has no chain.
///
/// # Errors
/// If the VM could not be read, its stop check not made, or its label not cleared.
pub async fn release(app: &AppState, vm: &ManagedVm, deadline: Deadline) -> Result<Outcome, Error> {
    let now = app.clock.now();
    let seen = look(app, &vm.vm, deadline).await?;
    let outcome = Outcome::new(Status::Released, "an operator asked for it");
    let outcome = if seen.status().is_down() {
        outcome
    } else {
        let due = after_release(now, seen.mark, app.inactive);
        follow_up(app, vm, &seen).ask_at(app, due, deadline).await?;
        outcome.again_at(due)
    };
    hold::write(app, &vm.vm, false, &seen.instance, deadline).await?;
    Ok(outcome)
}

/// When a VM that is released is looked at: soon, but its last job counts as ever.
fn after_release(now: Timestamp, mark: Option<Mark>, inactive: Duration) -> Timestamp {
    let idle_long_enough = mark.map(|mark| rounded_up(mark.time() + inactive));
    look_again(now, MINUTE).max(idle_long_enough.unwrap_or(Timestamp::UNIX_EPOCH))
}

/// The stop check that an operator's command leaves behind: whatever marks the VM from here on supersedes it.
fn follow_up(app: &AppState, vm: &ManagedVm, seen: &Seen) -> StopTask {
    let mark = (!app.marks.are_forbidden()).then(|| seen.mark.unwrap_or(Mark::BEFORE_ALL));
    StopTask::new(&vm.vm, mark)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_released_vm_is_looked_at_soon_but_not_before_it_was_idle_long_enough() {
        let at = |minutes| Timestamp::from_unix_seconds(60 * minutes);
        let looks = |mark: Option<u64>, inactive: u64, due| {
            let mark = mark.map(|minutes| Mark::at(at(minutes)));
            let due_at = after_release(at(100), mark, Duration::from_secs(60 * inactive));
            assert_eq!(due_at, at(due), "{mark:?}");
        };
        looks(None, 3, 101);
        looks(Some(40), 3, 101);
        looks(Some(98), 3, 101);
        looks(Some(99), 3, 102);
        looks(Some(90), 60, 150);
    }
}
