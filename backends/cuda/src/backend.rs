//! The backend: the devices of NVIDIA's driver.

use crate::api::Driver;
use crate::blas::CublasLt;
use crate::context::Context;
use crate::device::{self, DeviceShared};
use crate::library::Libraries;
use crate::nvrtc::{Compiler, Nvrtc};
use crate::probe::{self, Properties, Toolkit};
use halite_cache::{CACHE_VARIABLE, Cache};
use halite_hal::{Device, DeviceId, DeviceInfo, Error, Result, driver};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

const NAME: &str = "cuda";

/// The backend `cuda`.
///
/// The driver is looked for when devices are listed: `libcuda.so.1` (Linux) or `nvcuda.dll` (Windows), or the file in
/// `HALITE_CUDA_LIBRARY`. With the driver alone, devices run cubins, PTX and the built-ins copy, fill and add; NVRTC adds
/// CUDA C, and cuBLASLt adds products of matrices. [`libraries`](Self::libraries) says which are there.
///
/// Devices have the numbers that the driver gives them, so that `CUDA_VISIBLE_DEVICES` counts. Opening a device while it is
/// open gives the same device, with the same account of memory.
#[derive(Debug, Default)]
pub struct CudaBackend {
    ignores_environment: bool,
    libraries: Option<Libraries>,
    cache_folder: Option<PathBuf>,
    opened: Mutex<Vec<Weak<DeviceShared>>>,
}

/// A library that the backend uses, or why it does not.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Library {
    /// `driver`, `nvrtc`, `cublaslt`.
    pub name: &'static str,
    /// Its version and the file that it was loaded from; or what was looked for.
    pub found: Result<(String, PathBuf)>,
}

impl CudaBackend {
    /// The backend with the settings of this process's environment.
    pub fn new() -> Self {
        Self::default()
    }

    /// Leaves Halite's own variables aside: `HALITE_CUDA_LIBRARY` and its like, and `HALITE_CACHE_DIR`.
    #[must_use]
    pub fn ignoring_environment(mut self) -> Self {
        self.ignores_environment = true;
        self
    }

    /// Takes these libraries in place of those that the environment names.
    #[must_use]
    pub fn with_libraries(mut self, libraries: Libraries) -> Self {
        self.libraries = Some(libraries);
        self
    }

    /// Keeps compiled kernels in this folder, and not in the one that `HALITE_CACHE_DIR` or the system names.
    #[must_use]
    pub fn with_cache_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache_folder = Some(folder.into());
        self
    }

    /// Which libraries are there, and what is missing.
    pub fn libraries(&self) -> Vec<Library> {
        let libraries = &self.named();
        let driver = Driver::load(libraries);
        let mut found = vec![Library {
            name: "driver",
            found: driver.clone().map(|driver| (driver.version.to_string(), driver.path.clone())),
        }];
        let nvrtc = match &driver {
            Ok(driver) => Nvrtc::load(libraries, driver.version.major).map(Compiler::of),
            Err(_) => Compiler::with_libraries(libraries),
        };
        found.push(Library {
            name: "nvrtc",
            found: nvrtc.map(|compiler| (compiler.version(), compiler.path().to_path_buf())),
        });
        // It wants a driver already when it is loaded.
        let cublaslt = driver.and_then(|driver| CublasLt::load(libraries, driver.version.major));
        found.push(Library { name: "cublaslt", found: cublaslt.map(CublasLt::describe) });
        found
    }

    fn toolkit(&self, driver: &Driver) -> (Result<&'static Nvrtc>, Result<&'static CublasLt>) {
        let (libraries, major) = (self.named(), driver.version.major);
        (Nvrtc::load(&libraries, major), CublasLt::load(&libraries, major))
    }

    /// The libraries that the user names.
    fn named(&self) -> Libraries {
        match &self.libraries {
            Some(libraries) => libraries.clone(),
            None if self.ignores_environment => Libraries::default(),
            None => Libraries::from_environment(),
        }
    }

    fn cache(&self) -> Cache {
        let variable = || std::env::var_os(CACHE_VARIABLE).filter(|_| !self.ignores_environment);
        let folder = self.cache_folder.clone().or_else(|| variable().map(PathBuf::from));
        folder.map_or_else(|| Cache::of_user(NAME), |folder| Cache::in_folder(NAME, &folder))
    }
}

fn describe(index: u32, properties: &Properties, driver: &Driver, toolkit: Toolkit) -> DeviceInfo {
    let version = probe::driver_version(driver.version);
    probe::describe(DeviceId::new(NAME, index), properties, &version, toolkit)
}

/// What is said of libraries that were not found.
fn notes(nvrtc: &Result<&'static Nvrtc>, cublaslt: &Result<&'static CublasLt>) -> Vec<String> {
    let nvrtc = nvrtc.as_ref().err().map(|error| {
        format!("without NVRTC, shipped kernels serve and nothing is fused: {}", error.message())
    });
    let cublaslt = cublaslt
        .as_ref()
        .err()
        .map(|error| format!("without cuBLASLt, own kernels multiply matrices: {}", error.message()));
    nvrtc.into_iter().chain(cublaslt).collect()
}

impl driver::Backend for CudaBackend {
    fn name(&self) -> &str {
        NAME
    }

    fn probe(&self) -> Result<Vec<DeviceInfo>> {
        let driver = Driver::load(&self.named())?;
        let devices = probe::devices(driver)?;
        let (nvrtc, cublaslt) = self.toolkit(driver);
        let toolkit = Toolkit { has_nvrtc: nvrtc.is_ok(), has_cublaslt: cublaslt.is_ok() };
        let notes = notes(&nvrtc, &cublaslt);
        let describe = |(index, properties)| {
            let mut info = describe(index, properties, driver, toolkit);
            info.notes.clone_from(&notes);
            info
        };
        Ok((0..).zip(&devices).map(describe).collect())
    }

    fn open(&self, index: u32) -> Result<Device> {
        let driver = Driver::load(&self.named())?;
        let count = probe::device_count(driver)?;
        if index >= count {
            return Err(Error::unavailable(format!(
                "no device {index}; the driver has {count}, counted from 0"
            )));
        }
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if opened.len() < count as usize {
            opened.resize_with(count as usize, Weak::new);
        }
        let slot = &mut opened[index as usize];
        // A lost device is opened anew; its objects keep the lost one.
        if let Some(open) = slot.upgrade().filter(|open| !open.is_lost()) {
            return Ok(device::handle(open));
        }
        let properties = probe::properties(driver, index)?;
        let context = Context::retain(driver, driver.device(index)?)?;
        let (nvrtc, cublaslt) = self.toolkit(driver);
        let toolkit = Toolkit { has_nvrtc: nvrtc.is_ok(), has_cublaslt: cublaslt.is_ok() };
        let mut info = describe(index, &properties, driver, toolkit);
        info.id = info.id.opened();
        info.notes = notes(&nvrtc, &cublaslt);
        let open = DeviceShared::open(context, info, properties, nvrtc, cublaslt, self.cache())?;
        *slot = Arc::downgrade(&open);
        Ok(device::handle(open))
    }
}
