//! Fork and join: one thread's numbered items, shared with whoever is idle.
//!
//! Each thread that runs streams owns a [`Slot`]. To share a launch it writes the job into its slot and opens it;
//! idle workers that see an open slot enter, take shares of the items from one counter, and leave. The owner takes
//! shares too, closes the slot when none are left, and waits until everyone has left. Nothing is allocated and no
//! lock is taken; a thread that nobody helps loses a few atomic operations.
//!
//! Rayon 1 was measured as the alternative, on two cores of a Zen 4 virtual machine: two workgroups of 2 µs take
//! 4.4 µs there, because its second thread comes too late, and 2.5 µs here; a launch from outside with a wait for
//! it takes 11 µs there and 0.3 µs here. Large launches are alike. `examples/launch_cost.rs` repeats our side.

use crate::error::lock;
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use crate::sync::thread::{self, Thread};
use crate::sync::{Mutex, spin_loop};
use std::cell::UnsafeCell;
use std::ops::Range;

/// Items of one job that are still to be taken.
pub(crate) struct Shares<'a> {
    next: &'a AtomicU64,
    end: u64,
    chunk: u64,
}

/// Where one thread offers its job. Aligned so that neighbours share no cache line.
#[repr(align(128))]
pub(crate) struct Slot {
    /// [`OPEN`] and [`WAITING`] flags above the number of helpers inside.
    state: AtomicU32,
    /// Helpers that may be inside at once.
    room: AtomicU32,
    /// The first item that nobody has taken.
    next: AtomicU64,
    /// Number of items.
    end: AtomicU64,
    job: UnsafeCell<Job>,
    /// The owner, while it sleeps until its helpers have left.
    owner: Mutex<Option<Thread>>,
    /// Whether a thread outside of the pool uses this spare slot.
    pub(crate) borrowed: AtomicBool,
}

/// A type-erased `&F where F: Fn(&Shares) + Sync`.
#[derive(Clone, Copy)]
struct Job {
    call: unsafe fn(*const (), &Shares<'_>),
    body: *const (),
    chunk: u64,
}

// SAFETY: `job` is written by the owner while the slot is closed and nobody is inside, and read by helpers that are
// inside; `enter` and `close` order the two (see there). Everything else is atomic or locked.
unsafe impl Sync for Slot {}
// SAFETY: the pointers in `job` are to `Sync` data and only used while the owner waits.
unsafe impl Send for Slot {}

const OPEN: u32 = 1 << 31;
const WAITING: u32 = 1 << 30;
const HELPERS: u32 = WAITING - 1;

/// Shares per thread: enough to even out items of different length.
const SHARES_PER_THREAD: u64 = 8;
/// So that the counter cannot run over: the largest grid leaves room for this many items per thread at its end.
const MAX_CHUNK: u64 = 1 << 20;
/// Looks at the helpers before the owner begins to yield, and before it sleeps.
const SPINS: u32 = 200;
const YIELDS: u32 = 200;

impl Shares<'_> {
    /// Runs `body` with all items on the calling thread.
    pub(crate) fn alone(items: u64, body: &impl Fn(&Shares<'_>)) {
        body(&Shares { next: &AtomicU64::new(0), end: items, chunk: items.clamp(1, MAX_CHUNK) });
    }

    /// The next items, for this thread alone; `None` when all are taken.
    pub(crate) fn take(&self) -> Option<Range<u64>> {
        let start = self.next.fetch_add(self.chunk, Ordering::Relaxed);
        (start < self.end).then(|| start..self.end.min(start + self.chunk))
    }

    /// Keeps everyone from taking further items.
    pub(crate) fn cancel(&self) {
        self.next.store(self.end, Ordering::Relaxed);
    }
}

impl Slot {
    pub(crate) fn new() -> Self {
        unsafe fn nothing(_: *const (), _: &Shares<'_>) {}
        Self {
            state: AtomicU32::new(0),
            room: AtomicU32::new(0),
            next: AtomicU64::new(0),
            end: AtomicU64::new(0),
            job: UnsafeCell::new(Job { call: nothing, body: std::ptr::null(), chunk: 1 }),
            owner: Mutex::new(None),
            borrowed: AtomicBool::new(false),
        }
    }

    /// How many more helpers would find items. May be out of date in either direction.
    pub(crate) fn places(&self) -> usize {
        let state = self.state.load(Ordering::SeqCst);
        if state & OPEN == 0 {
            return 0;
        }
        let room = self.room.load(Ordering::Relaxed).saturating_sub(state & HELPERS);
        let items = self.end.load(Ordering::Relaxed).saturating_sub(self.next.load(Ordering::Relaxed));
        items.min(u64::from(room)) as usize
    }

    /// Takes part in the job if there is one with room; whether it did.
    pub(crate) fn help(&self) -> bool {
        if self.places() == 0 {
            return false;
        }
        // Acquire: the value read is of the release sequence that `open` began, so the job is visible if it is OPEN.
        let before = self.state.fetch_add(1, Ordering::Acquire);
        let _inside = Inside(self);
        if before & OPEN == 0 || before & HELPERS >= self.room.load(Ordering::Relaxed) {
            return false;
        }
        // SAFETY: the slot was open when this thread was counted in, so the job is written, and the owner changes
        // it, or lets the body go, only after `close` has seen everyone leave.
        unsafe {
            let job = *self.job.get();
            let shares = Shares { next: &self.next, end: self.end.load(Ordering::Relaxed), chunk: job.chunk };
            (job.call)(job.body, &shares);
        }
        true
    }

    /// Runs `body` on the calling thread, which owns the slot, and on up to `helpers` others that come to help;
    /// `announce` is called once the slot is open. Returns when all have returned from `body`.
    pub(crate) fn share<F: Fn(&Shares<'_>) + Sync>(
        &self,
        items: u64,
        helpers: u32,
        body: &F,
        announce: impl FnOnce(),
    ) {
        unsafe fn call<F: Fn(&Shares<'_>) + Sync>(body: *const (), shares: &Shares<'_>) {
            // SAFETY: `share` stored a pointer to a live `F` and returns only after every call has.
            unsafe { (*body.cast::<F>())(shares) }
        }
        let chunk = (items / ((u64::from(helpers) + 1) * SHARES_PER_THREAD)).clamp(1, MAX_CHUNK);
        // SAFETY: the slot is closed and empty: it is so at first, and `close` leaves it so; and only the owner
        // comes here. (A late helper may be counted in for a moment, but it sees no OPEN and reads nothing.)
        unsafe { *self.job.get() = Job { call: call::<F>, body: (&raw const *body).cast(), chunk } };
        self.next.store(0, Ordering::Relaxed);
        self.end.store(items, Ordering::Relaxed);
        self.room.store(helpers, Ordering::Relaxed);
        // SeqCst, for the order against the sleepers that `announce` looks for (see `Pool`).
        self.state.fetch_or(OPEN, Ordering::SeqCst);
        let _open = Closing(self);
        announce();
        body(&Shares { next: &self.next, end: items, chunk });
    }

    /// Lets nobody in any more, and waits until everyone has left.
    fn close(&self) {
        // Acquire, here and below: what the helpers did happens before what the owner does next.
        let mut state = self.state.fetch_and(!OPEN, Ordering::AcqRel) & !OPEN;
        let mut looks = 0;
        while state & HELPERS != 0 {
            looks += 1;
            if looks <= SPINS {
                spin_loop();
            } else if looks <= SPINS + YIELDS {
                thread::yield_now();
            } else {
                return self.sleep_until_empty();
            }
            state = self.state.load(Ordering::Acquire);
        }
    }

    #[cold]
    fn sleep_until_empty(&self) {
        *lock(&self.owner) = Some(thread::current());
        self.state.fetch_or(WAITING, Ordering::AcqRel);
        while self.state.load(Ordering::Acquire) & HELPERS != 0 {
            thread::park();
        }
        self.state.fetch_and(!WAITING, Ordering::AcqRel);
    }
}

/// Counts a helper out, also when it unwinds.
struct Inside<'a>(&'a Slot);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let before = self.0.state.fetch_sub(1, Ordering::AcqRel);
        if before == WAITING | 1
            && let Some(owner) = &*lock(&self.0.owner)
        {
            owner.unpark();
        }
    }
}

/// Closes the slot, also when the owner's share of the body unwinds.
struct Closing<'a>(&'a Slot);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn every_item_is_taken_once_whoever_helps() {
        let slot = Arc::new(Slot::new());
        let stop = Arc::new(AtomicBool::new(false));
        let helpers: Vec<_> = (0..2)
            .map(|_| {
                let (slot, stop) = (slot.clone(), stop.clone());
                thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        if !slot.help() {
                            thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        for items in [1, 2, 3, 64, 1009] {
            for _ in 0..200 {
                let taken: Vec<_> = (0..items).map(|_| AtomicU32::new(0)).collect();
                let body = |shares: &Shares<'_>| {
                    while let Some(range) = shares.take() {
                        range.for_each(|item| _ = taken[item as usize].fetch_add(1, Ordering::Relaxed));
                    }
                };
                slot.share(items, 2, &body, || ());
                assert!(taken.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
        stop.store(true, Ordering::Relaxed);
        helpers.into_iter().for_each(|helper| helper.join().unwrap());
    }

    #[test]
    fn the_owner_sleeps_until_a_slow_helper_has_left() {
        let slot = Arc::new(Slot::new());
        let done = AtomicBool::new(false);
        let inside = AtomicBool::new(false);
        let owner = thread::current().id();
        thread::scope(|scope| {
            scope.spawn(|| while !slot.help() {});
            let body = |shares: &Shares<'_>| {
                if thread::current().id() == owner {
                    while !inside.load(Ordering::Acquire) {
                        thread::yield_now();
                    }
                } else {
                    inside.store(true, Ordering::Release);
                    thread::sleep(Duration::from_millis(20));
                    done.store(true, Ordering::Release);
                }
                shares.cancel();
            };
            slot.share(2, 1, &body, || ());
            assert!(done.load(Ordering::Acquire));
        });
    }

    #[test]
    fn cancelled_items_are_not_handed_out() {
        let slot = Slot::new();
        let taken = AtomicU32::new(0);
        let body = |shares: &Shares<'_>| {
            while shares.take().is_some() {
                taken.fetch_add(1, Ordering::Relaxed);
                shares.cancel();
            }
        };
        slot.share(100, 1, &body, || ());
        assert_eq!(taken.load(Ordering::Relaxed), 1);
    }
}
