use super::*;
use crate::null::{NullBackend, NullConfig, NullDevice};

mod traffic;

const KIB: u64 = 1 << 10;

fn null_of(memory_bytes: u64) -> NullDevice {
    let config = NullConfig { memory_bytes, max_allocation_bytes: memory_bytes / 2, ..NullConfig::default() };
    NullBackend::new(config).open_null(0).unwrap()
}

fn small_segments() -> PoolConfig {
    PoolConfig {
        segment_bytes: 64 * KIB,
        initial_segment_bytes: 16 * KIB,
        wait_limit: Duration::from_secs(20),
        ..PoolConfig::default()
    }
}

fn pool_on(null: &NullDevice, config: PoolConfig) -> (Pool, Stream) {
    let device = null.device();
    let stream = device.create_stream().unwrap();
    (Pool::new(device, MemoryKind::Device, config), stream)
}

fn place(allocation: &Allocation) -> (u64, u64) {
    (allocation.buffer().id(), allocation.offset())
}

fn exactly(len: u64) -> Request {
    Request { len, chunk_len: len }
}

fn check(pool: &Pool) {
    pool.0.arena().check();
}

#[test]
fn handles_are_send_and_sync() {
    fn assert_send_sync<T: Send + Sync>() {}
    assert_send_sync::<Pool>();
    assert_send_sync::<Allocation>();
}

#[test]
fn a_new_pool_takes_nothing_of_the_device() {
    let null = null_of(1 << 20);
    let (pool, _) = pool_on(&null, PoolConfig::default());
    assert_eq!(pool.device().memory().unwrap().buffers, 0);
    assert_eq!(pool.stats(), PoolStats::default());
}

#[test]
fn sizes_are_exact_and_offsets_aligned() {
    for alignment_bytes in [0, 1, 300, 1024] {
        let null = null_of(1 << 20);
        let (pool, stream) = pool_on(&null, PoolConfig { alignment_bytes, ..small_segments() });
        let expected =
            [256, 256, 512, 1024][[0, 1, 300, 1024].iter().position(|a| *a == alignment_bytes).unwrap()];
        assert_eq!(pool.config().alignment_bytes, expected);
        let allocations: Vec<_> =
            [1, 7, 255, 256, 257, 4099].map(|len| (len, pool.allocate(&stream, len).unwrap())).into();
        for (len, allocation) in &allocations {
            assert_eq!(allocation.len_bytes(), *len);
            assert_eq!(allocation.offset() % expected, 0);
            assert_eq!(allocation.slice(0, *len).unwrap().range(), allocation.range());
        }
        let in_use: u64 = allocations.iter().map(|(len, _)| len.next_multiple_of(expected)).sum();
        assert_eq!(pool.stats().in_use_bytes, in_use);
        check(&pool);
    }
}

#[test]
fn the_devices_offset_alignment_is_kept() {
    let config = NullConfig { offset_alignment_bytes: 4096, ..NullConfig::default() };
    let null = NullBackend::new(config).open_null(0).unwrap();
    let (pool, stream) = pool_on(&null, PoolConfig::default());
    let allocations: Vec<_> = (0..3).map(|_| pool.allocate(&stream, 1).unwrap()).collect();
    assert!(allocations.iter().all(|allocation| allocation.offset() % 4096 == 0));
}

#[test]
fn zero_bytes_need_no_memory_even_on_a_full_device() {
    let null = null_of(4096);
    let (pool, stream) = pool_on(&null, PoolConfig::default());
    let _full: Vec<_> = (0..2).map(|_| pool.allocate(&stream, 2048).unwrap()).collect();
    let other = pool.device().create_stream().unwrap();
    let empty = pool.allocate(&stream, 0).unwrap();
    empty.record_use(&other);
    assert_eq!(empty.len_bytes(), 0);
    stream.write(&empty, Vec::new()).unwrap();
    assert_eq!(pool.stats().live, 2);
    drop(empty);
    assert_eq!(pool.stats().live, 2);
}

#[test]
fn freed_memory_serves_its_own_stream_at_once_while_work_is_under_way() {
    let null = null_of(1 << 20);
    let (pool, stream) = pool_on(&null, small_segments());
    null.pause();
    let first = pool.allocate(&stream, 1000).unwrap();
    stream.fill(&first, &[0]).unwrap();
    let before = place(&first);
    drop(first);
    let second = pool.allocate(&stream, 1000).unwrap();
    assert_eq!(place(&second), before);
    let stats = pool.stats();
    assert_eq!((stats.allocations, stats.reuses, stats.segments_created), (2, 1, 1));
}

#[test]
fn freed_memory_serves_another_stream_only_after_the_work_is_done() {
    let null = null_of(1 << 20);
    let (pool, a) = pool_on(&null, small_segments());
    let b = pool.device().create_stream().unwrap();
    // Fills the first segment, so that nothing in it was left untouched by stream a.
    let whole = pool.allocate(&a, 8 * KIB).unwrap();
    let rest = pool.allocate(&a, 8 * KIB).unwrap();
    null.pause();
    a.copy(&whole, &rest).unwrap();
    let used = whole.buffer().id();
    drop((whole, rest));
    let during = pool.allocate(&b, 8 * KIB).unwrap();
    assert_ne!(during.buffer().id(), used, "work of the other stream was still under way");
    check(&pool);
    null.resume();
    let segments = pool.stats().segments_created;
    let after = pool.allocate(&b, 16 * KIB).unwrap();
    assert_eq!((after.buffer().id(), pool.stats().segments_created), (used, segments));
    check(&pool);
}

#[test]
fn a_recorded_use_holds_memory_back_from_its_own_stream_too() {
    let null = null_of(1 << 20);
    let (pool, a) = pool_on(&null, small_segments());
    let b = pool.device().create_stream().unwrap();
    let shared = pool.allocate(&a, 16 * KIB).unwrap();
    let used = place(&shared);
    null.pause();
    b.fill(&shared, &[0]).unwrap();
    shared.record_use(&b);
    shared.record_use(&b);
    shared.record_use(&a);
    drop(shared);
    assert_eq!(pool.stats().pending_bytes, 16 * KIB);
    assert_eq!(pool.stats().in_use_bytes, 0);
    check(&pool);
    let during = pool.allocate(&a, 16 * KIB).unwrap();
    assert_ne!(place(&during), used);
    null.resume();
    let after = pool.allocate(&a, 16 * KIB).unwrap();
    assert_eq!(place(&after), used);
    assert_eq!(pool.stats().pending_bytes, 0);
    check(&pool);
}

#[test]
fn recording_the_own_stream_holds_nothing_back() {
    let null = null_of(1 << 20);
    let (pool, stream) = pool_on(&null, small_segments());
    null.pause();
    let memory = pool.allocate(&stream, 512).unwrap();
    memory.record_use(&stream);
    let before = place(&memory);
    drop(memory);
    assert_eq!(place(&pool.allocate(&stream, 512).unwrap()), before);
}

#[test]
fn a_third_stream_gets_memory_as_soon_as_all_uses_are_over() {
    let null = null_of(1 << 20);
    let (pool, a) = pool_on(&null, small_segments());
    let [b, c] = [(); 2].map(|()| pool.device().create_stream().unwrap());
    let memory = pool.allocate(&a, 16 * KIB).unwrap();
    let used = place(&memory);
    memory.record_use(&b);
    null.pause();
    drop(memory);
    null.resume();
    assert_eq!(place(&pool.allocate(&c, 16 * KIB).unwrap()), used);
    assert_eq!(pool.stats().segments_created, 1);
}

#[test]
fn memory_that_joins_what_others_freed_later_is_shared_with_it() {
    let null = null_of(1 << 20);
    let (pool, a) = pool_on(&null, small_segments());
    let b = pool.device().create_stream().unwrap();
    let mut arena = pool.0.arena();
    let buffer = pool.device().allocate(512, MemoryKind::Device).unwrap();
    let first = arena.add_segment(&buffer, &a, exactly(256)).chunk;
    let second = arena.take(&b, exactly(256), false).unwrap().chunk;
    drop(arena.put_back(first, vec![Use::Unrecorded(b.clone())]));
    drop(arena.put_back(second, Vec::new()));
    let survey = arena.survey();
    let finding =
        |lane: &LaneSurvey| LaneFinding { stream: lane.stream.id(), reached: lane.frees, marker: None };
    let (of_a, of_b) = (finding(&survey.lanes[0]), finding(&survey.lanes[1]));
    assert_eq!((of_a.stream, of_b.stream), (a.id(), b.id()));
    drop(arena.apply(Findings { lanes: vec![of_b], pending: Vec::new() }));
    arena.check();
    assert_eq!(arena.stats().free_chunks, 1);
    let done = survey.pending.iter().map(|(id, _)| (*id, Vec::new())).collect();
    drop(arena.apply(Findings { lanes: vec![of_a], pending: done }));
    arena.check();
    assert!(arena.take(&b, exactly(512), false).is_some(), "nobody uses any of it");
}

#[test]
fn a_use_that_is_over_at_drop_holds_nothing_back() {
    let null = null_of(1 << 20);
    let (pool, a) = pool_on(&null, small_segments());
    let b = pool.device().create_stream().unwrap();
    let shared = pool.allocate(&a, 512).unwrap();
    shared.record_use(&b);
    drop(shared);
    let stats = pool.stats();
    assert_eq!((stats.pending_bytes, stats.free_chunks), (0, 1));
}

#[test]
fn neighbours_join_in_any_order_of_freeing() {
    let orders = [[0, 1, 2, 3], [3, 2, 1, 0], [0, 2, 1, 3], [1, 3, 0, 2], [2, 0, 3, 1]];
    for order in orders {
        let null = null_of(1 << 20);
        let (pool, stream) = pool_on(&null, small_segments());
        let mut allocations: Vec<_> = (0..4).map(|_| pool.allocate(&stream, 1000).ok()).collect();
        for index in order {
            allocations[index] = None;
            check(&pool);
        }
        let stats = pool.stats();
        assert_eq!((stats.free_chunks, stats.segments), (1, 1), "{order:?}");
        assert_eq!(stats.largest_free_bytes, 16 * KIB);
    }
}

#[test]
fn the_best_fit_is_taken() {
    let null = null_of(1 << 20);
    let (pool, stream) = pool_on(&null, small_segments());
    let lens = [2048, 256, 512, 256, 1024, 256];
    let mut allocations: Vec<_> = lens.map(|len| pool.allocate(&stream, len).ok()).into();
    let offsets: Vec<_> = allocations.iter().flatten().map(|a| a.offset()).collect();
    for hole in [0, 2, 4] {
        allocations[hole] = None;
    }
    for (len, hole) in [(1000, 4), (400, 2), (1500, 0)] {
        let fit = pool.allocate(&stream, len).unwrap();
        assert_eq!(fit.offset(), offsets[hole], "{len} bytes");
    }
}

#[test]
fn the_best_fit_may_be_what_another_stream_has_finished_with() {
    let null = null_of(1 << 20);
    let (pool, a) = pool_on(&null, small_segments());
    let b = pool.device().create_stream().unwrap();
    let own = pool.allocate(&a, 4 * KIB).unwrap();
    let _kept = pool.allocate(&a, 256).unwrap();
    let others = pool.allocate(&b, KIB).unwrap();
    let _kept_too = pool.allocate(&a, 256).unwrap();
    let fit = place(&others);
    drop(others);
    pool.0.sweep();
    drop(own);
    assert_eq!(place(&pool.allocate(&a, KIB).unwrap()), fit);
}

#[test]
fn large_requests_get_segments_of_their_own_which_small_ones_leave_alone() {
    let null = null_of(1 << 20);
    let (pool, stream) = pool_on(&null, small_segments());
    let large = pool.allocate(&stream, 100 * KIB).unwrap();
    assert_eq!((large.offset(), large.buffer().len_bytes()), (0, 100 * KIB));
    let id = large.buffer().id();
    drop(large);
    let small = pool.allocate(&stream, 256).unwrap();
    assert_ne!(small.buffer().id(), id);
    assert_eq!(small.buffer().len_bytes(), 64 * KIB, "segments grow with the pool up to their maximum");
    let again = pool.allocate(&stream, 90 * KIB).unwrap();
    assert_eq!(again.buffer().id(), id);
}

#[test]
fn requests_beyond_the_device_or_the_limit_are_too_large() {
    let null = null_of(1 << 20);
    let (pool, stream) = pool_on(&null, small_segments());
    let error = pool.allocate(&stream, (512 << 10) + 1).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::TooLarge { requested: (512 << 10) + 1, limit: 512 << 10 });
    assert!(error.to_string().starts_with("null:0: pool.allocate: too large: "), "{error}");
    assert!(pool.allocate(&stream, u64::MAX).is_err());
    let (pool, stream) = pool_on(&null, PoolConfig { limit_bytes: Some(1000), ..small_segments() });
    let error = pool.allocate(&stream, 1001).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::TooLarge { requested: 1001, limit: 1000 });
    assert!(error.message().contains("pool's limit is 1000"), "{error}");
    // The whole limit is allowed although it is no multiple of the alignment.
    assert_eq!(pool.allocate(&stream, 1000).unwrap().len_bytes(), 1000);
}

#[test]
fn a_limit_with_a_name_is_named_where_it_is_in_force() {
    let null = null_of(1 << 20);
    let limited = |bytes| {
        let limit_name = Some("memory.pool_limit of profile 'tiny'".to_owned());
        pool_on(&null, PoolConfig { limit_bytes: Some(bytes), limit_name, ..small_segments() })
    };
    let (pool, stream) = limited(1000);
    let error = pool.allocate(&stream, 1001).unwrap_err();
    assert_eq!(
        error.message(),
        "1001 bytes in one allocation, but memory.pool_limit of profile 'tiny' is 1000; raise it, or use smaller \
         tensors or batches"
    );
    let _held = pool.allocate(&stream, 1000).unwrap();
    let error = pool.allocate(&stream, 1000).unwrap_err();
    assert!(
        error.message().ends_with("or raise memory.pool_limit of profile 'tiny' from 1000 bytes"),
        "{error}"
    );

    // The device is full long before this limit, so raising it would not help.
    let (pool, stream) = limited(1 << 30);
    let _held = pool.allocate(&stream, 500 << 10).unwrap();
    let _more = pool.allocate(&stream, 500 << 10).unwrap();
    let error = pool.allocate(&stream, 100 << 10).unwrap_err();
    assert!(error.message().ends_with("; drop tensors or use smaller batches"), "{error}");
}

#[test]
fn the_limit_holds_and_its_error_says_what_is_free() {
    let null = null_of(1 << 20);
    let (pool, stream) = pool_on(&null, PoolConfig { limit_bytes: Some(64 * KIB), ..small_segments() });
    let mut held = Vec::new();
    let error = loop {
        match pool.allocate(&stream, 3 * KIB) {
            Ok(allocation) => held.push(allocation),
            Err(error) => break error,
        }
    };
    // Segments of 16, 16 and 32 KiB hold 5, 5 and 10.
    assert_eq!(held.len(), 20);
    assert_eq!(pool.stats().reserved_bytes, 64 * KIB);
    assert!(pool.device().memory().unwrap().used_bytes <= 64 * KIB);
    assert_eq!(error.kind(), &ErrorKind::OutOfMemory { requested: 3 * KIB, free: 4 * KIB });
    for part in [
        "3072 bytes",
        "61440 are in use",
        "4096 free: 0 outside the pool",
        "at most 2048;",
        "raise the pool's limit",
    ] {
        assert!(error.message().contains(part), "{error}");
    }
    held.pop();
    assert!(pool.allocate(&stream, 3 * KIB).is_ok(), "freeing helps");
    check(&pool);
}

#[test]
fn out_of_memory_trims_and_retries_before_it_reports() {
    let null = null_of(256 * KIB);
    let (pool, stream) = pool_on(&null, small_segments());
    // Cached in sizes that cannot serve what comes next: 4 segments of small chunks.
    let small: Vec<_> = (0..240).map(|_| pool.allocate(&stream, KIB).unwrap()).collect();
    drop(small);
    assert!(pool.stats().reserved_bytes > 200 * KIB);
    let large = pool.allocate(&stream, 128 * KIB).unwrap();
    let stats = pool.stats();
    assert_eq!((large.len_bytes(), stats.trims), (128 * KIB, 1));
    assert_eq!(pool.device().memory().unwrap().used_bytes, stats.reserved_bytes);
    check(&pool);
}

#[test]
fn a_device_without_room_for_a_whole_segment_is_asked_for_less_before_anything_waits() {
    let null = null_of(40 * KIB);
    let (pool, stream) = pool_on(&null, small_segments());
    let held: Vec<_> = (0..8).map(|_| pool.allocate(&stream, 4 * KIB).unwrap()).collect();
    null.pause();
    stream.copy(&held[0], &held[1]).unwrap();
    let other = pool.device().create_stream().unwrap();
    drop(held);
    let memory = pool.allocate(&other, 3 * KIB).unwrap();
    assert_eq!((memory.buffer().len_bytes(), pool.stats().waits), (3 * KIB, 0));
    null.resume();
}

#[test]
fn out_of_memory_lets_small_requests_into_large_segments() {
    let null = null_of(256 * KIB);
    let (pool, stream) = pool_on(&null, small_segments());
    let first = pool.allocate(&stream, 100 * KIB).unwrap();
    let second = pool.allocate(&stream, 128 * KIB).unwrap();
    let _rest = pool.allocate(&stream, 28 * KIB).unwrap();
    drop(first);
    let part = pool.allocate(&stream, 60 * KIB).unwrap();
    let small = pool.allocate(&stream, KIB).unwrap();
    assert_eq!(small.buffer().id(), part.buffer().id());
    drop(second);
    check(&pool);
}

#[test]
fn out_of_memory_waits_for_work_of_other_streams() {
    let null = null_of(64 * KIB);
    let (pool, a) = pool_on(&null, small_segments());
    let b = pool.device().create_stream().unwrap();
    let halves = [pool.allocate(&a, 32 * KIB).unwrap(), pool.allocate(&a, 32 * KIB).unwrap()];
    null.pause();
    a.copy(&halves[0], &halves[1]).unwrap();
    drop(halves);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| pool.allocate(&b, 32 * KIB));
        while pool.stats().waits == 0 {
            std::thread::yield_now();
        }
        null.resume();
        assert_eq!(waiting.join().unwrap().unwrap().len_bytes(), 32 * KIB);
    });
    assert_eq!(pool.stats().trims, 0, "memory that work uses is worth keeping while it is waited for");
    check(&pool);
}

#[test]
fn waiting_ends_when_another_thread_frees_memory() {
    let null = null_of(64 * KIB);
    let (pool, a) = pool_on(&null, small_segments());
    let busy = pool.allocate(&a, 32 * KIB).unwrap();
    let b = pool.device().create_stream().unwrap();
    let live = pool.allocate(&b, 32 * KIB).unwrap();
    null.pause();
    a.fill(&busy, &[0]).unwrap();
    drop(busy);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| pool.allocate(&b, 32 * KIB).map(|allocation| place(&allocation)));
        while pool.stats().waits == 0 {
            std::thread::yield_now();
        }
        let freed = place(&live);
        drop(live);
        assert_eq!(waiting.join().unwrap().unwrap(), freed, "stream b may reuse its own at once");
    });
    null.resume();
}

#[test]
fn waiting_has_a_limit() {
    let null = null_of(64 * KIB);
    let wait_limit = Duration::from_millis(5);
    let (pool, a) = pool_on(&null, PoolConfig { wait_limit, ..small_segments() });
    let b = pool.device().create_stream().unwrap();
    let halves = [pool.allocate(&a, 32 * KIB).unwrap(), pool.allocate(&a, 32 * KIB).unwrap()];
    null.pause();
    a.copy(&halves[0], &halves[1]).unwrap();
    drop(halves);
    let error = pool.allocate(&b, 32 * KIB).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::OutOfMemory { .. }), "{error}");
    check(&pool);
    null.resume();
    assert!(pool.allocate(&b, 32 * KIB).is_ok());
}

#[test]
fn trim_returns_unused_segments_and_keeps_used_ones() {
    let null = null_of(1 << 20);
    let (pool, stream) = pool_on(&null, small_segments());
    let kept = pool.allocate(&stream, 256).unwrap();
    drop(pool.allocate(&stream, 200 * KIB).unwrap());
    assert_eq!(pool.trim(), 200 * KIB);
    assert_eq!(pool.trim(), 0);
    assert_eq!(pool.device().memory().unwrap().used_bytes, kept.buffer().len_bytes());
    assert_eq!(pool.stats().trims, 1);
    drop(kept);
    assert_eq!(pool.trim(), 16 * KIB);
    assert_eq!(pool.device().memory().unwrap().used_bytes, 0);
    assert_eq!(pool.stats().reserved_bytes, 0);
}

#[test]
fn trimmed_memory_stays_with_enqueued_work_until_it_is_done() {
    let null = null_of(1 << 20);
    let (pool, a) = pool_on(&null, small_segments());
    let b = pool.device().create_stream().unwrap();
    let memory = pool.allocate(&a, 256).unwrap();
    null.pause();
    b.fill(&memory, &[1]).unwrap();
    memory.record_use(&b);
    drop(memory);
    assert_eq!(pool.trim(), 16 * KIB);
    assert_eq!(pool.stats().pending_bytes, 0);
    check(&pool);
    assert_eq!(pool.device().memory().unwrap().used_bytes, 16 * KIB);
    null.resume();
    assert_eq!(pool.device().memory().unwrap().used_bytes, 0);
}

#[test]
fn peaks_start_again_from_the_present() {
    let null = null_of(1 << 20);
    let (pool, stream) = pool_on(&null, small_segments());
    let kept = pool.allocate(&stream, 256).unwrap();
    drop(pool.allocate(&stream, 64 * KIB).unwrap());
    let stats = pool.stats();
    assert_eq!((stats.peak_in_use_bytes, stats.peak_reserved_bytes), (64 * KIB + 256, 80 * KIB));
    pool.trim();
    pool.reset_peak();
    let stats = pool.stats();
    assert_eq!((stats.peak_in_use_bytes, stats.peak_reserved_bytes), (256, 16 * KIB));
    drop(kept);
}

#[test]
fn allocations_outlive_the_pools_handles() {
    let null = null_of(1 << 20);
    let (pool, stream) = pool_on(&null, small_segments());
    let allocation = pool.allocate(&stream, 256).unwrap();
    drop(pool);
    let device = null.device();
    assert_eq!(device.memory().unwrap().used_bytes, 16 * KIB);
    stream.fill(&allocation, &[0]).unwrap();
    drop(allocation);
    assert_eq!(
        device.memory().unwrap(),
        crate::MemoryInfo { used_bytes: 0, free_bytes: 1 << 20, total_bytes: 1 << 20, buffers: 0 }
    );
}

#[test]
fn streams_at_rest_are_let_go() {
    let null = null_of(1 << 20);
    let (pool, _) = pool_on(&null, small_segments());
    for _ in 0..1000 {
        let stream = pool.device().create_stream().unwrap();
        let memory = pool.allocate(&stream, 16 * KIB).unwrap();
        stream.fill(&memory, &[0]).unwrap();
    }
    assert!(pool.stats().segments_created <= 2, "{:?}", pool.stats());
    assert!(pool.0.arena().survey().lanes.len() <= 2);
    pool.trim();
    assert!(pool.0.arena().survey().lanes.is_empty());
}

#[test]
fn foreign_streams_are_refused() {
    let backend = NullBackend::new(NullConfig { devices: 2, ..NullConfig::default() });
    let (pool, _) = pool_on(&backend.open_null(0).unwrap(), PoolConfig::default());
    let foreign = backend.open_null(1).unwrap().device().create_stream().unwrap();
    for len in [0, 1] {
        let error = pool.allocate(&foreign, len).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::InvalidArgument);
        assert!(error.message().contains("null:1"), "{error}");
    }
}

#[test]
fn isolated_allocations_have_buffers_of_their_own_and_exact_size() {
    let null = null_of(1 << 20);
    let (pool, a) = pool_on(&null, PoolConfig { isolate: true, ..small_segments() });
    let b = pool.device().create_stream().unwrap();
    let first = pool.allocate(&a, 7).unwrap();
    let second = pool.allocate(&a, 9).unwrap();
    assert_eq!((first.buffer().len_bytes(), second.buffer().len_bytes()), (7, 9));
    assert_eq!(pool.stats().reserved_bytes, 16);
    null.pause();
    b.fill(&first, &[1]).unwrap();
    first.record_use(&b);
    drop(first);
    check(&pool);
    assert_eq!(pool.stats().reserved_bytes, 9);
    assert_eq!(pool.device().memory().unwrap().used_bytes, 16, "enqueued work holds it");
    null.resume();
    drop(second);
    assert_eq!(pool.device().memory().unwrap().used_bytes, 0);
    check(&pool);
}

#[test]
fn dropping_on_a_lost_device_gives_everything_back() {
    let null = null_of(1 << 20);
    let (pool, a) = pool_on(&null, small_segments());
    let b = pool.device().create_stream().unwrap();
    let first = pool.allocate(&a, 1000).unwrap();
    let second = pool.allocate(&a, 1000).unwrap();
    first.record_use(&b);
    second.record_use(&b);
    null.pause();
    a.copy(&first, &second).unwrap();
    drop(first);
    null.lose("unplugged");
    drop(second);
    let error = pool.allocate(&b, 100 * KIB).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::DeviceLost);
    check(&pool);
    assert_eq!(pool.stats().pending_bytes, 0);
    assert_eq!(pool.trim(), 16 * KIB);
    assert_eq!(pool.stats().reserved_bytes, 0);
}

/// Calls back into the program in the middle of an allocation, as another thread might.
struct Interrupting {
    inner: Device,
    interrupt: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl crate::driver::Device for Interrupting {
    fn info(&self) -> &crate::DeviceInfo {
        self.inner.info()
    }

    fn memory(&self) -> Result<crate::MemoryInfo> {
        self.inner.memory()
    }

    fn health(&self) -> Health {
        self.inner.health()
    }

    fn allocate(&self, len_bytes: u64, kind: MemoryKind) -> Result<Buffer> {
        let interrupt = self.interrupt.lock().unwrap().take();
        if let Some(interrupt) = interrupt {
            interrupt();
        }
        self.inner.allocate(len_bytes, kind)
    }

    fn create_stream(&self) -> Result<Box<dyn crate::driver::Stream>> {
        self.inner.driver().create_stream()
    }

    fn load(&self, source: &crate::KernelSource) -> Result<crate::Kernel> {
        self.inner.load(source)
    }
}

#[test]
fn the_pool_can_be_used_during_a_driver_call_and_keeps_its_limit() {
    let null = null_of(1 << 20);
    let driver = Arc::new(Interrupting { inner: null.device(), interrupt: Mutex::default() });
    let device = Device::new(driver.clone());
    let stream = device.create_stream().unwrap();
    let config = PoolConfig { limit_bytes: Some(20 * KIB), ..small_segments() };
    let pool = Pool::new(device, MemoryKind::Device, config);
    let answers = Arc::new(Mutex::new(Vec::new()));
    let interrupt = {
        let (pool, stream, answers) = (pool.clone(), stream.clone(), answers.clone());
        move || {
            let answer = |len| pool.allocate(&stream, len).map(|memory| memory.len_bytes()).ok();
            answers.lock().unwrap().extend([answer(4 * KIB), answer(5 * KIB)]);
        }
    };
    *driver.interrupt.lock().unwrap() = Some(Box::new(interrupt));
    // The 16 KiB are claimed before the driver is asked, so 4 KiB fit beside them, and no more.
    let memory = pool.allocate(&stream, 16 * KIB).unwrap();
    assert_eq!(*answers.lock().unwrap(), [Some(4 * KIB), None]);
    assert!(pool.stats().reserved_bytes <= 20 * KIB);
    drop(memory);
    check(&pool);
}

/// An allocation that is dropped by the device's own `Drop` path must not find the pool locked.
#[test]
fn allocations_may_be_dropped_inside_the_drop_of_a_buffer() {
    struct Nested(#[expect(dead_code, reason = "held, not read")] Option<Allocation>);
    let null = null_of(1 << 20);
    let (pool, stream) = pool_on(&null, small_segments());
    let inner = pool.allocate(&stream, 256).unwrap();
    let nested = Buffer::new(
        pool.device().id().clone(),
        MemoryKind::Device,
        64 * KIB,
        None,
        Box::new(Nested(Some(inner))),
    );
    let grant = pool.0.arena().add_segment(&nested, &stream, exactly(64 * KIB));
    drop(nested);
    let garbage = pool.0.arena().put_back(grant.chunk, Vec::new());
    drop((grant, garbage));
    assert_eq!(pool.trim(), 64 * KIB);
    assert_eq!(pool.stats().in_use_bytes, 0);
    check(&pool);
}
