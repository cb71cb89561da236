//! What goes wrong while work runs, on a driver that misbehaves.

mod common;

use common::*;
use halite_hal::driver::Backend as _;
use halite_hal::{ErrorKind, Health, MemoryKind, Scalar, as_bytes, from_bytes};

#[test]
fn a_fault_poisons_the_stream_and_who_waits_for_it_until_reset() {
    const NAME: &str = "a_fault_poisons_the_stream_and_who_waits_for_it_until_reset";
    let Some(()) = with_shim(NAME, &[("SHIM_FAULT", "-9999")]) else { return };
    let Some(device) = device() else { return };
    let (stream, other) = (device.create_stream().unwrap(), device.create_stream().unwrap());
    let (fault, increment) = (fault(&device), increment(&device));
    let buffer = upload(&device, &stream, as_bytes(&[1u32; 4]));
    let args = [buffer.clone().into(), Scalar::U32(4).into()];
    let before = stream.record().unwrap();
    stream.launch(&fault, [1, 1, 1], &[]).unwrap();
    let skipped = [
        stream.write(&buffer, as_bytes(&[2u32; 4])),
        stream.launch(&increment, [1, 1, 1], &args),
        stream.fill(&buffer, &[3]),
    ];
    let pending = stream.read(&buffer);
    let after = stream.record().unwrap();
    other.wait(&after).unwrap();
    let follower = other.fill(&buffer, &[4]);

    let error = stream.synchronize().unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Fault, "{error}");
    assert!(error.message().contains("kernel 'fault'") && error.message().contains("-9999"), "{error}");
    assert_eq!(error.device(), Some("opencl:0"));
    let same = |result: halite_hal::Result<()>| assert_eq!(result.unwrap_err().message(), error.message());
    for result in skipped {
        assert!(result.is_ok() || result.unwrap_err().message() == error.message());
    }
    before.wait(None).unwrap();
    same(after.wait(None));
    same(after.is_done().map(drop));
    same(after.elapsed_since(&before).map(drop));
    same(pending.and_then(|pending| pending.wait()).map(drop));
    same(stream.synchronize());
    same(stream.write(&buffer, vec![3; 16]));
    same(stream.read_blocking(&buffer, &mut [0; 16]));
    same(stream.launch(&increment, [1, 1, 1], &args));
    same(stream.record().unwrap().wait(None));
    same(stream.record().unwrap().is_done().map(drop));
    same(other.synchronize());
    assert!(follower.is_ok() || follower.unwrap_err().message() == error.message());

    for stream in [&stream, &other] {
        stream.reset().unwrap();
        stream.synchronize().unwrap();
        assert_eq!(from_bytes::<u32>(&download(stream, &buffer)), [1; 4], "what followed the fault has run");
    }
    stream.launch(&increment, [1, 1, 1], &args).unwrap();
    stream.record().unwrap().wait(None).unwrap();
    assert_eq!(from_bytes::<u32>(&download(&stream, &buffer)), [2; 4]);
    // A failure from before the reset stays with its events, and reaches who waits for them now.
    same(after.is_done().map(drop));
    assert_eq!(device.health(), Health::Ok);
    let early = other.record().unwrap();
    other.wait(&after).unwrap();
    same(other.synchronize());
    early.wait(None).unwrap();
}

#[test]
fn waiting_for_a_failed_event_poisons_the_waiting_stream_alone() {
    const NAME: &str = "waiting_for_a_failed_event_poisons_the_waiting_stream_alone";
    let Some(()) = with_shim(NAME, &[("SHIM_FAULT", "-5")]) else { return };
    let Some(device) = device() else { return };
    let streams: Vec<_> = (0..3).map(|_| device.create_stream().unwrap()).collect();
    let gate = upload(&device, &streams[0], &[0; 8]);
    let (slow, fault) = (slow(&device), fault(&device));
    streams[0].launch(&slow, [1, 1, 1], &[gate.into(), Scalar::U32(SLOW_ROUNDS).into()]).unwrap();
    streams[0].launch(&fault, [1, 1, 1], &[]).unwrap();
    let event = streams[0].record().unwrap();
    let buffer = upload(&device, &streams[1], &[1]);
    let before = streams[1].record().unwrap();
    streams[1].wait(&event).unwrap();
    streams[1].fill(&buffer, &[2]).unwrap();
    let error = streams[1].synchronize().unwrap_err();
    assert!(error.message().contains("kernel 'fault' ended with CL_OUT_OF_RESOURCES (-5)"), "{error}");
    before.wait(None).unwrap();
    assert_eq!(download(&streams[2], &buffer), [1]);
    streams[1].reset().unwrap();
    assert_eq!(streams[0].synchronize().unwrap_err().message(), error.message());
    streams[2].wait(&event).unwrap();
    assert_eq!(streams[2].synchronize().unwrap_err().message(), error.message());
}

#[test]
fn a_failure_travels_through_a_chain_of_streams() {
    const NAME: &str = "a_failure_travels_through_a_chain_of_streams";
    let Some(()) = with_shim(NAME, &[("SHIM_FAULT", "-5")]) else { return };
    let Some(device) = device() else { return };
    let streams: Vec<_> = (0..2).map(|_| device.create_stream().unwrap()).collect();
    let (slow, fault) = (slow(&device), fault(&device));
    let gate = upload(&device, &streams[0], &[0; 8]);
    streams[0].launch(&slow, [1, 1, 1], &[gate.into(), Scalar::U32(SLOW_ROUNDS).into()]).unwrap();
    let mut events = Vec::new();
    for index in 0..200 {
        let stream = &streams[index % 2];
        if let Some(last) = events.last() {
            stream.wait(last).unwrap();
        }
        if index == 100 {
            stream.launch(&fault, [1, 1, 1], &[]).unwrap();
        }
        events.push(stream.record().unwrap());
    }
    // Asked from the end, so that everything before is settled by one question.
    let error = events[199].wait(None).unwrap_err();
    assert!(error.message().contains("kernel 'fault'"), "{error}");
    for (index, event) in events.iter().enumerate() {
        let outcome = event.is_done();
        assert_eq!(outcome.is_err(), index >= 100, "event {index}: {outcome:?}");
    }
}

#[test]
fn skipped_commands_let_their_buffers_go() {
    const NAME: &str = "skipped_commands_let_their_buffers_go";
    let Some(()) = with_shim(NAME, &[("SHIM_FAULT", "-5")]) else { return };
    let Some(device) = device() else { return };
    let stream = device.create_stream().unwrap();
    let (slow, fault) = (slow(&device), fault(&device));
    let gate = upload(&device, &stream, &[0; 8]);
    stream.launch(&slow, [1, 1, 1], &[gate.into(), Scalar::U32(SLOW_ROUNDS).into()]).unwrap();
    stream.launch(&fault, [1, 1, 1], &[]).unwrap();
    for _ in 0..50 {
        let buffer = device.allocate(10, MemoryKind::Device).unwrap();
        stream.fill(&buffer.all(), &[1]).unwrap();
    }
    stream.synchronize().unwrap_err();
    assert_eq!(device.memory().unwrap().buffers, 0);
}

#[test]
fn a_lost_device_stays_lost_and_can_be_opened_anew() {
    const NAME: &str = "a_lost_device_stays_lost_and_can_be_opened_anew";
    let Some(()) = with_shim(NAME, &[("SHIM_FAIL", "clEnqueueWriteBuffer:3:-36")]) else { return };
    let backend = backend();
    let device = backend.open(0).unwrap();
    let stream = device.create_stream().unwrap();
    let kernel = increment(&device);
    let buffer = upload(&device, &stream, &[1; 64]);
    stream.write(&buffer, vec![2; 64]).unwrap();
    let event = stream.record().unwrap();
    event.wait(None).unwrap();
    // The device is lost while work is in flight, which then still ends, and must not write to memory that was freed.
    let gate = device.allocate(8, MemoryKind::Device).unwrap().all();
    let args = [gate.into(), Scalar::U32(SLOW_ROUNDS).into()];
    stream.launch(&slow(&device), [1, 1, 1], &args).unwrap();
    let pending = stream.read(&buffer).unwrap();
    let error = stream.write(&buffer, vec![3; 64]).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::DeviceLost);
    assert_eq!(error.call(), Some("clEnqueueWriteBuffer"));
    assert_eq!(pending.wait().unwrap_err().kind(), &ErrorKind::DeviceLost);
    let Health::Lost { reason } = device.health() else { panic!("the device is lost") };
    assert!(reason.contains("CL_INVALID_COMMAND_QUEUE (-36)"), "{reason}");
    let lost = [
        device.allocate(8, MemoryKind::Device).map(drop),
        device.create_stream().map(drop),
        device.memory().map(drop),
        stream.write(&buffer, vec![0; 64]),
        stream.launch(&kernel, [1, 1, 1], &[buffer.clone().into(), Scalar::U32(1).into()]),
        stream.read_blocking(&buffer, &mut [0; 64]),
        stream.synchronize(),
        stream.reset(),
        stream.record().map(drop),
        device.load(&text(SOURCE, "increment", [1, 1, 1], vec![U32_BOTH, U32])).map(drop),
    ];
    for (index, result) in lost.into_iter().enumerate() {
        assert_eq!(result.unwrap_err().kind(), &ErrorKind::DeviceLost, "call {index}");
    }
    // What was done before stays done.
    event.wait(None).unwrap();
    let anew = backend.open(0).unwrap();
    assert_eq!(anew.health(), Health::Ok);
    let stream = anew.create_stream().unwrap();
    assert_eq!(stream.write(&buffer, vec![0; 64]).unwrap_err().kind(), &ErrorKind::InvalidArgument);
    let fresh = upload(&anew, &stream, &[7; 8]);
    drop((buffer, kernel, event, device));
    assert_eq!(download(&stream, &fresh), [7; 8]);
}

#[test]
fn a_device_that_goes_away_is_found_by_its_health() {
    const NAME: &str = "a_device_that_goes_away_is_found_by_its_health";
    let Some(()) = with_shim(NAME, &[]) else { return };
    let Some(device) = device() else { return };
    assert_eq!(device.health(), Health::Ok);
    // CL_DEVICE_AVAILABLE, which the misbehaving driver looks up at each question.
    // SAFETY: this test is alone in its process, and no other thread of it uses the environment.
    unsafe { std::env::set_var("SHIM_INFO", "1027:0") };
    assert!(matches!(device.health(), Health::Lost { .. }));
    // SAFETY: as above.
    unsafe { std::env::remove_var("SHIM_INFO") };
    assert!(matches!(device.health(), Health::Lost { .. }), "a loss is final");
}

#[test]
fn a_driver_that_cannot_wait_any_more_has_lost_its_device() {
    const NAME: &str = "a_driver_that_cannot_wait_any_more_has_lost_its_device";
    let Some(()) = with_shim(NAME, &[("SHIM_FAIL", "clWaitForEvents:0:-5")]) else { return };
    let Some(device) = device() else { return };
    let stream = device.create_stream().unwrap();
    let buffer = upload(&device, &stream, &[0; 8]);
    // The fault is only known once something is waited for in vain.
    stream.launch(&slow(&device), [1, 1, 1], &[buffer.into(), Scalar::U32(SLOW_ROUNDS).into()]).unwrap();
    let error = stream.synchronize().unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::DeviceLost, "{error}");
    assert!(error.message().contains("CL_OUT_OF_RESOURCES (-5)"), "{error}");
    // The work is not over, so that its memory must outlast this process's interest in it.
    std::thread::sleep(std::time::Duration::from_secs(1));
}

/// `CL_DEVICE_TYPE` of a device that is no processor, which gets no memory that a caller has lent.
const NO_PROCESSOR: &str = "1000:4";

#[test]
fn memory_that_a_caller_has_lent_is_out_of_reach_after_a_loss() {
    const NAME: &str = "memory_that_a_caller_has_lent_is_out_of_reach_after_a_loss";
    let variables = [("SHIM_FAIL", "clWaitForEvents:0:-5"), ("SHIM_INFO", NO_PROCESSOR)];
    let Some(()) = with_shim(NAME, &variables) else { return };
    let Some(device) = device() else { return };
    let stream = device.create_stream().unwrap();
    let gate = upload(&device, &stream, &[0; 8]);
    let buffer = upload(&device, &stream, &[7; 3 << 20]);
    stream.launch(&slow(&device), [1, 1, 1], &[gate.into(), Scalar::U32(SLOW_ROUNDS).into()]).unwrap();
    let mut lent = vec![9; 3 << 20];
    let error = stream.read_blocking(&buffer, &mut lent).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::DeviceLost, "{error}");
    // The copy comes to its end all the same, and to memory that is still there.
    drop((buffer, stream, device));
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert!(lent.iter().all(|byte| *byte == 9), "the driver has written to what was given back");
}

#[test]
fn what_a_lost_driver_never_ends_stays_taken_and_is_told() {
    const NAME: &str = "what_a_lost_driver_never_ends_stays_taken_and_is_told";
    let variables = [("SHIM_FAIL", "clWaitForEvents:0:-5"), ("SHIM_INFO", NO_PROCESSOR), ("SHIM_STUCK", "1")];
    let Some(()) = with_shim(NAME, &variables) else { return };
    log::set_logger(&Lines).unwrap();
    log::set_max_level(log::LevelFilter::Warn);
    let Some(device) = device() else { return };
    let stream = device.create_stream().unwrap();
    let buffer = upload(&device, &stream, &[1; 64]);
    let begin = std::time::Instant::now();
    let pending = stream.read(&buffer).unwrap();
    let error = stream.read_blocking(&buffer, &mut [0; 64]).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::DeviceLost, "{error}");
    assert_eq!(pending.wait().unwrap_err().kind(), &ErrorKind::DeviceLost);
    drop((buffer, stream, device));
    assert!(begin.elapsed() < std::time::Duration::from_secs(5), "nothing is waited for");
    let expected = "opencl:0: the driver does not end 4 commands; what they use stays taken";
    // The line may come from a thread of the backend.
    while !LINES.lock().unwrap().iter().any(|line| line == expected) {
        assert!(begin.elapsed() < std::time::Duration::from_secs(20), "{:?}", LINES.lock().unwrap());
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

static LINES: std::sync::Mutex<Vec<String>> = std::sync::Mutex::new(Vec::new());

/// Keeps what is logged.
struct Lines;

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        LINES.lock().unwrap().push(record.args().to_string());
    }

    fn flush(&self) {}
}

#[test]
fn a_long_write_that_is_refused_half_way_poisons_its_stream() {
    const NAME: &str = "a_long_write_that_is_refused_half_way_poisons_its_stream";
    let variables = [("SHIM_FAIL", "clEnqueueWriteBuffer:3:-5"), ("SHIM_INFO", NO_PROCESSOR)];
    let Some(()) = with_shim(NAME, &variables) else { return };
    let Some(device) = device() else { return };
    let stream = device.create_stream().unwrap();
    let buffer = device.allocate(4 << 20, MemoryKind::Device).unwrap().all();
    let error = stream.write_blocking(&buffer, &[1; 4 << 20]).unwrap_err();
    assert!(error.message().contains("CL_OUT_OF_RESOURCES (-5)"), "{error}");
    assert_eq!(stream.fill(&buffer, &[2]).unwrap_err().message(), error.message());
    stream.reset().unwrap();
    stream.write_blocking(&buffer, &[3; 4 << 20]).unwrap();
    assert!(download(&stream, &buffer).iter().all(|byte| *byte == 3));
}

#[test]
fn a_full_device_says_so_with_numbers_whatever_its_code() {
    const NAME: &str = "a_full_device_says_so_with_numbers_whatever_its_code";
    let codes = "clCreateBuffer:1:-4,clCreateBuffer:1:-5,clCreateBuffer:1:-6,clCreateBuffer:1:-61";
    let Some(()) = with_shim(NAME, &[("SHIM_FAIL", codes)]) else { return };
    let Some(device) = device() else { return };
    let total = device.info().memory_bytes;
    for name in ["CL_MEM_OBJECT_ALLOCATION_FAILURE", "CL_OUT_OF_RESOURCES", "CL_OUT_OF_HOST_MEMORY"] {
        let error = device.allocate(1000, MemoryKind::Device).unwrap_err();
        // The account still holds what is being asked for.
        assert_eq!(error.kind(), &ErrorKind::OutOfMemory { requested: 1000, free: total - 1000 }, "{error}");
        assert!(error.message().contains(name) && error.is_retryable(), "{error}");
        assert_eq!(error.call(), Some("clCreateBuffer"));
    }
    let error = device.allocate(1000, MemoryKind::Device).unwrap_err();
    let limit = device.info().limits.max_allocation_bytes;
    assert_eq!(error.kind(), &ErrorKind::TooLarge { requested: 1000, limit }, "{error}");
    device.allocate(1000, MemoryKind::Device).unwrap();
    assert_eq!(device.memory().unwrap().used_bytes, 0);
}

#[test]
fn a_call_that_the_driver_refuses_enqueues_nothing_and_poisons_nothing() {
    const NAME: &str = "a_call_that_the_driver_refuses_enqueues_nothing_and_poisons_nothing";
    let refusals = "clEnqueueNDRangeKernel:1:-5,clEnqueueBarrierWithWaitList:1:-6,clSetKernelArg:1:-38,\
                    clCreateSubBuffer:1:-13,clCreateCommandQueue:2:-6";
    let Some(()) = with_shim(NAME, &[("SHIM_FAIL", refusals)]) else { return };
    let Some(device) = device() else { return };
    let stream = device.create_stream().unwrap();
    assert!(matches!(device.create_stream().unwrap_err().kind(), ErrorKind::OutOfMemory { .. }));
    let buffer = upload(&device, &stream, &[0; 8]);
    let increment = increment(&device);
    let launch = |len| {
        let part = buffer.slice(0, len).unwrap();
        stream.launch(&increment, [1, 1, 1], &[part.into(), Scalar::U32(1).into()])
    };
    assert!(matches!(launch(8).unwrap_err().kind(), ErrorKind::Backend { code: -38, .. }));
    assert!(matches!(launch(8).unwrap_err().kind(), ErrorKind::Backend { code: -5, .. }));
    assert_eq!(launch(4).unwrap_err().call(), Some("clCreateSubBuffer"));
    assert!(matches!(stream.record().unwrap_err().kind(), ErrorKind::OutOfMemory { .. }));
    launch(4).unwrap();
    stream.synchronize().unwrap();
    assert_eq!(download(&stream, &buffer), [1, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn without_profiling_there_are_events_but_no_times() {
    const NAME: &str = "without_profiling_there_are_events_but_no_times";
    // CL_DEVICE_QUEUE_PROPERTIES says that there is profiling, but no queue has it.
    let Some(()) = with_shim(NAME, &[("SHIM_FAIL", "clCreateCommandQueue:1:-35")]) else { return };
    let Some(device) = device() else { return };
    let stream = device.create_stream().unwrap();
    let (start, end) = (stream.record().unwrap(), stream.record().unwrap());
    end.wait(None).unwrap();
    assert!(start.is_done().unwrap());
    assert_eq!(end.elapsed_since(&start).unwrap_err().kind(), &ErrorKind::Unsupported);
}

#[test]
fn a_status_that_the_driver_does_not_tell_is_a_failure_of_the_work() {
    const NAME: &str = "a_status_that_the_driver_does_not_tell_is_a_failure_of_the_work";
    let Some(()) = with_shim(NAME, &[("SHIM_FAIL", "clGetEventInfo:0:-58")]) else { return };
    let Some(device) = device() else { return };
    let stream = device.create_stream().unwrap();
    let buffer = device.allocate(8, MemoryKind::Device).unwrap().all();
    let event = stream.fill(&buffer, &[1]).and_then(|()| stream.record());
    let outcome = event.and_then(|event| event.wait(None));
    assert!(matches!(outcome.unwrap_err().kind(), ErrorKind::Backend { code: -58, .. }));
    assert!(stream.synchronize().is_err());
}
