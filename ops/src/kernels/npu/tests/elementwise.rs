//! Fused programs, reductions and padding against the plain interpreter.

use super::reference::{Value, evaluate};
use super::{Npu, Random, f32_bytes, f32_values, ty};
use crate::cluster::{
    BinaryOp, Cluster, CompareOp, Literal, Step, StepOp, UnaryOp, View, contiguous_strides,
};
use crate::lower::{KernelOp, Pad, ReduceKind, Reduction};
use halite_hal::{DType, Scalar};

/// Steps round as f32 does; a function computed in f64 and one in f32 differ by a unit in the last place.
const F32_TOLERANCE: f64 = 2e-7;

fn check(npu: &Npu, program: &Cluster, inputs: &[Vec<u8>], scalars: &[Scalar]) {
    let types: Vec<_> =
        (0..program.outputs.len()).map(|n| ty(program.output_dtype(n), &program.shape)).collect();
    let results = npu.run(&KernelOp::Elementwise(program.clone()), inputs, &types, scalars);
    let expected = evaluate(program, inputs, scalars);
    for (n, (bytes, expected)) in results.iter().zip(&expected).enumerate() {
        assert_same(bytes, types[n].dtype, expected, F32_TOLERANCE, &format!("output {n} of {program}"));
    }
}

fn assert_same(bytes: &[u8], dtype: DType, expected: &[Value], tolerance: f64, what: &str) {
    assert_eq!(bytes.len(), expected.len() * dtype.size(), "{what}");
    for (i, &expected) in expected.iter().enumerate() {
        match (Value::read(dtype, bytes, i as i64), expected) {
            (Value::Float(actual), Value::Float(expected)) => {
                let same = actual == expected || actual.is_nan() && expected.is_nan();
                let near = (actual - expected).abs() <= tolerance * expected.abs().max(1e-3);
                assert!(same || near, "{what}: element {i} is {actual}, expected {expected}");
            }
            (actual, expected) => {
                assert_eq!(actual.bits(dtype), expected.bits(dtype), "{what}: element {i}");
            }
        }
    }
}

fn step(op: StepOp, dtype: DType) -> Step {
    Step { op, dtype }
}

fn constant(dtype: DType, value: f64) -> Step {
    step(StepOp::Constant(Literal::new(dtype, value)), dtype)
}

/// relu(x * s + row) with a mask, an index and a second output of another type.
fn fused(shape: &[usize]) -> Cluster {
    let dense = contiguous_strides(shape);
    let mut row = dense.clone();
    // A vector along the last axis, broadcast over the others.
    let last = shape.len() - 1;
    row.iter_mut().take(last).for_each(|stride| *stride = 0);
    let f32 = DType::F32;
    Cluster {
        shape: shape.to_vec(),
        inputs: vec![
            View { dtype: f32, offset: 0, strides: dense },
            View { dtype: f32, offset: 0, strides: row },
        ],
        scalars: vec![f32, DType::I32],
        steps: vec![
            step(StepOp::Load(0), f32),
            step(StepOp::Load(1), f32),
            step(StepOp::Scalar(0), f32),
            step(StepOp::Binary(BinaryOp::Mul, 0, 2), f32),
            step(StepOp::Binary(BinaryOp::Add, 3, 1), f32),
            constant(f32, 0.0),
            step(StepOp::Binary(BinaryOp::Max, 4, 5), f32),
            step(StepOp::Compare(CompareOp::Lt, 5, 4), DType::Bool),
            step(StepOp::Index(last as u32), DType::I32),
            step(StepOp::Scalar(1), DType::I32),
            step(StepOp::Binary(BinaryOp::Sub, 9, 8), DType::I32),
            step(StepOp::Cast(10), f32),
            step(StepOp::Select(7, 6, 11), f32),
            step(StepOp::Unary(UnaryOp::Exp, 4), f32),
            step(StepOp::Cast(13), DType::F16),
        ],
        outputs: vec![12, 7, 14, 10],
    }
}

#[test]
fn fused_programs_of_all_sizes_agree_with_the_interpreter() {
    let mut random = Random::new(1);
    let shapes: [&[usize]; 10] = [
        &[1],
        &[2],
        &[31],
        &[4096],
        &[10007],
        &[3, 5],
        &[67, 129],
        &[2, 1, 5003],
        &[5, 3, 7, 11],
        &[101, 2, 1, 103],
    ];
    for cores in [1, 48] {
        let npu = Npu::new(cores);
        for shape in shapes {
            let program = fused(shape);
            let points: usize = shape.iter().product();
            let inputs = [f32_bytes(&random.units(points)), f32_bytes(&random.units(shape[shape.len() - 1]))];
            check(&npu, &program, &inputs, &[Scalar::F32(0.75), Scalar::I32(100)]);
        }
    }
}

#[test]
fn views_permute_flip_broadcast_and_slice() {
    let npu = Npu::new(3);
    let mut random = Random::new(2);
    for round in 0..60 {
        let rank = 1 + round % 6;
        let shape: Vec<usize> =
            (0..rank).map(|_| 1 + random.below([3000, 90, 20, 9, 6, 5][rank - 1])).collect();
        // A dense buffer whose axes stand in another order, some of them flipped, broadcast or taken in steps.
        let mut order: Vec<usize> = (0..rank).collect();
        for i in (1..rank).rev() {
            order.swap(i, random.below(i + 1));
        }
        let (mut strides, mut offset, mut len) = (vec![0_i64; rank], random.below(4) as i64, 1_i64);
        for &axis in &order {
            let kind = random.below(5);
            if kind == 0 {
                continue;
            }
            let by = if kind == 1 { 2 } else { 1 };
            strides[axis] = len * by;
            len *= shape[axis] as i64 * by;
            if kind == 2 {
                offset += strides[axis] * (shape[axis] as i64 - 1);
                strides[axis] = -strides[axis];
            }
        }
        let dtype = [DType::F32, DType::U8, DType::F16, DType::I64][round % 4];
        let data: Vec<u8> =
            (0..(len as usize + 8) * dtype.size()).map(|_| (random.bits() >> 9) as u8 & 0x3B).collect();
        check(&npu, &Cluster::copy(&shape, View { dtype, offset, strides }), &[data], &[]);
    }
}

#[test]
fn every_function_of_every_dtype_agrees() {
    let npu = Npu::new(2);
    let mut random = Random::new(3);
    let count = 300;
    for dtype in
        [DType::F32, DType::F16, DType::BF16, DType::I32, DType::U32, DType::U8, DType::I64, DType::Bool]
    {
        let data = |random: &mut Random| -> Vec<u8> {
            (0..count)
                .flat_map(|i| {
                    let value = match (dtype, i % 9) {
                        (DType::Bool, _) => Value::Int((random.bits() >> 33 & 1) as i64),
                        (_, 0) if dtype.is_float() => Value::Float(f64::NAN),
                        (_, 1) if dtype.is_float() => Value::Float(f64::INFINITY),
                        (_, 2) => Value::Int(0),
                        _ if dtype.is_float() => Value::Float(f64::from(random.unit()) * 4.0),
                        (_, 3) => Value::Int((random.bits() >> 3) as i64),
                        _ => Value::Int(random.below(60) as i64 - 20),
                    };
                    value.bits(dtype).to_ne_bytes()[..dtype.size()].to_vec()
                })
                .collect()
        };
        let inputs = [data(&mut random), data(&mut random)];
        let view = || View::contiguous(dtype, &[count]);
        let mut steps = vec![step(StepOp::Load(0), dtype), step(StepOp::Load(1), dtype)];
        steps.extend(
            UnaryOp::ALL.iter().filter(|op| op.accepts(dtype)).map(|&op| step(StepOp::Unary(op, 0), dtype)),
        );
        steps.extend(
            BinaryOp::ALL
                .iter()
                .filter(|op| op.accepts(dtype))
                .map(|&op| step(StepOp::Binary(op, 0, 1), dtype)),
        );
        steps.extend(CompareOp::ALL.iter().map(|&op| step(StepOp::Compare(op, 0, 1), DType::Bool)));
        for to in
            [DType::F32, DType::F16, DType::BF16, DType::I32, DType::U32, DType::U8, DType::I64, DType::Bool]
        {
            steps.push(step(StepOp::Cast(0), to));
        }
        for id in 2..steps.len() {
            let mut one = steps[..2].to_vec();
            one.push(steps[id]);
            let program = Cluster {
                shape: vec![count],
                inputs: vec![view(), view()],
                scalars: Vec::new(),
                steps: one,
                outputs: vec![2],
            };
            let results = npu.run(
                &KernelOp::Elementwise(program.clone()),
                &inputs,
                &[ty(steps[id].dtype, &[count])],
                &[],
            );
            // A half may round the other way when the f32 before it does.
            let tolerance = if steps[id].dtype.size() == 2 { 1e-2 } else { F32_TOLERANCE };
            assert_same(
                &results[0],
                steps[id].dtype,
                &evaluate(&program, &inputs, &[])[0],
                tolerance,
                &format!("{dtype} {:?}", steps[id].op),
            );
        }
    }
}

#[test]
fn outputs_may_replace_inputs_that_are_read_densely() {
    let mut random = Random::new(7);
    for cores in [1, 4] {
        let npu = Npu::new(cores);
        let program = fused(&[9001]);
        let types: Vec<_> =
            (0..program.outputs.len()).map(|n| ty(program.output_dtype(n), &[9001])).collect();
        let inputs = [f32_bytes(&random.units(9001)), f32_bytes(&random.units(9001))];
        let scalars = [Scalar::F32(-1.5), Scalar::I32(7)];
        let op = KernelOp::Elementwise(program.clone());
        let results = npu.run_in_place(&op, &inputs, &types, &scalars);
        let expected = evaluate(&program, &inputs, &scalars);
        for (n, (bytes, expected)) in results.iter().zip(&expected).enumerate() {
            assert_same(bytes, types[n].dtype, expected, F32_TOLERANCE, &format!("output {n}"));
        }
        let lowered = npu.lower(&op, &[], &types);
        let halite_hal::KernelSource::Binary { signature, .. } = &lowered.launches[0].source else {
            panic!("a builder makes programs");
        };
        assert!(signature.in_place, "the signature must tell that it is legal");
    }
}

fn reduction(kind: ReduceKind, shape: &[usize], kept_rank: usize, view: View) -> Reduction {
    let dtype = if kind == ReduceKind::ArgMax { DType::I32 } else { view.dtype };
    Reduction { kind, program: Cluster::copy(shape, view), kept_rank, dtype }
}

/// Reduces the interpreter's values in f64 or i64.
fn reduce(reduction: &Reduction, inputs: &[Vec<u8>]) -> Vec<Value> {
    let values = &evaluate(&reduction.program, inputs, &[])[0];
    let rows: usize = reduction.program.shape[..reduction.kept_rank].iter().product();
    let cols: usize = reduction.program.shape[reduction.kept_rank..].iter().product();
    let float = |value: &Value| match *value {
        Value::Float(value) => value,
        Value::Int(value) => value as f64,
    };
    let mut results = Vec::new();
    for row in 0..rows {
        let row = &values[row * cols..(row + 1) * cols];
        let floats: Vec<f64> = row.iter().map(float).collect();
        let greatest = |a: f64, b: f64| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) };
        let value = match reduction.kind {
            ReduceKind::Sum => floats.iter().sum(),
            ReduceKind::Prod => floats.iter().product(),
            ReduceKind::Max => floats.iter().copied().fold(f64::NEG_INFINITY, greatest),
            ReduceKind::Min => -floats.iter().map(|value| -value).fold(f64::NEG_INFINITY, greatest),
            ReduceKind::ArgMax => {
                let first_nan = floats.iter().position(|value| value.is_nan());
                let best = floats.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let first = first_nan.or_else(|| floats.iter().position(|&value| value == best));
                first.unwrap_or(0) as f64
            }
        };
        results.push(if reduction.dtype.is_float() { Value::Float(value) } else { Value::Int(value as i64) });
    }
    results
}

#[test]
fn reductions_of_short_and_long_rows_agree() {
    let npu = Npu::new(5);
    let mut random = Random::new(4);
    let shapes: [(&[usize], usize); 13] = [
        (&[1, 1], 1),
        (&[7, 10], 1),
        (&[1000, 10], 1),
        (&[3, 4099], 1),
        (&[10007], 0),
        (&[20, 33], 2),
        (&[], 0),
        (&[2, 3, 40, 50], 2),
        (&[5, 7, 11, 3, 2], 2),
        (&[4, 5, 6, 7, 8], 1),
        (&[2, 9, 2000], 1),
        (&[3, 2, 130, 140], 1),
        (&[9000, 2], 1),
    ];
    for (shape, kept_rank) in shapes {
        let points: usize = shape.iter().product();
        let mut values = random.units(points);
        if points > 20 {
            values[points / 2] = values[1];
            values[points - 1] = f32::NAN;
        }
        let inputs = [f32_bytes(&values)];
        for kind in ReduceKind::ALL {
            let reduction = reduction(kind, shape, kept_rank, View::contiguous(DType::F32, shape));
            let out = ty(reduction.dtype, &shape[..kept_rank]);
            let results = npu.run(&KernelOp::Reduce(reduction.clone()), &inputs, &[out], &[]);
            // Sums of up to 20,000 units in 16 lanes.
            assert_same(
                &results[0],
                reduction.dtype,
                &reduce(&reduction, &inputs),
                1e-4,
                &format!("{shape:?} {kind:?}"),
            );
        }
    }
}

#[test]
fn reductions_of_other_axes_and_types_agree() {
    let npu = Npu::new(4);
    let mut random = Random::new(5);
    // The sum over images and pixels for each channel: kept [c], reduced [n, h * w] of a buffer [n, c, h * w].
    let (n, c, pixels) = (6, 5, 37);
    let strides = vec![pixels as i64, (c * pixels) as i64, 1];
    for dtype in [DType::F32, DType::F16, DType::I32, DType::U8, DType::I64] {
        let data: Vec<u8> = (0..n * c * pixels)
            .flat_map(|_| {
                let value = if dtype.is_float() {
                    Value::Float(random.unit().into())
                } else {
                    Value::Int(random.below(2) as i64)
                };
                value.bits(dtype).to_ne_bytes()[..dtype.size()].to_vec()
            })
            .collect();
        for kind in ReduceKind::ALL {
            let view = View { dtype, offset: 0, strides: strides.clone() };
            let reduction = reduction(kind, &[c, n, pixels], 1, view);
            let inputs = [data.clone()];
            let out = ty(reduction.dtype, &[c]);
            let results = npu.run(&KernelOp::Reduce(reduction.clone()), &inputs, &[out], &[]);
            let tolerance = if dtype == DType::F16 { 1e-2 } else { 1e-5 };
            assert_same(
                &results[0],
                reduction.dtype,
                &reduce(&reduction, &inputs),
                tolerance,
                &format!("{dtype} {kind:?}"),
            );
        }
    }
}

#[test]
fn reductions_over_nothing_give_the_identity() {
    let npu = Npu::new(1);
    for (kind, expected) in [
        (ReduceKind::Sum, 0.0),
        (ReduceKind::Prod, 1.0),
        (ReduceKind::Max, f32::NEG_INFINITY),
        (ReduceKind::Min, f32::INFINITY),
    ] {
        let reduction = reduction(kind, &[3, 0], 1, View::contiguous(DType::F32, &[3, 0]));
        let results = npu.run(&KernelOp::Reduce(reduction), &[Vec::new()], &[ty(DType::F32, &[3])], &[]);
        assert_eq!(f32_values(&results[0]), [expected; 3], "{kind:?}");
    }
}

#[test]
fn padding_widens_cuts_and_spreads() {
    let npu = Npu::new(3);
    let mut random = Random::new(6);
    for round in 0..40 {
        let rank = round % 4;
        let input: Vec<usize> = (0..rank).map(|_| random.below(9)).collect();
        let low: Vec<i64> = (0..rank).map(|_| random.below(6) as i64 - 2).collect();
        let high: Vec<i64> = (0..rank).map(|_| random.below(6) as i64 - 2).collect();
        let interior: Vec<usize> = (0..rank).map(|_| random.below(3)).collect();
        let output: Vec<usize> = (0..rank)
            .map(|a| {
                let spread = if input[a] == 0 { 0 } else { (input[a] - 1) * (interior[a] + 1) + 1 };
                usize::try_from(low[a] + high[a] + spread as i64).unwrap_or(0)
            })
            .collect();
        let points: usize = output.iter().product();
        if points == 0 {
            continue;
        }
        let values = random.units(input.iter().product());
        let mut expected = vec![0.5_f32; points];
        for (i, &value) in values.iter().enumerate() {
            let (mut rest, mut at, mut scale, mut is_inside) = (i, 0, 1, true);
            for a in (0..rank).rev() {
                let place = low[a] + (rest % input[a] * (interior[a] + 1)) as i64;
                rest /= input[a];
                is_inside &= (0..output[a] as i64).contains(&place);
                at += place * scale;
                scale *= output[a] as i64;
            }
            if is_inside {
                expected[at as usize] = value;
            }
        }
        let value = Literal::new(DType::F32, 0.5);
        let pad = Pad { input, output: output.clone(), low, high, interior, value };
        let op = KernelOp::Pad(pad);
        let results = npu.run(&op, &[f32_bytes(&values)], &[ty(DType::F32, &output)], &[]);
        assert_eq!(f32_values(&results[0]), expected, "{op:?}");
    }
}

#[test]
fn many_constant_outputs_each_have_a_place() {
    let npu = Npu::new(2);
    let steps: Vec<Step> = (0..40).map(|i| constant(DType::F32, f64::from(i))).collect();
    let outputs = (0..40).collect();
    let program = Cluster { shape: vec![20_000], inputs: Vec::new(), scalars: Vec::new(), steps, outputs };
    check(&npu, &program, &[], &[]);
}

#[test]
fn a_chain_with_more_live_values_than_fit_uses_smaller_tiles() {
    let npu = Npu::new(3);
    let mut random = Random::new(8);
    // All values stay live until they are summed in reverse.
    let mut steps = vec![step(StepOp::Load(0), DType::F32)];
    for i in 0..60 {
        steps.push(constant(DType::F32, f64::from(i) / 64.0));
        let value = steps.len() as u32 - 1;
        steps.push(step(StepOp::Binary(BinaryOp::Mul, 0, value), DType::F32));
    }
    let products: Vec<u32> = (1..=60).map(|i| 2 * i).collect();
    let mut sum = 0;
    for &product in products.iter().rev() {
        steps.push(step(StepOp::Binary(BinaryOp::Add, sum, product), DType::F32));
        sum = steps.len() as u32 - 1;
    }
    let inputs = vec![View::contiguous(DType::F32, &[7001])];
    let program = Cluster { shape: vec![7001], inputs, scalars: Vec::new(), steps, outputs: vec![sum] };
    check(&npu, &program, &[f32_bytes(&random.units(7001))], &[]);
}
