//! Sides of a comparison that take turns, so that a machine that slows down slows all of them.

use crate::Outcome;
use std::time::Duration;

/// How long measurements take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    /// Turns of every side.
    pub(crate) rounds: usize,
    /// Length of a turn.
    pub(crate) seconds: f64,
}

/// Repetitions of a turn, however short each is.
const MOST_REPETITIONS: f64 = 100_000.0;

/// Runs that often, and says how long it took until the device was done.
type Run<'a> = Box<dyn FnMut(u64) -> Outcome<Duration> + 'a>;

/// One side of a comparison.
pub(crate) struct Side<'a> {
    pub(crate) name: String,
    run: Run<'a>,
}

impl<'a> Side<'a> {
    pub(crate) fn new(name: impl Into<String>, run: impl FnMut(u64) -> Outcome<Duration> + 'a) -> Self {
        Self { name: name.into(), run: Box::new(run) }
    }

    /// Repetitions that fill a turn. The first run plans, compiles and fills caches.
    fn repetitions(&mut self, seconds: f64) -> Outcome<u64> {
        (self.run)(1)?;
        let mut count = 1;
        for share in [0.05, 0.25, 1.0] {
            let each = (self.run)(count)?.as_secs_f64() / count as f64;
            count = (share * seconds / each.max(1e-9)).clamp(1.0, MOST_REPETITIONS) as u64;
        }
        Ok(count)
    }
}

/// Seconds of one run of each side, round by round.
pub(crate) fn race(sides: &mut [Side<'_>], timing: Timing) -> Outcome<Vec<Vec<f64>>> {
    let counts =
        sides.iter_mut().map(|side| side.repetitions(timing.seconds)).collect::<Outcome<Vec<u64>>>()?;
    let mut seconds = vec![Vec::with_capacity(timing.rounds); sides.len()];
    for round in 0..timing.rounds {
        for turn in 0..sides.len() {
            // Who goes first changes, so that nobody always meets a warmer machine.
            let index = (turn + round) % sides.len();
            let time = (sides[index].run)(counts[index])?;
            seconds[index].push(time.as_secs_f64() / counts[index] as f64);
        }
    }
    Ok(seconds)
}

/// A median with its smallest and largest value.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Of at least one number.
    pub(crate) fn of(numbers: impl IntoIterator<Item = f64>) -> Self {
        let mut numbers: Vec<f64> = numbers.into_iter().collect();
        numbers.sort_by(f64::total_cmp);
        let last = numbers.len() - 1;
        let median = (numbers[last / 2] + numbers[numbers.len() / 2]) / 2.0;
        Self { median, min: numbers[0], max: numbers[last] }
    }
}
