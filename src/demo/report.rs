//! What the demo found out: the numbers per device, as JSON for programs and as a table for people.

use crate::cli::output;
use comfy_table::{ColumnConstraint, Width};
use serde::{Serialize, Serializer};
use std::fmt::Write;

/// The result of `halite demo`. Its JSON is a stable interface: fields may be added, none renamed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DemoReport {
    /// What was learnt: `digits`.
    pub task: String,
    /// Images to train with.
    pub train_images: usize,
    /// Images to test with.
    pub test_images: usize,
    /// Every device that was asked for, also one that failed.
    pub devices: Vec<DeviceReport>,
    /// Every backend without a device.
    pub unavailable: Vec<UnavailableBackend>,
}

/// The result of one device. What a device that failed did not get to know is `null`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeviceReport {
    /// Name within this process, such as `cpu:0`.
    pub id: String,
    /// The product's name.
    pub name: String,
    /// Epochs that were completed.
    pub epochs: u32,
    /// Mean training loss of each completed epoch.
    pub loss: Vec<f64>,
    /// Share of the test images that were recognised.
    pub test_accuracy: Option<f64>,
    /// Training images per second, over all epochs.
    pub images_per_second: Option<f64>,
    /// Most device memory in use at one time.
    pub peak_memory_bytes: u64,
    /// Kernels launched.
    pub launches: u64,
    /// Operations that another device had to run.
    pub fallbacks: Vec<Fallback>,
    /// Why the device stopped early.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "one_line")]
    pub error: Option<String>,
    /// Whether it stopped for what the user wrote, such as a profile, and not for a failure of the device.
    #[serde(skip)]
    pub is_wrong_input: bool,
}

/// An operation that another device had to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fallback {
    /// The operation.
    pub op: String,
    /// Why the device could not run it.
    pub reason: String,
}

/// A backend that has no device on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnavailableBackend {
    /// Its name, such as `cuda`.
    pub backend: String,
    /// What was looked for, and what is missing.
    pub reason: String,
}

impl DemoReport {
    /// Whether every device came through.
    pub fn succeeded(&self) -> bool {
        self.devices.iter().all(|device| device.error.is_none())
    }

    /// Whether a device stopped for what the user wrote.
    pub fn has_wrong_input(&self) -> bool {
        self.devices.iter().any(|device| device.is_wrong_input)
    }

    /// One JSON object in one line.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings, numbers and lists of them always serialise")
    }

    /// A table for a terminal of `columns`, then failures, fallbacks and absent backends, a line each.
    pub fn to_table(&self, columns: u16) -> String {
        // Below this a product's name takes the room that numbers need, and moves under the table.
        let wide = columns >= 100;
        let names = ["device", "loss per epoch", "test", "images/s", "memory", "launches", "fallbacks"];
        let mut table = output::table(&names, &[2, 3, 4, 5], columns);
        table.set_constraints([ColumnConstraint::LowerBoundary(Width::Fixed(8))]);
        for device in &self.devices {
            table.add_row([
                if wide { format!("{}\n{}", device.id, device.name) } else { device.id.clone() },
                loss_summary(&device.loss, wide),
                device.test_accuracy.map_or_else(|| "failed".to_owned(), percent),
                device.images_per_second.map_or_else(|| "-".to_owned(), whole),
                output::bytes(device.peak_memory_bytes),
                output::grouped(device.launches),
                if device.fallbacks.is_empty() {
                    "none".to_owned()
                } else {
                    device.fallbacks.len().to_string()
                },
            ]);
        }
        // Narrower still, cells wrap.
        for column in if columns >= 80 { 1..names.len() } else { 0..0 } {
            if let Some(column) = table.column_mut(column) {
                column.set_constraint(ColumnConstraint::ContentWidth);
            }
        }

        let mut text = format!(
            "{} images of handwritten digits to train with, {} to test with\n{table}\n",
            output::grouped(self.train_images as u64),
            output::grouped(self.test_images as u64)
        );
        if !wide {
            for device in &self.devices {
                let _ = writeln!(text, "{}: {}", device.id, joined(&device.name));
            }
        }
        for device in &self.devices {
            if let Some(error) = &device.error {
                let _ =
                    writeln!(text, "{} failed after {}: {}", device.id, epochs(device.epochs), joined(error));
            }
            for fallback in &device.fallbacks {
                let _ = writeln!(
                    text,
                    "{} fell back for {}: {}",
                    device.id,
                    fallback.op,
                    joined(&fallback.reason)
                );
            }
        }
        text.push_str(&unavailable_lines(&self.unavailable));
        text
    }
}

/// One line per absent backend, with its reason; empty where none is absent.
pub fn unavailable_lines(unavailable: &[UnavailableBackend]) -> String {
    let width = unavailable.iter().map(|absent| absent.backend.len()).max().unwrap_or(0);
    let mut text = String::new();
    for absent in unavailable {
        let _ = writeln!(text, "absent: {:width$}  {}", absent.backend, joined(&absent.reason));
    }
    text
}

/// A share as people read it: `98.3 %`.
pub(super) fn percent(share: f64) -> String {
    // Down, so that 100 % means all of them.
    format!("{:.1} %", (share * 1000.0).floor() / 10.0)
}

/// A loss with three digits that count: `2.31`, `0.0425`.
pub(super) fn loss_digits(loss: f64) -> String {
    if !loss.is_finite() {
        return loss.to_string();
    }
    let magnitude = if loss == 0.0 { 0 } else { loss.abs().log10().floor() as i32 };
    format!("{loss:.*}", (2 - magnitude).clamp(0, 6) as usize)
}

/// A count of epochs in words: `1 epoch`, `15 epochs`.
pub(super) fn epochs(count: u32) -> String {
    format!("{count} epoch{}", if count == 1 { "" } else { "s" })
}

/// At most `most` of the positions `0..len`, evenly apart, with the first and the last.
pub(super) fn sampled(len: usize, most: usize) -> impl Iterator<Item = usize> {
    let count = len.min(most);
    (0..count).map(move |n| if count < 2 { 0 } else { n * (len - 1) / (count - 1) })
}

/// Text that came from a driver or a plugin, in one line.
pub(super) fn joined(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A rate without its fraction.
pub(super) fn whole(number: f64) -> String {
    output::grouped(number.round() as u64)
}

/// The curve in one line, and its numbers: all of them if they fit, else the ends.
fn loss_summary(loss: &[f64], wide: bool) -> String {
    let shown = if wide { 4 } else { 2 };
    let digits: Vec<String> = loss.iter().map(|&loss| loss_digits(loss)).collect();
    let numbers = match digits.as_slice() {
        [] => return "-".to_owned(),
        [only] => return only.clone(),
        few if few.len() <= shown => few.join(" → "),
        [first, second, .., last] if wide => format!("{first} → {second} → … → {last}"),
        [first, .., last] => format!("{first} … {last}"),
    };
    format!("{}\n{numbers}", sparkline(loss, if wide { 28 } else { 14 }))
}

/// Bars of eight heights over a logarithmic axis, since losses fall by factors.
fn sparkline(loss: &[f64], widest: usize) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let log = |loss: f64| loss.max(f64::MIN_POSITIVE).log10();
    let shown: Vec<f64> = sampled(loss.len(), widest).map(|epoch| log(loss[epoch])).collect();
    let low = shown.iter().copied().fold(f64::INFINITY, f64::min);
    let high = shown.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    shown
        .iter()
        .map(|&value| {
            // A flat curve has no span; a NaN becomes 0 in the cast.
            let height = if high > low { (value - low) / (high - low) * 7.0 } else { 0.0 };
            BARS[(height.round() as usize).min(7)]
        })
        .collect()
}

fn one_line<S: Serializer>(error: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    error.as_deref().map(joined).serialize(serializer)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn cpu() -> DeviceReport {
        DeviceReport {
            id: "cpu:0".into(),
            name: "Example CPU".into(),
            epochs: 3,
            loss: vec![1.5, 0.25, 0.125],
            test_accuracy: Some(0.9838),
            images_per_second: Some(43_210.4),
            peak_memory_bytes: 3 << 20,
            launches: 2700,
            fallbacks: vec![],
            error: None,
            is_wrong_input: false,
        }
    }

    pub(crate) fn report() -> DemoReport {
        let broken = DeviceReport {
            id: "npu:0".into(),
            name: "Example NPU".into(),
            epochs: 1,
            loss: vec![1.5],
            test_accuracy: None,
            images_per_second: None,
            peak_memory_bytes: 1 << 20,
            launches: 45,
            fallbacks: vec![Fallback { op: "exp".into(), reason: "no such instruction".into() }],
            error: Some("device lost\nwhile reading".into()),
            is_wrong_input: false,
        };
        DemoReport {
            task: "digits".into(),
            train_images: 1437,
            test_images: 360,
            devices: vec![cpu(), broken],
            unavailable: vec![UnavailableBackend { backend: "cuda".into(), reason: "no driver".into() }],
        }
    }

    #[test]
    fn json_has_the_documented_fields_in_order() {
        assert_eq!(
            report().to_json(),
            concat!(
                r#"{"task":"digits","train_images":1437,"test_images":360,"devices":["#,
                r#"{"id":"cpu:0","name":"Example CPU","epochs":3,"loss":[1.5,0.25,0.125],"test_accuracy":0.9838,"#,
                r#""images_per_second":43210.4,"peak_memory_bytes":3145728,"launches":2700,"fallbacks":[]},"#,
                r#"{"id":"npu:0","name":"Example NPU","epochs":1,"loss":[1.5],"test_accuracy":null,"#,
                r#""images_per_second":null,"peak_memory_bytes":1048576,"launches":45,"#,
                r#""fallbacks":[{"op":"exp","reason":"no such instruction"}],"error":"device lost while reading"}],"#,
                r#""unavailable":[{"backend":"cuda","reason":"no driver"}]}"#,
            )
        );
        assert!(!report().succeeded());
    }

    #[test]
    fn the_table_shows_results_failures_fallbacks_and_absences() {
        let table = report().to_table(120);
        for part in [
            "1,437 images of handwritten digits",
            "1.50 → 0.250 → 0.125",
            "98.3 %",
            "43,210",
            "3.0 MiB",
            "2,700",
            "none",
            "npu:0 fell back for exp: no such instruction",
            "npu:0 failed after 1 epoch: device lost while reading",
            "absent: cuda  no driver",
        ] {
            assert!(table.contains(part), "{part} is missing:\n{table}");
        }
    }

    #[test]
    fn the_table_fits_narrow_terminals() {
        let mut report = report();
        report.devices[0].loss = (0..20).map(|epoch| 1.3 * 0.7_f64.powi(epoch)).collect();
        for columns in [60, 80, 100, 120] {
            let text = report.to_table(columns);
            let table: Vec<&str> = text.lines().skip(1).take(6).collect();
            assert!(table.iter().all(|line| line.chars().count() <= usize::from(columns)), "{text}");
            assert!(
                columns < 80 || table[5].starts_with('─'),
                "the first row has more than two lines:\n{text}"
            );
            assert_eq!(text.contains("cpu:0: Example CPU"), columns < 100);
        }
    }

    #[test]
    fn long_runs_show_the_ends_and_the_whole_curve() {
        let loss: Vec<f64> = (0..15).map(|epoch| 0.5_f64.powi(epoch)).collect();
        let summary = loss_summary(&loss, true);
        let (curve, numbers) = summary.split_once('\n').unwrap();
        assert_eq!(numbers, "1.00 → 0.500 → … → 0.000061");
        assert_eq!(curve.chars().count(), 15);
        assert!(curve.starts_with('█') && curve.ends_with('▁'), "{curve}");
        assert!(loss_summary(&loss, false).ends_with("\n1.00 … 0.000061"));
        assert_eq!(sparkline(&vec![1.0; 500], 28).chars().count(), 28);
    }

    #[test]
    fn odd_losses_are_shown_and_do_not_panic() {
        for loss in [
            vec![],
            vec![0.0],
            vec![f64::NAN],
            vec![1.0, f64::NAN, f64::INFINITY],
            vec![-1.0, 0.0],
            vec![f64::MAX, f64::MIN_POSITIVE],
        ] {
            let summary = loss_summary(&loss, true);
            assert!(!summary.is_empty());
            assert_eq!(summary == "-", loss.is_empty());
        }
        assert_eq!([2.3456, 0.04251, 12_345.6, 0.0].map(loss_digits), ["2.35", "0.0425", "12346", "0.00"]);
    }

    #[test]
    fn only_all_test_images_make_a_hundred_percent() {
        assert_eq!(
            [1.0, 359.9 / 360.0, 354.0 / 360.0, 0.0].map(percent),
            ["100.0 %", "99.9 %", "98.3 %", "0.0 %"]
        );
    }
}
