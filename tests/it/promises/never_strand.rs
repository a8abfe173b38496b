//! A queued job always gets its runner, whatever the VM was doing.

use runner_manager::emulators::compute::{Instance, Status};
use runner_manager::emulators::{ErrorBody, Fault};

use crate::world::{World, ZONE, minutes, seconds};

/// One job on a VM that is in this status when the job is queued.
async fn a_job_on_a_vm_that_is(status: Status) -> World {
    let mut world = World::new().vm("runner-1", status);
    let job = world.queue_job("acme/app", "self-hosted", minutes(2));
    world.pass_until(minutes(10), |world| world.is_completed(job)).await;
    world.settle().await;
    world
}

#[tokio::test(start_paused = true)]
async fn a_job_starts_a_stopped_vm_which_stops_again() {
    let world = a_job_on_a_vm_that_is(Status::Terminated).await;
    assert_eq!(world.starts("runner-1"), 1);
    assert_eq!(world.starts("gpu-1"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_job_resumes_a_suspended_vm() {
    a_job_on_a_vm_that_is(Status::Suspended).await;
}

#[tokio::test(start_paused = true)]
async fn a_job_finds_a_running_vm_and_leaves_it_alone() {
    let world = a_job_on_a_vm_that_is(Status::Running).await;
    assert_eq!(world.starts("runner-1"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_job_queued_while_the_vm_is_stopping_still_gets_its_runner() {
    let mut world = World::new().vm("runner-1", Status::Running);
    world.cloud.compute.stop_by_hand("runner-1");
    world.pass(seconds(5)).await;
    assert_eq!(world.status("runner-1"), Status::Stopping);
    let job = world.queue_job("acme/app", "self-hosted", minutes(2));
    world.pass_until(minutes(5), |world| world.is_completed(job)).await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_job_waits_out_a_stockout() {
    let mut world = World::new();
    world.cloud.compute.stockout(ZONE, true);
    let job = world.queue_job("acme/app", "self-hosted", minutes(2));
    world.pass(minutes(20)).await;
    assert!(!world.is_completed(job));
    world.cloud.compute.stockout(ZONE, false);
    world.pass_until(minutes(10), |world| world.is_completed(job)).await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_job_survives_the_preemption_of_its_vm() {
    let mut world = World::new();
    let job = world.queue_job("acme/app", "self-hosted", minutes(20));
    world.pass(minutes(7)).await;
    world.cloud.compute.preempt("runner-1");
    world.pass_until(minutes(60), |world| world.is_completed(job)).await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_job_gets_its_vm_back_after_somebody_stopped_it() {
    let mut world = World::new();
    world.cloud.compute.timings(runner_manager::emulators::compute::Timings {
        boot: minutes(2),
        ..world.cloud.compute.current_timings()
    });
    let job = world.queue_job("acme/app", "self-hosted", minutes(2));
    world.pass(seconds(30)).await;
    world.cloud.compute.stop_by_hand("runner-1");
    world.pass_until(minutes(20), |world| world.is_completed(job)).await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_job_is_not_stranded_by_a_crash_at_any_call() {
    // The handler vanishes before its nth call is answered; the task that it left has to do the rest.
    for method in ["instances.get", "tasks.create", "instances.start", "instances.setLabels"] {
        for fault in [Fault::Hang, Fault::Lost] {
            let mut world = World::new();
            world.cloud.faults.next(method, fault.clone());
            let job = world.queue_job("acme/app", "self-hosted", minutes(2));
            world.pass(seconds(1)).await;
            world.crash();
            world.pass(seconds(1)).await;
            if world.cloud.tasks.pending().is_empty() {
                // Nothing was accepted, and GitHub shows a failed delivery: redelivering it is up to people.
                assert!(!world.outcomes().iter().any(|(status, _)| status.is_success()));
                continue;
            }
            world.pass_until(minutes(12), |world| world.is_completed(job)).await;
            world.settle().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_is_started_though_the_first_answers_of_google_are_errors() {
    for method in ["instances.get", "instances.start", "instances.setLabels", "tasks.create"] {
        let mut world = World::new();
        for _ in 0..2 {
            let unavailable = http::StatusCode::SERVICE_UNAVAILABLE;
            world.cloud.faults.next(method, Fault::Before(unavailable, ErrorBody::Html));
        }
        let job = world.queue_job("acme/app", "self-hosted", minutes(2));
        world.pass_until(minutes(12), |world| world.is_completed(job)).await;
        world.settle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_start_check_github_is_told_that_the_delivery_failed() {
    let mut world = World::new();
    world.cloud.tasks.forbid_create(true);
    world.queue_job("acme/app", "self-hosted", minutes(2));
    world.pass(seconds(10)).await;
    let (status, outcome) = world.outcomes().remove(0);
    assert_eq!(status, http::StatusCode::BAD_GATEWAY);
    assert!(outcome.contains("tasks.create: 403"), "{outcome}");
    assert!(world.is_stopped("runner-1"), "nothing is started that no task looks after");
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_does_not_exist_fails_the_delivery() {
    let mut world = World::new();
    world.cloud.compute.delete("runner-1");
    world.queue_job("acme/app", "self-hosted", minutes(2));
    world.pass(minutes(1)).await;
    let (status, outcome) = world.outcomes().remove(0);
    assert_eq!(status, http::StatusCode::BAD_GATEWAY);
    assert!(outcome.contains("runner-1"), "{outcome}");
}

#[tokio::test(start_paused = true)]
async fn a_job_that_awaits_a_review_starts_the_vm_once_it_is_approved() {
    let mut world = World::new();
    let job = world.cloud.github.queue_waiting_job("acme/app", ["self-hosted"], minutes(2));
    world.pass(minutes(12)).await;
    assert!(world.is_stopped("runner-1"));
    world.cloud.github.approve(job);
    world.pass_until(minutes(12), |world| world.is_completed(job)).await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn the_second_of_two_jobs_gets_its_runner_though_their_checks_were_one() {
    let mut world = World::new();
    // The first is taken by somebody else's runner, so the check that both share settles for it.
    world
        .cloud
        .compute
        .insert(Instance { status: Status::Running, ..Instance::new("elsewhere", ZONE) });
    world.cloud.github.add_runner(crate::world::runner(
        "elsewhere",
        "acme/app",
        "self-hosted once",
    ));
    world.cloud.compute.stockout(ZONE, true);
    let first = world.queue_job("acme/app", "self-hosted once", minutes(1));
    world.pass(seconds(1)).await;
    let second = world.queue_job("acme/app", "self-hosted linux", minutes(1));
    world.pass(minutes(20)).await;
    assert!(world.is_completed(first) && !world.is_completed(second));
    world.cloud.compute.stockout(ZONE, false);
    world.pass_until(minutes(7), |world| world.is_completed(second)).await;
    world.cloud.compute.stop_by_hand("elsewhere");
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_job_gets_its_runner_while_github_is_down() {
    let mut world = World::new();
    world.cloud.compute.stockout(ZONE, true);
    let job = world.queue_job("acme/app", "self-hosted", minutes(1));
    world.pass(seconds(10)).await;
    world.cloud.github.outage(true);
    world.cloud.compute.stockout(ZONE, false);
    world.pass_until(minutes(6), |world| world.status("runner-1") == Status::Running).await;
    world.cloud.github.outage(false);
    world.pass_until(minutes(10), |world| world.is_completed(job)).await;
    world.settle().await;
}
