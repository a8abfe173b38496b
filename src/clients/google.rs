//! Credentials for Google's APIs, shared by the clients of Compute Engine and Cloud Tasks.

use std::sync::Arc;

use async_trait::async_trait;
use gcp_auth::{Token, TokenProvider};
use http::HeaderValue;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, OnceCell};

use super::Error;
use super::transport::bearer;
use crate::clock::Deadline;

const SCOPES: [&str; 1] = ["https://www.googleapis.com/auth/cloud-platform"];

/// The advice if no credentials are found.
const NOWHERE: &str = "no credentials found: on Cloud Run give the service an account, elsewhere set \
                       GOOGLE_APPLICATION_CREDENTIALS";

/// Access tokens for Google's APIs; cheap to clone.
#[derive(Clone)]
pub struct Credentials {
    provider: Arc<dyn TokenProvider>,
    /// The header of the last token. Locked while a token is fetched: otherwise gcp_auth lets each caller that comes
    /// meanwhile fetch another one, one after the other.
    last: Arc<Mutex<Option<Header>>>,
}

/// A token, and its `Authorization` header.
type Header = (Arc<Token>, HeaderValue);

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials")
    }
}

impl Credentials {
    /// Uses tokens of `provider`, which caches them until they expire.
    pub fn new(provider: Arc<dyn TokenProvider>) -> Self {
        Self { provider, last: Arc::default() }
    }

    /// Application Default Credentials: the file named by GOOGLE_APPLICATION_CREDENTIALS, gcloud's own, the metadata
    /// server. They are searched for when the first token is needed, since start-up must not wait for a network.
    pub fn from_environment() -> Self {
        Self::new(Arc::new(Ambient(OnceCell::new())))
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
        let no_token = |why: String| Error::NoToken { call, why: super::tidy(&why) };
        tokio::time::timeout(deadline.remaining() / 2, async {
            let mut last = self.last.lock().await;
            let token = self.provider.token(&SCOPES).await.map_err(|error| match error {
                gcp_auth::Error::NoAuthMethod(..) => no_token(NOWHERE.into()),
                // The parser's message may quote a key file.
                gcp_auth::Error::Json(what, _) => no_token(what.into()),
                // The token endpoint did not answer.
                unanswered @ (gcp_auth::Error::Http(..)
                | gcp_auth::Error::Other("HTTP request failed", _)) => Error::Unanswered {
                    call,
                    why: super::tidy(&format!("no access token: {unanswered}")),
                },
                error => no_token(error.to_string()),
            })?;
            match last.as_ref() {
                Some((known, header)) if Arc::ptr_eq(known, &token) => Ok(header.clone()),
                _ => {
                    let header = bearer(call, token.as_str())?;
                    Ok(last.insert((token, header)).1.clone())
                }
            }
        })
        .await
        .map_err(|_| Error::Unanswered { call, why: "no access token: out of time".into() })?
    }
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

/// The credentials of the environment, searched for at first use.
struct Ambient(OnceCell<Arc<dyn TokenProvider>>);

impl Ambient {
    async fn provider(&self) -> Result<&Arc<dyn TokenProvider>, gcp_auth::Error> {
        self.0.get_or_try_init(gcp_auth::provider).await
    }
}

#[async_trait]
impl TokenProvider for Ambient {
    async fn token(&self, scopes: &[&str]) -> Result<Arc<Token>, gcp_auth::Error> {
        self.provider().await?.token(scopes).await
    }

    async fn project_id(&self) -> Result<Arc<str>, gcp_auth::Error> {
        self.provider().await?.project_id().await
    }
}
