//! The service itself, at its own URL.

use http::{HeaderName, HeaderValue};
use serde::Deserialize;

use super::Error;
use super::transport::{Outgoing, Transport, read};
use crate::clock::Deadline;
use crate::fleet::{Label, RepoName};
use crate::secret::Secret;

/// A client of the service; cheap to clone.
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
    /// The service's name.
    pub service: String,
    /// VM_INACTIVE_MINUTES.
    pub inactive_minutes: u64,
    /// The public part of RUNNER_CONFIG.
    pub runner_configs: Vec<RunnerConfig>,
}

/// The public part of an entry.
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

    /// Reads `/health`.
    pub async fn health(&self, deadline: Deadline) -> Result<Health, Error> {
        let call = "GET /health";
        let request = Outgoing::get(call, format!("{}/health", self.url));
        read(call, &self.transport.send(&request, deadline).await?)
    }

    /// Asks with this secret for `/runner/status`, which changes nothing: refused with 401 if it is the wrong one.
    pub async fn status(&self, secret: &Secret, deadline: Deadline) -> Result<(), Error> {
        let call = "GET /runner/status";
        let unfit =
            |_| Error::NoToken { call, why: "the secret does not fit into a header".into() };
        let mut value = HeaderValue::try_from(secret.expose()).map_err(unfit)?;
        value.set_sensitive(true);
        let request = Outgoing::get(call, format!("{}/runner/status", self.url))
            .containing(secret.clone())
            .header(HeaderName::from_static("x-runner-secret"), value);
        self.transport.send(&request, deadline).await.map(drop)
    }

    /// Reads `/`.
    pub async fn info(&self, deadline: Deadline) -> Result<Info, Error> {
        let call = "GET /";
        let request = Outgoing::get(call, format!("{}/", self.url));
        read(call, &self.transport.send(&request, deadline).await?)
    }
}
