//! Is the VM up, if the job still waits?
//!
//! A start check stands for every job that waits for its VM, since checks of equal due times merge: if the
//! job that it carries is settled, it asks for another before its chain ends.

use tracing::{error, warn};

use super::need::{self, Need, Started};
use super::schedule::{
    BUCKET, CHECK_INTERVAL, FIRST_CHECK, HOUR, MINUTE, look_again, next_multiple, rounded_up,
};
use super::task::{StartTask, WaitingJob, reckoned};
use super::watch::Watch;
use super::witness::{
    Cursor, Fate, Heard, Purpose, Sighting, Testimony, ask_for_job, ask_for_jobs, look_at_runner,
};
use super::{Error, Outcome, Phase, RESERVE, Seen, Status, look};
use crate::clients;
use crate::clock::{Deadline, Timestamp};
use crate::fleet::ManagedVm;
use crate::state::AppState;

/// What GitHub says, boiled down to what decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Demand {
    /// A job waits that counts.
    Waits,
    /// GitHub could not be asked: one may wait.
    PerhapsWaits,
    /// GitHub may not be asked, now or ever: get the VM up, once.
    UpOnce,
    /// The job waits for something else first, or does not count: nothing to do yet.
    NotYet,
    /// No job needs this VM.
    Settled,
}

/// What the check does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// See to it that the VM is up, and look again.
    Start,
    /// The VM is up, and nothing more is to be learned.
    EndUp,
    /// Only look again.
    LookAgain,
    /// The chain ends.
    End,
}

fn decide(demand: Demand, phase: Phase) -> Step {
    match (demand, phase) {
        (Demand::Waits | Demand::PerhapsWaits, _) => Step::Start,
        (Demand::UpOnce, Phase::Up) => Step::EndUp,
        (Demand::UpOnce, _) => Step::Start,
        (Demand::NotYet, _) => Step::LookAgain,
        (Demand::Settled, _) => Step::End,
    }
}

/// The facts about the demand, as far as they were asked for.
struct Asked {
    demand: Demand,
    because: String,
    /// The job that the next check carries.
    job: Option<WaitingJob>,
    waiting: Watch,
    /// Where the next check goes on asking, soon.
    cursor: Option<Cursor>,
}

/// Answers a start check.
///
/// # Errors
/// If it has to be asked again: Cloud Tasks repeats it.
pub async fn start_check(
    app: &AppState,
    vm: &ManagedVm,
    check: StartTask,
    deadline: Deadline,
) -> Result<Outcome, Error> {
    let now = reckoned(app.clock.now(), check.due);
    let witnesses = deadline.minus(RESERVE);
    let fate = async {
        match &check.job {
            Some(job) => Some(ask_for_job(app, job, now, witnesses).await),
            None => None,
        }
    };
    let (seen, fate) = tokio::join!(look(app, &vm.vm, deadline), fate);
    let mut seen = match seen {
        Ok(seen) => seen,
        Err(error @ Error::NoSuchInstance(_)) => {
            error!("{error}");
            return Ok(Outcome::new(Status::NotConfigured, "the project has no such instance"));
        }
        Err(error) => return Err(error),
    };
    if check.idle_since > seen.mark || seen.was_started_after_mark() {
        // A crash came between the start, or its task, and the mark.
        need::make_up(app, &vm.vm, &seen, now, check.waiting.clone(), deadline).await?;
        seen.mark = super::mark_of_event(app, now);
    }
    let asking = Asking { app, vm, check: &check, phase: seen.status(), now, deadline: witnesses };
    let asked = match fate {
        Some(fate) => asking.ask(fate).await,
        // A job's check of the same due time may have become one with this.
        None => asking.ask_for_another(Fate::Over, without_a_job(&check, now), None).await,
    };
    act(app, vm, check, &seen, asked, now, deadline).await
}

/// An operator's start: it is settled once the VM is up, or after a day of trying.
fn without_a_job(check: &StartTask, now: Timestamp) -> Asked {
    let tried_for = now.since(Timestamp::from_unix_seconds(check.event_at));
    let demand = if tried_for < 24 * HOUR { Demand::UpOnce } else { Demand::Settled };
    Asked {
        demand,
        because: "an operator asked for it".into(),
        job: None,
        waiting: Watch::default(),
        cursor: None,
    }
}

async fn act(
    app: &AppState,
    vm: &ManagedVm,
    check: StartTask,
    seen: &Seen,
    asked: Asked,
    now: Timestamp,
    deadline: Deadline,
) -> Result<Outcome, Error> {
    let Asked { demand, because, job, waiting, cursor } = asked;
    let unheard = cursor.is_some();
    let next = StartTask {
        job,
        waiting: waiting.clone(),
        cursor,
        unconfigured_since: None,
        ..check.clone()
    };
    match decide(demand, seen.status()) {
        Step::End => Ok(Outcome::new(Status::Ok, because)),
        Step::EndUp => Ok(Outcome::new(Status::AlreadyRunning, because)),
        Step::LookAgain => {
            let due =
                if unheard { look_again(now, BUCKET) } else { next_multiple(now, CHECK_INTERVAL) };
            next.ask_at(app, due, deadline).await?;
            Ok(Outcome::new(Status::StartScheduled, because).again_at(due))
        }
        Step::Start => {
            let due = match seen.status() {
                Phase::Leaving => look_again(now, BUCKET),
                _ => next_multiple(now, CHECK_INTERVAL),
            };
            let made = next.ask_at(app, due, deadline).await;
            let grown_old = seen.mark.is_none_or(|mark| now.since(mark.time()) >= 10 * MINUTE);
            let need = Need { vm: &vm.vm, now, waiting, renew: grown_old, guarded: made.is_ok() };
            let event = Timestamp::from_unix_seconds(check.event_at);
            let beside = async {
                if seen.status().is_down() {
                    tokio::join!(
                        need::explain(app, &vm.vm, seen, event - MINUTE, deadline),
                        tell_others_before_it_is_back(app, vm, deadline),
                    );
                }
            };
            let (started, ()) = tokio::join!(need.act(app, seen, deadline), beside);
            let started: Started = started?;
            made?;
            Ok(started.outcome().because_of(&because).again_at(due))
        }
    }
}

/// A VM that vanished comes back for the job of this check, whose runner may then be busy with it for long. What else
/// ran there and was meant for other VMs waits for those now.
async fn tell_others_before_it_is_back(app: &AppState, vm: &ManagedVm, deadline: Deadline) {
    let witnesses = deadline.minus(RESERVE);
    let jobs = ask_for_jobs(app, vm, Purpose::WhoWaits, None, None, witnesses).await;
    if let Err(error) = tell_others(app, &jobs, deadline).await {
        warn!("VM {}: jobs that wait for other VMs were not passed on: {error}", vm.vm);
    }
}

/// A job may have run on a VM that its labels would send to another one, and wait again since that went down. Nobody
/// else knows, so the other VM's start check is made here; it will look.
///
/// # Errors
/// If one could not be made.
pub(super) async fn tell_others(
    app: &AppState,
    jobs: &Testimony,
    deadline: Deadline,
) -> Result<(), Error> {
    let now = app.clock.now();
    for (vm, job) in &jobs.elsewhere {
        let check = StartTask::new(vm, None, Some(job.clone()), now);
        check.ask_at(app, rounded_up(now + FIRST_CHECK), deadline).await?;
    }
    Ok(())
}

/// One round of questions to GitHub.
struct Asking<'a> {
    app: &'a AppState,
    vm: &'a ManagedVm,
    check: &'a StartTask,
    phase: Phase,
    now: Timestamp,
    deadline: Deadline,
}

impl Asking<'_> {
    async fn ask(&self, fate: Fate) -> Asked {
        let job = self.check.job.clone();
        let name =
            job.as_ref().map(|job| format!("job {} of {}", job.id, job.repo)).unwrap_or_default();
        let mut waiting = self.watch_so_far();
        let mut runner = None;
        let (demand, because) = match &fate {
            Fate::NotHeard(error) => {
                (Demand::PerhapsWaits, format!("GitHub was not heard ({error})"))
            }
            Fate::Forbidden(error) => {
                self.warn_forbidden(error);
                (Demand::UpOnce, "GitHub may not be asked about jobs".to_owned())
            }
            Fate::Waits(labels) => {
                let sighting = look_at_runner(self.app, self.vm, self.deadline).await;
                let id = job.as_ref().map(|job| job.id).unwrap_or_default();
                waiting = self.watch(waiting, id, &sighting);
                let counts = sighting.fits(labels) && !waiting.has_left(id);
                runner = Some(sighting);
                if counts {
                    (Demand::Waits, format!("{name} waits"))
                } else {
                    (Demand::NotYet, format!("{name} waits, but not for this VM"))
                }
            }
            Fate::NotYet => (Demand::NotYet, format!("{name} waits for something else")),
            Fate::Runs if self.phase == Phase::Up => {
                return Asked {
                    demand: Demand::NotYet,
                    because: format!("{name} runs"),
                    job,
                    // So neither it nor another has been waiting for a free VM all the time.
                    waiting: Watch::default(),
                    cursor: None,
                };
            }
            Fate::Runs => (Demand::NotYet, format!("{name} runs, but the VM is not up")),
            Fate::Over => (Demand::Settled, format!("{name} is over")),
            Fate::Gone => (Demand::Settled, format!("{name} is gone")),
        };
        if matches!(demand, Demand::NotYet | Demand::Settled) {
            return self
                .ask_for_another(
                    fate,
                    Asked { demand, because, job, waiting, cursor: None },
                    runner,
                )
                .await;
        }
        Asked { demand, because, job, waiting, cursor: None }
    }

    /// The carried job does not need the VM; does another?
    async fn ask_for_another(&self, fate: Fate, own: Asked, mut runner: Option<Sighting>) -> Asked {
        let Testimony { running, waiting: others, later, heard, .. } = ask_for_jobs(
            self.app,
            self.vm,
            Purpose::WhoWaits,
            runner.as_ref(),
            self.check.cursor.as_ref(),
            self.deadline,
        )
        .await;
        if !others.is_empty() && runner.is_none() {
            runner = Some(look_at_runner(self.app, self.vm, self.deadline).await);
        }
        let own = match &running {
            // Something runs here, so nothing has been waiting for a free VM.
            Some(_) => Asked { waiting: Watch::default(), ..own },
            None => own,
        };
        let fits = |labels: &[_]| runner.as_ref().is_none_or(|runner| runner.fits(labels));
        let counts =
            others.iter().find(|other| fits(&other.labels) && !own.waiting.has_left(other.job.id));
        if let Some(other) = counts {
            let because = format!("{} waits", other.job_ref());
            return Asked {
                demand: Demand::Waits,
                because,
                job: Some(other.job.clone()),
                waiting: own.waiting,
                cursor: None,
            };
        }
        // A check stands for all jobs of its VM: one that runs or will wait needs it as well.
        let next = running.map(|job| WaitingJob {
            repo: job.repo,
            id: job.id,
            queued_at: self.now.unix_seconds(),
        });
        if let (Demand::Settled, Heard::All, Some(next)) = (own.demand, &heard, next.or(later)) {
            let because =
                format!("{}; job {} of {} runs or may come", own.because, next.id, next.repo);
            return Asked { demand: Demand::NotYet, because, job: Some(next), ..own };
        }
        match heard {
            Heard::All => own,
            Heard::NotAll(_, Some(cursor)) => {
                // There was no time to read all of it: what was read told of none.
                let because = format!("{}; for others GitHub has not been heard out", own.because);
                Asked { demand: Demand::NotYet, because, cursor: Some(cursor), ..own }
            }
            Heard::NotAll(error, None) => {
                let because = format!("{}; for others GitHub was not heard ({error})", own.because);
                Asked { demand: Demand::PerhapsWaits, because, ..own }
            }
            Heard::Forbidden(_, error) if matches!(fate, Fate::Gone) => {
                // Hidden from us, rather than gone.
                self.warn_forbidden(&error);
                Asked {
                    demand: Demand::UpOnce,
                    because: "GitHub may not be asked about jobs".into(),
                    ..own
                }
            }
            Heard::Forbidden(..) => own,
        }
    }

    fn watch_so_far(&self) -> Watch {
        if self.phase == Phase::Up {
            self.check.waiting.clone()
        } else {
            self.check.waiting.while_down()
        }
    }

    fn watch(&self, so_far: Watch, job: u64, runner: &Sighting) -> Watch {
        match (self.phase, runner) {
            (Phase::Up, Sighting::Busy(_)) => Watch::default(),
            (Phase::Up, Sighting::Idle(_)) => so_far.one_waiting(job, self.now),
            // Whether the VM is free is not known, or it is not up.
            (Phase::Up, Sighting::Forbidden(..) | Sighting::NotHeard(_)) | (_, _) => so_far,
        }
    }

    fn warn_forbidden(&self, error: &clients::Error) {
        warn!(
            "VM {}: whether its job still waits cannot be asked: grant the GitHub App Actions: read ({error})",
            self.vm.vm
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(demand: Demand, phase: Phase, step: Step) {
        assert_eq!(decide(demand, phase), step);
    }

    #[test]
    fn the_vm_is_brought_up_as_long_as_a_job_may_wait() {
        use Phase::{Booting, Leaving, Stopped, Suspended, Up};
        for phase in [Booting, Leaving, Stopped, Suspended, Up] {
            check(Demand::Waits, phase, Step::Start);
            check(Demand::PerhapsWaits, phase, Step::Start);
            check(Demand::NotYet, phase, Step::LookAgain);
            check(Demand::Settled, phase, Step::End);
        }
        check(Demand::UpOnce, Up, Step::EndUp);
        check(Demand::UpOnce, Stopped, Step::Start);
        check(Demand::UpOnce, Booting, Step::Start);
        check(Demand::UpOnce, Leaving, Step::Start);
    }

    #[test]
    fn an_operators_start_is_tried_for_a_day() {
        let check = StartTask { event_at: 1_800_000_000, ..StartTask::default() };
        let at = |hours: u32| Timestamp::from_unix_seconds(1_800_000_000) + hours * HOUR;
        assert_eq!(without_a_job(&check, at(23)).demand, Demand::UpOnce);
        assert_eq!(without_a_job(&check, at(24)).demand, Demand::Settled);
    }
}
