//! Opened devices: what they can do, and the objects that they make.

use crate::buffer::fresh_id;
use crate::command_list::{CommandList, CommandListBuilder};
use crate::{Buffer, DType, Error, ErrorKind, HostMemory, Kernel, KernelSource, Result, Stream, driver};
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

/// Names one device of this process: a backend and an index, written `cpu:0`.
///
/// Ids are equal when they name the same device. The id of an opened device, and of all that it makes, also carries
/// the mark of that opening, by which [`is_same_opening`](Self::is_same_opening) tells it from others of the same
/// name: of a device that was lost and opened anew, or that its backend opened twice.
#[derive(Debug, Clone)]
pub struct DeviceId {
    /// The backend's name: `cpu`, `cuda`, `opencl`, `npu`.
    pub backend: String,
    /// The device's index within the backend, from 0.
    pub index: u32,
    /// A number that no other opening of this process has; 0 for a mere name.
    opening: u64,
}

impl DeviceId {
    /// The device `index` of `backend`, opened or not.
    pub fn new(backend: impl Into<String>, index: u32) -> Self {
        Self { backend: backend.into(), index, opening: 0 }
    }

    /// The same name with the mark of a new opening. For backends: see [`driver::Backend::open`].
    #[must_use]
    pub fn opened(self) -> Self {
        Self { opening: fresh_id(), ..self }
    }

    /// Whether both are of the same opening of the same device. Mere names are alike if they are equal.
    pub fn is_same_opening(&self, other: &Self) -> bool {
        // Marks decide nearly always, so a launch compares no text.
        self.opening == other.opening && (self.opening != 0 || self == other)
    }

    /// This id in a message to one who uses `own`: as a name, or as another opening of the same device.
    pub(crate) fn beside(&self, own: &Self) -> impl fmt::Display {
        if self == own { format!("another opening of {self}") } else { self.to_string() }
    }

    fn name(&self) -> (&str, u32) {
        (&self.backend, self.index)
    }
}

impl PartialEq for DeviceId {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for DeviceId {}

impl Hash for DeviceId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name().hash(state);
    }
}

impl PartialOrd for DeviceId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for DeviceId {
    fn cmp(&self, other: &Self) -> Ordering {
        self.name().cmp(&other.name())
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.backend, self.index)
    }
}

impl FromStr for DeviceId {
    type Err = Error;

    /// Reads `backend` (index 0) or `backend:index`. Whether there is such a device is not looked at.
    ///
    /// # Errors
    /// `InvalidArgument` when there is no backend's name or the index is no number.
    fn from_str(text: &str) -> Result<Self> {
        let (backend, index) = text.split_once(':').unwrap_or((text, "0"));
        let index = index.parse().ok().filter(|_| !backend.is_empty()).ok_or_else(|| {
            Error::invalid(format!("'{text}' names no device; write a backend and an index, such as cpu:0"))
        })?;
        Ok(Self::new(backend, index))
    }
}

/// Where a buffer lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MemoryKind {
    /// The device's own memory; the fastest for kernels.
    Device,
    /// Memory that both sides address; [`Buffer::host_pointer`] is there.
    HostVisible,
    /// Host memory that the device copies from and to without staging.
    Pinned,
}

/// Hard limits of a device. Requests beyond them are refused before they reach the driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Largest single allocation in bytes.
    pub max_allocation_bytes: u64,
    /// Every buffer offset that a kernel gets must be a multiple of this (a power of two, at least 1).
    pub offset_alignment_bytes: u64,
    /// Most workgroups per axis of a launch.
    pub max_grid: [u32; 3],
    /// Most arguments of a kernel.
    pub max_args: u32,
    /// Most threads per axis of a workgroup; 1 where kernels have no threads.
    pub max_workgroup: [u32; 3],
    /// Most threads of a workgroup in all. A kernel that needs much may get fewer.
    pub max_workgroup_threads: u32,
    /// Memory that the threads of a workgroup share, in bytes; 0 where kernels have none.
    pub local_memory_bytes: u64,
    /// Host memory that [`Device::import`] takes begins at a multiple of this (a power of two); 0 where it takes none.
    pub import_alignment_bytes: u64,
}

/// What a device is and can do, as probed; it never changes while the process runs.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// The device's name within this process, with the mark of the opening where it is open.
    pub id: DeviceId,
    /// The product's name, as the driver tells it.
    pub name: String,
    /// The maker, as the driver tells it; may be empty.
    pub vendor: String,
    /// The driver's or plugin's version; part of cache keys.
    pub driver_version: String,
    /// Memory that kernels can use, in bytes.
    pub memory_bytes: u64,
    /// What set [`memory_bytes`](Self::memory_bytes), where that is a user's limit and not the hardware's. Messages
    /// name it.
    pub memory_limit_name: Option<String>,
    /// Cores, multiprocessors or the like.
    pub compute_units: u32,
    /// The highest clock of the compute units in MHz; 0 where the driver does not tell.
    pub clock_mhz: u32,
    /// Element types that kernels can load and store.
    pub dtypes: Vec<DType>,
    /// Kernel formats that [`Device::load`] accepts: `native`, `opencl-c`, `cuda-c`, `cubin`, `npu-program`,
    /// `builtin`.
    pub kernel_formats: Vec<String>,
    /// Capabilities that kernel variants may require: `avx512f`, `subgroups`, `tensor-cores`; `builtin:fused_matmul`
    /// for a built-in that the device has for some operands at least; [`PEER_COPY`](Self::PEER_COPY).
    pub features: Vec<String>,
    /// Hard limits.
    pub limits: Limits,
    /// What the device could do with software that was not found, a sentence each, for people.
    pub notes: Vec<String>,
}

impl DeviceInfo {
    /// The feature of devices that [`Device::create_peer_stream`] links with others of their backend, some at least.
    pub const PEER_COPY: &str = "peer-copy";

    /// A description with the given identity and conservative values elsewhere; a backend fills in what it probed.
    pub fn new(id: DeviceId, name: impl Into<String>) -> Self {
        Self {
            id,
            name: name.into(),
            vendor: String::new(),
            driver_version: String::new(),
            memory_bytes: 0,
            memory_limit_name: None,
            compute_units: 1,
            clock_mhz: 0,
            dtypes: Vec::new(),
            kernel_formats: Vec::new(),
            features: Vec::new(),
            limits: Limits {
                max_allocation_bytes: 0,
                offset_alignment_bytes: 1,
                max_grid: [u32::MAX, u32::from(u16::MAX), u32::from(u16::MAX)],
                max_args: 64,
                max_workgroup: [1; 3],
                max_workgroup_threads: 1,
                local_memory_bytes: 0,
                import_alignment_bytes: 0,
            },
            notes: Vec::new(),
        }
    }

    /// Whether kernels may use `feature`.
    pub fn has_feature(&self, feature: &str) -> bool {
        self.features.iter().any(|own| own == feature)
    }

    /// Whether [`Device::load`] accepts kernels of `format`.
    pub fn accepts(&self, format: &str) -> bool {
        self.kernel_formats.iter().any(|own| own == format)
    }
}

/// Memory of a device at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryInfo {
    /// Bytes in buffers of this process.
    pub used_bytes: u64,
    /// Bytes that a new buffer could still take, as far as the driver tells.
    pub free_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
    /// Live buffers of this process.
    pub buffers: u64,
}

/// Whether a device still answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It works.
    Ok,
    /// It is gone for good; the reason of the first failure. Open it anew to go on.
    Lost {
        /// What the driver said first.
        reason: String,
    },
}

/// An opened device.
///
/// 1. [`Registry::open`](crate::Registry::open) gives one; clones are cheap handles to the same device.
/// 2. It makes buffers, streams, kernels and command lists. Each belongs to it; passing one to another device, or
///    to another opening of the same one, is an `InvalidArgument`.
/// 3. Should it be lost, that is final: [`health`](Self::health) says why, and calls fail with `DeviceLost`. Opened
///    anew, it is another opening, which takes no objects of the lost one.
/// 4. It is closed when the last handle, the last object made by it and all enqueued work are gone.
///
/// Every method may be called from any thread at any time, and none has an order relative to work on streams. This
/// type checks arguments against the device's [`Limits`], so that a backend sees legal calls only.
#[derive(Clone)]
pub struct Device(Arc<dyn driver::Device>);

impl Device {
    /// Wraps what a backend or a layer implements. Asks it nothing.
    pub fn new(device: Arc<dyn driver::Device>) -> Self {
        Self(device)
    }

    /// The implementation behind the handle, for layers. Calls on it are not checked.
    pub fn driver(&self) -> &Arc<dyn driver::Device> {
        &self.0
    }

    /// What the device is and can do. The same for as long as it is open, on a lost device too.
    pub fn info(&self) -> &DeviceInfo {
        self.0.info()
    }

    /// The device's name within this process, with the mark of this opening.
    pub fn id(&self) -> &DeviceId {
        &self.info().id
    }

    /// Whether a layer wishes each allocation to have memory of its own, which pools then see to.
    pub fn isolates_allocations(&self) -> bool {
        self.0.isolates_allocations()
    }

    /// Memory in use and free at this moment.
    ///
    /// May ask the driver; does not wait for enqueued work, which counts what it holds as used.
    ///
    /// # Errors
    /// `DeviceLost`, `Backend`.
    pub fn memory(&self) -> Result<MemoryInfo> {
        self.0.memory().map_err(|e| self.name_error(e, "device.memory"))
    }

    /// Whether the device still answers.
    ///
    /// May ask the driver; does not wait for enqueued work. `Lost` is sticky, with the reason of the first failure.
    pub fn health(&self) -> Health {
        self.0.health()
    }

    /// Allocates `len_bytes` of `kind`; zero is legal.
    ///
    /// May block in the driver and, when the device is full, for a limited time until enqueued work gives dropped
    /// buffers back. The caller owns the buffer; it is freed after the last handle and the last work that uses it.
    ///
    /// The contents are zeros or stale data of this process, never uninitialised memory. Most callers want the
    /// stream-ordered [`Pool`](crate::Pool) instead.
    ///
    /// # Errors
    /// `TooLarge` beyond [`Limits::max_allocation_bytes`] or the device's memory, `OutOfMemory` when it is full,
    /// `Unsupported` for a kind that the device lacks, `DeviceLost`.
    pub fn allocate(&self, len_bytes: u64, kind: MemoryKind) -> Result<Buffer> {
        let info = self.info();
        // Pinned memory is the host's, so the device's size does not bound it.
        let limit = match kind {
            MemoryKind::Pinned => info.limits.max_allocation_bytes,
            MemoryKind::Device | MemoryKind::HostVisible => {
                info.limits.max_allocation_bytes.min(info.memory_bytes)
            }
        };
        if len_bytes > limit {
            let error = too_large(len_bytes, limit, info.memory_limit_name.as_deref());
            return Err(self.name_error(error, "device.allocate"));
        }
        self.0.allocate(len_bytes, kind).map_err(|e| self.name_error(e, "device.allocate"))
    }

    /// A new in-order queue, empty and without a failure. May block in the driver.
    ///
    /// # Errors
    /// `DeviceLost`, `OutOfMemory` when the device has no further queue, `Backend`.
    pub fn create_stream(&self) -> Result<Stream> {
        let stream = self.0.create_stream().map_err(|e| self.name_error(e, "device.create_stream"))?;
        Ok(Stream::new(self.clone(), stream))
    }

    /// Makes a buffer of the host's own memory, which kernels and copies then use in place: nothing is copied.
    ///
    /// The buffer shows the memory at its address, with what it holds, and is of the kind `HostVisible`. It is no memory
    /// of the device's, and so counts nothing in [`memory`](Self::memory). It holds a handle to the memory, as work that
    /// uses the buffer does. Meanwhile the host may read and write the bytes as [`Buffer::host_pointer`] says. How fast
    /// kernels reach them depends on what lies between: on a processor they are like any others, on a card with memory
    /// of its own every access crosses the bus.
    ///
    /// May block in a driver that pins the pages.
    ///
    /// # Errors
    /// `Unsupported` where [`Limits::import_alignment_bytes`] is 0, `InvalidArgument` for memory that does not begin at
    /// a multiple of it or is imported already, by any device; `TooLarge` beyond [`Limits::max_allocation_bytes`],
    /// `OutOfMemory` when no more can be pinned, `DeviceLost`. The memory stays the caller's, who may copy it instead.
    pub fn import(&self, memory: &HostMemory) -> Result<Buffer> {
        const CALL: &str = "device.import";
        let limits = &self.info().limits;
        let (len_bytes, alignment) = (memory.len_bytes() as u64, limits.import_alignment_bytes);
        if alignment == 0 {
            return Err(self.name_error(driver::no_import(), CALL));
        }
        let address = memory.as_ptr().addr().get() as u64;
        if len_bytes > 0 && !address.is_multiple_of(alignment) {
            let message = format!(
                "the memory begins at {address:#x}, which is no multiple of {alignment}; HostMemory::zeroed begins at one"
            );
            return Err(self.name_error(Error::invalid(message), CALL));
        }
        if len_bytes > limits.max_allocation_bytes {
            return Err(self.name_error(too_large(len_bytes, limits.max_allocation_bytes, None), CALL));
        }
        let Some(lent) = memory.lend() else {
            let message = "the memory is imported already; clone that buffer, or drop it first";
            return Err(self.name_error(Error::invalid(message), CALL));
        };
        self.0.import(&lent).map_err(|e| self.name_error(e, CALL))
    }

    /// A new in-order queue of this device that also copies from `peer`, another device of the same backend.
    ///
    /// It is a stream of this device in everything. Beyond that, [`Stream::copy`] takes ranges of `peer`'s buffers as
    /// its source, and [`Stream::wait`] takes events of `peer`. In the other direction there is nothing to wait by:
    /// before `peer`'s memory is written again, the host waits for an event behind the copy, or a peer stream of the
    /// other device does.
    ///
    /// May block in the driver.
    ///
    /// # Errors
    /// `InvalidArgument` when `peer` is this device, `Unsupported` where no link leads from the one to the other, with
    /// the way through the host that is left; `DeviceLost`, `OutOfMemory` when there is no further queue, `Backend`.
    pub fn create_peer_stream(&self, peer: &Device) -> Result<Stream> {
        const CALL: &str = "device.create_peer_stream";
        let (own, other) = (self.id(), peer.id());
        if own.is_same_opening(other) {
            let message = format!("{other} is the device itself; copies within it take any of its streams");
            return Err(self.name_error(Error::invalid(message), CALL));
        }
        if own.backend != other.backend {
            return Err(self.name_error(driver::no_peers(self.info(), peer), CALL));
        }
        let stream = self.0.create_peer_stream(peer).map_err(|e| self.name_error(e, CALL))?;
        Ok(Stream::with_peer(self.clone(), peer.clone(), stream))
    }

    /// The backend's implementation, or that of a layer around it, if it is a `T`. For backends and layers.
    pub fn object<T: driver::Device>(&self) -> Option<&T> {
        let mut device = self;
        loop {
            if let Some(found) = (device.0.as_ref() as &dyn std::any::Any).downcast_ref() {
                return Some(found);
            }
            device = device.0.inner()?;
        }
    }

    /// Makes a kernel from source. May compile, and so block for long; the caller caches.
    ///
    /// The kernel holds what it needs of the source. It may be launched at once, on any stream of the device.
    ///
    /// # Errors
    /// `Unsupported` for a format, feature or built-in that the device does not have, `Build` with the compiler's
    /// log, `BadFormat` for a binary that is damaged or disagrees with its signature, `InvalidArgument` for an
    /// entry that it does not have, `OutOfMemory`, `DeviceLost`.
    pub fn load(&self, source: &KernelSource) -> Result<Kernel> {
        let format = source.format();
        if !self.info().accepts(format) {
            let known = self.info().kernel_formats.join(", ");
            let message = format!(
                "kernel '{}' is of format {format}, but the device takes {known}; register a variant in one of these",
                source.name()
            );
            return Err(self.name_error(Error::unsupported(message), "device.load"));
        }
        if let Some(missing) = source.requires().iter().find(|feature| !self.info().has_feature(feature)) {
            let message = format!(
                "kernel '{}' requires the feature {missing}, which the device lacks; choose another variant",
                source.name()
            );
            return Err(self.name_error(Error::unsupported(message), "device.load"));
        }
        self.0.load(source).map_err(|e| self.name_error(e, "device.load"))
    }

    /// Freezes recorded commands into a list that streams of this device replay. Enqueues nothing.
    ///
    /// Takes the commands, whose kernels and fixed buffers the list holds from then on. May block in a driver that
    /// builds a native graph.
    ///
    /// # Errors
    /// `InvalidArgument` when a command uses an object of another device, does not fit its kernel's signature or the
    /// device's limits, uses ranges that overlap, or numbers a slot beyond 65,535; `OutOfMemory`, `Backend`.
    pub fn finish(&self, commands: CommandListBuilder) -> Result<CommandList> {
        commands.finish(self).map_err(|e| self.name_error(e, "device.finish"))
    }

    pub(crate) fn name_error(&self, error: Error, call: &str) -> Error {
        error.on_device(self.id()).in_call(call)
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({}, {})", self.id(), self.info().name)
    }
}

/// The error for an allocation beyond `limit`, which whatever has this name sets, or else the device.
pub(crate) fn too_large(requested: u64, limit: u64, name: Option<&str>) -> Error {
    let message = match name {
        Some(name) => format!(
            "{requested} bytes in one allocation, but {name} is {limit}; raise it, or use smaller tensors or batches"
        ),
        None => format!(
            "{requested} bytes in one allocation, but the device allows {limit}; use smaller tensors or batches"
        ),
    };
    Error::new(ErrorKind::TooLarge { requested, limit }, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openings_of_one_device_are_equal_and_yet_told_apart() {
        let name = DeviceId::new("cuda", 1);
        let (first, second) = (name.clone().opened(), name.clone().opened());
        assert_eq!((&first, first.to_string()), (&second, "cuda:1".to_owned()));
        assert_eq!(std::collections::HashSet::from([name.clone(), first.clone(), second.clone()]).len(), 1);
        assert_eq!(first.cmp(&second), Ordering::Equal);
        assert!(first.is_same_opening(&first.clone()) && name.is_same_opening(&DeviceId::new("cuda", 1)));
        for other in [&second, &name, &DeviceId::new("cuda", 2)] {
            assert!(!first.is_same_opening(other) && !other.is_same_opening(&first), "{other:?}");
        }
        assert!(!name.is_same_opening(&DeviceId::new("cuda", 2)));
    }

    #[test]
    fn device_id_defaults_to_index_zero_and_rejects_nonsense() {
        assert_eq!("cuda".parse::<DeviceId>().unwrap(), DeviceId::new("cuda", 0));
        assert_eq!("cuda:7".parse::<DeviceId>().unwrap().to_string(), "cuda:7");
        for bad in ["", ":1", "cpu:", "cpu:x", "cpu:-1", "cpu:1:2"] {
            assert!(bad.parse::<DeviceId>().is_err(), "{bad}");
        }
    }
}
