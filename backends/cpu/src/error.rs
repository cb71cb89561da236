//! How the backend's failures become errors of the layer.

use crate::sync::{Mutex, MutexGuard};
use halite_hal::{Error, ErrorKind};
use std::any::Any;
use std::sync::PoisonError;
use std::time::Duration;

/// A kernel that stopped in `workgroup` because of `reason`.
pub(crate) fn fault(kernel: &str, workgroup: [u32; 3], grid: [u32; 3], reason: &str) -> Error {
    let message = format!(
        "kernel '{kernel}' failed in workgroup {workgroup:?} of {grid:?}: {reason}; reset the stream to go on"
    );
    Error::new(ErrorKind::Fault, message)
}

/// No room for `requested` bytes of `what` when `free` were left.
pub(crate) fn out_of_memory(what: &str, requested: u64, free: u64) -> Error {
    let message = format!("no room for {requested} bytes of {what}, {free} are free; release buffers");
    Error::new(ErrorKind::OutOfMemory { requested, free }, message)
}

/// A wait that reached its limit.
pub(crate) fn timeout(after: Duration) -> Error {
    Error::new(ErrorKind::Timeout { after }, format!("not done after {after:?}; the work goes on"))
}

/// An object that another backend made.
pub(crate) fn foreign(what: &str) -> Error {
    Error::invalid(format!("the {what} was not made by the cpu backend; make it with this device"))
}

/// What a panic said.
pub(crate) fn panic_reason(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    match text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)) {
        Some(text) => format!("panic: {text}"),
        None => "panic with a payload that is no text".into(),
    }
}

/// Locks, also after a panic elsewhere: whatever the backend guards is consistent between statements.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
