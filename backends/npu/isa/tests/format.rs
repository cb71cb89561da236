//! Programs survive the way through bytes and text, and damaged ones are refused with the place.

use halite_npu_isa::crc::crc32;
use halite_npu_isa::{
    Access, ArgType, BinaryOp, CompareOp, CoreKind, CubeOperand, DType, Dim, Inst, Kernel, KernelBuilder,
    MmadMode, Operand, Pipe, Program, ProgramError, ReduceOp, Reg, StoreMode, Target, UnaryOp, text,
};

fn vector_kernel() -> Kernel {
    let mut k = KernelBuilder::new("scale", CoreKind::Vector);
    let (x, out) = (k.buffer(Access::Read), k.buffer(Access::Write));
    let n = k.scalar(ArgType::U32);
    let factor = k.scalar(ArgType::F32);
    k.repeat(0, n, 1024, |k, start| {
        let left = k.sub(n, start);
        let count = k.min(left, 1024);
        let offset = k.mul(start, 4);
        let (src, dst) = (k.add(x, offset), k.add(out, offset));
        k.load_ub(DType::F32, 0, src, [Dim::ONE, Dim::ONE, Dim::ONE, Dim::new(count, 4, 4)]);
        k.sync(Pipe::Mte2, Pipe::V, 0);
        k.binary_scalar(BinaryOp::Mul, DType::F32, 0, 0, factor, count);
        k.sync(Pipe::V, Pipe::Mte3, 0);
        k.store_ub(DType::F32, dst, 0, [Dim::ONE, Dim::ONE, Dim::ONE, Dim::new(count, 4, 4)]);
        k.sync(Pipe::Mte3, Pipe::Mte2, 0);
    });
    k.when(n, CompareOp::Eq, 0, |k| k.push(Inst::Mark { id: 7 }));
    k.value(-0x1234_5678_9ABC);
    k.finish().expect("the kernel obeys the rules")
}

fn cube_kernel() -> Kernel {
    let mut k = KernelBuilder::new("mm", CoreKind::Cube);
    let (x, out) = (k.buffer(Access::Read), k.buffer(Access::ReadWrite));
    let (one, zero) = (Operand::Imm(16), Operand::ZERO);
    let dtype = DType::F16;
    k.push(Inst::LoadNz {
        dtype,
        dst: zero,
        src: x.into(),
        rows: one,
        cols: one,
        row_stride: Operand::Imm(-32),
        col_stride: Operand::Imm(2),
        row_group: zero,
        row_group_stride: zero,
        col_group: zero,
        col_valid: zero,
        col_group_stride: zero,
        pitch: one,
        pad_rows: one,
        pad_cols: one,
    });
    k.sync(Pipe::Mte2, Pipe::Mte1, 7);
    k.push(Inst::LoadA { dtype, transpose: true, dst: zero, src: zero, m: one, k: one, pitch: one });
    k.push(Inst::Im2col {
        dtype,
        operand: CubeOperand::B,
        transpose: false,
        dst: zero,
        src: zero,
        position: zero,
        positions: one,
        block: zero,
        blocks: Operand::Imm(1),
    });
    k.sync(Pipe::Mte1, Pipe::M, 0);
    k.push(Inst::Mmad {
        dtype,
        mode: MmadMode::Init,
        dst: zero,
        lhs: zero,
        rhs: zero,
        m: one,
        k: one,
        n: one,
        bias: zero,
    });
    k.sync(Pipe::M, Pipe::Fix, 0);
    k.push(Inst::StoreL0c {
        dtype: DType::F32,
        mode: StoreMode::AtomicAdd,
        relu: true,
        dst: out.into(),
        src: zero,
        rows: one,
        cols: one,
        pitch: one,
        row_stride: Operand::Imm(64),
        col_stride: Operand::Imm(4),
        row_group: zero,
        row_group_stride: zero,
        col_group: zero,
        col_valid: zero,
        col_group_stride: zero,
        scale: Operand::f32(0.5),
    });
    k.finish().expect("the kernel obeys the rules")
}

fn program() -> Program {
    Program::new(vec![vector_kernel(), cube_kernel()]).expect("names differ")
}

/// A generator that is good enough for test bytes (xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[test]
fn bytes_and_text_give_the_same_program_back() {
    let program = program();
    assert_eq!(Program::from_bytes(&program.to_bytes()), Ok(program.clone()));
    let text = text::disassemble(&program);
    assert_eq!(text::assemble(&text), Ok(program), "{text}");
}

#[test]
fn every_record_that_decodes_encodes_to_the_same_bytes_and_text() {
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut decoded = 0;
    for opcode in 0..=255_u8 {
        for _ in 0..400 {
            let mut record = [0; 64];
            record[0] = opcode;
            record[1..6].iter_mut().for_each(|byte| *byte = (random.next() % 4) as u8);
            let mask = random.next() as u16 & random.next() as u16;
            record[6..8].copy_from_slice(&mask.to_le_bytes());
            record[8..].iter_mut().step_by(4).for_each(|byte| *byte = (random.next() % 64) as u8);
            // Clear from a random place on, since most instructions are short.
            let smalls = (random.next() % 6) as usize;
            record[1 + smalls..6].fill(0);
            let slots = (random.next() % 15) as usize;
            record[8 + 4 * slots..].fill(0);
            let mask = mask & ((1 << slots) - 1);
            record[6..8].copy_from_slice(&mask.to_le_bytes());
            if let Ok(inst) = Inst::decode(&record) {
                decoded += 1;
                assert_eq!(inst.encode(), record);
                let mut text = String::new();
                inst.print(&mut text);
                assert_eq!(Inst::parse(&text), Ok(inst), "{text}");
            }
        }
    }
    assert!(decoded > 500, "only {decoded} records decoded, the test looks at too little");
}

#[test]
fn each_flipped_byte_is_found() {
    let bytes = program().to_bytes();
    for at in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xFF] {
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            let result = Program::from_bytes(&damaged);
            // The optional feature bits and the minor version are under the header's checksum too.
            let error = result.expect_err("every byte is covered by a check");
            assert!(error.offset().is_some(), "{error}");
        }
    }
}

#[test]
fn a_hostile_file_with_right_checksums_gets_an_error_or_a_verified_program() {
    let bytes = program().to_bytes();
    let read_u32 = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let mut refused = 0;
    for at in 64..bytes.len() {
        for flip in [0x01, 0x40, 0xFF] {
            let mut hostile = bytes.clone();
            hostile[at] ^= flip;
            for entry in (64..64 + 4 * 32).step_by(32) {
                let (offset, len) = (read_u32(entry + 8) as usize, read_u32(entry + 16) as usize);
                let crc = crc32(&hostile[offset..offset + len]);
                hostile[entry + 24..entry + 28].copy_from_slice(&crc.to_le_bytes());
            }
            hostile[40..44].fill(0);
            let crc = crc32(&hostile[..64 + 4 * 32]);
            hostile[40..44].copy_from_slice(&crc.to_le_bytes());
            match Program::from_bytes(&hostile) {
                Ok(program) => {
                    assert_eq!(Program::from_bytes(&program.to_bytes()), Ok(program));
                }
                Err(error) => {
                    refused += 1;
                    assert!(!error.to_string().is_empty());
                }
            }
        }
    }
    assert!(refused > 1000, "only {refused} of the files were refused");
}

#[test]
fn each_truncation_is_refused() {
    let bytes = program().to_bytes();
    for len in 0..bytes.len() {
        assert!(Program::from_bytes(&bytes[..len]).is_err(), "{len} bytes");
    }
    let mut longer = bytes;
    longer.push(0);
    assert!(matches!(Program::from_bytes(&longer), Err(ProgramError::Malformed { offset: 16, .. })));
}

#[test]
fn versions_and_features_of_the_future_are_refused_by_name() {
    let bytes = program().to_bytes();
    let mut newer = bytes.clone();
    newer[8] = 9;
    assert!(matches!(
        Program::from_bytes(&newer),
        Err(ProgramError::Version { offset: 8, found_major: 9, .. })
    ));
    let mut needs_more = bytes;
    needs_more[24] |= 0x10;
    assert!(matches!(
        Program::from_bytes(&needs_more),
        Err(ProgramError::UnknownFeatures { offset: 24, bits: 0x10 })
    ));
}

fn refusal(core: CoreKind, code: &[Inst]) -> String {
    let mut code = code.to_vec();
    code.push(Inst::Halt {});
    Kernel::new("k", core, vec![], code).expect_err("the code breaks a rule").to_string()
}

#[test]
fn broken_rules_are_named() {
    let r0 = Reg::new(0).expect("register 0 exists");
    let begin = Inst::Loop { counter: r0, start: 0.into(), end: 4.into(), step: 1.into() };
    let vector = CoreKind::Vector;
    assert!(refusal(vector, &[begin]).contains("no endloop"));
    assert!(refusal(vector, &[Inst::EndLoop {}]).contains("without a loop"));
    assert!(refusal(vector, &[Inst::Jump { target: Target(9) }]).contains("target 9 is outside"));
    assert!(
        refusal(vector, &[begin, Inst::Jump { target: Target(3) }, Inst::EndLoop {}])
            .contains("another loop")
    );
    assert!(refusal(vector, &[Inst::Arg { dst: r0, index: 0 }]).contains("argument 0"));
    assert!(refusal(vector, &[begin; 17]).contains("nest deeper"));
    let flag = Inst::SetFlag { from: Pipe::Mte2, to: Pipe::V, id: 8.into() };
    assert!(refusal(vector, &[flag]).contains("flag 8"));
    let unary =
        Inst::Unary { op: UnaryOp::Exp, dtype: DType::I32, dst: 0.into(), src: 0.into(), count: 1.into() };
    assert!(refusal(vector, &[unary]).contains("'exp' does not exist for i32"));
    let reduce = Inst::Reduce {
        op: ReduceOp::Sum,
        dtype: DType::F32,
        dst: 0.into(),
        src: 0.into(),
        cols: (-1).into(),
        rows: 1.into(),
        row_stride: 0.into(),
    };
    assert!(refusal(vector, &[reduce]).contains("must not be negative"));
    assert!(refusal(CoreKind::Cube, &[unary]).contains("does not exist on a cube core"));
    let unfinished = Kernel::new("k", vector, vec![], vec![Inst::Mark { id: 0 }]);
    assert!(unfinished.is_err_and(|error| error.to_string().contains("must end with halt")));
}

#[test]
fn assembler_errors_name_the_line() {
    let line = |text: &str| match text::assemble(text) {
        Err(ProgramError::Text { line, .. }) => line,
        other => panic!("expected a text error, got {other:?}"),
    };
    assert_eq!(line(".kernel k vector\n halt\n fly to=moon\n.end"), 3);
    assert_eq!(line(".kernel k vector\n jump target=@nowhere\n.end"), 2);
    assert_eq!(line(".kernel k round\n"), 1);
    assert_eq!(line(".kernel k vector\n mark id=1\n"), 2);
    assert_eq!(line("\n\n halt\n"), 3);
}

#[test]
fn more_registers_than_there_are_is_an_error() {
    let mut k = KernelBuilder::new("greedy", CoreKind::Vector);
    for _ in 0..65 {
        k.reg();
    }
    assert!(k.finish().is_err_and(|error| error.to_string().contains("64 registers")));
}
