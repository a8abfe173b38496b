//! Minutes of mixed traffic with faults, while the program's memory and file descriptors are measured.
//!
//! Every minute is the same, drawn from the same seed, so growth from minute to minute is a leak. In the first twenty
//! seconds API calls fail, in the next twenty handlers from then end, and in the last twenty no request may fail. Some jobs
//! exist in the embedded GitHub, so that their VMs are started and stopped; the others do not.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use runner_manager::clients::transport::BoxError;
use runner_manager::clock::Timestamp;
use runner_manager::emulators::compute::Status;
use runner_manager::emulators::{ErrorBody, Event, Fault};
use runner_manager::lifecycle::reconcile::PASS_TIME;
use tokio::time::MissedTickBehavior;

use crate::stage::{
    CONCURRENCY, Connections, REPO, Response, SECRET, Stage, labels, leaks, vm, workflow_job,
};
use crate::{Findings, Rng, percentile};

const SEED: u64 = 10;
const VMS: usize = 4;

/// The VM that only gets jobs of the embedded GitHub: it is idle in between, and is stopped.
const QUIET: usize = VMS;

const REQUESTS_PER_SECOND: u32 = 120;

/// The time at the start of each minute in which API calls fail.
const FAULT_TIME: Duration = Duration::from_secs(20);

/// The percentage of API calls that fail in that time.
const FAULT_PERCENT: u64 = 12;

/// The allowed growth from the second minute to the last, in percent, but at least this number of file descriptors.
const MAX_GROWTH_PERCENT: u64 = 5;
const MAX_GROWTH_FDS: u64 = 2;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// The duration; at least three minutes to compare the last with the second
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,
}

/// The kind of a request, which determines its allowed responses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Queued,
    InProgress,
    Completed,
    Forged,
    Unsigned,
    OtherRepository,
    Garbage,
    Ping,
    WrongSecret,
    NoSuchPath,
    Info,
    /// A delivery of the embedded GitHub.
    Webhook,
    /// A callback of the embedded Cloud Tasks.
    Callback,
}

impl Kind {
    /// The expected status without faults.
    fn expected(self) -> StatusCode {
        match self {
            Self::Forged | Self::Unsigned | Self::WrongSecret => StatusCode::UNAUTHORIZED,
            Self::Garbage => StatusCode::BAD_REQUEST,
            Self::NoSuchPath => StatusCode::NOT_FOUND,
            Self::Queued
            | Self::InProgress
            | Self::Completed
            | Self::OtherRepository
            | Self::Ping
            | Self::Info
            | Self::Webhook
            | Self::Callback => StatusCode::OK,
        }
    }

    /// The allowed status if an API call of the handler fails.
    fn failed(self) -> Option<StatusCode> {
        match self {
            Self::Queued | Self::Completed | Self::Webhook => Some(StatusCode::BAD_GATEWAY),
            Self::Callback => Some(StatusCode::INTERNAL_SERVER_ERROR),
            _ => None,
        }
    }
}

/// The resources of the process.
struct Sample {
    minute: u64,
    resident: u64,
    /// `None` if the system does not permit reading it.
    proportional: Option<u64>,
    fds: u64,
}

struct Soak {
    stage: Stage,
    began: Timestamp,
    rng: Rng,
    jobs: u64,
    responses: BTreeMap<(Kind, Option<StatusCode>), u64>,
    samples: Vec<Sample>,
    findings: Findings,
    events: mpsc::Receiver<Event>,
    calls: Arc<AtomicU64>,
    faults: Arc<AtomicU64>,
    /// Requests that were not sent because too many were in flight.
    skipped: u64,
}

pub(crate) async fn run(options: &Options) -> Result<Findings, BoxError> {
    let minutes = options.minutes;
    println!(
        "{minutes} min, {REQUESTS_PER_SECOND} requests/s; in the first {} s of each minute {FAULT_PERCENT} % of the API \
         calls fail; seed {SEED}",
        FAULT_TIME.as_secs()
    );
    if minutes < 3 {
        println!(
            "the last minute is not compared with the second: that needs at least --minutes 3"
        );
    }
    let mut soak = Soak::new().await?;
    soak.traffic(Duration::from_secs(60 * minutes)).await?;
    soak.finish(minutes)
}

impl Soak {
    async fn new() -> Result<Self, BoxError> {
        // Idle connections would hide leaks of file descriptors.
        let stage = Stage::new(VMS, 1, Connections::UsedOnce).await?;
        // Tasks are due at half minutes: one is in the time with faults, the other where nothing may fail.
        let seconds = (stage.clock.now().unix_seconds() + 10) / 30 * 30 + 20;
        let began = Timestamp::from_unix_seconds(seconds);
        stage.clock.sleep_until(began).await;
        // Tokens expire too, and their renewal may fail like other calls.
        stage.cloud.accounts.lifetime(Duration::from_secs(150));
        // Tombstones are not needed longer than tasks can be repeated here.
        stage.cloud.tasks.tombstones_last(Duration::from_secs(600));
        let (sender, events) = mpsc::channel();
        stage.cloud.subscribe(move |event| {
            sender.send(event.clone()).ok();
        });
        let (calls, faults) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let (mut rng, mut minute) = (Rng(SEED + 1), 0);
        stage.cloud.faults.on({
            let (calls, faults) = (Arc::clone(&calls), Arc::clone(&faults));
            move |call| {
                calls.fetch_add(1, Ordering::Relaxed);
                if minute_of(call.at, began) != minute {
                    (rng, minute) = (Rng(SEED + 1), minute_of(call.at, began));
                }
                let fails = since_the_minute(call.at, began) < FAULT_TIME
                    && rng.between(1, 100) <= FAULT_PERCENT;
                fails.then(|| {
                    faults.fetch_add(1, Ordering::Relaxed);
                    fault(&mut rng)
                })
            }
        });
        Ok(Self {
            stage,
            began,
            rng: Rng(SEED),
            jobs: 50_000_000,
            responses: BTreeMap::new(),
            samples: Vec::new(),
            findings: Findings::default(),
            events,
            calls,
            faults,
            skipped: 0,
        })
    }

    /// Sends requests at a constant rate, independent of their responses, and takes a sample every second.
    async fn traffic(&mut self, span: Duration) -> Result<(), BoxError> {
        let mut request = tokio::time::interval(Duration::from_secs(1) / REQUESTS_PER_SECOND);
        let mut second = tokio::time::interval(Duration::from_secs(1));
        request.set_missed_tick_behavior(MissedTickBehavior::Delay);
        second.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut in_flight = FuturesUnordered::new();
        let mut seconds = 0;
        while self.stage.clock.now().since(self.began) < span {
            tokio::select! {
                biased;
                _ = second.tick() => {
                    self.each_second(seconds)?;
                    seconds += 1;
                }
                Some((kind, response)) = in_flight.next() => self.judge(kind, &response),
                _ = request.tick() => {
                    if in_flight.len() < CONCURRENCY {
                        let (kind, request) = self.draw()?;
                        let response = self.stage.send(request);
                        in_flight.push(async move { (kind, response.await) });
                    } else {
                        self.skipped += 1;
                    }
                }
            }
        }
        while let Some((kind, response)) = in_flight.next().await {
            self.judge(kind, &response);
        }
        Ok(())
    }

    fn each_second(&mut self, second: u64) -> Result<(), BoxError> {
        if !self.stage.program.is_running() {
            return Err("the program has ended".into());
        }
        let minute = minute_of(self.stage.clock.now(), self.began);
        if self.samples.last().is_some_and(|sample| sample.minute != minute) {
            self.rng = Rng(SEED);
        }
        self.samples.push(Sample::take(self.stage.program.id(), minute)?);
        // The record of calls would grow without limit.
        self.stage.cloud.clear_calls();
        self.judge_cloud_requests();
        if second.is_multiple_of(10) {
            self.queue_job(usize::try_from(second / 10)? % (VMS - 1) + 1);
        }
        if second % 180 == 30 {
            self.queue_job(QUIET);
        }
        if second.is_multiple_of(30) {
            self.progress();
        }
        Ok(())
    }

    /// Queues a job in the embedded GitHub, which sends its webhooks.
    fn queue_job(&mut self, number: usize) {
        let runs = Duration::from_secs(self.rng.between(2, 25));
        self.stage.cloud.github.queue_job(REPO, labels(number), runs);
    }

    /// Judges the responses to the cloud's own requests.
    fn judge_cloud_requests(&mut self) {
        while let Ok(event) = self.events.try_recv() {
            let (kind, at, reply) = match event {
                Event::Webhook { at, reply, .. } => (Kind::Webhook, at, reply),
                Event::Callback { at, reply, .. } => (Kind::Callback, at, reply),
                _ => continue,
            };
            let in_headers = reply.headers.values().any(|value| leaks(value.as_bytes()));
            let response =
                Response { status: reply.status, leaks: in_headers || leaks(&reply.body) };
            self.judge_at(kind, &response, at);
        }
    }

    fn judge(&mut self, kind: Kind, response: &Response) {
        self.judge_at(kind, response, self.stage.clock.now());
    }

    fn judge_at(&mut self, kind: Kind, response: &Response, at: Timestamp) {
        *self.responses.entry((kind, response.status)).or_default() += 1;
        // No handler takes longer than this, so later requests see no faults.
        let may_fail = since_the_minute(at, self.began) < FAULT_TIME + PASS_TIME;
        let excused = may_fail && response.status.is_some() && response.status == kind.failed();
        self.findings.check(response.status == Some(kind.expected()) || excused, || {
            let when = if may_fail { "" } else { ", without faults" };
            format!("{kind:?} at {at}: the response is {}{when}", describe(response.status))
        });
        self.findings.check(!response.leaks, || {
            format!("{kind:?} at {at}: the response contains the secret")
        });
    }

    fn draw(&mut self) -> Result<(Kind, Request<Full<Bytes>>), BoxError> {
        self.jobs += 1;
        let number = usize::try_from(self.rng.between(1, VMS as u64 - 1))?;
        let event = |action, repo| workflow_job(action, repo, self.jobs, number);
        let stage = &self.stage;
        let post =
            |path, headers, body: &str| stage.request(Method::POST, path, headers, body.to_owned());
        let workflow_job = |body, secret| stage.delivery("workflow_job", body, secret);
        Ok(match self.rng.between(0, 99) {
            0..20 => (Kind::Queued, workflow_job(event("queued", REPO), SECRET)?),
            20..35 => (Kind::InProgress, workflow_job(event("in_progress", REPO), SECRET)?),
            35..55 => (Kind::Completed, workflow_job(event("completed", REPO), SECRET)?),
            55..63 => (Kind::Forged, workflow_job(event("queued", REPO), "another secret")?),
            63..67 => {
                let headers = &[("X-GitHub-Event", "workflow_job")];
                (Kind::Unsigned, post("/github/webhook", headers, &event("queued", REPO))?)
            }
            67..75 => {
                let body = event("queued", "other/repository");
                (Kind::OtherRepository, workflow_job(body, SECRET)?)
            }
            75..80 => {
                let length = usize::try_from(self.rng.between(0, 20_000))?;
                (Kind::Garbage, workflow_job("{\"action\": [".repeat(length / 12 + 1), SECRET)?)
            }
            80..85 => {
                let ping = include_str!("../../tests/fixtures/ping.json").to_owned();
                (Kind::Ping, stage.delivery("ping", ping, SECRET)?)
            }
            85..93 => {
                let path =
                    if self.jobs.is_multiple_of(2) { "/runner/start" } else { "/runner/stop" };
                let body = format!(r#"{{"vm_instance_name": "{}"}}"#, vm(number));
                (Kind::WrongSecret, post(path, &[("X-Runner-Secret", "a guess")], &body)?)
            }
            93..96 => (Kind::NoSuchPath, post("/wp-login.php", &[], "user=admin")?),
            _ => {
                let path = if self.jobs.is_multiple_of(2) { "/" } else { "/health" };
                (Kind::Info, stage.request(Method::GET, path, &[], "")?)
            }
        })
    }

    fn progress(&self) {
        let since = self.stage.clock.now().since(self.began).as_secs();
        let responses: u64 = self.responses.values().sum();
        let Some(sample) = self.samples.last() else { return };
        let proportional = sample.proportional.map_or("?".to_owned(), |size| size.to_string());
        println!(
            "{:>3}:{:02}  {responses:>7} responses  {:>7} API calls  {:>5} faults  RSS {} KiB  PSS {proportional} KiB  \
             {} fds  {} pending tasks",
            since / 60,
            since % 60,
            self.calls.load(Ordering::Relaxed),
            self.faults.load(Ordering::Relaxed),
            sample.resident,
            sample.fds,
            self.stage.cloud.tasks.pending().len(),
        );
    }

    fn finish(mut self, minutes: u64) -> Result<Findings, BoxError> {
        self.judge_cloud_requests();
        self.progress();
        let output = self.stage.program.end();
        self.findings.0.extend(output.bad);
        println!("\n  {:<18} {:>14}", "request", "responses");
        for ((kind, status), count) in &self.responses {
            println!("  {:<18} {:>14} {count:>8}", format!("{kind:?}"), describe(*status));
        }
        println!(
            "  {} requests were not sent because {CONCURRENCY} were in flight; the program wrote {} lines",
            self.skipped, output.lines
        );
        for number in 1..=VMS {
            let history = self.stage.cloud.compute.history(&vm(number));
            let times = |wanted| history.iter().filter(|(_, status, _)| *status == wanted).count();
            let (starts, stops) = (times(Status::Provisioning), times(Status::Stopping));
            println!("  {}: started {starts} times, stopped {stops} times", vm(number));
        }
        let compare = minutes >= 3;
        println!("\n  {:<18} {:>14} {:>14}", "median", "second minute", "last minute");
        self.compare("RSS, KiB", 0, minutes, |sample| Some(sample.resident), compare);
        // Not judged: it depends on other processes that share the program's pages.
        self.compare("PSS, KiB", 0, minutes, |sample| sample.proportional, false);
        self.compare("fds", MAX_GROWTH_FDS, minutes, |sample| Some(sample.fds), compare);
        Ok(self.findings)
    }

    fn compare(
        &mut self,
        what: &str,
        at_least: u64,
        minutes: u64,
        size: impl Fn(&Sample) -> Option<u64>,
        judged: bool,
    ) {
        let median = |minute| {
            let own = self.samples.iter().filter(|sample| sample.minute == minute);
            percentile(own.filter_map(&size).collect(), 50)
        };
        let (second, last) = (median(1), median(minutes - 1));
        let cell = |size: Option<u64>| size.map_or("-".to_owned(), |size| size.to_string());
        println!("  {what:<18} {:>14} {:>14}", cell(second), cell(last));
        if let (Some(second), Some(last), true) = (second, last, judged) {
            let most = second + (second * MAX_GROWTH_PERCENT / 100).max(at_least);
            self.findings.check(last <= most, || {
                format!("{what}: {second} in the second minute, and {last} in the last")
            });
        }
    }
}

/// The time since the last full minute after the beginning.
fn since_the_minute(at: Timestamp, began: Timestamp) -> Duration {
    Duration::from_millis(u64::try_from(at.since(began).as_millis() % 60_000).unwrap_or_default())
}

fn minute_of(at: Timestamp, began: Timestamp) -> u64 {
    at.since(began).as_secs() / 60
}

fn fault(rng: &mut Rng) -> Fault {
    let unavailable = StatusCode::SERVICE_UNAVAILABLE;
    match rng.between(0, 11) {
        0..3 => Fault::Before(unavailable, ErrorBody::Api),
        3 => Fault::Before(unavailable, ErrorBody::Html),
        4 => Fault::After(unavailable),
        5 | 6 => Fault::Before(StatusCode::TOO_MANY_REQUESTS, ErrorBody::Api),
        7 => Fault::Before(StatusCode::OK, ErrorBody::Truncated),
        8 => Fault::Before(StatusCode::BAD_GATEWAY, ErrorBody::Truncated),
        9 => Fault::Hang,
        10 => Fault::Lost,
        _ => Fault::Late(rng.millis(100, 3_000)),
    }
}

fn describe(status: Option<StatusCode>) -> String {
    status.map_or("none".to_owned(), |status| status.as_u16().to_string())
}

impl Sample {
    fn take(process: u32, minute: u64) -> Result<Self, BoxError> {
        let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
        let rollup = std::fs::read_to_string(format!("/proc/{process}/smaps_rollup")).ok();
        Ok(Self {
            minute,
            resident: kibibytes(&status, "VmRSS:").ok_or("/proc has no VmRSS")?,
            proportional: rollup.and_then(|rollup| kibibytes(&rollup, "Pss:")),
            fds: std::fs::read_dir(format!("/proc/{process}/fd"))?.count() as u64,
        })
    }
}

/// The number in a line like `VmRSS:     9204 kB`.
fn kibibytes(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    line.split_whitespace().next()?.parse().ok()
}
