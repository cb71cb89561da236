//! `halite trace`: what a file of the layer `trace` says, as tables.

mod page;
mod read;
mod summary;

pub use read::{Ending, ReadError};
pub use summary::{CallSummary, CopySummary, DeviceSummary, FallbackSummary, OpSummary, Summary, summarize};

use super::output::{bytes, grouped, table};
use clap::Args;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Operations that the table lists, unless another number is asked for.
const DEFAULT_TOP: usize = 20;

/// Options of `halite trace`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct TraceArgs {
    /// A file written with HALITE_LAYERS=trace HALITE_TRACE=FILE
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// Print one JSON object instead of the tables
    #[arg(long)]
    pub json: bool,

    /// Operations to list, those that took longest first; 0 for all
    #[arg(long, value_name = "N", default_value_t = DEFAULT_TOP)]
    pub top: usize,

    /// Also write a page with the timeline
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
}

/// The page for `--report`, read from the same file as `summary` was.
///
/// # Errors
/// As [`summarize`].
pub fn page(path: &Path, summary: &Summary) -> Result<String, ReadError> {
    page::html(path, summary)
}

impl Summary {
    /// One JSON object in one line.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings, finite numbers and lists of them always serialise")
    }

    /// Tables for a terminal of `columns`, with the `top` operations that took longest (0: all).
    pub fn to_table(&self, top: usize, columns: u16) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "{} events over {}{}",
            grouped(self.events),
            time(self.span_us),
            match self.ending {
                Ending::Closed => "",
                Ending::Open => "; the program had not ended, or was cut off",
                Ending::Cut => "; cut off within the last event, which is left out",
            }
        );
        if self.lost_notes > 0 {
            let _ = writeln!(
                text,
                "{} lines were lost, since the file was written too slowly",
                grouped(self.lost_notes)
            );
        }
        if self.devices.is_empty() {
            text.push_str(
                "None is of Halite's layer; write some with HALITE_LAYERS=trace HALITE_TRACE=FILE\n",
            );
            return text;
        }
        self.device_tables(&mut text, columns);
        self.op_table(&mut text, top, columns);
        self.copy_table(&mut text, columns);
        self.call_table(&mut text, columns);
        self.fallback_table(&mut text, columns);
        text
    }

    fn device_tables(&self, text: &mut String, columns: u16) {
        let names = [
            "device",
            "launches",
            "busy",
            "share",
            "gaps",
            "in gaps",
            "longest",
            "to device",
            "from",
            "peak memory",
        ];
        let mut rows = table(&names, &[1, 2, 3, 4, 5, 6, 7, 8, 9], columns);
        for device in &self.devices {
            rows.add_row([
                device.device.clone(),
                grouped(device.launches),
                time(device.busy_us),
                share(device.busy_us, device.span_us),
                grouped(device.gaps),
                time(device.gap_us),
                time(device.longest_gap_us),
                bytes(device.to_device_bytes),
                bytes(device.from_device_bytes),
                bytes(device.peak_allocated_bytes),
            ]);
        }
        let _ = writeln!(text, "{rows}");
        for device in &self.devices {
            for (count, what) in [
                (device.untimed, "have no device time"),
                (device.failed, "failed"),
                (device.skipped, "were skipped behind a failure"),
            ] {
                if count > 0 {
                    let _ = writeln!(text, "{}: {} commands {what}", device.device, grouped(count));
                }
            }
        }
    }

    fn op_table(&self, text: &mut String, top: usize, columns: u16) {
        if self.ops.is_empty() {
            return;
        }
        let shown = if top == 0 { self.ops.len() } else { top.min(self.ops.len()) };
        let names = ["device", "operation", "launches", "time", "share", "mean", "longest", "GB/s"];
        let mut rows = table(&names, &[2, 3, 4, 5, 6, 7], columns);
        for op in &self.ops[..shown] {
            rows.add_row([
                op.device.clone(),
                op.op.clone(),
                grouped(op.count),
                time(op.total_us),
                format!("{:.1} %", op.share * 100.0),
                time(op.mean_us),
                time(op.longest_us),
                rate(op.read_bytes.saturating_add(op.written_bytes), op.total_us),
            ]);
        }
        let _ = writeln!(text, "\n{rows}");
        if shown < self.ops.len() {
            let rest: f64 = self.ops[shown..].iter().map(|op| op.total_us).sum();
            let _ = writeln!(
                text,
                "and {} more with {} in all; --top 0 lists them",
                self.ops.len() - shown,
                time(rest)
            );
        }
    }

    fn copy_table(&self, text: &mut String, columns: u16) {
        if self.copies.is_empty() {
            return;
        }
        let mut rows =
            table(&["device", "moved by", "times", "bytes", "time", "GB/s"], &[2, 3, 4, 5], columns);
        for copy in &self.copies {
            rows.add_row([
                copy.device.clone(),
                copy.kind.clone(),
                grouped(copy.count),
                bytes(copy.bytes),
                time(copy.total_us),
                rate(copy.bytes, copy.total_us),
            ]);
        }
        let _ = writeln!(text, "\n{rows}");
    }

    fn call_table(&self, text: &mut String, columns: u16) {
        if self.host.is_empty() {
            return;
        }
        let mut rows =
            table(&["device", "on host threads", "times", "time", "mean", "longest"], &[2, 3, 4, 5], columns);
        for call in &self.host {
            rows.add_row([
                call.device.clone(),
                call.call.clone(),
                grouped(call.count),
                time(call.total_us),
                time(call.mean_us),
                time(call.longest_us),
            ]);
        }
        let _ = writeln!(text, "\n{rows}");
    }

    fn fallback_table(&self, text: &mut String, columns: u16) {
        if self.fallbacks.is_empty() {
            return;
        }
        let mut rows = table(&["device", "fell back for", "to", "times", "since"], &[3], columns);
        for fallback in &self.fallbacks {
            rows.add_row([
                fallback.device.clone(),
                fallback.op.clone(),
                fallback.to.clone(),
                grouped(fallback.count),
                fallback.reason.clone(),
            ]);
        }
        let _ = writeln!(text, "\n{rows}");
    }
}

/// Microseconds as people read them: `1.23 ms`.
fn time(us: f64) -> String {
    match us {
        us if us < 999.5 => format!("{us:.*} us", if us < 99.5 { 1 } else { 0 }),
        us if us < 999_500.0 => format!("{:.2} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}

fn share(part: f64, whole: f64) -> String {
    if whole > 0.0 { format!("{:.1} %", 100.0 * part / whole) } else { "–".into() }
}

fn rate(bytes: u64, us: f64) -> String {
    if us > 0.0 && bytes > 0 { format!("{:.2}", bytes as f64 / us / 1e3) } else { "–".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits_or_so() {
        for (us, text) in [
            (0.0, "0.0 us"),
            (12.34, "12.3 us"),
            (999.4, "999 us"),
            (999.6, "1.00 ms"),
            (123_456.0, "123.46 ms"),
            (2.5e6, "2.50 s"),
        ] {
            assert_eq!(time(us), text);
        }
    }

    #[test]
    fn the_file_is_required_and_the_rest_optional() {
        use crate::cli::{Command, try_parse_from};
        let trace = |line: &str| match try_parse_from(line.split(' ')).map(|cli| cli.into_command()) {
            Ok(Command::Trace(args)) => Ok(args),
            Ok(other) => panic!("{other:?}"),
            Err(stop) => Err(stop.message),
        };
        let bare = trace("halite trace t.json").unwrap();
        assert_eq!(bare, TraceArgs { file: "t.json".into(), json: false, top: 20, report: None });
        let full = trace("halite trace --json --top 0 --report p.html t.json").unwrap();
        assert_eq!((full.json, full.top, full.report), (true, 0, Some("p.html".into())));
        assert!(trace("halite trace").unwrap_err().contains("<FILE>"));
    }
}
