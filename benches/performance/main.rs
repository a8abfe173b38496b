//! The cost of a request, compared with the floor: a minimal service on the same framework.
//!
//! Service and floor take turns on one CPU; the load and the APIs run on another. The CPU time of a request is compared,
//! so the speed of the other CPU does not matter. Further measurements: latencies at several concurrencies, with slow
//! APIs and after a cold start; and memory.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints its report")]
#![expect(clippy::disallowed_methods, reason = "it measures real time")]

mod deliveries;
mod floor;
mod load;
mod process;
mod report;
mod upstream;

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Command, ExitCode};
use std::time::Duration;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use base64::prelude::{BASE64_STANDARD, Engine};
use bytes::Bytes;
use clap::Parser;
use deliveries::{
    Action, ENVIRONMENT, REPO, SECRET, UNKNOWN_REPO, body, name, pool, request, sign, signed,
};
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use load::{Load, burst, first_response, flood};
use process::Process;
use report::{Report, median, millis, percentile};
use runner_manager::clients::transport::BoxError;
use serde_json::{Value, json};
use tokio::time::Instant;
use upstream::Upstream;

/// One VM for each connection, so that no two deliveries share their work.
const VMS: usize = 80;

/// The latency of slow APIs.
const API_LATENCY: Duration = Duration::from_millis(30);

/// The CPU of service and floor, and the CPU of everything else.
const MEASURED_CPU: usize = 0;
const OTHER_CPU: usize = 1;

/// Compares the cost of a request with a minimal service on the same framework. Takes about two minutes.
#[derive(Parser)]
#[command(bin_name = "cargo bench --bench performance --")]
struct Cli {
    /// Turns of service and floor in each comparison; the median counts
    #[arg(long, default_value_t = 7)]
    turns: usize,
    /// The duration of a turn, in milliseconds
    #[arg(long, default_value_t = 600)]
    turn_ms: u64,
    /// Run as the floor on this port
    #[arg(long, hide = true, requires = "upstream")]
    floor: Option<u16>,
    #[arg(long, hide = true)]
    upstream: Option<String>,
    /// Ignored; `cargo bench` passes it to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<ExitCode, BoxError> {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if let (Some(port), Some(upstream)) = (cli.floor, &cli.upstream) {
        runtime.block_on(floor::serve(port, upstream))?;
        return Ok(ExitCode::SUCCESS);
    }
    if cfg!(debug_assertions) {
        eprintln!("not measured, since this build is not optimised: use cargo bench");
        return Ok(ExitCode::SUCCESS);
    }
    let report = runtime.block_on(measure(&cli))?;
    println!("{report}");
    Ok(ExitCode::SUCCESS)
}

async fn measure(cli: &Cli) -> Result<Report, BoxError> {
    let mut report = Report::default();
    let upstream = Upstream::default();
    let setup = Setup::new(&upstream)?;
    cold_starts(&setup, &mut report).await?;

    let service = Server::service(&setup, MEASURED_CPU).await?;
    let floor = Server::floor(&setup, MEASURED_CPU).await?;
    // The processes so far were not pinned.
    process::pin(std::process::id(), OTHER_CPU)?;
    memory("memory when idle (PSS)", &service, &floor, "5 MB", &mut report)?;

    costs(&service, &floor, cli, &mut report).await?;
    latencies(&service, &mut report).await?;
    slow_apis(&service, &upstream, &mut report).await?;

    flood_with(&service, 100_000).await?;
    flood_with(&floor, 100_000).await?;
    memory("memory after 100,000 more (PSS)", &service, &floor, "16 MB", &mut report)?;
    let binary = std::fs::metadata(env!("CARGO_BIN_EXE_runner-manager"))?.len();
    let with = if cfg!(feature = "dev") { "with the feature dev" } else { "as shipped" };
    report.row(
        &format!("binary, {with}"),
        format!("{:.1} MB", mebibytes(binary / 1024)),
        if cfg!(feature = "dev") { "" } else { "7 MB" },
    );
    Ok(report)
}

/// Reports the memory of the service and of the floor.
fn memory(
    title: &str,
    service: &Server,
    floor: &Server,
    target: &str,
    report: &mut Report,
) -> Result<(), BoxError> {
    for (whose, measured, target) in
        [("", service.process.memory()?, target), (", the floor's", floor.process.memory()?, "")]
    {
        let (all, own) = (mebibytes(measured.pss), mebibytes(measured.anonymous));
        let value = format!("{all:.1} MB, of which {own:.1} MB anonymous");
        report.row(&format!("{title}{whose}"), value, target);
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "it is rounded anyway")]
fn mebibytes(kibibytes: u64) -> f64 {
    kibibytes as f64 / 1024.0
}

/// The environment of service and floor.
struct Setup {
    upstream_url: String,
    key_file: tempfile::NamedTempFile,
}

impl Setup {
    fn new(upstream: &Upstream) -> Result<Self, BoxError> {
        let upstream_url = upstream.serve()?;
        let key = json!({
            "type": "service_account",
            "project_id": "my-project",
            "private_key_id": "1",
            // The upstream does not verify signatures.
            "private_key": pkcs8()?,
            "client_email": "runner-manager@my-project.iam.gserviceaccount.com",
            "token_uri": format!("{upstream_url}/token"),
        });
        let key_file = tempfile::NamedTempFile::new()?;
        std::fs::write(key_file.path(), key.to_string())?;
        Ok(Self { upstream_url, key_file })
    }

    /// The compiled program, on this port.
    fn service(&self, port: u16) -> Command {
        let entry = |vm| {
            json!({
                "repo": REPO,
                "labels": ["self-hosted", pool(vm)],
                "vm_instance_name": name(vm),
                "vm_instance_zone": "asia-northeast1-a",
            })
        };
        let fleet = Value::from_iter((1..=VMS).map(entry)).to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_runner-manager"));
        command
            .env_clear()
            .env("GOOGLE_APPLICATION_CREDENTIALS", self.key_file.path())
            .envs(ENVIRONMENT)
            .envs([
                // Logs JSON, as in production.
                ("K_SERVICE", "runner-manager"),
                ("COMPUTE_API_URL", &self.upstream_url),
                ("CLOUD_TASKS_API_URL", &self.upstream_url),
                ("GITHUB_API_URL", &self.upstream_url),
                ("RUNNER_CONFIG", &fleet),
                ("PORT", &port.to_string()),
            ]);
        command
    }

    fn floor(&self, port: u16) -> Result<Command, BoxError> {
        let mut command = Command::new(std::env::current_exe()?);
        let args: [OsString; 4] = [
            "--floor".into(),
            port.to_string().into(),
            "--upstream".into(),
            self.upstream_url.clone().into(),
        ];
        command.args(args);
        Ok(command)
    }
}

/// A private key in the format of Google's key files.
fn pkcs8() -> Result<String, BoxError> {
    let key = KeyPair::generate(KeySize::Rsa2048)?;
    let text = BASE64_STANDARD.encode(AsDer::<Pkcs8V1Der<'_>>::as_der(&key)?.as_ref());
    Ok(format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n"))
}

/// A running service or floor.
struct Server {
    process: Process,
    address: SocketAddr,
}

impl Server {
    async fn service(setup: &Setup, cpu: usize) -> Result<Self, BoxError> {
        let address = free_address()?;
        Self::start(setup.service(address.port()), address, cpu).await
    }

    async fn floor(setup: &Setup, cpu: usize) -> Result<Self, BoxError> {
        let address = free_address()?;
        Self::start(setup.floor(address.port())?, address, cpu).await
    }

    async fn start(
        mut command: Command,
        address: SocketAddr,
        cpu: usize,
    ) -> Result<Self, BoxError> {
        let process = Process::start(&mut command)?;
        first_response(address, Instant::now(), &health()).await?;
        process.pin_to(cpu)?;
        // Let it fetch its tokens.
        tokio::time::sleep(Duration::from_millis(300)).await;
        Ok(Self { process, address })
    }

    /// The CPU time of one request under this load.
    async fn cost(&self, load: &Load, cli: &Cli) -> Result<Turn, BoxError> {
        let before = self.process.cpu_time()?;
        let span = Duration::from_millis(cli.turn_ms);
        let requests = flood(self.address, 32, span, load).await?.len();
        let cpu = self.process.cpu_time()?.saturating_sub(before);
        let count = u32::try_from(requests)?.max(1);
        Ok(Turn { cpu: cpu / count, per_second: f64::from(count) / span.as_secs_f64() })
    }
}

/// The result of one turn.
#[derive(Clone, Copy)]
struct Turn {
    cpu: Duration,
    per_second: f64,
}

fn free_address() -> Result<SocketAddr, BoxError> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

fn health() -> Load {
    let health = request(Method::GET, "/health", &[], "");
    Load { requests: vec![health], status: StatusCode::OK, outcome: "" }
}

/// A delivery for each VM.
fn deliveries(action: Action, outcome: &'static str) -> Load {
    let one = |vm| signed(body(action, REPO, 29_679_000 + vm as u64, vm));
    Load { requests: (1..=VMS).map(one).collect(), status: StatusCode::OK, outcome }
}

fn one(request: Request<Full<Bytes>>, status: StatusCode, outcome: &'static str) -> Load {
    Load { requests: vec![request], status, outcome }
}

fn forged() -> Load {
    let body = body(Action::Queued, REPO, 1, 1);
    let other = sign(b"something else");
    one(deliveries::delivery(body, &other), StatusCode::UNAUTHORIZED, "")
}

fn unmatched() -> Load {
    one(signed(body(Action::Queued, UNKNOWN_REPO, 1, 1)), StatusCode::OK, "nothing to do")
}

/// Compares the CPU time of requests with the floor's.
async fn costs(
    service: &Server,
    floor: &Server,
    cli: &Cli,
    report: &mut Report,
) -> Result<(), BoxError> {
    let loads = [
        ("forged signature", forged(), 1.35),
        ("unmatched repository", unmatched(), 1.35),
        (
            "`queued`, the VM runs and its label is current",
            deliveries(Action::Queued, "already_running"),
            1.5,
        ),
        ("`completed`, the VM's label is current", deliveries(Action::Completed, "ok, job"), 1.5),
        ("`GET /health`", health(), 1.5),
    ];
    for (what, load, target) in loads {
        eprintln!("{what}: {} turns", cli.turns);
        // The floor has no outcome header.
        let plain = Load { outcome: "", ..load.clone() };
        let (mut service_turns, mut floor_turns, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..cli.turns {
            let (own, bare) = (service.cost(&load, cli).await?, floor.cost(&plain, cli).await?);
            ratios.push(own.cpu.as_secs_f64() / bare.cpu.as_secs_f64());
            service_turns.push(own);
            floor_turns.push(bare);
        }
        let cpu = |turns: &[Turn]| median(turns.iter().map(|turn| turn.cpu.as_secs_f64()));
        let rate = |turns: &[Turn]| median(turns.iter().map(|turn| turn.per_second));
        report.cost(
            what,
            (cpu(&service_turns), cpu(&floor_turns)),
            (rate(&service_turns), rate(&floor_turns)),
            median(ratios),
            target,
        );
    }
    Ok(())
}

/// Measures latencies while the APIs respond at once.
async fn latencies(service: &Server, report: &mut Report) -> Result<(), BoxError> {
    let loads = [
        ("forged signature", forged()),
        ("unmatched repository", unmatched()),
        (
            "`queued`, the VM runs and its label is current",
            deliveries(Action::Queued, "already_running"),
        ),
        ("`completed`, the VM's label is current", deliveries(Action::Completed, "ok, job")),
        ("`GET /health`", health()),
    ];
    for (what, load) in loads {
        eprintln!("{what}: latencies");
        let mut at = Vec::new();
        for connections in [1, 32, 80] {
            let all = flood(service.address, connections, Duration::from_secs(1), &load).await?;
            at.push((connections, all.len(), percentile(&all, 50), percentile(&all, 99)));
        }
        report.latency(what, &at);
    }
    let mut stops = Vec::new();
    for _ in 0..50 {
        let headers = [("X-Runner-Secret", SECRET), ("X-CloudTasks-TaskName", "0123")];
        let now = runner_manager::clock::Clock::system().now().unix_seconds();
        let task = json!({
            "vm_instance_name": name(1), "vm_instance_zone": "asia-northeast1-a", "unmarked": true, "due": now,
        });
        let stop = request(Method::POST, "/runner/stop", &headers, task.to_string());
        stops.extend(burst(service.address, &one(stop, StatusCode::OK, "stopping")).await?);
    }
    stops.sort_unstable();
    report.row("`/runner/stop` that stops, p50", millis(percentile(&stops, 50)), "10 ms");
    Ok(())
}

/// Measures latencies while each API call takes [`API_LATENCY`].
async fn slow_apis(
    service: &Server,
    upstream: &Upstream,
    report: &mut Report,
) -> Result<(), BoxError> {
    eprintln!("APIs with a latency of {API_LATENCY:?}");
    upstream.set_latency(API_LATENCY);
    let running = deliveries(Action::Queued, "already_running");
    // Open the connections to the APIs first.
    flood(service.address, VMS, 4 * API_LATENCY, &running).await?;

    let span = Duration::from_secs(3);
    let all = flood(service.address, VMS, span, &running).await?;
    let possible = VMS as f64 * span.as_secs_f64() / API_LATENCY.as_secs_f64();
    report.row(
        "80 connections, one round of calls: share of the possible rate",
        format!("{:.2}", all.len() as f64 / possible),
        "0.9",
    );
    report.row("the same, p99", millis(percentile(&all, 99)), "45 ms");

    let same = |outcome| Load {
        requests: vec![running.requests[0].clone(); VMS],
        status: StatusCode::OK,
        outcome,
    };
    let last = async |load: &Load| -> Result<Duration, BoxError> {
        let mut last = Vec::new();
        for _ in 0..9 {
            last.push(burst(service.address, load).await?.last().copied().unwrap_or_default());
        }
        last.sort_unstable();
        Ok(percentile(&last, 50))
    };
    let before = upstream.calls();
    let took = last(&running).await?;
    report.row("burst of 80 for 80 VMs that run, last response", millis(took), "50 ms");
    let between = upstream.calls();
    let took = last(&same("already_running")).await?;
    report.row("burst of 80 for one VM that runs, last response", millis(took), "50 ms");
    report.row(
        "API calls of such a burst: 80 VMs, one VM",
        format!("{}, {}", (between - before) / 9, (upstream.calls() - between) / 9),
        "",
    );
    upstream.vms_are_stopped(true);
    let took = last(&same("starting")).await?;
    report.row("burst of 80 for one VM that is stopped, last response", millis(took), "110 ms");
    let mut alone = Vec::new();
    for _ in 0..21 {
        alone.extend(
            burst(service.address, &one(running.requests[0].clone(), StatusCode::OK, "starting"))
                .await?,
        );
    }
    alone.sort_unstable();
    report.row(
        "one `queued` for a VM that is stopped, p50",
        millis(percentile(&alone, 50)),
        "95 ms",
    );
    upstream.vms_are_stopped(false);

    let (probes, busy) = (health(), Load { requests: running.requests[..16].to_vec(), ..running });
    let (all, _) = tokio::try_join!(
        flood(service.address, 1, span, &probes),
        flood(service.address, 16, span, &busy),
    )?;
    report.row("`/health` with 16 webhooks in flight, p99", millis(percentile(&all, 99)), "1 ms");
    upstream.set_latency(Duration::ZERO);
    Ok(())
}

/// Measures the time from exec to the first response.
async fn cold_starts(setup: &Setup, report: &mut Report) -> Result<(), BoxError> {
    eprintln!("cold starts");
    let delivery = deliveries(Action::Queued, "already_running");
    let (mut healthy, mut bare, mut matched) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..21 {
        let plain = Load { outcome: "", ..delivery.clone() };
        for (floor, load, times) in [
            (false, &health(), &mut healthy),
            (true, &plain, &mut bare),
            (false, &delivery, &mut matched),
        ] {
            let address = free_address()?;
            let port = address.port();
            let mut command = if floor { setup.floor(port)? } else { setup.service(port) };
            let begun = Instant::now();
            let _process = Process::start(&mut command)?;
            times.push(first_response(address, begun, load).await?);
        }
    }
    for times in [&mut healthy, &mut bare, &mut matched] {
        times.sort_unstable();
    }
    report.row("exec to the first response, p50", millis(percentile(&healthy, 50)), "5 ms");
    report.row(
        "exec to the response to a matched delivery, tokens fetched, p50",
        millis(percentile(&matched, 50)),
        "15 ms",
    );
    report.row("the floor's, without tokens, p50", millis(percentile(&bare, 50)), "");
    Ok(())
}

/// Sends this number of deliveries.
async fn flood_with(service: &Server, count: usize) -> Result<(), BoxError> {
    eprintln!("{count} deliveries");
    // The floor has no outcome header.
    let load = deliveries(Action::Queued, "");
    let mut sent = 0;
    while sent < count {
        sent += flood(service.address, VMS, Duration::from_secs(1), &load).await?.len();
    }
    Ok(())
}
