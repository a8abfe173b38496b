//! What an operator sees: each VM, why it is up, and when it may be stopped.
//!
//! The questions are those of a stop check, but nothing is done. What could not be asked is part of the answer, by VM,
//! and hides nothing else. Compute Engine is asked each time. GitHub, whose hourly limit the witnesses need, is not
//! asked again for a while unless a VM has changed: then its last answers are told once more, with their time.

use std::time::Duration;

use serde::Serialize;
use tokio::sync::Mutex;

use super::mark::Mark;
use super::schedule::BOOT_ALLOWANCE;
use super::survey::{OfVm, Survey, look_at_all};
use super::witness::JobRef;
use super::{Error, Phase, Seen};
use crate::clients::compute::Status;
use crate::clients::github::{Job, Place, Progress, Runner};
use crate::clock::{Deadline, Timestamp};
use crate::fleet::{Label, ManagedVm, RepoName};
use crate::state::AppState;

/// Runs of a repository whose jobs are shown. Each costs a call.
const MOST_RUNS: usize = 50;

/// For each call to GitHub that a look took, its answers stand this long; the first where a VM has changed since.
/// Whoever watches all day, and however many do, then leaves most of GitHub's 5,000 calls an hour to the witnesses.
const CHANGED: Duration = Duration::from_secs(1);
const UNCHANGED: Duration = Duration::from_secs(2);

/// The fleet as it is. Times are RFC 3339, in UTC; `None` is what is not known.
#[derive(Debug, Serialize)]
pub struct Report {
    /// When it was made.
    pub now: String,
    /// When GitHub said what it tells of runners and jobs.
    pub github_asked_at: Option<String>,
    /// How long a VM stays up after its last job.
    pub inactive_minutes: u64,
    /// Every VM that an entry names.
    pub vms: Vec<VmReport>,
}

/// What is known of a VM.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct VmReport {
    vm_instance_name: String,
    vm_instance_zone: String,
    /// Compute Engine's word.
    status: Option<String>,
    /// Since when, where Compute Engine tells: it notes starts, stops and suspensions.
    since: Option<String>,
    /// Its mark.
    idle_since: Option<String>,
    held: Option<bool>,
    /// Not before then, if nothing needs it until then; none while something does, or it is held.
    may_stop_at: Option<String>,
    because: Option<String>,
    runners: Vec<RunnerReport>,
    jobs: Vec<JobReport>,
    entries: Vec<EntryReport>,
    /// What could not be asked, and what to do about it.
    not_asked: Vec<String>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct RunnerReport {
    name: String,
    registered_in: String,
    online: bool,
    busy: bool,
    version: Option<String>,
    labels: Vec<Label>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct JobReport {
    repo: RepoName,
    id: u64,
    name: Option<String>,
    status: &'static str,
    url: Option<String>,
    since: Option<String>,
    runner_name: Option<String>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct EntryReport {
    /// Its position in RUNNER_CONFIG.
    index: usize,
    repo: RepoName,
    labels: Vec<Label>,
    /// All that its runner has, if RUNNER_CONFIG tells: then these alone decide.
    runner_labels: Vec<Label>,
}

/// Looks at the whole fleet.
pub async fn report(app: &AppState, deadline: Deadline) -> Report {
    let now = app.clock.now();
    let vms: Vec<&ManagedVm> = app.fleet.vms().collect();
    let seen = look_at_all(app, deadline).await;
    let heard = app.remembered.or_ask(app, &seen, deadline).await;
    let facts = |(vm, seen)| Facts {
        github: OfVm { vm, fleet: &app.fleet, now, survey: heard.as_ref() },
        inactive: app.inactive,
        seen,
    };
    Report {
        now: now.rfc3339(),
        github_asked_at: heard.as_ref().map(|heard| heard.at.rfc3339()),
        inactive_minutes: app.inactive.as_secs() / 60,
        vms: vms.into_iter().zip(seen).map(|pair| facts(pair).report()).collect(),
    }
}

/// What of the VMs tells that GitHub has news: each event of a job marks its VM, or starts it.
type State = Vec<Option<(Status, Option<Mark>)>>;

/// What GitHub said last to this instance of the service, and how the VMs were then. Locked while GitHub is asked, so
/// that those who look at the same time share the answer.
#[derive(Debug, Default)]
pub struct Remembered(Mutex<Option<(State, Survey)>>);

impl Remembered {
    /// None if somebody else is still asking when time runs out.
    async fn or_ask(
        &self,
        app: &AppState,
        seen: &[Result<Seen, Error>],
        deadline: Deadline,
    ) -> Option<Survey> {
        let state = |seen: &Result<Seen, Error>| {
            seen.as_ref().ok().map(|seen| (seen.instance.status.clone(), seen.mark))
        };
        let state: State = seen.iter().map(state).collect();
        let mut last = tokio::time::timeout(deadline.remaining() / 2, self.0.lock()).await.ok()?;
        if let Some((then, heard)) = last.as_ref() {
            let stands = if *then == state { UNCHANGED } else { CHANGED } * heard.calls;
            if app.clock.now().since(heard.at) < stands {
                return Some(heard.clone());
            }
        }
        let vms: Vec<&ManagedVm> = app.fleet.vms().collect();
        let heard = Survey::ask(app, &vms, MOST_RUNS, deadline).await;
        Some(last.insert((state, heard)).1.clone())
    }
}

/// All that was found out about a VM.
struct Facts<'a> {
    github: OfVm<'a>,
    inactive: Duration,
    seen: Result<Seen, Error>,
}

impl Facts<'_> {
    fn report(&self) -> VmReport {
        let seen = self.seen.as_ref().ok();
        let not_asked = self.not_asked();
        let need = self.need();
        let idle = need.is_none();
        let because = need.or_else(|| seen.map(|seen| self.without_need(seen).to_owned()));
        VmReport {
            vm_instance_name: self.github.vm.vm.name.clone(),
            vm_instance_zone: self.github.vm.vm.zone.clone(),
            status: seen.map(|seen| seen.instance.status.to_string()),
            since: seen.and_then(since).map(Timestamp::rfc3339),
            idle_since: seen.and_then(|seen| seen.mark).map(|mark| mark.time().rfc3339()),
            held: seen.map(Seen::is_held),
            may_stop_at: seen
                .filter(|_| idle)
                .and_then(|seen| may_stop_at(seen, self.inactive))
                .map(Timestamp::rfc3339),
            because,
            runners: self
                .github
                .runners()
                .map(|(place, runner)| RunnerReport::new(place, runner))
                .collect(),
            jobs: self.github.jobs().map(|(repo, job)| JobReport::new(repo, job)).collect(),
            entries: self.entries(),
            not_asked,
        }
    }

    /// What keeps it up, or will bring it up.
    fn need(&self) -> Option<String> {
        let job_ref = |(repo, job): (&RepoName, &Job)| JobRef { repo: repo.clone(), id: job.id };
        let first = |status| {
            self.github.jobs().find(|(_, job)| job.status == status && self.github.fits(job))
        };
        if let Some(job) = first(Progress::InProgress).map(job_ref) {
            return Some(format!("{job} runs on it"));
        }
        if let Some((place, _)) = self.github.runners().find(|(_, runner)| runner.busy) {
            return Some(format!("its runner in {place} works"));
        }
        first(Progress::Queued).map(job_ref).map(|job| format!("{job} waits for it"))
    }

    fn without_need(&self, seen: &Seen) -> &'static str {
        let heard = self.not_heard().is_empty();
        match seen.status() {
            Phase::Leaving => "it is on its way down",
            Phase::Booting => "it boots",
            Phase::Up if seen.is_held() => "it carries the hold label",
            Phase::Stopped | Phase::Suspended | Phase::Up if !heard => {
                "GitHub was not heard, so whether something needs it is not known"
            }
            Phase::Stopped | Phase::Suspended => "nothing needs it",
            Phase::Up if seen.mark.is_none() => {
                "nothing needs it, but it has no mark: it was not started here, and is not stopped until a job came or \
                 it was released"
            }
            Phase::Up if self.was_just_started(seen) => "it was started a moment ago",
            Phase::Up => "nothing needs it",
        }
    }

    fn was_just_started(&self, seen: &Seen) -> bool {
        let start = seen.instance.last_start.filter(|_| seen.was_started_after_mark());
        start.is_some_and(|start| self.github.now.since(start) < BOOT_ALLOWANCE)
    }

    fn entries(&self) -> Vec<EntryReport> {
        let all = self.github.fleet.entries().iter().enumerate();
        all.filter(|(_, entry)| entry.vm == self.github.vm.vm)
            .map(|(index, entry)| EntryReport {
                index,
                repo: entry.repo.clone(),
                labels: entry.labels.clone(),
                runner_labels: entry.runner_labels.clone(),
            })
            .collect()
    }

    fn not_asked(&self) -> Vec<String> {
        let unread = self.seen.as_ref().err().map(|error| match error {
            Error::Upstream(error) if error.is_forbidden() => {
                format!("{error}: grant compute.instances.get to the service's account")
            }
            Error::Upstream(error) => format!("{error}: ask again"),
            error => error.to_string(),
        });
        let cut = self.github.cut().map(|repo| {
            format!(
                "list jobs of a run: {repo} has more than {MOST_RUNS} open runs: see them on GitHub"
            )
        });
        unread.into_iter().chain(self.not_heard()).chain(cut).collect()
    }

    /// What GitHub did not say.
    fn not_heard(&self) -> Vec<String> {
        if self.github.survey.is_none() {
            return vec!["GitHub: another look at the fleet still asks: ask again".to_owned()];
        }
        self.github.runners_not_heard().chain(self.github.jobs_not_heard()).collect()
    }
}

/// Since when it is what it is, of what Compute Engine notes: it does not tell when a start or a stop began.
fn since(seen: &Seen) -> Option<Timestamp> {
    match seen.status() {
        Phase::Up => seen.instance.last_start,
        Phase::Stopped => seen.instance.last_stop,
        Phase::Suspended => seen.instance.last_suspend,
        Phase::Booting | Phase::Leaving => None,
    }
}

/// When a stop check may stop it, if nothing needs it.
fn may_stop_at(seen: &Seen, inactive: Duration) -> Option<Timestamp> {
    if seen.status() != Phase::Up || seen.is_held() {
        return None;
    }
    let idle_enough = seen.mark?.time() + inactive;
    let start = seen.instance.last_start.filter(|_| seen.was_started_after_mark());
    Some(start.map_or(idle_enough, |start| idle_enough.max(start + BOOT_ALLOWANCE)))
}

impl RunnerReport {
    fn new(place: &Place, runner: &Runner) -> Self {
        Self {
            name: runner.name.clone(),
            registered_in: match place {
                Place::Repository(repo) => repo.to_string(),
                Place::Organization(login) => login.clone(),
            },
            online: runner.online,
            busy: runner.busy,
            version: runner.version.clone(),
            labels: runner.labels.clone(),
        }
    }
}

impl JobReport {
    fn new(repo: &RepoName, job: &Job) -> Self {
        Self {
            repo: repo.clone(),
            id: job.id,
            name: job.name.clone(),
            status: job.status.as_str(),
            url: job.html_url.clone(),
            since: job.queued_since().map(Timestamp::rfc3339),
            runner_name: job.runner_name.clone().filter(|name| !name.is_empty()),
        }
    }
}
