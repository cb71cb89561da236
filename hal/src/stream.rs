//! In-order queues of work.

use crate::buffer::fresh_id;
use crate::command_list::{Binding, CommandList};
use crate::host::{HostBytes, PendingRead};
use crate::{Arg, BufferSlice, Device, DeviceId, Error, Event, Kernel, Result, Scalar, driver};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// An in-order queue of copies, fills and launches on one device.
///
/// 1. [`Device::create_stream`] makes one; clones are handles to the same queue.
/// 2. Everything enqueued runs in order. Nothing here waits for another stream, and there is no order between
///    streams but by [`record`](Self::record) and [`wait`](Self::wait); that two streams progress at the same time
///    is not promised.
/// 3. Enqueueing does not block, except in methods whose name says so; at most a short copy is done on the spot when
///    nothing is before it. Enqueued work holds what it uses, so the caller may drop its handles at once.
/// 4. After a failure the stream is *poisoned*: what is enqueued is skipped, and `synchronize` and events report
///    the first failure until [`reset`](Self::reset).
/// 5. When the last handle is dropped, enqueued work still runs to its end.
///
/// Every method may be called from any thread; calls from several threads are enqueued in some order. Arguments are
/// checked here, so a call that is refused enqueues nothing and does not poison. Blocking methods called by a
/// native kernel of the same device fail with `InvalidArgument` when they would have to wait; `DeviceLost` may come
/// from all.
#[derive(Clone)]
pub struct Stream(Arc<Inner>);

struct Inner {
    id: u64,
    // Before the device, which this may be the last handle of: a layer may report what outlives its device.
    stream: Box<dyn driver::Stream>,
    peer: Option<Device>,
    device: Device,
}

impl Stream {
    pub(crate) fn new(device: Device, stream: Box<dyn driver::Stream>) -> Self {
        Self(Arc::new(Inner { id: fresh_id(), device, peer: None, stream }))
    }

    /// A stream that also reads `peer`'s memory and waits for its events.
    pub(crate) fn with_peer(device: Device, peer: Device, stream: Box<dyn driver::Stream>) -> Self {
        Self(Arc::new(Inner { id: fresh_id(), device, peer: Some(peer), stream }))
    }

    /// A number that no other object of this process has had; the same for all clones.
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// The device that the queue belongs to.
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// The device that copies may also come from, of a stream that [`Device::create_peer_stream`] made.
    pub fn peer(&self) -> Option<&Device> {
        self.0.peer.as_ref()
    }

    /// Copies owned bytes to the device, behind everything enqueued; does not block.
    ///
    /// The stream holds the bytes until they have been read. [`HostBytes`] from an `Arc` are not copied aside.
    ///
    /// # Errors
    /// `InvalidArgument` when lengths differ or the buffer is of another device; the stream's failure if poisoned.
    pub fn write(&self, dst: &BufferSlice, src: impl Into<HostBytes>) -> Result<()> {
        let src = src.into();
        self.check_len(dst, src.as_slice().len(), "stream.write")?;
        self.name("stream.write", self.0.stream.write(dst, src))
    }

    /// Copies borrowed bytes to the device, behind everything enqueued.
    ///
    /// Blocks until they are no longer needed, which may be before they have arrived.
    ///
    /// # Errors
    /// As [`write`](Self::write); when it had to wait, also the first failure of the work up to the copy.
    pub fn write_blocking(&self, dst: &BufferSlice, src: &[u8]) -> Result<()> {
        self.check_len(dst, src.len(), "stream.write_blocking")?;
        self.name("stream.write_blocking", self.0.stream.write_blocking(dst, src))
    }

    /// Copies from the device, behind everything enqueued, into memory that the result owns; does not block.
    ///
    /// The result may be dropped early: the copy then goes on into memory that the stream holds.
    ///
    /// # Errors
    /// `InvalidArgument` when the buffer is of another device; `OutOfMemory` when the driver has no further event;
    /// the stream's failure if poisoned. A failure of the copy arrives at [`PendingRead::wait`].
    pub fn read(&self, src: &BufferSlice) -> Result<PendingRead> {
        const CALL: &str = "stream.read";
        self.check_device(src, CALL)?;
        let len = usize::try_from(src.len_bytes()).map_err(|_| {
            self.named(Error::invalid(format!("{} bytes do not fit host memory", src.len_bytes())), CALL)
        })?;
        let target = PendingRead::target(len);
        self.name(CALL, self.0.stream.read(src, target.clone()))?;
        Ok(PendingRead::new(target, self.record()?))
    }

    /// Copies from the device into borrowed memory, behind everything enqueued. Blocks until it is there.
    ///
    /// # Errors
    /// `InvalidArgument` when lengths differ or the buffer is of another device; the first failure of the work up
    /// to the copy. After a failure `dst` is unspecified, and nothing writes to it any more.
    pub fn read_blocking(&self, src: &BufferSlice, dst: &mut [u8]) -> Result<()> {
        self.check_len(src, dst.len(), "stream.read_blocking")?;
        self.name("stream.read_blocking", self.0.stream.read_blocking(src, dst))
    }

    /// Copies within the device, or from the stream's [peer](Self::peer), behind everything enqueued; does not block.
    ///
    /// # Errors
    /// `InvalidArgument` when lengths differ, the ranges overlap, or one is of another device; the stream's
    /// failure if poisoned. A link between devices that fails meanwhile, or whose other end is lost, arrives as
    /// `Link` at events and `synchronize`.
    pub fn copy(&self, dst: &BufferSlice, src: &BufferSlice) -> Result<()> {
        const CALL: &str = "stream.copy";
        self.check_device(dst, CALL)?;
        if !self.is_of_peer(src.buffer().device()) {
            self.check_device(src, CALL)?;
        }
        check_copy(dst, src).map_err(|e| self.named(e, CALL))?;
        self.name(CALL, self.0.stream.copy(dst, src))
    }

    /// Repeats `pattern`, of 1, 2, 4 or 8 bytes, over the range, behind everything enqueued; does not block.
    ///
    /// # Errors
    /// `InvalidArgument` when the pattern has another length or does not divide the range's length or offset; the
    /// stream's failure if poisoned.
    pub fn fill(&self, dst: &BufferSlice, pattern: &[u8]) -> Result<()> {
        const CALL: &str = "stream.fill";
        self.check_device(dst, CALL)?;
        check_fill(dst, pattern).map_err(|e| self.named(e, CALL))?;
        self.name(CALL, self.0.stream.fill(dst, pattern))
    }

    /// Runs `kernel` over `grid` workgroups, behind everything enqueued; a grid with a zero does nothing.
    ///
    /// Does not block. The workgroups run in any order and at the same time, and see each other's writes when the
    /// launch is over. The stream holds the kernel and the buffers until then.
    ///
    /// # Errors
    /// `InvalidArgument` when the arguments do not fit [`Kernel::signature`] or the grid exceeds a limit; the
    /// stream's failure if poisoned. What fails inside the kernel arrives at events and `synchronize`.
    pub fn launch(&self, kernel: &Kernel, grid: [u32; 3], args: &[Arg]) -> Result<()> {
        const CALL: &str = "stream.launch";
        self.check_launch(kernel, grid, args).map_err(|e| self.named(e, CALL))?;
        if grid.contains(&0) {
            return Ok(());
        }
        self.name(CALL, self.0.stream.launch(kernel, grid, args))
    }

    /// Replays recorded commands, in their order, with these buffers and scalars in the list's slots.
    ///
    /// Does not block. The stream holds the list and the bindings until the work is over. Commands that other threads
    /// enqueue meanwhile may come between those of the list.
    ///
    /// # Errors
    /// `InvalidArgument` when the bindings do not fit the slots or a launch's signature, and then nothing is
    /// enqueued; the stream's failure if poisoned. A built-in whose binding is shorter than its layout may fail as
    /// enqueued work.
    pub fn replay(&self, list: &CommandList, buffers: &[Binding], scalars: &[Scalar]) -> Result<()> {
        const CALL: &str = "stream.replay";
        list.check(self, buffers, scalars).map_err(|e| self.named(e, CALL))?;
        self.name(CALL, self.0.stream.replay(list, buffers, scalars))
    }

    /// A new event behind everything enqueued so far; does not block.
    ///
    /// The caller owns it, and may drop it at any time.
    ///
    /// # Errors
    /// `DeviceLost`, `OutOfMemory`. A poisoned stream still records: its event reports the failure.
    pub fn record(&self) -> Result<Event> {
        let event = self.name("stream.record", self.0.stream.record())?;
        Ok(Event::new(self.device().id().clone(), event))
    }

    /// Holds everything enqueued later back until `event` is done. Does not block the caller.
    ///
    /// The stream holds the event until then. A failure before the event poisons this stream too.
    ///
    /// # Errors
    /// `InvalidArgument` for an event of another device than the stream's and its [peer](Self::peer). A poisoned stream
    /// may answer with its failure.
    pub fn wait(&self, event: &Event) -> Result<()> {
        const CALL: &str = "stream.wait";
        let (owner, own) = (event.device(), self.device().id());
        if !owner.is_same_opening(own) && !self.is_of_peer(owner) {
            let message = format!("the event is of {}; wait for it on the host instead", owner.beside(own));
            return Err(self.named(Error::invalid(message), CALL));
        }
        self.name(CALL, self.0.stream.wait(event))
    }

    /// Blocks until everything enqueued before the call is over, without limit. Other threads may enqueue meanwhile.
    ///
    /// # Errors
    /// The first failure since creation or the last [`reset`](Self::reset); it stays until a reset.
    pub fn synchronize(&self) -> Result<()> {
        self.name("stream.synchronize", self.0.stream.synchronize(None))
    }

    /// As [`synchronize`](Self::synchronize), with a time limit.
    ///
    /// # Errors
    /// As [`synchronize`](Self::synchronize), and `Timeout` when the limit is reached first; the work goes on.
    pub fn synchronize_timeout(&self, timeout: Duration) -> Result<()> {
        self.name("stream.synchronize", self.0.stream.synchronize(Some(timeout)))
    }

    /// Blocks until what is enqueued has run or been skipped, and forgets the failure; without one, it only waits.
    ///
    /// Events that stand for failed work keep their failure. What other threads enqueue meanwhile may be skipped or
    /// run.
    ///
    /// # Errors
    /// `DeviceLost`, which no reset mends.
    pub fn reset(&self) -> Result<()> {
        self.name("stream.reset", self.0.stream.reset())
    }

    pub(crate) fn check_launch(&self, kernel: &Kernel, grid: [u32; 3], args: &[Arg]) -> Result<()> {
        let (owner, own) = (kernel.device(), self.device().id());
        if !owner.is_same_opening(own) {
            return Err(Error::invalid(format!(
                "kernel '{}' was loaded on {}; load it on this device",
                kernel.name(),
                owner.beside(own)
            )));
        }
        kernel.signature().check(kernel.name(), self.device().info(), grid, args)
    }

    fn is_of_peer(&self, owner: &DeviceId) -> bool {
        self.peer().is_some_and(|peer| owner.is_same_opening(peer.id()))
    }

    fn check_len(&self, slice: &BufferSlice, len: usize, call: &str) -> Result<()> {
        self.check_device(slice, call)?;
        if slice.len_bytes() == len as u64 {
            return Ok(());
        }
        let message = format!("the device range has {} bytes, the host range {len}", slice.len_bytes());
        Err(self.named(Error::invalid(message), call))
    }

    fn check_device(&self, slice: &BufferSlice, call: &str) -> Result<()> {
        let (owner, own) = (slice.buffer().device(), self.device().id());
        if owner.is_same_opening(own) {
            return Ok(());
        }
        let message = format!("the buffer is of {}; use a stream of that device", owner.beside(own));
        Err(self.named(Error::invalid(message), call))
    }

    fn named(&self, error: Error, call: &str) -> Error {
        self.device().name_error(error, call)
    }

    fn name<T>(&self, call: &str, result: Result<T>) -> Result<T> {
        result.map_err(|error| self.named(error, call))
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream#{}({})", self.id(), self.device().id())
    }
}

pub(crate) fn check_copy(dst: &BufferSlice, src: &BufferSlice) -> Result<()> {
    if dst.len_bytes() != src.len_bytes() {
        let (to, from) = (dst.len_bytes(), src.len_bytes());
        return Err(Error::invalid(format!("cannot copy {from} bytes to a range of {to}")));
    }
    if dst.overlaps(src) {
        return Err(Error::invalid("source and target overlap; copy through a third range"));
    }
    Ok(())
}

pub(crate) fn check_fill(dst: &BufferSlice, pattern: &[u8]) -> Result<()> {
    let len = pattern.len() as u64;
    if !matches!(len, 1 | 2 | 4 | 8) {
        return Err(Error::invalid(format!("a pattern has 1, 2, 4 or 8 bytes, got {len}")));
    }
    if !dst.len_bytes().is_multiple_of(len) || !dst.offset().is_multiple_of(len) {
        return Err(Error::invalid(format!(
            "a pattern of {len} bytes does not divide {} bytes at offset {}",
            dst.len_bytes(),
            dst.offset()
        )));
    }
    Ok(())
}
