//! One thing that was looked at, and what came of it.

use std::fmt;

use serde::Serialize;

use crate::clients;

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is as it has to be.
    Ok,
    /// It works, but hardly as it is meant to.
    Warning,
    /// It has to be fixed.
    Error,
    /// Nobody answered: nothing is known of it.
    NotAsked,
}

/// What is found of one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Of what, such as `VM gpu-1 in us-central1-a`.
    pub subject: String,
    /// What of it, in a word or two.
    pub what: &'static str,
    /// What came of it.
    pub outcome: Outcome,
    /// What was seen.
    pub detail: String,
    /// What to do about it, if something can be done.
    pub fix: Option<String>,
}

/// Findings of one subject, in the making.
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

    pub(super) fn not_asked(&mut self, what: &'static str, why: impl fmt::Display) {
        self.push(Outcome::NotAsked, what, format!("could not be asked: {why}"), None);
    }

    /// A call that did not succeed: something to fix, unless nobody answered.
    pub(super) fn failed(
        &mut self,
        what: &'static str,
        error: &clients::Error,
        fix: impl Into<String>,
    ) {
        if error.may_pass() {
            self.not_asked(what, error);
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

/// A line, and another where there is something to do.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.outcome {
            Outcome::Ok => '✓',
            Outcome::Warning => '!',
            Outcome::Error => '✗',
            Outcome::NotAsked => '?',
        };
        let Self { subject, what, detail, fix, .. } = self;
        // An API's words may be anything; a line stays a line.
        let visible =
            |text: &str| text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let (subject, detail): (String, String) = (visible(subject), visible(detail));
        write!(f, "{mark} {subject}: {what}: {detail}")?;
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

    /// What is not right: each complaint begins like this, and there are no others.
    #[track_caller]
    pub(in crate::check) fn complains(found: &[Finding], expected: &[&str]) {
        let bad: Vec<String> = found
            .iter()
            .filter(|finding| finding.outcome != Outcome::Ok)
            .map(|finding| {
                let line = finding.to_string();
                assert_eq!(
                    finding.fix.is_some(),
                    finding.outcome != Outcome::NotAsked,
                    "what can be fixed says how: {line}"
                );
                let rest = line.strip_prefix(|mark| "✗!?".contains(mark)).unwrap();
                let mark = line.strip_suffix(rest).unwrap();
                let subject = format!(" {}: ", finding.subject);
                format!("{mark} {}", rest.strip_prefix(&subject).unwrap())
            })
            .collect();
        let same = bad.len() == expected.len()
            && bad.iter().zip(expected).all(|(line, begins)| line.starts_with(begins));
        assert!(same, "{bad:#?} instead of {expected:#?}");
    }

    pub(in crate::check) fn answered(status: u16) -> clients::Error {
        clients::Error::Status {
            call: "a.call",
            status: StatusCode::from_u16(status).unwrap(),
            reason: String::new(),
            message: "no".into(),
            limited: status == 429,
        }
    }

    /// A 403 that says nothing of permissions.
    pub(in crate::check) fn limited() -> clients::Error {
        clients::Error::Status {
            call: "a.call",
            status: StatusCode::FORBIDDEN,
            reason: String::new(),
            message: "API rate limit exceeded".into(),
            limited: true,
        }
    }

    pub(in crate::check) fn unanswered() -> clients::Error {
        clients::Error::Unanswered { call: "a.call", why: "connection refused".into() }
    }

    #[test]
    fn a_finding_is_a_line_and_its_fix_another() {
        let mut found = Findings::of("VM gpu-1\u{1b}[2J");
        found.fail("status", "gone\nfor good", "look for it");
        found.not_asked("permissions", unanswered());
        found.failed("labels", &answered(403), "grant it");
        found.failed("labels", &answered(502), "grant it");
        let lines: Vec<String> = found.done().iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "✗ VM gpu-1 [2J: status: gone for good\n    -> look for it",
                "? VM gpu-1 [2J: permissions: could not be asked: a.call: no answer: connection refused",
                "✗ VM gpu-1 [2J: labels: a.call: 403 Forbidden: no\n    -> grant it",
                "? VM gpu-1 [2J: labels: could not be asked: a.call: 502 Bad Gateway: no",
            ]
        );
    }
}
