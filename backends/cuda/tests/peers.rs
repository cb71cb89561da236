//! Copies from one device to another.

mod common;

use common::*;
use halite_cuda::{CudaBackend, PeerLink};
use halite_hal::driver::Backend as _;
use halite_hal::{Device, ErrorKind, MemoryKind};

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
        let link = PeerLink::new(first, second).unwrap();
        let gates = [Gates::new(first), Gates::new(second)];
        let gates = [gates[0].close(&source), gates[1].close(&target)];
        let from = upload(first, &source, &[7; 1000]);
        let to = upload(second, &target, &[1; 1000]);
        let after = [source.record().unwrap(), target.record().unwrap()];
        let done = link.copy(&to.slice(100, 800).unwrap(), &from.slice(0, 800).unwrap(), &after).unwrap();
        assert_eq!(done.device(), second.id());
        drop(from);
        target.wait(&done).unwrap();
        let read = target.read(&to).unwrap();
        assert!(!done.is_done().unwrap());
        gates.into_iter().for_each(Gate::open);
        let bytes = read.wait().unwrap();
        assert!(bytes[100..900].iter().all(|byte| *byte == 7));
        assert!(bytes[..100].iter().chain(&bytes[900..]).all(|byte| *byte == 1));
        done.wait(None).unwrap();
        // And back again.
        let back = PeerLink::new(second, first).unwrap();
        let home = first.allocate(1000, MemoryKind::Device).unwrap().all();
        back.copy(&home, &to, &[]).unwrap().wait(None).unwrap();
        assert_eq!(download(&source, &home), bytes);
    });
}

#[test]
fn zero_bytes_are_legal_and_what_does_not_fit_is_refused() {
    each_pair(|first, second| {
        let link = PeerLink::new(first, second).unwrap();
        let [from, to] = [first, second].map(|device| device.allocate(16, MemoryKind::Device).unwrap().all());
        link.copy(&to.slice(0, 0).unwrap(), &from.slice(0, 0).unwrap(), &[]).unwrap().wait(None).unwrap();
        let error = link.copy(&to, &from.slice(0, 8).unwrap(), &[]).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::InvalidArgument);
        assert_eq!(link.copy(&from, &to, &[]).unwrap_err().kind(), &ErrorKind::InvalidArgument);
        assert_eq!(PeerLink::new(first, first).err().unwrap().kind(), &ErrorKind::InvalidArgument);
    });
}

#[test]
fn devices_that_cannot_reach_each_other_are_linked_all_the_same() {
    let Some(fake) = Fake::new(&[]) else { return };
    let backend = fake.backend();
    let (first, second) = (backend.open(0).unwrap(), backend.open(1).unwrap());
    fake.fail("cuCtxEnablePeerAccess", 711, 0);
    let link = PeerLink::new(&first, &second).unwrap();
    let stream = first.create_stream().unwrap();
    let from = upload(&first, &stream, &[3; 10]);
    let to = second.allocate(10, MemoryKind::Device).unwrap().all();
    let ready = stream.record().unwrap();
    let done = link.copy(&to, &from, &[ready]).unwrap();
    let target = second.create_stream().unwrap();
    target.wait(&done).unwrap();
    assert_eq!(download(&target, &to), [3; 10]);
}
