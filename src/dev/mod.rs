//! `runner-manager dev`: a demo without an account.
//!
//! The embedded cloud and the real service run on two loopback ports and call each other over HTTP. Stories show the
//! service at work; afterwards the demo keeps running for experiments.

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

/// The shared secret of the demo, which protects nothing.
const SECRET: &str = "dev-secret-of-the-demo";

const PROJECT: &str = "dev-project";
const ZONE: &str = "asia-northeast1-a";
const OTHER_ZONE: &str = "asia-northeast1-b";
const LOCATION: &str = "asia-northeast1";
const QUEUE: &str = "runner-manager";
const APP_ID: &str = "123456";
const INSTALLATION_ID: u64 = 12_345_678;

/// The seconds that pass in one real second: the whole life of a job takes a few.
const PACE: u32 = 120;

/// RUNNER_CONFIG of the demo: two repositories share a VM, and one of them also has a GPU VM.
const FLEET: &str = r#"[
  {"repo": "acme/app", "labels": ["self-hosted", "gpu"], "vm_instance_name": "gpu-1", "vm_instance_zone": "asia-northeast1-a", "register": "repository"},
  {"repo": "acme/app", "labels": ["self-hosted"], "vm_instance_name": "runner-1", "vm_instance_zone": "asia-northeast1-a"},
  {"repo": "acme/web", "labels": ["self-hosted"], "vm_instance_name": "runner-1", "vm_instance_zone": "asia-northeast1-a"}
]"#;

/// The entries that the stories need as well: a pool of two VMs in two zones, which are drained before a stop.
const POOL: &str = r#",
  {"repo": "acme/web", "labels": ["pool"], "vm_instance_name": "pool-1", "vm_instance_zone": "asia-northeast1-a", "register": "repository", "drain": true},
  {"repo": "acme/web", "labels": ["pool"], "vm_instance_name": "pool-2", "vm_instance_zone": "asia-northeast1-b", "register": "repository", "drain": true}
]"#;

/// RUNNER_CONFIG of the demo.
fn fleet(real_time: bool) -> String {
    if real_time { FLEET.to_owned() } else { format!("{}{POOL}", FLEET.trim_end_matches("\n]")) }
}

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Exit after the stories: with code 0, or 1 if a promise was broken
    #[arg(long, conflicts_with = "real_time")]
    once: bool,
    /// Tell no stories and run in real time, for other clients of Google's and GitHub's APIs
    #[arg(long)]
    real_time: bool,
    /// The service's port [default: 8080; with --once any free port]
    #[arg(long)]
    port: Option<u16>,
    /// The embedded cloud's port [default: 8081; with --once any free port]
    #[arg(long)]
    cloud_port: Option<u16>,
}

impl Options {
    async fn listen(&self) -> io::Result<(TcpListener, TcpListener)> {
        let port =
            |given: Option<u16>, default| given.unwrap_or(if self.once { 0 } else { default });
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

/// The cloud and the service of a demo.
struct Stage {
    cloud: Cloud,
    clock: Clock,
    app: AppState,
    narrator: Narrator,
    service_url: String,
    cloud_url: String,
    /// VM_INACTIVE_MINUTES.
    inactive: &'static str,
    /// RUNNER_CONFIG.
    fleet: String,
    /// The key files for other programs, deleted at the end of the demo.
    files: tempfile::TempDir,
}

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
    if !options.real_time {
        stage.narrator.opening();
    }
    let stories = async {
        if !options.real_time && !stories::run_all(&stage).await && options.once {
            return ExitCode::FAILURE;
        }
        if !options.once {
            stage.narrator.instructions(&stage, options.real_time);
            std::future::pending::<()>().await;
        }
        ExitCode::SUCCESS
    };
    let embedded = std::future::IntoFuture::into_future(axum::serve(embedded, embedded_apis));
    let serving =
        serve::until_signal(service, routes::router(stage.app.clone()), stage.app.draining.clone());
    tokio::select! {
        biased;
        result = serving => result.map(|()| ExitCode::SUCCESS).map_err(Into::into),
        result = embedded => result.map(|()| ExitCode::SUCCESS).map_err(Into::into),
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
        // gcp_auth uses the system's time, whatever the demo's pace.
        cloud.accounts.use_clock(Clock::system());
        populate(&cloud, &service_url, options.real_time);
        let narrator = Narrator::new(clock.clone());
        cloud.subscribe({
            let narrator = narrator.clone();
            move |event| narrator.describe(event)
        });

        let files = tempfile::tempdir()?;
        let account = keys.service_account_json(&format!("{cloud_url}/token"));
        std::fs::write(files.path().join("google.json"), &account)?;
        std::fs::write(files.path().join("app.pem"), keys.app_private_key_pem())?;
        let inactive = if options.real_time { "3" } else { "1" };
        let fleet = fleet(options.real_time);
        let variables = environment(&service_url, &cloud_url, inactive, &fleet)
            .into_iter()
            .chain([("GITHUB_APP_PRIVATE_KEY", keys.app_private_key_pem().to_owned())])
            .map(|(name, value)| (name.into(), value.into()));
        let config = Config::from_vars(variables)?;
        let credentials = Credentials::new(Arc::new(CustomServiceAccount::from_json(&account)?));
        let app = AppState::new(config, transport::over_tls()?, credentials, clock.clone());
        Ok(Self { cloud, clock, app, narrator, service_url, cloud_url, inactive, fleet, files })
    }

    /// The environment of another program that takes the service's place, as shell commands.
    fn exports(&self) -> String {
        let quoted = |value: &str| format!("'{}'", value.replace('\'', r"'\''"));
        let file =
            |name: &str| quoted(&Path::new(self.files.path()).join(name).display().to_string());
        let variables = environment(&self.service_url, &self.cloud_url, self.inactive, &self.fleet);
        let mut lines: Vec<String> = variables
            .into_iter()
            .map(|(name, value)| format!("export {name}={}", quoted(&value.replace('\n', " "))))
            .collect();
        lines.push(format!("export GITHUB_APP_PRIVATE_KEY=\"$(cat {})\"", file("app.pem")));
        lines.push(format!("export GOOGLE_APPLICATION_CREDENTIALS={}", file("google.json")));
        lines.join("\n")
    }
}

fn environment(
    service_url: &str,
    cloud_url: &str,
    inactive: &str,
    fleet: &str,
) -> Vec<(&'static str, String)> {
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
        ("RUNNER_CONFIG", fleet.into()),
    ]
}

/// Adds the VMs of the fleet, stopped, their registered runners, and the webhook.
fn populate(cloud: &Cloud, service_url: &str, real_time: bool) {
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
    if !real_time {
        for (vm, zone) in [("pool-1", ZONE), ("pool-2", OTHER_ZONE)] {
            let instance = Instance { status: Status::Terminated, ..Instance::new(vm, zone) };
            cloud.compute.insert(instance);
            cloud.guests.register_at_boot(vm, zone, service_url);
            let scope = Scope::Repository("acme/web".into());
            cloud.github.add_runner(Runner::new(
                vm,
                scope,
                ["self-hosted", "linux", "x64", "pool"],
            ));
        }
    }
    let url = format!("{service_url}/github/webhook");
    cloud.github.webhook(Hook { url, secret: SECRET.into(), form: false });
}
