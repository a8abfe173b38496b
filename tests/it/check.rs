//! `runner-manager check`: a misconfiguration is found and its fix named; a check without an answer is unknown; nothing is
//! changed, and no secret is printed.

use std::ffi::OsString;
use std::process::{Command, Stdio};
use std::time::Duration;

use http::{Request, StatusCode};
use http_body_util::Full;
use runner_manager::check::{Finding, Outcome, check};
use runner_manager::clients::transport::HttpService;
use runner_manager::config::Config;
use runner_manager::emulators::compute::{Instance, Status};
use runner_manager::emulators::github::{Hook, Installed, Permission};
use runner_manager::emulators::{Api, ErrorBody, Fault};
use serde_json::Value;
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;

use crate::binary::{demo, program};
use crate::harness::{self, SECRET, ZONE, in_process};
use crate::world::{World, fleet, minutes, runner, seconds};

/// A correctly configured fleet that has just run a job.
async fn world() -> World {
    let mut world = World::new();
    let job = world.queue_job("acme/app", "self-hosted", minutes(1));
    world.pass_until(minutes(5), |world| world.is_completed(job)).await;
    world.pass(minutes(10)).await;
    assert!(world.is_stopped("runner-1"));
    world
}

/// Routes the service's own URL to it, and all others to the cloud.
fn http(world: &World) -> HttpService {
    let (service, cloud) = (world.service().http(), in_process(world.cloud.router()));
    BoxCloneSyncService::new(tower::service_fn(move |request: Request<Full<bytes::Bytes>>| {
        let there = if request.uri().host() == Some("service.example") { &service } else { &cloud };
        there.clone().oneshot(request)
    }))
}

/// Runs the check with these variables changed.
async fn check_with(world: &World, changed: &[(&str, &str)]) -> Vec<Finding> {
    let config = fleet("");
    let kept = harness::vars(&config)
        .filter(|(name, _)| changed.iter().all(|(changed, _)| name != *changed));
    let changed = changed.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let config = Config::from_vars(kept.chain(changed)).unwrap();
    let credentials = harness::credentials(&world.cloud, &world.clock);
    let mut reported = Vec::new();
    let found = check(config, http(world), credentials, world.clock.clone(), &mut |progress| {
        assert!(progress.done <= progress.total, "{progress:?}");
        reported.extend(progress.found.to_vec());
    })
    .await;
    assert_eq!(reported, found);
    let all = serde_json::to_string(&found).unwrap();
    for secret in [SECRET, "PRIVATE KEY", "ya29", "ghs_", "Bearer"] {
        assert!(!all.contains(secret), "{all}");
    }
    found
}

/// Asserts that the findings other than `Ok` contain these texts, and that there are no others.
#[track_caller]
fn complains(found: &[Finding], expected: &[&str]) {
    let bad = found.iter().filter(|finding| finding.outcome != Outcome::Ok);
    let bad: Vec<String> = bad.map(ToString::to_string).collect();
    let same = bad.len() == expected.len()
        && bad.iter().zip(expected).all(|(line, text)| line.contains(text));
    assert!(same, "{bad:#?} instead of {expected:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_correct_configuration_has_no_complaints_and_nothing_is_changed() {
    let world = world().await;
    let state = || {
        let vm = |vm: String| (world.status(&vm), world.cloud.compute.labels(&vm));
        let vms: Vec<_> = world.cloud.compute.instances().into_iter().map(vm).collect();
        (vms, world.cloud.tasks.pending(), world.cloud.github.deliveries())
    };
    let before = state();
    world.cloud.clear_calls();
    let found = check_with(&world, &[]).await;
    complains(&found, &[]);
    assert_eq!(state(), before);
    for call in world.cloud.calls() {
        let reads = ["get", "list", "testIamPermissions", "createInstallationAccessToken"];
        let method = call.method.rsplit('.').next().unwrap();
        assert!(reads.iter().any(|read| method.starts_with(read)), "{call:?}");
        assert!(
            call.status.is_some_and(|status| status.is_success() || call.target.contains("/orgs/"))
        );
    }
    for (subject, what) in [
        ("configuration", "variables"),
        ("Google", "access token"),
        ("queue runner-manager", "state"),
        ("queue runner-manager", "permissions"),
        ("VM gpu-1 in asia-northeast1-a", "status"),
        ("VM runner-1 in asia-northeast1-a", "permissions"),
        ("VM runner-1 in asia-northeast1-a", "runner"),
        ("VM runner-1 in asia-northeast1-a", "runner labels"),
        ("GitHub App", "key"),
        ("GitHub App", "permission"),
        ("repository acme/web", "installation"),
        ("repository acme/web", "name"),
        ("service https://service.example", "/health"),
        ("service https://service.example", "identity"),
        ("service https://service.example", "secret"),
        ("App's webhook", "URL"),
        ("App's webhook", "deliveries"),
    ] {
        let one = |finding: &Finding| finding.subject == subject && finding.what == what;
        assert!(found.iter().any(one), "{subject}: {what}: {found:#?}");
    }
}

type Change<'a> = &'a dyn Fn(&World);

#[tokio::test(start_paused = true)]
async fn misconfigurations_in_google_cloud_are_found() {
    let cases: [(Change<'_>, &[&str]); 10] = [
        (
            &|world| world.cloud.compute.delete("gpu-1"),
            &["✗ VM gpu-1 in asia-northeast1-a: status: there is no"],
        ),
        (
            &|world| world.cloud.compute.forbid("compute.instances.setLabels"),
            &[
                "✗ VM gpu-1 in asia-northeast1-a: permissions: compute.instances.setLabels is missing",
                "✗ VM runner-1 in asia-northeast1-a: permissions: compute.instances.setLabels is missing",
            ],
        ),
        (
            &|world| world.cloud.compute.forbid("compute.instances.get"),
            &[
                "status: instances.get: 403",
                "✗ VM gpu-1",
                "status: instances.get: 403",
                "✗ VM runner-1",
            ],
        ),
        (
            &|world| world.cloud.compute.forbid("compute.instances.resume"),
            &["! VM gpu-1", "! VM runner-1"],
        ),
        (
            &|world| world.cloud.compute.forbid("compute.zoneOperations.list"),
            &[
                "operations: listing them is not permitted",
                "--add-permissions compute.zoneOperations.list",
            ],
        ),
        (
            &|world| {
                let instance = Instance::new("gpu-1", ZONE);
                world.cloud.compute.insert(Instance { local_ssd: true, ..instance });
            },
            &["✗ VM gpu-1 in asia-northeast1-a: local SSD"],
        ),
        (
            &|world| {
                for nth in 0..63 {
                    world.cloud.compute.label_by_hand("gpu-1", &format!("l-{nth}"), Some("x"));
                }
            },
            &["✗ VM gpu-1 in asia-northeast1-a: labels: the VM has 63"],
        ),
        (&|world| world.cloud.tasks.pause(true), &["✗ queue runner-manager: state: it is paused"]),
        (
            &|world| world.cloud.tasks.forbid_create(true),
            &["✗ queue runner-manager: permissions: cloudtasks.tasks.create is missing"],
        ),
        (
            &|world| world.cloud.tasks.forbid("cloudtasks.queues.get"),
            &[
                "? queue runner-manager: state: could not be checked: cloudtasks.queues.get is missing",
            ],
        ),
    ];
    for (change, expected) in cases {
        let world = world().await;
        change(&world);
        complains(&check_with(&world, &[]).await, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn misconfigurations_of_the_app_its_repositories_and_its_webhook_are_found() {
    let elsewhere = |world: &World, url: &str| {
        world.cloud.github.webhook(Hook { url: url.into(), secret: SECRET.into(), form: false });
    };
    let cases: [(Change<'_>, &[&str]); 9] = [
        (
            &|world| world.cloud.github.forbid(Permission::Actions),
            &["✗ GitHub App: permission: Actions: read is missing"],
        ),
        (
            &|world| world.cloud.github.suspend(true),
            &["installation 12345678 is suspended", "? VM gpu-1", "? VM runner-1"],
        ),
        (
            &|world| world.cloud.github.install("acme/web", Installed::Elsewhere(777)),
            &[
                "✗ VM runner-1 in asia-northeast1-a: runner: acme/web is not visible",
                "✗ repository acme/web: installation: installation 777 covers it, not 12345678",
            ],
        ),
        (
            &|world| world.cloud.github.install("acme/web", Installed::Nowhere),
            &[
                "acme/web is not visible",
                "✗ repository acme/web: installation: the App is not installed",
            ],
        ),
        (
            &|world| world.cloud.github.rename_repository("acme/web", "acme/site"),
            &["✗ repository acme/web: name: the repository was renamed to acme/site"],
        ),
        (
            &|world| world.cloud.github.set_public("acme/web", true),
            &["! repository acme/web: visibility: the repository is public"],
        ),
        (
            &|world| elsewhere(world, "https://old.example/github/webhook"),
            &["✗ App's webhook: URL: it points to https://old.example/github/webhook"],
        ),
        (
            &|world| world.cloud.github.subscribe_to(&["push"]),
            &["✗ App's webhook: events: the App does not subscribe to workflow_job"],
        ),
        (
            &|world| world.cloud.github.forbid(Permission::Administration),
            &[
                "✗ GitHub App: permission: Administration",
                "runners of acme/app is not permitted",
                "acme/app is not permitted",
                "acme/web is not permitted",
            ],
        ),
    ];
    for (change, expected) in cases {
        let world = world().await;
        change(&world);
        complains(&check_with(&world, &[]).await, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn misconfigurations_of_a_runner_are_found() {
    let gone = "✗ VM gpu-1 in asia-northeast1-a: runner: no runner gpu-1 is registered in acme/app or in acme";
    let world = world().await;
    let github = &world.cloud.github;
    github.remove_runner("gpu-1");
    complains(&check_with(&world, &[]).await, &[gone]);

    github.add_runner(runner("gpu-1", "acme/app", "self-hosted linux x64"));
    let labels =
        "✗ VM gpu-1 in asia-northeast1-a: runner labels: RUNNER_CONFIG[0].labels has [\"gpu\"]";
    complains(&check_with(&world, &[]).await, &[labels]);

    github.remove_runner("gpu-1");
    github.add_runner(runner("gpu-1", "acme/app", "self-hosted linux x64 gpu"));
    complains(&check_with(&world, &[]).await, &[]);

    // Up for ten minutes without a connection.
    github.remove_runner("gpu-1");
    github.add_runner(runner("gpu-1", "acme/app", "self-hosted linux x64 gpu").on("nowhere"));
    world.cloud.compute.set_status("gpu-1", Status::Running);
    tokio::time::advance(minutes(10)).await;
    let offline = "gpu-1 of acme/app is offline, version 2.330.0, though its VM is up";
    complains(&check_with(&world, &[]).await, &[offline]);
}

#[tokio::test(start_paused = true)]
async fn wrong_variables_are_found() {
    let world = world().await;
    let other_key = include_str!("../fixtures/app-private-key.pem");
    let shadowed = fleet("").replace("[\"self-hosted\"]", "[\"self-hosted\", \"x64\"]");
    let shadowed = shadowed.replace(", \"gpu\"", "");
    let unknown_field = fleet(r#", "runner_lables": ["x"]"#);
    let region = fleet("").replacen("asia-northeast1-a", "asia-northeast1", 1);
    let cases: [(&str, &str, &[&str]); 12] = [
        (
            "CLOUD_TASK_LOCATION",
            "asia-northeast1-a",
            &[
                "✗ queue runner-manager: state: there is no queue in asia-northeast1-a, which is a zone",
            ],
        ),
        (
            "CLOUD_RUN_SERVICE_URL",
            "https://service.example/x",
            &[
                "! configuration: warning: CLOUD_RUN_SERVICE_URL: has a path",
                "✗ service https://service.example/x: /health: ",
                "✗ App's webhook: URL: it points to",
            ],
        ),
        (
            "RUNNER_CONFIG",
            &region,
            &[
                "! configuration: warning: RUNNER_CONFIG[0].vm_instance_zone: is a region",
                "! service",
                "✗ VM gpu-1 in asia-northeast1: status: there is no such instance",
            ],
        ),
        (
            "RUNNER_CONFIG",
            &unknown_field,
            &[
                "! configuration: warning: RUNNER_CONFIG[0]",
                "! configuration: warning: RUNNER_CONFIG[1]",
                "! configuration: warning: RUNNER_CONFIG[2]",
            ],
        ),
        ("CLOUD_TASK_QUEUE_NAME", "other", &["✗ queue other: state: there is no such queue"]),
        ("CLOUD_TASK_LOCATION", "europe-west1", &["no such queue in europe-west1 of my-project"]),
        (
            "GITHUB_APP_INSTALLATION_ID",
            "1",
            &[
                "✗ GitHub App: installation: get an installation: 404",
                "? VM gpu-1",
                "? VM runner-1",
                "✗ repository acme/app: installation: installation 12345678 covers it, not 1",
                "✗ repository acme/web: installation: installation 12345678 covers it, not 1",
            ],
        ),
        (
            "GITHUB_APP_ID",
            "99",
            &["✗ GitHub App: key: ", "? VM gpu", "? VM run", "? repo", "? repo", "? App's webhook"],
        ),
        (
            "GITHUB_APP_PRIVATE_KEY",
            other_key,
            &["✗ GitHub App: key: ", "? VM gpu", "? VM run", "? repo", "? repo", "? App's webhook"],
        ),
        (
            "CLOUD_RUN_SERVICE_URL",
            "https://tasks.example",
            &["✗ service https://tasks.example: /health: GET /health: 401", "✗ App's webhook: URL"],
        ),
        (
            "RUNNER_MANAGER_SECRET",
            "change-me",
            &[
                "✗ configuration: RUNNER_MANAGER_SECRET: is short",
                "✗ service https://service.example: secret: ",
            ],
        ),
        (
            "RUNNER_CONFIG",
            &shadowed,
            &["! configuration: warning: RUNNER_CONFIG[1]: never matches", "! service"],
        ),
    ];
    for (name, value, expected) in cases {
        complains(&check_with(&world, &[(name, value)]).await, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_delivery_names_its_fix() {
    let mut world = world().await;
    let url = "https://service.example/github/webhook".to_owned();
    world.cloud.github.webhook(Hook { url, secret: "another".into(), form: false });
    world.queue_job("acme/app", "no-such-label", minutes(1));
    world.pass(seconds(10)).await;
    let refused = "failed: 401 Invalid HTTP Response: 401\n    -> set the webhook's secret";
    complains(&check_with(&world, &[]).await, &[refused]);
}

const BOTH: &[Api] = &[Api::Compute, Api::Tasks];

/// Asserts that all findings of these subjects are unknown, and all others right.
#[track_caller]
fn assert_unknown(found: &[Finding], subjects: &[&str]) {
    for finding in found {
        let hit = subjects.iter().any(|subject| finding.subject.starts_with(subject));
        let expected = if hit { Outcome::Unknown } else { Outcome::Ok };
        assert_eq!(finding.outcome, expected, "{finding}");
    }
    assert!(found.iter().any(|finding| finding.outcome == Outcome::Unknown));
}

#[tokio::test(start_paused = true)]
async fn a_check_without_an_answer_is_neither_right_nor_wrong() {
    let world = world().await;
    world.cloud.github.outage(true);
    let found = check_with(&world, &[]).await;
    let (of_vms, others): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|finding| finding.subject.starts_with("VM"));
    assert_unknown(&others, &["GitHub App", "repository", "App's webhook"]);
    for finding in of_vms {
        assert_eq!(finding.what == "runner", finding.outcome == Outcome::Unknown, "{finding}");
    }
    world.cloud.github.outage(false);

    let limit = ErrorBody::Reason("rateLimitExceeded".into());
    for (apis, subjects, fault) in [
        (BOTH, ["VM", "queue"], Fault::Before(StatusCode::SERVICE_UNAVAILABLE, ErrorBody::Html)),
        (BOTH, ["VM", "queue"], Fault::Before(StatusCode::TOO_MANY_REQUESTS, ErrorBody::Api)),
        (BOTH, ["VM", "queue"], Fault::Hang),
        (&BOTH[..1], ["VM", "VM"], Fault::Before(StatusCode::FORBIDDEN, limit)),
    ] {
        world.cloud.faults.on(move |call| apis.contains(&call.api).then(|| fault.clone()));
        let mut found = check_with(&world, &[]).await;
        // The service's status waits for the same answers.
        found.retain(|finding| !finding.what.contains("runner") && finding.what != "secret");
        assert_unknown(&found, &subjects);
        world.cloud.faults.off();
    }
    complains(&check_with(&world, &[]).await, &[]);
}

#[tokio::test(start_paused = true)]
async fn calls_beyond_the_installations_quota_are_unknown() {
    let world = world().await;
    world.cloud.github.rate_limited(true);
    let expected = [
        "? VM gpu-1 in asia-northeast1-a: runner: could not be checked: acme/app, the organization acme: list",
        "? VM runner-1 in asia-northeast1-a: runner: could not be checked: acme/app, acme/web, the organization",
        "? repository acme/app: name: could not be checked: get a repository: 403",
        "? repository acme/web: name: could not be checked: get a repository: 403",
    ];
    complains(&check_with(&world, &[]).await, &expected);
}

#[tokio::test(start_paused = true)]
async fn the_order_does_not_depend_on_latencies() {
    let world = world().await;
    let first = check_with(&world, &[]).await;
    for late in ["acme/app", "gpu-1", "queues", "/app"] {
        world.cloud.faults.on(move |call| {
            call.target.contains(late).then_some(Fault::Delay(Duration::from_secs(1)))
        });
        assert_eq!(check_with(&world, &[]).await, first);
        world.cloud.faults.off();
    }
}

#[test]
fn the_problems_of_a_configuration_are_listed_and_nothing_else_is_checked() {
    let broken = |more: &[&str]| {
        let mut command = program();
        command.arg("check").args(more).env("RUNNER_MANAGER_SECRET", "hush-hush\n");
        let output = command.env("VM_INACTIVE_MINUTES", "soon").output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(output.stderr.is_empty(), "no progress without a terminal: {output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(!text.contains("hush"), "{text}");
        text
    };
    let text = broken(&[]);
    assert!(
        text.contains("✗ configuration: variable: GCP_PROJECT_ID: is not set\n    -> "),
        "{text}"
    );
    assert!(text.ends_with("\n10 checks: 10 to fix.\n"), "{text}");
    let json: Vec<Value> = serde_json::from_str(&broken(&["--json"])).unwrap();
    assert_eq!(json.len(), 10);
    assert_eq!(
        (&json[0]["subject"], &json[0]["outcome"]),
        (&"configuration".into(), &"error".into())
    );
    assert!(json.iter().all(|one| one["fix"].is_string() && one["what"] == "variable"));
}

#[test]
fn a_process_with_the_demos_environment_finds_it_correct() {
    let (dev, exports) = demo();
    let check = |more: &str| {
        let script = format!("{exports}exec {} check {more}", env!("CARGO_BIN_EXE_runner-manager"));
        Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).output().unwrap()
    };
    let output = check("--json");
    let found: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let odd: Vec<&Value> = found.iter().filter(|one| one["outcome"] != "ok").collect();
    assert!(odd.len() == 1 && odd[0]["what"] == "deliveries", "no job has run yet: {odd:#?}");
    let text = String::from_utf8(check("").stdout).unwrap();
    assert!(text.starts_with("! App's webhook: deliveries: "), "{text}");
    assert!(text.contains("\n✓ configuration: variables: "), "{text}");
    assert!(text.ends_with(&format!("\n{} checks: 1 warning.\n", found.len())), "{text}");

    // The demo has ended: everything is unknown, and nothing wrong.
    drop(dev);
    let output = check("");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(3), "{text}");
    let right: Vec<&str> = text.lines().filter(|line| line.starts_with('✓')).collect();
    assert!(right.len() == 1 && right[0].starts_with("✓ configuration"), "{text}");
    assert!(!text.contains('✗') && text.contains("could not be checked"), "{text}");
}
