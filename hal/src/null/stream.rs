//! The queue: everything is done as soon as it is enqueued, because nothing is done.

use super::device::{Shared, Work};
use super::event::NullEvent;
use crate::driver::{self, HostBytes, HostTarget};
use crate::{Arg, Buffer, BufferSlice, Error, Kernel, Result};
use std::sync::Arc;
use std::time::Duration;

pub(super) struct NullStream {
    device: Arc<Shared>,
}

impl NullStream {
    pub(super) fn new(device: Arc<Shared>) -> Self {
        Self { device }
    }

    fn enqueue<const N: usize>(&self, slices: [&BufferSlice; N]) -> Result<()> {
        let buffers = slices.map(|slice| slice.buffer().clone()).to_vec();
        self.device.enqueue(Work { _buffers: buffers, _kernel: None })
    }
}

impl driver::Stream for NullStream {
    fn write(&self, dst: &BufferSlice, _src: HostBytes) -> Result<()> {
        self.enqueue([dst])
    }

    fn read_blocking(&self, src: &BufferSlice, dst: &mut [u8]) -> Result<()> {
        self.enqueue([src])?;
        self.synchronize(None)?;
        dst.fill(0);
        Ok(())
    }

    fn read(&self, src: &BufferSlice, _dst: HostTarget) -> Result<()> {
        // A target holds zeros from the start.
        self.enqueue([src])
    }

    fn copy(&self, dst: &BufferSlice, src: &BufferSlice) -> Result<()> {
        self.enqueue([dst, src])
    }

    fn fill(&self, dst: &BufferSlice, _pattern: &[u8]) -> Result<()> {
        self.enqueue([dst])
    }

    fn launch(&self, kernel: &Kernel, _grid: [u32; 3], args: &[Arg]) -> Result<()> {
        let buffer = |arg: &Arg| -> Option<Buffer> {
            match arg {
                Arg::Buffer(slice) => Some(slice.buffer().clone()),
                Arg::Scalar(_) => None,
            }
        };
        let buffers = args.iter().filter_map(buffer).collect();
        self.device.enqueue(Work { _buffers: buffers, _kernel: Some(kernel.clone()) })
    }

    fn record(&self) -> Result<Box<dyn driver::Event>> {
        Ok(Box::new(NullEvent::new(self.device.clone(), self.device.now()?)))
    }

    fn wait(&self, event: &crate::Event) -> Result<()> {
        if event.object::<NullEvent>().is_none() {
            return Err(Error::invalid("the event was not recorded on a null device"));
        }
        // A pause holds all streams at once, so whatever is enqueued behind an open event is held as well.
        self.enqueue([])
    }

    fn synchronize(&self, timeout: Option<Duration>) -> Result<()> {
        self.device.wait(self.device.now()?, timeout)
    }

    fn reset(&self) -> Result<()> {
        // Only the loss of the device poisons a null stream, and no reset mends that.
        self.synchronize(None)
    }
}
