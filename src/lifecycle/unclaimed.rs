//! Jobs that a free VM does not take.
//!
//! A job may match an entry and still not be for its VM: it asks for a runner group, or for a label that only GitHub
//! knows. It would keep the VM up for nothing. So tasks carry since when each job has been queued while the VM was up,
//! its runner not busy, and nothing ran on it. After an hour the job is given up on and no longer counts.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::schedule::{HOUR, MINUTE};
use crate::clock::Timestamp;

/// Passes come every five minutes. What lies between two passes that are further apart does not count: the job may have
/// run in between.
const LONGEST_GAP: Duration = Duration::from_secs(10 * MINUTE.as_secs());

/// A task's body may have 100 KB. A job that does not fit is given up on later.
const MAX_TRACKED_JOBS: usize = 400;

/// The queued jobs of a VM that is free, with the time of the first and of the last pass that saw each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Unclaimed(Vec<Waited>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Waited {
    job: u64,
    since: Timestamp,
    until: Timestamp,
}

impl Waited {
    fn is_given_up(&self) -> bool {
        self.until.since(self.since) >= HOUR
    }

    /// After another pass at `now` that saw the job. A longer gap moves the beginning along.
    fn seen_at(self, now: Timestamp) -> Self {
        let gap = now.since(self.until);
        let uncounted =
            if self.is_given_up() { Duration::ZERO } else { gap.saturating_sub(LONGEST_GAP) };
        Self { since: self.since + uncounted, until: now.max(self.until), ..self }
    }
}

impl Unclaimed {
    pub(super) fn is_given_up(&self, job: u64) -> bool {
        self.0.iter().any(|waited| waited.job == job && waited.is_given_up())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// After a pass that read everything: the VM was free, and exactly these jobs were queued for it.
    pub(super) fn saw_all(&self, jobs: &[u64], now: Timestamp) -> Self {
        let seen = jobs.iter().map(|job| self.seen(*job, now));
        Self(seen.take(MAX_TRACKED_JOBS).collect())
    }

    /// After a pass that read a part: the VM was free, and these jobs were among those queued for it.
    pub(super) fn saw_some(&self, jobs: &[u64], now: Timestamp) -> Self {
        let others = self.0.iter().filter(|waited| !jobs.contains(&waited.job)).copied();
        let seen = jobs.iter().map(|job| self.seen(*job, now));
        Self(seen.chain(others).take(MAX_TRACKED_JOBS).collect())
    }

    /// After a pass that found the VM down, or at work: no job has been waiting for a free VM. What was given up on
    /// stays so, or the VM would be started again for a job that it does not get.
    pub(super) fn cleared(&self) -> Self {
        Self(self.0.iter().filter(|waited| waited.is_given_up()).copied().collect())
    }

    fn seen(&self, job: u64, now: Timestamp) -> Waited {
        let known = self.0.iter().find(|waited| waited.job == job);
        known.map_or(Waited { job, since: now, until: now }, |known| known.seen_at(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minutes: u64) -> Timestamp {
        Timestamp::from_unix_seconds(1_800_000_000 + 60 * minutes)
    }

    /// Job 7 was queued at every pass until then.
    fn queued_until(minutes: u64) -> Unclaimed {
        let passes = (0..=minutes).step_by(5);
        passes.fold(Unclaimed::default(), |jobs, minutes| jobs.saw_all(&[7], at(minutes)))
    }

    #[test]
    fn a_job_is_given_up_on_after_an_hour_with_a_free_vm() {
        assert!(!queued_until(55).is_given_up(7));
        assert!(queued_until(60).is_given_up(7));
        let two = queued_until(30).saw_all(&[7, 8], at(35)).saw_some(&[7], at(40));
        assert!(!two.saw_all(&[7, 8], at(59)).is_given_up(7));
        let two = two.saw_all(&[7, 8], at(50)).saw_all(&[7, 8], at(60));
        assert!(two.is_given_up(7) && !two.is_given_up(8) && !two.is_given_up(9));
    }

    #[test]
    fn a_pass_without_the_job_begins_its_hour_anew() {
        let jobs = queued_until(50).saw_all(&[], at(55)).saw_all(&[7], at(60));
        assert!(!jobs.is_given_up(7));
    }

    #[test]
    fn a_pass_that_read_a_part_keeps_the_other_jobs() {
        let jobs = queued_until(55).saw_some(&[8], at(58)).saw_some(&[7], at(60));
        assert!(jobs.is_given_up(7));
    }

    #[test]
    fn time_without_a_pass_does_not_count() {
        // Ten of the forty minutes do.
        assert!(!queued_until(45).saw_all(&[7], at(85)).is_given_up(7));
        assert!(queued_until(50).saw_all(&[7], at(90)).is_given_up(7));
        assert!(queued_until(60).saw_all(&[7], at(300)).is_given_up(7));
    }

    #[test]
    fn a_vm_at_work_clears_the_hour_and_keeps_what_was_given_up_on() {
        assert!(queued_until(55).cleared().is_empty());
        let jobs = queued_until(60).saw_all(&[7, 8], at(60)).cleared();
        assert!(jobs.is_given_up(7));
        assert!(!jobs.saw_all(&[7, 8], at(61)).is_given_up(8));
    }

    #[test]
    fn bodies_stay_as_they_are() {
        let json = r#"[{"job":7,"since":1800000000,"until":1800000600}]"#;
        let jobs: Unclaimed = serde_json::from_str(json).unwrap();
        assert_eq!(serde_json::to_string(&jobs).unwrap(), json);
    }
}
