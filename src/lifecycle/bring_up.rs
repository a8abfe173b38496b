//! The first step of an event that needs a VM: a pass, then the start and the label.

use super::context::Turn;
use super::error::Error;
use super::labels::{self, Change};
use super::outcome::{Outcome, Status};
use super::reconcile::outcome_of_start;
use super::schedule::{BUCKET, FIRST_PASS, rounded_up};
use super::task::{Evidence, Task};
use super::vm::{Started, VmSnapshot, observe, start_by_status};

/// Something needs the VM: read it and create a pass; then start it and write its label.
pub(super) async fn bring_up(turn: &Turn<'_>, evidence: Evidence) -> Result<Outcome, Error> {
    let idle_since = turn.idle_since();
    let task = Task::new(&turn.vm.vm, idle_since);
    let task = match evidence {
        Evidence::Job(job) => task.with_job(job),
        Evidence::Operator(since) => task.with_operator(since),
    };
    let due = rounded_up(turn.now + FIRST_PASS);
    let (read, scheduled) = tokio::join!(
        observe(turn.cx, &turn.vm.vm, turn.deadline),
        turn.schedule(task.clone(), due)
    );
    scheduled?;
    let read = match read {
        Ok(read) => read,
        Err(Error::Upstream(error)) => {
            tracing::error!("VM {} could not be read: {error}", turn.vm.vm);
            let because = format!("but the VM could not be read: {error}");
            return Ok(Outcome::new(Status::StartScheduled, because).next_check_at(due));
        }
        Err(error) => return Err(error),
    };
    let (started, _) = tokio::join!(
        start(turn, &read, &task),
        labels::try_write(turn, &read, Change::IdleSince(idle_since)),
    );
    let next_check = started.next_check.unwrap_or(due);
    Ok(started.next_check_at(next_check))
}

/// Starts the VM, or has another pass look sooner if it is on its way down. If that one cannot be created, the first is
/// pending all the same.
pub(super) async fn start(turn: &Turn<'_>, read: &VmSnapshot, task: &Task) -> Outcome {
    let started = start_by_status(turn, read).await;
    let on_its_way_down = matches!(started, Started::NotYet(_));
    let outcome = outcome_of_start(started);
    if !on_its_way_down {
        return outcome;
    }
    let soon = rounded_up(turn.now + BUCKET);
    match turn.schedule(task.clone(), soon).await {
        Ok(()) => outcome.next_check_at(soon),
        Err(_) => outcome,
    }
}
