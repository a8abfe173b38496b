//! Redelivery of lost deliveries. GitHub sends each delivery once, and again only on request within three days.
//!
//! GitHub lists the deliveries of the App's own webhook only, and they matter only if it leads to this service. Jobs
//! that still wait are found by the [resync](super::resync) anyway, and completions by the scheduled passes. A delivery
//! tells the same sooner, and without the permission to read jobs it is the only source.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{StreamExt, stream};

use super::context::Context;
use super::finding::{Finding, Level};
use super::schedule::{HOUR, MINUTE, doubled};
use crate::clients::Error;
use crate::clients::github::app::{Delivery, DeliveryFilter};
use crate::clock::{Deadline, Timestamp};
use crate::webhook_url::leads_here;

/// The time for which GitHub keeps a delivery.
const DELIVERY_RETENTION: Duration = Duration::from_secs(3 * 24 * 60 * 60);

/// The time after which GitHub drops a waiting job. An older `queued` would only start its VM for nothing.
const MAX_QUEUE_TIME: Duration = Duration::from_secs(24 * 60 * 60);

/// The most pages of 100 attempts that are read, newest first: enough to find the later attempts of failed deliveries.
const MAX_PAGES: usize = 20;

/// The most deliveries that are requested in one resync. The next one requests the others.
const MAX_REDELIVERIES: usize = 50;

/// The most requests at a time. GitHub asks for no more than a few.
const CONCURRENT_REQUESTS: usize = 4;

/// Requests every delivery again that no attempt has brought here, and reports the result.
///
/// # Errors
/// Fails if GitHub could not list the deliveries.
pub(super) async fn ask_again(cx: &Context, deadline: Deadline) -> Result<Vec<Finding>, Error> {
    let hook = match cx.github.hook_config(deadline).await {
        Err(error) if error.is_not_found() => return Ok(without_a_webhook(cx)),
        hook => hook?,
    };
    if !hook.url.is_some_and(|url| leads_here(&url, &cx.service_url)) {
        return Ok(Vec::new());
    }
    let now = cx.clock.now();
    let failed = cx.github.deliveries(DeliveryFilter::Failed, None, deadline).await?;
    if undelivered(&failed.items, now).is_empty() {
        return Ok(Vec::new());
    }
    let lost = undelivered(&attempts(cx, now, deadline).await?, now);
    let Some(first) = lost.first() else { return Ok(Vec::new()) };
    let found = format!(
        "{} of the App's webhook failed, the last at {}, answered {}",
        deliveries(lost.len()),
        first.at.rfc3339(),
        first.answered,
    );
    let due: Vec<&Lost> =
        lost.iter().filter(|lost| lost.is_due(now)).take(MAX_REDELIVERIES).collect();
    let asked = due.iter().map(|lost| cx.github.redeliver(lost.attempt, deadline));
    let asked: Vec<_> =
        stream::iter(asked.collect::<Vec<_>>()).buffered(CONCURRENT_REQUESTS).collect().await;
    // GitHub may have dropped a delivery since it listed it.
    let sent = asked.iter().filter(|asked| asked.is_ok()).count();
    let error = asked.into_iter().filter_map(Result::err).find(|error| !error.is_not_found());
    let mut findings = vec![Finding::new(Level::Warning, found)];
    if sent > 0 {
        findings[0].did = Some(format!("asked GitHub to send {} again", deliveries(sent)));
    }
    if let Some(error) = error {
        let found = format!("not all could be asked for again: {error}");
        findings.push(Finding::new(Level::Error, found));
    }
    Ok(findings)
}

/// Said once by each instance of the service: it is no fault, and does not change.
fn without_a_webhook(cx: &Context) -> Vec<Finding> {
    if cx.told_of_no_webhook.swap(true, Ordering::Relaxed) {
        return Vec::new();
    }
    let found = "the App has no webhook of its own, so deliveries that fail are not asked for again: GitHub lists those \
                 of the App alone. Jobs that wait are found all the same";
    vec![Finding::new(Level::Info, found.to_owned())]
}

fn deliveries(count: usize) -> String {
    format!("{count} deliver{}", if count == 1 { "y" } else { "ies" })
}

/// All attempts that GitHub still has, up to [`MAX_PAGES`].
async fn attempts(
    cx: &Context,
    now: Timestamp,
    deadline: Deadline,
) -> Result<Vec<Delivery>, Error> {
    let mut all = Vec::new();
    let mut cursor: Option<String> = None;
    for _ in 0..MAX_PAGES {
        let page = cx.github.deliveries(DeliveryFilter::All, cursor.as_deref(), deadline).await?;
        let old =
            page.items.last().is_none_or(|last| now.since(last.delivered_at) >= DELIVERY_RETENTION);
        all.extend(page.items);
        cursor = page.next;
        if old || cursor.is_none() {
            break;
        }
    }
    Ok(all)
}

/// A delivery of which no attempt was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Lost {
    /// The latest attempt: its id, its time and the status of its response.
    attempt: u64,
    at: Timestamp,
    answered: u16,
    /// The number of attempts so far.
    attempts: u32,
}

impl Lost {
    /// True at once after the first attempt, then after growing pauses: a lasting cause fails each attempt.
    fn is_due(&self, now: Timestamp) -> bool {
        let pause = match self.attempts {
            0 | 1 => Duration::ZERO,
            more => doubled(5 * MINUTE, more - 2, 6 * HOUR),
        };
        now.since(self.at) >= pause
    }
}

/// The lost deliveries that matter to a VM, by their latest attempt, newest first.
fn undelivered(attempts: &[Delivery], now: Timestamp) -> Vec<Lost> {
    let mut by_guid = BTreeMap::<&str, Vec<&Delivery>>::new();
    for attempt in attempts {
        by_guid.entry(attempt.guid.as_str()).or_default().push(attempt);
    }
    let lost = by_guid.into_values().filter_map(|attempts| {
        let first = attempts.iter().min_by_key(|attempt| attempt.id)?;
        let last = attempts.iter().max_by_key(|attempt| attempt.id)?;
        let delivered = attempts.iter().any(|attempt| attempt.was_accepted());
        (!delivered && matters(first, now)).then(|| Lost {
            attempt: last.id,
            at: last.delivered_at,
            answered: last.status_code,
            attempts: u32::try_from(attempts.len()).unwrap_or(u32::MAX),
        })
    });
    let mut lost: Vec<Lost> = lost.collect();
    lost.sort_by_key(|lost| std::cmp::Reverse(lost.attempt));
    lost
}

fn matters(first: &Delivery, now: Timestamp) -> bool {
    let age = now.since(first.delivered_at);
    first.event == "workflow_job"
        && match first.action.as_deref() {
            Some("queued") => age < MAX_QUEUE_TIME,
            Some("completed") => age < DELIVERY_RETENTION,
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minutes: u64) -> Timestamp {
        Timestamp::from_unix_seconds(60 * minutes)
    }

    fn attempt(id: u64, guid: &str, action: &str, status_code: u16, minutes: u64) -> Delivery {
        Delivery {
            id,
            guid: guid.into(),
            event: "workflow_job".into(),
            action: Some(action.into()),
            status: String::new(),
            status_code,
            delivered_at: at(minutes),
            redelivery: false,
        }
    }

    #[test]
    fn a_delivery_is_lost_if_no_attempt_brought_it_here() {
        let attempts = [
            attempt(9, "a", "queued", 502, 90),
            attempt(8, "b", "queued", 200, 80),
            attempt(7, "c", "in_progress", 502, 70),
            attempt(6, "b", "queued", 502, 60),
            attempt(5, "a", "queued", 504, 50),
            attempt(4, "d", "completed", 0, 40),
            Delivery { event: "ping".into(), ..attempt(3, "e", "queued", 502, 30) },
        ];
        let lost = undelivered(&attempts, at(100));
        let told = lost.iter().map(|lost| (lost.attempt, lost.answered, lost.attempts));
        assert_eq!(told.collect::<Vec<_>>(), [(9, 502, 2), (4, 0, 1)]);
    }

    #[test]
    fn a_job_that_github_has_dropped_is_not_queued_again_but_its_end_still_counts() {
        let day = 24 * 60;
        let of = |action| undelivered(&[attempt(1, "a", action, 502, 0)], at(day)).len();
        assert_eq!((of("queued"), of("completed")), (0, 1));
        assert!(undelivered(&[attempt(1, "a", "completed", 502, 0)], at(3 * day)).is_empty());
        let again = [attempt(2, "a", "queued", 502, day - 1), attempt(1, "a", "queued", 502, 0)];
        assert!(undelivered(&again, at(day)).is_empty());
    }

    #[test]
    fn a_delivery_that_keeps_failing_is_requested_less_and_less_often() {
        let due = |attempts, minutes| {
            Lost { attempt: 1, at: at(0), answered: 502, attempts }.is_due(at(minutes))
        };
        assert!(due(1, 0));
        assert!(!due(2, 4) && due(2, 5));
        assert!(!due(3, 9) && due(3, 10));
        assert!(!due(20, 359) && due(20, 360));
    }
}
