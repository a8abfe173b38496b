//! A matrix of 256 jobs: all are queued within two seconds, and later completed within two.
//!
//! The service keeps no state, so each of the concurrent deliveries reads the VM, and might start it and write its label.
//! Still there has to be one start, a label no older than the last event, and a small number of tasks. Slow APIs make more
//! deliveries overlap. Each flood spans the end of a half minute, so that its deliveries have different label values.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::join_all;
use runner_manager::clients::transport::BoxError;
use runner_manager::clock::Timestamp;
use runner_manager::emulators::compute::{Status, Timings};
use runner_manager::emulators::{Call, Fault};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::stage::{
    CONCURRENCY, Connections, GITHUB_TIMEOUT, REPO, SECRET, Stage, vm, workflow_job,
};
use crate::{Findings, Rng, percentile};

const SEED: u64 = 256;
const DELIVERIES: u32 = 256;
const WITHIN: Duration = Duration::from_secs(2);

/// The seconds to which due times are rounded, so that equal passes merge, and the limit for a VM's tasks in each such
/// span.
const BUCKET: u64 = 30;
const MAX_TASKS_PER_BUCKET: usize = 3;

/// The range of a slow API's latencies, in milliseconds.
const SLOW_MS: (u64, u64) = (40, 250);

/// A flood of deliveries and its results.
struct Flood {
    began: Timestamp,
    /// The time at which each delivery was sent.
    sent: Vec<Timestamp>,
    latencies: Vec<Duration>,
    refused: Vec<String>,
    calls: Vec<Call>,
    /// The number of starts of all VMs.
    starts: usize,
    /// The largest number of pending tasks of a VM.
    tasks: usize,
}

pub(crate) async fn run() -> Result<Findings, BoxError> {
    let mut findings = Findings::default();
    println!(
        "{DELIVERIES} deliveries within {} s, at most {CONCURRENCY} at a time; seed {SEED}\n\
         latencies count from the time at which a delivery is due; API calls: total (per delivery)",
        WITHIN.as_secs()
    );
    for (vms, slow) in [(1, false), (1, true), (4, false), (4, true)] {
        scenario(vms, slow, &mut findings).await?;
    }
    Ok(findings)
}

async fn scenario(vms: usize, slow: bool, findings: &mut Findings) -> Result<(), BoxError> {
    let pace = if slow {
        format!("APIs with {} to {} ms", SLOW_MS.0, SLOW_MS.1)
    } else {
        "APIs without latency".to_owned()
    };
    let name = format!("{vms} VM(s), {pace}");
    let mut stage = Stage::new(vms, 3, Connections::Kept).await?;
    stage.cloud.compute.timings(Timings { boot: Duration::from_secs(6), ..Timings::default() });
    if slow {
        let mut rng = Rng(SEED);
        stage.cloud.faults.on(move |_| {
            let span = rng.millis(SLOW_MS.0, SLOW_MS.1);
            // The request or the response is slow: the call has its effect after the delay, or before it.
            Some(if rng.next().is_multiple_of(2) { Fault::Delay(span) } else { Fault::Late(span) })
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
    let output = stage.program.end();
    findings.0.extend(output.bad.into_iter().map(|bad| format!("{name}: {bad}")));
    report(&name, &queued, &completed);
    Ok(())
}

/// Waits until half a flood before the end of a half minute.
async fn end_of_half_minute(stage: &Stage) {
    let earliest = stage.clock.now() + WITHIN / 2;
    let end = Timestamp::from_unix_seconds((earliest.unix_seconds() / BUCKET + 1) * BUCKET);
    stage.clock.sleep_until(end - WITHIN / 2).await;
}

fn vm_of(number: u32, vms: usize) -> usize {
    number as usize % vms + 1
}

/// Sends each delivery at its time, without waiting for earlier ones.
async fn flood(stage: &Stage, event: &str, vms: usize) -> Result<Flood, BoxError> {
    let mut requests = Vec::new();
    for number in 0..DELIVERIES {
        let body = workflow_job(event, REPO, 29_679_000 + u64::from(number), vm_of(number, vms));
        requests.push(stage.delivery("workflow_job", body, SECRET)?);
    }
    stage.cloud.clear_calls();
    let instance = Semaphore::new(CONCURRENCY);
    let (start, began) = (now(), stage.clock.now());
    let sends = requests.into_iter().zip(0_u32..).map(|(request, number)| {
        let instance = &instance;
        async move {
            let due = start + WITHIN * number / DELIVERIES;
            tokio::time::sleep_until(due).await;
            // Waiting for a slot counts towards GitHub's timeout, as on Cloud Run.
            let _slot = instance.acquire().await;
            let sent = stage.clock.now();
            let response = stage.send(request).await;
            (response, sent, now() - due)
        }
    });
    let responses = join_all(sends).await;
    let refused = |status| match status {
        Some(status) => format!("got {status}"),
        None => "got no response".to_owned(),
    };
    let tasks = (1..=vms).map(|number| stage.tasks_of(&vm(number))).max().unwrap_or_default();
    Ok(Flood {
        began,
        sent: responses.iter().map(|(_, sent, _)| *sent).collect(),
        latencies: responses.iter().map(|(.., latency)| *latency).collect(),
        refused: responses
            .iter()
            .filter(|(response, ..)| !response.status.is_some_and(|status| status.is_success()))
            .map(|(response, ..)| refused(response.status))
            .collect(),
        calls: stage.cloud.calls(),
        starts: (1..=vms).map(|number| starts(stage, number, began)).sum(),
        tasks,
    })
}

#[expect(clippy::disallowed_methods, reason = "latencies are measured in real time")]
fn now() -> Instant {
    Instant::now()
}

/// Checks a flood. `since` is the creation time of the oldest pending task.
fn check_flood(findings: &mut Findings, name: &str, flood: &Flood, since: Timestamp) {
    findings.check(flood.refused.is_empty(), || {
        format!(
            "{name}: {} deliveries got no 2xx, the first {}",
            flood.refused.len(),
            flood.refused[0]
        )
    });
    let longest = flood.latencies.iter().max().copied().unwrap_or_default();
    findings.check(longest <= GITHUB_TIMEOUT, || {
        format!("{name}: a response took {} ms", longest.as_millis())
    });
    let last = flood.sent.iter().max().map_or(0, |last| last.unix_seconds() / BUCKET);
    // A handler may read the clock in the half minute after the delivery was sent.
    let buckets = (last - since.unix_seconds() / BUCKET + 2) as usize;
    findings.check(flood.tasks <= MAX_TASKS_PER_BUCKET * buckets, || {
        format!("{name}: a VM has {} pending tasks after {buckets} half minutes", flood.tasks)
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
        let (idle_since, last) = (stage.idle_since(&vm), last_event(last, number, vms));
        findings.check(idle_since >= Some(last), || {
            let label = idle_since.map_or_else(|| "none".to_owned(), |value| value.to_string());
            format!("{name}: the label of {vm} is {label}, but its last event came at {last}")
        });
    }
}

/// The number of `instances.start` calls that started the VM.
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
        "2xx responses",
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
    row("setLabels: 412", floods.map(|flood| with_status(flood, "instances.setLabels", 412)));
    row("tasks.create: 409", floods.map(|flood| with_status(flood, "tasks.create", 409)));
    row("VMs started", floods.map(|flood| flood.starts.to_string()));
    row("pending tasks per VM", floods.map(|flood| flood.tasks.to_string()));
}

fn count(calls: &[Call]) -> BTreeMap<&'static str, u32> {
    calls.iter().fold(BTreeMap::new(), |mut counts, call| {
        *counts.entry(call.method).or_default() += 1;
        counts
    })
}

fn with_status(flood: &Flood, method: &str, status: u16) -> String {
    let matches = |call: &&Call| {
        call.method == method && call.status.is_some_and(|got| got.as_u16() == status)
    };
    flood.calls.iter().filter(matches).count().to_string()
}
