//! Logs: JSON for Cloud Logging on Cloud Run, text elsewhere.
//!
//! Every line of a request names it: its path, its ids at GitHub and Cloud Tasks, its trace. Text shows them as a span.
//! Cloud Logging groups lines by their trace, which it reads from the top level of the JSON. The formatter would nest a
//! span's fields, so the writer adds these to each line instead, from the request's headers. A request that logs nothing
//! pays nothing.
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

/// The target of the request's span, which only text shows.
const REQUEST: &str = "runner_manager::request";

/// The request that a line belongs to. Its headers are parsed only when a line is written.
#[derive(Clone, Debug)]
pub struct Origin {
    path: Uri,
    delivery: Option<HeaderValue>,
    task: Option<HeaderValue>,
    traceparent: Option<HeaderValue>,
    google_trace: Option<HeaderValue>,
}

impl Origin {
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

    /// Runs `work`, whose log lines name this request.
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

    /// The trace of `traceparent`, or else of Google's older `X-Cloud-Trace-Context`.
    /// <https://www.w3.org/TR/trace-context/#traceparent-header>
    fn trace(&self) -> Option<Trace> {
        let text = |value: &Option<HeaderValue>| {
            value.as_ref().and_then(|value| value.to_str().ok().map(str::to_owned))
        };
        text(&self.traceparent)
            .and_then(|value| from_traceparent(&value))
            .or_else(|| text(&self.google_trace).and_then(|value| from_google(&value)))
    }

    /// The keys of this request, as the text that goes before a line's first key.
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

/// The header's value if it has the form of an id: a caller's text must not reach the log.
fn id(value: &HeaderValue) -> Option<&str> {
    let text = value.to_str().ok()?;
    let is_an_id = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (text.len() <= 100 && text.chars().all(is_an_id)).then_some(text)
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Trace {
    id: String,
    span: Option<String>,
    sampled: bool,
}

impl Trace {
    /// The trace as JSON keys. All parts are hexadecimal or a project id, so none needs escaping.
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

/// Parses `00-TRACE-SPAN-FLAGS`.
fn from_traceparent(header: &str) -> Option<Trace> {
    let mut parts = header.trim().split('-');
    let (_version, id, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let valid = is_hex(id, 32) && is_hex(span, 16) && is_hex(flags, 2);
    let sampled = u8::from_str_radix(flags, 16).is_ok_and(|flags| flags & 1 == 1);
    valid.then(|| Trace { id: id.to_owned(), span: Some(span.to_owned()), sampled })
}

/// Parses `TRACE/SPAN;o=1`, with the span in decimal.
fn from_google(header: &str) -> Option<Trace> {
    let (id, rest) = header.trim().split_once('/').unwrap_or((header.trim(), ""));
    let (span, options) = rest.split_once(';').unwrap_or((rest, ""));
    let span = span.parse::<u64>().ok().map(|span| format!("{span:016x}"));
    is_hex(id, 32).then(|| Trace { id: id.to_owned(), span, sampled: options.contains("o=1") })
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The destination and format of log lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Style {
    /// JSON on standard output, with traces of this project.
    CloudLogging(Arc<str>),
    /// Text on standard error.
    Text,
}

impl Style {
    /// Detects Cloud Run by the variable `K_SERVICE`.
    pub fn detect(project: &str) -> Self {
        if std::env::var_os("K_SERVICE").is_some() {
            Self::CloudLogging(project.into())
        } else {
            Self::Text
        }
    }
}

/// Sets up logging for the process. `RUST_LOG` overrides the filter (`debug`, `runner_manager=debug,warn`).
pub fn init(style: Style) -> Result<(), TryInitError> {
    // Below a warning, lines of dependencies contain paths of the build machine.
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
                .with_writer(move || Escaping { color, to: io::stderr() });
            tracing_subscriber::registry().with(filter).with(text).try_init()
        }
    }
}

/// Makes writers that add the request's keys to each line.
struct WithOrigin {
    project: Arc<str>,
}

impl<'a> MakeWriter<'a> for WithOrigin {
    type Writer = LineWriter<io::Stdout>;

    fn make_writer(&'a self) -> Self::Writer {
        LineWriter { project: self.project.clone(), to: io::stdout() }
    }
}

/// A writer that gets one complete line at a time from the formatter.
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

/// A writer of text lines that gets one complete line at a time. Names come from GitHub's users: what would begin a line
/// of its own, or be shown in another order than it was written, is escaped. JSON escapes control characters by itself.
struct Escaping<W> {
    /// Escape sequences are the formatter's colors.
    color: bool,
    to: W,
}

impl<W: Write> Write for Escaping<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let (text, end) = text.strip_suffix('\n').map_or((&*text, ""), |text| (text, "\n"));
        let mut escaped = String::with_capacity(line.len());
        for c in text.chars() {
            let is_color = self.color && c == '\u{1b}';
            if !is_color && (c.is_control() || is_bidirectional(c)) {
                escaped.extend(c.escape_default());
            } else {
                escaped.push(c);
            }
        }
        self.to.write_all(escaped.as_bytes())?;
        self.to.write_all(end.as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Unicode's marks, embeddings, overrides and isolates of direction. <https://www.unicode.org/reports/tr9/>
fn is_bidirectional(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_in_a_text_line_stays_in_its_place() {
        let written = |color, line: &str| {
            let mut writer = Escaping { color, to: Vec::new() };
            writer.write_all(line.as_bytes()).unwrap();
            String::from_utf8(writer.to).unwrap()
        };
        let line = "job \u{202e}1\nINFO caf\u{e9}\u{2066}\r\n";
        assert_eq!(written(false, line), "job \\u{202e}1\\nINFO caf\u{e9}\\u{2066}\\r\n");
        assert_eq!(written(true, "\u{1b}[32m INFO\u{1b}[0m a\n"), "\u{1b}[32m INFO\u{1b}[0m a\n");
        assert_eq!(written(false, "\u{1b}[2J\n"), "\\u{1b}[2J\n");
    }

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
    fn only_ids_are_logged() {
        let logged = |value: &str| {
            id(&HeaderValue::from_bytes(value.as_bytes()).unwrap()).map(str::to_owned)
        };
        for id in ["72d3162e-cc78-11e3-81ab-4c9367dc0958", "a_task-1", &"x".repeat(100)] {
            assert_eq!(logged(id).as_deref(), Some(id));
        }
        for prose in ["two words", "a\"b", "caf\u{e9}", "a/b", "a.b", &"x".repeat(101)] {
            assert_eq!(logged(prose), None, "{prose}");
        }
    }

    #[tokio::test]
    async fn a_line_of_a_request_names_it_at_the_top_level_and_stays_json() {
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
    fn a_line_outside_any_request_is_not_changed() {
        let mut writer = LineWriter { project: "my-project".into(), to: Vec::new() };
        writer.write_all(b"{\"message\":\"hello\"}\n").unwrap();
        assert_eq!(writer.to, b"{\"message\":\"hello\"}\n");
    }
}
