//! What the checked handles refuse before it reaches a driver, over the null device: it accepts everything, so
//! each refusal here is the handles' own.

use halite_hal::null::{NullBackend, NullConfig, NullDevice};
use halite_hal::{
    Access, Arg, ArgType, Buffer, CommandList, CommandListBuilder, DType, Device, Error, ErrorKind, Kernel,
    KernelSource, MemoryKind, NativeKernel, Pool, PoolConfig, RecordedArg, RecordedCommand, RecordedRange,
    Result, Scalar, Signature, Stream,
};
use std::sync::Arc;

struct Bench {
    null: NullDevice,
    device: Device,
    stream: Stream,
    /// Memory of a second device of the same backend.
    foreign: Buffer,
    foreign_device: Device,
}

impl Bench {
    fn new(config: NullConfig) -> Self {
        let backend = NullBackend::new(NullConfig { devices: 2, ..config });
        let null = backend.open_null(0).unwrap();
        let device = null.device();
        let stream = device.create_stream().unwrap();
        let foreign_device = backend.open_null(1).unwrap().device();
        let foreign = foreign_device.allocate(64, MemoryKind::Device).unwrap();
        Self { null, device, stream, foreign, foreign_device }
    }

    fn buffer(&self, len: u64) -> Buffer {
        self.device.allocate(len, MemoryKind::Device).unwrap()
    }
}

impl Default for Bench {
    fn default() -> Self {
        Self::new(NullConfig::default())
    }
}

fn buffer_arg(dtype: DType, access: Access) -> ArgType {
    ArgType::Buffer { dtype, access }
}

fn kernel(device: &Device, signature: Signature) -> Kernel {
    let source = KernelSource::Native(NativeKernel::new("probe", signature, |_| Ok(())));
    device.load(&source).unwrap()
}

/// `out[i] = lhs[i] * factor`
fn scale(device: &Device) -> Kernel {
    let args = vec![
        buffer_arg(DType::F32, Access::Read),
        buffer_arg(DType::F32, Access::Write),
        ArgType::Scalar(DType::F32),
    ];
    kernel(device, Signature::new(args))
}

/// The message of a refusal; fails the test when it is no `InvalidArgument` of the first device in `call`.
#[track_caller]
fn refusal<T: std::fmt::Debug>(call: &str, result: Result<T>) -> String {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::InvalidArgument, "{error}");
    assert_eq!((error.device(), error.call()), (Some("null:0"), Some(call)), "{error}");
    error.message().to_owned()
}

#[track_caller]
fn assert_parts(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "'{part}' is missing in '{message}'");
    }
}

#[test]
fn a_launch_that_fits_is_accepted() {
    let bench = Bench::default();
    let (lhs, out) = (bench.buffer(64), bench.buffer(64));
    let args = [lhs.all().into(), out.all().into(), Scalar::F32(2.0).into()];
    bench.stream.launch(&scale(&bench.device), [1, 1, 1], &args).unwrap();
    // An empty grid is checked all the same, then does nothing.
    bench.stream.launch(&scale(&bench.device), [0, 1, 1], &args).unwrap();
    refusal("stream.launch", bench.stream.launch(&scale(&bench.device), [0, 1, 1], &args[..2]));
}

#[test]
fn launches_refuse_wrong_argument_counts_and_types() {
    let bench = Bench::default();
    let kernel = scale(&bench.device);
    let (lhs, out) = (bench.buffer(64), bench.buffer(64));
    let [lhs, out, foreign] = [&lhs, &out, &bench.foreign].map(|buffer| Arg::from(buffer.all()));
    let factor = Arg::from(Scalar::F32(2.0));
    let odd = bench.buffer(6);
    let cases: [(&[Arg], &[&str]); 6] = [
        (&[], &["'probe'", "takes 3 arguments, got 0"]),
        (&[lhs.clone(), out.clone(), factor.clone(), factor.clone()], &["takes 3 arguments, got 4"]),
        (&[factor.clone(), out.clone(), factor.clone()], &["argument 0", "buffer of f32", "got a scalar"]),
        (&[lhs.clone(), out.clone(), lhs.clone()], &["argument 2", "scalar of f32", "got a buffer"]),
        (&[lhs.clone(), out.clone(), Scalar::F64(2.0).into()], &["argument 2", "must be f32, got f64"]),
        (&[odd.all().into(), out.clone(), factor.clone()], &["argument 0", "6 bytes", "f32"]),
    ];
    for (args, parts) in cases {
        assert_parts(&refusal("stream.launch", bench.stream.launch(&kernel, [1, 1, 1], args)), parts);
    }
    let message = refusal("stream.launch", bench.stream.launch(&kernel, [1, 1, 1], &[foreign, out, factor]));
    assert_parts(&message, &["argument 0", "lies on null:1", "copy it to null:0"]);
}

#[test]
fn launches_refuse_kernels_of_another_device() {
    let bench = Bench::default();
    let foreign = kernel(&bench.foreign_device, Signature::default());
    let message = refusal("stream.launch", bench.stream.launch(&foreign, [1, 1, 1], &[]));
    assert_parts(&message, &["'probe'", "null:1", "load it on this device"]);
}

#[test]
fn buffer_offsets_follow_the_dtype_and_the_device() {
    for (device_alignment, dtype, expected) in
        [(1, DType::U8, 1), (1, DType::F32, 4), (1, DType::F64, 8), (16, DType::U8, 16), (2, DType::F64, 8)]
    {
        let bench =
            Bench::new(NullConfig { offset_alignment_bytes: device_alignment, ..NullConfig::default() });
        let kernel = kernel(&bench.device, Signature::new(vec![buffer_arg(dtype, Access::Read)]));
        let memory = bench.buffer(256);
        for offset in 0..=32 {
            let arg = memory.slice(offset, 64).unwrap();
            let result = bench.stream.launch(&kernel, [1, 1, 1], &[arg.into()]);
            if offset % expected == 0 {
                result.unwrap();
            } else {
                let message = refusal("stream.launch", result);
                assert_parts(&message, &[&format!("byte {offset}"), &format!("multiples of {expected}")]);
            }
        }
        // No address is taken of an empty range.
        let empty = memory.slice(3, 0).unwrap();
        bench.stream.launch(&kernel, [1, 1, 1], &[empty.into()]).unwrap();
    }
}

#[test]
fn written_arguments_may_not_overlap_others() {
    use Access::{Read, ReadWrite, Write};
    let bench = Bench::default();
    let memory = bench.buffer(64);
    let range = |start: u64, end: u64| memory.slice(start, end - start).unwrap();
    let cases = [
        (Read, (0, 32), Read, (0, 32), true),
        (Read, (0, 32), Write, (32, 64), true),
        (Read, (0, 32), Write, (28, 60), false),
        (Write, (0, 32), Read, (0, 32), false),
        (ReadWrite, (0, 32), Read, (16, 20), false),
        (Write, (0, 32), Write, (16, 48), false),
        (Write, (0, 32), Read, (16, 16), true),
    ];
    for (first, (a, b), second, (c, d), is_allowed) in cases {
        let types = vec![buffer_arg(DType::F32, first), buffer_arg(DType::F32, second)];
        let args = [range(a, b).into(), range(c, d).into()];
        let checked = kernel(&bench.device, Signature::new(types.clone()));
        let result = bench.stream.launch(&checked, [1, 1, 1], &args);
        let case = format!("{first:?} {a}..{b}, {second:?} {c}..{d}");
        if is_allowed {
            result.unwrap_or_else(|error| panic!("{case}: {error}"));
        } else {
            assert_parts(&refusal("stream.launch", result), &["overlaps argument", "memory of its own"]);
        }
        let in_place = Signature { in_place: true, ..Signature::new(types) };
        let result = bench.stream.launch(&kernel(&bench.device, in_place), [1, 1, 1], &args);
        // In place means the very range of an argument that is only read.
        let is_update = (a, b) == (c, d) && [first, second].contains(&Read);
        assert_eq!(result.is_ok(), is_allowed || is_update, "in place: {case}");
    }
}

#[test]
fn grids_stay_within_the_kernel_and_the_device() {
    let bench = Bench::new(NullConfig { max_grid: [100, 10, 1], ..NullConfig::default() });
    let bounded = |max_grid| kernel(&bench.device, Signature { max_grid, ..Signature::default() });
    let cases = [
        (None, [100, 10, 1], None),
        (None, [101, 1, 1], Some((0, 101, 100))),
        (None, [1, 1, 2], Some((2, 2, 1))),
        (Some([50, 50, 50]), [51, 1, 1], Some((0, 51, 50))),
        (Some([50, 50, 50]), [1, 11, 1], Some((1, 11, 10))),
    ];
    for (max_grid, grid, refused) in cases {
        let result = bench.stream.launch(&bounded(max_grid), grid, &[]);
        match refused {
            None => result.unwrap(),
            Some((axis, got, limit)) => assert_parts(
                &refusal("stream.launch", result),
                &[&format!("{got} workgroups on axis {axis}"), &format!("at most {limit} fit"), "split"],
            ),
        }
    }
}

#[test]
fn copies_refuse_overlap_other_lengths_and_other_devices() {
    let bench = Bench::default();
    let memory = bench.buffer(64);
    let range = |start: u64, len: u64| memory.slice(start, len).unwrap();
    let copy = |dst, src| bench.stream.copy(&dst, &src);
    copy(range(0, 32), range(32, 32)).unwrap();
    copy(range(0, 0), range(0, 0)).unwrap();
    copy(bench.buffer(32).all(), range(0, 32)).unwrap();
    for (dst, src) in [(0, 0), (0, 31), (31, 0)] {
        let message = refusal("stream.copy", copy(range(dst, 32), range(src, 32)));
        assert_parts(&message, &["overlap", "third range"]);
    }
    let message = refusal("stream.copy", copy(range(0, 8), range(32, 9)));
    assert_parts(&message, &["9 bytes", "range of 8"]);
    for (dst, src) in [(bench.foreign.all(), range(0, 64)), (range(0, 64), bench.foreign.all())] {
        assert_parts(&refusal("stream.copy", copy(dst, src)), &["null:1", "stream of that device"]);
    }
}

#[test]
fn host_copies_refuse_other_lengths_and_other_devices() {
    let bench = Bench::default();
    let (stream, memory, foreign) = (&bench.stream, bench.buffer(8).all(), bench.foreign.all());
    assert_parts(&refusal("stream.write", stream.write(&memory, vec![0; 7])), &["8 bytes", "host range 7"]);
    refusal("stream.write_blocking", stream.write_blocking(&memory, &[0; 9]));
    refusal("stream.read_blocking", stream.read_blocking(&memory, &mut [0; 9]));
    refusal("stream.write", stream.write(&foreign, vec![0; 64]));
    refusal("stream.write_blocking", stream.write_blocking(&foreign, &[0; 64]));
    refusal("stream.read_blocking", stream.read_blocking(&foreign, &mut [0; 64]));
    assert_parts(&refusal("stream.read", stream.read(&foreign).map(drop)), &["null:1"]);
    stream.write(&memory.slice(8, 0).unwrap(), Vec::new()).unwrap();
}

#[test]
fn fills_take_patterns_of_one_two_four_or_eight_bytes_that_divide_the_range() {
    let bench = Bench::default();
    let memory = bench.buffer(64);
    for len in 0..=9usize {
        let result = bench.stream.fill(&memory.all(), &vec![0xa5; len]);
        if [1, 2, 4, 8].contains(&len) {
            result.unwrap();
        } else {
            assert_parts(&refusal("stream.fill", result), &["1, 2, 4 or 8", &format!("got {len}")]);
        }
    }
    let fill = |offset, len| bench.stream.fill(&memory.slice(offset, len).unwrap(), &[0; 4]);
    fill(60, 4).unwrap();
    fill(0, 0).unwrap();
    assert_parts(&refusal("stream.fill", fill(0, 6)), &["4 bytes", "6 bytes at offset 0"]);
    assert_parts(&refusal("stream.fill", fill(2, 4)), &["offset 2"]);
    refusal("stream.fill", bench.stream.fill(&bench.foreign.all(), &[0]));
}

#[test]
fn events_of_other_devices_are_refused() {
    let bench = Bench::default();
    let own = bench.stream.record().unwrap();
    let foreign = bench.foreign_device.create_stream().unwrap().record().unwrap();
    bench.stream.wait(&own).unwrap();
    assert_parts(&refusal("stream.wait", bench.stream.wait(&foreign)), &["null:1", "on the host"]);
    assert_parts(&refusal("event.elapsed_since", own.elapsed_since(&foreign)), &["null:1", "clock"]);
}

#[test]
fn refused_arguments_do_not_poison() {
    let bench = Bench::default();
    let memory = bench.buffer(8);
    refusal("stream.fill", bench.stream.fill(&memory.all(), &[]));
    bench.stream.fill(&memory.all(), &[1]).unwrap();
    bench.stream.synchronize().unwrap();
    assert!(bench.stream.record().unwrap().is_done().unwrap());
}

#[test]
fn load_refuses_formats_and_features_that_the_device_lacks() {
    let config = NullConfig {
        kernel_formats: vec!["cubin".into(), "builtin".into()],
        features: vec!["tensor-cores".into()],
        ..NullConfig::default()
    };
    let bench = Bench::new(config);
    let source = |format, requires: &[&str]| KernelSource::Binary {
        format,
        bytes: Arc::from([0u8; 4].as_slice()),
        entry: "matmul_f16_wmma".into(),
        workgroup: [1, 1, 1],
        signature: Signature::default(),
        requires: requires.iter().copied().map(String::from).collect(),
    };
    bench.device.load(&source("cubin", &["tensor-cores"])).unwrap();
    let refused = |source: &KernelSource| -> Error {
        let error = bench.device.load(source).unwrap_err();
        assert_eq!((error.kind(), error.call()), (&ErrorKind::Unsupported, Some("device.load")));
        error
    };
    let error = refused(&source("npu-program", &[]));
    assert_parts(error.message(), &["matmul_f16_wmma", "npu-program", "takes cubin, builtin"]);
    let error = refused(&source("cubin", &["tensor-cores", "fp8"]));
    assert_parts(error.message(), &["requires the feature fp8", "another variant"]);
    refused(&KernelSource::Native(NativeKernel::new("probe", Signature::default(), |_| Ok(()))));
}

fn slot(slot: usize, offset: u64, len: u64) -> RecordedRange {
    RecordedRange::Slot { slot, offset, len }
}

fn record(device: &Device, commands: Vec<RecordedCommand>) -> Result<CommandList> {
    let mut builder = CommandListBuilder::new();
    assert!(builder.is_empty());
    let count = commands.len();
    commands.into_iter().for_each(|command| builder.push(command));
    assert_eq!(builder.len(), count);
    device.finish(builder)
}

/// Copies slot 0 to slot 1, then scales slot 1 into fixed memory by a scalar slot.
fn copy_and_scale(bench: &Bench, fixed: &Buffer) -> CommandList {
    let launch = RecordedCommand::Launch {
        kernel: scale(&bench.device),
        grid: [1, 1, 1],
        args: vec![
            RecordedArg::Buffer(slot(1, 0, 32)),
            RecordedArg::Buffer(RecordedRange::Fixed(fixed.all())),
            RecordedArg::ScalarSlot(0),
        ],
    };
    let copy = RecordedCommand::Copy { dst: slot(1, 0, 32), src: slot(0, 16, 32) };
    record(&bench.device, vec![copy, launch]).unwrap()
}

#[test]
fn replays_refuse_bindings_that_do_not_fit_the_slots() {
    let bench = Bench::default();
    let (fixed, src, dst) = (bench.buffer(32), bench.buffer(48), bench.buffer(32));
    let list = copy_and_scale(&bench, &fixed);
    assert_eq!((list.buffer_slots(), list.scalar_slots()), ([48, 32].as_slice(), 1));
    assert_eq!(list.commands().len(), 2);
    let replay = |buffers: &[_], scalars: &[_]| bench.stream.replay(&list, buffers, scalars);
    let factor = Scalar::F32(3.0);
    replay(&[src.all(), dst.all()], &[factor]).unwrap();
    let wrong = |buffers: &[_], scalars: &[_]| refusal("stream.replay", replay(buffers, scalars));
    assert_parts(&wrong(&[src.all()], &[factor]), &["2 buffer and 1 scalar slots, got 1 and 1"]);
    assert_parts(&wrong(&[src.all(), dst.all()], &[]), &["got 2 and 0"]);
    let short = src.slice(0, 47).unwrap();
    assert_parts(&wrong(&[short, dst.all()], &[factor]), &["slot 0 needs 48 bytes", "of 47"]);
    assert_parts(&wrong(&[src.all(), bench.foreign.all()], &[factor]), &["slot 1", "null:1"]);
    assert_parts(&wrong(&[src.all(), dst.all()], &[Scalar::I32(3)]), &["must be f32, got i32"]);
    // Each is in bounds, but together they break the rules of copies and launches.
    let shared = bench.buffer(64);
    let overlapping = [shared.slice(0, 48).unwrap(), shared.slice(32, 32).unwrap()];
    assert_parts(&wrong(&overlapping, &[factor]), &["overlap"]);
    assert_parts(&wrong(&[src.all(), fixed.all()], &[factor]), &["overlaps argument"]);
    let unaligned = [src.all(), shared.slice(2, 32).unwrap()];
    assert_parts(&wrong(&unaligned, &[factor]), &["got 2", "multiple of 4 bytes"]);
}

#[test]
fn a_wrong_replay_enqueues_nothing() {
    let bench = Bench::default();
    let fixed = bench.buffer(32);
    let list = copy_and_scale(&bench, &fixed);
    let before = bench.device.memory().unwrap().buffers;
    bench.null.pause();
    let (src, dst) = (bench.buffer(48), bench.buffer(32));
    refusal("stream.replay", bench.stream.replay(&list, &[src.all(), dst.all()], &[Scalar::U32(0)]));
    drop((src, dst));
    // A paused device holds what was enqueued: here only the launch, which comes last, is wrong.
    assert_eq!(bench.device.memory().unwrap().buffers, before);
    bench.null.resume();
}

#[test]
fn lists_are_of_one_device() {
    let bench = Bench::default();
    let fill = |range| RecordedCommand::Fill { dst: range, pattern: vec![0] };
    let fixed = RecordedRange::Fixed(bench.foreign.all());
    let message = refusal("device.finish", record(&bench.device, vec![fill(slot(0, 0, 1)), fill(fixed)]));
    assert_parts(&message, &["command 1", "null:1"]);
    let foreign_kernel = kernel(&bench.foreign_device, Signature::default());
    let launch = RecordedCommand::Launch { kernel: foreign_kernel, grid: [1, 1, 1], args: Vec::new() };
    assert_parts(&refusal("device.finish", record(&bench.device, vec![launch])), &["command 0", "null:1"]);
    let list = record(&bench.foreign_device, vec![fill(slot(0, 0, 1))]).unwrap();
    let binding = bench.foreign.all();
    let message = refusal("stream.replay", bench.stream.replay(&list, &[binding], &[]));
    assert_parts(&message, &["recorded for null:1"]);
}

#[test]
fn objects_of_another_opening_of_the_same_device_are_refused() {
    let bench = Bench::default();
    // The null backend opens anew each time, so the name is the same and the memory is not.
    let other = NullBackend::new(NullConfig::default()).open_null(0).unwrap().device();
    assert_eq!(other.id(), bench.device.id());
    let (own, theirs) = (bench.buffer(64).all(), other.allocate(64, MemoryKind::Device).unwrap().all());
    let stream = &bench.stream;
    let named = |call, result| assert_parts(&refusal(call, result), &["another opening of null:0"]);
    named("stream.write", stream.write(&theirs, vec![0; 64]));
    named("stream.write_blocking", stream.write_blocking(&theirs, &[0; 64]));
    named("stream.read", stream.read(&theirs).map(drop));
    named("stream.read_blocking", stream.read_blocking(&theirs, &mut [0; 64]));
    named("stream.copy", stream.copy(&own, &theirs));
    named("stream.copy", stream.copy(&theirs, &own));
    named("stream.fill", stream.fill(&theirs, &[0]));

    let read = || Signature::new(vec![buffer_arg(DType::F32, Access::Read)]);
    let (kernel, foreign_kernel) = (kernel(&bench.device, read()), kernel(&other, read()));
    named("stream.launch", stream.launch(&kernel, [1, 1, 1], &[theirs.clone().into()]));
    named("stream.launch", stream.launch(&foreign_kernel, [1, 1, 1], &[own.clone().into()]));

    let event = other.create_stream().unwrap().record().unwrap();
    named("stream.wait", stream.wait(&event));
    named("event.elapsed_since", stream.record().unwrap().elapsed_since(&event).map(drop));

    let fill = |dst| RecordedCommand::Fill { dst, pattern: vec![0] };
    let launch = RecordedCommand::Launch { kernel: foreign_kernel, grid: [1, 1, 1], args: Vec::new() };
    for command in [fill(RecordedRange::Fixed(theirs.clone())), launch] {
        named("device.finish", record(&bench.device, vec![command]).map(drop));
    }
    let list = record(&bench.device, vec![fill(slot(0, 0, 1))]).unwrap();
    named("stream.replay", stream.replay(&list, std::slice::from_ref(&theirs), &[]));
    let foreign_list = record(&other, vec![fill(slot(0, 0, 1))]).unwrap();
    named("stream.replay", stream.replay(&foreign_list, &[own], &[]));

    let pool = Pool::new(bench.device.clone(), MemoryKind::Device, PoolConfig::default());
    named("pool.allocate", pool.allocate(&other.create_stream().unwrap(), 8).map(drop));
}

#[test]
fn handles_to_one_opening_share_its_objects() {
    let bench = Bench::default();
    let again = bench.null.device();
    bench.stream.fill(&again.allocate(8, MemoryKind::Device).unwrap().all(), &[0]).unwrap();
    bench.stream.launch(&kernel(&again, Signature::default()), [1, 1, 1], &[]).unwrap();
    bench.stream.wait(&again.create_stream().unwrap().record().unwrap()).unwrap();
}

#[test]
fn slots_beyond_reason_are_refused_instead_of_taking_memory() {
    let bench = Bench::default();
    for number in [1 << 16, usize::MAX] {
        let fill = RecordedCommand::Fill { dst: slot(number, 0, 1), pattern: vec![0] };
        let message = refusal("device.finish", record(&bench.device, vec![fill]));
        assert_parts(&message, &["command 0", &format!("slot {number}")]);
        let launch = RecordedCommand::Launch {
            kernel: kernel(&bench.device, Signature::default()),
            grid: [1, 1, 1],
            args: vec![RecordedArg::ScalarSlot(number)],
        };
        let message = refusal("device.finish", record(&bench.device, vec![launch]));
        assert_parts(&message, &["command 0", &format!("slot {number}")]);
    }
    let beyond = RecordedCommand::Fill { dst: slot(0, u64::MAX, 1), pattern: vec![0] };
    assert_parts(&refusal("device.finish", record(&bench.device, vec![beyond])), &["64-bit"]);
}

#[test]
fn recorded_fills_take_patterns_that_divide_offset_and_length() {
    let bench = Bench::default();
    let fill = |range| record(&bench.device, vec![RecordedCommand::Fill { dst: range, pattern: vec![0; 4] }]);
    fill(slot(0, 4, 8)).unwrap();
    assert_parts(&refusal("device.finish", fill(slot(0, 0, 6))), &["pattern of 4 bytes", "range of 6"]);
    assert_parts(&refusal("device.finish", fill(slot(0, 2, 8))), &["pattern of 4 bytes", "got 2"]);
    let memory = bench.buffer(64);
    for (offset, len) in [(0, 7), (1, 4)] {
        let range = RecordedRange::Fixed(memory.slice(offset, len).unwrap());
        refusal("device.finish", fill(range));
    }
}

#[test]
fn an_empty_list_replays_nothing() {
    let bench = Bench::default();
    let list = record(&bench.device, Vec::new()).unwrap();
    bench.stream.replay(&list, &[], &[]).unwrap();
    refusal("stream.replay", bench.stream.replay(&list, &[bench.buffer(1).all()], &[]));
}
