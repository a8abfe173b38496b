//! A running job is never killed by a scheduled stop.

use std::time::Duration;

use runner_manager::emulators::Fault;
use runner_manager::emulators::compute::Status;
use runner_manager::emulators::github::{Permission, Runner, Scope};

use crate::world::{World, minutes, runner, seconds};

/// A job runs for two hours, after a short one has scheduled a stop; meanwhile `trouble`.
async fn a_long_job_with(trouble: impl Fn(&World)) {
    let mut world = World::new();
    let short = world.queue_job("acme/app", "self-hosted", minutes(1));
    let long = world.queue_job("acme/app", "self-hosted", minutes(120));
    world.pass_until(minutes(5), |world| world.is_completed(short)).await;
    world.pass(seconds(30)).await;
    trouble(&world);
    world.pass_until(minutes(150), |world| world.is_completed(long)).await;
    assert_eq!(world.starts("runner-1"), 1, "the VM stayed up\n{}", world.story());
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_long_job_outlives_the_stop_that_an_earlier_one_scheduled() {
    a_long_job_with(|_| {}).await;
}

#[tokio::test(start_paused = true)]
async fn a_busy_runner_that_looks_idle_is_not_stopped_under_its_job() {
    a_long_job_with(|world| world.cloud.github.busy_glitch("runner-1", true)).await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_github_kills_no_job() {
    let mut world = World::new();
    let job = world.queue_job("acme/app", "self-hosted", minutes(90));
    world.pass(minutes(2)).await;
    world.cloud.github.outage(true);
    world.pass(minutes(60)).await;
    assert_eq!(world.status("runner-1"), Status::Running);
    assert!(world.was_told("unknown, GitHub was not heard"), "{}", world.story());
    world.cloud.github.outage(false);
    world.pass_until(minutes(60), |world| world.is_completed(job)).await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn an_exhausted_rate_limit_is_no_word_about_permissions() {
    let mut world = World::new();
    let job = world.queue_job("acme/app", "self-hosted", minutes(40));
    world.pass(minutes(2)).await;
    world.cloud.github.rate_limited(true);
    world.pass(minutes(30)).await;
    assert_eq!(world.status("runner-1"), Status::Running);
    world.cloud.github.rate_limited(false);
    world.pass_until(minutes(60), |world| world.is_completed(job)).await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn two_repositories_on_one_vm_do_not_stop_each_others_jobs() {
    let mut world = World::new();
    let short = world.queue_job("acme/app", "self-hosted", minutes(1));
    world.pass_until(minutes(5), |world| world.is_completed(short)).await;
    let long = world.queue_job("acme/web", "self-hosted", minutes(60));
    world.pass_until(minutes(90), |world| world.is_completed(long)).await;
    assert_eq!(world.starts("runner-1"), 1);
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_runner_of_the_organization_is_found_there() {
    let mut world = World::new();
    world.cloud.github.remove_runner("runner-1");
    let labels = ["self-hosted", "linux", "x64"];
    world.cloud.github.add_runner(Runner::new(
        "runner-1",
        Scope::Organization("acme".into()),
        labels,
    ));
    let short = world.queue_job("acme/app", "self-hosted", minutes(1));
    let long = world.queue_job("acme/web", "self-hosted", minutes(60));
    world
        .pass_until(minutes(90), |world| world.is_completed(short) && world.is_completed(long))
        .await;
    assert!(world.was_told("its runner in the organization acme works"), "{}", world.story());
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_runner_of_another_name_is_known_by_the_labels_of_its_job() {
    let mut world = World::new();
    world.cloud.github.remove_runner("gpu-1");
    let other =
        Runner { name: "by-another-name".into(), ..runner("gpu-1", "acme/app", "self-hosted gpu") };
    world.cloud.github.add_runner(other);
    let short = world.queue_job("acme/app", "self-hosted gpu", minutes(1));
    let long = world.queue_job("acme/app", "self-hosted gpu", minutes(60));
    world
        .pass_until(minutes(90), |world| world.is_completed(short) && world.is_completed(long))
        .await;
    assert_eq!(world.starts("gpu-1"), 1);
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn runner_names_find_several_runners_on_one_vm() {
    let names = r#", "runner_names": ["pool-*"]"#;
    let mut world = World::with_config(crate::world::fleet(names));
    world.cloud.github.remove_runner("gpu-1");
    for name in ["pool-1", "pool-2"] {
        world.cloud.github.add_runner(Runner {
            name: name.into(),
            ..runner("gpu-1", "acme/app", "self-hosted gpu")
        });
    }
    let short = world.queue_job("acme/app", "self-hosted gpu", minutes(1));
    let long = world.queue_job("acme/app", "self-hosted gpu", minutes(40));
    world
        .pass_until(minutes(60), |world| world.is_completed(short) && world.is_completed(long))
        .await;
    assert_eq!(world.starts("gpu-1"), 1);
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_job_that_waits_keeps_its_vm_up() {
    let mut world = World::new();
    // The runner takes jobs of two repositories, one at a time.
    let first = world.queue_job("acme/app", "self-hosted", minutes(10));
    let second = world.queue_job("acme/web", "self-hosted", minutes(10));
    let third = world.queue_job("acme/app", "self-hosted", minutes(10));
    world
        .pass_until(minutes(60), |world| {
            [first, second, third].iter().all(|job| world.is_completed(*job))
        })
        .await;
    assert_eq!(world.starts("runner-1"), 1);
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_held_vm_is_not_stopped_until_it_is_released() {
    let mut world = World::new();
    let job = world.queue_job("acme/app", "self-hosted", minutes(1));
    world.pass(minutes(1)).await;
    world.cloud.compute.label_by_hand("runner-1", "runner-manager-hold", Some("debugging"));
    world.pass_until(minutes(5), |world| world.is_completed(job)).await;
    world.pass(minutes(120)).await;
    assert_eq!(world.status("runner-1"), Status::Running);
    assert!(world.was_told("held"), "{}", world.story());
    world.cloud.compute.label_by_hand("runner-1", "runner-manager-hold", None);
    world.pass_until(minutes(25), |world| world.is_stopped("runner-1")).await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_missing_permission_leaves_the_decision_to_the_other_witness() {
    for permission in [Permission::Administration, Permission::Actions] {
        let mut world = World::new();
        world.cloud.github.forbid(Permission::OrgRunners);
        world.cloud.github.forbid(permission);
        let long = world.queue_job("acme/app", "self-hosted", minutes(60));
        world.pass_until(minutes(90), |world| world.is_completed(long)).await;
        assert_eq!(world.starts("runner-1"), 1);
        world.settle().await;
        assert!(world.was_told("confirming"), "{}", world.story());
    }
}

#[tokio::test(start_paused = true)]
async fn a_renamed_repository_is_still_asked() {
    a_long_job_with(|world| world.cloud.github.rename_repository("acme/app", "acme/application"))
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_revoked_token_is_replaced_and_not_taken_for_a_missing_permission() {
    let mut world = World::new();
    let short = world.queue_job("acme/app", "self-hosted", minutes(1));
    let long = world.queue_job("acme/app", "self-hosted", minutes(60));
    world.pass_until(minutes(5), |world| world.is_completed(short)).await;
    world.pass(minutes(5)).await;
    world.cloud.github.revoke_tokens();
    world.pass_until(minutes(90), |world| world.is_completed(long)).await;
    world.settle().await;
    assert!(!world.was_told("confirming") && !world.was_told("unknown"), "{}", world.story());
}

#[tokio::test(start_paused = true)]
async fn a_job_is_found_though_one_look_has_no_time_to_come_to_it() {
    let mut world = World::new();
    let job = world.queue_job("acme/app", "self-hosted", minutes(60));
    world.pass_until(minutes(3), |world| world.is_started(job)).await;
    world.cloud.github.busy_glitch("runner-1", true);
    // These are listed before the one that runs.
    for _ in 0..400 {
        world.queue_job("acme/app", "ubuntu-latest", minutes(1));
    }
    world.cloud.faults.on(|call| {
        (call.method == "actions.listJobsForWorkflowRun")
            .then_some(Fault::Delay(Duration::from_millis(200)))
    });
    world.pass_until(minutes(70), |world| world.is_completed(job)).await;
    assert!(world.was_told("unknown, GitHub was not heard"), "{}", world.story());
    assert_eq!(world.starts("runner-1"), 1, "the VM stayed up\n{}", world.story());
}
