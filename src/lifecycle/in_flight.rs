//! Deliveries that overlap and say the same do their work once.
//!
//! The 256 jobs of a matrix are 256 deliveries within seconds, and all of them need the same: that one VM is read,
//! started, leased and marked, in the same half minute. Those that this instance of the service has in hand at the
//! same time share one piece of work. Nobody waits for others to come, and nobody leads: the work goes on as long as
//! one of those that share it is there to drive it, and ends with the last. What comes later begins anew.
//!
//! The work of one half minute is never shared with the next. So nobody acts on a read that was made for an older
//! mark than its own, and all that share one would have made the same tasks and written the same mark.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, WeakShared};

use super::schedule::rounded_up;
use super::{Error, Outcome};
use crate::clock::{Deadline, Timestamp};
use crate::fleet::Vm;

/// What a delivery says of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    /// A job waits for it.
    Queued,
    /// A job will perhaps wait for it.
    PendingReview,
    /// A job is over.
    Completed,
}

/// The same event of the same VM in the same half minute.
type Key = (Event, Vm, Timestamp);

type Work = BoxFuture<'static, Result<Outcome, Error>>;

/// What is in hand; clones share it.
#[derive(Clone, Default)]
pub struct InFlight(Arc<Mutex<BTreeMap<Key, WeakShared<Work>>>>);

impl fmt::Debug for InFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.works().keys()).finish()
    }
}

impl InFlight {
    /// Does `work` for an event at `now`, or what is left of it where another delivery began it.
    ///
    /// # Errors
    /// As `work` says. What failed under another delivery's deadline is tried again under one's own.
    pub(super) async fn share<F>(
        &self,
        event: Event,
        vm: &Vm,
        now: Timestamp,
        deadline: Deadline,
        work: impl Fn(Deadline) -> F,
    ) -> Result<Outcome, Error>
    where
        F: Future<Output = Result<Outcome, Error>> + Send + 'static,
    {
        let key = (event, vm.clone(), rounded_up(now));
        let joined = self.works().get(&key).and_then(WeakShared::upgrade);
        if let Some(joined) = joined {
            return match joined.await {
                Ok(outcome) => Ok(outcome),
                // As good as never: it shall not make every delivery's future larger.
                Err(_) => Box::pin(work(deadline)).await,
            };
        }
        let work = self.until_done(key.clone(), work(deadline)).boxed().shared();
        if let Some(weak) = work.downgrade() {
            self.works().insert(key, weak);
        }
        work.await
    }

    /// Does the work and, done or dropped, makes way for the next.
    fn until_done<F: Future + Send + 'static>(
        &self,
        key: Key,
        work: F,
    ) -> impl Future<Output = F::Output> + Send + use<F> {
        let in_hand = InHand { key, all: self.clone() };
        // A block that awaited it would hold it twice: where it was captured, and where it is awaited.
        work.inspect(move |_| drop(in_hand))
    }

    /// Nothing that could panic happens under the lock.
    fn works(&self) -> MutexGuard<'_, BTreeMap<Key, WeakShared<Work>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A piece of work that others may join as long as this exists.
struct InHand {
    key: Key,
    all: InFlight,
}

impl Drop for InHand {
    fn drop(&mut self) {
        self.all.works().remove(&self.key);
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
