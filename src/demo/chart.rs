//! The loss curves of a report, drawn as inline SVG.
//!
//! Colours, fonts and dashes come from the page's style sheet through the classes `series-0` and so on, so one
//! drawing serves light and dark. Devices that agree draw the same curve; earlier ones are drawn wider, so that
//! each stays visible under the next.

use super::page::escape;
use super::report::{DeviceReport, loss_digits, sampled};
use std::fmt::Write;

/// Colours in the style sheet; further devices start over with another dash.
pub(super) const COLORS: usize = 6;

/// More points than a screen has columns make a page slow and no curve better.
const MOST_POINTS: usize = 500;
const MOST_MARKERS: usize = 60;
const TICK_LABEL: f64 = 13.0;
const LABEL_HEIGHT: f64 = 17.0;
/// A bold character of a name beside its curve; generous, since a font may be any.
const NAME_CHARACTER: f64 = 8.2;
const LONGEST_NAME: usize = 14;

/// Size of a drawing and the room around its plot, in CSS pixels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    class: &'static str,
    width: f64,
    height: f64,
    left: f64,
    top: f64,
    bottom: f64,
}

/// For a desktop: names of the devices stand beside their curves.
pub(super) const WIDE: Layout =
    Layout { class: "wide", width: 880.0, height: 400.0, left: 68.0, top: 14.0, bottom: 52.0 };

/// For a telephone: text keeps its size, and the plot gives way.
pub(super) const NARROW: Layout =
    Layout { class: "narrow", width: 360.0, height: 320.0, left: 62.0, top: 14.0, bottom: 50.0 };

/// Draws mean loss against epoch for every device, on a logarithmic axis. Empty without a single loss.
pub(super) fn loss_curves(devices: &[DeviceReport], layout: Layout) -> String {
    let Some(axes) = Axes::around(devices, layout) else { return String::new() };
    let mut svg = String::new();
    let _ = write!(
        svg,
        r#"<svg class="chart {class}" viewBox="0 0 {width} {height}" role="img" aria-label="Training loss per epoch, one curve per device; the numbers are in the table below">"#,
        class = layout.class,
        width = layout.width,
        height = layout.height,
    );
    axes.draw(&mut svg);
    let mut ends = Vec::new();
    for (series, device) in devices.iter().enumerate() {
        if let Some(end) = axes.draw_curve(&mut svg, series, devices.len(), device) {
            ends.push((series, device, end));
        }
    }
    axes.draw_names(&mut svg, &ends);
    svg.push_str("</svg>");
    svg
}

/// Where epochs and losses lie in the drawing.
struct Axes {
    layout: Layout,
    /// Room for the names on the right.
    right: f64,
    epochs: usize,
    log_low: f64,
    log_high: f64,
    floor: f64,
}

impl Axes {
    fn around(devices: &[DeviceReport], layout: Layout) -> Option<Self> {
        let losses =
            || devices.iter().flat_map(|device| &device.loss).copied().filter(|loss| loss.is_finite());
        let epochs = devices.iter().map(|device| device.loss.len()).max().filter(|&epochs| epochs > 0)?;
        let high = losses().fold(0.0, f64::max).max(1e-12);
        let low = losses().filter(|&loss| loss > 0.0).fold(high, f64::min);
        // A loss of exactly zero has no logarithm; eight decades below the largest it lies on the floor.
        let floor = low.max(high * 1e-8);
        let (mut log_low, mut log_high) = (floor.log10(), high.log10());
        let margin = ((log_high - log_low) * 0.06).max(0.05);
        log_low -= margin;
        log_high += margin;
        let longest = devices.iter().map(|device| name(device).chars().count()).max().unwrap_or(0);
        let right = longest as f64 * NAME_CHARACTER + 12.0;
        Some(Self { layout, right, epochs, log_low, log_high, floor })
    }

    /// Position of the 0-based epoch.
    fn x(&self, epoch: usize) -> f64 {
        let (left, right) = (self.layout.left, self.layout.width - self.right);
        if self.epochs == 1 {
            (left + right) / 2.0
        } else {
            left + 10.0 + (right - left - 20.0) * epoch as f64 / (self.epochs - 1) as f64
        }
    }

    fn y(&self, loss: f64) -> f64 {
        let (top, bottom) = (self.layout.top, self.layout.height - self.layout.bottom);
        let share = (loss.max(self.floor).log10() - self.log_low) / (self.log_high - self.log_low);
        bottom - (bottom - top) * share
    }

    fn draw(&self, svg: &mut String) {
        let Layout { width, height, left, top, bottom, .. } = self.layout;
        let (plot_right, plot_bottom) = (width - self.right, height - bottom);
        for loss in loss_ticks(self.log_low, self.log_high) {
            let y = self.y(loss);
            let _ = write!(
                svg,
                r#"<line class="grid" x1="{left}" x2="{plot_right}" y1="{y:.1}" y2="{y:.1}"/><text class="tick" x="{x}" y="{baseline:.1}" text-anchor="end">{loss}</text>"#,
                x = left - 8.0,
                baseline = y + TICK_LABEL / 3.0,
            );
        }
        for epoch in epoch_ticks(self.epochs, plot_right - left) {
            let _ = write!(
                svg,
                r#"<text class="tick" x="{x:.1}" y="{y}" text-anchor="middle">{epoch}</text>"#,
                x = self.x(epoch - 1),
                y = plot_bottom + 19.0,
            );
        }
        let middle = (top + plot_bottom) / 2.0;
        let _ = write!(
            svg,
            r#"<line class="axis" x1="{left}" x2="{plot_right}" y1="{plot_bottom}" y2="{plot_bottom}"/><text class="title" x="{x}" y="{y}" text-anchor="middle">epoch</text><text class="title" transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">training loss (log scale)</text>"#,
            x = (left + plot_right) / 2.0,
            y = height - 10.0,
        );
    }

    /// Draws one device and returns where its curve ends.
    fn draw_curve(
        &self,
        svg: &mut String,
        series: usize,
        count: usize,
        device: &DeviceReport,
    ) -> Option<(f64, f64)> {
        let points: Vec<(usize, f64)> = sampled(device.loss.len(), MOST_POINTS)
            .map(|epoch| (epoch, device.loss[epoch]))
            .filter(|(_, loss)| loss.is_finite())
            .collect();
        let &(last_epoch, last_loss) = points.last()?;
        let stroke = stroke_width(series, count);
        let _ = write!(svg, r#"<g class="{}"><polyline stroke-width="{stroke}" points=""#, class(series));
        for &(epoch, loss) in &points {
            let _ = write!(svg, "{:.1},{:.1} ", self.x(epoch), self.y(loss));
        }
        svg.push_str("\"/>");
        if points.len() <= MOST_MARKERS {
            for &(epoch, loss) in &points {
                let _ = write!(
                    svg,
                    r#"<circle cx="{:.1}" cy="{:.1}" r="{:.1}"><title>{}, epoch {}: loss {}</title></circle>"#,
                    self.x(epoch),
                    self.y(loss),
                    stroke / 2.0 + 1.6,
                    escape(&device.id),
                    epoch + 1,
                    loss_digits(loss),
                );
            }
        }
        let end = (self.x(last_epoch), self.y(last_loss));
        if device.error.is_some() {
            let (x, y) = end;
            let _ = write!(
                svg,
                r#"<path class="failed" d="M{:.1} {:.1}l12 12m0 -12l-12 12"><title>{} failed here</title></path>"#,
                x - 6.0,
                y - 6.0,
                escape(&device.id),
            );
        }
        svg.push_str("</g>");
        Some(end)
    }

    /// Writes each device's name beside the end of its curve, moved apart where ends lie close.
    fn draw_names(&self, svg: &mut String, ends: &[(usize, &DeviceReport, (f64, f64))]) {
        let mut ends = ends.to_vec();
        ends.sort_by(|a, b| a.2.1.total_cmp(&b.2.1).then(a.0.cmp(&b.0)));
        let wanted: Vec<f64> = ends.iter().map(|(_, _, (_, y))| *y).collect();
        let (top, bottom) = (self.layout.top + 8.0, self.layout.height - self.layout.bottom - 6.0);
        let x = self.layout.width - self.right + 8.0;
        for ((series, device, (end_x, end_y)), y) in
            ends.iter().zip(spread(&wanted, LABEL_HEIGHT, top, bottom))
        {
            let _ = write!(
                svg,
                r#"<g class="{class}"><path class="leader" d="M{from:.1} {end_y:.1}L{to:.1} {y:.1}"/><text class="name" x="{x}" y="{baseline:.1}">{id}</text></g>"#,
                class = class(*series),
                from = end_x + 8.0,
                to = x - 3.0,
                baseline = y + TICK_LABEL / 3.0,
                id = escape(&name(device)),
            );
        }
    }
}

/// The device's name as it stands beside its curve.
fn name(device: &DeviceReport) -> String {
    if device.id.chars().count() <= LONGEST_NAME {
        return device.id.clone();
    }
    let start: String = device.id.chars().take(LONGEST_NAME - 1).collect();
    format!("{start}…")
}

/// From wide for the first device to thin for the last, which is drawn on top.
fn stroke_width(series: usize, count: usize) -> f64 {
    const THIN: f64 = 2.0;
    let above = (count - 1 - series) as f64;
    let step = 6.0 / (count - 1).max(1) as f64;
    THIN + above * step.min(2.5)
}

/// Classes of a device's curve: its colour, and its dash once the colours are used up.
pub(super) fn class(series: usize) -> String {
    let color = series % COLORS;
    if series < COLORS { format!("series-{color}") } else { format!("series-{color} dashed") }
}

/// Round losses between two powers of ten: decades, with 2 and 5 between them where there is room.
fn loss_ticks(log_low: f64, log_high: f64) -> Vec<f64> {
    const MOST: usize = 9;
    let within = |steps: &[f64]| -> Vec<f64> {
        (log_low.floor() as i32..=log_high.ceil() as i32)
            // Through text, so that a tick reads 0.05 and not 0.05000000000000001.
            .flat_map(|decade| {
                steps.iter().filter_map(move |step| format!("{step}e{decade}").parse::<f64>().ok())
            })
            .filter(|tick| (log_low..=log_high).contains(&tick.log10()))
            .collect()
    };
    let mut ticks = within(&[1.0]);
    for steps in [&[1.0, 3.0][..], &[1.0, 2.0, 5.0], &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]] {
        let finer = within(steps);
        if ticks.len() < 4 && finer.len() <= MOST {
            ticks = finer;
        }
    }
    if ticks.is_empty() {
        // A curve that hardly falls: its own level is the only round thing about it.
        let middle = 10_f64.powf((log_low + log_high) / 2.0);
        ticks = format!("{middle:.2e}").parse().into_iter().collect();
    }
    ticks
}

/// Epochs worth a number under the axis, 1-based: the first, the last, and round ones between.
fn epoch_ticks(epochs: usize, width: f64) -> Vec<usize> {
    let most = (width / 48.0).max(2.0);
    let step = (0..)
        .flat_map(|decade| [1, 2, 5].map(|step| step * 10_usize.pow(decade)))
        .find(|&step| epochs as f64 / step as f64 <= most)
        .expect("steps grow beyond any count");
    let mut ticks = vec![1];
    // A round number close to either end would run into its number.
    ticks.extend(
        (1..=epochs / step)
            .map(|n| n * step)
            .filter(|&t| t > step.div_ceil(2) && t + step.div_ceil(2) <= epochs),
    );
    if epochs > 1 {
        ticks.push(epochs);
    }
    ticks
}

/// Moves sorted positions apart to at least `gap`, as little as needed, within `low..=high` if they fit.
fn spread(wanted: &[f64], gap: f64, low: f64, high: f64) -> Vec<f64> {
    let mut placed: Vec<f64> = Vec::with_capacity(wanted.len());
    for &y in wanted {
        let y = y.max(low);
        placed.push(placed.last().map_or(y, |last| y.max(last + gap)));
    }
    let mut limit = high;
    for y in placed.iter_mut().rev() {
        *y = y.min(limit);
        limit = *y - gap;
    }
    placed
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::{cpu, report};
    use super::*;

    #[test]
    fn every_device_has_a_curve_a_name_and_its_numbers() {
        let svg = loss_curves(&report().devices, WIDE);
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert_eq!(svg.matches("class=\"name\"").count(), 2);
        assert!(svg.contains("<title>cpu:0, epoch 3: loss 0.125</title>"));
        assert!(svg.contains("npu:0 failed here"));
        assert!(svg.contains(">epoch</text>") && svg.contains("training loss"));
    }

    #[test]
    fn odd_losses_draw_no_nonsense() {
        for loss in [
            vec![0.0],
            vec![0.0, 0.0],
            vec![1.0; 3],
            vec![f64::NAN, 1.0],
            vec![f64::MAX, f64::MIN_POSITIVE],
            (0..5000).map(|epoch| 1.0 / f64::from(epoch + 1)).collect(),
        ] {
            for layout in [WIDE, NARROW] {
                let svg = loss_curves(&[DeviceReport { loss: loss.clone(), ..cpu() }], layout);
                assert!(!svg.contains("NaN") && !svg.contains("inf") && svg.len() < 100_000, "{svg}");
            }
        }
        assert_eq!(loss_curves(&[DeviceReport { loss: vec![], ..cpu() }], WIDE), "");
        assert_eq!(loss_curves(&[], WIDE), "");
    }

    #[test]
    fn curves_that_coincide_stay_visible_under_each_other() {
        for count in 1..10 {
            let widths: Vec<f64> = (0..count).map(|series| stroke_width(series, count)).collect();
            assert!(widths.windows(2).all(|pair| pair[0] >= pair[1] + 0.5), "{widths:?}");
            assert!(widths[0] <= 8.0 && widths[count - 1] == 2.0);
        }
    }

    #[test]
    fn long_names_are_cut_beside_their_curve() {
        let id = "a-very-long-backend:0".to_owned();
        let svg = loss_curves(&[DeviceReport { id, ..cpu() }], NARROW);
        assert!(svg.contains(">a-very-long-b…</text>") && svg.contains("a-very-long-backend:0, epoch 1"));
    }

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(loss_ticks(-2.3, 0.3), [0.01, 0.03, 0.1, 0.3, 1.0]);
        assert_eq!(loss_ticks(0.25, 0.4), [2.0]);
        assert!(loss_ticks(-8.0, 0.5).len() <= 9);
        assert_eq!(epoch_ticks(1, 700.0), [1]);
        assert_eq!(epoch_ticks(15, 700.0), [1, 2, 4, 6, 8, 10, 12, 14, 15]);
        assert_eq!(epoch_ticks(100, 700.0), [1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100]);
        for epochs in [2, 3, 7, 20, 99, 1000, 100_000] {
            for width in [200.0, 700.0] {
                let ticks = epoch_ticks(epochs, width);
                assert!(ticks.windows(2).all(|pair| pair[0] < pair[1]), "{ticks:?}");
                assert!(
                    ticks.len() <= (width / 48.0) as usize + 2 && ticks.last() == Some(&epochs),
                    "{ticks:?}"
                );
            }
        }
    }

    #[test]
    fn names_are_moved_apart_and_kept_inside() {
        assert_eq!(spread(&[10.0, 50.0], 17.0, 0.0, 100.0), [10.0, 50.0]);
        assert_eq!(spread(&[95.0, 96.0, 97.0], 17.0, 0.0, 100.0), [66.0, 83.0, 100.0]);
        assert_eq!(spread(&[-5.0, 0.0], 17.0, 0.0, 100.0), [0.0, 17.0]);
    }
}
