//! Where findings go: each once to the sink, repeats into counts.

use super::finding::{Finding, FindingKind};
use super::lock;
use super::place::Place;
use halite_hal::DeviceId;
use std::collections::{BTreeMap, HashMap};
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
    places: Vec<String>,
}

/// From here on a finding is only counted: looking up symbols takes milliseconds.
const LOOKED_AT: u64 = 64;

impl Reporter {
    pub(super) fn new(device: DeviceId, sink: Sink) -> Self {
        Self { device, sink, seen: Mutex::default() }
    }

    /// Tells the sink, unless it has heard the same from the same place.
    pub(super) fn report(&self, draft: Draft) {
        let Draft { kind, key, object, message, origin, remedy } = draft;
        let looks = {
            let mut seen = lock(&self.seen);
            let entry = seen.entry((kind, key.clone())).or_default();
            entry.times += 1;
            entry.times <= LOOKED_AT
        };
        if !looks {
            return;
        }
        let place = Place::here().to_string();
        {
            let mut seen = lock(&self.seen);
            let entry = seen.entry((kind, key)).or_default();
            if entry.places.contains(&place) {
                return;
            }
            entry.places.push(place.clone());
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
}
