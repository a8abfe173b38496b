//! A VM that the service started is stopped once it is idle, even after losses.

use std::time::Duration;

use http::StatusCode;
use runner_manager::clock::Timestamp;
use runner_manager::emulators::compute::{Instance, Status};
use runner_manager::emulators::github::{self, JobId, Permission};
use runner_manager::emulators::{ErrorBody, Fault};

use crate::harness::Log;
use crate::world::{Answer, World, ZONE, minutes, runner, seconds};

#[tokio::test(start_paused = true)]
async fn a_lost_completion_leaks_nothing() {
    let mut world = World::new();
    let job = world.queue_job("acme/app", "self-hosted", minutes(1));
    world.pass(seconds(40)).await;
    world.cloud.github.lose_next_webhook(2);
    world.pass_until(minutes(5), |world| world.is_completed(job)).await;
    world.pass_until(minutes(20), |world| world.is_stopped("runner-1")).await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn an_operators_vm_does_not_leak_either() {
    let mut world = World::new();
    let answer = world.command("/runner/start", r#"{"vm_instance_name": "gpu-1"}"#).await;
    assert_eq!(answer.body["status"], "starting");
    world.pass_until(minutes(1), |world| world.status("gpu-1") == Status::Running).await;
    world.pass_until(minutes(15), |world| world.is_stopped("gpu-1")).await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn an_operators_start_of_a_stopping_vm_is_done_later() {
    let mut world = World::new().vm("gpu-1", Status::Running);
    world.cloud.compute.stop_by_hand("gpu-1");
    world.pass(seconds(3)).await;
    let answer = world.command("/runner/start", r#"{"vm_instance_name": "gpu-1"}"#).await;
    assert_eq!(answer.body["status"], "start_scheduled", "{answer:?}");
    world.pass_until(minutes(3), |world| world.status("gpu-1") == Status::Running).await;
    world.pass_until(minutes(20), |world| world.is_stopped("gpu-1")).await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn an_operators_pass_stands_for_a_job_that_came_with_it() {
    let mut world = World::new().vm("gpu-1", Status::Running);
    world.cloud.compute.stop_by_hand("gpu-1");
    world.pass(seconds(3)).await;
    let command = world.command("/runner/start", r#"{"vm_instance_name": "gpu-1"}"#).await;
    assert_eq!(command.body["status"], "start_scheduled", "{command:?}");
    // Its runner cannot take it yet.
    world.cloud.github.remove_runner("gpu-1");
    let job = world.queue_job("acme/app", "self-hosted gpu", minutes(1));
    world.pass(minutes(12)).await;
    assert!(
        world.cloud.tasks.pending().iter().any(|task| task.body["job"]["id"] == job.0),
        "{}",
        world.story()
    );
    world.cloud.github.add_runner(runner("gpu-1", "acme/app", "self-hosted gpu"));
    world.pass_until(minutes(15), |world| world.is_completed(job)).await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_crash_between_any_two_calls_of_a_completion_leaks_nothing() {
    for method in ["tasks.create", "instances.get", "instances.setLabels"] {
        for fault in [Fault::Hang, Fault::Lost] {
            let mut world = World::new();
            let job = world.queue_job("acme/app", "self-hosted", minutes(1));
            world.pass(seconds(50)).await;
            world.cloud.faults.next(method, fault.clone());
            world.pass_until(minutes(3), |world| world.is_completed(job)).await;
            world.pass(seconds(1)).await;
            world.crash();
            world.pass_until(minutes(20), |world| world.is_stopped("runner-1")).await;
            world.settle().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_was_accepted_but_did_not_happen_is_repeated() {
    let mut world = World::new();
    let job = world.queue_job("acme/app", "self-hosted", minutes(1));
    world.pass_until(minutes(5), |world| world.is_completed(job)).await;
    world.cloud.compute.forbid("compute.instances.stop");
    world.pass(minutes(60)).await;
    assert_eq!(world.status("runner-1"), Status::Running);
    assert!(world.was_told("not stopped (instances.stop: 403"), "{}", world.story());
    let refused = world.count("instances.stop");
    assert!(refused < 10, "{refused} attempts in an hour");
    world.cloud.compute.permit("compute.instances.stop");
    world.pass_until(minutes(65), |world| world.is_stopped("runner-1")).await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_local_ssd_is_not_thrown_away_unless_the_entry_says_so() {
    for (more, stops) in [("", false), (r#", "discard_local_ssd": true"#, true)] {
        let mut world = World::with_config(crate::world::fleet(more));
        world.cloud.compute.delete("gpu-1");
        let spec = Instance {
            status: Status::Terminated,
            local_ssd: true,
            ..Instance::new("gpu-1", ZONE)
        };
        world.cloud.compute.insert(spec);
        let job = world.queue_job("acme/app", "self-hosted gpu", minutes(1));
        world.pass_until(minutes(5), |world| world.is_completed(job)).await;
        world.pass(minutes(30)).await;
        assert_eq!(world.is_stopped("gpu-1"), stops, "{}", world.story());
        assert_eq!(world.was_told("discard_local_ssd"), !stops);
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_not_for_this_vm_does_not_keep_it_up() {
    let mut world = World::new();
    // The entry matches, but the runner lacks the label.
    world.queue_job("acme/app", "self-hosted windows", minutes(1));
    world.pass_until(minutes(20), |world| world.status("runner-1") == Status::Running).await;
    world.pass_until(minutes(30), |world| world.is_stopped("runner-1")).await;
    let starts = world.starts("runner-1");
    world.pass(minutes(180)).await;
    assert_eq!(world.starts("runner-1"), starts, "it cycles\n{}", world.story());
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_left_for_an_hour_does_not_keep_its_vm_up() {
    let mut world = World::new();
    // No runner is registered, so labels tell nothing; the job might be for this VM.
    world.cloud.github.remove_runner("runner-1");
    world.queue_job("acme/app", "self-hosted", minutes(1));
    world.pass(minutes(50)).await;
    assert_eq!(world.status("runner-1"), Status::Running);
    world.pass_until(minutes(40), |world| world.is_stopped("runner-1")).await;
    let starts = world.starts("runner-1");
    world.pass(minutes(180)).await;
    assert_eq!(world.starts("runner-1"), starts, "it cycles\n{}", world.story());
    // A runner comes after all, and so do the jobs.
    world.cloud.github.add_runner(runner("runner-1", "acme/app", "self-hosted"));
    world.queue_job("acme/app", "self-hosted", minutes(1));
    world.pass(seconds(10)).await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_no_entry_names_any_more_is_not_touched_but_kept_in_sight_for_a_day() {
    let mut world = World::new();
    let body = r#"{"vm_instance_name": "gone-1", "vm_instance_zone": "asia-northeast1-a", "idle_since": 1795510800}"#;
    let answer = world.callback("/runner/stop", body).await;
    assert_eq!(answer.body["status"], "not_configured");
    assert_eq!(world.cloud.tasks.pending().len(), 1);
    world.pass(minutes(26 * 60)).await;
    assert!(world.cloud.tasks.pending().is_empty());
    assert_eq!(world.count("instances.get"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_matrix_does_not_multiply_chains() {
    let mut world = World::new();
    let jobs = world
        .cloud
        .github
        .queue_run("acme/app", vec![(vec!["self-hosted".into()], seconds(20)); 256]);
    let mut most = 0;
    while !jobs.iter().all(|job| world.is_completed(*job)) {
        world.pass(seconds(30)).await;
        most = most.max(world.cloud.tasks.pending().len());
    }
    assert!(most <= 16, "{most} tasks were alive at once");
    assert_eq!(world.starts("runner-1"), 1);
    world.settle().await;
}

/// A repository with so many runs that no pass reads all of them: its VM goes down all the same, and stays down.
async fn a_vm_of_a_large_repository_goes_down(mut world: World) -> World {
    let job = world.queue_job("acme/app", "self-hosted", minutes(1));
    for _ in 0..400 {
        world.queue_job("acme/app", "ubuntu-latest", minutes(1));
    }
    world.cloud.faults.on(|call| {
        (call.method == "actions.listJobsForWorkflowRun")
            .then_some(Fault::Delay(std::time::Duration::from_millis(200)))
    });
    world.pass_until(minutes(10), |world| world.is_completed(job)).await;
    world.pass_until(minutes(30), |world| world.is_stopped("runner-1")).await;
    assert!(
        world.was_told("unknown: the open jobs were not all read"),
        "one pass was enough\n{}",
        world.story()
    );
    let starts = world.starts("runner-1");
    world.pass(minutes(60)).await;
    assert_eq!(world.starts("runner-1"), starts, "it is started for no job\n{}", world.story());
    world
}

#[tokio::test(start_paused = true)]
async fn a_repository_too_large_for_one_pass_is_read_in_several() {
    let world = a_vm_of_a_large_repository_goes_down(World::new()).await;
    assert!(
        world.was_told("confirming: nothing needs it, but the jobs were read in several passes")
    );
}

#[tokio::test(start_paused = true)]
async fn a_repository_too_large_for_one_pass_is_read_by_one_source_as_well() {
    let world = World::new();
    world.cloud.github.forbid(Permission::Administration);
    world.cloud.github.forbid(Permission::OrgRunners);
    a_vm_of_a_large_repository_goes_down(world).await;
}

/// Ends the service for good at its nth creation of a task from now on, which has no effect.
fn crash_at_task(world: &World, nth: usize) {
    let (service, mut count) = (world.service(), 0);
    world.cloud.faults.on(move |call| {
        count += usize::from(call.method == "tasks.create");
        if call.method != "tasks.create" || count != nth {
            return None;
        }
        service.vanish();
        Some(Fault::Hang)
    });
}

#[tokio::test(start_paused = true)]
async fn a_label_that_a_crash_kept_from_being_written_is_written_by_the_pass() {
    let mut world = World::new();
    let service = world.service();
    world.cloud.faults.on(move |call| {
        (call.method == "instances.setLabels").then(|| {
            service.vanish();
            Fault::Hang
        })
    });
    let job = world.queue_job("acme/app", "self-hosted", seconds(20));
    world.pass(seconds(5)).await;
    assert_eq!((world.starts("runner-1"), world.idle_since("runner-1")), (1, None));
    world.cloud.faults.off();
    world.cloud.github.lose_next_webhook(2);
    // The pass is lost in another crash, and comes again.
    crash_at_task(&world, 1);
    world.pass_until(minutes(3), |world| world.is_completed(job)).await;
    world.pass(minutes(2)).await;
    assert_eq!(world.idle_since("runner-1"), Some(1_795_510_830), "{}", world.story());
    world.pass_until(minutes(30), |world| world.is_stopped("runner-1")).await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_a_pass_started_does_not_leak_after_a_crash() {
    let mut world = World::new();
    world.queue_job("acme/app", "self-hosted", seconds(20));
    let job = world.cloud.github.queue_waiting_job("acme/app", ["self-hosted"], seconds(20));
    let check = Timestamp::parse("2026-11-24T09:10:00Z").unwrap();
    world.pass((check - seconds(20)).since(world.clock.now())).await;
    assert!(world.is_stopped("runner-1"));
    world.cloud.github.approve_silently(job);
    // The pass starts the VM, and is lost before it answers.
    let service = world.service();
    world.cloud.faults.on(move |call| {
        (call.method == "instances.start").then(|| {
            service.vanish();
            Fault::Lost
        })
    });
    world.cloud.github.lose_next_webhook(2);
    world.pass_until(minutes(5), |world| world.is_completed(job)).await;
    world.cloud.faults.off();
    world.pass_until(minutes(30), |world| world.is_stopped("runner-1")).await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_a_pass_starts_has_its_boot_allowance() {
    let mut world = World::with_config(crate::world::fleet(""));
    world
        .cloud
        .github
        .timings(github::Timings { connect: minutes(4), ..world.cloud.github.current_timings() });
    world.cloud.compute.stockout(ZONE, true);
    let job = world.queue_job("acme/app", "self-hosted", minutes(2));
    world.pass(minutes(18)).await;
    world.cloud.compute.stockout(ZONE, false);
    world.pass_until(minutes(15), |world| world.is_completed(job)).await;
    let history = world.cloud.compute.history("runner-1");
    let stops = history.iter().filter(|(_, status, _)| *status == Status::Stopping).count();
    assert_eq!(stops, 0, "{}", world.story());
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_job_for_a_vm_that_is_up_gets_a_pass() {
    let mut world = World::new().vm("runner-1", Status::Running);
    world.queue_job("acme/app", "self-hosted", seconds(20));
    world.pass(seconds(5)).await;
    let idle_since = Timestamp::parse("2026-11-24T09:00:30Z").unwrap();
    let tasks = world.cloud.tasks.pending();
    assert_eq!(tasks.len(), 1);
    assert_eq!(tasks[0].body["due"], (idle_since + seconds(90)).unix_seconds());
    assert_eq!(world.idle_since("runner-1"), Some(idle_since.unix_seconds()));
    world.cloud.github.lose_next_webhook(2);
    world.pass_until(minutes(20), |world| world.is_stopped("runner-1")).await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn passes_go_on_until_the_vm_is_seen_stopped_and_github_answered() {
    for (status, outage, goes_on) in [
        (Status::Stopping, false, true),
        (Status::Suspending, false, true),
        (Status::Staging, false, true),
        (Status::Running, true, true),
        (Status::Terminated, true, true),
        (Status::Terminated, false, false),
        (Status::Suspended, false, false),
    ] {
        let world = World::new().vm("gpu-1", status);
        world.cloud.github.outage(outage);
        let body = r#"{"vm_instance_name": "gpu-1", "vm_instance_zone": "asia-northeast1-a", "idle_since": 1795510800}"#;
        let answer = world.callback("/runner/stop", body).await;
        assert_eq!(world.cloud.tasks.pending().len(), usize::from(goes_on), "{status} {answer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_that_no_runner_takes_is_dropped_after_a_day() {
    let mut world = World::new();
    world.cloud.github.timings(github::Timings {
        queue_limit: minutes(72 * 60),
        ..world.cloud.github.current_timings()
    });
    // It is never approved, so only its age tells.
    world.cloud.compute.stockout(ZONE, true);
    world.queue_job("acme/app", "self-hosted", minutes(1));
    world.pass(minutes(23 * 60)).await;
    assert!(!world.cloud.tasks.pending().is_empty());
    world.pass(minutes(2 * 60)).await;
    assert!(world.cloud.tasks.pending().is_empty(), "{}", world.story());
}

#[tokio::test(start_paused = true)]
async fn an_operators_start_of_a_vm_that_is_up_creates_a_pass_too() {
    let mut world = World::new().vm("gpu-1", Status::Running);
    world.command("/runner/start", r#"{"vm_instance_name": "gpu-1"}"#).await;
    assert_eq!(world.cloud.tasks.pending()[0].path, "/runner/stop");
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_for_the_guest() {
    let mut world = World::new();
    world.cloud.compute.delete("gpu-1");
    let spec = Instance {
        status: Status::Running,
        graceful_shutdown: true,
        ..Instance::new("gpu-1", ZONE)
    };
    world.cloud.compute.insert(spec);
    world.pass(minutes(1)).await;
    world.command("/runner/stop", r#"{"vm_instance_name": "gpu-1"}"#).await;
    assert_eq!(world.status("gpu-1"), Status::Stopping);
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn the_work_of_another_vm_keeps_no_vm_up() {
    for takes_it in [true, false] {
        let mut world = World::new().vm("runner-1", Status::Running);
        // Its own runner is not known, so labels decide about jobs.
        world.cloud.github.remove_runner("runner-1");
        world.pass(minutes(10)).await;
        match takes_it {
            true => world.cloud.compute.start_by_hand("gpu-1"),
            false => world.cloud.compute.stockout(ZONE, true),
        }
        world.pass(minutes(1)).await;
        let labels = if takes_it { "self-hosted" } else { "self-hosted gpu" };
        world.queue_job("acme/app", labels, minutes(20));
        world.pass(minutes(1)).await;
        let body = r#"{"vm_instance_name": "runner-1"}"#;
        let answer = world.command("/runner/stop", body).await;
        assert_eq!(answer.body["status"], "stopping", "{answer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_gone_needs_no_vm() {
    for hidden in [false, true] {
        let world = World::new();
        let not_found = Fault::Before(StatusCode::NOT_FOUND, ErrorBody::Api);
        if hidden {
            world.cloud.faults.next("actions.getJobForWorkflowRun", not_found);
            world.cloud.github.forbid(github::Permission::Actions);
        }
        let now = world.clock.now().unix_seconds();
        let body = format!(
            r#"{{"vm_instance_name": "gpu-1", "vm_instance_zone": "{ZONE}", "event_at": {now},
                "job": {{"repo": "acme/app", "id": 4711, "queued_at": {now}}}}}"#
        );
        let answer = world.callback("/runner/start", &body).await;
        // If the runner may only be hidden, the result is known once the next pass got the same answer.
        let status = if hidden { "unknown" } else { "already_stopped" };
        assert_eq!(answer.body["status"], status, "{answer:?}");
        assert_eq!(world.cloud.tasks.pending().len(), usize::from(hidden));
    }
}

/// Queues a job for `gpu-1` without a webhook.
fn a_job_waits(world: &World) -> JobId {
    world.cloud.github.lose_next_webhook(1);
    world.queue_job("acme/app", "self-hosted gpu", minutes(30))
}

/// Runs a pass that has seen the job wait for `gpu-1` for this long. Returns its answer, and true if the next pass
/// carries the wait on.
async fn after_a_wait_of(span: Duration, world: &World, job: JobId) -> (Answer, bool) {
    let now = world.clock.now();
    let (since, until) = ((now - span).unix_seconds(), now.unix_seconds());
    let answer = world
        .callback(
            "/runner/stop",
            &format!(
                r#"{{"vm_instance_name": "gpu-1", "vm_instance_zone": "{ZONE}", "unmarked": true,
            "waiting": [{{"job": {job}, "since": {since}, "until": {until}}}]}}"#
            ),
        )
        .await;
    let tasks = world.cloud.tasks.pending();
    let taken_over = tasks.iter().any(|task| task.body["waiting"][0]["since"] == since);
    (answer, taken_over)
}

#[tokio::test(start_paused = true)]
async fn only_time_with_a_vm_that_is_free_counts_as_waiting_for_nothing() {
    // Up and idle: if that goes on, the job cannot be meant for it.
    let mut world = World::new().vm("gpu-1", Status::Running);
    world.cloud.github.remove_runner("gpu-1");
    let job = a_job_waits(&world);
    world.pass(minutes(10)).await;
    let (answer, taken_over) = after_a_wait_of(minutes(20), &world, job).await;
    assert!(answer.outcome.contains("busy") && taken_over, "{answer:?}");
    let (answer, _) = after_a_wait_of(minutes(61), &world, job).await;
    assert!(answer.outcome.contains("stopping"), "{answer:?}");

    // On its way down.
    let world = World::new().vm("gpu-1", Status::Stopping);
    let job = a_job_waits(&world);
    assert!(!after_a_wait_of(minutes(20), &world, job).await.1);

    // Another job runs on it, even if its runner's flag says that it does not.
    for glitch in [false, true] {
        let mut world = World::new().vm("gpu-1", Status::Running);
        world.cloud.github.lose_next_webhook(2);
        let other = world.queue_job("acme/app", "self-hosted gpu", minutes(60));
        world.pass_until(minutes(3), |world| world.is_started(other)).await;
        world.pass(minutes(10)).await;
        world.cloud.github.busy_glitch("gpu-1", glitch);
        let job = a_job_waits(&world);
        let (answer, taken_over) = after_a_wait_of(minutes(20), &world, job).await;
        assert!(answer.outcome.contains("busy") && !taken_over, "{answer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_that_was_left_does_not_start_its_vm_again() {
    let world = World::new();
    let job = a_job_waits(&world);
    let (answer, _) = after_a_wait_of(minutes(60), &world, job).await;
    assert!(answer.outcome.contains("already_stopped"), "{answer:?}");
    assert!(world.is_stopped("gpu-1"));
    // Another one waits as well: the VM starts for that, and the pass still carries the first.
    a_job_waits(&world);
    let (answer, _) = after_a_wait_of(minutes(60), &world, job).await;
    assert!(answer.outcome.contains("starting"), "{answer:?}");
    let tasks = world.cloud.tasks.pending();
    assert!(tasks.iter().any(|task| task.body["waiting"][0]["job"] == job.0), "{tasks:?}");
}

#[tokio::test(start_paused = true)]
async fn a_job_that_does_not_fit_the_runner_starts_no_vm_when_another_is_over() {
    let mut world = World::new();
    world.cloud.github.lose_next_webhook(1);
    world.queue_job("acme/app", "self-hosted arm64", minutes(1));
    let check = format!(
        r#"{{"vm_instance_name": "runner-1", "vm_instance_zone": "{ZONE}",
            "job": {{"repo": "acme/app", "id": 1, "queued_at": {}}}}}"#,
        world.clock.now().unix_seconds()
    );
    let answer = world.callback("/runner/start", &check).await;
    assert_eq!(answer.body["status"], "already_stopped", "{answer:?}");
    world.pass(minutes(1)).await;
    assert!(world.is_stopped("runner-1"));
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_an_entry_names_again_has_its_day_anew() {
    let world = World::new().vm("runner-1", Status::Running);
    world.queue_job("acme/app", "self-hosted", minutes(30));
    let body = format!(
        r#"{{"vm_instance_name": "runner-1", "vm_instance_zone": "{ZONE}", "unmarked": true, "unconfigured_since": 1}}"#
    );
    let answer = world.callback("/runner/stop", &body).await;
    assert_eq!(answer.body["status"], "busy", "{answer:?}");
    let tasks = world.cloud.tasks.pending();
    let next = tasks.iter().find(|task| task.path == "/runner/stop").unwrap();
    assert_eq!(next.body.get("unconfigured_since"), None);
}

const GPU: &str = r#"{"vm_instance_name": "gpu-1"}"#;

#[tokio::test(start_paused = true)]
async fn a_vm_that_was_started_in_the_console_and_held_is_stopped_once_it_is_released() {
    let mut world = World::new();
    world.cloud.compute.start_by_hand("gpu-1");
    world.pass(minutes(1)).await;
    assert_eq!(world.command("/runner/hold", GPU).await.body["status"], "held");
    world.pass(minutes(60)).await;
    assert_eq!(world.status("gpu-1"), Status::Running);
    assert!(world.cloud.tasks.pending().is_empty(), "no other pass looks after it");
    assert_eq!(world.command("/runner/release", GPU).await.body["status"], "released");
    world.pass_until(minutes(10), |world| world.is_stopped("gpu-1")).await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_works_when_it_is_released_is_stopped_after_its_last_job() {
    let mut world = World::new();
    let job = world.queue_job("acme/app", "self-hosted gpu", minutes(30));
    world.pass_until(minutes(5), |world| world.is_started(job)).await;
    world.command("/runner/hold", GPU).await;
    world.pass(minutes(10)).await;
    world.command("/runner/release", GPU).await;
    world.pass_until(minutes(40), |world| world.is_completed(job)).await;
    world.pass_until(minutes(15), |world| world.is_stopped("gpu-1")).await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_crash_between_any_two_calls_of_a_release_leaks_nothing() {
    for method in ["instances.get", "tasks.create", "instances.setLabels"] {
        for fault in [Fault::Hang, Fault::Lost] {
            let mut world = World::new();
            world.cloud.compute.start_by_hand("gpu-1");
            world.pass(minutes(10)).await;
            world.command("/runner/hold", GPU).await;
            world.cloud.faults.next(method, fault.clone());
            // The caller gives up, and asks once more.
            let impatient = tokio::time::timeout(seconds(1), world.command("/runner/release", GPU));
            assert!(impatient.await.is_err(), "{method} {fault:?}");
            world.crash();
            if world.cloud.compute.labels("gpu-1").contains_key("runner-manager-hold") {
                world.command("/runner/release", GPU).await;
            }
            world.pass_until(minutes(10), |world| world.is_stopped("gpu-1")).await;
            world.settle().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_that_runs_for_ever_keeps_no_vm_up() {
    let (log, _guard) = Log::listen();
    let mut world = World::new();
    let since = world.clock.now() - minutes(6 * 24 * 60);
    world.cloud.github.stuck_job("acme/app", ["self-hosted"], Some("runner-1"), since);
    let job = world.queue_job("acme/app", "self-hosted", minutes(1));
    world.pass_until(minutes(5), |world| world.is_completed(job)).await;
    world.pass_until(minutes(10), |world| world.is_stopped("runner-1")).await;
    assert!(log.count("WARN", "has been running for more than 5 days according to GitHub") > 0);
    world.pass_until(minutes(10), |world| world.is_quiet()).await;
    assert_eq!(world.starts("runner-1"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_runner_that_is_busy_and_offline_for_an_hour_is_told() {
    let (log, _guard) = Log::listen();
    let mut world = World::new();
    let job = world.queue_job("acme/app", "self-hosted gpu", minutes(1));
    world.pass_until(minutes(5), |world| world.is_completed(job)).await;
    world.cloud.github.stuck_busy("gpu-1", true);
    world.pass(minutes(60)).await;
    assert_eq!(log.count("ERROR", "has been offline since"), 0);
    world.pass(minutes(20)).await;
    assert!(log.count("ERROR", "has been offline since") > 0, "{}", world.story());
    assert_eq!(world.status("gpu-1"), Status::Running, "it still counts");
}

#[tokio::test(start_paused = true)]
async fn a_job_that_was_given_up_on_stays_so_for_every_pass() {
    let mut world = World::new();
    world.cloud.github.remove_runner("runner-1");
    let job = world.queue_job("acme/app", "self-hosted", minutes(1));
    world.pass(minutes(1)).await;
    world.pass_until(minutes(90), |world| world.is_stopped("runner-1")).await;
    let label = world.cloud.compute.labels("runner-1");
    assert_eq!(label["runner-manager-given-up"], job.to_string());
    // A pass without its memory, the resync and a start by hand do not count it.
    let body = format!(
        r#"{{"vm_instance_name": "runner-1", "vm_instance_zone": "{ZONE}", "unmarked": true}}"#
    );
    let answer = world.callback("/runner/stop", &body).await;
    assert_eq!(answer.body["status"], "already_stopped", "{answer:?}");
    world.command("/runner/start", r#"{"vm_instance_name": "runner-1"}"#).await;
    world.pass_until(minutes(12), |world| world.is_stopped("runner-1")).await;
    world.resync().await;
    world.pass(minutes(30)).await;
    assert_eq!(world.starts("runner-1"), 2, "{}", world.story());
}
