//! Cloud Tasks: one queue that calls back at the scheduled time, and again until it is answered 2xx.
//!
//! A callback comes at least once: late, twice and out of order are all allowed, and can be asked for. A
//! task's name stays taken after the task is gone.
//! <https://cloud.google.com/tasks/docs/reference/rest/v2/projects.locations.queues.tasks>

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::response::Response;
use axum::routing::MethodFilter;
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE};
use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::{Method, StatusCode};
use http_body_util::Full;
use serde::Deserialize;
use serde_json::{Value, json};

use super::wire::{Incoming, Problem, Routes, google};
use super::{Api, Happening, Outgoing, Reply, Sender, Setup, Shared, Ticket, hash, lock};
use crate::clock::Timestamp;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// The emulated Cloud Tasks. Cheap to clone; all clones agree.
#[derive(Clone)]
pub struct CloudTasks {
    shared: Arc<Shared>,
    state: Arc<Mutex<State>>,
}

/// A task that waits, as a test sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskView {
    /// Its id, the last part of its name.
    pub id: String,
    /// When it is attempted next, lateness not counted.
    pub due: Timestamp,
    /// The path of its URL.
    pub path: String,
    /// Its headers, as they were given.
    pub headers: BTreeMap<String, String>,
    /// Its body; null if that is not JSON.
    pub body: Value,
    /// How long an attempt may take.
    pub dispatch_deadline: Duration,
    /// How often it was attempted.
    pub attempts: u32,
    /// Whether an attempt waits for its answer.
    pub in_flight: bool,
}

type Lateness = Box<dyn FnMut(&TaskView) -> Duration + Send>;

struct State {
    queue: String,
    tasks: BTreeMap<String, Task>,
    /// Until when the name of a task that is gone stays taken.
    tombstones: BTreeMap<String, Timestamp>,
    tombstone: Duration,
    paused: bool,
    create_forbidden: bool,
    lateness: Lateness,
    duplicates: u32,
    created: u64,
}

struct Task {
    id: String,
    /// Breaks ties among tasks of the same time.
    order: u64,
    url: String,
    method: Method,
    headers: BTreeMap<String, String>,
    body: Bytes,
    identity: Option<(&'static str, Value)>,
    created: Timestamp,
    scheduled: Timestamp,
    /// When it is really dispatched: the scheduled time and how late the queue is.
    dispatch: Timestamp,
    deadline: Duration,
    retry: Retry,
    retry_json: Option<Value>,
    attempts: u32,
    responses: u32,
    executions: u32,
    previous: Option<u16>,
    first: Option<Timestamp>,
    last: Option<Attempt>,
    in_flight: u32,
}

#[derive(Clone, Copy, Debug)]
struct Attempt {
    scheduled: Timestamp,
    dispatched: Timestamp,
    response: Option<(Timestamp, u16)>,
}

/// How a task is repeated. <https://cloud.google.com/tasks/docs/reference/rest/v2/RetryConfig>
#[derive(Clone, Copy, Debug)]
struct Retry {
    max_attempts: i32,
    max_duration: Duration,
    min_backoff: Duration,
    max_backoff: Duration,
    doublings: u32,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            max_attempts: 100,
            max_duration: Duration::ZERO,
            min_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(3600),
            doublings: 16,
        }
    }
}

impl Retry {
    /// The pause after so many attempts: doubled so many times, then longer by the same step each time.
    fn backoff(&self, attempts: u32) -> Duration {
        let retries = attempts.saturating_sub(1);
        let doubled = self.min_backoff.saturating_mul(1 << retries.min(self.doublings).min(30));
        let further = retries.saturating_sub(self.doublings);
        doubled.saturating_mul(further + 1).min(self.max_backoff)
    }

    /// Both limits have to be exceeded, where both are set.
    fn is_spent(&self, attempts: u32, since_first: Duration) -> bool {
        let counted = u32::try_from(self.max_attempts).ok().filter(|max| *max > 0);
        let timed = Some(self.max_duration).filter(|max| !max.is_zero());
        match (counted, timed) {
            (None, _) => false,
            (Some(max), None) => attempts >= max,
            (Some(max), Some(span)) => attempts >= max && since_first >= span,
        }
    }
}

impl CloudTasks {
    pub(super) fn new(setup: &Setup, shared: Arc<Shared>) -> Self {
        let Setup { project, location, queue, .. } = setup;
        let state = State {
            queue: format!("projects/{project}/locations/{location}/queues/{queue}"),
            tasks: BTreeMap::new(),
            tombstones: BTreeMap::new(),
            tombstone: DAY,
            paused: false,
            create_forbidden: false,
            lateness: Box::new(|_| Duration::ZERO),
            duplicates: 0,
            created: 0,
        };
        Self { shared, state: Arc::new(Mutex::new(state)) }
    }

    /// The tasks that are not done, the next one first.
    pub fn pending(&self) -> Vec<TaskView> {
        let state = lock(&self.state);
        let mut tasks: Vec<&Task> = state.tasks.values().collect();
        tasks.sort_by_key(|task| (task.scheduled, task.order));
        tasks.into_iter().map(Task::view).collect()
    }

    /// While paused, the queue takes tasks and dispatches none.
    pub fn pause(&self, paused: bool) {
        self.change(|state| state.paused = paused);
    }

    /// Whether the caller lacks the permission to create tasks.
    pub fn forbid_create(&self, forbidden: bool) {
        self.change(|state| state.create_forbidden = forbidden);
    }

    /// How long a name stays taken after its task is gone; 24 hours unless set.
    pub fn tombstones_last(&self, span: Duration) {
        self.change(|state| state.tombstone = span);
    }

    /// Dispatches every attempt that is planned from here on this much late.
    pub fn lateness(&self, late: Duration) {
        self.lateness_by(move |_| late);
    }

    /// As [`CloudTasks::lateness`], asked for each attempt. It must not use these `CloudTasks`.
    pub fn lateness_by(&self, late: impl FnMut(&TaskView) -> Duration + Send + 'static) {
        self.change(|state| state.lateness = Box::new(late));
    }

    /// The next attempt is sent twice.
    pub fn duplicate_next(&self) {
        self.change(|state| state.duplicates += 1);
    }

    /// Dispatches a waiting task now, as the console's "Force run" does.
    pub fn run_now(&self, id: &str) {
        let now = self.shared.clock.now();
        self.change(|state| {
            if let Some(task) = state.tasks.get_mut(id) {
                task.dispatch = now;
            }
        });
    }

    /// Deletes every task, and leaves no tombstones.
    pub fn purge(&self) {
        self.change(|state| state.tasks.clear());
    }

    pub(super) fn next_event(&self) -> Option<Timestamp> {
        let state = lock(&self.state);
        let waiting = state.tasks.values().filter(|task| task.in_flight == 0);
        waiting.map(|task| task.dispatch).min().filter(|_| !state.paused)
    }

    /// The callbacks to send now.
    pub(super) fn due(&self) -> Vec<Outgoing> {
        let now = self.shared.clock.now();
        let mut state = lock(&self.state);
        if state.paused {
            return Vec::new();
        }
        let State { tasks, queue, duplicates, .. } = &mut *state;
        let queue = queue.rsplit('/').next().unwrap_or_default();
        let mut due: Vec<&mut Task> =
            tasks.values_mut().filter(|task| task.in_flight == 0 && task.dispatch <= now).collect();
        due.sort_by_key(|task| (task.dispatch, task.order));
        let mut outgoing = Vec::new();
        for task in due {
            task.attempts += 1;
            task.first.get_or_insert(now);
            let copies = if *duplicates > 0 { 2 } else { 1 };
            *duplicates = duplicates.saturating_sub(1);
            task.in_flight = copies;
            outgoing.extend((0..copies).map(|_| task.attempt(queue, now)));
            task.last =
                Some(Attempt { scheduled: task.scheduled, dispatched: now, response: None });
        }
        outgoing
    }

    /// What the service answered to an attempt.
    pub(super) fn answered(
        &self,
        TaskView { id, path, body, attempts: attempt, .. }: TaskView,
        (scheduled, dispatched): (Timestamp, Timestamp),
        reply: Reply,
    ) {
        let now = self.shared.clock.now();
        // Its other copy may have ended it already, or somebody deleted it.
        let mut state = lock(&self.state);
        let State { tasks, tombstones, tombstone, lateness, .. } = &mut *state;
        if let Some(task) = tasks.get_mut(&id).filter(|task| task.attempts == attempt) {
            task.in_flight = task.in_flight.saturating_sub(1);
            let status = reply.status.map(|status| status.as_u16());
            let seen = status.unwrap_or(504);
            task.previous = Some(seen);
            task.responses += u32::from(status.is_some());
            task.executions += u32::from(status.is_some_and(|status| status < 500));
            task.last = Some(Attempt { scheduled, dispatched, response: Some((now, seen)) });
            let since_first = now.since(task.first.unwrap_or(now));
            let over = (200..300).contains(&seen)
                || task.retry.is_spent(attempt, since_first)
                || now.since(task.created) >= 31 * DAY;
            if over {
                tombstones.insert(id.clone(), now + *tombstone);
                tasks.remove(&id);
            } else {
                let retry_after = reply.headers.get("retry-after").and_then(|value| {
                    Some(Duration::from_secs(value.to_str().ok()?.trim().parse().ok()?))
                });
                let pause = task.retry.backoff(attempt).max(retry_after.unwrap_or_default());
                task.scheduled = now + pause;
                task.dispatch = task.scheduled + lateness(&task.view());
            }
        }
        drop(state);
        self.shared.tell(vec![Happening::Callback {
            at: now,
            path,
            task: id,
            body,
            attempt,
            reply,
        }]);
        self.shared.changed.notify_one();
    }

    fn change<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        let result = act(&mut lock(&self.state));
        self.shared.changed.notify_one();
        result
    }

    pub(super) fn routes(&self, routes: Routes) -> Routes {
        const QUEUE: &str = "/v2/projects/{project}/locations/{location}/queues/{queue}";
        let tasks = format!("{QUEUE}/tasks");
        let task = format!("{tasks}/{{task}}");
        let (get, post, delete) = (MethodFilter::GET, MethodFilter::POST, MethodFilter::DELETE);
        let api = |name| (Api::Tasks, name);
        routes
            .on(post, &tasks, api("tasks.create"), self, |it, call| {
                it.answer(call, &[], TASK_FIELDS, State::create)
            })
            .on(get, &tasks, api("tasks.list"), self, |it, call| {
                let known = ["pageSize", "pageToken", "responseView"];
                it.answer(call, &known, &["tasks", "nextPageToken"], State::list)
            })
            .on(get, &task, api("tasks.get"), self, |it, call| {
                it.answer(call, &["responseView"], TASK_FIELDS, State::get)
            })
            .on(delete, &task, api("tasks.delete"), self, |it, call| {
                it.answer(call, &[], &[], State::delete)
            })
            .on(get, QUEUE, api("queues.get"), self, |it, call| {
                it.answer(
                    call,
                    &[],
                    &["name", "rateLimits", "retryConfig", "state"],
                    State::get_queue,
                )
            })
    }

    fn answer(
        &self,
        call: &Incoming,
        known: &[&str],
        fields: &[&str],
        act: fn(&mut State, &Incoming, Timestamp) -> Result<Value, Problem>,
    ) -> Response {
        let now = self.shared.clock.now();
        let answer = self.change(|state| {
            call.only(known)?;
            act(state, call, now)
        });
        google(Api::Tasks, call, fields, answer)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CreateTask {
    #[serde(default)]
    task: Option<NewTask>,
    #[serde(default, alias = "response_view")]
    response_view: Value,
    #[serde(default)]
    parent: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NewTask {
    #[serde(default)]
    name: String,
    #[serde(alias = "http_request")]
    http_request: Option<NewRequest>,
    #[serde(alias = "app_engine_http_request")]
    app_engine_http_request: Option<Value>,
    #[serde(alias = "schedule_time")]
    schedule_time: Option<String>,
    #[serde(alias = "dispatch_deadline")]
    dispatch_deadline: Option<String>,
    #[serde(alias = "retry_config")]
    retry_config: Option<Value>,
    // Output only: accepted and ignored, as a client may send back what it got.
    #[serde(rename = "createTime")]
    _create_time: Option<Value>,
    #[serde(rename = "dispatchCount")]
    _dispatch_count: Option<Value>,
    #[serde(rename = "responseCount")]
    _response_count: Option<Value>,
    #[serde(rename = "firstAttempt")]
    _first_attempt: Option<Value>,
    #[serde(rename = "lastAttempt")]
    _last_attempt: Option<Value>,
    #[serde(rename = "view")]
    _view: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NewRequest {
    #[serde(default)]
    url: String,
    #[serde(default, alias = "http_method")]
    http_method: Value,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    body: String,
    #[serde(alias = "oidc_token")]
    oidc_token: Option<Value>,
    #[serde(alias = "oauth_token")]
    oauth_token: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RetryConfig {
    max_attempts: Option<i32>,
    max_retry_duration: Option<String>,
    min_backoff: Option<String>,
    max_backoff: Option<String>,
    max_doublings: Option<u32>,
}

/// The methods of the API.
impl State {
    fn create(&mut self, call: &Incoming, now: Timestamp) -> Result<Value, Problem> {
        let CreateTask { task, response_view, parent } = call.json()?;
        self.find_queue(call)?;
        if self.create_forbidden {
            return Err(Problem::new(
                StatusCode::FORBIDDEN,
                "forbidden",
                "The principal (user or service account) lacks IAM permission \"cloudtasks.tasks.create\" \
                 for the resource (or the resource may not exist).",
            ));
        }
        if parent.is_some_and(|parent| parent != self.queue) {
            return Err(Problem::invalid("The parent of the request is another queue."));
        }
        let full = is_full(&response_view)?;
        let task = task.ok_or_else(|| Problem::invalid("Task is required."))?;
        let id = self.new_id(&task.name)?;
        let task = self.accept(id, task, call.body.len(), now)?;
        let Task { id, .. } = &task;
        if self.tasks.contains_key(id) {
            let text = "Requested entity already exists";
            return Err(Problem::new(StatusCode::CONFLICT, "alreadyExists", text));
        }
        if self.tombstones.get(id).is_some_and(|until| now < *until) {
            let text =
                "The task cannot be created because a task with this name existed too recently.";
            return Err(Problem::new(StatusCode::CONFLICT, "alreadyExists", text));
        }
        self.created += 1;
        let json = task.json(&self.queue, full);
        self.tasks.insert(task.id.clone(), task);
        Ok(json)
    }

    /// The task as the queue keeps it, if all of it is valid.
    fn accept(
        &mut self,
        id: String,
        task: NewTask,
        size: usize,
        now: Timestamp,
    ) -> Result<Task, Problem> {
        let NewTask { http_request, schedule_time, dispatch_deadline, retry_config, .. } = task;
        if task.app_engine_http_request.is_some() {
            return Err(Problem::invalid("App Engine targets are not emulated."));
        }
        let request = http_request.unwrap_or_else(|| NewRequest {
            url: String::new(),
            http_method: Value::Null,
            headers: BTreeMap::new(),
            body: String::new(),
            oidc_token: None,
            oauth_token: None,
        });
        let url = request.url;
        if url.is_empty() {
            return Err(Problem::invalid("HttpRequest.url is required."));
        }
        if !url.starts_with("http://") && !url.starts_with("https://") {
            return Err(Problem::invalid(
                "HttpTarget.url must start with 'http://' or 'https://'.",
            ));
        }
        if url.parse::<http::Uri>().is_err() || url.len() > 2083 {
            return Err(Problem::invalid("HttpRequest.url is malformed."));
        }
        let method = http_method(&request.http_method)?;
        let body = base64(&request.body)?;
        let carries = [Method::POST, Method::PUT, Method::PATCH].contains(&method);
        if !body.is_empty() && !carries {
            return Err(Problem::invalid(format!("HttpRequest.body is not allowed for {method}.")));
        }
        for (name, value) in &request.headers {
            let valid = HeaderName::try_from(name.as_str()).is_ok()
                && HeaderValue::try_from(value.as_str()).is_ok();
            if !valid {
                return Err(Problem::invalid(format!(
                    "HttpRequest.headers: '{name}' is malformed."
                )));
            }
        }
        if size > (1 << 20) - 7 {
            return Err(Problem::invalid(format!("Task size too large: {size} bytes.")));
        }
        let scheduled = match &schedule_time {
            None => now,
            Some(text) => Timestamp::parse(text)
                .ok_or_else(|| Problem::invalid(format!("Invalid value at 'task.schedule_time' (type.googleapis.com/google.protobuf.Timestamp), \"{text}\"")))?,
        };
        if scheduled > now + 30 * DAY {
            return Err(Problem::invalid(format!(
                "The Task.scheduleTime, {}, is too far in the future. Schedule time must be no more than \
                 720h in the future.",
                scheduled.rfc3339()
            )));
        }
        let deadline = match &dispatch_deadline {
            None => Duration::from_secs(600),
            Some(text) => duration("dispatch_deadline", text)?,
        };
        if !(Duration::from_secs(15)..=Duration::from_secs(1800)).contains(&deadline) {
            return Err(Problem::invalid("Task.dispatchDeadline must be between [15s, 30m]."));
        }
        let identity = match (request.oidc_token, request.oauth_token) {
            (Some(token), None) => Some(("oidcToken", token)),
            (None, Some(token)) => Some(("oauthToken", token)),
            (None, None) => None,
            (Some(_), Some(_)) => {
                return Err(Problem::invalid("Only one authorization header can be set."));
            }
        };
        let retry = retry_config.as_ref().map(retry).transpose()?.unwrap_or_default();
        let mut task = Task {
            id,
            order: self.created,
            url,
            method,
            headers: request.headers,
            body,
            identity,
            created: now,
            scheduled: scheduled.max(now),
            dispatch: scheduled.max(now),
            deadline,
            retry,
            retry_json: retry_config,
            attempts: 0,
            responses: 0,
            executions: 0,
            previous: None,
            first: None,
            last: None,
            in_flight: 0,
        };
        task.dispatch = task.scheduled + (self.lateness)(&task.view());
        Ok(task)
    }

    /// The id in a task's name; one of our own where the client leaves that to the queue.
    fn new_id(&self, name: &str) -> Result<String, Problem> {
        if name.is_empty() {
            return Ok(format!("{:020}", hash(&self.created.to_be_bytes())));
        }
        let Some((queue, id)) = name.split_once("/tasks/") else {
            return Err(Problem::invalid(
                "Task name must be formatted: \"projects/<PROJECT_ID>/locations/<LOCATION_ID>/queues/\
                 <QUEUE_ID>/tasks/<TASK_ID>\"",
            ));
        };
        if queue != self.queue {
            return Err(Problem::invalid(format!(
                "The queue name from request ('{}') must be the same as the queue name in the named task \
                 ('{queue}').",
                self.queue
            )));
        }
        let valid = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if id.is_empty() || id.len() > 500 || !id.chars().all(valid) {
            return Err(Problem::invalid(format!(
                "Task ID \"{id}\" can contain only letters ([A-Za-z]), numbers ([0-9]), hyphens (-), or \
                 underscores (_). Task ID must between 1 and 500 characters."
            )));
        }
        Ok(id.to_owned())
    }

    fn get(&mut self, call: &Incoming, now: Timestamp) -> Result<Value, Problem> {
        self.find_queue(call)?;
        let full = view(call)?;
        let id = call.param("task");
        match self.tasks.get(id) {
            Some(task) => Ok(task.json(&self.queue, full)),
            None => Err(self.gone(id, now)),
        }
    }

    fn delete(&mut self, call: &Incoming, now: Timestamp) -> Result<Value, Problem> {
        self.find_queue(call)?;
        let id = call.param("task");
        if self.tasks.remove(id).is_none() {
            return Err(self.gone(id, now));
        }
        self.tombstones.insert(id.to_owned(), now + self.tombstone);
        Ok(json!({}))
    }

    fn list(&mut self, call: &Incoming, _: Timestamp) -> Result<Value, Problem> {
        self.find_queue(call)?;
        let full = view(call)?;
        let size = call.number("pageSize")?.filter(|size| *size > 0).unwrap_or(1000).min(1000);
        let after = match call.query("pageToken") {
            None => String::new(),
            Some(token) => {
                let bad = || Problem::invalid("Invalid page token.");
                String::from_utf8(BASE64_URL_SAFE.decode(token).map_err(|_| bad())?)
                    .map_err(|_| bad())?
            }
        };
        let mut rest = self.tasks.values().filter(|task| task.id > after).peekable();
        let page: Vec<&Task> = rest.by_ref().take(size).collect();
        let mut list = json!({});
        if let (Some(last), Some(_)) = (page.last(), rest.peek()) {
            list["nextPageToken"] = json!(BASE64_URL_SAFE.encode(&last.id));
        }
        if !page.is_empty() {
            list["tasks"] = page.iter().map(|task| task.json(&self.queue, full)).collect();
        }
        Ok(list)
    }

    fn get_queue(&mut self, call: &Incoming, _: Timestamp) -> Result<Value, Problem> {
        self.find_queue(call)?;
        Ok(json!({
            "name": self.queue,
            "rateLimits": {
                "maxDispatchesPerSecond": 500,
                "maxBurstSize": 100,
                "maxConcurrentDispatches": 1000,
            },
            "retryConfig": {
                "maxAttempts": 100,
                "minBackoff": "0.100s",
                "maxBackoff": "3600s",
                "maxDoublings": 16,
            },
            "state": if self.paused { "PAUSED" } else { "RUNNING" },
        }))
    }

    fn find_queue(&self, call: &Incoming) -> Result<(), Problem> {
        let (project, location) = (call.param("project"), call.param("location"));
        let asked =
            format!("projects/{project}/locations/{location}/queues/{}", call.param("queue"));
        if asked == self.queue {
            return Ok(());
        }
        Err(Problem::not_found(
            "Queue does not exist. If you just created the queue, wait at least a minute for the queue to \
             initialize.",
        ))
    }

    fn gone(&self, id: &str, now: Timestamp) -> Problem {
        let lately = self.tombstones.get(id).is_some_and(|until| now < *until);
        Problem::not_found(if lately {
            "The task no longer exists, though a task with this name existed recently. The task either \
             successfully completed or was deleted."
        } else {
            "Requested entity was not found."
        })
    }
}

impl Task {
    fn view(&self) -> TaskView {
        let uri = self.url.parse::<http::Uri>().unwrap_or_default();
        TaskView {
            id: self.id.clone(),
            due: self.scheduled,
            path: uri.path().to_owned(),
            headers: self.headers.clone(),
            body: serde_json::from_slice(&self.body).unwrap_or(Value::Null),
            dispatch_deadline: self.deadline,
            attempts: self.attempts,
            in_flight: self.in_flight > 0,
        }
    }

    /// The request of an attempt that was just counted.
    fn attempt(&self, queue: &str, now: Timestamp) -> Outgoing {
        let mut request =
            http::Request::builder().method(self.method.clone()).uri(self.url.as_str());
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let eta = self.scheduled.unix_millis();
        request = request
            .header("User-Agent", "Google-Cloud-Tasks")
            .header("X-CloudTasks-QueueName", queue)
            .header("X-CloudTasks-TaskName", &self.id)
            .header("X-CloudTasks-TaskRetryCount", self.attempts.saturating_sub(1))
            .header("X-CloudTasks-TaskExecutionCount", self.executions)
            .header("X-CloudTasks-TaskETA", format!("{}.{:03}", eta / 1000, eta % 1000));
        if let Some(previous) = self.previous {
            request = request
                .header("X-CloudTasks-TaskPreviousResponse", previous)
                .header("X-CloudTasks-TaskRetryReason", "");
        }
        if let Some((kind, _)) = self.identity {
            request = request.header("Authorization", format!("Bearer emulated-{kind}"));
        }
        let sender =
            Sender::Callback { task: self.view(), scheduled: self.scheduled, dispatched: now };
        Outgoing {
            request: request
                .body(Full::new(self.body.clone()))
                .expect("what it is made of was checked when the task was created"),
            limit: self.deadline,
            ticket: Ticket(sender),
        }
    }

    /// The body shows in the full view only; the headers, secrets and all, in both.
    fn json(&self, queue: &str, full: bool) -> Value {
        let mut headers = self.headers.clone();
        headers.entry("User-Agent".to_owned()).or_insert_with(|| "Google-Cloud-Tasks".to_owned());
        let mut request =
            json!({ "url": self.url, "httpMethod": self.method.as_str(), "headers": headers });
        if full && !self.body.is_empty() {
            request["body"] = json!(BASE64_STANDARD.encode(&self.body));
        }
        if let Some((kind, token)) = &self.identity {
            request[*kind] = token.clone();
        }
        let mut json = json!({
            "name": format!("{queue}/tasks/{}", self.id),
            "httpRequest": request,
            "scheduleTime": self.scheduled.rfc3339(),
            "createTime": self.created.rfc3339(),
            "dispatchDeadline": format!("{}s", self.deadline.as_secs_f64()),
            "view": if full { "FULL" } else { "BASIC" },
        });
        // Google leaves out what is zero.
        for (field, count) in [("dispatchCount", self.attempts), ("responseCount", self.responses)]
        {
            if count > 0 {
                json[field] = json!(count);
            }
        }
        if let Some(retry) = &self.retry_json {
            json["retryConfig"] = retry.clone();
        }
        if let Some(first) = self.first {
            json["firstAttempt"] = json!({ "dispatchTime": first.rfc3339() });
        }
        if let Some(last) = &self.last {
            let mut attempt = json!({
                "scheduleTime": last.scheduled.rfc3339(),
                "dispatchTime": last.dispatched.rfc3339(),
            });
            if let Some((time, status)) = last.response {
                attempt["responseTime"] = json!(time.rfc3339());
                attempt["responseStatus"] =
                    json!({ "code": 2, "message": format!("HTTP status code {status}") });
            }
            json["lastAttempt"] = attempt;
        }
        json
    }
}

fn view(call: &Incoming) -> Result<bool, Problem> {
    is_full(&call.query("responseView").map_or(Value::Null, |text| json!(text)))
}

/// Enums come by name or by number, and a number in a query is text.
fn is_full(view: &Value) -> Result<bool, Problem> {
    match view {
        Value::Null => Ok(false),
        Value::Number(number) if number.as_u64().is_some_and(|view| view <= 2) => {
            Ok(number.as_u64() == Some(2))
        }
        Value::String(text) if ["VIEW_UNSPECIFIED", "BASIC", "0", "1"].contains(&text.as_str()) => {
            Ok(false)
        }
        Value::String(text) if text == "FULL" || text == "2" => Ok(true),
        other => Err(Problem::invalid(format!("Invalid value at 'response_view' ({other})"))),
    }
}

fn http_method(value: &Value) -> Result<Method, Problem> {
    let names = ["", "POST", "GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"];
    let bad = || {
        Problem::invalid(format!(
            "Invalid value at 'task.http_request.http_method' (type.googleapis.com/google.cloud.tasks.v2.\
             HttpMethod), {value}"
        ))
    };
    let name = match value {
        Value::Null => "POST",
        Value::Number(number) => {
            let index = number.as_u64().and_then(|index| usize::try_from(index).ok());
            index.and_then(|index| names.get(index)).ok_or_else(bad)?
        }
        Value::String(text) if text == "HTTP_METHOD_UNSPECIFIED" => "POST",
        Value::String(text) => {
            names.iter().find(|name| *name == text && !text.is_empty()).ok_or_else(bad)?
        }
        _ => return Err(bad()),
    };
    let name = if name.is_empty() { "POST" } else { name };
    Method::from_bytes(name.as_bytes()).map_err(|_| bad())
}

fn base64(text: &str) -> Result<Bytes, Problem> {
    let decoded = BASE64_STANDARD.decode(text).or_else(|_| BASE64_URL_SAFE.decode(text));
    decoded.map(Bytes::from).map_err(|_| {
        Problem::invalid(
            "Invalid value at 'task.http_request.body' (TYPE_BYTES), Base64 decoding failed",
        )
    })
}

/// A duration in JSON: seconds, with up to nine fractional digits, ended by `s`.
fn duration(field: &str, text: &str) -> Result<Duration, Problem> {
    let seconds = text.strip_suffix('s').and_then(|number| number.parse::<f64>().ok());
    seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).ok_or_else(|| {
        Problem::invalid(format!(
            "Invalid value at 'task.{field}' (type.googleapis.com/google.protobuf.Duration), Field \
             '{field}', Illegal duration format; duration must end with 's'"
        ))
    })
}

/// What the task says of its retries, over what the queue says.
fn retry(json: &Value) -> Result<Retry, Problem> {
    let given: RetryConfig = serde_json::from_value(json.clone())
        .map_err(|error| Problem::invalid(format!("Invalid JSON payload received. {error}")))?;
    let span = |field, text: Option<String>, or| match text {
        Some(text) => duration(field, &text),
        None => Ok(or),
    };
    let queue = Retry::default();
    let retry = Retry {
        max_attempts: given.max_attempts.unwrap_or(queue.max_attempts),
        max_duration: span("max_retry_duration", given.max_retry_duration, queue.max_duration)?,
        min_backoff: span("min_backoff", given.min_backoff, queue.min_backoff)?,
        max_backoff: span("max_backoff", given.max_backoff, queue.max_backoff)?,
        doublings: given.max_doublings.unwrap_or(queue.doublings),
    };
    if retry.max_attempts < -1 {
        return Err(Problem::invalid("RetryConfig.maxAttempts must be -1 or greater."));
    }
    if retry.min_backoff > retry.max_backoff {
        return Err(Problem::invalid("RetryConfig.minBackoff must not exceed maxBackoff."));
    }
    Ok(retry)
}

/// The fields that the API's description gives the resource.
const TASK_FIELDS: &[&str] = &[
    "appEngineHttpRequest",
    "createTime",
    "dispatchCount",
    "dispatchDeadline",
    "firstAttempt",
    "httpRequest",
    "lastAttempt",
    "name",
    "responseCount",
    "retryConfig",
    "scheduleTime",
    "view",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulators::testing::World;

    const QUEUE: &str = "projects/p/locations/l/queues/q";

    fn named(id: &str, further: Value) -> Value {
        let mut task = json!({
            "name": format!("{QUEUE}/tasks/{id}"),
            "httpRequest": {
                "url": "https://service.test/runner/stop",
                "httpMethod": 1,
                "headers": { "X-Runner-Secret": "s3cret", "Content-Type": "application/json" },
                "body": "eyJ2bSI6MX0=",
            },
        });
        task.as_object_mut().unwrap().extend(further.as_object().unwrap().clone());
        json!({ "task": task })
    }

    async fn create(world: &World, body: Value) -> (StatusCode, Value) {
        let path = format!("/v2/{QUEUE}/tasks?%24alt=json%3Benum-encoding%3Dint");
        world.google("POST", &path, body).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_is_taken_while_its_task_waits_and_for_a_day_after() {
        let mut world = World::new().await;
        let task = named("a", json!({ "scheduleTime": "2026-11-24T05:01:00Z" }));
        let (status, created) = create(&world, task.clone()).await;
        assert_eq!((status, &created["view"]), (StatusCode::OK, &json!("BASIC")));
        assert_eq!(created["httpRequest"]["headers"]["X-Runner-Secret"], "s3cret");
        assert_eq!(created["httpRequest"].get("body"), None);
        let (status, answer) = create(&world, task.clone()).await;
        assert_eq!(
            (status, &answer["error"]["status"]),
            (StatusCode::CONFLICT, &json!("ALREADY_EXISTS"))
        );
        assert_eq!(answer["error"]["message"], "Requested entity already exists");
        world.pass(70).await;
        let (status, answer) = create(&world, task.clone()).await;
        assert_eq!(status, StatusCode::CONFLICT);
        assert!(answer["error"]["message"].as_str().unwrap().ends_with("existed too recently."));
        world.pass(24 * 3600).await;
        assert_eq!(create(&world, task).await.0, StatusCode::OK);
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_2xx_ends_a_task_and_its_own_retries_count() {
        let mut world = World::new().await;
        let retry = json!({ "maxAttempts": -1, "minBackoff": "2s", "maxBackoff": "3600s" });
        let task = named("a", json!({ "dispatchDeadline": "15s", "retryConfig": retry }));
        create(&world, task).await;
        world.answer(&[503, 599, 404, 204]);
        world.pass(300).await;
        let sent = world.received();
        assert_eq!(sent.len(), 4);
        assert!(world.cloud.tasks.pending().is_empty());
        let header = |index: usize, name: &str| {
            sent[index].headers().get(name).map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(sent[0].body().as_ref(), br#"{"vm":1}"#);
        assert_eq!(header(0, "user-agent").as_deref(), Some("Google-Cloud-Tasks"));
        assert_eq!(header(0, "x-cloudtasks-taskname").as_deref(), Some("a"));
        assert_eq!(header(0, "x-cloudtasks-tasketa").as_deref(), Some("1795496400.000"));
        assert_eq!(header(0, "x-cloudtasks-taskpreviousresponse"), None);
        // After 503, after no answer in time, after 404.
        let previous = |index| header(index, "x-cloudtasks-taskpreviousresponse").unwrap();
        assert_eq!([previous(1), previous(2), previous(3)], ["503", "504", "404"]);
        let executions = |index| header(index, "x-cloudtasks-taskexecutioncount").unwrap();
        assert_eq!([executions(1), executions(2), executions(3)], ["0", "0", "1"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_callback_may_come_twice_or_late() {
        let mut world = World::new().await;
        world.cloud.tasks.duplicate_next();
        world.cloud.tasks.lateness(Duration::from_secs(30));
        create(&world, named("a", json!({}))).await;
        world.pass(29).await;
        assert_eq!(world.received().len(), 0);
        world.pass(10).await;
        assert_eq!(world.received().len(), 2);
        assert!(world.cloud.tasks.pending().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_queue_cannot_take_is_a_400_that_says_why() {
        let world = World::new().await;
        let request = |url: &str| json!({ "httpRequest": { "url": url } });
        for (bad, why) in [
            (named("a b", json!({})), "Task ID \"a b\" can contain only"),
            (
                named("a", json!({ "scheduleTime": "2026-12-24T05:00:01Z" })),
                "too far in the future",
            ),
            (named("a", json!({ "dispatchDeadline": "5s" })), "must be between [15s, 30m]."),
            (named("a", request("")), "HttpRequest.url is required."),
            (named("a", request("ftp://x")), "must start with 'http://'"),
            (
                named("a", json!({ "name": "projects/p/locations/l/queues/r/tasks/a" })),
                "must be the same",
            ),
            (named("a", json!({ "scheduletime": "x" })), "unknown field `scheduletime`"),
            (
                json!({ "task": { "httpRequest": { "url": "http://x", "httpMethod": 9 } } }),
                "http_method",
            ),
        ] {
            let (status, answer) = create(&world, bad).await;
            let message = answer["error"]["message"].as_str().unwrap().to_owned();
            assert_eq!(status, StatusCode::BAD_REQUEST, "{message}");
            assert!(message.contains(why), "{message}");
        }
        let (status, _) = world
            .google("POST", "/v2/projects/p/locations/l/queues/r/tasks", named("a", json!({})))
            .await;
        assert_eq!(status, StatusCode::NOT_FOUND);
    }

    #[tokio::test(start_paused = true)]
    async fn tasks_are_listed_in_pages_and_deleted() {
        let world = World::new().await;
        for id in ["a", "b", "c"] {
            create(&world, named(id, json!({}))).await;
        }
        let path = format!("/v2/{QUEUE}/tasks?pageSize=2&responseView=FULL");
        let (_, first) = world.google("GET", &path, Value::Null).await;
        assert_eq!(first["tasks"].as_array().unwrap().len(), 2);
        assert_eq!(first["tasks"][0]["httpRequest"]["body"], "eyJ2bSI6MX0=");
        let token = first["nextPageToken"].as_str().unwrap();
        let (_, second) =
            world.google("GET", &format!("{path}&pageToken={token}"), Value::Null).await;
        assert_eq!(second["tasks"].as_array().unwrap().len(), 1);
        assert_eq!(second.get("nextPageToken"), None);
        let task = format!("/v2/{QUEUE}/tasks/a");
        assert_eq!(world.google("DELETE", &task, Value::Null).await, (StatusCode::OK, json!({})));
        let (status, gone) = world.google("GET", &task, Value::Null).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        assert!(gone["error"]["message"].as_str().unwrap().contains("existed recently"));
    }
}
