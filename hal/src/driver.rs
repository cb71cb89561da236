//! What a backend implements. Callers use the checked handles ([`Device`](crate::Device),
//! [`Stream`](crate::Stream), [`Event`](crate::Event)) instead, which pass only legal calls on.
//!
//! To write a backend, copy the folder [`null`](crate::null) and fill it in; the same file names recur in every
//! backend.
//!
//! # What holds for every method
//!
//! - **Threads.** It may be called from any thread, and from several at once on one object.
//! - **Ownership.** Arguments that are borrowed are used during the call only; what work needs for longer, it holds
//!   by cloned handles. A result is the caller's, and keeps alive what it depends on (the library, the context, the
//!   queue). It may be dropped at any time, in any order, on any thread and on a lost device: the drop does not
//!   panic and does not wait for enqueued work.
//! - **Blocking.** It waits for enqueued work only where its text says so. "May take long" means that a driver, a
//!   compiler or a file system is asked, whose time is not ours to bound.
//! - **Errors.** `# Errors` names the kinds that have a meaning of their own. Beside them, whatever reaches a
//!   driver may fail with `DeviceLost`, from then on for good, and with `Backend` for a code that fits no other
//!   kind. Device and call are added by the handles.

use crate::command_list::{Binding, Command, CommandList, RecordedCommand};
use crate::{
    Arg, Buffer, BufferSlice, DeviceInfo, Error, ErrorKind, Health, HostMemory, Kernel, KernelSource,
    MemoryInfo, MemoryKind, Result, Scalar,
};
use std::any::Any;
use std::time::Duration;

/// One driver stack.
///
/// 1. It is made without touching the driver, and registered.
/// 2. `probe` looks for the driver and lists its devices, as often as asked.
/// 3. `open` gives one of them.
/// 4. Dropping it closes no device. Nothing is ever torn down through statics, and no library is unloaded.
pub trait Backend: Send + Sync {
    /// `cpu`, `cuda`, `opencl`, `npu`: the first part of a [`DeviceId`](crate::DeviceId).
    ///
    /// Always the same; returns at once.
    fn name(&self) -> &str;

    /// The devices that are there now.
    ///
    /// May take long the first time, when it loads libraries. Opens no device, prints nothing and never panics. The
    /// position of a device is the index in its `id`.
    ///
    /// # Errors
    /// `Unavailable` with the reason when there is no driver or no device. `InvalidArgument` for settings that are
    /// wrong; `BadFormat` or `AbiMismatch` for a file that is no driver of this version.
    fn probe(&self) -> Result<Vec<DeviceInfo>>;

    /// Opens device `index`. May take long.
    ///
    /// Whether a second call gives the same device or another opening of it, with memory accounted apart, is up to
    /// the backend; a lost device is opened anew. The device is closed after the handle and everything made by it
    /// have been dropped.
    ///
    /// The handles refuse objects of another opening by the mark in `info().id`, so the backend makes that id with
    /// [`DeviceId::opened`](crate::DeviceId::opened), once for each opening, and gives its clones to all that the
    /// device makes. Handles to the same opening have the same mark.
    ///
    /// # Errors
    /// `Unavailable` when it is not there; the other kinds of [`probe`](Self::probe); `OutOfMemory` when the driver
    /// has no room for one more opening.
    fn open(&self, index: u32) -> Result<crate::Device>;
}

/// One accelerator, opened.
///
/// 1. [`Backend::open`] makes it, inside the handle [`crate::Device`]; layers may wrap it.
/// 2. It makes buffers, streams and kernels.
/// 3. Should it be lost, that is final: `health` tells the first reason, and every call that reaches the driver fails
///    with `DeviceLost` and that reason.
/// 4. It is closed after it, everything made by it and all enqueued work are gone.
///
/// Its methods stand outside of the order of streams: they neither wait for enqueued work nor hold it up, but for
/// [`allocate`](Self::allocate) on a full device. Arguments are within the limits of `info`, and sources are of a
/// format that it accepts and require features that it has.
pub trait Device: Any + Send + Sync {
    /// What the device is and can do, as probed, under an id with the mark of the opening ([`Backend::open`]).
    ///
    /// Never changes; returns at once, on a lost device too. A layer answers with the id of the device inside.
    fn info(&self) -> &DeviceInfo;

    /// Memory in use and free at this moment; other threads and processes may change it meanwhile.
    ///
    /// May ask the driver.
    ///
    /// # Errors
    /// Those of every method.
    fn memory(&self) -> Result<MemoryInfo>;

    /// Whether it still answers. May ask the driver.
    ///
    /// `Lost` stays, with the reason of the first failure. Any other failure to answer is `Ok` here and an error of
    /// the next call.
    fn health(&self) -> Health;

    /// Memory whose contents are zeros or stale data of this process; zero bytes is legal.
    ///
    /// May take long. On a full device it may also wait, within a limit of its own, for enqueued work that still
    /// holds dropped buffers. The memory is freed when the last handle is dropped; work that uses it holds one.
    ///
    /// # Errors
    /// `OutOfMemory` with what is free now, `Unsupported` for a kind that the device lacks, `TooLarge` for a limit
    /// that only the driver knows.
    fn allocate(&self, len_bytes: u64, kind: MemoryKind) -> Result<Buffer>;

    /// A new in-order queue, empty and without a failure. May take long.
    ///
    /// # Errors
    /// `OutOfMemory` when the driver has no further queue.
    fn create_stream(&self) -> Result<Box<dyn Stream>>;

    /// Makes a buffer of the host's memory, which kernels and copies use in place, or refuses; nothing is copied.
    ///
    /// Asked only where [`Limits::import_alignment_bytes`](crate::Limits::import_alignment_bytes) is not 0, and then for
    /// memory that is aligned to it and within the limits. The buffer is of the kind `HostVisible`, shows the memory's
    /// own address, and counts nothing in [`memory`](Self::memory), not being the device's. Its object holds a handle to
    /// the memory until the driver can touch it no more. May take long, to pin pages.
    ///
    /// # Errors
    /// `Unsupported` without such memory, as the default; `OutOfMemory` when no more of it can be pinned.
    fn import(&self, memory: &HostMemory) -> Result<Buffer> {
        let _ = memory;
        Err(no_import())
    }

    /// A new in-order queue of this device whose copies may also read `peer`'s memory, and which may also wait for
    /// `peer`'s events. May take long.
    ///
    /// `peer` is another opening of a device of the same backend; layers may stand around it, so the backend's own
    /// object is [`crate::Device::object`]. The stream holds both devices.
    ///
    /// # Errors
    /// `Unsupported` where no link leads from the one to the other, as the default; `OutOfMemory` when the driver has no
    /// further queue.
    fn create_peer_stream(&self, peer: &crate::Device) -> Result<Box<dyn Stream>> {
        Err(no_peers(self.info(), peer))
    }

    /// Loads a kernel. May compile, and so take long; nothing is cached here.
    ///
    /// The kernel holds what it needs of `source`, and is unloaded when the last handle is dropped; launches hold
    /// one.
    ///
    /// # Errors
    /// `Build` with the compiler's log, `BadFormat` for code that is damaged or disagrees with its signature,
    /// `Unsupported` for a language, an instruction or a built-in that the device does not take, `InvalidArgument`
    /// for an entry that the code does not have, `OutOfMemory`.
    fn load(&self, source: &KernelSource) -> Result<Kernel>;

    /// Whether pools are to give each allocation memory of its own ([`crate::PoolConfig::isolate`]), so that accesses
    /// beyond one cannot hide in another. Always the same.
    ///
    /// For layers that look for such; a layer that does not care answers as the device inside does.
    fn isolates_allocations(&self) -> bool {
        false
    }

    /// Turns recorded commands into a native graph, where the driver has one; the default has none.
    ///
    /// The commands have been checked; each [`Stream::replay`] binds their slots anew. Enqueues nothing; may take
    /// long. The graph is found again by [`CommandList::object`] and dropped with the list, which holds the
    /// commands, and so their kernels and fixed buffers, for as long.
    ///
    /// # Errors
    /// `OutOfMemory`. A driver that cannot express the commands answers `Ok(None)`.
    fn prepare(&self, commands: &[RecordedCommand]) -> Result<Option<Box<dyn Any + Send + Sync>>> {
        let _ = commands;
        Ok(None)
    }

    /// The device that this one is made around, by a layer; backends have none.
    ///
    /// So [`crate::Device::object`] finds the backend's own, however many layers there are.
    fn inner(&self) -> Option<&crate::Device> {
        None
    }
}

/// The answer of a device that uses no memory of the host's in place.
pub(crate) fn no_import() -> Error {
    Error::unsupported(
        "the device uses no memory of the host in place; allocate a buffer and write the bytes to it",
    )
}

/// The answer of a device that no link leads to from `peer`.
pub(crate) fn no_peers(info: &DeviceInfo, peer: &crate::Device) -> Error {
    let (own, peer) = (&info.id, peer.id());
    Error::unsupported(format!(
        "no link leads from {peer} to {own}; read on a stream of {peer}, and write on one of {own}"
    ))
}

/// An in-order queue.
///
/// 1. [`Device::create_stream`] makes it.
/// 2. Copies, fills, launches and replays are enqueued. Each runs after those before it are over, and holds its
///    buffers, kernels and host bytes until it is over itself.
/// 3. `record` marks a point in that order, and `wait` holds later work back for a point of another stream: there
///    is no other order between streams.
/// 4. The first failure of enqueued work *poisons* the stream: work behind it is skipped, and events behind it,
///    `synchronize` and every call that would enqueue report that failure.
/// 5. `reset` forgets the failure when everything enqueued is over.
/// 6. After its drop, enqueued work still runs to its end.
///
/// To *enqueue* never waits for work, though a backend may do a short copy on the calling thread when nothing is
/// before it. Calls from several threads are enqueued in some order. Only `write_blocking`, `read_blocking`,
/// `synchronize` and `reset` wait for work; called by a native kernel of the same device, where that might never
/// end, they fail with `InvalidArgument`.
///
/// The handles have checked that ranges, kernels and events belong to this opening of the device, that ranges lie in their
/// buffers, that lengths agree and that launches fit their signatures. A call that is refused enqueues nothing and
/// does not poison.
pub trait Stream: Send + Sync {
    /// Enqueues a copy of owned host bytes to the device; the bytes are held until they have been read.
    ///
    /// # Errors
    /// The stream's failure if poisoned.
    fn write(&self, dst: &BufferSlice, src: HostBytes) -> Result<()>;

    /// Enqueues a copy to the device from borrowed bytes, and blocks until they are no longer read.
    ///
    /// They need not have arrived by then: the default copies them aside and waits for nothing.
    ///
    /// # Errors
    /// The stream's failure if poisoned; where it waited, also that of the work up to the copy.
    fn write_blocking(&self, dst: &BufferSlice, src: &[u8]) -> Result<()> {
        self.write(dst, src.into())
    }

    /// Copies from the device into borrowed memory, behind everything enqueued, and blocks until it is there.
    ///
    /// After an error `dst` is unspecified, and nothing writes to it any more.
    ///
    /// # Errors
    /// The first failure of the work up to the copy.
    fn read_blocking(&self, src: &BufferSlice, dst: &mut [u8]) -> Result<()>;

    /// Enqueues a copy from the device into memory that it shares with the caller.
    ///
    /// The copy alone touches `dst` until an event recorded behind it is done, and holds a handle for as long.
    ///
    /// # Errors
    /// The stream's failure if poisoned.
    fn read(&self, src: &BufferSlice, dst: HostTarget) -> Result<()>;

    /// Enqueues a copy within the device, or on a stream with a peer also from the peer; the ranges do not overlap.
    ///
    /// # Errors
    /// The stream's failure if poisoned. A link that fails while it copies, or whose other end is lost, is a `Link` of the
    /// stream's work.
    fn copy(&self, dst: &BufferSlice, src: &BufferSlice) -> Result<()>;

    /// Enqueues a fill that repeats `pattern`: 1, 2, 4 or 8 bytes, of which length and offset are multiples.
    ///
    /// # Errors
    /// The stream's failure if poisoned.
    fn fill(&self, dst: &BufferSlice, pattern: &[u8]) -> Result<()>;

    /// Enqueues a kernel over a grid, which has no zero. Workgroups run in any order, and at the same time.
    ///
    /// # Errors
    /// The stream's failure if poisoned; `InvalidArgument` for a built-in whose range is shorter than its layout.
    /// What goes wrong inside the kernel is a `Fault` of the stream's work.
    fn launch(&self, kernel: &Kernel, grid: [u32; 3], args: &[Arg]) -> Result<()>;

    /// Enqueues recorded commands with these bindings, which have been checked, in the order of the list.
    ///
    /// The default enqueues them one by one, so commands of other threads may come between them, and after an error
    /// those before it stay enqueued. Bindings are held until the work is over.
    ///
    /// # Errors
    /// The stream's failure if poisoned. A built-in whose range is shorter than its layout is refused as by
    /// [`launch`](Self::launch), or fails as enqueued work where the slots are bound later.
    fn replay(&self, list: &CommandList, buffers: &[Binding], scalars: &[Scalar]) -> Result<()> {
        list.enqueue(buffers, scalars, |command| match command {
            Command::Copy { dst, src } => self.copy(&dst, &src),
            Command::Fill { dst, pattern } => self.fill(&dst, &pattern),
            Command::Launch { kernel, grid, args } => self.launch(&kernel, grid, &args),
        })
    }

    /// A new event behind everything enqueued so far. Does not block.
    ///
    /// On a poisoned stream too: the event then reports the failure.
    ///
    /// # Errors
    /// `OutOfMemory` when the driver has no further event.
    fn record(&self) -> Result<Box<dyn Event>>;

    /// Holds everything enqueued later back until `event`, of the same device or of the stream's peer, is over. Does not
    /// block the caller.
    ///
    /// The stream holds the event until then. If the event failed, this stream is poisoned with the same failure.
    ///
    /// # Errors
    /// `InvalidArgument` for an event of another backend. A poisoned stream may answer with its failure. The loss of the
    /// peer is a `Link` of this stream's work: this device goes on.
    fn wait(&self, event: &crate::Event) -> Result<()>;

    /// Blocks until everything enqueued before the call is over, at most for `timeout`; `None` waits without limit.
    ///
    /// # Errors
    /// The first failure since creation or the last reset; `Timeout` when the limit comes first, and the work goes
    /// on.
    fn synchronize(&self, timeout: Option<Duration>) -> Result<()>;

    /// Blocks until everything enqueued is over or skipped, then forgets the failure; without one, changes nothing.
    ///
    /// Events that have reported the failure keep it. The caller sees to it that no other thread enqueues
    /// meanwhile, or its work may be skipped or not.
    ///
    /// # Errors
    /// `DeviceLost`, which no reset mends.
    fn reset(&self) -> Result<()>;
}

/// A point on a stream.
///
/// 1. [`Stream::record`] makes it, behind everything enqueued so far.
/// 2. It is *over* when all of that work is: done, or failed with the first failure among it. That never changes
///    again.
/// 3. Streams and the host wait for it, any number of them.
/// 4. Dropping it changes nothing for the stream. Neither keeps the other from being dropped.
pub trait Event: Any + Send + Sync {
    /// Whether it is done. Never blocks; may ask the driver.
    ///
    /// # Errors
    /// The first failure of the work before the point.
    fn is_done(&self) -> Result<bool>;

    /// Blocks until it is over, at most for `timeout`; `None` waits without limit.
    ///
    /// # Errors
    /// The first failure of the work before the point; `Timeout` when the limit comes first, and the work goes on;
    /// `InvalidArgument` where a native kernel of the same device would have to wait.
    fn wait(&self, timeout: Option<Duration>) -> Result<()>;

    /// Device time from `earlier`, an event of the same device, to this one. Never blocks.
    ///
    /// Zero when the two were reached in the other order, as events of two streams may be.
    ///
    /// # Errors
    /// `InvalidArgument` when one of them is not done yet; the failure, or `InvalidArgument`, when one has failed;
    /// `Unsupported` without a clock.
    fn elapsed_since(&self, earlier: &crate::Event) -> Result<Duration>;

    /// The event that this one is made around, by a layer; backends have none.
    ///
    /// So [`crate::Event::object`] finds the backend's own, however many layers there are.
    fn inner(&self) -> Option<&dyn Event> {
        None
    }
}

pub use crate::host::{HostBytes, HostTarget};

/// A failure of a peer as a stream with that peer reports it: the peer's loss is a failed link, for the stream's own
/// device goes on.
pub fn failure_of_peer(error: Error) -> Error {
    match error.kind() {
        ErrorKind::DeviceLost => {
            Error::new(ErrorKind::Link, format!("the peer is lost: {}", error.message()))
        }
        _ => error,
    }
}
