//! Where findings go: each once to the sink, repeats into counts.

use super::finding::{Finding, FindingKind};
use super::lock;
use super::place::Place;
use super::stack;
use halite_hal::DeviceId;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::{Arc, Mutex};

/// Who is told of findings.
#[derive(Clone)]
pub(super) enum Sink {
    /// Blocks of text on the standard error stream, and a line when a device closes.
    Stderr,
    /// A program's own function.
    Call(Arc<dyn Fn(&Finding) + Send + Sync>),
}

/// A finding that is not yet known to be new.
pub(super) struct Draft {
    pub(super) kind: FindingKind,
    /// Findings with the same kind, key and place are repeats.
    pub(super) key: String,
    pub(super) object: String,
    pub(super) message: String,
    pub(super) origin: Option<Arc<Place>>,
    pub(super) remedy: String,
}

/// Findings of one device.
pub(super) struct Reporter {
    device: DeviceId,
    sink: Sink,
    seen: Mutex<HashMap<(FindingKind, String), Seen>>,
}

#[derive(Default)]
struct Seen {
    times: u64,
    /// Stacks whose symbols were looked up.
    stacks: HashSet<u64>,
    places: Vec<String>,
    /// How often in a row that gave a place which was known.
    in_vain: u32,
}

/// Looking up symbols takes milliseconds, so after so many times in vain a finding is only counted. Stacks that were
/// looked up already do not come that far.
const MOST_IN_VAIN: u32 = 256;

impl Seen {
    /// Counts the finding; whether the symbols of this stack should be looked up.
    fn count(&mut self, stack: Option<u64>) -> bool {
        self.times += 1;
        self.in_vain < MOST_IN_VAIN && stack.is_none_or(|stack| self.stacks.insert(stack))
    }

    /// Whether nothing has been told of this place.
    fn is_new(&mut self, place: &str) -> bool {
        if self.places.iter().any(|known| known == place) {
            self.in_vain += 1;
            return false;
        }
        self.in_vain = 0;
        self.places.push(place.to_owned());
        true
    }
}

impl Reporter {
    pub(super) fn new(device: DeviceId, sink: Sink) -> Self {
        Self { device, sink, seen: Mutex::default() }
    }

    /// Tells the sink, unless it has heard the same from the same place.
    pub(super) fn report(&self, draft: Draft) {
        let Draft { kind, key, object, message, origin, remedy } = draft;
        let stack = stack::number();
        if !lock(&self.seen).entry((kind, key.clone())).or_default().count(stack) {
            return;
        }
        let place = Place::here().to_string();
        if !lock(&self.seen).entry((kind, key)).or_default().is_new(&place) {
            return;
        }
        let origin = origin.map(|origin| origin.to_string());
        let device = self.device.clone();
        self.tell(&Finding { kind, device, object, message, place, origin, remedy });
    }

    /// Says on the standard error stream how many findings there were, and what else is worth a word.
    pub(super) fn summary(&self, calls: u64, rest: &str) {
        if matches!(self.sink, Sink::Stderr) {
            print(&format!("validate: {}: {} in {calls} calls{rest}", self.device, self.counts()));
        }
    }

    fn tell(&self, finding: &Finding) {
        match &self.sink {
            Sink::Stderr => print(&finding.to_string()),
            Sink::Call(call) => call(finding),
        }
    }

    /// `no findings`, or `3 findings (2 race, 1 red zone), 14 repeats`.
    fn counts(&self) -> String {
        let mut kinds: BTreeMap<FindingKind, usize> = BTreeMap::new();
        let (mut told, mut times) = (0, 0);
        for ((kind, _), entry) in lock(&self.seen).iter() {
            *kinds.entry(*kind).or_default() += entry.places.len();
            told += entry.places.len() as u64;
            times += entry.times;
        }
        if told == 0 {
            return "no findings".to_owned();
        }
        let kinds: Vec<_> = kinds.iter().map(|(kind, count)| format!("{count} {}", kind.name())).collect();
        let mut text =
            format!("{told} {} ({})", if told == 1 { "finding" } else { "findings" }, kinds.join(", "));
        if times > told {
            // Writing to a string does not fail.
            let _ = write!(text, ", {} repeats", times - told);
        }
        text
    }
}

/// One write, so that blocks of several threads do not mix. Nobody is left to tell of a closed standard error stream.
fn print(text: &str) {
    let _ = std::io::stderr().lock().write_all(format!("{text}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_told_once_a_place_and_counted_every_time() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let sink = Sink::Call({
            let told = told.clone();
            Arc::new(move |finding: &Finding| lock(&told).push(finding.message.clone()))
        });
        let reporter = Reporter::new(DeviceId::new("test", 0), sink);
        assert_eq!(reporter.counts(), "no findings");
        let draft = |kind, key: &str| Draft {
            kind,
            key: key.to_owned(),
            object: "Buffer#1".to_owned(),
            message: format!("{key} is wrong"),
            origin: None,
            remedy: "do it right".to_owned(),
        };
        for _ in 0..100 {
            reporter.report(draft(FindingKind::Race, "a"));
        }
        reporter.report(draft(FindingKind::Race, "b"));
        reporter.report(draft(FindingKind::Leak, "a"));
        assert_eq!(*lock(&told), ["a is wrong", "b is wrong", "a is wrong"]);
        assert_eq!(reporter.counts(), "3 findings (2 race, 1 leak), 99 repeats");
    }

    #[test]
    fn symbols_are_looked_up_once_a_stack_and_not_for_ever_in_vain() {
        let mut seen = Seen::default();
        assert!(seen.count(Some(0)) && seen.is_new("a"));
        assert!((0..1000).all(|_| !seen.count(Some(0))));
        let mut looks = |stacks: std::ops::Range<u64>, place: &str| {
            stacks.filter(|stack| seen.count(Some(*stack)) && !seen.is_new(place)).count() as u32
        };
        // Many ways to a known place, then one to a new one, then as many again.
        assert_eq!(looks(1..200, "a"), 199);
        assert_eq!(looks(200..201, "b"), 0);
        assert_eq!(looks(201..1000, "b"), MOST_IN_VAIN);
        assert_eq!(seen.places, ["a", "b"]);
    }
}
