//! What one training step's operations cost on the emulator. Checks nothing: run with `--ignored --nocapture speed`.

use std::time::Instant;

use halite_hal::{DType, KernelSource};

use super::{Npu, ty};
use crate::cluster::{BinaryOp, Cluster, Literal, Step, StepOp, View};
use crate::lower::{
    Conv, ConvGeometry, ConvOperand, Dot, Epilogue, KernelOp, LaunchArg, MatrixView, ReduceKind, Reduction,
    TensorType, Window, WindowKind,
};
use halite_npu_emulator::machine::Arg;

impl Npu {
    fn time(&self, name: &str, op: &KernelOp, inputs: &[usize], output: usize) {
        let memory = self.emulator.memory();
        let upload = |len: usize| memory.alloc(4 * len as u64).expect("the data fits");
        let input_at: Vec<u64> = inputs.iter().map(|&len| upload(len)).collect();
        let output_at = upload(output);
        let types: Vec<TensorType> = inputs.iter().map(|&len| ty(DType::F32, &[len])).collect();
        let start = Instant::now();
        let lowered = self.lower(op, &types, &[ty(DType::F32, &[output])]);
        let lowering = start.elapsed();
        let programs: Vec<_> = lowered
            .launches
            .iter()
            .map(|launch| {
                let KernelSource::Binary { bytes, entry, .. } = &launch.source else {
                    panic!("a builder makes programs");
                };
                let program = self.emulator.load(bytes).expect("a builder's program is valid");
                let args: Vec<Arg> = launch
                    .args
                    .iter()
                    .map(|arg| match *arg {
                        LaunchArg::Input(n) => Arg::Buffer(input_at[n]),
                        _ => Arg::Buffer(output_at),
                    })
                    .collect();
                (program, entry.clone(), launch.grid[0], args)
            })
            .collect();
        let rounds = 20;
        let start = Instant::now();
        let mut instructions = 0;
        for _ in 0..rounds {
            for (program, entry, blocks, args) in &programs {
                let report =
                    self.emulator.launch(program, entry, *blocks, args).expect("the launch succeeds");
                instructions += report.instructions;
            }
        }
        let each = start.elapsed() / rounds;
        let (records, instructions) =
            (programs[0].0.kernels()[0].code().len(), instructions / u64::from(rounds));
        println!(
            "{name:28} {each:>10.1?} lowering {lowering:>9.1?} {instructions:>7} instructions of {records}"
        );
    }
}

fn conv(operand: ConvOperand, batch: usize, channels: [usize; 2], size: usize) -> KernelOp {
    let geometry = ConvGeometry {
        batch,
        in_channels: channels[0],
        out_channels: channels[1],
        groups: 1,
        input: vec![size; 2],
        kernel: vec![3; 2],
        output: vec![size; 2],
        stride: vec![1; 2],
        dilation: vec![1; 2],
        pad_low: vec![1; 2],
        pad_high: vec![1; 2],
    };
    KernelOp::Conv(Conv {
        operand,
        geometry,
        dtype: DType::F32,
        out_dtype: DType::F32,
        epilogue: Epilogue::default(),
    })
}

#[test]
#[ignore = "prints times, checks nothing"]
fn speed_of_a_training_step() {
    let npu = Npu::new(48);
    let n = 64;
    for (channels, size) in [([1, 16], 8), ([16, 32], 8), ([32, 64], 4)] {
        let (x, y) = (n * channels[0] * size * size, n * channels[1] * size * size);
        let w = channels[0] * channels[1] * 9;
        let name = |what: &str| format!("conv {what} {channels:?} {size}");
        npu.time(&name("output"), &conv(ConvOperand::Output, n, channels, size), &[x, w], y);
        npu.time(&name("input"), &conv(ConvOperand::Input, n, channels, size), &[y, w], x);
        npu.time(&name("filter"), &conv(ConvOperand::Filter, n, channels, size), &[y, x], w);
    }
    let shape = [n, 16, 8, 8];
    let points: usize = shape.iter().product();
    let step = |op: StepOp| Step { op, dtype: DType::F32 };
    let relu = Cluster {
        shape: shape.to_vec(),
        inputs: vec![
            View::contiguous(DType::F32, &shape),
            View { dtype: DType::F32, offset: 0, strides: vec![0, 1, 0, 0] },
        ],
        scalars: Vec::new(),
        steps: vec![
            step(StepOp::Load(0)),
            step(StepOp::Load(1)),
            step(StepOp::Binary(BinaryOp::Add, 0, 1)),
            step(StepOp::Constant(Literal::new(DType::F32, 0.0))),
            step(StepOp::Binary(BinaryOp::Max, 2, 3)),
        ],
        outputs: vec![4],
    };
    npu.time("bias and relu", &KernelOp::Elementwise(relu), &[points, 16], points);
    let view = View { dtype: DType::F32, offset: 0, strides: vec![64, 1024, 1] };
    let program = Cluster::copy(&[16, n, 64], view);
    let sum = Reduction { kind: ReduceKind::Sum, program, kept_rank: 1, dtype: DType::F32 };
    npu.time("bias gradient", &KernelOp::Reduce(sum), &[points], 16);
    for kind in [WindowKind::Max, WindowKind::ScatterToMax] {
        let window = Window {
            kind,
            outer: n * 16,
            input: vec![8; 2],
            output: vec![4; 2],
            window: vec![2; 2],
            stride: vec![2; 2],
            pad_low: vec![0; 2],
            pad_high: vec![0; 2],
            dtype: DType::F32,
        };
        npu.time(kind.name(), &KernelOp::Window(window), &[points, points / 4], points);
    }
    let matrix = |row_stride: i64, col_stride: i64| MatrixView {
        offset: 0,
        batch_strides: Vec::new(),
        row_stride,
        col_stride,
    };
    let dot = Dot {
        batch: Vec::new(),
        m: n,
        n: 128,
        k: 512,
        lhs: matrix(512, 1),
        rhs: matrix(128, 1),
        dtype: DType::F32,
        out_dtype: DType::F32,
        epilogue: Epilogue::default(),
    };
    npu.time("dot 64 128 512", &KernelOp::Dot(dot.clone()), &[n * 512, 512 * 128], n * 128);
    let big = Dot { m: 512, n: 512, k: 512, rhs: matrix(512, 1), ..dot };
    npu.time("dot 512 512 512", &KernelOp::Dot(big), &[512 * 512, 512 * 512], 512 * 512);
}
