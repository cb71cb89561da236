use super::*;
use crate::{CommandListBuilder, ErrorKind, Health, MemoryKind};
use std::time::Duration;

fn null(config: NullConfig) -> (NullDevice, Device) {
    let null = NullBackend::new(config).open_null(0).unwrap();
    let device = null.device();
    (null, device)
}

#[test]
fn memory_is_accounted_and_given_back() {
    let (_, device) = null(NullConfig { memory_bytes: 1000, ..NullConfig::default() });
    let first = device.allocate(600, MemoryKind::Device).unwrap();
    let empty = device.allocate(0, MemoryKind::Device).unwrap();
    let memory = device.memory().unwrap();
    assert_eq!((memory.used_bytes, memory.free_bytes, memory.buffers), (600, 400, 2));
    let error = device.allocate(401, MemoryKind::Device).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::OutOfMemory { requested: 401, free: 400 });
    let error = device.allocate(1001, MemoryKind::Device).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::TooLarge { requested: 1001, limit: 1000 });
    drop((first, empty));
    assert_eq!(device.memory().unwrap().used_bytes, 0);
    assert_eq!(device.memory().unwrap().buffers, 0);
}

#[test]
fn host_addressable_kinds_are_unsupported() {
    let (_, device) = null(NullConfig::default());
    for kind in [MemoryKind::HostVisible, MemoryKind::Pinned] {
        assert_eq!(device.allocate(1, kind).unwrap_err().kind(), &ErrorKind::Unsupported);
    }
}

#[test]
fn reads_give_zeros_whatever_was_written() {
    let (_, device) = null(NullConfig::default());
    let stream = device.create_stream().unwrap();
    let buffer = device.allocate(4, MemoryKind::Device).unwrap();
    stream.write(&buffer.all(), vec![1, 2, 3, 4]).unwrap();
    let mut bytes = [9; 4];
    stream.read_blocking(&buffer.all(), &mut bytes).unwrap();
    assert_eq!(bytes, [0; 4]);
    assert_eq!(stream.read(&buffer.all()).unwrap().wait().unwrap(), [0; 4]);
}

#[test]
fn events_are_done_at_once_and_time_does_not_run_backwards() {
    let (_, device) = null(NullConfig::default());
    let stream = device.create_stream().unwrap();
    let first = stream.record().unwrap();
    let second = stream.record().unwrap();
    assert!(first.is_done().unwrap() && second.is_done().unwrap());
    second.wait(Some(Duration::ZERO)).unwrap();
    assert!(second.elapsed_since(&first).unwrap() < Duration::from_secs(60));
    assert_eq!(first.elapsed_since(&second).unwrap(), Duration::ZERO);
}

#[test]
fn a_pause_holds_events_and_buffers_until_resumed() {
    let (null, device) = null(NullConfig::default());
    let stream = device.create_stream().unwrap();
    let buffer = device.allocate(8, MemoryKind::Device).unwrap();
    null.pause();
    stream.fill(&buffer.all(), &[0]).unwrap();
    let event = stream.record().unwrap();
    drop(buffer);
    assert!(!event.is_done().unwrap());
    assert_eq!(event.elapsed_since(&event).unwrap_err().kind(), &ErrorKind::InvalidArgument);
    let error = event.wait(Some(Duration::from_millis(1))).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Timeout { .. }) && error.is_retryable());
    assert!(matches!(
        stream.synchronize_timeout(Duration::ZERO).unwrap_err().kind(),
        ErrorKind::Timeout { .. }
    ));
    assert_eq!(device.memory().unwrap().used_bytes, 8);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| event.wait(None));
        null.resume();
        waiting.join().unwrap().unwrap();
    });
    assert_eq!(device.memory().unwrap().used_bytes, 0);
    assert_eq!(event.elapsed_since(&event).unwrap(), Duration::ZERO);
}

#[test]
fn loss_is_sticky_with_the_first_reason() {
    let (null, device) = null(NullConfig::default());
    let stream = device.create_stream().unwrap();
    let buffer = device.allocate(8, MemoryKind::Device).unwrap();
    let before = stream.record().unwrap();
    null.pause();
    let under_way = stream.record().unwrap();
    null.lose("unplugged");
    null.lose("unplugged again");
    null.resume();
    assert_eq!(device.health(), Health::Lost { reason: "unplugged".into() });
    assert!(before.is_done().unwrap());
    let failures = [
        device.memory().err(),
        device.allocate(8, MemoryKind::Device).err(),
        device.create_stream().err(),
        stream.write(&buffer.all(), vec![0; 8]).err(),
        stream.read(&buffer.all()).err(),
        stream.fill(&buffer.all(), &[0]).err(),
        stream.record().err(),
        stream.wait(&before).err(),
        stream.synchronize().err(),
        stream.reset().err(),
    ];
    for (index, failure) in failures.into_iter().enumerate() {
        let failure = failure.unwrap_or_else(|| panic!("call {index} succeeded on a lost device"));
        assert_eq!(failure.kind(), &ErrorKind::DeviceLost, "call {index}");
        assert!(failure.message().starts_with("unplugged;"), "{failure}");
    }
    assert_eq!(under_way.is_done().unwrap_err().kind(), &ErrorKind::DeviceLost, "resuming runs nothing");
    assert!(device.finish(CommandListBuilder::new()).is_ok(), "recording touches no driver");
}

#[test]
fn waiting_for_paused_work_fails_when_the_device_is_lost() {
    let (null, device) = null(NullConfig::default());
    let stream = device.create_stream().unwrap();
    null.pause();
    let event = stream.record().unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| event.wait(None));
        null.lose("burnt");
        assert_eq!(waiting.join().unwrap().unwrap_err().kind(), &ErrorKind::DeviceLost);
    });
    assert_eq!(event.is_done().unwrap_err().kind(), &ErrorKind::DeviceLost);
}
