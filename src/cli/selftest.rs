//! `halite selftest`: its options, and its results as a table.

use super::output;
use crate::selftest::Report;
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::fmt::Write;
use std::path::PathBuf;

/// Failures that are printed per suite; all are counted, and JSON has every one.
const SHOWN: usize = 20;

/// Options of `halite selftest`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct SelftestArgs {
    /// Test this device: cpu, npu:0; repeatable, or a list with commas [default: every device found]
    #[arg(long = "device", value_name = "DEVICE", value_delimiter = ',')]
    pub devices: Vec<String>,

    /// Run this suite only: memory, ops, training; repeatable [default: all]
    #[arg(long = "suite", value_name = "SUITE", value_delimiter = ',')]
    pub suites: Vec<String>,

    /// Print one JSON object instead of tables
    #[arg(long)]
    pub json: bool,

    /// Load this NPU plugin; repeatable
    #[arg(long = "plugin", value_name = "FILE")]
    pub plugins: Vec<PathBuf>,
}

/// What a person sees on stderr meanwhile: the case that runs, or a line per suite in a log.
#[derive(Debug)]
pub struct SelftestProgress {
    spinner: Option<ProgressBar>,
    suite: String,
}

impl SelftestProgress {
    /// Progress on stderr.
    pub fn new() -> Self {
        let spinner = console::Term::stderr().is_term().then(|| {
            let style = ProgressStyle::with_template("  {spinner} {prefix:.bold}  {pos} cases  {wide_msg}")
                .expect("the template is valid");
            ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10)).with_style(style)
        });
        Self { spinner, suite: String::new() }
    }

    /// Shows what is about to run.
    pub fn show(&mut self, device: &str, suite: &str, case: &str) {
        let title = format!("{device} {suite}");
        match &self.spinner {
            Some(spinner) => {
                spinner.set_prefix(title);
                spinner.set_message(case.to_owned());
                spinner.inc(1);
            }
            None if self.suite != title => {
                output::tell(format_args!("testing {title}"));
                self.suite = title;
            }
            None => {}
        }
    }

    /// Takes the display away.
    pub fn finish(&self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
    }
}

impl Default for SelftestProgress {
    fn default() -> Self {
        Self::new()
    }
}

/// One JSON object in one line, `{"devices":[…]}`.
pub fn to_json(reports: &[Report]) -> String {
    #[derive(serde::Serialize)]
    struct Devices<'a> {
        devices: &'a [Report],
    }
    serde_json::to_string(&Devices { devices: reports })
        .expect("strings, numbers and lists of them always serialise")
}

/// A table for a terminal of `columns`, and a line for each failure.
pub fn to_table(reports: &[Report], columns: u16) -> String {
    let names = ["device", "suite", "passed", "on fallback", "unsupported", "failed", "time"];
    let mut table = output::table(&names, &[2, 3, 4, 5, 6], columns);
    for report in reports {
        for suite in &report.suites {
            table.add_row([
                report.device.clone(),
                suite.suite.to_owned(),
                output::grouped(suite.passed as u64),
                output::grouped(suite.on_fallback as u64),
                output::grouped(suite.unsupported.len() as u64),
                output::grouped(suite.failed.len() as u64),
                format!("{:.1} s", suite.seconds),
            ]);
        }
    }
    let mut text = format!("{table}\n");
    for report in reports {
        for suite in &report.suites {
            for failure in suite.failed.iter().take(SHOWN) {
                let _ = writeln!(
                    text,
                    "{} {}: {}: {}",
                    report.device, suite.suite, failure.case, failure.message
                );
            }
            if suite.failed.len() > SHOWN {
                let more = suite.failed.len() - SHOWN;
                let _ =
                    writeln!(text, "{} {}: {more} more fail; --json has them", report.device, suite.suite);
            }
        }
    }
    text
}
