//! Parts of a request: verifying the signature, parsing the delivery, routing the job.

#[path = "performance/deliveries.rs"]
mod deliveries;

use std::hint::black_box;

use axum::body::Body;
use axum::extract::FromRequest;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use deliveries::{Action, ENVIRONMENT, REPO, SECRET, UNKNOWN_REPO, body, sign, signed};
use http::Request;
use http_body_util::Full;
use runner_manager::clients::google::Credentials;
use runner_manager::clients::transport::over_tls;
use runner_manager::clock::Clock;
use runner_manager::config::Config;
use runner_manager::fleet::{Entry, Fleet, Label, RepoName, RunnerNames, Vm};
use runner_manager::routes::{self, SignedDelivery};
use runner_manager::secret::{Secret, SharedSecret, Signature};
use runner_manager::state::AppState;
use tower::ServiceExt;

const ACTIONS: [(Action, &str); 2] = [(Action::Queued, "queued"), (Action::Completed, "completed")];

fn app() -> AppState {
    let fleet = (
        "RUNNER_CONFIG",
        r#"[{"repo": "acme/app", "labels": ["self-hosted"], "vm_instance_name": "runner-1",
            "vm_instance_zone": "asia-northeast1-a"}]"#,
    );
    let vars = ENVIRONMENT.into_iter().chain([fleet]);
    let vars = vars.map(|(name, value)| (name.into(), value.into()));
    let config = Config::from_vars(vars).expect("the configuration is complete");
    let http = over_tls().expect("the TLS configuration is valid");
    AppState::new(config, http, Credentials::from_environment(), Clock::system())
}

fn signature(c: &mut Criterion) {
    let secret = SharedSecret::new(Secret::new(SECRET), None);
    let mut group = c.benchmark_group("verify the signature");
    for (action, name) in ACTIONS {
        let body = body(action, REPO, 1, 1);
        let header = sign(body.as_bytes());
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(BenchmarkId::new(name, body.len()), |b| {
            b.iter(|| {
                secret.verify_signature(
                    &Signature::parse(Some(black_box(header.as_bytes())))
                        .expect("it has the right form"),
                    black_box(body.as_bytes()),
                )
            });
        });
    }
}

fn delivery(c: &mut Criterion) {
    let app = app();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("the runtime can be built");
    let mut group = c.benchmark_group("verify the signature and parse");
    for (action, name) in ACTIONS {
        let request = signed(body(action, REPO, 1, 1));
        let length = body(action, REPO, 1, 1).len();
        group.throughput(Throughput::Bytes(length as u64));
        group.bench_function(BenchmarkId::new(name, length), |b| {
            b.iter(|| {
                let read = SignedDelivery::from_request(as_axum(&request), &app);
                runtime.block_on(read).is_ok()
            });
        });
    }
    group.finish();
    // Everything but the sockets: the layers, the routing, the log line without a subscriber, and the response.
    let router = routes::router(app);
    let request = signed(body(Action::Queued, UNKNOWN_REPO, 1, 1));
    c.bench_function("an unmatched delivery, from request to response", |b| {
        b.iter(|| runtime.block_on(router.clone().oneshot(as_axum(&request))));
    });
}

fn as_axum(request: &Request<Full<bytes::Bytes>>) -> Request<Body> {
    request.clone().map(Body::new)
}

/// A fleet with entries of this number of repositories, and a job of the last one.
fn fleet(entries: usize) -> (Fleet, RepoName, Vec<Label>) {
    let entry = |number: usize| {
        let name = format!("runner-{number}");
        Entry {
            repo: format!("acme/app-{number}").into(),
            labels: vec!["self-hosted".into(), "gpu".into()],
            vm: Vm::new(name.as_str(), "asia-northeast1-a"),
            runner_names: RunnerNames::parse([name.as_str()]),
            runner_labels: Vec::new(),
            stop: runner_manager::fleet::StopOptions::default(),
            register: None,
        }
    };
    let labels = ["self-hosted", "linux", "x64", "gpu"].map(Label::from).to_vec();
    (Fleet::new((1..=entries).map(entry).collect()), format!("acme/app-{entries}").into(), labels)
}

fn routing(c: &mut Criterion) {
    let mut group = c.benchmark_group("find the VM of a job, of a task");
    for entries in [1, 10, 100, 1_000] {
        let (fleet, repo, labels) = fleet(entries);
        let vm = format!("runner-{entries}");
        group.bench_function(BenchmarkId::new("entries", entries), |b| {
            b.iter(|| {
                let routed = fleet.route(black_box(&repo), black_box(&labels)).is_some();
                let found = fleet.find(Some(black_box(&vm)), Some("asia-northeast1-a")).is_ok();
                routed && found
            });
        });
    }
}

criterion_group!(pieces, signature, delivery, routing);
criterion_main!(pieces);
