//! The backend: every plugin that was found, and the devices of all of them.

use crate::buffer::DeviceMemory;
use crate::device;
use crate::error::one_line;
use crate::library::Library;
use crate::options::{OPTIONS_VARIABLE, Options};
use crate::search::Search;
use halite_hal::{Device, DeviceId, DeviceInfo, Error, ErrorKind, MemoryKind, Result, driver, plugin};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// How long a plugin may take to load, to describe or open a device, or to come back after the limit of a wait.
const CALL_LIMIT: Duration = Duration::from_secs(60);

const NAME: &str = "npu";

/// The backend `npu`.
///
/// A search goes through, in this order: an explicit file (then nothing else is looked at), the files and folders
/// in `HALITE_PLUGIN_PATH`, the executable's folder, and the emulator in `deps` below it, also under the hashed
/// name that Cargo gives it as a dependency from a registry or a repository.
#[derive(Debug, Clone)]
pub struct NpuBackend {
    search: Search,
    /// A plugin that needs no search, and then the only one.
    linked: Option<&'static Library>,
    /// Added to those in `HALITE_NPU_OPTIONS`.
    options: Vec<(String, String)>,
    reads_environment: bool,
    pub(crate) call_limit: Duration,
}

impl Default for NpuBackend {
    fn default() -> Self {
        Self::new()
    }
}

/// A loaded plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginInfo {
    /// Where it was found.
    pub path: PathBuf,
    /// The name that it gives itself.
    pub name: String,
    /// The version that it gives itself.
    pub version: String,
}

/// One measurement of a device since it was opened.
#[derive(Debug, Clone, PartialEq)]
pub struct Counter {
    /// What was measured: `cube.busy`.
    pub key: String,
    /// `cycles`, `bytes`, `share` or empty.
    pub unit: String,
    /// The value.
    pub value: f64,
}

impl NpuBackend {
    /// The backend with the search path and the options of this process's environment.
    pub fn new() -> Self {
        Self::with(Search::from_environment())
    }

    /// The backend with one plugin file and without others.
    pub fn with_plugin(path: impl Into<PathBuf>) -> Self {
        Self::with(Search { explicit: Some(path.into()), ..Search::default() })
    }

    /// The backend with the plugins of these files and folders (separated as in `PATH`) alone.
    pub fn with_search_path(list: impl Into<OsString>) -> Self {
        Self::with(Search { listed: Some(list.into()), ..Search::default() })
    }

    fn with(search: Search) -> Self {
        let (options, reads_environment) = (Vec::new(), true);
        Self { search, linked: None, options, reads_environment, call_limit: CALL_LIMIT }
    }

    /// The backend with one plugin, which is linked into this program and whose entry is called at once: how fuzzing
    /// gets tables into the loader without files.
    ///
    /// # Errors
    /// Those of loading a file with this entry.
    ///
    /// # Safety
    /// The plugin keeps to the header's rules about memory, for the life of the process.
    #[doc(hidden)]
    pub unsafe fn with_linked_plugin(entry: plugin::Entry) -> Result<Self> {
        // SAFETY: the caller's promise is this function's own.
        let linked = unsafe { Library::linked(entry)? };
        Ok(Self { linked: Some(linked), ..Self::with(Search::default()) })
    }

    /// Leaves `HALITE_PLUGIN_PATH` and `HALITE_NPU_OPTIONS` aside: only what is named here counts, and, for
    /// [`new`](Self::new), what lies beside the executable.
    #[must_use]
    pub fn without_environment(mut self) -> Self {
        self.reads_environment = false;
        // Only `new` looks beside the executable, and only it takes its list from the environment.
        if self.search.executable_folder.is_some() {
            self.search.listed = None;
        }
        self
    }

    /// Adds an option for opening devices, such as `machine` with the path of a file. What the keys are is up to the
    /// plugin, which refuses those that it does not know.
    #[must_use]
    pub fn with_option(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.options.push((key.into(), value.into()));
        self
    }

    /// How long a plugin may take for each call that probing and opening need, and to come back from a wait whose time
    /// limit has passed; 60 seconds without this.
    ///
    /// A plugin that takes longer is not called again by this process: its devices are lost.
    #[must_use]
    pub fn with_call_limit(mut self, limit: Duration) -> Self {
        self.call_limit = limit;
        self
    }

    /// Searches and loads, and so may block.
    ///
    /// Files that the user named must be plugins; others that are none are left out and logged. A plugin that is
    /// loaded stays so until the process ends; searching again finds it without loading.
    ///
    /// # Errors
    /// `Unavailable` when there is none, or a named file is not there; `BadFormat` and `AbiMismatch` for a file
    /// that is no plugin of this version.
    pub fn plugins(&self) -> Result<Vec<PluginInfo>> {
        let info = |library: &Library| PluginInfo {
            path: library.path.clone(),
            name: library.name.clone(),
            version: library.version.clone(),
        };
        Ok(self.libraries()?.into_iter().map(info).collect())
    }

    fn libraries(&self) -> Result<Vec<&'static Library>> {
        if let Some(linked) = self.linked {
            return Ok(vec![linked]);
        }
        let found = self.search.run()?;
        let mut libraries: Vec<&'static Library> = Vec::new();
        let mut failures = Vec::new();
        for candidate in &found.candidates {
            match Library::load(candidate, self.call_limit) {
                // Two names of one file are one plugin.
                Ok(library) if libraries.iter().any(|own| std::ptr::eq(*own, library)) => {}
                Ok(library) => libraries.push(library),
                Err(error) if candidate.named => return Err(error),
                Err(error) => {
                    log::warn!("{}", error.message());
                    failures.push(error);
                }
            }
        }
        match failures.into_iter().next() {
            _ if !libraries.is_empty() => Ok(libraries),
            Some(error) => Err(error),
            None => Err(found.nothing()),
        }
    }

    pub(crate) fn options(&self) -> Result<Options> {
        let text = if self.reads_environment { std::env::var_os(OPTIONS_VARIABLE) } else { None };
        let text = text.unwrap_or_default();
        let text =
            text.to_str().ok_or_else(|| Error::invalid(format!("{OPTIONS_VARIABLE} is not valid UTF-8")))?;
        let mut options = Options::parse(text)?;
        for (key, value) in &self.options {
            options.push(key, value)?;
        }
        Ok(options)
    }

    /// Every device: its library, its index there, and what it is.
    pub(crate) fn devices(&self) -> Result<Vec<(&'static Library, u32, DeviceInfo)>> {
        let options = self.options()?;
        let mut devices: Vec<(&'static Library, u32, DeviceInfo)> = Vec::new();
        let mut failure = None;
        let libraries = self.libraries()?;
        for library in &libraries {
            let first = devices.len() as u32;
            match describe_devices(library, first, &options, self.call_limit) {
                Ok(infos) => {
                    devices.extend(infos.into_iter().zip(0..).map(|(info, local)| (*library, local, info)))
                }
                // What the user or the plugin got wrong must be put right; absent hardware hides no other devices.
                Err(error) if matches!(error.kind(), ErrorKind::InvalidArgument | ErrorKind::BadFormat) => {
                    return Err(error);
                }
                Err(error) => {
                    log::warn!("plugin '{}': {}", library.path.display(), error.message());
                    failure.get_or_insert(error);
                }
            }
        }
        if let (true, Some(error)) = (devices.is_empty(), failure) {
            return Err(error);
        }
        if devices.is_empty() {
            let paths: Vec<_> = libraries.iter().map(|library| library.path.display().to_string()).collect();
            return Err(Error::unavailable(format!("no device behind the plugin {}", paths.join(", "))));
        }
        Ok(devices)
    }
}

/// What a plugin's devices are, numbered from `first`.
fn describe_devices(
    library: &'static Library,
    first: u32,
    options: &Options,
    limit: Duration,
) -> Result<Vec<DeviceInfo>> {
    let describe = |local| {
        let id = DeviceId::new(NAME, first + local);
        device::describe(library, id, &library.device_info(local, options, limit)?)
    };
    (0..library.device_count(limit)?).map(describe).collect()
}

impl driver::Backend for NpuBackend {
    fn name(&self) -> &str {
        NAME
    }

    fn probe(&self) -> Result<Vec<DeviceInfo>> {
        Ok(self.devices()?.into_iter().map(|(_, _, info)| info).collect())
    }

    fn open(&self, index: u32) -> Result<Device> {
        let (library, local, info) = self.find(index)?;
        device::open(library, local, info.id, &self.options()?, self.call_limit)
    }
}

/// The device's measurements since it was opened: cycles, bytes, busy shares. Does not wait for enqueued work.
///
/// # Errors
/// `InvalidArgument` for a device of another backend, `Unsupported` when the plugin counts nothing, `DeviceLost`.
pub fn counters(device: &Device) -> Result<Vec<Counter>> {
    const CALL: &str = "npu.counters";
    // A buffer leads to the backend's own object through every layer; zero bytes need no memory.
    let probe = device.allocate(0, MemoryKind::Device)?;
    let result = match probe.object::<DeviceMemory>() {
        None => Err(Error::invalid("only devices of the backend npu have counters")),
        Some(memory) => memory.device.library.counters(memory.device.handle),
    };
    let raw = result.map_err(|error| error.on_device(device.id()).in_call(CALL))?;
    let counter = |raw: &plugin::Counter| Counter {
        key: one_line(&plugin::fixed_text(&raw.key)),
        unit: one_line(&plugin::fixed_text(&raw.unit)),
        value: raw.value,
    };
    Ok(raw.iter().map(counter).collect())
}
