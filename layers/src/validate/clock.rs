//! Vector clocks: which work is known to be over before which.
//!
//! Every stream counts its operations; a [`Point`] is one of them. A [`Clock`] says for each stream up to which
//! operation something comes afterwards: an operation, an event, or whatever the host does next.

/// One operation of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Point {
    /// The stream's place in clocks.
    pub(super) slot: u32,
    /// The operation's number on it, from 1.
    pub(super) epoch: u64,
}

/// For each slot the last epoch that is known to be over; 0 where none is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Clock(Vec<u64>);

impl Clock {
    pub(super) fn covers(&self, point: Point) -> bool {
        self.at(point.slot) >= point.epoch
    }

    pub(super) fn at(&self, slot: u32) -> u64 {
        self.0.get(slot as usize).copied().unwrap_or(0)
    }

    pub(super) fn set(&mut self, Point { slot, epoch }: Point) {
        let slot = slot as usize;
        if self.0.len() <= slot {
            self.0.resize(slot + 1, 0);
        }
        self.0[slot] = epoch;
    }

    /// Learns what `other` knows; whether anything of it was new.
    pub(super) fn join(&mut self, other: &Self) -> bool {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        let mut is_new = false;
        for (own, other) in self.0.iter_mut().zip(&other.0) {
            is_new |= *other > *own;
            *own = (*own).max(*other);
        }
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joining_knows_what_either_knew_and_says_if_that_is_more() {
        let point = |slot, epoch| Point { slot, epoch };
        let (mut a, mut b) = (Clock::default(), Clock::default());
        a.set(point(0, 5));
        b.set(point(2, 1));
        b.set(point(0, 3));
        assert!(a.join(&b));
        assert!(!a.join(&b));
        assert!(a.covers(point(0, 5)) && a.covers(point(2, 1)) && a.covers(point(7, 0)));
        assert!(!a.covers(point(0, 6)) && !a.covers(point(1, 1)));
    }
}
