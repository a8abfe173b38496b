//! HTTP code that the emulators share: parsed requests, routes, and Google's conventions.

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::{FromRequestParts, RawPathParams, Request};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, on};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::{Map, Value, json};

use super::{Api, Cloud};

/// A request with its body.
#[derive(Clone, Debug)]
pub(super) struct Incoming {
    /// Path and query as sent.
    pub(super) target: String,
    pub(super) path: String,
    /// The path's parameters, decoded.
    pub(super) params: BTreeMap<String, String>,
    pub(super) query: BTreeMap<String, String>,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// The scheme and authority of the client's URL, for links in responses.
    pub(super) base: String,
}

impl Incoming {
    /// Reads the request; `None` if its body is incomplete.
    pub(super) async fn read(request: Request) -> Option<Self> {
        let (mut parts, body) = request.into_parts();
        let params = match RawPathParams::from_request_parts(&mut parts, &()).await {
            Ok(params) => params.iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
            Err(_) => BTreeMap::new(),
        };
        let query = parts.uri.query().unwrap_or_default();
        let host = parts.headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let host = parts.uri.authority().map(|authority| authority.as_str()).or(host);
        let scheme = parts.uri.scheme_str().unwrap_or("http");
        Some(Self {
            target: parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
            path: parts.uri.path().to_owned(),
            params,
            query: form_urlencoded::parse(query.as_bytes()).into_owned().collect(),
            base: format!("{scheme}://{}", host.unwrap_or("localhost")),
            headers: parts.headers,
            body: body.collect().await.ok()?.to_bytes(),
        })
    }

    /// A parameter of the path; empty if the route does not have it.
    pub(super) fn param(&self, name: &str) -> &str {
        self.params.get(name).map_or("", String::as_str)
    }

    /// A parameter of the query, unless it is empty.
    pub(super) fn query(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The credential in `Authorization`, if it has one of these schemes.
    pub(super) fn credential(&self, schemes: &[&str]) -> Option<&str> {
        let (scheme, credential) = self.header("authorization")?.split_once(' ')?;
        let known = schemes.iter().any(|known| scheme.eq_ignore_ascii_case(known));
        known.then_some(credential.trim())
    }

    /// Refuses query parameters that the method does not have, as Google does.
    pub(super) fn only(&self, known: &[&str]) -> Result<(), Problem> {
        // The parameters of every method. Newer clients write them with `$`.
        const SYSTEM: [&str; 11] = [
            "access_token",
            "alt",
            "apiVersion",
            "callback",
            "fields",
            "key",
            "oauth_token",
            "prettyPrint",
            "quotaUser",
            "upload_protocol",
            "uploadType",
        ];
        for name in self.query.keys() {
            let plain = name.strip_prefix('$').unwrap_or(name);
            if !known.contains(&name.as_str()) && !SYSTEM.contains(&plain) {
                return Err(Problem::invalid(format!(
                    "Invalid JSON payload received. Unknown name \"{name}\": Cannot bind query \
                     parameter. Field '{name}' could not be found in request message."
                )));
            }
        }
        Ok(())
    }

    /// A boolean of the query; false if missing.
    pub(super) fn flag(&self, name: &str) -> Result<bool, Problem> {
        match self.query(name) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => {
                Err(Problem::invalid(format!("Invalid value at '{name}' (TYPE_BOOL), \"{other}\"")))
            }
        }
    }

    /// A whole number of the query.
    pub(super) fn number(&self, name: &str) -> Result<Option<usize>, Problem> {
        let Some(text) = self.query(name) else { return Ok(None) };
        let bad =
            || Problem::invalid(format!("Invalid value at '{name}' (TYPE_INT32), \"{text}\""));
        text.parse().map(Some).map_err(|_| bad())
    }

    /// The body as JSON; an empty body counts as `{}`.
    pub(super) fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T, Problem> {
        let body: &[u8] = if self.body.is_empty() { b"{}" } else { &self.body };
        serde_json::from_slice(body)
            .map_err(|error| Problem::invalid(format!("Invalid JSON payload received. {error}")))
    }
}

/// An error response of one of Google's APIs.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    /// Compute Engine's machine-readable reason.
    pub(super) reason: String,
    pub(super) message: String,
}

impl Problem {
    pub(super) fn new(status: StatusCode, reason: &str, message: impl Into<String>) -> Self {
        Self { status, reason: reason.to_owned(), message: message.into() }
    }

    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid", message)
    }

    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "notFound", message)
    }

    /// The error response: that of Compute Engine has `errors`, that of Cloud Tasks a `status`, a 401 has both.
    pub(super) fn response(&self, api: Api) -> Response {
        let code = self.status.as_u16();
        let mut error = json!({ "code": code, "message": self.message });
        if api == Api::Compute || self.status == StatusCode::UNAUTHORIZED {
            let limit = self.reason == "rateLimitExceeded";
            let domain = if limit { "usageLimits" } else { "global" };
            error["errors"] =
                json!([{ "message": self.message, "domain": domain, "reason": self.reason }]);
        }
        if api == Api::Tasks || self.status == StatusCode::UNAUTHORIZED {
            error["status"] = json!(rpc_status(self.status));
        }
        json_response(self.status, &json!({ "error": error }))
    }
}

/// The google.rpc.Code of an HTTP status.
fn rpc_status(status: StatusCode) -> &'static str {
    match status.as_u16() {
        400 => "INVALID_ARGUMENT",
        401 => "UNAUTHENTICATED",
        403 => "PERMISSION_DENIED",
        404 => "NOT_FOUND",
        409 => "ALREADY_EXISTS",
        412 => "FAILED_PRECONDITION",
        429 => "RESOURCE_EXHAUSTED",
        500 => "INTERNAL",
        503 => "UNAVAILABLE",
        504 => "DEADLINE_EXCEEDED",
        _ => "UNKNOWN",
    }
}

/// The response of one of Google's APIs: the resource, reduced to the requested `fields`.
pub(super) fn google(
    api: Api,
    call: &Incoming,
    known: &[&str],
    result: Result<Value, Problem>,
) -> Response {
    let mask = call.query("fields").or_else(|| call.query("$fields"));
    let masked = result.and_then(|value| match mask {
        Some(mask) => Mask::parse(mask, known).map(|mask| mask.apply(&value)),
        None => Ok(value),
    });
    match masked {
        Ok(value) => json_response(StatusCode::OK, &value),
        Err(problem) => problem.response(api),
    }
}

pub(super) fn json_response(status: StatusCode, value: &Value) -> Response {
    let kind = (header::CONTENT_TYPE, "application/json; charset=UTF-8");
    (status, [kind], value.to_string()).into_response()
}

/// A partial response's selection: `id,disks(type),scheduling/preemptible`.
/// <https://cloud.google.com/compute/docs/api/how-tos/performance#partial-response>
#[derive(Clone, Debug, Default)]
struct Mask(BTreeMap<String, Mask>);

impl Mask {
    /// Parses a mask. Its top-level names have to be among `known`, so that a client's typing errors are found.
    fn parse(text: &str, known: &[&str]) -> Result<Self, Problem> {
        let bad = |what: &str| Problem::invalid(format!("Invalid field selection {what}"));
        let mut rest = text;
        let mask = Self::list(&mut rest).ok_or_else(|| bad(text))?;
        if !rest.is_empty() {
            return Err(bad(text));
        }
        match mask.0.keys().find(|name| *name != "*" && !known.contains(&name.as_str())) {
            Some(unknown) => Err(bad(unknown)),
            None => Ok(mask),
        }
    }

    fn list(rest: &mut &str) -> Option<Self> {
        let mut mask = Self::default();
        loop {
            let end = rest.find(['/', '(', ')', ',']).unwrap_or(rest.len());
            let (name, after) = rest.split_at(end);
            let name = name.trim();
            if name.is_empty() {
                return None;
            }
            *rest = after;
            let inner = if let Some(after) = rest.strip_prefix('(') {
                *rest = after;
                let inner = Self::list(rest)?;
                *rest = rest.strip_prefix(')')?;
                inner
            } else if let Some(after) = rest.strip_prefix('/') {
                // `a/b,c` selects `a/b` and `c`: only one name follows a slash, and it may have a selection of its own.
                let end = after.find([',', ')']).unwrap_or(after.len());
                let (mut one, after) = after.split_at(end);
                *rest = after;
                Self::list(&mut one)?
            } else {
                Self::default()
            };
            mask.0.entry(name.to_owned()).or_default().0.extend(inner.0);
            match rest.strip_prefix(',') {
                Some(after) => *rest = after,
                None => return Some(mask),
            }
        }
    }

    fn apply(&self, value: &Value) -> Value {
        match value {
            Value::Array(items) => items.iter().map(|item| self.apply(item)).collect(),
            Value::Object(map) if !self.0.is_empty() && !self.0.contains_key("*") => {
                let kept = |(name, inner): (&String, &Self)| {
                    map.get(name).map(|value| (name.clone(), inner.apply(value)))
                };
                Value::Object(self.0.iter().filter_map(kept).collect::<Map<_, _>>())
            }
            other => other.clone(),
        }
    }
}

/// A builder for the router. Every call passes [`Cloud::serve`], which authenticates it, injects faults and records it.
pub(super) struct Routes {
    cloud: Cloud,
    router: Router,
}

impl Routes {
    pub(super) fn new(cloud: &Cloud) -> Self {
        Self { cloud: cloud.clone(), router: Router::new() }
    }

    /// Adds a method of an API, with its name in the API's reference.
    pub(super) fn on<E: Clone + Send + Sync + 'static>(
        mut self,
        method: MethodFilter,
        path: &str,
        (api, name): (Api, &'static str),
        emulator: &E,
        handler: fn(&E, &Incoming) -> Response,
    ) -> Self {
        let (cloud, emulator) = (self.cloud.clone(), emulator.clone());
        let serve = move |request: Request| async move {
            cloud.serve(api, name, request, |call| handler(&emulator, call)).await
        };
        self.router = self.router.route(path, on(method, serve));
        self
    }

    /// The router, which refuses all other paths.
    pub(super) fn finish(self) -> Router {
        let cloud = self.cloud;
        let refuse = move |request: Request| async move {
            let api = Api::of(request.uri().path());
            cloud.serve(api, "unknown", request, |call| no_such_route(api, call)).await
        };
        self.router.fallback(refuse.clone()).method_not_allowed_fallback(refuse)
    }
}

fn no_such_route(api: Api, call: &Incoming) -> Response {
    match api {
        Api::GitHub => super::github::not_found().into_response(),
        _ => Problem::not_found(format!("No route for {}", call.path)).response(api),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_selects_only_the_fields_that_it_names() {
        let instance = json!({ "id": "1", "status": "RUNNING", "zone": "z",
            "disks": [{ "type": "SCRATCH", "boot": false }], "scheduling": { "a": 1, "b": 2 } });
        let known = ["id", "status", "zone", "disks", "scheduling"];
        let masked = |mask| Mask::parse(mask, &known).unwrap().apply(&instance);
        let expected = json!({ "id": "1", "disks": [{ "type": "SCRATCH" }] });
        assert_eq!(masked("id,disks(type)"), expected);
        assert_eq!(masked("disks/type,id"), expected);
        assert_eq!(masked("scheduling(a),id"), json!({ "id": "1", "scheduling": { "a": 1 } }));
        assert_eq!(masked("*"), instance);
        for bad in ["identity", "id,", "disks(type", "id)", ""] {
            assert!(Mask::parse(bad, &known).is_err(), "{bad:?}");
        }
    }
}
