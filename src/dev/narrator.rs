//! The demo's output, a line for each event.

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{SECRET, Stage};
use crate::clock::{Clock, Timestamp};
use crate::emulators::{Event, Reply};

/// Writes to standard output, in colour if that is a terminal and NO_COLOR is not set.
#[derive(Clone)]
pub(super) struct Narrator {
    color: bool,
    clock: Clock,
    /// The last line, which is not repeated: a runner may be registered in two repositories.
    last: Arc<Mutex<String>>,
}

const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "31";
const GREEN: &str = "32";
const CYAN: &str = "36";

/// The columns of a terminal in its usual width.
const COLUMNS: usize = 80;

/// The text in lines that end between words, all but the first indented.
fn wrapped(text: &str, indent: usize) -> String {
    let mut lines = String::new();
    let mut column = indent;
    for word in text.split(' ') {
        let length = word.chars().count();
        if column > indent && column + 1 + length > COLUMNS {
            lines += "\n";
            lines += &" ".repeat(indent);
            column = indent;
        } else if column > indent {
            lines += " ";
            column += 1;
        }
        lines += word;
        column += length;
    }
    lines
}

impl Narrator {
    pub(super) fn new(clock: Clock) -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
        Self { color: wanted && std::io::stdout().is_terminal(), clock, last: Arc::default() }
    }

    fn paint(&self, style: &str, text: &str) -> String {
        if self.color { format!("\x1b[{style}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn line(&self, text: &str) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if *last != text {
            // The reader of the pipe may have exited; the demo continues for its exit code.
            writeln!(std::io::stdout(), "{text}").ok();
            text.clone_into(&mut last);
        }
    }

    /// Prints what the stories are about.
    pub(super) fn opening(&self) {
        self.line(&format!(
            "\n{}",
            wrapped(
                "Four VMs, all stopped: runner-1 serves two repositories, acme/app and acme/web, gpu-1 the GPU jobs of \
                 acme/app, and pool-1 and pool-2, in two zones, are a pool of acme/web. The service is the real one. \
                 Compute Engine, Cloud Tasks and GitHub are embedded, and behave like the real ones. Two minutes pass in a second, and VM_INACTIVE_MINUTES is 1.",
                0
            )
        ));
    }

    /// Prints the time that a VM was up, against the time of the stories.
    pub(super) fn closing(&self, vm: &str, up: Duration, all: Duration) {
        let (up, all) = (up.as_secs() / 60, all.as_secs() / 60);
        let percent = 100 * up / all.max(1);
        self.line(&format!(
            "\n{}",
            self.paint(
                BOLD,
                &wrapped(
                    &format!(
                        "In {all} minutes, {vm} was up for {up}: you pay for {percent} % of what a VM costs that is \
                         always on."
                    ),
                    0
                )
            )
        ));
    }

    /// Prints the heading of a story.
    pub(super) fn title(&self, number: usize, title: &str, about: &str) {
        self.line(&format!(
            "\n{}\n{}\n",
            self.paint(BOLD, &format!("{number}. {title}")),
            self.paint(DIM, &wrapped(about, 0))
        ));
    }

    /// Prints an action of the story itself.
    pub(super) fn aside(&self, text: &str) {
        self.print(self.clock.now(), "world", CYAN, text);
    }

    /// Prints the result of a story.
    pub(super) fn verdict(&self, kept: Result<&str, &str>) {
        self.line(&match kept {
            Ok(promise) => self.paint(GREEN, &format!("  kept: {promise}")),
            Err(broken) => self.paint(RED, &format!("  BROKEN: {broken}")),
        });
    }

    fn print(&self, at: Timestamp, source: &str, style: &str, text: &str) {
        let time = self.paint(DIM, &at.time_of_day());
        let text = wrapped(text, 28);
        self.line(&format!("  {time}  {}  {text}", self.paint(style, &format!("{source:<14}"))));
    }

    pub(super) fn describe(&self, event: &Event) {
        match event {
            Event::Instance { at, vm, status, cause } => {
                self.print(*at, "Compute Engine", CYAN, &format!("VM {vm} is {status} ({cause})"));
            }
            Event::Job { at, id, repo, status, runner } => {
                let on = runner.as_ref().map(|name| format!(" on {name}")).unwrap_or_default();
                self.print(*at, "GitHub", CYAN, &format!("job {id} of {repo} is {status}{on}"));
            }
            Event::Runner { at, name, online } => {
                let state = if *online { "online" } else { "offline" };
                self.print(*at, "GitHub", CYAN, &format!("runner {name} is {state}"));
            }
            Event::Webhook { at, action, reply, .. } => {
                // The service ignores this action.
                if action != "in_progress" {
                    self.service(*at, &format!("webhook {action}"), reply);
                }
            }
            Event::Callback { at, reply, .. } => self.service(*at, "pass", reply),
        }
    }

    fn service(&self, at: Timestamp, request: &str, reply: &Reply) {
        let outcome =
            reply.headers.get("x-runner-manager-outcome").and_then(|value| value.to_str().ok());
        let (style, result) = match reply.status {
            Some(status) if status.is_success() => (GREEN, outcome.unwrap_or("ok").to_owned()),
            Some(status) => (RED, format!("{status}: {}", outcome.unwrap_or_default())),
            None => (RED, "not delivered".to_owned()),
        };
        self.print(at, "Runner Manager", style, &format!("{request} -> {result}"));
    }

    /// Prints the URL of the page, before the first story begins.
    pub(super) fn welcome(&self, stage: &Stage) {
        let url = &stage.service_url;
        self.line(&self.paint(BOLD, &format!("Watch {url}/ in a browser; secret: {SECRET}")));
    }

    /// Prints commands for experiments.
    pub(super) fn instructions(&self, stage: &Stage, real_time: bool) {
        let Stage { service_url, cloud_url, .. } = stage;
        let heading = |text: &str| self.paint(BOLD, text);
        let pace =
            if real_time { "It runs in real time." } else { "Two minutes pass in a second." };
        self.line(&format!(
            "\n{}\n{pace} Ctrl-C ends it.\n\n\
             # queue a job that runs for two minutes; with the labels self-hosted,gpu it runs on gpu-1\n\
             curl -X POST '{cloud_url}/play/job?repo=acme/app&labels=self-hosted&seconds=120'\n\n\
             # start and stop a VM by hand; /runner/hold and /runner/release work alike\n\
             curl -X POST {service_url}/runner/start -H 'X-Runner-Secret: {SECRET}' -d '{{\"vm_instance_name\": \"gpu-1\"}}'\n\
             curl -X POST {service_url}/runner/stop -H 'X-Runner-Secret: {SECRET}' -d '{{\"vm_instance_name\": \"gpu-1\"}}'\n\n\
             # cause failures: preempt or stop a VM, an outage of GitHub, lost webhooks, a missing permission\n\
             curl -X POST '{cloud_url}/play/vm?name=runner-1&do=preempt'\n\
             curl -X POST '{cloud_url}/play/github?outage=true'\n\
             curl -X POST '{cloud_url}/play/lose?webhooks=1'\n\
             curl -X POST '{cloud_url}/play/forbid?permission=compute.instances.stop'\n\
             curl -X POST '{cloud_url}/play/permit?permission=compute.instances.stop'\n\
             # an unknown name is answered with those that there are\n\n\
             # run the resync, which finds jobs whose webhooks were lost\n\
             curl -X POST {service_url}/runner/reconcile -H 'X-Runner-Secret: {SECRET}'\n\n\
             # the public page and the operators' status; a browser shows both as a page\n\
             curl {service_url}/\n\
             curl {service_url}/runner/status -H 'X-Runner-Secret: {SECRET}'\n\n{}\n{}\n",
            heading(&format!("The service is at {service_url}, the embedded cloud at {cloud_url}.")),
            heading(if real_time {
                "# the environment for other clients of this cloud, such as `runner-manager check`"
            } else {
                "# the environment for other clients of this cloud; `runner-manager check` needs a demo with --real-time"
            }),
            stage.exports(),
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_between_words() {
        let text = "runner-1: starting: job 54000000011 of acme/app is queued; next check 14:41:30, and more";
        let lines = wrapped(text, 28);
        assert_eq!(lines.split_whitespace().collect::<Vec<_>>().join(" "), text);
        let (first, rest) = lines.split_once('\n').unwrap();
        assert!(first.len() + 28 <= 80);
        assert!(rest.lines().all(|line| line.len() <= 80 && line.starts_with(&" ".repeat(28))));
        let long = "x".repeat(100);
        assert_eq!(wrapped(&long, 28), long);
    }
}
