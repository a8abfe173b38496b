//! Cloud Tasks: calls of this service at a later time.
//! <https://cloud.google.com/tasks/docs/reference/rest/v2/projects.locations.queues.tasks>

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Response, StatusCode};
use serde::{Deserialize, Serialize};

use super::Error;
use super::google::{Credentials, Held, Permissions};
use super::transport::{Outgoing, Transport, read};
use crate::clock::{Deadline, Timestamp};
use crate::secret::Secret;

/// A call of this service at a certain time.
#[derive(Clone, Debug)]
pub struct Task {
    /// The task's name within its queue: `[A-Za-z0-9_-]{1,500}`. Tasks with equal ids are one task.
    pub id: String,
    /// The path of the endpoint, such as `/runner/stop`.
    pub path: &'static str,
    /// The JSON body.
    pub body: Vec<u8>,
    /// The time of the call; at most 30 days ahead.
    pub due: Timestamp,
}

/// The result of a creation. In both cases the task will be, or was, called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// The task is new.
    New,
    /// A task of that id is pending, or was executed lately.
    Already,
}

/// The state of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueueState {
    /// Tasks are dispatched.
    Running,
    /// Tasks are accepted, but not dispatched.
    Paused,
    /// The queue was disabled by a queue.yaml, or has not been used for a month.
    Disabled,
    /// A state that this version of the service does not know.
    Unknown(String),
}

impl From<&str> for QueueState {
    fn from(name: &str) -> Self {
        match name {
            "RUNNING" => Self::Running,
            "PAUSED" => Self::Paused,
            "DISABLED" => Self::Disabled,
            other => Self::Unknown(super::tidy(other)),
        }
    }
}

/// One queue of Cloud Tasks; cheap to clone.
#[derive(Clone, Debug)]
pub struct CloudTasks {
    transport: Transport,
    credentials: Credentials,
    root: String,
    /// `projects/PROJECT/locations/LOCATION/queues/QUEUE`
    queue: String,
    service_url: String,
    secret: Secret,
    callback_account: Option<String>,
}

/// The queue, and the service that its tasks call.
#[derive(Clone, Debug)]
pub struct Queue<'a> {
    /// The queue's project.
    pub project: &'a str,
    /// The queue's location.
    pub location: &'a str,
    /// The queue's id.
    pub id: &'a str,
    /// This service's own URL.
    pub service_url: &'a str,
    /// The secret that each task carries as `X-Runner-Secret`. A principal that may list the queue's tasks can read it.
    pub secret: &'a Secret,
    /// The service account whose identity token Cloud Tasks sends instead. The service needs
    /// `iam.serviceAccounts.actAs` on it.
    pub callback_account: Option<&'a str>,
}

impl CloudTasks {
    /// The queue, at the API root `root`.
    pub fn new(
        transport: Transport,
        credentials: Credentials,
        root: &str,
        queue: &Queue<'_>,
    ) -> Self {
        let Queue { project, location, id, service_url, secret, callback_account } = queue;
        Self {
            transport,
            credentials,
            root: root.to_owned(),
            queue: format!("projects/{project}/locations/{location}/queues/{id}"),
            service_url: (*service_url).to_owned(),
            secret: (*secret).clone(),
            callback_account: callback_account.map(str::to_owned),
        }
    }

    /// Creates the task. An equal one that exists is a success too: the id is made from the task's purpose.
    /// <https://cloud.google.com/tasks/docs/reference/rest/v2/projects.locations.queues.tasks/create>
    ///
    /// # Errors
    /// Fails if Cloud Tasks did not confirm the task. The task may have been created all the same.
    pub async fn create(&self, task: &Task, deadline: Deadline) -> Result<Created, Error> {
        let call = "tasks.create";
        let request = Outgoing::post(call, format!("{}/v2/{}/tasks", self.root, self.queue))
            .containing(self.secret.clone())
            .json(&wire::CreateTask { task: self.wire_task(task) })?;
        match self.send(request, deadline).await {
            Ok(_) => Ok(Created::New),
            Err(Error::Status { status: StatusCode::CONFLICT, exists: true, .. }) => {
                Ok(Created::Already)
            }
            Err(error) => Err(error),
        }
    }

    /// The state of the queue.
    /// <https://cloud.google.com/tasks/docs/reference/rest/v2/projects.locations.queues/get>
    ///
    /// # Errors
    /// 404 if there is no such queue.
    pub async fn queue_state(&self, deadline: Deadline) -> Result<QueueState, Error> {
        let call = "queues.get";
        let request = Outgoing::get(call, format!("{}/v2/{}", self.root, self.queue));
        let answer = self.send(request, deadline).await?;
        read::<wire::Queue>(call, &answer).map(|queue| QueueState::from(queue.state.as_str()))
    }

    /// The IAM permissions, of those given, that the service has on the queue: none if it does not exist.
    /// <https://cloud.google.com/tasks/docs/reference/rest/v2/projects.locations.queues/testIamPermissions>
    pub async fn test_permissions(
        &self,
        permissions: &[&str],
        deadline: Deadline,
    ) -> Result<Vec<String>, Error> {
        let call = "queues.testIamPermissions";
        let url = format!("{}/v2/{}:testIamPermissions", self.root, self.queue);
        let request = Outgoing::post(call, url).json(&Permissions { permissions })?;
        let answer = self.send(request, deadline).await?;
        read::<Held>(call, &answer).map(|held| held.permissions)
    }

    async fn send(&self, request: Outgoing, deadline: Deadline) -> Result<Response<Bytes>, Error> {
        self.credentials.send(&self.transport, request, deadline).await
    }

    fn wire_task(&self, task: &Task) -> wire::Task<'_> {
        let mut headers = BTreeMap::from([("Content-Type", "application/json")]);
        let oidc_token = self.callback_account.as_deref().map(|account| wire::OidcToken {
            service_account_email: account,
            audience: &self.service_url,
        });
        if oidc_token.is_none() {
            headers.insert("X-Runner-Secret", self.secret.expose());
        }
        wire::Task {
            name: format!("{}/tasks/{}", self.queue, task.id),
            schedule_time: task.due.rfc3339(),
            dispatch_deadline: "60s",
            http_request: wire::HttpRequest {
                url: format!("{}{}", self.service_url, task.path),
                http_method: "POST",
                headers,
                body: STANDARD.encode(&task.body),
                oidc_token,
            },
            retry_config: wire::RetryConfig {
                max_attempts: -1,
                min_backoff: "2s",
                // After an outage a VM's next pass comes within five minutes, not within an hour.
                max_backoff: "300s",
            },
        }
    }
}

/// The wire format.
mod wire {
    use super::{BTreeMap, Deserialize, Serialize};

    #[derive(Deserialize)]
    pub(super) struct Queue {
        #[serde(default)]
        pub(super) state: String,
    }

    #[derive(Serialize)]
    pub(super) struct CreateTask<'a> {
        pub(super) task: Task<'a>,
    }

    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    pub(super) struct Task<'a> {
        pub(super) name: String,
        pub(super) schedule_time: String,
        pub(super) dispatch_deadline: &'a str,
        pub(super) http_request: HttpRequest<'a>,
        pub(super) retry_config: RetryConfig<'a>,
    }

    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    pub(super) struct HttpRequest<'a> {
        pub(super) url: String,
        pub(super) http_method: &'a str,
        pub(super) headers: BTreeMap<&'a str, &'a str>,
        /// Base64, as JSON carries bytes.
        pub(super) body: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub(super) oidc_token: Option<OidcToken<'a>>,
    }

    /// <https://cloud.google.com/tasks/docs/reference/rest/v2/OidcToken>
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    pub(super) struct OidcToken<'a> {
        pub(super) service_account_email: &'a str,
        pub(super) audience: &'a str,
    }

    /// The task's own settings, so that those of the queue do not matter.
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    pub(super) struct RetryConfig<'a> {
        /// -1: repeated until it succeeds, or Cloud Tasks drops it after 31 days.
        pub(super) max_attempts: i32,
        pub(super) min_backoff: &'a str,
        pub(super) max_backoff: &'a str,
    }
}
