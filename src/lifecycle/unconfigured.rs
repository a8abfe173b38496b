//! A callback for a VM that no entry names any more.
//!
//! That may be a deploy with a mistyped entry, so the chain is kept alive for a day, looking ever more seldom.
//! The VM itself is left alone: the secret gives power over the configured VMs only.

use tracing::{error, warn};

use super::schedule::{HOUR, MINUTE, doubled, look_again};
use super::task::{StartTask, StopTask, reckoned};
use super::{Error, Outcome, Status};
use crate::clock::{Deadline, Timestamp};
use crate::fleet::Vm;
use crate::state::AppState;

/// Keeps the stop chain alive for a day, or ends it with an error.
///
/// # Errors
/// If the follow-up could not be made.
pub async fn stop_check(
    app: &AppState,
    task: StopTask,
    deadline: Deadline,
) -> Result<Outcome, Error> {
    let now = reckoned(app.clock.now(), task.due);
    let vm = Vm::new(&task.vm_instance_name, &task.vm_instance_zone);
    let Some(due) = look_again_at(now, &vm, task.unconfigured_since) else {
        return Ok(given_up(&vm));
    };
    let since = task.unconfigured_since.or(Some(now.unix_seconds()));
    StopTask { unconfigured_since: since, ..task }.ask_at(app, due, deadline).await?;
    Ok(not_configured().again_at(due))
}

/// Keeps the start chain alive for a day, or ends it with an error.
///
/// # Errors
/// If the follow-up could not be made.
pub async fn start_check(
    app: &AppState,
    check: StartTask,
    deadline: Deadline,
) -> Result<Outcome, Error> {
    let now = reckoned(app.clock.now(), check.due);
    let vm = Vm::new(&check.vm_instance_name, &check.vm_instance_zone);
    let Some(due) = look_again_at(now, &vm, check.unconfigured_since) else {
        return Ok(given_up(&vm));
    };
    let since = check.unconfigured_since.or(Some(now.unix_seconds()));
    StartTask { unconfigured_since: since, ..check }.ask_at(app, due, deadline).await?;
    Ok(not_configured().again_at(due))
}

/// 10, 20, 40, then always 60 minutes; nothing after a day, or if the task does not say which VM it means.
fn look_again_at(now: Timestamp, vm: &Vm, since: Option<u64>) -> Option<Timestamp> {
    let unnamed = vm.name.is_empty() || vm.zone.is_empty();
    let waited =
        since.map(|since| now.since(Timestamp::from_unix_seconds(since))).unwrap_or_default();
    if unnamed || waited >= 24 * HOUR {
        return None;
    }
    // After 10, 30 and 70 minutes of waiting the next doubling is due.
    let steps = (waited.as_secs() / (10 * MINUTE).as_secs() + 1).ilog2();
    Some(look_again(now, doubled(10 * MINUTE, steps, HOUR)))
}

fn not_configured() -> Outcome {
    warn!("a task came for a VM that no entry of RUNNER_CONFIG names");
    Outcome::new(Status::NotConfigured, "no entry of RUNNER_CONFIG names the VM")
}

fn given_up(vm: &Vm) -> Outcome {
    error!(
        "VM {vm}: no entry of RUNNER_CONFIG names it, so it is no longer looked at; if it runs, stop it by hand"
    );
    Outcome::new(Status::NotConfigured, "no entry of RUNNER_CONFIG names the VM; given up")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_deploy_has_a_day_to_be_mended() {
        let vm = Vm::new("a", "z");
        let start = Timestamp::from_unix_seconds(1_800_000_000);
        let (mut now, mut since, mut looks) = (start, None, Vec::new());
        while let Some(due) = look_again_at(now, &vm, since) {
            since = since.or(Some(now.unix_seconds()));
            looks.push(due.since(now).as_secs() / 60);
            now = due;
        }
        assert_eq!(looks[0], 10);
        let after = |minutes: u32| {
            let now = start + minutes * MINUTE;
            let due = look_again_at(now, &vm, Some(start.unix_seconds())).unwrap();
            due.since(now).as_secs() / 60
        };
        // The nearest multiples of 10, 20, 40 and 60 minutes.
        assert_eq!([5, 10, 30, 70].map(after), [15, 30, 50, 50]);
        assert!(looks[1..].is_sorted() && looks.iter().all(|minutes| *minutes <= 90), "{looks:?}");
        assert!((24..26).contains(&(now.since(start).as_secs() / 3600)));
        assert!(looks.len() < 30, "{looks:?}");
    }

    #[test]
    fn a_task_that_names_no_vm_is_not_kept() {
        assert_eq!(look_again_at(Timestamp::UNIX_EPOCH, &Vm::new("", ""), None), None);
    }
}
