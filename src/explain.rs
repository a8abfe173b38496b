//! `runner-manager explain`: shows what a webhook payload would do, and why, without calling any API.
//!
//! The payload is parsed and routed by the code of the webhook's handler. This module only describes the result.

use std::fmt;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::config::Routing;
use crate::fleet::{Entry, Fleet, Label, Mismatch, Pool, Quoted, RepoName, Vm};
use crate::lifecycle::steps;
use crate::routes::{self, Job, LARGEST_BODY, WORKFLOW_JOB, WebhookEvent};

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Requires the variable RUNNER_CONFIG, and uses VM_INACTIVE_MINUTES if it is set. To get a payload, open the webhook's page
on GitHub, then Recent Deliveries, a delivery, Payload.

  runner-manager explain payload.json
  runner-manager explain --repo acme/app --labels self-hosted,gpu
  gh api /repos/OWNER/REPO/hooks/HOOK/deliveries/ID --jq .request.payload | runner-manager explain -

Exit code: 0 if the payload could be read, even if no entry matches; 1 if it could not; 2 if RUNNER_CONFIG or the command
line is wrong.")]
pub struct Options {
    /// The payload of a workflow_job delivery, as GitHub sent it; `-` reads standard input
    #[arg(value_name = "FILE|-", required_unless_present = "repo")]
    file: Option<PathBuf>,
    /// In place of a payload: the repository of a job that is queued
    #[arg(long, value_name = "OWNER/REPO", conflicts_with = "file", requires = "labels")]
    repo: Option<RepoName>,
    /// The job's labels, its runs-on: separated by commas, or in several options
    #[arg(long, value_name = "LABEL", value_delimiter = ',', requires = "repo")]
    labels: Vec<Label>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints the explanation of the payload.
pub fn run(options: &Options, routing: &Routing) -> Result<(), Error> {
    let payload;
    let explanation = match &options.repo {
        Some(repo) if !repo.is_full_name() => return Err(Error::NoRepository(repo.clone())),
        Some(repo) => Explanation::of_a_job(repo, &options.labels, routing),
        None => {
            payload = options.read()?;
            let unreadable = |why| Error::Unreadable(options.source(), why);
            Explanation::of(&payload, routing).map_err(unreadable)?
        }
    };
    let text = if options.json {
        serde_json::to_string_pretty(&explanation).unwrap_or_default() + "\n"
    } else {
        explanation.to_string()
    };
    io::stdout().write_all(text.as_bytes()).map_err(Error::Output)
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0} cannot be read: {1}")]
    Input(String, io::Error),
    #[error(
        "{0} is larger than 1 MiB: the service refuses such payloads; those of GitHub have about 15 KB"
    )]
    TooLarge(String),
    #[error("{0} is empty: it should hold the payload of a workflow_job delivery")]
    Empty(String),
    #[error(
        "{0} is not the payload of a workflow_job delivery: {1}. The service acknowledges payloads of other events \
         and does nothing"
    )]
    Unreadable(String, routes::Unreadable),
    #[error("{0} is not a repository's full name, owner/repo")]
    NoRepository(RepoName),
    #[error("cannot write to standard output: {0}")]
    Output(io::Error),
}

impl Options {
    fn file(&self) -> &Path {
        self.file.as_deref().unwrap_or(Path::new("-"))
    }

    fn source(&self) -> String {
        match self.file() {
            file if file.as_os_str() == "-" => "standard input".into(),
            file => file.display().to_string(),
        }
    }

    fn read(&self) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        // One byte more than the limit, to detect a payload that exceeds it.
        let limit = LARGEST_BODY as u64 + 1;
        let read = if self.file().as_os_str() == "-" {
            io::stdin().take(limit).read_to_end(&mut bytes)
        } else {
            std::fs::File::open(self.file())
                .and_then(|file| file.take(limit).read_to_end(&mut bytes))
        };
        read.map_err(|error| Error::Input(self.source(), error))?;
        // Editors add a byte order mark, shells a line break.
        let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes).trim_ascii();
        match text.len() {
            0 => Err(Error::Empty(self.source())),
            _ if bytes.len() > LARGEST_BODY => Err(Error::TooLarge(self.source())),
            _ => Ok(text.to_owned()),
        }
    }
}

/// The effects of a payload. The fields are those of the JSON output.
#[derive(Clone, Debug, Serialize)]
struct Explanation<'a> {
    event: &'static str,
    action: Option<&'static str>,
    #[serde(flatten)]
    job: Option<JobSummary>,
    entries: Vec<Verdict<'a>>,
    vm_instance_name: Option<&'a str>,
    vm_instance_zone: Option<&'a str>,
    /// All VMs that serve such jobs, in their order, if they are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pool: Vec<&'a str>,
    /// The reason why the job goes to this VM, or to none.
    because: String,
    /// The actions that would follow, in order.
    steps: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
struct JobSummary {
    /// None if there is no payload.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    repo: String,
    labels: Vec<Label>,
    runner_name: Option<String>,
}

/// The result of matching the job against one entry.
#[derive(Clone, Debug, Serialize)]
struct Verdict<'a> {
    /// The entry's index in RUNNER_CONFIG.
    entry: usize,
    repo: &'a str,
    labels: &'a [Label],
    vm_instance_name: &'a str,
    vm_instance_zone: &'a str,
    matches: bool,
    /// The reason why the entry does not match, or why an earlier one takes the job.
    why: Option<String>,
}

impl<'a> Explanation<'a> {
    fn of(body: &[u8], routing: &'a Routing) -> Result<Self, routes::Unreadable> {
        let payload = routes::payload(body, body.starts_with(b"payload="))?;
        let event = WebhookEvent::of(WORKFLOW_JOB, &payload)?;
        Ok(Self::of_event(&event, routing))
    }

    /// A job that is queued, without a payload.
    fn of_a_job(repo: &RepoName, labels: &[Label], routing: &'a Routing) -> Self {
        let job = Job {
            id: 0,
            repo: repo.clone(),
            labels: labels.to_vec(),
            runner: None,
            created_at: None,
            completed_at: None,
        };
        let event = WebhookEvent::Queued { job, awaits_review: false };
        let explanation = Self::of_event(&event, routing);
        let job = explanation.job.map(|job| JobSummary { id: None, ..job });
        Self { job, ..explanation }
    }

    fn of_event(event: &WebhookEvent, routing: &'a Routing) -> Self {
        let Routing { fleet, inactive, .. } = routing;
        let vm = event.vm(fleet).map(|managed| &managed.vm);
        let (action, job) = match event {
            WebhookEvent::Nothing(why) => return Self::nothing(why),
            WebhookEvent::Queued { job, .. } => ("queued", job),
            WebhookEvent::Completed(job) => ("completed", job),
        };
        let entries = verdicts(fleet, job);
        let pool = pool(fleet, job);
        let because = because(fleet, job, vm, &entries);
        let steps = match (event, vm) {
            (_, None) | (WebhookEvent::Nothing(_), _) => Vec::new(),
            (WebhookEvent::Queued { awaits_review: true, .. }, _) => steps::of_a_waiting_job(),
            (WebhookEvent::Queued { .. }, _) if !pool.is_empty() => {
                steps::of_a_job_of_a_pool(pool.len(), *inactive)
            }
            (WebhookEvent::Queued { .. }, _) => steps::of_a_queued_job(*inactive),
            (WebhookEvent::Completed(_), _) => steps::of_a_completed_job(*inactive),
        };
        Self {
            event: WORKFLOW_JOB,
            action: Some(action),
            job: Some(JobSummary::from(job)),
            entries,
            vm_instance_name: vm.map(|vm| vm.name.as_str()),
            vm_instance_zone: vm.map(|vm| vm.zone.as_str()),
            pool,
            because,
            steps,
        }
    }

    fn nothing(why: &str) -> Self {
        Self {
            event: WORKFLOW_JOB,
            action: None,
            job: None,
            entries: Vec::new(),
            vm_instance_name: None,
            vm_instance_zone: None,
            pool: Vec::new(),
            because: format!("{why}: the delivery is acknowledged, and nothing is done"),
            steps: Vec::new(),
        }
    }
}

/// The VMs that serve the job, if they are several.
fn pool<'a>(fleet: &'a Fleet, job: &Job) -> Vec<&'a str> {
    let vms = fleet.pool(&job.repo, &job.labels).map(Pool::vms).filter(|vms| vms.len() > 1);
    vms.into_iter().flatten().map(|vm| vm.vm.name.as_str()).collect()
}

fn because(fleet: &Fleet, job: &Job, vm: Option<&Vm>, entries: &[Verdict<'_>]) -> String {
    let first = entries.iter().find(|verdict| verdict.matches).map(|verdict| verdict.entry);
    match (vm, first) {
        (None, _) => "no entry matches: the delivery is acknowledged, and nothing is done".into(),
        (Some(vm), Some(first)) if fleet.entries()[first].vm == *vm => {
            let pool = pool(fleet, job);
            let first = format!("RUNNER_CONFIG[{first}] is the first entry that matches");
            match pool.len() {
                0 => first,
                size => format!("{first}, of a pool of {size} VMs ({})", pool.join(", ")),
            }
        }
        (Some(_), _) => {
            let runner = visible(job.runner.as_deref().unwrap_or_default());
            format!("the job ran on {runner}, a runner of this VM")
        }
    }
}

fn verdicts<'a>(fleet: &'a Fleet, job: &Job) -> Vec<Verdict<'a>> {
    let mut first_match = None;
    let verdict = |(nth, entry): (usize, &'a Entry)| {
        let mismatch = entry.mismatch(&job.repo, &job.labels);
        let matches = mismatch.is_none();
        let why = match mismatch {
            Some(mismatch @ Mismatch::JobLacks(_)) if entry.covers(&job.labels) => Some(format!(
                "{mismatch}; if its runner may take such jobs, list all its labels in runner_labels"
            )),
            Some(mismatch) => Some(mismatch.to_string()),
            None => first_match.map(|first| match fleet.pool_of_entry(nth) {
                Some(pool) if pool.first_entry == first => {
                    format!("in the pool of RUNNER_CONFIG[{first}]")
                }
                _ => format!("but RUNNER_CONFIG[{first}] comes first"),
            }),
        };
        if matches {
            first_match.get_or_insert(nth);
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

impl From<&Job> for JobSummary {
    fn from(job: &Job) -> Self {
        Self {
            id: Some(job.id),
            repo: job.repo.as_str().to_owned(),
            labels: job.labels.clone(),
            runner_name: job.runner.clone(),
        }
    }
}

/// Replaces control characters, which a terminal could interpret.
fn visible(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

impl fmt::Display for Explanation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.event)?;
        if let Some(action) = self.action {
            write!(f, " {action}")?;
        }
        if let Some(JobSummary { id, repo, labels, runner_name }) = &self.job {
            let job = id.map_or("a job".to_owned(), |id| format!("job {id}"));
            write!(f, ": {job} of {} asks for {}", visible(repo), Quoted(labels))?;
            if let Some(runner) = runner_name {
                write!(f, " and ran on {}", visible(runner))?;
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
                writeln!(f, "The service would:")?;
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
        let (symbol, verdict) = if self.matches { ("✓", "matches") } else { ("✗", "no match") };
        let Self { entry, repo, labels, vm_instance_name: vm, .. } = self;
        let labels = Quoted(labels);
        write!(f, "{symbol} RUNNER_CONFIG[{entry}] {repo} {labels} -> {vm}: {verdict}")?;
        match &self.why {
            Some(why) => write!(f, ", {why}"),
            None => Ok(()),
        }
    }
}
