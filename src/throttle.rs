//! A bound on log lines that any caller can cause. They cost money, and many of one kind would hide the others.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Timestamp;

/// The lines of a kind that may follow one another.
const BURST: u32 = 10;

/// The time after which one more line may follow.
const REFILL: Duration = Duration::from_secs(60);

/// A bucket of lines for each kind.
#[derive(Debug, Default)]
pub struct Throttle(Mutex<BTreeMap<String, Bucket>>);

#[derive(Debug)]
struct Bucket {
    lines: u32,
    refilled: Timestamp,
    left_out: u64,
}

impl Throttle {
    /// Decides about a line of this kind: the number of lines that were left out before it, or `None` to leave it out
    /// too. The caller sees to it that there are few kinds.
    pub fn admit(&self, kind: &str, now: Timestamp) -> Option<u64> {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !buckets.contains_key(kind) {
            buckets.insert(kind.to_owned(), Bucket { lines: BURST, refilled: now, left_out: 0 });
        }
        let bucket = buckets.get_mut(kind)?;
        let refills = now.since(bucket.refilled).as_secs() / REFILL.as_secs();
        if refills > 0 {
            bucket.lines =
                BURST.min(bucket.lines.saturating_add(u32::try_from(refills).unwrap_or(BURST)));
            bucket.refilled = now;
        }
        if bucket.lines == 0 {
            bucket.left_out += 1;
            return None;
        }
        bucket.lines -= 1;
        Some(std::mem::take(&mut bucket.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_logged_and_then_a_line_a_minute_with_the_count() {
        let throttle = Throttle::default();
        let at = |second: u64| Timestamp::from_unix_seconds(1_000 + second);
        let lines = |kind, second| {
            (0..500).filter_map(|_| throttle.admit(kind, at(second))).collect::<Vec<_>>()
        };
        assert_eq!(lines("401", 0), [0; 10]);
        assert!(lines("401", 59).is_empty());
        assert_eq!(lines("401", 60), [990]);
        assert_eq!(lines("413", 60), [0; 10], "another kind has its own bucket");
        assert_eq!(lines("401", 240), [499, 0, 0]);
        assert_eq!(lines("401", 100_000).len(), 10);
    }
}
