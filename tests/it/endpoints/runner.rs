use http::{Method, StatusCode};
use runner_manager::emulators::compute::{Instance, Status};
use runner_manager::emulators::{ErrorBody, Fault};

use super::{detail, says};
use crate::world::{SECRET, World, ZONE, fleet, minutes, seconds};

const GPU: &str = r#"{"vm_instance_name": "gpu-1", "vm_instance_zone": "asia-northeast1-a"}"#;

#[tokio::test(start_paused = true)]
async fn a_caller_without_the_secret_is_refused() {
    let world = World::new();
    for path in ["/runner/start", "/runner/stop", "/runner/hold", "/runner/release"] {
        for (headers, why) in [
            (&[][..], "is missing"),
            (&[("X-Runner-Secret", "")][..], "does not hold"),
            (&[("X-Runner-Secret", "another")][..], "does not hold"),
            (&[("X-Runner-Secret", &SECRET[..5])][..], "does not hold"),
            (&[("X-Runner-Secret", "\u{e9}")][..], "does not hold"),
            (
                &[("X-CloudTasks-TaskName", "0123"), ("X-CloudTasks-QueueName", "q")][..],
                "is missing",
            ),
        ] {
            let answer = world.send(Method::POST, path, headers, GPU).await;
            assert!(detail(&answer, StatusCode::UNAUTHORIZED).contains(why), "{answer:?}");
        }
    }
    assert!(world.cloud.calls().is_empty());
}

#[tokio::test(start_paused = true)]
async fn which_vm_is_meant_has_to_be_clear_and_one_of_ours() {
    let world = World::new();
    for path in ["/runner/start", "/runner/stop", "/runner/hold", "/runner/release"] {
        let which = detail(&world.command(path, "").await, StatusCode::BAD_REQUEST);
        assert!(
            which.contains("gpu-1 in asia-northeast1-a; runner-1 in asia-northeast1-a"),
            "{which}"
        );
        detail(&world.command(path, "{}").await, StatusCode::BAD_REQUEST);
        for (body, status) in [
            (r#"{"vm_instance_name": "other"}"#, StatusCode::NOT_FOUND),
            (
                r#"{"vm_instance_name": "gpu-1", "vm_instance_zone": "mars-1"}"#,
                StatusCode::NOT_FOUND,
            ),
            (r#"{"vm_instance_name": 7}"#, StatusCode::BAD_REQUEST),
            (r#"{"force": "yes"}"#, StatusCode::BAD_REQUEST),
            ("[]", StatusCode::BAD_REQUEST),
            ("vm_instance_name=gpu-1", StatusCode::BAD_REQUEST),
            ("{", StatusCode::BAD_REQUEST),
        ] {
            detail(&world.command(path, body).await, status);
        }
    }
    let large = " ".repeat((1 << 20) + 1);
    detail(&world.command("/runner/start", &large).await, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(world.cloud.calls().is_empty());
}

#[tokio::test(start_paused = true)]
async fn with_one_vm_the_documented_curl_line_is_enough() {
    let one = r#"[{"repo": "acme/app", "labels": ["self-hosted"], "vm_instance_name": "gpu-1", "vm_instance_zone": "asia-northeast1-a"}]"#;
    let mut world = World::with_config(one.into());
    let answer = world.command("/runner/start", "").await;
    says(&answer, "starting");
    assert!(answer.body["operation"].as_str().unwrap().starts_with("operation-"));
    assert_eq!(answer.body.as_object().unwrap().len(), 2, "{answer:?}");
    world.pass(minutes(1)).await;
    let answer = world.command("/runner/start", "").await;
    assert_eq!(answer.body, serde_json::json!({ "status": "already_running" }));
    let answer = world.command("/runner/stop", "").await;
    says(&answer, "stopping");
    assert!(answer.body["operation"].is_string());
    world.pass(minutes(1)).await;
    assert_eq!(
        world.command("/runner/stop", "").await.body,
        serde_json::json!({ "status": "already_stopped" })
    );
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn every_status_is_answered_for() {
    // status, reply to a start, reply to a stop
    for (status, start, stop) in [
        (Status::Terminated, "starting", "already_stopped"),
        (Status::Stopped, "starting", "already_stopped"),
        (Status::Suspended, "starting", "already_stopped"),
        (Status::Running, "already_running", "stopping"),
        (Status::Provisioning, "starting", "stop_scheduled"),
        (Status::Staging, "starting", "stop_scheduled"),
        (Status::Pending, "starting", "stop_scheduled"),
        (Status::Repairing, "starting", "stop_scheduled"),
        (Status::Stopping, "start_scheduled", "already_stopped"),
        (Status::PendingStop, "start_scheduled", "already_stopped"),
        (Status::Suspending, "start_scheduled", "already_stopped"),
        (Status::Deprovisioning, "start_scheduled", "already_stopped"),
    ] {
        says(&World::new().vm("gpu-1", status).command("/runner/start", GPU).await, start);
        says(&World::new().vm("gpu-1", status).command("/runner/stop", GPU).await, stop);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_by_hand_asks_the_witnesses_unless_it_is_forced() {
    let mut world = World::new();
    world.queue_job("acme/app", "self-hosted gpu", minutes(10));
    world.pass(minutes(2)).await;
    let answer = world.command("/runner/stop", GPU).await;
    says(&answer, "busy");
    let told = answer.body["detail"].as_str().unwrap();
    assert!(told.contains("its runner in acme/app is busy; next check 2026-11-24T09:0"), "{told}");
    let forced = r#"{"vm_instance_name": "gpu-1", "force": true}"#;
    says(&world.command("/runner/stop", forced).await, "stopping");
    world.pass(seconds(10)).await;
    assert_eq!(world.status("gpu-1"), Status::Stopping);
}

#[tokio::test(start_paused = true)]
async fn the_pass_of_a_stop_by_hand_gives_way_to_newer_work() {
    let mut world = World::new();
    world.queue_job("acme/app", "self-hosted gpu", minutes(10));
    world.pass(minutes(2)).await;
    let before = world.cloud.tasks.pending();
    says(&world.command("/runner/stop", GPU).await, "busy");
    let tasks = world.cloud.tasks.pending();
    let new = tasks.iter().find(|task| before.iter().all(|old| old.id != task.id)).unwrap();
    assert_eq!(new.body["idle_since"], world.idle_since("gpu-1").unwrap());
    assert_eq!(new.body.get("unmarked"), None);
}

#[tokio::test(start_paused = true)]
async fn a_start_by_hand_of_a_vm_that_just_began_to_stop_is_done_later() {
    let mut world = World::new();
    let compute = world.cloud.compute.clone();
    world.cloud.faults.on(move |call| {
        if call.method == "instances.start" {
            compute.set_status("gpu-1", Status::Stopping);
        }
        None
    });
    let answer = world.command("/runner/start", GPU).await;
    says(&answer, "start_scheduled");
    let detail = answer.body["detail"].as_str().unwrap();
    assert!(detail.contains("next check 2026-11-24T09:01:00Z"), "{detail}");
    world.cloud.faults.off();
    world.cloud.compute.set_status("gpu-1", Status::Terminated);
    world.pass_until(minutes(2), |world| world.status("gpu-1") == Status::Running).await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_by_hand_does_not_stop_blind() {
    let mut world = World::new().vm("gpu-1", Status::Running);
    world.cloud.github.outage(true);
    says(&world.command("/runner/stop", GPU).await, "unknown");
    world.cloud.github.outage(false);
    world.pass_until(minutes(10), |world| world.is_stopped("gpu-1")).await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_held_vm_can_be_stopped_by_hand() {
    let world = World::new().vm("gpu-1", Status::Running);
    world.cloud.compute.label_by_hand("gpu-1", "runner-manager-hold", Some(""));
    says(&world.command("/runner/stop", GPU).await, "stopping");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_by_google_is_reported_with_the_call_and_its_status() {
    let world = World::new();
    world.cloud.compute.forbid("compute.instances.start");
    let refused = world.command("/runner/start", GPU).await;
    says(&refused, "start_scheduled");
    let told = refused.body["detail"].as_str().unwrap();
    assert!(told.contains("the VM was not started: instances.start: 403 Forbidden: "), "{told}");

    let world = World::new();
    world.cloud.compute.delete("gpu-1");
    let missing = detail(&world.command("/runner/stop", GPU).await, StatusCode::BAD_GATEWAY);
    assert!(missing.contains("no instance gpu-1 in asia-northeast1-a"), "{missing}");

    let world = World::new();
    world.cloud.tasks.forbid_create(true);
    let unguarded = detail(&world.command("/runner/start", GPU).await, StatusCode::BAD_GATEWAY);
    assert!(unguarded.starts_with("tasks.create: 403"), "{unguarded}");
    assert!(world.is_stopped("gpu-1"), "a VM without a pass would leak");

    let world = World::with_config(fleet(""));
    world.cloud.compute.delete("gpu-1");
    let spec =
        Instance { status: Status::Running, local_ssd: true, ..Instance::new("gpu-1", ZONE) };
    world.cloud.compute.insert(spec);
    let ssd = detail(&world.command("/runner/stop", GPU).await, StatusCode::CONFLICT);
    assert!(ssd.contains("discard_local_ssd"), "{ssd}");
}

#[tokio::test(start_paused = true)]
async fn a_callback_that_should_come_again_is_answered_500() {
    let world = World::new().vm("gpu-1", Status::Running);
    for _ in 0..2 {
        world
            .cloud
            .faults
            .next("instances.get", Fault::Before(StatusCode::SERVICE_UNAVAILABLE, ErrorBody::Html));
    }
    let again =
        detail(&world.callback("/runner/stop", GPU).await, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(again.starts_with("instances.get: 503"), "{again}");
    assert_eq!(world.status("gpu-1"), Status::Running);
}

#[tokio::test(start_paused = true)]
async fn callbacks_of_any_shape_are_answered() {
    for path in ["/runner/start", "/runner/stop"] {
        let world = World::new();
        // The task names no VM, so there is nothing to schedule.
        says(&world.callback(path, "").await, "not_configured");
        says(&world.callback(path, "{}").await, "not_configured");
        says(&world.callback(path, r#"{"a_field_of_later": [1, 2]}"#).await, "not_configured");
        assert!(world.cloud.calls().is_empty());
        detail(&world.callback(path, "{").await, StatusCode::BAD_REQUEST);
        detail(&world.callback(path, r#"{"due": -1}"#).await, StatusCode::BAD_REQUEST);
        let other = r#"{"vm_instance_name": "other", "vm_instance_zone": "asia-northeast1-a"}"#;
        says(&world.callback(path, other).await, "not_configured");
    }
}

#[tokio::test(start_paused = true)]
async fn a_callback_for_an_instance_that_is_gone_ends_its_chain() {
    let world = World::new();
    world.cloud.compute.delete("gpu-1");
    says(&world.callback("/runner/stop", GPU).await, "not_configured");
    says(&world.callback("/runner/start", GPU).await, "not_configured");
    assert!(world.cloud.tasks.pending().is_empty());
}
