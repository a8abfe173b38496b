//! Jobs that wait for their turn to be placed on a VM of their pool.
//!
//! The jobs of a matrix are as many deliveries within seconds. One delivery at a time, of those that this instance of the
//! service handles, places the jobs of all that wait: each VM is read and claimed once for all of them.

use std::collections::BTreeMap;
use std::mem::take;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::error::Error;
use super::outcome::Outcome;
use super::task::JobRef;
use crate::clients;
use crate::clock::Deadline;
use crate::fleet::{ManagedVm, Pool};

/// A job's VM, and what was done with it.
pub type Placed = (Arc<ManagedVm>, Outcome);

/// The jobs that wait, by pool.
#[derive(Debug, Default)]
pub struct PoolQueues(Mutex<BTreeMap<usize, Arc<Queue>>>);

#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Vec<Ticket>>,
    /// Held by the delivery that places jobs.
    turn: tokio::sync::Mutex<()>,
}

/// A job, and the delivery that waits for its placement.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) job: JobRef,
    placed: oneshot::Sender<Result<Placed, Error>>,
}

impl Ticket {
    pub(super) fn answer(self, placed: Result<Placed, Error>) {
        // A caller that hung up needs no answer.
        _ = self.placed.send(placed);
    }
}

impl PoolQueues {
    /// Has the job placed: by `place`, which gets all jobs that wait, or by another delivery that does the same.
    ///
    /// # Errors
    /// The job was not placed.
    pub(super) async fn placed<F: Future<Output = ()>>(
        &self,
        pool: &Pool,
        job: &JobRef,
        deadline: Deadline,
        place: impl Fn(Vec<Ticket>) -> F,
    ) -> Result<Placed, Error> {
        let queue = Arc::clone(locked(&self.0).entry(pool.first_entry).or_default());
        let placed = async {
            loop {
                let (sender, mut receiver) = oneshot::channel();
                locked(&queue.waiting).push(Ticket { job: job.clone(), placed: sender });
                let answer = tokio::select! {
                    biased;
                    answer = &mut receiver => answer,
                    turn = queue.turn.lock() => {
                        let tickets = take(&mut *locked(&queue.waiting));
                        place(tickets).await;
                        drop(turn);
                        return receiver.await.unwrap_or_else(|_| Err(not_placed()));
                    }
                };
                // Another delivery ran out of its own time, or its caller hung up.
                if let Ok(Ok(placed)) = answer {
                    return Ok(placed);
                }
            }
        };
        let placed = tokio::time::timeout(deadline.remaining(), placed).await;
        placed.unwrap_or_else(|_| Err(not_placed()))
    }
}

fn not_placed() -> Error {
    let why = "the jobs before it in its pool took too long".to_owned();
    Error::Upstream(clients::Error::Unanswered { call: "instances.get", why })
}

/// Nothing that could panic happens under the lock.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
