//! Registration tokens for VMs.
//!
//! GitHub removes a runner that has not connected for 14 days, as on a VM that is stopped most of the time. Such a VM
//! proves its identity at boot, and gets a registration token for the one scope in which its entries say that it
//! registers. With the token a runner of any name and label can be registered there, so a job must not get one: none is
//! given while a runner of the VM is online.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;

use super::context::{Context, Turn};
use super::demand::{runners_in, scopes};
use super::scan::is_refusal;
use crate::clients;
use crate::clients::github::{RegistrationToken, RunnerScope};
use crate::clock::{Deadline, Timestamp};
use crate::fleet::{Entry, Label, RegisterIn, RepoName, Vm};
use crate::identity::{self, Untrusted};

/// The time for which a token is reused. A VM that asks in a loop then makes GitHub create only a few an hour.
const SHARED: Duration = Duration::from_secs(10 * 60);

/// A VM's request to register its runner.
#[derive(Clone, Copy, Debug)]
pub struct RegistrationRequest<'a> {
    /// The VM's identity token, not verified yet.
    pub token: &'a str,
    /// The repository to register in, if the VM's entries leave a choice.
    pub repo: Option<&'a RepoName>,
}

/// The data that a VM needs to register its runner.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The `--url` of `config.sh`.
    pub url: String,
    /// The `--token` of `config.sh`.
    pub token: RegistrationToken,
    /// The runner's name.
    pub name: String,
    /// The runner's labels, besides those that every runner has.
    pub labels: Vec<Label>,
}

/// The reason why there is no token.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refusal {
    /// The caller did not prove its identity.
    #[error("{0}")]
    Untrusted(#[from] Untrusted),
    /// The caller is an instance that may not register.
    #[error("the instance {instance} in {zone} of project {project} {why}")]
    NotOurs {
        /// The instance's name, according to Google.
        instance: String,
        /// Its zone.
        zone: String,
        /// Its project.
        project: String,
        /// The reason.
        why: &'static str,
    },
    /// The VM's entries leave a choice, and the request names no repository.
    #[error("VM {0} registers in several repositories: it has to name one as `repo` in the body")]
    Ambiguous(Vm),
    /// No entry of any VM has `register`.
    #[error("no entry of RUNNER_CONFIG has \"register\"")]
    TurnedOff,
    /// The App lacks the permission to create a token.
    #[error("{error}: grant the GitHub App {}", write_permission(.scope))]
    MayNot {
        /// The scope of the registration.
        scope: RunnerScope,
        /// GitHub's answer.
        error: clients::Error,
    },
    /// A job may run on the VM, and ask in its name.
    #[error(
        "VM {vm}: its runner in {scope} is online, and a job that runs on the VM must not get a token"
    )]
    Online { vm: Vm, scope: RunnerScope },
    /// Google or GitHub could not be queried.
    #[error("{0}")]
    Upstream(clients::Error),
}

fn write_permission(scope: &RunnerScope) -> String {
    match scope {
        RunnerScope::Repository(repo) => format!("Administration: write on {repo}"),
        RunnerScope::Organization(login) => format!("Self-hosted runners: write in {login}"),
    }
}

/// The time for which the state of a VM's runners is remembered: a VM that asks in a loop must not use up GitHub's hourly
/// limit. A runner needs longer to register and begin a job.
const REMEMBERED: Duration = Duration::from_secs(10);

/// GitHub's answers. Locked while it is asked, so that a flood of requests asks once.
#[derive(Clone, Debug, Default)]
pub struct RegistrationTokenCache(Arc<Mutex<Answers>>);

#[derive(Debug, Default)]
struct Answers {
    /// The tokens that were created lately, by scope.
    tokens: BTreeMap<String, (Timestamp, RegistrationToken)>,
    /// The VMs that were asked about lately, each with the scope in which a runner of it is online.
    online: BTreeMap<Vm, (Timestamp, Option<RunnerScope>)>,
}

/// Refuses a request that no body could make right: no VM registers here, or its token cannot be one of Google's.
pub fn plausible(cx: &Context, token: Option<String>) -> Result<String, Refusal> {
    if cx.fleet.entries().iter().all(|entry| entry.register.is_none()) {
        return Err(Refusal::TurnedOff);
    }
    let token = token.ok_or(Untrusted::Missing)?;
    identity::key_id(&token)?;
    Ok(token)
}

/// Gives a VM that proves its identity what it needs to register its runner.
pub async fn register(
    cx: &Context,
    cache: &RegistrationTokenCache,
    request: RegistrationRequest<'_>,
    deadline: Deadline,
) -> Result<Grant, Refusal> {
    let RegistrationRequest { token, repo } = request;
    let key = cx.google_keys.key(&identity::key_id(token)?, deadline).await;
    let key = key.map_err(Refusal::Upstream)?.ok_or(Untrusted::UnknownKey)?;
    let now = cx.clock.now();
    let identity = identity::verify(token, &key, &cx.service_url, now)?;
    let not_ours = |why| Refusal::NotOurs {
        instance: identity.instance.clone(),
        zone: identity.zone.clone(),
        project: identity.project.clone(),
        why,
    };
    if identity.project != cx.project {
        return Err(not_ours("is not of this project"));
    }
    let vm = Vm::new(&identity.instance, &identity.zone);
    let managed = cx.fleet.vm(&vm).ok_or_else(|| not_ours("has no entry"))?;
    let (scope, entries) =
        choose(cx.fleet.entries(), &vm, repo).map_err(|choice| match choice {
            Choice::None => not_ours("has no entry that registers there"),
            Choice::Several => Refusal::Ambiguous(vm.clone()),
        })?;
    let turn = Turn { cx, vm: managed, now, deadline };
    let token = cache.token(&turn, &scope).await?;
    Ok(Grant {
        url: cx.github.page_url(&scope),
        token,
        name: managed.runner_names.for_vm(&vm.name),
        labels: labels(&entries),
    })
}

/// The reason why there is no single scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    None,
    Several,
}

/// The scope of the VM's registration, for the repository that it names if any, and the entries that give it.
fn choose<'a>(
    entries: &'a [Entry],
    vm: &Vm,
    repo: Option<&RepoName>,
) -> Result<(RunnerScope, Vec<&'a Entry>), Choice> {
    let scope = |entry: &Entry| match entry.register? {
        RegisterIn::Repository => Some(RunnerScope::Repository(entry.repo.clone())),
        RegisterIn::Organization => Some(RunnerScope::Organization(entry.repo.owner().to_owned())),
    };
    let of_vm = entries.iter().filter(|entry| entry.vm == *vm);
    let mut found: Option<(RunnerScope, Vec<&Entry>)> = None;
    for entry in of_vm.filter(|entry| repo.is_none_or(|repo| entry.repo == *repo)) {
        match (scope(entry), &mut found) {
            (None, _) => {}
            (Some(scope), None) => found = Some((scope, vec![entry])),
            (Some(scope), Some((known, entries))) if scope == *known => entries.push(entry),
            (Some(_), Some(_)) => return Err(Choice::Several),
        }
    }
    found.ok_or(Choice::None)
}

/// All labels of the entries, each once.
fn labels(entries: &[&Entry]) -> Vec<Label> {
    let mut all = Vec::new();
    for entry in entries {
        let told = &entry.runner_labels;
        for label in if told.is_empty() { &entry.labels } else { told } {
            if !all.contains(label) {
                all.push(label.clone());
            }
        }
    }
    all
}

impl RegistrationTokenCache {
    async fn token(
        &self,
        turn: &Turn<'_>,
        scope: &RunnerScope,
    ) -> Result<RegistrationToken, Refusal> {
        let Turn { cx, now, deadline, .. } = *turn;
        let out_of_time = || {
            Refusal::Upstream(clients::Error::Unanswered {
                call: "create a registration token",
                why: "out of time".into(),
            })
        };
        let locked = tokio::time::timeout(deadline.remaining() / 2, self.0.lock());
        let mut answers = locked.await.map_err(|_| out_of_time())?;
        let Answers { tokens, online } = &mut *answers;
        let vm = &turn.vm.vm;
        let busy_in = match online.get(vm).filter(|(at, _)| now.since(*at) < REMEMBERED) {
            Some((_, known)) => known.clone(),
            None => {
                let found = online_in(turn).await.map_err(Refusal::Upstream)?;
                online.insert(vm.clone(), (now, found.clone()));
                found
            }
        };
        if let Some(scope) = busy_in {
            return Err(Refusal::Online { vm: vm.clone(), scope });
        }
        let lately = |(at, _): &&(Timestamp, RegistrationToken)| now.since(*at) < SHARED;
        if let Some((_, token)) = tokens.get(&scope.to_string()).filter(lately) {
            return Ok(token.clone());
        }
        let token = cx.github.registration_token(scope, deadline).await;
        let token = token.map_err(|error| match error {
            error if error.is_forbidden() || error.is_not_found() => {
                Refusal::MayNot { scope: scope.clone(), error }
            }
            error => Refusal::Upstream(error),
        })?;
        tokens.insert(scope.to_string(), (now, token.clone()));
        Ok(token)
    }
}

/// The scope in which a runner of the VM is online, if any. A scope that refuses its list is left out: one that may not
/// be read gives no token either, and an account that is a user has no list.
async fn online_in(turn: &Turn<'_>) -> Result<Option<RunnerScope>, clients::Error> {
    for scope in scopes(turn.vm) {
        match runners_in(turn.cx, turn.vm, &scope, turn.deadline).await {
            Ok(runners) if runners.iter().any(|runner| runner.online || runner.busy) => {
                return Ok(Some(scope));
            }
            Ok(_) => {}
            Err(error) if is_refusal(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{RunnerNames, StopOptions};

    fn entry(repo: &str, vm: &str, register: Option<RegisterIn>) -> Entry {
        Entry {
            repo: repo.into(),
            labels: vec!["self-hosted".into(), repo.into()],
            runner_labels: Vec::new(),
            vm: Vm::new(vm, "z"),
            runner_names: RunnerNames::parse([vm]),
            stop: StopOptions::default(),
            register,
        }
    }

    #[test]
    fn a_vm_registers_in_the_one_place_that_its_entries_name() {
        use RegisterIn::{Organization, Repository};
        let entries = [
            entry("acme/app", "one", Some(Repository)),
            entry("acme/web", "one", None),
            entry("acme/app", "two", Some(Repository)),
            entry("acme/web", "two", Some(Repository)),
            entry("acme/app", "three", Some(Organization)),
            entry("acme/web", "three", Some(Organization)),
            entry("acme/web", "none", None),
        ];
        let scope = |vm: &str, repo: Option<&str>| {
            let repo: Option<RepoName> = repo.map(Into::into);
            let chosen = choose(&entries, &Vm::new(vm, "z"), repo.as_ref());
            chosen.map(|(scope, entries)| (scope.to_string(), labels(&entries).len()))
        };
        assert_eq!(scope("one", None), Ok(("acme/app".into(), 2)));
        assert_eq!(scope("one", Some("acme/web")), Err(Choice::None));
        assert_eq!(scope("two", None), Err(Choice::Several));
        assert_eq!(scope("two", Some("ACME/web")), Ok(("acme/web".into(), 2)));
        assert_eq!(scope("three", None), Ok(("the organization acme".into(), 3)));
        assert_eq!(scope("none", None), Err(Choice::None));
        assert_eq!(scope("unknown", None), Err(Choice::None));
    }
}
