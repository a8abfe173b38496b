//! When to look again, and what a task is called: arithmetic without I/O.
//!
//! A task is named by its question and when it is asked, so whatever asks the same question at the same time
//! makes the same task. Times are rounded to make that happen often: chains of tasks that were begun by
//! different events meet, and go on as one.

use std::time::Duration;

use sha2::{Digest, Sha256};

use super::mark::Mark;
use crate::clock::Timestamp;
use crate::fleet::Vm;

/// A minute.
pub(super) const MINUTE: Duration = Duration::from_secs(60);

/// An hour.
pub(super) const HOUR: Duration = Duration::from_secs(60 * 60);

/// What due times and marks are rounded up to.
pub(super) const BUCKET: Duration = Duration::from_secs(30);

/// How long a VM may take from its start until its runner has taken a job.
pub const BOOT_ALLOWANCE: Duration = Duration::from_secs(5 * 60);

/// How often a start check looks whether its job still waits.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_secs(5 * 60);

/// How soon the first start check looks: a stop that was under way at the event shows by then.
pub(super) const FIRST_CHECK: Duration = Duration::from_secs(90);

/// From this delay on, times are rounded to multiples of the delay itself.
const MERGE_FROM: Duration = Duration::from_secs(2 * 60);

/// The first multiple of [`BUCKET`] that is not before `time`.
pub(super) fn rounded_up(time: Timestamp) -> Timestamp {
    let bucket = BUCKET.as_secs();
    Timestamp::from_unix_seconds(time.unix_millis().div_ceil(1000 * bucket) * bucket)
}

/// When to look again, `delay` from `now`: rounded up, or, from two minutes on, on the multiple of the delay
/// that is nearest to it.
pub(super) fn look_again(now: Timestamp, delay: Duration) -> Timestamp {
    if delay < MERGE_FROM {
        return rounded_up(now + delay);
    }
    let step = delay.as_secs();
    let nearest = (now + delay + delay / 2).unix_seconds() / step * step;
    Timestamp::from_unix_seconds(nearest)
}

/// The next multiple of `step` that lies after `now`.
pub(super) fn next_multiple(now: Timestamp, step: Duration) -> Timestamp {
    let step = step.as_secs();
    Timestamp::from_unix_seconds((now.unix_seconds() / step + 1) * step)
}

/// `first`, doubled `times` times, `most` at most.
pub(super) fn doubled(first: Duration, times: u32, most: Duration) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(times.min(30))).min(most)
}

/// The delay before a stop check's next look: 1, 2, 4, 8, then always 10 minutes.
pub(super) fn stop_check_delay(looks: u32) -> Duration {
    doubled(MINUTE, looks, 10 * MINUTE)
}

/// What a task asks. Part of its name, so the words must stay as they are across deploys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// Is the VM up for the job that waits?
    Start,
    /// Can the VM be stopped, if nothing came after this mark? `None`: it has no mark.
    Stop(Option<Mark>),
}

/// The task's id: a hash, since Cloud Tasks slows down with ids that resemble one another.
pub(super) fn task_id(question: Question, vm: &Vm, due: Timestamp) -> String {
    let asked = match question {
        Question::Start => "start".to_owned(),
        Question::Stop(None) => "stop unmarked".to_owned(),
        Question::Stop(Some(mark)) => format!("stop {mark}"),
    };
    let name = format!("{asked}\n{}\n{}\n{}", vm.zone, vm.name, due.unix_seconds());
    let hash = Sha256::digest(name.as_bytes());
    hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_unix_seconds(seconds)
    }

    #[track_caller]
    fn again(now: u64, delay: u64, due: u64) {
        assert_eq!(look_again(at(now), Duration::from_secs(delay)), at(due));
    }

    #[test]
    fn short_delays_round_up_and_long_ones_to_their_nearest_multiple() {
        again(0, 60, 60);
        again(1, 60, 90);
        again(10, 30, 60);
        again(50, 90, 150);
        again(0, 120, 120);
        again(59, 120, 120);
        again(60, 120, 240);
        again(1_000, 600, 1_800);
        again(1_499, 600, 1_800);
        again(1_500, 600, 2_400);
    }

    #[test]
    fn a_look_never_falls_on_the_moment_that_it_follows() {
        for now in 0..5_000 {
            for delay in [30, 60, 120, 240, 480, 600, 3_600] {
                assert!(look_again(at(now), Duration::from_secs(delay)) > at(now), "{now} {delay}");
            }
            assert!(next_multiple(at(now), CHECK_INTERVAL) > at(now), "{now}");
        }
    }

    #[test]
    fn a_start_check_looks_every_five_minutes() {
        assert_eq!(next_multiple(at(1_199), CHECK_INTERVAL), at(1_200));
        assert_eq!(next_multiple(at(1_200), CHECK_INTERVAL), at(1_500));
    }

    #[test]
    fn buckets_round_up_to_the_millisecond() {
        assert_eq!(rounded_up(at(60)), at(60));
        assert_eq!(rounded_up(at(60) + Duration::from_millis(1)), at(90));
    }

    #[test]
    fn delays_double_up_to_their_limit() {
        let minutes: Vec<u64> =
            (0..7).map(|looks| stop_check_delay(looks).as_secs() / 60).collect();
        assert_eq!(minutes, [1, 2, 4, 8, 10, 10, 10]);
        assert_eq!(doubled(MINUTE, u32::MAX, HOUR), HOUR);
    }

    #[test]
    fn equal_questions_at_equal_times_are_one_task() {
        let (a, b) = (Vm::new("a", "z"), Vm::new("b", "z"));
        let mark = |seconds| Some(Mark::at(at(seconds)));
        let id = task_id(Question::Stop(mark(60)), &a, at(300));
        assert_eq!(id, task_id(Question::Stop(mark(60)), &a, at(300)));
        let others = [
            task_id(Question::Stop(mark(90)), &a, at(300)),
            task_id(Question::Stop(None), &a, at(300)),
            task_id(Question::Start, &a, at(300)),
            task_id(Question::Stop(mark(60)), &b, at(300)),
            task_id(Question::Stop(mark(60)), &a, at(330)),
        ];
        assert!(!others.contains(&id));
        assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
}
