//! Pools: as many VMs are up as jobs wait and run, as far as the pool goes.

use std::time::Duration;

use runner_manager::clock::Timestamp;
use runner_manager::emulators::compute::{Instance, Status};
use runner_manager::emulators::github::{Delivery, JobId, JobStatus, Permission};
use runner_manager::emulators::{CallInfo, Fault};

use crate::world::{World, ZONE, minutes, runner, seconds};

/// Another zone, for the last VM of a pool.
const OTHER_ZONE: &str = "us-east1-b";

/// The VMs of the pool.
fn names(size: usize) -> Vec<String> {
    (1..=size).map(|nth| format!("pool-{nth}")).collect()
}

/// A pool of VMs of `acme/app`; the last is in another zone.
fn pool(size: usize) -> World {
    let zone = |nth: usize| if nth + 1 == size && size > 1 { OTHER_ZONE } else { ZONE };
    let entry = |(nth, vm): (usize, &String)| {
        format!(
            r#"{{"repo": "acme/app", "labels": ["self-hosted", "pool"], "vm_instance_name": "{vm}", "vm_instance_zone": "{}"}}"#,
            zone(nth)
        )
    };
    let entries: Vec<_> = names(size).iter().enumerate().map(entry).collect();
    let world = World::with_config(format!("[{}]", entries.join(", ")));
    for (nth, vm) in names(size).iter().enumerate() {
        let instance = Instance::new(vm, zone(nth));
        world.cloud.compute.insert(Instance { status: Status::Terminated, ..instance });
        world.cloud.github.add_runner(runner(vm, "acme/app", "self-hosted linux x64 pool"));
    }
    world
}

fn queue(world: &World, runs: Duration) -> JobId {
    world.queue_job("acme/app", "self-hosted pool", runs)
}

fn starts(world: &World, size: usize) -> Vec<usize> {
    names(size).iter().map(|vm| world.starts(vm)).collect()
}

fn was_accepted(delivery: &Delivery) -> bool {
    let reply = delivery.reply.as_ref().and_then(|reply| reply.status);
    reply.is_some_and(|status| status.is_success())
}

fn all_completed(world: &World) -> bool {
    world.cloud.github.jobs().iter().all(|job| job.status == JobStatus::Completed)
}

#[tokio::test(start_paused = true)]
async fn one_job_starts_one_vm_also_when_it_is_delivered_twice() {
    let mut world = pool(3);
    let job = queue(&world, minutes(12));
    world.pass(seconds(20)).await;
    let again = |world: &World| {
        let deliveries = world.cloud.github.deliveries();
        world.cloud.github.redeliver(&deliveries[0].guid);
    };
    again(&world);
    world.pass(minutes(8)).await;
    // Its claim is old by now.
    again(&world);
    world.pass_until(minutes(20), |world| world.is_completed(job)).await;
    again(&world);
    world.settle().await;
    assert_eq!(starts(&world, 3), [1, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_second_job_wakes_the_second_vm() {
    let mut world = pool(3);
    let first = queue(&world, minutes(20));
    world.pass(minutes(8)).await;
    let second = queue(&world, minutes(2));
    world.pass_until(minutes(5), |world| world.is_completed(second)).await;
    assert!(!world.is_completed(first));
    world.settle().await;
    assert_eq!(starts(&world, 3), [1, 1, 0]);
    // It stopped long before the first.
    assert!(world.last("pool-2", Status::Terminated) < world.last("pool-1", Status::Terminated));
}

#[tokio::test(start_paused = true)]
async fn a_matrix_has_all_vms_up_within_two_minutes_and_starts_none_twice() {
    let mut world = pool(4);
    let labels = || vec!["self-hosted".to_owned(), "pool".to_owned()];
    world.cloud.github.queue_run("acme/app", vec![(labels(), minutes(3)); 40]);
    let all_up = |world: &World| names(4).iter().all(|vm| world.status(vm) == Status::Running);
    world.pass_until(minutes(2), all_up).await;
    world.pass_until(minutes(60), all_completed).await;
    world.settle().await;
    assert_eq!(starts(&world, 4), [1, 1, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_matrix_that_several_instances_handle_starts_no_vm_twice() {
    let mut world = pool(4);
    for _ in 0..6 {
        queue(&world, minutes(3));
        // The next delivery comes to another instance, while this one is being handled.
        world.pass(Duration::from_millis(20)).await;
        world.service().replace();
    }
    world.pass_until(minutes(20), all_completed).await;
    world.settle().await;
    assert_eq!(starts(&world, 4), [1, 1, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_zone_without_machines_leads_to_the_next_vm_within_a_pass() {
    let mut world = pool(2);
    world.cloud.compute.stockout(ZONE, true);
    let job = queue(&world, minutes(30));
    world.pass_until(minutes(4), |world| world.is_started(job)).await;
    let ran_on = world.cloud.github.job(job).runner_name;
    assert_eq!(ran_on.as_deref(), Some("pool-2"));
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn without_machines_in_any_zone_every_vm_is_tried_until_one_starts() {
    for zone in [ZONE, OTHER_ZONE] {
        let mut world = pool(2);
        for zone in [ZONE, OTHER_ZONE] {
            world.cloud.compute.stockout(zone, true);
        }
        let job = queue(&world, minutes(3));
        world.pass(minutes(30)).await;
        assert!(!world.is_started(job));
        world.cloud.compute.stockout(zone, false);
        world.pass_until(minutes(8), |world| world.is_started(job)).await;
        world.cloud.compute.stockout(ZONE, false);
        world.cloud.compute.stockout(OTHER_ZONE, false);
        world.settle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_cancelled_before_its_vm_is_up_costs_one_boot_at_most() {
    let mut world = pool(3);
    let job = queue(&world, minutes(3));
    world.pass(seconds(10)).await;
    world.cloud.github.cancel_job(job);
    world.settle().await;
    assert!(starts(&world, 3).iter().sum::<usize>() <= 1);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_waits_for_a_busy_vm_is_handed_on() {
    let mut world = pool(2).vm("pool-1", Status::Running);
    // Its webhook is lost, so no claim tells that the VM is busy.
    world.cloud.github.lose_next_webhook(1);
    queue(&world, minutes(60));
    world.pass(seconds(30)).await;
    let second = queue(&world, minutes(2));
    world.pass_until(minutes(5), |world| world.is_started(second)).await;
    assert_eq!(starts(&world, 2), [0, 1]);
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn jobs_whose_webhooks_are_lost_are_found_by_the_resync() {
    let mut world = pool(3);
    let first = queue(&world, minutes(4));
    world.pass_until(minutes(3), |world| world.is_started(first)).await;
    world.cloud.github.lose_next_webhook(4);
    let more = [queue(&world, minutes(30)), queue(&world, minutes(30)), queue(&world, minutes(30))];
    world.pass(seconds(5)).await;
    world.resync().await;
    // The first VM is busy for another few minutes, and then takes the third of them.
    world.pass_until(minutes(7), |world| more.iter().all(|job| world.is_started(*job))).await;
    assert_eq!(starts(&world, 3), [1, 1, 1]);
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_is_preempted_comes_back_or_another_one_does() {
    let mut world = pool(2);
    let jobs = [queue(&world, minutes(20)), queue(&world, minutes(20))];
    world.pass_until(minutes(4), |world| jobs.iter().all(|job| world.is_started(*job))).await;
    world.cloud.compute.preempt("pool-1");
    world.pass_until(minutes(60), all_completed).await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn two_repositories_share_a_vm_of_their_pools() {
    let entry = |repo: &str, vm: &str| {
        format!(
            r#"{{"repo": "{repo}", "labels": ["self-hosted", "pool"], "vm_instance_name": "{vm}", "vm_instance_zone": "{ZONE}"}}"#
        )
    };
    let entries =
        [("acme/app", "a"), ("acme/app", "shared"), ("acme/web", "shared"), ("acme/web", "b")];
    let config = entries.map(|(repo, vm)| entry(repo, vm)).join(", ");
    let mut world = World::with_config(format!("[{config}]"));
    for (repo, vm) in entries {
        if !world.cloud.compute.instances().iter().any(|known| known == vm) {
            let instance = Instance { status: Status::Terminated, ..Instance::new(vm, ZONE) };
            world.cloud.compute.insert(instance);
        }
        world.cloud.github.add_runner(runner(vm, repo, "self-hosted pool"));
    }
    let jobs = ["acme/app", "acme/web", "acme/app", "acme/web"]
        .map(|repo| world.queue_job(repo, "self-hosted pool", minutes(6)));
    world.pass_until(minutes(12), |world| jobs.iter().all(|job| world.is_started(*job))).await;
    world.settle().await;
    assert_eq!(["a", "shared", "b"].map(|vm| world.starts(vm)), [1, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn several_runners_on_one_vm_count_as_that_many() {
    let entry = |vm: &str, names: &str| {
        format!(
            r#"{{"repo": "acme/app", "labels": ["self-hosted", "pool"], "vm_instance_name": "{vm}", "vm_instance_zone": "{ZONE}", "runner_names": ["{names}"]}}"#
        )
    };
    let mut world =
        World::with_config(format!("[{}, {}]", entry("big", "big-*"), entry("small", "small")));
    for vm in ["big", "small"] {
        let instance = Instance { status: Status::Terminated, ..Instance::new(vm, ZONE) };
        world.cloud.compute.insert(instance);
    }
    for name in ["big-1", "big-2", "big-3"] {
        world.cloud.github.add_runner(runner(name, "acme/app", "self-hosted pool").on("big"));
    }
    world.cloud.github.add_runner(runner("small", "acme/app", "self-hosted pool"));
    let first = queue(&world, minutes(9));
    world.pass_until(minutes(3), |world| world.is_started(first)).await;
    let more = [queue(&world, minutes(9)), queue(&world, minutes(9))];
    world.pass_until(minutes(1), |world| more.iter().all(|job| world.is_started(*job))).await;
    assert_eq!(world.starts("small"), 0);
    let last = queue(&world, minutes(2));
    world.pass_until(minutes(5), |world| world.is_started(last)).await;
    assert_eq!((world.starts("big"), world.starts("small")), (1, 1));
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn without_labels_a_burst_still_brings_up_the_pool() {
    let mut world = pool(3);
    world.cloud.compute.forbid("compute.instances.setLabels");
    let jobs: Vec<_> = (0..3).map(|_| queue(&world, minutes(10))).collect();
    world.pass_until(minutes(6), |world| jobs.iter().all(|job| world.is_started(*job))).await;
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_webhook_reads_one_vm_more_for_each_that_is_taken() {
    let mut world = pool(3);
    let mut costs = Vec::new();
    for _ in 0..4 {
        world.cloud.clear_calls();
        queue(&world, minutes(4));
        world.pass(seconds(5)).await;
        let calls = world.cloud.calls();
        let count = |method: &str| calls.iter().filter(|call| call.method == method).count();
        let github = calls.iter().filter(|call| call.api == runner_manager::emulators::Api::GitHub);
        costs.push((
            count("instances.get"),
            count("tasks.create"),
            count("instances.setLabels"),
            count("instances.start"),
            github.count(),
        ));
    }
    // The last finds no VM, and reads the first once more.
    assert_eq!(costs, [(1, 1, 1, 1, 0), (2, 1, 1, 1, 0), (3, 1, 1, 1, 0), (4, 1, 0, 0, 0)]);
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_crash_between_any_two_calls_of_a_placement_strands_no_job() {
    for call in 0..8 {
        let mut world = pool(2);
        let service = world.service();
        let left = std::sync::atomic::AtomicI64::new(call);
        world.cloud.faults.on(move |_: &CallInfo| {
            if left.fetch_sub(1, std::sync::atomic::Ordering::Relaxed) == 0 {
                service.vanish();
                return Some(Fault::Lost);
            }
            None
        });
        let job = queue(&world, minutes(2));
        world.pass(seconds(30)).await;
        world.cloud.faults.off();
        let deliveries = world.cloud.github.deliveries();
        if deliveries.iter().all(|delivery| !was_accepted(delivery)) {
            world.cloud.github.redeliver(&deliveries[0].guid);
        }
        world.pass_until(minutes(8), |world| world.is_completed(job)).await;
        world.settle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn without_permission_to_read_runners_the_pool_goes_by_its_claims() {
    let mut world = pool(3);
    world.cloud.github.forbid(Permission::Administration);
    world.cloud.github.forbid(Permission::OrgRunners);
    let jobs: Vec<_> = (0..3).map(|_| queue(&world, minutes(10))).collect();
    world.pass_until(minutes(6), |world| jobs.iter().all(|job| world.is_started(*job))).await;
    world.settle().await;
    let begun: Vec<Option<Timestamp>> =
        jobs.iter().map(|job| world.cloud.github.job(*job).started_at).collect();
    assert!(begun.iter().all(Option::is_some));
}

#[tokio::test(start_paused = true)]
async fn the_status_shows_the_pool_and_the_claim() {
    let mut world = pool(2);
    let job = queue(&world, minutes(3));
    world.pass(seconds(5)).await;
    let report = world.report().await;
    let vm = |name: &str| {
        let vms = report["vms"].as_array().unwrap();
        vms.iter().find(|vm| vm["vm_instance_name"] == name).unwrap().clone()
    };
    assert_eq!(vm("pool-1")["claimed_for"], serde_json::json!([job.0]));
    assert_eq!(vm("pool-2")["claimed_for"], serde_json::json!([]));
    assert_eq!(vm("pool-2")["entries"][0]["pool"], serde_json::json!(["pool-1", "pool-2"]));
    world.settle().await;
}
