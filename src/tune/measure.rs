//! Trying candidates: each as the only choice of a profile, checked first, then timed next to the current choice.

use super::{Candidate, Case, CaseResult, Outcome, WORTHWHILE};
use crate::{Error, Session};
use halite_hal::Device;
use halite_ops::{Catalog, Engine, Tensor, eval};
use halite_profiles::Profile;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Sums of up to 2,048 products of numbers below 1 in another order, relative to the largest result.
const RTOL: f64 = 1e-4;
/// One reading of the clock spans at least this much work, against its resolution and the cost of waiting.
const BATCH: Duration = Duration::from_millis(4);
/// Candidates that are timed again, side by side with the current choice.
const FINALISTS: usize = 3;
/// Readings of each finalist, in turns, so that a slow moment of the machine meets all of them.
const ROUNDS: usize = 15;

/// A device with the profile that candidates are compared to, and the kernels that they are checked against.
pub(super) struct Bench {
    device: Device,
    /// What candidates extend: the profile without what an earlier tuning added.
    base: Arc<Profile>,
    /// What is launched today.
    in_force: Arc<Profile>,
    catalog: Catalog,
    fallback: Engine,
    plain: Engine,
}

/// A candidate that computes the right result.
struct Entrant {
    candidate: Candidate,
    engine: Engine,
    inputs: Vec<Tensor>,
    /// Evaluations per reading of the clock.
    batch: u32,
    best: Duration,
}

impl Bench {
    pub(super) fn new(
        session: &Session,
        device: Device,
        base: Arc<Profile>,
        in_force: Arc<Profile>,
    ) -> Result<Self, Error> {
        let catalog = session.catalog().clone();
        let cpu = session.open_device("cpu")?;
        // The portable kernels, also where the user's own profile would choose others.
        let portable = halite_profiles::ProfileSet::builtin().by_name("cpu")?;
        let plain = Engine::new(cpu.clone(), portable, catalog.clone(), None)?;
        let fallback = session.open("cpu")?;
        Ok(Self { device, base, in_force, catalog, fallback, plain })
    }

    /// What could serve the case: the sizes that the profile lists and those that the variants bring along.
    pub(super) fn candidates(&self, case: &Case) -> Vec<Candidate> {
        let info = self.device.info();
        let mut candidates: Vec<Candidate> = Vec::new();
        let usable = self.catalog.variants_of(case.op).filter(|variant| {
            info.accepts(&variant.format) && variant.requires.iter().all(|feature| info.has_feature(feature))
        });
        for variant in usable {
            let own = self.base.kernel_entries(case.op).iter();
            let own = own.filter(|entry| entry.variant() == variant.name).map(|entry| entry.parameters());
            let mut sizes: Vec<_> = own.chain(&variant.candidates).cloned().collect();
            if sizes.is_empty() {
                sizes.push(Default::default());
            }
            for parameters in sizes {
                let candidate = Candidate { variant: variant.name.clone(), parameters };
                if !candidates.contains(&candidate) {
                    candidates.push(candidate);
                }
            }
        }
        candidates
    }

    /// Tries the candidates of a case for about `share`.
    pub(super) fn run(
        &self,
        case: &Case,
        candidates: Vec<Candidate>,
        share: Duration,
        progress: &mut dyn FnMut(&Candidate),
    ) -> Result<CaseResult, Error> {
        let begin = Instant::now();
        let expected = values(case, &case.inputs_on(&self.plain)?)?;
        let engine = self.engine(self.in_force.clone())?;
        let current = self.chosen(case, &engine)?;
        progress(&current);
        let reference = self.enter(case, current.clone(), engine, &expected)?.map_err(|outcome| {
            let (Outcome::Refused(reason) | Outcome::Wrong(reason)) = outcome else {
                return halite_hal::Error::invalid("the current choice was not tried");
            };
            let message =
                format!("the current choice '{current}' of {} cannot be compared: {reason}", case.op);
            halite_hal::Error::unsupported(message)
        })?;
        let mut entrants = vec![reference];
        let mut tried: Vec<(Candidate, Outcome)> = Vec::new();
        for candidate in candidates.into_iter().filter(|candidate| *candidate != current) {
            progress(&candidate);
            if begin.elapsed() >= share {
                tried.push((candidate, Outcome::NotTried));
                continue;
            }
            match self.try_candidate(case, &candidate, &expected) {
                Ok(entrant) => {
                    tried.push((candidate, Outcome::Time(entrant.best)));
                    entrants.push(entrant);
                }
                Err(outcome) => tried.push((candidate, outcome)),
            }
        }
        // The current choice takes part in the final, so that both were measured in the same minutes.
        entrants[1..].sort_by_key(|entrant| entrant.best);
        entrants.truncate(1 + FINALISTS);
        for _ in 0..ROUNDS {
            for entrant in &mut entrants {
                entrant.best = entrant.best.min(entrant.reading(case)?);
            }
        }
        for entrant in &entrants {
            if let Some(found) = tried.iter_mut().find(|(candidate, _)| *candidate == entrant.candidate) {
                found.1 = Outcome::Time(entrant.best);
            }
        }
        let before = (entrants[0].candidate.clone(), entrants[0].best);
        let fastest = entrants[1..].iter().min_by_key(|entrant| entrant.best);
        let best = match fastest {
            Some(fastest) if fastest.best.as_secs_f64() * WORTHWHILE < before.1.as_secs_f64() => {
                (fastest.candidate.clone(), fastest.best)
            }
            _ => before.clone(),
        };
        Ok(CaseResult { op: case.op, case: case.label, when: case.when, current: before, best, tried })
    }

    fn engine(&self, profile: Arc<Profile>) -> Result<Engine, Error> {
        Ok(Engine::new(self.device.clone(), profile, self.catalog.clone(), Some(self.fallback.clone()))?)
    }

    fn try_candidate(
        &self,
        case: &Case,
        candidate: &Candidate,
        expected: &[Vec<f64>],
    ) -> Result<Entrant, Outcome> {
        let refused = |error: &dyn std::fmt::Display| Outcome::Refused(error.to_string());
        let Candidate { variant, parameters } = candidate;
        let separator = if parameters.is_empty() { "" } else { ", " };
        let text = format!(
            "name: candidate\nextends: {}\nkernels:\n  {}:\n  - {{ variant: {variant}{separator}{parameters} }}\n",
            self.base.name(),
            case.op
        );
        let profile = self.base.extended_by(&text, "candidate").map_err(|error| refused(&error))?;
        let engine = self.engine(Arc::new(profile)).map_err(|error| refused(&error))?;
        let chosen = self.chosen(case, &engine).map_err(|error| refused(&error))?;
        if chosen != *candidate {
            return Err(Outcome::Refused(format!("it does not serve these sizes; {chosen} would run")));
        }
        self.enter(case, candidate.clone(), engine, expected)
            .map_err(|error| Outcome::Wrong(error.to_string()))?
    }

    /// What the engine's profile makes of the case's op.
    fn chosen(&self, case: &Case, engine: &Engine) -> Result<Candidate, Error> {
        let outputs = (case.compute)(&case.inputs_on(engine)?)?;
        let launches = engine.explain(&outputs.iter().collect::<Vec<_>>())?;
        let own = launches.iter().find(|launch| launch.op == case.op);
        let own = own.ok_or_else(|| {
            halite_hal::Error::unsupported(format!("{} is fused away on this device", case.op))
        })?;
        if own.device != self.device.id().to_string() {
            return Err(halite_hal::Error::unsupported(format!("{} runs on {}", case.op, own.device)).into());
        }
        Ok(Candidate { variant: own.variant.clone(), parameters: own.parameters.clone() })
    }

    /// Computes the case once and compares; the first reading finds how often it runs per reading.
    fn enter(
        &self,
        case: &Case,
        candidate: Candidate,
        engine: Engine,
        expected: &[Vec<f64>],
    ) -> Result<Result<Entrant, Outcome>, Error> {
        let inputs = case.inputs_on(&engine)?;
        if let Some(difference) = disagreement(&values(case, &inputs)?, expected) {
            return Ok(Err(Outcome::Wrong(difference)));
        }
        let mut entrant = Entrant { candidate, engine, inputs, batch: 1, best: Duration::MAX };
        let once = entrant.reading(case)?.max(Duration::from_nanos(100));
        entrant.batch = (BATCH.as_nanos() / once.as_nanos()).clamp(1, 10_000) as u32;
        entrant.best = entrant.reading(case)?;
        Ok(Ok(entrant))
    }
}

impl Entrant {
    /// Time of one evaluation, averaged over a batch.
    fn reading(&self, case: &Case) -> Result<Duration, Error> {
        self.engine.synchronize()?;
        let begin = Instant::now();
        for _ in 0..self.batch {
            let outputs = (case.compute)(&self.inputs)?;
            eval(&outputs.iter().collect::<Vec<_>>())?;
        }
        self.engine.synchronize()?;
        Ok(begin.elapsed() / self.batch)
    }
}

fn values(case: &Case, inputs: &[Tensor]) -> Result<Vec<Vec<f64>>, Error> {
    let outputs = (case.compute)(inputs)?;
    eval(&outputs.iter().collect::<Vec<_>>())?;
    Ok(outputs.iter().map(Tensor::to_f64).collect::<Result<_, _>>()?)
}

/// How a result differs from the expected one by more than the order of its sums explains.
fn disagreement(got: &[Vec<f64>], expected: &[Vec<f64>]) -> Option<String> {
    got.iter().zip(expected).enumerate().find_map(|(output, (got, expected))| {
        let scale = expected.iter().fold(0.0, |scale: f64, x| scale.max(x.abs()));
        let differs = |(got, expected): (&f64, &f64)| {
            // Also true where the result is NaN.
            let agrees = (got - expected).abs() <= RTOL * scale;
            !agrees
        };
        let place = got.iter().zip(expected).position(differs)?;
        Some(format!("element {place} of output {output} is {}, expected {}", got[place], expected[place]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_disagree_beyond_the_tolerance_and_wherever_one_is_nan() {
        let expected = vec![vec![1.0, -100.0]];
        assert_eq!(disagreement(&[vec![1.005, -100.0]], &expected), None);
        assert!(disagreement(&[vec![1.02, -100.0]], &expected).is_some());
        let nan = disagreement(&[vec![1.0, f64::NAN]], &expected).unwrap();
        assert!(nan.contains("element 1 of output 0 is NaN, expected -100"), "{nan}");
    }
}
