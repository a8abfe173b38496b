//! The service as a target for whatever bytes there are: used by the quick cases here and by `fuzz/`.
//!
//! A request is written as text, as in HTTP: `POST /path`, headers, an empty line, the body. Two values stand for
//! what a stranger cannot know: `X-Hub-Signature-256: right` and `X-Runner-Secret: right`. Behind the service is the
//! embedded cloud: a job runs on `gpu-1`, `runner-1` is up and idle, and nothing fails.

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

use crate::stand::{self, SECRET, ZONE, in_process, sign};

const FLEET: &str = r#"[
    {"repo": "acme/app", "labels": ["self-hosted", "gpu"], "vm_instance_name": "gpu-1", "vm_instance_zone": "asia-northeast1-a"},
    {"repo": "acme/app", "labels": ["self-hosted"], "vm_instance_name": "runner-1", "vm_instance_zone": "asia-northeast1-a"}
]"#;

/// Later than this after now, nobody asks for the next look: an hour's delay, and what rounding and a clock's
/// difference add to it.
const FARTHEST_LOOK: Duration = Duration::from_secs(70 * 60);

/// What is true of every answer to every request, and of the cloud behind it. The answer's body; none to what HTTP's
/// own parser would refuse.
pub(crate) fn request_holds(request: &[u8]) -> Option<String> {
    thread_local! {
        static TARGET: RefCell<Target> = RefCell::new(Target::new());
    }
    TARGET.with_borrow_mut(|target| target.holds_for(request))
}

/// The service and its cloud, on a clock of their own.
struct Target {
    runtime: Runtime,
    cloud: Cloud,
    clock: Clock,
    service: Router,
}

/// What came back.
struct Answer {
    status: StatusCode,
    body: Bytes,
    outcome: Option<HeaderValue>,
}

/// A request as text.
struct Message<'a> {
    path: &'a str,
    headers: Vec<(HeaderName, HeaderValue)>,
    is_right: bool,
    body: &'a [u8],
}

impl Target {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let clock = runtime.block_on(async { stand::clock() });
        let cloud = furnished(&clock);
        let service = stand::service(FLEET, &cloud, &clock);
        let target = Self { runtime, cloud, clock, service };
        target.give_it_work();
        target
    }

    /// A job runs on `gpu-1` for longer than anybody looks.
    fn give_it_work(&self) {
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

    fn holds_for(&mut self, request: &[u8]) -> Option<String> {
        self.cloud.tasks.purge();
        self.cloud.clear_calls();
        self.cloud.compute.set_status("runner-1", Status::Running);
        // A mark that an earlier request left would supersede most callbacks.
        for vm in ["gpu-1", "runner-1"] {
            self.cloud.compute.label_by_hand(vm, "runner-manager-idle-since", None);
        }
        let message = Message::parse(request)?;
        let is_right = message.is_right;
        let knows_the_secret =
            request.windows(SECRET.len()).any(|bytes| bytes == SECRET.as_bytes());
        let is_command = message.is_command();
        let scheduled = message.headers.iter().any(|(name, _)| name == "x-cloudtasks-taskname");
        let answer = self.ask(message);

        let text = String::from_utf8(answer.body.to_vec()).expect("answers are UTF-8");
        let body: serde_json::Value = serde_json::from_str(&text).expect("answers are JSON");
        assert!(answer.status.as_u16() < 500, "nothing fails, but: {} {text}", answer.status);
        if !is_right && !knows_the_secret {
            assert!(answer.status.is_client_error(), "{} {text}", answer.status);
            assert!(!is_command || answer.status == StatusCode::UNAUTHORIZED, "{text}");
        }
        if !answer.status.is_success() {
            assert!(body["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{text}");
        }
        let outcome = answer.outcome.as_ref().map(|value| value.to_str().expect("visible ASCII"));
        if !knows_the_secret {
            assert!(!text.contains(SECRET) && !outcome.unwrap_or_default().contains(SECRET));
        }

        // Whoever cannot prove that he may ask moves nothing.
        if answer.status.is_client_error() {
            assert!(
                self.cloud.calls().is_empty(),
                "{} after {:?}",
                answer.status,
                self.cloud.calls()
            );
        }
        // A job runs on it: no callback may stop it, whatever it carries. An operator may insist.
        if self.cloud.compute.status("gpu-1") != Status::Running {
            assert!(is_command && is_right && !scheduled, "{text}");
            *self = Self::new();
            return Some(text);
        }
        for task in self.cloud.tasks.pending() {
            assert!(
                task.due <= self.clock.now() + FARTHEST_LOOK,
                "{}: nobody looks before {}",
                text,
                task.due
            );
        }
        Some(text)
    }

    fn ask(&self, message: Message<'_>) -> Answer {
        let mut request =
            Request::new(axum::body::Body::from(Bytes::copy_from_slice(message.body)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = message.path.parse().unwrap();
        for (name, value) in message.headers {
            request.headers_mut().append(name, value);
        }
        self.runtime.block_on(async {
            let answer = self.service.clone().oneshot(request).await.unwrap();
            let (head, body) = answer.into_parts();
            Answer {
                status: head.status,
                body: body.collect().await.unwrap().to_bytes(),
                outcome: head.headers.get("x-runner-manager-outcome").cloned(),
            }
        })
    }
}

impl<'a> Message<'a> {
    /// None for what HTTP's own parser would refuse.
    fn parse(text: &'a [u8]) -> Option<Self> {
        let (head, body) = match text.windows(2).position(|bytes| bytes == b"\n\n") {
            Some(end) => (&text[..end], &text[end + 2..]),
            None => (text, &b""[..]),
        };
        let mut lines = head.split(|byte| *byte == b'\n');
        let path = std::str::from_utf8(lines.next()?.strip_prefix(b"POST ")?).ok()?;
        path.parse::<http::uri::PathAndQuery>().ok().filter(|_| path.starts_with('/'))?;
        let mut is_right = false;
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
            // The first of a name counts.
            if name == proof && !headers.iter().any(|(earlier, _)| *earlier == name) {
                is_right = value == SECRET || value == sign(SECRET, body);
            }
            headers.push((name, value));
        }
        Some(Self { path, headers, is_right, body })
    }

    fn is_command(&self) -> bool {
        let path = self.path.split('?').next();
        path == Some("/runner/start") || path == Some("/runner/stop")
    }
}

/// What is true of every RUNNER_CONFIG: it is taken, and then leads every job of every entry to a VM, or it is
/// refused with places and reasons, none of which repeats a value.
pub(crate) fn runner_config_holds(text: &str) {
    match Config::from_vars(stand::vars(text)) {
        Ok(config) => {
            let fleet = &config.fleet;
            assert!(!fleet.entries().is_empty());
            for entry in fleet.entries() {
                assert!(!entry.labels.is_empty(), "it would match GitHub's own runners");
                // All that its runner has, if that is told, or no more than it asks for.
                let told = !entry.runner_labels.is_empty();
                let job = if told { &entry.runner_labels } else { &entry.labels };
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
                // What a value may hold if a secret was put into the wrong place.
                assert!(!line.contains(CANARY), "{line}");
            }
        }
    }
}

/// A value that no message may repeat.
pub(crate) const CANARY: &str = "hunter2";

fn furnished(clock: &Clock) -> Cloud {
    let cloud = stand::cloud(clock);
    cloud.github.add_repository("acme/app");
    for (vm, labels) in [("gpu-1", &["self-hosted", "gpu"][..]), ("runner-1", &["self-hosted"])] {
        cloud.compute.insert(Instance::new(vm, ZONE));
        let scope = Scope::Repository("acme/app".into());
        cloud.github.add_runner(Runner::new(vm, scope, labels.iter().copied()));
    }
    cloud
}
