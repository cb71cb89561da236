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
            found.scan(folder, is_plugin_name);
            found.scan(&folder.join("deps"), |name| name == emulator_file_name());
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
