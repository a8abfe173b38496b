//! Workflow jobs and their runs, from the queue to a conclusion.

use std::fmt;
use std::time::Duration;

use super::{GitHub, State};
use crate::clock::Timestamp;
use crate::emulators::Happening;

/// A workflow job's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a job, or a run, can be; the least advanced first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "GitHub's own words")]
pub enum JobStatus {
    Requested,
    Waiting,
    Pending,
    Queued,
    InProgress,
    Completed,
}

impl JobStatus {
    /// As GitHub writes it.
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

/// A job as a test sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobView {
    /// Its id.
    pub id: JobId,
    /// `owner/name` of its repository.
    pub repo: String,
    /// Its run.
    pub run: u64,
    /// What `runs-on` says.
    pub labels: Vec<String>,
    /// What it is now.
    pub status: JobStatus,
    /// How it ended.
    pub conclusion: Option<&'static str>,
    /// The runner that has it, had it, or lost it.
    pub runner_name: Option<String>,
    /// When it was created.
    pub queued_at: Timestamp,
    /// When its runner began, the last time.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub completed_at: Option<Timestamp>,
    /// How often it lost its runner.
    pub lost: u32,
    /// Set once it stays `in_progress` for good: see [`GitHub::leave_running`].
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
    /// When it became ready for a runner.
    pub(super) ready_at: Timestamp,
    /// Which runner it goes to, and when.
    pub(super) pickup: Option<(Timestamp, u64)>,
    /// When its runner went away.
    pub(super) lost_at: Option<Timestamp>,
    pub(super) lost: u32,
    /// It does not end of its own accord.
    pub(super) stuck: bool,
}

impl GitHub {
    /// A run with one job, which takes `duration` once a runner has it.
    pub fn queue_job<L: Into<String>>(
        &self,
        repo: &str,
        labels: impl IntoIterator<Item = L>,
        duration: Duration,
    ) -> JobId {
        self.queue_job_as(repo, labels, duration, JobStatus::Queued)
    }

    /// A run with one job that waits for a deployment review, until [`GitHub::approve`].
    pub fn queue_waiting_job<L: Into<String>>(
        &self,
        repo: &str,
        labels: impl IntoIterator<Item = L>,
        duration: Duration,
    ) -> JobId {
        self.queue_job_as(repo, labels, duration, JobStatus::Waiting)
    }

    /// A run with one job that is `status` at first. `waiting` and `queued` send a webhook `queued`, the
    /// former a webhook `waiting` too; the others, such as `pending` for a concurrency group, send nothing.
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

    /// One run with several jobs, such as a matrix.
    pub fn queue_run(&self, repo: &str, jobs: Vec<(Vec<String>, Duration)>) -> Vec<JobId> {
        self.change(|state, now| state.queue(repo, jobs, JobStatus::Queued, now))
    }

    /// Lets a job that waits, is pending or requested into the queue, with a webhook `queued`.
    pub fn approve(&self, job: JobId) {
        self.change(|state, now| state.release(job, true, now));
    }

    /// As [`GitHub::approve`], without a webhook.
    pub fn approve_silently(&self, job: JobId) {
        self.change(|state, now| state.release(job, false, now));
    }

    /// Cancels a job that is not completed.
    pub fn cancel_job(&self, job: JobId) {
        self.change(|state, now| state.complete(job, "cancelled", now));
    }

    /// Leaves a running job `in_progress` for good, as GitHub does with jobs whose runner died: its runner is free, and
    /// no `completed` is sent unless it is cancelled. A job that is not running stays as it is.
    pub fn leave_running(&self, job: JobId) {
        self.change(|state, _| state.leave_running(job));
    }

    /// Adds a run whose one job is `in_progress` since `started_at` and stays so, without a webhook.
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

    /// The job as it is now.
    pub fn job(&self, job: JobId) -> JobView {
        self.change(|state, _| state.job_view(&state.jobs[&job]))
    }

    /// All jobs, in the order in which they were added.
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
                // GitHub sends a `queued` whose job already says `waiting`, and a `waiting`.
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

    pub(super) fn release(&mut self, id: JobId, told: bool, now: Timestamp) {
        let job = self.job_mut(id);
        if job.status < JobStatus::Queued {
            job.status = JobStatus::Queued;
            job.ready_at = now;
            self.announce(id, told.then_some("queued"), now);
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

    /// A job whose runner went away is queued again, and no webhook tells.
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

    /// Tells of a job's new status, by a webhook too if GitHub sends one.
    pub(super) fn announce(&mut self, id: JobId, action: Option<&str>, at: Timestamp) {
        let job = &self.jobs[&id];
        let (status, runner) = (job.status, job.runner.as_ref().map(|(_, name)| name.clone()));
        let repo = self.repos[&job.repo].full_name();
        if let Some(run) = self.runs.get_mut(&job.run) {
            run.updated = at;
        }
        self.happenings.push(Happening::Job { at, id, repo, status, runner });
        if let Some(action) = action {
            self.deliver(id, action, at);
        }
    }
}
