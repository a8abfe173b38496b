//! The cost of an event: calls to Google and GitHub, in sequence and in total. Each takes [`ROUND`]; they are most of a
//! delivery's time.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use http::StatusCode;
use runner_manager::emulators::compute::Status;
use runner_manager::emulators::{Api, ErrorBody, Fault};
use serde_json::{Value, json};

use crate::world::{Answer, World, minutes, seconds};

/// The round-trip time of a call.
const ROUND: Duration = Duration::from_millis(30);

const QUEUED: &str = include_str!("../fixtures/workflow_job.queued.json");
const COMPLETED: &str = include_str!("../fixtures/workflow_job.completed.json");

/// A delivery about a job of runner-1.
fn about(fixture: &str, job: u64) -> String {
    let mut event: Value = serde_json::from_str(fixture).unwrap();
    event["repository"]["full_name"] = "acme/app".into();
    event["workflow_job"]["id"] = job.into();
    event["workflow_job"]["labels"] = json!(["self-hosted"]);
    event["workflow_job"]["runner_name"] = "runner-1".into();
    event.to_string()
}

/// A world whose calls take effect at once and are answered a round later.
fn world_of_rounds() -> World {
    let world = World::new();
    world.cloud.faults.on(|_| Some(Fault::Late(ROUND)));
    world
}

/// The calls since the world began or was cleared, with the round of each.
fn rounds(world: &World) -> Vec<(u128, &'static str)> {
    let calls = world.cloud.calls();
    let Some(first) = calls.iter().map(|call| call.at).min() else { return Vec::new() };
    let round =
        |at: runner_manager::clock::Timestamp| at.since(first).as_millis() / ROUND.as_millis() + 1;
    let mut all: Vec<_> = calls.iter().map(|call| (round(call.at), call.method)).collect();
    all.sort_unstable();
    all
}

async fn deliver(world: &World, body: &str) -> Answer {
    world.webhook("workflow_job", body).await
}

#[track_caller]
fn is_accepted(answer: &Answer, job: u64) {
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert!(answer.outcome.contains(&format!("job {job}")), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stopped_vm_is_started_in_the_second_round_which_answers() {
    let world = world_of_rounds();
    let began = world.clock.now();
    is_accepted(&deliver(&world, &about(QUEUED, 1)).await, 1);
    assert_eq!(world.clock.now().since(began), 2 * ROUND);
    assert_eq!(
        rounds(&world),
        [
            (1, "instances.get"),
            (1, "tasks.create"),
            (2, "instances.setLabels"),
            (2, "instances.start"),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_is_up_and_freshly_labelled_is_read_and_gets_its_pass_in_one_round() {
    let world = world_of_rounds().vm("runner-1", Status::Running);
    deliver(&world, &about(QUEUED, 1)).await;
    world.cloud.clear_calls();
    let began = world.clock.now();
    is_accepted(&deliver(&world, &about(QUEUED, 2)).await, 2);
    assert_eq!(world.clock.now().since(began), ROUND);
    assert_eq!(rounds(&world), [(1, "instances.get"), (1, "tasks.create")]);
}

#[tokio::test(start_paused = true)]
async fn a_completed_job_takes_two_rounds_and_another_of_the_same_half_minute_one() {
    let world = world_of_rounds().vm("runner-1", Status::Running);
    is_accepted(&deliver(&world, &about(COMPLETED, 1)).await, 1);
    assert_eq!(
        rounds(&world),
        [(1, "instances.get"), (1, "tasks.create"), (2, "instances.setLabels")]
    );
    world.cloud.clear_calls();
    is_accepted(&deliver(&world, &about(COMPLETED, 2)).await, 2);
    assert_eq!(rounds(&world), [(1, "instances.get"), (1, "tasks.create")]);
}

#[tokio::test(start_paused = true)]
async fn a_matrix_that_arrives_at_once_costs_what_one_job_costs() {
    let world = world_of_rounds();
    for (fixture, calls) in [(QUEUED, 4), (COMPLETED, 3)] {
        world.cloud.clear_calls();
        let began = world.clock.now();
        let bodies: Vec<_> = (1..=256).map(|job| about(fixture, job)).collect();
        let answers = join_all(bodies.iter().map(|body| deliver(&world, body))).await;
        for (job, answer) in (1..=256).zip(&answers) {
            is_accepted(answer, job);
        }
        assert_eq!(rounds(&world).len(), calls, "{:?}", rounds(&world));
        assert!(world.clock.now().since(began) <= 2 * ROUND);
        tokio::time::sleep(seconds(60)).await;
    }
    assert_eq!(world.starts("runner-1"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_delivery_that_joins_late_waits_for_the_rest_only_and_a_later_one_begins_anew() {
    let world = world_of_rounds();
    let (began, queued) = (world.clock.now(), [1, 2, 3].map(|job| about(QUEUED, job)));
    let late = async {
        tokio::time::sleep(ROUND + ROUND / 2).await;
        deliver(&world, &queued[1]).await
    };
    let (first, second) = tokio::join!(deliver(&world, &queued[0]), late);
    is_accepted(&first, 1);
    is_accepted(&second, 2);
    assert_eq!(world.clock.now().since(began), 2 * ROUND);
    assert_eq!(rounds(&world).len(), 4, "{:?}", rounds(&world));
    // The VM boots and has its label.
    is_accepted(&deliver(&world, &queued[2]).await, 3);
    assert_eq!(rounds(&world).len(), 6, "{:?}", rounds(&world));
}

#[tokio::test(start_paused = true)]
async fn when_the_first_hangs_up_the_others_go_on_where_it_was() {
    let world = world_of_rounds();
    let (first, second) = (about(QUEUED, 1), about(QUEUED, 2));
    let first = tokio::time::timeout(ROUND + ROUND / 2, deliver(&world, &first));
    let (first, second) = tokio::join!(first, deliver(&world, &second));
    assert!(first.is_err());
    is_accepted(&second, 2);
    assert_eq!(rounds(&world).len(), 4, "{:?}", rounds(&world));
    assert_eq!(world.starts("runner-1"), 1);
}

#[tokio::test(start_paused = true)]
async fn when_all_hang_up_nothing_goes_on() {
    let world = world_of_rounds();
    let body = about(QUEUED, 1);
    assert!(tokio::time::timeout(ROUND / 2, deliver(&world, &body)).await.is_err());
    tokio::time::sleep(10 * ROUND).await;
    assert_eq!((world.cloud.tasks.pending().len(), world.starts("runner-1")), (1, 0));
    // The next one finds no call to share.
    is_accepted(&deliver(&world, &about(QUEUED, 2)).await, 2);
    assert_eq!(world.starts("runner-1"), 1);
}

#[tokio::test(start_paused = true)]
async fn work_that_failed_for_the_first_delivery_is_tried_again_by_each_of_the_others() {
    let world = world_of_rounds();
    world.cloud.faults.next("tasks.create", Fault::Before(StatusCode::BAD_REQUEST, ErrorBody::Api));
    let (first, second) = (about(QUEUED, 1), about(QUEUED, 2));
    let (first, second) = tokio::join!(deliver(&world, &first), deliver(&world, &second));
    assert_eq!(first.status, StatusCode::BAD_GATEWAY);
    is_accepted(&second, 2);
}

#[tokio::test(start_paused = true)]
async fn deliveries_of_two_half_minutes_share_nothing() {
    let world = world_of_rounds();
    let end = Duration::from_millis(30_000 - world.clock.now().unix_millis() % 30_000);
    tokio::time::sleep(end - ROUND / 2).await;
    let (first, second) = (about(QUEUED, 1), about(QUEUED, 2));
    let later = async {
        tokio::time::sleep(ROUND).await;
        deliver(&world, &second).await
    };
    let (first, second) = tokio::join!(deliver(&world, &first), later);
    is_accepted(&first, 1);
    is_accepted(&second, 2);
    let idle_since = (world.clock.now().unix_seconds() + 1).next_multiple_of(30);
    assert_eq!(
        world.idle_since("runner-1"),
        Some(idle_since),
        "the later half minute's label is not written"
    );
}

#[tokio::test(start_paused = true)]
async fn jobs_of_two_vms_share_nothing() {
    let world = world_of_rounds();
    let gpu = about(QUEUED, 2).replace(r#"["self-hosted"]"#, r#"["self-hosted","gpu"]"#);
    let body = about(QUEUED, 1);
    let (first, second) = tokio::join!(deliver(&world, &body), deliver(&world, &gpu));
    is_accepted(&first, 1);
    is_accepted(&second, 2);
    assert_eq!((world.starts("runner-1"), world.starts("gpu-1")), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_queued_and_a_completed_job_share_nothing() {
    let world = world_of_rounds().vm("runner-1", Status::Running);
    let (queued, completed) = (about(QUEUED, 1), about(COMPLETED, 2));
    let (queued, completed) = tokio::join!(deliver(&world, &queued), deliver(&world, &completed));
    is_accepted(&queued, 1);
    is_accepted(&completed, 2);
    let tasks = world.cloud.tasks.pending();
    let carrying = tasks.iter().filter(|task| task.body["job"].is_object()).count();
    assert_eq!((carrying, tasks.len()), (1, 2), "{tasks:?}");
}

#[tokio::test(start_paused = true)]
async fn a_pass_asks_about_runs_that_are_not_over_only() {
    let mut cost = Vec::new();
    for (over, active) in [(0, 0), (300, 0), (300, 3)] {
        let mut world = World::new().vm("runner-1", Status::Running);
        for _ in 0..over {
            let job = world.queue_job("acme/app", "ubuntu-latest", seconds(1));
            world.cloud.github.cancel_job(job);
        }
        for _ in 0..active {
            world.queue_job("acme/app", "ubuntu-latest", minutes(60));
        }
        world.pass(seconds(1)).await;
        world.cloud.clear_calls();
        let now = world.clock.now().unix_seconds();
        let body = format!(
            r#"{{"vm_instance_name": "runner-1", "vm_instance_zone": "asia-northeast1-a", "unmarked": true, "due": {now}}}"#
        );
        let answer = world.callback("/runner/stop", &body).now_or_never().unwrap();
        assert_eq!(answer.body["status"], "stopping", "{answer:?}");
        cost.push((world.cloud.calls().len(), world.count("actions.listJobsForWorkflowRun")));
    }
    let least = cost[0].0;
    // Each active run is in its list; a queued one is listed twice, since runs move.
    assert_eq!(cost, [(least, 0), (least, 0), (least + cost[2].1, cost[2].1)]);
    assert!(cost[2].1 <= 6, "{cost:?}");
}

#[tokio::test(start_paused = true)]
async fn github_is_asked_for_one_token_an_hour() {
    let world = World::new().vm("runner-1", Status::Running);
    let method = "apps.createInstallationAccessToken";
    for _ in 0..11 {
        world.command("/runner/stop", r#"{"vm_instance_name": "runner-1"}"#).await;
        world.cloud.compute.set_status("runner-1", Status::Running);
        tokio::time::sleep(minutes(5)).await;
    }
    assert_eq!(world.count(method), 1);
    // The token is good for an hour, and not used in the last five minutes of that.
    tokio::time::sleep(minutes(1)).await;
    world.command("/runner/stop", r#"{"vm_instance_name": "runner-1"}"#).await;
    assert_eq!(world.count(method), 2);
}

#[tokio::test(start_paused = true)]
async fn a_start_that_is_refused_is_tried_again_only_if_the_vm_has_changed() {
    // A missing permission says nothing about the VM; a state that does not fit may have changed since it was read.
    for (status, reads) in [(StatusCode::FORBIDDEN, 1), (StatusCode::BAD_REQUEST, 2)] {
        let world = World::new();
        world.cloud.faults.next("instances.start", Fault::Before(status, ErrorBody::Api));
        let answer = deliver(&world, &about(QUEUED, 1)).await;
        assert!(answer.outcome.contains("the VM was not started"), "{answer:?}");
        assert_eq!((world.count("instances.get"), world.count("instances.start")), (reads, 1));
    }
}

/// The calls to GitHub since the last clearing.
fn calls_to_github(world: &World) -> usize {
    world.cloud.calls().iter().filter(|call| call.api == Api::GitHub).count()
}

/// A world in which `gpu-1` is up and was last needed so many minutes ago, and the pass of that time.
async fn last_needed(minutes_ago: u64) -> (World, String) {
    let mut world = World::new().vm("gpu-1", Status::Running);
    world.pass(minutes(20)).await;
    // Fetches the tokens.
    world.command("/runner/stop", r#"{"vm_instance_name": "gpu-1"}"#).await;
    world.pass(minutes(3)).await;
    world.cloud.compute.set_status("gpu-1", Status::Running);
    world.pass(minutes(6)).await;
    let idle_since = world.clock.now().unix_seconds() / 30 * 30 - 60 * minutes_ago;
    let label = idle_since.to_string();
    world.cloud.compute.label_by_hand("gpu-1", "runner-manager-idle-since", Some(&label));
    world.cloud.clear_calls();
    let body = format!(
        r#"{{"vm_instance_name": "gpu-1", "vm_instance_zone": "asia-northeast1-a", "idle_since": {idle_since}}}"#
    );
    (world, body)
}

#[tokio::test(start_paused = true)]
async fn a_superseded_pass_is_one_call_and_with_a_job_in_evidence_two() {
    let (mut world, _) = last_needed(10).await;
    let older = r#"{"vm_instance_name": "gpu-1", "vm_instance_zone": "asia-northeast1-a", "idle_since": 30"#;
    assert_eq!(
        world.callback("/runner/stop", &format!("{older}}}")).await.body["status"],
        "superseded"
    );
    assert_eq!(rounds(&world), [(1, "instances.get")]);
    let job = world.queue_job("acme/app", "self-hosted gpu", seconds(1));
    world.cloud.github.cancel_job(job);
    world.pass(seconds(1)).await;
    let label = world.idle_since("gpu-1").unwrap();
    assert!(label > 30);
    world.cloud.clear_calls();
    let body = format!(
        r#"{older}, "job": {{"repo": "acme/app", "id": {job}, "queued_at": 1795510800}}}}"#
    );
    assert_eq!(world.callback("/runner/stop", &body).await.body["status"], "superseded");
    assert_eq!(world.cloud.calls().len(), 2, "{:?}", rounds(&world));
}

#[tokio::test(start_paused = true)]
async fn a_pass_before_stop_after_reads_the_vm_creates_the_next_and_asks_github_nothing() {
    let (world, body) = last_needed(1).await;
    assert_eq!(world.callback("/runner/stop", &body).await.body["status"], "stop_scheduled");
    let mut calls: Vec<_> = world.cloud.calls().iter().map(|call| call.method).collect();
    calls.sort_unstable();
    assert_eq!(calls, ["instances.get", "tasks.create"]);
}

#[tokio::test(start_paused = true)]
async fn an_idle_stop_is_thirteen_calls_nine_of_them_to_github() {
    let (world, body) = last_needed(10).await;
    assert_eq!(world.callback("/runner/stop", &body).await.body["status"], "stopping");
    // Two reads, the next pass, the stop; two lists of runners, six of runs by status, and the newest runs.
    assert_eq!(
        (world.cloud.calls().len(), calls_to_github(&world)),
        (13, 9),
        "{:?}",
        rounds(&world)
    );
}

#[tokio::test(start_paused = true)]
async fn an_hour_of_work_is_thirteen_calls_to_github() {
    let mut world = World::new();
    let job = world.queue_job("acme/app", "self-hosted gpu", minutes(180));
    world.pass_until(minutes(5), |world| world.is_started(job)).await;
    world.pass(minutes(30)).await;
    world.cloud.clear_calls();
    world.pass(minutes(60)).await;
    let (all, github) = (world.cloud.calls().len(), calls_to_github(&world));
    // Twelve passes: read, query the job, create the next. And a token.
    assert_eq!((github, all), (13, 37), "{:?}", rounds(&world));
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_is_down_with_nothing_waiting_costs_nothing() {
    let mut world = World::new();
    let job = world.queue_job("acme/app", "self-hosted gpu", minutes(1));
    world.pass_until(minutes(5), |world| world.is_completed(job)).await;
    world.settle().await;
    world.cloud.clear_calls();
    world.pass(minutes(24 * 60)).await;
    assert!(world.cloud.calls().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_short_job_costs_thirty_three_calls_until_its_vm_is_down() {
    let mut world = World::new();
    let job = world.queue_job("acme/app", "self-hosted gpu", minutes(1));
    world.pass_until(minutes(5), |world| world.is_completed(job)).await;
    world.settle().await;
    let (all, github) = (world.cloud.calls().len(), calls_to_github(&world));
    assert_eq!((all, github), (33, 20), "{:?}", rounds(&world));
}
