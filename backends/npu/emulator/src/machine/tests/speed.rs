//! How fast the emulator is. Not a check: run with `cargo test --release -p halite-npu-emulator -- --ignored --nocapture speed`.

use std::time::Instant;

use halite_npu_isa::{
    Access, BinaryOp, CoreKind, DType, Dim, Inst, KernelBuilder, MmadMode, Operand, Pipe, UnaryOp,
};

use super::{Arg, Bench};

#[test]
#[ignore = "prints rates, checks nothing"]
fn speed_of_the_cube_the_vector_unit_and_transfers() {
    let bench = Bench::new();
    for dtype in [DType::F32, DType::F16] {
        let mut b = KernelBuilder::new("cube", CoreKind::Cube);
        let (zero, size) = (Operand::ZERO, Operand::Imm(128));
        b.repeat(0, 200, 1, |b, _| {
            b.push(Inst::Mmad {
                dtype,
                mode: MmadMode::Init,
                dst: zero,
                lhs: zero,
                rhs: zero,
                m: size,
                k: size,
                n: size,
                bias: zero,
            });
        });
        let kernel = b.finish().expect("the kernel obeys the rules");
        let start = Instant::now();
        let report = bench.launch(kernel, 1, &[]).expect("the launch succeeds");
        println!(
            "{dtype} cube: {:.1} GFLOP/s",
            2.0 * report.multiply_adds as f64 / start.elapsed().as_nanos() as f64
        );
    }
    let vector = |name: &str, body: &dyn Fn(&mut KernelBuilder)| {
        let mut b = KernelBuilder::new("vector", CoreKind::Vector);
        b.duplicate(DType::F32, 0, Operand::f32(0.5), 16384);
        b.repeat(0, 200, 1, |b, _| body(b));
        let kernel = b.finish().expect("the kernel obeys the rules");
        let start = Instant::now();
        let report = bench.launch(kernel, 1, &[]).expect("the launch succeeds");
        println!(
            "{name}: {:.0} M elements/s",
            1e3 * report.elements as f64 / start.elapsed().as_nanos() as f64
        );
    };
    vector("add f32", &|b| b.binary(BinaryOp::Add, DType::F32, 65536, 0, 0, 16384));
    vector("max f32", &|b| b.binary(BinaryOp::Max, DType::F32, 65536, 0, 0, 16384));
    vector("add f16", &|b| b.binary(BinaryOp::Add, DType::F16, 65536, 0, 0, 16384));
    vector("add u32", &|b| b.binary(BinaryOp::Add, DType::U32, 65536, 0, 0, 16384));
    vector("shl u32", &|b| b.binary_scalar(BinaryOp::Shl, DType::U32, 65536, 0, 13, 16384));
    vector("exp f32", &|b| b.unary(UnaryOp::Exp, DType::F32, 65536, 0, 16384));
    vector("sqrt f32", &|b| b.unary(UnaryOp::Sqrt, DType::F32, 65536, 0, 16384));
    vector("1 element", &|b| b.binary(BinaryOp::Add, DType::F32, 65536, 0, 0, 1));

    let src = bench.upload(&vec![1.0_f32; 1 << 20]);
    for (name, dims) in [
        ("dense", [Dim::ONE, Dim::ONE, Dim::ONE, Dim::new(16384, 4, 4)]),
        ("strided", [Dim::ONE, Dim::ONE, Dim::new(128, 4, 4), Dim::new(128, 512, 512)]),
    ] {
        let mut b = KernelBuilder::new("dma", CoreKind::Vector);
        let src_reg = b.buffer(Access::Read);
        b.repeat(0, 200, 1, |b, _| {
            b.load_ub(DType::F32, 0, src_reg, dims);
            b.sync(Pipe::Mte2, Pipe::V, 0);
        });
        let kernel = b.finish().expect("the kernel obeys the rules");
        let start = Instant::now();
        let report = bench.launch(kernel, 1, &[Arg::Buffer(src)]).expect("the launch succeeds");
        println!("load {name}: {:.1} GB/s", report.bytes_in as f64 / start.elapsed().as_nanos() as f64);
    }
}
