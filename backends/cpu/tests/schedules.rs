//! The scheduler and the pool under schedules that a checker chooses: each test runs many times, and at each step of a
//! lock, an atomic or a thread the checker decides who goes on. Run by `tools/schedules.sh`.
//!
//! Every order of steps that was found is sequentially consistent: weaker memory orderings are not explored.

#![cfg(shuttle)]

mod common;

use common::*;
use halite_hal::{Access, Buffer, Device, ErrorKind, MemoryKind, Pool, PoolConfig, Stream};
use shuttle::sync::{Condvar, Mutex};
use shuttle::thread;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Runs `program` under schedules of two kinds: any order, and few switches at well-chosen places (probabilistic
/// concurrency testing: Burckhardt et al., ASPLOS 2010).
fn explore(program: impl Fn() + Send + Sync + 'static) {
    let rounds = std::env::var("HALITE_SCHEDULES").ok().and_then(|text| text.parse().ok()).unwrap_or(300);
    let program = Arc::new(program);
    let again = program.clone();
    shuttle::check_random(move || program(), rounds);
    shuttle::check_pct(move || again(), rounds, 3);
}

/// Adds to every `u32`, one workgroup per element.
fn affine(stream: &Stream, buffer: &Buffer, factor: u32, amount: u32) {
    let kernel = native(stream.device(), vec![buffer_arg(Access::ReadWrite)], move |workgroup| {
        for value in workgroup.write_chunk::<u32>(0, 1)? {
            *value = *value * factor + amount;
        }
        Ok(())
    });
    let count = (buffer.len_bytes() / 4) as u32;
    stream.launch(&kernel, [count, 1, 1], &[buffer.all().into()]).unwrap();
}

fn values(stream: &Stream, buffer: &Buffer) -> Vec<u32> {
    let mut bytes = vec![0; buffer.len_bytes() as usize];
    stream.read_blocking(&buffer.all(), &mut bytes).unwrap();
    bytes.chunks_exact(4).map(|value| u32::from_le_bytes(value.try_into().unwrap())).collect()
}

fn zeroed(device: &Device, count: usize) -> Buffer {
    let buffer = device.allocate(4 * count as u64, MemoryKind::Device).unwrap();
    device.create_stream().unwrap().write_blocking(&buffer.all(), &vec![0; 4 * count]).unwrap();
    buffer
}

#[test]
fn streams_that_wait_for_each_other_keep_their_order() {
    explore(|| {
        let device = device(2);
        let [a, b] = [(); 2].map(|()| device.create_stream().unwrap());
        let buffer = zeroed(&device, 3);
        affine(&a, &buffer, 1, 1);
        b.wait(&a.record().unwrap()).unwrap();
        affine(&b, &buffer, 3, 0);
        a.wait(&b.record().unwrap()).unwrap();
        affine(&a, &buffer, 1, 2);
        assert_eq!(values(&a, &buffer), [5; 3]);
    });
}

#[test]
fn a_launch_runs_each_workgroup_once_whoever_helps() {
    explore(|| {
        let device = device(3);
        let stream = device.create_stream().unwrap();
        let buffer = zeroed(&device, 7);
        affine(&stream, &buffer, 2, 1);
        affine(&stream, &buffer, 2, 1);
        assert_eq!(values(&stream, &buffer), [3; 7]);
    });
}

#[test]
fn threads_that_share_a_stream_lose_nothing() {
    explore(|| {
        let device = device(2);
        let stream = device.create_stream().unwrap();
        let buffer = zeroed(&device, 2);
        let threads = [(); 2].map(|()| {
            let (stream, buffer) = (stream.clone(), buffer.clone());
            thread::spawn(move || {
                affine(&stream, &buffer, 1, 1);
                stream.synchronize().unwrap();
                affine(&stream, &buffer, 1, 1);
                stream.record().unwrap().wait(None).unwrap();
            })
        });
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(values(&stream, &buffer), [4; 2]);
    });
}

#[test]
fn work_ends_and_threads_go_when_every_handle_is_dropped_early() {
    explore(|| {
        let device = device(2);
        let done = Arc::new(AtomicU32::new(0));
        let seen = done.clone();
        let kernel = native(&device, vec![], move |_| {
            seen.fetch_add(1, Ordering::SeqCst);
            Ok(())
        });
        let [a, b] = [(); 2].map(|()| device.create_stream().unwrap());
        a.launch(&kernel, [2, 1, 1], &[]).unwrap();
        b.wait(&a.record().unwrap()).unwrap();
        b.launch(&kernel, [1, 1, 1], &[]).unwrap();
        let last = b.record().unwrap();
        drop((a, b, kernel, device));
        last.wait(None).unwrap();
        assert_eq!(done.load(Ordering::SeqCst), 3);
    });
}

/// Waiting host threads run streams themselves, so here the host waits for the kernel alone.
#[test]
fn a_worker_comes_for_work_that_nobody_waits_for() {
    explore(|| {
        let device = device(1);
        let stream = device.create_stream().unwrap();
        let reached = Arc::new((Mutex::new(0), Condvar::new()));
        let seen = reached.clone();
        let kernel = native(&device, vec![], move |_| {
            *seen.0.lock().unwrap() += 1;
            seen.1.notify_all();
            Ok(())
        });
        for round in 1..=3 {
            stream.launch(&kernel, [1, 1, 1], &[]).unwrap();
            let mut count = reached.0.lock().unwrap();
            while *count < round {
                count = reached.1.wait(count).unwrap();
            }
        }
    });
}

#[test]
fn a_failure_reaches_everyone_who_waits_and_a_reset_ends_it() {
    explore(|| {
        let device = device(2);
        let [a, b] = [(); 2].map(|()| device.create_stream().unwrap());
        let bad = failing(&device, "on purpose");
        let buffer = zeroed(&device, 1);
        a.launch(&bad, [1, 1, 1], &[]).unwrap();
        let event = a.record().unwrap();
        let waiting = {
            let event = event.clone();
            thread::spawn(move || event.wait(None).unwrap_err())
        };
        b.wait(&event).unwrap();
        let failure = b.synchronize().unwrap_err();
        assert_eq!(failure.kind(), &ErrorKind::Fault, "{failure}");
        assert_eq!(waiting.join().unwrap().kind(), &ErrorKind::Fault);
        for stream in [&a, &b] {
            stream.reset().unwrap();
            affine(stream, &buffer, 1, 1);
            stream.synchronize().unwrap();
        }
        assert_eq!(values(&a, &buffer), [2]);
    });
}

#[test]
fn a_wait_with_a_limit_ends_and_leaves_the_work_alone() {
    explore(|| {
        let device = device(1);
        let [a, b] = [(); 2].map(|()| device.create_stream().unwrap());
        let buffer = zeroed(&device, 2);
        affine(&a, &buffer, 1, 1);
        b.wait(&a.record().unwrap()).unwrap();
        affine(&b, &buffer, 1, 1);
        match b.synchronize_timeout(Duration::from_micros(1)) {
            Ok(()) => {}
            Err(error) => assert!(matches!(error.kind(), ErrorKind::Timeout { .. }), "{error}"),
        }
        b.synchronize().unwrap();
        assert_eq!(values(&b, &buffer), [2; 2]);
    });
}

/// Each thread finds in its memory what it wrote, though all of it comes from one small pool.
#[test]
fn pooled_memory_is_nobody_elses_while_work_uses_it() {
    explore(|| {
        let device = device(2);
        let config = PoolConfig {
            limit_bytes: Some(4096),
            segment_bytes: 1024,
            initial_segment_bytes: 1024,
            ..PoolConfig::default()
        };
        let pool = Pool::new(device.clone(), MemoryKind::Device, config);
        let threads = [1_u32, 2].map(|own| {
            let (pool, device) = (pool.clone(), device.clone());
            thread::spawn(move || {
                let stream = device.create_stream().unwrap();
                for round in 0..3 {
                    let memory = pool.allocate(&stream, 256).unwrap();
                    let value = own * 10 + round;
                    stream.fill(&memory.as_slice(), &value.to_le_bytes()).unwrap();
                    let mut bytes = [0; 256];
                    stream.read_blocking(&memory.as_slice(), &mut bytes).unwrap();
                    assert!(bytes.chunks(4).all(|bytes| bytes == value.to_le_bytes()), "{value}: {bytes:?}");
                }
            })
        });
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(pool.stats().in_use_bytes, 0);
    });
}
