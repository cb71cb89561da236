//! The exported functions. They read and write the host's pointers with the helpers of `pointers.rs`, and no panic leaves.
//!
//! What a host passes is what `halite_plugin.h` promises: pointers that are valid during the call, structures that begin
//! with their size, text that ends with a zero byte, arrays of as many pointers as their count says. Every safety comment
//! below that names *the interface* means this.

use crate::builtin::{Builtin, Operand};
use crate::device::{self, Device};
use crate::failure::{Failure, Result};
use crate::handles::Table;
use crate::machine::Arg;
use crate::options::Options;
use crate::pointers::{give_back, guard, pointers, put, put_struct, read_struct, read_structs, text};
use crate::queue::{Command, Event, HostMemory, Progress, Stream};
use halite_hal::plugin::{
    self, Argument, ArgumentInfo, Attribute, BuiltinDesc, Completion, Counter, DeviceInfo, Error, Host,
    KernelInfo, MemoryInfo, NO_TIMEOUT, OpenOption, Plugin, Range, Status,
};
use halite_npu_isa::{ArgType, Program};
use std::ffi::{c_char, c_void};
use std::ptr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

static DEVICES: Table<Device> = Table::new("device");
static STREAMS: Table<Stream> = Table::new("stream");
static EVENTS: Table<Event> = Table::new("event");
static BUILTINS: Table<Builtin> = Table::new("built-in");
static PROGRAMS: Table<LoadedProgram> = Table::new("program");
static KERNELS: Table<LoadedKernel> = Table::new("kernel");

struct LoadedProgram {
    program: Arc<Program>,
    /// Handles of the program's kernels, which end with it.
    kernels: Vec<u64>,
}

struct LoadedKernel {
    program: Arc<Program>,
    name: Arc<str>,
    args: Vec<ArgType>,
}

static TABLE: LazyLock<Plugin> = LazyLock::new(|| {
    let mut table = Plugin::sized();
    table.abi_major = plugin::ABI_MAJOR;
    table.abi_minor = plugin::ABI_MINOR;
    table.features = plugin::FEATURE_BUILTINS | plugin::FEATURE_PROGRAMS;
    plugin::set_fixed_text(&mut table.name, "Halite NPU emulator");
    plugin::set_fixed_text(&mut table.version, env!("CARGO_PKG_VERSION"));
    table.device_count = Some(device_count);
    table.device_info = Some(device_info);
    table.device_open = Some(device_open);
    table.device_close = Some(device_close);
    table.memory_alloc = Some(memory_alloc);
    table.memory_free = Some(memory_free);
    table.memory_info = Some(memory_info);
    table.stream_create = Some(stream_create);
    table.stream_destroy = Some(stream_destroy);
    table.stream_write = Some(stream_write);
    table.stream_read = Some(stream_read);
    table.stream_copy = Some(stream_copy);
    table.stream_fill = Some(stream_fill);
    table.stream_wait_event = Some(stream_wait_event);
    table.stream_synchronize = Some(stream_synchronize);
    table.event_create = Some(event_create);
    table.event_destroy = Some(event_destroy);
    table.event_record = Some(event_record);
    table.event_wait = Some(event_wait);
    table.event_query = Some(event_query);
    table.event_elapsed = Some(event_elapsed);
    table.stream_reset = Some(stream_reset);
    table.device_health = Some(device_health);
    table.device_counters = Some(device_counters);
    table.get_extension = Some(get_extension);
    table.builtin_validate = Some(builtin_validate);
    table.builtin_prepare = Some(builtin_prepare);
    table.builtin_release = Some(builtin_release);
    table.builtin_enqueue = Some(builtin_enqueue);
    table.program_load = Some(program_load);
    table.program_unload = Some(program_unload);
    table.kernel_find = Some(kernel_find);
    table.kernel_launch = Some(kernel_launch);
    table.kernel_info = Some(kernel_info);
    table.kernel_argument = Some(kernel_argument);
    table.peer_enable = Some(peer_enable);
    table.stream_copy_peer = Some(stream_copy_peer);
    table
});

/// The plugin's one exported function; see `halite_plugin.h`.
///
/// # Safety
/// The pointers are what the header says: `host` is a host structure, `out` and `error` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn halite_plugin_entry(
    host: *const Host,
    out: *mut *const Plugin,
    error: *mut Error,
) -> Status {
    // SAFETY: `error` is the interface's; so are the pointers inside.
    unsafe {
        guard(error, || {
            // Size and version are the part of a host structure that no version changes.
            if host.is_null() || (*host).struct_size < 16 {
                return Err(Failure::invalid("the host gives no version of the interface"));
            }
            let (major, minor) = ((*host).abi_major, (*host).abi_minor);
            if major != plugin::ABI_MAJOR {
                let text = format!(
                    "the emulator speaks interface version {}.{}, the host {major}.{minor}",
                    plugin::ABI_MAJOR,
                    plugin::ABI_MINOR
                );
                return Err(Failure::new(plugin::STATUS_ABI_MISMATCH, text));
            }
            put(out, ptr::from_ref::<Plugin>(&TABLE))
        })
    }
}

/// # Safety
/// `options` holds `count` pointers to options, or `count` is 0.
unsafe fn read_options(count: u32, options: *const *const OpenOption) -> Result<Options> {
    // SAFETY: by this function's contract; key and value are text.
    unsafe {
        let raw = read_structs(options, count, OpenOption::sized())?;
        let pairs: Vec<_> =
            raw.iter().map(|option| Ok((text(option.key)?, text(option.value)?))).collect::<Result<_>>()?;
        Options::parse(pairs)
    }
}

fn check_index(index: u32) -> Result<()> {
    if index == 0 {
        Ok(())
    } else {
        Err(Failure::invalid(format!("device {index} asked for, there is device 0")))
    }
}

unsafe extern "C" fn device_count(out: *mut u32, error: *mut Error) -> Status {
    // SAFETY: the pointers are the interface's.
    unsafe { guard(error, || put(out, 1)) }
}

unsafe extern "C" fn device_info(
    index: u32,
    option_count: u32,
    options: *const *const OpenOption,
    out: *mut DeviceInfo,
    error: *mut Error,
) -> Status {
    // SAFETY: the pointers are the interface's.
    unsafe {
        guard(error, || {
            check_index(index)?;
            put_struct(out, &device::describe(&read_options(option_count, options)?))
        })
    }
}

unsafe extern "C" fn device_open(
    index: u32,
    option_count: u32,
    options: *const *const OpenOption,
    out: *mut u64,
    error: *mut Error,
) -> Status {
    // SAFETY: the pointers are the interface's.
    unsafe {
        guard(error, || {
            check_index(index)?;
            put(out, DEVICES.insert(Device::open(read_options(option_count, options)?)?))
        })
    }
}

unsafe extern "C" fn device_close(device: u64) {
    give_back(|| {
        if let Some(device) = DEVICES.remove(device) {
            device.close();
        }
    });
}

unsafe extern "C" fn memory_alloc(
    device: u64,
    kind: u32,
    length: u64,
    out: *mut u64,
    host_pointer: *mut *mut c_void,
    error: *mut Error,
) -> Status {
    // SAFETY: the pointers are the interface's.
    unsafe {
        guard(error, || {
            put(host_pointer, ptr::null_mut())?;
            put(out, DEVICES.find(device)?.allocate(kind, length)?)
        })
    }
}

unsafe extern "C" fn memory_free(device: u64, memory: u64) {
    give_back(|| {
        if let Ok(device) = DEVICES.find(device) {
            device.free(memory);
        }
    });
}

unsafe extern "C" fn memory_info(device: u64, out: *mut MemoryInfo, error: *mut Error) -> Status {
    // SAFETY: the pointers are the interface's.
    unsafe {
        guard(error, || {
            let device = DEVICES.find(device)?;
            device.check()?;
            put_struct(out, &device.memory_info())
        })
    }
}

unsafe extern "C" fn stream_create(device: u64, out: *mut u64, error: *mut Error) -> Status {
    // SAFETY: the pointers are the interface's.
    unsafe {
        guard(error, || {
            let device = DEVICES.find(device)?;
            put(out, STREAMS.insert(device.queues.create(&device)?))
        })
    }
}

unsafe extern "C" fn stream_destroy(stream: u64) {
    give_back(|| {
        if let Some(stream) = STREAMS.remove(stream) {
            stream.device.queues.abandon(&stream);
        }
    });
}

fn enqueue(stream: u64, command: impl FnOnce(&Device) -> Result<Command>) -> Result<()> {
    let stream = STREAMS.find(stream)?;
    let command = command(&stream.device)?;
    stream.device.queues.enqueue(&stream, command)
}

unsafe extern "C" fn stream_write(
    stream: u64,
    dst: u64,
    dst_offset: u64,
    src: *const c_void,
    length: u64,
    error: *mut Error,
) -> Status {
    // SAFETY: the pointers are the interface's, which keeps `src` alive and unchanged until the copy is over.
    unsafe {
        guard(error, || {
            let src = host_memory(src.cast_mut(), length)?;
            enqueue(stream, |device| {
                Ok(Command::Write { dst: device.address(dst, dst_offset, length)?, src })
            })
        })
    }
}

unsafe extern "C" fn stream_read(
    stream: u64,
    dst: *mut c_void,
    src: u64,
    src_offset: u64,
    length: u64,
    error: *mut Error,
) -> Status {
    // SAFETY: the pointers are the interface's, which leaves `dst` to this copy until it is over.
    unsafe {
        guard(error, || {
            let dst = host_memory(dst, length)?;
            enqueue(stream, |device| Ok(Command::Read { dst, src: device.address(src, src_offset, length)? }))
        })
    }
}

/// # Safety
/// As [`HostMemory::new`], unless `pointer` is null.
unsafe fn host_memory(pointer: *mut c_void, length: u64) -> Result<HostMemory> {
    match usize::try_from(length) {
        // SAFETY: by this function's contract.
        Ok(length) if !pointer.is_null() => Ok(unsafe { HostMemory::new(pointer.cast(), length) }),
        _ => Err(Failure::invalid("the host's side of a copy is null or longer than memory")),
    }
}

unsafe extern "C" fn stream_copy(
    stream: u64,
    dst: u64,
    dst_offset: u64,
    src: u64,
    src_offset: u64,
    length: u64,
    error: *mut Error,
) -> Status {
    // SAFETY: `error` is the interface's.
    unsafe {
        guard(error, || {
            enqueue(stream, |device| {
                let dst = device.address(dst, dst_offset, length)?;
                let src = device.address(src, src_offset, length)?;
                Ok(Command::Copy { dst, src, len: length })
            })
        })
    }
}

unsafe extern "C" fn stream_fill(
    stream: u64,
    dst: u64,
    dst_offset: u64,
    length: u64,
    pattern: *const u8,
    pattern_length: u32,
    error: *mut Error,
) -> Status {
    // SAFETY: the pointers are the interface's.
    unsafe {
        guard(error, || {
            let pattern = pointers(pattern, pattern_length)?.to_vec();
            if !matches!(pattern.len(), 1 | 2 | 4 | 8) || !length.is_multiple_of(u64::from(pattern_length)) {
                return Err(Failure::invalid(format!(
                    "a pattern of {pattern_length} bytes does not divide {length} bytes"
                )));
            }
            enqueue(stream, |device| {
                Ok(Command::Fill { dst: device.address(dst, dst_offset, length)?, len: length, pattern })
            })
        })
    }
}

unsafe extern "C" fn stream_wait_event(stream: u64, event: u64, error: *mut Error) -> Status {
    // SAFETY: `error` is the interface's.
    unsafe {
        guard(error, || {
            let event = EVENTS.find(event)?;
            enqueue(stream, |device| {
                if ptr::eq(device, &*event.device) || device.has_peer(&event.device) {
                    Ok(Command::Wait(event))
                } else {
                    Err(Failure::invalid("the event is of another device, which is no enabled peer"))
                }
            })
        })
    }
}

/// Tells where work stands; its failure is the completion's, with the text in `error`.
///
/// # Safety
/// The pointers are the interface's.
unsafe fn put_completion(out: *mut Completion, error: *mut Error, progress: &Progress) -> Result<()> {
    let mut completion = Completion::sized();
    match progress {
        Progress::Pending => completion.state = plugin::COMPLETION_PENDING,
        // Nothing was enqueued before an event that was never recorded.
        Progress::Created | Progress::Done(_) => completion.state = plugin::COMPLETION_DONE,
        Progress::Failed(failure) => {
            completion.state = plugin::COMPLETION_FAILED;
            completion.status = failure.status;
            // SAFETY: by this function's contract.
            unsafe { failure.report(error) };
        }
    }
    // SAFETY: by this function's contract.
    unsafe { put_struct(out, &completion) }
}

fn limit(timeout_ns: u64) -> Option<Duration> {
    (timeout_ns != NO_TIMEOUT).then(|| Duration::from_nanos(timeout_ns))
}

unsafe extern "C" fn stream_synchronize(
    stream: u64,
    timeout_ns: u64,
    out: *mut Completion,
    error: *mut Error,
) -> Status {
    // SAFETY: the pointers are the interface's.
    unsafe {
        guard(error, || {
            let stream = STREAMS.find(stream)?;
            let progress = stream.device.queues.synchronize(&stream, limit(timeout_ns))?;
            put_completion(out, error, &progress)
        })
    }
}

unsafe extern "C" fn event_create(device: u64, out: *mut u64, error: *mut Error) -> Status {
    // SAFETY: the pointers are the interface's.
    unsafe {
        guard(error, || {
            let device = DEVICES.find(device)?;
            device.check()?;
            put(out, EVENTS.insert(Arc::new(Event::new(device))))
        })
    }
}

unsafe extern "C" fn event_destroy(event: u64) {
    give_back(|| drop(EVENTS.remove(event)));
}

unsafe extern "C" fn event_record(stream: u64, event: u64, error: *mut Error) -> Status {
    // SAFETY: `error` is the interface's.
    unsafe {
        guard(error, || {
            let event = EVENTS.find(event)?;
            enqueue(stream, |_| Ok(Command::Record(event)))
        })
    }
}

unsafe extern "C" fn event_wait(
    event: u64,
    timeout_ns: u64,
    out: *mut Completion,
    error: *mut Error,
) -> Status {
    // SAFETY: the pointers are the interface's.
    unsafe {
        guard(error, || {
            let event = EVENTS.find(event)?;
            let progress = event.device.queues.wait(&event, limit(timeout_ns))?;
            put_completion(out, error, &progress)
        })
    }
}

unsafe extern "C" fn event_query(event: u64, out: *mut Completion, error: *mut Error) -> Status {
    // SAFETY: the pointers are the interface's.
    unsafe { guard(error, || put_completion(out, error, &EVENTS.find(event)?.progress())) }
}

unsafe extern "C" fn event_elapsed(
    earlier: u64,
    later: u64,
    nanoseconds: *mut u64,
    error: *mut Error,
) -> Status {
    // SAFETY: the pointers are the interface's.
    unsafe {
        guard(error, || {
            let progress = [EVENTS.find(earlier)?.progress(), EVENTS.find(later)?.progress()];
            let [Progress::Done(earlier), Progress::Done(later)] = progress else {
                return Err(Failure::invalid("both events must be done"));
            };
            let elapsed = later.saturating_duration_since(earlier).as_nanos();
            put(nanoseconds, u64::try_from(elapsed).unwrap_or(u64::MAX))
        })
    }
}

unsafe extern "C" fn stream_reset(stream: u64, error: *mut Error) -> Status {
    // SAFETY: `error` is the interface's.
    unsafe {
        guard(error, || {
            let stream = STREAMS.find(stream)?;
            stream.device.queues.reset(&stream)
        })
    }
}

unsafe extern "C" fn device_health(device: u64, error: *mut Error) -> Status {
    // SAFETY: `error` is the interface's.
    unsafe { guard(error, || DEVICES.find(device)?.check()) }
}

unsafe extern "C" fn device_counters(
    device: u64,
    capacity: u32,
    out: *const *mut Counter,
    count: *mut u32,
    error: *mut Error,
) -> Status {
    // SAFETY: the pointers are the interface's: `out` holds `capacity` pointers to counters.
    unsafe {
        guard(error, || {
            let counters = DEVICES.find(device)?.counters();
            for ((key, unit, value), out) in counters.iter().zip(pointers(out, capacity)?) {
                let mut counter = Counter::sized();
                plugin::set_fixed_text(&mut counter.key, key);
                plugin::set_fixed_text(&mut counter.unit, unit);
                counter.value = *value;
                put_struct(*out, &counter)?;
            }
            put(count, counters.len() as u32)
        })
    }
}

unsafe extern "C" fn get_extension(_name: *const c_char) -> *const c_void {
    ptr::null()
}

/// # Safety
/// `desc` is null or a description of the interface.
unsafe fn read_builtin(desc: *const BuiltinDesc) -> Result<Builtin> {
    // SAFETY: by this function's contract; the pointers inside are the interface's too.
    unsafe {
        let desc = read_struct(desc, BuiltinDesc::sized())?;
        let raw = read_structs(desc.operands, desc.operand_count, plugin::Operand::sized())?;
        let operands = raw.iter().map(|raw| {
            let dtype = plugin::dtype_from_code(raw.dtype)
                .ok_or_else(|| Failure::unsupported(format!("dtype code {} is not known", raw.dtype)))?;
            let shape = pointers(raw.shape, raw.rank)?.to_vec();
            let strides = pointers(raw.strides, raw.rank)?.to_vec();
            Ok(Operand { dtype, shape, strides })
        });
        let operands = operands.collect::<Result<_>>()?;
        let raw = read_structs(desc.attributes, desc.attribute_count, Attribute::sized())?;
        let attributes: Vec<_> =
            raw.iter().map(|raw| Ok((text(raw.key)?, raw.bits))).collect::<Result<_>>()?;
        let attribute = |name: &str| attributes.iter().find(|(key, _)| *key == name).map(|(_, bits)| *bits);
        Builtin::new(text(desc.name)?, operands, attribute)
    }
}

unsafe extern "C" fn builtin_validate(device: u64, desc: *const BuiltinDesc, error: *mut Error) -> Status {
    // SAFETY: the pointers are the interface's.
    unsafe {
        guard(error, || {
            DEVICES.find(device)?.check()?;
            read_builtin(desc).map(drop)
        })
    }
}

unsafe extern "C" fn builtin_prepare(
    device: u64,
    desc: *const BuiltinDesc,
    out: *mut u64,
    workspace_bytes: *mut u64,
    error: *mut Error,
) -> Status {
    // SAFETY: the pointers are the interface's.
    unsafe {
        guard(error, || {
            DEVICES.find(device)?.check()?;
            let builtin = read_builtin(desc)?;
            put(workspace_bytes, 0)?;
            put(out, BUILTINS.insert(Arc::new(builtin)))
        })
    }
}

unsafe extern "C" fn builtin_release(_device: u64, builtin: u64) {
    give_back(|| drop(BUILTINS.remove(builtin)));
}

unsafe extern "C" fn builtin_enqueue(
    stream: u64,
    builtin: u64,
    range_count: u32,
    ranges: *const *const Range,
    error: *mut Error,
) -> Status {
    // SAFETY: the pointers are the interface's.
    unsafe {
        guard(error, || {
            let builtin = BUILTINS.find(builtin)?;
            let ranges = read_structs(ranges, range_count, Range::sized())?;
            if ranges.len() != builtin.operand_count() {
                let (expected, got) = (builtin.operand_count(), ranges.len());
                return Err(Failure::invalid(format!("the built-in takes {expected} ranges, got {got}")));
            }
            enqueue(stream, |device| {
                let address = |(index, range): (usize, &Range)| {
                    builtin.check_range(index, range.length)?;
                    device.address(range.memory, range.offset, range.length)
                };
                let addresses = ranges.iter().enumerate().map(address).collect::<Result<_>>()?;
                Ok(Command::Builtin { builtin: builtin.clone(), addresses })
            })
        })
    }
}

unsafe extern "C" fn program_load(
    device: u64,
    bytes: *const c_void,
    length: u64,
    out: *mut u64,
    error: *mut Error,
) -> Status {
    // SAFETY: the pointers are the interface's: `length` bytes at `bytes`.
    unsafe {
        guard(error, || {
            let device = DEVICES.find(device)?;
            device.check()?;
            let program = Arc::new(device.emulator.load(pointers(bytes.cast::<u8>(), length)?)?);
            let kernel = |kernel: &halite_npu_isa::Kernel| {
                KERNELS.insert(Arc::new(LoadedKernel {
                    program: program.clone(),
                    name: kernel.name().into(),
                    args: kernel.args().to_vec(),
                }))
            };
            let kernels = program.kernels().iter().map(kernel).collect();
            put(out, PROGRAMS.insert(Arc::new(LoadedProgram { program, kernels })))
        })
    }
}

unsafe extern "C" fn program_unload(_device: u64, program: u64) {
    give_back(|| {
        if let Some(program) = PROGRAMS.remove(program) {
            for kernel in &program.kernels {
                KERNELS.remove(*kernel);
            }
        }
    });
}

unsafe extern "C" fn kernel_find(
    program: u64,
    name: *const c_char,
    out: *mut u64,
    error: *mut Error,
) -> Status {
    // SAFETY: the pointers are the interface's.
    unsafe {
        guard(error, || {
            let loaded = PROGRAMS.find(program)?;
            let name = text(name)?;
            let kernels = loaded.program.kernels();
            let Some(index) = kernels.iter().position(|kernel| kernel.name() == name) else {
                let known: Vec<_> = kernels.iter().map(|kernel| kernel.name()).collect();
                let text = format!("the program has no kernel '{name}', it has: {}", known.join(", "));
                return Err(Failure::new(plugin::STATUS_UNAVAILABLE, text));
            };
            put(out, loaded.kernels[index])
        })
    }
}

unsafe extern "C" fn kernel_launch(
    stream: u64,
    kernel: u64,
    block_count: u32,
    argument_count: u32,
    arguments: *const *const Argument,
    error: *mut Error,
) -> Status {
    // SAFETY: the pointers are the interface's.
    unsafe {
        guard(error, || {
            let kernel = KERNELS.find(kernel)?;
            let raw = read_structs(arguments, argument_count, Argument::sized())?;
            if block_count == 0 {
                return Err(Failure::invalid("a launch has at least 1 block"));
            }
            if raw.len() != kernel.args.len() {
                let (expected, got) = (kernel.args.len(), raw.len());
                return Err(Failure::invalid(format!(
                    "kernel '{}' takes {expected} arguments, got {got}",
                    kernel.name
                )));
            }
            enqueue(stream, |device| {
                let args = raw.iter().zip(&kernel.args).enumerate();
                let args = args
                    .map(|(index, (raw, expected))| argument(device, &kernel.name, index, raw, *expected));
                Ok(Command::Launch {
                    program: kernel.program.clone(),
                    kernel: kernel.name.clone(),
                    blocks: block_count,
                    args: args.collect::<Result<_>>()?,
                })
            })
        })
    }
}

/// An argument in the machine's form, if it is what the signature says.
fn argument(device: &Device, kernel: &str, index: usize, raw: &Argument, expected: ArgType) -> Result<Arg> {
    let (kind, dtype) = signature(expected);
    if raw.kind != kind || (kind == plugin::ARGUMENT_SCALAR && raw.dtype != dtype) {
        return Err(Failure::invalid(format!(
            "argument {index} of kernel '{kernel}' must be {}",
            expected.name()
        )));
    }
    // Scalars come as bits, extended with zeros.
    let low = raw.bits as u32;
    Ok(match expected {
        ArgType::Buffer(_) => Arg::Buffer(device.address(raw.memory, raw.offset, raw.length)?),
        ArgType::U32 => Arg::U32(low),
        ArgType::I32 => Arg::I32(low.cast_signed()),
        ArgType::F32 => Arg::F32(f32::from_bits(low)),
        ArgType::I64 => Arg::I64(raw.bits.cast_signed()),
    })
}

/// Kind and dtype of an argument in the interface's codes.
fn signature(arg: ArgType) -> (u32, u32) {
    use halite_hal::DType;
    match arg {
        ArgType::Buffer(_) => (plugin::ARGUMENT_BUFFER, plugin::DTYPE_ANY),
        ArgType::U32 => (plugin::ARGUMENT_SCALAR, plugin::dtype_code(DType::U32)),
        ArgType::I32 => (plugin::ARGUMENT_SCALAR, plugin::dtype_code(DType::I32)),
        ArgType::F32 => (plugin::ARGUMENT_SCALAR, plugin::dtype_code(DType::F32)),
        ArgType::I64 => (plugin::ARGUMENT_SCALAR, plugin::dtype_code(DType::I64)),
    }
}

unsafe extern "C" fn kernel_info(kernel: u64, out: *mut KernelInfo, error: *mut Error) -> Status {
    // SAFETY: the pointers are the interface's.
    unsafe {
        guard(error, || {
            let mut info = KernelInfo::sized();
            info.argument_count = KERNELS.find(kernel)?.args.len() as u32;
            put_struct(out, &info)
        })
    }
}

unsafe extern "C" fn kernel_argument(
    kernel: u64,
    index: u32,
    out: *mut ArgumentInfo,
    error: *mut Error,
) -> Status {
    // SAFETY: the pointers are the interface's.
    unsafe {
        guard(error, || {
            let kernel = KERNELS.find(kernel)?;
            let Some(arg) = kernel.args.get(index as usize) else {
                let count = kernel.args.len();
                return Err(Failure::invalid(format!("argument {index} of {count} asked for")));
            };
            let mut info = ArgumentInfo::sized();
            (info.kind, info.dtype) = signature(*arg);
            if let ArgType::Buffer(access) = arg {
                info.access = match access {
                    halite_npu_isa::types::Access::Read => plugin::ACCESS_READ,
                    halite_npu_isa::types::Access::Write => plugin::ACCESS_WRITE,
                    halite_npu_isa::types::Access::ReadWrite => plugin::ACCESS_READ | plugin::ACCESS_WRITE,
                };
            }
            put_struct(out, &info)
        })
    }
}

unsafe extern "C" fn peer_enable(device: u64, peer: u64, error: *mut Error) -> Status {
    // SAFETY: `error` is the interface's.
    unsafe {
        guard(error, || {
            let (device, peer) = (DEVICES.find(device)?, DEVICES.find(peer)?);
            device.check()?;
            if Arc::ptr_eq(&device, &peer) {
                return Err(Failure::invalid("a device is no peer of its own"));
            }
            device.enable_peer(&peer);
            Ok(())
        })
    }
}

unsafe extern "C" fn stream_copy_peer(
    stream: u64,
    dst: u64,
    dst_offset: u64,
    peer: u64,
    src: u64,
    src_offset: u64,
    length: u64,
    error: *mut Error,
) -> Status {
    // SAFETY: `error` is the interface's.
    unsafe {
        guard(error, || {
            let peer = DEVICES.find(peer)?;
            enqueue(stream, |device| {
                if !device.has_peer(&peer) {
                    return Err(Failure::invalid("the source's device is no enabled peer of the stream's"));
                }
                let dst = device.address(dst, dst_offset, length)?;
                let src = peer.address(src, src_offset, length)?;
                Ok(Command::CopyPeer { dst, peer, src, len: length })
            })
        })
    }
}
