//! What the layer knows of each byte of a buffer: whether anything wrote it, and who used it last.
//!
//! A buffer is a row of segments whose bytes share one history. Plain data: no locks, no device.

use super::clock::{Clock, Point};
use std::ops::Range;

/// What an operation does, for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Deed {
    Write,
    Fill,
    CopyFrom,
    CopyTo,
    HostRead,
    /// Argument `arg` of the kernel with this number in the table of names.
    Launch {
        kernel: u32,
        arg: u32,
    },
}

/// Who used some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Access {
    pub(super) point: Point,
    pub(super) deed: Deed,
}

/// Two uses of the same bytes that nothing orders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Conflict {
    pub(super) bytes: Range<u64>,
    pub(super) earlier: Access,
    pub(super) earlier_writes: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Segment {
    start: u64,
    is_written: bool,
    last_write: Option<Access>,
    /// Reads since then, the last one of each stream.
    reads: Vec<Access>,
}

/// The history of a buffer.
#[derive(Debug)]
pub(super) struct Shadow {
    len: u64,
    /// In order, from byte 0 to `len` without a gap; one at least.
    segments: Vec<Segment>,
    /// With this many segments, those whose history no longer matters are joined.
    compact_at: usize,
}

const COMPACT_AT_LEAST: usize = 64;

impl Shadow {
    pub(super) fn new(len: u64) -> Self {
        let segment = Segment { start: 0, is_written: false, last_write: None, reads: Vec::new() };
        Self { len, segments: vec![segment], compact_at: COMPACT_AT_LEAST }
    }

    /// What a read (or, with `writes`, a write) by `slot`, which comes after what `known` covers, is in conflict with.
    pub(super) fn conflict(
        &self,
        range: &Range<u64>,
        slot: u32,
        known: &Clock,
        writes: bool,
    ) -> Option<Conflict> {
        let is_open = |access: &Access| access.point.slot != slot && !known.covers(access.point);
        self.pieces(range).find_map(|(bytes, segment)| {
            let write = segment.last_write.filter(is_open).map(|earlier| (earlier, true));
            let read = || segment.reads.iter().copied().find(is_open).map(|earlier| (earlier, false));
            let (earlier, earlier_writes) = write.or_else(|| if writes { read() } else { None })?;
            Some(Conflict { bytes, earlier, earlier_writes })
        })
    }

    /// The first bytes of the range that nothing has written.
    pub(super) fn unwritten(&self, range: &Range<u64>) -> Option<Range<u64>> {
        let mut found = self.pieces(range).filter(|(_, segment)| !segment.is_written).map(|(bytes, _)| bytes);
        let first = found.next()?;
        let end = found.fold(first.end, |end, bytes| if bytes.start == end { bytes.end } else { end });
        Some(first.start..end)
    }

    /// Whether everything that wrote in the range is covered by `known`.
    pub(super) fn writes_are_over(&self, range: &Range<u64>, known: &Clock) -> bool {
        self.pieces(range)
            .all(|(_, segment)| segment.last_write.is_none_or(|access| known.covers(access.point)))
    }

    /// Which parts of the range were written, counted from its start.
    pub(super) fn written_parts(&self, range: &Range<u64>) -> Vec<(Range<u64>, bool)> {
        let parts = self
            .pieces(range)
            .map(|(bytes, segment)| (bytes.start - range.start..bytes.end - range.start, segment.is_written));
        parts.collect()
    }

    /// Notes a read.
    pub(super) fn read(&mut self, range: &Range<u64>, access: Access) {
        for index in self.isolate(range) {
            let reads = &mut self.segments[index].reads;
            match reads.iter_mut().find(|read| read.point.slot == access.point.slot) {
                Some(read) => *read = access,
                None => reads.push(access),
            }
        }
    }

    /// Notes a write, of bytes that are worth something or not.
    pub(super) fn write(&mut self, range: &Range<u64>, access: Access, is_written: bool) {
        let indices = self.isolate(range);
        let Some(first) = indices.clone().next() else { return };
        self.segments.drain(first + 1..indices.end);
        let segment = &mut self.segments[first];
        segment.is_written = is_written;
        segment.last_write = Some(access);
        segment.reads.clear();
    }

    /// Forgets accesses that `known` covers, and joins what they kept apart, when there are many segments.
    pub(super) fn compact(&mut self, known: &Clock) {
        if self.segments.len() < self.compact_at {
            return;
        }
        for segment in &mut self.segments {
            segment.last_write = segment.last_write.filter(|access| !known.covers(access.point));
            segment.reads.retain(|access| !known.covers(access.point));
        }
        self.segments.dedup_by(|next, segment| {
            next.is_written == segment.is_written
                && next.last_write == segment.last_write
                && next.reads == segment.reads
        });
        self.compact_at = (self.segments.len() * 2).max(COMPACT_AT_LEAST);
    }

    /// The segments that share bytes with the range, and which.
    fn pieces(&self, range: &Range<u64>) -> impl Iterator<Item = (Range<u64>, &Segment)> {
        let (start, end) = (range.start, range.end.min(self.len));
        let first = self.index_of(start);
        let segments = if start < end { &self.segments[first..] } else { &[] };
        segments.iter().enumerate().map_while(move |(i, segment)| {
            let stop = self.segments.get(first + i + 1).map_or(self.len, |next| next.start);
            (segment.start < end).then(|| (segment.start.max(start)..stop.min(end), segment))
        })
    }

    /// The segment that holds a byte.
    fn index_of(&self, byte: u64) -> usize {
        self.segments.partition_point(|segment| segment.start <= byte).saturating_sub(1)
    }

    /// Cuts segments at the range's ends; the indices of those inside.
    fn isolate(&mut self, range: &Range<u64>) -> Range<usize> {
        let (start, end) = (range.start, range.end.min(self.len));
        if start >= end {
            return 0..0;
        }
        let first = self.cut(start);
        let last = if end == self.len { self.segments.len() } else { self.cut(end) };
        first..last
    }

    /// Makes a segment begin at `byte`; its index.
    fn cut(&mut self, byte: u64) -> usize {
        let index = self.index_of(byte);
        if self.segments[index].start == byte {
            return index;
        }
        let upper = Segment { start: byte, ..self.segments[index].clone() };
        self.segments.insert(index + 1, upper);
        index + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(slot: u32, epoch: u64) -> Access {
        Access { point: Point { slot, epoch }, deed: Deed::Fill }
    }

    fn knowing(slot: u32, epoch: u64) -> Clock {
        let mut clock = Clock::default();
        clock.set(Point { slot, epoch });
        clock
    }

    #[test]
    fn fresh_memory_is_unwritten_until_every_byte_is_written() {
        let mut shadow = Shadow::new(100);
        assert_eq!(shadow.unwritten(&(10..20)), Some(10..20));
        shadow.write(&(10..15), access(0, 1), true);
        shadow.write(&(17..20), access(0, 2), true);
        assert_eq!(shadow.unwritten(&(10..20)), Some(15..17));
        assert_eq!(shadow.unwritten(&(0..100)), Some(0..10));
        assert_eq!(shadow.unwritten(&(17..20)), None);
        assert_eq!(shadow.unwritten(&(16..16)), None, "an empty range reads nothing");
        shadow.write(&(0..100), access(0, 3), true);
        assert_eq!(shadow.unwritten(&(0..100)), None);
    }

    #[test]
    fn a_write_conflicts_with_open_reads_and_writes_and_a_read_with_open_writes_alone() {
        let mut shadow = Shadow::new(64);
        shadow.write(&(0..32), access(0, 1), true);
        shadow.read(&(32..64), access(0, 2));
        let nothing = Clock::default();
        let conflict = |range, known: &Clock, writes| shadow.conflict(&range, 1, known, writes);
        assert_eq!(conflict(16..48, &nothing, false).unwrap().bytes, 16..32);
        assert_eq!(conflict(32..64, &nothing, false), None, "two reads");
        let found = conflict(40..64, &nothing, true).unwrap();
        assert_eq!((found.bytes, found.earlier_writes), (40..64, false));
        assert_eq!(conflict(0..64, &knowing(0, 2), true), None);
        assert!(conflict(0..64, &knowing(0, 1), true).is_some());
        assert_eq!(shadow.conflict(&(0..64), 0, &nothing, true), None, "a stream is in order with itself");
    }

    #[test]
    fn a_write_takes_the_place_of_what_lay_there() {
        let mut shadow = Shadow::new(64);
        for i in 0..32 {
            shadow.write(&(i * 2..i * 2 + 2), access(0, i + 1), true);
        }
        assert_eq!(shadow.segments.len(), 32);
        shadow.write(&(1..64), access(1, 1), false);
        assert_eq!(shadow.segments.len(), 2);
        assert_eq!(shadow.written_parts(&(0..64)), [(0..1, true), (1..64, false)]);
        assert_eq!(shadow.written_parts(&(1..3)), [(0..2, false)]);
    }

    #[test]
    fn segments_whose_history_is_over_are_joined() {
        let mut shadow = Shadow::new(1 << 20);
        for i in 0..10_000 {
            shadow.write(&(i * 4..i * 4 + 4), access(0, i + 1), true);
            shadow.compact(&knowing(0, i));
        }
        assert!(shadow.segments.len() <= COMPACT_AT_LEAST + 1, "{}", shadow.segments.len());
        assert_eq!(shadow.unwritten(&(0..1 << 20)), Some(40_000..1 << 20));
    }

    #[test]
    fn random_accesses_agree_with_a_model_of_single_bytes() {
        const LEN: usize = 61;
        let mut shadow = Shadow::new(LEN as u64);
        let mut model: Vec<(bool, Option<Access>, Vec<Access>)> = vec![(false, None, Vec::new()); LEN];
        let mut state = 7u64;
        let mut random = |below: u64| {
            // Knuth's MMIX constants; the high bits are good.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for epoch in 1..4000 {
            let (a, b) = (random(LEN as u64 + 1), random(LEN as u64 + 1));
            let range = a.min(b)..a.max(b);
            let bytes = range.start as usize..range.end as usize;
            let own = access(random(3) as u32, epoch);
            let known = knowing(random(3) as u32, random(epoch));
            let open = |access: &Access| access.point.slot != own.point.slot && !known.covers(access.point);
            let writes = random(2) == 0;
            let expected = model[bytes.clone()].iter().any(|(_, write, reads)| {
                write.as_ref().is_some_and(open) || (writes && reads.iter().any(open))
            });
            assert_eq!(shadow.conflict(&range, own.point.slot, &known, writes).is_some(), expected);
            let first = model[bytes.clone()].iter().position(|(written, ..)| !written);
            let found = shadow.unwritten(&range).map(|bytes| (bytes.start - range.start) as usize);
            assert_eq!(found, first);
            if writes {
                let written = random(4) > 0;
                shadow.write(&range, own, written);
                model[bytes].fill((written, Some(own), Vec::new()));
            } else {
                shadow.read(&range, own);
                for (_, _, reads) in &mut model[bytes] {
                    reads.retain(|read| read.point.slot != own.point.slot);
                    reads.push(own);
                }
            }
        }
    }
}
