//! Memory of a device, and the ranges of it that commands use.
//!
//! | kind | is | the host addresses it |
//! | --- | --- | --- |
//! | device | a buffer | no |
//! | host-visible | a buffer over fine-grained shared virtual memory (OpenCL 2.0); where there is none, unsupported | yes |
//! | pinned | the same, or else host memory that the driver allocated and keeps mapped | yes |
//! | imported | a buffer over the caller's memory, where the device is a processor; elsewhere, unsupported | yes |
//!
//! A buffer that is mapped may not be used by commands (OpenCL 1.2 specification, section 5.4.2.1), so that pinned memory
//! of the second sort is only ever the host's side of a copy. Nor may a host-visible buffer stay mapped while kernels run,
//! and its users expect one address that is always valid: hence shared virtual memory or none. A driver may keep a copy of
//! the host's memory that it was given (section 5.2.1), and only a processor, which would have to keep it in the same
//! memory, has no reason to: so it alone imports.
//!
//! Kernels get ranges as sub-buffers. Those that overlap may not be written at the same time (section 5.2.1); that holds
//! since concurrent work on overlapping ranges is the user's error already (streams and events order it), and the pool
//! never hands out overlapping ranges. Transfers name the buffer with an offset, which needs no alignment: a context here
//! has one device, so that the driver has no second copy of a buffer to bring up to date.

use crate::api::{Mem, Waits};
use crate::device::{DeviceShared, lock};
use crate::library::Library;
use halite_hal::{Buffer, BufferSlice, Error, ErrorKind, HostMemory, MemoryKind, Result};
use ocl::ffi::{self, c_void, cl_uint};
use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

/// Ranges that a buffer remembers as objects; a plan that is run again uses the same ones.
const MAX_PARTS: usize = 1024;

type Allocate = unsafe extern "system" fn(ffi::cl_context, u64, usize, cl_uint) -> *mut c_void;
type Free = unsafe extern "system" fn(ffi::cl_context, *mut c_void);

/// The functions of shared virtual memory, which are OpenCL 2.0's: the bindings for 1.2 lack them.
#[derive(Clone, Copy)]
pub(crate) struct SharedMemoryCalls {
    allocate: Allocate,
    free: Free,
}

impl SharedMemoryCalls {
    pub(crate) fn find(library: &Library) -> Option<Self> {
        let (allocate, free) = (library.symbol(c"clSVMAlloc"), library.symbol(c"clSVMFree"));
        if allocate.is_null() || free.is_null() {
            return None;
        }
        // SAFETY: these are the types that OpenCL 2.0 gives the two names (section 5.6).
        unsafe {
            Some(Self {
                allocate: std::mem::transmute::<*mut c_void, Allocate>(allocate),
                free: std::mem::transmute::<*mut c_void, Free>(free),
            })
        }
    }
}

/// The object inside a [`Buffer`]; frees its memory when dropped.
pub(crate) struct DeviceMemory {
    backing: Backing,
    len_bytes: u64,
    /// Sub-buffers that kernels have used, by offset and length.
    parts: Mutex<HashMap<(usize, usize), Arc<Mem>>>,
    // After what was made of it.
    device: Arc<DeviceShared>,
}

enum Backing {
    /// Zero bytes, of which OpenCL knows nothing.
    Nothing,
    Buffer(Mem),
    /// A buffer over memory that the host addresses too.
    Shared(Mem, *mut c_void),
    /// Host memory, mapped for as long as it lives; its buffer is used by no command.
    Mapped(Mem, *mut c_void),
    /// The caller's memory with a buffer over it, which zero bytes have none of. It is not the device's to count.
    Imported(Option<Mem>, HostMemory),
}

// SAFETY: the addresses are only handed out and, when dropped, given back; whoever dereferences them answers for the
// order (see `Buffer::host_pointer`).
unsafe impl Send for DeviceMemory {}
// SAFETY: as above.
unsafe impl Sync for DeviceMemory {}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // Parts go before the buffer that they are of, the buffer before the memory below it.
        lock(&self.parts).clear();
        match std::mem::replace(&mut self.backing, Backing::Nothing) {
            Backing::Nothing | Backing::Buffer(_) => {}
            Backing::Imported(mem, memory) => {
                drop(mem);
                drop(memory);
                return;
            }
            Backing::Shared(mem, address) => {
                drop(mem);
                if let Some(calls) = self.device.shared_memory {
                    // SAFETY: the address came from the call's counterpart, in the same context; nothing uses it any
                    // more, for the last handle is gone, and work in flight holds one.
                    unsafe { (calls.free)(self.device.context.raw(), address) };
                }
            }
            Backing::Mapped(mem, address) => {
                // The service queue holds nothing else, and some drivers free memory whose unmapping is under way.
                let given_back = self.device.on_service_queue(|queue| {
                    queue.unmap(&mem, address)?;
                    queue.finish()
                });
                if let Err(error) = given_back {
                    log::debug!("{}: {error}", self.device.info().id);
                }
            }
        }
        self.device.release(self.len_bytes);
    }
}

pub(crate) fn allocate(device: &Arc<DeviceShared>, len_bytes: u64, kind: MemoryKind) -> Result<Buffer> {
    device.reserve(len_bytes)?;
    // From here on the account is settled by its drop.
    let mut memory = DeviceMemory {
        backing: Backing::Nothing,
        len_bytes,
        parts: Mutex::default(),
        device: device.clone(),
    };
    // The limits that the handle has checked lie within the host's address range.
    let len = len_bytes as usize;
    let attempt = || match (kind, device.shared_memory) {
        (MemoryKind::Device, _) if len == 0 => Ok(Backing::Nothing),
        (MemoryKind::Device, _) => allocate_device(device, len),
        (MemoryKind::HostVisible | MemoryKind::Pinned, Some(_)) if len == 0 => Ok(Backing::Nothing),
        (MemoryKind::HostVisible | MemoryKind::Pinned, Some(calls)) => allocate_shared(device, calls, len),
        (MemoryKind::Pinned, None) if len == 0 => Ok(Backing::Nothing),
        (MemoryKind::Pinned, None) => allocate_mapped(device, len),
        _ => Err(Error::unsupported(format!(
            "the device has no {kind:?} memory: OpenCL 2.0's fine-grained shared memory is needed; use device memory"
        ))),
    };
    let is_full = |error: &Error| {
        matches!(error.kind(), ErrorKind::OutOfMemory { .. })
            || matches!(error.kind(), ErrorKind::Backend { code, .. } if *code == crate::error::OUT_OF_RESOURCES.into())
    };
    let result = match attempt() {
        Err(error) if is_full(&error) && device.finish_in_flight() => attempt(),
        result => result,
    };
    memory.backing = result.map_err(|error| {
        let call = error.call().unwrap_or("clCreateBuffer").to_owned();
        match error.kind() {
            _ if is_full(&error) => device.out_of_memory(len_bytes, error.message()).in_call(call),
            ErrorKind::TooLarge { .. } => {
                let limit = device.info().limits.max_allocation_bytes;
                let kind = ErrorKind::TooLarge { requested: len_bytes, limit };
                Error::new(kind, format!("{len_bytes} bytes: {}", error.message())).in_call(call)
            }
            _ => error,
        }
    })?;
    let host = match memory.backing {
        Backing::Shared(_, address) | Backing::Mapped(_, address) => NonNull::new(address.cast()),
        Backing::Nothing | Backing::Buffer(_) | Backing::Imported(..) => None,
    };
    Ok(Buffer::new(device.info().id.clone(), kind, len_bytes, host, Box::new(memory)))
}

pub(crate) fn import(device: &Arc<DeviceShared>, memory: &HostMemory) -> Result<Buffer> {
    device.check()?;
    let (first, len) = (memory.as_ptr(), memory.len_bytes());
    let mem = match len {
        0 => None,
        // SAFETY: the backing holds the memory, and lets the buffer go first.
        _ => Some(
            device.noting_loss(unsafe { device.context.create_buffer_over(first.as_ptr().cast(), len) })?,
        ),
    };
    let object = DeviceMemory {
        backing: Backing::Imported(mem, memory.clone()),
        len_bytes: len as u64,
        parts: Mutex::default(),
        device: device.clone(),
    };
    let id = device.info().id.clone();
    Ok(Buffer::new(id, MemoryKind::HostVisible, len as u64, Some(first), Box::new(object)))
}

/// A buffer of zeros. OpenCL leaves fresh memory undefined, which may be what another process left behind.
fn allocate_device(device: &DeviceShared, len: usize) -> Result<Backing> {
    if device.found.is_processor {
        // There the driver copies at once, and no kernel in flight keeps this from ending.
        let zeros = zeros(len).ok_or_else(|| no_room("the host has no memory for its zeros"))?;
        return device.context.create_buffer_of(&zeros).map(Backing::Buffer);
    }
    let mem = device.context.create_buffer(ffi::CL_MEM_READ_WRITE, len)?;
    // The longest pattern that divides the length: some drivers loop over patterns.
    let pattern = &[0; 16][..1 << len.trailing_zeros().min(4)];
    device.on_service_queue(|queue| {
        queue.fill((&mem, 0), len, pattern, &Waits::new(&[]))?;
        queue.finish()
    })?;
    Ok(Backing::Buffer(mem))
}

/// `len` zeros, at least one; none when the host is full. The system's zeros, of which no page is touched.
pub(crate) fn zeros(len: usize) -> Option<Box<[u8]>> {
    let layout = std::alloc::Layout::array::<u8>(len).ok()?;
    // SAFETY: the layout has a size.
    let start = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })?;
    // SAFETY: fresh memory of the layout that a box of so many bytes gives back.
    Some(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(start.as_ptr(), len)) })
}

/// Numbers are added by the caller.
fn no_room(reason: &str) -> Error {
    Error::new(ErrorKind::OutOfMemory { requested: 0, free: 0 }, reason)
}

fn allocate_shared(device: &DeviceShared, calls: SharedMemoryCalls, len: usize) -> Result<Backing> {
    /// `CL_MEM_SVM_FINE_GRAIN_BUFFER`
    const FINE_GRAINED: u64 = 1 << 10;
    let flags = ffi::CL_MEM_READ_WRITE | FINE_GRAINED;
    // SAFETY: the context is alive; an alignment of 0 is the device's own.
    let address = unsafe { (calls.allocate)(device.context.raw(), flags, len, 0) };
    if address.is_null() {
        return Err(no_room("the driver gives no shared memory").in_call("clSVMAlloc"));
    }
    // SAFETY: `len` fresh bytes, which nobody else knows of.
    unsafe { address.cast::<u8>().write_bytes(0, len) };
    // SAFETY: the memory is freed after the buffer (see `drop`).
    match unsafe { device.context.create_buffer_over(address, len) } {
        Ok(mem) => Ok(Backing::Shared(mem, address)),
        Err(error) => {
            // SAFETY: the address came from the call's counterpart, and nothing uses it.
            unsafe { (calls.free)(device.context.raw(), address) };
            Err(error)
        }
    }
}

fn allocate_mapped(device: &DeviceShared, len: usize) -> Result<Backing> {
    let mem = device.context.create_buffer(ffi::CL_MEM_READ_WRITE | ffi::CL_MEM_ALLOC_HOST_PTR, len)?;
    let address = device.on_service_queue(|queue| queue.map(&mem, len))?;
    if address.is_null() {
        return Err(Error::bad_format("the driver maps to no address").in_call("clEnqueueMapBuffer"));
    }
    // SAFETY: `len` bytes that are mapped for writing, which nobody else knows of.
    unsafe { address.cast::<u8>().write_bytes(0, len) };
    Ok(Backing::Mapped(mem, address))
}

/// Where a transfer reads or writes.
#[derive(Clone, Copy)]
pub(crate) enum Place<'a> {
    /// From an offset of a buffer.
    Device(&'a Mem, usize),
    /// From an address of the host. Whoever makes one holds the memory until the transfer is over.
    Host(*mut u8),
}

/// The place of a range that has at least one byte.
pub(crate) fn place(slice: &BufferSlice) -> Result<Place<'_>> {
    let offset = slice.offset() as usize;
    match &memory(slice)?.backing {
        Backing::Buffer(mem) | Backing::Shared(mem, _) | Backing::Imported(Some(mem), _) => {
            Ok(Place::Device(mem, offset))
        }
        // SAFETY: the range lies inside of the mapped bytes by construction of a slice.
        Backing::Mapped(_, address) => Ok(Place::Host(unsafe { address.cast::<u8>().add(offset) })),
        Backing::Nothing | Backing::Imported(None, _) => {
            Err(Error::invalid("a range of a buffer without bytes has none to transfer"))
        }
    }
}

/// The range as a kernel's argument.
#[derive(Clone)]
pub(crate) enum Argument {
    Whole(Buffer),
    Part(Arc<Mem>),
}

impl Argument {
    pub(crate) fn of(slice: &BufferSlice) -> Result<Self> {
        let memory = memory(slice)?;
        if slice.len_bytes() == 0 {
            return Ok(Self::Part(memory.device.empty()?));
        }
        let mem = match &memory.backing {
            Backing::Buffer(mem) | Backing::Shared(mem, _) | Backing::Imported(Some(mem), _) => mem,
            Backing::Mapped(..) | Backing::Nothing | Backing::Imported(None, _) => {
                return Err(Error::unsupported(
                    "this device's kernels cannot use pinned memory; copy it to device memory first",
                ));
            }
        };
        if slice.len_bytes() == memory.len_bytes {
            return Ok(Self::Whole(slice.buffer().clone()));
        }
        let key = (slice.offset() as usize, slice.len_bytes() as usize);
        let mut parts = lock(&memory.parts);
        if let Some(part) = parts.get(&key) {
            return Ok(Self::Part(part.clone()));
        }
        let part = Arc::new(mem.create_part(key.0, key.1)?);
        if parts.len() >= MAX_PARTS {
            // What work in flight uses, it holds.
            parts.clear();
        }
        parts.insert(key, part.clone());
        Ok(Self::Part(part))
    }

    pub(crate) fn mem(&self) -> Result<&Mem> {
        match self {
            Self::Part(part) => Ok(part),
            Self::Whole(buffer) => match buffer.object::<DeviceMemory>().map(|memory| &memory.backing) {
                Some(Backing::Buffer(mem) | Backing::Shared(mem, _) | Backing::Imported(Some(mem), _)) => {
                    Ok(mem)
                }
                _ => Err(foreign(buffer)),
            },
        }
    }
}

fn memory(slice: &BufferSlice) -> Result<&DeviceMemory> {
    slice.buffer().object::<DeviceMemory>().ok_or_else(|| foreign(slice.buffer()))
}

fn foreign(buffer: &Buffer) -> Error {
    Error::invalid(format!("{buffer:?} was not made by this backend; allocate it on the device"))
}
