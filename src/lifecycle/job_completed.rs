//! A job is over: the VM is idle from now on, unless another comes.

use super::in_flight::Event;
use super::mark::{self, Mark};
use super::schedule::rounded_up;
use super::task::StopTask;
use super::{Error, Outcome, Status, look, mark_of_event};
use crate::clock::{Deadline, Timestamp};
use crate::fleet::{ManagedVm, Vm};
use crate::state::AppState;

/// A matching `completed` event: the stop task, then the mark, which supersedes all tasks before it.
///
/// # Errors
/// If no task could be made: GitHub then shows a failed delivery, which can be redelivered.
pub async fn job_completed(
    app: &AppState,
    vm: &ManagedVm,
    job: u64,
    deadline: Deadline,
) -> Result<Outcome, Error> {
    let now = app.clock.now();
    let work = |deadline| {
        let (app, vm) = (app.clone(), vm.vm.clone());
        async move { idle_from_now(&app, &vm, now, deadline).await }
    };
    let outcome = app.in_flight.share(Event::Completed, &vm.vm, now, deadline, work).await?;
    Ok(outcome.because_of(&format!("job {job} is completed")))
}

async fn idle_from_now(
    app: &AppState,
    vm: &Vm,
    now: Timestamp,
    deadline: Deadline,
) -> Result<Outcome, Error> {
    let mark = mark_of_event(app, now);
    let from = mark.map_or_else(|| rounded_up(now), Mark::time);
    let due = rounded_up(from + app.inactive);
    let task = StopTask::new(vm, mark);
    let (made, seen) = tokio::join!(task.ask_at(app, due, deadline), look(app, vm, deadline));
    made?;
    match (seen, mark) {
        (Ok(seen), Some(mark)) => mark::write(app, vm, mark, &seen.instance, deadline).await,
        (Ok(_), None) => {}
        (Err(error), _) => tracing::warn!("VM {vm}: its mark was not written: {error}"),
    }
    Ok(Outcome::new(Status::Ok, "").again_at(due))
}
