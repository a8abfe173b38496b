//! The consequences of each event in words, for `explain`. The times are the constants that the code uses.

use std::time::Duration;

use super::schedule::{BOOT_ALLOWANCE, BUCKET, FIRST_PASS, PASS_INTERVAL};

/// A job is queued.
pub fn of_a_queued_job(inactive: Duration) -> Vec<String> {
    vec![
        format!(
            "read the VM, and create a pass in {} that carries this job: it sees whether the VM is up",
            text(FIRST_PASS)
        ),
        format!(
            "by the VM's status: stopped, start it; suspended, resume it; up or booting, nothing; on its way down, \
             another pass in {}",
            text(BUCKET)
        ),
        "write the label runner-manager-idle-since: earlier passes are superseded".into(),
        format!(
            "as long as the job waits or runs, a pass sees at least every {} that the VM is up, and starts it again \
             if it is down",
            text(PASS_INTERVAL)
        ),
        idle(inactive),
    ]
}

/// A job is queued for a pool of this size.
pub fn of_a_job_of_a_pool(size: usize, inactive: Duration) -> Vec<String> {
    vec![
        format!(
            "read the {size} VMs in their order, up to the first that is free: one that is not claimed for another job and \
             not on its way down; if all are taken, the first"
        ),
        format!(
            "create a pass in {} that carries this job; then claim the VM with the label runner-manager-claim, and \
             start it if it is down",
            text(FIRST_PASS)
        ),
        format!(
            "as long as the job waits, a pass sees at least every {} that as many VMs are up as jobs wait and run, and \
             hands jobs that are too many, or whose VM could not be started, to the next VM",
            text(PASS_INTERVAL)
        ),
        idle(inactive),
    ]
}

/// A job is queued, but a review comes first.
pub fn of_a_waiting_job() -> Vec<String> {
    vec![
        "its status is `waiting`: it may have to be approved first, so the VM is not started yet"
            .into(),
        format!(
            "create a pass in {} that carries this job: it asks GitHub, and starts the VM once the job is queued",
            text(FIRST_PASS)
        ),
    ]
}

/// A job is over.
pub fn of_a_completed_job(inactive: Duration) -> Vec<String> {
    vec![
        format!(
            "create a pass in {}, then write the label runner-manager-idle-since: earlier passes are superseded",
            text(inactive.min(PASS_INTERVAL))
        ),
        idle(inactive),
    ]
}

/// The rule for a stop.
fn idle(inactive: Duration) -> String {
    format!(
        "a pass stops the VM no earlier than {} after the last job (VM_INACTIVE_MINUTES) and {} after a start, if its \
         runner is not busy, no job runs on it or is queued for it, and it is not held; otherwise it requeues itself",
        text(inactive),
        text(BOOT_ALLOWANCE)
    )
}

fn text(span: Duration) -> String {
    match span.as_secs() {
        seconds if seconds >= 120 && seconds.is_multiple_of(60) => format!("{} min", seconds / 60),
        60 => "1 min".into(),
        seconds => format!("{seconds} s"),
    }
}
