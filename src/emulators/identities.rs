//! The metadata server's identity tokens, and the keys that Google publishes for them.
//!
//! <https://cloud.google.com/compute/docs/instances/verifying-instance-identity>

use std::sync::{Arc, Mutex};

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use super::keys::rsa_key;
use super::wire::{Incoming, json_response};
use super::{hash, lock};
use crate::clock::Clock;

/// The VMs' identity tokens. Cheap to clone; clones share their state.
#[derive(Clone)]
pub struct Identities(Arc<Mutex<State>>);

struct State {
    project: String,
    clock: Clock,
    /// Oldest first; the newest signs. The first one is generated on demand.
    keys: Vec<Key>,
}

struct Key {
    id: String,
    pem: String,
    private: EncodingKey,
}

impl Key {
    fn generate() -> Self {
        let (pem, _) = rsa_key();
        let private =
            EncodingKey::from_rsa_pem(pem.as_bytes()).expect("a key that was just generated");
        Self { id: format!("{:016x}", hash(pem.as_bytes())), pem, private }
    }

    fn jwk(&self) -> Value {
        let jwk = Jwk::from_encoding_key(&self.private, Algorithm::RS256).expect("an RSA key");
        let mut jwk = serde_json::to_value(jwk).expect("a JWK is JSON");
        jwk["kid"] = json!(self.id);
        jwk["use"] = json!("sig");
        jwk
    }
}

impl Identities {
    pub(super) fn new(project: &str, clock: Clock) -> Self {
        Self(Arc::new(Mutex::new(State { project: project.to_owned(), clock, keys: Vec::new() })))
    }

    /// The claims of this instance's identity token, in the full format.
    pub fn claims(&self, vm: &str, zone: &str, audience: &str) -> Value {
        let state = lock(&self.0);
        let now = state.clock.now().unix_seconds();
        json!({
            "aud": audience,
            "azp": "112233445566778899001",
            "email": "123456789012-compute@developer.gserviceaccount.com",
            "email_verified": true,
            "exp": now + 3600,
            "google": { "compute_engine": {
                "instance_creation_timestamp": 1_764_000_000,
                "instance_id": "7000000000000000001",
                "instance_name": vm,
                "project_id": state.project,
                "project_number": 123_456_789_012_u64,
                "zone": zone,
            } },
            "iat": now,
            "iss": "https://accounts.google.com",
            "sub": "112233445566778899001",
        })
    }

    /// A token with these claims, signed with the newest key.
    pub fn sign(&self, claims: &Value) -> String {
        let mut state = lock(&self.0);
        let key = state.newest();
        let header = Header { kid: Some(key.id.clone()), ..Header::new(Algorithm::RS256) };
        jsonwebtoken::encode(&header, claims, &key.private).expect("claims are JSON")
    }

    /// The newest private key, for tests that forge tokens.
    pub fn private_key_pem(&self) -> String {
        lock(&self.0).newest().pem.clone()
    }

    /// The id of the newest key.
    pub fn key_id(&self) -> String {
        lock(&self.0).newest().id.clone()
    }

    /// Adds a new key, which signs from now on. Older keys stay published.
    pub fn rotate(&self) {
        lock(&self.0).keys.push(Key::generate());
    }

    /// Removes all keys but the newest.
    pub fn withdraw_old(&self) {
        let mut state = lock(&self.0);
        let old = state.keys.len().saturating_sub(1);
        state.keys.drain(..old);
    }

    pub(super) fn certs(&self, _: &Incoming) -> Response {
        let mut state = lock(&self.0);
        state.newest();
        let keys: Vec<Value> = state.keys.iter().map(Key::jwk).collect();
        let answer = json_response(http::StatusCode::OK, &json!({ "keys": keys }));
        let control = HeaderValue::from_static("public, max-age=21600, must-revalidate");
        ([(header::CACHE_CONTROL, control)], answer).into_response()
    }
}

impl State {
    fn newest(&mut self) -> &Key {
        if self.keys.is_empty() {
            self.keys.push(Key::generate());
        }
        &self.keys[self.keys.len() - 1]
    }
}
