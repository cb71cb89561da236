//! `halite conformance`: its options, and its results as a table.

use super::output;
use crate::conformance::{Counts, ExpectedFailures, Options, Progress, Report, Verdict, catalogue};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

/// Options of `halite conformance`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ConformanceArgs {
    /// Test this device: cpu, npu:0; repeatable, or a list with commas [default: every device found, or the plugin's]
    #[arg(long = "device", value_name = "DEVICE", value_delimiter = ',')]
    pub devices: Vec<String>,

    /// Load this NPU plugin, and test its devices; repeatable
    #[arg(long = "plugin", value_name = "FILE")]
    pub plugins: Vec<PathBuf>,

    /// Run tests whose names contain this text only: transfer, order/diamond; repeatable
    #[arg(long = "filter", value_name = "TEXT", value_delimiter = ',')]
    pub filters: Vec<String>,

    /// Read tests that are known to fail from this file: lines of `group/test: reason`
    #[arg(long, value_name = "FILE")]
    pub expected: Option<PathBuf>,

    /// Launch the kernels of this test program, in the device's own format; docs/conformance.md names them
    #[arg(long, value_name = "FILE")]
    pub program: Option<PathBuf>,

    /// Start random tests from this number
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub seed: u64,

    /// Fail tests that take longer than this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub time_limit: u64,

    /// List the tests with what each promises, and run none
    #[arg(long, conflicts_with = "json")]
    pub list: bool,

    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,

    /// Write the name of each test to stderr before it runs: the last one is where a plugin took the process down
    #[arg(long, short)]
    pub verbose: bool,
}

impl ConformanceArgs {
    /// What the run does.
    ///
    /// # Errors
    /// A list of expected failures that cannot be read, in one line.
    pub fn options(&self) -> Result<Options, String> {
        let expected = match &self.expected {
            None => ExpectedFailures::default(),
            Some(path) => {
                let text = output::read_small(path)
                    .map_err(|error| format!("cannot read '{}': {error}", path.display()))?;
                ExpectedFailures::parse(&text).map_err(|error| format!("'{}': {error}", path.display()))?
            }
        };
        Ok(Options {
            filters: self.filters.clone(),
            expected,
            seed: self.seed,
            time_limit: Duration::from_secs(self.time_limit),
            ..Options::default()
        })
    }
}

/// What a person sees on stderr meanwhile: the test that runs, or a line per device in a log.
#[derive(Debug)]
pub struct ConformanceProgress {
    bar: Option<ProgressBar>,
    is_verbose: bool,
    device: String,
}

impl ConformanceProgress {
    /// Progress on stderr; a line for each test if it is to be `verbose`.
    pub fn new(verbose: bool) -> Self {
        let bar = (!verbose && console::Term::stderr().is_term()).then(|| {
            let style = ProgressStyle::with_template("  {prefix:.bold} {bar:24} {pos}/{len}  {wide_msg}")
                .expect("the template is valid");
            ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10)).with_style(style)
        });
        Self { bar, is_verbose: verbose, device: String::new() }
    }

    /// Shows what is about to run.
    pub fn show(&mut self, device: &str, at: Progress<'_>) {
        if self.is_verbose {
            output::tell(format_args!("{device} {}/{} {}", at.done + 1, at.total, at.test));
            return;
        }
        match &self.bar {
            Some(bar) => {
                bar.set_length(at.total as u64);
                bar.set_position(at.done as u64);
                bar.set_prefix(device.to_owned());
                bar.set_message(at.test.to_owned());
            }
            None if self.device != device => {
                output::tell(format_args!("testing {device}: {} tests", at.total));
                self.device = device.to_owned();
            }
            None => {}
        }
    }

    /// Takes the display of a device away.
    pub fn end(&mut self, _report: &Report) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
            bar.reset();
        }
    }
}

/// The tests whose names contain one of these texts, or all, with what each promises.
pub fn listing(filters: &[String]) -> String {
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|part| name.contains(part.as_str()));
    let tests: Vec<_> = catalogue().into_iter().filter(|test| wanted(&test.name)).collect();
    let width = tests.iter().map(|test| test.name.len()).max().unwrap_or(0);
    tests.iter().map(|test| format!("{:width$}  {}\n", test.name, test.text)).collect()
}

/// One JSON object in one line, `{"devices":[…]}`.
pub fn to_json(reports: &[Report]) -> String {
    let devices: Vec<_> = reports.iter().map(Report::to_value).collect();
    serde_json::json!({ "devices": devices }).to_string()
}

/// A table for a terminal of `columns`, and lines for what failed, was expected to, or does not apply.
pub fn to_table(reports: &[Report], columns: u16) -> String {
    let names =
        ["device", "group", "passed", "unsupported", "skipped", "expected failures", "failed", "time"];
    let mut table = output::table(&names, &[2, 3, 4, 5, 6, 7], columns);
    for report in reports {
        for group in report.groups() {
            table.add_row(row(&report.device, &group.group, &group.counts, group.seconds));
        }
        let seconds = report.tests.iter().map(|test| test.seconds).sum();
        table.add_row(row(&report.device, "all", &report.counts(), seconds));
    }
    let mut text = format!("{table}\n");
    for report in reports {
        describe(&mut text, report);
    }
    text
}

fn row(device: &str, group: &str, counts: &Counts, seconds: f64) -> [String; 8] {
    let number = |count: usize| output::grouped(count as u64);
    [
        device.to_owned(),
        group.to_owned(),
        number(counts.passed),
        number(counts.unsupported),
        number(counts.skipped),
        number(counts.expected_failures),
        number(counts.failed),
        format!("{seconds:.1} s"),
    ]
}

fn describe(text: &mut String, report: &Report) {
    for test in report.failures() {
        let _ = writeln!(
            text,
            "\n{} {} failed\n  promise: {}\n  reason:  {}",
            report.device, test.name, test.text, test.reason
        );
    }
    // Many tests are left out for one reason, so reasons come with their tests' number.
    for (verdict, word) in [
        (Verdict::ExpectedFailure, "expected to fail"),
        (Verdict::Unsupported, "unsupported"),
        (Verdict::Skipped, "skipped"),
    ] {
        let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
        for test in report.tests.iter().filter(|test| test.verdict == verdict) {
            match reasons.iter_mut().find(|(reason, _)| *reason == test.reason) {
                Some((_, tests)) => tests.push(&test.name),
                None => reasons.push((&test.reason, vec![&test.name])),
            }
        }
        for (reason, tests) in reasons {
            let which = if tests.len() > 3 {
                format!("{} tests, {} …", tests.len(), tests[0])
            } else {
                tests.join(", ")
            };
            let _ = writeln!(text, "{} {word}: {which}: {reason}", report.device);
        }
    }
    let counts = report.counts();
    let _ = writeln!(
        text,
        "{}: {} of {} promises hold, {} unsupported, {} skipped, {} expected failures, {} failed (seed {})",
        report.device,
        counts.passed,
        counts.total(),
        counts.unsupported,
        counts.skipped,
        counts.expected_failures,
        counts.failed,
        report.seed
    );
}
