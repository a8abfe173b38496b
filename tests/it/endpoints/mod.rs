//! Good and bad requests to each endpoint.

mod hold;
mod info;
mod page;
mod reconcile;
mod registration;
mod runner;
mod status;
mod strangers;
mod webhook;

use http::{Method, StatusCode};
use serde_json::Value;

use crate::world::{Answer, SECRET, World};

/// The text of an error reply, which must not hold the secret.
#[track_caller]
fn detail(answer: &Answer, status: StatusCode) -> String {
    assert_eq!(answer.status, status, "{answer:?}");
    let detail = answer.body["detail"].as_str().unwrap_or_else(|| panic!("no detail: {answer:?}"));
    assert!(!detail.contains(SECRET), "the secret is shown");
    assert_eq!(answer.body.as_object().map(serde_json::Map::len), Some(1));
    detail.to_owned()
}

#[tokio::test(start_paused = true)]
async fn whatever_is_not_there_is_said_so_in_json() {
    let world = World::new();
    for (method, path, status) in [
        (Method::GET, "/nowhere", StatusCode::NOT_FOUND),
        (Method::POST, "/runner", StatusCode::NOT_FOUND),
        (Method::GET, "/runner/start", StatusCode::METHOD_NOT_ALLOWED),
        (Method::PUT, "/runner/stop", StatusCode::METHOD_NOT_ALLOWED),
        (Method::GET, "/github/webhook", StatusCode::METHOD_NOT_ALLOWED),
        (Method::POST, "/runner/status", StatusCode::METHOD_NOT_ALLOWED),
        (Method::GET, "/runner/hold", StatusCode::METHOD_NOT_ALLOWED),
        (Method::GET, "/runner/reconcile", StatusCode::METHOD_NOT_ALLOWED),
        (Method::GET, "/runner/release", StatusCode::METHOD_NOT_ALLOWED),
        (Method::POST, "/health", StatusCode::METHOD_NOT_ALLOWED),
        (Method::DELETE, "/", StatusCode::METHOD_NOT_ALLOWED),
    ] {
        detail(&world.send(method, path, &[], "").await, status);
    }
    assert!(world.cloud.calls().is_empty());
}

#[track_caller]
fn says(answer: &Answer, status: &str) {
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!(answer.body["status"], Value::from(status), "{answer:?}");
}
