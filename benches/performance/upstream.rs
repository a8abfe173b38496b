//! Google and GitHub with ready-made answers: the least that a reply can cost, so that what is measured is the service.
//! Whether the service does the right thing is for the tests to say, on the embedded cloud.

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

/// How the APIs answer just now; clones agree.
#[derive(Clone, Debug, Default)]
pub(crate) struct Upstream(Arc<Settings>);

#[derive(Debug, Default)]
struct Settings {
    latency_ms: AtomicU64,
    stopped: AtomicBool,
    calls: AtomicU64,
}

impl Upstream {
    /// Every call takes this long, there and back.
    pub(crate) fn takes(&self, latency: Duration) {
        let millis = u64::try_from(latency.as_millis()).unwrap_or(u64::MAX);
        self.0.latency_ms.store(millis, Ordering::Relaxed);
    }

    /// Whether VMs are stopped and without a mark, or run and have just been marked.
    pub(crate) fn vms_are_stopped(&self, stopped: bool) {
        self.0.stopped.store(stopped, Ordering::Relaxed);
    }

    /// How many calls there were so far.
    pub(crate) fn calls(&self) -> u64 {
        self.0.calls.load(Ordering::Relaxed)
    }

    /// Serves on a thread of its own until the process ends; the URL.
    pub(crate) fn serve(&self) -> Result<String, BoxError> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let url = format!("http://{}", listener.local_addr()?);
        let router = Router::new().fallback(answer).with_state(self.clone());
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
        // Ahead of any event of the next minutes, so that none of them has to write one.
        let mark = Clock::system().now().unix_seconds() + 600;
        format!(
            r#"{{"id":"4711","status":"RUNNING","labels":{{"team":"ci","runner-manager-idle-since":"{mark}"}},
            "labelFingerprint":"42WmSpB8rSM=","lastStartTimestamp":"2026-11-23T21:03:00.250-08:00","disks":[{{"type":"PERSISTENT"}}]}}"#
        )
    }
}

/// The body is taken, or the connection could not be used again.
async fn answer(State(upstream): State<Upstream>, method: Method, uri: Uri, _: Bytes) -> Response {
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
            return json_of(upstream.instance());
        }
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    json_of(json)
}

fn json_of(body: impl IntoResponse) -> Response {
    ([("content-type", "application/json; charset=UTF-8")], body).into_response()
}
