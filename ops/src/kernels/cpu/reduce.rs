//! Reductions of an elementwise program: sum, product, largest, smallest, index of the largest.
//!
//! The program runs chunk by chunk like an elementwise one ([`elementwise`](super::elementwise)), and each chunk is
//! folded while it is in the L1 cache. The order of the axes is chosen so that the innermost one is read in order:
//!
//! - *rows*: the innermost axis is reduced; a run of elements folds to one number, in 128 lanes and then by a tree.
//! - *columns*: the innermost axis is kept; whole rows are added to a row of accumulators, in batches of 64.
//! - *folded columns*: the innermost axis is reduced, but too short or too scattered for rows (the gradient of a bias
//!   per channel: `[N, C, H * W]` to `[C]`); it is treated as kept, and its accumulators are folded at the end.
//!
//! Launch: a grid `[groups, segments, 1]`. Few results of many elements are cut into segments, whose partial results
//! go through the workspace to a second launch. The cuts depend on the sizes alone, so the result does not depend on
//! the number of threads. Scratch: the program's registers and the accumulators. Parameters: `chunk`.
//!
//! Accuracy of f32 sums of n elements: the error is at most `(128 + n / 64) * 2^-24` times the sum of absolute values
//! in columns and `128 * 2^-24` times it in rows; it is usually far below.

mod fold;
#[cfg(test)]
pub(crate) mod tests;

use super::elementwise::machine::{Machine, argument};
use super::elementwise::program::{Outputs, Program};
use super::elementwise::{Rep, next_chunk, shares, well_shaped};
use super::simd::Isa;
use super::{requirements, supports};
use crate::cluster::{Cluster, StepOp, View};
use crate::lower::{
    KernelOp, KernelVariant, Launch, LaunchArg, LowerRequest, Lowered, ReduceKind, Reduction, Unservable,
};
use fold::{Loops, is_larger, position};
use half::{bf16, f16};
use halite_hal::{Access, ArgType, DType, KernelSource, NativeKernel, Signature, Workgroup};
use halite_profiles::Size;
use std::sync::Arc;

/// Points times instructions from which on few results are worth segments, and those of one segment.
const SEGMENT_WORK: usize = 1 << 18;

/// Results (or blocks of columns) that are enough to keep cores busy without segments.
const ENOUGH_RESULTS: usize = 16;

/// Most segments.
const MAX_SEGMENTS: usize = 64;

/// Rows of at most this many elements are folded several side by side.
const SHORT_ROW: usize = 32;

/// Most accumulators of a block of columns.
const MAX_WIDTH: usize = 4096;

/// The longest run of reduced elements that is kept as columns and folded at the end.
const LONGEST_FOLD: usize = 1024;

/// Rows that are added to one row of accumulators before it is added to the total.
const BATCH: usize = 64;

/// The variants of `reduce`, best first.
pub fn variants() -> Vec<KernelVariant> {
    let of = |isa: Isa| {
        KernelVariant::new("reduce", isa.name(), "native", requirements(isa), move |request| {
            let KernelOp::Reduce(reduction) = request.op else {
                return Err(Unservable::new(format!("{} is no reduction", request.op.name())));
            };
            lower(isa, reduction, request)
        })
        .with_sizes([Size::Chunk])
        .with_candidates(super::elementwise::chunks())
    };
    Isa::ALL.into_iter().rev().map(of).collect()
}

/// How a reduction goes through its points, which are counted row-major over `[outer, length, inner]`; the program's
/// points stand in this order. Rows have `inner` 1; columns have one result per `fold` inner points.
#[derive(Debug)]
struct Plan {
    kind: ReduceKind,
    program: Program,
    loops: Loops,
    rep: Rep,
    identity: u64,
    outer: usize,
    length: usize,
    inner: usize,
    fold: usize,
    /// Elements of a segment along `length`, and how many segments there are.
    segment: usize,
    segments: usize,
    /// Columns of a block, and how many rows of it lie side by side in the accumulators.
    width: usize,
    side_by_side: usize,
    /// Rows (or blocks of columns) of one workgroup.
    share: usize,
    groups: u32,
    /// What is written: the result's type, or that of the accumulators when there are segments.
    out_dtype: DType,
    first_scalar: usize,
}

fn lower(isa: Isa, reduction: &Reduction, request: &LowerRequest<'_>) -> Result<Lowered, Unservable> {
    supports(isa)?;
    let program = &reduction.program;
    well_shaped(program)?;
    let rank = program.shape.len();
    let [output] = program.outputs[..] else {
        return Err(Unservable::new(format!(
            "a reduction has one program output, not {}",
            program.outputs.len()
        )));
    };
    let Some(dtype) = program.steps.get(output as usize).map(|step| step.dtype) else {
        return Err(Unservable::new(format!("the program stores step {output}, which it does not have")));
    };
    if reduction.kept_rank > rank {
        return Err(Unservable::new(format!("{} axes are kept of {rank}", reduction.kept_rank)));
    }
    let expected = if reduction.kind == ReduceKind::ArgMax { DType::I32 } else { dtype };
    if reduction.dtype != expected {
        return Err(Unservable::new(format!(
            "the result is {} where it must be {expected}",
            reduction.dtype
        )));
    }
    if dtype == DType::Bool && matches!(reduction.kind, ReduceKind::Sum | ReduceKind::Prod) {
        return Err(Unservable::new("bool has no sum or product; cast first"));
    }
    let elements: Vec<usize> = request.inputs.iter().map(|tensor| tensor.elements()).collect();
    let cores = request.device.compute_units as usize;
    let chunk = request.parameters.int("chunk");
    let kept: usize = program.shape[..reduction.kept_rank].iter().product();
    if kept == 0 {
        return Ok(Lowered::default());
    }
    let plan = Plan::new(isa, reduction, dtype, &elements, cores, chunk, MAX_SEGMENTS)?;
    let (segments, partial) = (plan.segments, plan.out_dtype);
    let inputs: Vec<LaunchArg> = (0..program.inputs.len()).map(LaunchArg::Input).collect();
    let scalars: Vec<LaunchArg> = (0..program.scalars.len()).map(LaunchArg::Scalar).collect();
    if segments == 1 {
        return Ok(Lowered::single(plan.launch(isa, program, &inputs, &[LaunchArg::Output(0)], &scalars)));
    }
    let cells = segments * kept;
    let len = (cells * partial.size()) as u64;
    let values = LaunchArg::Workspace { offset: 0, len };
    if reduction.kind == ReduceKind::ArgMax {
        let offset = len.next_multiple_of(64);
        let indices = LaunchArg::Workspace { offset, len: cells as u64 * 4 };
        let first = plan.launch(isa, program, &inputs, &[values, indices], &scalars);
        let second = choose_segment(isa, Rep::of(dtype), partial, segments, kept, values, indices);
        return Ok(Lowered { launches: vec![first, second], workspace_bytes: offset + cells as u64 * 4 });
    }
    let first = plan.launch(isa, program, &inputs, &[values], &scalars);
    let view = View { dtype: partial, offset: 0, strides: vec![1, kept as i64] };
    let over_segments = Cluster::copy(&[kept, segments], view);
    let second = Reduction { kind: reduction.kind, program: over_segments, kept_rank: 1, dtype: partial };
    let mut plan = Plan::new(isa, &second, partial, &[cells], cores, chunk, 1)?;
    plan.out_dtype = dtype;
    let second = plan.launch(isa, &second.program, &[values], &[LaunchArg::Output(0)], &[]);
    Ok(Lowered { launches: vec![first, second], workspace_bytes: len })
}

/// A dtype that accumulators of `dtype` can be stored in.
fn accumulator(dtype: DType) -> DType {
    match dtype {
        DType::F16 | DType::BF16 => DType::F32,
        other => other,
    }
}

impl Plan {
    fn new(
        isa: Isa,
        reduction: &Reduction,
        dtype: DType,
        elements: &[usize],
        cores: usize,
        chunk: Option<u32>,
        most_segments: usize,
    ) -> Result<Self, Unservable> {
        let kind = reduction.kind;
        let shape = &reduction.program.shape;
        let Order { axes, by_columns, fold } = order_axes(reduction);
        let ordered = collapsed(&reduction.program, &axes);
        let columns = reduction.kept_rank.checked_sub(1).filter(|_| by_columns).map_or(1, |axis| shape[axis]);
        let kept: usize = shape[..reduction.kept_rank].iter().product();
        let points = kept.saturating_mul(shape[reduction.kept_rank..].iter().product());
        let (outer, inner) = (kept / columns.max(1), columns * fold);
        let length = points / kept.max(1) / fold;
        let program = Program::compile(isa, ordered, elements, chunk, Outputs::Keep)?;
        let rep = program.result_rep();

        let width = inner.min((MAX_WIDTH / fold).max(1) * fold);
        let blocks = if by_columns { outer * inner.div_ceil(width) } else { kept };
        // One instruction more stands for the folding.
        let instructions = program.instructions() + 1;
        let work = points.saturating_mul(instructions);
        let segments =
            if blocks >= ENOUGH_RESULTS { 1 } else { (work / SEGMENT_WORK).clamp(1, most_segments) };
        // Segments of rows begin with a chunk, so that they are read as evenly as the whole would be.
        let unit = if by_columns { BATCH } else { program.chunk };
        let segment = length.div_ceil(segments).next_multiple_of(if segments > 1 { unit } else { 1 });
        let segments = length.div_ceil(segment.max(1)).max(1);

        let narrow = by_columns && fold == 1 && inner < 64 && !program.by_rows && inner * 16 <= program.chunk;
        let per_block = work / blocks.max(1) / segments;
        let (groups, points) = shares(blocks.saturating_mul(per_block.max(1)), 1, cores);
        let share = points.div_ceil(per_block.max(1)).max(1);
        let groups = if groups == 0 { 0 } else { blocks.div_ceil(share) };
        Ok(Self {
            kind,
            loops: Loops::new(isa.or_portable(), kind, rep),
            rep,
            identity: identity(kind, dtype),
            outer,
            length,
            inner,
            fold,
            segment,
            segments,
            width,
            side_by_side: if narrow { 16 } else { 1 },
            share,
            groups: u32::try_from(groups)
                .map_err(|_| Unservable::new(format!("{kept} results are more than a grid holds")))?,
            out_dtype: if segments > 1 { accumulator(dtype) } else { reduction.dtype },
            first_scalar: 0,
            program,
        })
    }

    /// Elements of a row of accumulators.
    fn accumulators(&self) -> usize {
        if self.inner == 1 && self.side_by_side == 1 { 0 } else { self.width * self.side_by_side }
    }

    fn launch(
        mut self,
        isa: Isa,
        program: &Cluster,
        inputs: &[LaunchArg],
        outputs: &[LaunchArg],
        scalars: &[LaunchArg],
    ) -> Launch {
        let buffer = |dtype, access| ArgType::Buffer { dtype, access };
        self.first_scalar = inputs.len() + outputs.len();
        let mut types: Vec<ArgType> =
            program.inputs.iter().map(|view| buffer(view.dtype, Access::Read)).collect();
        types.push(buffer(self.out_dtype, Access::Write));
        if outputs.len() > 1 {
            types.push(buffer(DType::I32, Access::Write));
        }
        types.extend(program.scalars.iter().map(|dtype| ArgType::Scalar(*dtype)));
        let args = [inputs, outputs, scalars].concat();
        let name = format!("reduce_{}_{}_{}", self.kind.name(), program.output_dtype(0), isa.name());
        let grid = [self.groups, self.segments as u32, 1];
        let scratch = self.program.scratch_bytes() + 64 + 2 * self.accumulators() * self.rep.size();
        let plan = Arc::new(self);
        let mut kernel = NativeKernel::new(name, Signature::new(types), move |group| plan.run(group));
        kernel.scratch_bytes = scratch;
        kernel.requires = requirements(isa).iter().map(|&feature| feature.to_owned()).collect();
        Launch { source: KernelSource::Native(kernel), grid, args }
    }

    fn run(&self, group: &mut Workgroup<'_>) -> Result<(), String> {
        let results = self.outer * (self.inner / self.fold);
        let [x, y, _] = group.index().map(|index| index as usize);
        let inputs = self.program.inputs();
        let out = argument(group, inputs, self.out_dtype, results * self.segments)?;
        let indices: *mut i32 = match (self.kind, self.segments) {
            (ReduceKind::ArgMax, 2..) => {
                argument(group, inputs + 1, DType::I32, results * self.segments)?.cast()
            }
            _ => std::ptr::null_mut(),
        };
        // Partial results of a segment lie together.
        let out = out.wrapping_add(y * results * self.out_dtype.size());
        let target =
            Target { out, indices: indices.wrapping_add(if indices.is_null() { 0 } else { y * results }) };
        let from = (y * self.segment).min(self.length);
        let to = (from + self.segment).min(self.length);
        let scratch = group.take_scratch();
        let split = self.program.scratch_bytes();
        if scratch.len() < split {
            return Err(format!("got {} bytes of scratch memory where {split} are needed", scratch.len()));
        }
        let (registers, rest) = scratch.split_at_mut(split);
        let mut machine = Machine::new(&self.program, group, 0, self.first_scalar, registers)?;
        if self.accumulators() > 0 {
            let pad = rest.as_ptr().align_offset(64);
            let bytes = self.accumulators() * self.rep.size();
            if rest.len() < pad + 2 * bytes {
                return Err(format!(
                    "got {} bytes for accumulators, {} are needed",
                    rest.len(),
                    pad + 2 * bytes
                ));
            }
            let batch = rest[pad..].as_mut_ptr();
            let rows = Accumulators { batch, total: batch.wrapping_add(bytes), bytes };
            let blocks = self.inner.div_ceil(self.width.max(1));
            for block in (x * self.share..(x + 1) * self.share).take_while(|b| *b < self.outer * blocks) {
                // SAFETY: each block of columns belongs to one workgroup, and the accumulators hold a block.
                unsafe {
                    self.columns(
                        &mut machine,
                        block / blocks,
                        block % blocks * self.width,
                        from..to,
                        &rows,
                        &target,
                    )
                };
            }
        } else {
            let first = x * self.share;
            let last = (first + self.share).min(results);
            // SAFETY: each result belongs to one workgroup, whose share is `first..last`.
            unsafe { self.rows(&mut machine, first, last, from..to, &target) };
        }
        Ok(())
    }

    /// Reduces the rows `first..last`, over `range` of their elements.
    ///
    /// # Safety
    /// The rows lie inside, and no other thread writes their results.
    unsafe fn rows(
        &self,
        machine: &mut Machine<'_>,
        first: usize,
        last: usize,
        range: std::ops::Range<usize>,
        target: &Target,
    ) {
        let length = range.len();
        let whole_rows = length == self.length && length > 0 && !self.program.by_rows;
        let per_chunk = if whole_rows { self.program.chunk / length } else { 0 };
        let mut row = first;
        while row < last {
            if per_chunk > 1 {
                let rows = per_chunk.min(last - row);
                // SAFETY: the points of these rows lie inside the space, and are at most a chunk.
                let (value, step) = unsafe { machine.chunk(row * length, rows * length) };
                if length <= SHORT_ROW && step == 1 && self.kind != ReduceKind::ArgMax {
                    // SAFETY: `value` names the elements of these rows, whose results belong to this workgroup.
                    unsafe { self.short_rows(value, row, rows, target) };
                    row += rows;
                    continue;
                }
                for r in 0..rows {
                    let from = value.wrapping_add(r * length * step * self.rep.size());
                    let mut total = Total::new(self);
                    // SAFETY: `from` names the elements of one row.
                    unsafe {
                        total.add(from, step, length, 0);
                        target.store(self, row + r, total);
                    }
                }
                row += rows;
                continue;
            }
            let mut total = Total::new(self);
            let (mut at, end) = (row * self.length + range.start, row * self.length + range.end);
            while at < end {
                let n = next_chunk(&self.program, at, end);
                // SAFETY: the points lie inside this row, and `n` of them are a chunk.
                unsafe {
                    let (value, step) = machine.chunk(at, n);
                    total.add(value, step, n, at - row * self.length);
                }
                at += n;
            }
            // SAFETY: the caller's promise.
            unsafe { target.store(self, row, total) };
            row += 1;
        }
    }

    /// Reduces the columns from `column` on, over `range` of their rows.
    ///
    /// # Safety
    /// The columns lie inside, no other thread writes their results, and the accumulators hold a block.
    unsafe fn columns(
        &self,
        machine: &mut Machine<'_>,
        outer: usize,
        column: usize,
        range: std::ops::Range<usize>,
        rows: &Accumulators,
        target: &Target,
    ) {
        let size = self.rep.size();
        let width = self.width.min(self.inner - column);
        let lanes = width * self.side_by_side;
        let base = outer * self.length;
        // SAFETY: points are inside the iteration space by the bounds of the loops; accumulators
        // hold `self.width * self.side_by_side` elements; results belong to this workgroup.
        unsafe {
            rows.clear(rows.batch, self.identity, size);
            rows.clear(rows.total, self.identity, size);
            let mut batched = 0;
            let mut row_added = || {
                batched += 1;
                if batched == BATCH {
                    (self.loops.accumulate)(rows.total, rows.batch, 1, lanes);
                    rows.clear(rows.batch, self.identity, size);
                    batched = 0;
                }
            };
            // Whole rows that follow each other fill a chunk; parts of a row go one by one.
            let together = width == self.inner && !self.program.by_rows;
            let per_chunk = if together { self.program.chunk / lanes * self.side_by_side } else { 1 };
            let mut row = range.start;
            while row < range.end {
                if together && per_chunk > 0 {
                    let n = per_chunk.min(range.end - row) * width;
                    let (value, step) = machine.chunk((base + row) * self.inner, n);
                    let mut at = 0;
                    while at < n {
                        let piece = lanes.min(n - at);
                        (self.loops.accumulate)(rows.batch, value.add(at * step * size), step, piece);
                        row_added();
                        at += piece;
                    }
                    row += n / width;
                    continue;
                }
                let start = (base + row) * self.inner + column;
                let mut at = start;
                while at < start + width {
                    let n = next_chunk(&self.program, at, start + width);
                    let (value, step) = machine.chunk(at, n);
                    (self.loops.accumulate)(rows.batch.add((at - start) * size), value, step, n);
                    at += n;
                }
                row_added();
                row += 1;
            }
            (self.loops.accumulate)(rows.total, rows.batch, 1, lanes);
            for side in 1..self.side_by_side {
                (self.loops.accumulate)(rows.total, rows.total.add(side * width * size), 1, width);
            }
            let first = (outer * self.inner + column) / self.fold;
            if self.fold > 1 {
                for result in 0..width / self.fold {
                    let run = rows.total.add(result * self.fold * size);
                    let folded = (self.loops.fold)(run, 1, self.fold, self.identity);
                    target.store_bits(self, first + result, folded);
                }
                return;
            }
            target.store_row(self, first, rows.total, width);
        }
    }

    /// Reduces rows that follow each other in `value`.
    ///
    /// # Safety
    /// `value` names their elements, and no other thread writes their results.
    unsafe fn short_rows(&self, value: *const u8, first: usize, rows: usize, target: &Target) {
        const AT_ONCE: usize = 64;
        let size = self.rep.size();
        let mut results = [0u64; AT_ONCE];
        for row in (0..rows).step_by(AT_ONCE) {
            let n = AT_ONCE.min(rows - row);
            let to = results.as_mut_ptr().cast::<u8>();
            // SAFETY: `n` rows from `row` on are inside; 64 results of any type have room.
            unsafe {
                let from = value.add(row * self.length * size);
                (self.loops.fold_rows)(from, n, self.length, self.identity, to);
                target.store_row(self, first + row, to, n);
            }
        }
    }
}

/// Two rows of accumulators: the current batch, and the total of the batches before.
struct Accumulators {
    batch: *mut u8,
    total: *mut u8,
    bytes: usize,
}

impl Accumulators {
    /// Sets a row to `identity`.
    ///
    /// # Safety
    /// `row` is one of the two, of elements of `size` bytes.
    unsafe fn clear(&self, row: *mut u8, identity: u64, size: usize) {
        for at in 0..self.bytes / size {
            // SAFETY: `at` is inside the row, which is aligned to 64 bytes.
            unsafe { write_bits(row.add(at * size), identity, size) };
        }
    }
}

/// Writes the low `size` bytes of `bits`.
///
/// # Safety
/// `to` is valid for `size` bytes.
unsafe fn write_bits(to: *mut u8, bits: u64, size: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match size {
            1 => to.write(bits as u8),
            2 => to.cast::<u16>().write_unaligned(bits as u16),
            4 => to.cast::<u32>().write_unaligned(bits as u32),
            _ => to.cast::<u64>().write_unaligned(bits),
        }
    }
}

/// The running result of one row.
struct Total<'a> {
    plan: &'a Plan,
    bits: u64,
    /// Sum of the chunks' sums of f32, whose own rounding would grow with their number.
    wide: f64,
    chunks: usize,
    index: usize,
}

impl<'a> Total<'a> {
    fn new(plan: &'a Plan) -> Self {
        Self { plan, bits: plan.identity, wide: 0.0, chunks: 0, index: 0 }
    }

    /// Takes `n` elements in, the first of which is element `index` of the row.
    ///
    /// # Safety
    /// The elements are valid, of the plan's type.
    unsafe fn add(&mut self, value: *const u8, step: usize, n: usize, index: usize) {
        let plan = self.plan;
        // SAFETY: the caller's promise.
        let folded = unsafe { (plan.loops.fold)(value, step, n, plan.identity) };
        self.chunks += 1;
        if plan.kind == ReduceKind::ArgMax {
            if self.chunks == 1 || is_larger(plan.rep, folded, self.bits) {
                self.bits = folded;
                // SAFETY: the caller's promise.
                self.index = index + unsafe { position(value, step, n, plan.rep, folded) };
            }
        } else if plan.kind == ReduceKind::Sum && plan.rep == Rep::F32 {
            self.wide += f64::from(f32::from_bits(folded as u32));
            self.bits = if self.chunks == 1 { folded } else { u64::from((self.wide as f32).to_bits()) };
        } else {
            self.bits = if self.chunks == 1 { folded } else { (plan.loops.combine)(self.bits, folded) };
        }
    }
}

/// Where results go.
struct Target {
    out: *mut u8,
    /// Where the indices of segments go; null for others.
    indices: *mut i32,
}

impl Target {
    /// Stores the result of `row`.
    ///
    /// # Safety
    /// `row` is a result that this workgroup owns.
    unsafe fn store(&self, plan: &Plan, row: usize, total: Total<'_>) {
        let index = i32::try_from(total.index).unwrap_or(i32::MAX);
        // SAFETY: the caller's promise.
        unsafe {
            if plan.kind == ReduceKind::ArgMax {
                if self.indices.is_null() {
                    self.out.cast::<i32>().add(row).write(index);
                    return;
                }
                self.indices.add(row).write(index);
            }
            self.store_bits(plan, row, total.bits);
        }
    }

    /// Stores one result.
    ///
    /// # Safety
    /// `row` is a result that this workgroup owns.
    unsafe fn store_bits(&self, plan: &Plan, row: usize, bits: u64) {
        let value = f32::from_bits(bits as u32);
        let size = plan.out_dtype.size();
        let bits = match plan.out_dtype {
            DType::F16 => u64::from(f16::from_f32(value).to_bits()),
            DType::BF16 => u64::from(bf16::from_f32(value).to_bits()),
            _ => bits,
        };
        // SAFETY: the caller's promise.
        unsafe { write_bits(self.out.add(row * size), bits, size) };
    }

    /// Stores `n` results from `row` on.
    ///
    /// # Safety
    /// They are results that this workgroup owns, and `values` holds as many accumulators.
    unsafe fn store_row(&self, plan: &Plan, row: usize, values: *const u8, n: usize) {
        let size = plan.rep.size();
        // SAFETY: the caller's promise.
        unsafe {
            if plan.out_dtype.size() == size {
                std::ptr::copy_nonoverlapping(values, self.out.add(row * size), n * size);
                return;
            }
            for at in 0..n {
                self.store_bits(plan, row + at, u64::from(values.cast::<u32>().add(at).read()));
            }
        }
    }
}

/// The second launch of an index: the first segment with the largest value.
fn choose_segment(
    isa: Isa,
    rep: Rep,
    dtype: DType,
    segments: usize,
    results: usize,
    values: LaunchArg,
    indices: LaunchArg,
) -> Launch {
    let buffer = |dtype, access| ArgType::Buffer { dtype, access };
    let signature = Signature::new(vec![
        buffer(dtype, Access::Read),
        buffer(DType::I32, Access::Read),
        buffer(DType::I32, Access::Write),
    ]);
    let run = move |group: &mut Workgroup<'_>| {
        let values = argument(group, 0, dtype, segments * results)?.cast_const();
        let indices = group.read::<i32>(1)?;
        let out = group.write_all::<i32>(2)?;
        let size = dtype.size();
        for (row, out) in out.iter_mut().enumerate() {
            // SAFETY: `argument` checked the length, and the values are read only.
            let value =
                |segment: usize| unsafe { read_bits(values.add((segment * results + row) * size), size) };
            let mut best = 0;
            for segment in 1..segments {
                if is_larger(rep, value(segment), value(best)) {
                    best = segment;
                }
            }
            *out = indices[best * results + row];
        }
        Ok(())
    };
    let kernel = NativeKernel::new(format!("reduce_argmax_{dtype}_segments_{}", isa.name()), signature, run);
    let args = vec![values, indices, LaunchArg::Output(0)];
    Launch { source: KernelSource::Native(kernel), grid: [1, 1, 1], args }
}

/// Reads `size` bytes as the low ones of a number.
///
/// # Safety
/// `from` is valid for `size` bytes.
unsafe fn read_bits(from: *const u8, size: usize) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        match size {
            1 => u64::from(from.read()),
            2 => u64::from(from.cast::<u16>().read_unaligned()),
            4 => u64::from(from.cast::<u32>().read_unaligned()),
            _ => from.cast::<u64>().read_unaligned(),
        }
    }
}

/// The result over nothing, as bits of the accumulator.
fn identity(kind: ReduceKind, dtype: DType) -> u64 {
    let rep = Rep::of(dtype);
    let bits = rep.size() as u32 * 8;
    let signed = dtype.is_signed();
    let lowest = if signed { 1u64 << (bits - 1) } else { 0 };
    let highest = if signed { (1u64 << (bits - 1)) - 1 } else { u64::MAX >> (64 - bits) };
    let float = |value: f32| match rep {
        Rep::F64 => f64::from(value).to_bits(),
        _ => u64::from(value.to_bits()),
    };
    match kind {
        ReduceKind::Sum => 0,
        ReduceKind::Prod if rep.is_float() => float(1.0),
        ReduceKind::Prod => 1,
        ReduceKind::Min if rep.is_float() => float(f32::INFINITY),
        ReduceKind::Min if dtype == DType::Bool => 1,
        ReduceKind::Min => highest,
        ReduceKind::Max | ReduceKind::ArgMax if rep.is_float() => float(f32::NEG_INFINITY),
        ReduceKind::Max | ReduceKind::ArgMax => lowest,
    }
}

/// The order in which axes are best visited.
struct Order {
    axes: Vec<usize>,
    /// Whether the last kept axis is visited innermost, or next to it.
    by_columns: bool,
    /// Points of the reduced axis that is visited innermost beside the last kept one; 1 for none.
    fold: usize,
}

fn order_axes(reduction: &Reduction) -> Order {
    let (program, kept) = (&reduction.program, reduction.kept_rank);
    let rank = program.shape.len();
    let mut reduced: Vec<usize> = (kept..rank).collect();
    if reduction.kind == ReduceKind::ArgMax {
        return Order { axes: (0..rank).collect(), by_columns: false, fold: 1 };
    }
    // The shortest strides innermost; the sort is stable, and axes of extent 1 do not matter.
    let reach = |axis: &usize| -> u128 {
        if program.shape[*axis] <= 1 {
            return u128::MAX;
        }
        program.inputs.iter().map(|view| u128::from(view.strides[*axis].unsigned_abs())).sum()
    };
    reduced.sort_by_key(|axis| std::cmp::Reverse(reach(axis)));
    // Inputs that would be gathered element by element along an axis.
    let gathered =
        |axis: usize| program.inputs.iter().filter(|view| view.strides[axis].unsigned_abs() > 1).count();
    let inner_reduced = reduced.last().copied().filter(|axis| program.shape[*axis] > 1);
    let last_kept = kept.checked_sub(1).filter(|axis| program.shape[*axis] > 1);
    let mut axes: Vec<usize> = (0..kept).collect();
    let (Some(inner), Some(last_kept)) = (inner_reduced, last_kept) else {
        axes.extend(reduced);
        return Order { axes, by_columns: false, fold: 1 };
    };
    axes.pop();
    if gathered(last_kept) < gathered(inner) {
        axes.extend(reduced);
        axes.push(last_kept);
        return Order { axes, by_columns: true, fold: 1 };
    }
    let fold = program.shape[inner];
    let rows: usize = reduced[..reduced.len() - 1].iter().map(|axis| program.shape[*axis]).product();
    if rows >= 4 && fold <= LONGEST_FOLD && gathered(inner) == 0 {
        let mut folded = axes.clone();
        folded.extend(&reduced[..reduced.len() - 1]);
        folded.extend([last_kept, inner]);
        let columns = fold * program.shape[last_kept];
        // Worth it where the columns of a row follow each other in every input.
        if collapsed(program, &folded).shape.last().is_some_and(|row| *row >= columns) {
            return Order { axes: folded, by_columns: true, fold };
        }
    }
    axes.push(last_kept);
    axes.extend(reduced);
    Order { axes, by_columns: false, fold: 1 }
}

/// The program with its axes in another order, and merged where that is possible.
fn collapsed(cluster: &Cluster, order: &[usize]) -> Cluster {
    let mut program = permuted(cluster, order);
    program.collapse(None);
    program
}

/// The program with its axes in another order.
fn permuted(cluster: &Cluster, order: &[usize]) -> Cluster {
    let mut program = cluster.clone();
    program.shape = order.iter().map(|axis| cluster.shape[*axis]).collect();
    for (view, original) in program.inputs.iter_mut().zip(&cluster.inputs) {
        view.strides = order.iter().map(|axis| original.strides[*axis]).collect();
    }
    for step in &mut program.steps {
        if let StepOp::Index(axis) = &mut step.op {
            *axis = order.iter().position(|own| *own == *axis as usize).unwrap_or(usize::MAX) as u32;
        }
    }
    program
}
