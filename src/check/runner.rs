//! Checks of each VM's runner: its registration, its connection and its labels.

use super::finding::Findings;
use crate::clients::Error;
use crate::clients::compute::Status;
use crate::clients::github::{Runner, RunnerScope};
use crate::clock::Deadline;
use crate::fleet::{Entry, Fleet, Label, ManagedVm, Quoted, RepoName};
use crate::lifecycle::{Context, runners_in, scopes};

/// The lists of a VM's runners, by scope.
pub(super) struct Facts {
    lists: Vec<(RunnerScope, Result<Vec<Runner>, Error>)>,
}

pub(super) async fn read(cx: &Context, vm: &ManagedVm, deadline: Deadline) -> Facts {
    let mut lists = Vec::new();
    for scope in scopes(vm) {
        let list = runners_in(cx, vm, &scope, deadline).await;
        lists.push((scope, list));
    }
    Facts { lists }
}

/// The state of the runner's VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Host {
    /// Up long enough for the runner to be connected.
    Up,
    Down,
    /// Starting, stopping, or not readable.
    Unknown,
}

impl Host {
    pub(super) fn of(status: &Status, up_for_a_while: bool) -> Self {
        match status {
            Status::Running if up_for_a_while => Self::Up,
            Status::Terminated | Status::Stopped | Status::Suspended => Self::Down,
            _ => Self::Unknown,
        }
    }
}

pub(super) fn judge(
    found: &mut Findings,
    facts: &Facts,
    vm: &ManagedVm,
    fleet: &Fleet,
    host: Host,
) {
    let all = facts.lists.iter().filter_map(|(scope, list)| Some((scope, list.as_ref().ok()?)));
    for (scope, runner) in
        all.flat_map(|(scope, runners)| runners.iter().map(move |runner| (scope, runner)))
    {
        judge_runner(found, scope, runner, host);
    }
    facts.judge_unanswered(found);
    for repo in &vm.repos {
        let there = facts.of_repo(repo);
        if there.is_empty() {
            facts.judge_absence(found, vm, repo);
            continue;
        }
        let of_this = |(_, entry): &(usize, &Entry)| entry.vm == vm.vm && entry.repo == *repo;
        for (nth, entry) in fleet.entries().iter().enumerate().filter(of_this) {
            judge_labels(found, nth, entry, &there);
        }
    }
}

impl Facts {
    /// The runners that can get a repository's jobs.
    fn of_repo(&self, repo: &RepoName) -> Vec<&Runner> {
        let serves = |scope: &RunnerScope| match scope {
            RunnerScope::Repository(name) => name == repo,
            RunnerScope::Organization(login) => login.eq_ignore_ascii_case(repo.owner()),
        };
        let lists = self.lists.iter().filter(|(scope, _)| serves(scope));
        lists.filter_map(|(_, list)| list.as_ref().ok()).flatten().collect()
    }

    fn judge_absence(&self, found: &mut Findings, vm: &ManagedVm, repo: &RepoName) {
        let mut unread = Vec::new();
        for (scope, list) in &self.lists {
            let Err(error) = list else { continue };
            match scope {
                RunnerScope::Repository(name) if name == repo => unread.push((scope, error)),
                // GitHub answers 404 for an account that is a user.
                RunnerScope::Organization(login)
                    if login.eq_ignore_ascii_case(repo.owner()) && !error.is_not_found() =>
                {
                    unread.push((scope, error));
                }
                _ => {}
            }
        }
        let name = vm.runner_names.only().unwrap_or("that matches runner_names");
        let grant = "grant the App Administration: read and, for an organization's runners, Self-hosted \
                     runners: read";
        match unread.first() {
            None => found.fail(
                "runner",
                format!("no runner {name} is registered in {repo} or in {}", repo.owner()),
                "register it (GitHub removes a runner that has not connected for 14 days), or set runner_names to \
                 its name",
            ),
            Some((scope, error)) if error.lacks_permission() => {
                found.fail("runner", format!("listing the runners of {scope} is not permitted"), grant);
            }
            Some((scope, error)) if error.is_forbidden() => found.fail(
                "runner",
                format!("the runners of {scope} are refused: {error}"),
                "do what GitHub says: no permission is missing",
            ),
            Some((scope, error)) if error.is_not_found() => found.fail(
                "runner",
                format!("{scope} is not visible to the App, so its runners cannot be listed"),
                "install the App on it, or correct repo in RUNNER_CONFIG",
            ),
            // Reported by `judge_unanswered`.
            Some((_, error)) if error.may_pass() => {}
            Some((scope, error)) => {
                found.failed("runner", error, format!("check GITHUB_API_URL: its answer for {scope} is wrong"));
            }
        }
    }

    /// Reports the scopes that did not answer, in one finding.
    fn judge_unanswered(&self, found: &mut Findings) {
        let unanswered = |(scope, list): &(RunnerScope, Result<_, Error>)| {
            let error = list.as_ref().err().filter(|error| error.may_pass())?;
            Some((scope.to_string(), error.to_string()))
        };
        let (unread_scopes, errors): (Vec<String>, Vec<String>) =
            self.lists.iter().filter_map(unanswered).unzip();
        if let Some(error) = errors.first() {
            found.unknown("runner", format!("{}: {error}", unread_scopes.join(", ")));
        }
    }
}

fn judge_runner(found: &mut Findings, scope: &RunnerScope, runner: &Runner, host: Host) {
    let version = runner.version.as_deref().unwrap_or("unknown");
    let state = if runner.online { "online" } else { "offline" };
    let status = format!("{} of {scope} is {state}, version {version}", runner.name);
    match (host, runner.online) {
        (Host::Up, false) => found.fail(
            "runner",
            format!("{status}, though its VM is up"),
            "check the runner's service on the VM: it has to start at boot and connect to GitHub",
        ),
        (Host::Down, true) => found.warn(
            "runner",
            format!("{status}, though its VM is down"),
            "if it stays online, another machine uses this runner's name: give each its own",
        ),
        (Host::Down, false) => found.ok("runner", format!("{status}, and its VM is down")),
        _ => found.ok("runner", status),
    }
}

fn judge_labels(found: &mut Findings, nth: usize, entry: &Entry, runners: &[&Runner]) {
    let lacking = |wanted: &[Label], runner: &Runner| -> Vec<Label> {
        let lacks = |label: &&Label| !runner.labels.contains(label);
        wanted.iter().filter(lacks).cloned().collect()
    };
    let place = format!("RUNNER_CONFIG[{nth}]");
    let exact = !entry.runner_labels.is_empty();
    let wanted = if exact { &entry.runner_labels } else { &entry.labels };
    let field = if exact { "runner_labels" } else { "labels" };
    // One runner with all of them is enough.
    let missing = runners.iter().map(|runner| lacking(wanted, runner)).min_by_key(Vec::len);
    let missing = missing.unwrap_or_default();
    if !missing.is_empty() {
        let missing = Quoted(&missing);
        return found.fail(
            "runner labels",
            format!(
                "{place}.{field} has {missing}, which its runner lacks: jobs that ask for them would wait"
            ),
            format!("add {missing} to the runner on its page, or remove them from {field}"),
        );
    }
    let more = |runner: &&&Runner| {
        runner.labels.iter().any(|label| exact && !entry.runner_labels.contains(label))
    };
    if let Some(runner) = runners.iter().find(more) {
        let unknown = |label: &&Label| !entry.runner_labels.contains(label);
        let more: Vec<Label> = runner.labels.iter().filter(unknown).cloned().collect();
        let more = Quoted(&more);
        return found.warn(
            "runner labels",
            format!(
                "its runner also has {more}: jobs that ask for them do not start the VM through {place}"
            ),
            format!("add {more} to runner_labels, or remove them from the runner"),
        );
    }
    found.ok("runner labels", format!("its runner has all labels of {place}"));
}

#[cfg(test)]
mod tests {
    use super::super::finding::testing::{
        answered, complains, limited, missing_permission, unanswered,
    };
    use super::*;
    use crate::fleet::{RunnerNames, StopOptions, Vm};

    fn entry(repo: &str, labels: &[&str], runner_labels: &[&str]) -> Entry {
        let list = |labels: &[&str]| labels.iter().map(|&label| label.into()).collect();
        Entry {
            repo: repo.into(),
            labels: list(labels),
            runner_labels: list(runner_labels),
            vm: Vm::new("gpu-1", "us-central1-a"),
            runner_names: RunnerNames::parse(["gpu-1"]),
            stop: StopOptions::default(),
            register: None,
        }
    }

    fn runner(online: bool, labels: &[&str]) -> Runner {
        Runner {
            id: 1,
            name: "gpu-1".into(),
            busy: false,
            online,
            version: Some("2.330.0".into()),
            labels: labels.iter().map(|&label| label.into()).collect(),
        }
    }

    fn repo(name: &str) -> RunnerScope {
        RunnerScope::Repository(name.into())
    }

    fn acme() -> RunnerScope {
        RunnerScope::Organization("acme".into())
    }

    type Lists = Vec<(RunnerScope, Result<Vec<Runner>, Error>)>;

    #[track_caller]
    fn judged(lists: Lists, entries: Vec<Entry>, host: Host, expected: &[&str]) {
        let fleet = Fleet::new(entries);
        let vm = fleet.vms().next().unwrap();
        let mut found = Findings::of("VM");
        judge(&mut found, &Facts { lists }, vm, &fleet, host);
        complains(&found.done(), expected);
    }

    fn in_repo(runners: Result<Vec<Runner>, Error>) -> Lists {
        vec![(repo("acme/app"), runners), (acme(), Ok(vec![]))]
    }

    fn plain() -> Vec<Entry> {
        vec![entry("acme/app", &["self-hosted", "gpu"], &[])]
    }

    #[test]
    fn a_runner_is_connected_while_its_vm_is_up() {
        let lists = |online| in_repo(Ok(vec![runner(online, &["self-hosted", "Linux", "GPU"])]));
        for (host, online, expected) in [
            (Host::Up, true, None),
            (Host::Down, false, None),
            (Host::Unknown, false, None),
            (Host::Unknown, true, None),
            (
                Host::Up,
                false,
                Some("✗ runner: gpu-1 of acme/app is offline, version 2.330.0, though"),
            ),
            (
                Host::Down,
                true,
                Some("! runner: gpu-1 of acme/app is online, version 2.330.0, though"),
            ),
        ] {
            let expected: Vec<&str> = expected.into_iter().collect();
            judged(lists(online), plain(), host, &expected);
        }
        assert_eq!(Host::of(&Status::Running, false), Host::Unknown, "it may still boot");
        assert_eq!(Host::of(&Status::Running, true), Host::Up);
        assert_eq!(Host::of(&Status::Suspended, true), Host::Down);
        assert_eq!(Host::of(&Status::Stopping, true), Host::Unknown);
    }

    #[test]
    fn a_runner_is_registered_in_each_repository_or_in_its_organization() {
        let one = || runner(true, &["self-hosted", "gpu"]);
        let both = || vec![entry("acme/app", &["gpu"], &[]), entry("acme/web", &["gpu"], &[])];
        let lists =
            |app, web, org| vec![(repo("acme/app"), app), (repo("acme/web"), web), (acme(), org)];
        let none = || Ok(vec![]);
        judged(lists(none(), none(), Ok(vec![one()])), both(), Host::Up, &[]);
        judged(lists(Ok(vec![one()]), Ok(vec![one()]), Err(answered(404))), both(), Host::Up, &[]);
        let missing = "✗ runner: no runner gpu-1 is registered in acme/web or in acme";
        judged(lists(Ok(vec![one()]), none(), none()), both(), Host::Up, &[missing]);
        // The account is a user, which has no list.
        judged(lists(Ok(vec![one()]), none(), Err(answered(404))), both(), Host::Up, &[missing]);
        let hidden = "✗ runner: listing the runners of the organization acme is not permitted";
        judged(
            lists(Ok(vec![one()]), none(), Err(missing_permission())),
            both(),
            Host::Up,
            &[hidden],
        );
        // An installation that is suspended, or an IP allow list.
        let refused =
            "✗ runner: the runners of the organization acme are refused: a.call: 403 Forbidden: no";
        judged(lists(Ok(vec![one()]), none(), Err(answered(403))), both(), Host::Up, &[refused]);
        let unknown = "? runner: could not be checked: the organization acme: a.call";
        judged(lists(Ok(vec![one()]), none(), Err(limited())), both(), Host::Up, &[unknown]);
        let unknown = "? runner: could not be checked: acme/web: a.call";
        judged(lists(Ok(vec![one()]), Err(unanswered()), none()), both(), Host::Up, &[unknown]);
        // The organization's list is enough for the labels, but the others may hold a runner too.
        let elsewhere = lists(Err(limited()), Err(answered(503)), Ok(vec![one()]));
        let unknown = "? runner: could not be checked: acme/app, acme/web: a.call: 403";
        judged(elsewhere, both(), Host::Up, &[unknown]);
        let gone = "✗ runner: acme/web is not visible to the App";
        judged(lists(Ok(vec![one()]), Err(answered(404)), none()), both(), Host::Up, &[gone]);
    }

    #[test]
    fn a_runner_has_the_labels_of_its_entries() {
        let with = |labels: &[&str]| in_repo(Ok(vec![runner(true, labels)]));
        judged(with(&["self-hosted", "X64", "gpu"]), plain(), Host::Up, &[]);
        let missing =
            "✗ runner labels: RUNNER_CONFIG[0].labels has [\"gpu\"], which its runner lacks";
        judged(with(&["self-hosted", "X64"]), plain(), Host::Up, &[missing]);
        let exact_entry = || vec![entry("acme/app", &["gpu"], &["self-hosted", "gpu"])];
        judged(with(&["self-hosted", "GPU"]), exact_entry(), Host::Up, &[]);
        let missing = "✗ runner labels: RUNNER_CONFIG[0].runner_labels has [\"self-hosted\"]";
        judged(with(&["gpu"]), exact_entry(), Host::Up, &[missing]);
        let more = "! runner labels: its runner also has [\"X64\"]: jobs that ask";
        judged(with(&["self-hosted", "gpu", "X64"]), exact_entry(), Host::Up, &[more]);
        // One of several is enough.
        let several =
            in_repo(Ok(vec![runner(true, &["gpu"]), runner(true, &["self-hosted", "gpu"])]));
        judged(several, plain(), Host::Up, &[]);
    }
}
