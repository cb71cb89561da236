//! Programs of random instructions: they may fail, but only with an error of their own.

use halite_npu_isa::{ArgType, CoreKind, Inst, Kernel, Program};

use super::{Arg, Bench, Random};
use crate::machine::{Emulator, Fault, LaunchError, MachineConfig};

/// A record whose operands are mostly small and sometimes extreme.
fn record(random: &mut Random) -> [u8; 64] {
    let mut record = [0; 64];
    record[0] =
        [0x03, 0x04, 0x05, 0x06, 0x0B, 0x10, 0x11, 0x20, 0x21, 0x22, 0x30, 0x31, 0x32, 0x33, 0x34, 0x40]
            .into_iter()
            .chain(0x50..0x51)
            .chain(0x60..0x6D)
            .chain(0x70..0x71)
            .nth((random.bits() >> 8) as usize % 31)
            .unwrap_or(0x0C);
    record[1..6].iter_mut().for_each(|byte| *byte = (random.bits() >> 11) as u8 % 5);
    let mask = (random.bits() & random.bits() & random.bits()) as u16;
    for slot in 0..14 {
        let value = match random.bits() >> 7 & 15 {
            0 => random.bits() as u32,
            1 => i32::MAX as u32,
            2 => u32::MAX,
            3 => 0,
            4..8 => (random.bits() >> 9) as u32 % 40,
            8..12 => ((random.bits() >> 9) as u32 % 400) * 32,
            _ => ((random.bits() >> 9) as u32 % 70) * 4,
        };
        let value = if mask >> slot & 1 == 1 { value % 64 } else { value };
        record[8 + 4 * slot..12 + 4 * slot].copy_from_slice(&value.to_le_bytes());
    }
    // Instructions use a prefix of the fields; the rest must be zero.
    let (smalls, slots) = ((random.bits() >> 13) as usize % 6, (random.bits() >> 17) as usize % 15);
    record[1 + smalls..6].fill(0);
    record[8 + 4 * slots..].fill(0);
    record[6..8].copy_from_slice(&(mask & ((1 << slots) - 1)).to_le_bytes());
    record
}

#[test]
fn random_instructions_never_panic() {
    let config = MachineConfig { block_budget: 100_000, host_threads: 1, ..MachineConfig::default() };
    let bench = Bench(Emulator::new(config));
    let buffer = bench.upload(&vec![0x3F_u8; 100_000]);
    let mut random = Random::new(77);
    let (mut ran, mut ended, mut kernels) = (0, 0, 0);
    while kernels < 6000 {
        let core = if kernels % 2 == 0 { CoreKind::Vector } else { CoreKind::Cube };
        // Two registers hold the buffer's address, others small numbers.
        let mut code = Vec::new();
        for index in 0..8 {
            let dst = halite_npu_isa::Reg::new(index).expect("there are 64 registers");
            code.push(if index < 4 {
                Inst::Arg { dst, index: 0 }
            } else {
                Inst::Const { dst, value: i64::from(index) * 8 }
            });
        }
        for _ in 0..1 + random.bits() % 12 {
            let found = (0..2000).find_map(|_| {
                let inst = Inst::decode(&record(&mut random)).ok()?;
                let args = vec![ArgType::Buffer(halite_npu_isa::Access::ReadWrite)];
                let is_legal = Kernel::new("k", core, args, vec![inst, Inst::Halt {}]).is_ok();
                is_legal.then_some(inst)
            });
            code.extend(found);
        }
        code.push(Inst::Halt {});
        let args = vec![ArgType::Buffer(halite_npu_isa::Access::ReadWrite)];
        let Ok(kernel) = Kernel::new("k", core, args, code) else { continue };
        kernels += 1;
        let program = Program::new(vec![kernel]).expect("one kernel has no namesake");
        match bench.0.launch(&program, "k", 2, &[Arg::Buffer(buffer)]) {
            Ok(report) => {
                ended += 1;
                ran += report.instructions;
            }
            Err(LaunchError::Trap(trap)) => {
                let is_internal = matches!(trap.fault, Fault::Internal { .. });
                assert!(!is_internal, "{trap}\n{}", halite_npu_isa::text::disassemble(&program));
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(
        ended > 200 && ran > 4000,
        "{ended} programs ended after {ran} instructions, the test does too little"
    );
}

#[test]
fn transfers_at_the_edge_of_the_address_space_are_errors() {
    let bench = Bench::new();
    let text = |body: &str| {
        let program = halite_npu_isa::text::assemble(&format!(".kernel k vector\n{body}\n halt\n.end"));
        program.expect("the text is a program")
    };
    for body in [
        "const dst=r0 value=9223372036854775807\n load.ub dtype=f32 dst=0 src=r0 d0=1:0:0 d1=1:0:0 d2=2:r0:4 d3=2:r0:8",
        "const dst=r0 value=-9223372036854775808\n load.ub dtype=f32 dst=0 src=r0 d0=1:0:0 d1=1:0:0 d2=1:0:0 d3=3:r0:4",
        "const dst=r0 value=9223372036854775776\n v.duplicate dtype=f32 dst=r0 scalar=0 count=9",
        "const dst=r0 value=9223372036854775776\n v.reduce op=sum dtype=f32 dst=0 src=32 cols=1 rows=3 row_stride=r0",
        "const dst=r0 value=9223372036854775776\n v.broadcast dtype=f32 dst=0 src=0 cols=1 rows=3 dst_stride=r0",
    ] {
        let result = bench.0.launch(&text(body), "k", 1, &[]);
        let Err(LaunchError::Trap(trap)) = result else { panic!("{body} must trap") };
        assert!(!matches!(trap.fault, Fault::Internal { .. }), "{trap}");
    }
}

#[test]
fn one_instruction_cannot_do_more_than_the_whole_budget() {
    let config = MachineConfig { block_budget: 20_000, host_threads: 1, ..MachineConfig::default() };
    let emulator = Emulator::new(config);
    // Rows that all begin at the same place: 40,000 times 40,000 elements, of which any machine would have a few.
    let text = ".kernel k vector\n v.reduce op=sum dtype=f16 dst=96000 src=0 cols=40000 rows=40000 row_stride=0\n halt\n.end";
    let program = halite_npu_isa::text::assemble(text).expect("the text is a program");
    let Err(LaunchError::Trap(trap)) = emulator.launch(&program, "k", 1, &[]) else {
        panic!("the block must stop");
    };
    assert!(matches!(trap.fault, Fault::Budget { .. }), "{trap}");
}
