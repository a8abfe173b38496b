//! Webhooks: a job is queued, or completed.
//!
//! An event makes sure that a pass will come, and takes the obvious first step at once. The pass comes first: without
//! one nothing would look after the VM, so nothing is started.

use std::sync::Arc;
use std::time::Duration;

use super::bring_up::bring_up;
use super::context::{Context, Turn};
use super::demand::{self, JobState};
use super::error::Error;
use super::in_flight::{Event, key};
use super::labels::{self, Change};
use super::outcome::{Outcome, Status};
use super::placement;
use super::pool_queue::Placed;
use super::schedule::{
    FIRST_PASS, IdleSince, MINUTE, PASS_INTERVAL, due_before, next_interval, rounded_up,
};
use super::task::{Evidence, JobRef, Task};
use super::vm::{Phase, observe};
use crate::clock::{Deadline, Timestamp};
use crate::fleet::{ManagedVm, Pool};

/// The longest life of a webhook's handler: GitHub hangs up after 10 s, cold start included.
pub const WEBHOOK_TIME: Duration = Duration::from_secs(8);

/// True if the job was created so long ago that GitHub has to be asked about it before a VM is started. The limit is a
/// day: GitHub fails a job after that time in the queue, so an older one waited for a review, or is over. In a pool it
/// is a minute, since a repeated delivery could take a second VM.
pub fn is_old(pool: &Pool, created_at: Timestamp, now: Timestamp) -> bool {
    let limit = if pool.vms().len() > 1 { MINUTE } else { JobRef::QUEUE_LIMIT };
    now.since(created_at) >= limit
}

/// A job is queued for the VMs of the pool.
///
/// # Errors
/// No pass could be created, or the VM does not exist: GitHub then shows a failed delivery, which can be redelivered.
pub async fn job_queued(
    cx: &Context,
    pool: &Pool,
    job: JobRef,
    deadline: Deadline,
) -> Result<Placed, Error> {
    let [vm] = pool.vms() else { return placement::job_queued(cx, pool, job, deadline).await };
    let because = format!("{job} is queued");
    let now = cx.clock.now();
    let work = |deadline| {
        let (cx, vm, job) = (cx.clone(), Arc::clone(vm), job.clone());
        async move {
            let turn = Turn { cx: &cx, vm: &vm, now, deadline };
            bring_up(&turn, Evidence::Job(job)).await
        }
    };
    let outcome = cx.in_flight.share(key(Event::Queued, &vm.vm, now), deadline, work).await?;
    Ok((Arc::clone(vm), outcome.because_of(&because)))
}

/// A job is queued that was created [long ago](is_old). The delivery may be repeated, so GitHub is asked whether the job
/// still waits before anything is started.
///
/// # Errors
/// As [`job_queued`].
pub async fn old_job_queued(
    cx: &Context,
    pool: &Pool,
    job: JobRef,
    deadline: Deadline,
) -> Result<Placed, Error> {
    let turn = Turn::new(cx, pool.first(), deadline);
    match demand::job(&turn, &job).await {
        JobState::Queued(_) => job_queued(cx, pool, job, deadline).await,
        JobState::Pending => job_waiting(cx, pool, job, deadline).await,
        JobState::Unavailable(why) | JobState::Forbidden(why) => {
            let because =
                format!("{job} is old, and it is not known whether it still waits ({why})");
            ask_in_a_pass(cx, pool, job, &because, deadline).await
        }
        JobState::Running(_)
        | JobState::ForAnother(_)
        | JobState::Completed(_)
        | JobState::Gone(_) => {
            let because = format!("{job} no longer waits, so nothing is started");
            Ok((Arc::clone(pool.first()), Outcome::new(Status::Ok, because)))
        }
    }
}

/// A job is queued, but waits for a review first. The VM is not needed yet. But GitHub sometimes reports this for a job
/// that no longer waits for a review, so a pass asks. The VM is read only to see that it exists.
///
/// # Errors
/// As [`job_queued`].
pub async fn job_waiting(
    cx: &Context,
    pool: &Pool,
    job: JobRef,
    deadline: Deadline,
) -> Result<Placed, Error> {
    let because = format!("{job} waits for a review");
    ask_in_a_pass(cx, pool, job, &because, deadline).await
}

/// A pass of the first VM: it hands the job on if that one is busy.
async fn ask_in_a_pass(
    cx: &Context,
    pool: &Pool,
    job: JobRef,
    because: &str,
    deadline: Deadline,
) -> Result<Placed, Error> {
    let vm = pool.first();
    let now = cx.clock.now();
    let work = |deadline| {
        let (cx, vm, job) = (cx.clone(), Arc::clone(vm), job.clone());
        async move {
            let turn = Turn { cx: &cx, vm: &vm, now, deadline };
            ask_later(&turn, job).await
        }
    };
    let outcome = cx.in_flight.share(key(Event::Waiting, &vm.vm, now), deadline, work).await?;
    Ok((Arc::clone(vm), outcome.because_of(because)))
}

async fn ask_later(turn: &Turn<'_>, job: JobRef) -> Result<Outcome, Error> {
    // No event needed the VM, so the pass supersedes nothing.
    let task = Task::new(&turn.vm.vm, IdleSince::BEFORE_ALL).with_job(job);
    let due = rounded_up(turn.now + FIRST_PASS);
    let (read, scheduled) =
        tokio::join!(observe(turn.cx, &turn.vm.vm, turn.deadline), turn.schedule(task, due));
    let is_up = match read {
        Err(error @ Error::NoSuchInstance(_)) => return Err(error),
        read => read.is_ok_and(|read| read.phase == Phase::Up),
    };
    scheduled?;
    let status = if is_up { Status::AlreadyRunning } else { Status::StartScheduled };
    Ok(Outcome::new(status, "").next_check_at(due))
}

/// A job that is over.
#[derive(Clone, Copy, Debug)]
pub struct CompletedJob {
    pub id: u64,
    pub completed_at: Option<Timestamp>,
    /// Several VMs serve such jobs, so one of them was claimed for it.
    pub is_pooled: bool,
}

/// A job is over: the VM has been idle since its end, unless another comes. A delivery that is repeated days later then
/// changes nothing.
///
/// # Errors
/// As [`job_queued`].
pub async fn job_completed(
    cx: &Context,
    vm: &Arc<ManagedVm>,
    job: CompletedJob,
    deadline: Deadline,
) -> Result<Outcome, Error> {
    let now = cx.clock.now();
    // GitHub's clock may be ahead.
    let end = job.completed_at.map_or(now, |at| at.min(now));
    // After an outage many come late at once: fewer values make fewer passes.
    let end = if now.since(end) < PASS_INTERVAL { end } else { next_interval(end) };
    let work = |deadline| {
        let (cx, vm) = (cx.clone(), Arc::clone(vm));
        async move { idle_since(&Turn { cx: &cx, vm: &vm, now, deadline }, job, end).await }
    };
    let outcome = cx.in_flight.share(key(Event::Completed, &vm.vm, end), deadline, work).await?;
    Ok(outcome.because_of(&format!("job {} is completed", job.id)))
}

/// The pass first, then the label, which supersedes all passes before it.
async fn idle_since(turn: &Turn<'_>, job: CompletedJob, end: Timestamp) -> Result<Outcome, Error> {
    let idle_since = IdleSince::of_event(end);
    let due = due_before(turn.now, idle_since.time() + turn.cx.inactive);
    let task = Task::new(&turn.vm.vm, idle_since);
    let (scheduled, read) =
        tokio::join!(turn.schedule(task, due), observe(turn.cx, &turn.vm.vm, turn.deadline));
    scheduled?;
    match read {
        Ok(read) => {
            let CompletedJob { id: job, is_pooled, .. } = job;
            let change = Change::Completed { job, end, is_pooled, idle_since };
            labels::try_write(turn, &read, change).await;
        }
        Err(error @ Error::NoSuchInstance(_)) => return Err(error),
        Err(error) => tracing::warn!("VM {}: its label was not written: {error}", turn.vm.vm),
    }
    Ok(Outcome::new(Status::Ok, "").next_check_at(due))
}
