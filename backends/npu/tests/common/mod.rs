//! The plugins of the tests: the emulator's library, and small ones compiled from C on the spot.
#![allow(dead_code, reason = "each test file uses a part")]

use halite_hal::driver::Backend as _;
use halite_hal::{BufferSlice, Device, MemoryKind, Stream};
use halite_npu::{NpuBackend, emulator_file_name};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// The emulator's library: Cargo builds it beside the tests.
pub(crate) fn emulator() -> PathBuf {
    let executable = std::env::current_exe().expect("a test knows its own file");
    executable.with_file_name(emulator_file_name())
}

/// A device of the emulator, opened with these options.
pub(crate) fn open_emulator(options: &[(&str, &str)]) -> Device {
    let backend = plugin(emulator());
    options.iter().fold(backend, |backend, (key, value)| backend.with_option(*key, *value)).open(0).unwrap()
}

/// The backend with this file, without the settings of whoever runs the test.
pub(crate) fn plugin(path: impl Into<PathBuf>) -> NpuBackend {
    NpuBackend::with_plugin(path).without_environment()
}

/// The backend with these files and folders, without the settings of whoever runs the test.
pub(crate) fn search(list: impl Into<OsString>) -> NpuBackend {
    NpuBackend::with_search_path(list).without_environment()
}

/// The example plugin's one file.
pub(crate) fn example_source() -> PathBuf {
    concat!(env!("CARGO_MANIFEST_DIR"), "/example-plugin/example.c").into()
}

/// A fresh folder that is removed when dropped.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        // Tests run side by side.
        static FOLDERS: AtomicU32 = AtomicU32::new(0);
        let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("halite-npu-{}-{number}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Writes a file.
    pub(crate) fn file(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, contents).unwrap();
        path
    }

    /// Compiles a C file to a library; `None`, with a printed message, where there is no compiler.
    pub(crate) fn compile(&self, source: &Path, defines: &[&str]) -> Option<PathBuf> {
        let name: String = defines.concat().chars().filter(char::is_ascii_alphanumeric).collect();
        let defines: Vec<_> = defines.iter().map(|define| format!("-D{define}")).collect();
        let mut flags = vec!["-std=c99", "-Wall", "-Wextra", "-pedantic", "-O1"];
        flags.extend(defines.iter().map(String::as_str));
        self.compile_with("cc", &flags, source, &format!("libhalite_npu_{name}.so"))
    }

    /// Compiles a file to the library `name`; `None`, with a printed message, where there is no such compiler.
    pub(crate) fn compile_with(
        &self,
        compiler: &str,
        flags: &[&str],
        source: &Path,
        name: &str,
    ) -> Option<PathBuf> {
        if cfg!(windows) {
            println!("skipped: the plugins are compiled with the options of a Unix compiler");
            return None;
        }
        let output = self.0.join(name);
        let include = concat!(env!("CARGO_MANIFEST_DIR"), "/../../hal/include");
        let mut command = Command::new(compiler);
        command.args(flags).args(["-shared", "-fPIC", "-I", include, "-o"]).arg(&output).arg(source);
        match command.output() {
            Ok(result) => {
                assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
                Some(output)
            }
            Err(error) => {
                println!("skipped: no compiler '{compiler}': {error}");
                None
            }
        }
    }

    /// The example plugin, built with the flags of its README.
    pub(crate) fn example(&self) -> Option<PathBuf> {
        self.compile_with("cc", &["-std=c99", "-O2"], &example_source(), "libhalite_npu_example.so")
    }

    /// The minimal plugin with these definitions.
    pub(crate) fn minimal(&self, defines: &[&str]) -> Option<PathBuf> {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/plugins/minimal.c");
        self.compile(source.as_ref(), defines)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A new buffer with these bytes.
pub(crate) fn upload(device: &Device, stream: &Stream, bytes: &[u8]) -> BufferSlice {
    let slice = device.allocate(bytes.len() as u64, MemoryKind::Device).unwrap().all();
    stream.write(&slice, bytes).unwrap();
    slice
}

/// The bytes of a range.
pub(crate) fn download(stream: &Stream, slice: &BufferSlice) -> Vec<u8> {
    stream.read(slice).unwrap().wait().unwrap()
}
