//! Copies from one GPU to another, on a stream of the one that they go to.

use crate::context::{ContextHandle, Current, StreamHandle};
use crate::device::{CudaDevice, DeviceShared};
use crate::stream::{Held, StreamShared};
use crate::{buffer, op};
use halite_hal::{BufferSlice, Device, Error, ErrorKind, Result, driver};
use std::sync::Arc;

/// Makes a stream of `device` that copies from `peer` too, and lets the devices reach each other's memory where their
/// connection allows it; elsewhere the driver takes the way through the host.
pub(crate) fn create_stream(device: &Arc<DeviceShared>, peer: &Device) -> Result<Arc<StreamShared>> {
    let own = peer.object::<CudaDevice>().map(|peer| &peer.0);
    let source = own.filter(|source| std::ptr::eq(source.context.driver, device.context.driver));
    let Some(source) = source else {
        return Err(Error::unsupported(format!("{} is a device of another driver", peer.id())));
    };
    source.check().map_err(driver::failure_of_peer)?;
    let is_other = source.context.device != device.context.device;
    if is_other && source.context.driver.can_access_peer(device.context.device, source.context.device)? {
        // Without it the copies take longer; that is no failure.
        let has_ordered_memory = source.properties.has_ordered_memory;
        if let Err(error) = device.call(|gpu| gpu.enable_peer(&source.context, has_ordered_memory)) {
            device.check()?;
            log::info!("{}: {} is reached through the host: {error}", device.info.id, source.info.id);
        }
    }
    StreamShared::create(device)
}

/// Enqueues a copy whose source may be another device's memory.
pub(crate) fn copy(stream: &Arc<StreamShared>, dst: &BufferSlice, src: &BufferSlice) -> Result<()> {
    let held = [dst, src].map(|slice| Held::Buffer(slice.buffer().clone()));
    let (to, from) = (buffer::place(dst)?, buffer::place(src)?);
    let owner = &buffer::memory(src)?.device;
    // Pinned memory is the host's, and every context's.
    if Arc::ptr_eq(owner, &stream.device) || !from.is_of_device || dst.len_bytes() == 0 {
        return stream.run(&op::copy(to, from, dst.len_bytes()), held);
    }
    let context: ContextHandle = owner.context.handle;
    enqueue(stream, owner, held, |gpu, raw| {
        gpu.copy_peer(raw, to.address, (from.address, context), dst.len_bytes() as usize)
    })
}

/// Enqueues a command that needs `peer` too, whose loss fails the stream's work and nothing else.
pub(crate) fn enqueue(
    stream: &Arc<StreamShared>,
    peer: &DeviceShared,
    held: impl IntoIterator<Item = Held>,
    run: impl FnOnce(&Current<'_>, StreamHandle) -> Result<()>,
) -> Result<()> {
    if let Err(error) = peer.check() {
        return stream.fail(driver::failure_of_peer(error));
    }
    let mut lost = None;
    stream.enqueue(held, |gpu, raw| match run(gpu, raw) {
        // The driver does not say whose loss it is; a lost context refuses this question too.
        Err(error) if matches!(error.kind(), ErrorKind::DeviceLost) && gpu.memory_info().is_ok() => {
            lost = Some(error);
            Ok(())
        }
        result => result,
    })?;
    let Some(error) = lost else { return Ok(()) };
    let _ = peer.noting_loss(Err::<(), _>(error.clone()));
    stream.fail(driver::failure_of_peer(error))
}
