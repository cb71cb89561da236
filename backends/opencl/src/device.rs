//! Opened devices.

use crate::api::{Context, Mem, Queue};
use crate::buffer;
use crate::error;
use crate::kernel;
use crate::library::Library;
use crate::probe::Found;
use crate::program::Programs;
use crate::reaper::Reaper;
use crate::staging::Staging;
use crate::stream::{OpenClStream, StreamShared};
use halite_cache::Cache;
use halite_hal::{
    Buffer, Device, DeviceInfo, Error, ErrorKind, Health, HostMemory, Kernel, KernelSource, MemoryInfo,
    MemoryKind, Result, driver,
};
use ocl::ffi;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How long an allocation waits for work in flight to give memory back.
const RECLAIM_LIMIT: Duration = Duration::from_secs(10);

/// What every object of a device holds: its context is released when the last of them is gone.
pub(crate) struct DeviceShared {
    pub(crate) found: Found,
    pub(crate) programs: Programs,
    pub(crate) reaper: Arc<Reaper>,
    pub(crate) staging: Staging,
    pub(crate) shared_memory: Option<buffer::SharedMemoryCalls>,
    used_bytes: AtomicU64,
    buffers: AtomicU64,
    lost: OnceLock<Error>,
    /// What a kernel gets for a range of zero bytes.
    empty: OnceLock<Arc<Mem>>,
    /// Clears fresh memory and maps it; streams are not disturbed.
    service: Mutex<Option<Queue>>,
    // Last: released after everything that was made of it.
    pub(crate) context: Context,
}

impl Drop for DeviceShared {
    fn drop(&mut self) {
        self.reaper.stop();
    }
}

impl DeviceShared {
    pub(crate) fn open(library: &'static Library, mut found: Found, cache: Cache) -> Result<Arc<Self>> {
        found.info.id = found.info.id.opened();
        let context = Context::create(found.handle)?;
        let shared_memory =
            if found.has_shared_memory { buffer::SharedMemoryCalls::find(library) } else { None };
        Ok(Arc::new(Self {
            programs: Programs::new(cache, &found),
            reaper: Arc::default(),
            staging: Staging::default(),
            shared_memory,
            used_bytes: AtomicU64::new(0),
            buffers: AtomicU64::new(0),
            lost: OnceLock::new(),
            empty: OnceLock::new(),
            service: Mutex::new(None),
            context,
            found,
        }))
    }

    pub(crate) fn info(&self) -> &DeviceInfo {
        &self.found.info
    }

    /// The first loss, if there was one.
    pub(crate) fn check(&self) -> Result<()> {
        match self.lost.get() {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.lost.get().is_some()
    }

    /// Passes a result on and remembers a loss, which is final.
    pub(crate) fn noting_loss<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result {
            self.note(error);
        }
        result
    }

    /// Remembers a loss, which is final.
    pub(crate) fn note(&self, error: &Error) {
        if matches!(error.kind(), ErrorKind::DeviceLost) {
            self.lost.get_or_init(|| error.clone());
        }
    }

    /// A new queue, with times where the device has them.
    pub(crate) fn create_queue(&self) -> Result<Queue> {
        let create = |profiling| self.context.create_queue(self.found.handle, profiling);
        match create(self.found.has_profiling) {
            Err(error)
                if self.found.has_profiling
                    && matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::InvalidArgument) =>
            {
                create(false)
            }
            created => created,
        }
    }

    /// Runs `work` on a queue apart from all streams.
    pub(crate) fn on_service_queue<T>(&self, work: impl FnOnce(&Queue) -> Result<T>) -> Result<T> {
        let mut service = lock(&self.service);
        if service.is_none() {
            *service = Some(self.context.create_queue(self.found.handle, false)?);
        }
        work(service.as_ref().expect("it was made above"))
    }

    /// A buffer for arguments of zero bytes, which OpenCL has none of.
    pub(crate) fn empty(&self) -> Result<Arc<Mem>> {
        if let Some(empty) = self.empty.get() {
            return Ok(empty.clone());
        }
        let len = self.info().limits.offset_alignment_bytes as usize;
        let empty = Arc::new(self.context.create_buffer(ffi::CL_MEM_READ_WRITE, len)?);
        Ok(self.empty.get_or_init(|| empty).clone())
    }

    /// Enters a buffer into the account; it leaves with [`release`](Self::release).
    pub(crate) fn reserve(&self, len_bytes: u64) -> Result<()> {
        let total = self.info().memory_bytes;
        let fits = |used: u64| used.checked_add(len_bytes).filter(|sum| *sum <= total);
        let attempt = || self.used_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        let mut result = attempt();
        if result.is_err() && self.finish_in_flight() {
            result = attempt();
        }
        match result {
            Ok(_) => {
                self.buffers.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Err(_) => Err(self.out_of_memory(len_bytes, "the device's memory is taken")),
        }
    }

    pub(crate) fn release(&self, len_bytes: u64) {
        self.used_bytes.fetch_sub(len_bytes, Ordering::Relaxed);
        self.buffers.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn out_of_memory(&self, requested: u64, reason: &str) -> Error {
        let free = self.free_bytes();
        let message = format!(
            "{requested} bytes asked for, {free} free: {reason}; drop buffers or use smaller batches"
        );
        Error::new(ErrorKind::OutOfMemory { requested, free }, message)
    }

    /// What is left of the device's memory. OpenCL does not tell what other processes hold.
    fn free_bytes(&self) -> u64 {
        self.info().memory_bytes.saturating_sub(self.used_bytes.load(Ordering::Relaxed))
    }

    /// Waits, within a limit, for what is in flight; whether there was anything that may have held memory.
    pub(crate) fn finish_in_flight(&self) -> bool {
        let deadline = Instant::now() + RECLAIM_LIMIT;
        let busy: Vec<_> = self.reaper.streams().into_iter().filter(|stream| !stream.is_idle()).collect();
        for stream in &busy {
            // A failure belongs to whoever waits for that stream; here only its end counts.
            let _ = stream.synchronize(Some(deadline.saturating_duration_since(Instant::now())));
        }
        !busy.is_empty()
    }
}

/// The device as the layer sees it.
struct OpenClDevice(Arc<DeviceShared>);

pub(crate) fn handle(shared: Arc<DeviceShared>) -> Device {
    Device::new(Arc::new(OpenClDevice(shared)))
}

impl driver::Device for OpenClDevice {
    fn info(&self) -> &DeviceInfo {
        self.0.info()
    }

    fn memory(&self) -> Result<MemoryInfo> {
        self.0.check()?;
        for stream in self.0.reaper.streams() {
            stream.settle(0);
        }
        Ok(MemoryInfo {
            used_bytes: self.0.used_bytes.load(Ordering::Relaxed),
            free_bytes: self.0.free_bytes(),
            total_bytes: self.0.info().memory_bytes,
            buffers: self.0.buffers.load(Ordering::Relaxed),
        })
    }

    fn health(&self) -> Health {
        if !self.0.is_lost() && matches!(self.0.found.handle.number::<u32>(ffi::CL_DEVICE_AVAILABLE), Ok(0)) {
            self.0.note(&error::error(error::DEVICE_NOT_AVAILABLE, "clGetDeviceInfo"));
        }
        match self.0.check() {
            Ok(()) => Health::Ok,
            Err(error) => Health::Lost { reason: error.message().to_owned() },
        }
    }

    fn allocate(&self, len_bytes: u64, kind: MemoryKind) -> Result<Buffer> {
        self.0.check()?;
        self.0.noting_loss(buffer::allocate(&self.0, len_bytes, kind))
    }

    fn import(&self, memory: &HostMemory) -> Result<Buffer> {
        buffer::import(&self.0, memory)
    }

    fn create_stream(&self) -> Result<Box<dyn driver::Stream>> {
        self.0.check()?;
        let stream = self.0.noting_loss(StreamShared::create(&self.0))?;
        self.0.reaper.watch(&stream);
        Ok(Box::new(OpenClStream(stream)))
    }

    fn load(&self, source: &KernelSource) -> Result<Kernel> {
        self.0.check()?;
        self.0.noting_loss(kernel::load(&self.0, source))
    }
}

/// Locks a mutex. No code of this crate panics half-way through a change of what it guards.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
