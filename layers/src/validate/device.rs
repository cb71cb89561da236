//! The device: allocation with red zones, and what its objects carry.

use super::object::{BufferMark, KernelMark, Tracked};
use super::state::State;
use super::stream::ValidateStream;
use super::zone;
use halite_hal::{
    Buffer, Device, DeviceInfo, Error, ErrorKind, Health, HostMemory, Kernel, KernelSource, MemoryInfo,
    MemoryKind, RecordedCommand, Result, driver,
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
        let padded = padded.filter(|_| len > 0 && state.zones.is_on());
        let room = padded.unwrap_or(len);
        let allocate = |room| {
            let memory = state.inner.driver().allocate(room, kind)?;
            Ok((memory, padded == Some(room)))
        };
        match allocate(room) {
            Err(error) if is_full(&error) => {
                // What the layer holds, or the zone, may be all that is missing. Any other reason stands.
                let held = state.graves() > 0 || state.zones.spares().1 > 0;
                state.exhume();
                state.zones.release_spares();
                match state.inner.memory() {
                    Ok(memory) if held && memory.free_bytes >= room => allocate(room),
                    Ok(memory) if (len..room).contains(&memory.free_bytes) => allocate(len),
                    _ => Err(error),
                }
            }
            result => result,
        }
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
        let (spare_bytes, spares) = self.0.zones.spares();
        let own_bytes = self.0.zones.bytes() + spare_bytes;
        Ok(MemoryInfo {
            used_bytes: memory.used_bytes.saturating_sub(own_bytes),
            free_bytes: memory.free_bytes.saturating_add(spare_bytes),
            buffers: memory.buffers.saturating_sub(spares),
            ..memory
        })
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
        let (memory, has_zone) = match state.zones.reuse(kind, len_bytes) {
            Some(memory) => (memory, true),
            None => {
                let (memory, is_padded) = state.pass(self.allocate_padded(len_bytes, kind))?;
                let has_zone = is_padded && state.zones.mark(&memory, len_bytes);
                (memory, has_zone)
            }
        };
        let tracked = Tracked::new(state, memory.clone(), len_bytes, has_zone);
        Ok(memory.attach(len_bytes, Box::new(BufferMark(tracked))))
    }

    fn import(&self, memory: &HostMemory) -> Result<Buffer> {
        let state = &self.0;
        state.enter("device.import")?;
        let imported = state.pass(state.inner.driver().import(memory))?;
        let len = imported.len_bytes();
        let tracked = Tracked::new(state, imported.clone(), len, false);
        let imported = imported.attach(len, Box::new(BufferMark(tracked)));
        // The host has the address already, and its bytes count as written.
        let _ = imported.host_pointer();
        Ok(imported)
    }

    fn create_stream(&self) -> Result<Box<dyn driver::Stream>> {
        self.0.enter("device.create_stream")?;
        let inner = self.0.pass(self.0.inner.driver().create_stream())?;
        Ok(Box::new(ValidateStream::new(&self.0, None, inner)))
    }

    fn create_peer_stream(&self, peer: &Device) -> Result<Box<dyn driver::Stream>> {
        self.0.enter("device.create_peer_stream")?;
        let known = peer.object::<Self>().map(|peer| &peer.0).filter(|peer| peer.is_beside(&self.0));
        let Some(known) = known else {
            return Err(Error::unsupported(format!(
                "the layer 'validate' around {} is not this device's; open both from one registry",
                peer.id()
            )));
        };
        let inner = self.0.pass(self.0.inner.driver().create_peer_stream(peer))?;
        Ok(Box::new(ValidateStream::new(&self.0, Some(known.clone()), inner)))
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

    fn inner(&self) -> Option<&Device> {
        Some(&self.0.inner)
    }
}

impl Drop for ValidateDevice {
    fn drop(&mut self) {
        self.0.close();
    }
}
