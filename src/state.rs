//! What every request shares. Nothing in it outlives the instance that matters: tokens are fetched again, a
//! missing permission is found out again.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::clients::cloud_tasks::{CloudTasks, Queue};
use crate::clients::compute::Compute;
use crate::clients::github::GitHub;
use crate::clients::google::Credentials;
use crate::clients::google_keys::GoogleKeys;
use crate::clients::transport::{HttpService, Transport};
use crate::clock::{Clock, Deadline};
use crate::config::Config;
use crate::fleet::Fleet;
use crate::lifecycle::WEBHOOK_TIME;
use crate::lifecycle::in_flight::InFlight;
use crate::lifecycle::mark::Marks;
use crate::lifecycle::registration::Tokens;
use crate::lifecycle::status::Remembered;
use crate::secret::SharedSecret;

/// The state behind all routes; cheap to clone, and clones share it.
#[derive(Clone, Debug)]
pub struct AppState(Arc<Shared>);

/// What there is of it.
#[derive(Debug)]
pub struct Shared {
    /// Which VM serves which jobs.
    pub fleet: Fleet,
    /// Who the service is to Google.
    pub google: Credentials,
    /// The VMs.
    pub compute: Compute,
    /// The service's only memory of what is due when.
    pub tasks: CloudTasks,
    /// The witnesses.
    pub github: GitHub,
    /// Whom the service believes.
    pub secret: SharedSecret,
    /// The time.
    pub clock: Clock,
    /// The project of the VMs.
    pub project: String,
    /// Where this service is reached, without a trailing slash.
    pub service_url: String,
    /// How long a VM stays up after its last job.
    pub inactive: Duration,
    /// After how long a VM that is down is started for a while, so that its runner connects; `None`: never.
    pub keepalive: Option<Duration>,
    /// Whether marks can be written.
    pub marks: Marks,
    /// What deliveries that overlap share.
    pub in_flight: InFlight,
    /// The keys of the tokens by which VMs show who they are.
    pub google_keys: GoogleKeys,
    /// What VMs registered their runners with lately.
    pub registrations: Tokens,
    /// What GitHub said last to whoever looked at the fleet.
    pub remembered: Remembered,
    /// Whether the service is shutting down.
    pub draining: Draining,
}

/// Set once, when the service is told to stop: from then on nothing new is begun.
#[derive(Clone, Debug, Default)]
pub struct Draining(Arc<AtomicBool>);

impl Draining {
    /// From now on.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the service is shutting down.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Deref for AppState {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl AppState {
    /// Builds the clients on one transport: `http` in production is
    /// [`over_tls`](crate::clients::transport::over_tls).
    pub fn new(config: Config, http: HttpService, credentials: Credentials, clock: Clock) -> Self {
        let transport = Transport::new(http);
        let queue = Queue {
            project: &config.project,
            location: &config.task_location,
            id: &config.task_queue,
            service_url: &config.service_url,
            secret: config.secret.current(),
        };
        let roots = &config.roots;
        let google_keys = GoogleKeys::new(transport.clone(), &roots.google_keys, clock.clone());
        let compute =
            Compute::new(transport.clone(), credentials.clone(), &roots.compute, &config.project);
        let tasks =
            CloudTasks::new(transport.clone(), credentials.clone(), &roots.cloud_tasks, &queue);
        let github = GitHub::new(transport, &roots.github, config.github_app, clock.clone());
        Self(Arc::new(Shared {
            fleet: config.fleet,
            google: credentials,
            compute,
            tasks,
            github,
            secret: config.secret,
            clock,
            project: config.project,
            service_url: config.service_url,
            inactive: config.inactive,
            keepalive: config.keepalive,
            marks: Marks::default(),
            in_flight: InFlight::default(),
            google_keys,
            registrations: Tokens::default(),
            remembered: Remembered::default(),
            draining: Draining::default(),
        }))
    }

    /// Fetches the tokens that the first event will need. Meant to run beside the listener: what fails here is
    /// tried again by whoever needs it, and is a warning already.
    pub async fn prefetch_tokens(&self) {
        let deadline = Deadline::after(WEBHOOK_TIME);
        // Each signs first, which takes a while, and there is one thread: whoever came meanwhile is answered in between.
        let google = async {
            tokio::task::yield_now().await;
            self.google.header("prefetch", deadline).await
        };
        let github = async {
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            self.github.prefetch_token(deadline).await
        };
        let (google, github) = tokio::join!(google, github);
        for error in [google.err(), github.err()].into_iter().flatten() {
            tracing::warn!("no token yet: {error}");
        }
    }
}
