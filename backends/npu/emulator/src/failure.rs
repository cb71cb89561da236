//! What goes wrong, in the plugin interface's words.

use crate::machine::{Fault, LaunchError, MemoryError};
use halite_hal::plugin::{self, Status};
use halite_npu_isa::ProgramError;
use std::ffi::c_char;

/// A status with its explanation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) status: Status,
    pub(crate) text: String,
    pub(crate) detail: [u64; 2],
}

/// Results within the plugin.
pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    pub(crate) fn new(status: Status, text: impl Into<String>) -> Self {
        Self { status, text: text.into(), detail: [0; 2] }
    }

    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self::new(plugin::STATUS_INVALID_ARGUMENT, text)
    }

    pub(crate) fn unsupported(text: impl Into<String>) -> Self {
        Self::new(plugin::STATUS_UNSUPPORTED, text)
    }

    /// Tells the caller of a function, cutting the text to its room.
    ///
    /// # Safety
    /// `error` is null or what the interface promises: a structure of `struct_size` bytes, whose text has room for
    /// `text_capacity` bytes.
    pub(crate) unsafe fn report(&self, error: *mut plugin::Error) {
        // SAFETY: not null here, and a structure begins with its size (this function's contract).
        let known = !error.is_null() && unsafe { (*error).struct_size } >= size_of::<plugin::Error>() as u64;
        if !known {
            return;
        }
        // SAFETY: the structure has at least this version's size (just checked).
        let error = unsafe { &mut *error };
        error.detail = self.detail;
        let room = usize::try_from(error.text_capacity).unwrap_or(0);
        if error.text.is_null() || room == 0 {
            return;
        }
        // SAFETY: the text has room for `text_capacity` bytes (this function's contract), and is initialised by the host.
        let text: &mut [c_char] = unsafe { std::slice::from_raw_parts_mut(error.text, room) };
        plugin::set_fixed_text(text, &self.text);
    }
}

impl From<MemoryError> for Failure {
    fn from(error: MemoryError) -> Self {
        let text = error.to_string();
        match error {
            MemoryError::OutOfMemory { requested, free, .. } => {
                Self { status: plugin::STATUS_OUT_OF_MEMORY, text, detail: [requested, free] }
            }
            _ => Self::invalid(text),
        }
    }
}

impl From<ProgramError> for Failure {
    fn from(error: ProgramError) -> Self {
        Self::new(plugin::STATUS_BAD_FORMAT, error.to_string())
    }
}

impl From<LaunchError> for Failure {
    fn from(error: LaunchError) -> Self {
        let status = match &error {
            LaunchError::Trap(trap) if matches!(trap.fault, Fault::Internal { .. }) => plugin::STATUS_BACKEND,
            LaunchError::Trap(trap) if let Fault::HostMemory { bytes, .. } = trap.fault => {
                let detail = [bytes as u64, 0];
                return Self { status: plugin::STATUS_OUT_OF_MEMORY, text: error.to_string(), detail };
            }
            LaunchError::Trap(_) => plugin::STATUS_FAULT,
            LaunchError::TooManyBlocks { blocks, cores, .. } => {
                let detail = [u64::from(*blocks), u64::from(*cores)];
                return Self { status: plugin::STATUS_TOO_LARGE, text: error.to_string(), detail };
            }
            _ => plugin::STATUS_INVALID_ARGUMENT,
        };
        Self::new(status, error.to_string())
    }
}
