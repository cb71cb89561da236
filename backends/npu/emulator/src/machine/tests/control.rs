//! Control flow, flags, blocks and limits.

use halite_npu_isa::{
    Access, ArgType, CompareOp, CoreKind, DType, Dim, Inst, Kernel, KernelBuilder, Operand, Pipe, Program,
    UnaryOp,
};

use super::{Arg, Bench};
use crate::machine::{Emulator, Executed, Fault, LaunchError, MachineConfig, Observer};

const ONE: Dim = Dim::ONE;

/// Stores a register as i64 at `offset` bytes.
fn store_register(b: &mut KernelBuilder, dst: Operand, value: Operand) {
    b.duplicate(DType::I64, 0, value, 1);
    b.sync(Pipe::V, Pipe::Mte3, 0);
    b.store_ub(DType::I64, dst, 0, [ONE; 4]);
    b.sync(Pipe::Mte3, Pipe::V, 0);
}

fn finish(b: KernelBuilder) -> Kernel {
    b.finish().expect("the kernel obeys the rules")
}

#[test]
fn loops_nest_and_vanish() {
    let bench = Bench::new();
    for n in [0, 1, 2, 7] {
        let mut b = KernelBuilder::new("count", CoreKind::Vector);
        let out = b.buffer(Access::Write);
        let count = b.scalar(ArgType::U32);
        let sum = b.variable(0);
        b.repeat(0, count, 1, |b, i| {
            b.repeat(i, count, 2, |b, j| {
                let product = b.mul(i, 10);
                let term = b.add(product, j);
                let next = b.add(sum, term);
                b.assign(sum, next);
            });
        });
        store_register(&mut b, out.into(), sum.into());
        let address = bench.upload(&[-1_i64]);
        bench.launch(finish(b), 1, &[Arg::Buffer(address), Arg::U32(n)]).expect("the launch succeeds");
        let n = i64::from(n);
        let expected: i64 = (0..n).flat_map(|i| (i..n).step_by(2).map(move |j| 10 * i + j)).sum();
        assert_eq!(bench.download::<i64>(address, 1)[0], expected, "{n}");
    }
}

#[test]
fn a_core_memory_that_the_host_cannot_give_is_a_fault() {
    // More than any address space holds, so that no host's overcommitment lets it pass.
    let bench = Bench(Emulator::new(MachineConfig { ub_bytes: 1 << 60, ..MachineConfig::default() }));
    let mut b = KernelBuilder::new("empty", CoreKind::Vector);
    b.push(Inst::Mark { id: 0 });
    let error = bench.launch(finish(b), 1, &[]).expect_err("the host has no such memory");
    let LaunchError::Trap(trap) = &error else { panic!("{error}") };
    assert_eq!(trap.fault, Fault::HostMemory { memory: "UB", bytes: 1 << 60 }, "{error}");
    assert!(error.to_string().contains("UB") && error.to_string().contains("1152921504606846976"), "{error}");
}

#[test]
fn scalars_arrive_with_their_type_and_sign() {
    let bench = Bench::new();
    let mut b = KernelBuilder::new("args", CoreKind::Vector);
    let out = b.buffer(Access::Write);
    for (i, arg) in [ArgType::U32, ArgType::I32, ArgType::F32, ArgType::I64].into_iter().enumerate() {
        let value = b.scalar(arg);
        let to = b.add(out, 8 * i as i32);
        store_register(&mut b, to, value.into());
    }
    let big = b.value(-0x1234_5678_9ABC);
    let to = b.add(out, 32);
    store_register(&mut b, to, big);
    let kernel = finish(b);
    let address = bench.upload(&[0_i64; 5]);
    let args = [Arg::Buffer(address), Arg::U32(u32::MAX), Arg::I32(-2), Arg::F32(1.0), Arg::I64(i64::MIN)];
    bench.launch(kernel.clone(), 1, &args).expect("the launch succeeds");
    let expected = [u32::MAX.into(), -2, 0x3F80_0000, i64::MIN, -0x1234_5678_9ABC];
    assert_eq!(bench.download::<i64>(address, 5), expected);

    let count = bench.launch(kernel.clone(), 1, &args[..4]);
    assert!(matches!(count, Err(LaunchError::ArgumentCount { expected: 5, actual: 4, .. })));
    let wrong = [args[0], Arg::I32(0), args[2], args[3], args[4]];
    let error = bench.launch(kernel, 1, &wrong).expect_err("the type differs");
    assert!(error.to_string().contains("argument 1 of kernel 'args' must be u32, i32 was given"), "{error}");
}

#[test]
fn blocks_on_threads_give_what_one_thread_gives() {
    let mut b = KernelBuilder::new("blocks", CoreKind::Vector);
    let out = b.buffer(Access::Write);
    let (block, blocks) = (b.block_index(), b.block_count());
    let value = b.mul(block, blocks);
    b.push(Inst::Iota {
        dtype: DType::F32,
        dst: Operand::ZERO,
        start: value,
        step: Operand::Imm(1),
        count: Operand::Imm(1000),
    });
    b.repeat(0, 20, 1, |b, _| b.unary(UnaryOp::Sin, DType::F32, 0, 0, 1000));
    b.sync(Pipe::V, Pipe::Mte3, 0);
    let offset = b.mul(block, 4000);
    let to = b.add(out, offset);
    b.store_ub(DType::F32, to, 0, [ONE, ONE, ONE, Dim::new(1000, 4, 4)]);
    let program = Program::new(vec![finish(b)]).expect("one kernel has no namesake");
    let mut results = Vec::new();
    for host_threads in [1, 4] {
        let emulator = Emulator::new(MachineConfig { host_threads, ..MachineConfig::default() });
        let bench = Bench(emulator);
        let address = bench.upload(&vec![f32::NAN; 100_000]);
        let report =
            bench.0.launch(&program, "blocks", 100, &[Arg::Buffer(address)]).expect("the launch succeeds");
        assert_eq!((report.blocks, report.bytes_out), (100, 400_000));
        results.push(bench.download::<u32>(address, 100_000));
    }
    assert_eq!(results[0], results[1]);
    assert!(results[0].iter().all(|&bits| !f32::from_bits(bits).is_nan()));
}

fn fault(bench: &Bench, kernel: Kernel, blocks: u32, args: &[Arg]) -> Fault {
    match bench.launch(kernel, blocks, args) {
        Err(LaunchError::Trap(trap)) => trap.fault,
        other => panic!("expected a trap, got {other:?}"),
    }
}

#[test]
fn a_wait_without_a_set_names_the_flag() {
    let bench = Bench::new();
    let mut b = KernelBuilder::new("stuck", CoreKind::Vector);
    b.set(Pipe::Mte2, Pipe::V, 2);
    b.wait(Pipe::Mte2, Pipe::V, 3);
    let expected = Fault::Flag { from: Pipe::Mte2, to: Pipe::V, id: 3 };
    assert_eq!(fault(&bench, finish(b), 1, &[]), expected);
    let text = expected.to_string();
    assert!(text.contains("flag 3") && text.contains("mte2"), "{text}");
}

#[test]
fn an_endless_loop_meets_the_budget() {
    let bench = Bench(Emulator::new(MachineConfig { block_budget: 10_000, ..MachineConfig::default() }));
    let program = halite_npu_isa::text::assemble(".kernel spin cube\nagain:\n jump target=@again\n.end");
    let program = program.expect("the text is a program");
    let result = bench.0.launch(&program, "spin", 2, &[]);
    assert!(matches!(result, Err(LaunchError::Trap(trap)) if trap.fault == Fault::Budget { budget: 10_000 }));
    let unknown = bench.0.launch(&program, "spun", 1, &[]);
    assert!(unknown.is_err_and(|error| error.to_string().contains("it has: spin")));
}

#[test]
fn traps_alignment_bounds_and_bad_counts_are_errors() {
    let bench = Bench::new();
    let vector = |build: &dyn Fn(&mut KernelBuilder)| {
        let mut b = KernelBuilder::new("bad", CoreKind::Vector);
        build(&mut b);
        fault(&bench, finish(b), 1, &[])
    };
    assert_eq!(vector(&|b| b.push(Inst::Trap { code: 42 })), Fault::Stopped { code: 42 });
    let misaligned = vector(&|b| b.unary(UnaryOp::Neg, DType::F32, 4, 0, 1));
    assert!(matches!(misaligned, Fault::LocalAlignment { value: 4, required: 32, .. }));
    let outside = vector(&|b| b.unary(UnaryOp::Neg, DType::F32, 0, 0, 50_000));
    assert!(matches!(outside, Fault::LocalBounds { capacity: 196_608, .. }));
    let overlap = vector(&|b| b.unary(UnaryOp::Neg, DType::F32, 32, 0, 16));
    assert_eq!(overlap, Fault::Overlap { dst: 32, src: 0 });
    let negative = vector(&|b| {
        let count = b.variable(-1);
        b.unary(UnaryOp::Neg, DType::F32, 0, 0, count);
    });
    assert!(matches!(negative, Fault::Field { field: "count", value: -1, .. }));
    let step = vector(&|b| {
        let step = b.variable(0);
        b.repeat(0, 5, step, |_, _| {});
    });
    assert!(matches!(step, Fault::Field { field: "step", .. }));
    let far = vector(&|b| {
        let address = b.value(i64::MAX);
        b.unary(UnaryOp::Neg, DType::F32, address, 0, 1);
    });
    assert!(matches!(far, Fault::LocalAlignment { .. } | Fault::LocalBounds { .. }));
}

#[test]
fn blocks_meet_at_sync_all_and_pass_flags() {
    let bench = Bench::new();
    let mut b = KernelBuilder::new("ring", CoreKind::Vector);
    let buffer = b.buffer(Access::ReadWrite);
    let (block, blocks) = (b.block_index(), b.block_count());
    // Each block writes its index, all meet, and each adds what its neighbour wrote to the second half.
    let at = b.mul(block, 8);
    let mine = b.add(buffer, at);
    store_register(&mut b, mine, block.into());
    b.push(Inst::SyncAll {});
    let next = b.add(block, 1);
    let next = b.rem(next, blocks);
    let offset = b.mul(next, 8);
    let neighbour = b.add(buffer, offset);
    b.load_ub(DType::I64, 0, neighbour, [ONE; 4]);
    b.sync(Pipe::Mte2, Pipe::Mte3, 0);
    let half = b.mul(blocks, 8);
    let out = b.add(mine, half);
    // The last block stores first, then each lets the one before it go on.
    let last = b.sub(blocks, 1);
    b.when(block, CompareOp::Ne, last, |b| b.push(Inst::CrossWait { id: 5.into() }));
    b.store_ub(DType::I64, out, 0, [ONE; 4]);
    b.when(block, CompareOp::Gt, 0, |b| {
        let previous = b.sub(block, 1);
        b.push(Inst::CrossSet { block: previous, id: 5.into() });
    });
    let kernel = finish(b);
    let address = bench.upload(&[-1_i64; 14]);
    bench.launch(kernel.clone(), 7, &[Arg::Buffer(address)]).expect("the launch succeeds");
    let expected: Vec<i64> = (0..7).chain((0..7).map(|i| (i + 1) % 7)).collect();
    assert_eq!(bench.download::<i64>(address, 14), expected);
    let too_many = bench.launch(kernel, 49, &[Arg::Buffer(address)]);
    assert!(matches!(too_many, Err(LaunchError::TooManyBlocks { cores: 48, blocks: 49, .. })));
}

#[test]
fn blocks_that_wait_for_each_other_are_a_deadlock_with_names() {
    let bench = Bench::new();
    let mut b = KernelBuilder::new("deadlock", CoreKind::Vector);
    let block = b.block_index();
    b.when(block, CompareOp::Eq, 0, |b| b.push(Inst::SyncAll {}));
    b.when(block, CompareOp::Eq, 1, |b| b.push(Inst::CrossWait { id: 3.into() }));
    let Fault::Deadlock { waiting } = fault(&bench, finish(b), 3, &[]) else {
        panic!("expected a deadlock");
    };
    assert_eq!(waiting, "block 0 waits for all blocks, block 1 waits for flag 3, block 2 has ended");
}

#[test]
fn an_observer_sees_every_instruction_with_its_pipe_and_bytes() {
    struct Sum {
        count: u64,
        bytes: u64,
        pipes: Vec<Pipe>,
    }
    impl Observer for Sum {
        fn executed(&mut self, event: &Executed<'_>) {
            self.count += 1;
            self.bytes += event.work.bytes_in + event.work.bytes_out;
            self.pipes.push(event.pipe);
        }
    }
    let bench = Bench::new();
    let mut b = KernelBuilder::new("copy", CoreKind::Vector);
    let (src, dst) = (b.buffer(Access::Read), b.buffer(Access::Write));
    b.load_ub(DType::F32, 0, src, [ONE, ONE, ONE, Dim::new(8, 4, 4)]);
    b.sync(Pipe::Mte2, Pipe::Mte3, 0);
    b.store_ub(DType::F32, dst, 0, [ONE, ONE, ONE, Dim::new(8, 4, 4)]);
    let program = Program::new(vec![finish(b)]).expect("one kernel has no namesake");
    let args = [bench.upload(&[1.0_f32; 8]), bench.upload(&[0.0_f32; 8])].map(Arg::Buffer);
    let mut sum = Sum { count: 0, bytes: 0, pipes: Vec::new() };
    let report = bench.0.launch_observed(&program, "copy", 2, &args, &mut sum).expect("the launch succeeds");
    assert_eq!((sum.count, sum.bytes), (report.instructions, report.bytes_in + report.bytes_out));
    assert_eq!(sum.bytes, 2 * 64);
    let one = [Pipe::S, Pipe::S, Pipe::Mte2, Pipe::Mte2, Pipe::Mte3, Pipe::Mte3, Pipe::S];
    assert_eq!(sum.pipes, [one, one].concat());
}
