//! Files of traces: any bytes are a trace or an error, and what is read is added up, printed and drawn.
//!
//! An input that begins with a zero byte stands for a list of events, which are written as a trace: so numbers and names
//! of all kinds are reached that random text would seldom spell.
#![no_main]

use halite::cli::trace::{page, summarize};
use libfuzzer_sys::arbitrary::{self, Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::LazyLock;

/// A page has this many bytes at most, however many streams and commands a trace has, beside what its texts take.
const MOST_PAGE_BYTES: usize = 16 << 20;
/// A text is printed in a few places, and a character takes six bytes at most.
const PAGE_BYTES_PER_BYTE: usize = 64;

static FILE: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("halite-fuzz-{}.json", std::process::id())));

#[derive(Arbitrary, Debug)]
struct AnyEvent {
    phase: u8,
    category: u8,
    name: u8,
    process: Number,
    thread: Number,
    begin: Option<Number>,
    duration: Option<Number>,
    arguments: [(u8, Number); 2],
}

/// Small ones, so that events meet; extreme ones, so that sums overflow.
#[derive(Arbitrary, Debug)]
enum Number {
    Small(u8),
    Whole(u64),
    Any(f64),
    Extreme(u8),
    Text(u8),
}

const EXTREMES: [&str; 8] =
    ["1e308", "-1e308", "5e-324", "18446744073709551615", "-0.0", "9223372036854775808", "1e999", "null"];
const PHASES: [&str; 5] = ["X", "i", "M", "C", "B"];
const CATEGORIES: [&str; 6] = ["launch", "copy", "replay", "host", "fallback", "memory"];
const NAMES: [&str; 10] = [
    "process_name",
    "thread_name",
    "halite_trace_end",
    "allocated",
    "write",
    "read",
    "evaluate",
    "dot_general+bias",
    "cpu:0: <b>\u{1F600}\\u0000\\u001b[2J",
    "",
];
const ARGUMENTS: [&str; 11] = [
    "name",
    "bytes",
    "launches",
    "read",
    "written",
    "lost_notes",
    "untimed",
    "failed",
    "skipped",
    "op",
    "reason",
];

fn pick(list: &[&'static str], index: u8) -> &'static str {
    list[usize::from(index) % list.len()]
}

impl Number {
    fn text(&self) -> String {
        match self {
            Self::Small(number) => number.to_string(),
            Self::Whole(number) => number.to_string(),
            Self::Any(number) if number.is_finite() => format!("{number:e}"),
            Self::Any(_) => "0".to_owned(),
            Self::Extreme(index) => pick(&EXTREMES, *index).to_owned(),
            Self::Text(index) => format!("\"{}\"", pick(&NAMES, *index)),
        }
    }
}

impl AnyEvent {
    fn text(&self) -> String {
        let mut text = format!(
            r#"{{"ph":"{}","cat":"{}","name":"{}","pid":{},"tid":{}"#,
            pick(&PHASES, self.phase),
            pick(&CATEGORIES, self.category),
            pick(&NAMES, self.name),
            self.process.text(),
            self.thread.text()
        );
        for (key, number) in [("ts", &self.begin), ("dur", &self.duration)] {
            if let Some(number) = number {
                let _ = write!(text, r#","{key}":{}"#, number.text());
            }
        }
        let [first, second] = self
            .arguments
            .each_ref()
            .map(|(key, value)| format!(r#""{}":{}"#, pick(&ARGUMENTS, *key), value.text()));
        let _ = write!(text, r#","args":{{{first},{second}}}}}"#);
        text
    }
}

/// The trace that an input stands for.
fn trace(input: &[u8]) -> Vec<u8> {
    let Some((0, rest)) = input.split_first() else { return input.to_vec() };
    let mut source = Unstructured::new(rest);
    let mut text = "[\n".to_owned();
    while !source.is_empty() {
        let Ok(event) = AnyEvent::arbitrary(&mut source) else { break };
        text += &event.text();
        text += ",\n";
    }
    text.into_bytes()
}

fuzz_target!(|input: &[u8]| {
    let trace = trace(input);
    std::fs::write(&*FILE, &trace).expect("the system's temporary folder can be written");
    match summarize(&FILE) {
        Ok(summary) => {
            let _ = summary.to_json();
            // One table each time, since tables take longest.
            let (top, columns) = [(0, 80), (3, 20), (20, u16::MAX)][trace.len() % 3];
            let _ = summary.to_table(top, columns);
            let page = page(&FILE, &summary).expect("a file that was read is read again");
            assert!(
                page.len() <= MOST_PAGE_BYTES + PAGE_BYTES_PER_BYTE * trace.len(),
                "{} bytes",
                page.len()
            );
            assert!(!page.contains("<script") && !page.contains("<b>"), "a text is not escaped");
            assert!(!page.contains("\"NaN") && !page.contains("\"inf"), "a place is no number");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
