//! The fleet's status for an operator: each VM, the reason why it is up, and the earliest time of a stop.
//!
//! The page shows the decision that a pass would make, and does nothing. A failed query is reported by VM, and hides
//! nothing else. Compute Engine is queried each time. The passes need GitHub's hourly limit, so GitHub is queried again
//! only after a while, or once a VM has changed; until then its last answers are shown with their time.

use std::time::Duration;

use serde::Serialize;
use tokio::sync::Mutex;

use super::context::{Context, Turn};
use super::decide::Action;
use super::error::Error;
use super::outcome;
use super::schedule::IdleSince;
use super::snapshot::{Depth, FleetSnapshot, Runners, VmView, by_vm, observe_all};
use super::unserved::UnservedJob;
use super::vm::{Phase, VmSnapshot};
use crate::clients::compute;
use crate::clients::github::{Job, Runner, RunnerScope};
use crate::clock::{Deadline, Timestamp};
use crate::fleet::{Fleet, Label, Pool, RepoName};

/// The most runs of a repository whose jobs are shown. Each costs a call.
const MAX_RUNS: usize = 50;

/// The time for which a snapshot is shown, for each call to GitHub that it took: the first if a VM has changed since.
/// An operator who watches all day then leaves most of GitHub's 5,000 calls an hour to the passes.
const CHANGED: Duration = Duration::from_secs(1);
const UNCHANGED: Duration = Duration::from_secs(2);

/// The fleet's status. Times are RFC 3339, in UTC; `None` means not known.
#[derive(Debug, Serialize)]
pub struct Report {
    pub now: String,
    /// The time of the data about runners and jobs.
    pub github_asked_at: Option<String>,
    /// The time that a VM stays up after its last job.
    pub inactive_minutes: u64,
    /// Every VM that an entry names.
    pub vms: Vec<VmReport>,
    /// The jobs that wait for a self-hosted runner and that no entry matches.
    pub unserved_jobs: Vec<UnservedJob>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct VmReport {
    vm_instance_name: String,
    vm_instance_zone: String,
    /// Compute Engine's status.
    status: Option<String>,
    /// The time of the last start, stop or suspension that led to this status.
    since: Option<String>,
    idle_since: Option<String>,
    held: Option<bool>,
    /// The jobs of its pool for which it was taken a moment ago.
    claimed_for: Vec<u64>,
    /// The earliest time of a stop; none while something needs the VM, or it is held.
    stop_after: Option<String>,
    because: Option<String>,
    runners: Vec<RunnerReport>,
    jobs: Vec<JobReport>,
    entries: Vec<EntryReport>,
    /// The queries that failed, with advice.
    not_asked: Vec<String>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct RunnerReport {
    name: String,
    registered_in: String,
    online: bool,
    busy: bool,
    version: Option<String>,
    labels: Vec<Label>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct JobReport {
    repo: RepoName,
    id: u64,
    name: Option<String>,
    status: &'static str,
    url: Option<String>,
    since: Option<String>,
    runner_name: Option<String>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct EntryReport {
    /// Its position in RUNNER_CONFIG.
    index: usize,
    repo: RepoName,
    labels: Vec<Label>,
    /// All labels of its runner, if RUNNER_CONFIG names them: then these alone decide.
    runner_labels: Vec<Label>,
    /// The names of the VMs that serve the same jobs, in their order: itself, and the others of its pool.
    pool: Vec<String>,
}

/// The reason for a VM without the label, which the resync leaves alone.
const NOT_OURS: &str = "nothing needs it, but this service did not start it: it is not stopped until a job came or it \
                        was released";

/// Describes the whole fleet.
pub async fn report(cx: &Context, cache: &StatusCache, deadline: Deadline) -> Report {
    let now = cx.clock.now();
    let reads = observe_all(cx, deadline).await;
    let github = cache.snapshot(cx, &reads, deadline).await;
    let reads = by_vm(cx, &reads);
    let view = |vm| {
        let turn = Turn { cx, vm, now, deadline };
        describe(&VmView { turn, reads: &reads, github: github.as_ref() })
    };
    Report {
        now: now.rfc3339(),
        github_asked_at: github.as_ref().map(|github| github.at.rfc3339()),
        inactive_minutes: cx.inactive.as_secs() / 60,
        vms: cx.fleet.vms().map(|vm| view(vm)).collect(),
        unserved_jobs: github.as_ref().map(|github| github.unserved(&cx.fleet)).unwrap_or_default(),
    }
}

/// The state of the VMs that changes when GitHub has news: each event of a job writes the label, or starts the VM.
type State = Vec<Option<(compute::Status, Option<IdleSince>)>>;

/// The last snapshot, and the VMs' state at the time. Locked while GitHub is queried, so that concurrent requests share
/// the answer.
#[derive(Debug, Default)]
pub struct StatusCache(Mutex<Option<(State, FleetSnapshot)>>);

impl StatusCache {
    /// `None` if another request is still querying GitHub when time runs out.
    async fn snapshot(
        &self,
        cx: &Context,
        reads: &[Result<VmSnapshot, Error>],
        deadline: Deadline,
    ) -> Option<FleetSnapshot> {
        let state = |read: &Result<VmSnapshot, Error>| {
            read.as_ref().ok().map(|read| (read.instance.status.clone(), read.idle_since))
        };
        let state: State = reads.iter().map(state).collect();
        let mut last = tokio::time::timeout(deadline.remaining() / 2, self.0.lock()).await.ok()?;
        if let Some((then, snapshot)) = last.as_ref() {
            let lasts = if *then == state { UNCHANGED } else { CHANGED } * snapshot.calls;
            if cx.clock.now().since(snapshot.at) < lasts {
                return Some(snapshot.clone());
            }
        }
        let snapshot = FleetSnapshot::take(
            cx,
            reads,
            Depth { runners: Runners::OfAll, max_runs: MAX_RUNS },
            deadline,
        )
        .await;
        Some(last.insert((state, snapshot)).1.clone())
    }
}

fn describe(view: &VmView<'_>) -> VmReport {
    let read = view.read().ok();
    let decided = view.decision();
    let idle = decided.as_ref().is_some_and(|(decision, _)| {
        decision.action == Action::Stop || decision.status == outcome::Status::StopScheduled
    });
    let is_up = read.is_some_and(|read| read.phase == Phase::Up && read.idle_since.is_some());
    let stop_after = decided.as_ref().map(|(_, at)| at.rfc3339()).filter(|_| idle && is_up);
    let vm = &view.turn.vm.vm;
    VmReport {
        vm_instance_name: vm.name.clone(),
        vm_instance_zone: vm.zone.clone(),
        status: read.map(VmSnapshot::status),
        since: read.and_then(since).map(Timestamp::rfc3339),
        idle_since: read.and_then(|read| read.idle_since).map(|at| at.time().rfc3339()),
        held: read.map(VmSnapshot::is_held),
        claimed_for: read.map(|read| claims(read, view.turn.now)).unwrap_or_default(),
        stop_after,
        because: decided.map(|(decision, _)| match read {
            Some(read) if idle && read.phase == Phase::Up && read.idle_since.is_none() => {
                NOT_OURS.to_owned()
            }
            _ => decision.because,
        }),
        runners: view.runners().map(|(scope, runner)| RunnerReport::new(scope, runner)).collect(),
        jobs: view.jobs().into_iter().map(|(repo, job)| JobReport::new(repo, job)).collect(),
        entries: entries(view),
        not_asked: view.read().err().map(unread).into_iter().chain(view.unanswered()).collect(),
    }
}

fn entries(view: &VmView<'_>) -> Vec<EntryReport> {
    let all = view.turn.cx.fleet.entries().iter().enumerate();
    all.filter(|(_, entry)| entry.vm == view.turn.vm.vm)
        .map(|(index, entry)| EntryReport {
            index,
            repo: entry.repo.clone(),
            labels: entry.labels.clone(),
            runner_labels: entry.runner_labels.clone(),
            pool: pool_of(&view.turn.cx.fleet, index),
        })
        .collect()
}

fn pool_of(fleet: &Fleet, entry: usize) -> Vec<String> {
    let vms = fleet.pool_of_entry(entry).map(Pool::vms).unwrap_or_default();
    vms.iter().map(|vm| vm.vm.name.clone()).collect()
}

fn unread(error: &Error) -> String {
    match error {
        Error::Upstream(error) if error.lacks_permission() => {
            format!("{error}: grant compute.instances.get to the service's account")
        }
        Error::Upstream(error) => format!("{error}: ask again"),
        error => error.to_string(),
    }
}

fn claims(read: &VmSnapshot, now: Timestamp) -> Vec<u64> {
    read.fresh_claims(now).iter().map(|claim| claim.job).collect()
}

/// The start of the current status, if Compute Engine records it: it does not for a start or a stop in progress.
fn since(read: &VmSnapshot) -> Option<Timestamp> {
    match read.phase {
        Phase::Up => read.instance.last_start,
        Phase::Stopped => read.instance.last_stop,
        Phase::Suspended => read.instance.last_suspend,
        Phase::Booting | Phase::Leaving => None,
    }
}

impl RunnerReport {
    fn new(scope: &RunnerScope, runner: &Runner) -> Self {
        Self {
            name: runner.name.clone(),
            registered_in: match scope {
                RunnerScope::Repository(repo) => repo.to_string(),
                RunnerScope::Organization(login) => login.clone(),
            },
            online: runner.online,
            busy: runner.busy,
            version: runner.version.clone(),
            labels: runner.labels.clone(),
        }
    }
}

impl JobReport {
    fn new(repo: &RepoName, job: &Job) -> Self {
        Self {
            repo: repo.clone(),
            id: job.id,
            name: job.name.clone(),
            status: job.status.as_str(),
            url: job.html_url.clone(),
            since: job.queued_since().map(Timestamp::rfc3339),
            runner_name: job.runner_name.clone().filter(|name| !name.is_empty()),
        }
    }
}
