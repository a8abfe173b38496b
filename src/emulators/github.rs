//! GitHub: repositories, self-hosted runners, workflow jobs, and the webhooks that tell of them.
//!
//! A runner lives on an instance: it connects a while after the instance is up and is gone when that goes
//! down. A queued job goes to an idle runner that has all its labels; until then it waits.
//! <https://docs.github.com/en/actions/hosting-your-own-runners>

mod api;
mod app;
mod payloads;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::mem::take;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::hmac;
use bytes::Bytes;
use http_body_util::Full;
use serde_json::Value;

use super::compute::ComputeEngine;
use super::{Happening, Keys, Outgoing, Reply, Sender, Setup, Shared, Ticket, lock};
use crate::clock::Timestamp;
pub(super) use api::{Refusal, not_found};

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

/// Where a runner is registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// `owner/name`.
    Repository(String),
    /// An organization's login.
    Organization(String),
}

/// A self-hosted runner to be registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runner {
    /// Its name; the same one may be registered in several places.
    pub name: String,
    /// Where it is registered.
    pub scope: Scope,
    /// Its labels, `self-hosted` among them.
    pub labels: Vec<String>,
    /// The instance that it lives on; one without is online as [`GitHub::set_online`] says.
    pub instance: Option<String>,
    /// Whether it is connected at once, if it lives on no instance.
    pub online: bool,
    /// Whether it updates its software when it connects.
    pub updates: bool,
}

impl Runner {
    /// A runner that lives on the instance of its name.
    pub fn new<L: Into<String>>(
        name: &str,
        scope: Scope,
        labels: impl IntoIterator<Item = L>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            scope,
            labels: labels.into_iter().map(Into::into).collect(),
            instance: Some(name.to_owned()),
            online: false,
            updates: true,
        }
    }

    /// The same runner, on this instance.
    pub fn on(self, instance: &str) -> Self {
        Self { instance: Some(instance.to_owned()), ..self }
    }
}

/// How long a runner that does not connect stays registered.
const FORGOTTEN: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// How long a runner gets jobs whose software is not the newest.
const OUTDATED: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Where deliveries go.
#[derive(Clone, PartialEq, Eq)]
pub struct Hook {
    /// The payload URL.
    pub url: String,
    /// What deliveries are signed with; unsigned if empty.
    pub secret: String,
    /// Whether the body is form-encoded, GitHub's other content type.
    pub form: bool,
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hook").field("url", &self.url).field("form", &self.form).finish()
    }
}

/// Whether the App is installed on a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installed {
    /// In the installation that the service knows.
    Here,
    /// In another installation, of this id.
    Elsewhere(u64),
    /// In none.
    Nowhere,
}

/// What the App may be forbidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Permission {
    /// Runs and jobs: *Actions: read*.
    Actions,
    /// A repository's runners: *Administration: read*.
    Administration,
    /// An organization's runners: *Self-hosted runners: read*.
    OrgRunners,
    /// To register runners: *write* for either of the two above. Not granted at first.
    Registration,
}

/// How long things take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timings {
    /// From an instance that is up to its runner that is online.
    pub connect: Duration,
    /// From a job and an idle runner to the job's start.
    pub pickup: Duration,
    /// From the loss of a job's runner to the job in the queue again.
    pub requeue: Duration,
    /// How long `busy` still shows false after a job began.
    pub busy_lag: Duration,
    /// How long a job may wait in the queue before GitHub drops it.
    pub queue_limit: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            pickup: Duration::from_secs(2),
            requeue: Duration::from_secs(60),
            busy_lag: Duration::ZERO,
            queue_limit: Duration::from_secs(24 * 3600),
        }
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
}

/// A runner as a test sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunnerView {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Where it is registered.
    pub scope: Scope,
    /// Whether it is connected.
    pub online: bool,
    /// The job that it runs, whatever `busy` shows.
    pub job: Option<JobId>,
}

/// A webhook delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Its GUID, as in `X-GitHub-Delivery`.
    pub guid: String,
    /// As in `X-GitHub-Event`.
    pub event: String,
    /// The payload's `action`.
    pub action: String,
    /// The job that it is about.
    pub job: JobId,
    /// When it happened.
    pub at: Timestamp,
    /// The answer to the latest attempt; none yet, or not sent.
    pub reply: Option<Reply>,
    /// Each time that it was sent, or should have been, oldest first.
    pub attempts: Vec<Attempt>,
    /// The payload.
    pub payload: Value,
}

/// One attempt at a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// GitHub's number for it: every attempt has another.
    pub id: u64,
    /// When it was made.
    pub at: Timestamp,
    /// When it was over, and what the answer was; none while it is under way.
    pub over: Option<(Timestamp, Reply)>,
}

#[derive(Clone, Debug)]
struct Owner {
    login: String,
    id: u64,
    organization: bool,
}

#[derive(Clone, Debug)]
struct Repository {
    id: u64,
    owner: String,
    name: String,
    created: Timestamp,
    /// Names that it had, in lower case: GitHub redirects from them.
    former: Vec<String>,
    installed: Installed,
    public: bool,
}

impl Repository {
    fn full_name(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }

    fn is(&self, full_name: &str) -> bool {
        self.full_name().eq_ignore_ascii_case(full_name)
    }
}

#[derive(Clone, Debug)]
struct RunnerState {
    spec: Runner,
    online: bool,
    /// Since when the instance is up that it connected from.
    up: Option<Timestamp>,
    /// The job that it runs or is about to.
    job: Option<JobId>,
    glitch: bool,
    /// When it was last connected, or registered.
    seen: Timestamp,
    /// When its software was last the newest.
    updated: Timestamp,
}

#[derive(Clone, Debug)]
struct Run {
    id: u64,
    number: u64,
    created: Timestamp,
    updated: Timestamp,
    repo: u64,
    jobs: Vec<JobId>,
}

#[derive(Clone, Debug)]
struct Job {
    id: JobId,
    name: String,
    labels: Vec<String>,
    status: JobStatus,
    conclusion: Option<&'static str>,
    runner: Option<(u64, String)>,
    queued_at: Timestamp,
    started_at: Option<Timestamp>,
    completed_at: Option<Timestamp>,
    run: u64,
    repo: u64,
    duration: Duration,
    /// When it became ready for a runner.
    ready_at: Timestamp,
    /// Which runner it goes to, and when.
    pickup: Option<(Timestamp, u64)>,
    /// When its runner went away.
    lost_at: Option<Timestamp>,
    lost: u32,
}

struct State {
    app_id: String,
    installation_id: u64,
    keys: Arc<Keys>,
    timings: Timings,
    owners: BTreeMap<String, Owner>,
    repos: BTreeMap<u64, Repository>,
    runners: BTreeMap<u64, RunnerState>,
    runs: BTreeMap<u64, Run>,
    jobs: BTreeMap<JobId, Job>,
    /// The jobs that are not completed.
    active: BTreeSet<JobId>,
    hook: Option<Hook>,
    deliveries: BTreeMap<String, Delivery>,
    /// How many attempts at deliveries there were.
    attempts: u64,
    outbox: BTreeSet<(Timestamp, u64, String)>,
    lateness: Box<dyn FnMut(&Delivery) -> Duration + Send>,
    to_lose: u32,
    losing: Box<dyn FnMut(&Delivery) -> bool + Send>,
    tokens: BTreeMap<String, Timestamp>,
    /// What runners are registered with: where, and until when.
    registrations: BTreeMap<String, (Scope, Timestamp)>,
    forbidden: BTreeSet<Permission>,
    /// What the App subscribes to.
    events: Vec<String>,
    suspended: Option<Timestamp>,
    rate_limited: bool,
    outage: bool,
    used: u32,
    count: u64,
    happenings: Vec<Happening>,
}

/// What happens of its own accord.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Offline(u64),
    Finish(JobId),
    Requeue(JobId),
    Online(u64),
    Pickup(JobId),
    Drop(JobId),
    Forget(u64),
}

/// The emulated GitHub. Cheap to clone; all clones agree. Where a method names a repository, runner or job
/// that does not exist it panics, since only a test's own mistake can bring that about.
#[derive(Clone)]
pub struct GitHub {
    shared: Arc<Shared>,
    compute: ComputeEngine,
    state: Arc<Mutex<State>>,
}

impl GitHub {
    pub(super) fn new(setup: &Setup, shared: Arc<Shared>, compute: ComputeEngine) -> Self {
        let state = State {
            app_id: setup.app_id.clone(),
            installation_id: setup.installation_id,
            keys: Arc::clone(&setup.keys),
            timings: Timings::default(),
            owners: BTreeMap::new(),
            repos: BTreeMap::new(),
            runners: BTreeMap::new(),
            runs: BTreeMap::new(),
            jobs: BTreeMap::new(),
            active: BTreeSet::new(),
            hook: None,
            deliveries: BTreeMap::new(),
            attempts: 0,
            outbox: BTreeSet::new(),
            lateness: Box::new(|_| Duration::ZERO),
            to_lose: 0,
            losing: Box::new(|_| false),
            tokens: BTreeMap::new(),
            registrations: BTreeMap::new(),
            forbidden: BTreeSet::from([Permission::Registration]),
            events: vec!["workflow_job".to_owned()],
            suspended: None,
            rate_limited: false,
            outage: false,
            used: 0,
            count: 0,
            happenings: Vec::new(),
        };
        Self { shared, compute, state: Arc::new(Mutex::new(state)) }
    }

    /// Adds `owner/name`, whose owner is an organization.
    pub fn add_repository(&self, full_name: &str) {
        self.change(|state, now| state.add_repository(full_name, true, now));
    }

    /// Adds `owner/name`, whose owner is a user.
    pub fn add_user_repository(&self, full_name: &str) {
        self.change(|state, now| state.add_repository(full_name, false, now));
    }

    /// Renames or transfers a repository; its old name redirects from here on.
    pub fn rename_repository(&self, from: &str, to: &str) {
        self.change(|state, now| {
            let (owner, name) = split(to);
            let organization = state.owner(split(from).0).is_some_and(|owner| owner.organization);
            state.add_owner(owner, organization, now);
            let repo = state.repo_mut(from);
            repo.former.push(repo.full_name().to_ascii_lowercase());
            (repo.owner, repo.name) = (owner.to_owned(), name.to_owned());
            for runner in state.runners.values_mut() {
                if let Scope::Repository(scope) = &mut runner.spec.scope
                    && scope.eq_ignore_ascii_case(from)
                {
                    *scope = to.to_owned();
                }
            }
        });
    }

    /// Registers a runner, and returns its id.
    pub fn add_runner(&self, spec: Runner) -> u64 {
        self.change(|state, now| {
            match &spec.scope {
                Scope::Repository(repo) => {
                    state.repo_mut(repo);
                }
                Scope::Organization(login) => state.add_owner(login, true, now),
            }
            let id = 20 + state.next();
            let online = spec.online && spec.instance.is_none();
            let (seen, updated) = (now, now);
            let runner =
                RunnerState { spec, online, up: None, job: None, glitch: false, seen, updated };
            state.runners.insert(id, runner);
            id
        })
    }

    /// Takes every runner of this name out of the lists.
    pub fn remove_runner(&self, name: &str) {
        self.change(|state, now| {
            for id in state.runners_named(name) {
                state.offline(id, now);
                state.runners.remove(&id);
            }
        });
    }

    /// Registers a runner with a registration token, in place of one of the same name; whether the token was good.
    pub fn register(&self, token: &str, runner: impl FnOnce(Scope) -> Runner) -> bool {
        let scope = self.change(|state, now| {
            state.registrations.get(token).filter(|(_, ends)| now < *ends).map(|it| it.0.clone())
        });
        let Some(spec) = scope.map(runner) else { return false };
        self.change(|state, _| {
            let same = |known: &Runner| known.name == spec.name && known.scope == spec.scope;
            state.runners.retain(|_, known| !same(&known.spec));
        });
        self.add_runner(spec);
        true
    }

    /// Whether a runner that lives on this instance is registered anywhere.
    pub fn has_runner_on(&self, instance: &str) -> bool {
        self.change(|state, _| {
            let mut runners = state.runners.values();
            runners.any(|runner| runner.spec.instance.as_deref() == Some(instance))
        })
    }

    /// Connects or disconnects the runners of this name that live on no instance.
    pub fn set_online(&self, name: &str, online: bool) {
        self.change(|state, now| {
            for id in state.runners_named(name) {
                if state.runners[&id].spec.instance.is_none() {
                    if online { state.online(id, now, None) } else { state.offline(id, now) }
                }
            }
        });
    }

    /// Whether `busy` of the runners of this name shows false whatever they do.
    pub fn busy_glitch(&self, name: &str, glitch: bool) {
        self.change(|state, _| {
            for id in state.runners_named(name) {
                if let Some(runner) = state.runners.get_mut(&id) {
                    runner.glitch = glitch;
                }
            }
        });
    }

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

    /// The job as it is now.
    pub fn job(&self, job: JobId) -> JobView {
        self.change(|state, _| state.job_view(&state.jobs[&job]))
    }

    /// All jobs, oldest first.
    pub fn jobs(&self) -> Vec<JobView> {
        self.change(|state, _| state.jobs.values().map(|job| state.job_view(job)).collect())
    }

    /// All runners.
    pub fn runners(&self) -> Vec<RunnerView> {
        self.change(|state, _| {
            let running = |job: &JobId| state.jobs[job].status == JobStatus::InProgress;
            let view = |(id, runner): (&u64, &RunnerState)| RunnerView {
                id: *id,
                name: runner.spec.name.clone(),
                scope: runner.spec.scope.clone(),
                online: runner.online,
                job: runner.job.filter(running),
            };
            state.runners.iter().map(view).collect()
        })
    }

    /// Where deliveries go from now on; until then none are made.
    pub fn webhook(&self, hook: Hook) {
        self.change(|state, _| state.hook = Some(hook));
    }

    /// The next `count` deliveries are never sent.
    pub fn lose_next_webhook(&self, count: u32) {
        self.change(|state, _| state.to_lose += count);
    }

    /// Loses the first attempt at each delivery of which `lost` says so. It must not use this `GitHub`.
    pub fn lose_webhooks_by(&self, lost: impl FnMut(&Delivery) -> bool + Send + 'static) {
        self.change(|state, _| state.losing = Box::new(lost));
    }

    /// Sends each delivery later by what `late` says, so that they may overtake one another. It must not use this
    /// `GitHub`.
    pub fn lateness_by(&self, late: impl FnMut(&Delivery) -> Duration + Send + 'static) {
        self.change(|state, _| state.lateness = Box::new(late));
    }

    /// All deliveries, oldest first.
    pub fn deliveries(&self) -> Vec<Delivery> {
        let mut deliveries: Vec<_> = lock(&self.state).deliveries.values().cloned().collect();
        deliveries.sort_by(|a, b| (a.at, &a.guid).cmp(&(b.at, &b.guid)));
        deliveries
    }

    /// Sends a delivery once more, lost or not, under its old GUID.
    pub fn redeliver(&self, guid: &str) {
        self.change(|state, now| {
            assert!(state.deliveries.contains_key(guid), "there is no delivery {guid}");
            state.send_again(guid, now);
        });
    }

    /// Takes a permission from the App.
    pub fn forbid(&self, permission: Permission) {
        self.change(|state, _| state.forbidden.insert(permission));
    }

    /// Gives it back.
    pub fn permit(&self, permission: Permission) {
        self.change(|state, _| state.forbidden.remove(&permission));
    }

    /// Which installation of the App covers a repository from now on.
    pub fn install(&self, repo: &str, installed: Installed) {
        self.change(|state, _| state.repo_mut(repo).installed = installed);
    }

    /// Whether anybody may see a repository.
    pub fn set_public(&self, repo: &str, public: bool) {
        self.change(|state, _| state.repo_mut(repo).public = public);
    }

    /// The events that the App subscribes to, from now on.
    pub fn subscribe_to(&self, events: &[&str]) {
        let events = events.iter().map(|event| (*event).to_owned()).collect();
        self.change(|state, _| state.events = events);
    }

    /// Whether the installation's owner has suspended it.
    pub fn suspend(&self, suspended: bool) {
        self.change(|state, now| state.suspended = suspended.then_some(now));
    }

    /// Whether the installation's quota of requests is used up.
    pub fn rate_limited(&self, limited: bool) {
        self.change(|state, _| state.rate_limited = limited);
    }

    /// Whether GitHub answers everything with 503.
    pub fn outage(&self, outage: bool) {
        self.change(|state, _| state.outage = outage);
    }

    /// How long things take from now on.
    pub fn timings(&self, timings: Timings) {
        self.change(|state, _| state.timings = timings);
    }

    /// How long things take.
    pub fn current_timings(&self) -> Timings {
        lock(&self.state).timings
    }

    /// How long `busy` still shows false after a job began.
    pub fn busy_lag(&self, lag: Duration) {
        self.change(|state, _| state.timings.busy_lag = lag);
    }

    /// Honours no installation token that was issued so far.
    pub fn revoke_tokens(&self) {
        self.change(|state, _| state.tokens.clear());
    }

    pub(super) fn next_event(&self) -> Option<Timestamp> {
        let next_delivery = lock(&self.state).outbox.first().map(|(time, ..)| *time);
        self.next_step().into_iter().chain(next_delivery).min()
    }

    /// The earliest time at which a job or a runner changes.
    pub(super) fn next_step(&self) -> Option<Timestamp> {
        lock(&self.state).next_event(&self.compute).map(|(time, _)| time)
    }

    /// Lets everything happen that is due by `time`.
    pub(super) fn step(&self, time: Timestamp) {
        let happenings = {
            let mut state = lock(&self.state);
            state.step(&self.compute, time);
            take(&mut state.happenings)
        };
        self.shared.tell(happenings);
    }

    /// The deliveries to send now.
    pub(super) fn due(&self) -> Vec<Outgoing> {
        let now = self.shared.clock.now();
        let mut state = lock(&self.state);
        let mut outgoing = Vec::new();
        while state.outbox.first().is_some_and(|(time, ..)| *time <= now) {
            let Some((_, _, guid)) = state.outbox.pop_first() else { continue };
            let attempt = state.attempt(&guid, now);
            if let Some(hook) = &state.hook {
                outgoing.push(state.request(hook, &state.deliveries[&guid], attempt));
            }
        }
        outgoing
    }

    /// What the service answered to an attempt at a delivery.
    pub(super) fn answered(&self, guid: &str, attempt: u64, reply: Reply) {
        let at = self.shared.clock.now();
        let happening = {
            let mut state = lock(&self.state);
            let Some(delivery) = state.deliveries.get_mut(guid) else { return };
            delivery.end(attempt, at, reply);
            delivery.happening(at)
        };
        self.shared.tell(vec![happening]);
    }

    fn change<R>(&self, act: impl FnOnce(&mut State, Timestamp) -> R) -> R {
        let now = self.shared.clock.now();
        self.compute.step(now);
        let (result, happenings) = {
            let mut state = lock(&self.state);
            state.step(&self.compute, now);
            let result = act(&mut state, now);
            state.assign(now);
            (result, take(&mut state.happenings))
        };
        self.shared.tell(happenings);
        self.shared.changed.notify_one();
        result
    }
}

/// The state machine.
impl State {
    fn next(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    fn owner(&self, login: &str) -> Option<&Owner> {
        self.owners.get(&login.to_ascii_lowercase())
    }

    fn add_owner(&mut self, login: &str, organization: bool, _: Timestamp) {
        let id = 90_000_000 + self.next();
        let owner = Owner { login: login.to_owned(), id, organization };
        self.owners.entry(login.to_ascii_lowercase()).or_insert(owner);
    }

    fn add_repository(&mut self, full_name: &str, organization: bool, now: Timestamp) {
        let (owner, name) = split(full_name);
        if self.repos.values().any(|repo| repo.is(full_name)) {
            return;
        }
        self.add_owner(owner, organization, now);
        let id = 500_000_000 + self.next();
        let (owner, name) = (owner.to_owned(), name.to_owned());
        let (former, installed, public) = (Vec::new(), Installed::Here, false);
        let repo = Repository { id, owner, name, created: now, former, installed, public };
        self.repos.insert(id, repo);
    }

    fn repo_mut(&mut self, full_name: &str) -> &mut Repository {
        let found = self.repos.values_mut().find(|repo| repo.is(full_name));
        found.unwrap_or_else(|| panic!("there is no repository {full_name}"))
    }

    fn runners_named(&self, name: &str) -> Vec<u64> {
        let named = |(_, runner): &(&u64, &RunnerState)| runner.spec.name == name;
        let ids: Vec<u64> = self.runners.iter().filter(named).map(|(id, _)| *id).collect();
        assert!(!ids.is_empty(), "there is no runner {name}");
        ids
    }

    fn job_view(&self, job: &Job) -> JobView {
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
        }
    }

    /// The next event, and among those of one time the first in the order of [`Event`].
    fn next_event(&self, compute: &ComputeEngine) -> Option<(Timestamp, Event)> {
        let runners = self.runners.iter().filter_map(|(id, runner)| {
            let instance = runner.spec.instance.as_ref()?;
            let up = compute.up_since(instance);
            if runner.online && runner.up != up {
                let gone = compute.down_since(instance).or(runner.up).unwrap_or_default();
                return Some((gone, Event::Offline(*id)));
            }
            if runner.online {
                return None;
            }
            let forgotten = (runner.seen + FORGOTTEN, Event::Forget(*id));
            let connects = up.map(|up| (up + self.timings.connect, Event::Online(*id)));
            // Whoever is forgotten does not connect any more, however long ago it came up.
            connects.into_iter().chain([forgotten]).min()
        });
        let jobs = self.active.iter().filter_map(|id| {
            let job = &self.jobs[id];
            match (job.status, job.pickup, job.lost_at) {
                (JobStatus::Queued, Some((time, _)), _) => Some((time, Event::Pickup(*id))),
                (JobStatus::Queued, None, _) => {
                    Some((job.queued_at + self.timings.queue_limit, Event::Drop(*id)))
                }
                (JobStatus::InProgress, _, Some(lost)) => {
                    Some((lost + self.timings.requeue, Event::Requeue(*id)))
                }
                (JobStatus::InProgress, _, None) => {
                    Some((job.started_at? + job.duration, Event::Finish(*id)))
                }
                _ => None,
            }
        });
        runners.chain(jobs).min()
    }

    fn step(&mut self, compute: &ComputeEngine, now: Timestamp) {
        while let Some((time, event)) = self.next_event(compute).filter(|(time, _)| *time <= now) {
            match event {
                Event::Online(id) => {
                    let instance = self.runners[&id].spec.instance.clone();
                    // Another thread may have stopped it meanwhile; then there is no such event any more.
                    if let Some(up) = instance.and_then(|instance| compute.up_since(&instance)) {
                        self.online(id, time, Some(up));
                    }
                }
                Event::Offline(id) => self.offline(id, time),
                Event::Pickup(job) => self.begin(job, time),
                Event::Finish(job) => self.complete(job, "success", time),
                Event::Requeue(job) => self.requeue(job, time),
                Event::Drop(job) => self.complete(job, "failure", time),
                Event::Forget(id) => _ = self.runners.remove(&id),
            }
            self.assign(time);
        }
    }

    fn online(&mut self, id: u64, at: Timestamp, up: Option<Timestamp>) {
        let Some(runner) = self.runners.get_mut(&id) else { return };
        runner.up = up;
        if !runner.online {
            runner.online = true;
            if runner.spec.updates {
                runner.updated = at;
            }
            let name = runner.spec.name.clone();
            self.happenings.push(Happening::Runner { at, name, online: true });
        }
    }

    fn offline(&mut self, id: u64, at: Timestamp) {
        let Some(runner) = self.runners.get_mut(&id).filter(|runner| runner.online) else { return };
        runner.online = false;
        runner.seen = at;
        let (name, job) = (runner.spec.name.clone(), runner.job.take());
        self.happenings.push(Happening::Runner { at, name, online: false });
        if let Some(job) = job.and_then(|job| self.jobs.get_mut(&job)) {
            job.pickup = None;
            if job.status == JobStatus::InProgress {
                job.lost_at = Some(at);
                job.lost += 1;
            }
        }
    }

    /// Gives each job that is ready, oldest first, an idle runner that has its labels.
    fn assign(&mut self, now: Timestamp) {
        let ready = |job: &&Job| job.status == JobStatus::Queued && job.pickup.is_none();
        let waiting = self.active.iter().map(|id| &self.jobs[id]).filter(ready);
        let mut waiting: Vec<(Timestamp, JobId)> =
            waiting.map(|job| (job.ready_at, job.id)).collect();
        waiting.sort();
        for (_, id) in waiting {
            let job = &self.jobs[&id];
            let idle = |(_, runner): &(&u64, &RunnerState)| {
                let current = now.since(runner.updated) < OUTDATED;
                runner.online && current && runner.job.is_none() && self.fits(runner, job)
            };
            let Some((runner, _)) = self.runners.iter().find(idle) else { continue };
            let runner = *runner;
            if let Some(runner) = self.runners.get_mut(&runner) {
                runner.job = Some(id);
            }
            let pickup = now.max(job.ready_at) + self.timings.pickup;
            if let Some(job) = self.jobs.get_mut(&id) {
                job.pickup = Some((pickup, runner));
            }
        }
    }

    fn fits(&self, runner: &RunnerState, job: &Job) -> bool {
        let repo = &self.repos[&job.repo];
        let reach = match &runner.spec.scope {
            Scope::Repository(name) => repo.is(name),
            Scope::Organization(login) => repo.owner.eq_ignore_ascii_case(login),
        };
        let has = |label: &String| runner.spec.labels.iter().any(|l| l.eq_ignore_ascii_case(label));
        reach && job.labels.iter().all(has)
    }

    fn queue(
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
            };
            ids.push(job.id);
            self.active.insert(job.id);
            self.jobs.insert(job.id, job);
        }
        if let Some(run) = self.runs.get_mut(&id) {
            run.jobs = ids.clone();
        }
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

    fn release(&mut self, id: JobId, told: bool, now: Timestamp) {
        let job = self.job_mut(id);
        if job.status < JobStatus::Queued {
            job.status = JobStatus::Queued;
            job.ready_at = now;
            self.announce(id, told.then_some("queued"), now);
        }
    }

    fn begin(&mut self, id: JobId, at: Timestamp) {
        let Some((_, runner)) = self.job_mut(id).pickup.take() else { return };
        let name = self.runners[&runner].spec.name.clone();
        let job = self.job_mut(id);
        job.status = JobStatus::InProgress;
        job.started_at = Some(at);
        job.runner = Some((runner, name));
        self.announce(id, Some("in_progress"), at);
    }

    fn complete(&mut self, id: JobId, conclusion: &'static str, at: Timestamp) {
        if !self.active.remove(&id) {
            return;
        }
        let job = self.job_mut(id);
        job.status = JobStatus::Completed;
        job.conclusion = Some(conclusion);
        job.completed_at = Some(at);
        job.pickup = None;
        for runner in self.runners.values_mut() {
            runner.job.take_if(|job| *job == id);
        }
        self.announce(id, Some("completed"), at);
    }

    /// A job whose runner went away is queued again, and no webhook tells.
    fn requeue(&mut self, id: JobId, at: Timestamp) {
        let job = self.job_mut(id);
        job.status = JobStatus::Queued;
        job.runner = None;
        job.started_at = None;
        job.lost_at = None;
        job.ready_at = at;
        self.announce(id, None, at);
    }

    fn job_mut(&mut self, id: JobId) -> &mut Job {
        self.jobs.get_mut(&id).unwrap_or_else(|| panic!("there is no job {id}"))
    }

    /// Tells of a job's new status, by a webhook too if GitHub sends one.
    fn announce(&mut self, id: JobId, action: Option<&str>, at: Timestamp) {
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

    fn deliver(&mut self, id: JobId, action: &str, at: Timestamp) {
        if self.hook.is_none() {
            return;
        }
        let order = self.next();
        let job = &self.jobs[&id];
        let (run, repo) = (&self.runs[&job.run], &self.repos[&job.repo]);
        let owner = self.owner(&repo.owner).expect("a repository is added with its owner");
        let payload = payloads::workflow_job(action, job, run, (repo, owner), self.installation_id);
        let guid = format!("{order:08x}-c1a0-11f0-8e00-{:012x}", id.0);
        let delivery = Delivery {
            guid: guid.clone(),
            event: "workflow_job".to_owned(),
            action: action.to_owned(),
            job: id,
            at,
            reply: None,
            attempts: Vec::new(),
            payload,
        };
        let lost = self.to_lose > 0 || (self.losing)(&delivery);
        if !lost {
            let late = (self.lateness)(&delivery);
            self.outbox.insert((at + late, order, guid.clone()));
            self.deliveries.insert(guid, delivery);
            return;
        }
        self.to_lose = self.to_lose.saturating_sub(1);
        self.deliveries.insert(guid.clone(), delivery);
        let attempt = self.attempt(&guid, at);
        if let Some(delivery) = self.deliveries.get_mut(&guid) {
            delivery.end(attempt, at, Reply::default());
            self.happenings.push(delivery.happening(at));
        }
    }

    /// Another attempt at a delivery, under its old GUID.
    fn send_again(&mut self, guid: &str, now: Timestamp) {
        let order = self.next();
        self.outbox.insert((now, order, guid.to_owned()));
    }

    /// Notes an attempt that is made now, and returns its id.
    fn attempt(&mut self, guid: &str, at: Timestamp) -> u64 {
        self.attempts += 1;
        let id = 160_000_000_000 + self.attempts;
        if let Some(delivery) = self.deliveries.get_mut(guid) {
            delivery.attempts.push(Attempt { id, at, over: None });
        }
        id
    }

    fn request(&self, hook: &Hook, delivery: &Delivery, attempt: u64) -> Outgoing {
        let json = delivery.payload.to_string();
        let (kind, body) = if hook.form {
            let mut form = form_urlencoded::Serializer::new(String::new());
            form.append_pair("payload", &json);
            ("application/x-www-form-urlencoded", form.finish())
        } else {
            ("application/json", json)
        };
        let mut request = http::Request::post(&hook.url)
            .header("Accept", "*/*")
            .header("Content-Type", kind)
            .header("User-Agent", "GitHub-Hookshot/0e1a2d3")
            .header("X-GitHub-Delivery", &delivery.guid)
            .header("X-GitHub-Event", &delivery.event)
            .header("X-GitHub-Hook-ID", 460_000_001)
            .header("X-GitHub-Hook-Installation-Target-ID", &self.app_id)
            .header("X-GitHub-Hook-Installation-Target-Type", "integration");
        if !hook.secret.is_empty() {
            let signature = |algorithm| {
                let key = hmac::Key::new(algorithm, hook.secret.as_bytes());
                hex(hmac::sign(&key, body.as_bytes()).as_ref())
            };
            let sha1 = signature(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY);
            let sha256 = signature(hmac::HMAC_SHA256);
            request = request
                .header("X-Hub-Signature", format!("sha1={sha1}"))
                .header("X-Hub-Signature-256", format!("sha256={sha256}"));
        }
        Outgoing {
            request: request
                .body(Full::new(Bytes::from(body)))
                .expect("the hook's URL is one, and all headers are plain text"),
            limit: Duration::from_secs(10),
            ticket: Ticket(Sender::Webhook { delivery: delivery.guid.clone(), attempt }),
        }
    }
}

impl Delivery {
    fn end(&mut self, attempt: u64, at: Timestamp, reply: Reply) {
        if let Some(attempt) = self.attempts.iter_mut().find(|known| known.id == attempt) {
            attempt.over = Some((at, reply.clone()));
        }
        self.reply = Some(reply);
    }

    fn happening(&self, at: Timestamp) -> Happening {
        Happening::Webhook {
            at,
            event: self.event.clone(),
            action: self.action.clone(),
            job: self.job,
            delivery: self.guid.clone(),
            reply: self.reply.clone().unwrap_or_default(),
        }
    }
}

fn split(full_name: &str) -> (&str, &str) {
    full_name.split_once('/').unwrap_or_else(|| panic!("{full_name} is not owner/name"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;

    use super::*;
    use crate::emulators::compute::{Instance, Status};
    use crate::emulators::testing::World;

    const MINUTE: Duration = Duration::from_secs(60);

    async fn world() -> World {
        let world = World::new().await;
        let github = &world.cloud.github;
        github.add_repository("acme/app");
        let running =
            Instance { status: Status::Running, ..Instance::new("gpu-1", "us-central1-a") };
        world.cloud.compute.insert(running);
        let labels = ["self-hosted", "Linux", "gpu"];
        github.add_runner(Runner::new("gpu-1", Scope::Repository("acme/app".into()), labels));
        github.add_runner(Runner::new("gpu-1", Scope::Organization("acme".into()), labels));
        let url = "http://service.test/github/webhook".to_owned();
        github.webhook(Hook { url, secret: "It's a Secret".to_owned(), form: false });
        world
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_runs_where_its_labels_are_and_webhooks_tell() {
        let mut world = world().await;
        let job = world.cloud.github.queue_job("acme/app", ["SELF-HOSTED", "gpu"], MINUTE);
        let other = world.cloud.github.queue_job("acme/app", ["self-hosted", "tpu"], MINUTE);
        world.pass(20).await;
        let (_, _, shown) = world.github(&format!("/repos/ACME/app/actions/jobs/{job}")).await;
        assert_eq!(
            (&shown["status"], &shown["runner_name"]),
            (&json!("in_progress"), &json!("gpu-1"))
        );
        world.pass(60).await;
        let view = world.cloud.github.job(job);
        assert_eq!((view.status, view.conclusion), (JobStatus::Completed, Some("success")));
        assert_eq!(world.cloud.github.job(other).status, JobStatus::Queued);
        let deliveries = world.received();
        let actions: Vec<String> = deliveries
            .iter()
            .map(|delivery| serde_json::from_slice::<Value>(delivery.body()).unwrap())
            .map(|payload| payload["action"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(actions, ["queued", "queued", "in_progress", "completed"]);
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"It's a Secret");
        let expected = hex(hmac::sign(&key, deliveries[0].body()).as_ref());
        assert_eq!(deliveries[0].headers()["x-hub-signature-256"], format!("sha256={expected}"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_whose_runner_went_away_is_queued_again_without_a_webhook() {
        let mut world = world().await;
        let job = world.cloud.github.queue_job("acme/app", ["gpu"], 10 * MINUTE);
        world.pass(30).await;
        world.cloud.compute.preempt("gpu-1");
        world.pass(30).await;
        assert_eq!(world.cloud.github.job(job).status, JobStatus::InProgress);
        let (_, _, runners) = world.github("/repos/acme/app/actions/runners?name=gpu-1").await;
        assert_eq!(runners["runners"][0]["status"], "offline");
        world.pass(31).await;
        assert_eq!(world.cloud.github.job(job).status, JobStatus::Queued);
        assert_eq!(world.received().len(), 2);
        world.cloud.compute.start_by_hand("gpu-1");
        world.pass(40).await;
        assert_eq!(world.cloud.github.job(job).status, JobStatus::InProgress);
    }

    #[tokio::test(start_paused = true)]
    async fn a_runner_is_gone_when_its_instance_goes_down_whenever_one_looks() {
        let mut world = world().await;
        let job = world.cloud.github.queue_job("acme/app", ["gpu"], 10 * MINUTE);
        world.pass(30).await;
        world.cloud.compute.preempt("gpu-1");
        tokio::time::advance(MINUTE).await;
        assert_eq!(world.cloud.github.job(job).status, JobStatus::Queued);
    }

    #[tokio::test(start_paused = true)]
    async fn busy_may_lag_and_a_repository_omits_the_organizations_runners() {
        let mut world = world().await;
        world.cloud.github.busy_lag(MINUTE);
        let job = world.cloud.github.queue_job("acme/app", ["gpu"], 10 * MINUTE);
        let busy = |runners: &Value| runners["runners"][0]["busy"].clone();
        world.pass(30).await;
        assert_eq!(world.cloud.github.job(job).status, JobStatus::InProgress);
        let (_, _, runners) = world.github("/repos/acme/app/actions/runners").await;
        assert_eq!((&runners["total_count"], busy(&runners)), (&json!(1), json!(false)));
        world.pass(60).await;
        let (_, _, runners) = world.github("/repos/acme/app/actions/runners").await;
        assert_eq!(busy(&runners), true);
        world.cloud.github.busy_glitch("gpu-1", true);
        let (_, _, runners) = world.github("/repos/acme/app/actions/runners").await;
        assert_eq!(busy(&runners), false);
        let (_, _, runners) = world.github("/orgs/acme/actions/runners").await;
        assert_eq!((&runners["total_count"], busy(&runners)), (&json!(1), json!(false)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_shows_the_status_of_its_least_advanced_job() {
        let mut world = world().await;
        let gpu = || (vec!["gpu".to_owned()], MINUTE);
        let jobs = world.cloud.github.queue_run("acme/app", vec![gpu(), gpu(), gpu()]);
        let waiting = world.cloud.github.queue_waiting_job("acme/app", ["gpu"], MINUTE);
        world.pass(30).await;
        let statuses: Vec<_> = jobs.iter().map(|job| world.cloud.github.job(*job).status).collect();
        assert_eq!(statuses, [JobStatus::InProgress, JobStatus::InProgress, JobStatus::Queued]);
        let (_, _, list) = world.github("/repos/acme/app/actions/runs?status=queued").await;
        assert_eq!(list["total_count"], 1);
        let run = &list["workflow_runs"][0]["id"];
        let path = format!("/repos/acme/app/actions/runs/{run}/jobs?filter=latest&per_page=2");
        let (_, headers, page) = world.github(&path).await;
        assert_eq!((&page["total_count"], page["jobs"].as_array().unwrap().len()), (&json!(3), 2));
        assert!(headers["link"].to_str().unwrap().contains("page=2>; rel=\"next\""));
        let (_, _, list) = world.github("/repos/acme/app/actions/runs?status=waiting").await;
        assert_eq!(list["total_count"], 1);
        world.cloud.github.approve(waiting);
        world.pass(300).await;
        assert!(world.cloud.github.jobs().iter().all(|job| job.status == JobStatus::Completed));
    }

    #[tokio::test(start_paused = true)]
    async fn an_app_is_who_its_key_says_and_only_for_a_short_while() {
        let world = World::new().await;
        let now = world.clock.now().unix_seconds();
        for (claims, status) in [
            (json!({}), 200),
            (json!({ "iss": 4242 }), 200),
            (json!({ "iss": "4243" }), 404),
            (json!({ "exp": now }), 401),
            (json!({ "exp": now + 601 }), 401),
            (json!({ "iat": now + 5 }), 401),
        ] {
            let (answered, _) = world.app("GET", "/app", &world.jwt(claims.clone())).await;
            assert_eq!(answered.as_u16(), status, "{claims}");
        }
        let (status, answer) = world.app("GET", "/rate_limit", &world.jwt(json!({}))).await;
        assert_eq!(
            (status, &answer["message"]),
            (StatusCode::UNAUTHORIZED, &json!("Bad credentials"))
        );
        tokio::time::advance(60 * MINUTE).await;
        assert_eq!(world.github("/rate_limit").await.0, StatusCode::UNAUTHORIZED);
    }

    #[tokio::test(start_paused = true)]
    async fn a_renamed_repository_redirects_to_its_id() {
        let world = world().await;
        world.cloud.github.rename_repository("acme/app", "acme/better");
        let (status, headers, _) = world.github("/repos/acme/app/actions/runners?name=gpu-1").await;
        assert_eq!(status, StatusCode::MOVED_PERMANENTLY);
        let location = headers["location"].to_str().unwrap();
        let path = location.strip_prefix("http://cloud.test").unwrap();
        assert!(path.ends_with("/actions/runners?name=gpu-1"), "{path}");
        let (status, _, runners) = world.github(path).await;
        assert_eq!((status, &runners["total_count"]), (StatusCode::OK, &json!(1)));
        assert_eq!(world.github("/repos/acme/better").await.2["full_name"], "acme/better");
    }

    #[tokio::test(start_paused = true)]
    async fn a_missing_permission_a_limit_and_an_outage_can_be_told_apart() {
        let world = world().await;
        let github = &world.cloud.github;
        let path = "/repos/acme/app/actions/runners";
        github.forbid(Permission::Administration);
        let (status, headers, answer) = world.github(path).await;
        assert_eq!((status.as_u16(), headers["x-ratelimit-remaining"] != "0"), (403, true));
        assert_eq!(answer["message"], "Resource not accessible by integration");
        assert_eq!(world.github("/repos/acme/app/actions/runs").await.0, StatusCode::OK);
        github.rate_limited(true);
        let (status, headers, _) = world.github(path).await;
        assert_eq!((status.as_u16(), headers["x-ratelimit-remaining"] == "0"), (403, true));
        github.outage(true);
        assert_eq!(world.github(path).await.0, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(world.github("/orgs/nobody/actions/runners").await.0.as_u16(), 503);
        github.outage(false);
        github.rate_limited(false);
        assert_eq!(world.github("/orgs/nobody/actions/runners").await.0, StatusCode::NOT_FOUND);
    }

    #[tokio::test(start_paused = true)]
    async fn the_app_sees_each_attempt_at_a_delivery_and_may_ask_for_another() {
        let mut world = world().await;
        let github = world.cloud.github.clone();
        github.lose_next_webhook(1);
        github.queue_job("acme/app", ["tpu"], MINUTE);
        world.pass(5).await;
        world.answer(&[500]);
        github.queue_job("acme/app", ["tpu"], MINUTE);
        world.pass(5).await;
        github.queue_job("acme/app", ["tpu"], MINUTE);
        world.pass(5).await;
        let jwt = world.jwt(json!({}));
        let list = async |query: &str| {
            let path = format!("/app/hook/deliveries{query}");
            world.send("GET", &path, &format!("Bearer {jwt}"), Value::Null).await
        };
        let codes = |page: &Value| -> Vec<u64> {
            page.as_array().unwrap().iter().filter_map(|one| one["status_code"].as_u64()).collect()
        };
        let (_, headers, page) = list("?per_page=2").await;
        assert_eq!(codes(&page), [200, 500]);
        let link = headers["link"].to_str().unwrap();
        let next = link.strip_prefix("<http://cloud.test/app/hook/deliveries").unwrap();
        let (_, headers, page) = list(next.split_once('>').unwrap().0).await;
        assert_eq!((codes(&page), headers.get("link")), (vec![502], None));
        let lost = page[0].clone();
        assert_eq!((&lost["event"], &lost["action"]), (&json!("workflow_job"), &json!("queued")));
        assert_eq!(codes(&list("?status=failure").await.2), [500, 502]);
        assert_eq!(codes(&list("?status=success").await.2), [200]);
        assert_eq!(list("?status=lost").await.0, StatusCode::UNPROCESSABLE_ENTITY);

        let again = format!("/app/hook/deliveries/{}/attempts", lost["id"]);
        assert_eq!(world.app("POST", &again, &jwt).await.0, StatusCode::ACCEPTED);
        let unknown = world.app("POST", "/app/hook/deliveries/1/attempts", &jwt).await;
        assert_eq!(unknown.0, StatusCode::NOT_FOUND);
        world.pass(5).await;
        let jwt = world.jwt(json!({}));
        let (_, newest) = world.app("GET", "/app/hook/deliveries?per_page=1", &jwt).await;
        assert_eq!((&newest[0]["guid"], &newest[0]["redelivery"]), (&lost["guid"], &json!(true)));
        assert!(newest[0]["id"].as_u64() > lost["id"].as_u64(), "{newest}");
        let received = world.received();
        assert_eq!(received.len(), 3);
        assert_eq!(received[2].headers()["x-github-delivery"], lost["guid"].as_str().unwrap());
        tokio::time::advance(4 * 24 * 60 * MINUTE).await;
        let (_, page) = world.app("GET", "/app/hook/deliveries", &world.jwt(json!({}))).await;
        assert_eq!(page, json!([]), "kept for three days");
    }

    #[tokio::test(start_paused = true)]
    async fn the_app_sees_where_its_webhook_goes_and_which_installation_covers_a_repository() {
        let world = world().await;
        let ask = async |path: &str| world.app("GET", path, &world.jwt(json!({}))).await;
        let (_, hook) = ask("/app/hook/config").await;
        assert_eq!(hook["url"], "http://service.test/github/webhook");
        assert_eq!(hook["secret"], "********");
        let (_, installation) = ask("/repos/acme/app/installation").await;
        assert_eq!(
            (&installation["id"], &installation["events"][0]),
            (&json!(7), &json!("workflow_job"))
        );
        world.cloud.github.install("acme/app", Installed::Elsewhere(8));
        assert_eq!(ask("/repos/acme/app/installation").await.1["id"], 8);
        assert_eq!(world.github("/repos/acme/app").await.0, StatusCode::NOT_FOUND);
        world.cloud.github.install("acme/app", Installed::Nowhere);
        assert_eq!(ask("/repos/acme/app/installation").await.0, StatusCode::NOT_FOUND);
        assert_eq!(world.github("/repos/acme/app/actions/runners").await.0, StatusCode::NOT_FOUND);
        world.cloud.github.set_public("acme/app", true);
        assert_eq!(world.github("/repos/acme/app").await.2["visibility"], "public");
        world.cloud.github.suspend(true);
        let tokens = "/app/installations/7/access_tokens";
        assert_eq!(world.app("POST", tokens, &world.jwt(json!({}))).await.0, StatusCode::FORBIDDEN);
        assert_eq!(world.github("/rate_limit").await.0, StatusCode::FORBIDDEN);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_delivery_can_be_sent_again_and_form_encoding_is_signed_as_sent() {
        let mut world = world().await;
        let url = "http://service.test/github/webhook".to_owned();
        world.cloud.github.webhook(Hook { url, secret: "s".to_owned(), form: true });
        world.cloud.github.lose_next_webhook(1);
        let job = world.cloud.github.queue_job("acme/app", ["tpu"], MINUTE);
        world.pass(5).await;
        assert_eq!(world.received().len(), 0);
        world.cloud.github.redeliver(&world.cloud.github.deliveries()[0].guid);
        world.pass(5).await;
        let delivery = &world.received()[0];
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"s");
        let expected = format!("sha256={}", hex(hmac::sign(&key, delivery.body()).as_ref()));
        assert_eq!(delivery.headers()["x-hub-signature-256"], expected);
        let payload = form_urlencoded::parse(delivery.body()).next().unwrap().1;
        let payload: Value = serde_json::from_str(&payload).unwrap();
        assert_eq!(payload["workflow_job"]["id"], job.0);
    }
}
