//! The pool's books: segments, the chunks that they are cut into, and who may take a free chunk.
//!
//! Plain data: no locks, no driver calls. Whatever the driver might free or close (buffers, events, streams) leaves
//! in a [`Garbage`], which the caller drops after unlocking.
//!
//! Invariants, checked by [`Arena::check`] in tests:
//! - the chunks of a segment are linked in order of address and cover it without gap or overlap;
//! - a free chunk lies in exactly one free set: that of its stream's lane, or the shared one;
//! - two neighbouring free chunks never have the same owner.

use super::PoolStats;
use crate::{Buffer, BufferSlice, Event, Stream};
use std::collections::{BTreeMap, BTreeSet};
use std::mem;

const HELD_BY_A_STREAM: &str = "a held chunk has the stream that it was handed out to";
const LANE_WHILE_HELD: &str = "a lane stays while chunks of it are held";

/// What must be dropped after the lock is released.
#[derive(Default)]
pub(super) struct Garbage {
    pub(super) memory: Vec<BufferSlice>,
    pub(super) events: Vec<Event>,
    pub(super) streams: Vec<Stream>,
}

/// What is asked for: `len` bytes, in a chunk of `chunk_len`.
#[derive(Clone, Copy)]
pub(super) struct Request {
    pub(super) len: u64,
    pub(super) chunk_len: u64,
}

/// A chunk that was handed out.
pub(super) struct Grant {
    pub(super) chunk: usize,
    pub(super) slice: BufferSlice,
}

/// What a freed chunk still waits for on another stream.
#[derive(Clone)]
pub(super) enum Use {
    /// Done when the event is.
    Recorded(Event),
    /// The event could not be recorded yet.
    Unrecorded(Stream),
}

/// A point on a stream behind everything that used its chunks freed up to `frees`.
#[derive(Clone)]
pub(super) struct Marker {
    pub(super) event: Event,
    pub(super) frees: u64,
}

/// One stream's free memory, as a sweep needs it.
pub(super) struct LaneSurvey {
    pub(super) stream: Stream,
    pub(super) frees: u64,
    pub(super) marker: Option<Marker>,
}

/// What a sweep asks the driver about.
#[derive(Default)]
pub(super) struct Survey {
    pub(super) lanes: Vec<LaneSurvey>,
    pub(super) pending: Vec<(u64, Vec<Use>)>,
}

/// What a sweep found out about one stream.
pub(super) struct LaneFinding {
    pub(super) stream: u64,
    /// Chunks freed up to here are used by nobody any more.
    pub(super) reached: u64,
    /// What is to be reached next.
    pub(super) marker: Option<Marker>,
}

/// What a sweep found out.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) lanes: Vec<LaneFinding>,
    /// What each pending chunk still waits for.
    pub(super) pending: Vec<(u64, Vec<Use>)>,
}

pub(super) struct Arena {
    /// Requests beyond this have segments apart, so that small ones do not cut up what the next large one needs.
    large_beyond: u64,
    /// Each chunk is a segment that is given back when it is freed.
    isolate: bool,
    chunks: Slab<Chunk>,
    segments: Slab<Segment>,
    /// Free chunks that no enqueued work uses.
    shared: FreeSet,
    lanes: BTreeMap<u64, Lane>,
    pending: BTreeMap<u64, Pending>,
    next_pending: u64,
    /// Chunks freed so far. One clock for all lanes: a lane that is forgotten and made anew must not look older.
    frees: u64,
    pub(super) stats: PoolStats,
    /// Bytes that are being asked of the device.
    pub(super) growing_bytes: u64,
}

struct Segment {
    memory: BufferSlice,
    large: bool,
    /// The chunk at offset 0; splitting and joining keep the index of the lower chunk.
    first: usize,
    /// Allocations that live in it.
    live: usize,
}

struct Chunk {
    segment: usize,
    offset: u64,
    len: u64,
    prev: Option<usize>,
    next: Option<usize>,
    state: State,
    /// The stream that it was allocated for; for a free chunk `None` means that anyone may take it.
    owner: Option<u64>,
    /// When any of it was freed last, on the arena's clock of frees; 0 once nobody uses it.
    freed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Live,
    Pending,
    Free,
}

/// What belongs to one stream.
struct Lane {
    stream: Stream,
    free: FreeSet,
    /// When a chunk of it was freed last.
    last_free: u64,
    /// Chunks that are live or pending.
    held: usize,
    marker: Option<Marker>,
}

struct Pending {
    chunk: usize,
    uses: Vec<Use>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct FreeKey {
    large: bool,
    len: u64,
    segment: usize,
    offset: u64,
    chunk: usize,
}

#[derive(Default)]
struct FreeSet(BTreeSet<FreeKey>);

impl FreeSet {
    /// The smallest chunk of the class with at least `len` bytes; among equals the lowest.
    fn best_fit(&self, large: bool, len: u64) -> Option<FreeKey> {
        let least = FreeKey { large, len, segment: 0, offset: 0, chunk: 0 };
        self.0.range(least..).next().copied().filter(|key| key.large == large)
    }
}

impl Arena {
    pub(super) fn new(large_beyond: u64, isolate: bool) -> Self {
        Self {
            large_beyond,
            isolate,
            chunks: Slab::default(),
            segments: Slab::default(),
            shared: FreeSet::default(),
            lanes: BTreeMap::new(),
            pending: BTreeMap::new(),
            next_pending: 0,
            frees: 0,
            stats: PoolStats::default(),
            growing_bytes: 0,
        }
    }

    /// Whether a request of `len` bytes gets a segment of its own.
    pub(super) fn is_large(&self, len: u64) -> bool {
        len > self.large_beyond
    }

    /// Hands out the best fit for `stream` that needs no waiting. `any_class` also looks among segments of large
    /// requests for small ones, and the other way round.
    pub(super) fn take(&mut self, stream: &Stream, request: Request, any_class: bool) -> Option<Grant> {
        let large = self.is_large(request.chunk_len);
        let own = self.lanes.get(&stream.id()).map(|lane| &lane.free);
        let fit = |large| {
            let own = own.and_then(|free| free.best_fit(large, request.chunk_len));
            let shared = self.shared.best_fit(large, request.chunk_len);
            match (own, shared) {
                (Some(own), Some(shared)) => Some(if shared.len < own.len { shared } else { own }),
                (own, shared) => own.or(shared),
            }
        };
        let key = fit(large).or_else(|| if any_class { fit(!large) } else { None })?;
        self.stats.reuses += 1;
        Some(self.hand_out(key.chunk, stream, request))
    }

    /// Adds fresh memory and hands out its first chunk.
    pub(super) fn add_segment(&mut self, buffer: &Buffer, stream: &Stream, request: Request) -> Grant {
        let segment_len = buffer.len_bytes();
        let large = self.is_large(request.chunk_len);
        let segment = self.segments.insert(Segment { memory: buffer.all(), large, first: 0, live: 0 });
        let chunk = self.chunks.insert(Chunk {
            segment,
            offset: 0,
            len: segment_len,
            prev: None,
            next: None,
            state: State::Free,
            owner: None,
            freed: 0,
        });
        self.segments[segment].first = chunk;
        self.add_free(chunk);
        let stats = &mut self.stats;
        stats.segments += 1;
        stats.segments_created += 1;
        stats.reserved_bytes += segment_len;
        stats.peak_reserved_bytes = stats.peak_reserved_bytes.max(stats.reserved_bytes);
        self.hand_out(chunk, stream, request)
    }

    /// Takes a chunk back: free for its stream at once, or after `uses`.
    pub(super) fn put_back(&mut self, chunk: usize, uses: Vec<Use>) -> Garbage {
        let Chunk { segment, len, .. } = self.chunks[chunk];
        self.segments[segment].live -= 1;
        self.stats.in_use_bytes -= len;
        self.stats.live -= 1;
        self.date(chunk);
        if self.isolate {
            // Enqueued work holds the buffer, so the driver frees it after the last use without our help.
            self.set_pending(chunk, uses);
            let mut garbage = Garbage::default();
            self.remove_segment(segment, &mut garbage);
            return garbage;
        }
        if uses.is_empty() {
            self.set_free(chunk);
        } else {
            self.set_pending(chunk, uses);
        }
        Garbage::default()
    }

    /// Gives up every segment without a live allocation; `at_rest` asks for one that no enqueued work uses either.
    /// Says how many bytes they have.
    pub(super) fn remove_unused(&mut self, at_rest: bool, garbage: &mut Garbage) -> u64 {
        let is_at_rest = |segment: &Segment| {
            let first = &self.chunks[segment.first];
            first.state == State::Free && first.owner.is_none() && first.len == segment.memory.len_bytes()
        };
        let is_unused = |segment: &Segment| segment.live == 0 && (!at_rest || is_at_rest(segment));
        let unused = self.segments.iter().filter(|(_, segment)| is_unused(segment));
        let unused: Vec<_> = unused.map(|(index, _)| index).collect();
        unused.into_iter().map(|segment| self.remove_segment(segment, garbage)).sum()
    }

    /// What to ask the driver, to learn which free memory is used by nobody any more.
    pub(super) fn survey(&self) -> Survey {
        let waiting: BTreeSet<_> = self.pending.values().map(|p| self.chunks[p.chunk].owner).collect();
        let lanes = self.lanes.iter().map(|(id, lane)| {
            let has_freed = !lane.free.0.is_empty() || waiting.contains(&Some(*id));
            LaneSurvey {
                stream: lane.stream.clone(),
                frees: if has_freed { lane.last_free } else { 0 },
                marker: lane.marker.clone(),
            }
        });
        let pending = self.pending.iter().map(|(id, pending)| (*id, pending.uses.clone()));
        Survey { lanes: lanes.collect(), pending: pending.collect() }
    }

    /// Enters what the driver said. Books may have moved on meanwhile; what is gone is passed over.
    pub(super) fn apply(&mut self, findings: Findings) -> Garbage {
        let mut garbage = Garbage::default();
        for (id, uses) in findings.pending {
            let Some(pending) = self.pending.get_mut(&id) else {
                garbage.add_uses(uses);
                continue;
            };
            let is_done = uses.is_empty();
            garbage.add_uses(mem::replace(&mut pending.uses, uses));
            if is_done {
                let chunk = pending.chunk;
                self.clear_pending(id, chunk);
                self.set_free(chunk);
            }
        }
        for finding in findings.lanes {
            self.share(finding.stream, finding.reached);
            let Some(lane) = self.lanes.get_mut(&finding.stream) else {
                garbage.events.extend(finding.marker.map(|marker| marker.event));
                continue;
            };
            // Another sweep may have set a later marker meanwhile; what that one waits for, it will share.
            let old = mem::replace(&mut lane.marker, finding.marker);
            garbage.events.extend(old.map(|marker| marker.event));
        }
        self.forget_idle_lanes(&mut garbage);
        garbage
    }

    /// Statistics with what is counted on demand.
    pub(super) fn stats(&self) -> PoolStats {
        let sets = || self.lanes.values().map(|lane| &lane.free).chain([&self.shared]);
        PoolStats {
            free_chunks: sets().map(|set| set.0.len() as u64).sum(),
            largest_free_bytes: sets().flat_map(|set| set.0.iter().map(|key| key.len)).max().unwrap_or(0),
            ..self.stats
        }
    }

    fn hand_out(&mut self, chunk: usize, stream: &Stream, request: Request) -> Grant {
        let len = request.chunk_len;
        self.remove_free(chunk);
        let Chunk { segment, offset, len: whole, next, owner, freed, .. } = self.chunks[chunk];
        if whole > len {
            let rest = self.chunks.insert(Chunk {
                segment,
                offset: offset + len,
                len: whole - len,
                prev: Some(chunk),
                next,
                state: State::Free,
                owner,
                freed,
            });
            if let Some(next) = next {
                self.chunks[next].prev = Some(rest);
            }
            self.chunks[chunk].next = Some(rest);
            self.add_free(rest);
        }
        let taken = &mut self.chunks[chunk];
        (taken.len, taken.state, taken.owner) = (len, State::Live, Some(stream.id()));
        let lane = self.lanes.entry(stream.id()).or_insert_with(|| Lane {
            stream: stream.clone(),
            free: FreeSet::default(),
            last_free: 0,
            held: 0,
            marker: None,
        });
        lane.held += 1;
        let stats = &mut self.stats;
        stats.allocations += 1;
        stats.live += 1;
        stats.in_use_bytes += len;
        stats.peak_in_use_bytes = stats.peak_in_use_bytes.max(stats.in_use_bytes);
        let segment = &mut self.segments[segment];
        segment.live += 1;
        let slice = segment.memory.slice(offset, request.len).expect("a chunk lies inside its segment");
        Grant { chunk, slice }
    }

    /// Makes a held chunk free for its own stream, joined with free neighbours of the same stream and of nobody.
    fn set_free(&mut self, chunk: usize) {
        let owner = self.chunks[chunk].owner.expect(HELD_BY_A_STREAM);
        self.lanes.get_mut(&owner).expect(LANE_WHILE_HELD).held -= 1;
        let chunk = self.join(chunk, |neighbour| neighbour.is_none_or(|other| other == owner));
        let joined = &mut self.chunks[chunk];
        (joined.state, joined.owner) = (State::Free, Some(owner));
        self.add_free(chunk);
    }

    fn set_pending(&mut self, chunk: usize, uses: Vec<Use>) {
        self.chunks[chunk].state = State::Pending;
        self.stats.pending_bytes += self.chunks[chunk].len;
        self.pending.insert(self.next_pending, Pending { chunk, uses });
        self.next_pending += 1;
    }

    /// Notes that the work of a chunk's own stream on it has all been enqueued.
    fn date(&mut self, chunk: usize) {
        self.frees += 1;
        let chunk = &mut self.chunks[chunk];
        chunk.freed = self.frees;
        let owner = chunk.owner.expect(HELD_BY_A_STREAM);
        self.lanes.get_mut(&owner).expect(LANE_WHILE_HELD).last_free = self.frees;
    }

    fn clear_pending(&mut self, id: u64, chunk: usize) -> Option<Pending> {
        self.stats.pending_bytes -= self.chunks[chunk].len;
        self.pending.remove(&id)
    }

    /// Lets everyone take what `stream` had freed up to `reached`.
    fn share(&mut self, stream: u64, reached: u64) {
        let Some(lane) = self.lanes.get(&stream) else { return };
        let is_reached = |key: &&FreeKey| self.chunks[key.chunk].freed <= reached;
        let idle: Vec<_> = lane.free.0.iter().filter(is_reached).map(|key| key.chunk).collect();
        for chunk in idle {
            self.remove_free(chunk);
            let chunk = self.join(chunk, |neighbour| neighbour.is_none());
            let shared = &mut self.chunks[chunk];
            (shared.owner, shared.freed) = (None, 0);
            self.add_free(chunk);
        }
    }

    /// Drops the handles of streams that have no memory here, so that the pool keeps none of them open.
    fn forget_idle_lanes(&mut self, garbage: &mut Garbage) {
        let is_idle = |lane: &Lane| lane.held == 0 && lane.free.0.is_empty();
        let idle: Vec<_> = self.lanes.iter().filter(|(_, lane)| is_idle(lane)).map(|(id, _)| *id).collect();
        for lane in idle.iter().filter_map(|id| self.lanes.remove(id)) {
            garbage.streams.push(lane.stream);
            garbage.events.extend(lane.marker.map(|marker| marker.event));
        }
    }

    fn remove_segment(&mut self, segment: usize, garbage: &mut Garbage) -> u64 {
        let mut cursor = Some(self.segments[segment].first);
        while let Some(chunk) = cursor {
            let Chunk { next, state, owner, .. } = self.chunks[chunk];
            match state {
                State::Free => self.remove_free(chunk),
                State::Pending => {
                    let id =
                        self.pending.iter().find(|(_, pending)| pending.chunk == chunk).map(|(id, _)| *id);
                    if let Some(pending) = id.and_then(|id| self.clear_pending(id, chunk)) {
                        garbage.add_uses(pending.uses);
                    }
                    if let Some(lane) = owner.and_then(|owner| self.lanes.get_mut(&owner)) {
                        lane.held -= 1;
                    }
                }
                State::Live => unreachable!("only segments without live chunks are removed"),
            }
            self.chunks.remove(chunk);
            cursor = next;
        }
        let Segment { memory, .. } = self.segments.remove(segment);
        let len = memory.len_bytes();
        garbage.memory.push(memory);
        self.stats.segments -= 1;
        self.stats.reserved_bytes -= len;
        len
    }

    /// Joins a chunk, which lies in no free set, with all free neighbours in a row whose owner `fits`. Gives the
    /// index of the whole.
    fn join(&mut self, mut chunk: usize, fits: impl Fn(Option<u64>) -> bool) -> usize {
        let joins = |neighbour: &Chunk| neighbour.state == State::Free && fits(neighbour.owner);
        while let Some(next) = self.chunks[chunk].next
            && joins(&self.chunks[next])
        {
            self.remove_free(next);
            self.merge(chunk, next);
        }
        while let Some(prev) = self.chunks[chunk].prev
            && joins(&self.chunks[prev])
        {
            self.remove_free(prev);
            self.merge(prev, chunk);
            chunk = prev;
        }
        chunk
    }

    /// Appends `upper` to `lower`, its neighbour.
    fn merge(&mut self, lower: usize, upper: usize) {
        let Chunk { len, next, freed, .. } = self.chunks.remove(upper);
        let whole = &mut self.chunks[lower];
        (whole.len, whole.next, whole.freed) = (whole.len + len, next, whole.freed.max(freed));
        if let Some(next) = next {
            self.chunks[next].prev = Some(lower);
        }
    }

    fn add_free(&mut self, chunk: usize) {
        let key = self.key(chunk);
        self.free_set(chunk).0.insert(key);
    }

    fn remove_free(&mut self, chunk: usize) {
        let key = self.key(chunk);
        self.free_set(chunk).0.remove(&key);
    }

    fn key(&self, chunk: usize) -> FreeKey {
        let Chunk { segment, offset, len, .. } = self.chunks[chunk];
        FreeKey { large: self.segments[segment].large, len, segment, offset, chunk }
    }

    fn free_set(&mut self, chunk: usize) -> &mut FreeSet {
        match self.chunks[chunk].owner {
            None => &mut self.shared,
            Some(owner) => {
                &mut self.lanes.get_mut(&owner).expect("a lane stays while it has free chunks").free
            }
        }
    }
}

impl Garbage {
    fn add_uses(&mut self, uses: Vec<Use>) {
        for used in uses {
            match used {
                Use::Recorded(event) => self.events.push(event),
                Use::Unrecorded(stream) => self.streams.push(stream),
            }
        }
    }
}

/// Values with stable indices that are used again.
struct Slab<T> {
    entries: Vec<Option<T>>,
    vacant: Vec<usize>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), vacant: Vec::new() }
    }
}

impl<T> Slab<T> {
    fn insert(&mut self, value: T) -> usize {
        match self.vacant.pop() {
            Some(index) => {
                self.entries[index] = Some(value);
                index
            }
            None => {
                self.entries.push(Some(value));
                self.entries.len() - 1
            }
        }
    }

    fn remove(&mut self, index: usize) -> T {
        self.vacant.push(index);
        self.entries[index].take().expect("indices are removed once")
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &T)> {
        self.entries.iter().enumerate().filter_map(|(index, entry)| Some((index, entry.as_ref()?)))
    }
}

impl<T> std::ops::Index<usize> for Slab<T> {
    type Output = T;

    fn index(&self, index: usize) -> &T {
        self.entries[index].as_ref().expect("indices in use name entries")
    }
}

impl<T> std::ops::IndexMut<usize> for Slab<T> {
    fn index_mut(&mut self, index: usize) -> &mut T {
        self.entries[index].as_mut().expect("indices in use name entries")
    }
}

#[cfg(test)]
impl Arena {
    /// Walks all books and panics where they contradict each other.
    pub(super) fn check(&self) {
        let (mut reserved, mut in_use, mut pending, mut live, mut free) = (0, 0, 0, 0, 0);
        for (index, segment) in self.segments.iter() {
            let (mut cursor, mut prev, mut end, mut live_here) = (Some(segment.first), None, 0, 0);
            while let Some(chunk_index) = cursor {
                let chunk = &self.chunks[chunk_index];
                assert_eq!((chunk.segment, chunk.offset, chunk.prev), (index, end, prev), "chunk order");
                assert!(chunk.len > 0, "empty chunk");
                let key = self.key(chunk_index);
                let holders = self.lanes.iter().filter(|(_, lane)| lane.free.0.contains(&key));
                let mut holders: Vec<_> = holders.map(|(id, _)| Some(*id)).collect();
                holders.extend(self.shared.0.contains(&key).then_some(None));
                match chunk.state {
                    State::Free => {
                        assert_eq!(holders, [chunk.owner], "free set");
                        let joinable = prev
                            .map(|p: usize| &self.chunks[p])
                            .is_some_and(|prev| prev.state == State::Free && prev.owner == chunk.owner);
                        assert!(!joinable, "neighbouring free chunks of one owner");
                        free += 1;
                    }
                    State::Live => {
                        assert!(holders.is_empty());
                        in_use += chunk.len;
                        live_here += 1;
                    }
                    State::Pending => {
                        assert!(holders.is_empty());
                        pending += chunk.len;
                    }
                }
                end += chunk.len;
                prev = cursor;
                cursor = chunk.next;
            }
            assert_eq!((end, live_here), (segment.memory.len_bytes(), segment.live), "segment totals");
            reserved += end;
            live += live_here as u64;
        }
        let stats = self.stats();
        assert_eq!(
            (reserved, in_use, pending, live, free, self.segments.iter().count() as u64),
            (
                stats.reserved_bytes,
                stats.in_use_bytes,
                stats.pending_bytes,
                stats.live,
                stats.free_chunks,
                stats.segments
            ),
            "statistics"
        );
        let held: usize = self.lanes.values().map(|lane| lane.held).sum();
        assert_eq!(held, live as usize + self.pending.len(), "held chunks");
    }
}
