//! The harness of the emulators' own tests: a cloud under a paused clock, and a client that does not use the service's
//! code.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tower::util::BoxCloneSyncService;
use tower::{ServiceExt, service_fn};

use super::{BoxError, Cloud, Driver, Keys, Setup, lock};
use crate::clock::{Clock, Timestamp};

pub(super) const TOKEN: &str = "fixed";
pub(super) const APP: &str = "4242";

/// Generated once per process, since that is slow.
pub(super) fn keys() -> Arc<Keys> {
    static KEYS: OnceLock<Arc<Keys>> = OnceLock::new();
    Arc::clone(KEYS.get_or_init(|| Arc::new(Keys::generate())))
}

/// A cloud and a client of it. Its time starts at 2026-11-24T05:00:00Z.
pub(crate) struct World {
    pub(crate) cloud: Cloud,
    pub(super) clock: Clock,
    router: Router,
    driver: Driver,
    received: Arc<Mutex<Vec<Request<Bytes>>>>,
    answers: Arc<Mutex<Vec<StatusCode>>>,
    installation: String,
}

impl World {
    pub(crate) async fn new() -> Self {
        let clock = Clock::paced(Timestamp::parse("2026-11-24T05:00:00Z").unwrap(), 1);
        let setup = Setup {
            project: "p".to_owned(),
            location: "l".to_owned(),
            queue: "q".to_owned(),
            app_id: APP.to_owned(),
            installation_id: 7,
            keys: keys(),
        };
        let cloud = Cloud::new(setup, clock.clone());
        cloud.accounts.accept(TOKEN);
        let (received, answers) = (Arc::default(), Arc::default());
        let driver = Driver::new(service(&received, &answers));
        let router = cloud.router();
        let installation = String::new();
        let mut world = Self { cloud, clock, router, driver, received, answers, installation };
        let path = "/app/installations/7/access_tokens";
        let (status, token) = world.app("POST", path, &world.jwt(json!({}))).await;
        assert_eq!(status, StatusCode::CREATED);
        world.installation = token["token"].as_str().unwrap().to_owned();
        world
    }

    /// A valid JWT of the App, with these claims replaced.
    pub(super) fn jwt(&self, claims: Value) -> String {
        let now = self.clock.now().unix_seconds();
        let mut all = json!({ "iss": APP, "iat": now - 60, "exp": now + 300 });
        all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
        sign(&all, keys().app_private_key_pem())
    }

    pub(super) async fn app(&self, method: &str, path: &str, jwt: &str) -> (StatusCode, Value) {
        let answer = self.send(method, path, &format!("Bearer {jwt}"), Value::Null).await;
        (answer.0, answer.2)
    }

    /// Calls one of Google's APIs.
    pub(super) async fn google(
        &self,
        method: &str,
        path: &str,
        body: Value,
    ) -> (StatusCode, Value) {
        let answer = self.send(method, path, &format!("Bearer {TOKEN}"), body).await;
        (answer.0, answer.2)
    }

    /// Calls GitHub's API as the installation.
    pub(super) async fn github(&self, path: &str) -> (StatusCode, HeaderMap, Value) {
        self.by_installation("GET", path).await
    }

    pub(super) async fn by_installation(
        &self,
        method: &str,
        path: &str,
    ) -> (StatusCode, HeaderMap, Value) {
        let credential = format!("token {}", self.installation);
        self.send(method, path, &credential, Value::Null).await
    }

    pub(super) async fn send(
        &self,
        method: &str,
        path: &str,
        credential: &str,
        body: Value,
    ) -> (StatusCode, HeaderMap, Value) {
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let request = Request::builder()
            .method(method)
            .uri(format!("http://cloud.test{path}"))
            .header("authorization", credential)
            .header("user-agent", "test");
        let response = self.router.clone().oneshot(request.body(body).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (parts.status, parts.headers, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    pub(super) async fn pass(&mut self, span: u64) {
        let until = self.clock.now() + Duration::from_secs(span);
        self.cloud.run_until(&mut self.driver, Some(until)).await;
    }

    /// Sets the service's next responses; after them it responds 200.
    pub(super) fn answer(&self, answers: &[u16]) {
        let answers = answers.iter().rev().map(|code| StatusCode::from_u16(*code).unwrap());
        *lock(&self.answers) = answers.collect();
    }

    /// The requests that the service has received.
    pub(super) fn received(&self) -> Vec<Request<Bytes>> {
        lock(&self.received).clone()
    }
}

pub(super) fn sign(claims: &Value, pem: &str) -> String {
    let key = EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap();
    jsonwebtoken::encode(&Header::new(Algorithm::RS256), claims, &key).unwrap()
}

/// A service that records its requests and responds after one second. 599 stands for a crash before the response.
fn service(
    received: &Arc<Mutex<Vec<Request<Bytes>>>>,
    answers: &Arc<Mutex<Vec<StatusCode>>>,
) -> BoxCloneSyncService<Request<Full<Bytes>>, Response<Bytes>, BoxError> {
    let (received, answers) = (Arc::clone(received), Arc::clone(answers));
    BoxCloneSyncService::new(service_fn(move |request: Request<Full<Bytes>>| {
        let (received, answers) = (Arc::clone(&received), Arc::clone(&answers));
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            lock(&received).push(Request::from_parts(parts, body));
            let status = lock(&answers).pop().unwrap_or(StatusCode::OK);
            tokio::time::sleep(Duration::from_secs(1)).await;
            if status.as_u16() == 599 {
                return Err("the connection broke".into());
            }
            Ok(Response::builder().status(status).body(Bytes::new())?)
        }
    }))
}
