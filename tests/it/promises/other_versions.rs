//! Tasks outlive a deploy, in both directions: each version understands the other's.

use runner_manager::emulators::compute::Status;
use serde_json::json;

use crate::world::{World, minutes, seconds};

/// A world in which a job waits for `gpu-1`, which is down, and only a task of the previous version knows of it.
fn a_job_waits_for_gpu_1() -> (World, u64) {
    let world = World::new();
    world.cloud.github.lose_next_webhook(1);
    let job = world.queue_job("acme/app", "self-hosted gpu", minutes(1));
    (world, job.0)
}

#[tokio::test(start_paused = true)]
async fn a_start_check_of_the_version_before_starts_the_vm_for_its_job() {
    let (mut world, job) = a_job_waits_for_gpu_1();
    let body = format!(
        r#"{{"vm_instance_name":"gpu-1","vm_instance_zone":"asia-northeast1-a","idle_since":1795510830,"due":1795510920,
            "event_at":1795510807,"job":{{"repo":"acme/app","id":{job},"queued_at":1795510807}}}}"#
    );
    let answer = world.callback("/runner/start", &body).await;
    assert_eq!(answer.body["status"], "starting", "{answer:?}");
    let next = world.cloud.tasks.pending().remove(0);
    assert_eq!((next.path.as_str(), &next.body["job"]["id"]), ("/runner/stop", &json!(job)));
    assert_eq!(
        world.idle_since("gpu-1"),
        Some(1_795_510_830),
        "the label that a crash kept from being written"
    );
    world.pass_until(minutes(15), |world| world.is_quiet()).await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn an_operators_start_check_of_the_version_before_starts_the_vm_once() {
    let mut world = World::new();
    let body = r#"{"vm_instance_name":"gpu-1","vm_instance_zone":"asia-northeast1-a","idle_since":1795510800,
        "due":1795510840,"event_at":1795510790}"#;
    let answer = world.callback("/runner/start", body).await;
    assert_eq!(answer.body["status"], "starting", "{answer:?}");
    world.pass_until(minutes(12), |world| world.is_stopped("gpu-1")).await;
    assert_eq!(world.starts("gpu-1"), 1);
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_check_of_the_version_before_stops_an_idle_vm_and_starts_one_that_is_needed() {
    let body = r#"{"vm_instance_name":"gpu-1","vm_instance_zone":"asia-northeast1-a","idle_since":1795510800,"due":1795511310,
        "looks":3,"confirmed":1,"stops":0,"waiting":[{"job":7,"since":1795510800,"until":1795511100}],
        "cursor":{"repo":"acme/app","list":2,"before":null}}"#;
    let mut world = World::new().vm("gpu-1", Status::Running);
    world.pass(minutes(9)).await;
    let answer = world.callback("/runner/stop", body).await;
    assert!(
        ["stopping", "confirming"].contains(&answer.body["status"].as_str().unwrap()),
        "{answer:?}"
    );
    world.pass_until(minutes(10), |world| world.is_stopped("gpu-1")).await;
    world.settle().await;

    let (mut world, _) = a_job_waits_for_gpu_1();
    world.pass(seconds(10)).await;
    let answer = world.callback("/runner/stop", body).await;
    assert_eq!(answer.body["status"], "starting", "{answer:?}");
    world.settle().await;
}

/// The previous version reads these fields of a stop check, and would end without its VM, or a value that a label can
/// supersede: after a rollback a pass is a stop check that goes on from there.
#[tokio::test(start_paused = true)]
async fn a_pass_is_a_stop_check_to_the_version_before() {
    let mut world = World::new();
    world.queue_job("acme/app", "self-hosted gpu", minutes(30));
    world.pass(minutes(20)).await;
    world.command("/runner/start", r#"{"vm_instance_name": "runner-1"}"#).await;
    let tasks = world.cloud.tasks.pending();
    assert!(tasks.len() >= 2, "{tasks:?}");
    for task in tasks {
        assert_eq!(task.path, "/runner/stop");
        let body = &task.body;
        assert!(body["vm_instance_name"].is_string() && body["vm_instance_zone"].is_string());
        assert!(
            body["idle_since"].is_u64() && body["due"].is_u64() && body["looks"].is_u64(),
            "{body}"
        );
        assert!(body["job"].is_null() || body["job"]["queued_at"].is_u64());
        let names =
            ["waiting", "cursor", "forbidden_since", "unconfigured_since", "stops", "confirmed"];
        let unexpected = names.into_iter().find(|name| !body[name].is_null());
        assert_eq!(unexpected, None, "{body}");
    }
}
