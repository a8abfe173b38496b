//! `POST /runner/start` and `/runner/stop`: commands of operators, and callbacks of Cloud Tasks when a pass is due.
//! `POST /runner/hold` and `/runner/release`: commands of operators.
//!
//! Every pass is called back at `/runner/stop`; `/runner/start` still serves tasks of earlier versions. A callback is
//! recognized by its `X-CloudTasks-TaskName` header, which grants nothing: the caller had to know the secret anyway.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderValue;
use serde::{Deserialize, Serialize};

use super::error::ApiError;
use super::extract::{Authorized, Caller};
use super::{OUTCOME, log, outcome_header};
use crate::clock::Deadline;
use crate::fleet::{ManagedVm, NoSuchVm, Vm};
use crate::lifecycle::operator::{Care, HoldRequest};
use crate::lifecycle::reconcile::{self, PASS_TIME};
use crate::lifecycle::task::{StartCheck, Task};
use crate::lifecycle::{Outcome, Status, operator};
use crate::state::AppState;

type Reply = ([(&'static str, HeaderValue); 1], Json<Body>);

/// The VM that an operator's command means: without a name the fleet's only one. An unknown field of a command is an
/// error: a mistyped one would silently do something else.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Command {
    vm_instance_name: Option<String>,
    vm_instance_zone: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct StopCommand {
    vm_instance_name: Option<String>,
    vm_instance_zone: Option<String>,
    /// Stops the VM without checking for jobs.
    force: bool,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct HoldCommand {
    vm_instance_name: Option<String>,
    vm_instance_zone: Option<String>,
    /// The length of the hold; without it, until the VM is released.
    minutes: Option<u64>,
    /// For the log and the reply.
    reason: Option<String>,
}

/// The longest hold that ends by itself: a year.
const MAX_HOLD_MINUTES: u64 = 365 * 24 * 60;

/// The part of a hold's reason that is logged, in characters.
const MAX_REASON: usize = 200;

pub(super) async fn start(
    State(app): State<AppState>,
    request: Authorized,
) -> Result<Reply, ApiError> {
    match request.caller() {
        Caller::CloudTasks => callback(&app, request.body::<StartCheck>()?.into()).await,
        Caller::Operator => operator_start(&app, &request.body()?).await,
    }
}

pub(super) async fn stop(
    State(app): State<AppState>,
    request: Authorized,
) -> Result<Reply, ApiError> {
    match request.caller() {
        Caller::CloudTasks => callback(&app, request.body()?).await,
        Caller::Operator => operator_stop(&app, request.body()?).await,
    }
}

/// Runs a pass that is due.
async fn callback(app: &AppState, task: Task) -> Result<Reply, ApiError> {
    let deadline = Deadline::after(PASS_TIME);
    let named = Vm::new(&task.vm_instance_name, &task.vm_instance_zone);
    let (vm, outcome) = match callback_vm(app, &named) {
        Ok(vm) => (&vm.vm, reconcile::pass(&app.cx, vm, task, deadline).await),
        Err(_) => (&named, reconcile::pass_without_entry(&app.cx, task, deadline).await),
    };
    Ok(reply(vm, &outcome.map_err(ApiError::Repeat)?, None))
}

async fn operator_start(app: &AppState, command: &Command) -> Result<Reply, ApiError> {
    let vm = command.vm(app)?;
    let outcome = operator::start(&app.cx, vm, Deadline::after(PASS_TIME)).await?;
    Ok(reply_to_operator(&vm.vm, &outcome))
}

async fn operator_stop(app: &AppState, command: StopCommand) -> Result<Reply, ApiError> {
    let StopCommand { vm_instance_name, vm_instance_zone, force } = command;
    let named = Command { vm_instance_name, vm_instance_zone };
    let vm = named.vm(app)?;
    let care = if force { Care::Force } else { Care::IfIdle };
    let outcome = operator::stop(&app.cx, vm, care, Deadline::after(PASS_TIME)).await?;
    Ok(reply_to_operator(&vm.vm, &outcome))
}

pub(super) async fn hold(
    State(app): State<AppState>,
    request: Authorized,
) -> Result<Reply, ApiError> {
    let HoldCommand { vm_instance_name, vm_instance_zone, minutes, reason } = request.body()?;
    let named = Command { vm_instance_name, vm_instance_zone };
    let vm = named.vm(&app)?;
    if minutes.is_some_and(|minutes| !(1..=MAX_HOLD_MINUTES).contains(&minutes)) {
        let problem = format!("`minutes` is not a number from 1 to {MAX_HOLD_MINUTES}");
        return Err(ApiError::BadBody(problem));
    }
    let request = HoldRequest {
        length: minutes.map(|minutes| Duration::from_secs(60 * minutes)),
        reason: reason.map(|reason| reason.chars().take(MAX_REASON).collect()),
    };
    let outcome = operator::hold(&app.cx, vm, &request, Deadline::after(PASS_TIME)).await?;
    Ok(reply_to_operator(&vm.vm, &outcome))
}

pub(super) async fn release(
    State(app): State<AppState>,
    request: Authorized,
) -> Result<Reply, ApiError> {
    let command: Command = request.body()?;
    let vm = command.vm(&app)?;
    let outcome = operator::release(&app.cx, vm, Deadline::after(PASS_TIME)).await?;
    Ok(reply_to_operator(&vm.vm, &outcome))
}

impl Command {
    fn vm<'a>(&self, app: &'a AppState) -> Result<&'a Arc<ManagedVm>, NoSuchVm> {
        app.cx.fleet.find(self.vm_instance_name.as_deref(), self.vm_instance_zone.as_deref())
    }
}

/// The VM of a task. A task of this service names it; one of the FastAPI original may rely on there being just one.
fn callback_vm<'a>(app: &'a AppState, vm: &'a Vm) -> Result<&'a Arc<ManagedVm>, NoSuchVm> {
    let given = |text: &'a String| Some(text.as_str()).filter(|text| !text.is_empty());
    app.cx.fleet.find(given(&vm.name), given(&vm.zone))
}

#[derive(Serialize)]
pub(super) struct Body {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    operation: Option<String>,
    /// The evidence, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

fn reply_to_operator(vm: &Vm, outcome: &Outcome) -> Reply {
    reply(vm, outcome, detail(outcome))
}

fn reply(vm: &Vm, outcome: &Outcome, detail: Option<String>) -> Reply {
    log(vm, outcome);
    let header = outcome_header(&format!("{}: {outcome}", vm.name));
    let body =
        Body { status: outcome.status.as_str(), operation: outcome.operation.clone(), detail };
    ([(OUTCOME, header)], Json(body))
}

/// The evidence, if the status does not say everything. By the specification a plain start or stop has none.
fn detail(outcome: &Outcome) -> Option<String> {
    let is_plain = match outcome.status {
        Status::Held => outcome.because == operator::ASKED,
        Status::Released => true,
        Status::Starting | Status::AlreadyRunning | Status::Stopping | Status::AlreadyStopped => {
            outcome.operation.is_some() || outcome.status != Status::Stopping
        }
        _ => false,
    };
    if is_plain {
        return None;
    }
    let because = &outcome.because;
    Some(match outcome.next_check {
        Some(due) => format!("{because}; next check {}", due.rfc3339()),
        None => because.clone(),
    })
}
