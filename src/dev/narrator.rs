//! Tells what happens, a line at a time.

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};

use super::{SECRET, Stage};
use crate::clock::{Clock, Timestamp};
use crate::emulators::{Happening, Reply};

/// Writes to standard output, in colour where that is a terminal and NO_COLOR is not set.
#[derive(Clone)]
pub(super) struct Narrator {
    color: bool,
    clock: Clock,
    /// The last line: a runner that is registered twice would be told twice.
    last: Arc<Mutex<String>>,
}

const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "31";
const GREEN: &str = "32";
const CYAN: &str = "36";

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
            // Whoever read the lines may be gone; the demo goes on for the sake of its exit code.
            writeln!(std::io::stdout(), "{text}").ok();
            text.clone_into(&mut last);
        }
    }

    /// What a story is about.
    pub(super) fn title(&self, number: usize, title: &str, about: &str) {
        self.line(&format!(
            "\n{}\n{}\n",
            self.paint(BOLD, &format!("{number}. {title}")),
            self.paint(DIM, about)
        ));
    }

    /// Something that the story itself does.
    pub(super) fn aside(&self, text: &str) {
        self.said(self.clock.now(), "world", CYAN, text);
    }

    /// How a story ended.
    pub(super) fn verdict(&self, kept: Result<&str, &str>) {
        self.line(&match kept {
            Ok(promise) => self.paint(GREEN, &format!("  kept: {promise}")),
            Err(broken) => self.paint(RED, &format!("  BROKEN: {broken}")),
        });
    }

    fn said(&self, at: Timestamp, who: &str, style: &str, what: &str) {
        let time = self.paint(DIM, &at.time_of_day());
        self.line(&format!("  {time}  {}  {what}", self.paint(style, &format!("{who:<14}"))));
    }

    /// One line for what happened.
    pub(super) fn tell(&self, happening: &Happening) {
        match happening {
            Happening::Instance { at, vm, status, cause } => {
                self.said(*at, "Compute Engine", CYAN, &format!("VM {vm} is {status} ({cause})"));
            }
            Happening::Job { at, id, repo, status, runner } => {
                let on = runner.as_ref().map(|name| format!(" on {name}")).unwrap_or_default();
                self.said(*at, "GitHub", CYAN, &format!("job {id} of {repo} is {status}{on}"));
            }
            Happening::Runner { at, name, online } => {
                let state = if *online { "online" } else { "offline" };
                self.said(*at, "GitHub", CYAN, &format!("runner {name} is {state}"));
            }
            Happening::Webhook { at, action, reply, .. } => {
                // What needs nothing is not worth a line.
                if action != "in_progress" {
                    self.service(*at, &format!("webhook {action}"), reply);
                }
            }
            Happening::Callback { at, path, reply, .. } => {
                let check = if path.ends_with("start") { "start check" } else { "stop check" };
                self.service(*at, check, reply);
            }
        }
    }

    fn service(&self, at: Timestamp, asked: &str, reply: &Reply) {
        let outcome =
            reply.headers.get("x-runner-manager-outcome").and_then(|value| value.to_str().ok());
        let (style, answer) = match reply.status {
            Some(status) if status.is_success() => (GREEN, outcome.unwrap_or("ok").to_owned()),
            Some(status) => (RED, format!("{status}: {}", outcome.unwrap_or_default())),
            None => (RED, "lost on the way".to_owned()),
        };
        self.said(at, "Runner Manager", style, &format!("{asked} -> {answer}"));
    }

    /// Where to watch, said before the first story begins.
    pub(super) fn welcome(&self, stage: &Stage) {
        let url = &stage.service_url;
        self.line(&self.paint(BOLD, &format!("Watch {url}/ in a browser; secret: {SECRET}")));
    }

    /// How to go on.
    pub(super) fn invite(&self, stage: &Stage, real_time: bool) {
        let Stage { service_url, cloud_url, .. } = stage;
        let heading = |text: &str| self.paint(BOLD, text);
        let pace =
            if real_time { "Time passes as it does." } else { "Two minutes pass in a second." };
        self.line(&format!(
            "\n{}\n{pace} Ctrl-C ends it.\n\n\
             # queue a job that runs for two minutes; labels of another VM: self-hosted,gpu\n\
             curl -X POST '{cloud_url}/play/job?repo=acme/app&labels=self-hosted&seconds=120'\n\n\
             # start and stop by hand; hold and release likewise\n\
             curl -X POST {service_url}/runner/start -H 'X-Runner-Secret: {SECRET}' -d '{{\"vm_instance_name\": \"gpu-1\"}}'\n\
             curl -X POST {service_url}/runner/stop -H 'X-Runner-Secret: {SECRET}' -d '{{\"vm_instance_name\": \"gpu-1\"}}'\n\n\
             # trouble: preempt, stop; GitHub's outage on, off; webhooks lost; a permission taken away, given back\n\
             curl -X POST '{cloud_url}/play/vm?name=runner-1&do=preempt'\n\
             curl -X POST '{cloud_url}/play/github?outage=true'\n\
             curl -X POST '{cloud_url}/play/lose?webhooks=1'\n\
             curl -X POST '{cloud_url}/play/forbid?permission=compute.instances.stop'\n\
             curl -X POST '{cloud_url}/play/permit?permission=compute.instances.stop'\n\n\
             # find what was lost, and make up for it\n\
             curl -X POST {service_url}/runner/reconcile -H 'X-Runner-Secret: {SECRET}'\n\n\
             # what the service shows to anyone, and to an operator: in a browser as a page\n\
             curl {service_url}/\n\
             curl {service_url}/runner/status -H 'X-Runner-Secret: {SECRET}'\n\n{}\n{}\n",
            heading(&format!("The service is at {service_url}, the embedded cloud at {cloud_url}.")),
            heading("# the environment in which any client, or another runner-manager, is at home here"),
            stage.exports(),
        ));
    }
}
