//! Where profiles lie: the user's configuration folder and `HALITE_PROFILE_PATH`.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::location::Location;
use crate::yaml::one_line;

/// The environment variable that names further folders and files.
pub const PROFILE_PATH_VARIABLE: &str = "HALITE_PROFILE_PATH";

/// Far above any profile that a person or a tuner writes; it bounds what a wrong path can cost.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Where to look for a user's profiles, beside the built-in ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SearchPath {
    user_folder: Option<PathBuf>,
    paths: Vec<PathBuf>,
}

/// A file's name, as errors show it, and its text.
pub(crate) struct SourceFile {
    pub(crate) name: String,
    pub(crate) text: String,
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
        Self::from_variables(|name| env::var_os(name), env::home_dir())
    }

    fn from_variables(variable: impl Fn(&str) -> Option<OsString>, home: Option<PathBuf>) -> Self {
        let listed = variable(PROFILE_PATH_VARIABLE).unwrap_or_default();
        let paths = env::split_paths(&listed).filter(|path| !path.as_os_str().is_empty());
        let folder = config_folder(&variable, home);
        Self::new(folder.map(|folder| folder.join("halite").join("profiles")), paths)
    }

    /// The folder in which a user keeps profiles, whether it exists or not; `None` where the platform names
    /// no configuration folder.
    pub fn user_folder(&self) -> Option<&Path> {
        self.user_folder.as_deref()
    }

    /// The files of each folder or path, in order; those of one folder are sorted by name.
    pub(crate) fn read(&self) -> Result<Vec<Vec<SourceFile>>> {
        let user_folder = self.user_folder.iter().filter(|folder| folder.is_dir());
        user_folder
            .chain(&self.paths)
            .map(|path| if path.is_dir() { read_folder(path) } else { Ok(vec![read_file(path)?]) })
            .collect()
    }
}

/// Reads a file of UTF-8 text of at most [`MAX_FILE_BYTES`].
pub(crate) fn read_text(path: &Path, hint: &'static str) -> Result<String> {
    let mut bytes = Vec::new();
    let opened = File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes));
    opened.map_err(|error| read_error(path, error, hint))?;
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
            at: Location::new(one_line(&path.display()), u32::try_from(newlines + 1).unwrap_or(u32::MAX)),
            reason: "the text is not UTF-8".to_owned(),
        }
    })
}

/// Reads the `.yaml` and `.yml` files of a folder; hidden ones are an editor's.
fn read_folder(folder: &Path) -> Result<Vec<SourceFile>> {
    let wrap = |error: io::Error| read_error(folder, error, "correct the folder's permissions");
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(wrap)? {
        let path = entry.map_err(wrap)?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if matches!(extension, Some("yaml" | "yml")) && !hidden {
            files.push(path);
        }
    }
    files.sort();
    files.iter().map(|path| read_file(path)).collect()
}

fn read_file(path: &Path) -> Result<SourceFile> {
    let text = read_text(path, "correct HALITE_PROFILE_PATH or the file's permissions")?;
    Ok(SourceFile { name: one_line(&path.display()), text })
}

/// XDG base directory on Unix, `Application Support` on macOS, `APPDATA` on Windows.
fn config_folder(variable: impl Fn(&str) -> Option<OsString>, home: Option<PathBuf>) -> Option<PathBuf> {
    // The XDG specification says that a relative path is to be ignored; elsewhere it has no meaning either.
    let absolute = |path: PathBuf| Some(path).filter(|path| path.is_absolute());
    let folder = |name: &str| variable(name).map(PathBuf::from).and_then(absolute);
    let home = home.and_then(absolute);
    if cfg!(windows) {
        folder("APPDATA")
    } else if cfg!(target_os = "macos") {
        home.map(|home| home.join("Library").join("Application Support"))
    } else {
        folder("XDG_CONFIG_HOME").or_else(|| home.map(|home| home.join(".config")))
    }
}

fn read_error(path: &Path, error: io::Error, hint: &'static str) -> Error {
    Error::Read { path: path.to_owned(), reason: error.to_string(), hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(all(unix, not(target_os = "macos")))]
    #[test]
    fn the_environment_names_the_folders() {
        let home = || Some(PathBuf::from("/home/ada"));
        for (variables, home, folder, paths) in [
            (vec![], home(), Some("/home/ada/.config/halite/profiles"), vec![]),
            (vec![], None, None, vec![]),
            (vec![("XDG_CONFIG_HOME", "/etc/xdg")], home(), Some("/etc/xdg/halite/profiles"), vec![]),
            (
                vec![("XDG_CONFIG_HOME", "relative")],
                home(),
                Some("/home/ada/.config/halite/profiles"),
                vec![],
            ),
            (vec![("XDG_CONFIG_HOME", "")], home(), Some("/home/ada/.config/halite/profiles"), vec![]),
            (vec![("HALITE_PROFILE_PATH", "/a:b.yaml::/c")], None, None, vec!["/a", "b.yaml", "/c"]),
            (vec![("HALITE_PROFILE_PATH", "")], None, None, vec![]),
        ] {
            let variable = |name: &str| {
                let found = variables.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| OsString::from(value))
            };
            let path = SearchPath::from_variables(variable, home);
            assert_eq!(path.user_folder(), folder.map(Path::new), "{variables:?}");
            assert_eq!(path.paths, paths.iter().map(PathBuf::from).collect::<Vec<_>>(), "{variables:?}");
        }
    }
}
