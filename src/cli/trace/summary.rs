//! Adds up the events of a trace. What is kept grows with the number of operations and streams, not of events.

use super::read::{Ending, ReadError, events};
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Overlaps up to this are rounding: times are written in microseconds with three decimals.
pub(super) const ROUNDING_US: f64 = 0.002;

/// Times are taken for no more than this, about 32,000 years on either side of zero, so that sums of them are finite.
const LONGEST_US: f64 = 1e18;

/// What a trace says, added up. Its JSON is a stable interface: fields may be added, none renamed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Events of the layer, counters and metadata left aside.
    pub events: u64,
    /// Events of other kinds or tools, which are not looked at.
    pub other_events: u64,
    /// How the file ends.
    pub ending: Ending,
    /// Notes of host threads that the layer had no room for.
    pub lost_notes: u64,
    /// From the beginning of the first event to the end of the last.
    pub span_us: f64,
    /// One for each opening of a device, in order.
    pub devices: Vec<DeviceSummary>,
    /// Launches by device and operation, those that took longest first.
    pub ops: Vec<OpSummary>,
    /// Copies by device and kind.
    pub copies: Vec<CopySummary>,
    /// What host threads did by device and call, those that took longest first.
    pub host: Vec<CallSummary>,
    /// Operations that another device had to run.
    pub fallbacks: Vec<FallbackSummary>,
}

/// What one device did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeviceSummary {
    /// Its name, such as `cpu:0`; with a number behind where it was opened several times.
    pub device: String,
    /// The product's name.
    pub name: String,
    /// Its streams that did anything.
    pub streams: u64,
    /// Launches, those inside of whole replays included.
    pub launches: u64,
    /// Replays of command lists as a whole.
    pub replays: u64,
    /// Copies and fills.
    pub copies: u64,
    /// Time in commands, added up over its streams.
    pub busy_us: f64,
    /// From the first command of each stream to its last, added up over its streams.
    pub span_us: f64,
    /// Times that a stream had nothing to do between two commands.
    pub gaps: u64,
    /// Time in these.
    pub gap_us: f64,
    /// The longest of them.
    pub longest_gap_us: f64,
    /// Bytes copied to the device.
    pub to_device_bytes: u64,
    /// Bytes copied from the device.
    pub from_device_bytes: u64,
    /// Bytes copied and filled within the device.
    pub within_device_bytes: u64,
    /// Most bytes in buffers at one time.
    pub peak_allocated_bytes: u64,
    /// Commands without a device time.
    pub untimed: u64,
    /// Commands that failed.
    pub failed: u64,
    /// Commands that were skipped behind these.
    pub skipped: u64,
}

/// Launches of one operation on one device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OpSummary {
    /// The device.
    pub device: String,
    /// What was computed, such as `dot_general+bias`; the kernel's name where the program did not say.
    pub op: String,
    /// Launches, or replays.
    pub count: u64,
    /// Device time.
    pub total_us: f64,
    /// Share of the time of all commands of the device.
    pub share: f64,
    /// Device time of one, on average.
    pub mean_us: f64,
    /// Device time of the longest.
    pub longest_us: f64,
    /// Bytes of the buffers that it may read.
    pub read_bytes: u64,
    /// Bytes of the buffers that it may write.
    pub written_bytes: u64,
}

/// Copies of one kind on one device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CopySummary {
    /// The device.
    pub device: String,
    /// `write` (to the device), `read` (from it), `copy` or `fill` (within it).
    pub kind: String,
    /// Times.
    pub count: u64,
    /// Bytes in all.
    pub bytes: u64,
    /// Device time.
    pub total_us: f64,
}

/// Calls of one kind on host threads. A call inside of another counts in both.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CallSummary {
    /// The device.
    pub device: String,
    /// The call, such as `evaluate`.
    pub call: String,
    /// Times.
    pub count: u64,
    /// Time of the calling threads.
    pub total_us: f64,
    /// Time of one, on average.
    pub mean_us: f64,
    /// Time of the longest.
    pub longest_us: f64,
}

/// An operation that another device had to run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FallbackSummary {
    /// The device that could not.
    pub device: String,
    /// The operation.
    pub op: String,
    /// Why.
    pub reason: String,
    /// The device that did.
    pub to: String,
    /// Times.
    pub count: u64,
}

/// Adds up the events of a file.
///
/// # Errors
/// For what is no trace, or a damaged one.
pub fn summarize(path: &Path) -> Result<Summary, ReadError> {
    let mut adder = Adder::default();
    let ending = events(path, |event| adder.add(&Event(&event)))?;
    Ok(adder.finish(ending))
}

/// An event with what is looked for in it; other tools may leave out anything.
pub(super) struct Event<'a>(pub(super) &'a Map<String, Value>);

impl<'a> Event<'a> {
    pub(super) fn text(&self, key: &str) -> &'a str {
        self.0.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    /// A time in microseconds.
    fn time(&self, key: &str) -> Option<f64> {
        Some(self.0.get(key)?.as_f64()?.clamp(-LONGEST_US, LONGEST_US))
    }

    fn duration(&self) -> f64 {
        self.time("dur").unwrap_or(0.0).max(0.0)
    }

    pub(super) fn arg(&self, key: &str) -> Option<&'a Value> {
        self.0.get("args")?.get(key)
    }

    pub(super) fn arg_text(&self, key: &str) -> &'a str {
        self.arg(key).and_then(Value::as_str).unwrap_or_default()
    }

    fn arg_count(&self, key: &str) -> u64 {
        self.arg(key).and_then(Value::as_u64).unwrap_or(0)
    }

    fn has(&self, key: &str) -> bool {
        self.arg(key).is_some()
    }

    pub(super) fn process(&self) -> u64 {
        self.0.get("pid").and_then(Value::as_u64).unwrap_or(0)
    }

    pub(super) fn thread(&self) -> u64 {
        self.0.get("tid").and_then(Value::as_u64).unwrap_or(0)
    }

    /// Begin and end in microseconds; both are the same for a point.
    pub(super) fn span(&self) -> Option<(f64, f64)> {
        let begin = self.time("ts")?;
        Some((begin, begin + self.duration()))
    }

    /// Whether it is a command on a stream.
    pub(super) fn is_command(&self) -> bool {
        matches!(self.text("cat"), "launch" | "copy" | "replay")
    }
}

#[derive(Default)]
struct Adder {
    events: u64,
    other_events: u64,
    lost_notes: u64,
    span: Option<(f64, f64)>,
    devices: BTreeMap<u64, Device>,
    streams: HashMap<(u64, u64), Stream>,
    ops: HashMap<(u64, String), Op>,
    copies: BTreeMap<(u64, String), Op>,
    host: HashMap<(u64, String), Op>,
    fallbacks: BTreeMap<(u64, String, String, String), u64>,
}

#[derive(Default)]
struct Device {
    title: String,
    launches: u64,
    replays: u64,
    copies: u64,
    peak_allocated_bytes: u64,
    untimed: u64,
    failed: u64,
    skipped: u64,
    moved: [u64; 3],
}

#[derive(Default)]
struct Stream {
    span: Option<(f64, f64)>,
    busy_us: f64,
    gaps: u64,
    gap_us: f64,
    longest_gap_us: f64,
}

#[derive(Default, Clone)]
struct Op {
    count: u64,
    total_us: f64,
    longest_us: f64,
    read_bytes: u64,
    written_bytes: u64,
}

impl Op {
    fn add(&mut self, us: f64) {
        self.count += 1;
        self.total_us += us;
        self.longest_us = self.longest_us.max(us);
    }

    fn mean_us(&self) -> f64 {
        if self.count > 0 { self.total_us / self.count as f64 } else { 0.0 }
    }
}

impl Adder {
    fn add(&mut self, event: &Event<'_>) {
        match (event.text("ph"), event.text("cat")) {
            ("M", _) => self.add_metadata(event),
            ("X" | "i", "launch" | "copy" | "replay") => self.add_command(event),
            ("X", "host") => {
                let us = self.extend(event);
                let device = event.process();
                self.devices.entry(device).or_default();
                self.host.entry((device, event.text("name").to_owned())).or_default().add(us);
            }
            ("i", "fallback") => {
                self.extend(event);
                let text = |key| event.arg_text(key).to_owned();
                let key = (event.process(), text("op"), text("reason"), text("to"));
                self.devices.entry(event.process()).or_default();
                *self.fallbacks.entry(key).or_default() += 1;
            }
            ("C", "memory") => {
                if event.text("name") == "allocated" {
                    let device = self.devices.entry(event.process()).or_default();
                    device.peak_allocated_bytes = device.peak_allocated_bytes.max(event.arg_count("bytes"));
                }
            }
            _ => self.other_events += 1,
        }
    }

    fn add_metadata(&mut self, event: &Event<'_>) {
        match event.text("name") {
            // The layer names them so; other tools' processes are no devices.
            "process_name" if event.arg_text("name").contains(": ") => {
                self.devices.entry(event.process()).or_default().title = event.arg_text("name").to_owned();
            }
            "halite_trace_end" => {
                self.lost_notes = self.lost_notes.saturating_add(event.arg_count("lost_notes"));
            }
            _ => {}
        }
    }

    /// Counts the event, widens the whole span by it, and tells its length.
    fn extend(&mut self, event: &Event<'_>) -> f64 {
        self.events += 1;
        let Some((begin, end)) = event.span() else { return 0.0 };
        let (first, last) = self.span.unwrap_or((begin, end));
        self.span = Some((first.min(begin), last.max(end)));
        // The difference of the two would be rounded.
        event.duration()
    }

    fn add_command(&mut self, event: &Event<'_>) {
        let us = self.extend(event);
        let process = event.process();
        let device = self.devices.entry(process).or_default();
        device.untimed += u64::from(event.has("untimed"));
        device.failed += u64::from(event.has("failed"));
        device.skipped += u64::from(event.has("skipped"));
        let key = (process, event.text("name").to_owned());
        match event.text("cat") {
            "copy" => {
                let bytes = event.arg_count("bytes");
                device.copies += 1;
                let moved = &mut device.moved[match event.text("name") {
                    "write" => 0,
                    "read" => 1,
                    _ => 2,
                }];
                *moved = moved.saturating_add(bytes);
                let copy = self.copies.entry(key).or_default();
                copy.add(us);
                copy.read_bytes = copy.read_bytes.saturating_add(bytes);
            }
            category => {
                if category == "replay" {
                    device.replays += 1;
                    device.launches = device.launches.saturating_add(event.arg_count("launches"));
                } else {
                    device.launches = device.launches.saturating_add(1);
                }
                let op = self.ops.entry(key).or_default();
                op.add(us);
                op.read_bytes = op.read_bytes.saturating_add(event.arg_count("read"));
                op.written_bytes = op.written_bytes.saturating_add(event.arg_count("written"));
            }
        }
        if let ("X", Some(span)) = (event.text("ph"), event.span()) {
            self.streams.entry((process, event.thread())).or_default().add(span);
        }
    }

    fn finish(self, ending: Ending) -> Summary {
        let names =
            device_names(self.devices.iter().map(|(&process, device)| (process, device.title.as_str())));
        let name = |process: &u64| names.get(process).cloned().unwrap_or_default();
        let mut streams: HashMap<u64, Vec<&Stream>> = HashMap::new();
        for ((process, _), stream) in &self.streams {
            streams.entry(*process).or_default().push(stream);
        }
        let mut busy: HashMap<u64, f64> = HashMap::new();
        let devices = self
            .devices
            .iter()
            .map(|(process, device)| {
                let streams = streams.get(process).map_or(&[][..], Vec::as_slice);
                let sum =
                    |part: fn(&Stream) -> f64| streams.iter().fold(0.0, |sum, stream| sum + part(stream));
                let busy_us = sum(|stream| stream.busy_us);
                busy.insert(*process, busy_us);
                DeviceSummary {
                    device: name(process),
                    name: device.title.split_once(": ").map(|(_, name)| name).unwrap_or_default().to_owned(),
                    streams: streams.len() as u64,
                    launches: device.launches,
                    replays: device.replays,
                    copies: device.copies,
                    busy_us,
                    span_us: sum(|stream| stream.span.map_or(0.0, |(begin, end)| end - begin)),
                    gaps: streams.iter().map(|stream| stream.gaps).sum(),
                    gap_us: sum(|stream| stream.gap_us),
                    longest_gap_us: streams.iter().map(|s| s.longest_gap_us).fold(0.0, f64::max),
                    to_device_bytes: device.moved[0],
                    from_device_bytes: device.moved[1],
                    within_device_bytes: device.moved[2],
                    peak_allocated_bytes: device.peak_allocated_bytes,
                    untimed: device.untimed,
                    failed: device.failed,
                    skipped: device.skipped,
                }
            })
            .collect();
        let share = |process: &u64, us: f64| match busy.get(process) {
            Some(&busy) if busy > 0.0 => us / busy,
            _ => 0.0,
        };
        let ops = by_time(self.ops).into_iter().map(|((process, op), times)| OpSummary {
            device: name(&process),
            op,
            count: times.count,
            total_us: times.total_us,
            share: share(&process, times.total_us),
            mean_us: times.mean_us(),
            longest_us: times.longest_us,
            read_bytes: times.read_bytes,
            written_bytes: times.written_bytes,
        });
        let copies = self.copies.into_iter().map(|((process, kind), times)| CopySummary {
            device: name(&process),
            kind,
            count: times.count,
            bytes: times.read_bytes,
            total_us: times.total_us,
        });
        let host = by_time(self.host).into_iter().map(|((process, call), times)| CallSummary {
            device: name(&process),
            call,
            count: times.count,
            total_us: times.total_us,
            mean_us: times.mean_us(),
            longest_us: times.longest_us,
        });
        let fallbacks = self.fallbacks.into_iter().map(|((process, op, reason, to), count)| {
            FallbackSummary { device: name(&process), op, reason, to, count }
        });
        Summary {
            events: self.events,
            other_events: self.other_events,
            ending,
            lost_notes: self.lost_notes,
            span_us: self.span.map_or(0.0, |(first, last)| last - first),
            devices,
            ops: ops.collect(),
            copies: copies.collect(),
            host: host.collect(),
            fallbacks: fallbacks.collect(),
        }
    }
}

impl Stream {
    /// Adds a command. The layer writes those of a stream in order; of others, what overlaps is no gap.
    fn add(&mut self, (begin, end): (f64, f64)) {
        self.busy_us += end - begin;
        let Some((first, last)) = self.span else {
            self.span = Some((begin, end));
            return;
        };
        let gap = begin - last;
        if gap > ROUNDING_US {
            self.gaps += 1;
            self.gap_us += gap;
            self.longest_gap_us = self.longest_gap_us.max(gap);
        }
        self.span = Some((first.min(begin), last.max(end)));
    }
}

/// The devices' names by process: `cpu:0`, and `cpu:0 (2)` for the second opening.
pub(super) fn device_names<'a>(titles: impl Iterator<Item = (u64, &'a str)>) -> HashMap<u64, String> {
    let mut openings: HashMap<String, u64> = HashMap::new();
    titles
        .map(|(process, title)| {
            let name = match title.split_once(": ") {
                Some((name, _)) => name.to_owned(),
                None => format!("process {process}"),
            };
            let opening = openings.entry(name.clone()).or_default();
            *opening += 1;
            (process, if *opening == 1 { name } else { format!("{name} ({opening})") })
        })
        .collect()
}

fn by_time(ops: HashMap<(u64, String), Op>) -> Vec<((u64, String), Op)> {
    let mut sorted: Vec<_> = ops.into_iter().collect();
    sorted.sort_by(|(a, x), (b, y)| y.total_us.total_cmp(&x.total_us).then_with(|| a.cmp(b)));
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(events: &str) -> Summary {
        let mut adder = Adder::default();
        let events: Vec<Map<String, Value>> = serde_json::from_str(events).unwrap();
        events.iter().for_each(|event| adder.add(&Event(event)));
        adder.finish(Ending::Closed)
    }

    const TWO_STREAMS: &str = r#"[
        {"ph":"M","pid":1,"tid":0,"name":"process_name","args":{"name":"cpu:0: Some CPU"}},
        {"ph":"M","pid":2,"tid":0,"name":"process_name","args":{"name":"cpu:0: Some CPU"}},
        {"ph":"X","pid":1,"tid":9,"ts":10.0,"dur":5.0,"name":"mul","cat":"launch","args":{"read":100,"written":50}},
        {"ph":"X","pid":1,"tid":9,"ts":15.001,"dur":3.0,"name":"dot","cat":"launch","args":{}},
        {"ph":"X","pid":1,"tid":9,"ts":20.0,"dur":2.0,"name":"mul","cat":"launch","args":{"read":100,"written":50}},
        {"ph":"X","pid":1,"tid":8,"ts":0.0,"dur":10.0,"name":"write","cat":"copy","args":{"bytes":4096}},
        {"ph":"i","s":"t","pid":1,"tid":8,"ts":4.0,"name":"read","cat":"copy","args":{"bytes":7,"untimed":true}},
        {"ph":"X","pid":2,"tid":9,"ts":30.0,"dur":8.0,"name":"replay of 3 commands","cat":"replay","args":{"launches":2}},
        {"ph":"X","pid":1,"tid":1,"ts":1.0,"dur":6.0,"name":"evaluate","cat":"host","args":{}},
        {"ph":"X","pid":1,"tid":1,"ts":8.0,"dur":2.0,"name":"evaluate","cat":"host","args":{}},
        {"ph":"C","pid":1,"tid":1,"ts":1.0,"name":"allocated","cat":"memory","args":{"bytes":900}},
        {"ph":"C","pid":1,"tid":1,"ts":2.0,"name":"allocated","cat":"memory","args":{"bytes":100}},
        {"ph":"i","s":"t","pid":1,"tid":1,"ts":2.0,"name":"fallback: exp","cat":"fallback","args":{"op":"exp","reason":"none","to":"cpu:0"}},
        {"ph":"i","s":"t","pid":1,"tid":1,"ts":3.0,"name":"fallback: exp","cat":"fallback","args":{"op":"exp","reason":"none","to":"cpu:0"}},
        {"ph":"B","pid":"gpu","tid":"x","ts":"soon","name":7},
        {"ph":"X","ts":1,"cat":"another tool","args":[1]}
    ]"#;

    #[test]
    fn times_gaps_and_bytes_are_added_up_by_device_and_operation() {
        let summary = summary(TWO_STREAMS);
        let [first, second] = &summary.devices[..] else { panic!("{summary:?}") };
        assert_eq!((first.device.as_str(), second.device.as_str()), ("cpu:0", "cpu:0 (2)"));
        assert_eq!((first.name.as_str(), first.streams, first.launches, first.copies), ("Some CPU", 2, 3, 2));
        assert_eq!((first.busy_us, first.span_us), (20.0, 22.0));
        // 1 ns between two commands is rounding.
        assert_eq!(first.gaps, 1);
        assert!((first.gap_us - 1.999).abs() < 1e-9 && first.longest_gap_us == first.gap_us);
        assert_eq!((first.to_device_bytes, first.from_device_bytes, first.untimed), (4096, 7, 1));
        assert_eq!(first.peak_allocated_bytes, 900);
        assert_eq!((second.launches, second.replays, second.busy_us), (2, 1, 8.0));

        let ops: Vec<_> = summary.ops.iter().map(|op| (op.op.as_str(), op.count, op.total_us)).collect();
        assert_eq!(ops, [("replay of 3 commands", 1, 8.0), ("mul", 2, 7.0), ("dot", 1, 3.0)]);
        let mul = &summary.ops[1];
        assert_eq!((mul.mean_us, mul.longest_us, mul.share), (3.5, 5.0, 0.35));
        assert_eq!((mul.read_bytes, mul.written_bytes), (200, 100));
        assert_eq!((summary.host[0].count, summary.host[0].mean_us), (2, 4.0));
        assert_eq!(summary.fallbacks.len(), 1);
        assert_eq!((summary.fallbacks[0].count, summary.fallbacks[0].to.as_str()), (2, "cpu:0"));
        assert_eq!((summary.span_us, summary.events, summary.other_events), (38.0, 10, 2));
    }

    #[test]
    fn tables_and_json_show_every_part() {
        let mut summary = summary(TWO_STREAMS);
        summary.ending = Ending::Cut;
        let table = summary.to_table(1, 110);
        for part in [
            "10 events over 38.0 us; cut off within the last event",
            "cpu:0 (2)",
            "90.9 %",
            "replay of 3 commands",
            "and 2 more with 10.0 us in all; --top 0 lists them",
            "4.0 KiB",
            "evaluate",
            "fell back for",
            "cpu:0: 1 commands have no device time",
        ] {
            assert!(table.contains(part), "{part} is missing:\n{table}");
        }
        assert!(summary.to_table(0, 110).contains("dot"));
        let json: Value = serde_json::from_str(&summary.to_json()).unwrap();
        assert_eq!((&json["ending"], &json["devices"][0]["launches"]), (&"cut".into(), &3.into()));
    }

    #[test]
    fn counts_without_a_measure_are_kept_in_bounds() {
        let most = u64::MAX;
        let copy = format!(
            r#"{{"ph":"X","cat":"copy","name":"write","ts":1,"dur":2,"pid":1,"tid":1,"args":{{"bytes":{most}}}}}"#
        );
        let launch = format!(
            r#"{{"ph":"X","cat":"launch","name":"mul","ts":1,"dur":2,"pid":1,"tid":1,"args":{{"read":{most},"written":{most}}}}}"#
        );
        let replay = format!(
            r#"{{"ph":"X","cat":"replay","name":"list","ts":1,"dur":2,"pid":1,"tid":1,"args":{{"launches":{most}}}}}"#
        );
        let summary = summary(&format!("[{copy},{copy},{launch},{launch},{replay},{replay},{launch}]"));
        assert_eq!((summary.devices[0].to_device_bytes, summary.devices[0].launches), (most, most));
        assert!(summary.to_table(20, 110).contains("mul"));
    }

    #[test]
    fn times_that_no_clock_shows_add_up_to_finite_ones() {
        let launch = |begin: &str, dur: &str| {
            format!(r#"{{"ph":"X","cat":"launch","name":"mul","pid":1,"tid":1,"ts":{begin},"dur":{dur}}}"#)
        };
        let (early, late) = (launch("-1e308", "1e308"), launch("1e308", "1e308"));
        let summary = summary(&format!("[{early},{early},{late},{late}]"));
        let device = &summary.devices[0];
        let ops = &summary.ops[0];
        for us in [summary.span_us, device.busy_us, device.span_us, device.gap_us, ops.total_us, ops.share] {
            assert!(us.is_finite() && us > 0.0, "{summary:?}");
        }
    }

    #[test]
    fn the_span_of_events_before_zero_ends_with_the_last_one() {
        let events = r#"[{"ph":"X","cat":"host","name":"a","ts":-30,"dur":10}]"#;
        assert_eq!(summary(events).span_us, 10.0);
    }

    #[test]
    fn a_hundred_thousand_devices_are_added_up_in_seconds() {
        let event = |process| {
            format!(r#"{{"ph":"X","cat":"launch","name":"a","pid":{process},"tid":1,"ts":1,"dur":2}}"#)
        };
        let events: Vec<_> = (0..100_000).map(event).collect();
        let begin = std::time::Instant::now();
        assert_eq!(summary(&format!("[{}]", events.join(","))).devices.len(), 100_000);
        assert!(begin.elapsed().as_secs() < 20, "{:?}", begin.elapsed());
    }

    #[test]
    fn a_trace_of_another_tool_says_so() {
        let table = summary(r#"[{"ph":"X","ts":1,"dur":2,"name":"a"}]"#).to_table(20, 80);
        assert!(table.contains("None is of Halite's layer"), "{table}");
    }
}
