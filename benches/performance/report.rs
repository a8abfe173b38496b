//! What was measured, as tables in Markdown.

use std::fmt;
use std::time::Duration;

/// See above.
#[derive(Default)]
pub(crate) struct Report {
    costs: Vec<String>,
    latencies: Vec<String>,
    rows: Vec<String>,
}

impl Report {
    /// CPU seconds of a request and requests a second, of the service and of the floor.
    pub(crate) fn cost(
        &mut self,
        what: &str,
        cpu: (f64, f64),
        rate: (f64, f64),
        ratio: f64,
        target: f64,
    ) {
        let micros = |seconds: f64| seconds * 1e6;
        self.costs.push(format!(
            "| {what} | {:.1} | {:.1} | **{ratio:.2}** | {target} | {:.0} | {:.0} |",
            micros(cpu.0),
            micros(cpu.1),
            rate.0,
            rate.1
        ));
    }

    /// For each number of connections: how many answers came in a second, and their p50 and p99.
    pub(crate) fn latency(&mut self, what: &str, at: &[(usize, usize, Duration, Duration)]) {
        let cell = |(_, count, p50, p99): &(usize, usize, Duration, Duration)| {
            format!("{count}/s, {}, {}", millis(*p50), millis(*p99))
        };
        let cells: Vec<_> = at.iter().map(cell).collect();
        self.latencies.push(format!("| {what} | {} |", cells.join(" | ")));
    }

    /// Anything else, and what was aimed at.
    pub(crate) fn row(&mut self, what: &str, value: impl fmt::Display, target: &str) {
        self.rows.push(format!("| {what} | {value} | {target} |"));
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| at 32 connections | CPU µs a request | the floor's | ratio | at most | requests/s | the floor's |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|")?;
        self.costs.iter().try_for_each(|row| writeln!(f, "{row}"))?;
        writeln!(f, "\n| answers, p50, p99 | 1 connection | 32 | 80 |\n|---|---|---|---|")?;
        self.latencies.iter().try_for_each(|row| writeln!(f, "{row}"))?;
        writeln!(f, "\n| what | measured | target |\n|---|---|---|")?;
        self.rows.iter().try_for_each(|row| writeln!(f, "{row}"))
    }
}

/// With as many digits as mean something.
pub(crate) fn millis(span: Duration) -> String {
    let millis = span.as_secs_f64() * 1e3;
    if millis < 10.0 { format!("{millis:.2} ms") } else { format!("{millis:.1} ms") }
}

/// The one below which this share of the sorted ones lies.
pub(crate) fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or_default()
}

/// The one in the middle.
pub(crate) fn median(all: impl IntoIterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = all.into_iter().collect();
    all.sort_unstable_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or_default()
}
