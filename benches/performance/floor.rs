//! The floor: the minimum of work for a delivery, with the same framework and the same HTTP client as the service.
//!
//! It verifies the signature, parses the same fields, makes the same concurrent calls, and responds. It routes by one
//! comparison, makes no decisions, logs nothing, has no deadlines, and reads only the status of the API's responses.

use std::net::Ipv4Addr;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use hmac::{Hmac, KeyInit, Mac};
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{Request, Response};
use http_body_util::Full;
use runner_manager::clients::transport::{BoxError, HttpService, over_tls};
use serde::Deserialize;
use sha2::Sha256;
use tower::ServiceExt;

use crate::deliveries::{REPO, SECRET};

const HEALTHY: &str = r#"{"status":"healthy"}"#;
const OK: &str = r#"{"status":"ok"}"#;

#[derive(Clone)]
struct Floor {
    hmac: Hmac<Sha256>,
    http: HttpService,
    upstream: Arc<str>,
}

#[derive(Deserialize)]
struct Event {
    action: String,
    workflow_job: Job,
    repository: Repository,
}

#[derive(Deserialize)]
struct Job {
    id: u64,
    labels: Vec<String>,
    #[expect(dead_code, reason = "the service parses it as well")]
    status: Option<String>,
    #[expect(dead_code, reason = "the service parses it as well")]
    runner_name: Option<String>,
}

#[derive(Deserialize)]
struct Repository {
    full_name: String,
}

/// Serves until it is killed.
pub(crate) async fn serve(port: u16, upstream: &str) -> Result<(), BoxError> {
    let floor = Floor {
        hmac: Hmac::<Sha256>::new_from_slice(SECRET.as_bytes())?,
        http: over_tls()?,
        upstream: upstream.into(),
    };
    let router = Router::new()
        .route("/github/webhook", post(webhook))
        .route("/health", get(async || json(HEALTHY)))
        .with_state(floor);
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    let listener = listener.tap_io(|connection| {
        connection.set_nodelay(true).ok();
    });
    Ok(axum::serve(listener, router).await?)
}

fn json(body: &'static str) -> ([(&'static str, &'static str); 1], &'static str) {
    ([("content-type", "application/json")], body)
}

async fn webhook(
    State(floor): State<Floor>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<([(&'static str, &'static str); 1], &'static str), StatusCode> {
    let signature = headers.get("x-hub-signature-256").ok_or(StatusCode::UNAUTHORIZED)?;
    let signature = unhex(signature.as_bytes()).ok_or(StatusCode::UNAUTHORIZED)?;
    floor
        .hmac
        .clone()
        .chain_update(&body)
        .verify_slice(&signature)
        .map_err(|_| StatusCode::UNAUTHORIZED)?;
    let event: Event = serde_json::from_slice(&body).map_err(|_| StatusCode::BAD_REQUEST)?;
    let pool = event.workflow_job.labels.iter().find_map(|label| label.strip_prefix("pool-"));
    if let (true, "queued" | "completed", Some(pool)) =
        (event.repository.full_name == REPO, event.action.as_str(), pool)
    {
        floor.two_calls(pool, event.workflow_job.id).await.map_err(|_| StatusCode::BAD_GATEWAY)?;
    }
    Ok(json(OK))
}

impl Floor {
    async fn two_calls(&self, pool: &str, job: u64) -> Result<(), BoxError> {
        let upstream = &self.upstream;
        let read = Request::get(format!(
            "{upstream}/compute/v1/projects/p/zones/z/instances/runner-{pool}?fields=id%2Cstatus%2Clabels"
        ));
        let task = format!(
            r#"{{"task":{{"name":"projects/p/locations/l/queues/q/tasks/{job}","scheduleTime":"2026-11-24T09:00:00Z",
            "httpRequest":{{"url":"https://service.example/runner/start","httpMethod":"POST",
            "headers":{{"Content-Type":"application/json"}},"body":"{}"}}}}}}"#,
            "eyJ2bV9pbnN0YW5jZV9uYW1lIjoi".repeat(8)
        );
        let create = Request::post(format!("{upstream}/v2/projects/p/locations/l/queues/q/tasks"))
            .header(CONTENT_TYPE, "application/json");
        let (read, create) = (
            read.header(AUTHORIZATION, "Bearer ya29.0123456789abcdef").body(Full::default())?,
            create.header(AUTHORIZATION, "Bearer ya29.0123456789abcdef").body(Full::from(task))?,
        );
        let (read, created) =
            tokio::join!(self.http.clone().oneshot(read), self.http.clone().oneshot(create));
        let succeeded = |response: Response<Bytes>| response.status().is_success();
        if succeeded(read?) && succeeded(created?) { Ok(()) } else { Err("refused".into()) }
    }
}

fn unhex(header: &[u8]) -> Option<[u8; 32]> {
    let hex = header.strip_prefix(b"sha256=")?;
    let mut bytes = [0; 32];
    let digit = |c: u8| char::from(c).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    (hex.len() == 64).then_some(bytes)
}
