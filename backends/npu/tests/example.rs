//! The example plugin: that it builds as its README says, and that it keeps every promise of the interface.

mod common;

use common::{Folder, download, plugin, search, upload};
use halite_hal::builtin::{BuiltinKind, BuiltinOp, OperandDesc};
use halite_hal::driver::Backend as _;
use halite_hal::{DType, Device, ErrorKind, Kernel, KernelSource, MemoryKind, Result};

const MEBI: u64 = 1 << 20;

/// The example, opened; `None`, with a printed message, where there is no compiler.
fn open(folder: &Folder) -> Option<Device> {
    Some(plugin(folder.example()?).open(0).unwrap())
}

fn load(device: &Device, kind: BuiltinKind, operands: Vec<OperandDesc>) -> Result<Kernel> {
    device.load(&KernelSource::Builtin(BuiltinOp::new(kind, operands)?))
}

#[test]
fn the_source_is_one_short_file_that_needs_nothing_but_libc() {
    let source = std::fs::read_to_string(common::example_source()).unwrap();
    assert!(source.lines().count() < 400, "{} lines", source.lines().count());
    let includes = source.lines().filter_map(|line| line.strip_prefix("#include "));
    let known = ["\"halite_plugin.h\"", "<pthread.h>", "<stdio.h>", "<stdlib.h>", "<string.h>", "<time.h>"];
    for include in includes {
        assert!(known.contains(&include), "{include}");
    }
}

#[test]
fn every_warning_of_the_compiler_is_an_error_and_there_is_none() {
    let folder = Folder::new("example-warnings");
    let flags = [
        "-std=c99",
        "-Wall",
        "-Wextra",
        "-Wpedantic",
        "-Wconversion",
        "-Wshadow",
        "-Wstrict-prototypes",
        "-Werror",
        "-O2",
    ];
    folder.compile_with("cc", &flags, &common::example_source(), "libhalite_npu_strict.so");
}

#[test]
fn the_readmes_commands_find_it_in_its_folder() {
    let folder = Folder::new("example-found");
    let Some(path) = folder.example() else { return };
    assert_eq!(path.file_name().unwrap(), "libhalite_npu_example.so");
    for list in [path, folder.0.clone()] {
        let devices = search(list).probe().unwrap();
        assert_eq!((devices.len(), devices[0].name.as_str()), (1, "Halite example device"));
        assert!(devices[0].has_feature("emulated"));
    }
}

#[test]
fn memory_of_every_kind_is_aligned_counted_and_seen_by_both_sides() {
    let folder = Folder::new("example-memory");
    let Some(device) = open(&folder) else { return };
    let stream = device.create_stream().unwrap();
    for kind in [MemoryKind::HostVisible, MemoryKind::Pinned] {
        let buffer = device.allocate(1000, kind).unwrap();
        let address = buffer.host_pointer().unwrap();
        assert_eq!(address.as_ptr() as usize % 64, 0);
        stream.fill(&buffer.all(), &[7]).unwrap();
        stream.synchronize().unwrap();
        // SAFETY: the buffer is alive and has 1000 bytes, and no work is in flight.
        assert_eq!(unsafe { address.add(999).read() }, 7);
    }
    assert!(device.allocate(1, MemoryKind::Device).unwrap().host_pointer().is_none());
    assert_eq!(device.memory().unwrap().used_bytes, 0);
}

#[test]
fn too_large_and_out_of_memory_are_told_apart_and_recovered_from() {
    let folder = Folder::new("example-full");
    let Some(device) = open(&folder) else { return };
    let error = device.allocate(129 * MEBI, MemoryKind::Device).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::TooLarge { requested: 129 * MEBI, limit: 128 * MEBI });
    let taken = [100, 100].map(|size| device.allocate(size * MEBI, MemoryKind::Device).unwrap());
    let error = device.allocate(57 * MEBI, MemoryKind::Device).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::OutOfMemory { requested: 57 * MEBI, free: 56 * MEBI });
    drop(taken);
    device.allocate(57 * MEBI, MemoryKind::Device).unwrap();
    assert_eq!(device.memory().unwrap().free_bytes, 256 * MEBI);
}

/// Steps of a small generator (Knuth's MMIX constants), the same on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn bytes(&mut self, count: u64) -> Vec<u8> {
        (0..count).map(|_| self.below(256) as u8).collect()
    }
}

/// Byte offsets of the elements in row-major order.
fn offsets(desc: &OperandDesc) -> Vec<usize> {
    let mut offsets = vec![0];
    for (extent, stride) in desc.shape.iter().zip(&desc.strides) {
        let step = *stride as usize * desc.dtype.size();
        offsets =
            offsets.iter().flat_map(|base| (0..*extent as usize).map(move |i| base + i * step)).collect();
    }
    offsets
}

/// The sum of two elements, as the header defines it.
fn sum(dtype: DType, lhs: &[u8], rhs: &[u8]) -> Vec<u8> {
    let bits = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
    let (l, r) = (bits(lhs), bits(rhs));
    match dtype {
        DType::F32 => (f32::from_bits(l as u32) + f32::from_bits(r as u32)).to_le_bytes().to_vec(),
        DType::F64 => (f64::from_bits(l) + f64::from_bits(r)).to_le_bytes().to_vec(),
        _ => l.wrapping_add(r).to_le_bytes()[..dtype.size()].to_vec(),
    }
}

/// Whether two elements are the same value: every NaN is, whatever its bits.
fn same(dtype: DType, got: &[u8], expected: &[u8]) -> bool {
    let nan = |bytes: &[u8]| match dtype {
        DType::F32 => f32::from_le_bytes(bytes.try_into().unwrap()).is_nan(),
        DType::F64 => f64::from_le_bytes(bytes.try_into().unwrap()).is_nan(),
        _ => false,
    };
    got == expected || nan(got) && nan(expected)
}

#[test]
fn builtins_agree_with_a_model_for_every_dtype_and_layout() {
    let folder = Folder::new("example-builtins");
    let Some(device) = open(&folder) else { return };
    let stream = device.create_stream().unwrap();
    let random = &mut Random(5);
    for round in 0..300 {
        let dtypes = &device.info().dtypes;
        let dtype = dtypes[random.below(dtypes.len() as u64) as usize];
        let size = dtype.size();
        let shape: Vec<u64> =
            (0..random.below(4)).map(|_| [0, 1, 1, 2, 3, 5, 7, 13][random.below(8) as usize]).collect();
        // Row-major from the innermost axis, with gaps; an input may repeat along an axis.
        let layout = |random: &mut Random, may_repeat: bool| {
            let mut desc = OperandDesc::contiguous(dtype, &shape);
            let mut step = 1 + random.below(2) as i64;
            for (stride, extent) in desc.strides.iter_mut().zip(&shape).rev() {
                *stride = if may_repeat && random.below(4) == 0 { 0 } else { step };
                step *= (*extent).max(1) as i64 + random.below(3) as i64;
            }
            desc
        };
        let value_bits = random.below(1 << 31) << 31 | random.below(1 << 31);
        let kind = match random.below(3) {
            0 => BuiltinKind::Copy,
            1 => BuiltinKind::Fill { value_bits },
            _ if dtype == DType::Bool => continue,
            _ => BuiltinKind::Add,
        };
        let count = kind.operand_count();
        let descs: Vec<_> = (0..count).map(|i| layout(random, i + 1 < count)).collect();
        let all: Vec<_> = descs.iter().map(offsets).collect();
        let contents: Vec<_> = all
            .iter()
            .map(|offsets| {
                let end = offsets.iter().max().map_or(0, |last| last + size);
                let spare = random.below(3) * size as u64;
                random.bytes(end as u64 + spare)
            })
            .collect();
        let slices: Vec<_> = contents.iter().map(|bytes| upload(&device, &stream, bytes)).collect();
        let kernel = load(&device, kind, descs).unwrap();
        let args: Vec<_> = slices.iter().cloned().map(Into::into).collect();
        stream.launch(&kernel, [1, 1, 1], &args).unwrap();
        let got = download(&stream, &slices[count - 1]);

        let mut expected = contents[count - 1].clone();
        for (element, to) in all[count - 1].iter().enumerate() {
            let input = |i: usize| &contents[i][all[i][element]..][..size];
            let value = match kind {
                BuiltinKind::Copy => input(0).to_vec(),
                BuiltinKind::Add => sum(dtype, input(0), input(1)),
                _ => value_bits.to_le_bytes()[..size].to_vec(),
            };
            // The result has no element twice, so one that is a NaN on both sides can be evened out.
            let value =
                if same(dtype, &got[*to..][..size], &value) { got[*to..][..size].to_vec() } else { value };
            expected[*to..][..size].copy_from_slice(&value);
        }
        assert_eq!(got, expected, "round {round}: {kind:?} of {dtype} {shape:?}");
    }
}

#[test]
fn what_the_example_does_not_claim_is_unsupported_and_what_cannot_be_is_invalid() {
    let folder = Folder::new("example-honest");
    let Some(device) = open(&folder) else { return };
    let desc = OperandDesc::contiguous;
    let kind = |result: Result<Kernel>| result.map(drop).unwrap_err().kind().clone();
    for dtype in [DType::F16, DType::BF16] {
        assert!(!device.info().dtypes.contains(&dtype));
        let op = BuiltinKind::Copy;
        assert_eq!(kind(load(&device, op, vec![desc(dtype, &[3]); 2])), ErrorKind::Unsupported);
    }
    let bools = vec![desc(DType::Bool, &[3]); 3];
    assert_eq!(kind(load(&device, BuiltinKind::Add, bools)), ErrorKind::Unsupported);
    let product = vec![desc(DType::F32, &[3, 3]); 3];
    assert_eq!(kind(load(&device, BuiltinKind::MatMul, product)), ErrorKind::Unsupported);
    let deep = vec![desc(DType::F32, &[1; 17]); 2];
    assert_eq!(kind(load(&device, BuiltinKind::Copy, deep)), ErrorKind::Unsupported);

    // A range that is too short, and layouts that no range of this device holds, are refused when they are to run.
    let stream = device.create_stream().unwrap();
    let out = upload(&device, &stream, &[1; 64]);
    let strided = |shape: &[u64], strides: &[i64]| OperandDesc {
        dtype: DType::U8,
        shape: shape.to_vec(),
        strides: strides.to_vec(),
    };
    for layout in [
        strided(&[65], &[1]),
        strided(&[2], &[64]),
        strided(&[2], &[-1]),
        strided(&[u64::MAX], &[i64::MAX]),
        strided(&[1 << 40, 1 << 20], &[1 << 20, 1]),
        strided(&[2, 2], &[i64::MIN, i64::MAX]),
    ] {
        let refused = load(&device, BuiltinKind::Fill { value_bits: 9 }, vec![layout.clone()])
            .and_then(|kernel| stream.launch(&kernel, [1, 1, 1], &[out.clone().into()]));
        assert_eq!(refused.unwrap_err().kind(), &ErrorKind::InvalidArgument, "{layout:?}");
    }
    assert_eq!(download(&stream, &out), [1; 64]);
}

#[test]
fn the_failure_that_is_asked_for_poisons_the_stream_and_who_waits_for_it() {
    let folder = Folder::new("example-failure");
    let Some(device) = open(&folder) else { return };
    let (stream, other) = (device.create_stream().unwrap(), device.create_stream().unwrap());
    let buffer = upload(&device, &stream, &[1; 8]);
    let fault = load(&device, BuiltinKind::Fault, vec![OperandDesc::contiguous(DType::U8, &[8])]).unwrap();
    stream.fill(&buffer, &[2]).unwrap();
    let before = stream.record().unwrap();
    stream.launch(&fault, [1, 1, 1], &[buffer.clone().into()]).unwrap();
    stream.fill(&buffer, &[4]).unwrap();
    let after = stream.record().unwrap();
    other.wait(&after).unwrap();
    before.wait(None).unwrap();
    let error = after.wait(None).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Fault);
    assert!(error.message().contains("the built-in fault ran"), "{error}");
    for result in [stream.synchronize(), other.synchronize(), stream.fill(&buffer, &[5])] {
        assert_eq!(result.unwrap_err().kind(), &ErrorKind::Fault);
    }
    // Without stream_reset, the host goes on with a new stream.
    stream.reset().unwrap();
    assert_eq!(download(&stream, &buffer), [2; 8]);
}

#[test]
fn options_that_it_does_not_know_are_refused_by_name() {
    let folder = Folder::new("example-options");
    let Some(path) = folder.example() else { return };
    for key in ["fail", "fail_after"] {
        let error = plugin(path.clone()).with_option(key, "1").probe().unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::InvalidArgument);
        assert!(error.message().contains(&format!("no option is '{key}'")), "{error}");
    }
}

#[test]
fn times_of_events_are_in_order() {
    let folder = Folder::new("example-times");
    let Some(device) = open(&folder) else { return };
    let stream = device.create_stream().unwrap();
    let buffer = device.allocate(MEBI, MemoryKind::Device).unwrap().all();
    let first = stream.record().unwrap();
    stream.fill(&buffer, &[1]).unwrap();
    let second = stream.record().unwrap();
    let third = stream.record().unwrap();
    let spans = [(&second, &first), (&third, &second), (&third, &first)]
        .map(|(later, earlier)| later.elapsed_since(earlier).unwrap());
    assert!(!spans[0].is_zero());
    assert_eq!(spans[0] + spans[1], spans[2]);
    assert!(first.elapsed_since(&second).unwrap().is_zero());
}

/// The code blocks of the guide, in order.
fn guide() -> Vec<String> {
    let text =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/writing-a-plugin.md"));
    let text = text.unwrap();
    text.split("```c\n").skip(1).filter_map(|rest| rest.split("```").next().map(str::to_owned)).collect()
}

#[test]
fn the_guides_first_table_is_refused_with_the_words_that_it_quotes() {
    let folder = Folder::new("guide-first");
    let source = folder.file("mine.c", &guide()[0]);
    let flags = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror"];
    let Some(path) = folder.compile_with("cc", &flags, &source, "libhalite_npu_mine.so") else { return };
    let error = plugin(path).probe().unwrap_err();
    let text =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/writing-a-plugin.md"));
    let quoted = "libhalite_npu_mine.so' lacks the required function device_count; use a plugin that keeps to \
                  halite_plugin.h 1.1";
    assert!(text.unwrap().contains(quoted) && error.message().ends_with(quoted), "{error}");
}

#[test]
fn the_guides_queue_runs_work_in_order_and_skips_what_comes_behind_a_failure() {
    let folder = Folder::new("guide-queue");
    let main = r#"
#include <stdio.h>
static queue q;
static volatile int runs, done, go, told;
static void nap(void) {
    struct timespec ms = {0, 1000000};
    nanosleep(&ms, NULL);
}
/* The first waits for the go, and the third fails. */
static halite_status run(struct work *w, halite_status failure) {
    (void)w;
    while (!go)
        nap();
    runs += 1;
    done += failure == HALITE_STATUS_OK;
    return runs == 3 ? HALITE_STATUS_FAULT : HALITE_STATUS_OK;
}
/* A record that tells of the failure, and takes its time on the way out. */
static halite_status record(struct work *w, halite_status failure) {
    (void)w;
    told = (int)failure;
    for (int i = 0; i < 50; ++i)
        nap();
    return HALITE_STATUS_OK;
}
static void add(halite_status (*what)(struct work *, halite_status)) {
    work *w = malloc(sizeof *w);
    w->run = what;
    enqueue(&q, w);
}
int main(void) {
    struct timespec past = {0, 0};
    halite_completion before = {0}, after = {0}, reset = {0};
    if (start(&q) != 0)
        return 1;
    for (int i = 0; i < 5; ++i)
        add(run);
    synchronize(&q, &past, &before);
    go = 1;
    synchronize(&q, NULL, &after);
    add(record);
    while (!told)
        nap();
    pthread_mutex_lock(&q.lock);
    q.failure = HALITE_STATUS_OK; /* stream_reset, while the record is on its way out */
    pthread_mutex_unlock(&q.lock);
    synchronize(&q, NULL, &reset);
    stop(&q);
    printf("%u %u %d %d %d %d %u", before.state, after.state, after.status, runs, done, told, reset.state);
    return 0;
}
"#;
    let source = folder.file("queue.c", guide()[1].clone() + main);
    let flags = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-pthread"];
    let include = concat!(env!("CARGO_MANIFEST_DIR"), "/../../hal/include");
    let program = folder.0.join("queue");
    let mut compiler = std::process::Command::new("cc");
    compiler.args(flags).args(["-I", include, "-o"]).arg(&program).arg(source);
    let Ok(output) = compiler.output() else { return println!("skipped: no C compiler") };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = std::process::Command::new(program).output().unwrap();
    // Pending, then failed with FAULT; all five ran, and the first three without a failure before them. The record was
    // given the failure, and the reset behind it holds.
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0 2 9 5 3 9 1");
}
