//! Operators' commands: start, stop, hold, release.

use std::time::Duration;

use super::bring_up::bring_up;
use super::context::{Context, Turn};
use super::decide::{Action, Asker};
use super::error::Error;
use super::labels::{self, Change};
use super::outcome::{Outcome, Status};
use super::reconcile::{Conversation, converse, last_look, log};
use super::schedule::{IdleSince, MINUTE, rounded_up};
use super::task::{Evidence, Task};
use super::vm::{self, Hold, StopKind, VmSnapshot, observe};
use crate::clock::{Deadline, Timestamp};
use crate::fleet::ManagedVm;

/// The evidence of a command that says no more.
pub const ASKED: &str = "an operator asked for it";

/// Starts the VM, as a queued job does.
///
/// # Errors
/// No pass could be created, or the VM does not exist.
pub async fn start(cx: &Context, vm: &ManagedVm, deadline: Deadline) -> Result<Outcome, Error> {
    let turn = Turn::new(cx, vm, deadline);
    let outcome = bring_up(&turn, Evidence::Operator(turn.now)).await?;
    Ok(outcome.because_of(ASKED))
}

/// The care that an operator's stop takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Care {
    /// Only if nothing needs the VM.
    IfIdle,
    /// Whatever runs on it.
    Force,
}

/// Stops the VM: one pass, at once.
///
/// # Errors
/// The VM could not be read or stopped, or a pass was needed and could not be created.
pub async fn stop(
    cx: &Context,
    vm: &ManagedVm,
    care: Care,
    deadline: Deadline,
) -> Result<Outcome, Error> {
    let turn = Turn::new(cx, vm, deadline);
    let asker = match care {
        Care::IfIdle => Asker::Operator,
        Care::Force => Asker::Force,
    };
    let read = observe(cx, &vm.vm, deadline).await?;
    // Later than any event before, so that an operator's earlier start does not undo the stop.
    let now = turn.idle_since();
    let idle_since = read.idle_since.map_or(now, |label| now.max(label.next()));
    let task = ordinary_task(&turn, &read);
    let Conversation { decision, mut facts, lists } = converse(&turn, asker, &task, read).await;
    log(&vm.vm, &decision.notices);
    let outcome = Outcome::new(decision.status, decision.because);
    let Some((next, due)) = decision.next else { return Ok(outcome) };
    if decision.action != Action::Stop {
        turn.schedule(next, due).await?;
        return Ok(outcome.next_check_at(due));
    }
    let next = Task { idle_since: Some(idle_since), ..next };
    let scheduled = turn.schedule(next, due).await;
    let fresh = match last_look(&turn, &mut facts, &lists).await {
        Ok(fresh) => fresh,
        Err(not_stopped) => {
            scheduled?;
            return Ok(not_stopped.next_check_at(due));
        }
    };
    // Without its pass, the label would supersede the only one that is pending.
    if scheduled.is_ok() {
        labels::try_write(&turn, &facts.vm, Change::IdleSince(idle_since)).await;
    }
    let operation = vm::stop(&turn, &facts.vm, StopKind::AsConfigured, fresh).await?;
    let outcome = Outcome::new(Status::Stopping, ASKED);
    let outcome = outcome.with_operation(Some(operation.name));
    match scheduled {
        Ok(()) => Ok(outcome.next_check_at(due)),
        Err(error) => {
            tracing::error!("VM {}: it was stopped, but no pass looks after it: {error}", vm.vm);
            Ok(outcome)
        }
    }
}

/// An operator's request to hold a VM.
#[derive(Clone, Debug, Default)]
pub struct HoldRequest {
    /// The length of the hold; `None`: until the VM is released.
    pub length: Option<Duration>,
    /// The operator's words, for the log and the reply.
    pub reason: Option<String>,
}

/// Keeps passes from stopping the VM, until it is released or the hold expires.
///
/// # Errors
/// The VM could not be read, its label not set, or the pass that looks after the end of the hold not created.
pub async fn hold(
    cx: &Context,
    vm: &ManagedVm,
    request: &HoldRequest,
    deadline: Deadline,
) -> Result<Outcome, Error> {
    let turn = Turn::new(cx, vm, deadline);
    let read = observe(cx, &vm.vm, deadline).await?;
    let mut because = ASKED.to_owned();
    let hold = match request.length {
        None => Hold::WithoutEnd,
        Some(length) => {
            // As the label has it.
            let until = Timestamp::from_unix_seconds((turn.now + length).unix_seconds());
            because = format!("{because}, until {}", until.rfc3339());
            // A VM that was started in the console has no pass, and would stay up once the hold has expired.
            turn.schedule(ordinary_task(&turn, &read), rounded_up(turn.now + MINUTE)).await?;
            Hold::Until(until)
        }
    };
    if let Some(reason) = &request.reason {
        because = format!("{because}: {reason:?}");
    }
    labels::write(&turn, &read, Change::Hold(hold)).await?;
    Ok(Outcome::new(Status::Held, because))
}

/// Lets passes decide again. One is created first: a VM that was started in the console and held has none.
///
/// # Errors
/// The VM could not be read, the pass not created, or the label not removed.
pub async fn release(cx: &Context, vm: &ManagedVm, deadline: Deadline) -> Result<Outcome, Error> {
    let turn = Turn::new(cx, vm, deadline);
    let read = observe(cx, &vm.vm, deadline).await?;
    let mut outcome = Outcome::new(Status::Released, ASKED);
    if !read.phase.is_down() {
        let due = rounded_up(turn.now + MINUTE);
        // Its last job may have ended a moment ago.
        let task = Task { idle_at: Some(turn.now), ..ordinary_task(&turn, &read) };
        turn.schedule(task, due).await?;
        outcome = outcome.next_check_at(due);
    }
    labels::write(&turn, &read, Change::Release).await?;
    Ok(outcome)
}

/// The pass that a command leaves behind: any event from here on supersedes it.
fn ordinary_task(turn: &Turn<'_>, read: &VmSnapshot) -> Task {
    Task::new(&turn.vm.vm, read.idle_since.unwrap_or(IdleSince::BEFORE_ALL))
}
