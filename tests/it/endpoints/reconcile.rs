use http::{Method, StatusCode};
use runner_manager::emulators::compute::{Instance, Status};
use runner_manager::emulators::github::{Hook, Permission, Timings};
use runner_manager::emulators::{ErrorBody, Fault};
use serde_json::{Value, json};

use super::detail;
use crate::world::{INACTIVE, SECRET, World, ZONE, minutes, seconds};

const DAY: u64 = 24 * 60;

/// The findings about this VM.
#[track_caller]
fn of(report: &Value, vm: &str) -> Vec<(String, String, Option<String>)> {
    let vms = report["vms"].as_array().unwrap();
    let told = vms.iter().find(|told| told["vm_instance_name"] == vm);
    let told = told.unwrap_or_else(|| panic!("{report:#}"));
    assert_eq!(told["vm_instance_zone"], ZONE);
    let text = |value: &Value| value.as_str().map(str::to_owned);
    told["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (text(&one["level"]).unwrap(), text(&one["found"]).unwrap(), text(&one["did"])))
        .collect()
}

/// The only finding about this VM.
#[track_caller]
fn only(report: &Value, vm: &str) -> (String, String, Option<String>) {
    let mut all = of(report, vm);
    assert_eq!(all.len(), 1, "{report:#}");
    all.remove(0)
}

fn not_asked(report: &Value) -> String {
    let texts = report["not_asked"].as_array().unwrap();
    texts.iter().map(|text| format!("{}\n", text.as_str().unwrap())).collect()
}

#[tokio::test(start_paused = true)]
async fn a_resync_needs_the_secret() {
    let world = World::new();
    for headers in [&[][..], &[("X-Runner-Secret", "another")][..]] {
        let answer = world.send(Method::POST, "/runner/reconcile", headers, "{}").await;
        detail(&answer, StatusCode::UNAUTHORIZED);
    }
    assert!(world.cloud.calls().is_empty());
}

#[tokio::test(start_paused = true)]
async fn where_nothing_was_lost_nothing_is_done() {
    let world = World::new();
    let report = world.resync().await;
    let vm =
        |name: &str| json!({"vm_instance_name": name, "vm_instance_zone": ZONE, "findings": []});
    let expected = json!({"status": "ok", "vms": [vm("gpu-1"), vm("runner-1")], "findings": [], "not_asked": []});
    assert_eq!(report, expected);
    let reads = ["instances.get", "instances.aggregatedList", "actions.list", "apps.", "oauth"];
    for call in world.cloud.calls() {
        assert!(reads.iter().any(|read| call.method.starts_with(read)), "{}", call.method);
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_webhook_was_lost_gets_its_vm() {
    let mut world = World::new();
    world.cloud.github.lose_next_webhook(1);
    let job = world.queue_job("acme/app", "self-hosted gpu", minutes(2));
    world.pass(minutes(1)).await;
    assert!(world.is_stopped("gpu-1"));
    let (level, found, did) = only(&world.resync().await, "gpu-1");
    assert_eq!(level, "warning");
    assert_eq!(found, format!("job {job} of acme/app is queued for it, and it is TERMINATED"));
    assert_eq!(did.unwrap(), "a pass starts it at 2026-11-24T09:01:30Z");
    world.pass_until(minutes(2), |world| world.is_started(job)).await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_delivery_that_failed_is_asked_for_again_once_in_a_while() {
    // Without the permission to read jobs, a delivery is their only source.
    let mut world = World::new();
    world.cloud.github.forbid(Permission::Actions);
    world.cloud.github.lose_next_webhook(1);
    let job = world.queue_job("acme/app", "self-hosted gpu", minutes(1));
    world.pass(minutes(1)).await;
    let report = world.resync().await;
    let told = &report["findings"][0];
    let found =
        "1 delivery of the App's webhook failed, the last at 2026-11-24T09:00:07Z, answered 502";
    assert_eq!((&told["found"], &told["level"]), (&json!(found), &json!("warning")), "{report:#}");
    assert_eq!(told["did"], "asked GitHub to send 1 delivery again");
    world.pass_until(minutes(1), |world| world.is_started(job)).await;
    world.pass(seconds(5)).await;
    world.cloud.github.lose_next_webhook(1);
    world.pass_until(minutes(10), |world| world.is_completed(job)).await;
    let report = world.resync().await;
    assert_eq!(
        report["findings"].as_array().unwrap().len(),
        1,
        "that it is over was lost too: {report:#}"
    );
    world.pass(minutes(5)).await;
    assert_eq!(world.resync().await["findings"], json!([]));
    let asked = world.count("apps.redeliverWebhookDelivery");
    assert_eq!(asked, 2, "{}", world.story());
}

#[tokio::test(start_paused = true)]
async fn deliveries_of_a_webhook_that_leads_elsewhere_are_left_alone() {
    let mut world = World::new();
    world.cloud.github.webhook(Hook {
        url: "https://elsewhere.example/github/webhook".into(),
        secret: SECRET.into(),
        form: false,
    });
    world.cloud.github.lose_next_webhook(1);
    world.queue_job("acme/app", "nobody-has-this", minutes(1));
    world.pass(minutes(1)).await;
    assert_eq!(world.resync().await["findings"], json!([]));
    assert_eq!(world.count("apps.listWebhookDeliveries"), 0);
}

#[tokio::test(start_paused = true)]
async fn resyncs_that_come_often_make_no_more_tasks() {
    let mut world = World::new();
    world.cloud.github.lose_next_webhook(1);
    world.queue_job("acme/app", "self-hosted gpu", minutes(20));
    world.pass(minutes(1)).await;
    for _ in 0..5 {
        world.resync().await;
    }
    assert_eq!(world.cloud.tasks.pending().len(), 1, "{:?}", world.cloud.tasks.pending());
    world.queue_job("acme/app", "self-hosted gpu", minutes(1));
    world.pass(minutes(10)).await;
    let before = world.cloud.tasks.pending().len();
    for _ in 0..5 {
        assert_eq!(
            of(&world.resync().await, "gpu-1"),
            [],
            "a job that takes its time is no finding"
        );
        world.pass(seconds(1)).await;
    }
    assert_eq!(world.cloud.tasks.pending().len(), before, "{}", world.story());
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn one_that_cannot_be_asked_does_not_hide_the_others() {
    let mut world = World::new();
    world.cloud.github.lose_next_webhook(2);
    let jobs =
        ["acme/app", "acme/web"].map(|repo| world.queue_job(repo, "self-hosted", minutes(1)));
    world.cloud.compute.delete("gpu-1");
    world.pass(minutes(1)).await;
    world.cloud.faults.next(
        "actions.listWorkflowRunsForRepo",
        Fault::Before(StatusCode::BAD_REQUEST, ErrorBody::Api),
    );
    let report = world.resync().await;
    let (level, found, did) = only(&report, "gpu-1");
    assert_eq!((level.as_str(), did), ("error", None));
    assert!(found.contains("check RUNNER_CONFIG and GCP_PROJECT_ID"), "{found}");
    assert!(not_asked(&report).contains("list jobs: list runs: 400 Bad Request"), "{report:#}");
    assert!(only(&report, "runner-1").1.contains("acme/web"), "{report:#}");
    world.resync().await;
    world.pass_until(minutes(10), |world| jobs.iter().all(|job| world.is_completed(*job))).await;
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_could_not_be_read_gets_its_pass_all_the_same() {
    let mut world = World::new();
    world.cloud.github.lose_next_webhook(1);
    let job = world.queue_job("acme/app", "self-hosted gpu", minutes(1));
    world.pass(minutes(1)).await;
    let fault = Fault::Before(StatusCode::BAD_REQUEST, ErrorBody::Api);
    world.cloud.faults.next("instances.get", fault);
    let report = world.resync().await;
    let told = of(&report, "gpu-1");
    assert!(told[0].1.starts_with("it could not be read: instances.get"), "{told:?}");
    assert!(told[1].1.contains(" is queued for it") && told[1].2.is_some(), "{told:?}");
    world.pass_until(minutes(3), |world| world.is_started(job)).await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_vm_whose_tasks_were_lost_is_stopped() {
    let mut world = World::new();
    let job = world.queue_job("acme/app", "self-hosted gpu", minutes(1));
    world.pass_until(minutes(5), |world| world.is_completed(job)).await;
    world.pass(minutes(1)).await;
    world.cloud.tasks.purge();
    world.pass(minutes(40)).await;
    let (level, found, did) = only(&world.resync().await, "gpu-1");
    assert_eq!(level, "warning");
    assert!(found.contains("it could have been stopped at 2026-11-24T09:0"), "{found}");
    assert!(did.unwrap().starts_with("a pass decides at "));
    let found = world.clock.now();
    world.pass_until(minutes(6), |world| world.is_stopped("gpu-1")).await;
    let stopping = world.last("gpu-1", Status::Stopping).unwrap();
    assert!(stopping.since(found) >= INACTIVE, "its `completed` may only be late");
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_was_started_by_hand_is_only_reported() {
    let mut world = World::new();
    world.cloud.compute.start_by_hand("gpu-1");
    world.pass(minutes(20)).await;
    assert_eq!(of(&world.resync().await, "gpu-1"), []);
    world.pass(minutes(20)).await;
    let (level, found, did) = only(&world.resync().await, "gpu-1");
    assert_eq!((level.as_str(), did), ("info", None));
    assert!(found.contains("POST /runner/release"), "{found}");
    assert!(world.cloud.tasks.pending().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_is_held_is_left_alone() {
    let mut world = World::new();
    let job = world.queue_job("acme/app", "self-hosted gpu", minutes(1));
    world.pass_until(minutes(5), |world| world.is_completed(job)).await;
    world.command("/runner/hold", r#"{"vm_instance_name": "gpu-1"}"#).await;
    world.pass(minutes(60)).await;
    assert_eq!(of(&world.resync().await, "gpu-1"), []);
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_no_entry_names_is_reported() {
    let mut world = World::new();
    for (name, status) in [("old-1", Status::Running), ("old-2", Status::Terminated)] {
        let vm = Instance { status, ..Instance::new(name, ZONE) };
        world.cloud.compute.insert(vm);
        world.cloud.compute.label_by_hand(name, "runner-manager-idle-since", Some("1795510830"));
    }
    world
        .cloud
        .compute
        .insert(Instance { status: Status::Running, ..Instance::new("web-1", ZONE) });
    let report = world.resync().await;
    let (level, found, did) = only(&report, "old-1");
    assert_eq!((level.as_str(), did), ("warning", None));
    assert!(
        found.contains("no entry of RUNNER_CONFIG names it; it is RUNNING: stop it"),
        "{found}"
    );
    assert_eq!(only(&report, "old-2").0, "info");
    assert_eq!(report["vms"].as_array().unwrap().len(), 4, "{report:#}");

    world.cloud.compute.forbid("compute.instances.list");
    let report = world.resync().await;
    assert!(not_asked(&report).contains("grant compute.instances.list"), "{report:#}");
    assert_eq!(report["vms"].as_array().unwrap().len(), 2, "{report:#}");
    world.pass(seconds(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_slept_for_ten_days_is_woken_for_its_runner() {
    let mut world = World::new();
    let job = world.queue_job("acme/app", "self-hosted gpu", minutes(1));
    world.pass_until(minutes(20), |world| world.is_completed(job)).await;
    world.pass_until(minutes(20), |world| world.is_stopped("gpu-1")).await;
    world.pass(minutes(10 * DAY - 1)).await;
    assert_eq!(of(&world.resync().await, "gpu-1"), []);
    world.pass(minutes(1)).await;
    let (level, found, did) = only(&world.resync().await, "gpu-1");
    assert_eq!(level, "info");
    assert!(found.starts_with("it has been down since 2026-11-24T09:"), "{found}");
    assert!(did.unwrap().starts_with("a pass starts it"));
    world.pass_until(minutes(2), |world| world.status("gpu-1") == Status::Running).await;
    world.pass_until(minutes(20), |world| world.is_stopped("gpu-1")).await;
    let up = world.last("gpu-1", Status::Stopping).unwrap();
    let since = world.last("gpu-1", Status::Running).unwrap();
    assert!(up.since(since) >= INACTIVE, "its runner had time to connect");
    assert_eq!(of(&world.resync().await, "gpu-1"), []);
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_runner_that_is_missing_is_told_of() {
    let mut world = World::new();
    world.command("/runner/start", r#"{"vm_instance_name": "gpu-1"}"#).await;
    world.cloud.github.remove_runner("gpu-1");
    world.pass(minutes(3)).await;
    assert_eq!(of(&world.resync().await, "gpu-1"), []);
    world.command("/runner/hold", r#"{"vm_instance_name": "gpu-1"}"#).await;
    world.pass(minutes(4)).await;
    let (level, found, did) = only(&world.resync().await, "gpu-1");
    assert_eq!((level.as_str(), did), ("error", None));
    assert!(found.contains("GitHub knows no runner named gpu-1"), "{found}");

    world.cloud.github.forbid(Permission::OrgRunners);
    let report = world.resync().await;
    assert_eq!(of(&report, "gpu-1"), [], "it may be registered where the App may not look");
    assert!(not_asked(&report).contains("Self-hosted runners: read"), "{report:#}");
}

#[tokio::test(start_paused = true)]
async fn a_runner_that_is_offline_while_a_job_waits_is_told_of() {
    let mut world = World::new();
    let timings = world.cloud.github.current_timings();
    world.cloud.github.timings(Timings { connect: minutes(15), ..timings });
    let job = world.queue_job("acme/app", "self-hosted gpu", minutes(1));
    world.pass(minutes(4)).await;
    assert_eq!(of(&world.resync().await, "gpu-1"), []);
    world.pass(minutes(4)).await;
    let told = of(&world.resync().await, "gpu-1");
    let (level, found, did) = told.last().unwrap();
    assert_eq!((level.as_str(), did), ("error", &None));
    assert!(
        found.contains(&format!("job {job} of acme/app is queued, but its runner is offline")),
        "{found}"
    );
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_job_that_a_free_vm_did_not_take_does_not_wake_it_again() {
    let mut world = World::new();
    let runner = world.cloud.github.runners().into_iter().find(|one| one.name == "gpu-1").unwrap();
    world.cloud.github.remove_runner(&runner.name);
    let spec = crate::world::runner("gpu-1", "acme/web", "self-hosted linux x64 gpu");
    world.cloud.github.add_runner(spec);
    let job = world.queue_job("acme/app", "self-hosted gpu", minutes(1));
    world
        .pass_until(minutes(120), |world| world.starts("gpu-1") == 1 && world.is_stopped("gpu-1"))
        .await;
    for _ in 0..20 {
        let report = world.resync().await;
        let (level, found, did) = only(&report, "gpu-1");
        assert_eq!((level.as_str(), did), ("warning", None), "{found}");
        assert!(
            found.starts_with(&format!(
                "job {job} of acme/app is queued, but its runner did not take it"
            )),
            "{found}"
        );
        world.pass(minutes(5)).await;
    }
    assert_eq!(world.starts("gpu-1"), 1, "{}", world.story());
}

#[tokio::test(start_paused = true)]
async fn a_failed_act_is_an_error_of_its_vm() {
    let mut world = World::new();
    world.cloud.github.lose_next_webhook(2);
    world.queue_job("acme/app", "self-hosted gpu", minutes(1));
    world.queue_job("acme/app", "self-hosted", minutes(1));
    world.pass(minutes(1)).await;
    let fault = Fault::Before(StatusCode::BAD_REQUEST, ErrorBody::Api);
    world.cloud.faults.next("tasks.create", fault);
    let report = world.resync().await;
    let told: Vec<_> = ["gpu-1", "runner-1"].map(|vm| only(&report, vm)).into();
    let failed = told.iter().filter(|(level, found, did)| {
        level == "error" && found.contains("; nothing was done: tasks.create") && did.is_none()
    });
    assert_eq!(failed.count(), 1, "{told:?}");
    world.resync().await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn an_app_without_a_webhook_is_told_of_once() {
    let world = World::new();
    world.cloud.faults.on(|call| {
        let missing = Fault::Before(StatusCode::NOT_FOUND, ErrorBody::Api);
        (call.method == "apps.getWebhookConfigForApp").then_some(missing)
    });
    let secret = [("X-Runner-Secret", crate::world::SECRET)];
    let first = world.send(Method::POST, "/runner/reconcile", &secret, "").await.body;
    let found = first["findings"][0]["found"].as_str().unwrap();
    assert!(found.starts_with("the App has no webhook of its own"), "{found}");
    assert_eq!((&first["findings"][0]["level"], &first["not_asked"]), (&json!("info"), &json!([])));
    let again = world.send(Method::POST, "/runner/reconcile", &secret, "").await.body;
    assert_eq!((&again["findings"], &again["not_asked"]), (&json!([]), &json!([])));
}
