//! Host memory that devices use in place.

use crate::{Error, ErrorKind, Result};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Where fresh memory begins: at a page, as the pickiest devices want it.
const PAGE_BYTES: usize = 4096;

/// Memory of the host that [`Device::import`](crate::Device::import) makes a buffer of without copying it.
///
/// 1. It takes over bytes (`from` a `Vec` or a box), is [`zeroed`](Self::zeroed) and aligned for every device, or is
///    memory that something else owns ([`from_raw`](Self::from_raw)), such as a mapped file of weights.
/// 2. It is imported, by one device at a time: two buffers would be the same bytes under two names, of which no check of
///    overlapping ranges knew. Clones are handles to the same memory; the buffer holds one, and work in flight the buffer.
/// 3. With the last handle the owner is dropped, which may be on any thread. [`into_bytes`](Self::into_bytes) gives the
///    bytes back instead.
///
/// The contents are ordered as those of every buffer: see [`Buffer::host_pointer`](crate::Buffer::host_pointer).
#[derive(Clone)]
pub struct HostMemory {
    inner: Arc<Inner>,
    /// Held by the handles of a device that has imported the memory.
    lease: Option<Arc<Lease>>,
}

struct Inner {
    first: NonNull<u8>,
    len_bytes: usize,
    is_lent: AtomicBool,
    owner: Owner,
}

/// Ends with the last handle of the device.
struct Lease(Arc<Inner>);

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.is_lent.store(false, Ordering::Release);
    }
}

enum Owner {
    /// `first` and the length are those of a box.
    Bytes,
    /// Fresh memory of this layout; `None` for zero bytes, which are no allocation.
    Fresh(Option<Layout>),
    /// Somebody's; dropped when the memory is no longer used.
    Other(#[expect(dead_code, reason = "held, not read")] Box<dyn Any + Send + Sync>),
}

// SAFETY: the address is only handed out; whoever dereferences it answers for the order (see `Buffer::host_pointer`). The
// bytes are owned by this value, or by an owner that may be dropped on any thread.
unsafe impl Send for Inner {}
// SAFETY: as above; nothing is read or written through a shared reference to this value.
unsafe impl Sync for Inner {}

impl HostMemory {
    /// Fresh memory of zeros, which begins at a page and so suits every device that imports at all.
    ///
    /// # Errors
    /// `OutOfMemory` when the system has no room.
    pub fn zeroed(len_bytes: usize) -> Result<Self> {
        if len_bytes == 0 {
            return Ok(Self::new(NonNull::dangling(), 0, Owner::Fresh(None)));
        }
        let full = || {
            let kind = ErrorKind::OutOfMemory { requested: len_bytes as u64, free: 0 };
            Error::new(kind, format!("the host has no room for {len_bytes} bytes"))
        };
        let layout = Layout::from_size_align(len_bytes, PAGE_BYTES).map_err(|_| full())?;
        // SAFETY: the layout has a size, by the check above.
        let first = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(full)?;
        Ok(Self::new(first, len_bytes, Owner::Fresh(Some(layout))))
    }

    /// Memory that `owner` keeps valid, such as a mapping of a file.
    ///
    /// # Safety
    /// Until `owner` is dropped, `len_bytes` bytes from `first` are valid and initialised, no other `HostMemory`
    /// with one of them is imported at the same time, and no Rust reference to them is used while a device may write
    /// them. If the memory cannot be written, no buffer over it is: neither
    /// copies, fills nor kernels with write access get it as a target.
    pub unsafe fn from_raw(first: NonNull<u8>, len_bytes: usize, owner: impl Any + Send + Sync) -> Self {
        Self::new(first, len_bytes, Owner::Other(Box::new(owner)))
    }

    fn new(first: NonNull<u8>, len_bytes: usize, owner: Owner) -> Self {
        let inner = Arc::new(Inner { first, len_bytes, is_lent: AtomicBool::new(false), owner });
        Self { inner, lease: None }
    }

    /// A handle for the device that imports the memory now; none while another one has it.
    pub(crate) fn lend(&self) -> Option<Self> {
        // Without bytes there is nothing that two could share.
        if self.len_bytes() == 0 {
            return Some(self.clone());
        }
        let is_free = !self.inner.is_lent.swap(true, Ordering::Acquire);
        let lease = is_free.then(|| Arc::new(Lease(self.inner.clone())))?;
        Some(Self { inner: self.inner.clone(), lease: Some(lease) })
    }

    /// First byte; valid for [`len_bytes`](Self::len_bytes) bytes while a handle lives.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.inner.first
    }

    /// Length in bytes; may be 0.
    pub fn len_bytes(&self) -> usize {
        self.inner.len_bytes
    }

    /// The bytes, once no buffer and no other handle uses them; without a copy, if they came as a `Vec` or a box.
    ///
    /// # Errors
    /// The memory itself, while something else still holds it, or where the host has no room for a copy.
    pub fn into_bytes(self) -> Result<Box<[u8]>, Self> {
        let lease = self.lease;
        let inner = Arc::try_unwrap(self.inner).map_err(|inner| Self { inner, lease })?;
        match inner.owner {
            Owner::Bytes => {
                let inner = std::mem::ManuallyDrop::new(inner);
                // SAFETY: address and length are those of the box that `from` took apart, and its drop is skipped.
                Ok(unsafe { boxed(inner.first, inner.len_bytes) })
            }
            Owner::Fresh(_) | Owner::Other(_) => {
                // SAFETY: valid and initialised while `inner` lives (by construction, or the contract of `from_raw`),
                // and no device holds a handle any more.
                let bytes = unsafe { std::slice::from_raw_parts(inner.first.as_ptr(), inner.len_bytes) };
                let mut copy = Vec::new();
                if copy.try_reserve_exact(bytes.len()).is_err() {
                    return Err(Self { inner: Arc::new(inner), lease: None });
                }
                copy.extend_from_slice(bytes);
                Ok(copy.into_boxed_slice())
            }
        }
    }
}

/// # Safety
/// Address and length are those of a box of bytes that was taken apart, and that nothing else puts together.
unsafe fn boxed(first: NonNull<u8>, len_bytes: usize) -> Box<[u8]> {
    let bytes = std::ptr::slice_from_raw_parts_mut(first.as_ptr(), len_bytes);
    // SAFETY: by this function's contract.
    unsafe { Box::from_raw(bytes) }
}

impl Drop for Inner {
    fn drop(&mut self) {
        match &self.owner {
            // SAFETY: `from` took the box apart, and `into_bytes` puts it together only where this drop is skipped.
            Owner::Bytes => drop(unsafe { boxed(self.first, self.len_bytes) }),
            // SAFETY: `zeroed` allocated it with this layout, and it is freed only here.
            Owner::Fresh(Some(layout)) => unsafe { dealloc(self.first.as_ptr(), *layout) },
            Owner::Fresh(None) | Owner::Other(_) => {}
        }
    }
}

impl From<Box<[u8]>> for HostMemory {
    fn from(bytes: Box<[u8]>) -> Self {
        let len_bytes = bytes.len();
        // A box is never null.
        let first = NonNull::new(Box::into_raw(bytes).cast::<u8>()).expect("a box has an address");
        Self::new(first, len_bytes, Owner::Bytes)
    }
}

impl From<Vec<u8>> for HostMemory {
    fn from(bytes: Vec<u8>) -> Self {
        bytes.into_boxed_slice().into()
    }
}

impl fmt::Debug for HostMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostMemory({:p}, {} bytes)", self.as_ptr(), self.len_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_without_a_copy_once_nobody_else_holds_them() {
        let memory = HostMemory::from(vec![1, 2, 3]);
        let (address, other) = (memory.as_ptr(), memory.clone());
        let memory = memory.into_bytes().unwrap_err();
        drop(other);
        let bytes = memory.into_bytes().unwrap();
        assert_eq!((&*bytes, bytes.as_ptr()), (&[1, 2, 3][..], address.as_ptr().cast_const()));
        assert!(HostMemory::from(Vec::new()).into_bytes().unwrap().is_empty());
    }

    #[test]
    fn memory_is_lent_once_until_the_last_handle_of_the_borrower_is_gone() {
        let memory = HostMemory::from(vec![1, 2, 3]);
        let lent = memory.lend().unwrap();
        let (again, held) = (lent.clone(), memory.clone());
        assert!(memory.lend().is_none() && held.lend().is_none());
        drop(lent);
        assert!(memory.lend().is_none());
        drop((again, held));
        drop(memory.lend().unwrap());
        assert_eq!(*memory.into_bytes().unwrap(), [1, 2, 3]);
        let empty = HostMemory::from(Vec::new());
        assert!(empty.lend().is_some() && empty.lend().is_some());
    }

    #[test]
    fn fresh_memory_is_zero_and_begins_at_a_page() {
        for len in [0, 1, 4095, 70_001] {
            let memory = HostMemory::zeroed(len).unwrap();
            assert_eq!(memory.len_bytes(), len);
            assert!(len == 0 || memory.as_ptr().as_ptr().align_offset(PAGE_BYTES) == 0);
            assert!(memory.into_bytes().unwrap().iter().all(|byte| *byte == 0));
        }
        let error = HostMemory::zeroed(usize::MAX).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::OutOfMemory { .. }), "{error}");
    }

    #[test]
    fn an_owner_is_dropped_with_the_last_handle() {
        struct Flag(Arc<AtomicBool>, Box<[u8]>);
        impl Drop for Flag {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let dropped = Arc::new(AtomicBool::new(false));
        let mut owner = Flag(dropped.clone(), vec![5; 10].into());
        let first = NonNull::new(owner.1.as_mut_ptr()).unwrap();
        // SAFETY: the box lives in its owner, and nothing refers to it.
        let memory = unsafe { HostMemory::from_raw(first, 10, owner) };
        let other = memory.clone();
        drop(memory);
        assert!(!dropped.load(Ordering::Relaxed));
        assert_eq!(*other.into_bytes().unwrap(), [5; 10]);
        assert!(dropped.load(Ordering::Relaxed));
    }
}
