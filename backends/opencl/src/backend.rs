//! The backend: the devices of all platforms.

use crate::device::{self, DeviceShared};
use crate::library::{self, LIBRARY_VARIABLE, Library};
use crate::probe::{self, Found};
use halite_cache::{CACHE_VARIABLE, Cache};
use halite_hal::{Device, DeviceInfo, Error, Result, driver};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

const NAME: &str = "opencl";

/// The backend `opencl`.
///
/// The library is looked for when devices are listed: the file in `HALITE_OPENCL_LIBRARY`, or else the names and
/// folders that the system's and Android's vendors use. The first one found serves the whole process. GPUs are numbered
/// first, then accelerators, then processors.
///
/// Opening a device while it is open gives the same device, with the same context and account of memory.
#[derive(Debug, Default)]
pub struct OpenClBackend {
    ignores_environment: bool,
    has_no_thread: bool,
    cache_folder: Option<PathBuf>,
    /// The list of the first search that found any: OpenCL devices do not come and go, and numbers stay.
    found: OnceLock<Vec<Found>>,
    opened: Mutex<Vec<Weak<DeviceShared>>>,
}

impl OpenClBackend {
    /// The backend with the settings of this process's environment.
    pub fn new() -> Self {
        Self::default()
    }

    /// Leaves `HALITE_OPENCL_LIBRARY` and `HALITE_CACHE_DIR` aside.
    #[must_use]
    pub fn ignoring_environment(mut self) -> Self {
        self.ignores_environment = true;
        self
    }

    /// Keeps compiled kernels in this folder, and not in the one that `HALITE_CACHE_DIR` or the system names.
    #[must_use]
    pub fn with_cache_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache_folder = Some(folder.into());
        self
    }

    /// Calls the driver on its callers' threads alone: no thread of the backend looks after work that nobody asks about,
    /// so what it holds is given back by later calls. For drivers that one thread may use, such as Oclgrind's checks
    /// for uninitialised memory.
    #[must_use]
    pub fn without_thread(mut self) -> Self {
        self.has_no_thread = true;
        self
    }

    fn found(&self) -> Result<&[Found]> {
        if let Some(found) = self.found.get() {
            return Ok(found);
        }
        let found = probe::devices(self.library()?, NAME)?;
        Ok(self.found.get_or_init(|| found))
    }

    fn library(&self) -> Result<&'static Library> {
        library::load(self.setting(LIBRARY_VARIABLE))
    }

    fn cache(&self, device: &Found) -> Cache {
        let folder = self.cache_folder.clone().or_else(|| self.setting(CACHE_VARIABLE).map(PathBuf::from));
        match folder {
            Some(folder) => Cache::in_folder(NAME, &folder),
            // Unless asked, not where the driver keeps compiled kernels itself and is slow to give them away.
            None if device.keeps_kernels => Cache::none(),
            None => Cache::of_user(NAME),
        }
    }

    /// A variable's value, unless the environment is left aside.
    fn setting(&self, variable: &str) -> Option<OsString> {
        if self.ignores_environment { None } else { std::env::var_os(variable) }
    }
}

impl driver::Backend for OpenClBackend {
    fn name(&self) -> &str {
        NAME
    }

    fn probe(&self) -> Result<Vec<DeviceInfo>> {
        Ok(self.found()?.iter().map(|device| device.info.clone()).collect())
    }

    fn open(&self, index: u32) -> Result<Device> {
        let found = self.found()?;
        let Some(device) = found.get(index as usize) else {
            let count = found.len();
            return Err(Error::unavailable(format!(
                "no device {index}; OpenCL offers {count}, counted from 0"
            )));
        };
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.resize_with(found.len(), Weak::new);
        let slot = &mut opened[index as usize];
        // A lost device is opened anew; its objects keep the lost one.
        let shared = match slot.upgrade().filter(|open| !open.is_lost()) {
            Some(open) => open,
            None => {
                let open = DeviceShared::open(self.library()?, device.clone(), self.cache(device))?;
                if self.has_no_thread {
                    open.reaper.stop();
                }
                *slot = Arc::downgrade(&open);
                open
            }
        };
        Ok(device::handle(shared))
    }
}
