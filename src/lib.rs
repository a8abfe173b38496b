//! Runner Manager starts and stops the Compute Engine VMs behind GitHub Actions self-hosted runners.

pub mod check;
pub mod clients;
pub mod clock;
pub mod config;
#[cfg(feature = "dev")]
pub mod dev;
#[cfg(feature = "dev")]
pub mod emulators;
pub mod explain;
pub mod fleet;
pub mod identity;
pub mod lifecycle;
pub mod routes;
pub mod secret;
pub mod serve;
pub mod state;
pub mod telemetry;
pub mod throttle;
pub mod webhook_url;
