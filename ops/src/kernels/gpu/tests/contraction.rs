//! Products of matrices and convolutions by every strategy against plain loops in f64.

use super::{Runner, runner};
use crate::cluster::contiguous_strides;
use crate::kernels::cpu::elementwise::reference::{float, integer, read, rounded, wrap};
use crate::kernels::cpu::harness::{Memory, Random};
use crate::kernels::gpu::dot::DotMatrices;
use crate::kernels::gpu::{Language, contraction};
use crate::lower::{
    BiasAxis, Conv, ConvGeometry, ConvOperand, Dot, Epilogue, KernelOp, LowerRequest, MatrixView, TensorType,
};
use halite_hal::DType;
use halite_profiles::Parameters;

/// Every strategy with sizes that leave edges.
fn strategies() -> Vec<(&'static str, Parameters)> {
    let sizes = Parameters::default;
    vec![
        ("plain", sizes().with_threads([16])),
        ("tiled", sizes().with_tile([16, 32, 8]).with_threads([8, 4]).with_stages(1)),
        ("tiled", sizes().with_tile([8, 16, 4]).with_threads([4, 4])),
        ("tiled", sizes().with_tile([16, 16, 4]).with_threads([4, 4])),
        ("tiled", sizes().with_tile([6, 16, 5]).with_threads([4, 2]).with_stages(1).with_split_k(3)),
        ("precompiled", sizes()),
        ("packed", sizes().with_tile([8, 32])),
        ("packed", sizes().with_tile([3, 8]).with_threads([4])),
    ]
}

/// Elements within -1..1, or small whole numbers.
pub(super) fn elements(random: &mut Random, dtype: DType, count: usize) -> Memory {
    let bytes = (0..count).flat_map(|_| {
        let bits = if dtype.is_float() { rounded(dtype, f64::from(random.unit())) } else { random.bits() };
        bits.to_le_bytes()[..dtype.size()].to_vec()
    });
    Memory::new(&bytes.collect::<Vec<u8>>())
}

/// An element for exact or f64 sums.
#[derive(Clone, Copy)]
pub(super) enum Sum {
    Float(f64),
    Integer(i128),
}

impl Sum {
    pub(super) fn zero(dtype: DType) -> Self {
        if dtype.is_float() { Self::Float(0.0) } else { Self::Integer(0) }
    }

    pub(super) fn element(dtype: DType, memory: &Memory, at: usize) -> Self {
        let bits = read(memory.bytes(), dtype, at);
        if dtype.is_float() { Self::Float(float(dtype, bits)) } else { Self::Integer(integer(dtype, bits)) }
    }

    pub(super) fn plus(self, other: Self) -> Self {
        match (self, other) {
            (Self::Float(a), Self::Float(b)) => Self::Float(a + b),
            (Self::Integer(a), Self::Integer(b)) => Self::Integer(a.wrapping_add(b)),
            _ => panic!("sums are of one kind"),
        }
    }

    pub(super) fn times(self, other: Self) -> Self {
        match (self, other) {
            (Self::Float(a), Self::Float(b)) => Self::Float(a * b),
            (Self::Integer(a), Self::Integer(b)) => Self::Integer(a.wrapping_mul(b)),
            _ => panic!("products are of one kind"),
        }
    }

    pub(super) fn relu(self, dtype: DType) -> Self {
        match self {
            Self::Float(a) => Self::Float(a.max(0.0)),
            Self::Integer(a) => Self::Integer(integer(dtype, wrap(dtype, a)).max(0)),
        }
    }
}

/// Compares with `steps` products of at most 1 each, accumulated in f32 (f64 for f64) and rounded once.
pub(super) fn assert_close(
    got: &Memory,
    dtype: DType,
    inputs: DType,
    expected: &[Sum],
    steps: usize,
    context: &str,
) {
    let unit = |dtype| match dtype {
        DType::F16 => 2f64.powi(-11),
        DType::BF16 => 2f64.powi(-8),
        DType::F32 => 2f64.powi(-24),
        _ => 2f64.powi(-53),
    };
    let accumulator = if inputs == DType::F64 { DType::F64 } else { DType::F32 };
    for (at, &expected) in expected.iter().enumerate() {
        let bits = read(got.bytes(), dtype, at);
        match expected {
            Sum::Integer(expected) => {
                assert_eq!(bits, wrap(dtype, expected), "{context}: element {at}");
            }
            Sum::Float(expected) => {
                let tolerance = (steps + 2) as f64 * unit(accumulator) + 2.0 * unit(dtype) * expected.abs();
                let got = float(dtype, bits);
                assert!(
                    (got - expected).abs() <= tolerance,
                    "{context}: element {at} is {got}, not {expected}"
                );
            }
        }
    }
}

/// A matrix `[rows, columns]` for each batch, dense, transposed or with gaps and flipped rows.
fn matrix(batch: &[usize], rows: usize, columns: usize, layout: usize) -> (MatrixView, usize) {
    let (row_stride, col_stride, pitch) = match layout {
        0 => (columns as i64, 1, rows * columns),
        1 => (1, rows as i64, rows * columns),
        _ => (-(2 * columns as i64), 2, 2 * rows * columns),
    };
    let flipped = if layout > 1 { (rows as i64 - 1).max(0) * 2 * columns as i64 } else { 0 };
    let steps = contiguous_strides(batch);
    let batch_strides = steps.iter().map(|step| step * pitch as i64).collect();
    let offset = flipped + 3;
    let view = MatrixView { offset, batch_strides, row_stride, col_stride };
    (view, batch.iter().product::<usize>() * pitch + 3)
}

struct DotCase {
    dot: Dot,
    inputs: Vec<(TensorType, Memory)>,
    outputs: Vec<TensorType>,
    expected: Vec<Sum>,
}

fn dot_case(
    random: &mut Random,
    batch: &[usize],
    [m, k, n]: [usize; 3],
    layouts: [usize; 2],
    (dtype, out_dtype): (DType, DType),
    epilogue: Epilogue,
) -> DotCase {
    let (lhs, lhs_len) = matrix(batch, m, k, layouts[0]);
    let (rhs, rhs_len) = matrix(batch, k, n, layouts[1]);
    let mut inputs = vec![
        (TensorType::new(dtype, &[lhs_len]), elements(random, dtype, lhs_len)),
        (TensorType::new(dtype, &[rhs_len]), elements(random, dtype, rhs_len)),
    ];
    let bias_len = if epilogue.bias == Some(BiasAxis::Row) { m } else { n };
    if epilogue.bias.is_some() {
        inputs.push((TensorType::new(dtype, &[bias_len]), elements(random, dtype, bias_len)));
    }
    let mut expected = Vec::new();
    for index in 0..batch.iter().product::<usize>() {
        let base = |view: &MatrixView| {
            let steps = contiguous_strides(batch);
            let along = |axis: usize| index / steps[axis] as usize % batch[axis];
            view.offset
                + (0..batch.len()).map(|axis| along(axis) as i64 * view.batch_strides[axis]).sum::<i64>()
        };
        let (lhs_base, rhs_base) = (base(&lhs), base(&rhs));
        for (row, column) in (0..m).flat_map(|row| (0..n).map(move |column| (row, column))) {
            let mut sum = Sum::zero(dtype);
            for step in 0..k {
                let a = lhs_base + row as i64 * lhs.row_stride + step as i64 * lhs.col_stride;
                let b = rhs_base + step as i64 * rhs.row_stride + column as i64 * rhs.col_stride;
                let a = Sum::element(dtype, &inputs[0].1, a as usize);
                sum = sum.plus(a.times(Sum::element(dtype, &inputs[1].1, b as usize)));
            }
            if let Some(axis) = epilogue.bias {
                let at = if axis == BiasAxis::Row { row } else { column };
                sum = sum.plus(Sum::element(dtype, &inputs[2].1, at));
            }
            expected.push(if epilogue.relu { sum.relu(out_dtype) } else { sum });
        }
    }
    let shape = [batch, &[m, n]].concat();
    let dot = Dot { batch: batch.to_vec(), m, n, k, lhs, rhs, dtype, out_dtype, epilogue };
    DotCase { dot, inputs, outputs: vec![TensorType::new(out_dtype, &shape)], expected }
}

fn check_dot(runner: &Runner, case: &DotCase, variant: &str, parameters: &Parameters) {
    let op = KernelOp::Dot(case.dot.clone());
    let context = format!("{variant} {parameters:?} {:?}", case.dot);
    let got = runner
        .run(variant, parameters, &op, &case.inputs, &case.outputs)
        .unwrap_or_else(|reason| panic!("{context}: {reason}"));
    assert_close(&got[0], case.dot.out_dtype, case.dot.dtype, &case.expected, case.dot.k, &context);
}

#[test]
fn every_strategy_agrees_with_f64_on_every_size_and_layout() {
    let Some(runner) = runner() else { return };
    let mut random = Random::new(5);
    let f32 = (DType::F32, DType::F32);
    for (case, (size, layouts)) in [
        ([1, 1, 1], [0, 0]),
        ([17, 31, 33], [0, 0]),
        ([16, 8, 32], [1, 1]),
        ([5, 40, 70], [2, 0]),
        ([33, 9, 13], [0, 2]),
        ([1, 67, 40], [0, 1]),
        ([40, 3, 1], [1, 0]),
    ]
    .into_iter()
    .enumerate()
    {
        let batch: &[usize] = [&[][..], &[3], &[2, 2]][case % 3];
        let case = dot_case(&mut random, batch, size, layouts, f32, Epilogue::default());
        for (variant, parameters) in strategies() {
            check_dot(runner, &case, variant, &parameters);
        }
    }
}

#[test]
fn every_strategy_serves_every_dtype_with_its_epilogue() {
    let Some(runner) = runner() else { return };
    let mut random = Random::new(6);
    let epilogues = [
        Epilogue { bias: Some(BiasAxis::Column), relu: true },
        Epilogue { bias: Some(BiasAxis::Row), relu: false },
        Epilogue { bias: None, relu: true },
    ];
    let pairs = [
        (DType::F16, DType::F16),
        (DType::BF16, DType::F32),
        (DType::F64, DType::F64),
        (DType::I32, DType::I32),
        (DType::I8, DType::I8),
        (DType::U64, DType::U64),
    ];
    let served = pairs.into_iter().filter(|&(dtype, _)| dtype != DType::F64 || runner.has_f64());
    for (n, types) in served.enumerate() {
        let case = dot_case(&mut random, &[2], [9, 12, 18], [n % 2, n / 2 % 2], types, epilogues[n % 3]);
        for (variant, parameters) in strategies() {
            check_dot(runner, &case, variant, &parameters);
        }
    }
}

#[test]
fn sums_over_nothing_are_the_epilogue_of_zero() {
    let Some(runner) = runner() else { return };
    let mut random = Random::new(7);
    let epilogue = Epilogue { bias: Some(BiasAxis::Column), relu: true };
    let case = dot_case(&mut random, &[2], [3, 0, 5], [0, 0], (DType::F32, DType::F32), epilogue);
    for (variant, parameters) in strategies() {
        check_dot(runner, &case, variant, &parameters);
    }
}

#[test]
fn a_long_sum_is_cut_where_there_are_few_tiles() {
    let Some(runner) = runner() else { return };
    let mut random = Random::new(8);
    let epilogue = Epilogue { bias: Some(BiasAxis::Row), relu: true };
    let case = dot_case(&mut random, &[], [6, 1100, 9], [0, 1], (DType::F32, DType::F32), epilogue);
    let sizes = Parameters::default().with_tile([8, 16, 8]).with_threads([8, 4]).with_split_k(4);
    let op = KernelOp::Dot(case.dot.clone());
    for sizes in [sizes.clone(), sizes.with_stages(1)] {
        let lowered = runner.lower("tiled", &sizes, &op, &case.inputs, &case.outputs).expect("f32 is served");
        assert_eq!(lowered.launches.len(), 2);
        check_dot(runner, &case, "tiled", &sizes);
    }
}

#[test]
fn panels_that_exceed_the_workspace_are_packed_in_turns() {
    let Some(runner) = runner() else { return };
    let mut random = Random::new(9);
    for (batch, budget, launches) in [(&[3, 2][..], 4 * (8 * 20 * 2 + 20 * 96), 12), (&[2], 4 * 20 * 64, 8)] {
        let case =
            dot_case(&mut random, batch, [13, 20, 90], [0, 0], (DType::F32, DType::F32), Epilogue::default());
        let op = KernelOp::Dot(case.dot.clone());
        let inputs: Vec<TensorType> = case.inputs.iter().map(|(tensor, _)| tensor.clone()).collect();
        let parameters = Parameters::default().with_tile([8, 32]);
        let request = LowerRequest {
            op: &op,
            inputs: &inputs,
            outputs: &case.outputs,
            parameters: &parameters,
            local_staging: None,
            device: &runner.info,
        };
        let matrices = DotMatrices::new(&request, &case.dot).expect("the views are inside");
        let lowered = contraction::packed_within(budget, Language::OpenClC, &request, &matrices);
        let lowered = lowered.expect("f32 is served");
        assert!(lowered.launches.len() >= launches, "only {} launches", lowered.launches.len());
        let got = runner.launch(&lowered, &case.inputs, &case.outputs, &[], &[]);
        assert_close(&got[0], DType::F32, DType::F32, &case.expected, 20, &format!("{batch:?} {budget}"));
    }
}

#[test]
fn sizes_that_do_not_fit_are_refused_with_a_reason() {
    let Some(runner) = runner() else { return };
    let mut random = Random::new(10);
    let mut case =
        dot_case(&mut random, &[], [4, 4, 4], [0, 0], (DType::F32, DType::F32), Epilogue::default());
    let sizes = Parameters::default;
    for (variant, parameters, part) in [
        ("tiled", sizes().with_tile([10, 16, 4]).with_threads([8, 4]), "does not divide"),
        ("tiled", sizes().with_tile([64, 64, 4]).with_threads([4, 4]), "at most 128"),
        ("tiled", sizes().with_tile([4096, 1, 512]).with_threads([1, 64]).with_stages(1), "local memory"),
        ("tiled", sizes().with_tile([4096, 4096, 1]).with_threads([4096, 4096]), "threads"),
        ("packed", sizes().with_tile([8, 30]), "vectors"),
        ("packed", sizes().with_tile([512, 32]), "does not hold"),
    ] {
        let op = KernelOp::Dot(case.dot.clone());
        let answer = runner.lower(variant, &parameters, &op, &case.inputs, &case.outputs);
        let reason = answer.expect_err("must be refused").to_string();
        assert!(reason.contains(part), "{reason}");
    }
    case.dot.rhs.row_stride = 400;
    let op = KernelOp::Dot(case.dot.clone());
    let answer = runner.lower("plain", &sizes(), &op, &case.inputs, &case.outputs);
    assert!(answer.expect_err("it reads beyond the end").to_string().contains("of a buffer of"));
}

/// The three operands of a convolution with the result of each from the other two.
fn check_conv(runner: &Runner, g: &ConvGeometry, dtype: DType, variant: &str, parameters: &Parameters) {
    let mut random = Random::new(11);
    let product = |extents: &[usize]| extents.iter().product::<usize>();
    let (group_in, group_out) = (g.in_channels / g.groups, g.out_channels / g.groups);
    let (inputs, taps, outputs) = (product(&g.input), product(&g.kernel), product(&g.output));
    let lens = [
        g.batch * g.in_channels * inputs,
        g.out_channels * group_in * taps,
        g.batch * g.out_channels * outputs,
    ];
    let operands = lens.map(|len| elements(&mut random, dtype, len));
    let bias = elements(&mut random, dtype, g.out_channels);
    let mut sums = lens.map(|len| vec![Sum::zero(dtype); len]);
    let along = |number: usize, extents: &[usize], axis: usize| {
        number / extents[axis + 1..].iter().product::<usize>() % extents[axis]
    };
    for image in 0..g.batch {
        for (out_channel, channel) in (0..g.out_channels).flat_map(|o| (0..group_in).map(move |c| (o, c))) {
            let in_channel = out_channel / group_out * group_in + channel;
            for (place, tap) in (0..outputs).flat_map(|place| (0..taps).map(move |tap| (place, tap))) {
                let at = (0..g.input.len()).try_fold(0, |at, axis| {
                    let step = along(place, &g.output, axis) * g.stride[axis]
                        + along(tap, &g.kernel, axis) * g.dilation[axis];
                    let inside =
                        step.checked_sub(g.pad_low[axis]).filter(|&inside| inside < g.input[axis])?;
                    Some(at * g.input[axis] + inside)
                });
                let Some(at) = at else { continue };
                let places = [
                    (image * g.in_channels + in_channel) * inputs + at,
                    (out_channel * group_in + channel) * taps + tap,
                    (image * g.out_channels + out_channel) * outputs + place,
                ];
                let [x, w, y] = [0, 1, 2].map(|n| Sum::element(dtype, &operands[n], places[n]));
                sums[0][places[0]] = sums[0][places[0]].plus(y.times(w));
                sums[1][places[1]] = sums[1][places[1]].plus(y.times(x));
                sums[2][places[2]] = sums[2][places[2]].plus(x.times(w));
            }
        }
    }
    for (place, sum) in sums[2].iter_mut().enumerate() {
        *sum = sum.plus(Sum::element(dtype, &bias, place / outputs.max(1) % g.out_channels)).relu(dtype);
    }
    for (operand, sources, result) in
        [(ConvOperand::Output, [0, 1], 2), (ConvOperand::Input, [2, 1], 0), (ConvOperand::Filter, [2, 0], 1)]
    {
        let mut inputs: Vec<_> =
            sources.iter().map(|&n| (TensorType::new(dtype, &[lens[n]]), operands[n].clone())).collect();
        let is_forward = operand == ConvOperand::Output;
        let bias_axis = is_forward.then_some(BiasAxis::Channel);
        if is_forward {
            inputs.push((TensorType::new(dtype, &[g.out_channels]), bias.clone()));
        }
        let epilogue = Epilogue { bias: bias_axis, relu: is_forward };
        let conv = Conv { operand, geometry: g.clone(), dtype, out_dtype: dtype, epilogue };
        let context = format!("{variant} {parameters:?} {conv:?}");
        let output = [TensorType::new(dtype, &[lens[result]])];
        let got = runner
            .run(variant, parameters, &KernelOp::Conv(conv), &inputs, &output)
            .unwrap_or_else(|reason| panic!("{context}: {reason}"));
        let steps = group_in.max(group_out) * taps.max(g.batch * outputs);
        assert_close(&got[0], dtype, dtype, &sums[result], steps, &context);
    }
}

fn geometry(
    [batch, in_channels, out_channels, groups]: [usize; 4],
    input: &[usize],
    kernel: &[usize],
    stride: &[usize],
    dilation: &[usize],
    pads: &[[usize; 2]],
) -> ConvGeometry {
    let axes = input.len();
    let output = (0..axes)
        .map(|axis| {
            let reach = dilation[axis] * (kernel[axis] - 1) + 1;
            (input[axis] + pads[axis][0] + pads[axis][1] - reach) / stride[axis] + 1
        })
        .collect();
    ConvGeometry {
        batch,
        in_channels,
        out_channels,
        groups,
        input: input.to_vec(),
        kernel: kernel.to_vec(),
        output,
        stride: stride.to_vec(),
        dilation: dilation.to_vec(),
        pad_low: pads.iter().map(|pad| pad[0]).collect(),
        pad_high: pads.iter().map(|pad| pad[1]).collect(),
    }
}

#[test]
fn convolutions_and_both_gradients_agree_with_f64_by_every_strategy() {
    let Some(runner) = runner() else { return };
    let geometries = [
        geometry([2, 3, 5, 1], &[6, 7], &[3, 2], &[1, 1], &[1, 1], &[[1, 1], [0, 1]]),
        geometry([1, 4, 6, 2], &[9, 8], &[3, 3], &[2, 3], &[2, 1], &[[2, 1], [1, 0]]),
        geometry([2, 4, 4, 4], &[11], &[3], &[2], &[1], &[[1, 1]]),
        geometry([1, 2, 3, 1], &[3, 4, 5], &[2, 2, 3], &[1, 2, 1], &[1, 1, 2], &[[0, 0], [1, 0], [2, 2]]),
    ];
    for (n, g) in geometries.iter().enumerate() {
        for (variant, parameters) in strategies() {
            let name = if variant == "plain" { "direct" } else { variant };
            let dtype = [DType::F32, DType::F32, DType::BF16, DType::I16][n];
            check_conv(runner, g, dtype, name, &parameters);
        }
    }
}

#[test]
fn convolutions_of_other_dtypes_and_long_sums_agree_with_f64() {
    let Some(runner) = runner() else { return };
    let small = geometry([1, 2, 3, 1], &[5, 4], &[2, 3], &[1, 1], &[1, 1], &[[1, 0], [0, 1]]);
    // The derivative with respect to the filter sums over images and outputs.
    let long = geometry([2, 1, 2, 1], &[18, 18], &[2, 2], &[1, 1], &[1, 1], &[[0, 0], [0, 0]]);
    let packed = Parameters::default().with_tile([8, 32]);
    let tiled = Parameters::default().with_tile([8, 16, 8]).with_threads([8, 4]).with_split_k(4);
    check_conv(runner, &small, DType::F16, "packed", &packed);
    if runner.has_f64() {
        check_conv(runner, &small, DType::F64, "packed", &packed);
    }
    check_conv(runner, &long, DType::F32, "tiled", &tiled.with_stages(1));
}
