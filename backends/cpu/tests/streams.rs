//! Order within a stream, order between streams, waiting, and failure.

mod common;

use common::*;
use halite_hal::{ErrorKind, Event, Stream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Short enough for a test, long enough that a busy machine does not finish blocked work by chance.
const SHORT: Duration = Duration::from_millis(10);

#[test]
fn commands_of_a_stream_run_in_order() {
    for threads in [1, 2, 5] {
        let stream = stream(threads);
        let log = Arc::new(Mutex::new(Vec::new()));
        let kernel = logging(stream.device(), &log);
        (0..1000).for_each(|value| log_launch(&stream, &kernel, value));
        stream.synchronize().unwrap();
        assert_eq!(*log.lock().unwrap(), (0..1000).collect::<Vec<_>>());
    }
}

#[test]
fn copies_fills_and_launches_keep_their_order() {
    let stream = stream(2);
    let (a, b) = (allocate(stream.device(), 1000), allocate(stream.device(), 1000));
    let increment = increment(stream.device());
    let gate = Gate::close(&stream);
    write(&stream, &a, &(0..1000).collect::<Vec<_>>());
    stream.launch(&increment, [10, 1, 1], &[arg(&a)]).unwrap();
    stream.copy(&b.all(), &a.all()).unwrap();
    stream.fill(&a.slice(0, 8).unwrap(), &7u32.to_ne_bytes()).unwrap();
    let early = stream.read(&b.all()).unwrap();
    stream.fill(&b.all(), &[9]).unwrap();
    gate.open();
    assert_eq!(halite_hal::from_bytes::<u32>(&early.wait().unwrap()), (1..1001).collect::<Vec<_>>());
    assert_eq!(read(&stream, &b), vec![0x0909_0909; 1000]);
    assert_eq!(read(&stream, &a)[..4], [7, 7, 3, 4]);
}

#[test]
fn large_copies_and_fills_are_whole_when_threads_share_them() {
    let stream = stream(3);
    // Beyond the size from which threads share, and no multiple of anything.
    let len = (5 << 20) / 4 + 13;
    let (a, b) = (allocate(stream.device(), len), allocate(stream.device(), len));
    let values: Vec<u32> = (0..len as u32).map(|value| value.wrapping_mul(0x9e37_79b9)).collect();
    let gate = Gate::close(&stream);
    write(&stream, &a, &values);
    stream.copy(&b.all(), &a.all()).unwrap();
    stream.fill(&a.all(), &5u32.to_ne_bytes()).unwrap();
    gate.open();
    assert_eq!(read(&stream, &b), values);
    assert!(read(&stream, &a).iter().all(|value| *value == 5));
}

#[test]
fn a_blocking_write_into_a_busy_stream_waits_only_for_its_bytes_to_be_safe() {
    let stream = stream(2);
    for len in [100, 300_000] {
        let buffer = allocate(stream.device(), len);
        let gate = Gate::close(&stream);
        let opener = thread::spawn(move || {
            thread::sleep(SHORT);
            gate.open();
        });
        let mut values = vec![3u32; len];
        stream.write_blocking(&buffer.all(), halite_hal::as_bytes(&values)).unwrap();
        values.fill(4);
        assert_eq!(read(&stream, &buffer), vec![3; len]);
        opener.join().unwrap();
    }
}

#[test]
fn a_wait_orders_streams_and_never_blocks_the_only_worker() {
    let device = device(1);
    let (a, b) = (device.create_stream().unwrap(), device.create_stream().unwrap());
    let log = Arc::new(Mutex::new(Vec::new()));
    let kernel = logging(&device, &log);
    let gate = Gate::close(&a);
    log_launch(&a, &kernel, 1);
    let event = a.record().unwrap();
    b.wait(&event).unwrap();
    log_launch(&b, &kernel, 2);
    assert!(!event.is_done().unwrap());
    gate.open();
    b.synchronize().unwrap();
    assert_eq!(*log.lock().unwrap(), [1, 2]);
    assert!(event.is_done().unwrap());
}

#[test]
fn a_diamond_of_streams_joins_on_one_worker() {
    let device = device(1);
    let streams: Vec<_> = (0..4).map(|_| device.create_stream().unwrap()).collect();
    let log = Arc::new(Mutex::new(Vec::new()));
    let kernel = logging(&device, &log);
    for round in 0..50 {
        // The sinks are enqueued first wherever possible, so that they are suspended.
        log_launch(&streams[0], &kernel, round * 4);
        let top = streams[0].record().unwrap();
        for side in [1, 2] {
            streams[side].wait(&top).unwrap();
            log_launch(&streams[side], &kernel, round * 4 + side as u32);
        }
        for side in [1, 2] {
            let event = streams[side].record().unwrap();
            streams[3].wait(&event).unwrap();
        }
        log_launch(&streams[3], &kernel, round * 4 + 3);
        let bottom = streams[3].record().unwrap();
        streams[0].wait(&bottom).unwrap();
    }
    streams[0].synchronize().unwrap();
    let log = log.lock().unwrap();
    assert_eq!(log.len(), 200);
    for (round, values) in (0..).zip(log.chunks(4)) {
        let mut middle = [values[1] - round * 4, values[2] - round * 4];
        middle.sort_unstable();
        assert_eq!((values[0], middle, values[3]), (round * 4, [1, 2], round * 4 + 3));
    }
}

#[test]
fn ten_thousand_events_chain_two_streams() {
    for threads in [1, 2] {
        let device = device(threads);
        let pair = [device.create_stream().unwrap(), device.create_stream().unwrap()];
        let log = Arc::new(Mutex::new(Vec::new()));
        let kernel = logging(&device, &log);
        let gate = Gate::close(&pair[0]);
        let mut events: Vec<Event> = Vec::new();
        for index in 0..10_000 {
            let stream = &pair[index % 2];
            if let Some(last) = events.last() {
                stream.wait(last).unwrap();
            }
            log_launch(stream, &kernel, index as u32);
            events.push(stream.record().unwrap());
        }
        gate.open();
        events[9_999].wait(None).unwrap();
        assert_eq!(*log.lock().unwrap(), (0..10_000).collect::<Vec<_>>());
        assert!(events.iter().all(|event| event.is_done().unwrap()));
    }
}

#[test]
fn ten_thousand_streams_wait_for_one_event() {
    let device = device(1);
    let first = device.create_stream().unwrap();
    let gate = Gate::close(&first);
    let event = first.record().unwrap();
    let count = Arc::new(AtomicU32::new(0));
    let counter = count.clone();
    let kernel = native(&device, vec![], move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
        Ok(())
    });
    let streams: Vec<_> = (0..10_000).map(|_| device.create_stream().unwrap()).collect();
    for stream in &streams {
        stream.wait(&event).unwrap();
        stream.launch(&kernel, [1, 1, 1], &[]).unwrap();
    }
    gate.open();
    streams.iter().for_each(|stream| stream.synchronize().unwrap());
    assert_eq!(count.load(Ordering::Relaxed), 10_000);
}

#[test]
fn enqueueing_into_a_blocked_stream_returns_at_once() {
    let stream = stream(1);
    let buffer = allocate(stream.device(), 4);
    let kernel = increment(stream.device());
    let gate = Gate::close(&stream);
    for _ in 0..1000 {
        stream.launch(&kernel, [1, 1, 1], &[arg(&buffer)]).unwrap();
    }
    let pending = stream.read(&buffer.all()).unwrap();
    assert!(!pending.event().is_done().unwrap());
    gate.open();
    assert_eq!(halite_hal::from_bytes::<u32>(&pending.wait().unwrap()), [1000; 4]);
}

#[test]
fn waits_time_out_and_the_work_goes_on() {
    let stream = stream(1);
    let gate = Gate::close(&stream);
    let event = stream.record().unwrap();
    for limit in [Duration::ZERO, SHORT] {
        let begin = Instant::now();
        let error = event.wait(Some(limit)).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Timeout { after: limit });
        assert!(error.is_retryable() && begin.elapsed() >= limit);
        let error = stream.synchronize_timeout(limit).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Timeout { after: limit });
    }
    gate.open();
    event.wait(Some(Duration::MAX)).unwrap();
    stream.synchronize_timeout(Duration::from_secs(60)).unwrap();
}

#[test]
fn host_threads_of_any_number_wait_for_one_event() {
    let stream = stream(2);
    let gate = Gate::close(&stream);
    let event = stream.record().unwrap();
    thread::scope(|scope| {
        let waiters: Vec<_> = (0..8).map(|_| scope.spawn(|| event.wait(None))).collect();
        thread::sleep(SHORT);
        gate.open();
        waiters.into_iter().for_each(|waiter| waiter.join().unwrap().unwrap());
    });
}

#[test]
fn host_threads_of_any_number_enqueue_into_one_stream() {
    let stream = stream(2);
    let buffer = allocate(stream.device(), 250);
    let kernel = increment(stream.device());
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for round in 0..500 {
                    stream.launch(&kernel, [3, 1, 1], &[arg(&buffer)]).unwrap();
                    match round % 100 {
                        0 => stream.synchronize().unwrap(),
                        50 => _ = stream.record().unwrap().wait(None),
                        _ => {}
                    }
                }
            });
        }
    });
    assert_eq!(read(&stream, &buffer), [4000; 250]);
}

#[test]
fn elapsed_time_needs_both_events_and_is_never_negative() {
    let stream = stream(1);
    let begin = stream.record().unwrap();
    let kernel = native(stream.device(), vec![], |_| {
        thread::sleep(SHORT);
        Ok(())
    });
    begin.wait(None).unwrap();
    let gate = Gate::close(&stream);
    stream.launch(&kernel, [1, 1, 1], &[]).unwrap();
    let end = stream.record().unwrap();
    assert_eq!(end.elapsed_since(&begin).unwrap_err().kind(), &ErrorKind::InvalidArgument);
    assert_eq!(begin.elapsed_since(&end).unwrap_err().kind(), &ErrorKind::InvalidArgument);
    gate.open();
    end.wait(None).unwrap();
    assert!(end.elapsed_since(&begin).unwrap() >= SHORT);
    assert_eq!(begin.elapsed_since(&end).unwrap(), Duration::ZERO);
}

#[test]
fn a_failure_skips_what_follows_and_reaches_everyone_until_reset() {
    let stream = stream(2);
    let device = stream.device().clone();
    let (buffer, log) = (allocate(&device, 4), Arc::new(Mutex::new(Vec::new())));
    let (logging, bad) = (logging(&device, &log), failing(&device, "first"));
    let gate = Gate::close(&stream);
    log_launch(&stream, &logging, 1);
    let before = stream.record().unwrap();
    stream.launch(&bad, [1, 1, 1], &[]).unwrap();
    stream.launch(&failing(&device, "second"), [1, 1, 1], &[]).unwrap();
    log_launch(&stream, &logging, 2);
    let pending = stream.read(&buffer.all()).unwrap();
    let after = stream.record().unwrap();
    gate.open();

    let error = stream.synchronize().unwrap_err();
    assert_eq!((error.kind(), error.device()), (&ErrorKind::Fault, Some("cpu:0")));
    assert!(error.message().contains("kernel 'test'") && error.message().contains("first"), "{error}");
    let same =
        |result: Result<(), halite_hal::Error>| assert_eq!(result.unwrap_err().message(), error.message());
    before.wait(None).unwrap();
    same(after.wait(None));
    same(after.is_done().map(drop));
    same(after.elapsed_since(&before).map(drop));
    same(pending.wait().map(drop));
    same(stream.synchronize());
    same(stream.launch(&logging, [1, 1, 1], &[halite_hal::Scalar::U32(3).into()]));
    same(stream.fill(&buffer.all(), &[1]));
    same(stream.write(&buffer.all(), vec![1; 16]));
    same(stream.read_blocking(&buffer.all(), &mut [0; 16]));
    same(stream.record().unwrap().wait(None));
    assert_eq!(*log.lock().unwrap(), [1]);

    stream.reset().unwrap();
    stream.synchronize().unwrap();
    log_launch(&stream, &logging, 4);
    stream.record().unwrap().wait(None).unwrap();
    same(after.wait(None));
    assert_eq!(*log.lock().unwrap(), [1, 4]);
    assert_eq!(read(&stream, &buffer), [0; 4]);
}

#[test]
fn panics_are_faults_whatever_they_throw() {
    let stream = stream(2);
    let device = stream.device().clone();
    let panics: [(fn(), &str); 3] = [
        (|| panic!("plain text"), "plain text"),
        (|| panic!("formatted {}", 1), "formatted 1"),
        (|| std::panic::panic_any(7u64), "a payload that is no text"),
    ];
    for (throw, reason) in panics {
        let kernel = native(&device, vec![], move |workgroup| {
            if workgroup.index() == [2, 1, 0] {
                throw();
            }
            Ok(())
        });
        stream.launch(&kernel, [5, 2, 1], &[]).unwrap();
        let error = stream.synchronize().unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Fault);
        assert!(error.message().contains(reason) && error.message().contains("[2, 1, 0]"), "{error}");
        stream.reset().unwrap();
    }
    let fine = native(&device, vec![], |_| Ok(()));
    stream.launch(&fine, [64, 1, 1], &[]).unwrap();
    stream.synchronize().unwrap();
}

#[test]
fn waiting_for_a_failed_event_poisons_the_waiting_stream_alone() {
    let device = device(1);
    let streams: Vec<_> = (0..3).map(|_| device.create_stream().unwrap()).collect();
    let gate = Gate::close(&streams[0]);
    streams[0].launch(&failing(&device, "broken"), [1, 1, 1], &[]).unwrap();
    let event = streams[0].record().unwrap();
    streams[1].wait(&event).unwrap();
    let buffer = allocate(&device, 1);
    streams[1].fill(&buffer.all(), &[1]).unwrap();
    gate.open();
    let error = streams[1].synchronize().unwrap_err();
    assert!(error.message().contains("broken"), "{error}");
    assert_eq!(read(&streams[2], &buffer), [0]);
    streams[1].reset().unwrap();
    assert!(streams[0].synchronize().is_err());
    streams[2].wait(&event).unwrap();
    assert!(streams[2].synchronize().is_err());
}

#[test]
fn a_reset_waits_for_what_is_skipped_and_a_healthy_stream_stays_so() {
    let stream = stream(1);
    stream.reset().unwrap();
    let gate = Gate::close(&stream);
    let opener = thread::spawn(move || {
        thread::sleep(SHORT);
        gate.open();
    });
    let event = stream.record().unwrap();
    stream.reset().unwrap();
    assert!(event.is_done().unwrap());
    opener.join().unwrap();
}

#[test]
fn a_kernel_that_waits_for_its_own_device_gets_an_error() {
    let stream = stream(1);
    let inner: Stream = stream.clone();
    let kernel =
        native(stream.device(), vec![], move |_| inner.synchronize().map_err(|error| error.to_string()));
    stream.launch(&kernel, [1, 1, 1], &[]).unwrap();
    // A time limit, so that a worker runs it and not this thread.
    let error = stream.synchronize_timeout(Duration::from_secs(60)).unwrap_err();
    assert!(error.message().contains("waits for work of its own device"), "{error}");
}
