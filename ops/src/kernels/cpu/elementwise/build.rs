//! From the steps of a cluster to instructions: pairs of steps, places of values, registers.

use super::Rep;
use super::casts::{self, Half};
use super::functions;
use super::lanes::{KernelFn, LANES};
use super::program::{Hazard, Instruction, Outputs, Program, Slot, Splat, Work};
use crate::cluster::{BinaryOp, Cluster, CompareOp, StepOp, UnaryOp, ValueId, View, contiguous_strides};
use crate::kernels::cpu::simd::{Isa, Portable, Simd};
use crate::lower::Unservable;
use halite_hal::DType;

/// Rows of at least this many points are processed one by one, so that operands of one row are read in place;
/// shorter ones are gathered, several to a chunk.
const LONG_ROW: usize = 192;

/// The loops of one instruction set.
struct Functions {
    unary: fn(UnaryOp, Rep, bool) -> Option<KernelFn>,
    binary: fn(BinaryOp, Rep) -> Option<KernelFn>,
    compare: fn(CompareOp, Rep) -> Option<KernelFn>,
    select: fn(usize) -> KernelFn,
    copy: fn(usize) -> KernelFn,
    compare_select: fn(CompareOp) -> KernelFn,
    then: fn(BinaryOp, BinaryOp, bool) -> Option<KernelFn>,
    then_one: fn(BinaryOp, UnaryOp) -> Option<KernelFn>,
    widen: fn(Half) -> KernelFn,
    narrow: fn(Half) -> KernelFn,
    round: fn(Half) -> KernelFn,
    non_zero: fn(Rep) -> KernelFn,
    to_odd: fn(Rep) -> Option<KernelFn>,
    convert: fn(Rep, Rep) -> Option<KernelFn>,
}

impl Functions {
    const fn of<S: Simd>() -> Self {
        Self {
            unary: functions::unary::<S>,
            binary: functions::binary::<S>,
            compare: functions::compare::<S>,
            select: functions::select::<S>,
            copy: functions::copy::<S>,
            compare_select: functions::compare_select::<S>,
            then: functions::then::<S>,
            then_one: functions::then_one::<S>,
            widen: casts::widen::<S>,
            narrow: casts::narrow::<S>,
            round: casts::round::<S>,
            non_zero: casts::non_zero::<S>,
            to_odd: casts::to_odd,
            convert: casts::convert::<S>,
        }
    }

    fn for_isa(isa: Isa) -> Self {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Self::of::<crate::kernels::cpu::simd::Avx512>(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Self::of::<crate::kernels::cpu::simd::Avx2>(),
            _ => Self::of::<Portable>(),
        }
    }
}

/// Where a value lies before registers are assigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Virtual(usize),
    Slot(Slot),
}

/// An instruction before registers are assigned.
#[derive(Debug, Clone, Copy)]
struct Draft {
    work: Work,
    dst: Place,
    dst_size: usize,
    src: [Option<(Place, usize)>; 4],
}

/// The value of a step, as far as it has been computed.
#[derive(Debug, Clone, Copy, Default)]
struct Value {
    /// In the type that programs compute in.
    computed: Option<Place>,
    /// As half-precision memory, where it was loaded so.
    raw: Option<Place>,
}

pub(super) struct Builder<'a> {
    functions: Functions,
    cluster: &'a Cluster,
    natural: Vec<i64>,
    row: usize,
    by_rows: bool,
    drafts: Vec<Draft>,
    values: Vec<Value>,
    /// How often a live step is used, stores included.
    uses: Vec<u32>,
    /// Steps that are computed by the instruction of their only user.
    absorbed: Vec<bool>,
    virtuals: usize,
    splats: Vec<(Splat, Rep)>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(isa: Isa, cluster: &'a Cluster, row: usize) -> Self {
        let natural = contiguous_strides(&cluster.shape);
        let mut uses = vec![0; cluster.steps.len()];
        cluster.outputs.iter().for_each(|output| uses[*output as usize] += 1);
        for id in (0..cluster.steps.len()).rev() {
            if uses[id] > 0 {
                cluster.steps[id].op.operands().for_each(|operand| uses[operand as usize] += 1);
            }
        }
        let mut builder = Self {
            functions: Functions::for_isa(isa.or_portable()),
            cluster,
            natural,
            row,
            by_rows: false,
            drafts: Vec::with_capacity(cluster.steps.len() + 4),
            values: vec![Value::default(); cluster.steps.len()],
            uses,
            absorbed: vec![false; cluster.steps.len()],
            virtuals: 0,
            splats: Vec::new(),
        };
        builder.by_rows = row >= LONG_ROW
            && cluster.inputs.iter().any(|view| !builder.is_linear(view) && !is_uniform(view));
        builder
    }

    fn is_linear(&self, view: &View) -> bool {
        (0..self.cluster.shape.len())
            .all(|axis| self.cluster.shape[axis] <= 1 || view.strides[axis] == self.natural[axis])
    }

    pub(super) fn build(&mut self, outputs: Outputs) -> Result<(Place, Rep), Unservable> {
        self.absorb();
        for id in 0..self.cluster.steps.len() {
            if self.uses[id] > 0 && !self.absorbed[id] {
                self.step(id)?;
            }
        }
        if outputs == Outputs::Keep {
            let Some(output) = self.cluster.outputs.first() else {
                return Err(Unservable::new("the program to reduce has no output"));
            };
            let rep = Rep::of(self.cluster.steps[*output as usize].dtype);
            return Ok((self.operand(*output), rep));
        }
        for (n, output) in self.cluster.outputs.iter().enumerate() {
            self.store(n as u16, *output);
        }
        Ok((Place::Slot(Slot::Output(0)), Rep::U8))
    }

    /// Finds the steps that the instruction of their only user computes as well.
    fn absorb(&mut self) {
        let steps = &self.cluster.steps;
        for (_, step) in steps.iter().enumerate().filter(|(id, _)| self.uses[*id] > 0) {
            let only_here =
                |value: ValueId| self.uses[value as usize] == 1 && !self.cluster.outputs.contains(&value);
            // A pair is only built from two plain steps.
            let plain = |value: ValueId| match steps[value as usize].op {
                StepOp::Binary(op, a, b)
                    if steps[value as usize].dtype == DType::F32
                        && only_here(value)
                        && !self.absorbed[a as usize]
                        && !self.absorbed[b as usize] =>
                {
                    Some(op)
                }
                _ => None,
            };
            let taken = match step.op {
                StepOp::Select(condition, ..)
                    if Rep::of(step.dtype) == Rep::F32
                        && only_here(condition)
                        && matches!(steps[condition as usize].op, StepOp::Compare(_, a, _)
                            if Rep::of(steps[a as usize].dtype) == Rep::F32) =>
                {
                    Some(condition)
                }
                StepOp::Unary(op, a) if step.dtype == DType::F32 => {
                    plain(a).and_then(|first| (self.functions.then_one)(first, op)).map(|_| a)
                }
                StepOp::Binary(op, a, b) if step.dtype == DType::F32 => {
                    let fits = |value, reversed| {
                        plain(value).and_then(|first| (self.functions.then)(first, op, reversed)).is_some()
                    };
                    if fits(a, false) {
                        Some(a)
                    } else if fits(b, true) {
                        Some(b)
                    } else {
                        None
                    }
                }
                _ => None,
            };
            if let Some(taken) = taken {
                self.absorbed[taken as usize] = true;
            }
        }
    }

    /// Emits the instructions of a step; loads wait until they are used.
    fn step(&mut self, id: usize) -> Result<(), Unservable> {
        let step = self.cluster.steps[id];
        let rep = Rep::of(step.dtype);
        let unwritten = || Unservable::new(format!("no loop is written for {:?} of {}", step.op, step.dtype));
        let place = match step.op {
            StepOp::Load(_) => return Ok(()),
            StepOp::Scalar(scalar) => self.splat(Splat::Scalar(scalar as u16), rep),
            StepOp::Constant(literal) => {
                let bits = match literal.dtype {
                    DType::F16 | DType::BF16 => u64::from((literal.to_f64() as f32).to_bits()),
                    DType::Bool => u64::from(literal.bits != 0),
                    _ => literal.bits,
                };
                self.splat(Splat::Constant(bits), rep)
            }
            StepOp::Index(axis) => {
                let place = self.emit(Work::Index(axis as u16, rep), rep.size(), &[]);
                self.rounded(place, step.dtype)
            }
            StepOp::Unary(op, a) if self.absorbed[a as usize] => {
                let StepOp::Binary(first, x, y) = self.cluster.steps[a as usize].op else {
                    return Err(unwritten());
                };
                let run = (self.functions.then_one)(first, op).ok_or_else(unwritten)?;
                let (x, y) = (self.operand(x), self.operand(y));
                self.emit(Work::Map(run), 4, &[(x, 4), (y, 4)])
            }
            StepOp::Unary(op, a) => {
                let run = (self.functions.unary)(op, rep, step.dtype == DType::Bool).ok_or_else(unwritten)?;
                let a = self.operand(a);
                let place = self.emit(Work::Map(run), rep.size(), &[(a, rep.size())]);
                let exact = matches!(
                    op,
                    UnaryOp::Neg
                        | UnaryOp::Abs
                        | UnaryOp::Sign
                        | UnaryOp::Floor
                        | UnaryOp::Ceil
                        | UnaryOp::Round
                );
                if exact { place } else { self.rounded(place, step.dtype) }
            }
            StepOp::Binary(op, a, b) if self.absorbed[a as usize] || self.absorbed[b as usize] => {
                let reversed = !self.absorbed[a as usize];
                let (inner, other) = if reversed { (b, a) } else { (a, b) };
                let StepOp::Binary(first, x, y) = self.cluster.steps[inner as usize].op else {
                    return Err(unwritten());
                };
                let run = (self.functions.then)(first, op, reversed).ok_or_else(unwritten)?;
                let (x, y, other) = (self.operand(x), self.operand(y), self.operand(other));
                self.emit(Work::Map(run), 4, &[(x, 4), (y, 4), (other, 4)])
            }
            StepOp::Binary(op, a, b) => {
                let run = (self.functions.binary)(op, rep).ok_or_else(unwritten)?;
                let (a, b) = (self.operand(a), self.operand(b));
                let place = self.emit(Work::Map(run), rep.size(), &[(a, rep.size()), (b, rep.size())]);
                if matches!(op, BinaryOp::Max | BinaryOp::Min) {
                    place
                } else {
                    self.rounded(place, step.dtype)
                }
            }
            StepOp::Compare(op, a, b) => {
                let operands = Rep::of(self.cluster.steps[a as usize].dtype);
                let run = (self.functions.compare)(op, operands).ok_or_else(unwritten)?;
                let (a, b) = (self.operand(a), self.operand(b));
                self.emit(Work::Map(run), 1, &[(a, operands.size()), (b, operands.size())])
            }
            StepOp::Select(condition, a, b) if self.absorbed[condition as usize] => {
                let StepOp::Compare(op, x, y) = self.cluster.steps[condition as usize].op else {
                    return Err(unwritten());
                };
                let run = (self.functions.compare_select)(op);
                let (x, y) = (self.operand(x), self.operand(y));
                let (a, b) = (self.operand(a), self.operand(b));
                self.emit(Work::Map(run), 4, &[(x, 4), (y, 4), (a, 4), (b, 4)])
            }
            StepOp::Select(condition, a, b) => {
                let run = (self.functions.select)(rep.size());
                let (condition, a, b) = (self.operand(condition), self.operand(a), self.operand(b));
                self.emit(Work::Map(run), rep.size(), &[(condition, 1), (a, rep.size()), (b, rep.size())])
            }
            StepOp::Cast(a) => self.cast(a, step.dtype),
            StepOp::Bitcast(a) => self.bitcast(a, step.dtype),
        };
        self.values[id].computed = Some(place);
        Ok(())
    }

    fn cast(&mut self, a: ValueId, to: DType) -> Place {
        let from = self.cluster.steps[a as usize].dtype;
        let place = self.operand(a);
        let (source, target) = (Rep::of(from), Rep::of(to));
        if from == to {
            return place;
        }
        if to == DType::Bool {
            return self.emit(Work::Map((self.functions.non_zero)(source)), 1, &[(place, source.size())]);
        }
        let odd = if half(to).is_some() { (self.functions.to_odd)(source) } else { None };
        let place = match odd.or_else(|| (self.functions.convert)(source, target)) {
            Some(run) => self.emit(Work::Map(run), target.size(), &[(place, source.size())]),
            None => place,
        };
        // Every f16 and bf16 is an f32, but not one of the other.
        self.rounded(place, to)
    }

    fn bitcast(&mut self, a: ValueId, to: DType) -> Place {
        let from = self.cluster.steps[a as usize].dtype;
        if from == to {
            return self.operand(a);
        }
        let memory = self.memory(a);
        if let Some(half) = half(to) {
            return self.emit(Work::Map((self.functions.widen)(half)), 4, &[(memory, 2)]);
        }
        if to == DType::Bool {
            return self.emit(Work::Map((self.functions.non_zero)(Rep::U8)), 1, &[(memory, 1)]);
        }
        memory
    }

    /// Rounds a value that was computed in f32 to a half-precision type.
    fn rounded(&mut self, place: Place, dtype: DType) -> Place {
        match half(dtype) {
            Some(half) => self.emit(Work::Map((self.functions.round)(half)), 4, &[(place, 4)]),
            None => place,
        }
    }

    /// The value of a step in the type that programs compute in.
    fn operand(&mut self, id: ValueId) -> Place {
        let index = id as usize;
        if let Some(place) = self.values[index].computed {
            return place;
        }
        let step = self.cluster.steps[index];
        let place = self.load(index);
        let place = match half(step.dtype) {
            Some(half) if !matches!(place, Place::Slot(Slot::Splat(_) | Slot::RowSplat(_))) => {
                self.values[index].raw = Some(place);
                self.emit(Work::Map((self.functions.widen)(half)), 4, &[(place, 2)])
            }
            _ => place,
        };
        self.values[index].computed = Some(place);
        place
    }

    /// The value of a step as it lies in memory.
    fn memory(&mut self, id: ValueId) -> Place {
        let index = id as usize;
        let Some(half) = half(self.cluster.steps[index].dtype) else {
            return self.operand(id);
        };
        if let Some(place) = self.values[index].raw {
            return place;
        }
        if self.values[index].computed.is_none() {
            let place = self.load(index);
            if !matches!(place, Place::Slot(Slot::Splat(_) | Slot::RowSplat(_))) {
                self.values[index].raw = Some(place);
                return place;
            }
            self.values[index].computed = Some(place);
        }
        let place = self.operand(id);
        self.emit(Work::Map((self.functions.narrow)(half)), 2, &[(place, 4)])
    }

    /// Where the elements of a load step lie: in memory format, but for blocks of equal elements.
    fn load(&mut self, id: usize) -> Place {
        let step = self.cluster.steps[id];
        let StepOp::Load(input) = step.op else {
            unreachable!("every other step is computed in order of the program");
        };
        if let Some(place) = self.values[id].raw {
            return place;
        }
        let view = &self.cluster.inputs[input as usize];
        let input = input as u16;
        if is_uniform(view) {
            return self.splat(Splat::Input(input), Rep::of(step.dtype));
        }
        if self.is_linear(view) {
            return Place::Slot(Slot::Input(input));
        }
        match view.strides.last() {
            Some(1) if self.by_rows => Place::Slot(Slot::Row(input)),
            Some(0) if self.by_rows => {
                self.splats.push((Splat::Row(input), Rep::of(step.dtype)));
                Place::Slot(Slot::RowSplat(self.splats.len() as u16 - 1))
            }
            _ => self.emit(Work::Gather(input), step.dtype.size(), &[]),
        }
    }

    fn splat(&mut self, splat: Splat, rep: Rep) -> Place {
        let known = self.splats.iter().position(|own| *own == (splat, rep));
        let index = known.unwrap_or_else(|| {
            self.splats.push((splat, rep));
            self.splats.len() - 1
        });
        Place::Slot(Slot::Splat(index as u16))
    }

    fn emit(&mut self, work: Work, dst_size: usize, operands: &[(Place, usize)]) -> Place {
        let dst = Place::Virtual(self.virtuals);
        self.virtuals += 1;
        let src = std::array::from_fn(|n| operands.get(n).copied());
        self.drafts.push(Draft { work, dst, dst_size, src });
        dst
    }

    /// Stores a value: by the instruction that computes it, if that is possible.
    fn store(&mut self, output: u16, id: ValueId) {
        let slot = Place::Slot(Slot::Output(output));
        let memory = self.memory(id);
        let size = self.cluster.steps[id as usize].dtype.size();
        if let Place::Virtual(_) = memory {
            for draft in &mut self.drafts {
                let places = std::iter::once(&mut draft.dst)
                    .chain(draft.src.iter_mut().flatten().map(|(place, _)| place));
                places.filter(|place| **place == memory).for_each(|place| *place = slot);
            }
            for value in &mut self.values {
                let places = [&mut value.computed, &mut value.raw];
                places
                    .into_iter()
                    .flatten()
                    .filter(|place| **place == memory)
                    .for_each(|place| *place = slot);
            }
            return;
        }
        let src = [Some((memory, size)), None, None, None];
        let work = Work::Map((self.functions.copy)(size));
        self.drafts.push(Draft { work, dst: slot, dst_size: size, src });
    }

    /// Assigns registers and numbers the slots.
    pub(super) fn finish(self, result: (Place, Rep)) -> Program {
        let mut last_use = vec![0usize; self.virtuals];
        for (at, draft) in self.drafts.iter().enumerate() {
            for place in draft.src.iter().flatten().map(|(place, _)| place).chain([&draft.dst]) {
                if let Place::Virtual(number) = place {
                    last_use[*number] = at;
                }
            }
        }
        if let Place::Virtual(number) = result.0 {
            last_use[number] = usize::MAX;
        }
        let mut assigned = vec![0u16; self.virtuals];
        let mut free: Vec<u16> = Vec::new();
        let mut registers = 0u16;
        let mut register_size = 1;
        let mut slots: Vec<Slot> = Vec::new();
        let mut number_of = |slot: Slot| {
            let known = slots.iter().position(|own| *own == slot);
            known.unwrap_or_else(|| {
                slots.push(slot);
                slots.len() - 1
            }) as u16
        };
        let mut code = Vec::with_capacity(self.drafts.len());
        for (at, draft) in self.drafts.iter().enumerate() {
            let mut src_slots = [None; 4];
            let mut dying: Vec<u16> = Vec::new();
            for (slot, (place, size)) in src_slots.iter_mut().zip(draft.src.iter().flatten()) {
                *slot = Some(match place {
                    Place::Slot(slot) => *slot,
                    Place::Virtual(number) => {
                        let register = assigned[*number];
                        if last_use[*number] == at && !dying.contains(&register) {
                            dying.push(register);
                            // The destination may take over an operand's register, block by block.
                            if *size == draft.dst_size {
                                free.push(register);
                            }
                        }
                        Slot::Register(register)
                    }
                });
            }
            let dst = match draft.dst {
                Place::Slot(slot) => slot,
                Place::Virtual(number) => {
                    register_size = register_size.max(draft.dst_size);
                    let register = free.pop().unwrap_or_else(|| {
                        registers += 1;
                        registers - 1
                    });
                    assigned[number] = register;
                    if last_use[number] == at {
                        dying.push(register);
                    }
                    Slot::Register(register)
                }
            };
            for register in dying {
                let taken = dst == Slot::Register(register)
                    && !matches!(draft.dst, Place::Virtual(n) if last_use[n] == at);
                if !taken && !free.contains(&register) {
                    free.push(register);
                }
            }
            let exact = dst.is_exact() || src_slots.iter().flatten().any(|slot| slot.is_exact());
            let dst = number_of(dst);
            code.push(Instruction {
                work: draft.work,
                dst,
                src: src_slots.map(|slot| slot.map_or(dst, &mut number_of)),
                dst_size: draft.dst_size as u8,
                src_size: draft.src.map(|operand| operand.map_or(0, |(_, size)| size as u8)),
                operands: draft.src.iter().flatten().count() as u8,
                exact,
            });
        }
        let result_slot = match result.0 {
            Place::Virtual(number) => number_of(Slot::Register(assigned[number])),
            Place::Slot(slot) => number_of(slot),
        };
        let hazards = hazards(self.cluster, &slots, &code, &mut registers, &mut register_size);
        Program {
            shape: Vec::new(),
            points: 0,
            row: self.row,
            by_rows: self.by_rows,
            chunk: LANES,
            views: Vec::new(),
            input_elements: Vec::new(),
            output_dtypes: Vec::new(),
            scalars: 0,
            slots,
            code,
            splats: self.splats,
            registers: usize::from(registers),
            register_size,
            hazards,
            result: (result_slot, result.1),
        }
    }
}

/// Inputs that are read after an output, which may be their memory, was written.
fn hazards(
    cluster: &Cluster,
    slots: &[Slot],
    code: &[Instruction],
    registers: &mut u16,
    register_size: &mut usize,
) -> Vec<Hazard> {
    let mut found = Vec::new();
    for (slot, input) in slots.iter().enumerate() {
        let Slot::Input(input) = *input else { continue };
        let view = &cluster.inputs[usize::from(input)];
        let reads = |instruction: &Instruction| {
            instruction.src[..usize::from(instruction.operands)].contains(&(slot as u16))
        };
        let Some(last_read) = code.iter().rposition(reads) else { continue };
        let mut register = None;
        for instruction in &code[..last_read] {
            let Slot::Output(output) = slots[usize::from(instruction.dst)] else { continue };
            if usize::from(instruction.dst_size) != view.dtype.size() || view.offset != 0 {
                continue;
            }
            let register = *register.get_or_insert_with(|| {
                *registers += 1;
                *register_size = (*register_size).max(view.dtype.size());
                *registers - 1
            });
            found.push(Hazard { output, input, slot: slot as u16, register });
        }
    }
    found
}

fn is_uniform(view: &View) -> bool {
    view.strides.iter().all(|stride| *stride == 0)
}

fn half(dtype: DType) -> Option<Half> {
    match dtype {
        DType::F16 => Some(Half::F16),
        DType::BF16 => Some(Half::Bf16),
        _ => None,
    }
}
