//! Lines of the file: one JSON object each, put together without intermediate values.

/// Adds `text` as a JSON string.
pub(crate) fn string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    for byte in text.bytes() {
        match byte {
            b'"' => out.extend(b"\\\""),
            b'\\' => out.extend(b"\\\\"),
            b'\n' => out.extend(b"\\n"),
            control if control < 0x20 => {
                let digit = |value: u8| b"0123456789abcdef"[usize::from(value)];
                out.extend([b'\\', b'u', b'0', b'0', digit(control >> 4), digit(control & 15)]);
            }
            other => out.push(other),
        }
    }
    out.push(b'"');
}

/// Adds a whole number.
pub(crate) fn number(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0; 20];
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend(&digits[first..]);
}

/// Adds nanoseconds as the microseconds that the format wants, with three decimals.
pub(crate) fn micros(out: &mut Vec<u8>, nanoseconds: i64) {
    if nanoseconds < 0 {
        out.push(b'-');
    }
    let nanoseconds = nanoseconds.unsigned_abs();
    number(out, nanoseconds / 1000);
    let rest = (nanoseconds % 1000) as u16;
    out.extend([b'.', b'0' + (rest / 100) as u8, b'0' + (rest / 10 % 10) as u8, b'0' + (rest % 10) as u8]);
}

/// Adds `,"key":"value"`.
pub(crate) fn text_field(out: &mut Vec<u8>, key: &str, value: &str) {
    out.push(b',');
    string(out, key);
    out.push(b':');
    string(out, value);
}

/// Adds `,"key":value`.
pub(crate) fn number_field(out: &mut Vec<u8>, key: &str, value: u64) {
    out.push(b',');
    string(out, key);
    out.push(b':');
    number(out, value);
}

/// Where a line belongs in the timeline: a device and one of its streams or host threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) process: u32,
    pub(crate) thread: u32,
}

/// When something was: a span, a point, or a counter's new value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    Span { begin: i64, end: i64 },
    At(i64),
    Counter(i64),
}

/// Begins a line: everything before the name.
fn open(out: &mut Vec<u8>, place: Place, when: When) {
    let (phase, begin): (&[u8], i64) = match when {
        When::Span { begin, .. } => (b"X", begin),
        When::At(at) => (b"i\",\"s\":\"t", at),
        When::Counter(at) => (b"C", at),
    };
    out.extend(b"{\"ph\":\"");
    out.extend(phase);
    out.extend(b"\",\"pid\":");
    number(out, place.process.into());
    out.extend(b",\"tid\":");
    number(out, place.thread.into());
    out.extend(b",\"ts\":");
    micros(out, begin);
    if let When::Span { begin, end } = when {
        out.extend(b",\"dur\":");
        micros(out, (end - begin).max(0));
    }
    out.push(b',');
}

/// A line of `what`, a part made by [`part`], with `more` fields behind its own.
pub(crate) fn line(out: &mut Vec<u8>, place: Place, when: When, what: &[u8], more: &[u8]) {
    open(out, place, when);
    out.extend(what);
    out.extend(if what.ends_with(b"{") { more.strip_prefix(b",").unwrap_or(more) } else { more });
    out.extend(b"}},\n");
}

/// The part of a line that is the same each time: name, category, and arguments as far as `fields` adds them. The
/// arguments are left open for more.
pub(crate) fn part(name: &str, category: &str, fields: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::with_capacity(160);
    out.extend(b"\"name\":");
    string(&mut out, name);
    text_field(&mut out, "cat", category);
    out.extend(b",\"args\":{");
    let first = out.len();
    fields(&mut out);
    if out.len() > first {
        // Each field brings a comma, and before the first there is none.
        out.remove(first);
    }
    out
}

/// A line that names a process or a thread of the timeline.
pub(crate) fn name(out: &mut Vec<u8>, place: Place, kind: &str, text: &str) {
    out.extend(b"{\"ph\":\"M\",\"pid\":");
    number(out, place.process.into());
    out.extend(b",\"tid\":");
    number(out, place.thread.into());
    text_field(out, "name", kind);
    out.extend(b",\"args\":{\"name\":");
    string(out, text);
    out.extend(b"}},\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn numbers_and_times_are_written_exactly() {
        for value in [0, 7, 10, 999, u64::MAX] {
            assert_eq!(text(|out| number(out, value)), value.to_string());
        }
        for (nanoseconds, expected) in [
            (0, "0.000"),
            (7, "0.007"),
            (999, "0.999"),
            (1_000, "1.000"),
            (-1_500, "-1.500"),
            (256_256, "256.256"),
        ] {
            assert_eq!(text(|out| micros(out, nanoseconds)), expected);
        }
        for nanoseconds in 0..2000 {
            let expected = format!("{}.{:03}", nanoseconds / 1000, nanoseconds % 1000);
            assert_eq!(text(|out| micros(out, nanoseconds)), expected);
        }
    }

    #[test]
    fn any_text_becomes_a_string_that_json_readers_give_back() {
        for original in ["", "plain", "\"quoted\" \\ \n\t\r\u{0}\u{1f}", "größer ≥ 1 …"] {
            let json = text(|out| string(out, original));
            assert_eq!(serde_json::from_str::<String>(&json).unwrap(), original);
        }
    }

    #[test]
    fn lines_are_objects_with_and_without_fields() {
        let place = Place { process: 1, thread: 2 };
        let read = |when, what: &[u8], more: &[u8]| -> serde_json::Value {
            let line = text(|out| line(out, place, when, what, more));
            serde_json::from_str(line.trim_end_matches(",\n")).unwrap()
        };
        let bare = part("n", "c", |_| {});
        let full = part("n", "c", |out| number_field(out, "bytes", 3));
        let span = read(When::Span { begin: 1_500, end: 4_000 }, &full, b"");
        assert_eq!((&span["ph"], &span["ts"], &span["dur"]), (&"X".into(), &1.5.into(), &2.5.into()));
        assert_eq!((&span["pid"], &span["tid"], &span["args"]["bytes"]), (&1.into(), &2.into(), &3.into()));
        let point = read(When::At(10), &bare, b",\"untimed\":true");
        assert_eq!((&point["ph"], &point["args"]["untimed"]), (&"i".into(), &true.into()));
        assert_eq!(read(When::Counter(10), &full, b"")["ph"], "C");
        let text = text(|out| name(out, place, "thread_name", "a \"b\""));
        let value: serde_json::Value = serde_json::from_str(text.trim_end_matches(",\n")).unwrap();
        assert_eq!(value["args"]["name"], "a \"b\"");
    }
}
