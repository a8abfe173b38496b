//! Jobs that wait although the VM is free for them.
//!
//! A job may match an entry and still not be for its VM: it wants a label that GitHub knows of and we do not,
//! or a runner group. It would keep the VM up for nothing. So tasks carry since when each job has waited
//! while the VM was up, its runner not busy and nothing ran on it; after an hour of that it does not count.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::schedule::HOUR;
use crate::clock::Timestamp;

/// How long it must have waited by the time that the VM goes down. A stop chain and a start chain look at
/// different times: the one that stops the VM for a job that was left is up to two looks ahead of the other,
/// which must not start it again.
const NEARLY: Duration = Duration::from_secs(50 * 60);

/// Looks that lie further apart do not show that it waited all the time in between: it may have run, and lost its
/// runner. They come every ten minutes at most, rounded to a quarter of an hour, and may be late.
const UNSEEN: Duration = Duration::from_secs(20 * 60);

/// A body may have 100 KB; what does not fit counts a while longer.
const MOST: usize = 400;

/// Which jobs have waited for a free VM since when; what one look hands to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Watch(Vec<Waited>);

/// Unix seconds of the first and the last look at which the job waited for a free VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Waited {
    job: u64,
    since: u64,
    until: u64,
}

impl Waited {
    fn lasted(&self, span: Duration) -> bool {
        self.until.saturating_sub(self.since) >= span.as_secs()
    }
}

impl Watch {
    /// Whether the job waited so long for a free VM that it is not for it.
    pub(super) fn has_left(&self, job: u64) -> bool {
        self.0.iter().any(|waited| waited.job == job && waited.lasted(HOUR))
    }

    /// No job is watched, so there is nothing to hand on.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// After a look at which the VM was free and exactly these jobs waited.
    pub(super) fn all_waiting(&self, jobs: impl IntoIterator<Item = u64>, now: Timestamp) -> Self {
        let now = now.unix_seconds();
        let seen_lately = |waited: &&Waited| {
            waited.lasted(HOUR) || now.saturating_sub(waited.until) <= UNSEEN.as_secs()
        };
        let known = |job| self.0.iter().find(|waited| waited.job == job).filter(seen_lately);
        let since = |job| known(job).map_or(now, |waited| waited.since);
        let waited = |job| Waited { job, since: since(job), until: now };
        Self(jobs.into_iter().map(waited).take(MOST).collect())
    }

    /// After a look at which the VM was free and this job, and perhaps others, waited.
    pub(super) fn one_waiting(&self, job: u64, now: Timestamp) -> Self {
        let others = self.0.iter().copied().filter(|waited| waited.job != job);
        Self(self.all_waiting([job], now).0.into_iter().chain(others).take(MOST).collect())
    }

    /// After a look at which the VM was not up: time without a VM is not waiting for a free one. What was
    /// left before stays so, or the VM would be started again for a job that it does not get.
    pub(super) fn while_down(&self) -> Self {
        let left = self.0.iter().filter(|waited| waited.lasted(NEARLY));
        Self(
            left.map(|waited| Waited {
                until: waited.until.max(waited.since.saturating_add(HOUR.as_secs())),
                ..*waited
            })
            .collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minutes: u64) -> Timestamp {
        Timestamp::from_unix_seconds(1_800_000_000 + 60 * minutes)
    }

    /// Job 7 was seen waiting every ten minutes.
    fn waiting_until(minutes: u64) -> Watch {
        let looks = (0..=minutes).step_by(10);
        looks.fold(Watch::default(), |watch, minutes| watch.all_waiting([7], at(minutes)))
    }

    #[test]
    fn a_job_that_waits_an_hour_for_a_free_vm_is_not_for_it() {
        let watch = [20, 40]
            .into_iter()
            .fold(Watch::default().all_waiting([7], at(0)), |watch, minutes| {
                watch.all_waiting([7, 8], at(minutes))
            });
        assert!(!watch.has_left(7));
        let watch = watch.all_waiting([7, 8], at(60));
        assert!(watch.has_left(7) && !watch.has_left(8) && !watch.has_left(9));
    }

    #[test]
    fn one_look_without_it_starts_its_hour_again() {
        let watch = waiting_until(50).all_waiting([], at(55)).all_waiting([7], at(60));
        assert!(!watch.has_left(7));
    }

    #[test]
    fn what_nobody_looked_at_for_long_starts_its_hour_again() {
        assert!(waiting_until(40).all_waiting([7], at(60)).has_left(7));
        assert!(!waiting_until(40).all_waiting([7], at(61)).has_left(7));
        assert!(!waiting_until(40).one_waiting(7, at(61)).has_left(7));
        // But what was left stays so.
        assert!(waiting_until(60).all_waiting([7], at(300)).has_left(7));
    }

    #[test]
    fn a_start_check_watches_its_own_job_and_keeps_the_others() {
        let watch = waiting_until(40).all_waiting([7, 8], at(50)).one_waiting(7, at(60));
        assert!(watch.has_left(7) && !watch.has_left(8));
        assert!(watch.one_waiting(8, at(61)).has_left(7));
    }

    #[test]
    fn time_without_a_vm_does_not_count_but_what_was_left_stays() {
        let watch = waiting_until(50).all_waiting([7, 8], at(60)).while_down();
        assert!(watch.has_left(7));
        assert!(!watch.one_waiting(8, at(125)).has_left(8));
    }

    #[test]
    fn the_chain_that_lags_behind_agrees_that_a_job_was_left() {
        let lagging = waiting_until(40).all_waiting([7], at(52));
        assert!(!lagging.has_left(7) && lagging.while_down().has_left(7));
        let early = waiting_until(40).all_waiting([7], at(49));
        assert!(!early.while_down().has_left(7));
    }
}
