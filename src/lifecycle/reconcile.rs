//! A pass: the driver of [`decide`].
//!
//! It reads the VM, asks what the rules ask for, and carries out what they decide: the next pass first, then the label,
//! then the VM. A crash may come between any two calls, and whatever it leaves undone, a pass is pending that finds it.

use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use tracing::{error, warn};

use super::context::{Context, Turn};
use super::decide::{Action, Asker, Decision, Facts, Notice, Question, Step, decide};
use super::demand::{self, Extent, JobState, RunnerLists, RunnerState, runner_state};
use super::drain::{Drained, drain};
use super::error::Error;
use super::labels::{self, Change, Written};
use super::outcome::{Outcome, Status};
use super::pool::{self, Availability};
use super::schedule::{
    BUCKET, DAY, FIRST_PASS, HOUR, IdleSince, MINUTE, doubled, next_bucket, rounded_up,
    schedule_base,
};
use super::task::{JobRef, Task};
use super::vm::{self, Started, StopKind, VmSnapshot, observe};
use crate::clock::{Deadline, Timestamp};
use crate::fleet::{ManagedVm, Vm};

/// A pass ends within this time. `FIRST_PASS` relies on it: 90 s after an event, a stop that was under way shows in the
/// VM's status.
pub const PASS_TIME: Duration = Duration::from_secs(20);

/// Passes for other VMs that are created at the same time.
const CONCURRENT_PASSES: usize = 8;

/// No stop is sent later than this after the VM was last read.
const LONGEST_SINCE_READ: Duration = Duration::from_secs(10);

/// Runs the pass of a task that is due.
///
/// # Errors
/// The pass has to be repeated: Cloud Tasks does so.
pub async fn pass(
    cx: &Context,
    vm: &ManagedVm,
    task: Task,
    deadline: Deadline,
) -> Result<Outcome, Error> {
    let turn = Turn::new(cx, vm, deadline);
    // A task that relies on there being just one VM names it from here on.
    let Vm { name, zone } = vm.vm.clone();
    let task = Task { vm_instance_name: name, vm_instance_zone: zone, ..task };
    let read = match observe(cx, &vm.vm, deadline).await {
        Ok(read) => read,
        Err(error @ Error::NoSuchInstance(_)) => {
            error!("{error}");
            return Ok(Outcome::new(Status::NotConfigured, "the project has no such instance"));
        }
        Err(error) => return Err(error),
    };
    let Conversation { decision, mut facts, lists } =
        converse(&turn, Asker::Task, &task, read).await;
    let next = requeue(&turn, &decision).await?;
    if !decision.given_up.is_empty() {
        labels::try_write(&turn, &facts.vm, Change::GivenUp(&decision.given_up)).await;
    }
    let outcome = match decision.action {
        Action::Nothing => Outcome::new(decision.status, decision.because),
        Action::Start => start(&turn, &facts, &decision).await?,
        Action::Stop | Action::Restart => {
            let stopped = stop_idle(&turn, &mut facts, &lists, &decision).await;
            stopped.unwrap_or_else(|not_stopped| not_stopped)
        }
    };
    Ok(Outcome { next_check: outcome.next_check.or(next), ..outcome })
}

/// A decision, and what led to it.
pub(super) struct Conversation<'a> {
    pub(super) decision: Decision,
    pub(super) facts: Facts<'a>,
    /// The VM's runners, if they were asked for.
    pub(super) lists: RunnerLists,
}

/// Asks what the rules ask for, until they decide.
pub(super) async fn converse<'a>(
    turn: &Turn<'a>,
    asker: Asker,
    task: &'a Task,
    read: VmSnapshot,
) -> Conversation<'a> {
    // In a pool, other jobs may wait while one runs here.
    let reads_all = read.phase.is_down() || turn.vm.is_in_a_pool();
    let extent = if reads_all { Extent::ToTheEnd } else { Extent::ToARunningJob };
    let mut facts = Facts {
        asker,
        now: turn.now,
        inactive: turn.cx.inactive,
        fleet: &turn.cx.fleet,
        managed: turn.vm,
        label_settled: turn.lacks_labels(),
        task,
        vm: read,
        job: None,
        runner: None,
        demand: None,
        pool: None,
    };
    let mut lists = RunnerLists::new();
    loop {
        match decide(&facts) {
            Step::Do(decision) => return Conversation { decision: *decision, facts, lists },
            Step::Ask(Question::WriteIdleSince) => {
                if let Some(value) = task.idle_since {
                    labels::try_write(turn, &facts.vm, Change::IdleSince(value)).await;
                }
                facts.label_settled = true;
            }
            Step::Ask(Question::Job) => {
                facts.job = match &task.job {
                    Some(job) => Some(demand::job(turn, job).await),
                    None => Some(JobState::Gone("there is no job")),
                };
            }
            Step::Ask(Question::Runner) => {
                lists = demand::runner_lists(turn.cx, turn.vm, turn.questions()).await;
                facts.runner = Some(runner_state(&lists));
            }
            Step::Ask(Question::Jobs) => {
                let registered = facts.runner.as_ref().is_some_and(RunnerState::is_registered);
                let cursor = task.cursor.as_ref();
                facts.demand = Some(demand::jobs(turn, registered, extent, cursor).await);
            }
            Step::Ask(Question::Pool) => {
                let mut members = pool::peers(turn).await;
                let runners = pool::runners(&lists, &facts.vm);
                let own = Availability::of(&facts.vm, runners, turn.now);
                members.insert(turn.vm.vm.clone(), own);
                facts.pool = Some(members);
            }
        }
    }
}

/// Creates the next pass, and those of other VMs. Without them nothing is done.
async fn requeue(turn: &Turn<'_>, decision: &Decision) -> Result<Option<Timestamp>, Error> {
    log(&turn.vm.vm, &decision.notices);
    let next = match &decision.next {
        Some((task, due)) => {
            turn.schedule(task.clone(), *due).await?;
            Some(*due)
        }
        None => None,
    };
    let passes = decision.tell.iter().map(|(other, job)| tell(turn, other, job));
    let passes = stream::iter(passes.collect::<Vec<_>>()).buffered(CONCURRENT_PASSES);
    passes.try_collect::<()>().await?;
    let hand_on = decision.hand_on.iter().map(|(other, job)| hand_on(turn, other, job));
    let hand_on = stream::iter(hand_on.collect::<Vec<_>>()).buffered(CONCURRENT_PASSES);
    hand_on.try_collect::<()>().await?;
    Ok(next)
}

pub(super) fn log(vm: &Vm, notices: &[Notice]) {
    for notice in notices {
        match notice {
            Notice::Warning(text) => warn!("VM {vm}: {text}"),
            Notice::Error(text) => error!("VM {vm}: {text}"),
        }
    }
}

/// A pass for another VM, with the job as evidence: it asks whether the job waits for that VM.
async fn tell(turn: &Turn<'_>, other: &Vm, job: &JobRef) -> Result<(), Error> {
    let task = Task::new(other, IdleSince::BEFORE_ALL).with_job(job.clone());
    turn.schedule(task, rounded_up(turn.now + FIRST_PASS)).await
}

/// Another VM of the pool has to come up for the job: it gets a pass at once, and the claim that keeps other jobs from it.
async fn hand_on(turn: &Turn<'_>, other: &Vm, job: &JobRef) -> Result<(), Error> {
    let Some(other) = turn.cx.fleet.vm(other) else { return Ok(()) };
    let task = Task::new(&other.vm, IdleSince::BEFORE_ALL).with_job(job.clone());
    turn.schedule(task, next_bucket(turn.now)).await?;
    let other = Turn { vm: other, ..*turn };
    match observe(turn.cx, &other.vm.vm, turn.deadline).await {
        Ok(read) => {
            labels::try_write(&other, &read, Change::Claim(&[other.claim(job)], None)).await;
        }
        Err(error) => warn!("VM {}: it was not claimed for {job}: {error}", other.vm.vm),
    }
    Ok(())
}

/// Starts the VM by its status, and has it looked at soon if it cannot be started yet.
async fn start(turn: &Turn<'_>, facts: &Facts<'_>, decision: &Decision) -> Result<Outcome, Error> {
    let since = facts.vm.instance.last_start.unwrap_or_default().max(turn.now - HOUR);
    let why = async {
        if facts.vm.phase.is_down() {
            vm::log_why_down(turn, &facts.vm, since - MINUTE).await;
            let is_answered = !matches!(facts.job, Some(JobState::Unavailable(_)));
            if facts.task.busy_at.is_some() && facts.demand.is_none() && is_answered {
                tell_others(turn).await;
            }
        }
    };
    let next = decision.next.as_ref().map(|(task, _)| task);
    // A VM that no event has needed yet: by its label the resync knows that this service started it.
    let is_new = next.is_some_and(|task| task.idle_since == Some(IdleSince::BEFORE_ALL));
    let idle_since = is_new.then(|| turn.idle_since());
    let job = next.and_then(|task| task.job.as_ref()).filter(|_| turn.vm.is_in_a_pool());
    let claimed = match job {
        Some(job) => {
            let claims = [turn.claim(job)];
            labels::try_write(turn, &facts.vm, Change::Claim(&claims, idle_since)).await
        }
        None => Written::Done,
    };
    let started = async {
        match claimed {
            Written::Done => outcome_of_start(vm::start_by_status(turn, &facts.vm).await),
            Written::TakenByAnother => {
                Outcome::new(Status::StartScheduled, "but another job has just taken the VM")
            }
        }
    };
    let label = async {
        if let (None, Some(idle_since)) = (job, idle_since) {
            labels::try_write(turn, &facts.vm, Change::IdleSince(idle_since)).await;
        }
    };
    let (started, (), _) = tokio::join!(started, why, label);
    let outcome = started.because_of(&decision.because);
    if outcome.status != Status::StartScheduled {
        return Ok(outcome);
    }
    let Some(task) = next else { return Ok(outcome) };
    let soon = rounded_up(turn.base(facts.task) + BUCKET);
    turn.schedule(task.clone(), soon).await?;
    Ok(outcome.next_check_at(soon))
}

/// A VM that vanished comes back for the job in evidence, and may be busy with it for long. What else ran there, although
/// its labels route to another VM, waits for that one now.
async fn tell_others(turn: &Turn<'_>) {
    let demand = demand::jobs(turn, true, Extent::ToTheEnd, None).await;
    for (other, job) in &demand.elsewhere {
        if let Err(error) = tell(turn, other, job).await {
            warn!("VM {}: {job} waits for VM {other}, which gets no pass: {error}", turn.vm.vm);
        }
    }
}

pub(super) fn outcome_of_start(started: Started) -> Outcome {
    match started {
        Started::Starting(operation) => {
            Outcome::new(Status::Starting, "").with_operation(operation)
        }
        Started::AlreadyRunning => Outcome::new(Status::AlreadyRunning, ""),
        Started::NotYet(status) => Outcome::new(
            Status::StartScheduled,
            format!("but the VM is {status} and cannot be started yet"),
        ),
        Started::Failed(error) => {
            Outcome::new(Status::StartScheduled, format!("but the VM was not started: {error}"))
        }
    }
}

/// Reads the VM once more: the deadline by which the stop has to be sent, if the rules still say so, or why not.
pub(super) async fn read_again(
    turn: &Turn<'_>,
    facts: &mut Facts<'_>,
) -> Result<Deadline, Outcome> {
    let fresh = Deadline::after(LONGEST_SINCE_READ).min(turn.deadline);
    facts.vm = observe(turn.cx, &turn.vm.vm, fresh).await.map_err(|error| {
        warn!("VM {}: not stopped, since it could not be read once more: {error}", turn.vm.vm);
        Outcome::new(Status::Unknown, format!("it could not be read once more ({error})"))
    })?;
    facts.label_settled = true;
    match decide(facts) {
        Step::Do(decision) if matches!(decision.action, Action::Stop | Action::Restart) => {
            Ok(fresh)
        }
        Step::Do(decision) => Err(Outcome::new(decision.status, decision.because)),
        Step::Ask(_) => Err(Outcome::new(Status::Superseded, "the VM was needed since")),
    }
}

/// Reads the VM once more and, where its entries say so, removes its runner from GitHub first: the deadline by which the
/// stop has to be sent, or why the VM is not stopped.
pub(super) async fn last_look(
    turn: &Turn<'_>,
    facts: &mut Facts<'_>,
    lists: &RunnerLists,
) -> Result<Deadline, Outcome> {
    let fresh = read_again(turn, facts).await?;
    if !turn.vm.stop.drain || facts.asker == Asker::Force {
        return Ok(fresh);
    }
    match drain(turn, facts, lists).await? {
        // That may have taken a while.
        Drained::Yes => read_again(turn, facts).await,
        Drained::Nothing => Ok(fresh),
    }
}

/// Stops the VM. A refusal is logged; the next pass is pending, and tries again.
async fn stop_idle(
    turn: &Turn<'_>,
    facts: &mut Facts<'_>,
    lists: &RunnerLists,
    decision: &Decision,
) -> Result<Outcome, Outcome> {
    let deadline = last_look(turn, facts, lists).await?;
    let kind =
        if decision.action == Action::Restart { StopKind::Full } else { StopKind::AsConfigured };
    Ok(match vm::stop(turn, &facts.vm, kind, deadline).await {
        Ok(operation) => {
            Outcome::new(Status::Stopping, &decision.because).with_operation(Some(operation.name))
        }
        Err(error) => {
            error!("VM {} is idle, but was not stopped: {error}", turn.vm.vm);
            Outcome::new(Status::StopScheduled, format!("idle, but not stopped ({error})"))
        }
    })
}

/// Keeps the pass of a VM that no entry names alive for a day: that may be a deploy with a mistyped entry. The VM itself
/// is left alone: the secret gives power over the configured VMs only.
///
/// # Errors
/// The next pass could not be created.
pub async fn pass_without_entry(
    cx: &Context,
    task: Task,
    deadline: Deadline,
) -> Result<Outcome, Error> {
    let (vm, now) = (task.vm(), cx.clock.now());
    let base = schedule_base(now, task.due);
    let Some(due) = due_without_entry(base, &vm, task.unconfigured_since) else {
        error!(
            "VM {vm}: no entry of RUNNER_CONFIG names it, so it gets no more passes; if it runs, stop it by hand"
        );
        let because = "no entry of RUNNER_CONFIG names the VM, so it gets no more passes";
        return Ok(Outcome::new(Status::NotConfigured, because));
    };
    warn!("a task came for VM {vm}, which no entry of RUNNER_CONFIG names");
    let since = task.unconfigured_since.or(Some(base));
    let unnamed = ManagedVm::unconfigured(vm);
    let turn = Turn { cx, vm: &unnamed, now, deadline };
    turn.schedule(Task { unconfigured_since: since, ..task }, due).await?;
    let outcome = Outcome::new(Status::NotConfigured, "no entry of RUNNER_CONFIG names the VM");
    Ok(outcome.next_check_at(due))
}

/// 10, 20, 40, then every 60 minutes; nothing after a day, or if the task does not say which VM it means.
fn due_without_entry(base: Timestamp, vm: &Vm, since: Option<Timestamp>) -> Option<Timestamp> {
    let waited = since.map(|since| base.since(since)).unwrap_or_default();
    if vm.name.is_empty() || vm.zone.is_empty() || waited >= DAY {
        return None;
    }
    // After 10, 30 and 70 minutes the next doubling is due.
    let steps = (waited.as_secs() / (10 * MINUTE).as_secs() + 1).ilog2();
    Some(rounded_up(base + doubled(10 * MINUTE, steps, HOUR)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_deploy_has_a_day_to_be_mended() {
        let vm = Vm::new("a", "z");
        let start = Timestamp::from_unix_seconds(1_800_000_000);
        let (mut now, mut since, mut delays) = (start, None, Vec::new());
        while let Some(due) = due_without_entry(now, &vm, since) {
            since = since.or(Some(now));
            delays.push(due.since(now).as_secs() / 60);
            now = due;
        }
        assert_eq!(delays[..5], [10, 20, 40, 60, 60]);
        assert!((24..26).contains(&(now.since(start).as_secs() / 3600)));
        assert!(delays.len() < 30, "{delays:?}");
    }

    #[test]
    fn a_task_that_names_no_vm_is_not_kept() {
        assert_eq!(due_without_entry(Timestamp::UNIX_EPOCH, &Vm::new("", ""), None), None);
    }
}
