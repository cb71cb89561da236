//! Memory of the host that the device uses in place.

mod common;

use common::*;
use halite_cuda::CudaBackend;
use halite_hal::driver::Backend as _;
use halite_hal::{Device, ErrorKind, HostMemory, MemoryKind};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Runs on the fake driver, and on a GPU where there is one.
fn each_device(test: impl Fn(&Device)) {
    if let Some(fake) = Fake::new(&[]) {
        test(&fake.open());
        wait_until("all is given back", || {
            fake.count("registered") + fake.count("memory") + fake.count("context") == 0
        });
    }
    match CudaBackend::new().open(0) {
        Ok(device) => test(&device),
        Err(error) => println!("skipped: {}", error.message()),
    }
}

/// Pages with an owner that tells when it goes.
struct Pages(#[expect(dead_code, reason = "held for its drop")] HostMemory, Arc<AtomicBool>);

impl Drop for Pages {
    fn drop(&mut self) {
        self.1.store(true, Ordering::Release);
    }
}

#[test]
fn memory_is_pinned_while_buffers_or_work_use_it_and_given_back_after_that() {
    each_device(|device| {
        let pages = HostMemory::zeroed(10_000).unwrap();
        let (first, gone) = (pages.as_ptr(), Arc::new(AtomicBool::new(false)));
        // SAFETY: the pages live in their owner, and nothing refers to them.
        let memory = unsafe { HostMemory::from_raw(first, 10_000, Pages(pages, gone.clone())) };
        let before = device.memory().unwrap();
        let imported = device.import(&memory).unwrap();
        assert_eq!(imported.host_pointer(), Some(first));
        assert_eq!((imported.kind(), imported.len_bytes()), (MemoryKind::HostVisible, 10_000));
        assert_eq!(device.memory().unwrap().buffers, before.buffers, "it is no memory of the device's");
        drop(memory);
        let stream = device.create_stream().unwrap();
        let gate = Gates::new(device).close(&stream);
        stream.fill(&imported.all(), &[7]).unwrap();
        let copy = device.allocate(10_000, MemoryKind::Device).unwrap().all();
        stream.copy(&copy, &imported.all()).unwrap();
        drop(imported);
        assert!(!gone.load(Ordering::Acquire), "the fill and the copy still use it");
        gate.open();
        assert_eq!(download(&stream, &copy), [7; 10_000]);
        wait_until("the memory goes", || gone.load(Ordering::Acquire));
    });
}

#[test]
fn the_host_sees_what_the_device_writes_and_the_device_what_the_host_wrote() {
    each_device(|device| {
        let memory = HostMemory::zeroed(4097).unwrap();
        // SAFETY: fresh, and used by nothing else yet.
        unsafe { memory.as_ptr().as_ptr().write_bytes(3, 4097) };
        let imported = device.import(&memory).unwrap();
        let stream = device.create_stream().unwrap();
        assert_eq!(download(&stream, &imported.all()), [3; 4097]);
        stream.write_blocking(&imported.slice(1, 4096).unwrap(), &[4; 4096]).unwrap();
        stream.synchronize().unwrap();
        drop((imported, stream));
        let mut memory = Some(memory);
        wait_until("the device lets go", || match memory.take().unwrap().into_bytes() {
            Ok(bytes) => {
                assert_eq!((bytes[0], &bytes[1..]), (3, &[4; 4096][..]));
                memory = Some(HostMemory::from(bytes));
                true
            }
            Err(held) => {
                memory = Some(held);
                false
            }
        });
    });
}

#[test]
fn what_cannot_be_pinned_is_an_error_and_stays_the_callers() {
    each_device(|device| {
        let memory = HostMemory::zeroed(8192).unwrap();
        let (inside, owner) = (memory.as_ptr().as_ptr().wrapping_add(16), memory.clone());
        // SAFETY: 100 bytes lie within the 8192 of the owner.
        let misaligned = unsafe { HostMemory::from_raw(NonNull::new(inside).unwrap(), 100, owner) };
        let error = device.import(&misaligned).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::InvalidArgument);
        assert!(error.message().contains("multiple of 4096"), "{error}");
        let imported = device.import(&memory).unwrap();
        let error = device.import(&memory).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::InvalidArgument, "{error}");
        assert!(error.message().contains("imported already"), "{error}");
        let empty = device.import(&HostMemory::zeroed(0).unwrap()).unwrap();
        assert_eq!(empty.len_bytes(), 0);
        drop(imported);
    });
}

#[test]
fn what_others_have_pinned_is_told() {
    let Some(fake) = Fake::new(&[]) else { return };
    let device = fake.open();
    fake.fail("cuMemHostRegister_v2", 712, 0);
    let error = device.import(&HostMemory::zeroed(10).unwrap()).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::InvalidArgument, "{error}");
    assert!(error.message().contains("pinned this memory already"), "{error}");
}

#[test]
fn memory_that_the_driver_does_not_let_go_stays_taken() {
    let Some(fake) = Fake::new(&[]) else { return };
    let device = fake.open();
    let pages = HostMemory::zeroed(10_000).unwrap();
    let (first, gone) = (pages.as_ptr(), Arc::new(AtomicBool::new(false)));
    // SAFETY: the pages live in their owner, and nothing refers to them.
    let memory = unsafe { HostMemory::from_raw(first, 10_000, Pages(pages, gone.clone())) };
    fake.fail("cuMemHostUnregister", 1, 0);
    drop(device.import(&memory).unwrap());
    drop((memory, device));
    wait_until("the device is closed", || fake.count("context") == 0);
    assert!(!gone.load(Ordering::Acquire), "the driver has not said that it is done with it");
}
