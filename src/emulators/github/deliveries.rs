//! Webhook deliveries, their attempts, and injected losses and delays.

use std::fmt;
use std::time::Duration;

use aws_lc_rs::hmac;
use bytes::Bytes;
use http_body_util::Full;
use serde_json::Value;

use super::{GitHub, JobId, State, payloads};
use crate::clock::Timestamp;
use crate::emulators::{Event, Outgoing, Reply, Sender, Ticket, lock};

/// The configuration of the App's webhook.
#[derive(Clone, PartialEq, Eq)]
pub struct Hook {
    /// The payload URL.
    pub url: String,
    /// The key of signatures; empty for unsigned deliveries.
    pub secret: String,
    /// The body is form-encoded, GitHub's other content type.
    pub form: bool,
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hook").field("url", &self.url).field("form", &self.form).finish()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The GUID, as in `X-GitHub-Delivery`.
    pub guid: String,
    /// The event's name, as in `X-GitHub-Event`.
    pub event: String,
    /// The payload's `action`.
    pub action: String,
    pub job: JobId,
    /// The time of the event.
    pub at: Timestamp,
    /// The reply to the latest attempt that ended.
    pub reply: Option<Reply>,
    /// The attempts, lost ones included, oldest first.
    pub attempts: Vec<Attempt>,
    pub payload: Value,
}

/// One attempt at a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// GitHub's id of the attempt, not of the delivery.
    pub id: u64,
    pub at: Timestamp,
    /// The end of the attempt and its reply; `None` while it is in flight.
    pub over: Option<(Timestamp, Reply)>,
}

impl GitHub {
    /// Configures the webhook; without one there are no deliveries.
    pub fn webhook(&self, hook: Hook) {
        self.change(|state, _| state.hook = Some(hook));
    }

    /// Loses the first attempts of the next `count` deliveries.
    pub fn lose_next_webhook(&self, count: u32) {
        self.change(|state, _| state.to_lose += count);
    }

    /// Loses the first attempt of each delivery for which `lost` returns true. It must not use this `GitHub`.
    pub fn lose_webhooks_by(&self, lost: impl FnMut(&Delivery) -> bool + Send + 'static) {
        self.change(|state, _| state.losing = Box::new(lost));
    }

    /// Delays each delivery by the result of `late`, so that deliveries may arrive out of order. It must not use this
    /// `GitHub`.
    pub fn lateness_by(&self, late: impl FnMut(&Delivery) -> Duration + Send + 'static) {
        self.change(|state, _| state.lateness = Box::new(late));
    }

    /// All deliveries, oldest first.
    pub fn deliveries(&self) -> Vec<Delivery> {
        let mut deliveries: Vec<_> = lock(&self.state).deliveries.values().cloned().collect();
        deliveries.sort_by(|a, b| (a.at, &a.guid).cmp(&(b.at, &b.guid)));
        deliveries
    }

    /// Sends a delivery again, with the same GUID.
    pub fn redeliver(&self, guid: &str) {
        self.change(|state, now| {
            assert!(state.deliveries.contains_key(guid), "there is no delivery {guid}");
            state.send_again(guid, now);
        });
    }

    /// The deliveries to send now.
    pub(in crate::emulators) fn due(&self) -> Vec<Outgoing> {
        let now = self.shared.clock.now();
        let mut state = lock(&self.state);
        let mut outgoing = Vec::new();
        while state.outbox.first().is_some_and(|(time, ..)| *time <= now) {
            let Some((_, _, guid)) = state.outbox.pop_first() else { continue };
            let attempt = state.attempt(&guid, now);
            if let Some(hook) = &state.hook {
                outgoing.push(state.request(hook, &state.deliveries[&guid], attempt));
            }
        }
        outgoing
    }

    /// Records the reply to an attempt.
    pub(in crate::emulators) fn answered(&self, guid: &str, attempt: u64, reply: Reply) {
        let at = self.shared.clock.now();
        let event = {
            let mut state = lock(&self.state);
            let Some(delivery) = state.deliveries.get_mut(guid) else { return };
            delivery.end(attempt, at, reply);
            delivery.event(at)
        };
        self.shared.notify(vec![event]);
    }
}

impl State {
    pub(super) fn deliver(&mut self, id: JobId, action: &str, at: Timestamp) {
        if self.hook.is_none() {
            return;
        }
        let order = self.next();
        let job = &self.jobs[&id];
        let (run, repo) = (&self.runs[&job.run], &self.repos[&job.repo]);
        let owner = self.owner(&repo.owner).expect("a repository is added with its owner");
        let payload = payloads::workflow_job(action, job, run, (repo, owner), self.installation_id);
        let guid = format!("{order:08x}-c1a0-11f0-8e00-{:012x}", id.0);
        let delivery = Delivery {
            guid: guid.clone(),
            event: "workflow_job".to_owned(),
            action: action.to_owned(),
            job: id,
            at,
            reply: None,
            attempts: Vec::new(),
            payload,
        };
        let lost = self.to_lose > 0 || (self.losing)(&delivery);
        if !lost {
            let late = (self.lateness)(&delivery);
            self.outbox.insert((at + late, order, guid.clone()));
            self.deliveries.insert(guid, delivery);
            return;
        }
        self.to_lose = self.to_lose.saturating_sub(1);
        self.deliveries.insert(guid.clone(), delivery);
        let attempt = self.attempt(&guid, at);
        if let Some(delivery) = self.deliveries.get_mut(&guid) {
            delivery.end(attempt, at, Reply::default());
            self.events.push(delivery.event(at));
        }
    }

    /// Schedules another attempt at a delivery.
    pub(super) fn send_again(&mut self, guid: &str, now: Timestamp) {
        let order = self.next();
        self.outbox.insert((now, order, guid.to_owned()));
    }

    /// Records the start of an attempt, and returns its id.
    fn attempt(&mut self, guid: &str, at: Timestamp) -> u64 {
        self.attempts += 1;
        let id = 160_000_000_000 + self.attempts;
        if let Some(delivery) = self.deliveries.get_mut(guid) {
            delivery.attempts.push(Attempt { id, at, over: None });
        }
        id
    }

    fn request(&self, hook: &Hook, delivery: &Delivery, attempt: u64) -> Outgoing {
        let json = delivery.payload.to_string();
        let (kind, body) = if hook.form {
            let mut form = form_urlencoded::Serializer::new(String::new());
            form.append_pair("payload", &json);
            ("application/x-www-form-urlencoded", form.finish())
        } else {
            ("application/json", json)
        };
        let mut request = http::Request::post(&hook.url)
            .header("Accept", "*/*")
            .header("Content-Type", kind)
            .header("User-Agent", "GitHub-Hookshot/0e1a2d3")
            .header("X-GitHub-Delivery", &delivery.guid)
            .header("X-GitHub-Event", &delivery.event)
            .header("X-GitHub-Hook-ID", 460_000_001)
            .header("X-GitHub-Hook-Installation-Target-ID", &self.app_id)
            .header("X-GitHub-Hook-Installation-Target-Type", "integration");
        if !hook.secret.is_empty() {
            let signature = |algorithm| {
                let key = hmac::Key::new(algorithm, hook.secret.as_bytes());
                hex(hmac::sign(&key, body.as_bytes()).as_ref())
            };
            let sha1 = signature(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY);
            let sha256 = signature(hmac::HMAC_SHA256);
            request = request
                .header("X-Hub-Signature", format!("sha1={sha1}"))
                .header("X-Hub-Signature-256", format!("sha256={sha256}"));
        }
        Outgoing {
            request: request
                .body(Full::new(Bytes::from(body)))
                .expect("the hook's URL is valid, and all headers are plain text"),
            limit: Duration::from_secs(10),
            ticket: Ticket(Sender::Webhook { delivery: delivery.guid.clone(), attempt }),
        }
    }
}

impl Delivery {
    fn end(&mut self, attempt: u64, at: Timestamp, reply: Reply) {
        if let Some(attempt) = self.attempts.iter_mut().find(|known| known.id == attempt) {
            attempt.over = Some((at, reply.clone()));
        }
        self.reply = Some(reply);
    }

    fn event(&self, at: Timestamp) -> Event {
        Event::Webhook {
            at,
            event: self.event.clone(),
            action: self.action.clone(),
            job: self.job,
            delivery: self.guid.clone(),
            reply: self.reply.clone().unwrap_or_default(),
        }
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
