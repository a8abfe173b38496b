//! The service's clock.
//!
//! All decisions use the time of this clock: the system's in production, tokio's paused one in the simulation, and one
//! that runs faster in `runner-manager dev`, where two minutes pass in a second. A [`Deadline`] is different: it limits a
//! handler's real time, so it is never faster.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;

/// Cheap to clone; all clones show the same time.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    /// The system's time. A monotonic clock may stand still while Cloud Run suspends an idle instance.
    System,
    /// `pace` seconds of this clock pass in one second of tokio's.
    Paced { origin: Timestamp, started: Instant, pace: u32 },
}

impl Clock {
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that starts at `origin` and runs `pace` times as fast as tokio's. The simulation uses a pace of 1 and
    /// pauses tokio's clock.
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    pub fn paced(origin: Timestamp, pace: u32) -> Self {
        Self(Source::Paced { origin, started: Instant::now(), pace: pace.max(1) })
    }

    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::System => {
                Timestamp::UNIX_EPOCH
                    + std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default()
            }
            Source::Paced { origin, started, pace } => *origin + started.elapsed() * *pace,
        }
    }

    pub async fn sleep(&self, span: Duration) {
        let pace = match &self.0 {
            Source::System => 1,
            Source::Paced { pace, .. } => *pace,
        };
        tokio::time::sleep(span / pace).await;
    }

    /// Waits until this clock shows `time`; returns at once if it is past.
    pub async fn sleep_until(&self, time: Timestamp) {
        self.sleep(time.since(self.now())).await;
    }
}

/// The time by which a handler or a call has to finish, in real time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    pub fn after(span: Duration) -> Self {
        Self(Instant::now() + span)
    }

    /// The time until the deadline; zero once it is past.
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    pub fn remaining(&self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// A deadline that is earlier by `reserve`, which stays for work after it.
    pub fn minus(self, reserve: Duration) -> Self {
        Self(self.0.checked_sub(reserve).unwrap_or(self.0))
    }

    pub fn instant(&self) -> Instant {
        self.0
    }
}

/// A point in time, in milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    millis: u64,
}

impl Timestamp {
    pub const UNIX_EPOCH: Self = Self { millis: 0 };

    /// Converts seconds since the epoch. Values that do not fit saturate.
    pub const fn from_unix_seconds(seconds: u64) -> Self {
        Self { millis: seconds.saturating_mul(1000) }
    }

    /// Whole seconds since the epoch, rounded down.
    pub const fn unix_seconds(self) -> u64 {
        self.millis / 1000
    }

    pub const fn unix_millis(self) -> u64 {
        self.millis
    }

    /// The time from `earlier` until this one; zero if `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.millis.saturating_sub(earlier.millis))
    }

    /// Parses RFC 3339, with any offset, as Google and GitHub write it.
    pub fn parse(text: &str) -> Option<Self> {
        let parsed = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        u64::try_from(parsed.unix_timestamp_nanos() / 1_000_000).ok().map(|millis| Self { millis })
    }

    /// RFC 3339 in UTC, with milliseconds unless they are zero: `2026-11-24T05:03:00Z`.
    pub fn rfc3339(self) -> String {
        self.date_time().format(&Rfc3339).unwrap_or_default()
    }

    /// The time of day in UTC: `05:03:00`.
    pub fn time_of_day(self) -> String {
        let (hour, minute, second) = self.date_time().to_hms();
        format!("{hour:02}:{minute:02}:{second:02}")
    }

    fn date_time(self) -> OffsetDateTime {
        // The last second of the year 9999: RFC 3339 cannot express later times.
        const LAST: u64 = 253_402_300_799_000;
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.millis.min(LAST)) * 1_000_000)
            .unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }
}

/// Serializes whole seconds since the Unix epoch.
impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.unix_seconds().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u64::deserialize(deserializer).map(Self::from_unix_seconds)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rfc3339())
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;
    fn add(self, span: Duration) -> Self {
        let span = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        Self { millis: self.millis.saturating_add(span) }
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Self;
    fn sub(self, span: Duration) -> Self {
        let span = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        Self { millis: self.millis.saturating_sub(span) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_read_what_google_and_github_write() {
        let utc = Timestamp::parse("2026-11-24T05:03:00Z").unwrap();
        assert_eq!(
            Timestamp::parse("2026-11-23T21:03:00.250-08:00"),
            Some(utc + Duration::from_millis(250))
        );
        assert_eq!(Timestamp::parse("yesterday"), None);
        assert_eq!(utc.rfc3339(), "2026-11-24T05:03:00Z");
        assert_eq!(utc.time_of_day(), "05:03:00");
    }

    #[test]
    fn arithmetic_saturates_instead_of_wrapping() {
        let early = Timestamp::from_unix_seconds(10);
        assert_eq!(early - Duration::from_secs(60), Timestamp::UNIX_EPOCH);
        assert_eq!(early.since(early + Duration::from_secs(1)), Duration::ZERO);
        assert!(!Timestamp::from_unix_seconds(u64::MAX).rfc3339().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_paced_clock_passes_a_minute_in_a_second() {
        let origin = Timestamp::from_unix_seconds(1_800_000_000);
        let clock = Clock::paced(origin, 60);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(clock.now().since(origin), Duration::from_secs(60));
        clock.sleep_until(origin + Duration::from_secs(120)).await;
        assert_eq!(clock.now().since(origin), Duration::from_secs(120));
    }
}
