//! Transfers, order within a stream and between streams, waiting, time.

mod common;

use common::*;
use halite_hal::driver::Backend as _;
use halite_hal::{ErrorKind, Stream};
use halite_hal::{Event, MemoryKind, Scalar, as_bytes, from_bytes};
use std::thread;
use std::time::{Duration, Instant};

/// How long a test waits for the device before it calls that a hang.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn large_transfers_are_whole() {
    let Some(device) = device() else { return };
    let stream = device.create_stream().unwrap();
    let len = (5 << 20) / 4 + 13;
    let values: Vec<u32> = (0..len).map(|value: u32| value.wrapping_mul(0x9e37_79b9)).collect();
    let a = upload(&device, &stream, as_bytes(&values));
    let b = device.allocate(a.len_bytes(), MemoryKind::Device).unwrap().all();
    stream.copy(&b, &a).unwrap();
    stream.fill(&a, &5u32.to_ne_bytes()).unwrap();
    assert!(from_bytes::<u32>(&download(&stream, &b)) == values);
    assert!(from_bytes::<u32>(&download(&stream, &a)).iter().all(|value| *value == 5));
}

#[test]
fn blocking_writes_of_any_length_leave_their_bytes_to_the_caller() {
    let Some(device) = device() else { return };
    let stream = device.create_stream().unwrap();
    for len in [1usize, 1000, (1 << 20) - 1, 1 << 20, (3 << 20) + 5] {
        let buffer = device.allocate(len as u64, MemoryKind::Device).unwrap().all();
        for busy in [false, true] {
            if busy {
                stream.fill(&buffer, &[9]).unwrap();
            } else {
                stream.synchronize().unwrap();
            }
            let mut bytes: Vec<u8> = (0..len).map(|i| ((i * 7) >> 3) as u8).collect();
            let expected = bytes.clone();
            stream.write_blocking(&buffer, &bytes).unwrap();
            bytes.fill(4);
            assert!(download(&stream, &buffer) == expected, "{len} bytes");
        }
    }
}

#[test]
fn zero_bytes_and_zero_grids_are_legal_everywhere() {
    let Some(device) = device() else { return };
    let stream = device.create_stream().unwrap();
    for kind in [MemoryKind::Device, MemoryKind::Pinned] {
        let empty = device.allocate(0, kind).unwrap().all();
        stream.write(&empty, Vec::new()).unwrap();
        stream.write_blocking(&empty, &[]).unwrap();
        stream.copy(&empty, &empty.slice(0, 0).unwrap()).unwrap();
        stream.fill(&empty, &[1]).unwrap();
        stream.read_blocking(&empty, &mut []).unwrap();
        assert!(download(&stream, &empty).is_empty());
        // A kernel may be given nothing to do, and no memory to do it on.
        let increment = increment(&device);
        stream.launch(&increment, [1, 1, 1], &[empty.clone().into(), Scalar::U32(0).into()]).unwrap();
        stream.launch(&increment, [0, 1, 1], &[empty.into(), Scalar::U32(0).into()]).unwrap();
    }
    let end = upload(&device, &stream, &[1; 4]).slice(4, 0).unwrap();
    stream.launch(&increment(&device), [1, 1, 1], &[end.into(), Scalar::U32(0).into()]).unwrap();
    stream.synchronize().unwrap();
}

#[test]
fn copies_fills_and_launches_keep_their_order() {
    let Some(device) = device() else { return };
    let stream = device.create_stream().unwrap();
    let (increment, slow) = (increment(&device), slow(&device));
    let gate = upload(&device, &stream, as_bytes(&[0u32; 2]));
    let a = upload(&device, &stream, as_bytes(&[0u32; 1000]));
    let b = upload(&device, &stream, as_bytes(&[0u32; 1000]));
    stream.launch(&slow, [1, 1, 1], &[gate.into(), Scalar::U32(SLOW_ROUNDS).into()]).unwrap();
    stream.write(&a, as_bytes(&(0..1000).collect::<Vec<u32>>())).unwrap();
    stream.launch(&increment, [63, 1, 1], &[a.clone().into(), Scalar::U32(1000).into()]).unwrap();
    stream.copy(&b, &a).unwrap();
    stream.fill(&a.slice(0, 8).unwrap(), &7u32.to_ne_bytes()).unwrap();
    let early = stream.read(&b).unwrap();
    stream.fill(&b, &[9]).unwrap();
    assert_eq!(from_bytes::<u32>(&early.wait().unwrap()), (1..1001).collect::<Vec<_>>());
    assert_eq!(from_bytes::<u32>(&download(&stream, &b)), [0x0909_0909; 1000]);
    assert_eq!(from_bytes::<u32>(&download(&stream, &a))[..4], [7, 7, 3, 4]);
}

#[test]
fn a_thousand_launches_run_in_order() {
    let Some(device) = device() else { return };
    let stream = device.create_stream().unwrap();
    let buffer = upload(&device, &stream, as_bytes(&[0u32; 4]));
    let increment = increment(&device);
    for _ in 0..1000 {
        stream.launch(&increment, [1, 1, 1], &[buffer.clone().into(), Scalar::U32(4).into()]).unwrap();
    }
    assert_eq!(from_bytes::<u32>(&download(&stream, &buffer)), [1000; 4]);
}

#[test]
fn enqueueing_and_blocking_writes_do_not_wait_for_a_busy_stream() {
    let Some(device) = device() else { return };
    let stream = device.create_stream().unwrap();
    let (slow, increment) = (slow(&device), increment(&device));
    let gate = upload(&device, &stream, as_bytes(&[0u32; 2]));
    let buffer = upload(&device, &stream, as_bytes(&[0u32; 25]));
    // Loads the driver's own late compilation before the time is taken.
    stream.launch(&increment, [1, 1, 1], &[buffer.clone().into(), Scalar::U32(0).into()]).unwrap();
    stream.synchronize().unwrap();
    stream.launch(&slow, [1, 1, 1], &[gate.into(), Scalar::U32(4 * SLOW_ROUNDS).into()]).unwrap();
    let behind = stream.record().unwrap();
    let mut values = [3u32; 25];
    stream.write_blocking(&buffer, as_bytes(&values)).unwrap();
    values.fill(4);
    for _ in 0..100 {
        stream.launch(&increment, [2, 1, 1], &[buffer.clone().into(), Scalar::U32(25).into()]).unwrap();
    }
    let pending = stream.read(&buffer).unwrap();
    assert!(!behind.is_done().unwrap(), "the device was faster than a hundred calls");
    assert!(!pending.event().is_done().unwrap());
    assert_eq!(from_bytes::<u32>(&pending.wait().unwrap()), [103; 25]);
}

#[test]
fn events_order_streams_and_tell_time() {
    let Some(device) = device() else { return };
    let (first, second) = (device.create_stream().unwrap(), device.create_stream().unwrap());
    let slow = slow(&device);
    let value = upload(&device, &first, as_bytes(&[41u32, 0]));
    let start = first.record().unwrap();
    first.launch(&slow, [1, 1, 1], &[value.clone().into(), Scalar::U32(SLOW_ROUNDS).into()]).unwrap();
    let end = first.record().unwrap();
    assert!(!end.is_done().unwrap());
    assert_eq!(end.elapsed_since(&start).unwrap_err().kind(), &ErrorKind::InvalidArgument);
    for limit in [Duration::ZERO, Duration::from_millis(1)] {
        let begin = Instant::now();
        assert_eq!(end.wait(Some(limit)).unwrap_err().kind(), &ErrorKind::Timeout { after: limit });
        let error = first.synchronize_timeout(limit).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Timeout { after: limit });
        assert!(error.is_retryable() && begin.elapsed() >= limit);
    }
    second.wait(&end).unwrap();
    assert_eq!(from_bytes::<u32>(&download(&second, &value))[0], 42);
    assert!(end.is_done().unwrap() && start.is_done().unwrap());
    end.wait(Some(Duration::ZERO)).unwrap();
    end.wait(Some(Duration::MAX)).unwrap();
    let elapsed = end.elapsed_since(&start).unwrap();
    assert!(elapsed > Duration::from_millis(1) && elapsed < PATIENCE, "{elapsed:?}");
    assert_eq!(start.elapsed_since(&end).unwrap(), Duration::ZERO);
    let other = second.record().unwrap();
    other.wait(None).unwrap();
    assert!(other.elapsed_since(&end).is_ok());
}

#[test]
fn an_event_of_an_idle_stream_marks_its_own_time() {
    let Some(device) = device() else { return };
    let stream = device.create_stream().unwrap();
    upload(&device, &stream, &[1; 64]);
    stream.synchronize().unwrap();
    thread::sleep(Duration::from_millis(50));
    let start = stream.record().unwrap();
    upload(&device, &stream, &[1; 64]);
    let end = stream.record().unwrap();
    end.wait(None).unwrap();
    let elapsed = end.elapsed_since(&start).unwrap();
    assert!(elapsed < Duration::from_millis(50), "idle time was counted: {elapsed:?}");
}

#[test]
fn a_diamond_of_streams_joins() {
    let Some(device) = device() else { return };
    let streams: Vec<_> = (0..4).map(|_| device.create_stream().unwrap()).collect();
    let increment = increment(&device);
    let buffers: Vec<_> = (0..3).map(|_| upload(&device, &streams[0], as_bytes(&[0u32; 4]))).collect();
    let add = |stream: &Stream, buffer: usize| {
        let args = [buffers[buffer].clone().into(), Scalar::U32(4).into()];
        stream.launch(&increment, [1, 1, 1], &args).unwrap();
    };
    for round in 1..=50u32 {
        add(&streams[0], 0);
        let top = streams[0].record().unwrap();
        for side in [1, 2] {
            streams[side].wait(&top).unwrap();
            streams[side].copy(&buffers[side], &buffers[0]).unwrap();
            add(&streams[side], side);
        }
        for side in [1, 2] {
            let event = streams[side].record().unwrap();
            streams[3].wait(&event).unwrap();
        }
        let joined: Vec<_> = [1, 2].map(|side| streams[3].read(&buffers[side]).unwrap()).into();
        let bottom = streams[3].record().unwrap();
        streams[0].wait(&bottom).unwrap();
        if round % 10 == 0 {
            for pending in joined {
                assert_eq!(from_bytes::<u32>(&pending.wait().unwrap()), [round + 1; 4]);
            }
        }
    }
    streams[0].synchronize().unwrap();
}

#[test]
fn a_thousand_events_chain_two_streams() {
    let Some(device) = device() else { return };
    let pair = [device.create_stream().unwrap(), device.create_stream().unwrap()];
    let increment = increment(&device);
    let buffer = upload(&device, &pair[0], as_bytes(&[0u32; 4]));
    let gate = upload(&device, &pair[0], as_bytes(&[0u32; 2]));
    let slow = slow(&device);
    pair[0].launch(&slow, [1, 1, 1], &[gate.into(), Scalar::U32(SLOW_ROUNDS).into()]).unwrap();
    let mut events: Vec<Event> = Vec::new();
    for index in 0..1000 {
        let stream = &pair[index % 2];
        if let Some(last) = events.last() {
            stream.wait(last).unwrap();
        }
        stream.launch(&increment, [1, 1, 1], &[buffer.clone().into(), Scalar::U32(4).into()]).unwrap();
        events.push(stream.record().unwrap());
    }
    events[999].wait(None).unwrap();
    assert!(events.iter().all(|event| event.is_done().unwrap()));
    assert_eq!(from_bytes::<u32>(&download(&pair[1], &buffer)), [1000; 4]);
}

#[test]
fn a_hundred_streams_wait_for_one_event() {
    let Some(device) = device() else { return };
    let first = device.create_stream().unwrap();
    let gate = upload(&device, &first, as_bytes(&[6u32, 0]));
    first.launch(&slow(&device), [1, 1, 1], &[gate.clone().into(), Scalar::U32(SLOW_ROUNDS).into()]).unwrap();
    let event = first.record().unwrap();
    let streams: Vec<_> = (0..100).map(|_| device.create_stream().unwrap()).collect();
    let reads: Vec<_> = streams
        .iter()
        .map(|stream| {
            stream.wait(&event).unwrap();
            stream.read(&gate.slice(0, 4).unwrap()).unwrap()
        })
        .collect();
    for read in reads {
        assert_eq!(from_bytes::<u32>(&read.wait().unwrap()), [7]);
    }
}

#[test]
fn host_threads_of_any_number_wait_for_one_event() {
    let Some(device) = device() else { return };
    let stream = device.create_stream().unwrap();
    let gate = upload(&device, &stream, as_bytes(&[0u32; 2]));
    stream.launch(&slow(&device), [1, 1, 1], &[gate.into(), Scalar::U32(SLOW_ROUNDS).into()]).unwrap();
    let event = stream.record().unwrap();
    thread::scope(|scope| {
        let limit = |index: i32| if index % 2 == 0 { None } else { Some(PATIENCE) };
        let waiters: Vec<_> = (0..8).map(|i| (i, &event)).collect();
        let waiters: Vec<_> =
            waiters.into_iter().map(|(i, event)| scope.spawn(move || event.wait(limit(i)))).collect();
        waiters.into_iter().for_each(|waiter| waiter.join().unwrap().unwrap());
    });
}

#[test]
fn host_threads_of_any_number_enqueue_into_one_stream() {
    let Some(device) = device() else { return };
    let stream = device.create_stream().unwrap();
    let buffer = upload(&device, &stream, as_bytes(&[0u32; 250]));
    let increment = increment(&device);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for round in 0..100 {
                    let args = [buffer.clone().into(), Scalar::U32(250).into()];
                    stream.launch(&increment, [16, 1, 1], &args).unwrap();
                    match round % 50 {
                        0 => stream.synchronize().unwrap(),
                        25 => stream.record().unwrap().wait(None).unwrap(),
                        _ => {}
                    }
                }
            });
        }
    });
    assert_eq!(from_bytes::<u32>(&download(&stream, &buffer)), [400; 250]);
}

#[test]
fn host_threads_launch_one_kernel_on_streams_of_their_own() {
    let Some(device) = device() else { return };
    let increment = increment(&device);
    thread::scope(|scope| {
        for seed in 0..4u32 {
            let (device, increment) = (&device, &increment);
            scope.spawn(move || {
                // Every launch has other arguments, so that mixed ones would show.
                let stream = device.create_stream().unwrap();
                for round in 0..50u32 {
                    let len = 1 + (seed * 50 + round) as usize;
                    let buffer = upload(device, &stream, as_bytes(&vec![round; len + 3]));
                    let args = [buffer.clone().into(), Scalar::U32(len as u32).into()];
                    stream.launch(increment, [16, 1, 1], &args).unwrap();
                    let got = from_bytes::<u32>(&download(&stream, &buffer));
                    assert!(got[..len].iter().all(|value| *value == round + 1));
                    assert_eq!(got[len..], [round; 3]);
                }
            });
        }
    });
}

#[test]
fn a_healthy_stream_waits_in_a_reset_and_stays_healthy() {
    let Some(device) = device() else { return };
    let stream = device.create_stream().unwrap();
    stream.reset().unwrap();
    let gate = upload(&device, &stream, as_bytes(&[0u32; 2]));
    stream.launch(&slow(&device), [1, 1, 1], &[gate.into(), Scalar::U32(SLOW_ROUNDS).into()]).unwrap();
    let event = stream.record().unwrap();
    stream.reset().unwrap();
    assert!(event.is_done().unwrap());
    stream.synchronize().unwrap();
}

#[test]
fn a_second_backend_opens_the_device_apart_and_the_same_one_shares_it() {
    let Some(first) = device() else { return };
    let other = device().expect("it was there a moment ago");
    let theirs = other.allocate(8, MemoryKind::Device).unwrap().all();
    let error = first.create_stream().unwrap().fill(&theirs, &[1]).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::InvalidArgument, "{error}");
    assert!(error.message().contains("another opening of opencl:0"), "{error}");

    let backend = backend();
    let [first, second] = [(); 2].map(|()| backend.open(0).unwrap());
    let memory = first.allocate(8, MemoryKind::Device).unwrap().all();
    second.create_stream().unwrap().fill(&memory, &[1]).unwrap();
}
