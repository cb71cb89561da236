//! The pool over the device's memory: reuse in the order of streams, and books that add up.

use super::{Tests, in_threads};
use crate::context::{Context, PATIENCE, download, eventually, same_bytes};
use crate::outcome::{Outcome, Stop, unsupported};
use halite_hal::{Allocation, ErrorKind, MemoryKind, Pool, PoolConfig, Stream};
use std::time::Duration;

/// Segments that leave room on the smallest devices.
fn config() -> PoolConfig {
    PoolConfig { segment_bytes: 1 << 20, initial_segment_bytes: 256 << 10, ..PoolConfig::default() }
}

fn pool(context: &Context) -> Pool {
    Pool::new(context.device().clone(), MemoryKind::Device, config())
}

/// A pool whose allocations share segments, unless a layer wants each alone.
fn sharing(context: &Context) -> Result<Pool, Stop> {
    if context.device().driver().isolates_allocations() {
        return Err(unsupported("a layer around the device wants each allocation alone"));
    }
    Ok(pool(context))
}

fn pool_of(context: &Context, limit_bytes: u64) -> Pool {
    let config = PoolConfig {
        limit_bytes: Some(limit_bytes),
        limit_name: Some("the test's limit".into()),
        wait_limit: Duration::from_secs(5),
        ..config()
    };
    Pool::new(context.device().clone(), MemoryKind::Device, config)
}

/// An allocation that will hold one value.
fn filled(pool: &Pool, stream: &Stream, len: u64, value: u8) -> Result<Allocation, Stop> {
    let allocation = pool.allocate(stream, len)?;
    stream.fill(&allocation, &[value])?;
    Ok(allocation)
}

fn has(stream: &Stream, allocation: &Allocation, value: u8) -> Outcome {
    same_bytes(&download(stream, allocation)?, &vec![value; allocation.len_bytes() as usize], "an allocation")
}

pub(super) fn tests(tests: &mut Tests) {
    reuse(tests);
    statistics(tests);
    shapes(tests);
    running_out(tests);
}

fn reuse(tests: &mut Tests) {
    tests.add(
        "freed-memory-is-reused",
        "memory that a stream has freed serves it again, without the device",
        |context| {
            let (pool, stream) = (sharing(context)?, context.stream()?);
            for value in 0..100u8 {
                let allocation = filled(&pool, &stream, 10_000, value)?;
                let read = stream.read(&allocation)?;
                drop(allocation);
                same_bytes(&read.wait()?, &[value; 10_000], "the bytes")?;
            }
            let stats = pool.stats();
            ensure_eq!((stats.allocations, stats.segments_created), (100, 1), "allocations and segments");
            ensure!(stats.reuses >= 99, "{} of 100 allocations needed nothing of the device", stats.reuses);
            Ok(())
        },
    );
    tests.add(
        "reuse-comes-behind-the-work",
        "memory is reused while its work is under way, and both are right",
        |context| {
            let (pool, stream) = (pool(context), context.stream()?);
            context.busy(&stream, Duration::from_millis(5))?;
            let mut reads = Vec::new();
            for value in 0..50u8 {
                let allocation = filled(&pool, &stream, 5000, value)?;
                reads.push((value, stream.read(&allocation)?));
            }
            for (value, read) in reads {
                same_bytes(&read.wait()?, &[value; 5000], "the bytes")?;
            }
            Ok(())
        },
    );
    tests.add(
        "another-stream-does-not-get-it-early",
        "memory in use on one stream does not serve another",
        |context| {
            let (pool, [first, second]) = (pool(context), context.streams()?);
            for round in 0..20u8 {
                context.busy(&first, Duration::from_millis(1))?;
                let allocation = filled(&pool, &first, 100_000, round)?;
                let read = first.read(&allocation)?;
                drop(allocation);
                let other = filled(&pool, &second, 100_000, 255)?;
                same_bytes(&read.wait()?, &[round; 100_000], "the first stream's bytes")?;
                has(&second, &other, 255)?;
            }
            Ok(())
        },
    );
    tests.add(
        "other-uses-are-waited-for",
        "memory that another stream uses is reused when that is over",
        |context| {
            let (pool, [first, second]) = (pool(context), context.streams()?);
            for round in 0..20u8 {
                let allocation = filled(&pool, &first, 50_000, round)?;
                super::order::after(&second, &first)?;
                context.busy(&second, Duration::from_millis(1))?;
                let read = second.read(&allocation)?;
                allocation.record_use(&second);
                drop(allocation);
                let next = filled(&pool, &first, 50_000, 255)?;
                same_bytes(&read.wait()?, &[round; 50_000], "what the other stream read")?;
                has(&first, &next, 255)?;
            }
            Ok(())
        },
    );
    tests.add(
        "memory-at-rest-is-shared",
        "when a stream is at rest, its freed memory serves others",
        |context| {
            let (pool, [first, second]) = (pool_of(context, 600_000), context.streams()?);
            let allocation = filled(&pool, &first, 400_000, 1)?;
            drop(allocation);
            first.synchronize()?;
            // There is no room for this beside the other.
            let other = filled(&pool, &second, 400_000, 2)?;
            has(&second, &other, 2)
        },
    );
    tests.add(
        "isolated-allocations-are-alone",
        "with isolation, every allocation has memory of its own",
        |context| {
            let config = PoolConfig { isolate: true, ..config() };
            let pool = Pool::new(context.device().clone(), MemoryKind::Device, config);
            let stream = context.stream()?;
            let (first, second) = (filled(&pool, &stream, 100, 1)?, filled(&pool, &stream, 100, 2)?);
            ensure!(!first.buffer().is_same(second.buffer()), "two allocations share a buffer");
            ensure_eq!(
                (first.offset(), first.buffer().len_bytes()),
                (0, 100),
                "offset and length of the memory"
            );
            has(&stream, &first, 1)?;
            has(&stream, &second, 2)
        },
    );
}

fn statistics(tests: &mut Tests) {
    tests.add("nothing-is-taken-at-first", "a pool that was never asked holds nothing", |context| {
        let stats = pool(context).stats();
        ensure_eq!((stats.reserved_bytes, stats.in_use_bytes, stats.allocations), (0, 0, 0), "the books");
        Ok(())
    });
    tests.add("live-memory-is-counted", "live allocations are counted while they live", |context| {
        let (pool, stream) = (pool(context), context.stream()?);
        let allocations = (0..10).map(|_| pool.allocate(&stream, 1000)).collect::<Result<Vec<_>, _>>()?;
        let during = pool.stats();
        ensure_eq!(during.live, 10, "live allocations");
        ensure!(during.in_use_bytes >= 10_000, "{} bytes are in use", during.in_use_bytes);
        ensure!(during.reserved_bytes >= during.in_use_bytes, "more is in use than was taken: {during:?}");
        drop(allocations);
        let after = pool.stats();
        ensure_eq!((after.live, after.in_use_bytes), (0, 0), "live allocations and their bytes afterwards");
        Ok(())
    });
    tests.add("peaks-stay-until-reset", "peaks tell the most since they were reset", |context| {
        let (pool, stream) = (pool(context), context.stream()?);
        drop(pool.allocate(&stream, 100_000)?);
        ensure!(pool.stats().peak_in_use_bytes >= 100_000, "the peak is {}", pool.stats().peak_in_use_bytes);
        pool.reset_peak();
        ensure_eq!(pool.stats().peak_in_use_bytes, 0, "the peak after its reset");
        drop(pool.allocate(&stream, 1000)?);
        let peak = pool.stats().peak_in_use_bytes;
        ensure!((1000..100_000).contains(&peak), "the new peak is {peak}");
        Ok(())
    });
    tests.add(
        "trim-gives-back",
        "a trim returns what no allocation uses, and the device has it again",
        |context| {
            let (pool, stream) = (pool(context), context.stream()?);
            let before = context.device().memory()?.used_bytes;
            drop(filled(&pool, &stream, 200_000, 1)?);
            stream.synchronize()?;
            let reserved = pool.stats().reserved_bytes;
            ensure_eq!(pool.trim(), reserved, "the bytes that the trim gives back");
            ensure_eq!(pool.stats().reserved_bytes, 0, "the bytes taken afterwards");
            eventually("the device has its memory again", || {
                Ok(context.device().memory()?.used_bytes <= before)
            })
        },
    );
    tests.add("trim-leaves-what-lives", "a trim leaves live allocations and their bytes", |context| {
        let (pool, stream) = (sharing(context)?, context.stream()?);
        let live = filled(&pool, &stream, 5000, 9)?;
        let large = filled(&pool, &stream, 900_000, 8)?;
        drop(large);
        ensure!(pool.trim() >= 900_000, "the large one was not given back");
        has(&stream, &live, 9)?;
        ensure_eq!(pool.stats().live, 1, "live allocations");
        Ok(())
    });
    tests.add(
        "everything-returns-at-the-end",
        "the device has all memory again when pool and allocations are gone",
        |context| {
            let before = context.device().memory()?.used_bytes;
            let stream = context.stream()?;
            let kept = {
                let pool = pool(context);
                drop(filled(&pool, &stream, 700_000, 1)?);
                filled(&pool, &stream, 1000, 2)?
            };
            has(&stream, &kept, 2)?;
            drop(kept);
            stream.synchronize()?;
            drop(stream);
            eventually("the device has its memory again", || {
                Ok(context.device().memory()?.used_bytes <= before)
            })
        },
    );
}

fn shapes(tests: &mut Tests) {
    tests.add("no-bytes", "allocations of no bytes are legal and count for nothing", |context| {
        let (pool, stream) = (pool(context), context.stream()?);
        let allocation = pool.allocate(&stream, 0)?;
        ensure_eq!((allocation.len_bytes(), pool.stats().live), (0, 0), "length and live allocations");
        Ok(stream.write(&allocation, Vec::new())?)
    });
    tests.add(
        "offsets-are-aligned",
        "allocations lie at the pool's alignment, which is the device's at least",
        |context| {
            let (pool, stream) = (pool(context), context.stream()?);
            let alignment = pool.config().alignment_bytes;
            let own = context.info().limits.offset_alignment_bytes;
            ensure!(
                alignment.is_power_of_two() && alignment >= own,
                "{alignment}, where the device wants {own}"
            );
            let mut live = Vec::new();
            for len in [1, 3, 255, 257, 1000, 4097] {
                let allocation = pool.allocate(&stream, len)?;
                ensure!(
                    allocation.offset() % alignment == 0,
                    "offset {} of {len} bytes",
                    allocation.offset()
                );
                ensure_eq!(allocation.len_bytes(), len, "the length");
                live.push(allocation);
            }
            Ok(())
        },
    );
    tests.add("neighbours-do-not-overlap", "allocations of every size live side by side", |context| {
        let (pool, stream) = (pool(context), context.stream()?);
        let mut random = context.random();
        let mut live: Vec<(Allocation, u8)> = Vec::new();
        for round in 0..400usize {
            if live.len() > 40 || (round % 3 == 2 && !live.is_empty()) {
                let (allocation, value) = live.swap_remove(random.index(live.len()));
                has(&stream, &allocation, value)?;
            } else {
                let len = 1 + random.below(20_000);
                live.push((filled(&pool, &stream, len, round as u8)?, round as u8));
            }
        }
        live.iter().try_for_each(|(allocation, value)| has(&stream, allocation, *value))
    });
    tests.add("free-neighbours-are-joined", "what was freed in parts serves a large allocation", |context| {
        let (pool, stream) = (pool_of(context, 300_000), context.stream()?);
        let parts = (0..8).map(|_| pool.allocate(&stream, 25_000)).collect::<Result<Vec<_>, _>>()?;
        drop(parts);
        let whole = filled(&pool, &stream, 200_000, 4)?;
        has(&stream, &whole, 4)
    });
    tests.add("many-threads", "a pool serves many threads and streams at once", |context| {
        let pool = pool(context);
        in_threads(8, |index| {
            let stream = context.stream()?;
            let mut random = crate::Random::new(index as u64);
            let mut live: Vec<(Allocation, u8)> = Vec::new();
            for round in 0..60u8 {
                live.push((filled(&pool, &stream, 1 + random.below(9000), round)?, round));
                if live.len() > 6 {
                    let (allocation, value) = live.swap_remove(random.index(live.len()));
                    has(&stream, &allocation, value)?;
                }
            }
            Ok(())
        })?;
        ensure_eq!(pool.stats().live, 0, "live allocations");
        Ok(())
    });
}

fn running_out(tests: &mut Tests) {
    tests.add(
        "beyond-the-limit-is-too-large",
        "more than the pool may ever hold is too large, and the limit is named",
        |context| {
            let (pool, stream) = (pool_of(context, 100_000), context.stream()?);
            let error =
                ensure_kind!(pool.allocate(&stream, 100_001), ErrorKind::TooLarge { .. }, "one byte more");
            ensure!(error.message().contains("the test's limit"), "the message names no limit: {error}");
            Ok(())
        },
    );
    tests.add("a-full-pool-recovers", "a full pool is out of memory until something is dropped", |context| {
        let (pool, stream) = (pool_of(context, 256 << 10), context.stream()?);
        let first = filled(&pool, &stream, 150_000, 1)?;
        for _ in 0..3 {
            let result = pool.allocate(&stream, 150_000);
            ensure_kind!(result, ErrorKind::OutOfMemory { .. }, "a second one");
        }
        has(&stream, &first, 1)?;
        drop(first);
        let second = filled(&pool, &stream, 150_000, 2)?;
        has(&stream, &second, 2)
    });
    tests.add(
        "a-full-pool-waits-for-work",
        "memory that another stream still uses is waited for",
        |context| {
            let (pool, [first, second]) = (pool_of(context, 256 << 10), context.streams()?);
            for round in 0..5u8 {
                context.busy(&first, Duration::from_millis(5))?;
                drop(filled(&pool, &first, 150_000, round)?);
                let other = filled(&pool, &second, 150_000, round)?;
                has(&second, &other, round)?;
                drop(other);
            }
            first.synchronize_timeout(PATIENCE)?;
            Ok(())
        },
    );
    tests.add(
        "streams-of-other-openings-are-refused",
        "a pool serves streams of its own device alone",
        |context| {
            let other = context.open()?;
            if other.id().is_same_opening(context.device().id()) {
                return Err(unsupported("the device is opened once, and its handles share everything"));
            }
            let result = pool(context).allocate(&other.create_stream()?, 8);
            ensure_kind!(result, ErrorKind::InvalidArgument, "an allocation for a stream of another opening");
            Ok(())
        },
    );
}
