//! Tuning: which kernel variant, with which sizes, is the fastest on this very device.
//!
//! ```no_run
//! use halite::{Session, tune};
//! use std::time::Duration;
//!
//! let session = Session::new()?;
//! let options = tune::Options { budget: Duration::from_secs(60), ..tune::Options::default() };
//! let tuning = tune::tune(&session, "cpu:0", &options, &mut |_| {})?;
//! println!("{}", tuning.profile_text());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Every candidate computes the same tensors as the CPU's portable kernels, and only one whose result agrees may win.
//! The answer is a profile that extends the one in force; [`Tuning::save`] puts it where later runs find it.

mod case;
mod file;
mod measure;

pub use case::{Case, cases, op_named};
pub use file::SaveError;

use crate::{Error, Session};
use halite_hal::DeviceInfo;
use halite_profiles::{KernelEntry, Parameters, Profile};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A candidate must beat the current choice by this factor, or the current one stays: less is noise.
const WORTHWHILE: f64 = 1.03;

/// What to tune, and for how long.
#[derive(Debug, Clone)]
pub struct Options {
    /// Only this op, by the name that profiles use; all of them without.
    pub op: Option<String>,
    /// The time that all measurements together should take. Each case tries at least its current choice.
    pub budget: Duration,
}

impl Default for Options {
    /// Every op, one minute.
    fn default() -> Self {
        Self { op: None, budget: Duration::from_secs(60) }
    }
}

/// What `tune` is about to try.
#[derive(Debug, Clone)]
pub struct Step<'a> {
    /// The op.
    pub op: &'a str,
    /// The case's sizes, as people write them.
    pub case: &'a str,
    /// The candidate.
    pub candidate: &'a Candidate,
    /// Candidates of this run that are done.
    pub done: usize,
    /// Candidates of this run.
    pub total: usize,
}

/// A kernel variant with sizes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The variant's name.
    pub variant: String,
    /// Its sizes; may be empty.
    pub parameters: Parameters,
}

impl std::fmt::Display for Candidate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.variant)?;
        if !self.parameters.is_empty() {
            write!(f, " {}", self.parameters)?;
        }
        Ok(())
    }
}

/// What became of a candidate.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Outcome {
    /// It computes the right result in this time.
    Time(Duration),
    /// It cannot serve the case, for this reason.
    Refused(String),
    /// It failed, or its result is not that of the plain kernels.
    Wrong(String),
    /// The budget was spent before its turn.
    NotTried,
}

/// All that was found about one case.
#[derive(Debug, Clone)]
pub struct CaseResult {
    /// The op, as profiles name it.
    pub op: &'static str,
    /// The sizes, as people write them.
    pub case: &'static str,
    /// The sizes for which the answer shall hold, as a profile's `when`.
    pub when: &'static str,
    /// What the profile chose before, with its time.
    pub current: (Candidate, Duration),
    /// The fastest; the current choice unless another one is clearly faster.
    pub best: (Candidate, Duration),
    /// Every candidate but the current choice.
    pub tried: Vec<(Candidate, Outcome)>,
}

impl CaseResult {
    /// How many times as fast as before.
    pub fn speedup(&self) -> f64 {
        self.current.1.as_secs_f64() / self.best.1.as_secs_f64()
    }
}

/// The outcome of tuning a device.
#[derive(Debug)]
pub struct Tuning {
    /// The device.
    pub device: DeviceInfo,
    /// The profile that was in force, without what an earlier tuning had added.
    pub base: Arc<Profile>,
    /// In the order in which they were measured.
    pub cases: Vec<CaseResult>,
    /// Entries of an earlier tuning for ops that this one did not look at.
    kept: Vec<(String, Vec<KernelEntry>)>,
}

/// Tries the candidates for each case of a device, within the budget. `progress` hears of each candidate before it runs.
///
/// # Errors
/// An unknown device or op; the failure of the current choice of a case, without which there is nothing to compare.
pub fn tune(
    session: &Session,
    device: &str,
    options: &Options,
    progress: &mut dyn FnMut(&Step<'_>),
) -> Result<Tuning, Error> {
    let device = session.open_device(device)?;
    let info = device.info().clone();
    let (base, previous) = file::profiles_of(session, &info)?;
    let cases = cases(options.op.as_deref())?;
    let in_force = previous.clone().unwrap_or_else(|| base.clone());
    let bench = measure::Bench::new(session, device, base.clone(), in_force)?;
    let candidates: Vec<Vec<Candidate>> = cases.iter().map(|case| bench.candidates(case)).collect();
    let total = candidates.iter().map(|list| list.len() + 1).sum();
    let (begin, mut done) = (Instant::now(), 0);
    let mut results = Vec::new();
    for (number, (case, candidates)) in cases.iter().zip(candidates).enumerate() {
        // What earlier cases left over is shared among the rest.
        let left = options.budget.saturating_sub(begin.elapsed());
        let share = left / (cases.len() - number) as u32;
        results.push(bench.run(case, candidates, share, &mut |candidate| {
            progress(&Step { op: case.op, case: case.label, candidate, done, total });
            done += 1;
        })?);
    }
    let tuned = |op: &str| results.iter().any(|result: &CaseResult| result.op == op);
    let kept = previous.map_or_else(Vec::new, |previous| file::entries_of(&previous, |op| !tuned(op)));
    Ok(Tuning { device: info, base, cases: results, kept })
}
