//! The rules of a pass: a table for each step, and every combination of abstract facts held against what must be true
//! of any decision.

mod every_combination;

use super::*;
use crate::clients::compute::{Instance, Labels, Status as InstanceStatus};
use crate::fleet::{Entry, Label, RunnerNames, StopOptions};
use crate::lifecycle::claim::Claim;
use crate::lifecycle::pool::{CanStart, Runners, Slot};
use crate::lifecycle::task::Cursor;
use crate::lifecycle::vm::{CLAIM_LABEL, GIVEN_UP_LABEL, HOLD_LABEL, IDLE_SINCE_LABEL};

/// Noon, a multiple of five minutes.
const NOW: u64 = 1_800_000_000;

const INACTIVE: Duration = Duration::from_secs(15 * 60);

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_unix_seconds(seconds)
}

fn ago(minutes: u64) -> Timestamp {
    at(NOW - 60 * minutes)
}

fn ahead(seconds: u64) -> Timestamp {
    at(NOW + seconds)
}

fn labels(text: &str) -> Vec<Label> {
    text.split_whitespace().map(Label::from).collect()
}

fn a_job(id: u64) -> JobRef {
    JobRef { repo: "acme/app".into(), id, queued_at: ago(90), labels: labels("self-hosted gpu") }
}

fn other_vm() -> Vm {
    Vm::new("other", "z")
}

fn registered() -> RunnerState {
    RunnerState::Idle(vec![labels("self-hosted linux x64 gpu")])
}

fn runner_busy() -> RunnerState {
    RunnerState::Busy { because: "its runner in acme/app is busy".into(), offline: false }
}

fn partial(resume: bool) -> Coverage {
    let cursor = Cursor {
        repo: "acme/app".into(),
        list: 3,
        before: None,
        began: at(NOW),
        up: true,
        listed: Vec::new(),
    };
    Coverage::Partial { because: "503".into(), resume: resume.then_some(cursor) }
}

fn with_coverage(coverage: Coverage) -> Demand {
    Demand { coverage, ..Demand::default() }
}

/// The beginning of each row of a table: a VM that was last needed an hour ago, has been up for two, and its task.
#[derive(Clone)]
struct Case {
    asker: Asker,
    status: &'static str,
    label: Option<Timestamp>,
    started: Timestamp,
    held: bool,
    local_ssd: bool,
    given_up: Vec<u64>,
    label_settled: bool,
    task: Task,
    job: Option<JobState>,
    runner: RunnerState,
    demand: Demand,
    fleet: Fleet,
    managed: ManagedVm,
    /// In a pool: the seconds since the VM was claimed, and the job.
    claim: Option<(u64, u64)>,
    peers: BTreeMap<Vm, Availability>,
    /// Runners of the VM that are idle while another is busy.
    idle: usize,
}

fn idle() -> Case {
    let vm = Vm::new("gpu-1", "z");
    let task = Task::new(&vm, IdleSince::of_event(ago(60)));
    Case {
        asker: Asker::Task,
        status: "RUNNING",
        label: Some(ago(60)),
        started: ago(120),
        held: false,
        local_ssd: false,
        given_up: Vec::new(),
        label_settled: false,
        task: Task { due: at(NOW), ..task },
        job: None,
        runner: registered(),
        demand: Demand::default(),
        fleet: Fleet::default(),
        managed: ManagedVm::unconfigured(vm),
        claim: None,
        peers: BTreeMap::new(),
        idle: 0,
    }
}

fn down() -> Case {
    Case { status: "TERMINATED", ..idle() }
}

impl Case {
    fn with(self, change: impl FnOnce(&mut Self)) -> Self {
        let mut case = self;
        change(&mut case);
        case
    }

    /// The job in evidence, and what GitHub says of it.
    fn carrying(self, state: JobState) -> Self {
        self.with(|case| {
            case.task.job = Some(a_job(7));
            case.job = Some(state);
        })
    }

    /// The VM is `gpu-2` of the pool `gpu-1`, `gpu-2`, `gpu-3`.
    fn in_a_pool(self, first: Availability, third: Availability) -> Self {
        let entry = |vm: &str| Entry {
            repo: "acme/app".into(),
            labels: labels("gpu"),
            runner_labels: Vec::new(),
            vm: Vm::new(vm, "z"),
            runner_names: RunnerNames::parse([vm]),
            stop: StopOptions::default(),
            register: None,
        };
        self.with(|case| {
            case.fleet = Fleet::new(["gpu-1", "gpu-2", "gpu-3"].map(entry).into());
            case.managed = (**case.fleet.find(Some("gpu-2"), None).unwrap()).clone();
            case.task.vm_instance_name = "gpu-2".into();
            case.peers =
                [("gpu-1", first), ("gpu-3", third)].map(|(vm, is)| (Vm::new(vm, "z"), is)).into();
        })
    }

    fn facts(&self) -> Facts<'_> {
        let mut all = Labels::new();
        if let Some(label) = self.label {
            all.insert(IDLE_SINCE_LABEL.into(), label.unix_seconds().to_string());
        }
        if self.held {
            all.insert(HOLD_LABEL.into(), "1".into());
        }
        if !self.given_up.is_empty() {
            let ids: Vec<String> = self.given_up.iter().map(u64::to_string).collect();
            all.insert(GIVEN_UP_LABEL.into(), ids.join("_"));
        }
        if let Some((age, job)) = self.claim {
            let claim = Claim { at: at(NOW - age), job };
            all.insert(CLAIM_LABEL.into(), claim.to_string());
        }
        let instance = Instance {
            id: "1".into(),
            status: InstanceStatus::from(self.status),
            labels: all,
            label_fingerprint: String::new(),
            last_start: Some(self.started),
            last_stop: None,
            last_suspend: None,
            has_local_ssd: self.local_ssd,
        };
        Facts {
            asker: self.asker,
            now: at(NOW),
            inactive: INACTIVE,
            fleet: &self.fleet,
            managed: &self.managed,
            label_settled: self.label_settled,
            task: &self.task,
            vm: VmSnapshot::new(instance, at(NOW)),
            job: None,
            runner: None,
            demand: None,
            pool: None,
        }
    }

    /// The VM itself, as its driver sees it.
    fn availability(&self, vm: &VmSnapshot) -> Availability {
        let (free, busy) = match &self.runner {
            RunnerState::Busy { .. } => (self.idle, 1),
            RunnerState::Idle(runners) | RunnerState::IdleElsewhere { runners, .. } => {
                (runners.len().max(1), 0)
            }
            RunnerState::Unavailable(_) | RunnerState::Forbidden(_) => {
                return Availability::of(vm, None, at(NOW));
            }
        };
        let slots = |count| vec![Slot::Any; count];
        let runners = Runners { free: slots(free), busy: slots(busy) };
        Availability::of(vm, Some(runners), at(NOW))
    }

    /// Answers the questions as a driver would: what was asked, in order, and the decision.
    fn play(&self) -> (Vec<Question>, Decision) {
        let (mut facts, mut asked) = (self.facts(), Vec::new());
        loop {
            match decide(&facts) {
                Step::Do(decision) => return (asked, *decision),
                Step::Ask(question) => {
                    assert!(!asked.contains(&question), "{question:?} is asked twice");
                    asked.push(question);
                    match question {
                        Question::WriteIdleSince => facts.label_settled = true,
                        Question::Job => facts.job.clone_from(&self.job),
                        Question::Runner => facts.runner = Some(self.runner.clone()),
                        Question::Jobs => facts.demand = Some(self.demand.clone()),
                        Question::Pool => {
                            let mut members = self.peers.clone();
                            members.insert(self.managed.vm.clone(), self.availability(&facts.vm));
                            facts.pool = Some(members);
                        }
                    }
                }
            }
        }
    }

    /// Checks the questions, the word, what is done, and when the next pass comes.
    #[track_caller]
    fn gives(
        &self,
        asked: &[Question],
        status: Status,
        action: Action,
        next: Option<u64>,
    ) -> Decision {
        let (questions, decision) = self.play();
        let due = decision.next.as_ref().map(|(_, due)| due.unix_seconds() - NOW);
        assert_eq!(
            (questions.as_slice(), decision.status, decision.action, due),
            (asked, status, action, next),
            "{decision:#?}"
        );
        decision
    }
}

fn next(decision: &Decision) -> &Task {
    &decision.next.as_ref().expect("a next pass").0
}

use Action::{Nothing, Start, Stop};
use Question::{Job, Jobs, Pool, Runner, WriteIdleSince};

const NO_QUESTION: &[Question] = &[];

#[test]
fn step_1_a_newer_label_supersedes_a_task_unless_its_job_still_waits() {
    let newer = |case: Case| case.with(|case| case.label = Some(ago(30)));
    newer(idle()).gives(NO_QUESTION, Status::Superseded, Nothing, None);
    newer(down()).gives(NO_QUESTION, Status::Superseded, Nothing, None);
    newer(down().with(|case| case.task.operator = Some(ago(5)))).gives(
        NO_QUESTION,
        Status::Superseded,
        Nothing,
        None,
    );
    // (a) It goes on with the label's value.
    let queued = newer(down().carrying(JobState::Queued(labels("gpu"))));
    let started = queued.gives(&[Job, Runner], Status::Starting, Start, Some(300));
    assert_eq!(next(&started).idle_since, Some(IdleSince::of_event(ago(30))));
    assert_eq!(next(&started).job.as_ref().unwrap().id, 7);
    newer(down().carrying(JobState::Pending)).gives(
        &[Job, Runner, Jobs],
        Status::StartScheduled,
        Nothing,
        Some(300),
    );
    // (b)
    let unavailable = || JobState::Unavailable("503".into());
    let started =
        newer(down().carrying(unavailable())).gives(&[Job], Status::Starting, Start, Some(300));
    assert_eq!(next(&started).idle_since, Some(IdleSince::of_event(ago(30))));
    newer(idle().carrying(unavailable())).gives(&[Job], Status::Unknown, Nothing, Some(300));
    // (c)
    for state in [
        JobState::Running(RunsOn::Here),
        JobState::Completed(None),
        JobState::Gone(""),
        JobState::ForAnother(other_vm()),
        JobState::Running(RunsOn::Elsewhere(Some(other_vm()))),
    ] {
        let is_told = matches!(
            state,
            JobState::ForAnother(_) | JobState::Running(RunsOn::Elsewhere(Some(_)))
        );
        let ended = newer(down().carrying(state)).gives(&[Job], Status::Superseded, Nothing, None);
        assert_eq!(ended.tell.len(), usize::from(is_told), "{ended:?}");
    }
    let given_up = newer(down().carrying(JobState::Queued(labels("gpu"))));
    given_up.with(|case| case.given_up = vec![7]).gives(&[Job], Status::Superseded, Nothing, None);
    let pending_for_long = newer(down().carrying(JobState::Pending));
    pending_for_long.with(|case| case.task.job.as_mut().unwrap().queued_at = ago(24 * 60)).gives(
        &[Job],
        Status::Superseded,
        Nothing,
        None,
    );
}

#[test]
fn step_1_an_older_label_is_written_first() {
    let older = idle().with(|case| case.label = Some(ago(90)));
    older.gives(&[WriteIdleSince, Runner, Jobs], Status::Stopping, Stop, Some(120));
    let none = idle().with(|case| case.label = None);
    none.gives(&[WriteIdleSince, Runner, Jobs], Status::Stopping, Stop, Some(120));
    let unmarked = none.clone().with(|case| case.task.unmarked = true);
    unmarked.gives(&[Runner, Jobs], Status::Stopping, Stop, Some(120));
    // No event created the task, so there is nothing to write.
    let before_all = none.with(|case| case.task.idle_since = Some(IdleSince::BEFORE_ALL));
    before_all.gives(&[Runner, Jobs], Status::Stopping, Stop, Some(120));
}

#[test]
fn step_1_tasks_without_the_label_or_without_our_fields_still_work() {
    // Where labels cannot be written, no label supersedes.
    let unmarked = idle().with(|case| (case.task.unmarked, case.label) = (true, Some(ago(30))));
    unmarked.gives(&[Runner, Jobs], Status::Stopping, Stop, Some(120));
    let original = idle().with(|case| case.task.idle_since = None);
    original.gives(NO_QUESTION, Status::Superseded, Nothing, None);
    let unlabelled = original.with(|case| case.label = None);
    let stopped = unlabelled.gives(&[Runner, Jobs], Status::Stopping, Stop, Some(120));
    assert_eq!(next(&stopped).idle_since, Some(IdleSince::BEFORE_ALL), "any event supersedes it");
}

#[test]
fn step_1_a_pass_older_than_any_event_writes_no_label() {
    let original = idle().with(|case| {
        case.task.idle_since = Some(IdleSince::BEFORE_ALL);
        case.label = None;
    });
    original.gives(&[Runner, Jobs], Status::Stopping, Stop, Some(120));
}

#[test]
fn step_1_a_superseded_pass_tells_the_other_vm_of_its_job() {
    for state in
        [JobState::ForAnother(other_vm()), JobState::Running(RunsOn::Elsewhere(Some(other_vm())))]
    {
        let superseded = down().carrying(state).with(|case| case.label = Some(ago(30)));
        let ended = superseded.gives(&[Job], Status::Superseded, Nothing, None);
        // Once that VM is deleted, the job waits from now on.
        assert_eq!(ended.tell, [(other_vm(), JobRef { queued_at: at(NOW), ..a_job(7) })]);
    }
}

#[test]
fn step_2_nothing_is_asked_before_stop_after() {
    let needed = |minutes| {
        idle().with(|case| {
            case.label = Some(ago(minutes));
            case.task.idle_since = Some(IdleSince::of_event(ago(minutes)));
        })
    };
    needed(1).gives(NO_QUESTION, Status::StopScheduled, Nothing, Some(300));
    needed(11).gives(NO_QUESTION, Status::StopScheduled, Nothing, Some(240));
    needed(15).gives(&[Runner, Jobs], Status::Stopping, Stop, Some(120));
    // The boot allowance, if it was started after `idle_since`, with a bucket's slack.
    let booted = idle().with(|case| case.started = ago(2));
    booted.gives(NO_QUESTION, Status::StopScheduled, Nothing, Some(180));
    let with_the_event = needed(16).with(|case| case.started = at(NOW - 16 * 60 - 20));
    with_the_event.gives(&[Runner, Jobs], Status::Stopping, Stop, Some(120));
    // Results of earlier passes, carried in the task.
    let idle_again = idle().with(|case| case.task.idle_at = Some(ago(13)));
    idle_again.gives(NO_QUESTION, Status::StopScheduled, Nothing, Some(120));
    let completed = idle().with(|case| case.task.completed_at = Some(ago(14)));
    completed.gives(NO_QUESTION, Status::StopScheduled, Nothing, Some(60));
}

#[test]
fn step_2_a_clock_that_is_behind_schedules_after_the_task() {
    let early = idle().with(|case| {
        case.label = Some(ahead(60) - INACTIVE);
        case.task.idle_since = Some(IdleSince::of_event(ahead(60) - INACTIVE));
        case.task.due = ahead(60);
    });
    early.gives(NO_QUESTION, Status::StopScheduled, Nothing, Some(90));
}

#[test]
fn step_3_a_vm_on_its_way_is_looked_at_in_a_minute_and_sooner_with_evidence() {
    for (status, word) in [
        ("STOPPING", Status::Stopping),
        ("SUSPENDING", Status::Stopping),
        ("HIBERNATING", Status::Stopping),
        ("PROVISIONING", Status::StopScheduled),
        ("REPAIRING", Status::StopScheduled),
    ] {
        let on_its_way = idle().with(|case| case.status = status);
        on_its_way.gives(NO_QUESTION, word, Nothing, Some(60));
        let carrying = on_its_way.clone().carrying(JobState::Queued(Vec::new()));
        carrying.gives(NO_QUESTION, word, Nothing, Some(30));
        let operator = on_its_way.with(|case| case.task.operator = Some(ago(1)));
        operator.gives(NO_QUESTION, word, Nothing, Some(30));
    }
}

#[test]
fn step_3_a_vm_that_boots_is_seen_in_a_minute_even_if_it_was_needed_not_long_ago() {
    let booting = idle().with(|case| {
        case.status = "PROVISIONING";
        case.label = Some(ago(1));
        case.task.idle_since = Some(IdleSince::of_event(ago(1)));
    });
    booting.gives(NO_QUESTION, Status::StopScheduled, Nothing, Some(60));
}

#[test]
fn step_4_the_job_in_evidence_while_the_vm_is_up() {
    let here = idle().carrying(JobState::Running(RunsOn::Here));
    let busy = here.gives(&[Job], Status::Busy, Nothing, Some(60));
    assert_eq!(
        next(&busy).job.as_ref().unwrap().queued_at,
        at(NOW),
        "it waits from now if the VM vanishes"
    );
    assert_eq!(next(&busy).busy_at, Some(at(NOW)));
    let elsewhere = idle().carrying(JobState::Running(RunsOn::Elsewhere(Some(other_vm()))));
    let dropped = elsewhere.gives(&[Job, Runner, Jobs], Status::Stopping, Stop, Some(120));
    assert_eq!((next(&dropped).job.clone(), dropped.tell.len()), (None, 1));
    let perhaps = idle().carrying(JobState::Running(RunsOn::HereIfUnregistered));
    perhaps.gives(&[Job, Runner, Jobs], Status::Stopping, Stop, Some(120));
    let unregistered = perhaps.with(|case| case.runner = RunnerState::Idle(Vec::new()));
    unregistered.gives(&[Job, Runner], Status::Busy, Nothing, Some(60));
    let queued = idle().carrying(JobState::Queued(labels("gpu")));
    queued.gives(&[Job, Runner, Jobs], Status::Busy, Nothing, Some(300));
    let unfit = idle().carrying(JobState::Queued(labels("arm64")));
    unfit.gives(&[Job, Runner, Jobs], Status::Stopping, Stop, Some(120));
    let pending = idle().carrying(JobState::Pending);
    let stopped = pending.gives(&[Job, Runner, Jobs], Status::Stopping, Stop, Some(120));
    assert!(next(&stopped).job.is_some() && next(&stopped).pending_since.is_none());
    let completed = idle().carrying(JobState::Completed(Some(ago(10))));
    let waits = completed.gives(&[Job, Runner, Jobs], Status::StopScheduled, Nothing, Some(300));
    assert_eq!((next(&waits).job.clone(), next(&waits).completed_at), (None, Some(ago(10))));
    idle().carrying(JobState::Gone("")).gives(
        &[Job, Runner, Jobs],
        Status::Stopping,
        Stop,
        Some(120),
    );
    let unavailable = idle().carrying(JobState::Unavailable("503".into()));
    let unknown = unavailable.gives(&[Job], Status::Unknown, Nothing, Some(60));
    assert!(next(&unknown).job.is_some());
    let operator = idle().with(|case| case.task.operator = Some(ago(3)));
    let stopped = operator.gives(&[Runner, Jobs], Status::Stopping, Stop, Some(120));
    assert_eq!(next(&stopped).operator, None);
}

#[test]
fn step_4_the_job_in_evidence_while_the_vm_is_down() {
    let queued = down().carrying(JobState::Queued(labels("gpu")));
    queued.gives(&[Job, Runner], Status::Starting, Start, Some(300));
    for unknown in
        [RunnerState::Idle(Vec::new()), RunnerState::Unavailable("503".into()), runner_busy()]
    {
        // Without the runner's labels, all labels fit.
        let case = queued.clone().with(|case| case.runner = unknown);
        case.gives(&[Job, Runner], Status::Starting, Start, Some(300));
    }
    let unfit = down().carrying(JobState::Queued(labels("arm64")));
    unfit.gives(&[Job, Runner, Jobs], Status::AlreadyStopped, Nothing, None);
    let given_up = queued.with(|case| case.given_up = vec![7]);
    given_up.gives(&[Job, Runner, Jobs], Status::AlreadyStopped, Nothing, None);
    for state in [JobState::Running(RunsOn::Here), JobState::Completed(None), JobState::Gone("")] {
        down().carrying(state).gives(&[Job, Runner, Jobs], Status::AlreadyStopped, Nothing, None);
    }
    down().carrying(JobState::Unavailable("503".into())).gives(
        &[Job],
        Status::Starting,
        Start,
        Some(300),
    );
    let another = down().carrying(JobState::ForAnother(other_vm()));
    let ended = another.gives(&[Job, Runner, Jobs], Status::AlreadyStopped, Nothing, None);
    assert_eq!(ended.tell[0].0, other_vm());
    let operator = |minutes| down().with(|case| case.task.operator = Some(ago(minutes)));
    operator(3).gives(NO_QUESTION, Status::Starting, Start, Some(300));
    operator(24 * 60).gives(&[Runner, Jobs], Status::AlreadyStopped, Nothing, None);
}

#[test]
fn step_4_a_job_that_is_not_queued_yet_is_asked_for_alone_once_the_lists_were_read() {
    let pending = down().carrying(JobState::Pending);
    let first = pending.gives(&[Job, Runner, Jobs], Status::StartScheduled, Nothing, Some(300));
    assert_eq!(next(&first).pending_since, Some(at(NOW)));
    let alone = pending.clone().with(|case| case.task.pending_since = Some(ago(59)));
    alone.gives(&[Job], Status::StartScheduled, Nothing, Some(300));
    // Passes of two such jobs may have become one: the lists are read again after an hour, and after an event.
    let for_an_hour = pending.clone().with(|case| case.task.pending_since = Some(ago(60)));
    for_an_hour.gives(&[Job, Runner, Jobs], Status::StartScheduled, Nothing, Some(300));
    let superseded = pending.with(|case| {
        (case.task.pending_since, case.label) = (Some(ago(30)), Some(ago(30)));
    });
    superseded.gives(&[Job, Runner, Jobs], Status::StartScheduled, Nothing, Some(300));
    // One that the lists show.
    let found = down().with(|case| case.demand.pending = Some(a_job(9)));
    let found = found.gives(&[Runner, Jobs], Status::StartScheduled, Nothing, Some(300));
    assert_eq!(next(&found).job.as_ref().unwrap().id, 9);
    // Once the VM was up, other jobs may have run on it.
    let up =
        idle().carrying(JobState::Pending).with(|case| case.task.pending_since = Some(ago(60)));
    let stopped = up.gives(&[Job, Runner, Jobs], Status::Stopping, Stop, Some(120));
    assert_eq!(next(&stopped).pending_since, None);
}

#[test]
fn step_4_a_refusal_counts_once_the_pass_before_got_the_same() {
    let refused = |case: Case| case.carrying(JobState::Forbidden("403".into()));
    let first = refused(down()).gives(&[Job], Status::Starting, Start, Some(300));
    assert_eq!(next(&first).refused, [Source::Job]);
    refused(idle()).gives(&[Job], Status::Unknown, Nothing, Some(60));
    let again = |case: Case| case.with(|case| case.task.refused = vec![Source::Job]);
    let started = again(refused(down())).gives(&[Job], Status::Starting, Start, Some(300));
    assert_eq!(started.notices, [Notice::Warning("403".into())]);
    let seen_up =
        again(refused(idle())).gives(&[Job, Runner, Jobs], Status::Stopping, Stop, Some(120));
    assert_eq!(next(&seen_up).job, None);
    assert_eq!(seen_up.notices, [Notice::Warning("403".into())]);
}

#[test]
fn step_4_a_job_that_is_not_queued_yet_waits_from_now_at_the_earliest() {
    let waits = |case: &Case| {
        let decision = case.gives(
            if case.task.pending_since.is_some() { &[Job] } else { &[Job, Runner, Jobs] },
            Status::StartScheduled,
            Nothing,
            Some(300),
        );
        next(&decision).job.as_ref().unwrap().queued_at
    };
    let pending = down().carrying(JobState::Pending);
    assert_eq!(waits(&pending), at(NOW));
    assert_eq!(waits(&pending.with(|case| case.task.pending_since = Some(ago(59)))), at(NOW));
}

#[test]
fn step_4_the_latest_end_of_a_job_counts() {
    let completed = |known, told| {
        let case = idle().carrying(JobState::Completed(told));
        let case = case.with(|case| case.task.completed_at = known);
        next(&case.play().1).completed_at
    };
    assert_eq!(completed(Some(ago(20)), Some(ago(16))), Some(ago(16)));
    assert_eq!(completed(Some(ago(16)), Some(ago(20))), Some(ago(16)));
    assert_eq!(completed(Some(ago(16)), None), Some(ago(16)));
}

#[test]
fn step_5_a_held_vm_and_one_that_cannot_be_stopped_stay_up() {
    let held = idle().with(|case| case.held = true);
    held.gives(NO_QUESTION, Status::Held, Nothing, Some(300));
    held.clone().carrying(JobState::Queued(Vec::new())).gives(
        &[Job],
        Status::Held,
        Nothing,
        Some(300),
    );
    held.with(|case| case.status = "TERMINATED").gives(
        &[Runner, Jobs],
        Status::AlreadyStopped,
        Nothing,
        None,
    );
    let ssd = |stops| idle().with(|case| (case.local_ssd, case.task.stops) = (true, stops));
    let refused = ssd(0).gives(NO_QUESTION, Status::StopScheduled, Nothing, Some(300));
    assert!(
        matches!(&refused.notices[..], [Notice::Error(text)] if text.contains("discard_local_ssd"))
    );
    assert_eq!(next(&refused).stops, 1);
    let again = ssd(9).gives(NO_QUESTION, Status::StopScheduled, Nothing, Some(300));
    assert!(again.notices.is_empty(), "it is told ever more seldom");
}

#[test]
fn step_5_a_vm_that_cannot_be_stopped_serves_its_job() {
    let ssd = idle().carrying(JobState::Queued(labels("gpu"))).with(|case| case.local_ssd = true);
    let busy = ssd.gives(&[Job, Runner, Jobs], Status::Busy, Nothing, Some(300));
    assert!(busy.notices.is_empty());
}

#[test]
fn step_6_a_busy_runner_keeps_its_vm_up() {
    let busy = idle().with(|case| case.runner = runner_busy());
    let decision = busy.gives(&[Runner], Status::Busy, Nothing, Some(60));
    assert_eq!(next(&decision).busy_at, Some(at(NOW)));
    busy.clone().with(|case| case.task.passes = 1).gives(
        &[Runner],
        Status::Busy,
        Nothing,
        Some(120),
    );
    busy.with(|case| case.task.passes = 2).gives(&[Runner], Status::Busy, Nothing, Some(300));
    // GitHub shows the runner of a VM that vanished as busy for a while.
    down().with(|case| case.runner = runner_busy()).gives(
        &[Runner, Jobs],
        Status::AlreadyStopped,
        Nothing,
        None,
    );
    let lost = |since| {
        idle().with(|case| {
            case.runner = RunnerState::Busy { because: "busy".into(), offline: true };
            case.task.lost_since = since;
        })
    };
    let first = lost(None).gives(&[Runner], Status::Busy, Nothing, Some(60));
    assert_eq!((next(&first).lost_since, first.notices.len()), (Some(at(NOW)), 0));
    let told = lost(Some(ago(60))).gives(&[Runner], Status::Busy, Nothing, Some(60));
    assert!(matches!(&told.notices[..], [Notice::Error(text)] if text.contains("offline")));
}

#[test]
fn step_7_a_running_job_keeps_its_vm_up_and_a_leftover_does_not() {
    let running = idle().with(|case| case.demand.running = Some(a_job(9)));
    running.gives(&[Runner, Jobs], Status::Busy, Nothing, Some(60));
    let leftover = idle().with(|case| case.demand.leftovers = vec![a_job(9)]);
    let stopped = leftover.gives(&[Runner, Jobs], Status::Stopping, Stop, Some(120));
    assert!(
        matches!(&stopped.notices[..], [Notice::Warning(text)] if text.contains("job 9 of acme/app"))
    );
}

#[test]
fn step_8_a_queued_job_that_fits_needs_the_vm() {
    let queued = |case: Case| case.with(|case| case.demand.queued = vec![a_job(9)]);
    let busy = queued(idle()).gives(&[Runner, Jobs], Status::Busy, Nothing, Some(300));
    assert_eq!(next(&busy).job.as_ref().unwrap().id, 9);
    let started = queued(down()).gives(&[Runner, Jobs], Status::Starting, Start, Some(300));
    assert_eq!(next(&started).job.as_ref().unwrap().id, 9);
    let unfit = queued(idle()).with(|case| case.runner = RunnerState::Idle(vec![labels("linux")]));
    unfit.gives(&[Runner, Jobs], Status::Stopping, Stop, Some(120));
    let given_up = queued(idle()).with(|case| case.given_up = vec![9]);
    given_up.gives(&[Runner, Jobs], Status::Stopping, Stop, Some(120));
    let elsewhere =
        queued(down()).with(|case| case.demand.elsewhere = [(other_vm(), a_job(8))].into());
    assert_eq!(elsewhere.gives(&[Runner, Jobs], Status::Starting, Start, Some(300)).tell.len(), 1);
}

#[test]
fn step_8_a_job_that_a_free_vm_did_not_take_for_an_hour_is_given_up_on() {
    let waited = |minutes: u64| {
        let passes = (0..=minutes / 5).rev().map(|pass| ago(5 * pass));
        let unclaimed = passes
            .fold(crate::lifecycle::unclaimed::Unclaimed::default(), |jobs, at| {
                jobs.saw_all(&[9], at)
            });
        idle().with(|case| {
            case.demand.queued = vec![a_job(9)];
            case.task.unclaimed = unclaimed;
        })
    };
    let busy = waited(55).gives(&[Runner, Jobs], Status::Busy, Nothing, Some(300));
    assert!(busy.given_up.is_empty());
    assert_eq!(next(&busy).unclaimed, waited(55).task.unclaimed.saw_all(&[9], at(NOW)));
    let stopped = waited(60).gives(&[Runner, Jobs], Status::Stopping, Stop, Some(120));
    assert_eq!((stopped.given_up.as_slice(), stopped.notices.len()), (&[9][..], 1));
    // A busy runner or a running job clears the hour, and so does a VM that is down.
    let at_work = waited(55).with(|case| case.runner = runner_busy());
    assert!(next(&at_work.gives(&[Runner], Status::Busy, Nothing, Some(60))).unclaimed.is_empty());
    let started = waited(55).with(|case| case.status = "TERMINATED");
    assert!(
        next(&started.gives(&[Runner, Jobs], Status::Starting, Start, Some(300)))
            .unclaimed
            .is_empty()
    );
    // A source that could not be read neither extends nor clears the wait.
    for (runner, coverage) in [
        (RunnerState::Forbidden("403".into()), Coverage::Complete),
        (registered(), partial(false)),
        (registered(), Coverage::Forbidden("403".into())),
    ] {
        let unread = waited(60).with(|case| {
            case.task.unclaimed = case.task.unclaimed.saw_all(&[9], ago(5));
            (case.runner, case.demand.coverage) = (runner, coverage);
        });
        let before = unread.task.unclaimed.clone();
        assert_eq!(next(&unread.play().1).unclaimed, before);
    }
}

#[test]
fn step_8_a_pass_that_read_every_list_forgets_the_jobs_it_did_not_find() {
    let Coverage::Partial { resume, .. } = partial(true) else { unreachable!() };
    let waited = idle().with(|case| {
        case.task.unclaimed = case.task.unclaimed.saw_all(&[9], ago(5));
    });
    let stopped = waited.gives(&[Runner, Jobs], Status::Stopping, Stop, Some(120));
    assert!(next(&stopped).unclaimed.is_empty());
    // The end of a scan of several passes is a part of it.
    let resumed = waited.clone().with(|case| case.task.cursor = resume);
    let confirming = resumed.gives(&[Runner, Jobs], Status::Confirming, Nothing, Some(60));
    assert!(!next(&confirming).unclaimed.is_empty());
    // On its way down, the VM is free for no job.
    let leaving = waited.with(|case| case.status = "STOPPING");
    let waits = leaving.gives(NO_QUESTION, Status::Stopping, Nothing, Some(60));
    assert!(next(&waits).unclaimed.is_empty());
}

#[test]
fn step_8_a_vm_that_is_down_clears_the_hour_of_its_jobs_whatever_the_reason_of_the_pass() {
    let waited = down().with(|case| {
        case.task.unclaimed = case.task.unclaimed.saw_all(&[9], ago(5));
    });
    let cleared = |case: Case| next(&case.play().1).unclaimed.is_empty();
    // It is started before its runner and the jobs are asked for.
    assert!(cleared(waited.clone().with(|case| case.task.operator = Some(ago(5)))));
    assert!(cleared(waited.clone().carrying(JobState::Unavailable("503".into()))));
    // GitHub shows the runner and its job at work for a while.
    assert!(cleared(waited.with(|case| {
        case.runner = runner_busy();
        case.demand.running = Some(a_job(8));
    })));
}

#[test]
fn step_8_a_job_in_evidence_that_the_lists_show_too_is_given_up_on_once() {
    let waited = idle().carrying(JobState::Queued(labels("gpu"))).with(|case| {
        case.demand.queued = vec![a_job(7)];
        let passes = (0..=12).rev().map(|pass| ago(5 * pass));
        case.task.unclaimed =
            passes.fold(case.task.unclaimed.clone(), |jobs, at| jobs.saw_all(&[7], at));
    });
    let stopped = waited.gives(&[Job, Runner, Jobs], Status::Stopping, Stop, Some(120));
    assert_eq!((stopped.given_up.as_slice(), stopped.notices.len()), (&[7][..], 1));
}

#[test]
fn step_9_a_vm_that_is_down_ends_its_passes_once_every_list_was_read() {
    down().gives(&[Runner, Jobs], Status::AlreadyStopped, Nothing, None);
    down().with(|case| case.status = "SUSPENDED").gives(
        &[Runner, Jobs],
        Status::AlreadyStopped,
        Nothing,
        None,
    );
    let running = down().with(|case| case.demand.running = Some(a_job(9)));
    let busy = running.gives(&[Runner, Jobs], Status::Busy, Nothing, Some(300));
    // Should it be queued again, it waits from now on.
    assert_eq!(next(&busy).job.as_ref().unwrap().queued_at, at(NOW));
    assert_eq!(next(&busy).job.as_ref().unwrap().id, 9, "it waits as soon as GitHub notices");
    let both = running.with(|case| case.demand.pending = Some(a_job(8)));
    let busy = both.gives(&[Runner, Jobs], Status::Busy, Nothing, Some(300));
    assert_eq!((next(&busy).job.as_ref().unwrap().id, next(&busy).pending_since), (9, None));
    down().with(|case| case.demand.coverage = partial(false)).gives(
        &[Runner, Jobs],
        Status::Unknown,
        Nothing,
        Some(300),
    );
    let cut = down().with(|case| case.demand.coverage = partial(true));
    assert!(next(&cut.gives(&[Runner, Jobs], Status::Unknown, Nothing, Some(30))).cursor.is_some());
    let unavailable = down().with(|case| case.runner = RunnerState::Unavailable("503".into()));
    unavailable.gives(&[Runner], Status::Unknown, Nothing, Some(300));
    // A list that is forbidden counts as read, if the pass before got the same of it.
    let no_runner = down().with(|case| case.runner = RunnerState::Forbidden("403".into()));
    no_runner.gives(&[Runner, Jobs], Status::Unknown, Nothing, Some(300));
    let no_jobs = down().with(|case| case.demand.coverage = Coverage::Forbidden("403".into()));
    no_jobs.gives(&[Runner, Jobs], Status::Unknown, Nothing, Some(300));
    let forbidden = down().with(|case| {
        case.runner = RunnerState::Forbidden("403".into());
        case.demand.coverage = Coverage::Forbidden("403".into());
    });
    let first = forbidden.gives(&[Runner, Jobs], Status::Unknown, Nothing, Some(300));
    assert_eq!(next(&first).refused, [Source::Runner, Source::Jobs]);
    let second = forbidden.with(|case| case.task.refused = vec![Source::Runner, Source::Jobs]);
    second.gives(&[Runner, Jobs], Status::AlreadyStopped, Nothing, None);
}

#[test]
fn step_9_a_vm_that_is_down_tells_the_others_of_their_jobs() {
    let elsewhere = down().with(|case| case.demand.elsewhere = [(other_vm(), a_job(8))].into());
    let ended = elsewhere.gives(&[Runner, Jobs], Status::AlreadyStopped, Nothing, None);
    assert_eq!(ended.tell, [(other_vm(), a_job(8))]);
}

#[test]
fn a_source_that_could_not_be_queried_is_named_with_its_error() {
    for case in [idle(), down()] {
        let unavailable = case.with(|case| case.runner = RunnerState::Unavailable("503".into()));
        let (_, decision) = unavailable.play();
        assert!(decision.because.contains("(503)"), "{decision:#?}");
    }
}

#[test]
fn step_10_both_sources_have_to_be_read() {
    idle().gives(&[Runner, Jobs], Status::Stopping, Stop, Some(120));
    let unavailable = idle().with(|case| case.runner = RunnerState::Unavailable("503".into()));
    unavailable.gives(&[Runner], Status::Unknown, Nothing, Some(60));
    idle().with(|case| case.demand.coverage = partial(false)).gives(
        &[Runner, Jobs],
        Status::Unknown,
        Nothing,
        Some(60),
    );
    let cut = idle().with(|case| case.demand.coverage = partial(true));
    assert!(next(&cut.gives(&[Runner, Jobs], Status::Unknown, Nothing, Some(30))).cursor.is_some());
}

#[test]
fn step_10_a_source_without_an_answer_for_a_day_is_an_error() {
    let unavailable = idle().with(|case| case.runner = RunnerState::Unavailable("503".into()));
    let first = unavailable.gives(&[Runner], Status::Unknown, Nothing, Some(60));
    assert_eq!((next(&first).unavailable_since, first.notices.len()), (Some(at(NOW)), 0));
    let for_a_day = unavailable.with(|case| case.task.unavailable_since = Some(at(NOW - 86_400)));
    let day = for_a_day.gives(&[Runner], Status::Unknown, Nothing, Some(60));
    assert_eq!(next(&day).unavailable_since, Some(at(NOW - 86_400)));
    assert!(
        matches!(&day.notices[..], [Notice::Error(text)] if text.contains("so it is not stopped: GitHub could"))
    );
    let answered = idle().with(|case| case.task.unavailable_since = Some(at(NOW - 86_400)));
    let answered = answered.gives(&[Runner, Jobs], Status::Stopping, Stop, Some(120));
    assert_eq!((next(&answered).unavailable_since, answered.notices.len()), (None, 0));
}

#[test]
fn step_10_one_source_alone_has_to_say_so_twice() {
    let no_runner = (RunnerState::Forbidden("403".into()), Coverage::Complete, Source::Runner);
    let no_jobs = (registered(), Coverage::Forbidden("403".into()), Source::Jobs);
    for (runner, coverage, source) in [no_runner, no_jobs] {
        let case = idle().with(|case| (case.runner, case.demand.coverage) = (runner, coverage));
        let first = case.gives(&[Runner, Jobs], Status::Unknown, Nothing, Some(60));
        assert_eq!(next(&first).refused, [source]);
        let again = case.with(|case| case.task.refused = vec![source]);
        let confirming = again.gives(&[Runner, Jobs], Status::Confirming, Nothing, Some(60));
        assert_eq!(next(&confirming).confirming_at, Some(at(NOW)));
        assert_eq!(confirming.notices.len(), 1, "the permission is named");
        let confirmed =
            |seconds| again.clone().with(|case| case.task.confirming_at = Some(at(NOW - seconds)));
        confirmed(120).gives(&[Runner, Jobs], Status::Stopping, Stop, Some(120));
        confirmed(121).gives(&[Runner, Jobs], Status::Confirming, Nothing, Some(60));
        // A pass does not confirm itself.
        confirmed(0).gives(&[Runner, Jobs], Status::Confirming, Nothing, Some(60));
    }
}

#[test]
fn step_10_a_scan_of_several_passes_has_to_say_so_twice() {
    let Coverage::Partial { resume: Some(cursor), .. } = partial(true) else { unreachable!() };
    let began = |minutes| Cursor { began: ago(minutes), ..cursor.clone() };
    let resumed = idle().with(|case| case.task.cursor = Some(began(5)));
    let confirming = resumed.gives(&[Runner, Jobs], Status::Confirming, Nothing, Some(60));
    assert_eq!(next(&confirming).cursor, None, "the second scan begins anew");
    // The second scan began a minute after the first ended, and took several passes too.
    let second = resumed.with(|case| case.task.confirming_at = Some(ago(6)));
    second.gives(&[Runner, Jobs], Status::Stopping, Stop, Some(120));
    let cut = second.with(|case| case.demand.coverage = partial(true));
    let unknown = cut.gives(&[Runner, Jobs], Status::Unknown, Nothing, Some(30));
    assert_eq!(next(&unknown).confirming_at, Some(ago(6)));
    // A scan that began before the first one ended confirms nothing.
    let overlapping = idle().with(|case| {
        (case.task.cursor, case.task.confirming_at) = (Some(began(5)), Some(ago(4)));
    });
    overlapping.gives(&[Runner, Jobs], Status::Confirming, Nothing, Some(60));
}

#[test]
fn step_10_without_any_source_a_vm_is_stopped_after_a_day() {
    let blind = |runner: RunnerState, since| {
        idle().with(|case| {
            (case.runner, case.demand.coverage) = (runner, Coverage::Forbidden("403".into()));
            case.task.refused = vec![Source::Runner, Source::Jobs];
            case.task.forbidden_since = since;
        })
    };
    for runner in [RunnerState::Forbidden("403".into()), RunnerState::Idle(Vec::new())] {
        let first =
            blind(runner.clone(), None).gives(&[Runner, Jobs], Status::Unknown, Nothing, Some(60));
        assert_eq!(next(&first).forbidden_since, Some(at(NOW)));
        assert_eq!(first.notices, [Notice::Warning(first.because.clone())]);
        blind(runner.clone(), Some(ago(24 * 60 - 1))).gives(
            &[Runner, Jobs],
            Status::Unknown,
            Nothing,
            Some(60),
        );
        let stopped = blind(runner, Some(ago(24 * 60))).gives(
            &[Runner, Jobs],
            Status::Stopping,
            Stop,
            Some(120),
        );
        assert!(matches!(&stopped.notices[..], [Notice::Error(_)]));
    }
    // A break begins the day anew.
    let busy = blind(runner_busy(), Some(ago(24 * 60 - 1))).gives(
        &[Runner],
        Status::Busy,
        Nothing,
        Some(60),
    );
    assert_eq!(next(&busy).forbidden_since, None);
}

#[test]
fn step_10_a_vm_that_was_seen_at_work_stays_up_for_a_while_after_it() {
    let was_busy = idle().with(|case| case.task.busy_at = Some(ago(5)));
    let noted = was_busy.gives(&[Runner, Jobs], Status::StopScheduled, Nothing, Some(300));
    assert_eq!(next(&noted).idle_at, Some(at(NOW)));
    let later = was_busy.clone().with(|case| case.task.idle_at = Some(ago(15)));
    later.gives(&[Runner, Jobs], Status::Stopping, Stop, Some(120));
    // An event came since.
    let before = was_busy.with(|case| case.task.busy_at = Some(ago(61)));
    before.gives(&[Runner, Jobs], Status::Stopping, Stop, Some(120));
    let with_it = idle().with(|case| case.task.busy_at = Some(ago(60)));
    with_it.gives(&[Runner, Jobs], Status::Stopping, Stop, Some(120));
}

#[test]
fn step_10_a_stop_that_had_no_effect_is_tried_again_ever_later() {
    for (stops, due) in [(0, 120), (1, 300), (2, 600), (3, 1_200), (5, 3_600), (60, 3_600)] {
        let case = idle().with(|case| case.task.stops = stops);
        let stopped = case.gives(&[Runner, Jobs], Status::Stopping, Stop, Some(due));
        assert_eq!(next(&stopped).stops, stops + 1);
    }
}

#[test]
fn a_pass_hands_on_what_still_holds() {
    let remembers = |case: Case| {
        case.with(|case| {
            case.task.passes = 5;
            case.task.stops = 3;
            case.task.idle_at = Some(ago(20));
            case.task.forbidden_since = Some(ago(60));
        })
    };
    let busy = remembers(idle()).with(|case| case.runner = runner_busy());
    let busy = busy.gives(&[Runner], Status::Busy, Nothing, Some(300));
    let Task { passes, stops, idle_at, forbidden_since, .. } = next(&busy);
    assert_eq!((*passes, *stops, *idle_at, *forbidden_since), (6, 0, None, None));
    let queued = |case: Case| remembers(case).with(|case| case.demand.queued = vec![a_job(9)]);
    for (case, status, action) in
        [(idle(), Status::Busy, Nothing), (down(), Status::Starting, Start)]
    {
        let needed = queued(case).gives(&[Runner, Jobs], status, action, Some(300));
        assert_eq!((next(&needed).stops, next(&needed).idle_at), (0, None));
    }
    let unknown = remembers(idle()).with(|case| case.demand.coverage = partial(false));
    let unknown = unknown.gives(&[Runner, Jobs], Status::Unknown, Nothing, Some(300));
    let Task { stops, idle_at, forbidden_since, .. } = next(&unknown);
    assert_eq!((*stops, *idle_at, *forbidden_since), (3, Some(ago(20)), None));
    let stopped = remembers(idle()).gives(&[Runner, Jobs], Status::Stopping, Stop, Some(1_200));
    let Task { passes, stops, forbidden_since, .. } = next(&stopped);
    assert_eq!((*passes, *stops, *forbidden_since), (0, 4, None));
}

#[test]
fn a_pass_hands_on_only_its_own_observations() {
    let Coverage::Partial { resume, .. } = partial(true) else { unreachable!() };
    let case = idle().with(|case| {
        case.runner = runner_busy();
        case.task.refused = vec![Source::Job, Source::Runner, Source::Jobs];
        case.task.confirming_at = Some(ago(1));
        case.task.cursor = resume;
        case.task.lost_since = Some(ago(10));
        case.task.unconfigured_since = Some(ago(10));
    });
    let busy = case.gives(&[Runner], Status::Busy, Nothing, Some(60));
    let expected = Task { busy_at: Some(at(NOW)), passes: 1, due: at(NOW), ..idle().task };
    assert_eq!(*next(&busy), expected);
}

#[test]
fn an_operators_stop_asks_whether_something_needs_the_vm_and_nothing_else() {
    let by_hand = |case: Case| case.with(|case| case.asker = Asker::Operator);
    let recent =
        idle().with(|case| (case.label, case.held, case.started) = (Some(ago(0)), true, ago(1)));
    by_hand(recent).gives(&[Runner, Jobs], Status::Stopping, Stop, Some(120));
    by_hand(down()).gives(NO_QUESTION, Status::AlreadyStopped, Nothing, None);
    by_hand(idle().with(|case| case.status = "STOPPING")).gives(
        NO_QUESTION,
        Status::AlreadyStopped,
        Nothing,
        Some(60),
    );
    by_hand(idle().with(|case| case.status = "STAGING")).gives(
        NO_QUESTION,
        Status::StopScheduled,
        Nothing,
        Some(60),
    );
    by_hand(idle().with(|case| case.runner = runner_busy())).gives(
        &[Runner],
        Status::Busy,
        Nothing,
        Some(60),
    );
    by_hand(idle().with(|case| case.demand.queued = vec![a_job(9)])).gives(
        &[Runner, Jobs],
        Status::Busy,
        Nothing,
        Some(300),
    );
    by_hand(idle().with(|case| case.demand.coverage = partial(false))).gives(
        &[Runner, Jobs],
        Status::Unknown,
        Nothing,
        Some(60),
    );
    // One source is enough at once; without any it is not known.
    let one = by_hand(idle().with(|case| case.runner = RunnerState::Forbidden("403".into())));
    one.gives(&[Runner, Jobs], Status::Stopping, Stop, Some(120));
    let none = one.with(|case| case.demand.coverage = Coverage::Forbidden("403".into()));
    none.gives(&[Runner, Jobs], Status::Unknown, Nothing, Some(60));
}

#[test]
fn force_asks_nothing() {
    let force = |status| {
        idle().with(|case| (case.asker, case.status, case.held) = (Asker::Force, status, true))
    };
    force("RUNNING").gives(NO_QUESTION, Status::Stopping, Stop, Some(120));
    force("STAGING").gives(NO_QUESTION, Status::Stopping, Stop, Some(120));
    force("STOPPING").gives(NO_QUESTION, Status::AlreadyStopped, Nothing, Some(60));
    force("TERMINATED").gives(NO_QUESTION, Status::AlreadyStopped, Nothing, None);
}

#[test]
fn an_observer_asks_for_no_task_and_sees_what_a_pass_would_do() {
    let observed = |case: Case| case.with(|case| case.asker = Asker::Observer);
    let both = &[Runner, Jobs];
    observed(idle()).gives(both, Status::Stopping, Stop, Some(120));
    observed(down()).gives(both, Status::AlreadyStopped, Nothing, None);
    let recent = observed(idle()).with(|case| case.label = Some(ago(1)));
    recent.gives(both, Status::StopScheduled, Nothing, Some(300));
    let held = observed(idle()).with(|case| case.held = true);
    held.gives(both, Status::Held, Nothing, None);
    // A VM that boots could work in a moment, one that is on its way down could not.
    let queued = |status| {
        observed(idle()).with(|case| {
            case.status = status;
            case.demand.queued = vec![a_job(9)];
        })
    };
    queued("STAGING").gives(both, Status::Busy, Nothing, Some(300));
    queued("STOPPING").gives(both, Status::Starting, Start, Some(300));
    let on_its_way = |status| observed(idle()).with(|case| case.status = status);
    on_its_way("STAGING").gives(both, Status::StopScheduled, Nothing, None);
    on_its_way("STOPPING").gives(both, Status::AlreadyStopped, Nothing, None);
    // One source is enough: earlier passes are not known.
    let one = observed(idle()).with(|case| case.runner = RunnerState::Forbidden("403".into()));
    one.gives(both, Status::Stopping, Stop, Some(120));
}

const TAKEN: Availability = Availability {
    free: Vec::new(),
    busy: Vec::new(),
    claimed_for: Vec::new(),
    start: CanStart::No,
};
const CAN_START: Availability = Availability {
    free: Vec::new(),
    busy: Vec::new(),
    claimed_for: Vec::new(),
    start: CanStart::Yes,
};

fn coming_for_7() -> Availability {
    Availability { claimed_for: vec![7], ..TAKEN }
}

fn free() -> Availability {
    Availability { free: vec![Slot::Any], ..TAKEN }
}

/// The VMs to which a decision hands jobs, with the job of each.
fn handed_on(decision: &Decision) -> Vec<(&str, u64)> {
    decision.hand_on.iter().map(|(vm, job)| (vm.name.as_str(), job.id)).collect()
}

fn waiting(jobs: &[u64]) -> Demand {
    Demand { queued: jobs.iter().map(|id| a_job(*id)).collect(), ..Demand::default() }
}

#[test]
fn pool_a_vm_that_is_down_starts_for_its_job_unless_another_is_there_for_it() {
    let queued = || down().carrying(JobState::Queued(labels("gpu")));
    let asked = &[Job, Runner, Pool];
    // It is the first that can be started, or claimed for the job.
    queued().in_a_pool(TAKEN, CAN_START).gives(asked, Status::Starting, Start, Some(300));
    let claimed = queued().with(|case| case.claim = Some((30, 7)));
    claimed.in_a_pool(CAN_START, CAN_START).gives(asked, Status::Starting, Start, Some(300));
    // Another is earlier in the pool, or was started for it.
    let to_first = queued().in_a_pool(CAN_START, CAN_START);
    let to_first = to_first.gives(asked, Status::AlreadyStopped, Nothing, Some(300));
    assert_eq!(handed_on(&to_first), [("gpu-1", 7)]);
    let asked = &[Job, Runner, Pool, Jobs];
    let left = queued().in_a_pool(coming_for_7(), CAN_START);
    let left = left.gives(asked, Status::AlreadyStopped, Nothing, Some(60));
    assert_eq!((handed_on(&left), next(&left).job.as_ref().map(|job| job.id)), (vec![], Some(7)));
    // One VM is free, and two jobs wait.
    let more = queued().with(|case| case.demand = waiting(&[7, 8]));
    let started =
        more.clone().in_a_pool(free(), CAN_START).gives(asked, Status::Starting, Start, Some(300));
    assert_eq!(next(&started).job.as_ref().unwrap().id, 8);
    let more = more.with(|case| case.demand = waiting(&[7, 8, 9, 10]));
    let started =
        more.in_a_pool(free(), CAN_START).gives(asked, Status::Starting, Start, Some(300));
    assert_eq!(handed_on(&started), [("gpu-3", 9)]);
    // Its webhook was lost: the lists show it.
    let found = down().with(|case| case.demand = waiting(&[8]));
    found.in_a_pool(TAKEN, CAN_START).gives(
        &[Runner, Jobs, Pool],
        Status::Starting,
        Start,
        Some(300),
    );
}

#[test]
fn pool_a_vm_that_could_not_be_started_hands_its_job_on() {
    let failed = |age| {
        let queued = down().carrying(JobState::Queued(labels("gpu")));
        queued.with(|case| case.claim = Some((age, 7)))
    };
    let asked = &[Job, Runner, Pool];
    let handed = failed(90).in_a_pool(TAKEN, CAN_START);
    let handed = handed.gives(asked, Status::AlreadyStopped, Nothing, Some(300));
    assert_eq!((handed_on(&handed), next(&handed).job.is_some()), (vec![("gpu-3", 7)], true));
    // No other is left: it is tried again.
    let again = failed(90).in_a_pool(TAKEN, TAKEN).gives(asked, Status::Starting, Start, Some(300));
    assert!(handed_on(&again).is_empty());
    // The claim has ended: it is tried in its turn.
    failed(400).in_a_pool(TAKEN, CAN_START).gives(asked, Status::Starting, Start, Some(300));
}

#[test]
fn pool_a_vm_that_is_busy_hands_on_the_job_that_waits() {
    let waits = idle().carrying(JobState::Queued(labels("gpu"))).with(|case| {
        case.runner = runner_busy();
        case.label = Some(ago(2));
        case.task.idle_since = Some(IdleSince::of_event(ago(2)));
    });
    let asked = &[Job, Runner, Pool];
    let handed = waits.clone().in_a_pool(TAKEN, CAN_START);
    let handed = handed.gives(asked, Status::StopScheduled, Nothing, Some(300));
    assert_eq!((handed_on(&handed), next(&handed).job.is_some()), (vec![("gpu-3", 7)], true));
    // Held, or long after the last event: the job has to be handed on all the same.
    for change in [|case: &mut Case| case.held = true, |_: &mut Case| {}] {
        let old = waits.clone().with(|case| {
            case.label = Some(ago(60));
            case.task.idle_since = Some(IdleSince::of_event(ago(60)));
        });
        let (_, decision) = old.with(change).in_a_pool(TAKEN, CAN_START).play();
        assert_eq!(handed_on(&decision), [("gpu-3", 7)]);
    }
    let (_, decision) = waits.clone().in_a_pool(free(), CAN_START).play();
    assert!(handed_on(&decision).is_empty());
    // A second runner of the VM is free.
    let two = waits.with(|case| case.idle = 1);
    assert!(handed_on(&two.in_a_pool(TAKEN, CAN_START).play().1).is_empty());
}

#[test]
fn pool_a_late_vm_is_not_kept_up_by_jobs_that_an_earlier_one_can_run() {
    let waits = |jobs: &[u64]| idle().with(|case| case.demand = waiting(jobs));
    let asked = &[Runner, Jobs, Pool];
    waits(&[8]).in_a_pool(free(), TAKEN).gives(asked, Status::Stopping, Stop, Some(120));
    waits(&[8, 9]).in_a_pool(free(), TAKEN).gives(asked, Status::Busy, Nothing, Some(300));
    waits(&[8]).in_a_pool(TAKEN, free()).gives(asked, Status::Busy, Nothing, Some(300));
    // GitHub may just be giving the job to this VM.
    let recent = waits(&[8]).with(|case| case.demand.queued[0].queued_at = ago(1));
    recent.in_a_pool(free(), TAKEN).gives(asked, Status::StopScheduled, Nothing, Some(60));
    // Jobs that are too many for the VMs that are up bring the next one up.
    let more = waits(&[8, 9]).in_a_pool(TAKEN, CAN_START);
    let more = more.gives(asked, Status::Busy, Nothing, Some(300));
    assert_eq!(handed_on(&more), [("gpu-3", 9)]);
}
