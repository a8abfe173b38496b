use aws_lc_rs::hmac;
use http::StatusCode;
use serde_json::{Value, json};

use super::deliveries::hex;
use super::*;
use crate::emulators::compute::{Instance, Status};
use crate::emulators::testing::World;

const MINUTE: Duration = Duration::from_secs(60);

async fn world() -> World {
    let world = World::new().await;
    let github = &world.cloud.github;
    github.add_repository("acme/app");
    let running = Instance { status: Status::Running, ..Instance::new("gpu-1", "us-central1-a") };
    world.cloud.compute.insert(running);
    let labels = ["self-hosted", "Linux", "gpu"];
    github.add_runner(Runner::new("gpu-1", Scope::Repository("acme/app".into()), labels));
    github.add_runner(Runner::new("gpu-1", Scope::Organization("acme".into()), labels));
    let url = "http://service.test/github/webhook".to_owned();
    github.webhook(Hook { url, secret: "It's a Secret".to_owned(), form: false });
    world
}

#[tokio::test(start_paused = true)]
async fn a_job_runs_on_a_runner_with_its_labels_and_sends_webhooks() {
    let mut world = world().await;
    let job = world.cloud.github.queue_job("acme/app", ["SELF-HOSTED", "gpu"], MINUTE);
    let other = world.cloud.github.queue_job("acme/app", ["self-hosted", "tpu"], MINUTE);
    world.pass(20).await;
    let (_, _, shown) = world.github(&format!("/repos/ACME/app/actions/jobs/{job}")).await;
    assert_eq!((&shown["status"], &shown["runner_name"]), (&json!("in_progress"), &json!("gpu-1")));
    world.pass(60).await;
    let view = world.cloud.github.job(job);
    assert_eq!((view.status, view.conclusion), (JobStatus::Completed, Some("success")));
    assert_eq!(world.cloud.github.job(other).status, JobStatus::Queued);
    let deliveries = world.received();
    let actions: Vec<String> = deliveries
        .iter()
        .map(|delivery| serde_json::from_slice::<Value>(delivery.body()).unwrap())
        .map(|payload| payload["action"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(actions, ["queued", "queued", "in_progress", "completed"]);
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"It's a Secret");
    let expected = hex(hmac::sign(&key, deliveries[0].body()).as_ref());
    assert_eq!(deliveries[0].headers()["x-hub-signature-256"], format!("sha256={expected}"));
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_runner_went_away_is_queued_again_without_a_webhook() {
    let mut world = world().await;
    let job = world.cloud.github.queue_job("acme/app", ["gpu"], 10 * MINUTE);
    world.pass(30).await;
    world.cloud.compute.preempt("gpu-1");
    world.pass(30).await;
    assert_eq!(world.cloud.github.job(job).status, JobStatus::InProgress);
    let (_, _, runners) = world.github("/repos/acme/app/actions/runners?name=gpu-1").await;
    assert_eq!(runners["runners"][0]["status"], "offline");
    world.pass(31).await;
    assert_eq!(world.cloud.github.job(job).status, JobStatus::Queued);
    assert_eq!(world.received().len(), 2);
    world.cloud.compute.start_by_hand("gpu-1");
    world.pass(40).await;
    assert_eq!(world.cloud.github.job(job).status, JobStatus::InProgress);
}

#[tokio::test(start_paused = true)]
async fn a_runner_disconnects_when_its_instance_goes_down() {
    let mut world = world().await;
    let job = world.cloud.github.queue_job("acme/app", ["gpu"], 10 * MINUTE);
    world.pass(30).await;
    world.cloud.compute.preempt("gpu-1");
    tokio::time::advance(MINUTE).await;
    assert_eq!(world.cloud.github.job(job).status, JobStatus::Queued);
}

#[tokio::test(start_paused = true)]
async fn busy_may_lag_and_a_repository_omits_the_organizations_runners() {
    let mut world = world().await;
    world.cloud.github.busy_lag(MINUTE);
    let job = world.cloud.github.queue_job("acme/app", ["gpu"], 10 * MINUTE);
    let busy = |runners: &Value| runners["runners"][0]["busy"].clone();
    world.pass(30).await;
    assert_eq!(world.cloud.github.job(job).status, JobStatus::InProgress);
    let (_, _, runners) = world.github("/repos/acme/app/actions/runners").await;
    assert_eq!((&runners["total_count"], busy(&runners)), (&json!(1), json!(false)));
    world.pass(60).await;
    let (_, _, runners) = world.github("/repos/acme/app/actions/runners").await;
    assert_eq!(busy(&runners), true);
    world.cloud.github.busy_glitch("gpu-1", true);
    let (_, _, runners) = world.github("/repos/acme/app/actions/runners").await;
    assert_eq!(busy(&runners), false);
    let (_, _, runners) = world.github("/orgs/acme/actions/runners").await;
    assert_eq!((&runners["total_count"], busy(&runners)), (&json!(1), json!(false)));
}

#[tokio::test(start_paused = true)]
async fn a_run_shows_the_status_of_its_least_advanced_job() {
    let mut world = world().await;
    let gpu = || (vec!["gpu".to_owned()], MINUTE);
    let jobs = world.cloud.github.queue_run("acme/app", vec![gpu(), gpu(), gpu()]);
    let waiting = world.cloud.github.queue_waiting_job("acme/app", ["gpu"], MINUTE);
    world.pass(30).await;
    let statuses: Vec<_> = jobs.iter().map(|job| world.cloud.github.job(*job).status).collect();
    assert_eq!(statuses, [JobStatus::InProgress, JobStatus::InProgress, JobStatus::Queued]);
    let (_, _, list) = world.github("/repos/acme/app/actions/runs?status=queued").await;
    assert_eq!(list["total_count"], 1);
    let run = &list["workflow_runs"][0]["id"];
    let path = format!("/repos/acme/app/actions/runs/{run}/jobs?filter=latest&per_page=2");
    let (_, headers, page) = world.github(&path).await;
    assert_eq!((&page["total_count"], page["jobs"].as_array().unwrap().len()), (&json!(3), 2));
    assert!(headers["link"].to_str().unwrap().contains("page=2>; rel=\"next\""));
    let (_, _, list) = world.github("/repos/acme/app/actions/runs?status=waiting").await;
    assert_eq!(list["total_count"], 1);
    world.cloud.github.approve(waiting);
    world.pass(300).await;
    assert!(world.cloud.github.jobs().iter().all(|job| job.status == JobStatus::Completed));
}

#[tokio::test(start_paused = true)]
async fn filtered_lists_of_runs_may_be_empty_while_the_unfiltered_list_is_right() {
    let mut world = world().await;
    world.cloud.github.queue_job("acme/app", ["gpu"], MINUTE);
    world.pass(90).await;
    world.cloud.github.queue_job("acme/app", ["tpu"], MINUTE);
    world.pass(10).await;
    world.cloud.github.search_index_down(true);
    let list =
        async |query: &str| world.github(&format!("/repos/acme/app/actions/runs{query}")).await;
    let (status, _, filtered) = list("?status=queued").await;
    let empty = json!({ "total_count": 0, "workflow_runs": [] });
    assert_eq!((status, filtered), (StatusCode::OK, empty));
    let (_, headers, first) = list("?per_page=1").await;
    assert_eq!(first["total_count"], 2);
    assert!(headers["link"].to_str().unwrap().contains("page=2>; rel=\"next\""));
    let (_, _, second) = list("?per_page=1&page=2").await;
    let fields = |page: &Value| {
        let run = &page["workflow_runs"][0];
        assert!(run["id"].is_u64(), "{run}");
        let names = ["status", "conclusion", "created_at", "run_started_at", "updated_at"];
        names.map(|name| run[name].clone())
    };
    let (begun, ended) = ("2026-11-24T05:00:00Z", "2026-11-24T05:01:12Z");
    let queued = "2026-11-24T05:01:30Z";
    assert_eq!(json!(fields(&first)), json!(["queued", null, queued, queued, queued]));
    assert_eq!(json!(fields(&second)), json!(["completed", "success", begun, begun, ended]));
    world.cloud.github.search_index_down(false);
    assert_eq!(list("?status=queued").await.2["total_count"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_job_may_stay_in_progress_forever_while_its_runner_takes_others() {
    let mut world = world().await;
    let github = world.cloud.github.clone();
    github.remove_runner("gpu-1");
    let labels = ["self-hosted", "gpu"];
    github.add_runner(Runner::new("gpu-1", Scope::Repository("acme/app".into()), labels));
    let left = github.queue_job("acme/app", ["gpu"], MINUTE);
    world.pass(30).await;
    let started = github.job(left).started_at;
    github.leave_running(left);
    assert_eq!(github.runners()[0].job, None);
    let next = github.queue_job("acme/app", ["gpu"], MINUTE);
    world.pass(1800).await;
    assert_eq!(github.job(next).status, JobStatus::Completed);
    let view = github.job(left);
    assert_eq!((view.status, view.stuck), (JobStatus::InProgress, true));
    assert_eq!((view.started_at, view.completed_at), (started, None));
    let (_, _, runners) = world.github("/repos/acme/app/actions/runners").await;
    assert_eq!(runners["runners"][0]["busy"], false);
    let sent = github.deliveries();
    assert!(!sent.iter().any(|one| one.job == left && one.action == "completed"));
}

#[tokio::test(start_paused = true)]
async fn a_job_can_be_stuck_since_long_ago() {
    let mut world = world().await;
    let github = world.cloud.github.clone();
    let since = Timestamp::parse("2026-09-01T12:00:00Z").unwrap();
    let named = github.stuck_job("acme/app", ["gpu"], Some("gpu-1"), since);
    let unnamed = github.stuck_job("acme/app", ["gpu"], None, since);
    let fresh = github.queue_job("acme/app", ["gpu"], MINUTE);
    world.pass(60).await;
    let path = "/repos/acme/app/actions/runs?status=in_progress";
    let (_, _, list) = world.github(path).await;
    assert_eq!(list["total_count"], 3);
    assert_eq!(list["workflow_runs"][0]["id"], github.job(fresh).run);
    assert_eq!(list["workflow_runs"][2]["created_at"], "2026-09-01T12:00:00Z");
    let show = async |job: JobId| {
        let (_, _, job) = world.github(&format!("/repos/acme/app/actions/jobs/{job}")).await;
        json!([job["status"], job["started_at"], job["completed_at"], job["runner_name"]])
    };
    let expected = |name| json!(["in_progress", "2026-09-01T12:00:00Z", null, name]);
    assert_eq!(show(named).await, expected(Some("gpu-1")));
    assert_eq!(show(unnamed).await, expected(None));
    world.pass(60).await;
    assert_eq!(github.job(fresh).status, JobStatus::Completed);
    assert_eq!(github.job(named).status, JobStatus::InProgress);
    assert!(github.deliveries().iter().all(|one| one.job == fresh));
    github.cancel_job(named);
    assert_eq!(github.job(named).conclusion, Some("cancelled"));
}

#[tokio::test(start_paused = true)]
async fn a_runner_may_show_as_offline_and_busy_regardless_of_its_state() {
    let mut world = world().await;
    world.pass(20).await;
    let show = async || {
        let (_, _, list) = world.github("/repos/acme/app/actions/runners?name=gpu-1").await;
        json!([list["runners"][0]["status"], list["runners"][0]["busy"]])
    };
    assert_eq!(show().await, json!(["online", false]));
    world.cloud.github.stuck_busy("gpu-1", true);
    assert_eq!(show().await, json!(["offline", true]));
    assert!(world.cloud.github.runners().iter().all(|runner| runner.online));
    world.cloud.github.busy_glitch("gpu-1", true);
    world.cloud.compute.preempt("gpu-1");
    assert_eq!(show().await, json!(["offline", true]));
    world.cloud.github.stuck_busy("gpu-1", false);
    assert_eq!(show().await, json!(["offline", false]));
}

#[tokio::test(start_paused = true)]
async fn a_job_shows_when_it_was_created_queued_last_started_and_completed() {
    let world = world().await;
    let github = world.cloud.github.clone();
    let job = github.queue_waiting_job("acme/app", ["gpu"], MINUTE);
    let times = async || {
        let (_, _, job) = world.github(&format!("/repos/acme/app/actions/jobs/{job}")).await;
        let time = |name: &str| job[name].as_str().map(|time| time[11..19].to_owned());
        json!(["created_at", "started_at", "completed_at"].map(time))
    };
    assert_eq!(times().await, json!(["05:00:00", "05:00:00", null]));
    tokio::time::advance(10 * MINUTE).await;
    github.approve(job);
    assert_eq!(times().await, json!(["05:00:00", "05:10:00", null]));
    tokio::time::advance(MINUTE).await;
    assert_eq!(times().await, json!(["05:00:00", "05:10:02", null]), "running");
    world.cloud.compute.preempt("gpu-1");
    tokio::time::advance(2 * MINUTE).await;
    assert_eq!(times().await, json!(["05:00:00", "05:12:00", null]), "queued again");
    github.cancel_job(job);
    assert_eq!(times().await, json!(["05:00:00", "05:12:00", "05:13:00"]));
}

#[tokio::test(start_paused = true)]
async fn a_runner_that_does_not_show_as_busy_can_be_deleted_and_its_job_continues() {
    let mut world = world().await;
    let github = world.cloud.github.clone();
    let delete = async |path: &str| {
        let (status, _, answer) = world.by_installation("DELETE", path).await;
        (status.as_u16(), answer["message"].as_str().unwrap_or_default().to_owned())
    };
    let (of_repo, of_org) = (github.runners()[0].id, github.runners()[1].id);
    let repo = format!("/repos/acme/app/actions/runners/{of_repo}");
    let org = format!("/orgs/acme/actions/runners/{of_org}");
    let no_permission = (403, "Resource not accessible by integration".to_owned());
    assert_eq!(delete(&repo).await, no_permission);
    github.permit(Permission::Registration);
    let unknown = (404, "Not Found".to_owned());
    assert_eq!(delete("/repos/acme/app/actions/runners/1").await, unknown);
    assert_eq!(delete(&repo.replace(&of_repo.to_string(), &of_org.to_string())).await, unknown);
    assert_eq!(delete(&org).await, (204, String::new()));
    assert_eq!(github.runners().len(), 1);

    let job = github.queue_job("acme/app", ["gpu"], 10 * MINUTE);
    tokio::time::advance(MINUTE).await;
    let busy = (422, "Bad request - Runner \"gpu-1\" is still running a job".to_owned());
    assert_eq!(delete(&repo).await, busy);
    github.busy_glitch("gpu-1", true);
    assert_eq!(delete(&repo).await, (204, String::new()));
    assert_eq!(delete(&repo).await, unknown);
    let (_, _, list) = world.github("/repos/acme/app/actions/runners").await;
    assert_eq!(list["total_count"], 0);
    assert_eq!(github.job(job).status, JobStatus::InProgress);
    let next = github.queue_job("acme/app", ["gpu"], MINUTE);
    world.pass(1200).await;
    assert_eq!(github.job(job).conclusion, Some("success"));
    assert_eq!(github.job(next).status, JobStatus::Queued);
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_runner_was_deleted_is_queued_again_when_the_vm_goes_down() {
    let mut world = world().await;
    let github = world.cloud.github.clone();
    let id = github.runners()[0].id;
    world.pass(20).await;
    let job = github.queue_job("acme/app", ["gpu"], 10 * MINUTE);
    github.permit(Permission::Registration);
    let path = format!("/repos/acme/app/actions/runners/{id}");
    let (status, ..) = world.by_installation("DELETE", &path).await;
    assert_eq!(status, StatusCode::NO_CONTENT, "the job is assigned and not begun");
    world.pass(5).await;
    assert_eq!(github.job(job).status, JobStatus::InProgress);
    world.cloud.compute.preempt("gpu-1");
    world.pass(10).await;
    world.cloud.github.remove_runner("gpu-1");
    world.pass(60).await;
    assert_eq!((github.job(job).status, github.job(job).lost), (JobStatus::Queued, 1));
    world.cloud.compute.start_by_hand("gpu-1");
    world.pass(60).await;
    assert_eq!(github.job(job).status, JobStatus::Queued);
    assert!(!github.has_runner_on("gpu-1"));
}

#[tokio::test(start_paused = true)]
async fn an_app_is_authenticated_by_its_key_for_a_short_time() {
    let world = World::new().await;
    let now = world.clock.now().unix_seconds();
    for (claims, status) in [
        (json!({}), 200),
        (json!({ "iss": 4242 }), 200),
        (json!({ "iss": "4243" }), 404),
        (json!({ "exp": now }), 401),
        (json!({ "exp": now + 601 }), 401),
        (json!({ "iat": now + 5 }), 401),
    ] {
        let (answered, _) = world.app("GET", "/app", &world.jwt(claims.clone())).await;
        assert_eq!(answered.as_u16(), status, "{claims}");
    }
    let (status, answer) = world.app("GET", "/rate_limit", &world.jwt(json!({}))).await;
    assert_eq!((status, &answer["message"]), (StatusCode::UNAUTHORIZED, &json!("Bad credentials")));
    tokio::time::advance(60 * MINUTE).await;
    assert_eq!(world.github("/rate_limit").await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test(start_paused = true)]
async fn a_new_installation_token_is_refused_until_it_is_known() {
    let world = world().await;
    let path = "/repos/acme/app/actions/runners";
    assert_eq!(world.github(path).await.0, StatusCode::OK);
    let span = Duration::from_secs(5);
    for (refusal, code, message) in [
        (TokenRefusal::Unauthorized, 401, "Bad credentials"),
        (TokenRefusal::Forbidden, 403, "Resource not accessible by integration"),
    ] {
        world.cloud.github.new_tokens_refused_for(span, refusal);
        let issue = "/app/installations/7/access_tokens";
        let (_, token) = world.app("POST", issue, &world.jwt(json!({}))).await;
        let credential = format!("token {}", token["token"].as_str().unwrap());
        let ask = async || world.send("GET", path, &credential, Value::Null).await;
        tokio::time::advance(span - Duration::from_millis(1)).await;
        let (status, _, answer) = ask().await;
        assert_eq!((status.as_u16(), &answer["message"]), (code, &json!(message)));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(ask().await.0, StatusCode::OK);
    }
}

#[tokio::test(start_paused = true)]
async fn a_renamed_repository_redirects_to_its_id() {
    let world = world().await;
    world.cloud.github.rename_repository("acme/app", "acme/better");
    let (status, headers, _) = world.github("/repos/acme/app/actions/runners?name=gpu-1").await;
    assert_eq!(status, StatusCode::MOVED_PERMANENTLY);
    let location = headers["location"].to_str().unwrap();
    let path = location.strip_prefix("http://cloud.test").unwrap();
    assert!(path.ends_with("/actions/runners?name=gpu-1"), "{path}");
    let (status, _, runners) = world.github(path).await;
    assert_eq!((status, &runners["total_count"]), (StatusCode::OK, &json!(1)));
    assert_eq!(world.github("/repos/acme/better").await.2["full_name"], "acme/better");
}

#[tokio::test(start_paused = true)]
async fn a_missing_permission_a_limit_and_an_outage_differ() {
    let world = world().await;
    let github = &world.cloud.github;
    let path = "/repos/acme/app/actions/runners";
    github.forbid(Permission::Administration);
    let (status, headers, answer) = world.github(path).await;
    assert_eq!((status.as_u16(), headers["x-ratelimit-remaining"] != "0"), (403, true));
    assert_eq!(answer["message"], "Resource not accessible by integration");
    assert_eq!(world.github("/repos/acme/app/actions/runs").await.0, StatusCode::OK);
    github.rate_limited(true);
    let (status, headers, _) = world.github(path).await;
    assert_eq!((status.as_u16(), headers["x-ratelimit-remaining"] == "0"), (403, true));
    github.outage(true);
    assert_eq!(world.github(path).await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(world.github("/orgs/unknown/actions/runners").await.0.as_u16(), 503);
    github.outage(false);
    github.rate_limited(false);
    assert_eq!(world.github("/orgs/unknown/actions/runners").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test(start_paused = true)]
async fn the_app_lists_each_attempt_at_a_delivery_and_can_redeliver() {
    let mut world = world().await;
    let github = world.cloud.github.clone();
    github.lose_next_webhook(1);
    github.queue_job("acme/app", ["tpu"], MINUTE);
    world.pass(5).await;
    world.answer(&[500]);
    github.queue_job("acme/app", ["tpu"], MINUTE);
    world.pass(5).await;
    github.queue_job("acme/app", ["tpu"], MINUTE);
    world.pass(5).await;
    let jwt = world.jwt(json!({}));
    let list = async |query: &str| {
        let path = format!("/app/hook/deliveries{query}");
        world.send("GET", &path, &format!("Bearer {jwt}"), Value::Null).await
    };
    let codes = |page: &Value| -> Vec<u64> {
        page.as_array().unwrap().iter().filter_map(|one| one["status_code"].as_u64()).collect()
    };
    let (_, headers, page) = list("?per_page=2").await;
    assert_eq!(codes(&page), [200, 500]);
    let link = headers["link"].to_str().unwrap();
    let next = link.strip_prefix("<http://cloud.test/app/hook/deliveries").unwrap();
    let (_, headers, page) = list(next.split_once('>').unwrap().0).await;
    assert_eq!((codes(&page), headers.get("link")), (vec![502], None));
    let lost = page[0].clone();
    assert_eq!((&lost["event"], &lost["action"]), (&json!("workflow_job"), &json!("queued")));
    assert_eq!(codes(&list("?status=failure").await.2), [500, 502]);
    assert_eq!(codes(&list("?status=success").await.2), [200]);
    assert_eq!(list("?status=lost").await.0, StatusCode::UNPROCESSABLE_ENTITY);

    let again = format!("/app/hook/deliveries/{}/attempts", lost["id"]);
    assert_eq!(world.app("POST", &again, &jwt).await.0, StatusCode::ACCEPTED);
    let unknown = world.app("POST", "/app/hook/deliveries/1/attempts", &jwt).await;
    assert_eq!(unknown.0, StatusCode::NOT_FOUND);
    world.pass(5).await;
    let jwt = world.jwt(json!({}));
    let (_, newest) = world.app("GET", "/app/hook/deliveries?per_page=1", &jwt).await;
    assert_eq!((&newest[0]["guid"], &newest[0]["redelivery"]), (&lost["guid"], &json!(true)));
    assert!(newest[0]["id"].as_u64() > lost["id"].as_u64(), "{newest}");
    let received = world.received();
    assert_eq!(received.len(), 3);
    assert_eq!(received[2].headers()["x-github-delivery"], lost["guid"].as_str().unwrap());
    tokio::time::advance(4 * 24 * 60 * MINUTE).await;
    let (_, page) = world.app("GET", "/app/hook/deliveries", &world.jwt(json!({}))).await;
    assert_eq!(page, json!([]), "kept for three days");
}

#[tokio::test(start_paused = true)]
async fn the_app_reads_its_webhook_and_the_installation_of_a_repository() {
    let world = world().await;
    let ask = async |path: &str| world.app("GET", path, &world.jwt(json!({}))).await;
    let (_, hook) = ask("/app/hook/config").await;
    assert_eq!(hook["url"], "http://service.test/github/webhook");
    assert_eq!(hook["secret"], "********");
    let (_, installation) = ask("/repos/acme/app/installation").await;
    assert_eq!(
        (&installation["id"], &installation["events"][0]),
        (&json!(7), &json!("workflow_job"))
    );
    world.cloud.github.install("acme/app", Installed::Elsewhere(8));
    assert_eq!(ask("/repos/acme/app/installation").await.1["id"], 8);
    assert_eq!(world.github("/repos/acme/app").await.0, StatusCode::NOT_FOUND);
    world.cloud.github.install("acme/app", Installed::Nowhere);
    assert_eq!(ask("/repos/acme/app/installation").await.0, StatusCode::NOT_FOUND);
    assert_eq!(world.github("/repos/acme/app/actions/runners").await.0, StatusCode::NOT_FOUND);
    world.cloud.github.set_public("acme/app", true);
    assert_eq!(world.github("/repos/acme/app").await.2["visibility"], "public");
    world.cloud.github.suspend(true);
    let tokens = "/app/installations/7/access_tokens";
    assert_eq!(world.app("POST", tokens, &world.jwt(json!({}))).await.0, StatusCode::FORBIDDEN);
    assert_eq!(world.github("/rate_limit").await.0, StatusCode::FORBIDDEN);
}

#[tokio::test(start_paused = true)]
async fn a_lost_delivery_can_be_sent_again_and_form_encoding_is_signed_as_sent() {
    let mut world = world().await;
    let url = "http://service.test/github/webhook".to_owned();
    world.cloud.github.webhook(Hook { url, secret: "s".to_owned(), form: true });
    world.cloud.github.lose_next_webhook(1);
    let job = world.cloud.github.queue_job("acme/app", ["tpu"], MINUTE);
    world.pass(5).await;
    assert_eq!(world.received().len(), 0);
    world.cloud.github.redeliver(&world.cloud.github.deliveries()[0].guid);
    world.pass(5).await;
    let delivery = &world.received()[0];
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"s");
    let expected = format!("sha256={}", hex(hmac::sign(&key, delivery.body()).as_ref()));
    assert_eq!(delivery.headers()["x-hub-signature-256"], expected);
    let payload = form_urlencoded::parse(delivery.body()).next().unwrap().1;
    let payload: Value = serde_json::from_str(&payload).unwrap();
    assert_eq!(payload["workflow_job"]["id"], job.0);
}
