//! Pools: which VM is up for which job.
//!
//! Any VM of a pool may run a job that waits for the pool, and GitHub, not this service, gives it to one of their runners.
//! So the service only counts: as many VMs have to be able to take a job as jobs wait. A VM that is started for a job is
//! *claimed* for it by a label, so that the next job starts the next VM although this one is not up yet.

use std::collections::BTreeMap;

use futures_util::{StreamExt, stream};

use super::claim::Claim;
use super::context::{Context, Turn};
use super::demand::{self, RunnerLists};
use super::schedule::BOOT_ALLOWANCE;
use super::task::JobRef;
use super::vm::{Phase, VmSnapshot, observe};
use crate::clients::github::{Runner, RunnerScope};
use crate::clock::{Deadline, Timestamp};
use crate::fleet::{Fleet, ManagedVm, RepoName, Vm};

/// Peers that are asked about at the same time.
const CONCURRENT_PEERS: usize = 8;

/// The jobs that a VM can take in the next minutes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Availability {
    /// Runners that are free, or will be once the VM is up.
    pub(super) free: Vec<Slot>,
    /// Its runners that are busy.
    pub(super) busy: Vec<Slot>,
    /// The jobs that the VM is claimed for, by id: one runner is reserved for each.
    pub(super) claimed_for: Vec<u64>,
    pub(super) start: CanStart,
}

impl Availability {
    /// Takes a free runner that serves the repository, if one is left after `claims` runners are set aside for claimed
    /// jobs.
    fn take(&mut self, repo: &RepoName, claims: usize) -> bool {
        let free = self.free.iter().position(|slot| slot.serves(repo));
        match free.filter(|_| self.free_for(repo, claims) > 0) {
            Some(slot) => {
                self.free.remove(slot);
                true
            }
            None => false,
        }
    }

    /// The number of free runners that serve the repository and are not set aside for `claims` claimed jobs. A busy
    /// runner counts as having one of those jobs already.
    pub(super) fn free_for(&self, repo: &RepoName, claims: usize) -> usize {
        let serving = |slots: &[Slot]| slots.iter().filter(|slot| slot.serves(repo)).count();
        serving(&self.free).saturating_sub(claims.saturating_sub(serving(&self.busy)))
    }
}

/// The runners of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Runners {
    pub(super) free: Vec<Slot>,
    pub(super) busy: Vec<Slot>,
}

impl Runners {
    /// GitHub does not tell: one that is free, or none.
    pub(super) fn unknown(is_free: bool) -> Self {
        Self { free: vec![Slot::Any; usize::from(is_free)], busy: Vec::new() }
    }
}

/// A runner, by the scope in which it is registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    /// Its registration is not known.
    Any,
    In(RunnerScope),
}

impl Slot {
    /// The runner takes jobs of the repository.
    pub(super) fn serves(&self, repo: &RepoName) -> bool {
        match self {
            Self::Any => true,
            Self::In(RunnerScope::Repository(own)) => own == repo,
            Self::In(RunnerScope::Organization(login)) => login.eq_ignore_ascii_case(repo.owner()),
        }
    }
}

/// The answer to whether the VM can be started for a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum CanStart {
    /// It is not down.
    #[default]
    No,
    Yes,
    /// Its last start has just failed.
    Later,
    /// Its last start failed, but no other VM is left.
    LastResort,
}

impl Availability {
    /// Of a VM with these runners; `None` if they are not known.
    pub(super) fn of(vm: &VmSnapshot, runners: Option<Runners>, now: Timestamp) -> Self {
        let claims = vm.fresh_claims(now);
        let jobs = |claims: &[Claim]| claims.iter().map(|claim| claim.job).collect::<Vec<_>>();
        match vm.phase {
            Phase::Up | Phase::Booting => {
                // A VM whose runners are not known goes by its claims.
                let is_there = !claims.is_empty() || vm.claims.is_empty();
                let Runners { free, busy } = runners.unwrap_or_else(|| Runners::unknown(is_there));
                let claimed_for = if free.is_empty() { Vec::new() } else { jobs(&claims) };
                Self { free, busy, claimed_for, start: CanStart::No }
            }
            Phase::Stopped | Phase::Suspended => {
                let comes = claims.iter().any(|claim| !claim.should_show(now));
                let start = match claims.as_slice() {
                    [] => CanStart::Yes,
                    _ if comes => CanStart::No,
                    _ => CanStart::Later,
                };
                let claimed_for = if comes { jobs(&claims) } else { Vec::new() };
                Self { start, claimed_for, ..Self::default() }
            }
            Phase::Leaving => Self::default(),
        }
    }
}

/// The VMs that have to be up for these jobs, each with one of them: the one that is claimed for it, else the first of
/// its pool that is free, else the first that can be started, else one that was claimed for a job that no longer waits.
pub(super) fn place(
    fleet: &Fleet,
    jobs: &[JobRef],
    members: &BTreeMap<Vm, Availability>,
) -> BTreeMap<Vm, JobRef> {
    let mut placed = BTreeMap::new();
    let mut members = members.clone();
    let mut left: Vec<&JobRef> = jobs.iter().collect();
    for (vm, is) in &mut members {
        let waits = |id: &u64| jobs.iter().any(|job| job.id == *id);
        let (waiting, others): (Vec<u64>, Vec<u64>) =
            is.claimed_for.iter().partition(|id| waits(id));
        for id in waiting {
            // Another VM may be claimed for it too.
            let Some(nth) = left.iter().position(|job| job.id == id) else { continue };
            // It is on its way up, or a runner is free for the job.
            if is.free.is_empty() || is.take(&left[nth].repo, 0) {
                placed.entry(vm.clone()).or_insert_with(|| left[nth].clone());
                left.remove(nth);
            }
        }
        is.claimed_for = others;
    }
    for job in left {
        let Some(pool) = fleet.pool(&job.repo, &job.labels) else { continue };
        let vms = || pool.vms().iter().map(|vm| &vm.vm);
        let taker = vms().find(|vm| {
            members.get_mut(*vm).is_some_and(|is| is.take(&job.repo, is.claimed_for.len()))
        });
        let first = |is: &dyn Fn(&Availability) -> bool| {
            vms().find(|vm| !placed.contains_key(*vm) && members.get(*vm).is_some_and(is))
        };
        let vm = taker
            .or_else(|| first(&|is| is.start == CanStart::Yes))
            .or_else(|| first(&|is| is.start == CanStart::LastResort))
            .or_else(|| first(&|is| !is.claimed_for.is_empty()));
        if let Some(vm) = vm {
            placed.entry(vm.clone()).or_insert_with(|| job.clone());
        }
    }
    placed
}

/// Reads the other VMs of the pools, and the runners of those that are up.
pub(super) async fn peers(turn: &Turn<'_>) -> BTreeMap<Vm, Availability> {
    let peers: Vec<&ManagedVm> =
        turn.vm.peers.iter().filter_map(|vm| turn.cx.fleet.vm(vm).map(|vm| &**vm)).collect();
    let reads = peers.iter().map(|vm| availability(turn.cx, vm, turn.questions()));
    let read: Vec<_> =
        stream::iter(reads.collect::<Vec<_>>()).buffered(CONCURRENT_PEERS).collect().await;
    peers.iter().map(|vm| vm.vm.clone()).zip(read).collect()
}

async fn availability(cx: &Context, vm: &ManagedVm, deadline: Deadline) -> Availability {
    match observe(cx, &vm.vm, deadline).await {
        // Its own passes look after it.
        Err(_) => Availability::default(),
        Ok(read) => {
            let idle = match read.phase {
                Phase::Up | Phase::Booting => {
                    runners(&demand::runner_lists(cx, vm, deadline).await, &read)
                }
                Phase::Stopped | Phase::Suspended | Phase::Leaving => None,
            };
            Availability::of(&read, idle, cx.clock.now())
        }
    }
}

/// The runners that can take a job are those that are idle and connected or, while the VM boots, that will be. `None` if
/// they cannot be queried.
pub(super) fn runners(lists: &RunnerLists, vm: &VmSnapshot) -> Option<Runners> {
    let boots = vm.phase != Phase::Up
        || vm.instance.last_start.is_some_and(|start| vm.at.since(start) < BOOT_ALLOWANCE);
    let answered = lists.iter().filter_map(|(scope, list)| Some((scope, list.as_ref().ok()?)));
    let known: Vec<_> =
        answered.flat_map(|(scope, list)| list.iter().map(move |runner| (scope, runner))).collect();
    if known.is_empty() {
        let refused = lists.iter().any(|(_, list)| list.is_err());
        // A runner that registers at the boot is not there yet.
        return if refused { None } else { Some(Runners::unknown(boots)) };
    }
    let is_free = |runner: &Runner| !runner.busy && (runner.online || boots);
    let slots = |is: &dyn Fn(&Runner) -> bool| {
        let some = known.iter().filter(|(_, runner)| is(runner));
        some.map(|(scope, _)| Slot::In((*scope).clone())).collect::<Vec<_>>()
    };
    Some(Runners { free: slots(&is_free), busy: slots(&|runner: &Runner| runner.busy) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clients::compute::{Instance, Labels, Status};
    use crate::fleet::{Entry, Label, RunnerNames, StopOptions};
    use crate::lifecycle::vm::CLAIM_LABEL;

    const NOW: u64 = 1_800_000_000;

    fn vm(status: &str, claim: Option<u64>) -> VmSnapshot {
        let mut labels = Labels::new();
        if let Some(age) = claim {
            labels.insert(CLAIM_LABEL.into(), format!("{}-7", NOW - age));
        }
        let instance = Instance {
            id: "1".into(),
            status: Status::from(status),
            labels,
            label_fingerprint: String::new(),
            last_start: None,
            last_stop: None,
            last_suspend: None,
            has_local_ssd: false,
        };
        VmSnapshot::new(instance, Timestamp::from_unix_seconds(NOW))
    }

    #[track_caller]
    fn is(
        vm: &VmSnapshot,
        idle: Option<usize>,
        free: usize,
        claimed_for: Option<u64>,
        start: CanStart,
    ) {
        let idle = idle.map(|idle| Runners { free: vec![Slot::Any; idle], busy: Vec::new() });
        let is = Availability::of(vm, idle, Timestamp::from_unix_seconds(NOW));
        let claimed_for = claimed_for.into_iter().collect();
        let free = vec![Slot::Any; free];
        assert_eq!(is, Availability { free, busy: Vec::new(), claimed_for, start });
    }

    #[test]
    fn a_vm_is_free_startable_or_taken() {
        use CanStart::{Later, No, Yes};
        is(&vm("RUNNING", None), Some(1), 1, None, No);
        is(&vm("RUNNING", None), Some(0), 0, None, No);
        is(&vm("RUNNING", Some(10)), Some(1), 1, Some(7), No);
        is(&vm("RUNNING", Some(10)), Some(0), 0, None, No);
        is(&vm("RUNNING", Some(10)), Some(3), 3, Some(7), No);
        // The job had time to come: it runs elsewhere, or is over.
        is(&vm("RUNNING", Some(400)), Some(1), 1, None, No);
        is(&vm("STAGING", Some(10)), Some(1), 1, Some(7), No);
        // Runners that cannot be queried count by their claims.
        is(&vm("RUNNING", None), None, 1, None, No);
        is(&vm("RUNNING", Some(10)), None, 1, Some(7), No);
        is(&vm("RUNNING", Some(400)), None, 0, None, No);
        is(&vm("TERMINATED", None), None, 0, None, Yes);
        is(&vm("TERMINATED", Some(10)), None, 0, Some(7), No);
        is(&vm("TERMINATED", Some(90)), None, 0, None, Later);
        is(&vm("TERMINATED", Some(400)), None, 0, None, Yes);
        is(&vm("STOPPING", None), None, 0, None, No);
    }

    fn named(vm: &str) -> Vm {
        Vm::new(vm, "z")
    }

    /// `acme/app` has the pool a, b, c; `acme/web` has the pool c, d.
    fn fleet() -> Fleet {
        let labels = vec![Label::from("gpu")];
        let entries = [
            ("acme/app", "a"),
            ("acme/app", "b"),
            ("acme/app", "c"),
            ("acme/web", "c"),
            ("acme/web", "d"),
        ];
        Fleet::new(
            entries
                .map(|(repo, vm)| Entry {
                    repo: repo.into(),
                    labels: labels.clone(),
                    runner_labels: Vec::new(),
                    vm: named(vm),
                    runner_names: RunnerNames::parse([vm]),
                    stop: StopOptions::default(),
                    register: None,
                })
                .into(),
        )
    }

    fn job(repo: &str, id: u64) -> JobRef {
        JobRef {
            repo: repo.into(),
            id,
            queued_at: Timestamp::from_unix_seconds(NOW),
            labels: vec!["gpu".into()],
        }
    }

    /// One word for each VM: `1` free runner, `for 7`, `down`, `last`, or anything else for taken.
    #[track_caller]
    fn places(members: [(&str, &str); 4], jobs: &[(&str, u64)], expected: &[(&str, u64)]) {
        let members = members.map(|(vm, is)| {
            let start = match is {
                "down" => CanStart::Yes,
                "last" => CanStart::LastResort,
                _ => CanStart::No,
            };
            let jobs = is.strip_prefix("for ").unwrap_or_default().split_whitespace();
            let claimed_for = jobs.filter_map(|job| job.parse().ok()).collect();
            let free = match is.parse() {
                Ok(free) => vec![Slot::Any; free],
                // Runners of these repositories.
                Err(_) => is
                    .split_whitespace()
                    .filter(|word| word.contains('/'))
                    .map(|repo| Slot::In(RunnerScope::Repository(repo.into())))
                    .collect(),
            };
            (named(vm), Availability { free, busy: Vec::new(), claimed_for, start })
        });
        let jobs: Vec<_> = jobs.iter().map(|(repo, id)| job(repo, *id)).collect();
        let placed = place(&fleet(), &jobs, &members.into());
        let placed: Vec<_> = placed.iter().map(|(vm, job)| (vm.name.as_str(), job.id)).collect();
        assert_eq!(placed, expected);
    }

    #[test]
    fn as_many_vms_are_up_as_jobs_wait() {
        let all_down = [("a", "down"), ("b", "down"), ("c", "down"), ("d", "down")];
        let app = |ids: &[u64]| ids.iter().map(|id| ("acme/app", *id)).collect::<Vec<_>>();
        places(all_down, &app(&[1]), &[("a", 1)]);
        places(all_down, &app(&[1, 2]), &[("a", 1), ("b", 2)]);
        places(all_down, &app(&[1, 2, 3, 4, 5]), &[("a", 1), ("b", 2), ("c", 3)]);
        // One that is free comes before one that is down, wherever it stands.
        places([("a", "down"), ("b", "1"), ("c", "1"), ("d", "down")], &app(&[1]), &[("b", 1)]);
        places(
            [("a", "down"), ("b", "1"), ("c", "-"), ("d", "down")],
            &app(&[1, 2]),
            &[("a", 2), ("b", 1)],
        );
        // Several runners on one VM count as that many.
        places([("a", "down"), ("b", "2"), ("c", "-"), ("d", "down")], &app(&[1, 2]), &[("b", 1)]);
        // A claimed VM is for its job, and for no other.
        places(
            [("a", "for 2"), ("b", "down"), ("c", "down"), ("d", "-")],
            &app(&[1, 2]),
            &[("a", 2), ("b", 1)],
        );
        places([("a", "for 9"), ("b", "down"), ("c", "down"), ("d", "-")], &app(&[1]), &[("b", 1)]);
        places(
            [("a", "for 2 3"), ("b", "down"), ("c", "-"), ("d", "-")],
            &app(&[2, 3]),
            &[("a", 2)],
        );
        places([("a", "-"), ("b", "for 9"), ("c", "-"), ("d", "down")], &app(&[1]), &[("b", 1)]);
        // A VM whose start failed is tried again once no other is left.
        places([("a", "last"), ("b", "down"), ("c", "-"), ("d", "-")], &app(&[1]), &[("b", 1)]);
        places([("a", "last"), ("b", "-"), ("c", "-"), ("d", "down")], &app(&[1]), &[("a", 1)]);
        // Two repositories share c.
        let both = [("acme/app", 1), ("acme/web", 2)];
        places(
            [("a", "-"), ("b", "-"), ("c", "down"), ("d", "down")],
            &both,
            &[("c", 1), ("d", 2)],
        );
        places([("a", "-"), ("b", "-"), ("c", "1"), ("d", "-")], &both, &[("c", 1)]);
        // A runner takes the jobs of its own repository only.
        let web = "acme/web";
        places(
            [("a", "down"), ("b", "-"), ("c", web), ("d", "down")],
            &both,
            &[("a", 1), ("c", 2)],
        );
        let two = "acme/web acme/app";
        places([("a", "down"), ("b", "-"), ("c", two), ("d", "down")], &both, &[("c", 1)]);
        places(all_down, &[("acme/other", 1)], &[]);
    }
}
