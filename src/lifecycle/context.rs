//! The lifecycle's surroundings: the clients, the fleet and the clock.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::claim::Claim;
use super::error::Error;
use super::in_flight::InFlight;
use super::permission::LabelPermission;
use super::pool_queue::PoolQueues;
use super::schedule::{IdleSince, schedule_base};
use super::task::{JobRef, PATH, Task};
use crate::clients;
use crate::clients::cloud_tasks::{self, CloudTasks};
use crate::clients::compute::Compute;
use crate::clients::github::GitHub;
use crate::clients::google_keys::GoogleKeys;
use crate::clock::{Clock, Deadline, Timestamp};
use crate::fleet::{Fleet, ManagedVm};

/// The part of a handler's time that questions leave for its acts.
pub(super) const RESERVE: Duration = Duration::from_secs(6);

/// Cheap to clone; clones share it.
#[derive(Clone, Debug)]
pub struct Context(Arc<Parts>);

#[derive(Debug)]
pub struct Parts {
    pub fleet: Fleet,
    pub compute: Compute,
    pub tasks: CloudTasks,
    pub github: GitHub,
    /// The keys of the tokens by which VMs identify themselves.
    pub google_keys: GoogleKeys,
    pub clock: Clock,
    /// The project of the VMs.
    pub project: String,
    /// This service's own URL, without a trailing slash.
    pub service_url: String,
    /// The service account as which Cloud Tasks calls the service.
    pub callback_account: Option<String>,
    /// The time that a VM stays up after its last job.
    pub inactive: Duration,
    /// The time after which a VM that is down is started for a while, so that GitHub does not forget its runner.
    pub keepalive: Option<Duration>,
    pub label_permission: LabelPermission,
    /// The log says already that the App has no webhook.
    pub told_of_no_webhook: AtomicBool,
    /// Deliveries that are being handled, so that equal ones share their work.
    pub in_flight: InFlight,
    /// Jobs of pools that wait for their turn.
    pub pool_queues: PoolQueues,
}

impl Context {
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }
}

impl Deref for Context {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// The handling of one event for one VM.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn<'a> {
    pub(super) cx: &'a Context,
    pub(super) vm: &'a ManagedVm,
    /// The time that decisions go by.
    pub(super) now: Timestamp,
    /// The time by which the handler has to answer.
    pub(super) deadline: Deadline,
}

impl<'a> Turn<'a> {
    pub(super) fn new(cx: &'a Context, vm: &'a ManagedVm, deadline: Deadline) -> Self {
        Self { cx, vm, now: cx.clock.now(), deadline }
    }

    /// The value for an event at this turn's time.
    pub(super) fn idle_since(&self) -> IdleSince {
        IdleSince::of_event(self.now)
    }

    /// The VM is taken for a job of its pool.
    pub(super) fn claim(&self, job: &JobRef) -> Claim {
        Claim { at: self.now, job: job.id }
    }

    /// The time by which questions to GitHub have to be answered: the rest is for the acts that follow.
    pub(super) fn questions(&self) -> Deadline {
        self.deadline.minus(RESERVE)
    }

    /// Labels are known not to be writable.
    pub(super) fn lacks_labels(&self) -> bool {
        self.cx.label_permission.is_missing(&self.vm.vm, self.now)
    }

    /// The time by which this turn's follow-ups are scheduled.
    pub(super) fn base(&self, task: &Task) -> Timestamp {
        schedule_base(self.now, task.due)
    }

    /// Creates the pass, or finds an equal one: both are success.
    /// After an error Cloud Tasks may have the task all the same.
    pub(super) async fn schedule(&self, task: Task, due: Timestamp) -> Result<(), Error> {
        let unmarked = self.cx.label_permission.is_missing(&task.vm(), self.now);
        let task = Task { due, unmarked, ..task };
        let body = serde_json::to_vec(&task).map_err(|error| clients::Error::Unreadable {
            call: "tasks.create",
            why: error.to_string(),
        })?;
        let task = cloud_tasks::Task { id: task.id(), path: PATH, body, due };
        self.cx.tasks.create(&task, self.deadline).await?;
        Ok(())
    }
}
