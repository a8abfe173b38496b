//! The REST clients: Compute Engine, Cloud Tasks and the GitHub App, over one transport.
//!
//! They use the terms of the APIs and know nothing of the lifecycle. Every call is safe to repeat: reads change
//! nothing, a task has a name, Compute Engine's commands carry a request id and labels a fingerprint, and an unused
//! token does no harm. So the transport repeats any of them once.

pub mod budget;
pub mod cloud_tasks;
pub mod compute;
pub mod github;
pub mod google;
pub mod google_keys;
mod redirects;
pub mod service;
pub mod transport;

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, header};
use serde::Deserialize;

use crate::secret::Secret;

/// The failure of a call. The texts hold no secrets: they quote neither headers nor body of the request.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// No response arrived in time: the call may have taken effect or not.
    #[error("{call}: no answer: {why}")]
    Unanswered {
        /// The method, as the API's reference names it.
        call: &'static str,
        /// The connection's error.
        why: String,
    },
    /// The API answered with a status other than 2xx.
    #[error("{call}: {status}{}{}", text(": ", .reason), text(": ", .message))]
    Status {
        /// The method, as the API's reference names it.
        call: &'static str,
        /// The status of the response.
        status: StatusCode,
        /// Google's reason, such as `conditionNotMet`, or else its status word; empty from GitHub.
        reason: String,
        /// The API's message.
        message: String,
        /// A rate limit: the response says nothing about permissions, and the limit passes.
        limited: bool,
        /// Google's status word is `ALREADY_EXISTS`. Other conflicts, such as `ABORTED`, create nothing.
        exists: bool,
    },
    /// The API answered 2xx with a body that is not as documented.
    #[error("{call}: the answer cannot be read: {why}")]
    Unreadable {
        /// The method, as the API's reference names it.
        call: &'static str,
        /// The parser's message.
        why: String,
    },
    /// No access token could be fetched for the call.
    #[error("{call}: no access token: {why}")]
    NoToken {
        /// The method, as the API's reference names it.
        call: &'static str,
        /// The error of Google's token endpoint, or of the search for credentials.
        why: String,
    },
}

fn text(before: &str, text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("{before}{text}") }
}

impl Error {
    /// The status of the response, if there was one.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Status { status, .. } => Some(*status),
            Self::Unanswered { .. } | Self::Unreadable { .. } | Self::NoToken { .. } => None,
        }
    }

    /// True for a 403 that is not a rate limit's. A 401 says nothing about permissions: the token was revoked, or
    /// GitHub has not replicated it yet.
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Status { status: StatusCode::FORBIDDEN, limited: false, .. })
    }

    /// True if the API named a missing permission. A suspended installation, an IP allow list or a disabled API gives a
    /// 403 too, and no permission helps there.
    pub fn lacks_permission(&self) -> bool {
        self.is_forbidden()
            && matches!(self, Self::Status { reason, message, .. }
                if reason == "forbidden" || message.contains("Resource not accessible by integration"))
    }

    /// True if the resource does not exist, or is hidden from the caller. Compute Engine answers 400 if the zone does
    /// not exist, mostly because a region was given instead.
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::Status { status: StatusCode::NOT_FOUND, .. } => true,
            Self::Status { status: StatusCode::BAD_REQUEST, message, .. } => {
                message.contains("Unknown zone")
            }
            _ => false,
        }
    }

    /// True for a failure that may be temporary: no response, an error of the API's own, or a rate limit.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Unanswered { .. } => true,
            Self::Status { status, limited, .. } => *limited || status.is_server_error(),
            Self::Unreadable { .. } | Self::NoToken { .. } => false,
        }
    }

    /// True for a rate limit.
    fn is_limited(&self) -> bool {
        matches!(self, Self::Status { limited: true, .. })
    }

    /// True if the resource changed between a read and the call. Compute Engine reports this in several ways.
    pub fn is_stale(&self) -> bool {
        matches!(
            self.status(),
            Some(StatusCode::BAD_REQUEST | StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED)
        )
    }

    /// The error of a response other than 2xx. An API may repeat the request in its message: `secrets` are left out.
    fn from_answer(call: &'static str, answer: &Response<Bytes>, secrets: &[Secret]) -> Self {
        let said: ErrorBody = serde_json::from_slice(answer.body()).unwrap_or_default();
        let exists = said.error.status == "ALREADY_EXISTS";
        let reason = said.error.errors.into_iter().next().map(|first| first.reason);
        let reason = reason.filter(|reason| !reason.is_empty()).unwrap_or(said.error.status);
        let message = if said.message.is_empty() { said.error.message } else { said.message };
        let limited =
            is_limit(answer.status(), answer.headers(), &reason, &message, &said.documentation_url);
        Self::Status {
            call,
            status: answer.status(),
            exists,
            reason: tidy(&redacted(reason, secrets)),
            message: tidy(&redacted(message, secrets)),
            limited,
        }
    }
}

/// True for an exhausted rate limit. Google answers 403 for it, GitHub too, in words that have changed over the years
/// and not always with a header.
/// <https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api>
fn is_limit(
    status: StatusCode,
    headers: &HeaderMap,
    reason: &str,
    message: &str,
    documentation_url: &str,
) -> bool {
    let exhausted = headers.get("x-ratelimit-remaining").is_some_and(|left| left == "0");
    let google = matches!(
        reason,
        "rateLimitExceeded" | "userRateLimitExceeded" | "quotaExceeded" | "RESOURCE_EXHAUSTED"
    );
    let message = message.to_ascii_lowercase();
    let github =
        ["rate limit", "abuse", "retry your request"].iter().any(|words| message.contains(words))
            || documentation_url.contains("rate-limit");
    status == StatusCode::TOO_MANY_REQUESTS
        || (status == StatusCode::FORBIDDEN
            && (exhausted || google || github || headers.contains_key(header::RETRY_AFTER)))
}

/// The text without the secrets, plain or escaped for JSON. A secret of a few letters would occur in any text.
fn redacted(mut text: String, secrets: &[Secret]) -> String {
    for secret in secrets.iter().map(Secret::expose).filter(|secret| secret.len() >= 4) {
        let json = serde_json::Value::from(secret).to_string();
        for shown in [secret, json.trim_matches('"')] {
            text = text.replace(shown, "[redacted]");
        }
    }
    text
}

/// The text as one line of at most 200 characters.
fn tidy(text: &str) -> String {
    text.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Both formats of an error: Google's `{"error": {…}}` and GitHub's `{"message": …}`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct ErrorBody {
    error: GoogleError,
    message: String,
    documentation_url: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct GoogleError {
    message: String,
    status: String,
    errors: Vec<GoogleReason>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct GoogleReason {
    reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, headers: &[(&'static str, &'static str)], body: &'static str) -> Error {
        let mut answer = Response::builder().status(status);
        for (name, value) in headers {
            answer = answer.header(*name, *value);
        }
        let secret = Secret::new("hush \"hush\"");
        Error::from_answer("a.call", &answer.body(Bytes::from(body)).unwrap(), &[secret])
    }

    #[test]
    fn a_rate_limit_is_not_a_missing_permission() {
        let google = |reason| {
            format!(
                r#"{{"error":{{"code":403,"message":"no","errors":[{{"reason":"{reason}"}}]}}}}"#
            )
        };
        assert!(answer(403, &[], google("forbidden").leak()).is_forbidden());
        assert!(!answer(403, &[], google("rateLimitExceeded").leak()).is_forbidden());
        assert!(
            answer(403, &[], r#"{"message":"Resource not accessible by integration"}"#)
                .is_forbidden()
        );
        assert!(answer(403, &[("x-ratelimit-remaining", "17")], "{}").is_forbidden());
        assert!(!answer(403, &[("x-ratelimit-remaining", "0")], "{}").is_forbidden());
        assert!(!answer(403, &[("retry-after", "60")], "{}").is_forbidden());
        assert!(!answer(429, &[], "").is_forbidden());
        assert!(!answer(401, &[], r#"{"message":"Bad credentials"}"#).is_forbidden());
    }

    #[test]
    fn an_error_repeats_no_secret() {
        let echo = r#"{"error":{"message":"no task {\"X-Runner-Secret\": \"hush \\\"hush\\\"\"}, hush \"hush\""}}"#;
        let text = answer(400, &[], echo).to_string();
        assert!(!text.contains("hush") && text.matches("[redacted]").count() == 2, "{text}");
    }

    #[test]
    fn any_error_body_makes_one_readable_line() {
        let both = answer(
            412,
            &[],
            r#"{"error":{"message":"changed","errors":[{"reason":"conditionNotMet"}]}}"#,
        );
        assert_eq!(both.to_string(), "a.call: 412 Precondition Failed: conditionNotMet: changed");
        let exists = |body| matches!(answer(409, &[], body), Error::Status { exists: true, .. });
        let beside =
            r#"{"error":{"status":"ALREADY_EXISTS","errors":[{"reason":"alreadyExists"}]}}"#;
        assert!(exists(beside), "also beside a reason in the older format");
        assert!(!exists(r#"{"error":{"status":"ABORTED","message":"ALREADY_EXISTS"}}"#));
        assert_eq!(answer(503, &[], "<html>\n").to_string(), "a.call: 503 Service Unavailable");
        assert_eq!(
            answer(409, &[], r#"{"error":{"status":"ALREADY_EXISTS"}}"#).to_string(),
            "a.call: 409 Conflict: ALREADY_EXISTS"
        );
    }
}
