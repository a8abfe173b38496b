//! The fleet: the configured VMs, and the routes from jobs to them.
//!
//! A job goes to the first matching entry of its repository. An entry with `runner_labels` matches if they include all
//! labels of the job, which is GitHub's own rule. An entry without them matches if the job has all of its `labels`.
//! Entries of a repository with the same labels are a [`Pool`]: any of their VMs may run the job. Repository names, labels
//! and runner names are compared without regard to case, as GitHub does.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A Compute Engine instance of the configured project, by name and zone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vm {
    /// The instance's name, and its runner's unless `runner_names` says otherwise.
    pub name: String,
    /// The zone, such as `asia-northeast1-a`.
    pub zone: String,
}

impl Vm {
    pub fn new(name: impl Into<String>, zone: impl Into<String>) -> Self {
        Self { name: name.into(), zone: zone.into() }
    }
}

impl fmt::Display for Vm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", self.name, self.zone)
    }
}

/// Text that keeps its spelling and is compared without regard to ASCII case.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
struct Caseless(String);

impl Caseless {
    fn bytes(&self) -> impl Iterator<Item = u8> {
        self.0.bytes().map(|byte| byte.to_ascii_lowercase())
    }
}

impl PartialEq for Caseless {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl Eq for Caseless {}

impl PartialOrd for Caseless {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Caseless {
    fn cmp(&self, other: &Self) -> Ordering {
        self.bytes().cmp(other.bytes())
    }
}

/// Defines a newtype of [`Caseless`].
macro_rules! caseless {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Caseless);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0.0
            }
        }

        impl<T: Into<String>> From<T> for $name {
            fn from(text: T) -> Self {
                Self(Caseless(text.into()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

caseless! {
    /// A label of a job (an element of `runs-on`) or of a runner.
    Label
}

caseless! {
    /// A repository's full name, `owner/repo`.
    RepoName
}

impl RepoName {
    /// The form `owner/repo`, which may be part of a path.
    pub fn is_full_name(&self) -> bool {
        let is_name = |name: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            !matches!(name, "" | "." | "..") && name.chars().all(plain)
        };
        self.as_str().split_once('/').is_some_and(|(owner, repo)| is_name(owner) && is_name(repo))
    }

    /// The account that owns the repository: an organization or a user.
    pub fn owner(&self) -> &str {
        self.as_str().split_once('/').map_or(self.as_str(), |(owner, _)| owner)
    }
}

/// The names of a VM's runners: exact names, and prefixes, which RUNNER_CONFIG writes with a trailing `*`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunnerNames(Vec<Pattern>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Pattern {
    Exactly(Caseless),
    StartsWith(Caseless),
}

impl RunnerNames {
    pub fn parse<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Self {
        let read = |text: &str| match text.strip_suffix('*') {
            Some(prefix) => Pattern::StartsWith(Caseless(prefix.into())),
            None => Pattern::Exactly(Caseless(text.into())),
        };
        Self(patterns.into_iter().map(read).collect())
    }

    pub fn contain(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| match pattern {
            Pattern::Exactly(exact) => exact.0.eq_ignore_ascii_case(name),
            Pattern::StartsWith(prefix) => {
                let head = name.as_bytes().get(..prefix.0.len());
                head.is_some_and(|head| head.eq_ignore_ascii_case(prefix.0.as_bytes()))
            }
        })
    }

    /// The name, if it is a single exact one: GitHub can filter its list of runners by it.
    pub fn only(&self) -> Option<&str> {
        match self.0.as_slice() {
            [Pattern::Exactly(name)] => Some(&name.0),
            _ => None,
        }
    }

    /// The name under which this VM registers a runner: its own if that is allowed, else the first exact one.
    pub fn for_vm(&self, vm: &str) -> String {
        let exact = self.0.iter().find_map(|pattern| match pattern {
            Pattern::Exactly(name) => Some(name.0.as_str()),
            Pattern::StartsWith(_) => None,
        });
        if self.contain(vm) { vm } else { exact.unwrap_or(vm) }.to_owned()
    }

    fn extend(&mut self, more: &Self) {
        for pattern in &more.0 {
            if !self.0.contains(pattern) {
                self.0.push(pattern.clone());
            }
        }
    }
}

/// One element of RUNNER_CONFIG: a rule that routes jobs of `repo` to `vm`.
#[derive(Clone, Debug)]
pub struct Entry {
    pub repo: RepoName,
    /// The labels that a job must have, all of them, unless there are `runner_labels`. Never empty: GitHub-hosted jobs
    /// would match too.
    pub labels: Vec<Label>,
    /// All labels of the VM's runner, if configured: a job matches if it asks for no others.
    pub runner_labels: Vec<Label>,
    pub vm: Vm,
    /// The names of the VM's runners; by default the VM's name.
    pub runner_names: RunnerNames,
    pub stop: StopOptions,
    /// The scope in which the VM may register its runner by itself, if it may.
    pub register: Option<RegisterIn>,
}

/// The way in which a VM is stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StopOptions {
    /// The data of the VM's local SSDs may be discarded. Without it, a VM that has them is not stopped.
    pub discard_local_ssd: bool,
    /// The runner is removed from GitHub first, so that it gets no job any more.
    pub drain: bool,
    /// The VM is suspended if Compute Engine can do that.
    pub suspend: bool,
}

impl StopOptions {
    /// Of all entries of a VM: one entry that wants something is enough.
    fn extend(&mut self, other: Self) {
        self.discard_local_ssd |= other.discard_local_ssd;
        self.drain |= other.drain;
        self.suspend |= other.suspend;
    }
}

/// The scope of a runner that its VM registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegisterIn {
    /// The entry's repository.
    Repository,
    /// The organization that owns the repository.
    Organization,
}

fn are_among(some: &[Label], all: &[Label]) -> bool {
    some.iter().all(|label| all.contains(label))
}

fn are_same(some: &[Label], others: &[Label]) -> bool {
    are_among(some, others) && are_among(others, some)
}

/// The reason why an entry does not match a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mismatch {
    OtherRepository,
    /// The entry requires these labels, which the job lacks.
    JobLacks(Vec<Label>),
    /// The job requires these labels, which the entry's runner lacks.
    RunnerLacks(Vec<Label>),
    /// The job has no labels.
    NoLabels,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherRepository => f.write_str("the entry is for another repository"),
            Self::JobLacks(labels) => write!(f, "the job does not ask for {}", Quoted(labels)),
            Self::RunnerLacks(labels) => {
                write!(f, "the job asks for {}, which runner_labels lacks", Quoted(labels))
            }
            Self::NoLabels => f.write_str("the job has no labels"),
        }
    }
}

/// A list of labels as in JSON, since a label may contain commas and spaces: `["self-hosted", "gpu"]`. Control
/// characters, which a terminal could interpret, are replaced.
#[derive(Clone, Copy, Debug)]
pub struct Quoted<'a>(pub &'a [Label]);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (nth, label) in self.0.iter().enumerate() {
            let json = serde_json::to_string(label).map_err(|_| fmt::Error)?;
            write!(
                f,
                "{}{}",
                if nth == 0 { "" } else { ", " },
                json.replace(char::is_control, "?")
            )?;
        }
        f.write_str("]")
    }
}

impl Entry {
    fn matches(&self, job: &[Label]) -> bool {
        !self.lacks_all_labels(job) && self.missing_labels(job).next().is_none()
    }

    /// The reason why this entry does not match the job; `None` if it does, even if an earlier entry takes the job.
    pub fn mismatch(&self, repo: &RepoName, job: &[Label]) -> Option<Mismatch> {
        if self.repo != *repo {
            return Some(Mismatch::OtherRepository);
        }
        if self.lacks_all_labels(job) {
            return Some(Mismatch::NoLabels);
        }
        let missing: Vec<Label> = self.missing_labels(job).cloned().collect();
        match missing.is_empty() {
            true => None,
            false if self.runner_labels.is_empty() => Some(Mismatch::JobLacks(missing)),
            false => Some(Mismatch::RunnerLacks(missing)),
        }
    }

    /// The job asks for none but the entry's labels.
    pub fn covers(&self, job: &[Label]) -> bool {
        !job.is_empty() && are_among(job, &self.labels)
    }

    /// The labels of any runner include all labels of such a job, but a self-hosted runner never gets it.
    fn lacks_all_labels(&self, job: &[Label]) -> bool {
        job.is_empty() && !self.runner_labels.is_empty()
    }

    /// The labels that prevent a match: the entry's that the job lacks or, with `runner_labels`, the job's that the
    /// runner lacks.
    fn missing_labels<'a>(&'a self, job: &'a [Label]) -> impl Iterator<Item = &'a Label> {
        let (wanted, there) = match self.runner_labels.as_slice() {
            [] => (self.labels.as_slice(), job),
            runner => (job, runner),
        };
        wanted.iter().filter(|label| !there.contains(label))
    }

    /// Both entries match the same jobs, so their VMs are a pool.
    fn pools_with(&self, other: &Self) -> bool {
        self.repo == other.repo
            && are_same(&self.labels, &other.labels)
            && are_same(&self.runner_labels, &other.runner_labels)
    }

    /// Every job that matches `later` matches this entry too.
    fn shadows(&self, later: &Self) -> bool {
        match (self.runner_labels.as_slice(), later.runner_labels.as_slice()) {
            ([], []) => are_among(&self.labels, &later.labels),
            // A job for `later` asks for `only` and nothing else.
            ([], [only]) => self.labels.iter().all(|label| label == only),
            ([], _) => false,
            // A job for `later` may ask for more labels than the runner has.
            (_, []) => false,
            (all, some) => are_among(some, all),
        }
    }
}

/// A VM with the settings of all entries that name it.
#[derive(Clone, Debug)]
pub struct ManagedVm {
    pub vm: Vm,
    /// The repositories whose jobs run on it.
    pub repos: BTreeSet<RepoName>,
    pub runner_names: RunnerNames,
    pub stop: StopOptions,
    /// The other VMs of its pools.
    pub peers: BTreeSet<Vm>,
}

impl ManagedVm {
    /// A VM that no entry names.
    pub fn unconfigured(vm: Vm) -> Self {
        Self {
            vm,
            repos: BTreeSet::new(),
            runner_names: RunnerNames::default(),
            stop: StopOptions::default(),
            peers: BTreeSet::new(),
        }
    }

    /// Other VMs serve some of its jobs too.
    pub fn is_in_a_pool(&self) -> bool {
        !self.peers.is_empty()
    }
}

/// The VMs that serve the same jobs of a repository, in the order of their entries. Most pools have one VM.
#[derive(Clone, Debug)]
pub struct Pool {
    /// The position of its first entry.
    pub first_entry: usize,
    pub repo: RepoName,
    vms: Vec<Arc<ManagedVm>>,
}

impl Pool {
    /// Never empty.
    pub fn vms(&self) -> &[Arc<ManagedVm>] {
        &self.vms
    }

    pub fn first(&self) -> &Arc<ManagedVm> {
        &self.vms[0]
    }

    pub fn contains(&self, vm: &Vm) -> bool {
        self.vms.iter().any(|member| member.vm == *vm)
    }
}

/// The configured entries, in order, indexed by repository and by VM.
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    entries: Vec<Entry>,
    by_repo: BTreeMap<RepoName, Vec<usize>>,
    /// By the position of its first entry.
    pools: BTreeMap<usize, Pool>,
    /// For each entry, the position of the first of its pool.
    first_of_pool: Vec<usize>,
    /// `Arc`, since work on a VM may outlive its request.
    vms: BTreeMap<Vm, Arc<ManagedVm>>,
}

/// The name and zone that a caller gave do not identify one VM.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoSuchVm {
    #[error("no entry of RUNNER_CONFIG names the VM {0}")]
    Unknown(String),
    #[error("several VMs match: give vm_instance_name and vm_instance_zone of one of: {}", list(.0))]
    Ambiguous(Vec<Vm>),
}

fn list(vms: &[Vm]) -> String {
    vms.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl Fleet {
    /// A fleet of these entries. Of several that match a job the first wins, with its pool.
    pub fn new(entries: Vec<Entry>) -> Self {
        let mut by_repo = BTreeMap::<RepoName, Vec<usize>>::new();
        let mut vms = BTreeMap::<Vm, ManagedVm>::new();
        for (index, entry) in entries.iter().enumerate() {
            by_repo.entry(entry.repo.clone()).or_default().push(index);
            let vm = vms
                .entry(entry.vm.clone())
                .or_insert_with(|| ManagedVm::unconfigured(entry.vm.clone()));
            vm.repos.insert(entry.repo.clone());
            vm.runner_names.extend(&entry.runner_names);
            vm.stop.extend(entry.stop);
        }
        let first_of_pool = first_of_pools(&entries, &by_repo);
        let mut members = BTreeMap::<usize, Vec<Vm>>::new();
        for (entry, first) in entries.iter().zip(&first_of_pool) {
            let members = members.entry(*first).or_default();
            if !members.contains(&entry.vm) {
                members.push(entry.vm.clone());
            }
        }
        for members in members.values() {
            for vm in members {
                let peers = members.iter().filter(|peer| *peer != vm).cloned();
                vms.get_mut(vm).expect("each entry's VM is known").peers.extend(peers);
            }
        }
        let vms: BTreeMap<Vm, Arc<ManagedVm>> =
            vms.into_iter().map(|(vm, managed)| (vm, Arc::new(managed))).collect();
        let pool = |(first_entry, members): (usize, Vec<Vm>)| {
            let vms = members.iter().map(|vm| Arc::clone(&vms[vm])).collect();
            let repo = entries[first_entry].repo.clone();
            (first_entry, Pool { first_entry, repo, vms })
        };
        let pools = members.into_iter().map(pool).collect();
        Self { entries, by_repo, pools, first_of_pool, vms }
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Each VM that an entry names, once.
    pub fn vms(&self) -> impl Iterator<Item = &Arc<ManagedVm>> {
        self.vms.values()
    }

    /// The settings of `vm`; `None` if no entry names it.
    pub fn vm(&self, vm: &Vm) -> Option<&Arc<ManagedVm>> {
        self.vms.get(vm)
    }

    /// The VMs that may run a job of `repo` with these labels.
    pub fn pool(&self, repo: &RepoName, labels: &[Label]) -> Option<&Pool> {
        let of_repo = self.by_repo.get(repo)?;
        let matching = of_repo.iter().find(|index| self.entries[**index].matches(labels))?;
        // It is the first of its pool: all others match the same jobs.
        self.pools.get(matching)
    }

    /// The pool of the entry at this position.
    pub fn pool_of_entry(&self, index: usize) -> Option<&Pool> {
        self.pools.get(self.first_of_pool.get(index)?)
    }

    /// The VM that a job of `repo` with these labels goes to, or the first VM of its pool.
    pub fn route(&self, repo: &RepoName, labels: &[Label]) -> Option<&Arc<ManagedVm>> {
        self.pool(repo, labels).map(Pool::first)
    }

    /// The entry of `repo` that lacks the fewest labels to match a job with these, with its index.
    pub fn nearest(&self, repo: &RepoName, labels: &[Label]) -> Option<(usize, Mismatch)> {
        let lacking = |index: &usize| self.entries[*index].missing_labels(labels).count();
        let index = *self.by_repo.get(repo)?.iter().min_by_key(|index| lacking(index))?;
        Some((index, self.entries[index].mismatch(repo, labels)?))
    }

    /// A job of `repo` with these labels goes to `vm`, or to its pool.
    pub fn routes_to(&self, repo: &RepoName, labels: &[Label], vm: &Vm) -> bool {
        self.pool(repo, labels).is_some_and(|pool| pool.contains(vm))
    }

    /// The VM of a completed job: the one whose runner ran it or, if no VM's runner did, the one that its labels route
    /// it to.
    pub fn route_finished(
        &self,
        repo: &RepoName,
        labels: &[Label],
        runner: Option<&str>,
    ) -> Option<&Arc<ManagedVm>> {
        let routed = self.route(repo, labels);
        let ran_it =
            |vm: &&Arc<ManagedVm>| runner.is_some_and(|name| vm.runner_names.contain(name));
        routed.filter(ran_it).or_else(|| self.owner_of_runner(repo, runner?)).or(routed)
    }

    /// The VM of `repo` whose runner has this name.
    pub fn owner_of_runner(&self, repo: &RepoName, runner: &str) -> Option<&Arc<ManagedVm>> {
        let entry = self.entries_of(repo).find(|entry| entry.runner_names.contain(runner))?;
        self.vms.get(&entry.vm)
    }

    /// The one VM with this name and this zone. Both may be left out as long as one VM matches.
    pub fn find(
        &self,
        name: Option<&str>,
        zone: Option<&str>,
    ) -> Result<&Arc<ManagedVm>, NoSuchVm> {
        if let (Some(name), Some(zone)) = (name, zone) {
            // The common case: every task of the service gives both.
            let vm = Vm::new(name, zone);
            return self.vms.get(&vm).ok_or_else(|| NoSuchVm::Unknown(vm.to_string()));
        }
        let fits = |vm: &&Arc<ManagedVm>| {
            name.is_none_or(|n| n == vm.vm.name) && zone.is_none_or(|z| z == vm.vm.zone)
        };
        let found: Vec<&Arc<ManagedVm>> = self.vms.values().filter(fits).collect();
        match found.as_slice() {
            [one] => Ok(one),
            [] => Err(NoSuchVm::Unknown(match name {
                Some(name) => name.to_owned(),
                None => format!("in {}", zone.unwrap_or("any zone")),
            })),
            several => Err(NoSuchVm::Ambiguous(several.iter().map(|vm| vm.vm.clone()).collect())),
        }
    }

    /// Pairs of entries, by position, of which the later never matches: the earlier, with another VM or other labels,
    /// takes all of its jobs.
    pub fn shadowed(&self) -> Vec<(usize, usize)> {
        self.by_repo
            .values()
            .flat_map(|of_repo| {
                of_repo.iter().enumerate().filter_map(move |(nth, &later)| {
                    let mut before = of_repo[..nth].iter();
                    let earlier = before.find(|&&earlier| self.is_shadowed_by(later, earlier));
                    earlier.map(|&earlier| (earlier, later))
                })
            })
            .collect()
    }

    /// The entry at `later` gets no job because of the one at `earlier`. A pool gets its jobs by its first entry.
    fn is_shadowed_by(&self, later: usize, earlier: usize) -> bool {
        let (entry, other) = (&self.entries[later], &self.entries[earlier]);
        let is_same_pool = self.first_of_pool[earlier] == self.first_of_pool[later];
        match is_same_pool {
            true => other.vm == entry.vm,
            false => earlier < self.first_of_pool[later] && other.shadows(entry),
        }
    }

    fn entries_of(&self, repo: &RepoName) -> impl Iterator<Item = &Entry> {
        self.by_repo.get(repo).into_iter().flatten().map(|&index| &self.entries[index])
    }
}

/// For each entry, the position of the first entry of its pool.
fn first_of_pools(entries: &[Entry], by_repo: &BTreeMap<RepoName, Vec<usize>>) -> Vec<usize> {
    let first = |(nth, entry): (usize, &Entry)| {
        let mut of_repo = by_repo.get(&entry.repo).into_iter().flatten();
        of_repo.find(|first| entries[**first].pools_with(entry)).copied().unwrap_or(nth)
    };
    entries.iter().enumerate().map(first).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_with_the_same_labels_are_a_pool_in_their_order() {
        let fleet = Fleet::new(vec![
            entry("acme/app", &["self-hosted", "gpu"], "gpu-2"),
            entry("acme/app", &["self-hosted"], "cpu-1"),
            entry("acme/app", &["GPU", "self-hosted"], "gpu-1"),
            entry("acme/web", &["self-hosted", "gpu"], "gpu-3"),
            entry("acme/app", &["self-hosted", "gpu"], "gpu-2"),
            entry("acme/web", &["self-hosted", "gpu"], "gpu-1"),
        ]);
        let names =
            |pool: &Pool| pool.vms().iter().map(|vm| vm.vm.name.clone()).collect::<Vec<_>>();
        let pool = |repo: &str, job: &[&str]| {
            names(fleet.pool(&repo.into(), &labels(job)).expect("a pool"))
        };
        assert_eq!(pool("acme/app", &["self-hosted", "gpu", "x64"]), ["gpu-2", "gpu-1"]);
        assert_eq!(pool("acme/web", &["self-hosted", "gpu"]), ["gpu-3", "gpu-1"]);
        assert_eq!(pool("acme/app", &["self-hosted"]), ["cpu-1"]);
        assert_eq!(names(fleet.pool_of_entry(2).unwrap()), ["gpu-2", "gpu-1"]);
        let peers = |vm: &str| {
            let vm = fleet.find(Some(vm), None).unwrap();
            vm.peers.iter().map(|peer| peer.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(peers("gpu-1"), ["gpu-2", "gpu-3"]);
        assert_eq!(peers("gpu-2"), ["gpu-1"]);
        assert!(!fleet.find(Some("cpu-1"), None).unwrap().is_in_a_pool());
        // The same VM twice is a mistake; others with the same labels are not.
        assert_eq!(fleet.shadowed(), [(0, 4)]);
    }

    fn entry(repo: &str, labels: &[&str], vm: &str) -> Entry {
        Entry {
            repo: repo.into(),
            labels: labels.iter().map(|&label| label.into()).collect(),
            runner_labels: Vec::new(),
            vm: Vm::new(vm, "asia-northeast1-a"),
            runner_names: RunnerNames::parse([vm]),
            stop: StopOptions::default(),
            register: None,
        }
    }

    fn labels(labels: &[&str]) -> Vec<Label> {
        labels.iter().map(|&label| label.into()).collect()
    }

    fn fleet() -> Fleet {
        Fleet::new(vec![
            entry("acme/app", &["self-hosted", "gpu"], "gpu-1"),
            entry("acme/app", &["self-hosted"], "cpu-1"),
            entry("acme/web", &["self-hosted"], "cpu-1"),
            entry("acme/web", &["self-hosted", "linux"], "never"),
        ])
    }

    #[test]
    fn each_vm_is_managed_once_with_all_of_its_repositories() {
        let fleet = fleet();
        let vms: Vec<_> = fleet.vms().map(|vm| (vm.vm.name.as_str(), vm.repos.len())).collect();
        assert_eq!(vms, [("cpu-1", 2), ("gpu-1", 1), ("never", 1)]);
    }

    #[track_caller]
    fn routes(repo: &str, job: &[&str], vm: Option<&str>) {
        assert_eq!(fleet().route(&repo.into(), &labels(job)).map(|vm| vm.vm.name.as_str()), vm);
    }

    #[test]
    fn a_job_goes_to_the_first_entry_whose_labels_it_has() {
        routes("acme/app", &["self-hosted", "gpu", "x64"], Some("gpu-1"));
        routes("acme/app", &["self-hosted", "x64"], Some("cpu-1"));
        routes("ACME/App", &["Self-Hosted", "GPU"], Some("gpu-1"));
        routes("acme/app", &["gpu"], None);
        routes("acme/app", &["ubuntu-latest"], None);
        routes("acme/app", &[], None);
        routes("acme/other", &["self-hosted"], None);
    }

    fn exact(labels: &[&str], runner_labels: &[&str], vm: &str) -> Entry {
        let runner_labels = runner_labels.iter().map(|&label| label.into()).collect();
        Entry { runner_labels, ..entry("acme/app", labels, vm) }
    }

    #[test]
    fn with_runner_labels_a_job_may_ask_for_no_others() {
        let fleet = Fleet::new(vec![
            exact(&["self-hosted"], &["self-hosted", "Linux", "x64"], "cpu-1"),
            exact(&["gpu"], &["self-hosted", "Linux", "x64", "gpu"], "gpu-1"),
        ]);
        let routed = |job: &[&str]| {
            fleet.route(&"acme/app".into(), &labels(job)).map(|vm| vm.vm.name.as_str())
        };
        assert_eq!(routed(&["self-hosted"]), Some("cpu-1"));
        assert_eq!(routed(&["linux"]), Some("cpu-1"));
        assert_eq!(routed(&["self-hosted", "GPU"]), Some("gpu-1"));
        assert_eq!(routed(&["gpu"]), Some("gpu-1"));
        assert_eq!(routed(&["self-hosted", "windows"]), None);
        assert_eq!(routed(&["ubuntu-latest"]), None);
        assert_eq!(routed(&[]), None);
    }

    #[track_caller]
    fn mismatches(entry: &Entry, repo: &str, job: &[&str], expected: Option<Mismatch>) {
        assert_eq!(entry.mismatch(&repo.into(), &labels(job)), expected);
        let routed = Fleet::new(vec![entry.clone()]).route(&repo.into(), &labels(job)).is_some();
        assert_eq!(routed, expected.is_none(), "the routing agrees");
    }

    #[test]
    fn labels_are_quoted_since_one_may_contain_a_comma() {
        let quoted = |names: &[&str]| Quoted(&labels(names)).to_string();
        assert_eq!(
            quoted(&["self-hosted", "a, b", "\"", "\n\u{9b}"]),
            r#"["self-hosted", "a, b", "\"", "\n?"]"#
        );
        assert_eq!(quoted(&[]), "[]");
    }

    #[test]
    fn the_labels_that_prevent_a_match_are_named() {
        let plain = exact(&["self-hosted", "gpu"], &[], "gpu-1");
        let by_runner = exact(&["gpu"], &["self-hosted", "Linux", "gpu"], "gpu-1");
        let lacks = |names: &[&str]| Some(Mismatch::JobLacks(labels(names)));
        let runner_lacks = |names: &[&str]| Some(Mismatch::RunnerLacks(labels(names)));
        mismatches(&plain, "ACME/app", &["GPU", "x64", "self-hosted"], None);
        mismatches(&plain, "acme/web", &["gpu", "self-hosted"], Some(Mismatch::OtherRepository));
        mismatches(&plain, "acme/app", &["self-hosted"], lacks(&["gpu"]));
        mismatches(&plain, "acme/app", &[], lacks(&["self-hosted", "gpu"]));
        mismatches(&by_runner, "acme/app", &["linux"], None);
        mismatches(
            &by_runner,
            "acme/app",
            &["gpu", "tpu", "arm64"],
            runner_lacks(&["tpu", "arm64"]),
        );
        mismatches(&by_runner, "acme/app", &[], Some(Mismatch::NoLabels));
    }

    #[track_caller]
    fn is_shadowed(earlier: Entry, later: Entry, shadowed: bool) {
        assert_eq!(Fleet::new(vec![earlier, later]).shadowed().is_empty(), !shadowed);
    }

    #[test]
    fn an_entry_is_shadowed_by_one_that_takes_all_of_its_jobs() {
        let plain = |labels: &[&str]| exact(labels, &[], "a");
        is_shadowed(plain(&["a"]), plain(&["a", "b"]), true);
        is_shadowed(plain(&["a", "b"]), plain(&["a"]), false);
        is_shadowed(plain(&["a"]), exact(&["a"], &["a"], "b"), true);
        is_shadowed(plain(&["a"]), exact(&["a"], &["a", "b"], "b"), false);
        is_shadowed(exact(&["a"], &["a", "b"], "b"), plain(&["a"]), false);
        is_shadowed(exact(&["a"], &["a", "b"], "b"), exact(&["a"], &["a"], "c"), true);
        is_shadowed(exact(&["a"], &["a"], "b"), exact(&["a"], &["a", "b"], "c"), false);
    }

    #[track_caller]
    fn finishes(job: &[&str], runner: Option<&str>, vm: Option<&str>) {
        let fleet = fleet();
        let routed = fleet.route_finished(&"acme/app".into(), &labels(job), runner);
        assert_eq!(routed.map(|vm| vm.vm.name.as_str()), vm);
    }

    #[test]
    fn a_finished_job_belongs_to_the_vm_whose_runner_ran_it() {
        finishes(&["self-hosted"], Some("gpu-1"), Some("gpu-1"));
        finishes(&["self-hosted"], Some("cpu-1"), Some("cpu-1"));
        finishes(&["self-hosted"], Some("another-runner"), Some("cpu-1"));
        finishes(&["self-hosted", "gpu"], None, Some("gpu-1"));
        finishes(&["ubuntu-latest"], Some("GitHub Actions 5"), None);
        finishes(&["gpu"], Some("gpu-1"), Some("gpu-1"));
    }

    #[test]
    fn entries_of_one_vm_share_it() {
        let fleet = fleet();
        let shared = fleet.vm(&Vm::new("cpu-1", "asia-northeast1-a")).unwrap();
        assert_eq!(
            shared.repos.iter().map(RepoName::as_str).collect::<Vec<_>>(),
            ["acme/app", "acme/web"]
        );
        assert_eq!(shared.runner_names.only(), Some("cpu-1"));
        assert_eq!(fleet.shadowed(), [(2, 3)]);
    }

    #[test]
    fn an_operator_may_leave_out_a_name_or_zone_that_is_unambiguous() {
        let one = Fleet::new(vec![entry("acme/app", &["self-hosted"], "cpu-1")]);
        assert_eq!(one.find(None, None).unwrap().vm.name, "cpu-1");
        assert_eq!(fleet().find(Some("gpu-1"), None).unwrap().vm.name, "gpu-1");
        assert!(
            matches!(fleet().find(None, None), Err(NoSuchVm::Ambiguous(vms)) if vms.len() == 3)
        );
        assert!(matches!(fleet().find(Some("gpu-1"), Some("mars")), Err(NoSuchVm::Unknown(_))));
        assert_eq!(one.find(None, Some("asia-northeast1-a")).unwrap().vm.name, "cpu-1");
        assert!(matches!(one.find(None, Some("mars")), Err(NoSuchVm::Unknown(_))));
    }

    #[test]
    fn runner_names_are_exact_or_prefixes() {
        let names = RunnerNames::parse(["gpu-1", "pool-*"]);
        for (name, known) in
            [("gpu-1", true), ("GPU-1", true), ("gpu-10", false), ("pool-7", true), ("poo", false)]
        {
            assert_eq!(names.contain(name), known, "{name}");
        }
        assert_eq!(names.only(), None);
    }
}
