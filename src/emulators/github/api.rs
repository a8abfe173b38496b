//! GitHub's REST API for the state of [`super`].
//!
//! <https://docs.github.com/en/rest/actions>

use std::cmp::Reverse;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use axum::routing::MethodFilter;
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use super::response::{
    ApiResult, LIMIT, Refusal, SUSPENDED, TOKEN_LIFETIME, bad_credentials, not_accessible,
    not_found, ok, reset, unprocessable,
};
use super::{
    GitHub, Installed, JobId, JobStatus, Permission, Repository, Run, RunnerState, Scope, State,
    TokenRefusal, app, payloads,
};
use crate::clock::Timestamp;
use crate::emulators::wire::{Incoming, Routes, json_response};
use crate::emulators::{Api, hash, lock};

impl GitHub {
    pub(in crate::emulators) fn routes(&self, routes: Routes) -> Routes {
        let get = MethodFilter::GET;
        let api = |name| (Api::GitHub, name);
        let mut routes = self
            .app_routes(routes)
            .on(
                get,
                "/installation/repositories",
                api("apps.listReposAccessibleToInstallation"),
                self,
                |it, call| it.answer(call, State::repositories),
            )
            .on(
                get,
                "/orgs/{org}/actions/runners",
                api("actions.listSelfHostedRunnersForOrg"),
                self,
                |it, call| it.answer(call, State::org_runners),
            )
            .on(
                MethodFilter::DELETE,
                "/orgs/{org}/actions/runners/{runner}",
                api("actions.deleteSelfHostedRunnerFromOrg"),
                self,
                |it, call| it.answer(call, State::delete_org_runner),
            )
            .on(
                MethodFilter::POST,
                "/orgs/{org}/actions/runners/registration-token",
                api("actions.createRegistrationTokenForOrg"),
                self,
                |it, call| it.answer(call, State::org_registration),
            )
            .on(get, "/rate_limit", api("rateLimit.get"), self, |it, call| {
                it.answer(call, State::rate_limit)
            });
        // A renamed repository redirects from its names to its id.
        for repo in ["/repos/{owner}/{repo}", "/repositories/{repository}"] {
            let under = |path: &str| format!("{repo}{path}");
            routes = routes
                .on(get, repo, api("repos.get"), self, |it, call| {
                    it.answer(call, State::repository)
                })
                .on(
                    get,
                    &under("/installation"),
                    api("apps.getRepoInstallation"),
                    self,
                    |it, call| it.answer(call, State::repo_installation),
                )
                .on(
                    get,
                    &under("/actions/runners"),
                    api("actions.listSelfHostedRunnersForRepo"),
                    self,
                    |it, call| it.answer(call, State::repo_runners),
                )
                .on(
                    MethodFilter::DELETE,
                    &under("/actions/runners/{runner}"),
                    api("actions.deleteSelfHostedRunnerFromRepo"),
                    self,
                    |it, call| it.answer(call, State::delete_repo_runner),
                )
                .on(
                    MethodFilter::POST,
                    &under("/actions/runners/registration-token"),
                    api("actions.createRegistrationTokenForRepo"),
                    self,
                    |it, call| it.answer(call, State::repo_registration),
                )
                .on(
                    get,
                    &under("/actions/runs"),
                    api("actions.listWorkflowRunsForRepo"),
                    self,
                    |it, call| it.answer(call, State::list_runs),
                )
                .on(
                    get,
                    &under("/actions/runs/{run}"),
                    api("actions.getWorkflowRun"),
                    self,
                    |it, call| it.answer(call, State::get_run),
                )
                .on(
                    get,
                    &under("/actions/runs/{run}/jobs"),
                    api("actions.listJobsForWorkflowRun"),
                    self,
                    |it, call| it.answer(call, State::list_jobs),
                )
                .on(
                    get,
                    &under("/actions/jobs/{job}"),
                    api("actions.getJobForWorkflowRun"),
                    self,
                    |it, call| it.answer(call, State::get_job),
                );
        }
        routes
    }

    /// The refusal of a call before its method is handled, if any.
    pub(in crate::emulators) fn refuses(&self, method: &str, call: &Incoming) -> Option<Response> {
        let now = self.shared.clock.now();
        let mut state = lock(&self.state);
        let refusal = state.refuses(method, call, now)?;
        Some(state.counted(refusal.into_response(), now))
    }

    pub(super) fn answer(
        &self,
        call: &Incoming,
        act: fn(&mut State, &Incoming, Timestamp) -> ApiResult,
    ) -> Response {
        self.change(|state, now| {
            let response = act(state, call, now).unwrap_or_else(Refusal::into_response);
            state.counted(response, now)
        })
    }
}

impl State {
    fn refuses(&mut self, method: &str, call: &Incoming, now: Timestamp) -> Option<Refusal> {
        const VERSIONS: [&str; 2] = ["2022-11-28", "2026-03-10"];
        if self.outage {
            let message = "No server is currently available to service your request.";
            return Some(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message));
        }
        if call.header("user-agent").is_none_or(str::is_empty) {
            let message = "Request forbidden by administrative rules. Please make sure your request has a \
                         User-Agent header.";
            return Some(Refusal::new(StatusCode::FORBIDDEN, message));
        }
        if let Some(version) =
            call.header("x-github-api-version").filter(|version| !VERSIONS.contains(version))
        {
            let message = format!("\"{version}\" is not a supported version.");
            return Some(Refusal::new(StatusCode::BAD_REQUEST, &message));
        }
        if app::METHODS.contains(&method) {
            return self.check_app(call, now).err();
        }
        let token = call.credential(&["Bearer", "token"]);
        let issued = token.and_then(|token| self.tokens.get(token));
        let age = issued.map(|issued| now.since(*issued)).filter(|age| *age < TOKEN_LIFETIME);
        match (age, self.new_tokens) {
            (None, _) => return Some(bad_credentials()),
            (Some(age), (span, refusal)) if age < span => {
                return Some(match refusal {
                    TokenRefusal::Unauthorized => bad_credentials(),
                    TokenRefusal::Forbidden => not_accessible(),
                });
            }
            _ => {}
        }
        if self.suspended.is_some() {
            return Some(Refusal::new(StatusCode::FORBIDDEN, SUSPENDED));
        }
        if self.rate_limited {
            let id = self.installation_id;
            let message = format!("API rate limit exceeded for installation ID {id}.");
            return Some(Refusal::new(StatusCode::FORBIDDEN, message));
        }
        self.used += 1;
        None
    }

    fn repositories(&mut self, call: &Incoming, _: Timestamp) -> ApiResult {
        let covered = |repo: &&Repository| repo.installed == Installed::Here;
        let repos: Vec<&Repository> = self.repos.values().filter(covered).collect();
        let page = Page::of(call, repos.len())?;
        let shown = page.cut(&repos).iter().map(|repo| {
            payloads::full_repository(
                repo,
                &self.owners[&repo.owner.to_ascii_lowercase()],
                &call.base,
            )
        });
        let list = json!({
            "total_count": repos.len(),
            "repository_selection": "all",
            "repositories": shown.collect::<Vec<_>>(),
        });
        Ok(page.link(call, ok(&list)))
    }

    fn repository(&mut self, call: &Incoming, _: Timestamp) -> ApiResult {
        let repo = self.named_repo(call).ok().filter(|repo| repo.public);
        let repo = repo.map_or_else(|| self.find_repo(call), Ok)?;
        let owner = &self.owners[&repo.owner.to_ascii_lowercase()];
        Ok(ok(&payloads::full_repository(repo, owner, &call.base)))
    }

    fn repo_runners(&mut self, call: &Incoming, now: Timestamp) -> ApiResult {
        let scope = self.repo_scope(call)?;
        self.runners_page(call, now, &scope)
    }

    fn org_runners(&mut self, call: &Incoming, now: Timestamp) -> ApiResult {
        let scope = self.org_scope(call)?;
        self.runners_page(call, now, &scope)
    }

    fn delete_repo_runner(&mut self, call: &Incoming, now: Timestamp) -> ApiResult {
        let scope = self.repo_scope(call)?;
        self.delete_runner(call, now, &scope)
    }

    fn delete_org_runner(&mut self, call: &Incoming, now: Timestamp) -> ApiResult {
        let scope = self.org_scope(call)?;
        self.delete_runner(call, now, &scope)
    }

    /// GitHub decides by the `busy` flag as shown: a runner whose job has just begun can be deleted.
    fn delete_runner(&mut self, call: &Incoming, now: Timestamp, scope: &Scope) -> ApiResult {
        self.permitted(Permission::Registration)?;
        let id = call.param("runner").parse::<u64>().map_err(|_| not_found())?;
        let here = |runner: &&RunnerState| runner.is_listed_in(scope);
        let runner = self.runners.get(&id).filter(here).ok_or_else(not_found)?;
        if self.shows_busy(runner, now) {
            let name = &runner.spec.name;
            let message = format!("Bad request - Runner \"{name}\" is still running a job");
            return Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, message));
        }
        self.deregister(id, now);
        Ok(StatusCode::NO_CONTENT.into_response())
    }

    fn repo_registration(&mut self, call: &Incoming, now: Timestamp) -> ApiResult {
        let scope = self.repo_scope(call)?;
        self.registration(scope, now)
    }

    fn org_registration(&mut self, call: &Incoming, now: Timestamp) -> ApiResult {
        let scope = self.org_scope(call)?;
        self.registration(scope, now)
    }

    /// The repository of the path, if the App may list its runners.
    fn repo_scope(&self, call: &Incoming) -> Result<Scope, Refusal> {
        let name = self.find_repo(call)?.full_name();
        self.permitted(Permission::Administration)?;
        Ok(Scope::Repository(name))
    }

    /// The organization of the path, if the App may list its runners.
    fn org_scope(&self, call: &Incoming) -> Result<Scope, Refusal> {
        let org = call.param("org");
        if !self.owner(org).is_some_and(|owner| owner.organization) {
            return Err(not_found());
        }
        self.permitted(Permission::OrgRunners)?;
        Ok(Scope::Organization(org.to_owned()))
    }

    fn registration(&mut self, scope: Scope, now: Timestamp) -> ApiResult {
        self.permitted(Permission::Registration)?;
        let token = format!("A{:016X}{:08X}", hash(&self.next().to_be_bytes()), self.count);
        let ends = now + Duration::from_secs(3600);
        self.registrations.insert(token.clone(), (scope, ends));
        let answer = json!({ "token": token, "expires_at": payloads::seconds(ends) });
        Ok(json_response(StatusCode::CREATED, &answer))
    }

    fn runners_page(&self, call: &Incoming, now: Timestamp, scope: &Scope) -> ApiResult {
        let name = call.query("name");
        let wanted = |(_, runner): &(&u64, &RunnerState)| {
            runner.is_listed_in(scope) && name.is_none_or(|name| runner.spec.name == name)
        };
        let runners: Vec<_> = self.runners.iter().filter(wanted).collect();
        let page = Page::of(call, runners.len())?;
        let shown = page
            .cut(&runners)
            .iter()
            .map(|(id, runner)| payloads::runner(**id, runner, self.shows_busy(runner, now)));
        let list = json!({ "total_count": runners.len(), "runners": shown.collect::<Vec<_>>() });
        Ok(page.link(call, ok(&list)))
    }

    fn shows_busy(&self, runner: &RunnerState, now: Timestamp) -> bool {
        let started = runner.job.and_then(|job| self.jobs[&job].started_at);
        let busy = started.is_some_and(|started| started + self.timings.busy_lag <= now);
        runner.stuck || (busy && !runner.glitch)
    }

    fn list_runs(&mut self, call: &Incoming, _: Timestamp) -> ApiResult {
        const CONCLUSIONS: [&str; 8] = [
            "action_required",
            "cancelled",
            "failure",
            "neutral",
            "skipped",
            "stale",
            "success",
            "timed_out",
        ];
        let repo = self.find_repo(call)?;
        self.permitted(Permission::Actions)?;
        let wanted = call.query("status");
        let known = |word: &str| {
            CONCLUSIONS.contains(&word)
                || ["requested", "waiting", "pending", "queued", "in_progress", "completed"]
                    .contains(&word)
        };
        if let Some(word) = wanted.filter(|word| !known(word)) {
            return Err(unprocessable(&format!("status: {word} is not one of the known values")));
        }
        let fits = |run: &&Run| {
            let (status, conclusion) = self.run_status(run);
            run.repo == repo.id
                && !(self.search_index_down && wanted.is_some())
                && wanted.is_none_or(|word| word == status.as_str() || Some(word) == conclusion)
        };
        let mut runs: Vec<&Run> = self.runs.values().filter(fits).collect();
        runs.sort_by_key(|run| Reverse((run.created, run.id)));
        // A search returns at most 1000 results.
        let shown = if wanted.is_some() { runs.len().min(1000) } else { runs.len() };
        let page = Page::of(call, shown)?;
        let owner = &self.owners[&repo.owner.to_ascii_lowercase()];
        let shown = page
            .cut(&runs)
            .iter()
            .map(|run| payloads::run(run, self.run_status(run), (repo, owner), &call.base));
        let list = json!({ "total_count": runs.len(), "workflow_runs": shown.collect::<Vec<_>>() });
        Ok(page.link(call, ok(&list)))
    }

    fn get_run(&mut self, call: &Incoming, _: Timestamp) -> ApiResult {
        let repo = self.find_repo(call)?;
        self.permitted(Permission::Actions)?;
        let run = self.find_run(repo, call)?;
        let owner = &self.owners[&repo.owner.to_ascii_lowercase()];
        Ok(ok(&payloads::run(run, self.run_status(run), (repo, owner), &call.base)))
    }

    fn list_jobs(&mut self, call: &Incoming, _: Timestamp) -> ApiResult {
        let repo = self.find_repo(call)?;
        self.permitted(Permission::Actions)?;
        let run = self.find_run(repo, call)?;
        if let Some(filter) =
            call.query("filter").filter(|filter| !["latest", "all"].contains(filter))
        {
            return Err(unprocessable(&format!("filter: {filter} is not latest or all")));
        }
        let page = Page::of(call, run.jobs.len())?;
        let shown = page
            .cut(&run.jobs)
            .iter()
            .map(|id| payloads::job(&self.jobs[id], run, repo, &call.base));
        let list = json!({ "total_count": run.jobs.len(), "jobs": shown.collect::<Vec<_>>() });
        Ok(page.link(call, ok(&list)))
    }

    fn get_job(&mut self, call: &Incoming, _: Timestamp) -> ApiResult {
        let repo = self.find_repo(call)?;
        self.permitted(Permission::Actions)?;
        let id = call.param("job").parse().ok().map(JobId);
        let job = id.and_then(|id| self.jobs.get(&id)).filter(|job| job.repo == repo.id);
        let job = job.ok_or_else(not_found)?;
        Ok(ok(&payloads::job(job, &self.runs[&job.run], repo, &call.base)))
    }

    fn rate_limit(&mut self, _: &Incoming, now: Timestamp) -> ApiResult {
        let limit = |limit: u32, used: u32| {
            json!({
                "limit": limit,
                "used": used,
                "remaining": limit.saturating_sub(used),
                "reset": reset(now),
            })
        };
        let core = limit(LIMIT, self.used);
        let (search, graphql) = (limit(30, 0), limit(5000, 0));
        Ok(ok(&json!({
            "resources": { "core": core, "search": search, "graphql": graphql },
            "rate": core,
        })))
    }

    /// The repository of the path, if the installation can see it.
    fn find_repo(&self, call: &Incoming) -> Result<&Repository, Refusal> {
        self.named_repo(call).and_then(|repo| {
            (repo.installed == Installed::Here).then_some(repo).ok_or_else(not_found)
        })
    }

    /// The repository of the path, visible or not.
    pub(super) fn named_repo(&self, call: &Incoming) -> Result<&Repository, Refusal> {
        if let Some(id) = call.params.get("repository") {
            let id = id.parse().ok();
            return id.and_then(|id: u64| self.repos.get(&id)).ok_or_else(not_found);
        }
        let name = format!("{}/{}", call.param("owner"), call.param("repo"));
        if let Some(repo) = self.repos.values().find(|repo| repo.is(&name)) {
            return Ok(repo);
        }
        let former = name.to_ascii_lowercase();
        let repo = self.repos.values().find(|repo| repo.former.contains(&former));
        let repo = repo.ok_or_else(not_found)?;
        // The rest after `/repos/owner/name`, with the query.
        let rest = call.target.splitn(5, '/').nth(4).map(|rest| format!("/{rest}"));
        let query =
            || call.target.split_once('?').map_or(String::new(), |(_, query)| format!("?{query}"));
        let to = format!("{}/repositories/{}{}", call.base, repo.id, rest.unwrap_or_else(query));
        let moved = Refusal::new(StatusCode::MOVED_PERMANENTLY, "Moved Permanently");
        Err(Refusal { location: Some(to), ..moved })
    }

    fn find_run(&self, repo: &Repository, call: &Incoming) -> Result<&Run, Refusal> {
        let id = call.param("run").parse::<u64>().ok();
        let run = id.and_then(|id| self.runs.get(&id)).filter(|run| run.repo == repo.id);
        run.ok_or_else(not_found)
    }

    /// The status of the least advanced job, and for a completed run the conclusion of its worst job.
    fn run_status(&self, run: &Run) -> (JobStatus, Option<&'static str>) {
        let jobs = || run.jobs.iter().map(|id| &self.jobs[id]);
        let status = jobs().map(|job| job.status).min().unwrap_or(JobStatus::Completed);
        if status != JobStatus::Completed {
            return (status, None);
        }
        let ended = |word| jobs().any(|job| job.conclusion == Some(word));
        let worst = ["failure", "cancelled"].into_iter().find(|word| ended(*word));
        (status, Some(worst.unwrap_or("success")))
    }

    fn permitted(&self, permission: Permission) -> Result<(), Refusal> {
        match self.forbidden.contains(&permission) {
            true => Err(not_accessible()),
            false => Ok(()),
        }
    }

    pub(super) fn permissions(&self) -> Value {
        let mut permissions = json!({ "metadata": "read" });
        let all = [
            (Permission::Actions, "actions"),
            (Permission::Administration, "administration"),
            (Permission::OrgRunners, "organization_self_hosted_runners"),
        ];
        let registers = self.permitted(Permission::Registration).is_ok();
        for (permission, name) in all {
            if !self.forbidden.contains(&permission) {
                let writes = registers && permission != Permission::Actions;
                permissions[name] = json!(if writes { "write" } else { "read" });
            }
        }
        permissions
    }

    /// Adds the rate limit's headers.
    fn counted(&self, mut response: Response, now: Timestamp) -> Response {
        let remaining = if self.rate_limited { 0 } else { LIMIT.saturating_sub(self.used) };
        let fields = [
            ("x-ratelimit-limit", u64::from(LIMIT)),
            ("x-ratelimit-remaining", u64::from(remaining)),
            ("x-ratelimit-used", u64::from(LIMIT - remaining)),
            ("x-ratelimit-reset", reset(now)),
        ];
        let headers = response.headers_mut();
        for (name, value) in fields {
            headers.insert(name, HeaderValue::from(value));
        }
        headers.insert("x-ratelimit-resource", HeaderValue::from_static("core"));
        headers.insert("x-github-media-type", HeaderValue::from_static("github.v3; format=json"));
        response
    }
}

/// A page of a list.
struct Page {
    size: usize,
    number: usize,
    total: usize,
}

impl Page {
    fn of(call: &Incoming, total: usize) -> Result<Self, Refusal> {
        let number = |name, or: usize| match call.query(name) {
            None => Ok(or),
            Some(text) => {
                text.parse::<usize>().ok().filter(|number| *number > 0).ok_or_else(|| {
                    unprocessable(&format!("{name}: {text} is not a positive number"))
                })
            }
        };
        Ok(Self { size: number("per_page", 30)?.min(100), number: number("page", 1)?, total })
    }

    fn cut<'a, T>(&self, items: &'a [T]) -> &'a [T] {
        let items = &items[..self.total.min(items.len())];
        let from = (self.number - 1).saturating_mul(self.size).min(items.len());
        &items[from..items.len().min(from + self.size)]
    }

    /// Adds the links to other pages.
    fn link(&self, call: &Incoming, mut response: Response) -> Response {
        let last = self.total.div_ceil(self.size).max(1);
        let to = |number: usize, relation: &str| {
            let mut query = form_urlencoded::Serializer::new(String::new());
            query.extend_pairs(call.query.iter().filter(|(name, _)| *name != "page"));
            query.append_pair("page", &number.to_string());
            format!("<{}{}?{}>; rel=\"{relation}\"", call.base, call.path, query.finish())
        };
        let mut links = Vec::new();
        if self.number > 1 {
            links.push(to((self.number - 1).min(last), "prev"));
        }
        if self.number < last {
            links.extend([to(self.number + 1, "next"), to(last, "last")]);
        }
        if self.number > 1 {
            links.push(to(1, "first"));
        }
        if !links.is_empty()
            && let Ok(value) = HeaderValue::try_from(links.join(", "))
        {
            response.headers_mut().insert(header::LINK, value);
        }
        response
    }
}
