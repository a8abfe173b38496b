//! Times: buckets, due times and the `idle_since` value. Arithmetic without I/O.
//!
//! A task is named by its due time among other things, so due times are rounded: passes that different events created
//! for one VM fall on the same time, get the same name, and go on as one.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

pub(super) const MINUTE: Duration = Duration::from_secs(60);

pub(super) const HOUR: Duration = Duration::from_secs(60 * 60);

pub(super) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Due times and `idle_since` are rounded up to this.
pub(super) const BUCKET: Duration = Duration::from_secs(30);

/// The time from a VM's start until its runner has taken a job.
pub const BOOT_ALLOWANCE: Duration = Duration::from_secs(5 * 60);

/// The longest time between two passes for a VM that is up, and between two attempts to start one.
pub(super) const PASS_INTERVAL: Duration = Duration::from_secs(5 * 60);

/// The time from an event to its pass: a stop that was under way at the event shows in the VM's status by then, since a
/// pass lives less than 20 s.
pub(super) const FIRST_PASS: Duration = Duration::from_secs(90);

/// The first multiple of [`BUCKET`] that is not before `time`.
pub(super) fn rounded_up(time: Timestamp) -> Timestamp {
    let bucket = BUCKET.as_secs();
    Timestamp::from_unix_seconds(time.unix_millis().div_ceil(1000 * bucket) * bucket)
}

/// The first multiple of [`BUCKET`] after `time`.
pub(super) fn next_bucket(time: Timestamp) -> Timestamp {
    rounded_up(time + Duration::from_millis(1))
}

/// The first multiple of [`PASS_INTERVAL`] after `time`.
pub(super) fn next_interval(time: Timestamp) -> Timestamp {
    let step = PASS_INTERVAL.as_secs();
    Timestamp::from_unix_seconds((time.unix_seconds() / step + 1) * step)
}

/// The due time of the pass after `passes` passes without a time of their own: 1 min, 2 min, then the next multiple of
/// 5 min.
pub(super) fn usual_due(base: Timestamp, passes: u32) -> Timestamp {
    match passes {
        0 => rounded_up(base + MINUTE),
        1 => rounded_up(base + 2 * MINUTE),
        _ => next_interval(base),
    }
}

/// The due time of a pass that waits for `time`: at `time` if that is near, otherwise at the next multiple of 5 min,
/// since the VM may vanish meanwhile. Always after `base`.
pub(super) fn due_before(base: Timestamp, time: Timestamp) -> Timestamp {
    let due = if time <= base + PASS_INTERVAL { rounded_up(time) } else { next_interval(base) };
    due.max(next_bucket(base))
}

/// The due time of the pass that looks after a stop: 2 min, doubled with every earlier stop that had no effect, an hour
/// at most.
pub(super) fn due_after_stop(base: Timestamp, earlier_stops: u32) -> Timestamp {
    match earlier_stops {
        0 => rounded_up(base + 2 * MINUTE),
        more => next_interval(base + doubled(2 * MINUTE, more, HOUR) - Duration::from_millis(1)),
    }
}

/// `first`, doubled `times` times, `most` at most.
pub(super) fn doubled(first: Duration, times: u32, most: Duration) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(times.min(30))).min(most)
}

/// The time by which follow-ups are scheduled: never before the pass was due, or a clock that is behind would give the
/// follow-up the name of its own task, and it would be lost. A task that was run by hand ahead of its time counts for
/// five minutes at most.
pub(super) fn schedule_base(now: Timestamp, due: Timestamp) -> Timestamp {
    now.max(due.min(now + PASS_INTERVAL))
}

/// The time of the last event that needed a VM, rounded up to a [`BUCKET`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct IdleSince(u64);

impl IdleSince {
    /// Older than any event.
    pub(super) const BEFORE_ALL: Self = Self(0);

    /// A label that lies further ahead than this was not written by the service. Believing it would supersede every
    /// task, and the VM would never be stopped.
    const LARGEST_CLOCK_SKEW: Duration = Duration::from_secs(10 * 60);

    /// The value for an event at `time`.
    pub(super) fn of_event(time: Timestamp) -> Self {
        Self(rounded_up(time).unix_seconds())
    }

    pub(super) fn time(self) -> Timestamp {
        Timestamp::from_unix_seconds(self.0)
    }

    /// One bucket later.
    pub(super) fn next(self) -> Self {
        Self(self.0.saturating_add(BUCKET.as_secs()))
    }

    /// The value of a label, unless the service cannot have written it.
    pub(super) fn parse(label: &str, now: Timestamp) -> Option<Self> {
        let value = Self(label.parse().ok()?);
        (value.time() <= now + Self::LARGEST_CLOCK_SKEW).then_some(value)
    }
}

impl fmt::Display for IdleSince {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_unix_seconds(seconds)
    }

    #[test]
    fn buckets_round_up_to_the_millisecond() {
        assert_eq!(rounded_up(at(60)), at(60));
        assert_eq!(rounded_up(at(60) + Duration::from_millis(1)), at(90));
        assert_eq!(next_bucket(at(60)), at(90));
        assert_eq!(next_bucket(at(59)), at(60));
    }

    #[test]
    fn the_usual_due_times_are_one_minute_two_minutes_and_multiples_of_five() {
        assert_eq!(usual_due(at(1_000), 0), at(1_080));
        assert_eq!(usual_due(at(1_000), 1), at(1_140));
        assert_eq!(usual_due(at(1_000), 2), at(1_200));
        assert_eq!(usual_due(at(1_200), 9), at(1_500));
    }

    #[test]
    fn a_pass_waits_for_a_time_that_is_near_and_looks_every_five_minutes_until_then() {
        assert_eq!(due_before(at(1_000), at(1_300)), at(1_320));
        assert_eq!(due_before(at(1_020), at(1_320)), at(1_320));
        assert_eq!(due_before(at(1_000), at(1_301)), at(1_200));
        assert_eq!(due_before(at(1_000), at(90_000)), at(1_200));
    }

    #[test]
    fn the_pass_after_a_stop_that_had_no_effect_comes_later_each_time() {
        assert_eq!(due_after_stop(at(900), 0), at(1_020));
        assert_eq!(due_after_stop(at(900), 1), at(1_200));
        assert_eq!(due_after_stop(at(960), 1), at(1_200));
        assert_eq!(due_after_stop(at(900), 2), at(1_500));
        assert_eq!(due_after_stop(at(900), 5), at(4_500));
        assert_eq!(due_after_stop(at(900), u32::MAX), at(4_500));
    }

    #[test]
    fn a_due_time_lies_after_its_base() {
        for base in (0..3_000).map(at) {
            for passes in 0..4 {
                assert!(usual_due(base, passes) > base, "{base} {passes}");
                assert!(due_after_stop(base, passes) > base, "{base} {passes}");
            }
            for time in [0, 1_000, 1_230, 9_000].map(at) {
                assert!(due_before(base, time) > base, "{base} {time}");
            }
            assert!(next_interval(base) > base && next_bucket(base) > base, "{base}");
        }
    }

    #[test]
    fn a_clock_that_is_behind_does_not_lose_a_follow_up() {
        assert_eq!(schedule_base(at(1_000), at(970)), at(1_000));
        assert_eq!(schedule_base(at(1_000), at(1_030)), at(1_030));
        // An operator ran the task a day ahead of its time.
        assert_eq!(schedule_base(at(1_000), at(87_400)), at(1_300));
    }

    #[test]
    fn a_label_that_the_service_cannot_have_written_does_not_count() {
        let parsed = |label| IdleSince::parse(label, at(1_800_000_000));
        assert_eq!(parsed("1799999970"), Some(IdleSince(1_799_999_970)));
        assert_eq!(parsed("1800000600"), Some(IdleSince(1_800_000_600)));
        for label in ["1800000601", "99999999999999999999", "today", "", "-5"] {
            assert_eq!(parsed(label), None, "{label}");
        }
    }
}
