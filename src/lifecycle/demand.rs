//! The demand for a VM according to GitHub: its runner, the job in evidence, and the open jobs.
//!
//! No source is proof by itself. GitHub's `busy` was measured false for a minute after a job began, and flipping to false
//! in the middle of one; and while runs are listed, they move from one list to another. So a scheduled stop needs two
//! sources that agree: the runner's registration, and the list of jobs.
//!
//! There is one lister, [`JobScan`]. A pass asks it about the VM's repositories, may end at the first job that runs on the
//! VM, and may resume where the pass before ran out of time. The resync and the status page ask it about each
//! repository once. [`Demand`] sorts the jobs that it found for one VM.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::{StreamExt, stream};

use super::context::{Context, Turn};
use super::scan::{CONCURRENT_CALLS, Coverage, JobScan, LISTS, is_refusal, jobs_refusal};
use super::schedule::DAY;
use super::task::{Cursor, JobRef};
use crate::clients::Error;
use crate::clients::github::{Job, JobStatus, Runner, RunnerScope};
use crate::clock::{Deadline, Timestamp};
use crate::fleet::{Fleet, Label, ManagedVm, RepoName, Vm};

/// GitHub ends a job after five days. One that it shows running for longer has lost its runner.
const LONGEST_JOB: Duration = Duration::from_secs(5 * DAY.as_secs());

/// The registration of a VM's runners and their `busy` flags, in all scopes together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RunnerState {
    Busy {
        because: String,
        /// All busy runners are offline.
        offline: bool,
    },
    /// The labels of each runner; empty if none is registered.
    Idle(Vec<Vec<Label>>),
    /// The same, but a repository refused its list, and the organization does not know the runner: it may be busy there.
    IdleElsewhere { runners: Vec<Vec<Label>>, because: String },
    /// A scope could not be queried.
    Unavailable(String),
    /// A scope refused, and no other knows the runner.
    Forbidden(String),
}

impl RunnerState {
    /// A runner has all labels of the job, as far as the runners are known.
    pub(super) fn fits(&self, job: &[Label]) -> bool {
        match self {
            Self::Idle(runners) | Self::IdleElsewhere { runners, .. } => {
                runners.is_empty() || runners.iter().any(|all| covers(all, job))
            }
            Self::Busy { .. } | Self::Unavailable(_) | Self::Forbidden(_) => true,
        }
    }

    /// A runner is registered, so a job that runs under another name does not run on the VM.
    pub(super) fn is_registered(&self) -> bool {
        match self {
            Self::Busy { .. } | Self::IdleElsewhere { .. } => true,
            Self::Idle(runners) => !runners.is_empty(),
            Self::Unavailable(_) | Self::Forbidden(_) => false,
        }
    }
}

fn covers(runner: &[Label], job: &[Label]) -> bool {
    job.iter().all(|label| runner.contains(label))
}

/// The scopes in which the VM's runner may be registered: the repositories of its entries, and the accounts that own
/// them, since a repository's list leaves out the organization's runners.
pub fn scopes(vm: &ManagedVm) -> Vec<RunnerScope> {
    let owners: BTreeSet<&str> = vm.repos.iter().map(RepoName::owner).collect();
    let repositories = vm.repos.iter().cloned().map(RunnerScope::Repository);
    let organizations = owners.into_iter().map(|login| RunnerScope::Organization(login.to_owned()));
    repositories.chain(organizations).collect()
}

/// The VM's runners that are registered in `scope`.
pub async fn runners_in(
    cx: &Context,
    vm: &ManagedVm,
    scope: &RunnerScope,
    deadline: Deadline,
) -> Result<Vec<Runner>, Error> {
    let mut runners = cx.github.runners(scope, vm.runner_names.only(), deadline).await?;
    runners.retain(|runner| vm.runner_names.contain(&runner.name));
    Ok(runners)
}

/// The runners of a VM by scope, as far as the scopes answered.
pub(super) type RunnerLists = Vec<(RunnerScope, Result<Vec<Runner>, Error>)>;

/// Asks every scope for the VM's runner.
pub(super) async fn runner_lists(cx: &Context, vm: &ManagedVm, deadline: Deadline) -> RunnerLists {
    let scopes = scopes(vm);
    let lists = scopes.iter().map(|scope| runners_in(cx, vm, scope, deadline));
    let lists: Vec<_> =
        stream::iter(lists.collect::<Vec<_>>()).buffered(CONCURRENT_CALLS).collect().await;
    scopes.into_iter().zip(lists).collect()
}

/// Weighs what the scopes answered.
pub(super) fn runner_state(lists: &RunnerLists) -> RunnerState {
    let mut busy: Option<(&RunnerScope, bool)> = None;
    let mut known = Vec::new();
    let (mut unavailable, mut forbidden) = (None, None);
    for (scope, list) in lists {
        match list {
            Ok(runners) => {
                for runner in runners {
                    if runner.busy {
                        let online = runner.online || busy.is_some_and(|(_, online)| online);
                        busy = Some((busy.map_or(scope, |(first, _)| first), online));
                    }
                    known.push(runner.labels.clone());
                }
            }
            // An account that is a user has no list of runners: 404, as for a list that is hidden.
            Err(error) if is_refusal(error) => {
                forbidden.get_or_insert((scope, error));
            }
            Err(error) => unavailable = Some(error),
        }
    }
    match (busy, unavailable, forbidden) {
        (Some((scope, online)), ..) => RunnerState::Busy {
            because: format!("its runner in {scope} is busy"),
            offline: !online,
        },
        (None, Some(error), _) => RunnerState::Unavailable(error.to_string()),
        (None, None, Some((scope, error))) if known.is_empty() => {
            RunnerState::Forbidden(runner_refusal(scope, error))
        }
        (None, None, Some((scope @ RunnerScope::Repository(_), error)))
            if !known_to_an_organization(lists) =>
        {
            RunnerState::IdleElsewhere { runners: known, because: runner_refusal(scope, error) }
        }
        (None, None, _) => RunnerState::Idle(known),
    }
}

fn known_to_an_organization(lists: &RunnerLists) -> bool {
    lists.iter().any(|(scope, list)| {
        matches!(scope, RunnerScope::Organization(_))
            && list.as_ref().is_ok_and(|runners| !runners.is_empty())
    })
}

/// A refused list of runners, with the permission that is missing where GitHub says that one is.
pub(super) fn runner_refusal(scope: &RunnerScope, error: &Error) -> String {
    match scope {
        _ if !error.lacks_permission() => format!("the runners of {scope} are refused ({error})"),
        RunnerScope::Repository(repo) => {
            format!(
                "the runners of {repo} are refused: grant the GitHub App Administration: read ({error})"
            )
        }
        RunnerScope::Organization(login) => format!(
            "the runners of the organization {login} are refused: grant the GitHub App Self-hosted runners: read, or \
             register the runner in a repository ({error})"
        ),
    }
}

/// The place where a running job runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RunsOn {
    /// Its runner is one of the VM's.
    Here,
    /// Its runner is one that no entry names, and its labels route here: it runs here if no runner of the VM is
    /// registered.
    HereIfUnregistered,
    /// On the runner of another VM, if an entry names it.
    Elsewhere(Option<Vm>),
}

impl RunsOn {
    fn of(vm: &ManagedVm, fleet: &Fleet, repo: &RepoName, job: &Job) -> Self {
        let name = job.runner_name.as_deref().filter(|name| !name.is_empty());
        if name.is_some_and(|name| vm.runner_names.contain(name)) {
            return Self::Here;
        }
        let owner = name.and_then(|name| fleet.owner_of_runner(repo, name));
        match owner {
            Some(other) => Self::Elsewhere(Some(other.vm.clone())),
            None if fleet.routes_to(repo, &job.labels, &vm.vm) => match name {
                // GitHub did not give the runner's name, so the job is taken to run on the VM that its labels route to.
                None => Self::Here,
                Some(_) => Self::HereIfUnregistered,
            },
            None => Self::Elsewhere(None),
        }
    }

    fn is_here(&self, registered: bool) -> bool {
        match self {
            Self::Here => true,
            Self::HereIfUnregistered => !registered,
            Self::Elsewhere(_) => false,
        }
    }
}

/// The state of the job in evidence, for the VM that is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum JobState {
    /// Queued for the VM, with these labels.
    Queued(Vec<Label>),
    /// It waits for a review or another job before it is queued.
    Pending,
    Running(RunsOn),
    /// Queued for another VM: the configuration changed, or it ran here although its labels route there.
    ForAnother(Vm),
    Completed(Option<Timestamp>),
    /// GitHub does not know it, or dropped it, or it is a leftover: no VM is needed for it.
    Gone(&'static str),
    Unavailable(String),
    Forbidden(String),
}

/// Asks for the job in evidence.
pub(super) async fn job(turn: &Turn<'_>, job: &JobRef) -> JobState {
    match turn.cx.github.job(&job.repo, job.id, turn.questions()).await {
        Ok(found) => job_state(turn.vm, &turn.cx.fleet, turn.now, &job.repo, &found),
        Err(error) if error.is_not_found() => JobState::Gone("GitHub does not know it"),
        Err(_) if job.has_expired(turn.now) => {
            JobState::Gone("GitHub drops a job after 24 hours in the queue")
        }
        Err(error) if error.is_forbidden() => JobState::Forbidden(jobs_refusal(&job.repo, &error)),
        Err(error) => JobState::Unavailable(error.to_string()),
    }
}

fn job_state(
    vm: &ManagedVm,
    fleet: &Fleet,
    now: Timestamp,
    repo: &RepoName,
    job: &Job,
) -> JobState {
    let route = || fleet.pool(repo, &job.labels);
    match job.status {
        JobStatus::Completed => {
            // In a pool it may have run on another VM, whose own label has the time.
            let elsewhere = matches!(RunsOn::of(vm, fleet, repo, job), RunsOn::Elsewhere(Some(_)));
            let counts = !(vm.is_in_a_pool() && elsewhere);
            JobState::Completed(job.completed_at().map(|at| at.min(now)).filter(|_| counts))
        }
        JobStatus::InProgress if is_leftover(job, now) => {
            JobState::Gone("it has run for more than 5 days")
        }
        JobStatus::InProgress => JobState::Running(RunsOn::of(vm, fleet, repo, job)),
        JobStatus::Queued => match route() {
            _ if job_ref(repo, job, now).has_expired(now) => {
                JobState::Gone("it was queued for 24 hours")
            }
            Some(pool) if pool.contains(&vm.vm) => JobState::Queued(job.labels.clone()),
            Some(pool) => JobState::ForAnother(pool.first().vm.clone()),
            None => JobState::Gone("entries no longer match it"),
        },
        JobStatus::Requested | JobStatus::Waiting | JobStatus::Pending | JobStatus::Unknown => {
            match route() {
                Some(pool) if pool.contains(&vm.vm) => JobState::Pending,
                _ => JobState::Gone("its labels route to another VM"),
            }
        }
    }
}

fn is_leftover(job: &Job, now: Timestamp) -> bool {
    job.running_since().is_some_and(|since| now.since(since) >= LONGEST_JOB)
}

fn job_ref(repo: &RepoName, job: &Job, now: Timestamp) -> JobRef {
    let queued_at = job.queued_since().unwrap_or(now);
    JobRef { repo: repo.clone(), id: job.id, queued_at, labels: job.labels.clone() }
}

/// The open jobs that concern one VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Demand {
    /// A job that runs on the VM.
    pub(super) running: Option<JobRef>,
    /// Jobs that are queued and whose labels route to the VM, less than 24 hours old.
    pub(super) queued: Vec<JobRef>,
    /// A job whose labels route to the VM and that waits for something else first.
    pub(super) pending: Option<JobRef>,
    /// For each other VM a job that is queued for it, or runs here although its labels route there.
    pub(super) elsewhere: BTreeMap<Vm, JobRef>,
    /// Jobs on the VM that GitHub shows running although it would have ended them long ago.
    pub(super) leftovers: Vec<JobRef>,
    pub(super) coverage: Coverage,
}

impl Demand {
    /// Sorts an open job; `registered` tells whether a runner of the VM is.
    pub(super) fn add(&mut self, turn: &Turn<'_>, registered: bool, repo: &RepoName, job: &Job) {
        let Turn { cx, vm, now, .. } = *turn;
        let fleet = &cx.fleet;
        let reference = || job_ref(repo, job, now);
        match job.status {
            JobStatus::Completed => {}
            JobStatus::InProgress => {
                if !RunsOn::of(vm, fleet, repo, job).is_here(registered) {
                    return;
                }
                if is_leftover(job, now) {
                    if !self.leftovers.iter().any(|known| known.id == job.id) {
                        self.leftovers.push(reference());
                    }
                    return;
                }
                self.running.get_or_insert_with(reference);
                // Once this VM is deleted, the job waits for the VM that its labels select.
                let pool = fleet.pool(repo, &job.labels);
                if let Some(pool) = pool.filter(|pool| !pool.contains(&vm.vm)) {
                    let job = JobRef { queued_at: now, ..reference() };
                    self.elsewhere.entry(pool.first().vm.clone()).or_insert(job);
                }
            }
            JobStatus::Queued => {
                let Some(pool) = fleet.pool(repo, &job.labels) else { return };
                let job = reference();
                if job.has_expired(now) || self.queued.iter().any(|known| known.id == job.id) {
                    return;
                }
                if pool.contains(&vm.vm) {
                    self.queued.push(job);
                } else {
                    self.elsewhere.entry(pool.first().vm.clone()).or_insert(job);
                }
            }
            JobStatus::Requested | JobStatus::Waiting | JobStatus::Pending | JobStatus::Unknown => {
                if fleet.routes_to(repo, &job.labels, &vm.vm) {
                    // A review may take days; the job is queued when it was granted.
                    self.pending.get_or_insert_with(|| JobRef { queued_at: now, ..reference() });
                }
            }
        }
    }
}

/// The extent of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// Up to the first job that runs on the VM: enough for a VM that is up and in no pool.
    ToARunningJob,
    /// All lists: for a VM that is down or in a pool, since a queued job may be in any of them.
    ToTheEnd,
}

/// Reads the open jobs of the VM's repositories, one after the other.
pub(super) async fn jobs(
    turn: &Turn<'_>,
    registered: bool,
    extent: Extent,
    cursor: Option<&Cursor>,
) -> Demand {
    let up = extent == Extent::ToARunningJob;
    let repos = &turn.vm.repos;
    // A cursor of another configuration, of another version, or of another state of the VM leads nowhere.
    let cursor = cursor.filter(|cursor| {
        repos.contains(&cursor.repo) && cursor.list < LISTS.len() && cursor.up == up
    });
    let began = cursor.map_or(turn.now, |cursor| cursor.began);
    let mut demand = Demand::default();
    for repo in repos.iter().filter(|repo| cursor.is_none_or(|cursor| **repo >= cursor.repo)) {
        let resume = cursor.filter(|cursor| cursor.repo == *repo);
        let mut scan = JobScan::new(turn.cx, repo, began, turn.questions());
        let coverage = scan
            .run(resume, |job| {
                demand.add(turn, registered, repo, job);
                up && demand.running.is_some()
            })
            .await;
        let coverage = match coverage {
            Coverage::Partial { because, resume: Some(cursor) } => {
                // If the first call of the scan gets no answer, GitHub is down, and nothing was read that could be resumed.
                let first =
                    Some(repo) == repos.first() && cursor.list == 0 && cursor.before.is_none();
                let resume = Some(Cursor { up, ..cursor }).filter(|_| !first);
                Coverage::Partial { because, resume }
            }
            other => other,
        };
        demand.coverage = std::mem::take(&mut demand.coverage).and(coverage);
        let settled = up && demand.running.is_some();
        if settled || matches!(demand.coverage, Coverage::Partial { .. }) {
            break;
        }
    }
    demand
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::fleet::{Entry, RunnerNames, StopOptions};

    fn labels(text: &str) -> Vec<Label> {
        text.split_whitespace().map(Label::from).collect()
    }

    #[test]
    fn a_job_fits_if_one_runner_has_all_its_labels() {
        let one = RunnerState::Idle(vec![labels("self-hosted Linux X64 gpu")]);
        assert!(one.fits(&labels("self-hosted GPU")));
        assert!(!one.fits(&labels("self-hosted arm64")));
        let two = RunnerState::Idle(vec![labels("self-hosted a"), labels("self-hosted b")]);
        assert!(two.fits(&labels("b")) && !two.fits(&labels("a b")));
        assert!(RunnerState::Idle(Vec::new()).fits(&labels("anything")));
    }

    fn refused(status: u16, message: &str) -> Error {
        Error::Status {
            call: "a.call",
            status: StatusCode::from_u16(status).unwrap(),
            exists: false,
            reason: String::new(),
            message: message.into(),
            limited: false,
        }
    }

    fn runner(busy: bool, online: bool) -> Runner {
        Runner { id: 1, name: "gpu-1".into(), busy, online, version: None, labels: labels("gpu") }
    }

    #[test]
    fn the_scopes_together_say_what_the_runner_does() {
        let repo = || RunnerScope::Repository("acme/app".into());
        let organization = || RunnerScope::Organization("acme".into());
        let state = |one: Result<Vec<Runner>, Error>, two: Result<Vec<Runner>, Error>| {
            runner_state(&vec![(repo(), one), (organization(), two)])
        };
        let hidden = || Err(refused(404, ""));
        let down = || Err(refused(503, ""));
        let idle = || Ok(vec![runner(false, true)]);
        assert!(matches!(state(idle(), hidden()), RunnerState::Idle(known) if known.len() == 1));
        assert!(matches!(state(Ok(Vec::new()), hidden()), RunnerState::Forbidden(_)));
        assert!(
            matches!(state(Ok(Vec::new()), Ok(Vec::new())), RunnerState::Idle(known) if known.is_empty())
        );
        assert!(matches!(state(idle(), down()), RunnerState::Unavailable(_)));
        assert!(matches!(state(hidden(), down()), RunnerState::Unavailable(_)));
        let busy = |online| Ok(vec![runner(true, online)]);
        assert!(matches!(state(busy(true), down()), RunnerState::Busy { offline: false, .. }));
        assert!(matches!(state(idle(), busy(false)), RunnerState::Busy { offline: true, .. }));
        assert!(matches!(state(busy(false), busy(true)), RunnerState::Busy { offline: false, .. }));
    }

    #[test]
    fn advice_is_given_only_for_a_missing_permission() {
        let scope = RunnerScope::Repository("acme/app".into());
        let missing = refused(403, "Resource not accessible by integration");
        assert!(
            runner_refusal(&scope, &missing).contains("grant the GitHub App Administration: read")
        );
        assert!(
            jobs_refusal(&"acme/app".into(), &missing)
                .contains("grant the GitHub App Actions: read")
        );
        let suspended = refused(403, "This installation has been suspended");
        for text in
            [runner_refusal(&scope, &suspended), jobs_refusal(&"acme/app".into(), &suspended)]
        {
            assert!(text.contains("has been suspended") && !text.contains("grant"), "{text}");
        }
    }

    fn fleet() -> Fleet {
        let entry = |repo: &str, needs: &str, vm: &str| Entry {
            repo: repo.into(),
            labels: labels(needs),
            runner_labels: Vec::new(),
            vm: Vm::new(vm, "z"),
            runner_names: RunnerNames::parse([vm]),
            stop: StopOptions::default(),
            register: None,
        };
        Fleet::new(vec![
            entry("acme/app", "gpu", "gpu-1"),
            entry("acme/app", "self-hosted", "runner-1"),
        ])
    }

    const NOW: &str = "2026-11-24T12:00:00Z";

    fn a_job(json: &str) -> Job {
        serde_json::from_str(json).unwrap()
    }

    #[track_caller]
    fn is(json: &str, expected: &JobState) {
        let (fleet, now) = (fleet(), Timestamp::parse(NOW).unwrap());
        let vm = fleet.vm(&Vm::new("runner-1", "z")).unwrap();
        assert_eq!(
            job_state(vm, &fleet, now, &"acme/app".into(), &a_job(json)),
            *expected,
            "{json}"
        );
    }

    #[test]
    fn the_job_in_evidence_has_one_state() {
        let queued = |labels: &str, at: &str| {
            format!(
                r#"{{"id": 7, "status": "queued", "labels": [{labels}], "created_at": "{at}"}}"#
            )
        };
        let hour_ago = "2026-11-24T11:00:00Z";
        is(&queued(r#""self-hosted""#, hour_ago), &JobState::Queued(labels("self-hosted")));
        is(&queued(r#""gpu""#, hour_ago), &JobState::ForAnother(Vm::new("gpu-1", "z")));
        is(&queued(r#""windows""#, hour_ago), &JobState::Gone("entries no longer match it"));
        is(
            &queued(r#""self-hosted""#, "2026-11-23T12:00:00Z"),
            &JobState::Gone("it was queued for 24 hours"),
        );
        // It was approved an hour ago.
        is(
            r#"{"id": 7, "status": "queued", "labels": ["self-hosted"], "created_at": "2026-11-20T11:00:00Z",
                "started_at": "2026-11-24T11:00:00Z"}"#,
            &JobState::Queued(labels("self-hosted")),
        );
        for status in ["waiting", "pending", "requested", "a_new_one"] {
            let json = format!(r#"{{"id": 7, "status": "{status}", "labels": ["self-hosted"]}}"#);
            is(&json, &JobState::Pending);
            let json = format!(r#"{{"id": 7, "status": "{status}", "labels": ["gpu"]}}"#);
            is(&json, &JobState::Gone("its labels route to another VM"));
        }
        let ended = Timestamp::parse("2026-11-24T11:59:00Z");
        is(
            r#"{"id": 7, "status": "completed", "completed_at": "2026-11-24T11:59:00Z"}"#,
            &JobState::Completed(ended),
        );
        // GitHub's clock is ahead.
        is(
            r#"{"id": 7, "status": "completed", "completed_at": "2026-11-24T12:00:09Z"}"#,
            &JobState::Completed(Timestamp::parse(NOW)),
        );
        let runs = |runner: &str, needs: &str, since: &str| {
            format!(
                r#"{{"id": 7, "status": "in_progress", "labels": ["{needs}"], "runner_name": "{runner}", "started_at": "{since}"}}"#
            )
        };
        is(&runs("runner-1", "gpu", hour_ago), &JobState::Running(RunsOn::Here));
        is(&runs("RUNNER-1", "gpu", hour_ago), &JobState::Running(RunsOn::Here));
        is(&runs("", "self-hosted", hour_ago), &JobState::Running(RunsOn::Here));
        is(&runs("other", "self-hosted", hour_ago), &JobState::Running(RunsOn::HereIfUnregistered));
        is(&runs("other", "gpu", hour_ago), &JobState::Running(RunsOn::Elsewhere(None)));
        let gpu = Some(Vm::new("gpu-1", "z"));
        is(&runs("gpu-1", "self-hosted", hour_ago), &JobState::Running(RunsOn::Elsewhere(gpu)));
        is(
            &runs("runner-1", "self-hosted", "2026-11-19T12:00:01Z"),
            &JobState::Running(RunsOn::Here),
        );
        is(
            &runs("runner-1", "self-hosted", "2026-11-19T12:00:00Z"),
            &JobState::Gone("it has run for more than 5 days"),
        );
    }
}
