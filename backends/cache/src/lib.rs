//! Compiled kernels on disk, for backends that compile.
//!
//! A file holds the key that it was made for and a checksum of what follows, and is named after the key, which the backend
//! makes of all that a binary depends on: compiler, device, options and source. So a binary for something else, or a
//! damaged one, is never given to a driver. Whatever goes wrong here costs a compilation and nothing else.

#![forbid(unsafe_code)]

use sha2::{Digest, Sha256};
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

/// The environment variable that names the folder for compiled kernels; empty to keep none.
pub const CACHE_VARIABLE: &str = "HALITE_CACHE_DIR";

/// What a program is for, as a hash.
pub type Key = [u8; 32];

const MAGIC: [u8; 8] = *b"HALITEC1";
const HEADER_BYTES: usize = MAGIC.len() + 2 * size_of::<Key>();
/// Beyond this many bytes, the files that have not been used for longest are removed.
const MAX_TOTAL_BYTES: u64 = 256 << 20;

/// A folder of binaries; none keeps nothing.
#[derive(Debug, Clone)]
pub struct Cache {
    folder: Option<PathBuf>,
}

/// The hash of fields, whose borders count.
pub fn key(fields: &[&str]) -> Key {
    let mut hash = Sha256::new();
    for field in fields {
        hash.update((field.len() as u64).to_le_bytes());
        hash.update(field.as_bytes());
    }
    hash.finalize().into()
}

impl Cache {
    /// Keeps binaries of `backend` in the folder `explicit`; an empty path is none.
    pub fn in_folder(backend: &str, explicit: &Path) -> Self {
        let is_there = !explicit.as_os_str().is_empty();
        Self { folder: is_there.then(|| explicit.join(backend)) }
    }

    /// Keeps them in the user's own folder, where the system names one.
    pub fn of_user(backend: &str) -> Self {
        let folder = user_folder(|name| std::env::var_os(name), std::env::home_dir());
        Self { folder: folder.map(|folder| folder.join(backend)) }
    }

    /// Keeps nothing.
    pub fn none() -> Self {
        Self { folder: None }
    }

    /// Whether anything is kept.
    pub fn is_on(&self) -> bool {
        self.folder.is_some()
    }

    /// The binary for `key`, if there is an intact one.
    pub fn read(&self, key: &Key) -> Option<Vec<u8>> {
        let path = self.path(key)?;
        let mut bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                log::debug!("cannot read the compiled program '{}': {error}", path.display());
                return None;
            }
        };
        if !is_intact(&bytes, key) {
            log::debug!("the compiled program '{}' is damaged, and compiled again", path.display());
            self.remove(key);
            return None;
        }
        // The time of the last use, which decides what is removed first.
        _ = fs::File::options()
            .append(true)
            .open(&path)
            .and_then(|file| file.set_modified(SystemTime::now()));
        bytes.drain(..HEADER_BYTES);
        Some(bytes)
    }

    /// Keeps a binary.
    pub fn write(&self, key: &Key, binary: &[u8]) {
        let Some(path) = self.path(key) else { return };
        if let Err(error) = write_whole(&path, key, binary) {
            log::debug!("cannot keep the compiled program '{}': {error}", path.display());
        }
        if let Some(folder) = path.parent()
            && let Err(error) = trim(folder, MAX_TOTAL_BYTES)
        {
            log::debug!("cannot trim '{}': {error}", folder.display());
        }
    }

    /// Forgets a binary, which its driver has refused.
    pub fn remove(&self, key: &Key) {
        if let Some(path) = self.path(key) {
            _ = fs::remove_file(path);
        }
    }

    fn path(&self, key: &Key) -> Option<PathBuf> {
        let name: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        Some(self.folder.as_ref()?.join(name + ".bin"))
    }
}

fn checksum(binary: &[u8]) -> Key {
    Sha256::digest(binary).into()
}

fn is_intact(bytes: &[u8], key: &Key) -> bool {
    let Some(rest) = bytes.strip_prefix(&MAGIC).and_then(|rest| rest.strip_prefix(key)) else { return false };
    rest.split_first_chunk().is_some_and(|(sum, binary)| *sum == checksum(binary))
}

/// Writes beside the place and moves the file there, so that nobody reads half of one.
fn write_whole(path: &Path, key: &Key, binary: &[u8]) -> io::Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let folder = path.parent().unwrap_or(Path::new("."));
    create_private(folder)?;
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let beside = path.with_extension(format!("{}-{number}.part", std::process::id()));
    let written = fs::File::create_new(&beside).and_then(|mut file| {
        file.write_all(&MAGIC)?;
        file.write_all(key)?;
        file.write_all(&checksum(binary))?;
        file.write_all(binary)
    });
    let moved = written.and_then(|()| fs::rename(&beside, path));
    if moved.is_err() {
        _ = fs::remove_file(&beside);
    }
    moved
}

/// A folder of the user alone: what lies there is run.
fn create_private(folder: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

/// Removes the files that were used longest ago until at most `most` bytes are left.
fn trim(folder: &Path, most: u64) -> io::Result<()> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        // Another process may have removed it.
        if let Ok(data) = entry.metadata()
            && data.is_file()
        {
            files.push((data.modified().unwrap_or(SystemTime::UNIX_EPOCH), data.len(), entry.path()));
        }
    }
    let mut total: u64 = files.iter().map(|(_, len, _)| len).sum();
    files.sort();
    for (_, len, path) in files {
        if total <= most {
            break;
        }
        _ = fs::remove_file(path);
        total -= len;
    }
    Ok(())
}

/// XDG base directory on Unix, `Caches` on macOS, `LOCALAPPDATA` on Windows.
fn user_folder(variable: impl Fn(&str) -> Option<OsString>, home: Option<PathBuf>) -> Option<PathBuf> {
    // The XDG specification says that a relative path is to be ignored; elsewhere it has no meaning either.
    let absolute = |path: PathBuf| Some(path).filter(|path| path.is_absolute());
    let folder = |name: &str| variable(name).map(PathBuf::from).and_then(absolute);
    let home = home.and_then(absolute);
    let base = if cfg!(windows) {
        folder("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        home.map(|home| home.join("Library").join("Caches"))
    } else {
        folder("XDG_CACHE_HOME").or_else(|| home.map(|home| home.join(".cache")))
    };
    Some(base?.join("halite"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// A fresh folder that is removed when dropped.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("halite-cache-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn cache(&self) -> Cache {
            Cache::in_folder("tests", &self.0)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn keys_tell_fields_and_their_borders_apart() {
        let keys = [key(&["ab", "c"]), key(&["a", "bc"]), key(&["abc"]), key(&["ab", "c", ""])];
        for (index, one) in keys.iter().enumerate() {
            assert!(keys[..index].iter().all(|other| other != one));
        }
        assert_eq!(keys[0], key(&["ab", "c"]));
    }

    #[test]
    fn a_binary_is_found_again_under_its_key_alone() {
        let folder = Folder::new("found");
        let (cache, first, second) = (folder.cache(), key(&["first"]), key(&["second"]));
        for binary in [&b"some machine code"[..], b""] {
            cache.write(&first, binary);
            assert_eq!(folder.cache().read(&first).as_deref(), Some(binary));
        }
        assert_eq!(cache.read(&second), None);
        // A file under another's name is not for it.
        fs::copy(cache.path(&first).unwrap(), cache.path(&second).unwrap()).unwrap();
        assert_eq!(cache.read(&second), None);
        assert!(!cache.path(&second).unwrap().exists());
    }

    #[test]
    fn every_damaged_byte_and_every_missing_one_is_noticed() {
        let folder = Folder::new("damaged");
        let (cache, key) = (folder.cache(), key(&["k"]));
        cache.write(&key, b"code");
        let path = cache.path(&key).unwrap();
        let whole = fs::read(&path).unwrap();
        assert_eq!(whole.len(), HEADER_BYTES + 4);
        for index in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[index] ^= 0x10;
            for bytes in [&damaged, &whole[..index]] {
                fs::write(&path, bytes).unwrap();
                assert_eq!(cache.read(&key), None, "byte {index}");
            }
        }
        fs::write(&path, &whole).unwrap();
        assert_eq!(cache.read(&key).as_deref(), Some(&b"code"[..]));
    }

    #[test]
    fn what_cannot_be_written_is_silently_not_kept() {
        let folder = Folder::new("unwritable");
        let file = folder.0.join("file");
        fs::write(&file, "in the way").unwrap();
        let cache = Cache::in_folder("tests", &file);
        cache.write(&key(&["k"]), b"code");
        assert_eq!(cache.read(&key(&["k"])), None);
        let none = Cache::none();
        none.write(&key(&["k"]), b"code");
        assert_eq!(none.read(&key(&["k"])), None);
    }

    #[test]
    fn the_longest_unused_files_go_first() {
        let folder = Folder::new("trim");
        for (index, name) in ["old", "new", "newest"].iter().enumerate() {
            let path = folder.0.join(name);
            fs::write(&path, [0; 100]).unwrap();
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + index as u64);
            fs::File::options().append(true).open(&path).unwrap().set_modified(time).unwrap();
        }
        let left = || ["old", "new", "newest"].map(|name| folder.0.join(name).exists());
        trim(&folder.0, 300).unwrap();
        assert_eq!(left(), [true, true, true]);
        trim(&folder.0, 299).unwrap();
        assert_eq!(left(), [false, true, true]);
        trim(&folder.0, 0).unwrap();
        assert_eq!(left(), [false, false, false]);
    }

    #[test]
    fn backends_have_folders_of_their_own_and_an_empty_one_keeps_nothing() {
        let folder = |backend, path: &str| Cache::in_folder(backend, path.as_ref()).folder;
        assert_eq!(folder("cuda", "/elsewhere"), Some("/elsewhere/cuda".into()));
        assert_eq!(folder("opencl", "/elsewhere"), Some("/elsewhere/opencl".into()));
        assert_eq!(folder("cuda", ""), None);
        assert!(!Cache::none().is_on());
    }

    #[cfg(all(unix, not(target_os = "macos")))]
    #[test]
    fn the_system_names_the_users_folder() {
        let home = || Some(PathBuf::from("/home/ada"));
        for (variables, home, expected) in [
            (vec![], home(), Some("/home/ada/.cache/halite")),
            (vec![], None, None),
            (vec![("XDG_CACHE_HOME", "/var/cache")], home(), Some("/var/cache/halite")),
            (vec![("XDG_CACHE_HOME", "relative")], home(), Some("/home/ada/.cache/halite")),
        ] {
            let variable = |name: &str| {
                let found = variables.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| OsString::from(value))
            };
            assert_eq!(user_folder(variable, home), expected.map(PathBuf::from), "{variables:?}");
        }
    }
}
