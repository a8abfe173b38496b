//! The sweep: what was lost on the way is found by comparing what is with what should be.
//!
//! All else follows from an event, and events get lost: GitHub sends no webhook a second time by itself, and an
//! operator may purge a queue. So a scheduler has the whole fleet looked at every few minutes. A sweep decides nothing
//! new: it makes the task that the event would have made, and that asks the witnesses, by the same rules. What it makes
//! merges with what is there already, so it may come as often as somebody likes.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use serde::Serialize;
use tracing::{error, info, warn};

use super::mark::MARK_LABEL;
use super::need::{Need, Started};
use super::schedule::{BOOT_ALLOWANCE, BUCKET, CHECK_INTERVAL, HOUR, look_again, next_multiple};
use super::survey::{OfVm, Survey, look_at_all};
use super::task::{StartTask, StopTask, WaitingJob};
use super::watch::Watch;
use super::witness::JobRef;
use super::{Error, Phase, RESERVE, Seen, redelivery};
use crate::clients::compute::Labelled;
use crate::clients::github::{Job, Progress};
use crate::clock::{Deadline, Timestamp};
use crate::fleet::{ManagedVm, RepoName, Vm};
use crate::state::AppState;

/// How long a sweep may take.
pub const SWEEP_TIME: Duration = Duration::from_secs(45);

/// Runs of a repository whose jobs are read, newest first. Each costs a call, and GitHub counts 5,000 in an hour.
const MOST_RUNS: usize = 200;

/// VMs for which something is done at the same time.
const AT_A_TIME: usize = 4;

/// A VM that works is marked every ten minutes, or twenty where looks come late. One whose mark is older than this
/// and [`inactive`](AppState) would have been stopped, if somebody looked.
const FORGOTTEN: Duration = Duration::from_secs(30 * 60);

/// How long a job that a free VM did not take in an hour is left alone. It may be meant for a runner group that the
/// VM's runner is not in; but who mends that expects it to run.
const LEFT_ALONE: Duration = Duration::from_secs(6 * 60 * 60);

/// How the looks of a stop chain that comes late go on: every ten minutes, as those of one that has been there all along.
const LATE_LOOK: u32 = 4;

/// What a sweep found and did.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Every VM that an entry names, and those that none names any more.
    pub vms: Vec<VmReport>,
    /// What concerns no VM alone.
    pub findings: Vec<Finding>,
    /// What could not be asked, and what to do about it.
    pub not_asked: Vec<String>,
}

/// What was found of a VM.
#[derive(Debug, Serialize)]
pub struct VmReport {
    #[serde(skip)]
    vm: Vm,
    vm_instance_name: String,
    vm_instance_zone: String,
    findings: Vec<Finding>,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    level: Level,
    found: String,
    /// None if there is nothing that the service could do, or may.
    pub(super) did: Option<String>,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// All is well, or will be.
    Info,
    /// Something went wrong on the way, or may cost something.
    Warning,
    /// A job will not run until somebody does something.
    Error,
}

/// Compares the whole fleet with what Google and GitHub say, and makes up for what was lost.
pub async fn sweep(app: &AppState, deadline: Deadline) -> Report {
    let asking = deadline.minus(RESERVE);
    let (seen, marked, deliveries) = tokio::join!(
        look_at_all(app, asking),
        app.compute.labelled(MARK_LABEL, asking),
        redelivery::ask_again(app, asking),
    );
    let up = app.fleet.vms().zip(&seen).filter(|(_, seen)| is_up(seen));
    let up: Vec<&ManagedVm> = up.map(|(vm, _)| vm).collect();
    let survey = Survey::ask(app, &up, MOST_RUNS, asking).await;

    let now = app.clock.now();
    let facts = app.fleet.vms().zip(&seen).map(|(vm, seen)| Facts {
        github: OfVm { vm, fleet: &app.fleet, now, survey: Some(&survey) },
        seen: seen.as_ref(),
        inactive: app.inactive,
        keepalive: app.keepalive,
        marked: !app.marks.are_forbidden(),
    });
    let facts: Vec<Facts<'_>> = facts.collect();
    let done = facts.iter().map(|facts| facts.make_up(app, deadline)).collect::<Vec<_>>();
    let mut vms: Vec<VmReport> = stream::iter(done).buffered(AT_A_TIME).collect().await;

    let mut not_asked: BTreeSet<String> = facts.iter().flat_map(Facts::not_asked).collect();
    match marked {
        Ok(marked) => vms.extend(nameless(app, marked)),
        Err(error) if error.is_forbidden() => {
            not_asked.insert(format!(
                "{error}: grant compute.instances.list in the project, to hear of VMs that no entry names any more"
            ));
        }
        Err(error) => {
            not_asked.insert(format!("{error}: ask again"));
        }
    }
    let findings = deliveries.unwrap_or_else(|error| {
        not_asked.insert(format!("{error}, for deliveries that failed: ask again"));
        Vec::new()
    });
    let report = Report { vms, findings, not_asked: not_asked.into_iter().collect() };
    report.log();
    report
}

fn is_up(seen: &Result<Seen, Error>) -> bool {
    seen.as_ref().is_ok_and(|seen| seen.status() == Phase::Up)
}

/// VMs that carry our mark and that no entry names: taken out of RUNNER_CONFIG, or of another service.
fn nameless(app: &AppState, marked: Vec<Labelled>) -> impl Iterator<Item = VmReport> {
    let of_ours = |marked: &Labelled| app.fleet.vm(&marked.vm).is_some();
    marked.into_iter().filter(move |marked| !of_ours(marked)).map(|marked| {
        let status = marked.status;
        let found = "it carries this service's mark, and no entry of RUNNER_CONFIG names it";
        let finding = if Phase::of(&status).is_down() {
            Finding::new(Level::Info, format!("{found}; it is {status}"))
        } else {
            let how = "stop it, or give it an entry again";
            Finding::new(Level::Warning, format!("{found}; it is {status}: {how}"))
        };
        VmReport::new(&marked.vm, vec![finding])
    })
}

/// All that was found out about a VM.
struct Facts<'a> {
    github: OfVm<'a>,
    seen: Result<&'a Seen, &'a Error>,
    inactive: Duration,
    keepalive: Option<Duration>,
    /// Whether marks can be written.
    marked: bool,
}

/// What makes up for a loss.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Act {
    /// Let a start check look whether this job still waits.
    StartCheck(WaitingJob, Timestamp),
    /// Let a stop check look.
    StopCheck(Timestamp),
    /// Start it for a while.
    Wake,
}

impl Facts<'_> {
    fn findings(&self) -> Vec<(Finding, Option<Act>)> {
        match self.seen {
            Ok(seen) => [
                self.waits(Some(seen)),
                self.forgotten(seen),
                self.asleep(seen),
                self.no_runner(seen),
            ]
            .into_iter()
            .flatten()
            .collect(),
            Err(error @ Error::NoSuchInstance(_)) => {
                vec![(Finding::new(Level::Error, error.to_string()), None)]
            }
            Err(error) => {
                let unread = Finding::new(Level::Warning, format!("it could not be read: {error}"));
                [Some((unread, None)), self.waits(None)].into_iter().flatten().collect()
            }
        }
    }

    /// A job waits for it: whether the webhook that said so arrived, nobody can tell.
    fn waits(&self, seen: Option<&Seen>) -> Option<(Finding, Option<Act>)> {
        let now = self.github.now;
        let waits = |job: &Job| job.status == Progress::Queued && self.github.fits(job);
        let waiting: Vec<_> = self.github.jobs().filter(|(_, job)| waits(job)).collect();
        let since = |job: &Job| job.queued_since().unwrap_or(now);
        let left_until = |job: &Job| seen.and_then(|seen| left_until(seen, since(job), now));
        let oldest = waiting.iter().filter(|(_, job)| left_until(job).is_none());
        let Some((repo, job)) = oldest.min_by_key(|(_, job)| since(job)) else {
            let (repo, job) = waiting.first()?;
            let found = format!(
                "{} waits, but the VM was free for it for an hour and its runner did not take it: see which runner \
                 group and labels it wants; until {} it does not count",
                job_ref(repo, job),
                left_until(job)?.rfc3339(),
            );
            return Some((Finding::new(Level::Warning, found), None));
        };
        let phase = seen.map(Seen::status);
        let on_its_way = matches!(phase, Some(Phase::Up | Phase::Booting));
        let (level, down, due) = if on_its_way {
            // Where a start chain is, it looks at this very moment.
            (Level::Info, "", next_multiple(now, CHECK_INTERVAL))
        } else {
            (
                Level::Warning,
                if phase.is_some() { ", and it is not up" } else { "" },
                look_again(now, BUCKET),
            )
        };
        let found = format!("{} waits for it{down}", job_ref(repo, job));
        let act = Act::StartCheck(self.github.waits(repo, job), due);
        Some((Finding::new(level, found), Some(act)))
    }

    /// It is up, nothing has needed it for long, and nobody stopped it: its chain may have been lost.
    fn forgotten(&self, seen: &Seen) -> Option<(Finding, Option<Act>)> {
        let now = self.github.now;
        if seen.status() != Phase::Up || seen.is_held() {
            return None;
        }
        if seen.was_started_after_mark() {
            let start = seen.instance.last_start?;
            let by_others = self.marked && now.since(start) >= FORGOTTEN;
            let found = format!(
                "somebody else started it at {}, so it is not stopped until a job came or POST /runner/release",
                start.rfc3339()
            );
            return by_others.then(|| (Finding::new(Level::Info, found), None));
        }
        let mark = seen.mark?.time();
        let found = format!("it last had work at {}, and is still up", mark.rfc3339());
        (self.marked && now.since(mark) >= self.inactive + FORGOTTEN).then(|| {
            let act = Act::StopCheck(look_again(now, BUCKET));
            (Finding::new(Level::Warning, found), Some(act))
        })
    }

    /// It has been down so long that GitHub may soon forget its runner.
    fn asleep(&self, seen: &Seen) -> Option<(Finding, Option<Act>)> {
        let since = match seen.status() {
            Phase::Stopped => seen.instance.last_stop,
            Phase::Suspended => seen.instance.last_suspend,
            Phase::Up | Phase::Booting | Phase::Leaving => None,
        }?;
        let found = format!(
            "it has been down since {}, and GitHub forgets a runner that does not connect for 14 days",
            since.rfc3339()
        );
        let slept = self.github.now.since(since);
        let long = self.keepalive.is_some_and(|keepalive| slept >= keepalive);
        long.then(|| (Finding::new(Level::Info, found), Some(Act::Wake)))
    }

    /// It is up, and its runner should be there by now.
    fn no_runner(&self, seen: &Seen) -> Option<(Finding, Option<Act>)> {
        let start = seen.instance.last_start.filter(|_| seen.status() == Phase::Up)?;
        if self.github.now.since(start) < BOOT_ALLOWANCE {
            return None;
        }
        let since = start.rfc3339();
        let mut runners = self.github.runners().peekable();
        if runners.peek().is_none() {
            let heard = self.github.runners_not_heard().next().is_none();
            let name = self.github.vm.runner_names.only().unwrap_or("any of runner_names");
            let found = format!(
                "it has been up since {since}, but GitHub knows no runner named {name}: register it on the VM again, \
                 or set runner_names in its entry"
            );
            return heard.then(|| (Finding::new(Level::Error, found), None));
        }
        if runners.any(|(_, runner)| runner.online) {
            return None;
        }
        let waits = |job: &Job| job.status == Progress::Queued && self.github.fits(job);
        let (repo, job) = self.github.jobs().find(|(_, job)| waits(job))?;
        let found = format!(
            "it has been up since {since} and {} waits, but its runner is offline: see on the VM whether the runner's \
             service runs, and what it says",
            job_ref(repo, job)
        );
        Some((Finding::new(Level::Error, found), None))
    }

    async fn make_up(&self, app: &AppState, deadline: Deadline) -> VmReport {
        let mut findings = Vec::new();
        for (finding, act) in self.findings() {
            findings.push(match act {
                Some(act) => finding.after(self.carry_out(app, act, deadline).await),
                None => finding,
            });
        }
        VmReport::new(&self.github.vm.vm, findings)
    }

    async fn carry_out(
        &self,
        app: &AppState,
        act: Act,
        deadline: Deadline,
    ) -> Result<String, Error> {
        let (vm, now) = (&self.github.vm.vm, self.github.now);
        match act {
            Act::StartCheck(job, due) => {
                StartTask::new(vm, None, Some(job), now).ask_at(app, due, deadline).await?;
                Ok(format!("a start check looks at {}", due.rfc3339()))
            }
            Act::StopCheck(due) => {
                let mark = self.seen.ok().and_then(|seen| seen.mark);
                let task = StopTask { looks: LATE_LOOK, ..StopTask::new(vm, mark) };
                task.ask_at(app, due, deadline).await?;
                Ok(format!("a stop check looks at {}", due.rfc3339()))
            }
            Act::Wake => {
                let seen = self.seen.map_err(Clone::clone)?;
                let need = Need { vm, now, waiting: Watch::default(), renew: true, guarded: false };
                match need.act(app, seen, deadline).await? {
                    Started::Failed(error) => Err(error.into()),
                    _ => Ok(
                        "it was started, and is stopped again once its runner had time to connect"
                            .into(),
                    ),
                }
            }
        }
    }

    fn not_asked(&self) -> Vec<String> {
        let cut = self.github.cut().map(|repo| {
            format!("list jobs of a run: {repo} has more than {MOST_RUNS} open runs, and only the newest were read")
        });
        self.github.runners_not_heard().chain(self.github.jobs_not_heard()).chain(cut).collect()
    }
}

fn job_ref(repo: &RepoName, job: &Job) -> JobRef {
    JobRef { repo: repo.clone(), id: job.id }
}

/// Until when a job that has waited since `since` does not count: the VM had been up for an hour with it before it was
/// stopped, so its runner does not take it.
fn left_until(seen: &Seen, since: Timestamp, now: Timestamp) -> Option<Timestamp> {
    let (start, stop) = (seen.instance.last_start?, seen.instance.last_stop?);
    let until = stop + LEFT_ALONE;
    let left = stop >= start && stop.since(start.max(since)) >= HOUR && now < until;
    (seen.status() == Phase::Stopped && left).then_some(until)
}

impl Finding {
    pub(super) fn new(level: Level, found: String) -> Self {
        Self { level, found, did: None }
    }

    fn after(self, done: Result<String, Error>) -> Self {
        match done {
            Ok(did) => Self { did: Some(did), ..self },
            Err(error) => Self {
                level: Level::Error,
                found: format!("{}; nothing was done: {error}", self.found),
                did: None,
            },
        }
    }
}

impl VmReport {
    fn new(vm: &Vm, findings: Vec<Finding>) -> Self {
        let Vm { name, zone } = vm.clone();
        Self { vm: vm.clone(), vm_instance_name: name, vm_instance_zone: zone, findings }
    }
}

impl Report {
    /// What was found, counted.
    pub fn summary(&self) -> String {
        let findings =
            self.findings.len() + self.vms.iter().map(|vm| vm.findings.len()).sum::<usize>();
        format!(
            "{} looked at, {} found, {} not asked",
            self.vms.len(),
            findings,
            self.not_asked.len()
        )
    }

    /// One line for each finding, and one for the sweep.
    fn log(&self) {
        for report in &self.vms {
            let Vm { name, zone } = &report.vm;
            for finding in &report.findings {
                match finding.level {
                    Level::Info => info!(vm.name = %name, vm.zone = %zone, "VM {name}: {finding}"),
                    Level::Warning => {
                        warn!(vm.name = %name, vm.zone = %zone, "VM {name}: {finding}")
                    }
                    Level::Error => {
                        error!(vm.name = %name, vm.zone = %zone, "VM {name}: {finding}")
                    }
                }
            }
        }
        for finding in &self.findings {
            match finding.level {
                Level::Info => info!("{finding}"),
                Level::Warning => warn!("{finding}"),
                Level::Error => error!("{finding}"),
            }
        }
        for text in &self.not_asked {
            warn!("the sweep could not ask: {text}");
        }
        info!("swept: {}", self.summary());
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.found)?;
        self.did.as_ref().map_or(Ok(()), |did| write!(f, "; {did}"))
    }
}
