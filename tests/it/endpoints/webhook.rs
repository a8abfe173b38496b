use http::{Method, StatusCode};
use runner_manager::emulators::compute::Status;
use serde_json::{Value, json};

use super::detail;
use crate::harness::Log;
use crate::world::{Answer, SECRET, World, minutes, sign};

const QUEUED: &str = include_str!("../../fixtures/workflow_job.queued.json");
const COMPLETED: &str = include_str!("../../fixtures/workflow_job.completed.json");
const PING: &str = include_str!("../../fixtures/ping.json");

async fn deliver(
    world: &World,
    signature: Option<&str>,
    event: Option<&str>,
    body: &str,
) -> Answer {
    let headers = [("X-Hub-Signature-256", signature), ("X-GitHub-Event", event)];
    let headers: Vec<_> =
        headers.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    world.send(Method::POST, "/github/webhook", &headers, body.to_owned()).await
}

#[track_caller]
fn is_ok(answer: &Answer, outcome: &str) {
    assert_eq!(
        (answer.status, &answer.body),
        (StatusCode::OK, &json!({ "status": "ok" })),
        "{answer:?}"
    );
    assert!(answer.outcome.contains(outcome), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn a_queued_job_starts_its_vm() {
    let (log, _guard) = Log::listen();
    let world = World::new();
    is_ok(
        &world.webhook("workflow_job", QUEUED).await,
        "runner-1: starting: job 29679449 of acme/app is queued",
    );
    assert_eq!(world.count("instances.start"), 1);
    let line = r#"VM runner-1: starting: job 29679449 of acme/app is queued"#;
    assert_eq!(log.count("INFO", line), 1);
}

#[tokio::test(start_paused = true)]
async fn a_form_encoded_delivery_counts_as_well() {
    let world = World::new();
    let body =
        form_urlencoded::Serializer::new(String::new()).append_pair("payload", QUEUED).finish();
    let signature = sign(SECRET, body.as_bytes());
    let headers = [
        ("X-Hub-Signature-256", signature.as_str()),
        ("X-GitHub-Event", "workflow_job"),
        ("Content-Type", "application/x-www-form-urlencoded"),
    ];
    is_ok(&world.send(Method::POST, "/github/webhook", &headers, body).await, "starting");
    let empty = "payload_of_none=1";
    let signature = sign(SECRET, empty.as_bytes());
    let headers = [("X-Hub-Signature-256", signature.as_str()), headers[1], headers[2]];
    let answer = world.send(Method::POST, "/github/webhook", &headers, empty).await;
    assert!(detail(&answer, StatusCode::BAD_REQUEST).contains("`payload`"));
}

#[tokio::test(start_paused = true)]
async fn a_completed_job_schedules_the_stop() {
    let world = World::new();
    is_ok(
        &world.webhook("workflow_job", COMPLETED).await,
        "runner-1: ok: job 29679449 is completed; next check 09:03:30",
    );
    let tasks = world.cloud.tasks.pending();
    assert_eq!(tasks.len(), 1);
    assert_eq!(tasks[0].path, "/runner/stop");
    assert_eq!(tasks[0].body["idle_since"], world.idle_since("runner-1").unwrap());
    assert_eq!(tasks[0].dispatch_deadline, minutes(1), "a handler that hangs is not waited for");
    assert!(world.is_stopped("runner-1"));
}

#[tokio::test(start_paused = true)]
async fn an_event_that_needs_no_vm_is_acknowledged_and_nothing_is_done() {
    let world = World::new();
    is_ok(&world.webhook("ping", PING).await, "nothing to do: the event ping");
    is_ok(&world.webhook("push", "not even JSON").await, "nothing to do: the event push");
    for action in ["in_progress", "waiting", "invented_later"] {
        is_ok(
            &world.webhook("workflow_job", &QUEUED.replacen("queued", action, 1)).await,
            "nothing to do",
        );
    }
    is_ok(
        &world.webhook("workflow_job", &QUEUED.replace("acme/app", "acme/other")).await,
        "no entry of RUNNER_CONFIG",
    );
    is_ok(
        &world.webhook("workflow_job", &QUEUED.replace("self-hosted", "ubuntu-latest")).await,
        "[ubuntu-latest",
    );
    assert!(world.cloud.calls().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_least_that_is_read_is_enough() {
    let world = World::new();
    let least = r#"{"action":"queued","workflow_job":{"id":7,"labels":["SELF-HOSTED"]},"repository":{"full_name":"Acme/App"}}"#;
    is_ok(&world.webhook("workflow_job", least).await, "starting");
}

#[tokio::test(start_paused = true)]
async fn a_delivery_that_is_not_signed_right_is_refused() {
    let world = World::new();
    let good = sign(SECRET, QUEUED.as_bytes());
    let digits = good.strip_prefix("sha256=").unwrap();
    let forged = sign("another secret", QUEUED.as_bytes());
    let sha1 = format!("sha1={}", &digits[..40]);
    let not_hex = good.replace(|c: char| c.is_ascii_digit(), "g");
    let longer = format!("{good}00");
    for (signature, why) in [
        (None, "is missing"),
        (Some(""), "64 hexadecimal digits"),
        (Some("sha256="), "64 hexadecimal digits"),
        (Some(&good[..good.len() - 1]), "64 hexadecimal digits"),
        (Some(&longer), "64 hexadecimal digits"),
        (Some(digits), "64 hexadecimal digits"),
        (Some(&sha1), "64 hexadecimal digits"),
        (Some(&not_hex), "64 hexadecimal digits"),
        (Some("sha256=\u{e9}"), "64 hexadecimal digits"),
        (Some(&forged), "does not match"),
    ] {
        let answer = deliver(&world, signature, Some("workflow_job"), QUEUED).await;
        assert!(
            detail(&answer, StatusCode::UNAUTHORIZED).contains(why),
            "{signature:?}: {answer:?}"
        );
    }
    for place in [0, QUEUED.len() / 2, QUEUED.len() - 1] {
        let mut altered = QUEUED.as_bytes().to_owned();
        altered[place] ^= 1;
        let headers = [("X-Hub-Signature-256", good.as_str()), ("X-GitHub-Event", "workflow_job")];
        let answer = world.send(Method::POST, "/github/webhook", &headers, altered).await;
        detail(&answer, StatusCode::UNAUTHORIZED);
    }
    assert!(world.cloud.calls().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_signed_but_wrong_is_named() {
    let world = World::new();
    for (body, why) in [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[]", "not an object"),
        ("null", "wrong type"),
        ("{}", "missing field `action`"),
        (r#"{"action":"queued","repository":{"full_name":"a/b"}}"#, "missing field `workflow_job`"),
        (
            r#"{"action":"queued","workflow_job":{"id":1},"repository":{"full_name":"a/b"}}"#,
            "missing field `labels`",
        ),
        (
            r#"{"action":"queued","workflow_job":{"id":"x","labels":[]},"repository":{"full_name":"a/b"}}"#,
            "wrong type",
        ),
        (
            r#"{"action":"queued","workflow_job":{"id":1,"labels":[]},"repository":{}}"#,
            "missing field `full_name`",
        ),
        (&QUEUED[..QUEUED.len() / 2], "not JSON"),
    ] {
        let answer = world.webhook("workflow_job", body).await;
        assert!(detail(&answer, StatusCode::BAD_REQUEST).contains(why), "{body}: {answer:?}");
    }
    let signature = sign(SECRET, QUEUED.as_bytes());
    let answer = deliver(&world, Some(&signature), None, QUEUED).await;
    assert!(detail(&answer, StatusCode::BAD_REQUEST).contains("X-GitHub-Event"));
    assert!(world.cloud.calls().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_body_over_the_limit_is_refused_whether_announced_or_not() {
    let world = World::new();
    let large = " ".repeat((1 << 20) + 1);
    detail(&world.webhook("workflow_job", &large).await, StatusCode::PAYLOAD_TOO_LARGE);
    let signature = sign(SECRET, b"short");
    let headers = [("X-Hub-Signature-256", signature.as_str()), ("Content-Length", "1048577")];
    detail(
        &world.send(Method::POST, "/github/webhook", &headers, "short").await,
        StatusCode::PAYLOAD_TOO_LARGE,
    );
    let just = format!("{QUEUED}{}", " ".repeat((1 << 20) - QUEUED.len()));
    is_ok(&world.webhook("workflow_job", &just).await, "starting");
}

#[tokio::test(start_paused = true)]
async fn a_waiting_job_gets_a_pass_and_no_start() {
    let world = World::new();
    let waiting = QUEUED.replace(r#""status": "queued""#, r#""status": "waiting""#);
    assert_ne!(waiting, QUEUED);
    is_ok(&world.webhook("workflow_job", &waiting).await, "waits for a review");
    assert_eq!((world.count("instances.get"), world.cloud.calls().len()), (1, 2));
    let check = world.cloud.tasks.pending().remove(0);
    assert_eq!((check.path.as_str(), &check.body["idle_since"]), ("/runner/stop", &json!(0)));
    let in_seconds = check.body["due"].as_u64().unwrap() - world.clock.now().unix_seconds();
    assert!((90..=120).contains(&in_seconds), "{check:?}");
}

/// The delivery, with other values for these fields of the job.
fn changed(delivery: &str, changes: &Value) -> String {
    let mut body: Value = serde_json::from_str(delivery).unwrap();
    body["workflow_job"].as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    body.to_string()
}

#[tokio::test(start_paused = true)]
async fn a_job_that_was_created_days_ago_is_asked_for_before_anything_is_started() {
    let mut world = World::new();
    let years_ago = json!({"id": 7, "created_at": "2020-11-24T09:00:00Z"});
    let replayed = world.webhook("workflow_job", &changed(QUEUED, &years_ago)).await;
    is_ok(&replayed, "runner-1: ok: job 7 of acme/app no longer waits");
    assert_eq!((world.count("instances.start"), world.cloud.tasks.pending().len()), (0, 0));
    // It waited for a review until now.
    let job = world.queue_job("acme/app", "self-hosted", minutes(1));
    let approved = json!({"id": job.0, "created_at": "2026-11-20T09:00:00Z"});
    is_ok(&world.webhook("workflow_job", &changed(QUEUED, &approved)).await, "runner-1: starting");
    world.settle().await;
    assert!(world.is_completed(job));
    let again = world.webhook("workflow_job", &changed(QUEUED, &approved)).await;
    is_ok(&again, "no longer waits");
}

#[tokio::test(start_paused = true)]
async fn a_job_of_days_ago_gets_a_pass_while_github_cannot_be_asked() {
    let mut world = World::new();
    let job = world.queue_job("acme/app", "self-hosted", minutes(1));
    world.cloud.github.outage(true);
    let old = json!({"id": job.0, "created_at": "2026-11-20T09:00:00Z"});
    let answer = world.webhook("workflow_job", &changed(QUEUED, &old)).await;
    is_ok(&answer, "it is not known whether it still waits");
    assert_eq!((world.count("instances.start"), world.cloud.tasks.pending().len()), (0, 1));
    world.cloud.github.outage(false);
    world.settle().await;
    assert!(world.is_completed(job));
}

#[tokio::test(start_paused = true)]
async fn a_completed_delivery_counts_from_the_jobs_own_end() {
    let world = World::new().vm("runner-1", Status::Running);
    world.webhook("workflow_job", COMPLETED).await;
    let label = world.idle_since("runner-1");
    let of = |end: &str| changed(COMPLETED, &json!({"completed_at": end}));
    for repeated in ["2020-11-24T09:00:00Z", "2026-11-24T08:00:00Z"] {
        is_ok(&world.webhook("workflow_job", &of(repeated)).await, "ok: job");
        assert_eq!(world.idle_since("runner-1"), label, "{repeated}");
    }
    // GitHub's clock is ahead, or the payload is wrong: never later than now.
    world.webhook("workflow_job", &of("2027-11-24T09:00:00Z")).await;
    assert_eq!(world.idle_since("runner-1"), Some(1_795_510_830));
}

#[tokio::test(start_paused = true)]
async fn many_completed_deliveries_that_come_late_make_few_passes() {
    let mut world = World::new().vm("runner-1", Status::Running);
    world.pass(minutes(60)).await;
    for minute in 10..50 {
        let end = json!({"id": minute, "completed_at": format!("2026-11-24T09:{minute}:07Z")});
        is_ok(&world.webhook("workflow_job", &changed(COMPLETED, &end)).await, "ok: job");
    }
    let tasks = world.cloud.tasks.pending().len();
    assert!((1..=9).contains(&tasks), "{tasks}");
    // The last one counts: it ended at 09:49:07, and the VM is idle since long ago.
    assert_eq!(world.idle_since("runner-1"), Some(1_795_513_800));
    world.pass(minutes(6)).await;
    assert!(world.is_stopped("runner-1"), "{}", world.story());
}

#[tokio::test(start_paused = true)]
async fn a_long_name_does_not_fill_the_log() {
    let (log, _guard) = Log::listen();
    let world = World::new();
    let long = changed(QUEUED, &json!({"labels": ["x".repeat(100_000)]}));
    is_ok(
        &world.webhook("workflow_job", &long).await,
        "nothing to do: job 29679449 of acme/app: no entry",
    );
    assert_eq!(log.count("INFO", &"x".repeat(100)), 1);
    assert_eq!(log.count("INFO", &"x".repeat(201)), 0);
}

#[tokio::test(start_paused = true)]
async fn an_outage_that_delays_a_decision_is_a_warning() {
    let (log, _guard) = Log::listen();
    let mut world = World::new();
    let job = world.queue_job("acme/app", "self-hosted", minutes(1));
    world.pass_until(minutes(5), |world| world.is_completed(job)).await;
    world.cloud.github.outage(true);
    world.pass(minutes(20)).await;
    assert!(log.count("WARN", "VM runner-1: unknown: ") > 0);
    assert_eq!(log.count("INFO", "VM runner-1: unknown: "), 0);
    world.cloud.github.outage(false);
    world.settle().await;
}
