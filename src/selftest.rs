//! Whether a device computes what it should: suites that one binary carries to any machine.
//!
//! 1. `memory`: transfers, copies, fills, order and events, straight through the HAL.
//! 2. `ops`: every sample of the op registry with every dtype, against the reference in f64.
//! 3. `training`: fifty steps of the digits' network, each from the CPU's weights: loss and every gradient.
//!
//! ```no_run
//! use halite::{Session, selftest};
//!
//! let report = selftest::run(&Session::new()?, "npu:0", &[], &mut |_, _| {})?;
//! println!("{}", report.to_json());
//! # Ok::<(), halite::Error>(())
//! ```

mod memory;
mod ops;
mod training;

use crate::{Error, Session};
use serde::Serialize;
use std::time::Instant;

/// The suites, in the order in which they run.
pub const SUITES: [&str; 3] = ["memory", "ops", "training"];

/// What was found out about a device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The device, such as `cuda:0`.
    pub device: String,
    /// The product's name.
    pub name: String,
    /// The driver's or plugin's version.
    pub driver: String,
    /// The profile that chose the kernels.
    pub profile: String,
    /// Each suite that ran.
    pub suites: Vec<SuiteResult>,
}

/// The outcome of a suite.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SuiteResult {
    /// One of [`SUITES`].
    pub suite: &'static str,
    /// Cases that gave what they should.
    pub passed: usize,
    /// Of those, cases of which a part ran on the fallback device.
    pub on_fallback: usize,
    /// Cases that the device cannot serve at all, with the reason.
    pub unsupported: Vec<Case>,
    /// Cases that gave something else.
    pub failed: Vec<Case>,
    /// Time that the suite took.
    pub seconds: f64,
}

/// A case that did not pass.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Case {
    /// Which one.
    pub case: String,
    /// What happened.
    pub message: String,
}

impl Report {
    /// Whether no case failed.
    pub fn succeeded(&self) -> bool {
        self.suites.iter().all(|suite| suite.failed.is_empty())
    }

    /// One JSON object in one line.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings, numbers and lists of them always serialise")
    }
}

/// What a suite notes while it runs.
struct Notes<'a> {
    suite: &'static str,
    result: SuiteResult,
    progress: &'a mut dyn FnMut(&str, &str),
}

impl Notes<'_> {
    /// Tells that a case begins.
    fn begin(&mut self, case: &str) {
        (self.progress)(self.suite, case);
    }

    fn pass(&mut self) {
        self.result.passed += 1;
    }

    fn fail(&mut self, case: &str, message: impl ToString) {
        self.result.failed.push(Case { case: case.to_owned(), message: message.to_string() });
    }

    fn decline(&mut self, case: &str, message: impl ToString) {
        self.result.unsupported.push(Case { case: case.to_owned(), message: message.to_string() });
    }

    /// Passes or fails with the outcome.
    fn judge(&mut self, case: &str, outcome: Result<(), impl ToString>) {
        match outcome {
            Ok(()) => self.pass(),
            Err(message) => self.fail(case, message),
        }
    }
}

/// Ops that ran on the fallback device so far.
fn fallbacks(engine: &crate::Engine) -> u64 {
    engine.stats().fallbacks.iter().map(|fallback| fallback.count).sum()
}

/// Runs these suites, or all of them, on a device. `progress` hears of each suite and case before it runs.
///
/// # Errors
/// An unknown device or suite. A device that fails later fails in its cases.
pub fn run(
    session: &Session,
    device: &str,
    suites: &[String],
    progress: &mut dyn FnMut(&str, &str),
) -> Result<Report, Error> {
    if let Some(unknown) = suites.iter().find(|suite| !SUITES.contains(&suite.as_str())) {
        return Err(halite_hal::Error::invalid(format!(
            "'{unknown}' is no suite of the selftest; use {}",
            SUITES.join(", ")
        ))
        .into());
    }
    let engine = session.open(device)?;
    let info = engine.device().info().clone();
    let mut report = Report {
        device: info.id.to_string(),
        name: info.name.clone(),
        driver: info.driver_version.clone(),
        profile: engine.profile().name().to_owned(),
        suites: Vec::new(),
    };
    for suite in SUITES.into_iter().filter(|suite| suites.is_empty() || suites.iter().any(|own| own == suite))
    {
        let begin = Instant::now();
        let result = SuiteResult {
            suite,
            passed: 0,
            on_fallback: 0,
            unsupported: Vec::new(),
            failed: Vec::new(),
            seconds: 0.0,
        };
        let mut notes = Notes { suite, result, progress: &mut *progress };
        match suite {
            "memory" => memory::run(engine.device(), &mut notes),
            "ops" => ops::run(&engine, &mut notes),
            _ => training::run(session, &engine, &mut notes),
        }
        notes.result.seconds = begin.elapsed().as_secs_f64();
        report.suites.push(notes.result);
    }
    Ok(report)
}
