//! Runner Manager from outside: what it answers, and what becomes of jobs and VMs.

mod arrows;
mod binary;
mod endpoints;
mod promises;
mod world;
