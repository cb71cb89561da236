//! Device memory: an entry in the device's account, which leaves it again on drop.

use super::error;
use crate::{MemoryInfo, Result};
use std::sync::{Arc, Mutex, PoisonError};

/// What the device's memory holds. Apart from the device, so that buffers of queued work, which the device owns,
/// do not own the device in turn.
#[derive(Debug)]
pub(super) struct Account {
    total_bytes: u64,
    /// Bytes and number of live buffers.
    used: Mutex<(u64, u64)>,
}

impl Account {
    pub(super) fn new(total_bytes: u64) -> Arc<Self> {
        Arc::new(Self { total_bytes, used: Mutex::new((0, 0)) })
    }

    pub(super) fn info(&self) -> MemoryInfo {
        let (used_bytes, buffers) = *self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let total_bytes = self.total_bytes;
        MemoryInfo { used_bytes, free_bytes: total_bytes - used_bytes, total_bytes, buffers }
    }
}

/// The object inside a [`Buffer`](crate::Buffer).
#[derive(Debug)]
pub(super) struct NullMemory {
    account: Arc<Account>,
    len_bytes: u64,
}

impl NullMemory {
    pub(super) fn new(account: &Arc<Account>, len_bytes: u64) -> Result<Self> {
        let mut used = account.used.lock().unwrap_or_else(PoisonError::into_inner);
        let free = account.total_bytes - used.0;
        if len_bytes > free {
            return Err(error::out_of_memory(len_bytes, free));
        }
        used.0 += len_bytes;
        used.1 += 1;
        Ok(Self { account: account.clone(), len_bytes })
    }
}

impl Drop for NullMemory {
    fn drop(&mut self) {
        let mut used = self.account.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.0 -= self.len_bytes;
        used.1 -= 1;
    }
}
