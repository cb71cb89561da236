//! Threads and what they share, as the scheduler uses them: the standard library's, or, built with `--cfg shuttle`,
//! those of a checker that runs the same code under schedules of its own choice (`tests/schedules.rs`).

#[cfg(not(shuttle))]
pub(crate) use std::{
    hint::spin_loop,
    sync::{Condvar, Mutex, MutexGuard, atomic},
    thread, thread_local,
};

#[cfg(shuttle)]
pub(crate) use shuttle::{
    hint::spin_loop,
    sync::{Condvar, Mutex, MutexGuard, atomic},
    thread, thread_local,
};

use std::time::Duration;
#[cfg(not(shuttle))]
use std::time::Instant;

/// A stretch of looking around before a thread sleeps.
pub(crate) struct Patience {
    #[cfg(not(shuttle))]
    begin: Instant,
    #[cfg(shuttle)]
    looks: std::cell::Cell<u32>,
}

impl Patience {
    pub(crate) fn new() -> Self {
        Self {
            #[cfg(not(shuttle))]
            begin: Instant::now(),
            #[cfg(shuttle)]
            looks: std::cell::Cell::new(0),
        }
    }

    /// How long it has lasted.
    #[cfg(not(shuttle))]
    pub(crate) fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }

    /// Time would make a schedule impossible to repeat, so each look at the clock counts for more than the limits.
    #[cfg(shuttle)]
    pub(crate) fn elapsed(&self) -> Duration {
        self.looks.set(self.looks.get() + 1);
        Duration::from_micros(100) * self.looks.get()
    }
}
