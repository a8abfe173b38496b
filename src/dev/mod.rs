//! `runner-manager dev`: see it at work without an account.
//!
//! The embedded cloud and the real service, on two loopback ports, speaking to each other as they would over
//! the network. Stories show what the service does and why; afterwards it goes on, to be played with.

mod narrator;
mod play;
mod stories;

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use gcp_auth::CustomServiceAccount;
use tokio::net::TcpListener;

use crate::clients::google::Credentials;
use crate::clients::transport::{self, BoxError};
use crate::clock::Clock;
use crate::config::Config;
use crate::emulators::compute::{Instance, Status};
use crate::emulators::github::{Hook, Permission, Runner, Scope};
use crate::emulators::{Cloud, Driver, Keys, Setup};
use crate::state::AppState;
use crate::telemetry::{self, Style};
use crate::{routes, serve};
use narrator::Narrator;

/// The shared secret of the demo. It guards nothing.
const SECRET: &str = "dev-secret";

const PROJECT: &str = "dev-project";
const ZONE: &str = "asia-northeast1-a";
const LOCATION: &str = "asia-northeast1";
const QUEUE: &str = "runner-manager";
const APP_ID: &str = "123456";
const INSTALLATION_ID: u64 = 12_345_678;

/// How many seconds pass in one: a job's whole life takes a few.
const PACE: u32 = 120;

/// RUNNER_CONFIG of the demo: two repositories share a VM, and one of them has another with a GPU.
const FLEET: &str = r#"[
  {"repo": "acme/app", "labels": ["self-hosted", "gpu"], "vm_instance_name": "gpu-1", "vm_instance_zone": "asia-northeast1-a", "register": "repository"},
  {"repo": "acme/app", "labels": ["self-hosted"], "vm_instance_name": "runner-1", "vm_instance_zone": "asia-northeast1-a"},
  {"repo": "acme/web", "labels": ["self-hosted"], "vm_instance_name": "runner-1", "vm_instance_zone": "asia-northeast1-a"}
]"#;

/// What `dev` can be told.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// End after the stories: exit code 0, or 1 if one of them broke a promise
    #[arg(long, conflicts_with = "real_time")]
    once: bool,
    /// No stories, and time at its own pace: for other clients of Google's and GitHub's APIs
    #[arg(long)]
    real_time: bool,
    /// The service's port [default: 8080; with --once any that is free]
    #[arg(long)]
    port: Option<u16>,
    /// The embedded cloud's port [default: 8081; with --once any that is free]
    #[arg(long)]
    cloud_port: Option<u16>,
}

impl Options {
    async fn listen(&self) -> io::Result<(TcpListener, TcpListener)> {
        let port = |given: Option<u16>, usual| given.unwrap_or(if self.once { 0 } else { usual });
        Ok((
            listen("--port", port(self.port, 8080)).await?,
            listen("--cloud-port", port(self.cloud_port, 8081)).await?,
        ))
    }
}

async fn listen(option: &str, port: u16) -> io::Result<TcpListener> {
    TcpListener::bind(("127.0.0.1", port)).await.map_err(|error| {
        let text = format!(
            "cannot listen on port {port} ({}): choose another with {option}",
            error.kind()
        );
        io::Error::new(error.kind(), text)
    })
}

/// A demo that is set up: the cloud, the service, and where they listen.
struct Stage {
    cloud: Cloud,
    clock: Clock,
    app: AppState,
    narrator: Narrator,
    service_url: String,
    cloud_url: String,
    /// Holds the key files for other programs, as long as the demo runs.
    files: tempfile::TempDir,
}

/// Runs the demo.
///
/// # Errors
/// If a port cannot be had, or the process cannot be told to stop.
pub async fn run(options: Options) -> Result<ExitCode, BoxError> {
    let (service, embedded) = options.listen().await?;
    let service_url = format!("http://{}", service.local_addr()?);
    let cloud_url = format!("http://{}", embedded.local_addr()?);
    let clock =
        if options.real_time { Clock::system() } else { Clock::paced(Clock::system().now(), PACE) };
    let stage = Stage::new(service_url, cloud_url, clock, &options)?;
    if options.real_time {
        telemetry::init(Style::Text)?;
    }

    let mut driver = Driver::new(transport::over_tls()?);
    let embedded_apis = stage.cloud.router().merge(play::router(stage.cloud.clone()));
    if !options.once {
        stage.narrator.welcome(&stage);
    }
    let stories = async {
        if !options.real_time && !stories::tell_all(&stage).await && options.once {
            return ExitCode::FAILURE;
        }
        if !options.once {
            stage.narrator.invite(&stage, options.real_time);
            std::future::pending::<()>().await;
        }
        ExitCode::SUCCESS
    };
    let embedded = std::future::IntoFuture::into_future(axum::serve(embedded, embedded_apis));
    let serving = serve::until_told_to_stop(
        service,
        routes::router(stage.app.clone()),
        stage.app.draining.clone(),
    );
    tokio::select! {
        biased;
        told = serving => told.map(|()| ExitCode::SUCCESS).map_err(Into::into),
        ended = embedded => ended.map(|()| ExitCode::SUCCESS).map_err(Into::into),
        () = stage.cloud.run_until(&mut driver, None) => Ok(ExitCode::SUCCESS),
        code = stories => Ok(code),
    }
}

impl Stage {
    fn new(
        service_url: String,
        cloud_url: String,
        clock: Clock,
        options: &Options,
    ) -> Result<Self, BoxError> {
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
        // gcp_auth signs and renews by the system's time, whatever the pace here.
        cloud.accounts.use_clock(Clock::system());
        furnish(&cloud, &service_url);
        let narrator = Narrator::new(clock.clone());
        cloud.subscribe({
            let narrator = narrator.clone();
            move |happening| narrator.tell(happening)
        });

        let files = tempfile::tempdir()?;
        let account = keys.service_account_json(&format!("{cloud_url}/token"));
        std::fs::write(files.path().join("google.json"), &account)?;
        std::fs::write(files.path().join("app.pem"), keys.app_private_key_pem())?;
        let inactive = if options.real_time { "3" } else { "1" };
        let variables = environment(&service_url, &cloud_url, inactive)
            .into_iter()
            .chain([("GITHUB_APP_PRIVATE_KEY", keys.app_private_key_pem().to_owned())])
            .map(|(name, value)| (name.into(), value.into()));
        let config = Config::from_vars(variables)?;
        let credentials = Credentials::new(Arc::new(CustomServiceAccount::from_json(&account)?));
        let app = AppState::new(config, transport::over_tls()?, credentials, clock.clone());
        Ok(Self { cloud, clock, app, narrator, service_url, cloud_url, files })
    }

    /// The environment in which another program would be this service.
    fn exports(&self) -> String {
        let quoted = |value: &str| format!("'{}'", value.replace('\'', r"'\''"));
        let file =
            |name: &str| quoted(&Path::new(self.files.path()).join(name).display().to_string());
        let mut lines: Vec<String> = environment(&self.service_url, &self.cloud_url, "3")
            .into_iter()
            .map(|(name, value)| format!("export {name}={}", quoted(&value.replace('\n', " "))))
            .collect();
        lines.push(format!("export GITHUB_APP_PRIVATE_KEY=\"$(cat {})\"", file("app.pem")));
        lines.push(format!("export GOOGLE_APPLICATION_CREDENTIALS={}", file("google.json")));
        lines.join("\n")
    }
}

fn environment(service_url: &str, cloud_url: &str, inactive: &str) -> Vec<(&'static str, String)> {
    vec![
        ("GCP_PROJECT_ID", PROJECT.into()),
        ("CLOUD_TASK_LOCATION", LOCATION.into()),
        ("CLOUD_TASK_QUEUE_NAME", QUEUE.into()),
        ("CLOUD_RUN_SERVICE_URL", service_url.into()),
        ("RUNNER_MANAGER_SECRET", SECRET.into()),
        ("VM_INACTIVE_MINUTES", inactive.into()),
        ("GITHUB_APP_ID", APP_ID.into()),
        ("GITHUB_APP_INSTALLATION_ID", INSTALLATION_ID.to_string()),
        ("COMPUTE_API_URL", cloud_url.into()),
        ("CLOUD_TASKS_API_URL", cloud_url.into()),
        ("GITHUB_API_URL", cloud_url.into()),
        ("GOOGLE_KEYS_API_URL", cloud_url.into()),
        ("RUNNER_CONFIG", FLEET.into()),
    ]
}

/// The VMs of the fleet, stopped, their runners registered, and the webhook set up.
fn furnish(cloud: &Cloud, service_url: &str) {
    for repo in ["acme/app", "acme/web"] {
        cloud.github.add_repository(repo);
    }
    let runners =
        [("runner-1", "acme/app", ""), ("runner-1", "acme/web", ""), ("gpu-1", "acme/app", "gpu")];
    cloud.github.permit(Permission::Registration);
    for vm in ["runner-1", "gpu-1"] {
        cloud.compute.insert(Instance { status: Status::Terminated, ..Instance::new(vm, ZONE) });
    }
    for (vm, repo, more) in runners {
        let labels =
            ["self-hosted", "linux", "x64", more].into_iter().filter(|label| !label.is_empty());
        cloud.github.add_runner(Runner::new(vm, Scope::Repository(repo.into()), labels));
    }
    let url = format!("{service_url}/github/webhook");
    cloud.github.webhook(Hook { url, secret: SECRET.into(), form: false });
}
