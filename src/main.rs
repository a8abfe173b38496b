//! The command line: `serve` (the default), `check`, `explain` and `dev`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use runner_manager::clients::google::Credentials;
use runner_manager::clients::transport;
use runner_manager::clock::Clock;
use runner_manager::config::{Config, Problems, Routing};
use runner_manager::state::AppState;
use runner_manager::telemetry::{self, Style};
use runner_manager::{check, explain};
use runner_manager::{routes, serve};

/// Starts the Compute Engine VM behind a GitHub Actions self-hosted runner when a job is queued, and stops it when it has
/// been idle for a while.
#[derive(Parser)]
#[command(
    version,
    about,
    after_help = "The configuration is read from environment variables: see .env.example and docs/configuration.md."
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve requests from GitHub, Cloud Tasks and operators (the default)
    Serve,
    /// Check the configuration of this service, Google Cloud and GitHub, without changing anything
    Check(check::Options),
    /// Show what a webhook payload would do, and why, without calling any API
    Explain(explain::Options),
    /// Try the service without an account, against an embedded cloud
    #[cfg(feature = "dev")]
    Dev(runner_manager::dev::Options),
}

/// The exit code for a bad configuration; clap uses the same for a bad command line.
const EXIT_BAD_CONFIGURATION: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // One thread: an instance has one CPU, and most of the work is waiting for APIs.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(cli.command.unwrap_or(Command::Serve))),
        Err(error) => Err(error.into()),
    };
    result.unwrap_or_else(|error| {
        print_problem(&error.to_string());
        ExitCode::FAILURE
    })
}

async fn run(command: Command) -> Result<ExitCode, transport::BoxError> {
    match command {
        Command::Serve => run_service().await,
        Command::Check(options) => check::run(options).await,
        Command::Explain(options) => explain(&options),
        #[cfg(feature = "dev")]
        Command::Dev(options) => runner_manager::dev::run(options).await,
    }
}

async fn run_service() -> Result<ExitCode, transport::BoxError> {
    let config = match Config::from_env() {
        Ok(config) => config,
        Err(problems) => return Ok(bad_configuration(&problems)),
    };
    telemetry::init(Style::detect(&config.project))?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let listener = serve::listen(config.port).await?;
    let vms = config.fleet.vms().count();
    tracing::info!(
        "runner-manager {} serves {vms} VM(s) on port {}",
        env!("CARGO_PKG_VERSION"),
        config.port
    );
    let app = AppState::new(
        config,
        transport::over_tls()?,
        Credentials::from_environment(),
        Clock::system(),
    );
    let serving = serve::until_signal(listener, routes::router(app.clone()), app.draining.clone());
    tokio::pin!(serving);
    tokio::select! {
        biased;
        result = &mut serving => result?,
        () = app.prefetch_tokens() => serving.await?,
    }
    Ok(ExitCode::SUCCESS)
}

fn explain(options: &explain::Options) -> Result<ExitCode, transport::BoxError> {
    let routing = match Routing::from_env() {
        Ok(routing) => routing,
        Err(problems) => return Ok(bad_configuration(&problems)),
    };
    for warning in &routing.warnings {
        print_problem(&format!("warning: {warning}"));
    }
    explain::run(options, &routing)?;
    Ok(ExitCode::SUCCESS)
}

fn bad_configuration(problems: &Problems) -> ExitCode {
    print_problem(&problems.to_string());
    ExitCode::from(EXIT_BAD_CONFIGURATION)
}

#[expect(clippy::print_stderr, reason = "logging may not be set up yet")]
fn print_problem(problem: &str) {
    eprintln!("runner-manager: {problem}");
}
