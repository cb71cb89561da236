//! Reads files of the Trace Event Format one event at a time, so that a file may be larger than memory.
//!
//! Both of the format's forms are taken: an array of events, which need not be closed, and an object with such an array
//! as `traceEvents`, as other tools write.

use serde_json::{Map, Value};
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

/// An event of more bytes than this is taken for damage.
const LARGEST_EVENT_BYTES: usize = 16 << 20;
const BUFFER_BYTES: usize = 256 << 10;

/// How a file ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Ending {
    /// With the closing bracket.
    Closed,
    /// Behind an event, as while it is being written.
    Open,
    /// Within an event, as when a program or a disk gave up.
    Cut,
}

/// Why a file is no trace.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// It cannot be read.
    #[error("cannot read the trace '{}': {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        reason: io::Error,
    },
    /// Nothing is in it.
    #[error("'{}' is empty; a trace begins with '['", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// It is something else.
    #[error("'{}' is no trace: {reason}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
    },
    /// It began well.
    #[error("the trace '{}' is damaged in line {line}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What was found and what was expected.
        reason: String,
    },
}

/// Calls `visit` with each event of a file, in its order.
///
/// # Errors
/// For what is no trace, or a damaged one; events before the damage have been visited.
pub(crate) fn events(path: &Path, mut visit: impl FnMut(Map<String, Value>)) -> Result<Ending, ReadError> {
    let unreadable = |reason| ReadError::Unreadable { path: path.to_owned(), reason };
    let file = File::open(path).map_err(unreadable)?;
    let mut reader = Reader { bytes: BufReader::with_capacity(BUFFER_BYTES, file), line: 1 };
    let mut has_events = false;
    let ending = reader
        .trace(&mut |event| {
            has_events |= event.get("ph").is_some_and(Value::is_string);
            visit(event);
        })
        .map_err(|problem| match problem {
            Problem::Io(reason) => unreadable(reason),
            Problem::Empty => ReadError::Empty { path: path.to_owned() },
            Problem::Foreign(reason) => ReadError::Foreign { path: path.to_owned(), reason },
            Problem::Damaged(line, reason) => ReadError::Damaged { path: path.to_owned(), line, reason },
        })?;
    if has_events {
        return Ok(ending);
    }
    let reason = "it has no event of the Trace Event Format, an object with 'ph'".into();
    Err(ReadError::Foreign { path: path.to_owned(), reason })
}

enum Problem {
    Io(io::Error),
    Empty,
    Foreign(String),
    Damaged(u64, String),
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

struct Reader<R> {
    bytes: BufReader<R>,
    line: u64,
}

/// What became of a value that was looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Whole,
    /// The file ended first.
    Cut,
}

impl<R: io::Read> Reader<R> {
    fn trace(&mut self, visit: &mut impl FnMut(Map<String, Value>)) -> Result<Ending, Problem> {
        match self.next_token()? {
            None => Err(Problem::Empty),
            Some(b'[') => self.array(visit),
            Some(b'{') => self.object(visit),
            Some(other) => Err(Problem::Foreign(format!(
                "it begins with {} in line {}, where '[' or '{{' is expected",
                shown(other),
                self.line
            ))),
        }
    }

    /// The events behind an opening bracket.
    fn array(&mut self, visit: &mut impl FnMut(Map<String, Value>)) -> Result<Ending, Problem> {
        let mut text = Vec::new();
        let mut wants_comma = false;
        loop {
            let Some(byte) = self.next_token()? else { return Ok(Ending::Open) };
            match byte {
                b']' => break,
                b',' if wants_comma => wants_comma = false,
                b'{' if !wants_comma => {
                    let line = self.line;
                    text.clear();
                    text.push(b'{');
                    if self.value(&mut text)? == Found::Cut {
                        return Ok(Ending::Cut);
                    }
                    match serde_json::from_slice(&text) {
                        Ok(event) => visit(event),
                        Err(error) => {
                            let line = line + error.line() as u64 - 1;
                            let what = error.to_string();
                            let what = what.split(" at line ").next().unwrap_or_default();
                            return Err(Problem::Damaged(line, format!("an event is no valid JSON: {what}")));
                        }
                    }
                    wants_comma = true;
                }
                other => {
                    let expected = if wants_comma { "',' or ']'" } else { "an event, '{'," };
                    let reason = format!("found {} where {expected} is expected", shown(other));
                    return Err(Problem::Damaged(self.line, reason));
                }
            }
        }
        Ok(Ending::Closed)
    }

    /// An object with the events as a member, whose opening brace has been read.
    fn object(&mut self, visit: &mut impl FnMut(Map<String, Value>)) -> Result<Ending, Problem> {
        let mut text = Vec::new();
        let mut ending = Ending::Closed;
        loop {
            match self.next_token()? {
                None => return Ok(if ending == Ending::Closed { Ending::Open } else { ending }),
                Some(b'}') => return Ok(ending),
                Some(b',') => {}
                Some(b'"') => {
                    text.clear();
                    text.push(b'"');
                    if self.value(&mut text)? == Found::Cut {
                        return Ok(Ending::Cut);
                    }
                    let is_events = text == b"\"traceEvents\"";
                    match self.next_token()? {
                        Some(b':') => {}
                        None => return Ok(Ending::Cut),
                        Some(other) => {
                            let reason = format!("found {} where ':' is expected", shown(other));
                            return Err(Problem::Damaged(self.line, reason));
                        }
                    }
                    match self.next_token()? {
                        None => return Ok(Ending::Cut),
                        Some(b'[') if is_events => {
                            ending = self.array(visit)?;
                            if ending != Ending::Closed {
                                return Ok(ending);
                            }
                        }
                        Some(first) => {
                            text.clear();
                            text.push(first);
                            if self.value(&mut text)? == Found::Cut {
                                return Ok(Ending::Cut);
                            }
                        }
                    }
                }
                Some(other) => {
                    let reason = format!("found {} where a member's name is expected", shown(other));
                    return Err(Problem::Damaged(self.line, reason));
                }
            }
        }
    }

    /// The rest of a value whose first byte is in `text`, up to its end. Only brackets and quotes are looked at.
    fn value(&mut self, text: &mut Vec<u8>) -> Result<Found, Problem> {
        let begin = self.line;
        let (mut depth, mut in_string) = match text.first() {
            Some(b'{' | b'[') => (1u32, false),
            Some(b'"') => (0, true),
            _ => (0, false),
        };
        let is_word = depth == 0 && !in_string;
        let mut is_escaped = false;
        loop {
            let Some(byte) = self.peek()? else {
                return Ok(if is_word { Found::Whole } else { Found::Cut });
            };
            if is_word && matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\r' | b'\n') {
                return Ok(Found::Whole);
            }
            self.consume(byte);
            if text.len() >= LARGEST_EVENT_BYTES {
                return Err(Problem::Damaged(
                    begin,
                    format!("more than {LARGEST_EVENT_BYTES} bytes without an end"),
                ));
            }
            text.push(byte);
            if in_string {
                match byte {
                    _ if is_escaped => is_escaped = false,
                    b'\\' => is_escaped = true,
                    b'"' => in_string = false,
                    _ => {}
                }
            } else {
                match byte {
                    b'"' => in_string = true,
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => depth = depth.saturating_sub(1),
                    _ => {}
                }
            }
            if !is_word && depth == 0 && !in_string {
                return Ok(Found::Whole);
            }
        }
    }

    /// The next byte that is no white space.
    fn next_token(&mut self) -> Result<Option<u8>, Problem> {
        while let Some(byte) = self.peek()? {
            self.consume(byte);
            if !matches!(byte, b' ' | b'\t' | b'\r' | b'\n') {
                return Ok(Some(byte));
            }
        }
        Ok(None)
    }

    fn peek(&mut self) -> Result<Option<u8>, Problem> {
        if self.bytes.buffer().is_empty() {
            self.bytes.fill_buf()?;
        }
        Ok(self.bytes.buffer().first().copied())
    }

    fn consume(&mut self, byte: u8) {
        self.line += u64::from(byte == b'\n');
        self.bytes.consume(1);
    }
}

fn shown(byte: u8) -> String {
    if byte.is_ascii_graphic() { format!("'{}'", char::from(byte)) } else { format!("the byte {byte:#04x}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Vec<String>, Result<Ending, String>) {
        let mut reader = Reader { bytes: BufReader::with_capacity(3, text.as_bytes()), line: 1 };
        let mut names = Vec::new();
        let ending = reader.trace(&mut |event| names.push(event["n"].as_str().unwrap_or("?").to_owned()));
        let ending = ending.map_err(|problem| match problem {
            Problem::Io(error) => error.to_string(),
            Problem::Empty => "empty".into(),
            Problem::Foreign(reason) => reason,
            Problem::Damaged(line, reason) => format!("{line}: {reason}"),
        });
        (names, ending)
    }

    #[test]
    fn both_forms_are_read_closed_open_and_cut() {
        let two = vec!["a".to_owned(), "b".to_owned()];
        for (text, ending) in [
            ("[{\"n\":\"a\"},\n{\"n\":\"b\"}]", Ending::Closed),
            (" \n[ {\"n\":\"a\"} , {\"n\":\"b\"} ] \n", Ending::Closed),
            ("[\n{\"n\":\"a\"},\n{\"n\":\"b\"},\n", Ending::Open),
            ("[\n{\"n\":\"a\"},\n{\"n\":\"b\"}", Ending::Open),
            ("[\n{\"n\":\"a\"},\n{\"n\":\"b\"},\n{\"n\":\"c\",\"x", Ending::Cut),
            ("[\n{\"n\":\"a\"},\n{\"n\":\"b\"},\n]", Ending::Closed),
            (
                "{\"x\":[1,{\"]\":\"}\"}],\"traceEvents\":[{\"n\":\"a\"},{\"n\":\"b\"}],\"y\":1.5}",
                Ending::Closed,
            ),
            ("{\"traceEvents\":[{\"n\":\"a\"},{\"n\":\"b\"}", Ending::Open),
            ("{\"traceEvents\":[{\"n\":\"a\"},{\"n\":\"b\"}],\"y\":tru", Ending::Open),
        ] {
            assert_eq!(read(text), (two.clone(), Ok(ending)), "{text}");
        }
    }

    #[test]
    fn brackets_and_quotes_within_strings_are_text() {
        let (names, ending) = read(r#"[{"n":"a \"]},{ \\","x":{"y":["}"]}},{"n":"b"}]"#);
        assert_eq!((names, ending), (vec![r#"a "]},{ \"#.to_owned(), "b".into()], Ok(Ending::Closed)));
    }

    #[test]
    fn damage_is_named_with_its_line() {
        for (text, expected) in [
            ("", "empty"),
            (" \n ", "empty"),
            ("name: x", "it begins with 'n' in line 1, where '[' or '{' is expected"),
            ("\n\u{1}", "it begins with the byte 0x01 in line 2"),
            ("[\n{\"n\":\"a\"}\n{\"n\":\"b\"}]", "3: found '{' where ',' or ']' is expected"),
            ("[\n1, 2]", "2: found '1' where an event, '{', is expected"),
            ("[\n{\"n\":\"a\"},\n{\"n\":\"b\",\n\"x\": oops},", "4: an event is no valid JSON: "),
            ("[\n{\"n\":\"a\"},,{}]", "2: found ',' where an event"),
            ("{\"traceEvents\" [", "1: found '[' where ':' is expected"),
            ("{7:8}", "1: found '7' where a member's name is expected"),
        ] {
            let (_, result) = read(text);
            let message = result.expect_err(text);
            assert!(message.starts_with(expected), "{text}: {message}");
        }
    }

    #[test]
    fn an_event_without_an_end_does_not_eat_the_memory() {
        let text = format!("[\n{{\"n\":\"{}", "x".repeat(LARGEST_EVENT_BYTES + 1));
        let (_, result) = read(&text);
        assert!(result.unwrap_err().starts_with("2: more than "));
    }
}
