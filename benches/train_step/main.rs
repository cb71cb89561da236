//! Times the training step on the CPU: `cargo bench --bench train_step -- --threads 2 --case digits8x8-b32`.
//!
//! Prints one JSON object per case: `{"case":"digits8x8-b32","seconds_per_step":0.00041}`. `benches/peers` runs this
//! in turn with other frameworks.

#[path = "../common/mod.rs"]
mod common;

use common::{CASES, Case, TrainStep};
use halite::hal::driver::Backend;
use halite::profiles::{DeviceFacts, ProfileSet, SearchPath};
use halite::{Catalog, Engine};
use halite_cpu::{CpuBackend, CpuConfig};
use std::error::Error;
use std::process::ExitCode;

const USAGE: &str = "usage: train_step [--threads N] [--case NAME]... [--seconds S]";

/// Steps before the first measurement: the plan is made, caches and the clock are warm.
const WARM_UP_STEPS: u64 = 50;
/// Steps from which the number that fills the time is estimated.
const TRIAL_STEPS: u64 = 20;
/// Steps of a measurement, however slow.
const FEWEST_STEPS: u64 = 10;

struct Options {
    threads: Option<usize>,
    cases: Vec<&'static Case>,
    /// Length of one measurement.
    seconds: f64,
}

impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self { threads: None, cases: Vec::new(), seconds: 1.0 };
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value; {USAGE}"));
            match word.as_str() {
                // Cargo says so to every benchmark.
                "--bench" => {}
                "--threads" => options.threads = Some(number(&word, &value()?)?),
                "--seconds" => options.seconds = number(&word, &value()?)?,
                "--case" => {
                    let name = value()?;
                    let case = CASES.iter().find(|case| case.name == name).ok_or_else(|| {
                        let known = CASES.map(|case| case.name).join(", ");
                        format!("there is no case '{name}'; use one of {known}")
                    })?;
                    options.cases.push(case);
                }
                other => return Err(format!("unknown argument '{other}'; {USAGE}")),
            }
        }
        if options.cases.is_empty() {
            options.cases = CASES.iter().collect();
        }
        Ok(options)
    }
}

fn number<T: std::str::FromStr>(name: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{name} is '{text}', which is no number of that kind; {USAGE}"))
}

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    match measure(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options) -> Result<(), Box<dyn Error>> {
    let config = CpuConfig { threads: options.threads, ..CpuConfig::from_env()? };
    let device = CpuBackend::new(config).open(0)?;
    let profile = ProfileSet::load(&SearchPath::from_env())?.select(&DeviceFacts::from(device.info()))?;
    let engine = Engine::new(device, profile, Catalog::builtin(), None)?;
    let mut prepared = Vec::new();
    for case in &options.cases {
        let mut step = TrainStep::new(&engine, case)?;
        step.run(WARM_UP_STEPS)?;
        let seconds_per_step = step.run(TRIAL_STEPS)?.as_secs_f64() / TRIAL_STEPS as f64;
        let steps = ((options.seconds / seconds_per_step) as u64).max(FEWEST_STEPS);
        prepared.push((case.name, step, steps));
    }
    for (name, step, steps) in &mut prepared {
        // The other cases have emptied the caches.
        step.run(*steps / 10)?;
        let seconds_per_step = step.run(*steps)?.as_secs_f64() / *steps as f64;
        let loss = step.mean_loss()?;
        if !loss.is_finite() {
            return Err(format!("{name}: the loss became {loss}: these steps trained nothing").into());
        }
        println!("{{\"case\":\"{name}\",\"seconds_per_step\":{seconds_per_step:.9}}}");
    }
    Ok(())
}
