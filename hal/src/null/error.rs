//! Failures as the layer's errors: the one place where a backend translates its driver's codes.

use crate::{Error, ErrorKind};

/// The device is gone; `reason` is that of the first failure.
pub(super) fn lost(reason: &str) -> Error {
    Error::new(ErrorKind::DeviceLost, format!("{reason}; open the device anew"))
}

/// The device is full.
pub(super) fn out_of_memory(requested: u64, free: u64) -> Error {
    let message = format!("{requested} bytes, but {free} are free; drop buffers or use smaller batches");
    Error::new(ErrorKind::OutOfMemory { requested, free }, message)
}
