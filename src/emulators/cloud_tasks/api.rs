//! Cloud Tasks' REST API for the queue of [`super`].
//!
//! <https://cloud.google.com/tasks/docs/reference/rest/v2/projects.locations.queues.tasks>

use std::collections::BTreeMap;
use std::time::Duration;

use axum::response::Response;
use axum::routing::MethodFilter;
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE};
use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{CloudTasks, DAY, Retry, State, Task};
use crate::clock::Timestamp;
use crate::emulators::wire::{Incoming, Problem, Routes, google};
use crate::emulators::{Api, hash};

impl CloudTasks {
    pub(in crate::emulators) fn routes(&self, routes: Routes) -> Routes {
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
            .on(post, QUEUE, api("queues.testIamPermissions"), self, |it, call| {
                it.answer(call, &[], &["permissions"], State::test_permissions)
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
    // Output only: accepted and ignored, since a client may send a task that it has read.
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TestPermissions {
    #[serde(default)]
    permissions: Vec<String>,
    /// Some clients repeat the resource of the path.
    #[serde(rename = "resource")]
    _resource: Option<Value>,
}

impl State {
    fn create(&mut self, call: &Incoming, now: Timestamp) -> Result<Value, Problem> {
        let CreateTask { task, response_view, parent } = call.json()?;
        self.find_queue(call)?;
        self.permitted("cloudtasks.tasks.create")?;
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

    /// Validates the task.
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

    /// The id in a task's name, or a generated one if the client gives none.
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

    fn permitted(&self, permission: &str) -> Result<(), Problem> {
        if !self.forbidden.contains(permission) {
            return Ok(());
        }
        Err(Problem::new(
            StatusCode::FORBIDDEN,
            "forbidden",
            format!(
                "The principal (user or service account) lacks IAM permission \"{permission}\" for the resource \
                 (or the resource may not exist)."
            ),
        ))
    }

    /// Lists which of the permissions the caller has on the queue; none if the queue does not exist.
    fn test_permissions(&mut self, call: &Incoming, _: Timestamp) -> Result<Value, Problem> {
        let TestPermissions { permissions, .. } = call.json()?;
        // The last path segment contains the method's name.
        let mut of_queue = call.clone();
        let queue = call.param("queue").strip_suffix(":testIamPermissions");
        let queue =
            queue.ok_or_else(|| Problem::not_found(format!("No route for {}", call.path)))?;
        of_queue.params.insert("queue".to_owned(), queue.to_owned());
        let exists = self.find_queue(&of_queue).is_ok();
        let held = permissions.into_iter().filter(|name| exists && !self.forbidden.contains(name));
        let held: Vec<String> = held.collect();
        Ok(if held.is_empty() { json!({}) } else { json!({ "permissions": held }) })
    }

    fn get_queue(&mut self, call: &Incoming, _: Timestamp) -> Result<Value, Problem> {
        self.permitted("cloudtasks.queues.get")?;
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
    /// The task as JSON. Only the full view has the body; both have the headers, secrets included.
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
        // Google omits zeros.
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

/// Parses the view, which clients send by name or by number, in a query as text.
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

/// Parses a duration: seconds with up to nine fractional digits, followed by `s`.
fn duration(field: &str, text: &str) -> Result<Duration, Problem> {
    let seconds = text.strip_suffix('s').and_then(|number| number.parse::<f64>().ok());
    seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).ok_or_else(|| {
        Problem::invalid(format!(
            "Invalid value at 'task.{field}' (type.googleapis.com/google.protobuf.Duration), Field \
             '{field}', Illegal duration format; duration must end with 's'"
        ))
    })
}

/// The task's retry configuration, with the queue's for missing fields.
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

/// The fields of the resource in the API's description.
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
