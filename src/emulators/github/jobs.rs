//! Workflow jobs and their runs, from the queue to a conclusion.

use std::fmt;
use std::time::Duration;

use super::{GitHub, State};
use crate::clock::Timestamp;
use crate::emulators::Event;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The status of a job or a run; the least advanced first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum JobStatus {
    Requested,
    Waiting,
    Pending,
    Queued,
    InProgress,
    Completed,
}

impl JobStatus {
    /// The status as the API spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Waiting => "waiting",
            Self::Pending => "pending",
            Self::Queued => "queued",
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
        }
    }
}

impl fmt::Display for JobStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A job, as tests see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobView {
    pub id: JobId,
    pub repo: String,
    /// The id of its run.
    pub run: u64,
    /// The labels of `runs-on`.
    pub labels: Vec<String>,
    pub status: JobStatus,
    pub conclusion: Option<&'static str>,
    /// The runner that has or last had the job.
    pub runner_name: Option<String>,
    /// The time of its creation.
    pub queued_at: Timestamp,
    /// The time of its last start.
    pub started_at: Option<Timestamp>,
    pub completed_at: Option<Timestamp>,
    /// The number of times that it lost its runner.
    pub lost: u32,
    /// It stays `in_progress` forever: see [`GitHub::leave_running`].
    pub stuck: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) id: u64,
    pub(super) number: u64,
    pub(super) created: Timestamp,
    pub(super) updated: Timestamp,
    pub(super) repo: u64,
    pub(super) jobs: Vec<JobId>,
}

#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) id: JobId,
    pub(super) name: String,
    pub(super) labels: Vec<String>,
    pub(super) status: JobStatus,
    pub(super) conclusion: Option<&'static str>,
    pub(super) runner: Option<(u64, String)>,
    pub(super) queued_at: Timestamp,
    pub(super) started_at: Option<Timestamp>,
    pub(super) completed_at: Option<Timestamp>,
    pub(super) run: u64,
    pub(super) repo: u64,
    pub(super) duration: Duration,
    /// The time at which it was queued, the last time.
    pub(super) ready_at: Timestamp,
    /// The assigned runner, and the time at which the job starts on it.
    pub(super) pickup: Option<(Timestamp, u64)>,
    /// The time at which its runner was lost.
    pub(super) lost_at: Option<Timestamp>,
    pub(super) lost: u32,
    /// It ends only if it is cancelled.
    pub(super) stuck: bool,
}

impl GitHub {
    /// Adds a run with one queued job that takes `duration` on a runner.
    pub fn queue_job<L: Into<String>>(
        &self,
        repo: &str,
        labels: impl IntoIterator<Item = L>,
        duration: Duration,
    ) -> JobId {
        self.queue_job_as(repo, labels, duration, JobStatus::Queued)
    }

    /// Adds a run with one job that waits for a deployment review, until [`GitHub::approve`].
    pub fn queue_waiting_job<L: Into<String>>(
        &self,
        repo: &str,
        labels: impl IntoIterator<Item = L>,
        duration: Duration,
    ) -> JobId {
        self.queue_job_as(repo, labels, duration, JobStatus::Waiting)
    }

    /// Adds a run with one job of this status. `waiting` and `queued` send a webhook `queued`, and `waiting` also a webhook
    /// `waiting`; other statuses, such as `pending` for a concurrency group, send none.
    pub fn queue_job_as<L: Into<String>>(
        &self,
        repo: &str,
        labels: impl IntoIterator<Item = L>,
        duration: Duration,
        status: JobStatus,
    ) -> JobId {
        let labels: Vec<String> = labels.into_iter().map(Into::into).collect();
        self.change(|state, now| state.queue(repo, vec![(labels, duration)], status, now)[0])
    }

    /// Adds one run with several jobs, such as a matrix.
    pub fn queue_run(&self, repo: &str, jobs: Vec<(Vec<String>, Duration)>) -> Vec<JobId> {
        self.change(|state, now| state.queue(repo, jobs, JobStatus::Queued, now))
    }

    /// Queues a job that is waiting, pending or requested, with a webhook `queued`.
    pub fn approve(&self, job: JobId) {
        self.change(|state, now| state.release(job, true, now));
    }

    /// Queues a job like [`GitHub::approve`], without a webhook.
    pub fn approve_silently(&self, job: JobId) {
        self.change(|state, now| state.release(job, false, now));
    }

    /// Cancels a job that is not completed.
    pub fn cancel_job(&self, job: JobId) {
        self.change(|state, now| state.complete(job, "cancelled", now));
    }

    /// Leaves a running job `in_progress` forever, as GitHub does with some jobs whose runner died. Its runner is free, and
    /// no `completed` is sent unless the job is cancelled. Has no effect on a job that is not running.
    pub fn leave_running(&self, job: JobId) {
        self.change(|state, _| state.leave_running(job));
    }

    /// Adds a run whose one job has been `in_progress` since `started_at` and stays so. No webhook is sent.
    pub fn stuck_job<L: Into<String>>(
        &self,
        repo: &str,
        labels: impl IntoIterator<Item = L>,
        runner_name: Option<&str>,
        started_at: Timestamp,
    ) -> JobId {
        let labels: Vec<String> = labels.into_iter().map(Into::into).collect();
        self.change(|state, _| {
            let jobs = vec![(labels, Duration::ZERO)];
            let id = state.add_run(repo, jobs, JobStatus::InProgress, started_at)[0];
            let runner = runner_name.map(|name| (state.runner_id(name), name.to_owned()));
            let job = state.job_mut(id);
            (job.runner, job.started_at, job.stuck) = (runner, Some(started_at), true);
            id
        })
    }

    pub fn job(&self, job: JobId) -> JobView {
        self.change(|state, _| state.job_view(&state.jobs[&job]))
    }

    /// All jobs, in the order of their creation.
    pub fn jobs(&self) -> Vec<JobView> {
        self.change(|state, _| state.jobs.values().map(|job| state.job_view(job)).collect())
    }
}

impl State {
    pub(super) fn job_view(&self, job: &Job) -> JobView {
        JobView {
            id: job.id,
            repo: self.repos[&job.repo].full_name(),
            run: job.run,
            labels: job.labels.clone(),
            status: job.status,
            conclusion: job.conclusion,
            runner_name: job.runner.as_ref().map(|(_, name)| name.clone()),
            queued_at: job.queued_at,
            started_at: job.started_at,
            completed_at: job.completed_at,
            lost: job.lost,
            stuck: job.stuck,
        }
    }

    pub(super) fn queue(
        &mut self,
        repo: &str,
        jobs: Vec<(Vec<String>, Duration)>,
        status: JobStatus,
        now: Timestamp,
    ) -> Vec<JobId> {
        let ids = self.add_run(repo, jobs, status, now);
        for id in &ids {
            match status {
                JobStatus::Queued => self.announce(*id, Some("queued"), now),
                // GitHub sends a `queued` whose job has the status `waiting`, and a `waiting`.
                JobStatus::Waiting => {
                    self.announce(*id, Some("queued"), now);
                    self.deliver(*id, "waiting", now);
                }
                _ => self.announce(*id, None, now),
            }
        }
        ids
    }

    fn add_run(
        &mut self,
        repo: &str,
        jobs: Vec<(Vec<String>, Duration)>,
        status: JobStatus,
        now: Timestamp,
    ) -> Vec<JobId> {
        let repo = self.repo_mut(repo).id;
        let id = 19_000_000_000 + self.next();
        let number = 1 + self.runs.values().filter(|run| run.repo == repo).count() as u64;
        let run = Run { id, number, created: now, updated: now, repo, jobs: Vec::new() };
        self.runs.insert(id, run);
        let matrix = jobs.len() > 1;
        let mut ids = Vec::new();
        for (index, (labels, duration)) in jobs.into_iter().enumerate() {
            let job = Job {
                id: JobId(54_000_000_000 + self.next()),
                name: if matrix { format!("build ({index})") } else { "build".to_owned() },
                labels,
                status,
                conclusion: None,
                runner: None,
                queued_at: now,
                started_at: None,
                completed_at: None,
                run: id,
                repo,
                duration,
                ready_at: now,
                pickup: None,
                lost_at: None,
                lost: 0,
                stuck: false,
            };
            ids.push(job.id);
            self.active.insert(job.id);
            self.jobs.insert(job.id, job);
        }
        if let Some(run) = self.runs.get_mut(&id) {
            run.jobs = ids.clone();
        }
        ids
    }

    pub(super) fn release(&mut self, id: JobId, webhook: bool, now: Timestamp) {
        let job = self.job_mut(id);
        if job.status < JobStatus::Queued {
            job.status = JobStatus::Queued;
            job.ready_at = now;
            self.announce(id, webhook.then_some("queued"), now);
        }
    }

    pub(super) fn begin(&mut self, id: JobId, at: Timestamp) {
        let Some((_, runner)) = self.job_mut(id).pickup.take() else { return };
        let name = self.runners[&runner].spec.name.clone();
        let job = self.job_mut(id);
        job.status = JobStatus::InProgress;
        job.started_at = Some(at);
        job.runner = Some((runner, name));
        self.announce(id, Some("in_progress"), at);
    }

    pub(super) fn complete(&mut self, id: JobId, conclusion: &'static str, at: Timestamp) {
        if !self.active.remove(&id) {
            return;
        }
        let job = self.job_mut(id);
        job.status = JobStatus::Completed;
        job.conclusion = Some(conclusion);
        job.completed_at = Some(at);
        job.pickup = None;
        self.free_runner_of(id);
        self.announce(id, Some("completed"), at);
    }

    fn leave_running(&mut self, id: JobId) {
        let job = self.job_mut(id);
        if job.status == JobStatus::InProgress {
            job.stuck = true;
            job.lost_at = None;
            self.free_runner_of(id);
        }
    }

    fn free_runner_of(&mut self, id: JobId) {
        for runner in self.runners.values_mut() {
            runner.job.take_if(|job| *job == id);
        }
    }

    /// Queues a job again whose runner was lost. GitHub sends no webhook for it.
    pub(super) fn requeue(&mut self, id: JobId, at: Timestamp) {
        let job = self.job_mut(id);
        job.status = JobStatus::Queued;
        job.runner = None;
        job.started_at = None;
        job.lost_at = None;
        job.ready_at = at;
        self.announce(id, None, at);
    }

    pub(super) fn job_mut(&mut self, id: JobId) -> &mut Job {
        self.jobs.get_mut(&id).unwrap_or_else(|| panic!("there is no job {id}"))
    }

    /// Reports a job's new status as an event, and as a webhook if GitHub sends one.
    pub(super) fn announce(&mut self, id: JobId, action: Option<&str>, at: Timestamp) {
        let job = &self.jobs[&id];
        let (status, runner) = (job.status, job.runner.as_ref().map(|(_, name)| name.clone()));
        let repo = self.repos[&job.repo].full_name();
        if let Some(run) = self.runs.get_mut(&job.run) {
            run.updated = at;
        }
        self.events.push(Event::Job { at, id, repo, status, runner });
        if let Some(action) = action {
            self.deliver(id, action, at);
        }
    }
}
