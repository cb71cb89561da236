//! Engines for the tests of this folder.
#![allow(dead_code, reason = "each test file uses a part")]

use halite_cpu::CpuBackend;
use halite_hal::{Device, Registry};
use halite_npu::NpuBackend;
use halite_opencl::OpenClBackend;
use halite_ops::{Catalog, Engine};
use halite_profiles::{DeviceFacts, Profile, ProfileSet};
use std::path::PathBuf;
use std::sync::Arc;

/// The CPU, opened.
pub(crate) fn cpu_device() -> Device {
    let mut registry = Registry::new();
    registry.register(Arc::new(CpuBackend::default())).unwrap();
    registry.open("cpu").unwrap()
}

/// The built-in profile that fits a device.
pub(crate) fn profile_of(device: &Device) -> Arc<Profile> {
    ProfileSet::builtin().select(&DeviceFacts::from(device.info())).unwrap()
}

/// An engine on the CPU with the built-in kernels.
pub(crate) fn cpu() -> Engine {
    cpu_with(Catalog::builtin())
}

/// An engine on the CPU with these kernels.
pub(crate) fn cpu_with(catalog: Catalog) -> Engine {
    let device = cpu_device();
    let profile = profile_of(&device);
    Engine::new(device, profile, catalog, None).unwrap()
}

/// The emulated NPU with the CPU as its fallback.
pub(crate) fn npu() -> Engine {
    npu_with(&[])
}

/// The emulated NPU, opened with these options.
pub(crate) fn npu_with(options: &[(&str, &str)]) -> Engine {
    let backend = NpuBackend::with_plugin(emulator()).without_environment();
    let backend = options.iter().fold(backend, |backend, &(key, value)| backend.with_option(key, value));
    let mut registry = Registry::new();
    registry.register(Arc::new(backend)).unwrap();
    let device = registry.open("npu").unwrap();
    let profile = profile_of(&device);
    Engine::new(device, profile, Catalog::builtin(), Some(cpu())).unwrap()
}

/// Set where a missing OpenCL device is a failure and no reason to skip.
const OPENCL_REQUIRED: &str = "HALITE_REQUIRE_OPENCL";

/// The first OpenCL device, with the CPU as its fallback; `None`, with a printed reason, where there is none.
pub(crate) fn opencl() -> Option<Engine> {
    let mut registry = Registry::new();
    registry.register(Arc::new(OpenClBackend::new())).unwrap();
    match registry.open("opencl") {
        Ok(device) => {
            let profile = profile_of(&device);
            Some(Engine::new(device, profile, Catalog::builtin(), Some(cpu())).unwrap())
        }
        Err(error) if std::env::var_os(OPENCL_REQUIRED).is_some_and(|value| value == "1") => {
            panic!("{OPENCL_REQUIRED} is set, but there is no OpenCL device: {error}")
        }
        Err(error) => {
            println!("skipped: {error}");
            None
        }
    }
}

/// Cargo puts the libraries of dependencies into the folder of the test's executable.
fn emulator() -> PathBuf {
    let executable = std::env::current_exe().unwrap();
    let name = format!("{}halite_npu_emulator{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    executable.parent().unwrap().join(name)
}

/// SplitMix64, seeded.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub(crate) fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (self.next() >> 11) as f64 * 2f64.powi(-53) * (high - low)
    }

    pub(crate) fn vector(&mut self, elements: usize) -> Vec<f64> {
        (0..elements).map(|_| self.between(-1.0, 1.0)).collect()
    }
}
