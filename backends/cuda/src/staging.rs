//! Pinned host memory through which copies of pageable memory go.
//!
//! A copy from or to pageable memory makes the driver wait or not, as it sees fit (CUDA Driver API, "API synchronization
//! behavior"); one from or to pinned memory never does.

use crate::buffer::HostAddress;
use crate::device::{DeviceShared, Remains, lock};
use halite_hal::{ErrorKind, Result};
use std::sync::{Arc, Mutex};

/// Largest block; longer copies go through several, or through one again and again.
pub(crate) const BLOCK_BYTES: usize = 4 << 20;
/// Smallest block.
const MIN_BLOCK_BYTES: usize = 4 << 10;
/// Most bytes in blocks of work in flight. Beyond it, copies do with one block each.
const MAX_IN_USE_BYTES: usize = 256 << 20;
/// Most bytes in blocks that wait to be used again.
const MAX_FREE_BYTES: usize = 64 << 20;

/// Blocks of one device.
#[derive(Default)]
pub(crate) struct Staging(Mutex<State>);

#[derive(Default)]
struct State {
    free: Vec<RawBlock>,
    free_bytes: usize,
    in_use_bytes: usize,
}

#[derive(Debug, Clone, Copy)]
struct RawBlock {
    host: HostAddress,
    len_bytes: usize,
}

/// Pinned memory, given back for others when dropped.
pub(crate) struct Block {
    device: Arc<DeviceShared>,
    raw: RawBlock,
}

impl Block {
    /// First byte; valid for the length that was asked for while the block lives. Whoever uses it has it alone.
    pub(crate) fn as_mut_ptr(&self) -> *mut u8 {
        self.raw.host.0.as_ptr()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut state = lock(&self.device.staging.0);
        let len = self.raw.len_bytes;
        state.in_use_bytes -= len;
        if state.free_bytes + len <= MAX_FREE_BYTES && !self.device.is_lost() {
            state.free_bytes += len;
            state.free.push(self.raw);
            return;
        }
        drop(state);
        self.device.bury(Remains::Host(self.raw.host));
    }
}

/// A block of at least `len_bytes`, at most [`BLOCK_BYTES`]; `None` when so many are in use that copies should do with
/// one each, unless this is the one.
pub(crate) fn acquire(device: &Arc<DeviceShared>, len_bytes: usize, only: bool) -> Result<Option<Block>> {
    debug_assert!(len_bytes <= BLOCK_BYTES);
    let len = len_bytes.next_power_of_two().max(MIN_BLOCK_BYTES);
    {
        let mut state = lock(&device.staging.0);
        if !only && state.in_use_bytes + len > MAX_IN_USE_BYTES {
            return Ok(None);
        }
        state.in_use_bytes += len;
        if let Some(index) = state.free.iter().position(|block| block.len_bytes == len) {
            state.free_bytes -= len;
            let raw = state.free.swap_remove(index);
            return Ok(Some(Block { device: device.clone(), raw }));
        }
    }
    match device.call(|gpu| gpu.host_alloc(len)) {
        Ok((host, _)) => {
            let raw = RawBlock { host: HostAddress(host), len_bytes: len };
            Ok(Some(Block { device: device.clone(), raw }))
        }
        Err(error) => {
            lock(&device.staging.0).in_use_bytes -= len;
            // The host has no more memory to pin; that is no reason to fail while another way is left.
            if !only && matches!(error.kind(), ErrorKind::OutOfMemory { .. }) {
                return Ok(None);
            }
            Err(error)
        }
    }
}

impl Staging {
    /// Takes out every block that waits to be used, to be freed.
    pub(crate) fn drain(&self) -> Vec<HostAddress> {
        let mut state = lock(&self.0);
        state.free_bytes = 0;
        state.free.drain(..).map(|block| block.host).collect()
    }
}
