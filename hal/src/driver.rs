//! What a backend implements. Callers use the checked handles ([`Device`](crate::Device),
//! [`Stream`](crate::Stream), [`Event`](crate::Event)) instead, which pass only legal calls on.
//!
//! To write a backend, copy the folder `null` and fill it in; the same file names recur in every backend.

use crate::command_list::{Binding, Command, CommandList, RecordedCommand};
use crate::{
    Arg, Buffer, BufferSlice, DeviceInfo, Health, Kernel, KernelSource, MemoryInfo, MemoryKind, Result,
    Scalar,
};
use std::any::Any;
use std::time::Duration;

/// One driver stack.
///
/// 1. It is made without touching the driver, and registered.
/// 2. `probe` looks for the driver and lists its devices, as often as asked.
/// 3. `open` gives one of them. Nothing is ever torn down through statics, and no library is unloaded.
pub trait Backend: Send + Sync {
    /// `cpu`, `cuda`, `opencl`, `npu`: the first part of a [`DeviceId`](crate::DeviceId).
    fn name(&self) -> &str;

    /// The devices that are there now. Never panics and prints nothing.
    ///
    /// # Errors
    /// `Unavailable` with the reason when there is no driver or no device.
    fn probe(&self) -> Result<Vec<DeviceInfo>>;

    /// Opens device `index`.
    ///
    /// # Errors
    /// `Unavailable` when it is not there; what the driver says otherwise.
    fn open(&self, index: u32) -> Result<crate::Device>;
}

/// One accelerator. See [`crate::Device`] for the contract of each method; arguments are within the limits of
/// `info`, and sources are of a format that it accepts.
pub trait Device: Send + Sync {
    /// What the device is and can do.
    fn info(&self) -> &DeviceInfo;
    /// Memory in use and free.
    fn memory(&self) -> Result<MemoryInfo>;
    /// Whether it still answers.
    fn health(&self) -> Health;
    /// Memory whose contents are zeros or stale data of this process.
    fn allocate(&self, len_bytes: u64, kind: MemoryKind) -> Result<Buffer>;
    /// A new in-order queue.
    fn create_stream(&self) -> Result<Box<dyn Stream>>;
    /// Loads a kernel.
    fn load(&self, source: &KernelSource) -> Result<Kernel>;
    /// Turns recorded commands into a native graph, where the driver has one. Commands have been checked.
    fn prepare(&self, commands: &[RecordedCommand]) -> Result<Option<Box<dyn Any + Send + Sync>>> {
        let _ = commands;
        Ok(None)
    }
}

/// An in-order queue. See [`crate::Stream`] for the contract of each method; ranges, kernels and events belong to
/// this device, lengths agree, and launches fit their signatures.
///
/// Enqueued work holds the buffers that it uses until it is done. After a failure everything enqueued is skipped
/// and answers with that failure, until `reset`.
pub trait Stream: Send + Sync {
    /// Copies owned host bytes to the device.
    fn write(&self, dst: &BufferSlice, src: HostBytes) -> Result<()>;
    /// Copies to the device from borrowed bytes; returns when they are no longer needed.
    fn write_blocking(&self, dst: &BufferSlice, src: &[u8]) -> Result<()> {
        self.write(dst, src.into())
    }
    /// Copies from the device into borrowed memory; returns when it is there.
    fn read_blocking(&self, src: &BufferSlice, dst: &mut [u8]) -> Result<()>;
    /// Copies from the device into memory that the operation owns until the returned event is done.
    fn read(&self, src: &BufferSlice, dst: HostTarget) -> Result<()>;
    /// Copies within the device; the ranges do not overlap.
    fn copy(&self, dst: &BufferSlice, src: &BufferSlice) -> Result<()>;
    /// Repeats `pattern` (1, 2, 4 or 8 bytes, of which the length is a multiple).
    fn fill(&self, dst: &BufferSlice, pattern: &[u8]) -> Result<()>;
    /// Runs a kernel over a grid.
    fn launch(&self, kernel: &Kernel, grid: [u32; 3], args: &[Arg]) -> Result<()>;
    /// Replays recorded commands. The default enqueues them one by one.
    fn replay(&self, list: &CommandList, buffers: &[Binding], scalars: &[Scalar]) -> Result<()> {
        list.enqueue(buffers, scalars, |command| match command {
            Command::Copy { dst, src } => self.copy(&dst, &src),
            Command::Fill { dst, pattern } => self.fill(&dst, &pattern),
            Command::Launch { kernel, grid, args } => self.launch(&kernel, grid, &args),
        })
    }
    /// A new event behind everything enqueued so far.
    fn record(&self) -> Result<Box<dyn Event>>;
    /// Holds later work back until `event`, of the same device, is done. Does not block the caller.
    fn wait(&self, event: &crate::Event) -> Result<()>;
    /// Blocks until everything enqueued is done.
    fn synchronize(&self, timeout: Option<Duration>) -> Result<()>;
    /// Forgets a failure after everything enqueued has been skipped.
    fn reset(&self) -> Result<()>;
}

/// A point on a stream. See [`crate::Event`].
pub trait Event: Any + Send + Sync {
    /// Whether it has been reached; the first failure before it otherwise.
    fn is_done(&self) -> Result<bool>;
    /// Blocks until it is reached.
    fn wait(&self, timeout: Option<Duration>) -> Result<()>;
    /// Device time since `earlier`, an event of the same device.
    fn elapsed_since(&self, earlier: &crate::Event) -> Result<Duration>;
}

pub use crate::host::{HostBytes, HostTarget};
