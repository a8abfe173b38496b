//! The embedded cloud: Compute Engine, Cloud Tasks, GitHub, and Google's token endpoint.
//!
//! Each is a state machine in which an operation takes time, behind the HTTP API that the real one has.
//! They know nothing of the service: what they believe about the real ones is checked by Google's and
//! GitHub's own client libraries. All time comes from one [`Clock`] and nothing is random, so the same
//! calls at the same times get the same answers.

pub mod accounts;
pub mod cloud_tasks;
pub mod compute;
mod driver;
pub mod faults;
pub mod github;
mod guests;
mod identities;
mod wire;

use std::fmt;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::routing::MethodFilter;
use base64::prelude::{BASE64_STANDARD, Engine};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body_util::Full;
use jsonwebtoken::DecodingKey;
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

use self::wire::{Incoming, Problem, Routes};
use crate::clock::{Clock, Timestamp};

/// What the cloud is told about its one customer.
#[derive(Clone)]
pub struct Setup {
    /// The Google Cloud project.
    pub project: String,
    /// Where the queue lives, such as `asia-northeast1`.
    pub location: String,
    /// The queue's id.
    pub queue: String,
    /// The GitHub App's id.
    pub app_id: String,
    /// Its one installation.
    pub installation_id: u64,
    /// The App's key and the service account's.
    pub keys: Arc<Keys>,
}

/// The two RSA keys that clients sign with. They alone are random, and no answer depends on them.
pub struct Keys {
    app_pem: String,
    service_pem: String,
    app: DecodingKey,
    service: DecodingKey,
}

impl Keys {
    /// Makes two keys of 2048 bits.
    pub fn generate() -> Self {
        let (app_pem, app) = rsa_key();
        let (service_pem, service) = rsa_key();
        Self { app_pem, service_pem, app, service }
    }

    /// The GitHub App's private key, PKCS#8 in PEM.
    pub fn app_private_key_pem(&self) -> &str {
        &self.app_pem
    }

    /// A key file for `GOOGLE_APPLICATION_CREDENTIALS` whose tokens come from `token_uri`.
    pub fn service_account_json(&self, token_uri: &str) -> String {
        json!({
            "type": "service_account",
            "project_id": "emulated",
            "private_key_id": "0000000000000000000000000000000000000001",
            "private_key": self.service_pem,
            "client_email": self.client_email(),
            "client_id": "100000000000000000001",
            "auth_uri": "https://accounts.google.com/o/oauth2/auth",
            "token_uri": token_uri,
        })
        .to_string()
    }

    fn client_email(&self) -> &'static str {
        "runner-manager@emulated.iam.gserviceaccount.com"
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(..)")
    }
}

fn rsa_key() -> (String, DecodingKey) {
    let pair = KeyPair::generate(KeySize::Rsa2048).expect("the system has randomness");
    let der = pair.as_der().expect("a fresh key has a PKCS#8 form");
    let text = BASE64_STANDARD.encode(der.as_ref());
    let mut pem = String::from("-----BEGIN PRIVATE KEY-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.extend(line.iter().copied().map(char::from));
        pem.push('\n');
    }
    pem.push_str("-----END PRIVATE KEY-----\n");
    (pem, DecodingKey::from_rsa_der(pair.public_key().as_ref()))
}

/// Which API a call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Api {
    /// Compute Engine.
    Compute,
    /// Cloud Tasks.
    Tasks,
    /// GitHub's REST API.
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

/// An API call that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// When it arrived.
    pub at: Timestamp,
    /// Which API it was for.
    pub api: Api,
    /// The method's name: `instances.get`, `tasks.create`, `actions.listWorkflowRunsForRepo`; `unknown`
    /// where no route fits.
    pub method: &'static str,
    /// Path and query.
    pub target: String,
    /// What it was answered; none if it never was.
    pub status: Option<StatusCode>,
}

/// The answer to a webhook or a callback.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// None: no answer in time, or none at all.
    pub status: Option<StatusCode>,
    /// The answer's headers.
    pub headers: HeaderMap,
    /// The answer's body.
    pub body: Bytes,
}

/// Something that an outsider could have watched.
#[derive(Clone, Debug)]
pub enum Happening {
    /// An instance came to a status.
    Instance {
        /// When.
        at: Timestamp,
        /// Its name.
        vm: String,
        /// The status it has since.
        status: compute::Status,
        /// What brought it about.
        cause: String,
    },
    /// A webhook delivery was answered, or was not.
    Webhook {
        /// When the answer came.
        at: Timestamp,
        /// As in `X-GitHub-Event`.
        event: String,
        /// The payload's `action`.
        action: String,
        /// The job that it is about.
        job: github::JobId,
        /// As in `X-GitHub-Delivery`.
        delivery: String,
        /// The answer.
        reply: Reply,
    },
    /// A task's callback was answered, or was not.
    Callback {
        /// When the answer came.
        at: Timestamp,
        /// The path of the task's URL.
        path: String,
        /// The task's id.
        task: String,
        /// Its body; null if that is not JSON.
        body: serde_json::Value,
        /// 1 for the first attempt.
        attempt: u32,
        /// The answer.
        reply: Reply,
    },
    /// A job came to a status.
    Job {
        /// When.
        at: Timestamp,
        /// The job.
        id: github::JobId,
        /// `owner/name` of its repository.
        repo: String,
        /// The status it has since.
        status: github::JobStatus,
        /// The runner that has it.
        runner: Option<String>,
    },
    /// A runner connected or went away.
    Runner {
        /// When.
        at: Timestamp,
        /// Its name.
        name: String,
        /// Whether it is connected since.
        online: bool,
    },
}

type Subscriber = Arc<dyn Fn(&Happening) + Send + Sync>;

/// What all emulators hold: the time, the listeners, and the bell that wakes the run loop.
struct Shared {
    clock: Clock,
    subscribers: Mutex<Vec<Subscriber>>,
    changed: Notify,
}

impl Shared {
    /// Tells the subscribers. No emulator may be locked: they may ask any of them.
    fn tell(&self, happenings: Vec<Happening>) {
        if happenings.is_empty() {
            return;
        }
        let subscribers = lock(&self.subscribers).clone();
        for happening in &happenings {
            subscribers.iter().for_each(|subscriber| subscriber(happening));
        }
    }
}

/// A panic elsewhere does not make the state wrong: every change is complete before its lock is released.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A request that the cloud wants sent to the service.
#[derive(Debug)]
pub struct Outgoing {
    /// The request itself, with an absolute URI.
    pub request: http::Request<Full<Bytes>>,
    /// How long the sender waits for the answer; counted as sockets count.
    pub limit: Duration,
    /// To be handed back with the answer.
    pub ticket: Ticket,
}

/// Which webhook or task an answer is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket(Sender);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Sender {
    Webhook { delivery: String, attempt: u64 },
    Callback { task: cloud_tasks::TaskView, scheduled: Timestamp, dispatched: Timestamp },
    Boot { vm: String },
}

/// All four APIs. Cheap to clone; all clones agree.
#[derive(Clone)]
pub struct Cloud {
    /// Compute Engine, and what a test does to it behind the service's back.
    pub compute: ComputeEngine,
    /// Cloud Tasks.
    pub tasks: CloudTasks,
    /// GitHub.
    pub github: GitHub,
    /// The token endpoint.
    pub accounts: Accounts,
    /// Who a VM is.
    pub identities: Identities,
    /// What runs on the VMs.
    pub guests: Guests,
    /// What goes wrong.
    pub faults: Faults,
    shared: Arc<Shared>,
    journal: Arc<Mutex<Vec<Call>>>,
}

impl Cloud {
    /// An empty cloud: no instances, no repositories, one queue.
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
            tasks: CloudTasks::new(&setup, Arc::clone(&shared)),
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

    /// All four APIs on one Router; no paths of theirs collide.
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

    /// Calls `listener` at each happening, in order, from the thread that brought it about.
    pub fn subscribe(&self, listener: impl Fn(&Happening) + Send + Sync + 'static) {
        lock(&self.shared.subscribers).push(Arc::new(listener));
    }

    /// Every API call so far, in the order in which they were answered.
    pub fn calls(&self) -> Vec<Call> {
        lock(&self.journal).clone()
    }

    /// Forgets the calls so far.
    pub fn clear_calls(&self) {
        lock(&self.journal).clear();
    }

    /// The earliest time at which something is due of its own accord; it may be past.
    pub fn next_event(&self) -> Option<Timestamp> {
        let events = [
            self.compute.next_event(),
            self.github.next_event(),
            self.tasks.next_event(),
            self.guests.next_event(),
        ];
        events.into_iter().flatten().min()
    }

    /// Brings every state machine to now, and returns the requests to send to the service now.
    pub fn due(&self) -> Vec<Outgoing> {
        self.advance();
        let mut outgoing = self.github.due();
        outgoing.extend(self.tasks.due());
        outgoing.extend(self.guests.due());
        outgoing
    }

    /// The answer to a request that [`Cloud::due`] returned. Every one needs exactly one.
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

    /// Runs the cloud: sends what is due, takes the answers back, and sleeps until there is more to do.
    /// Returns at `until`, if given, with unanswered requests left in `driver`.
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
                // Once it is over only answers that are already here are taken.
                () = self.shared.changed.notified(), if !over => {}
                () = rest => if over { return },
            }
        }
    }

    /// Brings the state machines to now, one event after the other.
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
        let fault = self.faults.strike(&CallInfo { at, api, method, target: &call.target });
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
        (!self.accounts.honours(call)).then(|| refusal.response(api))
    }
}

/// An answer that a fault gives in an emulator's place.
fn error(api: Api, status: StatusCode, body: &ErrorBody) -> Response {
    let words = status.canonical_reason().unwrap_or("Error");
    match (body, api) {
        (ErrorBody::Html, _) => {
            (status, axum::response::Html(format!("<html><h1>{words}</h1></html>"))).into_response()
        }
        (ErrorBody::Empty, _) => status.into_response(),
        (ErrorBody::Truncated, _) => (status, "{\"error\": {\"co").into_response(),
        (ErrorBody::GitHub { message, documentation_url }, _) => {
            let mut said = json!({ "message": message });
            if let Some(link) = documentation_url {
                said["documentation_url"] = json!(link);
            }
            wire::json_response(status, &said)
        }
        (ErrorBody::Api, Api::GitHub) => github::Refusal::new(status, words).into_response(),
        (ErrorBody::Reason(message), Api::GitHub) => {
            github::Refusal::new(status, message).into_response()
        }
        (ErrorBody::Api, _) => Problem::new(status, "backendError", words).response(api),
        (ErrorBody::Reason(reason), _) => Problem::new(status, reason, reason).response(api),
    }
}

/// FNV-1a, for ids and fingerprints that only have to differ.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod testing;

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::compute::{Instance, Status};
    use super::github::{Hook, JobStatus, Runner, Scope};
    use super::testing::World;
    use super::*;

    const START: &str = "/compute/v1/projects/p/zones/asia-northeast1-a/instances/gpu-1/start";
    const TASKS: &str = "/v2/projects/p/locations/l/queues/q/tasks";

    async fn a_world_with_a_runner() -> World {
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
        let mut world = a_world_with_a_runner().await;
        let told = Arc::new(Mutex::new(Vec::new()));
        let listener = Arc::clone(&told);
        world.cloud.subscribe(move |happening| lock(&listener).push(format!("{happening:?}")));
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
        let mut told = lock(&told).clone();
        told.push(operation.to_string());
        told.extend(world.cloud.calls().iter().map(|call| format!("{call:?}")));
        told
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_calls_at_the_same_times_get_the_same_answers() {
        let first = story().await;
        assert_eq!(first, story().await);
        let statuses = first.iter().filter(|line| line.starts_with("Instance")).count();
        let webhooks = first.iter().filter(|line| line.starts_with("Webhook")).count();
        let callbacks = first.iter().filter(|line| line.starts_with("Callback")).count();
        assert_eq!((statuses, webhooks, callbacks), (3, 3, 2), "{first:#?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_crash_interrupts_the_queue_repeats_and_github_does_not() {
        let mut world = a_world_with_a_runner().await;
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
    async fn what_no_api_has_is_refused_in_its_own_shape() {
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
    async fn a_403_of_github_may_be_about_anything_but_a_permission() {
        let world = a_world_with_a_runner().await;
        let limits =
            "https://docs.github.com/en/rest/overview/resources-in-the-rest-api#abuse-rate-limits";
        let secondary = "https://docs.github.com/en/free-pro-team@latest/rest/overview/\
                         rate-limits-for-the-rest-api#about-secondary-rate-limits";
        for (body, words, link) in [
            (ErrorBody::abuse_limit(), "You have triggered an abuse detection", json!(limits)),
            (ErrorBody::secondary_limit(), "You have exceeded a secondary rate", json!(secondary)),
            (ErrorBody::ip_allow_list("acme"), "Although you appear to have the", Value::Null),
        ] {
            let fault = Fault::Before(StatusCode::FORBIDDEN, body);
            world.cloud.faults.next("actions.listSelfHostedRunnersForRepo", fault);
            let (status, headers, answer) = world.github("/repos/acme/app/actions/runners").await;
            assert_eq!((status, &answer["documentation_url"]), (StatusCode::FORBIDDEN, &link));
            let message = answer["message"].as_str().unwrap();
            assert!(message.starts_with(words), "{message}");
            assert!(!headers.contains_key("retry-after"), "{headers:?}");
        }
        world.cloud.github.suspend(true);
        let (status, _, answer) = world.github("/repos/acme/app/actions/runners").await;
        let expected = json!("This installation has been suspended");
        assert_eq!((status, &answer["message"]), (StatusCode::FORBIDDEN, &expected));
    }

    #[tokio::test(start_paused = true)]
    async fn a_fault_strikes_before_or_after_the_effect() {
        let world = a_world_with_a_runner().await;
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
