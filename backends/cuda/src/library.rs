//! Finding the shared libraries of CUDA: under which names and in which folders, and what to say when one is absent.

use halite_hal::{Error, Result};
use libloading::Library;
use std::error::Error as _;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// The variable with the path of the driver's library.
pub const DRIVER_VARIABLE: &str = "HALITE_CUDA_LIBRARY";
/// The variable with the path of NVRTC's library.
pub const NVRTC_VARIABLE: &str = "HALITE_NVRTC_LIBRARY";
/// The variable with the path of cuBLASLt's library.
pub const CUBLASLT_VARIABLE: &str = "HALITE_CUBLASLT_LIBRARY";

/// Files to load in place of what a search would find. Of a library that is named here, nothing else is tried.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Libraries {
    /// The driver.
    pub driver: Option<PathBuf>,
    /// The compiler.
    pub nvrtc: Option<PathBuf>,
    /// Matrix products.
    pub cublaslt: Option<PathBuf>,
}

impl Libraries {
    /// What this process's environment names.
    pub fn from_environment() -> Self {
        let path = |variable| std::env::var_os(variable).filter(|path| !path.is_empty()).map(PathBuf::from);
        Self { driver: path(DRIVER_VARIABLE), nvrtc: path(NVRTC_VARIABLE), cublaslt: path(CUBLASLT_VARIABLE) }
    }
}

/// What a search is for.
pub(crate) struct Wanted<'a> {
    /// As it stands in messages: `NVIDIA's driver`.
    pub(crate) what: &'a str,
    /// A file that the user named.
    pub(crate) explicit: Option<&'a Path>,
    /// Names for the loader, and paths, in order of preference.
    pub(crate) candidates: Vec<PathBuf>,
    /// What to do about its absence.
    pub(crate) remedy: &'a str,
}

/// Loads the first candidate that loads, and says which it was. It stays loaded for good: code of a driver keeps threads
/// and callbacks that an unloading would pull the floor from under.
///
/// # Errors
/// `Unavailable` with every name that was tried and the loader's first complaint.
pub(crate) fn open(wanted: &Wanted<'_>) -> Result<(&'static Library, PathBuf)> {
    let candidates: Vec<&Path> = match wanted.explicit {
        Some(path) => vec![path],
        None => wanted.candidates.iter().map(PathBuf::as_path).collect(),
    };
    let mut first = None;
    for candidate in &candidates {
        // Absolute paths of folders that are not there are no news.
        if wanted.explicit.is_none() && candidate.is_absolute() && !candidate.exists() {
            continue;
        }
        // SAFETY: loading runs the library's initialisers; these are NVIDIA's libraries by their names, or a file that
        // the user named as one.
        match unsafe { Library::new(candidate.as_os_str()) } {
            Ok(library) => return Ok((Box::leak(Box::new(library)), candidate.to_path_buf())),
            Err(error) => _ = first.get_or_insert_with(|| explain(&error)),
        }
    }
    let names: Vec<_> = candidates.iter().map(|path| path.display().to_string()).collect();
    let complaint = first.map_or(String::new(), |error| format!(" ({})", one_line(&error)));
    let (what, remedy) = (wanted.what, wanted.remedy);
    Err(Error::unavailable(format!("{what} is absent: looked for {}{complaint}; {remedy}", names.join(", "))))
}

/// The loader's own words, which some errors keep in their source.
fn explain(error: &libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| source.to_string())
}

/// Where the driver's library may be.
pub(crate) fn driver_candidates() -> Vec<PathBuf> {
    if cfg!(windows) {
        return vec!["nvcuda.dll".into()];
    }
    // The name without a number comes last: toolkits have a stub of that name, which only fails.
    let mut names: Vec<PathBuf> = vec!["libcuda.so.1".into()];
    for folder in [
        "/usr/lib/wsl/lib",
        "/usr/local/nvidia/lib64",
        "/run/opengl-driver/lib",
        "/usr/lib/aarch64-linux-gnu/tegra",
    ] {
        names.push(Path::new(folder).join("libcuda.so.1"));
    }
    names.push("libcuda.so".into());
    names
}

/// Where a library of the toolkit may be, whose names `name` gives for a major version. That of the driver's own major
/// version comes first: it needs no newer driver than this one, and knows the device.
pub(crate) fn toolkit_candidates(driver_major: u32, name: impl Fn(u32) -> String) -> Vec<PathBuf> {
    const OLDEST_MAJOR: u32 = 11;
    const NEWEST_MAJOR: u32 = 13;
    let others = (OLDEST_MAJOR..=NEWEST_MAJOR.max(driver_major)).rev();
    let mut majors: Vec<u32> = others.filter(|major| *major != driver_major).collect();
    // Lower ones before higher ones: an old library serves a new driver, not the other way round.
    majors.sort_by_key(|major| (*major > driver_major, driver_major.abs_diff(*major)));
    majors.insert(0, driver_major);
    let names: Vec<String> = majors.into_iter().map(name).collect();
    let folders = toolkit_folders();
    let folder = |sub: &'static str| folders.iter().map(move |folder| folder.join(sub));
    let places = [PathBuf::new()].into_iter().chain(folder(if cfg!(windows) { "bin" } else { "lib64" }));
    places.flat_map(|place| names.iter().map(move |name| place.join(name))).collect()
}

/// Folders of toolkits: those that the environment names, then the usual one.
pub(crate) fn toolkit_folders() -> Vec<PathBuf> {
    let named = ["CUDA_PATH", "CUDA_HOME"].into_iter().filter_map(std::env::var_os);
    let mut folders: Vec<PathBuf> = named.filter(|path| !path.is_empty()).map(PathBuf::from).collect();
    if !cfg!(windows) {
        folders.push("/usr/local/cuda".into());
    }
    folders.dedup();
    folders
}

/// The name of NVRTC's library of a major version. Within one, its name stays the same from 11.2 on (NVRTC, "Versioning").
pub(crate) fn nvrtc_name(major: u32) -> String {
    match (cfg!(windows), major) {
        (false, 11) => "libnvrtc.so.11.2".into(),
        (false, _) => format!("libnvrtc.so.{major}"),
        (true, 11) => "nvrtc64_112_0.dll".into(),
        (true, _) => format!("nvrtc64_{major}0_0.dll"),
    }
}

/// The name of cuBLASLt's library of a major version.
pub(crate) fn cublaslt_name(major: u32) -> String {
    if cfg!(windows) { format!("cublasLt64_{major}.dll") } else { format!("libcublasLt.so.{major}") }
}

/// Folders with `cuda_fp16.h`, for kernels that include headers: beside the loaded library, as toolkits and Python's
/// wheels have them, and in toolkits. `None` of them is needed by kernels without includes.
pub(crate) fn include_folders(library: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    // `lib64/../include`, and `nvidia/cuda_nvrtc/lib/../../cuda_runtime/include`.
    if let Some(root) = library.parent().and_then(Path::parent).filter(|root| *root != Path::new("")) {
        folders.push(root.join("include"));
        folders.extend(root.parent().map(|parent| parent.join("cuda_runtime/include")));
    }
    folders.extend(toolkit_folders().into_iter().map(|folder| folder.join("include")));
    folders.retain(|folder| folder.join("cuda_fp16.h").is_file());
    folders.dedup();
    folders
}

/// The file that a library was loaded from, where the system tells; the name that it was asked for otherwise.
pub(crate) fn resolved_path(name: &Path) -> PathBuf {
    if name.is_absolute() {
        return name.to_path_buf();
    }
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let of_name =
        |path: &&Path| path.file_name().and_then(OsStr::to_str).is_some_and(|own| matches(own, name));
    let paths = maps.lines().filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])));
    let found = paths.filter(of_name).map(Path::to_path_buf).next();
    found.unwrap_or_else(|| name.to_path_buf())
}

/// Whether a file's name is `name`, or that of the file that `name` links to (`libnvrtc.so.12.9.86`).
fn matches(file: &str, name: &Path) -> bool {
    let Some(name) = name.to_str() else { return false };
    file.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Text of a library on one line, without control characters.
pub(crate) fn one_line(text: &str) -> String {
    let printable: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    printable.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted<'a>(explicit: Option<&'a Path>, candidates: &[&str]) -> Wanted<'a> {
        let candidates = candidates.iter().map(PathBuf::from).collect();
        Wanted { what: "the thing", explicit, candidates, remedy: "install it" }
    }

    #[test]
    fn an_absent_library_names_every_candidate_and_what_to_do() {
        let error = open(&wanted(None, &["libnone.so.1", "/nowhere/libnone.so.2"])).unwrap_err();
        assert_eq!(error.kind(), &halite_hal::ErrorKind::Unavailable);
        let text = error.message();
        for part in ["the thing is absent", "libnone.so.1", "/nowhere/libnone.so.2", "install it"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains('\n'));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_loaders_own_words_are_passed_on() {
        let error = open(&wanted(None, &["libnone.so.1"])).unwrap_err();
        assert!(error.message().contains("libnone.so.1: cannot open shared object file"), "{error}");
    }

    #[test]
    fn a_named_file_is_the_only_one_tried() {
        let path = std::env::temp_dir().join(format!("halite-no-library-{}", std::process::id()));
        std::fs::write(&path, "no library").unwrap();
        let error = open(&wanted(Some(&path), &["libc.so.6"])).unwrap_err();
        std::fs::remove_file(&path).unwrap();
        let text = error.message();
        assert!(text.contains(path.to_str().unwrap()) && !text.contains("libc.so.6"), "{text}");
    }

    #[test]
    #[cfg(not(windows))]
    fn the_drivers_own_major_version_comes_first_then_lower_then_higher() {
        let names: Vec<_> = toolkit_candidates(12, nvrtc_name);
        let names: Vec<_> = names.iter().take(3).map(|path| path.to_str().unwrap()).collect();
        assert_eq!(names, ["libnvrtc.so.12", "libnvrtc.so.11.2", "libnvrtc.so.13"]);
        let names = toolkit_candidates(15, cublaslt_name);
        assert_eq!(names[..2], [PathBuf::from("libcublasLt.so.15"), PathBuf::from("libcublasLt.so.14")]);
    }

    #[test]
    fn a_files_full_name_matches_the_name_that_links_to_it() {
        assert!(matches("libnvrtc.so.12.9.86", Path::new("libnvrtc.so.12")));
        assert!(matches("libnvrtc.so.12", Path::new("libnvrtc.so.12")));
        assert!(!matches("libnvrtc.so.120", Path::new("libnvrtc.so.12")));
        assert!(!matches("libnvrtc-builtins.so.12.9", Path::new("libnvrtc.so.12")));
    }
}
