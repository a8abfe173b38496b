//! What became of an event, and why: for the reply, the log and the header.

use std::fmt;

use crate::clock::Timestamp;

/// The words of the replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Nothing is left to do with the VM itself: a stop was scheduled, or the job of a start check is settled.
    Ok,
    /// The VM was told to start, or is booting.
    Starting,
    /// The VM is up.
    AlreadyRunning,
    /// The VM cannot be started now; a task will.
    StartScheduled,
    /// The VM was told to stop, or is stopping.
    Stopping,
    /// The VM is stopped.
    AlreadyStopped,
    /// The VM cannot be judged now; a task will look again.
    StopScheduled,
    /// A job runs on the VM, or waits for it.
    Busy,
    /// A witness could not be heard, so the VM is not stopped.
    Unknown,
    /// One witness alone says idle; it is asked once more.
    Confirming,
    /// The VM carries the hold label.
    Held,
    /// An operator took the hold label away.
    Released,
    /// A newer task stands for the VM.
    Superseded,
    /// No entry names the VM, or the project has no such VM.
    NotConfigured,
}

impl Status {
    /// As the replies spell it.
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

/// What was decided, on what evidence, and when it is looked at again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The decision.
    pub status: Status,
    /// Compute Engine's operation, if one was begun.
    pub operation: Option<String>,
    /// The evidence, in words.
    pub because: String,
    /// When the next task looks, if one does.
    pub again: Option<Timestamp>,
}

impl Outcome {
    /// This decision, for this reason, and nothing is left to do.
    pub(super) fn new(status: Status, because: impl Into<String>) -> Self {
        Self { status, operation: None, because: because.into(), again: None }
    }

    /// This event was the reason; what was said so far stood in the way of more.
    pub(super) fn because_of(mut self, event: &str) -> Self {
        let obstacle = if self.because.is_empty() { "" } else { ", " };
        self.because.insert_str(0, &format!("{event}{obstacle}"));
        self
    }

    /// Another task looks at this time.
    pub(super) fn again_at(self, due: Timestamp) -> Self {
        Self { again: Some(due), ..self }
    }

    /// Compute Engine began this operation.
    pub(super) fn with_operation(self, operation: Option<String>) -> Self {
        Self { operation, ..self }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.status.as_str())?;
        if !self.because.is_empty() {
            write!(f, ", {}", self.because)?;
        }
        if let Some(again) = self.again {
            write!(f, "; look again {}", again.time_of_day())?;
        }
        Ok(())
    }
}
