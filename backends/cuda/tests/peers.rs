//! Copies from one device to another.

mod common;

use common::*;
use halite_cuda::CudaBackend;
use halite_hal::driver::Backend as _;
use halite_hal::{Device, ErrorKind, Health, HostMemory, MemoryKind};

/// Runs on two devices of the fake driver, and on two GPUs where there are two.
fn each_pair(test: impl Fn(&Device, &Device)) {
    if let Some(fake) = Fake::new(&[]) {
        let backend = fake.backend();
        test(&backend.open(0).unwrap(), &backend.open(1).unwrap());
        wait_until("everything is given back", || fake.count("memory") + fake.count("context") == 0);
    }
    let backend = CudaBackend::new();
    match backend.open(1) {
        Ok(second) => test(&backend.open(0).unwrap(), &second),
        Err(error) => println!("skipped: {}", error.message()),
    }
}

#[test]
fn copies_wait_for_both_sides_and_hold_their_memory() {
    each_pair(|first, second| {
        let (source, target) = (first.create_stream().unwrap(), second.create_stream().unwrap());
        let link = second.create_peer_stream(first).unwrap();
        assert!(link.device().id().is_same_opening(second.id()));
        assert!(link.peer().unwrap().id().is_same_opening(first.id()));
        let gates = [Gates::new(first), Gates::new(second)];
        let gates = [gates[0].close(&source), gates[1].close(&target)];
        let from = upload(first, &source, &[7; 1000]);
        let to = upload(second, &target, &[1; 1000]);
        link.wait(&source.record().unwrap()).unwrap();
        link.wait(&target.record().unwrap()).unwrap();
        link.copy(&to.slice(100, 800).unwrap(), &from.slice(0, 800).unwrap()).unwrap();
        let done = link.record().unwrap();
        drop(from);
        target.wait(&done).unwrap();
        let read = target.read(&to).unwrap();
        assert!(!done.is_done().unwrap());
        gates.into_iter().for_each(Gate::open);
        let bytes = read.wait().unwrap();
        assert!(bytes[100..900].iter().all(|byte| *byte == 7));
        assert!(bytes[..100].iter().chain(&bytes[900..]).all(|byte| *byte == 1));
        done.wait(None).unwrap();
        // And back again, without waiting: the stream waits for the other device's event.
        let back = first.create_peer_stream(second).unwrap();
        back.wait(&done).unwrap();
        let home = first.allocate(1000, MemoryKind::Device).unwrap().all();
        back.copy(&home, &to).unwrap();
        assert_eq!(download(&back, &home), bytes);
    });
}

#[test]
fn zero_bytes_are_legal_and_what_does_not_fit_is_refused() {
    each_pair(|first, second| {
        let link = second.create_peer_stream(first).unwrap();
        let [from, to] = [first, second].map(|device| device.allocate(16, MemoryKind::Device).unwrap().all());
        link.copy(&to.slice(0, 0).unwrap(), &from.slice(0, 0).unwrap()).unwrap();
        link.synchronize().unwrap();
        for (dst, src) in [(&to, &from.slice(0, 8).unwrap()), (&from, &to), (&from, &from)] {
            assert_eq!(link.copy(dst, src).unwrap_err().kind(), &ErrorKind::InvalidArgument);
        }
        let plain = second.create_stream().unwrap();
        assert_eq!(plain.copy(&to, &from).unwrap_err().kind(), &ErrorKind::InvalidArgument);
        assert_eq!(first.create_peer_stream(first).unwrap_err().kind(), &ErrorKind::InvalidArgument);
        // It is a stream of its device in all else.
        link.fill(&to, &[9]).unwrap();
        assert_eq!(download(&link, &to), [9; 16]);
    });
}

#[test]
fn devices_that_cannot_reach_each_other_are_linked_all_the_same() {
    let Some(fake) = Fake::new(&[]) else { return };
    let backend = fake.backend();
    let (first, second) = (backend.open(0).unwrap(), backend.open(1).unwrap());
    fake.fail("cuCtxEnablePeerAccess", 711, 0);
    let link = second.create_peer_stream(&first).unwrap();
    let stream = first.create_stream().unwrap();
    let from = upload(&first, &stream, &[3; 10]);
    let to = second.allocate(10, MemoryKind::Device).unwrap().all();
    link.wait(&stream.record().unwrap()).unwrap();
    link.copy(&to, &from).unwrap();
    let done = link.record().unwrap();
    let target = second.create_stream().unwrap();
    target.wait(&done).unwrap();
    assert_eq!(download(&target, &to), [3; 10]);
}

#[test]
fn pinned_and_imported_memory_of_the_other_device_is_a_source_too() {
    each_pair(|first, second| {
        let link = second.create_peer_stream(first).unwrap();
        let imported = first.import(&HostMemory::zeroed(100).unwrap()).unwrap().all();
        let pinned = first.allocate(100, MemoryKind::Pinned).unwrap().all();
        let stream = first.create_stream().unwrap();
        for (number, from) in [(5, imported), (6, pinned)] {
            stream.fill(&from, &[number]).unwrap();
            link.wait(&stream.record().unwrap()).unwrap();
            let to = second.allocate(100, MemoryKind::Device).unwrap().all();
            link.copy(&to, &from).unwrap();
            assert_eq!(download(&link, &to), [number; 100]);
        }
    });
}

#[test]
fn the_loss_of_a_peer_is_a_failed_link_and_the_device_goes_on() {
    for call in ["cuMemcpyPeerAsync", "cuStreamWaitEvent", ""] {
        let Some(fake) = Fake::new(&[]) else { return };
        let backend = fake.backend();
        let (first, second) = (backend.open(0).unwrap(), backend.open(1).unwrap());
        let (source, link) = (first.create_stream().unwrap(), second.create_peer_stream(&first).unwrap());
        let from = upload(&first, &source, &[7; 100]);
        let to = upload(&second, &link, &[1; 100]);
        let gate = Gates::new(&first).close(&source);
        let event = source.record().unwrap();
        if call.is_empty() {
            // The loss shows at a call of the peer's own.
            fake.fail("cuMemGetInfo_v2", 719, 0);
            first.memory().unwrap_err();
        } else {
            fake.fail(call, 719, 0);
        }
        let before = link.record().unwrap();
        link.wait(&event).and_then(|()| link.copy(&to, &from)).unwrap_or_else(|error| {
            assert_eq!(error.kind(), &ErrorKind::Link, "{call}: {error}");
        });
        let behind = link.record().unwrap();
        gate.open();
        assert_eq!(link.synchronize().unwrap_err().kind(), &ErrorKind::Link, "{call}");
        before.wait(None).unwrap();
        assert_eq!(behind.wait(None).unwrap_err().kind(), &ErrorKind::Link, "{call}");
        assert!(matches!(first.health(), Health::Lost { .. }), "{call}");
        assert_eq!(second.health(), Health::Ok, "{call}");
        link.reset().unwrap();
        assert_eq!(download(&link, &to), [1; 100], "{call}");
        assert_eq!(second.create_peer_stream(&first).unwrap_err().kind(), &ErrorKind::Link, "{call}");
    }
}

#[test]
fn a_peer_that_is_lost_while_it_is_waited_for_fails_what_is_behind_the_wait() {
    let Some(fake) = Fake::new(&[]) else { return };
    let backend = fake.backend();
    let (first, second) = (backend.open(0).unwrap(), backend.open(1).unwrap());
    let (source, link) = (first.create_stream().unwrap(), second.create_peer_stream(&first).unwrap());
    let to = upload(&second, &link, &[1; 100]);
    link.synchronize().unwrap();
    let gate = Gates::new(&first).close(&source);
    let event = source.record().unwrap();
    let before = link.record().unwrap();
    link.wait(&event).unwrap();
    link.fill(&to, &[2]).unwrap();
    let behind = link.record().unwrap();
    fake.fail("cuMemGetInfo_v2", 719, 0);
    first.memory().unwrap_err();
    gate.open();
    assert_eq!(link.synchronize().unwrap_err().kind(), &ErrorKind::Link);
    before.wait(None).unwrap();
    assert_eq!(behind.wait(None).unwrap_err().kind(), &ErrorKind::Link);
    assert_eq!(second.health(), Health::Ok);
    link.reset().unwrap();
    link.fill(&to, &[3]).unwrap();
    assert_eq!(download(&link, &to), [3; 100]);
}
