//! The activity mark: when a VM last had work.
//!
//! A stop task may come late, twice, or after a newer job, and the service keeps no state to tell by. So a VM
//! carries the time of its last activity as a label, and each stop task the label that it was made for.
//! <https://cloud.google.com/compute/docs/reference/rest/v1/instances/setLabels>

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::StatusCode;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::schedule::{HOUR, rounded_up};
use crate::clients::Error;
use crate::clients::compute::Instance;
use crate::clock::{Deadline, Timestamp};
use crate::fleet::Vm;
use crate::state::AppState;

/// The label that holds a VM's mark.
pub const MARK_LABEL: &str = "runner-manager-idle-since";

/// The label that keeps a VM from being stopped by a scheduled callback, whatever its value.
pub const HOLD_LABEL: &str = "runner-manager-hold";

/// Unix seconds, rounded up to half a minute, of the last event that needed the VM. It only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mark(u64);

impl Mark {
    /// Older than the mark of any event: what a task carries that any mark supersedes.
    pub(super) const BEFORE_ALL: Self = Self(0);

    /// The mark of an event at `time`.
    pub(super) fn at(time: Timestamp) -> Self {
        Self(rounded_up(time).unix_seconds())
    }

    /// The moment that it stands for.
    pub(super) fn time(self) -> Timestamp {
        Timestamp::from_unix_seconds(self.0)
    }

    /// What the VM's label says. A label that is no number, or lies ahead by more than clocks may differ, is
    /// not ours: believing it would declare every task superseded, and the VM would never be stopped.
    pub(super) fn of(instance: &Instance, now: Timestamp) -> Option<Self> {
        let mark = Self(instance.labels.get(MARK_LABEL)?.parse().ok()?);
        (mark.time() <= now + HOUR).then_some(mark)
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whether marks can be written. Found out by trying, and remembered by this instance of the service.
#[derive(Clone, Debug, Default)]
pub struct Marks {
    forbidden: Arc<AtomicBool>,
}

impl Marks {
    /// Whether setting labels was found to be forbidden.
    pub(super) fn are_forbidden(&self) -> bool {
        self.forbidden.load(Ordering::Relaxed)
    }

    fn forbid(&self, vm: &Vm) {
        if !self.forbidden.swap(true, Ordering::Relaxed) {
            warn!(
                "VM {vm}: its labels may not be set, so a stop task cannot tell whether a newer job came: grant \
                 compute.instances.setLabels to the service's account"
            );
        }
    }
}

/// Writes the mark, unless the VM has a greater one. The stop task of this mark must have been accepted
/// before: a mark without its task would leak the VM.
///
/// A mark that cannot be written is a warning, not an error: an older stop task may count then, but its
/// witnesses still decide.
pub(super) async fn write(
    app: &AppState,
    vm: &Vm,
    mark: Mark,
    read: &Instance,
    deadline: Deadline,
) {
    // Conflicts are with other writers of marks; whoever loses twice lost to a mark of the same half minute.
    const ATTEMPTS: usize = 3;
    if app.marks.are_forbidden() {
        return;
    }
    let mut instance = read.clone();
    for _ in 0..ATTEMPTS {
        if Mark::of(&instance, app.clock.now()) >= Some(mark) {
            return;
        }
        instance.labels.insert(MARK_LABEL.to_owned(), mark.to_string());
        let written = app
            .compute
            .set_labels(vm, &instance.labels, &instance.label_fingerprint, deadline)
            .await;
        match written {
            Ok(()) => return,
            Err(error) if error.status() == Some(StatusCode::PRECONDITION_FAILED) => {}
            Err(error) if is_missing_permission(&error) => return app.marks.forbid(vm),
            Err(error) => return warn!("VM {vm}: its mark {mark} was not written: {error}"),
        }
        match app.compute.get(vm, deadline).await {
            Ok(fresh) => instance = fresh,
            Err(error) => return warn!("VM {vm}: its mark {mark} was not written: {error}"),
        }
    }
    info!("VM {vm}: its mark {mark} was not written: its labels kept changing");
}

/// A bad token or an API that is turned off says nothing about the permission to set labels.
pub(super) fn is_missing_permission(error: &Error) -> bool {
    error.is_forbidden() && matches!(error, Error::Status { reason, .. } if reason == "forbidden")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clients::compute::{Labels, Status};

    fn marked(label: &str) -> Option<Mark> {
        let instance = Instance {
            id: "1".into(),
            status: Status::Running,
            labels: Labels::from([(MARK_LABEL.to_owned(), label.to_owned())]),
            label_fingerprint: String::new(),
            last_start: None,
            last_stop: None,
            last_suspend: None,
            has_local_ssd: false,
        };
        Mark::of(&instance, Timestamp::from_unix_seconds(1_800_000_000))
    }

    #[test]
    fn a_label_that_cannot_be_ours_is_no_mark() {
        assert_eq!(marked("1799999970"), Some(Mark(1_799_999_970)));
        assert_eq!(marked("1800000030"), Some(Mark(1_800_000_030)));
        assert_eq!(marked("1900000000"), None);
        assert_eq!(marked("99999999999999999999"), None);
        assert_eq!(marked("today"), None);
        assert_eq!(marked(""), None);
    }
}
