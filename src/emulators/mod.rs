//! The embedded cloud: emulators of Compute Engine, Cloud Tasks, GitHub, and Google's token endpoint.
//!
//! Each is a state machine whose operations take time, behind the HTTP API of the real one. The emulators do not depend
//! on the service; `tests/oracle` checks them with Google's and GitHub's own client libraries. All time comes from one
//! [`Clock`] and nothing is random, so equal calls at equal times get equal responses.

pub mod accounts;
pub mod cloud_tasks;
pub mod compute;
mod driver;
pub mod faults;
pub mod github;
mod guests;
mod identities;
mod keys;
mod wire;

use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::routing::MethodFilter;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body_util::Full;
use serde_json::json;
use tokio::sync::Notify;

pub use accounts::Accounts;
pub use cloud_tasks::CloudTasks;
pub use compute::ComputeEngine;
pub use driver::{BoxError, Driver, HttpService};
pub use faults::{CallInfo, ErrorBody, Fault, Faults};
pub use github::GitHub;
pub use guests::Guests;
pub use identities::Identities;
pub use keys::Keys;

use self::wire::{Incoming, Problem, Routes};
use crate::clock::{Clock, Timestamp};

/// The project, the queue and the GitHub App of a cloud.
#[derive(Clone)]
pub struct Setup {
    pub project: String,
    /// The queue's location, such as `asia-northeast1`.
    pub location: String,
    pub queue: String,
    pub app_id: String,
    pub installation_id: u64,
    pub keys: Arc<Keys>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Api {
    Compute,
    Tasks,
    GitHub,
    /// Google's token endpoint, and its public keys.
    Token,
}

impl Api {
    fn of(path: &str) -> Self {
        match path.split('/').nth(1) {
            Some("compute") => Self::Compute,
            Some("v2") => Self::Tasks,
            Some("token" | "oauth2") => Self::Token,
            _ => Self::GitHub,
        }
    }
}

/// A recorded API call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The time of arrival.
    pub at: Timestamp,
    pub api: Api,
    /// The method's name: `instances.get`, `tasks.create`, `actions.listWorkflowRunsForRepo`; `unknown` if no route
    /// matches.
    pub method: &'static str,
    /// Path and query.
    pub target: String,
    /// The response's status; `None` if there was no response.
    pub status: Option<StatusCode>,
}

/// The service's response to a webhook or a callback.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// `None` if there was no response in time.
    pub status: Option<StatusCode>,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// A change in the cloud, as subscribers see it.
#[derive(Clone, Debug)]
pub enum Event {
    /// An instance entered a status.
    Instance { at: Timestamp, vm: String, status: compute::Status, cause: String },
    /// An attempt at a webhook delivery ended.
    Webhook {
        /// The time of the reply.
        at: Timestamp,
        /// The name of the GitHub event, as in `X-GitHub-Event`.
        event: String,
        /// The payload's `action`.
        action: String,
        job: github::JobId,
        /// The GUID, as in `X-GitHub-Delivery`.
        delivery: String,
        reply: Reply,
    },
    /// An attempt at a task's callback ended.
    Callback {
        /// The time of the reply.
        at: Timestamp,
        /// The path of the task's URL.
        path: String,
        /// The task's id.
        task: String,
        /// The task's body; null if it is not JSON.
        body: serde_json::Value,
        /// 1 for the first attempt.
        attempt: u32,
        reply: Reply,
    },
    /// A job entered a status.
    Job {
        at: Timestamp,
        id: github::JobId,
        repo: String,
        status: github::JobStatus,
        runner: Option<String>,
    },
    /// A runner connected or disconnected.
    Runner { at: Timestamp, name: String, online: bool },
}

type Subscriber = Arc<dyn Fn(&Event) + Send + Sync>;

/// The state that all emulators share.
struct Shared {
    clock: Clock,
    subscribers: Mutex<Vec<Subscriber>>,
    /// Wakes the run loop.
    changed: Notify,
}

impl Shared {
    /// Calls the subscribers. No emulator may be locked: a subscriber may call any of them.
    fn notify(&self, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let subscribers = lock(&self.subscribers).clone();
        for event in &events {
            subscribers.iter().for_each(|subscriber| subscriber(event));
        }
    }
}

/// Locks the mutex even if it is poisoned: no change of the state can be interrupted by a panic.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A request from the cloud to the service.
#[derive(Debug)]
pub struct Outgoing {
    /// The request, with an absolute URI.
    pub request: http::Request<Full<Bytes>>,
    /// The sender's timeout, in real time.
    pub limit: Duration,
    /// Identifies the request when its reply arrives.
    pub ticket: Ticket,
}

/// Identifies the webhook or task of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket(Sender);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Sender {
    Webhook { delivery: String, attempt: u64 },
    Callback { task: cloud_tasks::TaskView, scheduled: Timestamp, dispatched: Timestamp },
    Boot { vm: String },
}

/// All emulators. Cheap to clone; clones share their state.
#[derive(Clone)]
pub struct Cloud {
    pub compute: ComputeEngine,
    pub tasks: CloudTasks,
    pub github: GitHub,
    /// The token endpoint.
    pub accounts: Accounts,
    /// The VMs' identity tokens.
    pub identities: Identities,
    /// The VMs' boot scripts.
    pub guests: Guests,
    pub faults: Faults,
    shared: Arc<Shared>,
    journal: Arc<Mutex<Vec<Call>>>,
}

impl Cloud {
    /// A cloud with one queue, and without instances and repositories.
    pub fn new(setup: Setup, clock: Clock) -> Self {
        let shared = Arc::new(Shared {
            clock: clock.clone(),
            subscribers: Mutex::default(),
            changed: Notify::new(),
        });
        let compute = ComputeEngine::new(&setup, Arc::clone(&shared));
        let github = GitHub::new(&setup, Arc::clone(&shared), compute.clone());
        let identities = Identities::new(&setup.project, clock.clone());
        let guests =
            Guests::new(Arc::clone(&shared), compute.clone(), github.clone(), identities.clone());
        Self {
            tasks: CloudTasks::new(&setup, Arc::clone(&shared), identities.clone()),
            github,
            identities,
            guests,
            accounts: Accounts::new(setup.keys, clock),
            faults: Faults::default(),
            journal: Arc::default(),
            compute,
            shared,
        }
    }

    /// The APIs on one router; their paths do not collide.
    pub fn router(&self) -> Router {
        let routes = Routes::new(self).on(
            MethodFilter::POST,
            "/token",
            (Api::Token, "token"),
            &self.accounts,
            Accounts::token,
        );
        let routes = routes.on(
            MethodFilter::GET,
            "/oauth2/v3/certs",
            (Api::Token, "oauth2.certs"),
            &self.identities,
            Identities::certs,
        );
        let routes = self.compute.routes(routes);
        let routes = self.tasks.routes(routes);
        self.github.routes(routes).finish()
    }

    /// Calls `listener` for each event, in order, on the thread that caused it.
    pub fn subscribe(&self, listener: impl Fn(&Event) + Send + Sync + 'static) {
        lock(&self.shared.subscribers).push(Arc::new(listener));
    }

    /// Every API call so far, in the order of their responses.
    pub fn calls(&self) -> Vec<Call> {
        lock(&self.journal).clone()
    }

    pub fn clear_calls(&self) {
        lock(&self.journal).clear();
    }

    /// The earliest time at which a state changes without a call; it may be past.
    pub fn next_event(&self) -> Option<Timestamp> {
        let events = [
            self.compute.next_event(),
            self.github.next_event(),
            self.tasks.next_event(),
            self.guests.next_event(),
        ];
        events.into_iter().flatten().min()
    }

    /// Advances every state machine to now, and returns the requests to send to the service.
    pub fn due(&self) -> Vec<Outgoing> {
        self.advance();
        let mut outgoing = self.github.due();
        outgoing.extend(self.tasks.due());
        outgoing.extend(self.guests.due());
        outgoing
    }

    /// Takes the reply to a request that [`Cloud::due`] returned. Each request needs exactly one.
    pub fn answered(&self, ticket: Ticket, reply: Reply) {
        match ticket.0 {
            Sender::Webhook { delivery, attempt } => {
                self.github.answered(&delivery, attempt, reply);
            }
            Sender::Callback { task, scheduled, dispatched } => {
                self.tasks.answered(task, (scheduled, dispatched), reply);
            }
            Sender::Boot { vm } => self.guests.answered(&vm, &reply),
        }
    }

    /// Runs the cloud: sends the requests that are due, takes their replies, and sleeps until more are due. Returns at
    /// `until`, if given, and leaves requests without a reply in `driver`.
    pub async fn run_until(&self, driver: &mut Driver, until: Option<Timestamp>) {
        loop {
            for outgoing in self.due() {
                driver.send(outgoing);
            }
            let over = until.is_some_and(|until| self.shared.clock.now() >= until);
            let wake = [self.next_event(), until].into_iter().flatten().min();
            let rest = async {
                match wake {
                    _ if over => {}
                    Some(time) => self.shared.clock.sleep_until(time).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                (ticket, reply) = driver.answer() => self.answered(ticket, reply),
                // At the end only replies that have arrived are taken.
                () = self.shared.changed.notified(), if !over => {}
                () = rest => if over { return },
            }
        }
    }

    /// Advances the state machines to now, one event after the other.
    fn advance(&self) {
        let now = self.shared.clock.now();
        while let Some(next) = [self.compute.next_event(), self.github.next_step()]
            .into_iter()
            .flatten()
            .min()
            .filter(|next| *next <= now)
        {
            self.compute.step(next);
            self.github.step(next);
        }
    }

    async fn serve(
        &self,
        api: Api,
        method: &'static str,
        request: Request,
        handler: impl FnOnce(&Incoming) -> Response,
    ) -> Response {
        let Some(call) = Incoming::read(request).await else {
            return StatusCode::BAD_REQUEST.into_response();
        };
        let at = self.shared.clock.now();
        let run = || {
            self.advance();
            let refusal = match api {
                Api::Compute | Api::Tasks => self.unauthenticated(api, &call),
                Api::GitHub => self.github.refuses(method, &call),
                Api::Token => None,
            };
            let response = refusal.unwrap_or_else(|| handler(&call));
            self.shared.changed.notify_one();
            response
        };
        let record = |status| {
            let target = call.target.clone();
            lock(&self.journal).push(Call { at, api, method, target, status });
        };
        let fault = self.faults.next_fault(&CallInfo { at, api, method, target: &call.target });
        let response = match fault {
            None => run(),
            Some(Fault::Before(status, body)) => error(api, status, &body),
            Some(Fault::After(status)) => {
                run();
                error(api, status, &ErrorBody::Api)
            }
            Some(Fault::Delay(span)) => {
                tokio::time::sleep(span).await;
                run()
            }
            Some(Fault::Late(span)) => {
                let response = run();
                tokio::time::sleep(span).await;
                response
            }
            Some(fault @ (Fault::Hang | Fault::Lost)) => {
                if fault == Fault::Lost {
                    run();
                }
                record(None);
                pending().await
            }
        };
        record(Some(response.status()));
        response
    }

    fn unauthenticated(&self, api: Api, call: &Incoming) -> Option<Response> {
        let refusal = Problem::new(
            StatusCode::UNAUTHORIZED,
            "authError",
            "Request had invalid authentication credentials. Expected OAuth 2 access token, login \
             cookie or other valid authentication credential.",
        );
        (!self.accounts.accepts(call)).then(|| refusal.response(api))
    }
}

/// The response of a fault, in an emulator's place.
fn error(api: Api, status: StatusCode, body: &ErrorBody) -> Response {
    let reason = status.canonical_reason().unwrap_or("Error");
    match (body, api) {
        (ErrorBody::Html, _) => {
            (status, axum::response::Html(format!("<html><h1>{reason}</h1></html>")))
                .into_response()
        }
        (ErrorBody::Empty, _) => status.into_response(),
        (ErrorBody::Truncated, _) => (status, "{\"error\": {\"co").into_response(),
        (ErrorBody::GitHub { message, documentation_url }, _) => {
            let mut error = json!({ "message": message });
            if let Some(link) = documentation_url {
                error["documentation_url"] = json!(link);
            }
            wire::json_response(status, &error)
        }
        (ErrorBody::Api, Api::GitHub) => github::Refusal::new(status, reason).into_response(),
        (ErrorBody::Reason(message), Api::GitHub) => {
            github::Refusal::new(status, message).into_response()
        }
        (ErrorBody::Api, _) => Problem::new(status, "backendError", reason).response(api),
        (ErrorBody::Reason(reason), _) => Problem::new(status, reason, reason).response(api),
    }
}

/// FNV-1a, for ids and fingerprints.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::compute::{Instance, Status};
    use super::github::{Hook, JobStatus, Runner, Scope};
    use super::testing::World;
    use super::*;

    const START: &str = "/compute/v1/projects/p/zones/asia-northeast1-a/instances/gpu-1/start";
    const TASKS: &str = "/v2/projects/p/locations/l/queues/q/tasks";

    async fn world_with_a_runner() -> World {
        let world = World::new().await;
        let cloud = &world.cloud;
        cloud.compute.insert(Instance::new("gpu-1", "asia-northeast1-a"));
        cloud.github.add_repository("acme/app");
        let scope = Scope::Repository("acme/app".to_owned());
        cloud.github.add_runner(Runner::new("gpu-1", scope, ["self-hosted", "gpu"]));
        let url = "http://service.test/github/webhook".to_owned();
        cloud.github.webhook(Hook { url, secret: "s".to_owned(), form: false });
        world
    }

    /// Starts the instance for a job, and schedules a callback that fails at first.
    async fn story() -> Vec<String> {
        let mut world = world_with_a_runner().await;
        let log = Arc::new(Mutex::new(Vec::new()));
        let listener = Arc::clone(&log);
        world.cloud.subscribe(move |event| lock(&listener).push(format!("{event:?}")));
        let job = world.cloud.github.queue_job("acme/app", ["GPU"], Duration::from_secs(60));
        world.pass(1).await;
        let (_, operation) = world.google("POST", START, Value::Null).await;
        let url = "http://service.test/runner/stop";
        let task = json!({ "task": { "httpRequest": { "url": url }, "scheduleTime": "2026-11-24T05:03:00Z" } });
        world.google("POST", TASKS, task).await;
        world.pass(60).await;
        assert_eq!(world.cloud.github.job(job).status, JobStatus::InProgress);
        world.answer(&[200, 500]);
        world.pass(240).await;
        assert_eq!(world.cloud.github.job(job).status, JobStatus::Completed);
        assert_eq!(world.cloud.compute.status("gpu-1"), Status::Running);
        assert!(world.cloud.tasks.pending().is_empty());
        let mut log = lock(&log).clone();
        log.push(operation.to_string());
        log.extend(world.cloud.calls().iter().map(|call| format!("{call:?}")));
        log
    }

    #[tokio::test(start_paused = true)]
    async fn equal_calls_at_equal_times_get_equal_responses() {
        let first = story().await;
        assert_eq!(first, story().await);
        let statuses = first.iter().filter(|line| line.starts_with("Instance")).count();
        let webhooks = first.iter().filter(|line| line.starts_with("Webhook")).count();
        let callbacks = first.iter().filter(|line| line.starts_with("Callback")).count();
        assert_eq!((statuses, webhooks, callbacks), (3, 3, 2), "{first:#?}");
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_crash_the_queue_repeats_a_callback_and_github_does_not_repeat_a_delivery() {
        let mut world = world_with_a_runner().await;
        world.answer(&[599, 599]);
        world.cloud.github.queue_job("acme/app", ["gpu"], Duration::from_secs(60));
        let url = "http://service.test/runner/start";
        let task = json!({ "task": { "httpRequest": { "url": url } } });
        world.google("POST", TASKS, task).await;
        world.pass(60).await;
        let paths: Vec<_> = world.received().iter().map(|r| r.uri().path().to_owned()).collect();
        assert_eq!(paths, ["/github/webhook", "/runner/start", "/runner/start"]);
        let delivery = &world.cloud.github.deliveries()[0];
        assert_eq!(delivery.reply, Some(Reply::default()));
        world.cloud.github.redeliver(&delivery.guid);
        world.pass(2).await;
        assert_eq!(world.received()[3].headers()["x-github-delivery"], delivery.guid.as_str());
    }

    #[tokio::test(start_paused = true)]
    async fn an_unknown_path_is_refused_in_the_shape_of_its_api() {
        let world = World::new().await;
        let (status, answer) =
            world.google("GET", "/compute/v1/projects/p/zones", Value::Null).await;
        assert_eq!(
            (status.as_u16(), &answer["error"]["errors"][0]["reason"]),
            (404, &json!("notFound"))
        );
        let (status, answer) = world.google("PATCH", TASKS, Value::Null).await;
        assert_eq!((status.as_u16(), &answer["error"]["status"]), (404, &json!("NOT_FOUND")));
        let (status, _, answer) = world.github("/repos/acme/app/pulls").await;
        assert_eq!((status.as_u16(), &answer["message"]), (404, &json!("Not Found")));
        let last = world.cloud.calls().pop().unwrap();
        assert_eq!((last.api, last.method), (Api::GitHub, "unknown"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_403_of_github_may_have_other_reasons_than_a_permission() {
        let world = world_with_a_runner().await;
        let limits =
            "https://docs.github.com/en/rest/overview/resources-in-the-rest-api#abuse-rate-limits";
        let secondary = "https://docs.github.com/en/free-pro-team@latest/rest/overview/\
                         rate-limits-for-the-rest-api#about-secondary-rate-limits";
        for (body, text, link) in [
            (ErrorBody::abuse_limit(), "You have triggered an abuse detection", json!(limits)),
            (ErrorBody::secondary_limit(), "You have exceeded a secondary rate", json!(secondary)),
            (ErrorBody::ip_allow_list("acme"), "Although you appear to have the", Value::Null),
        ] {
            let fault = Fault::Before(StatusCode::FORBIDDEN, body);
            world.cloud.faults.next("actions.listSelfHostedRunnersForRepo", fault);
            let (status, headers, answer) = world.github("/repos/acme/app/actions/runners").await;
            assert_eq!((status, &answer["documentation_url"]), (StatusCode::FORBIDDEN, &link));
            let message = answer["message"].as_str().unwrap();
            assert!(message.starts_with(text), "{message}");
            assert!(!headers.contains_key("retry-after"), "{headers:?}");
        }
        world.cloud.github.suspend(true);
        let (status, _, answer) = world.github("/repos/acme/app/actions/runners").await;
        let expected = json!("This installation has been suspended");
        assert_eq!((status, &answer["message"]), (StatusCode::FORBIDDEN, &expected));
    }

    #[tokio::test(start_paused = true)]
    async fn a_fault_strikes_before_or_after_the_effect() {
        let world = world_with_a_runner().await;
        let unavailable = StatusCode::SERVICE_UNAVAILABLE;
        world.cloud.faults.next("instances.start", Fault::Before(unavailable, ErrorBody::Html));
        world.cloud.faults.next("instances.start", Fault::After(unavailable));
        assert_eq!(world.google("POST", START, Value::Null).await.0, unavailable);
        assert_eq!(world.cloud.compute.status("gpu-1"), Status::Terminated);
        assert_eq!(world.google("POST", START, Value::Null).await.0, unavailable);
        assert_eq!(world.cloud.compute.status("gpu-1"), Status::Provisioning);
        world.cloud.faults.on(|call| (call.method == "instances.start").then_some(Fault::Lost));
        let call = world.google("POST", START, Value::Null);
        assert!(tokio::time::timeout(Duration::from_secs(30), call).await.is_err());
        assert_eq!(world.cloud.calls().pop().unwrap().status, None);
    }
}
