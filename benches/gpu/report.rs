//! What was measured, as a table or as JSON.

use crate::race::{Side, Spread, race};
use crate::{Outcome, Subject};
use halite::DType;
use halite::cli::output;
use serde_json::{Value, json};
use std::fmt::Display;

/// What one run does.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Work {
    /// Floating-point operations.
    Flops(f64),
    /// Bytes read and written.
    Bytes(f64),
    /// Launches, steps and the like, which take time instead of having a rate.
    Times(f64),
}

impl Work {
    fn amount(self) -> f64 {
        let (Self::Flops(amount) | Self::Bytes(amount) | Self::Times(amount)) = self;
        amount
    }

    /// A rate, or the time of one.
    fn show(self, seconds: f64) -> String {
        let rate = self.amount() / seconds;
        match self {
            Self::Flops(_) if rate >= 1e12 => format!("{:.1} TFLOP/s", rate / 1e12),
            Self::Flops(_) => format!("{:.1} GFLOP/s", rate / 1e9),
            Self::Bytes(_) => format!("{:.1} GB/s", rate / 1e9),
            Self::Times(_) if rate > 1e3 => format!("{:.2} us", 1e6 / rate),
            Self::Times(_) => format!("{:.3} ms", 1e3 / rate),
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Flops(_) => "flop",
            Self::Bytes(_) => "byte",
            Self::Times(_) => "run",
        }
    }
}

/// Two sides of a comparison, by their place in the race, and what their speeds' ratio must reach.
pub(crate) struct Pair {
    pub(crate) ours: usize,
    pub(crate) peer: Option<usize>,
    pub(crate) required: Option<f64>,
}

impl Pair {
    /// The first side next to the second, if there is one.
    pub(crate) fn first(sides: &[Side<'_>], required: Option<f64>) -> Self {
        Self { ours: 0, peer: (sides.len() > 1).then_some(1), required }
    }
}

struct Row {
    part: &'static str,
    case: String,
    ours: Measured,
    peer: Option<(Measured, Spread)>,
    required: Option<f64>,
}

/// One side's name and speed.
struct Measured {
    name: String,
    work: Work,
    seconds: f64,
}

/// Everything that was measured, and what was not.
pub(crate) struct Report {
    device: Value,
    title: String,
    subject: crate::race::Timing,
    part: &'static str,
    rows: Vec<Row>,
    notes: Vec<(&'static str, String)>,
    has_failed: bool,
}

impl Report {
    pub(crate) fn new(subject: &Subject) -> Self {
        let (info, profile) = (&subject.info, subject.engine.profile());
        let peak = profile.peak_rate(DType::F32);
        let device = json!({
            "device": info.id.to_string(), "name": info.name, "driver": info.driver_version,
            "profile": profile.name(), "peak_f32_flops": peak, "peak_bytes_per_second": profile.peak_bandwidth(),
            "rounds": subject.timing.rounds,
        });
        let title = format!(
            "{}: {}, driver {}, profile {}; {} rounds",
            info.id,
            info.name,
            info.driver_version,
            profile.name(),
            subject.timing.rounds
        );
        let (rows, notes) = (Vec::new(), Vec::new());
        Self { device, title, subject: subject.timing, part: "", rows, notes, has_failed: false }
    }

    /// What follows belongs to this part.
    pub(crate) fn begin(&mut self, part: &'static str) {
        self.part = part;
    }

    /// Says something about the part, such as why a side is missing.
    pub(crate) fn note(&mut self, text: impl Display) {
        eprintln!("{}: {text}", self.part);
        self.notes.push((self.part, text.to_string()));
    }

    /// Ends a part that cannot go on.
    pub(crate) fn fail(&mut self, error: impl Display) {
        self.note(format!("FAILED: {error}"));
        self.has_failed = true;
    }

    /// Lets the sides take turns and notes every pair. `works` says what each side does in a run.
    pub(crate) fn measure(
        &mut self,
        case: &str,
        mut sides: Vec<Side<'_>>,
        works: &[Work],
        pairs: &[Pair],
    ) -> Outcome {
        eprintln!("  {case}");
        let seconds = race(&mut sides, self.subject)?;
        let measured = |index: usize| Measured {
            name: sides[index].name.clone(),
            work: works[index],
            seconds: Spread::of(seconds[index].iter().copied()).median,
        };
        for pair in pairs {
            let peer = pair.peer.map(|peer| {
                let share = works[pair.ours].amount() / works[peer].amount();
                let rounds = seconds[pair.ours].iter().zip(&seconds[peer]);
                (measured(peer), Spread::of(rounds.map(|(ours, theirs)| share * theirs / ours)))
            });
            let (case, ours) = (case.to_owned(), measured(pair.ours));
            self.rows.push(Row { part: self.part, case, ours, peer, required: pair.required });
        }
        Ok(())
    }

    /// Whether every required ratio is reached, and no part has failed.
    pub(crate) fn is_met(&self) -> bool {
        !self.has_failed && self.rows.iter().all(|row| row.is_met() != Some(false))
    }

    pub(crate) fn print(&self, is_json: bool) -> std::io::Result<()> {
        let mut text = String::new();
        if is_json {
            text.push_str(&format!("{}\n", self.device));
            self.rows.iter().for_each(|row| text.push_str(&format!("{}\n", row.json())));
            for (part, note) in &self.notes {
                text.push_str(&format!("{}\n", json!({ "part": part, "note": note })));
            }
            return output::print(&text);
        }
        let names = ["case", "side", "speed", "next to", "its speed", "ratio", "min", "max", "required"];
        let mut table = output::table(&names, &[2, 4, 5, 6, 7, 8], output::columns().max(130));
        for row in &self.rows {
            table.add_row(row.cells());
        }
        text.push_str(&format!("{}\n{table}\n", self.title));
        text.push_str(
            "ratio: speed over the peer's, of each round; the median with its smallest and largest value\n",
        );
        for (part, note) in &self.notes {
            text.push_str(&format!("{part}: {note}\n"));
        }
        output::print(&text)
    }
}

impl Row {
    /// None where nothing is required.
    fn is_met(&self) -> Option<bool> {
        let required = self.required?;
        Some(self.peer.as_ref()?.1.median >= required)
    }

    fn cells(&self) -> Vec<String> {
        let mut cells =
            vec![self.case.clone(), self.ours.name.clone(), self.ours.work.show(self.ours.seconds)];
        if let Some((peer, ratio)) = &self.peer {
            cells.extend([peer.name.clone(), peer.work.show(peer.seconds)]);
            cells.extend([ratio.median, ratio.min, ratio.max].map(|ratio| format!("{ratio:.2}")));
            cells.push(self.required.map_or_else(String::new, |required| {
                let verdict = if self.is_met() == Some(true) { "met" } else { "MISSED" };
                format!("{required:.2} {verdict}")
            }));
        }
        cells
    }

    fn json(&self) -> Value {
        let side = |side: &Measured| {
            json!({
                "name": side.name, "seconds": side.seconds,
                "per_second": side.work.amount() / side.seconds, "unit": side.work.unit(),
            })
        };
        let ratio = self.peer.as_ref().map(|(_, ratio)| ratio);
        json!({
            "part": self.part, "case": self.case, "ours": side(&self.ours),
            "peer": self.peer.as_ref().map(|(peer, _)| side(peer)),
            "ratio": ratio.map(|ratio| ratio.median), "ratio_min": ratio.map(|ratio| ratio.min),
            "ratio_max": ratio.map(|ratio| ratio.max),
            "required": self.required, "is_met": self.is_met(),
        })
    }
}
