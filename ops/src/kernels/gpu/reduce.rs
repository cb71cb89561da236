//! Reductions of an elementwise program: the strategy and the cuts; `reduce.cl` does the work.
//!
//! Rows that lie together in memory get a workgroup each (*rows*); where neighbouring results lie together, or rows are
//! short, each thread reduces `chunk` neighbouring results (*columns*). Too few results to fill the device are cut into
//! segments, whose partial results go through the workspace to a second launch. The cuts depend on sizes, profile and
//! device alone, so results are the same from run to run.
//!
//! Profile: `threads: [t]` a workgroup (a power of two; default 64), `chunk`, neighbours that a thread takes (a power of
//! two; default 1). A CPU wants one thread and a chunk of several vectors.

use super::elementwise;
use super::interpret;
use super::program::{self, statements};
use super::source::{KernelText, Language, Workspace, accumulator, literal, register, threads, to_storage};
use crate::cluster::{Cluster, Literal, View, contiguous_strides};
use crate::lower::{Launch, LaunchArg, LowerRequest, Lowered, ReduceKind, Reduction, Unservable};
use halite_hal::{Access, DType};
use halite_profiles::Parameters;
use std::fmt::Write;

/// Rows of at most this many elements are reduced by a thread each.
const SHORT_ROW: usize = 32;

/// Workgroups per compute unit below which reductions are cut into segments.
const GROUPS_PER_UNIT: usize = 4;

/// Points of a segment that are worth a thread's start.
const SEGMENT_POINTS: usize = 256;

/// Most segments.
const MAX_SEGMENTS: usize = 256;

/// Arguments beyond which sizes become constants of the text.
const MAX_ARGS: usize = 40;

/// Threads of a workgroup in the text that serves all sizes.
const GENERAL_THREADS: usize = 128;

/// Most neighbours of a thread.
const MAX_LANES: usize = 64;

/// Sizes for tuning to try: those of GPUs, then those of CPUs.
pub(super) fn candidates() -> impl Iterator<Item = Parameters> {
    let chunks = |threads| [1, 2, 4].map(move |chunk| (threads, chunk));
    let of_cpus = [16, 32, 64].map(|chunk| (1, chunk));
    let pairs = [64, 128, 256].into_iter().flat_map(chunks).chain(of_cpus);
    pairs.map(|(threads, chunk)| Parameters::default().with_threads([threads]).with_chunk(chunk))
}

/// The launches of a reduction.
pub(super) fn lower(
    language: Language,
    request: &LowerRequest<'_>,
    reduction: &Reduction,
) -> Result<Lowered, Unservable> {
    let (kind, mut program) = (reduction.kind, reduction.program.clone());
    program::check(&program, request)?;
    let [output] = program.outputs[..] else {
        return Err(Unservable::new("a reduction has one program output"));
    };
    if reduction.kept_rank > program.shape.len() {
        return Err(Unservable::new(format!(
            "{} axes are kept of {}",
            reduction.kept_rank,
            program.shape.len()
        )));
    }
    let dtype = program.steps[output as usize].dtype;
    let kept: usize = program.shape[..reduction.kept_rank].iter().product();
    let length: usize = program.shape[reduction.kept_rank..].iter().product();
    if kept == 0 {
        return Ok(Lowered::default());
    }
    if length == 0 {
        let out = if kind == ReduceKind::ArgMax { DType::I32 } else { dtype };
        return elementwise::fill(language, request, kept, identity(kind, out));
    }
    if language.is_general() {
        return lower_any(language, request, reduction, [kept, length]);
    }
    let kept_rank = program.collapse(Some(reduction.kept_rank)).unwrap_or(reduction.kept_rank);
    let plan = Plan::new(request, kind, &program, kept_rank);
    let partial = partial_dtype(kind, dtype);
    let inputs: Vec<LaunchArg> = (0..program.inputs.len()).map(LaunchArg::Input).collect();
    if plan.segments == 1 {
        let target = Target::Result(LaunchArg::Output(0), reduction.dtype);
        return Ok(Lowered::single(plan.launch(language, request, &program, &inputs, None, target)?));
    }
    let cells = plan.segments * kept;
    let mut workspace = Workspace::default();
    let values = workspace.take(request.device, partial, cells);
    let positions = (kind == ReduceKind::ArgMax).then(|| workspace.take(request.device, DType::I32, cells));
    let first =
        plan.launch(language, request, &program, &inputs, None, Target::Partial(values, partial, positions))?;

    let view = View { dtype: partial, offset: 0, strides: vec![1, kept as i64] };
    let over_segments = Cluster::copy(&[kept, plan.segments], view);
    let mut second = Plan::new(request, kind, &over_segments, 1);
    second.uncut();
    let target = Target::Result(LaunchArg::Output(0), reduction.dtype);
    let second = second.launch(language, request, &over_segments, &[values], positions, target)?;
    Ok(Lowered { launches: vec![first, second], workspace_bytes: workspace.len_bytes })
}

/// The launches of a reduction by a text that serves all sizes: the program's values go through the workspace, and a
/// workgroup reduces a row of them.
fn lower_any(
    language: Language,
    request: &LowerRequest<'_>,
    reduction: &Reduction,
    [kept, length]: [usize; 2],
) -> Result<Lowered, Unservable> {
    let dtype = reduction.program.output_dtype(0);
    let mut workspace = Workspace::default();
    let values = workspace.take(request.device, dtype, kept * length);
    let inputs: Vec<LaunchArg> = (0..reduction.program.inputs.len()).map(LaunchArg::Input).collect();
    let first = interpret::launch(language, request, &reduction.program, &inputs, &[values], &mut workspace)?;
    let rows = Cluster::copy(&[kept, length], View { dtype, offset: 0, strides: vec![length as i64, 1] });
    let mut plan = Plan::new(request, reduction.kind, &rows, 1);
    plan.uncut();
    (plan.by_rows, plan.lanes, plan.threads) = (true, 1, [GENERAL_THREADS, 1]);
    let target = Target::Result(LaunchArg::Output(0), reduction.dtype);
    let second = plan.launch(language, request, &rows, &[values], None, target)?;
    Ok(Lowered { launches: vec![first, second], workspace_bytes: workspace.len_bytes })
}

/// What a reduction over nothing gives.
fn identity(kind: ReduceKind, dtype: DType) -> Literal {
    match kind {
        ReduceKind::Sum => Literal::new(dtype, 0.0),
        ReduceKind::Prod => Literal::new(dtype, 1.0),
        ReduceKind::Max if dtype == DType::Bool => Literal::new(dtype, 0.0),
        ReduceKind::ArgMax if dtype == DType::I32 => Literal::new(dtype, 0.0),
        ReduceKind::Max | ReduceKind::ArgMax => Literal::new(dtype, f64::NEG_INFINITY),
        ReduceKind::Min => Literal::new(dtype, f64::INFINITY),
    }
}

/// The type that partial results have.
fn partial_dtype(kind: ReduceKind, dtype: DType) -> DType {
    match (kind, dtype) {
        (ReduceKind::Sum | ReduceKind::Prod, _) => accumulator(dtype),
        (_, DType::F16 | DType::BF16) => DType::F32,
        _ => dtype,
    }
}

/// Where results go.
enum Target {
    /// Rounded to the result's dtype.
    Result(LaunchArg, DType),
    /// As they are, with positions where there are any.
    Partial(LaunchArg, DType, Option<LaunchArg>),
}

/// How a reduction is spread over threads.
struct Plan {
    kind: ReduceKind,
    kept_rank: usize,
    kept_outer: usize,
    kept_inner: usize,
    outer: usize,
    inner: usize,
    by_rows: bool,
    lanes: usize,
    threads: [usize; 2],
    segments: usize,
    /// Extents of a segment along the outer reduced axes and the inner one.
    segment: [usize; 2],
}

impl Plan {
    fn new(request: &LowerRequest<'_>, kind: ReduceKind, program: &Cluster, kept_rank: usize) -> Self {
        let (kept, reduced) = program.shape.split_at(kept_rank);
        let split = |shape: &[usize]| {
            shape.split_last().map_or((1, 1), |(inner, outer)| (outer.iter().product::<usize>(), *inner))
        };
        let ((kept_outer, kept_inner), (outer, inner)) = (split(kept), split(reduced));
        let parameters = request.parameters;
        let most = power_of_two(threads(request));
        let lanes = power_of_two(parameters.int("chunk").unwrap_or(1) as usize).min(MAX_LANES);

        // Inputs that lie together along the innermost kept and reduced axes.
        let dense = |axis: Option<usize>| {
            let unit = |view: &&View| axis.is_some_and(|axis| view.strides[axis].abs() == 1);
            program.inputs.iter().filter(unit).count()
        };
        let along_kept = dense(kept_rank.checked_sub(1));
        let along_reduced = dense(program.shape.len().checked_sub(1).filter(|_| !reduced.is_empty()));
        let by_rows = outer * inner > SHORT_ROW && inner > 1 && along_reduced >= along_kept;
        let (threads, lanes) = if by_rows {
            let lanes = lanes.min(power_of_two(inner));
            ([most.min(inner.div_ceil(lanes).next_power_of_two()), 1], lanes)
        } else {
            let lanes = lanes.min(power_of_two(kept_inner));
            let across = kept_inner.div_ceil(lanes).next_power_of_two().min(most);
            ([across, (most / across).max(1)], lanes)
        };
        let segment = [outer, inner];
        let mut plan = Self {
            kind,
            kept_rank,
            kept_outer,
            kept_inner,
            outer,
            inner,
            by_rows,
            lanes,
            threads,
            segments: 1,
            segment,
        };
        plan.cut(request.device.compute_units as usize * GROUPS_PER_UNIT);
        plan
    }

    /// Cuts the reduced points into segments if there are fewer workgroups than `wanted`.
    fn cut(&mut self, wanted: usize) {
        let per_group = if self.by_rows { self.threads[0] * self.lanes } else { 1 };
        let worth = self.outer * self.inner / (SEGMENT_POINTS * per_group);
        let segments = wanted.div_ceil(self.groups()).min(worth).min(MAX_SEGMENTS);
        if segments < 2 {
            return;
        }
        let axis = usize::from(self.outer == 1);
        let extent = [self.outer, self.inner][axis];
        self.segment[axis] = extent.div_ceil(segments);
        self.segments = extent.div_ceil(self.segment[axis]);
    }

    fn uncut(&mut self) {
        self.segments = 1;
        self.segment = [self.outer, self.inner];
    }

    fn kept_blocks(&self) -> usize {
        self.kept_inner.div_ceil(self.threads[0] * self.lanes)
    }

    fn groups(&self) -> usize {
        if self.by_rows {
            self.kept_outer * self.kept_inner * self.segments
        } else {
            self.kept_blocks() * (self.kept_outer * self.segments).div_ceil(self.threads[1])
        }
    }

    fn launch(
        &self,
        language: Language,
        request: &LowerRequest<'_>,
        program: &Cluster,
        inputs: &[LaunchArg],
        positions: Option<LaunchArg>,
        target: Target,
    ) -> Result<Launch, Unservable> {
        let dtype = program.output_dtype(0);
        let acc = partial_dtype(self.kind, dtype);
        let is_argmax = self.kind == ReduceKind::ArgMax;
        let mut name = format!("reduce_{dtype}_{}", self.kind.name());
        if let (true, Target::Result(_, out)) = (language.is_general(), &target) {
            name.push_str(&format!("_{out}_general"));
        }
        let mut text = KernelText::new(language, request, name);
        text.reaches(request.inputs.iter().map(|input| input.elements() as i64).max().unwrap_or(0));
        text.reaches(
            (self.kept_outer * self.kept_inner).saturating_mul(self.segments.max(self.outer * self.inner))
                as i64,
        );
        program.steps.iter().for_each(|step| text.uses(step.dtype));
        text.uses(acc);
        for (n, (view, &arg)) in program.inputs.iter().zip(inputs).enumerate() {
            text.buffer(&format!("in{n}"), arg, view.dtype, Access::Read);
        }
        if let Some(positions) = positions {
            text.buffer("at", positions, DType::I32, Access::Read);
            text.define("POSITION", "at[inner * KEPT_INNER + kept_inner]");
        } else {
            text.define("POSITION", "(i32)(outer * INNER + inner)");
        }
        for (n, &scalar) in program.scalars.iter().enumerate() {
            text.scalar(&format!("s{n}"), LaunchArg::Scalar(n), scalar);
        }
        let mut sizes = self.sizes(program);
        let are_constants = text.args() + sizes.len() > MAX_ARGS;
        for (name, size) in sizes.drain(..) {
            // What is 1 is known to the compiler, which then drops the division by it.
            if are_constants || size == 1 && !language.is_general() {
                text.define(&name, format!("({size})"));
            } else {
                text.number(&name, size)?;
            }
        }
        let (declared, passed) = text.parameters();
        let separator = if declared.is_empty() { "" } else { ", " };
        text.define("PROGRAM_PARAMETERS", format!("{separator}{declared}"));
        text.define("PROGRAM_ARGUMENTS", format!("{separator}{passed}"));
        let store = match target {
            Target::Result(out, out_dtype) => {
                text.buffer("out", out, out_dtype, Access::Write);
                let value = match out_dtype {
                    _ if is_argmax => "(x).at".to_owned(),
                    DType::F16 | DType::BF16 => to_storage(out_dtype, "(x).value"),
                    _ => format!("({})(x).value", register(out_dtype)),
                };
                format!("(out[place] = {value})")
            }
            Target::Partial(values, partial, positions) => {
                text.buffer("out", values, partial, Access::Write);
                match positions {
                    Some(positions) => {
                        text.buffer("out_at", positions, DType::I32, Access::Write);
                        "(out[place] = (x).value, out_at[place] = (x).at)".to_owned()
                    }
                    None => "(out[place] = (x).value)".to_owned(),
                }
            }
        };
        text.define("STORE_RESULT(place, x)", store);
        text.define("ARGUMENTS", text.parameters().1);

        let start =
            if is_argmax { Literal::new(dtype, f64::NEG_INFINITY) } else { identity(self.kind, dtype) };
        let start = Literal::new(acc, start.to_f64());
        text.define("ACC", register(acc));
        text.define("IDENTITY", literal(start.dtype, start.bits));
        text.define("COMBINE(a, b)", combination(self.kind, acc));
        if is_argmax {
            text.define("ARGMAX", "");
        }
        if self.by_rows {
            text.define("ROWS", "");
        }
        text.define("LANES", self.lanes);
        text.push(&self.element(program, acc));
        text.push(include_str!("reduce.cl"));
        text.launch(self.groups(), self.threads)
    }

    /// Axes that are neither the innermost kept nor the innermost reduced one, with the counter that numbers them and
    /// how many points of it each step of theirs takes.
    fn outer_axes(&self, program: &Cluster) -> Vec<(usize, &'static str, i64)> {
        let rank = program.shape.len();
        let sides = [(0..self.kept_rank, "kept_outer"), (self.kept_rank..rank, "outer")];
        let mut axes = Vec::new();
        for (side, counter) in sides {
            let outer = side.start..side.end.saturating_sub(1).max(side.start);
            let steps = contiguous_strides(&program.shape[outer.clone()]);
            axes.extend(outer.zip(steps).map(|(axis, step)| (axis, counter, step)));
        }
        axes
    }

    /// The sizes that the text names.
    fn sizes(&self, program: &Cluster) -> Vec<(String, i64)> {
        let own = [
            ("KEPT_OUTER", self.kept_outer),
            ("KEPT_INNER", self.kept_inner),
            ("OUTER", self.outer),
            ("INNER", self.inner),
            ("SEGMENTS", self.segments),
            ("OUTER_SEGMENT", self.segment[0]),
            ("INNER_SEGMENT", self.segment[1]),
            ("KEPT_BLOCKS", self.kept_blocks()),
        ];
        let mut sizes: Vec<(String, i64)> = own.map(|(name, size)| (name.to_owned(), size as i64)).into();
        for (axis, _, step) in self.outer_axes(program) {
            sizes.push((format!("step{axis}"), step));
            sizes.push((format!("extent{axis}"), program.shape[axis] as i64));
        }
        for (n, view) in program.inputs.iter().enumerate() {
            if view.offset != 0 {
                sizes.push((format!("offset{n}"), view.offset));
            }
            let strides = view.strides.iter().enumerate().filter(|(_, stride)| **stride != 0);
            sizes.extend(strides.map(|(axis, &stride)| (format!("stride{n}_{axis}"), stride)));
        }
        sizes
    }

    /// The function that computes one element, in the type of the accumulators.
    fn element(&self, program: &Cluster, acc: DType) -> String {
        let rank = program.shape.len();
        let mut text = format!(
            "\nFN {} element(INDEX kept_outer, INDEX kept_inner, INDEX outer, INDEX inner PROGRAM_PARAMETERS) {{\n",
            register(acc)
        );
        let name = |axis: usize| {
            if axis + 1 == self.kept_rank {
                "kept_inner".to_owned()
            } else if axis + 1 == rank {
                "inner".to_owned()
            } else {
                format!("i{axis}")
            }
        };
        for (axis, counter, _) in self.outer_axes(program) {
            let _ = writeln!(text, "    const INDEX i{axis} = {counter} / step{axis} % extent{axis};");
        }
        let load = |n: usize| {
            let view = &program.inputs[n];
            let mut place = if view.offset == 0 { "0".to_owned() } else { format!("offset{n}") };
            for axis in (0..rank).filter(|&axis| view.strides[axis] != 0) {
                let _ = write!(place, " + {} * stride{n}_{axis}", name(axis));
            }
            format!("in{n}[{place}]")
        };
        text.push_str(&statements(program, "    ", load, name));
        let _ = writeln!(text, "    return ({})v{};\n}}\n", register(acc), program.outputs[0]);
        text
    }
}

/// The largest power of two that is not above `n`, at least 1.
fn power_of_two(n: usize) -> usize {
    1 << n.max(1).ilog2()
}

fn combination(kind: ReduceKind, acc: DType) -> &'static str {
    match kind {
        ReduceKind::Sum => "((a) + (b))",
        ReduceKind::Prod => "((a) * (b))",
        ReduceKind::Max if acc.is_float() => "LARGER(a, b)",
        ReduceKind::Min if acc.is_float() => "SMALLER(a, b)",
        ReduceKind::Max | ReduceKind::ArgMax => "((a) > (b) ? (a) : (b))",
        ReduceKind::Min => "((a) < (b) ? (a) : (b))",
    }
}
