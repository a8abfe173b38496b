//! Google's token endpoint, which exchanges a signed assertion for a bearer token.
//!
//! <https://developers.google.com/identity/protocols/oauth2/service-account#httprest>

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::response::Response;
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use http::StatusCode;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::{Value, json};

use super::wire::{Incoming, json_response};
use super::{Keys, lock};
use crate::clock::{Clock, Timestamp};

const GRANT: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";

/// The bearer tokens of Google's APIs. Cheap to clone; clones share their state.
#[derive(Clone)]
pub struct Accounts(Arc<Mutex<State>>);

struct State {
    keys: Arc<Keys>,
    clock: Clock,
    lifetime: Duration,
    issued: BTreeMap<String, Timestamp>,
    accepted: BTreeSet<String>,
    count: u64,
}

impl Accounts {
    pub(super) fn new(keys: Arc<Keys>, clock: Clock) -> Self {
        Self(Arc::new(Mutex::new(State {
            keys,
            clock,
            lifetime: Duration::from_secs(3600),
            issued: BTreeMap::new(),
            accepted: BTreeSet::new(),
            count: 0,
        })))
    }

    /// Verifies times with `clock`: gcp_auth always uses the system's, even if the cloud has another.
    pub fn use_clock(&self, clock: Clock) {
        lock(&self.0).clock = clock;
    }

    /// Sets the lifetime of new tokens; one hour by default.
    pub fn lifetime(&self, lifetime: Duration) {
        lock(&self.0).lifetime = lifetime;
    }

    /// Accepts this bearer token without a time limit.
    pub fn accept(&self, token: &str) {
        lock(&self.0).accepted.insert(token.to_owned());
    }

    /// Accepts this bearer token until `expiry`.
    pub fn accept_until(&self, token: &str, expiry: Timestamp) {
        lock(&self.0).issued.insert(token.to_owned(), expiry);
    }

    /// Rejects all tokens that were issued or accepted so far.
    pub fn revoke_all(&self) {
        let mut state = lock(&self.0);
        state.issued.clear();
        state.accepted.clear();
    }

    /// The call has a valid bearer token.
    pub(super) fn accepts(&self, call: &Incoming) -> bool {
        let Some(token) = call.credential(&["Bearer"]) else { return false };
        let state = lock(&self.0);
        let fresh = state.issued.get(token).is_some_and(|expiry| state.clock.now() < *expiry);
        fresh || state.accepted.contains(token)
    }

    pub(super) fn token(&self, call: &Incoming) -> Response {
        let mut state = lock(&self.0);
        let form: BTreeMap<String, String> =
            form_urlencoded::parse(&call.body).into_owned().collect();
        let field = |name| form.get(name).map_or("", String::as_str);
        if field("grant_type") != GRANT {
            return refused("unsupported_grant_type", "Invalid grant_type");
        }
        if let Err(why) = state.check(field("assertion")) {
            return refused("invalid_grant", why);
        }
        state.count += 1;
        let token = format!("ya29.emulated-{:04}", state.count);
        let expiry = state.clock.now() + state.lifetime;
        state.issued.insert(token.clone(), expiry);
        let lifetime = state.lifetime.as_secs();
        json_response(
            StatusCode::OK,
            &json!({ "access_token": token, "expires_in": lifetime, "token_type": "Bearer" }),
        )
    }
}

impl State {
    fn check(&self, assertion: &str) -> Result<(), &'static str> {
        let claims = claims(assertion, &self.keys.service).ok_or("Invalid JWT Signature.")?;
        if claims["iss"] != json!(self.keys.client_email()) {
            return Err("Invalid grant: account not found");
        }
        if !claims["aud"].as_str().is_some_and(|audience| audience.ends_with("/token")) {
            return Err("Invalid JWT: Failed audience check.");
        }
        let times = (claims["iat"].as_u64(), claims["exp"].as_u64());
        let (Some(issued), Some(expiry)) = times else {
            return Err("Invalid JWT: iat and exp must be numbers");
        };
        let now = self.clock.now().unix_seconds();
        // The signer's clock may be ahead.
        if issued > now + 300 || expiry <= issued || expiry <= now || expiry > issued + 3600 {
            return Err(
                "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe",
            );
        }
        Ok(())
    }
}

fn refused(error: &str, description: &str) -> Response {
    let body = json!({ "error": error, "error_description": description });
    json_response(StatusCode::BAD_REQUEST, &body)
}

/// The claims of a JWT with a valid RS256 signature; the caller checks their values. jsonwebtoken's own decoding does not
/// fit: it rejects base64 with padding, which Google accepts and gcp_auth sends, and it uses the system's clock.
pub(super) fn claims(token: &str, key: &DecodingKey) -> Option<Value> {
    let (message, signature) = token.rsplit_once('.')?;
    let (header, claims) = message.split_once('.')?;
    let signature = signature.trim_end_matches('=');
    let signed = jsonwebtoken::crypto::verify(signature, message.as_bytes(), key, Algorithm::RS256);
    let valid = json_part(header)?["alg"] == "RS256" && signed.unwrap_or(false);
    json_part(claims).filter(|_| valid)
}

fn json_part(part: &str) -> Option<Value> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(part.trim_end_matches('=')).ok()?;
    serde_json::from_slice(&bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulators::testing::{World, keys, sign};

    async fn ask(world: &World, claims: Value) -> (StatusCode, Value) {
        let now = world.clock.now().unix_seconds();
        let mut all = json!({
            "iss": keys().client_email(),
            "scope": "https://www.googleapis.com/auth/cloud-platform",
            "aud": "http://127.0.0.1:1/token",
            "iat": now,
            "exp": now + 3600,
        });
        all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
        let file: Value = serde_json::from_str(&keys().service_account_json("t")).unwrap();
        let assertion = sign(&all, file["private_key"].as_str().unwrap());
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", GRANT)
            .append_pair("assertion", &assertion)
            .finish();
        let request = http::Request::post("/token").body(axum::body::Body::from(form)).unwrap();
        let response = tower::ServiceExt::oneshot(world.cloud.router(), request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        (parts.status, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_valid_for_an_hour_and_an_unknown_one_never() {
        let world = World::new().await;
        let (status, answer) = ask(&world, json!({})).await;
        assert_eq!((status, &answer["expires_in"]), (StatusCode::OK, &json!(3600)));
        let token = format!("Bearer {}", answer["access_token"].as_str().unwrap());
        let path = "/v2/projects/p/locations/l/queues/q";
        let call = |token: String| {
            let world = &world;
            async move { world.send("GET", path, &token, Value::Null).await }
        };
        assert_eq!(call(token.clone()).await.0, StatusCode::OK);
        let (status, _, answer) = call("Bearer other".to_owned()).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        assert_eq!(answer["error"]["status"], "UNAUTHENTICATED");
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(call(token).await.0, StatusCode::UNAUTHORIZED);
    }

    #[tokio::test(start_paused = true)]
    async fn a_bad_assertion_is_an_invalid_grant() {
        let world = World::new().await;
        for bad in [
            json!({ "iss": "another-account" }),
            json!({ "aud": "https://elsewhere.test/" }),
            json!({ "exp": 1 }),
            json!({ "iat": 4_000_000_000_u64, "exp": 4_000_000_100_u64 }),
        ] {
            let (status, answer) = ask(&world, bad.clone()).await;
            assert_eq!(
                (status, &answer["error"]),
                (StatusCode::BAD_REQUEST, &json!("invalid_grant")),
                "{bad}"
            );
        }
    }
}
