//! What Compute Engine and Cloud Tasks share: how the service shows Google who it is.

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

/// What to do where no credentials are found.
const NOWHERE: &str = "no credentials found: on Cloud Run give the service an account, elsewhere set \
                       GOOGLE_APPLICATION_CREDENTIALS";

/// Access tokens for Google's APIs; cheap to clone.
#[derive(Clone)]
pub struct Credentials {
    provider: Arc<dyn TokenProvider>,
    /// The header of the last token. Held while a token is fetched: gcp_auth has everybody who comes meanwhile
    /// fetch another, one after the other.
    last: Arc<Mutex<Option<Header>>>,
}

/// A token, and the header that says it.
type Header = (Arc<Token>, HeaderValue);

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials")
    }
}

impl Credentials {
    /// Takes tokens from `provider`, which caches them until they expire.
    pub fn new(provider: Arc<dyn TokenProvider>) -> Self {
        Self { provider, last: Arc::default() }
    }

    /// The usual chain: the file that GOOGLE_APPLICATION_CREDENTIALS names, gcloud's own, the metadata server.
    /// It is searched when the first token is needed, not at start-up, which must not wait for a network.
    pub fn from_environment() -> Self {
        Self::new(Arc::new(Ambient(OnceCell::new())))
    }

    /// The `Authorization` header for `call`. gcp_auth sets no time limit of its own.
    ///
    /// # Errors
    /// If no token can be had in time.
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
                // The parser's own words may quote a key file.
                gcp_auth::Error::Json(what, _) => no_token(what.into()),
                // Nobody was there to refuse it.
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

/// The IAM permissions that are asked about.
#[derive(Serialize)]
pub(super) struct Permissions<'a> {
    pub(super) permissions: &'a [&'a str],
}

/// Those of them that the caller has. Where that is none, Google leaves the list out.
#[derive(Deserialize)]
pub(super) struct Held {
    #[serde(default)]
    pub(super) permissions: Vec<String>,
}

/// The credentials that the environment holds, found at first use.
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
