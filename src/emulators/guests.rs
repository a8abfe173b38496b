//! What runs on a VM besides its runner: at boot, a script that registers the runner if GitHub no longer knows it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use serde::Deserialize;

use super::github::Runner;
use super::{ComputeEngine, GitHub, Identities, Outgoing, Reply, Sender, Shared, Ticket, lock};
use crate::clock::Timestamp;

/// From an instance that is up to the script's first question.
const BEGINS: Duration = Duration::from_secs(5);

/// The VMs' scripts. Cheap to clone; all clones agree.
#[derive(Clone)]
pub struct Guests {
    shared: Arc<Shared>,
    compute: ComputeEngine,
    github: GitHub,
    identities: Identities,
    scripts: Arc<Mutex<BTreeMap<String, Script>>>,
}

#[derive(Clone)]
struct Script {
    zone: String,
    service_url: String,
    /// Since when the VM is up whose registration is settled.
    settled: Option<Timestamp>,
    /// Not before then, after an answer that was none.
    not_before: Timestamp,
    tries: u32,
    in_flight: bool,
}

#[derive(Deserialize)]
struct Grant {
    token: String,
    name: String,
    labels: Vec<String>,
}

impl Guests {
    pub(super) fn new(
        shared: Arc<Shared>,
        compute: ComputeEngine,
        github: GitHub,
        identities: Identities,
    ) -> Self {
        Self { shared, compute, github, identities, scripts: Arc::default() }
    }

    /// From its next boot on, the VM asks the service at this URL for a token if its runner is not registered.
    pub fn register_at_boot(&self, vm: &str, zone: &str, service_url: &str) {
        let script = Script {
            zone: zone.to_owned(),
            service_url: service_url.to_owned(),
            settled: None,
            not_before: Timestamp::UNIX_EPOCH,
            tries: 0,
            in_flight: false,
        };
        lock(&self.scripts).insert(vm.to_owned(), script);
        self.shared.changed.notify_one();
    }

    pub(super) fn next_event(&self) -> Option<Timestamp> {
        let scripts = lock(&self.scripts);
        scripts.iter().filter_map(|(vm, script)| self.asks_at(vm, script)).min()
    }

    fn asks_at(&self, vm: &str, script: &Script) -> Option<Timestamp> {
        let up = self.compute.up_since(vm)?;
        let asks = script.settled != Some(up) && !script.in_flight;
        asks.then(|| (up + BEGINS).max(script.not_before))
    }

    /// The questions to ask now.
    pub(super) fn due(&self) -> Vec<Outgoing> {
        let now = self.shared.clock.now();
        let mut scripts = lock(&self.scripts);
        let mut outgoing = Vec::new();
        for (vm, script) in scripts.iter_mut() {
            if self.asks_at(vm, script).is_none_or(|time| time > now) {
                continue;
            }
            if self.github.has_runner_on(vm) {
                script.settled = self.compute.up_since(vm);
                continue;
            }
            let claims = self.identities.claims(vm, &script.zone, &script.service_url);
            let request = Request::post(format!("{}/runner/registration", script.service_url))
                .header("Authorization", format!("Bearer {}", self.identities.sign(&claims)))
                .header("Content-Type", "application/json")
                .body(Full::new(Bytes::from_static(b"{}")))
                .expect("the URL is one");
            script.in_flight = true;
            let ticket = Ticket(Sender::Boot { vm: vm.clone() });
            outgoing.push(Outgoing { request, limit: Duration::from_secs(30), ticket });
        }
        outgoing
    }

    pub(super) fn answered(&self, vm: &str, reply: &Reply) {
        let now = self.shared.clock.now();
        let granted = (reply.status == Some(StatusCode::OK))
            .then(|| serde_json::from_slice::<Grant>(&reply.body).ok())
            .flatten();
        let registered = granted.is_some_and(|grant| {
            let own = ["self-hosted", "linux", "x64"].map(str::to_owned);
            let labels = own.into_iter().chain(grant.labels);
            self.github
                .register(&grant.token, |scope| Runner::new(&grant.name, scope, labels).on(vm))
        });
        let up = self.compute.up_since(vm);
        if let Some(script) = lock(&self.scripts).get_mut(vm) {
            script.in_flight = false;
            if registered {
                (script.settled, script.tries) = (up, 0);
            } else {
                script.not_before = now + Duration::from_secs(10 << script.tries.min(5));
                script.tries += 1;
            }
        }
        self.shared.changed.notify_one();
    }
}
