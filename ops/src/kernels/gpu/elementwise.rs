//! Fused elementwise programs: code generated from the cluster.
//!
//! `out[i] = program(inputs[i], ...)` over rows of the innermost axis. A thread takes `chunk` neighbouring points of a
//! row (loaded and stored as packs where they are aligned), `unroll` times; a workgroup takes a block of a row, or
//! several short rows. Rows shorter than [`SHORTEST_ROW`] are counted through, one point a thread.
//!
//! Extents, strides and offsets are arguments where there are few enough, so that programs of other sizes share the
//! code; what is dense or broadcast is known to the compiler. In place: a thread loads a point of every input before it
//! stores that point, and nobody else touches it.
//! Local memory: none. Profile: `threads: [t]` a workgroup (default 64), `chunk` 1, 2, 4 or 8 (default 1), `unroll`.

use super::interpret;
use super::program::{self, as_bits, statements, stored};
use super::source::{KernelText, Language, storage, threads};
use crate::cluster::{Cluster, Literal, Step, StepOp, View};
use crate::lower::{Launch, LaunchArg, LowerRequest, Lowered, Unservable};
use halite_hal::{Access, DType};
use halite_profiles::Parameters;
use std::fmt::Write;

/// Rows with fewer points would leave most of a workgroup idle.
const SHORTEST_ROW: usize = 16;

/// Arguments beyond which sizes become constants of the text.
const MAX_ARGS: usize = 32;

/// Sizes for tuning to try.
pub(super) fn candidates() -> impl Iterator<Item = Parameters> {
    let chunks = |threads| [1, 2, 4, 8].map(move |chunk| (threads, chunk));
    [64, 128, 256].into_iter().flat_map(chunks).flat_map(|(threads, chunk)| {
        [1, 4]
            .map(|unroll| Parameters::default().with_threads([threads]).with_chunk(chunk).with_unroll(unroll))
    })
}

/// The launch of a program.
pub(super) fn lower(
    language: Language,
    request: &LowerRequest<'_>,
    program: &Cluster,
) -> Result<Lowered, Unservable> {
    if program.points() == 0 || program.outputs.is_empty() {
        return Ok(Lowered::default());
    }
    let inputs: Vec<LaunchArg> = (0..program.inputs.len()).map(LaunchArg::Input).collect();
    let outputs: Vec<LaunchArg> = (0..program.outputs.len()).map(LaunchArg::Output).collect();
    Ok(Lowered::single(launch(language, request, program, &inputs, &outputs)?))
}

/// A launch that writes a constant to `points` elements.
pub(super) fn fill(
    language: Language,
    request: &LowerRequest<'_>,
    points: usize,
    value: Literal,
) -> Result<Lowered, Unservable> {
    let steps = vec![Step { op: StepOp::Constant(value), dtype: value.dtype }];
    let (inputs, scalars) = (Vec::new(), Vec::new());
    let program = Cluster { shape: vec![points], inputs, scalars, steps, outputs: vec![0] };
    if language.is_general() {
        return interpret::lower(language, request, &program);
    }
    lower(language, request, &program)
}

/// The launch of a program on these memories.
pub(super) fn launch(
    language: Language,
    request: &LowerRequest<'_>,
    program: &Cluster,
    inputs: &[LaunchArg],
    outputs: &[LaunchArg],
) -> Result<Launch, Unservable> {
    let reach = program::check(program, request)?;
    let in_place = program.inputs.iter().any(|view| {
        view.is_contiguous(&program.shape)
            && (0..outputs.len()).any(|n| program.output_dtype(n).size() == view.dtype.size())
    });
    let kinds: Vec<DType> = (0..outputs.len()).map(|n| program.output_dtype(n)).collect();
    let mut moved = as_bits(program).unwrap_or_else(|| program.clone());
    moved.collapse(None);
    let layout = Layout::new(request, &moved);

    let mut text = KernelText::new(language, request, format!("elementwise_{}_generated", kinds[0]));
    text.reaches(reach);
    text.in_place(in_place);
    moved.steps.iter().for_each(|step| text.uses(step.dtype));
    for (n, (view, &arg)) in moved.inputs.iter().zip(inputs).enumerate() {
        text.buffer(&format!("in{n}"), arg, view.dtype, Access::Read);
    }
    for (n, &arg) in outputs.iter().enumerate() {
        text.buffer(&format!("out{n}"), arg, moved.output_dtype(n), Access::Write);
    }
    for (n, &dtype) in moved.scalars.iter().enumerate() {
        text.scalar(&format!("s{n}"), LaunchArg::Scalar(n), dtype);
    }
    let generator = Generator { program: &moved, layout: &layout };
    let sizes = generator.sizes();
    let are_constants = text.args() + sizes.len() > MAX_ARGS.min(request.device.limits.max_args as usize);
    for (name, size) in sizes {
        if are_constants {
            text.define(&name, format!("({size})"));
        } else {
            text.number(&name, size)?;
        }
    }
    text.push(&generator.kernel());
    text.launch(layout.groups, layout.threads)
}

/// How points are spread over threads.
struct Layout {
    rows: usize,
    columns: usize,
    /// Neighbouring points of a thread.
    lanes: usize,
    /// Times that a thread does so.
    unroll: usize,
    threads: [usize; 2],
    /// Workgroups along a row; 0 where points are counted through.
    blocks: usize,
    groups: usize,
    /// Elements that buffers are aligned to, at least.
    alignment_bytes: usize,
}

impl Layout {
    fn new(request: &LowerRequest<'_>, program: &Cluster) -> Self {
        let parameters = request.parameters;
        let most = threads(request);
        let lanes = match parameters.int("chunk").unwrap_or(1) {
            0 | 1 => 1,
            2 | 3 => 2,
            4..8 => 4,
            _ => 8,
        };
        let unroll = parameters.int("unroll").unwrap_or(1).clamp(1, 16) as usize;
        let (columns, outer) =
            program.shape.split_last().map_or((1, &[][..]), |(last, outer)| (*last, outer));
        let rows: usize = outer.iter().product();
        let alignment_bytes = request.device.limits.offset_alignment_bytes as usize;
        if rows > 1 && columns < SHORTEST_ROW {
            let groups = (rows * columns).div_ceil(most);
            let threads = [most, 1];
            return Self { rows, columns, lanes: 1, unroll: 1, threads, blocks: 0, groups, alignment_bytes };
        }
        let across = if rows > 1 { columns.div_ceil(lanes).next_power_of_two().min(most) } else { most };
        let along = (most / across).max(1);
        let blocks = columns.div_ceil(across * lanes * unroll);
        let groups = blocks * rows.div_ceil(along);
        Self { rows, columns, lanes, unroll, threads: [across, along], blocks, groups, alignment_bytes }
    }
}

struct Generator<'a> {
    program: &'a Cluster,
    layout: &'a Layout,
}

impl Generator<'_> {
    fn kernel(&self) -> String {
        let Layout { rows, lanes, unroll, blocks, .. } = *self.layout;
        let mut text = String::from("\nKERNEL(THREADS_X, THREADS_Y) void NAME(PARAMETERS) {\n");
        if blocks == 0 {
            let _ = writeln!(text, "    const INDEX point = GROUP * THREADS + LOCAL_X;");
            let _ = writeln!(text, "    const INDEX row = point / columns, column = point % columns;");
        } else if rows == 1 {
            let _ = writeln!(
                text,
                "    const INDEX first = (GROUP * {} + LOCAL_X) * {lanes};",
                self.group_lanes()
            );
        } else {
            let _ = writeln!(text, "    const INDEX row = GROUP / blocks * THREADS_Y + LOCAL_Y;");
            let per_group = self.group_lanes();
            let _ =
                writeln!(text, "    const INDEX first = (GROUP % blocks * {per_group} + LOCAL_X) * {lanes};");
        }
        if rows > 1 {
            text.push_str("    if (row < rows) {\n");
        } else {
            text.push_str("    {\n");
        }
        text.push_str(&self.bases());
        if blocks == 0 {
            text.push_str(&self.one_point("        "));
        } else if lanes == 1 && unroll == 1 {
            text.push_str("        const INDEX column = first;\n        if (column < columns) {\n");
            text.push_str(&self.one_point("            "));
            text.push_str("        }\n");
        } else {
            let _ = writeln!(text, "        for (i32 u = 0; u < {unroll}; u++) {{");
            let _ = writeln!(text, "            INDEX column = first + u * (THREADS_X * {lanes});");
            if lanes > 1 {
                let _ = writeln!(text, "            if (column + {lanes} <= columns) {{");
                text.push_str(&self.packed());
                text.push_str("                continue;\n            }\n");
                let _ = writeln!(
                    text,
                    "            for (i32 l = 0; l < {lanes} && column < columns; l++, column++) {{"
                );
            } else {
                text.push_str("            if (column < columns) {\n");
            }
            text.push_str(&self.one_point("                "));
            text.push_str("            }\n        }\n");
        }
        text.push_str("    }\n}\n");
        text
    }

    /// Axes that rows are numbered along; none for a single row.
    fn outer_axes(&self) -> usize {
        if self.layout.rows > 1 { self.program.shape.len() - 1 } else { 0 }
    }

    /// The sizes that the text names.
    fn sizes(&self) -> Vec<(String, i64)> {
        let outer = self.outer_axes();
        let mut sizes = vec![("columns".to_owned(), self.layout.columns as i64)];
        if self.layout.rows > 1 {
            sizes.push(("rows".to_owned(), self.layout.rows as i64));
            if self.layout.blocks > 0 {
                sizes.push(("blocks".to_owned(), self.layout.blocks as i64));
            }
            sizes.extend((1..outer).map(|axis| (format!("extent{axis}"), self.program.shape[axis] as i64)));
        }
        for (n, view) in self.program.inputs.iter().enumerate() {
            if view.offset != 0 {
                sizes.push((format!("offset{n}"), view.offset));
            }
            let outer = (0..outer).filter(|&axis| view.strides[axis] != 0);
            sizes.extend(outer.map(|axis| (format!("stride{n}_{axis}"), view.strides[axis])));
            if !matches!(self.inner_stride(n), 0 | 1) {
                sizes.push((format!("stride{n}"), self.inner_stride(n)));
            }
        }
        sizes
    }

    /// Threads that a workgroup spreads over one row, repetitions counted.
    fn group_lanes(&self) -> String {
        format!("THREADS_X * {}", self.layout.unroll)
    }

    /// The index along each outer axis, and where each input's row begins.
    fn bases(&self) -> String {
        let mut text = String::new();
        let outer = self.outer_axes();
        if self.layout.rows > 1 {
            text.push_str("        INDEX rest = row;\n");
            for axis in (0..outer).rev() {
                if axis == 0 {
                    let _ = writeln!(text, "        const INDEX i{axis} = rest;");
                } else {
                    let _ = writeln!(text, "        const INDEX i{axis} = rest % extent{axis};");
                    let _ = writeln!(text, "        rest /= extent{axis};");
                }
            }
        }
        for (n, view) in self.program.inputs.iter().enumerate() {
            let mut sum = if view.offset == 0 { "0".to_owned() } else { format!("offset{n}") };
            for axis in (0..outer).filter(|&axis| view.strides[axis] != 0) {
                let _ = write!(sum, " + i{axis} * stride{n}_{axis}");
            }
            let _ = writeln!(text, "        const INDEX base{n} = {sum};");
        }
        text
    }

    fn index(&self, axis: usize) -> String {
        if axis + 1 == self.program.shape.len() {
            "column".to_owned()
        } else if self.layout.rows > 1 {
            format!("i{axis}")
        } else {
            "0".to_owned()
        }
    }

    /// The element of input `n` at `column`.
    fn element(&self, n: usize, column: &str) -> String {
        match self.inner_stride(n) {
            0 => format!("in{n}[base{n}]"),
            1 => format!("in{n}[base{n} + {column}]"),
            _ => format!("in{n}[base{n} + {column} * stride{n}]"),
        }
    }

    fn inner_stride(&self, n: usize) -> i64 {
        self.program.inputs[n].strides.last().copied().unwrap_or(0)
    }

    fn out_base(&self) -> &'static str {
        if self.layout.rows > 1 { "row * columns + " } else { "" }
    }

    fn one_point(&self, indent: &str) -> String {
        let mut text =
            statements(self.program, indent, |n| self.element(n, "column"), |axis| self.index(axis));
        for (n, &output) in self.program.outputs.iter().enumerate() {
            let value = stored(self.program, output);
            let _ = writeln!(text, "{indent}out{n}[{}column] = {value};", self.out_base());
        }
        text
    }

    /// As many neighbouring points as a thread has lanes.
    fn packed(&self) -> String {
        let lanes = self.layout.lanes;
        let indent = "                ";
        let mut text = String::new();
        let packs: Vec<bool> = self.program.inputs.iter().map(|view| self.is_aligned(view)).collect();
        for (n, view) in self.program.inputs.iter().enumerate().filter(|&(n, _)| packs[n]) {
            let pack = format!("{}x{lanes}", storage(view.dtype));
            let _ = writeln!(
                text,
                "{indent}const {pack} p{n} = *(const GLOBAL {pack}*)(in{n} + base{n} + column);"
            );
        }
        let rows_aligned = self.layout.rows == 1 || self.layout.columns.is_multiple_of(lanes);
        let whole = |n: usize| rows_aligned && self.fits(self.program.output_dtype(n));
        for n in (0..self.program.outputs.len()).filter(|&n| whole(n)) {
            let _ = writeln!(text, "{indent}{}x{lanes} o{n};", storage(self.program.output_dtype(n)));
        }
        for lane in 0..lanes {
            let column = if lane == 0 { "column".to_owned() } else { format!("(column + {lane})") };
            let _ = writeln!(text, "{indent}{{");
            let load = |n: usize| if packs[n] { format!("p{n}.s{lane}") } else { self.element(n, &column) };
            let index =
                |axis: usize| if self.index(axis) == "column" { column.clone() } else { self.index(axis) };
            text.push_str(&statements(self.program, "                    ", load, index));
            for (n, &output) in self.program.outputs.iter().enumerate() {
                let value = stored(self.program, output);
                let place = if whole(n) {
                    format!("o{n}.s{lane}")
                } else {
                    format!("out{n}[{}{column}]", self.out_base())
                };
                let _ = writeln!(text, "{indent}    {place} = {value};");
            }
            let _ = writeln!(text, "{indent}}}");
        }
        for n in (0..self.program.outputs.len()).filter(|&n| whole(n)) {
            let pack = format!("{}x{lanes}", storage(self.program.output_dtype(n)));
            let _ = writeln!(text, "{indent}*(GLOBAL {pack}*)(out{n} + {}column) = o{n};", self.out_base());
        }
        text
    }

    /// Whether buffers are aligned for packs of `dtype`.
    fn fits(&self, dtype: DType) -> bool {
        self.layout.alignment_bytes >= dtype.size() * self.layout.lanes
    }

    /// Whether every pack of a view lies together at a multiple of its size.
    fn is_aligned(&self, view: &View) -> bool {
        let lanes = self.layout.lanes as i64;
        let Some((&inner, outer)) = view.strides.split_last() else { return false };
        inner == 1
            && self.fits(view.dtype)
            && view.offset % lanes == 0
            && outer.iter().all(|stride| stride % lanes == 0)
    }
}
