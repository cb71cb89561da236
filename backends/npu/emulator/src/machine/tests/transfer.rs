//! Strided transfers, and the memory behind them.

use half::f16;
use halite_npu_isa::{Access, CoreKind, DType, Dim, Inst, KernelBuilder, Operand, Pipe, StoreMode};

use super::{Arg, Bench};
use crate::machine::{Emulator, LaunchError, MachineConfig, MemoryError};

const ONE: Dim = Dim::ONE;

/// Loads with `load`, stores with `store`.
fn copy_kernel(dtype: DType, load: [Dim; 4], load_offset: i32, store: [Dim; 4]) -> halite_npu_isa::Kernel {
    let mut b = KernelBuilder::new("copy", CoreKind::Vector);
    let (src, dst) = (b.buffer(Access::Read), b.buffer(Access::Write));
    let from = b.add(src, load_offset);
    b.load_ub(dtype, 0, from, load);
    b.sync(Pipe::Mte2, Pipe::Mte3, 0);
    b.store_ub(dtype, dst, 0, store);
    b.finish().expect("the kernel obeys the rules")
}

#[test]
fn permuted_flipped_broadcast_and_sliced_sources_are_gathered() {
    let bench = Bench::new();
    // 3 x 4 x 5 values.
    let values: Vec<u32> = (0..60).collect();
    let at = |i: usize, j: usize, k: usize| (i * 20 + j * 5 + k) as u32;
    let dense = |count: i32| [ONE, ONE, ONE, Dim::new(count, 4, 4)];
    let run = |load: [Dim; 4], offset: i32, count: usize| {
        let args = [bench.upload(&values), bench.upload(&vec![0_u32; count])];
        let kernel = copy_kernel(DType::U32, load, offset, dense(count as i32));
        bench.launch(kernel, 1, &args.map(Arg::Buffer)).expect("the launch succeeds");
        bench.download::<u32>(args[1], count)
    };
    let permuted = run([ONE, Dim::new(5, 4, 48), Dim::new(3, 80, 16), Dim::new(4, 20, 4)], 0, 60);
    let expected: Vec<u32> =
        (0..5).flat_map(|k| (0..3).flat_map(move |i| (0..4).map(move |j| at(i, j, k)))).collect();
    assert_eq!(permuted, expected);

    let flipped = run([ONE, ONE, Dim::new(12, 20, 20), Dim::new(5, -4, 4)], 16, 60);
    let expected: Vec<u32> = (0..12).flat_map(|row| (0..5).rev().map(move |k| row * 5 + k)).collect();
    assert_eq!(flipped, expected);

    let broadcast = run([ONE, Dim::new(2, 0, 80), Dim::new(4, 20, 20), Dim::new(5, 0, 4)], 0, 40);
    let expected: Vec<u32> = (0..2).flat_map(|_| (0..20).map(|i| i / 5 * 5)).collect();
    assert_eq!(broadcast, expected);

    let sliced = run([ONE, ONE, Dim::new(3, 80, 8), Dim::new(2, 8, 4)], 4 * 6, 6);
    assert_eq!(sliced, [6, 8, 26, 28, 46, 48]);
}

#[test]
fn halves_and_bytes_at_odd_places_move_alone() {
    let bench = Bench::new();
    for count in [0, 1, 2, 3, 5, 31, 64] {
        let bytes: Vec<u8> = (0..=255).collect();
        let args = [bench.upload(&bytes), bench.upload(&[0xEE_u8; 256])];
        let dims = [ONE, ONE, ONE, Dim::new(count, 1, 1)];
        let kernel = copy_kernel(DType::U8, dims, 3, dims);
        let shifted = Arg::Buffer(args[1] + 5);
        bench.launch(kernel, 1, &[Arg::Buffer(args[0]), shifted]).expect("the launch succeeds");
        let out = bench.download::<u8>(args[1], 256);
        let count = count as usize;
        assert!(out[..5].iter().chain(&out[5 + count..]).all(|&byte| byte == 0xEE), "{count}");
        assert_eq!(out[5..5 + count], bytes[3..3 + count]);
    }
    let halves: Vec<f16> = (0..32).map(|i| f16::from_f32(i as f32)).collect();
    let args = [bench.upload(&halves), bench.upload(&[f16::NAN; 32])];
    let reversed = [ONE, ONE, ONE, Dim::new(31, -2, 2)];
    let kernel = copy_kernel(DType::F16, reversed, 62, [ONE, ONE, ONE, Dim::new(31, 2, 2)]);
    bench.launch(kernel, 1, &args.map(Arg::Buffer)).expect("the launch succeeds");
    let out = bench.download::<f16>(args[1], 32);
    assert!((0..31).all(|i| out[i].to_f32() == (31 - i) as f32) && out[31].is_nan());
}

#[test]
fn atomic_adds_of_all_blocks_arrive_in_their_order() {
    let bench = Bench::new();
    let mut b = KernelBuilder::new("sum", CoreKind::Vector);
    let (src, dst) = (b.buffer(Access::Read), b.buffer(Access::ReadWrite));
    let block = b.block_index();
    let offset = b.mul(block, 4);
    let from = b.add(src, offset);
    b.load_ub(DType::F32, 0, from, [ONE, ONE, ONE, ONE]);
    b.sync(Pipe::Mte2, Pipe::Mte3, 0);
    let (mode, dtype) = (StoreMode::AtomicAdd, DType::F32);
    b.push(Inst::StoreUb {
        dtype,
        mode,
        dst: dst.into(),
        src: Operand::ZERO,
        d0: ONE,
        d1: ONE,
        d2: ONE,
        d3: ONE,
    });
    let kernel = b.finish().expect("the kernel obeys the rules");
    let values: Vec<f32> = (0..1000).map(|i| 1.0 / (i as f32 + 1.0)).collect();
    let args = [bench.upload(&values), bench.upload(&[0.0_f32])];
    bench.launch(kernel, 1000, &args.map(Arg::Buffer)).expect("the launch succeeds");
    let expected = values.iter().fold(0.0_f32, |sum, value| sum + value);
    assert_eq!(bench.download::<f32>(args[1], 1)[0].to_bits(), expected.to_bits());
}

#[test]
fn an_access_outside_an_allocation_names_the_address_and_the_nearest() {
    let bench = Bench::new();
    let args = [bench.upload(&[0_u32; 8]), bench.upload(&[0_u32; 8])];
    let dims = |count| [ONE, ONE, ONE, Dim::new(count, 4, 4)];
    let kernel = copy_kernel(DType::U32, dims(9), 0, dims(9));
    let error = bench.launch(kernel, 1, &args.map(Arg::Buffer)).expect_err("nine do not fit in eight");
    let text = error.to_string();
    assert!(text.contains(&format!("{:#x}", args[0])) && text.contains("32 bytes"), "{text}");
    let LaunchError::Trap(trap) = error else { panic!("{text}") };
    assert_eq!((trap.kernel.as_str(), trap.block, trap.pc), ("copy", 0, 2));

    let kernel = copy_kernel(DType::U32, dims(8), -4, dims(8));
    assert!(bench.launch(kernel, 1, &args.map(Arg::Buffer)).is_err(), "before the start");
    let kernel = copy_kernel(DType::U32, dims(60000), 0, dims(1));
    assert!(bench.launch(kernel, 1, &args.map(Arg::Buffer)).is_err(), "more than UB holds");
    let huge = [Dim::new(i32::MAX, 0, 0), Dim::new(i32::MAX, 0, 0), ONE, ONE];
    let kernel = copy_kernel(DType::U32, huge, 0, dims(1));
    assert!(bench.launch(kernel, 1, &args.map(Arg::Buffer)).is_err(), "endless repetition");
    let far = [ONE, Dim::new(2, i32::MAX, 4), ONE, ONE];
    let kernel = copy_kernel(DType::U32, far, 0, dims(1));
    assert!(bench.launch(kernel, 1, &args.map(Arg::Buffer)).is_err(), "a far stride");
}

#[test]
fn allocations_have_bounds_capacity_and_an_end() {
    let config = MachineConfig { global_bytes: 4096, ..MachineConfig::default() };
    let memory = Emulator::new(config);
    let memory = memory.memory();
    let address = memory.alloc(4000).expect("it fits");
    assert_eq!(address % 512, 0);
    let refused = memory.alloc(97);
    assert_eq!(refused, Err(MemoryError::OutOfMemory { requested: 97, free: 96, capacity: 4096 }));
    let empty = memory.alloc(0).expect("zero bytes are legal");
    assert_ne!(empty, address);
    assert!(memory.read(empty, &mut [0]).is_err());
    assert!(memory.write(address + 3999, &[1]).is_ok());
    assert!(memory.write(address + 4000, &[1]).is_err());
    assert!(memory.write(u64::MAX, &[1]).is_err());
    memory.fill(address, 4000, 7).expect("the range is inside");
    memory.write(address + 1, &[1, 2, 3]).expect("the range is inside");
    memory.copy(address, address + 2, 8).expect("both ranges are inside");
    let mut bytes = [0; 12];
    memory.read(address, &mut bytes).expect("the range is inside");
    assert_eq!(bytes, [7, 1, 7, 1, 2, 3, 7, 7, 7, 7, 7, 7]);
    assert!(memory.free(address + 1).is_err());
    memory.free(address).expect("it is allocated");
    assert!(memory.free(address).is_err());
    assert!(memory.read(address, &mut [0]).is_err());
    assert_eq!((memory.used(), memory.peak()), (0, 4000));
    assert!(memory.alloc(u64::MAX).is_err());
}
