//! Where plugins are looked for.

use halite_hal::{Error, Result};
use std::collections::BTreeSet;
use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The environment variable that lists plugin files and folders, separated as in `PATH`.
pub const PATH_VARIABLE: &str = "HALITE_PLUGIN_PATH";

/// What a search goes through, in order.
///
/// 1. An explicit file, if there is one; then nothing else is looked at.
/// 2. The listed files, and every plugin in the listed folders.
/// 3. Every plugin in the executable's folder.
/// 4. The emulator in `deps` below that folder, where Cargo builds it.
///
/// Cargo names the emulator's library plainly for a dependency by path, and `libhalite_npu_emulator-<hash>.so` with 16
/// hexadecimal digits for one from a registry or a repository. In places 3 and 4 both are looked for: the plain name
/// wins, and of several others, which earlier builds left behind, the newest file alone counts.
///
/// In folders, a plugin is a library named `libhalite_npu_*` (`halite_npu_*.dll` on Windows), and a file name that was
/// found once hides later ones.
#[derive(Debug, Clone, Default)]
pub(crate) struct Search {
    pub(crate) explicit: Option<PathBuf>,
    pub(crate) listed: Option<OsString>,
    pub(crate) executable_folder: Option<PathBuf>,
}

/// A file that may be a plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) path: PathBuf,
    /// Whether the user named this very file, so that a failure to load it must not pass in silence.
    pub(crate) named: bool,
}

/// What a search found, and where it looked.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) candidates: Vec<Candidate>,
    looked: Vec<String>,
}

impl Search {
    /// The search that the environment of this process asks for.
    pub(crate) fn from_environment() -> Self {
        let executable = std::env::current_exe().ok();
        Self {
            explicit: None,
            listed: std::env::var_os(PATH_VARIABLE),
            executable_folder: executable.and_then(|file| file.parent().map(Path::to_owned)),
        }
    }

    /// Goes through the places. Loads nothing.
    ///
    /// # Errors
    /// `Unavailable` when a file or folder that the user named is not there.
    pub(crate) fn run(&self) -> Result<Found> {
        let mut found = Found::default();
        if let Some(path) = &self.explicit {
            if !path.is_file() {
                return Err(absent(path, "the plugin file"));
            }
            found.name(path);
            return Ok(found);
        }
        for path in self.listed.iter().flat_map(std::env::split_paths) {
            if path.as_os_str().is_empty() {
                continue;
            }
            if path.is_dir() {
                found.scan(&path, is_plugin_name);
            } else if path.is_file() {
                found.name(&path);
            } else {
                return Err(absent(&path, &format!("the entry of {PATH_VARIABLE}")));
            }
        }
        if let Some(folder) = &self.executable_folder {
            found.scan(folder, |name| is_plugin_name(name) && !is_hashed_emulator(name));
            found.add_newest_emulator(folder);
            let (deps, done) = (folder.join("deps"), found.has_emulator());
            found.scan(&deps, |name| !done && name == emulator_file_name());
            found.add_newest_emulator(&deps);
        }
        Ok(found)
    }
}

impl Found {
    /// The reason for an absence: what was looked for, and where.
    pub(crate) fn nothing(&self) -> Error {
        let looked = if self.looked.is_empty() { "nowhere".into() } else { self.looked.join(", ") };
        Error::unavailable(format!(
            "no plugin file {DLL_PREFIX}halite_npu_*{DLL_SUFFIX} found (looked in {looked}); name one in {PATH_VARIABLE}"
        ))
    }

    fn name(&mut self, path: &Path) {
        self.looked.push(path.display().to_string());
        self.push(Candidate { path: path.to_owned(), named: true });
    }

    fn scan(&mut self, folder: &Path, wanted: impl Fn(&str) -> bool) {
        self.looked.push(folder.display().to_string());
        let Ok(entries) = std::fs::read_dir(folder) else { return };
        let names: BTreeSet<_> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        for name in names.into_iter().filter(|name| wanted(name)) {
            let hidden =
                self.candidates.iter().any(|c| c.path.file_name().is_some_and(|own| own == name.as_str()));
            let path = folder.join(&name);
            if !hidden && path.is_file() {
                self.push(Candidate { path, named: false });
            }
        }
    }

    /// Adds the newest of the hashed emulators in `folder`, unless an emulator was found before.
    fn add_newest_emulator(&mut self, folder: &Path) {
        if self.has_emulator() {
            return;
        }
        let Ok(entries) = std::fs::read_dir(folder) else { return };
        let hashed =
            entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(is_hashed_emulator));
        let dated = hashed.filter_map(|entry| {
            // Follows links, as loading will.
            let metadata = entry.path().metadata().ok().filter(std::fs::Metadata::is_file)?;
            // Where a file system keeps no times, the names decide, so that the choice is always the same.
            Some((metadata.modified().ok(), entry.path()))
        });
        if let Some((_, path)) = dated.max() {
            self.push(Candidate { path, named: false });
        }
    }

    fn has_emulator(&self) -> bool {
        let mut names = self.candidates.iter().filter_map(|candidate| candidate.path.file_name()?.to_str());
        names.any(|name| name == emulator_file_name() || is_hashed_emulator(name))
    }

    fn push(&mut self, candidate: Candidate) {
        if !self.candidates.iter().any(|own| own.path == candidate.path) {
            self.candidates.push(candidate);
        }
    }
}

/// The file name of the emulator's library on this platform.
pub fn emulator_file_name() -> String {
    format!("{DLL_PREFIX}halite_npu_emulator{DLL_SUFFIX}")
}

/// Whether this is the emulator's library with the hash that Cargo appends for packages that are not built by path.
fn is_hashed_emulator(name: &str) -> bool {
    let stem = name.strip_prefix(DLL_PREFIX).and_then(|rest| rest.strip_suffix(DLL_SUFFIX));
    stem.and_then(|stem| stem.strip_prefix("halite_npu_emulator-")).is_some_and(|hash| {
        hash.len() == 16 && hash.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

fn is_plugin_name(name: &str) -> bool {
    name.strip_prefix(DLL_PREFIX).is_some_and(|rest| rest.starts_with("halite_npu_"))
        && name.ends_with(DLL_SUFFIX)
}

fn absent(path: &Path, what: &str) -> Error {
    let problem = if path.is_dir() { "is a folder, and a file is needed" } else { "is not there" };
    Error::unavailable(format!(
        "{what} '{}' {problem}; give the path of a library that exports halite_plugin_entry",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use halite_hal::ErrorKind;

    /// A fresh folder below the build's temporary folder, removed when dropped.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("halite-search-{}-{name}", std::process::id()));
            std::fs::create_dir_all(path.join("deps")).unwrap();
            Self(path)
        }

        fn file(&self, name: &str) -> PathBuf {
            let path = self.0.join(name);
            std::fs::write(&path, b"").unwrap();
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn library(name: &str) -> String {
        format!("{DLL_PREFIX}halite_npu_{name}{DLL_SUFFIX}")
    }

    #[test]
    fn explicit_path_is_the_only_one_and_its_absence_is_named() {
        let folder = Folder::new("explicit");
        folder.file(&library("other"));
        let explicit = folder.file("mine.so");
        let search = Search {
            explicit: Some(explicit.clone()),
            executable_folder: Some(folder.0.clone()),
            ..Search::default()
        };
        assert_eq!(search.run().unwrap().candidates, [Candidate { path: explicit, named: true }]);

        let missing = Search { explicit: Some(folder.0.join("gone.so")), ..Search::default() };
        let error = missing.run().unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Unavailable);
        assert!(error.message().contains("gone.so"), "{error}");
    }

    #[test]
    fn listed_places_come_before_the_executable_and_hide_equal_names() {
        let (listed, executable) = (Folder::new("listed"), Folder::new("executable"));
        let first = listed.file(&library("vendor"));
        executable.file(&library("vendor"));
        let second = executable.file(&library("another"));
        executable.file("libunrelated.so");
        let emulator = executable.file(&format!("deps/{}", emulator_file_name()));
        executable.file(&format!("deps/{}", library("third")));
        let search = Search {
            explicit: None,
            listed: Some(listed.0.clone().into()),
            executable_folder: Some(executable.0.clone()),
        };
        let paths: Vec<_> = search.run().unwrap().candidates.into_iter().map(|c| c.path).collect();
        assert_eq!(paths, [first, second, emulator]);
    }

    #[test]
    fn of_hashed_emulators_the_newest_counts_unless_there_is_a_plain_one() {
        let folder = Folder::new("hashed");
        let hashed = |hash: &str| library(&format!("emulator-{hash}"));
        let search = Search { executable_folder: Some(folder.0.clone()), ..Search::default() };
        let paths = || -> Vec<_> { search.run().unwrap().candidates.into_iter().map(|c| c.path).collect() };
        let dated = |path: &Path, seconds: u64| {
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            std::fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
        };

        for no_hash in ["0123", "0123456789abcdeg", "0123456789ABCDEF", "0123456789abcdef0", ""] {
            folder.file(&format!("deps/{}", hashed(no_hash)));
        }
        folder.file(&format!("deps/{}", library("vendor-0123456789abcdef")));
        assert!(paths().is_empty());

        let (first, second) = (hashed("0123456789abcdef"), hashed("fedcba9876543210"));
        let in_deps = [&first, &second].map(|name| folder.file(&format!("deps/{name}")));
        dated(&in_deps[0], 2_000);
        dated(&in_deps[1], 1_000);
        assert_eq!(paths(), in_deps[..1]);
        dated(&in_deps[1], 3_000);
        assert_eq!(paths(), in_deps[1..]);

        let plain_in_deps = folder.file(&format!("deps/{}", emulator_file_name()));
        dated(&plain_in_deps, 500);
        assert_eq!(paths(), [plain_in_deps]);

        // A test's own executable lies in `deps`, so the same holds beside the executable, which comes first.
        let beside = [&first, &second].map(|name| folder.file(name));
        dated(&beside[0], 2_000);
        dated(&beside[1], 1_000);
        assert_eq!(paths(), beside[..1]);
        let plain = folder.file(&emulator_file_name());
        assert_eq!(paths(), [plain]);
    }

    #[test]
    fn a_listed_entry_that_is_not_there_is_an_error() {
        let search = Search { listed: Some("no/such/plugin.so".into()), ..Search::default() };
        let error = search.run().unwrap_err();
        assert!(error.message().contains(PATH_VARIABLE) && error.message().contains("no/such/plugin.so"));
    }

    #[test]
    fn finding_nothing_says_where_it_looked() {
        let folder = Folder::new("nothing");
        let search = Search { executable_folder: Some(folder.0.clone()), ..Search::default() };
        let found = search.run().unwrap();
        assert!(found.candidates.is_empty());
        let message = found.nothing().to_string();
        assert!(message.contains(&folder.0.display().to_string()) && message.contains("deps"), "{message}");
    }
}
