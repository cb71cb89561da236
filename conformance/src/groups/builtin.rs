//! Built-in operations: copy, fill and add, which every device that takes built-ins offers so that it can be tested.

use super::Tests;
use crate::context::{Context, download, holds, same_bytes};
use crate::outcome::{Outcome, Stop, failed, unsupported};
use half::{bf16, f16};
use halite_hal::builtin::{BuiltinKind, BuiltinOp, OperandDesc};
use halite_hal::{BufferSlice, DType, ErrorKind, Kernel, KernelSource, as_bytes, from_bytes};

const SHAPE: [u64; 2] = [3, 7];
const ELEMENTS: usize = 21;

pub(super) fn tests(tests: &mut Tests) {
    mandatory(tests);
    for dtype in DType::ALL {
        tests.add(format!("copy-{dtype}"), "copy moves every bit of its elements", move |context| {
            copies(context, dtype)
        });
        tests.add(
            format!("fill-{dtype}"),
            "fill writes the bits of its value to every element",
            move |context| fills(context, dtype),
        );
        tests.add(
            format!("add-{dtype}"),
            "add gives the sum; integers wrap, floats round once to nearest",
            move |context| adds(context, dtype),
        );
    }
    layouts(tests);
    launches(tests);
}

/// The first element type that built-ins are asked for, where there is one.
fn element(context: &Context) -> DType {
    let claimed = &context.info().dtypes;
    let preferred = [DType::F32, DType::U32, DType::I32, DType::U8];
    preferred
        .into_iter()
        .find(|dtype| claimed.contains(dtype))
        .or(claimed.first().copied())
        .unwrap_or(DType::F32)
}

pub(super) fn contiguous(kind: BuiltinKind, dtype: DType, shape: &[u64]) -> halite_hal::Result<BuiltinOp> {
    BuiltinOp::new(kind, vec![OperandDesc::contiguous(dtype, shape); kind.operand_count()])
}

fn mandatory(tests: &mut Tests) {
    let kinds = [
        ("copy", BuiltinKind::Copy),
        ("fill", BuiltinKind::Fill { value_bits: 1 }),
        ("add", BuiltinKind::Add),
    ];
    for (name, kind) in kinds {
        tests.add(
            format!("{name}-is-there"),
            "whoever takes built-ins offers this one, for an element type that is claimed",
            move |context| {
                if !context.info().accepts("builtin") {
                    return context.builtin(contiguous(kind, DType::F32, &[4])?).map(drop);
                }
                let mut reasons = Vec::new();
                for dtype in context.info().dtypes.iter().copied().filter(|dtype| *dtype != DType::Bool) {
                    match context.device().load(&KernelSource::Builtin(contiguous(kind, dtype, &[4])?)) {
                        Ok(_) => return Ok(()),
                        Err(error) => reasons.push(error.message().to_owned()),
                    }
                }
                Err(failed(format!("no element type has it: {}", reasons.join("; "))))
            },
        );
    }
}

/// The kernel for a type. What is not offered must not be claimed for copies, which move bits alone.
fn load(context: &Context, kind: BuiltinKind, dtype: DType) -> Result<Kernel, Stop> {
    match context.builtin(contiguous(kind, dtype, &SHAPE)?) {
        Err(Stop::Unsupported(reason)) if reason.trim_end().ends_with(':') => {
            Err(failed(format!("unsupported without a reason: {reason}")))
        }
        other => other,
    }
}

fn copies(context: &Context, dtype: DType) -> Outcome {
    let kernel = load(context, BuiltinKind::Copy, dtype)?;
    let stream = context.stream()?;
    let mut bytes = context.random().bytes(ELEMENTS * dtype.size());
    if dtype == DType::Bool {
        bytes.iter_mut().for_each(|byte| *byte &= 1);
    }
    let (input, out) = (context.upload(&stream, &bytes)?, context.upload(&stream, &vec![0; bytes.len()])?);
    context.run_builtin(&stream, &kernel, &[&input, &out])?;
    holds(&stream, &out, &bytes, "the output")?;
    holds(&stream, &input, &bytes, "the input")
}

fn fills(context: &Context, dtype: DType) -> Outcome {
    let mask = u64::MAX >> (64 - 8 * dtype.size());
    let bits = if dtype == DType::Bool { 1 } else { 0x8123_4567_3fc0_3c01 & mask };
    let kernel = load(context, BuiltinKind::Fill { value_bits: bits }, dtype)?;
    let stream = context.stream()?;
    let out = context.upload(&stream, &vec![0; ELEMENTS * dtype.size()])?;
    context.run_builtin(&stream, &kernel, &[&out])?;
    holds(&stream, &out, &bits.to_le_bytes()[..dtype.size()].repeat(ELEMENTS), "the output")
}

fn adds(context: &Context, dtype: DType) -> Outcome {
    if dtype == DType::Bool {
        let result = load(context, BuiltinKind::Add, dtype);
        return match result {
            Ok(_) => Err(failed("bools are added, which has no meaning; answer Unsupported")),
            Err(stop) => Err(stop),
        };
    }
    let kernel = load(context, BuiltinKind::Add, dtype)?;
    let stream = context.stream()?;
    let (lhs, rhs, sum) = summands(dtype);
    let (a, b) = (context.upload(&stream, &lhs)?, context.upload(&stream, &rhs)?);
    let out = context.upload(&stream, &vec![0xff; lhs.len()])?;
    context.run_builtin(&stream, &kernel, &[&a, &b, &out])?;
    let got = download(&stream, &out)?;
    let size = dtype.size();
    for (index, (got, expected)) in got.chunks(size).zip(sum.chunks(size)).enumerate() {
        let both_nan = is_nan(dtype, got) && is_nan(dtype, expected);
        ensure!(
            got == expected || both_nan,
            "element {index}: expected the bytes {expected:02x?}, got {got:02x?}"
        );
    }
    Ok(())
}

fn is_nan(dtype: DType, bytes: &[u8]) -> bool {
    match dtype {
        DType::F16 => from_bytes::<f16>(bytes)[0].is_nan(),
        DType::BF16 => from_bytes::<bf16>(bytes)[0].is_nan(),
        DType::F32 => from_bytes::<f32>(bytes)[0].is_nan(),
        DType::F64 => from_bytes::<f64>(bytes)[0].is_nan(),
        _ => false,
    }
}

/// Two operands and their sum, as bytes: limits that wrap, and values that round, cancel or are no numbers.
fn summands(dtype: DType) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    macro_rules! integers {
        ($ty:ty) => {{
            let pairs: Vec<($ty, $ty)> = (0..ELEMENTS)
                .map(|i| match i {
                    0 => (<$ty>::MAX, 1),
                    1 => (<$ty>::MIN, <$ty>::MAX),
                    2 => (<$ty>::MAX, <$ty>::MAX),
                    3 => (0, 0),
                    _ => ((i * 5) as $ty, (i * 3) as $ty),
                })
                .collect();
            let column =
                |f: &dyn Fn(&($ty, $ty)) -> $ty| as_bytes(&pairs.iter().map(f).collect::<Vec<_>>()).to_vec();
            (column(&|p| p.0), column(&|p| p.1), column(&|p| p.0.wrapping_add(p.1)))
        }};
    }
    // Every value here is one of the type; the sum of two is exact in f64, and so rounds once.
    macro_rules! floats {
        ($ty:ty, $from:expr) => {{
            let from = $from;
            let special = [
                (1.0, 2.0),
                (f64::INFINITY, 1.0),
                (f64::INFINITY, f64::NEG_INFINITY),
                (f64::NAN, 1.0),
                (-0.0, -0.0),
                (0.0, -0.0),
                (1.5, -1.5),
                (256.0, 0.0078125),
                (1.0, 0.00390625),
                (3.0, 0.5),
            ];
            let pairs: Vec<($ty, $ty)> = (0..ELEMENTS)
                .map(|i| *special.get(i).unwrap_or(&(i as f64 * 0.25, -(i as f64))))
                .map(|(a, b)| (from(a), from(b)))
                .collect();
            let column =
                |f: &dyn Fn(&($ty, $ty)) -> $ty| as_bytes(&pairs.iter().map(f).collect::<Vec<_>>()).to_vec();
            (column(&|p| p.0), column(&|p| p.1), column(&|p| from(f64::from(p.0) + f64::from(p.1))))
        }};
    }
    match dtype {
        DType::I8 => integers!(i8),
        DType::U8 => integers!(u8),
        DType::I16 => integers!(i16),
        DType::U16 => integers!(u16),
        DType::I32 => integers!(i32),
        DType::U32 => integers!(u32),
        DType::I64 => integers!(i64),
        DType::U64 => integers!(u64),
        DType::F16 => floats!(f16, f16::from_f64),
        DType::BF16 => floats!(bf16, bf16::from_f64),
        DType::F32 => floats!(f32, |value: f64| value as f32),
        DType::F64 => floats!(f64, |value: f64| value),
        // Bools are not added.
        _ => (Vec::new(), Vec::new(), Vec::new()),
    }
}

/// A layout of 2 x 3 elements, by strides.
fn strided(dtype: DType, strides: [i64; 2]) -> OperandDesc {
    OperandDesc { dtype, shape: vec![2, 3], strides: strides.to_vec() }
}

fn layouts(tests: &mut Tests) {
    for (name, input, expected) in [
        ("transposed", [1i64, 2], [1u8, 3, 5, 2, 4, 6]),
        ("repeated-rows", [0, 1], [1, 2, 3, 1, 2, 3]),
        ("repeated-element", [0, 0], [1, 1, 1, 1, 1, 1]),
    ] {
        tests.add(
            format!("copy-of-{name}"),
            "a copy follows the strides of its input, where the device takes them",
            move |context| {
                let dtype = element(context);
                let out = OperandDesc::contiguous(dtype, &[2, 3]);
                let kernel =
                    context.builtin(BuiltinOp::new(BuiltinKind::Copy, vec![strided(dtype, input), out])?)?;
                let stream = context.stream()?;
                let source = context.upload(&stream, &numbered(dtype, &[1, 2, 3, 4, 5, 6]))?;
                let target = context.upload(&stream, &numbered(dtype, &[0; 6]))?;
                context.run_builtin(&stream, &kernel, &[&source, &target])?;
                holds(&stream, &target, &numbered(dtype, &expected), "the output")
            },
        );
    }
    tests.add(
        "gaps-stay-as-they-are",
        "what lies between the elements of an output is not written",
        |context| {
            let dtype = element(context);
            let op = BuiltinOp::new(
                BuiltinKind::Copy,
                vec![OperandDesc::contiguous(dtype, &[2, 3]), strided(dtype, [5, 1])],
            )?;
            let kernel = context.builtin(op)?;
            let stream = context.stream()?;
            let source = context.upload(&stream, &numbered(dtype, &[1, 2, 3, 4, 5, 6]))?;
            let target = context.upload(&stream, &numbered(dtype, &[9; 8]))?;
            context.run_builtin(&stream, &kernel, &[&source, &target])?;
            holds(&stream, &target, &numbered(dtype, &[1, 2, 3, 9, 9, 4, 5, 6]), "the output")
        },
    );
    let shapes: [(&str, &[u64]); 6] = [
        ("one-element-without-axes", &[]),
        ("one-element", &[1]),
        ("no-elements", &[0]),
        ("no-elements-in-the-middle", &[2, 0, 3]),
        ("five-axes", &[2, 3, 1, 5, 2]),
        ("many-elements", &[100_003]),
    ];
    for (name, shape) in shapes {
        tests.add(format!("add-of-{name}"), "shapes of any rank and extent are added", move |context| {
            let dtype = element(context);
            let kernel = context.builtin(contiguous(BuiltinKind::Add, dtype, shape)?)?;
            let stream = context.stream()?;
            let count = shape.iter().product::<u64>() as usize;
            let values: Vec<u8> = (0..count).map(|i| (i % 100) as u8).collect();
            let doubled: Vec<u8> = values.iter().map(|value| 2 * value).collect();
            let (lhs, rhs) = (
                context.upload(&stream, &numbered(dtype, &values))?,
                context.upload(&stream, &numbered(dtype, &values))?,
            );
            let out = context.upload(&stream, &numbered(dtype, &vec![0; count]))?;
            context.run_builtin(&stream, &kernel, &[&lhs, &rhs, &out])?;
            same_bytes(&download(&stream, &out)?, &numbered(dtype, &doubled), "the output")
        });
    }
    tests.add(
        "matmul-sums-products",
        "matmul, where it is offered, sums over the inner axis, and gives zeros for none",
        |context| {
            let stream = context.stream()?;
            for (m, k, n) in [(3usize, 5usize, 2usize), (1, 1, 1), (2, 0, 3)] {
                let desc = |rows: usize, columns: usize| {
                    OperandDesc::contiguous(DType::F32, &[rows as u64, columns as u64])
                };
                let kernel = context.builtin(BuiltinOp::new(
                    BuiltinKind::MatMul,
                    vec![desc(m, k), desc(k, n), desc(m, n)],
                )?)?;
                // Small whole numbers: every sum is exact, whatever its order.
                let lhs: Vec<f32> = (0..m * k).map(|i| (i % 7) as f32 - 3.0).collect();
                let rhs: Vec<f32> = (0..k * n).map(|i| (i % 5) as f32 - 2.0).collect();
                let sum = |row: usize, column: usize| {
                    (0..k).map(|i| lhs[row * k + i] * rhs[i * n + column]).sum::<f32>()
                };
                let expected: Vec<f32> = (0..m * n).map(|i| sum(i / n, i % n)).collect();
                let (a, b) =
                    (context.upload(&stream, as_bytes(&lhs))?, context.upload(&stream, as_bytes(&rhs))?);
                let out = context.upload(&stream, as_bytes(&vec![7.0f32; m * n]))?;
                context.run_builtin(&stream, &kernel, &[&a, &b, &out])?;
                let got = from_bytes::<f32>(&download(&stream, &out)?);
                ensure_eq!(got, expected, "{m} x {k} x {n}");
            }
            Ok(())
        },
    );
}

/// Small whole numbers in any element type, as bytes.
pub(super) fn numbered(dtype: DType, values: &[u8]) -> Vec<u8> {
    let element = |value: u8| -> Vec<u8> {
        match dtype {
            DType::F16 => as_bytes(&[f16::from_f32(value.into())]).to_vec(),
            DType::BF16 => as_bytes(&[bf16::from_f32(value.into())]).to_vec(),
            DType::F32 => as_bytes(&[f32::from(value)]).to_vec(),
            DType::F64 => as_bytes(&[f64::from(value)]).to_vec(),
            _ => u64::from(value).to_le_bytes()[..dtype.size()].to_vec(),
        }
    };
    values.iter().flat_map(|value| element(*value)).collect()
}

/// An addition of four elements, its operands, and what they add up to.
fn small_add(context: &Context) -> Result<(Kernel, DType), Stop> {
    let dtype = element(context);
    Ok((context.builtin(contiguous(BuiltinKind::Add, dtype, &[4])?)?, dtype))
}

fn launches(tests: &mut Tests) {
    tests.add(
        "work-on-slices",
        "operands may lie inside of larger buffers, at the device's alignment",
        |context| {
            let (kernel, dtype) = small_add(context)?;
            let stream = context.stream()?;
            let align = context.info().limits.offset_alignment_bytes.max(dtype.size() as u64);
            let bytes = 4 * dtype.size() as u64;
            let place = |buffer: &BufferSlice, step: u64| buffer.slice(step * align, bytes);
            let whole = (3 * align + bytes) as usize;
            let buffers = [5, 7, 11].map(|value| {
                context.upload(&stream, &numbered(dtype, &vec![value; whole / dtype.size() + 1]))
            });
            let [lhs, rhs, out] = buffers;
            let (lhs, rhs, out) = (lhs?, rhs?, out?);
            context.run_builtin(&stream, &kernel, &[&place(&lhs, 1)?, &place(&rhs, 2)?, &place(&out, 3)?])?;
            let mut expected = numbered(dtype, &vec![11; whole / dtype.size() + 1]);
            let at = 3 * align as usize;
            expected[at..at + bytes as usize].copy_from_slice(&numbered(dtype, &[12; 4]));
            holds(&stream, &out, &expected, "the buffer around the output")
        },
    );
    tests.add("one-kernel-many-threads", "one kernel may run on many streams at once", |context| {
        let (kernel, dtype) = small_add(context)?;
        super::in_threads(4, |index| {
            let stream = context.stream()?;
            let value = index as u8 + 1;
            let one = context.upload(&stream, &numbered(dtype, &[value; 4]))?;
            let (mut sum, mut next) = (
                context.upload(&stream, &numbered(dtype, &[0; 4]))?,
                context.upload(&stream, &numbered(dtype, &[0; 4]))?,
            );
            for _ in 0..20 {
                context.run_builtin(&stream, &kernel, &[&sum, &one, &next])?;
                std::mem::swap(&mut sum, &mut next);
            }
            holds(&stream, &sum, &numbered(dtype, &[20 * value; 4]), "the sum of twenty")
        })
    });
    tests.add("kernel-may-go-at-once", "a launch holds its kernel and its operands", |context| {
        let stream = context.stream()?;
        let (kernel, dtype) = small_add(context)?;
        let out = context.upload(&stream, &numbered(dtype, &[0; 4]))?;
        let lhs = context.upload(&stream, &numbered(dtype, &[3; 4]))?;
        let rhs = context.upload(&stream, &numbered(dtype, &[4; 4]))?;
        context.run_builtin(&stream, &kernel, &[&lhs, &rhs, &out])?;
        drop((kernel, lhs, rhs));
        holds(&stream, &out, &numbered(dtype, &[7; 4]), "the output")
    });
    tests.add(
        "loaded-many-times",
        "a hundred kernels of one operation may be loaded and dropped",
        |context| {
            let (_, dtype) = small_add(context)?;
            let stream = context.stream()?;
            let kernels = (1..=20u64)
                .map(|count| context.builtin(contiguous(BuiltinKind::Add, dtype, &[count])?))
                .collect::<Result<Vec<_>, _>>()?;
            let one = context.upload(&stream, &numbered(dtype, &[1; 20]))?;
            for (count, kernel) in (1..=20usize).zip(&kernels) {
                let out = context.upload(&stream, &numbered(dtype, &[0; 20]))?;
                let part = |slice: &BufferSlice| slice.slice(0, (count * dtype.size()) as u64);
                // Two ranges that are read may be the same.
                context.run_builtin(&stream, kernel, &[&part(&one)?, &part(&one)?, &part(&out)?])?;
                let mut expected = vec![2; count];
                expected.resize(20, 0);
                holds(&stream, &out, &numbered(dtype, &expected), "the output")?;
            }
            Ok(())
        },
    );
    tests.add(
        "short-ranges-are-refused",
        "a range that does not hold its operand fails, and nothing beyond it is touched",
        |context| {
            let (kernel, dtype) = small_add(context)?;
            let stream = context.stream()?;
            let bytes = numbered(dtype, &[6; 8]);
            let [lhs, rhs, out] = [
                context.upload(&stream, &bytes)?,
                context.upload(&stream, &bytes)?,
                context.upload(&stream, &bytes)?,
            ];
            let whole = 4 * dtype.size() as u64;
            let short = out.slice(0, whole - dtype.size() as u64)?;
            let (lhs, rhs) = (lhs.slice(0, whole)?, rhs.slice(0, whole)?);
            let launched = context
                .run_builtin(&stream, &kernel, &[&lhs, &rhs, &short])
                .and_then(|()| stream.synchronize());
            ensure_kind!(
                launched,
                ErrorKind::InvalidArgument | ErrorKind::Fault | ErrorKind::Backend { .. },
                "the launch on {} of {whole} bytes",
                short.len_bytes()
            );
            stream.reset()?;
            let beyond = out.slice(whole - dtype.size() as u64, whole + dtype.size() as u64)?;
            holds(&stream, &beyond, &numbered(dtype, &[6; 5]), "what lies behind the range")
        },
    );
    tests.add(
        "unlike-operands-are-refused",
        "operands that do not fit an operation are an invalid argument",
        |context| {
            if !context.info().accepts("builtin") {
                return Err(unsupported("the device takes no built-ins"));
            }
            let desc = |shape: &[u64]| OperandDesc::contiguous(DType::F32, shape);
            for (kind, operands) in [
                (BuiltinKind::Copy, vec![desc(&[4])]),
                (BuiltinKind::Copy, vec![desc(&[4]), desc(&[5])]),
                (BuiltinKind::Add, vec![desc(&[4]), desc(&[4])]),
                (BuiltinKind::Add, vec![desc(&[4]), desc(&[2, 2]), desc(&[4])]),
            ] {
                let op = BuiltinOp::new(kind, operands);
                ensure_kind!(op, ErrorKind::InvalidArgument, "'{}'", kind.name());
            }
            Ok(())
        },
    );
}
