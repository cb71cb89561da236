//! Host memory that asynchronous copies own.

use crate::{Error, Event, Result};
use std::cell::UnsafeCell;
use std::sync::Arc;

/// Bytes that an asynchronous write reads from: shared and immutable.
///
/// Cheap to clone, and freed with the last handle, of which the stream holds one until the copy is done. A `Vec`
/// and a slice are copied once; an `Arc` is taken as it is.
#[derive(Debug, Clone)]
pub struct HostBytes(Arc<[u8]>);

impl HostBytes {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for HostBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl From<&[u8]> for HostBytes {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }
}

impl From<Arc<[u8]>> for HostBytes {
    fn from(bytes: Arc<[u8]>) -> Self {
        Self(bytes)
    }
}

/// Memory that an asynchronous read writes to, zeros at first.
///
/// The stream holds a handle until the copy is done; until then the copy alone may touch the bytes.
#[derive(Clone)]
pub struct HostTarget(Arc<Cell>);

struct Cell(UnsafeCell<Box<[u8]>>);
// SAFETY: written by the one copy that owns the target, read by `PendingRead` only after that copy's event is done.
unsafe impl Sync for Cell {}

impl HostTarget {
    fn new(len: usize) -> Self {
        Self(Arc::new(Cell(UnsafeCell::new(vec![0; len].into()))))
    }

    /// First byte; valid for `len_bytes` bytes while a handle lives. For backends.
    pub fn as_mut_ptr(&self) -> *mut u8 {
        // SAFETY: only the address is taken here; exclusive use is the copy's (see `Cell`).
        unsafe { (*self.0.0.get()).as_mut_ptr() }
    }

    /// Length in bytes.
    pub fn len_bytes(&self) -> usize {
        // SAFETY: the length of the box never changes.
        unsafe { (&(*self.0.0.get())).len() }
    }
}

/// An asynchronous read that is under way: owns its memory until the bytes are taken.
///
/// Dropping it without [`wait`](Self::wait) does not stop the copy, which holds the memory too.
#[must_use = "the bytes are taken with wait"]
pub struct PendingRead {
    target: HostTarget,
    event: Event,
}

impl PendingRead {
    pub(crate) fn target(len: usize) -> HostTarget {
        HostTarget::new(len)
    }

    pub(crate) fn new(target: HostTarget, event: Event) -> Self {
        Self { target, event }
    }

    /// The event that is done when the bytes are there, to ask or wait with a limit.
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// Blocks without limit until the copy is done, and gives the bytes to the caller.
    ///
    /// # Errors
    /// The first failure of the work up to the copy; `InvalidArgument` when a native kernel of the same device
    /// would have to wait.
    pub fn wait(self) -> Result<Vec<u8>> {
        self.event.wait(None)?;
        if !self.event.is_done()? {
            return Err(Error::invalid("the copy's event is not done after its wait").in_call("read.wait"));
        }
        // SAFETY: the copy is done, so nothing writes the target any more, and this handle is consumed.
        Ok(unsafe { (*self.target.0.0.get()).to_vec() })
    }
}
