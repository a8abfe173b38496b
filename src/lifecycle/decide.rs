//! The rules of a pass: from the facts so far to the next question, or to the decision.
//!
//! No I/O and no clock. The driver in [`reconcile`](super::reconcile) asks what [`decide`] asks for, adds the answer to
//! the facts, and calls it again until it decides. Facts are asked for in order of their cost, and only as far as the
//! decision needs them. Tasks, operators, the resync and the status page go by the same rules; [`Asker`] names the few
//! that differ.
//!
//! A rule either lets the next one apply, or ends the dialogue with a [`Step`]: `?` reads as "unless that settles it".

use std::collections::BTreeMap;
use std::time::Duration;

use super::demand::{Demand, JobState, RunnerState, RunsOn};
use super::outcome::Status;
use super::pool::Availability;
use super::scan::Coverage;
use super::schedule::{
    BOOT_ALLOWANCE, BUCKET, DAY, HOUR, IdleSince, MINUTE, PASS_INTERVAL, due_after_stop,
    due_before, next_interval, rounded_up, schedule_base, usual_due,
};
use super::task::{Evidence, JobRef, Source, Task};
use super::vm::{Phase, VmSnapshot};
use crate::clock::Timestamp;
use crate::fleet::{Fleet, ManagedVm, Vm};

/// The requester of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asker {
    /// A task that is due. Every rule applies.
    Task,
    /// An operator who wants the VM stopped: its past, a hold and confirmation do not count.
    Operator,
    /// An operator who wants the VM stopped whatever runs on it.
    Force,
    /// The resync or the status page, without a task: earlier passes are not known, and nothing is done.
    Observer,
}

/// The facts about a VM, as far as they are known.
#[derive(Clone, Debug)]
pub(super) struct Facts<'a> {
    pub(super) asker: Asker,
    pub(super) now: Timestamp,
    /// The time that a VM stays up after its last job.
    pub(super) inactive: Duration,
    pub(super) fleet: &'a Fleet,
    /// The settings of the VM.
    pub(super) managed: &'a ManagedVm,
    /// Labels are known not to be writable, or the service just tried.
    pub(super) label_settled: bool,
    pub(super) task: &'a Task,
    pub(super) vm: VmSnapshot,
    /// The job in evidence.
    pub(super) job: Option<JobState>,
    pub(super) runner: Option<RunnerState>,
    pub(super) demand: Option<Demand>,
    /// The VMs of its pools, itself included.
    pub(super) pool: Option<BTreeMap<Vm, Availability>>,
}

impl Facts<'_> {
    /// The VM was needed since the task was created.
    fn is_superseded(&self) -> bool {
        let label = self.vm.idle_since;
        let started_since = label.is_some_and(|label| self.vm.boot_allowance_ends(label).is_some());
        self.asker == Asker::Task && self.task.is_superseded_by(label, started_since)
    }
}

/// The next step of a pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Ask(Question),
    Do(Box<Decision>),
}

/// A fact that the decision needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// Not a question: the label is to be brought up to the task's `idle_since`.
    WriteIdleSince,
    Job,
    Runner,
    /// The open jobs.
    Jobs,
    /// The VMs of its pools.
    Pool,
}

/// The result of a pass: an action, its evidence, and the next pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) status: Status,
    /// The evidence.
    pub(super) because: String,
    pub(super) action: Action,
    /// The next pass and its due time. A pass without one ends.
    pub(super) next: Option<(Task, Timestamp)>,
    /// Jobs that are given up on from now on: they belong into the VM's label.
    pub(super) given_up: Vec<u64>,
    /// Jobs that other VMs have to be told of: each gets a pass.
    pub(super) tell: Vec<(Vm, JobRef)>,
    /// Jobs for which other VMs of the pool have to come up: each is claimed, and gets a pass.
    pub(super) hand_on: BTreeMap<Vm, JobRef>,
    pub(super) notices: Vec<Notice>,
}

/// The change of the VM, made once the next pass was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    Start,
    Stop,
    /// It is up without a runner: it is stopped, and started again for the job that waits.
    Restart,
}

/// Something that an operator has to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Notice {
    Warning(String),
    Error(String),
}

/// The time after which a VM is stopped although both sources are forbidden.
const BLIND_LIMIT: Duration = DAY;

/// The time for which an operator's start is tried.
const OPERATOR_LIMIT: Duration = DAY;

/// While a VM is down and the job in evidence is not queued yet, passes ask GitHub about that job only, for this long.
/// Then they read the lists again, since the passes of two such jobs may have merged.
const ALONE_LIMIT: Duration = HOUR;

/// The longest time between a pass that found the VM idle by one source and the pass that confirms it.
const CONFIRMATION_LIMIT: Duration = Duration::from_secs(2 * MINUTE.as_secs());

/// The next step for these facts.
pub(super) fn decide(facts: &Facts<'_>) -> Step {
    let mut pass = Pass::new(facts);
    pass.rules().unwrap_or_else(|step| step)
}

/// The earliest time at which the VM may be stopped if nothing needs it.
pub(super) fn stop_after(facts: &Facts<'_>) -> Timestamp {
    Pass::new(facts).stop_after()
}

/// A rule's result: the rules after it apply, or it settles the next step.
type Rule<T = ()> = Result<T, Step>;

/// The meaning of the job in evidence for the VM.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Carried {
    /// There is none, or it no longer needs this VM.
    Nothing,
    /// It is queued for the VM, with these labels.
    Queued(JobRef),
    /// It will be queued once something else is over.
    Pending(JobRef),
}

/// The sources by which a VM is idle.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Basis {
    BothSources,
    /// The other one is refused.
    OneSource(String),
    /// Both, but the jobs were read in several passes: one may have begun in between.
    SeveralPasses,
    /// Both have been refused for a day.
    Neither(String),
}

/// The facts, and what the next pass has to know.
struct Pass<'a> {
    facts: &'a Facts<'a>,
    next: Task,
    given_up: Vec<u64>,
    tell: Vec<(Vm, JobRef)>,
    hand_on: BTreeMap<Vm, JobRef>,
    notices: Vec<Notice>,
}

impl<'a> Pass<'a> {
    fn new(facts: &'a Facts<'a>) -> Self {
        let task = facts.task;
        // The next pass gets these only if this pass finds them again.
        let next = Task {
            refused: Vec::new(),
            confirming_at: None,
            cursor: None,
            lost_since: None,
            unavailable_since: None,
            unconfigured_since: None,
            resync: false,
            idle_since: Some(
                facts.vm.idle_since.max(task.idle_since).unwrap_or(IdleSince::BEFORE_ALL),
            ),
            // Kept only while the VM is down and no newer event has superseded the task: otherwise the lists have to be
            // read again.
            pending_since: task
                .pending_since
                .filter(|_| facts.vm.phase.is_down() && !facts.is_superseded()),
            // A task that was run by hand long before it was due has used up its name: this time makes those of its
            // follow-ups new.
            run_early_at: if task.due > facts.now + PASS_INTERVAL {
                Some(facts.now)
            } else {
                task.run_early_at
            },
            ..task.clone()
        };
        Self {
            facts,
            next,
            given_up: Vec::new(),
            tell: Vec::new(),
            hand_on: BTreeMap::new(),
            notices: Vec::new(),
        }
    }

    /// The rules in their order, numbered as in the module's documentation.
    fn rules(&mut self) -> Rule<Step> {
        self.bring_label_up_to_date()?;
        self.superseded()?;
        self.hand_on_while_busy()?;
        self.not_idle_long_enough()?;
        self.in_transition()?;
        let carried = self.evidence()?;
        self.kept_up(&carried)?;
        let runner = self.runner()?;
        let demand = self.demand(runner, &carried)?;
        self.needed(runner, demand, &carried)?;
        if self.is_up() {
            let basis = self.known_to_be_idle(runner, demand)?;
            self.observed_to_be_kept_up()?;
            self.idle_since_a_moment_ago()?;
            self.confirmed(basis)?;
            Ok(self.stop("nothing needs it"))
        } else {
            Ok(self.down_and_not_needed(demand, &carried))
        }
    }

    // 1. The VM, and whether the task is the latest.

    /// A crash came between the pass and the label of its event.
    fn bring_label_up_to_date(&self) -> Rule {
        let Facts { task, vm, .. } = self.facts;
        let is_behind = task.idle_since > vm.idle_since
            && task.idle_since > Some(IdleSince::BEFORE_ALL)
            && !task.unmarked;
        if self.is_task() && is_behind && !self.facts.label_settled {
            return Err(Step::Ask(Question::WriteIdleSince));
        }
        Ok(())
    }

    /// The VM was needed since, so another pass is pending. A job in evidence that still waits is handed on to it.
    fn superseded(&mut self) -> Rule {
        if !self.facts.is_superseded() {
            return Ok(());
        }
        let Some(Evidence::Job(job)) = self.facts.task.evidence() else {
            return Err(self.end(Status::Superseded, "the VM was needed since"));
        };
        match self.job()? {
            JobState::Queued(_) if !self.is_given_up(job.id) => Ok(()),
            JobState::Pending if !job.has_expired(self.now()) => Ok(()),
            JobState::Unavailable(because) => {
                let because = format!("{job} could not be queried ({because})");
                Err(if self.is_up() {
                    self.requeue_in_an_interval(Status::Unknown, because)
                } else {
                    self.start(because)
                })
            }
            JobState::Running(RunsOn::Elsewhere(Some(other))) | JobState::ForAnother(other) => {
                self.tell(other, job);
                Err(self.end(Status::Superseded, "the VM was needed since"))
            }
            _ => Err(self.end(Status::Superseded, format!("{job} no longer waits"))),
        }
    }

    // 2. Before `stop_after` nothing has to be known.

    fn not_idle_long_enough(&mut self) -> Rule {
        if self.is_task() && self.is_up() && self.now() < self.stop_after() {
            return Err(self.wait_until_stop_after("it was needed not long ago"));
        }
        Ok(())
    }

    fn stop_after(&self) -> Timestamp {
        let Facts { vm, inactive, .. } = self.facts;
        let idle_since = self.next.idle_since.unwrap_or(IdleSince::BEFORE_ALL);
        let ends = [Some(idle_since.time()), self.next.completed_at, self.next.idle_at];
        let idle_enough = ends.into_iter().flatten().max().map(|end| end + *inactive);
        idle_enough.max(vm.boot_allowance_ends(idle_since)).unwrap_or_default()
    }

    fn wait_until_stop_after(&mut self, because: &str) -> Step {
        let stop_after = self.stop_after();
        let because = match self.facts.asker {
            // The page shows the time beside it.
            Asker::Observer => because.to_owned(),
            _ => format!("{because}; it may be stopped at {}", stop_after.time_of_day()),
        };
        let due = due_before(self.base(), stop_after);
        self.requeue(due, Status::StopScheduled, because)
    }

    // 3. On its way down or up.

    fn in_transition(&mut self) -> Rule {
        let (asker, phase) = (self.facts.asker, self.facts.vm.phase);
        let status = match (asker, phase) {
            (_, Phase::Up) => return Ok(()),
            (Asker::Task | Asker::Observer, Phase::Stopped | Phase::Suspended) => return Ok(()),
            // An observer sees whether a job waits for it all the same.
            (Asker::Observer, _) => return Ok(()),
            (Asker::Operator | Asker::Force, Phase::Stopped | Phase::Suspended) => {
                let because = format!("it is {}", self.facts.vm.status());
                return Err(self.end(Status::AlreadyStopped, because));
            }
            (Asker::Force, Phase::Booting) => return Err(self.stop("an operator asked for it")),
            (Asker::Operator | Asker::Force, Phase::Leaving) => Status::AlreadyStopped,
            (Asker::Task, Phase::Leaving) => Status::Stopping,
            (Asker::Task | Asker::Operator, Phase::Booting) => Status::StopScheduled,
        };
        self.clear_unclaimed();
        let delay = if self.facts.task.evidence().is_some() { BUCKET } else { MINUTE };
        let because = format!("it is {}", self.facts.vm.status());
        Err(self.requeue(rounded_up(self.base() + delay), status, because))
    }

    // 4. The evidence.

    fn evidence(&mut self) -> Rule<Carried> {
        if self.facts.asker == Asker::Force {
            return Err(self.stop("an operator asked for it"));
        }
        let now = self.now();
        let job = match self.facts.task.evidence() {
            None => return Ok(Carried::Nothing),
            Some(Evidence::Operator(since)) => {
                let is_tried = !self.is_up() && now.since(since) < OPERATOR_LIMIT;
                if is_tried {
                    return Err(self.start("an operator asked for it"));
                }
                self.next.operator = None;
                return Ok(Carried::Nothing);
            }
            Some(Evidence::Job(job)) => job,
        };
        let up = self.is_up();
        match self.job()? {
            JobState::Running(runs_on) if up => self.running(&job, &runs_on),
            JobState::Running(RunsOn::Elsewhere(Some(other))) | JobState::ForAnother(other) => {
                self.tell(other, job);
                Ok(self.dropped())
            }
            JobState::Running(_) => Ok(self.dropped()),
            JobState::Queued(labels) => Ok(Carried::Queued(JobRef { labels, ..job })),
            JobState::Pending => self.pending(JobRef { queued_at: now, ..job }),
            JobState::Completed(at) => {
                self.next.completed_at = self.next.completed_at.max(at);
                Ok(self.dropped())
            }
            JobState::Gone(_) => Ok(self.dropped()),
            JobState::Unavailable(because) => {
                let because = format!("{job} could not be queried ({because})");
                Err(if up { self.unknown(because) } else { self.start(because) })
            }
            JobState::Forbidden(because) if up => {
                self.notices.push(Notice::Warning(because));
                Ok(self.dropped())
            }
            JobState::Forbidden(because) => {
                self.notices.push(Notice::Warning(because));
                Err(self.start(format!("{job} waited for it when it was last known")))
            }
        }
    }

    /// The VM is up, and the job in evidence runs.
    fn running(&mut self, job: &JobRef, runs_on: &RunsOn) -> Rule<Carried> {
        let here = match runs_on {
            RunsOn::Here => true,
            RunsOn::HereIfUnregistered => !self.runner_known_so_far()?.is_registered(),
            RunsOn::Elsewhere(_) => false,
        };
        if here {
            // Once that VM is deleted, the job waits from then on.
            self.next.job = Some(JobRef { queued_at: self.now(), ..job.clone() });
            return Err(self.busy(format!("{job} is running on it")));
        }
        if let RunsOn::Elsewhere(Some(other)) = runs_on {
            self.tell(other.clone(), job.clone());
        }
        Ok(self.dropped())
    }

    fn pending(&mut self, job: JobRef) -> Rule<Carried> {
        self.next.job = Some(job.clone());
        let is_alone = |since| self.now().since(since) < ALONE_LIMIT;
        if self.next.pending_since.is_some_and(is_alone) {
            let because = format!("{job} is not queued yet");
            return Err(self.requeue_in_an_interval(Status::StartScheduled, because));
        }
        self.next.pending_since = None;
        Ok(Carried::Pending(job))
    }

    /// Another VM runs the job, or the job is queued for another VM. Only a pass of that VM notices if the VM vanishes,
    /// so it gets one. The job's wait is counted from now.
    fn tell(&mut self, other: Vm, job: JobRef) {
        self.tell.push((other, JobRef { queued_at: self.now(), ..job }));
    }

    fn dropped(&mut self) -> Carried {
        (self.next.job, self.next.pending_since) = (None, None);
        Carried::Nothing
    }

    // 5. Held, or impossible to stop.

    fn kept_up(&mut self, carried: &Carried) -> Rule {
        let Facts { vm, managed, .. } = self.facts;
        if !self.is_task() || !self.is_up() {
            return Ok(());
        }
        if vm.is_held() {
            return Err(self.requeue_in_an_interval(Status::Held, vm.describe_hold()));
        }
        if vm.instance.has_local_ssd
            && !managed.stop.discard_local_ssd
            && *carried == Carried::Nothing
        {
            let because = "a stop would lose its local SSD: set \"discard_local_ssd\": true in its entry, or stop it \
                           by other means";
            // Logged ever less often, as a stop without effect is tried ever less often. The pass itself still comes
            // every five minutes, since the VM may vanish under a job.
            if self.next.stops.is_power_of_two() || self.next.stops == 0 {
                self.notices.push(Notice::Error(because.to_owned()));
            }
            self.next.stops = self.next.stops.saturating_add(1);
            return Err(self.requeue_in_an_interval(Status::StopScheduled, because));
        }
        Ok(())
    }

    // 6. Source one: the runner.

    fn runner(&mut self) -> Rule<&'a RunnerState> {
        let runner = self.runner_known_so_far()?;
        if let RunnerState::Forbidden(_) = runner {
            self.note_refusal(Source::Runner);
        }
        if let (RunnerState::Busy { because, offline }, true) = (runner, self.is_up()) {
            if *offline {
                let since = self.facts.task.lost_since.unwrap_or(self.now());
                self.next.lost_since = Some(since);
                if self.now().since(since) >= HOUR {
                    self.notices.push(Notice::Error(format!(
                        "{because}, but has been offline since {}: see on the VM whether the runner's service runs",
                        since.rfc3339()
                    )));
                }
            }
            // A job says more, where it is known already.
            let job = self.facts.demand.as_ref().and_then(|demand| demand.running.as_ref());
            let job = job.map(|job| format!("{job} is running on it"));
            return Err(self.busy(job.unwrap_or(because.clone())));
        }
        Ok(runner)
    }

    fn runner_known_so_far(&self) -> Rule<&'a RunnerState> {
        self.facts.runner.as_ref().ok_or(Step::Ask(Question::Runner))
    }

    // 7. Source two: the open jobs.

    /// Nothing if the runner could not be queried: another question would not be answered either.
    fn demand(&mut self, runner: &RunnerState, carried: &Carried) -> Rule<Option<&'a Demand>> {
        if matches!(runner, RunnerState::Unavailable(_)) {
            return Ok(None);
        }
        // A VM that is down is started for the job in evidence; the lists would only delay it.
        let jobs = self.jobs_that_count(runner, None, carried);
        if !self.is_up() && !jobs.is_empty() {
            let is_for_this_vm = self.place(&jobs)?.is_some();
            // Where another VM of the pool is free, it depends on how many jobs wait.
            if is_for_this_vm || !self.hand_on.is_empty() {
                return Ok(None);
            }
        }
        let Some(demand) = &self.facts.demand else { return Err(Step::Ask(Question::Jobs)) };
        if let Coverage::Forbidden(_) = demand.coverage {
            self.note_refusal(Source::Jobs);
        }
        self.notices.extend(demand.leftovers.iter().map(|job| {
            Notice::Warning(format!(
                "{job} has been running for more than 5 days according to GitHub, which ends jobs after that: it does \
                 not count"
            ))
        }));
        if let (Some(job), true) = (&demand.running, self.is_up()) {
            return Err(self.busy(format!("{job} is running on it")));
        }
        Ok(Some(demand))
    }

    // 8. Needed.

    fn needed(&mut self, runner: &RunnerState, demand: Option<&Demand>, carried: &Carried) -> Rule {
        self.track_unclaimed(runner, demand, carried);
        let jobs = self.jobs_that_count(runner, demand, carried);
        if jobs.is_empty() {
            return Ok(());
        }
        let Some(job) = self.place(&jobs)? else { return self.left_to_the_pool(jobs) };
        self.without_a_runner(&job, runner, demand)?;
        let because = format!("{job} is queued for it");
        (self.next.job, self.next.pending_since) = (Some(job), None);
        if let (false, Some(demand)) = (self.is_up(), demand) {
            self.tell.extend(demand.elsewhere.iter().map(|(vm, job)| (vm.clone(), job.clone())));
        }
        Err(self.start(because))
    }

    /// A drain removed the runner, and the VM was not stopped, or did not register it again at its boot.
    fn without_a_runner(
        &mut self,
        job: &JobRef,
        runner: &RunnerState,
        demand: Option<&Demand>,
    ) -> Rule {
        let Facts { managed, vm, now, .. } = self.facts;
        let is_read = demand.is_some_and(|demand| demand.coverage == Coverage::Complete);
        let has_none = matches!(runner, RunnerState::Idle(runners) if runners.is_empty());
        let started = vm.instance.last_start.unwrap_or_default();
        // Another boot would not help a job that waited at the last one already.
        let may_help = now.since(started) >= BOOT_ALLOWANCE && started < job.queued_at;
        let is_up = self.is_task() && self.is_up();
        if !(managed.stop.drain && is_up && has_none && is_read && may_help) {
            return Ok(());
        }
        let because =
            format!("{job} waits, and no runner of the VM is registered: it is restarted");
        self.next.job = Some(job.clone());
        let next = Some((self.next.clone(), rounded_up(self.base() + MINUTE)));
        Err(self.decision(Status::Stopping, because, Action::Restart, next))
    }

    /// The job in evidence and those found that are queued, fit the runner, and were not given up on.
    fn jobs_that_count(
        &self,
        runner: &RunnerState,
        demand: Option<&Demand>,
        carried: &Carried,
    ) -> Vec<JobRef> {
        let carried = match carried {
            Carried::Queued(job) => Some(job),
            Carried::Nothing | Carried::Pending(_) => None,
        };
        let found = demand.into_iter().flat_map(|demand| &demand.queued);
        let mut jobs = Vec::<JobRef>::new();
        for job in carried.into_iter().chain(found) {
            let counts = runner.fits(&job.labels) && !self.is_given_up(job.id);
            if counts && !jobs.iter().any(|known| known.id == job.id) {
                jobs.push(job.clone());
            }
        }
        jobs
    }

    fn is_given_up(&self, job: u64) -> bool {
        self.facts.vm.given_up.contains(&job) || self.next.unclaimed.is_given_up(job)
    }

    /// Notes which jobs are queued although the VM is free for them.
    fn track_unclaimed(
        &mut self,
        runner: &RunnerState,
        demand: Option<&Demand>,
        carried: &Carried,
    ) {
        if !self.is_up() {
            return self.clear_unclaimed();
        }
        let (RunnerState::Idle(_) | RunnerState::IdleElsewhere { .. }, Some(demand)) =
            (runner, demand)
        else {
            return;
        };
        let carried = match carried {
            Carried::Queued(job) => Some(job),
            Carried::Nothing | Carried::Pending(_) => None,
        };
        let fitting =
            carried.into_iter().chain(&demand.queued).filter(|job| runner.fits(&job.labels));
        let mut jobs = Vec::new();
        for job in fitting {
            if !jobs.contains(&job.id) {
                jobs.push(job.id);
            }
        }
        let (before, now) = (&self.facts.task.unclaimed, self.now());
        let after = match &demand.coverage {
            Coverage::Complete if self.facts.task.cursor.is_none() => before.saw_all(&jobs, now),
            Coverage::Complete | Coverage::Partial { resume: Some(_), .. } => {
                before.saw_some(&jobs, now)
            }
            Coverage::Partial { resume: None, .. } | Coverage::Forbidden(_) => return,
        };
        let newly = |job: &u64| after.is_given_up(*job) && !self.facts.vm.given_up.contains(job);
        let newly: Vec<u64> = jobs.into_iter().filter(newly).collect();
        for job in &newly {
            self.notices.push(Notice::Warning(format!(
                "job {job} has been queued for an hour while the VM was free for it: it no longer counts; see \
                 which runner group and labels it asks for"
            )));
        }
        self.given_up = newly;
        self.next.unclaimed = after;
    }

    fn clear_unclaimed(&mut self) {
        self.next.unclaimed = self.facts.task.unclaimed.cleared();
    }

    // 9. Down, and nothing needs it.

    fn down_and_not_needed(&mut self, demand: Option<&Demand>, carried: &Carried) -> Step {
        let status = self.facts.vm.status();
        let Some(demand) = demand else {
            let because = match &self.facts.runner {
                Some(RunnerState::Unavailable(because)) => because.as_str(),
                _ => "its runner could not be queried",
            };
            let because = format!("it is {status}; GitHub could not be queried ({because})");
            self.note_unavailable(&because);
            return self.requeue_in_an_interval(Status::Unknown, because);
        };
        self.tell.extend(demand.elsewhere.iter().map(|(vm, job)| (vm.clone(), job.clone())));
        let pending = match carried {
            Carried::Pending(job) => Some(job),
            Carried::Nothing | Carried::Queued(_) => demand.pending.as_ref(),
        };
        self.next.job = pending.cloned();
        if let Coverage::Partial { because, resume } = &demand.coverage {
            let because = format!("it is {status}; the open jobs were not all read ({because})");
            self.note_unavailable(&because);
            if resume.is_some() {
                self.next.cursor.clone_from(resume);
                return self.requeue(rounded_up(self.base() + BUCKET), Status::Unknown, because);
            }
            return self.requeue_in_an_interval(Status::Unknown, because);
        }
        let refusal = match (&self.facts.runner, &demand.coverage) {
            (_, Coverage::Forbidden(because)) if self.refused_only_now(Source::Jobs) => {
                Some(because)
            }
            (Some(RunnerState::Forbidden(because)), _) if self.refused_only_now(Source::Runner) => {
                Some(because)
            }
            _ => None,
        };
        if let Some(because) = refusal {
            let because = format!("it is {status}; {because}");
            return self.requeue_in_an_interval(Status::Unknown, because);
        }
        if let Some(job) = &demand.running {
            // It waits as soon as GitHub notices that its runner is gone.
            self.next.job = Some(JobRef { queued_at: self.now(), ..job.clone() });
            let because = format!("it is {status}, but GitHub shows {job} running on it");
            return self.requeue_in_an_interval(Status::Busy, because);
        }
        if let Some(job) = pending {
            // From the next pass on, only this job is asked for.
            self.next.pending_since = Some(self.now());
            let because = format!("it is {status}; {job} is not queued yet");
            return self.requeue_in_an_interval(Status::StartScheduled, because);
        }
        self.end(Status::AlreadyStopped, format!("it is {status}, and nothing needs it"))
    }

    // 10. Up, and no source says that it is needed.

    /// Both sources, or the one that may be asked, were read to the end.
    fn known_to_be_idle(&mut self, runner: &RunnerState, demand: Option<&Demand>) -> Rule<Basis> {
        let Some(demand) = demand else {
            let because = match runner {
                RunnerState::Unavailable(because) => because.as_str(),
                _ => "its runner was not queried",
            };
            return Err(self.unknown(format!("GitHub could not be queried ({because})")));
        };
        let jobs_refused = match &demand.coverage {
            Coverage::Complete => None,
            Coverage::Partial { because, resume } => {
                let because = format!("the open jobs were not all read ({because})");
                let Some(cursor) = resume else { return Err(self.unknown(because)) };
                self.next.cursor = Some(cursor.clone());
                self.next.confirming_at = self.facts.task.confirming_at;
                let due = rounded_up(self.base() + BUCKET);
                return Err(self.requeue(due, Status::Unknown, because));
            }
            Coverage::Forbidden(because) => Some(because),
        };
        let runner_refused = match runner {
            RunnerState::Forbidden(because) => Some(because),
            _ => None,
        };
        for (refusal, source) in [(runner_refused, Source::Runner), (jobs_refused, Source::Jobs)] {
            if let Some(because) = refusal.filter(|_| self.refused_only_now(source)) {
                return Err(self.unknown(because.clone()));
            }
        }
        let basis = match (runner_refused, jobs_refused) {
            (Some(runner), Some(jobs)) => Basis::Neither(format!("{runner}; {jobs}")),
            // Without a registered runner, the lists of runners say nothing: a job may run on a runner of another name.
            (None, Some(jobs)) if !runner.is_registered() => {
                Basis::Neither(format!("no runner of its name is registered; {jobs}"))
            }
            // The same repository may have refused both its jobs and its runners.
            (None, Some(jobs)) if matches!(runner, RunnerState::IdleElsewhere { .. }) => {
                Basis::Neither(format!("a repository refuses its runners; {jobs}"))
            }
            (Some(because), None) | (None, Some(because)) => Basis::OneSource(because.clone()),
            (None, None) if self.facts.task.cursor.is_some() => Basis::SeveralPasses,
            (None, None) => Basis::BothSources,
        };
        if let Basis::Neither(because) = &basis {
            self.blind(because)?;
        } else {
            self.next.forbidden_since = None;
        }
        Ok(basis)
    }

    /// Both sources are forbidden, and later passes will learn no more until the permissions are granted.
    fn blind(&mut self, because: &str) -> Rule {
        let since = self.facts.task.forbidden_since.unwrap_or(self.now());
        self.next.forbidden_since = Some(since);
        if self.is_task() && self.now().since(since) >= BLIND_LIMIT {
            return Ok(());
        }
        self.notices.push(Notice::Warning(because.to_owned()));
        Err(self.usual(Status::Unknown, because))
    }

    /// A `completed` may be late, or lost: the VM stays up for a while after the last pass that saw it at work.
    fn idle_since_a_moment_ago(&mut self) -> Rule {
        let was_busy = self.next.busy_at.is_some_and(|busy| {
            self.next.idle_since.is_none_or(|idle_since| busy > idle_since.time())
        });
        if self.is_task() && was_busy && self.next.idle_at.is_none() {
            self.next.idle_at = Some(self.now());
            return Err(self.wait_until_stop_after("it is idle now"));
        }
        if matches!(self.facts.asker, Asker::Task | Asker::Observer)
            && self.now() < self.stop_after()
        {
            return Err(self.wait_until_stop_after("nothing needs it"));
        }
        Ok(())
    }

    /// For an observer, the phase and the hold are checked only here. For a task, earlier rules checked them before
    /// GitHub was asked.
    fn observed_to_be_kept_up(&mut self) -> Rule {
        let vm = &self.facts.vm;
        match self.facts.asker {
            Asker::Observer if vm.phase != Phase::Up => {
                Err(self.end(Status::StopScheduled, format!("it is {}", vm.status())))
            }
            Asker::Observer if vm.is_held() => Err(self.end(Status::Held, vm.describe_hold())),
            _ => Ok(()),
        }
    }

    /// One source alone, or a scan that took several passes, has to say so twice, a minute apart.
    fn confirmed(&mut self, basis: Basis) -> Rule {
        let because = match basis {
            Basis::BothSources => return Ok(()),
            Basis::OneSource(because) => {
                self.notices.push(Notice::Warning(because.clone()));
                because
            }
            Basis::SeveralPasses => {
                "nothing needs it, but the jobs were read in several passes".to_owned()
            }
            Basis::Neither(because) => {
                let error =
                    format!("neither source could be asked for a day, so it is stopped: {because}");
                self.notices.push(Notice::Error(error));
                return Ok(());
            }
        };
        let began = self.facts.task.cursor.as_ref().map_or(self.now(), |cursor| cursor.began);
        let confirms = |at: Timestamp| began > at && began.since(at) <= CONFIRMATION_LIMIT;
        if !self.is_task() || self.facts.task.confirming_at.is_some_and(confirms) {
            return Ok(());
        }
        self.next.confirming_at = Some(self.now());
        let due = rounded_up(self.base() + MINUTE);
        Err(self.requeue(due, Status::Confirming, because))
    }

    // Helpers of the rules.

    fn is_task(&self) -> bool {
        self.facts.asker == Asker::Task
    }

    fn now(&self) -> Timestamp {
        self.facts.now
    }

    fn base(&self) -> Timestamp {
        schedule_base(self.now(), self.facts.task.due)
    }

    /// It is running. For an observer, a VM that boots counts too.
    fn is_up(&self) -> bool {
        match self.facts.vm.phase {
            Phase::Up => true,
            Phase::Booting => self.facts.asker == Asker::Observer,
            Phase::Stopped | Phase::Suspended | Phase::Leaving => false,
        }
    }

    /// The state of the job in evidence. The first refusal of a pass counts as no answer.
    fn job(&mut self) -> Rule<JobState> {
        let Some(state) = &self.facts.job else { return Err(Step::Ask(Question::Job)) };
        match state {
            JobState::Forbidden(because) => {
                let first = self.refused_only_now(Source::Job);
                self.note_refusal(Source::Job);
                Ok(if first { JobState::Unavailable(because.clone()) } else { state.clone() })
            }
            state => Ok(state.clone()),
        }
    }

    fn note_refusal(&mut self, source: Source) {
        if !self.next.refused.contains(&source) {
            self.next.refused.push(source);
        }
    }

    /// No pass ends on a single refusal: a new installation token is refused for seconds.
    fn refused_only_now(&self, source: Source) -> bool {
        self.is_task() && !self.facts.task.refused.contains(&source)
    }

    fn busy(&mut self, because: String) -> Step {
        self.next.busy_at = Some(self.now());
        self.next.idle_at = None;
        self.next.forbidden_since = None;
        self.next.stops = 0;
        self.clear_unclaimed();
        self.usual(Status::Busy, because)
    }

    fn unknown(&mut self, because: String) -> Step {
        self.next.forbidden_since = None;
        self.note_unavailable(&because);
        self.usual(Status::Unknown, because)
    }

    /// GitHub could not be queried. After a day, this is hardly an outage that ends by itself.
    fn note_unavailable(&mut self, because: &str) {
        let since = self.facts.task.unavailable_since.unwrap_or(self.now());
        self.next.unavailable_since = Some(since);
        if self.now().since(since) >= DAY {
            let up = if self.is_up() { ", so it is not stopped" } else { "" };
            self.notices.push(Notice::Error(format!(
                "GitHub could not be queried since {}{up}: {because}",
                since.rfc3339()
            )));
        }
    }

    /// The VM has to be up: start it, if it is not.
    fn start(&mut self, because: impl Into<String>) -> Step {
        let status = if self.is_up() { Status::Busy } else { Status::Starting };
        (self.next.stops, self.next.idle_at) = (0, None);
        if !self.is_up() {
            self.clear_unclaimed();
        }
        let due = next_interval(self.base());
        let action = if self.is_up() { Action::Nothing } else { Action::Start };
        let next = Some((self.next.clone(), due));
        self.decision(status, because, action, next)
    }

    fn stop(&mut self, because: &str) -> Step {
        let due = self.count_stop();
        let next = Some((self.next.clone(), due));
        self.decision(Status::Stopping, because, Action::Stop, next)
    }

    /// Counts a stop; the due time of the pass after it.
    fn count_stop(&mut self) -> Timestamp {
        let due = due_after_stop(self.base(), self.facts.task.stops);
        self.next.stops = self.facts.task.stops.saturating_add(1);
        self.next.passes = 0;
        due
    }

    /// Requeues after the usual interval.
    fn usual(&mut self, status: Status, because: impl Into<String>) -> Step {
        let due = usual_due(self.base(), self.facts.task.passes);
        self.next.passes = self.facts.task.passes.saturating_add(1);
        self.requeue(due, status, because)
    }

    fn requeue_in_an_interval(&mut self, status: Status, because: impl Into<String>) -> Step {
        self.requeue(next_interval(self.base()), status, because)
    }

    fn requeue(&mut self, due: Timestamp, status: Status, because: impl Into<String>) -> Step {
        let next = Some((self.next.clone(), due));
        self.decision(status, because, Action::Nothing, next)
    }

    fn end(&mut self, status: Status, because: impl Into<String>) -> Step {
        self.decision(status, because, Action::Nothing, None)
    }

    fn decision(
        &mut self,
        status: Status,
        because: impl Into<String>,
        action: Action,
        next: Option<(Task, Timestamp)>,
    ) -> Step {
        Step::Do(Box::new(Decision {
            status,
            because: because.into(),
            action,
            next,
            given_up: std::mem::take(&mut self.given_up),
            tell: std::mem::take(&mut self.tell),
            hand_on: std::mem::take(&mut self.hand_on),
            notices: std::mem::take(&mut self.notices),
        }))
    }
}

mod pools;
#[cfg(test)]
mod tests;
