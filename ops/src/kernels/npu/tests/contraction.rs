//! Matrix products and convolutions against plain loops in f64.

use half::{bf16, f16};
use halite_hal::DType;

use super::{Npu, Random, assert_close, f32_bytes, f32_values, ty};
use crate::lower::{
    BiasAxis, Conv, ConvGeometry, ConvOperand, Dot, Epilogue, KernelOp, MatrixView, TensorType,
};

/// Up to 2,000 products of units added one after the other in f32: partial sums of about 10 round by 5e-7 each, and
/// the errors grow with the square root of their number. Relative to the larger of 1 and the sum.
const F32_TOLERANCE: f64 = 5e-5;

fn narrow(dtype: DType, values: &[f32]) -> (Vec<u8>, Vec<f32>) {
    match dtype {
        DType::F16 => {
            let halves: Vec<f16> = values.iter().map(|&value| f16::from_f32(value)).collect();
            let bytes = halves.iter().flat_map(|value| value.to_ne_bytes()).collect();
            (bytes, halves.iter().map(|value| value.to_f32()).collect())
        }
        DType::BF16 => {
            let halves: Vec<bf16> = values.iter().map(|&value| bf16::from_f32(value)).collect();
            let bytes = halves.iter().flat_map(|value| value.to_ne_bytes()).collect();
            (bytes, halves.iter().map(|value| value.to_f32()).collect())
        }
        _ => (f32_bytes(values), values.to_vec()),
    }
}

fn widen(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let halves = bytes.as_chunks::<2>().0.iter();
    match dtype {
        DType::F16 => halves.map(|bytes| f16::from_ne_bytes(*bytes).to_f32()).collect(),
        DType::BF16 => halves.map(|bytes| bf16::from_ne_bytes(*bytes).to_f32()).collect(),
        _ => f32_values(bytes),
    }
}

fn tolerance(dtype: DType) -> f64 {
    match dtype {
        // Half a unit of the result's last place.
        DType::F16 => 1.0 / 1024.0,
        DType::BF16 => 1.0 / 128.0,
        _ => F32_TOLERANCE,
    }
}

/// A dense operand; `turned` swaps the order of its axes in memory.
fn matrix(batch: &[usize], rows: usize, cols: usize, turned: bool) -> MatrixView {
    let mut strides = vec![0; batch.len()];
    let mut step = (rows * cols) as i64;
    for (stride, extent) in strides.iter_mut().zip(batch).rev() {
        *stride = step;
        step *= *extent as i64;
    }
    let (row_stride, col_stride) = if turned { (1, rows as i64) } else { (cols as i64, 1) };
    MatrixView { offset: 0, batch_strides: strides, row_stride, col_stride }
}

fn check_dot(npu: &Npu, dot: &Dot, random: &mut Random) {
    let batch: usize = dot.batch.iter().product();
    let (lhs_bytes, lhs) = narrow(dot.dtype, &random.units(batch * dot.m * dot.k));
    let (rhs_bytes, rhs) = narrow(dot.dtype, &random.units(batch * dot.k * dot.n));
    let bias_len = match dot.epilogue.bias {
        Some(BiasAxis::Row) => dot.m,
        Some(_) => dot.n,
        None => 0,
    };
    let (bias_bytes, bias) = narrow(dot.dtype, &random.units(bias_len));
    let mut expected = Vec::new();
    for b in 0..batch {
        let mut index = b;
        let (mut lhs_at, mut rhs_at) = (dot.lhs.offset, dot.rhs.offset);
        for axis in (0..dot.batch.len()).rev() {
            let i = (index % dot.batch[axis]) as i64;
            index /= dot.batch[axis];
            lhs_at += i * dot.lhs.batch_strides[axis];
            rhs_at += i * dot.rhs.batch_strides[axis];
        }
        for i in 0..dot.m as i64 {
            for j in 0..dot.n as i64 {
                let product = |l: i64| {
                    let a = lhs[(lhs_at + i * dot.lhs.row_stride + l * dot.lhs.col_stride) as usize];
                    let b = rhs[(rhs_at + l * dot.rhs.row_stride + j * dot.rhs.col_stride) as usize];
                    f64::from(a) * f64::from(b)
                };
                let mut sum: f64 = (0..dot.k as i64).map(product).sum();
                sum += match dot.epilogue.bias {
                    Some(BiasAxis::Row) => f64::from(bias[i as usize]),
                    Some(_) => f64::from(bias[j as usize]),
                    None => 0.0,
                };
                expected.push(if dot.epilogue.relu { sum.max(0.0) } else { sum });
            }
        }
    }
    let shape = [batch, dot.m, dot.n];
    let inputs = [lhs_bytes, rhs_bytes, bias_bytes];
    let types = [ty(dot.dtype, &[]), ty(dot.dtype, &[]), ty(dot.dtype, &[bias_len])];
    let results = npu.run_typed(&KernelOp::Dot(dot.clone()), (&inputs, &types), &[ty(dot.out_dtype, &shape)]);
    let what = format!("{dot:?}");
    assert_close(&widen(dot.out_dtype, &results[0]), &expected, tolerance(dot.out_dtype), 1.0, &what);
}

fn dot(batch: &[usize], [m, k, n]: [usize; 3], turned: [bool; 2], dtype: DType) -> Dot {
    Dot {
        batch: batch.to_vec(),
        m,
        n,
        k,
        lhs: matrix(batch, m, k, turned[0]),
        rhs: matrix(batch, k, n, turned[1]),
        dtype,
        out_dtype: dtype,
        epilogue: Epilogue::default(),
    }
}

#[test]
fn products_of_all_sizes_and_transposes_agree_with_f64() {
    let mut random = Random::new(21);
    let sizes = [
        [1, 1, 1],
        [1, 128, 10],
        [2, 3, 5],
        [16, 16, 16],
        [31, 37, 41],
        [5, 0, 7],
        [129, 65, 257],
        [300, 7, 17],
        [3, 1999, 2],
        [131, 700, 139],
    ];
    for size in sizes {
        for turned in [[false, false], [true, false], [false, true], [true, true]] {
            for dtype in [DType::F32, DType::F16] {
                check_dot(
                    &Npu::new(if turned[0] { 24 } else { 1 }),
                    &dot(&[], size, turned, dtype),
                    &mut random,
                );
            }
        }
    }
}

#[test]
fn batches_with_broadcast_and_halves_with_wide_results_agree() {
    let npu = Npu::new(7);
    let mut random = Random::new(22);
    check_dot(&npu, &dot(&[3], [17, 19, 23], [false, true], DType::F32), &mut random);
    check_dot(&npu, &dot(&[2, 3, 2], [33, 5, 20], [true, false], DType::BF16), &mut random);
    let mut shared = dot(&[4, 2], [9, 30, 11], [false, false], DType::F16);
    shared.out_dtype = DType::F32;
    shared.rhs.batch_strides = vec![0, 330];
    check_dot(&npu, &shared, &mut random);
}

#[test]
fn epilogues_add_along_either_axis_and_cut_at_zero() {
    let npu = Npu::new(2);
    let mut random = Random::new(23);
    for dtype in [DType::F32, DType::F16] {
        for bias in [None, Some(BiasAxis::Row), Some(BiasAxis::Column)] {
            for relu in [false, true] {
                for k in [0, 40] {
                    let mut dot = dot(&[2], [21, k, 300], [false, false], dtype);
                    dot.epilogue = Epilogue { bias, relu };
                    check_dot(&npu, &dot, &mut random);
                }
            }
        }
    }
}

/// Calls `f` with the places in the input, the filter and the output of every product.
fn each_product(g: &ConvGeometry, mut f: impl FnMut(usize, usize, usize)) {
    let rank = g.kernel.len();
    let counts = |sizes: &[usize]| sizes.iter().product::<usize>();
    let unravel = |mut number: usize, sizes: &[usize]| {
        let mut index = vec![0; rank];
        for axis in (0..rank).rev() {
            index[axis] = number % sizes[axis];
            number /= sizes[axis];
        }
        index
    };
    let (ci, co) = (g.in_channels / g.groups, g.out_channels / g.groups);
    for (image, group) in (0..g.batch).flat_map(|n| (0..g.groups).map(move |group| (n, group))) {
        for tap in 0..counts(&g.kernel) {
            for position in 0..counts(&g.output) {
                let (tap_index, out_index) = (unravel(tap, &g.kernel), unravel(position, &g.output));
                let mut pixel = Some(0);
                for axis in 0..rank {
                    let at = (out_index[axis] * g.stride[axis] + tap_index[axis] * g.dilation[axis])
                        .checked_sub(g.pad_low[axis])
                        .filter(|&at| at < g.input[axis]);
                    pixel = pixel.zip(at).map(|(pixel, at)| pixel * g.input[axis] + at);
                }
                let Some(pixel) = pixel else { continue };
                for (c, o) in (0..ci).flat_map(|c| (0..co).map(move |o| (c, o))) {
                    let channel = group * co + o;
                    f(
                        (image * g.in_channels + group * ci + c) * counts(&g.input) + pixel,
                        (channel * ci + c) * counts(&g.kernel) + tap,
                        (image * g.out_channels + channel) * counts(&g.output) + position,
                    );
                }
            }
        }
    }
}

struct Case {
    batch: usize,
    channels: [usize; 2],
    groups: usize,
    input: Vec<usize>,
    kernel: Vec<usize>,
    stride: Vec<usize>,
    dilation: Vec<usize>,
    pad: Vec<[usize; 2]>,
}

impl Case {
    fn new(batch: usize, channels: [usize; 2], input: &[usize], kernel: &[usize]) -> Self {
        let rank = input.len();
        Self {
            batch,
            channels,
            groups: 1,
            input: input.to_vec(),
            kernel: kernel.to_vec(),
            stride: vec![1; rank],
            dilation: vec![1; rank],
            pad: vec![[0, 0]; rank],
        }
    }

    fn geometry(&self) -> ConvGeometry {
        let output = (0..self.input.len())
            .map(|axis| {
                let reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1;
                (self.input[axis] + self.pad[axis][0] + self.pad[axis][1] - reach) / self.stride[axis] + 1
            })
            .collect();
        ConvGeometry {
            batch: self.batch,
            in_channels: self.channels[0],
            out_channels: self.channels[1],
            groups: self.groups,
            input: self.input.clone(),
            kernel: self.kernel.clone(),
            output,
            stride: self.stride.clone(),
            dilation: self.dilation.clone(),
            pad_low: self.pad.iter().map(|pad| pad[0]).collect(),
            pad_high: self.pad.iter().map(|pad| pad[1]).collect(),
        }
    }
}

fn cases() -> Vec<Case> {
    let same = |case: Case| Case { pad: vec![[1, 1]; case.input.len()], ..case };
    vec![
        same(Case::new(3, [1, 8], &[8, 8], &[3, 3])),
        same(Case::new(2, [16, 32], &[8, 8], &[3, 3])),
        same(Case::new(1, [17, 19], &[28, 28], &[3, 3])),
        Case::new(2, [3, 5], &[7, 9], &[1, 1]),
        Case::new(1, [1, 1], &[1, 1], &[1, 1]),
        Case { stride: vec![2, 3], pad: vec![[2, 0], [1, 2]], ..Case::new(2, [9, 4], &[11, 13], &[3, 4]) },
        Case { dilation: vec![2, 3], pad: vec![[3, 1], [0, 4]], ..Case::new(1, [8, 24], &[13, 17], &[3, 2]) },
        Case { groups: 3, stride: vec![2, 1], ..same(Case::new(2, [6, 9], &[10, 7], &[3, 3])) },
        Case { groups: 20, ..same(Case::new(1, [20, 20], &[6, 5], &[3, 3])) },
        // Rows longer than a tile, many strips, many channel blocks, many columns, and a window larger than the image.
        same(Case::new(1, [2, 3], &[3, 300], &[3, 3])),
        same(Case::new(1, [3, 20], &[70, 40], &[5, 5])),
        same(Case::new(1, [200, 40], &[6, 6], &[3, 3])),
        same(Case::new(1, [5, 300], &[5, 5], &[3, 3])),
        Case::new(1, [3, 2], &[24, 23], &[17, 9]),
        Case { pad: vec![[3, 3], [2, 2]], ..Case::new(2, [4, 4], &[2, 3], &[5, 5]) },
        Case { stride: vec![3], pad: vec![[1, 2]], ..Case::new(2, [5, 6], &[50], &[4]) },
    ]
}

fn check_conv(
    npu: &Npu,
    case: &Case,
    operand: ConvOperand,
    dtype: DType,
    epilogue: Epilogue,
    random: &mut Random,
) {
    let geometry = case.geometry();
    let g = &geometry;
    let spatial = |sizes: &[usize]| sizes.iter().product::<usize>();
    let lens = [
        g.batch * g.in_channels * spatial(&g.input),
        g.out_channels * g.in_channels / g.groups * spatial(&g.kernel),
        g.batch * g.out_channels * spatial(&g.output),
    ];
    let data = lens.map(|len| narrow(dtype, &random.units(len)));
    let (bias_bytes, bias) = narrow(dtype, &random.units(g.out_channels));
    let values = |n: usize, at: usize| f64::from(data[n].1[at]);
    let (solved, first, second) = match operand {
        ConvOperand::Output => (2, 0, 1),
        ConvOperand::Input => (0, 2, 1),
        ConvOperand::Filter => (1, 2, 0),
    };
    let mut expected = vec![0.0; lens[solved]];
    each_product(g, |x, w, y| {
        let at = [x, w, y];
        expected[at[solved]] += values(first, at[first]) * values(second, at[second]);
    });
    if epilogue.bias.is_some() {
        let plane = spatial(&g.output);
        for (i, value) in expected.iter_mut().enumerate() {
            *value += f64::from(bias[i / plane % g.out_channels]);
        }
    }
    if epilogue.relu {
        expected.iter_mut().for_each(|value| *value = value.max(0.0));
    }
    let conv = Conv { operand, geometry: geometry.clone(), dtype, out_dtype: dtype, epilogue };
    let inputs = [data[first].0.clone(), data[second].0.clone(), bias_bytes];
    let types: [TensorType; 3] = std::array::from_fn(|_| ty(dtype, &[]));
    let op = KernelOp::Conv(conv);
    let results = npu.run_typed(&op, (&inputs, &types), &[ty(dtype, &[lens[solved]])]);
    assert_close(&widen(dtype, &results[0]), &expected, tolerance(dtype), 1.0, &format!("{op:?}"));
}

#[test]
fn convolutions_agree_with_f64_for_each_operand() {
    let mut random = Random::new(24);
    for (i, case) in cases().iter().enumerate() {
        let npu = Npu::new(if i % 2 == 0 { 24 } else { 1 });
        for operand in [ConvOperand::Output, ConvOperand::Input, ConvOperand::Filter] {
            for dtype in [DType::F32, DType::F16] {
                check_conv(&npu, case, operand, dtype, Epilogue::default(), &mut random);
            }
        }
    }
}

#[test]
fn convolutions_add_a_bias_to_each_channel_and_cut_at_zero() {
    let mut random = Random::new(25);
    let npu = Npu::new(3);
    for case in [&cases()[0], &cases()[7], &cases()[9]] {
        for dtype in [DType::F32, DType::BF16] {
            let epilogue = Epilogue { bias: Some(BiasAxis::Channel), relu: true };
            check_conv(&npu, case, ConvOperand::Output, dtype, epilogue, &mut random);
        }
    }
}
