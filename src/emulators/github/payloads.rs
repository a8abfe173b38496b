//! GitHub's objects as JSON, as in its REST API and its webhooks.
//!
//! Other clients read more fields than the service, and follow URLs in them. So objects are complete, and `base` is the
//! URL at which the client reached the emulator.

use serde_json::{Value, json};

use super::{Job, JobStatus, Owner, Repository, Run, RunnerState};
use crate::clock::Timestamp;
use crate::emulators::hash;

/// The API's public URL, for webhooks.
pub(super) const PUBLIC: &str = "https://api.github.com";

pub(super) fn node_id(kind: &str, id: u64) -> String {
    use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
    format!("{kind}_{}", BASE64_URL_SAFE_NO_PAD.encode(id.to_be_bytes()))
}

/// A commit hash: forty hex digits.
fn sha(id: u64) -> String {
    let (a, b) = (hash(&id.to_be_bytes()), hash(&id.to_le_bytes()));
    format!("{a:016x}{b:016x}{:08x}", a >> 32)
}

fn time(time: Option<Timestamp>) -> Value {
    time.map_or(Value::Null, |time| json!(seconds(time)))
}

/// A time in whole seconds, as GitHub writes it.
pub(super) fn seconds(time: Timestamp) -> String {
    Timestamp::from_unix_seconds(time.unix_seconds()).rfc3339()
}

pub(super) fn account(owner: &Owner, base: &str) -> Value {
    let (login, id) = (&owner.login, owner.id);
    let url = format!("{base}/users/{login}");
    json!({
        "login": login,
        "id": id,
        "node_id": node_id(if owner.organization { "O" } else { "U" }, id),
        "avatar_url": format!("https://avatars.githubusercontent.com/u/{id}?v=4"),
        "gravatar_id": "",
        "url": url,
        "html_url": format!("https://github.com/{login}"),
        "followers_url": format!("{url}/followers"),
        "following_url": format!("{url}/following{{/other_user}}"),
        "gists_url": format!("{url}/gists{{/gist_id}}"),
        "starred_url": format!("{url}/starred{{/owner}}{{/repo}}"),
        "subscriptions_url": format!("{url}/subscriptions"),
        "organizations_url": format!("{url}/orgs"),
        "repos_url": format!("{url}/repos"),
        "events_url": format!("{url}/events{{/privacy}}"),
        "received_events_url": format!("{url}/received_events"),
        "type": if owner.organization { "Organization" } else { "User" },
        "site_admin": false,
    })
}

fn organization(owner: &Owner, base: &str) -> Value {
    let (login, id) = (&owner.login, owner.id);
    let url = format!("{base}/orgs/{login}");
    json!({
        "login": login,
        "id": id,
        "node_id": node_id("O", id),
        "url": url,
        "repos_url": format!("{url}/repos"),
        "events_url": format!("{url}/events"),
        "hooks_url": format!("{url}/hooks"),
        "issues_url": format!("{url}/issues"),
        "members_url": format!("{url}/members{{/member}}"),
        "public_members_url": format!("{url}/public_members{{/member}}"),
        "avatar_url": format!("https://avatars.githubusercontent.com/u/{id}?v=4"),
        "description": "",
    })
}

/// The user who triggered the event.
fn sender(base: &str) -> Value {
    let monalisa = Owner { login: "mona-example".to_owned(), id: 21_000_001, organization: false };
    account(&monalisa, base)
}

/// The repository in its short form.
pub(super) fn repository(repo: &Repository, owner: &Owner, base: &str) -> Value {
    let full_name = repo.full_name();
    let url = format!("{base}/repos/{full_name}");
    let html = format!("https://github.com/{full_name}");
    let mut json = json!({
        "id": repo.id,
        "node_id": node_id("R", repo.id),
        "name": repo.name,
        "full_name": full_name,
        "private": !repo.public,
        "owner": account(owner, base),
        "html_url": html,
        "description": "An example repository",
        "fork": false,
        "url": url,
    });
    const LINKS: [(&str, &str); 38] = [
        ("forks_url", "/forks"),
        ("keys_url", "/keys{/key_id}"),
        ("collaborators_url", "/collaborators{/collaborator}"),
        ("teams_url", "/teams"),
        ("hooks_url", "/hooks"),
        ("issue_events_url", "/issues/events{/number}"),
        ("events_url", "/events"),
        ("assignees_url", "/assignees{/user}"),
        ("branches_url", "/branches{/branch}"),
        ("tags_url", "/tags"),
        ("blobs_url", "/git/blobs{/sha}"),
        ("git_tags_url", "/git/tags{/sha}"),
        ("git_refs_url", "/git/refs{/sha}"),
        ("trees_url", "/git/trees{/sha}"),
        ("statuses_url", "/statuses/{sha}"),
        ("languages_url", "/languages"),
        ("stargazers_url", "/stargazers"),
        ("contributors_url", "/contributors"),
        ("subscribers_url", "/subscribers"),
        ("subscription_url", "/subscription"),
        ("commits_url", "/commits{/sha}"),
        ("git_commits_url", "/git/commits{/sha}"),
        ("comments_url", "/comments{/number}"),
        ("issue_comment_url", "/issues/comments{/number}"),
        ("contents_url", "/contents/{+path}"),
        ("compare_url", "/compare/{base}...{head}"),
        ("merges_url", "/merges"),
        ("archive_url", "/{archive_format}{/ref}"),
        ("downloads_url", "/downloads"),
        ("issues_url", "/issues{/number}"),
        ("pulls_url", "/pulls{/number}"),
        ("milestones_url", "/milestones{/number}"),
        ("notifications_url", "/notifications{?since,all,participating}"),
        ("labels_url", "/labels{/name}"),
        ("releases_url", "/releases{/id}"),
        ("deployments_url", "/deployments"),
        ("git_url", ".git"),
        ("clone_url", ".git"),
    ];
    for (field, end) in LINKS {
        json[field] = match field {
            "git_url" => json!(format!("git://github.com/{full_name}{end}")),
            "clone_url" => json!(format!("{html}{end}")),
            _ => json!(format!("{url}{end}")),
        };
    }
    json
}

/// The repository in its full form, as in webhooks and at its own endpoint.
pub(super) fn full_repository(repo: &Repository, owner: &Owner, base: &str) -> Value {
    let full_name = repo.full_name();
    let mut json = repository(repo, owner, base);
    let further = json!({
        "created_at": seconds(repo.created),
        "updated_at": seconds(repo.created),
        "pushed_at": seconds(repo.created),
        "ssh_url": format!("git@github.com:{full_name}.git"),
        "svn_url": format!("https://github.com/{full_name}"),
        "homepage": null,
        "size": 1024,
        "stargazers_count": 0,
        "watchers_count": 0,
        "language": "Rust",
        "has_issues": true,
        "has_projects": true,
        "has_downloads": true,
        "has_wiki": false,
        "has_pages": false,
        "has_discussions": false,
        "forks_count": 0,
        "mirror_url": null,
        "archived": false,
        "disabled": false,
        "open_issues_count": 0,
        "license": null,
        "allow_forking": false,
        "is_template": false,
        "web_commit_signoff_required": false,
        "topics": [],
        "visibility": if repo.public { "public" } else { "private" },
        "forks": 0,
        "open_issues": 0,
        "watchers": 0,
        "default_branch": "main",
        "custom_properties": {},
    });
    if let (Value::Object(json), Value::Object(further)) = (&mut json, further) {
        json.extend(further);
    }
    json
}

pub(super) fn runner(id: u64, runner: &RunnerState, busy: bool) -> Value {
    let read_only = |label: &str| {
        ["self-hosted", "linux", "x64"].iter().any(|known| known.eq_ignore_ascii_case(label))
    };
    let labels = runner.spec.labels.iter().enumerate().map(|(index, label)| {
        let kind = if read_only(label) { "read-only" } else { "custom" };
        json!({ "id": index + 1, "name": label, "type": kind })
    });
    json!({
        "id": id,
        "runner_group_id": 1,
        "name": runner.spec.name,
        "os": "Linux",
        "status": if runner.online && !runner.stuck { "online" } else { "offline" },
        "busy": busy,
        "ephemeral": false,
        "version": "2.330.0",
        "labels": labels.collect::<Vec<_>>(),
    })
}

/// A job as in the REST API.
pub(super) fn job(job: &Job, run: &Run, repo: &Repository, base: &str) -> Value {
    let (id, url) = (job.id.0, format!("{base}/repos/{}", repo.full_name()));
    let html = format!("https://github.com/{}", repo.full_name());
    let runner = job.runner.as_ref();
    json!({
        "id": id,
        "run_id": run.id,
        "workflow_name": "Build",
        "head_branch": "main",
        "run_url": format!("{url}/actions/runs/{}", run.id),
        "run_attempt": 1,
        "node_id": node_id("CR", id),
        "head_sha": sha(run.id),
        "url": format!("{url}/actions/jobs/{id}"),
        "html_url": format!("{html}/actions/runs/{}/job/{id}", run.id),
        "status": job.status.as_str(),
        "conclusion": job.conclusion,
        "created_at": seconds(job.queued_at),
        // For a job that has not started, the time at which it was last queued.
        "started_at": seconds(job.started_at.unwrap_or(job.ready_at)),
        "completed_at": time(job.completed_at),
        "name": job.name,
        "steps": steps(job),
        "check_run_url": format!("{url}/check-runs/{id}"),
        "labels": job.labels,
        "runner_id": runner.map(|(id, _)| *id),
        "runner_name": runner.map(|(_, name)| name.clone()),
        "runner_group_id": runner.map(|_| 1),
        "runner_group_name": runner.map(|_| "Default"),
    })
}

fn steps(job: &Job) -> Vec<Value> {
    let Some(started) = job.started_at else { return Vec::new() };
    let done = job.status == JobStatus::Completed;
    let step = |number: u32, name: &str, completed: bool| {
        json!({
            "name": name,
            "status": if completed { "completed" } else { "in_progress" },
            "conclusion": if completed { json!("success") } else { Value::Null },
            "number": number,
            "started_at": seconds(started),
            "completed_at": time(completed.then(|| job.completed_at.unwrap_or(started))),
        })
    };
    let first = step(1, "Set up job", done);
    if !done {
        return vec![first];
    }
    vec![first, step(2, "Run make", true), step(3, "Complete job", true)]
}

/// A run as in the REST API; `status` is the combined one of its jobs.
pub(super) fn run(
    run: &Run,
    (status, conclusion): (JobStatus, Option<&str>),
    (repo, owner): (&Repository, &Owner),
    base: &str,
) -> Value {
    let url = format!("{base}/repos/{}", repo.full_name());
    let this = format!("{url}/actions/runs/{}", run.id);
    let workflow = 161_000_000 + repo.id % 1_000_000;
    json!({
        "id": run.id,
        "name": "Build",
        "node_id": node_id("WFR", run.id),
        "head_branch": "main",
        "head_sha": sha(run.id),
        "path": ".github/workflows/build.yml",
        "display_title": "Make it so",
        "run_number": run.number,
        "event": "push",
        "status": status.as_str(),
        "conclusion": conclusion,
        "workflow_id": workflow,
        "check_suite_id": run.id + 1_000_000,
        "check_suite_node_id": node_id("CS", run.id + 1_000_000),
        "url": this,
        "html_url": format!("https://github.com/{}/actions/runs/{}", repo.full_name(), run.id),
        "pull_requests": [],
        "created_at": seconds(run.created),
        "updated_at": seconds(run.updated),
        "actor": sender(base),
        "run_attempt": 1,
        "referenced_workflows": [],
        "run_started_at": seconds(run.created),
        "triggering_actor": sender(base),
        "jobs_url": format!("{this}/jobs"),
        "logs_url": format!("{this}/logs"),
        "check_suite_url": format!("{url}/check-suites/{}", run.id + 1_000_000),
        "artifacts_url": format!("{this}/artifacts"),
        "cancel_url": format!("{this}/cancel"),
        "rerun_url": format!("{this}/rerun"),
        "previous_attempt_url": null,
        "workflow_url": format!("{url}/actions/workflows/{workflow}"),
        "head_commit": {
            "id": sha(run.id),
            "tree_id": sha(run.id + 1),
            "message": "Make it so",
            "timestamp": seconds(run.created),
            "author": { "name": "Mona", "email": "mona@example.com" },
            "committer": { "name": "Mona", "email": "mona@example.com" },
        },
        "repository": repository(repo, owner, base),
        "head_repository": repository(repo, owner, base),
    })
}

/// The payload of a `workflow_job` delivery.
pub(super) fn workflow_job(
    action: &str,
    job: &Job,
    run: &Run,
    (repo, owner): (&Repository, &Owner),
    installation_id: u64,
) -> Value {
    let mut payload = json!({
        "action": action,
        "workflow_job": self::job(job, run, repo, PUBLIC),
        "repository": full_repository(repo, owner, PUBLIC),
        "sender": sender(PUBLIC),
        "installation": {
            "id": installation_id,
            "node_id": node_id("MDIzOkludGVncmF0aW9u", installation_id),
        },
    });
    if owner.organization {
        payload["organization"] = organization(owner, PUBLIC);
    }
    payload
}
