//! A device that does nothing: the template for new backends, and a fast fake for tests.
//!
//! It accounts memory, accepts kernels, and is done with everything at once: writes vanish, reads give zeros,
//! launches run nothing. It keeps every contract of [`driver`] all the same, so it shows the least
//! that a backend must do. Tests can make it busy ([`NullDevice::pause`]) and lose it ([`NullDevice::lose`]).
//!
//! # How to write a backend
//!
//! 1. **Copy this folder** to `backends/<name>/src` as a crate that depends on `halite-hal` alone. Keep the file
//!    names: the same noun lies in the same file everywhere, so a diff of two backends reads as a comparison.
//!    | file | holds |
//!    | --- | --- |
//!    | `mod.rs` (`lib.rs`) | the [`Backend`](crate::driver::Backend): finding the driver, listing and opening devices |
//!    | `device.rs` | [`driver::Device`]: properties, memory statistics, making objects |
//!    | `buffer.rs` | the object inside a [`Buffer`](crate::Buffer), whose `Drop` frees the memory |
//!    | `stream.rs` | [`driver::Stream`]: copies, fills, launches, waiting |
//!    | `event.rs` | [`driver::Event`]: done or not, and when |
//!    | `kernel.rs` | the object inside a [`Kernel`](crate::Kernel), and how each format becomes one |
//!    | `error.rs` | the one place where the driver's codes become [`Error`]s |
//! 2. **Find the driver in `probe`**, not in the constructor and not at link time. No driver, no device or one that
//!    is too old is `Unavailable` with what was looked for and what to do; nothing is printed and nothing panics.
//!    Libraries are never unloaded and nothing is torn down through statics.
//! 3. **Report what was probed** in [`DeviceInfo`]: true limits, only formats that
//!    [`load`](crate::driver::Device::load) really takes. The handles refuse everything beyond them, so a backend
//!    may rely on legal arguments: right device, ranges in bounds, equal lengths, launches that fit the signature.
//! 4. **Give each object its owner.** What the driver must free is freed by the `Drop` of a Rust type, and that type
//!    holds whatever must live longer (the context, the queue). `Drop` runs on any thread, also on a lost device:
//!    it never panics, and a failure there is logged.
//! 5. **Hold what enqueued work uses** until it is done: buffers, kernels, host bytes. Callers drop their handles
//!    right after enqueueing, and [`Pool`](crate::Pool) gives memory back while work on it is under way.
//!    Drop them with no lock held: a drop may free memory, drop a stream, or come back into the backend.
//! 6. **Never block while enqueueing.** A wait for another stream is an entry in the queue, not a blocked thread.
//! 7. **Let failures arrive where the contract says.** The first failure of asynchronous work poisons its stream:
//!    later work is skipped, events and `synchronize` report that failure until `reset`. A lost device stays lost:
//!    every call fails with `DeviceLost` and the first reason.
//! 8. **Translate errors once**, in `error.rs`: keep the driver's code, symbolic name and call. The handles add
//!    the device and the HAL's call.
//! 9. **Register it**: [`Registry::register`](crate::Registry::register) is all that a program needs. Then run the
//!    conformance suite over it.

#![forbid(unsafe_code)]

mod buffer;
mod device;
mod error;
mod event;
mod kernel;
mod stream;

pub use device::NullDevice;

use crate::{DType, Device, DeviceId, DeviceInfo, Error, Result, driver};
use std::sync::Arc;

/// What a [`NullBackend`] pretends to have found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NullConfig {
    /// Devices that `probe` lists; none makes the backend absent.
    pub devices: u32,
    /// Memory of each device. It is accounted, never touched, so it may exceed the machine's.
    pub memory_bytes: u64,
    /// Largest single allocation.
    pub max_allocation_bytes: u64,
    /// What buffer offsets of launches must be multiples of; a power of two.
    pub offset_alignment_bytes: u64,
    /// Most workgroups per axis.
    pub max_grid: [u32; 3],
    /// Kernel formats that `load` accepts.
    pub kernel_formats: Vec<String>,
    /// Features that kernels may require.
    pub features: Vec<String>,
}

impl Default for NullConfig {
    /// One device of 1 GiB that accepts every format and has no feature.
    fn default() -> Self {
        let formats = ["native", "opencl-c", "cuda-c", "cubin", "npu-program", "builtin"];
        Self {
            devices: 1,
            memory_bytes: 1 << 30,
            max_allocation_bytes: 1 << 30,
            offset_alignment_bytes: 1,
            max_grid: [u32::MAX, u32::from(u16::MAX), u32::from(u16::MAX)],
            kernel_formats: formats.map(String::from).to_vec(),
            features: Vec::new(),
        }
    }
}

/// The backend `null`.
#[derive(Debug, Clone, Default)]
pub struct NullBackend {
    config: NullConfig,
}

impl NullBackend {
    /// A backend whose devices are as `config` says.
    pub fn new(config: NullConfig) -> Self {
        Self { config }
    }

    /// Opens device `index` as its concrete type, which tests can pause and lose. Every call opens it anew.
    ///
    /// # Errors
    /// `Unavailable` when there are not that many devices.
    pub fn open_null(&self, index: u32) -> Result<NullDevice> {
        if index < self.config.devices {
            let mut info = self.info(index);
            // The mark of this opening, by which the handles tell its objects from those of others.
            info.id = info.id.opened();
            return Ok(NullDevice::new(info));
        }
        Err(Error::unavailable(format!("no null device {index}; there are {}", self.config.devices)))
    }

    fn info(&self, index: u32) -> DeviceInfo {
        let config = &self.config;
        let mut info = DeviceInfo::new(DeviceId::new(driver::Backend::name(self), index), "Null device");
        info.vendor = "Halite".into();
        info.driver_version = env!("CARGO_PKG_VERSION").into();
        info.memory_bytes = config.memory_bytes;
        info.dtypes = DType::ALL.to_vec();
        info.kernel_formats = config.kernel_formats.clone();
        info.features = config.features.clone();
        info.limits.max_allocation_bytes = config.max_allocation_bytes;
        info.limits.offset_alignment_bytes = config.offset_alignment_bytes;
        info.limits.max_grid = config.max_grid;
        info
    }
}

impl driver::Backend for NullBackend {
    fn name(&self) -> &str {
        "null"
    }

    fn probe(&self) -> Result<Vec<DeviceInfo>> {
        if self.config.devices == 0 {
            return Err(Error::unavailable("the configuration has 0 null devices; set devices to 1 or more"));
        }
        Ok((0..self.config.devices).map(|index| self.info(index)).collect())
    }

    fn open(&self, index: u32) -> Result<Device> {
        Ok(Device::new(Arc::new(self.open_null(index)?)))
    }
}

#[cfg(test)]
mod tests;
