//! Products of matrices by cuBLASLt, against sums in f64.

mod common;

use common::*;
use half::{bf16, f16};
use halite_hal::builtin::{Activation, BuiltinKind, BuiltinOp, OperandDesc};
use halite_hal::{
    Arg, DType, Device, ErrorKind, Kernel, KernelSource, MemoryKind, Result, Stream, as_bytes, from_bytes,
};

/// A product to be tried: operands as they lie in memory, behind leading axes of these extents.
struct Case {
    dtype: DType,
    out: DType,
    batch: Vec<u64>,
    mnk: [u64; 3],
    /// Whether columns lie without gaps, and elements beyond the end of each row or column.
    lhs: (bool, u64),
    rhs: (bool, u64),
    shares_rhs: bool,
    bias: bool,
    activation: Activation,
    allow_tf32: bool,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            dtype: DType::F32,
            out: DType::F32,
            batch: vec![],
            mnk: [5, 7, 3],
            lhs: (false, 0),
            rhs: (false, 0),
            shares_rhs: false,
            bias: false,
            activation: Activation::Identity,
            allow_tf32: false,
        }
    }
}

/// Numbers of few digits, which every type holds exactly: from a linear congruential generator (Knuth, TAOCP 3.3.4).
fn numbers(seed: u64, count: usize) -> Vec<f64> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        f64::from((state >> 60) as u8) / 8. - 1.
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn encode(dtype: DType, values: &[f64]) -> Vec<u8> {
    match dtype {
        DType::F16 => as_bytes(&values.iter().map(|v| f16::from_f64(*v)).collect::<Vec<_>>()).to_vec(),
        DType::BF16 => as_bytes(&values.iter().map(|v| bf16::from_f64(*v)).collect::<Vec<_>>()).to_vec(),
        DType::F32 => as_bytes(&values.iter().map(|v| *v as f32).collect::<Vec<_>>()).to_vec(),
        _ => as_bytes(values).to_vec(),
    }
}

fn decode(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    match dtype {
        DType::F16 => from_bytes::<f16>(bytes).iter().map(|v| v.to_f64()).collect(),
        DType::BF16 => from_bytes::<bf16>(bytes).iter().map(|v| v.to_f64()).collect(),
        DType::F32 => from_bytes::<f32>(bytes).iter().map(|v| f64::from(*v)).collect(),
        _ => from_bytes(bytes),
    }
}

/// Sums are of few terms of few digits, so they are exact but for the rounding of the result: half a unit of the type's
/// last place (and GELU's own error, which is far below that of a half and some 1e-6 in f32).
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2f64.powi(-11),
        DType::BF16 => 2f64.powi(-8),
        DType::F32 => 1e-5,
        _ => 1e-13,
    }
}

/// The operand's layout, and where its elements lie.
fn layout(
    dtype: DType,
    batch: &[u64],
    [rows, columns]: [u64; 2],
    (by_columns, gap): (bool, u64),
    shared: bool,
) -> OperandDesc {
    let leading = if by_columns { rows } else { columns } + gap;
    let size = leading * if by_columns { columns } else { rows };
    let mut shape = batch.to_vec();
    shape.extend([rows, columns]);
    let mut strides = Vec::new();
    let mut stride = size;
    for extent in batch.iter().rev() {
        strides.insert(0, if shared { 0 } else { stride as i64 });
        stride *= extent;
    }
    strides.extend(if by_columns { [1, leading as i64] } else { [leading as i64, 1] });
    OperandDesc { dtype, shape, strides }
}

fn span(desc: &OperandDesc) -> usize {
    if desc.shape.contains(&0) {
        return 0;
    }
    1 + desc
        .shape
        .iter()
        .zip(&desc.strides)
        .map(|(extent, stride)| (extent - 1) as usize * *stride as usize)
        .sum::<usize>()
}

fn at(desc: &OperandDesc, batch: usize, row: usize, column: usize) -> usize {
    let axes = desc.shape.len() - 2;
    let mut rest = batch;
    let mut place = row * desc.strides[axes] as usize + column * desc.strides[axes + 1] as usize;
    for axis in (0..axes).rev() {
        let extent = desc.shape[axis] as usize;
        place += rest % extent * desc.strides[axis] as usize;
        rest /= extent;
    }
    place
}

fn check(device: &Device, stream: &Stream, case: &Case) {
    let Case { dtype, out, batch, mnk: [m, n, k], activation, bias, allow_tf32, .. } = case;
    let lhs_desc = layout(*dtype, batch, [*m, *k], case.lhs, false);
    let rhs_desc = layout(*dtype, batch, [*k, *n], case.rhs, case.shares_rhs);
    let out_desc = layout(*out, batch, [*m, *n], (false, 0), false);
    let [lhs, rhs] = [(1, &lhs_desc), (2, &rhs_desc)].map(|(seed, desc)| numbers(seed, span(desc)));
    let bias_values = numbers(3, *n as usize);
    let mut operands = vec![lhs_desc.clone(), rhs_desc.clone()];
    if *bias {
        operands.push(OperandDesc::contiguous(*out, &[*n]));
    }
    operands.push(out_desc.clone());
    let plain = !bias && *activation == Activation::Identity && !allow_tf32;
    let kind = if plain {
        BuiltinKind::MatMul
    } else {
        BuiltinKind::FusedMatMul { bias: *bias, activation: *activation, allow_tf32: *allow_tf32 }
    };
    let kernel = load(device, kind, operands).unwrap();
    let out_range = upload(device, stream, &vec![0x7f; span(&out_desc) * out.size()]);
    let mut args: Vec<Arg> = [(&lhs, *dtype), (&rhs, *dtype)]
        .map(|(values, dtype)| upload(device, stream, &encode(dtype, values)).into())
        .into();
    if *bias {
        args.push(upload(device, stream, &encode(*out, &bias_values)).into());
    }
    args.push(out_range.clone().into());
    launch(device, stream, &kernel, args).unwrap();
    let got = decode(*out, &download(stream, &out_range));
    for batch in 0..batch.iter().product::<u64>() as usize {
        for row in 0..*m as usize {
            for column in 0..*n as usize {
                let product = |i| lhs[at(&lhs_desc, batch, row, i)] * rhs[at(&rhs_desc, batch, i, column)];
                let mut sum: f64 = (0..*k as usize).map(product).sum();
                if *bias {
                    sum += bias_values[column];
                }
                let expected = match activation {
                    Activation::Relu => sum.max(0.),
                    Activation::GeluTanh => {
                        let inner = (2. / std::f64::consts::PI).sqrt() * (sum + 0.044715 * sum.powi(3));
                        sum / 2. * (1. + inner.tanh())
                    }
                    _ => sum,
                };
                let got = got[at(&out_desc, batch, row, column)];
                let limit = tolerance(*out) * expected.abs().max(1.);
                assert!((got - expected).abs() <= limit, "{got} for {expected} at {batch}, {row}, {column}");
            }
        }
    }
}

fn load(device: &Device, kind: BuiltinKind, operands: Vec<OperandDesc>) -> Result<Kernel> {
    device.load(&KernelSource::Builtin(BuiltinOp::new(kind, operands).unwrap()))
}

fn launch(device: &Device, stream: &Stream, kernel: &Kernel, mut args: Vec<Arg>) -> Result<()> {
    if kernel.workspace_bytes() > 0 {
        args.push(device.allocate(kernel.workspace_bytes(), MemoryKind::Device)?.all().into());
    }
    stream.launch(kernel, [1, 1, 1], &args)
}

/// Runs on every device that has cuBLASLt.
fn each_device_with_products(test: impl Fn(&Device, &Stream)) {
    each_device(|device| {
        if device.info().has_feature("cublaslt") {
            test(device, &device.create_stream().unwrap());
        } else {
            println!("skipped: {} has no cuBLASLt", device.id());
        }
    });
}

#[test]
fn products_of_every_layout_and_size_are_right() {
    each_device_with_products(|device, stream| {
        for mnk in [[1, 1, 1], [5, 7, 3], [1, 13, 4], [13, 1, 4], [4, 13, 1], [16, 8, 24], [31, 17, 40]] {
            for lhs in [(false, 0), (true, 0), (false, 3), (true, 5)] {
                for rhs in [(false, 0), (true, 0), (false, 2), (true, 1)] {
                    check(device, stream, &Case { mnk, lhs, rhs, ..Case::default() });
                }
            }
        }
    });
}

#[test]
fn products_of_every_type_are_right() {
    each_device_with_products(|device, stream| {
        for (dtype, out) in [
            (DType::F64, DType::F64),
            (DType::F16, DType::F16),
            (DType::F16, DType::F32),
            (DType::BF16, DType::BF16),
            (DType::BF16, DType::F32),
        ] {
            // Tensor cores want rows of a multiple of 16 bytes.
            check(device, stream, &Case { dtype, out, mnk: [8, 16, 24], ..Case::default() });
            check(device, stream, &Case { dtype, out, mnk: [8, 16, 24], rhs: (true, 0), ..Case::default() });
        }
        // The numbers have few digits, so TF32 holds them exactly.
        check(device, stream, &Case { allow_tf32: true, mnk: [16, 24, 32], ..Case::default() });
    });
}

#[test]
fn batches_share_an_operand_or_have_their_own() {
    each_device_with_products(|device, stream| {
        for batch in [vec![1], vec![3], vec![2, 3], vec![2, 1, 3]] {
            for shares_rhs in [false, true] {
                let case = Case { batch: batch.clone(), shares_rhs, rhs: (true, 0), ..Case::default() };
                check(device, stream, &case);
            }
        }
    });
}

#[test]
fn a_bias_and_an_activation_follow_the_sums() {
    each_device_with_products(|device, stream| {
        for activation in [Activation::Identity, Activation::Relu, Activation::GeluTanh] {
            for bias in [false, true] {
                for dtype in [DType::F32, DType::F16, DType::BF16] {
                    let mnk = [16, 24, 8];
                    check(
                        device,
                        stream,
                        &Case { dtype, out: dtype, mnk, bias, activation, ..Case::default() },
                    );
                }
            }
        }
        let batch = vec![2];
        check(device, stream, &Case { batch, bias: true, activation: Activation::Relu, ..Case::default() });
    });
}

#[test]
fn products_without_elements_write_nothing_and_sums_of_nothing_are_zero() {
    each_device_with_products(|device, stream| {
        for mnk in [[0, 7, 3], [5, 0, 3], [5, 7, 0]] {
            check(device, stream, &Case { mnk, ..Case::default() });
        }
        check(device, stream, &Case { mnk: [5, 7, 0], activation: Activation::Relu, ..Case::default() });
        check(device, stream, &Case { batch: vec![0], ..Case::default() });
    });
}

#[test]
fn a_workspace_is_asked_for_and_a_short_one_is_refused() {
    let Some(fake) = Fake::new(&[]) else { return };
    let device = fake.open();
    let stream = device.create_stream().unwrap();
    let dense = |shape: &[u64]| OperandDesc::contiguous(DType::F32, shape);
    let kernel =
        load(&device, BuiltinKind::MatMul, vec![dense(&[2, 20]), dense(&[20, 2]), dense(&[2, 2])]).unwrap();
    assert_eq!(kernel.workspace_bytes(), 4096);
    let range = |len| Arg::from(device.allocate(len, MemoryKind::Device).unwrap().all());
    let args = vec![range(160), range(160), range(16), range(4095)];
    let error = stream.launch(&kernel, [1, 1, 1], &args).unwrap_err();
    assert!(error.message().contains("has 4095 bytes, its layout needs 4096"), "{error}");
    let args = vec![range(156), range(160), range(16), range(4096)];
    assert_eq!(stream.launch(&kernel, [1, 1, 1], &args).unwrap_err().kind(), &ErrorKind::InvalidArgument);
    launch(&device, &stream, &kernel, vec![range(160), range(160), range(16)]).unwrap();
    stream.synchronize().unwrap();
}

#[test]
fn an_operation_is_looked_up_once() {
    let Some(fake) = Fake::new(&[]) else { return };
    let device = fake.open();
    let dense = |shape: &[u64]| OperandDesc::contiguous(DType::F32, shape);
    let load = |n| load(&device, BuiltinKind::MatMul, vec![dense(&[2, 3]), dense(&[3, n]), dense(&[2, n])]);
    let kernels = [load(4).unwrap(), load(4).unwrap(), load(5).unwrap()];
    assert_eq!(fake.count("cublasLtMatmulAlgoGetHeuristic"), 2);
    assert_eq!(fake.count("blas"), 1);
    drop(kernels);
    assert_eq!(fake.count("descriptor"), 0);
}

#[test]
fn what_the_library_cannot_do_is_unsupported_and_what_it_fails_at_is_an_error() {
    let Some(fake) = Fake::new(&[]) else { return };
    let device = fake.open();
    let stream = device.create_stream().unwrap();
    let dense = |dtype, shape: &[u64]| OperandDesc::contiguous(dtype, shape);
    let operands = |dtype| vec![dense(dtype, &[2, 3]), dense(dtype, &[3, 2]), dense(dtype, &[2, 2])];
    let kind = |operands| load(&device, BuiltinKind::MatMul, operands).unwrap_err().kind().clone();
    assert_eq!(kind(operands(DType::I8)), ErrorKind::Unsupported);
    fake.fail("cublasLtMatmulAlgoGetHeuristic", 15, 0);
    assert_eq!(kind(operands(DType::F32)), ErrorKind::Unsupported);
    fake.fail("cublasLtMatmul", 13, 0);
    let kernel = load(&device, BuiltinKind::MatMul, operands(DType::F32)).unwrap();
    let range = |len| Arg::from(device.allocate(len, MemoryKind::Device).unwrap().all());
    let error = launch(&device, &stream, &kernel, vec![range(24), range(24), range(16)]).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Backend { code: 13, .. }), "{error}");
    assert_eq!(error.call(), Some("cublasLtMatmul"));
    launch(&device, &stream, &kernel, vec![range(24), range(24), range(16)]).unwrap();
}
