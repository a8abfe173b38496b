//! Drain and suspend: a stop that cuts no job short, and a start that takes seconds.

use std::time::Duration;

use http::StatusCode;
use runner_manager::clock::Timestamp;
use runner_manager::emulators::compute::{Instance, Status};
use runner_manager::emulators::github::{JobId, JobStatus, Permission, Timings};
use runner_manager::emulators::{CallInfo, ErrorBody, Fault};

use crate::harness::Log;
use crate::world::{World, ZONE, fleet, minutes, seconds};

/// The GPU VM registers its runner by itself, and has these fields too.
fn world(more: &str) -> World {
    let gpu = r#""vm_instance_name": "gpu-1""#;
    let config = fleet("").replace(gpu, &format!(r#"{gpu}, "register": "repository"{more}"#));
    let world = World::with_config(config);
    world.cloud.github.permit(Permission::Registration);
    world.cloud.guests.register_at_boot("gpu-1", ZONE, "https://service.example");
    world
}

fn drained() -> World {
    world(r#", "drain": true"#)
}

fn is_registered(world: &World) -> bool {
    world.cloud.github.runners().iter().any(|runner| runner.name == "gpu-1")
}

fn queue(world: &World, runs: Duration) -> JobId {
    world.queue_job("acme/app", "self-hosted gpu", runs)
}

#[tokio::test(start_paused = true)]
async fn the_runner_is_removed_after_a_job_and_registers_again_at_the_next_boot() {
    let mut world = drained();
    for _ in 0..2 {
        let job = queue(&world, minutes(2));
        world.pass_until(minutes(5), |world| world.is_completed(job)).await;
        assert!(is_registered(&world));
        world.pass_until(minutes(10), |world| world.is_stopped("gpu-1")).await;
        assert!(!is_registered(&world));
    }
    assert_eq!(world.count("actions.deleteSelfHostedRunnerFromRepo"), 2);
    world.settle().await;
}

/// A world in which each call takes a while, webhooks come late and `busy` lags, after a job; and the end of that job.
async fn after_a_job(mut world: World) -> (World, Timestamp) {
    let timings = world.cloud.github.current_timings();
    world.cloud.github.timings(Timings { busy_lag: minutes(1), ..timings });
    let first = queue(&world, minutes(1));
    world.pass_until(minutes(5), |world| world.is_completed(first)).await;
    let slow = |_: &CallInfo| Some(Fault::Delay(Duration::from_millis(700)));
    world.cloud.faults.on(slow);
    world.cloud.github.lateness_by(|_| seconds(30));
    let ended = world.cloud.github.job(first).completed_at.expect("it is completed");
    (world, ended)
}

/// A job comes so long after the one before ended. Returns true if it lost its runner.
async fn is_cut(world: World, after: Duration) -> bool {
    let (mut world, ended) = after_a_job(world).await;
    world.pass((ended + after).since(world.clock.now())).await;
    let second = queue(&world, minutes(2));
    world.pass_until(minutes(25), |world| world.is_completed(second)).await;
    world.cloud.faults.off();
    world.cloud.github.job(second).lost > 0
}

#[tokio::test(start_paused = true)]
async fn a_job_at_any_moment_around_the_stop_is_not_cut_short() {
    let (mut undisturbed, ended) = after_a_job(drained()).await;
    let stops = |world: &World| world.status("gpu-1") == Status::Stopping;
    undisturbed.pass_until(minutes(10), stops).await;
    let stop = undisturbed.clock.now().since(ended);
    let mut cut = [0, 0];
    for tenths in 0..180 {
        let after = stop - seconds(16) + Duration::from_millis(100 * tenths);
        cut[0] += u32::from(is_cut(drained(), after).await);
        cut[1] += u32::from(is_cut(world(""), after).await);
    }
    assert_eq!(cut[0], 0, "with drain");
    assert!(cut[1] > 0, "without drain no job was cut short: this test could not fail");
}

#[tokio::test(start_paused = true)]
async fn a_busy_runner_that_a_list_shows_idle_is_not_removed() {
    let mut world = drained();
    let first = queue(&world, minutes(1));
    world.pass_until(minutes(5), |world| world.is_completed(first)).await;
    let refuse = |call: &CallInfo| {
        let removal = call.method == "actions.deleteSelfHostedRunnerFromRepo";
        removal.then_some(Fault::Before(StatusCode::UNPROCESSABLE_ENTITY, ErrorBody::Api))
    };
    world.cloud.faults.on(refuse);
    world
        .pass_until(minutes(10), |world| world.was_told("GitHub does not remove its runner"))
        .await;
    assert_eq!(world.status("gpu-1"), Status::Running);
    world.cloud.faults.off();
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn without_the_permission_the_vm_is_stopped_without_a_drain() {
    let (log, _guard) = Log::listen();
    let mut world = drained();
    let job = queue(&world, minutes(1));
    world.pass_until(minutes(5), |world| world.is_completed(job)).await;
    world.cloud.github.forbid(Permission::Registration);
    world.pass_until(minutes(10), |world| world.is_stopped("gpu-1")).await;
    assert_eq!(log.count("WARN", "grant the GitHub App Administration: write"), 1);
    assert!(is_registered(&world));
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn github_down_during_the_drain_keeps_the_vm_up() {
    let mut world = drained();
    let job = queue(&world, minutes(1));
    world.pass_until(minutes(5), |world| world.is_completed(job)).await;
    let down = |call: &CallInfo| {
        let removal = call.method == "actions.deleteSelfHostedRunnerFromRepo";
        removal.then_some(Fault::Before(StatusCode::BAD_GATEWAY, ErrorBody::Html))
    };
    world.cloud.faults.on(down);
    world.pass(minutes(9)).await;
    assert_eq!(world.status("gpu-1"), Status::Running);
    world.cloud.faults.off();
    world.pass_until(minutes(12), |world| world.is_stopped("gpu-1")).await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_is_left_without_a_runner_is_restarted_for_the_next_job() {
    let mut world = drained();
    let job = queue(&world, minutes(1));
    world.pass_until(minutes(5), |world| world.is_completed(job)).await;
    // The service crashes after the removal, and the VM's script does not register by itself.
    world.cloud.guests.never_register_again("gpu-1");
    world.cloud.github.remove_runner("gpu-1");
    let second = queue(&world, minutes(1));
    world.pass(minutes(4)).await;
    assert!(!world.is_completed(second));
    world.cloud.guests.register_at_boot("gpu-1", ZONE, "https://service.example");
    world.pass_until(minutes(25), |world| world.is_completed(second)).await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_drained_vm_costs_one_removal_one_more_listing_and_one_more_read() {
    let calls = async |mut world: World| {
        let job = queue(&world, minutes(1));
        world.pass_until(minutes(5), |world| world.is_completed(job)).await;
        world.cloud.clear_calls();
        world.pass_until(minutes(10), |world| world.status("gpu-1") == Status::Stopping).await;
        let calls = world.cloud.calls();
        world.settle().await;
        let count = |method: &str| calls.iter().filter(|call| call.method == method).count();
        [
            count("instances.get"),
            count("actions.listWorkflowRunsForRepo"),
            count("actions.deleteSelfHostedRunnerFromRepo"),
        ]
    };
    let (without, with) = (calls(self::world("")).await, calls(drained()).await);
    assert_eq!(with, [without[0] + 1, without[1] * 2, 1]);
}

#[tokio::test(start_paused = true)]
async fn an_operators_stop_drains_unless_it_is_forced() {
    for (body, removals) in [
        (r#"{"vm_instance_name": "gpu-1"}"#, 1),
        (r#"{"vm_instance_name": "gpu-1", "force": true}"#, 0),
    ] {
        let mut world = drained();
        let job = queue(&world, minutes(1));
        world.pass_until(minutes(5), |world| world.is_completed(job)).await;
        let answer = world.command("/runner/stop", body).await;
        assert_eq!(answer.body["status"], "stopping", "{answer:?}");
        assert_eq!(world.count("actions.deleteSelfHostedRunnerFromRepo"), removals);
        world.settle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_suspended_vm_is_resumed_for_its_next_job() {
    let mut world = World::with_config(fleet(r#", "suspend": true"#));
    for _ in 0..2 {
        let job = world.queue_job("acme/app", "self-hosted", minutes(2));
        world.pass_until(minutes(5), |world| world.is_completed(job)).await;
        world.pass_until(minutes(10), |world| world.status("runner-1") == Status::Suspended).await;
    }
    let count = |method| world.count(method);
    assert_eq!(
        ["instances.start", "instances.resume", "instances.suspend", "instances.stop"].map(count),
        [1, 1, 2, 0]
    );
    // A job that comes while it is being suspended.
    let third = world.queue_job("acme/app", "self-hosted", minutes(2));
    world.pass_until(minutes(5), |world| world.is_completed(third)).await;
    world.pass_until(minutes(10), |world| world.status("runner-1") == Status::Suspending).await;
    let fourth = world.queue_job("acme/app", "self-hosted", minutes(1));
    world.pass_until(minutes(5), |world| world.is_completed(fourth)).await;
    world.settle().await;
    // Compute Engine stops it after 60 days.
    world.pass(minutes(61 * 24 * 60)).await;
    assert_eq!(world.status("runner-1"), Status::Terminated);
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_cannot_be_suspended_is_stopped() {
    let instance = || Instance { status: Status::Terminated, ..Instance::new("runner-1", ZONE) };
    for (instance, why) in [
        (Instance { gpu: true, ..instance() }, "GPUs cannot be suspended"),
        (Instance { memory_gib: 512, ..instance() }, "512 GB of memory"),
    ] {
        let (log, _guard) = Log::listen();
        let mut world = World::with_config(fleet(r#", "suspend": true"#));
        world.cloud.compute.insert(instance);
        let job = world.queue_job("acme/app", "self-hosted", minutes(2));
        world.pass_until(minutes(5), |world| world.is_completed(job)).await;
        world.pass_until(minutes(10), |world| world.is_stopped("runner-1")).await;
        assert_eq!(log.count("WARN", why), 1, "{why}");
        world.settle().await;
    }
    let mut world = World::with_config(fleet(r#", "suspend": true"#));
    world.cloud.compute.forbid("compute.instances.suspend");
    let job = world.queue_job("acme/app", "self-hosted", minutes(2));
    world.pass_until(minutes(5), |world| world.is_completed(job)).await;
    world.pass_until(minutes(10), |world| world.is_stopped("runner-1")).await;
    world.settle().await;
    assert!(world.cloud.github.jobs().iter().all(|job| job.status == JobStatus::Completed));
}
