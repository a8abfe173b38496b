//! A VM stays up for as long as configured after its *last* job.

use http::StatusCode;
use runner_manager::clock::Timestamp;
use runner_manager::emulators::compute::Status;
use runner_manager::emulators::{ErrorBody, Fault};

use crate::world::{INACTIVE, World, fleet, minutes, seconds};

#[tokio::test(start_paused = true)]
async fn the_second_completion_supersedes_the_stop_of_the_first() {
    let mut world = World::new();
    let first = world.queue_job("acme/app", "self-hosted", minutes(1));
    world.pass_until(minutes(5), |world| world.is_completed(first)).await;
    world.pass(seconds(100)).await;
    let second = world.queue_job("acme/app", "self-hosted", seconds(40));
    world.pass_until(minutes(5), |world| world.is_completed(second)).await;
    let over = world.clock.now();
    world.settle().await;
    assert!(world.was_told("superseded"), "{}", world.story());
    let stopped = world.last("runner-1", Status::Stopping).unwrap();
    assert!(stopped.since(over) >= INACTIVE - seconds(1), "{}", world.story());
    assert!(stopped.since(over) <= INACTIVE + seconds(90), "{}", world.story());
    assert_eq!(world.starts("runner-1"), 1);
}

#[tokio::test(start_paused = true)]
async fn two_completions_in_one_second_are_one_stop() {
    let mut world = World::new().vm("runner-1", Status::Running);
    let mut pending = Vec::new();
    for job in [4711, 4712, 4711] {
        let body = completed("acme/app", job, "runner-1");
        assert!(world.webhook("workflow_job", &body).await.status.is_success());
        pending.push(world.cloud.tasks.pending().len());
    }
    assert_eq!(pending, [1, 1, 1]);
    world.settle().await;
    assert_eq!(world.count("instances.stop"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_task_of_the_fastapi_original_counts_only_on_a_vm_without_a_mark() {
    let original = r#"{"vm_instance_name": "gpu-1", "vm_instance_zone": "asia-northeast1-a"}"#;
    let mut world = World::new().vm("gpu-1", Status::Running);
    world.pass(minutes(6)).await;
    let answer = world.callback("/runner/stop", original).await;
    assert_eq!(answer.body["status"], "stopping", "{answer:?}");
    world.settle().await;

    let mut world = World::new();
    let job = world.queue_job("acme/app", "self-hosted gpu", minutes(1));
    world.pass_until(minutes(5), |world| world.is_completed(job)).await;
    let answer = world.callback("/runner/stop", original).await;
    assert_eq!(answer.body["status"], "superseded");
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_mark_only_grows_and_survives_other_writers() {
    let mut world = World::new();
    let job = world.queue_job("acme/app", "self-hosted", minutes(1));
    world.pass(seconds(20)).await;
    let early = world.idle_since("runner-1").unwrap();
    world.cloud.compute.label_by_hand("runner-1", "team", Some("infra"));
    world.pass_until(minutes(5), |world| world.is_completed(job)).await;
    world.pass(seconds(5)).await;
    assert!(world.idle_since("runner-1").unwrap() > early);
    assert_eq!(
        world.cloud.compute.labels("runner-1").get("team").map(String::as_str),
        Some("infra")
    );
    world.settle().await;
}

/// A delivery in GitHub's format, with only the fields that are read.
fn completed(repo: &str, job: u64, runner: &str) -> String {
    format!(
        r#"{{"action": "completed", "workflow_job": {{"id": {job}, "status": "completed", "labels": ["self-hosted"],
            "runner_name": "{runner}"}}, "repository": {{"full_name": "{repo}"}}}}"#
    )
}

#[tokio::test(start_paused = true)]
async fn a_completion_counts_for_the_vm_whose_runner_ran_the_job() {
    let world = World::new();
    // By its labels it would have been runner-1's.
    let answer = world.webhook("workflow_job", &completed("acme/app", 4711, "gpu-1")).await;
    assert!(answer.outcome.starts_with("gpu-1: "), "{answer:?}");
    assert!(world.idle_since("gpu-1").is_some() && world.idle_since("runner-1").is_none());
    let tasks = world.cloud.tasks.pending();
    assert_eq!(tasks.len(), 1);
    assert_eq!(tasks[0].body["vm_instance_name"], "gpu-1");
}

#[tokio::test(start_paused = true)]
async fn the_label_of_a_late_event_gives_way_to_a_newer_one() {
    let mut world = World::new().vm("runner-1", Status::Running);
    world.pass(seconds(21)).await;
    // The first job's write arrives when the second, of the next half minute, has written its own.
    world.cloud.faults.next("instances.setLabels", Fault::Delay(seconds(3)));
    let (first, second) =
        (completed("acme/app", 4711, "runner-1"), completed("acme/app", 4712, "runner-1"));
    tokio::join!(world.webhook("workflow_job", &first), async {
        tokio::time::sleep(seconds(2) + seconds(1) / 2).await;
        world.webhook("workflow_job", &second).await
    });
    let newer = Timestamp::parse("2026-11-24T09:01:00Z").unwrap();
    assert_eq!(world.idle_since("runner-1"), Some(newer.unix_seconds()));
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_label_is_written_again_after_a_conflict_with_another_writer() {
    let mut world = World::new().vm("runner-1", Status::Running);
    let compute = world.cloud.compute.clone();
    let mut once = Some("infra");
    world.cloud.faults.on(move |call| {
        if call.method == "instances.setLabels"
            && let Some(team) = once.take()
        {
            compute.label_by_hand("runner-1", "team", Some(team));
        }
        None
    });
    world.webhook("workflow_job", &completed("acme/app", 4711, "runner-1")).await;
    world.cloud.faults.off();
    assert!(world.idle_since("runner-1").is_some());
    assert_eq!(
        world.cloud.compute.labels("runner-1").get("team").map(String::as_str),
        Some("infra")
    );
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn another_failure_to_set_labels_is_not_remembered_as_a_missing_permission() {
    for (status, reason) in [
        (StatusCode::FORBIDDEN, "rateLimitExceeded"),
        (StatusCode::FORBIDDEN, "accessNotConfigured"),
        (StatusCode::UNAUTHORIZED, "authError"),
    ] {
        let mut world = World::new().vm("runner-1", Status::Running);
        let refusal = Fault::Before(status, ErrorBody::Reason(reason.into()));
        world
            .cloud
            .faults
            .on(move |call| (call.method == "instances.setLabels").then(|| refusal.clone()));
        world.webhook("workflow_job", &completed("acme/app", 4711, "runner-1")).await;
        assert_eq!(world.idle_since("runner-1"), None, "{reason}");
        world.cloud.faults.off();
        world.webhook("workflow_job", &completed("acme/app", 4712, "runner-1")).await;
        assert!(world.idle_since("runner-1").is_some(), "{reason}");
        world.settle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_on_a_vm_that_is_up_and_freshly_labelled_costs_one_read_and_one_task() {
    let mut world = World::new().vm("runner-1", Status::Running);
    world.queue_job("acme/app", "self-hosted", minutes(1));
    world.pass(seconds(1)).await;
    world.cloud.clear_calls();
    world.queue_job("acme/app", "self-hosted", minutes(1));
    world.pass(seconds(1)).await;
    let mut calls: Vec<_> = world.cloud.calls().iter().map(|call| call.method).collect();
    calls.sort_unstable();
    assert_eq!(calls, ["instances.get", "tasks.create"]);
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_release_does_not_bring_the_stop_forward() {
    let mut world = World::new();
    let job = world.queue_job("acme/app", "self-hosted gpu", minutes(1));
    world.pass_until(minutes(5), |world| world.is_completed(job)).await;
    let over = world.clock.now();
    for path in ["/runner/hold", "/runner/release"] {
        world.command(path, r#"{"vm_instance_name": "gpu-1"}"#).await;
        world.pass(seconds(5)).await;
    }
    world.pass_until(minutes(10), |world| world.is_stopped("gpu-1")).await;
    let stopping = world.last("gpu-1", Status::Stopping).unwrap();
    assert!(stopping.since(over) >= INACTIVE, "{over} {stopping}");
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_completion_counts_from_the_pass_that_found_the_vm_idle() {
    let mut world = World::inactive_for(15, fleet(""));
    let job = world.queue_job("acme/app", "self-hosted", minutes(47));
    world.pass(minutes(30)).await;
    world.cloud.github.lose_next_webhook(2);
    world.pass_until(minutes(30), |world| world.is_completed(job)).await;
    let over = world.clock.now();
    world.pass_until(minutes(25), |world| world.is_stopped("runner-1")).await;
    let stopped = world.last("runner-1", Status::Stopping).unwrap().since(over);
    assert!(stopped >= minutes(15) && stopped <= minutes(21), "{stopped:?}\n{}", world.story());
    world.settle().await;
}
