//! GitHub's REST API, as an installation of the App: runners, workflow runs and jobs. Calls about the App itself are
//! in [`app`].
//!
//! The App signs a short-lived token with its key and exchanges it for an installation token, which is cached until
//! shortly before it expires. A token is opaque text of any length.
//! <https://docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app>

pub mod app;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use jsonwebtoken::{Algorithm, Header};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::Error;
use super::transport::{Outgoing, Transport, bearer, read};
use crate::clock::{Clock, Deadline, Timestamp};
use crate::config::GitHubApp;
use crate::fleet::{Label, RepoName};
use crate::secret::Secret;

/// The largest page size of GitHub's lists.
const PER_PAGE: usize = 100;

/// The most pages of one list that are read. A list of runs ends at 1,000 anyway.
const MAX_PAGES: usize = 100;

/// The time for which GitHub may refuse a new installation token with 401 or 403, until it is replicated.
/// <https://github.com/octokit/auth-app.js/issues/65>
const TOKEN_REPLICATION: Duration = Duration::from_secs(5);

/// The pause before a call with a new token is repeated.
const REPLICATION_PAUSE: Duration = Duration::from_secs(1);

/// The time before its expiry from which a token is no longer used.
const TOKEN_MARGIN: Duration = Duration::from_secs(5 * 60);

/// The scope of a runner's registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunnerScope {
    /// One repository.
    Repository(RepoName),
    /// An organization, for some or all of its repositories.
    Organization(String),
}

impl fmt::Display for RunnerScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Repository(repo) => write!(f, "{repo}"),
            Self::Organization(login) => write!(f, "the organization {login}"),
        }
    }
}

/// A self-hosted runner.
#[derive(Clone, Debug)]
pub struct Runner {
    pub id: u64,
    /// Its name, by default its host's.
    pub name: String,
    /// GitHub's flag for a runner with a job. It may lag by a minute, and flicker during a job.
    pub busy: bool,
    /// The runner is connected to GitHub.
    pub online: bool,
    /// The version of its software, if given. GitHub assigns no jobs to a version that is too old.
    pub version: Option<String>,
    /// All its labels.
    pub labels: Vec<Label>,
}

/// The status of a job or of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobStatus {
    Requested,
    Waiting,
    Pending,
    Queued,
    InProgress,
    Completed,
    /// A status that this version of the service does not know.
    #[serde(other)]
    Unknown,
}

impl JobStatus {
    /// GitHub's name for the status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Waiting => "waiting",
            Self::Pending => "pending",
            Self::Queued => "queued",
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Unknown => "unknown",
        }
    }
}

/// A workflow job.
#[derive(Clone, Debug, Deserialize)]
pub struct Job {
    /// Its id.
    pub id: u64,
    /// Its status.
    pub status: JobStatus,
    /// Its `runs-on`.
    #[serde(default)]
    pub labels: Vec<Label>,
    /// The name of its runner, once it has one.
    pub runner_name: Option<String>,
    /// Its name in the workflow.
    pub name: Option<String>,
    /// The URL of its page.
    pub html_url: Option<String>,
    /// The time of its creation, RFC 3339.
    created_at: Option<String>,
    /// The start of its run or, before that, of its wait for a runner, RFC 3339.
    started_at: Option<String>,
    /// The time of its end, RFC 3339.
    completed_at: Option<String>,
}

impl Job {
    /// The start of its wait for a runner, as far as GitHub says: a job may have waited for a review before.
    pub fn queued_since(&self) -> Option<Timestamp> {
        let times = [&self.created_at, &self.started_at];
        times.into_iter().flatten().filter_map(|time| Timestamp::parse(time)).max()
    }

    /// The time at which a running job began, if GitHub gives it.
    pub fn running_since(&self) -> Option<Timestamp> {
        self.started_at.as_deref().and_then(Timestamp::parse)
    }

    /// The time at which a completed job ended, if GitHub gives it.
    pub fn completed_at(&self) -> Option<Timestamp> {
        self.completed_at.as_deref().and_then(Timestamp::parse)
    }
}

/// A workflow run, as lists show it.
#[derive(Clone, Debug, Deserialize)]
pub struct Run {
    pub id: u64,
    /// The status of its least advanced job.
    pub status: JobStatus,
    /// RFC 3339.
    created_at: Option<String>,
}

impl Run {
    /// The time at which the run was created, if GitHub gives it.
    pub fn created_at(&self) -> Option<Timestamp> {
        self.created_at.as_deref().and_then(Timestamp::parse)
    }
}

/// The part of a repository that the service reads.
/// <https://docs.github.com/en/rest/repos/repos#get-a-repository>
#[derive(Clone, Debug, Deserialize)]
pub struct Repository {
    /// Its current name: a renamed repository still answers to its old name.
    pub full_name: RepoName,
    /// Only its members can see it.
    pub private: bool,
}

/// A token with which runners can be registered for an hour.
#[derive(Clone, Debug)]
pub struct RegistrationToken {
    /// The token itself.
    pub token: Secret,
    /// Its expiry, RFC 3339.
    pub expires_at: String,
}

/// A page of a list.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// The items on this page.
    pub items: Vec<T>,
    /// Another page follows.
    pub more: bool,
}

/// GitHub's API, as one installation of the App; cheap to clone, and clones share the token.
#[derive(Clone, Debug)]
pub struct GitHub {
    transport: Transport,
    root: String,
    app: Arc<GitHubApp>,
    clock: Clock,
    /// Locked while a token is fetched, so that callers that wait use it.
    token: Arc<Mutex<Option<InstallationToken>>>,
}

#[derive(Clone)]
struct InstallationToken {
    header: HeaderValue,
    fetched: Timestamp,
    expires: Timestamp,
}

impl fmt::Debug for InstallationToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InstallationToken {{ expires: {} }}", self.expires)
    }
}

impl GitHub {
    /// The App's installation, at the API root `root`.
    pub fn new(transport: Transport, root: &str, app: GitHubApp, clock: Clock) -> Self {
        Self { transport, root: root.to_owned(), app: Arc::new(app), clock, token: Arc::default() }
    }

    /// Fetches a token if there is none, so that the first call need not wait for it.
    pub async fn prefetch_token(&self, deadline: Deadline) -> Result<(), Error> {
        self.installation_token(None, deadline).await.map(drop)
    }

    /// The runners registered in `scope`: all, or those of one name.
    /// <https://docs.github.com/en/rest/actions/self-hosted-runners>
    ///
    /// # Errors
    /// 404 also for an organization that is a user, or that the App may not read.
    pub async fn runners(
        &self,
        scope: &RunnerScope,
        name: Option<&str>,
        deadline: Deadline,
    ) -> Result<Vec<Runner>, Error> {
        let (call, path) = match scope {
            RunnerScope::Repository(repo) => {
                ("list runners of a repository", format!("/repos/{repo}/actions/runners"))
            }
            RunnerScope::Organization(login) => {
                ("list runners of an organization", format!("/orgs/{login}/actions/runners"))
            }
        };
        let filter: Vec<(&str, &str)> = name.map(|name| ("name", name)).into_iter().collect();
        let page = |page| self.page::<wire::Runners>(call, &path, &filter, page, deadline);
        let mut all = Vec::new();
        for number in 1..=MAX_PAGES {
            let found = page(number).await?;
            let last = found.runners.len() < PER_PAGE;
            all.extend(found.runners.into_iter().map(Runner::from));
            if last {
                break;
            }
        }
        Ok(all)
    }

    /// Removes a runner from `scope`: it gets no job any more. A job that it has already goes on.
    /// <https://docs.github.com/en/rest/actions/self-hosted-runners#delete-a-self-hosted-runner-from-a-repository>
    ///
    /// # Errors
    /// 422 if GitHub takes it to be busy; 404 if there is no such runner; 403 as for
    /// [`registration_token`](Self::registration_token).
    pub async fn remove_runner(
        &self,
        scope: &RunnerScope,
        id: u64,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let path = match scope {
            RunnerScope::Repository(repo) => format!("/repos/{repo}/actions/runners/{id}"),
            RunnerScope::Organization(login) => format!("/orgs/{login}/actions/runners/{id}"),
        };
        let request = || Outgoing::delete("remove a runner", format!("{}{path}", self.root));
        self.answer(request, deadline).await.map(drop)
    }

    /// Creates a token with which a runner can be registered in `scope`.
    /// <https://docs.github.com/en/rest/actions/self-hosted-runners#create-a-registration-token-for-a-repository>
    ///
    /// # Errors
    /// 403 or 404 if the installation lacks the permission: *Administration: write*, or for an organization
    /// *Self-hosted runners: write*.
    pub async fn registration_token(
        &self,
        scope: &RunnerScope,
        deadline: Deadline,
    ) -> Result<RegistrationToken, Error> {
        let call = "create a registration token";
        let path = match scope {
            RunnerScope::Repository(repo) => {
                format!("/repos/{repo}/actions/runners/registration-token")
            }
            RunnerScope::Organization(login) => {
                format!("/orgs/{login}/actions/runners/registration-token")
            }
        };
        let request = || Outgoing::post(call, format!("{}{path}", self.root));
        let token: wire::Token = self.send(call, request, deadline).await?;
        Ok(RegistrationToken { token: Secret::new(token.token), expires_at: token.expires_at })
    }

    /// The URL of `scope`, for a browser or a runner.
    pub fn page_url(&self, scope: &RunnerScope) -> String {
        let host = match self.root.strip_suffix("/api/v3") {
            Some(enterprise_server) => enterprise_server.to_owned(),
            None => self.root.replacen("://api.", "://", 1),
        };
        match scope {
            RunnerScope::Repository(repo) => format!("{host}/{repo}"),
            RunnerScope::Organization(login) => format!("{host}/{login}"),
        }
    }

    /// Reads a repository.
    /// <https://docs.github.com/en/rest/repos/repos#get-a-repository>
    ///
    /// # Errors
    /// 404 if there is no such repository, or the installation does not cover it.
    pub async fn repository(
        &self,
        repo: &RepoName,
        deadline: Deadline,
    ) -> Result<Repository, Error> {
        self.get("get a repository", &format!("/repos/{repo}"), &[], deadline).await
    }

    /// Reads a job.
    /// <https://docs.github.com/en/rest/actions/workflow-jobs#get-a-job-for-a-workflow-run>
    ///
    /// # Errors
    /// 404 if there is no such job, or the App may not read it.
    pub async fn job(&self, repo: &RepoName, id: u64, deadline: Deadline) -> Result<Job, Error> {
        self.get("get a job", &format!("/repos/{repo}/actions/jobs/{id}"), &[], deadline).await
    }

    /// The repository's runs of this status, or of any, newest first. Pages count from 1. GitHub lists runs by status
    /// from a search index, which was empty for hours at times; the list of any status does not use it.
    /// <https://docs.github.com/en/rest/actions/workflow-runs#list-workflow-runs-for-a-repository>
    pub async fn runs(
        &self,
        repo: &RepoName,
        status: Option<JobStatus>,
        page: usize,
        deadline: Deadline,
    ) -> Result<Page<Run>, Error> {
        let status = status.map(|status| ("status", status.as_str()));
        let filter: Vec<_> =
            status.into_iter().chain([("exclude_pull_requests", "true")]).collect();
        let path = format!("/repos/{repo}/actions/runs");
        let found: wire::Runs = self.page("list runs", &path, &filter, page, deadline).await?;
        let more = found.workflow_runs.len() == PER_PAGE && page < MAX_PAGES;
        Ok(Page { items: found.workflow_runs, more })
    }

    /// All jobs of a run's latest attempt.
    /// <https://docs.github.com/en/rest/actions/workflow-jobs#list-jobs-for-a-workflow-run>
    pub async fn jobs(
        &self,
        repo: &RepoName,
        run: u64,
        deadline: Deadline,
    ) -> Result<Vec<Job>, Error> {
        let path = format!("/repos/{repo}/actions/runs/{run}/jobs");
        let mut all = Vec::new();
        for number in 1..=MAX_PAGES {
            let found: wire::Jobs = self
                .page("list jobs of a run", &path, &[("filter", "latest")], number, deadline)
                .await?;
            let last = found.jobs.len() < PER_PAGE;
            all.extend(found.jobs);
            if last {
                break;
            }
        }
        Ok(all)
    }

    async fn page<T: DeserializeOwned>(
        &self,
        call: &'static str,
        path: &str,
        filter: &[(&str, &str)],
        page: usize,
        deadline: Deadline,
    ) -> Result<T, Error> {
        let (size, page) = (PER_PAGE.to_string(), page.to_string());
        let query: Vec<_> =
            filter.iter().copied().chain([("per_page", size.as_str()), ("page", &page)]).collect();
        self.get(call, path, &query, deadline).await
    }

    async fn get<T: DeserializeOwned>(
        &self,
        call: &'static str,
        path: &str,
        query: &[(&str, &str)],
        deadline: Deadline,
    ) -> Result<T, Error> {
        let request = || {
            let url = format!("{}{path}", self.root);
            Outgoing::get(call, url).query(query.iter().copied()).following_redirects()
        };
        self.send(call, request, deadline).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        call: &'static str,
        request: impl Fn() -> Outgoing,
        deadline: Deadline,
    ) -> Result<T, Error> {
        read(call, &self.answer(request, deadline).await?)
    }

    /// Sends a request as the installation, again with a new token if the first is refused.
    async fn answer(
        &self,
        request: impl Fn() -> Outgoing,
        deadline: Deadline,
    ) -> Result<Response<Bytes>, Error> {
        let token = self.installation_token(None, deadline).await?;
        let mut answer = self.send_with(&token, &request, deadline).await;
        let is_unauthorized =
            answer.as_ref().is_err_and(|error| error.status() == Some(StatusCode::UNAUTHORIZED));
        if is_unauthorized && !self.may_be_unknown(&token) {
            // The token was revoked before its expiry.
            let fresh = self.installation_token(Some(&token.header), deadline).await?;
            answer = self.send_with(&fresh, &request, deadline).await;
        }
        answer
    }

    /// Sends a request with this token, again every second while GitHub may not know the token yet.
    async fn send_with(
        &self,
        token: &InstallationToken,
        request: &impl Fn() -> Outgoing,
        deadline: Deadline,
    ) -> Result<Response<Bytes>, Error> {
        let request = versioned(request()).bearer(&token.header);
        loop {
            let answer = self.transport.send(&request, deadline).await;
            let has_time = deadline.remaining() >= 2 * REPLICATION_PAUSE;
            if !is_refused(&answer) || !self.may_be_unknown(token) || !has_time {
                return answer;
            }
            tokio::time::sleep(REPLICATION_PAUSE).await;
        }
    }

    /// GitHub may not have replicated the token yet. Another one would be no better.
    fn may_be_unknown(&self, token: &InstallationToken) -> bool {
        self.clock.now().since(token.fetched) < TOKEN_REPLICATION
    }

    /// A valid token, from the cache unless that one is `refused`.
    async fn installation_token(
        &self,
        refused: Option<&HeaderValue>,
        deadline: Deadline,
    ) -> Result<InstallationToken, Error> {
        let call = "create an installation access token";
        // Another call may hold the lock while it fetches a token.
        let mut cached = tokio::time::timeout(deadline.remaining() / 2, self.token.lock())
            .await
            .map_err(|_| Error::Unanswered { call, why: "out of time".into() })?;
        let good = |token: &&InstallationToken| {
            token.expires > self.clock.now() + TOKEN_MARGIN && refused != Some(&token.header)
        };
        if let Some(token) = cached.as_ref().filter(good) {
            return Ok(token.clone());
        }
        let token = self.fetch_token(deadline).await?;
        Ok(cached.insert(token).clone())
    }

    /// <https://docs.github.com/en/rest/apps/apps#create-an-installation-access-token-for-an-app>
    async fn fetch_token(&self, deadline: Deadline) -> Result<InstallationToken, Error> {
        let call = "create an installation access token";
        let path = format!("/app/installations/{}/access_tokens", self.app.installation_id);
        let request = Outgoing::post(call, format!("{}{path}", self.root));
        let answer = self.send_as_app(call, request, deadline).await?;
        let token: wire::Token = read(call, &answer)?;
        let expires = Timestamp::parse(&token.expires_at);
        Ok(InstallationToken {
            header: bearer(call, &token.token)?,
            fetched: self.clock.now(),
            // The lifetime that GitHub documents.
            expires: expires.unwrap_or_else(|| self.clock.now() + Duration::from_secs(3600)),
        })
    }

    /// Sends a request as the App itself.
    async fn send_as_app(
        &self,
        call: &'static str,
        request: Outgoing,
        deadline: Deadline,
    ) -> Result<Response<Bytes>, Error> {
        let jwt = bearer(call, &self.app_token(call)?)?;
        self.transport.send(&versioned(request).bearer(&jwt), deadline).await
    }

    /// A token signed with the App's key. GitHub's clock may be behind ours, so it is dated back a minute.
    fn app_token(&self, call: &'static str) -> Result<String, Error> {
        let now = self.clock.now().unix_seconds();
        let claims =
            wire::Claims { iss: &self.app.id, iat: now.saturating_sub(60), exp: now + 9 * 60 };
        jsonwebtoken::encode(&Header::new(Algorithm::RS256), &claims, &self.app.private_key)
            .map_err(|_| Error::NoToken { call, why: "the App's private key cannot sign".into() })
    }
}

fn is_refused<T>(answer: &Result<T, Error>) -> bool {
    answer.as_ref().is_err_and(|error| {
        error.status() == Some(StatusCode::UNAUTHORIZED) || error.is_forbidden()
    })
}

/// Sets the API version: one that both github.com and Enterprise Server support.
fn versioned(request: Outgoing) -> Outgoing {
    request
        .header(
            HeaderName::from_static("x-github-api-version"),
            HeaderValue::from_static("2022-11-28"),
        )
        .header(header::ACCEPT, HeaderValue::from_static("application/vnd.github+json"))
}

/// The wire format. Only fields that are read are required.
mod wire {
    use super::{Deserialize, Job, Label, Run, Serialize};

    #[derive(Serialize)]
    pub(super) struct Claims<'a> {
        pub(super) iss: &'a str,
        pub(super) iat: u64,
        pub(super) exp: u64,
    }

    #[derive(Deserialize)]
    pub(super) struct Token {
        pub(super) token: String,
        #[serde(default)]
        pub(super) expires_at: String,
    }

    #[derive(Deserialize)]
    pub(super) struct Runners {
        pub(super) runners: Vec<Runner>,
    }

    #[derive(Deserialize)]
    pub(super) struct Runner {
        id: u64,
        name: String,
        busy: bool,
        #[serde(default)]
        status: String,
        version: Option<String>,
        #[serde(default)]
        labels: Vec<RunnerLabel>,
    }

    #[derive(Deserialize)]
    struct RunnerLabel {
        name: Label,
    }

    impl From<Runner> for super::Runner {
        fn from(wire: Runner) -> Self {
            Self {
                id: wire.id,
                name: wire.name,
                busy: wire.busy,
                online: wire.status == "online",
                version: wire.version,
                labels: wire.labels.into_iter().map(|label| label.name).collect(),
            }
        }
    }

    #[derive(Deserialize)]
    pub(super) struct Runs {
        pub(super) workflow_runs: Vec<Run>,
    }

    #[derive(Deserialize)]
    pub(super) struct Jobs {
        pub(super) jobs: Vec<Job>,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_has_its_page_where_its_api_is() {
        let page = |root: &str, scope: &RunnerScope| {
            let app = GitHubApp {
                id: "1".into(),
                private_key: jsonwebtoken::EncodingKey::from_secret(b""),
                installation_id: 1,
            };
            let http = crate::clients::transport::over_tls().unwrap();
            GitHub::new(Transport::new(http), root, app, Clock::system()).page_url(scope)
        };
        let (repo, organization) =
            (RunnerScope::Repository("acme/app".into()), RunnerScope::Organization("acme".into()));
        assert_eq!(page("https://api.github.com", &repo), "https://github.com/acme/app");
        assert_eq!(page("https://api.acme.ghe.com", &organization), "https://acme.ghe.com/acme");
        assert_eq!(page("https://git.example/api/v3", &repo), "https://git.example/acme/app");
    }

    #[test]
    fn an_answer_is_read_leniently() {
        let job: Job =
            serde_json::from_str(r#"{"id": 7, "status": "dreaming", "runner_name": null}"#)
                .unwrap();
        assert_eq!(job.status, JobStatus::Unknown);
        assert!(job.labels.is_empty() && job.queued_since().is_none());
        let runners: wire::Runners = serde_json::from_str(
            r#"{"total_count": 1, "runners": [{"id": 1, "name": "gpu-1", "busy": true}]}"#,
        )
        .unwrap();
        let runner = Runner::from(runners.runners.into_iter().next().unwrap());
        assert!(runner.busy && !runner.online && runner.labels.is_empty());
    }
}
