//! What layers keep is bounded, whatever a program or a device does.
//!
//! A program of its own, since it counts every byte that is allocated.

#![allow(missing_docs)]

use halite_cpu::{CpuBackend, CpuConfig};
use halite_hal::driver::{self, Backend, HostBytes, HostTarget};
use halite_hal::null::{NullBackend, NullConfig};
use halite_hal::{
    Access, Arg, ArgType, Binding, Buffer, BufferSlice, CommandList, CommandListBuilder, DType, Device,
    DeviceInfo, Event, Health, Kernel, KernelSource, Layer, MemoryInfo, MemoryKind, NativeKernel,
    RecordedArg, RecordedCommand, Result, Scalar, Signature,
};
use halite_layers::trace::TraceLayer;
use halite_layers::validate::Validate;
use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Commands of each sort: enough to fill what the layer keeps, and then as many again some times over.
const FIRST: usize = 70_000;
const FURTHER: usize = 250_000;
/// Commands of the list that is replayed.
const STEPS: usize = 500;
const REPLAYS: usize = 40;
/// What may be added behind the first commands: lines on their way to the disk.
const ALLOWED_BYTES: usize = 16 << 20;

/// The system's allocator, counted.
struct Counting;

static LIVE_BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE_BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Taken by each test, since all of them count the same bytes.
static ALONE: Mutex<()> = Mutex::new(());

/// A device that takes work, keeps nothing of it and never comes to its end.
struct Hanging(Device);

struct HangingStream(Box<dyn driver::Stream>);

struct Never;

impl driver::Device for Hanging {
    fn info(&self) -> &DeviceInfo {
        self.0.info()
    }

    fn memory(&self) -> Result<MemoryInfo> {
        self.0.memory()
    }

    fn health(&self) -> Health {
        self.0.health()
    }

    fn allocate(&self, len_bytes: u64, kind: MemoryKind) -> Result<Buffer> {
        self.0.allocate(len_bytes, kind)
    }

    fn create_stream(&self) -> Result<Box<dyn driver::Stream>> {
        Ok(Box::new(HangingStream(self.0.driver().create_stream()?)))
    }

    fn load(&self, source: &KernelSource) -> Result<Kernel> {
        self.0.load(source)
    }
}

impl driver::Stream for HangingStream {
    fn write(&self, _: &BufferSlice, _: HostBytes) -> Result<()> {
        Ok(())
    }

    fn read_blocking(&self, src: &BufferSlice, dst: &mut [u8]) -> Result<()> {
        self.0.read_blocking(src, dst)
    }

    fn read(&self, _: &BufferSlice, _: HostTarget) -> Result<()> {
        Ok(())
    }

    fn copy(&self, _: &BufferSlice, _: &BufferSlice) -> Result<()> {
        Ok(())
    }

    fn fill(&self, _: &BufferSlice, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn launch(&self, _: &Kernel, _: [u32; 3], _: &[Arg]) -> Result<()> {
        Ok(())
    }

    fn replay(&self, _: &CommandList, _: &[Binding], _: &[Scalar]) -> Result<()> {
        Ok(())
    }

    fn record(&self) -> Result<Box<dyn driver::Event>> {
        Ok(Box::new(Never))
    }

    fn wait(&self, _: &Event) -> Result<()> {
        Ok(())
    }

    fn synchronize(&self, timeout: Option<Duration>) -> Result<()> {
        self.0.synchronize(timeout)
    }

    fn reset(&self) -> Result<()> {
        self.0.reset()
    }
}

impl driver::Event for Never {
    fn is_done(&self) -> Result<bool> {
        Ok(false)
    }

    fn wait(&self, _: Option<Duration>) -> Result<()> {
        Ok(())
    }

    fn elapsed_since(&self, _: &Event) -> Result<Duration> {
        Ok(Duration::ZERO)
    }
}

#[test]
fn a_traced_device_that_hangs_costs_a_growing_file_and_no_memory() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("trace-memory.json");
    {
        let null = NullBackend::new(NullConfig::default()).open(0).unwrap();
        let device = TraceLayer::to_file(&path).wrap(Device::new(Arc::new(Hanging(null)))).unwrap();
        let (stream, other) = (device.create_stream().unwrap(), device.create_stream().unwrap());
        let native = NativeKernel::new("hang", Signature::new(Vec::new()), |_| Ok(()));
        let kernel = device.load(&KernelSource::Native(native)).unwrap();
        let mut commands = CommandListBuilder::new();
        for _ in 0..STEPS {
            let args: Vec<RecordedArg> = Vec::new();
            commands.push(RecordedCommand::Launch { kernel: kernel.clone(), grid: [1, 1, 1], args });
        }
        let list = device.finish(commands).unwrap();
        let event = other.record().unwrap();
        let enqueue = |launches: usize| {
            for _ in 0..launches {
                stream.launch(&kernel, [1, 1, 1], &[]).unwrap();
                stream.wait(&event).unwrap();
            }
            for _ in 0..REPLAYS {
                stream.replay(&list, &[], &[]).unwrap();
            }
        };
        enqueue(FIRST);
        // What is on its way to the disk gets there.
        thread::sleep(Duration::from_millis(300));
        let first = LIVE_BYTES.load(Ordering::Relaxed);
        enqueue(FURTHER);
        let more = || LIVE_BYTES.load(Ordering::Relaxed).saturating_sub(first);
        let start = Instant::now();
        while more() >= ALLOWED_BYTES && start.elapsed() < Duration::from_secs(20) {
            thread::sleep(Duration::from_millis(10));
        }
        let more = more();
        assert!(more < ALLOWED_BYTES, "{more} bytes more than {first} for {FURTHER} launches");
    }
    let lines = BufReader::new(std::fs::File::open(&path).unwrap()).split(b'\n').map(Result::unwrap);
    let (mut launches, mut last) = (0, Vec::new());
    for line in lines {
        let text = std::str::from_utf8(&line).unwrap();
        if text.contains("\"cat\":\"launch\"") {
            assert!(text.contains("\"untimed\":true"), "{text}");
            launches += 1;
        }
        if text.contains("halite_trace_end") {
            last = line;
        }
    }
    let last = String::from_utf8(last).unwrap();
    let lost: usize = last.split_once("\"lost_notes\":").unwrap().1.trim_end_matches('}').parse().unwrap();
    assert_eq!(
        launches + lost,
        FIRST + FURTHER + 2 * REPLAYS * STEPS,
        "each is in the file, or counted as lost"
    );
    let _ = std::fs::remove_file(&path);
}

#[test]
fn a_validated_program_that_only_waits_for_events_costs_no_memory() {
    const ROUNDS: usize = 10_000;
    const LEFT_BYTES: usize = 256 << 10;
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let cpu = CpuBackend::new(CpuConfig { threads: Some(1), memory_limit_bytes: Some(16 << 20) });
    let (layer, findings) = Validate::collecting();
    let device = layer.wrap(cpu.open(0).unwrap()).unwrap();
    let stream = device.create_stream().unwrap();
    let arg = ArgType::Buffer { dtype: DType::U32, access: Access::Write };
    let native = NativeKernel::new("ones", Signature::new(vec![arg]), |workgroup| {
        workgroup.write_all::<u32>(0)?.fill(1);
        Ok(())
    });
    let kernel = device.load(&KernelSource::Native(native)).unwrap();
    let run = || {
        for _ in 0..ROUNDS {
            let buffer = device.allocate(16, MemoryKind::Device).unwrap();
            stream.launch(&kernel, [1, 1, 1], &[buffer.all().into()]).unwrap();
            stream.record().unwrap().wait(None).unwrap();
        }
        LIVE_BYTES.load(Ordering::Relaxed)
    };
    let first = run();
    let more = run().saturating_sub(first);
    assert!(more < LEFT_BYTES, "{more} bytes more than {first} for {ROUNDS} buffers that are gone");
    drop((stream, kernel, device));
    assert!(findings.take().is_empty());
}
