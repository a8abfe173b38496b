//! The result of one check.

use std::fmt;

use serde::Serialize;

use crate::clients;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Ok,
    /// The service works, but probably not as intended.
    Warning,
    /// An operator has to fix it.
    Error,
    /// No answer: the check proves nothing.
    #[serde(rename = "not_asked")]
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The checked object, such as `VM gpu-1 in us-central1-a`.
    pub subject: String,
    /// The checked property, in a word or two.
    pub what: &'static str,
    pub outcome: Outcome,
    pub detail: String,
    /// The remedy of a warning or an error.
    pub fix: Option<String>,
}

/// A builder for the findings of one subject.
#[derive(Clone, Debug)]
pub(super) struct Findings {
    subject: String,
    found: Vec<Finding>,
}

impl Findings {
    pub(super) fn of(subject: impl Into<String>) -> Self {
        Self { subject: subject.into(), found: Vec::new() }
    }

    pub(super) fn ok(&mut self, what: &'static str, detail: impl Into<String>) {
        self.push(Outcome::Ok, what, detail.into(), None);
    }

    pub(super) fn warn(
        &mut self,
        what: &'static str,
        detail: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.push(Outcome::Warning, what, detail.into(), Some(fix.into()));
    }

    pub(super) fn fail(
        &mut self,
        what: &'static str,
        detail: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.push(Outcome::Error, what, detail.into(), Some(fix.into()));
    }

    pub(super) fn unknown(&mut self, what: &'static str, why: impl fmt::Display) {
        self.push(Outcome::Unknown, what, format!("could not be checked: {why}"), None);
    }

    /// Adds a failed call: an error, unless it may succeed later.
    pub(super) fn failed(
        &mut self,
        what: &'static str,
        error: &clients::Error,
        fix: impl Into<String>,
    ) {
        if error.may_pass() {
            self.unknown(what, error);
        } else {
            self.fail(what, error.to_string(), fix);
        }
    }

    pub(super) fn done(self) -> Vec<Finding> {
        self.found
    }

    fn push(&mut self, outcome: Outcome, what: &'static str, detail: String, fix: Option<String>) {
        let subject = self.subject.clone();
        self.found.push(Finding { subject, what, outcome, detail, fix });
    }
}

/// A line, followed by one with the fix.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let symbol = match self.outcome {
            Outcome::Ok => '✓',
            Outcome::Warning => '!',
            Outcome::Error => '✗',
            Outcome::Unknown => '?',
        };
        let Self { subject, what, detail, fix, .. } = self;
        // The text of an API may contain line breaks.
        let visible =
            |text: &str| text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let (subject, detail): (String, String) = (visible(subject), visible(detail));
        write!(f, "{symbol} {subject}: {what}: {detail}")?;
        match fix {
            Some(fix) => write!(f, "\n    -> {}", visible(fix)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
pub(super) mod testing {
    use http::StatusCode;

    use super::*;

    /// Asserts that the findings other than `Ok` begin with these texts, and that there are no others.
    #[track_caller]
    pub(in crate::check) fn complains(found: &[Finding], expected: &[&str]) {
        let bad: Vec<String> = found
            .iter()
            .filter(|finding| finding.outcome != Outcome::Ok)
            .map(|finding| {
                let line = finding.to_string();
                assert_eq!(
                    finding.fix.is_some(),
                    finding.outcome != Outcome::Unknown,
                    "every finding but an unknown one has a fix: {line}"
                );
                let rest = line.strip_prefix(|symbol| "✗!?".contains(symbol)).unwrap();
                let symbol = line.strip_suffix(rest).unwrap();
                let subject = format!(" {}: ", finding.subject);
                format!("{symbol} {}", rest.strip_prefix(&subject).unwrap())
            })
            .collect();
        let same = bad.len() == expected.len()
            && bad.iter().zip(expected).all(|(line, begins)| line.starts_with(begins));
        assert!(same, "{bad:#?} instead of {expected:#?}");
    }

    pub(in crate::check) fn answered(status: u16) -> clients::Error {
        clients::Error::Status {
            exists: false,
            call: "a.call",
            status: StatusCode::from_u16(status).unwrap(),
            reason: String::new(),
            message: "no".into(),
            limited: status == 429,
        }
    }

    /// A 403 for another reason than a permission.
    pub(in crate::check) fn limited() -> clients::Error {
        clients::Error::Status {
            exists: false,
            call: "a.call",
            status: StatusCode::FORBIDDEN,
            reason: String::new(),
            message: "API rate limit exceeded".into(),
            limited: true,
        }
    }

    pub(in crate::check) fn missing_permission() -> clients::Error {
        clients::Error::Status {
            exists: false,
            call: "a.call",
            status: StatusCode::FORBIDDEN,
            reason: String::new(),
            message: "Resource not accessible by integration".into(),
            limited: false,
        }
    }

    pub(in crate::check) fn unanswered() -> clients::Error {
        clients::Error::Unanswered { call: "a.call", why: "connection refused".into() }
    }

    #[test]
    fn a_finding_is_a_line_and_its_fix_another() {
        let mut found = Findings::of("VM gpu-1\u{1b}[2J");
        found.fail("status", "gone\nfor good", "look for it");
        found.unknown("permissions", unanswered());
        found.failed("labels", &answered(403), "grant it");
        found.failed("labels", &answered(502), "grant it");
        let lines: Vec<String> = found.done().iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "✗ VM gpu-1 [2J: status: gone for good\n    -> look for it",
                "? VM gpu-1 [2J: permissions: could not be checked: a.call: no answer: connection refused",
                "✗ VM gpu-1 [2J: labels: a.call: 403 Forbidden: no\n    -> grant it",
                "? VM gpu-1 [2J: labels: could not be checked: a.call: 502 Bad Gateway: no",
            ]
        );
    }
}
