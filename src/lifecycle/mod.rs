//! The protocol: one reconcile loop for each VM.
//!
//! Runner Manager is a controller, as in Kubernetes. Its work queue is Cloud Tasks, its store the labels of the VM. A
//! *pass* for one VM ([`reconcile`]) observes what is there, decides ([`decide`]), acts, and requeues itself. Events
//! ([`events`], [`operator`], [`resync`]) only make sure that a pass will come soon; a queued job also takes the obvious
//! first step at once, so that its VM starts without waiting for the pass.
//!
//! The service keeps no state, so any instance of it may vanish after any call. What it needs to know lies with others:
//! Compute Engine has the VM's status and labels, GitHub the runners and jobs, Cloud Tasks the passes to come.
//!
//! > **Invariant.** Once the service has started a VM or received an event for it, a pass for it is pending, until one finds
//! > it down with nothing waiting for it. A pass requeues first and acts second.
//!
//! # Terms
//!
//! * **Runner of a VM**: the GitHub runner of the VM's name, or of its entries' `runner_names`, in any scope where it may
//!   be registered ([`demand`]).
//! * **`idle_since`**: a label with the time of the last event that needed the VM, rounded up to half a minute. It only
//!   grows ([`labels`]). A pass whose own value is older is *superseded*: another pass knows more.
//! * **Evidence**: the reason why a VM was wanted, carried by its pass: a job, or an operator. With it a pass may start
//!   the VM while GitHub cannot be queried ([`task`]).
//! * **`stop_after`**: the earliest time of a stop. The latest of: `idle_since`, the end of the job in evidence, and the
//!   first pass that found the VM idle again, each plus `VM_INACTIVE_MINUTES`; and the VM's last start plus 5 min.
//! * **Hold**: a label that keeps passes from stopping the VM.
//! * **Pool**: the VMs of a repository's entries with the same labels. Any of them may run such a job ([`pool`]).
//! * **Claim**: a label that says for which job a VM of a pool is there ([`claim`]).
//!
//! # Events
//!
//! | event | what happens |
//! |---|---|
//! | a job is queued | read the VM and create a pass in 90 s, with the job as evidence; then start the VM and write `idle_since` |
//! | a job is queued for a pool | read its VMs up to the first that is free; create its pass, claim it, start it ([`placement`]) |
//! | it waits for a review | read the VM and create that pass |
//! | a job is completed | read the VM and create a pass at `stop_after`; then write `idle_since` |
//! | an operator starts a VM | as for a queued job, with the operator as evidence |
//! | an operator stops a VM | one pass at once, for which the past, a hold and confirmation do not count |
//! | a scheduler calls the resync | the rules of a pass on the facts of the whole fleet; where they say start or stop, a pass is created |
//!
//! # A pass
//!
//! Each step either settles the pass or leads to the next.
//!
//! 1. *The VM.* It does not exist: end. Superseded: end, unless the job in evidence still waits.
//! 2. *Up, before `stop_after`*: wait for it. GitHub is not asked.
//! 3. *On its way up or down*: look again in a minute.
//! 4. *The job in evidence* runs here: busy. It is queued: it needs the VM. It waits for something else: keep it. It is
//!    over, or runs elsewhere: drop it. GitHub could not be queried: start the VM.
//! 5. *Held*, or a stop would lose a local SSD: keep the VM up.
//! 6. *The runner* is busy: so is the VM.
//! 7. *The open jobs*: one runs here: busy.
//! 8. *Needed*, since a job is queued for it: see to it that the VM is up. In a pool, only if more jobs wait than the other VMs
//!    can take; jobs that are too many, or whose VM could not be started, are handed on to the next VM.
//! 9. *Down, and nothing needs it*: end, once every list was read.
//! 10. *Up and idle*: if both sources agree, requeue, read the VM once more, and stop it. If one is forbidden, the other
//!     has to say so twice. If one could not be queried, do not stop. A VM with `drain` first loses its runner ([`drain`]).
//!
//! Without a time of its own, a pass requeues after 1 min, 2 min, and then at each multiple of 5 min. So a VM that is up is
//! seen every five minutes, and one that vanished under its job is started again within that time.
//!
//! # Order
//!
//! A crash may fall between any two calls. First the next pass, then the label, then the VM. A VM that is started
//! without a pass could leak; a label without its pass would supersede the only one there is.
//!
//! # Tasks
//!
//! A pass is named by its VM, its `idle_since`, the kind of its evidence, and its due time. Everything else in its body is
//! a hint. So equal passes merge, whatever created them, and passes cannot multiply. Tasks of earlier versions are
//! passes too ([`task`]).
//!
//! # Known gaps
//!
//! * A job that GitHub assigns in the seconds between the last reading of the lists and the stop is cut short, unless the VM
//!   is drained.
//! * When several jobs wait for one VM, their passes merge, and carry only one of them as evidence. Suppose that job ends,
//!   GitHub goes down, and the VM vanishes: the others then wait until GitHub is back. Of two jobs in review, the one that
//!   is not carried is noticed within an hour if no webhook says that it was approved.
//! * A `completed` that arrives just after `stop_after`, of a job that no pass has seen, comes too late to keep the VM up.

mod bring_up;
mod claim;
mod context;
mod decide;
mod demand;
mod drain;
mod error;
pub mod events;
mod finding;
pub mod in_flight;
mod labels;
pub mod operator;
mod outcome;
mod permission;
mod placement;
mod pool;
pub mod pool_queue;
pub mod reconcile;
mod redelivery;
pub mod registration;
pub mod resync;
mod scan;
mod schedule;
mod snapshot;
pub mod status;
pub mod steps;
pub mod task;
mod unclaimed;
mod unserved;
pub mod vm;

pub use context::{Context, Parts};
pub use demand::{runners_in, scopes};
pub use error::Error;
pub use outcome::{Outcome, Status};
pub use permission::LabelPermission;
pub use schedule::BOOT_ALLOWANCE;
pub use snapshot::unserved_jobs;
