//! The lifecycle protocol: what the service does with a VM, and in which order.
//!
//! The service keeps no state, so any instance of it may vanish after any call. What it knows of a VM is what
//! others hold: Compute Engine its status and labels, Cloud Tasks what is to be looked at when, GitHub which
//! jobs wait and run. On that ground it promises that a queued job always gets its runner, that a running job
//! is never killed, that an idle VM is never left running, and that the last job decides when it is idle.
//!
//! # Three ideas
//!
//! **The mark.** A VM carries, as a label, when it last had work ([`mark`]). Every stop task carries the mark
//! that it was made for. A stop task whose mark is older than the VM's is *superseded*: a newer one exists,
//! so it does nothing.
//!
//! **Chains.** A task looks at the VM, and if the matter is not settled, makes the task that looks again
//! ([`task`]). A stop chain ends only where the VM is seen stopped, or the task superseded; a start chain only
//! where the job is over and none waits or runs. Tasks are named by their question and due time ([`schedule`]),
//! so chains that ask the same thing merge.
//!
//! **Order.** A crash may fall between any two calls. First the task that will look again, then the act, then
//! the mark. An act without a task that looks after it could leak the VM or strand the job; a mark without its
//! task would make every older task believe that a newer one exists.
//!
//! **Sharing.** Deliveries that say the same of a VM in the same half minute, and overlap in one instance of the
//! service, do their work once ([`in_flight`]): the jobs of a matrix come within seconds.
//!
//! # What happens when
//!
//! * A job is queued ([`job_queued`]): the VM is [needed](need). Read it and make the start check; start it
//!   and make the *lease*, a stop task far enough ahead for a boot, so that a lost `completed` leaks nothing;
//!   write the mark.
//! * A job is completed ([`job_completed`]): make the stop task, then write the mark.
//! * A start check is due ([`start_check`]): if the job still waits, the VM has to be up. If it runs, the VM may
//!   yet vanish under it: GitHub lets the job wait again then, and sends no second webhook.
//! * A stop check is due ([`stop_check`]): if two [witnesses](witness) agree that nothing needs the VM, stop it.
//! * An operator asks ([`by_hand`]): the same, once, and an operator's VM must not leak either. A VM that carries
//!   the [`hold`] label is not stopped by a stop check; once it is released, one looks that was made before.
//! * A scheduler has the fleet swept ([`reconcile`]): what was lost on the way gets the task that it would have had.
//! * An operator looks ([`status`]): what the others would find is told, and nothing is done.
//!
//! # Where this gives way
//!
//! A job that GitHub assigns, or a completion that arrives, in the seconds between a stop check's last read
//! and its stop can still be cut short: nothing that GitHub or Google offer closes that window.

pub mod by_hand;
mod error;
mod hold;
pub mod in_flight;
pub mod job_completed;
pub mod job_queued;
pub mod mark;
mod need;
mod outcome;
pub mod reconcile;
mod redelivery;
pub mod registration;
mod schedule;
pub mod start_check;
pub mod status;
pub mod stop_check;
mod survey;
pub mod task;
pub mod unconfigured;
mod watch;
mod witness;

use std::time::Duration;

pub use error::Error;
pub use outcome::{Outcome, Status};

use crate::clients::compute::{self, Instance};
use crate::clock::{Deadline, Timestamp};
use crate::fleet::Vm;
use crate::state::AppState;
use mark::{HOLD_LABEL, Mark};

/// How long a webhook's handler may take: GitHub hangs up after 10 s, cold start included.
pub const WEBHOOK_TIME: Duration = Duration::from_secs(8);

/// How long a callback's handler may take. That a start check comes 90 s after its event relies on a stop
/// handler of that moment being long gone by then.
pub const CALLBACK_TIME: Duration = Duration::from_secs(20);

/// What the witnesses leave of a callback's time: for the task that looks again, the act, and the mark.
const RESERVE: Duration = Duration::from_secs(6);

/// A VM as a handler found it.
#[derive(Clone, Debug)]
struct Seen {
    instance: Instance,
    mark: Option<Mark>,
}

impl Seen {
    fn status(&self) -> Phase {
        Phase::of(&self.instance.status)
    }

    fn is_held(&self) -> bool {
        self.instance.labels.contains_key(HOLD_LABEL)
    }

    /// Started after its mark: by somebody else, or by a handler that vanished before it wrote its own.
    fn was_started_after_mark(&self) -> bool {
        self.instance
            .last_start
            .is_some_and(|start| self.mark.is_none_or(|mark| start > mark.time()))
    }
}

/// Reads the VM.
async fn look(app: &AppState, vm: &Vm, deadline: Deadline) -> Result<Seen, Error> {
    match app.compute.get(vm, deadline).await {
        Ok(instance) => {
            let mark = Mark::of(&instance, app.clock.now());
            Ok(Seen { instance, mark })
        }
        Err(error) if error.is_not_found() => Err(Error::NoSuchInstance(vm.clone())),
        Err(error) => Err(error.into()),
    }
}

/// The mark for tasks of an event at `now`: none where labels may not be written.
fn mark_of_event(app: &AppState, now: Timestamp) -> Option<Mark> {
    (!app.marks.are_forbidden()).then(|| Mark::at(now))
}

/// What an instance's status means to the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It can be started.
    Stopped,
    /// It can be resumed.
    Suspended,
    /// It works, or could.
    Up,
    /// It will be up by itself.
    Booting,
    /// It is on its way to somewhere else: only waiting helps.
    Leaving,
}

impl Phase {
    /// A status that is unknown counts as one in which nothing can be done now.
    fn of(status: &compute::Status) -> Self {
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
                tracing::warn!(
                    "an instance's status is {name}, which this version does not know: waiting"
                );
                Self::Leaving
            }
        }
    }

    /// It costs nothing, or next to nothing.
    fn is_down(self) -> bool {
        matches!(self, Self::Stopped | Self::Suspended)
    }
}
