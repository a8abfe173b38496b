//! A job waits for the VM.
//!
//! Two rounds of calls until the VM starts: read it and make the start check; start it and make the lease.
//! A third writes the mark. Deliveries that overlap [share](super::in_flight) them: the jobs of a matrix all need
//! the same.

use super::in_flight::Event;
use super::need::Need;
use super::schedule::{BUCKET, FIRST_CHECK, look_again, rounded_up};
use super::task::{StartTask, WaitingJob};
use super::watch::Watch;
use super::{Error, Outcome, Phase, Seen, Status, look, mark_of_event};
use crate::clients;
use crate::clients::cloud_tasks::Created;
use crate::clock::{Deadline, Timestamp};
use crate::fleet::{ManagedVm, Vm};
use crate::state::AppState;

/// A matching `queued` event: the VM is needed, with the mark of now.
///
/// # Errors
/// If no start check could be made, or the VM does not exist: GitHub then shows a failed delivery, which can
/// be redelivered. The VM may have been started all the same.
pub async fn job_queued(
    app: &AppState,
    vm: &ManagedVm,
    job: WaitingJob,
    deadline: Deadline,
) -> Result<Outcome, Error> {
    let because = format!("job {} of {} waits", job.id, job.repo);
    let now = app.clock.now();
    let work = |deadline| {
        let (app, vm, job) = (app.clone(), vm.vm.clone(), job.clone());
        async move { bring_up(&app, &vm, job, now, Watch::default(), deadline).await }
    };
    let outcome = app.in_flight.share(Event::Queued, &vm.vm, now, deadline, work).await?;
    Ok(outcome.because_of(&because))
}

/// The same, where a stop check found the job.
pub(super) async fn vm_needed(
    app: &AppState,
    vm: &Vm,
    job: WaitingJob,
    waiting: Watch,
    deadline: Deadline,
) -> Result<Outcome, Error> {
    let because = format!("job {} of {} waits", job.id, job.repo);
    let outcome = bring_up(app, vm, job, app.clock.now(), waiting, deadline).await?;
    Ok(outcome.because_of(&because))
}

/// What is done, and what stands in its way.
async fn bring_up(
    app: &AppState,
    vm: &Vm,
    job: WaitingJob,
    now: Timestamp,
    waiting: Watch,
    deadline: Deadline,
) -> Result<Outcome, Error> {
    let mark = mark_of_event(app, now);
    let check = StartTask { waiting: waiting.clone(), ..StartTask::new(vm, mark, Some(job), now) };
    let due = rounded_up(now + FIRST_CHECK);
    let (seen, checked) =
        tokio::join!(look(app, vm, deadline), check.clone().ask_at(app, due, deadline));
    let seen = match seen {
        Ok(seen) => seen,
        Err(Error::Upstream(error)) => {
            // Unread, it cannot be started; the check will.
            checked?;
            tracing::error!("VM {vm} could not be read: {error}");
            let because = format!("but the VM could not be read: {error}");
            return Ok(Outcome::new(Status::StartScheduled, because).again_at(due));
        }
        Err(error) => return Err(error),
    };
    let need = Need {
        vm,
        now,
        waiting,
        // Else another event of the same half minute did it already.
        renew: mark.is_none() || seen.mark < mark,
        guarded: checked.is_ok(),
    };
    let soon = check_soon(app, check, &seen, now, deadline);
    let (started, soon) = tokio::join!(need.act(app, &seen, deadline), soon);
    let started = started?;
    // Whatever was started: if nothing looks again, the event has to be sent again.
    let next = match (soon, checked) {
        (Some((due, Ok(_))), _) => due,
        (_, checked) => checked.map(|_| due)?,
    };
    Ok(started.outcome().again_at(next))
}

/// Another start check in half a minute, if the VM can't be started now; the two merge later on.
async fn check_soon(
    app: &AppState,
    check: StartTask,
    seen: &Seen,
    now: Timestamp,
    deadline: Deadline,
) -> Option<(Timestamp, Result<Created, clients::Error>)> {
    if seen.status() != Phase::Leaving {
        return None;
    }
    let due = look_again(now, BUCKET);
    Some((due, check.ask_at(app, due, deadline).await))
}

/// A job that waits for a review: the VM is not needed yet, but the word is known to be stale at times, so
/// a start check will ask. The VM is read only to see that there is one: 2xx promises that it will come.
///
/// # Errors
/// If the start check could not be made, or the VM does not exist.
pub async fn job_pending_review(
    app: &AppState,
    vm: &ManagedVm,
    job: WaitingJob,
    deadline: Deadline,
) -> Result<Outcome, Error> {
    let because = format!("job {} of {} waits for a review", job.id, job.repo);
    let now = app.clock.now();
    let work = |deadline| {
        let (app, vm, job) = (app.clone(), vm.vm.clone(), job.clone());
        async move { look_later(&app, &vm, job, now, deadline).await }
    };
    let outcome = app.in_flight.share(Event::PendingReview, &vm.vm, now, deadline, work).await?;
    Ok(outcome.because_of(&because))
}

async fn look_later(
    app: &AppState,
    vm: &Vm,
    job: WaitingJob,
    now: Timestamp,
    deadline: Deadline,
) -> Result<Outcome, Error> {
    // No mark goes with it: there was no event that needed the VM.
    let check = StartTask::new(vm, None, Some(job), now);
    let due = rounded_up(now + FIRST_CHECK);
    let (seen, checked) = tokio::join!(look(app, vm, deadline), check.ask_at(app, due, deadline));
    if let Err(error @ Error::NoSuchInstance(_)) = seen {
        return Err(error);
    }
    checked?;
    Ok(Outcome::new(Status::StartScheduled, "").again_at(due))
}
