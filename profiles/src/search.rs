//! Finding profiles: built-in ones, the user's configuration folder, `HALITE_PROFILE_PATH`.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::location::{BUILTIN_PREFIX, Location};
use crate::profile::{DeviceFacts, Profile};
use crate::schema::Content;
use crate::yaml::{self, Node};

/// The environment variable that names further folders and files.
pub const PROFILE_PATH_VARIABLE: &str = "HALITE_PROFILE_PATH";

/// Far above any profile that a person or a tuner writes; it bounds what a wrong path can cost.
const MAX_FILE_BYTES: u64 = 1 << 20;

const BUILTIN: [(&str, &str); 5] = [
    ("cpu.yaml", include_str!("../builtin/cpu.yaml")),
    ("cpu-avx2.yaml", include_str!("../builtin/cpu-avx2.yaml")),
    ("cpu-avx512.yaml", include_str!("../builtin/cpu-avx512.yaml")),
    ("npu.yaml", include_str!("../builtin/npu.yaml")),
    ("npu-halite-emulator.yaml", include_str!("../builtin/npu-halite-emulator.yaml")),
];

/// Where to look for a user's profiles, beside the built-in ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SearchPath {
    user_folder: Option<PathBuf>,
    paths: Vec<PathBuf>,
}

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

impl SearchPath {
    /// Built-in profiles only; nothing is read from disk.
    pub fn builtin_only() -> Self {
        Self::default()
    }

    /// An optional folder (skipped if it does not exist) and paths that must exist; a path is a folder, of
    /// which every `.yaml` and `.yml` file is read, or a file.
    pub fn new(user_folder: Option<PathBuf>, paths: impl IntoIterator<Item = PathBuf>) -> Self {
        Self { user_folder, paths: paths.into_iter().collect() }
    }

    /// The platform's configuration folder (`halite/profiles` in it) and `HALITE_PROFILE_PATH`, whose parts
    /// are separated like those of `PATH`.
    pub fn from_env() -> Self {
        let listed = env::var_os(PROFILE_PATH_VARIABLE).unwrap_or_default();
        let paths = env::split_paths(&listed).filter(|path| !path.as_os_str().is_empty());
        Self::new(config_folder().map(|folder| folder.join("halite").join("profiles")), paths)
    }

    /// The folder in which a user keeps profiles, whether it exists or not; `None` where the platform names
    /// no configuration folder.
    pub fn user_folder(&self) -> Option<&Path> {
        self.user_folder.as_deref()
    }
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
        let mut definitions = Vec::new();
        for (name, text) in BUILTIN {
            definitions.push(define(text, &format!("{BUILTIN_PREFIX}{name}"))?);
        }
        if let Some(folder) = path.user_folder.as_ref().filter(|folder| folder.is_dir()) {
            load_folder(folder, &mut definitions)?;
        }
        for path in &path.paths {
            if path.is_dir() {
                load_folder(path, &mut definitions)?;
            } else {
                definitions.push(load_file(path)?);
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
    /// [`Error::NoMatch`]; it cannot happen for the backends `cpu` and `npu`.
    pub fn select(&self, facts: &DeviceFacts) -> Result<Arc<Profile>> {
        // `max_by_key` keeps the last of equals, which is the later definition.
        let best = self
            .profiles
            .iter()
            .filter(|profile| profile.matches(facts))
            .max_by_key(|profile| (!profile.is_builtin(), profile.specificity()));
        best.cloned().ok_or_else(|| Error::NoMatch {
            backend: facts.backend.clone(),
            device: yaml::one_line(&facts.device_name),
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
            name: yaml::one_line(&name),
            known: self.profiles.iter().map(|profile| profile.name().to_owned()).collect(),
        })
    }

    /// Every profile, built-in ones first, in order of definition.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Profile>> {
        self.profiles.iter()
    }
}

/// XDG base directory on Unix, `Application Support` on macOS, `APPDATA` on Windows.
fn config_folder() -> Option<PathBuf> {
    let absolute = |path: PathBuf| Some(path).filter(|path| path.is_absolute());
    if cfg!(windows) {
        env::var_os("APPDATA").map(PathBuf::from).and_then(absolute)
    } else if cfg!(target_os = "macos") {
        env::home_dir().and_then(absolute).map(|home| home.join("Library").join("Application Support"))
    } else {
        // The XDG specification says that a relative path is to be ignored.
        let xdg = env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).and_then(absolute);
        xdg.or_else(|| env::home_dir().and_then(absolute).map(|home| home.join(".config")))
    }
}

fn read_error(path: &Path, error: &io::Error, hint: &'static str) -> Error {
    Error::Read { path: path.to_owned(), reason: error.to_string(), hint }
}

/// Reads the `.yaml` and `.yml` files of a folder in order of name.
fn load_folder(folder: &Path, definitions: &mut Vec<Definition>) -> Result<()> {
    let wrap = |error: io::Error| read_error(folder, &error, "correct the folder's permissions");
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(wrap)? {
        let path = entry.map_err(wrap)?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("yaml" | "yml")) {
            files.push(path);
        }
    }
    files.sort();
    let first_of_folder = definitions.len();
    for file in files {
        let definition = load_file(&file)?;
        let twin = definitions.iter().skip(first_of_folder).find(|known| known.name == definition.name);
        if let Some(twin) = twin {
            return Err(Error::DuplicateName {
                at: definition.name_location().clone(),
                first: twin.name_location().clone(),
                name: definition.name,
            });
        }
        definitions.push(definition);
    }
    Ok(())
}

fn load_file(path: &Path) -> Result<Definition> {
    let text = read_text(path, "correct HALITE_PROFILE_PATH or the file's permissions")?;
    define(&text, &path.display().to_string())
}

/// Reads a file of UTF-8 text of at most [`MAX_FILE_BYTES`].
pub(crate) fn read_text(path: &Path, hint: &'static str) -> Result<String> {
    let mut bytes = Vec::new();
    let opened = File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes));
    opened.map_err(|error| read_error(path, &error, hint))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(Error::Read {
            path: path.to_owned(),
            reason: "it is larger than 1 MiB".to_owned(),
            hint: "name a YAML file",
        });
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let newlines = error.as_bytes()[..valid].iter().filter(|byte| **byte == b'\n').count();
        Error::Syntax {
            at: Location::new(path.display().to_string(), u32::try_from(newlines + 1).unwrap_or(u32::MAX)),
            reason: "the text is not UTF-8".to_owned(),
        }
    })
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
