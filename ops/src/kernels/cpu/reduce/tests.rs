//! Random reductions of random programs against the reference interpreter.

use super::*;
use crate::cluster::{BinaryOp, Step};
use crate::kernels::cpu::elementwise::reference::{float, integer, interpret, read, rounded, wrap};
use crate::kernels::cpu::elementwise::tests::{is_available, random_memory, random_view};
use crate::kernels::cpu::harness::{Memory, Random, execute};
use crate::lower::TensorType;
use halite_hal::{Scalar, as_bytes};

/// The documented bound of f32 sums, with one rounding to the result's type.
fn sum_tolerance(n: usize, absolute: f64) -> f64 {
    (128.0 + n as f64 / 64.0) * 2f64.powi(-24) * absolute
}

/// What a reduction of one row must give; sums and products of floats with their tolerance.
pub(crate) fn expected(kind: ReduceKind, dtype: DType, row: &[u64]) -> (u64, f64) {
    let numbers: Vec<f64> =
        if dtype.is_float() { row.iter().map(|bits| float(dtype, *bits)).collect() } else { vec![] };
    let precision = match dtype {
        DType::F16 => 2f64.powi(-11),
        DType::BF16 => 2f64.powi(-8),
        DType::F32 => 2f64.powi(-24),
        _ => 2f64.powi(-50),
    };
    match kind {
        ReduceKind::Sum if dtype.is_float() => {
            let (sum, absolute) = numbers.iter().fold((0.0, 0.0), |(s, a), x| (s + x, a + x.abs()));
            let bound =
                if dtype == DType::F64 { 1e-12 * absolute } else { sum_tolerance(row.len(), absolute) };
            (rounded(dtype, sum), bound + 2.0 * precision * f64::abs(sum) + 1e-7)
        }
        ReduceKind::Prod if dtype.is_float() => {
            let product: f64 = numbers.iter().product();
            let roundings = if dtype == DType::F64 { 1e-12 } else { 2f64.powi(-24) * row.len() as f64 };
            (rounded(dtype, product), product.abs() * (2.0 * precision + roundings) + 1e-7)
        }
        ReduceKind::Sum => (wrap(dtype, row.iter().map(|bits| integer(dtype, *bits)).sum()), 0.0),
        ReduceKind::Prod => (
            row.iter().fold(1, |product, bits| {
                wrap(dtype, integer(dtype, product).wrapping_mul(integer(dtype, *bits)))
            }),
            0.0,
        ),
        ReduceKind::Max | ReduceKind::Min | ReduceKind::ArgMax => {
            let mut best = 0;
            for at in 1..row.len() {
                let better = if dtype.is_float() {
                    let (new, old) = (numbers[at], numbers[best]);
                    let beats = if kind == ReduceKind::Min { new < old } else { new > old };
                    beats || new.is_nan() && !old.is_nan()
                } else {
                    let (new, old) = (integer(dtype, row[at]), integer(dtype, row[best]));
                    if kind == ReduceKind::Min { new < old } else { new > old }
                };
                best = if better { at } else { best };
            }
            if kind == ReduceKind::ArgMax {
                return (best as u64, 0.0);
            }
            (row.get(best).copied().unwrap_or_else(|| empty(kind, dtype)), 0.0)
        }
    }
}

/// The documented results over nothing.
fn empty(kind: ReduceKind, dtype: DType) -> u64 {
    let highest = kind == ReduceKind::Min;
    if dtype.is_float() {
        return rounded(dtype, if highest { f64::INFINITY } else { f64::NEG_INFINITY });
    }
    let bits = dtype.size() as u32 * 8;
    match (dtype, dtype.is_signed(), highest) {
        (DType::Bool, ..) => u64::from(highest),
        (_, true, true) => wrap(dtype, (1 << (bits - 1)) - 1),
        (_, true, false) => wrap(dtype, -(1 << (bits - 1))),
        (_, false, true) => wrap(dtype, (1 << bits) - 1),
        (_, false, false) => 0,
    }
}

fn check(reduction: &Reduction, inputs: &[(TensorType, Memory)], scalars: &[Scalar], context: &str) {
    let program = &reduction.program;
    let bytes: Vec<&[u8]> = inputs.iter().map(|(_, memory)| memory.bytes()).collect();
    let values = &interpret(program, &bytes, scalars)[0];
    let dtype = program.output_dtype(0);
    let kept: usize = program.shape[..reduction.kept_rank].iter().product();
    let length: usize = program.shape[reduction.kept_rank..].iter().product();
    let output = TensorType::new(reduction.dtype, &program.shape[..reduction.kept_rank]);
    let op = KernelOp::Reduce(reduction.clone());
    for variant in variants().iter().filter(|variant| is_available(variant)) {
        let got = execute(variant, &op, inputs, std::slice::from_ref(&output), &[], scalars)
            .unwrap_or_else(|error| panic!("{context}: {error}"));
        for row in 0..kept {
            let (expected, tolerance) =
                expected(reduction.kind, dtype, &values[row * length..(row + 1) * length]);
            let got = read(got[0].bytes(), reduction.dtype, row);
            let close = got == expected
                || reduction.dtype.is_float() && {
                    let (got, expected) = (float(dtype, got), float(dtype, expected));
                    got == expected
                        || got.is_nan() && expected.is_nan()
                        || (got - expected).abs() <= tolerance
                };
            assert!(
                close,
                "{context}, {}: row {row} is {got:#x}, expected {expected:#x} within {tolerance:e} in {:?} {:?}\n{program}",
                variant.name, reduction.kind, program.inputs
            );
        }
    }
}

/// The reduction of one loaded input, with an optional square in front.
pub(crate) fn of_view(
    kind: ReduceKind,
    shape: &[usize],
    kept_rank: usize,
    view: View,
    squared: bool,
) -> Reduction {
    let dtype = view.dtype;
    let mut program = Cluster::copy(shape, view);
    if squared {
        program.steps.push(Step { op: StepOp::Binary(BinaryOp::Mul, 0, 0), dtype });
        program.outputs = vec![1];
    }
    let dtype = if kind == ReduceKind::ArgMax { DType::I32 } else { dtype };
    Reduction { kind, program, kept_rank, dtype }
}

#[test]
fn random_reductions_match_the_reference() {
    for seed in 0..400 {
        let mut random = Random::new(seed);
        let rank = random.below(5);
        let extents = [0, 1, 2, 3, 5, 8, 17, 33, 64];
        let mut shape: Vec<usize> =
            (0..rank).map(|_| random.pick(&extents[usize::from(seed % 7 != 0)..])).collect();
        if rank > 0 && rank < 3 {
            shape[random.below(rank)] = random.pick(&[193, 1021, 2500]);
        }
        while shape.iter().product::<usize>() > 60_000 {
            shape.pop();
        }
        let dtype = if seed % 2 == 0 { DType::F32 } else { random.pick(&DType::ALL) };
        let kind = random.pick(&ReduceKind::ALL);
        if dtype == DType::Bool && matches!(kind, ReduceKind::Sum | ReduceKind::Prod) {
            continue;
        }
        let kept = random.below(shape.len() + 1);
        let (view, elements) = random_view(&mut random, dtype, &shape);
        let mut memory = random_memory(&mut random, dtype, elements);
        // Infinities and NaN only in some, since they hide the other elements.
        if dtype.is_float() && random.below(3) > 0 {
            let bytes: Vec<u8> = (0..elements)
                .flat_map(|_| {
                    let near_one =
                        1.0 + f64::from(random.unit()) * if kind == ReduceKind::Prod { 0.01 } else { 4.0 };
                    rounded(dtype, near_one).to_le_bytes()[..dtype.size()].to_vec()
                })
                .collect();
            memory = Memory::new(&bytes);
        }
        let finite = (0..elements)
            .all(|at| !dtype.is_float() || float(dtype, read(memory.bytes(), dtype, at)).abs() < 1e3);
        if !finite && matches!(kind, ReduceKind::Sum | ReduceKind::Prod) {
            continue;
        }
        let squared = kind != ReduceKind::Prod && BinaryOp::Mul.accepts(dtype) && dtype != DType::F16;
        let reduction = of_view(kind, &shape, kept, view, squared);
        check(&reduction, &[(TensorType::new(dtype, &[elements]), memory)], &[], &format!("seed {seed}"));
    }
}

#[test]
fn few_results_of_many_elements_go_through_segments() {
    let mut random = Random::new(1);
    // Rows, columns, and kept channels between reduced axes; long enough for several segments.
    let cases: [(&[usize], usize, Vec<i64>); 4] = [
        (&[400_003], 0, vec![1]),
        (&[3, 200_001], 1, vec![200_001, 1]),
        (&[10, 50_021], 1, vec![1, 10]),
        (&[700, 1201], 1, vec![1, 700]),
    ];
    for (shape, kept, strides) in cases {
        let n: usize = shape.iter().product();
        let x: Vec<f32> = (0..n).map(|_| random.unit() + 0.25).collect();
        let input = [(TensorType::new(DType::F32, &[n]), Memory::new(as_bytes(&x)))];
        for kind in [ReduceKind::Sum, ReduceKind::Max, ReduceKind::ArgMax] {
            let view = View { dtype: DType::F32, offset: 0, strides: strides.clone() };
            let reduction = of_view(kind, shape, kept, view, false);
            check(&reduction, &input, &[], &format!("{shape:?}"));
        }
    }
}

#[test]
fn channels_are_summed_over_images_and_pixels() {
    let mut random = Random::new(8);
    for (images, channels, pixels) in
        [(64, 16, 784), (9, 33, 49), (130, 5, 16), (5, 1, 7), (4, 3, 1500), (7, 300, 2)]
    {
        let n = images * channels * pixels;
        let strides = vec![pixels as i64, (channels * pixels) as i64, 1];
        for dtype in [DType::F32, DType::F16, DType::I32] {
            let bytes: Vec<u8> = (0..n)
                .flat_map(|_| match dtype {
                    DType::I32 => random.bits().to_le_bytes()[..4].to_vec(),
                    _ => {
                        rounded(dtype, f64::from(random.unit()) + 0.1).to_le_bytes()[..dtype.size()].to_vec()
                    }
                })
                .collect();
            let input = [(TensorType::new(dtype, &[n]), Memory::new(&bytes))];
            for kind in [ReduceKind::Sum, ReduceKind::Max, ReduceKind::ArgMax] {
                let view = View { dtype, offset: 0, strides: strides.clone() };
                let reduction = of_view(kind, &[channels, images, pixels], 1, view, dtype == DType::F32);
                check(&reduction, &input, &[], &format!("{images} x {channels} x {pixels}"));
            }
        }
    }
}

#[test]
fn halves_are_summed_in_f32() {
    let n = 5000;
    for dtype in [DType::F16, DType::BF16] {
        // Every partial sum beyond 256 would lose the ones in bf16, and beyond 2048 in f16.
        let bytes: Vec<u8> = (0..n).flat_map(|_| (rounded(dtype, 1.0) as u16).to_le_bytes()).collect();
        let input = [(TensorType::new(dtype, &[n]), Memory::new(&bytes))];
        let reduction = of_view(ReduceKind::Sum, &[n], 0, View::contiguous(dtype, &[n]), false);
        check(&reduction, &input, &[], dtype.name());
        let columns = View { dtype, offset: 0, strides: vec![1, 2] };
        let reduction = of_view(ReduceKind::Sum, &[2, n / 2], 1, columns, false);
        check(&reduction, &input, &[], dtype.name());
    }
}

#[test]
fn the_result_does_not_depend_on_the_number_of_cores() {
    let mut random = Random::new(5);
    let shape = [7, 31, 977];
    let n: usize = shape.iter().product();
    let x: Vec<f32> = (0..n).map(|_| random.unit()).collect();
    let variant = variants().into_iter().find(is_available).expect("portable code is always available");
    for (strides, kept) in [(vec![31 * 977, 977, 1], 1), (vec![31 * 977, 977, 1], 0), (vec![1, 7, 7 * 31], 2)]
    {
        let view = View { dtype: DType::F32, offset: 0, strides };
        let op = KernelOp::Reduce(of_view(ReduceKind::Sum, &shape, kept, view, false));
        let types = [TensorType::new(DType::F32, &[n])];
        let outputs = [TensorType::new(DType::F32, &shape[..kept])];
        let results: Vec<Vec<u8>> = [1, 2, 64]
            .iter()
            .map(|cores| {
                let mut device = crate::kernels::cpu::harness::device();
                device.compute_units = *cores;
                let parameters = Default::default();
                let request = LowerRequest {
                    op: &op,
                    inputs: &types,
                    outputs: &outputs,
                    parameters: &parameters,
                    local_staging: None,
                    device: &device,
                };
                let lowered = (variant.lower)(&request).expect("a sum is served");
                let memory = vec![Memory::poisoned(outputs[0].len_bytes())];
                let run = crate::kernels::cpu::harness::run;
                run(&lowered, vec![Memory::new(as_bytes(&x))], memory, &[], &[])[0].bytes().to_vec()
            })
            .collect();
        assert!(results.iter().all(|result| *result == results[0]));
    }
}

#[test]
fn the_first_nan_is_the_largest() {
    let x = [1.0f32, 9.0, f32::NAN, 3.0, f32::NAN, f32::INFINITY];
    let input = [(TensorType::new(DType::F32, &[6]), Memory::new(as_bytes(&x)))];
    for kind in [ReduceKind::ArgMax, ReduceKind::Max, ReduceKind::Min] {
        check(&of_view(kind, &[6], 0, View::contiguous(DType::F32, &[6]), false), &input, &[], "NaN");
    }
}
