//! The demo.

/// Options.
#[derive(Debug, clap::Args)]
pub struct Options {}

/// Run.
///
/// # Errors
/// None yet.
pub async fn run(
    _options: Options,
) -> Result<std::process::ExitCode, crate::clients::transport::BoxError> {
    Ok(std::process::ExitCode::SUCCESS)
}
