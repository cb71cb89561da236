//! Evaluates a fused elementwise program on a tile of its iteration space, with vector instructions in UB.
//!
//! Every value of the program lies in a slot of UB as one dense run of the tile's points. Slots are given to values
//! while they are live; scalars and constants stay operands of the instructions. A tile consists of rows (the first
//! part of the iteration space, which reductions keep) of `pitch` points each; programs without reduction have one row.

use crate::cluster::{BinaryOp, Cluster, CompareOp, Literal, StepOp, UnaryOp, ValueId};
use crate::lower::{LaunchArg, Unservable};
use halite_hal as hal;
use halite_npu_isa as isa;
use halite_npu_isa::{Access, DType, Dim, Inst, Operand, Pipe};

use super::emit::{ArgIndex, BLOCK, Emitter, ON_CHIP, imm, isa_dtype};
use super::part::{Located, Part, Span};

/// Dimensions of a transfer.
const DMA_DIMS: usize = 4;
/// Points of a tile that the profile does not choose.
const DEFAULT_CHUNK: usize = 4096;

/// A program with its types resolved and its tile sizes chosen.
pub(super) struct Evaluator<'a> {
    program: &'a Cluster,
    /// The machine's type of each step.
    dtypes: Vec<DType>,
    last_use: Vec<usize>,
    /// Rows of a tile.
    pub(super) kept: Part,
    /// Points of a row.
    pub(super) reduced: Part,
    /// Points from row to row.
    pub(super) pitch: usize,
    /// Bytes of a slot.
    pub(super) slot_bytes: usize,
}

/// The arguments of a program, in their order: inputs, outputs, scalars.
pub(super) struct Arguments {
    inputs: Vec<ArgIndex>,
    scalars: Vec<ArgIndex>,
}

impl Arguments {
    /// Declares the inputs; the caller declares the outputs next and the scalars last.
    pub(super) fn inputs(e: &mut Emitter, program: &Cluster) -> Self {
        let declare = |(n, view): (usize, &crate::cluster::View)| {
            e.buffer(LaunchArg::Input(n), view.dtype, Access::Read)
        };
        Self { inputs: program.inputs.iter().enumerate().map(declare).collect(), scalars: Vec::new() }
    }

    pub(super) fn scalars(&mut self, e: &mut Emitter, program: &Cluster) -> Result<(), Unservable> {
        for (n, &dtype) in program.scalars.iter().enumerate() {
            self.scalars.push(e.scalar(LaunchArg::Scalar(n), dtype)?);
        }
        Ok(())
    }
}

/// A tile whose place is known.
pub(super) struct Tile {
    pub(super) kept: Located,
    pub(super) reduced: Located,
    /// Rows.
    pub(super) rows: Operand,
    /// Points of all rows, with what pads them.
    points: Operand,
}

impl Tile {
    /// Points of all rows, with what pads them.
    pub(super) fn padded_points(&self) -> Operand {
        self.points
    }
}

/// Where a value of the program is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Place {
    /// A slot.
    Slot(usize),
    /// The bits of one element, in an operand.
    Scalar(Operand),
}

/// The slots of one buffer of UB. Peak use is counted, so that a trial run tells how many are needed.
#[derive(Default)]
pub(super) struct Slots {
    /// Live values in each slot.
    users: Vec<usize>,
}

impl Slots {
    pub(super) fn take(&mut self) -> usize {
        let free = self.users.iter().position(|&users| users == 0);
        let slot = free.unwrap_or_else(|| {
            self.users.push(0);
            self.users.len() - 1
        });
        self.users[slot] = 1;
        slot
    }

    pub(super) fn share(&mut self, slot: usize) {
        self.users[slot] += 1;
    }

    pub(super) fn release(&mut self, slot: usize) {
        self.users[slot] -= 1;
    }
}

impl<'a> Evaluator<'a> {
    /// Chooses tiles of about `chunk` points for a program whose first `kept_rank` axes are kept and whose rows must
    /// start at blocks for elements of `row_dtype`. `extra` slots are left for the caller.
    pub(super) fn new(
        program: &'a Cluster,
        kept_rank: usize,
        row_dtype: DType,
        chunk: Option<u32>,
        extra: usize,
    ) -> Result<Self, Unservable> {
        let dtypes = program.steps.iter().map(|step| isa_dtype(step.dtype)).collect::<Result<Vec<_>, _>>()?;
        let mut last_use = vec![0; program.steps.len()];
        for (id, step) in program.steps.iter().enumerate() {
            last_use[id] = id;
            step.op.operands().for_each(|operand| last_use[operand as usize] = id);
        }
        program.outputs.iter().for_each(|&output| last_use[output as usize] = usize::MAX);
        let none = || Part::new(&[], 0, 1, 1);
        let mut evaluator =
            Self { program, dtypes, last_use, kept: none(), reduced: none(), pitch: 1, slot_bytes: BLOCK };

        let slots = evaluator.count_slots() + extra;
        let widest = evaluator.dtypes.iter().map(|dtype| dtype.size()).max().unwrap_or(4).max(4);
        let slot_bytes = ON_CHIP.ub / 2 / slots / BLOCK * BLOCK;
        let chunk = chunk.map_or(DEFAULT_CHUNK, |chunk| chunk as usize).max(BLOCK);
        let points = chunk.min(slot_bytes / widest) / BLOCK * BLOCK;
        if points == 0 {
            let live = slots - extra;
            return Err(Unservable::new(format!(
                "{live} live values do not fit in the npu's unified buffer"
            )));
        }
        let (kept_shape, reduced_shape) = program.shape.split_at(kept_rank);
        let reduced_dims = reduced_shape.len().min(DMA_DIMS - kept_rank.min(1));
        evaluator.reduced = Part::new(reduced_shape, kept_rank, points, reduced_dims.max(1));
        let row_len = evaluator.reduced.max_len().max(1);
        let unit = if kept_rank == 0 { 1 } else { BLOCK / row_dtype.size() };
        evaluator.pitch = row_len.next_multiple_of(unit);
        // Rows beside each other pay only if a tile holds whole ones.
        let rows = if evaluator.reduced.tiles() == 1 { (points / evaluator.pitch).max(1) } else { 1 };
        evaluator.kept = Part::new(kept_shape, 0, rows, (DMA_DIMS - reduced_dims.min(3)).max(1));
        evaluator.slot_bytes = points * widest;
        Ok(evaluator)
    }

    /// The place of a tile, given its numbers among the kept and the reduced axes.
    pub(super) fn locate(&self, e: &mut Emitter, kept: Operand, reduced: Operand) -> Tile {
        let kept = self.kept.locate(e, kept);
        let reduced = self.reduced.locate(e, reduced);
        let rows = kept.len;
        let points = if rows == Operand::Imm(1) { reduced.len } else { e.k.mul(rows, imm(self.pitch)) };
        Tile { kept, reduced, rows, points }
    }

    fn count_slots(&self) -> usize {
        // Places of slots do not matter for their number.
        let mut e = Emitter::new("trial", isa::CoreKind::Vector);
        let mut arguments = Arguments::inputs(&mut e, self.program);
        if arguments.scalars(&mut e, self.program).is_err() {
            return 1;
        }
        let mut slots = Slots::default();
        let trial = Located { starts: Vec::new(), count: imm(1), len: imm(1), linear: imm(0) };
        let same = Located { starts: Vec::new(), count: imm(1), len: imm(1), linear: imm(0) };
        let tile = Tile { kept: trial, reduced: same, rows: imm(1), points: imm(1) };
        let mut run = Run::new(self, &mut e, &arguments, &tile, &mut slots, 0);
        run.loads();
        run.steps();
        for &output in &self.program.outputs {
            run.in_slot(output);
        }
        slots.users.len().max(1)
    }

    /// Emits the loads of a tile, lets the vector unit wait for them, and emits the program. Returns the place of each
    /// output; the slots hold until the caller releases them.
    pub(super) fn emit(
        &self,
        e: &mut Emitter,
        arguments: &Arguments,
        tile: &Tile,
        slots: &mut Slots,
        buffer: usize,
    ) -> Vec<usize> {
        let mut run = Run::new(self, e, arguments, tile, slots, buffer);
        run.loads();
        run.e.k.sync(Pipe::Mte2, Pipe::V, imm(buffer));
        run.steps();
        let outputs = self.program.outputs.iter();
        outputs.map(|&output| run.in_slot(output)).collect()
    }

    /// Address of a slot in one of the two buffers.
    pub(super) fn slot_at(&self, buffer: usize, slot: usize) -> Operand {
        imm(buffer * ON_CHIP.ub / 2 + slot * self.slot_bytes)
    }

    /// The machine's type of an output.
    pub(super) fn output_dtype(&self, output: usize) -> DType {
        self.dtypes[self.program.outputs[output] as usize]
    }

    /// Dimensions of a transfer of the tile, where neighbours on each axis are `strides` elements apart in memory.
    pub(super) fn dims(&self, tile: &Tile, strides: &[i64], size: usize, loads: bool) -> Vec<Dim> {
        let mut spans: Vec<(Span, usize)> = Vec::new();
        spans.extend(self.kept.spans(&tile.kept).into_iter().map(|span| (span, self.pitch)));
        spans.extend(self.reduced.spans(&tile.reduced).into_iter().map(|span| (span, 1)));
        let size = size as i64;
        let mut dims: Vec<(Operand, i64, i64)> = Vec::new();
        for (span, pitch) in spans {
            let (global, local) = (strides[span.axis] * size, (span.step * pitch) as i64 * size);
            if span.count == imm(1) {
                continue;
            }
            if let (Some(last), Some(count)) = (dims.last_mut(), span.count.imm())
                && last.1 == global * i64::from(count)
                && last.2 == local * i64::from(count)
                && let Some(outer) = last.0.imm()
            {
                *last = (Operand::Imm(outer * count), global, local);
                continue;
            }
            dims.push((span.count, global, local));
        }
        let dim = |(count, global, local): (Operand, i64, i64)| {
            // Strides of more than 2^31 bytes are refused by the caller, see `check_strides`.
            let (global, local) = (Operand::Imm(global as i32), Operand::Imm(local as i32));
            if loads { Dim::new(count, global, local) } else { Dim::new(count, local, global) }
        };
        dims.into_iter().map(dim).collect()
    }

    /// Refuses views whose strides do not fit in an instruction.
    pub(super) fn check_strides<'s>(strides: impl IntoIterator<Item = &'s i64>) -> Result<(), Unservable> {
        let fits = |stride: &&i64| i32::try_from(**stride * 8).is_ok();
        match strides.into_iter().find(|stride| !fits(stride)) {
            Some(stride) => {
                Err(Unservable::new(format!("a stride of {stride} elements is too long for the npu")))
            }
            None => Ok(()),
        }
    }
}

/// Up to four dimensions, filled up with ones.
pub(super) fn dims4(dims: &[Dim]) -> [Dim; DMA_DIMS] {
    let mut all = [Dim::ONE; DMA_DIMS];
    all[DMA_DIMS - dims.len()..].copy_from_slice(dims);
    all
}

/// One emission of the program.
struct Run<'r, 'a> {
    evaluator: &'r Evaluator<'a>,
    e: &'r mut Emitter,
    arguments: &'r Arguments,
    tile: &'r Tile,
    slots: &'r mut Slots,
    buffer: usize,
    places: Vec<Option<Place>>,
}

impl<'r, 'a> Run<'r, 'a> {
    fn new(
        evaluator: &'r Evaluator<'a>,
        e: &'r mut Emitter,
        arguments: &'r Arguments,
        tile: &'r Tile,
        slots: &'r mut Slots,
        buffer: usize,
    ) -> Self {
        let places = vec![None; evaluator.program.steps.len()];
        Self { evaluator, e, arguments, tile, slots, buffer, places }
    }

    fn at(&self, slot: usize) -> Operand {
        self.evaluator.slot_at(self.buffer, slot)
    }

    fn loads(&mut self) {
        for (id, step) in self.evaluator.program.steps.iter().enumerate() {
            let StepOp::Load(input) = step.op else { continue };
            let slot = self.slots.take();
            self.places[id] = Some(Place::Slot(slot));
            let (evaluator, tile) = (self.evaluator, self.tile);
            let view = &evaluator.program.inputs[input as usize];
            let dtype = evaluator.dtypes[id];
            let size = dtype.size() as i64;
            let starts = evaluator.kept.starts(&tile.kept).chain(evaluator.reduced.starts(&tile.reduced));
            let terms: Vec<_> = starts.map(|(axis, start)| (start, view.strides[axis] * size)).collect();
            let dst = self.at(slot);
            let input = self.arguments.inputs[input as usize];
            self.e.scope(|e| {
                let src = e.address(input, view.offset * size, &terms);
                let dims = evaluator.dims(tile, &view.strides, dtype.size(), true);
                e.k.load_ub(dtype, dst, src, dims4(&dims));
            });
        }
    }

    fn steps(&mut self) {
        for id in 0..self.evaluator.program.steps.len() {
            let op = self.evaluator.program.steps[id].op;
            let place = match op {
                StepOp::Load(_) => None,
                StepOp::Scalar(n) => {
                    Some(Place::Scalar(self.e.load(self.arguments.scalars[n as usize]).into()))
                }
                StepOp::Constant(literal) => Some(Place::Scalar(self.constant(literal))),
                StepOp::Index(axis) => Some(self.index(id, axis as usize)),
                StepOp::Unary(op, a) => Some(self.unary(id, op, a)),
                StepOp::Binary(op, a, b) => Some(self.binary(id, op, a, b)),
                StepOp::Compare(op, a, b) => Some(self.compare(id, op, a, b)),
                StepOp::Select(mask, a, b) => Some(self.select(id, mask, a, b)),
                StepOp::Cast(a) => Some(self.cast(id, a)),
                StepOp::Bitcast(a) => Some(self.alias(a)),
            };
            self.places[id] = place.or(self.places[id]);
            let mut operands: Vec<ValueId> = op.operands().collect();
            operands.sort_unstable();
            operands.dedup();
            operands.push(id as ValueId);
            for value in operands {
                if self.evaluator.last_use[value as usize] <= id {
                    self.forget(value);
                }
            }
        }
    }

    fn forget(&mut self, value: ValueId) {
        if let Some(Place::Slot(slot)) = self.places[value as usize].take() {
            self.slots.release(slot);
        }
    }

    fn place(&self, value: ValueId) -> Place {
        self.places[value as usize].expect("operands come before their uses")
    }

    /// The value's slot; a scalar is spread over one, which the value then keeps.
    fn in_slot(&mut self, value: ValueId) -> usize {
        match self.place(value) {
            Place::Slot(slot) => slot,
            Place::Scalar(scalar) => {
                let slot = self.slots.take();
                let dtype = self.evaluator.dtypes[value as usize];
                let dst = self.at(slot);
                self.e.k.duplicate(dtype, dst, scalar, self.tile.points);
                self.places[value as usize] = Some(Place::Slot(slot));
                slot
            }
        }
    }

    /// A slot for the result of step `id`: an operand's own if this is its last use and it is wide enough.
    fn result(&mut self, id: usize, operands: &[ValueId]) -> usize {
        let size = self.evaluator.dtypes[id].size();
        for &operand in operands {
            if let Some(Place::Slot(slot)) = self.places[operand as usize]
                && self.evaluator.last_use[operand as usize] == id
                && self.evaluator.dtypes[operand as usize].size() >= size
                && self.slots.users[slot] == 1
            {
                self.slots.share(slot);
                return slot;
            }
        }
        self.slots.take()
    }

    fn alias(&mut self, value: ValueId) -> Place {
        let place = self.place(value);
        if let Place::Slot(slot) = place {
            self.slots.share(slot);
        }
        place
    }

    fn constant(&mut self, literal: Literal) -> Operand {
        // 32 bits and fewer fit in the instruction as they are.
        match literal.dtype.size() {
            8 => self.e.k.value(literal.bits.cast_signed()),
            _ => Operand::Imm((literal.bits as u32).cast_signed()),
        }
    }

    /// The index on an axis: from the axes' starts, and for axes that the tile spans from the number of the point.
    fn index(&mut self, id: usize, axis: usize) -> Place {
        let (evaluator, tile) = (self.evaluator, self.tile);
        let dtype = evaluator.dtypes[id];
        let spans_kept =
            evaluator.kept.spans(&tile.kept).into_iter().map(|span| (span, evaluator.pitch, false));
        let spans_reduced = evaluator.reduced.spans(&tile.reduced).into_iter().map(|span| (span, 1, true));
        let span = spans_kept.chain(spans_reduced).find(|(span, ..)| span.axis == axis);
        let starts = evaluator.kept.starts(&tile.kept).chain(evaluator.reduced.starts(&tile.reduced));
        let start = starts.filter(|&(of, _)| of == axis).map(|(_, start)| start).next();
        let slot = self.slots.take();
        let dst = self.at(slot);
        let count = tile.points;
        let (span, pitch, in_row) = match span {
            // An axis with one index in the tile.
            None => {
                let start = start.unwrap_or(Operand::ZERO);
                self.e.k.push(Inst::Iota { dtype, dst, start, step: Operand::ZERO, count });
                return Place::Slot(slot);
            }
            Some(found) => found,
        };
        let step = span.step * pitch;
        let start = start.unwrap_or(Operand::ZERO);
        if step == 1
            && in_row
            && tile.rows == imm(1)
            && evaluator.program.shape.len() == axis + 1
            && self.is_whole(axis)
        {
            self.e.k.push(Inst::Iota { dtype, dst, start, step: imm(1), count });
            return Place::Slot(slot);
        }
        let integer = DType::I32;
        let wide = if dtype == integer { slot } else { self.slots.take() };
        let at = self.at(wide);
        self.e.k.push(Inst::Iota { dtype: integer, dst: at, start: Operand::ZERO, step: imm(1), count });
        if in_row && tile.rows != imm(1) {
            self.e.k.binary_scalar(isa::BinaryOp::Rem, integer, at, at, imm(evaluator.pitch), count);
        }
        if step > 1 {
            self.e.k.binary_scalar(isa::BinaryOp::Div, integer, at, at, imm(step), count);
        }
        if !self.is_cut(axis) {
            self.e.k.binary_scalar(isa::BinaryOp::Rem, integer, at, at, span.count, count);
        } else if start != Operand::ZERO {
            self.e.k.binary_scalar(isa::BinaryOp::Add, integer, at, at, start, count);
        }
        if wide != slot {
            self.e.k.convert(integer, dtype, dst, at, count);
            self.slots.release(wide);
        }
        Place::Slot(slot)
    }

    /// Whether the tile's index on `axis` starts anywhere: it is the axis along which its part is cut.
    fn is_cut(&self, axis: usize) -> bool {
        let (evaluator, tile) = (self.evaluator, self.tile);
        let mut starts = evaluator.kept.starts(&tile.kept).chain(evaluator.reduced.starts(&tile.reduced));
        starts.any(|(of, _)| of == axis)
    }

    /// Whether `axis` is the only one that the tile spans.
    fn is_whole(&self, axis: usize) -> bool {
        let spans = self.evaluator.reduced.spans(&self.tile.reduced);
        spans.len() == 1 && spans[0].axis == axis
    }

    fn unary(&mut self, id: usize, op: UnaryOp, a: ValueId) -> Place {
        let src_slot = self.in_slot(a);
        let slot = self.result(id, &[a]);
        let (dst, src, count) = (self.at(slot), self.at(src_slot), self.tile.points);
        let dtype = self.evaluator.dtypes[id];
        let op = match op {
            UnaryOp::Neg => isa::UnaryOp::Neg,
            UnaryOp::Abs => isa::UnaryOp::Abs,
            UnaryOp::Sign => isa::UnaryOp::Sign,
            UnaryOp::Floor => isa::UnaryOp::Floor,
            UnaryOp::Ceil => isa::UnaryOp::Ceil,
            UnaryOp::Round => isa::UnaryOp::Round,
            UnaryOp::Exp => isa::UnaryOp::Exp,
            UnaryOp::Log => isa::UnaryOp::Log,
            UnaryOp::Sqrt => isa::UnaryOp::Sqrt,
            UnaryOp::Rsqrt => isa::UnaryOp::Rsqrt,
            UnaryOp::Sin => isa::UnaryOp::Sin,
            UnaryOp::Cos => isa::UnaryOp::Cos,
            UnaryOp::Tanh => isa::UnaryOp::Tanh,
            UnaryOp::Not if self.evaluator.program.steps[id].dtype == hal::DType::U8 => {
                // The machine's complement of a byte is a boolean's.
                self.e.k.binary_scalar(isa::BinaryOp::Xor, dtype, dst, src, 0xFF, count);
                return Place::Slot(slot);
            }
            UnaryOp::Not => isa::UnaryOp::Not,
        };
        self.e.k.unary(op, dtype, dst, src, count);
        Place::Slot(slot)
    }

    fn binary(&mut self, id: usize, op: BinaryOp, a: ValueId, b: ValueId) -> Place {
        let op = match op {
            BinaryOp::Add => isa::BinaryOp::Add,
            BinaryOp::Sub => isa::BinaryOp::Sub,
            BinaryOp::Mul => isa::BinaryOp::Mul,
            BinaryOp::Div => isa::BinaryOp::Div,
            BinaryOp::Rem => isa::BinaryOp::Rem,
            BinaryOp::Pow => isa::BinaryOp::Pow,
            BinaryOp::Max => isa::BinaryOp::Max,
            BinaryOp::Min => isa::BinaryOp::Min,
            BinaryOp::And => isa::BinaryOp::And,
            BinaryOp::Or => isa::BinaryOp::Or,
            BinaryOp::Xor => isa::BinaryOp::Xor,
            BinaryOp::Shl => isa::BinaryOp::Shl,
            BinaryOp::Shr => isa::BinaryOp::Shr,
        };
        let (dtype, count) = (self.evaluator.dtypes[id], self.tile.points);
        if let (Place::Scalar(_), Place::Scalar(_)) = (self.place(a), self.place(b)) {
            self.in_slot(a);
        }
        match (self.place(a), self.place(b)) {
            (Place::Slot(src), Place::Scalar(scalar)) | (Place::Scalar(scalar), Place::Slot(src)) => {
                let reverse = matches!(self.place(a), Place::Scalar(_));
                let slot = self.result(id, &[a, b]);
                let (dst, src) = (self.at(slot), self.at(src));
                self.e.k.push(Inst::BinaryScalar { op, dtype, reverse, dst, src, scalar, count });
                Place::Slot(slot)
            }
            _ => {
                let (lhs, rhs) = (self.in_slot(a), self.in_slot(b));
                let slot = self.result(id, &[a, b]);
                let (dst, lhs, rhs) = (self.at(slot), self.at(lhs), self.at(rhs));
                self.e.k.binary(op, dtype, dst, lhs, rhs, count);
                Place::Slot(slot)
            }
        }
    }

    fn compare(&mut self, id: usize, op: CompareOp, a: ValueId, b: ValueId) -> Place {
        let (dtype, count) = (self.evaluator.dtypes[a as usize], self.tile.points);
        let (straight, mirrored) = match op {
            CompareOp::Eq => (isa::CompareOp::Eq, isa::CompareOp::Eq),
            CompareOp::Lt => (isa::CompareOp::Lt, isa::CompareOp::Gt),
            CompareOp::Le => (isa::CompareOp::Le, isa::CompareOp::Ge),
        };
        if let (Place::Scalar(_), Place::Scalar(_)) = (self.place(a), self.place(b)) {
            self.in_slot(a);
        }
        match (self.place(a), self.place(b)) {
            (Place::Slot(src), Place::Scalar(scalar)) | (Place::Scalar(scalar), Place::Slot(src)) => {
                let op = if matches!(self.place(a), Place::Scalar(_)) { mirrored } else { straight };
                let slot = self.result(id, &[a, b]);
                let (dst, src) = (self.at(slot), self.at(src));
                self.e.k.push(Inst::CompareScalar { op, dtype, dst, src, scalar, count });
                Place::Slot(slot)
            }
            _ => {
                let (lhs, rhs) = (self.in_slot(a), self.in_slot(b));
                let slot = self.result(id, &[a, b]);
                let (dst, lhs, rhs) = (self.at(slot), self.at(lhs), self.at(rhs));
                self.e.k.compare(straight, dtype, dst, lhs, rhs, count);
                Place::Slot(slot)
            }
        }
    }

    fn select(&mut self, id: usize, mask: ValueId, a: ValueId, b: ValueId) -> Place {
        let (m, lhs, rhs) = (self.in_slot(mask), self.in_slot(a), self.in_slot(b));
        let slot = self.result(id, &[a, b]);
        let (dst, m, lhs, rhs) = (self.at(slot), self.at(m), self.at(lhs), self.at(rhs));
        self.e.k.select(self.evaluator.dtypes[id], dst, m, lhs, rhs, self.tile.points);
        Place::Slot(slot)
    }

    fn cast(&mut self, id: usize, a: ValueId) -> Place {
        let (from, to) = (self.evaluator.dtypes[a as usize], self.evaluator.dtypes[id]);
        let steps = &self.evaluator.program.steps;
        let (is_from_bool, is_to_bool) =
            (steps[a as usize].dtype == hal::DType::Bool, steps[id].dtype == hal::DType::Bool);
        if from == to && (is_from_bool || !is_to_bool) {
            return self.alias(a);
        }
        let src = self.in_slot(a);
        let slot = self.result(id, &[a]);
        let (dst, src, count) = (self.at(slot), self.at(src), self.tile.points);
        if is_to_bool {
            let (op, scalar) = (isa::CompareOp::Ne, Operand::ZERO);
            self.e.k.push(Inst::CompareScalar { op, dtype: from, dst, src, scalar, count });
        } else {
            self.e.k.convert(from, to, dst, src, count);
        }
        Place::Slot(slot)
    }
}
