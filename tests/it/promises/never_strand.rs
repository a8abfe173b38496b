//! A queued job always gets its runner, in every state of the VM.

use runner_manager::clock::Timestamp;
use runner_manager::emulators::compute::{Instance, Status, Timings};
use runner_manager::emulators::github::{Permission, Runner, TokenRefusal};
use runner_manager::emulators::{CallInfo, ErrorBody, Fault};

use crate::harness::Log;
use crate::world::{World, ZONE, fleet, minutes, runner, seconds};

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
    let (log, _guard) = Log::listen();
    let mut world = World::new();
    world.cloud.compute.stockout(ZONE, true);
    let job = world.queue_job("acme/app", "self-hosted", minutes(2));
    world.pass(minutes(20)).await;
    assert!(!world.is_completed(job));
    world.cloud.compute.stockout(ZONE, false);
    world.pass_until(minutes(10), |world| world.is_completed(job)).await;
    world.settle().await;
    assert!(log.count("WARN", "start failed: ZONE_RESOURCE_POOL_EXHAUSTED") > 0, "why is not told");
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
async fn a_job_gets_its_vm_back_after_it_was_stopped_by_hand() {
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
                // Nothing was accepted, and GitHub shows a failed delivery, which an operator can redeliver.
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
    for method in ["instances.get", "instances.start", "instances.setLabels"] {
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
async fn without_a_pass_github_is_told_that_the_delivery_failed() {
    let (log, _guard) = Log::listen();
    let mut world = World::new();
    world.cloud.tasks.forbid_create(true);
    world.queue_job("acme/app", "self-hosted", minutes(2));
    world.pass(seconds(10)).await;
    let (status, outcome) = world.outcomes().remove(0);
    assert_eq!(status, http::StatusCode::BAD_GATEWAY);
    assert!(outcome.contains("tasks.create: 403"), "{outcome}");
    assert!(world.is_stopped("runner-1"), "nothing is started that no task looks after");
    assert_eq!(log.count("ERROR", "502 Bad Gateway"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_does_not_exist_fails_the_delivery() {
    for waits_for_a_review in [false, true] {
        let mut world = World::new();
        world.cloud.compute.delete("runner-1");
        let queue = if waits_for_a_review {
            runner_manager::emulators::github::GitHub::queue_waiting_job
        } else {
            runner_manager::emulators::github::GitHub::queue_job
        };
        queue(&world.cloud.github, "acme/app", ["self-hosted"], minutes(2));
        world.pass(minutes(1)).await;
        let (status, outcome) = world.outcomes().remove(0);
        assert_eq!(status, http::StatusCode::BAD_GATEWAY);
        assert!(outcome.contains("runner-1"), "{outcome}");
    }
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
    // Another runner takes the first, so the pass that both share has found what it was for.
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

#[tokio::test(start_paused = true)]
async fn a_vm_that_is_stopping_is_started_within_a_minute_of_being_down() {
    for stopping in [seconds(30), seconds(150)] {
        let mut world = World::new().vm("runner-1", Status::Running);
        world.cloud.compute.timings(Timings { stopping, ..world.cloud.compute.current_timings() });
        world.cloud.compute.stop_by_hand("runner-1");
        world.pass(seconds(5)).await;
        let job = world.queue_job("acme/app", "self-hosted", minutes(2));
        world.pass_until(minutes(4), |world| world.is_stopped("runner-1")).await;
        world.pass_until(minutes(1), |world| world.starts("runner-1") == 1).await;
        world.pass_until(minutes(5), |world| world.is_completed(job)).await;
        world.settle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_status_that_changed_before_the_start_is_read_once_more() {
    let mut world = World::new();
    let compute = world.cloud.compute.clone();
    world.cloud.faults.on(move |call| {
        if call.method == "instances.start" {
            compute.set_status("runner-1", Status::Suspended);
        }
        None
    });
    let job = world.queue_job("acme/app", "self-hosted", minutes(2));
    world.pass(seconds(5)).await;
    assert_eq!(world.count("instances.resume"), 1, "{}", world.story());
    world.cloud.faults.off();
    world.pass_until(minutes(5), |world| world.is_completed(job)).await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_start_that_is_sent_twice_says_that_it_is_the_same() {
    let mut world = World::new();
    for method in ["instances.start", "instances.setLabels"] {
        world.cloud.faults.next(method, Fault::After(http::StatusCode::SERVICE_UNAVAILABLE));
    }
    world.queue_job("acme/app", "self-hosted", minutes(2));
    world.pass(seconds(5)).await;
    for method in ["instances.start", "instances.setLabels"] {
        let calls = world.cloud.calls();
        let sent: Vec<_> =
            calls.iter().filter(|call| call.method == method).map(|call| &call.target).collect();
        assert!(sent.len() == 2 && sent[0] == sent[1], "{sent:?}");
        assert!(sent[0].contains("requestId="), "{sent:?}");
    }
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_delivery_fails_if_no_pass_was_created() {
    let unavailable = Fault::Before(http::StatusCode::SERVICE_UNAVAILABLE, ErrorBody::Html);
    // Not every conflict means that there is such a task.
    let conflict = Fault::Before(http::StatusCode::CONFLICT, ErrorBody::Empty);
    for faults in [vec![unavailable.clone(), unavailable], vec![conflict]] {
        let mut world = World::new();
        faults.into_iter().for_each(|fault| world.cloud.faults.next("tasks.create", fault));
        world.queue_job("acme/app", "self-hosted", minutes(2));
        world.pass(seconds(10)).await;
        let (status, _) = world.outcomes().remove(0);
        assert_eq!(status, http::StatusCode::BAD_GATEWAY);
        assert_eq!(world.starts("runner-1"), 0, "nothing would look after it");
        assert!(world.is_quiet());
    }
}

#[tokio::test(start_paused = true)]
async fn a_delivery_is_accepted_if_only_the_vm_could_not_be_read_and_fails_without_its_check() {
    for (method, status) in
        [("", http::StatusCode::OK), ("tasks.create", http::StatusCode::BAD_GATEWAY)]
    {
        let mut world = World::new();
        for method in ["instances.get", method] {
            for _ in 0..2 {
                let unavailable = http::StatusCode::SERVICE_UNAVAILABLE;
                world.cloud.faults.next(method, Fault::Before(unavailable, ErrorBody::Html));
            }
        }
        world.queue_job("acme/app", "self-hosted", minutes(2));
        world.pass(seconds(10)).await;
        assert_eq!(world.outcomes().remove(0).0, status);
        assert_eq!(world.cloud.tasks.pending().len(), usize::from(status.is_success()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_pass_starts_nothing_without_a_follow_up() {
    let mut world = World::new();
    world.cloud.compute.stockout(ZONE, true);
    let job = world.queue_job("acme/app", "self-hosted", minutes(2));
    world.pass(minutes(1)).await;
    world.cloud.compute.stockout(ZONE, false);
    world.cloud.tasks.forbid_create(true);
    let before = world.count("instances.start");
    world.pass(minutes(10)).await;
    assert_eq!(world.count("instances.start"), before, "{}", world.story());
    world.cloud.tasks.forbid_create(false);
    world.pass_until(minutes(20), |world| world.is_completed(job)).await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_pass_that_could_not_create_the_next_is_repeated() {
    let mut world = World::new();
    world.cloud.compute.stockout(ZONE, true);
    let job = world.queue_job("acme/app", "self-hosted", minutes(2));
    world.pass(seconds(100)).await;
    for _ in 0..2 {
        let unavailable = http::StatusCode::SERVICE_UNAVAILABLE;
        world.cloud.faults.next("tasks.create", Fault::Before(unavailable, ErrorBody::Html));
    }
    world.pass(seconds(30)).await;
    let failed = http::StatusCode::INTERNAL_SERVER_ERROR;
    assert!(world.outcomes().iter().any(|(status, _)| *status == failed), "{}", world.story());
    world.cloud.compute.stockout(ZONE, false);
    world.pass_until(minutes(7), |world| world.is_completed(job)).await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_job_that_loses_its_vm_in_the_middle_gets_it_back_within_one_pass_interval() {
    let (log, _guard) = Log::listen();
    let mut world = World::new();
    // Their passes are one, and the first job is soon over.
    let short = world.queue_job("acme/app", "self-hosted", minutes(1));
    let long = world.queue_job("acme/app", "self-hosted", minutes(90));
    world.pass_until(minutes(5), |world| world.is_completed(short)).await;
    // The VM's passes are ten minutes apart by now, and one has just ended.
    let looked = Timestamp::parse("2026-11-24T09:41:00Z").unwrap();
    world.pass(looked.since(world.clock.now())).await;
    world.cloud.compute.preempt("runner-1");
    world.pass_until(minutes(6), |world| world.starts("runner-1") == 2).await;
    world.pass_until(minutes(100), |world| world.is_completed(long)).await;
    world.settle().await;
    let why = "VM runner-1 in asia-northeast1-a is down while a job waits for it: it was preempted";
    assert_eq!(log.count("WARN", why), 1);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_another_vm_took_gets_its_own_when_that_one_vanishes() {
    // The other VM has no pass: it was started in the console.
    let mut world = World::new().vm("gpu-1", Status::Running);
    world.pass(seconds(30)).await;
    gpu_1_takes_a_job_and_vanishes(&mut world).await;
    world.settle().await;
}

/// `gpu-1` takes a job that `runner-1` was started for, and is stopped in the middle of it: `runner-1` runs it then.
pub(super) async fn gpu_1_takes_a_job_and_vanishes(world: &mut World) {
    let job = world.queue_job("acme/app", "self-hosted", minutes(60));
    world.pass(minutes(5)).await;
    assert_eq!(world.cloud.github.job(job).runner_name.as_deref(), Some("gpu-1"));
    world.pass_until(minutes(20), |world| world.is_stopped("runner-1")).await;
    world.pass(minutes(10)).await;
    world.cloud.compute.stop_by_hand("gpu-1");
    world.pass_until(minutes(7), |world| world.starts("runner-1") == 2).await;
    world.pass_until(minutes(70), |world| world.is_completed(job)).await;
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_vanishes_tells_of_the_jobs_that_it_ran_for_others() {
    let mut world = World::new();
    world.cloud.github.remove_runner("gpu-1");
    world.cloud.github.add_runner(runner("gpu-1", "acme/app", "self-hosted gpu"));
    world.command("/runner/start", r#"{"vm_instance_name": "gpu-1"}"#).await;
    world.pass(minutes(1)).await;
    // Their passes are one; it carries the first job, which is soon over.
    let own = world.queue_job("acme/app", "self-hosted linux", seconds(20));
    let taken = world.queue_job("acme/app", "self-hosted", minutes(60));
    world.pass_until(minutes(2), |world| world.is_completed(own)).await;
    assert_eq!(world.cloud.github.job(taken).runner_name.as_deref(), Some("gpu-1"));
    world.pass_until(minutes(20), |world| world.is_stopped("runner-1")).await;
    world.pass(minutes(10)).await;
    world.cloud.compute.stop_by_hand("gpu-1");
    world.pass_until(minutes(15), |world| world.starts("runner-1") == 2).await;
    world.pass_until(minutes(70), |world| world.is_completed(taken)).await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_webhook_was_lost_gets_the_vm_back_that_it_was_running_on() {
    let mut world = World::new();
    let first = world.queue_job("acme/app", "self-hosted", minutes(1));
    world.pass_until(minutes(5), |world| world.is_completed(first)).await;
    world.pass(seconds(75)).await;
    world.cloud.github.lose_next_webhook(1);
    let second = world.queue_job("acme/app", "self-hosted", minutes(20));
    world.pass(minutes(4)).await;
    world.cloud.compute.preempt("runner-1");
    world.pass_until(minutes(10), |world| world.starts("runner-1") == 2).await;
    world.pass_until(minutes(30), |world| world.is_completed(second)).await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_job_in_review_is_not_forgotten_with_the_job_that_came_with_it() {
    let mut world = World::new();
    let first = world.queue_job("acme/app", "self-hosted", seconds(20));
    let second = world.cloud.github.queue_waiting_job("acme/app", ["self-hosted"], minutes(2));
    world.pass_until(minutes(2), |world| world.is_completed(first)).await;
    world.pass_until(minutes(20), |world| world.is_stopped("runner-1")).await;
    world.pass(minutes(10)).await;
    world.cloud.github.approve_silently(second);
    world.pass_until(minutes(10), |world| world.is_completed(second)).await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn passes_go_on_for_a_vm_that_is_down_until_github_answered() {
    let unavailable = Fault::Before(http::StatusCode::SERVICE_UNAVAILABLE, ErrorBody::Html);
    for (method, fault) in [
        ("actions.listWorkflowRunsForRepo", unavailable),
        ("actions.listJobsForWorkflowRun", Fault::Hang),
    ] {
        let mut world = World::new();
        let job = world.queue_job("acme/app", "self-hosted", seconds(20));
        world.queue_job("acme/app", "ubuntu-latest", minutes(60));
        world.pass_until(minutes(2), |world| world.is_completed(job)).await;
        world.pass(minutes(1)).await;
        world.cloud.compute.stop_by_hand("runner-1");
        world.cloud.faults.on(move |call| (call.method == method).then(|| fault.clone()));
        world.pass(minutes(30)).await;
        assert!(!world.cloud.tasks.pending().is_empty(), "{}", world.story());
        world.cloud.faults.off();
        world.pass_until(minutes(6), |world| world.cloud.tasks.pending().is_empty()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn one_call_without_an_answer_leaves_time_for_the_rest() {
    let mut world = World::new();
    world.cloud.faults.next("instances.get", Fault::Hang);
    let job = world.queue_job("acme/app", "self-hosted", minutes(2));
    world.pass(seconds(10)).await;
    assert_eq!(world.starts("runner-1"), 1, "{}", world.story());
    world.pass_until(minutes(5), |world| world.is_completed(job)).await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_stopped_vm_is_looked_at_every_five_minutes_until_github_is_heard() {
    let world = World::new();
    world.cloud.github.outage(true);
    let body = format!(
        r#"{{"vm_instance_name": "gpu-1", "vm_instance_zone": "{ZONE}", "unmarked": true, "looks": 9}}"#
    );
    let answer = world.callback("/runner/stop", &body).await;
    assert!(answer.outcome.contains("unknown"), "{answer:?}");
    let next = world.cloud.tasks.pending()[0].due;
    assert!(next <= world.clock.now() + minutes(5) + seconds(30), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn a_scan_that_was_settled_begins_anew_the_next_time() {
    let mut world = World::new();
    let job = world.queue_job("acme/app", "self-hosted", minutes(30));
    world.pass_until(minutes(3), |world| world.is_started(job)).await;
    world.pass(minutes(5)).await;
    world.cloud.tasks.purge();
    let idle_since = world.idle_since("runner-1").unwrap();
    let body = format!(
        r#"{{"vm_instance_name": "runner-1", "vm_instance_zone": "{ZONE}",
            "idle_since": {idle_since}, "job": {{"repo": "acme/app", "id": {job}, "queued_at": {}}},
            "cursor": {{"repo": "acme/app", "list": 4, "before": 7}}}}"#,
        world.clock.now().unix_seconds()
    );
    let answer = world.callback("/runner/start", &body).await;
    assert!(answer.outcome.contains("is running on it"), "{answer:?}");
    let next = world.cloud.tasks.pending().remove(0);
    assert_eq!(next.body.get("cursor"), None);
}

#[tokio::test(start_paused = true)]
async fn a_pass_whose_job_is_over_goes_on_for_the_one_that_runs() {
    let mut world = World::new();
    let runs = world.queue_job("acme/app", "self-hosted", minutes(30));
    world.pass_until(minutes(3), |world| world.is_started(runs)).await;
    world.pass(minutes(5)).await;
    world.cloud.tasks.purge();
    let idle_since = world.idle_since("runner-1").unwrap();
    let now = world.clock.now().unix_seconds();
    let body = format!(
        r#"{{"vm_instance_name": "runner-1", "vm_instance_zone": "{ZONE}", "unconfigured_since": 1,
            "idle_since": {idle_since}, "job": {{"repo": "acme/app", "id": 1, "queued_at": {now}}},
            "waiting": [{{"job": 2, "since": {}, "until": {now}}}]}}"#,
        now - 1_200
    );
    let answer = world.callback("/runner/start", &body).await;
    assert!(answer.outcome.contains("busy: its runner in acme/app is busy"), "{answer:?}");
    let next = world.cloud.tasks.pending().remove(0).body;
    // An entry names the VM again, and no job has been waiting for a free VM.
    assert_eq!((next.get("unconfigured_since"), next.get("waiting")), (None, None));
    world.cloud.compute.preempt("runner-1");
    world.pass_until(minutes(6), |world| world.starts("runner-1") == 2).await;
    world.pass_until(minutes(40), |world| world.is_completed(runs)).await;
    world.settle().await;
}

/// A world in which the GPU machine's start-up script registers its runner if GitHub has removed it.
fn a_vm_that_registers_by_itself() -> World {
    let world = World::with_config(fleet("").replacen(
        r#""vm_instance_name": "gpu-1""#,
        r#""vm_instance_name": "gpu-1", "register": "repository""#,
        1,
    ));
    world.cloud.github.permit(Permission::Registration);
    world.cloud.guests.register_at_boot("gpu-1", ZONE, "https://service.example");
    world
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_slept_for_months_serves_its_next_job() {
    let mut world = a_vm_that_registers_by_itself();
    let first = world.queue_job("acme/app", "self-hosted gpu", minutes(1));
    world.pass_until(minutes(20), |world| world.is_completed(first)).await;
    world.settle().await;
    assert_eq!(world.count("actions.createRegistrationTokenForRepo"), 0, "it was known");
    world.pass(minutes(90 * 24 * 60)).await;
    let known = |world: &World| world.cloud.github.runners().iter().any(|one| one.name == "gpu-1");
    assert!(!known(&world), "GitHub has forgotten its runner");
    let job = world.queue_job("acme/app", "self-hosted gpu", minutes(1));
    world.pass_until(minutes(5), |world| world.is_completed(job)).await;
    assert_eq!(world.count("actions.createRegistrationTokenForRepo"), 1);
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_cannot_register_at_once_asks_until_it_can() {
    let mut world = a_vm_that_registers_by_itself();
    world.cloud.github.remove_runner("gpu-1");
    let down = |call: &CallInfo<'_>| {
        let down = matches!(call.method, "oauth2.certs" | "actions.createRegistrationTokenForRepo");
        down.then_some(Fault::Hang)
    };
    world.cloud.faults.on(down);
    let job = world.queue_job("acme/app", "self-hosted gpu", minutes(1));
    world.pass(minutes(10)).await;
    assert!(!world.is_started(job));
    world.cloud.faults.off();
    world.pass_until(minutes(10), |world| world.is_completed(job)).await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn without_registration_a_vm_that_slept_too_long_does_not_get_its_job() {
    let mut world = World::new();
    world.pass(minutes(15 * 24 * 60)).await;
    let job = world.queue_job("acme/app", "self-hosted gpu", minutes(1));
    world.pass(minutes(30)).await;
    assert!(world.status("gpu-1") == Status::Running && !world.is_started(job));
}

#[tokio::test(start_paused = true)]
async fn the_resync_keeps_an_unused_runner_known_and_current() {
    for updates in [true, false] {
        let mut world = World::new();
        world.cloud.github.remove_runner("gpu-1");
        let spec = runner("gpu-1", "acme/app", "self-hosted linux x64 gpu");
        world.cloud.github.add_runner(Runner { updates, ..spec });
        world.command("/runner/start", r#"{"vm_instance_name": "gpu-1"}"#).await;
        for _ in 0..50 {
            world.pass(minutes(24 * 60)).await;
            world.resync().await;
        }
        let job = world.queue_job("acme/app", "self-hosted gpu", minutes(1));
        world.pass(minutes(10)).await;
        // GitHub gives no jobs to a runner that may not update itself, even if it is registered.
        assert_eq!(world.is_completed(job), updates, "{}", world.story());
        assert!((5..=7).contains(&world.starts("gpu-1")), "{}", world.starts("gpu-1"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_token_that_is_refused_for_seconds_ends_no_pass() {
    for refusal in [TokenRefusal::Unauthorized, TokenRefusal::Forbidden] {
        // The next event is a day away, so only the pass serves the job.
        let mut world = World::inactive_for(24 * 60, fleet(""));
        world.cloud.compute.stockout(ZONE, true);
        let job = world.queue_job("acme/app", "self-hosted", minutes(2));
        world.pass(minutes(1)).await;
        world.cloud.github.new_tokens_refused_for(seconds(5), refusal);
        for _ in 0..5 {
            world.cloud.github.revoke_tokens();
            world.pass(minutes(5)).await;
        }
        world.cloud.compute.stockout(ZONE, false);
        world.pass_until(minutes(6), |world| world.starts("runner-1") > 0).await;
        world.pass_until(minutes(10), |world| world.is_completed(job)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_is_found_while_the_search_index_is_empty() {
    let mut world = World::new();
    let first = world.queue_job("acme/app", "self-hosted", minutes(20));
    world.pass_until(minutes(3), |world| world.is_started(first)).await;
    world.cloud.github.lose_next_webhook(1);
    let second = world.queue_job("acme/app", "self-hosted", minutes(2));
    world.pass(minutes(6)).await;
    world.cloud.github.search_index_down(true);
    world.cloud.compute.preempt("runner-1");
    world.pass_until(minutes(7), |world| world.starts("runner-1") == 2).await;
    world
        .pass_until(minutes(40), |world| world.is_completed(first) && world.is_completed(second))
        .await;
    world.cloud.github.search_index_down(false);
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_vanishes_is_noticed_within_five_minutes_however_long_it_may_idle() {
    for inactive in [1, 15, 24 * 60] {
        let mut world = World::inactive_for(inactive, fleet(""));
        let job = world.queue_job("acme/app", "self-hosted", minutes(120));
        world.pass(minutes(33)).await;
        world.cloud.compute.preempt("runner-1");
        // The VM takes half a minute to go down.
        world.pass_until(minutes(6), |world| world.starts("runner-1") == 2).await;
        world.pass_until(minutes(130), |world| world.is_completed(job)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_zone_that_is_a_region_is_reported_as_no_such_instance() {
    let world = World::with_config(fleet("").replace(ZONE, "asia-northeast1"));
    let body = include_str!("../../fixtures/workflow_job.queued.json");
    let answer = world.webhook("workflow_job", body).await;
    assert_eq!(answer.status, http::StatusCode::BAD_GATEWAY);
    assert!(
        answer.outcome.contains("has no instance runner-1 in asia-northeast1 in this project"),
        "{answer:?}"
    );
    let task = world.cloud.tasks.pending().remove(0);
    let answer = world.callback("/runner/stop", &task.body.to_string()).await;
    assert_eq!(answer.body["status"], "not_configured", "{answer:?}");
    assert_eq!(world.cloud.tasks.pending().len(), 1, "no pass follows");
}
