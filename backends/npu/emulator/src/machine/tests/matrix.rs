//! Matrix multiplication and convolution through L1, L0A, L0B and L0C.

use half::f16;
use halite_npu_isa::{
    Access, CoreKind, CubeOperand, DType, Inst, Kernel, KernelBuilder, MmadMode, Operand, Pipe, StoreMode,
};

use super::{Arg, Bench, Random, assert_close};

/// Sums of up to 300 products of units in f32.
const F32_TOLERANCE: f64 = 2e-6;

/// A matrix in global memory: strides in elements.
#[derive(Clone, Copy)]
struct Strides {
    row: usize,
    col: usize,
}

fn imm(value: usize) -> Operand {
    Operand::Imm(i32::try_from(value).expect("test sizes are small"))
}

fn load_nz(dtype: DType, dst: usize, src: Operand, rows: usize, cols: usize, strides: Strides) -> Inst {
    let (zero, pitch) = (Operand::ZERO, rows.next_multiple_of(16));
    Inst::LoadNz {
        dtype,
        dst: imm(dst),
        src,
        rows: imm(rows),
        cols: imm(cols),
        row_stride: imm(strides.row * dtype.size()),
        col_stride: imm(strides.col * dtype.size()),
        row_group: zero,
        row_group_stride: zero,
        col_group: zero,
        col_valid: zero,
        col_group_stride: zero,
        pitch: imm(pitch),
        pad_rows: imm(pitch),
        pad_cols: imm(cols),
    }
}

fn store(dtype: DType, dst: Operand, rows: usize, cols: usize) -> Inst {
    let zero = Operand::ZERO;
    Inst::StoreL0c {
        dtype,
        mode: StoreMode::Plain,
        relu: false,
        dst,
        src: zero,
        rows: imm(rows),
        cols: imm(cols),
        pitch: imm(rows.next_multiple_of(16)),
        row_stride: imm(cols * dtype.size()),
        col_stride: imm(dtype.size()),
        row_group: zero,
        row_group_stride: zero,
        col_group: zero,
        col_valid: zero,
        col_group_stride: zero,
        scale: Operand::f32(1.0),
    }
}

/// `out = lhs rhs` in two steps of k, each operand loaded as it is or transposed on the way from L1 to L0.
fn matmul_kernel(dtype: DType, [m, k, n]: [usize; 3], transposes: [bool; 2]) -> Kernel {
    let mut b = KernelBuilder::new("matmul", CoreKind::Cube);
    let (lhs, rhs, out) = (b.buffer(Access::Read), b.buffer(Access::Read), b.buffer(Access::Write));
    let half_l1 = 256 << 10;
    let first = (k / 2).next_multiple_of(16).min(k);
    for (k0, k1) in [(0, first), (first, k)] {
        if k0 == k1 && k > 0 {
            continue;
        }
        let depth = k1 - k0;
        // The left matrix is m x k row by row, the right one k x n.
        let (lhs_strides, rhs_strides) = (Strides { row: k, col: 1 }, Strides { row: n, col: 1 });
        let flipped = |strides: Strides| Strides { row: strides.col, col: strides.row };
        let lhs_at = b.add(lhs, imm(k0 * dtype.size()));
        let rhs_at = b.add(rhs, imm(k0 * n * dtype.size()));
        b.push(if transposes[0] {
            load_nz(dtype, 0, lhs_at, depth, m, flipped(lhs_strides))
        } else {
            load_nz(dtype, 0, lhs_at, m, depth, lhs_strides)
        });
        b.push(if transposes[1] {
            load_nz(dtype, half_l1, rhs_at, depth, n, rhs_strides)
        } else {
            load_nz(dtype, half_l1, rhs_at, n, depth, flipped(rhs_strides))
        });
        b.sync(Pipe::Mte2, Pipe::Mte1, 0);
        let pitch =
            |transpose: bool, outer: usize| imm((if transpose { depth } else { outer }).next_multiple_of(16));
        let (zero, depth_imm) = (Operand::ZERO, imm(depth));
        let transpose = transposes[0];
        let (m_imm, n_imm) = (imm(m), imm(n));
        b.push(Inst::LoadA {
            dtype,
            transpose,
            dst: zero,
            src: zero,
            m: m_imm,
            k: depth_imm,
            pitch: pitch(transpose, m),
        });
        let (transpose, src) = (transposes[1], imm(half_l1));
        b.push(Inst::LoadB {
            dtype,
            transpose,
            dst: zero,
            src,
            k: depth_imm,
            n: n_imm,
            pitch: pitch(transpose, n),
        });
        b.sync(Pipe::Mte1, Pipe::M, 0);
        let mode = if k0 == 0 { MmadMode::Init } else { MmadMode::Accumulate };
        b.push(Inst::Mmad {
            dtype,
            mode,
            dst: zero,
            lhs: zero,
            rhs: zero,
            m: m_imm,
            k: depth_imm,
            n: n_imm,
            bias: zero,
        });
        b.sync(Pipe::M, Pipe::Mte1, 0);
        b.sync(Pipe::Mte1, Pipe::Mte2, 0);
    }
    b.sync(Pipe::M, Pipe::Fix, 0);
    b.push(store(DType::F32, out.into(), m, n));
    b.finish().expect("the kernel obeys the rules")
}

fn matmul_f64(lhs: &[f32], rhs: &[f32], [m, k, n]: [usize; 3]) -> Vec<f64> {
    let mut out = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            out[i * n + j] = (0..k).map(|l| f64::from(lhs[i * k + l]) * f64::from(rhs[l * n + j])).sum();
        }
    }
    out
}

const SIZES: [[usize; 3]; 9] = [
    [1, 1, 1],
    [16, 16, 16],
    [17, 31, 13],
    [5, 1, 37],
    [1, 97, 1],
    [61, 67, 71],
    [128, 64, 128],
    [3, 0, 5],
    [33, 129, 15],
];

#[test]
fn matmul_of_odd_sizes_and_all_transposes_agrees_with_f64() {
    let bench = Bench::new();
    let mut random = Random::new(1);
    for [m, k, n] in SIZES {
        let (lhs, rhs) = (random.units(m * k), random.units(k * n));
        let expected = matmul_f64(&lhs, &rhs, [m, k, n]);
        for transposes in [[false, false], [false, true], [true, false], [true, true]] {
            let args = [bench.upload(&lhs), bench.upload(&rhs), bench.upload(&vec![f32::NAN; m * n])];
            let kernel = matmul_kernel(DType::F32, [m, k, n], transposes);
            let report = bench.launch(kernel, 1, &args.map(Arg::Buffer)).expect("the launch succeeds");
            assert_eq!(report.multiply_adds, (m * k * n) as u64);
            let out = bench.download::<f32>(args[2], m * n);
            assert_close(&out, &expected, F32_TOLERANCE, &format!("{m}x{k}x{n} {transposes:?}"));
        }
    }
}

#[test]
fn matmul_of_f16_accumulates_in_f32() {
    let bench = Bench::new();
    let mut random = Random::new(2);
    for [m, k, n] in SIZES {
        let mut halves =
            |count: usize| random.units(count).into_iter().map(f16::from_f32).collect::<Vec<_>>();
        let (lhs, rhs) = (halves(m * k), halves(k * n));
        let wide = |values: &[f16]| values.iter().map(|value| value.to_f32()).collect::<Vec<_>>();
        let expected = matmul_f64(&wide(&lhs), &wide(&rhs), [m, k, n]);
        for transposes in [[false, false], [true, true]] {
            let args = [bench.upload(&lhs), bench.upload(&rhs), bench.upload(&vec![f32::NAN; m * n])];
            let kernel = matmul_kernel(DType::F16, [m, k, n], transposes);
            bench.launch(kernel, 1, &args.map(Arg::Buffer)).expect("the launch succeeds");
            let out = bench.download::<f32>(args[2], m * n);
            // The inputs are exact in f32, so only the sums round.
            assert_close(&out, &expected, F32_TOLERANCE, &format!("{m}x{k}x{n} {transposes:?}"));
        }
    }
}

#[test]
fn bias_scale_relu_and_rounding_apply_in_this_order() {
    let (m, n) = (2, 19);
    let bench = Bench::new();
    let bias: Vec<f32> = (0..n).map(|i| i as f32 - 9.0).collect();
    let mut b = KernelBuilder::new("bias", CoreKind::Cube);
    let (src, out) = (b.buffer(Access::Read), b.buffer(Access::Write));
    let (zero, count) = (Operand::ZERO, imm(n));
    b.push(Inst::LoadL1 {
        dst: zero,
        src: src.into(),
        bytes: imm(n * 4),
        bursts: imm(1),
        src_stride: zero,
        dst_stride: zero,
    });
    b.sync(Pipe::Mte2, Pipe::Mte1, 0);
    b.push(Inst::LoadBias { dst: zero, src: zero, count });
    b.sync(Pipe::Mte1, Pipe::M, 0);
    let (dtype, mode) = (DType::F32, MmadMode::Bias);
    b.push(Inst::Mmad {
        dtype,
        mode,
        dst: zero,
        lhs: zero,
        rhs: zero,
        m: imm(m),
        k: zero,
        n: count,
        bias: zero,
    });
    b.sync(Pipe::M, Pipe::Fix, 0);
    let mut inst = store(DType::F16, out.into(), m, n);
    if let Inst::StoreL0c { relu, scale, .. } = &mut inst {
        (*relu, *scale) = (true, Operand::f32(-0.5));
    }
    b.push(inst);
    let kernel = b.finish().expect("the kernel obeys the rules");
    let args = [bench.upload(&bias), bench.upload(&vec![f16::NAN; m * n + 1])];
    bench.launch(kernel, 1, &args.map(Arg::Buffer)).expect("the launch succeeds");
    let out = bench.download::<f16>(args[1], m * n + 1);
    for i in 0..m * n {
        assert_eq!(out[i].to_f32(), (bias[i % n] * -0.5).max(0.0));
    }
    assert!(out[m * n].is_nan(), "nothing may be written behind the result");
}

/// A convolution of one image, `[channels][height][width]`, with `[out_channels][channels][kernel]` weights.
#[derive(Clone, Copy, Debug)]
struct Conv {
    channels: usize,
    out_channels: usize,
    size: [usize; 2],
    kernel: [usize; 2],
    stride: [usize; 2],
    dilation: [usize; 2],
    pad: [usize; 2],
}

impl Conv {
    fn out_size(&self) -> [usize; 2] {
        std::array::from_fn(|axis| {
            let reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1;
            (self.size[axis] + 2 * self.pad[axis] - reach) / self.stride[axis] + 1
        })
    }

    /// Calls `f` with the places in the image, the weights and the result of every product.
    fn each(&self, mut f: impl FnMut(usize, usize, usize)) {
        let [oh, ow] = self.out_size();
        for co in 0..self.out_channels {
            for ci in 0..self.channels {
                for (ky, kx) in (0..self.kernel[0]).flat_map(|y| (0..self.kernel[1]).map(move |x| (y, x))) {
                    for (oy, ox) in (0..oh).flat_map(|y| (0..ow).map(move |x| (y, x))) {
                        let y = (oy * self.stride[0] + ky * self.dilation[0]).wrapping_sub(self.pad[0]);
                        let x = (ox * self.stride[1] + kx * self.dilation[1]).wrapping_sub(self.pad[1]);
                        if y < self.size[0] && x < self.size[1] {
                            f(
                                (ci * self.size[0] + y) * self.size[1] + x,
                                ((co * self.channels + ci) * self.kernel[0] + ky) * self.kernel[1] + kx,
                                (co * oh + oy) * ow + ox,
                            );
                        }
                    }
                }
            }
        }
    }

    fn image_len(&self) -> usize {
        self.channels * self.size[0] * self.size[1]
    }

    fn weights_len(&self) -> usize {
        self.out_channels * self.channels * self.kernel[0] * self.kernel[1]
    }

    fn out_len(&self) -> usize {
        self.out_channels * self.out_size()[0] * self.out_size()[1]
    }
}

/// Loads `channels` planes of `pixels` as an image of channel blocks.
fn load_image(b: &mut KernelBuilder, dst: usize, src: Operand, channels: usize, pixels: usize) {
    let mut inst = load_nz(DType::F32, dst, src, pixels, channels, Strides { row: 1, col: pixels });
    if let Inst::LoadNz { pitch, pad_rows, .. } = &mut inst {
        (*pitch, *pad_rows) = (imm(pixels), imm(pixels));
    }
    b.push(inst);
}

const CONVS: [Conv; 4] = [
    Conv {
        channels: 1,
        out_channels: 8,
        size: [8, 8],
        kernel: [3, 3],
        stride: [1, 1],
        dilation: [1, 1],
        pad: [1, 1],
    },
    Conv {
        channels: 5,
        out_channels: 3,
        size: [7, 9],
        kernel: [3, 2],
        stride: [2, 1],
        dilation: [1, 2],
        pad: [1, 0],
    },
    Conv {
        channels: 8,
        out_channels: 17,
        size: [5, 5],
        kernel: [1, 1],
        stride: [1, 1],
        dilation: [1, 1],
        pad: [0, 0],
    },
    Conv {
        channels: 9,
        out_channels: 2,
        size: [6, 11],
        kernel: [2, 3],
        stride: [2, 3],
        dilation: [2, 1],
        pad: [2, 2],
    },
];

fn set_image(
    size: [usize; 2],
    channel_blocks: usize,
    conv: &Conv,
    stride: [usize; 2],
    pad: [i32; 2],
    out_width: usize,
    up: [usize; 2],
) -> Inst {
    Inst::SetImage {
        height: imm(size[0]),
        width: imm(size[1]),
        channel_blocks: imm(channel_blocks),
        kernel_h: imm(conv.kernel[0]),
        kernel_w: imm(conv.kernel[1]),
        stride_h: imm(stride[0]),
        stride_w: imm(stride[1]),
        dilation_h: imm(conv.dilation[0]),
        dilation_w: imm(conv.dilation[1]),
        pad_top: Operand::Imm(pad[0]),
        pad_left: Operand::Imm(pad[1]),
        out_width: imm(out_width),
        up_h: imm(up[0]),
        up_w: imm(up[1]),
    }
}

const WEIGHTS_AT: usize = 128 << 10;
const LANES: usize = 8;

fn mmad(b: &mut KernelBuilder, m: usize, k: usize, n: usize) {
    b.sync(Pipe::Mte1, Pipe::M, 0);
    let zero = Operand::ZERO;
    let (dtype, mode) = (DType::F32, MmadMode::Init);
    b.push(Inst::Mmad {
        dtype,
        mode,
        dst: zero,
        lhs: zero,
        rhs: zero,
        m: imm(m),
        k: imm(k),
        n: imm(n),
        bias: zero,
    });
    b.sync(Pipe::M, Pipe::Fix, 0);
}

fn im2col(operand: CubeOperand, transpose: bool, positions: usize, blocks: usize) -> Inst {
    let zero = Operand::ZERO;
    Inst::Im2col {
        dtype: DType::F32,
        operand,
        transpose,
        dst: zero,
        src: zero,
        position: zero,
        positions: imm(positions),
        block: zero,
        blocks: imm(blocks),
    }
}

#[test]
fn convolution_by_image_to_column_agrees_with_f64() {
    let bench = Bench::new();
    let mut random = Random::new(3);
    for conv in CONVS {
        let (image, weights) = (random.units(conv.image_len()), random.units(conv.weights_len()));
        let mut expected = vec![0.0; conv.out_len()];
        conv.each(|x, w, y| expected[y] += f64::from(image[x]) * f64::from(weights[w]));
        let taps = conv.kernel[0] * conv.kernel[1];
        let channel_blocks = conv.channels.div_ceil(LANES);
        let positions = conv.out_size()[0] * conv.out_size()[1];
        let (blocks, n) = (channel_blocks * taps, conv.out_channels);
        // Positions as m (weights on the right), and positions as n (weights on the left).
        for positions_left in [true, false] {
            let mut b = KernelBuilder::new("conv", CoreKind::Cube);
            let (x, w, y) = (b.buffer(Access::Read), b.buffer(Access::Read), b.buffer(Access::Write));
            load_image(&mut b, 0, x.into(), conv.channels, conv.size[0] * conv.size[1]);
            let pitch = n.next_multiple_of(16);
            for block in 0..channel_blocks {
                let valid = LANES.min(conv.channels - block * LANES);
                let src = b.add(w, imm(block * LANES * taps * 4));
                let strides = Strides { row: conv.channels * taps, col: taps };
                let dst = WEIGHTS_AT + block * taps * pitch * 32;
                let mut inst = load_nz(DType::F32, dst, src, n, taps * LANES, strides);
                if let Inst::LoadNz { col_group, col_valid, col_group_stride, .. } = &mut inst {
                    (*col_group, *col_valid, *col_group_stride) = (imm(LANES), imm(valid), imm(4));
                }
                b.push(inst);
            }
            b.sync(Pipe::Mte2, Pipe::Mte1, 0);
            let pad = conv.pad.map(|pad| pad as i32);
            b.push(set_image(conv.size, channel_blocks, &conv, conv.stride, pad, conv.out_size()[1], [1, 1]));
            let (zero, k) = (Operand::ZERO, imm(blocks * LANES));
            let (dtype, transpose, src) = (DType::F32, false, imm(WEIGHTS_AT));
            let mut out = if positions_left {
                b.push(im2col(CubeOperand::A, false, positions, blocks));
                b.push(Inst::LoadB { dtype, transpose, dst: zero, src, k, n: imm(n), pitch: imm(pitch) });
                mmad(&mut b, positions, blocks * LANES, n);
                store(DType::F32, y.into(), positions, n)
            } else {
                b.push(im2col(CubeOperand::B, true, positions, blocks));
                b.push(Inst::LoadA { dtype, transpose, dst: zero, src, m: imm(n), k, pitch: imm(pitch) });
                mmad(&mut b, n, blocks * LANES, positions);
                store(DType::F32, y.into(), n, positions)
            };
            if let (Inst::StoreL0c { row_stride, col_stride, .. }, true) = (&mut out, positions_left) {
                (*row_stride, *col_stride) = (imm(4), imm(positions * 4));
            }
            b.push(out);
            let kernel = b.finish().expect("the kernel obeys the rules");
            let args =
                [bench.upload(&image), bench.upload(&weights), bench.upload(&vec![f32::NAN; conv.out_len()])];
            bench.launch(kernel, 1, &args.map(Arg::Buffer)).expect("the launch succeeds");
            let out = bench.download::<f32>(args[2], conv.out_len());
            assert_close(&out, &expected, F32_TOLERANCE, &format!("{conv:?} {positions_left}"));
        }
    }
}

#[test]
fn input_gradient_spreads_the_image_by_the_stride() {
    let bench = Bench::new();
    let mut random = Random::new(4);
    for conv in CONVS {
        let (grad, weights) = (random.units(conv.out_len()), random.units(conv.weights_len()));
        let mut expected = vec![0.0; conv.image_len()];
        conv.each(|x, w, y| expected[x] += f64::from(grad[y]) * f64::from(weights[w]));
        let taps = conv.kernel[0] * conv.kernel[1];
        let channel_blocks = conv.out_channels.div_ceil(LANES);
        let positions = conv.size[0] * conv.size[1];
        let (blocks, n) = (channel_blocks * taps, conv.channels);
        let mut b = KernelBuilder::new("conv_input", CoreKind::Cube);
        let (dy, w, dx) = (b.buffer(Access::Read), b.buffer(Access::Read), b.buffer(Access::Write));
        let out_size = conv.out_size();
        load_image(&mut b, 0, dy.into(), conv.out_channels, out_size[0] * out_size[1]);
        let pitch = n.next_multiple_of(16);
        for block in 0..channel_blocks {
            // Rows are input channels; columns are taps from the last to the first, with output channels inside.
            let valid = LANES.min(conv.out_channels - block * LANES);
            let src = b.add(w, imm((block * LANES * conv.channels * taps + taps - 1) * 4));
            let strides = Strides { row: taps, col: conv.channels * taps };
            let dst = WEIGHTS_AT + block * taps * pitch * 32;
            let mut inst = load_nz(DType::F32, dst, src, n, taps * LANES, strides);
            if let Inst::LoadNz { col_group, col_valid, col_group_stride, .. } = &mut inst {
                (*col_group, *col_valid, *col_group_stride) = (imm(LANES), imm(valid), Operand::Imm(-4));
            }
            b.push(inst);
        }
        b.sync(Pipe::Mte2, Pipe::Mte1, 0);
        let pad: [i32; 2] = std::array::from_fn(|axis| {
            (conv.dilation[axis] * (conv.kernel[axis] - 1)) as i32 - conv.pad[axis] as i32
        });
        b.push(set_image(out_size, channel_blocks, &conv, [1, 1], pad, conv.size[1], conv.stride));
        b.push(im2col(CubeOperand::A, false, positions, blocks));
        let (zero, k, src) = (Operand::ZERO, imm(blocks * LANES), imm(WEIGHTS_AT));
        let (dtype, transpose) = (DType::F32, false);
        b.push(Inst::LoadB { dtype, transpose, dst: zero, src, k, n: imm(n), pitch: imm(pitch) });
        mmad(&mut b, positions, blocks * LANES, n);
        let mut out = store(DType::F32, dx.into(), positions, n);
        if let Inst::StoreL0c { row_stride, col_stride, .. } = &mut out {
            (*row_stride, *col_stride) = (imm(4), imm(positions * 4));
        }
        b.push(out);
        let kernel = b.finish().expect("the kernel obeys the rules");
        let args =
            [bench.upload(&grad), bench.upload(&weights), bench.upload(&vec![f32::NAN; conv.image_len()])];
        bench.launch(kernel, 1, &args.map(Arg::Buffer)).expect("the launch succeeds");
        let out = bench.download::<f32>(args[2], conv.image_len());
        assert_close(&out, &expected, F32_TOLERANCE, &format!("{conv:?}"));
    }
}

#[test]
fn weight_gradient_contracts_over_positions() {
    let bench = Bench::new();
    let mut random = Random::new(5);
    for conv in CONVS {
        let (image, grad) = (random.units(conv.image_len()), random.units(conv.out_len()));
        let mut expected = vec![0.0; conv.weights_len()];
        conv.each(|x, w, y| expected[w] += f64::from(image[x]) * f64::from(grad[y]));
        let taps = conv.kernel[0] * conv.kernel[1];
        let channel_blocks = conv.channels.div_ceil(LANES);
        let out_size = conv.out_size();
        let positions = out_size[0] * out_size[1];
        let (blocks, m) = (channel_blocks * taps, conv.out_channels);
        // The column matrix as right operand, and transposed as left one.
        for columns_right in [true, false] {
            let mut b = KernelBuilder::new("conv_weights", CoreKind::Cube);
            let (x, dy, dw) = (b.buffer(Access::Read), b.buffer(Access::Read), b.buffer(Access::Write));
            load_image(&mut b, 0, x.into(), conv.channels, conv.size[0] * conv.size[1]);
            let strides = Strides { row: positions, col: 1 };
            b.push(load_nz(DType::F32, WEIGHTS_AT, dy.into(), m, positions, strides));
            b.sync(Pipe::Mte2, Pipe::Mte1, 0);
            let pad = conv.pad.map(|pad| pad as i32);
            b.push(set_image(conv.size, channel_blocks, &conv, conv.stride, pad, out_size[1], [1, 1]));
            let (zero, k, src) = (Operand::ZERO, imm(positions), imm(WEIGHTS_AT));
            let (dtype, transpose, pitch) = (DType::F32, false, imm(m.next_multiple_of(16)));
            let columns = blocks * LANES;
            if columns_right {
                b.push(im2col(CubeOperand::B, false, positions, blocks));
                b.push(Inst::LoadA { dtype, transpose, dst: zero, src, m: imm(m), k, pitch });
                mmad(&mut b, m, positions, columns);
            } else {
                b.push(im2col(CubeOperand::A, true, positions, blocks));
                b.push(Inst::LoadB { dtype, transpose, dst: zero, src, k, n: imm(m), pitch });
                mmad(&mut b, columns, positions, m);
            }
            for block in 0..channel_blocks {
                let valid = LANES.min(conv.channels - block * LANES);
                let columns_before = block * taps * LANES;
                if columns_right {
                    // All taps of the block in one store: groups of a block, of which `valid` columns exist.
                    let dst = b.add(dw, imm(block * LANES * taps * 4));
                    let mut out = store(dtype, dst, m, taps * LANES);
                    if let Inst::StoreL0c {
                        src,
                        row_stride,
                        col_stride,
                        col_group,
                        col_valid,
                        col_group_stride,
                        ..
                    } = &mut out
                    {
                        assert_eq!(columns_before % 16, 0, "the block must start at a tile");
                        *src = imm(columns_before / 16 * m.next_multiple_of(16) * 64);
                        (*row_stride, *col_stride) = (imm(conv.channels * taps * 4), imm(taps * 4));
                        (*col_group, *col_valid, *col_group_stride) = (imm(LANES), imm(valid), imm(4));
                    }
                    b.push(out);
                    continue;
                }
                for tap in 0..taps {
                    let dst = b.add(dw, imm((block * LANES * taps + tap) * 4));
                    let mut out = store(dtype, dst, valid, m);
                    if let Inst::StoreL0c { src, pitch, row_stride, col_stride, .. } = &mut out {
                        *src = imm((columns_before + tap * LANES) * 64);
                        *pitch = imm(columns.next_multiple_of(16));
                        (*row_stride, *col_stride) = (imm(taps * 4), imm(conv.channels * taps * 4));
                    }
                    b.push(out);
                }
            }
            let kernel = b.finish().expect("the kernel obeys the rules");
            let args =
                [bench.upload(&image), bench.upload(&grad), bench.upload(&vec![0.0; conv.weights_len()])];
            bench.launch(kernel, 1, &args.map(Arg::Buffer)).expect("the launch succeeds");
            let out = bench.download::<f32>(args[2], conv.weights_len());
            assert_close(&out, &expected, F32_TOLERANCE, &format!("{conv:?} {columns_right}"));
        }
    }
}
