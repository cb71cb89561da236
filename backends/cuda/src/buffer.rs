//! Memory of a device, and host memory that the device reaches.
//!
//! | kind | is | the host addresses it |
//! | --- | --- | --- |
//! | device | `cuMemAllocAsync`; `cuMemAlloc` where the device has no such memory | no |
//! | host-visible, pinned | `cuMemHostAlloc`, mapped: the device reads and writes it over the bus, without staging | yes |
//! | imported | the caller's memory, pinned and mapped by `cuMemHostRegister`, and used in the same way | yes |
//!
//! Device memory comes from the driver's stream-ordered allocator, on a stream of its own, not for its caching, which the
//! layer's pool above does, but because its calls do not wait for the device: `cuMemFree` waits until everything that runs
//! is over, and holds up other threads' launches meanwhile. Whatever has only such calls is freed on the reaper's thread.
//!
//! Host-visible memory is not managed memory: that must not be touched here while any kernel runs, on Windows and on
//! integrated devices, which is more than the layer asks of its users.

use crate::api::Address;
use crate::device::{DeviceShared, Remains};
use crate::error::HOST_MEMORY_ALREADY_REGISTERED;
use halite_hal::{Buffer, BufferSlice, Error, ErrorKind, HostMemory, MemoryKind, Result};
use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::sync::Arc;

/// The object inside a [`Buffer`]; frees its memory when dropped, which by then no enqueued work uses.
pub(crate) struct DeviceMemory {
    pub(crate) device: Arc<DeviceShared>,
    /// 0 for zero bytes, of which the driver knows nothing.
    address: Address,
    host: Option<HostAddress>,
    len_bytes: u64,
    /// The caller's memory, which is not the device's to count.
    imported: Option<HostMemory>,
}

/// Imported memory begins at a page: the driver pins whole ones, and no page twice.
pub(crate) const IMPORT_ALIGN_BYTES: u64 = 4096;

/// Where pinned memory lies for the host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HostAddress(pub(crate) NonNull<u8>);
// SAFETY: the address is only handed out and, at the end, given back; whoever dereferences it answers for the order.
unsafe impl Send for HostAddress {}
// SAFETY: as above.
unsafe impl Sync for HostAddress {}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if let Some(memory) = self.imported.take() {
            if self.address != 0 {
                self.device.bury(Remains::Imported(ManuallyDrop::new(memory)));
            }
            return;
        }
        self.device.account.remove(self.len_bytes);
        if self.address == 0 {
            return;
        }
        match self.host {
            Some(host) => self.device.bury(Remains::Host(host)),
            None if self.device.properties.has_ordered_memory => {
                // A context that cannot be entered is lost, and its memory with it.
                if let Ok(gpu) = self.device.context.enter() {
                    gpu.memory_free_ordered(self.device.memory_stream, self.address);
                }
            }
            None => self.device.bury(Remains::Memory(self.address)),
        }
    }
}

pub(crate) fn allocate(device: &Arc<DeviceShared>, len_bytes: u64, kind: MemoryKind) -> Result<Buffer> {
    let of_host = match kind {
        MemoryKind::Device => false,
        MemoryKind::HostVisible | MemoryKind::Pinned => true,
        other => return Err(Error::unsupported(format!("no {other:?} memory; use device memory"))),
    };
    let len = usize::try_from(len_bytes).map_err(|_| {
        let limit = usize::MAX as u64;
        Error::new(ErrorKind::TooLarge { requested: len_bytes, limit }, "more bytes than there are addresses")
    })?;
    let (address, host) = match (len, of_host) {
        (0, false) => (0, None),
        (0, true) => (0, Some(NonNull::dangling())),
        _ => allocate_bytes(device, len, of_host)?,
    };
    device.account.add(len_bytes);
    let host_address = host.map(HostAddress);
    let memory =
        DeviceMemory { device: device.clone(), address, host: host_address, len_bytes, imported: None };
    if len > 0 && !of_host {
        // Fresh memory may hold what another process left; the layer promises that it never shows. Behind this wait,
        // the memory is there for every stream.
        device.call(|gpu| {
            gpu.set(device.memory_stream, address, 0, 1, len)?;
            gpu.stream_synchronize(device.memory_stream)
        })?;
    }
    Ok(Buffer::new(device.info.id.clone(), kind, len_bytes, host, Box::new(memory)))
}

/// A buffer over the caller's memory.
pub(crate) fn import(device: &Arc<DeviceShared>, memory: &HostMemory) -> Result<Buffer> {
    let (first, len) = (memory.as_ptr(), memory.len_bytes());
    let address = match len {
        0 => 0,
        _ => device.call(|gpu| gpu.host_register(memory)).map_err(|error| match error.kind() {
            ErrorKind::Backend { code, .. } if *code == i64::from(HOST_MEMORY_ALREADY_REGISTERED) => {
                Error::invalid(
                    "the driver has pinned this memory already; import it once, and clone the buffer",
                )
                .in_call("cuMemHostRegister_v2")
            }
            _ => error,
        })?,
    };
    let object = DeviceMemory {
        device: device.clone(),
        address,
        host: Some(HostAddress(first)),
        len_bytes: len as u64,
        imported: Some(memory.clone()),
    };
    let id = device.info.id.clone();
    Ok(Buffer::new(id, MemoryKind::HostVisible, len as u64, Some(first), Box::new(object)))
}

/// Allocates, and once more after what is in flight has given its memory back.
fn allocate_bytes(
    device: &Arc<DeviceShared>,
    len: usize,
    of_host: bool,
) -> Result<(Address, Option<NonNull<u8>>)> {
    let attempt = || {
        device.call(|gpu| {
            if of_host {
                let (host, address) = gpu.host_alloc(len)?;
                return Ok((address, Some(host)));
            }
            if device.properties.has_ordered_memory {
                return Ok((gpu.memory_alloc_ordered(device.memory_stream, len)?, None));
            }
            Ok((gpu.memory_alloc(len)?, None))
        })
    };
    let is_full = |error: &Error| matches!(error.kind(), ErrorKind::OutOfMemory { .. });
    let result = match attempt() {
        Err(error) if is_full(&error) => {
            device.finish_in_flight();
            attempt()
        }
        result => result,
    };
    result.map_err(|error| {
        if !is_full(&error) {
            return error;
        }
        let requested = len as u64;
        let free = device.call(|gpu| gpu.memory_info()).map_or(0, |(free, _)| free);
        let message = format!("{requested} bytes asked for, {free} free on the device: {}", error.message());
        let call = error.call().unwrap_or("cuMemAlloc_v2").to_owned();
        Error::new(ErrorKind::OutOfMemory { requested, free }, message).in_call(call)
    })
}

/// A range as the driver sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) address: Address,
    /// Whether it is the device's own memory.
    pub(crate) is_of_device: bool,
}

impl Place {
    /// The place `offset` bytes further on.
    pub(crate) fn at(self, offset: usize) -> Self {
        Self { address: self.address + offset as Address, ..self }
    }
}

/// Where a range lies.
///
/// # Errors
/// `InvalidArgument` for memory of another backend.
pub(crate) fn place(slice: &BufferSlice) -> Result<Place> {
    let memory = memory(slice)?;
    Ok(Place { address: memory.address + slice.offset(), is_of_device: memory.host.is_none() })
}

/// The memory that a range lies in.
pub(crate) fn memory(slice: &BufferSlice) -> Result<&DeviceMemory> {
    slice.buffer().object::<DeviceMemory>().ok_or_else(|| {
        Error::invalid(format!(
            "{:?} was not made by this backend; allocate it on the device",
            slice.buffer()
        ))
    })
}
