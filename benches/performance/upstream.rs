//! Google's and GitHub's APIs with fixed responses, which cost as little as possible, so that the service is measured.
//! The tests against the embedded cloud prove that it is correct.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::serve::ListenerExt;
use runner_manager::clients::transport::BoxError;
use runner_manager::clock::Clock;

/// The APIs' current behaviour; clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Upstream(Arc<Settings>);

#[derive(Debug, Default)]
struct Settings {
    latency_ms: AtomicU64,
    stopped: AtomicBool,
    calls: AtomicU64,
}

impl Upstream {
    /// Sets the latency of every call.
    pub(crate) fn set_latency(&self, latency: Duration) {
        let millis = u64::try_from(latency.as_millis()).unwrap_or(u64::MAX);
        self.0.latency_ms.store(millis, Ordering::Relaxed);
    }

    /// Makes VMs stopped and without the label, or running and with a current label.
    pub(crate) fn vms_are_stopped(&self, stopped: bool) {
        self.0.stopped.store(stopped, Ordering::Relaxed);
    }

    pub(crate) fn calls(&self) -> u64 {
        self.0.calls.load(Ordering::Relaxed)
    }

    /// Serves on its own thread until the process ends. Returns the URL.
    pub(crate) fn serve(&self) -> Result<String, BoxError> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let url = format!("http://{}", listener.local_addr()?);
        let router = Router::new().fallback(respond).with_state(self.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::spawn(move || {
            runtime.block_on(async {
                listener.set_nonblocking(true)?;
                let listener = tokio::net::TcpListener::from_std(listener)?.tap_io(|connection| {
                    connection.set_nodelay(true).ok();
                });
                axum::serve(listener, router).await
            })
        });
        Ok(url)
    }

    fn instance(&self) -> String {
        if self.0.stopped.load(Ordering::Relaxed) {
            return r#"{"id":"4711","status":"TERMINATED","labelFingerprint":"42WmSpB8rSM=","disks":[{"type":"PERSISTENT"}]}"#
                .to_owned();
        }
        // In the future, so that no event of the next minutes has to write the label.
        let idle_since = Clock::system().now().unix_seconds() + 600;
        format!(
            r#"{{"id":"4711","status":"RUNNING","labels":{{"team":"ci","runner-manager-idle-since":"{idle_since}"}},
            "labelFingerprint":"42WmSpB8rSM=","lastStartTimestamp":"2026-11-23T21:03:00.250-08:00","disks":[{{"type":"PERSISTENT"}}]}}"#
        )
    }
}

/// Responds to any call. Reads the body, so that the connection can be used again.
async fn respond(State(upstream): State<Upstream>, method: Method, uri: Uri, _: Bytes) -> Response {
    const OPERATION: &str =
        r#"{"name":"operation-1764","operationType":"start","status":"RUNNING"}"#;
    upstream.0.calls.fetch_add(1, Ordering::Relaxed);
    let latency = upstream.0.latency_ms.load(Ordering::Relaxed);
    if latency > 0 {
        tokio::time::sleep(Duration::from_millis(latency)).await;
    }
    let path = uri.path();
    let last = path.rsplit('/').next().unwrap_or_default();
    let json = match (&method, last) {
        (&Method::POST, "access_tokens") => {
            r#"{"token":"ghs_0123456789abcdef0123456789abcdef","expires_at":"2099-01-01T00:00:00Z"}"#
        }
        (&Method::POST, "token") => {
            r#"{"access_token":"ya29.0123456789abcdef","expires_in":3599,"token_type":"Bearer"}"#
        }
        (&Method::POST, "tasks") => r#"{"name":"projects/p/locations/l/queues/q/tasks/t"}"#,
        (&Method::POST, "start" | "stop" | "setLabels") => OPERATION,
        (&Method::GET, "runners") => {
            r#"{"total_count":1,"runners":[{"id":1,"name":"runner-1","os":"linux","status":"online","busy":false,
            "labels":[{"name":"self-hosted"},{"name":"pool-1"}]}]}"#
        }
        (&Method::GET, "runs") => r#"{"total_count":0,"workflow_runs":[]}"#,
        (&Method::GET, _) if path.contains("/instances/") => {
            return json_response(upstream.instance());
        }
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    json_response(json)
}

fn json_response(body: impl IntoResponse) -> Response {
    ([("content-type", "application/json; charset=UTF-8")], body).into_response()
}
