//! The GitHub App: its key, its installation, the repositories that it covers.

use http::StatusCode;

use super::finding::{Finding, Findings};
use crate::clients::Error;
use crate::clients::github::app::{App, Installation, Permissions};
use crate::clients::github::{GitHub, Repository};
use crate::clock::Deadline;
use crate::fleet::{Entry, Registers, RepoName};

/// What is known of the App.
pub(super) struct AppFacts {
    pub(super) app: Result<App, Error>,
    pub(super) installation: Result<Installation, Error>,
}

impl AppFacts {
    /// Whether the App may ask anything.
    pub(super) fn key_fits(&self) -> bool {
        self.app.is_ok()
    }

    /// Whether its installation may.
    pub(super) fn is_installed(&self) -> bool {
        self.key_fits() && self.installation.as_ref().is_ok_and(|it| it.suspended_at.is_none())
    }
}

pub(super) async fn look_at_app(github: &GitHub, deadline: Deadline) -> AppFacts {
    let (app, installation) = tokio::join!(github.app(deadline), github.installation(deadline));
    AppFacts { app, installation }
}

pub(super) fn judge_app(facts: &AppFacts, installation_id: u64, entries: &[Entry]) -> Vec<Finding> {
    let mut found = Findings::of("GitHub App");
    let app = match &facts.app {
        Ok(app) => {
            found.ok("key", format!("it is that of {:?}, App {}", app.name, app.id));
            app
        }
        Err(error) => {
            let fix = match error.status() {
                Some(StatusCode::NOT_FOUND) => "correct GITHUB_APP_ID, or GITHUB_API_URL",
                _ => {
                    "make a new private key on the App's page, and set GITHUB_APP_PRIVATE_KEY to it; check \
                     GITHUB_APP_ID, and this machine's clock"
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
            "unsuspend it in its settings",
        ),
        Ok(installation) => {
            found.ok("installation", format!("{installation_id}"));
            for permission in needed(entries) {
                judge_permission(&mut found, permission, &app.permissions, installation);
            }
        }
        Err(error) => found.failed(
            "installation",
            error,
            "set GITHUB_APP_INSTALLATION_ID to the number at the end of the installation's settings page's URL",
        ),
    }
    found.done()
}

/// A permission that the service needs.
struct Permission {
    /// As the API writes it.
    key: &'static str,
    /// As the App's page does.
    name: &'static str,
    /// Reading is not enough.
    writes: bool,
    /// What is missing without it.
    without: &'static str,
}

const ACTIONS: Permission = Permission {
    key: "actions",
    name: "Actions: read",
    writes: false,
    without: "nobody can see which jobs wait and run, and the runner's word alone decides",
};

const ADMINISTRATION: Permission = Permission {
    key: "administration",
    name: "Administration: read",
    writes: false,
    without: "nobody can see whether a repository's runner is busy, and the jobs alone decide",
};

const REGISTERS_IN_REPOSITORY: Permission = Permission {
    key: "administration",
    name: "Administration: write",
    writes: true,
    without: "an entry has \"register\": \"repository\", and no VM can register its runner",
};

const REGISTERS_IN_ORGANIZATION: Permission = Permission {
    key: "organization_self_hosted_runners",
    name: "Self-hosted runners: write",
    writes: true,
    without: "an entry has \"register\": \"organization\", and no VM can register its runner",
};

/// What the entries need.
fn needed(entries: &[Entry]) -> Vec<&'static Permission> {
    let register = |place| entries.iter().any(|entry| entry.register == Some(place));
    let mut needed = vec![&ACTIONS, &ADMINISTRATION];
    if register(Registers::Repository) {
        needed[1] = &REGISTERS_IN_REPOSITORY;
    }
    if register(Registers::Organization) {
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
    asked_for: &Permissions,
    installation: &Installation,
) {
    let Permission { name, without, .. } = permission;
    if permission.is_among(&installation.permissions) {
        found.ok("permission", format!("{name} is granted"));
        return;
    }
    let page = installation.html_url.as_deref().unwrap_or("the installation's settings");
    let fix = if permission.is_among(asked_for) {
        format!("accept the App's new permissions: {page}")
    } else {
        format!("add {name} to the App's permissions, and accept it: {page}")
    };
    found.fail("permission", format!("{name} is missing: {without}"), fix);
}

/// What is known of a repository.
pub(super) struct RepoFacts {
    installation: Result<Installation, Error>,
    /// As the installation sees it; not asked where it cannot.
    repository: Option<Result<Repository, Error>>,
}

pub(super) async fn look_at_repo(
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
            found.ok("installation", "the App is installed on it");
        }
        Ok(Installation { id, .. }) => found.fail(
            "installation",
            format!("installation {id} covers it, not {installation_id}"),
            format!(
                "set GITHUB_APP_INSTALLATION_ID to {id}; repositories of several owners need a deployment for each"
            ),
        ),
        Err(error) if error.is_not_found() => found.fail(
            "installation",
            "the App is not installed on it, or there is no such repository",
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
    let now = &repository.full_name;
    if now == repo {
        found.ok("name", "it is still called so");
    } else {
        found.fail(
            "name",
            format!("it is called {now} now, so its webhooks match no entry"),
            format!("write \"repo\": \"{now}\" in RUNNER_CONFIG"),
        );
    }
    if !repository.private {
        found.warn(
            "visibility",
            "it is public: a pull request from a fork could run its code on the VM",
            "make it private, or have every outside contributor's workflows approved: Settings, Actions, General",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::testing::{answered, complains, limited, unanswered};
    use super::*;
    use crate::fleet::{RunnerNames, Vm};

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
    fn the_key_has_to_fit_and_the_installation_to_be_the_apps() {
        judged(Ok(app()), Ok(installation()), &[]);
        let key = "✗ key: a.call: 401 Unauthorized: no\n    -> make a new private key";
        judged(Err(answered(401)), Err(answered(401)), &[key]);
        let id = "✗ key: a.call: 404 Not Found: no\n    -> correct GITHUB_APP_ID";
        judged(Err(answered(404)), Err(answered(404)), &[id]);
        judged(Err(unanswered()), Err(unanswered()), &["? key: could not be asked"]);
        let none =
            "✗ installation: a.call: 404 Not Found: no\n    -> set GITHUB_APP_INSTALLATION_ID";
        judged(Ok(app()), Err(answered(404)), &[none]);
        judged(Ok(app()), Err(limited()), &["? installation: could not be asked"]);
        let suspended =
            Installation { suspended_at: Some("2026-11-24T05:00:00Z".into()), ..installation() };
        judged(Ok(app()), Ok(suspended), &["✗ installation: installation 7 is suspended"]);
    }

    #[test]
    fn a_permission_is_asked_for_on_one_page_and_granted_on_another() {
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
    fn an_entry_that_registers_needs_more_than_reading() {
        let entry = |register| Entry {
            repo: "acme/app".into(),
            labels: vec!["self-hosted".into()],
            runner_labels: Vec::new(),
            vm: Vm::new("a", "z"),
            runner_names: RunnerNames::default(),
            discard_local_ssd: false,
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
        assert_eq!(lacks(Some(Registers::Repository), reads()), ["Administration: write"]);
        assert_eq!(lacks(Some(Registers::Repository), writes()), ["Actions: read"]);
        assert_eq!(lacks(Some(Registers::Organization), reads()), ["Self-hosted runners: write"]);
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
    fn a_repository_has_to_be_covered_and_called_what_it_is_called() {
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
        covered(Err(answered(503)), None, &["? installation: could not be asked"]);
        covered(
            Ok(installation()),
            named("acme/better", true),
            &["✗ name: it is called acme/better now"],
        );
        covered(Ok(installation()), named("acme/app", false), &["! visibility: it is public"]);
        covered(Ok(installation()), Some(Err(unanswered())), &["? name: could not be asked"]);
    }
}
