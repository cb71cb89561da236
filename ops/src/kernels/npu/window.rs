//! Sliding windows on the vector unit: pooling, its gradients and their transposes.
//!
//! A tile holds some planes (or some rows of one) of the result. What each window sees is fetched in UB by gathers,
//! one for each place of the window; the indices and the masks of what is padding are computed with integer vector
//! instructions. Scattering is turned round: every element of the result
//! looks at the windows that contain it, in row-major order of its place in them, so sums have one order; which windows
//! those are is found once for all tiles where a tile holds whole planes.
//!
//! Any number of spatial axes. The rows of one window over one plane must fit in UB.

use crate::cluster::Literal;
use crate::lower::{Launch, LaunchArg, LowerRequest, Lowered, Unservable, Window, WindowKind};
use halite_hal as hal;
use halite_npu_isa::{Access, BinaryOp, CompareOp, CoreKind, DType, Dim, Inst, Operand, Pipe, UnaryOp};

use super::dot::piece;
use super::emit::{ArgIndex, BLOCK, Emitter, ON_CHIP, blocks, imm, isa_dtype};
use super::evaluate::dims4;

/// Points of a tile that the profile does not choose.
const DEFAULT_CHUNK: usize = 4096;
const INT: DType = DType::I32;
const MASK: DType = DType::U8;

/// The launch of a window operation.
pub(super) fn lower(request: &LowerRequest<'_>, window: &Window) -> Result<Lowered, Unservable> {
    Ok(Lowered::single(launch(request, window)?))
}

/// One side of the windows: x, or one element per window.
#[derive(Clone, Copy)]
struct Side {
    /// Rows along the first axis, and elements of one.
    rows: usize,
    width: usize,
}

impl Side {
    fn new(sizes: &[usize]) -> Self {
        Self { rows: sizes.first().copied().unwrap_or(1), width: sizes.iter().skip(1).product() }
    }

    fn plane(self) -> usize {
        self.rows * self.width
    }
}

/// Rows of a tile on one side.
#[derive(Clone, Copy)]
struct Rows {
    /// The first; below 0 it is padding.
    first: Operand,
    /// From plane to plane in UB, elements.
    pitch: usize,
}

/// Addresses in UB, given out one after the other.
struct Memory {
    next: usize,
}

impl Memory {
    fn take(&mut self, elements: usize, dtype: DType) -> Result<Operand, Unservable> {
        let at = self.next;
        self.next += (elements * dtype.size()).next_multiple_of(BLOCK);
        if self.next > ON_CHIP.ub {
            return Err(Unservable::new("the rows of one window do not fit in the npu's unified buffer"));
        }
        Ok(imm(at))
    }
}

/// Temporary vectors for indices and masks.
struct Scratch {
    index: Operand,
    part: Operand,
    quotient: Operand,
    valid: Operand,
    test: Operand,
}

/// How the result is cut, and how large the vectors of a tile are.
struct Tiling {
    planes: usize,
    /// Rows of the result in a tile; all of them if there is more than one plane.
    rows: usize,
    strips: usize,
    /// Most rows of the windows' side and of x that belong to a tile.
    window_rows: usize,
    input_rows: usize,
    /// Whether the windows that see each element are found once for all tiles.
    is_hoisted: bool,
}

struct Program<'a> {
    window: &'a Window,
    dtype: DType,
    input: Side,
    output: Side,
    tiling: Tiling,
    /// Whether the result is like x: elements look at windows.
    is_spread: bool,
}

impl<'a> Program<'a> {
    fn new(window: &'a Window, chunk: usize) -> Result<Self, Unservable> {
        let dtype = isa_dtype(window.dtype)?;
        if dtype.size() > 4 {
            return Err(Unservable::new(format!("{} is not a dtype of the npu's windows", window.dtype)));
        }
        let (input, output) = (Side::new(&window.input), Side::new(&window.output));
        let is_spread = matches!(window.kind, WindowKind::ScatterToMax | WindowKind::Spread);
        let mut program = Self {
            window,
            dtype,
            input,
            output,
            tiling: Tiling {
                planes: 1,
                rows: 1,
                strips: 1,
                window_rows: 1,
                input_rows: 1,
                is_hoisted: false,
            },
            is_spread,
        };
        let result = if is_spread { input } else { output };
        let larger = input.plane().max(output.plane()).max(1);
        let most = (chunk / larger).clamp(1, window.outer.max(1));
        // Several planes, then one, then fewer and fewer rows of one.
        let planes = std::iter::successors(Some(most), |planes| (*planes > 1).then_some(planes / 2));
        let rows =
            std::iter::successors(Some(result.rows.max(1)), |rows| (*rows > 1).then_some(rows.div_ceil(2)));
        let sizes = planes.map(|planes| (planes, result.rows.max(1))).chain(rows.map(|rows| (1, rows)));
        let all: Vec<_> = sizes.collect();
        let hoisted = [true, false].into_iter().filter(|hoists| is_spread || !hoists);
        let mut candidates =
            hoisted.flat_map(|hoists| all.iter().map(move |&(planes, rows)| (planes, rows, hoists)));
        let found = candidates.find_map(|(planes, rows, hoists)| {
            let tiling = Tiling { is_hoisted: hoists, ..program.tiling(planes, rows) };
            let is_legal = !hoists || tiling.strips == 1;
            (is_legal && Vectors::new(&program, &tiling).is_ok()).then_some(tiling)
        });
        let refused = "the rows of one window do not fit in the npu's unified buffer";
        program.tiling = found.ok_or_else(|| Unservable::new(refused))?;
        Ok(program)
    }

    fn tiling(&self, planes: usize, rows: usize) -> Tiling {
        let window = self.window.window.first().copied().unwrap_or(1);
        let stride = self.window.stride.first().copied().unwrap_or(1);
        let result = if self.is_spread { self.input } else { self.output };
        let strips = result.rows.max(1).div_ceil(rows);
        let window_rows = if self.is_spread && strips == 1 {
            self.output.rows
        } else if self.is_spread {
            ((rows - 1 + window - 1) / stride + 2).min(self.output.rows)
        } else {
            rows
        };
        let input_rows = if strips == 1 {
            self.input.rows
        } else {
            ((window_rows.max(1) - 1) * stride + window).min(self.input.rows)
        };
        Tiling { planes, rows, strips, window_rows, input_rows, is_hoisted: false }
    }

    /// Elements of a tile's windows.
    fn window_len(&self, tiling: &Tiling) -> usize {
        tiling.planes * tiling.window_rows * self.output.width
    }

    /// Elements of a tile's part of x.
    fn input_len(&self, tiling: &Tiling) -> usize {
        tiling.planes * tiling.input_rows * self.input.width
    }

    /// Elements of a tile of the result.
    fn result_len(&self, tiling: &Tiling) -> usize {
        let width = if self.is_spread { self.input.width } else { self.output.width };
        tiling.planes * tiling.rows * width
    }

    fn finds_max(&self) -> bool {
        matches!(self.window.kind, WindowKind::ScatterToMax | WindowKind::GatherAtMax)
    }

    fn reads_values(&self) -> bool {
        !matches!(self.window.kind, WindowKind::Max | WindowKind::Sum)
    }

    /// Sums of halves accumulate in f32.
    fn work(&self) -> DType {
        let adds =
            matches!(self.window.kind, WindowKind::Sum | WindowKind::Spread | WindowKind::ScatterToMax);
        if adds && self.dtype.is_float() { DType::F32 } else { self.dtype }
    }

    fn taps(&self) -> usize {
        self.window.window.iter().product()
    }
}

/// The vectors of a tile in UB.
struct Vectors {
    /// x, the values that come with it (like the windows or like x), and their copy in the working type.
    x: Operand,
    values: Operand,
    wide: Operand,
    /// The windows' greatest element and the place where it was found.
    best: Operand,
    best_tap: Operand,
    best_index: Operand,
    /// Fetched by one place of the window, and as large as windows or result.
    fetched: Operand,
    fetched_tap: Operand,
    chosen: Operand,
    zeros: Operand,
    result: Operand,
    narrow: Operand,
    /// Coordinates of the elements of a tile along each axis, times what one step is on the other side.
    coordinates: Vec<Operand>,
    /// Where the window's corner is in the tile's part of x, padding in front left out on the first axis.
    corner: Operand,
    result_coordinates: Vec<Operand>,
    result_plane_base: Operand,
    /// For each place of the window: the window that sees each element, and whether one does.
    seen: Vec<(Operand, Operand)>,
    scratch: Scratch,
}

impl Vectors {
    fn new(program: &Program<'_>, tiling: &Tiling) -> Result<Self, Unservable> {
        let (dtype, work) = (program.dtype, program.work());
        let (windows, inputs) = (program.window_len(tiling), program.input_len(tiling));
        let result = program.result_len(tiling);
        let most = windows.max(result);
        let rank = program.window.input.len();
        let mut m = Memory { next: 0 };
        let needs_x = program.window.kind != WindowKind::Spread;
        let looks_at_windows = !program.is_spread || program.finds_max();
        let some = |m: &mut Memory, needed: bool, len: usize, dtype: DType| {
            if needed { m.take(len, dtype) } else { Ok(imm(0)) }
        };
        let value_len = if program.window.kind == WindowKind::GatherAtMax { inputs } else { windows };
        let is_wide = work != dtype;
        let axes = |m: &mut Memory, needed: bool, len: usize| -> Result<Vec<Operand>, Unservable> {
            (0..rank).map(|_| some(m, needed, len, INT)).collect()
        };
        let wide_len = if program.is_spread { windows } else { inputs };
        Ok(Self {
            x: some(&mut m, needs_x, inputs, dtype)?,
            values: some(&mut m, program.reads_values(), value_len, dtype)?,
            wide: some(&mut m, is_wide, wide_len, work)?,
            best: some(&mut m, program.finds_max(), windows, dtype)?,
            best_tap: some(&mut m, program.finds_max(), windows, INT)?,
            best_index: some(&mut m, program.finds_max(), windows, INT)?,
            fetched: m.take(most, DType::F32)?,
            fetched_tap: some(&mut m, program.window.kind == WindowKind::ScatterToMax, result, INT)?,
            chosen: m.take(most, DType::F32)?,
            zeros: m.take(most, DType::F32)?,
            result: m.take(result, work)?,
            narrow: some(&mut m, is_wide, result, dtype)?,
            coordinates: axes(&mut m, looks_at_windows, windows)?,
            corner: some(&mut m, looks_at_windows, windows, INT)?,
            result_coordinates: axes(&mut m, program.is_spread, result)?,
            result_plane_base: some(&mut m, program.is_spread, result, INT)?,
            seen: (0..if tiling.is_hoisted { program.taps() } else { 0 })
                .map(|_| Ok((m.take(result, INT)?, m.take(result, MASK)?)))
                .collect::<Result<_, Unservable>>()?,
            scratch: Scratch {
                index: m.take(most, INT)?,
                part: m.take(most, INT)?,
                quotient: m.take(most, INT)?,
                valid: m.take(most, MASK)?,
                test: m.take(most, MASK)?,
            },
        })
    }
}

fn launch(request: &LowerRequest<'_>, window: &Window) -> Result<Launch, Unservable> {
    let chunk = request.parameters.int("chunk").map_or(DEFAULT_CHUNK, |chunk| chunk as usize);
    let program = Program::new(window, chunk)?;
    let v = Vectors::new(&program, &program.tiling)?;
    let mut e = Emitter::new(window.kind.name(), CoreKind::Vector);
    let mut input = 0;
    let mut next_input = |e: &mut Emitter| {
        input += 1;
        e.buffer(LaunchArg::Input(input - 1), window.dtype, Access::Read)
    };
    let x = (window.kind != WindowKind::Spread).then(|| next_input(&mut e));
    let values = program.reads_values().then(|| next_input(&mut e));
    let out = e.buffer(LaunchArg::Output(0), window.dtype, Access::Write);

    let tiling = &program.tiling;
    let plane_tiles = window.outer.div_ceil(tiling.planes);
    let tiles = plane_tiles * tiling.strips;
    let blocks = blocks(request, tiles);
    let mut emission = Emission { e: &mut e, p: &program, v: &v };
    emission.coordinates();
    e.k.duplicate(
        program.work(),
        v.zeros,
        0,
        imm(program.result_len(tiling).max(program.window_len(tiling))),
    );
    let first: Operand = if blocks == 1 { Operand::ZERO } else { e.k.block_index().into() };
    let end = e.k.value(tiles as i64);
    // The vectors of a tile fill UB, so a tile's loads wait until the one before is stored.
    e.k.set(Pipe::Mte3, Pipe::Mte2, 0);
    e.repeat(first, end, imm(blocks as usize), |e, tile| {
        let (strip, group) = (e.k.rem(tile, imm(tiling.strips)), e.k.div(tile, imm(tiling.strips)));
        let (plane, planes) = piece(e, group, tiling.planes, window.outer);
        let result = if program.is_spread { program.input } else { program.output };
        let (row, rows) = piece(e, strip, tiling.rows, result.rows);
        let mut emission = Emission { e, p: &program, v: &v };
        let (windows, inputs) = emission.strips(row);
        emission.e.k.wait(Pipe::Mte3, Pipe::Mte2, 0);
        if let Some(x) = x {
            emission.load(x, v.x, program.input, inputs, tiling.input_rows, [plane, planes]);
        }
        if let Some(values) = values {
            let (side, rows, count) = match window.kind {
                WindowKind::GatherAtMax => (program.input, inputs, tiling.input_rows),
                _ => (program.output, windows, tiling.window_rows),
            };
            emission.load(values, v.values, side, rows, count, [plane, planes]);
        }
        emission.e.k.sync(Pipe::Mte2, Pipe::V, 0);
        let stored = emission.compute(windows, inputs, row, planes);
        emission.e.k.sync(Pipe::V, Pipe::Mte3, 0);
        let size = program.dtype.size();
        let (width, bytes) = (result.width, result.width * size);
        let dst = e.address(out, 0, &[(plane, (result.plane() * size) as i64), (row, bytes as i64)]);
        let count = e.k.mul(rows, imm(width));
        let dims = [
            Dim::new(planes, imm(tiling.rows * bytes), imm(result.plane() * size)),
            Dim::new(count, imm(size), imm(size)),
        ];
        e.k.store_ub(program.dtype, dst, stored, dims4(&dims));
        e.k.set(Pipe::Mte3, Pipe::Mte2, 0);
    });
    e.k.wait(Pipe::Mte3, Pipe::Mte2, 0);
    e.launch(blocks, false)
}

struct Emission<'r> {
    e: &'r mut Emitter,
    p: &'r Program<'r>,
    v: &'r Vectors,
}

impl Emission<'_> {
    /// Runs `body` for each place of the window; registers that it takes are free again for the next.
    fn each_tap(&mut self, mut body: impl FnMut(&mut Emission<'_>, usize)) {
        let (p, v) = (self.p, self.v);
        for tap in 0..p.taps() {
            self.e.scope(|e| body(&mut Emission { e, p, v }, tap));
        }
    }

    /// Index vectors that do not depend on the tile: for windows the place of their corner in x, for elements of the
    /// result their own place with the padding in front, along each axis; and where their plane starts on the other side.
    fn coordinates(&mut self) {
        let (p, v) = (self.p, self.v);
        let window = p.window;
        if !p.is_spread || p.finds_max() {
            let count = p.window_len(&p.tiling);
            let mut sizes = window.output.clone();
            if let Some(rows) = sizes.first_mut() {
                *rows = p.tiling.window_rows;
            }
            for (axis, &dst) in v.coordinates.iter().enumerate() {
                self.coordinate(dst, &sizes, axis, count);
                self.scalar(BinaryOp::Mul, dst, dst, imm(window.stride[axis]), count);
                let pad = if axis == 0 { 0 } else { window.pad_low[axis] };
                self.scalar(BinaryOp::Sub, dst, dst, imm(pad), count);
            }
            let plane = p.tiling.window_rows * p.output.width;
            self.plane_base(v.corner, plane, p.tiling.input_rows * p.input.width, count);
            for (axis, &coordinate) in v.coordinates.iter().enumerate() {
                let inner: usize = window.input[axis + 1..].iter().product();
                self.e.k.binary_scalar(
                    BinaryOp::Mul,
                    INT,
                    v.scratch.part,
                    coordinate,
                    imm(inner),
                    imm(count),
                );
                self.e.k.binary(BinaryOp::Add, INT, v.corner, v.corner, v.scratch.part, imm(count));
            }
        }
        if p.is_spread {
            let count = p.result_len(&p.tiling);
            let mut sizes = window.input.clone();
            if let Some(rows) = sizes.first_mut() {
                *rows = p.tiling.rows;
            }
            for (axis, &dst) in v.result_coordinates.iter().enumerate() {
                self.coordinate(dst, &sizes, axis, count);
                self.scalar(BinaryOp::Add, dst, dst, imm(window.pad_low[axis]), count);
            }
            let plane = p.tiling.rows * p.input.width;
            self.plane_base(v.result_plane_base, plane, p.tiling.window_rows * p.output.width, count);
            for (tap, &seen) in v.seen.iter().enumerate() {
                let windows = Rows { first: Operand::ZERO, pitch: 0 };
                self.element_index(tap, windows, Operand::ZERO, imm(count), seen);
            }
        }
    }

    fn coordinate(&mut self, dst: Operand, sizes: &[usize], axis: usize, count: usize) {
        let inner: usize = sizes[axis + 1..].iter().product();
        self.iota(dst, count);
        self.scalar(BinaryOp::Div, dst, dst, imm(inner.max(1)), count);
        self.scalar(BinaryOp::Rem, dst, dst, imm(sizes[axis].max(1)), count);
    }

    fn plane_base(&mut self, dst: Operand, plane: usize, other: usize, count: usize) {
        self.iota(dst, count);
        self.scalar(BinaryOp::Div, dst, dst, imm(plane.max(1)), count);
        self.scalar(BinaryOp::Mul, dst, dst, imm(other), count);
    }

    fn iota(&mut self, dst: Operand, count: usize) {
        let (start, step, count) = (Operand::ZERO, imm(1), imm(count));
        self.e.k.push(Inst::Iota { dtype: INT, dst, start, step, count });
    }

    fn scalar(&mut self, op: BinaryOp, dst: Operand, src: Operand, scalar: impl Into<Operand>, count: usize) {
        let scalar = scalar.into();
        let is_neutral = match op {
            BinaryOp::Add | BinaryOp::Sub => scalar == imm(0),
            BinaryOp::Mul | BinaryOp::Div => scalar == imm(1),
            _ => false,
        };
        if !is_neutral || dst != src {
            self.e.k.binary_scalar(op, INT, dst, src, scalar, imm(count));
        }
    }

    /// The first row of windows and of x that belong to the tile whose result starts at `row`.
    fn strips(&mut self, row: Operand) -> (Rows, Rows) {
        let (p, e) = (self.p, &mut *self.e);
        let of = |values: &[usize], fill: usize| values.first().copied().unwrap_or(fill);
        let window = p.window;
        let (stride, size, pad) = (of(&window.stride, 1), of(&window.window, 1), of(&window.pad_low, 0));
        let first_window = if !p.is_spread {
            row
        } else if p.tiling.strips == 1 {
            Operand::ZERO
        } else {
            // The first window that ends at or behind the row: ceil((row + pad - size + 1) / stride).
            let behind = e.k.add(row, Operand::Imm(pad as i32 - size as i32 + stride as i32));
            let behind = e.k.max(behind, 0);
            e.k.div(behind, imm(stride))
        };
        let first_input = if p.tiling.strips == 1 {
            Operand::ZERO
        } else {
            let corner = e.k.mul(first_window, imm(stride));
            let corner = e.k.sub(corner, imm(pad));
            e.k.max(corner, 0)
        };
        let windows = Rows { first: first_window, pitch: p.tiling.window_rows * p.output.width };
        (windows, Rows { first: first_input, pitch: p.tiling.input_rows * p.input.width })
    }

    /// Loads up to `most` rows of each plane from `rows.first` on.
    fn load(
        &mut self,
        arg: ArgIndex,
        dst: Operand,
        side: Side,
        rows: Rows,
        most: usize,
        [plane, planes]: [Operand; 2],
    ) {
        let dtype = self.p.dtype;
        let size = dtype.size();
        self.e.scope(|e| {
            let left = e.k.sub(imm(side.rows), rows.first);
            let left = e.k.max(left, 0);
            let count = e.k.min(left, imm(most));
            let count = e.k.mul(count, imm(side.width));
            let terms = [(plane, (side.plane() * size) as i64), (rows.first, (side.width * size) as i64)];
            let src = e.address(arg, 0, &terms);
            let dims = [
                Dim::new(planes, imm(side.plane() * size), imm(rows.pitch * size)),
                Dim::new(count, imm(size), imm(size)),
            ];
            e.k.load_ub(dtype, dst, src, dims4(&dims));
        });
    }

    /// Emits the computation of a tile; gives the place of the result in the operands' type.
    fn compute(&mut self, windows: Rows, inputs: Rows, row: Operand, planes: Operand) -> Operand {
        let (p, v) = (self.p, self.v);
        let work = p.work();
        let per_plane = |len: usize| len / p.tiling.planes;
        let window_count = self.e.k.mul(planes, imm(per_plane(p.window_len(&p.tiling))));
        let result_count = self.e.k.mul(planes, imm(per_plane(p.result_len(&p.tiling))));
        let input_count = self.e.k.mul(planes, imm(per_plane(p.input_len(&p.tiling))));
        // What is summed, in the working type.
        let mut from = if p.is_spread { v.values } else { v.x };
        let from_count = if p.is_spread { window_count } else { input_count };
        if work != p.dtype {
            self.e.k.convert(p.dtype, work, v.wide, from, from_count);
            from = v.wide;
        }
        let limit = |len: usize| imm(len.max(1));
        match p.window.kind {
            WindowKind::Max | WindowKind::Sum => {
                let is_max = p.window.kind == WindowKind::Max;
                let start = if is_max { lowest(p.window.dtype) } else { Operand::ZERO };
                self.e.k.duplicate(work, v.result, start, result_count);
                if is_max {
                    self.e.k.duplicate(work, v.zeros, start, result_count);
                }
                self.each_tap(|this, tap| {
                    let is_partial = this.window_index(tap, windows, inputs, window_count);
                    let limit = limit(p.input_len(&p.tiling));
                    this.gather(work, (v.fetched, from), v.scratch.index, window_count, limit);
                    if is_partial {
                        this.e.k.select(work, v.fetched, v.scratch.valid, v.fetched, v.zeros, window_count);
                    }
                    let op = if is_max { BinaryOp::Max } else { BinaryOp::Add };
                    this.e.k.binary(op, work, v.result, v.result, v.fetched, window_count);
                });
            }
            WindowKind::GatherAtMax => {
                self.find_max(windows, inputs, window_count);
                let (dtype, index) = (p.dtype, v.best_index);
                let (dst, src, count) = (v.result, v.values, window_count);
                self.e.k.push(Inst::Gather {
                    dtype,
                    dst,
                    src,
                    index,
                    count,
                    limit: limit(p.input_len(&p.tiling)),
                });
            }
            WindowKind::ScatterToMax | WindowKind::Spread => {
                let by_max = p.finds_max();
                if by_max {
                    self.find_max(windows, inputs, window_count);
                }
                self.e.k.duplicate(work, v.result, 0, result_count);
                self.each_tap(|this, tap| {
                    let (index, valid) =
                        v.seen.get(tap).copied().unwrap_or((v.scratch.index, v.scratch.valid));
                    if v.seen.is_empty() {
                        this.element_index(tap, windows, row, result_count, (index, valid));
                    }
                    let limit = limit(p.window_len(&p.tiling));
                    this.gather(work, (v.fetched, from), index, result_count, limit);
                    let mut mask = valid;
                    if by_max {
                        this.gather(INT, (v.fetched_tap, v.best_tap), index, result_count, limit);
                        let (op, dst, src) = (CompareOp::Eq, v.scratch.test, v.fetched_tap);
                        let (scalar, count) = (imm(tap), result_count);
                        this.e.k.push(Inst::CompareScalar { op, dtype: INT, dst, src, scalar, count });
                        this.e.k.binary(BinaryOp::And, MASK, dst, dst, valid, count);
                        mask = dst;
                    }
                    this.e.k.select(work, v.fetched, mask, v.fetched, v.zeros, result_count);
                    this.e.k.binary(BinaryOp::Add, work, v.result, v.result, v.fetched, result_count);
                });
            }
        }
        if work == p.dtype {
            return v.result;
        }
        self.e.k.convert(work, p.dtype, v.narrow, v.result, result_count);
        v.narrow
    }

    fn gather(
        &mut self,
        dtype: DType,
        (dst, src): (Operand, Operand),
        index: Operand,
        count: Operand,
        limit: Operand,
    ) {
        self.e.k.push(Inst::Gather { dtype, dst, src, index, count, limit });
    }

    /// Index on each axis of a place of the window.
    fn tap_index(&self, mut tap: usize) -> Vec<usize> {
        let sizes = &self.p.window.window;
        let mut index = vec![0; sizes.len()];
        for axis in (0..sizes.len()).rev() {
            index[axis] = tap % sizes[axis];
            tap /= sizes[axis];
        }
        index
    }

    /// Computes where each window's element at `tap` is in the tile's part of x, 0 where it is padding. Whether any may
    /// be: then `valid` tells which are not.
    fn window_index(&mut self, tap: usize, windows: Rows, inputs: Rows, count: Operand) -> bool {
        let (p, v) = (self.p, self.v);
        let (window, s) = (p.window, &v.scratch);
        let tap = self.tap_index(tap);
        let mut is_partial = false;
        let mut offset = Operand::ZERO;
        for (axis, &tap) in tap.iter().enumerate() {
            let stride = window.stride[axis];
            let inner: usize = window.input[axis + 1..].iter().product();
            // The place in x is the coordinate plus this; rows of the tile start at the strip's first one.
            let (place, first) = if axis == 0 {
                let corner = self.e.k.mul(windows.first, imm(stride));
                let place = self.e.k.add(corner, Operand::Imm(tap as i32 - window.pad_low[0] as i32));
                (place, inputs.first)
            } else {
                (imm(tap), Operand::ZERO)
            };
            let last = (window.output[axis].max(1) - 1) * stride + tap;
            let reaches_out = tap < window.pad_low[axis] || last >= window.input[axis] + window.pad_low[axis];
            // The last strip has windows behind the last row, whose results are not stored.
            if reaches_out || axis == 0 && p.tiling.strips > 1 {
                let least = self.e.k.sub(0, place);
                self.test(CompareOp::Ge, v.coordinates[axis], least, is_partial, count);
                let end = self.e.k.sub(imm(window.input[axis]), place);
                self.test(CompareOp::Lt, v.coordinates[axis], end, true, count);
                is_partial = true;
            }
            let row = self.e.k.sub(place, first);
            let elements = self.e.k.mul(row, imm(inner));
            offset = self.e.k.add(offset, elements);
        }
        self.e.k.binary_scalar(BinaryOp::Add, INT, s.index, v.corner, offset, count);
        if is_partial {
            self.blank_invalid((s.index, s.valid), count);
        }
        is_partial
    }

    /// Computes which window sees each element of the result at `tap`, 0 where none does, and whether one does.
    fn element_index(
        &mut self,
        tap: usize,
        windows: Rows,
        row: Operand,
        count: Operand,
        (index, valid): (Operand, Operand),
    ) {
        let (p, v) = (self.p, self.v);
        let (window, s) = (p.window, &v.scratch);
        let tap = self.tap_index(tap);
        self.e.k.binary_scalar(BinaryOp::Add, INT, index, v.result_plane_base, 0, count);
        self.e.k.duplicate(MASK, valid, 1, count);
        for (axis, &tap) in tap.iter().enumerate() {
            let stride = window.stride[axis];
            let inner: usize = window.output[axis + 1..].iter().product();
            let (place, offset) = if axis == 0 {
                (self.e.k.sub(row, imm(tap)), windows.first)
            } else {
                (Operand::Imm(-(tap as i32)), Operand::ZERO)
            };
            self.e.k.binary_scalar(BinaryOp::Add, INT, s.part, v.result_coordinates[axis], place, count);
            self.test_into(valid, CompareOp::Ge, s.part, imm(0), count);
            if stride > 1 {
                self.e.k.binary_scalar(BinaryOp::Rem, INT, s.quotient, s.part, imm(stride), count);
                self.test_into(valid, CompareOp::Eq, s.quotient, imm(0), count);
                self.e.k.binary_scalar(BinaryOp::Div, INT, s.part, s.part, imm(stride), count);
            }
            self.test_into(valid, CompareOp::Lt, s.part, imm(window.output[axis]), count);
            self.e.k.binary_scalar(BinaryOp::Sub, INT, s.part, s.part, offset, count);
            self.e.k.binary_scalar(BinaryOp::Mul, INT, s.part, s.part, imm(inner), count);
            self.e.k.binary(BinaryOp::Add, INT, index, index, s.part, count);
        }
        self.blank_invalid((index, valid), count);
    }

    /// `valid = (valid if more) and (src op scalar)`
    fn test(&mut self, op: CompareOp, src: Operand, scalar: Operand, more: bool, count: Operand) {
        let s = &self.v.scratch;
        if more {
            return self.test_into(s.valid, op, src, scalar, count);
        }
        self.e.k.push(Inst::CompareScalar { op, dtype: INT, dst: s.valid, src, scalar, count });
    }

    /// `valid = valid and (src op scalar)`
    fn test_into(&mut self, valid: Operand, op: CompareOp, src: Operand, scalar: Operand, count: Operand) {
        let dst = self.v.scratch.test;
        self.e.k.push(Inst::CompareScalar { op, dtype: INT, dst, src, scalar, count });
        self.e.k.binary(BinaryOp::And, MASK, valid, valid, dst, count);
    }

    /// Sets the index to 0 where `valid` is not.
    fn blank_invalid(&mut self, (index, valid): (Operand, Operand), count: Operand) {
        let part = self.v.scratch.part;
        self.e.k.convert(MASK, INT, part, valid, count);
        self.e.k.binary(BinaryOp::Mul, INT, index, index, part, count);
    }

    /// Finds each window's first greatest element: its value, its place in the window and its index in x.
    fn find_max(&mut self, windows: Rows, inputs: Rows, count: Operand) {
        let (p, v) = (self.p, self.v);
        let s = &v.scratch;
        let dtype = p.dtype;
        self.e.k.duplicate(INT, v.best_tap, -1, count);
        self.e.k.duplicate(INT, v.best_index, 0, count);
        self.e.k.duplicate(dtype, v.best, lowest(p.window.dtype), count);
        self.each_tap(|this, tap| {
            let is_partial = this.window_index(tap, windows, inputs, count);
            let limit = imm(p.input_len(&p.tiling).max(1));
            this.gather(dtype, (v.fetched, v.x), s.index, count, limit);
            let k = &mut this.e.k;
            // Take it if nothing was taken yet, or if it is greater, or NaN with no NaN taken yet.
            k.compare(CompareOp::Le, dtype, s.test, v.fetched, v.best, count);
            k.unary(UnaryOp::Not, MASK, s.test, s.test, count);
            k.compare(CompareOp::Eq, dtype, v.chosen, v.best, v.best, count);
            k.binary(BinaryOp::And, MASK, s.test, s.test, v.chosen, count);
            let (op, scalar) = (CompareOp::Lt, imm(0));
            k.push(Inst::CompareScalar { op, dtype: INT, dst: v.chosen, src: v.best_tap, scalar, count });
            k.binary(BinaryOp::Or, MASK, s.test, s.test, v.chosen, count);
            if is_partial {
                k.binary(BinaryOp::And, MASK, s.test, s.test, s.valid, count);
            }
            k.select(dtype, v.best, s.test, v.fetched, v.best, count);
            k.select(INT, v.best_index, s.test, s.index, v.best_index, count);
            k.duplicate(INT, s.part, imm(tap), count);
            k.select(INT, v.best_tap, s.test, s.part, v.best_tap, count);
        });
    }
}

/// The bits of the least element.
fn lowest(dtype: hal::DType) -> Operand {
    let least = Literal::new(dtype, f64::NEG_INFINITY).bits;
    Operand::Imm((least as u32).cast_signed())
}
