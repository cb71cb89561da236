//! The caching, stream-ordered allocator that serves every backend.
//!
//! Asking a driver for memory is slow and may stop the whole device, so the pool asks for large *segments*, cuts
//! them into *chunks*, and keeps what is freed. Chunks are chosen by best fit; free neighbours are joined at once.
//! Large requests have segments apart from small ones.
//!
//! # Order
//! Freed memory belongs to the stream that it was allocated for: later work on that stream may use it at once,
//! since it runs behind everything that used it before. It serves *another* stream only after the host has seen an
//! event reached that lies behind those uses. The pool never makes one stream wait for another: that would slow
//! one down by surprise, and a failure would travel along (see [`Stream::wait`]).
//!
//! # When memory runs out
//! 1. Free memory of streams that have come to rest is shared out; this asks for events and does not block.
//! 2. A new segment is asked of the device, if the limit allows it.
//! 3. The pool waits, at most [`PoolConfig::wait_limit`], for work that still uses freed memory. Whenever some of it
//!    ends, memory is looked for again, and segments at rest go back to the device for one that fits.
//! 4. When there is nothing left to wait for, the device is asked once more.
//! 5. `OutOfMemory` says how much was asked for and how much is free, in pieces of which size.
//!
//! # Locks
//! One lock guards the books, held for a bounded number of steps and never during a driver call or while a
//! buffer, event or stream is dropped. So an [`Allocation`] may be dropped on any thread, also inside a backend that
//! holds no lock of its own: with other streams' uses to wait for, the drop records events on them.

mod arena;

use crate::device::too_large;
use crate::sync::{Mutex, MutexGuard};
use crate::{Arg, Buffer, BufferSlice, Device, Error, ErrorKind, Event, Health, MemoryKind, Result, Stream};
use arena::{Arena, Findings, Garbage, Grant, LaneFinding, LaneSurvey, Marker, Request, Survey, Use};
use std::fmt;
use std::mem;
use std::ops::Deref;
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Offsets are multiples of this at least: what CUDA's own allocations guarantee (CUDA C++ Programming Guide,
/// "Device Memory Accesses"), so kernels may count on it everywhere.
const MIN_ALIGNMENT_BYTES: u64 = 256;

/// Out of memory, the pool looks again this often, since other work than what it waits for may free some first.
const WAIT_SLICE: Duration = Duration::from_millis(2);

/// How a [`Pool`] behaves. [`Pool::config`] tells the values in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolConfig {
    /// Most bytes to hold of the device, `None` for all that it gives.
    pub limit_bytes: Option<u64>,
    /// What set that limit, for messages: the key of a profile, a variable.
    pub limit_name: Option<String>,
    /// Largest segment that several allocations share; a request of more than half of it gets a segment of its
    /// own. No larger than the device's largest allocation.
    pub segment_bytes: u64,
    /// The first segment; later ones grow with the pool up to `segment_bytes`, so a small program stays small.
    pub initial_segment_bytes: u64,
    /// Offsets are multiples of this, of 256 and of the device's own alignment, whichever is most; rounded up to a
    /// power of two.
    pub alignment_bytes: u64,
    /// Longest that an allocation waits for enqueued work when memory has run out.
    pub wait_limit: Duration,
    /// Gives every allocation device memory of its own, of exactly its size, and never reuses any. Slow; for
    /// finding accesses out of bounds and after the end. In force also where a layer of the device asks for it.
    pub isolate: bool,
}

impl Default for PoolConfig {
    /// No limit, segments of 2 to 64 MiB, offsets of 256 bytes, 10 seconds of waiting.
    fn default() -> Self {
        Self {
            limit_bytes: None,
            limit_name: None,
            segment_bytes: 64 << 20,
            initial_segment_bytes: 2 << 20,
            alignment_bytes: MIN_ALIGNMENT_BYTES,
            wait_limit: Duration::from_secs(10),
            isolate: false,
        }
    }
}

/// What a [`Pool`] holds and has done. Byte counts are of chunks, so rounded up to the alignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct PoolStats {
    /// Bytes in live allocations.
    pub in_use_bytes: u64,
    /// Bytes taken from the device.
    pub reserved_bytes: u64,
    /// Most bytes in live allocations since the last [`Pool::reset_peak`].
    pub peak_in_use_bytes: u64,
    /// Most bytes taken from the device since the last [`Pool::reset_peak`].
    pub peak_reserved_bytes: u64,
    /// Freed bytes that wait for other streams which used them.
    pub pending_bytes: u64,
    /// Live allocations of at least one byte.
    pub live: u64,
    /// Allocations of at least one byte so far.
    pub allocations: u64,
    /// Of these, how many needed nothing of the device.
    pub reuses: u64,
    /// Segments held.
    pub segments: u64,
    /// Segments asked of the device so far.
    pub segments_created: u64,
    /// Free chunks; many small ones mean fragmentation.
    pub free_chunks: u64,
    /// The largest free chunk.
    pub largest_free_bytes: u64,
    /// Times that segments went back to the device, by request or because memory ran out.
    pub trims: u64,
    /// Times that an allocation waited for enqueued work because memory ran out.
    pub waits: u64,
}

/// A caching, stream-ordered allocator over one kind of memory of one device.
///
/// 1. [`new`](Self::new) takes nothing of the device yet. Clones are handles to the same pool.
/// 2. [`allocate`](Self::allocate) names the stream that will use the memory.
/// 3. Dropping the [`Allocation`] gives the memory back in that stream's order, while its work is still under way.
/// 4. [`trim`](Self::trim) returns unused segments to the device. The rest goes back when the last handle and the
///    last allocation are dropped.
///
/// Every method may be called from any thread. The pool holds the device, and each stream that has memory here;
/// streams at rest are let go when the pool next grows or is trimmed.
#[derive(Clone)]
pub struct Pool(Arc<Inner>);

struct Inner {
    // Memory goes before the device, which this may be the last handle of.
    arena: Mutex<Arena>,
    /// What allocations of zero bytes lie in.
    empty: OnceLock<Buffer>,
    device: Device,
    kind: MemoryKind,
    config: PoolConfig,
    /// The longest allocation that the device or the limit could ever allow.
    largest_bytes: u64,
}

impl Pool {
    /// A pool over `kind` memory of `device`, through whatever layers the handle has. Values of `config` beyond the
    /// device's limits are brought within them.
    pub fn new(device: Device, kind: MemoryKind, mut config: PoolConfig) -> Self {
        let info = device.info();
        let largest_bytes = info
            .limits
            .max_allocation_bytes
            .min(info.memory_bytes)
            .min(config.limit_bytes.unwrap_or(u64::MAX));
        let alignment =
            config.alignment_bytes.max(info.limits.offset_alignment_bytes).max(MIN_ALIGNMENT_BYTES);
        config.alignment_bytes = alignment.checked_next_power_of_two().unwrap_or(1 << 63);
        config.segment_bytes = config.segment_bytes.min(largest_bytes);
        config.initial_segment_bytes = config.initial_segment_bytes.min(config.segment_bytes);
        config.isolate |= device.isolates_allocations();
        let arena = Mutex::new(Arena::new(config.segment_bytes / 2, config.isolate));
        Self(Arc::new(Inner { device, kind, config, largest_bytes, arena, empty: OnceLock::new() }))
    }

    /// The device whose memory this is.
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// Where the memory lies.
    pub fn kind(&self) -> MemoryKind {
        self.0.kind
    }

    /// The configuration in force, with the device's limits applied.
    pub fn config(&self) -> &PoolConfig {
        &self.0.config
    }

    /// Memory of `len_bytes` for work on `stream`; zero is legal. Offsets are multiples of
    /// [`PoolConfig::alignment_bytes`].
    ///
    /// The contents are zeros or stale data of this process. Returns at once when cached memory fits; otherwise it
    /// may block in the driver, and, when memory has run out, until enqueued work is done (see the module's steps).
    /// Not to be called from inside a kernel, whose end it may wait for.
    ///
    /// # Errors
    /// `InvalidArgument` for a stream of another device, `TooLarge` for what the device or the pool's limit never
    /// allows, `OutOfMemory` when nothing is left (dropping allocations helps), `DeviceLost`, `Backend`. Cached
    /// memory is handed out on a lost device too.
    pub fn allocate(&self, stream: &Stream, len_bytes: u64) -> Result<Allocation> {
        self.0
            .allocate(stream, len_bytes)
            .map(|(slice, chunk)| Allocation {
                pool: self.clone(),
                slice,
                chunk,
                owner: stream.id(),
                users: Mutex::default(),
            })
            .map_err(|e| e.on_device(self.device().id()).in_call("pool.allocate"))
    }

    /// Gives back to the device every segment without a live allocation, and says how many bytes they have. Does
    /// not wait for enqueued work, which holds the memory that it uses until it is done.
    pub fn trim(&self) -> u64 {
        self.0.sweep();
        self.0.release_unused(false)
    }

    /// What the pool holds and has done, at one moment. Never blocks.
    pub fn stats(&self) -> PoolStats {
        self.0.arena().stats()
    }

    /// Lets both peaks start again from the present values.
    pub fn reset_peak(&self) {
        let stats = &mut self.0.arena().stats;
        stats.peak_in_use_bytes = stats.in_use_bytes;
        stats.peak_reserved_bytes = stats.reserved_bytes;
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stats = self.stats();
        write!(
            f,
            "Pool({}, {:?}, {} of {} bytes in use)",
            self.device().id(),
            self.kind(),
            stats.in_use_bytes,
            stats.reserved_bytes
        )
    }
}

/// Memory of a [`Pool`], owned: a [`BufferSlice`] of exactly the length that was asked for.
///
/// Drop it as soon as the last work that uses it is *enqueued*; the pool keeps the order. Dropping never blocks on
/// enqueued work and never fails, from any thread and on a lost device too. Clones of the slice keep the device's
/// memory valid beyond the drop, but what lies in it may then be somebody else's.
pub struct Allocation {
    slice: BufferSlice,
    /// `None` for zero bytes.
    chunk: Option<usize>,
    owner: u64,
    /// Other streams that used it.
    users: Mutex<Vec<Stream>>,
    // After the memory: this may be the last handle of the device.
    pool: Pool,
}

impl Allocation {
    /// The memory as a range of a buffer; the same as dereferencing.
    pub fn as_slice(&self) -> &BufferSlice {
        &self.slice
    }

    /// The pool that the memory comes from.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Says that work on `stream`, another than it was allocated for, uses the memory. At drop an event is recorded
    /// there, and the memory is reused only after it. Naming a stream twice, or the own one, changes nothing.
    ///
    /// Ordering the uses among themselves is the caller's (with [`Stream::wait`]).
    pub fn record_use(&self, stream: &Stream) {
        if stream.id() == self.owner || self.chunk.is_none() {
            return;
        }
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if users.iter().all(|user| user.id() != stream.id()) {
            users.push(stream.clone());
        }
    }
}

impl Deref for Allocation {
    type Target = BufferSlice;

    fn deref(&self) -> &BufferSlice {
        &self.slice
    }
}

impl From<&Allocation> for Arg {
    fn from(allocation: &Allocation) -> Self {
        Self::Buffer(allocation.slice.clone())
    }
}

impl fmt::Debug for Allocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Allocation").field(&self.slice).finish()
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let Some(chunk) = self.chunk else { return };
        let users = mem::take(self.users.get_mut().unwrap_or_else(PoisonError::into_inner));
        let uses = users.into_iter().filter_map(|stream| self.pool.0.unfinished(Use::Unrecorded(stream)));
        let uses = uses.collect();
        let garbage = self.pool.0.arena().put_back(chunk, uses);
        drop(garbage);
    }
}

impl Inner {
    fn allocate(&self, stream: &Stream, len: u64) -> Result<(BufferSlice, Option<usize>)> {
        let (owner, own) = (stream.device().id(), self.device.id());
        if !owner.is_same_opening(own) {
            let message = format!(
                "the stream is of {}, the pool of {own}; use a pool of the stream's device",
                owner.beside(own)
            );
            return Err(Error::invalid(message));
        }
        if len == 0 {
            return Ok((self.empty()?.all(), None));
        }
        let request = Request { len, chunk_len: self.chunk_len(len)? };
        let cached = self.arena().take(stream, request, false);
        let Grant { chunk, slice } = match cached {
            Some(grant) => grant,
            None => self.allocate_slow(stream, request)?,
        };
        Ok((slice, Some(chunk)))
    }

    #[cold]
    fn allocate_slow(&self, stream: &Stream, request: Request) -> Result<Grant> {
        self.sweep();
        if let Some(grant) = self.arena().take(stream, request, false) {
            return Ok(grant);
        }
        match self.grow(stream, request, self.next_segment_bytes(request.chunk_len)) {
            Err(error) if is_out_of_memory(&error) => {}
            grown => return grown,
        }
        let start = Instant::now();
        let mut is_first_wait = true;
        loop {
            let left = self.config.wait_limit.saturating_sub(start.elapsed());
            let busy = self.sweep().filter(|_| !left.is_zero());
            if let Some(grant) = self.arena().take(stream, request, true) {
                return Ok(grant);
            }
            // Segments that enqueued work may still use stay: given back, they would not be free yet.
            let released = self.release_unused(true);
            if released > 0 || busy.is_none() {
                match self.grow(stream, request, request.chunk_len) {
                    Err(error) if is_out_of_memory(&error) && busy.is_some() => {}
                    grown => return grown.map_err(|error| self.explain(error, request.len)),
                }
            }
            if let Some(event) = busy {
                self.arena().stats.waits += u64::from(mem::take(&mut is_first_wait));
                // However the wait ends, the next sweep sees whether the point was reached.
                let _ = event.wait(Some(left.min(WAIT_SLICE)));
            }
        }
    }

    /// Asks the device for a segment of `segment_len` bytes, or as many less as there are, but at least the
    /// chunk that is handed out of it at once.
    fn grow(&self, stream: &Stream, request: Request, segment_len: u64) -> Result<Grant> {
        let chunk_len = request.chunk_len;
        let segment_len = {
            let mut arena = self.arena();
            let held = arena.stats.reserved_bytes + arena.growing_bytes;
            let room = self.config.limit_bytes.map_or(u64::MAX, |limit| limit.saturating_sub(held));
            if chunk_len > room {
                return Err(out_of_memory(chunk_len, room, "the pool's limit is reached".into()));
            }
            let segment_len = segment_len.min(room).max(chunk_len);
            // Claimed before the driver is asked, so that threads together stay within the limit.
            arena.growing_bytes += segment_len;
            segment_len
        };
        let mut result = self.device.allocate(segment_len, self.kind);
        if segment_len > chunk_len && result.as_ref().is_err_and(is_out_of_memory) {
            result = self.device.allocate(chunk_len, self.kind);
        }
        let result = result.and_then(|buffer| match buffer.len_bytes() {
            len if len >= chunk_len => Ok(buffer),
            len => {
                let message = format!("asked for {segment_len} bytes, got a buffer of {len}");
                Err(Error::new(ErrorKind::Backend { code: 0, message }, "the driver broke its contract"))
            }
        });
        let mut arena = self.arena();
        arena.growing_bytes -= segment_len;
        Ok(arena.add_segment(&result?, stream, request))
    }

    /// Learns which freed memory is used by nobody any more. Gives an event that the rest still waits for, if any.
    fn sweep(&self) -> Option<Event> {
        let Survey { lanes, pending } = self.arena().survey();
        let still_used = |uses: Vec<Use>| uses.into_iter().filter_map(|used| self.unfinished(used)).collect();
        let pending: Vec<_> = pending.into_iter().map(|(id, uses)| (id, still_used(uses))).collect();
        let lanes: Vec<_> = lanes.into_iter().map(|lane| self.observe(lane)).collect();
        let recorded = |used: &Use| match used {
            Use::Recorded(event) => Some(event.clone()),
            Use::Unrecorded(_) => None,
        };
        let mut uses = pending.iter().flat_map(|(_, uses)| uses);
        let mut markers = lanes.iter().filter_map(|lane| lane.marker.as_ref());
        let busy = uses.find_map(recorded).or_else(|| markers.next().map(|marker| marker.event.clone()));
        let garbage = self.arena().apply(Findings { lanes, pending });
        drop(garbage);
        busy
    }

    /// How far a stream has come with what was freed in its order.
    fn observe(&self, lane: LaneSurvey) -> LaneFinding {
        let LaneSurvey { stream, frees, marker } = lane;
        let mut finding = LaneFinding { stream: stream.id(), reached: 0, marker: None };
        match marker {
            Some(marker) if !is_reached(&marker.event) => finding.marker = Some(marker),
            Some(marker) => finding.reached = marker.frees,
            None => {}
        }
        if finding.marker.is_none() && frees > finding.reached {
            match self.unfinished(Use::Unrecorded(stream)) {
                None => finding.reached = frees,
                Some(Use::Recorded(event)) => finding.marker = Some(Marker { event, frees }),
                Some(Use::Unrecorded(_)) => {}
            }
        }
        finding
    }

    /// What is left to wait for of `used`, `None` when it is done. Records the event where that is still to do.
    fn unfinished(&self, used: Use) -> Option<Use> {
        let event = match used {
            Use::Recorded(event) => event,
            Use::Unrecorded(stream) => match stream.record() {
                Ok(event) => event,
                // Nothing runs on a lost device, so nothing uses the memory. Anything else may pass: try again later.
                Err(_) => return (self.device.health() == Health::Ok).then_some(Use::Unrecorded(stream)),
            },
        };
        (!is_reached(&event)).then_some(Use::Recorded(event))
    }

    /// Gives segments without a live allocation back to the device; `at_rest` leaves those that enqueued work may
    /// use. Says how many bytes they have.
    fn release_unused(&self, at_rest: bool) -> u64 {
        let mut garbage = Garbage::default();
        let mut arena = self.arena();
        let released = arena.remove_unused(at_rest, &mut garbage);
        arena.stats.trims += u64::from(released > 0);
        drop(arena);
        drop(garbage);
        released
    }

    /// Length of the chunk that holds `len` bytes.
    fn chunk_len(&self, len: u64) -> Result<u64> {
        if len > self.largest_bytes {
            let limit = self.largest_bytes;
            let name = match self.config.limit_bytes {
                Some(bytes) if bytes == limit => Some(self.limit_name()),
                _ => self.device.info().memory_limit_name.as_deref(),
            };
            return Err(too_large(len, limit, name));
        }
        if self.config.isolate {
            return Ok(len);
        }
        let rounded = len.checked_next_multiple_of(self.config.alignment_bytes).unwrap_or(u64::MAX);
        Ok(rounded.min(self.largest_bytes))
    }

    /// Length of the segment to ask for when a chunk of `chunk_len` bytes fits nowhere.
    fn next_segment_bytes(&self, chunk_len: u64) -> u64 {
        let PoolConfig { initial_segment_bytes, segment_bytes, alignment_bytes, isolate, .. } = self.config;
        let arena = self.arena();
        if isolate || arena.is_large(chunk_len) {
            return chunk_len;
        }
        let wanted = arena.stats.reserved_bytes.clamp(initial_segment_bytes, segment_bytes).max(chunk_len);
        wanted.checked_next_multiple_of(alignment_bytes).unwrap_or(u64::MAX).min(self.largest_bytes)
    }

    /// Adds to an `OutOfMemory` what the pool holds and what to do.
    fn explain(&self, error: Error, len: u64) -> Error {
        let ErrorKind::OutOfMemory { free: outside, .. } = *error.kind() else { return error };
        // The device's own words, where it was asked: they may name a cause that the numbers do not show.
        let said =
            error.call().map(|_| format!("; the device said: {}", error.message())).unwrap_or_default();
        let PoolStats { in_use_bytes, reserved_bytes, largest_free_bytes, pending_bytes, .. } =
            self.arena().stats();
        let inside = reserved_bytes - in_use_bytes - pending_bytes;
        let free = outside.saturating_add(inside);
        let mut message = format!(
            "{len} bytes, but {in_use_bytes} are in use and {free} free: {outside} outside the pool, {inside} inside \
             in pieces of at most {largest_free_bytes}"
        );
        if pending_bytes > 0 {
            message += &format!("; {pending_bytes} more wait for other streams");
        }
        message += &said;
        let chunk_len = self.chunk_len(len).unwrap_or(len);
        let info = self.device.info();
        let in_force = match self.config.limit_bytes {
            Some(limit) if limit.saturating_sub(reserved_bytes) < chunk_len => {
                Some((self.limit_name(), limit))
            }
            _ => info.memory_limit_name.as_deref().map(|name| (name, info.memory_bytes)),
        };
        message += &match in_force {
            Some((name, bytes)) => {
                format!("; drop tensors, use smaller batches or raise {name} from {bytes} bytes")
            }
            None => "; drop tensors or use smaller batches".to_owned(),
        };
        out_of_memory(len, free, message)
    }

    fn limit_name(&self) -> &str {
        self.config.limit_name.as_deref().unwrap_or("the pool's limit")
    }

    fn empty(&self) -> Result<&Buffer> {
        if let Some(buffer) = self.empty.get() {
            return Ok(buffer);
        }
        let buffer = self.device.allocate(0, self.kind)?;
        Ok(self.empty.get_or_init(|| buffer))
    }

    fn arena(&self) -> MutexGuard<'_, Arena> {
        self.arena.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_out_of_memory(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::OutOfMemory { .. })
}

fn out_of_memory(requested: u64, free: u64, message: String) -> Error {
    Error::new(ErrorKind::OutOfMemory { requested, free }, message)
}

/// Whether the work before `event` uses nothing any more, because it is done or has failed.
fn is_reached(event: &Event) -> bool {
    event.is_done().unwrap_or(true)
}

#[cfg(test)]
mod tests;
