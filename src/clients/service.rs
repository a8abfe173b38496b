//! The service itself, as anybody sees it at its own URL.

use serde::Deserialize;

use super::Error;
use super::transport::{Outgoing, Transport, read};
use crate::clock::Deadline;
use crate::fleet::{Label, RepoName};

/// The service at its URL; cheap to clone.
#[derive(Clone, Debug)]
pub struct Service {
    transport: Transport,
    url: String,
}

/// The answer of `/health`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Health {
    /// `healthy`.
    pub status: String,
}

/// The answer of `/`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Info {
    /// What it calls itself.
    pub service: String,
    /// VM_INACTIVE_MINUTES.
    pub inactive_minutes: u64,
    /// RUNNER_CONFIG, as far as it is shown.
    pub runner_configs: Vec<RunnerConfig>,
}

/// An entry, as far as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct RunnerConfig {
    /// The repository.
    pub repo: RepoName,
    /// Its labels.
    pub labels: Vec<Label>,
    /// The VM's name.
    pub vm_instance_name: String,
    /// The VM's zone.
    pub vm_instance_zone: String,
}

impl Service {
    /// The service at `url`, which has no trailing slash.
    pub fn new(transport: Transport, url: &str) -> Self {
        Self { transport, url: url.to_owned() }
    }

    /// Whether it is up.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub async fn health(&self, deadline: Deadline) -> Result<Health, Error> {
        let call = "GET /health";
        let request = Outgoing::get(call, format!("{}/health", self.url));
        read(call, &self.transport.send(&request, deadline).await?)
    }

    /// What it is.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub async fn info(&self, deadline: Deadline) -> Result<Info, Error> {
        let call = "GET /";
        let request = Outgoing::get(call, format!("{}/", self.url));
        read(call, &self.transport.send(&request, deadline).await?)
    }
}
