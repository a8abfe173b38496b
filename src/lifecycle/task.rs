//! What tasks carry: the question, and hints that make its answer better.
//!
//! Bodies outlive deploys. Fields are only ever added, each with a default, and unknown ones are ignored; a
//! task of the FastAPI original names at most the VM. Nothing but the question and the due time decides which
//! task this is, so a hint may be missing, or be that of an equal task that was made a moment earlier.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::mark::Mark;
use super::schedule::{MINUTE, Question, task_id};
use super::watch::Watch;
use super::witness::Cursor;
use crate::clients;
use crate::clients::cloud_tasks::{Created, Task};
use crate::clock::{Deadline, Timestamp};
use crate::fleet::{RepoName, Vm};
use crate::state::AppState;

/// A stop check: can the VM be stopped?
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct StopTask {
    /// The VM's name; empty in a task that relies on there being just one.
    pub vm_instance_name: String,
    /// The VM's zone.
    pub vm_instance_zone: String,
    /// The mark that the task was made for.
    pub(super) idle_since: Option<Mark>,
    /// There is no mark, since labels may not be written: such a task is never superseded.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) unmarked: bool,
    /// Unix seconds when it is due. The next look falls after this even where clocks differ.
    pub(super) due: u64,
    /// How many looks came before this one.
    pub(super) looks: u32,
    /// How many hearings in a row found the VM idle, with one witness only, or in parts.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) confirmed: u32,
    /// How often a stop was tried and the VM found up afterwards.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) stops: u32,
    /// Unix seconds since when both witnesses have been forbidden.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) forbidden_since: Option<u64>,
    /// Unix seconds since when no entry has named the VM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) unconfigured_since: Option<u64>,
    /// Jobs that wait for the VM.
    #[serde(skip_serializing_if = "Watch::is_empty")]
    pub(super) waiting: Watch,
    /// Where the second witness goes on, if there was no time to hear it out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cursor: Option<Cursor>,
}

/// A start check: is the VM up, if the job still waits?
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct StartTask {
    /// The VM's name.
    pub vm_instance_name: String,
    /// The VM's zone.
    pub vm_instance_zone: String,
    /// The mark of the event that it was made for; none where labels may not be written.
    pub(super) idle_since: Option<Mark>,
    /// Unix seconds when it is due.
    pub(super) due: u64,
    /// Unix seconds of the event that began the chain.
    pub(super) event_at: u64,
    /// The job that waited then. An operator's start has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) job: Option<WaitingJob>,
    /// Unix seconds since when no entry has named the VM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) unconfigured_since: Option<u64>,
    /// Jobs that wait for the VM.
    #[serde(skip_serializing_if = "Watch::is_empty")]
    pub(super) waiting: Watch,
    /// Where the second witness goes on, if there was no time to hear it out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cursor: Option<Cursor>,
}

/// A job that the VM is needed for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingJob {
    /// Its repository.
    pub repo: RepoName,
    /// GitHub's number for it.
    pub id: u64,
    /// Unix seconds when it came to wait for a runner.
    pub queued_at: u64,
}

impl WaitingJob {
    /// Whether GitHub has dropped it: a job may wait for 24 hours.
    pub(super) fn has_expired(&self, now: Timestamp) -> bool {
        now.since(Timestamp::from_unix_seconds(self.queued_at)) >= Duration::from_secs(24 * 3600)
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl StopTask {
    /// The first look after `mark`; without one where labels may not be written.
    pub(super) fn new(vm: &Vm, mark: Option<Mark>) -> Self {
        Self {
            vm_instance_name: vm.name.clone(),
            vm_instance_zone: vm.zone.clone(),
            idle_since: mark,
            unmarked: mark.is_none(),
            ..Self::default()
        }
    }

    /// Neither mark nor the word that there is none: a task of the FastAPI original.
    pub(super) fn is_foreign(&self) -> bool {
        self.idle_since.is_none() && !self.unmarked
    }

    /// Whether a newer task stands for the VM, now that it has this mark.
    pub(super) fn is_superseded_by(&self, mark: Option<Mark>) -> bool {
        match self.idle_since {
            Some(own) => mark > Some(own),
            None => self.is_foreign() && mark.is_some(),
        }
    }

    /// Has Cloud Tasks ask this at `due`. The original's task gets a follow-up that any mark supersedes too.
    pub(super) async fn ask_at(
        mut self,
        app: &AppState,
        due: Timestamp,
        deadline: Deadline,
    ) -> Result<Created, clients::Error> {
        self.due = due.unix_seconds();
        if self.is_foreign() {
            self.idle_since = Some(Mark::BEFORE_ALL);
        } else if app.marks.are_forbidden() && self.idle_since != Some(Mark::BEFORE_ALL) {
            // Marks that nobody can write tell chains apart for nothing.
            (self.idle_since, self.unmarked) = (None, true);
        }
        let vm = Vm::new(&self.vm_instance_name, &self.vm_instance_zone);
        let id = task_id(Question::Stop(self.idle_since), &vm, due);
        create(app, id, "/runner/stop", &self, due, deadline).await
    }
}

impl StartTask {
    /// The first check for an event at `now`, with its mark.
    pub(super) fn new(
        vm: &Vm,
        mark: Option<Mark>,
        job: Option<WaitingJob>,
        now: Timestamp,
    ) -> Self {
        Self {
            vm_instance_name: vm.name.clone(),
            vm_instance_zone: vm.zone.clone(),
            idle_since: mark,
            event_at: now.unix_seconds(),
            job,
            ..Self::default()
        }
    }

    /// Has Cloud Tasks ask this at `due`.
    pub(super) async fn ask_at(
        mut self,
        app: &AppState,
        due: Timestamp,
        deadline: Deadline,
    ) -> Result<Created, clients::Error> {
        self.due = due.unix_seconds();
        let vm = Vm::new(&self.vm_instance_name, &self.vm_instance_zone);
        let id = task_id(Question::Start, &vm, due);
        create(app, id, "/runner/start", &self, due, deadline).await
    }
}

async fn create(
    app: &AppState,
    id: String,
    path: &'static str,
    body: &impl Serialize,
    due: Timestamp,
    deadline: Deadline,
) -> Result<Created, clients::Error> {
    let body = serde_json::to_vec(body).map_err(|error| clients::Error::Unreadable {
        call: "tasks.create",
        why: error.to_string(),
    })?;
    app.tasks.create(&Task { id, path, body, due }, deadline).await
}

/// The time by which a callback reckons: never before it was due, or a clock that is behind would let its
/// follow-up bear its own name and be lost. But a task that was run by hand ahead of time is not believed.
pub(super) fn reckoned(now: Timestamp, due: u64) -> Timestamp {
    now.max(Timestamp::from_unix_seconds(due).min(now + 5 * MINUTE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(json: &str) -> StopTask {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn only_a_greater_mark_supersedes_a_task() {
        let mark = |seconds| Some(Mark::at(Timestamp::from_unix_seconds(seconds)));
        let ours = task(r#"{"idle_since": 60}"#);
        assert!(ours.is_superseded_by(mark(90)));
        assert!(
            !ours.is_superseded_by(mark(60))
                && !ours.is_superseded_by(mark(30))
                && !ours.is_superseded_by(None)
        );
        assert!(!task(r#"{"unmarked": true}"#).is_superseded_by(mark(90)));
    }

    #[test]
    fn a_task_of_the_original_is_superseded_by_any_mark() {
        let original = task(r#"{"vm_instance_name": "a", "vm_instance_zone": "z"}"#);
        assert!(original.is_superseded_by(Some(Mark::at(Timestamp::UNIX_EPOCH))));
        assert!(!original.is_superseded_by(None));
        assert!(task("{}").is_foreign());
    }

    #[test]
    fn a_clock_that_is_behind_does_not_lose_a_follow_up() {
        let at = Timestamp::from_unix_seconds;
        assert_eq!(reckoned(at(1_000), 970), at(1_000));
        assert_eq!(reckoned(at(1_000), 1_030), at(1_030));
        // Somebody ran it a day ahead of its time.
        assert_eq!(reckoned(at(1_000), 87_400), at(1_300));
    }

    #[test]
    fn bodies_of_other_versions_are_understood() {
        let later = task(r#"{"idle_since": 60, "a_later_field": {"of": "any shape"}}"#);
        assert_eq!(later.looks, 0);
        let check: StartTask = serde_json::from_str(r#"{"vm_instance_name": "a"}"#).unwrap();
        assert!(check.job.is_none() && check.waiting.is_empty());
    }
}
