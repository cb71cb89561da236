//! The timeline as one self-contained page, to look at without a viewer: how busy every stream was over the whole
//! time, and one stretch of each device in full, with what the host did meanwhile.
//!
//! Nothing is fetched and nothing runs, which the page's own content security policy enforces. A bar tells more when
//! the pointer rests on it.

use super::read::{ReadError, events};
use super::summary::{Event, Summary, device_names};
use super::time;
use crate::cli::output::grouped;
use crate::demo::page::escape;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

/// Commands of each device that are shown in full, from the middle of its work.
const SHOWN_COMMANDS: u64 = 160;
/// Devices, rows of all devices, and bars of each device that are shown at most: a page is for people, whatever the size
/// of the trace.
const MOST_DEVICES: usize = 32;
const MOST_ROWS: usize = 256;
const MOST_BARS: usize = 1000;
/// Operations with a colour of their own.
const COLOURS: usize = 8;
const BINS: usize = 500;
const WIDTH: f64 = 1160.0;
/// Room for the names of rows.
const LEFT: f64 = 130.0;
const ROW: f64 = 24.0;
/// A bar narrower than this has no text.
const TEXT_FROM: f64 = 34.0;
/// About the advance of a character.
const CHARACTER: f64 = 6.2;

/// Bars of a row of the timeline.
#[derive(Default)]
struct Row {
    bars: Vec<Bar>,
    /// Share of each part of the device's time that commands take.
    busy: Vec<f64>,
}

struct Bar {
    begin: f64,
    end: f64,
    name: String,
    category: String,
    about: String,
}

#[derive(Default)]
struct Device {
    title: String,
    commands: u64,
    /// Begin of its first command and end of its last.
    span: Option<(f64, f64)>,
    window: Option<(f64, f64)>,
    rows: BTreeMap<u64, Row>,
    /// Names of threads and streams, with rows or without.
    names: BTreeMap<u64, String>,
    bars: usize,
}

/// What the page shows.
#[derive(Default)]
struct Shown {
    devices: BTreeMap<u64, Device>,
    rows: usize,
    /// Whether there was more.
    is_cut: bool,
}

impl Shown {
    /// A device that has a section, or gets one.
    fn device(&mut self, process: u64) -> Option<&mut Device> {
        if self.devices.len() >= MOST_DEVICES && !self.devices.contains_key(&process) {
            self.is_cut = true;
            return None;
        }
        Some(self.devices.entry(process).or_default())
    }

    /// A row of a device that has a section.
    fn row(&mut self, process: u64, thread: u64) -> Option<&mut Row> {
        let rows = &mut self.devices.get_mut(&process)?.rows;
        if !rows.contains_key(&thread) {
            if self.rows >= MOST_ROWS {
                self.is_cut = true;
                return None;
            }
            self.rows += 1;
        }
        Some(rows.entry(thread).or_default())
    }
}

/// Writes the page.
///
/// # Errors
/// For what is no trace, or a damaged one.
pub(super) fn html(path: &Path, summary: &Summary) -> Result<String, ReadError> {
    let Shown { devices, is_cut, .. } = collect(path)?;
    let names = device_names(devices.iter().map(|(&process, device)| (process, device.title.as_str())));
    let colours = colours(summary);
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n\
         <link rel=\"icon\" href=\"data:,\">\n<title>Halite: timeline</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <h1>Timeline</h1>\n<p>{}: {} events over {}.</p>\n",
        escape(&path.display().to_string()),
        grouped(summary.events),
        time(summary.span_us)
    );
    for (process, device) in &devices {
        let _ = writeln!(
            page,
            "<section>\n<h2>{} <small>{}</small></h2>",
            escape(names.get(process).map_or("", String::as_str)),
            escape(device.title.split_once(": ").map_or("", |(_, name)| name))
        );
        if device.commands == 0 {
            page.push_str("<p>No command ran on it.</p>\n");
        }
        overview(&mut page, device);
        stretch(&mut page, device, &colours);
        page.push_str("</section>\n");
    }
    if is_cut {
        page.push_str("<p>Devices, streams or events beyond what fits a page are left out.</p>\n");
    }
    operations(&mut page, summary, &colours);
    page.push_str("</main>\n</body>\n</html>\n");
    Ok(page)
}

/// Reads what the page shows: first how busy streams were and which stretches to show, then what lies in these.
fn collect(path: &Path) -> Result<Shown, ReadError> {
    let mut shown = Shown::default();
    events(path, |event| {
        let event = Event(&event);
        let is_ours = event.is_command() || matches!(event.text("cat"), "host" | "fallback");
        let (true, Some((begin, end))) = (is_ours, event.span()) else { return };
        let Some(device) = shown.device(event.process()) else { return };
        if event.is_command() && event.text("ph") == "X" {
            device.commands += 1;
            let span = device.span.get_or_insert((begin, end));
            *span = (span.0.min(begin), span.1.max(end));
        }
    })?;
    let mut seen: BTreeMap<u64, u64> = BTreeMap::new();
    events(path, |event| {
        let event = Event(&event);
        let Some(device) = shown.devices.get_mut(&event.process()) else { return };
        match (event.text("ph"), event.text("name")) {
            ("M", "process_name") => device.title = event.arg_text("name").to_owned(),
            ("M", "thread_name") => {
                device.names.insert(event.thread(), event.arg_text("name").to_owned());
            }
            ("X", _) if event.is_command() => {
                let (Some((begin, end)), Some((first, last))) = (event.span(), device.span) else { return };
                let bin_us = ((last - first) / BINS as f64).max(f64::MIN_POSITIVE);
                let number = seen.entry(event.process()).or_default();
                let skipped = device.commands.saturating_sub(SHOWN_COMMANDS) / 2;
                if (skipped..skipped + SHOWN_COMMANDS).contains(number) {
                    let window = device.window.get_or_insert((begin, end));
                    *window = (window.0.min(begin), window.1.max(end));
                }
                *number += 1;
                if let Some(row) = shown.row(event.process(), event.thread()) {
                    row.busy.resize(BINS, 0.0);
                    fill_bins(&mut row.busy, (begin - first) / bin_us, (end - first) / bin_us);
                }
            }
            _ => {}
        }
    })?;
    events(path, |event| {
        let event = Event(&event);
        let Some(device) = shown.devices.get_mut(&event.process()) else { return };
        let (Some((from, to)), Some((begin, end))) = (device.window, event.span()) else { return };
        let is_bar = event.text("ph") == "X" && (event.is_command() || event.text("cat") == "host");
        if !is_bar || end < from || begin > to {
            return;
        }
        if device.bars >= MOST_BARS {
            shown.is_cut = true;
            return;
        }
        device.bars += 1;
        let Some(row) = shown.row(event.process(), event.thread()) else { return };
        let name = event.text("name").to_owned();
        let (category, about) = (event.text("cat").to_owned(), about(&event, end - begin));
        row.bars.push(Bar { begin, end, name, category, about });
    })?;
    Ok(shown)
}

/// Adds the span from `begin` to `end`, in bins, to the share of each bin.
fn fill_bins(busy: &mut [f64], begin: f64, end: f64) {
    let last = busy.len().saturating_sub(1);
    let (first, final_bin) = ((begin.max(0.0) as usize).min(last), (end.max(0.0) as usize).min(last));
    for (bin, share) in busy.iter_mut().enumerate().take(final_bin + 1).skip(first) {
        let inside = end.min(bin as f64 + 1.0) - begin.max(bin as f64);
        *share = (*share + inside.max(0.0)).min(1.0);
    }
}

/// What a bar says when the pointer rests on it.
fn about(event: &Event<'_>, us: f64) -> String {
    let mut text = format!("{}\n{}", event.text("name"), time(us));
    if let Some(args) = event.0.get("args").and_then(serde_json::Value::as_object) {
        for (key, value) in args {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let _ = write!(text, "\n{key}: {value}");
        }
    }
    text
}

/// The class of each operation with a colour.
fn colours(summary: &Summary) -> BTreeMap<&str, usize> {
    let mut times: BTreeMap<&str, f64> = BTreeMap::new();
    for op in &summary.ops {
        *times.entry(&op.op).or_default() += op.total_us;
    }
    let mut sorted: Vec<_> = times.into_iter().collect();
    sorted.sort_by(|a, b| b.1.total_cmp(&a.1));
    sorted.into_iter().take(COLOURS).enumerate().map(|(class, (op, _))| (op, class)).collect()
}

fn class(name: &str, category: &str, colours: &BTreeMap<&str, usize>) -> String {
    match (category, colours.get(name)) {
        ("host", _) => "host".into(),
        ("copy", _) => "copy".into(),
        (_, Some(class)) => format!("op{class}"),
        _ => "other".into(),
    }
}

fn overview(page: &mut String, device: &Device) {
    let Some((first, last)) = device.span else { return };
    let rows: Vec<_> = device.rows.iter().filter(|(_, row)| !row.busy.is_empty()).collect();
    let height = ROW * rows.len() as f64 + 22.0;
    let _ = write!(
        page,
        "<figure>\n<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"How busy each stream was over the whole time\">\n"
    );
    axis(page, last - first, ROW * rows.len() as f64);
    let scale = (WIDTH - LEFT) / BINS as f64;
    for (index, (thread, row)) in rows.iter().enumerate() {
        let top = ROW * index as f64;
        row_name(page, device, **thread, top);
        let _ = write!(page, "<path class=\"busy\" d=\"M{LEFT} {:.1}", top + ROW - 3.0);
        for (bin, share) in row.busy.iter().enumerate() {
            let y = top + ROW - 3.0 - share * (ROW - 6.0);
            let x = LEFT + bin as f64 * scale;
            let _ = write!(page, "L{x:.1} {y:.1}L{:.1} {y:.1}", x + scale);
        }
        let _ = writeln!(page, "L{WIDTH} {:.1}Z\"/>", top + ROW - 3.0);
    }
    page.push_str("</svg>\n<figcaption>Share of the time that each stream is busy, from the device's first command to its last.</figcaption>\n</figure>\n");
}

fn stretch(page: &mut String, device: &Device, colours: &BTreeMap<&str, usize>) {
    let Some((from, to)) = device.window else { return };
    let scale = (WIDTH - LEFT) / (to - from).max(super::summary::ROUNDING_US);
    let mut body = String::new();
    let mut top = 0.0;
    for (thread, row) in device.rows.iter().filter(|(_, row)| !row.bars.is_empty()) {
        let mut bars: Vec<&Bar> = row.bars.iter().collect();
        bars.sort_by(|a, b| a.begin.total_cmp(&b.begin).then(b.end.total_cmp(&a.end)));
        row_name(&mut body, device, *thread, top);
        let mut open: Vec<f64> = Vec::new();
        let mut levels = 1;
        for bar in bars {
            open.retain(|end| *end > bar.begin + super::summary::ROUNDING_US);
            let level = open.len();
            open.push(bar.end);
            levels = levels.max(open.len());
            let x = LEFT + (bar.begin.max(from) - from) * scale;
            let width = ((bar.end.min(to) - bar.begin.max(from)) * scale).max(0.4);
            draw(&mut body, bar, (x, top + level as f64 * (ROW - 4.0)), width, colours);
        }
        top += levels as f64 * (ROW - 4.0) + 8.0;
    }
    let height = top + 22.0;
    let _ = write!(
        page,
        "<figure>\n<svg viewBox=\"0 0 {WIDTH} {height:.1}\" role=\"img\" aria-label=\"A stretch of the timeline in full\">\n"
    );
    axis(page, to - from, top);
    let _ = write!(
        page,
        "{body}</svg>\n<figcaption>{} from the middle of its work; the rest is in a viewer such as Perfetto.</figcaption>\n</figure>\n",
        time(to - from)
    );
}

fn draw(out: &mut String, bar: &Bar, (x, y): (f64, f64), width: f64, colours: &BTreeMap<&str, usize>) {
    let class = class(&bar.name, &bar.category, colours);
    let _ = write!(
        out,
        "<g><title>{}</title><rect class=\"{class}\" x=\"{x:.2}\" y=\"{y:.1}\" width=\"{width:.2}\" height=\"{:.1}\"/>",
        escape_lines(&bar.about),
        ROW - 6.0
    );
    if width >= TEXT_FROM {
        let fits = ((width - 6.0) / CHARACTER) as usize;
        let text: String = if bar.name.chars().count() > fits {
            bar.name.chars().take(fits.saturating_sub(1)).chain(['…']).collect()
        } else {
            bar.name.clone()
        };
        let _ = write!(out, "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>", x + 3.0, y + 13.0, escape(&text));
    }
    out.push_str("</g>\n");
}

/// As [`escape`], with line ends kept: they separate the lines of a title.
fn escape_lines(text: &str) -> String {
    text.split('\n').map(escape).collect::<Vec<_>>().join("\n")
}

fn row_name(out: &mut String, device: &Device, thread: u64, top: f64) {
    let name: String = device.names.get(&thread).map_or("", String::as_str).chars().take(20).collect();
    let _ = writeln!(out, "<text class=\"row\" x=\"0\" y=\"{:.1}\">{}</text>", top + 14.0, escape(&name));
}

/// Times below the rows, at round numbers.
fn axis(out: &mut String, span: f64, top: f64) {
    let span = span.max(f64::MIN_POSITIVE);
    let rough = span / 8.0;
    let power = 10f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|step| *step >= rough).unwrap_or(rough);
    let mut tick = 0.0;
    while tick <= span {
        let x = LEFT + tick / span * (WIDTH - LEFT);
        // The text is centred, and would be cut off at the edge.
        if x > WIDTH - ROW {
            break;
        }
        let _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"0\" y2=\"{top:.1}\"/><text class=\"tick\" x=\"{x:.1}\" y=\"{:.1}\">{}</text>",
            top + 15.0,
            time(tick)
        );
        tick += step;
    }
}

fn operations(page: &mut String, summary: &Summary, colours: &BTreeMap<&str, usize>) {
    if summary.ops.is_empty() {
        return;
    }
    page.push_str(
        "<section>\n<h2>Operations</h2>\n<table>\n<thead><tr><th>Device</th><th>Operation</th><th class=\"number\">Launches</th>\
         <th class=\"number\">Time</th><th class=\"number\">Share</th><th class=\"number\">Mean</th></tr></thead>\n<tbody>\n",
    );
    for op in &summary.ops {
        let _ = writeln!(
            page,
            "<tr><td>{}</td><td><span class=\"key {}\"></span>{}</td><td class=\"number\">{}</td>\
             <td class=\"number\">{}</td><td class=\"number\">{:.1} %</td><td class=\"number\">{}</td></tr>",
            escape(&op.device),
            class(&op.op, "launch", colours),
            escape(&op.op),
            grouped(op.count),
            time(op.total_us),
            op.share * 100.0,
            time(op.mean_us)
        );
    }
    page.push_str("</tbody>\n</table>\n</section>\n");
}

const STYLE: &str = include_str!("page.css");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::trace::summarize;

    fn page_of(name: &str, events: &str) -> String {
        let path = std::env::temp_dir().join(format!("halite-trace-{name}-{}.json", std::process::id()));
        std::fs::write(&path, events).unwrap();
        let page = html(&path, &summarize(&path).unwrap()).unwrap();
        std::fs::remove_file(&path).unwrap();
        page
    }

    #[test]
    fn bars_rows_and_operations_are_drawn_and_text_is_escaped() {
        let page = page_of(
            "page",
            r#"[{"ph":"M","pid":1,"tid":0,"name":"process_name","args":{"name":"cpu:0: <b>CPU</b>"}},
            {"ph":"M","pid":1,"tid":9,"name":"thread_name","args":{"name":"stream <1>"}},
            {"ph":"X","pid":1,"tid":9,"ts":0,"dur":60,"name":"dot<general>","cat":"launch","args":{"shape":"<i>"}},
            {"ph":"X","pid":1,"tid":9,"ts":80,"dur":20,"name":"write","cat":"copy","args":{"bytes":3}},
            {"ph":"X","pid":1,"tid":1,"ts":0,"dur":100,"name":"evaluate","cat":"host","args":{}},
            {"ph":"X","pid":1,"tid":1,"ts":10,"dur":10,"name":"plan","cat":"host","args":{}}"#,
        );
        for part in [
            "cpu:0",
            "&lt;b&gt;CPU",
            "stream &lt;1&gt;",
            "dot&lt;general&gt;",
            "shape: &lt;i&gt;",
            "class=\"op0\"",
            "class=\"copy\"",
            "evaluate",
            "default-src 'none'",
        ] {
            assert!(page.contains(part), "{part} is missing");
        }
        assert_eq!(page.matches("<rect").count(), 4);
        for part in ["<script", "<i>", "<b>", "src="] {
            assert!(!page.contains(part), "{part} found");
        }
        for tag in ["svg", "g", "section", "table", "figure"] {
            let opened =
                page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }

    #[test]
    fn a_trace_without_commands_is_still_a_page() {
        let page = page_of(
            "bare",
            r#"[{"ph":"X","pid":1,"tid":1,"ts":0,"dur":1,"name":"load","cat":"host","args":{}}]"#,
        );
        assert!(page.ends_with("</html>\n") && !page.contains("<rect"));
    }

    #[test]
    fn whatever_the_times_a_page_ends_and_its_numbers_are_finite() {
        for (ts, dur) in
            [("-1e308", "1e308"), ("1e308", "1e308"), ("5e-324", "0"), ("-0.0", "5e-324"), ("7", "0")]
        {
            let launch =
                format!(r#"{{"ph":"X","pid":1,"tid":9,"ts":{ts},"dur":{dur},"name":"a","cat":"launch"}}"#);
            let early = r#"{"ph":"X","pid":1,"tid":9,"ts":-1e308,"dur":0,"name":"a","cat":"launch"}"#;
            for events in
                [format!("[{launch}]"), format!("[{launch},{launch}]"), format!("[{early},{launch}]")]
            {
                let page = page_of("times", &events);
                assert!(!page.contains("NaN") && !page.contains("inf"), "{events}");
            }
        }
    }

    #[test]
    fn a_page_has_a_largest_size_whatever_the_number_of_devices_streams_and_events() {
        let launches = |process: fn(usize) -> usize, thread: fn(usize) -> usize| {
            let event = |index| {
                let (process, thread) = (process(index), thread(index));
                format!(
                    r#"{{"ph":"X","pid":{process},"tid":{thread},"ts":{index},"dur":9999,"name":"a","cat":"launch"}}"#
                )
            };
            let events: Vec<_> = (0..3000).map(event).collect();
            format!("[{}]", events.join(","))
        };
        for (name, events) in [
            ("devices", launches(|index| index, |_| 1)),
            ("streams", launches(|_| 1, |index| index)),
            ("bars", launches(|_| 1, |_| 1)),
        ] {
            let page = page_of(name, &events);
            assert!(page.len() < 8 << 20 && page.contains("left out"), "{name}: {} bytes", page.len());
        }
    }

    #[test]
    fn bins_take_the_share_that_lies_in_them() {
        let mut busy = [0.0; 4];
        fill_bins(&mut busy, 0.5, 2.25);
        assert_eq!(busy, [0.5, 1.0, 0.25, 0.0]);
        fill_bins(&mut busy, 2.0, 99.0);
        assert_eq!(busy, [0.5, 1.0, 1.0, 1.0]);
    }
}
