//! `runner-manager check`: reads the service's environment and tries all that the service relies on, without changing
//! anything.
//!
//! Questions are asked of Google, GitHub and the service's own URL, a few at a time; pure functions judge the answers.
//! What nobody answered is said to be unknown: it is neither right nor wrong.

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
use crate::lifecycle::BOOT_ALLOWANCE;
use crate::state::AppState;
use app::AppFacts;
use finding::Findings;
pub use finding::{Finding, Outcome};
pub use terminal::{Options, run};

/// Questions that are asked at the same time.
const AT_A_TIME: usize = 3;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// How far the check has come.
#[derive(Clone, Copy, Debug)]
pub struct JobStatus<'a> {
    /// What the last question brought.
    pub found: &'a [Finding],
    /// How many questions were answered.
    pub answered: usize,
    /// How many there are.
    pub of: usize,
}

/// A configuration that cannot be read: nothing else can be tried.
pub fn unreadable(problems: &Problems) -> Vec<Finding> {
    let mut found = Findings::of("configuration");
    for problem in problems.lines() {
        found.fail("variable", problem, "see .env.example and README.md, and set it");
    }
    found.done()
}

/// Tries everything, and tells of each answer in a fixed order.
pub async fn check(
    config: Config,
    http: HttpService,
    credentials: Credentials,
    clock: Clock,
    tell: &mut (dyn FnMut(JobStatus<'_>) + Send),
) -> Vec<Finding> {
    let checks = Checks::new(config, http, credentials, clock);
    let mut told = Told { found: Vec::new(), answered: 0, of: checks.count(), tell };
    told.add(checks.configuration());

    let google = checks.google();
    let app = app::look_at_app(&checks.app.cx.github, soon());
    let service = checks.service();
    let ((google, is_google_there), app, service) = tokio::join!(google, app, service);
    told.add(google);
    told.add(app::judge_app(
        &app,
        checks.app.cx.github.installation_id(),
        checks.app.cx.fleet.entries(),
    ));
    told.add(service);

    let mut answers = stream::iter(checks.questions(is_google_there, &app)).buffered(AT_A_TIME);
    while let Some(found) = answers.next().await {
        told.add(found);
    }
    told.found
}

fn soon() -> Deadline {
    Deadline::after(PATIENCE)
}

/// What was found so far, told as it comes.
struct Told<'a> {
    found: Vec<Finding>,
    answered: usize,
    of: usize,
    tell: &'a mut (dyn FnMut(JobStatus<'_>) + Send),
}

impl Told<'_> {
    fn add(&mut self, found: Vec<Finding>) {
        self.answered += 1;
        (self.tell)(JobStatus { found: &found, answered: self.answered, of: self.of });
        self.found.extend(found);
    }
}

/// A question under way, and in the end what it brought.
type Question<'a> = Pin<Box<dyn Future<Output = Vec<Finding>> + Send + 'a>>;

/// What is to be tried.
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

    /// Configuration, token, App, service, queue and webhook; each VM; each repository.
    fn count(&self) -> usize {
        6 + self.app.cx.fleet.vms().count() + self.repos().len()
    }

    fn configuration(&self) -> Vec<Finding> {
        let mut found = Findings::of("configuration");
        found.ok("variables", "all are there and well-formed");
        for warning in &self.warnings {
            found.warn(
                "RUNNER_CONFIG",
                warning,
                "the more specific entry goes first; see README.md",
            );
        }
        found.done()
    }

    async fn google(&self) -> (Vec<Finding>, bool) {
        let token = self.app.google.header("check", soon()).await.map(drop);
        (google::judge_token(&token), token.is_ok())
    }

    async fn service(&self) -> Vec<Finding> {
        let facts = service::look(&self.service, soon()).await;
        let minutes = self.app.cx.inactive.as_secs() / 60;
        service::judge(&facts, &self.service_url, &self.app.cx.fleet, minutes)
    }

    /// Those that need a token of Google's, or the App's.
    fn questions<'a>(&'a self, google: bool, app: &'a AppFacts) -> Vec<Question<'a>> {
        let mut questions: Vec<Question<'a>> = vec![Box::pin(self.queue(google))];
        for vm in self.app.cx.fleet.vms() {
            questions.push(Box::pin(self.vm(vm, google, app)));
        }
        for repo in self.repos() {
            questions.push(Box::pin(self.repo(repo, app)));
        }
        questions.push(Box::pin(self.webhook(app)));
        questions
    }

    async fn queue(&self, google: bool) -> Vec<Finding> {
        let queue =
            google::Queue { project: &self.project, location: &self.location, id: &self.queue };
        if !google {
            let mut found = Findings::of(format!("queue {}", self.queue));
            found.not_asked("state", NO_TOKEN);
            return found.done();
        }
        google::judge_queue(&google::look_at_queue(&self.app.cx.tasks, soon()).await, &queue)
    }

    async fn vm(&self, vm: &ManagedVm, google: bool, app: &AppFacts) -> Vec<Finding> {
        let deadline = soon();
        let instance = async {
            match google {
                true => Some(google::look_at_vm(&self.app.cx.compute, vm, deadline).await),
                false => None,
            }
        };
        let runner = async {
            match app.is_installed() {
                true => Some(runner::look(&self.app.cx, vm, deadline).await),
                false => None,
            }
        };
        let (instance, runner) = tokio::join!(instance, runner);
        let host = instance.as_ref().map_or(runner::Host::Unknown, |facts| self.host(facts));
        let mut found = Findings::of(format!("VM {}", vm.vm));
        let mut all = match &instance {
            Some(facts) => google::judge_vm(facts, vm, &self.project),
            None => {
                found.not_asked("status", NO_TOKEN);
                Vec::new()
            }
        };
        match &runner {
            Some(facts) => runner::judge(&mut found, facts, vm, &self.app.cx.fleet, host),
            None => found.not_asked("runner", NO_INSTALLATION),
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
        if !app.key_fits() {
            let mut found = Findings::of(format!("repository {repo}"));
            found.not_asked("installation", NO_INSTALLATION);
            return found.done();
        }
        let github = &self.app.cx.github;
        let facts = app::look_at_repo(github, repo, app.is_installed(), soon()).await;
        app::judge_repo(&facts, repo, github.installation_id())
    }

    async fn webhook(&self, facts: &AppFacts) -> Vec<Finding> {
        let Ok(app) = &facts.app else {
            let mut found = Findings::of("App's webhook");
            found.not_asked("URL", NO_INSTALLATION);
            return found.done();
        };
        let facts = webhook::look(&self.app.cx.github, soon()).await;
        webhook::judge(&facts, &app.events, &self.service_url)
    }
}

const NO_TOKEN: &str = "there is no access token for Google, see above";

const NO_INSTALLATION: &str = "GitHub does not let the App in, or could not be asked, see above";
