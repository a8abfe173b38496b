//! The program: `serve`, the default, `check`, `explain`, and `dev`.

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

/// Starts the Compute Engine VM behind a GitHub Actions self-hosted runner when a job is queued, and stops it
/// once it has been idle long enough.
#[derive(Parser)]
#[command(
    version,
    about,
    after_help = "Configuration is read from the environment: see .env.example and README.md."
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve webhooks, callbacks and operators (the default)
    Serve,
    /// Find what is misconfigured, at Google, at GitHub and here, without changing anything
    Check(check::Options),
    /// Say what a webhook payload would do, and why, without asking anybody
    Explain(explain::Options),
    /// Try it without an account: an embedded cloud, the real service, and one job's life
    #[cfg(feature = "dev")]
    Dev(runner_manager::dev::Options),
}

/// Something that the environment says is wrong: the same code that a bad command line gets.
const BAD_CONFIGURATION: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // One thread: an instance has one CPU, and the work is waiting for others.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = match runtime {
        Ok(runtime) => runtime.block_on(run(cli.command.unwrap_or(Command::Serve))),
        Err(error) => Err(error.into()),
    };
    ended.unwrap_or_else(|error| {
        complain(&error.to_string());
        ExitCode::FAILURE
    })
}

async fn run(command: Command) -> Result<ExitCode, transport::BoxError> {
    match command {
        Command::Serve => serve_until_told_to_stop().await,
        Command::Check(options) => check::run(options).await,
        Command::Explain(options) => explain(&options),
        #[cfg(feature = "dev")]
        Command::Dev(options) => runner_manager::dev::run(options).await,
    }
}

async fn serve_until_told_to_stop() -> Result<ExitCode, transport::BoxError> {
    let config = match Config::from_env() {
        Ok(config) => config,
        Err(problems) => return Ok(refuse(&problems)),
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
    let serving =
        serve::until_told_to_stop(listener, routes::router(app.clone()), app.draining.clone());
    tokio::pin!(serving);
    tokio::select! {
        biased;
        ended = &mut serving => ended?,
        () = app.prefetch_tokens() => serving.await?,
    }
    Ok(ExitCode::SUCCESS)
}

fn explain(options: &explain::Options) -> Result<ExitCode, transport::BoxError> {
    let routing = match Routing::from_env() {
        Ok(routing) => routing,
        Err(problems) => return Ok(refuse(&problems)),
    };
    for warning in &routing.warnings {
        complain(&format!("warning: {warning}"));
    }
    explain::run(options, &routing)?;
    Ok(ExitCode::SUCCESS)
}

fn refuse(problems: &Problems) -> ExitCode {
    complain(&problems.to_string());
    ExitCode::from(BAD_CONFIGURATION)
}

#[expect(clippy::print_stderr, reason = "for whoever started it; logging may not be set up yet")]
fn complain(problem: &str) {
    eprintln!("runner-manager: {problem}");
}
