//! Load on the compiled program: a matrix that floods in within seconds, and minutes of mixed traffic with faults.
//!
//! The program runs as a child process, and the embedded cloud beside it in this one; all of them speak over
//! loopback, in real time. What comes out is judged as well as measured: exit code 1 if something was found.

#![expect(clippy::print_stdout, reason = "a benchmark reports to whoever started it")]

mod burst;
mod soak;
mod stage;

use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};
use runner_manager::clients::transport::BoxError;
use tokio::signal::unix::{SignalKind, signal};

/// Load on the compiled program, against the embedded cloud on loopback. Exit code 1 if a check fails.
#[derive(Parser)]
#[command(bin_name = "cargo bench --bench load --")]
struct Cli {
    #[command(subcommand)]
    part: Part,
    /// What `cargo bench` adds to the arguments of every benchmark
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Part {
    /// 256 jobs of a matrix are queued within 2 s, and then completed: about four minutes in all
    Burst,
    /// Mixed traffic with faults, while memory and file descriptors are watched
    Soak(soak::Options),
}

fn main() -> Result<ExitCode, BoxError> {
    // A plain `cargo bench` or `cargo test --benches` runs every benchmark there is, with its own options.
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
        // Handled, so that the child is killed then as well.
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            biased;
            _ = terminate.recv() => Err("told to stop".into()),
            _ = interrupt.recv() => Err("told to stop".into()),
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

/// What must not have been seen.
#[derive(Default)]
struct Findings(Vec<String>);

impl Findings {
    /// Notes what `why` tells, unless it `holds`.
    fn check(&mut self, holds: bool, why: impl FnOnce() -> String) {
        if !holds {
            self.0.push(why());
        }
    }

    fn verdict(&self) -> ExitCode {
        const MOST: usize = 20;
        println!();
        for finding in self.0.iter().take(MOST) {
            println!("VIOLATED: {finding}");
        }
        match self.0.len() {
            0 => println!("every check holds"),
            found if found > MOST => println!("VIOLATED: and {} more", found - MOST),
            _ => {}
        }
        if self.0.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// Numbers that look random and are the same for the same seed (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From `low` to `high`, both included.
    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.roll() % (high - low + 1)
    }

    fn millis(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_millis(self.between(low, high))
    }
}

/// The element below which this share of the sorted ones lies.
fn percentile<T: Copy + Ord>(mut all: Vec<T>, percent: usize) -> Option<T> {
    all.sort_unstable();
    all.get((all.len() * percent / 100).min(all.len().saturating_sub(1))).copied()
}
