//! What a plugin has handed out and not got back, so that nothing is handed out twice.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, PoisonError};

/// Handles of one kind.
#[derive(Debug, Default)]
pub(crate) struct Handles(Mutex<HashSet<u64>>);

impl Handles {
    /// Notes a handle; false for one that is out already.
    pub(crate) fn add(&self, handle: u64) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(handle)
    }

    /// Forgets a handle. To be called before the plugin gets it back, since it may hand it out again at once.
    pub(crate) fn remove(&self, handle: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&handle);
    }
}

/// Ranges of the host's memory, by their first address.
#[derive(Debug, Default)]
pub(crate) struct HostRanges(Mutex<BTreeMap<u64, u64>>);

impl HostRanges {
    /// Notes a range, which has no wrap-around; false for one that shares a byte with another.
    pub(crate) fn add(&self, start: u64, end: u64) -> bool {
        let mut ranges = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if ranges.range(..end).next_back().is_some_and(|(_, last)| *last > start) {
            return false;
        }
        ranges.insert(start, end);
        true
    }

    /// Forgets the range that starts here.
    pub(crate) fn remove(&self, start: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_out_once() {
        let handles = Handles::default();
        assert!(handles.add(7) && handles.add(8) && !handles.add(7));
        handles.remove(7);
        assert!(handles.add(7));
    }

    #[test]
    fn ranges_may_touch_and_not_overlap() {
        let ranges = HostRanges::default();
        assert!(ranges.add(100, 200) && ranges.add(200, 300) && ranges.add(50, 100));
        for (start, end) in [(199, 200), (150, 160), (0, 51), (299, 400), (0, 1000), (100, 200)] {
            assert!(!ranges.add(start, end), "{start}..{end}");
        }
        ranges.remove(100);
        assert!(ranges.add(120, 180));
    }
}
