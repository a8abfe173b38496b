//! Self-hosted runners: where they are registered, when they are connected, and who gets which job.

use std::time::Duration;

use super::{GitHub, Job, JobId, JobStatus, State};
use crate::clock::Timestamp;
use crate::emulators::Happening;

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
pub(super) const FORGOTTEN: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// How long a runner gets jobs whose software is not the newest.
const OUTDATED: Duration = Duration::from_secs(30 * 24 * 60 * 60);

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

#[derive(Clone, Debug)]
pub(super) struct RunnerState {
    pub(super) spec: Runner,
    pub(super) online: bool,
    /// Since when the instance is up that it connected from.
    pub(super) up: Option<Timestamp>,
    /// The job that it runs or is about to.
    pub(super) job: Option<JobId>,
    pub(super) glitch: bool,
    /// It shows as offline and busy.
    pub(super) stuck: bool,
    /// It is not registered any more, but connected until its job ends.
    pub(super) deregistered: bool,
    /// When it was last connected, or registered.
    pub(super) seen: Timestamp,
    /// When its software was last the newest.
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
                Scope::Organization(login) => state.add_owner(login, true, now),
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
            state.runners.retain(|_, known| known.deregistered || !same(&known.spec));
        });
        self.add_runner(spec);
        true
    }

    /// Whether a runner that lives on this instance is registered anywhere.
    pub fn has_runner_on(&self, instance: &str) -> bool {
        self.change(|state, _| {
            let mut runners = state.runners.values().filter(|runner| !runner.deregistered);
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

    /// Shows the runners of this name as offline and busy, whatever they do, as long as they are `stuck`.
    pub fn stuck_busy(&self, name: &str, stuck: bool) {
        self.change(|state, _| {
            for id in state.runners_named(name) {
                if let Some(runner) = state.runners.get_mut(&id) {
                    runner.stuck = stuck;
                }
            }
        });
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

    /// The id of a runner of this name; a new one if there is none any more.
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
            self.happenings.push(Happening::Runner { at, name, online: true });
        }
    }

    pub(super) fn offline(&mut self, id: u64, at: Timestamp) {
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

    /// Takes a runner out of the lists. A job that it was given goes on, on credentials of its own.
    pub(super) fn deregister(&mut self, id: u64, now: Timestamp) {
        if let Some(runner) = self.runners.get_mut(&id) {
            runner.deregistered = true;
            if runner.job.is_none() {
                self.offline(id, now);
            }
        }
    }

    /// Gives each job that is ready, oldest first, an idle runner that has its labels.
    pub(super) fn assign(&mut self, now: Timestamp) {
        // The last job of a deregistered runner is over.
        self.runners.retain(|_, runner| !runner.deregistered || runner.job.is_some());
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
