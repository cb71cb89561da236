//! One core while it executes a block: registers, control flow and flags.

use halite_npu_isa::{CoreKind, DType, Inst, Kernel, Operand, Pipe, REGISTERS};

use super::config::MachineConfig;
use super::cube::{Image, Panels};
use super::error::Fault;
use super::memory::{LocalMemory, View};
use super::observer::{Executed, LaunchReport, Observer, Work};

const FLAG_IDS: usize = halite_npu_isa::verify::FLAG_IDS as usize;
const PIPES: usize = Pipe::ALL.len();

/// The memories of a core. One of a kind that the core lacks has no bytes.
pub(super) struct LocalMemories {
    pub(super) core: CoreKind,
    pub(super) l1: LocalMemory,
    pub(super) l0a: LocalMemory,
    pub(super) l0b: LocalMemory,
    pub(super) l0c: LocalMemory,
    pub(super) bias: LocalMemory,
    pub(super) ub: LocalMemory,
    /// The cube's operands as it multiplies them.
    pub(super) panels: Panels,
    /// Offsets of rows and columns in a transfer.
    pub(super) offsets: [Vec<i64>; 2],
    /// Bytes of one row of a transfer.
    pub(super) row: Vec<u8>,
}

impl LocalMemories {
    pub(super) fn new(config: &MachineConfig, core: CoreKind) -> Result<Self, Fault> {
        let cube = |bytes: usize| if core == CoreKind::Cube { bytes } else { 0 };
        let vector = |bytes: usize| if core == CoreKind::Vector { bytes } else { 0 };
        Ok(Self {
            core,
            l1: LocalMemory::new("L1", cube(config.l1_bytes), config.l1_align)?,
            l0a: LocalMemory::new("L0A", cube(config.l0a_bytes), config.l0_align)?,
            l0b: LocalMemory::new("L0B", cube(config.l0b_bytes), config.l0_align)?,
            l0c: LocalMemory::new("L0C", cube(config.l0c_bytes), config.l0c_align)?,
            bias: LocalMemory::new("the bias table", cube(config.bias_bytes), config.bias_align)?,
            ub: LocalMemory::new("UB", vector(config.ub_bytes), config.ub_align)?,
            panels: Panels::default(),
            offsets: Default::default(),
            row: Vec::new(),
        })
    }

    fn poison(&mut self) {
        for memory in
            [&mut self.l1, &mut self.l0a, &mut self.l0b, &mut self.l0c, &mut self.bias, &mut self.ub]
        {
            memory.poison();
        }
    }
}

/// Why a block gave up its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pause {
    /// It ended.
    Done,
    /// It waits at `sync.all`.
    SyncAll,
    /// It waits for a flag of its own.
    CrossFlag(usize),
}

/// Flags that blocks raise for each other: a counter for each block and id.
pub(super) struct CrossFlags(Vec<[u32; FLAG_IDS]>);

impl CrossFlags {
    pub(super) fn new(blocks: u32) -> Self {
        Self(vec![[0; FLAG_IDS]; blocks as usize])
    }

    pub(super) fn is_raised(&self, block: u32, id: usize) -> bool {
        self.0[block as usize][id] > 0
    }
}

#[derive(Clone, Copy)]
struct LoopFrame {
    start: usize,
    end: i64,
    step: i64,
}

/// A block's state.
pub(super) struct Core<'a> {
    pub(super) config: &'a MachineConfig,
    pub(super) global: &'a View,
    pub(super) memories: LocalMemories,
    pub(super) image: Image,
    pub(super) report: LaunchReport,
    kernel: &'a Kernel,
    args: &'a [i64],
    block: u32,
    blocks: u32,
    pc: usize,
    registers: [i64; REGISTERS],
    loops: Vec<LoopFrame>,
    flags: [[[u32; FLAG_IDS]; PIPES]; PIPES],
    budget: u64,
}

impl<'a> Core<'a> {
    pub(super) fn new(
        config: &'a MachineConfig,
        global: &'a View,
        mut memories: LocalMemories,
        kernel: &'a Kernel,
        args: &'a [i64],
        block: u32,
        blocks: u32,
    ) -> Self {
        memories.poison();
        Self {
            config,
            global,
            memories,
            image: Image::default(),
            report: LaunchReport { blocks: 1, ..LaunchReport::default() },
            kernel,
            args,
            block,
            blocks,
            pc: 0,
            registers: [0; REGISTERS],
            loops: Vec::new(),
            flags: [[[0; FLAG_IDS]; PIPES]; PIPES],
            budget: config.block_budget,
        }
    }

    pub(super) fn block(&self) -> u32 {
        self.block
    }

    pub(super) fn pc(&self) -> usize {
        self.pc
    }

    /// Executes until the block ends or must wait for another.
    pub(super) fn run(
        &mut self,
        cross: &mut CrossFlags,
        mut observer: Option<&mut (dyn Observer + '_)>,
    ) -> Result<Pause, Fault> {
        let code = self.kernel.code();
        loop {
            // The verifier made sure that code cannot run off its end.
            let pc = self.pc;
            let inst = &code[pc];
            let pipe = inst.pipe();
            let (work, pause) = match self.control(inst, cross)? {
                Some(pause) => (Work::default(), pause),
                None => {
                    let work = self.execute(inst)?;
                    self.pc += 1;
                    (work, None)
                }
            };
            let units = 1 + (work.elements + work.multiply_adds / 64) / 64;
            self.budget =
                self.budget.checked_sub(units).ok_or(Fault::Budget { budget: self.config.block_budget })?;
            if let Some(Pause::CrossFlag(_)) = pause {
                // The wait is executed when the flag is there.
                return Ok(pause.unwrap_or(Pause::Done));
            }
            self.report.count(pipe, work);
            if let Some(observer) = observer.as_deref_mut() {
                let registers = &self.registers;
                observer.executed(&Executed { block: self.block, pc, inst, pipe, registers, work });
            }
            if let Some(pause) = pause {
                return Ok(pause);
            }
        }
    }

    /// Executes what moves the program counter or waits; `None` if the instruction is another.
    fn control(&mut self, inst: &Inst, cross: &mut CrossFlags) -> Result<Option<Option<Pause>>, Fault> {
        let mut next = self.pc + 1;
        match *inst {
            Inst::Loop { counter, start, end, step } => {
                let (start, end, step) = (self.value(start), self.value(end), self.value(step));
                if step <= 0 {
                    return Err(Fault::Field { field: "step", value: step, required: "it must be positive" });
                }
                self.registers[counter.index()] = start;
                if start < end {
                    self.loops.push(LoopFrame { start: self.pc, end, step });
                } else {
                    next = self.partner() + 1;
                }
            }
            Inst::EndLoop {} => {
                let frame = *self.loops.last().expect("the verifier matched every endloop with a loop");
                let Inst::Loop { counter, .. } = self.kernel.code()[frame.start] else {
                    unreachable!("frames start at loops");
                };
                let counter = &mut self.registers[counter.index()];
                *counter = counter.saturating_add(frame.step);
                if *counter < frame.end {
                    next = frame.start + 1;
                } else {
                    self.loops.pop();
                }
            }
            Inst::Branch { cond, lhs, rhs, target } => {
                if cond.holds(self.value(lhs), self.value(rhs)) {
                    next = target.0 as usize;
                }
            }
            Inst::Jump { target } => next = target.0 as usize,
            Inst::Halt {} => return Ok(Some(Some(Pause::Done))),
            Inst::Trap { code } => return Err(Fault::Stopped { code }),
            Inst::SyncAll {} => {
                self.pc = next;
                return Ok(Some(Some(Pause::SyncAll)));
            }
            Inst::CrossSet { block, id } => {
                let (block, id) = (self.value(block), self.flag_id(id)?);
                let flags = usize::try_from(block).ok().and_then(|block| cross.0.get_mut(block));
                let required = "it must be below the number of blocks";
                let flags = flags.ok_or(Fault::Field { field: "block", value: block, required })?;
                flags[id] += 1;
            }
            Inst::CrossWait { id } => {
                let id = self.flag_id(id)?;
                match cross.0[self.block as usize][id].checked_sub(1) {
                    Some(left) => cross.0[self.block as usize][id] = left,
                    None => return Ok(Some(Some(Pause::CrossFlag(id)))),
                }
            }
            _ => return Ok(None),
        }
        self.pc = next;
        Ok(Some(None))
    }

    fn execute(&mut self, inst: &Inst) -> Result<Work, Fault> {
        match *inst {
            Inst::Arg { dst, index } => self.registers[dst.index()] = self.args[index as usize],
            Inst::Const { dst, value } => self.registers[dst.index()] = value,
            Inst::Move { dst, src } => self.registers[dst.index()] = self.value(src),
            Inst::Alu { op, dst, lhs, rhs } => {
                self.registers[dst.index()] = op.apply(self.value(lhs), self.value(rhs));
            }
            Inst::BlockIndex { dst } => self.registers[dst.index()] = self.block.into(),
            Inst::BlockCount { dst } => self.registers[dst.index()] = self.blocks.into(),
            Inst::LoadScalar { dtype, dst, src } => {
                self.registers[dst.index()] = self.load_scalar(dtype, self.value(src))?;
            }
            Inst::Mark { .. } | Inst::Barrier { .. } | Inst::BarrierAll {} => {}
            Inst::SetFlag { from, to, id } => {
                let id = self.flag_id(id)?;
                let count = &mut self.flags[usize::from(from.code())][usize::from(to.code())][id];
                *count = count.saturating_add(1);
            }
            Inst::WaitFlag { from, to, id } => {
                let id = self.flag_id(id)?;
                let count = &mut self.flags[usize::from(from.code())][usize::from(to.code())][id];
                *count = count.checked_sub(1).ok_or(Fault::Flag { from, to, id: id as i64 })?;
            }
            _ => {
                return match inst.pipe() {
                    Pipe::Mte2 | Pipe::Mte3 => self.transfer(inst),
                    Pipe::Mte1 | Pipe::M | Pipe::Fix => self.matrix(inst),
                    Pipe::V | Pipe::S => self.vector(inst),
                };
            }
        }
        Ok(Work::default())
    }

    pub(super) fn value(&self, operand: Operand) -> i64 {
        operand.resolve(&self.registers)
    }

    /// A count: not negative, and so small (an operand of as many floats would fill the largest memory that a core may
    /// have) that products of two and an element's size stay far from overflow.
    /// Refuses work that the budget cannot pay before it is done, for instructions that no memory bounds.
    pub(super) fn afford(&self, elements: i64) -> Result<(), Fault> {
        if elements.cast_unsigned() / 64 > self.budget {
            return Err(Fault::Budget { budget: self.config.block_budget });
        }
        Ok(())
    }

    pub(super) fn count(&self, field: &'static str, operand: Operand) -> Result<i64, Fault> {
        let value = self.value(operand);
        if !(0..1 << 24).contains(&value) {
            return Err(Fault::Field { field, value, required: "it must be from 0 to 16777215" });
        }
        Ok(value)
    }

    fn partner(&self) -> usize {
        self.kernel.loop_partner(self.pc).expect("the verifier matched every loop with an endloop")
    }

    fn flag_id(&self, id: Operand) -> Result<usize, Fault> {
        let value = self.value(id);
        let id = usize::try_from(value).ok().filter(|&id| id < FLAG_IDS);
        id.ok_or(Fault::Field { field: "flag id", value, required: "it must be from 0 to 7" })
    }

    fn load_scalar(&self, dtype: DType, address: i64) -> Result<i64, Fault> {
        let ub = &self.memories.ub;
        // One element needs its own alignment only, as a scalar load of a real machine does.
        let size = dtype.size();
        if address.rem_euclid(size as i64) != 0 {
            return Err(Fault::LocalAlignment {
                memory: "UB",
                what: "address",
                value: address,
                required: size,
            });
        }
        let at = ub.bounds(address, size as i64)?;
        Ok(match dtype {
            DType::F32 | DType::U32 => ub.slice::<u32>(at, 1)[0].into(),
            DType::I32 => ub.slice::<i32>(at, 1)[0].into(),
            DType::F16 | DType::BF16 => ub.slice::<u16>(at, 1)[0].into(),
            DType::U8 => ub.slice::<u8>(at, 1)[0].into(),
            DType::I64 => ub.slice::<i64>(at, 1)[0],
        })
    }
}
