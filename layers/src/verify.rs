//! The layer `verify`: every copy is looked at again when it has arrived.
//!
//! A link that changes bytes without noticing is invisible to everything above it: no error comes, and the numbers are
//! wrong. This layer reads each written and copied range back, reads each read range twice, and compares. What differs is
//! done again, up to [`ATTEMPTS`] times; then the call fails with [`ErrorKind::Link`], which may be tried again. Fills
//! and launches are no copies, and are not looked at.
//!
//! It stands outside of what it checks: `HALITE_LAYERS=fault:transfer~0.01=corrupt,verify`.
//!
//! # What it costs
//! Writes, reads and copies block until they have been compared, so a copy waits for the work before it, and inside of a
//! native kernel fails where it would have to wait. A range is held by the host once or twice meanwhile.

use halite_hal::driver::{self, HostBytes, HostTarget};
use halite_hal::{
    Arg, Binding, Buffer, BufferSlice, Command, CommandList, Device, DeviceInfo, Error, ErrorKind, Event,
    Health, HostMemory, Kernel, KernelSource, Layer, MemoryInfo, MemoryKind, RecordedCommand, Result, Scalar,
    Stream,
};
use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

/// How often a copy is made before its failure is reported.
pub const ATTEMPTS: u32 = 3;

/// The layer `verify`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Verify;

impl Layer for Verify {
    fn name(&self) -> &str {
        "verify"
    }

    fn wrap(&self, inner: Device) -> Result<Device> {
        Ok(Device::new(Arc::new(VerifyDevice { inner })))
    }
}

struct VerifyDevice {
    inner: Device,
}

impl driver::Device for VerifyDevice {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }

    fn memory(&self) -> Result<MemoryInfo> {
        self.inner.memory()
    }

    fn health(&self) -> Health {
        self.inner.health()
    }

    fn allocate(&self, len_bytes: u64, kind: MemoryKind) -> Result<Buffer> {
        self.inner.allocate(len_bytes, kind)
    }

    fn create_stream(&self) -> Result<Box<dyn driver::Stream>> {
        let (inner, device) = (self.inner.driver().create_stream()?, self.inner.clone());
        Ok(Box::new(VerifyStream { inner, device, of_peer: None }))
    }

    fn import(&self, memory: &HostMemory) -> Result<Buffer> {
        self.inner.driver().import(memory)
    }

    fn create_peer_stream(&self, peer: &Device) -> Result<Box<dyn driver::Stream>> {
        let (inner, device) = (self.inner.driver().create_peer_stream(peer)?, self.inner.clone());
        // Below what stands around this layer, which is to see the program's own reads alone.
        let below = peer.object::<Self>().map_or(peer, |own| &own.inner);
        Ok(Box::new(VerifyStream { inner, device, of_peer: Some(below.create_stream()?) }))
    }

    fn load(&self, source: &KernelSource) -> Result<Kernel> {
        self.inner.load(source)
    }

    fn isolates_allocations(&self) -> bool {
        self.inner.driver().isolates_allocations()
    }

    fn prepare(&self, commands: &[RecordedCommand]) -> Result<Option<Box<dyn Any + Send + Sync>>> {
        // A list with copies is enqueued command by command, so that they are seen.
        if has_copies(commands) { Ok(None) } else { self.inner.driver().prepare(commands) }
    }

    fn inner(&self) -> Option<&Device> {
        Some(&self.inner)
    }
}

fn has_copies(commands: &[RecordedCommand]) -> bool {
    commands.iter().any(|command| matches!(command, RecordedCommand::Copy { .. }))
}

struct VerifyStream {
    inner: Box<dyn driver::Stream>,
    device: Device,
    /// What reads the peer's memory, where there is a peer.
    of_peer: Option<Stream>,
}

impl VerifyStream {
    /// Makes attempts at a copy until one tells that the right bytes arrived, as often as is allowed.
    fn until_equal(&self, what: &str, len: u64, mut attempt: impl FnMut() -> Result<bool>) -> Result<()> {
        for _ in 0..ATTEMPTS {
            if attempt()? {
                return Ok(());
            }
        }
        Err(Error::new(
            ErrorKind::Link,
            format!(
                "{what} of {len} bytes arrived with other bytes {ATTEMPTS} times, as the layer 'verify' saw; check the \
                 link and the memory of the device"
            ),
        ))
    }

    fn is_own(&self, range: &BufferSlice) -> bool {
        range.buffer().device().is_same_opening(self.device.id())
    }

    fn bytes_of(&self, range: &BufferSlice) -> Result<Vec<u8>> {
        let mut bytes = vec![0; host_len(range)?];
        self.inner.read_blocking(range, &mut bytes)?;
        Ok(bytes)
    }
}

fn host_len(range: &BufferSlice) -> Result<usize> {
    usize::try_from(range.len_bytes())
        .map_err(|_| Error::invalid(format!("{} bytes do not fit host memory", range.len_bytes())))
}

impl driver::Stream for VerifyStream {
    fn write(&self, dst: &BufferSlice, src: HostBytes) -> Result<()> {
        self.until_equal("a write", dst.len_bytes(), || {
            self.inner.write(dst, src.clone())?;
            Ok(self.bytes_of(dst)? == src.as_slice())
        })
    }

    fn write_blocking(&self, dst: &BufferSlice, src: &[u8]) -> Result<()> {
        self.until_equal("a write", dst.len_bytes(), || {
            self.inner.write_blocking(dst, src)?;
            Ok(self.bytes_of(dst)? == src)
        })
    }

    fn read_blocking(&self, src: &BufferSlice, dst: &mut [u8]) -> Result<()> {
        self.until_equal("a read", src.len_bytes(), || {
            self.inner.read_blocking(src, dst)?;
            Ok(self.bytes_of(src)? == *dst)
        })
    }

    fn read(&self, src: &BufferSlice, dst: HostTarget) -> Result<()> {
        self.until_equal("a read", src.len_bytes(), || {
            self.inner.read(src, dst.clone())?;
            Event::new(self.device.id().clone(), self.inner.record()?).wait(None)?;
            let expected = self.bytes_of(src)?;
            // SAFETY: the target's pointer is valid for its length while `dst` lives, and holds initialised bytes; the
            // one copy that writes it is over, as the event said, and the next attempt begins after this comparison.
            let arrived = unsafe { std::slice::from_raw_parts(dst.as_mut_ptr(), dst.len_bytes()) };
            Ok(arrived == expected)
        })
    }

    fn copy(&self, dst: &BufferSlice, src: &BufferSlice) -> Result<()> {
        self.until_equal("a copy", dst.len_bytes(), || {
            self.inner.copy(dst, src)?;
            let arrived = self.bytes_of(dst)?;
            let Some(of_peer) = self.of_peer.as_ref().filter(|_| !self.is_own(src)) else {
                return Ok(arrived == self.bytes_of(src)?);
            };
            // The copy is over, and with it what the source had to wait for.
            let mut sent = vec![0; arrived.len()];
            of_peer.read_blocking(src, &mut sent)?;
            Ok(arrived == sent)
        })
    }

    fn fill(&self, dst: &BufferSlice, pattern: &[u8]) -> Result<()> {
        self.inner.fill(dst, pattern)
    }

    fn launch(&self, kernel: &Kernel, grid: [u32; 3], args: &[Arg]) -> Result<()> {
        self.inner.launch(kernel, grid, args)
    }

    fn replay(&self, list: &CommandList, buffers: &[Binding], scalars: &[Scalar]) -> Result<()> {
        if !has_copies(list.commands()) {
            return self.inner.replay(list, buffers, scalars);
        }
        list.enqueue(buffers, scalars, |command| match command {
            Command::Copy { dst, src } => self.copy(&dst, &src),
            Command::Fill { dst, pattern } => self.fill(&dst, &pattern),
            Command::Launch { kernel, grid, args } => self.launch(&kernel, grid, &args),
        })
    }

    fn record(&self) -> Result<Box<dyn driver::Event>> {
        self.inner.record()
    }

    fn wait(&self, event: &Event) -> Result<()> {
        self.inner.wait(event)
    }

    fn synchronize(&self, timeout: Option<Duration>) -> Result<()> {
        self.inner.synchronize(timeout)
    }

    fn reset(&self) -> Result<()> {
        self.inner.reset()
    }
}
