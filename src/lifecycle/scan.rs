//! A scan of one repository for open jobs: the one lister, for a pass, the resync and the status page.
//!
//! GitHub has no list of open jobs, only of workflow runs by status. A run has the status of its least advanced job, so
//! a job that runs may be in a run of any status, and runs move from list to list while they are read. A pass may resume
//! a scan where the pass before ran out of time.

use std::collections::BTreeSet;

use futures_util::future::join_all;

use super::context::Context;
use super::task::Cursor;
use crate::clients::Error;
use crate::clients::github::{Job, JobStatus, Run};
use crate::clock::{Deadline, Timestamp};
use crate::fleet::RepoName;

/// GitHub asks its clients for no more than a few requests at a time.
pub(super) const CONCURRENT_CALLS: usize = 4;

/// The newest runs that a cursor remembers: as many as one page lists.
const MAX_LISTED: usize = 100;

/// The part of the lists of jobs that was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Coverage {
    #[default]
    Complete,
    /// Not everything was read. The next pass resumes at the cursor if only time ran out.
    Partial { because: String, resume: Option<Cursor> },
    /// The lists of a repository are refused; those of the others were read.
    Forbidden(String),
}

impl Coverage {
    /// Of two repositories together.
    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (partial @ Self::Partial { .. }, _) | (_, partial @ Self::Partial { .. }) => partial,
            (forbidden @ Self::Forbidden(_), _) | (_, forbidden @ Self::Forbidden(_)) => forbidden,
            (Self::Complete, Self::Complete) => Self::Complete,
        }
    }
}

/// The lists in their order of reading; `None` is the list of runs of any status. A run's status is that of its least
/// advanced job, so a running job may be in a run of any of these. Runs move from list to list, most in this order, and
/// some come back to `queued`.
pub(super) const LISTS: [Option<JobStatus>; 7] = [
    Some(JobStatus::Requested),
    Some(JobStatus::Waiting),
    Some(JobStatus::Pending),
    Some(JobStatus::Queued),
    Some(JobStatus::InProgress),
    Some(JobStatus::Queued),
    None,
];

/// The same without the second reading of `queued`.
const SNAPSHOT_LISTS: [Option<JobStatus>; 6] =
    [LISTS[0], LISTS[1], LISTS[2], LISTS[3], LISTS[4], LISTS[6]];

/// A scan of one repository: the jobs of all its runs that are not completed.
pub(super) struct JobScan<'a> {
    cx: &'a Context,
    repo: &'a RepoName,
    /// The time at which the scan began, perhaps in an earlier pass.
    began: Timestamp,
    deadline: Deadline,
    lists: &'static [Option<JobStatus>],
    /// The largest number of runs whose jobs are read.
    max_runs: usize,
    /// The runs whose jobs were read, by list.
    read: BTreeSet<(usize, u64)>,
    /// The runs that lists by status showed.
    listed: BTreeSet<u64>,
    /// There were more runs than `max_runs`.
    pub(super) truncated: bool,
    /// The approximate number of calls so far.
    pub(super) calls: u32,
}

impl<'a> JobScan<'a> {
    pub(super) fn new(
        cx: &'a Context,
        repo: &'a RepoName,
        began: Timestamp,
        deadline: Deadline,
    ) -> Self {
        Self {
            cx,
            repo,
            began,
            deadline,
            lists: &LISTS,
            max_runs: usize::MAX,
            read: BTreeSet::new(),
            listed: BTreeSet::new(),
            truncated: false,
            calls: 0,
        }
    }

    /// For a snapshot, which decides nothing by itself: fewer lists, and not every run.
    pub(super) fn of_snapshot(self, max_runs: usize) -> Self {
        Self { max_runs, lists: &SNAPSHOT_LISTS, ..self }
    }

    /// Gives every job of an open run to `visit`, some more than once, until it returns true.
    pub(super) async fn run(
        &mut self,
        resume: Option<&Cursor>,
        mut visit: impl FnMut(&Job) -> bool,
    ) -> Coverage {
        self.listed.extend(resume.iter().flat_map(|cursor| &cursor.listed));
        let first = resume.map_or(0, |cursor| cursor.list);
        for list in first..self.lists.len() {
            let mut before = resume.filter(|cursor| cursor.list == list).and_then(|c| c.before);
            match self.read_list(list, &mut before, &mut visit).await {
                Ok(Listing::Next) => {}
                Ok(Listing::Settled) => return Coverage::Complete,
                Ok(Listing::Missing(run)) => {
                    let because = format!(
                        "run {run} of {} is open, and GitHub's list of open runs does not show it",
                        self.repo
                    );
                    return Coverage::Partial { because, resume: None };
                }
                Err(error) if is_refusal(&error) => {
                    return Coverage::Forbidden(jobs_refusal(self.repo, &error));
                }
                Err(error) => {
                    let resume = error.status().is_none().then(|| self.cursor(list, before));
                    return Coverage::Partial { because: error.to_string(), resume };
                }
            }
        }
        Coverage::Complete
    }

    fn cursor(&self, list: usize, before: Option<u64>) -> Cursor {
        let listed = self.listed.iter().rev().take(MAX_LISTED).copied().collect();
        Cursor { repo: self.repo.clone(), list, before, began: self.began, up: false, listed }
    }

    /// Reads the jobs of the runs of one list; `before` keeps the position.
    async fn read_list(
        &mut self,
        list: usize,
        before: &mut Option<u64>,
        visit: &mut impl FnMut(&Job) -> bool,
    ) -> Result<Listing, Error> {
        let (start, status) = (*before, self.lists[list]);
        let mut number = 1;
        loop {
            self.calls += 1;
            let page = self.cx.github.runs(self.repo, status, number, self.deadline).await?;
            // The newest runs of any status show whether the lists by status can be believed.
            let (mut runs, missing) = match status {
                Some(_) => (self.listed(page.items), None),
                None => self.unlisted(page.items),
            };
            // Pages shift while they are read. The second reading of `queued` reads its runs again.
            runs.retain(|run| {
                start.is_none_or(|start| *run < start) && self.read.insert((list, *run))
            });
            let room = self.max_runs.saturating_sub(self.read.len() - runs.len());
            self.truncated |= runs.len() > room;
            runs.truncate(room);
            for few in runs.chunks(CONCURRENT_CALLS) {
                self.calls += u32::try_from(few.len()).unwrap_or(u32::MAX);
                let jobs =
                    few.iter().map(|run| self.cx.github.jobs(self.repo, *run, self.deadline));
                for (run, jobs) in few.iter().zip(join_all(jobs).await) {
                    match jobs {
                        Ok(jobs) => {
                            if jobs.iter().any(&mut *visit) {
                                return Ok(Listing::Settled);
                            }
                        }
                        // The run was deleted since it was listed.
                        Err(error) if error.is_not_found() => {}
                        Err(error) => return Err(error),
                    }
                    *before = Some(*run);
                }
            }
            if let Some(run) = missing {
                return Ok(Listing::Missing(run));
            }
            if !page.more || status.is_none() || self.truncated {
                return Ok(Listing::Next);
            }
            number += 1;
        }
    }

    fn listed(&mut self, runs: Vec<Run>) -> Vec<u64> {
        let ids: Vec<u64> = runs.into_iter().map(|run| run.id).collect();
        self.listed.extend(&ids);
        ids
    }

    /// The open runs that no list by status showed, and one of them that is older than the scan: the lists should have
    /// shown it. Its jobs are read all the same: a job that they show needs its VM, whatever else the lists leave out.
    fn unlisted(&self, newest: Vec<Run>) -> (Vec<u64>, Option<u64>) {
        let open = |run: &Run| run.status != JobStatus::Completed && !self.listed.contains(&run.id);
        let unlisted: Vec<Run> = newest.into_iter().filter(open).collect();
        let is_old = |run: &&Run| run.created_at().is_none_or(|at| at < self.began);
        let missing = unlisted.iter().find(is_old).map(|run| run.id);
        (unlisted.into_iter().map(|run| run.id).collect(), missing)
    }
}

/// The result of reading a list.
enum Listing {
    /// The next list follows.
    Next,
    /// The visitor needs no more.
    Settled,
    /// This run is open, and the lists by status did not show it.
    Missing(u64),
}

/// A refused list of jobs, with the permission that is missing where GitHub says that one is.
pub(super) fn jobs_refusal(repo: &RepoName, error: &Error) -> String {
    if error.lacks_permission() {
        format!("the jobs of {repo} are refused: grant the GitHub App Actions: read ({error})")
    } else {
        format!("the jobs of {repo} are refused ({error})")
    }
}

/// GitHub refused, or hides what was asked for.
pub(super) fn is_refusal(error: &Error) -> bool {
    error.is_forbidden() || error.is_not_found()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_repositories_are_read_if_both_are() {
        let partial = || Coverage::Partial { because: "503".into(), resume: None };
        let forbidden = || Coverage::Forbidden("403".into());
        assert_eq!(Coverage::Complete.and(Coverage::Complete), Coverage::Complete);
        assert_eq!(Coverage::Complete.and(forbidden()), forbidden());
        assert_eq!(forbidden().and(partial()), partial());
        assert_eq!(partial().and(Coverage::Complete), partial());
    }
}
