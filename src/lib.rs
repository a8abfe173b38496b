//! Runner Manager starts and stops the Compute Engine VMs behind GitHub Actions self-hosted runners.

pub mod clock;
#[cfg(feature = "dev")]
pub mod emulators;
