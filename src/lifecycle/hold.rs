//! The hold: an operator keeps a VM up, for example to debug on it.
//!
//! It is a label like the [mark](super::mark), and written under the same fingerprint. But a mark that was not
//! written costs an early stop at worst, while an operator has to know whether the VM is held: so what stands in the
//! way is an error here.

use std::time::Duration;

use http::StatusCode;

use super::Error;
use super::mark::{HOLD_LABEL, is_missing_permission};
use crate::clients::compute::Instance;
use crate::clock::Deadline;
use crate::fleet::Vm;
use crate::state::AppState;

/// What the label says. Any value holds, and what somebody else wrote is left as it is.
const BY_HAND: &str = "by-hand";

/// How long labels may take to show, after somebody else wrote them.
const PAUSE: Duration = Duration::from_millis(500);

/// Sets or clears the label, if it is not so already.
///
/// # Errors
/// If labels may not be set, kept changing, or Compute Engine did not answer.
pub(super) async fn write(
    app: &AppState,
    vm: &Vm,
    held: bool,
    read: &Instance,
    deadline: Deadline,
) -> Result<(), Error> {
    // Conflicts are with writers of marks, of which there is one in half a minute.
    const ATTEMPTS: u32 = 5;
    let mut instance = read.clone();
    let mut attempts = 0;
    while instance.labels.contains_key(HOLD_LABEL) != held {
        if held {
            instance.labels.insert(HOLD_LABEL.to_owned(), BY_HAND.to_owned());
        } else {
            instance.labels.remove(HOLD_LABEL);
        }
        let written = app
            .compute
            .set_labels(vm, &instance.labels, &instance.label_fingerprint, deadline)
            .await;
        attempts += 1;
        match written {
            Ok(()) => return Ok(()),
            Err(error)
                if error.status() == Some(StatusCode::PRECONDITION_FAILED)
                    && attempts < ATTEMPTS =>
            {
                tokio::time::sleep(PAUSE).await;
                instance = app.compute.get(vm, deadline).await?;
            }
            Err(error) if is_missing_permission(&error) => {
                return Err(Error::LabelsForbidden(vm.clone(), error));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
