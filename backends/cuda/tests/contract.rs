//! The layer's contract: memory, copies, order, time, failure and the ends of things.
//!
//! Each test runs on the fake driver (see `fake/fake.h`), and on a real GPU where there is one.

mod common;

use common::*;
use halite_hal::driver::Backend as _;
use halite_hal::{Device, ErrorKind, Event, Health, MemoryKind, Scalar, as_bytes, from_bytes};
use std::thread;
use std::time::{Duration, Instant};

/// Short enough for a test, long enough that a busy machine does not finish blocked work by chance.
const SHORT: Duration = Duration::from_millis(10);

#[test]
fn copies_at_odd_offsets_move_exactly_their_bytes() {
    each_device(|device| {
        let stream = device.create_stream().unwrap();
        let source: Vec<u8> = (0..97).collect();
        let buffer = upload(device, &stream, &[0xEE; 131]);
        stream.write(&buffer.slice(3, 97).unwrap(), &source[..]).unwrap();
        let other = upload(device, &stream, &[0xDD; 61]);
        stream.copy(&other.slice(1, 59).unwrap(), &buffer.slice(7, 59).unwrap()).unwrap();
        stream.fill(&other.slice(60, 1).unwrap(), &[5]).unwrap();
        stream.fill(&buffer.slice(104, 24).unwrap(), &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
        let mut got = vec![0; 61];
        stream.read_blocking(&other, &mut got).unwrap();
        assert_eq!((got[0], &got[1..60], got[60]), (0xDD, &source[4..63], 5));
        let whole = download(&stream, &buffer);
        assert_eq!((&whole[..3], &whole[3..100]), (&[0xEE; 3][..], &source[..]));
        assert_eq!((&whole[100..104], &whole[104..112]), (&[0xEE; 4][..], &[1, 2, 3, 4, 5, 6, 7, 8][..]));
        assert_eq!((whole[127], whole[128]), (8, 0xEE));
    });
}

#[test]
fn zero_bytes_are_legal_everywhere() {
    each_device(|device| {
        let stream = device.create_stream().unwrap();
        for kind in [MemoryKind::Device, MemoryKind::HostVisible, MemoryKind::Pinned] {
            let empty = device.allocate(0, kind).unwrap().all();
            stream.write(&empty, Vec::new()).unwrap();
            stream.write_blocking(&empty, &[]).unwrap();
            stream.copy(&empty, &empty.slice(0, 0).unwrap()).unwrap();
            stream.fill(&empty, &[1]).unwrap();
            stream.read_blocking(&empty, &mut []).unwrap();
            assert!(download(&stream, &empty).is_empty());
        }
        let twice = load(device, "twice", vec![F32_IN, F32_OUT, U32]).unwrap();
        let empty = device.allocate(0, MemoryKind::Device).unwrap().all();
        stream
            .launch(&twice, [1, 1, 1], &[empty.clone().into(), empty.into(), Scalar::U32(0).into()])
            .unwrap();
        stream.synchronize().unwrap();
    });
}

#[test]
fn fills_repeat_patterns_of_every_length() {
    each_device(|device| {
        let stream = device.create_stream().unwrap();
        let buffer = upload(device, &stream, &[0; 48]);
        let equal_halves = &[1, 2, 3, 4, 1, 2, 3, 4][..];
        for pattern in [&[1u8][..], &[1, 2], &[1, 2, 3, 4], &[1, 2, 3, 4, 5, 6, 7, 8], equal_halves] {
            let (before, len) = (pattern.len(), 48 - 2 * pattern.len());
            stream.fill(&buffer, &[0xAA]).unwrap();
            stream.fill(&buffer.slice(before as u64, len as u64).unwrap(), pattern).unwrap();
            let got = download(&stream, &buffer);
            let expected: Vec<u8> = pattern.iter().copied().cycle().take(len).collect();
            assert_eq!(&got[before..before + len], expected);
            assert!(got[..before].iter().chain(&got[before + len..]).all(|byte| *byte == 0xAA));
        }
    });
}

#[test]
fn memory_never_written_reads_as_zeros() {
    each_device(|device| {
        let stream = device.create_stream().unwrap();
        for len in [1, 1000, 200_003] {
            // A predecessor's bytes must not show through.
            let before = device.allocate(len, MemoryKind::Device).unwrap();
            stream.fill(&before.all(), &[0xff]).unwrap();
            stream.synchronize().unwrap();
            drop(before);
            let buffer = device.allocate(len, MemoryKind::Device).unwrap();
            assert!(buffer.host_pointer().is_none());
            assert!(download(&stream, &buffer.all()).iter().all(|byte| *byte == 0));
        }
    });
}

#[test]
fn host_memory_is_copied_both_ways_and_addressed_by_both_sides() {
    each_device(|device| {
        let stream = device.create_stream().unwrap();
        let twice = load(device, "twice", vec![F32_IN, F32_OUT, U32]).unwrap();
        for kind in [MemoryKind::HostVisible, MemoryKind::Pinned] {
            let host = device.allocate(4096, kind).unwrap();
            let pointer = host.host_pointer().unwrap().cast::<f32>();
            // SAFETY: 1024 numbers of host memory, which no enqueued work uses.
            let values = unsafe { std::slice::from_raw_parts_mut(pointer.as_ptr(), 1024) };
            (0u16..).zip(values.iter_mut()).for_each(|(index, value)| *value = index.into());
            let on_device = device.allocate(4096, MemoryKind::Device).unwrap().all();
            stream.copy(&on_device, &host.all()).unwrap();
            let args = [on_device.clone().into(), host.all().into(), Scalar::U32(1000).into()];
            stream.launch(&twice, [32, 1, 1], &args).unwrap();
            stream.write(&host.all().slice(4000, 8).unwrap(), as_bytes(&[-1f32, -2.])).unwrap();
            stream.fill(&host.all().slice(4092, 4).unwrap(), &7f32.to_le_bytes()).unwrap();
            stream.synchronize().unwrap();
            assert_eq!((values[0], values[999], values[1002], values[1023]), (0., 1998., 1002., 7.));
            assert_eq!(values[1000..1002], [-1., -2.]);
            let mut bytes = vec![0; 4096];
            stream.read_blocking(&host.all(), &mut bytes).unwrap();
            assert_eq!(bytes, as_bytes(values));
            stream.copy(&on_device, &host.all()).unwrap();
            assert_eq!(download(&stream, &on_device), bytes);
        }
    });
}

#[test]
fn memory_is_counted_and_given_back() {
    each_device(|device| {
        let before = device.memory().unwrap();
        let buffer = device.allocate(1000, MemoryKind::Device).unwrap();
        let during = device.memory().unwrap();
        assert_eq!((during.used_bytes, during.buffers), (before.used_bytes + 1000, before.buffers + 1));
        assert!(during.free_bytes <= before.free_bytes && during.total_bytes == before.total_bytes);
        drop(buffer);
        let after = device.memory().unwrap();
        assert_eq!((after.used_bytes, after.buffers), (before.used_bytes, before.buffers));
    });
}

#[test]
fn enqueued_work_holds_its_buffers_and_lets_each_go_when_done() {
    each_device(|device| {
        let stream = device.create_stream().unwrap();
        let gates = Gates::new(device);
        let increment = increment(device);
        let gate = gates.close(&stream);
        let closed = device.memory().unwrap().used_bytes;
        let first = device.allocate(400, MemoryKind::Device).unwrap();
        stream.launch(&increment, [4, 1, 1], &[first.all().into(), Scalar::U32(100).into()]).unwrap();
        drop(first);
        let between = stream.record().unwrap();
        let second_gate = gates.close(&stream);
        let (second, third) = [(); 2].map(|()| device.allocate(400, MemoryKind::Device).unwrap()).into();
        stream.copy(&third.all(), &second.all()).unwrap();
        drop((second, third));
        assert_eq!(device.memory().unwrap().used_bytes, closed + 1200);
        gate.open();
        // The first launch's buffer goes although what follows is not done.
        wait_until("the first buffer is given back", || device.memory().unwrap().used_bytes <= closed + 800);
        assert!(between.is_done().unwrap());
        second_gate.open();
        stream.synchronize().unwrap();
        assert_eq!(device.memory().unwrap().used_bytes, closed);
    });
}

#[test]
fn finished_work_is_given_back_while_nobody_asks() {
    let Some(fake) = Fake::new(&[]) else { return };
    let device = fake.open();
    let stream = device.create_stream().unwrap();
    stream.fill(&device.allocate(100, MemoryKind::Device).unwrap().all(), &[1]).unwrap();
    wait_until("the buffer is freed", || fake.count("memory") == 0);
}

#[test]
fn a_full_device_says_what_was_asked_and_what_is_free() {
    let Some(fake) = Fake::new(&["MEMORY_BYTES=(1<<20)"]) else { return };
    let device = fake.open();
    let _taken = device.allocate(500 << 10, MemoryKind::Device).unwrap();
    let _more = device.allocate(500 << 10, MemoryKind::Device).unwrap();
    let error = device.allocate(100 << 10, MemoryKind::Device).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::OutOfMemory { requested: 100 << 10, free: 24 << 10 }, "{error}");
    assert!(
        error.is_retryable() && error.to_string().contains("CUDA_ERROR_OUT_OF_MEMORY, code 2"),
        "{error}"
    );
    device.allocate(24 << 10, MemoryKind::Device).unwrap();
    let error = device.allocate(2 << 20, MemoryKind::Device).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::TooLarge { .. }), "{error}");
}

#[test]
fn memory_of_work_in_flight_is_waited_for_when_the_device_is_full() {
    let Some(fake) = Fake::new(&["MEMORY_BYTES=(1<<20)"]) else { return };
    let device = fake.open();
    let stream = device.create_stream().unwrap();
    let gates = Gates::new(&device);
    let gate = gates.close(&stream);
    let opener = thread::spawn(move || {
        thread::sleep(SHORT);
        gate.open();
    });
    for _ in 0..4 {
        let half = device.allocate(600 << 10, MemoryKind::Device).unwrap();
        stream.fill(&half.all(), &[1]).unwrap();
    }
    opener.join().unwrap();
    stream.synchronize().unwrap();
}

#[test]
fn copies_of_any_length_are_whole_whichever_way_they_take() {
    // Around the sizes at which a copy takes another way: pinned blocks, what is read lazily, and what goes in parts.
    let lengths = [1, 4 << 10, (256 << 10) - 1, (256 << 10) + 1, (4 << 20) + 5, (64 << 20) + 4097];
    let test = |device: &Device| {
        let stream = device.create_stream().unwrap();
        for len in lengths {
            let bytes: Vec<u8> = (0..len as u32).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect();
            let buffer = device.allocate(len as u64, MemoryKind::Device).unwrap().all();
            stream.write(&buffer, bytes.clone()).unwrap();
            assert!(download(&stream, &buffer) == bytes, "{len} bytes, not blocking");
            stream.fill(&buffer, &[0]).unwrap();
            let mut source = bytes.clone();
            stream.write_blocking(&buffer, &source).unwrap();
            source.fill(0);
            let mut target = vec![0; len];
            stream.read_blocking(&buffer, &mut target).unwrap();
            assert!(target == bytes, "{len} bytes, blocking");
        }
    };
    if let Some(fake) = Fake::new(&["MEMORY_BYTES=(1u<<30)"]) {
        test(&fake.open());
    }
    if let Some(device) = real() {
        test(&device);
    }
}

#[test]
fn copies_do_without_blocks_when_all_are_in_use() {
    let Some(fake) = Fake::new(&["MEMORY_BYTES=(1u<<30)"]) else { return };
    let device = fake.open();
    let stream = device.create_stream().unwrap();
    let gates = Gates::new(&device);
    let buffer = device.allocate(48 << 20, MemoryKind::Device).unwrap().all();
    let gate = gates.close(&stream);
    let begin = Instant::now();
    for value in 0..8 {
        stream.write(&buffer, vec![value; 48 << 20]).unwrap();
    }
    let reads: Vec<_> = (0..2).map(|_| stream.read(&buffer).unwrap()).collect();
    assert!(begin.elapsed() < PATIENCE);
    let other = device.create_stream().unwrap();
    let small = upload(&device, &other, &[3; 100_000]);
    assert_eq!(download(&other, &small), [3; 100_000]);
    let mut bytes = vec![0; 100_000];
    other.read_blocking(&small, &mut bytes).unwrap();
    assert_eq!(bytes, [3; 100_000]);
    // Its own stream is where blocks come back, and there they do not before the gate opens; another's may not wait.
    other.write_blocking(&small, &[4; 100_000]).unwrap();
    assert_eq!(download(&other, &small), [4; 100_000]);
    // More than what goes through blocks at a time, and a tail.
    let len = (64 << 20) + 4097;
    let large = device.allocate(len as u64, MemoryKind::Device).unwrap().all();
    let bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
    other.fill(&large, &[0xEE]).unwrap();
    other.write_blocking(&large, &bytes).unwrap();
    assert!(download(&other, &large) == bytes, "a blocking write in parts");
    gate.open();
    for read in reads {
        assert!(read.wait().unwrap() == vec![7; 48 << 20]);
    }
    stream.write_blocking(&buffer, &vec![9; 48 << 20]).unwrap();
    assert_eq!(download(&stream, &buffer.slice(0, 1).unwrap()), [9]);
}

#[test]
fn a_kernel_runs_on_slices() {
    each_device(|device| {
        let stream = device.create_stream().unwrap();
        let twice = load(device, "twice", vec![F32_IN, F32_OUT, U32]).unwrap();
        let values: Vec<f32> = (0..1000u16).map(f32::from).collect();
        let x = upload(device, &stream, as_bytes(&values));
        let out = upload(device, &stream, as_bytes(&[-1f32; 1000]));
        let args =
            [x.slice(16, 3984).unwrap().into(), out.slice(32, 3968).unwrap().into(), Scalar::U32(991).into()];
        stream.launch(&twice, [31, 1, 1], &args).unwrap();
        let got = from_bytes::<f32>(&download(&stream, &out));
        assert_eq!((got[7], got[8], got[998], got[999]), (-1., 8., 1988., -1.));
        // Kernels may load 16 bytes at once.
        let args = [x.slice(4, 8).unwrap().into(), out.slice(0, 8).unwrap().into(), Scalar::U32(1).into()];
        let error = stream.launch(&twice, [1, 1, 1], &args).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::InvalidArgument);
        stream.launch(&twice, [0, 1, 1], &args.map(|arg| arg)).unwrap_err();
    });
}

#[test]
fn numbers_of_every_type_reach_the_kernel() {
    use halite_hal::{Access, ArgType, DType};
    each_device(|device| {
        let stream = device.create_stream().unwrap();
        let out = ArgType::Buffer { dtype: DType::F64, access: Access::Write };
        let types = [DType::I32, DType::U32, DType::I64, DType::U64, DType::F32, DType::F64];
        let args = [out].into_iter().chain(types.map(ArgType::Scalar)).collect();
        let kernel = device.load(&text(SOURCE, "scalars", "", [1, 1, 1], args)).unwrap();
        let buffer = device.allocate(48, MemoryKind::Device).unwrap().all();
        let scalars = [
            Scalar::I32(-7),
            Scalar::U32(u32::MAX),
            Scalar::I64(-(1 << 40)),
            Scalar::U64(1 << 63),
            Scalar::F32(0.25),
            Scalar::F64(-1e300),
        ];
        let args: Vec<_> = [buffer.clone().into()].into_iter().chain(scalars.map(Into::into)).collect();
        stream.launch(&kernel, [1, 1, 1], &args).unwrap();
        let got = from_bytes::<f64>(&download(&stream, &buffer));
        assert_eq!(got, [-7., f64::from(u32::MAX), -(2f64.powi(40)), 2f64.powi(63), 0.25, -1e300]);
    });
}

#[test]
fn commands_of_a_stream_run_in_order() {
    each_device(|device| {
        let stream = device.create_stream().unwrap();
        let gates = Gates::new(device);
        let increment = increment(device);
        let values: Vec<u32> = (0..1000).collect();
        let gate = gates.close(&stream);
        let a = upload_u32(device, &stream, &values);
        let b = upload_u32(device, &stream, &[0; 1000]);
        for _ in 0..100 {
            stream.launch(&increment, [32, 1, 1], &[a.clone().into(), Scalar::U32(1000).into()]).unwrap();
        }
        stream.copy(&b, &a).unwrap();
        stream.fill(&a.slice(0, 8).unwrap(), &7u32.to_ne_bytes()).unwrap();
        let early = stream.read(&b).unwrap();
        stream.fill(&b, &[9]).unwrap();
        gate.open();
        assert_eq!(from_bytes::<u32>(&early.wait().unwrap()), (100..1100).collect::<Vec<_>>());
        assert_eq!(download_u32(&stream, &b), vec![0x0909_0909; 1000]);
        assert_eq!(download_u32(&stream, &a)[..4], [7, 7, 102, 103]);
    });
}

#[test]
fn enqueueing_into_a_blocked_stream_returns_at_once() {
    each_device(|device| {
        let stream = device.create_stream().unwrap();
        let gates = Gates::new(device);
        let increment = increment(device);
        let buffer = upload_u32(device, &stream, &[0; 4]);
        let gate = gates.close(&stream);
        for _ in 0..500 {
            stream.launch(&increment, [1, 1, 1], &[buffer.clone().into(), Scalar::U32(4).into()]).unwrap();
        }
        let mut values = vec![3u8; 300_000];
        let other = device.allocate(300_000, MemoryKind::Device).unwrap().all();
        stream.write_blocking(&other, &values).unwrap();
        values.fill(4);
        let pending = stream.read(&buffer).unwrap();
        assert!(!pending.event().is_done().unwrap());
        gate.open();
        assert_eq!(from_bytes::<u32>(&pending.wait().unwrap()), [500; 4]);
        assert_eq!(download(&stream, &other), [3; 300_000]);
    });
}

#[test]
fn events_order_streams_and_tell_time() {
    each_device(|device| {
        let (first, second) = (device.create_stream().unwrap(), device.create_stream().unwrap());
        let gates = Gates::new(device);
        let increment = increment(device);
        let value = upload_u32(device, &first, &[1]);
        let start = first.record().unwrap();
        start.wait(None).unwrap();
        let gate = gates.close(&first);
        first.launch(&increment, [1, 1, 1], &[value.clone().into(), Scalar::U32(1).into()]).unwrap();
        let end = first.record().unwrap();
        assert!(!end.is_done().unwrap());
        assert_eq!(end.elapsed_since(&start).unwrap_err().kind(), &ErrorKind::InvalidArgument);
        for limit in [Duration::ZERO, SHORT] {
            let begin = Instant::now();
            assert_eq!(end.wait(Some(limit)).unwrap_err().kind(), &ErrorKind::Timeout { after: limit });
            let error = first.synchronize_timeout(limit).unwrap_err();
            assert!(error.is_retryable() && matches!(error.kind(), ErrorKind::Timeout { .. }));
            assert!(begin.elapsed() >= 2 * limit);
        }
        second.wait(&end).unwrap();
        let late = second.read(&value).unwrap();
        assert!(!late.event().is_done().unwrap());
        gate.open();
        assert_eq!(from_bytes::<u32>(&late.wait().unwrap()), [2]);
        assert!(end.is_done().unwrap() && start.is_done().unwrap());
        end.wait(Some(Duration::ZERO)).unwrap();
        assert!(end.elapsed_since(&start).unwrap() >= SHORT);
        assert_eq!(start.elapsed_since(&end).unwrap(), Duration::ZERO);
        end.wait(Some(Duration::MAX)).unwrap();
        first.synchronize_timeout(PATIENCE).unwrap();
    });
}

#[test]
fn a_diamond_of_streams_joins() {
    each_device(|device| {
        let streams: Vec<_> = (0..4).map(|_| device.create_stream().unwrap()).collect();
        let increment = increment(device);
        let values = upload_u32(device, &streams[0], &[0; 64]);
        let run = |stream: usize, offset: u64| {
            let slot = values.slice(offset, 4).unwrap();
            streams[stream].launch(&increment, [1, 1, 1], &[slot.into(), Scalar::U32(1).into()]).unwrap();
        };
        for _ in 0..50 {
            run(0, 0);
            let top = streams[0].record().unwrap();
            for side in [1, 2] {
                streams[side].wait(&top).unwrap();
                // Behind the top, both add to places of their own; the bottom copies and adds.
                run(side, 16 * side as u64);
                let event = streams[side].record().unwrap();
                streams[3].wait(&event).unwrap();
            }
            streams[3].copy(&values.slice(48, 4).unwrap(), &values.slice(16, 4).unwrap()).unwrap();
            run(3, 48);
            let bottom = streams[3].record().unwrap();
            streams[0].wait(&bottom).unwrap();
        }
        let got = download_u32(&streams[0], &values);
        assert_eq!((got[0], got[4], got[8], got[12]), (50, 50, 50, 51));
    });
}

#[test]
fn thousands_of_events_chain_two_streams() {
    each_device(|device| {
        let pair = [device.create_stream().unwrap(), device.create_stream().unwrap()];
        let increment = increment(device);
        let value = upload_u32(device, &pair[0], &[0]);
        let mut events: Vec<Event> = vec![pair[0].record().unwrap()];
        for index in 0..4000 {
            let stream = &pair[index % 2];
            stream.wait(&events[index]).unwrap();
            stream.launch(&increment, [1, 1, 1], &[value.clone().into(), Scalar::U32(1).into()]).unwrap();
            events.push(stream.record().unwrap());
        }
        events[4000].wait(None).unwrap();
        assert!(events.iter().all(|event| event.is_done().unwrap()));
        assert_eq!(download_u32(&pair[0], &value), [4000]);
    });
}

#[test]
fn many_threads_share_a_device_and_a_stream() {
    each_device(|device| {
        let shared = device.create_stream().unwrap();
        let increment = increment(device);
        let counter = upload_u32(device, &shared, &[0; 250]);
        thread::scope(|scope| {
            for seed in 0..4u8 {
                let (shared, increment, counter) = (&shared, &increment, &counter);
                scope.spawn(move || {
                    let stream = device.create_stream().unwrap();
                    for round in 0..50u8 {
                        let byte = seed * 50 + round;
                        let buffer = upload(device, &stream, &[byte; 257]);
                        assert_eq!(download(&stream, &buffer), [byte; 257]);
                        let args = [counter.clone().into(), Scalar::U32(250).into()];
                        shared.launch(increment, [8, 1, 1], &args).unwrap();
                        match round % 25 {
                            0 => shared.synchronize().unwrap(),
                            12 => shared.record().unwrap().wait(None).unwrap(),
                            _ => {}
                        }
                    }
                });
            }
        });
        assert_eq!(download_u32(&shared, &counter), [200; 250]);
        assert_eq!(device.memory().unwrap().used_bytes, 1000);
    });
}

#[test]
fn host_threads_of_any_number_wait_for_one_event() {
    each_device(|device| {
        let stream = device.create_stream().unwrap();
        let gates = Gates::new(device);
        let gate = gates.close(&stream);
        let event = stream.record().unwrap();
        thread::scope(|scope| {
            let waiters: Vec<_> = (0..8).map(|_| scope.spawn(|| event.wait(None))).collect();
            thread::sleep(SHORT);
            gate.open();
            waiters.into_iter().for_each(|waiter| waiter.join().unwrap().unwrap());
        });
    });
}

#[test]
fn a_dropped_stream_runs_its_work_to_the_end() {
    each_device(|device| {
        let stream = device.create_stream().unwrap();
        let gates = Gates::new(device);
        let value = upload_u32(device, &stream, &[3]);
        let gate = gates.close(&stream);
        let increment = increment(device);
        stream.launch(&increment, [1, 1, 1], &[value.clone().into(), Scalar::U32(1).into()]).unwrap();
        let read = stream.read(&value).unwrap();
        let event = stream.record().unwrap();
        drop((stream, increment));
        gate.open();
        event.wait(None).unwrap();
        assert_eq!(from_bytes::<u32>(&read.wait().unwrap()), [4]);
        let other = device.create_stream().unwrap();
        assert_eq!(download_u32(&other, &value), [4]);
    });
}

#[test]
fn a_dropped_device_lives_until_its_work_is_over() {
    let Some(fake) = Fake::new(&[]) else { return };
    let device = fake.open();
    let stream = device.create_stream().unwrap();
    let gates = Gates::new(&device);
    let gate = gates.close(&stream);
    let buffer = upload_u32(&device, &stream, &[1; 1000]);
    drop((device, stream, buffer, gates));
    assert_eq!(fake.count("context"), 1);
    gate.open();
    wait_until("the context is released", || fake.count("context") == 0);
    for kind in ["memory", "event", "module"] {
        wait_until(kind, || fake.count(kind) == 0);
    }
}

#[test]
fn an_open_device_is_opened_once() {
    let Some(fake) = Fake::new(&[]) else { return };
    let backend = fake.backend();
    let (first, second) = (backend.open(0).unwrap(), backend.open(0).unwrap());
    let buffer = first.allocate(1000, MemoryKind::Device).unwrap();
    assert_eq!(second.memory().unwrap().used_bytes, 1000);
    drop((first, second, buffer));
    assert_eq!(backend.open(0).unwrap().memory().unwrap().used_bytes, 0);
}

#[test]
fn other_codes_context_is_put_back() {
    let Some(fake) = Fake::new(&[]) else { return };
    let backend = fake.backend();
    let (first, second) = (backend.open(0).unwrap(), backend.open(1).unwrap());
    // The fake driver refuses objects of a context that is not current.
    let streams = [first.create_stream().unwrap(), second.create_stream().unwrap()];
    for round in 0..10 {
        for (device, stream) in [&first, &second].into_iter().zip(&streams) {
            let buffer = upload(device, stream, &[round; 10]);
            assert_eq!(download(stream, &buffer), [round; 10]);
        }
    }
}

/// Runs on a device what ends its context, and checks that the end is reported everywhere and for good.
fn lose(device: &Device) {
    let (stream, other) = (device.create_stream().unwrap(), device.create_stream().unwrap());
    let stop = device.load(&text(SOURCE, "stop", "", [1, 1, 1], vec![])).unwrap();
    let buffer = upload(device, &stream, &[1; 64]);
    let event = stream.record().unwrap();
    event.wait(None).unwrap();
    assert_eq!(device.health(), Health::Ok);
    stream.launch(&stop, [1, 1, 1], &[]).unwrap();
    // Reads that the loss overtakes: short ones, which the host finishes, and long ones.
    let long = device.allocate(9 << 20, MemoryKind::Device);
    let reads = [
        stream.read(&buffer).and_then(|read| read.wait()),
        long.and_then(|long| stream.read(&long.all())).and_then(|read| read.wait()),
    ];
    for read in reads {
        assert_eq!(read.unwrap_err().kind(), &ErrorKind::DeviceLost);
    }
    let error = stream.synchronize().unwrap_err();
    assert_eq!((error.kind(), error.device()), (&ErrorKind::DeviceLost, Some("cuda:0")), "{error}");
    assert!(error.message().contains("CUDA_ERROR_LAUNCH_FAILED, code 719"), "{error}");
    let Health::Lost { reason } = device.health() else { panic!("the device is lost") };
    assert_eq!(reason, error.message());
    let lost = [
        device.allocate(8, MemoryKind::Device).map(drop),
        device.allocate(0, MemoryKind::Device).map(drop),
        device.create_stream().map(drop),
        device.memory().map(drop),
        stream.write(&buffer, vec![0; 64]),
        stream.fill(&buffer, &[1]),
        stream.read_blocking(&buffer, &mut [0; 64]),
        stream.launch(&stop, [1, 1, 1], &[]),
        stream.synchronize(),
        stream.reset(),
        stream.record().map(drop),
        other.synchronize(),
        other.write(&buffer, vec![0; 64]),
        load(device, "increment", vec![U32_BOTH, U32]).map(drop),
    ];
    for result in lost {
        let error = result.unwrap_err();
        assert_eq!((error.kind(), error.message()), (&ErrorKind::DeviceLost, reason.as_str()));
    }
    // What was known to be done stays done.
    event.wait(None).unwrap();
}

#[test]
fn a_fault_loses_the_device_for_good_and_a_new_context_is_sound() {
    let Some(fake) = Fake::new(&[]) else { return };
    let backend = fake.backend();
    let device = backend.open(0).unwrap();
    lose(&device);
    drop(device);
    wait_until("the context is released", || fake.count("context") == 0);
    let device = backend.open(0).unwrap();
    assert_eq!(device.health(), Health::Ok);
    let stream = device.create_stream().unwrap();
    let buffer = upload(&device, &stream, &[5; 8]);
    assert_eq!(download(&stream, &buffer), [5; 8]);
}

#[test]
fn objects_of_a_lost_device_are_refused_by_its_next_opening() {
    let Some(fake) = Fake::new(&[]) else { return };
    let backend = fake.backend();
    let lost = backend.open(0).unwrap();
    let stream = lost.create_stream().unwrap();
    let stop = lost.load(&text(SOURCE, "stop", "", [1, 1, 1], vec![])).unwrap();
    stream.launch(&stop, [1, 1, 1], &[]).unwrap();
    stream.synchronize().unwrap_err();
    // The context is the same one, in which the fault stays until its last share is given up.
    assert_eq!(backend.open(0).unwrap_err().kind(), &ErrorKind::DeviceLost);
    drop((stream, stop, lost));
    wait_until("the device opens anew", || backend.open(0).is_ok());
}

#[test]
fn a_second_backend_opens_the_device_apart_and_the_same_one_shares_it() {
    let Some(fake) = Fake::new(&[]) else { return };
    let (own, other) = (fake.backend(), fake.backend());
    let (first, second, third) = (own.open(0).unwrap(), own.open(0).unwrap(), other.open(0).unwrap());
    let theirs = third.allocate(8, MemoryKind::Device).unwrap().all();
    let error = first.create_stream().unwrap().fill(&theirs, &[1]).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::InvalidArgument, "{error}");
    assert!(error.message().contains("another opening of cuda:0"), "{error}");
    let memory = first.allocate(8, MemoryKind::Device).unwrap().all();
    second.create_stream().unwrap().fill(&memory, &[1]).unwrap();
}

/// The same on a real GPU, in a process of its own, which is of no use afterwards.
#[test]
fn a_fault_on_a_real_gpu_loses_it_for_the_process_alone() {
    const VARIABLE: &str = "HALITE_CUDA_TEST_LOSS";
    let Some(device) = real() else { return };
    if std::env::var_os(VARIABLE).is_some() {
        return lose(&device);
    }
    let name = "a_fault_on_a_real_gpu_loses_it_for_the_process_alone";
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", name, "--nocapture"]).env(VARIABLE, "1").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(device.health(), Health::Ok);
}

#[test]
fn work_in_flight_at_a_loss_is_let_go() {
    let Some(fake) = Fake::new(&[]) else { return };
    let device = fake.open();
    let stream = device.create_stream().unwrap();
    let stop = device.load(&text(SOURCE, "stop", "", [1, 1, 1], vec![])).unwrap();
    stream.launch(&stop, [1, 1, 1], &[]).unwrap();
    for _ in 0..200 {
        let buffer = device.allocate(10, MemoryKind::Device);
        // The loss shows at one of these.
        if buffer.and_then(|buffer| stream.fill(&buffer.all(), &[1])).is_err() {
            break;
        }
    }
    stream.synchronize().unwrap_err();
    drop((stop, stream, device));
    wait_until("the context is released", || fake.count("context") == 0);
}

#[test]
fn a_refusal_at_an_event_poisons_the_stream_and_who_waits_for_it_until_reset() {
    let Some(fake) = Fake::new(&[]) else { return };
    let device = fake.open();
    let (stream, other) = (device.create_stream().unwrap(), device.create_stream().unwrap());
    let gates = Gates::new(&device);
    let buffer = upload(&device, &stream, &[1; 8]);
    let gate = gates.close(&stream);
    let event = stream.record().unwrap();
    fake.fail("cuEventSynchronize", 998, 0);
    let error = event.wait(None).unwrap_err();
    gate.open();
    assert!(error.to_string().contains("CUDA_ERROR_OF_THE_FUTURE"), "{error}");
    assert!(matches!(error.kind(), ErrorKind::Backend { code: 998, .. }));
    let same = |result: halite_hal::Result<()>| assert_eq!(result.unwrap_err().message(), error.message());
    same(event.wait(None));
    same(stream.synchronize());
    same(stream.write(&buffer, vec![2; 8]));
    same(stream.fill(&buffer, &[1]));
    same(stream.read_blocking(&buffer, &mut [0; 8]));
    let after = stream.record().unwrap();
    same(after.is_done().map(drop));
    other.wait(&after).unwrap();
    same(other.synchronize());
    for stream in [&stream, &other] {
        stream.reset().unwrap();
        assert_eq!(download(stream, &buffer), [1; 8]);
        stream.synchronize().unwrap();
    }
    assert_eq!(device.health(), Health::Ok);
    // A failure from before the reset stays with its events and poisons nothing that came after.
    same(after.wait(None));
    same(event.wait(None));
    stream.synchronize().unwrap();
}

#[test]
fn what_work_uses_is_not_free_while_the_driver_does_not_say_that_it_is_over() {
    let Some(fake) = Fake::new(&[]) else { return };
    let device = fake.open();
    let stream = device.create_stream().unwrap();
    let gates = Gates::new(&device);
    let used = device.memory().unwrap().used_bytes;
    let buffer = upload(&device, &stream, &[1; 8]);
    stream.synchronize().unwrap();
    let gate = gates.close(&stream);
    let read = stream.read(&buffer).unwrap();
    drop(buffer);
    let after = stream.record().unwrap();
    fake.fail("cuEventSynchronize", 998, 0);
    let refused = after.wait(None).unwrap_err();
    assert_eq!(device.memory().unwrap().used_bytes, used + 8);
    let second = device.allocate(8, MemoryKind::Device).unwrap().all();
    assert_eq!(stream.fill(&second, &[1]).unwrap_err().message(), refused.message());
    gate.open();
    // The refusal was of one answer; the read itself went well.
    assert_eq!(read.wait().unwrap(), [1; 8]);
    stream.reset().unwrap();
    stream.fill(&second, &[3]).unwrap();
    assert_eq!(download(&stream, &second), [3; 8]);
    assert_eq!(after.wait(None).unwrap_err().message(), refused.message());
}

#[test]
fn a_call_that_the_driver_refuses_poisons_nothing() {
    let Some(fake) = Fake::new(&[]) else { return };
    let device = fake.open();
    let stream = device.create_stream().unwrap();
    let buffer = upload_u32(&device, &stream, &[1]);
    let increment = increment(&device);
    fake.fail("cuLaunchKernel", 1, 0);
    let args = [buffer.clone().into(), Scalar::U32(1).into()];
    let error = stream.launch(&increment, [1, 1, 1], &args).unwrap_err();
    assert_eq!((error.call(), error.device()), (Some("cuLaunchKernel"), Some("cuda:0")));
    assert!(error.to_string().contains("CUDA_ERROR_INVALID_VALUE, code 1"), "{error}");
    stream.launch(&increment, [1, 1, 1], &args).unwrap();
    assert_eq!(download_u32(&stream, &buffer), [2]);
}

#[test]
fn a_copy_that_is_refused_half_way_poisons_the_stream_and_one_that_is_refused_whole_does_not() {
    let Some(fake) = Fake::new(&[]) else { return };
    let device = fake.open();
    let stream = device.create_stream().unwrap();
    let len = 9 << 20;
    let buffer = device.allocate(len as u64, MemoryKind::Device).unwrap().all();
    for function in ["cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2", "cuLaunchHostFunc"] {
        for skip in [0, 1] {
            fake.fail(function, 1, skip);
            let result = match function {
                "cuMemcpyHtoDAsync_v2" => stream.write(&buffer, vec![1; len]),
                _ => stream.read(&buffer).map(drop),
            };
            assert_eq!(result.unwrap_err().call(), Some(function));
            // The function on the host comes behind a copy, so that its first call is half-way already.
            let is_poisoned = skip > 0 || function == "cuLaunchHostFunc";
            assert_eq!(stream.fill(&buffer, &[1]).is_err(), is_poisoned, "{function}, {skip}");
            stream.reset().unwrap();
        }
    }
    stream.write(&buffer, vec![7; len]).unwrap();
    assert!(download(&stream, &buffer) == vec![7; len]);
}

#[test]
fn drops_free_nothing_that_the_driver_would_wait_for() {
    // Its memory is not ordered by streams, so that freeing it waits for the device.
    let Some(fake) = Fake::new(&["OLD_DRIVER", "VERSION=11040"]) else { return };
    let device = fake.open();
    let stream = device.create_stream().unwrap();
    let gates = Gates::new(&device);
    let gate = gates.close(&stream);
    for kind in [MemoryKind::Device, MemoryKind::Pinned] {
        drop(device.allocate(100, kind).unwrap());
    }
    drop(increment(&device));
    wait_until("another thread has freed them", || {
        fake.count("cuMemFree_v2") == 1
            && fake.count("cuMemFreeHost") == 1
            && fake.count("cuModuleUnload") == 1
    });
    gate.open();
    stream.synchronize().unwrap();
}

#[test]
fn objects_of_another_device_are_refused() {
    let Some(fake) = Fake::new(&[]) else { return };
    let backend = fake.backend();
    let (first, second) = (backend.open(0).unwrap(), backend.open(1).unwrap());
    let stream = first.create_stream().unwrap();
    let foreign = second.allocate(8, MemoryKind::Device).unwrap().all();
    assert_eq!(stream.write(&foreign, vec![0; 8]).unwrap_err().kind(), &ErrorKind::InvalidArgument);
    let event = second.create_stream().unwrap().record().unwrap();
    assert_eq!(stream.wait(&event).unwrap_err().kind(), &ErrorKind::InvalidArgument);
    let kernel = increment(&second);
    let own = first.allocate(4, MemoryKind::Device).unwrap().all();
    let error = stream.launch(&kernel, [1, 1, 1], &[own.into(), Scalar::U32(1).into()]).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::InvalidArgument);
}
