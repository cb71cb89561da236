//! Showing an effective profile: as YAML with the origin of every value, and as JSON.

use std::fmt::Write as _;

use serde::ser::{SerializeMap, SerializeSeq, SerializeStruct};
use serde::{Serialize, Serializer};

use crate::location::Location;
use crate::profile::Profile;
use crate::yaml::{Entry, Node, Value, join};

/// Comments begin at the same column, unless a value reaches further than this.
const MAX_COMMENT_COLUMN: usize = 76;

/// One value of an effective profile. A list of plain values, such as `tile`, is one value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeafValue {
    /// Where it stands in the schema: `kernels.dot_general[0].tile`.
    pub path: String,
    /// The value as YAML on one line.
    pub text: String,
    /// The file and line that it came from.
    pub origin: Location,
}

impl Profile {
    /// The profile as YAML, with `# from FILE:LINE` at the right of every value. The text is itself a
    /// profile with the same content.
    pub fn render(&self) -> String {
        let mut lines = Vec::new();
        if let Value::Map(entries) = &self.node.value {
            render_map(entries, "", &mut lines);
        }
        let widths = lines.iter().filter(|line| line.origin.is_some()).map(|line| line.text.chars().count());
        let column = widths.filter(|width| *width <= MAX_COMMENT_COLUMN).max().unwrap_or(0) + 2;
        let mut out = String::new();
        for line in &lines {
            match line.origin {
                Some(origin) => {
                    let gap = column.saturating_sub(line.text.chars().count()).max(2);
                    let _ = writeln!(out, "{}{:gap$}# from {origin}", line.text, "");
                }
                None => {
                    let _ = writeln!(out, "{}", line.text);
                }
            }
        }
        out
    }

    /// Every value with its origin, in the order of [`Profile::render`].
    pub fn values(&self) -> Vec<LeafValue> {
        let mut values = Vec::new();
        collect_values(&self.node, "", &mut values);
        values
    }
}

/// `{"name", "builtin", "extends": [...], "hash", "values": {the tree}, "origins": {path: "FILE:LINE"}}`.
impl Serialize for Profile {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        struct Origins(Vec<LeafValue>);
        impl Serialize for Origins {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_map(self.0.iter().map(|value| (&value.path, &value.origin)))
            }
        }
        let mut object = serializer.serialize_struct("Profile", 6)?;
        object.serialize_field("name", self.name())?;
        object.serialize_field("builtin", &self.is_builtin())?;
        object.serialize_field("extends", self.ancestors())?;
        object.serialize_field("hash", &format!("{:016x}", self.hash()))?;
        object.serialize_field("values", &Plain(&self.node))?;
        object.serialize_field("origins", &Origins(self.values()))?;
        object.end()
    }
}

struct Line<'a> {
    text: String,
    origin: Option<&'a Location>,
}

fn render_map<'a>(entries: &'a [Entry], indent: &str, lines: &mut Vec<Line<'a>>) {
    for entry in entries {
        let key = format!("{indent}{}:", text_scalar(&entry.key));
        match &entry.node.value {
            _ if is_leaf(&entry.node) => {
                let text = format!("{key} {}", flow(&entry.node));
                lines.push(Line { text, origin: Some(&entry.node.at) });
            }
            Value::Map(inner) => {
                lines.push(Line { text: key, origin: None });
                render_map(inner, &format!("{indent}  "), lines);
            }
            Value::List(items) => {
                lines.push(Line { text: key, origin: None });
                for item in items {
                    render_item(item, &format!("{indent}  "), lines);
                }
            }
            _ => {}
        }
    }
}

/// An item of a list: on one line if it stood on one line, so that each line has one origin.
fn render_item<'a>(item: &'a Node, indent: &str, lines: &mut Vec<Line<'a>>) {
    let Value::Map(entries) = &item.value else {
        lines.push(Line { text: format!("{indent}- {}", flow(item)), origin: Some(&item.at) });
        return;
    };
    if entries.iter().all(|entry| is_leaf(&entry.node) && entry.node.at == item.at) {
        lines.push(Line { text: format!("{indent}- {}", flow(item)), origin: Some(&item.at) });
        return;
    }
    let begin = lines.len();
    render_map(entries, &format!("{indent}  "), lines);
    if let Some(first) = lines.get_mut(begin) {
        first.text.replace_range(indent.len()..indent.len() + 1, "-");
    }
}

fn collect_values(node: &Node, path: &str, values: &mut Vec<LeafValue>) {
    match &node.value {
        Value::Map(entries) if !is_leaf(node) => {
            for entry in entries {
                collect_values(&entry.node, &join(path, &entry.key), values);
            }
        }
        Value::List(items) if !is_leaf(node) => {
            for (index, item) in items.iter().enumerate() {
                collect_values(item, &format!("{path}[{index}]"), values);
            }
        }
        _ => values.push(LeafValue { path: path.to_owned(), text: flow(node), origin: node.at.clone() }),
    }
}

/// Whether the value has one origin: a scalar, an empty map, or a list of scalars.
fn is_leaf(node: &Node) -> bool {
    match &node.value {
        Value::Map(entries) => entries.is_empty(),
        Value::List(items) => !items.iter().any(|item| matches!(item.value, Value::Map(_) | Value::List(_))),
        _ => true,
    }
}

/// The value in YAML's flow style, on one line.
fn flow(node: &Node) -> String {
    match &node.value {
        Value::Null => "~".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Integer(value) => value.to_string(),
        Value::Float(value) => format!("{value:?}"),
        Value::Text(text) => text_scalar(text),
        Value::List(items) => format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Value::Map(entries) if entries.is_empty() => "{}".to_owned(),
        Value::Map(entries) => {
            let pairs =
                entries.iter().map(|entry| format!("{}: {}", text_scalar(&entry.key), flow(&entry.node)));
            format!("{{ {} }}", pairs.collect::<Vec<_>>().join(", "))
        }
    }
}

/// A text as a YAML scalar: plain if no reader could take it for anything else, else in double quotes.
pub(crate) fn text_scalar(text: &str) -> String {
    let words = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    let begins_plain = text.starts_with(|c: char| c.is_ascii_alphabetic());
    // A digit begins a number unless a unit follows it: '60%', '77 GB/s'.
    let quantity =
        text.starts_with(|c: char| c.is_ascii_digit()) && (text.contains(' ') || text.ends_with('%'));
    let plain = (begins_plain || quantity)
        && text.chars().all(|c| c.is_ascii_alphanumeric() || " _./%-".contains(c))
        && !text.ends_with(' ')
        && !words.contains(&text.to_ascii_lowercase().as_str());
    if plain {
        return text.to_owned();
    }
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// A tree without its origins.
struct Plain<'a>(&'a Node);

impl Serialize for Plain<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0.value {
            Value::Null => serializer.serialize_unit(),
            Value::Bool(value) => serializer.serialize_bool(*value),
            Value::Integer(value) => serializer.serialize_i64(*value),
            Value::Float(value) => serializer.serialize_f64(*value),
            Value::Text(text) => serializer.serialize_str(text),
            Value::List(items) => {
                let mut list = serializer.serialize_seq(Some(items.len()))?;
                for item in items {
                    list.serialize_element(&Plain(item))?;
                }
                list.end()
            }
            Value::Map(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for entry in entries {
                    map.serialize_entry(&entry.key, &Plain(&entry.node))?;
                }
                map.end()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ProfileSet, yaml};

    #[test]
    fn texts_read_back_as_the_same_text() {
        for text in [
            "portable",
            "60%",
            "77 GB/s",
            "12",
            "1.5",
            "1e3",
            "true",
            "Yes",
            "null",
            "~",
            "",
            " a",
            "a ",
            "a: b",
            "#x",
            "a #b",
            "- a",
            "[x",
            "{x",
            "a, b",
            "m >= 64 and n % 2 == 0",
            "Adreno.*750",
            "a\\d\"b",
            "ü\n\tz",
            "0x10",
            "1_000",
            "*a",
            "&a",
            "!a",
            "%a",
            "@a",
            "`a",
            "a\u{0}b",
            "012",
            ".inf",
            "2026-01-01",
            "<<",
        ] {
            let written = format!("k: [{}]", text_scalar(text));
            let node = yaml::parse(&written, "f").unwrap_or_else(|error| panic!("{written}: {error}"));
            let Some(Value::List(items)) = node.child("k").map(|node| &node.value) else {
                panic!("{written}")
            };
            assert_eq!(items[0].value, Value::Text(text.to_owned()), "{written}");
        }
    }

    #[test]
    fn the_text_shows_every_value_with_its_origin() {
        let text = "name: mine\nextends: npu-halite-emulator\nkernels:\n  elementwise:\n  - variant: vector\n    \
                    when: n >= 64 and n % 2 == 0\n    chunk: 2048\n  - { variant: vector, chunk: 64 }\n\
                    memory: { pool_limit: 2 GiB }\n";
        let set = ProfileSet::from_texts([("mine.yaml", text)]).unwrap_or_else(|error| panic!("{error}"));
        let shown = set.by_name("mine").map(|profile| profile.render()).unwrap_or_default();
        let expected = r#"name: mine                                                             # from mine.yaml:1
extends: npu-halite-emulator                                           # from mine.yaml:2
match:
  backend: npu                                                         # from builtin:npu.yaml:4
  device: "Halite.*emulator"                                           # from builtin:npu-halite-emulator.yaml:4
peak:
  f16: 363.7248 TFLOP/s                                                # from builtin:npu-halite-emulator.yaml:5
  bf16: 363.7248 TFLOP/s                                               # from builtin:npu-halite-emulator.yaml:5
  f32: 90.9312 TFLOP/s                                                 # from builtin:npu-halite-emulator.yaml:5
  i8: 727.4496 TOP/s                                                   # from builtin:npu-halite-emulator.yaml:5
  memory: 1420.8 GB/s                                                  # from builtin:npu-halite-emulator.yaml:5
source: "cores, clock and rates of builtin:machine/davinci-like.yaml"  # from builtin:npu-halite-emulator.yaml:6
kernels:
  dot_general:
    - { variant: cube, tile: [128, 256, 64] }                          # from builtin:npu.yaml:7
  conv_general:
    - { variant: cube_im2col, tile: [128, 256, 64] }                   # from builtin:npu.yaml:9
  elementwise:
    - variant: vector                                                  # from mine.yaml:5
      when: "n >= 64 and n % 2 == 0"                                   # from mine.yaml:6
      chunk: 2048                                                      # from mine.yaml:7
    - { variant: vector, chunk: 64 }                                   # from mine.yaml:8
  reduce:
    - { variant: vector, chunk: 4096 }                                 # from builtin:npu.yaml:13
  window_reduce:
    - { variant: vector, chunk: 4096 }                                 # from builtin:npu.yaml:15
  pad:
    - { variant: vector, chunk: 4096 }                                 # from builtin:npu.yaml:17
memory:
  host_visible: false                                                  # from builtin:npu.yaml:18
  pool_limit: 2 GiB                                                    # from mine.yaml:9
accumulate:
  f16: f32                                                             # from builtin:npu.yaml:19
  bf16: f32                                                            # from builtin:npu.yaml:19
fallback:
  unsupported: cpu                                                     # from builtin:npu.yaml:20
"#;
        assert_eq!(shown, expected);
    }

    #[test]
    fn the_text_is_a_profile_with_the_same_content() {
        for profile in ProfileSet::builtin().iter() {
            let name = profile.name();
            let copy = profile.render().replacen(&format!("name: {name}"), "name: copy", 1);
            let set = ProfileSet::from_texts([("copy.yaml", copy.as_str())]);
            let copy =
                set.and_then(|set| set.by_name("copy")).unwrap_or_else(|error| panic!("{copy}\n{error}"));
            assert_eq!(copy.hash(), profile.hash(), "{name}");
            let texts = |profile: &Profile| -> Vec<(String, String)> {
                let mut texts: Vec<_> =
                    profile.values().into_iter().map(|value| (value.path, value.text)).collect();
                texts.retain(|(path, _)| path != "name");
                texts.sort();
                texts
            };
            assert_eq!(texts(&copy), texts(profile), "{name}");
        }
    }

    #[test]
    fn json_holds_values_and_origins() {
        let text = "name: mine\nextends: npu\nkernels:\n  a: [{ variant: x, tile: [1, 2] }]\n";
        let set = ProfileSet::from_texts([("mine.yaml", text)]).unwrap_or_else(|error| panic!("{error}"));
        let profile = set.by_name("mine").unwrap_or_else(|error| panic!("{error}"));
        let json = serde_json::to_value(&*profile).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(json["name"], "mine");
        assert_eq!(json["builtin"], false);
        assert_eq!(json["extends"], serde_json::json!(["npu"]));
        assert_eq!(json["hash"], format!("{:016x}", profile.hash()));
        assert_eq!(json["values"]["kernels"]["a"], serde_json::json!([{ "variant": "x", "tile": [1, 2] }]));
        assert_eq!(json["values"]["memory"]["host_visible"], false);
        assert_eq!(json["origins"]["kernels.a[0].tile"], "mine.yaml:4");
        assert_eq!(json["origins"]["match.backend"], "builtin:npu.yaml:4");
    }
}
