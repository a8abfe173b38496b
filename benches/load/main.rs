//! Load tests of the compiled program: a matrix whose jobs are queued within seconds, and minutes of mixed traffic with
//! faults.
//!
//! The program runs as a child process, the embedded cloud in this one; they talk over loopback, in real time. Results are
//! checked as well as measured: the exit code is 1 if a check fails.

#![expect(clippy::print_stdout, reason = "a benchmark prints its report")]

mod burst;
mod soak;
mod stage;

use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};
use runner_manager::clients::transport::BoxError;
use tokio::signal::unix::{SignalKind, signal};

/// Tests the compiled program under load, against the embedded cloud. Exit code 1 if a check fails.
#[derive(Parser)]
#[command(bin_name = "cargo bench --bench load --")]
struct Cli {
    #[command(subcommand)]
    part: Part,
    /// Ignored; `cargo bench` passes it to every benchmark
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Part {
    /// Queue 256 jobs of a matrix within 2 s, then complete them; takes about four minutes
    Burst,
    /// Send mixed traffic with faults, and watch memory and file descriptors
    Soak(soak::Options),
}

fn main() -> Result<ExitCode, BoxError> {
    // `cargo bench` and `cargo test --benches` run every benchmark with options of their own.
    if !std::env::args()
        .skip(1)
        .any(|argument| matches!(argument.as_str(), "burst" | "soak" | "help" | "--help" | "-h"))
    {
        Cli::command().print_help()?;
        return Ok(ExitCode::SUCCESS);
    }
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let findings = runtime.block_on(async {
        // Handled, so that the child is killed too.
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            biased;
            _ = terminate.recv() => Err("interrupted by a signal".into()),
            _ = interrupt.recv() => Err("interrupted by a signal".into()),
            findings = async {
                match cli.part {
                    Part::Burst => burst::run().await,
                    Part::Soak(options) => soak::run(&options).await,
                }
            } => findings,
        }
    })?;
    Ok(findings.verdict())
}

/// The failed checks.
#[derive(Default)]
struct Findings(Vec<String>);

impl Findings {
    /// Adds a failure unless the check `holds`.
    fn check(&mut self, holds: bool, why: impl FnOnce() -> String) {
        if !holds {
            self.0.push(why());
        }
    }

    fn verdict(&self) -> ExitCode {
        const MAX_PRINTED: usize = 20;
        println!();
        for finding in self.0.iter().take(MAX_PRINTED) {
            println!("FAILED: {finding}");
        }
        match self.0.len() {
            0 => println!("all checks passed"),
            found if found > MAX_PRINTED => println!("FAILED: and {} more", found - MAX_PRINTED),
            _ => {}
        }
        if self.0.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// A deterministic pseudo-random number generator (SplitMix64).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from `low` to `high`, inclusive.
    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }

    fn millis(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_millis(self.between(low, high))
    }
}

fn percentile<T: Copy + Ord>(mut all: Vec<T>, percent: usize) -> Option<T> {
    all.sort_unstable();
    all.get((all.len() * percent / 100).min(all.len().saturating_sub(1))).copied()
}
