//! All profiles together: inheritance, and the choice of one for a device.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::builtin::BUILTIN;
use crate::error::{Error, Result};
use crate::location::{BUILTIN_PREFIX, Location};
use crate::profile::{DeviceFacts, Profile};
use crate::schema::Content;
use crate::search::{SearchPath, SourceFile};
use crate::yaml::{self, Node};

/// All profiles that were found, with inheritance resolved.
#[derive(Debug, Clone)]
pub struct ProfileSet {
    /// In order of definition: built-in ones first.
    profiles: Vec<Arc<Profile>>,
}

/// A profile as its file says it, before inheritance.
struct Definition {
    name: String,
    /// The name that it extends and where it says so.
    parent: Option<(String, Location)>,
    node: Node,
}

impl ProfileSet {
    /// The profiles that are compiled into the program.
    pub fn builtin() -> Self {
        Self::load(&SearchPath::builtin_only()).expect("the built-in profiles are tested to load")
    }

    /// Reads every profile of the search path and resolves inheritance. A later profile replaces an earlier
    /// one of the same name; if it also extends that name, it builds on the one that it replaces.
    ///
    /// # Errors
    ///
    /// The first file that cannot be read or is wrong, with file and line; every file counts, also one that
    /// no device would choose.
    pub fn load(path: &SearchPath) -> Result<Self> {
        Self::from_folders(&path.read()?)
    }

    /// The built-in profiles and these files, each a name for errors and its text, as if they lay in one
    /// folder.
    ///
    /// # Errors
    ///
    /// Like [`ProfileSet::load`].
    pub fn from_texts<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self> {
        let file = |(name, text): (&str, &str)| SourceFile { name: name.to_owned(), text: text.to_owned() };
        Self::from_folders(&[files.into_iter().map(file).collect()])
    }

    fn from_folders(folders: &[Vec<SourceFile>]) -> Result<Self> {
        let mut definitions: Vec<Definition> = Vec::new();
        for (file, text) in BUILTIN {
            definitions.push(define(text, &format!("{BUILTIN_PREFIX}{file}"))?);
        }
        for folder in folders {
            let begin = definitions.len();
            for file in folder {
                let definition = define(&file.text, &file.name)?;
                let twin = definitions.iter().skip(begin).find(|known| known.name == definition.name);
                if let Some(twin) = twin {
                    return Err(Error::DuplicateName {
                        at: definition.name_location().clone(),
                        first: twin.name_location().clone(),
                        name: definition.name,
                    });
                }
                definitions.push(definition);
            }
        }
        resolve(&definitions)
    }

    /// The most specific profile that matches the device. A user's profile comes before a built-in one; then
    /// the higher `match.priority`, the greater number of criteria (each feature counts), the longer chain
    /// of `extends` and the later definition win.
    ///
    /// # Errors
    ///
    /// [`Error::NoMatch`]; the built-in profiles `cpu` and `npu` match every device of their backends, unless
    /// a user's profile replaces them.
    pub fn select(&self, facts: &DeviceFacts) -> Result<Arc<Profile>> {
        // `max_by_key` keeps the last of equals, which is the later definition.
        let best = self
            .profiles
            .iter()
            .filter(|profile| profile.matches(facts))
            .max_by_key(|profile| (!profile.is_builtin(), profile.specificity()));
        best.cloned().ok_or_else(|| Error::NoMatch {
            backend: facts.backend.clone(),
            device: yaml::quote(&facts.device_name),
        })
    }

    /// The profile with this name.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownProfile`] lists the names or suggests one.
    pub fn by_name(&self, name: &str) -> Result<Arc<Profile>> {
        let found = self.profiles.iter().find(|profile| profile.name() == name);
        found.cloned().ok_or_else(|| Error::UnknownProfile {
            name: yaml::quote(&name),
            known: self.profiles.iter().map(|profile| profile.name().to_owned()).collect(),
        })
    }

    /// Every profile in order of definition, built-in ones first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Profile>> {
        self.profiles.iter()
    }
}

/// Parses and checks one file, so that its errors show even if another profile replaces it.
fn define(text: &str, file: &str) -> Result<Definition> {
    let node = yaml::parse(text, file)?;
    let content = Content::read(&node)?;
    let at = node.child("extends").map_or(&node.at, |node| &node.at).clone();
    Ok(Definition { name: content.name, parent: content.extends.map(|parent| (parent, at)), node })
}

impl Definition {
    fn name_location(&self) -> &Location {
        self.node.child("name").map_or(&self.node.at, |node| &node.at)
    }
}

/// Merges every profile with its ancestors; only the last definition of a name remains.
fn resolve(definitions: &[Definition]) -> Result<ProfileSet> {
    let last: BTreeMap<&str, usize> =
        definitions.iter().enumerate().map(|(index, definition)| (definition.name.as_str(), index)).collect();
    let mut profiles = Vec::new();
    for (index, definition) in definitions.iter().enumerate() {
        let chain = chain(index, definitions, &last)?;
        if last.get(definition.name.as_str()) != Some(&index) {
            continue;
        }
        let ancestor_first = chain.iter().rev().map(|index| &definitions[*index].node);
        let merged = ancestor_first.cloned().reduce(|parent, child| yaml::merge(&parent, &child));
        let merged = merged.expect("a chain begins with the profile itself");
        let lineage = chain.iter().map(|index| definitions[*index].name.clone()).collect();
        profiles.push(Arc::new(Profile::from_merged(merged, lineage)?));
    }
    Ok(ProfileSet { profiles })
}

/// The definitions from `start` to its last ancestor.
fn chain(start: usize, definitions: &[Definition], last: &BTreeMap<&str, usize>) -> Result<Vec<usize>> {
    let mut chain = vec![start];
    let mut current = start;
    while let Some((parent, at)) = &definitions[current].parent {
        let name = &definitions[current].name;
        let replaced = definitions[..current].iter().rposition(|earlier| earlier.name == *name);
        let next = match last.get(parent.as_str()) {
            // A profile that extends its own name builds on the definition that it replaces.
            Some(_) if parent == name && replaced.is_some() => replaced,
            found => found.copied(),
        };
        let next = next.ok_or_else(|| Error::UnknownParent {
            at: at.clone(),
            name: name.clone(),
            parent: parent.clone(),
            known: last.keys().map(|name| (*name).to_owned()).collect(),
        })?;
        if let Some(begin) = chain.iter().position(|index| *index == next) {
            let link = |index: &usize| {
                let definition = &definitions[*index];
                let at = definition.parent.as_ref().map_or(&definition.node.at, |(_, at)| at);
                (definition.name.clone(), at.clone())
            };
            return Err(Error::Cycle { at: at.clone(), chain: chain[begin..].iter().map(link).collect() });
        }
        chain.push(next);
        current = next;
    }
    Ok(chain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(backend: &str, device_name: &str, features: &[&str]) -> DeviceFacts {
        DeviceFacts {
            driver_version: "1.2".to_owned(),
            compute_units: 8,
            backend: backend.to_owned(),
            device_name: device_name.to_owned(),
            vendor: "ACME Corporation".to_owned(),
            features: features.iter().map(|feature| (*feature).to_owned()).collect(),
        }
    }

    fn selected(set: &ProfileSet, facts: &DeviceFacts) -> String {
        set.select(facts).map_or_else(|error| error.to_string(), |profile| profile.name().to_owned())
    }

    fn failure(files: &[(&str, &str)]) -> String {
        ProfileSet::from_texts(files.iter().copied()).expect_err("the files are wrong").to_string()
    }

    #[test]
    fn children_override_key_by_key_and_inherit_the_rest() {
        let set = ProfileSet::from_texts([
            (
                "base.yaml",
                "name: base\nmatch: { backend: gpu }\npeak: { f32: 1 TFLOP/s, memory: 50 GB/s }\n\
                 kernels:\n  a: [{ variant: x, chunk: 1 }, { variant: y }]\n  b: [{ variant: z }]\n",
            ),
            (
                "child.yaml",
                "name: child\nextends: base\nmatch: { device: Fast }\npeak: { f32: 2 TFLOP/s }\n\
                 kernels:\n  a: [{ variant: w }]\n",
            ),
        ]);
        let set = set.unwrap_or_else(|error| panic!("{error}"));
        let child = set.by_name("child").unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(child.ancestors(), ["base"]);
        assert_eq!(child.peak_rate(halite_hal::DType::F32), Some(2e12));
        assert_eq!(child.peak_bandwidth(), Some(50e9));
        let variants = |op| child.kernel_entries(op).iter().map(|entry| entry.variant().to_owned());
        assert_eq!(variants("a").collect::<Vec<_>>(), ["w"]);
        assert_eq!(variants("b").collect::<Vec<_>>(), ["z"]);
        assert!(child.matches(&facts("gpu", "Fast 1", &[])));
        assert!(!child.matches(&facts("gpu", "Slow 1", &[])));
        assert!(!child.matches(&facts("cpu", "Fast 1", &[])));
        let origins: Vec<String> =
            child.values().iter().map(|value| format!("{} {}", value.path, value.origin)).collect();
        assert_eq!(
            origins,
            [
                "name child.yaml:1",
                "extends child.yaml:2",
                "match.backend base.yaml:2",
                "match.device child.yaml:3",
                "peak.f32 child.yaml:4",
                "peak.memory base.yaml:3",
                "kernels.a[0].variant child.yaml:6",
                "kernels.b[0].variant base.yaml:6",
            ]
        );
    }

    #[test]
    fn selection_prefers_users_then_priority_then_criteria_then_depth_then_order() {
        let avx512 = facts("cpu", "Big CPU", &["avx2", "fma", "avx512f"]);
        for (files, expected) in [
            (vec!["name: u\nmatch: { backend: cpu }\n"], "u"),
            (vec!["name: u\nmatch: { backend: cpu, priority: -5 }\n"], "u"),
            (vec!["name: u\nmatch: { backend: npu }\n"], "cpu-avx512"),
            (vec!["name: u\n"], "cpu-avx512"),
            (vec!["name: u\nmatch: { vendor: ACME }\n"], "u"),
            (vec!["name: u\nmatch: { vendor: Other }\n"], "cpu-avx512"),
            (vec!["name: u\nmatch: { compute_units: 8 }\n"], "u"),
            (vec!["name: u\nmatch: { compute_units: 4 }\n"], "cpu-avx512"),
            (vec!["name: u\nextends: cpu-avx2\n"], "u"),
            (
                vec!["name: u\nmatch: { backend: cpu, device: Big }\n", "name: v\nmatch: { backend: cpu }\n"],
                "u",
            ),
            (
                vec![
                    "name: u\nmatch: { backend: cpu, device: Big }\n",
                    "name: v\nmatch: { backend: cpu, priority: 1 }\n",
                ],
                "v",
            ),
            (vec!["name: u\nextends: v\n", "name: v\nmatch: { backend: cpu }\n"], "u"),
            (vec!["name: v\nmatch: { backend: cpu }\n", "name: u\nmatch: { backend: cpu }\n"], "u"),
        ] {
            let names = ["0.yaml", "1.yaml"];
            let set = ProfileSet::from_texts(names.into_iter().zip(files.iter().copied()));
            let set = set.unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(selected(&set, &avx512), expected, "{files:?}");
        }
    }

    #[test]
    fn a_profile_that_extends_its_own_name_builds_on_the_one_it_replaces() {
        let text = "name: cpu\nextends: cpu\nkernels:\n  reduce: [{ variant: portable, chunk: 7 }]\n";
        let set = ProfileSet::from_texts([("mine.yaml", text)]).unwrap_or_else(|error| panic!("{error}"));
        let mine = set.by_name("cpu").unwrap_or_else(|error| panic!("{error}"));
        assert!(!mine.is_builtin());
        assert_eq!(mine.kernel_entries("reduce")[0].parameters().int("chunk"), Some(7));
        assert_eq!(mine.kernel_entries("elementwise")[0].origin().to_string(), "builtin:cpu.yaml:17");
        // What extends the name inherits from the profile that replaced it.
        let avx2 = set.by_name("cpu-avx2").unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(avx2.ancestors(), ["cpu", "cpu"]);
        assert_eq!(set.iter().filter(|profile| profile.name() == "cpu").count(), 1);
    }

    #[test]
    fn wrong_sets_name_file_and_line() {
        for (files, expected) in [
            (
                vec![("a.yaml", "name: a\nextends: a\n")],
                "a.yaml:2: 'extends' goes in a circle: a (a.yaml:2) -> a; remove one of these 'extends'",
            ),
            (
                vec![
                    ("a.yaml", "name: a\nextends: b\n"),
                    ("b.yaml", "name: b\n\nextends: c\n"),
                    ("c.yaml", "extends: a\nname: c\n"),
                ],
                "c.yaml:1: 'extends' goes in a circle: a (a.yaml:2) -> b (b.yaml:3) -> c (c.yaml:1) -> a; remove \
                 one of these 'extends'",
            ),
            (
                vec![("a.yaml", "name: a\nextends: b\n"), ("b.yaml", "name: b\nextends: b\n")],
                "b.yaml:2: 'extends' goes in a circle: b (b.yaml:2) -> b; remove one of these 'extends'",
            ),
            (
                // The built-in child now inherits from the user's profile.
                vec![("a.yaml", "name: cpu\nextends: cpu-avx2\n")],
                "a.yaml:2: 'extends' goes in a circle: cpu-avx2 (builtin:cpu-avx2.yaml:3) -> cpu (a.yaml:2) -> \
                 cpu-avx2; remove one of these 'extends'",
            ),
            (
                vec![("a.yaml", "name: a\nextends: cpu-avx\n")],
                "a.yaml:2: profile 'a' extends 'cpu-avx', which is unknown; did you mean 'cpu-avx2'?",
            ),
            (
                vec![("a.yaml", "name: a\n"), ("b.yaml", "# again\nname: a\n")],
                "b.yaml:2: profile 'a' is already defined at a.yaml:1; rename or remove one of the two",
            ),
            (vec![("a.yaml", "")], "a.yaml:1: the file is empty; write at least 'name: NAME'"),
        ] {
            assert_eq!(failure(&files), expected, "{files:?}");
        }
        let builtin = ProfileSet::builtin();
        let mut known: Vec<&str> = builtin.iter().map(|profile| profile.name()).chain(["a"]).collect();
        known.sort_unstable();
        assert_eq!(
            failure(&[("a.yaml", "name: a\nextends: something\n")]),
            format!(
                "a.yaml:2: profile 'a' extends 'something', which is unknown; use one of {} or of {} others",
                known[..16].join(", "),
                known.len() - 16
            )
        );
        assert_eq!(
            builtin.by_name("cpu-avx3").map(|_| ()).map_err(|error| error.to_string()),
            Err("unknown profile 'cpu-avx3'; did you mean 'cpu-avx2'?".to_owned())
        );
    }
    #[test]
    fn names_of_any_length_are_quoted_in_short_and_on_one_line() {
        let long = "a\\nb".repeat(300);
        for files in [
            vec![("a.yaml", format!("name: \"{long}\"\nextends: nobody\n"))],
            vec![("a.yaml", format!("name: c\nextends: \"{long}\"\n"))],
            vec![("a.yaml", format!("name: \"{long}\"\nextends: \"{long}\"\n"))],
            vec![("a.yaml", format!("name: \"{long}\"\n")), ("b.yaml", format!("name: \"{long}\"\n"))],
        ] {
            let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
            let message = failure(&files);
            assert!(message.chars().count() < 400 && !message.contains('\n'), "{message}");
        }
        let set = ProfileSet::from_texts([("a.yaml", format!("name: \"{long}\"\n").as_str())]);
        let set = set.unwrap_or_else(|error| panic!("{error}"));
        let message = set.by_name("zzzzzz").map(|_| ()).unwrap_err().to_string();
        assert!(message.chars().count() < 400 && !message.contains('\n'), "{message}");
    }
}
