//! The VM is needed: start it, and see to it that it is stopped again.
//!
//! Whoever calls has made the task that looks again, or knows that it could not. Then, side by side, the start
//! and the lease; then the mark. Without a task that looks again, the lease alone guards the start, so it
//! comes first.

use tracing::{error, warn};

use super::mark::{self, Mark};
use super::schedule::{BOOT_ALLOWANCE, rounded_up};
use super::task::StopTask;
use super::watch::Watch;
use super::{Error, Outcome, Phase, Seen, Status, mark_of_event};
use crate::clients;
use crate::clients::cloud_tasks::Created;
use crate::clients::compute::Operation;
use crate::clock::{Deadline, Timestamp};
use crate::fleet::Vm;
use crate::state::AppState;

/// Why and since when the VM is needed.
pub(super) struct Need<'a> {
    pub(super) vm: &'a Vm,
    /// When it is needed: the mark is this moment's.
    pub(super) now: Timestamp,
    /// What the lease carries along.
    pub(super) waiting: Watch,
    /// Make lease and mark even if the VM need not be started.
    pub(super) renew: bool,
    /// A task that looks after the start was accepted.
    pub(super) guarded: bool,
}

/// What came of trying to start a VM.
#[derive(Clone, Debug)]
pub(super) enum Started {
    /// It starts, or is booting already.
    Starting(Option<String>),
    /// It is up.
    AlreadyRunning,
    /// It is in a state from which it cannot be started.
    NotNow(String),
    /// Compute Engine refused, or did not answer.
    Failed(clients::Error),
}

impl Started {
    /// As an outcome; what stands in the way is its reason.
    pub(super) fn outcome(self) -> Outcome {
        match self {
            Self::Starting(operation) => {
                Outcome::new(Status::Starting, "").with_operation(operation)
            }
            Self::AlreadyRunning => Outcome::new(Status::AlreadyRunning, ""),
            Self::NotNow(status) => Outcome::new(
                Status::StartScheduled,
                format!("but the VM is {status} and cannot be started yet"),
            ),
            Self::Failed(error) => {
                Outcome::new(Status::StartScheduled, format!("but the VM was not started: {error}"))
            }
        }
    }
}

impl Need<'_> {
    /// Starts the VM by its status, with lease and mark where they are due.
    ///
    /// # Errors
    /// If nothing guards the start: then the VM is not started.
    pub(super) async fn act(
        self,
        app: &AppState,
        seen: &Seen,
        deadline: Deadline,
    ) -> Result<Started, Error> {
        let Self { vm, now, waiting, renew, guarded } = self;
        let mark = mark_of_event(app, now);
        let start = start_by_status(app, vm, seen, deadline);
        let leased = renew || seen.status().is_down();
        let lease = async {
            if leased {
                lease(app, vm, now, mark, waiting, deadline).await.map(Some)
            } else {
                Ok(None)
            }
        };
        let (started, leased) = if guarded {
            tokio::join!(start, lease)
        } else {
            let leased = lease.await?;
            (start.await, Ok(leased))
        };
        match (&leased, mark) {
            (Ok(Some(_)), Some(mark)) => mark::write(app, vm, mark, &seen.instance, deadline).await,
            (Err(error), _) => {
                warn!("VM {vm}: no lease, so no mark; its start check makes them: {error}")
            }
            (Ok(None), _) | (_, None) => {}
        }
        if let Started::Failed(error) = &started {
            error!("VM {vm} could not be started: {error}");
        }
        Ok(started)
    }
}

/// A stop task far enough ahead for the VM to boot and for its runner to take a job.
pub(super) async fn lease(
    app: &AppState,
    vm: &Vm,
    now: Timestamp,
    mark: Option<Mark>,
    waiting: Watch,
    deadline: Deadline,
) -> Result<Created, clients::Error> {
    let from = mark.map_or_else(|| rounded_up(now), Mark::time);
    let task = StopTask { waiting, ..StopTask::new(vm, mark) };
    task.ask_at(app, rounded_up(from + app.inactive + BOOT_ALLOWANCE), deadline).await
}

/// Lease and mark alone, where a crash kept a handler from making them.
///
/// # Errors
/// If the lease could not be made; then no mark is written either.
pub(super) async fn make_up(
    app: &AppState,
    vm: &Vm,
    seen: &Seen,
    now: Timestamp,
    waiting: Watch,
    deadline: Deadline,
) -> Result<(), Error> {
    let mark = mark_of_event(app, now);
    lease(app, vm, now, mark, waiting, deadline).await?;
    if let Some(mark) = mark {
        mark::write(app, vm, mark, &seen.instance, deadline).await;
    }
    Ok(())
}

/// Starts what is stopped, resumes what is suspended, and leaves alone what is up, comes up, or cannot be
/// started now. If the status changed between read and call, it is read afresh.
pub(super) async fn start_by_status(
    app: &AppState,
    vm: &Vm,
    seen: &Seen,
    deadline: Deadline,
) -> Started {
    let refusal = match attempt(app, vm, &seen.instance.status, deadline).await {
        Ok(started) => return started,
        Err(error) if error.is_stale() => error,
        Err(error) => return Started::Failed(error),
    };
    match app.compute.get(vm, deadline).await {
        // Nothing changed: the refusal has another reason.
        Ok(fresh) if fresh.status == seen.instance.status => Started::Failed(refusal),
        Ok(fresh) => {
            attempt(app, vm, &fresh.status, deadline).await.unwrap_or_else(Started::Failed)
        }
        Err(error) => Started::Failed(error),
    }
}

async fn attempt(
    app: &AppState,
    vm: &Vm,
    status: &clients::compute::Status,
    deadline: Deadline,
) -> Result<Started, clients::Error> {
    let operation = match Phase::of(status) {
        Phase::Stopped => app.compute.start(vm, deadline).await?,
        Phase::Suspended => app.compute.resume(vm, deadline).await?,
        Phase::Up => return Ok(Started::AlreadyRunning),
        Phase::Booting => return Ok(Started::Starting(None)),
        Phase::Leaving => return Ok(Started::NotNow(status.to_string())),
    };
    if let Some(error) = &operation.error {
        error!("VM {vm}: its start failed at once: {error}");
    }
    Ok(Started::Starting(Some(operation.name)))
}

/// Logs why a VM that was started at or after `since` is down again, if its operations tell.
pub(super) async fn explain(
    app: &AppState,
    vm: &Vm,
    seen: &Seen,
    since: Timestamp,
    deadline: Deadline,
) {
    let operations = match app.compute.operations(vm, &seen.instance.id, deadline).await {
        Ok(operations) => operations,
        Err(error) => return tracing::debug!("VM {vm}: its operations cannot be read: {error}"),
    };
    match why_down(&operations, since) {
        Some(why) => warn!("VM {vm} is down while a job waits for it: {why}"),
        None => warn!("VM {vm} is down while a job waits for it; its operations do not tell why"),
    }
}

/// What the latest operations say, those before `since` left out.
fn why_down(operations: &[Operation], since: Timestamp) -> Option<String> {
    operations.iter().filter(|operation| operation.at.is_some_and(|at| at >= since)).find_map(
        |operation| match (&operation.error, operation.kind.as_str()) {
            (Some(error), kind) => Some(format!("{kind} failed: {error}")),
            (None, "compute.instances.preempted") => Some("it was preempted".to_owned()),
            (None, "compute.instances.hostError") => Some("its host failed".to_owned()),
            (None, "stop" | "suspend") => Some(format!("somebody asked for {}", operation.name)),
            _ => None,
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn tells(operations: &[(&str, Option<&str>, u64)], why: Option<&str>) {
        let operation = |(kind, error, at): &(&str, Option<&str>, u64)| Operation {
            name: "operation-1".into(),
            kind: (*kind).into(),
            at: Some(Timestamp::from_unix_seconds(*at)),
            error: error.map(Into::into),
        };
        let operations: Vec<_> = operations.iter().map(operation).collect();
        let told = why_down(&operations, Timestamp::from_unix_seconds(100));
        assert_eq!(told.as_deref(), why);
    }

    #[test]
    fn the_latest_operation_that_tells_says_why_a_vm_is_down() {
        tells(
            &[("start", Some("ZONE_RESOURCE_POOL_EXHAUSTED: none left"), 120)],
            Some("start failed: ZONE_RESOURCE_POOL_EXHAUSTED: none left"),
        );
        tells(
            &[("start", None, 140), ("compute.instances.preempted", None, 130)],
            Some("it was preempted"),
        );
        tells(&[("compute.instances.hostError", None, 100)], Some("its host failed"));
        tells(&[("stop", None, 120)], Some("somebody asked for operation-1"));
        tells(&[("suspend", None, 120)], Some("somebody asked for operation-1"));
        tells(&[("stop", None, 99)], None);
        tells(&[("setLabels", None, 120)], None);
    }
}
