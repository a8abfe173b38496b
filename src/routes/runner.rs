//! `POST /runner/start` and `/runner/stop`: operators by hand, and Cloud Tasks when a look is due. `POST /runner/hold`
//! and `/runner/release`: operators alone.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderValue;
use serde::{Deserialize, Serialize};

use super::error::ApiError;
use super::extract::{Authorized, Caller};
use super::{OUTCOME, log, outcome_header};
use crate::clock::Deadline;
use crate::fleet::{ManagedVm, NoSuchVm, Vm};
use crate::lifecycle::task::{StartTask, StopTask};
use crate::lifecycle::{
    CALLBACK_TIME, Outcome, Status, by_hand, start_check, stop_check, unconfigured,
};
use crate::state::AppState;

type Reply = ([(&'static str, HeaderValue); 1], Json<Body>);

/// What an operator may say. Without any of it, the one VM that there is.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Command {
    vm_instance_name: Option<String>,
    vm_instance_zone: Option<String>,
    /// Stop without asking whether something needs the VM.
    force: bool,
}

pub(super) async fn start(
    State(app): State<AppState>,
    request: Authorized,
) -> Result<Reply, ApiError> {
    let deadline = Deadline::after(CALLBACK_TIME);
    if request.caller() == Caller::Operator {
        let command: Command = request.body()?;
        let vm = command.vm(&app)?;
        return Ok(reply(&vm.vm, &by_hand::start(&app, vm, deadline).await?, Caller::Operator));
    }
    let check: StartTask = request.body()?;
    let vm = Vm::new(&check.vm_instance_name, &check.vm_instance_zone);
    let outcome = match callback_vm(&app, &vm) {
        Ok(vm) => start_check::start_check(&app, vm, check, deadline).await,
        Err(_) => unconfigured::start_check(&app, check, deadline).await,
    };
    Ok(reply(&vm, &outcome.map_err(ApiError::Repeat)?, Caller::CloudTasks))
}

pub(super) async fn stop(
    State(app): State<AppState>,
    request: Authorized,
) -> Result<Reply, ApiError> {
    let deadline = Deadline::after(CALLBACK_TIME);
    if request.caller() == Caller::Operator {
        let command: Command = request.body()?;
        let vm = command.vm(&app)?;
        let outcome = by_hand::stop(&app, vm, command.force, deadline).await?;
        return Ok(reply(&vm.vm, &outcome, Caller::Operator));
    }
    let task: StopTask = request.body()?;
    let named = Vm::new(&task.vm_instance_name, &task.vm_instance_zone);
    let (vm, outcome) = match callback_vm(&app, &named) {
        Ok(vm) => (&vm.vm, stop_check::stop_check(&app, vm, task, deadline).await),
        Err(_) => (&named, unconfigured::stop_check(&app, task, deadline).await),
    };
    Ok(reply(vm, &outcome.map_err(ApiError::Repeat)?, Caller::CloudTasks))
}

pub(super) async fn hold(
    State(app): State<AppState>,
    request: Authorized,
) -> Result<Reply, ApiError> {
    let command: Command = request.body()?;
    let vm = command.vm(&app)?;
    let outcome = by_hand::hold(&app, vm, Deadline::after(CALLBACK_TIME)).await?;
    Ok(reply(&vm.vm, &outcome, Caller::Operator))
}

pub(super) async fn release(
    State(app): State<AppState>,
    request: Authorized,
) -> Result<Reply, ApiError> {
    let command: Command = request.body()?;
    let vm = command.vm(&app)?;
    let outcome = by_hand::release(&app, vm, Deadline::after(CALLBACK_TIME)).await?;
    Ok(reply(&vm.vm, &outcome, Caller::Operator))
}

impl Command {
    fn vm<'a>(&self, app: &'a AppState) -> Result<&'a ManagedVm, NoSuchVm> {
        app.fleet.find(self.vm_instance_name.as_deref(), self.vm_instance_zone.as_deref())
    }
}

/// A task of ours names its VM; one of the FastAPI original may rely on there being just one.
fn callback_vm<'a>(app: &'a AppState, vm: &'a Vm) -> Result<&'a ManagedVm, NoSuchVm> {
    let given = |text: &'a String| Some(text.as_str()).filter(|text| !text.is_empty());
    app.fleet.find(given(&vm.name), given(&vm.zone))
}

/// The status, the operation if there is one, and for a person the evidence where the status needs it.
#[derive(Serialize)]
pub(super) struct Body {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    operation: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

fn reply(vm: &Vm, outcome: &Outcome, caller: Caller) -> Reply {
    log(vm, outcome);
    let header = outcome_header(&format!("{}: {outcome}", vm.name));
    let detail = (caller == Caller::Operator).then(|| detail(outcome)).flatten();
    let body =
        Body { status: outcome.status.as_str(), operation: outcome.operation.clone(), detail };
    ([(OUTCOME, header)], Json(body))
}

/// What an operator wants to know of a decision that is not the plain one.
fn detail(outcome: &Outcome) -> Option<String> {
    if matches!(outcome.status, Status::Held | Status::Released) {
        return None;
    }
    let plain = matches!(
        outcome.status,
        Status::Starting | Status::AlreadyRunning | Status::Stopping | Status::AlreadyStopped
    );
    let because = (!plain || outcome.operation.is_none() && outcome.again.is_some())
        .then_some(&outcome.because)?;
    Some(match outcome.again {
        Some(again) => format!("{because}; looks again at {}", again.rfc3339()),
        None => because.clone(),
    })
}
