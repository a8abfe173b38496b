//! Faults on demand: what a network and a cloud do to a call on a bad day.
//!
//! A fault strikes one API call, before the emulator sees it or after. The difference matters to a client
//! that repeats: after the handler the effect is there, and only the answer is missing. Off unless asked.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::StatusCode;

use super::{Api, lock};
use crate::clock::Timestamp;

/// What happens to one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call has no effect and is answered with this.
    Before(StatusCode, ErrorBody),
    /// The call has its effect, and is answered with this status and the API's own error body.
    After(StatusCode),
    /// The call arrives this much later. Counted as sockets count, whatever the pace of the clock.
    Delay(Duration),
    /// The call has its effect at once and is answered this much later.
    Late(Duration),
    /// The call has no effect and is never answered.
    Hang,
    /// The call has its effect and is never answered.
    Lost,
}

/// What an error answer carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ErrorBody {
    /// The API's own error object.
    Api,
    /// The API's own error object with this reason (Compute Engine) or message.
    Reason(String),
    /// A proxy's page.
    Html,
    /// Nothing.
    Empty,
    /// JSON that breaks off.
    Truncated,
}

/// A call as a fault hook sees it.
#[derive(Clone, Copy, Debug)]
pub struct CallInfo<'a> {
    /// When it arrived.
    pub at: Timestamp,
    /// Which API it is for.
    pub api: Api,
    /// The method's name, as in `instances.get`; see [`super::Call`].
    pub method: &'a str,
    /// Path and query.
    pub target: &'a str,
}

type Hook = Box<dyn FnMut(&CallInfo<'_>) -> Option<Fault> + Send>;

/// Decides which calls fail. Cheap to clone; all clones agree.
#[derive(Clone, Default)]
pub struct Faults(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    scripted: BTreeMap<String, VecDeque<Fault>>,
    hook: Option<Hook>,
}

impl Faults {
    /// Asks `hook` about every call for which no fault is scripted. It must not use these `Faults`.
    pub fn on(&self, hook: impl FnMut(&CallInfo<'_>) -> Option<Fault> + Send + 'static) {
        lock(&self.0).hook = Some(Box::new(hook));
    }

    /// No faults any more, scripted or by hook.
    pub fn off(&self) {
        *lock(&self.0) = State::default();
    }

    /// The next call of `method` (as in `instances.start`) gets `fault`; repeated, they queue up.
    pub fn next(&self, method: &str, fault: Fault) {
        lock(&self.0).scripted.entry(method.to_owned()).or_default().push_back(fault);
    }

    pub(super) fn strike(&self, call: &CallInfo<'_>) -> Option<Fault> {
        let mut state = lock(&self.0);
        let scripted = state.scripted.get_mut(call.method).and_then(VecDeque::pop_front);
        scripted.or_else(|| state.hook.as_mut().and_then(|hook| hook(call)))
    }
}
