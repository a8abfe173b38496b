//! One request in, one response out.
//!
//! The seam between the service and the network: in production [`over_tls`], in a simulation the emulators' Routers,
//! called in process. On top come a time limit, a second attempt, and the redirects of renamed repositories.

use std::path::Path;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;

use super::redirects::Redirects;
use super::{Error, budget};
use crate::clock::Deadline;
use crate::secret::Secret;

/// A service that sends a request and returns its response.
pub type HttpService = BoxCloneSyncService<Request<Full<Bytes>>, Response<Bytes>, BoxError>;

/// The error of a connection.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The largest response body. A page of a hundred jobs has half a megabyte.
const LARGEST_ANSWER: usize = 16 << 20;

/// The pause before the second attempt, unless the response sets one.
const PAUSE: Duration = Duration::from_millis(200);

/// The variable that names a file of further root certificates, in PEM: a GitHub Enterprise Server often has one of a
/// private authority.
const ROOTS_FILE: &str = "SSL_CERT_FILE";

/// The HTTP service of production: HTTP/1.1 or 2, with rustls. The public root certificates are compiled in, so the
/// image needs none; those of the file that `SSL_CERT_FILE` names are added.
///
/// # Errors
/// Fails if that file cannot be read or has no certificate, or if the TLS library refuses its own defaults.
pub fn over_tls() -> Result<HttpService, BoxError> {
    let file = std::env::var_os(ROOTS_FILE).filter(|file| !file.is_empty());
    with_roots(file.as_deref().map(Path::new))
}

fn with_roots(more: Option<&Path>) -> Result<HttpService, BoxError> {
    let mut roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(file) = more {
        add_roots(&mut roots, file).map_err(|why| format!("{ROOTS_FILE}: {why}"))?;
    }
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    #[expect(clippy::disallowed_methods, reason = "this is the one client")]
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(Duration::from_secs(3))
        .no_proxy()
        .build()?;
    Ok(BoxCloneSyncService::new(tower::service_fn(move |request| {
        exchange(client.clone(), request)
    })))
}

fn add_roots(roots: &mut rustls::RootCertStore, file: &Path) -> Result<(), BoxError> {
    let mut added = 0;
    for certificate in CertificateDer::pem_file_iter(file)? {
        roots.add(certificate?)?;
        added += 1;
    }
    if added == 0 { Err("the file has no certificate in PEM format".into()) } else { Ok(()) }
}

async fn exchange(
    client: reqwest::Client,
    request: Request<Full<Bytes>>,
) -> Result<Response<Bytes>, BoxError> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let mut answer = client.execute(Request::from_parts(head, body).try_into()?).await?;
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = answer.status();
    *response.headers_mut() = std::mem::take(answer.headers_mut());
    let mut body = BytesMut::new();
    while let Some(chunk) = answer.chunk().await? {
        if body.len() + chunk.len() > LARGEST_ANSWER {
            return Err("the answer is larger than 16 MiB".into());
        }
        if !budget::take(chunk.len()) {
            return Err("the answers for this request are larger than 128 MiB".into());
        }
        body.extend_from_slice(&chunk);
    }
    *response.body_mut() = body.freeze();
    Ok(response)
}

/// Sends requests; cheap to clone.
#[derive(Clone)]
pub struct Transport {
    http: HttpService,
    redirects: Redirects,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Transport")
    }
}

impl Transport {
    /// Sends through `http`.
    pub fn new(http: HttpService) -> Self {
        Self { http, redirects: Redirects::default() }
    }

    /// Makes one attempt. A redirect is followed once, and only if the request may be: any other is a failure.
    async fn exchange(&self, request: &Outgoing) -> Result<Response<Bytes>, BoxError> {
        let url = self.redirects.current(&request.url);
        let answer = self.http.clone().oneshot(request.to_http(&url)).await?;
        if !request.follows || !answer.status().is_redirection() {
            return Ok(answer);
        }
        match self.redirects.follow(&url, answer.headers()) {
            Some(target) => self.http.clone().oneshot(request.to_http(&target)).await,
            None => Ok(answer),
        }
    }

    /// Sends the request and returns a 2xx response. A failure that may be temporary is repeated once, if the time
    /// allows. An attempt gets at most half of the remaining time.
    ///
    /// # Errors
    /// Fails if the last attempt got no response, or one other than 2xx.
    pub async fn send(
        &self,
        request: &Outgoing,
        deadline: Deadline,
    ) -> Result<Response<Bytes>, Error> {
        let (error, pause) = match self.attempt(request, deadline).await {
            Ok(answer) => return Ok(answer),
            Err(Failed { error, again_after: Some(pause) })
                if !request.once && pause < deadline.remaining() / 2 =>
            {
                (error, pause)
            }
            Err(Failed { error, .. }) => return Err(error),
        };
        tracing::debug!(%error, "once more");
        tokio::time::sleep(pause).await;
        self.attempt(request, deadline).await.map_err(|failed| failed.error)
    }

    async fn attempt(
        &self,
        request: &Outgoing,
        deadline: Deadline,
    ) -> Result<Response<Bytes>, Failed> {
        let call = request.call;
        let unanswered = |why: String| Failed {
            error: Error::Unanswered { call, why },
            again_after: Some(PAUSE),
        };
        let answer = tokio::time::timeout(deadline.remaining() / 2, self.exchange(request))
            .await
            .map_err(|_| unanswered("out of time".into()))?
            .map_err(|error| unanswered(innermost(error.as_ref())))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let error = Error::from_answer(call, &answer, &request.secrets);
        Err(Failed { again_after: pause_before_repeating(&answer, &error), error })
    }
}

/// A failed attempt, and the pause before another that may succeed.
struct Failed {
    error: Error,
    again_after: Option<Duration>,
}

/// `Retry-After` if given; otherwise a pause for an error of the server's own, and for a limit that says nothing about
/// its end: Google's limits pass within a second.
fn pause_before_repeating(answer: &Response<Bytes>, error: &Error) -> Option<Duration> {
    let told =
        answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let passing =
        answer.status().is_server_error() && answer.status() != StatusCode::NOT_IMPLEMENTED;
    let is_brief = error.is_limited() && !answer.headers().contains_key("x-ratelimit-remaining");
    told.map(Duration::from_secs).or((passing || is_brief).then_some(PAUSE))
}

/// The innermost cause. reqwest's own message is only "error sending request". The URL is in neither.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.last().map(|error| super::tidy(&error.to_string())).unwrap_or_default()
}

/// A request to one of the APIs. It can be sent more than once.
#[derive(Clone)]
pub struct Outgoing {
    call: &'static str,
    method: Method,
    url: String,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Bytes,
    follows: bool,
    once: bool,
    /// Texts in the request that no error may repeat.
    secrets: Vec<Secret>,
}

/// Without the body, which may hold the shared secret.
impl std::fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Outgoing {{ {}: {} {} }}", self.call, self.method, self.url)
    }
}

impl Outgoing {
    /// A GET of `url`; `call` is the method's name in the API's reference.
    pub fn get(call: &'static str, url: String) -> Self {
        Self {
            call,
            method: Method::GET,
            url,
            headers: Vec::new(),
            body: Bytes::new(),
            follows: false,
            once: false,
            secrets: Vec::new(),
        }
    }

    /// A POST to `url`, with an empty body unless [`json`](Self::json) sets one.
    pub fn post(call: &'static str, url: String) -> Self {
        Self { method: Method::POST, ..Self::get(call, url) }
    }

    /// A DELETE of `url`. It may be repeated: the second time there is nothing left, which is a 404.
    pub fn delete(call: &'static str, url: String) -> Self {
        Self { method: Method::DELETE, ..Self::get(call, url) }
    }

    /// Appends query parameters.
    #[must_use]
    pub fn query<'a>(mut self, parameters: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let query =
            form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish();
        if !query.is_empty() {
            self.url = format!("{}?{query}", self.url);
        }
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Sets the `Authorization` header.
    #[must_use]
    pub fn bearer(self, token: &HeaderValue) -> Self {
        let text = token.to_str().unwrap_or_default();
        let secret = Secret::new(text.strip_prefix("Bearer ").unwrap_or(text));
        self.header(AUTHORIZATION, token.clone()).containing(secret)
    }

    /// Names a secret in the request, so that no error repeats it.
    #[must_use]
    pub fn containing(mut self, secret: Secret) -> Self {
        self.secrets.push(secret);
        self
    }

    /// Lets no second attempt follow a failed one.
    #[must_use]
    pub fn once(mut self) -> Self {
        self.once = true;
        self
    }

    /// The method's name in the API's reference.
    pub fn call(&self) -> &'static str {
        self.call
    }

    /// Lets a redirect to another path of the same API be followed. Only a GET means the same there.
    #[must_use]
    pub fn following_redirects(mut self) -> Self {
        self.follows = self.method == Method::GET;
        self
    }

    /// Sets a JSON body.
    ///
    /// # Errors
    /// Fails if `body` cannot be written as JSON.
    pub fn json(mut self, body: &impl Serialize) -> Result<Self, Error> {
        let call = self.call;
        let json = serde_json::to_vec(body)
            .map_err(|why| Error::Unreadable { call, why: why.to_string() })?;
        self.body = json.into();
        Ok(self.header(CONTENT_TYPE, HeaderValue::from_static("application/json")))
    }

    fn to_http(&self, url: &str) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = url.parse().unwrap_or_default();
        let headers = request.headers_mut();
        headers.insert(
            USER_AGENT,
            HeaderValue::from_static(concat!("runner-manager/", env!("CARGO_PKG_VERSION"))),
        );
        headers.extend(self.headers.iter().cloned());
        // Over HTTP/1.1 an empty POST needs its length, or Google answers 411.
        if self.method == Method::POST {
            headers.insert(CONTENT_LENGTH, self.body.len().into());
        }
        request
    }
}

/// `Bearer` and the token, flagged so that no `Debug` shows it.
pub(super) fn bearer(call: &'static str, token: &str) -> Result<HeaderValue, Error> {
    let mut value = HeaderValue::try_from(format!("Bearer {token}"))
        .map_err(|_| Error::NoToken { call, why: "the token is not visible ASCII".into() })?;
    value.set_sensitive(true);
    Ok(value)
}

/// Parses the body of a 2xx response.
///
/// # Errors
/// Fails if the body is not the JSON that `T` needs.
pub(super) fn read<T: DeserializeOwned>(
    call: &'static str,
    answer: &Response<Bytes>,
) -> Result<T, Error> {
    // The parser's message may quote the body, which may hold a token.
    serde_json::from_slice(answer.body()).map_err(|error| {
        let (what, line, column) = (error.classify(), error.line(), error.column());
        Error::Unreadable { call, why: format!("{what:?} error at line {line}, column {column}") }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn pause(answer: &Response<Bytes>) -> Option<Duration> {
        pause_before_repeating(answer, &Error::from_answer("a.call", answer, &[]))
    }

    #[track_caller]
    fn pauses(status: u16, retry_after: Option<&str>, seconds: Option<u64>) {
        let mut answer = Response::builder().status(status);
        if let Some(told) = retry_after {
            answer = answer.header(RETRY_AFTER, told);
        }
        assert_eq!(pause(&answer.body(Bytes::new()).unwrap()), seconds.map(Duration::from_secs));
    }

    #[test]
    fn an_attempt_is_repeated_when_the_answer_says_so() {
        pauses(429, Some("3"), Some(3));
        pauses(503, Some("7"), Some(7));
        pauses(403, Some("60"), Some(60));
        pauses(404, None, None);
        pauses(501, None, None);
        // A date is not parsed, and a fault of the server's own passes soon.
        let soon =
            Response::builder().status(503).header(RETRY_AFTER, "Fri, 31 Dec 1999 23:59:59 GMT");
        assert_eq!(pause(&soon.body(Bytes::new()).unwrap()), Some(PAUSE));
        // Google's limits do not say when they end; GitHub's do.
        let limited = |answer: http::response::Builder, body: &'static str| {
            pause(&answer.body(Bytes::from(body)).unwrap())
        };
        let exceeded = r#"{"error": {"errors": [{"reason": "rateLimitExceeded"}]}}"#;
        assert_eq!(limited(Response::builder().status(429), ""), Some(PAUSE));
        assert_eq!(limited(Response::builder().status(403), exceeded), Some(PAUSE));
        let exhausted = Response::builder().status(403).header("x-ratelimit-remaining", "0");
        assert_eq!(limited(exhausted, ""), None);
    }

    /// Answers each request for `/old` with a redirect to `location`, and any other with 200; lists the requests.
    fn redirecting(location: &'static str) -> (Transport, Arc<Mutex<Vec<String>>>) {
        let sent: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = sent.clone();
        let http = tower::service_fn(move |request: Request<Full<Bytes>>| {
            log.lock().unwrap().push(format!("{} {}", request.method(), request.uri()));
            let old = request.uri().path().starts_with("/old");
            let answer = Response::builder().status(if old { 301 } else { 200 });
            let answer = answer.header(http::header::LOCATION, location).body(Bytes::new());
            std::future::ready(answer.map_err(BoxError::from))
        });
        (Transport::new(BoxCloneSyncService::new(http)), sent)
    }

    #[tokio::test]
    async fn only_a_get_that_may_be_is_redirected_and_only_within_its_api() {
        const OLD: &str = "https://api.example/old/a";
        let new = "https://api.example/new/a";
        let get = || Outgoing::get("a.call", OLD.into());
        let post = || Outgoing::post("a.call", OLD.into());
        for (request, location, succeeds) in [
            (get().following_redirects(), new, true),
            (get().following_redirects(), "https://other.example/new/a", false),
            (get(), new, false),
            (post(), new, false),
            (post().following_redirects(), new, false),
        ] {
            let (transport, sent) = redirecting(location);
            let deadline = Deadline::after(Duration::from_secs(1));
            let answer = transport.send(&request, deadline).await;
            assert_eq!(answer.is_ok(), succeeds, "{request:?} {location}");
            assert_eq!(sent.lock().unwrap().len(), if succeeds { 2 } else { 1 });
            if succeeds {
                let next = Outgoing::get("a.call", format!("{OLD}/b?c=d"));
                transport.send(&next, deadline).await.unwrap();
                let last = sent.lock().unwrap().last().cloned();
                assert_eq!(last.as_deref(), Some("GET https://api.example/new/a/b?c=d"));
            }
        }
    }

    /// A server of a private authority, which closes after one response.
    async fn private_server() -> (u16, tempfile::NamedTempFile) {
        let authority = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = parameters.self_signed(&authority).unwrap();
        let issuer = rcgen::Issuer::new(parameters, authority);
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &issuer).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let private = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], private)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(tls));
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        #[expect(clippy::disallowed_methods, reason = "a server of its own")]
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let Ok(mut connection) = acceptor.accept(connection).await else { continue };
                let mut buffer = [0; 4096];
                let read = connection.read(&mut buffer).await;
                assert!(read.is_ok_and(|length| length > 0));
                let response =
                    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
                connection.write_all(response).await.ok();
                connection.shutdown().await.ok();
            }
        });
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), root.pem()).unwrap();
        (port, file)
    }

    #[tokio::test]
    async fn a_private_authority_can_be_added() {
        let (port, roots) = private_server().await;
        let ask = async |http: HttpService| {
            let request = Outgoing::get("a.call", format!("https://localhost:{port}/"));
            Transport::new(http).send(&request, Deadline::after(Duration::from_secs(5))).await
        };
        assert!(ask(with_roots(Some(roots.path())).unwrap()).await.is_ok());
        let error = ask(with_roots(None).unwrap()).await.unwrap_err().to_string();
        assert!(error.contains("certificate"), "{error}");
        std::fs::write(roots.path(), "nothing").unwrap();
        for file in [roots.path(), Path::new("/nowhere")] {
            let error = with_roots(Some(file)).err().unwrap().to_string();
            assert!(error.starts_with("SSL_CERT_FILE: "), "{error}");
        }
    }

    #[tokio::test]
    async fn an_answer_without_end_is_not_read_to_the_end() {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
            stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n").await.unwrap();
            let chunk = vec![b' '; 1 << 20];
            while stream.write_all(&chunk).await.is_ok() {}
        };
        let transport = Transport::new(over_tls().unwrap());
        let request = Outgoing::get("a.call", url).once();
        let deadline = Deadline::after(Duration::from_secs(60));
        let (answer, ()) = tokio::join!(transport.send(&request, deadline), server);
        let error = answer.unwrap_err().to_string();
        assert!(error.contains("larger than 16 MiB"), "{error}");
    }
}
