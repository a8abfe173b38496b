//! The rules for VMs of a pool: a job needs this VM only if more jobs wait than the others can take, and jobs that are too
//! many are handed on.

use std::time::Duration;

use super::{Carried, Facts, Pass, Question, Rule, Step};
use crate::lifecycle::demand::{JobState, RunnerState};
use crate::lifecycle::outcome::Status;
use crate::lifecycle::pool::{self, CanStart};
use crate::lifecycle::schedule::{MINUTE, next_interval, rounded_up};
use crate::lifecycle::task::{Evidence, JobRef};

/// GitHub gives a job to a runner that is free within this time. A VM of a pool that could get it is not stopped meanwhile.
const ASSIGNMENT_TIME: Duration = Duration::from_secs(2 * MINUTE.as_secs());

impl Pass<'_> {
    /// The VM of a pool works on one job while another waits: another VM has to come up for that one.
    pub(super) fn hand_on_while_busy(&mut self) -> Rule {
        let Some(Evidence::Job(job)) = self.facts.task.evidence() else { return Ok(()) };
        if !self.facts.managed.is_in_a_pool() || !self.is_task() || !self.is_up() {
            return Ok(());
        }
        match self.job()? {
            JobState::Queued(labels) => {
                if let RunnerState::Busy { .. } = self.runner_known_so_far()? {
                    self.place(&[JobRef { labels, ..job }])?;
                }
            }
            JobState::Pending | JobState::Unavailable(_) | JobState::Forbidden(_) => {}
            JobState::Running(_) | JobState::Completed(_) | JobState::Gone(_)
                if !self.facts.task.pool_read =>
            {
                self.look_for_others()?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Jobs that were queued at about the same time share one pass, so others may still wait.
    fn look_for_others(&mut self) -> Rule {
        let runner = self.runner_known_so_far()?;
        if let RunnerState::Unavailable(_) = runner {
            return Ok(());
        }
        let demand = self.facts.demand.as_ref().ok_or(Step::Ask(Question::Jobs))?;
        let jobs = self.jobs_that_count(runner, Some(demand), &Carried::Nothing);
        if jobs.is_empty() {
            self.next.pool_read = true;
            return Ok(());
        }
        self.place(&jobs)?;
        // A VM that could not be started has no pass if nothing waited then: the next pass looks again.
        let members = self.facts.pool.iter().flatten();
        let mut failed = members.filter(|(_, member)| member.start == CanStart::Later);
        self.next.pool_read = failed.next().is_none();
        Ok(())
    }

    /// Places the jobs on the VMs of their pools. Returns the job for which this VM has to be up, if any; jobs for
    /// other VMs that have to come up are put into `hand_on`. Without a pool, the first job needs this VM.
    pub(super) fn place(&mut self, jobs: &[JobRef]) -> Rule<Option<JobRef>> {
        let Facts { fleet, managed, .. } = self.facts;
        if !managed.is_in_a_pool() {
            return Ok(jobs.first().cloned());
        }
        let Some(members) = &self.facts.pool else { return Err(Step::Ask(Question::Pool)) };
        let mut members = members.clone();
        let own = members.entry(managed.vm.clone()).or_default();
        if own.start == CanStart::Later {
            own.start = CanStart::LastResort;
        }
        // A job that it is claimed for and that the lists do not show runs elsewhere, or is over.
        let waits = |job: u64| jobs.iter().any(|waiting| waiting.id == job);
        if self.facts.demand.is_some() {
            own.claimed_for.retain(|job| waits(*job));
        }
        let mut placed = pool::place(fleet, jobs, &members);
        let here = placed.remove(&managed.vm);
        placed.retain(|vm, _| members[vm].start == CanStart::Yes);
        self.hand_on = placed;
        Ok(here)
    }

    /// Jobs wait, but other VMs of the pool are there for them, or come up.
    pub(super) fn left_to_the_pool(&mut self, jobs: Vec<JobRef>) -> Rule {
        let now = self.now();
        // Passes go on while jobs wait, since the other VMs may vanish. GitHub may be giving a job that was queued a
        // moment ago to this VM.
        let is_recent = jobs.iter().any(|job| now.since(job.queued_at) < ASSIGNMENT_TIME);
        let Some(job) = jobs.into_iter().next() else { return Ok(()) };
        let because = format!("{job} waits for a VM of its pool, and another one takes it");
        let id = job.id;
        (self.next.job, self.next.pending_since) = (Some(job), None);
        if !self.is_up() {
            // If the other VM cannot be started, the next pass tries this one.
            let mut members = self.facts.pool.iter().flatten();
            let comes = members.any(|(_, member)| member.claimed_for.contains(&id));
            let minute = rounded_up(self.base() + MINUTE);
            let due = if comes { minute } else { next_interval(self.base()) };
            return Err(self.requeue(due, Status::AlreadyStopped, because));
        }
        if is_recent && self.is_task() {
            let due = rounded_up(self.base() + MINUTE);
            return Err(self.requeue(due, Status::StopScheduled, because));
        }
        Ok(())
    }
}
