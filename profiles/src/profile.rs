//! The effective profile of a device: what is left after inheritance.

use halite_hal::{DType, DeviceInfo};

use crate::error::{Error, Result};
use crate::hash::Fnv1a;
use crate::location::Location;
use crate::schema::{Content, Criteria, Fallback, KernelEntry, MemoryPolicy, PROFILE_KEYS, PoolLimit};
use crate::yaml::{self, Node, Value, join};

/// What a device is, as its driver reports it; profiles are matched against it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceFacts {
    /// The backend: `cpu`, `cuda`, `opencl`, `npu`.
    pub backend: String,
    /// The device's name.
    pub device_name: String,
    /// The vendor's name; empty where unknown.
    pub vendor: String,
    /// The driver's or plugin's version; empty where unknown.
    pub driver_version: String,
    /// Cores, multiprocessors or the like; 0 where unknown.
    pub compute_units: u32,
    /// What the device was probed to have: `avx2`, `fp16`, ...
    pub features: Vec<String>,
}

impl From<&DeviceInfo> for DeviceFacts {
    fn from(info: &DeviceInfo) -> Self {
        Self {
            backend: info.id.backend.clone(),
            device_name: info.name.clone(),
            vendor: info.vendor.clone(),
            driver_version: info.driver_version.clone(),
            compute_units: info.compute_units,
            features: info.features.clone(),
        }
    }
}

/// An effective profile: the values of the file and of everything it extends, each with its origin.
#[derive(Debug, Clone)]
pub struct Profile {
    content: Content,
    /// The merged tree, from which provenance is shown.
    pub(crate) node: Node,
    /// Names from the profile itself to its last ancestor.
    lineage: Vec<String>,
    hash: u64,
}

impl Profile {
    /// Reads the merged tree `node`; `lineage` names the profile and its ancestors.
    pub(crate) fn from_merged(mut node: Node, lineage: Vec<String>) -> Result<Self> {
        let content = Content::read(&node)?;
        // Merging appends the child's new sections; a reader expects them where the schema has them.
        if let Value::Map(entries) = &mut node.value {
            entries.sort_by_key(|entry| PROFILE_KEYS.iter().position(|key| *key == entry.key));
        }
        let hash = content_hash(&content);
        Ok(Self { content, node, lineage, hash })
    }

    /// The profile that a file with this text is, if it extends this one: what tuning tries before it writes anything.
    ///
    /// # Errors
    ///
    /// As reading the file would have; [`Error::UnknownParent`] if it extends another profile, or none.
    pub fn extended_by(&self, text: &str, file: &str) -> Result<Self> {
        let node = yaml::parse(text, file)?;
        let own = Content::read(&node)?;
        if own.extends.as_deref() != Some(self.name()) {
            return Err(Error::UnknownParent {
                at: node.child("extends").map_or(&node.at, |node| &node.at).clone(),
                name: own.name,
                parent: own.extends.unwrap_or_default(),
                known: vec![self.name().to_owned()],
            });
        }
        let lineage = [own.name].into_iter().chain(self.lineage.iter().cloned()).collect();
        Self::from_merged(yaml::merge(&self.node, &node), lineage)
    }

    /// `match.priority`: the greater one wins among profiles that match; 0 if not given.
    pub fn priority(&self) -> i64 {
        self.content.criteria.as_ref().map_or(0, |criteria| criteria.priority)
    }

    /// The profile's name.
    pub fn name(&self) -> &str {
        &self.content.name
    }

    /// Where the name stands; a built-in profile's file is `builtin:NAME.yaml`.
    pub fn origin(&self) -> &Location {
        self.node.child("name").map_or(&self.node.at, |node| &node.at)
    }

    /// Whether the profile is compiled into the program (its values may still come from a user's profile
    /// that replaces an ancestor).
    pub fn is_builtin(&self) -> bool {
        self.origin().is_builtin()
    }

    /// The profiles it extends, nearest first.
    pub fn ancestors(&self) -> &[String] {
        self.lineage.get(1..).unwrap_or_default()
    }

    /// Whether `match` accepts the device. A profile without `match` is only ever chosen by name.
    pub fn matches(&self, facts: &DeviceFacts) -> bool {
        self.content.criteria.as_ref().is_some_and(|criteria| criteria.accept(facts))
    }

    /// The device's peak in operations per second of this type, where the profile gives it: the fastest unit that
    /// computes the type as it is, so tensor cores for f16 and bf16 and not for f32.
    pub fn peak_rate(&self, dtype: DType) -> Option<f64> {
        self.content.peak.rates.get(&dtype).copied()
    }

    /// The device's peak in operations per second on f32 elements whose products may be rounded to TF32, where the
    /// profile gives it.
    pub fn peak_tf32_rate(&self) -> Option<f64> {
        self.content.peak.tf32
    }

    /// The peak bandwidth of the device's memory in bytes per second, where the profile gives it.
    pub fn peak_bandwidth(&self) -> Option<f64> {
        self.content.peak.bandwidth
    }

    /// Where the peak rates come from.
    pub fn source(&self) -> Option<&str> {
        self.content.source.as_deref()
    }

    /// How memory is used.
    pub fn memory(&self) -> MemoryPolicy {
        self.content.memory
    }

    /// The type to accumulate in for elements of `dtype`, where the profile wishes one. It counts only among
    /// what the op allows; [`check_accumulate`](Self::check_accumulate) refuses others.
    pub fn accumulate(&self, dtype: DType) -> Option<DType> {
        self.content.accumulate.get(&dtype).copied()
    }

    /// What happens with an op that the device has no kernel for.
    pub fn fallback(&self) -> Fallback {
        self.content.fallback
    }

    /// The ops under `kernels` with their entries, sorted by name.
    pub fn kernels(&self) -> impl Iterator<Item = (&str, &[KernelEntry])> {
        self.content.kernels.iter().map(|(op, entries)| (op.as_str(), entries.as_slice()))
    }

    /// The entries of one op, best first; empty if the profile says nothing about it.
    pub fn kernel_entries(&self, op: &str) -> &[KernelEntry] {
        self.content.kernels.get(op).map(Vec::as_slice).unwrap_or_default()
    }

    /// Checks that every op which a user's file names under `kernels` exists, so that a typing error is not
    /// silently without effect. Built-in files may name ops that a program has left out.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownOp`] with file and line.
    pub fn check_ops(&self, known: &[&str]) -> Result<()> {
        for (op, entries) in self.kernels() {
            let at = entries.first().map_or(self.origin(), KernelEntry::origin);
            if !at.is_builtin() && !known.contains(&op) {
                let known = known.iter().map(|name| (*name).to_owned()).collect();
                return Err(Error::UnknownOp { at: at.clone(), op: op.to_owned(), known });
            }
        }
        Ok(())
    }

    /// Checks every wish under `accumulate` against the types that sums over elements of a dtype may have.
    ///
    /// # Errors
    ///
    /// [`Error::Accumulate`] with file and line.
    pub fn check_accumulate(&self, allowed: impl Fn(DType) -> Vec<DType>) -> Result<()> {
        for (&dtype, &wish) in &self.content.accumulate {
            let allowed = allowed(dtype);
            if !allowed.contains(&wish) {
                let node = self.node.child("accumulate").and_then(|section| section.child(dtype.name()));
                return Err(Error::Accumulate {
                    at: node.map_or_else(|| self.origin().clone(), |node| node.at.clone()),
                    dtype,
                    wish,
                    allowed,
                });
            }
        }
        Ok(())
    }

    /// A hash of everything that can change what is launched: peak rates, kernels, memory, accumulation and
    /// fallback. Names, `match`, sources, provenance, comments and the order of keys do not count. It is the
    /// same on every machine and in every run.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// How specific the profile is among those of the same origin; the greatest wins.
    pub(crate) fn specificity(&self) -> (i64, usize, usize) {
        let criteria = self.content.criteria.as_ref();
        let priority = criteria.map_or(0, |criteria| criteria.priority);
        let count = criteria.map_or(0, Criteria::count);
        (priority, count, self.lineage.len())
    }

    /// Where a key of the op's entry `index` stands.
    pub(crate) fn entry_location(&self, op: &str, index: usize, key: &str) -> Location {
        let list = self.node.child("kernels").and_then(|kernels| kernels.child(op));
        let entry = match list.map(|list| &list.value) {
            Some(Value::List(entries)) => entries.get(index),
            _ => None,
        };
        let node = entry.and_then(|entry| entry.child(key)).or(entry).unwrap_or(&self.node);
        node.at.clone()
    }

    /// The path of a key of the op's entry `index`, as messages show it.
    pub(crate) fn entry_path(op: &str, index: usize, key: &str) -> String {
        join(&format!("kernels.{op}[{index}]"), key)
    }
}

impl Criteria {
    fn accept(&self, facts: &DeviceFacts) -> bool {
        self.backend.as_ref().is_none_or(|backend| *backend == facts.backend)
            && self.device.as_ref().is_none_or(|device| device.is_match(&facts.device_name))
            && self.vendor.as_ref().is_none_or(|vendor| vendor.is_match(&facts.vendor))
            && self.driver.as_ref().is_none_or(|driver| *driver == facts.driver_version)
            && self.compute_units.is_none_or(|units| units == facts.compute_units)
            && self.features.iter().all(|feature| facts.features.contains(feature))
    }
}

fn content_hash(content: &Content) -> u64 {
    let mut hash = Fnv1a::new();
    // The first text versions the encoding below.
    hash.text("halite-profile-1");
    hash.number(content.peak.rates.len() as u64);
    for (dtype, rate) in &content.peak.rates {
        hash.text(dtype.name());
        hash.number(rate.to_bits());
    }
    hash.text("bandwidth");
    hash.number(content.peak.bandwidth.map_or(u64::MAX, f64::to_bits));
    if let Some(rate) = content.peak.tf32 {
        hash.text("tf32");
        hash.number(rate.to_bits());
    }
    hash.text("memory");
    for flag in [content.memory.local_staging, content.memory.host_visible] {
        hash.number(flag.map_or(2, u64::from));
    }
    match content.memory.pool_limit {
        None => hash.number(0),
        Some(PoolLimit::Share(share)) => {
            hash.number(1);
            hash.number(share.to_bits());
        }
        Some(PoolLimit::Bytes(bytes)) => {
            hash.number(2);
            hash.number(bytes);
        }
    }
    hash.text("accumulate");
    hash.number(content.accumulate.len() as u64);
    for (dtype, wide) in &content.accumulate {
        hash.text(dtype.name());
        hash.text(wide.name());
    }
    hash.text(content.fallback.name());
    hash.number(content.kernels.len() as u64);
    for (op, entries) in &content.kernels {
        hash.text(op);
        hash.number(entries.len() as u64);
        for entry in entries {
            hash.text(&entry.variant);
            hash.text(&entry.when().map(ToString::to_string).unwrap_or_default());
            let parameters = entry.parameters();
            for extents in [parameters.tile(), parameters.threads()] {
                let extents = extents.unwrap_or_default();
                hash.number(extents.len() as u64);
                for extent in extents {
                    hash.number(u64::from(*extent));
                }
            }
            hash.number(parameters.ints().count() as u64);
            for (name, value) in parameters.ints() {
                hash.text(name);
                hash.number(u64::from(value));
            }
        }
    }
    hash.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ProfileSet;

    fn profile(text: &str) -> Profile {
        let set = ProfileSet::from_texts([("p.yaml", text)]).unwrap_or_else(|error| panic!("{error}"));
        let profile = set.by_name("p").unwrap_or_else(|error| panic!("{error}"));
        Profile::clone(&profile)
    }

    #[test]
    fn the_hash_counts_what_changes_a_launch_and_nothing_else() {
        const BASE: &str = "name: p\nkernels:\n  a: [{ variant: x, when: m > 1, tile: [8, 8] }]\n  \
                            b: [{ variant: y }]\nmemory: { pool_limit: 1 KiB }\n";
        let base = profile(BASE).hash();
        // Pinned, since plan caches may outlive a build.
        assert_eq!(base, 0x0275_3526_e010_95ed);
        for same in [
            "# note\n\nname: p\nmemory: { pool_limit: 1024 B }\nkernels:\n  b:\n  - variant: y\n  a:\n  \
             - { when: '(m)>1', tile: [8, 8], variant: x }\n",
            &format!("{BASE}source: data sheet\nmatch: {{ backend: gpu }}\n"),
            &BASE.replace("name: p", "extends: q\nname: p").replace("extends: q\n", ""),
        ] {
            assert_eq!(profile(same).hash(), base, "{same}");
        }
        for (from, to) in [
            ("variant: x", "variant: z"),
            ("m > 1", "m > 2"),
            ("[8, 8]", "[8, 9]"),
            ("[8, 8]", "[8, 8, 1]"),
            ("tile: [8, 8]", "threads: [8, 8]"),
            ("tile: [8, 8]", "tile: [8, 8], chunk: 1"),
            ("tile: [8, 8]", "tile: [8, 8], unroll: 1"),
            ("  b: [{ variant: y }]\n", ""),
            ("1 KiB", "1 KB"),
            ("1 KiB", "50%"),
            ("pool_limit: 1 KiB", "host_visible: true, pool_limit: 1 KiB"),
            ("pool_limit: 1 KiB", "local_staging: true, pool_limit: 1 KiB"),
            ("name: p", "name: p\naccumulate: { f16: f32 }"),
            ("name: p", "name: p\nfallback: { unsupported: error }"),
            ("name: p", "name: p\npeak: { f32: 1 TFLOP/s }"),
            ("name: p", "name: p\npeak: { memory: 1 GB/s }"),
            ("name: p", "name: p\npeak: { tf32: 1 TFLOP/s }"),
        ] {
            let changed = BASE.replace(from, to);
            assert_ne!(changed, BASE);
            assert_ne!(profile(&changed).hash(), base, "{to}");
        }
    }

    #[test]
    fn a_text_that_extends_a_profile_is_read_as_its_file_would_be() {
        let base = profile(
            "name: p\nmatch: { backend: gpu }\nkernels:\n  a: [{ variant: x }]\n  b: [{ variant: y }]\n",
        );
        let entry = KernelEntry::clone(
            &profile("name: p\nkernels:\n  a: [{ when: 'm > 1 and n % 4 == 0', variant: z, tile: [8, 4], chunk: 2 }]\n")
                .kernel_entries("a")[0],
        );
        assert_eq!(
            entry.to_string(),
            "{ variant: z, when: \"m > 1 and n % 4 == 0\", tile: [8, 4], chunk: 2 }"
        );
        let text =
            format!("name: q\nextends: p\nmatch: {{ driver: '535.104' }}\nkernels:\n  a:\n  - {entry}\n");
        let tuned = base.extended_by(&text, "q.yaml").unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((tuned.name(), tuned.ancestors()), ("q", ["p".to_owned()].as_slice()));
        assert_eq!(tuned.kernel_entries("a")[0].parameters(), entry.parameters());
        assert_eq!(tuned.kernel_entries("a")[0].origin().to_string(), "q.yaml:6");
        assert_eq!(tuned.kernel_entries("b")[0].variant(), "y");
        let facts = |driver: &str| DeviceFacts {
            backend: "gpu".into(),
            driver_version: driver.into(),
            ..DeviceFacts::default()
        };
        assert!(tuned.matches(&facts("535.104")) && base.matches(&facts("535")));
        assert!(!tuned.matches(&facts("535.105")));
        for (text, problem) in
            [("name: q\n", "q.yaml:1: profile 'q' extends ''"), ("name: q\nextends: r\n", "'r'")]
        {
            let error = base.extended_by(text, "q.yaml").map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
        }
    }

    #[test]
    fn accumulation_in_a_type_that_the_ops_do_not_allow_is_refused_with_its_line() {
        let allowed = |_| vec![DType::F32, DType::F64];
        let fits = profile("name: p\naccumulate: { f16: f32, bf16: f64 }\n");
        assert_eq!(fits.check_accumulate(allowed), Ok(()));
        let error = profile("name: p\naccumulate:\n  f16: f32\n  bf16: f16\n").check_accumulate(allowed);
        assert_eq!(
            error.map_err(|error| error.to_string()),
            Err("p.yaml:4: accumulate.bf16 is f16, but sums of bf16 are kept in f32 or f64; write one of these or leave \
                 the key out"
                .to_owned())
        );
    }

    #[test]
    fn ops_that_do_not_exist_are_reported_in_users_files_only() {
        let known = ["dot_general", "reduce"];
        let profile = profile("name: p\nextends: cpu\nkernels:\n  dot_genral: [{ variant: x }]\n");
        assert_eq!(
            profile.check_ops(&known).map_err(|error| error.to_string()),
            Err("p.yaml:4: kernels.dot_genral is not an op of this program; did you mean 'dot_general'?"
                .to_owned())
        );
        let builtin = ProfileSet::builtin().by_name("cpu").expect("built in");
        assert_eq!(builtin.check_ops(&known), Ok(()));
    }
}
