//! Copies from one GPU to another.

use crate::buffer::{memory, place};
use crate::device::DeviceShared;
use crate::event::{self, CudaEvent};
use crate::stream::{CudaStream, Held, StreamShared};
use halite_hal::{BufferSlice, Device, Error, Event, MemoryKind, Result};
use std::sync::Arc;

/// Copies between two open devices of the backend, which the layer's streams, each of one device, have no call for.
///
/// 1. [`new`](Self::new) makes a queue on the target device, and lets the devices reach each other's memory where their
///    connection allows it; elsewhere the driver takes the way through the host.
/// 2. [`copy`](Self::copy) enqueues a copy behind events of either device, and gives an event of the *target* device, for
///    its streams to wait for.
///
/// Copies of one link run in order. The source's streams do not know of them: whoever overwrites a source waits for the
/// copy's event on the host first. Memory is held until the copies that use it are done.
pub struct PeerLink {
    from: Arc<DeviceShared>,
    to: Arc<DeviceShared>,
    stream: CudaStream,
}

impl PeerLink {
    /// A link from one device to another.
    ///
    /// # Errors
    /// `InvalidArgument` for devices of another backend, or one device twice; `DeviceLost`.
    pub fn new(from: &Device, to: &Device) -> Result<Self> {
        let link = || {
            let (source, target) = (shared(from)?, shared(to)?);
            if source.info.id == target.info.id {
                return Err(Error::invalid("a link joins two devices; copy on a stream within one"));
            }
            if source.context.driver.can_access_peer(target.context.device, source.context.device)? {
                // Without it the copies take longer; that is no failure.
                let has_ordered_memory = source.properties.has_ordered_memory;
                if let Err(error) = target.call(|gpu| gpu.enable_peer(&source.context, has_ordered_memory)) {
                    target.check()?;
                    log::info!("{}: {} is reached through the host: {error}", target.info.id, source.info.id);
                }
            }
            let stream = StreamShared::create(&target)?;
            target.reaper.watch(&stream);
            Ok(Self { from: source, to: target, stream: CudaStream(stream) })
        };
        link().map_err(|error: Error| error.on_device(to.id()).in_call("peer_link.new"))
    }

    /// Copies `src`, of the one device, to `dst`, of the other, once `after` is done.
    ///
    /// # Errors
    /// `InvalidArgument` for ranges of other devices or other lengths; the link's failure, or that of an event.
    pub fn copy(&self, dst: &BufferSlice, src: &BufferSlice, after: &[Event]) -> Result<Event> {
        self.enqueue(dst, src, after)
            .map(|event| Event::new(self.to.info.id.clone(), Box::new(event)))
            .map_err(|error| error.on_device(&self.to.info.id).in_call("peer_link.copy"))
    }

    fn enqueue(&self, dst: &BufferSlice, src: &BufferSlice, after: &[Event]) -> Result<CudaEvent> {
        if dst.len_bytes() != src.len_bytes() {
            let (to, from) = (dst.len_bytes(), src.len_bytes());
            return Err(Error::invalid(format!("cannot copy {from} bytes to a range of {to}")));
        }
        for (slice, device) in [(dst, &self.to), (src, &self.from)] {
            let owner = slice.buffer().device();
            if !owner.is_same_opening(&device.info.id) {
                let own = &device.info.id;
                return Err(Error::invalid(format!(
                    "the buffer is of {owner}, that side of the link of {own}"
                )));
            }
        }
        let (to, from) = (place(dst)?, place(src)?);
        let stream = &self.stream.0;
        for event in after {
            stream.wait(event.object::<CudaEvent>().ok_or_else(event::foreign)?)?;
        }
        if dst.len_bytes() > 0 {
            let context = self.from.context.handle;
            let held = [dst, src].map(|slice| Held::Buffer(slice.buffer().clone()));
            stream.enqueue(held, |gpu, stream| {
                gpu.copy_peer(stream, to.address, (from.address, context), dst.len_bytes() as usize)
            })?;
        }
        stream.record()
    }
}

/// The backend's own object of a device, through whatever layers the handle has: a buffer leads there.
fn shared(device: &Device) -> Result<Arc<DeviceShared>> {
    let probe = device.allocate(0, MemoryKind::Device)?.all();
    Ok(memory(&probe)?.device.clone())
}
