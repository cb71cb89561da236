//! The wrapped device: what fails outside of streams.

use super::schedule::{Injection, Schedule};
use super::script::{Action, Call, Script};
use super::stream::FaultStream;
use halite_hal::{
    Buffer, Device, DeviceInfo, Error, Health, HostMemory, Kernel, KernelSource, MemoryInfo, MemoryKind,
    RecordedCommand, Result, driver,
};
use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

pub(super) struct FaultDevice {
    inner: Device,
    schedule: Arc<Schedule>,
}

impl FaultDevice {
    pub(super) fn new(inner: Device, script: Arc<Script>, injected: Arc<AtomicU64>) -> Self {
        Self { inner, schedule: Arc::new(Schedule::new(script, injected)) }
    }

    /// # Errors
    /// What befalls this call of `bytes`, of which `free` could be had.
    fn pass(&self, call: Call, what: &dyn fmt::Display, bytes: u64, free: u64) -> Result<()> {
        self.schedule.check()?;
        self.strike(self.schedule.next(call, bytes), what, bytes, free)
    }

    fn strike(&self, fate: Option<Injection>, what: &dyn fmt::Display, bytes: u64, free: u64) -> Result<()> {
        match fate {
            None => Ok(()),
            Some(injection) if injection.action == Action::Lost => Err(self.schedule.lose(&injection)),
            Some(injection) => Err(injection.error(what, bytes, free)),
        }
    }
}

impl driver::Device for FaultDevice {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }

    fn memory(&self) -> Result<MemoryInfo> {
        self.pass(Call::Other, &"asking for memory", 0, 0)?;
        self.inner.memory()
    }

    fn health(&self) -> Health {
        match self.schedule.lost() {
            Some(reason) => Health::Lost { reason },
            None => self.inner.health(),
        }
    }

    fn allocate(&self, len_bytes: u64, kind: MemoryKind) -> Result<Buffer> {
        self.schedule.check()?;
        let Some(limit) = self.schedule.memory_limit() else {
            let fate = self.schedule.next(Call::Allocate, len_bytes);
            // What is free is asked only for the error's sake.
            let free =
                if fate.is_some() { self.inner.memory().map_or(0, |memory| memory.free_bytes) } else { 0 };
            self.strike(fate, &"an allocation", len_bytes, free)?;
            return self.inner.allocate(len_bytes, kind);
        };
        let used = self.inner.memory()?.used_bytes;
        let fate = self.schedule.next(Call::Allocate, used.saturating_add(len_bytes));
        self.strike(fate, &"an allocation", len_bytes, limit.saturating_sub(used))?;
        self.inner.allocate(len_bytes, kind)
    }

    fn import(&self, memory: &HostMemory) -> Result<Buffer> {
        self.pass(Call::Other, &"importing memory", 0, 0)?;
        self.inner.driver().import(memory)
    }

    fn create_stream(&self) -> Result<Box<dyn driver::Stream>> {
        self.pass(Call::CreateStream, &"a new stream", 0, 0)?;
        let inner = self.inner.driver().create_stream()?;
        Ok(Box::new(FaultStream::new(self.inner.clone(), self.schedule.clone(), None, inner)))
    }

    fn create_peer_stream(&self, peer: &Device) -> Result<Box<dyn driver::Stream>> {
        self.pass(Call::CreateStream, &"a new stream", 0, 0)?;
        let inner = self.inner.driver().create_peer_stream(peer)?;
        let schedule = peer.object::<Self>().map(|peer| peer.schedule.clone());
        Ok(Box::new(FaultStream::new(self.inner.clone(), self.schedule.clone(), schedule, inner)))
    }

    fn load(&self, source: &KernelSource) -> Result<Kernel> {
        self.pass(Call::Load, &format_args!("loading kernel '{}'", source.name()), 0, 0)?;
        self.inner.load(source)
    }

    fn isolates_allocations(&self) -> bool {
        self.inner.driver().isolates_allocations()
    }

    fn prepare(&self, commands: &[RecordedCommand]) -> Result<Option<Box<dyn Any + Send + Sync>>, Error> {
        self.pass(Call::Other, &"preparing a list", 0, 0)?;
        self.inner.driver().prepare(commands)
    }

    fn inner(&self) -> Option<&Device> {
        Some(&self.inner)
    }
}
