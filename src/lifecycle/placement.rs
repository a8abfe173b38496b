//! A job is queued for a pool: it takes the first VM that is free.
//!
//! Other instances of the service may place other jobs at the same time. That is what claims are for: a VM whose label
//! another instance wrote first is taken.

use std::sync::Arc;

use futures_util::future::join_all;

use super::bring_up::{bring_up, start};
use super::context::{Context, Turn};
use super::demand;
use super::error::Error;
use super::labels::{self, Change, Written};
use super::pool::{Availability, Runners, runners};
use super::pool_queue::{Placed, Ticket};
use super::schedule::{FIRST_PASS, rounded_up};
use super::task::{Evidence, JobRef, Task};
use super::vm::{Phase, VmSnapshot, observe};
use crate::clock::{Deadline, Timestamp};
use crate::fleet::{ManagedVm, Pool, RepoName};

/// A job is queued for the pool.
///
/// # Errors
/// No pass could be created, or no VM of the pool exists.
pub(super) async fn job_queued(
    cx: &Context,
    pool: &Pool,
    job: JobRef,
    deadline: Deadline,
) -> Result<Placed, Error> {
    let all = |tickets| place(cx, pool, tickets, deadline);
    let (vm, outcome) = cx.pool_queues.placed(pool, &job, deadline, all).await?;
    Ok((vm, outcome.because_of(&format!("{job} is queued"))))
}

/// Places the jobs: as many VMs are read at a time as jobs are left.
async fn place(cx: &Context, pool: &Pool, tickets: Vec<Ticket>, deadline: Deadline) {
    let now = cx.clock.now();
    let mut left = tickets;
    let mut vms = pool.vms().iter();
    // VMs whose start has just failed: tried again if no other is left.
    let mut failed = Vec::new();
    while !left.is_empty() {
        let few: Vec<_> = vms.by_ref().take(left.len()).collect();
        if few.is_empty() {
            break;
        }
        let one = left.len() == 1;
        let looks = few.iter().map(|vm| look(Turn { cx, vm, now, deadline }, &pool.repo, one));
        let mut takes = Vec::new();
        for (vm, (read, slots)) in few.iter().zip(join_all(looks).await) {
            let Some(read) = read else { continue };
            let claims = read.fresh_claims(now);
            let is_own = |ticket: &Ticket| claims.iter().any(|claim| claim.job == ticket.job.id);
            let (own, others): (Vec<_>, Vec<_>) = left.into_iter().partition(is_own);
            left = others;
            let slots = slots.min(left.len());
            let tickets: Vec<_> = own.into_iter().chain(left.drain(..slots)).collect();
            if !tickets.is_empty() {
                takes.push(take_vm(cx, vm, read, tickets, now, deadline));
            } else if read.phase.is_down() && claims.iter().all(|claim| claim.should_show(now)) {
                failed.push((*vm, read));
            }
        }
        for refused in join_all(takes).await {
            left.extend(refused);
        }
    }
    for (vm, read) in failed {
        let Some(ticket) = left.pop() else { return };
        left.extend(take_vm(cx, vm, read, vec![ticket], now, deadline).await);
    }
    overflow(cx, pool, left, deadline).await;
}

/// Reads a VM: how many jobs of the repository it can take, as far as they are wanted.
async fn look(turn: Turn<'_>, repo: &RepoName, one: bool) -> (Option<VmSnapshot>, usize) {
    let read = match observe(turn.cx, &turn.vm.vm, turn.deadline).await {
        Ok(read) => read,
        Err(error) => {
            tracing::error!("VM {} could not be read: {error}", turn.vm.vm);
            return (None, 0);
        }
    };
    let has_one_runner = turn.vm.runner_names.only().is_some() && turn.vm.repos.len() == 1;
    let is_claimed = !read.fresh_claims(turn.now).is_empty();
    let by_claims = match read.phase {
        Phase::Leaving => true,
        // Labels that cannot be written say nothing.
        Phase::Up | Phase::Booting if turn.lacks_labels() => false,
        Phase::Up if !is_claimed && !read.claims.is_empty() => false,
        // In most cases its claim says enough.
        Phase::Up | Phase::Booting | Phase::Stopped | Phase::Suspended => {
            has_one_runner || (one && !is_claimed)
        }
    };
    let known = match read.phase {
        _ if by_claims => None,
        Phase::Booting if turn.lacks_labels() => Some(Runners::unknown(false)),
        _ => {
            let lists = demand::runner_lists(turn.cx, turn.vm, turn.questions()).await;
            let unknown = || Runners::unknown(read.claims.is_empty());
            Some(runners(&lists, &read).unwrap_or_else(unknown))
        }
    };
    let claims = read.fresh_claims(turn.now).len();
    if read.phase.is_down() {
        // Its runners are registered, and will be free once it is up.
        let known = known.unwrap_or_default();
        let is = Availability { free: known.free, ..Availability::default() };
        let one = usize::from(claims == 0);
        let free = is.free_for(repo, claims).max(one);
        return (Some(read), free);
    }
    let is = Availability::of(&read, known, turn.now);
    let free = is.free_for(repo, claims);
    (Some(read), free)
}

/// A pass first, then the claim, then the start. Returns the tickets if another instance claimed the VM first.
async fn take_vm(
    cx: &Context,
    vm: &Arc<ManagedVm>,
    read: VmSnapshot,
    tickets: Vec<Ticket>,
    now: Timestamp,
    deadline: Deadline,
) -> Vec<Ticket> {
    let turn = Turn { cx, vm, now, deadline };
    let Some(job) = tickets.first().map(|ticket| ticket.job.clone()) else { return tickets };
    let idle_since = turn.idle_since();
    let task = Task::new(&vm.vm, idle_since).with_job(job.clone());
    let due = rounded_up(now + FIRST_PASS);
    if let Err(error) = turn.schedule(task.clone(), due).await {
        answer(tickets, || Err(error.clone()));
        return Vec::new();
    }
    let claims: Vec<_> = tickets.iter().map(|ticket| turn.claim(&ticket.job)).collect();
    let change = Change::Claim(&claims, Some(idle_since));
    if labels::try_write(&turn, &read, change).await == Written::TakenByAnother {
        return tickets;
    }
    let started = start(&turn, &read, &task).await;
    let next_check = started.next_check.unwrap_or(due);
    let started = started.next_check_at(next_check);
    answer(tickets, || Ok((Arc::clone(vm), started.clone())));
    Vec::new()
}

/// No VM is left for these jobs: whichever is free first takes them. A pass looks after them.
async fn overflow(cx: &Context, pool: &Pool, tickets: Vec<Ticket>, deadline: Deadline) {
    let Some(job) = tickets.first().map(|ticket| ticket.job.clone()) else { return };
    let vm = pool.first();
    let turn = Turn::new(cx, vm, deadline);
    let outcome = bring_up(&turn, Evidence::Job(job)).await;
    let outcome = outcome.map(|outcome| {
        let size = pool.vms().len();
        outcome.because_of(&format!("all {size} VMs of its pool are taken"))
    });
    answer(tickets, || outcome.clone().map(|outcome| (Arc::clone(vm), outcome)));
}

fn answer(tickets: Vec<Ticket>, result: impl Fn() -> Result<Placed, Error>) {
    for ticket in tickets {
        ticket.answer(result());
    }
}
