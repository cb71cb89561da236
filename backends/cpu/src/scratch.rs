//! Scratch memory of kernels: one block per thread, which only grows.

use crate::buffer::ALIGN_BYTES;
use crate::error;
use halite_hal::Result;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::Cell;
use std::ptr::NonNull;

struct Scratch {
    first: NonNull<u8>,
    layout: Layout,
}

thread_local! {
    static SCRATCH: Cell<Option<Scratch>> = const { Cell::new(None) };
}

/// Runs `body` with `len` bytes, aligned to a pair of cache lines, whose contents are whatever was there before.
///
/// # Errors
/// `OutOfMemory` when the system refuses.
pub(crate) fn with<R>(len: usize, body: impl FnOnce(&mut [u8]) -> R) -> Result<R> {
    if len == 0 {
        return Ok(body(&mut []));
    }
    // Taken out while in use, so a call from inside of `body` gets a block of its own.
    let kept = SCRATCH.take().filter(|scratch| scratch.layout.size() >= len);
    let mut scratch = match kept {
        Some(scratch) => scratch,
        None => Scratch::new(len).ok_or_else(|| error::out_of_memory("kernel scratch", len as u64, 0))?,
    };
    let result = body(scratch.bytes(len));
    SCRATCH.set(Some(scratch));
    Ok(result)
}

impl Scratch {
    fn new(len: usize) -> Option<Self> {
        let layout = Layout::from_size_align(len, ALIGN_BYTES).ok()?;
        // SAFETY: `len` is not zero (`with` returned early).
        let first = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Self { first, layout })
    }

    fn bytes(&mut self, len: usize) -> &mut [u8] {
        assert!(len <= self.layout.size());
        // SAFETY: the block has at least `len` bytes, initialised by `alloc_zeroed`, and `&mut self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr(), len) }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // SAFETY: `new` allocated the block with this layout, and it is freed only here.
        unsafe { dealloc(self.first.as_ptr(), self.layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_aligned_and_kept_when_large_enough() {
        let mut address = 0;
        for len in [1000, 1, 999, 1000] {
            with(len, |bytes| {
                assert_eq!((bytes.len(), bytes.as_ptr().align_offset(64)), (len, 0));
                if address != 0 {
                    assert_eq!(bytes.as_ptr() as usize, address);
                }
                address = bytes.as_ptr() as usize;
            })
            .unwrap();
        }
        with(1001, |bytes| assert_eq!(bytes.len(), 1001)).unwrap();
        with(0, |bytes| assert!(bytes.is_empty())).unwrap();
    }

    #[test]
    fn nested_use_gets_distinct_memory() {
        with(64, |outer| {
            outer.fill(1);
            with(64, |inner| inner.fill(2)).unwrap();
            assert!(outer.iter().all(|byte| *byte == 1));
        })
        .unwrap();
    }

    #[test]
    fn a_size_that_the_system_refuses_is_an_error() {
        assert!(with(1 << 62, |_| ()).is_err());
    }
}
