//! Jobs that no VM serves: they wait in a configured repository for a self-hosted runner, and no entry matches.
//!
//! No event about such a job does anything, so it would be invisible. Most have a mistyped label, or are for a runner that
//! this service does not manage.

use std::time::Duration;

use serde::Serialize;

use super::finding::{Finding, Level};
use super::schedule::MINUTE;
use crate::clients::github::{Job, JobStatus};
use crate::clock::Timestamp;
use crate::fleet::{Fleet, Label, Quoted, RepoName};

/// The time after which the resync warns: a runner that this service does not manage may take the job.
const PATIENCE: Duration = Duration::from_secs(5 * MINUTE.as_secs());

/// A job that no VM serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnservedJob {
    pub repo: RepoName,
    pub id: u64,
    pub name: Option<String>,
    pub labels: Vec<Label>,
    pub url: Option<String>,
    /// The time from which it has been queued, RFC 3339.
    pub since: Option<String>,
    /// The reason why no VM serves it.
    pub because: String,
    #[serde(skip)]
    queued_at: Option<Timestamp>,
}

impl UnservedJob {
    /// `None` if an entry matches, or the job does not ask for a self-hosted runner.
    pub(super) fn of(fleet: &Fleet, repo: &RepoName, job: &Job) -> Option<Self> {
        let is_self_hosted = job.labels.contains(&Label::from("self-hosted"));
        let waits = job.status == JobStatus::Queued && is_self_hosted;
        if !waits || fleet.route(repo, &job.labels).is_some() {
            return None;
        }
        let because = match fleet.nearest(repo, &job.labels) {
            None => "no entry of RUNNER_CONFIG names its repository".to_owned(),
            Some((index, mismatch)) => {
                format!("no entry matches; the nearest is RUNNER_CONFIG[{index}], but {mismatch}")
            }
        };
        let queued_at = job.queued_since();
        Some(Self {
            repo: repo.clone(),
            id: job.id,
            name: job.name.clone(),
            labels: job.labels.clone(),
            url: job.html_url.clone(),
            since: queued_at.map(Timestamp::rfc3339),
            because,
            queued_at,
        })
    }

    /// A sentence about the job.
    pub fn describe(&self) -> String {
        let Self { repo, id, labels, because, .. } = self;
        format!("job {id} of {repo} is queued for {}: {because}", Quoted(labels))
    }

    /// A warning, once the job has waited for a while.
    pub(super) fn finding(&self, now: Timestamp) -> Option<Finding> {
        let has_waited = self.queued_at.is_some_and(|at| now.since(at) >= PATIENCE);
        has_waited.then(|| Finding::new(Level::Warning, self.describe()))
    }
}
