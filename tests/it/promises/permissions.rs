//! The promises that hold while a permission is missing.

use runner_manager::emulators::compute::Status;
use runner_manager::emulators::github::Permission;

use crate::harness::Log;
use crate::world::{World, minutes, seconds};

#[tokio::test(start_paused = true)]
async fn without_labels_it_works_as_the_original_did_and_leaks_nothing() {
    let (log, _guard) = Log::listen();
    let mut world = World::new();
    world.cloud.compute.forbid("compute.instances.setLabels");
    let first = world.queue_job("acme/app", "self-hosted", minutes(1));
    world.pass_until(minutes(5), |world| world.is_completed(first)).await;
    let second = world.queue_job("acme/app", "self-hosted", minutes(30));
    world.pass_until(minutes(60), |world| world.is_completed(second)).await;
    assert_eq!(world.idle_since("runner-1"), None);
    assert_eq!(world.starts("runner-1"), 1);
    world.settle().await;
    let tried = world.count("instances.setLabels");
    assert!((2..=5).contains(&tried), "it is tried again every ten minutes: {tried}");
    assert_eq!(log.count("WARN", "grant compute.instances.setLabels"), 1, "and to say so");
}

#[tokio::test(start_paused = true)]
async fn with_both_sources_forbidden_a_vm_is_stopped_after_a_day_and_not_before() {
    let mut world = World::new();
    for permission in [Permission::Administration, Permission::OrgRunners, Permission::Actions] {
        world.cloud.github.forbid(permission);
    }
    let job = world.queue_job("acme/app", "self-hosted", minutes(1));
    world.pass_until(minutes(5), |world| world.is_completed(job)).await;
    world.pass(minutes(23 * 60)).await;
    assert_eq!(world.status("runner-1"), Status::Running);
    world.pass_until(minutes(2 * 60), |world| world.is_stopped("runner-1")).await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn without_actions_read_a_job_is_no_evidence_once_its_vm_was_up() {
    let mut world = World::new();
    world.cloud.github.forbid(Permission::Actions);
    let job = world.queue_job("acme/app", "self-hosted", minutes(45));
    world.pass(minutes(10)).await;
    let tasks = world.cloud.tasks.pending();
    assert!(tasks.iter().all(|task| task.body.get("job").is_none()), "{}", world.story());
    world.pass_until(minutes(60), |world| world.is_completed(job)).await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn labels_are_tried_again_ten_minutes_after_they_were_refused() {
    let mut world = World::new();
    world.cloud.compute.forbid("compute.instances.setLabels");
    world.queue_job("acme/app", "self-hosted", minutes(30));
    world.pass(minutes(9)).await;
    assert_eq!(world.count("instances.setLabels"), 1);
    world.cloud.compute.permit("compute.instances.setLabels");
    world.queue_job("acme/app", "self-hosted", minutes(1));
    world.pass(seconds(1)).await;
    assert_eq!(world.idle_since("runner-1"), None);
    world.pass(minutes(2)).await;
    world.queue_job("acme/app", "self-hosted", minutes(1));
    world.pass(seconds(1)).await;
    assert!(world.idle_since("runner-1").is_some());
    world.settle().await;
}
