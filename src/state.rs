//! The state that all routes share.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tokio::sync::watch;

use crate::clients::cloud_tasks::{CloudTasks, Queue};
use crate::clients::compute::Compute;
use crate::clients::github::GitHub;
use crate::clients::google::Credentials;
use crate::clients::google_keys::GoogleKeys;
use crate::clients::transport::{HttpService, Transport};
use crate::clock::{Clock, Deadline};
use crate::config::Config;
use crate::lifecycle::events::WEBHOOK_TIME;
use crate::lifecycle::in_flight::InFlight;
use crate::lifecycle::pool_queue::PoolQueues;
use crate::lifecycle::registration::RegistrationTokenCache;
use crate::lifecycle::status::StatusCache;
use crate::lifecycle::{Context, LabelPermission, Parts};
use crate::secret::SharedSecret;
use crate::throttle::Throttle;

/// The state of the service; cheap to clone, and clones share it.
#[derive(Clone, Debug)]
pub struct AppState(Arc<Shared>);

#[derive(Debug)]
pub struct Shared {
    pub cx: Context,
    /// The service's credentials for Google's APIs.
    pub google: Credentials,
    pub secret: SharedSecret,
    pub registrations: RegistrationTokenCache,
    pub status: StatusCache,
    /// For the log lines of failed requests.
    pub failures: Throttle,
    pub draining: Draining,
}

/// A flag that is set when the service is told to stop. From then on it begins nothing new.
#[derive(Clone, Debug, Default)]
pub struct Draining(watch::Sender<bool>);

impl Draining {
    pub fn set(&self) {
        self.0.send_replace(true);
    }

    pub fn is_set(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until the flag is set.
    pub async fn wait(&self) {
        // The sender is here, so the channel is open.
        self.0.subscribe().wait_for(|set| *set).await.ok();
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
    pub fn new(config: Config, http: HttpService, google: Credentials, clock: Clock) -> Self {
        let transport = Transport::new(http);
        let queue = Queue {
            project: &config.project,
            location: &config.task_location,
            id: &config.task_queue,
            service_url: &config.service_url,
            secret: config.secret.current(),
            callback_account: config.callback_account.as_deref(),
        };
        let roots = &config.roots;
        let compute =
            Compute::new(transport.clone(), google.clone(), &roots.compute, &config.project);
        let tasks = CloudTasks::new(transport.clone(), google.clone(), &roots.cloud_tasks, &queue);
        let google_keys = GoogleKeys::new(transport.clone(), &roots.google_keys, clock.clone());
        let github = GitHub::new(transport, &roots.github, config.github_app, clock.clone());
        let cx = Context::new(Parts {
            fleet: config.fleet,
            compute,
            tasks,
            github,
            google_keys,
            clock,
            project: config.project,
            service_url: config.service_url,
            callback_account: config.callback_account,
            inactive: config.inactive,
            keepalive: config.keepalive,
            label_permission: LabelPermission::default(),
            told_of_no_webhook: AtomicBool::default(),
            in_flight: InFlight::default(),
            pool_queues: PoolQueues::default(),
        });
        Self(Arc::new(Shared {
            cx,
            google,
            secret: config.secret,
            registrations: RegistrationTokenCache::default(),
            status: StatusCache::default(),
            failures: Throttle::default(),
            draining: Draining::default(),
        }))
    }

    /// Fetches the tokens that the first event will need, while the listener is open. A failure is a warning, and the
    /// first call that needs the token tries again.
    pub async fn prefetch_tokens(&self) {
        let deadline = Deadline::after(WEBHOOK_TIME);
        // Each fetch signs first, which blocks the one thread for a while: requests are answered in between.
        let google = async {
            tokio::task::yield_now().await;
            self.google.header("prefetch", deadline).await
        };
        let github = async {
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            self.cx.github.prefetch_token(deadline).await
        };
        let (google, github) = tokio::join!(google, github);
        for error in [google.err(), github.err()].into_iter().flatten() {
            tracing::warn!("no token yet: {error}");
        }
    }
}
