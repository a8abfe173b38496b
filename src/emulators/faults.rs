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
    /// GitHub's error object in these words, whose older answers lack a link.
    GitHub {
        /// The sentence that a caller is told.
        message: String,
        /// The link to an explanation.
        documentation_url: Option<String>,
    },
}

/// GitHub's various answers with a 403 that are not about a missing permission.
/// <https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api>
impl ErrorBody {
    /// A secondary limit, in the words of older servers, which name no limit.
    pub fn abuse_limit() -> Self {
        Self::GitHub {
            message: "You have triggered an abuse detection mechanism. Please wait a few minutes before you try again."
                .to_owned(),
            documentation_url: Some(
                "https://docs.github.com/en/rest/overview/resources-in-the-rest-api#abuse-rate-limits"
                    .to_owned(),
            ),
        }
    }

    /// A secondary limit.
    pub fn secondary_limit() -> Self {
        Self::GitHub {
            message: "You have exceeded a secondary rate limit. Please wait a few minutes before you try again."
                .to_owned(),
            documentation_url: Some(
                "https://docs.github.com/en/free-pro-team@latest/rest/overview/rate-limits-for-the-rest-api#about-secondary-rate-limits"
                    .to_owned(),
            ),
        }
    }

    /// An IP allow list of the organization that lacks the caller's address.
    pub fn ip_allow_list(organization: &str) -> Self {
        let message = format!(
            "Although you appear to have the correct authorization credentials, the `{organization}` organization has \
             an IP allow list enabled, and your IP address is not permitted to access this resource."
        );
        Self::GitHub { message, documentation_url: None }
    }
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
