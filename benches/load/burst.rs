//! A matrix floods in: 256 jobs are queued within two seconds, and later completed within two.
//!
//! The service keeps no state, so deliveries that overlap each read the VM, and each would start and mark it. All
//! the same there is one start, a mark no older than the last event, and a handful of tasks. An API that takes its
//! time lets far more of them overlap; a half minute that ends in mid-flood lets them write different marks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::join_all;
use runner_manager::clients::transport::BoxError;
use runner_manager::clock::Timestamp;
use runner_manager::emulators::compute::{Status, Timings};
use runner_manager::emulators::{Call, Fault};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::stage::{CONCURRENCY, Connections, GITHUB_WAITS, REPO, SECRET, Stage, vm, workflow_job};
use crate::{Dice, Findings, percentile};

const SEED: u64 = 256;
const DELIVERIES: u32 = 256;
const WITHIN: Duration = Duration::from_secs(2);

/// What the due times of tasks are rounded to. In each such span a VM gets a start check, a lease and a stop
/// task at most.
const BUCKET: u64 = 30;
const TASKS_IN_A_BUCKET: usize = 3;

/// How long a call takes where the API takes its time, in milliseconds.
const SLOW: (u64, u64) = (40, 250);

/// One flood of deliveries, and what came of it.
struct Flood {
    began: Timestamp,
    /// When each was sent.
    sent: Vec<Timestamp>,
    latencies: Vec<Duration>,
    refused: Vec<String>,
    calls: Vec<Call>,
    /// How many VMs were started in it.
    starts: usize,
    /// Of the VM that has the most.
    tasks: usize,
}

pub(crate) async fn run() -> Result<Findings, BoxError> {
    let mut findings = Findings::default();
    println!(
        "{DELIVERIES} deliveries within {} s, at most {CONCURRENCY} at a time; seed {SEED}\n\
         latencies from the time at which a delivery is due; API calls in all (for each delivery)",
        WITHIN.as_secs()
    );
    for (vms, slow) in [(1, false), (1, true), (4, false), (4, true)] {
        scene(vms, slow, &mut findings).await?;
    }
    Ok(findings)
}

async fn scene(vms: usize, slow: bool, findings: &mut Findings) -> Result<(), BoxError> {
    let pace = if slow {
        format!("the API takes {} to {} ms", SLOW.0, SLOW.1)
    } else {
        "the API answers at once".to_owned()
    };
    let name = format!("{vms} VM(s), {pace}");
    let mut stage = Stage::new(vms, 3, Connections::Kept).await?;
    stage.cloud.compute.timings(Timings { boot: Duration::from_secs(6), ..Timings::default() });
    if slow {
        let mut dice = Dice(SEED);
        stage.cloud.faults.on(move |_| {
            let span = dice.millis(SLOW.0, SLOW.1);
            // On the way there, or on the way back: the call has its effect after the time, or before it.
            Some(if dice.roll().is_multiple_of(2) { Fault::Delay(span) } else { Fault::Late(span) })
        });
    }
    end_of_half_minute(&stage).await;
    let queued = flood(&stage, "queued", vms).await?;
    let up = |stage: &Stage| {
        (1..=vms).all(|number| stage.cloud.compute.status(&vm(number)) == Status::Running)
    };
    for _ in 0..300 {
        if up(&stage) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    end_of_half_minute(&stage).await;
    let completed = flood(&stage, "completed", vms).await?;

    for (event, flood) in [("queued", &queued), ("completed", &completed)] {
        check_flood(findings, &format!("{name}: {event}"), flood, queued.began);
    }
    check_vms(findings, &name, &stage, vms, &completed);
    let said = stage.program.end();
    findings.0.extend(said.bad.into_iter().map(|bad| format!("{name}: {bad}")));
    report(&name, &queued, &completed);
    Ok(())
}

/// Waits for the moment that lies half a flood before the end of a half minute.
async fn end_of_half_minute(stage: &Stage) {
    let earliest = stage.clock.now() + WITHIN / 2;
    let end = Timestamp::from_unix_seconds((earliest.unix_seconds() / BUCKET + 1) * BUCKET);
    stage.clock.sleep_until(end - WITHIN / 2).await;
}

/// Which VM a delivery is for.
fn vm_of(number: u32, vms: usize) -> usize {
    number as usize % vms + 1
}

/// Sends the deliveries, each at its time, whatever became of those before.
async fn flood(stage: &Stage, event: &str, vms: usize) -> Result<Flood, BoxError> {
    let mut requests = Vec::new();
    for number in 0..DELIVERIES {
        let body = workflow_job(event, REPO, 29_679_000 + u64::from(number), vm_of(number, vms));
        requests.push(stage.delivery("workflow_job", body, SECRET)?);
    }
    stage.cloud.clear_calls();
    let instance = Semaphore::new(CONCURRENCY);
    let (start, began) = (moment(), stage.clock.now());
    let sends = requests.into_iter().zip(0_u32..).map(|(request, number)| {
        let instance = &instance;
        async move {
            let due = start + WITHIN * number / DELIVERIES;
            tokio::time::sleep_until(due).await;
            // What waits for a place waits at Cloud Run's door, where GitHub's patience runs already.
            let _place = instance.acquire().await;
            let sent = stage.clock.now();
            let answer = stage.send(request).await;
            (answer, sent, moment() - due)
        }
    });
    let answers = join_all(sends).await;
    let refused = |status| match status {
        Some(status) => format!("answered {status}"),
        None => "not answered".to_owned(),
    };
    let tasks = (1..=vms).map(|number| stage.tasks_of(&vm(number))).max().unwrap_or_default();
    Ok(Flood {
        began,
        sent: answers.iter().map(|(_, sent, _)| *sent).collect(),
        latencies: answers.iter().map(|(.., latency)| *latency).collect(),
        refused: answers
            .iter()
            .filter(|(answer, ..)| !answer.status.is_some_and(|status| status.is_success()))
            .map(|(answer, ..)| refused(answer.status))
            .collect(),
        calls: stage.cloud.calls(),
        starts: (1..=vms).map(|number| starts(stage, number, began)).sum(),
        tasks,
    })
}

#[expect(clippy::disallowed_methods, reason = "latencies are measured in real time")]
fn moment() -> Instant {
    Instant::now()
}

/// `since`: when the first of the tasks that are alive was made.
fn check_flood(findings: &mut Findings, name: &str, flood: &Flood, since: Timestamp) {
    findings.check(flood.refused.is_empty(), || {
        format!("{name}: {} were not answered 2xx, one {}", flood.refused.len(), flood.refused[0])
    });
    let longest = flood.latencies.iter().max().copied().unwrap_or_default();
    findings.check(longest <= GITHUB_WAITS, || {
        format!("{name}: an answer took {} ms", longest.as_millis())
    });
    let last = flood.sent.iter().max().map_or(0, |last| last.unix_seconds() / BUCKET);
    // A handler may look at the clock a moment after its delivery was sent, in the next one.
    let buckets = (last - since.unix_seconds() / BUCKET + 2) as usize;
    findings.check(flood.tasks <= TASKS_IN_A_BUCKET * buckets, || {
        format!("{name}: {} tasks are alive for a VM, after {buckets} half minutes", flood.tasks)
    });
}

fn check_vms(findings: &mut Findings, name: &str, stage: &Stage, vms: usize, last: &Flood) {
    for number in 1..=vms {
        let vm = vm(number);
        let starts = starts(stage, number, Timestamp::UNIX_EPOCH);
        findings.check(starts == 1, || format!("{name}: {vm} was started {starts} times"));
        let status = stage.cloud.compute.status(&vm);
        findings.check(status == Status::Running, || {
            format!("{name}: {vm} is {status} after its jobs")
        });
        let (mark, last) = (stage.mark(&vm), last_event(last, number, vms));
        findings.check(mark >= Some(last), || {
            let mark = mark.map_or_else(|| "none".to_owned(), |mark| mark.to_string());
            format!("{name}: the mark of {vm} is {mark}, its last event came at {last}")
        });
    }
}

/// How often a call of `instances.start` did start the VM, and did not find it starting already.
fn starts(stage: &Stage, number: usize, since: Timestamp) -> usize {
    let is_start = |at, status| at >= since && status == Status::Provisioning;
    let history = stage.cloud.compute.history(&vm(number));
    history.iter().filter(|(at, status, _)| is_start(*at, *status)).count()
}

fn last_event(flood: &Flood, number: usize, vms: usize) -> Timestamp {
    let own = flood.sent.iter().zip(0..).filter(|(_, delivery)| vm_of(*delivery, vms) == number);
    own.map(|(sent, _)| *sent).max().unwrap_or_default()
}

fn report(name: &str, queued: &Flood, completed: &Flood) {
    let floods = [queued, completed];
    let row = |title: &str, cells: [String; 2]| {
        println!("  {title:<28} {:>14} {:>14}", cells[0], cells[1]);
    };
    let millis = |percent| {
        floods.map(|flood| {
            let latency = percentile(flood.latencies.clone(), percent).unwrap_or_default();
            format!("{:.1} ms", latency.as_secs_f64() * 1000.0)
        })
    };
    println!("\n{name}");
    row("", ["queued".to_owned(), "completed".to_owned()]);
    row(
        "answered 2xx",
        floods.map(|flood| (flood.latencies.len() - flood.refused.len()).to_string()),
    );
    row("latency p50", millis(50));
    row("latency p99", millis(99));
    row("latency max", millis(100));
    let counts = floods.map(|flood| count(&flood.calls));
    let methods: BTreeSet<&str> = counts.iter().flat_map(BTreeMap::keys).copied().collect();
    for method in methods {
        row(
            &format!("calls: {method}"),
            counts.each_ref().map(|count| {
                let calls = count.get(method).copied().unwrap_or_default();
                format!("{calls} ({:.2})", f64::from(calls) / f64::from(DELIVERIES))
            }),
        );
    }
    row("setLabels: 412", floods.map(|flood| answered(flood, "instances.setLabels", 412)));
    row("tasks.create: 409", floods.map(|flood| answered(flood, "tasks.create", 409)));
    row("VMs started", floods.map(|flood| flood.starts.to_string()));
    row("tasks alive of a VM", floods.map(|flood| flood.tasks.to_string()));
}

fn count(calls: &[Call]) -> BTreeMap<&'static str, u32> {
    calls.iter().fold(BTreeMap::new(), |mut counts, call| {
        *counts.entry(call.method).or_default() += 1;
        counts
    })
}

fn answered(flood: &Flood, method: &str, status: u16) -> String {
    let with = |call: &&Call| {
        call.method == method && call.status.is_some_and(|answer| answer.as_u16() == status)
    };
    flood.calls.iter().filter(with).count().to_string()
}
