//! Can the VM be stopped?
//!
//! Only if it is seen up and idle: its own state does not speak against it, and both witnesses agree. The
//! follow-up is made before the stop, and the VM read once more between them, so that neither a crash nor a
//! job of the last seconds goes unnoticed.

use std::time::Duration;

use tracing::{error, warn};

use super::job_queued::vm_needed;
use super::schedule::{
    BOOT_ALLOWANCE, BUCKET, CHECK_INTERVAL, HOUR, MINUTE, doubled, look_again, stop_check_delay,
};
use super::start_check::tell_others;
use super::task::{StopTask, reckoned};
use super::watch::Watch;
use super::witness::{Heard, Purpose, Sighting, Testimony, Waiting, ask_for_jobs, look_at_runner};
use super::{Error, Outcome, Phase, RESERVE, Seen, Status, look};
use crate::clock::{Deadline, Timestamp};
use crate::fleet::ManagedVm;
use crate::state::AppState;

/// No stop is sent later than this after the VM was last read.
const FRESH: Duration = Duration::from_secs(10);

/// How long both witnesses may be forbidden before the VM is stopped unheard.
const BLIND_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// Who asks, and so which rules apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asker {
    /// A task: mark, hold and confirmation count.
    Schedule,
    /// An operator: the VM is looked at once, as it is.
    Operator,
    /// An operator who does not ask whether something needs the VM.
    Insisting,
}

/// What the VM itself says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    /// A newer task stands for it.
    Superseded,
    /// It is stopped: is it still needed?
    Stopped,
    /// It is on its way down.
    Leaving,
    /// It boots, or was started a moment ago by somebody else.
    Booting,
    /// An operator keeps it up.
    Held,
    /// It is up: the witnesses decide.
    AskWitnesses,
}

fn first_look(asker: Asker, task: &StopTask, seen: &Seen, now: Timestamp) -> First {
    let scheduled = asker == Asker::Schedule;
    match seen.status() {
        _ if scheduled && task.is_superseded_by(seen.mark) => First::Superseded,
        Phase::Stopped | Phase::Suspended => First::Stopped,
        Phase::Leaving => First::Leaving,
        Phase::Booting | Phase::Up if asker == Asker::Insisting => First::AskWitnesses,
        Phase::Booting => First::Booting,
        Phase::Up if scheduled && was_just_started(task, seen, now) => First::Booting,
        Phase::Up if scheduled && seen.is_held() => First::Held,
        Phase::Up => First::AskWitnesses,
    }
}

/// Started after the task's mark, and not long enough ago for its runner to have taken a job.
fn was_just_started(task: &StopTask, seen: &Seen, now: Timestamp) -> bool {
    let after_mark = |start| task.idle_since.is_none_or(|mark| start > mark.time());
    seen.instance
        .last_start
        .is_some_and(|start| after_mark(start) && now.since(start) < BOOT_ALLOWANCE)
}

/// What the witnesses say together.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    /// Something needs the VM.
    Busy(String),
    /// One could not be heard: stopping blind could kill a job, waiting costs money only.
    Unknown(String),
    /// Neither may be asked, so no look will ever tell more.
    Blind(String),
    /// One may not be asked; the other says idle.
    IdleSaysOne(String),
    /// Both say idle, but the second was heard in several looks: a job may have begun since the first of them.
    IdleInParts,
    /// Both say idle.
    Idle,
}

/// Weighs what was heard. `waits` is the job that waits and counts, if one does.
fn weigh(runner: &Sighting, jobs: &Testimony, waits: Option<String>) -> Verdict {
    if let Sighting::Busy(place) = runner {
        return Verdict::Busy(format!("its runner in {place} works"));
    }
    if let Some(job) = &jobs.running {
        return Verdict::Busy(format!("{job} runs on it"));
    }
    if let Some(job) = waits {
        return Verdict::Busy(format!("{job} waits for it"));
    }
    match (runner, &jobs.heard) {
        (Sighting::NotHeard(error), _) | (_, Heard::NotAll(error, _)) => {
            Verdict::Unknown(format!("GitHub was not heard ({error})"))
        }
        (Sighting::Forbidden(place, runners), Heard::Forbidden(..)) => Verdict::Blind(format!(
            "neither runners nor jobs may be asked for ({place}: {runners})"
        )),
        // A runner that nobody knows is no witness: a job may run on it under another name.
        (Sighting::Idle(runners), Heard::Forbidden(repo, error)) if runners.is_empty() => {
            Verdict::Blind(format!(
                "no list knows its runner, and the jobs of {repo} may not be asked for: grant the GitHub App Actions: read, \
                 or name the runner after its VM ({error})"
            ))
        }
        (Sighting::Forbidden(place, error), Heard::All) => Verdict::IdleSaysOne(format!(
            "its runner may not be asked for in {place}: grant the GitHub App Administration: read, for an \
             organization's runners Self-hosted runners: read ({error})"
        )),
        (_, Heard::Forbidden(repo, error)) => Verdict::IdleSaysOne(format!(
            "the jobs of {repo} may not be asked for: grant the GitHub App Actions: read ({error})"
        )),
        (Sighting::Idle(_) | Sighting::Busy(_), Heard::All) => Verdict::Idle,
    }
}

/// Answers a scheduled stop check.
///
/// # Errors
/// If it has to be asked again: Cloud Tasks repeats it.
pub async fn stop_check(
    app: &AppState,
    vm: &ManagedVm,
    task: StopTask,
    deadline: Deadline,
) -> Result<Outcome, Error> {
    let now = reckoned(app.clock.now(), task.due);
    // Looks that confirm one another follow one another.
    let late = app.clock.now().since(Timestamp::from_unix_seconds(task.due)) > 2 * MINUTE;
    let confirmed = if late { 0 } else { task.confirmed };
    // A task that relies on there being just one VM names it from here on.
    let task = StopTask {
        vm_instance_name: vm.vm.name.clone(),
        vm_instance_zone: vm.vm.zone.clone(),
        unconfigured_since: None,
        confirmed,
        ..task
    };
    let seen = match look(app, &vm.vm, deadline).await {
        Ok(seen) => seen,
        Err(error @ Error::NoSuchInstance(_)) => {
            error!("{error}");
            return Ok(Outcome::new(Status::NotConfigured, "the project has no such instance"));
        }
        Err(error) => return Err(error),
    };
    Check { app, vm, asker: Asker::Schedule, now, deadline }.answer(task, &seen).await
}

/// One stop check, whoever asked for it.
pub(super) struct Check<'a> {
    pub(super) app: &'a AppState,
    pub(super) vm: &'a ManagedVm,
    pub(super) asker: Asker,
    pub(super) now: Timestamp,
    pub(super) deadline: Deadline,
}

impl Check<'_> {
    /// Goes by what the VM itself says.
    pub(super) async fn answer(&self, task: StopTask, seen: &Seen) -> Result<Outcome, Error> {
        let scheduled = self.asker == Asker::Schedule;
        let first = first_look(self.asker, &task, seen, self.now);
        // Looks that confirm one another follow one another.
        let confirmed = if first == First::AskWitnesses { task.confirmed } else { 0 };
        // What was heard before the VM changed is no longer worth going on from.
        let cursor = task.cursor.filter(|_| matches!(first, First::AskWitnesses | First::Stopped));
        let task = StopTask { confirmed, cursor, ..task };
        match first {
            First::Superseded => Ok(superseded()),
            First::Stopped if scheduled => self.before_the_end(task, seen).await,
            First::Stopped => Ok(Outcome::new(Status::AlreadyStopped, "")),
            First::Leaving => {
                self.look_again(
                    while_down(task),
                    Status::Stopping,
                    seen.instance.status.to_string(),
                )
                .await
            }
            First::Booting => {
                self.look_again(
                    while_down(task),
                    Status::StopScheduled,
                    "it was started a moment ago",
                )
                .await
            }
            First::Held => {
                self.again_in(10 * MINUTE, task, Status::Held, "it carries the hold label").await
            }
            First::AskWitnesses if self.asker == Asker::Insisting => self.stop(task).await,
            First::AskWitnesses => self.hear(task).await,
        }
    }

    /// The VM is stopped. If a job waits for it all the same, it is needed: GitHub queues a job again whose
    /// runner went away, and sends no second webhook.
    async fn before_the_end(&self, task: StopTask, seen: &Seen) -> Result<Outcome, Error> {
        let witnesses = self.deadline.minus(RESERVE);
        let waiting = task.waiting.while_down();
        let runner = look_at_runner(self.app, self.vm, witnesses).await;
        let jobs = self.ask(Purpose::WhoWaits, &runner, &task, witnesses).await;
        tell_others(self.app, &jobs, self.deadline).await?;
        if let Some(found) = counting(&jobs.waiting, &runner, &waiting) {
            return vm_needed(self.app, &self.vm.vm, found.job.clone(), waiting, self.deadline)
                .await;
        }
        if let Some(job) = &jobs.running {
            let because = format!("the VM is stopped, but {job} is said to run on it");
            return self
                .look_soon(StopTask { waiting, cursor: None, ..task }, Status::Busy, because)
                .await;
        }
        match jobs.heard {
            Heard::NotAll(error, cursor) => {
                let because =
                    format!("it is stopped, but whether a job waits was not heard ({error})");
                self.look_soon(StopTask { waiting, cursor, ..task }, Status::Unknown, because).await
            }
            Heard::All | Heard::Forbidden(..) => {
                Ok(Outcome::new(Status::AlreadyStopped, seen.instance.status.to_string()))
            }
        }
    }

    /// The VM is up: hear the witnesses, the second only if the first does not settle it.
    async fn hear(&self, task: StopTask) -> Result<Outcome, Error> {
        let witnesses = self.deadline.minus(RESERVE);
        let runner = look_at_runner(self.app, self.vm, witnesses).await;
        let jobs = match &runner {
            Sighting::Busy(_) | Sighting::NotHeard(_) => Testimony::default(),
            Sighting::Idle(_) | Sighting::Forbidden(..) => {
                self.ask(Purpose::MayStop, &runner, &task, witnesses).await
            }
        };
        let waiting = self.watch(&task, &runner, &jobs);
        let counts =
            counting(&jobs.waiting, &runner, &waiting).map(|found| found.job_ref().to_string());
        let verdict = match weigh(&runner, &jobs, counts) {
            Verdict::Idle if task.cursor.is_some() => Verdict::IdleInParts,
            verdict => verdict,
        };
        let task = StopTask { waiting, ..task };
        self.act(verdict, jobs, task).await
    }

    async fn ask(
        &self,
        purpose: Purpose,
        runner: &Sighting,
        task: &StopTask,
        deadline: Deadline,
    ) -> Testimony {
        ask_for_jobs(self.app, self.vm, purpose, Some(runner), task.cursor.as_ref(), deadline).await
    }

    /// Which jobs now wait since when for the VM that is free for them.
    fn watch(&self, task: &StopTask, runner: &Sighting, jobs: &Testimony) -> Watch {
        let fitting = jobs
            .waiting
            .iter()
            .filter(|found| runner.fits(&found.labels))
            .map(|found| found.job.id);
        let heard_in_one_go = task.cursor.is_none() && !matches!(jobs.heard, Heard::NotAll(..));
        match runner {
            Sighting::Busy(_) => Watch::default(),
            Sighting::NotHeard(_) => task.waiting.clone(),
            Sighting::Idle(_) | Sighting::Forbidden(..) if jobs.running.is_some() => {
                Watch::default()
            }
            Sighting::Idle(_) | Sighting::Forbidden(..) if heard_in_one_go => {
                task.waiting.all_waiting(fitting, self.now)
            }
            Sighting::Idle(_) | Sighting::Forbidden(..) => {
                fitting.fold(task.waiting.clone(), |watch, job| watch.one_waiting(job, self.now))
            }
        }
    }

    async fn act(
        &self,
        verdict: Verdict,
        jobs: Testimony,
        task: StopTask,
    ) -> Result<Outcome, Error> {
        let confirmed = task.confirmed;
        let task = StopTask { confirmed: 0, cursor: None, ..task };
        let heard = StopTask { forbidden_since: None, ..task.clone() };
        match verdict {
            Verdict::Busy(why) => self.look_again(heard, Status::Busy, why).await,
            Verdict::Unknown(why) => {
                let cursor = match jobs.heard {
                    Heard::NotAll(_, cursor) => cursor,
                    Heard::All | Heard::Forbidden(..) => None,
                };
                // What was heard so far grows old: the rest is asked for soon, and the hearing is still the same.
                let (delay, confirmed) = if cursor.is_some() {
                    (BUCKET, confirmed)
                } else {
                    (stop_check_delay(task.looks), 0)
                };
                let looks = task.looks.saturating_add(1);
                let task = StopTask { cursor, looks, confirmed, ..task };
                self.again_in(delay, task, Status::Unknown, why).await
            }
            Verdict::Blind(why) => {
                let since = task.forbidden_since.unwrap_or(self.now.unix_seconds());
                if self.now.since(Timestamp::from_unix_seconds(since)) >= BLIND_FOR
                    && self.asker == Asker::Schedule
                {
                    error!("VM {}: stopped unheard after a day: {why}", self.vm.vm);
                    return self.stop(task).await;
                }
                warn!("VM {}: {why}", self.vm.vm);
                self.look_again(
                    StopTask { forbidden_since: Some(since), ..task },
                    Status::Unknown,
                    why,
                )
                .await
            }
            Verdict::IdleSaysOne(why) if confirmed == 0 && self.asker == Asker::Schedule => {
                warn!("VM {}: {why}", self.vm.vm);
                let task = StopTask { confirmed: 1, ..heard };
                self.again_in(MINUTE, task, Status::Confirming, why).await
            }
            // Mostly the next hearing gets by in one go. Where none ever does, a second one has to be enough.
            Verdict::IdleInParts if confirmed == 0 => {
                let task = StopTask { confirmed: 1, ..heard };
                let why = "nothing needs it, but GitHub was heard in parts";
                self.again_in(MINUTE, task, Status::Confirming, why).await
            }
            Verdict::IdleSaysOne(_) | Verdict::IdleInParts | Verdict::Idle => {
                self.stop(heard).await
            }
        }
    }

    /// Follow-up, last read, stop. The follow-up looks whether the VM went down; if it did not, another stop
    /// was refused or failed, and the next follow-up takes twice as long.
    pub(super) async fn stop(&self, task: StopTask) -> Result<Outcome, Error> {
        let stops = task.stops;
        let delay = doubled(2 * MINUTE, stops, HOUR);
        let due = look_again(self.now, delay);
        let after = StopTask { stops: stops.saturating_add(1), looks: 0, ..task.clone() };
        after.ask_at(self.app, due, self.deadline).await?;

        let fresh = Deadline::after(FRESH).min(self.deadline);
        let seen = match look(self.app, &self.vm.vm, fresh).await {
            Ok(seen) => seen,
            Err(error) => {
                warn!(
                    "VM {}: not stopped, since it could not be read once more: {error}",
                    self.vm.vm
                );
                let because = format!("it could not be read once more ({error})");
                return Ok(Outcome::new(Status::Unknown, because).again_at(due));
            }
        };
        let outcome = match first_look(self.asker, &task, &seen, self.now) {
            First::AskWitnesses => self.send_stop(&seen, fresh).await?,
            First::Superseded => return Ok(superseded()),
            First::Held => Outcome::new(Status::Held, "it carries the hold label"),
            First::Stopped => {
                Outcome::new(Status::AlreadyStopped, seen.instance.status.to_string())
            }
            First::Leaving => Outcome::new(Status::Stopping, seen.instance.status.to_string()),
            First::Booting => Outcome::new(Status::StopScheduled, "it was started a moment ago"),
        };
        Ok(outcome.again_at(due))
    }

    /// A refusal is answered to an operator; a scheduled check logs it, and its follow-up tries again.
    async fn send_stop(&self, seen: &Seen, deadline: Deadline) -> Result<Outcome, Error> {
        let ManagedVm { vm, discard_local_ssd, .. } = self.vm;
        let stopped: Result<_, Error> = if seen.instance.has_local_ssd && !discard_local_ssd {
            Err(Error::WouldLoseLocalSsd(vm.clone()))
        } else {
            self.app.compute.stop(vm, *discard_local_ssd, deadline).await.map_err(Error::from)
        };
        let scheduled = self.asker == Asker::Schedule;
        if let Ok(operation) = &stopped
            && let Some(error) = &operation.error
        {
            error!("VM {vm}: its stop failed at once: {error}");
        }
        match stopped {
            Ok(operation) => {
                let because =
                    if scheduled { "nothing needs it" } else { "an operator asked for it" };
                Ok(Outcome::new(Status::Stopping, because).with_operation(Some(operation.name)))
            }
            Err(error) if scheduled => {
                error!("VM {vm} is idle, but was not stopped: {error}");
                Ok(Outcome::new(Status::StopScheduled, format!("idle, but not stopped ({error})")))
            }
            Err(error) => Err(error),
        }
    }

    async fn look_again(
        &self,
        task: StopTask,
        status: Status,
        why: impl Into<String>,
    ) -> Result<Outcome, Error> {
        let delay = stop_check_delay(task.looks);
        let looks = task.looks.saturating_add(1);
        self.again_in(delay, StopTask { looks, ..task }, status, why).await
    }

    /// While the VM is stopped, a job may be waiting for this look alone.
    async fn look_soon(
        &self,
        task: StopTask,
        status: Status,
        why: String,
    ) -> Result<Outcome, Error> {
        let delay = stop_check_delay(task.looks).min(CHECK_INTERVAL);
        let looks = task.looks.saturating_add(1);
        self.again_in(delay, StopTask { looks, ..task }, status, why).await
    }

    async fn again_in(
        &self,
        delay: Duration,
        task: StopTask,
        status: Status,
        why: impl Into<String>,
    ) -> Result<Outcome, Error> {
        let due = look_again(self.now, delay);
        task.ask_at(self.app, due, self.deadline).await?;
        Ok(Outcome::new(status, why).again_at(due))
    }
}

fn while_down(task: StopTask) -> StopTask {
    StopTask { waiting: task.waiting.while_down(), ..task }
}

fn superseded() -> Outcome {
    Outcome::new(Status::Superseded, "newer work has marked the VM since")
}

/// The first job that waits, fits the VM's runner and has not been left for an hour.
fn counting<'a>(waiting: &'a [Waiting], runner: &Sighting, watch: &Watch) -> Option<&'a Waiting> {
    waiting.iter().find(|found| runner.fits(&found.labels) && !watch.has_left(found.job.id))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::clients;
    use crate::clients::compute::{Instance, Labels, Status as InstanceStatus};
    use crate::clients::github::Place;
    use crate::fleet::Vm;
    use crate::lifecycle::mark::{HOLD_LABEL, Mark};
    use crate::lifecycle::witness::JobRef;

    const NOW: u64 = 1_800_000_000;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_unix_seconds(seconds)
    }

    fn mark(minutes_ago: u64) -> Option<Mark> {
        Some(Mark::at(at(NOW - 60 * minutes_ago)))
    }

    /// A VM that has been up for an hour and was needed ten minutes ago, and the task of that mark.
    fn idle() -> (StopTask, Seen) {
        let instance = Instance {
            id: "1".into(),
            status: InstanceStatus::Running,
            labels: Labels::new(),
            label_fingerprint: String::new(),
            last_start: Some(at(NOW - 3600)),
            last_stop: None,
            last_suspend: None,
            has_local_ssd: false,
        };
        (StopTask::new(&Vm::new("a", "z"), mark(10)), Seen { instance, mark: mark(10) })
    }

    #[track_caller]
    fn looks(change: impl FnOnce(&mut StopTask, &mut Seen), scheduled: First, by_hand: First) {
        let (mut task, mut seen) = idle();
        change(&mut task, &mut seen);
        assert_eq!(first_look(Asker::Schedule, &task, &seen, at(NOW)), scheduled, "scheduled");
        assert_eq!(first_look(Asker::Operator, &task, &seen, at(NOW)), by_hand, "by hand");
    }

    #[test]
    fn a_vm_speaks_for_itself_before_any_witness() {
        use First::{AskWitnesses, Booting, Held, Leaving, Stopped, Superseded};
        looks(|_, _| {}, AskWitnesses, AskWitnesses);
        looks(|_, seen| seen.mark = mark(9), Superseded, AskWitnesses);
        looks(|_, seen| seen.mark = mark(11), AskWitnesses, AskWitnesses);
        looks(|_, seen| seen.mark = None, AskWitnesses, AskWitnesses);
        looks(|task, _| task.idle_since = None, Superseded, AskWitnesses);
        looks(
            |task, _| (task.idle_since, task.unmarked) = (None, true),
            AskWitnesses,
            AskWitnesses,
        );
        looks(|_, seen| seen.instance.last_start = Some(at(NOW - 200)), Booting, AskWitnesses);
        looks(|_, seen| seen.instance.last_start = Some(at(NOW - 400)), AskWitnesses, AskWitnesses);
        let hold = |seen: &mut Seen| seen.instance.labels.insert(HOLD_LABEL.into(), String::new());
        looks(|_, seen| drop(hold(seen)), Held, AskWitnesses);
        for (status, first) in [
            ("TERMINATED", Stopped),
            ("STOPPED", Stopped),
            ("SUSPENDED", Stopped),
            ("STOPPING", Leaving),
            ("PENDING_STOP", Leaving),
            ("SUSPENDING", Leaving),
            ("DEPROVISIONING", Leaving),
            ("PROVISIONING", Booting),
            ("STAGING", Booting),
            ("PENDING", Booting),
            ("REPAIRING", Booting),
            ("HIBERNATING", Leaving),
        ] {
            looks(|_, seen| seen.instance.status = status.into(), first, first);
        }
        // A newer task exists, so whatever the VM does is its business.
        looks(
            |_, seen| (seen.instance.status, seen.mark) = ("TERMINATED".into(), mark(1)),
            Superseded,
            Stopped,
        );
    }

    fn failed(status: u16) -> clients::Error {
        let status = StatusCode::from_u16(status).unwrap();
        clients::Error::Status {
            call: "a.call",
            status,
            reason: String::new(),
            message: String::new(),
            limited: false,
        }
    }

    #[track_caller]
    fn weighs(runner: Sighting, jobs: Heard, found: Option<&str>, expected: fn(&Verdict) -> bool) {
        let jobs = Testimony { heard: jobs, ..Testimony::default() };
        let verdict = weigh(&runner, &jobs, found.map(str::to_owned));
        assert!(expected(&verdict), "{runner:?}, {jobs:?}: {verdict:?}");
    }

    #[test]
    fn a_vm_is_idle_only_if_both_witnesses_say_so() {
        let app = || Place::Repository("acme/app".into());
        let quiet = || Sighting::Idle(vec![Vec::new()]);
        let unknown = || Sighting::Idle(Vec::new());
        let unheard = || Sighting::NotHeard(failed(503));
        let hidden = || Sighting::Forbidden(app(), failed(403));
        let no_jobs_heard = || Heard::NotAll(failed(503), None);
        let jobs_hidden = || Heard::Forbidden("acme/app".into(), failed(403));

        weighs(quiet(), Heard::All, None, |v| *v == Verdict::Idle);
        weighs(quiet(), Heard::All, Some("job 7"), |v| matches!(v, Verdict::Busy(_)));
        weighs(Sighting::Busy(app()), Heard::All, None, |v| matches!(v, Verdict::Busy(_)));
        weighs(Sighting::Busy(app()), no_jobs_heard(), None, |v| matches!(v, Verdict::Busy(_)));
        weighs(unheard(), Heard::All, None, |v| matches!(v, Verdict::Unknown(_)));
        weighs(unheard(), jobs_hidden(), None, |v| matches!(v, Verdict::Unknown(_)));
        weighs(quiet(), no_jobs_heard(), None, |v| matches!(v, Verdict::Unknown(_)));
        weighs(quiet(), no_jobs_heard(), Some("job 7"), |v| matches!(v, Verdict::Busy(_)));
        weighs(hidden(), no_jobs_heard(), None, |v| matches!(v, Verdict::Unknown(_)));
        weighs(hidden(), Heard::All, None, |v| matches!(v, Verdict::IdleSaysOne(_)));
        weighs(hidden(), Heard::All, Some("job 7"), |v| matches!(v, Verdict::Busy(_)));
        weighs(quiet(), jobs_hidden(), None, |v| matches!(v, Verdict::IdleSaysOne(_)));
        weighs(hidden(), jobs_hidden(), None, |v| matches!(v, Verdict::Blind(_)));
        weighs(unknown(), jobs_hidden(), None, |v| matches!(v, Verdict::Blind(_)));
        weighs(unknown(), Heard::All, None, |v| *v == Verdict::Idle);

        let running = JobRef { repo: "acme/app".into(), id: 7 };
        let jobs = Testimony { running: Some(running), ..Testimony::default() };
        assert!(
            matches!(weigh(&quiet(), &jobs, None), Verdict::Busy(why) if why.contains("job 7 of acme/app"))
        );
    }
}
