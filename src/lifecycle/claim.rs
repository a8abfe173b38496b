//! A claim: the label that says for which job a VM of a pool is there.

use std::fmt;
use std::time::Duration;

use super::schedule::{BOOT_ALLOWANCE, MINUTE};
use crate::clock::Timestamp;

/// A start that Compute Engine accepted shows in the VM's status by then. A VM that is still down could not be started.
const START_SHOWS_WITHIN: Duration = MINUTE;

/// The job for which a VM was started, or kept up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) at: Timestamp,
    pub(super) job: u64,
}

impl Claim {
    /// Separates time and job in the label's value.
    const SEPARATOR: char = '-';

    pub(super) fn parse(label: &str) -> Option<Self> {
        let (at, job) = label.split_once(Self::SEPARATOR)?;
        let at = Timestamp::from_unix_seconds(at.parse().ok()?);
        Some(Self { at, job: job.parse().ok()? })
    }

    /// Its job had no time yet to come to the VM's runner.
    pub(super) fn is_fresh(self, now: Timestamp) -> bool {
        self.at > now || now.since(self.at) < BOOT_ALLOWANCE
    }

    /// The VM would be on its way up by now, if it could be started.
    pub(super) fn should_show(self, now: Timestamp) -> bool {
        self.at <= now && now.since(self.at) >= START_SHOWS_WITHIN
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}", self.at.unix_seconds(), Self::SEPARATOR, self.job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_reads_as_it_is_written() {
        let claim = Claim { at: Timestamp::from_unix_seconds(1_800_000_000), job: 48_123_456_789 };
        assert_eq!(Claim::parse(&claim.to_string()), Some(claim));
        for not_a_claim in ["", "7", "-", "a-b", "1800000000-"] {
            assert_eq!(Claim::parse(not_a_claim), None, "{not_a_claim}");
        }
    }
}
