//! Handles: numbers that lead to objects, so that a stale or foreign one is an error and not a fault.

use crate::failure::{Failure, Result};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, PoisonError, RwLock};

/// Counts over all kinds, so that a handle of one kind is never one of another.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// The live objects of one kind.
pub(crate) struct Table<T> {
    kind: &'static str,
    objects: LazyLock<RwLock<HashMap<u64, Arc<T>>>>,
}

impl<T> Table<T> {
    pub(crate) const fn new(kind: &'static str) -> Self {
        Self { kind, objects: LazyLock::new(RwLock::default) }
    }

    /// Keeps an object and names it.
    pub(crate) fn insert(&self, object: Arc<T>) -> u64 {
        let handle = NEXT.fetch_add(1, Ordering::Relaxed);
        self.objects.write().unwrap_or_else(PoisonError::into_inner).insert(handle, object);
        handle
    }

    /// The object of a handle.
    pub(crate) fn find(&self, handle: u64) -> Result<Arc<T>> {
        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
        objects.get(&handle).cloned().ok_or_else(|| {
            Failure::invalid(format!(
                "{handle} is the handle of no {}, or of one that was given back",
                self.kind
            ))
        })
    }

    /// Forgets a handle.
    pub(crate) fn remove(&self, handle: u64) -> Option<Arc<T>> {
        self.objects.write().unwrap_or_else(PoisonError::into_inner).remove(&handle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_ends_when_it_is_given_back_and_is_never_used_again() {
        let (numbers, words) = (Table::new("number"), Table::new("word"));
        let number = numbers.insert(Arc::new(7));
        let word = words.insert(Arc::new("seven"));
        assert_ne!(number, word);
        assert!(words.find(number).unwrap_err().text.contains("no word"));
        assert_eq!(numbers.remove(number).as_deref(), Some(&7));
        assert!(numbers.find(number).is_err() && numbers.remove(number).is_none());
        assert_ne!(numbers.insert(Arc::new(8)), number);
    }
}
