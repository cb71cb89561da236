//! How far one opening of a device has come in its script, and what befalls the next call.

use super::random::{draw, fraction};
use super::script::{Action, Call, Condition, Script};
use halite_hal::{Error, ErrorKind, Result};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Calls that a poisoned stream still accepts, and skips, before one of them reports the failure: asynchronous failures
/// are noticed late.
const MOST_UNNOTICED_CALLS: u64 = 4;

/// The script of one opening, with its counters.
pub(super) struct Schedule {
    script: Arc<Script>,
    state: Mutex<State>,
    /// Counts what strikes.
    injected: Arc<AtomicU64>,
}

struct State {
    counters: Vec<Counter>,
    lost: Option<String>,
}

#[derive(Clone, Copy, Default)]
struct Counter {
    calls: u64,
    strikes: u64,
}

/// A fault that is due at a call.
#[derive(Debug)]
pub(super) struct Injection {
    pub(super) action: Action,
    /// A number of this rule and call.
    pub(super) drawn: u64,
    /// By which rule, at which call.
    note: String,
}

impl Schedule {
    pub(super) fn new(script: Arc<Script>, injected: Arc<AtomicU64>) -> Self {
        let counters = vec![Counter::default(); script.rules.len()];
        Self { script, state: Mutex::new(State { counters, lost: None }), injected }
    }

    /// Counts a call of `bytes`, and tells what befalls it. Of several rules that strike, the first in the script.
    pub(super) fn next(&self, call: Call, bytes: u64) -> Option<Injection> {
        let mut state = self.state();
        let mut due = None;
        for (index, rule) in
            self.script.rules.iter().enumerate().filter(|(_, rule)| rule.point.contains(call))
        {
            let Counter { calls, strikes } = &mut state.counters[index];
            *calls += 1;
            let drawn = draw(self.script.seed, index, *calls);
            let is_hit = match rule.condition {
                Condition::Nth(n) => *calls >= n,
                Condition::Every(n) => calls.is_multiple_of(n),
                Condition::Above(limit) => bytes > limit,
                Condition::Probability(p) => fraction(drawn) < p,
            };
            if is_hit && due.is_none() && rule.times.is_none_or(|times| *strikes < times) {
                *strikes += 1;
                self.injected.fetch_add(1, Ordering::Relaxed);
                let note = format!(
                    "injected by the rule '{}' of the layer 'fault', at call {calls} of {}; without it in HALITE_LAYERS \
                     nothing is injected",
                    rule.text, rule.point.name
                );
                due = Some(Injection { action: rule.action, drawn, note });
            }
        }
        due
    }

    /// The lowest limit of memory in use, if a rule has one.
    pub(super) fn memory_limit(&self) -> Option<u64> {
        let limits = self.script.rules.iter().filter_map(|rule| match rule.condition {
            Condition::Above(limit) if rule.point.contains(Call::Allocate) => Some(limit),
            _ => None,
        });
        limits.min()
    }

    /// # Errors
    /// `DeviceLost` with the first reason, from the moment of the loss on.
    pub(super) fn check(&self) -> Result<()> {
        self.lost().map_or(Ok(()), |reason| Err(lost(reason)))
    }

    /// Why the device is lost, if it is.
    pub(super) fn lost(&self) -> Option<String> {
        self.state().lost.clone()
    }

    /// Loses the device for good, and gives the error that every call has from now on.
    pub(super) fn lose(&self, injection: &Injection) -> Error {
        let reason = format!("the device is gone, {}", injection.note);
        lost(self.state().lost.get_or_insert(reason).clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lost(reason: String) -> Error {
    Error::new(ErrorKind::DeviceLost, format!("{reason}; open the device anew"))
}

impl Injection {
    /// The error that a call or its work fails with. `what` names the work; `bytes` were asked for, and `free` are left.
    pub(super) fn error(&self, what: &dyn fmt::Display, bytes: u64, free: u64) -> Error {
        let kind = match self.action {
            Action::OutOfMemory => {
                ErrorKind::OutOfMemory { requested: bytes, free: free.min(bytes.saturating_sub(1)) }
            }
            Action::BuildError => {
                ErrorKind::Build { log: "1:1: error: injected, the source is in order".into() }
            }
            Action::Link => ErrorKind::Link,
            Action::Fault => ErrorKind::Fault,
            Action::Timeout => return self.timeout(None),
            Action::Fail | Action::Slow(_) | Action::Corrupt | Action::Lost => {
                ErrorKind::Backend { code: -1, message: "INJECTED_FAILURE".into() }
            }
        };
        Error::new(kind, format!("{what} failed, {}", self.note))
    }

    /// The error of a wait that ends early.
    pub(super) fn timeout(&self, limit: Option<Duration>) -> Error {
        let after = limit.unwrap_or_default();
        let message = format!("the work goes on, wait again; {}", self.note);
        Error::new(ErrorKind::Timeout { after }, message)
    }

    /// How many calls do not notice that the work of this one has failed.
    pub(super) fn unnoticed_calls(&self) -> u64 {
        self.drawn % (MOST_UNNOTICED_CALLS + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hits(script: &str, call: Call, calls: u64) -> Vec<u64> {
        let schedule = Schedule::new(Arc::new(Script::parse(script).unwrap()), Arc::default());
        (1..=calls).filter(|_| schedule.next(call, 100).is_some()).collect()
    }

    #[test]
    fn conditions_strike_where_they_say() {
        assert_eq!(hits("launch@3=fail", Call::Launch, 9), [3]);
        assert_eq!(hits("launch@3=fail 2 times", Call::Launch, 9), [3, 4]);
        assert_eq!(hits("launch@8=fail always", Call::Launch, 9), [8, 9]);
        assert_eq!(hits("launch%3=fail", Call::Launch, 9), [3, 6, 9]);
        assert_eq!(hits("launch%3=fail once", Call::Launch, 9), [3]);
        assert_eq!(hits("write>99B=fail 2 times", Call::Write, 9), [1, 2]);
        assert_eq!(hits("write>100B=fail", Call::Write, 9), [0; 0]);
        assert_eq!(hits("launch~0=fail", Call::Launch, 50), [0; 0]);
        assert_eq!(hits("launch~1=fail", Call::Launch, 3), [1, 2, 3]);
        assert_eq!(hits("device@2=lost", Call::Fill, 4), [2]);
        assert_eq!(hits("device@2=lost", Call::Event, 4), [0; 0], "waits depend on timing");
        assert_eq!(hits("launch@1=fail", Call::Fill, 4), [0; 0]);
    }

    #[test]
    fn probabilities_follow_from_the_seed_and_are_about_right() {
        let drawn = |seed| hits(&format!("seed={seed}; launch~0.1=fail"), Call::Launch, 2000);
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1), drawn(2));
        // 200 expected, with a standard deviation of 13: six of them.
        assert!((120..280).contains(&drawn(3).len()), "{}", drawn(3).len());
    }

    #[test]
    fn the_first_rule_wins_and_all_of_them_count() {
        let schedule = Schedule::new(
            Arc::new(Script::parse("launch@2=fail; stream@2=fault; launch@3=fault").unwrap()),
            Arc::default(),
        );
        let actions: Vec<_> = (0..4).map(|_| schedule.next(Call::Launch, 0).map(|i| i.action)).collect();
        // The second rule's turn passed with the first one's; it strikes at the next call, where the third waits too.
        assert_eq!(actions, [None, Some(Action::Fail), Some(Action::Fault), Some(Action::Fault)]);
    }
}
