//! An opened device: a machine, its memory, and the worker that runs its queues.

use crate::failure::{Failure, Result};
use crate::machine::{Emulator, LaunchReport};
use crate::options::Options;
use crate::queue::Queues;
use halite_hal::plugin;
use halite_npu_isa::{Pipe, verify};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The device's name; profiles match it.
const NAME: &str = "Halite NPU emulator";

/// An opened device.
pub(crate) struct Device {
    pub(crate) emulator: Emulator,
    pub(crate) queues: Queues,
    pub(crate) counts: Counts,
    /// Length of each allocation by its address, which is its handle.
    allocations: RwLock<HashMap<u64, u64>>,
    /// The devices that copies may come from, and whose events are waited for.
    peers: Mutex<Vec<Weak<Device>>>,
    lost: OnceLock<Failure>,
    lose_after: Option<u64>,
    opened: Instant,
    worker: Mutex<Option<JoinHandle<()>>>,
}

/// What was done since the device was opened.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) commands: AtomicU64,
    pub(crate) launches: AtomicU64,
    pub(crate) bytes_to_device: AtomicU64,
    pub(crate) bytes_to_host: AtomicU64,
    pub(crate) bytes_within: AtomicU64,
    pub(crate) bytes_from_peers: AtomicU64,
    pub(crate) busy_ns: AtomicU64,
    work: Mutex<LaunchReport>,
}

impl Counts {
    pub(crate) fn add_launch(&self, report: &LaunchReport) {
        self.launches.fetch_add(1, Relaxed);
        let mut sum = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        sum.blocks = sum.blocks.wrapping_add(report.blocks);
        sum.instructions += report.instructions;
        for (sum, count) in sum.pipe_instructions.iter_mut().zip(report.pipe_instructions) {
            *sum += count;
        }
        sum.bytes_in += report.bytes_in;
        sum.bytes_out += report.bytes_out;
        sum.elements += report.elements;
        sum.multiply_adds += report.multiply_adds;
    }
}

/// Describes the device that these options give.
pub(crate) fn describe(options: &Options) -> plugin::DeviceInfo {
    use halite_hal::DType;
    let config = &options.config;
    let mut info = plugin::DeviceInfo::sized();
    plugin::set_fixed_text(&mut info.name, &format!("{NAME} ({})", options.machine_name));
    plugin::set_fixed_text(&mut info.vendor, "Halite");
    plugin::set_fixed_text(&mut info.driver_version, env!("CARGO_PKG_VERSION"));
    info.memory_bytes = config.global_bytes;
    info.max_allocation_bytes = config.global_bytes;
    // The machine asks for the alignment of the elements alone, which the host sees to.
    info.offset_alignment_bytes = 1;
    let dtypes =
        [DType::Bool, DType::U8, DType::I32, DType::U32, DType::I64, DType::F16, DType::BF16, DType::F32];
    info.dtype_mask = dtypes.iter().fold(0, |mask, dtype| mask | 1 << plugin::dtype_code(*dtype));
    info.memory_kind_mask = 1 << plugin::MEMORY_DEVICE;
    info.compute_units = config.cube_cores.max(config.vector_cores);
    info.max_blocks = u32::MAX;
    info.max_arguments = verify::MAX_ARGS as u32;
    plugin::set_fixed_text(&mut info.program_format, "npu-program");
    plugin::set_fixed_text(&mut info.capabilities, "emulated");
    info
}

impl Device {
    pub(crate) fn open(options: Options) -> Result<Arc<Self>> {
        let device = Arc::new(Self {
            emulator: Emulator::new(options.config),
            queues: Queues::default(),
            counts: Counts::default(),
            allocations: RwLock::default(),
            peers: Mutex::default(),
            lost: OnceLock::new(),
            lose_after: options.lose_after,
            opened: Instant::now(),
            worker: Mutex::default(),
        });
        let weak = Arc::downgrade(&device);
        let queues = device.queues.clone();
        let worker =
            std::thread::Builder::new().name("halite-npu-emulator".into()).spawn(move || queues.work(&weak));
        let worker = worker.map_err(|error| {
            Failure::new(plugin::STATUS_BACKEND, format!("no thread for the device's worker: {error}"))
        })?;
        *device.worker.lock().unwrap_or_else(PoisonError::into_inner) = Some(worker);
        Ok(device)
    }

    /// Lets the worker finish what is enqueued and ends it.
    pub(crate) fn close(&self) {
        self.queues.shut_down();
        let worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(worker) = worker {
            // A panic of the worker has been reported by its queue; closing goes on.
            let _ = worker.join();
        }
    }

    pub(crate) fn enable_peer(&self, peer: &Arc<Self>) {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        peers.retain(|known| known.strong_count() > 0 && !std::ptr::eq(known.as_ptr(), &**peer));
        peers.push(Arc::downgrade(peer));
    }

    pub(crate) fn has_peer(&self, peer: &Self) -> bool {
        let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        peers.iter().any(|known| std::ptr::eq(known.as_ptr(), peer))
    }

    /// The loss, if the device is lost.
    pub(crate) fn check(&self) -> Result<()> {
        self.lost.get().map_or(Ok(()), |failure| Err(failure.clone()))
    }

    /// Counts a command that is about to run; whether the device is to be lost in the middle of it.
    pub(crate) fn loses_this_command(&self) -> bool {
        let before = self.counts.commands.fetch_add(1, Relaxed);
        self.lose_after.is_some_and(|limit| before + 1 >= limit)
    }

    /// Ends the device.
    pub(crate) fn lose(&self) -> Failure {
        let failure = || {
            let count = self.counts.commands.load(Relaxed);
            Failure::new(
                plugin::STATUS_DEVICE_LOST,
                format!("the device stopped answering in command {count}, as the option lose_after asks"),
            )
        };
        self.lost.get_or_init(failure).clone()
    }

    pub(crate) fn allocate(&self, kind: u32, len: u64) -> Result<u64> {
        self.check()?;
        if kind != plugin::MEMORY_DEVICE {
            return Err(Failure::unsupported(format!(
                "memory kind {kind} is not offered; use device memory (0)"
            )));
        }
        if len == 0 {
            return Err(Failure::invalid("an allocation has at least 1 byte"));
        }
        let capacity = self.emulator.memory().capacity();
        if len > capacity {
            let text = format!("{len} bytes asked for, the device has {capacity}");
            return Err(Failure { detail: [len, capacity], ..Failure::new(plugin::STATUS_TOO_LARGE, text) });
        }
        let address = self.emulator.memory().alloc(len)?;
        self.allocations.write().unwrap_or_else(PoisonError::into_inner).insert(address, len);
        Ok(address)
    }

    pub(crate) fn free(&self, memory: u64) {
        let known = self.allocations.write().unwrap_or_else(PoisonError::into_inner).remove(&memory);
        if known.is_some() {
            // It was allocated, so this cannot be refused.
            let _ = self.emulator.memory().free(memory);
        }
    }

    /// The address of a range, which lies inside its allocation. An empty range has address 0.
    pub(crate) fn address(&self, memory: u64, offset: u64, len: u64) -> Result<u64> {
        if len == 0 {
            return Ok(0);
        }
        let allocations = self.allocations.read().unwrap_or_else(PoisonError::into_inner);
        let Some(own) = allocations.get(&memory) else {
            return Err(Failure::invalid(format!("{memory:#x} is no memory of this device")));
        };
        match offset.checked_add(len) {
            Some(end) if end <= *own => Ok(memory + offset),
            _ => Err(Failure::invalid(format!(
                "{len} bytes at offset {offset} do not lie in the {own} bytes of the allocation"
            ))),
        }
    }

    pub(crate) fn memory_info(&self) -> plugin::MemoryInfo {
        let memory = self.emulator.memory();
        let mut info = plugin::MemoryInfo::sized();
        info.total_bytes = memory.capacity();
        info.free_bytes = memory.capacity() - memory.used();
        info
    }

    /// Key, unit and value of everything that is counted.
    pub(crate) fn counters(&self) -> Vec<(String, &'static str, f64)> {
        let counts = &self.counts;
        let load = |count: &AtomicU64| count.load(Relaxed) as f64;
        let memory = self.emulator.memory();
        let busy = Duration::from_nanos(counts.busy_ns.load(Relaxed)).as_secs_f64();
        let work = *counts.work.lock().unwrap_or_else(PoisonError::into_inner);
        let mut counters = vec![
            ("commands".into(), "", load(&counts.commands)),
            ("launches".into(), "", load(&counts.launches)),
            ("blocks".into(), "", f64::from(work.blocks)),
            ("instructions".into(), "", work.instructions as f64),
            ("multiply_adds".into(), "", work.multiply_adds as f64),
            ("elements".into(), "", work.elements as f64),
            ("global.read".into(), "bytes", work.bytes_in as f64),
            ("global.written".into(), "bytes", work.bytes_out as f64),
            ("copied.to_device".into(), "bytes", load(&counts.bytes_to_device)),
            ("copied.to_host".into(), "bytes", load(&counts.bytes_to_host)),
            ("copied.within".into(), "bytes", load(&counts.bytes_within)),
            ("copied.from_peers".into(), "bytes", load(&counts.bytes_from_peers)),
            ("memory.used".into(), "bytes", memory.used() as f64),
            ("memory.peak".into(), "bytes", memory.peak() as f64),
            ("host.busy".into(), "share", (busy / self.opened.elapsed().as_secs_f64()).min(1.0)),
        ];
        for (pipe, count) in Pipe::ALL.iter().zip(work.pipe_instructions) {
            counters.push((format!("instructions.{pipe}"), "", count as f64));
        }
        counters
    }
}
