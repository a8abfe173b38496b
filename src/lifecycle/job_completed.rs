//! A job is over: the VM is idle from now on, unless another comes.

use super::mark::{self, Mark};
use super::schedule::rounded_up;
use super::task::StopTask;
use super::{Error, Outcome, Status, look, mark_of_event};
use crate::clock::Deadline;
use crate::fleet::ManagedVm;
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
    let mark = mark_of_event(app, now);
    let from = mark.map_or_else(|| rounded_up(now), Mark::time);
    let due = rounded_up(from + app.inactive);
    let task = StopTask::new(&vm.vm, mark);
    let (made, seen) = tokio::join!(task.ask_at(app, due, deadline), look(app, &vm.vm, deadline));
    made?;
    match (seen, mark) {
        (Ok(seen), Some(mark)) => mark::write(app, &vm.vm, mark, &seen.instance, deadline).await,
        (Ok(_), None) => {}
        (Err(error), _) => tracing::warn!("VM {}: its mark was not written: {error}", vm.vm),
    }
    Ok(Outcome::new(Status::Ok, format!("job {job} is completed")).again_at(due))
}
