//! Checks of the App's webhook: its URL, its secret, its events and its last deliveries.

use std::collections::BTreeMap;

use super::finding::{Finding, Findings};
use crate::clients::Error;
use crate::clients::github::GitHub;
use crate::clients::github::app::{Deliveries, Delivery, DeliveryFilter, HookConfig};
use crate::clock::Deadline;
use crate::routes::WORKFLOW_JOB;
use crate::webhook_url::{PATH, leads_here};

pub(super) struct Facts {
    hook: Result<HookConfig, Error>,
    deliveries: Result<Deliveries, Error>,
}

pub(super) async fn read(github: &GitHub, deadline: Deadline) -> Facts {
    let (hook, deliveries) = tokio::join!(
        github.hook_config(deadline),
        github.deliveries(DeliveryFilter::All, None, deadline)
    );
    Facts { hook, deliveries }
}

/// Judges the webhook of an App that subscribes to these `events`.
pub(super) fn judge(facts: &Facts, events: &[String], service_url: &str) -> Vec<Finding> {
    let mut found = Findings::of("App's webhook");
    let hook = match &facts.hook {
        Ok(hook) => hook,
        Err(error) if error.is_not_found() => &HookConfig::default(),
        Err(error) => {
            found.failed("URL", error, "check the App's key");
            return found.done();
        }
    };
    if !points_here(&mut found, hook, service_url) {
        return found.done();
    }
    if hook.secret.as_deref().is_none_or(str::is_empty) {
        let fix = "set its secret to RUNNER_MANAGER_SECRET on the App's page";
        found.fail("secret", "none is set, so the service refuses every delivery", fix);
    }
    if events.iter().any(|event| event == WORKFLOW_JOB) {
        found.ok("events", format!("the App subscribes to {WORKFLOW_JOB}"));
    } else {
        let fix = "subscribe to the event Workflow job on the App's page";
        found.fail("events", format!("the App does not subscribe to {WORKFLOW_JOB}"), fix);
    }
    match &facts.deliveries {
        Ok(deliveries) => judge_deliveries(&mut found, &deliveries.items),
        Err(error) => found.failed("deliveries", error, "check the App's key"),
    }
    found.done()
}

/// Checks the URL; without the right one the other checks make no sense.
fn points_here(found: &mut Findings, hook: &HookConfig, service_url: &str) -> bool {
    let expected = format!("{service_url}{PATH}");
    match hook.url.as_deref().filter(|url| !url.is_empty()) {
        None => found.warn(
            "URL",
            "the App has none: each repository, or the organization, needs its own webhook",
            format!("or set it to {expected} on the App's page"),
        ),
        Some(url) if !leads_here(url, service_url) => found.fail(
            "URL",
            format!("it points to {}", without_query(url)),
            format!(
                "set it to {expected} on the App's page; or, if the repositories or the organization have their \
                 own webhooks, remove it"
            ),
        ),
        Some(_) => {
            found.ok("URL", without_query(hook.url.as_deref().unwrap_or_default()));
            return true;
        }
    }
    false
}

fn judge_deliveries(found: &mut Findings, deliveries: &[Delivery]) {
    let of_jobs: Vec<&Delivery> = deliveries.iter().filter(|it| it.event == WORKFLOW_JOB).collect();
    let Some(last) = of_jobs.first() else {
        return found.warn(
            "deliveries",
            format!("none of {WORKFLOW_JOB} in the last three days"),
            "run a job to see one",
        );
    };
    if !last.was_accepted() {
        let Delivery { status, status_code, delivered_at, .. } = last;
        let detail =
            format!("the last one, at {}, failed: {status_code} {status}", delivered_at.rfc3339());
        return found.fail("deliveries", detail, fix_for(*status_code));
    }
    let mut accepted = BTreeMap::<&str, bool>::new();
    for delivery in &of_jobs {
        *accepted.entry(&delivery.guid).or_default() |= delivery.was_accepted();
    }
    let lost = accepted.values().filter(|accepted| !**accepted).count();
    if lost > 0 {
        found.warn(
            "deliveries",
            format!("{lost} of the last {} were never accepted", accepted.len()),
            "read their responses under Advanced on the App's page, and redeliver them",
        );
    } else {
        let at = last.delivered_at.rfc3339();
        let count = accepted.len();
        found.ok(
            "deliveries",
            format!("the newest arrived at {at}; none of the last {count} was lost"),
        );
    }
}

fn fix_for(code: u16) -> &'static str {
    match code {
        401 => {
            "set the webhook's secret to RUNNER_MANAGER_SECRET, or to GITHUB_WEBHOOK_SECRET if that is set"
        }
        403 => {
            "allow GitHub's requests: deploy with --allow-unauthenticated, or --no-invoker-iam-check"
        }
        404 => "no service, or a different one, answers at this URL: correct the webhook's URL",
        _ => {
            "read the header X-Runner-Manager-Outcome under Advanced on the App's page, or the log"
        }
    }
}

/// The URL without its user and query: those of another service may contain a secret.
fn without_query(url: &str) -> &str {
    let end = url.find(['?', '#']).unwrap_or(url.len());
    &url[url[..end].rfind('@').map_or(0, |at| at + 1)..end]
}

#[cfg(test)]
mod tests {
    use super::super::finding::testing::{answered, complains, limited, unanswered};
    use super::*;
    use crate::clock::Timestamp;

    const HERE: &str = "https://service.test";

    fn hook(url: &str) -> HookConfig {
        HookConfig {
            url: Some(url.into()),
            content_type: Some("json".into()),
            secret: Some("********".into()),
        }
    }

    fn delivery(guid: &str, code: u16) -> Delivery {
        Delivery {
            id: 1,
            guid: guid.into(),
            event: "workflow_job".into(),
            action: Some("queued".into()),
            status: "OK".into(),
            status_code: code,
            delivered_at: Timestamp::from_unix_seconds(1_764_000_000),
            redelivery: false,
        }
    }

    fn good() -> Facts {
        let items = vec![delivery("b", 200), delivery("a", 200)];
        Facts {
            hook: Ok(hook("https://service.test/github/webhook")),
            deliveries: Ok(Deliveries { items, next: None }),
        }
    }

    #[track_caller]
    fn judged(facts: &Facts, expected: &[&str]) {
        complains(&judge(facts, &["workflow_job".into()], HERE), expected);
    }

    #[test]
    fn the_webhook_needs_the_services_url_and_a_secret() {
        judged(&good(), &[]);
        let at = |url: &str| Facts { hook: Ok(hook(url)), ..good() };
        judged(&at("HTTPS://Service.TEST/github/webhook/"), &[]);
        for elsewhere in [
            "https://service.test/webhook",
            "http://service.test/github/webhook",
            "https://service.test:8443/github/webhook",
            "not a URL",
        ] {
            judged(&at(elsewhere), &["✗ URL: it points to "]);
        }
        let secret = "https://bot:hush@other.test/hook?key=hush#hush";
        let found = judge(&at(secret), &["workflow_job".into()], HERE);
        complains(&found, &["✗ URL: it points to other.test/hook\n"]);
        assert!(!format!("{found:?}").contains("hush"), "the secret of another service");
        judged(&at(""), &["! URL: the App has none"]);
        judged(&Facts { hook: Err(answered(404)), ..good() }, &["! URL: the App has none"]);
        judged(&Facts { hook: Err(limited()), ..good() }, &["? URL: could not be checked"]);
        let unsigned = HookConfig { secret: None, ..hook("https://service.test/github/webhook") };
        judged(&Facts { hook: Ok(unsigned), ..good() }, &["✗ secret: none is set"]);
        complains(&judge(&good(), &["push".into()], HERE), &["✗ events: the App does not"]);
    }

    #[test]
    fn the_last_deliveries_count() {
        let with = |items: Vec<Delivery>| Facts {
            deliveries: Ok(Deliveries { items, next: None }),
            ..good()
        };
        judged(&with(vec![]), &["! deliveries: none of workflow_job"]);
        let ping = Delivery { event: "ping".into(), ..delivery("a", 200) };
        judged(&with(vec![ping.clone()]), &["! deliveries: none of workflow_job"]);
        let refused = "✗ deliveries: the last one, at 2025-11-24T16:00:00Z, failed: 401 OK\n    -> set the webhook's";
        judged(&with(vec![ping, delivery("b", 401), delivery("a", 200)]), &[refused]);
        judged(&with(vec![delivery("b", 502)]), &["✗ deliveries: the last one, at 2025"]);
        let lost = vec![delivery("c", 200), delivery("b", 502), delivery("a", 200)];
        judged(&with(lost), &["! deliveries: 1 of the last 3 were never accepted"]);
        let again = vec![delivery("a", 200), delivery("b", 200), delivery("a", 502)];
        judged(&with(again), &[]);
        judged(&Facts { deliveries: Err(unanswered()), ..good() }, &["? deliveries: could not"]);
    }
}
