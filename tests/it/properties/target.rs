//! The service as a target for arbitrary bytes, for the properties here and for `fuzz/`.
//!
//! A request is text, as in HTTP: `POST /path`, headers, an empty line, the body. `X-Hub-Signature-256: right` and
//! `X-Runner-Secret: right` are replaced by valid values, which an attacker cannot guess. The service uses the embedded
//! cloud: a job runs on `gpu-1`, `runner-1` is up and idle, and no call fails.

use std::cell::RefCell;
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body_util::BodyExt;
use runner_manager::clock::Clock;
use runner_manager::config::Config;
use runner_manager::emulators::compute::{Instance, Status};
use runner_manager::emulators::github::{JobStatus, Runner, Scope};
use runner_manager::emulators::{Cloud, Driver};
use runner_manager::fleet::Label;
use tokio::runtime::Runtime;
use tower::ServiceExt;

use crate::harness::{self, SECRET, ZONE, in_process, sign};

const FLEET: &str = r#"[
    {"repo": "acme/app", "labels": ["self-hosted", "gpu"], "vm_instance_name": "gpu-1", "vm_instance_zone": "asia-northeast1-a"},
    {"repo": "acme/app", "labels": ["self-hosted"], "vm_instance_name": "runner-1", "vm_instance_zone": "asia-northeast1-a"}
]"#;

/// The longest time until the next pass: an hour, plus rounding and the difference between clocks.
const MAX_PASS_DELAY: Duration = Duration::from_secs(70 * 60);

/// Asserts the properties of every response, and of the cloud after it. Returns the response's body; `None` if an HTTP
/// parser would reject the request.
pub(crate) fn request_holds(request: &[u8]) -> Option<String> {
    thread_local! {
        static TARGET: RefCell<Target> = RefCell::new(Target::new());
    }
    TARGET.with_borrow_mut(|target| target.assert_holds(request))
}

struct Target {
    runtime: Runtime,
    cloud: Cloud,
    clock: Clock,
    service: Router,
}

struct Response {
    status: StatusCode,
    body: Bytes,
    outcome: Option<HeaderValue>,
}

/// A parsed request.
struct Message<'a> {
    path: &'a str,
    headers: Vec<(HeaderName, HeaderValue)>,
    is_authentic: bool,
    body: &'a [u8],
}

impl Target {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let clock = runtime.block_on(async { harness::clock() });
        let cloud = populated_cloud(&clock);
        let service = harness::service(FLEET, &cloud, &clock);
        let target = Self { runtime, cloud, clock, service };
        target.queue_long_job();
        target
    }

    /// Starts a job on `gpu-1` that runs longer than any test.
    fn queue_long_job(&self) {
        let labels = ["self-hosted", "gpu"];
        let job =
            self.cloud.github.queue_job("acme/app", labels, Duration::from_secs(5 * 24 * 3600));
        self.cloud.compute.start_by_hand("gpu-1");
        self.cloud.compute.start_by_hand("runner-1");
        let mut driver = Driver::new(in_process(self.service.clone()));
        let until = self.clock.now() + Duration::from_secs(600);
        self.runtime.block_on(self.cloud.run_until(&mut driver, Some(until)));
        assert_eq!(self.cloud.github.job(job).status, JobStatus::InProgress);
    }

    fn assert_holds(&mut self, request: &[u8]) -> Option<String> {
        self.cloud.tasks.purge();
        self.cloud.clear_calls();
        self.cloud.compute.set_status("runner-1", Status::Running);
        // The label of an earlier request would supersede most callbacks.
        for vm in ["gpu-1", "runner-1"] {
            self.cloud.compute.label_by_hand(vm, "runner-manager-idle-since", None);
        }
        let message = Message::parse(request)?;
        let is_authentic = message.is_authentic;
        let knows_the_secret =
            request.windows(SECRET.len()).any(|bytes| bytes == SECRET.as_bytes());
        let is_command = message.is_command();
        let scheduled = message.headers.iter().any(|(name, _)| name == "x-cloudtasks-taskname");
        let response = self.send(message);

        let text = String::from_utf8(response.body.to_vec()).expect("responses are UTF-8");
        let body: serde_json::Value = serde_json::from_str(&text).expect("responses are JSON");
        assert!(response.status.as_u16() < 500, "no call fails, but: {} {text}", response.status);
        if !is_authentic && !knows_the_secret {
            assert!(response.status.is_client_error(), "{} {text}", response.status);
            assert!(!is_command || response.status == StatusCode::UNAUTHORIZED, "{text}");
        }
        if !response.status.is_success() {
            assert!(body["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{text}");
        }
        let outcome = response.outcome.as_ref().map(|value| value.to_str().expect("visible ASCII"));
        if !knows_the_secret {
            assert!(!text.contains(SECRET) && !outcome.unwrap_or_default().contains(SECRET));
        }

        // A request that is refused has no effects.
        if response.status.is_client_error() {
            assert!(
                self.cloud.calls().is_empty(),
                "{} after {:?}",
                response.status,
                self.cloud.calls()
            );
        }
        // No callback may stop the busy VM, whatever its body; an operator may force it.
        if self.cloud.compute.status("gpu-1") != Status::Running {
            assert!(is_command && is_authentic && !scheduled, "{text}");
            *self = Self::new();
            return Some(text);
        }
        for task in self.cloud.tasks.pending() {
            assert!(
                task.due <= self.clock.now() + MAX_PASS_DELAY,
                "{}: no pass before {}",
                text,
                task.due
            );
        }
        Some(text)
    }

    fn send(&self, message: Message<'_>) -> Response {
        let mut request =
            Request::new(axum::body::Body::from(Bytes::copy_from_slice(message.body)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = message.path.parse().unwrap();
        for (name, value) in message.headers {
            request.headers_mut().append(name, value);
        }
        self.runtime.block_on(async {
            let response = self.service.clone().oneshot(request).await.unwrap();
            let (head, body) = response.into_parts();
            Response {
                status: head.status,
                body: body.collect().await.unwrap().to_bytes(),
                outcome: head.headers.get("x-runner-manager-outcome").cloned(),
            }
        })
    }
}

impl<'a> Message<'a> {
    /// Parses a request; `None` if an HTTP parser would reject it.
    fn parse(text: &'a [u8]) -> Option<Self> {
        let (head, body) = match text.windows(2).position(|bytes| bytes == b"\n\n") {
            Some(end) => (&text[..end], &text[end + 2..]),
            None => (text, &b""[..]),
        };
        let mut lines = head.split(|byte| *byte == b'\n');
        let path = std::str::from_utf8(lines.next()?.strip_prefix(b"POST ")?).ok()?;
        path.parse::<http::uri::PathAndQuery>().ok().filter(|_| path.starts_with('/'))?;
        let mut is_authentic = false;
        let mut headers = Vec::new();
        for line in lines {
            let colon = line.iter().position(|byte| *byte == b':')?;
            let name = HeaderName::from_bytes(&line[..colon]).ok()?;
            let value = line[colon + 1..].trim_ascii();
            let value = match (name.as_str(), value) {
                ("x-hub-signature-256", b"right") => {
                    HeaderValue::try_from(sign(SECRET, body)).ok()?
                }
                ("x-runner-secret", b"right") => HeaderValue::from_static(SECRET),
                _ => HeaderValue::from_bytes(value).ok()?,
            };
            let proof = if path.starts_with("/runner/") {
                "x-runner-secret"
            } else {
                "x-hub-signature-256"
            };
            // The service reads the first header of a name.
            if name == proof && !headers.iter().any(|(earlier, _)| *earlier == name) {
                is_authentic = value == SECRET || value == sign(SECRET, body);
            }
            headers.push((name, value));
        }
        Some(Self { path, headers, is_authentic, body })
    }

    fn is_command(&self) -> bool {
        let path = self.path.split('?').next();
        path == Some("/runner/start") || path == Some("/runner/stop")
    }
}

/// Asserts the properties of every RUNNER_CONFIG: it is accepted, and routes the jobs of each entry to a VM; or it is
/// rejected, and its problems are named without repeating a value.
pub(crate) fn runner_config_holds(text: &str) {
    match Config::from_vars(harness::vars(text)) {
        Ok(config) => {
            let fleet = &config.fleet;
            assert!(!fleet.entries().is_empty());
            for entry in fleet.entries() {
                assert!(!entry.labels.is_empty(), "it would match jobs for GitHub-hosted runners");
                let by_runner = !entry.runner_labels.is_empty();
                let job = if by_runner { &entry.runner_labels } else { &entry.labels };
                let routed = fleet.route(&entry.repo, job).expect("its own labels match");
                let among = |some: &[Label], all: &[Label]| some.iter().all(|l| all.contains(l));
                let first = fleet.entries().iter().find(|earlier| {
                    earlier.repo == entry.repo
                        && match earlier.runner_labels.as_slice() {
                            [] => among(&earlier.labels, job),
                            all => among(job, all),
                        }
                });
                assert_eq!(first.map(|first| &first.vm), Some(&routed.vm), "the first wins");
                let vm = fleet.vm(&entry.vm).expect("its VM is managed");
                assert!(vm.repos.contains(&entry.repo));
                let found = fleet.find(Some(&entry.vm.name), Some(&entry.vm.zone));
                assert_eq!(found.map(|found| &found.vm), Ok(&entry.vm));
            }
        }
        Err(problems) => {
            assert!(!problems.lines().is_empty());
            for line in problems.lines() {
                assert!(line.starts_with("RUNNER_CONFIG") && line.contains(": "), "{line}");
                // A value may be a secret in the wrong place.
                assert!(!line.contains(CANARY), "{line}");
            }
        }
    }
}

/// A value that no message may repeat.
pub(crate) const CANARY: &str = "hunter2";

fn populated_cloud(clock: &Clock) -> Cloud {
    let cloud = harness::cloud(clock);
    cloud.github.add_repository("acme/app");
    for (vm, labels) in [("gpu-1", &["self-hosted", "gpu"][..]), ("runner-1", &["self-hosted"])] {
        cloud.compute.insert(Instance::new(vm, ZONE));
        let scope = Scope::Repository("acme/app".into());
        cloud.github.add_runner(Runner::new(vm, scope, labels.iter().copied()));
    }
    cloud
}
