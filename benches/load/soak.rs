//! Minutes of mixed traffic with faults, while the program's memory and file descriptors are watched.
//!
//! Every minute goes the same way, drawn from the same seed, so what grows from minute to minute is a leak: twenty
//! seconds in which API calls fail, twenty in which the handlers of that time come to their end, and twenty in
//! which nothing may fail. Some jobs are the embedded GitHub's own, and have their VM started, watched and stopped;
//! the others it does not know.

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
use runner_manager::emulators::{ErrorBody, Fault, Happening};
use runner_manager::lifecycle::reconcile::PASS_TIME;
use tokio::time::MissedTickBehavior;

use crate::stage::{
    Answer, CONCURRENCY, Connections, REPO, SECRET, Stage, labels, leaks, vm, workflow_job,
};
use crate::{Dice, Findings, percentile};

const SEED: u64 = 10;
const VMS: usize = 4;

/// The VM that only the embedded GitHub's own jobs are for: it comes to rest in between, and is stopped.
const QUIET: usize = VMS;

const REQUESTS_PER_SECOND: u32 = 120;

/// API calls fail in the first seconds of each minute.
const TROUBLE: Duration = Duration::from_secs(20);

/// How many of a hundred API calls fail then.
const FAIL: u64 = 12;

/// What the last minute may exceed the second one by: in hundredths, and in file descriptors at least.
const GROWTH: u64 = 5;
const FEW_FDS: u64 = 2;

/// What `soak` can be told.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// How long; to compare the last minute with the second takes three at least
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,
}

/// What a request is, and so how it may be answered.
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
    /// The embedded GitHub's own deliveries.
    Webhook,
    /// Tasks that came due.
    Callback,
}

impl Kind {
    /// What it is answered if nothing goes wrong.
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

    /// What it may be answered if an API call of its handler fails.
    fn failed(self) -> Option<StatusCode> {
        match self {
            Self::Queued | Self::Completed | Self::Webhook => Some(StatusCode::BAD_GATEWAY),
            Self::Callback => Some(StatusCode::INTERNAL_SERVER_ERROR),
            _ => None,
        }
    }
}

/// What the process holds at a moment.
struct Sample {
    minute: u64,
    resident: u64,
    /// None where the system does not let it be read.
    proportional: Option<u64>,
    fds: u64,
}

/// What is counted while it runs.
struct Soak {
    stage: Stage,
    began: Timestamp,
    dice: Dice,
    jobs: u64,
    answers: BTreeMap<(Kind, Option<StatusCode>), u64>,
    samples: Vec<Sample>,
    findings: Findings,
    happenings: mpsc::Receiver<Happening>,
    calls: Arc<AtomicU64>,
    faults: Arc<AtomicU64>,
    /// Requests that were not sent, since too many were in flight.
    skipped: u64,
}

pub(crate) async fn run(options: &Options) -> Result<Findings, BoxError> {
    let minutes = options.minutes;
    println!(
        "{minutes} min, {REQUESTS_PER_SECOND} requests/s; in the first {} s of each minute {FAIL} % of the API \
         calls fail; seed {SEED}",
        TROUBLE.as_secs()
    );
    if minutes < 3 {
        println!(
            "the last minute is not compared with the second: that takes --minutes 3 at least"
        );
    }
    let mut soak = Soak::new().await?;
    soak.traffic(Duration::from_secs(60 * minutes)).await?;
    soak.finish(minutes)
}

impl Soak {
    async fn new() -> Result<Self, BoxError> {
        // How many connections are kept, and for how long, says nothing about what is lost.
        let stage = Stage::new(VMS, 1, Connections::UsedOnce).await?;
        // Tasks come due at half minutes: one of them falls into the trouble, the other to where nothing may fail.
        let seconds = (stage.clock.now().unix_seconds() + 10) / 30 * 30 + 20;
        let began = Timestamp::from_unix_seconds(seconds);
        stage.clock.sleep_until(began).await;
        // Tokens come to their end too, and their fetching fails as other calls do.
        stage.cloud.accounts.lifetime(Duration::from_secs(150));
        // Names need not stay taken for longer than anything here asks for them.
        stage.cloud.tasks.tombstones_last(Duration::from_secs(600));
        let (tell, happenings) = mpsc::channel();
        stage.cloud.subscribe(move |happening| {
            tell.send(happening.clone()).ok();
        });
        let (calls, faults) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let (mut dice, mut minute) = (Dice(SEED + 1), 0);
        stage.cloud.faults.on({
            let (calls, faults) = (Arc::clone(&calls), Arc::clone(&faults));
            move |call| {
                calls.fetch_add(1, Ordering::Relaxed);
                if minute_of(call.at, began) != minute {
                    (dice, minute) = (Dice(SEED + 1), minute_of(call.at, began));
                }
                let strikes =
                    since_the_minute(call.at, began) < TROUBLE && dice.between(1, 100) <= FAIL;
                strikes.then(|| {
                    faults.fetch_add(1, Ordering::Relaxed);
                    fault(&mut dice)
                })
            }
        });
        Ok(Self {
            stage,
            began,
            dice: Dice(SEED),
            jobs: 50_000_000,
            answers: BTreeMap::new(),
            samples: Vec::new(),
            findings: Findings::default(),
            happenings,
            calls,
            faults,
            skipped: 0,
        })
    }

    /// Sends requests at a steady rate, whatever becomes of them, and takes a sample every second.
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
                Some((kind, answer)) = in_flight.next() => self.judge(kind, &answer),
                _ = request.tick() => {
                    if in_flight.len() < CONCURRENCY {
                        let (kind, request) = self.draw()?;
                        let answer = self.stage.send(request);
                        in_flight.push(async move { (kind, answer.await) });
                    } else {
                        self.skipped += 1;
                    }
                }
            }
        }
        while let Some((kind, answer)) = in_flight.next().await {
            self.judge(kind, &answer);
        }
        Ok(())
    }

    fn each_second(&mut self, second: u64) -> Result<(), BoxError> {
        if !self.stage.program.runs() {
            return Err("the program has ended".into());
        }
        let minute = minute_of(self.stage.clock.now(), self.began);
        if self.samples.last().is_some_and(|sample| sample.minute != minute) {
            self.dice = Dice(SEED);
        }
        self.samples.push(Sample::take(self.stage.program.id(), minute)?);
        // They would grow without end.
        self.stage.cloud.clear_calls();
        self.hear();
        if second.is_multiple_of(10) {
            self.own_job(usize::try_from(second / 10)? % (VMS - 1) + 1);
        }
        if second % 180 == 30 {
            self.own_job(QUIET);
        }
        if second.is_multiple_of(30) {
            self.progress();
        }
        Ok(())
    }

    /// A job that the embedded GitHub runs, with webhooks of its own.
    fn own_job(&mut self, number: usize) {
        let runs = Duration::from_secs(self.dice.between(2, 25));
        self.stage.cloud.github.queue_job(REPO, labels(number), runs);
    }

    /// What the cloud sent of its own accord, and how that was answered.
    fn hear(&mut self) {
        while let Ok(happening) = self.happenings.try_recv() {
            let (kind, at, reply) = match happening {
                Happening::Webhook { at, reply, .. } => (Kind::Webhook, at, reply),
                Happening::Callback { at, reply, .. } => (Kind::Callback, at, reply),
                _ => continue,
            };
            let in_headers = reply.headers.values().any(|value| leaks(value.as_bytes()));
            let answer = Answer { status: reply.status, leaks: in_headers || leaks(&reply.body) };
            self.judge_at(kind, &answer, at);
        }
    }

    fn judge(&mut self, kind: Kind, answer: &Answer) {
        self.judge_at(kind, answer, self.stage.clock.now());
    }

    fn judge_at(&mut self, kind: Kind, answer: &Answer, at: Timestamp) {
        *self.answers.entry((kind, answer.status)).or_default() += 1;
        // No handler lives for longer, so after that no fault is in play.
        let may_fail = since_the_minute(at, self.began) < TROUBLE + PASS_TIME;
        let excused = may_fail && answer.status.is_some() && answer.status == kind.failed();
        self.findings.check(answer.status == Some(kind.expected()) || excused, || {
            let when = if may_fail { "" } else { ", with no fault in play" };
            format!("{kind:?} at {at}: answered {}{when}", told(answer.status))
        });
        self.findings
            .check(!answer.leaks, || format!("{kind:?} at {at}: the secret is in the answer"));
    }

    /// The next request.
    fn draw(&mut self) -> Result<(Kind, Request<Full<Bytes>>), BoxError> {
        self.jobs += 1;
        let number = usize::try_from(self.dice.between(1, VMS as u64 - 1))?;
        let event = |action, repo| workflow_job(action, repo, self.jobs, number);
        let stage = &self.stage;
        let post =
            |path, headers, body: &str| stage.request(Method::POST, path, headers, body.to_owned());
        let workflow_job = |body, secret| stage.delivery("workflow_job", body, secret);
        Ok(match self.dice.between(0, 99) {
            0..20 => (Kind::Queued, workflow_job(event("queued", REPO), SECRET)?),
            20..35 => (Kind::InProgress, workflow_job(event("in_progress", REPO), SECRET)?),
            35..55 => (Kind::Completed, workflow_job(event("completed", REPO), SECRET)?),
            55..63 => (Kind::Forged, workflow_job(event("queued", REPO), "another secret")?),
            63..67 => {
                let headers = &[("X-GitHub-Event", "workflow_job")];
                (Kind::Unsigned, post("/github/webhook", headers, &event("queued", REPO))?)
            }
            67..75 => {
                let body = event("queued", "somebody/else");
                (Kind::OtherRepository, workflow_job(body, SECRET)?)
            }
            75..80 => {
                let length = usize::try_from(self.dice.between(0, 20_000))?;
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
        let answers: u64 = self.answers.values().sum();
        let Some(sample) = self.samples.last() else { return };
        let proportional = sample.proportional.map_or("?".to_owned(), |size| size.to_string());
        println!(
            "{:>3}:{:02}  {answers:>7} answers  {:>7} API calls  {:>5} faults  RSS {} KiB  PSS {proportional} KiB  \
             {} fds  {} tasks alive",
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
        self.hear();
        self.progress();
        let said = self.stage.program.end();
        self.findings.0.extend(said.bad);
        println!("\n  {:<18} {:>14}", "request", "answers");
        for ((kind, status), count) in &self.answers {
            println!("  {:<18} {:>14} {count:>8}", format!("{kind:?}"), told(*status));
        }
        println!(
            "  {} requests were not sent, since {CONCURRENCY} were in flight; the program wrote {} lines",
            self.skipped, said.lines
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
        // Not judged: it falls and rises with others who run the same program, as the two share its pages.
        self.compare("PSS, KiB", 0, minutes, |sample| sample.proportional, false);
        self.compare("fds", FEW_FDS, minutes, |sample| Some(sample.fds), compare);
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
            let most = second + (second * GROWTH / 100).max(at_least);
            self.findings.check(last <= most, || {
                format!("{what}: {second} in the second minute, and {last} in the last")
            });
        }
    }
}

/// How far the minute has come in which `at` lies, counted from the beginning.
fn since_the_minute(at: Timestamp, began: Timestamp) -> Duration {
    Duration::from_millis(u64::try_from(at.since(began).as_millis() % 60_000).unwrap_or_default())
}

fn minute_of(at: Timestamp, began: Timestamp) -> u64 {
    at.since(began).as_secs() / 60
}

fn fault(dice: &mut Dice) -> Fault {
    let unavailable = StatusCode::SERVICE_UNAVAILABLE;
    match dice.between(0, 11) {
        0..3 => Fault::Before(unavailable, ErrorBody::Api),
        3 => Fault::Before(unavailable, ErrorBody::Html),
        4 => Fault::After(unavailable),
        5 | 6 => Fault::Before(StatusCode::TOO_MANY_REQUESTS, ErrorBody::Api),
        7 => Fault::Before(StatusCode::OK, ErrorBody::Truncated),
        8 => Fault::Before(StatusCode::BAD_GATEWAY, ErrorBody::Truncated),
        9 => Fault::Hang,
        10 => Fault::Lost,
        _ => Fault::Late(dice.millis(100, 3_000)),
    }
}

fn told(status: Option<StatusCode>) -> String {
    status.map_or("nothing".to_owned(), |status| status.as_u16().to_string())
}

impl Sample {
    fn take(process: u32, minute: u64) -> Result<Self, BoxError> {
        let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
        let rollup = std::fs::read_to_string(format!("/proc/{process}/smaps_rollup")).ok();
        Ok(Self {
            minute,
            resident: kibibytes(&status, "VmRSS:").ok_or("the system tells no VmRSS")?,
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
