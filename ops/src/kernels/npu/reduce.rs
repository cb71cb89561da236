//! Reductions with an elementwise producer, on the vector unit.
//!
//! The iteration space is \[kept..., reduced...\]. Where a row (the reduced points of one output) fits in a tile, a tile
//! holds several rows and one instruction reduces them all. Longer rows are reduced tile by tile into an accumulator.
//! Floats accumulate in f32; within a tile sums run in 16 lanes that combine pairwise, tiles add in their order.

use crate::cluster::{Cluster, Literal, Step, StepOp};
use crate::lower::{LaunchArg, LowerRequest, Lowered, ReduceKind, Reduction, Unservable};
use halite_hal as hal;
use halite_npu_isa::{
    Access, BinaryOp, CompareOp, CoreKind, DType, Dim, Inst, Operand, Pipe, ReduceOp, UnaryOp,
};

use super::elementwise;
use super::emit::{Emitter, blocks, imm, isa_dtype};
use super::evaluate::{Arguments, Evaluator, Slots, Tile, dims4};

/// Slots beside the program's: results, and what combining them needs.
const EXTRA_SLOTS: usize = PIECE_SLOTS + 1;
/// Of them, those that live from piece to piece of a long row or combine its results.
const PIECE_SLOTS: usize = 6;

/// The launch of a reduction.
pub(super) fn lower(request: &LowerRequest<'_>, reduction: &Reduction) -> Result<Lowered, Unservable> {
    let mut program = reduction.program.clone();
    let reduced_points: usize = program.shape[reduction.kept_rank..].iter().product();
    let value_dtype = program.output_dtype(0);
    if reduced_points == 0 {
        let kept = program.shape[..reduction.kept_rank].to_vec();
        return elementwise::lower(request, &constant(kept, identity(reduction.kind, value_dtype)));
    }
    let kept_rank = program.collapse(Some(reduction.kept_rank)).unwrap_or(reduction.kept_rank);
    Evaluator::check_strides(program.inputs.iter().flat_map(|view| &view.strides))?;
    let work = if value_dtype.is_float() { DType::F32 } else { isa_dtype(value_dtype)? };
    let chunk = request.parameters.int("chunk");
    let evaluator = Evaluator::new(&program, kept_rank, work, chunk, EXTRA_SLOTS)?;
    let mut e = Emitter::new("reduce", CoreKind::Vector);
    let mut arguments = Arguments::inputs(&mut e, &program);
    let output = e.buffer(LaunchArg::Output(0), reduction.dtype, Access::Write);
    arguments.scalars(&mut e, &program)?;

    let out_dtype = isa_dtype(reduction.dtype)?;
    let tiles = evaluator.kept.tiles();
    let blocks = blocks(request, tiles);
    let reducer =
        Reducer { kind: reduction.kind, work, out_dtype, evaluator: &evaluator, arguments: &arguments };
    let store = |e: &mut Emitter, tile_linear: Operand, rows: Operand, src: Operand| {
        let size = out_dtype.size();
        e.scope(|e| {
            let dst = e.address(output, 0, &[(tile_linear, size as i64)]);
            e.k.store_ub(out_dtype, dst, src, dims4(&[Dim::new(rows, imm(size), imm(size))]));
        });
    };
    if evaluator.reduced.tiles() == 1 {
        e.tiles(tiles, blocks, Pipe::Mte3, |e, buffer, tile| {
            let tile = evaluator.locate(e, tile, Operand::ZERO);
            let mut slots = Slots::default();
            let result = reducer.whole_rows(e, &tile, &mut slots, buffer);
            e.k.sync(Pipe::V, Pipe::Mte3, imm(buffer));
            store(e, tile.kept.linear, tile.rows, evaluator.slot_at(buffer, result));
        });
    } else {
        let first: Operand = if blocks == 1 { Operand::ZERO } else { e.k.block_index().into() };
        let (tiles, step) = (e.k.value(tiles as i64), imm(blocks as usize));
        e.repeat(first, tiles, step, |e, tile| {
            let (linear, result) = reducer.in_pieces(e, tile);
            e.k.sync(Pipe::V, Pipe::Mte3, 0);
            store(e, linear, imm(1), result);
            e.k.sync(Pipe::Mte3, Pipe::V, 0);
        });
    }
    Ok(Lowered::single(e.launch(blocks, false)?))
}

fn constant(shape: Vec<usize>, value: Literal) -> Cluster {
    let step = Step { op: StepOp::Constant(value), dtype: value.dtype };
    Cluster { shape, inputs: Vec::new(), scalars: Vec::new(), steps: vec![step], outputs: vec![0] }
}

/// What a reduction over nothing gives.
fn identity(kind: ReduceKind, dtype: hal::DType) -> Literal {
    let extreme = |sign: f64| Literal::new(dtype, sign * f64::INFINITY);
    match kind {
        ReduceKind::Sum => Literal::new(dtype, 0.0),
        ReduceKind::Prod => Literal::new(dtype, 1.0),
        ReduceKind::Max if dtype == hal::DType::Bool => Literal::new(dtype, 0.0),
        ReduceKind::Max => extreme(-1.0),
        ReduceKind::Min => extreme(1.0),
        ReduceKind::ArgMax => Literal::new(hal::DType::I32, 0.0),
    }
}

/// Emits the reduction of evaluated tiles.
struct Reducer<'a> {
    kind: ReduceKind,
    /// Type in which elements are combined.
    work: DType,
    out_dtype: DType,
    evaluator: &'a Evaluator<'a>,
    arguments: &'a Arguments,
}

impl Reducer<'_> {
    fn op(&self) -> ReduceOp {
        match self.kind {
            ReduceKind::Sum => ReduceOp::Sum,
            ReduceKind::Prod => ReduceOp::Prod,
            ReduceKind::Max => ReduceOp::Max,
            ReduceKind::Min => ReduceOp::Min,
            ReduceKind::ArgMax => ReduceOp::ArgMax,
        }
    }

    /// Evaluates a tile; gives the slot of its values in the working type.
    fn values(&self, e: &mut Emitter, tile: &Tile, slots: &mut Slots, buffer: usize) -> usize {
        let slot = self.evaluator.emit(e, self.arguments, tile, slots, buffer)[0];
        let dtype = self.evaluator.output_dtype(0);
        if dtype == self.work {
            return slot;
        }
        let wide = slots.take();
        let (dst, src) = (self.evaluator.slot_at(buffer, wide), self.evaluator.slot_at(buffer, slot));
        e.k.convert(dtype, self.work, dst, src, tile.padded_points());
        slots.release(slot);
        wide
    }

    /// Reduces a tile of whole rows; gives the slot of the results in the output's type.
    fn whole_rows(&self, e: &mut Emitter, tile: &Tile, slots: &mut Slots, buffer: usize) -> usize {
        let values = self.values(e, tile, slots, buffer);
        let result = slots.take();
        let (dst, src) = (self.evaluator.slot_at(buffer, result), self.evaluator.slot_at(buffer, values));
        e.k.push(Inst::Reduce {
            op: self.op(),
            dtype: self.work,
            dst,
            src,
            cols: tile.reduced.len,
            rows: tile.rows,
            row_stride: imm(self.evaluator.pitch * self.work.size()),
        });
        if self.kind == ReduceKind::ArgMax || self.work == self.out_dtype {
            return result;
        }
        let narrow = slots.take();
        e.k.convert(self.work, self.out_dtype, self.evaluator.slot_at(buffer, narrow), dst, tile.rows);
        narrow
    }

    /// Reduces one long row piece by piece; gives its number and the place of the result in the output's type.
    fn in_pieces(&self, e: &mut Emitter, kept: Operand) -> (Operand, Operand) {
        let evaluator = self.evaluator;
        let mut slots = Slots::default();
        // What lives from piece to piece, and what one piece needs beside the program's values.
        let [best, position, partial, partial_position, flag, other_flag] =
            std::array::from_fn(|_| evaluator.slot_at(0, slots.take()));
        let (work, one) = (self.work, imm(1));
        let start = identity(self.kind, reduce_dtype(work));
        let start = if self.kind == ReduceKind::ArgMax {
            identity(ReduceKind::Max, reduce_dtype(work))
        } else {
            start
        };
        let bits = if work == DType::I64 {
            e.k.value(start.bits.cast_signed())
        } else {
            Operand::Imm((start.bits as u32).cast_signed())
        };
        e.k.duplicate(work, best, bits, one);
        e.k.duplicate(DType::I32, position, 0, one);
        let linear = evaluator.kept.locate(e, kept).linear;
        // Loads of a piece wait until the vector unit is done with the one before.
        e.k.set(Pipe::V, Pipe::Mte2, 0);
        let pieces = evaluator.reduced.tiles();
        e.repeat(0, imm(pieces), 1, |e, piece| {
            e.k.wait(Pipe::V, Pipe::Mte2, 0);
            let tile = evaluator.locate(e, kept, piece);
            let mut slots = Slots::default();
            let _: [usize; PIECE_SLOTS] = std::array::from_fn(|_| slots.take());
            let values = self.values(e, &tile, &mut slots, 0);
            let src = evaluator.slot_at(0, values);
            let (cols, rows, row_stride) = (tile.reduced.len, one, Operand::ZERO);
            let mut reduce = |op: ReduceOp, dst: Operand| {
                e.k.push(Inst::Reduce { op, dtype: work, dst, src, cols, rows, row_stride });
            };
            match self.kind {
                ReduceKind::ArgMax => {
                    reduce(ReduceOp::Max, partial);
                    reduce(ReduceOp::ArgMax, partial_position);
                    e.k.binary_scalar(
                        BinaryOp::Add,
                        DType::I32,
                        partial_position,
                        partial_position,
                        tile.reduced.linear,
                        one,
                    );
                    // Take the piece's if it is not below or equal (greater, or NaN) and there is no NaN yet.
                    e.k.compare(CompareOp::Le, work, flag, partial, best, one);
                    e.k.unary(UnaryOp::Not, DType::U8, flag, flag, one);
                    e.k.compare(CompareOp::Eq, work, other_flag, best, best, one);
                    e.k.binary(BinaryOp::And, DType::U8, flag, flag, other_flag, one);
                    e.k.select(work, best, flag, partial, best, one);
                    e.k.select(DType::I32, position, flag, partial_position, position, one);
                }
                kind => {
                    reduce(self.op(), partial);
                    let op = match kind {
                        ReduceKind::Sum => BinaryOp::Add,
                        ReduceKind::Prod => BinaryOp::Mul,
                        ReduceKind::Max => BinaryOp::Max,
                        _ => BinaryOp::Min,
                    };
                    e.k.binary(op, work, best, best, partial, one);
                }
            }
            e.k.set(Pipe::V, Pipe::Mte2, 0);
        });
        e.k.wait(Pipe::V, Pipe::Mte2, 0);
        if self.kind == ReduceKind::ArgMax {
            return (linear, position);
        }
        if work == self.out_dtype {
            return (linear, best);
        }
        e.k.convert(work, self.out_dtype, partial, best, one);
        (linear, partial)
    }
}

/// The element type of a working type, for its identities.
fn reduce_dtype(work: DType) -> hal::DType {
    match work {
        DType::I32 => hal::DType::I32,
        DType::U32 => hal::DType::U32,
        DType::I64 => hal::DType::I64,
        DType::U8 => hal::DType::U8,
        DType::F32 | DType::F16 | DType::BF16 => hal::DType::F32,
    }
}
