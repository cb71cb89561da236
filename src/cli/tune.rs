//! `halite tune`: its options, its progress, and its results as a table and as JSON.

use super::output;
use crate::tune::{Candidate, CaseResult, Outcome, Step, Tuning};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::cell::RefCell;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Options of `halite tune`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct TuneArgs {
    /// The device, such as cpu:0
    #[arg(value_name = "DEVICE")]
    pub device: String,

    /// Tune this op only: matmul, conv, elementwise, reduce, pool [default: every op]
    #[arg(long, value_name = "OP")]
    pub op: Option<String>,

    /// Time for all measurements together, such as 90s or 5m
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_budget)]
    pub budget: Duration,

    /// Write the profile to this file instead of the folder where later runs find it
    #[arg(long, value_name = "FILE.yaml")]
    pub output: Option<PathBuf>,

    /// Write nothing; print the profile
    #[arg(long, conflicts_with = "output")]
    pub dry_run: bool,

    /// Print one JSON object instead of the table
    #[arg(long)]
    pub json: bool,

    /// Load this NPU plugin; repeatable
    #[arg(long = "plugin", value_name = "FILE")]
    pub plugins: Vec<PathBuf>,
}

/// A time above zero.
fn parse_budget(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("expected a time above zero, such as 60s".to_owned()),
        Ok(budget) => Ok(budget),
        Err(error) => Err(format!("{error}; expected a time such as 90s or 5m")),
    }
}

/// What a person sees on stderr meanwhile: a bar, or one line per case in a log.
#[derive(Debug)]
pub struct TuneProgress {
    bar: Option<ProgressBar>,
    last_case: RefCell<String>,
}

impl TuneProgress {
    /// Progress on stderr.
    pub fn new() -> Self {
        let bar = console::Term::stderr().is_term().then(|| {
            let style = ProgressStyle::with_template("  {bar:28.cyan/dim} {pos}/{len}  {wide_msg}")
                .expect("the template is valid")
                .progress_chars("━━─");
            ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(10)).with_style(style)
        });
        Self { bar, last_case: RefCell::default() }
    }

    /// Shows what is about to be tried.
    pub fn show(&self, step: &Step<'_>) {
        let case = format!("{}, {}", step.op, step.case);
        if let Some(bar) = &self.bar {
            bar.set_length(step.total as u64);
            bar.set_position(step.done as u64);
            bar.set_message(format!("{case}: {}", step.candidate));
        } else if *self.last_case.borrow() != case {
            output::tell(format_args!("tuning {case}"));
            self.last_case.replace(case);
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Default for TuneProgress {
    fn default() -> Self {
        Self::new()
    }
}

/// One JSON object in one line: device, base profile, the file written, and each case with all that was tried.
pub fn to_json(tuning: &Tuning, saved: Option<&Path>) -> String {
    #[derive(Serialize)]
    struct Object<'a> {
        device: String,
        base_profile: &'a str,
        profile_file: Option<String>,
        cases: Vec<Case<'a>>,
    }
    #[derive(Serialize)]
    struct Case<'a> {
        op: &'a str,
        case: &'a str,
        when: &'a str,
        current: Timed,
        best: Timed,
        tried: Vec<Tried>,
    }
    #[derive(Serialize)]
    struct Timed {
        candidate: String,
        seconds: f64,
    }
    #[derive(Serialize)]
    struct Tried {
        candidate: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        seconds: Option<f64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        refused: Option<String>,
    }
    let timed = |(candidate, time): &(Candidate, Duration)| Timed {
        candidate: candidate.to_string(),
        seconds: time.as_secs_f64(),
    };
    let tried = |(candidate, outcome): &(Candidate, Outcome)| {
        let (seconds, refused) = match outcome {
            Outcome::Time(time) => (Some(time.as_secs_f64()), None),
            other => (None, Some(reason(other))),
        };
        Tried { candidate: candidate.to_string(), seconds, refused }
    };
    let case = |case: &CaseResult| Case {
        op: case.op,
        case: case.case,
        when: case.when,
        current: timed(&case.current),
        best: timed(&case.best),
        tried: case.tried.iter().map(tried).collect(),
    };
    let object = Object {
        device: tuning.device.id.to_string(),
        base_profile: tuning.base.name(),
        profile_file: saved.map(|path| path.display().to_string()),
        cases: tuning.cases.iter().map(case).collect(),
    };
    serde_json::to_string(&object).expect("strings, numbers and lists of them always serialise")
}

/// A table for a terminal of `columns`, and a line for everything that a candidate did wrong.
pub fn to_table(tuning: &Tuning, columns: u16) -> String {
    let mut text = String::new();
    let names = ["op", "case", "before", "time", "best", "time", "gain", "tried"];
    let mut table = output::table(&names, &[3, 5, 6, 7], columns);
    for case in &tuning.cases {
        let timed = case.tried.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Time(_))).count();
        let best =
            if case.best.0 == case.current.0 { "the same".to_owned() } else { case.best.0.to_string() };
        table.add_row([
            case.op.to_owned(),
            case.case.to_owned(),
            case.current.0.to_string(),
            time(case.current.1),
            best,
            time(case.best.1),
            format!("{:.2}x", case.speedup()),
            format!("{} of {}", timed + 1, case.tried.len() + 1),
        ]);
    }
    let _ = writeln!(text, "{} ({}), profile {}", tuning.device.id, tuning.device.name, tuning.base.name());
    let _ = writeln!(text, "{table}");
    for case in &tuning.cases {
        for (candidate, outcome) in &case.tried {
            if let Outcome::Wrong(reason) = outcome {
                let _ = writeln!(text, "wrong result of {} {candidate}: {reason}", case.op);
            }
        }
    }
    text
}

fn reason(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Time(_) => String::new(),
        Outcome::Refused(reason) => reason.clone(),
        Outcome::Wrong(reason) => format!("wrong result: {reason}"),
        Outcome::NotTried => "the budget was spent".to_owned(),
    }
}

fn time(time: Duration) -> String {
    let microseconds = time.as_secs_f64() * 1e6;
    match microseconds {
        m if m < 1e3 => format!("{m:.1} us"),
        m if m < 1e6 => format!("{:.2} ms", m / 1e3),
        m => format!("{:.2} s", m / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Command, try_parse_from};

    #[test]
    fn the_device_is_required_and_the_budget_has_a_unit() {
        let tune = |line: &str| match try_parse_from(line.split(' ')).map(|cli| cli.into_command()) {
            Ok(Command::Tune(tune)) => Ok(tune),
            Ok(other) => panic!("{other:?}"),
            Err(stop) => Err(stop.message),
        };
        let args = tune("halite tune cpu:0 --op matmul --budget 2m").unwrap();
        assert_eq!((args.op.as_deref(), args.budget), (Some("matmul"), Duration::from_secs(120)));
        assert_eq!(tune("halite tune cpu:0").unwrap().budget, Duration::from_secs(60));
        assert!(tune("halite tune").unwrap_err().contains("DEVICE"));
        let error = tune("halite tune cpu:0 --budget 60").unwrap_err();
        assert!(error.contains("--budget") && error.contains("unit"), "{error}");
    }
}
