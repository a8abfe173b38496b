//! Checks of Google Cloud: the access token, the queue, and each VM.

use super::finding::{Finding, Findings};
use crate::clients::Error;
use crate::clients::cloud_tasks::{CloudTasks, QueueState};
use crate::clients::compute::{Compute, Instance, Operation, Status};
use crate::clock::Deadline;
use crate::fleet::ManagedVm;
use crate::lifecycle::vm::{HOLD_LABEL, IDLE_SINCE_LABEL};

/// The permissions that the service uses on an instance.
const INSTANCE_PERMISSIONS: [&str; 6] = [
    "compute.instances.get",
    "compute.instances.start",
    "compute.instances.stop",
    "compute.instances.resume",
    "compute.instances.suspend",
    "compute.instances.setLabels",
];

/// Needed only by VMs whose entries say `suspend`.
const SUSPEND: &str = "compute.instances.suspend";

/// Needed only for suspended instances.
const RESUME: &str = "compute.instances.resume";

const CREATE_TASKS: &str = "cloudtasks.tasks.create";

/// Compute Engine's limit for an instance.
const MAX_LABELS: usize = 64;

pub(super) fn judge_token(token: &Result<(), Error>) -> Vec<Finding> {
    let mut found = Findings::of("Google");
    match token {
        Ok(()) => found.ok("access token", "issued"),
        Err(error) => found.failed(
            "access token",
            error,
            "check the account: on Cloud Run --service-account, elsewhere the key file that \
             GOOGLE_APPLICATION_CREDENTIALS names, or gcloud auth application-default login",
        ),
    }
    found.done()
}

/// The configured queue.
pub(super) struct Queue<'a> {
    pub(super) project: &'a str,
    pub(super) location: &'a str,
    pub(super) id: &'a str,
}

pub(super) struct QueueFacts {
    state: Result<QueueState, Error>,
    permissions: Result<Vec<String>, Error>,
}

pub(super) async fn read_queue(tasks: &CloudTasks, deadline: Deadline) -> QueueFacts {
    let (state, permissions) = tokio::join!(
        tasks.queue_state(deadline),
        tasks.test_permissions(&[CREATE_TASKS], deadline)
    );
    QueueFacts { state, permissions }
}

pub(super) fn judge_queue(facts: &QueueFacts, queue: &Queue<'_>) -> Vec<Finding> {
    let Queue { location, id, .. } = queue;
    let mut found = Findings::of(format!("queue {id}"));
    let creates = |held: &Vec<String>| held.iter().any(|permission| permission == CREATE_TASKS);
    let may_create = facts.permissions.as_ref().is_ok_and(creates);
    judge_state(&mut found, &facts.state, queue, may_create);
    if facts.state.as_ref().is_err_and(Error::is_not_found) {
        return found.done();
    }
    let fix = format!(
        "gcloud tasks queues add-iam-policy-binding {id} --location {location} --member \
         serviceAccount:ACCOUNT --role roles/cloudtasks.enqueuer"
    );
    match &facts.permissions {
        Ok(_) if may_create => found.ok("permissions", "the service may create tasks"),
        Ok(_) => found.fail("permissions", format!("{CREATE_TASKS} is missing"), fix),
        Err(error) => found.failed("permissions", error, fix),
    }
    found.done()
}

fn judge_state(
    found: &mut Findings,
    state: &Result<QueueState, Error>,
    Queue { project, location, id }: &Queue<'_>,
    may_create: bool,
) {
    let resume = format!("gcloud tasks queues resume {id} --location {location}");
    let names = "CLOUD_TASK_LOCATION, CLOUD_TASK_QUEUE_NAME and GCP_PROJECT_ID";
    match state {
        Ok(QueueState::Running) => found.ok("state", format!("RUNNING, in {location}")),
        Ok(QueueState::Paused) => {
            found.fail("state", "it is paused: no pass runs, so idle VMs are not stopped", resume);
        }
        Ok(QueueState::Disabled) => {
            found.fail("state", "it is disabled: no pass runs, so idle VMs are not stopped", resume)
        }
        Ok(QueueState::Unknown(state)) => {
            found.unknown("state", format!("the state {state:?} is not known to this version"))
        }
        Err(error) if region_of(location).is_some() && !error.may_pass() => found.fail(
            "state",
            format!("there is no queue in {location}, which is a zone: queues are in regions"),
            format!("set CLOUD_TASK_LOCATION to {}", region_of(location).unwrap_or_default()),
        ),
        Err(error) if error.is_not_found() => found.fail(
            "state",
            format!("there is no such queue in {location} of {project}"),
            format!("gcloud tasks queues create {id} --location {location}, or correct {names}"),
        ),
        // The service itself does not read the queue.
        Err(error) if error.is_forbidden() && may_create => {
            found.unknown("state", "cloudtasks.queues.get is missing, which only this check needs");
        }
        Err(error) => {
            found.failed("state", error, format!("enable the Cloud Tasks API, or correct {names}"));
        }
    }
}

/// The region, if the location is a zone: a region's name ends with a digit, a zone's with a letter.
fn region_of(location: &str) -> Option<&str> {
    let (region, letter) = location.rsplit_once('-')?;
    let ends_with_a_digit = region.ends_with(|c: char| c.is_ascii_digit());
    (ends_with_a_digit && matches!(letter.as_bytes(), [b'a'..=b'z'])).then_some(region)
}

pub(super) struct VmFacts {
    instance: Result<Instance, Error>,
    permissions: Result<Vec<String>, Error>,
    operations: Result<Vec<Operation>, Error>,
}

impl VmFacts {
    /// The instance, if it could be read.
    pub(super) fn instance(&self) -> Option<&Instance> {
        self.instance.as_ref().ok()
    }
}

pub(super) async fn read_vm(compute: &Compute, vm: &ManagedVm, deadline: Deadline) -> VmFacts {
    let (instance, permissions) = tokio::join!(
        compute.get(&vm.vm, deadline),
        compute.test_permissions(&vm.vm, &INSTANCE_PERMISSIONS, deadline)
    );
    // Without the instance any id serves: the check is about the permission to list.
    let id = instance.as_ref().map_or("1", |instance| instance.id.as_str());
    let operations = compute.operations(&vm.vm, id, deadline).await;
    VmFacts { instance, permissions, operations }
}

pub(super) fn judge_vm(facts: &VmFacts, vm: &ManagedVm, project: &str) -> Vec<Finding> {
    let mut found = Findings::of(format!("VM {}", vm.vm));
    let VmFacts { instance, permissions, operations } = facts;
    match instance {
        Ok(instance) => {
            judge_status(&mut found, &instance.status);
            judge_instance(&mut found, instance, vm);
        }
        Err(error) if error.is_not_found() => {
            let fix =
                "correct vm_instance_name or vm_instance_zone in RUNNER_CONFIG, or GCP_PROJECT_ID";
            found.fail("status", format!("there is no such instance in {project}"), fix);
            return found.done();
        }
        Err(error) if error.is_forbidden() => {
            found.failed("status", error, grant(project, &["compute.instances.get"]));
        }
        Err(error) => found.failed("status", error, "check GCP_PROJECT_ID and the zone"),
    }
    match permissions {
        Ok(held) => judge_permissions(&mut found, held, vm, project),
        Err(error) => found.failed("permissions", error, grant(project, &INSTANCE_PERMISSIONS)),
    }
    match operations {
        Ok(_) => {}
        Err(error) if error.is_forbidden() => found.warn(
            "operations",
            "listing them is not permitted: the log will not say why a VM went down",
            grant(project, &["compute.zoneOperations.list"]),
        ),
        Err(error) => found.unknown("operations", error),
    }
    found.done()
}

fn judge_status(found: &mut Findings, status: &Status) {
    match status {
        Status::Deprovisioning => {
            found.warn(
                "status",
                status.to_string(),
                "the VM is being deleted: remove its entries from RUNNER_CONFIG",
            );
        }
        Status::Unknown(name) => found.warn(
            "status",
            format!("{name}, which this version does not know"),
            "upgrade the service",
        ),
        known => found.ok("status", known.to_string()),
    }
}

fn judge_instance(found: &mut Findings, instance: &Instance, vm: &ManagedVm) {
    if instance.has_local_ssd && !vm.stop.discard_local_ssd {
        found.fail(
            "local SSD",
            "the VM has one, and a stop would lose its data, so it is never stopped",
            r#"set "discard_local_ssd": true in its entry of RUNNER_CONFIG, or remove the disk"#,
        );
    }
    let own = [IDLE_SINCE_LABEL, HOLD_LABEL];
    let others = instance.labels.keys().filter(|key| !own.contains(&key.as_str())).count();
    if others + own.len() > MAX_LABELS {
        let detail =
            format!("the VM has {others}: no room for {IDLE_SINCE_LABEL} and {HOLD_LABEL}");
        found.fail("labels", detail, format!("remove some: the limit is {MAX_LABELS}"));
    }
}

fn judge_permissions(found: &mut Findings, held: &[String], vm: &ManagedVm, project: &str) {
    let missing: Vec<&str> = INSTANCE_PERMISSIONS
        .into_iter()
        .filter(|name| *name != SUSPEND || vm.stop.suspend)
        .filter(|name| !held.iter().any(|permission| permission == name))
        .collect();
    let detail = |missing: &[&str]| match missing {
        [one] => format!("{one} is missing"),
        several => format!("{} are missing", several.join(", ")),
    };
    match missing.as_slice() {
        [] => found.ok("permissions", "the service may read, start, stop, resume and label it"),
        [RESUME] => found.warn(
            "permissions",
            format!("{}: the service cannot resume it when it is suspended", detail(&missing)),
            grant(project, &missing),
        ),
        [SUSPEND] => found.warn(
            "permissions",
            format!("{}: the VM is stopped where its entries say suspend", detail(&missing)),
            grant(project, &missing),
        ),
        _ => found.fail("permissions", detail(&missing), grant(project, &missing)),
    }
}

fn grant(project: &str, permissions: &[&str]) -> String {
    format!(
        "grant {} to the service's account: gcloud iam roles update ROLE --project {project} --add-permissions {}",
        if permissions.len() == 1 { "it" } else { "them" },
        permissions.join(",")
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::finding::testing::{answered, complains, limited, unanswered};
    use super::*;
    use crate::fleet::{RunnerNames, StopOptions, Vm};

    #[test]
    fn a_token_is_refused_or_unknown() {
        complains(&judge_token(&Ok(())), &[]);
        let none = Error::NoToken { call: "check", why: "no credentials found".into() };
        complains(&judge_token(&Err(none)), &["✗ access token: check: no access token: no cred"]);
        complains(&judge_token(&Err(unanswered())), &["? access token: could not be checked"]);
    }

    fn queue(state: Result<QueueState, Error>, held: Result<&[&str], Error>) -> Vec<Finding> {
        let permissions = held.map(|held| held.iter().map(|&name| name.to_owned()).collect());
        let facts = QueueFacts { state, permissions };
        judge_queue(&facts, &Queue { project: "p", location: "l", id: "q" })
    }

    #[test]
    fn a_queue_has_to_run_and_to_take_tasks() {
        let create: Result<&[&str], Error> = Ok(&[CREATE_TASKS]);
        complains(&queue(Ok(QueueState::Running), create.clone()), &[]);
        complains(&queue(Ok(QueueState::Paused), create.clone()), &["✗ state: it is paused"]);
        complains(&queue(Ok(QueueState::Disabled), create.clone()), &["✗ state: it is disabled"]);
        let odd = Ok(QueueState::Unknown("NAPPING".into()));
        complains(&queue(odd, create.clone()), &["? state: could not be checked: the state \"NAP"]);
        let missing = "✗ permissions: cloudtasks.tasks.create is missing";
        complains(&queue(Ok(QueueState::Running), Ok(&[])), &[missing]);
        complains(
            &queue(Err(answered(404)), Ok(&[])),
            &["✗ state: there is no such queue in l of p"],
        );
        let unread = "? state: could not be checked: cloudtasks.queues.get is missing";
        complains(&queue(Err(answered(403)), create.clone()), &[unread]);
        complains(&queue(Err(answered(403)), Ok(&[])), &["✗ state: a.call: 403", missing]);
        complains(&queue(Err(limited()), create), &["? state: could not be checked: a.call: 403"]);
        let neither = queue(Err(unanswered()), Err(answered(503)));
        complains(
            &neither,
            &["? state: could not be checked", "? permissions: could not be checked"],
        );
    }

    fn vm() -> ManagedVm {
        ManagedVm {
            vm: Vm::new("gpu-1", "us-central1-a"),
            repos: BTreeSet::new(),
            runner_names: RunnerNames::default(),
            stop: StopOptions::default(),
            peers: BTreeSet::new(),
        }
    }

    fn instance() -> Instance {
        Instance {
            id: "1".into(),
            status: Status::Terminated,
            labels: [("team".to_owned(), "ml".to_owned())].into(),
            label_fingerprint: String::new(),
            last_start: None,
            last_stop: None,
            last_suspend: None,
            has_local_ssd: false,
        }
    }

    fn good() -> VmFacts {
        let permissions = INSTANCE_PERMISSIONS.map(str::to_owned).to_vec();
        VmFacts { instance: Ok(instance()), permissions: Ok(permissions), operations: Ok(vec![]) }
    }

    #[track_caller]
    fn judged(facts: &VmFacts, expected: &[&str]) {
        complains(&judge_vm(facts, &vm(), "p"), expected);
    }

    #[test]
    fn a_vm_has_to_exist_and_to_be_permitted() {
        judged(&good(), &[]);
        judged(
            &VmFacts { instance: Err(answered(404)), permissions: Err(answered(404)), ..good() },
            &["✗ status: there is no such instance in p"],
        );
        judged(
            &VmFacts { instance: Err(answered(403)), ..good() },
            &[
                "✗ status: a.call: 403 Forbidden: no\n    -> grant it to the service's account: gcloud iam roles",
            ],
        );
        judged(
            &VmFacts { instance: Err(limited()), ..good() },
            &["? status: could not be checked"],
        );
        judged(
            &VmFacts { operations: Err(answered(403)), ..good() },
            &["! operations: listing them is not permitted"],
        );
        judged(&VmFacts { operations: Err(unanswered()), ..good() }, &["? operations: "]);
        judged(&VmFacts { permissions: Err(answered(500)), ..good() }, &["? permissions: "]);
        let deleted = Instance { status: Status::Deprovisioning, ..instance() };
        judged(&VmFacts { instance: Ok(deleted), ..good() }, &["! status: DEPROVISIONING"]);
    }

    #[test]
    fn missing_permissions_are_named_and_only_resume_is_optional() {
        let without = |missing: &[&str]| {
            let held = INSTANCE_PERMISSIONS.into_iter().filter(|name| !missing.contains(name));
            VmFacts { permissions: Ok(held.map(str::to_owned).collect()), ..good() }
        };
        let labels = "compute.instances.setLabels";
        judged(
            &without(&[RESUME]),
            &["! permissions: compute.instances.resume is missing: the service cannot"],
        );
        judged(&without(&[labels]), &["✗ permissions: compute.instances.setLabels is missing"]);
        judged(
            &without(&[RESUME, labels]),
            &["✗ permissions: compute.instances.resume, compute.instances.setLabels are missing"],
        );
    }

    #[test]
    fn a_local_ssd_prevents_stops_unless_its_data_may_be_discarded() {
        let facts =
            VmFacts { instance: Ok(Instance { has_local_ssd: true, ..instance() }), ..good() };
        judged(&facts, &["✗ local SSD: the VM has one"]);
        let stop = StopOptions { discard_local_ssd: true, ..StopOptions::default() };
        let allowed = ManagedVm { stop, ..vm() };
        complains(&judge_vm(&facts, &allowed, "p"), &[]);
    }

    #[test]
    fn there_has_to_be_room_for_two_labels() {
        let labelled = |others: usize, ours: &[&str]| {
            let names = (0..others).map(|nth| format!("label-{nth}"));
            let names = names.chain(ours.iter().map(|&name| name.to_owned()));
            let labels = names.map(|name| (name, String::new())).collect();
            VmFacts { instance: Ok(Instance { labels, ..instance() }), ..good() }
        };
        judged(&labelled(62, &[]), &[]);
        judged(&labelled(62, &[IDLE_SINCE_LABEL, HOLD_LABEL]), &[]);
        judged(&labelled(63, &[IDLE_SINCE_LABEL]), &["✗ labels: the VM has 63: no room"]);
    }
}
