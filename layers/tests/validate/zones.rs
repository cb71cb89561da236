//! Red zones: writes behind the end are found, wherever the buffer comes from, and the zones themselves do not show.

use super::*;
use halite_hal::{ErrorKind, Pool, PoolConfig};

/// Writes a byte at `offset` behind the end of its argument.
fn overrun(bench: &Bench, offset: usize) -> Kernel {
    bench.kernel("overrun", &[bytes(Access::Write)], move |group| {
        let (first, len) = group.pointer::<u8>(0)?;
        // SAFETY: not inside of the argument, but of the layer's zone behind it: that is what is tested.
        unsafe { first.add(len + offset).write(1) };
        Ok(())
    })
}

#[test]
fn a_kernel_that_writes_behind_the_end_is_found_at_the_next_synchronisation() {
    let bench = Bench::cpu();
    let buffer = bench.buffer(1000);
    bench.streams[0].launch(&overrun(&bench, 3), [1, 1, 1], &[arg(&buffer)]).unwrap();
    bench.streams[0].synchronize().unwrap();
    let parts = [
        "bytes 1003 to 1003 were overwritten, behind the end at 1000",
        "'overrun'",
        "compare the kernel's indices",
    ];
    bench.found(FindingKind::RedZone, &parts);
    drop(buffer);
    bench.nothing_found();
}

#[test]
fn a_kernel_that_writes_behind_the_end_is_found_when_the_buffer_is_freed() {
    let bench = Bench::cpu();
    for offset in [0, 63] {
        let buffer = bench.buffer(7);
        let stream = bench.device.create_stream().unwrap();
        stream.launch(&overrun(&bench, offset), [1, 1, 1], &[arg(&buffer)]).unwrap();
        let event = stream.record().unwrap();
        drop(buffer);
        event.wait(None).unwrap();
        bench.layer.check_red_zones();
        let findings = bench.findings.take();
        // The second one is the same mistake, though found elsewhere: on whichever thread dropped the last handle.
        assert!(findings.len() == 1 || offset == 63, "{}", shown(&findings));
        for finding in findings {
            assert_eq!(finding.kind, FindingKind::RedZone);
            assert!(finding.message.contains(&format!("bytes {0} to {0}", 7 + offset)), "{finding}");
        }
    }
}

#[test]
fn tensors_of_a_pool_lie_alone() {
    let bench = Bench::cpu();
    let pool = Pool::new(bench.device.clone(), MemoryKind::Device, PoolConfig::default());
    assert!(pool.config().isolate);
    let (a, b) =
        (pool.allocate(&bench.streams[0], 100).unwrap(), pool.allocate(&bench.streams[0], 100).unwrap());
    assert!(!a.buffer().is_same(b.buffer()));
    let args = [Arg::from(&a)];
    bench.streams[0].launch(&overrun(&bench, 0), [1, 1, 1], &args).unwrap();
    bench.streams[0].synchronize().unwrap();
    bench.found(FindingKind::RedZone, &["bytes 100 to 100"]);
}

#[test]
fn zones_do_not_show_in_lengths_contents_or_statistics() {
    let bench = Bench::cpu();
    let before = bench.device.memory().unwrap();
    let buffers: Vec<_> = [0, 1, 63, 64, 1000].map(|len| bench.written(len)).into();
    let during = bench.device.memory().unwrap();
    assert_eq!(during.used_bytes, before.used_bytes + 1128);
    assert_eq!(during.buffers, before.buffers + 5);
    for buffer in &buffers {
        let mut bytes = vec![1; buffer.len_bytes() as usize];
        bench.streams[0].read_blocking(&buffer.all(), &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0));
        assert!(buffer.slice(0, buffer.len_bytes() + 1).is_err());
    }
    drop(buffers);
    let after = bench.device.memory().unwrap();
    assert_eq!((after.used_bytes, after.buffers), (before.used_bytes, before.buffers));
    bench.nothing_found();
}

#[test]
fn the_last_bytes_of_a_device_are_handed_out_without_a_zone() {
    let bench = Bench::around(cpu_device(Some(1000)));
    let first = bench.buffer(500);
    let error = bench.device.allocate(501, MemoryKind::Device).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::OutOfMemory { .. }), "{error}");
    let rest = bench.buffer(bench.device.memory().unwrap().free_bytes);
    assert!(rest.len_bytes() >= 500 - 64);
    bench.streams[0].fill(&rest.all(), &[1]).unwrap();
    bench.streams[0].synchronize().unwrap();
    drop((first, rest));
    // The largest legal allocation is as large as without the layer.
    assert_eq!(bench.buffer(1000).len_bytes(), 1000);
    bench.nothing_found();
}

#[test]
fn a_device_that_keeps_nothing_has_no_zones() {
    let (null, bench) = Bench::null(NullConfig::default());
    let buffer = bench.buffer(100);
    assert_eq!(bench.device.memory().unwrap().used_bytes, 100);
    null.pause();
    bench.streams[0].fill(&buffer.all(), &[1]).unwrap();
    drop(buffer);
    assert_eq!(bench.device.memory().unwrap().used_bytes, 100, "enqueued work holds it");
    null.resume();
    assert_eq!(bench.device.memory().unwrap().used_bytes, 0);
    bench.nothing_found();
}

#[test]
fn memory_of_the_same_length_is_used_again_without_its_history() {
    let bench = Bench::cpu();
    let before = bench.device.memory().unwrap();
    for round in 0..50 {
        let buffers: Vec<_> = [100, 100, 4096].map(|len| bench.buffer(len)).into();
        for buffer in &buffers {
            bench.streams[round % 2].fill(&buffer.all(), &[round as u8]).unwrap();
            bench.streams[round % 2].read_blocking(&buffer.slice(0, 4).unwrap(), &mut [0; 4]).unwrap();
        }
        assert_eq!(bench.device.memory().unwrap().used_bytes, before.used_bytes + 4296);
    }
    bench.nothing_found();
    let after = bench.device.memory().unwrap();
    assert_eq!((after.used_bytes, after.buffers), (before.used_bytes, before.buffers));
    let again = bench.buffer(100);
    bench.streams[0].read_blocking(&again.all(), &mut [0; 100]).unwrap();
    bench.found(FindingKind::UnwrittenRead, &["bytes 0 to 99"]);
}
