//! The rules that code obeys before it may run.
//!
//! What depends on registers (addresses, counts, alignment) is checked by the machine when the
//! instruction runs; here stands what can be known from the code alone.

use crate::inst::Inst;
use crate::types::{CoreKind, DType, Operand, StoreMode};

/// Most arguments of a kernel.
pub const MAX_ARGS: usize = 64;
/// Most instructions of a kernel.
pub const MAX_RECORDS: usize = 1 << 20;
/// Deepest nesting of loops.
pub const MAX_LOOP_DEPTH: usize = 16;
/// Flags between each pair of pipes.
pub const FLAG_IDS: i64 = 8;

/// Which instruction breaks which rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Index of the instruction.
    pub index: usize,
    /// The rule.
    pub reason: String,
}

/// For every `loop` its `endloop`, and the other way round.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoopMap(Vec<u32>);

impl LoopMap {
    const NONE: u32 = u32::MAX;

    /// The other end of the loop that starts or ends at `index`.
    #[must_use]
    pub fn partner(&self, index: usize) -> Option<usize> {
        self.0.get(index).filter(|&&partner| partner != Self::NONE).map(|&partner| partner as usize)
    }
}

/// Checks the code of a kernel that has `args` arguments and runs on `core`.
///
/// # Errors
/// The first broken rule.
pub fn check(core: CoreKind, args: usize, code: &[Inst]) -> Result<LoopMap, Fault> {
    let fault = |index: usize, reason: String| Err(Fault { index, reason });
    if code.len() > MAX_RECORDS {
        return fault(MAX_RECORDS, format!("{} records, at most {MAX_RECORDS} are possible", code.len()));
    }
    match code.last() {
        Some(Inst::Halt {} | Inst::Trap { .. } | Inst::Jump { .. }) => {}
        _ => {
            let last = code.len().saturating_sub(1);
            return fault(last, "the code must end with halt, trap or jump".to_owned());
        }
    }

    let mut loops = vec![LoopMap::NONE; code.len()];
    let mut enclosing = vec![LoopMap::NONE; code.len()];
    let mut open: Vec<usize> = Vec::new();
    for (index, inst) in code.iter().enumerate() {
        enclosing[index] = open.last().map_or(LoopMap::NONE, |&start| start as u32);
        match inst {
            Inst::Loop { .. } if open.len() == MAX_LOOP_DEPTH => {
                return fault(index, format!("loops nest deeper than {MAX_LOOP_DEPTH}"));
            }
            Inst::Loop { .. } => open.push(index),
            Inst::EndLoop {} => {
                let Some(start) = open.pop() else {
                    return fault(index, "endloop without a loop".to_owned());
                };
                loops[start] = index as u32;
                loops[index] = start as u32;
            }
            _ => {}
        }
        check_fields(core, args, inst).map_err(|reason| Fault { index, reason })?;
    }
    if let Some(&start) = open.last() {
        return fault(start, "the loop has no endloop".to_owned());
    }
    for (index, inst) in code.iter().enumerate() {
        if let Inst::Branch { target, .. } | Inst::Jump { target } = inst {
            let to = target.0 as usize;
            if to >= code.len() {
                return fault(
                    index,
                    format!("target {to} is outside the kernel of {} instructions", code.len()),
                );
            }
            if enclosing[to] != enclosing[index] {
                return fault(index, format!("target {to} is in another loop"));
            }
        }
    }
    Ok(LoopMap(loops))
}

fn check_fields(core: CoreKind, args: usize, inst: &Inst) -> Result<(), String> {
    if !inst.runs_on(core) {
        return Err(format!("'{}' does not exist on a {core} core", inst.name()));
    }
    match *inst {
        Inst::Arg { index, .. } if index as usize >= args => {
            Err(format!("argument {index} does not exist, the kernel has {args}"))
        }
        Inst::Loop { step, .. } if step.imm().is_some_and(|step| step <= 0) => {
            Err("the step of a loop must be positive".to_owned())
        }
        Inst::SetFlag { from, to, .. } | Inst::WaitFlag { from, to, .. } if from == to => {
            Err("a flag connects two different pipes, use a barrier within one".to_owned())
        }
        Inst::SetFlag { id, .. }
        | Inst::WaitFlag { id, .. }
        | Inst::CrossSet { id, .. }
        | Inst::CrossWait { id } => flag_id(id),
        Inst::LoadNz { dtype, .. }
        | Inst::LoadA { dtype, .. }
        | Inst::LoadB { dtype, .. }
        | Inst::Im2col { dtype, .. }
        | Inst::Mmad { dtype, .. } => float(inst, dtype),
        Inst::StoreL0c { dtype, mode, .. } => {
            float(inst, dtype)?;
            atomic_is_f32(mode, dtype)
        }
        Inst::StoreUb { dtype, mode, .. } => atomic_is_f32(mode, dtype),
        Inst::Binary { op, dtype, .. } | Inst::BinaryScalar { op, dtype, .. } if !op.supports(dtype) => {
            Err(format!("'{op}' does not exist for {dtype}"))
        }
        Inst::Unary { op, dtype, .. } if !op.supports(dtype) => {
            Err(format!("'{op}' does not exist for {dtype}"))
        }
        _ => Ok(()),
    }?;
    non_negative(inst)
}

fn flag_id(id: Operand) -> Result<(), String> {
    match id.imm() {
        Some(id) if !(0..FLAG_IDS).contains(&i64::from(id)) => {
            Err(format!("flag {id} does not exist, ids are 0 to {}", FLAG_IDS - 1))
        }
        _ => Ok(()),
    }
}

fn float(inst: &Inst, dtype: DType) -> Result<(), String> {
    if dtype.is_float() { Ok(()) } else { Err(format!("'{}' does not exist for {dtype}", inst.name())) }
}

fn atomic_is_f32(mode: StoreMode, dtype: DType) -> Result<(), String> {
    if mode == StoreMode::AtomicAdd && dtype != DType::F32 {
        return Err(format!("atomic add exists for f32, not for {dtype}"));
    }
    Ok(())
}

/// Constant counts must not be negative; registers are checked when the instruction runs.
fn non_negative(inst: &Inst) -> Result<(), String> {
    let counts: [Option<Operand>; 4] = match *inst {
        Inst::LoadUb { d0, d1, d2, d3, .. } | Inst::StoreUb { d0, d1, d2, d3, .. } => {
            [Some(d0.count), Some(d1.count), Some(d2.count), Some(d3.count)]
        }
        Inst::LoadL1 { bytes, bursts, .. } => [Some(bytes), Some(bursts), None, None],
        Inst::LoadNz { rows, cols, pad_rows, pad_cols, .. } => {
            [Some(rows), Some(cols), Some(pad_rows), Some(pad_cols)]
        }
        Inst::StoreL0c { rows, cols, pitch, .. } => [Some(rows), Some(cols), Some(pitch), None],
        Inst::LoadA { m, k, pitch, .. } => [Some(m), Some(k), Some(pitch), None],
        Inst::LoadB { k, n, pitch, .. } => [Some(k), Some(n), Some(pitch), None],
        Inst::Im2col { position, positions, block, blocks, .. } => {
            [Some(position), Some(positions), Some(block), Some(blocks)]
        }
        Inst::Mmad { m, k, n, .. } => [Some(m), Some(k), Some(n), None],
        Inst::Binary { cols, rows, .. }
        | Inst::Reduce { cols, rows, .. }
        | Inst::Broadcast { cols, rows, .. }
        | Inst::Transpose { cols, rows, .. } => [Some(cols), Some(rows), None, None],
        Inst::BinaryScalar { count, .. }
        | Inst::Unary { count, .. }
        | Inst::Compare { count, .. }
        | Inst::CompareScalar { count, .. }
        | Inst::Select { count, .. }
        | Inst::Convert { count, .. }
        | Inst::Duplicate { count, .. }
        | Inst::Iota { count, .. }
        | Inst::Gather { count, .. }
        | Inst::LoadBias { count, .. } => [Some(count), None, None, None],
        _ => [None; 4],
    };
    for count in counts.into_iter().flatten() {
        if let Some(value) = count.imm().filter(|&value| value < 0) {
            return Err(format!("a count is {value}, it must not be negative"));
        }
    }
    Ok(())
}
