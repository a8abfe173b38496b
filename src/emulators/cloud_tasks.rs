//! Cloud Tasks: one queue, which calls a task's URL at its scheduled time, and repeats the call until the response is 2xx.
//!
//! Callbacks may be late, duplicated or out of order, as the real queue allows; tests can cause each. A task's name cannot
//! be used again for a while after the task is gone.
//! <https://cloud.google.com/tasks/docs/reference/rest/v2/projects.locations.queues.tasks>

mod api;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http_body_util::Full;
use serde_json::Value;

use super::identities::Identities;
use super::{Event, Outgoing, Reply, Sender, Setup, Shared, Ticket, lock};
use crate::clock::Timestamp;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// The emulated Cloud Tasks. Cheap to clone; clones share their state.
#[derive(Clone)]
pub struct CloudTasks {
    shared: Arc<Shared>,
    state: Arc<Mutex<State>>,
}

/// A pending task, as tests see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskView {
    /// The last part of the task's name.
    pub id: String,
    /// The scheduled time of the next attempt, without injected lateness.
    pub due: Timestamp,
    /// The path of the task's URL.
    pub path: String,
    pub headers: BTreeMap<String, String>,
    /// The task's body; null if it is not JSON.
    pub body: Value,
    /// The time limit of an attempt.
    pub dispatch_deadline: Duration,
    pub attempts: u32,
    /// An attempt waits for its reply.
    pub in_flight: bool,
}

type Lateness = Box<dyn FnMut(&TaskView) -> Duration + Send>;

struct State {
    queue: String,
    tasks: BTreeMap<String, Task>,
    /// The times until which names of former tasks cannot be used.
    tombstones: BTreeMap<String, Timestamp>,
    tombstone: Duration,
    paused: bool,
    forbidden: BTreeSet<String>,
    lateness: Lateness,
    duplicates: u32,
    created: u64,
    identities: Identities,
}

struct Task {
    id: String,
    /// The order among tasks of the same time.
    order: u64,
    url: String,
    method: Method,
    headers: BTreeMap<String, String>,
    body: Bytes,
    identity: Option<(&'static str, Value)>,
    created: Timestamp,
    scheduled: Timestamp,
    /// The time of the dispatch: the scheduled time plus injected lateness.
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

/// <https://cloud.google.com/tasks/docs/reference/rest/v2/RetryConfig>
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
    /// The pause after this number of attempts: doubled up to `doublings` times, then increased linearly.
    fn backoff(&self, attempts: u32) -> Duration {
        let retries = attempts.saturating_sub(1);
        let doubled = self.min_backoff.saturating_mul(1 << retries.min(self.doublings).min(30));
        let further = retries.saturating_sub(self.doublings);
        doubled.saturating_mul(further + 1).min(self.max_backoff)
    }

    /// The limits are reached; if both are set, both have to be.
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

/// The claims of the token that Cloud Tasks sends. The audience is by default the task's URL.
/// <https://cloud.google.com/tasks/docs/reference/rest/v2/OidcToken>
fn oidc_claims(token: &Value, url: &str, now: Timestamp) -> Value {
    let now = now.unix_seconds();
    serde_json::json!({
        "aud": token["audience"].as_str().unwrap_or(url),
        "azp": "112233445566778899002",
        "email": token["serviceAccountEmail"],
        "email_verified": true,
        "exp": now + 3600,
        "iat": now,
        "iss": "https://accounts.google.com",
        "sub": "112233445566778899002",
    })
}

impl CloudTasks {
    pub(super) fn new(setup: &Setup, shared: Arc<Shared>, identities: Identities) -> Self {
        let Setup { project, location, queue, .. } = setup;
        let state = State {
            queue: format!("projects/{project}/locations/{location}/queues/{queue}"),
            tasks: BTreeMap::new(),
            tombstones: BTreeMap::new(),
            tombstone: DAY,
            paused: false,
            forbidden: BTreeSet::new(),
            lateness: Box::new(|_| Duration::ZERO),
            duplicates: 0,
            created: 0,
            identities,
        };
        Self { shared, state: Arc::new(Mutex::new(state)) }
    }

    /// The pending tasks, in the order of their due times.
    pub fn pending(&self) -> Vec<TaskView> {
        let state = lock(&self.state);
        let mut tasks: Vec<&Task> = state.tasks.values().collect();
        tasks.sort_by_key(|task| (task.scheduled, task.order));
        tasks.into_iter().map(Task::view).collect()
    }

    /// Pauses the queue, which then accepts tasks but dispatches none, or resumes it.
    pub fn pause(&self, paused: bool) {
        self.change(|state| state.paused = paused);
    }

    /// Takes away the permission to create tasks, or grants it again.
    pub fn forbid_create(&self, forbidden: bool) {
        let create = "cloudtasks.tasks.create";
        if forbidden { self.forbid(create) } else { self.permit(create) }
    }

    /// Takes this IAM permission away, such as `cloudtasks.queues.get`.
    pub fn forbid(&self, permission: &str) {
        self.change(|state| state.forbidden.insert(permission.to_owned()));
    }

    /// Grants the permission again.
    pub fn permit(&self, permission: &str) {
        self.change(|state| state.forbidden.remove(permission));
    }

    /// Sets the time for which a former task's name cannot be used; 24 hours by default.
    pub fn tombstones_last(&self, span: Duration) {
        self.change(|state| state.tombstone = span);
    }

    /// Delays the dispatch of all attempts that are scheduled from now on.
    pub fn lateness(&self, late: Duration) {
        self.lateness_by(move |_| late);
    }

    /// Delays the dispatch of each attempt by the result of `late`. It must not use this `CloudTasks`.
    pub fn lateness_by(&self, late: impl FnMut(&TaskView) -> Duration + Send + 'static) {
        self.change(|state| state.lateness = Box::new(late));
    }

    /// Sends the next attempt twice.
    pub fn duplicate_next(&self) {
        self.change(|state| state.duplicates += 1);
    }

    /// Dispatches a pending task now, as the console's "Force run" does.
    pub fn run_now(&self, id: &str) {
        let now = self.shared.clock.now();
        self.change(|state| {
            if let Some(task) = state.tasks.get_mut(id) {
                task.dispatch = now;
            }
        });
    }

    /// Deletes all tasks without tombstones.
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
        let State { tasks, queue, duplicates, identities, .. } = &mut *state;
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
            outgoing.extend((0..copies).map(|_| task.attempt(queue, identities, now)));
            task.last =
                Some(Attempt { scheduled: task.scheduled, dispatched: now, response: None });
        }
        outgoing
    }

    /// Takes the reply to an attempt.
    pub(super) fn answered(
        &self,
        TaskView { id, path, body, attempts: attempt, .. }: TaskView,
        (scheduled, dispatched): (Timestamp, Timestamp),
        reply: Reply,
    ) {
        let now = self.shared.clock.now();
        // The task may be gone: its duplicate succeeded, or a call deleted it.
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
        self.shared.notify(vec![Event::Callback { at: now, path, task: id, body, attempt, reply }]);
        self.shared.changed.notify_one();
    }

    fn change<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        let result = act(&mut lock(&self.state));
        self.shared.changed.notify_one();
        result
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

    /// The request of the current attempt.
    fn attempt(&self, queue: &str, identities: &Identities, now: Timestamp) -> Outgoing {
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
        if let Some((kind, token)) = &self.identity {
            let token = match *kind {
                "oidcToken" => identities.sign(&oidc_claims(token, &self.url, now)),
                _ => format!("emulated-{kind}"),
            };
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let sender =
            Sender::Callback { task: self.view(), scheduled: self.scheduled, dispatched: now };
        Outgoing {
            request: request
                .body(Full::new(self.body.clone()))
                .expect("its parts were checked when the task was created"),
            limit: self.deadline,
            ticket: Ticket(sender),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;

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
    async fn a_name_is_taken_while_its_task_is_pending_and_for_a_day_after() {
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
    async fn only_a_2xx_ends_a_task_and_its_own_retry_config_counts() {
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
        // After a 503, a timeout and a 404.
        let previous = |index| header(index, "x-cloudtasks-taskpreviousresponse").unwrap();
        assert_eq!([previous(1), previous(2), previous(3)], ["503", "504", "404"]);
        let executions = |index| header(index, "x-cloudtasks-taskexecutioncount").unwrap();
        assert_eq!([executions(1), executions(2), executions(3)], ["0", "0", "1"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_callback_may_be_duplicated_or_late() {
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
    async fn an_invalid_task_is_refused_with_a_400_that_says_why() {
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
    async fn a_callers_permissions_can_be_tested_and_a_missing_queue_has_none() {
        let world = World::new().await;
        let names = ["cloudtasks.tasks.create", "cloudtasks.queues.get"];
        let ask = async |queue: &str| {
            let path = format!("/v2/projects/p/locations/l/queues/{queue}:testIamPermissions");
            world.google("POST", &path, json!({ "permissions": names })).await
        };
        assert_eq!(ask("q").await.1, json!({ "permissions": names }));
        world.cloud.tasks.forbid("cloudtasks.queues.get");
        assert_eq!(ask("q").await.1, json!({ "permissions": ["cloudtasks.tasks.create"] }));
        let get = world.google("GET", &format!("/v2/{QUEUE}"), Value::Null).await;
        assert_eq!(get.0, StatusCode::FORBIDDEN);
        assert_eq!(ask("other").await, (StatusCode::OK, json!({})));
        assert_eq!(world.google("POST", &format!("/v2/{QUEUE}"), json!({})).await.0, 404);
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
