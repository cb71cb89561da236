//! Random programs over random views against the reference interpreter, bit by bit.

use super::{Runner, runner};
use crate::cluster::{BinaryOp, Cluster, CompareOp, Literal, Step, StepOp, UnaryOp, View};
use crate::kernels::cpu::elementwise::reference::{float, interpret, read};
use crate::kernels::cpu::elementwise::tests::{random_cluster, random_memory, random_shape};
use crate::kernels::cpu::harness::{Memory, Random};
use crate::lower::{KernelOp, Lowered, TensorType};
use halite_hal::{DType, Scalar};
use halite_profiles::Parameters;

const SCALARS: [Scalar; 3] = [Scalar::F32(1.75), Scalar::I32(-3), Scalar::U32(5)];

/// Work per thread: one point, packs, and packs several times.
fn sizes(seed: u64) -> Parameters {
    let sizes = Parameters::default();
    match seed % 4 {
        0 => sizes,
        1 => sizes.with_threads([16]).with_chunk(4),
        2 => sizes.with_threads([8]).with_chunk(2).with_unroll(2),
        _ => sizes.with_threads([32]).with_unroll(3),
    }
}

fn check(
    runner: &Runner,
    seed: u64,
    cluster: &Cluster,
    inputs: &[(TensorType, Memory)],
    aliases: &[Option<usize>],
) {
    let bytes: Vec<&[u8]> = inputs.iter().map(|(_, memory)| memory.bytes()).collect();
    let expected = interpret(cluster, &bytes, &SCALARS);
    let outputs: Vec<TensorType> = (0..cluster.outputs.len())
        .map(|n| TensorType::new(cluster.output_dtype(n), &cluster.shape))
        .collect();
    let op = KernelOp::Elementwise(cluster.clone());
    let lowered = runner
        .lower("generated", &sizes(seed), &op, inputs, &outputs)
        .unwrap_or_else(|reason| panic!("seed {seed}: {reason}"));
    compare(runner, seed, cluster, inputs, aliases, &lowered, &expected);
    match runner.lower("interpreted", &Parameters::default(), &op, inputs, &outputs) {
        Ok(lowered) => compare(runner, seed, cluster, inputs, aliases, &lowered, &expected),
        Err(reason) => assert!(reason.to_string().contains("the interpreting kernel takes"), "{reason}"),
    }
}

fn compare(
    runner: &Runner,
    seed: u64,
    cluster: &Cluster,
    inputs: &[(TensorType, Memory)],
    aliases: &[Option<usize>],
    lowered: &Lowered,
    expected: &[Vec<u64>],
) {
    let outputs: Vec<TensorType> = (0..cluster.outputs.len())
        .map(|n| TensorType::new(cluster.output_dtype(n), &cluster.shape))
        .collect();
    let got = runner.launch(lowered, inputs, &outputs, aliases, &SCALARS);
    for (n, (got, expected)) in got.iter().zip(expected).enumerate() {
        let dtype = cluster.output_dtype(n);
        for (point, &expected) in expected.iter().enumerate() {
            let got = read(got.bytes(), dtype, point);
            let both_nan = dtype.is_float() && float(dtype, got).is_nan() && float(dtype, expected).is_nan();
            assert!(
                got == expected || both_nan,
                "seed {seed}: output {n} ({dtype}) at {point} is {got:#x}, expected {expected:#x} in\n{cluster}{:?}",
                cluster.inputs
            );
        }
    }
}

/// Whether any step looks at the bits of a float, among which those of a NaN are the device's own.
fn looks_at_bits(cluster: &Cluster) -> bool {
    let is_float = |id: u32| cluster.steps[id as usize].dtype.is_float();
    cluster.steps.iter().any(|step| matches!(step.op, StepOp::Bitcast(a) if is_float(a)))
}

fn dtypes(runner: &Runner) -> Vec<DType> {
    DType::ALL.into_iter().filter(|&dtype| dtype != DType::F64 || runner.has_f64()).collect()
}

#[test]
fn random_programs_of_every_dtype_match_the_reference_bit_by_bit() {
    let Some(runner) = runner() else { return };
    for seed in 0..runner.cases(80) {
        let mut random = Random::new(seed);
        let shape = random_shape(&mut random);
        let dtypes = match seed % 3 {
            0 => vec![DType::F32, DType::Bool, random.pick(&dtypes(runner))],
            _ => dtypes(runner),
        };
        let (mut cluster, inputs) = random_cluster(&mut random, &shape, &dtypes, 18);
        if looks_at_bits(&cluster) {
            continue;
        }
        let last = cluster.steps.len();
        cluster.outputs =
            (0..1 + random.below(4)).map(|_| (last - 1 - random.below(last.min(8))) as u32).collect();
        check(runner, seed, &cluster, &inputs, &[]);
    }
}

#[test]
fn outputs_may_be_the_memory_of_inputs_that_are_read_in_order() {
    let Some(runner) = runner() else { return };
    let mut aliased = 0;
    for seed in 0..runner.cases(40) {
        let mut random = Random::new(seed + 10_000);
        let shape = random_shape(&mut random);
        let dtypes = [DType::F32, DType::F32, DType::I32, DType::F16];
        let (mut cluster, inputs) = random_cluster(&mut random, &shape, &dtypes, 8);
        if looks_at_bits(&cluster) {
            continue;
        }
        let last = cluster.steps.len();
        cluster.outputs = (0..3).map(|_| (last - 1 - random.below(last)) as u32).collect();
        let mut taken = vec![false; inputs.len()];
        let mut aliases = vec![None; cluster.outputs.len()];
        for (n, alias) in aliases.iter_mut().enumerate() {
            let size = cluster.output_dtype(n).size();
            *alias = (0..inputs.len()).find(|&input| {
                let view = &cluster.inputs[input];
                !taken[input]
                    && view.dtype.size() == size
                    && view.is_contiguous(&shape)
                    && inputs[input].0.elements() == cluster.points()
            });
            if let Some(input) = *alias {
                taken[input] = true;
                aliased += 1;
            }
        }
        check(runner, seed, &cluster, &inputs, &aliases);
    }
    assert!(aliased > 5, "only {aliased} outputs were updated in place");
}

/// Units in the last place that OpenCL C 1.2 leaves the functions of f32 and f64 (section 7.4; `pow` has the most).
const FUNCTION_ULP: f64 = 16.0;

#[test]
fn every_function_of_every_dtype_is_as_close_as_its_language_says() {
    let Some(runner) = runner() else { return };
    let mut random = Random::new(12);
    let n = 37;
    for dtype in dtypes(runner) {
        let mut operand = |low: f64, high: f64| {
            let value = |random: &mut Random| low + (high - low) * (f64::from(random.unit()) + 1.0) / 2.0;
            let bytes = (0..n).flat_map(|_| {
                let bits = Literal::new(dtype, value(&mut random)).bits;
                bits.to_le_bytes()[..dtype.size()].to_vec()
            });
            (TensorType::new(dtype, &[n]), Memory::new(&bytes.collect::<Vec<u8>>()))
        };
        let inputs = if dtype.is_float() {
            [operand(0.1, 4.0), operand(0.5, 3.0)]
        } else {
            [operand(-90.0, 120.0), operand(-3.0, 9.0)]
        };
        let mut cluster = Cluster::copy(&[n], View::contiguous(dtype, &[n]));
        cluster.inputs.push(View::contiguous(dtype, &[n]));
        cluster.steps.push(Step { op: StepOp::Load(1), dtype });
        let same_size = DType::ALL.into_iter().filter(|to| to.size() == dtype.size());
        let unary = UnaryOp::ALL.into_iter().filter(|op| op.accepts(dtype)).map(|op| StepOp::Unary(op, 0));
        let binary =
            BinaryOp::ALL.into_iter().filter(|op| op.accepts(dtype)).map(|op| StepOp::Binary(op, 0, 1));
        let own = unary.chain(binary).map(|op| Step { op, dtype });
        let compare = CompareOp::ALL.map(|op| Step { op: StepOp::Compare(op, 0, 1), dtype: DType::Bool });
        let bitcast = same_size.map(|to| Step { op: StepOp::Bitcast(0), dtype: to });
        let steps: Vec<Step> = own.chain(compare).chain(bitcast).collect();
        // All outputs of one kernel would be more arguments than a device takes.
        for (part, variant) in steps
            .chunks(20)
            .map(|part| (part, "generated"))
            .chain(steps.chunks(4).map(|part| (part, "interpreted")))
        {
            let mut cluster = cluster.clone();
            cluster.steps.extend(part);
            cluster.outputs = (2..cluster.steps.len() as u32).collect();
            let expected = interpret(&cluster, &[inputs[0].1.bytes(), inputs[1].1.bytes()], &SCALARS);
            let outputs: Vec<TensorType> =
                (0..part.len()).map(|n| TensorType::new(cluster.output_dtype(n), &[37])).collect();
            let op = KernelOp::Elementwise(cluster.clone());
            let got = runner.run(variant, &sizes(1), &op, &inputs, &outputs).expect("it is served");
            for (step, (got, expected)) in part.iter().zip(got.iter().zip(&expected)) {
                for (point, &expected) in expected.iter().enumerate() {
                    let got = read(got.bytes(), step.dtype, point);
                    let is_close = || {
                        let (got, expected) = (float(step.dtype, got), float(step.dtype, expected));
                        let ulp = match step.dtype {
                            DType::F16 => 2f64.powi(-10),
                            DType::BF16 => 2f64.powi(-7),
                            DType::F32 => 2f64.powi(-23),
                            _ => 2f64.powi(-52),
                        };
                        got.is_nan() && expected.is_nan()
                            || (got - expected).abs() <= FUNCTION_ULP * ulp * expected.abs()
                    };
                    assert!(
                        got == expected || step.dtype.is_float() && is_close(),
                        "{variant}: {:?} of {dtype} at {point} is {got:#x}, expected {expected:#x}",
                        step.op
                    );
                }
            }
        }
    }
}

#[test]
fn every_cast_matches_the_reference_on_random_bits() {
    let Some(runner) = runner() else { return };
    let mut random = Random::new(3);
    let n = 517;
    let dtypes = dtypes(runner);
    for &from in &dtypes {
        let mut input = random_memory(&mut random, from, n);
        if from != DType::Bool {
            let part = input.bytes().len() / 2;
            input.bytes_mut()[..part].iter_mut().for_each(|byte| *byte = random.bits() as u8);
        }
        let mut cluster = Cluster::copy(&[n], View::contiguous(from, &[n]));
        cluster.steps.extend(dtypes.iter().map(|&dtype| Step { op: StepOp::Cast(0), dtype }));
        cluster.outputs = (1..=dtypes.len() as u32).collect();
        check(runner, 0, &cluster, &[(TensorType::new(from, &[n]), input)], &[]);
    }
}

#[test]
fn constants_of_every_dtype_are_those_of_the_program() {
    let Some(runner) = runner() else { return };
    let n = 33;
    for value in [0.1, -3.0, 1e300, f64::INFINITY, f64::NAN] {
        let mut cluster = Cluster::copy(&[n], View::contiguous(DType::F32, &[n]));
        let constants = dtypes(runner)
            .into_iter()
            .map(|dtype| Step { op: StepOp::Constant(Literal::new(dtype, value)), dtype });
        cluster.steps.extend(constants);
        cluster.outputs = (1..cluster.steps.len() as u32).collect();
        let input = random_memory(&mut Random::new(4), DType::F32, n);
        check(runner, 0, &cluster, &[(TensorType::new(DType::F32, &[n]), input)], &[]);
    }
}

#[test]
fn values_pass_through_programs_bit_by_bit_even_as_signalling_nans() {
    let Some(runner) = runner() else { return };
    for dtype in [DType::F16, DType::BF16, DType::F32] {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let n = bytes.len() / dtype.size();
        let (rows, columns) = (n / 64, 64);
        let view = View { dtype, offset: 0, strides: vec![1, columns as i64] };
        let op = KernelOp::Elementwise(Cluster::copy(&[columns, rows], view));
        let input = [(TensorType::new(dtype, &[rows, columns]), Memory::new(&bytes))];
        let outputs = [TensorType::new(dtype, &[columns, rows])];
        let got = runner.run("generated", &sizes(1), &op, &input, &outputs).expect("a copy is served");
        for place in 0..n {
            let expected = read(&bytes, dtype, place % rows * columns + place / rows);
            assert_eq!(read(got[0].bytes(), dtype, place), expected, "{dtype} at {place}");
        }
    }
}

#[test]
fn half_precision_survives_beside_a_computation() {
    let Some(runner) = runner() else { return };
    let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let n = bytes.len() / 2;
    for dtype in [DType::F16, DType::BF16] {
        let mut cluster = Cluster::copy(&[n], View::contiguous(dtype, &[n]));
        cluster.steps.push(Step { op: StepOp::Cast(0), dtype: DType::F32 });
        cluster.steps.push(Step { op: StepOp::Bitcast(0), dtype: DType::U16 });
        cluster.outputs = vec![0, 1, 2];
        let input = [(TensorType::new(dtype, &[n]), Memory::new(&bytes))];
        let outputs = [dtype, DType::F32, DType::U16].map(|dtype| TensorType::new(dtype, &[n]));
        let op = KernelOp::Elementwise(cluster);
        let got = runner.run("generated", &sizes(0), &op, &input, &outputs).expect("a cast is served");
        assert_eq!(got[0].bytes(), bytes);
        assert_eq!(got[2].bytes(), bytes);
        for bits in 0..n as u64 {
            let (got, expected) = (read(got[1].bytes(), DType::F32, bits as usize), float(dtype, bits));
            assert!(float(DType::F32, got) == expected || expected.is_nan(), "{dtype} {bits:#x}");
        }
    }
}

#[test]
fn buffers_beyond_32_bit_indices_are_read_with_64_bit_ones() {
    let Some(runner) = runner() else { return };
    let n = 100;
    let mut random = Random::new(1);
    let memory = random_memory(&mut random, DType::F32, 2 * n);
    let view = View { dtype: DType::F32, offset: 2 * n as i64 - 1, strides: vec![-2] };
    let op = KernelOp::Elementwise(Cluster::copy(&[n], view));
    // The request says what decides; the memory is what is read of it.
    let huge = [(TensorType::new(DType::F32, &[1 << 33]), memory.clone())];
    let outputs = [TensorType::new(DType::F32, &[n])];
    let got = runner.run("generated", &sizes(0), &op, &huge, &outputs).expect("a copy is served");
    for place in 0..n {
        let expected = read(memory.bytes(), DType::F32, 2 * n - 1 - 2 * place);
        assert_eq!(read(got[0].bytes(), DType::F32, place), expected);
    }
}

#[test]
fn malformed_programs_are_refused_with_a_reason() {
    let Some(runner) = runner() else { return };
    let dense = View::contiguous(DType::F32, &[4]);
    let refuse = |cluster: Cluster, elements: usize| {
        let inputs = [(TensorType::new(DType::F32, &[elements]), Memory::poisoned(elements * 4))];
        let outputs = [TensorType::new(DType::F32, &[4])];
        let op = KernelOp::Elementwise(cluster);
        let answer = runner.lower("generated", &sizes(0), &op, &inputs, &outputs);
        answer.expect_err("must be refused").to_string()
    };
    let good = Cluster::copy(&[4], dense.clone());
    assert!(refuse(good.clone(), 3).contains("reads elements 0 to 3 of a buffer of 3"));
    let far = View { strides: vec![i64::MAX], ..dense.clone() };
    assert!(refuse(Cluster::copy(&[4], far), 4).contains("of a buffer of 4"));
    let ranks = View { strides: vec![1, 1], ..dense };
    assert!(refuse(Cluster::copy(&[4], ranks), 4).contains("2 strides over 1 axes"));
    let mut cyclic = good.clone();
    cyclic.steps.push(Step { op: StepOp::Cast(1), dtype: DType::F32 });
    assert!(refuse(cyclic, 4).contains("not there before"));
    let mut huge = good;
    huge.shape = vec![usize::MAX];
    assert!(refuse(huge, 4).contains("too many points"));
}
