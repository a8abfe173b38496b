//! The meaning of a delivery, from its payload alone: a job is queued, a job has completed, or nothing has to be done.
//!
//! The webhook's handler and `explain` share it, so that they always agree.

use std::borrow::Cow;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::clock::Timestamp;
use crate::fleet::{Fleet, Label, ManagedVm, RepoName};

/// The one event about jobs.
pub const WORKFLOW_JOB: &str = "workflow_job";

/// A delivery, as far as the service acts on it.
#[derive(Clone, Debug)]
pub enum WebhookEvent {
    /// No action is needed, for this reason.
    Nothing(String),
    /// A job waits for a runner.
    Queued {
        job: Job,
        /// The job may have to be approved first.
        awaits_review: bool,
    },
    /// A job is over.
    Completed(Job),
}

/// A job, as a delivery describes it.
#[derive(Clone, Debug)]
pub struct Job {
    pub id: u64,
    pub repo: RepoName,
    /// Its `runs-on`.
    pub labels: Vec<Label>,
    /// The runner that ran it, if any.
    pub runner: Option<String>,
    pub created_at: Option<Timestamp>,
    pub completed_at: Option<Timestamp>,
}

/// The error in a payload. It repeats nothing of the payload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(pub(super) String);

/// The part of a `workflow_job` event that the service reads.
/// <https://docs.github.com/en/webhooks/webhook-events-and-payloads#workflow_job>
#[derive(Deserialize)]
struct WorkflowJobEvent {
    action: String,
    workflow_job: WorkflowJob,
    repository: Repository,
}

#[derive(Deserialize)]
struct WorkflowJob {
    id: u64,
    labels: Vec<Label>,
    status: Option<String>,
    runner_name: Option<String>,
    created_at: Option<String>,
    completed_at: Option<String>,
}

#[derive(Deserialize)]
struct Repository {
    full_name: RepoName,
}

impl WebhookEvent {
    /// Reads the payload of an event of this name.
    ///
    /// # Errors
    /// Fails if the payload of a `workflow_job` is not in GitHub's format. Payloads of other events are not read.
    pub fn of(event: &str, payload: &[u8]) -> Result<Self, Unreadable> {
        if event != WORKFLOW_JOB {
            let name: String =
                event.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').take(60).collect();
            return Ok(Self::Nothing(format!("the event {name} is not one that needs a VM")));
        }
        let WorkflowJobEvent { action, workflow_job, repository } = json(payload)?;
        let time = |text: Option<String>| text.as_deref().and_then(Timestamp::parse);
        let job = Job {
            id: workflow_job.id,
            repo: repository.full_name,
            labels: workflow_job.labels,
            runner: workflow_job.runner_name,
            created_at: time(workflow_job.created_at),
            completed_at: time(workflow_job.completed_at),
        };
        let (id, status) = (job.id, workflow_job.status);
        Ok(match action.as_str() {
            "queued" => Self::Queued { job, awaits_review: status.as_deref() == Some("waiting") },
            "completed" => Self::Completed(job),
            _ => Self::Nothing(format!("job {id}: only queued and completed need something done")),
        })
    }

    /// The VM that the delivery is about.
    pub fn vm<'a>(&self, fleet: &'a Fleet) -> Option<&'a Arc<ManagedVm>> {
        match self {
            Self::Nothing(_) => None,
            Self::Queued { job, .. } => fleet.route(&job.repo, &job.labels),
            Self::Completed(job) => {
                fleet.route_finished(&job.repo, &job.labels, job.runner.as_deref())
            }
        }
    }
}

impl Job {
    /// The outcome if no entry matches.
    pub fn unmatched(&self) -> String {
        let labels = self.labels.iter().map(Label::as_str).collect::<Vec<_>>().join(", ");
        // GitHub's users choose these texts: a line break must not begin a line of the log, nor a long name fill it.
        let plain =
            |text: &str| text.chars().take(200).collect::<String>().escape_default().to_string();
        let (labels, repo) = (plain(&labels), plain(self.repo.as_str()));
        format!("job {} of {repo}: no entry of RUNNER_CONFIG matches [{labels}]", self.id)
    }
}

/// The JSON in a body of either of GitHub's content types.
///
/// # Errors
/// Fails if a form has no field `payload`.
pub fn payload(body: &[u8], is_form: bool) -> Result<Cow<'_, [u8]>, Unreadable> {
    // curl calls JSON a form unless it is told otherwise.
    if !is_form || body.starts_with(b"{") {
        return Ok(body.into());
    }
    let field = form_urlencoded::parse(body).find(|(key, _)| key == "payload");
    let (_, payload) = field.ok_or_else(|| Unreadable("the form has no field `payload`".into()))?;
    Ok(payload.into_owned().into_bytes().into())
}

/// Parses a JSON object. The error gives the position and the missing field, but repeats nothing of the input except
/// the name of an unknown field, which only an operator's command refuses.
pub(super) fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Unreadable> {
    // serde would take an array for a struct, its elements for the fields in their order.
    if matches!(body.trim_ascii_start().first(), Some(b'[')) {
        return Err(Unreadable("the body is a JSON array, not an object".into()));
    }
    serde_json::from_slice(body).map_err(|error| {
        let place = format!("line {}, column {}", error.line(), error.column());
        let text = error.to_string();
        let named = ["missing field", "unknown field"].iter().any(|start| text.starts_with(start));
        let field = named.then(|| text.rsplit_once(" at line").map_or(&*text, |(field, _)| field));
        Unreadable(match (error.classify(), field) {
            (serde_json::error::Category::Data, Some(field)) => {
                let article = if field.starts_with('u') { "an" } else { "a" };
                let field: String = field.chars().take(200).collect();
                format!("the body has {article} {}", field.escape_debug())
            }
            (serde_json::error::Category::Data, None) => {
                format!("the body has a value of the wrong type at {place}")
            }
            _ => format!("the body is not JSON: {place}"),
        })
    })
}
