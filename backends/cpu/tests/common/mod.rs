//! Devices and kernels that the tests share.

#![allow(dead_code, reason = "each test binary uses some of these")]

use halite_cpu::{CpuBackend, CpuConfig};
use halite_hal::driver::Backend;
use halite_hal::{
    Access, Arg, ArgType, Buffer, DType, Device, Kernel, KernelSource, MemoryKind, NativeKernel, Scalar,
    Signature, Stream, Workgroup, as_bytes, from_bytes,
};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// Room for every test.
pub(crate) const MEMORY_BYTES: u64 = 64 << 20;

pub(crate) fn device(threads: usize) -> Device {
    let config = CpuConfig { threads: Some(threads), memory_limit_bytes: Some(MEMORY_BYTES) };
    CpuBackend::new(config).open(0).unwrap()
}

pub(crate) fn stream(threads: usize) -> Stream {
    device(threads).create_stream().unwrap()
}

pub(crate) fn native(
    device: &Device,
    args: Vec<ArgType>,
    run: impl Fn(&mut Workgroup<'_>) -> Result<(), String> + Send + Sync + 'static,
) -> Kernel {
    device.load(&KernelSource::Native(NativeKernel::new("test", Signature::new(args), run))).unwrap()
}

/// Appends its scalar to `log`.
pub(crate) fn logging(device: &Device, log: &Arc<Mutex<Vec<u32>>>) -> Kernel {
    let log = log.clone();
    native(device, vec![ArgType::Scalar(DType::U32)], move |workgroup| {
        log.lock().unwrap().push(workgroup.scalar(0)?.to_bits() as u32);
        Ok(())
    })
}

pub(crate) fn log_launch(stream: &Stream, kernel: &Kernel, value: u32) {
    stream.launch(kernel, [1, 1, 1], &[Scalar::U32(value).into()]).unwrap();
}

/// Adds 1 to every `u32`, in chunks of 100.
pub(crate) fn increment(device: &Device) -> Kernel {
    native(device, vec![buffer_arg(Access::ReadWrite)], |workgroup| {
        workgroup.write_chunk::<u32>(0, 100)?.iter_mut().for_each(|value| *value += 1);
        Ok(())
    })
}

pub(crate) fn failing(device: &Device, message: &'static str) -> Kernel {
    native(device, vec![], move |_| Err(message.into()))
}

/// A kernel that blocks its stream until the gate opens.
pub(crate) struct Gate(Arc<AtomicBool>);

impl Gate {
    pub(crate) fn close(stream: &Stream) -> Self {
        let open = Arc::new(AtomicBool::new(false));
        let seen = open.clone();
        let kernel = native(stream.device(), vec![], move |_| {
            while !seen.load(Ordering::Acquire) {
                thread::yield_now();
            }
            Ok(())
        });
        stream.launch(&kernel, [1, 1, 1], &[]).unwrap();
        Self(open)
    }

    pub(crate) fn open(&self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.open();
    }
}

pub(crate) fn buffer_arg(access: Access) -> ArgType {
    ArgType::Buffer { dtype: DType::U32, access }
}

pub(crate) fn allocate(device: &Device, len: usize) -> Buffer {
    device.allocate(len as u64 * 4, MemoryKind::Device).unwrap()
}

pub(crate) fn write(stream: &Stream, buffer: &Buffer, values: &[u32]) {
    stream.write(&buffer.all(), as_bytes(values)).unwrap();
}

pub(crate) fn read(stream: &Stream, buffer: &Buffer) -> Vec<u32> {
    let mut bytes = vec![0; buffer.len_bytes() as usize];
    stream.read_blocking(&buffer.all(), &mut bytes).unwrap();
    from_bytes(&bytes)
}

pub(crate) fn arg(buffer: &Buffer) -> Arg {
    buffer.all().into()
}
