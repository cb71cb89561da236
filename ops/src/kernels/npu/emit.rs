//! What all builders share: the machine's sizes, arguments, tiles over blocks, and the finished launch.

use crate::lower::{Launch, LaunchArg, LowerRequest, Unservable};
use halite_hal as hal;
use halite_npu_isa::{
    Access, ArgType, CompareOp, CoreKind, DType, Inst, KernelBuilder, Operand, Pipe, Program, Reg,
};

/// The kernel format of programs.
pub(super) const FORMAT: &str = "npu-program";

/// Sizes of on-chip memories that programs are built for, in bytes: those of the machine that the emulator
/// models by default, since no device reports its own. A machine with less refuses the program when it runs.
pub(super) struct OnChip {
    pub(super) l1: usize,
    pub(super) l0a: usize,
    pub(super) l0b: usize,
    pub(super) l0c: usize,
    pub(super) bias: usize,
    pub(super) ub: usize,
}

/// See [`OnChip`].
pub(super) const ON_CHIP: OnChip =
    OnChip { l1: 512 << 10, l0a: 64 << 10, l0b: 64 << 10, l0c: 128 << 10, bias: 1 << 10, ub: 192 << 10 };

/// Bytes of a block: the unit of addresses in UB and L1.
pub(super) const BLOCK: usize = 32;

/// The machine's type for elements of `dtype`; `bool` is a byte.
pub(super) fn isa_dtype(dtype: hal::DType) -> Result<DType, Unservable> {
    match dtype {
        hal::DType::F32 => Ok(DType::F32),
        hal::DType::F16 => Ok(DType::F16),
        hal::DType::BF16 => Ok(DType::BF16),
        hal::DType::I32 => Ok(DType::I32),
        hal::DType::U32 => Ok(DType::U32),
        hal::DType::I64 => Ok(DType::I64),
        hal::DType::U8 | hal::DType::Bool => Ok(DType::U8),
        other => Err(Unservable::new(format!("{other} is not a dtype of the npu's vector unit"))),
    }
}

/// The machine's type for an operand of the cube.
pub(super) fn cube_dtype(dtype: hal::DType) -> Result<DType, Unservable> {
    match isa_dtype(dtype) {
        Ok(dtype) if dtype.is_float() => Ok(dtype),
        _ => Err(Unservable::new(format!("{dtype} is not a dtype of the npu's cube"))),
    }
}

/// A kernel with its arguments, which are loaded where they are used so that they hold no register.
pub(super) struct Emitter {
    pub(super) k: KernelBuilder,
    name: String,
    signature: Vec<hal::ArgType>,
    args: Vec<LaunchArg>,
}

/// An argument of the kernel being built.
#[derive(Clone, Copy)]
pub(super) struct ArgIndex(u32);

impl Emitter {
    pub(super) fn new(name: &str, core: CoreKind) -> Self {
        let k = KernelBuilder::new(name, core);
        Self { k, name: name.to_owned(), signature: Vec::new(), args: Vec::new() }
    }

    /// Adds a buffer argument.
    pub(super) fn buffer(&mut self, arg: LaunchArg, dtype: hal::DType, access: Access) -> ArgIndex {
        let index = self.declare(arg, ArgType::Buffer(access));
        let access = match access {
            Access::Read => hal::Access::Read,
            Access::Write => hal::Access::Write,
            Access::ReadWrite => hal::Access::ReadWrite,
        };
        self.signature.push(hal::ArgType::Buffer { dtype, access });
        index
    }

    /// Adds a scalar argument.
    pub(super) fn scalar(&mut self, arg: LaunchArg, dtype: hal::DType) -> Result<ArgIndex, Unservable> {
        let ty = match dtype {
            hal::DType::F32 => ArgType::F32,
            hal::DType::I32 => ArgType::I32,
            hal::DType::U32 => ArgType::U32,
            hal::DType::I64 => ArgType::I64,
            other => return Err(Unservable::new(format!("{other} is not a scalar of the npu"))),
        };
        self.signature.push(hal::ArgType::Scalar(dtype));
        Ok(self.declare(arg, ty))
    }

    fn declare(&mut self, arg: LaunchArg, ty: ArgType) -> ArgIndex {
        let index = self.args.len() as u32;
        self.args.push(arg);
        self.k.scope(|k| k.scalar(ty));
        ArgIndex(index)
    }

    /// Loads an argument into a register.
    pub(super) fn load(&mut self, arg: ArgIndex) -> Reg {
        let dst = self.k.reg();
        self.k.push(Inst::Arg { dst, index: arg.0 });
        dst
    }

    /// `base + constant + sum(index * stride)`, all in bytes.
    pub(super) fn address(&mut self, arg: ArgIndex, constant: i64, terms: &[(Operand, i64)]) -> Operand {
        let base = self.load(arg);
        let constant = self.k.value(constant);
        let mut sum = self.k.add(base, constant);
        for &(index, stride) in terms {
            if stride != 0 {
                let stride = self.k.value(stride);
                let term = self.k.mul(index, stride);
                sum = self.k.add(sum, term);
            }
        }
        sum
    }

    /// Runs `body`, then frees the registers that it took.
    pub(super) fn scope<T>(&mut self, body: impl FnOnce(&mut Self) -> T) -> T {
        let mut body = Some(body);
        let mut result = None;
        self.nest(|k, inner| {
            k.scope(|k| {
                inner(k, &mut |emitter| {
                    if let Some(body) = body.take() {
                        result = Some(body(emitter));
                    }
                });
            });
        });
        result.expect("the builder runs a scope exactly once")
    }

    /// As [`KernelBuilder::repeat`].
    pub(super) fn repeat(
        &mut self,
        start: impl Into<Operand>,
        end: impl Into<Operand>,
        step: impl Into<Operand>,
        mut body: impl FnMut(&mut Self, Operand),
    ) {
        let (start, end, step) = (start.into(), end.into(), step.into());
        self.nest(|k, inner| {
            k.repeat(start, end, step, |k, counter| inner(k, &mut |emitter| body(emitter, counter)));
        });
    }

    /// As [`KernelBuilder::when`].
    pub(super) fn when(
        &mut self,
        lhs: impl Into<Operand>,
        cond: CompareOp,
        rhs: impl Into<Operand>,
        mut body: impl FnMut(&mut Self),
    ) {
        let (lhs, rhs) = (lhs.into(), rhs.into());
        self.nest(|k, inner| k.when(lhs, cond, rhs, |k| inner(k, &mut |emitter| body(emitter))));
    }

    /// Lends the builder to a construct whose body wants the whole emitter.
    #[allow(clippy::type_complexity, reason = "the inner closure takes a closure")]
    fn nest(
        &mut self,
        construct: impl FnOnce(&mut KernelBuilder, &mut dyn FnMut(&mut KernelBuilder, &mut dyn FnMut(&mut Self))),
    ) {
        let empty = || KernelBuilder::new("", CoreKind::Vector);
        let mut k = std::mem::replace(&mut self.k, empty());
        construct(&mut k, &mut |k, body| {
            std::mem::swap(&mut self.k, k);
            body(self);
            std::mem::swap(&mut self.k, k);
        });
        self.k = k;
    }

    /// Runs `body(buffer, tile)` for the tiles of this block, which are every `blocks`-th one. Where a block has
    /// several tiles they alternate between two buffers, and a tile waits until `done` has finished with the one
    /// before it in its buffer; its last instructions must be on that pipe, its first on MTE2.
    pub(super) fn tiles(
        &mut self,
        tiles: usize,
        blocks: u32,
        done: Pipe,
        mut body: impl FnMut(&mut Self, usize, Operand),
    ) {
        let first: Operand = if blocks == 1 { Operand::ZERO } else { self.k.block_index().into() };
        if tiles <= blocks as usize {
            return body(self, 0, first);
        }
        let (load, blocks) = (Pipe::Mte2, i64::from(blocks));
        let (tiles, step) = (self.k.value(tiles as i64), self.k.value(2 * blocks));
        for buffer in 0..2 {
            self.k.set(done, load, buffer);
        }
        let blocks = self.k.value(blocks);
        self.repeat(first, tiles, step, |e, tile| {
            for buffer in 0..2 {
                let tile = if buffer == 0 { tile } else { e.k.add(tile, blocks) };
                e.when(tile, CompareOp::Lt, tiles, |e| {
                    e.k.wait(done, load, buffer);
                    body(e, buffer as usize, tile);
                    e.k.set(done, load, buffer);
                });
            }
        });
        for buffer in 0..2 {
            self.k.wait(done, load, buffer);
        }
    }

    /// The finished kernel as one launch of `blocks` blocks.
    pub(super) fn launch(self, blocks: u32, in_place: bool) -> Result<Launch, Unservable> {
        let refused = |error: halite_npu_isa::ProgramError| Unservable::new(error.to_string());
        let kernel = self.k.finish().map_err(refused)?;
        let bytes = Program::new(vec![kernel]).map_err(refused)?.to_bytes();
        let source = hal::KernelSource::Binary {
            format: FORMAT,
            bytes: bytes.into(),
            entry: self.name,
            workgroup: [1, 1, 1],
            signature: hal::Signature { in_place, ..hal::Signature::new(self.signature) },
            requires: Vec::new(),
        };
        Ok(Launch { source, grid: [blocks.max(1), 1, 1], args: self.args })
    }
}

/// Blocks for `tiles` tiles: one for each, at most one for each core.
pub(super) fn blocks(request: &LowerRequest<'_>, tiles: usize) -> u32 {
    let cores = request.device.compute_units.max(1);
    u32::try_from(tiles).unwrap_or(cores).clamp(1, cores)
}

/// A size as an operand; sizes on the chip are far below 2^31.
pub(super) fn imm(size: usize) -> Operand {
    Operand::Imm(i32::try_from(size).expect("sizes on the chip are below 2^31"))
}
