//! Memory of a plugin's device.

use crate::device::DeviceShared;
use halite_hal::plugin::{self, MemoryHandle};
use halite_hal::{Buffer, BufferSlice, Error, ErrorKind, HostMemory, MemoryKind, Result};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What `halite_plugin.h` demands of every allocation.
const MIN_ALIGNMENT_BYTES: u64 = 64;

/// Frees its memory when dropped; by then no enqueued work holds a handle to the buffer any more.
pub(crate) struct DeviceMemory {
    pub(crate) device: Arc<DeviceShared>,
    /// 0 for a buffer of zero bytes, of which the plugin knows nothing.
    pub(crate) handle: MemoryHandle,
    len_bytes: u64,
    /// The host's address of it, if the host may use it.
    mapped_at: Option<u64>,
    /// The caller's memory, which is not the device's to count.
    imported: Option<HostMemory>,
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if self.imported.is_none() {
            self.device.used_bytes.fetch_sub(self.len_bytes, Ordering::Relaxed);
            self.device.buffers.fetch_sub(1, Ordering::Relaxed);
        }
        if let Some(start) = self.mapped_at {
            self.device.host_ranges.remove(start);
        }
        if self.handle != 0 {
            self.device.memory_handles.remove(self.handle);
            self.device.library.memory_free(self.device.handle, self.handle);
        }
        if self.device.is_stuck() {
            // The plugin was not asked to let go of it, and may be in the middle of using it.
            std::mem::forget(self.imported.take());
        }
    }
}

pub(crate) fn allocate(device: &Arc<DeviceShared>, len_bytes: u64, kind: MemoryKind) -> Result<Buffer> {
    let code = match kind {
        MemoryKind::Device => plugin::MEMORY_DEVICE,
        MemoryKind::HostVisible => plugin::MEMORY_HOST_VISIBLE,
        MemoryKind::Pinned => plugin::MEMORY_PINNED,
        _ => return Err(unsupported(device, kind)),
    };
    if device.memory_kinds & (1 << code) == 0 {
        return Err(unsupported(device, kind));
    }
    device.check()?;
    let (handle, host) = if len_bytes == 0 { (0, None) } else { allocate_bytes(device, len_bytes, code)? };
    device.used_bytes.fetch_add(len_bytes, Ordering::Relaxed);
    device.buffers.fetch_add(1, Ordering::Relaxed);
    // From here on, dropping it frees the memory.
    let mut memory =
        DeviceMemory { device: device.clone(), handle, len_bytes, mapped_at: None, imported: None };
    if len_bytes > 0 && code != plugin::MEMORY_DEVICE {
        memory.mapped_at = Some(check_address(device, host, len_bytes)?);
    }
    Ok(Buffer::new(device.info.id.clone(), kind, len_bytes, host, Box::new(memory)))
}

/// A buffer over the caller's memory.
pub(crate) fn import(device: &Arc<DeviceShared>, memory: &HostMemory) -> Result<Buffer> {
    device.check()?;
    let (first, len_bytes) = (memory.as_ptr(), memory.len_bytes() as u64);
    let handle = match len_bytes {
        0 => 0,
        _ => {
            // SAFETY: the buffer's object holds the memory until the handle has been given back; work in flight holds
            // the buffer. Where the plugin cannot be asked any more, the memory is kept for good (`drop`).
            let handle = device.noting_loss(unsafe {
                device.library.memory_import(device.handle, first.as_ptr(), len_bytes)
            })?;
            device.library.fresh(device.memory_handles.add(handle), handle, "memory_import")?
        }
    };
    let object = DeviceMemory {
        device: device.clone(),
        handle,
        len_bytes,
        mapped_at: None,
        imported: Some(memory.clone()),
    };
    let id = device.info.id.clone();
    Ok(Buffer::new(id, MemoryKind::HostVisible, len_bytes, Some(first), Box::new(object)))
}

/// Allocates, and once more after what is in flight has given its memory back.
fn allocate_bytes(
    device: &DeviceShared,
    len_bytes: u64,
    code: u32,
) -> Result<(MemoryHandle, Option<NonNull<u8>>)> {
    let attempt = || device.library.memory_alloc(device.handle, code, len_bytes);
    let full = |error: &Error| matches!(error.kind(), ErrorKind::OutOfMemory { .. });
    let result = match attempt() {
        Err(error) if full(&error) && device.finish_in_flight() => attempt(),
        result => result,
    };
    let (handle, host) = device.noting_loss(result).map_err(|error| {
        if !full(&error) {
            return error;
        }
        let free = device.library.memory_info(device.handle).map_or(0, |info| info.free_bytes);
        let message = format!("{len_bytes} bytes asked for, {free} free: {}", error.message());
        let kind = ErrorKind::OutOfMemory { requested: len_bytes, free };
        Error::new(kind, message).in_call(error.call().unwrap_or("memory_alloc"))
    })?;
    let handle = device.library.fresh(device.memory_handles.add(handle), handle, "memory_alloc")?;
    // Only what the host may address is passed on.
    let host = if code == plugin::MEMORY_DEVICE { None } else { NonNull::new(host.cast()) };
    Ok((handle, host))
}

/// The host's address of new memory, which nothing else has.
fn check_address(device: &DeviceShared, host: Option<NonNull<u8>>, len_bytes: u64) -> Result<u64> {
    let breach = |what: String| Err(device.library.breach(format_args!("gives host-visible memory {what}")));
    let Some(pointer) = host else { return breach("without an address".into()) };
    let start = pointer.addr().get() as u64;
    let alignment = device.info.limits.offset_alignment_bytes.max(MIN_ALIGNMENT_BYTES);
    if !start.is_multiple_of(alignment) {
        return breach(format!("at {start:#x}, which is not aligned to {alignment} bytes"));
    }
    match start.checked_add(len_bytes) {
        Some(end) if end <= usize::MAX as u64 && device.host_ranges.add(start, end) => Ok(start),
        Some(_) => breach(format!("at {start:#x} that overlaps other memory of the device")),
        None => breach(format!("at {start:#x} that goes beyond the last address")),
    }
}

/// The plugin's name for the range: memory and first byte.
pub(crate) fn place(slice: &BufferSlice) -> Result<(MemoryHandle, u64)> {
    Ok((memory(slice)?.handle, slice.offset()))
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

fn unsupported(device: &DeviceShared, kind: MemoryKind) -> Error {
    Error::unsupported(format!(
        "the plugin '{}' offers no {kind:?} memory; use device memory",
        device.library.name
    ))
}
