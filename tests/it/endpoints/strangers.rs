//! Requests of callers that know no secret: refused early, and with few log lines.

use axum::body::Body;
use http::{Method, Request, StatusCode};
use runner_manager::emulators::{ErrorBody, Fault};
use serde_json::{Value, json};

use super::detail;
use crate::harness::Log;
use crate::world::{SECRET, World, ZONE, fleet, minutes, sign};

const TOO_LARGE: &str = "2000000";

/// Sends a request with these headers and the body `x`.
async fn knock(world: &World, path: &str, headers: &[(&str, &str)]) -> StatusCode {
    world.send(Method::POST, path, headers, "x".to_owned()).await.status
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_refusals_logs_a_burst_and_then_a_line_a_minute() {
    let (log, _guard) = Log::listen();
    let mut world = World::with_config(fleet(r#", "register": "repository""#));
    let forged = sign("another secret", b"x");
    let floods: [(&str, &[(&str, &str)]); 5] = [
        ("/github/webhook", &[]),
        ("/github/webhook", &[("X-Hub-Signature-256", &forged)]),
        ("/github/webhook", &[("X-Hub-Signature-256", &forged), ("Content-Length", TOO_LARGE)]),
        ("/runner/start", &[("X-Runner-Secret", "wrong")]),
        ("/runner/registration", &[]),
    ];
    for (path, headers) in floods {
        let before = log.count("WARN", "");
        for _ in 0..300 {
            assert!(knock(&world, path, headers).await.is_client_error(), "{path} {headers:?}");
        }
        let lines = log.count("WARN", "") - before;
        assert_eq!(lines, 10, "{path} {headers:?}: one flood does not hide another");
    }
    assert_eq!(log.count("ERROR", ""), 0);
    world.pass(minutes(2)).await;
    knock(&world, "/github/webhook", &[("X-Hub-Signature-256", &forged)]).await;
    assert_eq!(log.count("WARN", "(and 290 more like this since the last such line)"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_flood_while_googles_keys_cannot_be_fetched_is_no_error_of_the_service() {
    let (log, _guard) = Log::listen();
    let world = World::with_config(fleet(r#", "register": "repository""#));
    world.cloud.faults.on(|call| {
        let down = Fault::Before(StatusCode::SERVICE_UNAVAILABLE, ErrorBody::Html);
        (call.method == "oauth2.certs").then_some(down)
    });
    let token = world.cloud.identities.sign(&world.cloud.identities.claims(
        "gpu-1",
        ZONE,
        "https://service.example",
    ));
    let bearer = format!("Bearer {token}");
    for _ in 0..100 {
        let status = knock(&world, "/runner/registration", &[("Authorization", &bearer)]).await;
        assert!(!status.is_success());
    }
    assert_eq!(log.count("ERROR", ""), 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_no_body_could_make_right_is_refused_before_its_body() {
    let registering = World::with_config(fleet(r#", "register": "repository""#));
    let length = ("Content-Length", TOO_LARGE);
    for signature in ["nonsense", "sha256=", "sha1=0123456789abcdef0123456789abcdef01234567"] {
        let headers = [("X-Hub-Signature-256", signature), length];
        let status = knock(&registering, "/github/webhook", &headers).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{signature}");
    }
    for token in ["", "x", "a.b.c", "eyJhbGciOiJub25lIn0.e30."] {
        let bearer = format!("Bearer {token}");
        let headers = [("Authorization", bearer.as_str()), length];
        let status = knock(&registering, "/runner/registration", &headers).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{token}");
    }
    let status = knock(&World::new(), "/runner/registration", &[length]).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "no VM registers here");
}

#[tokio::test(start_paused = true)]
async fn an_array_is_no_object() {
    let world = World::new();
    let array = r#"["runner-1", null, true]"#;
    for path in ["/runner/start", "/runner/stop", "/runner/hold", "/runner/release"] {
        for answer in [world.command(path, array).await, world.command(path, " []").await] {
            let detail = detail(&answer, StatusCode::BAD_REQUEST);
            assert_eq!(detail, "the body is a JSON array, not an object", "{path}");
        }
    }
    assert_eq!(world.callback("/runner/stop", array).await.status, StatusCode::BAD_REQUEST);
    let delivery = world.webhook("workflow_job", r#"["queued", {}, {}]"#).await;
    assert_eq!(
        detail(&delivery, StatusCode::BAD_REQUEST),
        "the body is a JSON array, not an object"
    );
    assert_eq!(world.count("instances.start"), 0);
}

#[tokio::test(start_paused = true)]
async fn the_webhooks_path_may_end_with_a_slash_and_its_media_type_has_no_case() {
    let world = World::new();
    let queued = include_str!("../../fixtures/workflow_job.queued.json");
    let form =
        form_urlencoded::Serializer::new(String::new()).append_pair("payload", queued).finish();
    let signature = sign(SECRET, form.as_bytes());
    let headers = [
        ("X-Hub-Signature-256", signature.as_str()),
        ("X-GitHub-Event", "workflow_job"),
        ("Content-Type", "Application/X-WWW-Form-Urlencoded; charset=utf-8"),
    ];
    let answer = world.send(Method::POST, "/github/webhook/", &headers, form).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!(world.count("instances.start"), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_behind_the_secret_stays_in_no_cache() {
    let world = World::new();
    for (method, path) in [(Method::GET, "/runner/status"), (Method::POST, "/runner/hold")] {
        let request = Request::builder().method(method).uri(path).header("X-Runner-Secret", SECRET);
        let body = Body::from(r#"{"vm_instance_name": "gpu-1"}"#);
        let answer = world.exchange(request.body(body).unwrap()).await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()["cache-control"], "no-store", "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_names_a_repository_or_is_refused() {
    let world = World::new();
    for repo in ["acme", "acme/app/../../orgs", "acme/..", "acme/app?x", "/app"] {
        let body = format!(
            r#"{{"vm_instance_name": "gpu-1", "vm_instance_zone": "{ZONE}",
                 "job": {{"repo": "{repo}", "id": 1, "queued_at": 1764000000}}}}"#
        );
        let answer = world.callback("/runner/stop", &body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{repo}");
    }
    assert!(world.cloud.calls().is_empty(), "{:?}", world.cloud.calls());
}

const WITH_AN_ACCOUNT: &[(&str, &str)] =
    &[("CALLBACK_SERVICE_ACCOUNT", "caller@my-project.iam.gserviceaccount.com")];

#[tokio::test(start_paused = true)]
async fn tasks_carry_a_token_of_the_account_instead_of_the_secret() {
    let mut world = World::with_variables(WITH_AN_ACCOUNT);
    let job = world.queue_job("acme/app", "self-hosted gpu", minutes(10));
    world.pass(minutes(1)).await;
    let pending = world.cloud.tasks.pending();
    assert!(
        !pending.is_empty()
            && pending.iter().all(|task| !task.headers.contains_key("X-Runner-Secret"))
    );
    world.settle().await;
    assert!(world.is_completed(job));
    let refused = world.outcomes().into_iter().find(|(status, _)| !status.is_success());
    assert_eq!(refused, None);
}

#[tokio::test(start_paused = true)]
async fn only_the_accounts_token_for_this_service_counts() {
    let world = World::with_variables(WITH_AN_ACCOUNT);
    let now = world.clock.now().unix_seconds();
    let claims = |changes: Value| {
        let mut claims = json!({
            "aud": "https://service.example", "email": WITH_AN_ACCOUNT[0].1, "email_verified": true,
            "exp": now + 3600, "iat": now, "iss": "https://accounts.google.com",
        });
        claims.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        world.cloud.identities.sign(&claims)
    };
    let ask = async |token: String| {
        let bearer = format!("Bearer {token}");
        let headers = [("Authorization", bearer.as_str()), ("X-CloudTasks-TaskName", "t")];
        let body = format!(r#"{{"vm_instance_name": "gpu-1", "vm_instance_zone": "{ZONE}"}}"#);
        world.send(Method::POST, "/runner/stop", &headers, body).await.status
    };
    assert_eq!(ask(claims(json!({}))).await, StatusCode::OK);
    for wrong in [
        json!({"aud": "https://another.example"}),
        json!({"email": "another@my-project.iam.gserviceaccount.com"}),
        json!({"email": null}),
        json!({"email_verified": false}),
        json!({"exp": now - 61}),
        json!({"iss": "https://accounts.example"}),
    ] {
        assert_eq!(ask(claims(wrong.clone())).await, StatusCode::UNAUTHORIZED, "{wrong}");
    }
    assert_eq!(ask("a.b.c".into()).await, StatusCode::UNAUTHORIZED);
    // The secret opens the service as before: tasks that carry it may be pending, and operators use it.
    assert_eq!(
        world.command("/runner/hold", r#"{"vm_instance_name": "gpu-1"}"#).await.status,
        StatusCode::OK
    );
    // A service without the variable takes no token.
    let without = World::new();
    let bearer = format!("Bearer {}", claims(json!({})));
    let answer =
        without.send(Method::POST, "/runner/stop", &[("Authorization", &bearer)], "").await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test(start_paused = true)]
async fn the_webhook_may_have_a_secret_of_its_own() {
    let world =
        World::with_variables(&[("GITHUB_WEBHOOK_SECRET", "a secret of the webhook alone")]);
    let secret = "a secret of the webhook alone";
    let signature = sign(secret, b"{}");
    let headers = [("X-Hub-Signature-256", signature.as_str()), ("X-GitHub-Event", "ping")];
    assert_eq!(
        world.send(Method::POST, "/github/webhook", &headers, "{}").await.status,
        StatusCode::OK
    );
    let command = [("X-Runner-Secret", secret)];
    let answer = world.send(Method::POST, "/runner/start", &command, "{}").await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
}
