//! The command line of the check.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use super::{Finding, Outcome, Progress, check, unreadable};
use crate::clients::google::Credentials;
use crate::clients::transport::{self, BoxError};
use crate::clock::Clock;
use crate::config::Config;

#[derive(Clone, Copy, Debug, clap::Args)]
#[command(after_help = "\
Reads the same environment variables as the service, and changes nothing. Run it as the service's own account: the
permissions that it checks are those of the account that runs it.

  ✓ correct    ! works, but probably not as intended    ✗ has to be fixed    ? could not be checked

With --json it prints an array of {subject, what, outcome, detail, fix}; outcome is ok, warning, error or not_asked.

Exit code: 0 if nothing has to be fixed; 1 if something has; 2 if the command line is wrong.")]
pub struct Options {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Checks the configuration of the process's environment, and prints the findings as they come.
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
            let mut printed = Ok(());
            let mut report = |progress: Progress<'_>| {
                if printed.is_ok() {
                    printed = screen.show(progress);
                }
            };
            let credentials = Credentials::from_environment();
            let found =
                check(config, transport::over_tls()?, credentials, Clock::system(), &mut report)
                    .await;
            printed?;
            found
        }
    };
    screen.end(&found)?;
    let has_errors = found.iter().any(|finding| finding.outcome == Outcome::Error);
    Ok(if has_errors { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

struct Screen {
    json: bool,
    /// Standard error is a terminal.
    progress: bool,
}

/// Returns to the start of the line and erases it.
const CLEAR_LINE: &str = "\r\x1b[K";

impl Screen {
    fn show(&mut self, Progress { found, done, total }: Progress<'_>) -> io::Result<()> {
        if self.progress {
            write!(io::stderr(), "{CLEAR_LINE}")?;
        }
        self.lines(found)?;
        self.progress(done, Some(total))
    }

    fn lines(&self, found: &[Finding]) -> io::Result<()> {
        if self.json {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        found.iter().try_for_each(|finding| writeln!(out, "{finding}"))?;
        out.flush()
    }

    /// Writes the progress line, which the next finding replaces.
    fn progress(&self, done: usize, total: Option<usize>) -> io::Result<()> {
        if !self.progress || total == Some(done) {
            return Ok(());
        }
        let count = total.map(|total| format!(" {done} of {total} done")).unwrap_or_default();
        write!(io::stderr(), "{CLEAR_LINE}checking …{count}")?;
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

fn summary(found: &[Finding]) -> String {
    let count = |outcome| found.iter().filter(|finding| finding.outcome == outcome).count();
    let warnings = count(Outcome::Warning);
    let parts = [
        (count(Outcome::Error), "to fix".to_owned()),
        (warnings, if warnings == 1 { "warning" } else { "warnings" }.to_owned()),
        (count(Outcome::Unknown), "could not be checked".to_owned()),
    ];
    let parts: Vec<String> = parts
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    let checks = format!("{} check{}", found.len(), if found.len() == 1 { "" } else { "s" });
    match parts.is_empty() {
        true => format!("{checks}: all passed."),
        false => format!("{checks}: {}.", parts.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Findings;
    use super::*;

    #[test]
    fn findings_are_counted_by_outcome() {
        let mut found = Findings::of("VM");
        found.ok("status", "RUNNING");
        assert_eq!(summary(&found.clone().done()), "1 check: all passed.");
        found.warn("status", "SUSPENDED", "resume it");
        found.unknown("permissions", "no answer");
        let text = summary(&found.clone().done());
        assert_eq!(text, "3 checks: 1 warning, 1 could not be checked.");
        found.fail("labels", "none", "add some");
        found.warn("labels", "many", "remove some");
        let text = summary(&found.done());
        assert_eq!(text, "5 checks: 1 to fix, 2 warnings, 1 could not be checked.");
    }
}
