//! Logs: JSON for Cloud Logging on Cloud Run, text for people elsewhere.
//!
//! Cloud Logging folds the lines of a request together by a top-level key that names its trace. The
//! formatter writes the span's fields further down, so the writer adds the key to each finished line, from
//! the trace that the request runs in.
//! <https://cloud.google.com/logging/docs/structured-logging>

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;

use http::HeaderMap;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

tokio::task_local! {
    static TRACE: Option<Trace>;
}

/// The trace that a request belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    id: String,
    span: Option<String>,
    sampled: bool,
}

impl Trace {
    /// From `traceparent`, or Google's older `X-Cloud-Trace-Context`.
    /// <https://www.w3.org/TR/trace-context/#traceparent-header>
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        text("traceparent")
            .and_then(from_traceparent)
            .or_else(|| text("x-cloud-trace-context").and_then(from_google))
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

/// Runs `work` in this trace.
pub async fn traced<T>(trace: Option<Trace>, work: impl Future<Output = T>) -> T {
    TRACE.scope(trace, work).await
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
    let registry = tracing_subscriber::registry().with(filter);
    match style {
        Style::CloudLogging(project) => registry
            .with(
                tracing_stackdriver::layer()
                    .with_source_location(false)
                    .with_writer(WithTrace { project }),
            )
            .try_init(),
        Style::Text => {
            let color = io::stderr().is_terminal()
                && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
            let text = tracing_subscriber::fmt::layer()
                .with_target(false)
                .with_ansi(color)
                .with_writer(io::stderr);
            registry.with(text).try_init()
        }
    }
}

/// Makes writers that add the trace to each line.
struct WithTrace {
    project: Arc<str>,
}

impl<'a> MakeWriter<'a> for WithTrace {
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
        let trace = TRACE.try_with(Clone::clone).ok().flatten();
        match (trace, line.strip_prefix(b"{")) {
            (Some(trace), Some(rest)) => {
                let mut whole = format!("{{{}", keys(&self.project, &trace)).into_bytes();
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

/// All parts are hexadecimal or a project id: nothing needs to be escaped.
fn keys(project: &str, Trace { id, span, sampled }: &Trace) -> String {
    let key = "logging.googleapis.com";
    let span = span.as_ref().map(|span| format!(r#""{key}/spanId":"{span}","#)).unwrap_or_default();
    format!(
        r#""{key}/trace":"projects/{project}/traces/{id}",{span}"{key}/trace_sampled":{sampled},"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0af7651916cd43dd8448eb211c80319c";

    fn trace(name: &'static str, value: &str) -> Option<Trace> {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        Trace::of(&headers)
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

    #[tokio::test]
    async fn a_line_gets_its_trace_at_the_top_and_stays_json() {
        let written = traced(found(Some("b7ad6b7169203331"), true), async {
            let mut writer = LineWriter { project: "my-project".into(), to: Vec::new() };
            writer.write_all(b"{\"severity\":\"INFO\",\"message\":\"hello\"}\n").unwrap();
            writer.to
        });
        let line: serde_json::Value = serde_json::from_slice(&written.await).unwrap();
        assert_eq!(
            line["logging.googleapis.com/trace"],
            format!("projects/my-project/traces/{ID}")
        );
        assert_eq!(line["logging.googleapis.com/spanId"], "b7ad6b7169203331");
        assert_eq!(line["logging.googleapis.com/trace_sampled"], true);
        assert_eq!(line["message"], "hello");
    }

    #[test]
    fn a_line_outside_any_request_stays_as_it_is() {
        let mut writer = LineWriter { project: "my-project".into(), to: Vec::new() };
        writer.write_all(b"{\"message\":\"hello\"}\n").unwrap();
        assert_eq!(writer.to, b"{\"message\":\"hello\"}\n");
    }
}
