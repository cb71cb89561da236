//! The backend, and its one device.

use crate::buffer::{self, ALIGN_BYTES, IMPORT_ALIGN_BYTES, Memory};
use crate::config::CpuConfig;
use crate::error::lock;
use crate::pool::Pool;
use crate::stream::CpuStream;
use crate::sync::Mutex;
use crate::{host, kernel};
use halite_hal::{
    Buffer, DType, Device, DeviceId, DeviceInfo, Error, Health, HostMemory, Kernel, KernelSource, Limits,
    MemoryInfo, MemoryKind, Result, driver,
};
use std::sync::{Arc, OnceLock, Weak};

/// The processor as a backend; its one device is `cpu:0`.
///
/// The device is probed once. Opening it while it is open gives the same device, with the same threads and the
/// same account of memory. Its threads start when it is opened and end after the last object made by it is gone.
///
/// All three kinds of memory are the host's, so every buffer has a host pointer, and memory of the host is imported as it
/// is.
#[derive(Debug, Default)]
pub struct CpuBackend {
    config: CpuConfig,
    probed: OnceLock<DeviceInfo>,
    opened: Mutex<Weak<CpuDevice>>,
}

struct CpuDevice {
    info: DeviceInfo,
    memory: Arc<Memory>,
    pool: Arc<Pool>,
}

impl CpuBackend {
    /// A backend with these settings, which are checked when it is probed.
    pub fn new(config: CpuConfig) -> Self {
        Self { config, ..Self::default() }
    }

    fn info(&self) -> Result<&DeviceInfo> {
        if let Some(info) = self.probed.get() {
            return Ok(info);
        }
        let threads = self.config.resolved_threads()?;
        let memory_bytes = self.config.resolved_memory_bytes();
        let mut info = describe(threads, memory_bytes);
        info.memory_limit_name =
            self.config.memory_limit_bytes.map(|_| "the CPU's memory limit (HALITE_CPU_MEMORY)".to_owned());
        Ok(self.probed.get_or_init(|| info))
    }
}

impl driver::Backend for CpuBackend {
    fn name(&self) -> &str {
        "cpu"
    }

    fn probe(&self) -> Result<Vec<DeviceInfo>> {
        Ok(vec![self.info()?.clone()])
    }

    fn open(&self, index: u32) -> Result<Device> {
        if index != 0 {
            return Err(Error::unavailable(format!("no device cpu:{index}; the cpu is one device, cpu:0")));
        }
        let info = self.info()?;
        let mut opened = lock(&self.opened);
        let device = match opened.upgrade() {
            Some(device) => device,
            None => {
                let mut info = info.clone();
                info.id = info.id.opened();
                let device = Arc::new(CpuDevice {
                    memory: Arc::new(Memory::new(info.memory_bytes)),
                    pool: Arc::new(Pool::new(info.compute_units as usize)?),
                    info,
                });
                *opened = Arc::downgrade(&device);
                device
            }
        };
        Ok(Device::new(device))
    }
}

fn describe(threads: usize, memory_bytes: u64) -> DeviceInfo {
    let host::Processor { name, vendor } = host::processor();
    let mut info = DeviceInfo::new(DeviceId::new("cpu", 0), name);
    info.vendor = vendor;
    info.driver_version = env!("CARGO_PKG_VERSION").into();
    info.memory_bytes = memory_bytes;
    info.compute_units = threads as u32;
    info.dtypes = DType::ALL.to_vec();
    info.kernel_formats = vec!["native".into(), "builtin".into()];
    info.features = host::features();
    info.limits = Limits {
        // What Rust allows for one object.
        max_allocation_bytes: memory_bytes.min(isize::MAX as u64 - ALIGN_BYTES as u64),
        // The signature's check already demands whole elements.
        offset_alignment_bytes: 1,
        // Keeps the number of workgroups within 64 bits.
        max_grid: [u32::MAX, u16::MAX.into(), u16::MAX.into()],
        max_args: 64,
        import_alignment_bytes: IMPORT_ALIGN_BYTES as u64,
        ..info.limits
    };
    info
}

impl driver::Device for CpuDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn memory(&self) -> Result<MemoryInfo> {
        Ok(self.memory.info())
    }

    fn health(&self) -> Health {
        Health::Ok
    }

    fn allocate(&self, len_bytes: u64, kind: MemoryKind) -> Result<Buffer> {
        self.memory.allocate(&self.info.id, len_bytes, kind)
    }

    fn import(&self, memory: &HostMemory) -> Result<Buffer> {
        Ok(buffer::import(&self.info.id, memory))
    }

    fn create_stream(&self) -> Result<Box<dyn driver::Stream>> {
        Ok(Box::new(CpuStream::new(self.pool.clone(), self.info.id.clone())))
    }

    fn load(&self, source: &KernelSource) -> Result<Kernel> {
        kernel::load(&self.info.id, source)
    }
}
