//! The embedded cloud on its own thread, and the compiled program as a child process that uses it.
//!
//! Cloud, program and load have separate event loops, so that latencies are the program's. The child process ends with the
//! stage.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::middleware::map_response;
use axum::serve::ListenerExt;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http::header::{CONNECTION, HeaderValue};
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use runner_manager::clients::transport::{BoxError, HttpService, over_tls};
use runner_manager::clock::{Clock, Timestamp};
use runner_manager::emulators::compute::Instance;
use runner_manager::emulators::github::{Hook, Runner, Scope};
use runner_manager::emulators::{Cloud, Driver, Keys, Setup};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tower::ServiceExt;

/// The shared secret, which must not appear in responses and logs.
pub(crate) const SECRET: &str = "not-to-be-seen-5f1c0e77";

/// The repository that has VMs.
pub(crate) const REPO: &str = "acme/app";

/// The concurrency of an instance on Cloud Run, as the README deploys it.
pub(crate) const CONCURRENCY: usize = 80;

/// GitHub's timeout for a delivery.
pub(crate) const GITHUB_TIMEOUT: Duration = Duration::from_secs(10);

const ZONE: &str = "asia-northeast1-a";
const PROJECT: &str = "my-project";
const LOCATION: &str = "asia-northeast1";
const QUEUE: &str = "runner-manager";
const APP_ID: &str = "123456";
const INSTALLATION_ID: u64 = 12_345_678;

/// The name of a VM, and of its runner.
pub(crate) fn vm(number: usize) -> String {
    format!("runner-{number}")
}

/// The labels of jobs that only this VM's runner matches.
pub(crate) fn labels(number: usize) -> [String; 2] {
    ["self-hosted".to_owned(), format!("pool-{number}")]
}

/// The use of connections, to the program and to the cloud.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Connections {
    /// A connection is used again.
    Kept,
    /// A connection is closed after its response, so that only requests in flight have one.
    UsedOnce,
}

pub(crate) struct Stage {
    pub(crate) cloud: Cloud,
    pub(crate) clock: Clock,
    pub(crate) program: Program,
    http: HttpService,
    url: String,
    /// The cloud's thread ends when this is dropped.
    _cloud_runs: oneshot::Sender<()>,
    _files: tempfile::TempDir,
}

/// The program's response to a request.
pub(crate) struct Response {
    /// `None` if there was no response in time.
    pub(crate) status: Option<StatusCode>,
    /// The response contains the secret.
    pub(crate) leaks: bool,
}

impl Stage {
    /// Starts the program with this number of VMs, all stopped.
    pub(crate) async fn new(
        vms: usize,
        inactive_minutes: u64,
        connections: Connections,
    ) -> Result<Self, BoxError> {
        let clock = Clock::system();
        let keys = Arc::new(Keys::generate());
        let setup = Setup {
            project: PROJECT.into(),
            location: LOCATION.into(),
            queue: QUEUE.into(),
            app_id: APP_ID.into(),
            installation_id: INSTALLATION_ID,
            keys: Arc::clone(&keys),
        };
        let cloud = Cloud::new(setup, clock.clone());
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let cloud_url = format!("http://{}", listener.local_addr()?);
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let url = format!("http://127.0.0.1:{port}");
        populate(&cloud, vms, &url);
        let (cloud_runs, until) = oneshot::channel();
        std::thread::spawn({
            let cloud = cloud.clone();
            move || {
                run_cloud(&cloud, listener, connections, until)
                    .expect("the embedded cloud can be served")
            }
        });

        let files = tempfile::tempdir()?;
        let account = files.path().join("google.json");
        std::fs::write(&account, keys.service_account_json(&format!("{cloud_url}/token")))?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_runner-manager"));
        command.env_clear().env("GOOGLE_APPLICATION_CREDENTIALS", account).envs([
            ("GCP_PROJECT_ID", PROJECT),
            ("CLOUD_TASK_LOCATION", LOCATION),
            ("CLOUD_TASK_QUEUE_NAME", QUEUE),
            ("CLOUD_RUN_SERVICE_URL", &url),
            ("RUNNER_MANAGER_SECRET", SECRET),
            ("VM_INACTIVE_MINUTES", &inactive_minutes.to_string()),
            ("GITHUB_APP_ID", APP_ID),
            ("GITHUB_APP_PRIVATE_KEY", keys.app_private_key_pem()),
            ("GITHUB_APP_INSTALLATION_ID", &INSTALLATION_ID.to_string()),
            ("COMPUTE_API_URL", &cloud_url),
            ("CLOUD_TASKS_API_URL", &cloud_url),
            ("GITHUB_API_URL", &cloud_url),
            ("RUNNER_CONFIG", &fleet(vms)),
            ("PORT", &port.to_string()),
        ]);
        let program = Program::start(command)?;
        let http = connections.client()?;
        let stage =
            Self { cloud, clock, program, http, url, _cloud_runs: cloud_runs, _files: files };
        stage.wait_until_ready().await?;
        Ok(stage)
    }

    async fn wait_until_ready(&self) -> Result<(), BoxError> {
        for _ in 0..500 {
            let health = self.request(Method::GET, "/health", &[], "")?;
            if self.http.clone().oneshot(health).await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err("the program did not open its port within 10 s".into())
    }

    pub(crate) fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Request<Full<Bytes>>, BoxError> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Ok(request.body(Full::new(body.into()))?)
    }

    /// A webhook delivery, signed with `secret`.
    pub(crate) fn delivery(
        &self,
        event: &str,
        body: String,
        secret: &str,
    ) -> Result<Request<Full<Bytes>>, BoxError> {
        let headers = [
            ("X-GitHub-Event", event),
            ("X-GitHub-Delivery", "72d3162e-cc78-11e3-81ab-4c9367dc0958"),
            ("X-Hub-Signature-256", &sign(secret, body.as_bytes())),
            ("Content-Type", "application/json"),
        ];
        self.request(Method::POST, "/github/webhook", &headers, body)
    }

    /// Sends a request with GitHub's timeout. The future does not borrow the stage.
    pub(crate) fn send(
        &self,
        request: Request<Full<Bytes>>,
    ) -> impl Future<Output = Response> + use<> {
        let response = self.http.clone().oneshot(request);
        async move {
            match tokio::time::timeout(GITHUB_TIMEOUT, response).await {
                Ok(Ok(response)) => {
                    let headers = response.headers().values().any(|value| leaks(value.as_bytes()));
                    let leaks = headers || leaks(response.body());
                    Response { status: Some(response.status()), leaks }
                }
                Ok(Err(_)) | Err(_) => Response { status: None, leaks: false },
            }
        }
    }

    /// The number of the VM's pending tasks.
    pub(crate) fn tasks_of(&self, vm: &str) -> usize {
        let tasks = self.cloud.tasks.pending();
        tasks.iter().filter(|task| task.body["vm_instance_name"] == vm).count()
    }

    /// The value of the VM's label.
    pub(crate) fn idle_since(&self, vm: &str) -> Option<Timestamp> {
        let labels = self.cloud.compute.labels(vm);
        let seconds = labels.get("runner-manager-idle-since")?.parse().ok()?;
        Some(Timestamp::from_unix_seconds(seconds))
    }
}

impl Connections {
    /// The client for requests to the program.
    fn client(self) -> Result<HttpService, BoxError> {
        let http = over_tls()?;
        Ok(match self {
            Self::Kept => http,
            Self::UsedOnce => {
                HttpService::new(http.map_request(|mut request: Request<Full<Bytes>>| {
                    request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                    request
                }))
            }
        })
    }

    /// The cloud's APIs for the program.
    fn server(self, apis: Router) -> Router {
        match self {
            Self::Kept => apis,
            Self::UsedOnce => {
                apis.layer(map_response(|mut response: axum::response::Response| async {
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                    response
                }))
            }
        }
    }
}

fn fleet(vms: usize) -> String {
    let entry = |number| {
        json!({
            "repo": REPO,
            "labels": labels(number),
            "vm_instance_name": vm(number),
            "vm_instance_zone": ZONE,
        })
    };
    Value::from_iter((1..=vms).map(entry)).to_string()
}

/// Adds the VMs, their runners, and the webhook.
fn populate(cloud: &Cloud, vms: usize, url: &str) {
    cloud.github.add_repository(REPO);
    for number in 1..=vms {
        cloud.compute.insert(Instance::new(&vm(number), ZONE));
        let scope = Scope::Repository(REPO.into());
        cloud.github.add_runner(Runner::new(&vm(number), scope, labels(number)));
    }
    let url = format!("{url}/github/webhook");
    cloud.github.webhook(Hook { url, secret: SECRET.into(), form: false });
}

/// Serves and runs the cloud until the stage is dropped.
fn run_cloud(
    cloud: &Cloud,
    listener: TcpListener,
    connections: Connections,
    until: oneshot::Receiver<()>,
) -> Result<(), BoxError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?.tap_io(|connection| {
            connection.set_nodelay(true).ok();
        });
        let mut driver = Driver::new(connections.client()?);
        let apis = connections.server(cloud.router());
        tokio::select! {
            biased;
            _ = until => Ok(()),
            result = std::future::IntoFuture::into_future(axum::serve(listener, apis)) => {
                result.map_err(Into::into)
            }
            () = cloud.run_until(&mut driver, None) => Ok(()),
        }
    })
}

/// GitHub's signature of a body, as the value of its header.
fn sign(secret: &str, body: &[u8]) -> String {
    let mac = Hmac::<sha2::Sha256>::new_from_slice(secret.as_bytes())
        .expect("HMAC takes keys of any length")
        .chain_update(body);
    let bytes = mac.finalize().into_bytes();
    format!("sha256={}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

/// The text contains the secret.
pub(crate) fn leaks(text: &[u8]) -> bool {
    text.windows(SECRET.len()).any(|window| window == SECRET.as_bytes())
}

/// The payload of a `workflow_job` event for a job of a VM.
pub(crate) fn workflow_job(action: &str, repo: &str, job: u64, number: usize) -> String {
    const QUEUED: &str = include_str!("../../tests/fixtures/workflow_job.queued.json");
    const COMPLETED: &str = include_str!("../../tests/fixtures/workflow_job.completed.json");
    let fixture = if action == "queued" { QUEUED } else { COMPLETED };
    let mut event: Value = serde_json::from_str(fixture).expect("the fixtures are JSON");
    // The times count: a job of days ago is asked for first, and its end is that of the VM's use.
    let now = Clock::system().now().rfc3339();
    event["workflow_job"]["created_at"] = now.as_str().into();
    if action != "queued" {
        event["workflow_job"]["completed_at"] = now.into();
    }
    event["action"] = action.into();
    event["repository"]["full_name"] = repo.into();
    event["workflow_job"]["id"] = job.into();
    event["workflow_job"]["status"] = action.into();
    event["workflow_job"]["labels"] = json!(labels(number));
    event["workflow_job"]["name"] = format!("build ({job})").into();
    if action != "queued" {
        event["workflow_job"]["runner_name"] = vm(number).into();
    }
    event.to_string()
}

/// The compiled program, killed on drop.
pub(crate) struct Program {
    child: Child,
    readers: Vec<JoinHandle<Output>>,
}

/// The program's output.
#[derive(Default)]
pub(crate) struct Output {
    pub(crate) lines: usize,
    /// Descriptions of lines with a panic or with the secret.
    pub(crate) bad: Vec<String>,
}

impl Program {
    fn start(mut command: Command) -> Result<Self, BoxError> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut program = Self { child: command.spawn()?, readers: Vec::new() };
        // The program would block on a full pipe.
        if let Some(pipe) = program.child.stdout.take() {
            program.readers.push(std::thread::spawn(|| Output::read(pipe)));
        }
        if let Some(pipe) = program.child.stderr.take() {
            program.readers.push(std::thread::spawn(|| Output::read(pipe)));
        }
        Ok(program)
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Kills the program, and returns its output.
    pub(crate) fn end(&mut self) -> Output {
        self.kill();
        let mut all = Output::default();
        for output in self.readers.drain(..).filter_map(|reader| reader.join().ok()) {
            all.lines += output.lines;
            all.bad.extend(output.bad);
        }
        all
    }

    fn kill(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Output {
    fn read(pipe: impl Read) -> Self {
        let mut output = Self::default();
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            output.lines += 1;
            let text = String::from_utf8_lossy(&line);
            if leaks(&line) {
                output.bad.push("the program wrote the secret".to_owned());
            } else if text.contains("panicked") {
                output.bad.push(format!("the program panicked: {text}"));
            }
        }
        output
    }
}
