//! The four promises, as stories. Each ends in `settle`, which checks the whole history.

mod corner_cases;
mod drain;
mod last_job_counts;
mod never_kill;
mod never_leak;
mod never_strand;
mod other_versions;
mod permissions;
mod pools;
