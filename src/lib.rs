//! Runner Manager starts and stops the Compute Engine VMs behind GitHub Actions self-hosted runners.

pub mod clock;
pub mod config;
#[cfg(feature = "dev")]
pub mod emulators;
pub mod fleet;
pub mod secret;
