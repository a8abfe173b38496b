//! The measurements as Markdown tables.

use std::fmt;
use std::time::Duration;

#[derive(Default)]
pub(crate) struct Report {
    costs: Vec<String>,
    latencies: Vec<String>,
    rows: Vec<String>,
}

impl Report {
    /// Adds the CPU seconds of a request and the requests per second, each of the service and of the floor.
    pub(crate) fn cost(
        &mut self,
        title: &str,
        cpu: (f64, f64),
        rate: (f64, f64),
        ratio: f64,
        target: f64,
    ) {
        let micros = |seconds: f64| seconds * 1e6;
        self.costs.push(format!(
            "| {title} | {:.1} | {:.1} | **{ratio:.2}** | {target} | {:.0} | {:.0} |",
            micros(cpu.0),
            micros(cpu.1),
            rate.0,
            rate.1
        ));
    }

    /// Adds the responses per second and their p50 and p99, for each number of connections.
    pub(crate) fn latency(&mut self, title: &str, at: &[(usize, usize, Duration, Duration)]) {
        let cell = |(_, count, p50, p99): &(usize, usize, Duration, Duration)| {
            format!("{count}/s, {}, {}", millis(*p50), millis(*p99))
        };
        let cells: Vec<_> = at.iter().map(cell).collect();
        self.latencies.push(format!("| {title} | {} |", cells.join(" | ")));
    }

    /// Adds another measurement with its target.
    pub(crate) fn row(&mut self, title: &str, value: impl fmt::Display, target: &str) {
        self.rows.push(format!("| {title} | {value} | {target} |"));
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| at 32 connections | CPU µs per request | the floor's | ratio | target | requests/s | the floor's |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|")?;
        self.costs.iter().try_for_each(|row| writeln!(f, "{row}"))?;
        writeln!(f, "\n| responses, p50, p99 | 1 connection | 32 | 80 |\n|---|---|---|---|")?;
        self.latencies.iter().try_for_each(|row| writeln!(f, "{row}"))?;
        writeln!(f, "\n| | measured | target |\n|---|---|---|")?;
        self.rows.iter().try_for_each(|row| writeln!(f, "{row}"))
    }
}

/// Formats milliseconds with three significant digits.
pub(crate) fn millis(span: Duration) -> String {
    let millis = span.as_secs_f64() * 1e3;
    if millis < 10.0 { format!("{millis:.2} ms") } else { format!("{millis:.1} ms") }
}

/// The percentile of sorted durations.
pub(crate) fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or_default()
}

pub(crate) fn median(all: impl IntoIterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = all.into_iter().collect();
    all.sort_unstable_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or_default()
}
