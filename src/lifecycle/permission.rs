//! The VMs whose labels cannot be written, as far as this instance of the service knows.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::warn;

use super::schedule::MINUTE;
use crate::clients::Error;
use crate::clock::Timestamp;
use crate::fleet::Vm;

/// A refusal counts for this long: IAM changes take minutes to arrive.
const RETRY_AFTER: Duration = Duration::from_secs(10 * MINUTE.as_secs());

/// The last refusal of `instances.setLabels` for each VM.
#[derive(Debug, Default)]
pub struct LabelPermission(Mutex<BTreeMap<Vm, Timestamp>>);

impl LabelPermission {
    pub(super) fn is_missing(&self, vm: &Vm, now: Timestamp) -> bool {
        self.lock().get(vm).is_some_and(|at| now.since(*at) < RETRY_AFTER)
    }

    /// Remembers the refusal; the first of several in a row is logged.
    pub(super) fn refused(&self, vm: &Vm, error: &Error, now: Timestamp) {
        if self.lock().insert(vm.clone(), now).is_none() {
            warn!(
                "VM {vm}: labels cannot be written, so a pass cannot tell that a newer job came: grant \
                 compute.instances.setLabels to the service's account ({error})"
            );
        }
    }

    pub(super) fn granted(&self, vm: &Vm) {
        self.lock().remove(vm);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Vm, Timestamp>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
