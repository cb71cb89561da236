//! Programs of any instructions on the emulated machine: they end, or stop with an error of their own.
#![no_main]

use halite_npu_emulator::machine::{Arg, Emulator, Fault, LaunchError, MachineConfig};
use halite_npu_isa::{Access, ArgType, CoreKind, Inst, Kernel, Program, Reg, text};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

const BUFFER_BYTES: u64 = 64 << 10;

struct Bench {
    emulator: Emulator,
    buffer: u64,
}

static BENCH: LazyLock<Bench> = LazyLock::new(|| {
    let config = MachineConfig {
        block_budget: 20_000,
        host_threads: 1,
        global_bytes: 1 << 20,
        ..MachineConfig::default()
    };
    let emulator = Emulator::new(config);
    let buffer = emulator.memory().alloc(BUFFER_BYTES).expect("the memory is empty");
    Bench { emulator, buffer }
});

/// Reads records of 64 bytes; a shorter one is filled up with zeros, which most fields are.
fn records(bytes: &[u8]) -> impl Iterator<Item = Inst> {
    bytes.chunks(64).filter_map(|chunk| {
        let mut record = [0; 64];
        record[..chunk.len()].copy_from_slice(chunk);
        Inst::decode(&record).ok()
    })
}

fuzz_target!(|input: (bool, u8, &[u8])| {
    let (on_cube, blocks, bytes) = input;
    let core = if on_cube { CoreKind::Cube } else { CoreKind::Vector };
    let args = vec![ArgType::Buffer(Access::ReadWrite), ArgType::I32];
    let mut code: Vec<Inst> = (0_u8..4)
        .filter_map(|index| Some(Inst::Arg { dst: Reg::new(index)?, index: u32::from(index % 2) }))
        .collect();
    for inst in records(bytes).take(64) {
        // The verifier looks at kernels as a whole (loops), so only what is wrong alone is left out.
        code.push(inst);
    }
    code.push(Inst::Halt {});
    let Ok(kernel) = Kernel::new("k", core, args, code) else { return };
    let program = Program::new(vec![kernel]).expect("one kernel has no namesake");
    let blocks = u32::from(blocks % 4);
    match BENCH.emulator.launch(&program, "k", blocks, &[Arg::Buffer(BENCH.buffer), Arg::I32(7)]) {
        Ok(_) => {}
        Err(LaunchError::Trap(trap)) => {
            assert!(!matches!(trap.fault, Fault::Internal { .. }), "{trap}\n{}", text::disassemble(&program));
        }
        Err(_) => {}
    }
});
