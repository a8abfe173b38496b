//! Why a decision could not be carried out.

use crate::clients;
use crate::fleet::Vm;

/// What stands between an event and its outcome. Whoever sent the event has to send it again.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Google or GitHub did not do what the protocol cannot go on without.
    #[error(transparent)]
    Upstream(#[from] clients::Error),
    /// RUNNER_CONFIG names a VM that the project does not have.
    #[error(
        "Compute Engine has no instance {0} in this project: check RUNNER_CONFIG and GCP_PROJECT_ID"
    )]
    NoSuchInstance(Vm),
    /// The hold label may not be set.
    #[error(
        "VM {0}: its labels may not be set: grant compute.instances.setLabels to the service's account ({1})"
    )]
    LabelsForbidden(Vm, clients::Error),
    /// A stop would lose the data of a local SSD, and the entry does not allow that.
    #[error(
        "VM {0} has a local SSD whose data a stop would lose: set \"discard_local_ssd\": true in its entry of \
         RUNNER_CONFIG, or stop it by other means"
    )]
    WouldLoseLocalSsd(Vm),
}
