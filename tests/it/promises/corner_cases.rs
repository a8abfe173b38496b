//! Corner cases: where two loops, two jobs or two failures meet.

use runner_manager::emulators::compute::{Instance, Status};
use runner_manager::emulators::github::Installed;
use runner_manager::emulators::{ErrorBody, Fault};

use super::never_strand::gpu_1_takes_a_job_and_vanishes;
use crate::world::{INACTIVE, World, ZONE, fleet, minutes, seconds};

// Neither source of `acme/app` can be queried now, and the idle registration in `acme/web` decides alone.
#[tokio::test(start_paused = true)]
async fn a_job_of_a_repository_that_the_app_lost_is_not_killed_by_the_word_of_another_repository() {
    let mut world = World::new();
    let job = world.queue_job("acme/app", "self-hosted", minutes(60));
    world.pass_until(minutes(5), |world| world.is_started(job)).await;
    world.cloud.github.install("acme/app", Installed::Nowhere);
    world.pass(minutes(30)).await;
    assert_eq!(world.status("runner-1"), Status::Running, "{}", world.story());
    world.cloud.github.install("acme/app", Installed::Here);
    world.pass_until(minutes(40), |world| world.is_completed(job)).await;
    world.settle().await;
}

/// A world in which the VM has served a job: it is down, its passes have ended, and it carries the label.
async fn used(mut world: World, labels: &str) -> World {
    let job = world.queue_job("acme/app", labels, minutes(1));
    world.pass_until(minutes(5), |world| world.is_completed(job)).await;
    world.settle().await;
    world
}

/// Lets time pass until this long before the next multiple of five minutes, which lies at least that far ahead.
async fn until_before_a_multiple_of_five(world: &mut World, span: std::time::Duration) {
    let now = world.clock.now().unix_seconds();
    let next = ((now + span.as_secs()) / 300 + 1) * 300;
    world.pass(seconds(next - span.as_secs() - now)).await;
}

// The pass of a job in review asks for that job alone, and takes the name of the queued job's next pass.
#[tokio::test(start_paused = true)]
async fn a_job_in_review_does_not_take_the_pass_of_one_that_is_queued() {
    let mut world = used(World::new(), "self-hosted").await;
    let review = world.cloud.github.queue_waiting_job("acme/app", ["self-hosted"], minutes(1));
    world.pass(minutes(12)).await;
    world.cloud.compute.stockout(ZONE, true);
    until_before_a_multiple_of_five(&mut world, seconds(50)).await;
    let job = world.queue_job("acme/app", "self-hosted", minutes(1));
    world.pass(minutes(12)).await;
    world.cloud.compute.stockout(ZONE, false);
    world.pass_until(minutes(7), |world| world.is_completed(job)).await;
    world.cloud.github.cancel_job(review);
    world.settle().await;
}

// The same where the VM is up for a while, so that no pass asks, and is preempted then.
#[tokio::test(start_paused = true)]
async fn a_job_in_review_does_not_take_the_pass_of_one_whose_vm_vanishes() {
    let mut world = World::inactive_for(15, fleet(""));
    world = used(world, "self-hosted").await;
    let review = world.cloud.github.queue_waiting_job("acme/app", ["self-hosted"], minutes(1));
    world.pass(minutes(12)).await;
    until_before_a_multiple_of_five(&mut world, seconds(50)).await;
    let job = world.queue_job("acme/app", "self-hosted", minutes(30));
    world.pass(minutes(8)).await;
    assert!(world.is_started(job));
    world.cloud.compute.preempt("runner-1");
    world.pass_until(minutes(9), |world| world.status("runner-1") == Status::Running).await;
    world.pass_until(minutes(40), |world| world.is_completed(job)).await;
    world.cloud.github.cancel_job(review);
    world.settle().await;
}

// Of two jobs in review only one is queried.
#[tokio::test(start_paused = true)]
async fn the_second_of_two_jobs_in_review_gets_its_runner_once_it_is_approved() {
    let mut world = World::new();
    let first = world.cloud.github.queue_waiting_job("acme/app", ["self-hosted"], minutes(1));
    world.pass(seconds(60)).await;
    let second = world.cloud.github.queue_waiting_job("acme/app", ["self-hosted"], minutes(1));
    world.pass(minutes(20)).await;
    world.cloud.github.approve_silently(second);
    // Their passes became one, which asks for one of them; once an hour it reads the lists.
    world.pass_until(minutes(70), |world| world.is_completed(second)).await;
    world.cloud.github.cancel_job(first);
    world.settle().await;
}

// The pass that both share is superseded by the label of passes that ended long ago, and ends with the first job.
#[tokio::test(start_paused = true)]
async fn a_job_in_review_is_not_forgotten_with_another_that_came_at_the_same_time() {
    let mut world = used(World::new(), "self-hosted").await;
    world.cloud.compute.start_by_hand("gpu-1");
    world.pass(minutes(1)).await;
    let first = world.cloud.github.queue_waiting_job("acme/app", ["self-hosted"], minutes(90));
    let second = world.cloud.github.queue_waiting_job("acme/app", ["self-hosted"], minutes(1));
    world.pass(seconds(5)).await;
    world.cloud.github.approve_silently(first);
    world.pass(minutes(20)).await;
    assert_eq!(world.cloud.github.job(first).runner_name.as_deref(), Some("gpu-1"));
    world.cloud.github.approve_silently(second);
    world.pass_until(minutes(12), |world| world.is_completed(second)).await;
    world.settle().await;
}

// The other VM has served a job before: its old label supersedes the pass that is to follow it.
#[tokio::test(start_paused = true)]
async fn a_vm_with_an_old_label_that_took_anothers_job_is_looked_after() {
    let mut world = used(World::new(), "self-hosted gpu").await;
    world.cloud.compute.start_by_hand("gpu-1");
    world.pass(minutes(1)).await;
    gpu_1_takes_a_job_and_vanishes(&mut world).await;
    world.settle().await;
}

// The label supersedes the pass that is scheduled, although the next one was not created.
#[tokio::test(start_paused = true)]
async fn an_operators_stop_that_fails_leaves_a_pass() {
    let mut world = World::new();
    let job = world.queue_job("acme/app", "self-hosted", minutes(1));
    world.pass_until(minutes(5), |world| world.is_completed(job)).await;
    world.pass(seconds(10)).await;
    for method in ["tasks.create", "instances.stop"] {
        for _ in 0..2 {
            let unavailable = http::StatusCode::SERVICE_UNAVAILABLE;
            world.cloud.faults.next(method, Fault::Before(unavailable, ErrorBody::Html));
        }
    }
    let answer = world.command("/runner/stop", r#"{"vm_instance_name": "runner-1"}"#).await;
    assert_eq!(answer.status, http::StatusCode::BAD_GATEWAY, "{answer:?}");
    world.pass_until(minutes(60), |world| world.is_stopped("runner-1")).await;
    world.settle().await;
}

// The names of passes at multiples of five minutes come to that of the task that was run by hand.
#[tokio::test(start_paused = true)]
async fn a_task_that_is_run_by_hand_long_before_its_time_does_not_lose_the_loop() {
    let mut world = World::new();
    world.cloud.compute.forbid("compute.instances.stop");
    let job = world.queue_job("acme/app", "self-hosted", minutes(1));
    world.pass_until(minutes(5), |world| world.is_completed(job)).await;
    world
        .pass_until(minutes(300), |world| {
            let tasks = world.cloud.tasks.pending();
            tasks.len() == 1 && tasks[0].due > world.clock.now() + minutes(25)
        })
        .await;
    let id = world.cloud.tasks.pending()[0].id.clone();
    world.cloud.compute.label_by_hand("runner-1", "runner-manager-hold", Some("debugging"));
    world.cloud.tasks.run_now(&id);
    world.pass(minutes(120)).await;
    assert_eq!(world.cloud.tasks.pending().len(), 1, "{}", world.story());
    world.cloud.compute.permit("compute.instances.stop");
    world.cloud.compute.label_by_hand("runner-1", "runner-manager-hold", None);
    world.pass_until(minutes(70), |world| world.is_stopped("runner-1")).await;
    world.settle().await;
}

// The resync's pass takes the name of the one that knows since when the VM is idle, each time.
#[tokio::test(start_paused = true)]
async fn a_resync_at_each_multiple_of_five_minutes_does_not_put_off_the_stop_for_ever() {
    let mut world = World::inactive_for(15, fleet(""));
    // Its webhook is a repository's: nothing is redelivered.
    world.cloud.faults.on(|call| {
        (call.method == "apps.getWebhookConfigForApp")
            .then_some(Fault::Before(http::StatusCode::NOT_FOUND, ErrorBody::Api))
    });
    world.cloud.github.lose_webhooks_by(|delivery| delivery.action == "completed");
    world.cloud.tasks.lateness(seconds(5));
    let job = world.queue_job("acme/app", "self-hosted", minutes(25));
    world.pass_until(minutes(28), |world| world.is_completed(job)).await;
    for _ in 0..36 {
        let now = world.clock.now().unix_seconds();
        world.pass(seconds(((now - 1) / 300 + 1) * 300 + 1 - now)).await;
        world.resync().await;
    }
    assert!(world.is_stopped("runner-1"), "{}", world.story());
    world.settle().await;
}

// The passes of a VM that cannot be stopped are ever further apart, although a job runs there.
#[tokio::test(start_paused = true)]
async fn a_job_on_a_vm_with_a_local_ssd_gets_it_back_within_five_minutes() {
    let mut world = World::new();
    world.cloud.compute.delete("gpu-1");
    let spec =
        Instance { status: Status::Terminated, local_ssd: true, ..Instance::new("gpu-1", ZONE) };
    world.cloud.compute.insert(spec);
    let short = world.queue_job("acme/app", "self-hosted gpu", minutes(1));
    let long = world.queue_job("acme/app", "self-hosted gpu", minutes(300));
    world.pass_until(minutes(5), |world| world.is_completed(short)).await;
    world.pass(minutes(150)).await;
    assert!(world.is_started(long));
    world.cloud.compute.preempt("gpu-1");
    world.pass_until(minutes(7), |world| world.starts("gpu-1") == 2).await;
    world.pass_until(minutes(310), |world| world.is_completed(long)).await;
}

// After a roll-back to the FastAPI original, and forward again: the label is from before.
#[tokio::test(start_paused = true)]
async fn a_task_of_the_original_counts_on_a_vm_that_was_started_after_its_label() {
    let mut world = used(World::new(), "self-hosted gpu").await;
    world.pass(minutes(60)).await;
    world.cloud.compute.start_by_hand("gpu-1");
    world.pass(minutes(20)).await;
    let original = r#"{"vm_instance_name": "gpu-1", "vm_instance_zone": "asia-northeast1-a"}"#;
    world.callback("/runner/stop", original).await;
    world.pass_until(minutes(20), |world| world.is_stopped("gpu-1")).await;
    world.settle().await;
}

// The job in evidence is dropped since GitHub still shows it running; then GitHub cannot be queried.
#[tokio::test(start_paused = true)]
async fn a_job_that_lost_its_vm_gets_it_back_though_github_goes_down_a_moment_later() {
    let mut world = World::new();
    let job = world.queue_job("acme/app", "self-hosted", minutes(60));
    world.pass(minutes(12)).await;
    until_before_a_multiple_of_five(&mut world, seconds(50)).await;
    world.cloud.compute.preempt("runner-1");
    world.pass(seconds(55)).await;
    world.cloud.github.outage(true);
    world.pass_until(minutes(12), |world| world.starts("runner-1") == 2).await;
    world.cloud.github.outage(false);
    world.pass_until(minutes(70), |world| world.is_completed(job)).await;
    world.settle().await;
}

/// The VM is stopped no earlier than `INACTIVE` from now.
async fn is_kept_up_from_now(world: &mut World, vm: &str) {
    let over = world.clock.now();
    world.pass_until(minutes(20), |world| world.is_stopped(vm)).await;
    let stopping = world.last(vm, Status::Stopping).unwrap();
    assert!(stopping.since(over) >= INACTIVE - seconds(1), "{over} {stopping}\n{}", world.story());
    world.settle().await;
}

// The pass of a release has no memory, as that of the resync.
#[tokio::test(start_paused = true)]
async fn a_release_does_not_stop_a_vm_whose_last_job_has_just_ended() {
    let mut world = World::new();
    world.cloud.github.lose_webhooks_by(|delivery| delivery.action == "completed");
    let job = world.queue_job("acme/app", "self-hosted gpu", minutes(30));
    world.pass(minutes(5)).await;
    world.command("/runner/hold", r#"{"vm_instance_name": "gpu-1"}"#).await;
    world.pass_until(minutes(35), |world| world.is_completed(job)).await;
    world.command("/runner/release", r#"{"vm_instance_name": "gpu-1"}"#).await;
    is_kept_up_from_now(&mut world, "gpu-1").await;
}

// If the labels of one VM are forbidden, those of the others are not written either for ten minutes.
#[tokio::test(start_paused = true)]
async fn a_vm_whose_labels_are_forbidden_does_not_cost_another_its_label() {
    let mut world = World::new();
    world.cloud.faults.on(|call| {
        let forbidden = call.method == "instances.setLabels" && call.target.contains("gpu-1");
        let reason = ErrorBody::Reason("forbidden".into());
        forbidden.then_some(Fault::Before(http::StatusCode::FORBIDDEN, reason))
    });
    let first = world.queue_job("acme/app", "self-hosted", minutes(1));
    world.pass_until(minutes(5), |world| world.is_completed(first)).await;
    world.pass(seconds(60)).await;
    world.queue_job("acme/app", "self-hosted gpu", minutes(1));
    world.pass(seconds(5)).await;
    let second = world.queue_job("acme/web", "self-hosted", seconds(60));
    world.pass_until(minutes(5), |world| world.is_completed(second)).await;
    is_kept_up_from_now(&mut world, "runner-1").await;
}

// The VM came back for another job before GitHub queued this one again, and is busy from then on.
#[tokio::test(start_paused = true)]
async fn a_job_that_ran_on_anothers_vm_gets_its_own_though_that_one_is_busy_again() {
    let mut world = World::new();
    world.command("/runner/start", r#"{"vm_instance_name": "gpu-1"}"#).await;
    world.pass(minutes(1)).await;
    let taken = world.queue_job("acme/app", "self-hosted", minutes(60));
    world.pass(seconds(30)).await;
    assert_eq!(world.cloud.github.job(taken).runner_name.as_deref(), Some("gpu-1"));
    let own = world.queue_job("acme/app", "self-hosted gpu", minutes(120));
    world.pass_until(minutes(20), |world| world.is_stopped("runner-1")).await;
    world.pass(minutes(10)).await;
    until_before_a_multiple_of_five(&mut world, seconds(50)).await;
    world.cloud.compute.preempt("gpu-1");
    world.pass_until(minutes(12), |world| world.starts("runner-1") == 2).await;
    world
        .pass_until(minutes(200), |world| world.is_completed(taken) && world.is_completed(own))
        .await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_completion_for_a_vm_that_does_not_exist_fails() {
    let world = World::new();
    world.cloud.compute.delete("runner-1");
    let body = r#"{"action": "completed", "workflow_job": {"id": 7, "status": "completed", "labels": ["self-hosted"],
        "runner_name": "runner-1"}, "repository": {"full_name": "acme/app"}}"#;
    let answer = world.webhook("workflow_job", body).await;
    assert_eq!(answer.status, http::StatusCode::BAD_GATEWAY, "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stop_call_that_is_cut_is_not_repeated_within_the_pass() {
    let mut world = World::new();
    let job = world.queue_job("acme/app", "self-hosted", minutes(1));
    world.pass_until(minutes(5), |world| world.is_completed(job)).await;
    world.cloud.faults.next("instances.stop", Fault::Lost);
    world.pass_until(minutes(6), |world| world.count("instances.stop") > 0).await;
    world.pass(seconds(30)).await;
    assert_eq!(world.count("instances.stop"), 1, "{}", world.story());
}
