//! The changes that time brings: runners connect and disconnect, jobs start, end, and are queued again.

use super::State;
use super::jobs::{JobId, JobStatus};
use super::runners::REMOVAL_AGE;
use crate::clock::Timestamp;
use crate::emulators::compute::ComputeEngine;

/// A change that no call causes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Transition {
    Offline(u64),
    Finish(JobId),
    Requeue(JobId),
    Online(u64),
    Pickup(JobId),
    Expire(JobId),
    Forget(u64),
}

impl State {
    /// The next transition. Those of equal times are ordered as in [`Transition`].
    pub(super) fn next_transition(
        &self,
        compute: &ComputeEngine,
    ) -> Option<(Timestamp, Transition)> {
        let runners = self.runners.iter().filter_map(|(id, runner)| {
            let instance = runner.spec.instance.as_ref()?;
            let up = compute.up_since(instance);
            if runner.online && runner.up != up {
                let gone = compute.down_since(instance).or(runner.up).unwrap_or_default();
                return Some((gone, Transition::Offline(*id)));
            }
            if runner.online {
                return None;
            }
            let forgotten = (runner.seen + REMOVAL_AGE, Transition::Forget(*id));
            let connects = up.map(|up| (up + self.timings.connect, Transition::Online(*id)));
            // A removed runner does not connect, even if its instance started before the removal.
            connects.into_iter().chain([forgotten]).min()
        });
        let jobs = self.active.iter().filter_map(|id| {
            let job = &self.jobs[id];
            match (job.status, job.pickup, job.lost_at) {
                (JobStatus::Queued, Some((time, _)), _) => Some((time, Transition::Pickup(*id))),
                (JobStatus::Queued, None, _) => {
                    Some((job.queued_at + self.timings.queue_limit, Transition::Expire(*id)))
                }
                (JobStatus::InProgress, ..) if job.stuck => None,
                (JobStatus::InProgress, _, Some(lost)) => {
                    Some((lost + self.timings.requeue, Transition::Requeue(*id)))
                }
                (JobStatus::InProgress, _, None) => {
                    Some((job.started_at? + job.duration, Transition::Finish(*id)))
                }
                _ => None,
            }
        });
        runners.chain(jobs).min()
    }

    pub(super) fn step(&mut self, compute: &ComputeEngine, now: Timestamp) {
        while let Some((time, transition)) =
            self.next_transition(compute).filter(|(time, _)| *time <= now)
        {
            match transition {
                Transition::Online(id) => {
                    let instance = self.runners[&id].spec.instance.clone();
                    // Another thread may have stopped the instance meanwhile, which voids the transition.
                    if let Some(up) = instance.and_then(|instance| compute.up_since(&instance)) {
                        self.online(id, time, Some(up));
                    }
                }
                Transition::Offline(id) => self.offline(id, time),
                Transition::Pickup(job) => self.begin(job, time),
                Transition::Finish(job) => self.complete(job, "success", time),
                Transition::Requeue(job) => self.requeue(job, time),
                Transition::Expire(job) => self.complete(job, "failure", time),
                Transition::Forget(id) => _ = self.runners.remove(&id),
            }
            self.assign(time);
        }
    }
}
