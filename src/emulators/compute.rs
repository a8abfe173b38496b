//! Compute Engine: instances that take time to start and to stop, and the operations that tell of it.
//!
//! <https://cloud.google.com/compute/docs/instances/instance-lifecycle>

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::mem::take;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::response::Response;
use axum::routing::MethodFilter;
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use time::{OffsetDateTime, UtcOffset};

use super::wire::{Incoming, Problem, Routes, google};
use super::{Api, Happening, Setup, Shared, hash, lock};
use crate::clock::Timestamp;

/// What an instance can be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "Google's own words")]
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
    /// All of them.
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

    /// As Compute Engine writes it.
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

    /// Whether what runs on the instance goes on running: a graceful shutdown lets it finish.
    const fn is_up(self) -> bool {
        matches!(self, Self::Running | Self::PendingStop)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An instance to be put into the project.
#[derive(Clone, Debug)]
pub struct Instance {
    /// Its name; every instance here has another.
    pub name: String,
    /// Its zone.
    pub zone: String,
    /// What it is at first.
    pub status: Status,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Whether a local SSD is attached, which a stop would empty.
    pub local_ssd: bool,
    /// Whether a stop first waits for the guest, in `PENDING_STOP`.
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
            graceful_shutdown: false,
        }
    }
}

/// How long things take, counted from the call that asks for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timings {
    /// Until a start is taken up: it gets its resources, or finds none.
    pub execute: Duration,
    /// Until a starting instance is `STAGING`.
    pub staging: Duration,
    /// Until a starting or resuming instance is `RUNNING`.
    pub boot: Duration,
    /// Until a stopping instance is `TERMINATED`.
    pub stopping: Duration,
    /// Until a graceful shutdown gives up waiting for the guest.
    pub graceful_shutdown: Duration,
    /// Until a suspending instance is `SUSPENDED`.
    pub suspending: Duration,
    /// Until a label that was set shows in reads.
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

/// The emulated Compute Engine. Cheap to clone; all clones agree. Where a method names an instance that
/// does not exist it panics, since only a test's own mistake can bring that about.
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
    /// Which operation a request id stands for.
    requests: BTreeMap<(String, String, String), u64>,
    agenda: BTreeMap<(Timestamp, u64), Step>,
    stockouts: BTreeSet<String>,
    forbidden: BTreeSet<String>,
    rate_limited: bool,
    count: u64,
    happenings: Vec<Happening>,
}

struct Machine {
    id: u64,
    spec: Instance,
    created: Timestamp,
    status: Status,
    /// Since when what runs on it runs.
    up_since: Option<Timestamp>,
    history: Vec<(Timestamp, Status, String)>,
    /// The labels that reads show; `spec.labels` are the true ones.
    shown_labels: BTreeMap<String, String>,
    last_start: Option<Timestamp>,
    last_stop: Option<Timestamp>,
    last_suspend: Option<Timestamp>,
    /// What was planned under an older plan does not happen any more.
    plan: u64,
    /// The operation that the plan carries out.
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
    ShowLabels { vm: String, labels: BTreeMap<String, String> },
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
            happenings: Vec::new(),
        };
        Self { shared, state: Arc::new(Mutex::new(state)) }
    }

    /// Puts an instance into the project.
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

    /// Takes an instance out of the project at once.
    pub fn delete(&self, vm: &str) {
        self.change(|state, _| {
            state.instances.remove(vm);
        });
    }

    /// The instance's status now.
    pub fn status(&self, vm: &str) -> Status {
        self.change(|state, _| state.machine(vm).status)
    }

    /// The instance's true labels, whether reads show them yet or not.
    pub fn labels(&self, vm: &str) -> BTreeMap<String, String> {
        self.change(|state, _| state.machine(vm).spec.labels.clone())
    }

    /// Sets the true labels past the API, as an operator in the console.
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

    /// Every status that the instance came to: when, which, and why.
    pub fn history(&self, vm: &str) -> Vec<(Timestamp, Status, String)> {
        self.change(|state, _| state.machine(vm).history.clone())
    }

    /// The names of all instances.
    pub fn instances(&self) -> Vec<String> {
        self.change(|state, _| state.instances.keys().cloned().collect())
    }

    /// Google takes a running instance's resources away.
    pub fn preempt(&self, vm: &str) {
        self.change(|state, now| {
            if state.machine(vm).status == Status::Running {
                state.stop(vm, now, "compute.instances.preempted", "preempted");
            }
        });
    }

    /// An operator stops the instance, from any status that is not stopped.
    pub fn stop_by_hand(&self, vm: &str) {
        self.change(|state, now| {
            if !matches!(state.machine(vm).status, Status::Terminated | Status::Stopped) {
                state.stop(vm, now, "stop", "stopped by hand");
            }
        });
    }

    /// An operator starts the instance, if it is stopped.
    pub fn start_by_hand(&self, vm: &str) {
        self.change(|state, now| {
            let from = state.machine(vm).status;
            if matches!(from, Status::Terminated | Status::Stopped) {
                state.start(vm, now, "start", from, "started by hand");
            }
        });
    }

    /// An operator suspends a running instance.
    pub fn suspend_by_hand(&self, vm: &str) {
        self.change(|state, now| {
            if state.machine(vm).status == Status::Running {
                state.plan(vm, now, "suspend");
                state.become_status(vm, now, Status::Suspending, "suspended by hand");
                let after = state.timings.suspending;
                state.later(vm, now + after, Status::Suspended, "suspended");
            }
        });
    }

    /// Puts the instance into any status, which it keeps until something is done to it.
    pub fn set_status(&self, vm: &str, status: Status) {
        self.change(|state, now| {
            state.abandon(vm, now);
            state.become_status(vm, now, status, "set");
        });
    }

    /// Whether the zone has no resources left for a start.
    pub fn stockout(&self, zone: &str, stockout: bool) {
        self.change(|state, _| match stockout {
            true => state.stockouts.insert(zone.to_owned()),
            false => state.stockouts.remove(zone),
        });
    }

    /// Refuses what needs this IAM permission, such as `compute.instances.setLabels`.
    pub fn forbid(&self, permission: &str) {
        self.change(|state, _| state.forbidden.insert(permission.to_owned()));
    }

    /// Grants it again.
    pub fn permit(&self, permission: &str) {
        self.change(|state, _| state.forbidden.remove(permission));
    }

    /// Whether the project's quota of requests is used up.
    pub fn rate_limited(&self, limited: bool) {
        self.change(|state, _| state.rate_limited = limited);
    }

    /// How long things take from now on.
    pub fn timings(&self, timings: Timings) {
        self.change(|state, _| state.timings = timings);
    }

    /// How long things take.
    pub fn current_timings(&self) -> Timings {
        lock(&self.state).timings
    }

    pub(super) fn next_event(&self) -> Option<Timestamp> {
        lock(&self.state).agenda.keys().next().map(|(time, _)| *time)
    }

    /// Lets everything happen that is due by `time`.
    pub(super) fn step(&self, time: Timestamp) {
        let happenings = {
            let mut state = lock(&self.state);
            state.step(time);
            take(&mut state.happenings)
        };
        self.shared.tell(happenings);
    }

    /// Since when what lives on the instance is up; none while it is not. Tells nobody, so that an
    /// emulator may ask while it is locked.
    pub(super) fn up_since(&self, vm: &str) -> Option<Timestamp> {
        lock(&self.state).instances.get(vm)?.up_since
    }

    /// When the instance came to the status that it has.
    pub(super) fn last_change(&self, vm: &str) -> Option<Timestamp> {
        Some(lock(&self.state).instances.get(vm)?.history.last()?.0)
    }

    fn change<R>(&self, act: impl FnOnce(&mut State, Timestamp) -> R) -> R {
        let now = self.shared.clock.now();
        let (result, happenings) = {
            let mut state = lock(&self.state);
            state.step(now);
            (act(&mut state, now), take(&mut state.happenings))
        };
        self.shared.tell(happenings);
        self.shared.changed.notify_one();
        result
    }

    pub(super) fn routes(&self, routes: Routes) -> Routes {
        const ZONE: &str = "/compute/v1/projects/{project}/zones/{zone}";
        let instance = |verb: &str| format!("{ZONE}/instances/{{instance}}{verb}");
        let operations = format!("{ZONE}/operations");
        let operation = format!("{operations}/{{operation}}");
        let (get, post) = (MethodFilter::GET, MethodFilter::POST);
        let compute = |name| (Api::Compute, name);
        routes
            .on(get, &instance(""), compute("instances.get"), self, |it, call| {
                it.answer(call, "instances.get", &[], INSTANCE_FIELDS, State::get_instance)
            })
            .on(post, &instance("/start"), compute("instances.start"), self, |it, call| {
                let known = ["requestId"];
                it.answer(call, "instances.start", &known, OPERATION_FIELDS, State::start_instance)
            })
            .on(post, &instance("/stop"), compute("instances.stop"), self, |it, call| {
                let known = ["requestId", "discardLocalSsd", "noGracefulShutdown"];
                it.answer(call, "instances.stop", &known, OPERATION_FIELDS, State::stop_instance)
            })
            .on(post, &instance("/resume"), compute("instances.resume"), self, |it, call| {
                let known = ["requestId"];
                it.answer(
                    call,
                    "instances.resume",
                    &known,
                    OPERATION_FIELDS,
                    State::resume_instance,
                )
            })
            .on(post, &instance("/setLabels"), compute("instances.setLabels"), self, |it, call| {
                let known = ["requestId"];
                it.answer(call, "instances.setLabels", &known, OPERATION_FIELDS, State::set_labels)
            })
            .on(get, &operation, compute("zoneOperations.get"), self, |it, call| {
                it.answer(call, "zoneOperations.get", &[], OPERATION_FIELDS, State::get_operation)
            })
            .on(get, &operations, compute("zoneOperations.list"), self, |it, call| {
                let known =
                    ["filter", "maxResults", "orderBy", "pageToken", "returnPartialSuccess"];
                it.answer(call, "zoneOperations.list", &known, LIST_FIELDS, State::list_operations)
            })
    }

    fn answer(
        &self,
        call: &Incoming,
        method: &str,
        known: &[&str],
        fields: &[&str],
        act: fn(&mut State, &Incoming, Timestamp) -> Result<Value, Problem>,
    ) -> Response {
        let answer = self.change(|state, now| {
            call.only(known)?;
            state.permitted(method, call)?;
            act(state, call, now)
        });
        google(Api::Compute, call, fields, answer)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SetLabels {
    #[serde(default)]
    labels: BTreeMap<String, String>,
    label_fingerprint: Option<String>,
}

/// The methods of the API.
impl State {
    fn permitted(&self, method: &str, call: &Incoming) -> Result<(), Problem> {
        let (project, zone) = (call.param("project"), call.param("zone"));
        if self.rate_limited {
            return Err(Problem::new(
                StatusCode::FORBIDDEN,
                "rateLimitExceeded",
                "Quota exceeded for quota metric 'Queries' and limit 'Queries per minute' of service \
                 'compute.googleapis.com'.",
            ));
        }
        if project != self.project {
            let message = format!("The resource 'projects/{project}' was not found");
            return Err(Problem::not_found(message));
        }
        let region = zone.rsplit_once('-').filter(|(region, letter)| {
            letter.len() == 1
                && region.contains('-')
                && region.ends_with(|c: char| c.is_ascii_digit())
        });
        if region.is_none() {
            let message = format!("Invalid value for field 'zone': '{zone}'. Unknown zone.");
            return Err(Problem::invalid(message));
        }
        let permission = format!("compute.{method}");
        if self.forbidden.contains(&permission) {
            let resource = match call.param("instance") {
                "" => format!("projects/{project}"),
                instance => format!("projects/{project}/zones/{zone}/instances/{instance}"),
            };
            let message = format!("Required '{permission}' permission for '{resource}'");
            return Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", message));
        }
        Ok(())
    }

    /// The name of the instance that the path names, in the zone that it names.
    fn named(&self, call: &Incoming) -> Result<String, Problem> {
        let (vm, zone) = (call.param("instance"), call.param("zone"));
        match self.instances.get(vm) {
            Some(machine) if machine.spec.zone == zone => Ok(vm.to_owned()),
            _ => Err(Problem::not_found(format!(
                "The resource 'projects/{}/zones/{zone}/instances/{vm}' was not found",
                self.project
            ))),
        }
    }

    fn get_instance(&mut self, call: &Incoming, _: Timestamp) -> Result<Value, Problem> {
        let vm = self.named(call)?;
        Ok(self.instance_json(&self.instances[&vm]))
    }

    fn start_instance(&mut self, call: &Incoming, now: Timestamp) -> Result<Value, Problem> {
        let vm = self.named(call)?;
        self.once(call, &vm, "start", |state| match state.machine(&vm).status {
            from @ (Status::Terminated | Status::Stopped) => {
                Ok(state.start(&vm, now, "start", from, "start"))
            }
            Status::Running | Status::Provisioning | Status::Staging | Status::Repairing => {
                Ok(state.no_operation(&vm, now, "start"))
            }
            Status::Suspended => Err(Problem::invalid(format!(
                "Invalid resource usage: 'Instance {vm} is suspended and can only be resumed.'."
            ))),
            _ => Err(state.not_ready(&vm)),
        })
    }

    fn resume_instance(&mut self, call: &Incoming, now: Timestamp) -> Result<Value, Problem> {
        let vm = self.named(call)?;
        self.once(call, &vm, "resume", |state| match state.machine(&vm).status {
            Status::Suspended => Ok(state.start(&vm, now, "resume", Status::Suspended, "resume")),
            Status::Suspending => Err(state.not_ready(&vm)),
            _ => Err(Problem::invalid(format!(
                "Invalid resource usage: 'Instance {vm} is not suspended.'."
            ))),
        })
    }

    fn stop_instance(&mut self, call: &Incoming, now: Timestamp) -> Result<Value, Problem> {
        let vm = self.named(call)?;
        let (discard, at_once) = (call.flag("discardLocalSsd")?, call.flag("noGracefulShutdown")?);
        self.once(call, &vm, "stop", |state| {
            let machine = state.machine(&vm);
            let graceful = machine.spec.graceful_shutdown && !at_once;
            let local_ssd = machine.spec.local_ssd && !discard;
            match machine.status {
                Status::Terminated | Status::Stopped | Status::Stopping => {
                    Ok(state.no_operation(&vm, now, "stop"))
                }
                Status::PendingStop if graceful => Ok(state.no_operation(&vm, now, "stop")),
                Status::Suspending | Status::Deprovisioning => Err(state.not_ready(&vm)),
                _ if local_ssd => Err(Problem::invalid(format!(
                    "Instance {vm} has local SSDs attached. Stopping it requires discardLocalSsd to be \
                     set, since their data is lost."
                ))),
                Status::Running if graceful => {
                    let operation = state.plan(&vm, now, "stop");
                    state.become_status(&vm, now, Status::PendingStop, "stop");
                    let stopping = now + state.timings.graceful_shutdown;
                    state.later(&vm, stopping, Status::Stopping, "graceful shutdown over");
                    let stopped = stopping + state.timings.stopping;
                    state.later(&vm, stopped, Status::Terminated, "stopped");
                    Ok(operation)
                }
                _ => Ok(state.stop(&vm, now, "stop", "stop")),
            }
        })
    }

    fn set_labels(&mut self, call: &Incoming, now: Timestamp) -> Result<Value, Problem> {
        let vm = self.named(call)?;
        let SetLabels { labels, label_fingerprint } = call.json()?;
        valid_labels(&labels)?;
        self.once(call, &vm, "setLabels", |state| {
            let timings = state.timings;
            let machine = state.machine(&vm);
            let offered = label_fingerprint.as_deref().and_then(fingerprint_bytes);
            if offered != Some(fingerprint(&machine.spec.labels)) {
                return Err(Problem::new(
                    StatusCode::PRECONDITION_FAILED,
                    "conditionNotMet",
                    "Labels fingerprint either invalid or resource labels have changed",
                ));
            }
            machine.spec.labels = labels;
            if timings.label_delay.is_zero() {
                machine.shown_labels = machine.spec.labels.clone();
            } else {
                let labels = machine.spec.labels.clone();
                let step = Step::ShowLabels { vm: vm.clone(), labels };
                state.schedule(now + timings.label_delay, step);
            }
            let operation = state.operation(&vm, now, "setLabels");
            state.schedule(now + timings.execute, Step::Finish { operation });
            Ok(operation)
        })
    }

    fn get_operation(&mut self, call: &Incoming, _: Timestamp) -> Result<Value, Problem> {
        let (zone, name) = (call.param("zone"), call.param("operation"));
        let named = |(id, operation): &(&u64, &Operation)| {
            operation.zone == zone && (operation.name == name || id.to_string() == name)
        };
        let (id, _) = self.operations.iter().find(named).ok_or_else(|| {
            Problem::not_found(format!(
                "The resource 'projects/{}/zones/{zone}/operations/{name}' was not found",
                self.project
            ))
        })?;
        Ok(self.operation_json(*id))
    }

    fn list_operations(&mut self, call: &Incoming, _: Timestamp) -> Result<Value, Problem> {
        let zone = call.param("zone");
        let limit = call.number("maxResults")?.unwrap_or(500);
        if limit > 500 {
            return Err(Problem::invalid(format!(
                "Invalid value for field 'maxResults': '{limit}'. Must be at most 500."
            )));
        }
        let filter = call.query("filter").map(Filter::parse).transpose()?;
        let in_zone = self.operations.iter().filter(|(_, operation)| operation.zone == zone);
        let mut items: Vec<Value> = in_zone.map(|(id, _)| self.operation_json(*id)).collect();
        match call.query("orderBy") {
            None | Some("name") => {}
            // Ids grow with time.
            Some("creationTimestamp desc") => items.reverse(),
            Some(other) => {
                return Err(Problem::invalid(format!(
                    "Invalid value for field 'orderBy': '{other}'. Unsupported order."
                )));
            }
        }
        items.retain(|item| filter.as_ref().is_none_or(|filter| filter.admits(item)));
        let bad_token = || Problem::invalid("Invalid value for field 'pageToken'.");
        let from = match call.query("pageToken") {
            None => 0,
            Some(token) => token
                .strip_prefix("after-")
                .and_then(|from| from.parse().ok())
                .filter(|from| *from <= items.len())
                .ok_or_else(bad_token)?,
        };
        let base = format!("{ROOT}/projects/{}/zones/{zone}/operations", self.project);
        let id = format!("projects/{}/zones/{zone}/operations", self.project);
        let mut list = json!({ "kind": "compute#operationList", "id": id, "selfLink": base });
        let more = items.len() > from + limit && limit > 0;
        let page: Vec<Value> = items.into_iter().skip(from).take(limit).collect();
        if more {
            list["nextPageToken"] = json!(format!("after-{}", from + limit));
        }
        if !page.is_empty() {
            list["items"] = json!(page);
        }
        Ok(list)
    }

    /// Acts once per request id: when it is repeated, the answer is the operation that it stands for.
    fn once(
        &mut self,
        call: &Incoming,
        vm: &str,
        verb: &str,
        act: impl FnOnce(&mut Self) -> Result<u64, Problem>,
    ) -> Result<Value, Problem> {
        let Some(request) = call.query("requestId") else {
            let operation = act(self)?;
            return Ok(self.operation_json(operation));
        };
        if uuid::Uuid::parse_str(request).is_ok_and(|id| id.is_nil()) || !is_uuid(request) {
            return Err(Problem::invalid(format!(
                "Invalid value for field 'requestId': '{request}'. Must be a valid UUID, and not zero."
            )));
        }
        let key = (vm.to_owned(), verb.to_owned(), request.to_ascii_lowercase());
        let operation = match self.requests.get(&key) {
            Some(operation) => *operation,
            None => act(self)?,
        };
        self.requests.insert(key, operation);
        Ok(self.operation_json(operation))
    }

    fn not_ready(&mut self, vm: &str) -> Problem {
        let zone = self.machine(vm).spec.zone.clone();
        Problem::new(
            StatusCode::BAD_REQUEST,
            "resourceNotReady",
            format!(
                "The resource 'projects/{}/zones/{zone}/instances/{vm}' is not ready",
                self.project
            ),
        )
    }
}

/// The state machine.
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
            Step::ShowLabels { vm, labels } => {
                if let Some(machine) = self.instances.get_mut(&vm) {
                    machine.shown_labels = labels;
                }
            }
            Step::Execute { .. } | Step::Become { .. } => {}
        }
    }

    fn holds(&self, vm: &str, plan: u64) -> bool {
        self.instances.get(vm).is_some_and(|machine| machine.plan == plan)
    }

    /// A start gets its resources, or finds none and falls back.
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
        machine.up_since = status.is_up().then(|| machine.up_since.unwrap_or(at));
        match status {
            Status::Terminated => machine.last_stop = Some(at),
            Status::Suspended => machine.last_suspend = Some(at),
            _ => {}
        }
        machine.history.push((at, status, cause.to_owned()));
        let (vm, cause) = (vm.to_owned(), cause.to_owned());
        self.happenings.push(Happening::Instance { at, vm, status, cause });
    }

    /// Gives up what was planned for the instance.
    fn abandon(&mut self, vm: &str, now: Timestamp) {
        let plan = self.next();
        let machine = self.machine(vm);
        machine.plan = plan;
        if let Some(operation) = machine.operation.take() {
            self.finish(operation, now, None);
        }
    }

    /// A new plan for the instance, in place of any other, and the operation that carries it out.
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

    fn stop(&mut self, vm: &str, now: Timestamp, kind: &str, cause: &str) -> u64 {
        let operation = self.plan(vm, now, kind);
        if kind == "compute.instances.preempted" {
            if let Some(operation) = self.operations.get_mut(&operation) {
                operation.user = "system";
            }
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

const ROOT: &str = "https://www.googleapis.com/compute/v1";

/// The resources as JSON.
impl State {
    fn instance_json(&self, machine: &Machine) -> Value {
        let (name, zone) = (&machine.spec.name, &machine.spec.zone);
        let project = format!("{ROOT}/projects/{}", self.project);
        let home = format!("{project}/zones/{zone}");
        let region = zone.rsplit_once('-').map_or("", |(region, _)| region);
        let mut disks = vec![json!({
            "kind": "compute#attachedDisk",
            "type": "PERSISTENT",
            "mode": "READ_WRITE",
            "source": format!("{home}/disks/{name}"),
            "deviceName": name,
            "index": 0,
            "boot": true,
            "autoDelete": true,
            "interface": "SCSI",
            "diskSizeGb": "100",
            "guestOsFeatures": [{ "type": "UEFI_COMPATIBLE" }, { "type": "GVNIC" }],
        })];
        if machine.spec.local_ssd {
            disks.push(json!({
                "kind": "compute#attachedDisk",
                "type": "SCRATCH",
                "mode": "READ_WRITE",
                "deviceName": "local-ssd-0",
                "index": 1,
                "boot": false,
                "autoDelete": true,
                "interface": "NVME",
                "diskSizeGb": "375",
            }));
        }
        let mut json = json!({
            "kind": "compute#instance",
            "id": machine.id.to_string(),
            "creationTimestamp": pacific(machine.created),
            "name": name,
            "tags": { "fingerprint": "42WmSpB8rSM=" },
            "machineType": format!("{home}/machineTypes/e2-standard-4"),
            "status": machine.status.as_str(),
            "zone": home,
            "canIpForward": false,
            "networkInterfaces": [{
                "kind": "compute#networkInterface",
                "name": "nic0",
                "network": format!("{project}/global/networks/default"),
                "subnetwork": format!("{project}/regions/{region}/subnetworks/default"),
                "networkIP": "10.146.0.2",
                "fingerprint": fingerprint_text(hash(name.as_bytes()).to_be_bytes()),
                "stackType": "IPV4_ONLY",
            }],
            "disks": disks,
            "metadata": { "kind": "compute#metadata", "fingerprint": "VNJn6XZXTXs=" },
            "selfLink": format!("{home}/instances/{name}"),
            "scheduling": {
                "onHostMaintenance": "MIGRATE",
                "automaticRestart": true,
                "preemptible": false,
                "provisioningModel": "STANDARD",
            },
            "cpuPlatform": "Intel Broadwell",
            "labelFingerprint": fingerprint_text(fingerprint(&machine.shown_labels)),
            "startRestricted": false,
            "deletionProtection": false,
            "fingerprint": fingerprint_text(machine.plan.to_be_bytes()),
            "resourceStatus": { "scheduling": {} },
        });
        if !machine.shown_labels.is_empty() {
            json["labels"] = json!(machine.shown_labels);
        }
        let times = [
            ("lastStartTimestamp", machine.last_start),
            ("lastStopTimestamp", machine.last_stop),
            ("lastSuspendedTimestamp", machine.last_suspend),
        ];
        for (field, time) in times {
            if let Some(time) = time {
                json[field] = json!(pacific(time));
            }
        }
        json
    }

    fn operation_json(&self, id: u64) -> Value {
        let operation = &self.operations[&id];
        let home = format!("{ROOT}/projects/{}/zones/{}", self.project, operation.zone);
        let created = pacific(operation.created);
        let mut json = json!({
            "kind": "compute#operation",
            "id": id.to_string(),
            "name": operation.name,
            "zone": home,
            "operationType": operation.kind,
            "targetLink": format!("{home}/instances/{}", operation.target),
            "targetId": operation.target_id.to_string(),
            "status": if operation.ended.is_some() { "DONE" } else { "RUNNING" },
            "user": operation.user,
            "progress": if operation.ended.is_some() { 100 } else { 0 },
            "creationTimestamp": created,
            "insertTime": created,
            "startTime": created,
            "selfLink": format!("{home}/operations/{}", operation.name),
        });
        if let Some(ended) = operation.ended {
            json["endTime"] = json!(pacific(ended));
        }
        if let Some((code, message)) = &operation.error {
            json["error"] = json!({ "errors": [{ "code": code, "message": message }] });
            json["httpErrorStatusCode"] = json!(503);
            json["httpErrorMessage"] = json!("SERVICE UNAVAILABLE");
        }
        json
    }
}

/// Compute Engine writes its times with the offset of its home, so they do not compare as text.
fn pacific(time: Timestamp) -> String {
    let nanos = i128::from(time.unix_millis()) * 1_000_000;
    let utc =
        OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let there = utc.to_offset(UtcOffset::from_hms(-8, 0, 0).unwrap_or(UtcOffset::UTC));
    let (hour, minute, second) = there.to_hms();
    let (date, millis) = (there.date(), there.millisecond());
    format!("{date}T{hour:02}:{minute:02}:{second:02}.{millis:03}-08:00")
}

fn fingerprint(labels: &BTreeMap<String, String>) -> [u8; 8] {
    let mut text = Vec::new();
    for (key, value) in labels {
        text.extend_from_slice(format!("{key}={value};").as_bytes());
    }
    hash(&text).to_be_bytes()
}

fn fingerprint_text(bytes: [u8; 8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

/// Some clients write the same bytes in the URL-safe alphabet.
fn fingerprint_bytes(text: &str) -> Option<[u8; 8]> {
    let decoded = BASE64_STANDARD.decode(text).or_else(|_| BASE64_URL_SAFE.decode(text));
    decoded.ok()?.try_into().ok()
}

/// In the usual spelling with hyphens.
fn is_uuid(text: &str) -> bool {
    text.len() == 36 && uuid::Uuid::parse_str(text).is_ok()
}

/// <https://cloud.google.com/compute/docs/labeling-resources#restrictions>
fn valid_labels(labels: &BTreeMap<String, String>) -> Result<(), Problem> {
    let invalid =
        |what: String| Problem::invalid(format!("Invalid value for field 'labels': {what}"));
    let allowed = |c: char| {
        c == '-' || c == '_' || c.is_numeric() || (c.is_alphabetic() && !c.is_uppercase())
    };
    if labels.len() > 64 {
        return Err(invalid(format!("{} labels. There can be at most 64.", labels.len())));
    }
    for (key, value) in labels {
        let starts = key.starts_with(|c: char| c.is_alphabetic());
        if !starts || key.chars().count() > 63 || !key.chars().all(allowed) {
            return Err(invalid(format!("Label key '{key}' violates format constraints.")));
        }
        if value.chars().count() > 63 || !value.chars().all(allowed) {
            return Err(invalid(format!("Label value '{value}' violates format constraints.")));
        }
    }
    Ok(())
}

/// A list filter: comparisons joined by AND, OR, NOT and parentheses.
/// <https://cloud.google.com/compute/docs/reference/rest/v1/zoneOperations/list>
#[derive(Clone, Debug)]
enum Filter {
    Is { field: String, value: String, equal: bool },
    Not(Box<Filter>),
    All(Vec<Filter>),
    Any(Vec<Filter>),
}

impl Filter {
    fn parse(text: &str) -> Result<Self, Problem> {
        let bad = || {
            Problem::invalid(format!(
                "Invalid value for field 'filter': '{text}'. Invalid list filter expression."
            ))
        };
        let tokens = Self::tokens(text).ok_or_else(bad)?;
        let mut rest = tokens.as_slice();
        let filter = Self::any(&mut rest).ok_or_else(bad)?;
        if rest.is_empty() { Ok(filter) } else { Err(bad()) }
    }

    fn tokens(text: &str) -> Option<Vec<String>> {
        let mut tokens = Vec::new();
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                ' ' => {}
                '(' | ')' | '=' => tokens.push(c.to_string()),
                '!' => {
                    chars.next_if_eq(&'=')?;
                    tokens.push("!=".to_owned());
                }
                '"' => {
                    let quoted: String = chars.by_ref().take_while(|c| *c != '"').collect();
                    tokens.push(quoted);
                }
                _ => {
                    let mut word = c.to_string();
                    while let Some(c) = chars.next_if(|c| !" ()=!\"".contains(*c)) {
                        word.push(c);
                    }
                    tokens.push(word);
                }
            }
        }
        Some(tokens)
    }

    fn any(rest: &mut &[String]) -> Option<Self> {
        let mut parts = vec![Self::all(rest)?];
        while rest.first().is_some_and(|word| word == "OR") {
            *rest = &rest[1..];
            parts.push(Self::all(rest)?);
        }
        Some(Self::Any(parts))
    }

    fn all(rest: &mut &[String]) -> Option<Self> {
        let mut parts = vec![Self::one(rest)?];
        // Expressions in parentheses that only stand side by side are joined by AND too.
        while rest.first().is_some_and(|word| word == "AND" || word == "(") {
            if rest[0] == "AND" {
                *rest = &rest[1..];
            }
            parts.push(Self::one(rest)?);
        }
        Some(Self::All(parts))
    }

    fn one(rest: &mut &[String]) -> Option<Self> {
        match *rest {
            [first, more @ ..] if first == "NOT" => {
                *rest = more;
                Some(Self::Not(Box::new(Self::one(rest)?)))
            }
            [first, more @ ..] if first == "(" => {
                *rest = more;
                let inner = Self::any(rest)?;
                let (close, more) = rest.split_first()?;
                *rest = more;
                (close == ")").then_some(inner)
            }
            [field, operator, value, more @ ..] => {
                let equal = match operator.as_str() {
                    "=" | "eq" => true,
                    "!=" | "ne" => false,
                    _ => return None,
                };
                *rest = more;
                let known = OPERATION_FIELDS.contains(&field.as_str());
                let filter = Self::Is { field: field.clone(), value: value.clone(), equal };
                known.then_some(filter)
            }
            _ => None,
        }
    }

    fn admits(&self, item: &Value) -> bool {
        match self {
            Self::Is { field, value, equal } => {
                let is = match &item[field] {
                    Value::String(text) => text == value,
                    Value::Null => value.is_empty(),
                    other => other.to_string() == *value,
                };
                is == *equal
            }
            Self::Not(inner) => !inner.admits(item),
            Self::All(parts) => parts.iter().all(|part| part.admits(item)),
            Self::Any(parts) => parts.iter().any(|part| part.admits(item)),
        }
    }
}

/// The fields that the API's description gives the resource.
const INSTANCE_FIELDS: &[&str] = &[
    "advancedMachineFeatures",
    "canIpForward",
    "confidentialInstanceConfig",
    "cpuPlatform",
    "creationTimestamp",
    "deletionProtection",
    "description",
    "disks",
    "displayDevice",
    "fingerprint",
    "guestAccelerators",
    "hostname",
    "id",
    "instanceEncryptionKey",
    "keyRevocationActionType",
    "kind",
    "labelFingerprint",
    "labels",
    "lastStartTimestamp",
    "lastStopTimestamp",
    "lastSuspendedTimestamp",
    "localSsdEncryptionMode",
    "machineType",
    "metadata",
    "minCpuPlatform",
    "name",
    "networkInterfaces",
    "networkPerformanceConfig",
    "params",
    "privateIpv6GoogleAccess",
    "reservationAffinity",
    "resourcePolicies",
    "resourceStatus",
    "satisfiesPzi",
    "satisfiesPzs",
    "scheduling",
    "selfLink",
    "serviceAccounts",
    "shieldedInstanceConfig",
    "shieldedInstanceIntegrityPolicy",
    "sourceMachineImage",
    "sourceMachineImageEncryptionKey",
    "startRestricted",
    "status",
    "statusMessage",
    "tags",
    "workloadIdentityConfig",
    "zone",
];

/// The fields that the API's description gives the resource.
const OPERATION_FIELDS: &[&str] = &[
    "clientOperationId",
    "creationTimestamp",
    "description",
    "endTime",
    "error",
    "getHealthOperationMetadata",
    "getVersionOperationMetadata",
    "httpErrorMessage",
    "httpErrorStatusCode",
    "id",
    "insertTime",
    "instancesBulkInsertOperationMetadata",
    "kind",
    "name",
    "operationGroupId",
    "operationType",
    "progress",
    "region",
    "selfLink",
    "setCommonInstanceMetadataOperationMetadata",
    "startTime",
    "status",
    "statusMessage",
    "targetId",
    "targetLink",
    "user",
    "warnings",
    "zone",
];

/// The fields that the API's description gives the resource.
const LIST_FIELDS: &[&str] = &["id", "items", "kind", "nextPageToken", "selfLink", "warning"];
