//! Runner Manager from outside: its responses, and the fate of jobs and VMs.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails; in helpers clippy does not see that"
)]

mod arrows;
mod binary;
mod check;
mod costs;
mod deliveries;
mod docs;
mod endpoints;
mod explain;
mod harness;
mod promises;
mod properties;
mod simulation;
mod world;
