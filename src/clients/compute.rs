//! Compute Engine: read an instance, start, resume and stop it, and set its labels.
//! <https://cloud.google.com/compute/docs/reference/rest/v1/instances>

use std::collections::BTreeMap;
use std::fmt;

use http::Response;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Error;
use super::google::{Credentials, Held, Permissions};
use super::transport::{Outgoing, Transport, read};
use crate::clock::{Deadline, Timestamp};
use crate::fleet::Vm;

/// The fields of an instance that the service reads. The whole resource is ten times as long.
const FIELDS: &str = "id,status,labels,labelFingerprint,lastStartTimestamp,lastStopTimestamp,lastSuspendedTimestamp,\
                      disks(type)";

/// The status of an instance, by the names in the API's reference.
/// <https://cloud.google.com/compute/docs/instances/instance-lifecycle>
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    Deprovisioning,
    Pending,
    PendingStop,
    Provisioning,
    Repairing,
    Running,
    Staging,
    Stopped,
    Stopping,
    Suspended,
    Suspending,
    Terminated,
    /// A status that this version of the service does not know.
    Unknown(String),
}

impl From<&str> for Status {
    fn from(name: &str) -> Self {
        match name {
            "DEPROVISIONING" => Self::Deprovisioning,
            "PENDING" => Self::Pending,
            "PENDING_STOP" => Self::PendingStop,
            "PROVISIONING" => Self::Provisioning,
            "REPAIRING" => Self::Repairing,
            "RUNNING" => Self::Running,
            "STAGING" => Self::Staging,
            "STOPPED" => Self::Stopped,
            "STOPPING" => Self::Stopping,
            "SUSPENDED" => Self::Suspended,
            "SUSPENDING" => Self::Suspending,
            "TERMINATED" => Self::Terminated,
            other => Self::Unknown(super::tidy(other)),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deprovisioning => "DEPROVISIONING",
            Self::Pending => "PENDING",
            Self::PendingStop => "PENDING_STOP",
            Self::Provisioning => "PROVISIONING",
            Self::Repairing => "REPAIRING",
            Self::Running => "RUNNING",
            Self::Staging => "STAGING",
            Self::Stopped => "STOPPED",
            Self::Stopping => "STOPPING",
            Self::Suspended => "SUSPENDED",
            Self::Suspending => "SUSPENDING",
            Self::Terminated => "TERMINATED",
            Self::Unknown(name) => name,
        })
    }
}

/// The labels of an instance, by key.
pub type Labels = BTreeMap<String, String>;

/// The part of an instance that the service reads.
#[derive(Clone, Debug)]
pub struct Instance {
    /// Compute Engine's number for the instance. Operations name their target by it.
    pub id: String,
    /// Its status.
    pub status: Status,
    /// Its labels.
    pub labels: Labels,
    /// The version of the labels. A write names it, and fails if the labels have changed since.
    pub label_fingerprint: String,
    /// The time of the last start, if any.
    pub last_start: Option<Timestamp>,
    /// The time of the last stop, if any.
    pub last_stop: Option<Timestamp>,
    /// The time of the last suspension, if any.
    pub last_suspend: Option<Timestamp>,
    /// The instance has a local SSD, whose data a stop would lose.
    pub has_local_ssd: bool,
}

/// An instance found by one of its labels.
#[derive(Clone, Debug)]
pub struct Labelled {
    /// Its name and zone.
    pub vm: Vm,
    /// Its status.
    pub status: Status,
}

/// An operation of Compute Engine in a zone: pending, running or done.
/// <https://cloud.google.com/compute/docs/reference/rest/v1/zoneOperations>
#[derive(Clone, Debug)]
pub struct Operation {
    /// Its name, such as `operation-1764…`.
    pub name: String,
    /// Its type, such as `start` or `compute.instances.preempted`.
    pub kind: String,
    /// The time of the request, if given.
    pub at: Option<Timestamp>,
    /// The code and the message of its failure, if it failed.
    pub error: Option<String>,
}

/// The most pages of a list that are read. Each has up to 500 instances.
const MAX_PAGES: usize = 10;

/// Compute Engine in one project; cheap to clone.
#[derive(Clone, Debug)]
pub struct Compute {
    transport: Transport,
    credentials: Credentials,
    /// `…/compute/v1/projects/PROJECT/zones`
    zones: String,
    /// `…/compute/v1/projects/PROJECT/aggregated/instances`
    all_instances: String,
}

impl Compute {
    /// The instances of `project`, at the API root `root`.
    pub fn new(transport: Transport, credentials: Credentials, root: &str, project: &str) -> Self {
        let project = format!("{root}/compute/v1/projects/{project}");
        let all_instances = format!("{project}/aggregated/instances");
        Self { transport, credentials, zones: format!("{project}/zones"), all_instances }
    }

    /// Reads the instance.
    /// <https://cloud.google.com/compute/docs/reference/rest/v1/instances/get>
    ///
    /// # Errors
    /// 404 if there is no such instance.
    pub async fn get(&self, vm: &Vm, deadline: Deadline) -> Result<Instance, Error> {
        let call = "instances.get";
        let request = Outgoing::get(call, self.url(vm, "")).query([("fields", FIELDS)]);
        let answer = self.send(request, deadline).await?;
        read::<wire::Instance>(call, &answer).map(Instance::from)
    }

    /// Starts a stopped instance. A running one stays as it is.
    /// <https://cloud.google.com/compute/docs/reference/rest/v1/instances/start>
    ///
    /// # Errors
    /// Stale if the instance is in a state from which it cannot be started.
    pub async fn start(&self, vm: &Vm, deadline: Deadline) -> Result<Operation, Error> {
        self.command("instances.start", vm, "/start", &[], deadline).await
    }

    /// Resumes a suspended instance.
    /// <https://cloud.google.com/compute/docs/reference/rest/v1/instances/resume>
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn resume(&self, vm: &Vm, deadline: Deadline) -> Result<Operation, Error> {
        self.command("instances.resume", vm, "/resume", &[], deadline).await
    }

    /// Stops the instance, without the graceful shutdown during which its runner could still take a job.
    /// <https://cloud.google.com/compute/docs/reference/rest/v1/instances/stop>
    ///
    /// # Errors
    /// As for [`start`](Self::start); also if it has a local SSD and `discard_local_ssd` is false.
    pub async fn stop(
        &self,
        vm: &Vm,
        discard_local_ssd: bool,
        deadline: Deadline,
    ) -> Result<Operation, Error> {
        let parameters: &[_] = if discard_local_ssd {
            &[("noGracefulShutdown", "true"), ("discardLocalSsd", "true")]
        } else {
            &[("noGracefulShutdown", "true")]
        };
        // A second attempt would be based on a read that is older still.
        let call = "instances.stop";
        let request = self.command_request(call, vm, "/stop", parameters).once();
        let answer = self.send(request, deadline).await?;
        Ok(read::<wire::Operation>(call, &answer).unwrap_or_default().into())
    }

    /// Suspends the instance: its memory is kept on disk.
    /// <https://cloud.google.com/compute/docs/reference/rest/v1/instances/suspend>
    ///
    /// # Errors
    /// 400 if Compute Engine cannot suspend it: it has a GPU, a local SSD or too much memory.
    pub async fn suspend(&self, vm: &Vm, deadline: Deadline) -> Result<Operation, Error> {
        let call = "instances.suspend";
        let request = self.command_request(call, vm, "/suspend", &[]).once();
        let answer = self.send(request, deadline).await?;
        Ok(read::<wire::Operation>(call, &answer).unwrap_or_default().into())
    }

    /// Replaces the labels, if `fingerprint` is still that of the current ones.
    /// <https://cloud.google.com/compute/docs/reference/rest/v1/instances/setLabels>
    ///
    /// # Errors
    /// 412 if the labels changed since they were read.
    pub async fn set_labels(
        &self,
        vm: &Vm,
        labels: &Labels,
        fingerprint: &str,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let call = "instances.setLabels";
        let body = wire::SetLabels { labels, label_fingerprint: fingerprint };
        let id = Uuid::new_v4().to_string();
        let request = Outgoing::post(call, self.url(vm, "/setLabels"))
            .query([("requestId", id.as_str())])
            .json(&body)?;
        self.send(request, deadline).await.map(drop)
    }

    /// The ten latest operations of the instance, newest first.
    /// <https://cloud.google.com/compute/docs/reference/rest/v1/zoneOperations/list>
    pub async fn operations(
        &self,
        vm: &Vm,
        id: &str,
        deadline: Deadline,
    ) -> Result<Vec<Operation>, Error> {
        let call = "zoneOperations.list";
        let filter = format!("targetId={id}");
        let request =
            Outgoing::get(call, format!("{}/{}/operations", self.zones, vm.zone)).query([
                ("filter", filter.as_str()),
                ("orderBy", "creationTimestamp desc"),
                ("maxResults", "10"),
            ]);
        let answer = self.send(request, deadline).await?;
        let list: wire::OperationList = read(call, &answer)?;
        Ok(list.items.into_iter().map(Operation::from).collect())
    }

    /// The project's instances that carry the label, in all zones.
    /// <https://cloud.google.com/compute/docs/reference/rest/v1/instances/aggregatedList>
    pub async fn labelled(&self, label: &str, deadline: Deadline) -> Result<Vec<Labelled>, Error> {
        let call = "instances.aggregatedList";
        let filter = format!("labels.{label}:*");
        let mut all = Vec::new();
        let mut token = String::new();
        for _ in 0..MAX_PAGES {
            let parameters = [
                ("filter", filter.as_str()),
                ("fields", "items,nextPageToken"),
                ("pageToken", token.as_str()),
            ];
            let given = parameters.into_iter().filter(|(_, value)| !value.is_empty());
            let request = Outgoing::get(call, self.all_instances.clone()).query(given);
            let page: wire::AggregatedList = read(call, &self.send(request, deadline).await?)?;
            let found = page.items.into_values().flat_map(|zone| zone.instances);
            all.extend(found.map(Labelled::from));
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        Ok(all)
    }

    /// The IAM permissions, of those given, that the service has on the instance.
    /// <https://cloud.google.com/compute/docs/reference/rest/v1/instances/testIamPermissions>
    ///
    /// # Errors
    /// 404 if there is no such instance.
    pub async fn test_permissions(
        &self,
        vm: &Vm,
        permissions: &[&str],
        deadline: Deadline,
    ) -> Result<Vec<String>, Error> {
        let call = "instances.testIamPermissions";
        let request = Outgoing::post(call, self.url(vm, "/testIamPermissions"))
            .json(&Permissions { permissions })?;
        let answer = self.send(request, deadline).await?;
        read::<Held>(call, &answer).map(|held| held.permissions)
    }

    /// Sends a command with a new request id, so that a repetition has no further effect.
    async fn command(
        &self,
        call: &'static str,
        vm: &Vm,
        verb: &str,
        parameters: &[(&str, &str)],
        deadline: Deadline,
    ) -> Result<Operation, Error> {
        let request = self.command_request(call, vm, verb, parameters);
        let answer = self.send(request, deadline).await?;
        // A 2xx means that the command was accepted, even if the body cannot be read.
        Ok(read::<wire::Operation>(call, &answer).unwrap_or_default().into())
    }

    fn command_request(
        &self,
        call: &'static str,
        vm: &Vm,
        verb: &str,
        parameters: &[(&str, &str)],
    ) -> Outgoing {
        let id = Uuid::new_v4().to_string();
        let all = parameters.iter().copied().chain([("requestId", id.as_str())]);
        Outgoing::post(call, self.url(vm, verb)).query(all)
    }

    async fn send(
        &self,
        request: Outgoing,
        deadline: Deadline,
    ) -> Result<Response<bytes::Bytes>, Error> {
        self.credentials.send(&self.transport, request, deadline).await
    }

    fn url(&self, vm: &Vm, verb: &str) -> String {
        format!("{}/{}/instances/{}{verb}", self.zones, vm.zone, vm.name)
    }
}

/// The wire format: the fields that are read, few of them required.
mod wire {
    use super::{BTreeMap, Deserialize, Labels, Serialize, Status, Timestamp, Vm};

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub(super) struct Instance {
        status: String,
        #[serde(default)]
        id: String,
        #[serde(default)]
        labels: Labels,
        #[serde(default)]
        label_fingerprint: String,
        last_start_timestamp: Option<String>,
        last_stop_timestamp: Option<String>,
        last_suspended_timestamp: Option<String>,
        #[serde(default)]
        disks: Vec<Disk>,
    }

    #[derive(Deserialize)]
    struct Disk {
        #[serde(default, rename = "type")]
        kind: String,
    }

    impl From<Instance> for super::Instance {
        fn from(wire: Instance) -> Self {
            let time = |text: Option<String>| text.as_deref().and_then(Timestamp::parse);
            Self {
                id: wire.id,
                status: Status::from(wire.status.as_str()),
                labels: wire.labels,
                label_fingerprint: wire.label_fingerprint,
                last_start: time(wire.last_start_timestamp),
                last_stop: time(wire.last_stop_timestamp),
                last_suspend: time(wire.last_suspended_timestamp),
                has_local_ssd: wire.disks.iter().any(|disk| disk.kind == "SCRATCH"),
            }
        }
    }

    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    pub(super) struct SetLabels<'a> {
        pub(super) labels: &'a BTreeMap<String, String>,
        pub(super) label_fingerprint: &'a str,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub(super) struct AggregatedList {
        /// By scope, such as `zones/asia-northeast1-a`.
        #[serde(default)]
        pub(super) items: BTreeMap<String, Scope>,
        #[serde(default)]
        pub(super) next_page_token: String,
    }

    #[derive(Deserialize)]
    pub(super) struct Scope {
        #[serde(default)]
        pub(super) instances: Vec<Listed>,
    }

    #[derive(Deserialize)]
    pub(super) struct Listed {
        name: String,
        /// A URL.
        zone: String,
        #[serde(default)]
        status: String,
    }

    impl From<Listed> for super::Labelled {
        fn from(wire: Listed) -> Self {
            let zone = wire.zone.rsplit('/').next().unwrap_or_default();
            Self { vm: Vm::new(wire.name, zone), status: Status::from(wire.status.as_str()) }
        }
    }

    #[derive(Deserialize)]
    pub(super) struct OperationList {
        #[serde(default)]
        pub(super) items: Vec<Operation>,
    }

    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    pub(super) struct Operation {
        name: String,
        operation_type: String,
        insert_time: Option<String>,
        error: Option<Errors>,
    }

    #[derive(Deserialize)]
    struct Errors {
        #[serde(default)]
        errors: Vec<OperationError>,
    }

    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct OperationError {
        code: String,
        message: String,
    }

    impl From<Operation> for super::Operation {
        fn from(wire: Operation) -> Self {
            let first = wire.error.map(|error| error.errors.into_iter().next().unwrap_or_default());
            let said = |error: OperationError| match (&*error.code, &*error.message) {
                ("", "") => "Compute Engine gives no reason".to_owned(),
                (code, "") => code.to_owned(),
                ("", message) => message.to_owned(),
                (code, message) => format!("{code}: {message}"),
            };
            Self {
                name: wire.name,
                kind: wire.operation_type,
                at: wire.insert_time.as_deref().and_then(Timestamp::parse),
                error: first.map(|error| super::super::tidy(&said(error))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_leniently() {
        let least: wire::Instance =
            serde_json::from_str(r#"{"status": "HIBERNATING", "news": true}"#).unwrap();
        let instance = Instance::from(least);
        assert_eq!(instance.status, Status::Unknown("HIBERNATING".into()));
        assert!(!instance.has_local_ssd && instance.last_start.is_none());

        let full = r#"{"id": "42", "status": "RUNNING", "labels": {"a": "b"}, "labelFingerprint": "42WmSpB8rSM=",
            "lastStartTimestamp": "2026-11-23T21:03:00.250-08:00", "lastStopTimestamp": "2026-11-23T20:00:00.000-08:00",
            "lastSuspendedTimestamp": "2026-11-22T20:00:00.000-08:00", "disks": [{"type": "PERSISTENT"}, {"type": "SCRATCH"}]}"#;
        let instance = Instance::from(serde_json::from_str::<wire::Instance>(full).unwrap());
        assert_eq!(instance.status, Status::Running);
        assert_eq!(instance.last_start, Timestamp::parse("2026-11-24T05:03:00.250Z"));
        assert_eq!(instance.last_stop, Timestamp::parse("2026-11-24T04:00:00Z"));
        assert_eq!(instance.last_suspend, Timestamp::parse("2026-11-23T04:00:00Z"));
        assert!(instance.has_local_ssd);
    }

    #[test]
    fn a_failed_operation_gives_its_reason_if_any() {
        let reason = |error: &str| {
            let json = format!(r#"{{"name": "operation-1", "error": {error}}}"#);
            Operation::from(serde_json::from_str::<wire::Operation>(&json).unwrap()).error
        };
        let full = r#"{"errors": [{"code": "QUOTA_EXCEEDED", "message": "no CPUs left"}]}"#;
        assert_eq!(reason(full).as_deref(), Some("QUOTA_EXCEEDED: no CPUs left"));
        assert_eq!(reason("{}").as_deref(), Some("Compute Engine gives no reason"));
        assert_eq!(reason(r#"{"errors": [{"code": "A"}]}"#).as_deref(), Some("A"));
        assert_eq!(reason("null"), None);
    }

    #[test]
    fn every_status_of_the_reference_keeps_its_name() {
        let names = "DEPROVISIONING PENDING PENDING_STOP PROVISIONING REPAIRING RUNNING STAGING STOPPED STOPPING \
                     SUSPENDED SUSPENDING TERMINATED";
        for name in names.split_whitespace() {
            let status = Status::from(name);
            assert!(!matches!(status, Status::Unknown(_)), "{name}");
            assert_eq!(status.to_string(), name);
        }
    }
}
