//! A VM as Compute Engine shows it, and the two calls that change it.

use std::collections::BTreeMap;

use http::StatusCode;
use tracing::{error, warn};

use super::claim::Claim;
use super::context::{Context, Turn};
use super::error::Error;
use super::schedule::{BOOT_ALLOWANCE, BUCKET, IdleSince};
use crate::clients;
use crate::clients::compute::{self, Instance, Operation};
use crate::clock::{Deadline, Timestamp};
use crate::fleet::{StopOptions, Vm};

/// The label with the time of the last event that needed the VM.
pub const IDLE_SINCE_LABEL: &str = "runner-manager-idle-since";

/// The label that keeps passes from stopping the VM: until the Unix time that is its value, or, with any other value,
/// without an end.
pub const HOLD_LABEL: &str = "runner-manager-hold";

/// The label with the ids of jobs that were given up on, the latest last.
pub const GIVEN_UP_LABEL: &str = "runner-manager-given-up";

/// The label with the time at which a VM of a pool was taken for a job, and the job's id. A VM with several runners has one
/// for each, with a number from 2 on after the name.
pub const CLAIM_LABEL: &str = "runner-manager-claim";

/// Separates the ids: a label's value has no commas.
pub(super) const ID_SEPARATOR: char = '_';

/// A VM as it was last read.
#[derive(Clone, Debug)]
pub(super) struct VmSnapshot {
    pub(super) instance: Instance,
    pub(super) phase: Phase,
    pub(super) idle_since: Option<IdleSince>,
    pub(super) given_up: Vec<u64>,
    /// Also one that has expired.
    pub(super) hold: Option<Hold>,
    /// Its claims by label, one for each runner at most.
    pub(super) claims: BTreeMap<String, Claim>,
    pub(super) at: Timestamp,
}

/// The hold that a VM's label asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    WithoutEnd,
    Until(Timestamp),
}

impl Hold {
    /// Smaller numbers are no times of this century: a ticket's number, say.
    const FIRST_TIME: u64 = 1_000_000_000;

    fn parse(value: &str) -> Self {
        match value.parse() {
            Ok(end @ Self::FIRST_TIME..) => Self::Until(Timestamp::from_unix_seconds(end)),
            _ => Self::WithoutEnd,
        }
    }
}

impl VmSnapshot {
    pub(super) fn new(instance: Instance, now: Timestamp) -> Self {
        let label = |key| instance.labels.get(key).map(String::as_str);
        let ids = label(GIVEN_UP_LABEL).unwrap_or_default().split(ID_SEPARATOR);
        Self {
            phase: Phase::of(&instance.status),
            idle_since: label(IDLE_SINCE_LABEL).and_then(|label| IdleSince::parse(label, now)),
            given_up: ids.filter_map(|id| id.parse().ok()).collect(),
            hold: label(HOLD_LABEL).map(Hold::parse),
            claims: instance
                .labels
                .iter()
                .filter(|(key, _)| key.starts_with(CLAIM_LABEL))
                .filter_map(|(key, value)| Some((key.clone(), Claim::parse(value)?)))
                .collect(),
            at: now,
            instance,
        }
    }

    /// It carries a hold that has not expired.
    pub(super) fn is_held(&self) -> bool {
        match self.hold {
            None => false,
            Some(Hold::WithoutEnd) => true,
            Some(Hold::Until(end)) => self.at < end,
        }
    }

    /// The claims whose jobs had no time yet to come to the VM's runners.
    pub(super) fn fresh_claims(&self, now: Timestamp) -> Vec<Claim> {
        self.claims.values().copied().filter(|claim| claim.is_fresh(now)).collect()
    }

    /// The evidence of a hold.
    pub(super) fn describe_hold(&self) -> String {
        match self.hold {
            Some(Hold::Until(end)) => format!("it is held until {}", end.rfc3339()),
            Some(Hold::WithoutEnd) | None => "it carries the hold label".to_owned(),
        }
    }

    /// The end of the boot allowance, if the VM was started after `idle_since`. That value is rounded up, so it may lie
    /// up to a bucket after the start that it came with.
    pub(super) fn boot_allowance_ends(&self, idle_since: IdleSince) -> Option<Timestamp> {
        let start = self.instance.last_start?;
        (start + BUCKET > idle_since.time()).then_some(start + BOOT_ALLOWANCE)
    }

    /// The status in Compute Engine's word.
    pub(super) fn status(&self) -> String {
        self.instance.status.to_string()
    }
}

/// The meaning of an instance's status to the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// It can be started.
    Stopped,
    /// It can be resumed.
    Suspended,
    Up,
    /// It will be up without a call.
    Booting,
    /// It is on its way down: only waiting helps. A status that this version does not know counts as this.
    Leaving,
}

impl Phase {
    pub(super) fn of(status: &compute::Status) -> Self {
        use compute::Status::{
            Deprovisioning, Pending, PendingStop, Provisioning, Repairing, Running, Staging,
            Stopped, Stopping, Suspended, Suspending, Terminated, Unknown,
        };
        match status {
            Terminated | Stopped => Self::Stopped,
            Suspended => Self::Suspended,
            Running => Self::Up,
            Provisioning | Staging | Pending | Repairing => Self::Booting,
            Stopping | PendingStop | Suspending | Deprovisioning => Self::Leaving,
            Unknown(name) => {
                warn!("Compute Engine reports the status {name}, which this version does not know");
                Self::Leaving
            }
        }
    }

    /// It costs nothing, or next to nothing.
    pub(super) fn is_down(self) -> bool {
        matches!(self, Self::Stopped | Self::Suspended)
    }
}

/// Reads a VM.
pub(super) async fn observe(
    cx: &Context,
    vm: &Vm,
    deadline: Deadline,
) -> Result<VmSnapshot, Error> {
    match cx.compute.get(vm, deadline).await {
        Ok(instance) => Ok(VmSnapshot::new(instance, cx.clock.now())),
        Err(error) if error.is_not_found() => Err(Error::NoSuchInstance(vm.clone())),
        Err(error) => Err(error.into()),
    }
}

/// The result of a request to start a VM.
#[derive(Clone, Debug)]
pub(super) enum Started {
    /// It starts, or is booting already.
    Starting(Option<String>),
    AlreadyRunning,
    /// It is in a state from which it cannot be started yet.
    NotYet(String),
    /// Compute Engine refused, or did not answer.
    Failed(clients::Error),
}

/// Starts a stopped VM, resumes a suspended one, and leaves any other alone. If the status changed between read and
/// call, the VM is read again.
pub(super) async fn start_by_status(turn: &Turn<'_>, read: &VmSnapshot) -> Started {
    let started = match start(turn, read).await {
        Ok(started) => return started,
        Err(refusal) if refusal.is_stale() => match observe_status(turn).await {
            Ok(fresh) if fresh.instance.status == read.instance.status => Err(refusal),
            Ok(fresh) => start(turn, &fresh).await,
            Err(error) => Err(error),
        },
        Err(error) => Err(error),
    };
    started.unwrap_or_else(|error| {
        error!("VM {} could not be started: {error}", turn.vm.vm);
        Started::Failed(error)
    })
}

async fn observe_status(turn: &Turn<'_>) -> Result<VmSnapshot, clients::Error> {
    let instance = turn.cx.compute.get(&turn.vm.vm, turn.deadline).await?;
    Ok(VmSnapshot::new(instance, turn.now))
}

async fn start(turn: &Turn<'_>, read: &VmSnapshot) -> Result<Started, clients::Error> {
    let (compute, vm) = (&turn.cx.compute, &turn.vm.vm);
    let operation = match read.phase {
        Phase::Stopped => compute.start(vm, turn.deadline).await?,
        Phase::Suspended => compute.resume(vm, turn.deadline).await?,
        Phase::Up => return Ok(Started::AlreadyRunning),
        Phase::Booting => return Ok(Started::Starting(None)),
        Phase::Leaving => return Ok(Started::NotYet(read.status())),
    };
    if let Some(error) = &operation.error {
        error!("VM {vm}: its start failed at once: {error}");
    }
    Ok(Started::Starting(Some(operation.name)))
}

/// The kind of a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StopKind {
    /// As the VM's entries have it.
    AsConfigured,
    /// The VM has to boot anew.
    Full,
}

/// Stops the VM. The caller read it at most 10 s ago.
pub(super) async fn stop(
    turn: &Turn<'_>,
    read: &VmSnapshot,
    kind: StopKind,
    deadline: Deadline,
) -> Result<Operation, Error> {
    let (vm, compute) = (&turn.vm.vm, &turn.cx.compute);
    let StopOptions { discard_local_ssd, suspend, .. } = turn.vm.stop;
    if read.instance.has_local_ssd && !discard_local_ssd {
        return Err(Error::WouldLoseLocalSsd(vm.clone()));
    }
    let suspended = match kind {
        StopKind::AsConfigured if suspend => suspend_if_possible(turn, deadline).await?,
        StopKind::AsConfigured | StopKind::Full => None,
    };
    let operation = match suspended {
        Some(operation) => operation,
        None => compute.stop(vm, discard_local_ssd, deadline).await?,
    };
    if let Some(error) = &operation.error {
        error!("VM {vm}: its stop failed at once: {error}");
    }
    Ok(operation)
}

/// Suspends the VM; `None` if Compute Engine cannot or may not, so that it has to be stopped.
async fn suspend_if_possible(
    turn: &Turn<'_>,
    deadline: Deadline,
) -> Result<Option<Operation>, Error> {
    let vm = &turn.vm.vm;
    match turn.cx.compute.suspend(vm, deadline).await {
        Ok(operation) => Ok(Some(operation)),
        Err(error) if error.status() == Some(StatusCode::BAD_REQUEST) => {
            warn!("VM {vm}: it cannot be suspended, so it is stopped: {error}");
            Ok(None)
        }
        Err(error) if error.lacks_permission() => {
            warn!(
                "VM {vm}: it may not be suspended, so it is stopped: grant compute.instances.suspend to the service's \
                 account ({error})"
            );
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Logs why a VM that was up after `since` is down, if the operations of its zone tell.
pub(super) async fn log_why_down(turn: &Turn<'_>, read: &VmSnapshot, since: Timestamp) {
    let vm = &turn.vm.vm;
    match turn.cx.compute.operations(vm, &read.instance.id, turn.deadline).await {
        Err(error) => tracing::debug!("VM {vm}: its operations cannot be read: {error}"),
        Ok(operations) => match why_down(&operations, since) {
            Some(why) => warn!("VM {vm} is down while a job waits for it: {why}"),
            None => {
                warn!("VM {vm} is down while a job waits for it; its operations do not tell why")
            }
        },
    }
}

/// The reason in the latest operation that tells one, those before `since` left out.
fn why_down(operations: &[Operation], since: Timestamp) -> Option<String> {
    operations.iter().filter(|operation| operation.at.is_some_and(|at| at >= since)).find_map(
        |operation| match (&operation.error, operation.kind.as_str()) {
            (Some(error), kind) => Some(format!("{kind} failed: {error}")),
            (None, "stop" | "suspend") => Some(format!("{} was requested", operation.name)),
            (None, kind) => system_event(kind.strip_prefix("compute.instances.")?),
        },
    )
}

/// An event that Compute Engine caused and that took the VM down.
/// <https://cloud.google.com/compute/docs/logging/audit-logging#system_event>
fn system_event(event: &str) -> Option<String> {
    Some(match event {
        "preempted" => "it was preempted".to_owned(),
        "hostError" => "its host failed".to_owned(),
        "guestTerminate" => "it was shut down from inside".to_owned(),
        "terminateOnHostMaintenance" => "its host was taken down for maintenance".to_owned(),
        "kmsKeyError" => "the key that encrypts its disk could not be used".to_owned(),
        // These leave a VM up, or bring it up again.
        "migrateOnHostMaintenance" | "automaticRestart" => return None,
        other => format!("Compute Engine reports {other}"),
    })
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
        tells(&[("stop", None, 120)], Some("operation-1 was requested"));
        tells(&[("suspend", None, 120)], Some("operation-1 was requested"));
        for (event, why) in [
            ("guestTerminate", Some("it was shut down from inside")),
            ("terminateOnHostMaintenance", Some("its host was taken down for maintenance")),
            ("kmsKeyError", Some("the key that encrypts its disk could not be used")),
            ("meteorite", Some("Compute Engine reports meteorite")),
            ("migrateOnHostMaintenance", None),
        ] {
            tells(&[(&format!("compute.instances.{event}"), None, 120)], why);
        }
        tells(&[("stop", None, 99)], None);
        tells(&[("setLabels", None, 120)], None);
    }

    #[test]
    fn a_status_has_one_meaning() {
        for (status, phase) in [
            ("TERMINATED", Phase::Stopped),
            ("STOPPED", Phase::Stopped),
            ("SUSPENDED", Phase::Suspended),
            ("RUNNING", Phase::Up),
            ("PROVISIONING", Phase::Booting),
            ("STAGING", Phase::Booting),
            ("PENDING", Phase::Booting),
            ("REPAIRING", Phase::Booting),
            ("STOPPING", Phase::Leaving),
            ("PENDING_STOP", Phase::Leaving),
            ("SUSPENDING", Phase::Leaving),
            ("DEPROVISIONING", Phase::Leaving),
            ("HIBERNATING", Phase::Leaving),
        ] {
            assert_eq!(Phase::of(&status.into()), phase, "{status}");
        }
    }
}
