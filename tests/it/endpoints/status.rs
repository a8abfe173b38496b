use http::{Method, StatusCode};
use runner_manager::emulators::compute::{Instance, Status};
use runner_manager::emulators::github::{Permission, Runner, Scope};
use runner_manager::emulators::{ErrorBody, Fault};
use serde_json::{Value, json};

use super::detail;
use crate::world::{World, ZONE, minutes, runner, seconds};

const GPU: &str = r#"{"vm_instance_name": "gpu-1", "vm_instance_zone": "asia-northeast1-a"}"#;

/// The status of this VM.
#[track_caller]
fn of<'a>(status: &'a Value, vm: &str) -> &'a Value {
    let vms = status["vms"].as_array().unwrap();
    vms.iter().find(|told| told["vm_instance_name"] == vm).unwrap_or_else(|| panic!("{status:#}"))
}

#[track_caller]
fn not_asked(vm: &Value) -> String {
    let texts = vm["not_asked"].as_array().unwrap();
    texts.iter().map(|text| format!("{}\n", text.as_str().unwrap())).collect()
}

#[tokio::test(start_paused = true)]
async fn the_status_needs_the_secret() {
    let world = World::new();
    for headers in [&[][..], &[("X-Runner-Secret", "another")][..]] {
        let answer = world.send(Method::GET, "/runner/status", headers, "").await;
        detail(&answer, StatusCode::UNAUTHORIZED);
    }
    assert!(world.cloud.calls().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_job_that_runs_is_told_with_its_runner_and_its_page() {
    let mut world = World::new();
    let job = world.queue_job("acme/app", "self-hosted gpu", minutes(10));
    world.pass(minutes(2)).await;
    let status = world.report().await;
    let idle_since = world.idle_since("gpu-1").unwrap();
    assert_eq!(idle_since, 1_795_510_830);
    let url = of(&status, "gpu-1")["jobs"][0]["url"].clone();
    let page = url.as_str().unwrap();
    assert!(page.starts_with("https://github.com/acme/app/actions/runs/"), "{page}");
    let name = of(&status, "gpu-1")["jobs"][0]["name"].clone();
    assert!(name.is_string(), "{status:#}");
    let expected = json!({
        "service": "GitHub Runner Manager",
        "version": env!("CARGO_PKG_VERSION"),
        "now": "2026-11-24T09:02:07Z",
        "github_asked_at": "2026-11-24T09:02:07Z",
        "inactive_minutes": 3,
        "unserved_jobs": [],
        "vms": [
            {
                "vm_instance_name": "gpu-1",
                "vm_instance_zone": "asia-northeast1-a",
                "status": "RUNNING",
                "since": "2026-11-24T09:00:09Z",
                "idle_since": "2026-11-24T09:00:30Z",
                "held": false,
                "claimed_for": [],
                "stop_after": null,
                "because": format!("job {job} of acme/app is running on it"),
                "runners": [{
                    "name": "gpu-1", "registered_in": "acme/app", "online": true, "busy": true,
                    "version": "2.330.0", "labels": ["self-hosted", "linux", "x64", "gpu"],
                }],
                "jobs": [{
                    "repo": "acme/app", "id": job.0, "name": name, "status": "in_progress", "url": url,
                    "since": of(&status, "gpu-1")["jobs"][0]["since"], "runner_name": "gpu-1",
                }],
                "entries": [{"index": 0, "repo": "acme/app", "labels": ["self-hosted", "gpu"], "runner_labels": [], "pool": ["gpu-1"]}],
                "not_asked": [],
            },
            {
                "vm_instance_name": "runner-1",
                "vm_instance_zone": "asia-northeast1-a",
                "status": "TERMINATED",
                "since": null,
                "idle_since": null,
                "held": false,
                "claimed_for": [],
                "stop_after": null,
                "because": "it is TERMINATED, and nothing needs it",
                "runners": [
                    {"name": "runner-1", "registered_in": "acme/app", "online": false, "busy": false,
                     "version": "2.330.0", "labels": ["self-hosted", "linux", "x64"]},
                    {"name": "runner-1", "registered_in": "acme/web", "online": false, "busy": false,
                     "version": "2.330.0", "labels": ["self-hosted", "linux", "x64"]},
                ],
                "jobs": [],
                "entries": [
                    {"index": 1, "repo": "acme/app", "labels": ["self-hosted"], "runner_labels": [], "pool": ["runner-1"]},
                    {"index": 2, "repo": "acme/web", "labels": ["self-hosted"], "runner_labels": [], "pool": ["runner-1"]},
                ],
                "not_asked": [],
            },
        ],
    });
    assert_eq!(status, expected, "{status:#}");
}

#[tokio::test(start_paused = true)]
async fn a_look_changes_nothing() {
    let mut world = World::new();
    world.queue_job("acme/app", "self-hosted gpu", minutes(10));
    world.pass(minutes(2)).await;
    let (before, labels) = (world.cloud.calls().len(), world.cloud.compute.labels("gpu-1"));
    world.report().await;
    let reads = ["instances.get", "actions.list", "apps.createInstallationAccessToken"];
    for call in &world.cloud.calls()[before..] {
        assert!(reads.iter().any(|read| call.method.starts_with(read)), "{}", call.method);
    }
    assert_eq!(world.cloud.compute.labels("gpu-1"), labels);
}

#[tokio::test(start_paused = true)]
async fn an_idle_vm_is_stopped_no_earlier_than_shown() {
    let mut world = World::new();
    let job = world.queue_job("acme/app", "self-hosted gpu", minutes(1));
    world.pass_until(minutes(5), |world| world.is_completed(job)).await;
    world.pass(seconds(31)).await;
    let status = world.report().await;
    let idle = of(&status, "gpu-1");
    assert_eq!((&idle["because"], &idle["jobs"]), (&json!("nothing needs it"), &json!([])));
    let told = idle["stop_after"].as_str().unwrap().to_owned();
    assert_eq!(told, mark_plus_inactive(&world), "{idle:#}");
    world.pass_until(minutes(10), |world| world.status("gpu-1") == Status::Stopping).await;
    let stopped = world.last("gpu-1", Status::Stopping).unwrap().rfc3339();
    assert!(
        stopped >= told && stopped.as_str() < told_plus_a_minute(&told).as_str(),
        "{told} {stopped}"
    );
    let leaving = world.report().await;
    assert_eq!(of(&leaving, "gpu-1")["because"], "it is STOPPING, and nothing needs it");
    assert_eq!(of(&leaving, "gpu-1")["stop_after"], Value::Null);
    world.pass(minutes(2)).await;
    let down = world.report().await;
    assert_eq!(
        of(&down, "gpu-1")["since"].as_str(),
        world.last("gpu-1", Status::Terminated).map(|at| at.rfc3339()).as_deref()
    );
}

fn mark_plus_inactive(world: &World) -> String {
    let idle_since =
        runner_manager::clock::Timestamp::from_unix_seconds(world.idle_since("gpu-1").unwrap());
    (idle_since + crate::world::INACTIVE).rfc3339()
}

fn told_plus_a_minute(told: &str) -> String {
    (runner_manager::clock::Timestamp::parse(told).unwrap() + minutes(1)).rfc3339()
}

#[tokio::test(start_paused = true)]
async fn why_a_vm_is_up_is_said_in_words() {
    let because = |status: &Value| of(status, "gpu-1")["because"].as_str().unwrap().to_owned();
    for (status, why) in [
        (Status::Provisioning, "it is PROVISIONING"),
        (Status::Stopping, "it is STOPPING, and nothing needs it"),
        (Status::Suspended, "it is SUSPENDED, and nothing needs it"),
    ] {
        assert_eq!(because(&World::new().vm("gpu-1", status).report().await), why);
    }
    // An operator started it in the console.
    let world = World::new();
    world.cloud.compute.delete("gpu-1");
    world
        .cloud
        .compute
        .insert(Instance { status: Status::Running, ..Instance::new("gpu-1", ZONE) });
    let foreign = because(&world.report().await);
    assert!(foreign.contains("this service did not start it"), "{foreign}");
    world.command("/runner/hold", GPU).await;
    let held = world.report().await;
    assert_eq!(because(&held), "it carries the hold label");
    assert_eq!(of(&held, "gpu-1")["held"], true);
    assert_eq!(of(&held, "gpu-1")["stop_after"], Value::Null);

    let mut world = World::new();
    world.cloud.github.remove_runner("gpu-1");
    world.cloud.github.add_runner(runner("gpu-1", "acme/app", "self-hosted linux"));
    let job = world.queue_job("acme/app", "self-hosted gpu", minutes(1));
    world.pass(minutes(2)).await;
    let unfit = world.report().await;
    assert_eq!(of(&unfit, "gpu-1")["jobs"][0]["id"], job.0, "it is told");
    assert!(
        !because(&unfit).contains("is queued for it"),
        "but no runner of the VM can take it: {unfit:#}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_query_that_failed_is_reported_and_hides_nothing_else() {
    let mut world = World::new();
    world.queue_job("acme/app", "self-hosted gpu", minutes(10));
    world.pass(minutes(2)).await;
    world.cloud.compute.delete("runner-1");
    let status = world.report().await;
    let gone = of(&status, "runner-1");
    assert_eq!(
        (&gone["status"], &gone["held"], &gone["because"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    assert!(not_asked(gone).contains("no instance runner-1 in asia-northeast1-a"), "{gone:#}");
    assert_eq!(gone["entries"].as_array().unwrap().len(), 2);
    assert_eq!(of(&status, "gpu-1")["jobs"].as_array().unwrap().len(), 1);
    assert_eq!(not_asked(of(&status, "gpu-1")), "");

    for (permission, grant) in [
        (Permission::Administration, "list runners of a repository: 403 Forbidden"),
        (
            Permission::Administration,
            "the runners of acme/app are refused: grant the GitHub App Administration: read",
        ),
        (
            Permission::Actions,
            "the jobs of acme/app are refused: grant the GitHub App Actions: read",
        ),
    ] {
        let world = World::new().vm("gpu-1", Status::Running);
        world.cloud.github.forbid(permission);
        world.cloud.github.forbid(Permission::OrgRunners);
        let status = world.report().await;
        assert!(not_asked(of(&status, "gpu-1")).contains(grant), "{grant}: {status:#}");
        assert_eq!(of(&status, "gpu-1")["status"], "RUNNING");
    }

    let world = World::new().vm("gpu-1", Status::Running);
    world.cloud.compute.forbid("compute.instances.get");
    let status = world.report().await;
    assert!(not_asked(of(&status, "gpu-1")).contains("grant compute.instances.get"), "{status:#}");
    assert_eq!(of(&status, "gpu-1")["runners"].as_array().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_organizations_runner_is_shown_with_its_organization() {
    let world = World::new();
    world.cloud.github.remove_runner("gpu-1");
    let scope = Scope::Organization("acme".into());
    world.cloud.github.add_runner(Runner::new("gpu-1", scope, ["self-hosted", "gpu"]));
    let status = world.report().await;
    assert_eq!(of(&status, "gpu-1")["runners"][0]["registered_in"], "acme");
    assert_eq!(not_asked(of(&status, "gpu-1")), "");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_takes_no_longer_than_a_callback_may() {
    let world = World::new().vm("gpu-1", Status::Running);
    world
        .cloud
        .faults
        .on(|call| (call.method == "actions.listWorkflowRunsForRepo").then_some(Fault::Hang));
    let began = world.clock.now();
    let status = world.report().await;
    assert!(world.clock.now().since(began) <= seconds(20));
    assert!(not_asked(of(&status, "gpu-1")).contains("list runs: no answer"), "{status:#}");
    assert_eq!(of(&status, "gpu-1")["runners"].as_array().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_operator_who_watches_leaves_githubs_limit_to_the_passes() {
    let mut world = World::new();
    let job = world.queue_job("acme/app", "self-hosted gpu", minutes(120));
    world.pass_until(minutes(5), |world| world.is_started(job)).await;
    world.pass(minutes(5)).await;
    let before = world.cloud.calls().len();
    for _ in 0..900 {
        world.report().await;
        world.pass(seconds(4)).await;
    }
    let asked = |method: &str| {
        world.cloud.calls()[before..].iter().filter(|call| call.method.starts_with(method)).count()
    };
    assert_eq!(asked("instances.get") / 900, 2, "the VMs are read each time");
    assert!(asked("actions.list") < 2_000, "{} of 5,000 calls in an hour", asked("actions.list"));
}

#[tokio::test(start_paused = true)]
async fn a_changed_vm_is_a_reason_to_query_github_again() {
    let mut world = World::new();
    world.pass(minutes(1)).await;
    assert_eq!(of(&world.report().await, "gpu-1")["jobs"], json!([]));
    world.pass(seconds(20)).await;
    let job = world.queue_job("acme/app", "self-hosted gpu", minutes(1));
    world.pass(seconds(3)).await;
    let status = world.report().await;
    assert_eq!(of(&status, "gpu-1")["jobs"][0]["id"], job.0, "{status:#}");
    assert_eq!(of(&status, "gpu-1")["because"], format!("job {job} of acme/app is queued for it"));
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_passes_is_not_shown_for_long() {
    let mut world = World::new().vm("gpu-1", Status::Running);
    world.cloud.faults.on(|call| {
        let down = Fault::Before(StatusCode::SERVICE_UNAVAILABLE, ErrorBody::Html);
        (call.method == "actions.listWorkflowRunsForRepo").then_some(down)
    });
    let status = world.report().await;
    assert!(not_asked(of(&status, "gpu-1")).contains("ask again"), "{status:#}");
    world.cloud.faults.off();
    world.pass(minutes(1)).await;
    assert_eq!(not_asked(of(&world.report().await, "gpu-1")), "");
}

#[tokio::test(start_paused = true)]
async fn a_job_that_no_vm_serves_is_shown_with_the_nearest_entry() {
    let entry = |labels: &str| {
        format!(
            r#"{{"repo": "acme/app", "labels": {labels}, "vm_instance_name": "gpu-1", "vm_instance_zone": "{ZONE}"}}"#
        )
    };
    let (large, gpu) =
        (entry(r#"["self-hosted", "large", "arm"]"#), entry(r#"["self-hosted", "gpu"]"#));
    let mut world = World::with_config(format!("[{large}, {gpu}]"));
    let job = world.queue_job("acme/app", "self-hosted gup", minutes(10)).0;
    world.queue_job("acme/app", "ubuntu-latest", minutes(10));
    world.queue_job("acme/web", "self-hosted", minutes(10));
    world.pass(minutes(1)).await;
    let unserved = &world.report().await["unserved_jobs"];
    assert_eq!(unserved.as_array().unwrap().len(), 1, "{unserved:#}");
    let because = r#"no entry matches; the nearest is RUNNER_CONFIG[1], but the job does not ask for ["gpu"]"#;
    assert_eq!(
        (&unserved[0]["id"], &unserved[0]["because"], &unserved[0]["since"]),
        (&json!(job), &json!(because), &json!("2026-11-24T09:00:07Z"))
    );
    // Another runner may take it: the resync waits a while before it warns.
    let secret = [("X-Runner-Secret", crate::world::SECRET)];
    let resync = world.send(Method::POST, "/runner/reconcile", &secret, "").await.body;
    assert_eq!(resync["findings"], json!([]));
    world.pass(minutes(5)).await;
    let resync = world.send(Method::POST, "/runner/reconcile", &secret, "").await.body;
    let found = format!(r#"job {job} of acme/app is queued for ["self-hosted", "gup"]: {because}"#);
    assert_eq!(resync["findings"][0]["found"], found, "{resync:#}");
    assert_eq!(resync["findings"][0]["level"], "warning");
}
