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

What has to be fixed comes first. On a terminal the correct ones are only counted, unless --verbose is given. With --json it
prints an array of {subject, what, outcome, detail, fix}; outcome is ok, warning, error or not_asked.

Exit code: 0 if everything was checked and nothing has to be fixed; 1 if something has to be fixed; 2 if the command line is
wrong; 3 if nothing has to be fixed, but something could not be checked.")]
pub struct Options {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print the correct ones too, on a terminal
    #[arg(short, long)]
    verbose: bool,
}

/// The exit code if nothing is wrong, and something could not be checked.
const EXIT_UNKNOWN: u8 = 3;

/// Checks the configuration of the process's environment, and prints the findings.
pub async fn run(options: Options) -> Result<ExitCode, BoxError> {
    let is_terminal = io::stdout().is_terminal();
    let mut screen = Screen {
        json: options.json,
        progress: io::stderr().is_terminal(),
        style: Style {
            folded: is_terminal && !options.verbose,
            colored: is_terminal && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()),
        },
    };
    let found = match Config::from_env() {
        Err(problems) => unreadable(&problems),
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
    let has = |outcome| found.iter().any(|finding| finding.outcome == outcome);
    Ok(if has(Outcome::Error) {
        ExitCode::FAILURE
    } else if has(Outcome::Unknown) {
        ExitCode::from(EXIT_UNKNOWN)
    } else {
        ExitCode::SUCCESS
    })
}

struct Screen {
    json: bool,
    /// Standard error is a terminal.
    progress: bool,
    style: Style,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Style {
    /// The correct findings are only counted.
    folded: bool,
    colored: bool,
}

/// Returns to the start of the line and erases it.
const CLEAR_LINE: &str = "\r\x1b[K";

impl Screen {
    fn show(&mut self, Progress { done, total, .. }: Progress<'_>) -> io::Result<()> {
        self.progress(done, Some(total))
    }

    /// Writes the progress line over the one before. The last one is erased.
    fn progress(&self, done: usize, total: Option<usize>) -> io::Result<()> {
        if !self.progress {
            return Ok(());
        }
        if total == Some(done) {
            return write!(io::stderr(), "{CLEAR_LINE}");
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
        write!(out, "{}", lines(found, self.style))?;
        writeln!(out, "\n{}", summary(found))
    }
}

/// The findings, those that need something first.
fn lines(found: &[Finding], style: Style) -> String {
    let order = [
        (Outcome::Error, "31"),
        (Outcome::Warning, "33"),
        (Outcome::Unknown, "36"),
        (Outcome::Ok, "32"),
    ];
    let mut text = String::new();
    for (outcome, color) in order {
        let of_outcome: Vec<_> = found.iter().filter(|one| one.outcome == outcome).collect();
        if outcome == Outcome::Ok && style.folded && !of_outcome.is_empty() {
            let count = of_outcome.len();
            text += &colored(&format!("✓ {count} correct (--verbose lists them)\n"), color, style);
            continue;
        }
        for finding in of_outcome {
            text += &colored(&format!("{finding}\n"), color, style);
        }
    }
    text
}

/// Colors the symbol at the beginning of a line.
fn colored(line: &str, color: &str, style: Style) -> String {
    match line.split_once(' ') {
        Some((symbol, rest)) if style.colored => format!("\x1b[{color}m{symbol}\x1b[0m {rest}"),
        _ => line.to_owned(),
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
    fn what_has_to_be_fixed_comes_first() {
        let mut found = Findings::of("VM");
        found.ok("status", "RUNNING");
        found.unknown("permissions", "no answer");
        found.warn("labels", "many", "remove some");
        found.fail("runner", "none", "register it");
        found.ok("zone", "a");
        let found = found.done();
        let plain = Style { folded: false, colored: false };
        let firsts = |text: &str| -> String {
            text.lines().filter_map(|line| line.chars().next()).filter(|c| *c != ' ').collect()
        };
        assert_eq!(firsts(&lines(&found, plain)), "✗!?✓✓");
        let folded = lines(&found, Style { folded: true, ..plain });
        assert!(folded.ends_with("\n✓ 2 correct (--verbose lists them)\n"), "{folded}");
        let colored = lines(&found, Style { colored: true, ..plain });
        assert!(colored.starts_with("\x1b[31m✗\x1b[0m VM: runner: none\n    -> "), "{colored}");
    }

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
