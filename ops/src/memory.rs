//! Memory of settled tensors, and what was written to it by the host without being known to have arrived.

use crate::Result;
use halite_hal::{Allocation, BufferSlice, Error, HostBytes, Stream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

/// Most bytes of uploads that are kept on the host until they have arrived. What is beyond cannot be sent again after
/// a failure; its tensor is then lost.
const MAX_KEPT_BYTES: u64 = 16 << 20;

/// Memory that holds a settled tensor; shared by tensors that are reshapes of one another.
#[derive(Clone)]
pub(crate) struct Value(Arc<Memory>);

struct Memory {
    allocation: Arc<Allocation>,
    /// Whether the work that was to write it has failed.
    is_lost: AtomicBool,
}

/// Tells nothing about the memory being wanted.
#[derive(Clone)]
pub(crate) struct WeakValue(Weak<Memory>);

impl Value {
    pub(crate) fn new(allocation: Allocation) -> Self {
        Self::of(Arc::new(allocation))
    }

    fn of(allocation: Arc<Allocation>) -> Self {
        Self(Arc::new(Memory { allocation, is_lost: AtomicBool::new(false) }))
    }

    /// The first bytes of the memory.
    ///
    /// # Errors
    /// `InvalidArgument` when they were never written.
    pub(crate) fn slice(&self, len_bytes: u64) -> Result<BufferSlice> {
        if self.0.is_lost.load(Ordering::Relaxed) {
            let message = "the work that was to write a tensor's memory has failed; make the tensor anew";
            return Err(Error::invalid(message).into());
        }
        Ok(self.whole().slice(0, len_bytes)?)
    }

    /// The memory, whatever it holds.
    pub(crate) fn whole(&self) -> &BufferSlice {
        self.0.allocation.as_slice()
    }

    /// Whether no other tensor has this value.
    pub(crate) fn is_unique(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    pub(crate) fn downgrade(&self) -> WeakValue {
        WeakValue(Arc::downgrade(&self.0))
    }

    /// The same memory for a tensor whose value it was before: whoever holds it as the value that never came, has lost
    /// it.
    pub(crate) fn given_back(&self) -> Self {
        self.0.is_lost.store(true, Ordering::Relaxed);
        Self::of(self.0.allocation.clone())
    }
}

impl WeakValue {
    /// Says that the memory was not written as it should have been, to whoever still holds it.
    pub(crate) fn lose(&self) {
        if let Some(memory) = self.0.upgrade() {
            memory.is_lost.store(true, Ordering::Relaxed);
        }
    }
}

/// What the host gave a tensor's memory.
#[derive(Clone)]
pub(crate) enum Content {
    /// These bytes.
    Bytes(HostBytes),
    /// Zeros.
    Zeros,
    /// Too many bytes to keep.
    Forgotten,
}

impl Content {
    /// Enqueues the write.
    pub(crate) fn write(&self, stream: &Stream, range: &BufferSlice) -> halite_hal::Result<()> {
        match self {
            Self::Bytes(bytes) => stream.write(range, bytes.clone()),
            Self::Zeros => stream.fill(range, &[0]),
            Self::Forgotten => Err(Error::invalid("the bytes of an upload were not kept")),
        }
    }

    fn kept_bytes(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.as_slice().len() as u64,
            Self::Zeros | Self::Forgotten => 0,
        }
    }
}

/// A write of the host that may not have happened yet.
pub(crate) struct Upload {
    serial: u64,
    value: WeakValue,
    len_bytes: u64,
    content: Content,
}

/// Writes since the last evaluation was enqueued.
///
/// A stream that fails skips what is enqueued until somebody notices, writes too. So these are sent again after a
/// failure, since the tensors count as settled.
#[derive(Default)]
pub(crate) struct Uploads {
    waiting: Vec<Upload>,
    /// Bytes that these keep.
    kept_bytes: u64,
    next_serial: u64,
    /// Length at which values that nobody holds any more are looked for.
    sweep_at: usize,
}

impl Uploads {
    /// Notes a write that was enqueued.
    pub(crate) fn push(&mut self, value: &Value, len_bytes: u64, content: Content) {
        if self.waiting.len() >= self.sweep_at {
            self.retain(|upload| upload.value.0.strong_count() > 0);
            self.sweep_at = (2 * self.waiting.len()).max(64);
        }
        let is_kept = self.kept_bytes + content.kept_bytes() <= MAX_KEPT_BYTES;
        let content = if is_kept { content } else { Content::Forgotten };
        self.kept_bytes += content.kept_bytes();
        let serial = self.next();
        self.waiting.push(Upload { serial, value: value.downgrade(), len_bytes, content });
    }

    /// A number above those of all writes so far, for [`arrived`](Self::arrived).
    pub(crate) fn mark(&self) -> u64 {
        self.next_serial
    }

    /// Forgets the writes before `mark`, which have arrived.
    pub(crate) fn arrived(&mut self, mark: u64) {
        self.retain(|upload| upload.serial >= mark);
    }

    /// Hands over the writes before `mark`, to wait with the evaluation that is enqueued behind them.
    pub(crate) fn take_before(&mut self, mark: u64) -> Vec<Upload> {
        let (taken, left) = self.take().into_iter().partition(|upload| upload.serial < mark);
        self.put_back(left);
        taken
    }

    /// Hands over everything.
    pub(crate) fn take(&mut self) -> Vec<Upload> {
        self.kept_bytes = 0;
        std::mem::take(&mut self.waiting)
    }

    /// Takes writes back that did not, or may not, have arrived.
    pub(crate) fn put_back(&mut self, uploads: Vec<Upload>) {
        self.kept_bytes += uploads.iter().map(|upload| upload.content.kept_bytes()).sum::<u64>();
        self.waiting.extend(uploads);
    }

    /// Enqueues every write again, and says whether all of them were accepted. Tensors whose bytes were not kept are
    /// lost; so are, if `is_last`, those whose writes were not accepted.
    pub(crate) fn repeat(&mut self, stream: &Stream, is_last: bool) -> bool {
        let mut is_complete = true;
        for upload in self.take() {
            let Some(memory) = upload.value.0.upgrade() else { continue };
            let range = memory.allocation.as_slice().slice(0, upload.len_bytes);
            let is_sent = range.and_then(|range| upload.content.write(stream, &range)).is_ok();
            let is_kept = !matches!(upload.content, Content::Forgotten);
            is_complete &= is_sent || !is_kept;
            if is_sent || (is_kept && !is_last) {
                let serial = self.next();
                self.put_back(vec![Upload { serial, ..upload }]);
            } else {
                upload.value.lose();
            }
        }
        is_complete
    }

    fn retain(&mut self, keep: impl Fn(&Upload) -> bool) {
        let (kept, _) = self.take().into_iter().partition(keep);
        self.put_back(kept);
    }

    fn next(&mut self) -> u64 {
        self.next_serial += 1;
        self.next_serial - 1
    }
}
