//! Host memory through which blocking copies go.
//!
//! A driver that has lost its device may go on reading and writing, and nothing says when it has stopped. So it is given
//! only memory that can be left to it: bytes that the caller handed over, or a block from here, but nothing that the
//! caller has lent and may free when the call returns.
//!
//! The exception are devices that are processors. There a driver copies with threads of this process, which come to their
//! end if any do, so that the caller waits for it, lost or not, and the copy goes to its own memory.
//!
//! NOTE: elsewhere a second copy is the price. Blocks are used again, since fresh pages cost ten times as much, and long
//! ranges go through several, so that the host copies from one while the driver fills the next. Measured with PoCL in the
//! part of another sort of device, on two busy cores: as long as before up to 64 KiB, twice from 1 MiB on, three times
//! from 16 MiB on, which for a device behind a bus is less. Mapping the buffer would save the copy, but not keep later
//! commands of other threads from changing it meanwhile.

use crate::buffer::zeros;
use crate::device::{DeviceShared, lock};
use halite_hal::{Error, ErrorKind, Result};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

/// Length of a block: a fraction of what processors have in their second cache.
pub(crate) const BLOCK_BYTES: usize = 1 << 20;
/// Most bytes that go to or from blocks at once; longer ranges go part after part.
pub(crate) const PART_BYTES: usize = 64 << 20;
/// Blocks that wait to be used again; as many as one part needs.
const MOST_SPARE: usize = PART_BYTES / BLOCK_BYTES;

/// Most bytes in blocks of work in flight; writes that would take more wait first.
const MOST_IN_USE_BYTES: usize = 256 << 20;

/// Blocks of one device.
#[derive(Default)]
pub(crate) struct Staging(Mutex<State>);

#[derive(Default)]
struct State {
    spare: Vec<Memory>,
    in_use: usize,
}

/// Memory of [`BLOCK_BYTES`].
struct Memory(NonNull<[u8]>);

// SAFETY: it is owned; who uses it is settled by `Block`.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: it came from a box, and nobody uses it any more (see `Block`).
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// A block, given back for others when dropped. The copy that it is for alone uses it, and holds it until it is over.
pub(crate) struct Block {
    memory: Option<Memory>,
    device: Arc<DeviceShared>,
}

impl Block {
    pub(crate) fn acquire(device: &Arc<DeviceShared>) -> Result<Arc<Self>> {
        let spare = lock(&device.staging.0).spare.pop();
        let fresh = || zeros(BLOCK_BYTES).map(|bytes| Memory(NonNull::from(Box::leak(bytes))));
        let memory = spare.or_else(fresh).ok_or_else(|| {
            let kind = ErrorKind::OutOfMemory { requested: BLOCK_BYTES as u64, free: 0 };
            Error::new(kind, "the host has no memory for a copy")
        })?;
        lock(&device.staging.0).in_use += 1;
        Ok(Arc::new(Self { memory: Some(memory), device: device.clone() }))
    }

    /// First byte; valid for [`BLOCK_BYTES`] while the block lives.
    pub(crate) fn as_mut_ptr(&self) -> *mut u8 {
        self.memory.as_ref().map_or(std::ptr::null_mut(), |memory| memory.0.as_ptr().cast())
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut state = lock(&self.device.staging.0);
        state.in_use -= 1;
        if state.spare.len() < MOST_SPARE {
            state.spare.extend(self.memory.take());
        }
    }
}

impl Staging {
    /// Whether `len_bytes` more may be taken without waiting for work in flight.
    pub(crate) fn has_room(&self, len_bytes: usize) -> bool {
        lock(&self.0).in_use * BLOCK_BYTES + len_bytes <= MOST_IN_USE_BYTES
    }
}

/// `len` bytes as offsets and lengths of pieces.
pub(crate) fn pieces(len: usize, piece: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..len).step_by(piece).map(move |offset| (offset, piece.min(len - offset)))
}
