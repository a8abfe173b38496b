//! Findings of the resync.

use std::fmt;

use serde::Serialize;

use super::error::Error;

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub(super) level: Level,
    found: String,
    /// None if there is nothing that the service could do.
    pub(super) did: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Level {
    /// All is well, or will be.
    Info,
    /// Something was lost on the way, or may cost something.
    Warning,
    /// A job will not run until an operator does something.
    Error,
}

impl Finding {
    pub(super) fn new(level: Level, found: String) -> Self {
        Self { level, found, did: None }
    }

    pub(super) fn after(self, done: Result<String, Error>) -> Self {
        match done {
            Ok(did) => Self { did: Some(did), ..self },
            Err(error) => Self {
                level: Level::Error,
                found: format!("{}; nothing was done: {error}", self.found),
                did: None,
            },
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.found)?;
        self.did.as_ref().map_or(Ok(()), |did| write!(f, "; {did}"))
    }
}
