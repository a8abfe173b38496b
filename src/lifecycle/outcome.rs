//! The outcome of an event: for the reply, the log and the header.

use std::fmt;

use crate::clock::Timestamp;

/// The words of the replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// A pass was scheduled, and nothing else has to happen now.
    Ok,
    Starting,
    AlreadyRunning,
    /// The VM cannot be started yet; a pass will.
    StartScheduled,
    Stopping,
    AlreadyStopped,
    /// The VM is not stopped yet; a pass will decide.
    StopScheduled,
    /// A job runs on the VM or waits for it, or its runner is busy.
    Busy,
    /// GitHub could not be queried, so the VM is not stopped.
    Unknown,
    /// The VM is idle according to one source, or to a scan of several passes: the next pass confirms it.
    Confirming,
    Held,
    Released,
    /// The VM was needed after the pass was scheduled; another pass decides.
    Superseded,
    /// No entry names the VM, or the project has no such VM.
    NotConfigured,
}

impl Status {
    /// The word as the replies spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Starting => "starting",
            Self::AlreadyRunning => "already_running",
            Self::StartScheduled => "start_scheduled",
            Self::Stopping => "stopping",
            Self::AlreadyStopped => "already_stopped",
            Self::StopScheduled => "stop_scheduled",
            Self::Busy => "busy",
            Self::Unknown => "unknown",
            Self::Confirming => "confirming",
            Self::Held => "held",
            Self::Released => "released",
            Self::Superseded => "superseded",
            Self::NotConfigured => "not_configured",
        }
    }
}

/// A decision, its evidence, and the next pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub status: Status,
    /// Compute Engine's operation, if one was begun.
    pub operation: Option<String>,
    /// The evidence, as a fragment of a sentence.
    pub because: String,
    /// The due time of the next pass, if one is pending.
    pub next_check: Option<Timestamp>,
}

impl Outcome {
    pub(super) fn new(status: Status, because: impl Into<String>) -> Self {
        Self { status, operation: None, because: because.into(), next_check: None }
    }

    /// Puts the event in front of the evidence.
    pub(super) fn because_of(mut self, event: &str) -> Self {
        let separator = if self.because.is_empty() { "" } else { ", " };
        self.because.insert_str(0, &format!("{event}{separator}"));
        self
    }

    pub(super) fn next_check_at(self, due: Timestamp) -> Self {
        Self { next_check: Some(due), ..self }
    }

    pub(super) fn with_operation(self, operation: Option<String>) -> Self {
        Self { operation, ..self }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.status.as_str())?;
        if !self.because.is_empty() {
            write!(f, ": {}", self.because)?;
        }
        match self.next_check {
            Some(due) => write!(f, "; next check {}", due.time_of_day()),
            None => Ok(()),
        }
    }
}
