//! YAML text as a tree in which every value knows its line, and a strict reader of its maps.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_yaml::Spanned;

use crate::error::{Error, Result};
use crate::location::Location;
use crate::units::{self, Unit};

/// Profiles nest five deep; the bound keeps a hostile file from exhausting the stack.
const MAX_DEPTH: usize = 32;
/// Characters that messages quote of a text; names and conditions that people write are shorter.
const MAX_QUOTED: usize = 60;
/// Characters of a parser's reason, which may quote the file in turn.
const MAX_REASON: usize = 160;

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) at: Location,
    pub(crate) value: Value,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key of a map with its value; keys keep the order of the file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) at: Location,
    pub(crate) key: String,
    pub(crate) node: Node,
}

/// Parses one document.
pub(crate) fn parse(text: &str, file: &str) -> Result<Node> {
    let start = Location::new(file, 1);
    let options = serde_yaml::options! {
        budget: serde_yaml::budget! { max_depth: MAX_DEPTH, flow_nesting_limit: MAX_DEPTH },
        // Our own check can name both lines.
        duplicate_keys: serde_yaml::options::DuplicateKeyPolicy::PassThrough,
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        with_snippet: false,
    };
    let raw: Spanned<Raw> = serde_yaml::from_str_with_options(text, options).map_err(|error| {
        let line = error.location().map_or(1, |location| line_number(location.line()));
        // The message ends with its own position; the line already stands in front.
        let reason = match &error {
            serde_yaml::Error::MultipleDocuments { .. } => "a second document begins".to_owned(),
            other => one_line(other),
        };
        let reason = reason.split(" at line ").next().unwrap_or_default().to_owned();
        let reason = cut(reason, MAX_REASON);
        Error::Syntax { at: start.with_line(line), reason }
    })?;
    let node = raw_node(raw, &start)?;
    if node.value == Value::Null {
        return Err(Error::Empty { at: start });
    }
    Ok(node)
}

/// Overlays `child` on `parent`: maps are merged key by key, every other value is replaced whole.
pub(crate) fn merge(parent: &Node, child: &Node) -> Node {
    let (Value::Map(old), Value::Map(new)) = (&parent.value, &child.value) else {
        return child.clone();
    };
    let mut merged = old.clone();
    for entry in new {
        match merged.iter_mut().find(|known| known.key == entry.key) {
            Some(known) => {
                *known = Entry {
                    at: entry.at.clone(),
                    key: entry.key.clone(),
                    node: merge(&known.node, &entry.node),
                };
            }
            None => merged.push(entry.clone()),
        }
    }
    Node { at: child.at.clone(), value: Value::Map(merged) }
}

impl Node {
    /// The value under `key`, if this is a map that has it.
    pub(crate) fn child(&self, key: &str) -> Option<&Node> {
        let Value::Map(entries) = &self.value else { return None };
        entries.iter().find(|entry| entry.key == key).map(|entry| &entry.node)
    }

    /// What the value is, for messages.
    fn describe(&self) -> String {
        match &self.value {
            Value::Null => "empty".to_owned(),
            Value::Bool(value) => format!("the truth value {value}"),
            Value::Integer(value) => format!("the number {value}"),
            Value::Float(value) => format!("the number {value}"),
            Value::Text(text) => format!("the text '{}'", quote(text)),
            Value::List(items) if items.is_empty() => "an empty list".to_owned(),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a map".to_owned(),
        }
    }

    fn wrong_type(&self, key: &str, expected: &'static str, example: &'static str) -> Error {
        Error::WrongType { at: self.at.clone(), key: key.to_owned(), got: self.describe(), expected, example }
    }

    pub(crate) fn text(&self, key: &str, example: &'static str) -> Result<&str> {
        match &self.value {
            Value::Text(text) if !text.trim().is_empty() => Ok(text),
            Value::Text(_) | Value::Null => Err(self.wrong_type(key, "text", example)),
            Value::Integer(_) | Value::Float(_) | Value::Bool(_) => {
                Err(self.wrong_type(key, "text (in quotes)", example))
            }
            _ => Err(self.wrong_type(key, "text", example)),
        }
    }

    pub(crate) fn bool(&self, key: &str) -> Result<bool> {
        match self.value {
            Value::Bool(value) => Ok(value),
            _ => Err(self.wrong_type(key, "true or false", "true")),
        }
    }

    pub(crate) fn integer(&self, key: &str) -> Result<i64> {
        match self.value {
            Value::Integer(value) => Ok(value),
            _ => Err(self.wrong_type(key, "an integer", "1")),
        }
    }

    /// An integer from 1 to `u32::MAX`.
    pub(crate) fn count(&self, key: &str) -> Result<u32> {
        self.count_up_to(u32::MAX, key, "an integer from 1 to 4294967295", "64")
    }

    /// An integer from 1 to `limit`, which `expected` states in words.
    pub(crate) fn count_up_to(
        &self,
        limit: u32,
        key: &str,
        expected: &'static str,
        example: &'static str,
    ) -> Result<u32> {
        let count = if let Value::Integer(value) = self.value { u32::try_from(value).ok() } else { None };
        count
            .filter(|count| (1..=limit).contains(count))
            .ok_or_else(|| self.wrong_type(key, expected, example))
    }

    pub(crate) fn list(&self, key: &str, expected: &'static str, example: &'static str) -> Result<&[Node]> {
        match &self.value {
            Value::List(items) if !items.is_empty() => Ok(items),
            _ => Err(self.wrong_type(key, expected, example)),
        }
    }

    /// The entries of a map of free keys.
    pub(crate) fn entries(&self, key: &str, example: &'static str) -> Result<&[Entry]> {
        match &self.value {
            Value::Map(entries) => Ok(entries),
            _ => Err(self.wrong_type(key, "a map", example)),
        }
    }

    pub(crate) fn quantity(&self, key: &str, unit: Unit) -> Result<f64> {
        self.with_unit(key, |text| unit.parse(text))
    }

    pub(crate) fn positive_quantity(&self, key: &str, unit: Unit) -> Result<f64> {
        self.with_unit(key, |text| unit.parse_positive(text))
    }

    pub(crate) fn positive_bytes(&self, key: &str) -> Result<u64> {
        self.with_unit(key, units::parse_positive_bytes)
    }

    /// The size of a core's own memory.
    pub(crate) fn on_chip_bytes(&self, key: &str) -> Result<u64> {
        self.with_unit(key, units::parse_on_chip_bytes)
    }

    /// A power of two of bytes.
    pub(crate) fn alignment(&self, key: &str) -> Result<u64> {
        self.with_unit(key, units::parse_alignment)
    }

    fn with_unit<T>(&self, key: &str, parse: impl Fn(&str) -> Result<T, units::UnitError>) -> Result<T> {
        let text = match &self.value {
            Value::Text(text) => one_line(text),
            Value::Integer(value) => value.to_string(),
            Value::Float(value) => value.to_string(),
            _ => return Err(self.wrong_type(key, "a number with a unit", "512 KiB")),
        };
        parse(&text).map_err(|source| Error::Quantity { at: self.at.clone(), key: key.to_owned(), source })
    }
}

/// A map whose keys have been checked against the schema.
pub(crate) struct Section<'a> {
    node: &'a Node,
    entries: &'a [Entry],
    path: String,
}

impl<'a> Section<'a> {
    /// Opens the map `node`, which lies under `path` (empty for the whole file, which then is called `title`).
    pub(crate) fn open(
        node: &'a Node,
        path: &str,
        title: &str,
        accepted: &[&str],
        example: &'static str,
    ) -> Result<Self> {
        let name = if path.is_empty() { title } else { path };
        let entries = node.entries(name, example)?;
        if let Some(entry) = entries.iter().find(|entry| !accepted.contains(&entry.key.as_str())) {
            return Err(Error::UnknownKey {
                at: entry.at.clone(),
                section: name.to_owned(),
                key: quote(&entry.key),
                accepted: accepted.iter().map(|key| (*key).to_owned()).collect(),
            });
        }
        Ok(Self { node, entries, path: path.to_owned() })
    }

    /// The path of `key`, as messages show it.
    pub(crate) fn path(&self, key: &str) -> String {
        join(&self.path, key)
    }

    pub(crate) fn optional<T>(
        &self,
        key: &str,
        read: impl FnOnce(&'a Node, &str) -> Result<T>,
    ) -> Result<Option<T>> {
        let entry = self.entries.iter().find(|entry| entry.key == key);
        entry.map(|entry| read(&entry.node, &self.path(key))).transpose()
    }

    pub(crate) fn required<T>(
        &self,
        key: &'static str,
        example: &'static str,
        read: impl FnOnce(&'a Node, &str) -> Result<T>,
    ) -> Result<T> {
        self.optional(key, read)?.ok_or_else(|| Error::MissingKey {
            at: self.node.at.clone(),
            section: if self.path.is_empty() { "the file".to_owned() } else { self.path.clone() },
            key,
            example,
        })
    }
}

/// `path.key`, or `key` at the top.
pub(crate) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// A text of a file as messages quote it: on one line, and cut where it is long. Whoever names a file that is no profile
/// shall not be shown the whole of it.
pub(crate) fn quote(text: &impl ToString) -> String {
    cut(one_line(text), MAX_QUOTED)
}

fn cut(mut text: String, characters: usize) -> String {
    if let Some((end, _)) = text.char_indices().nth(characters) {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// The text on one line, without control characters, so that a message stays one line.
pub(crate) fn one_line(text: &impl ToString) -> String {
    let text = text.to_string();
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    clean.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn line_number(line: u64) -> u32 {
    u32::try_from(line).unwrap_or(u32::MAX).max(1)
}

fn raw_node(raw: Spanned<Raw>, file: &Location) -> Result<Node> {
    let at = file.with_line(line_number(raw.referenced.line()));
    let value = match raw.value {
        Raw::Null => Value::Null,
        Raw::Bool(value) => Value::Bool(value),
        Raw::Integer(value) => Value::Integer(value),
        Raw::Float(value) => Value::Float(value),
        Raw::Text(text) => Value::Text(text),
        Raw::List(items) => {
            Value::List(items.into_iter().map(|item| raw_node(item, file)).collect::<Result<_>>()?)
        }
        Raw::Map(pairs) => {
            let mut entries: Vec<Entry> = Vec::with_capacity(pairs.len());
            for (key, value) in pairs {
                let at = file.with_line(line_number(key.referenced.line()));
                let key = key.value;
                if let Some(first) = entries.iter().find(|entry| entry.key == key) {
                    return Err(Error::DuplicateKey { at, first: first.at.clone(), key: quote(&key) });
                }
                entries.push(Entry { at, key, node: raw_node(value, file)? });
            }
            Value::Map(entries)
        }
    };
    Ok(Node { at, value })
}

/// What serde sees: any YAML value, its parts with their positions.
enum Raw {
    Null,
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RawVisitor;

        impl<'de> Visitor<'de> for RawVisitor {
            type Value = Raw;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a YAML value")
            }

            fn visit_unit<E>(self) -> Result<Raw, E> {
                Ok(Raw::Null)
            }

            fn visit_none<E>(self) -> Result<Raw, E> {
                Ok(Raw::Null)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
                Ok(Raw::Bool(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
                Ok(Raw::Integer(value))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
                // Beyond i64 no key of the schema has a meaning; the range check names the value.
                Ok(i64::try_from(value).map_or(Raw::Float(value as f64), Raw::Integer))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
                Ok(Raw::Float(value))
            }

            fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
                Ok(Raw::Text(value.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = access.next_element()? {
                    items.push(item);
                }
                Ok(Raw::List(items))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = access.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Raw::Map(pairs))
            }
        }

        deserializer.deserialize_any(RawVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(node: &Node, path: &str, out: &mut Vec<String>) {
        match &node.value {
            Value::Map(entries) => {
                for entry in entries {
                    lines(&entry.node, &join(path, &entry.key), out);
                }
            }
            Value::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    lines(item, &format!("{path}[{index}]"), out);
                }
            }
            _ => out.push(format!("{path}:{}", node.at.line())),
        }
    }

    #[test]
    fn every_value_knows_its_line() {
        let text = "name: a\n\nmatch: { backend: cpu,\n  device: b }\nlist:\n- 1\n- {x: 2,\n   y: ~}\ntile: [1, 2]\n";
        let node = parse(text, "f.yaml").unwrap_or_else(|error| panic!("{error}"));
        let mut out = Vec::new();
        lines(&node, "", &mut out);
        assert_eq!(
            out,
            [
                "name:1",
                "match.backend:3",
                "match.device:4",
                "list[0]:6",
                "list[1].x:7",
                "list[1].y:8",
                "tile[0]:9",
                "tile[1]:9"
            ]
        );
        assert_eq!(node.child("tile").map(|node| node.at.line()), Some(9));
    }

    #[test]
    fn scalars_follow_yaml_1_2() {
        for (text, expected) in [
            ("true", Value::Bool(true)),
            ("yes", Value::Text("yes".into())),
            ("12", Value::Integer(12)),
            ("-12", Value::Integer(-12)),
            ("18446744073709551615", Value::Float(18446744073709551615.0)),
            ("1.5", Value::Float(1.5)),
            ("60%", Value::Text("60%".into())),
            ("\"12\"", Value::Text("12".into())),
            ("1_000", Value::Text("1_000".into())),
            ("2.77 TFLOP/s", Value::Text("2.77 TFLOP/s".into())),
        ] {
            assert_eq!(parse(text, "f").map(|node| node.value), Ok(expected), "{text}");
        }
    }

    #[test]
    fn damaged_files_are_one_line_errors_with_the_line() {
        for (text, expected) in [
            ("", "f.yaml:1: the file is empty; write at least 'name: NAME'"),
            ("# only a comment\n", "f.yaml:1: the file is empty; write at least 'name: NAME'"),
            ("a: 1\nb: 2\na: 3\n", "f.yaml:3: key 'a' was already given on line 1; keep one of the two"),
        ] {
            assert_eq!(
                parse(text, "f.yaml").map_err(|error| error.to_string()).err().as_deref(),
                Some(expected)
            );
        }
        for (text, line) in [
            ("a: [1, 2\nb: 3\n", 2),
            ("a: 1\n\tb: 2\n", 1),
            ("a: \"open\n", 1),
            ("a: 1\n---\nb: 2\n", 3),
            ("a: *nowhere\n", 1),
            ("a: 1\n  b: 2\n", 2),
            ("a: .nan\n", 1),
        ] {
            let message = parse(text, "f.yaml").expect_err("damaged").to_string();
            println!("{message}");
            assert!(message.starts_with(&format!("f.yaml:{line}: damaged YAML: ")), "{message}");
            assert!(!message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn hostile_nesting_and_aliases_are_refused() {
        let deep = "[".repeat(100_000);
        let deep_block: String = (0..200).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
        let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let items = vec![format!("*a{}", level - 1); 9].join(", ");
            laughs += &format!("a{level}: &a{level} [{items}]\n");
        }
        for text in [deep, deep_block, laughs] {
            assert!(matches!(parse(&text, "f.yaml"), Err(Error::Syntax { .. })));
        }
    }

    #[test]
    fn merging_replaces_values_and_lists_and_keeps_the_rest() {
        let parent = parse("a: {x: 1, y: [1, 2]}\nb: 1\n", "p").unwrap_or_else(|error| panic!("{error}"));
        let child = parse("a: {y: [3], z: 4}\nc: 5\n", "c").unwrap_or_else(|error| panic!("{error}"));
        let merged = merge(&parent, &child);
        let expected =
            parse("a: {x: 1, y: [3], z: 4}\nb: 1\nc: 5\n", "e").unwrap_or_else(|error| panic!("{error}"));
        let mut shown = (Vec::new(), Vec::new());
        lines(&merged, "", &mut shown.0);
        lines(&expected, "", &mut shown.1);
        let paths = |lines: &[String]| -> Vec<String> {
            lines.iter().map(|line| line.split(':').next().unwrap_or_default().to_owned()).collect()
        };
        assert_eq!(paths(&shown.0), paths(&shown.1));
        assert_eq!(merged.child("b").map(|node| node.at.to_string()).as_deref(), Some("p:2"));
        assert_eq!(
            merged.child("a").and_then(|a| a.child("y")).map(|node| node.at.to_string()).as_deref(),
            Some("c:1")
        );
    }
}
