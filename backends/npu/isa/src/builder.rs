//! Builds kernels: arguments, registers, scalar arithmetic, loops and instructions.
//!
//! Scalar arithmetic folds constants, loops of one round become straight code, and loops of none
//! vanish, so builders can be written once for all sizes. Nothing fails before
//! [`KernelBuilder::finish`], which reports the first fault.
//!
//! ```
//! use halite_npu_isa::{Access, ArgType, BinaryOp, CoreKind, DType, Dim, KernelBuilder, Pipe, Program};
//!
//! // out[i] = x[i] + x[i] for up to 1024 elements.
//! let mut k = KernelBuilder::new("double", CoreKind::Vector);
//! let (x, out) = (k.buffer(Access::Read), k.buffer(Access::Write));
//! let n = k.scalar(ArgType::U32);
//! k.load_ub(DType::F32, 0, x, [Dim::ONE, Dim::ONE, Dim::ONE, Dim::new(n, 4, 4)]);
//! k.sync(Pipe::Mte2, Pipe::V, 0);
//! k.binary(BinaryOp::Add, DType::F32, 4096, 0, 0, n);
//! k.sync(Pipe::V, Pipe::Mte3, 0);
//! k.store_ub(DType::F32, out, 4096, [Dim::ONE, Dim::ONE, Dim::ONE, Dim::new(n, 4, 4)]);
//! let program = Program::new(vec![k.finish()?])?;
//! assert_eq!(Program::from_bytes(&program.to_bytes())?, program);
//! # Ok::<(), halite_npu_isa::ProgramError>(())
//! ```

use crate::error::ProgramError;
use crate::inst::Inst;
use crate::program::{ArgType, Kernel};
use crate::types::{
    Access, AluOp, BinaryOp, CompareOp, CoreKind, DType, Dim, Operand, Pipe, REGISTERS, Reg, StoreMode,
    Target, UnaryOp,
};

/// Builds one kernel.
#[derive(Debug)]
pub struct KernelBuilder {
    name: String,
    core: CoreKind,
    args: Vec<ArgType>,
    code: Vec<Inst>,
    /// Bit i: register i is in use.
    used: u64,
    fault: Option<String>,
}

impl KernelBuilder {
    /// A kernel without arguments or instructions.
    #[must_use]
    pub fn new(name: impl Into<String>, core: CoreKind) -> Self {
        Self { name: name.into(), core, args: Vec::new(), code: Vec::new(), used: 0, fault: None }
    }

    /// Adds a buffer argument and loads its address.
    pub fn buffer(&mut self, access: Access) -> Reg {
        self.scalar(ArgType::Buffer(access))
    }

    /// Adds an argument and loads it.
    pub fn scalar(&mut self, arg: ArgType) -> Reg {
        let index = self.args.len() as u32;
        self.args.push(arg);
        let dst = self.reg();
        self.push(Inst::Arg { dst, index });
        dst
    }

    /// A register that is free until the enclosing [`Self::scope`], loop or condition ends.
    pub fn reg(&mut self) -> Reg {
        let index = (!self.used).trailing_zeros() as usize;
        if index >= REGISTERS {
            self.fail(format!(
                "more than {REGISTERS} registers are in use at instruction {}",
                self.code.len()
            ));
        }
        let index = index.min(REGISTERS - 1);
        self.used |= 1 << index;
        Reg::new(index as u8).expect("the index is below the number of registers")
    }

    /// Runs `body`, then frees the registers that it took.
    pub fn scope<T>(&mut self, body: impl FnOnce(&mut Self) -> T) -> T {
        let used = self.used;
        let result = body(self);
        self.used = used;
        result
    }

    /// Remembers the first fault, for [`Self::finish`].
    pub fn fail(&mut self, reason: impl Into<String>) {
        self.fault.get_or_insert_with(|| reason.into());
    }

    /// Appends an instruction.
    pub fn push(&mut self, inst: Inst) {
        self.code.push(inst);
    }

    /// Instructions so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.code.len()
    }

    /// Whether there is no instruction yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.code.is_empty()
    }

    /// Ends the kernel with `halt` and verifies it.
    ///
    /// # Errors
    /// The first fault of the builder, or the first rule of [`crate::verify`] that is broken.
    pub fn finish(mut self) -> Result<Kernel, ProgramError> {
        if let Some(reason) = self.fault {
            return Err(ProgramError::Kernel { kernel: self.name, reason });
        }
        self.code.push(Inst::Halt {});
        Kernel::new(self.name, self.core, self.args, self.code)
    }
}

/// Scalar unit.
impl KernelBuilder {
    /// A constant of any size, in a register if it needs more than 32 bits.
    pub fn value(&mut self, value: i64) -> Operand {
        match i32::try_from(value) {
            Ok(value) => Operand::Imm(value),
            Err(_) => {
                let dst = self.reg();
                self.push(Inst::Const { dst, value });
                dst.into()
            }
        }
    }

    /// A register that starts with `value`, to be changed by [`Self::assign`].
    pub fn variable(&mut self, value: impl Into<Operand>) -> Reg {
        let dst = self.reg();
        self.assign(dst, value);
        dst
    }

    /// Copies `value` to `dst`.
    pub fn assign(&mut self, dst: Reg, value: impl Into<Operand>) {
        self.push(Inst::Move { dst, src: value.into() });
    }

    /// `lhs op rhs`: a constant if both are constants, otherwise a new register.
    pub fn alu(&mut self, op: AluOp, lhs: impl Into<Operand>, rhs: impl Into<Operand>) -> Operand {
        let (lhs, rhs) = (lhs.into(), rhs.into());
        match (op, lhs, rhs) {
            (_, Operand::Imm(lhs), Operand::Imm(rhs)) => self.value(op.apply(lhs.into(), rhs.into())),
            (AluOp::Add, value, Operand::Imm(0)) | (AluOp::Add, Operand::Imm(0), value) => value,
            (AluOp::Sub, value, Operand::Imm(0)) => value,
            (AluOp::Mul | AluOp::Div, value, Operand::Imm(1)) | (AluOp::Mul, Operand::Imm(1), value) => value,
            (AluOp::Mul, _, Operand::Imm(0)) | (AluOp::Mul, Operand::Imm(0), _) => Operand::ZERO,
            (AluOp::Rem, _, Operand::Imm(1)) => Operand::ZERO,
            _ => {
                let dst = self.reg();
                self.push(Inst::Alu { op, dst, lhs, rhs });
                dst.into()
            }
        }
    }

    /// `lhs + rhs`
    pub fn add(&mut self, lhs: impl Into<Operand>, rhs: impl Into<Operand>) -> Operand {
        self.alu(AluOp::Add, lhs, rhs)
    }

    /// `lhs - rhs`
    pub fn sub(&mut self, lhs: impl Into<Operand>, rhs: impl Into<Operand>) -> Operand {
        self.alu(AluOp::Sub, lhs, rhs)
    }

    /// `lhs * rhs`
    pub fn mul(&mut self, lhs: impl Into<Operand>, rhs: impl Into<Operand>) -> Operand {
        self.alu(AluOp::Mul, lhs, rhs)
    }

    /// `lhs / rhs`, rounded towards zero.
    pub fn div(&mut self, lhs: impl Into<Operand>, rhs: impl Into<Operand>) -> Operand {
        self.alu(AluOp::Div, lhs, rhs)
    }

    /// The remainder of [`Self::div`].
    pub fn rem(&mut self, lhs: impl Into<Operand>, rhs: impl Into<Operand>) -> Operand {
        self.alu(AluOp::Rem, lhs, rhs)
    }

    /// The lesser.
    pub fn min(&mut self, lhs: impl Into<Operand>, rhs: impl Into<Operand>) -> Operand {
        self.alu(AluOp::Min, lhs, rhs)
    }

    /// The greater.
    pub fn max(&mut self, lhs: impl Into<Operand>, rhs: impl Into<Operand>) -> Operand {
        self.alu(AluOp::Max, lhs, rhs)
    }

    /// `lhs / rhs` rounded up, for operands that are not negative.
    pub fn ceil_div(&mut self, lhs: impl Into<Operand>, rhs: impl Into<Operand>) -> Operand {
        let rhs = rhs.into();
        let less = self.sub(rhs, 1);
        let sum = self.add(lhs, less);
        self.div(sum, rhs)
    }

    /// `value` rounded up to a multiple of `unit`, for operands that are not negative.
    pub fn round_up(&mut self, value: impl Into<Operand>, unit: impl Into<Operand>) -> Operand {
        let unit = unit.into();
        let count = self.ceil_div(value, unit);
        self.mul(count, unit)
    }

    /// The block's index.
    pub fn block_index(&mut self) -> Reg {
        let dst = self.reg();
        self.push(Inst::BlockIndex { dst });
        dst
    }

    /// The number of blocks.
    pub fn block_count(&mut self) -> Reg {
        let dst = self.reg();
        self.push(Inst::BlockCount { dst });
        dst
    }

    /// Runs `body` for `start, start + step, ...` below `end`; it gets the counter. One round with
    /// constant bounds becomes straight code with a constant counter, none leaves no code.
    pub fn repeat(
        &mut self,
        start: impl Into<Operand>,
        end: impl Into<Operand>,
        step: impl Into<Operand>,
        body: impl FnOnce(&mut Self, Operand),
    ) {
        let (start, end, step) = (start.into(), end.into(), step.into());
        if let (Some(first), Some(last), Some(by)) = (start.imm(), end.imm(), step.imm()) {
            if first >= last {
                return;
            }
            if by > 0 && i64::from(first) + i64::from(by) >= i64::from(last) {
                return self.scope(|k| body(k, start));
            }
        }
        self.scope(|k| {
            let counter = k.reg();
            k.push(Inst::Loop { counter, start, end, step });
            body(k, counter.into());
            k.push(Inst::EndLoop {});
        });
    }

    /// Runs `body` if the signed comparison holds.
    pub fn when(
        &mut self,
        lhs: impl Into<Operand>,
        cond: CompareOp,
        rhs: impl Into<Operand>,
        body: impl FnOnce(&mut Self),
    ) {
        let (lhs, rhs) = (lhs.into(), rhs.into());
        if let (Some(lhs), Some(rhs)) = (lhs.imm(), rhs.imm()) {
            if cond.holds(lhs, rhs) {
                self.scope(body);
            }
            return;
        }
        let opposite = match cond {
            CompareOp::Eq => CompareOp::Ne,
            CompareOp::Ne => CompareOp::Eq,
            CompareOp::Lt => CompareOp::Ge,
            CompareOp::Le => CompareOp::Gt,
            CompareOp::Gt => CompareOp::Le,
            CompareOp::Ge => CompareOp::Lt,
        };
        let at = self.code.len();
        self.push(Inst::Branch { cond: opposite, lhs, rhs, target: Target(0) });
        self.scope(body);
        let end = Target(self.code.len() as u32);
        if let Inst::Branch { target, .. } = &mut self.code[at] {
            *target = end;
        }
    }
}

/// Synchronisation.
impl KernelBuilder {
    /// Raises a flag after all earlier instructions of `from`.
    pub fn set(&mut self, from: Pipe, to: Pipe, id: impl Into<Operand>) {
        self.push(Inst::SetFlag { from, to, id: id.into() });
    }

    /// Holds `to` until the flag is raised, and clears it.
    pub fn wait(&mut self, from: Pipe, to: Pipe, id: impl Into<Operand>) {
        self.push(Inst::WaitFlag { from, to, id: id.into() });
    }

    /// Lets later instructions of `to` start after all earlier ones of `from`.
    pub fn sync(&mut self, from: Pipe, to: Pipe, id: impl Into<Operand>) {
        let id = id.into();
        self.set(from, to, id);
        self.wait(from, to, id);
    }
}

/// Transfers and vector instructions on dense operands.
impl KernelBuilder {
    /// Gathers elements into UB.
    pub fn load_ub(
        &mut self,
        dtype: DType,
        dst: impl Into<Operand>,
        src: impl Into<Operand>,
        dims: [Dim; 4],
    ) {
        let [d0, d1, d2, d3] = dims;
        self.push(Inst::LoadUb { dtype, dst: dst.into(), src: src.into(), d0, d1, d2, d3 });
    }

    /// Scatters elements from UB.
    pub fn store_ub(
        &mut self,
        dtype: DType,
        dst: impl Into<Operand>,
        src: impl Into<Operand>,
        dims: [Dim; 4],
    ) {
        let [d0, d1, d2, d3] = dims;
        let mode = StoreMode::Plain;
        self.push(Inst::StoreUb { dtype, mode, dst: dst.into(), src: src.into(), d0, d1, d2, d3 });
    }

    /// `dst = lhs op rhs`
    pub fn binary(
        &mut self,
        op: BinaryOp,
        dtype: DType,
        dst: impl Into<Operand>,
        lhs: impl Into<Operand>,
        rhs: impl Into<Operand>,
        count: impl Into<Operand>,
    ) {
        self.push(Inst::Binary {
            op,
            dtype,
            dst: dst.into(),
            lhs: lhs.into(),
            rhs: rhs.into(),
            cols: count.into(),
            rows: Operand::Imm(1),
            dst_stride: Operand::ZERO,
            lhs_stride: Operand::ZERO,
            rhs_stride: Operand::ZERO,
        });
    }

    /// `dst = src op scalar`
    pub fn binary_scalar(
        &mut self,
        op: BinaryOp,
        dtype: DType,
        dst: impl Into<Operand>,
        src: impl Into<Operand>,
        scalar: impl Into<Operand>,
        count: impl Into<Operand>,
    ) {
        let (dst, src, scalar, count) = (dst.into(), src.into(), scalar.into(), count.into());
        self.push(Inst::BinaryScalar { op, dtype, reverse: false, dst, src, scalar, count });
    }

    /// `dst = op src`
    pub fn unary(
        &mut self,
        op: UnaryOp,
        dtype: DType,
        dst: impl Into<Operand>,
        src: impl Into<Operand>,
        count: impl Into<Operand>,
    ) {
        self.push(Inst::Unary { op, dtype, dst: dst.into(), src: src.into(), count: count.into() });
    }

    /// `dst = lhs op rhs` as u8.
    pub fn compare(
        &mut self,
        op: CompareOp,
        dtype: DType,
        dst: impl Into<Operand>,
        lhs: impl Into<Operand>,
        rhs: impl Into<Operand>,
        count: impl Into<Operand>,
    ) {
        let (dst, lhs, rhs, count) = (dst.into(), lhs.into(), rhs.into(), count.into());
        self.push(Inst::Compare { op, dtype, dst, lhs, rhs, count });
    }

    /// `dst = mask ? lhs : rhs`
    pub fn select(
        &mut self,
        dtype: DType,
        dst: impl Into<Operand>,
        mask: impl Into<Operand>,
        lhs: impl Into<Operand>,
        rhs: impl Into<Operand>,
        count: impl Into<Operand>,
    ) {
        let (dst, mask, lhs, rhs, count) = (dst.into(), mask.into(), lhs.into(), rhs.into(), count.into());
        self.push(Inst::Select { dtype, dst, mask, lhs, rhs, count });
    }

    /// Converts `count` elements.
    pub fn convert(
        &mut self,
        from: DType,
        to: DType,
        dst: impl Into<Operand>,
        src: impl Into<Operand>,
        count: impl Into<Operand>,
    ) {
        self.push(Inst::Convert { from, to, dst: dst.into(), src: src.into(), count: count.into() });
    }

    /// Fills `count` elements with one value, given as its bits.
    pub fn duplicate(
        &mut self,
        dtype: DType,
        dst: impl Into<Operand>,
        scalar: impl Into<Operand>,
        count: impl Into<Operand>,
    ) {
        self.push(Inst::Duplicate { dtype, dst: dst.into(), scalar: scalar.into(), count: count.into() });
    }
}
