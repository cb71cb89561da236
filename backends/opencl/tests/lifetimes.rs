//! The device, its memory, and the order in which things are dropped.

mod common;

use common::*;
use halite_hal::driver::Backend as _;
use halite_hal::{
    DType, Device, ErrorKind, Health, MemoryKind, Pool, PoolConfig, Registry, Scalar, as_bytes, from_bytes,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a test waits for the device before it calls that a hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` holds, without asking the device more often than needed.
fn eventually(condition: impl Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn the_device_tells_what_it_is() {
    let Some(devices) = found(backend().probe()) else { return };
    for (index, info) in devices.iter().enumerate() {
        assert_eq!(info.id.to_string(), format!("opencl:{index}"));
        assert!(!info.name.is_empty() && !info.driver_version.is_empty());
        assert!(info.memory_bytes >= 1 << 20 && info.compute_units >= 1);
        assert!(info.clock_mhz != 1, "1 MHz is no clock");
        for dtype in [DType::Bool, DType::F16, DType::BF16, DType::F32, DType::I32] {
            assert!(info.dtypes.contains(&dtype), "{dtype}");
        }
        assert_eq!(info.dtypes.contains(&DType::F64), info.has_feature("fp64"));
        assert!(info.accepts("opencl-c") && info.accepts("builtin") && !info.accepts("native"));
        assert!(info.limits.offset_alignment_bytes.is_power_of_two());
        assert!(info.limits.max_allocation_bytes <= info.memory_bytes && info.limits.max_args >= 8);
    }
    let mut registry = Registry::new();
    registry.register(Arc::new(backend())).unwrap();
    let device = registry.open("opencl").unwrap();
    assert_eq!((device.info(), device.health()), (&devices[0], Health::Ok));
    assert_eq!(registry.open("opencl:4096").unwrap_err().kind(), &ErrorKind::Unavailable);
    assert_eq!(backend().open(4096).unwrap_err().kind(), &ErrorKind::Unavailable);
}

#[test]
fn an_open_device_is_opened_once() {
    let backend = backend();
    let Some(first) = found(backend.open(0)) else { return };
    let second = backend.open(0).unwrap();
    let buffer = first.allocate(1000, MemoryKind::Device).unwrap();
    assert_eq!(second.memory().unwrap().used_bytes, 1000);
    let stream = second.create_stream().unwrap();
    stream.fill(&buffer.all(), &[1]).unwrap();
    stream.synchronize().unwrap();
    drop((first, second, stream));
    drop(buffer);
    assert_eq!(backend.open(0).unwrap().memory().unwrap().used_bytes, 0);
}

#[test]
fn objects_of_another_opening_are_refused() {
    let (one, other) = (backend(), backend());
    let Some(first) = found(one.open(0)) else { return };
    let second = other.open(0).unwrap();
    let stream = first.create_stream().unwrap();
    let theirs = second.allocate(8, MemoryKind::Device).unwrap().all();
    assert_eq!(stream.write(&theirs, vec![0; 8]).unwrap_err().kind(), &ErrorKind::InvalidArgument);
    let event = second.create_stream().unwrap().record().unwrap();
    assert_eq!(stream.wait(&event).unwrap_err().kind(), &ErrorKind::InvalidArgument);
}

#[test]
fn memory_is_counted_and_given_back() {
    let Some(device) = device() else { return };
    let before = device.memory().unwrap();
    let buffer = device.allocate(1000, MemoryKind::Device).unwrap();
    let empty = device.allocate(0, MemoryKind::Device).unwrap();
    let during = device.memory().unwrap();
    assert_eq!((during.used_bytes, during.buffers), (before.used_bytes + 1000, before.buffers + 2));
    assert_eq!(during.free_bytes, before.free_bytes - 1000);
    drop((buffer, empty));
    assert_eq!(device.memory().unwrap(), before);
}

/// Fresh memory, writes, reads, copies and fills of every pair of kinds.
fn check_kinds(device: &Device) {
    let kinds: Vec<_> = [MemoryKind::Device, MemoryKind::HostVisible, MemoryKind::Pinned]
        .into_iter()
        .filter(|kind| match device.allocate(1, *kind) {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(
                    (kind, error.kind()),
                    (&MemoryKind::HostVisible, &ErrorKind::Unsupported),
                    "{error}"
                );
                false
            }
        })
        .collect();
    let stream = device.create_stream().unwrap();
    let bytes = |seed: u8| (0..100u8).map(|i| i.wrapping_mul(7) ^ seed).collect::<Vec<_>>();
    for from in &kinds {
        for len in [0u64, 1, 1000, 200_003] {
            // A predecessor's bytes must not show through.
            let before = device.allocate(len, *from).unwrap();
            stream.fill(&before.all(), &[0xff]).unwrap();
            stream.synchronize().unwrap();
            drop(before);
            let buffer = device.allocate(len, *from).unwrap();
            assert_eq!(buffer.host_pointer().is_some(), len > 0 && *from != MemoryKind::Device);
            assert!(download(&stream, &buffer.all()).iter().all(|byte| *byte == 0));
        }
        let source = device.allocate(120, *from).unwrap();
        stream.write(&source.slice(10, 100).unwrap(), bytes(1)).unwrap();
        for to in &kinds {
            let target = device.allocate(120, *to).unwrap();
            stream.copy(&target.slice(3, 100).unwrap(), &source.slice(10, 100).unwrap()).unwrap();
            stream.fill(&target.slice(104, 8).unwrap(), &[1, 2, 3, 4]).unwrap();
            let mut got = [9; 120];
            stream.read_blocking(&target.all(), &mut got).unwrap();
            assert_eq!(got[..3], [0; 3]);
            assert_eq!((&got[3..103], &got[103..113]), (&bytes(1)[..], &[0, 1, 2, 3, 4, 1, 2, 3, 4, 0][..]));
        }
    }
    for kind in kinds.into_iter().filter(|kind| *kind != MemoryKind::Device) {
        let buffer = device.allocate(100, kind).unwrap();
        let host = buffer.host_pointer().unwrap();
        // SAFETY: 100 bytes, which no work uses yet.
        unsafe { host.as_ptr().copy_from_nonoverlapping(bytes(2).as_ptr(), 100) };
        assert_eq!(download(&stream, &buffer.all()), bytes(2));
        stream.fill(&buffer.all(), &[3]).unwrap();
        stream.synchronize().unwrap();
        // SAFETY: as above; the work on it is done.
        let seen = unsafe { std::slice::from_raw_parts(host.as_ptr(), 100) };
        assert_eq!(seen, [3; 100]);
        assert_eq!(host.as_ptr() as usize % 8, 0, "elements are aligned");
    }
}

#[test]
fn every_kind_of_memory_begins_with_zeros_and_copies_to_every_other() {
    let Some(device) = device() else { return };
    check_kinds(&device);
}

#[test]
fn pinned_memory_works_without_shared_virtual_memory() {
    const NAME: &str = "pinned_memory_works_without_shared_virtual_memory";
    // CL_DEVICE_SVM_CAPABILITIES
    let Some(()) = with_shim(NAME, &[("SHIM_INFO", "1053:0")]) else { return };
    let Some(device) = device() else { return };
    check_kinds(&device);
    assert_eq!(device.allocate(8, MemoryKind::HostVisible).unwrap_err().kind(), &ErrorKind::Unsupported);
    let pinned = device.allocate(8, MemoryKind::Pinned).unwrap().all();
    let stream = device.create_stream().unwrap();
    let error = stream
        .launch(&increment(&device), [1, 1, 1], &[pinned.clone().into(), Scalar::U32(1).into()])
        .unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Unsupported, "{error}");
    drop(pinned);
    assert_eq!(device.memory().unwrap().buffers, 0);
}

#[test]
fn every_kind_of_memory_is_copied_through_blocks_where_the_device_is_no_processor() {
    const NAME: &str = "every_kind_of_memory_is_copied_through_blocks_where_the_device_is_no_processor";
    // CL_DEVICE_TYPE and CL_DEVICE_SVM_CAPABILITIES
    let Some(()) = with_shim(NAME, &[("SHIM_INFO", "1000:4,1053:0")]) else { return };
    let Some(device) = device() else { return };
    check_kinds(&device);
    let stream = device.create_stream().unwrap();
    let block = 1 << 20;
    for kind in [MemoryKind::Device, MemoryKind::Pinned] {
        for len in [1, block - 1, block, block + 1, 5 * block + 3, 65 * block + 1] {
            let bytes: Vec<u8> = (0..len as u64).map(|i| (i.wrapping_mul(0x9E37_79B9) >> 13) as u8).collect();
            let buffer = device.allocate(len as u64 + 7, kind).unwrap();
            let slice = buffer.slice(5, len as u64).unwrap();
            stream.write_blocking(&slice, &bytes).unwrap();
            let mut got = vec![9; len];
            stream.read_blocking(&slice, &mut got).unwrap();
            assert!(got == bytes, "{len} bytes of {kind:?} memory");
            assert_eq!(download(&stream, &buffer.slice(len as u64 + 5, 2).unwrap()), [0; 2]);
        }
    }
    stream.synchronize().unwrap();
    assert_eq!(device.memory().unwrap().buffers, 0);
}

#[test]
fn blocking_copies_of_several_threads_are_not_torn() {
    const NAME: &str = "blocking_copies_of_several_threads_are_not_torn";
    let Some(()) = with_shim(NAME, &[("SHIM_INFO", "1000:4")]) else { return };
    let Some(device) = device() else { return };
    let stream = device.create_stream().unwrap();
    let len = 5 << 20;
    let buffer = upload(&device, &stream, &vec![0; len]);
    std::thread::scope(|scope| {
        for value in 1..3 {
            let (stream, buffer) = (&stream, &buffer);
            let write =
                move || (0..20).for_each(|_| stream.write_blocking(buffer, &vec![value; len]).unwrap());
            scope.spawn(write);
        }
        for _ in 0..20 {
            let mut got = vec![9; len];
            stream.read_blocking(&buffer, &mut got).unwrap();
            assert!(got.iter().all(|byte| *byte == got[0] && *byte < 3));
        }
    });
}

#[test]
fn kernels_and_the_host_share_host_visible_memory() {
    let Some(device) = device() else { return };
    let Ok(buffer) = device.allocate(4000, MemoryKind::HostVisible) else {
        println!("skipped: the device has no host-visible memory");
        return;
    };
    let stream = device.create_stream().unwrap();
    let host = buffer.host_pointer().unwrap().as_ptr().cast::<u32>();
    for round in 0..3u32 {
        // SAFETY: 1000 elements, aligned (see `check_kinds`), which no work uses now.
        unsafe { (0..1000).for_each(|i| host.add(i).write(round + i as u32)) };
        let args = [buffer.all().into(), Scalar::U32(1000).into()];
        stream.launch(&increment(&device), [63, 1, 1], &args).unwrap();
        stream.synchronize().unwrap();
        // SAFETY: as above.
        let seen: Vec<u32> = unsafe { (0..1000).map(|i| host.add(i).read()).collect() };
        assert_eq!(seen, (0..1000).map(|i| round + i + 1).collect::<Vec<_>>());
    }
}

#[test]
fn too_large_and_out_of_memory_are_different() {
    const NAME: &str = "too_large_and_out_of_memory_are_different";
    // CL_DEVICE_GLOBAL_MEM_SIZE and CL_DEVICE_MAX_MEM_ALLOC_SIZE
    let Some(()) = with_shim(NAME, &[("SHIM_INFO", "101f:1000000,1010:600000")]) else { return };
    let Some(device) = device() else { return };
    let error = device.allocate(600_001, MemoryKind::Device).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::TooLarge { requested: 600_001, limit: 600_000 });
    let most = device.allocate(600_000, MemoryKind::Device).unwrap();
    let error = device.allocate(400_001, MemoryKind::Device).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::OutOfMemory { requested: 400_001, free: 400_000 }, "{error}");
    assert!(error.is_retryable());
    // A failed attempt leaves no trace in the account.
    let memory = device.memory().unwrap();
    assert_eq!((memory.used_bytes, memory.buffers, memory.total_bytes), (600_000, 1, 1_000_000));
    // What only work in flight holds is waited for.
    let stream = device.create_stream().unwrap();
    let gate = upload(&device, &stream, &[0; 8]);
    stream.launch(&slow(&device), [1, 1, 1], &[gate.into(), Scalar::U32(SLOW_ROUNDS).into()]).unwrap();
    stream.fill(&most.all(), &[1]).unwrap();
    drop(most);
    device.allocate(600_000, MemoryKind::Device).unwrap();
}

#[test]
fn enqueued_work_holds_what_it_uses_until_it_is_done() {
    let Some(device) = device() else { return };
    let stream = device.create_stream().unwrap();
    let increment = increment(&device);
    let slow = slow(&device);
    let gate = upload(&device, &stream, &[0; 8]);
    let target = device.allocate(1000, MemoryKind::Device).unwrap().all();
    let temporaries: Vec<_> =
        (0..20).map(|_| device.allocate(1000, MemoryKind::Device).unwrap().all()).collect();
    stream.launch(&slow, [1, 1, 1], &[gate.into(), Scalar::U32(SLOW_ROUNDS).into()]).unwrap();
    for (value, temporary) in (0..).zip(temporaries) {
        stream.write(&temporary, vec![value; 1000]).unwrap();
        stream.launch(&increment, [1, 1, 1], &[temporary.clone().into(), Scalar::U32(0).into()]).unwrap();
        stream.copy(&target, &temporary).unwrap();
    }
    let end = stream.record().unwrap();
    drop((increment, slow));
    let during = device.memory().unwrap();
    assert!(!end.is_done().unwrap(), "the device was faster than sixty calls");
    assert_eq!((during.used_bytes, during.buffers), (8 + 21 * 1000, 22));
    // The reaper gives everything back, though nobody waits.
    eventually(|| device.memory().unwrap().buffers == 1);
    assert_eq!(download(&stream, &target), [19; 1000]);
}

#[test]
fn a_dropped_stream_runs_its_work_to_the_end() {
    let Some(device) = device() else { return };
    let (stream, other) = (device.create_stream().unwrap(), device.create_stream().unwrap());
    let value = upload(&device, &stream, as_bytes(&[3u32, 0]));
    let slow = slow(&device);
    stream.launch(&slow, [1, 1, 1], &[value.clone().into(), Scalar::U32(SLOW_ROUNDS).into()]).unwrap();
    let event = stream.record().unwrap();
    other.wait(&event).unwrap();
    other.launch(&slow, [1, 1, 1], &[value.clone().into(), Scalar::U32(1).into()]).unwrap();
    let end = other.record().unwrap();
    drop((stream, other, slow, event));
    end.wait(None).unwrap();
    assert!(end.is_done().unwrap());
    let reader = device.create_stream().unwrap();
    assert_eq!(from_bytes::<u32>(&download(&reader, &value))[0], 5);
}

#[test]
fn everything_may_be_dropped_while_work_runs() {
    let backend = backend();
    let Some(device) = found(backend.open(0)) else { return };
    let stream = device.create_stream().unwrap();
    let value = upload(&device, &stream, as_bytes(&[3u32, 0]));
    let args = [value.clone().into(), Scalar::U32(SLOW_ROUNDS).into()];
    stream.launch(&slow(&device), [1, 1, 1], &args).unwrap();
    let pending = stream.read(&value).unwrap();
    drop((value, args, stream, device));
    assert_eq!(from_bytes::<u32>(&pending.wait().unwrap())[0], 4);
    // Its context is released, so that this is another opening with an account of its own.
    eventually(|| backend.open(0).unwrap().memory().unwrap().buffers == 0);
}

#[test]
#[cfg(target_os = "linux")]
fn the_thread_ends_after_the_last_object_is_gone() {
    const NAME: &str = "the_thread_ends_after_the_last_object_is_gone";
    // Alone in a process: other tests have such threads too.
    let Some(()) = with_shim(NAME, &[]) else { return };
    let own = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.filter(|name| name.trim_end() == "halite-opencl").count()
    };
    let Some(device) = device() else { return };
    let streams = [device.create_stream().unwrap(), device.create_stream().unwrap()];
    let buffer = upload(&device, &streams[0], &[0; 8]);
    streams[1].fill(&buffer, &[1]).unwrap();
    // A thread gives itself its name.
    eventually(|| own() == 1);
    drop((device, streams));
    assert_eq!(own(), 1);
    drop(buffer);
    eventually(|| own() == 0);
}

#[test]
fn the_pools_arenas_serve_kernels_and_copies() {
    let Some(device) = device() else { return };
    let stream = device.create_stream().unwrap();
    let pool = Pool::new(device.clone(), MemoryKind::Device, PoolConfig::default());
    let increment = increment(&device);
    for round in 0..50u32 {
        let lens: Vec<u32> = (0..8).map(|i| 1 + (round * 37 + i * 101) % 500).collect();
        let allocations: Vec<_> = lens
            .iter()
            .map(|len| {
                let allocation = pool.allocate(&stream, u64::from(*len) * 4).unwrap();
                stream.write(&allocation, as_bytes(&vec![*len; *len as usize])).unwrap();
                let args = [(&allocation).into(), Scalar::U32(*len).into()];
                stream.launch(&increment, [len.div_ceil(16), 1, 1], &args).unwrap();
                allocation
            })
            .collect();
        for (allocation, len) in allocations.iter().zip(&lens) {
            let got = from_bytes::<u32>(&download(&stream, allocation));
            assert!(got.iter().all(|value| *value == len + 1), "round {round}, {len} elements");
        }
    }
    assert!(pool.stats().segments_created < 3);
}
