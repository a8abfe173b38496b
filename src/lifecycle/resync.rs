//! The resync: the periodic pass over the whole fleet.
//!
//! Everything else follows from an event, and events get lost: GitHub sends no webhook a second time by itself, and an
//! operator may purge a queue. So a scheduler calls this every few minutes. It runs the decision of a pass on the facts
//! of the whole fleet, and where that is to start or to stop, it creates a pass, which decides by itself. Passes merge,
//! so the resync may come as often as the operator likes.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use serde::Serialize;
use tracing::{error, info, warn};

use super::context::{Context, RESERVE, Turn};
use super::decide::Action;
use super::error::Error;
use super::finding::{Finding, Level};
use super::reconcile::log;
use super::redelivery;
use super::schedule::{BOOT_ALLOWANCE, IdleSince, due_before, next_bucket, next_interval};
use super::snapshot::{Depth, FleetSnapshot, Runners, VmView, by_vm, observe_all};
use super::task::Task;
use super::vm::{IDLE_SINCE_LABEL, Phase, VmSnapshot};
use crate::clients::compute::Labelled;
use crate::clients::github::JobStatus;
use crate::clock::{Deadline, Timestamp};
use crate::fleet::Vm;

/// The longest life of a resync.
pub const RESYNC_TIME: Duration = Duration::from_secs(45);

/// The runs of a repository whose jobs are read, newest first. Each costs a call, and GitHub counts 5,000 in an hour.
const MAX_RUNS: usize = 200;

/// VMs for which something is done at the same time.
const CONCURRENT_ACTS: usize = 4;

/// A VM that could have been stopped this long ago has lost its passes.
const OVERDUE: Duration = Duration::from_secs(30 * 60);

/// The findings of a resync, and its acts.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Every VM that an entry names, and those that no entry names since a change.
    pub vms: Vec<VmReport>,
    /// Findings that concern no VM alone.
    pub findings: Vec<Finding>,
    /// Questions without an answer, with advice.
    pub not_asked: Vec<String>,
}

/// The findings about one VM.
#[derive(Debug, Serialize)]
pub struct VmReport {
    #[serde(skip)]
    vm: Vm,
    vm_instance_name: String,
    vm_instance_zone: String,
    findings: Vec<Finding>,
}

/// Compares the whole fleet with what Google and GitHub say, and creates the passes that are missing.
pub async fn resync(cx: &Context, deadline: Deadline) -> Report {
    let asking = deadline.minus(RESERVE);
    let (reads, labelled, deliveries) = tokio::join!(
        observe_all(cx, asking),
        cx.compute.labelled(IDLE_SINCE_LABEL, asking),
        redelivery::ask_again(cx, asking),
    );
    let github = FleetSnapshot::take(
        cx,
        &reads,
        Depth { runners: Runners::WhereTheyMatter, max_runs: MAX_RUNS },
        asking,
    )
    .await;
    let now = cx.clock.now();
    let reads = by_vm(cx, &reads);
    let view = |vm| {
        let turn = Turn { cx, vm, now, deadline };
        View(VmView { turn, reads: &reads, github: Some(&github) })
    };
    let views: Vec<View<'_>> = cx.fleet.vms().map(|vm| view(vm)).collect();
    let acts = views.iter().map(View::make_up).collect::<Vec<_>>();
    let mut vms: Vec<VmReport> = stream::iter(acts).buffered(CONCURRENT_ACTS).collect().await;

    let mut not_asked: BTreeSet<String> =
        views.iter().flat_map(|view| view.0.unanswered()).collect();
    match labelled {
        Ok(labelled) => vms.extend(nameless(cx, labelled)),
        Err(error) if error.is_forbidden() => {
            not_asked.insert(format!(
                "{error}: grant compute.instances.list in the project, to learn of VMs that entries no longer name"
            ));
        }
        Err(error) => {
            not_asked.insert(format!("{error}: ask again"));
        }
    }
    let mut findings = deliveries.unwrap_or_else(|error| {
        not_asked.insert(format!("{error}, for deliveries that failed: ask again"));
        Vec::new()
    });
    findings.extend(github.unserved(&cx.fleet).iter().filter_map(|job| job.finding(now)));
    let report = Report { vms, findings, not_asked: not_asked.into_iter().collect() };
    report.log();
    report
}

/// VMs that carry the service's label and that no entry names: taken out of RUNNER_CONFIG, or of another service.
fn nameless(cx: &Context, labelled: Vec<Labelled>) -> impl Iterator<Item = VmReport> {
    let is_ours = |labelled: &Labelled| cx.fleet.vm(&labelled.vm).is_some();
    labelled.into_iter().filter(move |labelled| !is_ours(labelled)).map(|labelled| {
        let status = labelled.status;
        let found = "it carries this service's label, and no entry of RUNNER_CONFIG names it";
        let finding = if Phase::of(&status).is_down() {
            Finding::new(Level::Info, format!("{found}; it is {status}"))
        } else {
            let how = "stop it, or give it an entry again";
            Finding::new(Level::Warning, format!("{found}; it is {status}: {how}"))
        };
        VmReport::new(&labelled.vm, vec![finding])
    })
}

/// A pass to create, and what the report says of it.
struct Act {
    task: Task,
    due: Timestamp,
    what: &'static str,
}

/// A due time that no pass of a loop has: a pass of the resync must not take the place of one that knows since when the
/// VM has been idle.
fn beside_the_loop(due: Timestamp) -> Timestamp {
    if due == next_interval(due - Duration::from_secs(1)) { next_bucket(due) } else { due }
}

/// One VM in the snapshot, with the findings about it.
struct View<'a>(VmView<'a>);

impl View<'_> {
    fn now(&self) -> Timestamp {
        self.0.turn.now
    }

    fn findings(&self) -> Vec<(Finding, Option<Act>)> {
        let read = match self.0.read() {
            Ok(read) => read,
            Err(error @ Error::NoSuchInstance(_)) => {
                return vec![(Finding::new(Level::Error, error.to_string()), None)];
            }
            Err(error) => {
                let unread = Finding::new(Level::Warning, format!("it could not be read: {error}"));
                return std::iter::once((unread, None))
                    .chain(self.queued_for_an_unread_vm())
                    .collect();
            }
        };
        let decided = self.decided(read);
        let others = [self.asleep(read), self.without_runner(read)].into_iter().flatten();
        decided.into_iter().chain(others).chain(self.given_up(read)).collect()
    }

    /// A pass finds out whether the VM is up.
    fn queued_for_an_unread_vm(&self) -> Option<(Finding, Option<Act>)> {
        let job = self.0.queued_job()?;
        let found = format!("{job} is queued for it");
        let task = Task::new(&self.0.turn.vm.vm, IdleSince::BEFORE_ALL).with_job(job);
        let act =
            Act { task, due: next_bucket(self.now()), what: "a pass starts it if it is down" };
        Some((Finding::new(Level::Warning, found), Some(act)))
    }

    /// The rules of a pass say that it has to be started or stopped.
    fn decided(&self, read: &VmSnapshot) -> Option<(Finding, Option<Act>)> {
        let (decision, stop_after) = self.0.decision()?;
        log(&self.0.turn.vm.vm, &decision.notices);
        let (task, _) = decision.next?;
        match decision.action {
            Action::Nothing | Action::Restart => None,
            Action::Start => {
                let found = format!("{}, and it is {}", decision.because, read.status());
                let act = Act { task, due: next_bucket(self.now()), what: "a pass starts it" };
                Some((Finding::new(Level::Warning, found), Some(act)))
            }
            Action::Stop => self.stop(read, stop_after),
        }
    }

    /// The webhook or the task that should have had it stopped may be lost.
    fn stop(&self, read: &VmSnapshot, stop_after: Timestamp) -> Option<(Finding, Option<Act>)> {
        let (now, inactive) = (self.now(), self.0.turn.cx.inactive);
        let Some(idle_since) = read.idle_since else {
            let start = read.instance.last_start?;
            let found = format!(
                "it was started at {}, and not by this service, so it is not stopped until a job came or POST \
                 /runner/release",
                start.rfc3339()
            );
            let overdue = now.since(start) >= OVERDUE;
            return overdue.then(|| (Finding::new(Level::Info, found), None));
        };
        let level = if now.since(stop_after) >= OVERDUE { Level::Warning } else { Level::Info };
        let found =
            format!("nothing needs it, and it could have been stopped at {}", stop_after.rfc3339());
        // A `completed` may be late: this is the first pass that found it idle.
        let task = Task::new(&self.0.turn.vm.vm, idle_since);
        let task = Task { idle_at: Some(now), resync: true, ..task };
        let due = beside_the_loop(due_before(now, now + inactive));
        Some((Finding::new(level, found), Some(Act { task, due, what: "a pass decides" })))
    }

    /// It has been down so long that GitHub may soon forget its runner.
    fn asleep(&self, read: &VmSnapshot) -> Option<(Finding, Option<Act>)> {
        let since = match read.phase {
            Phase::Stopped => read.instance.last_stop,
            Phase::Suspended => read.instance.last_suspend,
            Phase::Up | Phase::Booting | Phase::Leaving => None,
        }?;
        let found = format!(
            "it has been down since {}, and GitHub forgets a runner that does not connect for 14 days",
            since.rfc3339()
        );
        let now = self.now();
        let keepalive = self.0.turn.cx.keepalive?;
        let task = Task::new(&self.0.turn.vm.vm, IdleSince::of_event(now)).with_operator(now);
        let what = "a pass starts it, and stops it again once its runner had time to connect";
        let act = Act { task, due: next_bucket(now), what };
        (now.since(since) >= keepalive).then(|| (Finding::new(Level::Info, found), Some(act)))
    }

    /// It is up, and its runner should be connected by now.
    fn without_runner(&self, read: &VmSnapshot) -> Option<(Finding, Option<Act>)> {
        let start = read.instance.last_start.filter(|_| read.phase == Phase::Up)?;
        if self.now().since(start) < BOOT_ALLOWANCE {
            return None;
        }
        let since = start.rfc3339();
        let mut runners = self.0.runners().peekable();
        if runners.peek().is_none() {
            let name = self.0.turn.vm.runner_names.only().unwrap_or("any of runner_names");
            let found = format!(
                "it has been up since {since}, but GitHub knows no runner named {name}: register it on the VM again, \
                 or set runner_names in its entry"
            );
            return self.0.runners_answered().then(|| (Finding::new(Level::Error, found), None));
        }
        if runners.any(|(_, runner)| runner.online) {
            return None;
        }
        let jobs = self.0.jobs();
        let (repo, job) =
            jobs.iter().find(|(_, job)| job.status == JobStatus::Queued && self.0.fits(job))?;
        let found = format!(
            "it has been up since {since} and job {} of {repo} is queued, but its runner is offline: see on the VM \
             whether the runner's service runs, and what it says",
            job.id
        );
        Some((Finding::new(Level::Error, found), None))
    }

    /// Jobs that are queued and that passes no longer count.
    fn given_up(&self, read: &VmSnapshot) -> Vec<(Finding, Option<Act>)> {
        let jobs = self.0.jobs();
        let given_up = jobs
            .iter()
            .filter(|(_, job)| job.status == JobStatus::Queued && read.given_up.contains(&job.id));
        given_up
            .map(|(repo, job)| {
                let found = format!(
                    "job {} of {repo} is queued, but its runner did not take it in an hour, so it does not count: see \
                     which runner group and labels it asks for",
                    job.id
                );
                (Finding::new(Level::Warning, found), None)
            })
            .collect()
    }

    async fn make_up(&self) -> VmReport {
        let mut findings = Vec::new();
        for (finding, act) in self.findings() {
            findings.push(match act {
                None => finding,
                Some(Act { task, due, what }) => {
                    let scheduled = self.0.turn.schedule(task, due).await;
                    finding.after(scheduled.map(|()| format!("{what} at {}", due.rfc3339())))
                }
            });
        }
        VmReport::new(&self.0.turn.vm.vm, findings)
    }
}

impl VmReport {
    fn new(vm: &Vm, findings: Vec<Finding>) -> Self {
        let Vm { name, zone } = vm.clone();
        Self { vm: vm.clone(), vm_instance_name: name, vm_instance_zone: zone, findings }
    }
}

impl Report {
    /// The counts, for a log line and a header.
    pub fn summary(&self) -> String {
        let findings =
            self.findings.len() + self.vms.iter().map(|vm| vm.findings.len()).sum::<usize>();
        format!(
            "{} VMs, {} findings, {} questions without an answer",
            self.vms.len(),
            findings,
            self.not_asked.len()
        )
    }

    /// One line for each finding, and one for the resync.
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
            warn!("the resync could not ask: {text}");
        }
        info!("resync: {}", self.summary());
    }
}
