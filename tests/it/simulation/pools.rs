//! Random days of a pool: one to four VMs in two zones, and a second repository that shares some of them.
//!
//! The promises of a pool: as many VMs are up as jobs wait and run, as far as the pool goes. No VM is stopped under a job,
//! or runs for long without one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use runner_manager::clock::Timestamp;
use runner_manager::emulators::Event;
use runner_manager::emulators::compute::{self, Instance, Status};
use runner_manager::emulators::github::{JobId, JobStatus};

use super::checks::{WINDOW, accepted, time_of};
use super::day::Dice;
use super::number;
use super::play::a_fault;
use crate::world::{World, ZONE, minutes, runner, seconds};

const ZONES: [&str; 2] = [ZONE, "us-east1-b"];
const REPOS: [&str; 2] = ["acme/app", "acme/web"];
const VMS: [&str; 4] = ["pool-1", "pool-2", "pool-3", "pool-4"];
const LABELS: [&str; 2] = ["self-hosted", "pool"];

/// The faults of a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Faults {
    None,
    /// Zones without machines, VMs that vanish, GitHub down.
    Outage,
    /// The same; API calls and callbacks are lost, repeated and late, and the service crashes.
    All,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Op {
    Burst { repo: usize, jobs: u64, runs: Duration },
    Cancel { nth_latest: u64 },
    Redeliver { nth_latest: u64 },
    Deploy,
    Stockout { zone: usize, span: Duration },
    Preempt { vm: usize },
    GitHubDown { span: Duration },
    Crash,
    DoubleCallback,
}

#[derive(Clone, PartialEq, Eq)]
struct Day {
    seed: u64,
    faults: Faults,
    /// The VMs of each repository's pool, in order.
    pools: [Vec<usize>; 2],
    /// VMs with two runners.
    twins: bool,
    inactive: u64,
    ops: Vec<(Duration, Op)>,
}

impl fmt::Debug for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, faults, pools, twins, inactive, ops } = self;
        writeln!(
            f,
            "seed {seed}, {faults:?}, pools {pools:?}, twins {twins}, inactive {inactive}"
        )?;
        ops.iter().try_for_each(|(at, op)| writeln!(f, "    (seconds({}), {op:?}),", at.as_secs()))
    }
}

impl Day {
    fn draw(seed: u64, faults: Faults) -> Self {
        let mut dice = Dice::new(seed.wrapping_mul(11).wrapping_add(faults as u64));
        let size = usize::try_from(dice.between(1, 4)).unwrap_or(1);
        let first: Vec<usize> = (0..size).collect();
        let mut second: Vec<usize> = (0..4).filter(|_| dice.chance(50)).collect();
        if dice.chance(50) {
            second.reverse();
        }
        let mut ops = Vec::new();
        for _ in 0..dice.between(2, 6) {
            let start = dice.between(0, 6 * 3600);
            for _ in 0..dice.between(1, 5) {
                let at = seconds(start + dice.between(0, 600));
                let repo = usize::from(!second.is_empty() && dice.chance(35));
                let runs = seconds(match dice.between(0, 9) {
                    0..6 => dice.between(5, 200),
                    6..9 => dice.between(200, 1_500),
                    _ => dice.between(1_500, 5_400),
                });
                let jobs = if dice.chance(30) { dice.between(2, 12) } else { 1 };
                ops.push((at, Op::Burst { repo, jobs, runs }));
            }
        }
        for _ in 0..dice.between(0, 8) {
            let op = trouble(&mut dice, faults);
            ops.push((seconds(dice.between(0, 7 * 3600)), op));
        }
        ops.sort_by_key(|(at, _)| *at);
        let inactive = *dice.pick(&[1, 1, 3, 3, 3, 15, 60]);
        Self { seed, faults, pools: [first, second], twins: dice.chance(15), inactive, ops }
    }

    fn zone(vm: usize) -> &'static str {
        ZONES[vm % 2]
    }

    fn config(&self) -> String {
        let entry = |repo: usize, vm: usize| {
            let name = VMS[vm];
            let runners = if self.twins {
                format!(r#", "runner_names": ["{name}-*"]"#)
            } else {
                String::new()
            };
            format!(
                r#"{{"repo": "{}", "labels": ["self-hosted", "pool"], "vm_instance_name": "{name}", "vm_instance_zone": "{}"{runners}}}"#,
                REPOS[repo],
                Self::zone(vm)
            )
        };
        let entries: Vec<_> = (0..2)
            .flat_map(|repo| self.pools[repo].iter().map(move |vm| (repo, *vm)))
            .map(|(repo, vm)| entry(repo, vm))
            .collect();
        format!("[{}]", entries.join(", "))
    }

    fn runners(&self, vm: usize) -> Vec<String> {
        if self.twins {
            vec![format!("{}-a", VMS[vm]), format!("{}-b", VMS[vm])]
        } else {
            vec![VMS[vm].to_owned()]
        }
    }
}

fn trouble(dice: &mut Dice, faults: Faults) -> Op {
    let mut of = vec![
        Op::Cancel { nth_latest: dice.between(0, 3) },
        Op::Redeliver { nth_latest: dice.between(0, 4) },
        Op::Deploy,
    ];
    if faults != Faults::None {
        let zone = usize::from(dice.chance(50));
        of.push(Op::Stockout { zone, span: minutes(dice.between(1, 60)) });
        of.push(Op::Stockout { zone, span: minutes(dice.between(1, 200)) });
        of.push(Op::Preempt { vm: usize::try_from(dice.between(0, 3)).unwrap_or(0) });
        of.push(Op::GitHubDown { span: minutes(dice.between(1, 40)) });
    }
    if faults == Faults::All {
        of.push(Op::Crash);
        of.push(Op::DoubleCallback);
    }
    dice.pick(&of).clone()
}

/// The times at which an excuse begins and ends.
#[derive(Clone, Copy, Debug)]
enum Excuse {
    Stockout(usize, bool),
    GitHubDown(bool),
}

/// The end of an operation that lasts.
type Ending = Box<dyn FnOnce(&mut World)>;

struct Stage {
    world: World,
    agenda: BTreeMap<(Timestamp, usize), Ending>,
    order: usize,
    excuses: Vec<(Timestamp, Excuse)>,
    /// For how many outages each zone has no machines.
    outages: std::rc::Rc<std::cell::RefCell<[u32; 2]>>,
}

impl Stage {
    fn new(day: &Day) -> Self {
        let world = World::inactive_for(day.inactive, day.config());
        let mut dice = Dice::new(day.seed ^ 0x9001);
        let used: BTreeSet<usize> = day.pools.iter().flatten().copied().collect();
        for &vm in &used {
            let instance = Instance::new(VMS[vm], Day::zone(vm));
            world.cloud.compute.insert(Instance { status: Status::Terminated, ..instance });
            for (repo, pool) in day.pools.iter().enumerate() {
                if pool.contains(&vm) {
                    for name in day.runners(vm) {
                        let runner = runner(&name, REPOS[repo], &LABELS.join(" ")).on(VMS[vm]);
                        world.cloud.github.add_runner(runner);
                    }
                }
            }
        }
        world.cloud.compute.timings(compute::Timings {
            boot: seconds(dice.between(15, 90)),
            ..world.cloud.compute.current_timings()
        });
        if day.faults == Faults::All {
            let mut late = dice.clone();
            world.cloud.tasks.lateness_by(move |_| {
                seconds(if late.chance(5) { late.between(10, 180) } else { late.between(0, 2) })
            });
            let slowest = dice.between(0, 40);
            let mut late = dice.clone();
            world.cloud.github.lateness_by(move |_| seconds(late.between(0, slowest)));
            let dice = Mutex::new(dice);
            world.cloud.faults.on(move |call| {
                let mut dice = dice.lock().unwrap();
                dice.chance(6).then(|| a_fault(&mut dice, call.api))
            });
        }
        Self {
            world,
            agenda: BTreeMap::new(),
            order: 0,
            excuses: Vec::new(),
            outages: <_>::default(),
        }
    }

    async fn until(&mut self, time: Timestamp) {
        while let Some((&(at, order), _)) = self.agenda.first_key_value()
            && at <= time
        {
            self.world.pass(at.since(self.world.clock.now())).await;
            let end = self.agenda.remove(&(at, order)).expect("it is the first");
            end(&mut self.world);
        }
        self.world.pass(time.since(self.world.clock.now())).await;
    }

    fn later(&mut self, span: Duration, end: impl FnOnce(&mut World) + 'static) {
        self.order += 1;
        self.agenda.insert((self.world.clock.now() + span, self.order), Box::new(end));
    }

    fn carry_out(&mut self, op: &Op) {
        let now = self.world.clock.now();
        let cloud = self.world.cloud.clone();
        match op {
            Op::Burst { repo, jobs, runs } => {
                let labels = LABELS.map(str::to_owned).to_vec();
                let jobs = vec![(labels, *runs); usize::try_from(*jobs).unwrap_or(1)];
                cloud.github.queue_run(REPOS[*repo], jobs);
            }
            Op::Cancel { nth_latest } => {
                let jobs = cloud.github.jobs();
                let nth = usize::try_from(*nth_latest).unwrap_or(0);
                let job =
                    jobs.iter().rev().nth(nth).filter(|job| job.status != JobStatus::Completed);
                if let Some(job) = job {
                    cloud.github.cancel_job(job.id);
                }
            }
            Op::Redeliver { nth_latest } => {
                let deliveries = cloud.github.deliveries();
                let nth = usize::try_from(*nth_latest).unwrap_or(0);
                if let Some(delivery) = deliveries.iter().rev().nth(nth) {
                    cloud.github.redeliver(&delivery.guid);
                }
            }
            Op::Deploy => self.world.service().replace(),
            Op::Crash => self.world.crash(),
            Op::DoubleCallback => cloud.tasks.duplicate_next(),
            Op::Stockout { zone, span } => {
                let zone = *zone;
                self.outages.borrow_mut()[zone] += 1;
                cloud.compute.stockout(ZONES[zone], true);
                self.excuses.push((now, Excuse::Stockout(zone, true)));
                self.excuses.push((now + *span, Excuse::Stockout(zone, false)));
                let outages = std::rc::Rc::clone(&self.outages);
                self.later(*span, move |world| {
                    outages.borrow_mut()[zone] -= 1;
                    if outages.borrow()[zone] == 0 {
                        world.cloud.compute.stockout(ZONES[zone], false);
                    }
                });
            }
            Op::Preempt { vm } => {
                let exists = cloud.compute.instances().iter().any(|name| name == VMS[*vm]);
                if exists && cloud.compute.status(VMS[*vm]) == Status::Running {
                    cloud.compute.preempt(VMS[*vm]);
                }
            }
            Op::GitHubDown { span } => {
                cloud.github.outage(true);
                self.excuses.push((now, Excuse::GitHubDown(true)));
                self.excuses.push((now + *span, Excuse::GitHubDown(false)));
                self.later(*span, |world| world.cloud.github.outage(false));
            }
        }
    }

    async fn finish(&mut self, day: &Day) {
        let last = self.agenda.last_key_value().map(|((at, _), _)| *at);
        let now = self.world.clock.now();
        self.until(last.unwrap_or(now).max(now) + minutes(10)).await;
        self.world.cloud.faults.off();
        self.world.cloud.tasks.lateness(Duration::ZERO);
        self.world.cloud.github.lateness_by(|_| Duration::ZERO);
        let accepted = accepted(&self.world.history());
        for job in self.world.cloud.github.jobs() {
            if job.status != JobStatus::Completed && !accepted.contains_key(&job.id) {
                self.world.cloud.github.cancel_job(job.id);
            }
        }
        let end = self.world.clock.now() + minutes(40 * 60 + 2 * day.inactive);
        while !self.world.is_quiet() && self.world.clock.now() < end {
            self.world.pass(minutes(5)).await;
        }
    }
}

#[derive(Default)]
struct Vm {
    status: Option<Status>,
    running: BTreeMap<JobId, (usize, Timestamp)>,
    idle_for: Duration,
    short_for: [Duration; 2],
}

impl Vm {
    fn is_up(&self) -> bool {
        matches!(self.status, Some(Status::Provisioning | Status::Staging | Status::Running))
    }
}

/// The worst values of many days, and their totals.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Figures {
    jobs: usize,
    starts: usize,
    short: Duration,
    idle: Duration,
    calls: usize,
    tasks: usize,
}

struct Review<'a> {
    day: &'a Day,
    accepted: BTreeMap<JobId, Timestamp>,
    waiting: [BTreeMap<JobId, Timestamp>; 2],
    vms: BTreeMap<usize, Vm>,
    stockouts: [u32; 2],
    github_down: u32,
    now: Timestamp,
    figures: Figures,
    broken: Vec<String>,
}

impl Review<'_> {
    fn bounds(&self) -> (Duration, Duration) {
        let inactive = minutes(self.day.inactive);
        match self.day.faults {
            Faults::None => (minutes(6), inactive + minutes(15)),
            Faults::Outage => (minutes(8), inactive * 2 + minutes(25)),
            Faults::All => (minutes(20), inactive * 2 + minutes(60)),
        }
    }

    fn pass_to(&mut self, time: Timestamp) {
        let span = time.since(self.now);
        self.now = self.now.max(time);
        let (most_short, most_idle) = self.bounds();
        for (repo, pool) in self.day.pools.iter().enumerate() {
            let known = |job: &JobId| self.accepted.get(job).is_some_and(|at| *at < time);
            let waits = self.waiting[repo].keys().filter(|job| known(job)).count();
            let runners = if self.day.twins { 2 } else { 1 };
            let free = pool.iter().map(|vm| &self.vms[vm]).filter(|vm| vm.is_up()).map(|vm| {
                runners - vm.running.values().filter(|(of, _)| *of == repo).count().min(runners)
            });
            let free: usize = free.sum();
            for vm in pool {
                let out = self.stockouts[vm % 2] > 0;
                let state = self.vms.get_mut(vm).expect("it is in a pool");
                // Jobs that wait are counted by asking GitHub.
                let short = waits > free && !state.is_up() && !out && self.github_down == 0;
                let short_for = &mut state.short_for[repo];
                *short_for = if short { *short_for + span } else { Duration::ZERO };
                self.figures.short = self.figures.short.max(*short_for);
                if *short_for > most_short {
                    self.broken.push(format!(
                        "never strand: {time}: {} was down for {short_for:?} while {waits} jobs of {} waited and {free} \
                         runners were free",
                        VMS[*vm], REPOS[repo]
                    ));
                }
            }
        }
        let waits = self.waiting.each_ref().map(|waiting| !waiting.is_empty());
        for (&name, vm) in &mut self.vms {
            let serves = (0..2).any(|repo| waits[repo] && self.day.pools[repo].contains(&name));
            let needed = serves || !vm.running.is_empty();
            let idles = vm.status == Some(Status::Running) && !needed && self.github_down == 0;
            vm.idle_for = if idles { vm.idle_for + span } else { Duration::ZERO };
            self.figures.idle = self.figures.idle.max(vm.idle_for);
            if vm.idle_for > most_idle {
                self.broken.push(format!(
                    "never leak: {time}: {} was idle for {:?}",
                    VMS[name], vm.idle_for
                ));
            }
        }
    }

    fn see(&mut self, event: &Event) {
        match event {
            Event::Instance { at, vm, status, cause } => {
                let Some(name) = VMS.iter().position(|name| name == vm) else { return };
                let Some(vm) = self.vms.get_mut(&name) else { return };
                if *status == Status::Stopping && cause == "stop" {
                    for (job, (_, since)) in &vm.running {
                        if at.since(*since) > WINDOW {
                            self.broken.push(format!(
                                "never kill: {at}: {} was stopped while job {job} ran since {since}",
                                VMS[name]
                            ));
                        }
                    }
                }
                self.figures.starts += usize::from(*status == Status::Provisioning);
                vm.status = Some(*status);
            }
            Event::Job { at, id, repo, status, runner } => {
                let repo = usize::from(repo == REPOS[1]);
                self.waiting[repo].remove(id);
                self.vms.values_mut().for_each(|vm| _ = vm.running.remove(id));
                match (status, runner) {
                    (JobStatus::Queued, _) => _ = self.waiting[repo].insert(*id, *at),
                    (JobStatus::InProgress, Some(runner)) => {
                        let vm = VMS
                            .iter()
                            .position(|vm| runner.starts_with(vm))
                            .expect("a VM's runner");
                        let vm = self.vms.get_mut(&vm).expect("it is in a pool");
                        vm.running.insert(*id, (repo, *at));
                    }
                    _ => {}
                }
            }
            Event::Webhook { at, action, reply, .. } => {
                // A delivery that is repeated is an event like any other.
                if action == "queued" {
                    self.vms.values_mut().for_each(|vm| vm.idle_for = Duration::ZERO);
                }
                let failed = reply.status.is_none_or(|status| !status.is_success());
                if failed && self.day.faults == Faults::None {
                    self.broken
                        .push(format!("{at}: webhook {action} was answered {:?}", reply.status));
                }
            }
            Event::Callback { .. } | Event::Runner { .. } => {}
        }
    }
}

fn check(day: &Day, world: &World, excuses: &[(Timestamp, Excuse)]) -> Result<Figures, String> {
    let history = world.history();
    let used = day.pools.iter().flatten().map(|vm| (*vm, Vm::default())).collect();
    let mut review = Review {
        day,
        accepted: accepted(&history),
        waiting: <_>::default(),
        vms: used,
        stockouts: [0; 2],
        github_down: 0,
        now: Timestamp::UNIX_EPOCH,
        figures: Figures {
            jobs: world.cloud.github.jobs().len(),
            calls: world.cloud.calls().len(),
            tasks: world.count("tasks.create"),
            ..Figures::default()
        },
        broken: Vec::new(),
    };
    let mut excuses = excuses.to_vec();
    excuses.sort_by_key(|(at, _)| *at);
    let mut excuses = excuses.into_iter().peekable();
    for event in &history {
        let at = time_of(event);
        while let Some((when, excuse)) = excuses.next_if(|(when, _)| *when <= at) {
            review.pass_to(when);
            let count = |counter: &mut u32, on| {
                *counter = if on { *counter + 1 } else { counter.saturating_sub(1) }
            };
            match excuse {
                Excuse::Stockout(zone, on) => count(&mut review.stockouts[zone], on),
                Excuse::GitHubDown(on) => count(&mut review.github_down, on),
            }
        }
        review.pass_to(at);
        review.see(event);
    }
    let Review { figures, mut broken, .. } = review;
    for job in world.cloud.github.jobs() {
        if job.status != JobStatus::Completed {
            broken.push(format!("never strand: job {} is {:?} in the end", job.id, job.status));
        }
    }
    if !world.is_quiet() {
        broken.push("never leak: it never came to rest".to_owned());
    }
    broken.into_iter().next().map_or(Ok(figures), Err)
}

fn play(day: &Day) -> (String, Result<Figures, String>) {
    super::on_a_paused_clock(async {
        let mut stage = Stage::new(day);
        let begun = stage.world.clock.now();
        for (at, op) in &day.ops {
            stage.until(begun + *at).await;
            stage.carry_out(op);
        }
        stage.finish(day).await;
        (stage.world.story(), check(day, &stage.world, &stage.excuses))
    })
}

fn smallest(mut day: Day) -> Day {
    let mut nth = 0;
    while nth < day.ops.len() {
        let mut fewer = day.clone();
        fewer.ops.remove(nth);
        if play(&fewer).1.is_err() { day = fewer } else { nth += 1 }
    }
    day
}

fn days(faults: Faults) {
    let (runs, first) = (number("SIM_RUNS", super::RUNS), number("SIM_SEED", 1));
    let mut worst = Figures::default();
    for seed in first..first + runs {
        let day = Day::draw(seed, faults);
        match play(&day).1 {
            Ok(figures) => {
                worst = Figures {
                    jobs: worst.jobs + figures.jobs,
                    starts: worst.starts + figures.starts,
                    calls: worst.calls + figures.calls,
                    tasks: worst.tasks + figures.tasks,
                    short: worst.short.max(figures.short),
                    idle: worst.idle.max(figures.idle),
                }
            }
            Err(broken) => {
                let day = smallest(day);
                let (story, result) = play(&day);
                panic!("{faults:?}: {}\n{day:?}\n{story}", result.err().unwrap_or(broken));
            }
        }
    }
    #[expect(clippy::print_stdout, reason = "the figures of many runs, with --nocapture")]
    {
        let Figures { jobs, starts, short, idle, calls, tasks } = worst;
        println!(
            "{faults:?}: {runs} days of pools from seed {first}: {jobs} jobs, {starts} starts; longest time too few VMs \
             were up {} s, longest idle time {} s; {calls} calls, {tasks} tasks.create",
            short.as_secs(),
            idle.as_secs()
        );
    }
}

#[test]
fn days_of_pools_without_faults() {
    days(Faults::None);
}

#[test]
fn days_of_pools_with_outages() {
    days(Faults::Outage);
}

#[test]
fn days_of_pools_with_everything() {
    days(Faults::All);
}

/// A burst came while the claim of a start that had failed was not over. All its jobs shared one pass, of the VM that was
/// up; once the first of them was over, nothing tried the other VM for the rest.
#[test]
fn a_burst_after_a_failed_start_brings_up_the_pool() {
    let burst = |repo, jobs, runs| Op::Burst { repo, jobs, runs: seconds(runs) };
    let day = Day {
        seed: 1_712,
        faults: Faults::Outage,
        pools: [vec![0, 1], vec![1, 3]],
        twins: false,
        inactive: 15,
        ops: vec![
            (seconds(14_693), burst(0, 7, 28)),
            (seconds(14_753), burst(0, 1, 3_860)),
            (seconds(17_570), Op::Stockout { zone: 0, span: seconds(2_760) }),
            (seconds(17_655), Op::Stockout { zone: 1, span: seconds(2_700) }),
            (seconds(19_050), burst(1, 7, 11)),
            (seconds(19_217), burst(1, 7, 582)),
            (seconds(19_351), burst(0, 1, 33)),
        ],
    };
    let (story, result) = play(&day);
    assert!(result.is_ok(), "{result:?}\n{story}");
}
