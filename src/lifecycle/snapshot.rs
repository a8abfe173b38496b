//! The whole fleet at one time, for the resync and the status page: every VM, its runners, and the open jobs of each
//! repository, read once however many VMs share it.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, stream};

use super::context::{Context, Turn};
use super::decide::{Asker, Decision, Facts, Step, decide, stop_after};
use super::demand::{
    Demand, RunnerLists, RunnerState, runner_refusal, runner_state, runners_in, scopes,
};
use super::error::Error;
use super::pool::{self, Availability};
use super::scan::{CONCURRENT_CALLS, Coverage, JobScan, is_refusal};
use super::schedule::IdleSince;
use super::task::{JobRef, Task};
use super::unserved::UnservedJob;
use super::vm::{VmSnapshot, observe};
use crate::clients::github::{Job, JobStatus, Runner, RunnerScope};
use crate::clock::{Deadline, Timestamp};
use crate::fleet::{Fleet, ManagedVm, RepoName, Vm};

/// Repositories that are scanned at the same time.
const CONCURRENT_REPOSITORIES: usize = 2;

/// VMs that are read at the same time.
const CONCURRENT_VMS: usize = 8;

/// The most runs of a repository whose jobs `check` reads. Each costs a call.
const CHECKED_RUNS: usize = 20;

/// Reads every VM of the fleet, in its order.
pub(super) async fn observe_all(
    cx: &Context,
    deadline: Deadline,
) -> Vec<Result<VmSnapshot, Error>> {
    let reads = cx.fleet.vms().map(|vm| observe(cx, &vm.vm, deadline)).collect::<Vec<_>>();
    stream::iter(reads).buffered(CONCURRENT_VMS).collect().await
}

/// The VMs as they were read.
pub(super) type Reads<'a> = BTreeMap<&'a Vm, Result<&'a VmSnapshot, &'a Error>>;

/// The result of [`observe_all`], by VM.
pub(super) fn by_vm<'a>(cx: &'a Context, reads: &'a [Result<VmSnapshot, Error>]) -> Reads<'a> {
    cx.fleet.vms().map(|vm| &vm.vm).zip(reads.iter().map(Result::as_ref)).collect()
}

/// GitHub's answers about the fleet.
#[derive(Clone, Debug)]
pub(super) struct FleetSnapshot {
    pub(super) at: Timestamp,
    /// Calls that it took, about.
    pub(super) calls: u32,
    /// Of the VMs that were asked for.
    runners: BTreeMap<Vm, RunnerLists>,
    jobs: BTreeMap<RepoName, OpenJobs>,
}

/// The jobs of a repository that are not completed, as far as they were read.
#[derive(Clone, Debug)]
struct OpenJobs {
    jobs: BTreeMap<u64, Job>,
    coverage: Coverage,
    calls: u32,
}

/// The extent of a snapshot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Depth {
    pub(super) runners: Runners,
    /// The runs of a repository whose jobs are read, newest first.
    pub(super) max_runs: usize,
}

/// The VMs whose runners are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Runners {
    OfAll,
    /// Those that are not down, or that a job is queued for.
    WhereTheyMatter,
}

impl FleetSnapshot {
    /// Asks for the open jobs of each repository, and for the runners.
    pub(super) async fn take(
        cx: &Context,
        vms: &[Result<VmSnapshot, Error>],
        depth: Depth,
        deadline: Deadline,
    ) -> Self {
        let Depth { runners, max_runs } = depth;
        let at = cx.clock.now();
        let repos: BTreeSet<&RepoName> = cx.fleet.vms().flat_map(|vm| &vm.repos).collect();
        let scans = repos.iter().map(|repo| OpenJobs::read(cx, repo, max_runs, deadline));
        let scans = stream::iter(scans.collect::<Vec<_>>()).buffered(CONCURRENT_REPOSITORIES);
        let jobs: Vec<OpenJobs> = scans.collect().await;
        let jobs: BTreeMap<_, _> = repos.into_iter().cloned().zip(jobs).collect();
        let mut snapshot = Self { at, calls: 0, runners: BTreeMap::new(), jobs };

        let matters = |(vm, read): &(&ManagedVm, &Result<VmSnapshot, Error>)| {
            runners == Runners::OfAll
                || read.as_ref().is_ok_and(|read| !read.phase.is_down())
                || snapshot.has_a_queued_job(cx, vm)
        };
        let asked = cx.fleet.vms().map(|vm| &**vm).zip(vms).filter(matters);
        let questions: Vec<(&ManagedVm, RunnerScope)> = asked
            .flat_map(|(vm, _)| scopes(vm).into_iter().map(move |scope| (vm, scope)))
            .collect();
        let lists = questions.iter().map(|(vm, scope)| runners_in(cx, vm, scope, deadline));
        let lists: Vec<_> =
            stream::iter(lists.collect::<Vec<_>>()).buffered(CONCURRENT_CALLS).collect().await;

        let of_jobs: u32 = snapshot.jobs.values().map(|open| open.calls).sum();
        snapshot.calls = of_jobs.saturating_add(u32::try_from(lists.len()).unwrap_or(u32::MAX));
        for ((vm, scope), list) in questions.into_iter().zip(lists) {
            snapshot.runners.entry(vm.vm.clone()).or_default().push((scope, list));
        }
        snapshot
    }

    /// The jobs that no VM serves.
    pub(super) fn unserved(&self, fleet: &Fleet) -> Vec<UnservedJob> {
        let all = self.jobs.iter();
        let all = all.flat_map(|(repo, open)| open.jobs.values().map(move |job| (repo, job)));
        all.filter_map(|(repo, job)| UnservedJob::of(fleet, repo, job)).collect()
    }

    fn has_a_queued_job(&self, cx: &Context, vm: &ManagedVm) -> bool {
        vm.repos.iter().filter_map(|repo| self.jobs.get_key_value(repo)).any(|(repo, open)| {
            open.jobs.values().any(|job| {
                job.status == JobStatus::Queued && cx.fleet.routes_to(repo, &job.labels, &vm.vm)
            })
        })
    }
}

impl OpenJobs {
    async fn read(cx: &Context, repo: &RepoName, max_runs: usize, deadline: Deadline) -> Self {
        let mut jobs = BTreeMap::new();
        let mut scan = JobScan::new(cx, repo, cx.clock.now(), deadline).of_snapshot(max_runs);
        let coverage = scan
            .run(None, |job| {
                if job.status != JobStatus::Completed {
                    jobs.insert(job.id, job.clone());
                }
                false
            })
            .await;
        let truncated = Coverage::Partial {
            because: format!(
                "{repo} has more than {max_runs} open runs, and only the newest were read"
            ),
            resume: None,
        };
        let coverage = if scan.truncated { coverage.and(truncated) } else { coverage };
        Self { jobs, coverage, calls: scan.calls }
    }
}

/// The jobs of a repository that no VM serves, and the reason why not all of them may be known.
pub async fn unserved_jobs(
    cx: &Context,
    repo: &RepoName,
    deadline: Deadline,
) -> (Vec<UnservedJob>, Option<String>) {
    let OpenJobs { jobs, coverage, .. } = OpenJobs::read(cx, repo, CHECKED_RUNS, deadline).await;
    let unserved = jobs.values().filter_map(|job| UnservedJob::of(&cx.fleet, repo, job)).collect();
    let gap = match coverage {
        Coverage::Complete => None,
        Coverage::Partial { because, .. } | Coverage::Forbidden(because) => Some(because),
    };
    (unserved, gap)
}

/// One VM in the snapshot.
#[derive(Clone, Copy, Debug)]
pub(super) struct VmView<'a> {
    pub(super) turn: Turn<'a>,
    /// All VMs of the fleet.
    pub(super) reads: &'a Reads<'a>,
    /// None if GitHub could not be asked in time.
    pub(super) github: Option<&'a FleetSnapshot>,
}

impl<'a> VmView<'a> {
    pub(super) fn read(&self) -> Result<&'a VmSnapshot, &'a Error> {
        self.reads[&self.turn.vm.vm]
    }

    /// The decision of a pass for these facts, and the earliest time of a stop; none if the VM could not be read.
    pub(super) fn decision(&self) -> Option<(Decision, Timestamp)> {
        let Turn { cx, vm, now, .. } = self.turn;
        let read = self.read().ok()?;
        let task = Task::new(&vm.vm, read.idle_since.unwrap_or(IdleSince::BEFORE_ALL));
        let runner = self.runner_state();
        let facts = Facts {
            asker: Asker::Observer,
            now,
            inactive: cx.inactive,
            fleet: &cx.fleet,
            managed: vm,
            label_settled: true,
            task: &task,
            vm: read.clone(),
            job: None,
            demand: Some(self.demand(runner.is_registered())),
            runner: Some(runner),
            pool: Some(self.pool()),
        };
        match decide(&facts) {
            Step::Do(decision) => Some((*decision, stop_after(&facts))),
            Step::Ask(_) => None,
        }
    }

    /// The VMs of its pools, as far as the snapshot shows them.
    fn pool(&self) -> BTreeMap<Vm, Availability> {
        let availability = |vm: &Vm| {
            let Some(Ok(read)) = self.reads.get(vm) else { return Availability::default() };
            let lists = self.github.and_then(|snapshot| snapshot.runners.get(vm));
            let runners = lists.and_then(|lists| pool::runners(lists, read));
            Availability::of(read, runners, self.turn.now)
        };
        let members = self.turn.vm.peers.iter().chain([&self.turn.vm.vm]);
        members.map(|vm| (vm.clone(), availability(vm))).collect()
    }

    fn runner_state(&self) -> RunnerState {
        match self.github {
            // Where no list was read, nothing depends on it.
            Some(snapshot) => snapshot
                .runners
                .get(&self.turn.vm.vm)
                .map_or(RunnerState::Idle(Vec::new()), runner_state),
            None => RunnerState::Unavailable("another request is asking GitHub".into()),
        }
    }

    fn demand(&self, registered: bool) -> Demand {
        let mut demand = Demand::default();
        for (repo, open) in self.open_jobs() {
            for job in open.jobs.values() {
                demand.add(&self.turn, registered, repo, job);
            }
            demand.coverage = std::mem::take(&mut demand.coverage).and(open.coverage.clone());
        }
        demand
    }

    fn open_jobs(&self) -> impl Iterator<Item = (&'a RepoName, &'a OpenJobs)> + use<'a> {
        let jobs = self.github.map(|snapshot| &snapshot.jobs);
        let of = move |repo| jobs.and_then(|jobs| jobs.get_key_value(repo));
        self.turn.vm.repos.iter().filter_map(of)
    }

    /// The VM's runners, where they are registered.
    pub(super) fn runners(&self) -> impl Iterator<Item = (&'a RunnerScope, &'a Runner)> + use<'a> {
        let answered = self
            .runner_lists()
            .iter()
            .filter_map(|(scope, list)| Some((scope, list.as_ref().ok()?)));
        answered.flat_map(|(scope, list)| list.iter().map(move |runner| (scope, runner)))
    }

    fn runner_lists(&self) -> &'a [(RunnerScope, Result<Vec<Runner>, crate::clients::Error>)] {
        let lists = self.github.and_then(|snapshot| snapshot.runners.get(&self.turn.vm.vm));
        lists.map_or(&[], Vec::as_slice)
    }

    /// The jobs that run on the VM, are queued for it, or will be.
    pub(super) fn jobs(&self) -> Vec<(&'a RepoName, &'a Job)> {
        let registered = self.runners().next().is_some();
        let all = self
            .open_jobs()
            .flat_map(|(repo, open)| open.jobs.values().map(move |job| (repo, job)));
        let concerns = |(repo, job): &(&RepoName, &Job)| {
            let mut demand = Demand::default();
            demand.add(&self.turn, registered, repo, job);
            demand.elsewhere.clear();
            demand != Demand::default()
        };
        all.filter(concerns).collect()
    }

    /// The first job that is queued for the VM.
    pub(super) fn queued_job(&self) -> Option<JobRef> {
        self.demand(false).queued.into_iter().next()
    }

    /// A queued job that no runner of the VM has the labels for is not for it.
    pub(super) fn fits(&self, job: &Job) -> bool {
        job.status != JobStatus::Queued || self.runner_state().fits(&job.labels)
    }

    /// Every scope in which the VM's runner may be registered gave its list.
    pub(super) fn runners_answered(&self) -> bool {
        self.github.is_some() && self.runner_lists().iter().all(|(_, list)| list.is_ok())
    }

    /// Questions that GitHub did not answer, with advice.
    pub(super) fn unanswered(&self) -> Vec<String> {
        if self.github.is_none() {
            return vec!["GitHub: another request is asking it: ask again".to_owned()];
        }
        // One scope that knows the runner is enough; an account that is a user has no list.
        let known = self.runners().next().is_some();
        let runners = self.runner_lists().iter().filter_map(|(scope, list)| {
            let error = list.as_ref().err()?;
            match is_refusal(error) {
                true if known => None,
                true => Some(runner_refusal(scope, error)),
                false => Some(format!("{error}: ask again")),
            }
        });
        let jobs = self.open_jobs().filter_map(|(_, open)| match &open.coverage {
            Coverage::Complete => None,
            Coverage::Partial { because, .. } => Some(format!("list jobs: {because}: ask again")),
            Coverage::Forbidden(because) => Some(because.clone()),
        });
        runners.chain(jobs).collect()
    }
}
