//! Opened devices.

use crate::api::Address;
use crate::blas::{Blas, CublasLt};
use crate::buffer;
use crate::buffer::HostAddress;
use crate::builtin::Builtins;
use crate::context::{Context, Current, EventHandle, ModuleHandle, StreamHandle};
use crate::graph;
use crate::kernel;
use crate::nvrtc::Nvrtc;
use crate::peer;
use crate::probe::Properties;
use crate::reaper::Reaper;
use crate::staging::Staging;
use crate::stream::{CudaStream, StreamShared};
use halite_cache::Cache;
use halite_hal::{
    Buffer, Device, DeviceInfo, Error, ErrorKind, Health, HostMemory, Kernel, KernelSource, MemoryInfo,
    MemoryKind, RecordedCommand, Result, driver,
};
use std::any::Any;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How long an allocation waits for work in flight to give memory back.
const RECLAIM_LIMIT: Duration = Duration::from_secs(10);

/// What every object of a device holds: its context is released when the last of them is gone.
pub(crate) struct DeviceShared {
    pub(crate) info: DeviceInfo,
    pub(crate) properties: Properties,
    /// The libraries beside the driver, or why they are absent.
    pub(crate) nvrtc: Result<&'static Nvrtc>,
    pub(crate) cublaslt: Result<&'static CublasLt>,
    pub(crate) cache: Cache,
    pub(crate) account: Account,
    pub(crate) reaper: Arc<Reaper>,
    /// Events to be used again: making one takes longer than recording it.
    pub(crate) events: Mutex<Vec<EventHandle>>,
    pub(crate) staging: Staging,
    /// Allocates, clears and frees memory; streams are not disturbed.
    pub(crate) memory_stream: StreamHandle,
    /// Notes what libraries enqueue, for graphs.
    pub(crate) capture_stream: Mutex<Option<StreamHandle>>,
    /// What is to be freed by calls that may wait, on the reaper's thread.
    remains: Mutex<Vec<Remains>>,
    pub(crate) builtins: OnceLock<Builtins>,
    pub(crate) blas: OnceLock<Blas>,
    lost: OnceLock<Error>,
    // Last: released after everything that was made in it.
    pub(crate) context: Context,
}

/// Something that is no longer used.
#[derive(Debug)]
pub(crate) enum Remains {
    Memory(Address),
    Host(HostAddress),
    /// The caller's memory, which stays taken unless the driver says that it is no longer pinned.
    Imported(ManuallyDrop<HostMemory>),
    Module(ModuleHandle),
}

/// Bytes and number of live buffers.
#[derive(Debug, Default)]
pub(crate) struct Account {
    used_bytes: AtomicU64,
    buffers: AtomicU64,
}

impl Account {
    pub(crate) fn add(&self, len_bytes: u64) {
        self.used_bytes.fetch_add(len_bytes, Ordering::Relaxed);
        self.buffers.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn remove(&self, len_bytes: u64) {
        self.used_bytes.fetch_sub(len_bytes, Ordering::Relaxed);
        self.buffers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for DeviceShared {
    fn drop(&mut self) {
        self.reaper.stop();
        // A context that cannot be entered is lost, and everything in it.
        let Ok(gpu) = self.context.enter() else { return };
        if let Some(blas) = self.blas.take() {
            blas.destroy();
        }
        for event in lock(&self.events).drain(..) {
            gpu.event_destroy(event);
        }
        let blocks = self.staging.drain().into_iter().map(Remains::Host);
        let builtins = self.builtins.take().map(|builtins| Remains::Module(builtins.module));
        lock(&self.remains).drain(..).chain(blocks).chain(builtins).for_each(|remains| remains.free(&gpu));
        gpu.stream_destroy(self.memory_stream);
        if let Some(stream) = lock(&self.capture_stream).take() {
            gpu.stream_destroy(stream);
        }
    }
}

impl DeviceShared {
    pub(crate) fn open(
        context: Context,
        info: DeviceInfo,
        properties: Properties,
        nvrtc: Result<&'static Nvrtc>,
        cublaslt: Result<&'static CublasLt>,
        cache: Cache,
    ) -> Result<Arc<Self>> {
        let memory_stream = context.enter()?.stream_create()?;
        let device = Arc::new(Self {
            info,
            properties,
            nvrtc,
            cublaslt,
            cache,
            account: Account::default(),
            reaper: Arc::default(),
            events: Mutex::default(),
            staging: Staging::default(),
            memory_stream,
            capture_stream: Mutex::default(),
            remains: Mutex::default(),
            builtins: OnceLock::new(),
            blas: OnceLock::new(),
            lost: OnceLock::new(),
            context,
        });
        device.reaper.start(Arc::downgrade(&device));
        Ok(device)
    }

    /// Frees something that no work uses any more, on a thread that may wait for the driver: drops may not.
    pub(crate) fn bury(&self, remains: Remains) {
        if self.reaper.has_thread() {
            lock(&self.remains).push(remains);
            self.reaper.wake();
        } else if let Ok(gpu) = self.context.enter() {
            remains.free(&gpu);
        }
    }

    /// Frees what was buried.
    pub(crate) fn free_remains(&self) {
        let remains = std::mem::take(&mut *lock(&self.remains));
        // A context that cannot be entered is lost, and everything in it.
        if let Ok(gpu) = self.context.enter() {
            remains.into_iter().for_each(|remains| remains.free(&gpu));
        }
    }

    /// Runs `work` in the device's context, unless the device is lost, and remembers a loss.
    pub(crate) fn call<T>(&self, work: impl FnOnce(&Current<'_>) -> Result<T>) -> Result<T> {
        self.check()?;
        self.noting_loss(self.context.enter().and_then(|gpu| work(&gpu)))
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
        if let Err(error) = &result
            && matches!(error.kind(), ErrorKind::DeviceLost)
        {
            self.lost.get_or_init(|| error.clone());
        }
        result
    }

    /// Waits, within a limit, for what is in flight, and frees what it held.
    pub(crate) fn finish_in_flight(&self) {
        let deadline = Instant::now() + RECLAIM_LIMIT;
        for stream in self.reaper.streams() {
            if !stream.is_idle() {
                // A failure belongs to whoever waits for that stream; here only its end counts.
                let _ = stream.synchronize(Some(deadline.saturating_duration_since(Instant::now())));
            }
        }
        self.free_remains();
        // What is freed in this stream's order is free behind it.
        let _ = self.call(|gpu| gpu.stream_synchronize(self.memory_stream));
    }
}

impl Remains {
    fn free(self, gpu: &Current<'_>) {
        match self {
            Self::Memory(address) => gpu.memory_free(address),
            Self::Host(host) => gpu.host_free(host.0),
            Self::Imported(memory) => match gpu.host_unregister(memory.as_ptr()) {
                Ok(()) => drop(ManuallyDrop::into_inner(memory)),
                Err(error) => {
                    log::warn!("{} bytes of imported memory stay taken: {error}", memory.len_bytes())
                }
            },
            Self::Module(module) => gpu.module_unload(module),
        }
    }
}

/// The device as the layer sees it.
pub(crate) struct CudaDevice(pub(crate) Arc<DeviceShared>);

pub(crate) fn handle(shared: Arc<DeviceShared>) -> Device {
    Device::new(Arc::new(CudaDevice(shared)))
}

impl driver::Device for CudaDevice {
    fn info(&self) -> &DeviceInfo {
        &self.0.info
    }

    fn memory(&self) -> Result<MemoryInfo> {
        self.0.check()?;
        for stream in self.0.reaper.streams() {
            stream.reap();
        }
        let (free, total) = self.0.call(|gpu| {
            // What was freed in this stream's order counts as free from here on; nothing else is in it.
            gpu.stream_synchronize(self.0.memory_stream)?;
            gpu.memory_info()
        })?;
        Ok(MemoryInfo {
            used_bytes: self.0.account.used_bytes.load(Ordering::Relaxed),
            free_bytes: free.min(total),
            total_bytes: total,
            buffers: self.0.account.buffers.load(Ordering::Relaxed),
        })
    }

    fn health(&self) -> Health {
        // A fault shows at the next call, whichever it is; any other failure of this one is no loss.
        let _ = self.0.call(|gpu| gpu.memory_info());
        match self.0.check() {
            Ok(()) => Health::Ok,
            Err(error) => Health::Lost { reason: error.message().to_owned() },
        }
    }

    fn allocate(&self, len_bytes: u64, kind: MemoryKind) -> Result<Buffer> {
        self.0.check()?;
        buffer::allocate(&self.0, len_bytes, kind)
    }

    fn import(&self, memory: &HostMemory) -> Result<Buffer> {
        self.0.check()?;
        buffer::import(&self.0, memory)
    }

    fn create_stream(&self) -> Result<Box<dyn driver::Stream>> {
        let stream = StreamShared::create(&self.0)?;
        self.0.reaper.watch(&stream);
        Ok(Box::new(CudaStream(stream)))
    }

    fn create_peer_stream(&self, peer: &Device) -> Result<Box<dyn driver::Stream>> {
        let stream = peer::create_stream(&self.0, peer)?;
        self.0.reaper.watch(&stream);
        Ok(Box::new(CudaStream(stream)))
    }

    fn load(&self, source: &KernelSource) -> Result<Kernel> {
        self.0.check()?;
        kernel::load(&self.0, source)
    }

    fn prepare(&self, commands: &[RecordedCommand]) -> Result<Option<Box<dyn Any + Send + Sync>>> {
        self.0.check()?;
        Ok(graph::prepare(&self.0, commands).map(|list| Box::new(list) as Box<dyn Any + Send + Sync>))
    }
}

/// Locks a mutex. No code of this crate panics half-way through a change of what it guards.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
