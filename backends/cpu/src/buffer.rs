//! Host memory as device memory.

use crate::error;
use halite_hal::{Buffer, BufferSlice, DeviceId, HostMemory, MemoryInfo, MemoryKind, Result};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The memory that a device may hand out, and how much of it is in buffers.
#[derive(Debug)]
pub(crate) struct Memory {
    limit_bytes: u64,
    used_bytes: AtomicU64,
    buffers: AtomicU64,
}

/// Memory of a buffer, which is given back when this is dropped.
#[derive(Debug)]
pub(crate) struct CpuBuffer {
    first: NonNull<u8>,
    /// Held for its drop.
    _owner: Owner,
}

/// Whose the memory is.
#[derive(Debug)]
enum Owner {
    Own(#[expect(dead_code, reason = "held for its drop")] Allocation),
    /// The caller's, used in place.
    Imported(#[expect(dead_code, reason = "held for its drop")] HostMemory),
}

/// One allocation, zeroed at the start. Its address is a multiple of [`ALIGN_BYTES`].
#[derive(Debug)]
struct Allocation {
    block: Option<Block>,
    len_bytes: u64,
    memory: Arc<Memory>,
}

/// What the system's allocator gave.
type Block = (NonNull<u8>, Layout);

/// What imported memory begins at: kernels ask for the alignment of their elements, of which this is the largest.
pub(crate) const IMPORT_ALIGN_BYTES: usize = 8;

/// A pair of cache lines: what the prefetchers of today's processors fetch together, and two AVX-512 vectors.
pub(crate) const ALIGN_BYTES: usize = 128;

/// From this size on buffers start on a page of their own.
const PAGED_FROM_BYTES: usize = 64 << 10;
const PAGE_BYTES: usize = 4096;

// SAFETY: the block is owned by this value alone; the stream that uses its contents orders the accesses.
unsafe impl Send for Allocation {}
// SAFETY: as above; nothing is read or written through a shared reference to this value.
unsafe impl Sync for Allocation {}
// SAFETY: the address leads into what the owner keeps, which may be sent; streams order the accesses.
unsafe impl Send for CpuBuffer {}
// SAFETY: as above.
unsafe impl Sync for CpuBuffer {}

impl Memory {
    pub(crate) fn new(limit_bytes: u64) -> Self {
        Self { limit_bytes, used_bytes: AtomicU64::new(0), buffers: AtomicU64::new(0) }
    }

    pub(crate) fn info(&self) -> MemoryInfo {
        let used_bytes = self.used_bytes.load(Ordering::Relaxed);
        MemoryInfo {
            used_bytes,
            free_bytes: self.limit_bytes.saturating_sub(used_bytes),
            total_bytes: self.limit_bytes,
            buffers: self.buffers.load(Ordering::Relaxed),
        }
    }

    /// Allocates zeros. All kinds are the same memory here, so each of them shows its address.
    pub(crate) fn allocate(
        self: &Arc<Self>,
        device: &DeviceId,
        len_bytes: u64,
        kind: MemoryKind,
    ) -> Result<Buffer> {
        let reserve = |used: u64| used.checked_add(len_bytes).filter(|sum| *sum <= self.limit_bytes);
        self.used_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, reserve).map_err(|used| {
            error::out_of_memory("device memory", len_bytes, self.limit_bytes.saturating_sub(used))
        })?;
        self.buffers.fetch_add(1, Ordering::Relaxed);
        // From here on dropping the value gives the reservation back.
        let mut allocation = Allocation { block: None, len_bytes, memory: self.clone() };
        let mut first = dangling();
        if len_bytes > 0 {
            let failed = || error::out_of_memory("host memory", len_bytes, 0);
            let (start, block) =
                usize::try_from(len_bytes).ok().and_then(allocate_zeroed).ok_or_else(failed)?;
            (first, allocation.block) = (start, Some(block));
        }
        let buffer = CpuBuffer { first, _owner: Owner::Own(allocation) };
        Ok(Buffer::new(device.clone(), kind, len_bytes, Some(first), Box::new(buffer)))
    }
}

/// A buffer over the caller's memory.
pub(crate) fn import(device: &DeviceId, memory: &HostMemory) -> Buffer {
    let (first, len_bytes) = (memory.as_ptr(), memory.len_bytes() as u64);
    let buffer = CpuBuffer { first, _owner: Owner::Imported(memory.clone()) };
    Buffer::new(device.clone(), MemoryKind::HostVisible, len_bytes, Some(first), Box::new(buffer))
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if let Some((block, layout)) = self.block {
            // SAFETY: `allocate_zeroed` returned this block with this layout, and it is freed only here.
            unsafe { dealloc(block.as_ptr(), layout) };
        }
        self.memory.used_bytes.fetch_sub(self.len_bytes, Ordering::Relaxed);
        self.memory.buffers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The address of a slice's first byte, valid for its length; dangling but aligned when it is empty.
pub(crate) fn address(slice: &BufferSlice) -> Result<*mut u8> {
    let buffer: &CpuBuffer = slice.buffer().object().ok_or_else(|| error::foreign("buffer"))?;
    if slice.len_bytes() == 0 {
        return Ok(dangling().as_ptr());
    }
    // In bounds by the construction of `BufferSlice`, so the offset fits `usize` as the whole buffer does.
    Ok(buffer.first.as_ptr().wrapping_add(slice.offset() as usize))
}

fn dangling() -> NonNull<u8> {
    NonNull::without_provenance(std::num::NonZero::new(ALIGN_BYTES).expect("the alignment is not zero"))
}

/// Zeroed memory: an aligned address inside of a block, and the block. `None` when the system has none.
fn allocate_zeroed(len: usize) -> Option<(NonNull<u8>, Block)> {
    // Large blocks are asked for without alignment and cut to it: so the system hands out its untouched zero
    // pages, where an aligned request would be cleared byte by byte.
    let (padding, align, cut) =
        if len < PAGED_FROM_BYTES { (0, ALIGN_BYTES, ALIGN_BYTES) } else { (PAGE_BYTES, 16, PAGE_BYTES) };
    let layout = Layout::from_size_align(len.checked_add(padding)?, align).ok()?;
    // SAFETY: `len` is not zero (the only caller checked), so the layout's size is not zero either.
    let block = NonNull::new(unsafe { alloc_zeroed(layout) })?;
    let gap = block.as_ptr().align_offset(cut);
    debug_assert!(gap <= padding);
    // SAFETY: the gap to the next multiple of the page is at most the padding, so `len` bytes follow in the block.
    let first = unsafe { block.add(gap) };
    Some((first, (block, layout)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use halite_hal::ErrorKind;

    fn id() -> DeviceId {
        DeviceId::new("cpu", 0)
    }

    #[test]
    fn buffers_are_aligned_zeroed_and_counted() {
        let memory = Arc::new(Memory::new(1 << 30));
        for len in [1, 63, 127, 4097, PAGED_FROM_BYTES as u64 - 1, PAGED_FROM_BYTES as u64, (1 << 20) + 7] {
            let buffer = memory.allocate(&id(), len, MemoryKind::Device).unwrap();
            let first = buffer.host_pointer().unwrap();
            assert_eq!(first.as_ptr().align_offset(ALIGN_BYTES), 0);
            // SAFETY: the buffer has `len` bytes and nothing else uses it.
            let bytes = unsafe { std::slice::from_raw_parts_mut(first.as_ptr(), len as usize) };
            assert!(bytes.iter().all(|byte| *byte == 0));
            bytes.fill(0xff);
            assert_eq!(memory.info().used_bytes, len);
        }
        assert_eq!((memory.info().used_bytes, memory.info().buffers), (0, 0));
    }

    #[test]
    fn an_empty_buffer_takes_no_bytes_and_has_an_aligned_address() {
        let memory = Arc::new(Memory::new(0));
        let buffer = memory.allocate(&id(), 0, MemoryKind::Pinned).unwrap();
        assert_eq!(address(&buffer.all()).unwrap().align_offset(ALIGN_BYTES), 0);
        assert_eq!((memory.info().buffers, memory.info().free_bytes), (1, 0));
    }

    #[test]
    fn a_full_device_reports_what_is_free_and_recovers() {
        let memory = Arc::new(Memory::new(100));
        let first = memory.allocate(&id(), 60, MemoryKind::Device).unwrap();
        let error = memory.allocate(&id(), 41, MemoryKind::Device).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::OutOfMemory { requested: 41, free: 40 });
        drop(first);
        assert!(memory.allocate(&id(), 100, MemoryKind::Device).is_ok());
    }

    #[test]
    fn a_size_that_the_system_refuses_is_an_error_and_leaves_nothing_behind() {
        let memory = Arc::new(Memory::new(u64::MAX));
        for len in [u64::MAX, i64::MAX as u64, 1 << 62] {
            let error = memory.allocate(&id(), len, MemoryKind::Device).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::OutOfMemory { .. }), "{error}");
        }
        assert_eq!((memory.info().used_bytes, memory.info().buffers), (0, 0));
    }
}
