//! What GitHub says of the whole fleet: which runners are registered where, and which jobs are open.
//!
//! A stop check asks about one VM and may end at the first job that runs there; who looks at all VMs asks each
//! repository once, since VMs share them. What could not be asked is part of the answer, and hides nothing else.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, stream};

use super::task::WaitingJob;
use super::witness::{AT_A_TIME, places, routes_to, runners_in, runs_on};
use super::{Seen, look};
use crate::clients::Error;
use crate::clients::github::{Job, Place, Progress, Runner};
use crate::clock::{Deadline, Timestamp};
use crate::fleet::{Fleet, ManagedVm, RepoName, Vm};
use crate::state::AppState;

/// Repositories that are asked at the same time.
const REPOSITORIES: usize = 2;

/// The statuses of a run that has a job left to do; most runs go the way of this order.
const OPEN: [Progress; 5] = [
    Progress::Requested,
    Progress::Waiting,
    Progress::Pending,
    Progress::Queued,
    Progress::InProgress,
];

/// VMs that are read at the same time.
const INSTANCES: usize = 8;

/// Reads every VM of the fleet, in its order.
pub(super) async fn look_at_all(
    app: &AppState,
    deadline: Deadline,
) -> Vec<Result<Seen, super::Error>> {
    let reads = app.fleet.vms().map(|vm| look(app, &vm.vm, deadline)).collect::<Vec<_>>();
    stream::iter(reads).buffered(INSTANCES).collect().await
}

/// What each place says of a VM's runners.
type Lists = Vec<(Place, Result<Vec<Runner>, Error>)>;

/// What GitHub said.
#[derive(Clone, Debug)]
pub(super) struct Survey {
    pub(super) at: Timestamp,
    /// How many calls it took, about.
    pub(super) calls: u32,
    /// Of the VMs that were asked for.
    runners: BTreeMap<Vm, Lists>,
    jobs: BTreeMap<RepoName, OpenJobs>,
}

/// The jobs of a repository that are not completed, as far as they were heard.
#[derive(Clone, Debug, Default)]
struct OpenJobs {
    jobs: BTreeMap<u64, Job>,
    runs: usize,
    error: Option<Error>,
    /// There were more runs than are read for this.
    cut: bool,
}

impl Survey {
    /// Asks for the runners of these VMs, and for the jobs of the newest runs of all repositories, so many of each.
    pub(super) async fn ask(
        app: &AppState,
        vms: &[&ManagedVm],
        most_runs: usize,
        deadline: Deadline,
    ) -> Self {
        let at = app.clock.now();
        let questions: Vec<(&ManagedVm, Place)> = vms
            .iter()
            .flat_map(|vm| places(vm).into_iter().map(move |place| (*vm, place)))
            .collect();
        let lists = questions.iter().map(|(vm, place)| runners_in(app, vm, place, deadline));
        let lists = stream::iter(lists.collect::<Vec<_>>()).buffered(AT_A_TIME).collect();
        let repos: BTreeSet<&RepoName> = app.fleet.vms().flat_map(|vm| &vm.repos).collect();
        let open = repos.iter().map(|repo| OpenJobs::ask(app, repo, most_runs, deadline));
        let open = stream::iter(open.collect::<Vec<_>>()).buffered(REPOSITORIES).collect();
        let (lists, open): (Vec<_>, Vec<OpenJobs>) = tokio::join!(lists, open);

        let of_jobs: usize = open.iter().map(|open| open.runs + OPEN.len()).sum();
        let calls = u32::try_from(lists.len() + of_jobs).unwrap_or(u32::MAX);
        let mut runners = BTreeMap::<Vm, Lists>::new();
        for ((vm, place), list) in questions.into_iter().zip(lists) {
            runners.entry(vm.vm.clone()).or_default().push((place, list));
        }
        Self { at, calls, runners, jobs: repos.into_iter().cloned().zip(open).collect() }
    }
}

impl OpenJobs {
    async fn ask(app: &AppState, repo: &RepoName, most_runs: usize, deadline: Deadline) -> Self {
        let mut open = Self::default();
        let mut read = BTreeSet::new();
        for status in OPEN {
            if let Err(error) = open.read(app, repo, (status, most_runs), &mut read, deadline).await
            {
                return Self { error: Some(error), ..open };
            }
        }
        open
    }

    /// Reads the jobs of the runs of one list.
    async fn read(
        &mut self,
        app: &AppState,
        repo: &RepoName,
        (status, most_runs): (Progress, usize),
        read: &mut BTreeSet<u64>,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let mut number = 1;
        loop {
            let page = app.github.runs(repo, status, number, deadline).await?;
            let mut runs: Vec<u64> =
                page.items.into_iter().filter(|run| read.insert(*run)).collect();
            let room = most_runs - self.runs;
            self.cut |= runs.len() > room || page.more && runs.len() == room;
            runs.truncate(room);
            self.runs += runs.len();
            let jobs = runs.iter().map(|run| app.github.jobs(repo, *run, deadline));
            let mut lists = stream::iter(jobs.collect::<Vec<_>>()).buffered(AT_A_TIME);
            while let Some(jobs) = lists.next().await {
                match jobs {
                    Ok(jobs) => {
                        let unfinished =
                            jobs.into_iter().filter(|job| job.status != Progress::Completed);
                        self.jobs.extend(unfinished.map(|job| (job.id, job)));
                    }
                    // Deleted since it was listed.
                    Err(error) if error.is_not_found() => {}
                    Err(error) => return Err(error),
                }
            }
            if !page.more || self.runs == most_runs {
                return Ok(());
            }
            number += 1;
        }
    }
}

/// What was said of one VM; of none, if nobody could ask.
#[derive(Clone, Copy, Debug)]
pub(super) struct OfVm<'a> {
    pub(super) vm: &'a ManagedVm,
    pub(super) fleet: &'a Fleet,
    pub(super) now: Timestamp,
    pub(super) survey: Option<&'a Survey>,
}

impl<'a> OfVm<'a> {
    /// What each place said that was asked for its runners.
    fn places(&self) -> &'a [(Place, Result<Vec<Runner>, Error>)] {
        self.survey.and_then(|survey| survey.runners.get(&self.vm.vm)).map_or(&[], Vec::as_slice)
    }

    /// Its runners, where they are registered.
    pub(super) fn runners(&self) -> impl Iterator<Item = (&'a Place, &'a Runner)> + use<'a> {
        let lists =
            self.places().iter().filter_map(|(place, list)| Some((place, list.as_ref().ok()?)));
        lists.flat_map(|(place, list)| list.iter().map(move |runner| (place, runner)))
    }

    fn open_jobs(&self) -> impl Iterator<Item = (&'a RepoName, &'a OpenJobs)> + use<'a> {
        let survey = self.survey;
        let of = move |repo| survey.and_then(|survey| survey.jobs.get_key_value(repo));
        self.vm.repos.iter().filter_map(of)
    }

    /// Those that run on it, wait for it, or will once something else is over.
    pub(super) fn jobs(&self) -> impl Iterator<Item = (&'a RepoName, &'a Job)> + use<'a> {
        let this = *self;
        let known = self.runners().next().is_some();
        let all = self
            .open_jobs()
            .flat_map(|(repo, open)| open.jobs.values().map(move |job| (repo, job)));
        all.filter(move |(repo, job)| match job.status {
            Progress::InProgress => runs_on(this.vm, this.fleet, known, repo, job),
            Progress::Completed => false,
            _ => {
                routes_to(this.vm, this.fleet, repo, &job.labels)
                    && !this.waits(repo, job).has_expired(this.now)
            }
        })
    }

    /// The job as one that waits, since it says, or since now.
    pub(super) fn waits(&self, repo: &RepoName, job: &Job) -> WaitingJob {
        let queued_at = job.queued_since().unwrap_or(self.now).unix_seconds();
        WaitingJob { repo: repo.clone(), id: job.id, queued_at }
    }

    /// A job that waits for a label that none of the VM's runners has is not for it.
    pub(super) fn fits(&self, job: &Job) -> bool {
        let covers = |runner: &Runner| job.labels.iter().all(|label| runner.labels.contains(label));
        job.status != Progress::Queued
            || self.runners().next().is_none()
            || self.runners().any(|(_, runner)| covers(runner))
    }

    /// Repositories that had more open runs than were read.
    pub(super) fn cut(&self) -> impl Iterator<Item = &'a RepoName> + use<'a> {
        self.open_jobs().filter(|(_, open)| open.cut).map(|(repo, _)| repo)
    }

    /// What GitHub did not say of its runners, and what to do.
    pub(super) fn runners_not_heard(&self) -> impl Iterator<Item = String> + use<'a> {
        // An account that is a user has no list, and one is enough that knows the runner.
        let known = self.runners().next().is_some();
        self.places().iter().filter_map(move |(place, list)| {
            let error = list.as_ref().err()?;
            let grant = match place {
                _ if !is_hidden(error) => "ask again".to_owned(),
                _ if known => return None,
                Place::Repository(repo) => {
                    format!("grant the GitHub App Administration: read on {repo}")
                }
                Place::Organization(login) => format!(
                    "grant the GitHub App Self-hosted runners: read in {login}, or register the runner in a repository"
                ),
            };
            Some(format!("{error}: {grant}"))
        })
    }

    /// What GitHub did not say of the jobs of its repositories, and what to do.
    pub(super) fn jobs_not_heard(&self) -> impl Iterator<Item = String> + use<'a> {
        self.open_jobs().filter_map(|(repo, open)| {
            let error = open.error.as_ref()?;
            Some(if is_hidden(error) {
                format!("{error}: grant the GitHub App Actions: read on {repo}")
            } else {
                format!("{error}, for the jobs of {repo}: ask again")
            })
        })
    }
}

/// We may not see it.
fn is_hidden(error: &Error) -> bool {
    error.is_forbidden() || error.is_not_found()
}
