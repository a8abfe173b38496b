//! The two witnesses that a VM is idle: its runner, and the jobs that it could run.
//!
//! One alone is no proof. GitHub's `busy` was measured false for a minute after a job began, and flipping to
//! false in the middle of one; and while we list jobs, runs move from one list to another.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};

use super::task::WaitingJob;
use crate::clients::Error;
use crate::clients::github::{Job, Place, Progress, Runner};
use crate::clock::{Deadline, Timestamp};
use crate::fleet::{Fleet, Label, ManagedVm, RepoName, Vm};
use crate::state::AppState;

/// GitHub asks for no more than a few requests at a time.
pub(super) const AT_A_TIME: usize = 4;

/// What the first witness says: the VM's runner, wherever it may be registered.
#[derive(Clone, Debug)]
pub(super) enum Sighting {
    /// It works, says this place.
    Busy(Place),
    /// It does not work. Its labels; of each, if there are several; of none, if none is registered.
    Idle(Vec<Vec<Label>>),
    /// A place could not be asked.
    NotHeard(Error),
    /// No place that we may read knows it, and this one we may not read.
    Forbidden(Place, Error),
}

impl Sighting {
    /// Whether the labels of a job fit the runner's, as far as those are known.
    pub(super) fn fits(&self, job: &[Label]) -> bool {
        let covers = |runner: &Vec<Label>| job.iter().all(|label| runner.contains(label));
        match self {
            Self::Idle(runners) => runners.is_empty() || runners.iter().any(covers),
            Self::Busy(_) | Self::NotHeard(_) | Self::Forbidden(..) => true,
        }
    }

    /// Whether the runner is registered somewhere: then a job of another runner is not ours.
    fn knows_the_runner(&self) -> bool {
        matches!(self, Self::Busy(_)) || matches!(self, Self::Idle(runners) if !runners.is_empty())
    }
}

/// Where the VM's runner may be registered: in the repositories of its entries, and in the accounts that own
/// them, since a repository's list leaves out the organization's runners.
pub fn places(vm: &ManagedVm) -> Vec<Place> {
    let owners: BTreeSet<&str> = vm.repos.iter().map(RepoName::owner).collect();
    let repositories = vm.repos.iter().cloned().map(Place::Repository);
    let organizations = owners.into_iter().map(|login| Place::Organization(login.to_owned()));
    repositories.chain(organizations).collect()
}

/// The VM's runners that are registered in `place`.
///
/// # Errors
/// As for [`runners`](crate::clients::github::GitHub::runners).
pub async fn runners_in(
    app: &AppState,
    vm: &ManagedVm,
    place: &Place,
    deadline: Deadline,
) -> Result<Vec<Runner>, Error> {
    let mut runners = app.github.runners(place, vm.runner_names.only(), deadline).await?;
    runners.retain(|runner| vm.runner_names.contain(&runner.name));
    Ok(runners)
}

/// Looks for the VM's runner wherever it may be registered.
pub(super) async fn look_at_runner(app: &AppState, vm: &ManagedVm, deadline: Deadline) -> Sighting {
    let places = places(vm);
    let lists: Vec<_> = places.iter().map(|place| runners_in(app, vm, place, deadline)).collect();
    let lists: Vec<_> = stream::iter(lists).buffered(AT_A_TIME).collect().await;

    let mut known = Vec::new();
    let (mut unheard, mut forbidden) = (None, None);
    for (place, list) in places.into_iter().zip(lists) {
        match list {
            Ok(runners) => {
                for runner in runners {
                    if runner.busy {
                        return Sighting::Busy(place);
                    }
                    known.push(runner.labels);
                }
            }
            // An account that is a user has no such list: 404, the same as for one that we may not read.
            Err(error) if error.is_forbidden() || error.is_not_found() => {
                forbidden.get_or_insert((place, error));
            }
            Err(error) => unheard = Some(error),
        }
    }
    match (unheard, forbidden) {
        (Some(error), _) => Sighting::NotHeard(error),
        (None, Some((place, error))) if known.is_empty() => Sighting::Forbidden(place, error),
        (None, _) => Sighting::Idle(known),
    }
}

/// What the second witness says: the jobs that the VM could run.
#[derive(Clone, Debug, Default)]
pub(super) struct Testimony {
    /// A job that runs on the VM.
    pub(super) running: Option<JobRef>,
    /// Jobs that wait and would go to the VM, by their labels.
    pub(super) waiting: Vec<Waiting>,
    /// A job that may yet go to the VM: it waits for something else first, or runs on another, which may vanish.
    pub(super) later: Option<WaitingJob>,
    /// For each other VM a job that waits and would go there.
    pub(super) elsewhere: BTreeMap<Vm, WaitingJob>,
    /// Whether everything was read.
    pub(super) heard: Heard,
}

/// How much of the second witness was heard.
#[derive(Clone, Debug, Default)]
pub(super) enum Heard {
    /// All there was.
    #[default]
    All,
    /// Not all; if time ran out, where to go on.
    NotAll(Error, Option<Cursor>),
    /// A repository's runs may not be read.
    Forbidden(RepoName, Error),
}

/// Which job, for a person to find it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct JobRef {
    pub(super) repo: RepoName,
    pub(super) id: u64,
}

impl std::fmt::Display for JobRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "job {} of {}", self.id, self.repo)
    }
}

/// A job that waits, and what it asks of a runner.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) job: WaitingJob,
    pub(super) labels: Vec<Label>,
}

impl Waiting {
    pub(super) fn job_ref(&self) -> JobRef {
        JobRef { repo: self.job.repo.clone(), id: self.job.id }
    }
}

/// How far the second witness was heard: the position in its lists. A hint, as all that a task carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cursor {
    repo: RepoName,
    list: usize,
    /// Runs are listed newest first: go on with those older than this one.
    before: Option<u64>,
}

/// A run's status is that of its least advanced job, so a running job may be in a run of any of these. Runs
/// move from list to list as they go on; most go the way of this order, and some come back to `queued`.
const LISTS: [Progress; 6] = [
    Progress::Requested,
    Progress::Waiting,
    Progress::Pending,
    Progress::Queued,
    Progress::InProgress,
    Progress::Queued,
];

/// What a hearing is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Whether the VM can be stopped: it ends at the first job that runs here.
    MayStop,
    /// Whether a job waits for the VM: it goes on to the end.
    WhoWaits,
}

/// Reads the jobs of all runs of the VM's repositories that are not completed, from `cursor` on.
pub(super) async fn ask_for_jobs(
    app: &AppState,
    vm: &ManagedVm,
    purpose: Purpose,
    runner: Option<&Sighting>,
    cursor: Option<&Cursor>,
    deadline: Deadline,
) -> Testimony {
    let known = runner.is_some_and(Sighting::knows_the_runner);
    let hearing = Hearing { app, vm, purpose, known, deadline };
    // A cursor of another configuration, or of another version, leads nowhere.
    let cursor =
        cursor.filter(|cursor| vm.repos.contains(&cursor.repo) && cursor.list < LISTS.len());
    let mut testimony = Testimony::default();
    let mut forbidden = None;
    for repo in vm.repos.iter().filter(|repo| cursor.is_none_or(|cursor| **repo >= cursor.repo)) {
        let here = cursor.filter(|cursor| cursor.repo == *repo);
        let mut read = BTreeSet::new();
        for (list, status) in
            LISTS.into_iter().enumerate().skip(here.map_or(0, |cursor| cursor.list))
        {
            let mut before =
                here.filter(|cursor| cursor.list == list).and_then(|cursor| cursor.before);
            let heard = hearing
                .read_list(repo, (list, status), &mut before, &mut read, &mut testimony)
                .await;
            match heard {
                Ok(()) if hearing.is_settled_by(&testimony) => return testimony,
                Ok(()) => {}
                Err(error) if error.is_forbidden() || error.is_not_found() => {
                    forbidden.get_or_insert((repo.clone(), error));
                    break;
                }
                Err(error) => {
                    // A call without an answer is the last that there was time for, unless it was the first
                    // of all: then nobody listens.
                    let go_on = Cursor { repo: repo.clone(), list, before };
                    let first = cursor.map_or(
                        list == 0 && before.is_none() && vm.repos.first() == Some(repo),
                        |c| *c == go_on,
                    );
                    let out_of_time = error.status().is_none() && !first;
                    testimony.heard = Heard::NotAll(error, out_of_time.then_some(go_on));
                    return testimony;
                }
            }
        }
    }
    if let Some((repo, error)) = forbidden {
        testimony.heard = Heard::Forbidden(repo, error);
    }
    testimony
}

/// One hearing of the second witness.
struct Hearing<'a> {
    app: &'a AppState,
    vm: &'a ManagedVm,
    purpose: Purpose,
    /// The VM's runner is registered, so jobs tell by its name whether they run here.
    known: bool,
    deadline: Deadline,
}

impl Hearing<'_> {
    /// Reads the jobs of the runs of one list, `before` telling all the time how far it has come.
    async fn read_list(
        &self,
        repo: &RepoName,
        (list, status): (usize, Progress),
        before: &mut Option<u64>,
        read: &mut BTreeSet<(usize, u64)>,
        testimony: &mut Testimony,
    ) -> Result<(), Error> {
        let start = *before;
        let mut number = 1;
        loop {
            let page = self.app.github.runs(repo, status, number, self.deadline).await?;
            let runs: Vec<u64> = page
                .items
                .into_iter()
                // Pages shift while they are read; but the second look at `queued` is a look.
                .filter(|run| start.is_none_or(|start| *run < start) && read.insert((list, *run)))
                .collect();
            for some in runs.chunks(AT_A_TIME) {
                let jobs = join_all(
                    some.iter().map(|run| self.app.github.jobs(repo, *run, self.deadline)),
                )
                .await;
                for (run, jobs) in some.iter().zip(jobs) {
                    match jobs {
                        Ok(jobs) => {
                            jobs.into_iter().for_each(|job| self.note(repo, job, testimony))
                        }
                        // Deleted since it was listed.
                        Err(error) if error.is_not_found() => {}
                        Err(error) => return Err(error),
                    }
                    if self.is_settled_by(testimony) {
                        return Ok(());
                    }
                    *before = Some(*run);
                }
            }
            if !page.more {
                return Ok(());
            }
            number += 1;
        }
    }

    fn is_settled_by(&self, testimony: &Testimony) -> bool {
        self.purpose == Purpose::MayStop && testimony.running.is_some()
    }

    /// Notes the job if it runs on the VM, or waits and would go to it.
    fn note(&self, repo: &RepoName, job: Job, testimony: &mut Testimony) {
        let now = self.app.clock.now();
        match job.status {
            Progress::InProgress if runs_on(self.vm, &self.app.fleet, self.known, repo, &job) => {
                testimony.running = Some(JobRef { repo: repo.clone(), id: job.id });
            }
            Progress::Queued => {
                let Some(routed) = self.app.fleet.route(repo, &job.labels) else { return };
                let queued_at = job.queued_since().unwrap_or(now).unix_seconds();
                let waiting = WaitingJob { repo: repo.clone(), id: job.id, queued_at };
                if routed.vm != self.vm.vm {
                    testimony.elsewhere.entry(routed.vm.clone()).or_insert(waiting);
                    return;
                }
                let seen = testimony.waiting.iter().any(|seen| seen.job.id == waiting.id);
                if !seen && !waiting.has_expired(now) {
                    testimony.waiting.push(Waiting { job: waiting, labels: job.labels });
                }
            }
            Progress::InProgress | Progress::Waiting | Progress::Pending | Progress::Requested
                if testimony.later.is_none()
                    && routes_to(self.vm, &self.app.fleet, repo, &job.labels) =>
            {
                // One that runs may do so for days, and begins to wait anew if its VM vanishes.
                let since =
                    if job.status == Progress::InProgress { None } else { job.queued_since() };
                let queued_at = since.unwrap_or(now).unix_seconds();
                let later = WaitingJob { repo: repo.clone(), id: job.id, queued_at };
                testimony.later = Some(later).filter(|job| !job.has_expired(now));
            }
            _ => {}
        }
    }
}

/// Whether a job that is in progress runs on the VM. Where its runner is `known`, the name alone tells.
pub(super) fn runs_on(
    vm: &ManagedVm,
    fleet: &Fleet,
    known: bool,
    repo: &RepoName,
    job: &Job,
) -> bool {
    let Some(name) = job.runner_name.as_deref().filter(|name| !name.is_empty()) else {
        return routes_to(vm, fleet, repo, &job.labels);
    };
    let elsewhere = || fleet.owner_of_runner(repo, name).is_some();
    vm.runner_names.contain(name)
        || (!known && !elsewhere() && routes_to(vm, fleet, repo, &job.labels))
}

/// Whether a job of these labels goes to the VM.
pub(super) fn routes_to(vm: &ManagedVm, fleet: &Fleet, repo: &RepoName, labels: &[Label]) -> bool {
    fleet.route(repo, labels).is_some_and(|routed| routed.vm == vm.vm)
}

/// What became of the job that a start check carries.
#[derive(Clone, Debug)]
pub(super) enum Fate {
    /// It waits for a runner with these labels.
    Waits(Vec<Label>),
    /// It waits for something else first: a review, another job.
    NotYet,
    /// It runs: if its VM vanishes, it waits again, and no webhook says so.
    Runs,
    /// It is over, or GitHub has dropped it.
    Over,
    /// GitHub knows no such job, or does not show it to us.
    Gone,
    /// GitHub could not be asked.
    NotHeard(Error),
    /// GitHub may not be asked.
    Forbidden(Error),
}

/// Asks GitHub for the job.
pub(super) async fn ask_for_job(
    app: &AppState,
    job: &WaitingJob,
    now: Timestamp,
    deadline: Deadline,
) -> Fate {
    if job.has_expired(now) {
        return Fate::Over;
    }
    match app.github.job(&job.repo, job.id, deadline).await {
        Ok(job) => match job.status {
            Progress::Queued => Fate::Waits(job.labels),
            Progress::InProgress => Fate::Runs,
            Progress::Completed => Fate::Over,
            Progress::Requested | Progress::Waiting | Progress::Pending | Progress::Unknown => {
                Fate::NotYet
            }
        },
        Err(error) if error.is_not_found() => Fate::Gone,
        Err(error) if error.is_forbidden() => Fate::Forbidden(error),
        Err(error) => Fate::NotHeard(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> Vec<Label> {
        text.split_whitespace().map(Label::from).collect()
    }

    #[test]
    fn a_job_fits_if_one_runner_has_all_its_labels() {
        let one = Sighting::Idle(vec![labels("self-hosted Linux X64 gpu")]);
        assert!(one.fits(&labels("self-hosted GPU")));
        assert!(!one.fits(&labels("self-hosted arm64")));
        let two = Sighting::Idle(vec![labels("self-hosted a"), labels("self-hosted b")]);
        assert!(two.fits(&labels("b")) && !two.fits(&labels("a b")));
        assert!(Sighting::Idle(Vec::new()).fits(&labels("anything")));
    }
}
