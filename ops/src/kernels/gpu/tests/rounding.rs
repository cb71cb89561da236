//! Quotients and square roots where the device's compiler promises no correct rounding, against the host's, bit by bit.

use super::{Runner, runner};
use crate::cluster::{BinaryOp, Cluster, Step, StepOp, UnaryOp, View};
use crate::kernels::cpu::harness::{Memory, Random};
use crate::kernels::gpu::{Language, elementwise};
use crate::lower::{KernelOp, LowerRequest, Lowered, TensorType};
use halite_hal::{DType, KernelSource};
use halite_profiles::Parameters;

/// Where rounding and ranges have edges: zeros, subnormals, powers of two and their neighbours, the largest, infinity, NaN.
const EDGES: [u32; 22] = [
    0,
    1,
    2,
    3,
    0x7f_fffe,
    0x7f_ffff,
    0x80_0000,
    0x80_0001,
    0xff_ffff,
    0x100_0000,
    0x3eff_ffff,
    0x3f7f_ffff,
    0x3f80_0000,
    0x3f80_0001,
    0x3fff_ffff,
    0x4000_0000,
    0x4040_0000,
    0x7e7f_ffff,
    0x7f00_0000,
    0x7f7f_ffff,
    0x7f80_0000,
    0x7fc0_0000,
];

/// Pairs of numbers by their bits: every pair of edges with every sign, then any.
fn pairs(random: &mut Random, count: usize) -> Vec<[u32; 2]> {
    let signed = || EDGES.into_iter().flat_map(|bits| [bits, bits | 0x8000_0000]);
    let edges = signed().flat_map(|a| signed().map(move |b| [a, b]));
    let mut pairs: Vec<[u32; 2]> = edges.collect();
    for n in 0..count {
        let [a, b] = [random.bits() as u32, random.bits() as u32];
        // Half of them close in size, which random exponents seldom are, some of those subnormal.
        let near = [a & 0x807f_ffff | 0x3f00_0000, b & 0x81ff_ffff | 0x3e80_0000];
        let small = [a & 0x83ff_ffff, b & 0x803f_ffff | 0x3f80_0000];
        pairs.push([[a, b], near, [a, b], small][n % 4]);
    }
    pairs
}

/// `[a / b, sqrt(a)]` by a device that promises nothing.
fn lower(runner: &Runner, points: usize) -> Lowered {
    let mut device = runner.info.clone();
    device.features.retain(|feature| feature != "correctly_rounded_divide_sqrt");
    let step = |op: StepOp| Step { op, dtype: DType::F32 };
    let mut program = Cluster::copy(&[points], View::contiguous(DType::F32, &[points]));
    program.inputs.push(View::contiguous(DType::F32, &[points]));
    program.steps.push(step(StepOp::Load(1)));
    program.steps.push(step(StepOp::Binary(BinaryOp::Div, 0, 1)));
    program.steps.push(step(StepOp::Unary(UnaryOp::Sqrt, 0)));
    program.outputs = vec![2, 3];
    let types = [TensorType::new(DType::F32, &[points]), TensorType::new(DType::F32, &[points])];
    let (op, parameters) = (KernelOp::Elementwise(program.clone()), Parameters::default());
    let request = LowerRequest {
        op: &op,
        inputs: &types,
        outputs: &types,
        parameters: &parameters,
        local_staging: None,
        device: &device,
    };
    elementwise::lower(Language::OpenClC, &request, &program).expect("f32 is served")
}

fn check(runner: &Runner, lowered: &Lowered, pairs: &[[u32; 2]]) {
    let KernelSource::Text { source, options, .. } = &lowered.launches[0].source else { panic!("a text") };
    assert!(source.contains("#define ROUND_DIVISION") && !options.contains("correctly-rounded"), "{options}");
    let column = |n: usize| {
        let bytes: Vec<u8> = pairs.iter().flat_map(|pair| pair[n].to_le_bytes()).collect();
        (TensorType::new(DType::F32, &[pairs.len()]), Memory::new(&bytes))
    };
    let outputs = [column(0).0, column(0).0];
    let got = runner.launch(lowered, &[column(0), column(1)], &outputs, &[], &[]);
    for (place, [a, b]) in pairs.iter().map(|pair| pair.map(f32::from_bits)).enumerate() {
        for (memory, expected) in got.iter().zip([a / b, a.sqrt()]) {
            let bytes = &memory.bytes()[4 * place..4 * place + 4];
            let got = f32::from_le_bytes(bytes.try_into().expect("four bytes"));
            let is_same = got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan();
            assert!(is_same, "{a:e} and {b:e}: {got:e}, not {expected:e}");
        }
    }
}

#[test]
fn quotients_and_roots_are_those_of_the_host_where_the_device_promises_nothing() {
    let Some(runner) = runner() else { return };
    let pairs = pairs(&mut Random::new(31), runner.cases(1 << 18) as usize);
    check(runner, &lower(runner, pairs.len()), &pairs);
}

/// The device at hand may well divide correctly, so its estimates are made worse here.
#[test]
fn estimates_that_are_off_by_several_units_are_put_right() {
    let Some(runner) = runner() else { return };
    let pairs = pairs(&mut Random::new(32), runner.cases(1 << 16) as usize);
    let lowered = lower(runner, pairs.len());
    // Three units of the last place, up and down.
    for factor in ["1.00000036f", "0.99999964f"] {
        let mut worse = lowered.clone();
        let KernelSource::Text { source, .. } = &mut worse.launches[0].source else { panic!("a text") };
        let mut text = source.to_string();
        for estimate in ["(f32)numerator / (f32)denominator", "sqrt((f32)significand * 134217728.0f)"] {
            assert!(text.contains(estimate), "{estimate}");
            text = text.replace(estimate, &format!("{estimate} * {factor}"));
        }
        *source = text.into();
        check(runner, &worse, &pairs);
    }
}
