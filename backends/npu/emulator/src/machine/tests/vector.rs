//! Every vector operation against plain loops.

use half::{bf16, f16};
use halite_npu_isa::{
    Access, BinaryOp, CompareOp, CoreKind, DType, Dim, Inst, KernelBuilder, Operand, Pipe, ReduceOp, UnaryOp,
};

use super::{Arg, Bench, Random};

type UnaryCase = (UnaryOp, fn(f64) -> f64, f32);
type BinaryCase<T> = (BinaryOp, fn(T, T) -> T);

const ONE: Dim = Dim::ONE;
/// Places of three operands and a result in UB, each of up to 40 KiB.
const AT: [i32; 4] = [0, 40 << 10, 80 << 10, 120 << 10];
/// Sizes around a chunk, and those that end a lane array early.
const COUNTS: [usize; 6] = [0, 1, 7, 255, 257, 1013];

fn dense(dtype: DType, count: usize) -> [Dim; 4] {
    let size = dtype.size() as i32;
    [ONE, ONE, ONE, Dim::new(count as i32, size, size)]
}

/// Loads inputs to `AT[0]..`, runs `body`, stores `count` results from `AT[3]`.
fn run<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(
    bench: &Bench,
    inputs: &[(DType, u64, usize)],
    (out_dtype, count): (DType, usize),
    body: impl FnOnce(&mut KernelBuilder),
) -> Vec<T> {
    let mut b = KernelBuilder::new("vector", CoreKind::Vector);
    let mut args = Vec::new();
    for (&(dtype, address, count), at) in inputs.iter().zip(AT) {
        let src = b.buffer(Access::Read);
        b.load_ub(dtype, at, src, dense(dtype, count));
        args.push(Arg::Buffer(address));
    }
    let dst = b.buffer(Access::Write);
    b.sync(Pipe::Mte2, Pipe::V, 0);
    body(&mut b);
    b.sync(Pipe::V, Pipe::Mte3, 0);
    b.store_ub(out_dtype, dst, AT[3], dense(out_dtype, count));
    let out = bench.upload(&vec![0xA5_u8; count * out_dtype.size()]);
    args.push(Arg::Buffer(out));
    bench.launch(b.finish().expect("the kernel obeys the rules"), 1, &args).expect("the launch succeeds");
    bench.download(out, count)
}

/// Ordinary values, and the ones at the edges.
fn floats(random: &mut Random, count: usize, scale: f32) -> Vec<f32> {
    let edges =
        [0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.0, -1.0, 0.5, f32::MIN_POSITIVE / 4.0];
    (0..count)
        .map(|i| if i % 11 == 3 { edges[i / 11 % edges.len()] } else { random.unit() * scale })
        .collect()
}

/// Units in the last place of the reference, rounded to f32.
fn ulps(actual: f32, expected: f64) -> f64 {
    let rounded = expected as f32;
    if actual.is_nan() && rounded.is_nan() || actual == rounded {
        return 0.0;
    }
    let unit = f64::from(f32::from_bits(rounded.abs().to_bits() + 1)) - f64::from(rounded.abs());
    (f64::from(actual) - expected).abs() / unit
}

#[test]
fn unary_floats_are_within_one_ulp() {
    let bench = Bench::new();
    let mut random = Random::new(11);
    // Double rounding aside, a result rounded from f64 is half a unit from the true value.
    const MAX_ULP: f64 = 0.51;
    let cases: [UnaryCase; 18] = [
        (UnaryOp::Neg, |x| -x, 10.0),
        (UnaryOp::Abs, f64::abs, 10.0),
        (UnaryOp::Sign, |x| if x == 0.0 || x.is_nan() { x } else { x.signum() }, 1.0),
        (UnaryOp::Floor, f64::floor, 10.0),
        (UnaryOp::Ceil, f64::ceil, 10.0),
        (UnaryOp::Round, f64::round_ties_even, 10.0),
        (UnaryOp::Trunc, f64::trunc, 10.0),
        (UnaryOp::Exp, f64::exp, 90.0),
        (UnaryOp::Expm1, f64::exp_m1, 1.0),
        (UnaryOp::Log, f64::ln, 10.0),
        (UnaryOp::Log1p, f64::ln_1p, 1.0),
        (UnaryOp::Sqrt, f64::sqrt, 10.0),
        (UnaryOp::Rsqrt, |x| 1.0 / x.sqrt(), 10.0),
        (UnaryOp::Recip, f64::recip, 10.0),
        (UnaryOp::Sin, f64::sin, 100.0),
        (UnaryOp::Cos, f64::cos, 100.0),
        (UnaryOp::Tanh, f64::tanh, 3.0),
        (UnaryOp::Relu, |x| if x < 0.0 { 0.0 } else { x }, 3.0),
    ];
    for (op, reference, scale) in cases {
        for count in COUNTS {
            let values = floats(&mut random, count, scale);
            let input = (DType::F32, bench.upload(&values), count);
            let out: Vec<f32> = run(&bench, &[input], (DType::F32, count), |b| {
                b.unary(op, DType::F32, AT[3], AT[0], count as i32);
            });
            for (&x, &y) in values.iter().zip(&out) {
                let expected = reference(f64::from(x));
                assert!(ulps(y, expected) <= MAX_ULP, "{op}({x}) is {y}, expected {expected}");
            }
        }
    }
    // erf at points of a published table (Abramowitz and Stegun, table 7.1).
    let table = [(0.0, 0.0), (0.5, 0.520_499_877_8), (1.0, 0.842_700_792_9), (2.0, 0.995_322_265_0)];
    let values: Vec<f32> = table.iter().flat_map(|&(x, _)| [x, -x]).collect();
    let input = (DType::F32, bench.upload(&values), values.len());
    let out: Vec<f32> = run(&bench, &[input], (DType::F32, values.len()), |b| {
        b.unary(UnaryOp::Erf, DType::F32, AT[3], AT[0], values.len() as i32);
    });
    for (i, &y) in out.iter().enumerate() {
        let (x, expected) = table[i / 2];
        let expected = if i % 2 == 0 { expected } else { -expected };
        assert!((f64::from(y) - expected).abs() < 1e-7, "erf({x}) is {y}");
    }
}

#[test]
fn binary_floats_follow_the_numerics_policy() {
    let bench = Bench::new();
    let mut random = Random::new(12);
    let max = |a: f32, b: f32| if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) };
    let min = |a: f32, b: f32| if a.is_nan() || b.is_nan() { f32::NAN } else { a.min(b) };
    let cases: [BinaryCase<f32>; 8] = [
        (BinaryOp::Add, |a, b| a + b),
        (BinaryOp::Sub, |a, b| a - b),
        (BinaryOp::Mul, |a, b| a * b),
        (BinaryOp::Div, |a, b| a / b),
        (BinaryOp::Rem, |a, b| a % b),
        (BinaryOp::Pow, |a, b| f64::from(a).powf(f64::from(b)) as f32),
        (BinaryOp::Max, max),
        (BinaryOp::Min, min),
    ];
    for (op, reference) in cases {
        for count in COUNTS {
            let (lhs, rhs) = (floats(&mut random, count, 4.0), floats(&mut random, count + 5, 4.0));
            let rhs = &rhs[5.min(rhs.len())..];
            let inputs = [(DType::F32, bench.upload(&lhs), count), (DType::F32, bench.upload(rhs), count)];
            // Apart, and in the place of the left operand.
            let apart: Vec<f32> = run(&bench, &inputs, (DType::F32, count), |b| {
                b.binary(op, DType::F32, AT[3], AT[0], AT[1], count as i32);
            });
            let in_place: Vec<f32> = run(&bench, &inputs, (DType::F32, count), |b| {
                b.binary(op, DType::F32, AT[0], AT[0], AT[1], count as i32);
                b.binary_scalar(BinaryOp::Mul, DType::F32, AT[3], AT[0], Operand::f32(1.0), count as i32);
            });
            for i in 0..count {
                let expected = reference(lhs[i], rhs[i]);
                for y in [apart[i], in_place[i]] {
                    assert!(
                        y == expected || y.is_nan() && expected.is_nan(),
                        "{op}({}, {}) is {y}, expected {expected}",
                        lhs[i],
                        rhs[i]
                    );
                }
            }
        }
    }
}

#[test]
fn halves_compute_in_f32_and_round() {
    let bench = Bench::new();
    let mut random = Random::new(13);
    let count = 300;
    let (lhs, rhs) = (floats(&mut random, count, 100.0), floats(&mut random, count, 3.0));
    let halves = |values: &[f32]| values.iter().map(|&value| f16::from_f32(value)).collect::<Vec<_>>();
    let (lhs, rhs) = (halves(&lhs), halves(&rhs));
    let inputs = [(DType::F16, bench.upload(&lhs), count), (DType::F16, bench.upload(&rhs), count)];
    let out: Vec<f16> = run(&bench, &inputs, (DType::F16, count), |b| {
        b.binary(BinaryOp::Mul, DType::F16, AT[3], AT[0], AT[1], count as i32);
    });
    for i in 0..count {
        let expected = f16::from_f32(lhs[i].to_f32() * rhs[i].to_f32());
        assert!(out[i].to_bits() == expected.to_bits() || out[i].is_nan() && expected.is_nan());
    }
    let out: Vec<bf16> = run(&bench, &inputs[..1], (DType::BF16, count), |b| {
        b.convert(DType::F16, DType::BF16, AT[2], AT[0], count as i32);
        b.unary(UnaryOp::Exp, DType::BF16, AT[3], AT[2], count as i32);
    });
    for i in 0..count {
        let x = bf16::from_f32(lhs[i].to_f32()).to_f32();
        let expected = bf16::from_f32(f64::from(x).exp() as f32);
        assert!(out[i].to_bits() == expected.to_bits() || out[i].is_nan() && expected.is_nan(), "exp({x})");
    }
}

#[test]
fn integers_wrap_shift_and_divide_with_defined_results() {
    let bench = Bench::new();
    let lhs: Vec<i32> = [0, 1, -1, 7, -7, i32::MAX, i32::MIN, 12345].repeat(8);
    let rhs: Vec<i32> =
        lhs.iter().enumerate().map(|(i, _)| [0, 1, -1, 3, 31, 32, i32::MIN, 100][i / 8]).collect();
    let count = lhs.len();
    let cases: [BinaryCase<i32>; 12] = [
        (BinaryOp::Add, i32::wrapping_add),
        (BinaryOp::Sub, i32::wrapping_sub),
        (BinaryOp::Mul, i32::wrapping_mul),
        (BinaryOp::Div, |a, b| if b == 0 { 0 } else { a.wrapping_div(b) }),
        (BinaryOp::Rem, |a, b| if b == 0 { 0 } else { a.wrapping_rem(b) }),
        (BinaryOp::Max, |a, b| a.max(b)),
        (BinaryOp::Min, |a, b| a.min(b)),
        (BinaryOp::And, |a, b| a & b),
        (BinaryOp::Xor, |a, b| a ^ b),
        (BinaryOp::Shl, |a, b| if (0..32).contains(&b) { a << b } else { 0 }),
        (BinaryOp::Shr, |a, b| if (0..32).contains(&b) { a >> b } else { a >> 31 }),
        (BinaryOp::MulHigh, |a, b| ((i64::from(a) * i64::from(b)) >> 32) as i32),
    ];
    let inputs = [(DType::I32, bench.upload(&lhs), count), (DType::I32, bench.upload(&rhs), count)];
    for (op, reference) in cases {
        let out: Vec<i32> = run(&bench, &inputs, (DType::I32, count), |b| {
            b.binary(op, DType::I32, AT[3], AT[0], AT[1], count as i32);
        });
        let expected: Vec<i32> = lhs.iter().zip(&rhs).map(|(&a, &b)| reference(a, b)).collect();
        assert_eq!(out, expected, "{op}");
    }
    // A rotation, as counter-based generators need it.
    let inputs = [(DType::U32, bench.upload(&lhs), count)];
    let out: Vec<u32> = run(&bench, &inputs, (DType::U32, count), |b| {
        b.binary_scalar(BinaryOp::Shl, DType::U32, AT[1], AT[0], 13, count as i32);
        b.binary_scalar(BinaryOp::Shr, DType::U32, AT[2], AT[0], 19, count as i32);
        b.binary(BinaryOp::Or, DType::U32, AT[3], AT[1], AT[2], count as i32);
    });
    let expected: Vec<u32> = lhs.iter().map(|&a| a.cast_unsigned().rotate_left(13)).collect();
    assert_eq!(out, expected);
}

#[test]
fn comparisons_and_selection_treat_nan_as_unordered() {
    let bench = Bench::new();
    let lhs = [1.0, 2.0, f32::NAN, -0.0, f32::INFINITY, 3.0, f32::NAN];
    let rhs = [1.0, 3.0, 1.0, 0.0, f32::INFINITY, f32::NAN, f32::NAN];
    let count = lhs.len();
    let inputs = [(DType::F32, bench.upload(&lhs), count), (DType::F32, bench.upload(&rhs), count)];
    for (op, expected) in [
        (CompareOp::Eq, [1, 0, 0, 1, 1, 0, 0]),
        (CompareOp::Ne, [0, 1, 1, 0, 0, 1, 1]),
        (CompareOp::Lt, [0, 1, 0, 0, 0, 0, 0]),
        (CompareOp::Le, [1, 1, 0, 1, 1, 0, 0]),
        (CompareOp::Gt, [0, 0, 0, 0, 0, 0, 0]),
        (CompareOp::Ge, [1, 0, 0, 1, 1, 0, 0]),
    ] {
        let mask: Vec<u8> = run(&bench, &inputs, (DType::U8, count), |b| {
            b.compare(op, DType::F32, AT[3], AT[0], AT[1], count as i32);
        });
        assert_eq!(mask, expected, "{op}");
        let chosen: Vec<f32> = run(&bench, &inputs, (DType::F32, count), |b| {
            b.compare(op, DType::F32, AT[2], AT[0], AT[1], count as i32);
            b.select(DType::F32, AT[3], AT[2], AT[0], AT[1], count as i32);
        });
        for i in 0..count {
            let expected = if expected[i] == 1 { lhs[i] } else { rhs[i] };
            assert_eq!(chosen[i].to_bits(), expected.to_bits());
        }
    }
    let mask: Vec<u8> = run(&bench, &inputs, (DType::U8, count), |b| {
        let (dst, src, scalar) = (AT[3].into(), AT[0].into(), Operand::f32(1.5));
        let (op, dtype) = (CompareOp::Gt, DType::F32);
        b.push(Inst::CompareScalar { op, dtype, dst, src, scalar, count: (count as i32).into() });
    });
    assert_eq!(mask, [0, 1, 0, 0, 1, 1, 0]);
}

#[test]
fn conversions_saturate_and_truncate() {
    let bench = Bench::new();
    let values = [0.0, -0.9, 1.9, -1.9, 255.5, 300.0, 3e9, -3e9, f32::NAN, f32::INFINITY, 1e20, -1e20];
    let count = values.len();
    let input = [(DType::F32, bench.upload(&values), count)];
    let to =
        |dtype: DType| move |b: &mut KernelBuilder| b.convert(DType::F32, dtype, AT[3], AT[0], count as i32);
    assert_eq!(run::<i32>(&bench, &input, (DType::I32, count), to(DType::I32)), values.map(|v| v as i32));
    assert_eq!(run::<u32>(&bench, &input, (DType::U32, count), to(DType::U32)), values.map(|v| v as u32));
    assert_eq!(run::<u8>(&bench, &input, (DType::U8, count), to(DType::U8)), values.map(|v| v as u8));
    assert_eq!(run::<i64>(&bench, &input, (DType::I64, count), to(DType::I64)), values.map(|v| v as i64));
    let integers = [0, 1, -1, i32::MAX, i32::MIN, 256, 16_777_217];
    let count = integers.len();
    let input = [(DType::I32, bench.upload(&integers), count)];
    let out: Vec<f32> = run(&bench, &input, (DType::F32, count), |b| {
        b.convert(DType::I32, DType::F32, AT[3], AT[0], count as i32);
    });
    assert_eq!(out, integers.map(|v| v as f32));
    let out: Vec<u8> = run(&bench, &input, (DType::U8, count), |b| {
        b.convert(DType::I32, DType::U8, AT[3], AT[0], count as i32);
    });
    assert_eq!(out, integers.map(|v| v as u8));
    let out: Vec<i64> = run(&bench, &input, (DType::I64, count), |b| {
        b.convert(DType::I32, DType::I64, AT[3], AT[0], count as i32);
    });
    assert_eq!(out, integers.map(i64::from));
}

#[test]
fn reductions_of_rows_agree_with_f64() {
    let bench = Bench::new();
    let mut random = Random::new(14);
    for (rows, cols) in [(1, 0), (1, 1), (3, 7), (5, 64), (2, 1013)] {
        let stride = (cols * 4_usize).next_multiple_of(32);
        let values = random.units(rows * stride / 4);
        let input = [(DType::F32, bench.upload(&values), values.len())];
        let reduce = |op: ReduceOp| {
            move |b: &mut KernelBuilder| {
                let (dst, src) = (AT[3].into(), AT[0].into());
                let (cols, rows, row_stride) =
                    ((cols as i32).into(), (rows as i32).into(), (stride as i32).into());
                b.push(Inst::Reduce { op, dtype: DType::F32, dst, src, cols, rows, row_stride });
            }
        };
        let row = |r: usize| &values[r * stride / 4..r * stride / 4 + cols];
        let sums: Vec<f32> = run(&bench, &input, (DType::F32, rows), reduce(ReduceOp::Sum));
        let products: Vec<f32> = run(&bench, &input, (DType::F32, rows), reduce(ReduceOp::Prod));
        let greatest: Vec<f32> = run(&bench, &input, (DType::F32, rows), reduce(ReduceOp::Max));
        let least: Vec<f32> = run(&bench, &input, (DType::F32, rows), reduce(ReduceOp::Min));
        let first_greatest: Vec<i32> = run(&bench, &input, (DType::I32, rows), reduce(ReduceOp::ArgMax));
        let first_least: Vec<i32> = run(&bench, &input, (DType::I32, rows), reduce(ReduceOp::ArgMin));
        for r in 0..rows {
            let sum: f64 = row(r).iter().map(|&v| f64::from(v)).sum();
            assert!((f64::from(sums[r]) - sum).abs() < 1e-4);
            let product: f64 = row(r).iter().map(|&v| f64::from(v)).product();
            assert!((f64::from(products[r]) - product).abs() < 1e-6);
            assert_eq!(greatest[r], row(r).iter().copied().fold(f32::NEG_INFINITY, f32::max));
            assert_eq!(least[r], row(r).iter().copied().fold(f32::INFINITY, f32::min));
            if cols > 0 {
                assert_eq!(row(r)[first_greatest[r] as usize], greatest[r]);
                assert_eq!(row(r)[first_least[r] as usize], least[r]);
            }
        }
    }
    let values = [1.0, 5.0, 5.0, f32::NAN, 9.0, f32::NAN, 0.0, 0.0];
    let input = [(DType::F32, bench.upload(&values), values.len())];
    for (op, expected) in [(ReduceOp::ArgMax, 3), (ReduceOp::ArgMin, 3)] {
        let out: Vec<i32> = run(&bench, &input, (DType::I32, 1), |b| {
            let (dst, src, one) = (AT[3].into(), AT[0].into(), 1.into());
            b.push(Inst::Reduce {
                op,
                dtype: DType::F32,
                dst,
                src,
                cols: 8.into(),
                rows: one,
                row_stride: one,
            });
        });
        assert_eq!(out, [expected], "the first NaN wins");
    }
    let integers = [i32::MAX, 1, -5, 7];
    let input = [(DType::I32, bench.upload(&integers), 4)];
    for (op, expected) in
        [(ReduceOp::Sum, i32::MIN + 2), (ReduceOp::Max, i32::MAX), (ReduceOp::Min, -5), (ReduceOp::ArgMin, 2)]
    {
        let out: Vec<i32> = run(&bench, &input, (DType::I32, 1), |b| {
            let (dst, src, one) = (AT[3].into(), AT[0].into(), 1.into());
            b.push(Inst::Reduce {
                op,
                dtype: DType::I32,
                dst,
                src,
                cols: 4.into(),
                rows: one,
                row_stride: one,
            });
        });
        assert_eq!(out, [expected], "{op}");
    }
}

#[test]
fn rows_repeat_broadcast_gather_transpose_and_count() {
    let bench = Bench::new();
    let values: Vec<f32> = (0..24).map(|i| i as f32).collect();
    let input = [(DType::F32, bench.upload(&values), 24)];
    // Three rows of eight plus the first row, repeated.
    let out: Vec<f32> = run(&bench, &input, (DType::F32, 24), |b| {
        b.push(Inst::Binary {
            op: BinaryOp::Add,
            dtype: DType::F32,
            dst: AT[3].into(),
            lhs: AT[0].into(),
            rhs: AT[0].into(),
            cols: 8.into(),
            rows: 3.into(),
            dst_stride: 32.into(),
            lhs_stride: 32.into(),
            rhs_stride: 0.into(),
        });
    });
    assert!((0..24).all(|i| out[i] == (i + i % 8) as f32));
    let out: Vec<f32> = run(&bench, &input, (DType::F32, 24), |b| {
        let (dst, src) = (AT[3].into(), AT[0].into());
        b.push(Inst::Broadcast {
            dtype: DType::F32,
            dst,
            src,
            cols: 8.into(),
            rows: 3.into(),
            dst_stride: 32.into(),
        });
    });
    assert!((0..24).all(|i| out[i] == (i / 8) as f32));
    let out: Vec<f32> = run(&bench, &input, (DType::F32, 24), |b| {
        let (dst, src) = (AT[3].into(), AT[0].into());
        b.push(Inst::Transpose { dtype: DType::F32, dst, src, rows: 4.into(), cols: 6.into() });
    });
    assert!((0..24).all(|i| out[i] == (i % 4 * 6 + i / 4) as f32));
    let index: Vec<u32> = (0..24).map(|i| (i * 7) % 24).collect();
    let inputs = [input[0], (DType::U32, bench.upload(&index), 24)];
    let out: Vec<f32> = run(&bench, &inputs, (DType::F32, 24), |b| {
        let (dst, src, index) = (AT[3].into(), AT[0].into(), AT[1].into());
        b.push(Inst::Gather { dtype: DType::F32, dst, src, index, count: 24.into(), limit: 24.into() });
    });
    assert!((0..24).all(|i| out[i] == (i * 7 % 24) as f32));
    let out: Vec<i32> = run(&bench, &[], (DType::I32, 300), |b| {
        let (dst, start, step) = (AT[3].into(), (-5).into(), 3.into());
        b.push(Inst::Iota { dtype: DType::I32, dst, start, step, count: 300.into() });
    });
    assert!((0..300).all(|i| out[i as usize] == 3 * i - 5));
    let out: Vec<u8> = run(&bench, &input, (DType::U8, 24), |b| {
        b.convert(DType::F32, DType::U8, AT[1], AT[0], 24);
        b.unary(UnaryOp::Not, DType::U8, AT[3], AT[1], 24);
    });
    assert!((0..24).all(|i| out[i] == u8::from(i == 0)));
}
