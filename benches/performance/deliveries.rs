//! Deliveries as long as GitHub's, most of which is URLs that the service does not read.

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http::{Method, Request};
use http_body_util::Full;
use runner_manager::clock::Clock;
use serde_json::{Map, Value, json};

pub(crate) const SECRET: &str = "not-to-be-seen-5f1c0e77";

/// The service's environment without its fleet and the URLs of the APIs.
pub(crate) const ENVIRONMENT: [(&str, &str); 8] = [
    ("GCP_PROJECT_ID", "my-project"),
    ("CLOUD_TASK_LOCATION", "asia-northeast1"),
    ("CLOUD_TASK_QUEUE_NAME", "runner-manager"),
    ("CLOUD_RUN_SERVICE_URL", "https://service.example"),
    ("RUNNER_MANAGER_SECRET", SECRET),
    ("GITHUB_APP_ID", "123456"),
    ("GITHUB_APP_INSTALLATION_ID", "12345678"),
    ("GITHUB_APP_PRIVATE_KEY", include_str!("../../tests/fixtures/app-private-key.pem")),
];

/// The repository that has VMs.
pub(crate) const REPO: &str = "acme/app";

/// A repository without VMs.
pub(crate) const UNKNOWN_REPO: &str = "acme/unknown";

const QUEUED: &str = include_str!("../../tests/fixtures/workflow_job.queued.json");
const COMPLETED: &str = include_str!("../../tests/fixtures/workflow_job.completed.json");

/// The URLs in a repository's object, `{name}_url`.
const REPOSITORY_URLS: &str = "archive assignees blobs branches collaborators comments commits compare contents contributors \
                     deployments downloads events forks git_commits git_refs git_tags git hooks issue_comment \
                     issue_events issues keys labels languages merges milestones mirror notifications pulls releases \
                     ssh stargazers statuses subscribers subscription svn tags teams trees clone homepage";

/// The URLs in an account's object, `{name}_url`.
const ACCOUNT_URLS: &str = "avatar events followers following gists hooks html issues members organizations public_members \
     received_events repos starred subscriptions";

/// The action of a delivery, which determines its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// About 7 KB.
    Queued,
    /// About 14 KB, since it lists the job's steps.
    Completed,
}

/// The body of a `workflow_job` delivery about a job of this VM.
pub(crate) fn body(action: Action, repo: &str, job: u64, vm: usize) -> String {
    let fixture = if action == Action::Queued { QUEUED } else { COMPLETED };
    let mut event: Value = serde_json::from_str(fixture).expect("the fixtures are JSON");
    // The times count: a job of days ago is asked for first, and its end is that of the VM's use.
    let now = Clock::system().now().rfc3339();
    event["workflow_job"]["created_at"] = now.as_str().into();
    if action != Action::Queued {
        event["workflow_job"]["completed_at"] = now.into();
    }
    let api = format!("https://api.github.example/repos/{repo}");
    let urls = |names: &str, root: &str| -> Map<String, Value> {
        let url = |name: &str| {
            (format!("{name}_url"), format!("{root}/{name}{{/number}}{{?since,all}}").into())
        };
        names.split_whitespace().map(url).collect()
    };
    let workflow_job = &mut event["workflow_job"];
    workflow_job["id"] = job.into();
    workflow_job["labels"] = json!(["self-hosted", pool(vm)]);
    if action == Action::Completed {
        workflow_job["runner_name"] = name(vm).into();
        let step = |number: u32| {
            json!({
                "name": format!("Run the tests of part {number} of the build"),
                "status": "completed",
                "conclusion": "success",
                "number": number,
                "started_at": "2026-11-24T09:00:00Z",
                "completed_at": "2026-11-24T09:00:09Z",
            })
        };
        workflow_job["steps"] = (1..=36).map(step).collect();
    }
    let repository = &mut event["repository"];
    repository["full_name"] = repo.into();
    if let Some(fields) = repository.as_object_mut() {
        fields.extend(urls(REPOSITORY_URLS, &api));
    }
    for account in ["sender", "organization"] {
        let of = format!("https://api.github.example/users/{account}");
        event[account] = urls(ACCOUNT_URLS, &of).into();
    }
    event.to_string()
}

/// The name of a VM, and of its runner.
pub(crate) fn name(vm: usize) -> String {
    format!("runner-{vm}")
}

/// The label that only this VM's runner has.
pub(crate) fn pool(vm: usize) -> String {
    format!("pool-{vm}")
}

/// A delivery with this signature.
pub(crate) fn delivery(body: String, signature: &str) -> Request<Full<Bytes>> {
    let headers = [
        ("X-GitHub-Event", "workflow_job"),
        ("X-GitHub-Delivery", "72d3162e-cc78-11e3-81ab-4c9367dc0958"),
        ("X-Hub-Signature-256", signature),
        ("Content-Type", "application/json"),
        ("User-Agent", "GitHub-Hookshot/0000000"),
    ];
    request(Method::POST, "/github/webhook", &headers, body)
}

/// A delivery with a valid signature.
pub(crate) fn signed(body: String) -> Request<Full<Bytes>> {
    let signature = sign(body.as_bytes());
    delivery(body, &signature)
}

pub(crate) fn request(
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Request<Full<Bytes>> {
    let mut request = Request::builder().method(method).uri(path).header("Host", "127.0.0.1");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::new(body.into())).expect("the parts of a request are valid")
}

/// GitHub's signature of a body, as the value of its header.
pub(crate) fn sign(body: &[u8]) -> String {
    let mac = Hmac::<sha2::Sha256>::new_from_slice(SECRET.as_bytes())
        .expect("HMAC takes keys of any length")
        .chain_update(body);
    let bytes = mac.finalize().into_bytes();
    format!("sha256={}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}
