//! Checks of the GitHub App: its key, its installation and its repositories.

use http::StatusCode;

use super::finding::{Finding, Findings};
use crate::clients::Error;
use crate::clients::github::app::{App, Installation, Permissions};
use crate::clients::github::{GitHub, Repository};
use crate::clock::Deadline;
use crate::fleet::{Entry, RegisterIn, RepoName};

pub(super) struct AppFacts {
    pub(super) app: Result<App, Error>,
    pub(super) installation: Result<Installation, Error>,
}

impl AppFacts {
    /// GitHub accepts the App's key.
    pub(super) fn is_key_accepted(&self) -> bool {
        self.app.is_ok()
    }

    /// The App is installed and not suspended.
    pub(super) fn is_installed(&self) -> bool {
        self.is_key_accepted()
            && self.installation.as_ref().is_ok_and(|it| it.suspended_at.is_none())
    }
}

pub(super) async fn read_app(github: &GitHub, deadline: Deadline) -> AppFacts {
    let (app, installation) = tokio::join!(github.app(deadline), github.installation(deadline));
    AppFacts { app, installation }
}

pub(super) fn judge_app(facts: &AppFacts, installation_id: u64, entries: &[Entry]) -> Vec<Finding> {
    let mut found = Findings::of("GitHub App");
    let app = match &facts.app {
        Ok(app) => {
            found.ok("key", format!("it belongs to the App {:?}, id {}", app.name, app.id));
            app
        }
        Err(error) => {
            let fix = match error.status() {
                Some(StatusCode::NOT_FOUND) => "correct GITHUB_APP_ID, or GITHUB_API_URL",
                _ => {
                    "generate a new private key on the App's page and set GITHUB_APP_PRIVATE_KEY to it; check \
                     GITHUB_APP_ID and this machine's clock"
                }
            };
            found.failed("key", error, fix);
            return found.done();
        }
    };
    match &facts.installation {
        Ok(installation) if installation.suspended_at.is_some() => found.fail(
            "installation",
            format!("installation {installation_id} is suspended"),
            "unsuspend it in the installation's settings",
        ),
        Ok(installation) => {
            found.ok("installation", format!("installation {installation_id} is active"));
            for permission in needed(entries) {
                judge_permission(&mut found, permission, &app.permissions, installation);
            }
        }
        Err(error) => found.failed(
            "installation",
            error,
            "set GITHUB_APP_INSTALLATION_ID to the number at the end of the URL of the installation's settings",
        ),
    }
    found.done()
}

/// A permission of the App that the service needs.
struct Permission {
    /// Its name in the API.
    key: &'static str,
    /// Its name on the App's page.
    name: &'static str,
    /// Write access is needed.
    writes: bool,
    /// The consequence of its absence.
    without: &'static str,
}

const ACTIONS: Permission = Permission {
    key: "actions",
    name: "Actions: read",
    writes: false,
    without: "the service cannot list jobs, so the runner's busy flag alone decides",
};

const ADMINISTRATION: Permission = Permission {
    key: "administration",
    name: "Administration: read",
    writes: false,
    without: "the service cannot see if a repository's runner is busy, so the job lists alone decide",
};

const REGISTERS_IN_REPOSITORY: Permission = Permission {
    key: "administration",
    name: "Administration: write",
    writes: true,
    without: "an entry has \"register\": \"repository\", but its VM cannot register its runner",
};

const REGISTERS_IN_ORGANIZATION: Permission = Permission {
    key: "organization_self_hosted_runners",
    name: "Self-hosted runners: write",
    writes: true,
    without: "an entry has \"register\": \"organization\", but its VM cannot register its runner",
};

/// The permissions that these entries need.
fn needed(entries: &[Entry]) -> Vec<&'static Permission> {
    let register = |scope| entries.iter().any(|entry| entry.register == Some(scope));
    let mut needed = vec![&ACTIONS, &ADMINISTRATION];
    if register(RegisterIn::Repository) {
        needed[1] = &REGISTERS_IN_REPOSITORY;
    }
    if register(RegisterIn::Organization) {
        needed.push(&REGISTERS_IN_ORGANIZATION);
    }
    needed
}

impl Permission {
    fn is_among(&self, granted: &Permissions) -> bool {
        granted.get(self.key).is_some_and(|level| !self.writes || level != "read")
    }
}

fn judge_permission(
    found: &mut Findings,
    permission: &Permission,
    requested: &Permissions,
    installation: &Installation,
) {
    let Permission { name, without, .. } = permission;
    if permission.is_among(&installation.permissions) {
        found.ok("permission", format!("{name} is granted"));
        return;
    }
    let page = installation.html_url.as_deref().unwrap_or("the installation's settings");
    let fix = if permission.is_among(requested) {
        format!("accept the App's new permissions: {page}")
    } else {
        format!("add {name} to the App's permissions, then accept it: {page}")
    };
    found.fail("permission", format!("{name} is missing: {without}"), fix);
}

pub(super) struct RepoFacts {
    installation: Result<Installation, Error>,
    /// The repository as the installation sees it; `None` if the installation cannot be used.
    repository: Option<Result<Repository, Error>>,
}

pub(super) async fn read_repo(
    github: &GitHub,
    repo: &RepoName,
    is_installed: bool,
    deadline: Deadline,
) -> RepoFacts {
    let installation = github.repo_installation(repo, deadline).await;
    let ours = |it: &Installation| it.id == github.installation_id();
    let repository = match installation.as_ref().is_ok_and(ours) && is_installed {
        true => Some(github.repository(repo, deadline).await),
        false => None,
    };
    RepoFacts { installation, repository }
}

pub(super) fn judge_repo(facts: &RepoFacts, repo: &RepoName, installation_id: u64) -> Vec<Finding> {
    let mut found = Findings::of(format!("repository {repo}"));
    match &facts.installation {
        Ok(installation) if installation.id == installation_id => {
            found.ok("installation", "the App is installed on this repository");
        }
        Ok(Installation { id, .. }) => found.fail(
            "installation",
            format!("installation {id} covers it, not {installation_id}"),
            format!(
                "set GITHUB_APP_INSTALLATION_ID to {id}; repositories of several owners need one deployment per owner"
            ),
        ),
        Err(error) if error.is_not_found() => found.fail(
            "installation",
            "the App is not installed on it, or the repository does not exist",
            "add it in the installation's settings, or correct repo in RUNNER_CONFIG",
        ),
        Err(error) => found.failed("installation", error, "check the App's key"),
    }
    match &facts.repository {
        None => {}
        Some(Ok(repository)) => judge_repository(&mut found, repository, repo),
        Some(Err(error)) => {
            found.failed("name", error, "correct repo in RUNNER_CONFIG");
        }
    }
    found.done()
}

fn judge_repository(found: &mut Findings, repository: &Repository, repo: &RepoName) {
    let current = &repository.full_name;
    if current == repo {
        found.ok("name", "unchanged");
    } else {
        found.fail(
            "name",
            format!("the repository was renamed to {current}, so its webhooks match no entry"),
            format!("set \"repo\": \"{current}\" in RUNNER_CONFIG"),
        );
    }
    if !repository.private {
        found.warn(
            "visibility",
            "the repository is public: a pull request from a fork could run code on the VM",
            "make it private, or require approval for workflows of all external contributors: Settings, Actions, General",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::testing::{answered, complains, limited, unanswered};
    use super::*;
    use crate::fleet::{RunnerNames, StopOptions, Vm};

    fn granted(names: &[&str]) -> Permissions {
        names.iter().map(|&name| (name.to_owned(), "read".to_owned())).collect()
    }

    fn app() -> App {
        let permissions = granted(&["actions", "administration", "metadata"]);
        App { id: 1, name: "Runners".into(), permissions, events: vec!["workflow_job".into()] }
    }

    fn installation() -> Installation {
        Installation {
            id: 7,
            permissions: granted(&["actions", "administration", "metadata"]),
            events: vec!["workflow_job".into()],
            suspended_at: None,
            html_url: Some("https://github.test/7".into()),
        }
    }

    #[track_caller]
    fn judged(
        app: Result<App, Error>,
        installation: Result<Installation, Error>,
        expected: &[&str],
    ) {
        complains(&judge_app(&AppFacts { app, installation }, 7, &[]), expected);
    }

    #[test]
    fn the_key_and_the_installation_have_to_be_the_apps() {
        judged(Ok(app()), Ok(installation()), &[]);
        let key = "✗ key: a.call: 401 Unauthorized: no\n    -> generate a new private key";
        judged(Err(answered(401)), Err(answered(401)), &[key]);
        let id = "✗ key: a.call: 404 Not Found: no\n    -> correct GITHUB_APP_ID";
        judged(Err(answered(404)), Err(answered(404)), &[id]);
        judged(Err(unanswered()), Err(unanswered()), &["? key: could not be checked"]);
        let none =
            "✗ installation: a.call: 404 Not Found: no\n    -> set GITHUB_APP_INSTALLATION_ID";
        judged(Ok(app()), Err(answered(404)), &[none]);
        judged(Ok(app()), Err(limited()), &["? installation: could not be checked"]);
        let suspended =
            Installation { suspended_at: Some("2026-11-24T05:00:00Z".into()), ..installation() };
        judged(Ok(app()), Ok(suspended), &["✗ installation: installation 7 is suspended"]);
    }

    #[test]
    fn a_permission_is_requested_by_the_app_and_granted_by_the_installation() {
        let without = Installation { permissions: granted(&["administration"]), ..installation() };
        let actions = "✗ permission: Actions: read is missing";
        judged(Ok(app()), Ok(without.clone()), &[actions]);
        let fix = |app: App| {
            let facts = AppFacts { app: Ok(app), installation: Ok(without.clone()) };
            judge_app(&facts, 7, &[]).into_iter().find_map(|finding| finding.fix).unwrap()
        };
        assert_eq!(fix(app()), "accept the App's new permissions: https://github.test/7");
        let never = App { permissions: granted(&[]), ..app() };
        assert!(fix(never).starts_with("add Actions: read to the App's permissions"));
        let write = Permissions::from([
            ("actions".to_owned(), "write".to_owned()),
            ("administration".to_owned(), "write".to_owned()),
        ]);
        judged(Ok(app()), Ok(Installation { permissions: write, ..installation() }), &[]);
        let neither = Installation { permissions: granted(&[]), ..installation() };
        let administration = "✗ permission: Administration: read is missing";
        judged(Ok(app()), Ok(neither), &[actions, administration]);
    }

    #[test]
    fn an_entry_that_registers_needs_write_access() {
        let entry = |register| Entry {
            repo: "acme/app".into(),
            labels: vec!["self-hosted".into()],
            runner_labels: Vec::new(),
            vm: Vm::new("a", "z"),
            runner_names: RunnerNames::default(),
            stop: StopOptions::default(),
            register,
        };
        let lacks = |register, permissions: Permissions| -> Vec<&str> {
            let needed = needed(&[entry(None), entry(register)]);
            let lacking = needed.into_iter().filter(|it| !it.is_among(&permissions));
            lacking.map(|permission| permission.name).collect()
        };
        let reads = || granted(&["actions", "administration", "organization_self_hosted_runners"]);
        let writes = || Permissions::from([("administration".to_owned(), "write".to_owned())]);
        assert_eq!(lacks(None, reads()), [""; 0]);
        assert_eq!(lacks(Some(RegisterIn::Repository), reads()), ["Administration: write"]);
        assert_eq!(lacks(Some(RegisterIn::Repository), writes()), ["Actions: read"]);
        assert_eq!(lacks(Some(RegisterIn::Organization), reads()), ["Self-hosted runners: write"]);
    }

    #[track_caller]
    fn covered(
        installation: Result<Installation, Error>,
        repository: Option<Result<Repository, Error>>,
        expected: &[&str],
    ) {
        let facts = RepoFacts { installation, repository };
        complains(&judge_repo(&facts, &"acme/app".into(), 7), expected);
    }

    #[test]
    fn a_repository_has_to_be_covered_and_to_have_its_current_name() {
        let named = |full_name: &str, private| {
            Some(Ok(Repository { full_name: full_name.into(), private }))
        };
        covered(Ok(installation()), named("Acme/App", true), &[]);
        covered(
            Ok(Installation { id: 8, ..installation() }),
            None,
            &[
                "✗ installation: installation 8 covers it, not 7\n    -> set GITHUB_APP_INSTALLATION_ID to 8",
            ],
        );
        covered(Err(answered(404)), None, &["✗ installation: the App is not installed on it"]);
        covered(Err(answered(503)), None, &["? installation: could not be checked"]);
        covered(
            Ok(installation()),
            named("acme/better", true),
            &["✗ name: the repository was renamed to acme/better"],
        );
        covered(
            Ok(installation()),
            named("acme/app", false),
            &["! visibility: the repository is public"],
        );
        covered(Ok(installation()), Some(Err(unanswered())), &["? name: could not be checked"]);
    }
}
