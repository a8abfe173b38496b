//! The checks of a day's history, each with its bound.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use http::StatusCode;
use runner_manager::clock::Timestamp;
use runner_manager::emulators::compute::Status;
use runner_manager::emulators::github::{JobId, JobStatus};
use runner_manager::emulators::{Api, Event, Reply};

use super::day::{Day, Profile};
use crate::world::{SECRET, World, minutes, seconds};

/// A reason why a VM was not up, or not stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Excuse {
    /// The zone has no machines, or has some again.
    Stockout(bool),
    /// GitHub cannot be queried, or can again.
    GitHubDown(bool),
    /// The VM is held, or released.
    Held(&'static str, bool),
    /// The state of the VM's runner cannot be read all day.
    Unseen(&'static str),
    /// No entry names the VM, or its tasks may not have come due since.
    Unconfigured(&'static str, bool),
    /// An operator needs the VM from this time on.
    StartedByHand(&'static str),
    /// An operator asked for a stop at this time.
    StoppedByHand(&'static str),
}

/// The longest run of a handler, which cannot know of events during that time.
pub(super) const WINDOW: Duration = seconds(20);

/// The longest time from a delivery's `idle_since` to its answer.
const ANSWER: Duration = seconds(8);

/// The bounds of a day.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// The longest time that the VM of an accepted, waiting job may be down.
    pub(super) waiting: Duration,
    /// The longest time that a VM may run without being needed.
    pub(super) idling: Duration,
    /// `VM_INACTIVE_MINUTES`.
    pub(super) inactive: Duration,
    /// Labels are written in time, so no older pass counts.
    pub(super) labels_hold: bool,
    /// No faults, so no response may be an error.
    pub(super) nothing_fails: bool,
    /// Both sources can be read, so no stop comes while an accepted job waits.
    pub(super) both_sources: bool,
    /// `gpu-1` is drained: no job is cut short, not even one that began a moment before.
    pub(super) drains: bool,
    /// There are resyncs, so a job is promised its VM even if its webhook was not accepted.
    pub(super) resyncs: bool,
}

impl Bounds {
    pub(super) fn of(day: &Day) -> Self {
        let (profile, inactive) = (day.profile, minutes(day.inactive));
        let waiting = match profile {
            // A stop that has just begun, and passes half a minute apart.
            Profile::None | Profile::Stale => minutes(3),
            // One pass interval, and the VM may still be stopping at its end.
            Profile::Outage | Profile::Permission => minutes(6),
            // A pass that fails or comes late: another interval or two.
            Profile::Loss | Profile::All => minutes(17),
            // And a resync or two, of which one may read nothing.
            Profile::Resyncs => minutes(30),
        };
        let idling = match profile {
            // The boot allowance, and the pass after it: a job that never came to a runner.
            Profile::None | Profile::Stale => inactive + minutes(10),
            // A pass that could not query GitHub, and another that confirms.
            Profile::Outage | Profile::Permission => inactive + minutes(25),
            Profile::Loss | Profile::All | Profile::Resyncs => inactive + minutes(60),
        };
        // If the last `completed` was lost, the time counts from the pass that found the VM idle.
        let late = profile.loses() || profile == Profile::Permission;
        let idling = if late { idling + inactive } else { idling };
        Self {
            waiting,
            idling,
            inactive,
            // If a label could not be written in time, an older pass may count.
            labels_hold: matches!(profile, Profile::None | Profile::Outage | Profile::Stale),
            nothing_fails: matches!(profile, Profile::None | Profile::Stale),
            both_sources: profile != Profile::Permission,
            drains: day.drains() && profile != Profile::Permission,
            resyncs: profile == Profile::Resyncs,
        }
    }
}

/// The most tasks that may be alive for one VM at a time.
const MOST_TASKS: usize = 24;

/// The worst values of a day, and its totals.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Figures {
    waited: Duration,
    idled: Duration,
    tasks: usize,
    jobs: usize,
    stops: usize,
    days: usize,
    calls: usize,
    github: usize,
    creates: usize,
    instances: usize,
}

impl Figures {
    pub(super) fn worst(&self, other: &Self) -> Self {
        Self {
            waited: self.waited.max(other.waited),
            idled: self.idled.max(other.idled),
            tasks: self.tasks.max(other.tasks),
            jobs: self.jobs + other.jobs,
            stops: self.stops + other.stops,
            days: self.days + other.days,
            calls: self.calls + other.calls,
            github: self.github + other.github,
            creates: self.creates + other.creates,
            instances: self.instances + other.instances,
        }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let a_day = |total: usize| total as f64 / self.days.max(1) as f64;
        write!(
            f,
            "{} jobs, {} stops; longest wait for a VM that is down {} s, longest idle time {} s, most tasks {}; \
             a day: {:.1} calls, {:.1} of them to GitHub, {:.1} tasks.create, {:.1} instances.*",
            self.jobs,
            self.stops,
            self.waited.as_secs(),
            self.idled.as_secs(),
            self.tasks,
            a_day(self.calls),
            a_day(self.github),
            a_day(self.creates),
            a_day(self.instances)
        )
    }
}

/// The VM that a mistyped deploy's entries name instead of `runner-1`.
pub(super) const MISTYPED: &str = "runner-l";

/// The time of each job's first 2xx answer to `queued`. For a VM that does not exist the answer is 502, except while
/// Compute Engine cannot be queried.
pub(super) fn accepted(history: &[Event]) -> BTreeMap<JobId, Timestamp> {
    let exists = |reply: &Reply| {
        let outcome = reply.headers.get("x-runner-manager-outcome");
        outcome.is_none_or(|outcome| !outcome.as_bytes().starts_with(MISTYPED.as_bytes()))
    };
    let mut accepted = BTreeMap::new();
    for happening in history {
        if let Event::Webhook { at, action, job, reply, .. } = happening
            && action == "queued"
            && reply.status.is_some_and(|status| status.is_success())
            && exists(reply)
        {
            accepted.entry(*job).or_insert(*at);
        }
    }
    accepted
}

/// The state of one VM at a point of the history.
#[derive(Default)]
struct Watched {
    status: Option<Status>,
    /// Jobs that wait for it, with their start, whether their webhook arrived or not.
    waiting: BTreeMap<JobId, Timestamp>,
    /// The waiting jobs that had a runner before: only GitHub knows that they wait again.
    requeued: BTreeSet<JobId>,
    /// Jobs on its runners, with their start.
    running: BTreeMap<JobId, Timestamp>,
    /// The number of operators that hold it.
    held: u32,
    unseen: bool,
    /// The number of deploys that have left it out.
    unconfigured: u32,
    down_for: Duration,
    idle_for: Duration,
    last_completed: Option<Timestamp>,
    stopped_by_hand: Option<Timestamp>,
}

impl Watched {
    fn is_up(&self) -> bool {
        matches!(self.status, Some(Status::Provisioning | Status::Staging | Status::Running))
    }
}

/// One pass through the history with all promises in view.
struct Review<'a> {
    bounds: Bounds,
    accepted: &'a BTreeMap<JobId, Timestamp>,
    route: &'a BTreeMap<JobId, &'static str>,
    ran_on: BTreeMap<JobId, &'static str>,
    /// The end of each job.
    ended: BTreeMap<JobId, Timestamp>,
    vms: BTreeMap<&'static str, Watched>,
    stockout: u32,
    github_down: u32,
    now: Timestamp,
    figures: Figures,
    /// Jobs that an operator's stop left waiting, and that the App may not read.
    given_up: BTreeSet<JobId>,
    broken: Vec<String>,
}

/// Checks the day against the promises.
pub(super) fn check(
    world: &World,
    bounds: Bounds,
    excuses: &[(Timestamp, Excuse)],
    most_tasks: usize,
) -> Result<Figures, String> {
    let history = world.history();
    let accepted = accepted(&history);
    let jobs = world.cloud.github.jobs();
    let calls = world.cloud.calls();
    let vm_of = |repo: &str, labels: &[String]| {
        if repo == "acme/app" && labels.iter().any(|label| label == "gpu") {
            "gpu-1"
        } else {
            "runner-1"
        }
    };
    let route = jobs.iter().map(|job| (job.id, vm_of(&job.repo, &job.labels))).collect();
    let mut review = Review {
        bounds,
        accepted: &accepted,
        route: &route,
        ran_on: BTreeMap::new(),
        ended: BTreeMap::new(),
        vms: BTreeMap::from(["runner-1", "gpu-1"].map(|vm| (vm, Watched::default()))),
        stockout: 0,
        github_down: 0,
        now: Timestamp::UNIX_EPOCH,
        figures: Figures {
            tasks: most_tasks,
            jobs: jobs.len(),
            days: 1,
            calls: calls.len(),
            github: calls.iter().filter(|call| call.api == Api::GitHub).count(),
            creates: calls.iter().filter(|call| call.method == "tasks.create").count(),
            instances: calls.iter().filter(|call| call.method.starts_with("instances.")).count(),
            ..Figures::default()
        },
        given_up: BTreeSet::new(),
        broken: Vec::new(),
    };
    let mut excuses = excuses.to_vec();
    excuses.sort_by_key(|(at, _)| *at);
    let mut excuses = excuses.into_iter().peekable();
    for happening in &history {
        let at = time_of(happening);
        while let Some((when, excuse)) = excuses.next_if(|(when, _)| *when <= at) {
            review.pass_to(when);
            review.excuse(excuse);
        }
        review.pass_to(at);
        review.see(happening);
    }
    review.end(world);
    let Review { figures, mut broken, given_up, .. } = review;
    for job in &jobs {
        if job.status != JobStatus::Completed && !job.stuck && !given_up.contains(&job.id) {
            broken.push(format!("never strand: job {} is {:?} in the end", job.id, job.status));
        }
    }
    if most_tasks > MOST_TASKS {
        broken.push(format!("{most_tasks} tasks were alive for one VM at once"));
    }
    broken.first().map_or(Ok(figures), |first| Err(first.clone()))
}

/// The VM of the runner with this name: see [`RunnerIs`](super::day::RunnerIs).
fn vm_of_runner(name: &str) -> &'static str {
    if name == "gpu-1" { "gpu-1" } else { "runner-1" }
}

pub(super) fn time_of(happening: &Event) -> Timestamp {
    match happening {
        Event::Instance { at, .. }
        | Event::Webhook { at, .. }
        | Event::Callback { at, .. }
        | Event::Job { at, .. }
        | Event::Runner { at, .. } => *at,
    }
}

impl Review<'_> {
    /// Counts the time until `time`.
    fn pass_to(&mut self, time: Timestamp) {
        let span = time.since(self.now);
        self.now = self.now.max(time);
        for (name, vm) in &mut self.vms {
            let can_be_known = |job: &JobId| self.github_down == 0 || !vm.requeued.contains(job);
            let is_accepted = |job: &JobId| self.accepted.get(job).is_some_and(|at| *at < time);
            // A resync finds the others, if GitHub can be queried.
            let is_found = self.bounds.resyncs && self.github_down == 0;
            let is_promised = |job: &JobId| is_found || is_accepted(job);
            let waits = vm.waiting.keys().any(|job| is_promised(job) && can_be_known(job));
            let stranded = waits && !vm.is_up() && self.stockout == 0 && vm.unconfigured == 0;
            vm.down_for = if stranded { vm.down_for + span } else { Duration::ZERO };
            let needed = !vm.waiting.is_empty() || !vm.running.is_empty();
            let excused = vm.held > 0 || vm.unseen || vm.unconfigured > 0 || self.github_down > 0;
            let idles = vm.status == Some(Status::Running) && !needed && !excused;
            vm.idle_for = if idles { vm.idle_for + span } else { Duration::ZERO };
            self.figures.waited = self.figures.waited.max(vm.down_for);
            self.figures.idled = self.figures.idled.max(vm.idle_for);
            if vm.down_for > self.bounds.waiting {
                self.broken.push(format!(
                    "never strand: {time}: {name} was down for {:?} while a job waited",
                    vm.down_for
                ));
            }
            if vm.idle_for > self.bounds.idling {
                self.broken
                    .push(format!("never leak: {time}: {name} was idle for {:?}", vm.idle_for));
            }
        }
    }

    fn excuse(&mut self, excuse: Excuse) {
        let count = |counter: &mut u32, on: bool| {
            *counter = if on { *counter + 1 } else { counter.saturating_sub(1) }
        };
        match excuse {
            Excuse::Stockout(on) => count(&mut self.stockout, on),
            Excuse::GitHubDown(on) => count(&mut self.github_down, on),
            Excuse::Held(vm, on) => count(&mut self.vm(vm).held, on),
            Excuse::Unseen(vm) => self.vm(vm).unseen = true,
            Excuse::Unconfigured(vm, on) => count(&mut self.vm(vm).unconfigured, on),
            Excuse::StartedByHand(vm) => self.vm(vm).idle_for = Duration::ZERO,
            Excuse::StoppedByHand(vm) => {
                let now = self.now;
                let blind = !self.bounds.both_sources;
                let vm = self.vm(vm);
                vm.stopped_by_hand = Some(now);
                // Without the permission to read waiting jobs, the service cannot start the VM again for them.
                let given_up =
                    if blind { std::mem::take(&mut vm.waiting) } else { BTreeMap::new() };
                self.given_up.extend(given_up.into_keys());
            }
        }
    }

    fn vm(&mut self, name: &str) -> &mut Watched {
        self.vms.get_mut(name).unwrap_or_else(|| panic!("no VM {name}"))
    }

    fn see(&mut self, happening: &Event) {
        match happening {
            Event::Instance { at, vm, status, cause } => {
                if *status == Status::Stopping && cause == "stop" {
                    self.figures.stops += 1;
                    self.judge_stop(*at, vm);
                }
                self.vm(vm).status = Some(*status);
            }
            Event::Job { at, id, status, runner, .. } => {
                let routed = self.route[id];
                for vm in self.vms.values_mut() {
                    vm.waiting.remove(id);
                    vm.running.remove(id);
                }
                match (status, runner) {
                    // A job counts for the VM that it was queued for, wherever it ran.
                    (JobStatus::Completed, _) => {
                        self.ended.insert(*id, *at);
                        self.vm(routed).idle_for = Duration::ZERO;
                    }
                    (JobStatus::Queued, _) => {
                        self.vm(routed).waiting.insert(*id, *at);
                    }
                    (JobStatus::InProgress, Some(runner)) => {
                        let runner = vm_of_runner(runner);
                        self.vm(runner).running.insert(*id, *at);
                        self.vm(runner).requeued.insert(*id);
                        self.ran_on.insert(*id, runner);
                    }
                    _ => {}
                }
            }
            Event::Webhook { at, action, job, reply, .. } => {
                self.answered(*at, reply.status, &format!("webhook {action}"), &reply.body);
                if action == "completed" && reply.status.is_some_and(|status| status.is_success()) {
                    // A job may run on another VM's runner, if that has its labels too.
                    let ran_on = self.ran_on.get(job).copied().unwrap_or(self.route[job]);
                    let ended = self.ended.get(job).copied();
                    let vm = self.vm(ran_on);
                    // A VM that comes up again counts as an event.
                    vm.idle_for = Duration::ZERO;
                    // While entries name another VM, that one gets the label.
                    if vm.unconfigured == 0 {
                        // A delivery that is late or repeated says when the job ended.
                        vm.last_completed = vm.last_completed.max(ended);
                    }
                }
            }
            Event::Callback { at, path, reply, .. } => {
                self.answered(*at, reply.status, path, &reply.body)
            }
            Event::Runner { .. } => {}
        }
    }

    fn answered(&mut self, at: Timestamp, status: Option<StatusCode>, what: &str, body: &[u8]) {
        let failed = status.is_none_or(|status| !status.is_success());
        if String::from_utf8_lossy(body).contains("an internal error") {
            self.broken.push(format!("{at}: {what} made a handler panic"));
        }
        if failed && self.bounds.nothing_fails {
            self.broken
                .push(format!("{at}: {what} was answered {status:?} though nothing was wrong"));
        }
        if String::from_utf8_lossy(body).contains(SECRET) {
            self.broken.push(format!("{at}: the answer to {what} shows the secret"));
        }
    }

    fn judge_stop(&mut self, at: Timestamp, name: &str) {
        let (bounds, accepted) = (self.bounds, self.accepted);
        let vm = self.vm(name);
        let mut broken = Vec::new();
        let allowance = if bounds.drains && name == "gpu-1" { Duration::ZERO } else { WINDOW };
        for (job, since) in &vm.running {
            if at > *since + allowance {
                broken.push(format!(
                    "never kill: {at}: {name} was stopped while job {job} ran since {since}"
                ));
            }
        }
        // Without a permission, one source may show less than both. A VM that is left without a runner is restarted.
        let may_wait = !bounds.both_sources || allowance == Duration::ZERO;
        for (job, since) in vm.waiting.iter().filter(|_| !may_wait) {
            // A job accepted while it waited for a review waits for a runner only since it was approved.
            if accepted.get(job).is_some_and(|accepted| at.since(*accepted.max(since)) > WINDOW) {
                broken.push(format!("never kill: {at}: {name} was stopped while job {job} waited"));
            }
        }
        let by_hand = vm.stopped_by_hand.is_some_and(|asked| at.since(asked) <= WINDOW);
        let in_view = |last: &Timestamp| at.since(*last) > WINDOW;
        if let Some(last) =
            vm.last_completed.filter(in_view).filter(|_| bounds.labels_hold && !by_hand)
            && at.since(last) + ANSWER < bounds.inactive
        {
            broken.push(format!(
                "the last job counts: {at}: {name} was stopped {:?} after {last}",
                at.since(last)
            ));
        }
        self.broken.extend(broken);
    }

    fn end(&mut self, world: &World) {
        if !world.is_quiet() {
            let statuses: Vec<_> = ["runner-1", "gpu-1"]
                .iter()
                .map(|vm| format!("{vm} {}", world.status(vm)))
                .collect();
            let pending = world.cloud.tasks.pending().len();
            self.broken.push(format!(
                "never leak: it never came to rest: {}; {pending} tasks",
                statuses.join(", ")
            ));
        }
    }
}
