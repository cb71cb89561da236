//! Memories: the device's global memory and the small ones of a core.
//!
//! Global memory is a 64-bit address space of separate allocations with unused addresses between them,
//! so that an access outside lands in none. Its words are atomics with relaxed order: blocks of a
//! launch run on several host threads, and a program that races gets some value but cannot harm the host.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};

use bytemuck::Pod;

use super::error::{Fault, MemoryError, Nearest};

/// Unused addresses after each allocation.
const GUARD_BYTES: u64 = 1 << 20;
const FIRST_ADDRESS: u64 = 1 << 32;
const WORD: usize = 4;

/// One allocation of global memory.
pub(super) struct Allocation {
    base: u64,
    len: u64,
    words: Box<[AtomicU32]>,
}

impl Allocation {
    /// The 32-bit words.
    pub(super) fn words(&self) -> &[AtomicU32] {
        &self.words
    }

    /// Copies from byte `offset` on; the caller has checked the bounds.
    pub(super) fn read(&self, offset: usize, dst: &mut [u8]) {
        let (head, dst) = dst.split_at_mut(dst.len().min(offset.wrapping_neg() % WORD));
        for (i, byte) in head.iter_mut().enumerate() {
            *byte = self.byte(offset + i);
        }
        let first = (offset + head.len()) / WORD;
        let (words, tail) = dst.as_chunks_mut::<WORD>();
        for (chunk, word) in words.iter_mut().zip(&self.words[first..]) {
            *chunk = word.load(Relaxed).to_ne_bytes();
        }
        let tail_at = (first + words.len()) * WORD;
        for (i, byte) in tail.iter_mut().enumerate() {
            *byte = self.byte(tail_at + i);
        }
    }

    /// Writes from byte `offset` on; the caller has checked the bounds.
    pub(super) fn write(&self, offset: usize, src: &[u8]) {
        let (head, src) = src.split_at(src.len().min(offset.wrapping_neg() % WORD));
        self.merge(offset, head);
        let first = (offset + head.len()) / WORD;
        let (words, tail) = src.as_chunks::<WORD>();
        for (chunk, word) in words.iter().zip(&self.words[first..]) {
            word.store(u32::from_ne_bytes(*chunk), Relaxed);
        }
        self.merge((first + words.len()) * WORD, tail);
    }

    /// Two bytes at an even offset.
    pub(super) fn read_u16(&self, offset: usize) -> u16 {
        let word = self.words[offset / WORD].load(Relaxed);
        (word >> (8 * (offset % WORD))) as u16
    }

    /// Adds to the float in word `index`.
    pub(super) fn add_f32(&self, index: usize, value: f32) {
        let add = |bits: u32| Some((f32::from_bits(bits) + value).to_bits());
        // The closure always gives a value, so the update cannot be refused.
        let _ = self.words[index].fetch_update(Relaxed, Relaxed, add);
    }

    fn byte(&self, offset: usize) -> u8 {
        self.words[offset / WORD].load(Relaxed).to_ne_bytes()[offset % WORD]
    }

    /// Replaces fewer than four bytes, all in one word, and leaves the others to other writers.
    fn merge(&self, offset: usize, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let at = offset % WORD;
        let replace = |word: u32| {
            let mut whole = word.to_ne_bytes();
            whole[at..at + bytes.len()].copy_from_slice(bytes);
            Some(u32::from_ne_bytes(whole))
        };
        let _ = self.words[offset / WORD].fetch_update(Relaxed, Relaxed, replace);
    }
}

/// The allocations at one moment, sorted by address. Freed ones live on while a launch holds them.
#[derive(Clone, Default)]
pub(super) struct View(Arc<Vec<Arc<Allocation>>>);

impl View {
    /// The allocation that holds `len` bytes at `address`, and where in it they start.
    pub(super) fn find(&self, address: u64, len: u64) -> Result<(&Allocation, usize), MemoryError> {
        let after = self.0.partition_point(|allocation| allocation.base <= address);
        let below = after.checked_sub(1).map(|at| &self.0[at]);
        if let Some(allocation) = below {
            let offset = address - allocation.base;
            if offset.checked_add(len).is_some_and(|end| end <= allocation.len) {
                return Ok((allocation, offset as usize));
            }
        }
        Err(MemoryError::OutOfBounds { address, len, nearest: self.nearest(address) })
    }

    fn nearest(&self, address: u64) -> Nearest {
        let after = self.0.partition_point(|allocation| allocation.base <= address);
        let nearest = self.0.get(after.saturating_sub(1));
        Nearest(nearest.map(|allocation| (allocation.base, allocation.len)))
    }
}

struct State {
    view: View,
    used: u64,
    peak: u64,
    next: u64,
}

/// The device's global memory. All methods may be called from any thread, also during launches.
pub struct GlobalMemory {
    capacity: u64,
    align: u64,
    state: RwLock<State>,
}

impl GlobalMemory {
    pub(super) fn new(capacity: u64, align: u64) -> Self {
        let state = State { view: View::default(), used: 0, peak: 0, next: FIRST_ADDRESS };
        Self { capacity, align: align.max(WORD as u64), state: RwLock::new(state) }
    }

    /// Bytes of the device.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Bytes in allocations.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.state.read().unwrap_or_else(PoisonError::into_inner).used
    }

    /// The most bytes that were in allocations at one time.
    #[must_use]
    pub fn peak(&self) -> u64 {
        self.state.read().unwrap_or_else(PoisonError::into_inner).peak
    }

    /// Allocates zeroed memory and returns its address. Zero bytes get an address that no access may use.
    ///
    /// # Errors
    /// [`MemoryError::OutOfMemory`] if the device, or the host behind it, has not enough.
    pub fn alloc(&self, len: u64) -> Result<u64, MemoryError> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let free = self.capacity - state.used;
        let refused = MemoryError::OutOfMemory { requested: len, free, capacity: self.capacity };
        if len > free {
            return Err(refused);
        }
        let base = state.next;
        let end = base.checked_add(len).and_then(|end| end.checked_add(GUARD_BYTES));
        let next = end.and_then(|end| end.checked_next_multiple_of(self.align)).ok_or(refused.clone())?;
        let word_count = usize::try_from(len.div_ceil(WORD as u64)).map_err(|_| refused.clone())?;
        let mut words = Vec::new();
        words.try_reserve_exact(word_count).map_err(|_| refused)?;
        words.resize_with(word_count, || AtomicU32::new(0));
        state.next = next;
        state.used += len;
        state.peak = state.peak.max(state.used);
        // Addresses only grow, so the list stays sorted.
        let mut allocations = state.view.0.to_vec();
        allocations.push(Arc::new(Allocation { base, len, words: words.into_boxed_slice() }));
        state.view = View(Arc::new(allocations));
        Ok(base)
    }

    /// Frees an allocation. A launch that is under way keeps what it uses.
    ///
    /// # Errors
    /// [`MemoryError::NotAllocated`] if none starts at `address`.
    pub fn free(&self, address: u64) -> Result<(), MemoryError> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let Ok(at) = state.view.0.binary_search_by_key(&address, |allocation| allocation.base) else {
            return Err(MemoryError::NotAllocated { address, nearest: state.view.nearest(address) });
        };
        let mut allocations = state.view.0.to_vec();
        state.used -= allocations.remove(at).len;
        state.view = View(Arc::new(allocations));
        Ok(())
    }

    /// Copies to the host.
    ///
    /// # Errors
    /// If the bytes are not all in one allocation.
    pub fn read(&self, address: u64, dst: &mut [u8]) -> Result<(), MemoryError> {
        let view = self.view();
        let (allocation, offset) = view.find(address, dst.len() as u64)?;
        allocation.read(offset, dst);
        Ok(())
    }

    /// Copies from the host.
    ///
    /// # Errors
    /// If the bytes are not all in one allocation.
    pub fn write(&self, address: u64, src: &[u8]) -> Result<(), MemoryError> {
        let view = self.view();
        let (allocation, offset) = view.find(address, src.len() as u64)?;
        allocation.write(offset, src);
        Ok(())
    }

    /// Sets `len` bytes to `byte`.
    ///
    /// # Errors
    /// If the bytes are not all in one allocation.
    pub fn fill(&self, address: u64, len: u64, byte: u8) -> Result<(), MemoryError> {
        let view = self.view();
        let (allocation, offset) = view.find(address, len)?;
        let pattern = [byte; 4096];
        for start in (0..len as usize).step_by(pattern.len()) {
            let count = pattern.len().min(len as usize - start);
            allocation.write(offset + start, &pattern[..count]);
        }
        Ok(())
    }

    /// Copies `len` bytes within the device; the ranges may overlap.
    ///
    /// # Errors
    /// If either range is not in one allocation.
    pub fn copy(&self, src: u64, dst: u64, len: u64) -> Result<(), MemoryError> {
        let view = self.view();
        let (from, from_at) = view.find(src, len)?;
        let (to, to_at) = view.find(dst, len)?;
        let mut buffer = vec![0; (len as usize).min(1 << 20)];
        let step = buffer.len().max(1);
        let mut copy = |start: usize| {
            let count = step.min(len as usize - start);
            from.read(from_at + start, &mut buffer[..count]);
            to.write(to_at + start, &buffer[..count]);
        };
        let starts = (0..len as usize).step_by(step);
        if dst > src {
            starts.rev().for_each(&mut copy)
        } else {
            starts.for_each(&mut copy)
        }
        Ok(())
    }

    pub(super) fn view(&self) -> View {
        self.state.read().unwrap_or_else(PoisonError::into_inner).view.clone()
    }
}

/// One of a core's memories.
pub(super) struct LocalMemory {
    name: &'static str,
    align: usize,
    len: usize,
    words: Vec<u64>,
    /// Bytes that were written since the last [`Self::poison`].
    touched: usize,
}

impl LocalMemory {
    pub(super) fn new(name: &'static str, len: usize, align: usize) -> Result<Self, Fault> {
        let count = len.div_ceil(8);
        let mut words = Vec::new();
        words.try_reserve_exact(count).map_err(|_| Fault::HostMemory { memory: name, bytes: len })?;
        words.resize(count, u64::MAX);
        Ok(Self { name, align: align.max(1), len, words, touched: 0 })
    }

    /// Sets what was written to all ones (NaN in every float type), so that no block sees another's data.
    pub(super) fn poison(&mut self) {
        self.words[..self.touched.div_ceil(8)].fill(u64::MAX);
        self.touched = 0;
    }

    pub(super) fn capacity(&self) -> usize {
        self.len
    }

    /// Checks an aligned range that is read.
    pub(super) fn source(&self, address: i64, len: i64) -> Result<usize, Fault> {
        self.aligned("address", address)?;
        self.bounds(address, len)
    }

    /// Checks an aligned range that is written.
    pub(super) fn target(&mut self, address: i64, len: i64) -> Result<usize, Fault> {
        self.aligned("address", address)?;
        self.touch(address, len)
    }

    pub(super) fn aligned(&self, what: &'static str, value: i64) -> Result<(), Fault> {
        if value.rem_euclid(self.align as i64) != 0 {
            return Err(Fault::LocalAlignment { memory: self.name, what, value, required: self.align });
        }
        Ok(())
    }

    /// Checks a range that is written and may start anywhere.
    pub(super) fn touch(&mut self, address: i64, len: i64) -> Result<usize, Fault> {
        let start = self.bounds(address, len)?;
        self.touched = self.touched.max(start + len as usize);
        Ok(start)
    }

    /// Checks a range that is read and may start anywhere.
    pub(super) fn bounds(&self, address: i64, len: i64) -> Result<usize, Fault> {
        let end = address.checked_add(len.max(0));
        if address < 0 || len < 0 || end.is_none_or(|end| end > self.len as i64) {
            return Err(Fault::LocalBounds { memory: self.name, address, len, capacity: self.len });
        }
        Ok(address as usize)
    }

    /// The whole memory as elements.
    pub(super) fn all<T: Pod>(&self) -> &[T] {
        bytemuck::cast_slice(&self.words)
    }

    /// The whole memory as elements.
    pub(super) fn all_mut<T: Pod>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.words)
    }

    /// `count` elements from byte `start` on, a multiple of the element's size.
    pub(super) fn slice<T: Pod>(&self, start: usize, count: usize) -> &[T] {
        &self.all()[start / size_of::<T>()..][..count]
    }

    /// `count` elements from byte `start` on, a multiple of the element's size.
    pub(super) fn slice_mut<T: Pod>(&mut self, start: usize, count: usize) -> &mut [T] {
        &mut self.all_mut()[start / size_of::<T>()..][..count]
    }
}
