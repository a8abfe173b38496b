//! Compute Engine's REST API for the instances of [`super`].
//!
//! <https://cloud.google.com/compute/docs/reference/rest/v1/instances>

use std::collections::BTreeMap;

use axum::response::Response;
use axum::routing::MethodFilter;
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use time::{OffsetDateTime, UtcOffset};

use super::filter::Filter;
use super::{ComputeEngine, Machine, Operation, State, Status, Step};
use crate::clock::Timestamp;
use crate::emulators::wire::{Incoming, Problem, Routes, google};
use crate::emulators::{Api, hash};

impl ComputeEngine {
    pub(in crate::emulators) fn routes(&self, routes: Routes) -> Routes {
        const ZONE: &str = "/compute/v1/projects/{project}/zones/{zone}";
        const ALL: &str = "/compute/v1/projects/{project}/aggregated/instances";
        let instance = |verb: &str| format!("{ZONE}/instances/{{instance}}{verb}");
        let operations = format!("{ZONE}/operations");
        let operation = format!("{operations}/{{operation}}");
        let (get, post) = (MethodFilter::GET, MethodFilter::POST);
        let compute = |name| (Api::Compute, name);
        routes
            .on(get, &instance(""), compute("instances.get"), self, |it, call| {
                it.answer(call, "instances.get", &[], INSTANCE_FIELDS, State::get_instance)
            })
            .on(post, &instance("/start"), compute("instances.start"), self, |it, call| {
                let known = ["requestId"];
                it.answer(call, "instances.start", &known, OPERATION_FIELDS, State::start_instance)
            })
            .on(post, &instance("/stop"), compute("instances.stop"), self, |it, call| {
                let known = ["requestId", "discardLocalSsd", "noGracefulShutdown"];
                it.answer(call, "instances.stop", &known, OPERATION_FIELDS, State::stop_instance)
            })
            .on(post, &instance("/resume"), compute("instances.resume"), self, |it, call| {
                let known = ["requestId"];
                it.answer(
                    call,
                    "instances.resume",
                    &known,
                    OPERATION_FIELDS,
                    State::resume_instance,
                )
            })
            .on(post, &instance("/suspend"), compute("instances.suspend"), self, |it, call| {
                let known = ["requestId", "discardLocalSsd"];
                it.answer(
                    call,
                    "instances.suspend",
                    &known,
                    OPERATION_FIELDS,
                    State::suspend_instance,
                )
            })
            .on(post, &instance("/setLabels"), compute("instances.setLabels"), self, |it, call| {
                let known = ["requestId"];
                it.answer(call, "instances.setLabels", &known, OPERATION_FIELDS, State::set_labels)
            })
            .on(get, ALL, compute("instances.aggregatedList"), self, |it, call| {
                let known = [
                    "filter",
                    "includeAllScopes",
                    "maxResults",
                    "orderBy",
                    "pageToken",
                    "returnPartialSuccess",
                    "serviceProjectNumber",
                ];
                it.answer(call, "instances.list", &known, ALL_FIELDS, State::list_instances)
            })
            .on(
                post,
                &instance("/testIamPermissions"),
                compute("instances.testIamPermissions"),
                self,
                |it, call| {
                    let method = "instances.testIamPermissions";
                    it.answer(call, method, &[], &["permissions"], State::test_permissions)
                },
            )
            .on(get, &operation, compute("zoneOperations.get"), self, |it, call| {
                it.answer(call, "zoneOperations.get", &[], OPERATION_FIELDS, State::get_operation)
            })
            // The real one waits up to two minutes if it is not too busy, and may answer before the operation is done.
            .on(
                post,
                &format!("{operation}/wait"),
                compute("zoneOperations.wait"),
                self,
                |it, call| {
                    it.answer(
                        call,
                        "zoneOperations.get",
                        &[],
                        OPERATION_FIELDS,
                        State::get_operation,
                    )
                },
            )
            .on(get, &operations, compute("zoneOperations.list"), self, |it, call| {
                let known =
                    ["filter", "maxResults", "orderBy", "pageToken", "returnPartialSuccess"];
                it.answer(call, "zoneOperations.list", &known, LIST_FIELDS, State::list_operations)
            })
    }

    fn answer(
        &self,
        call: &Incoming,
        method: &str,
        known: &[&str],
        fields: &[&str],
        act: fn(&mut State, &Incoming, Timestamp) -> Result<Value, Problem>,
    ) -> Response {
        let answer = self.change(|state, now| {
            call.only(known)?;
            state.permitted(method, call)?;
            act(state, call, now)
        });
        google(Api::Compute, call, fields, answer)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SetLabels {
    #[serde(default)]
    labels: BTreeMap<String, String>,
    label_fingerprint: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TestPermissions {
    #[serde(default)]
    permissions: Vec<String>,
}

impl State {
    fn permitted(&self, method: &str, call: &Incoming) -> Result<(), Problem> {
        let (project, zone) = (call.param("project"), call.param("zone"));
        if self.rate_limited {
            return Err(Problem::new(
                StatusCode::FORBIDDEN,
                "rateLimitExceeded",
                "Quota exceeded for quota metric 'Queries' and limit 'Queries per minute' of service \
                 'compute.googleapis.com'.",
            ));
        }
        if project != self.project {
            let message = format!("The resource 'projects/{project}' was not found");
            return Err(Problem::not_found(message));
        }
        let region = zone.rsplit_once('-').filter(|(region, letter)| {
            letter.len() == 1
                && letter.starts_with(|c: char| c.is_ascii_lowercase())
                && region.contains('-')
                && region.ends_with(|c: char| c.is_ascii_digit())
        });
        if region.is_none() && method != "instances.list" {
            let message = format!("Invalid value for field 'zone': '{zone}'. Unknown zone.");
            return Err(Problem::invalid(message));
        }
        let permission = format!("compute.{method}");
        if self.forbidden.contains(&permission) {
            let resource = match call.param("instance") {
                "" => format!("projects/{project}"),
                instance => format!("projects/{project}/zones/{zone}/instances/{instance}"),
            };
            let message = format!("Required '{permission}' permission for '{resource}'");
            return Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", message));
        }
        Ok(())
    }

    /// The name of the path's instance, if it exists in the path's zone.
    fn named(&self, call: &Incoming) -> Result<String, Problem> {
        let (vm, zone) = (call.param("instance"), call.param("zone"));
        match self.instances.get(vm) {
            Some(machine) if machine.spec.zone == zone => Ok(vm.to_owned()),
            _ => Err(Problem::not_found(format!(
                "The resource 'projects/{}/zones/{zone}/instances/{vm}' was not found",
                self.project
            ))),
        }
    }

    fn get_instance(&mut self, call: &Incoming, _: Timestamp) -> Result<Value, Problem> {
        let vm = self.named(call)?;
        Ok(self.instance_json(&self.instances[&vm]))
    }

    fn start_instance(&mut self, call: &Incoming, now: Timestamp) -> Result<Value, Problem> {
        let vm = self.named(call)?;
        self.once(call, &vm, "start", |state| match state.machine(&vm).status {
            from @ (Status::Terminated | Status::Stopped) => {
                Ok(state.start(&vm, now, "start", from, "start"))
            }
            Status::Running | Status::Provisioning | Status::Staging | Status::Repairing => {
                Ok(state.no_operation(&vm, now, "start"))
            }
            Status::Suspended => Err(Problem::invalid(format!(
                "Invalid resource usage: 'Instance {vm} is suspended and can only be resumed.'."
            ))),
            _ => Err(state.not_ready(&vm)),
        })
    }

    fn resume_instance(&mut self, call: &Incoming, now: Timestamp) -> Result<Value, Problem> {
        let vm = self.named(call)?;
        self.once(call, &vm, "resume", |state| match state.machine(&vm).status {
            Status::Suspended => Ok(state.start(&vm, now, "resume", Status::Suspended, "resume")),
            Status::Suspending => Err(state.not_ready(&vm)),
            _ => Err(Problem::invalid(format!(
                "Invalid resource usage: 'Instance {vm} is not suspended.'."
            ))),
        })
    }

    /// <https://cloud.google.com/compute/docs/instances/suspend-resume-instance#limitations>
    fn suspend_instance(&mut self, call: &Incoming, now: Timestamp) -> Result<Value, Problem> {
        let vm = self.named(call)?;
        let discard = call.flag("discardLocalSsd")?;
        self.once(call, &vm, "suspend", |state| {
            let machine = state.machine(&vm);
            let refused = if machine.spec.gpu {
                Some("instances with GPUs cannot be suspended".to_owned())
            } else if machine.spec.local_ssd && !discard {
                Some("instances with local SSDs cannot be suspended".to_owned())
            } else if machine.spec.memory_gib > 208 {
                Some(format!(
                    "{} GB of memory are more than can be suspended",
                    machine.spec.memory_gib
                ))
            } else {
                None
            };
            match (machine.status, refused) {
                (Status::Suspending | Status::Suspended, _) => {
                    Ok(state.no_operation(&vm, now, "suspend"))
                }
                (Status::Running, None) => Ok(state.suspend(&vm, now, "suspend")),
                (Status::Running, Some(why)) => {
                    Err(Problem::invalid(format!("Instance {vm} cannot be suspended: {why}.")))
                }
                _ => Err(state.not_ready(&vm)),
            }
        })
    }

    fn stop_instance(&mut self, call: &Incoming, now: Timestamp) -> Result<Value, Problem> {
        let vm = self.named(call)?;
        let (discard, at_once) = (call.flag("discardLocalSsd")?, call.flag("noGracefulShutdown")?);
        self.once(call, &vm, "stop", |state| {
            let machine = state.machine(&vm);
            let graceful = machine.spec.graceful_shutdown && !at_once;
            let local_ssd = machine.spec.local_ssd && !discard;
            match machine.status {
                Status::Terminated | Status::Stopped | Status::Stopping => {
                    Ok(state.no_operation(&vm, now, "stop"))
                }
                Status::PendingStop if graceful => Ok(state.no_operation(&vm, now, "stop")),
                Status::Suspending | Status::Deprovisioning => Err(state.not_ready(&vm)),
                _ if local_ssd => Err(Problem::invalid(format!(
                    "Instance {vm} has local SSDs attached. Stopping it requires discardLocalSsd to be \
                     set, since their data is lost."
                ))),
                Status::Running if graceful => {
                    let operation = state.plan(&vm, now, "stop");
                    state.become_status(&vm, now, Status::PendingStop, "stop");
                    let stopping = now + state.timings.graceful_shutdown;
                    state.later(&vm, stopping, Status::Stopping, "graceful shutdown over");
                    let stopped = stopping + state.timings.stopping;
                    state.later(&vm, stopped, Status::Terminated, "stopped");
                    Ok(operation)
                }
                _ => Ok(state.stop(&vm, now, "stop", "stop")),
            }
        })
    }

    fn set_labels(&mut self, call: &Incoming, now: Timestamp) -> Result<Value, Problem> {
        let vm = self.named(call)?;
        let SetLabels { labels, label_fingerprint } = call.json()?;
        valid_labels(&labels)?;
        self.once(call, &vm, "setLabels", |state| {
            let timings = state.timings;
            let machine = state.machine(&vm);
            let offered = label_fingerprint.as_deref().and_then(fingerprint_bytes);
            if offered != Some(fingerprint(&machine.spec.labels)) {
                return Err(Problem::new(
                    StatusCode::PRECONDITION_FAILED,
                    "conditionNotMet",
                    "Labels fingerprint either invalid or resource labels have changed",
                ));
            }
            machine.spec.labels = labels;
            if timings.label_delay.is_zero() {
                machine.shown_labels = machine.spec.labels.clone();
            } else {
                state.schedule(now + timings.label_delay, Step::ShowLabels { vm: vm.clone() });
            }
            let operation = state.operation(&vm, now, "setLabels");
            state.schedule(now + timings.execute, Step::Finish { operation });
            Ok(operation)
        })
    }

    /// Lists which of the permissions the caller has on the instance.
    fn test_permissions(&mut self, call: &Incoming, _: Timestamp) -> Result<Value, Problem> {
        self.named(call)?;
        let TestPermissions { permissions } = call.json()?;
        if let Some(odd) = permissions.iter().find(|name| !name.starts_with("compute.instances.")) {
            return Err(Problem::invalid(format!(
                "Invalid value for field 'resource.permissions': '{odd}'. Permission {odd} is not valid for this \
                 resource."
            )));
        }
        let held = permissions.into_iter().filter(|name| !self.forbidden.contains(name));
        let held: Vec<String> = held.collect();
        // Google omits empty lists.
        Ok(if held.is_empty() { json!({}) } else { json!({ "permissions": held }) })
    }

    fn get_operation(&mut self, call: &Incoming, _: Timestamp) -> Result<Value, Problem> {
        let (zone, name) = (call.param("zone"), call.param("operation"));
        let named = |(id, operation): &(&u64, &Operation)| {
            operation.zone == zone && (operation.name == name || id.to_string() == name)
        };
        let (id, _) = self.operations.iter().find(named).ok_or_else(|| {
            Problem::not_found(format!(
                "The resource 'projects/{}/zones/{zone}/operations/{name}' was not found",
                self.project
            ))
        })?;
        Ok(self.operation_json(*id))
    }

    fn list_operations(&mut self, call: &Incoming, _: Timestamp) -> Result<Value, Problem> {
        let zone = call.param("zone");
        let limit = page_size(call)?;
        let filter = filter(call, OPERATION_FIELDS)?;
        let in_zone = self.operations.iter().filter(|(_, operation)| operation.zone == zone);
        let mut items: Vec<Value> = in_zone.map(|(id, _)| self.operation_json(*id)).collect();
        match call.query("orderBy") {
            None | Some("name") => {}
            // Ids grow with time.
            Some("creationTimestamp desc") => items.reverse(),
            Some(other) => {
                return Err(Problem::invalid(format!(
                    "Invalid value for field 'orderBy': '{other}'. Unsupported order."
                )));
            }
        }
        items.retain(|item| filter.as_ref().is_none_or(|filter| filter.matches(item)));
        let from = page_start(call, items.len())?;
        let base = format!("{ROOT}/projects/{}/zones/{zone}/operations", self.project);
        let id = format!("projects/{}/zones/{zone}/operations", self.project);
        let mut list = json!({ "kind": "compute#operationList", "id": id, "selfLink": base });
        let more = items.len() > from + limit && limit > 0;
        let page: Vec<Value> = items.into_iter().skip(from).take(limit).collect();
        if more {
            list["nextPageToken"] = json!(format!("after-{}", from + limit));
        }
        if !page.is_empty() {
            list["items"] = json!(page);
        }
        Ok(list)
    }

    /// Lists the instances by zone.
    fn list_instances(&mut self, call: &Incoming, _: Timestamp) -> Result<Value, Problem> {
        let limit = page_size(call)?;
        let filter = filter(call, INSTANCE_FIELDS)?;
        let mut found: Vec<(&str, Value)> = self
            .instances
            .values()
            .map(|machine| (machine.spec.zone.as_str(), self.instance_json(machine)))
            .collect();
        found.retain(|(_, item)| filter.as_ref().is_none_or(|filter| filter.matches(item)));
        let from = page_start(call, found.len())?;
        let id = format!("projects/{}/aggregated/instances", self.project);
        let mut list = json!({
            "kind": "compute#instanceAggregatedList",
            "id": id,
            "selfLink": format!("{ROOT}/{id}"),
            "items": {},
        });
        if found.len() > from + limit && limit > 0 {
            list["nextPageToken"] = json!(format!("after-{}", from + limit));
        }
        for machine in self.instances.values() {
            let scope = format!("zones/{}", machine.spec.zone);
            let warning = json!({
                "code": "NO_RESULTS_ON_PAGE",
                "message": format!("There are no results for scope '{scope}' on this page."),
                "data": [{ "key": "scope", "value": &scope }],
            });
            list["items"][scope] = json!({ "warning": warning });
        }
        let mut by_zone = BTreeMap::<&str, Vec<Value>>::new();
        for (zone, item) in found.into_iter().skip(from).take(limit) {
            by_zone.entry(zone).or_default().push(item);
        }
        for (zone, instances) in by_zone {
            list["items"][format!("zones/{zone}")] = json!({ "instances": instances });
        }
        Ok(list)
    }

    /// Acts once per request id, and returns the same operation when it is repeated.
    fn once(
        &mut self,
        call: &Incoming,
        vm: &str,
        verb: &str,
        act: impl FnOnce(&mut Self) -> Result<u64, Problem>,
    ) -> Result<Value, Problem> {
        let Some(request) = call.query("requestId") else {
            let operation = act(self)?;
            return Ok(self.operation_json(operation));
        };
        if uuid::Uuid::parse_str(request).is_ok_and(|id| id.is_nil()) || !is_uuid(request) {
            return Err(Problem::invalid(format!(
                "Invalid value for field 'requestId': '{request}'. Must be a valid UUID, and not zero."
            )));
        }
        let key = (vm.to_owned(), verb.to_owned(), request.to_ascii_lowercase());
        let operation = match self.requests.get(&key) {
            Some(operation) => *operation,
            None => act(self)?,
        };
        self.requests.insert(key, operation);
        Ok(self.operation_json(operation))
    }

    fn not_ready(&mut self, vm: &str) -> Problem {
        let zone = self.machine(vm).spec.zone.clone();
        Problem::new(
            StatusCode::BAD_REQUEST,
            "resourceNotReady",
            format!(
                "The resource 'projects/{}/zones/{zone}/instances/{vm}' is not ready",
                self.project
            ),
        )
    }
}

fn filter(call: &Incoming, known: &[&str]) -> Result<Option<Filter>, Problem> {
    call.query("filter").map(|text| Filter::parse(text, known)).transpose()
}

fn page_size(call: &Incoming) -> Result<usize, Problem> {
    let limit = call.number("maxResults")?.unwrap_or(500);
    if limit > 500 {
        return Err(Problem::invalid(format!(
            "Invalid value for field 'maxResults': '{limit}'. Must be at most 500."
        )));
    }
    Ok(limit)
}

/// The index of the page's first item, from its token.
fn page_start(call: &Incoming, count: usize) -> Result<usize, Problem> {
    let Some(token) = call.query("pageToken") else { return Ok(0) };
    let start = token.strip_prefix("after-").and_then(|from| from.parse().ok());
    start
        .filter(|from| *from <= count)
        .ok_or_else(|| Problem::invalid("Invalid value for field 'pageToken'."))
}

const ROOT: &str = "https://www.googleapis.com/compute/v1";

impl State {
    fn instance_json(&self, machine: &Machine) -> Value {
        let (name, zone) = (&machine.spec.name, &machine.spec.zone);
        let project = format!("{ROOT}/projects/{}", self.project);
        let home = format!("{project}/zones/{zone}");
        let region = zone.rsplit_once('-').map_or("", |(region, _)| region);
        let mut disks = vec![json!({
            "kind": "compute#attachedDisk",
            "type": "PERSISTENT",
            "mode": "READ_WRITE",
            "source": format!("{home}/disks/{name}"),
            "deviceName": name,
            "index": 0,
            "boot": true,
            "autoDelete": true,
            "interface": "SCSI",
            "diskSizeGb": "100",
            "guestOsFeatures": [{ "type": "UEFI_COMPATIBLE" }, { "type": "GVNIC" }],
        })];
        if machine.spec.local_ssd {
            disks.push(json!({
                "kind": "compute#attachedDisk",
                "type": "SCRATCH",
                "mode": "READ_WRITE",
                "deviceName": "local-ssd-0",
                "index": 1,
                "boot": false,
                "autoDelete": true,
                "interface": "NVME",
                "diskSizeGb": "375",
            }));
        }
        let mut json = json!({
            "kind": "compute#instance",
            "id": machine.id.to_string(),
            "creationTimestamp": pacific(machine.created),
            "name": name,
            "tags": { "fingerprint": "42WmSpB8rSM=" },
            "machineType": format!("{home}/machineTypes/e2-standard-4"),
            "status": machine.status.as_str(),
            "zone": home,
            "canIpForward": false,
            "networkInterfaces": [{
                "kind": "compute#networkInterface",
                "name": "nic0",
                "network": format!("{project}/global/networks/default"),
                "subnetwork": format!("{project}/regions/{region}/subnetworks/default"),
                "networkIP": "10.146.0.2",
                "fingerprint": fingerprint_text(hash(name.as_bytes()).to_be_bytes()),
                "stackType": "IPV4_ONLY",
            }],
            "disks": disks,
            "metadata": { "kind": "compute#metadata", "fingerprint": "VNJn6XZXTXs=" },
            "selfLink": format!("{home}/instances/{name}"),
            "scheduling": {
                "onHostMaintenance": "MIGRATE",
                "automaticRestart": true,
                "preemptible": false,
                "provisioningModel": "STANDARD",
            },
            "cpuPlatform": "Intel Broadwell",
            "labelFingerprint": fingerprint_text(fingerprint(&machine.shown_labels)),
            "startRestricted": false,
            "deletionProtection": false,
            "fingerprint": fingerprint_text(machine.plan.to_be_bytes()),
            "resourceStatus": { "scheduling": {} },
        });
        if !machine.shown_labels.is_empty() {
            json["labels"] = json!(machine.shown_labels);
        }
        let times = [
            ("lastStartTimestamp", machine.last_start),
            ("lastStopTimestamp", machine.last_stop),
            ("lastSuspendedTimestamp", machine.last_suspend),
        ];
        for (field, time) in times {
            if let Some(time) = time {
                json[field] = json!(pacific(time));
            }
        }
        json
    }

    fn operation_json(&self, id: u64) -> Value {
        let operation = &self.operations[&id];
        let home = format!("{ROOT}/projects/{}/zones/{}", self.project, operation.zone);
        let created = pacific(operation.created);
        let mut json = json!({
            "kind": "compute#operation",
            "id": id.to_string(),
            "name": operation.name,
            "zone": home,
            "operationType": operation.kind,
            "targetLink": format!("{home}/instances/{}", operation.target),
            "targetId": operation.target_id.to_string(),
            "status": if operation.ended.is_some() { "DONE" } else { "RUNNING" },
            "user": operation.user,
            "progress": if operation.ended.is_some() { 100 } else { 0 },
            "creationTimestamp": created,
            "insertTime": created,
            "startTime": created,
            "selfLink": format!("{home}/operations/{}", operation.name),
        });
        if let Some(ended) = operation.ended {
            json["endTime"] = json!(pacific(ended));
        }
        if let Some((code, message)) = &operation.error {
            json["error"] = json!({ "errors": [{ "code": code, "message": message }] });
            json["httpErrorStatusCode"] = json!(503);
            json["httpErrorMessage"] = json!("SERVICE UNAVAILABLE");
        }
        json
    }
}

/// A time with the offset of US Pacific time, as Compute Engine writes it; such times cannot be compared as text.
fn pacific(time: Timestamp) -> String {
    let nanos = i128::from(time.unix_millis()) * 1_000_000;
    let utc =
        OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let there = utc.to_offset(UtcOffset::from_hms(-8, 0, 0).unwrap_or(UtcOffset::UTC));
    let (hour, minute, second) = there.to_hms();
    let (date, millis) = (there.date(), there.millisecond());
    format!("{date}T{hour:02}:{minute:02}:{second:02}.{millis:03}-08:00")
}

fn fingerprint(labels: &BTreeMap<String, String>) -> [u8; 8] {
    if labels.is_empty() {
        // The real fingerprint of an instance without labels.
        return [0xe3, 0x65, 0xa6, 0x4a, 0x90, 0x7c, 0xad, 0x23];
    }
    let mut text = Vec::new();
    for (key, value) in labels {
        text.extend_from_slice(format!("{key}={value};").as_bytes());
    }
    hash(&text).to_be_bytes()
}

fn fingerprint_text(bytes: [u8; 8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

/// Decodes a fingerprint; some clients send the URL-safe alphabet.
fn fingerprint_bytes(text: &str) -> Option<[u8; 8]> {
    let decoded = BASE64_STANDARD.decode(text).or_else(|_| BASE64_URL_SAFE.decode(text));
    decoded.ok()?.try_into().ok()
}

/// Accepts UUIDs with hyphens only.
fn is_uuid(text: &str) -> bool {
    text.len() == 36 && uuid::Uuid::parse_str(text).is_ok()
}

/// <https://cloud.google.com/compute/docs/labeling-resources#restrictions>
fn valid_labels(labels: &BTreeMap<String, String>) -> Result<(), Problem> {
    let invalid =
        |what: String| Problem::invalid(format!("Invalid value for field 'labels': {what}"));
    let allowed = |c: char| {
        c == '-' || c == '_' || c.is_numeric() || (c.is_alphabetic() && !c.is_uppercase())
    };
    if labels.len() > 64 {
        return Err(invalid(format!("{} labels. There can be at most 64.", labels.len())));
    }
    for (key, value) in labels {
        let starts = key.starts_with(|c: char| c.is_alphabetic());
        if !starts || key.chars().count() > 63 || !key.chars().all(allowed) {
            return Err(invalid(format!("Label key '{key}' violates format constraints.")));
        }
        if value.chars().count() > 63 || !value.chars().all(allowed) {
            return Err(invalid(format!("Label value '{value}' violates format constraints.")));
        }
    }
    Ok(())
}

/// The fields of the resource in the API's description.
pub(super) const INSTANCE_FIELDS: &[&str] = &[
    "advancedMachineFeatures",
    "canIpForward",
    "confidentialInstanceConfig",
    "cpuPlatform",
    "creationTimestamp",
    "deletionProtection",
    "description",
    "disks",
    "displayDevice",
    "fingerprint",
    "guestAccelerators",
    "hostname",
    "id",
    "instanceEncryptionKey",
    "keyRevocationActionType",
    "kind",
    "labelFingerprint",
    "labels",
    "lastStartTimestamp",
    "lastStopTimestamp",
    "lastSuspendedTimestamp",
    "localSsdEncryptionMode",
    "machineType",
    "metadata",
    "minCpuPlatform",
    "name",
    "networkInterfaces",
    "networkPerformanceConfig",
    "params",
    "privateIpv6GoogleAccess",
    "reservationAffinity",
    "resourcePolicies",
    "resourceStatus",
    "satisfiesPzi",
    "satisfiesPzs",
    "scheduling",
    "selfLink",
    "serviceAccounts",
    "shieldedInstanceConfig",
    "shieldedInstanceIntegrityPolicy",
    "sourceMachineImage",
    "sourceMachineImageEncryptionKey",
    "startRestricted",
    "status",
    "statusMessage",
    "tags",
    "workloadIdentityConfig",
    "zone",
];

/// The fields of the resource in the API's description.
pub(super) const OPERATION_FIELDS: &[&str] = &[
    "clientOperationId",
    "creationTimestamp",
    "description",
    "endTime",
    "error",
    "getHealthOperationMetadata",
    "getVersionOperationMetadata",
    "httpErrorMessage",
    "httpErrorStatusCode",
    "id",
    "insertTime",
    "instancesBulkInsertOperationMetadata",
    "kind",
    "name",
    "operationGroupId",
    "operationType",
    "progress",
    "region",
    "selfLink",
    "setCommonInstanceMetadataOperationMetadata",
    "startTime",
    "status",
    "statusMessage",
    "targetId",
    "targetLink",
    "user",
    "warnings",
    "zone",
];

/// The fields of the resource in the API's description.
const ALL_FIELDS: &[&str] =
    &["id", "items", "kind", "nextPageToken", "selfLink", "unreachables", "warning"];

/// The fields of the resource in the API's description.
const LIST_FIELDS: &[&str] = &["id", "items", "kind", "nextPageToken", "selfLink", "warning"];
