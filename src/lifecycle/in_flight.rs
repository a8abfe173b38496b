//! Deliveries that overlap and say the same share their work.
//!
//! The 256 jobs of a matrix are 256 deliveries within seconds, and all of them need the same: one VM read, started and
//! labelled in the same bucket of time. Those that this instance of the service handles at the same time share one piece
//! of work. There is no waiting window and no leader: the work goes on as long as one of the deliveries is there to
//! drive it, and ends with the last. A later delivery begins anew.
//!
//! The work of one bucket is never shared with the next: all that share it would have created the same pass and written
//! the same label.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, WeakShared};

use super::error::Error;
use super::outcome::Outcome;
use super::schedule::rounded_up;
use crate::clock::{Deadline, Timestamp};
use crate::fleet::Vm;

/// The meaning of a delivery for a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    Queued,
    /// Queued, but a review comes first.
    Waiting,
    Completed,
}

/// The same event for the same VM in the same bucket.
pub(super) type Key = (Event, Vm, Timestamp);

/// The key of an event for `vm` at this time.
pub(super) fn key(event: Event, vm: &Vm, at: Timestamp) -> Key {
    (event, vm.clone(), rounded_up(at))
}

type Work = BoxFuture<'static, Result<Outcome, Error>>;

/// The work under way; clones share it.
#[derive(Clone, Default)]
pub struct InFlight(Arc<Mutex<BTreeMap<Key, WeakShared<Work>>>>);

impl fmt::Debug for InFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.map().keys()).finish()
    }
}

impl InFlight {
    /// Does `work`, or joins it where another delivery began it. Work that failed under another
    /// delivery's deadline is tried again under this one's.
    pub(super) async fn share<F>(
        &self,
        key: Key,
        deadline: Deadline,
        work: impl Fn(Deadline) -> F,
    ) -> Result<Outcome, Error>
    where
        F: Future<Output = Result<Outcome, Error>> + Send + 'static,
    {
        let joined = self.map().get(&key).and_then(WeakShared::upgrade);
        if let Some(joined) = joined {
            return match joined.await {
                Ok(outcome) => Ok(outcome),
                // Boxed, since it is rare and would make every delivery's future larger.
                Err(_) => Box::pin(work(deadline)).await,
            };
        }
        let work = self.until_done(key.clone(), work(deadline)).boxed().shared();
        if let Some(weak) = work.downgrade() {
            self.map().insert(key, weak);
        }
        work.await
    }

    /// Does the work and removes it from the map once it is done or dropped.
    fn until_done<F: Future + Send + 'static>(
        &self,
        key: Key,
        work: F,
    ) -> impl Future<Output = F::Output> + Send + use<F> {
        let entry = Entry { key, all: self.clone() };
        // A block that awaited it would hold it twice: where it was captured, and where it is awaited.
        work.inspect(move |_| drop(entry))
    }

    /// Nothing that could panic happens under the lock.
    fn map(&self) -> MutexGuard<'_, BTreeMap<Key, WeakShared<Work>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Work that deliveries may join as long as this exists.
struct Entry {
    key: Key,
    all: InFlight,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.all.map().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;

    #[test]
    fn work_is_held_once() {
        let vm = Vm { name: "runner-1".into(), zone: "asia-northeast1-a".into() };
        let key = (Event::Queued, vm, Timestamp::from_unix_seconds(0));
        let work = async {
            let large = [0_u8; 4096];
            ready(()).await;
            large.len()
        };
        let alone = size_of_val(&work);
        let work = InFlight::default().until_done(key, work);
        assert!(size_of_val(&work) < alone + 512, "{} of {alone}", size_of_val(&work));
    }
}
