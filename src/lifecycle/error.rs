//! The errors of the lifecycle. The caller has to send its event again.

use crate::clients;
use crate::fleet::Vm;

#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Upstream(#[from] clients::Error),
    #[error(
        "Compute Engine has no instance {0} in this project: check RUNNER_CONFIG and GCP_PROJECT_ID"
    )]
    NoSuchInstance(Vm),
    #[error(
        "VM {0}: its labels cannot be set: grant compute.instances.setLabels to the service's account ({1})"
    )]
    LabelsForbidden(Vm, clients::Error),
    #[error(
        "VM {0} has a local SSD, and a stop would lose its data: set \"discard_local_ssd\": true in its entry of \
         RUNNER_CONFIG, or stop the VM by other means"
    )]
    WouldLoseLocalSsd(Vm),
}
