//! The service and the embedded cloud, connected in one process: the harness of tests and fuzz targets.

use std::ffi::OsString;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use gcp_auth::{Token, TokenProvider};
use http::Request;
use http_body_util::{BodyExt, Full};
use runner_manager::clients::google::Credentials;
use runner_manager::clients::transport::HttpService;
use runner_manager::clock::{Clock, Timestamp};
use runner_manager::config::Config;
use runner_manager::emulators::{Cloud, Keys, Setup};
use runner_manager::routes;
use runner_manager::state::AppState;
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;
use tracing_subscriber::layer::SubscriberExt;

pub(crate) const SECRET: &str = "It's a Secret to Everybody";

/// The zone of all VMs.
pub(crate) const ZONE: &str = "asia-northeast1-a";

/// A clock that starts on a morning in November, and advances only while all tasks sleep.
pub(crate) fn clock() -> Clock {
    Clock::paced(Timestamp::parse("2026-11-24T09:00:07Z").unwrap(), 1)
}

/// A cloud with a queue and without VMs, repositories and runners.
pub(crate) fn cloud(clock: &Clock) -> Cloud {
    let setup = Setup {
        project: "my-project".into(),
        location: "asia-northeast1".into(),
        queue: "runner-manager".into(),
        app_id: "123456".into(),
        installation_id: 12_345_678,
        keys: keys(),
    };
    Cloud::new(setup, clock.clone())
}

/// The service as in production, connected to this cloud.
pub(crate) fn service(runner_config: &str, cloud: &Cloud, clock: &Clock) -> Router {
    service_inactive_for(3, runner_config, cloud, clock)
}

/// The service with this `VM_INACTIVE_MINUTES`.
pub(crate) fn service_inactive_for(
    minutes: u64,
    runner_config: &str,
    cloud: &Cloud,
    clock: &Clock,
) -> Router {
    routes::router(app_inactive_for(minutes, runner_config, cloud, clock))
}

/// The service with these variables besides.
pub(crate) fn service_with(
    more: &[(&str, &str)],
    runner_config: &str,
    cloud: &Cloud,
    clock: &Clock,
) -> Router {
    routes::router(app_with(more, runner_config, cloud, clock))
}

/// The service's state, with clients of this cloud.
pub(crate) fn app(runner_config: &str, cloud: &Cloud, clock: &Clock) -> AppState {
    app_inactive_for(3, runner_config, cloud, clock)
}

fn app_inactive_for(minutes: u64, runner_config: &str, cloud: &Cloud, clock: &Clock) -> AppState {
    app_with(&[("VM_INACTIVE_MINUTES", &minutes.to_string())], runner_config, cloud, clock)
}

fn app_with(more: &[(&str, &str)], runner_config: &str, cloud: &Cloud, clock: &Clock) -> AppState {
    install_subscriber();
    let more = more.iter().map(|(name, value)| ((*name).into(), (*value).into()));
    let config = Config::from_vars(vars(runner_config).chain(more)).unwrap();
    AppState::new(config, in_process(cloud.router()), credentials(cloud, clock), clock.clone())
}

/// The service's credentials, which this cloud accepts.
pub(crate) fn credentials(cloud: &Cloud, clock: &Clock) -> Credentials {
    Credentials::new(Arc::new(HourlyTokens::new(cloud, clock)))
}

/// The service's environment.
pub(crate) fn vars(runner_config: &str) -> impl Iterator<Item = (OsString, OsString)> {
    let keys = keys();
    let vars = [
        ("GCP_PROJECT_ID", "my-project"),
        ("CLOUD_TASK_LOCATION", "asia-northeast1"),
        ("CLOUD_TASK_QUEUE_NAME", "runner-manager"),
        ("CLOUD_RUN_SERVICE_URL", "https://service.example"),
        ("RUNNER_MANAGER_SECRET", SECRET),
        ("GITHUB_APP_ID", "123456"),
        ("GITHUB_APP_INSTALLATION_ID", "12345678"),
        ("COMPUTE_API_URL", "http://compute.example"),
        ("CLOUD_TASKS_API_URL", "http://tasks.example"),
        ("GITHUB_API_URL", "http://github.example"),
        ("RUNNER_CONFIG", runner_config),
        ("GITHUB_APP_PRIVATE_KEY", keys.app_private_key_pem()),
    ];
    vars.map(|(name, value)| (name.into(), value.into())).into_iter()
}

/// A transport that calls a router in this process.
pub(crate) fn in_process(router: Router) -> HttpService {
    BoxCloneSyncService::new(tower::service_fn(move |request: Request<Full<Bytes>>| {
        let router = router.clone();
        async move {
            let response = router.oneshot(request.map(axum::body::Body::new)).await?;
            let (head, body) = response.into_parts();
            Ok(http::Response::from_parts(head, body.collect().await?.to_bytes()))
        }
    }))
}

/// Generated once per process, since that is slow.
pub(crate) fn keys() -> Arc<Keys> {
    static KEYS: OnceLock<Arc<Keys>> = OnceLock::new();
    Arc::clone(KEYS.get_or_init(|| Arc::new(Keys::generate())))
}

/// Access tokens that expire. gcp_auth cannot be used here: its own HTTP client waits for real sockets, while the paused
/// clock advances.
struct HourlyTokens {
    cloud: Cloud,
    clock: Clock,
    current: Mutex<Option<(Timestamp, Arc<Token>)>>,
}

impl HourlyTokens {
    fn new(cloud: &Cloud, clock: &Clock) -> Self {
        Self { cloud: cloud.clone(), clock: clock.clone(), current: Mutex::default() }
    }
}

#[async_trait::async_trait]
impl TokenProvider for HourlyTokens {
    async fn token(&self, _scopes: &[&str]) -> Result<Arc<Token>, gcp_auth::Error> {
        let now = self.clock.now();
        let mut current = self.current.lock().unwrap();
        // Renewed before it expires, as gcp_auth does.
        if let Some((_, token)) =
            current.as_ref().filter(|(expiry, _)| *expiry > now + Duration::from_secs(60))
        {
            return Ok(Arc::clone(token));
        }
        let expiry = now + Duration::from_secs(3600);
        let text = format!("ya29.until-{}", expiry.unix_seconds());
        self.cloud.accounts.accept_until(&text, expiry);
        let token = serde_json::json!({ "access_token": text, "expires_in": 3600 });
        let token: Arc<Token> =
            Arc::new(serde_json::from_value(token).expect("a token's documented form"));
        *current = Some((expiry, Arc::clone(&token)));
        Ok(token)
    }

    async fn project_id(&self) -> Result<Arc<str>, gcp_auth::Error> {
        Ok("my-project".into())
    }
}

/// Installs two subscribers that do nothing, so that [`Log`] misses no line.
///
/// tracing caches for each callsite if a subscriber is interested. As long as only one exists, it asks the subscriber of
/// the thread that reaches the callsite first. That thread may have none, and the callsite would be disabled for all
/// threads. With several subscribers tracing asks all of them.
fn install_subscriber() {
    static IDLE: OnceLock<[tracing::Dispatch; 2]> = OnceLock::new();
    IDLE.get_or_init(|| {
        let idle =
            || tracing_subscriber::registry().with(tracing::level_filters::LevelFilter::INFO);
        [tracing::Dispatch::new(idle()), tracing::Dispatch::new(idle())]
    });
}

/// The log lines of this thread.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Records lines until the guard is dropped.
    pub(crate) fn listen() -> (Self, tracing::subscriber::DefaultGuard) {
        install_subscriber();
        let log = Self::default();
        let to = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::INFO)
            .with_ansi(false)
            .with_writer(move || to.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    /// The number of lines of this level that contain this text.
    pub(crate) fn count(&self, level: &str, text: &str) -> usize {
        let all = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        all.lines().filter(|line| line.contains(level) && line.contains(text)).count()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// GitHub's signature of a body, as the value of its header.
pub(crate) fn sign(secret: &str, body: &[u8]) -> String {
    use hmac::{Hmac, KeyInit, Mac};
    let mac = Hmac::<sha2::Sha256>::new_from_slice(secret.as_bytes()).unwrap().chain_update(body);
    let bytes = mac.finalize().into_bytes();
    format!("sha256={}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}
