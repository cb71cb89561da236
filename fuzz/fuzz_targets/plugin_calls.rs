//! The functions of a plugin, the emulator's, called in any order with any handles, sizes and programs: every call is
//! answered with a status, and none touches memory that is not its own.
#![no_main]

use halite_hal::plugin::{
    self, ABI_MAJOR, ARGUMENT_BUFFER, ARGUMENT_SCALAR, Argument, BuiltinDesc, Completion, DeviceInfo, Error,
    Host, Operand, Plugin, Range, Status,
};
use halite_npu_emulator::halite_plugin_entry;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use std::ffi::c_char;
use std::ptr;
use std::sync::LazyLock;

/// A handle: one that was given out, modulo their number, or any number at all.
#[derive(Arbitrary, Debug, Clone, Copy)]
enum Handle {
    Known(u8),
    Any(u64),
}

/// Mostly small, so that calls succeed; sometimes absurd.
#[derive(Arbitrary, Debug, Clone, Copy)]
enum Size {
    Small(u8),
    Middle(u16),
    Any(u64),
}

impl Size {
    fn get(self) -> u64 {
        match self {
            Self::Small(size) => size.into(),
            Self::Middle(size) => size.into(),
            Self::Any(size) => size,
        }
    }
}

#[derive(Arbitrary, Debug)]
struct AnyOperand {
    dtype: u8,
    shape: [Size; 3],
    strides: [i8; 3],
    rank: u8,
}

#[derive(Arbitrary, Debug)]
enum Call {
    Open,
    Info { index: u32 },
    Close { device: Handle },
    Alloc { device: Handle, kind: u8, length: Size },
    Free { device: Handle, memory: Handle },
    CreateStream { device: Handle },
    DestroyStream { stream: Handle },
    Write { stream: Handle, memory: Handle, offset: Size, length: u8 },
    Read { stream: Handle, memory: Handle, offset: Size, length: u8 },
    Copy { stream: Handle, dst: Handle, dst_offset: Size, src: Handle, src_offset: Size, length: Size },
    Fill { stream: Handle, memory: Handle, offset: Size, length: Size, pattern: [u8; 8], pattern_length: u8 },
    WaitEvent { stream: Handle, event: Handle },
    Synchronize { stream: Handle, timeout: u16 },
    CreateEvent { device: Handle },
    DestroyEvent { event: Handle },
    Record { stream: Handle, event: Handle },
    Wait { event: Handle, timeout: u16 },
    Query { event: Handle },
    Elapsed { earlier: Handle, later: Handle },
    Reset { stream: Handle },
    Health { device: Handle },
    Prepare { device: Handle, name: u8, operands: Vec<AnyOperand> },
    Enqueue { stream: Handle, builtin: Handle, ranges: Vec<(Handle, Size, Size)> },
    Release { device: Handle, builtin: Handle },
    Load { device: Handle, program: u8, noise: Vec<(u16, u8)> },
    Unload { device: Handle, program: Handle },
    Find { program: Handle },
    Launch { stream: Handle, kernel: Handle, blocks: u8, arguments: Vec<(bool, u8, Handle, Size, Size, u64)> },
}

static TABLE: LazyLock<Plugin> = LazyLock::new(|| {
    let host = Host { struct_size: size_of::<Host>() as u64, abi_major: ABI_MAJOR, abi_minor: 0, log: None };
    let mut out = ptr::null();
    // SAFETY: the host structure and the place for the table are locals that outlive the call; no error is asked for.
    let status = unsafe { halite_plugin_entry(&host, &mut out, ptr::null_mut()) };
    assert_eq!((status, out.is_null()), (plugin::STATUS_OK, false));
    // SAFETY: not null (checked above), and the interface makes it a table of this version.
    unsafe { *out }
});

static PROGRAMS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let texts = [
        ".kernel k vector\n.arg buffer:read\n.arg buffer:write\n.arg i32\n halt\n.end",
        ".kernel k vector\n.arg buffer:readwrite\n arg dst=r0 index=0\n load.ub dtype=f32 dst=0 src=r0 d0=1:0:0 d1=1:0:0 d2=1:0:0 d3=8:4:4\n store.ub dtype=f32 mode=plain dst=r0 src=0 d0=1:0:0 d1=1:0:0 d2=1:0:0 d3=8:4:4\n halt\n.end",
    ];
    let assemble =
        |text: &&str| halite_npu_isa::text::assemble(text).expect("the text is a program").to_bytes();
    texts.iter().map(assemble).collect()
});

const NAMES: [&std::ffi::CStr; 6] = [c"copy", c"fill", c"add", c"matmul", c"", c"halite.copy"];

struct Machine {
    handles: Vec<u64>,
    devices: Vec<u64>,
    text: [c_char; 128],
    error: Error,
}

/// Calls a function of the table with one more argument for the error.
macro_rules! call {
    ($machine:expr, $function:ident($($argument:expr),*)) => {{
        let function = TABLE.$function.expect("the emulator has every function");
        // SAFETY: pointers lead to locals of the lengths that are passed along, which outlive what is enqueued (see `run`).
        let status: Status = unsafe { function($($argument,)* $machine.error()) };
        assert!((plugin::STATUS_OK..=plugin::STATUS_BACKEND).contains(&status), "{status}");
        status
    }};
}

impl Machine {
    fn error(&mut self) -> *mut Error {
        self.error = Error::sized();
        self.error.text = self.text.as_mut_ptr();
        self.error.text_capacity = self.text.len() as u64;
        &raw mut self.error
    }

    fn handle(&self, handle: Handle) -> u64 {
        match handle {
            Handle::Known(index) if !self.handles.is_empty() => {
                self.handles[usize::from(index) % self.handles.len()]
            }
            Handle::Known(index) => index.into(),
            Handle::Any(value) => value,
        }
    }

    fn keep(&mut self, status: Status, handle: u64) {
        if status == plugin::STATUS_OK {
            assert_ne!(handle, 0, "a call that succeeds gives a handle");
            self.handles.push(handle);
        }
    }

    fn run(&mut self, call: &Call, host: &mut [u8; 256]) {
        let mut out = 0;
        let mut completion = Completion::sized();
        match *call {
            Call::Open => {
                if self.devices.len() < 2 {
                    let status = call!(self, device_open(0, 0, ptr::null(), &mut out));
                    self.keep(status, out);
                    self.devices.extend((status == plugin::STATUS_OK).then_some(out));
                }
            }
            Call::Info { index } => {
                let mut info = DeviceInfo::sized();
                let _ = call!(self, device_info(index, 0, ptr::null(), &mut info));
            }
            Call::Close { device } => {
                let device = self.handle(device);
                self.devices.retain(|open| *open != device);
                // SAFETY: closing what is not open has to be harmless.
                unsafe { TABLE.device_close.expect("it is there")(device) };
            }
            Call::Alloc { device, kind, length } => {
                let device = self.handle(device);
                // Absurd sizes must be refused; large ones that fit would only fill this machine.
                let length = length.get();
                if !((16 << 20)..(8 << 30)).contains(&length) {
                    let mut pointer = ptr::null_mut();
                    let status =
                        call!(self, memory_alloc(device, kind.into(), length, &mut out, &mut pointer));
                    self.keep(status, out);
                }
            }
            Call::Free { device, memory } => {
                let (device, memory) = (self.handle(device), self.handle(memory));
                // SAFETY: giving back what never was, or twice, has to be harmless.
                unsafe { TABLE.memory_free.expect("it is there")(device, memory) };
            }
            Call::CreateStream { device } => {
                let device = self.handle(device);
                let status = call!(self, stream_create(device, &mut out));
                self.keep(status, out);
            }
            Call::DestroyStream { stream } => {
                let stream = self.handle(stream);
                // SAFETY: as in `Free`.
                unsafe { TABLE.stream_destroy.expect("it is there")(stream) };
            }
            Call::Write { stream, memory, offset, length } => {
                let (stream, memory) = (self.handle(stream), self.handle(memory));
                let _ = call!(
                    self,
                    stream_write(stream, memory, offset.get(), host.as_ptr().cast(), length.into())
                );
            }
            Call::Read { stream, memory, offset, length } => {
                let (stream, memory) = (self.handle(stream), self.handle(memory));
                let _ = call!(
                    self,
                    stream_read(stream, host.as_mut_ptr().cast(), memory, offset.get(), length.into())
                );
            }
            Call::Copy { stream, dst, dst_offset, src, src_offset, length } => {
                let (stream, dst, src) = (self.handle(stream), self.handle(dst), self.handle(src));
                let _ = call!(
                    self,
                    stream_copy(stream, dst, dst_offset.get(), src, src_offset.get(), length.get())
                );
            }
            Call::Fill { stream, memory, offset, length, ref pattern, pattern_length } => {
                let (stream, memory) = (self.handle(stream), self.handle(memory));
                let count = u32::from(pattern_length % 9);
                let _ = call!(
                    self,
                    stream_fill(stream, memory, offset.get(), length.get(), pattern.as_ptr(), count)
                );
            }
            Call::WaitEvent { stream, event } => {
                let (stream, event) = (self.handle(stream), self.handle(event));
                let _ = call!(self, stream_wait_event(stream, event));
            }
            Call::Synchronize { stream, timeout } => {
                let stream = self.handle(stream);
                let _ = call!(self, stream_synchronize(stream, timeout.into(), &mut completion));
            }
            Call::CreateEvent { device } => {
                let device = self.handle(device);
                let status = call!(self, event_create(device, &mut out));
                self.keep(status, out);
            }
            Call::DestroyEvent { event } => {
                let event = self.handle(event);
                // SAFETY: as in `Free`.
                unsafe { TABLE.event_destroy.expect("it is there")(event) };
            }
            Call::Record { stream, event } => {
                let (stream, event) = (self.handle(stream), self.handle(event));
                let _ = call!(self, event_record(stream, event));
            }
            Call::Wait { event, timeout } => {
                let event = self.handle(event);
                let _ = call!(self, event_wait(event, timeout.into(), &mut completion));
            }
            Call::Query { event } => {
                let event = self.handle(event);
                let _ = call!(self, event_query(event, &mut completion));
            }
            Call::Elapsed { earlier, later } => {
                let (earlier, later) = (self.handle(earlier), self.handle(later));
                let _ = call!(self, event_elapsed(earlier, later, &mut out));
            }
            Call::Reset { stream } => {
                let stream = self.handle(stream);
                let _ = call!(self, stream_reset(stream));
            }
            Call::Health { device } => {
                let device = self.handle(device);
                let _ = call!(self, device_health(device));
            }
            Call::Prepare { device, name, ref operands } => self.prepare(device, name, operands),
            Call::Enqueue { stream, builtin, ref ranges } => {
                let (stream, builtin) = (self.handle(stream), self.handle(builtin));
                let ranges: Vec<_> = ranges
                    .iter()
                    .take(8)
                    .map(|(memory, offset, length)| Range {
                        memory: self.handle(*memory),
                        offset: offset.get(),
                        length: length.get(),
                        ..Range::sized()
                    })
                    .collect();
                let pointers: Vec<_> = ranges.iter().map(ptr::from_ref).collect();
                let _ =
                    call!(self, builtin_enqueue(stream, builtin, pointers.len() as u32, pointers.as_ptr()));
            }
            Call::Release { device, builtin } => {
                let (device, builtin) = (self.handle(device), self.handle(builtin));
                // SAFETY: as in `Free`.
                unsafe { TABLE.builtin_release.expect("it is there")(device, builtin) };
            }
            Call::Load { device, program, ref noise } => {
                let device = self.handle(device);
                let mut bytes = PROGRAMS[usize::from(program) % PROGRAMS.len()].clone();
                for (at, value) in noise {
                    let at = usize::from(*at) % bytes.len();
                    bytes[at] = *value;
                }
                let bytes = halite_fuzz::with_right_checksums(&bytes);
                let status =
                    call!(self, program_load(device, bytes.as_ptr().cast(), bytes.len() as u64, &mut out));
                self.keep(status, out);
            }
            Call::Unload { device, program } => {
                let (device, program) = (self.handle(device), self.handle(program));
                // SAFETY: as in `Free`.
                unsafe { TABLE.program_unload.expect("it is there")(device, program) };
            }
            Call::Find { program } => {
                let program = self.handle(program);
                let status = call!(self, kernel_find(program, c"k".as_ptr(), &mut out));
                self.keep(status, out);
            }
            Call::Launch { stream, kernel, blocks, ref arguments } => {
                let (stream, kernel) = (self.handle(stream), self.handle(kernel));
                let arguments: Vec<_> = arguments
                    .iter()
                    .take(8)
                    .map(|(is_buffer, dtype, memory, offset, length, bits)| Argument {
                        kind: if *is_buffer { ARGUMENT_BUFFER } else { ARGUMENT_SCALAR },
                        dtype: u32::from(*dtype),
                        memory: self.handle(*memory),
                        offset: offset.get(),
                        length: length.get(),
                        bits: *bits,
                        ..Argument::sized()
                    })
                    .collect();
                let pointers: Vec<_> = arguments.iter().map(ptr::from_ref).collect();
                let count = pointers.len() as u32;
                let _ =
                    call!(self, kernel_launch(stream, kernel, u32::from(blocks), count, pointers.as_ptr()));
            }
        }
    }

    fn prepare(&mut self, device: Handle, name: u8, operands: &[AnyOperand]) {
        let device = self.handle(device);
        let operands: Vec<_> = operands.iter().take(5).collect();
        let shapes: Vec<[u64; 3]> = operands.iter().map(|operand| operand.shape.map(Size::get)).collect();
        let strides: Vec<[i64; 3]> = operands.iter().map(|operand| operand.strides.map(i64::from)).collect();
        let raw: Vec<_> = (0..operands.len())
            .map(|i| Operand {
                dtype: u32::from(operands[i].dtype),
                rank: u32::from(operands[i].rank % 4),
                shape: shapes[i].as_ptr(),
                strides: strides[i].as_ptr(),
                ..Operand::sized()
            })
            .collect();
        let pointers: Vec<_> = raw.iter().map(ptr::from_ref).collect();
        let desc = BuiltinDesc {
            name: NAMES[usize::from(name) % NAMES.len()].as_ptr(),
            operand_count: pointers.len() as u32,
            operands: pointers.as_ptr(),
            ..BuiltinDesc::sized()
        };
        let (mut out, mut workspace) = (0, 0);
        let valid = call!(self, builtin_validate(device, &desc));
        let status = call!(self, builtin_prepare(device, &desc, &mut out, &mut workspace));
        assert!(
            valid != plugin::STATUS_OK || status != plugin::STATUS_UNSUPPORTED,
            "what is valid can be prepared"
        );
        self.keep(status, out);
    }
}

fuzz_target!(|calls: Vec<Call>| {
    // Enqueued copies use the host's bytes, so these outlive the devices, whose closing ends all work.
    let mut host = Box::new([0x5A; 256]);
    let mut machine =
        Machine { handles: Vec::new(), devices: Vec::new(), text: [0; 128], error: Error::sized() };
    machine.run(&Call::Open, &mut host);
    for call in calls.iter().take(64) {
        machine.run(call, &mut host);
    }
    for device in std::mem::take(&mut machine.devices) {
        // SAFETY: the handle was opened by this run and not closed.
        unsafe { TABLE.device_close.expect("it is there")(device) };
    }
});
