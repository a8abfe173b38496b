//! Logs: JSON for Cloud Logging on Cloud Run, text for people elsewhere.
//!
//! Every line of a request says which one: its path, the ids by which GitHub and Cloud Tasks know it, its trace.
//! Text shows them as a span. In JSON they belong at the top, where Cloud Logging folds lines together by their
//! trace; the formatter writes a span's fields further down, and at some cost, so there the writer adds them to
//! each finished line, from the request's headers, and what logs nothing pays nothing.
//! <https://cloud.google.com/logging/docs/structured-logging>

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;

use http::{HeaderValue, Request, Uri};
use tracing::Instrument;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

tokio::task_local! {
    static ORIGIN: Origin;
}

/// The request's span, which only text shows.
const REQUEST: &str = "runner_manager::request";

/// The request that a line belongs to, as it came: nothing is read from it before a line is written.
#[derive(Clone, Debug)]
pub struct Origin {
    path: Uri,
    delivery: Option<HeaderValue>,
    task: Option<HeaderValue>,
    traceparent: Option<HeaderValue>,
    google_trace: Option<HeaderValue>,
}

impl Origin {
    /// That of the lines which answering `request` will write.
    pub fn of<B>(request: &Request<B>) -> Self {
        let header = |name| request.headers().get(name).cloned();
        Self {
            path: request.uri().clone(),
            delivery: header("x-github-delivery"),
            task: header("x-cloudtasks-taskname"),
            traceparent: header("traceparent"),
            google_trace: header("x-cloud-trace-context"),
        }
    }

    /// Answers the request: lines that `work` writes are known to be its.
    pub async fn scope<T>(self, work: impl Future<Output = T>) -> T {
        let span = tracing::info_span!(
            target: REQUEST,
            "request",
            path = self.path.path(),
            delivery = self.delivery.as_ref().and_then(id),
            task = self.task.as_ref().and_then(id),
        );
        ORIGIN.scope(self, work.instrument(span)).await
    }

    /// From `traceparent`, or Google's older `X-Cloud-Trace-Context`.
    /// <https://www.w3.org/TR/trace-context/#traceparent-header>
    fn trace(&self) -> Option<Trace> {
        let text = |value: &Option<HeaderValue>| {
            value.as_ref().and_then(|value| value.to_str().ok().map(str::to_owned))
        };
        text(&self.traceparent)
            .and_then(|value| from_traceparent(&value))
            .or_else(|| text(&self.google_trace).and_then(|value| from_google(&value)))
    }

    /// What goes before the first of a line's own keys.
    fn keys(&self, project: &str) -> String {
        let mut keys = self.trace().map(|trace| trace.keys(project)).unwrap_or_default();
        let path = serde_json::Value::from(self.path.path());
        keys.push_str(&format!(r#""path":{path},"#));
        for (key, value) in [("delivery", &self.delivery), ("task", &self.task)] {
            if let Some(id) = value.as_ref().and_then(id) {
                keys.push_str(&format!(r#""{key}":"{id}","#));
            }
        }
        keys
    }
}

/// A header worth logging: an id of ours, GitHub's or Google's, never a caller's prose.
fn id(value: &HeaderValue) -> Option<&str> {
    let text = value.to_str().ok()?;
    let is_an_id = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (text.len() <= 100 && text.chars().all(is_an_id)).then_some(text)
}

/// The trace that a request belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Trace {
    id: String,
    span: Option<String>,
    sampled: bool,
}

impl Trace {
    /// All parts are hexadecimal or a project id: nothing needs to be escaped.
    fn keys(&self, project: &str) -> String {
        let Self { id, span, sampled } = self;
        let key = "logging.googleapis.com";
        let span =
            span.as_ref().map(|span| format!(r#""{key}/spanId":"{span}","#)).unwrap_or_default();
        format!(
            r#""{key}/trace":"projects/{project}/traces/{id}",{span}"{key}/trace_sampled":{sampled},"#
        )
    }
}

/// `00-TRACE-SPAN-FLAGS`
fn from_traceparent(header: &str) -> Option<Trace> {
    let mut parts = header.trim().split('-');
    let (_version, id, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let valid = is_hex(id, 32) && is_hex(span, 16) && is_hex(flags, 2);
    let sampled = u8::from_str_radix(flags, 16).is_ok_and(|flags| flags & 1 == 1);
    valid.then(|| Trace { id: id.to_owned(), span: Some(span.to_owned()), sampled })
}

/// `TRACE/SPAN;o=1`, the span in decimal.
fn from_google(header: &str) -> Option<Trace> {
    let (id, rest) = header.trim().split_once('/').unwrap_or((header.trim(), ""));
    let (span, options) = rest.split_once(';').unwrap_or((rest, ""));
    let span = span.parse::<u64>().ok().map(|span| format!("{span:016x}"));
    is_hex(id, 32).then(|| Trace { id: id.to_owned(), span, sampled: options.contains("o=1") })
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Where lines go and what they look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Style {
    /// JSON on standard output, traces named within this project.
    CloudLogging(Arc<str>),
    /// Text on standard error.
    Text,
}

impl Style {
    /// Cloud Run tells itself by `K_SERVICE`.
    pub fn detect(project: &str) -> Self {
        if std::env::var_os("K_SERVICE").is_some() {
            Self::CloudLogging(project.into())
        } else {
            Self::Text
        }
    }
}

/// Sets up logging for the process. `RUST_LOG` overrides what is shown (`debug`, `runner_manager=debug,warn`).
///
/// # Errors
/// If it was set up already.
pub fn init(style: Style) -> Result<(), TryInitError> {
    // Dependencies' lines below a warning name paths of the machine that built them.
    let default = Targets::new()
        .with_default(tracing::Level::WARN)
        .with_target("runner_manager", tracing::Level::INFO);
    let filter = std::env::var_os("RUST_LOG")
        .and_then(|filter| filter.to_str()?.parse().ok())
        .unwrap_or(default);
    match style {
        Style::CloudLogging(project) => {
            let json = tracing_stackdriver::layer()
                .with_source_location(false)
                .with_writer(WithOrigin { project });
            let filter = filter.with_target(REQUEST, LevelFilter::OFF);
            tracing_subscriber::registry().with(filter).with(json).try_init()
        }
        Style::Text => {
            let color = io::stderr().is_terminal()
                && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
            let text = tracing_subscriber::fmt::layer()
                .with_target(false)
                .with_ansi(color)
                .with_writer(io::stderr);
            tracing_subscriber::registry().with(filter).with(text).try_init()
        }
    }
}

/// Makes writers that say of each line which request it belongs to.
struct WithOrigin {
    project: Arc<str>,
}

impl<'a> MakeWriter<'a> for WithOrigin {
    type Writer = LineWriter<io::Stdout>;

    fn make_writer(&'a self) -> Self::Writer {
        LineWriter { project: self.project.clone(), to: io::stdout() }
    }
}

/// Takes one finished line at a time, as the formatter hands it over.
struct LineWriter<W> {
    project: Arc<str>,
    to: W,
}

impl<W: Write> Write for LineWriter<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let keys = ORIGIN.try_with(|origin| origin.keys(&self.project));
        match (keys, line.strip_prefix(b"{")) {
            (Ok(keys), Some(rest)) => {
                let mut whole = Vec::with_capacity(1 + keys.len() + rest.len());
                whole.push(b'{');
                whole.extend_from_slice(keys.as_bytes());
                whole.extend_from_slice(rest);
                self.to.write_all(&whole)?;
            }
            _ => self.to.write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0af7651916cd43dd8448eb211c80319c";

    fn request(headers: &[(&'static str, &str)]) -> Origin {
        let mut request = Request::new(());
        *request.uri_mut() = "/runner/stop?a=b".parse().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, HeaderValue::from_str(value).unwrap());
        }
        Origin::of(&request)
    }

    fn trace(name: &'static str, value: &str) -> Option<Trace> {
        request(&[(name, value)]).trace()
    }

    fn found(span: Option<&str>, sampled: bool) -> Option<Trace> {
        Some(Trace { id: ID.into(), span: span.map(str::to_owned), sampled })
    }

    #[test]
    fn both_trace_headers_are_understood() {
        let w3c = format!("00-{ID}-b7ad6b7169203331-01");
        assert_eq!(trace("traceparent", &w3c), found(Some("b7ad6b7169203331"), true));
        assert_eq!(
            trace("x-cloud-trace-context", &format!("{ID}/255;o=1")),
            found(Some("00000000000000ff"), true)
        );
        assert_eq!(trace("x-cloud-trace-context", ID), found(None, false));
        for nonsense in ["", "00", "00-x-y-z", "00-\"}{-b7ad6b7169203331-01"] {
            assert_eq!(trace("traceparent", nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn only_ids_are_worth_logging() {
        let told = |value: &str| {
            id(&HeaderValue::from_bytes(value.as_bytes()).unwrap()).map(str::to_owned)
        };
        for id in ["72d3162e-cc78-11e3-81ab-4c9367dc0958", "a_task-1", &"x".repeat(100)] {
            assert_eq!(told(id).as_deref(), Some(id));
        }
        for prose in ["two words", "a\"b", "caf\u{e9}", "a/b", "a.b", &"x".repeat(101)] {
            assert_eq!(told(prose), None, "{prose}");
        }
    }

    #[tokio::test]
    async fn a_line_says_at_its_top_which_request_it_belongs_to_and_stays_json() {
        let w3c = format!("00-{ID}-b7ad6b7169203331-01");
        let origin = request(&[
            ("traceparent", &w3c),
            ("x-cloudtasks-taskname", "0123abcd"),
            ("x-github-delivery", "\",\"severity\":\"NONE"),
        ]);
        let written = origin.scope(async {
            let mut writer = LineWriter { project: "my-project".into(), to: Vec::new() };
            writer.write_all(b"{\"severity\":\"INFO\",\"message\":\"hello\"}\n").unwrap();
            writer.to
        });
        let line: serde_json::Value = serde_json::from_slice(&written.await).unwrap();
        let expected = serde_json::json!({
            "logging.googleapis.com/trace": format!("projects/my-project/traces/{ID}"),
            "logging.googleapis.com/spanId": "b7ad6b7169203331",
            "logging.googleapis.com/trace_sampled": true,
            "path": "/runner/stop",
            "task": "0123abcd",
            "severity": "INFO",
            "message": "hello",
        });
        assert_eq!(line, expected);
    }

    #[test]
    fn a_line_outside_any_request_stays_as_it_is() {
        let mut writer = LineWriter { project: "my-project".into(), to: Vec::new() };
        writer.write_all(b"{\"message\":\"hello\"}\n").unwrap();
        assert_eq!(writer.to, b"{\"message\":\"hello\"}\n");
    }
}
