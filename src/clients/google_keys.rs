//! Google's public keys for identity tokens, by key id. They change about once a week, and a new key is listed before
//! it is used.
//! <https://cloud.google.com/compute/docs/instances/verifying-instance-identity#verify_signature>

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, header};
use jsonwebtoken::DecodingKey;
use serde::Deserialize;
use tokio::sync::Mutex;

use super::Error;
use super::transport::{Outgoing, Transport, read};
use crate::clock::{Clock, Deadline, Timestamp};

/// The shortest time between two fetches, successful or not: a caller can name any key id.
const PAUSE: Duration = Duration::from_secs(60);

/// The lifetime of keys whose response has no `max-age`.
const DEFAULT_AGE: Duration = Duration::from_secs(60 * 60);

/// The age up to which known keys are used while newer ones cannot be fetched.
const OLDEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Google's keys; cheap to clone, and clones share them.
#[derive(Clone)]
pub struct GoogleKeys {
    transport: Transport,
    url: String,
    clock: Clock,
    /// Locked while keys are fetched, so that callers that wait use them.
    known: Arc<Mutex<Known>>,
}

#[derive(Default)]
struct Known {
    keys: BTreeMap<String, DecodingKey>,
    fetched: Option<Timestamp>,
    fresh_until: Option<Timestamp>,
    /// The time and the error of the last attempt, if it failed.
    failed: Option<(Timestamp, Error)>,
}

impl std::fmt::Debug for GoogleKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GoogleKeys({})", self.url)
    }
}

impl GoogleKeys {
    /// The keys that are published at the API root `root`.
    pub fn new(transport: Transport, root: &str, clock: Clock) -> Self {
        Self { transport, url: format!("{root}/oauth2/v3/certs"), clock, known: Arc::default() }
    }

    /// The key of this id; `None` if Google publishes no such key.
    ///
    /// # Errors
    /// Fails if the key is not known and the keys could not be fetched.
    pub async fn key(&self, id: &str, deadline: Deadline) -> Result<Option<DecodingKey>, Error> {
        let call = "get Google's public keys";
        // Another request may hold the lock while it fetches the keys.
        let mut known = tokio::time::timeout(deadline.remaining() / 2, self.known.lock())
            .await
            .map_err(|_| Error::Unanswered { call, why: "out of time".into() })?;
        let now = self.clock.now();
        let lately = |at: Timestamp| now.since(at) < PAUSE;
        let key = known.keys.get(id).cloned();
        let fresh = known.fresh_until.is_some_and(|until| now < until);
        if fresh && (key.is_some() || known.fetched.is_some_and(lately)) {
            return Ok(key);
        }
        let error = match &known.failed {
            Some((at, error)) if lately(*at) => error.clone(),
            _ => match self.fetch(call, deadline).await {
                Ok((keys, age)) => {
                    let fresh_until = Some(now + age);
                    *known = Known { keys, fetched: Some(now), fresh_until, failed: None };
                    return Ok(known.keys.get(id).cloned());
                }
                Err(error) => {
                    known.failed = Some((now, error.clone()));
                    error
                }
            },
        };
        // Known keys stay usable for a while if newer ones cannot be fetched.
        let usable = known.fetched.is_some_and(|at| now.since(at) < OLDEST);
        key.filter(|_| usable).map(Some).ok_or(error)
    }

    async fn fetch(
        &self,
        call: &'static str,
        deadline: Deadline,
    ) -> Result<(BTreeMap<String, DecodingKey>, Duration), Error> {
        let request = Outgoing::get(call, self.url.clone());
        let answer = self.transport.send(&request, deadline).await?;
        let found: Keys = read(call, &answer)?;
        let rsa = found.keys.into_iter().filter(|key| key.kty == "RSA");
        let keys: BTreeMap<_, _> = rsa
            .filter_map(|key| {
                Some((key.kid, DecodingKey::from_rsa_components(&key.n, &key.e).ok()?))
            })
            .collect();
        if keys.is_empty() {
            return Err(Error::Unreadable { call, why: "there is no RSA key among them".into() });
        }
        Ok((keys, max_age(&answer)))
    }
}

/// The lifetime in the response's headers, a day at most.
fn max_age(answer: &Response<Bytes>) -> Duration {
    let control = answer.headers().get(header::CACHE_CONTROL).and_then(|value| value.to_str().ok());
    let told = control.and_then(|control| {
        let mut directives = control.split(',').map(str::trim);
        directives.find_map(|directive| directive.strip_prefix("max-age="))?.parse().ok()
    });
    told.map_or(DEFAULT_AGE, Duration::from_secs).clamp(PAUSE, OLDEST)
}

/// A JSON Web Key Set, RFC 7517.
#[derive(Deserialize)]
struct Keys {
    keys: Vec<Key>,
}

#[derive(Deserialize)]
struct Key {
    kid: String,
    #[serde(default)]
    kty: String,
    #[serde(default)]
    n: String,
    #[serde(default)]
    e: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_good_for_as_long_as_the_answer_says() {
        let age = |control: &'static str| {
            let answer = Response::builder().header(header::CACHE_CONTROL, control);
            max_age(&answer.body(Bytes::new()).unwrap()).as_secs()
        };
        assert_eq!(age("public, max-age=23106, must-revalidate, no-transform"), 23_106);
        assert_eq!(age("max-age=0"), 60);
        assert_eq!(age("max-age=999999999"), 86_400);
        assert_eq!(age("no-store"), 3_600);
        assert_eq!(max_age(&Response::new(Bytes::new())).as_secs(), 3_600);
    }
}
