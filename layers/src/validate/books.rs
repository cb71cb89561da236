//! What is known of streams: how far each has come, what it comes after, and what the host has seen.

use super::clock::{Clock, Point};
use super::object::Tracked;
use super::shadow::{Access, Conflict, Deed};
use halite_hal::Access as Direction;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Weak};

/// The clocks of a layer's devices, and the table of kernel names.
#[derive(Default)]
pub(super) struct Books {
    /// What the host has seen to be over. One for all threads: that work is over is a fact, whoever saw it.
    host: Clock,
    /// Grows with `host`, so that streams learn of it only when there is news.
    host_version: u64,
    lanes: Vec<Lane>,
    names: Vec<Arc<str>>,
    numbers: HashMap<Arc<str>, u32>,
    /// Bytes that should stay as they are until the work that reads them is over.
    watches: Vec<Watch>,
}

/// A stream's entry; a later stream may take it over once everything on it is known to be over.
struct Lane {
    /// The stream's number on its device, from 1.
    number: u64,
    epoch: u64,
    clock: Clock,
    host_version: u64,
    is_open: bool,
}

/// Memory that the host addresses, and that enqueued work reads.
pub(super) struct Watch {
    pub(super) point: Point,
    pub(super) tracked: Weak<Tracked>,
    pub(super) range: Range<u64>,
    pub(super) sum: u64,
    pub(super) deed: Deed,
}

/// An operation's use of some bytes.
pub(super) struct Use {
    pub(super) tracked: Arc<Tracked>,
    pub(super) range: Range<u64>,
    pub(super) direction: Direction,
    pub(super) deed: Deed,
    /// The host may have written them unseen.
    pub(super) is_exposed: bool,
    /// Their sum before the operation, if they are to be watched until it is over.
    pub(super) sum: Option<u64>,
}

/// An operation of a stream.
#[derive(Default)]
pub(super) struct Operation {
    pub(super) uses: Vec<Use>,
    /// The first use is written with what the second one holds.
    pub(super) is_copy: bool,
    /// The id of the list that it is of, and its number there.
    pub(super) context: Option<(u64, usize)>,
}

/// What is wrong with a use.
pub(super) enum Problem {
    Race(Conflict),
    Unwritten(Range<u64>),
}

impl Books {
    /// An entry for a new stream, which has this number on its device: its slot.
    pub(super) fn open(&mut self, number: u64) -> u32 {
        let free = (0..self.lanes.len()).find(|&slot| {
            let lane = &self.lanes[slot];
            !lane.is_open && self.host.at(slot as u32) >= lane.epoch
        });
        let slot = free.unwrap_or(self.lanes.len());
        let epoch = self.lanes.get(slot).map_or(0, |lane| lane.epoch);
        let lane =
            Lane { number, epoch, clock: self.host.clone(), host_version: self.host_version, is_open: true };
        match self.lanes.get_mut(slot) {
            Some(old) => *old = lane,
            None => self.lanes.push(lane),
        }
        slot as u32
    }

    pub(super) fn close(&mut self, slot: u32) {
        self.lanes[slot as usize].is_open = false;
    }

    /// Everything that a stream's next operation comes after, its own operations included.
    pub(super) fn now(&self, slot: u32) -> Clock {
        self.lanes[slot as usize].clock.clone()
    }

    /// The stream's later work comes after what `clock` covers.
    pub(super) fn order(&mut self, slot: u32, clock: &Clock) {
        self.lanes[slot as usize].clock.join(clock);
    }

    /// The host has seen that what `clock` covers is over; what is to be looked at now.
    pub(super) fn learn(&mut self, clock: &Clock) -> Vec<Watch> {
        if !self.host.join(clock) {
            return Vec::new();
        }
        self.host_version += 1;
        let host = &self.host;
        self.watches.extract_if(.., |watch| host.covers(watch.point)).collect()
    }

    /// Whether nothing that was enqueued may still write the bytes.
    pub(super) fn is_at_rest(&self, tracked: &Tracked, range: &Range<u64>) -> bool {
        tracked.shadow().writes_are_over(range, &self.host)
    }

    /// The number of a kernel's name.
    pub(super) fn number_of(&mut self, name: &str) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = self.names.len() as u32;
        let name: Arc<str> = name.into();
        self.names.push(name.clone());
        self.numbers.insert(name, number);
        number
    }

    pub(super) fn name(&self, number: u32) -> Option<Arc<str>> {
        self.names.get(number as usize).cloned()
    }

    pub(super) fn stream_number(&self, slot: u32) -> u64 {
        self.lanes.get(slot as usize).map_or(0, |lane| lane.number)
    }

    /// Gives the stream's next operation its place in the order, and says what is wrong with it. Unless it is then
    /// `refuses`d, its uses become history.
    pub(super) fn enter(&mut self, slot: u32, operation: &Operation, refuses: bool) -> Vec<(usize, Problem)> {
        let lane = &mut self.lanes[slot as usize];
        if lane.host_version != self.host_version {
            lane.host_version = self.host_version;
            lane.clock.join(&self.host);
        }
        let mut problems = Vec::new();
        for (index, used) in operation.uses.iter().enumerate() {
            let shadow = used.tracked.shadow();
            if let Some(conflict) = shadow.conflict(&used.range, slot, &lane.clock, used.direction.writes()) {
                problems.push((index, Problem::Race(conflict)));
            }
            // What a copy moves is worth as much in its new place, so it is the place's next reader that matters.
            let looks = used.direction.reads() && !operation.is_copy && !used.is_exposed;
            if let Some(bytes) = looks.then(|| shadow.unwritten(&used.range)).flatten() {
                problems.push((index, Problem::Unwritten(bytes)));
            }
        }
        if refuses && !problems.is_empty() {
            return problems;
        }
        lane.epoch += 1;
        let point = Point { slot, epoch: lane.epoch };
        lane.clock.set(point);
        self.commit(operation, point);
        problems
    }

    fn commit(&mut self, operation: &Operation, point: Point) {
        let parts = match operation.uses.as_slice() {
            [to, from] if operation.is_copy => {
                let parts = from.tracked.shadow().written_parts(&from.range);
                let known = |(bytes, written): (Range<u64>, bool)| {
                    (to.range.start + bytes.start..to.range.start + bytes.end, written || from.is_exposed)
                };
                Some(parts.into_iter().map(known).collect::<Vec<_>>())
            }
            _ => None,
        };
        for used in operation.uses.iter().filter(|used| !used.direction.writes()) {
            let mut shadow = used.tracked.shadow();
            shadow.read(&used.range, Access { point, deed: used.deed });
            shadow.compact(&self.host);
            drop(shadow);
            if let Some(sum) = used.sum {
                let (tracked, range) = (Arc::downgrade(&used.tracked), used.range.clone());
                self.watches.push(Watch { point, tracked, range, sum, deed: used.deed });
            }
        }
        for used in operation.uses.iter().filter(|used| used.direction.writes()) {
            let mut shadow = used.tracked.shadow();
            let access = Access { point, deed: used.deed };
            match &parts {
                Some(parts) => {
                    parts.iter().for_each(|(bytes, written)| shadow.write(bytes, access, *written))
                }
                None => shadow.write(&used.range, access, true),
            }
            shadow.compact(&self.host);
            drop(shadow);
            // From here on the device itself may change them.
            let is_own = |watch: &Watch| watch.tracked.as_ptr() == Arc::as_ptr(&used.tracked);
            let meets = |a: &Range<u64>, b: &Range<u64>| a.start < b.end && b.start < a.end;
            self.watches.retain(|watch| !is_own(watch) || !meets(&watch.range, &used.range));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_taken_over_only_when_its_work_is_known_to_be_over() {
        let mut books = Books::default();
        let first = books.open(1);
        books.enter(first, &Operation::default(), false);
        let reached = books.now(first);
        books.close(first);
        let second = books.open(2);
        assert_ne!(second, first, "the first stream's work may still run");
        assert!(books.learn(&reached).is_empty());
        let third = books.open(3);
        assert_eq!((third, books.stream_number(first)), (first, 3));
        books.enter(third, &Operation::default(), false);
        assert_eq!(books.now(third).at(third), 2, "epochs go on");
    }

    #[test]
    fn names_have_one_number_each() {
        let mut books = Books::default();
        let numbers = ["a", "b", "a"].map(|name| books.number_of(name));
        assert_eq!(numbers, [0, 1, 0]);
        assert_eq!(books.name(1).as_deref(), Some("b"));
        assert_eq!(books.name(2), None);
    }
}
