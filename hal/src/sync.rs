//! The locks of the pool: the standard library's, or, built with `--cfg shuttle`, those of a checker of schedules.

#[cfg(not(shuttle))]
pub(crate) use std::sync::{Mutex, MutexGuard};

#[cfg(shuttle)]
pub(crate) use shuttle::sync::{Mutex, MutexGuard};
