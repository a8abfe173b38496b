//! Self-hosted runners: registration, connection, and the assignment of jobs.

use std::time::Duration;

use super::super::lock;
use super::{GitHub, Job, JobId, JobStatus, State};
use crate::clock::Timestamp;
use crate::emulators::Event;

/// The scope of a runner's registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The full name, `owner/name`.
    Repository(String),
    /// An organization's login.
    Organization(String),
}

/// The specification of a runner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runner {
    /// Unique within its scope.
    pub name: String,
    pub scope: Scope,
    /// All labels, `self-hosted` included.
    pub labels: Vec<String>,
    /// The instance that it runs on. A runner without one is connected by [`GitHub::set_online`].
    pub instance: Option<String>,
    /// The initial connection of a runner without an instance.
    pub online: bool,
    /// It updates its software when it connects.
    pub updates: bool,
}

impl Runner {
    /// A runner on the instance of its name.
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

    /// The runner, moved to this instance.
    pub fn on(self, instance: &str) -> Self {
        Self { instance: Some(instance.to_owned()), ..self }
    }
}

/// The time after which GitHub removes a runner that does not connect.
pub(super) const REMOVAL_AGE: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// The time after which a runner without software updates gets no jobs.
const MAX_SOFTWARE_AGE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// A runner, as tests see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunnerView {
    pub id: u64,
    pub name: String,
    pub scope: Scope,
    pub online: bool,
    /// The job that it runs, even if `busy` is false.
    pub job: Option<JobId>,
}

#[derive(Clone, Debug)]
pub(super) struct RunnerState {
    pub(super) spec: Runner,
    pub(super) online: bool,
    /// The start of the instance at its last connection.
    pub(super) up: Option<Timestamp>,
    /// The job that it runs or was assigned.
    pub(super) job: Option<JobId>,
    pub(super) glitch: bool,
    /// It shows as offline and busy.
    pub(super) stuck: bool,
    /// It was deleted, but stays connected until its job ends.
    pub(super) deregistered: bool,
    /// The time of its last connection, or else of its registration.
    pub(super) seen: Timestamp,
    /// The time of its last software update.
    pub(super) updated: Timestamp,
}

impl GitHub {
    /// Registers a runner, and returns its id.
    pub fn add_runner(&self, spec: Runner) -> u64 {
        self.change(|state, now| {
            match &spec.scope {
                Scope::Repository(repo) => {
                    state.repo_mut(repo);
                }
                Scope::Organization(login) => state.add_owner(login, true),
            }
            let id = 20 + state.next();
            let online = spec.online && spec.instance.is_none();
            let runner = RunnerState {
                spec,
                online,
                up: None,
                job: None,
                glitch: false,
                stuck: false,
                deregistered: false,
                seen: now,
                updated: now,
            };
            state.runners.insert(id, runner);
            id
        })
    }

    /// Removes all runners of this name.
    pub fn remove_runner(&self, name: &str) {
        self.change(|state, now| {
            for id in state.runners_named(name) {
                state.offline(id, now);
                state.runners.remove(&id);
            }
        });
    }

    /// Registers a runner with a registration token, in place of one of the same name. Returns false if the token is
    /// invalid.
    pub fn register(&self, token: &str, runner: impl FnOnce(Scope) -> Runner) -> bool {
        let scope = self.change(|state, now| {
            state.registrations.get(token).filter(|(_, ends)| now < *ends).map(|it| it.0.clone())
        });
        let Some(spec) = scope.map(runner) else { return false };
        self.change(|state, _| {
            let same = |known: &Runner| known.name == spec.name && known.scope == spec.scope;
            state.runners.retain(|_, known| known.deregistered || !same(&known.spec));
        });
        self.add_runner(spec);
        true
    }

    /// The time at which the last runner on this instance ended because it was removed; `None` while there is one, also
    /// one that was removed and still has a job.
    pub fn without_runner_since(&self, instance: &str) -> Option<Timestamp> {
        let state = lock(&self.state);
        let on = |runner: &RunnerState| runner.spec.instance.as_deref() == Some(instance);
        let has_one = state.runners.values().any(on);
        state.removed_at.get(instance).copied().filter(|_| !has_one)
    }

    /// A runner on this instance is registered in some scope.
    pub fn has_runner_on(&self, instance: &str) -> bool {
        self.change(|state, _| {
            let mut runners = state.runners.values().filter(|runner| !runner.deregistered);
            runners.any(|runner| runner.spec.instance.as_deref() == Some(instance))
        })
    }

    /// Connects or disconnects the runners of this name that have no instance.
    pub fn set_online(&self, name: &str, online: bool) {
        self.change(|state, now| {
            for id in state.runners_named(name) {
                if state.runners[&id].spec.instance.is_none() {
                    if online { state.online(id, now, None) } else { state.offline(id, now) }
                }
            }
        });
    }

    /// Makes `busy` of the runners of this name show false even while they run a job, or shows it correctly again.
    pub fn busy_glitch(&self, name: &str, glitch: bool) {
        self.change(|state, _| {
            for id in state.runners_named(name) {
                if let Some(runner) = state.runners.get_mut(&id) {
                    runner.glitch = glitch;
                }
            }
        });
    }

    /// Makes the runners of this name show as offline and busy regardless of their state, or shows it correctly again.
    pub fn stuck_busy(&self, name: &str, stuck: bool) {
        self.change(|state, _| {
            for id in state.runners_named(name) {
                if let Some(runner) = state.runners.get_mut(&id) {
                    runner.stuck = stuck;
                }
            }
        });
    }

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
            let registered = state.runners.iter().filter(|(_, runner)| !runner.deregistered);
            registered.map(view).collect()
        })
    }
}

impl RunnerState {
    pub(super) fn is_listed_in(&self, scope: &Scope) -> bool {
        !self.deregistered
            && match (scope, &self.spec.scope) {
                (Scope::Repository(a), Scope::Repository(b))
                | (Scope::Organization(a), Scope::Organization(b)) => a.eq_ignore_ascii_case(b),
                _ => false,
            }
    }
}

impl State {
    pub(super) fn runners_named(&self, name: &str) -> Vec<u64> {
        let named =
            |(_, runner): &(&u64, &RunnerState)| runner.spec.name == name && !runner.deregistered;
        let ids: Vec<u64> = self.runners.iter().filter(named).map(|(id, _)| *id).collect();
        assert!(!ids.is_empty(), "there is no runner {name}");
        ids
    }

    /// The id of a runner of this name, or a new id.
    pub(super) fn runner_id(&mut self, name: &str) -> u64 {
        let known = self.runners.iter().find(|(_, runner)| runner.spec.name == name);
        known.map(|(id, _)| *id).unwrap_or_else(|| 20 + self.next())
    }

    pub(super) fn online(&mut self, id: u64, at: Timestamp, up: Option<Timestamp>) {
        let Some(runner) = self.runners.get_mut(&id) else { return };
        runner.up = up;
        if !runner.online {
            runner.online = true;
            if runner.spec.updates {
                runner.updated = at;
            }
            let name = runner.spec.name.clone();
            self.events.push(Event::Runner { at, name, online: true });
        }
    }

    pub(super) fn offline(&mut self, id: u64, at: Timestamp) {
        let Some(runner) = self.runners.get_mut(&id).filter(|runner| runner.online) else { return };
        runner.online = false;
        runner.seen = at;
        let (name, job) = (runner.spec.name.clone(), runner.job.take());
        self.events.push(Event::Runner { at, name, online: false });
        if let Some(job) = job.and_then(|job| self.jobs.get_mut(&job)) {
            job.pickup = None;
            if job.status == JobStatus::InProgress {
                job.lost_at = Some(at);
                job.lost += 1;
            }
        }
    }

    /// Removes a runner. A job that was assigned to it continues with the job's own credentials.
    pub(super) fn deregister(&mut self, id: u64, now: Timestamp) {
        if let Some(runner) = self.runners.get_mut(&id) {
            runner.deregistered = true;
            if runner.job.is_none() {
                self.offline(id, now);
            }
        }
    }

    /// Assigns each queued job, oldest first, to an idle runner that has its labels.
    pub(super) fn assign(&mut self, now: Timestamp) {
        // Deleted runners disappear when their last job ends.
        let (runners, removed_at) = (&mut self.runners, &mut self.removed_at);
        runners.retain(|_, runner| {
            let stays = !runner.deregistered || runner.job.is_some();
            if let (false, Some(instance)) = (stays, &runner.spec.instance) {
                removed_at.insert(instance.clone(), now);
            }
            stays
        });
        let ready = |job: &&Job| job.status == JobStatus::Queued && job.pickup.is_none();
        let waiting = self.active.iter().map(|id| &self.jobs[id]).filter(ready);
        let mut waiting: Vec<(Timestamp, JobId)> =
            waiting.map(|job| (job.ready_at, job.id)).collect();
        waiting.sort();
        for (_, id) in waiting {
            let job = &self.jobs[&id];
            let idle = |(_, runner): &(&u64, &RunnerState)| {
                let current = now.since(runner.updated) < MAX_SOFTWARE_AGE;
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

    pub(super) fn fits(&self, runner: &RunnerState, job: &Job) -> bool {
        let repo = &self.repos[&job.repo];
        let reach = match &runner.spec.scope {
            Scope::Repository(name) => repo.is(name),
            Scope::Organization(login) => repo.owner.eq_ignore_ascii_case(login),
        };
        let has = |label: &String| runner.spec.labels.iter().any(|l| l.eq_ignore_ascii_case(label));
        reach && job.labels.iter().all(has)
    }
}
