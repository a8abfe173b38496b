//! A running job is never killed by a scheduled stop.

use http::StatusCode;
use runner_manager::emulators::compute::{Instance, Status};
use runner_manager::emulators::github::{self, Permission, Runner, Scope};
use runner_manager::emulators::{ErrorBody, Fault};

use crate::world::{World, ZONE, minutes, runner, seconds};

/// Runs a job for two hours after a short one has scheduled a stop, with `trouble` meanwhile.
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
    assert!(world.was_told("could not be queried"), "{}", world.story());
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
    world.pass(minutes(30)).await;
    let body = format!(
        r#"{{"vm_instance_name": "runner-1", "vm_instance_zone": "{ZONE}", "unmarked": true}}"#
    );
    let busy = world.callback("/runner/stop", &body).await;
    assert!(busy.outcome.contains("its runner in the organization acme is busy"), "{busy:?}");
    world
        .pass_until(minutes(90), |world| world.is_completed(short) && world.is_completed(long))
        .await;
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
async fn a_job_is_found_though_one_pass_has_no_time_to_come_to_it() {
    let mut world = World::new();
    let job = world.queue_job("acme/app", "self-hosted", minutes(60));
    world.pass_until(minutes(3), |world| world.is_started(job)).await;
    world.cloud.github.busy_glitch("runner-1", true);
    // These are listed before the one that runs.
    for _ in 0..120 {
        world.queue_job("acme/app", "ubuntu-latest", minutes(1));
    }
    world.cloud.faults.on(|call| {
        (call.method == "actions.listJobsForWorkflowRun")
            .then_some(Fault::Delay(std::time::Duration::from_millis(700)))
    });
    // Only the lists tell of the job: the pass that carried it is lost.
    world.pass(minutes(6)).await;
    world.cloud.tasks.purge();
    let body = format!(
        r#"{{"vm_instance_name": "runner-1", "vm_instance_zone": "{ZONE}", "unmarked": true}}"#
    );
    let first = world.callback("/runner/stop", &body).await;
    assert!(first.outcome.contains("unknown: the open jobs were not all read"), "{first:?}");
    world.pass_until(minutes(70), |world| world.is_completed(job)).await;
    assert!(world.was_told(&format!("busy: job {job} of acme/app is running on it")));
    assert_eq!(world.starts("runner-1"), 1, "the VM stayed up\n{}", world.story());
}

#[tokio::test(start_paused = true)]
async fn a_cursor_that_leads_nowhere_hides_no_job() {
    for cursor in [
        // The entries named this repository earlier; every other comes before it.
        r#"{"repo": "zeta/gone", "list": 0, "before": null, "up": true}"#,
        // A version that reads more lists.
        r#"{"repo": "acme/web", "list": 7, "before": null, "up": true}"#,
        // The VM was down, so what the scan had found by then did not count.
        r#"{"repo": "acme/web", "list": 6, "before": null, "up": false}"#,
    ] {
        let mut world = World::new();
        let job = world.queue_job("acme/app", "self-hosted", minutes(60));
        world.pass_until(minutes(3), |world| world.is_started(job)).await;
        world.cloud.github.busy_glitch("runner-1", true);
        // Only the lists tell of the job: the pass that carried it is lost.
        world.pass(minutes(6)).await;
        world.cloud.tasks.purge();
        let body = format!(
            r#"{{"vm_instance_name": "runner-1", "vm_instance_zone": "{ZONE}", "unmarked": true, "cursor": {cursor}}}"#
        );
        let answer = world.callback("/runner/stop", &body).await;
        assert_eq!(answer.body["status"], "busy", "{cursor} {answer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_of_the_second_repository_is_seen_by_either_witness() {
    for blind in [None, Some(Permission::Actions)] {
        let mut world = World::new();
        // The runner is registered for the second repository only.
        world.cloud.github.remove_runner("runner-1");
        world.cloud.github.add_runner(runner("runner-1", "acme/web", "self-hosted"));
        match blind {
            None => world.cloud.github.busy_glitch("runner-1", true),
            Some(permission) => world.cloud.github.forbid(permission),
        }
        let long = world.queue_job("acme/web", "self-hosted", minutes(60));
        world.pass_until(minutes(90), |world| world.is_completed(long)).await;
        assert_eq!(world.starts("runner-1"), 1, "{blind:?}\n{}", world.story());
        world.settle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_that_goes_back_to_queued_while_runs_are_listed_is_still_found() {
    let mut world = World::new().vm("runner-1", Status::Running);
    world
        .cloud
        .compute
        .insert(Instance { status: Status::Running, ..Instance::new("elsewhere", ZONE) });
    world.cloud.github.add_runner(runner("elsewhere", "acme/app", "self-hosted once"));
    world
        .cloud
        .github
        .timings(github::Timings { requeue: seconds(0), ..world.cloud.github.current_timings() });
    world.pass(seconds(20)).await;
    let labels = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let jobs =
        vec![(labels("self-hosted linux"), minutes(60)), (labels("self-hosted once"), minutes(60))];
    world.cloud.github.queue_run("acme/app", jobs);
    world.pass(minutes(7)).await;
    world.cloud.github.busy_glitch("runner-1", true);
    // The other job's runner goes away between the list of queued runs and that of running ones.
    let cloud = world.cloud.clone();
    world.cloud.faults.on(move |call| {
        if call.method == "actions.listWorkflowRunsForRepo"
            && call.target.contains("status=in_progress")
            && cloud.compute.status("elsewhere") == Status::Running
        {
            cloud.compute.set_status("elsewhere", Status::Terminated);
        }
        None
    });
    let body = r#"{"vm_instance_name": "runner-1", "vm_instance_zone": "asia-northeast1-a", "idle_since": 1795510860}"#;
    let answer = world.callback("/runner/stop", body).await;
    assert_eq!(answer.body["status"], "busy", "{answer:?}");
    assert_eq!(world.status("runner-1"), Status::Running);
}

/// A VM that nothing needs now, and the stop task of its label.
async fn an_idle_vm() -> (World, String) {
    let mut world = World::new().vm("gpu-1", Status::Running);
    world.pass(minutes(10)).await;
    let mark = world.clock.now().unix_seconds() / 30 * 30 - 300;
    let mark_label = mark.to_string();
    world.cloud.compute.label_by_hand("gpu-1", "runner-manager-idle-since", Some(&mark_label));
    let body = format!(
        r#"{{"vm_instance_name": "gpu-1", "vm_instance_zone": "{ZONE}", "idle_since": {mark}}}"#
    );
    (world, body)
}

#[tokio::test(start_paused = true)]
async fn a_change_of_the_vm_after_github_was_queried_still_counts() {
    for (label, value, status) in [
        ("team", "infra".to_owned(), "stopping"),
        ("runner-manager-hold", String::new(), "held"),
        ("runner-manager-idle-since", "1795511400".to_owned(), "superseded"),
    ] {
        let (world, body) = an_idle_vm().await;
        let compute = world.cloud.compute.clone();
        world.cloud.faults.on(move |call| {
            if call.method == "tasks.create" {
                compute.label_by_hand("gpu-1", label, Some(&value));
            }
            None
        });
        let answer = world.callback("/runner/stop", &body).await;
        assert_eq!(answer.body["status"], status, "{answer:?}");
        assert_eq!(world.count("instances.stop"), usize::from(status == "stopping"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_vm_is_not_stopped_if_no_task_looks_after_it() {
    let (world, body) = an_idle_vm().await;
    world.cloud.tasks.forbid_create(true);
    let answer = world.callback("/runner/stop", &body).await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR, "{answer:?}");
    assert_eq!(world.count("instances.stop"), 0);
}

#[tokio::test(start_paused = true)]
async fn no_stop_is_sent_long_after_the_vm_was_last_read() {
    let (world, body) = an_idle_vm().await;
    world.cloud.faults.on(|call| (call.method == "instances.stop").then_some(Fault::Hang));
    let answer = world.callback("/runner/stop", &body).await;
    assert_eq!(answer.body["status"], "stop_scheduled", "{answer:?}");
    let calls = world.cloud.calls();
    let last = |method| calls.iter().rfind(|call| call.method == method).unwrap().at;
    let stop = last("instances.stop").since(last("instances.get"));
    assert!(stop <= seconds(10), "{stop:?}");
}

#[tokio::test(start_paused = true)]
async fn one_source_confirms_only_what_it_said_a_moment_ago() {
    let (mut world, body) = an_idle_vm().await;
    world.cloud.github.forbid(Permission::Actions);
    let now = world.clock.now().unix_seconds();
    let task = |refused: &str, confirming_at: u64| {
        body.replace(
            '}',
            &format!(r#", "refused": [{refused}], "confirming_at": {confirming_at}}}"#),
        )
    };
    let first = world.callback("/runner/stop", &task("", now - 60)).await;
    assert_eq!(first.body["status"], "unknown", "a single refusal is no answer: {first:?}");
    let late = world.callback("/runner/stop", &task(r#""jobs""#, now - 600)).await;
    assert_eq!(late.body["status"], "confirming", "{late:?}");
    let prompt = world.callback("/runner/stop", &task(r#""jobs""#, now - 60)).await;
    assert_eq!(prompt.body["status"], "stopping", "{prompt:?}");
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn neither_a_confirmation_nor_a_day_of_blindness_outlives_what_interrupts_it() {
    let (world, body) = an_idle_vm().await;
    world.cloud.compute.label_by_hand("gpu-1", "runner-manager-hold", Some(""));
    let now = world.clock.now().unix_seconds();
    let confirmed = body.replace('}', &format!(r#", "confirming_at": {now}}}"#));
    assert_eq!(world.callback("/runner/stop", &confirmed).await.body["status"], "held");
    assert_eq!(world.cloud.tasks.pending()[0].body.get("confirming_at"), None);

    let (mut world, body) = an_idle_vm().await;
    world.cloud.github.lose_next_webhook(2);
    world.queue_job("acme/app", "self-hosted gpu", minutes(60));
    world.pass(minutes(1)).await;
    let blind = body.replace('}', r#", "forbidden_since": 1795510800}"#);
    assert_eq!(world.callback("/runner/stop", &blind).await.body["status"], "busy");
    assert_eq!(world.cloud.tasks.pending()[0].body.get("forbidden_since"), None);
}

#[tokio::test(start_paused = true)]
async fn a_job_of_a_large_matrix_is_found_on_the_second_page() {
    let mut world = World::new();
    world.cloud.github.busy_glitch("runner-1", true);
    let labels = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let mut jobs = vec![(labels("ubuntu-latest"), minutes(1)); 120];
    jobs.push((labels("self-hosted"), minutes(30)));
    let last = *world.cloud.github.queue_run("acme/app", jobs).last().unwrap();
    world.pass_until(minutes(60), |world| world.is_completed(last)).await;
    assert_eq!(world.starts("runner-1"), 1, "the VM stayed up\n{}", world.story());
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_an_operator_holds_is_not_stopped_until_it_is_released() {
    const GPU: &str = r#"{"vm_instance_name": "gpu-1"}"#;
    let mut world = World::new();
    let job = world.queue_job("acme/app", "self-hosted gpu", minutes(1));
    world.pass_until(minutes(5), |world| world.is_completed(job)).await;
    world.command("/runner/hold", GPU).await;
    world.pass(minutes(120)).await;
    assert_eq!(world.status("gpu-1"), Status::Running);
    assert!(world.was_told("held"), "{}", world.story());
    world.command("/runner/release", GPU).await;
    world.pass_until(minutes(5), |world| world.is_stopped("gpu-1")).await;
    world.settle().await;
}

/// A job on `runner-1`, whose flag says that it has none. The pass that carried the job is lost.
async fn a_job_that_only_the_lists_tell_of() -> (World, String) {
    let mut world = World::new();
    let job = world.queue_job("acme/app", "self-hosted", minutes(60));
    world.pass_until(minutes(3), |world| world.is_started(job)).await;
    world.pass(minutes(6)).await;
    world.cloud.github.busy_glitch("runner-1", true);
    world.cloud.tasks.purge();
    let body = format!(
        r#"{{"vm_instance_name": "runner-1", "vm_instance_zone": "{ZONE}", "unmarked": true}}"#
    );
    (world, body)
}

#[tokio::test(start_paused = true)]
async fn an_empty_search_index_stops_no_vm_under_its_job() {
    let (world, body) = a_job_that_only_the_lists_tell_of().await;
    world.cloud.github.search_index_down(true);
    let shown = world.callback("/runner/stop", &body).await;
    assert!(shown.outcome.contains("is running on it"), "{shown:?}");
    // A hundred newer runs hide it: then the lists are incomplete.
    for _ in 0..100 {
        world.queue_job("acme/app", "ubuntu-latest", minutes(60));
    }
    tokio::time::sleep(seconds(60)).await;
    let hidden = world.callback("/runner/stop", &body).await;
    assert!(hidden.outcome.contains("unknown: the open jobs were not all read"), "{hidden:?}");
    assert!(hidden.outcome.contains("GitHub's list of open runs does not show it"), "{hidden:?}");
}

#[tokio::test(start_paused = true)]
async fn a_run_that_begins_during_a_scan_does_not_put_its_lists_in_doubt() {
    let (world, body) = a_job_that_only_the_lists_tell_of().await;
    for job in world.cloud.github.jobs() {
        world.cloud.github.cancel_job(job.id);
    }
    let github = world.cloud.github.clone();
    let mut once = true;
    world.cloud.faults.on(move |call| {
        let last =
            call.method == "actions.listWorkflowRunsForRepo" && !call.target.contains("status=");
        if last && std::mem::take(&mut once) {
            github.queue_job("acme/app", ["ubuntu-latest"], minutes(1));
        }
        None
    });
    let answer = world.callback("/runner/stop", &body).await;
    assert_eq!(answer.body["status"], "stopping", "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn limits_in_any_words_are_no_missing_permission() {
    for limit in [ErrorBody::abuse_limit(), ErrorBody::secondary_limit()] {
        let (mut world, body) = an_idle_vm().await;
        let refused = Fault::Before(StatusCode::FORBIDDEN, limit);
        world.cloud.faults.on(move |call| {
            (call.method == "actions.listWorkflowRunsForRepo").then(|| refused.clone())
        });
        for _ in 0..3 {
            let answer = world.callback("/runner/stop", &body).await;
            assert!(
                answer.outcome.contains("unknown: the open jobs were not all read"),
                "{answer:?}"
            );
            world.pass(minutes(1)).await;
        }
        assert_eq!(world.status("gpu-1"), Status::Running);
    }
}
