//! What each event sets going, in words: for whoever wants to know before it happens.
//!
//! The protocol is in [`super`]; its times are taken from where the code takes them.

use std::time::Duration;

use super::schedule::{BOOT_ALLOWANCE, BUCKET, CHECK_INTERVAL, FIRST_CHECK};

/// A job waits, and its VM is needed.
pub fn of_a_queued_job(inactive: Duration) -> Vec<String> {
    vec![
        format!(
            "read the VM, and schedule a start check in {}: it asks GitHub whether the job still waits",
            text(FIRST_CHECK)
        ),
        format!(
            "by the VM's status: stopped, start it; suspended, resume it; up or booting, nothing; on its way down, \
             another start check in {}",
            text(BUCKET)
        ),
        format!(
            "if it has to be started, or no event of the last half minute needed it: schedule a stop check in {}, \
             should no completion ever be heard of; then write the label runner-manager-idle-since",
            text(inactive + BOOT_ALLOWANCE)
        ),
        format!(
            "as long as the job waits, start checks see every {} that the VM is up",
            text(CHECK_INTERVAL)
        ),
    ]
}

/// A job that may wait for a review.
pub fn of_a_job_in_review() -> Vec<String> {
    vec![
        "its status is `waiting`: it may have to be approved first, so the VM is not started yet"
            .into(),
        format!(
            "schedule a start check in {}: it asks GitHub, and starts the VM if the job waits for a runner",
            text(FIRST_CHECK)
        ),
    ]
}

/// A job is over.
pub fn of_a_completed_job(inactive: Duration) -> Vec<String> {
    vec![
        format!(
            "schedule a stop check in {}, VM_INACTIVE_MINUTES, then write the label runner-manager-idle-since: stop \
             checks from before do nothing any more",
            text(inactive)
        ),
        "the stop check stops the VM if its runner is not busy, no job runs on it or waits for it, and nobody holds \
         it; else it looks again"
            .into(),
    ]
}

fn text(span: Duration) -> String {
    match span.as_secs() {
        seconds if seconds >= 120 && seconds.is_multiple_of(60) => format!("{} min", seconds / 60),
        seconds => format!("{seconds} s"),
    }
}
