//! Credentials for Google's APIs, shared by the clients of Compute Engine and Cloud Tasks.

use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use gcp_auth::{Token, TokenProvider};
use http::{HeaderValue, Response, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tracing::instrument::WithSubscriber;
use tracing::{Dispatch, Event, Metadata, Subscriber, span};

use super::Error;
use super::transport::{Outgoing, Transport, bearer};
use crate::clock::Deadline;

const SCOPES: [&str; 1] = ["https://www.googleapis.com/auth/cloud-platform"];

/// The advice if no credentials are found.
const NOWHERE: &str = "no credentials found: on Cloud Run give the service an account, elsewhere set \
                       GOOGLE_APPLICATION_CREDENTIALS";

/// Access tokens for Google's APIs; cheap to clone.
#[derive(Clone)]
pub struct Credentials {
    /// The provider to use, or else the environment's.
    given: Option<Arc<dyn TokenProvider>>,
    /// Locked while a token is fetched: otherwise gcp_auth lets each caller that comes meanwhile fetch another one, one
    /// after the other.
    state: Arc<Mutex<State>>,
    refusals: Refusals,
}

#[derive(Default)]
struct State {
    /// It caches its tokens until they expire.
    provider: Option<Arc<dyn TokenProvider>>,
    /// The last token, and its `Authorization` header.
    last: Option<(Arc<Token>, HeaderValue)>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials")
    }
}

impl Credentials {
    /// Uses tokens of `provider`.
    pub fn new(provider: Arc<dyn TokenProvider>) -> Self {
        Self { given: Some(provider), ..Self::from_environment() }
    }

    /// Application Default Credentials: the file named by GOOGLE_APPLICATION_CREDENTIALS, gcloud's own, the metadata
    /// server. They are searched for when the first token is needed, since start-up must not wait for a network.
    pub fn from_environment() -> Self {
        Self { given: None, state: Arc::default(), refusals: Refusals::default() }
    }

    /// Sends the request with a token, and with another one if that is refused.
    pub(super) async fn send(
        &self,
        transport: &Transport,
        request: Outgoing,
        deadline: Deadline,
    ) -> Result<Response<Bytes>, Error> {
        let token = self.header(request.call(), deadline).await?;
        let answer = transport.send(&request.clone().bearer(&token), deadline).await;
        let is_refused =
            answer.as_ref().is_err_and(|error| error.status() == Some(StatusCode::UNAUTHORIZED));
        if !is_refused {
            return answer;
        }
        self.drop_token(&token).await;
        let token = self.header(request.call(), deadline).await?;
        transport.send(&request.bearer(&token), deadline).await
    }

    /// The `Authorization` header for `call`. gcp_auth sets no time limit of its own.
    ///
    /// # Errors
    /// Fails if no token could be fetched in time.
    pub async fn header(
        &self,
        call: &'static str,
        deadline: Deadline,
    ) -> Result<HeaderValue, Error> {
        let fetch = self.fetch(call).with_subscriber(self.refusals.dispatch.clone());
        tokio::time::timeout(deadline.remaining() / 2, fetch)
            .await
            .map_err(|_| Error::Unanswered { call, why: "no access token: out of time".into() })?
    }

    async fn fetch(&self, call: &'static str) -> Result<HeaderValue, Error> {
        let mut state = self.state.lock().await;
        let failed = |error| self.failure(call, error);
        let provider = match (&state.provider, &self.given) {
            (Some(provider), _) | (None, Some(provider)) => provider.clone(),
            (None, None) => gcp_auth::provider().await.map_err(failed)?,
        };
        let token = provider.token(&SCOPES).await.map_err(failed)?;
        state.provider = Some(provider);
        match &state.last {
            Some((known, header)) if Arc::ptr_eq(known, &token) => Ok(header.clone()),
            _ => {
                let header = bearer(call, token.as_str())?;
                Ok(state.last.insert((token, header)).1.clone())
            }
        }
    }

    /// Forgets a token that was refused before its expiry, with the provider that would give it again.
    async fn drop_token(&self, refused: &HeaderValue) {
        let mut state = self.state.lock().await;
        if state.last.as_ref().is_some_and(|(_, header)| header == refused) {
            *state = State::default();
        }
    }

    fn failure(&self, call: &'static str, error: gcp_auth::Error) -> Error {
        let no_token = |why: &str| Error::NoToken { call, why: super::tidy(why) };
        match error {
            gcp_auth::Error::NoAuthMethod(..) => no_token(NOWHERE),
            // The parser's message may quote a key file.
            gcp_auth::Error::Json(what, _) => no_token(what),
            // The token endpoint did not answer.
            unanswered @ (gcp_auth::Error::Http(..)
            | gcp_auth::Error::Other("HTTP request failed", _)) => Error::Unanswered {
                call,
                why: super::tidy(&format!("no access token: {unanswered}")),
            },
            error => match self.refusals.take() {
                Some(words) => no_token(&format!("{error}: {words}")),
                None => no_token(&error.to_string()),
            },
        }
    }
}

/// The words of the token endpoint when it refuses. gcp_auth has them in its log lines only, several for each attempt, so
/// its lines come here instead of into the service's log.
#[derive(Clone)]
struct Refusals {
    last: Arc<std::sync::Mutex<Option<String>>>,
    dispatch: Dispatch,
}

impl Default for Refusals {
    fn default() -> Self {
        let last: Arc<std::sync::Mutex<Option<String>>> = Arc::default();
        let listener = Listener(last.clone());
        Self { last, dispatch: Dispatch::new(listener) }
    }
}

impl Refusals {
    fn take(&self) -> Option<String> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

struct Listener(Arc<std::sync::Mutex<Option<String>>>);

/// Events without spans. tracing-subscriber's registry would close the parents of its spans in the service's own subscriber
/// when a fetch is dropped halfway, which panics.
impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && metadata.target().starts_with("gcp_auth")
    }

    fn event(&self, event: &Event<'_>) {
        event.record(&mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
            if field.name() == "body" {
                let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                *last = words(&format!("{value:?}"));
            }
        });
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// The error in an answer of the token endpoint, RFC 6749. Anything else in it is not repeated.
fn words(body: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Refusal {
        error: String,
        #[serde(default)]
        error_description: String,
    }
    let Refusal { error, error_description } = serde_json::from_str(body).ok()?;
    Some(format!("{error}{}", super::text(": ", &error_description)))
}

/// The body of `testIamPermissions`.
#[derive(Serialize)]
pub(super) struct Permissions<'a> {
    pub(super) permissions: &'a [&'a str],
}

/// The permissions that the caller has. Google omits an empty list.
#[derive(Deserialize)]
pub(super) struct Held {
    #[serde(default)]
    pub(super) permissions: Vec<String>,
}
