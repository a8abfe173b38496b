//! The boot script of a VM, which registers the runner if GitHub has removed it.

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

/// The time from the start of an instance to the script's first request.
const SCRIPT_DELAY: Duration = Duration::from_secs(5);

/// The time until systemd has started the script again after its runner ended, since it was removed from GitHub.
const RESTART_DELAY: Duration = Duration::from_secs(15);

/// The VMs' boot scripts. Cheap to clone; clones share their state.
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
    /// The start of the VM for which the registration is done.
    settled: Option<Timestamp>,
    /// The earliest time of the next request, after a failed one.
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

    /// Installs the script: from its next boot on, the VM requests a token from the service at this URL if its runner is not
    /// registered.
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

    /// Removes the script, as if it failed.
    pub fn never_register_again(&self, vm: &str) {
        lock(&self.scripts).remove(vm);
    }

    pub(super) fn next_event(&self) -> Option<Timestamp> {
        let scripts = lock(&self.scripts);
        scripts.iter().filter_map(|(vm, script)| self.next_request(vm, script)).min()
    }

    fn next_request(&self, vm: &str, script: &Script) -> Option<Timestamp> {
        let up = self.compute.up_since(vm)?;
        if script.in_flight {
            return None;
        }
        let begins = if script.settled == Some(up) {
            self.github.without_runner_since(vm)? + RESTART_DELAY
        } else {
            up + SCRIPT_DELAY
        };
        Some(begins.max(script.not_before))
    }

    /// The requests to send now.
    pub(super) fn due(&self) -> Vec<Outgoing> {
        let now = self.shared.clock.now();
        let mut scripts = lock(&self.scripts);
        let mut outgoing = Vec::new();
        for (vm, script) in scripts.iter_mut() {
            if self.next_request(vm, script).is_none_or(|time| time > now) {
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
                .expect("a valid URL");
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
