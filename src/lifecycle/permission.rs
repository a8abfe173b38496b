//! Whether labels can be written, as far as this instance of the service knows.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tracing::warn;

use super::schedule::MINUTE;
use crate::clients::Error;
use crate::clock::Timestamp;
use crate::fleet::Vm;

/// A refusal counts for this long: IAM changes take minutes to arrive.
const RETRY_AFTER: Duration = Duration::from_secs(10 * MINUTE.as_secs());

/// The memory of a refused `instances.setLabels`.
#[derive(Debug, Default)]
pub struct LabelPermission(Mutex<Option<Timestamp>>);

impl LabelPermission {
    pub(super) fn is_missing(&self, now: Timestamp) -> bool {
        self.refused_at().is_some_and(|at| now.since(at) < RETRY_AFTER)
    }

    /// Remembers the refusal; the first of several in a row is logged.
    pub(super) fn refused(&self, vm: &Vm, error: &Error, now: Timestamp) {
        let mut refused_at = self.lock();
        if refused_at.is_none() {
            warn!(
                "VM {vm}: labels cannot be written, so a pass cannot tell that a newer job came: grant \
                 compute.instances.setLabels to the service's account ({error})"
            );
        }
        *refused_at = Some(now);
    }

    pub(super) fn granted(&self) {
        *self.lock() = None;
    }

    fn refused_at(&self) -> Option<Timestamp> {
        *self.lock()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Timestamp>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
