//! The methods for the App itself, which authenticates with a JWT: its data, its installations, and its webhook's
//! deliveries.
//!
//! <https://docs.github.com/en/rest/apps>

use std::time::Duration;

use axum::response::Response;
use axum::routing::MethodFilter;
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use super::response::{
    ApiResult, Refusal, SUSPENDED, TOKEN_LIFETIME, not_found, ok, unprocessable,
};
use super::{Attempt, Delivery, GitHub, Installed, Owner, State, payloads};
use crate::clock::Timestamp;
use crate::emulators::accounts::claims;
use crate::emulators::wire::{Incoming, Routes, json_response};
use crate::emulators::{Api, hash};

/// The methods that only the App itself may call.
pub(super) const METHODS: [&str; 7] = [
    "apps.getAuthenticated",
    "apps.getInstallation",
    "apps.getRepoInstallation",
    "apps.createInstallationAccessToken",
    "apps.getWebhookConfigForApp",
    "apps.listWebhookDeliveries",
    "apps.redeliverWebhookDelivery",
];

/// The time for which GitHub keeps deliveries.
const DELIVERY_RETENTION: Duration = Duration::from_secs(3 * 24 * 3600);

/// GitHub's timeout for a delivery.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(10);

impl GitHub {
    pub(super) fn app_routes(&self, routes: Routes) -> Routes {
        let (get, post) = (MethodFilter::GET, MethodFilter::POST);
        let api = |name| (Api::GitHub, name);
        let installation = "/app/installations/{installation}";
        let deliveries = "/app/hook/deliveries";
        let tokens = format!("{installation}/access_tokens");
        let attempts = format!("{deliveries}/{{delivery}}/attempts");
        routes
            .on(get, "/app", api("apps.getAuthenticated"), self, |it, call| {
                it.answer(call, State::app)
            })
            .on(get, installation, api("apps.getInstallation"), self, |it, call| {
                it.answer(call, State::installation)
            })
            .on(post, &tokens, api("apps.createInstallationAccessToken"), self, |it, call| {
                it.answer(call, State::access_token)
            })
            .on(get, "/app/hook/config", api("apps.getWebhookConfigForApp"), self, |it, call| {
                it.answer(call, State::hook_config)
            })
            .on(get, deliveries, api("apps.listWebhookDeliveries"), self, |it, call| {
                it.answer(call, State::list_deliveries)
            })
            .on(post, &attempts, api("apps.redeliverWebhookDelivery"), self, |it, call| {
                it.answer(call, State::redeliver)
            })
    }
}

impl State {
    /// Verifies a JWT of the App: its signature, its issuer and its lifetime.
    pub(super) fn check_app(&self, call: &Incoming, now: Timestamp) -> Result<(), Refusal> {
        let refuse = |message: &str| Err(Refusal::new(StatusCode::UNAUTHORIZED, message));
        let Some(token) = call.credential(&["Bearer"]) else {
            return refuse("A JSON web token could not be decoded");
        };
        let Some(claims) = claims(token, &self.keys.app) else {
            return refuse("A JSON web token could not be decoded");
        };
        let number =
            |name: &str| claims[name].as_u64().or_else(|| Some(claims[name].as_f64()? as u64));
        let issuer = match &claims["iss"] {
            Value::String(issuer) => issuer.clone(),
            other => other.to_string(),
        };
        if issuer != self.app_id {
            return Err(Refusal::new(StatusCode::NOT_FOUND, "Integration not found"));
        }
        let now = now.unix_seconds();
        match number("iat") {
            Some(issued) if issued <= now => {}
            _ => {
                return refuse(
                    "'Issued at' claim ('iat') must be an Integer representing the time that the assertion \
                     was issued",
                );
            }
        }
        match number("exp") {
            Some(expiry) if expiry > now + 600 => {
                refuse("'Expiration time' claim ('exp') is too far in the future")
            }
            Some(expiry) if expiry > now => Ok(()),
            _ => refuse(
                "'Expiration time' claim ('exp') must be a numeric value representing the future time at \
                 which the assertion expires",
            ),
        }
    }

    fn app(&mut self, call: &Incoming, _: Timestamp) -> ApiResult {
        let owner = self.account();
        Ok(ok(&json!({
            "id": self.app_number(),
            "slug": "runner-manager",
            "node_id": payloads::node_id("A", self.app_number()),
            "client_id": format!("Iv23li{:0>14}", self.app_id),
            "owner": payloads::account(&owner, &call.base),
            "name": "Runner Manager",
            "description": "",
            "external_url": "https://example.com",
            "html_url": "https://github.com/apps/runner-manager",
            "created_at": "2026-01-01T00:00:00Z",
            "updated_at": "2026-01-01T00:00:00Z",
            "permissions": self.permissions(),
            "events": self.subscribed_events,
            "installations_count": 1,
        })))
    }

    fn installation(&mut self, call: &Incoming, _: Timestamp) -> ApiResult {
        self.check_installation(call)?;
        Ok(ok(&self.installation_json(self.installation_id, &self.account(), &call.base)))
    }

    /// The installation that covers the repository.
    pub(super) fn repo_installation(&mut self, call: &Incoming, _: Timestamp) -> ApiResult {
        let repo = self.named_repo(call)?;
        let id = match repo.installed {
            Installed::Here => self.installation_id,
            Installed::Elsewhere(id) => id,
            Installed::Nowhere => return Err(not_found()),
        };
        let owner = self.owner(&repo.owner).ok_or_else(not_found)?;
        Ok(ok(&self.installation_json(id, owner, &call.base)))
    }

    fn installation_json(&self, id: u64, owner: &Owner, base: &str) -> Value {
        json!({
            "id": id,
            "account": payloads::account(owner, base),
            "repository_selection": "all",
            "access_tokens_url": format!("{base}/app/installations/{id}/access_tokens"),
            "repositories_url": format!("{base}/installation/repositories"),
            "html_url": format!("https://github.com/organizations/{}/settings/installations/{id}", owner.login),
            "app_id": self.app_number(),
            "app_slug": "runner-manager",
            "target_id": owner.id,
            "target_type": if owner.organization { "Organization" } else { "User" },
            "permissions": self.permissions(),
            "events": self.subscribed_events,
            "created_at": "2026-01-01T00:00:00Z",
            "updated_at": "2026-01-01T00:00:00Z",
            "single_file_name": null,
            "has_multiple_single_files": false,
            "single_file_paths": [],
            "suspended_by": self.suspended.map(|_| payloads::account(owner, base)),
            "suspended_at": self.suspended.map(payloads::seconds),
        })
    }

    fn access_token(&mut self, call: &Incoming, now: Timestamp) -> ApiResult {
        self.check_installation(call)?;
        if self.suspended.is_some() {
            return Err(Refusal::new(StatusCode::FORBIDDEN, SUSPENDED));
        }
        let body: &[u8] = if call.body.is_empty() { b"{}" } else { &call.body };
        let wish: Value = serde_json::from_slice(body).unwrap_or_default();
        if !wish.is_object() {
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "Problems parsing JSON"));
        }
        let count = self.next();
        // Tokens are opaque, and new ones are long: a client that truncates or parses them has to fail.
        let mut token = format!("ghs_{}_eyJhbGciOiJFUzI1NiJ9.", self.app_id);
        for index in 0..12 {
            let part = hash(&[count.to_be_bytes(), u64::to_be_bytes(index)].concat());
            token.push_str(&format!("{part:016x}"));
        }
        self.tokens.retain(|_, issued| now.since(*issued) < TOKEN_LIFETIME);
        self.tokens.insert(token.clone(), now);
        let answer = json!({
            "token": token,
            "expires_at": payloads::seconds(now + TOKEN_LIFETIME),
            "permissions": self.permissions(),
            "repository_selection": "all",
        });
        Ok(json_response(StatusCode::CREATED, &answer))
    }

    fn hook_config(&mut self, _: &Incoming, _: Timestamp) -> ApiResult {
        let mut config = json!({ "content_type": "form", "insecure_ssl": "0" });
        if let Some(hook) = &self.hook {
            config["url"] = json!(hook.url);
            config["content_type"] = json!(if hook.form { "form" } else { "json" });
            if !hook.secret.is_empty() {
                config["secret"] = json!("********");
            }
        }
        Ok(ok(&config))
    }

    /// Lists the attempts that have ended, newest first.
    fn list_deliveries(&mut self, call: &Incoming, now: Timestamp) -> ApiResult {
        let size = match call.query("per_page").map(str::parse::<usize>) {
            None => 30,
            Some(Ok(size @ 1..)) => size.min(100),
            Some(_) => return Err(unprocessable("per_page is not a positive number")),
        };
        let from = match call.query("cursor").map(|cursor| cursor.strip_prefix("v1_")?.parse().ok())
        {
            None => u64::MAX,
            Some(Some(from)) => from,
            Some(None) => return Err(unprocessable("cursor is not one that a page named")),
        };
        let wanted = match call.query("status") {
            None => 0..=u16::MAX,
            Some("success") => 200..=399,
            Some("failure") => 400..=599,
            Some(other) => return Err(unprocessable(&format!("status: {other} is not known"))),
        };
        let kept =
            |attempt: &&Attempt| now.since(attempt.at) <= DELIVERY_RETENTION && attempt.id <= from;
        let mut found: Vec<(u64, Value)> = self
            .deliveries
            .values()
            .flat_map(|delivery| {
                delivery.attempts.iter().filter(kept).map(move |attempt| (delivery, attempt))
            })
            .filter_map(|(delivery, attempt)| Some((attempt.id, delivery.item(attempt)?)))
            .filter(|(_, item)| {
                item["status_code"].as_u64().is_some_and(|code| wanted.contains(&(code as u16)))
            })
            .collect();
        found.sort_by_key(|(id, _)| std::cmp::Reverse(*id));
        let next = found.get(size).map(|(id, _)| *id);
        let page: Vec<Value> = found.into_iter().take(size).map(|(_, item)| item).collect();
        Ok(next_page(call, next, ok(&json!(page))))
    }

    fn redeliver(&mut self, call: &Incoming, now: Timestamp) -> ApiResult {
        let id = call.param("delivery").parse::<u64>().ok();
        let made = |attempt: &Attempt| {
            Some(attempt.id) == id && now.since(attempt.at) <= DELIVERY_RETENTION
        };
        let delivery = self.deliveries.values().find(|one| one.attempts.iter().any(made));
        let guid = delivery.ok_or_else(not_found)?.guid.clone();
        self.send_again(&guid, now);
        Ok(json_response(StatusCode::ACCEPTED, &json!({})))
    }

    fn check_installation(&self, call: &Incoming) -> Result<(), Refusal> {
        let same = call.param("installation") == self.installation_id.to_string();
        same.then_some(()).ok_or_else(not_found)
    }

    /// The account on which the App is installed: the owner of the first repository.
    fn account(&self) -> Owner {
        let first = self.repos.values().next().and_then(|repo| self.owner(&repo.owner));
        let example = || Owner { login: "example".to_owned(), id: 90_000_000, organization: true };
        first.cloned().unwrap_or_else(example)
    }

    fn app_number(&self) -> u64 {
        self.app_id.parse().unwrap_or(1)
    }
}

/// Adds the link to the page that begins with this attempt.
fn next_page(call: &Incoming, next: Option<u64>, mut response: Response) -> Response {
    let Some(next) = next else { return response };
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(call.query.iter().filter(|(name, _)| *name != "cursor"));
    query.append_pair("cursor", &format!("v1_{next}"));
    let link = format!("<{}{}?{}>; rel=\"next\"", call.base, call.path, query.finish());
    if let Ok(link) = HeaderValue::try_from(link) {
        response.headers_mut().insert(header::LINK, link);
    }
    response
}

impl Delivery {
    /// An attempt as in the list; `None` while it is in flight.
    fn item(&self, attempt: &Attempt) -> Option<Value> {
        let (end, reply) = attempt.over.as_ref()?;
        let took = end.since(attempt.at);
        let (status, code) = match reply.status {
            Some(status) if status.is_success() => {
                (status.canonical_reason().unwrap_or("OK").to_owned(), status.as_u16())
            }
            Some(status) => {
                (format!("Invalid HTTP Response: {}", status.as_u16()), status.as_u16())
            }
            None if took >= DELIVERY_TIMEOUT => ("timed out".to_owned(), 504),
            None => ("failed to connect".to_owned(), 502),
        };
        let first = self.attempts.first().is_some_and(|first| first.id == attempt.id);
        Some(json!({
            "id": attempt.id,
            "guid": self.guid,
            "delivered_at": attempt.at.rfc3339(),
            "redelivery": !first,
            "duration": took.as_secs_f64(),
            "status": status,
            "status_code": code,
            "event": self.event,
            "action": self.action,
            "installation_id": self.payload["installation"]["id"],
            "repository_id": self.payload["repository"]["id"],
            "throttled_at": null,
        }))
    }
}
