//! A budget for the answers that one request of a caller may read: an API that sends too much must not use up the
//! instance's memory.

use std::cell::Cell;

/// Bytes of answers for one request. A page of a hundred jobs has half a megabyte.
const MAX_READ: usize = 128 << 20;

tokio::task_local! {
    static LEFT: Cell<usize>;
}

/// Runs `work`, which may read this much.
pub async fn limit<T>(work: impl Future<Output = T>) -> T {
    LEFT.scope(Cell::new(MAX_READ), work).await
}

/// Takes bytes from the budget; false if it is used up. Without a budget, any number may be read.
pub(super) fn take(bytes: usize) -> bool {
    LEFT.try_with(|left| match left.get().checked_sub(bytes) {
        Some(rest) => {
            left.set(rest);
            true
        }
        None => false,
    })
    .unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_budget_is_for_one_request() {
        assert!(take(usize::MAX), "without a budget");
        for _ in 0..2 {
            limit(async {
                assert!(take(MAX_READ - 1) && take(1) && !take(1));
            })
            .await;
        }
    }
}
