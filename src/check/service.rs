//! Checks of the deployed service at CLOUD_RUN_SERVICE_URL.

use http::StatusCode;

use super::finding::{Finding, Findings};
use crate::clients::Error;
use crate::clients::service::{Health, Info, RunnerConfig, Service};
use crate::clock::Deadline;
use crate::fleet::{Entry, Fleet};
use crate::routes::SERVICE;
use crate::secret::Secret;

pub(super) struct Facts {
    health: Result<Health, Error>,
    info: Result<Info, Error>,
    /// None if it was not asked: the secret is not for another service.
    secret: Option<Result<(), Error>>,
}

pub(super) async fn read(service: &Service, secret: &Secret, deadline: Deadline) -> Facts {
    let (health, info) = tokio::join!(service.health(deadline), service.info(deadline));
    let secret = match &info {
        Ok(info) if info.service == SERVICE => Some(service.status(secret, deadline).await),
        _ => None,
    };
    Facts { health, info, secret }
}

/// Judges the service at `url` against this fleet and these minutes.
pub(super) fn judge(
    facts: &Facts,
    url: &str,
    fleet: &Fleet,
    inactive_minutes: u64,
) -> Vec<Finding> {
    let mut found = Findings::of(format!("service {url}"));
    match &facts.health {
        Ok(health) if health.status == "healthy" => found.ok("/health", "healthy"),
        Ok(_) => found.fail("/health", "another service answers at this URL", WRONG_URL),
        Err(error) => {
            let fix = match error.status() {
                Some(StatusCode::FORBIDDEN) => NOT_PUBLIC,
                _ => WRONG_URL,
            };
            found.failed("/health", error, fix);
            return found.done();
        }
    }
    match &facts.info {
        Ok(info) if info.service != SERVICE => {
            found.fail("identity", format!("the service at this URL is not {SERVICE}"), WRONG_URL);
        }
        Ok(info) => {
            let configured: Vec<RunnerConfig> = fleet.entries().iter().map(as_shown).collect();
            if info.runner_configs != configured || info.inactive_minutes != inactive_minutes {
                found.warn(
                    "identity",
                    "the deployed RUNNER_CONFIG or VM_INACTIVE_MINUTES differs from this environment's",
                    "deploy this configuration, or run the check with the deployed one",
                );
            } else {
                found.ok("identity", format!("{SERVICE}, with this RUNNER_CONFIG"));
            }
        }
        Err(error) => found.failed("identity", error, WRONG_URL),
    }
    match &facts.secret {
        None => {}
        Some(Ok(())) => found.ok("secret", "the service accepts RUNNER_MANAGER_SECRET"),
        Some(Err(error)) if error.status() == Some(StatusCode::UNAUTHORIZED) => found.fail(
            "secret",
            "the deployed service refuses this RUNNER_MANAGER_SECRET",
            "run the check with the secret that is deployed, or deploy this one",
        ),
        Some(Err(error)) => found.failed("secret", error, "read the service's log"),
    }
    found.done()
}

const WRONG_URL: &str = "set CLOUD_RUN_SERVICE_URL to the service's own URL: gcloud run services describe NAME --region REGION \
     --format 'value(status.url)'";

const NOT_PUBLIC: &str = "allow requests from GitHub and Cloud Tasks: deploy with --allow-unauthenticated, or \
                        --no-invoker-iam-check where a policy forbids that";

fn as_shown(entry: &Entry) -> RunnerConfig {
    RunnerConfig {
        repo: entry.repo.clone(),
        labels: entry.labels.clone(),
        vm_instance_name: entry.vm.name.clone(),
        vm_instance_zone: entry.vm.zone.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::testing::{answered, complains, unanswered};
    use super::*;
    use crate::fleet::{RunnerNames, StopOptions, Vm};

    fn fleet() -> Fleet {
        Fleet::new(vec![Entry {
            repo: "acme/app".into(),
            labels: vec!["self-hosted".into()],
            runner_labels: Vec::new(),
            vm: Vm::new("gpu-1", "us-central1-a"),
            runner_names: RunnerNames::parse(["gpu-1"]),
            stop: StopOptions::default(),
            register: None,
        }])
    }

    fn info() -> Info {
        let runner_configs = fleet().entries().iter().map(as_shown).collect();
        Info { service: SERVICE.into(), inactive_minutes: 3, runner_configs }
    }

    fn good() -> Facts {
        Facts {
            health: Ok(Health { status: "healthy".into() }),
            info: Ok(info()),
            secret: Some(Ok(())),
        }
    }

    #[track_caller]
    fn judged(facts: &Facts, expected: &[&str]) {
        complains(&judge(facts, "https://service.test", &fleet(), 3), expected);
    }

    #[test]
    fn the_url_has_to_be_that_of_this_service() {
        judged(&good(), &[]);
        let health = |error| Facts { health: Err(error), ..good() };
        judged(&health(unanswered()), &["? /health: could not be checked"]);
        judged(&health(answered(503)), &["? /health: could not be checked"]);
        judged(
            &health(answered(404)),
            &["✗ /health: a.call: 404 Not Found: no\n    -> set CLOUD_RUN"],
        );
        judged(
            &health(answered(403)),
            &["✗ /health: a.call: 403 Forbidden: no\n    -> allow requests from GitHub"],
        );
        let page = Error::Unreadable { call: "GET /health", why: "Syntax error".into() };
        judged(&health(page), &["✗ /health: GET /health: the answer cannot be read"]);
        judged(
            &Facts { health: Ok(Health::default()), ..good() },
            &["✗ /health: another service answers"],
        );
        let other = Info { service: "Another".into(), ..info() };
        judged(
            &Facts { info: Ok(other), ..good() },
            &["✗ identity: the service at this URL is not"],
        );
        let refused = Facts { secret: Some(Err(answered(401))), ..good() };
        judged(&refused, &["✗ secret: the deployed service refuses this RUNNER_MANAGER_SECRET"]);
        judged(&Facts { secret: Some(Err(unanswered())), ..good() }, &["? secret: could not"]);
        let older =
            [Info { inactive_minutes: 5, ..info() }, Info { runner_configs: Vec::new(), ..info() }];
        for older in older {
            judged(
                &Facts { info: Ok(older), ..good() },
                &["! identity: the deployed RUNNER_CONFIG"],
            );
        }
    }
}
