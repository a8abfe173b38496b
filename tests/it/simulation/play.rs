//! Plays a day: runs its operations, and makes calls, responses and callbacks fail.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::StatusCode;
use runner_manager::clock::Timestamp;
use runner_manager::emulators::github::{JobStatus, Permission, Runner, Scope, TokenRefusal};
use runner_manager::emulators::{Api, ErrorBody, Fault, compute, github};

use super::checks::{self, Bounds, Excuse, Figures, MISTYPED};
use super::day::{Day, Dice, Op, Profile, RunnerIs};
use crate::world::{SECRET, World, ZONE, fleet, minutes, runner, seconds};

/// The visible events of a day, and its result. The same day gives the same twice.
pub(super) async fn play(day: &Day) -> (String, Result<Figures, String>) {
    let mut stage = Stage::new(day);
    for (at, op) in &day.ops {
        stage.until(stage.begun + *at).await;
        stage.carry_out(op).await;
    }
    stage.finish().await;
    let story = stage.world.story();
    let Stage { world, excuses, most_tasks, broken_resync, .. } = stage;
    let result = checks::check(&world, Bounds::of(day), &excuses, most_tasks);
    (story, broken_resync.map_or(result, Err))
}

/// The end of an operation that lasts.
type Ending = Box<dyn FnOnce(&mut World)>;

struct Stage {
    world: World,
    runner: RunnerIs,
    /// RUNNER_CONFIG.
    config: String,
    inactive: u64,
    begun: Timestamp,
    agenda: BTreeMap<(Timestamp, usize), Ending>,
    order: usize,
    excuses: Vec<(Timestamp, Excuse)>,
    most_tasks: usize,
    /// The time of the next resync, if the profile has them.
    next_resync: Option<Timestamp>,
    /// A resync's response that should not have been given.
    broken_resync: Option<String>,
    /// The number of API calls until the service vanishes; below zero it does not.
    crash: Arc<AtomicI64>,
    crash_with_effect: Arc<AtomicBool>,
}

impl Stage {
    fn new(day: &Day) -> Self {
        let runner = RunnerIs::draw(day.seed);
        let config = config(runner, day.drains());
        let world = World::inactive_for(day.inactive, config.clone());
        world.cloud.github.remove_runner("runner-1");
        runner.register(&world);
        let mut dice = Dice::new(day.seed ^ 0xfa17);
        set_the_scene(&world, day.profile, &mut dice);
        let crash = Arc::new(AtomicI64::new(-1));
        let begun = world.clock.now();
        // With a runner under an unknown name and jobs that cannot be read, a VM is left up for a day.
        let blind = day.profile == Profile::Permission && runner == RunnerIs::NamedOtherwise;
        let excuses = if blind { vec![(begun, Excuse::Unseen("runner-1"))] } else { Vec::new() };
        let stage = Self {
            world,
            runner,
            config,
            inactive: day.inactive,
            begun,
            agenda: BTreeMap::new(),
            order: 0,
            excuses,
            most_tasks: 0,
            next_resync: (day.profile == Profile::Resyncs).then(|| begun + minutes(1)),
            broken_resync: None,
            crash,
            crash_with_effect: Arc::default(),
        };
        stage.let_calls_fail(day.profile, dice);
        stage
    }

    /// Makes one call in sixteen fail on a day of losses. At one of them the service vanishes. If labels are stale,
    /// another team may be quicker to write one.
    fn let_calls_fail(&self, profile: Profile, dice: Dice) {
        let (crash, with_effect) = (Arc::clone(&self.crash), Arc::clone(&self.crash_with_effect));
        let service = self.world.service();
        let dice = Mutex::new(dice);
        let compute = self.world.cloud.compute.clone();
        let quicker = Mutex::new(0);
        // The webhook is not the App's own: its deliveries cannot be requested again.
        let not_the_apps = profile == Profile::Resyncs && dice.lock().unwrap().chance(50);
        self.world.cloud.faults.on(move |call| {
            let mut dice = dice.lock().unwrap();
            if profile.is_stale() && call.method == "instances.setLabels" {
                let mut in_a_row = quicker.lock().unwrap();
                *in_a_row = if *in_a_row < 2 && dice.chance(20) { *in_a_row + 1 } else { 0 };
                if let (1.., Some(vm)) = (*in_a_row, call.target.rsplit('/').nth(1)) {
                    compute.label_by_hand(vm, "team", Some(&dice.roll().to_string()));
                }
            }
            if not_the_apps && call.method == "apps.getWebhookConfigForApp" {
                return Some(Fault::Before(StatusCode::NOT_FOUND, ErrorBody::Api));
            }
            if crash.load(Ordering::Relaxed) >= 0 && crash.fetch_sub(1, Ordering::Relaxed) == 0 {
                service.vanish();
                return Some(if with_effect.load(Ordering::Relaxed) {
                    Fault::Lost
                } else {
                    Fault::Hang
                });
            }
            if !profile.loses() || !dice.chance(6) {
                return None;
            }
            Some(a_fault(&mut dice, call.api))
        });
    }

    /// Lets time pass until `time`, and ends each operation that lasts when it should.
    async fn until(&mut self, time: Timestamp) {
        loop {
            let next =
                self.agenda.first_key_value().map(|((at, _), _)| *at).filter(|at| *at <= time);
            let stop = next.unwrap_or(time);
            while self.world.clock.now() < stop {
                let left = stop.since(self.world.clock.now());
                self.pass(left.min(minutes(1))).await;
                self.most_tasks = self.most_tasks.max(most_tasks_of_a_vm(&self.world));
            }
            match next {
                Some(_) => {
                    if let Some((_, end)) = self.agenda.pop_first() {
                        end(&mut self.world);
                    }
                }
                None => return,
            }
        }
    }

    /// Lets time pass, with a resync when it is due.
    async fn pass(&mut self, span: Duration) {
        let now = self.world.clock.now();
        let Some(due) = self.next_resync.filter(|due| *due <= now) else {
            return self.world.pass(span).await;
        };
        self.next_resync = Some(due + minutes(5));
        let service = self.world.service();
        let (answer, ()) = tokio::join!(service.resync(), self.world.pass(span));
        if let Some((status, body)) = answer {
            let body = String::from_utf8_lossy(&body);
            if status != StatusCode::OK || body.contains(SECRET) {
                self.broken_resync = Some(format!("{now}: a resync was answered {status}: {body}"));
            }
        }
    }

    fn later(&mut self, span: Duration, end: impl FnOnce(&mut World) + 'static) {
        self.order += 1;
        self.agenda.insert((self.world.clock.now() + span, self.order), Box::new(end));
    }

    fn excuse(&mut self, span: Duration, excuse: fn(bool) -> Excuse) {
        let now = self.world.clock.now();
        self.excuses.push((now, excuse(true)));
        self.excuses.push((now + span, excuse(false)));
    }

    async fn carry_out(&mut self, op: &Op) {
        let now = self.world.clock.now();
        let cloud = self.world.cloud.clone();
        let words = |labels: &str| labels.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        match op {
            Op::Job { repo, labels, runs } => {
                _ = cloud.github.queue_job(repo, words(labels), *runs)
            }
            Op::Matrix { repo, jobs, runs } => {
                cloud.github.queue_run(repo, vec![(words("self-hosted"), *runs); *jobs]);
            }
            Op::StaleWaiting { repo, runs } => {
                let job = cloud.github.queue_waiting_job(repo, words("self-hosted"), *runs);
                cloud.github.approve_silently(job);
            }
            Op::Review { repo, approved_after, runs } => {
                let job = cloud.github.queue_waiting_job(repo, words("self-hosted"), *runs);
                self.later(*approved_after, move |world| {
                    if world.cloud.github.job(job).status == JobStatus::Waiting {
                        world.cloud.github.approve(job);
                    }
                });
            }
            Op::Cancel { nth_latest } => {
                let jobs = cloud.github.jobs();
                let open = jobs
                    .iter()
                    .rev()
                    .filter(|job| !job.stuck)
                    .nth(*nth_latest)
                    .filter(|job| job.status != JobStatus::Completed);
                if let Some(job) = open {
                    cloud.github.cancel_job(job.id);
                }
            }
            Op::Start { vm } => {
                self.excuses.push((now, Excuse::StartedByHand(vm)));
                self.world
                    .command("/runner/start", &format!(r#"{{"vm_instance_name": "{vm}"}}"#))
                    .await;
            }
            Op::Stop { vm } => {
                self.excuses.push((now, Excuse::StoppedByHand(vm)));
                self.world
                    .command("/runner/stop", &format!(r#"{{"vm_instance_name": "{vm}"}}"#))
                    .await;
            }
            Op::Hold { vm, span } => {
                let vm = *vm;
                cloud.compute.label_by_hand(vm, "runner-manager-hold", Some("simulated"));
                self.excuses.push((now, Excuse::Held(vm, true)));
                // A held VM's next pass is up to a quarter of an hour later.
                self.excuses.push((now + *span + minutes(5), Excuse::Held(vm, false)));
                self.later(*span, move |world| {
                    world.cloud.compute.label_by_hand(vm, "runner-manager-hold", None);
                });
            }
            Op::Label { vm } => cloud.compute.label_by_hand(vm, "team", Some("infra")),
            Op::Deploy => self.world.service().replace(),
            Op::Misdeploy { span } => {
                let (vm, service) = ("runner-1", self.world.service());
                service.deploy(self.config.replace(vm, MISTYPED));
                self.excuses.push((now, Excuse::Unconfigured(vm, true)));
                // Passes are ever further apart while no entry names the VM: the next takes as long as all before.
                self.excuses.push((now + 2 * *span + minutes(15), Excuse::Unconfigured(vm, false)));
                let config = self.config.clone();
                self.later(*span, move |_| service.deploy(config));
            }
            Op::Vanish => self.world.crash(),
            Op::Crash { at_call, with_effect } => {
                self.crash_with_effect.store(*with_effect, Ordering::Relaxed);
                self.crash.store(i64::from(*at_call), Ordering::Relaxed);
            }
            Op::LoseWebhooks { count } => cloud.github.lose_next_webhook(*count),
            Op::Redeliver => {
                if let Some(last) = cloud.github.deliveries().last() {
                    cloud.github.redeliver(&last.guid);
                }
            }
            Op::DoubleCallback => cloud.tasks.duplicate_next(),
            Op::Preempt { vm } if cloud.compute.status(vm) == compute::Status::Running => {
                cloud.compute.preempt(vm)
            }
            Op::StopInConsole { vm } if cloud.compute.status(vm) == compute::Status::Running => {
                cloud.compute.stop_by_hand(vm);
            }
            Op::SuspendInConsole { vm } if cloud.compute.status(vm) == compute::Status::Running => {
                cloud.compute.suspend_by_hand(vm);
            }
            Op::Preempt { .. } | Op::StopInConsole { .. } | Op::SuspendInConsole { .. } => {}
            Op::RunnerGone { span } => {
                let name = self.runner.name();
                if is_registered(&self.world, name) {
                    cloud.github.remove_runner(name);
                    let is = self.runner;
                    self.later(*span, move |world| is.register(world));
                }
            }
            Op::Forgotten => {
                let down = cloud.compute.status("gpu-1") == compute::Status::Terminated;
                if down && is_registered(&self.world, "gpu-1") {
                    cloud.github.remove_runner("gpu-1");
                }
            }
            Op::Stockout { span } => {
                cloud.compute.stockout(ZONE, true);
                self.excuse(*span, Excuse::Stockout);
                self.later(*span, |world| world.cloud.compute.stockout(ZONE, false));
            }
            Op::GitHubDown { span } => {
                cloud.github.outage(true);
                self.excuse(*span, Excuse::GitHubDown);
                self.later(*span, |world| world.cloud.github.outage(false));
            }
            Op::RateLimit { span } => {
                cloud.github.rate_limited(true);
                self.excuse(*span, Excuse::GitHubDown);
                self.later(*span, |world| world.cloud.github.rate_limited(false));
            }
            Op::SearchIndexDown { span } => {
                cloud.github.search_index_down(true);
                self.excuse(*span, Excuse::GitHubDown);
                self.later(*span, |world| world.cloud.github.search_index_down(false));
            }
            Op::StuckJob { vm } => {
                let (name, labels) = match *vm {
                    "gpu-1" => ("gpu-1", "self-hosted gpu"),
                    _ => (self.runner.name(), "self-hosted"),
                };
                let since = now - minutes(6 * 24 * 60);
                cloud.github.stuck_job("acme/app", words(labels), Some(name), since);
            }
            Op::NewTokensRefused { span, forbidden } => {
                let refusal =
                    if *forbidden { TokenRefusal::Forbidden } else { TokenRefusal::Unauthorized };
                cloud.github.new_tokens_refused_for(*span, refusal);
                cloud.github.revoke_tokens();
            }
            Op::RevokeTokens => cloud.github.revoke_tokens(),
            Op::Glitch { vm, span } => {
                let name = if *vm == "runner-1" { self.runner.name() } else { *vm };
                glitch(&self.world, name, true);
                self.later(*span, move |world| glitch(world, name, false));
            }
        }
    }

    /// Ends the day: operations that last end, faults stop, and the world settles.
    async fn finish(&mut self) {
        let last = self.agenda.last_key_value().map(|((at, _), _)| *at);
        self.until(last.unwrap_or(self.begun).max(self.world.clock.now()) + minutes(10)).await;
        self.crash.store(-1, Ordering::Relaxed);
        self.world.cloud.faults.off();
        self.world.cloud.tasks.lateness(Duration::ZERO);
        self.world.cloud.github.lateness_by(|_| Duration::ZERO);
        self.world.cloud.github.lose_webhooks_by(|_| false);
        let resyncs = self.next_resync.is_some();
        if !resyncs {
            // Jobs whose webhook was lost are not promised anything; a user would start them again.
            let accepted = checks::accepted(&self.world.history());
            for job in self.world.cloud.github.jobs() {
                if job.status != JobStatus::Completed
                    && !job.stuck
                    && !accepted.contains_key(&job.id)
                {
                    self.world.cloud.github.cancel_job(job.id);
                }
            }
        }
        let end = self.world.clock.now() + minutes(40 * 60 + 2 * self.inactive);
        let is_over = |world: &World| {
            let waits = |world: &World| {
                let jobs = world.cloud.github.jobs();
                jobs.iter().any(|job| job.status != JobStatus::Completed && !job.stuck)
            };
            world.is_quiet() && !(resyncs && waits(world))
        };
        while !is_over(&self.world) && self.world.clock.now() < end {
            self.pass(minutes(5)).await;
        }
    }
}

impl RunnerIs {
    fn name(self) -> &'static str {
        match self {
            Self::NamedAsItsVm | Self::InTheOrganization => "runner-1",
            Self::NamedInTheEntries | Self::NamedOtherwise => "build-7",
        }
    }

    fn register(self, world: &World) {
        let runner = |repo| runner(self.name(), repo, "self-hosted linux x64").on("runner-1");
        match self {
            Self::InTheOrganization => {
                let scope = Scope::Organization("acme".into());
                world.cloud.github.add_runner(Runner { scope, ..runner("acme/app") });
            }
            _ => ["acme/app", "acme/web"].into_iter().for_each(|repo| {
                world.cloud.github.add_runner(runner(repo));
            }),
        }
    }
}

fn config(runner: RunnerIs, drains: bool) -> String {
    let gpu = r#""vm_instance_name": "gpu-1""#;
    let drain = if drains { r#", "drain": true"# } else { "" };
    let fleet = fleet("").replace(gpu, &format!(r#"{gpu}, "register": "repository"{drain}"#));
    match runner {
        RunnerIs::NamedInTheEntries => {
            let entry = r#""vm_instance_name": "runner-1""#;
            fleet.replace(entry, &format!(r#"{entry}, "runner_names": ["build-*"]"#))
        }
        _ => fleet,
    }
}

fn set_the_scene(world: &World, profile: Profile, dice: &mut Dice) {
    let cloud = &world.cloud;
    cloud.github.permit(Permission::Registration);
    cloud.guests.register_at_boot("gpu-1", ZONE, "https://service.example");
    let slow = profile.breaks_down() && dice.chance(10);
    let boot = seconds(if slow { 240 } else { dice.between(15, 90) });
    cloud.compute.timings(compute::Timings {
        boot,
        label_delay: seconds(if profile.is_stale() { dice.between(0, 3) } else { 0 }),
        ..cloud.compute.current_timings()
    });
    let busy_lag = seconds(if profile.is_stale() { dice.between(0, 60) } else { 0 });
    cloud.github.timings(github::Timings { busy_lag, ..cloud.github.current_timings() });
    if profile.loses() {
        // They overtake one another.
        let (slowest, mut late) = (dice.between(0, 60), dice.clone());
        cloud.github.lateness_by(move |_| seconds(late.between(0, slowest)));
        if profile == Profile::Resyncs {
            let mut lost = dice.clone();
            cloud.github.lose_webhooks_by(move |_| lost.chance(30));
        }
        let mut late = dice.clone();
        cloud.tasks.lateness_by(move |_| {
            seconds(if late.chance(5) { late.between(10, 180) } else { late.between(0, 2) })
        });
    }
    if profile == Profile::Permission {
        match dice.between(0, 3) {
            0 => cloud.compute.forbid("compute.instances.setLabels"),
            1 => cloud.github.forbid(Permission::Actions),
            2 => {
                cloud.github.forbid(Permission::Administration);
                cloud.github.forbid(Permission::OrgRunners);
            }
            _ => cloud.compute.forbid("compute.zoneOperations.list"),
        }
    }
}

pub(super) fn a_fault(dice: &mut Dice, api: Api) -> Fault {
    match dice.between(0, 8) {
        0 => Fault::Before(StatusCode::SERVICE_UNAVAILABLE, ErrorBody::Html),
        1 => Fault::Before(StatusCode::INTERNAL_SERVER_ERROR, ErrorBody::Api),
        2 => Fault::Before(StatusCode::TOO_MANY_REQUESTS, ErrorBody::Api),
        3 if api == Api::Compute => {
            Fault::Before(StatusCode::FORBIDDEN, ErrorBody::Reason("rateLimitExceeded".into()))
        }
        3 => Fault::Before(StatusCode::BAD_GATEWAY, ErrorBody::Truncated),
        4 => Fault::After(StatusCode::SERVICE_UNAVAILABLE),
        5 => Fault::Delay(seconds(dice.between(1, 4))),
        6 => Fault::Late(seconds(dice.between(1, 4))),
        7 => Fault::Hang,
        _ => Fault::Lost,
    }
}

fn is_registered(world: &World, name: &str) -> bool {
    world.cloud.github.runners().iter().any(|runner| runner.name == name)
}

fn glitch(world: &World, name: &str, on: bool) {
    if is_registered(world, name) {
        world.cloud.github.busy_glitch(name, on);
    }
}

fn most_tasks_of_a_vm(world: &World) -> usize {
    let pending = world.cloud.tasks.pending();
    let of = |vm: &str| pending.iter().filter(|task| task.body["vm_instance_name"] == vm).count();
    of("runner-1").max(of("gpu-1"))
}
