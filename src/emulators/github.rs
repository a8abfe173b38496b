//! GitHub: repositories, self-hosted runners, workflow jobs and their webhooks.
//!
//! A runner belongs to an instance: it connects some time after the instance starts, and disconnects when the instance
//! stops. A queued job waits for an idle runner that has all its labels.
//! <https://docs.github.com/en/actions/hosting-your-own-runners>

mod api;
mod app;
mod deliveries;
mod jobs;
mod payloads;
mod response;
mod runners;
mod transitions;

use std::collections::{BTreeMap, BTreeSet};
use std::mem::take;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::compute::ComputeEngine;
use super::{Event, Keys, Setup, Shared, lock};
use crate::clock::Timestamp;
pub use deliveries::{Attempt, Delivery, Hook};
use jobs::{Job, Run};
pub use jobs::{JobId, JobStatus, JobView};
pub(super) use response::{Refusal, not_found};
use runners::RunnerState;
pub use runners::{Runner, RunnerView, Scope};

/// The App's installation on a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installed {
    /// The installation that the service is configured with.
    Here,
    /// Another installation, with this id.
    Elsewhere(u64),
    Nowhere,
}

/// A permission of the App.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Permission {
    /// Runs and jobs: *Actions: read*.
    Actions,
    /// A repository's runners: *Administration: read*.
    Administration,
    /// An organization's runners: *Self-hosted runners: read*.
    OrgRunners,
    /// Registering and deleting runners: *write* for either of the two above. Not granted by default.
    Registration,
}

/// The refusal of a new installation token, which GitHub's servers do not all know at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenRefusal {
    /// 401 `Bad credentials`: a server does not know the token yet.
    Unauthorized,
    /// 403 `Resource not accessible by integration`: a server does not know its permissions yet.
    Forbidden,
}

/// The delays of GitHub's processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timings {
    /// From the start of an instance to its runner's connection.
    pub connect: Duration,
    /// From the assignment of a job to its start.
    pub pickup: Duration,
    /// From the loss of a job's runner until the job is queued again.
    pub requeue: Duration,
    /// From a job's start until `busy` shows true.
    pub busy_lag: Duration,
    /// The time after which GitHub fails a queued job.
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
    /// Former names, in lower case: GitHub redirects from them.
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

struct State {
    app_id: String,
    installation_id: u64,
    keys: Arc<Keys>,
    timings: Timings,
    owners: BTreeMap<String, Owner>,
    repos: BTreeMap<u64, Repository>,
    runners: BTreeMap<u64, RunnerState>,
    /// By instance, the last time at which a runner on it ended because it was removed.
    removed_at: BTreeMap<String, Timestamp>,
    runs: BTreeMap<u64, Run>,
    jobs: BTreeMap<JobId, Job>,
    /// The jobs that are not completed.
    active: BTreeSet<JobId>,
    hook: Option<Hook>,
    deliveries: BTreeMap<String, Delivery>,
    /// The number of attempts at all deliveries.
    attempts: u64,
    outbox: BTreeSet<(Timestamp, u64, String)>,
    lateness: Box<dyn FnMut(&Delivery) -> Duration + Send>,
    to_lose: u32,
    losing: Box<dyn FnMut(&Delivery) -> bool + Send>,
    /// The installation tokens, with the time at which each was issued.
    tokens: BTreeMap<String, Timestamp>,
    /// The age up to which a token is refused, and the refusal.
    new_tokens: (Duration, TokenRefusal),
    /// The registration tokens, with their scope and expiry.
    registrations: BTreeMap<String, (Scope, Timestamp)>,
    forbidden: BTreeSet<Permission>,
    /// The events that the App subscribes to.
    subscribed_events: Vec<String>,
    suspended: Option<Timestamp>,
    rate_limited: bool,
    outage: bool,
    search_index_down: bool,
    used: u32,
    count: u64,
    events: Vec<Event>,
}

/// The emulated GitHub. Cheap to clone; clones share their state. Methods panic for a repository, runner or job that does
/// not exist, since that is a mistake in the test.
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
            removed_at: BTreeMap::new(),
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
            new_tokens: (Duration::ZERO, TokenRefusal::Unauthorized),
            registrations: BTreeMap::new(),
            forbidden: BTreeSet::from([Permission::Registration]),
            subscribed_events: vec!["workflow_job".to_owned()],
            suspended: None,
            rate_limited: false,
            outage: false,
            search_index_down: false,
            used: 0,
            count: 0,
            events: Vec::new(),
        };
        Self { shared, compute, state: Arc::new(Mutex::new(state)) }
    }

    /// Adds a repository, `owner/name`, of an organization.
    pub fn add_repository(&self, full_name: &str) {
        self.change(|state, now| state.add_repository(full_name, true, now));
    }

    /// Adds a repository, `owner/name`, of a user.
    pub fn add_user_repository(&self, full_name: &str) {
        self.change(|state, now| state.add_repository(full_name, false, now));
    }

    /// Renames or transfers a repository. The old name redirects.
    pub fn rename_repository(&self, from: &str, to: &str) {
        self.change(|state, _| {
            let (owner, name) = split(to);
            let organization = state.owner(split(from).0).is_some_and(|owner| owner.organization);
            state.add_owner(owner, organization);
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

    /// Takes a permission away from the App.
    pub fn forbid(&self, permission: Permission) {
        self.change(|state, _| state.forbidden.insert(permission));
    }

    /// Grants the permission again.
    pub fn permit(&self, permission: Permission) {
        self.change(|state, _| state.forbidden.remove(&permission));
    }

    /// Sets the App's installation on a repository.
    pub fn install(&self, repo: &str, installed: Installed) {
        self.change(|state, _| state.repo_mut(repo).installed = installed);
    }

    pub fn set_public(&self, repo: &str, public: bool) {
        self.change(|state, _| state.repo_mut(repo).public = public);
    }

    /// Sets the events that the App subscribes to.
    pub fn subscribe_to(&self, events: &[&str]) {
        let events = events.iter().map(|event| (*event).to_owned()).collect();
        self.change(|state, _| state.subscribed_events = events);
    }

    /// Suspends the installation, or ends its suspension.
    pub fn suspend(&self, suspended: bool) {
        self.change(|state, now| state.suspended = suspended.then_some(now));
    }

    /// Uses up the installation's rate limit, or restores it.
    pub fn rate_limited(&self, limited: bool) {
        self.change(|state, _| state.rate_limited = limited);
    }

    /// Starts or ends an outage, in which every call gets 503.
    pub fn outage(&self, outage: bool) {
        self.change(|state, _| state.outage = outage);
    }

    /// Empties the search index, or restores it. Lists of runs that are filtered by status use it; other lists do not.
    pub fn search_index_down(&self, down: bool) {
        self.change(|state, _| state.search_index_down = down);
    }

    pub fn timings(&self, timings: Timings) {
        self.change(|state, _| state.timings = timings);
    }

    pub fn current_timings(&self) -> Timings {
        lock(&self.state).timings
    }

    /// Sets the time from a job's start until `busy` shows true.
    pub fn busy_lag(&self, lag: Duration) {
        self.change(|state, _| state.timings.busy_lag = lag);
    }

    /// Refuses installation tokens younger than `span`.
    pub fn new_tokens_refused_for(&self, span: Duration, refusal: TokenRefusal) {
        self.change(|state, _| state.new_tokens = (span, refusal));
    }

    /// Revokes all installation tokens.
    pub fn revoke_tokens(&self) {
        self.change(|state, _| state.tokens.clear());
    }

    pub(super) fn next_event(&self) -> Option<Timestamp> {
        let next_delivery = lock(&self.state).outbox.first().map(|(time, ..)| *time);
        self.next_step().into_iter().chain(next_delivery).min()
    }

    /// The earliest time at which a job or a runner changes.
    pub(super) fn next_step(&self) -> Option<Timestamp> {
        lock(&self.state).next_transition(&self.compute).map(|(time, _)| time)
    }

    /// Applies every transition that is due by `time`.
    pub(super) fn step(&self, time: Timestamp) {
        let events = {
            let mut state = lock(&self.state);
            state.step(&self.compute, time);
            take(&mut state.events)
        };
        self.shared.notify(events);
    }

    fn change<R>(&self, act: impl FnOnce(&mut State, Timestamp) -> R) -> R {
        let now = self.shared.clock.now();
        self.compute.step(now);
        let (result, events) = {
            let mut state = lock(&self.state);
            state.step(&self.compute, now);
            let result = act(&mut state, now);
            state.assign(now);
            (result, take(&mut state.events))
        };
        self.shared.notify(events);
        self.shared.changed.notify_one();
        result
    }
}

impl State {
    fn next(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    fn owner(&self, login: &str) -> Option<&Owner> {
        self.owners.get(&login.to_ascii_lowercase())
    }

    fn add_owner(&mut self, login: &str, organization: bool) {
        let id = 90_000_000 + self.next();
        let owner = Owner { login: login.to_owned(), id, organization };
        self.owners.entry(login.to_ascii_lowercase()).or_insert(owner);
    }

    fn add_repository(&mut self, full_name: &str, organization: bool, now: Timestamp) {
        let (owner, name) = split(full_name);
        if self.repos.values().any(|repo| repo.is(full_name)) {
            return;
        }
        self.add_owner(owner, organization);
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
}

fn split(full_name: &str) -> (&str, &str) {
    full_name.split_once('/').unwrap_or_else(|| panic!("{full_name} is not owner/name"))
}

#[cfg(test)]
mod tests;
