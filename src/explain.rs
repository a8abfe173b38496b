//! `runner-manager explain`: what a webhook payload would do, and why. Nobody is asked.
//!
//! The payload is read, and routed, by what the webhook's handler uses; only the telling is made here.

use std::fmt;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use serde::Serialize;

use crate::config::Routing;
use crate::fleet::{Entry, Fleet, Label, Mismatch, Vm};
use crate::lifecycle::steps;
use crate::routes::{self, Job, LARGEST_BODY, Meaning, WORKFLOW_JOB};

/// What `explain` can be told.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Of the environment it needs RUNNER_CONFIG alone, and counts with VM_INACTIVE_MINUTES if that is set. Copy the payload
from the webhook's page on GitHub: Recent Deliveries, a delivery, Payload.

  runner-manager explain payload.json
  gh api /repos/OWNER/REPO/hooks/HOOK/deliveries/ID --jq .request.payload | runner-manager explain -

Exit code: 0 if the payload was understood, whether it matches or not; 1 if it cannot be read; 2 if RUNNER_CONFIG or
the command line is wrong.")]
pub struct Options {
    /// The payload of a workflow_job delivery, JSON as GitHub sent it; `-` reads standard input
    #[arg(value_name = "FILE|-")]
    file: PathBuf,
    /// Tell it as JSON
    #[arg(long)]
    json: bool,
}

/// Explains the payload, on standard output.
///
/// # Errors
/// If there is none that can be read; the text says what to do.
pub fn run(options: &Options, routing: &Routing) -> Result<(), Unexplained> {
    let payload = options.read()?;
    let unreadable = |why| Unexplained::Unreadable(options.source(), why);
    let explanation = Explanation::of(&payload, routing).map_err(unreadable)?;
    let text = if options.json {
        serde_json::to_string_pretty(&explanation).unwrap_or_default() + "\n"
    } else {
        explanation.to_string()
    };
    io::stdout().write_all(text.as_bytes()).map_err(Unexplained::Untold)
}

/// Why nothing was explained.
#[derive(Debug, thiserror::Error)]
pub enum Unexplained {
    /// There is no such file, or it may not be read.
    #[error("{0} cannot be read: {1}")]
    NoFile(String, io::Error),
    /// The service would refuse it for its length.
    #[error("{0} is larger than 1 MiB: the service refuses that, and GitHub's are about 15 KB")]
    TooLarge(String),
    /// There is nothing in it.
    #[error("{0} is empty: give it the payload of a workflow_job delivery")]
    Empty(String),
    /// It is not what GitHub sends.
    #[error(
        "{0} is not the payload of a workflow_job delivery: {1}. Payloads of other events are acknowledged, and \
         nothing is done"
    )]
    Unreadable(String, routes::Unreadable),
    /// Whoever listens has gone.
    #[error("cannot write to standard output: {0}")]
    Untold(io::Error),
}

impl Options {
    fn source(&self) -> String {
        match self.file.to_str() {
            Some("-") => "standard input".into(),
            _ => self.file.display().to_string(),
        }
    }

    fn read(&self) -> Result<Vec<u8>, Unexplained> {
        let mut bytes = Vec::new();
        // A little more, so that one that is too long can be told.
        let most = LARGEST_BODY as u64 + 1;
        let read = if self.file.as_os_str() == "-" {
            io::stdin().take(most).read_to_end(&mut bytes)
        } else {
            std::fs::File::open(&self.file).and_then(|file| file.take(most).read_to_end(&mut bytes))
        };
        read.map_err(|error| Unexplained::NoFile(self.source(), error))?;
        // What an editor or a shell may have put around it.
        let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes).trim_ascii();
        match text.len() {
            0 => Err(Unexplained::Empty(self.source())),
            _ if bytes.len() > LARGEST_BODY => Err(Unexplained::TooLarge(self.source())),
            _ => Ok(text.to_owned()),
        }
    }
}

/// What a payload would do.
#[derive(Clone, Debug, Serialize)]
struct Explanation<'a> {
    event: &'static str,
    action: Option<&'static str>,
    #[serde(flatten)]
    job: Option<AJob>,
    /// The entries, and why each is or is not the one.
    entries: Vec<Verdict<'a>>,
    /// The VM that it is about, if there is one.
    vm_instance_name: Option<&'a str>,
    vm_instance_zone: Option<&'a str>,
    /// Why it is that VM, or none.
    because: String,
    /// What would follow.
    steps: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
struct AJob {
    id: u64,
    repo: String,
    labels: Vec<String>,
    runner_name: Option<String>,
}

/// What an entry says of the job.
#[derive(Clone, Debug, Serialize)]
struct Verdict<'a> {
    /// Its place in RUNNER_CONFIG, from 0.
    entry: usize,
    repo: &'a str,
    labels: &'a [Label],
    vm_instance_name: &'a str,
    vm_instance_zone: &'a str,
    matches: bool,
    /// Why not, or why it is not the one all the same.
    why: Option<String>,
}

impl<'a> Explanation<'a> {
    fn of(body: &[u8], routing: &'a Routing) -> Result<Self, routes::Unreadable> {
        let Routing { fleet, inactive, .. } = routing;
        let payload = routes::payload(body, body.starts_with(b"payload="))?;
        let meaning = Meaning::of(WORKFLOW_JOB, &payload)?;
        let vm = meaning.vm(fleet).map(|managed| &managed.vm);
        let (action, job) = match &meaning {
            Meaning::Nothing(why) => return Ok(Self::nothing(why)),
            Meaning::Queued { job, .. } => ("queued", job),
            Meaning::Completed(job) => ("completed", job),
        };
        let entries = verdicts(fleet, job);
        let because = because(fleet, job, vm, &entries);
        let steps = match (&meaning, vm) {
            (_, None) | (Meaning::Nothing(_), _) => Vec::new(),
            (Meaning::Queued { awaits_review: true, .. }, _) => steps::of_a_waiting_job(),
            (Meaning::Queued { .. }, _) => steps::of_a_queued_job(*inactive),
            (Meaning::Completed(_), _) => steps::of_a_completed_job(*inactive),
        };
        Ok(Self {
            event: WORKFLOW_JOB,
            action: Some(action),
            job: Some(AJob::from(job)),
            entries,
            vm_instance_name: vm.map(|vm| vm.name.as_str()),
            vm_instance_zone: vm.map(|vm| vm.zone.as_str()),
            because,
            steps,
        })
    }

    fn nothing(why: &str) -> Self {
        Self {
            event: WORKFLOW_JOB,
            action: None,
            job: None,
            entries: Vec::new(),
            vm_instance_name: None,
            vm_instance_zone: None,
            because: format!("{why}: it is acknowledged, and nothing is done"),
            steps: Vec::new(),
        }
    }
}

/// Why it is that VM, or none.
fn because(fleet: &Fleet, job: &Job, vm: Option<&Vm>, entries: &[Verdict<'_>]) -> String {
    let first = entries.iter().find(|verdict| verdict.matches).map(|verdict| verdict.entry);
    match (vm, first) {
        (None, _) => "no entry matches: it is acknowledged, and nothing is done".into(),
        (Some(vm), Some(first)) if fleet.entries()[first].vm == *vm => {
            format!("RUNNER_CONFIG[{first}] is the first that matches")
        }
        (Some(_), _) => {
            let runner = visible(job.runner.as_deref().unwrap_or_default());
            format!("its runner {runner} ran it, which is that VM's")
        }
    }
}

fn verdicts<'a>(fleet: &'a Fleet, job: &Job) -> Vec<Verdict<'a>> {
    let mut taken = None;
    let verdict = |(nth, entry): (usize, &'a Entry)| {
        let mismatch = entry.why_not(&job.repo, &job.labels);
        let matches = mismatch.is_none();
        let why = match mismatch {
            Some(mismatch) => Some(words(&mismatch)),
            None => taken.map(|first| format!("but RUNNER_CONFIG[{first}] comes first")),
        };
        if matches {
            taken.get_or_insert(nth);
        }
        Verdict {
            entry: nth,
            repo: entry.repo.as_str(),
            labels: if entry.runner_labels.is_empty() {
                &entry.labels
            } else {
                &entry.runner_labels
            },
            vm_instance_name: &entry.vm.name,
            vm_instance_zone: &entry.vm.zone,
            matches,
            why,
        }
    };
    fleet.entries().iter().enumerate().map(verdict).collect()
}

fn words(mismatch: &Mismatch) -> String {
    let list = |labels: &[Label]| {
        visible(&labels.iter().map(Label::as_str).collect::<Vec<_>>().join(", "))
    };
    match mismatch {
        Mismatch::OtherRepository => "it is for another repository".into(),
        Mismatch::JobLacks(labels) => format!("the job does not ask for {}", list(labels)),
        Mismatch::RunnerLacks(labels) => {
            format!("the job asks for {}, which is not among runner_labels", list(labels))
        }
        Mismatch::NoLabels => "the job asks for no label at all".into(),
    }
}

impl From<&Job> for AJob {
    fn from(job: &Job) -> Self {
        Self {
            id: job.id,
            repo: job.repo.as_str().to_owned(),
            labels: job.labels.iter().map(|label| label.as_str().to_owned()).collect(),
            runner_name: job.runner.clone(),
        }
    }
}

/// Anybody's text, without what a terminal would take for a command.
fn visible(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

impl fmt::Display for Explanation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.event)?;
        if let Some(action) = self.action {
            write!(f, " {action}")?;
        }
        if let Some(AJob { id, repo, labels, runner_name }) = &self.job {
            write!(
                f,
                ": job {id} of {} asks for [{}]",
                visible(repo),
                visible(&labels.join(", "))
            )?;
            if let Some(runner) = runner_name {
                write!(f, " and was run by {}", visible(runner))?;
            }
        }
        writeln!(f, "\n")?;
        for verdict in &self.entries {
            writeln!(f, "  {verdict}")?;
        }
        if !self.entries.is_empty() {
            writeln!(f)?;
        }
        match (self.vm_instance_name, self.vm_instance_zone) {
            (Some(name), Some(zone)) => {
                writeln!(f, "VM {}: {}.", Vm::new(name, zone), self.because)?;
                writeln!(f, "What would follow:")?;
            }
            _ => writeln!(f, "No VM: {}.", self.because)?,
        }
        for (nth, step) in self.steps.iter().enumerate() {
            writeln!(f, "  {}. {step}", nth + 1)?;
        }
        Ok(())
    }
}

impl fmt::Display for Verdict<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels = self.labels.iter().map(Label::as_str).collect::<Vec<_>>().join(", ");
        let (mark, verdict) = if self.matches { ("✓", "matches") } else { ("✗", "no") };
        let Self { entry, repo, vm_instance_name: vm, .. } = self;
        write!(f, "{mark} RUNNER_CONFIG[{entry}] {repo} [{labels}] -> {vm}: {verdict}")?;
        match &self.why {
            Some(why) => write!(f, ", {why}"),
            None => Ok(()),
        }
    }
}
