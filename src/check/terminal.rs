//! The check on a terminal, or for a script.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use super::{Finding, JobStatus, Outcome, check, unreadable};
use crate::clients::google::Credentials;
use crate::clients::transport::{self, BoxError};
use crate::clock::Clock;
use crate::config::Config;

/// What `check` can be told.
#[derive(Clone, Copy, Debug, clap::Args)]
#[command(after_help = "\
It reads the environment that the service reads, and changes nothing. Run it with the service's own account, or what it
says of permissions is true of yours only.

  ✓ as it has to be    ! works, hardly as it is meant to    ✗ fix it    ? nobody answered

With --json it tells an array of {subject, what, outcome, detail, fix}; outcome is ok, warning, error or not_asked.

Exit code: 0 if nothing has to be fixed; 1 if something has; 2 if the command line is wrong.")]
pub struct Options {
    /// Tell it as JSON
    #[arg(long)]
    json: bool,
}

/// Checks what the process's environment describes, and tells on standard output.
///
/// # Errors
/// If it cannot be told.
pub async fn run(options: Options) -> Result<ExitCode, BoxError> {
    let mut screen = Screen { json: options.json, progress: io::stderr().is_terminal() };
    let found = match Config::from_env() {
        Err(problems) => {
            let found = unreadable(&problems);
            screen.lines(&found)?;
            found
        }
        Ok(config) => {
            screen.progress(0, None)?;
            let mut told = Ok(());
            let mut tell = |progress: JobStatus<'_>| {
                if told.is_ok() {
                    told = screen.show(progress);
                }
            };
            let credentials = Credentials::from_environment();
            let found =
                check(config, transport::over_tls()?, credentials, Clock::system(), &mut tell)
                    .await;
            told?;
            found
        }
    };
    screen.end(&found)?;
    let to_fix = found.iter().any(|finding| finding.outcome == Outcome::Error);
    Ok(if to_fix { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

struct Screen {
    json: bool,
    /// Whether somebody watches.
    progress: bool,
}

/// To the line's beginning, and away with what is there.
const CLEAR: &str = "\r\x1b[K";

impl Screen {
    fn show(&mut self, JobStatus { found, answered, of }: JobStatus<'_>) -> io::Result<()> {
        if self.progress {
            write!(io::stderr(), "{CLEAR}")?;
        }
        self.lines(found)?;
        self.progress(answered, Some(of))
    }

    fn lines(&self, found: &[Finding]) -> io::Result<()> {
        if self.json {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        found.iter().try_for_each(|finding| writeln!(out, "{finding}"))?;
        out.flush()
    }

    /// What is under way, where it is wiped away again.
    fn progress(&self, answered: usize, of: Option<usize>) -> io::Result<()> {
        if !self.progress || of == Some(answered) {
            return Ok(());
        }
        let of = of.map(|of| format!(" {answered} of {of} answered")).unwrap_or_default();
        write!(io::stderr(), "{CLEAR}asking …{of}")?;
        io::stderr().flush()
    }

    fn end(&self, found: &[Finding]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            serde_json::to_writer_pretty(&mut out, found)?;
            return writeln!(out);
        }
        writeln!(out, "\n{}", summary(found))
    }
}

/// How many there are of what is not right.
fn summary(found: &[Finding]) -> String {
    let count = |outcome| found.iter().filter(|finding| finding.outcome == outcome).count();
    let warnings = count(Outcome::Warning);
    let parts = [
        (count(Outcome::Error), "to fix".to_owned()),
        (warnings, if warnings == 1 { "warning" } else { "warnings" }.to_owned()),
        (count(Outcome::NotAsked), "could not be asked".to_owned()),
    ];
    let parts: Vec<String> = parts
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    match parts.is_empty() {
        true => format!("{} things were looked at: all is right.", found.len()),
        false => format!("{} things were looked at: {}.", found.len(), parts.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Findings;
    use super::*;

    #[test]
    fn what_is_not_right_is_counted() {
        let mut found = Findings::of("VM");
        found.ok("status", "RUNNING");
        assert_eq!(summary(&found.clone().done()), "1 things were looked at: all is right.");
        found.warn("status", "SUSPENDED", "resume it");
        found.not_asked("permissions", "nobody is there");
        let told = summary(&found.clone().done());
        assert_eq!(told, "3 things were looked at: 1 warning, 1 could not be asked.");
        found.fail("labels", "none", "add some");
        found.warn("labels", "many", "remove some");
        let told = summary(&found.done());
        assert_eq!(told, "5 things were looked at: 1 to fix, 2 warnings, 1 could not be asked.");
    }
}
