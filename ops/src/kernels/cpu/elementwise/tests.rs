//! Random programs over random views against the reference interpreter, bit by bit.

use super::reference::{float, interpret, read};
use super::*;
use crate::cluster::{BinaryOp, CompareOp, Literal, UnaryOp, contiguous_strides};
use crate::kernels::cpu::harness::{Memory, Random, execute};
use crate::lower::TensorType;
use halite_hal::{Scalar, as_bytes};

/// A tensor of random elements, special ones among them.
pub(crate) fn random_memory(random: &mut Random, dtype: DType, elements: usize) -> Memory {
    let mut bytes = Vec::with_capacity(elements * dtype.size());
    for _ in 0..elements {
        let value = match random.below(12) {
            0 => random.pick(&[
                0.0,
                -0.0,
                1.0,
                -1.0,
                f64::NAN,
                f64::INFINITY,
                f64::NEG_INFINITY,
                1e-41,
                3e9,
                65519.0,
            ]),
            1 => f64::from(random.unit()) * 1e5,
            _ => f64::from(random.unit()) * 10.0,
        };
        let bits = match dtype {
            DType::Bool => random.bits() & 1,
            _ if dtype.is_integer() && random.below(3) == 0 => random.bits(),
            _ => Literal::new(dtype, value).bits,
        };
        bytes.extend_from_slice(&bits.to_le_bytes()[..dtype.size()]);
    }
    Memory::new(&bytes)
}

/// A random view over `shape`, and the elements of a buffer that it reads.
pub(crate) fn random_view(random: &mut Random, dtype: DType, shape: &[usize]) -> (View, usize) {
    let rank = shape.len();
    let mut strides = contiguous_strides(shape);
    let elements: usize = shape.iter().product();
    match random.below(6) {
        // In order, possibly behind an offset.
        0 | 1 => return (View { dtype, offset: 0, strides }, elements),
        2 => return (View { dtype, offset: 3, strides }, elements + 5),
        // One axis broadcast, or all.
        3 if rank > 0 => {
            let axis = random.below(rank);
            let mut rest: Vec<usize> = shape.to_vec();
            rest[axis] = 1;
            strides = contiguous_strides(&rest);
            strides[axis] = 0;
        }
        4 => strides = vec![0; rank],
        // Axes in another order, some of them flipped, with gaps.
        _ => {
            let mut order: Vec<usize> = (0..rank).collect();
            for at in (1..rank).rev() {
                order.swap(at, random.below(at + 1));
            }
            let mut step = 1 + random.below(2) as i64;
            for axis in order {
                strides[axis] = if random.below(4) == 0 { -step } else { step };
                step *= shape[axis].max(1) as i64 + random.below(2) as i64;
            }
        }
    }
    let (mut first, mut last) = (0, 0);
    for (stride, extent) in strides.iter().zip(shape) {
        let reach = stride * (*extent as i64 - 1).max(0);
        first += reach.min(0);
        last += reach.max(0);
    }
    (View { dtype, offset: -first, strides }, (last - first) as usize + 1)
}

pub(crate) fn random_shape(random: &mut Random) -> Vec<usize> {
    match random.below(8) {
        0 => vec![],
        1 => vec![random.pick(&[0, 1, 7, 1021, 4099])],
        2 => vec![3, random.pick(&[192, 211, 1100])],
        3 => vec![5, 2, 0],
        _ => (0..2 + random.below(3)).map(|_| random.pick(&[1, 2, 3, 5, 7, 16, 17])).collect(),
    }
}

/// Functions whose result is defined to the last bit.
const EXACT_UNARY: [UnaryOp; 8] = [
    UnaryOp::Neg,
    UnaryOp::Abs,
    UnaryOp::Sign,
    UnaryOp::Floor,
    UnaryOp::Ceil,
    UnaryOp::Round,
    UnaryOp::Sqrt,
    UnaryOp::Not,
];

/// A random program with exact steps; returns it with its inputs.
pub(crate) fn random_cluster(
    random: &mut Random,
    shape: &[usize],
    dtypes: &[DType],
    steps: usize,
) -> (Cluster, Vec<(TensorType, Memory)>) {
    let mut cluster = Cluster {
        shape: shape.to_vec(),
        inputs: Vec::new(),
        scalars: vec![DType::F32, DType::I32, DType::U32],
        steps: Vec::new(),
        outputs: Vec::new(),
    };
    let mut inputs = Vec::new();
    for n in 0..1 + random.below(4) {
        let dtype = random.pick(dtypes);
        let (view, elements) = random_view(random, dtype, shape);
        inputs.push((TensorType::new(dtype, &[elements]), random_memory(random, dtype, elements)));
        cluster.inputs.push(view);
        cluster.steps.push(Step { op: StepOp::Load(n as u32), dtype });
    }
    for scalar in 0..3 {
        cluster.steps.push(Step { op: StepOp::Scalar(scalar), dtype: cluster.scalars[scalar as usize] });
    }
    for _ in 0..steps {
        let last = cluster.steps.len();
        let a = (last - 1 - random.below(last.min(6))) as u32;
        let dtype = cluster.steps[a as usize].dtype;
        let same: Vec<u32> =
            (0..last as u32).filter(|id| cluster.steps[*id as usize].dtype == dtype).collect();
        let b = random.pick(&same);
        let (op, dtype) = match random.below(12) {
            0 if !shape.is_empty() => {
                let to = random.pick(dtypes);
                let counts = if to == DType::Bool { DType::I32 } else { to };
                (StepOp::Index(random.below(shape.len()) as u32), counts)
            }
            1 => {
                let to = random.pick(dtypes);
                (StepOp::Constant(Literal::new(to, f64::from(random.unit()) * 20.0)), to)
            }
            2 => (StepOp::Cast(a), random.pick(dtypes)),
            3 => {
                let to = random.pick(&DType::ALL);
                if to.size() != dtype.size() {
                    continue;
                }
                (StepOp::Bitcast(a), to)
            }
            4 => (StepOp::Compare(random.pick(&CompareOp::ALL), a, b), DType::Bool),
            5 => {
                let conditions: Vec<u32> =
                    (0..last as u32).filter(|id| cluster.steps[*id as usize].dtype == DType::Bool).collect();
                if conditions.is_empty() {
                    continue;
                }
                (StepOp::Select(random.pick(&conditions), a, b), dtype)
            }
            6 | 7 => {
                let op = random.pick(&EXACT_UNARY);
                if !op.accepts(dtype) {
                    continue;
                }
                (StepOp::Unary(op, a), dtype)
            }
            _ => {
                let op = random.pick(&BinaryOp::ALL);
                if !op.accepts(dtype) || op == BinaryOp::Pow {
                    continue;
                }
                (StepOp::Binary(op, a, b), dtype)
            }
        };
        cluster.steps.push(Step { op, dtype });
    }
    (cluster, inputs)
}

const SCALARS: [Scalar; 3] = [Scalar::F32(1.75), Scalar::I32(-3), Scalar::U32(5)];

/// Whether two elements are the same, where any NaN is as good as another.
fn same(dtype: DType, a: u64, b: u64) -> bool {
    a == b || dtype.is_float() && float(dtype, a).is_nan() && float(dtype, b).is_nan()
}

fn check(cluster: &Cluster, inputs: &[(TensorType, Memory)], aliases: &[Option<usize>], seed: u64) {
    let bytes: Vec<&[u8]> = inputs.iter().map(|(_, memory)| memory.bytes()).collect();
    let expected = interpret(cluster, &bytes, &SCALARS);
    let outputs: Vec<TensorType> = (0..cluster.outputs.len())
        .map(|n| TensorType::new(cluster.output_dtype(n), &cluster.shape))
        .collect();
    let op = KernelOp::Elementwise(cluster.clone());
    for variant in variants().iter().filter(|variant| is_available(variant)) {
        let got =
            execute(variant, &op, inputs, &outputs, aliases, &SCALARS).expect("a valid program is served");
        for (n, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let dtype = cluster.output_dtype(n);
            for (point, expected) in expected.iter().enumerate() {
                let got = read(got.bytes(), dtype, point);
                assert!(
                    same(dtype, got, *expected),
                    "seed {seed}, {}: output {n} ({dtype}) at {point} is {got:#x}, expected {expected:#x} in\n{cluster}{:?}",
                    variant.name,
                    cluster.inputs
                );
            }
        }
    }
}

pub(crate) fn is_available(variant: &KernelVariant) -> bool {
    Isa::ALL.into_iter().any(|isa| isa.name() == variant.name && isa.is_available())
}

#[test]
fn random_programs_of_every_dtype_match_the_reference_bit_by_bit() {
    for seed in 0..600 {
        let mut random = Random::new(seed);
        let shape = random_shape(&mut random);
        let dtypes = match seed % 4 {
            0 => vec![DType::F32],
            1 => vec![random.pick(&DType::ALL), DType::F32, DType::Bool],
            _ => DType::ALL.to_vec(),
        };
        let steps = 3 + random.below(20);
        let (mut cluster, inputs) = random_cluster(&mut random, &shape, &dtypes, steps);
        let last = cluster.steps.len();
        cluster.outputs =
            (0..1 + random.below(4)).map(|_| (last - 1 - random.below(last.min(8))) as u32).collect();
        check(&cluster, &inputs, &[], seed);
    }
}

#[test]
fn outputs_may_be_the_memory_of_inputs_that_are_read_in_order() {
    let mut aliased = 0;
    for seed in 0..300 {
        let mut random = Random::new(seed + 10_000);
        let shape = random_shape(&mut random);
        let (mut cluster, inputs) =
            random_cluster(&mut random, &shape, &[DType::F32, DType::F32, DType::I32, DType::F16], 12);
        let last = cluster.steps.len();
        cluster.outputs = (0..3).map(|_| (last - 1 - random.below(last)) as u32).collect();
        let mut taken = vec![false; inputs.len()];
        let mut aliases = vec![None; cluster.outputs.len()];
        for (n, alias) in aliases.iter_mut().enumerate() {
            let size = cluster.output_dtype(n).size();
            *alias = (0..inputs.len()).find(|input| {
                let view = &cluster.inputs[*input];
                !taken[*input]
                    && view.dtype.size() == size
                    && view.is_contiguous(&shape)
                    && random.below(4) > 0
                    && inputs[*input].0.elements() == cluster.points()
            });
            if let Some(input) = alias {
                taken[*input] = true;
                aliased += 1;
            }
        }
        check(&cluster, &inputs, &aliases, seed);
    }
    assert!(aliased > 100, "only {aliased} outputs were updated in place");
}

#[test]
fn every_cast_matches_the_reference_on_random_bits() {
    let mut random = Random::new(3);
    let n = 517;
    for from in DType::ALL {
        for to in DType::ALL {
            let mut input = random_memory(&mut random, from, n);
            if from != DType::Bool {
                let half = input.bytes().len() / 2;
                input.bytes_mut()[..half].iter_mut().for_each(|byte| *byte = random.bits() as u8);
            }
            let mut cluster = Cluster::copy(&[n], View::contiguous(from, &[n]));
            cluster.steps.push(Step { op: StepOp::Cast(0), dtype: to });
            cluster.outputs = vec![1];
            check(&cluster, &[(TensorType::new(from, &[n]), input)], &[], 0);
        }
    }
}

#[test]
fn copies_keep_every_bit_even_of_signalling_nans() {
    for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let n = bytes.len() / dtype.size();
        let (rows, columns) = (n / 64, 64);
        let transposed = View { dtype, offset: 0, strides: vec![1, columns as i64] };
        let op = KernelOp::Elementwise(Cluster::copy(&[columns, rows], transposed));
        let input = [(TensorType::new(dtype, &[rows, columns]), Memory::new(&bytes))];
        for variant in variants().iter().filter(|variant| is_available(variant)) {
            let outputs = [TensorType::new(dtype, &[columns, rows])];
            let got = execute(variant, &op, &input, &outputs, &[], &[]).expect("a copy is served");
            for row in 0..rows {
                for column in 0..columns {
                    let expected = read(&bytes, dtype, row * columns + column);
                    assert_eq!(read(got[0].bytes(), dtype, column * rows + row), expected);
                }
            }
        }
    }
}

#[test]
fn permuted_copies_of_any_size_match_the_reference() {
    let mut random = Random::new(21);
    for (shape, order) in [
        (vec![33, 47], vec![1, 0]),
        (vec![16, 64], vec![1, 0]),
        (vec![8, 9], vec![1, 0]),
        (vec![3, 20, 35], vec![0, 2, 1]),
        (vec![20, 3, 35], vec![2, 1, 0]),
        (vec![2, 17, 5, 18], vec![0, 3, 2, 1]),
        (vec![130, 1, 260], vec![2, 1, 0]),
    ] {
        let natural = contiguous_strides(&order.iter().map(|axis| shape[*axis]).collect::<Vec<_>>());
        let mut strides = vec![0; shape.len()];
        order.iter().zip(natural).for_each(|(axis, stride)| strides[*axis] = stride);
        let n: usize = shape.iter().product();
        for dtype in [DType::U8, DType::F16, DType::F32, DType::F64] {
            let view = View { dtype, offset: 2, strides: strides.clone() };
            let input = (TensorType::new(dtype, &[n + 2]), random_memory(&mut random, dtype, n + 2));
            check(&Cluster::copy(&shape, view), &[input], &[], n as u64);
        }
    }
}

#[test]
fn elementary_functions_give_the_same_bits_on_every_instruction_set() {
    let mut random = Random::new(11);
    let n = 4001;
    let x: Vec<f32> = (0..n).map(|_| f32::from_bits(random.bits() as u32)).collect();
    let y: Vec<f32> = (0..n).map(|_| random.unit() * 30.0).collect();
    let inputs = [&x, &y].map(|v| (TensorType::new(DType::F32, &[n]), Memory::new(as_bytes(v))));
    let mut cluster = Cluster::copy(&[n], View::contiguous(DType::F32, &[n]));
    cluster.inputs.push(View::contiguous(DType::F32, &[n]));
    cluster.steps.push(Step { op: StepOp::Load(1), dtype: DType::F32 });
    let functions = [UnaryOp::Exp, UnaryOp::Log, UnaryOp::Sin, UnaryOp::Cos, UnaryOp::Tanh, UnaryOp::Rsqrt];
    for op in functions {
        cluster.steps.extend([0, 1].map(|a| Step { op: StepOp::Unary(op, a), dtype: DType::F32 }));
    }
    cluster.steps.push(Step { op: StepOp::Binary(BinaryOp::Pow, 0, 1), dtype: DType::F32 });
    cluster.steps.push(Step { op: StepOp::Binary(BinaryOp::Pow, 1, 0), dtype: DType::F32 });
    cluster.outputs = (2..cluster.steps.len() as u32).collect();
    let outputs = vec![TensorType::new(DType::F32, &[n]); cluster.outputs.len()];
    let op = KernelOp::Elementwise(cluster);
    let results: Vec<Vec<Memory>> = variants()
        .iter()
        .filter(|variant| is_available(variant))
        .map(|variant| {
            execute(variant, &op, &inputs, &outputs, &[], &[]).expect("elementary functions are served")
        })
        .collect();
    for other in &results[1..] {
        for (n, (a, b)) in results[0].iter().zip(other).enumerate() {
            for at in 0..a.bytes().len() / 4 {
                let (a, b) = (read(a.bytes(), DType::F32, at), read(b.bytes(), DType::F32, at));
                assert!(same(DType::F32, a, b), "output {n} at {at}: {a:#x} and {b:#x}");
            }
        }
    }
}

#[test]
fn malformed_programs_are_refused_with_a_reason() {
    let variant = variants().pop().expect("there are variants");
    let dense = View::contiguous(DType::F32, &[4]);
    let refuse = |cluster: Cluster, elements: usize| {
        let inputs = [(TensorType::new(DType::F32, &[elements]), Memory::poisoned(elements * 4))];
        let op = KernelOp::Elementwise(cluster);
        let outputs = [TensorType::new(DType::F32, &[4])];
        execute(&variant, &op, &inputs, &outputs, &[], &[]).expect_err("must be refused").to_string()
    };
    let good = Cluster::copy(&[4], dense.clone());
    assert!(refuse(good.clone(), 3).contains("reads elements 0 to 3 of a buffer of 3"));
    let far = View { strides: vec![i64::MAX], ..dense.clone() };
    assert!(refuse(Cluster::copy(&[4], far), 4).contains("of a buffer of 4"));
    let ranks = View { strides: vec![1, 1], ..dense };
    assert!(refuse(Cluster::copy(&[4], ranks), 4).contains("2 strides over 1 axes"));
    let mut cyclic = good.clone();
    cyclic.steps.push(Step { op: StepOp::Unary(UnaryOp::Neg, 1), dtype: DType::F32 });
    assert!(refuse(cyclic, 4).contains("not earlier"));
    let mut huge = good;
    huge.shape = vec![usize::MAX];
    assert!(refuse(huge, 4).contains("too many points"));
}

#[test]
fn shares_cover_every_point_once() {
    for points in [1, 15, 16, 64, 65, 1021, 1 << 20, (1 << 20) + 1] {
        for instructions in [1, 14] {
            let (groups, share) = shares(points, instructions, 2);
            assert!(share * groups as usize >= points && share * (groups as usize - 1) < points);
            assert!(share.is_multiple_of(LANES));
        }
    }
}
