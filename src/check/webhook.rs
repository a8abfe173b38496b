//! The App's webhook: does it point here, and were its last deliveries taken?

use std::collections::BTreeMap;

use http::Uri;

use super::finding::{Finding, Findings};
use crate::clients::Error;
use crate::clients::github::GitHub;
use crate::clients::github::app::{Deliveries, Delivery, DeliveryFilter, HookConfig};
use crate::clock::Deadline;
use crate::routes::{WEBHOOK, WORKFLOW_JOB};

/// What is known of the webhook.
pub(super) struct Facts {
    hook: Result<HookConfig, Error>,
    deliveries: Result<Deliveries, Error>,
}

pub(super) async fn look(github: &GitHub, deadline: Deadline) -> Facts {
    let (hook, deliveries) = tokio::join!(
        github.hook_config(deadline),
        github.deliveries(DeliveryFilter::All, None, deadline)
    );
    Facts { hook, deliveries }
}

/// `events` are those that the App subscribes to.
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
    if !points_here(&mut found, hook, &format!("{service_url}{WEBHOOK}")) {
        return found.done();
    }
    if hook.secret.as_deref().is_none_or(str::is_empty) {
        let fix = "set its secret to RUNNER_MANAGER_SECRET on the App's page";
        found.fail("secret", "none is set, so every delivery is refused", fix);
    }
    if events.iter().any(|event| event == WORKFLOW_JOB) {
        found.ok("events", format!("{WORKFLOW_JOB} is among them"));
    } else {
        let fix = "subscribe to the event Workflow job on the App's page";
        found.fail("events", format!("{WORKFLOW_JOB} is not among them"), fix);
    }
    match &facts.deliveries {
        Ok(deliveries) => judge_deliveries(&mut found, &deliveries.items),
        Err(error) => found.failed("deliveries", error, "check the App's key"),
    }
    found.done()
}

/// Whether it does; else the rest does not matter.
fn points_here(found: &mut Findings, hook: &HookConfig, expected: &str) -> bool {
    match hook.url.as_deref().filter(|url| !url.is_empty()) {
        None => found.warn(
            "URL",
            "it has none: each repository, or the organization, needs a webhook of its own",
            format!("or set it to {expected} on the App's page"),
        ),
        Some(url) if !is_same(url, expected) => found.fail(
            "URL",
            format!("it points to {}", without_query(url)),
            format!(
                "set it to {expected} on the App's page; or, if the repositories or the organization have webhooks \
                 of their own, take it away"
            ),
        ),
        Some(_) => {
            found.ok("URL", expected);
            return true;
        }
    }
    false
}

fn judge_deliveries(found: &mut Findings, deliveries: &[Delivery]) {
    let ours: Vec<&Delivery> = deliveries.iter().filter(|it| it.event == WORKFLOW_JOB).collect();
    let Some(last) = ours.first() else {
        return found.warn(
            "deliveries",
            format!("none of {WORKFLOW_JOB} in the last three days"),
            "run a job to see one",
        );
    };
    if !last.was_accepted() {
        let Delivery { status, status_code, delivered_at, .. } = last;
        let detail =
            format!("the last, of {}, failed: {status_code} {status}", delivered_at.rfc3339());
        return found.fail("deliveries", detail, mend(*status_code));
    }
    let mut accepted = BTreeMap::<&str, bool>::new();
    for delivery in &ours {
        *accepted.entry(&delivery.guid).or_default() |= delivery.was_accepted();
    }
    let lost = accepted.values().filter(|accepted| !**accepted).count();
    if lost > 0 {
        found.warn(
            "deliveries",
            format!("{lost} of the last {} were never accepted", accepted.len()),
            "see why under Advanced on the App's page, and redeliver them",
        );
    } else {
        let at = last.delivered_at.rfc3339();
        let count = accepted.len();
        found.ok(
            "deliveries",
            format!("the newest is of {at}, and of the last {count} none was lost"),
        );
    }
}

fn mend(code: u16) -> &'static str {
    match code {
        401 => "set the webhook's secret to RUNNER_MANAGER_SECRET",
        403 => "let GitHub in: deploy with --allow-unauthenticated, or --no-invoker-iam-check",
        404 => "no such service, or another at that URL: correct the webhook's URL",
        _ => {
            "the header X-Runner-Manager-Outcome, under Advanced on the App's page, or the log says why"
        }
    }
}

/// Scheme and host may be written in any case.
fn is_same(url: &str, expected: &str) -> bool {
    let parts = |text: &str| {
        let uri: Uri = text.trim().parse().ok()?;
        let host = uri.authority()?.as_str().to_ascii_lowercase();
        Some((uri.scheme_str()?.to_ascii_lowercase(), host, uri.path().to_owned()))
    };
    parts(url).is_some() && parts(url) == parts(expected)
}

/// Somebody else's URL may carry a secret.
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
    fn the_webhook_has_to_point_here_and_to_be_signed() {
        judged(&good(), &[]);
        let at = |url: &str| Facts { hook: Ok(hook(url)), ..good() };
        judged(&at("HTTPS://Service.TEST/github/webhook"), &[]);
        for elsewhere in [
            "https://service.test/github/webhook/",
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
        assert!(!format!("{found:?}").contains("hush"), "somebody else's secret stays one");
        judged(&at(""), &["! URL: it has none"]);
        judged(&Facts { hook: Err(answered(404)), ..good() }, &["! URL: it has none"]);
        judged(&Facts { hook: Err(limited()), ..good() }, &["? URL: could not be asked"]);
        let unsigned = HookConfig { secret: None, ..hook("https://service.test/github/webhook") };
        judged(&Facts { hook: Ok(unsigned), ..good() }, &["✗ secret: none is set"]);
        complains(&judge(&good(), &["push".into()], HERE), &["✗ events: workflow_job is not"]);
    }

    #[test]
    fn what_was_delivered_last_counts() {
        let with = |items: Vec<Delivery>| Facts {
            deliveries: Ok(Deliveries { items, next: None }),
            ..good()
        };
        judged(&with(vec![]), &["! deliveries: none of workflow_job"]);
        let ping = Delivery { event: "ping".into(), ..delivery("a", 200) };
        judged(&with(vec![ping.clone()]), &["! deliveries: none of workflow_job"]);
        let refused = "✗ deliveries: the last, of 2025-11-24T16:00:00Z, failed: 401 OK\n    -> set the webhook's";
        judged(&with(vec![ping, delivery("b", 401), delivery("a", 200)]), &[refused]);
        judged(&with(vec![delivery("b", 502)]), &["✗ deliveries: the last, of 2025"]);
        let lost = vec![delivery("c", 200), delivery("b", 502), delivery("a", 200)];
        judged(&with(lost), &["! deliveries: 1 of the last 3 were never accepted"]);
        let again = vec![delivery("a", 200), delivery("b", 200), delivery("a", 502)];
        judged(&with(again), &[]);
        judged(&Facts { deliveries: Err(unanswered()), ..good() }, &["? deliveries: could not"]);
    }
}
