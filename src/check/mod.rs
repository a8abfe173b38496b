//! `runner-manager check`: reads the service's environment and checks everything that the service depends on, without
//! changing anything.
//!
//! The checks call Google, GitHub and the service's own URL, a few at a time; pure functions judge the answers. A check
//! without an answer is reported as unknown, neither right nor wrong.

mod app;
mod finding;
mod google;
mod runner;
mod service;
mod terminal;
mod webhook;

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use futures_util::{StreamExt, stream};

use crate::clients::google::Credentials;
use crate::clients::service::Service;
use crate::clients::transport::{HttpService, Transport};
use crate::clock::{Clock, Deadline, Timestamp};
use crate::config::{Config, Problems};
use crate::fleet::{ManagedVm, RepoName};
use crate::lifecycle::{BOOT_ALLOWANCE, unserved_jobs};
use crate::state::AppState;
use app::AppFacts;
use finding::Findings;
pub use finding::{Finding, Outcome};
pub use terminal::{Options, run};

const MAX_CONCURRENT_CHECKS: usize = 3;

const CHECK_TIMEOUT: Duration = Duration::from_secs(20);

/// The findings of one check, and the number of checks that are done.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    pub found: &'a [Finding],
    pub done: usize,
    pub total: usize,
}

/// The findings for a configuration that cannot be read. No other check is possible.
pub fn unreadable(problems: &Problems) -> Vec<Finding> {
    let mut found = Findings::of("configuration");
    for problem in problems.lines() {
        found.fail(
            "variable",
            problem,
            "set it as .env.example and docs/configuration.md describe",
        );
    }
    found.done()
}

/// Runs all checks, and reports each in a fixed order.
pub async fn check(
    config: Config,
    http: HttpService,
    credentials: Credentials,
    clock: Clock,
    report: &mut (dyn FnMut(Progress<'_>) + Send),
) -> Vec<Finding> {
    let checks = Checks::new(config, http, credentials, clock);
    let mut results = Results { found: Vec::new(), done: 0, total: checks.count(), report };
    results.add(checks.configuration());

    let google = checks.google();
    let app = app::read_app(&checks.app.cx.github, deadline());
    let service = checks.service();
    let ((google, has_token), app, service) = tokio::join!(google, app, service);
    results.add(google);
    results.add(app::judge_app(
        &app,
        checks.app.cx.github.installation_id(),
        checks.app.cx.fleet.entries(),
    ));
    results.add(service);

    let mut answers =
        stream::iter(checks.dependent(has_token, &app)).buffered(MAX_CONCURRENT_CHECKS);
    while let Some(found) = answers.next().await {
        results.add(found);
    }
    results.found
}

fn deadline() -> Deadline {
    Deadline::after(CHECK_TIMEOUT)
}

/// Collects findings, and reports them as they come.
struct Results<'a> {
    found: Vec<Finding>,
    done: usize,
    total: usize,
    report: &'a mut (dyn FnMut(Progress<'_>) + Send),
}

impl Results<'_> {
    fn add(&mut self, found: Vec<Finding>) {
        self.done += 1;
        (self.report)(Progress { found: &found, done: self.done, total: self.total });
        self.found.extend(found);
    }
}

type Check<'a> = Pin<Box<dyn Future<Output = Vec<Finding>> + Send + 'a>>;

struct Checks {
    app: AppState,
    service: Service,
    project: String,
    location: String,
    queue: String,
    service_url: String,
    warnings: Vec<String>,
}

impl Checks {
    fn new(config: Config, http: HttpService, credentials: Credentials, clock: Clock) -> Self {
        Self {
            service: Service::new(Transport::new(http.clone()), &config.service_url),
            project: config.project.clone(),
            location: config.task_location.clone(),
            queue: config.task_queue.clone(),
            service_url: config.service_url.clone(),
            warnings: config.warnings.clone(),
            app: AppState::new(config, http, credentials, clock),
        }
    }

    fn repos(&self) -> BTreeSet<&RepoName> {
        self.app.cx.fleet.vms().flat_map(|vm| &vm.repos).collect()
    }

    /// The number of checks: configuration, token, App, service, queue and webhook; each VM; each repository.
    fn count(&self) -> usize {
        6 + self.app.cx.fleet.vms().count() + self.repos().len()
    }

    fn configuration(&self) -> Vec<Finding> {
        let mut found = Findings::of("configuration");
        found.ok("variables", "all are set and well-formed");
        if let Some(weakness) = self.app.secret.current().weakness() {
            found.fail(
                "RUNNER_MANAGER_SECRET",
                weakness,
                "set it here and as the webhook's secret: docs/deploy.md, Rotate the secrets",
            );
        }
        for warning in &self.warnings {
            let fix = match warning.split([':', '[']).next() {
                // Reported above, as an error.
                Some("RUNNER_MANAGER_SECRET") => continue,
                Some("RUNNER_CONFIG") if warning.contains("never matches") => {
                    "put the more specific entry first"
                }
                Some("RUNNER_CONFIG") => "correct the entry, see docs/configuration.md",
                _ => "correct the variable, see docs/configuration.md",
            };
            found.warn("warning", warning, fix);
        }
        found.done()
    }

    async fn google(&self) -> (Vec<Finding>, bool) {
        let token = self.app.google.header("check", deadline()).await.map(drop);
        (google::judge_token(&token), token.is_ok())
    }

    async fn service(&self) -> Vec<Finding> {
        let facts = service::read(&self.service, self.app.secret.current(), deadline()).await;
        let minutes = self.app.cx.inactive.as_secs() / 60;
        service::judge(&facts, &self.service_url, &self.app.cx.fleet, minutes)
    }

    /// The checks that need Google's access token or the App.
    fn dependent<'a>(&'a self, has_token: bool, app: &'a AppFacts) -> Vec<Check<'a>> {
        let mut dependent: Vec<Check<'a>> = vec![Box::pin(self.queue(has_token))];
        for vm in self.app.cx.fleet.vms() {
            dependent.push(Box::pin(self.vm(vm, has_token, app)));
        }
        for repo in self.repos() {
            dependent.push(Box::pin(self.repo(repo, app)));
        }
        dependent.push(Box::pin(self.webhook(app)));
        dependent
    }

    async fn queue(&self, has_token: bool) -> Vec<Finding> {
        let queue =
            google::Queue { project: &self.project, location: &self.location, id: &self.queue };
        if !has_token {
            let mut found = Findings::of(format!("queue {}", self.queue));
            found.unknown("state", NO_TOKEN);
            return found.done();
        }
        google::judge_queue(&google::read_queue(&self.app.cx.tasks, deadline()).await, &queue)
    }

    async fn vm(&self, vm: &ManagedVm, has_token: bool, app: &AppFacts) -> Vec<Finding> {
        let deadline = deadline();
        let instance = async {
            match has_token {
                true => Some(google::read_vm(&self.app.cx.compute, vm, deadline).await),
                false => None,
            }
        };
        let runner = async {
            match app.is_installed() {
                true => Some(runner::read(&self.app.cx, vm, deadline).await),
                false => None,
            }
        };
        let (instance, runner) = tokio::join!(instance, runner);
        let host = instance.as_ref().map_or(runner::Host::Unknown, |facts| self.host(facts));
        let mut found = Findings::of(format!("VM {}", vm.vm));
        let mut all = match &instance {
            Some(facts) => google::judge_vm(facts, vm, &self.project),
            None => {
                found.unknown("status", NO_TOKEN);
                Vec::new()
            }
        };
        match &runner {
            Some(facts) => runner::judge(&mut found, facts, vm, &self.app.cx.fleet, host),
            None => found.unknown("runner", NO_INSTALLATION),
        }
        all.extend(found.done());
        all
    }

    fn host(&self, facts: &google::VmFacts) -> runner::Host {
        let Some(instance) = facts.instance() else { return runner::Host::Unknown };
        let now = self.app.cx.clock.now();
        let long_ago = |start: Timestamp| start + BOOT_ALLOWANCE < now;
        runner::Host::of(&instance.status, instance.last_start.is_none_or(long_ago))
    }

    async fn repo(&self, repo: &RepoName, app: &AppFacts) -> Vec<Finding> {
        if !app.is_key_accepted() {
            let mut found = Findings::of(format!("repository {repo}"));
            found.unknown("installation", NO_INSTALLATION);
            return found.done();
        }
        let github = &self.app.cx.github;
        let facts = app::read_repo(github, repo, app.is_installed(), deadline()).await;
        let mut all = app::judge_repo(&facts, repo, github.installation_id());
        if app.is_installed() {
            all.extend(self.unserved(repo).await);
        }
        all
    }

    /// A refused list of jobs is reported with the App's permissions.
    async fn unserved(&self, repo: &RepoName) -> Vec<Finding> {
        let (jobs, _) = unserved_jobs(&self.app.cx, repo, deadline()).await;
        let mut found = Findings::of(format!("repository {repo}"));
        for job in jobs {
            found.warn(
                "jobs",
                job.describe(),
                "correct the job's runs-on or the entry, unless another runner serves it",
            );
        }
        found.done()
    }

    async fn webhook(&self, facts: &AppFacts) -> Vec<Finding> {
        let Ok(app) = &facts.app else {
            let mut found = Findings::of("App's webhook");
            found.unknown("URL", NO_INSTALLATION);
            return found.done();
        };
        let facts = webhook::read(&self.app.cx.github, deadline()).await;
        webhook::judge(&facts, &app.events, &self.service_url)
    }
}

const NO_TOKEN: &str = "there is no access token for Google, see above";

const NO_INSTALLATION: &str = "GitHub refuses the App, or could not be queried, see above";
