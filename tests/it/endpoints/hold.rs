use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http::StatusCode;
use runner_manager::emulators::compute::{Status, Timings};
use serde_json::json;

use super::detail;
use crate::world::{World, minutes, seconds};

const GPU: &str = r#"{"vm_instance_name": "gpu-1", "vm_instance_zone": "asia-northeast1-a"}"#;
const LABEL: &str = "runner-manager-hold";

fn label(world: &World) -> Option<String> {
    world.cloud.compute.labels("gpu-1").get(LABEL).cloned()
}

#[tokio::test(start_paused = true)]
async fn a_hold_and_a_release_can_be_repeated() {
    let world = World::new().vm("gpu-1", Status::Running);
    world.cloud.compute.label_by_hand("gpu-1", "team", Some("ml"));
    for _ in 0..2 {
        assert_eq!(world.command("/runner/hold", GPU).await.body, json!({ "status": "held" }));
        assert!(label(&world).is_some());
    }
    assert_eq!(world.count("instances.setLabels"), 1);
    for _ in 0..2 {
        let released = world.command("/runner/release", GPU).await;
        assert_eq!(released.body, json!({ "status": "released" }));
        assert_eq!(label(&world), None);
    }
    assert_eq!(world.count("instances.setLabels"), 2);
    assert_eq!(world.cloud.compute.labels("gpu-1")["team"], "ml", "other labels are left alone");
    assert_eq!(world.cloud.tasks.pending().len(), 1, "both releases made the same stop check");
}

#[tokio::test(start_paused = true)]
async fn a_hold_of_another_value_is_left_as_it_is_and_released_all_the_same() {
    let world = World::new().vm("gpu-1", Status::Running);
    world.cloud.compute.label_by_hand("gpu-1", LABEL, Some("debugging"));
    world.command("/runner/hold", GPU).await;
    assert_eq!(label(&world).as_deref(), Some("debugging"));
    world.command("/runner/release", GPU).await;
    assert_eq!(label(&world), None);
}

#[tokio::test(start_paused = true)]
async fn a_stopped_vm_can_be_held_and_its_release_leaves_nothing_to_do() {
    let world = World::new();
    assert_eq!(world.command("/runner/hold", GPU).await.body, json!({ "status": "held" }));
    assert_eq!(world.command("/runner/release", GPU).await.body, json!({ "status": "released" }));
    assert!(world.cloud.tasks.pending().is_empty() && label(&world).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_hold_survives_that_others_write_labels_at_the_same_time() {
    let world = World::new().vm("gpu-1", Status::Running);
    let timings = Timings { label_delay: Duration::from_secs(1), ..Timings::default() };
    world.cloud.compute.timings(timings);
    // Twice, another writer is a moment faster.
    let (compute, times) = (world.cloud.compute.clone(), AtomicU32::new(0));
    world.cloud.faults.on(move |call| {
        if call.method == "instances.setLabels" {
            let nth = times.fetch_add(1, Ordering::Relaxed);
            if nth < 2 {
                compute.label_by_hand("gpu-1", &format!("other-{nth}"), Some("label"));
            }
        }
        None
    });
    assert_eq!(world.command("/runner/hold", GPU).await.body, json!({ "status": "held" }));
    let labels = world.cloud.compute.labels("gpu-1");
    assert!(
        ["other-0", "other-1", LABEL].iter().all(|key| labels.contains_key(*key)),
        "{labels:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn labels_that_never_rest_are_an_error_and_not_a_hold() {
    let world = World::new().vm("gpu-1", Status::Running);
    let (compute, times) = (world.cloud.compute.clone(), AtomicU32::new(0));
    world.cloud.faults.on(move |call| {
        if call.method == "instances.setLabels" {
            let value = times.fetch_add(1, Ordering::Relaxed).to_string();
            compute.label_by_hand("gpu-1", "other", Some(&value));
        }
        None
    });
    let refused = detail(&world.command("/runner/hold", GPU).await, StatusCode::BAD_GATEWAY);
    assert!(refused.starts_with("instances.setLabels: 412"), "{refused}");
    assert_eq!(world.count("instances.setLabels"), 5);
    assert_eq!(label(&world), None);
}

#[tokio::test(start_paused = true)]
async fn without_the_permission_the_error_says_what_to_grant() {
    let mut world = World::new().vm("gpu-1", Status::Running);
    world.cloud.compute.forbid("compute.instances.setLabels");
    let refused = detail(&world.command("/runner/hold", GPU).await, StatusCode::BAD_GATEWAY);
    assert!(refused.contains("grant compute.instances.setLabels"), "{refused}");
    world.cloud.compute.label_by_hand("gpu-1", LABEL, Some(""));
    let refused = detail(&world.command("/runner/release", GPU).await, StatusCode::BAD_GATEWAY);
    assert!(refused.contains("grant compute.instances.setLabels"), "{refused}");
    // Each hold tries again, so a permission granted in between counts.
    world.cloud.compute.permit("compute.instances.setLabels");
    assert_eq!(world.command("/runner/release", GPU).await.body, json!({ "status": "released" }));
    world.pass(seconds(1)).await;
    assert_eq!(label(&world), None);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_released_before_its_pass_was_accepted() {
    let world = World::new().vm("gpu-1", Status::Running);
    world.command("/runner/hold", GPU).await;
    world.cloud.tasks.forbid_create(true);
    let refused = detail(&world.command("/runner/release", GPU).await, StatusCode::BAD_GATEWAY);
    assert!(refused.starts_with("tasks.create: 403"), "{refused}");
    assert!(label(&world).is_some(), "a VM without a pass would leak");
}

#[tokio::test(start_paused = true)]
async fn a_hold_may_end_by_itself_and_has_a_reason() {
    let mut world = World::new().vm("gpu-1", Status::Running);
    let hold = r#"{"vm_instance_name": "gpu-1", "minutes": 60, "reason": "debugging\n"}"#;
    let answer = world.command("/runner/hold", hold).await;
    let expected = "an operator asked for it, until 2026-11-24T10:00:07Z: \"debugging\\n\"";
    assert_eq!(answer.body, json!({ "status": "held", "detail": expected }));
    assert_eq!(answer.outcome, format!("gpu-1: held: {expected}"));
    assert_eq!(label(&world).as_deref(), Some("1795514407"));
    world.pass(minutes(59)).await;
    assert_eq!(world.status("gpu-1"), Status::Running);
    let report = world.report().await;
    assert_eq!(report["vms"][0]["held"], true);
    assert_eq!(report["vms"][0]["because"], "it is held until 2026-11-24T10:00:07Z");
    // Nothing else asks for it afterwards, and it had no pass before.
    world.pass(minutes(20)).await;
    assert!(world.is_stopped("gpu-1"), "{}", world.story());
}

#[tokio::test(start_paused = true)]
async fn a_mistyped_command_is_refused_by_the_name_of_its_field() {
    let world = World::new();
    for (path, body, problem) in [
        (
            "/runner/hold",
            r#"{"minuts": 60}"#,
            "unknown field `minuts`, expected one of `vm_instance_name`, ",
        ),
        ("/runner/stop", r#"{"Force": true}"#, "unknown field `Force`"),
        ("/runner/start", r#"{"force": true}"#, "unknown field `force`"),
        ("/runner/release", r#"{"minutes": 1}"#, "unknown field `minutes`"),
        (
            "/runner/hold",
            r#"{"vm_instance_name": "gpu-1", "minutes": 0}"#,
            "`minutes` is not a number from 1 to 525600",
        ),
        ("/runner/hold", r#"{"minutes": -1}"#, "a value of the wrong type"),
    ] {
        let detail = detail(&world.command(path, body).await, StatusCode::BAD_REQUEST);
        assert!(detail.contains(problem), "{path} {body}: {detail}");
    }
    assert!(world.cloud.calls().is_empty());
    // A task of a later version may have fields that this one does not know.
    let task =
        r#"{"vm_instance_name": "gpu-1", "vm_instance_zone": "asia-northeast1-a", "news": 1}"#;
    assert_eq!(world.callback("/runner/stop", task).await.status, StatusCode::OK);
}
