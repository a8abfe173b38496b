//! The environment, read once: variables in, a [`Config`] or every problem at once out.
//!
//! A problem names its variable, and for RUNNER_CONFIG the entry and field. It never repeats a value: a secret may have
//! been put into the wrong variable. `envy` only maps variables to fields here, because its own errors stop at the first
//! problem and quote the value.

mod entries;
mod mistakes;

use std::ffi::OsString;
use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::EncodingKey;
use serde::Deserialize;

use crate::fleet::Fleet;
use crate::secret::{Secret, SharedSecret};

/// The configuration of the service.
#[derive(Debug)]
pub struct Config {
    /// The project of the VMs and of the queue.
    pub project: String,
    /// The location of the Cloud Tasks queue, such as `asia-northeast1`.
    pub task_location: String,
    /// The queue's id.
    pub task_queue: String,
    /// The service's own URL, which tasks call; without a trailing slash.
    pub service_url: String,
    /// The key of webhook signatures, and the password of operators and tasks.
    pub secret: SharedSecret,
    /// The service account as which Cloud Tasks calls the service; `None`: tasks carry the secret.
    pub callback_account: Option<String>,
    /// The time that a VM stays up after its last job.
    pub inactive: Duration,
    /// The time after which a stopped VM is started for a while, so that its runner connects; `None`: never.
    pub keepalive: Option<Duration>,
    pub github_app: GitHubApp,
    pub fleet: Fleet,
    pub port: u16,
    pub roots: ApiRoots,
    /// Values that are allowed but probably mistakes; one line each.
    pub warnings: Vec<String>,
}

/// The part of the configuration that routes jobs to VMs. It needs no network and no secret.
#[derive(Debug)]
pub struct Routing {
    pub fleet: Fleet,
    /// The time that a VM stays up after its last job.
    pub inactive: Duration,
    /// Values that are allowed but probably mistakes; one line each.
    pub warnings: Vec<String>,
}

impl Routing {
    /// Reads the process's environment.
    pub fn from_env() -> Result<Self, Problems> {
        Self::from_vars(std::env::vars_os())
    }

    /// Reads RUNNER_CONFIG and VM_INACTIVE_MINUTES; other variables are ignored, whatever their values.
    pub fn from_vars(
        vars: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let needed = |name: &OsString| {
            ["RUNNER_CONFIG", "RUNNER_CONFIG_FILE", "VM_INACTIVE_MINUTES"]
                .iter()
                .any(|needed| name == needed)
        };
        let raw = read(vars.into_iter().filter(|(name, _)| needed(name)), &mut problems);
        let mut warnings = Vec::new();
        let inactive =
            problems.optional("VM_INACTIVE_MINUTES", raw.vm_inactive_minutes, inactive_minutes);
        match problems.fleet(raw.runner_config, &mut warnings) {
            Some(fleet) if problems.0.is_empty() => {
                Ok(Self { fleet, inactive: inactive.unwrap_or(DEFAULT_INACTIVE), warnings })
            }
            _ => Err(problems),
        }
    }
}

const DEFAULT_INACTIVE: Duration = Duration::from_secs(3 * 60);

/// The GitHub App, as which the service asks GitHub about runners and jobs.
pub struct GitHubApp {
    /// The App's id or its client id: the issuer of its tokens.
    pub id: String,
    pub private_key: EncodingKey,
    /// The App's installation in the account that owns all configured repositories.
    pub installation_id: u64,
}

impl fmt::Debug for GitHubApp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, installation_id, .. } = self;
        write!(
            f,
            "GitHubApp {{ id: {id}, installation_id: {installation_id}, private_key: [redacted] }}"
        )
    }
}

/// The base URLs of Google's and GitHub's APIs, without a trailing slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiRoots {
    /// `/compute/v1/…` is appended to this.
    pub compute: String,
    /// `/v2/…` is appended to this.
    pub cloud_tasks: String,
    /// GitHub's REST paths are appended to this; on Enterprise Server `https://HOST/api/v3`.
    pub github: String,
    /// `/oauth2/v3/certs` is appended to this: the public keys of Google's identity tokens.
    pub google_keys: String,
}

impl Default for ApiRoots {
    fn default() -> Self {
        Self {
            compute: "https://compute.googleapis.com".into(),
            cloud_tasks: "https://cloudtasks.googleapis.com".into(),
            github: "https://api.github.com".into(),
            google_keys: "https://www.googleapis.com".into(),
        }
    }
}

/// Every variable as text. A field is named like its variable, in lower case.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Raw {
    gcp_project_id: Option<String>,
    cloud_task_location: Option<String>,
    cloud_task_queue_name: Option<String>,
    cloud_run_service_url: Option<String>,
    runner_manager_secret: Option<String>,
    runner_manager_secret_previous: Option<String>,
    github_webhook_secret: Option<String>,
    callback_service_account: Option<String>,
    vm_inactive_minutes: Option<String>,
    github_app_id: Option<String>,
    github_app_private_key: Option<String>,
    github_app_installation_id: Option<String>,
    runner_config: Option<String>,
    vm_keepalive_days: Option<String>,
    port: Option<String>,
    compute_api_url: Option<String>,
    cloud_tasks_api_url: Option<String>,
    github_api_url: Option<String>,
    google_keys_api_url: Option<String>,
}

pub const VARIABLES: [&str; 19] = [
    "GCP_PROJECT_ID",
    "CLOUD_TASK_LOCATION",
    "CLOUD_TASK_QUEUE_NAME",
    "CLOUD_RUN_SERVICE_URL",
    "RUNNER_MANAGER_SECRET",
    "RUNNER_MANAGER_SECRET_PREVIOUS",
    "GITHUB_WEBHOOK_SECRET",
    "CALLBACK_SERVICE_ACCOUNT",
    "VM_INACTIVE_MINUTES",
    "GITHUB_APP_ID",
    "GITHUB_APP_PRIVATE_KEY",
    "GITHUB_APP_INSTALLATION_ID",
    "RUNNER_CONFIG",
    "VM_KEEPALIVE_DAYS",
    "PORT",
    "COMPUTE_API_URL",
    "CLOUD_TASKS_API_URL",
    "GITHUB_API_URL",
    "GOOGLE_KEYS_API_URL",
];

/// The variables that may name a file instead, as `NAME_FILE`: secrets are often mounted.
const IN_FILES: [&str; 5] = [
    "RUNNER_CONFIG",
    "GITHUB_APP_PRIVATE_KEY",
    "RUNNER_MANAGER_SECRET",
    "RUNNER_MANAGER_SECRET_PREVIOUS",
    "GITHUB_WEBHOOK_SECRET",
];

/// The problems of an environment, one line each.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Problems(Vec<String>);

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        write!(f, "{count} problem{} with the configuration:", if count == 1 { "" } else { "s" })?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl Problems {
    fn add(&mut self, place: impl fmt::Display, problem: impl fmt::Display) {
        self.0.push(format!("{place}: {problem}"));
    }

    pub fn lines(&self) -> &[String] {
        &self.0
    }
}

impl Config {
    /// Reads the process's environment.
    pub fn from_env() -> Result<Self, Problems> {
        Self::from_vars(std::env::vars_os())
    }

    /// Reads the given variables; unknown ones are ignored.
    pub fn from_vars(
        vars: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let raw = read(vars, &mut problems);
        let mut warnings = Vec::new();
        let check = &mut problems;

        let project = check.required("GCP_PROJECT_ID", raw.gcp_project_id, project_id);
        let task_location =
            check.required("CLOUD_TASK_LOCATION", raw.cloud_task_location, location);
        let task_queue =
            check.required("CLOUD_TASK_QUEUE_NAME", raw.cloud_task_queue_name, queue_id);
        let service_url =
            check.required("CLOUD_RUN_SERVICE_URL", raw.cloud_run_service_url, service_url);
        let secret = check.required_secret(
            "RUNNER_MANAGER_SECRET",
            raw.runner_manager_secret,
            shared_secret,
        );
        let previous = check.optional_secret(
            "RUNNER_MANAGER_SECRET_PREVIOUS",
            raw.runner_manager_secret_previous,
            shared_secret,
        );
        let webhook = check.optional_secret(
            "GITHUB_WEBHOOK_SECRET",
            raw.github_webhook_secret,
            shared_secret,
        );
        let callback_account = check.optional(
            "CALLBACK_SERVICE_ACCOUNT",
            raw.callback_service_account,
            service_account,
        );
        let inactive =
            check.optional("VM_INACTIVE_MINUTES", raw.vm_inactive_minutes, inactive_minutes);
        let app_id = check.required("GITHUB_APP_ID", raw.github_app_id, app_id);
        let private_key =
            check.required_secret("GITHUB_APP_PRIVATE_KEY", raw.github_app_private_key, rsa_key);
        let installation_id = check.required(
            "GITHUB_APP_INSTALLATION_ID",
            raw.github_app_installation_id,
            installation_id,
        );
        let fleet = check.fleet(raw.runner_config, &mut warnings);
        let keepalive = check.optional("VM_KEEPALIVE_DAYS", raw.vm_keepalive_days, keepalive_days);
        let port = check.optional("PORT", raw.port, port);
        let default = ApiRoots::default();
        let compute = check.optional("COMPUTE_API_URL", raw.compute_api_url, url);
        let cloud_tasks = check.optional("CLOUD_TASKS_API_URL", raw.cloud_tasks_api_url, url);
        let github = check.optional("GITHUB_API_URL", raw.github_api_url, url);
        let google_keys = check.optional("GOOGLE_KEYS_API_URL", raw.google_keys_api_url, url);

        if let Some(weakness) = secret.as_ref().and_then(Secret::weakness) {
            warnings.push(format!("RUNNER_MANAGER_SECRET: {weakness}"));
        }
        if let Some(weakness) = webhook.as_ref().and_then(Secret::weakness) {
            warnings.push(format!("GITHUB_WEBHOOK_SECRET: {weakness}"));
        }
        if service_url.as_deref().is_some_and(has_path) {
            warnings.push(
                "CLOUD_RUN_SERVICE_URL: has a path; the service answers at the root of its address"
                    .into(),
            );
        }
        if github.as_deref().is_some_and(|root| root.ends_with("://github.com")) {
            warnings.push(
                "GITHUB_API_URL: is GitHub's website; its API is https://api.github.com".into(),
            );
        }

        let config = || {
            Some(Self {
                project: project?,
                task_location: task_location?,
                task_queue: task_queue?,
                service_url: service_url?,
                secret: SharedSecret::new(secret?, previous).with_webhook(webhook.as_ref()),
                callback_account,
                inactive: inactive.unwrap_or(DEFAULT_INACTIVE),
                keepalive: keepalive.unwrap_or_else(|| Some(days(10))),
                github_app: GitHubApp {
                    id: app_id?,
                    private_key: private_key?,
                    installation_id: installation_id?,
                },
                fleet: fleet?,
                port: port.unwrap_or(8080),
                roots: ApiRoots {
                    compute: compute.unwrap_or(default.compute),
                    cloud_tasks: cloud_tasks.unwrap_or(default.cloud_tasks),
                    github: github.unwrap_or(default.github),
                    google_keys: google_keys.unwrap_or(default.google_keys),
                },
                warnings,
            })
        };
        if problems.0.is_empty() { config().ok_or(problems) } else { Err(problems) }
    }
}

/// Assigns the known variables to their fields.
fn read(vars: impl IntoIterator<Item = (OsString, OsString)>, problems: &mut Problems) -> Raw {
    let mut texts: Vec<(String, String)> = Vec::new();
    let mut files = Vec::new();
    for (name, value) in vars {
        // Only exact names: for envy, `port` and `PORT` are the same field twice.
        if let Some(name) = VARIABLES.into_iter().find(|known| name == **known) {
            match value.into_string() {
                Ok(value) => texts.push((name.to_owned(), value)),
                Err(_) => problems.add(name, "is not UTF-8"),
            }
        } else if let Some(name) = in_file(&name).filter(|_| !value.is_empty()) {
            files.push((name, value));
        }
    }
    for (name, path) in files {
        if texts.iter().any(|(set, value)| set == name && !value.trim().is_empty()) {
            problems.add(name, format_args!("is set, and so is {name}_FILE: remove one of them"));
            continue;
        }
        match std::fs::read_to_string(path) {
            Ok(text) => {
                // The line break with which most editors end a file is not part of a secret.
                let text = text.strip_suffix('\n').unwrap_or(&text);
                let text = text.strip_suffix('\r').unwrap_or(text);
                texts.push((name.to_owned(), text.to_owned()));
            }
            Err(error) => {
                problems
                    .add(name, format_args!("the file that {name}_FILE names: {}", error.kind()));
            }
        }
    }
    envy::from_iter(texts).unwrap_or_default()
}

/// The variable whose value is in the file that the variable `name` names.
fn in_file(name: &OsString) -> Option<&'static str> {
    let variable = name.to_str()?.strip_suffix("_FILE")?;
    IN_FILES.into_iter().find(|known| *known == variable)
}

impl Problems {
    /// Reads a required variable, without the white space around it.
    fn required<T>(
        &mut self,
        name: &str,
        value: Option<String>,
        read: fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.required_secret(name, value.map(|value| value.trim().to_owned()), read)
    }

    /// Reads a required variable with its white space.
    fn required_secret<T>(
        &mut self,
        name: &str,
        value: Option<String>,
        read: fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let value = value.filter(|value| !value.trim().is_empty());
        // A value that is not UTF-8 was reported before.
        if value.is_none() && !self.0.iter().any(|line| line.starts_with(&format!("{name}: "))) {
            self.add(name, "is not set");
        }
        self.optional_secret(name, value, read)
    }

    /// Reads an optional variable; an empty one counts as missing.
    fn optional<T>(
        &mut self,
        name: &str,
        value: Option<String>,
        read: fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.optional_secret(name, value.map(|value| value.trim().to_owned()), read)
    }

    fn optional_secret<T>(
        &mut self,
        name: &str,
        value: Option<String>,
        read: fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let value = value.filter(|value| !value.trim().is_empty())?;
        read(&value).map_err(|problem| self.add(name, problem)).ok()
    }
}

/// Returns the text if it is valid, or the problem with it.
type Validator = fn(&str) -> Result<String, String>;

fn check(text: &str, valid: bool, problem: &str) -> Result<String, String> {
    if valid { Ok(text.to_owned()) } else { Err(problem.to_owned()) }
}

/// Letters, digits and the given punctuation, at least one character.
fn is_made_of(text: &str, punctuation: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || punctuation.contains(c))
}

fn project_id(text: &str) -> Result<String, String> {
    check(
        text,
        is_made_of(text, "-.:") && text.len() <= 63,
        "is not a project id, such as my-project",
    )
}

fn location(text: &str) -> Result<String, String> {
    check(
        text,
        is_made_of(text, "-") && text.len() <= 63,
        "is not a location, such as asia-northeast1 or asia-northeast1-a",
    )
}

fn queue_id(text: &str) -> Result<String, String> {
    check(
        text,
        is_made_of(text, "-") && text.len() <= 100,
        "is not a queue id: letters, digits and hyphens, 100 at most",
    )
}

fn url(text: &str) -> Result<String, String> {
    let uri: http::Uri = text.parse().map_err(|_| "is not a URL".to_owned())?;
    let scheme = matches!(uri.scheme_str(), Some("http" | "https"));
    let plain =
        uri.authority().is_some_and(|host| !host.as_str().contains('@')) && uri.query().is_none();
    let text = text.trim_end_matches('/');
    check(text, scheme && plain, "is not an http or https URL, without a user or query")
}

/// The service's own URL. Its tasks carry the secret, which must not travel in clear.
fn service_url(text: &str) -> Result<String, String> {
    let url = url(text)?;
    let uri: http::Uri = url.parse().map_err(|_| "is not a URL".to_owned())?;
    let is_loopback = uri.host().is_some_and(|host| {
        let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
        host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    });
    check(
        &url,
        is_loopback || uri.scheme_str() == Some("https"),
        "is http, and each task would carry the secret in clear: use https",
    )
}

fn has_path(url: &str) -> bool {
    url.parse::<http::Uri>().is_ok_and(|uri| uri.path() != "/")
}

fn shared_secret(text: &str) -> Result<Secret, String> {
    // Callers send the secret in a header, which cannot hold a line break at its end.
    if text.trim() != text {
        return Err(
            "begins or ends with white space: store it with `printf`, not `echo`, which adds a line break"
                .into(),
        );
    }
    if !text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return Err("has characters other than visible ASCII, which a header cannot hold".into());
    }
    Ok(Secret::new(text))
}

fn service_account(text: &str) -> Result<String, String> {
    let valid = text.split_once('@').is_some_and(|(name, domain)| {
        is_made_of(name, "-") && is_made_of(domain, "-.") && domain.contains('.')
    });
    check(text, valid, "is not a service account, such as name@my-project.iam.gserviceaccount.com")
}

fn inactive_minutes(text: &str) -> Result<Duration, String> {
    let minutes = text.parse().ok().filter(|minutes| (1..=1440).contains(minutes));
    minutes
        .map(|minutes: u64| Duration::from_secs(60 * minutes))
        .ok_or("is not a number from 1 to 1440".into())
}

/// 13 at most, since GitHub removes a runner that has not connected for 14 days; 0 turns the keepalive off.
fn keepalive_days(text: &str) -> Result<Option<Duration>, String> {
    match text.parse() {
        Ok(0) => Ok(None),
        Ok(count @ 1..=13) => Ok(Some(days(count))),
        _ => Err("is not a number from 0 to 13".into()),
    }
}

fn days(count: u64) -> Duration {
    Duration::from_secs(24 * 60 * 60 * count)
}

fn app_id(text: &str) -> Result<String, String> {
    check(text, is_made_of(text, ".") && text.len() <= 64, "is not a GitHub App's id or client id")
}

fn installation_id(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "is not a number".into())
}

fn port(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| "is not a port, 0 to 65535".into())
}

/// Reads the App's key: PEM with real or literal line breaks, or that as base64.
fn rsa_key(text: &str) -> Result<EncodingKey, String> {
    let packed: String = text.split_whitespace().collect();
    let decoded = STANDARD.decode(packed).ok().and_then(|pem| String::from_utf8(pem).ok());
    let pem = decoded.as_deref().unwrap_or(text).replace("\\r", "").replace("\\n", "\n");
    let pem = pem.trim();
    let wrong = || mistakes::not_a_key(pem).to_owned();
    let key = EncodingKey::from_rsa_pem(pem.as_bytes()).map_err(|_| wrong())?;
    // The PEM frame alone proves nothing: parse the key here, or the first signature would fail.
    aws_lc_rs::rsa::KeyPair::from_der(key.as_bytes()).map_err(|_| wrong())?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEM: &str = include_str!("../tests/fixtures/app-private-key.pem");

    const SECRET: &str = "sesame-7f3c9a51d2";

    fn vars(changes: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        let mut vars = vec![
            ("GCP_PROJECT_ID", "my-project"),
            ("CLOUD_TASK_LOCATION", "asia-northeast1"),
            ("CLOUD_TASK_QUEUE_NAME", "runner-manager"),
            ("CLOUD_RUN_SERVICE_URL", "https://runner-manager-123.asia-northeast1.run.app/"),
            ("RUNNER_MANAGER_SECRET", SECRET),
            ("GITHUB_APP_ID", "123456"),
            ("GITHUB_APP_PRIVATE_KEY", PEM),
            ("GITHUB_APP_INSTALLATION_ID", "12345678"),
            (
                "RUNNER_CONFIG",
                r#"[{"repo":"acme/app","labels":["self-hosted"],"vm_instance_name":"runner-1","vm_instance_zone":"asia-northeast1-a"}]"#,
            ),
        ];
        vars.retain(|(name, _)| !changes.iter().any(|(changed, _)| changed == name));
        vars.extend(changes.iter().filter(|(_, value)| *value != "-"));
        vars.into_iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    /// The problems of an environment with these changes; the value `-` removes a variable.
    fn problems(changes: &[(&str, &str)]) -> Vec<String> {
        Config::from_vars(vars(changes)).map_or_else(|problems| problems.0, |_| Vec::new())
    }

    #[track_caller]
    fn complains(name: &str, value: &str, problem: &str) {
        let found = problems(&[(name, value)]);
        assert!(
            found.len() == 1 && found[0].starts_with(name) && found[0].contains(problem),
            "{found:?}"
        );
        assert!(value.len() < 6 || !found[0].contains(value), "a value is repeated: {found:?}");
    }

    #[test]
    fn defaults_are_as_documented() {
        let config = Config::from_vars(vars(&[])).unwrap();
        assert_eq!(config.inactive, Duration::from_secs(180));
        assert_eq!(config.keepalive, Some(Duration::from_secs(864_000)));
        assert_eq!(config.port, 8080);
        assert_eq!(config.roots, ApiRoots::default());
        assert_eq!(config.service_url, "https://runner-manager-123.asia-northeast1.run.app");
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    }

    #[test]
    fn everything_can_be_set() {
        let changes = [
            ("VM_INACTIVE_MINUTES", "15"),
            ("VM_KEEPALIVE_DAYS", "0"),
            ("GOOGLE_KEYS_API_URL", "http://127.0.0.1:4"),
            ("PORT", "9000"),
            ("COMPUTE_API_URL", "http://127.0.0.1:1"),
            ("CLOUD_TASKS_API_URL", "http://127.0.0.1:2/"),
            ("GITHUB_API_URL", "https://github.example.com/api/v3"),
            ("GITHUB_APP_PRIVATE_KEY", &PEM.replace('\n', "\\n")),
            ("RUNNER_MANAGER_SECRET_PREVIOUS", "earlier"),
            ("port", "ignored"),
        ];
        let config = Config::from_vars(vars(&changes)).unwrap();
        assert_eq!((config.inactive, config.port), (Duration::from_secs(900), 9000));
        assert_eq!(config.keepalive, None);
        assert_eq!(config.roots.google_keys, "http://127.0.0.1:4");
        assert_eq!(config.roots.cloud_tasks, "http://127.0.0.1:2");
        assert_eq!(config.roots.github, "https://github.example.com/api/v3");
        assert_eq!(config.secret.verify_secret(Some(b"earlier")), Ok(()));
    }

    #[test]
    fn every_missing_variable_is_named_at_once() {
        let found = Config::from_vars([]).unwrap_err();
        let named: Vec<&str> = found.0.iter().map(|line| line.split(':').next().unwrap()).collect();
        assert_eq!(named, [&VARIABLES[..5], &VARIABLES[9..13]].concat());
    }

    #[test]
    fn a_bad_value_is_named_but_not_repeated() {
        complains("GCP_PROJECT_ID", "my project", "is not a project id");
        complains("CLOUD_TASK_LOCATION", "here/there", "is not a location");
        complains("CLOUD_TASK_QUEUE_NAME", "under_score", "is not a queue id");
        complains("CLOUD_RUN_SERVICE_URL", "runner-manager.run.app", "http or https URL");
        complains("CLOUD_RUN_SERVICE_URL", "https://user:pass@host.example", "http or https URL");
        complains("RUNNER_MANAGER_SECRET", "hush-hush\n", "white space");
        complains("GITHUB_WEBHOOK_SECRET", "hush-hush\n", "white space");
        complains("CALLBACK_SERVICE_ACCOUNT", "a robot", "is not a service account");
        complains("RUNNER_MANAGER_SECRET", "gehe\u{ed}m-gehe\u{ed}m", "visible ASCII");
        complains("VM_INACTIVE_MINUTES", "0", "1 to 1440");
        complains("VM_INACTIVE_MINUTES", "1441", "1 to 1440");
        complains("VM_KEEPALIVE_DAYS", "14", "0 to 13");
        complains("VM_KEEPALIVE_DAYS", "never", "0 to 13");
        complains("GITHUB_APP_PRIVATE_KEY", "not a key at all", "RSA private key");
        complains("GITHUB_APP_PRIVATE_KEY", &PEM[..400], "RSA private key");
        complains("GITHUB_APP_INSTALLATION_ID", "mine, all mine", "is not a number");
        complains("PORT", "65536", "is not a port");
        complains("GITHUB_APP_ID", "", "is not set");
    }

    #[test]
    fn every_problem_of_every_entry_is_named() {
        let config = r#"[
            {"repo": "acme", "labels": [], "vm_instance_name": "Runner", "vm_instance_zone": 7},
            "nothing",
            {"repo": "acme/app", "labels": ["self-hosted", 5], "runner_names": ["a*b"], "runner_labels": [], "discard_local_ssd": "yes", "register": "here"}
        ]"#;
        let found = problems(&[("RUNNER_CONFIG", config)]);
        let places: Vec<&str> = found.iter().map(|line| line.split(": ").next().unwrap()).collect();
        let expected = [
            "RUNNER_CONFIG[0].repo",
            "RUNNER_CONFIG[0].labels",
            "RUNNER_CONFIG[0].vm_instance_name",
            "RUNNER_CONFIG[0].vm_instance_zone",
            "RUNNER_CONFIG[1]",
            "RUNNER_CONFIG[2].labels[1]",
            "RUNNER_CONFIG[2].vm_instance_name",
            "RUNNER_CONFIG[2].vm_instance_zone",
            "RUNNER_CONFIG[2].runner_names[0]",
            "RUNNER_CONFIG[2].runner_labels",
            "RUNNER_CONFIG[2].discard_local_ssd",
            "RUNNER_CONFIG[2].register",
        ];
        assert_eq!(places, expected);
        complains("RUNNER_CONFIG", "[]", "is an empty array");
        complains("RUNNER_CONFIG", "{}", "is not a JSON array");
        complains("RUNNER_CONFIG", "[{]", "is not JSON: line 1, column 3");
    }

    #[test]
    fn a_problem_shows_what_was_meant() {
        let config = r#"[{"repo": "https://github.com/acme/app", "labels": "self-hosted", "vm_name": "runner-1", "vm_instance_zone": "us-west1-b"}]"#;
        assert_eq!(
            problems(&[("RUNNER_CONFIG", config)]),
            [
                "RUNNER_CONFIG[0].repo: is a URL, not a repository's full name, owner/repo",
                r#"RUNNER_CONFIG[0].labels: is not an array, such as ["self-hosted"]"#,
                "RUNNER_CONFIG[0].vm_instance_name: is missing",
                "RUNNER_CONFIG[0].vm_name: is not a field of an entry: vm_instance_name may be meant",
            ]
        );
    }

    #[test]
    fn the_apps_key_may_be_packed() {
        let literal = PEM.replace('\n', "\\r\\n");
        for key in [literal.as_str(), &STANDARD.encode(PEM), &STANDARD.encode(&literal)] {
            assert_eq!(problems(&[("GITHUB_APP_PRIVATE_KEY", key)]), Vec::<String>::new());
        }
        let framed = |kind: &str| format!("-----BEGIN {kind}-----\nAAAA\n-----END {kind}-----");
        let key = "GITHUB_APP_PRIVATE_KEY";
        complains(key, &framed("ENCRYPTED PRIVATE KEY"), "is encrypted");
        complains(key, &framed("EC PRIVATE KEY"), "elliptic-curve");
        complains(key, &framed("PUBLIC KEY"), "is a public key");
        complains(key, &framed("OPENSSH PRIVATE KEY"), "is an OpenSSH key");
        complains(key, "/secrets/app.pem", "looks like a path");
        complains(key, &STANDARD.encode(framed("PUBLIC KEY")), "is a public key");
    }

    #[test]
    fn values_may_be_in_files() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let (key, secret) = (file("key", PEM), file("secret", "sesame-from-a-file\r\n"));
        let removed = [("GITHUB_APP_PRIVATE_KEY", "-"), ("RUNNER_MANAGER_SECRET", "-")];
        let named =
            [("GITHUB_APP_PRIVATE_KEY_FILE", &*key), ("RUNNER_MANAGER_SECRET_FILE", &secret)];
        let config = Config::from_vars(vars(&[removed, named].concat())).unwrap();
        assert_eq!(config.secret.current().expose(), "sesame-from-a-file");
        assert!(
            problems(&named)[0].ends_with("so is GITHUB_APP_PRIVATE_KEY_FILE: remove one of them")
        );
        let nowhere = [("RUNNER_MANAGER_SECRET", "-"), ("RUNNER_MANAGER_SECRET_FILE", "/no/file")];
        let found = problems(&nowhere);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("RUNNER_MANAGER_SECRET_FILE") && found[0].contains("not found"));
    }

    #[track_caller]
    fn warns(name: &str, value: &str, warning: &str) {
        let warnings = Config::from_vars(vars(&[(name, value)])).unwrap().warnings;
        assert!(warnings.len() == 1 && warnings[0].contains(warning), "{warnings:?}");
    }

    #[test]
    fn what_starts_but_is_hardly_meant_is_a_warning() {
        warns("RUNNER_MANAGER_SECRET", "x", "is short");
        warns("RUNNER_MANAGER_SECRET", "your-secret", "is short");
        warns("RUNNER_MANAGER_SECRET", "change-me-change-me", "looks like a placeholder");
        warns("CLOUD_RUN_SERVICE_URL", "https://host.example/runner", "has a path");
        warns("GITHUB_API_URL", "https://github.com/", "https://api.github.com");
        let entry = |repo: &str, labels: &str, zone: &str| {
            format!(
                r#"{{"repo":"{repo}","labels":["{labels}"],"vm_instance_name":"runner-1","vm_instance_zone":"{zone}"}}"#
            )
        };
        let zone = "us-west1-b";
        let one = |entry: String| format!("[{entry}]");
        warns("RUNNER_CONFIG", &one(entry("acme/app", "a", "us-west1")), "is a region");
        warns("RUNNER_CONFIG", &one(entry("acme/app.git", "a", zone)), "leave out .git");
        let two = [entry("acme/app", "a", zone), entry("other/app", "a", zone)].join(",");
        warns("RUNNER_CONFIG", &one(two), "two owners");
    }

    #[test]
    fn the_secret_does_not_travel_in_clear() {
        complains("CLOUD_RUN_SERVICE_URL", "http://runner-manager.example", "use https");
        for local in ["http://localhost:8080", "http://127.0.0.1", "http://[::1]:80"] {
            assert_eq!(problems(&[("CLOUD_RUN_SERVICE_URL", local)]), Vec::<String>::new());
        }
    }

    #[test]
    fn a_probable_mistake_is_a_warning() {
        let entry = |extra: &str| {
            format!(
                r#"{{"repo":"acme/app","labels":["self-hosted"],"vm_instance_name":"runner-1","vm_instance_zone":"us-west1-b"{extra}}}"#
            )
        };
        let twice = format!("[{},{}]", entry(""), entry(r#","runner_name":"typo""#));
        let config = Config::from_vars(vars(&[("RUNNER_CONFIG", &twice)])).unwrap();
        assert_eq!(config.warnings.len(), 2);
        assert!(config.warnings[0].starts_with("RUNNER_CONFIG[1].runner_name: "));
        assert!(config.warnings[1].starts_with("RUNNER_CONFIG[1]: never matches"));

        let odd = format!("[{}]", entry(r#","runner_labels":["linux","x64"]"#));
        let config = Config::from_vars(vars(&[("RUNNER_CONFIG", &odd)])).unwrap();
        assert_eq!(config.warnings.len(), 1);
        assert!(config.warnings[0].starts_with("RUNNER_CONFIG[0].labels[0]: is not among"));
    }

    #[test]
    fn a_value_that_is_not_utf8_is_a_problem() {
        use std::os::unix::ffi::OsStringExt;
        let mut vars = vars(&[("GCP_PROJECT_ID", "-")]);
        vars.push(("GCP_PROJECT_ID".into(), OsString::from_vec(vec![0xff, 0xfe])));
        assert_eq!(Config::from_vars(vars).unwrap_err().0, ["GCP_PROJECT_ID: is not UTF-8"]);
    }

    #[test]
    fn no_secret_is_shown_by_debug() {
        let shown = format!("{:?}", Config::from_vars(vars(&[])).unwrap());
        assert!(!shown.contains(SECRET) && !shown.contains("BEGIN"), "{shown}");
    }
}
