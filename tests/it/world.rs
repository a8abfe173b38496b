//! The whole system in one process: the service on the emulators, under a paused clock.
//!
//! The service is the real one down to its wire formats; only its connections end in the emulators' Routers. A story
//! changes the world, lets time pass, and asserts what is visible from outside. The promises are checked in every
//! story: [`World::settle`] waits until nothing is left to happen and then checks the whole history.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use runner_manager::clients::transport::HttpService;
use runner_manager::clock::{Clock, Timestamp};
use runner_manager::emulators::compute::{Instance, Status};
use runner_manager::emulators::github::{Hook, JobId, JobStatus, Runner, Scope};
use runner_manager::emulators::{Cloud, Driver, Event};
use tokio::sync::Notify;
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;

use crate::harness::{self, in_process};
pub(crate) use crate::harness::{SECRET, ZONE, sign};

/// The time that a VM stays up after its last job.
pub(crate) const INACTIVE: Duration = Duration::from_secs(3 * 60);

pub(crate) const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) const fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

/// The fleet of most stories: a GPU machine for one repository, and a VM that two share.
const FLEET: [(&str, &str, &str); 3] = [
    ("acme/app", r#"["self-hosted", "gpu"]"#, "gpu-1"),
    ("acme/app", r#"["self-hosted"]"#, "runner-1"),
    ("acme/web", r#"["self-hosted"]"#, "runner-1"),
];

/// RUNNER_CONFIG of that fleet, each entry with `more` fields.
pub(crate) fn fleet(more: &str) -> String {
    let entry = |(repo, labels, vm): (&str, &str, &str)| {
        format!(
            r#"{{"repo": "{repo}", "labels": {labels}, "vm_instance_name": "{vm}", "vm_instance_zone": "{ZONE}"{more}}}"#
        )
    };
    format!("[{}]", FLEET.map(entry).join(", "))
}

/// The service, the emulators and the clock of a story.
pub(crate) struct World {
    pub(crate) cloud: Cloud,
    pub(crate) clock: Clock,
    driver: Driver,
    service: Service,
    history: Arc<Mutex<Vec<Event>>>,
}

/// The service's response.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) outcome: String,
    pub(crate) body: serde_json::Value,
}

impl World {
    /// Both VMs stopped, their runners registered, and nothing to do.
    pub(crate) fn new() -> Self {
        Self::with_config(fleet(""))
    }

    /// The same with another RUNNER_CONFIG.
    pub(crate) fn with_config(config: String) -> Self {
        Self::inactive_for(INACTIVE.as_secs() / 60, config)
    }

    /// The same with another `VM_INACTIVE_MINUTES`.
    pub(crate) fn inactive_for(minutes: u64, config: String) -> Self {
        Self::with_service(config, move |config, cloud, clock| {
            harness::service_inactive_for(minutes, config, cloud, clock)
        })
    }

    /// The same with more variables.
    pub(crate) fn with_variables(more: &'static [(&'static str, &'static str)]) -> Self {
        Self::with_service(fleet(""), move |config, cloud, clock| {
            harness::service_with(more, config, cloud, clock)
        })
    }

    fn with_service(
        config: String,
        service: impl Fn(&str, &Cloud, &Clock) -> Router + Send + Sync + 'static,
    ) -> Self {
        let clock = harness::clock();
        let cloud = harness::cloud(&clock);
        for repo in ["acme/app", "acme/web"] {
            cloud.github.add_repository(repo);
        }
        for (vm, labels) in
            [("gpu-1", "self-hosted linux x64 gpu"), ("runner-1", "self-hosted linux x64")]
        {
            cloud
                .compute
                .insert(Instance { status: Status::Terminated, ..Instance::new(vm, ZONE) });
            for repo in ["acme/app", "acme/web"] {
                if vm == "runner-1" || repo == "acme/app" {
                    cloud.github.add_runner(runner(vm, repo, labels));
                }
            }
        }
        cloud.github.webhook(Hook {
            url: "https://service.example/github/webhook".into(),
            secret: SECRET.into(),
            form: false,
        });
        let history = Arc::<Mutex<Vec<Event>>>::default();
        let seen = Arc::clone(&history);
        cloud.subscribe(move |happening| seen.lock().unwrap().push(happening.clone()));
        let service = Service::new(config, {
            let (cloud, clock) = (cloud.clone(), clock.clone());
            move |config| service(config, &cloud, &clock)
        });
        let driver = Driver::new(service.http());
        Self { cloud, clock, driver, service, history }
    }

    /// Forces the VM into a status.
    pub(crate) fn vm(self, vm: &str, status: Status) -> Self {
        self.cloud.compute.set_status(vm, status);
        self
    }

    /// Lets time pass, with everything that is due in it.
    pub(crate) async fn pass(&mut self, span: Duration) {
        let until = self.clock.now() + span;
        self.cloud.run_until(&mut self.driver, Some(until)).await;
    }

    /// Lets time pass until `seen` holds; fails the story if it does not within `limit`.
    #[track_caller]
    pub(crate) fn pass_until<'a>(
        &'a mut self,
        limit: Duration,
        seen: impl Fn(&World) -> bool + 'a,
    ) -> impl Future<Output = ()> + 'a {
        let place = std::panic::Location::caller();
        async move {
            let end = self.clock.now() + limit;
            while !seen(self) {
                assert!(self.clock.now() < end, "{place}: not within {limit:?}\n{}", self.story());
                self.pass(seconds(1)).await;
            }
        }
    }

    /// Queues a job that will run for this long.
    pub(crate) fn queue_job(&self, repo: &str, labels: &str, runs: Duration) -> JobId {
        self.cloud.github.queue_job(repo, words(labels), runs)
    }

    /// Ends the service in the middle of its work. A new instance takes over.
    pub(crate) fn crash(&mut self) {
        self.service.vanish();
    }

    /// The running service, for a story that ends or replaces it.
    pub(crate) fn service(&self) -> Service {
        self.service.clone()
    }

    pub(crate) fn status(&self, vm: &str) -> Status {
        self.cloud.compute.status(vm)
    }

    pub(crate) fn is_stopped(&self, vm: &str) -> bool {
        self.status(vm) == Status::Terminated
    }

    pub(crate) fn is_started(&self, job: JobId) -> bool {
        self.cloud.github.job(job).status == JobStatus::InProgress
    }

    pub(crate) fn is_completed(&self, job: JobId) -> bool {
        self.cloud.github.job(job).status == JobStatus::Completed
    }

    /// The `idle_since` label of the VM.
    pub(crate) fn idle_since(&self, vm: &str) -> Option<u64> {
        self.cloud
            .compute
            .labels(vm)
            .get("runner-manager-idle-since")
            .and_then(|mark| mark.parse().ok())
    }

    /// The time at which the VM last came to this status.
    pub(crate) fn last(&self, vm: &str, status: Status) -> Option<Timestamp> {
        let history = self.cloud.compute.history(vm);
        history.iter().rev().find(|(_, then, _)| *then == status).map(|(at, ..)| *at)
    }

    /// The number of starts of the VM.
    pub(crate) fn starts(&self, vm: &str) -> usize {
        let history = self.cloud.compute.history(vm);
        history.iter().filter(|(_, status, _)| *status == Status::Provisioning).count()
    }

    /// The number of API calls of this method.
    pub(crate) fn count(&self, method: &str) -> usize {
        self.cloud.calls().iter().filter(|call| call.method == method).count()
    }

    /// The answers to webhooks and callbacks so far: status and outcome.
    pub(crate) fn outcomes(&self) -> Vec<(StatusCode, String)> {
        let answered = |happening: &Event| match happening {
            Event::Webhook { reply, .. } | Event::Callback { reply, .. } => {
                let outcome = reply
                    .headers
                    .get("x-runner-manager-outcome")
                    .and_then(|value| value.to_str().ok());
                Some((reply.status?, outcome.unwrap_or_default().to_owned()))
            }
            _ => None,
        };
        self.history.lock().unwrap().iter().filter_map(answered).collect()
    }

    /// True if an answer so far said this.
    pub(crate) fn was_told(&self, words: &str) -> bool {
        self.outcomes().iter().any(|(_, outcome)| outcome.contains(words))
    }

    /// Waits until nothing is left to happen, then checks the whole history against the promises.
    #[track_caller]
    pub(crate) fn settle(&mut self) -> impl Future<Output = ()> + '_ {
        let place = std::panic::Location::caller();
        async move {
            let end = self.clock.now() + minutes(36 * 60);
            while !self.is_quiet() {
                assert!(self.clock.now() < end, "{place}: never comes to rest\n{}", self.story());
                self.pass(minutes(1)).await;
            }
            let broken = self.broken_promises();
            assert!(broken.is_empty(), "{place}: {broken:#?}\n{}", self.story());
        }
    }

    /// The events so far.
    pub(crate) fn history(&self) -> Vec<Event> {
        self.history.lock().unwrap().clone()
    }

    /// True if no task is pending, no request is in flight, and every VM is stopped or suspended.
    pub(crate) fn is_quiet(&self) -> bool {
        let vms = self.cloud.compute.instances();
        self.cloud.tasks.pending().is_empty()
            && self.driver.in_flight() == 0
            && vms
                .iter()
                .all(|vm| matches!(self.status(vm), Status::Terminated | Status::Suspended))
    }

    /// The violations of promises in the history.
    fn broken_promises(&self) -> Vec<String> {
        let mut broken = Vec::new();
        for job in self.cloud.github.jobs() {
            if job.status != JobStatus::Completed {
                broken.push(format!("never strand: job {} is {:?} in the end", job.id, job.status));
            }
            for vm in self.cloud.compute.instances() {
                for (at, status, cause) in self.cloud.compute.history(&vm) {
                    let here = job.runner_name.as_deref() == Some(vm.as_str());
                    let runs = job.started_at.is_some_and(|start| start <= at)
                        && job.completed_at.is_none_or(|end| at < end);
                    if here
                        && runs
                        && status == Status::Stopping
                        && cause.contains("instances.stop")
                    {
                        broken.push(format!(
                            "never kill: {vm} was stopped at {at} while job {} ran",
                            job.id
                        ));
                    }
                }
            }
        }
        broken
    }

    /// The history in words, for the message of a failed test.
    pub(crate) fn story(&self) -> String {
        self.history
            .lock()
            .unwrap()
            .iter()
            .map(|happening| format!("{}\n", describe(happening)))
            .collect()
    }

    /// Sends the service a request.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let mut request = Request::new(axum::body::Body::from(body.into()));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().unwrap();
        for (name, value) in headers {
            let name: http::HeaderName = name.parse().unwrap();
            request
                .headers_mut()
                .append(name, http::HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let answer = self.exchange(request).await;
        let outcome = answer.headers().get("x-runner-manager-outcome");
        let outcome = outcome.map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
        Answer {
            status: answer.status(),
            outcome,
            body: serde_json::from_slice(answer.body()).unwrap_or(serde_json::Value::Null),
        }
    }

    /// Sends the service a request, and returns the whole response.
    pub(crate) async fn exchange(
        &self,
        request: Request<axum::body::Body>,
    ) -> http::Response<Bytes> {
        let (head, body) = self.service.router().oneshot(request).await.unwrap().into_parts();
        http::Response::from_parts(head, body.collect().await.unwrap().to_bytes())
    }

    /// The fleet's status, as an operator sees it.
    pub(crate) async fn report(&self) -> serde_json::Value {
        let secret = [("X-Runner-Secret", SECRET)];
        let answer = self.send(Method::GET, "/runner/status", &secret, "").await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        answer.body
    }

    /// The findings of a resync.
    pub(crate) async fn resync(&self) -> serde_json::Value {
        let answer = self.command("/runner/reconcile", "{}").await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        answer.body
    }

    /// An operator's command.
    pub(crate) async fn command(&self, path: &str, body: &str) -> Answer {
        self.send(Method::POST, path, &[("X-Runner-Secret", SECRET)], body.to_owned()).await
    }

    /// A task's callback, as Cloud Tasks would send it.
    pub(crate) async fn callback(&self, path: &str, body: &str) -> Answer {
        let headers = [
            ("X-Runner-Secret", SECRET),
            ("X-CloudTasks-TaskName", "0123abcd"),
            ("X-CloudTasks-QueueName", "runner-manager"),
            ("Content-Type", "application/json"),
        ];
        self.send(Method::POST, path, &headers, body.to_owned()).await
    }

    /// A webhook, signed.
    pub(crate) async fn webhook(&self, event: &str, body: &str) -> Answer {
        let signature = sign(SECRET, body.as_bytes());
        let headers = [
            ("X-Hub-Signature-256", signature.as_str()),
            ("X-GitHub-Event", event),
            ("X-GitHub-Delivery", "72d3162e-cc78-11e3-81ab-4c9367dc0958"),
            ("Content-Type", "application/json"),
        ];
        self.send(Method::POST, "/github/webhook", &headers, body.to_owned()).await
    }
}

/// The service, one instance at a time.
#[derive(Clone)]
pub(crate) struct Service(Arc<Instances>);

struct Instances {
    config: Mutex<String>,
    build: Box<dyn Fn(&str) -> Router + Send + Sync>,
    current: Mutex<Option<Router>>,
    vanished: Notify,
}

impl Service {
    fn new(config: String, build: impl Fn(&str) -> Router + Send + Sync + 'static) -> Self {
        Self(Arc::new(Instances {
            config: Mutex::new(config),
            build: Box::new(build),
            current: Mutex::default(),
            vanished: Notify::new(),
        }))
    }

    fn router(&self) -> Router {
        let build = || (self.0.build)(&self.0.config.lock().unwrap());
        self.0.current.lock().unwrap().get_or_insert_with(build).clone()
    }

    /// Drops the work in progress and everything in memory.
    pub(crate) fn vanish(&self) {
        self.replace();
        self.0.vanished.notify_waiters();
    }

    /// Sends the next request to a revision with this RUNNER_CONFIG.
    pub(crate) fn deploy(&self, config: String) {
        *self.0.config.lock().unwrap() = config;
        self.replace();
    }

    /// Sends the next request to a new instance. The old one finishes its work.
    pub(crate) fn replace(&self) {
        *self.0.current.lock().unwrap() = None;
    }

    /// A resync, as a scheduler requests it, and its response, unless the instance vanishes.
    pub(crate) async fn resync(&self) -> Option<(StatusCode, Bytes)> {
        let request = Request::post("https://service.example/runner/reconcile")
            .header("X-Runner-Secret", SECRET)
            .body(Full::default())
            .unwrap();
        let answer = self.http().oneshot(request).await.ok()?;
        let (head, body) = answer.into_parts();
        Some((head.status, body))
    }

    /// The service as a transport.
    pub(crate) fn http(&self) -> HttpService {
        let service = self.clone();
        BoxCloneSyncService::new(tower::service_fn(move |request: Request<Full<Bytes>>| {
            let service = service.clone();
            async move {
                tokio::select! {
                    biased;
                    () = service.0.vanished.notified() => Err("the instance vanished".into()),
                    answer = in_process(service.router()).oneshot(request) => answer,
                }
            }
        }))
    }
}

/// A runner on `vm`, registered in `repo`.
pub(crate) fn runner(vm: &str, repo: &str, labels: &str) -> Runner {
    Runner::new(vm, Scope::Repository(repo.into()), words(labels))
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn describe(happening: &Event) -> String {
    let answer = |reply: &runner_manager::emulators::Reply| {
        let outcome =
            reply.headers.get("x-runner-manager-outcome").and_then(|value| value.to_str().ok());
        format!("{:?} {}", reply.status, outcome.unwrap_or_default())
    };
    match happening {
        Event::Instance { at, vm, status, cause } => format!("{at} {vm} is {status} ({cause})"),
        Event::Webhook { at, action, job, reply, .. } => {
            format!("{at} webhook {action} {job}: {}", answer(reply))
        }
        Event::Callback { at, path, body, attempt, reply, .. } => {
            format!("{at} {path} #{attempt} {body}: {}", answer(reply))
        }
        Event::Job { at, id, repo, status, runner } => {
            format!("{at} job {id} of {repo} is {status:?} on {runner:?}")
        }
        Event::Runner { at, name, online } => format!("{at} runner {name} online: {online}"),
    }
}
