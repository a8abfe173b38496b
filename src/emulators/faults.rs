//! Injected faults of API calls.
//!
//! A fault applies to one call, before or after the emulator handles it. The difference matters to a client that repeats
//! calls: after the handler the call has had its effect, and only the response is missing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::StatusCode;

use super::{Api, lock};
use crate::clock::Timestamp;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call has no effect, and gets this status and body.
    Before(StatusCode, ErrorBody),
    /// The call has its effect, and gets this status and the API's own error body.
    After(StatusCode),
    /// The call arrives later, by this real time.
    Delay(Duration),
    /// The call has its effect at once, and its response is delayed by this real time.
    Late(Duration),
    /// The call has no effect and no response.
    Hang,
    /// The call has its effect and no response.
    Lost,
}

/// The body of an error response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ErrorBody {
    /// The API's own error object.
    Api,
    /// The API's own error object with this reason (Compute Engine) or message.
    Reason(String),
    /// An HTML page, as of a proxy.
    Html,
    Empty,
    /// Incomplete JSON.
    Truncated,
    /// GitHub's error object. Older servers send no link.
    GitHub {
        message: String,
        documentation_url: Option<String>,
    },
}

/// Bodies of 403 responses of GitHub that are not about a permission.
/// <https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api>
impl ErrorBody {
    /// A secondary limit, as older servers report it.
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

    /// A caller that is not on the organization's IP allow list.
    pub fn ip_allow_list(organization: &str) -> Self {
        let message = format!(
            "Although you appear to have the correct authorization credentials, the `{organization}` organization has \
             an IP allow list enabled, and your IP address is not permitted to access this resource."
        );
        Self::GitHub { message, documentation_url: None }
    }
}

/// The call that a fault hook decides on.
#[derive(Clone, Copy, Debug)]
pub struct CallInfo<'a> {
    /// The time of arrival.
    pub at: Timestamp,
    pub api: Api,
    /// The method's name, as in `instances.get`; see [`super::Call`].
    pub method: &'a str,
    /// Path and query.
    pub target: &'a str,
}

type Hook = Box<dyn FnMut(&CallInfo<'_>) -> Option<Fault> + Send>;

/// The faults to inject; none by default. Cheap to clone; clones share their state.
#[derive(Clone, Default)]
pub struct Faults(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    scripted: BTreeMap<String, VecDeque<Fault>>,
    hook: Option<Hook>,
}

impl Faults {
    /// Calls `hook` for every call without a scripted fault. It must not use this `Faults`.
    pub fn on(&self, hook: impl FnMut(&CallInfo<'_>) -> Option<Fault> + Send + 'static) {
        lock(&self.0).hook = Some(Box::new(hook));
    }

    /// Removes the scripted faults and the hook.
    pub fn off(&self) {
        *lock(&self.0) = State::default();
    }

    /// Scripts a fault for the next call of `method`, such as `instances.start`. Several faults queue up.
    pub fn next(&self, method: &str, fault: Fault) {
        lock(&self.0).scripted.entry(method.to_owned()).or_default().push_back(fault);
    }

    pub(super) fn next_fault(&self, call: &CallInfo<'_>) -> Option<Fault> {
        let mut state = lock(&self.0);
        let scripted = state.scripted.get_mut(call.method).and_then(VecDeque::pop_front);
        scripted.or_else(|| state.hook.as_mut().and_then(|hook| hook(call)))
    }
}
