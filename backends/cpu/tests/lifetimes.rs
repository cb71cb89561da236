//! The device, its memory, and the order in which things are dropped.

mod common;

use common::*;
use halite_cpu::{CpuBackend, CpuConfig};
use halite_hal::driver::Backend;
use halite_hal::{Access, DType, ErrorKind, Health, MemoryKind, Pool, PoolConfig, Registry};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// How long a test waits for another thread before it calls that a hang.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn the_device_tells_what_it_is() {
    let config = CpuConfig { threads: Some(3), memory_limit_bytes: Some(1 << 20) };
    let mut registry = Registry::new();
    registry.register(Arc::new(CpuBackend::new(config))).unwrap();
    let device = registry.open("cpu").unwrap();
    let info = device.info();
    assert_eq!(info.id.to_string(), "cpu:0");
    assert_eq!((info.compute_units, info.memory_bytes), (3, 1 << 20));
    assert!(!info.name.is_empty() && DType::ALL.iter().all(|dtype| info.dtypes.contains(dtype)));
    assert!(info.accepts("native") && info.accepts("builtin") && !info.accepts("opencl-c"));
    assert_eq!(device.health(), Health::Ok);
    assert_eq!(registry.open("cpu:1").unwrap_err().kind(), &ErrorKind::Unavailable);
    assert_eq!(CpuBackend::default().open(7).err().unwrap().kind(), &ErrorKind::Unavailable);
}

#[test]
fn defaults_use_the_machine_as_it_is() {
    let info = CpuBackend::default().probe().unwrap().remove(0);
    assert_eq!(info.compute_units as usize, std::thread::available_parallelism().unwrap().get());
    assert!(info.memory_bytes >= 1 << 20);
}

#[test]
fn wrong_settings_are_reported_when_probed() {
    let backend = CpuBackend::new(CpuConfig { threads: Some(0), memory_limit_bytes: None });
    assert_eq!(backend.probe().unwrap_err().kind(), &ErrorKind::InvalidArgument);
    assert!(backend.open(0).is_err());
}

#[test]
fn an_open_device_is_opened_once() {
    let backend = CpuBackend::new(CpuConfig { threads: Some(1), memory_limit_bytes: Some(1 << 20) });
    let (first, second) = (backend.open(0).unwrap(), backend.open(0).unwrap());
    let buffer = first.allocate(1000, MemoryKind::Device).unwrap();
    assert_eq!(second.memory().unwrap().used_bytes, 1000);
    drop((first, second));
    drop(buffer);
    assert_eq!(backend.open(0).unwrap().memory().unwrap().used_bytes, 0);
}

#[test]
fn a_memory_limit_that_was_set_is_named_when_it_is_in_force() {
    let config = CpuConfig { threads: Some(1), memory_limit_bytes: Some(1 << 20) };
    let device = CpuBackend::new(config).open(0).unwrap();
    let stream = device.create_stream().unwrap();
    let pool = Pool::new(device.clone(), MemoryKind::Device, PoolConfig::default());
    for error in [
        device.allocate(2 << 20, MemoryKind::Device).unwrap_err(),
        pool.allocate(&stream, 2 << 20).unwrap_err(),
    ] {
        assert!(matches!(error.kind(), ErrorKind::TooLarge { .. }), "{error}");
        let part = "the CPU's memory limit (HALITE_CPU_MEMORY) is 1048576; raise it";
        assert!(error.message().contains(part), "{error}");
    }
    let _held = pool.allocate(&stream, 1 << 20).unwrap();
    let error = pool.allocate(&stream, 1 << 20).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::OutOfMemory { .. }), "{error}");
    let part = "or raise the CPU's memory limit (HALITE_CPU_MEMORY) from 1048576 bytes";
    assert!(error.message().contains(part), "{error}");

    let device = CpuBackend::new(CpuConfig::default()).open(0).unwrap();
    let error = device.allocate(u64::MAX, MemoryKind::Device).unwrap_err();
    assert!(!error.message().contains("HALITE_CPU_MEMORY"), "{error}");
}

#[test]
fn memory_never_written_reads_as_zeros_for_every_kind() {
    let stream = stream(1);
    for kind in [MemoryKind::Device, MemoryKind::HostVisible, MemoryKind::Pinned] {
        for len in [0, 1, 1000, 200_003] {
            // A predecessor's bytes must not show through.
            let before = stream.device().allocate(len, kind).unwrap();
            stream.fill(&before.all(), &[0xff]).unwrap();
            stream.synchronize().unwrap();
            drop(before);
            let buffer = stream.device().allocate(len, kind).unwrap();
            assert!(buffer.host_pointer().is_some());
            let mut bytes = vec![1; len as usize];
            stream.read_blocking(&buffer.all(), &mut bytes).unwrap();
            assert!(bytes.iter().all(|byte| *byte == 0));
        }
    }
}

#[test]
fn too_large_and_out_of_memory_are_different() {
    let device = device(1);
    let kind = device.allocate(MEMORY_BYTES + 1, MemoryKind::Device).unwrap_err();
    assert_eq!(kind.kind(), &ErrorKind::TooLarge { requested: MEMORY_BYTES + 1, limit: MEMORY_BYTES });
    let half = device.allocate(MEMORY_BYTES / 2 + 1, MemoryKind::Device).unwrap();
    let error = device.allocate(MEMORY_BYTES / 2, MemoryKind::Device).unwrap_err();
    let (requested, free) = (MEMORY_BYTES / 2, MEMORY_BYTES / 2 - 1);
    assert_eq!(error.kind(), &ErrorKind::OutOfMemory { requested, free });
    drop(half);
    drop(device.allocate(MEMORY_BYTES, MemoryKind::Device).unwrap());
    let memory = device.memory().unwrap();
    assert_eq!((memory.used_bytes, memory.free_bytes, memory.buffers), (0, MEMORY_BYTES, 0));
    assert_eq!(memory.total_bytes, MEMORY_BYTES);
}

#[test]
fn queued_work_holds_its_buffers_and_lets_each_go_when_done() {
    let stream = stream(1);
    let device = stream.device().clone();
    let kernel = increment(&device);
    let gate = Gate::close(&stream);
    let first = allocate(&device, 100);
    stream.launch(&kernel, [1, 1, 1], &[arg(&first)]).unwrap();
    drop(first);
    let second_gate = Gate::close(&stream);
    let (second, third) = (allocate(&device, 100), allocate(&device, 100));
    stream.copy(&third.all(), &second.all()).unwrap();
    drop((second, third));
    assert_eq!(device.memory().unwrap().used_bytes, 1200);
    let between = stream.record().unwrap();
    gate.open();
    // The first launch's buffer goes although its batch of commands is not done.
    let begin = std::time::Instant::now();
    while device.memory().unwrap().used_bytes > 800 {
        assert!(begin.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
    assert!(!between.is_done().unwrap());
    second_gate.open();
    stream.synchronize().unwrap();
    assert_eq!(device.memory().unwrap().buffers, 0);
}

#[test]
fn skipped_commands_let_their_buffers_go() {
    let stream = stream(2);
    let device = stream.device().clone();
    let gate = Gate::close(&stream);
    stream.launch(&failing(&device, "x"), [1, 1, 1], &[]).unwrap();
    for _ in 0..100 {
        let buffer = allocate(&device, 10);
        stream.launch(&increment(&device), [1, 1, 1], &[arg(&buffer)]).unwrap();
        stream.fill(&buffer.all(), &[1]).unwrap();
    }
    gate.open();
    stream.synchronize().unwrap_err();
    assert_eq!(device.memory().unwrap().buffers, 0);
}

#[test]
fn a_dropped_stream_still_runs_its_work() {
    for threads in [1, 2] {
        let device = device(threads);
        let (a, b) = (device.create_stream().unwrap(), device.create_stream().unwrap());
        let buffer = allocate(&device, 1000);
        let gate = Gate::close(&a);
        let event = a.record().unwrap();
        b.wait(&event).unwrap();
        b.launch(&increment(&device), [10, 1, 1], &[arg(&buffer)]).unwrap();
        let end = b.record().unwrap();
        drop((a, b, event));
        gate.open();
        end.wait(None).unwrap();
        let reader = device.create_stream().unwrap();
        assert_eq!(read(&reader, &buffer), [1; 1000]);
    }
}

#[test]
fn the_last_handles_may_go_on_a_worker() {
    for threads in [1, 3] {
        let (sender, receiver) = mpsc::channel();
        {
            let device = device(threads);
            let stream = device.create_stream().unwrap();
            let buffer = allocate(&device, 100);
            let open = Arc::new(AtomicBool::new(false));
            let seen = open.clone();
            // The kernel owns a handle of the device, and is itself owned by the queue alone.
            let held = device.clone();
            let kernel = native(&device, vec![buffer_arg(Access::ReadWrite)], move |_| {
                while !seen.load(Ordering::Acquire) {
                    std::thread::yield_now();
                }
                sender.send(held.memory().unwrap().buffers).map_err(|error| error.to_string())
            });
            stream.launch(&kernel, [1, 1, 1], &[arg(&buffer)]).unwrap();
            drop((kernel, buffer, stream, device));
            open.store(true, Ordering::Release);
        }
        assert_eq!(receiver.recv_timeout(PATIENCE), Ok(1));
        // The sender lived in the kernel, so its end shows that the kernel was dropped.
        assert_eq!(receiver.recv_timeout(PATIENCE), Err(mpsc::RecvTimeoutError::Disconnected));
    }
}

#[test]
#[cfg(target_os = "linux")]
fn workers_end_after_the_last_object_is_gone() {
    // Counted by a name of their own, since other tests of this process have workers too.
    let own = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.filter(|name| name.trim_end() == "halite-cpu-37").count()
    };
    let stream = device(38).create_stream().unwrap();
    let kernel = native(stream.device(), vec![], |_| Ok(()));
    stream.launch(&kernel, [64, 1, 1], &[]).unwrap();
    stream.synchronize().unwrap();
    let begin = std::time::Instant::now();
    while own() != 1 {
        assert!(begin.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
    drop((stream, kernel));
    while own() != 0 {
        assert!(begin.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
}

#[test]
fn a_kernel_that_panics_when_dropped_leaves_the_stream_working() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }
    let stream = stream(1);
    let gate = Gate::close(&stream);
    let bomb = Bomb;
    let kernel = native(stream.device(), vec![], move |_| {
        let _held = &bomb;
        Ok(())
    });
    stream.launch(&kernel, [1, 1, 1], &[]).unwrap();
    drop(kernel);
    gate.open();
    stream.synchronize_timeout(PATIENCE).unwrap();
    let buffer = allocate(stream.device(), 1);
    stream.launch(&increment(stream.device()), [1, 1, 1], &[arg(&buffer)]).unwrap();
    assert_eq!(read(&stream, &buffer), [1]);
}
