//! The schema of a profile: which keys there are, and what their values mean.

use std::collections::BTreeMap;
use std::fmt;

use halite_hal::DType;
use regex_lite::Regex;
use serde::Serialize;

use crate::condition::Condition;
use crate::error::{Error, Result};
use crate::location::Location;
use crate::render::text_scalar;
use crate::units::Unit;
use crate::yaml::{Node, Section, Value, join, quote};

/// The keys of a profile, in the order in which it is shown.
pub(crate) const PROFILE_KEYS: [&str; 9] =
    ["name", "extends", "match", "peak", "source", "kernels", "memory", "accumulate", "fallback"];
const MATCH_KEYS: [&str; 7] =
    ["backend", "device", "vendor", "driver", "compute_units", "features", "priority"];
const ENTRY_KEYS: [&str; 8] = ["variant", "when", "tile", "threads", "chunk", "stages", "split_k", "unroll"];
/// The keys of a kernel entry that hold one positive integer.
const INTEGER_KEYS: [&str; 4] = ["chunk", "stages", "split_k", "unroll"];
const MEMORY_KEYS: [&str; 3] = ["local_staging", "host_visible", "pool_limit"];

/// What a profile says, without where it says so.
#[derive(Debug, Clone)]
pub(crate) struct Content {
    pub(crate) name: String,
    pub(crate) extends: Option<String>,
    pub(crate) criteria: Option<Criteria>,
    pub(crate) peak: Peak,
    pub(crate) source: Option<String>,
    pub(crate) kernels: BTreeMap<String, Vec<KernelEntry>>,
    pub(crate) memory: MemoryPolicy,
    pub(crate) accumulate: BTreeMap<DType, DType>,
    pub(crate) fallback: Fallback,
}

/// `peak`: the rates that no program exceeds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Peak {
    /// Operations per second by element type.
    pub(crate) rates: BTreeMap<DType, f64>,
    /// Operations per second on f32 elements whose products are rounded to TF32; no type of its own.
    pub(crate) tf32: Option<f64>,
    /// Bytes per second of the device's memory.
    pub(crate) bandwidth: Option<f64>,
}

/// `match`: what a device must be for the profile to apply.
#[derive(Debug, Clone)]
pub(crate) struct Criteria {
    pub(crate) backend: Option<String>,
    pub(crate) device: Option<Regex>,
    pub(crate) vendor: Option<Regex>,
    pub(crate) driver: Option<String>,
    pub(crate) compute_units: Option<u32>,
    pub(crate) features: Vec<String>,
    pub(crate) priority: i64,
}

/// One entry of an op's list under `kernels`.
#[derive(Debug, Clone)]
pub struct KernelEntry {
    pub(crate) variant: String,
    pub(crate) when: Option<(Condition, Location)>,
    pub(crate) parameters: Parameters,
    pub(crate) at: Location,
}

/// The sizes that a kernel is built or launched with. All are positive.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Parameters {
    tile: Option<Vec<u32>>,
    threads: Option<Vec<u32>>,
    integers: BTreeMap<&'static str, u32>,
}

impl fmt::Display for Parameters {
    /// As the keys of a profile's entry: `tile: [64, 64, 16], threads: [8, 16], unroll: 4`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lists = [("tile", &self.tile), ("threads", &self.threads)];
        let lists =
            lists.into_iter().filter_map(|(key, list)| list.as_ref().map(|list| format!("{key}: {list:?}")));
        let integers = self.integers.iter().map(|(key, value)| format!("{key}: {value}"));
        f.write_str(&lists.chain(integers).collect::<Vec<_>>().join(", "))
    }
}

impl fmt::Display for KernelEntry {
    /// As an item of a profile's list: `{ variant: tiled, when: "m >= 64", tile: [64, 64, 16] }`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{ variant: {}", text_scalar(&self.variant))?;
        if let Some(condition) = self.when() {
            write!(f, ", when: {}", text_scalar(&condition.to_string()))?;
        }
        if !self.parameters.is_empty() {
            write!(f, ", {}", self.parameters)?;
        }
        f.write_str(" }")
    }
}

/// How the device's memory is used.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct MemoryPolicy {
    /// Whether kernels stage their operands in workgroup-local memory; `None`: the backend's own default.
    pub local_staging: Option<bool>,
    /// Whether buffers prefer memory that the host can map; `None`: the backend's own default.
    pub host_visible: Option<bool>,
    /// The most that the pool may hold; `None`: no limit but the device's.
    pub pool_limit: Option<PoolLimit>,
}

/// The most device memory that the pool may hold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PoolLimit {
    /// A share of the device's memory, from 0 to 1.
    Share(f64),
    /// Bytes.
    Bytes(u64),
}

/// What happens with an op that the device has no kernel for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fallback {
    /// The op runs on the CPU; it is counted and shown.
    #[default]
    Cpu,
    /// The op is an error.
    Error,
}

impl KernelEntry {
    /// The kernel variant that the entry names.
    pub fn variant(&self) -> &str {
        &self.variant
    }

    /// The condition under which the entry applies; `None`: always.
    pub fn when(&self) -> Option<&Condition> {
        self.when.as_ref().map(|(condition, _)| condition)
    }

    /// The sizes.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Where the entry stands.
    pub fn origin(&self) -> &Location {
        &self.at
    }
}

impl Parameters {
    /// The same with this tile; a profile could not hold an extent of 0, nor an empty list.
    #[must_use]
    pub fn with_tile(mut self, tile: impl Into<Vec<u32>>) -> Self {
        self.tile = Some(tile.into());
        self
    }

    /// The same with this many threads per dimension of a workgroup.
    #[must_use]
    pub fn with_threads(mut self, threads: impl Into<Vec<u32>>) -> Self {
        self.threads = Some(threads.into());
        self
    }

    /// The same with `chunk` points or elements at a time.
    #[must_use]
    pub fn with_chunk(mut self, chunk: u32) -> Self {
        self.integers.insert("chunk", chunk);
        self
    }

    /// The same with `stages` of a pipeline.
    #[must_use]
    pub fn with_stages(mut self, stages: u32) -> Self {
        self.integers.insert("stages", stages);
        self
    }

    /// The same with the sum over k in `split_k` parts.
    #[must_use]
    pub fn with_split_k(mut self, split_k: u32) -> Self {
        self.integers.insert("split_k", split_k);
        self
    }

    /// The same with loops unrolled `unroll` times.
    #[must_use]
    pub fn with_unroll(mut self, unroll: u32) -> Self {
        self.integers.insert("unroll", unroll);
        self
    }

    /// Whether nothing is given.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The tile's extent per dimension, outermost first as the op documents it (`[m, n, k]`).
    pub fn tile(&self) -> Option<&[u32]> {
        self.tile.as_deref()
    }

    /// Threads per workgroup and dimension.
    pub fn threads(&self) -> Option<&[u32]> {
        self.threads.as_deref()
    }

    /// The integer under `name`: `chunk`, `stages`, `split_k` or `unroll`.
    pub fn int(&self, name: &str) -> Option<u32> {
        self.integers.get(name).copied()
    }

    /// The integers that are given, sorted by name.
    pub fn ints(&self) -> impl Iterator<Item = (&'static str, u32)> {
        self.integers.iter().map(|(name, value)| (*name, *value))
    }
}

impl PoolLimit {
    /// The limit in bytes on a device with `total_bytes` of memory; never more than those.
    pub fn bytes(self, total_bytes: u64) -> u64 {
        match self {
            Self::Share(share) => ((total_bytes as f64 * share) as u64).min(total_bytes),
            Self::Bytes(bytes) => bytes.min(total_bytes),
        }
    }
}

impl Fallback {
    /// The word in the profile: `cpu` or `error`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Error => "error",
        }
    }
}

impl Criteria {
    /// How much the criteria ask for; of two profiles that match, the one that asks for more wins.
    pub(crate) fn count(&self) -> usize {
        usize::from(self.backend.is_some())
            + usize::from(self.device.is_some())
            + usize::from(self.vendor.is_some())
            + usize::from(self.driver.is_some())
            + usize::from(self.compute_units.is_some())
            + self.features.len()
    }
}

impl Content {
    /// Reads a profile's tree, before or after it has inherited.
    pub(crate) fn read(node: &Node) -> Result<Self> {
        let top = Section::open(node, "", "the profile", &PROFILE_KEYS, "name: my-device")?;
        Ok(Self {
            name: top.required("name", "my-device", |node, key| node.text(key, "my-device"))?.to_owned(),
            extends: top.optional("extends", |node, key| node.text(key, "cpu"))?.map(str::to_owned),
            criteria: top.optional("match", criteria)?,
            peak: top.optional("peak", peak)?.unwrap_or_default(),
            source: top
                .optional("source", |node, key| node.text(key, "data sheet, page 3"))?
                .map(str::to_owned),
            kernels: top.optional("kernels", kernels)?.unwrap_or_default(),
            memory: top.optional("memory", memory)?.unwrap_or_default(),
            accumulate: top.optional("accumulate", accumulate)?.unwrap_or_default(),
            fallback: top.optional("fallback", fallback)?.unwrap_or_default(),
        })
    }
}

fn criteria(node: &Node, path: &str) -> Result<Criteria> {
    const EXAMPLE: &str = "{ backend: cpu }";
    let section = Section::open(node, path, path, &MATCH_KEYS, EXAMPLE)?;
    let features = section.optional("features", |node, key| {
        let items = node.list(key, "a list of feature names", "[avx2, fma]")?;
        items.iter().map(|item| item.text(key, "avx2").map(str::to_owned)).collect::<Result<Vec<_>>>()
    })?;
    let criteria = Criteria {
        backend: section.optional("backend", |node, key| node.text(key, "cpu"))?.map(str::to_owned),
        device: section.optional("device", pattern)?,
        vendor: section.optional("vendor", pattern)?,
        driver: section.optional("driver", |node, key| node.text(key, "535.104"))?.map(str::to_owned),
        compute_units: section.optional("compute_units", Node::count)?,
        features: features.unwrap_or_default(),
        priority: section.optional("priority", Node::integer)?.unwrap_or(0),
    };
    if criteria.count() == 0 {
        return Err(Error::MissingKey {
            at: node.at.clone(),
            section: path.to_owned(),
            key: "backend",
            example: "cpu",
        });
    }
    Ok(criteria)
}

fn pattern(node: &Node, key: &str) -> Result<Regex> {
    let text = node.text(key, "Adreno.*750")?;
    Regex::new(text).map_err(|error| Error::Pattern {
        at: node.at.clone(),
        key: key.to_owned(),
        pattern: quote(&text),
        reason: quote(&error),
    })
}

fn peak(node: &Node, path: &str) -> Result<Peak> {
    const EXAMPLE: &str = "{ f32: 2.77 TFLOP/s, memory: 77 GB/s }";
    let dtypes = numeric_dtypes();
    let accepted: Vec<&str> = dtypes.iter().map(|dtype| dtype.name()).chain(["tf32", "memory"]).collect();
    let section = Section::open(node, path, path, &accepted, EXAMPLE)?;
    let mut rates = BTreeMap::new();
    for dtype in dtypes {
        let unit = if dtype.is_float() { Unit::Flops } else { Unit::Ops };
        if let Some(rate) = section.optional(dtype.name(), |node, key| node.quantity(key, unit))? {
            rates.insert(dtype, rate);
        }
    }
    Ok(Peak {
        rates,
        tf32: section.optional("tf32", |node, key| node.quantity(key, Unit::Flops))?,
        bandwidth: section.optional("memory", |node, key| node.quantity(key, Unit::Bandwidth))?,
    })
}

fn kernels(node: &Node, path: &str) -> Result<BTreeMap<String, Vec<KernelEntry>>> {
    let ops = node.entries(path, "{ dot_general: [{ variant: portable }] }")?.iter().map(|entry| {
        let path = join(path, &quote(&entry.key));
        let items =
            entry.node.list(&path, "a list of entries", "[{ variant: portable, tile: [64, 64, 64] }]")?;
        let entries =
            items.iter().enumerate().map(|(index, item)| kernel_entry(item, &format!("{path}[{index}]")));
        Ok((entry.key.clone(), entries.collect::<Result<Vec<_>>>()?))
    });
    ops.collect()
}

fn kernel_entry(node: &Node, path: &str) -> Result<KernelEntry> {
    let section = Section::open(node, path, path, &ENTRY_KEYS, "{ variant: portable, tile: [64, 64, 64] }")?;
    let mut integers = BTreeMap::new();
    for key in INTEGER_KEYS {
        if let Some(value) = section.optional(key, Node::count)? {
            integers.insert(key, value);
        }
    }
    Ok(KernelEntry {
        variant: section.required("variant", "portable", |node, key| node.text(key, "portable"))?.to_owned(),
        when: section.optional("when", when)?,
        parameters: Parameters {
            tile: section.optional("tile", extents)?,
            threads: section.optional("threads", |node, key| match node.value {
                Value::Integer(_) => Ok(vec![node.count(key)?]),
                _ => extents(node, key),
            })?,
            integers,
        },
        at: node.at.clone(),
    })
}

fn when(node: &Node, key: &str) -> Result<(Condition, Location)> {
    let text = node.text(key, "m >= 64")?;
    let condition = Condition::parse(text).map_err(|source| Error::Condition {
        at: node.at.clone(),
        key: key.to_owned(),
        text: quote(&text),
        source,
    })?;
    Ok((condition, node.at.clone()))
}

fn extents(node: &Node, key: &str) -> Result<Vec<u32>> {
    let items = node.list(key, "a list of positive integers", "[64, 64, 16]")?;
    items.iter().map(|item| item.count(key)).collect()
}

fn memory(node: &Node, path: &str) -> Result<MemoryPolicy> {
    let section = Section::open(node, path, path, &MEMORY_KEYS, "{ pool_limit: 60% }")?;
    Ok(MemoryPolicy {
        local_staging: section.optional("local_staging", Node::bool)?,
        host_visible: section.optional("host_visible", Node::bool)?,
        pool_limit: section.optional("pool_limit", |node, key| match &node.value {
            Value::Text(text) if text.trim_end().ends_with('%') => {
                node.positive_quantity(key, Unit::Percent).map(PoolLimit::Share)
            }
            _ => node.positive_bytes(key).map(PoolLimit::Bytes),
        })?,
    })
}

fn accumulate(node: &Node, path: &str) -> Result<BTreeMap<DType, DType>> {
    let dtypes = numeric_dtypes();
    let accepted: Vec<&str> = dtypes.iter().map(|dtype| dtype.name()).collect();
    let section = Section::open(node, path, path, &accepted, "{ f16: f32 }")?;
    let mut pairs = BTreeMap::new();
    for dtype in &dtypes {
        let index = section.optional(dtype.name(), |node, key| word(node, key, &accepted, "f32"))?;
        if let Some(index) = index {
            pairs.insert(*dtype, dtypes[index]);
        }
    }
    Ok(pairs)
}

fn fallback(node: &Node, path: &str) -> Result<Fallback> {
    const CHOICES: [Fallback; 2] = [Fallback::Cpu, Fallback::Error];
    let section = Section::open(node, path, path, &["unsupported"], "{ unsupported: cpu }")?;
    let index =
        section.optional("unsupported", |node, key| word(node, key, &CHOICES.map(Fallback::name), "cpu"))?;
    Ok(index.map_or(Fallback::default(), |index| CHOICES[index]))
}

/// The index of the node's text in `accepted`.
fn word(node: &Node, key: &str, accepted: &[&str], example: &'static str) -> Result<usize> {
    let word = node.text(key, example)?;
    accepted.iter().position(|known| *known == word).ok_or_else(|| Error::UnknownWord {
        at: node.at.clone(),
        key: key.to_owned(),
        word: quote(&word),
        accepted: accepted.iter().map(|word| (*word).to_owned()).collect(),
    })
}

fn numeric_dtypes() -> Vec<DType> {
    DType::ALL.into_iter().filter(|dtype| *dtype != DType::Bool).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml;

    fn read(text: &str) -> Result<Content> {
        yaml::parse(text, "gpu.yaml").and_then(|node| Content::read(&node))
    }

    #[test]
    fn the_full_schema_is_read() {
        let content = read(concat!(
            "name: adreno-750\n",
            "extends: opencl-mobile\n",
            "match: { backend: opencl, device: \"Adreno.*750\", vendor: QUALCOMM, compute_units: 6, features: [fp16], priority: -1 }\n",
            "peak: { f32: 2.77 TFLOP/s, tf32: 9 TFLOP/s, i8: 11 TOP/s, memory: 77 GB/s }\n",
            "source: \"where the numbers come from\"\n",
            "kernels:\n",
            "  matmul:\n",
            "    - { variant: tiled_vec4, when: \"m >= 64\", tile: [64, 64, 16], threads: [8, 16] }\n",
            "    - { variant: tiled, threads: 4, chunk: 512, stages: 2, split_k: 3, unroll: 4 }\n",
            "memory: { local_staging: false, host_visible: true, pool_limit: 60% }\n",
            "accumulate: { f16: f32 }\n",
            "fallback: { unsupported: error }\n",
        ))
        .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(
            (content.name.as_str(), content.extends.as_deref()),
            ("adreno-750", Some("opencl-mobile"))
        );
        let criteria = content.criteria.expect("the profile has 'match'");
        assert_eq!((criteria.count(), criteria.priority), (5, -1));
        assert_eq!(content.peak.rates.get(&DType::I8), Some(&11e12));
        assert_eq!((content.peak.tf32, content.peak.bandwidth), (Some(9e12), Some(77e9)));
        let entries = &content.kernels["matmul"];
        assert_eq!(entries[0].variant(), "tiled_vec4");
        assert_eq!(entries[0].when().map(ToString::to_string).as_deref(), Some("m >= 64"));
        assert_eq!(entries[0].parameters().tile(), Some([64, 64, 16].as_slice()));
        assert_eq!(entries[0].parameters().threads(), Some([8, 16].as_slice()));
        assert_eq!(entries[1].parameters().threads(), Some([4].as_slice()));
        assert_eq!(
            entries[1].parameters().ints().collect::<Vec<_>>(),
            [("chunk", 512), ("split_k", 3), ("stages", 2), ("unroll", 4)]
        );
        assert_eq!(entries[1].parameters().int("tile"), None);
        assert_eq!(entries[1].origin().to_string(), "gpu.yaml:9");
        assert_eq!(
            content.memory,
            MemoryPolicy {
                local_staging: Some(false),
                host_visible: Some(true),
                pool_limit: Some(PoolLimit::Share(0.6))
            }
        );
        assert_eq!(content.accumulate.get(&DType::F16), Some(&DType::F32));
        assert_eq!(content.fallback, Fallback::Error);
    }

    #[test]
    fn a_name_alone_is_a_profile() {
        let content = read("name: bare\n").unwrap_or_else(|error| panic!("{error}"));
        assert!(content.criteria.is_none() && content.kernels.is_empty());
        assert_eq!(content.fallback, Fallback::Cpu);
        assert_eq!(content.memory, MemoryPolicy::default());
    }

    #[test]
    fn pool_limits_never_exceed_the_device() {
        for (limit, total, expected) in [
            (PoolLimit::Share(0.6), 1000, 600),
            (PoolLimit::Share(1.0), u64::MAX, u64::MAX),
            (PoolLimit::Share(0.0), 1000, 0),
            (PoolLimit::Bytes(10), 1000, 10),
            (PoolLimit::Bytes(2000), 1000, 1000),
        ] {
            assert_eq!(limit.bytes(total), expected, "{limit:?} of {total}");
        }
    }

    #[test]
    fn wrong_profiles_are_named_with_their_line() {
        let in_entry =
            |text: &str| format!("name: a\nkernels:\n  matmul:\n  - {{ variant: tiled, {text} }}\n");
        for (text, expected) in [
            ("nam: a\n".to_owned(), "gpu.yaml:1: unknown key 'nam' in the profile; did you mean 'name'?"),
            (
                "name: a\ncolour: red\n".to_owned(),
                "gpu.yaml:2: unknown key 'colour' in the profile; use one of name, extends, match, peak, source, \
                 kernels, memory, accumulate, fallback",
            ),
            ("source: x\n".to_owned(), "gpu.yaml:1: the file has no key 'name'; add 'name: my-device'"),
            (
                "- a\n".to_owned(),
                "gpu.yaml:1: the profile is a list, expected a map; write for example 'name: my-device'",
            ),
            (
                "name: 750\n".to_owned(),
                "gpu.yaml:1: name is the number 750, expected text (in quotes); write for example 'my-device'",
            ),
            (
                "name: a\nmatch: { devise: x }\n".to_owned(),
                "gpu.yaml:2: unknown key 'devise' in match; did you mean 'device'?",
            ),
            (
                "name: a\nmatch: { priority: 3 }\n".to_owned(),
                "gpu.yaml:2: match has no key 'backend'; add 'backend: cpu'",
            ),
            (
                "name: a\nmatch:\n  device: \"Adreno(\"\n".to_owned(),
                "gpu.yaml:3: match.device 'Adreno(' is not a regular expression: found open group without closing \
                 ')'; correct it, or put '\\' before a special character",
            ),
            (
                "name: a\nmatch:\n  features: avx2\n".to_owned(),
                "gpu.yaml:3: match.features is the text 'avx2', expected a list of feature names; write for example \
                 '[avx2, fma]'",
            ),
            (
                "name: a\npeak:\n  f32: 2.77 TFLOP\n".to_owned(),
                "gpu.yaml:3: peak.f32: '2.77 TFLOP' has the unit 'TFLOP', which is not a rate of floating-point \
                 operations; did you mean 'TFLOP/s'?",
            ),
            (
                "name: a\npeak:\n  f32: 77\n".to_owned(),
                "gpu.yaml:3: peak.f32: '77' has no unit; write a rate of floating-point operations such as \
                 '2.77 TFLOP/s' (units: FLOP/s, KFLOP/s, MFLOP/s, GFLOP/s, TFLOP/s, PFLOP/s)",
            ),
            (
                "name: a\npeak:\n  i8: 77 TFLOP/s\n".to_owned(),
                "gpu.yaml:3: peak.i8: '77 TFLOP/s' has the unit 'TFLOP/s', which is not a rate of integer \
                 operations; did you mean 'TOP/s'?",
            ),
            (
                "name: a\npeak:\n  memory: 77 GB\n".to_owned(),
                "gpu.yaml:3: peak.memory: '77 GB' has the unit 'GB', which is not a bandwidth; use one of B/s, \
                 KB/s, MB/s, GB/s, TB/s, KiB/s, MiB/s, GiB/s, TiB/s",
            ),
            (
                "name: a\npeak:\n  tf32: 1 TOP/s\n".to_owned(),
                "gpu.yaml:3: peak.tf32: '1 TOP/s' has the unit 'TOP/s', which is not a rate of floating-point \
                 operations; did you mean 'FLOP/s'?",
            ),
            (
                "name: a\nmatch:\n  compute_units: 0\n".to_owned(),
                "gpu.yaml:3: match.compute_units is the number 0, expected an integer from 1 to 4294967295; \
                 write for example '64'",
            ),
            (
                "name: a\npeak:\n  f33: 1 TFLOP/s\n".to_owned(),
                "gpu.yaml:3: unknown key 'f33' in peak; did you mean 'f32'?",
            ),
            (
                "name: a\nkernels:\n  matmul: { variant: x }\n".to_owned(),
                "gpu.yaml:3: kernels.matmul is a map, expected a list of entries; write for example \
                 '[{ variant: portable, tile: [64, 64, 64] }]'",
            ),
            (
                "name: a\nkernels:\n  matmul:\n  - tile: [1]\n".to_owned(),
                "gpu.yaml:4: kernels.matmul[0] has no key 'variant'; add 'variant: portable'",
            ),
            (
                in_entry("tiel: [1]"),
                "gpu.yaml:4: unknown key 'tiel' in kernels.matmul[0]; did you mean 'tile'?",
            ),
            (
                in_entry("tile: [64, 0]"),
                "gpu.yaml:4: kernels.matmul[0].tile is the number 0, expected an integer from 1 to 4294967295; \
                 write for example '64'",
            ),
            (
                in_entry("tile: []"),
                "gpu.yaml:4: kernels.matmul[0].tile is an empty list, expected a list of positive integers; write \
                 for example '[64, 64, 16]'",
            ),
            (
                "name: a\nkernels:\n  matmul: []\n".to_owned(),
                "gpu.yaml:3: kernels.matmul is an empty list, expected a list of entries; write for example \
                 '[{ variant: portable, tile: [64, 64, 64] }]'",
            ),
            (
                in_entry("chunk: -4"),
                "gpu.yaml:4: kernels.matmul[0].chunk is the number -4, expected an integer from 1 to 4294967295; \
                 write for example '64'",
            ),
            (
                in_entry("unroll: 1.5"),
                "gpu.yaml:4: kernels.matmul[0].unroll is the number 1.5, expected an integer from 1 to 4294967295; \
                 write for example '64'",
            ),
            (
                in_entry("when: m >="),
                "gpu.yaml:4: kernels.matmul[0].when 'm >=' is not a condition: it ends where a number or a \
                 variable is expected; write a comparison such as 'm >= 64'",
            ),
            (
                "name: a\nmemory: { pool_limit: 60 }\n".to_owned(),
                "gpu.yaml:2: memory.pool_limit: '60' has no unit; write a number of bytes such as '512 KiB' \
                 (units: B, KB, MB, GB, TB, KiB, MiB, GiB, TiB)",
            ),
            (
                "name: a\nmemory: { pool_limit: 160% }\n".to_owned(),
                "gpu.yaml:2: memory.pool_limit: '160%' is more than 100%; write a percentage such as '60%' \
                 (units: %)",
            ),
            (
                "name: a\nmemory: { pool_limit: 0% }\n".to_owned(),
                "gpu.yaml:2: memory.pool_limit: '0%' is zero; write a percentage such as '60%' (units: %)",
            ),
            (
                "name: a\nmemory: { pool_limit: 0 B }\n".to_owned(),
                "gpu.yaml:2: memory.pool_limit: '0 B' is zero; write a number of bytes such as '512 KiB' (units: \
                 B, KB, MB, GB, TB, KiB, MiB, GiB, TiB)",
            ),
            (
                "name: a\nmemory: { host_visible: yes }\n".to_owned(),
                "gpu.yaml:2: memory.host_visible is the text 'yes', expected true or false; write for example \
                 'true'",
            ),
            (
                "name: a\nmemory:\n".to_owned(),
                "gpu.yaml:2: memory is empty, expected a map; write for example '{ pool_limit: 60% }'",
            ),
            (
                "name: a\naccumulate: { f16: f33 }\n".to_owned(),
                "gpu.yaml:2: accumulate.f16 is 'f33'; did you mean 'f32'?",
            ),
            (
                "name: a\nfallback: { unsupported: gpu }\n".to_owned(),
                "gpu.yaml:2: fallback.unsupported is 'gpu'; did you mean 'cpu'?",
            ),
        ] {
            let message = read(&text).map(|_| ()).map_err(|error| error.to_string());
            assert_eq!(message, Err(expected.to_owned()), "{text}");
        }
    }
    #[test]
    fn texts_of_any_length_are_quoted_in_short() {
        let long = "root:x:0:0:".repeat(200);
        for text in [
            long.clone(),
            format!("- {long}\n"),
            format!("name: [{long}]\n"),
            format!("name: a\n{long}: 1\n"),
            format!("name: a\n? {long}\n: 1\n? {long}\n: 2\n"),
            format!("name: a\nmatch: {{ device: '({long}' }}\n"),
            format!("name: a\npeak: {{ f32: '{long}' }}\n"),
            format!("name: a\npeak: {{ f32: '1 {long}' }}\n"),
            format!("name: a\nmemory: {{ pool_limit: '{long}' }}\n"),
            format!("name: a\nmemory: {{ host_visible: '{long}' }}\n"),
            format!("name: a\nfallback: {{ unsupported: '{long}' }}\n"),
            format!("name: a\nkernels: {{ '{long}': 1 }}\n"),
            format!("name: a\nkernels: {{ m: [{{ variant: x, when: '{}' }}] }}\n", "m".repeat(900)),
            format!("name: a\nkernels: {{ m: [{{ variant: x, when: '{}' }}] }}\n", "9".repeat(900)),
            format!("name: a\nkernels: {{ m: [{{ variant: x, when: '1 {}' }}] }}\n", "m".repeat(900)),
            format!("name: a\nkernels: {{ m: [{{ variant: x, when: '1 and {}' }}] }}\n", "m".repeat(900)),
            format!("name: a\nkernels: {{ m: [{{ variant: x, when: '{long}' }}] }}\n"),
            format!("name: *{}\n", "a".repeat(900)),
            format!("%{}\n", "a".repeat(900)),
        ] {
            let shown = &text[..40.min(text.len())];
            let message = match read(&text) {
                Err(error) => error.to_string(),
                Ok(_) => panic!("accepted: {shown}"),
            };
            assert!(message.chars().count() < 400 && !message.contains('\n'), "{shown}: {message}");
        }
    }
}
