//! Device memory.

use crate::{DeviceId, Error, MemoryKind, Result};
use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// A number that no other HAL object of this process has had.
pub(crate) fn fresh_id() -> u64 {
    NEXT_ID.fetch_add(1, Ordering::Relaxed)
}

/// Device memory, owned.
///
/// 1. [`Device::allocate`](crate::Device::allocate) makes one. Its contents are zeros or stale data of this process.
/// 2. Clones are handles to the same memory. Work that is enqueued on a stream holds a handle until it is done.
/// 3. The memory is freed when the last handle is dropped, and so after its last use on any stream.
///
/// Handles are `Send + Sync`; the contents are ordered by streams and events alone.
#[derive(Clone)]
pub struct Buffer(Arc<Inner>);

struct Inner {
    id: u64,
    device: DeviceId,
    kind: MemoryKind,
    len_bytes: u64,
    host: Option<HostPointer>,
    object: Box<dyn Any + Send + Sync>,
}

/// What [`Buffer::attach`] puts into the new handle. The attachment goes before the memory does.
struct Attached {
    attachment: Box<dyn Any + Send + Sync>,
    inner: Buffer,
    is_exposed: AtomicBool,
}

struct HostPointer(NonNull<u8>);
// SAFETY: the pointer is only handed out; whoever dereferences it answers for ordering (see `host_pointer`).
unsafe impl Send for HostPointer {}
// SAFETY: as above.
unsafe impl Sync for HostPointer {}

impl Buffer {
    /// Wraps a backend's memory. For backends.
    ///
    /// `object` frees it when dropped, which may be on any thread; `host` is its address for mappable kinds, valid
    /// for `len_bytes` bytes for as long as `object` lives.
    pub fn new(
        device: DeviceId,
        kind: MemoryKind,
        len_bytes: u64,
        host: Option<NonNull<u8>>,
        object: Box<dyn Any + Send + Sync>,
    ) -> Self {
        Self(Arc::new(Inner { id: fresh_id(), device, kind, len_bytes, host: host.map(HostPointer), object }))
    }

    /// A handle to the same memory, under the same id, that shows at most the first `len_bytes` of it and carries
    /// `attachment`. For layers, which give it out in place of the one that they got.
    ///
    /// The attachment is found by [`object`](Self::object) beside the backend's object. It is dropped with the last
    /// such handle, of which enqueued work may hold one, and so on any thread; the memory is freed after that.
    #[must_use]
    pub fn attach(self, len_bytes: u64, attachment: Box<dyn Any + Send + Sync>) -> Self {
        let Inner { id, device, kind, len_bytes: whole, host, .. } = &*self.0;
        let inner = Inner {
            id: *id,
            device: device.clone(),
            kind: *kind,
            len_bytes: len_bytes.min(*whole),
            host: host.as_ref().map(|host| HostPointer(host.0)),
            object: Box::new(Attached {
                attachment,
                inner: self.clone(),
                is_exposed: AtomicBool::new(false),
            }),
        };
        Self(Arc::new(inner))
    }

    /// Whether somebody has asked this handle or a clone of it, made by [`attach`](Self::attach), for the host's
    /// address, and so may touch the memory unseen. For layers.
    pub fn is_exposed(&self) -> bool {
        self.attached().is_some_and(|attached| attached.is_exposed.load(Ordering::Relaxed))
    }

    fn attached(&self) -> Option<&Attached> {
        self.0.object.downcast_ref()
    }

    /// A number that no other memory or object of this process has had; layers key their tables with it.
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// The device that the memory belongs to.
    pub fn device(&self) -> &DeviceId {
        &self.0.device
    }

    /// Where the memory lies.
    pub fn kind(&self) -> MemoryKind {
        self.0.kind
    }

    /// Length in bytes; may be 0.
    pub fn len_bytes(&self) -> u64 {
        self.0.len_bytes
    }

    /// The host's address of a mappable buffer, `None` for others.
    ///
    /// Valid for [`len_bytes`](Self::len_bytes) bytes while a handle lives. Whoever reads or writes through it must
    /// have ordered that against all enqueued work, by [`Stream::synchronize`](crate::Stream::synchronize) or an
    /// event, and against other threads.
    pub fn host_pointer(&self) -> Option<NonNull<u8>> {
        if let Some(attached) = self.attached() {
            attached.is_exposed.store(true, Ordering::Relaxed);
        }
        self.0.host.as_ref().map(|host| host.0)
    }

    /// The backend's object or a layer's attachment, if it is a `T`. For backends and layers.
    pub fn object<T: Any>(&self) -> Option<&T> {
        self.0.object.downcast_ref().or_else(|| {
            let attached = self.attached()?;
            attached.attachment.downcast_ref().or_else(|| attached.inner.object())
        })
    }

    /// Whether both handles name the same memory.
    pub fn is_same(&self, other: &Buffer) -> bool {
        self.0.id == other.0.id
    }

    /// The whole buffer as a slice, which holds a handle.
    pub fn all(&self) -> BufferSlice {
        BufferSlice { buffer: self.clone(), offset: 0, len: self.len_bytes() }
    }

    /// `len` bytes from `offset`, as a slice which holds a handle.
    ///
    /// # Errors
    /// `InvalidArgument` when the range does not lie inside.
    pub fn slice(&self, offset: u64, len: u64) -> Result<BufferSlice> {
        self.all().slice(offset, len)
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer#{}({}, {:?}, {} bytes)", self.id(), self.device(), self.kind(), self.len_bytes())
    }
}

/// A range of bytes inside a buffer; holds the buffer alive. In bounds by construction.
#[derive(Debug, Clone)]
pub struct BufferSlice {
    buffer: Buffer,
    offset: u64,
    len: u64,
}

impl BufferSlice {
    /// The buffer that the range lies in.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// First byte.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Length in bytes; may be 0.
    pub fn len_bytes(&self) -> u64 {
        self.len
    }

    /// The range in bytes.
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.len
    }

    /// `len` bytes from `offset`, counted from this slice's first byte.
    ///
    /// # Errors
    /// `InvalidArgument` when the range does not lie inside.
    pub fn slice(&self, offset: u64, len: u64) -> Result<BufferSlice> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => {
                Ok(BufferSlice { buffer: self.buffer.clone(), offset: self.offset + offset, len })
            }
            _ => Err(Error::invalid(format!(
                "{len} bytes at offset {offset} do not lie in the {} bytes of the buffer",
                self.len
            ))),
        }
    }

    /// Whether both share at least one byte.
    pub fn overlaps(&self, other: &BufferSlice) -> bool {
        self.buffer.is_same(&other.buffer)
            && self.offset < other.offset + other.len
            && other.offset < self.offset + self.len
            && self.len > 0
            && other.len > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer(len: u64) -> Buffer {
        Buffer::new(DeviceId::new("test", 0), MemoryKind::Device, len, None, Box::new(()))
    }

    #[test]
    fn slices_stay_inside_and_never_overflow() {
        let buffer = buffer(16);
        let slice = buffer.slice(4, 8).unwrap().slice(2, 6).unwrap();
        assert_eq!(slice.range(), 6..12);
        assert!(slice.slice(1, 6).is_err());
        assert!(buffer.slice(u64::MAX, 2).is_err());
        assert_eq!(buffer.slice(16, 0).unwrap().len_bytes(), 0);
    }

    #[test]
    fn an_attached_handle_is_the_same_memory_with_both_objects_and_a_shorter_length() {
        struct Flag(Arc<AtomicBool>);
        impl Drop for Flag {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let dropped = Arc::new(AtomicBool::new(false));
        let whole = Buffer::new(DeviceId::new("test", 0), MemoryKind::Device, 16, None, Box::new(7u32));
        let outer = whole.clone().attach(10, Box::new(Flag(dropped.clone()))).attach(99, Box::new("outer"));
        assert_eq!((outer.len_bytes(), outer.id()), (10, whole.id()));
        assert!(outer.is_same(&whole) && outer.slice(8, 2).unwrap().overlaps(&whole.all()));
        assert_eq!((outer.object::<u32>(), outer.object::<&str>()), (Some(&7), Some(&"outer")));
        assert!(outer.object::<Flag>().is_some() && outer.object::<u64>().is_none());
        assert!(!outer.is_exposed());
        assert!(outer.host_pointer().is_none() && outer.is_exposed() && !whole.is_exposed());
        let clone = outer.clone();
        drop(outer);
        assert!(!dropped.load(Ordering::Relaxed));
        drop(clone);
        assert!(dropped.load(Ordering::Relaxed));
    }

    #[test]
    fn overlap_needs_the_same_buffer_and_a_shared_byte() {
        let (a, b) = (buffer(16), buffer(16));
        assert!(a.slice(0, 8).unwrap().overlaps(&a.slice(7, 2).unwrap()));
        assert!(!a.slice(0, 8).unwrap().overlaps(&a.slice(8, 8).unwrap()));
        assert!(!a.slice(4, 0).unwrap().overlaps(&a.all()));
        assert!(!a.all().overlaps(&b.all()));
    }
}
