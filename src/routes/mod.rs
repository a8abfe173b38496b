//! The HTTP surface: extract, call the lifecycle, reply.

mod error;
mod extract;
mod info;
mod observe;
mod page;
mod registration;
mod runner;
mod webhook;
mod webhook_event;

use std::any::Any;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tower_http::catch_panic::CatchPanicLayer;

use crate::clients::budget;
use crate::fleet::Vm;
use crate::lifecycle::{Outcome, Status};
use crate::state::AppState;
use crate::telemetry::Origin;
use error::{ApiError, Failure};
pub use extract::{LARGEST_BODY, SignedDelivery};
pub use info::SERVICE;
pub use webhook_event::{Job, Unreadable, WORKFLOW_JOB, WebhookEvent, payload};

pub use crate::webhook_url::PATH as WEBHOOK;

/// The header with the decision and its reason. GitHub shows it under Recent Deliveries.
const OUTCOME: &str = "x-runner-manager-outcome";

/// The router with all endpoints.
pub fn router(app: AppState) -> Router {
    Router::new()
        .route(WEBHOOK, post(webhook::receive))
        .route("/github/webhook/", post(webhook::receive))
        .route("/runner/start", post(runner::start))
        .route("/runner/stop", post(runner::stop))
        .route("/runner/hold", post(runner::hold))
        .route("/runner/release", post(runner::release))
        .route("/runner/status", get(observe::status))
        .route("/runner/registration", post(registration::registration))
        .route("/runner/reconcile", post(observe::reconcile))
        .route("/health", get(info::health))
        .route("/", get(info::root))
        .fallback(|| async { ApiError::NoSuchPath })
        .method_not_allowed_fallback(|| async { ApiError::NoSuchMethod })
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn_with_state(app.clone(), with_its_origin))
        .with_state(app)
}

/// Answers the request in a span, so that its log lines can be found together. During a shutdown requests are refused.
async fn with_its_origin(State(app): State<AppState>, request: Request, next: Next) -> Response {
    if request.uri().path() == "/health" && !app.draining.is_set() {
        // Probes are frequent, and log nothing.
        return next.run(request).await;
    }
    let origin = Origin::of(&request);
    let path = request.extensions().get::<MatchedPath>().cloned();
    let respond = async {
        let mut response = if app.draining.is_set() {
            ApiError::ShuttingDown.into_response()
        } else {
            next.run(request).await
        };
        // What is behind the secret must not stay in a cache.
        let no_store = HeaderValue::from_static("no-store");
        response.headers_mut().entry(header::CACHE_CONTROL).or_insert(no_store);
        if let Some(failure) = response.extensions_mut().remove::<Failure>() {
            let path = path.as_ref().map_or("", MatchedPath::as_str);
            failure.log(path, &app.failures, app.cx.clock.now());
        }
        response
    };
    origin.scope(budget::limit(respond)).await
}

#[expect(clippy::needless_pass_by_value, reason = "the layer's signature")]
fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or(panic.downcast_ref::<&str>().copied());
    tracing::error!("a handler panicked: {}", message.unwrap_or("no message"));
    ApiError::Panicked.into_response()
}

/// The outcome as a header: visible ASCII only, although it may quote an API.
fn outcome_header(outcome: &str) -> HeaderValue {
    let visible = |c: char| if matches!(c, ' '..='~') { c } else { '?' };
    let text: String = outcome.chars().take(500).map(visible).collect();
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("?"))
}

/// Logs the decision about a VM and its evidence.
fn log(vm: &Vm, outcome: &Outcome) {
    let (Vm { name, zone }, word) = (vm, outcome.status.as_str());
    if outcome.status == Status::Unknown {
        // The VM keeps running until GitHub answers.
        tracing::warn!(vm.name = %name, vm.zone = %zone, outcome = word, "VM {name}: {outcome}");
    } else {
        tracing::info!(vm.name = %name, vm.zone = %zone, outcome = word, "VM {name}: {outcome}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_answered() {
        let response = panicked(Box::new("out of range"));
        assert_eq!(response.status(), axum::http::StatusCode::INTERNAL_SERVER_ERROR);
    }

    #[test]
    fn an_outcome_of_any_text_fits_into_a_header() {
        assert_eq!(outcome_header("busy, job 1 \u{2192} \n2"), "busy, job 1 ? ?2");
        assert_eq!(outcome_header(&"x".repeat(600)).len(), 500);
    }
}
