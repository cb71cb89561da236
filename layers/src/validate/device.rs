//! The device: allocation with red zones, and what its objects carry.

use super::object::{BufferMark, KernelMark, Tracked};
use super::state::State;
use super::stream::ValidateStream;
use super::zone;
use halite_hal::{
    Buffer, DeviceInfo, Error, ErrorKind, Health, Kernel, KernelSource, MemoryInfo, MemoryKind,
    RecordedCommand, Result, driver,
};
use std::any::Any;
use std::sync::Arc;

/// The wrapped device.
pub(super) struct ValidateDevice(pub(super) Arc<State>);

impl ValidateDevice {
    /// Allocates room for `len` bytes and a zone, or without one where that is what still fits.
    fn allocate_padded(&self, len: u64, kind: MemoryKind) -> Result<(Buffer, bool)> {
        let state = &*self.0;
        let info = state.inner.info();
        let limit = match kind {
            MemoryKind::Pinned => info.limits.max_allocation_bytes,
            _ => info.limits.max_allocation_bytes.min(info.memory_bytes),
        };
        let padded = len.checked_add(zone::BYTES).filter(|padded| *padded <= limit);
        let Some(padded) = padded.filter(|_| len > 0 && state.zones.is_on()) else {
            return Ok((state.inner.driver().allocate(len, kind)?, false));
        };
        let mut result = state.inner.driver().allocate(padded, kind);
        if result.as_ref().is_err_and(is_full) && state.graves() > 0 {
            // What was given back may be all that is missing.
            state.exhume();
            result = state.inner.driver().allocate(padded, kind);
        }
        match result {
            Err(error) if is_full(&error) && self.is_zone_too_much(len, padded) => {
                Ok((state.inner.driver().allocate(len, kind)?, false))
            }
            result => Ok((result?, true)),
        }
    }

    /// Whether the memory that is free suffices without a zone only.
    fn is_zone_too_much(&self, len: u64, padded: u64) -> bool {
        self.0.inner.memory().is_ok_and(|memory| (len..padded).contains(&memory.free_bytes))
    }
}

fn is_full(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::OutOfMemory { .. })
}

impl driver::Device for ValidateDevice {
    fn info(&self) -> &DeviceInfo {
        self.0.inner.info()
    }

    fn memory(&self) -> Result<MemoryInfo> {
        self.0.exhume();
        let memory = self.0.pass(self.0.inner.memory())?;
        let zones = self.0.zones.bytes();
        Ok(MemoryInfo { used_bytes: memory.used_bytes.saturating_sub(zones), ..memory })
    }

    fn health(&self) -> Health {
        self.0.inner.health()
    }

    fn allocate(&self, len_bytes: u64, kind: MemoryKind) -> Result<Buffer> {
        let state = &self.0;
        state.enter("device.allocate")?;
        if state.graves() >= zone::MOST_GRAVES {
            state.exhume();
        }
        let (memory, is_padded) = state.pass(self.allocate_padded(len_bytes, kind))?;
        let has_zone = is_padded && state.zones.mark(&memory, len_bytes);
        let tracked = Tracked::new(state, memory.clone(), len_bytes, has_zone);
        Ok(memory.attach(len_bytes, Box::new(BufferMark(tracked))))
    }

    fn create_stream(&self) -> Result<Box<dyn driver::Stream>> {
        self.0.enter("device.create_stream")?;
        let inner = self.0.pass(self.0.inner.driver().create_stream())?;
        Ok(Box::new(ValidateStream::new(&self.0, inner)))
    }

    fn load(&self, source: &KernelSource) -> Result<Kernel> {
        self.0.enter("device.load")?;
        let kernel = self.0.pass(self.0.inner.driver().load(source))?;
        let mark = KernelMark::new(&self.0, kernel.name());
        Ok(kernel.attach(Box::new(mark)))
    }

    fn isolates_allocations(&self) -> bool {
        true
    }

    fn prepare(&self, commands: &[RecordedCommand]) -> Result<Option<Box<dyn Any + Send + Sync>>> {
        self.0.pass(self.0.inner.driver().prepare(commands))
    }
}

impl Drop for ValidateDevice {
    fn drop(&mut self) {
        self.0.close();
    }
}
