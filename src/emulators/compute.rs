//! Compute Engine: instances that take time to start and to stop, and their operations.
//!
//! <https://cloud.google.com/compute/docs/instances/instance-lifecycle>

mod api;
mod filter;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::mem::take;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Event, Setup, Shared, hash, lock};
use crate::clock::Timestamp;

/// <https://cloud.google.com/compute/docs/instances/instance-lifecycle>
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    Deprovisioning,
    Pending,
    PendingStop,
    Provisioning,
    Repairing,
    Running,
    Staging,
    Stopped,
    Stopping,
    Suspended,
    Suspending,
    #[default]
    Terminated,
}

impl Status {
    pub const ALL: [Self; 12] = [
        Self::Deprovisioning,
        Self::Pending,
        Self::PendingStop,
        Self::Provisioning,
        Self::Repairing,
        Self::Running,
        Self::Staging,
        Self::Stopped,
        Self::Stopping,
        Self::Suspended,
        Self::Suspending,
        Self::Terminated,
    ];

    /// The status as the API spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deprovisioning => "DEPROVISIONING",
            Self::Pending => "PENDING",
            Self::PendingStop => "PENDING_STOP",
            Self::Provisioning => "PROVISIONING",
            Self::Repairing => "REPAIRING",
            Self::Running => "RUNNING",
            Self::Staging => "STAGING",
            Self::Stopped => "STOPPED",
            Self::Stopping => "STOPPING",
            Self::Suspended => "SUSPENDED",
            Self::Suspending => "SUSPENDING",
            Self::Terminated => "TERMINATED",
        }
    }

    /// The guest runs; a graceful shutdown lets it finish.
    const fn is_up(self) -> bool {
        matches!(self, Self::Running | Self::PendingStop)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Compute Engine stops an instance that was suspended for this long.
/// <https://cloud.google.com/compute/docs/instances/suspend-resume-instance>
const LONGEST_SUSPENSION: Duration = Duration::from_secs(60 * 24 * 60 * 60);

/// The specification of an instance.
#[derive(Clone, Debug)]
pub struct Instance {
    /// Unique within the cloud, across zones.
    pub name: String,
    pub zone: String,
    /// The initial status.
    pub status: Status,
    pub labels: BTreeMap<String, String>,
    /// A local SSD is attached, whose data a stop discards.
    pub local_ssd: bool,
    /// A GPU is attached: it cannot be suspended.
    pub gpu: bool,
    /// With more than 208 it cannot be suspended.
    pub memory_gib: u32,
    /// A stop first waits for the guest, in `PENDING_STOP`.
    pub graceful_shutdown: bool,
}

impl Instance {
    /// A stopped instance without labels or local SSD.
    pub fn new(name: &str, zone: &str) -> Self {
        Self { name: name.to_owned(), zone: zone.to_owned(), ..Self::default() }
    }
}

impl Default for Instance {
    fn default() -> Self {
        Self {
            name: "runner-1".to_owned(),
            zone: "asia-northeast1-a".to_owned(),
            status: Status::Terminated,
            labels: BTreeMap::new(),
            local_ssd: false,
            gpu: false,
            memory_gib: 16,
            graceful_shutdown: false,
        }
    }
}

/// The durations of operations, from their call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timings {
    /// Until a start gets its resources, or fails.
    pub execute: Duration,
    /// Until a starting instance is `STAGING`.
    pub staging: Duration,
    /// Until a starting or resuming instance is `RUNNING`.
    pub boot: Duration,
    /// Until a stopping instance is `TERMINATED`.
    pub stopping: Duration,
    /// Until a graceful shutdown stops waiting for the guest.
    pub graceful_shutdown: Duration,
    /// Until a suspending instance is `SUSPENDED`.
    pub suspending: Duration,
    /// Until reads show a changed label.
    pub label_delay: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            execute: Duration::from_secs(2),
            staging: Duration::from_secs(5),
            boot: Duration::from_secs(20),
            stopping: Duration::from_secs(30),
            graceful_shutdown: Duration::from_secs(120),
            suspending: Duration::from_secs(20),
            label_delay: Duration::ZERO,
        }
    }
}

/// The emulated Compute Engine. Cheap to clone; clones share their state. Methods panic for an instance that does not
/// exist, since that is a mistake in the test.
#[derive(Clone)]
pub struct ComputeEngine {
    shared: Arc<Shared>,
    state: Arc<Mutex<State>>,
}

struct State {
    project: String,
    timings: Timings,
    instances: BTreeMap<String, Machine>,
    operations: BTreeMap<u64, Operation>,
    /// The operation of each request id.
    requests: BTreeMap<(String, String, String), u64>,
    agenda: BTreeMap<(Timestamp, u64), Step>,
    stockouts: BTreeSet<String>,
    forbidden: BTreeSet<String>,
    rate_limited: bool,
    count: u64,
    events: Vec<Event>,
}

struct Machine {
    id: u64,
    spec: Instance,
    created: Timestamp,
    status: Status,
    /// The time since which the guest runs.
    up_since: Option<Timestamp>,
    /// The last time at which the guest stopped.
    down_since: Option<Timestamp>,
    history: Vec<(Timestamp, Status, String)>,
    /// The labels that reads show; `spec.labels` are the current ones.
    shown_labels: BTreeMap<String, String>,
    last_start: Option<Timestamp>,
    last_stop: Option<Timestamp>,
    last_suspend: Option<Timestamp>,
    /// The number of the current plan; steps of earlier plans are void.
    plan: u64,
    /// The operation of the plan.
    operation: Option<u64>,
}

struct Operation {
    name: String,
    kind: String,
    zone: String,
    target: String,
    target_id: u64,
    user: &'static str,
    created: Timestamp,
    ended: Option<Timestamp>,
    error: Option<(&'static str, String)>,
}

#[derive(Clone, Debug)]
enum Step {
    Execute { vm: String, plan: u64, fallback: Status },
    Become { vm: String, plan: u64, status: Status, cause: &'static str },
    Finish { operation: u64 },
    ShowLabels { vm: String },
}

impl ComputeEngine {
    pub(super) fn new(setup: &Setup, shared: Arc<Shared>) -> Self {
        let state = State {
            project: setup.project.clone(),
            timings: Timings::default(),
            instances: BTreeMap::new(),
            operations: BTreeMap::new(),
            requests: BTreeMap::new(),
            agenda: BTreeMap::new(),
            stockouts: BTreeSet::new(),
            forbidden: BTreeSet::new(),
            rate_limited: false,
            count: 0,
            events: Vec::new(),
        };
        Self { shared, state: Arc::new(Mutex::new(state)) }
    }

    pub fn insert(&self, spec: Instance) {
        self.change(|state, now| {
            let id = 7_000_000_000_000_000_000 + state.next();
            let up = spec.status.is_up();
            let started = up.then_some(now);
            let machine = Machine {
                id,
                created: now,
                status: spec.status,
                up_since: started,
                down_since: None,
                history: vec![(now, spec.status, "insert".to_owned())],
                shown_labels: spec.labels.clone(),
                last_start: started,
                last_stop: None,
                last_suspend: None,
                plan: 0,
                operation: None,
                spec,
            };
            state.instances.insert(machine.spec.name.clone(), machine);
        });
    }

    /// Deletes an instance at once.
    pub fn delete(&self, vm: &str) {
        self.change(|state, _| {
            state.instances.remove(vm);
        });
    }

    pub fn status(&self, vm: &str) -> Status {
        self.change(|state, _| state.machine(vm).status)
    }

    /// The instance's current labels, even if reads do not show them yet.
    pub fn labels(&self, vm: &str) -> BTreeMap<String, String> {
        self.change(|state, _| state.machine(vm).spec.labels.clone())
    }

    /// Sets or removes a label at once, as an operator in the console.
    pub fn label_by_hand(&self, vm: &str, key: &str, value: Option<&str>) {
        self.change(|state, _| {
            let machine = state.machine(vm);
            match value {
                Some(value) => machine.spec.labels.insert(key.to_owned(), value.to_owned()),
                None => machine.spec.labels.remove(key),
            };
            machine.shown_labels = machine.spec.labels.clone();
        });
    }

    /// Every status of the instance, with its time and cause.
    pub fn history(&self, vm: &str) -> Vec<(Timestamp, Status, String)> {
        self.change(|state, _| state.machine(vm).history.clone())
    }

    pub fn instances(&self) -> Vec<String> {
        self.change(|state, _| state.instances.keys().cloned().collect())
    }

    /// Preempts a running instance.
    pub fn preempt(&self, vm: &str) {
        self.change(|state, now| {
            if state.machine(vm).status == Status::Running {
                state.stop(vm, now, PREEMPTED, "preempted");
            }
        });
    }

    /// Stops the instance, as an operator in the console, unless it is stopped.
    pub fn stop_by_hand(&self, vm: &str) {
        self.change(|state, now| {
            if !matches!(state.machine(vm).status, Status::Terminated | Status::Stopped) {
                state.stop(vm, now, "stop", "stopped by hand");
            }
        });
    }

    /// Starts the instance, as an operator in the console, if it is stopped.
    pub fn start_by_hand(&self, vm: &str) {
        self.change(|state, now| {
            let from = state.machine(vm).status;
            if matches!(from, Status::Terminated | Status::Stopped) {
                state.start(vm, now, "start", from, "started by hand");
            }
        });
    }

    /// Suspends a running instance, as an operator in the console.
    pub fn suspend_by_hand(&self, vm: &str) {
        self.change(|state, now| {
            if state.machine(vm).status == Status::Running {
                state.suspend(vm, now, "suspended by hand");
            }
        });
    }

    /// Sets the status, which stays until the next operation.
    pub fn set_status(&self, vm: &str, status: Status) {
        self.change(|state, now| {
            state.abandon(vm, now);
            state.become_status(vm, now, status, "set");
        });
    }

    /// Makes starts in the zone fail for lack of resources, or succeed again.
    pub fn stockout(&self, zone: &str, stockout: bool) {
        self.change(|state, _| match stockout {
            true => state.stockouts.insert(zone.to_owned()),
            false => state.stockouts.remove(zone),
        });
    }

    /// Takes this IAM permission away, such as `compute.instances.setLabels`.
    pub fn forbid(&self, permission: &str) {
        self.change(|state, _| state.forbidden.insert(permission.to_owned()));
    }

    /// Grants the permission again.
    pub fn permit(&self, permission: &str) {
        self.change(|state, _| state.forbidden.remove(permission));
    }

    /// Uses up the project's request quota, or restores it.
    pub fn rate_limited(&self, limited: bool) {
        self.change(|state, _| state.rate_limited = limited);
    }

    pub fn timings(&self, timings: Timings) {
        self.change(|state, _| state.timings = timings);
    }

    pub fn current_timings(&self) -> Timings {
        lock(&self.state).timings
    }

    pub(super) fn next_event(&self) -> Option<Timestamp> {
        lock(&self.state).agenda.keys().next().map(|(time, _)| *time)
    }

    /// Applies every step that is due by `time`.
    pub(super) fn step(&self, time: Timestamp) {
        let events = {
            let mut state = lock(&self.state);
            state.step(time);
            take(&mut state.events)
        };
        self.shared.notify(events);
    }

    /// The time since which the guest runs; `None` while it does not. Notifies no subscriber, so that an emulator may
    /// call it while locked.
    pub(super) fn up_since(&self, vm: &str) -> Option<Timestamp> {
        lock(&self.state).instances.get(vm)?.up_since
    }

    /// The last time at which the guest stopped, if it ever did.
    pub(super) fn down_since(&self, vm: &str) -> Option<Timestamp> {
        lock(&self.state).instances.get(vm)?.down_since
    }

    fn change<R>(&self, act: impl FnOnce(&mut State, Timestamp) -> R) -> R {
        let now = self.shared.clock.now();
        let (result, events) = {
            let mut state = lock(&self.state);
            state.step(now);
            (act(&mut state, now), take(&mut state.events))
        };
        self.shared.notify(events);
        self.shared.changed.notify_one();
        result
    }
}

/// The kind of the operation that Google creates for a preemption.
const PREEMPTED: &str = "compute.instances.preempted";

impl State {
    fn next(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    fn machine(&mut self, vm: &str) -> &mut Machine {
        self.instances.get_mut(vm).unwrap_or_else(|| panic!("there is no instance {vm}"))
    }

    fn schedule(&mut self, time: Timestamp, step: Step) {
        let order = self.next();
        self.agenda.insert((time, order), step);
    }

    fn step(&mut self, now: Timestamp) {
        while let Some(entry) = self.agenda.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let ((time, _), step) = entry.remove_entry();
            self.execute(time, step);
        }
    }

    fn execute(&mut self, time: Timestamp, step: Step) {
        match step {
            Step::Execute { vm, plan, fallback } if self.holds(&vm, plan) => {
                self.allocate(&vm, time, fallback);
            }
            Step::Become { vm, plan, status, cause } if self.holds(&vm, plan) => {
                self.become_status(&vm, time, status, cause);
                let machine = self.machine(&vm);
                let settled =
                    matches!(status, Status::Running | Status::Terminated | Status::Suspended);
                if let Some(operation) = machine.operation.take_if(|_| settled) {
                    self.finish(operation, time, None);
                }
            }
            Step::Finish { operation } => self.finish(operation, time, None),
            Step::ShowLabels { vm } => {
                if let Some(machine) = self.instances.get_mut(&vm) {
                    // The current labels: another call may have changed them since.
                    machine.shown_labels = machine.spec.labels.clone();
                }
            }
            Step::Execute { .. } | Step::Become { .. } => {}
        }
    }

    fn holds(&self, vm: &str, plan: u64) -> bool {
        self.instances.get(vm).is_some_and(|machine| machine.plan == plan)
    }

    /// Allocates a start's resources; without any, the instance returns to the `fallback` status.
    fn allocate(&mut self, vm: &str, time: Timestamp, fallback: Status) {
        let zone = self.machine(vm).spec.zone.clone();
        if !self.stockouts.contains(&zone) {
            self.machine(vm).last_start = Some(time);
            return;
        }
        let message = format!(
            "The zone 'projects/{}/zones/{zone}' does not have enough resources available to fulfill the \
             request.  Try a different zone, or try again later.",
            self.project
        );
        let operation = self.machine(vm).operation.take();
        self.abandon(vm, time);
        self.become_status(vm, time, fallback, "stockout");
        if let Some(operation) = operation {
            self.finish(operation, time, Some(("ZONE_RESOURCE_POOL_EXHAUSTED", message)));
        }
    }

    fn become_status(&mut self, vm: &str, at: Timestamp, status: Status, cause: &str) {
        let machine = self.machine(vm);
        machine.status = status;
        if machine.up_since.is_some() && !status.is_up() {
            machine.down_since = Some(at);
        }
        machine.up_since = status.is_up().then(|| machine.up_since.unwrap_or(at));
        match status {
            Status::Terminated => machine.last_stop = Some(at),
            Status::Suspended => machine.last_suspend = Some(at),
            _ => {}
        }
        machine.history.push((at, status, cause.to_owned()));
        let (vm, cause) = (vm.to_owned(), cause.to_owned());
        self.events.push(Event::Instance { at, vm, status, cause });
    }

    /// Voids the instance's plan.
    fn abandon(&mut self, vm: &str, now: Timestamp) {
        let plan = self.next();
        let machine = self.machine(vm);
        machine.plan = plan;
        if let Some(operation) = machine.operation.take() {
            self.finish(operation, now, None);
        }
    }

    /// Replaces the instance's plan, and creates the operation of the new one.
    fn plan(&mut self, vm: &str, now: Timestamp, kind: &str) -> u64 {
        self.abandon(vm, now);
        let operation = self.operation(vm, now, kind);
        self.machine(vm).operation = Some(operation);
        operation
    }

    fn later(&mut self, vm: &str, time: Timestamp, status: Status, cause: &'static str) {
        let plan = self.machine(vm).plan;
        self.schedule(time, Step::Become { vm: vm.to_owned(), plan, status, cause });
    }

    fn start(&mut self, vm: &str, now: Timestamp, kind: &str, from: Status, cause: &str) -> u64 {
        let operation = self.plan(vm, now, kind);
        let (timings, plan) = (self.timings, self.machine(vm).plan);
        self.become_status(vm, now, Status::Provisioning, cause);
        let execute = Step::Execute { vm: vm.to_owned(), plan, fallback: from };
        self.schedule(now + timings.execute, execute);
        self.later(vm, now + timings.staging, Status::Staging, "resources found");
        self.later(vm, now + timings.boot, Status::Running, "booted");
        operation
    }

    fn suspend(&mut self, vm: &str, now: Timestamp, cause: &'static str) -> u64 {
        let operation = self.plan(vm, now, "suspend");
        self.become_status(vm, now, Status::Suspending, cause);
        let suspended = now + self.timings.suspending;
        self.later(vm, suspended, Status::Suspended, "suspended");
        self.later(
            vm,
            suspended + LONGEST_SUSPENSION,
            Status::Terminated,
            "suspended for too long",
        );
        operation
    }

    fn stop(&mut self, vm: &str, now: Timestamp, kind: &str, cause: &str) -> u64 {
        let operation = self.plan(vm, now, kind);
        if kind == PREEMPTED
            && let Some(operation) = self.operations.get_mut(&operation)
        {
            operation.user = "system";
        }
        self.become_status(vm, now, Status::Stopping, cause);
        let stopped = now + self.timings.stopping;
        self.later(vm, stopped, Status::Terminated, "stopped");
        operation
    }

    fn no_operation(&mut self, vm: &str, now: Timestamp, kind: &str) -> u64 {
        let operation = self.operation(vm, now, kind);
        self.finish(operation, now, None);
        operation
    }

    fn operation(&mut self, vm: &str, now: Timestamp, kind: &str) -> u64 {
        let id = 3_000_000_000_000_000_000 + self.next();
        let machine = self.machine(vm);
        let operation = Operation {
            name: format!(
                "operation-{}-{:013x}-{:08x}",
                now.unix_millis(),
                id,
                hash(vm.as_bytes()) >> 32
            ),
            kind: kind.to_owned(),
            zone: machine.spec.zone.clone(),
            target: vm.to_owned(),
            target_id: machine.id,
            user: "runner-manager@emulated.iam.gserviceaccount.com",
            created: now,
            ended: None,
            error: None,
        };
        self.operations.insert(id, operation);
        id
    }

    fn finish(&mut self, operation: u64, at: Timestamp, error: Option<(&'static str, String)>) {
        if let Some(operation) = self.operations.get_mut(&operation) {
            operation.ended = Some(at);
            operation.error = error;
        }
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::{Value, json};

    use super::*;
    use crate::emulators::testing::World;

    const HOME: &str = "/compute/v1/projects/p/zones/asia-northeast1-a";

    async fn world(status: Status) -> World {
        let world = World::new().await;
        let instance = Instance::new("gpu-1", "asia-northeast1-a");
        world.cloud.compute.insert(Instance { status, ..instance });
        world
    }

    async fn post(world: &World, verb: &str, body: Value) -> (u16, Value) {
        let (status, answer) =
            world.google("POST", &format!("{HOME}/instances/gpu-1/{verb}"), body).await;
        (status.as_u16(), answer)
    }

    async fn get(world: &World, path: &str) -> Value {
        world.google("GET", &format!("{HOME}/{path}"), Value::Null).await.1
    }

    /// The instance's statuses, with the seconds at which it entered them.
    fn history(world: &World) -> Vec<(u64, &'static str)> {
        let history = world.cloud.compute.history("gpu-1");
        let start = history[0].0;
        history.iter().map(|(at, status, _)| (at.since(start).as_secs(), status.as_str())).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_takes_time_and_its_operation_shows_the_result() {
        let mut world = world(Status::Terminated).await;
        let (code, operation) = post(&world, "start", json!({})).await;
        assert_eq!((code, &operation["status"]), (200, &json!("RUNNING")));
        assert_eq!(get(&world, "instances/gpu-1").await.get("lastStartTimestamp"), None);
        world.pass(30).await;
        let expected = [(0, "TERMINATED"), (0, "PROVISIONING"), (5, "STAGING"), (20, "RUNNING")];
        assert_eq!(history(&world), expected);
        let path = format!("operations/{}", operation["name"].as_str().unwrap());
        assert_eq!(get(&world, &path).await["status"], "DONE");
        let masked =
            get(&world, "instances/gpu-1?fields=status,lastStartTimestamp,disks(type)").await;
        assert_eq!(
            masked,
            json!({ "status": "RUNNING", "disks": [{ "type": "PERSISTENT" }],
            "lastStartTimestamp": "2026-11-23T21:00:02.000-08:00" })
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_zone_without_resources_fails_the_operation_and_not_the_call() {
        let mut world = world(Status::Terminated).await;
        world.cloud.compute.stockout("asia-northeast1-a", true);
        let (code, operation) = post(&world, "start", Value::Null).await;
        assert_eq!(code, 200);
        world.pass(10).await;
        assert_eq!(world.cloud.compute.status("gpu-1"), Status::Terminated);
        let target = operation["targetId"].as_str().unwrap();
        let filter = format!("(targetId%3D{target})+AND+operationType%3Dstart");
        let query =
            format!("operations?filter={filter}&orderBy=creationTimestamp+desc&maxResults=1");
        let list = get(&world, &query).await;
        let error = &list["items"][0]["error"]["errors"][0]["code"];
        assert_eq!(error, "ZONE_RESOURCE_POOL_EXHAUSTED", "{list}");
        assert_eq!(get(&world, "operations?filter=targetId%3D1").await.get("items"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_allowed_operations_depend_on_the_status() {
        for (status, verb, code) in [
            (Status::Running, "start", 200),
            (Status::Staging, "start", 200),
            (Status::Suspended, "start", 400),
            (Status::Stopping, "start", 400),
            (Status::PendingStop, "start", 400),
            (Status::Terminated, "stop", 200),
            (Status::Suspended, "resume", 200),
            (Status::Running, "resume", 400),
        ] {
            let world = world(status).await;
            let (answered, answer) = post(&world, verb, Value::Null).await;
            assert_eq!(answered, code, "{verb} while {status}: {answer}");
        }
        let world = world(Status::Stopping).await;
        let (_, answer) = post(&world, "start", Value::Null).await;
        assert_eq!(answer["error"]["errors"][0]["reason"], "resourceNotReady");
    }

    #[tokio::test(start_paused = true)]
    async fn a_repeated_request_id_has_no_second_effect() {
        let mut world = world(Status::Terminated).await;
        let start = "start?requestId=6f2a0e1c-1111-4222-8333-444455556666";
        let (_, first) = post(&world, start, Value::Null).await;
        world.pass(30).await;
        world.cloud.compute.stop_by_hand("gpu-1");
        world.pass(60).await;
        let (_, second) = post(&world, start, Value::Null).await;
        assert_eq!(first["name"], second["name"]);
        assert_eq!(world.cloud.compute.status("gpu-1"), Status::Terminated);
        assert_eq!(post(&world, "start?requestId=1", Value::Null).await.0, 400);
    }

    #[tokio::test(start_paused = true)]
    async fn labels_are_replaced_under_the_fingerprint_that_was_read() {
        let mut world = world(Status::Running).await;
        let timings = Timings { label_delay: Duration::from_secs(5), ..Timings::default() };
        world.cloud.compute.timings(timings);
        let read = get(&world, "instances/gpu-1").await["labelFingerprint"].clone();
        let body = json!({ "labels": { "a": "b" }, "labelFingerprint": read });
        assert_eq!(post(&world, "setLabels", body.clone()).await.0, 200);
        let (code, refused) = post(&world, "setLabels", body).await;
        assert_eq!(
            (code, &refused["error"]["errors"][0]["reason"]),
            (412, &json!("conditionNotMet"))
        );
        assert_eq!(get(&world, "instances/gpu-1").await.get("labels"), None);
        world.pass(5).await;
        assert_eq!(get(&world, "instances/gpu-1").await["labels"], json!({ "a": "b" }));
        let fresh = get(&world, "instances/gpu-1").await["labelFingerprint"].clone();
        let bad = json!({ "labels": { "A": "b" }, "labelFingerprint": fresh });
        assert_eq!(post(&world, "setLabels", bad).await.0, 400);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_takes_time_and_respects_local_ssds_and_the_guest() {
        let mut world = world(Status::Running).await;
        assert_eq!(post(&world, "stop", Value::Null).await.0, 200);
        world.pass(40).await;
        assert_eq!(history(&world), [(0, "RUNNING"), (0, "STOPPING"), (30, "TERMINATED")]);
        let instance =
            Instance { status: Status::Running, ..Instance::new("gpu-1", "asia-northeast1-a") };
        let careful = Instance { local_ssd: true, graceful_shutdown: true, ..instance };
        world.cloud.compute.insert(careful);
        assert_eq!(post(&world, "stop", Value::Null).await.0, 400);
        assert_eq!(post(&world, "stop?discardLocalSsd=true", Value::Null).await.0, 200);
        assert_eq!(world.cloud.compute.status("gpu-1"), Status::PendingStop);
        post(&world, "stop?discardLocalSsd=true&noGracefulShutdown=true", Value::Null).await;
        assert_eq!(world.cloud.compute.status("gpu-1"), Status::Stopping);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_says_which_permission_or_resource_is_missing() {
        let world = world(Status::Running).await;
        world.cloud.compute.forbid("compute.instances.setLabels");
        let (code, refused) = post(&world, "setLabels", json!({})).await;
        assert_eq!((code, &refused["error"]["errors"][0]["reason"]), (403, &json!("forbidden")));
        let message = refused["error"]["message"].as_str().unwrap();
        assert!(
            message
                .starts_with("Required 'compute.instances.setLabels' permission for 'projects/p")
        );
        assert_eq!(get(&world, "instances/gpu-2").await["error"]["code"], 404);
        assert_eq!(get(&world, "instances/gpu-1?fields=stauts").await["error"]["code"], 400);
        assert_eq!(get(&world, "instances/gpu-1?feilds=status").await["error"]["code"], 400);
        world.cloud.compute.rate_limited(true);
        let limited = get(&world, "instances/gpu-1").await;
        assert_eq!(limited["error"]["errors"][0]["reason"], "rateLimitExceeded");
    }

    #[tokio::test(start_paused = true)]
    async fn a_region_is_not_a_zone() {
        let world = world(Status::Running).await;
        for zone in ["asia-northeast1", "asia-northeast1-1", "a"] {
            let message = format!("Invalid value for field 'zone': '{zone}'. Unknown zone.");
            let reason = json!([{ "message": message, "domain": "global", "reason": "invalid" }]);
            let error = json!({ "code": 400, "message": message, "errors": reason });
            for (method, rest) in [("GET", ""), ("POST", "/start"), ("POST", "/setLabels")] {
                let path = format!("/compute/v1/projects/p/zones/{zone}/instances/gpu-1{rest}");
                let (status, answer) = world.google(method, &path, Value::Null).await;
                assert_eq!((status, &answer["error"]), (StatusCode::BAD_REQUEST, &error));
            }
        }
        let elsewhere = "/compute/v1/projects/p/zones/asia-northeast1-b/instances/gpu-1";
        let (status, _) = world.google("GET", elsewhere, Value::Null).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "a zone, but not this instance's");
    }

    #[tokio::test(start_paused = true)]
    async fn a_callers_permissions_can_be_tested_on_an_instance_that_exists() {
        let world = world(Status::Running).await;
        let ask = async |instance: &str, names: &[&str]| {
            let path = format!("{HOME}/instances/{instance}/testIamPermissions");
            world.google("POST", &path, json!({ "permissions": names })).await
        };
        let (stop, labels) = ("compute.instances.stop", "compute.instances.setLabels");
        world.cloud.compute.forbid(labels);
        assert_eq!(ask("gpu-1", &[stop, labels]).await.1, json!({ "permissions": [stop] }));
        assert_eq!(ask("gpu-1", &[labels]).await.1, json!({}));
        assert_eq!(ask("gpu-2", &[stop]).await.0.as_u16(), 404);
        assert_eq!(ask("gpu-1", &["compute.zoneOperations.list"]).await.0.as_u16(), 400);
    }

    #[tokio::test(start_paused = true)]
    async fn every_field_of_a_response_exists_in_the_api() {
        let world = world(Status::Terminated).await;
        let (_, operation) = post(&world, "start", Value::Null).await;
        let instance = get(&world, "instances/gpu-1").await;
        let known = |value: &Value, fields: &[&str]| {
            value.as_object().unwrap().keys().all(|key| fields.contains(&key.as_str()))
        };
        assert!(known(&instance, api::INSTANCE_FIELDS), "{instance}");
        assert!(known(&operation, api::OPERATION_FIELDS), "{operation}");
    }
}
