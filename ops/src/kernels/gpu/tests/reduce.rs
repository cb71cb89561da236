//! Reductions by rows, columns and segments against the reference.

use super::{Runner, runner};
use crate::cluster::{BinaryOp, View};
use crate::kernels::cpu::elementwise::reference::{float, interpret, read, rounded};
use crate::kernels::cpu::elementwise::tests::{random_memory, random_view};
use crate::kernels::cpu::harness::{Memory, Random};
use crate::kernels::cpu::reduce::tests::{expected, of_view};
use crate::lower::{KernelOp, ReduceKind, Reduction, TensorType};
use halite_hal::{DType, as_bytes};
use halite_profiles::Parameters;

/// What GPUs want, and what CPUs want.
fn sizes() -> [Parameters; 3] {
    let sizes = Parameters::default;
    [
        sizes().with_threads([16]),
        sizes().with_threads([1]).with_chunk(16),
        sizes().with_threads([8]).with_chunk(4),
    ]
}

fn check(
    runner: &Runner,
    parameters: &Parameters,
    reduction: &Reduction,
    inputs: &[(TensorType, Memory)],
    context: &str,
) {
    let program = &reduction.program;
    let bytes: Vec<&[u8]> = inputs.iter().map(|(_, memory)| memory.bytes()).collect();
    let values = &interpret(program, &bytes, &[])[0];
    let output = TensorType::new(reduction.dtype, &program.shape[..reduction.kept_rank]);
    let op = KernelOp::Reduce(reduction.clone());
    for variant in ["generated", "precompiled"] {
        let got = runner
            .run(variant, parameters, &op, inputs, std::slice::from_ref(&output))
            .unwrap_or_else(|reason| panic!("{context}: {variant}: {reason}"));
        compare(reduction, values, &got[0], &format!("{context}: {variant}"));
    }
}

fn compare(reduction: &Reduction, values: &[u64], got: &Memory, context: &str) {
    let program = &reduction.program;
    let dtype = program.output_dtype(0);
    let kept: usize = program.shape[..reduction.kept_rank].iter().product();
    let length: usize = program.shape[reduction.kept_rank..].iter().product();
    for row in 0..kept {
        let (expected, tolerance) =
            expected(reduction.kind, dtype, &values[row * length..(row + 1) * length]);
        let got = read(got.bytes(), reduction.dtype, row);
        let is_close = || {
            let (got, expected) = (float(reduction.dtype, got), float(reduction.dtype, expected));
            got == expected || got.is_nan() && expected.is_nan() || (got - expected).abs() <= tolerance
        };
        assert!(
            got == expected || reduction.dtype.is_float() && is_close(),
            "{context}: row {row} is {got:#x}, expected {expected:#x} within {tolerance:e} in {:?} {:?}\n{program}",
            reduction.kind,
            program.inputs
        );
    }
}

/// Elements near 1, so that neither sums nor products hide any.
fn near_one(random: &mut Random, dtype: DType, elements: usize) -> Memory {
    let element = |random: &mut Random| rounded(dtype, 1.0 + f64::from(random.unit()) * 0.01);
    let bytes = (0..elements).flat_map(|_| element(random).to_le_bytes()[..dtype.size()].to_vec());
    Memory::new(&bytes.collect::<Vec<u8>>())
}

#[test]
fn random_reductions_match_the_reference() {
    let Some(runner) = runner() else { return };
    for seed in 0..runner.cases(120) {
        let mut random = Random::new(seed);
        let extents = [0, 1, 2, 3, 5, 8, 17, 33];
        let rank = random.below(5);
        let mut shape: Vec<usize> =
            (0..rank).map(|_| random.pick(&extents[usize::from(seed % 7 != 0)..])).collect();
        if rank > 0 && rank < 3 {
            shape[random.below(rank)] = random.pick(&[193, 1021]);
        }
        while shape.iter().product::<usize>() > 20_000 {
            shape.pop();
        }
        let dtype = if seed % 2 == 0 { DType::F32 } else { random.pick(&DType::ALL) };
        let kind = random.pick(&ReduceKind::ALL);
        let folds = matches!(kind, ReduceKind::Sum | ReduceKind::Prod);
        if dtype == DType::Bool && folds || dtype == DType::F64 && !runner.has_f64() {
            continue;
        }
        let kept = random.below(shape.len() + 1);
        let (view, elements) = random_view(&mut random, dtype, &shape);
        let memory = if dtype.is_float() && (folds || random.below(3) > 0) {
            near_one(&mut random, dtype, elements)
        } else {
            random_memory(&mut random, dtype, elements)
        };
        let squared = kind != ReduceKind::Prod && BinaryOp::Mul.accepts(dtype) && dtype != DType::F16;
        let reduction = of_view(kind, &shape, kept, view, squared);
        let inputs = [(TensorType::new(dtype, &[elements]), memory)];
        check(runner, &sizes()[seed as usize % 3], &reduction, &inputs, &format!("seed {seed}"));
    }
}

#[test]
fn few_results_of_many_elements_go_through_segments() {
    let Some(runner) = runner() else { return };
    let mut random = Random::new(1);
    // Rows, columns, and kept channels between reduced axes; long enough for several segments.
    let cases: [(&[usize], usize, Vec<i64>); 4] = [
        (&[40_003], 0, vec![1]),
        (&[3, 20_001], 1, vec![20_001, 1]),
        (&[5, 5_021], 1, vec![1, 5]),
        (&[3, 330, 47], 1, vec![47, 3 * 47, 1]),
    ];
    // A simulator of instructions would take minutes for all of it.
    let cases = if runner.is_simulated() { &cases[2..3] } else { &cases[..] };
    for (shape, kept, strides) in cases.iter().cloned() {
        let n: usize = shape.iter().product();
        let x: Vec<f32> = (0..n).map(|_| random.unit() + 0.25).collect();
        let input = [(TensorType::new(DType::F32, &[n]), Memory::new(as_bytes(&x)))];
        for kind in [ReduceKind::Sum, ReduceKind::Max, ReduceKind::ArgMax] {
            let view = View { dtype: DType::F32, offset: 0, strides: strides.clone() };
            let reduction = of_view(kind, shape, kept, view, false);
            for parameters in &sizes()[..2] {
                check(runner, parameters, &reduction, &input, &format!("{shape:?}"));
            }
            let op = KernelOp::Reduce(reduction.clone());
            let output = [TensorType::new(reduction.dtype, &shape[..kept])];
            let lowered = runner.lower("generated", &sizes()[0], &op, &input, &output);
            assert_eq!(lowered.expect("it ran").launches.len(), 2, "{shape:?} is cut");
        }
    }
}

#[test]
fn halves_are_summed_in_f32() {
    let Some(runner) = runner() else { return };
    let n = 5000;
    for dtype in [DType::F16, DType::BF16] {
        // Every partial sum beyond 256 would lose the ones in bf16, and beyond 2048 in f16.
        let bytes: Vec<u8> = (0..n).flat_map(|_| (rounded(dtype, 1.0) as u16).to_le_bytes()).collect();
        let input = [(TensorType::new(dtype, &[n]), Memory::new(&bytes))];
        let whole = of_view(ReduceKind::Sum, &[n], 0, View::contiguous(dtype, &[n]), false);
        check(runner, &sizes()[0], &whole, &input, dtype.name());
        let columns = View { dtype, offset: 0, strides: vec![1, 2] };
        let columns = of_view(ReduceKind::Sum, &[2, n / 2], 1, columns, false);
        check(runner, &sizes()[1], &columns, &input, dtype.name());
    }
}

#[test]
fn the_place_of_the_largest_square_is_found_among_halves() {
    let Some(runner) = runner() else { return };
    let mut random = Random::new(2);
    for dtype in [DType::F16, DType::BF16] {
        let input = [(TensorType::new(dtype, &[3, 67]), near_one(&mut random, dtype, 3 * 67))];
        let view = View::contiguous(dtype, &[3, 67]);
        let reduction = of_view(ReduceKind::ArgMax, &[3, 67], 1, view, true);
        check(runner, &sizes()[0], &reduction, &input, dtype.name());
    }
}

#[test]
fn the_first_nan_is_the_largest() {
    let Some(runner) = runner() else { return };
    let x = [1.0f32, 9.0, f32::NAN, 3.0, f32::NAN, f32::INFINITY];
    let x: Vec<f32> = x.into_iter().chain([8.0; 60]).collect();
    let input = [(TensorType::new(DType::F32, &[66]), Memory::new(as_bytes(&x)))];
    for kind in [ReduceKind::ArgMax, ReduceKind::Max, ReduceKind::Min] {
        let reduction = of_view(kind, &[66], 0, View::contiguous(DType::F32, &[66]), false);
        for parameters in &sizes() {
            check(runner, parameters, &reduction, &input, "NaN");
        }
    }
}
