//! A pass as a task of Cloud Tasks: its body and its name.
//!
//! Bodies outlive deploys. Fields are only added, each with a default, and unknown ones are ignored. The name says which
//! pass this is; everything else in the body is a hint, which may be missing, or be that of an equal task that another
//! event created a moment earlier.

use std::fmt;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use sha2::{Digest, Sha256};

use super::schedule::{DAY, IdleSince};
use super::unclaimed::Unclaimed;
use crate::clock::Timestamp;
use crate::fleet::{Label, RepoName, Vm};

/// The endpoint that every pass calls.
pub(super) const PATH: &str = "/runner/stop";

/// A job, as far as a pass needs to know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRef {
    #[serde(deserialize_with = "full_name")]
    pub repo: RepoName,
    pub id: u64,
    /// The time from which it has waited for a runner, or may wait at the earliest.
    pub queued_at: Timestamp,
    /// Its `runs-on`. Not part of a body.
    #[serde(skip)]
    pub labels: Vec<Label>,
}

impl JobRef {
    /// GitHub fails a job that was queued for 24 hours.
    pub const QUEUE_LIMIT: Duration = DAY;

    pub(super) fn has_expired(&self, now: Timestamp) -> bool {
        now.since(self.queued_at) >= Self::QUEUE_LIMIT
    }
}

impl fmt::Display for JobRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job {} of {}", self.id, self.repo)
    }
}

/// The reason why a pass may start the VM without asking GitHub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Evidence {
    Job(JobRef),
    /// An operator asked for the VM at this time.
    Operator(Timestamp),
}

/// A question to GitHub. A task lists those that were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Source {
    Job,
    Runner,
    Jobs,
    /// One that a later version asks.
    #[serde(other)]
    Unknown,
}

/// The position in a scan of a repository's runs at which the next pass resumes. A hint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cursor {
    #[serde(deserialize_with = "full_name")]
    pub(super) repo: RepoName,
    /// The list, by its place in the order of reading.
    pub(super) list: usize,
    /// Runs are listed newest first: the scan resumes with those older than this one.
    pub(super) before: Option<u64>,
    /// The time at which the scan began.
    #[serde(default)]
    pub(super) began: Timestamp,
    /// The VM was up then.
    #[serde(default)]
    pub(super) up: bool,
    /// The newest runs of this repository that earlier passes listed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) listed: Vec<u64>,
}

/// A pass for one VM: what is known of it, and what earlier passes saw.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Task {
    /// Empty in a task of the FastAPI original that relies on there being just one VM.
    pub vm_instance_name: String,
    pub vm_instance_zone: String,
    /// The value that the task was created for.
    pub(super) idle_since: Option<IdleSince>,
    /// Labels could not be written: such a task is never superseded.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) unmarked: bool,
    pub(super) due: Timestamp,
    /// The job in evidence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) job: Option<JobRef>,
    /// The operator in evidence: when the VM was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) operator: Option<Timestamp>,
    /// Passes so far that had no due time of their own.
    #[serde(rename = "looks")]
    pub(super) passes: u32,
    /// The last pass that saw a job on the VM, or its runner busy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) busy_at: Option<Timestamp>,
    /// The first pass since then that found the VM idle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) idle_at: Option<Timestamp>,
    /// The end of the job that was in evidence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) completed_at: Option<Timestamp>,
    /// The pass that found the VM idle by one source, or in a scan of several passes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) confirming_at: Option<Timestamp>,
    /// Sources that refused at the pass before.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) refused: Vec<Source>,
    /// Since when both sources have been forbidden.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) forbidden_since: Option<Timestamp>,
    /// Since when the runner has been busy and offline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) lost_since: Option<Timestamp>,
    /// Since when GitHub could not be queried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) unavailable_since: Option<Timestamp>,
    /// Since when only the job in evidence, which is not queued yet, is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pending_since: Option<Timestamp>,
    /// Jobs that wait for the VM's pool beside the one in evidence were looked for.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) pool_read: bool,
    /// Stops after which the VM was still up and idle.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) stops: u32,
    /// The time at which a task of this loop was run by hand, long before it was due: its name is used up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) run_early_at: Option<Timestamp>,
    /// The resync created it, so it must not take the place of a pass that knows more.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) resync: bool,
    /// Since when no entry has named the VM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) unconfigured_since: Option<Timestamp>,
    #[serde(rename = "waiting", skip_serializing_if = "Unclaimed::is_empty")]
    pub(super) unclaimed: Unclaimed,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cursor: Option<Cursor>,
}

/// Reads a repository's name. It becomes part of a path, so it must not be anything else.
fn full_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RepoName, D::Error> {
    let repo = RepoName::deserialize(deserializer)?;
    if repo.is_full_name() { Ok(repo) } else { Err(D::Error::custom("not owner/repo")) }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Task {
    /// The first pass for `vm` after an event with this `idle_since`.
    pub(super) fn new(vm: &Vm, idle_since: IdleSince) -> Self {
        Self {
            vm_instance_name: vm.name.clone(),
            vm_instance_zone: vm.zone.clone(),
            idle_since: Some(idle_since),
            ..Self::default()
        }
    }

    pub(super) fn with_job(self, job: JobRef) -> Self {
        Self { job: Some(job), ..self }
    }

    pub(super) fn with_operator(self, since: Timestamp) -> Self {
        Self { operator: Some(since), ..self }
    }

    pub(super) fn vm(&self) -> Vm {
        Vm::new(&self.vm_instance_name, &self.vm_instance_zone)
    }

    pub(super) fn evidence(&self) -> Option<Evidence> {
        let job = self.job.clone().map(Evidence::Job);
        job.or_else(|| self.operator.map(Evidence::Operator))
    }

    /// The VM was needed after this task was created, and another pass knows. `started_since` tells that the VM was
    /// started after its label.
    pub(super) fn is_superseded_by(&self, label: Option<IdleSince>, started_since: bool) -> bool {
        match self.idle_since {
            _ if self.unmarked => false,
            Some(own) if own > IdleSince::BEFORE_ALL => label > Some(own),
            // No event created this task, so the label may be that of a loop that ended long ago.
            Some(_) if self.job.is_some() => false,
            // A task of the FastAPI original, or a command's.
            _ => label.is_some() && !started_since,
        }
    }

    /// The name: a hash, since Cloud Tasks slows down with names that resemble one another. Equal passes have equal
    /// names, so Cloud Tasks keeps one of them.
    pub(super) fn id(&self) -> String {
        let idle_since = self.idle_since.filter(|_| !self.unmarked);
        let idle_since =
            idle_since.map_or_else(|| "unmarked".to_owned(), |value| value.to_string());
        let evidence = match (self.evidence(), self.pending_since) {
            (None, _) => "no evidence",
            (Some(_), None) => "evidence",
            // It asks for this job only, and must not take the place of a pass for another one.
            (Some(_), Some(_)) => "a pending job",
        };
        let Self { vm_instance_name: name, vm_instance_zone: zone, due, .. } = self;
        let run_at = self.run_early_at.map(|at| format!("\n{}", at.unix_seconds()));
        let origin = if self.resync { "\nresync" } else { "" };
        let text = format!(
            "pass\n{zone}\n{name}\n{evidence}\n{idle_since}\n{}{}{origin}",
            due.unix_seconds(),
            run_at.unwrap_or_default()
        );
        let hash = Sha256::digest(text.as_bytes());
        hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The body of a "start check": version 0.1.0 had start checks and stop checks in place of passes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct StartCheck {
    event_at: Timestamp,
    #[serde(flatten)]
    task: Task,
}

impl From<StartCheck> for Task {
    /// A pass with its job as evidence; without a job an operator asked for the VM.
    fn from(check: StartCheck) -> Self {
        let StartCheck { event_at, task } = check;
        match task.job {
            Some(_) => task,
            None => task.with_operator(event_at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(json: &str) -> Task {
        serde_json::from_str(json).unwrap()
    }

    fn idle_since(seconds: u64) -> Option<IdleSince> {
        Some(IdleSince::of_event(Timestamp::from_unix_seconds(seconds)))
    }

    #[test]
    fn only_a_greater_label_supersedes_a_task() {
        let ours = task(r#"{"idle_since": 60}"#);
        for started_since in [false, true] {
            assert!(ours.is_superseded_by(idle_since(90), started_since));
            for label in [idle_since(60), idle_since(30), None] {
                assert!(!ours.is_superseded_by(label, started_since), "{label:?}");
            }
            let unmarked = task(r#"{"idle_since": 60, "unmarked": true}"#);
            assert!(!unmarked.is_superseded_by(idle_since(90), started_since));
        }
    }

    #[test]
    fn a_task_of_the_original_is_superseded_by_any_label() {
        let original = task(r#"{"vm_instance_name": "a", "vm_instance_zone": "z"}"#);
        assert!(original.is_superseded_by(idle_since(0), false));
        assert!(
            !original.is_superseded_by(idle_since(0), true),
            "its loop may have ended long ago"
        );
        assert!(!original.is_superseded_by(None, false));
        let waiting = r#"{"idle_since": 0, "job": {"repo": "acme/app", "id": 7, "queued_at": 1}}"#;
        assert!(!task(waiting).is_superseded_by(idle_since(90), false));
    }

    #[test]
    fn equal_passes_have_equal_names() {
        let at = Timestamp::from_unix_seconds;
        let job = JobRef { repo: "acme/app".into(), id: 7, queued_at: at(0), labels: Vec::new() };
        let base =
            Task { due: at(300), ..Task::new(&Vm::new("a", "z"), IdleSince::of_event(at(60))) };
        let id = base.id();
        assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()));
        // Hints do not count.
        assert_eq!(Task { passes: 3, busy_at: Some(at(200)), ..base.clone() }.id(), id);
        assert_ne!(Task { run_early_at: Some(at(200)), ..base.clone() }.id(), id);
        assert_ne!(Task { resync: true, ..base.clone() }.id(), id);
        let different = [
            Task { due: at(330), ..base.clone() },
            Task { idle_since: idle_since(90), ..base.clone() },
            Task { unmarked: true, ..base.clone() },
            Task { vm_instance_name: "b".into(), ..base.clone() },
            Task { vm_instance_zone: "y".into(), ..base.clone() },
            base.clone().with_job(job.clone()),
            Task { pending_since: Some(at(200)), ..base.clone().with_job(job.clone()) },
        ];
        for (nth, task) in different.iter().enumerate() {
            assert_ne!(task.id(), id);
            assert!(different[..nth].iter().all(|other| other.id() != task.id()), "{task:?}");
        }
        let another = JobRef { id: 8, ..job.clone() };
        assert_eq!(base.clone().with_job(job.clone()).id(), base.clone().with_job(another).id());
        assert_eq!(base.clone().with_job(job).id(), base.with_operator(at(0)).id());
        // Where labels cannot be written, the value does not tell passes apart.
        let unmarked =
            |seconds| Task { unmarked: true, idle_since: idle_since(seconds), ..Task::default() };
        assert_eq!(unmarked(60).id(), unmarked(90).id());
    }

    #[test]
    fn a_body_has_all_that_the_next_pass_needs_and_nothing_else() {
        let at = Timestamp::from_unix_seconds;
        let first = Task::new(&Vm::new("a", "z"), IdleSince::of_event(at(60)));
        assert_eq!(
            serde_json::to_string(&first).unwrap(),
            r#"{"vm_instance_name":"a","vm_instance_zone":"z","idle_since":60,"due":0,"looks":0}"#
        );
        let cursor = Cursor {
            repo: "acme/app".into(),
            list: 2,
            before: Some(9),
            began: at(5),
            up: true,
            listed: vec![9, 10],
        };
        let job = JobRef { repo: "acme/app".into(), id: 7, queued_at: at(1), labels: Vec::new() };
        let later = Task {
            unmarked: true,
            due: at(300),
            operator: Some(at(2)),
            passes: 3,
            busy_at: Some(at(3)),
            idle_at: Some(at(4)),
            completed_at: Some(at(5)),
            confirming_at: Some(at(6)),
            refused: vec![Source::Job, Source::Runner, Source::Jobs],
            forbidden_since: Some(at(7)),
            lost_since: Some(at(8)),
            pending_since: Some(at(9)),
            stops: 4,
            unconfigured_since: Some(at(10)),
            unclaimed: Unclaimed::default().saw_all(&[7], at(11)),
            cursor: Some(cursor),
            ..first.with_job(job)
        };
        assert_eq!(task(&serde_json::to_string(&later).unwrap()), later);
    }

    #[test]
    fn bodies_of_other_versions_are_read() {
        let later = task(
            r#"{"idle_since": 60, "a_later_field": {"of": "any shape"}, "refused": ["jobs", "moon"]}"#,
        );
        assert_eq!((later.passes, later.refused), (0, vec![Source::Jobs, Source::Unknown]));
        let stop_check = task(
            r#"{"vm_instance_name": "a", "vm_instance_zone": "z", "idle_since": 60, "due": 300, "looks": 3, "confirmed": 1,
                "waiting": [{"job": 7, "since": 60, "until": 300}], "cursor": {"repo": "acme/app", "list": 2, "before": 9}}"#,
        );
        assert_eq!((stop_check.passes, stop_check.evidence()), (3, None));
        assert_eq!(stop_check.cursor.unwrap().before, Some(9));
        let start_check = |json| Task::from(serde_json::from_str::<StartCheck>(json).unwrap());
        let of_job = start_check(
            r#"{"vm_instance_name": "a", "vm_instance_zone": "z", "idle_since": null, "due": 90, "event_at": 5,
                "job": {"repo": "acme/app", "id": 7, "queued_at": 5}}"#,
        );
        assert!(matches!(of_job.evidence(), Some(Evidence::Job(job)) if job.id == 7));
        let of_operator =
            start_check(r#"{"vm_instance_name": "a", "idle_since": 30, "due": 90, "event_at": 5}"#);
        assert_eq!(
            of_operator.evidence(),
            Some(Evidence::Operator(Timestamp::from_unix_seconds(5)))
        );
    }
}
