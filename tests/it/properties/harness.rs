//! The service as a target for whatever bytes there are: used by the quick cases here and by `fuzz/`.
//!
//! A request is written as text, as in HTTP: `POST /path`, headers, an empty line, the body. Two values stand for
//! what a stranger cannot know: `X-Hub-Signature-256: right` and `X-Runner-Secret: right`. Behind the service is the
//! embedded cloud: a job runs on `gpu-1`, `runner-1` is up and idle, and nothing fails.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use gcp_auth::{Token, TokenProvider};
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use runner_manager::clients::google::Credentials;
use runner_manager::clients::transport::HttpService;
use runner_manager::clock::{Clock, Timestamp};
use runner_manager::config::Config;
use runner_manager::emulators::compute::{Instance, Status};
use runner_manager::emulators::github::{JobStatus, Runner, Scope};
use runner_manager::emulators::{Cloud, Driver, Keys, Setup};
use runner_manager::routes;
use runner_manager::state::AppState;
use tokio::runtime::Runtime;
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;

const SECRET: &str = "It's a Secret to Everybody";
const GOOGLE_TOKEN: &str = "ya29.of-the-properties";
const ZONE: &str = "asia-northeast1-a";
const FLEET: &str = r#"[
    {"repo": "acme/app", "labels": ["self-hosted", "gpu"], "vm_instance_name": "gpu-1", "vm_instance_zone": "asia-northeast1-a"},
    {"repo": "acme/app", "labels": ["self-hosted"], "vm_instance_name": "runner-1", "vm_instance_zone": "asia-northeast1-a"}
]"#;

/// Later than this after now, nobody asks for the next look: an hour's delay, and what rounding and a clock's
/// difference add to it.
const FARTHEST_LOOK: Duration = Duration::from_secs(70 * 60);

/// The service and its cloud, on a clock of their own.
pub(crate) struct Target {
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
    pub(crate) fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let clock = runtime
            .block_on(async { Clock::paced(Timestamp::parse("2026-11-24T09:00:07Z").unwrap(), 1) });
        let cloud = cloud(&clock);
        let service = routes::router(state(&cloud, &clock));
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

    /// What is true of every answer to every request, and of the cloud behind it.
    pub(crate) fn holds_for(&mut self, request: &[u8]) {
        self.cloud.tasks.purge();
        self.cloud.clear_calls();
        self.cloud.compute.set_status("runner-1", Status::Running);
        let Some(message) = Message::parse(request) else { return };
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
            return *self = Self::new();
        }
        for task in self.cloud.tasks.pending() {
            assert!(
                task.due <= self.clock.now() + FARTHEST_LOOK,
                "{}: nobody looks before {}",
                text,
                task.due
            );
        }
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
                ("x-hub-signature-256", b"right") => HeaderValue::try_from(signature(body)).ok()?,
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
                is_right = value == SECRET || value == signature(body);
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
    match Config::from_vars(vars(text)) {
        Ok(config) => {
            let fleet = &config.fleet;
            assert!(!fleet.entries().is_empty());
            for entry in fleet.entries() {
                assert!(!entry.labels.is_empty(), "it would match GitHub's own runners");
                let routed = fleet.route(&entry.repo, &entry.labels).expect("its own labels match");
                let first = fleet.entries().iter().find(|earlier| {
                    let has = |label| entry.labels.contains(label);
                    earlier.repo == entry.repo && earlier.labels.iter().all(has)
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

fn signature(body: &[u8]) -> String {
    let mac = Hmac::<sha2::Sha256>::new_from_slice(SECRET.as_bytes()).unwrap().chain_update(body);
    let bytes = mac.finalize().into_bytes();
    format!("sha256={}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

fn cloud(clock: &Clock) -> Cloud {
    let setup = Setup {
        project: "my-project".into(),
        location: "asia-northeast1".into(),
        queue: "runner-manager".into(),
        app_id: "123456".into(),
        installation_id: 12_345_678,
        keys: keys(),
    };
    let cloud = Cloud::new(setup, clock.clone());
    cloud.accounts.accept(GOOGLE_TOKEN);
    cloud.github.add_repository("acme/app");
    for (vm, labels) in [("gpu-1", &["self-hosted", "gpu"][..]), ("runner-1", &["self-hosted"])] {
        cloud.compute.insert(Instance::new(vm, ZONE));
        let labels: Vec<&str> = labels.to_vec();
        cloud.github.add_runner(Runner::new(vm, Scope::Repository("acme/app".into()), labels));
    }
    cloud
}

fn state(cloud: &Cloud, clock: &Clock) -> AppState {
    let config = Config::from_vars(vars(FLEET)).unwrap();
    let credentials = Credentials::new(Arc::new(OneToken));
    AppState::new(config, in_process(cloud.router()), credentials, clock.clone())
}

fn vars(runner_config: &str) -> BTreeMap<OsString, OsString> {
    let keys = keys();
    let vars = [
        ("GCP_PROJECT_ID", "my-project"),
        ("CLOUD_TASK_LOCATION", "asia-northeast1"),
        ("CLOUD_TASK_QUEUE_NAME", "runner-manager"),
        ("CLOUD_RUN_SERVICE_URL", "http://service.example"),
        ("RUNNER_MANAGER_SECRET", SECRET),
        ("GITHUB_APP_ID", "123456"),
        ("GITHUB_APP_INSTALLATION_ID", "12345678"),
        ("GITHUB_APP_PRIVATE_KEY", keys.app_private_key_pem()),
        ("COMPUTE_API_URL", "http://compute.example"),
        ("CLOUD_TASKS_API_URL", "http://tasks.example"),
        ("GITHUB_API_URL", "http://github.example"),
        ("RUNNER_CONFIG", runner_config),
    ];
    vars.into_iter().map(|(name, value)| (name.into(), value.into())).collect()
}

fn keys() -> Arc<Keys> {
    static KEYS: OnceLock<Arc<Keys>> = OnceLock::new();
    Arc::clone(KEYS.get_or_init(|| Arc::new(Keys::generate())))
}

fn in_process(router: Router) -> HttpService {
    BoxCloneSyncService::new(tower::service_fn(move |request: Request<Full<Bytes>>| {
        let router = router.clone();
        async move {
            let answer = router.oneshot(request.map(axum::body::Body::new)).await?;
            let (head, body) = answer.into_parts();
            Ok(http::Response::from_parts(head, body.collect().await?.to_bytes()))
        }
    }))
}

struct OneToken;

#[async_trait::async_trait]
impl TokenProvider for OneToken {
    async fn token(&self, _scopes: &[&str]) -> Result<Arc<Token>, gcp_auth::Error> {
        let token = serde_json::json!({ "access_token": GOOGLE_TOKEN, "expires_in": 3600 });
        Ok(Arc::new(serde_json::from_value(token).expect("a token's documented form")))
    }

    async fn project_id(&self) -> Result<Arc<str>, gcp_auth::Error> {
        Ok("my-project".into())
    }
}
