//! Opened devices.

use crate::api::Progress;
use crate::buffer;
use crate::handles::{Handles, HostRanges};
use crate::kernel;
use crate::library::Library;
use crate::options::Options;
use crate::stream::{NpuStream, StreamShared};
use halite_hal::plugin::{self, DeviceHandle};
use halite_hal::{
    Buffer, DType, Device, DeviceId, DeviceInfo, Error, ErrorKind, Health, HostMemory, Kernel, KernelSource,
    MemoryInfo, MemoryKind, Result, driver,
};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How long an allocation waits for work in flight to give memory back.
const RECLAIM_LIMIT: Duration = Duration::from_secs(10);

/// Largest alignment that is believed: beyond it, every small buffer would take as much.
const MAX_ALIGNMENT_BYTES: u64 = 1 << 20;

/// Most compute units that are believed: kernels divide their work by this number.
const MAX_COMPUTE_UNITS: u32 = 1 << 20;

/// Largest memory that is believed, 64 PiB: sums of sizes stay far from overflow.
const MAX_MEMORY_BYTES: u64 = 1 << 56;

/// Most time that a wait may take longer than its limit.
const MAX_GRACE: Duration = Duration::from_secs(10);

/// What `halite_plugin.h` demands of `max_arguments`.
const MIN_ARGUMENTS: u32 = 4;

/// What every object of a device holds: it is closed when the last of them is gone.
pub(crate) struct DeviceShared {
    pub(crate) library: &'static Library,
    pub(crate) handle: DeviceHandle,
    pub(crate) info: DeviceInfo,
    pub(crate) memory_kinds: u32,
    pub(crate) program_format: String,
    pub(crate) used_bytes: AtomicU64,
    pub(crate) buffers: AtomicU64,
    pub(crate) memory_handles: Handles,
    pub(crate) stream_handles: Handles,
    pub(crate) host_ranges: HostRanges,
    /// How long the plugin may take to come back from a wait whose limit has passed.
    grace: Duration,
    lost: OnceLock<Error>,
    /// A stream of it copies from another device, whose loss is not its own.
    has_peers: AtomicBool,
    streams: Mutex<Vec<Weak<StreamShared>>>,
}

impl Drop for DeviceShared {
    fn drop(&mut self) {
        self.library.device_close(self.handle);
    }
}

impl DeviceShared {
    /// The first loss, if there was one.
    pub(crate) fn check(&self) -> Result<()> {
        match self.lost.get() {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.lost.get().is_some()
    }

    /// Whether work may still be running although the device is lost: the plugin did not say that it has ended.
    pub(crate) fn is_stuck(&self) -> bool {
        self.library.check_usable().is_err()
    }

    /// Waits on a thread of its own for a plugin that may not keep to the limit; `wait` is given the limit and owns
    /// what the plugin uses.
    pub(crate) fn bounded(
        &self,
        call: &'static str,
        limit: Duration,
        wait: impl FnOnce(Option<Duration>) -> Result<Progress> + Send + 'static,
    ) -> Result<Progress> {
        self.library.watch_device(call, limit.saturating_add(self.grace), move || wait(Some(limit)))
    }

    /// Passes a result on and remembers a loss, which is final.
    pub(crate) fn noting_loss<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result {
            self.note(error);
        }
        result
    }

    /// As [`noting_loss`](Self::noting_loss), for work that failed.
    pub(crate) fn noting_progress(&self, result: Result<Progress>) -> Result<Progress> {
        let result = match result {
            Ok(Progress::Failed(error)) if self.is_only_the_peers(&error) => {
                Ok(Progress::Failed(driver::failure_of_peer(error)))
            }
            result => result,
        };
        if let Ok(Progress::Failed(error)) = &result {
            self.note(error);
        }
        self.noting_loss(result)
    }

    /// Whether work failed with a loss that cannot be this device's, since it answers: what other work uses must not be
    /// given back for it.
    fn is_only_the_peers(&self, error: &Error) -> bool {
        matches!(error.kind(), ErrorKind::DeviceLost)
            && self.has_peers.load(Ordering::Relaxed)
            && self.library.table.device_health.is_some()
            && self.library.device_health(self.handle).is_ok()
    }

    fn note(&self, error: &Error) {
        if matches!(error.kind(), ErrorKind::DeviceLost) {
            self.lost.get_or_init(|| error.clone());
        }
    }

    fn create_stream(self: &Arc<Self>, peer: Option<Arc<Self>>) -> Result<Box<dyn driver::Stream>> {
        self.check()?;
        let stream = self.noting_loss(StreamShared::create(self, peer))?;
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.retain(|stream| stream.strong_count() > 0);
        streams.push(Arc::downgrade(&stream));
        Ok(Box::new(NpuStream(stream)))
    }

    fn live_streams(&self) -> Vec<Arc<StreamShared>> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.retain(|stream| stream.strong_count() > 0);
        streams.iter().filter_map(Weak::upgrade).collect()
    }

    /// Waits, within a limit, for what is in flight; whether there was anything that may have held memory.
    pub(crate) fn finish_in_flight(&self) -> bool {
        let deadline = Instant::now() + RECLAIM_LIMIT;
        let busy: Vec<_> = self.live_streams().into_iter().filter(|stream| !stream.is_idle()).collect();
        for stream in &busy {
            // A failure belongs to whoever waits for that stream; here only its end counts.
            let _ = stream.synchronize(Some(deadline.saturating_duration_since(Instant::now())));
        }
        !busy.is_empty()
    }
}

/// A plugin's device, as the layer sees it.
pub(crate) struct NpuDevice(Arc<DeviceShared>);

/// Opens device `index` of a library, anew each time, under the name `id`.
pub(crate) fn open(
    library: &'static Library,
    index: u32,
    id: DeviceId,
    options: &Options,
    limit: Duration,
) -> Result<Device> {
    let raw = library.device_info(index, options, limit)?;
    let info = describe(library, id.opened(), &raw)?;
    let handle = library.device_open(index, options, limit)?;
    Ok(Device::new(Arc::new(NpuDevice(Arc::new(DeviceShared {
        library,
        handle,
        info,
        memory_kinds: raw.memory_kind_mask,
        program_format: plugin::fixed_text(&raw.program_format),
        used_bytes: AtomicU64::new(0),
        buffers: AtomicU64::new(0),
        memory_handles: Handles::default(),
        stream_handles: Handles::default(),
        host_ranges: HostRanges::default(),
        grace: limit.min(MAX_GRACE),
        lost: OnceLock::new(),
        has_peers: AtomicBool::new(false),
        streams: Mutex::default(),
    })))))
}

/// What the plugin claims, checked and in the layer's words.
///
/// # Errors
/// `BadFormat` for a claim that cannot be true and cannot be left out.
pub(crate) fn describe(library: &Library, id: DeviceId, raw: &plugin::DeviceInfo) -> Result<DeviceInfo> {
    if let Some(claim) = false_claim(raw) {
        return Err(library.breach(format_args!("claims {claim}")));
    }
    let text = |field| crate::error::one_line(&plugin::fixed_text(field));
    let mut name = text(&raw.name);
    if name.is_empty() {
        name = format!("device of {}", library.name);
    }
    let unknown = raw.dtype_mask & !DType::ALL.into_iter().fold(0, |mask, dtype| mask | dtype_bit(dtype));
    if unknown != 0 {
        log::info!(
            "{id}: the plugin lists dtypes that this version does not know (bits {unknown:#x}); left out"
        );
    }
    let mut info = DeviceInfo::new(id, name);
    info.vendor = text(&raw.vendor);
    info.driver_version = text(&raw.driver_version);
    info.memory_bytes = raw.memory_bytes;
    info.compute_units = raw.compute_units.max(1);
    info.dtypes = DType::ALL.into_iter().filter(|dtype| raw.dtype_mask & dtype_bit(*dtype) != 0).collect();
    let format = text(&raw.program_format);
    if library.has(plugin::FEATURE_PROGRAMS) && !format.is_empty() {
        info.kernel_formats.push(format);
    }
    if library.has(plugin::FEATURE_BUILTINS) {
        info.kernel_formats.push("builtin".into());
    }
    let capabilities = text(&raw.capabilities);
    info.features =
        capabilities.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
    if library.has_peers() {
        info.features.push(DeviceInfo::PEER_COPY.to_owned());
    }
    if library.table.memory_import.is_some() {
        info.limits.import_alignment_bytes = raw.import_alignment_bytes;
    }
    info.limits.max_allocation_bytes = raw.max_allocation_bytes.min(raw.memory_bytes);
    info.limits.offset_alignment_bytes = raw.offset_alignment_bytes;
    // Blocks have one axis; a built-in is launched as one block, also where there are no programs.
    info.limits.max_grid = [raw.max_blocks.max(1), 1, 1];
    info.limits.max_args = raw.max_arguments;
    Ok(info)
}

/// The first claim that cannot be true, and that the layer would build on.
fn false_claim(raw: &plugin::DeviceInfo) -> Option<String> {
    let import = raw.import_alignment_bytes;
    for alignment in [raw.offset_alignment_bytes].into_iter().chain((import != 0).then_some(import)) {
        if !alignment.is_power_of_two() {
            return Some(format!("an alignment of {alignment}, which is no power of two"));
        }
        if alignment > MAX_ALIGNMENT_BYTES {
            return Some(format!("an alignment of {alignment}, which is above {MAX_ALIGNMENT_BYTES}"));
        }
    }
    if raw.memory_kind_mask & (1 << plugin::MEMORY_DEVICE) == 0 {
        return Some("a device without device memory".to_owned());
    }
    if raw.memory_bytes == 0 || raw.max_allocation_bytes == 0 {
        return Some("a device whose memory has 0 bytes".to_owned());
    }
    if raw.memory_bytes > MAX_MEMORY_BYTES {
        let bytes = raw.memory_bytes;
        return Some(format!("a memory of {bytes} bytes, which is above {MAX_MEMORY_BYTES}"));
    }
    if raw.max_arguments < MIN_ARGUMENTS {
        let arguments = raw.max_arguments;
        return Some(format!("launches with at most {arguments} arguments, which is below {MIN_ARGUMENTS}"));
    }
    if raw.compute_units > MAX_COMPUTE_UNITS {
        let units = raw.compute_units;
        return Some(format!("{units} compute units, which is above {MAX_COMPUTE_UNITS}"));
    }
    None
}

fn dtype_bit(dtype: DType) -> u64 {
    1 << plugin::dtype_code(dtype)
}

impl driver::Device for NpuDevice {
    fn info(&self) -> &DeviceInfo {
        &self.0.info
    }

    fn memory(&self) -> Result<MemoryInfo> {
        self.0.check()?;
        for stream in self.0.live_streams() {
            stream.reap();
        }
        let raw = self.0.noting_loss(self.0.library.memory_info(self.0.handle))?;
        Ok(MemoryInfo {
            used_bytes: self.0.used_bytes.load(Ordering::Relaxed),
            free_bytes: raw.free_bytes.min(raw.total_bytes),
            total_bytes: raw.total_bytes,
            buffers: self.0.buffers.load(Ordering::Relaxed),
        })
    }

    fn health(&self) -> Health {
        // Any other failure to answer is no loss: the next call will say what it is.
        let _ = self.0.check().and_then(|()| self.0.noting_loss(self.0.library.device_health(self.0.handle)));
        match self.0.check() {
            Ok(()) => Health::Ok,
            Err(error) => Health::Lost { reason: error.message().to_owned() },
        }
    }

    fn allocate(&self, len_bytes: u64, kind: MemoryKind) -> Result<Buffer> {
        buffer::allocate(&self.0, len_bytes, kind)
    }

    fn import(&self, memory: &HostMemory) -> Result<Buffer> {
        buffer::import(&self.0, memory)
    }

    fn create_stream(&self) -> Result<Box<dyn driver::Stream>> {
        self.0.create_stream(None)
    }

    fn create_peer_stream(&self, peer: &Device) -> Result<Box<dyn driver::Stream>> {
        let own = &self.0;
        own.check()?;
        let peer_shared = peer.object::<NpuDevice>().map(|peer| &peer.0);
        let is_of_plugin = |peer: &&Arc<DeviceShared>| ptr::eq(peer.library, own.library);
        let Some(peer) = peer_shared.filter(is_of_plugin).filter(|_| own.library.has_peers()) else {
            return Err(Error::unsupported(format!(
                "the plugin '{}' has no link from {}; read on a stream of that device, and write on one of this",
                own.library.name,
                peer.id()
            )));
        };
        peer.check().map_err(driver::failure_of_peer)?;
        own.has_peers.store(true, Ordering::Relaxed);
        own.noting_loss(own.library.peer_enable(own.handle, peer.handle))?;
        own.create_stream(Some(peer.clone()))
    }

    fn load(&self, source: &KernelSource) -> Result<Kernel> {
        self.0.check()?;
        self.0.noting_loss(kernel::load(&self.0, source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a modest device claims, after `change`.
    fn claim(change: impl FnOnce(&mut plugin::DeviceInfo)) -> Option<String> {
        let mut raw = plugin::DeviceInfo::sized();
        raw.memory_bytes = 1 << 20;
        raw.max_allocation_bytes = 1 << 20;
        raw.offset_alignment_bytes = 64;
        raw.memory_kind_mask = 1 << plugin::MEMORY_DEVICE;
        raw.compute_units = 1;
        raw.max_arguments = MIN_ARGUMENTS;
        change(&mut raw);
        false_claim(&raw)
    }

    #[test]
    fn claims_at_the_limits_are_believed() {
        assert_eq!(claim(|_| ()), None);
        assert_eq!(claim(|raw| raw.offset_alignment_bytes = MAX_ALIGNMENT_BYTES), None);
        assert_eq!(claim(|raw| raw.compute_units = MAX_COMPUTE_UNITS), None);
        assert_eq!(claim(|raw| raw.memory_bytes = MAX_MEMORY_BYTES), None);
    }

    #[test]
    fn claims_that_cannot_be_true_are_refused_by_name() {
        let alignment = |bytes: u64| claim(|raw| raw.offset_alignment_bytes = bytes);
        for (refused, part) in [
            (alignment(0), "alignment of 0"),
            (alignment(48), "alignment of 48"),
            (alignment(1 << 21), "alignment of 2097152"),
            (alignment(1 << 63), "alignment"),
            (claim(|raw| raw.import_alignment_bytes = 24), "alignment of 24"),
            (claim(|raw| raw.import_alignment_bytes = 1 << 21), "alignment of 2097152"),
            (claim(|raw| raw.memory_bytes = 0), "0 bytes"),
            (claim(|raw| raw.memory_bytes = u64::MAX), "memory of 18446744073709551615 bytes"),
            (claim(|raw| raw.max_allocation_bytes = 0), "0 bytes"),
            (claim(|raw| raw.memory_kind_mask = 0), "without device memory"),
            (claim(|raw| raw.max_arguments = 3), "at most 3 arguments"),
            (claim(|raw| raw.compute_units = u32::MAX), "4294967295 compute units"),
        ] {
            assert!(refused.as_ref().is_some_and(|text| text.contains(part)), "{refused:?} misses '{part}'");
        }
    }
}
