//! Matrix multiplication, `C[m, n] = epilogue(A[m, k] * B[k, n])`, over batches and any strides.
//!
//! A [`GemmPlan`] splits C into independent groups, which a caller launches as a grid in any order and
//! on any threads. A group walks its part of C in blocks of `mc x nc` and `kc` along k (Goto and van de
//! Geijn, "Anatomy of High-Performance Matrix Multiplication", ACM TOMS 34(3), 2008). Operands are
//! packed into panels where they are used often enough to pay for it, and read where they lie
//! otherwise, so a transpose costs no copy of its own. Every element of C is one chain of fused
//! multiply-adds in the order of k: neither the tiles nor the number of threads change the result.

pub(super) mod micro;
mod pack;
mod plain;

use std::marker::PhantomData;
use std::mem::size_of;

use half::f16;

use super::simd::{Element, Isa, Scratch, Simd, Task};
use micro::{MicroArgs, multiply};

/// Strides of a matrix, in elements; zero and negative ones are fine for the operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MatrixStrides {
    /// From one row to the next.
    pub row: isize,
    /// From one column to the next.
    pub col: isize,
}

impl MatrixStrides {
    /// A dense row-major matrix with `cols` columns.
    pub const fn row_major(cols: usize) -> Self {
        Self { row: cols as isize, col: 1 }
    }

    /// The transpose of a dense row-major matrix that has `rows` columns there.
    pub const fn transposed(rows: usize) -> Self {
        Self { row: 1, col: rows as isize }
    }
}

/// One batch axis: its length, and the strides of the operands along it (0 broadcasts).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BatchAxis {
    /// Number of matrices along the axis.
    pub len: usize,
    /// Stride of A, in elements.
    pub a: isize,
    /// Stride of B, in elements.
    pub b: isize,
    /// Stride of C, in elements; no two matrices of C may overlap.
    pub c: isize,
}

/// Where a bias is added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Bias {
    /// Nowhere.
    #[default]
    None,
    /// `bias[m]`, one value for each row of C.
    PerRow,
    /// `bias[n]`, one value for each column of C.
    PerColumn,
}

/// What happens to a finished element of C before it is stored: the bias first, then the ReLU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Epilogue {
    /// The bias to add; the same for every matrix of the batch.
    pub bias: Bias,
    /// Whether to take `max(x, 0)`, keeping NaN.
    pub relu: bool,
}

/// Blocking, in elements; 0 asks for the default of the instruction set. Values are rounded to whole
/// register tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct GemmTile {
    /// Rows of A that are packed together.
    pub mc: usize,
    /// Columns of B that are packed together.
    pub nc: usize,
    /// Length along k of a packed panel.
    pub kc: usize,
}

/// The problem: sizes, strides and epilogue.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GemmSpec {
    /// Batch axes, outermost first; none means one matrix.
    pub batch: Vec<BatchAxis>,
    /// Rows of A and C.
    pub m: usize,
    /// Columns of B and C.
    pub n: usize,
    /// Columns of A and rows of B; 0 makes C zero (then the epilogue).
    pub k: usize,
    /// Strides of A `[m, k]`.
    pub a: MatrixStrides,
    /// Strides of B `[k, n]`.
    pub b: MatrixStrides,
    /// From one row of C to the next; its columns are contiguous.
    pub c_row: usize,
    /// What happens to a finished element.
    pub epilogue: Epilogue,
}

impl GemmSpec {
    /// One dense row-major product without an epilogue.
    pub fn dense(m: usize, n: usize, k: usize) -> Self {
        Self {
            batch: Vec::new(),
            m,
            n,
            k,
            a: MatrixStrides::row_major(k),
            b: MatrixStrides::row_major(n),
            c_row: n,
            epilogue: Epilogue::default(),
        }
    }
}

/// A storage type that can be multiplied: f32 and f16 (accumulated in f32), and f64.
///
/// Implemented here for those three; the method is an internal of [`GemmPlan`].
pub trait GemmElement: Copy + Send + Sync + 'static {
    /// Whether a group needs an f32 copy of its part of C.
    #[doc(hidden)]
    const WIDENS: bool;

    /// Whether operands can be read where they lie.
    #[doc(hidden)]
    const IN_PLACE: bool;

    /// Runs one group.
    ///
    /// # Safety
    /// As [`GemmPlan::run_group`]; `part` lies inside C.
    #[doc(hidden)]
    unsafe fn run(plan: &GemmPlan<Self>, part: Part<Self>, scratch: &mut [u8])
    where
        Self: Sized;
}

/// One group's part of one matrix of C, with the operands of that matrix.
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub struct Part<T> {
    a: *const T,
    b: *const T,
    c: *mut T,
    bias: *const T,
    row: usize,
    rows: usize,
    col: usize,
    cols: usize,
}

/// A matrix multiplication, split into groups.
///
/// 1. [`GemmPlan::new`] once per shape; it is cheap and allocates next to nothing.
/// 2. [`GemmPlan::run_group`] for every group in `0..groups()`, in any order, on any threads, each thread
///    with its own scratch memory of [`GemmPlan::scratch_bytes`].
///
/// C is written only, and written entirely. NaN and infinities propagate as IEEE 754 says.
#[derive(Debug, Clone)]
pub struct GemmPlan<T> {
    isa: Isa,
    spec: GemmSpec,
    tile: GemmTile,
    /// Parts of C along its rows and columns, and how long a part is.
    row_parts: usize,
    col_parts: usize,
    part_rows: usize,
    part_cols: usize,
    pack_a: bool,
    pack_b: bool,
    groups: u32,
    dtype: PhantomData<fn(T)>,
}

/// Multiply-adds below which a second group costs more than it saves (about 4 us of one core).
const MIN_GROUP_MACS: usize = 1 << 17;

/// Panels of the other operand from which on packing pays: B is copied as it lies or by vector
/// transposes, A is broken into short columns.
const PACK_A_FROM: usize = 5;
const PACK_B_FROM: usize = 8;

impl<T: GemmElement> GemmPlan<T> {
    /// Plans `spec` for `isa` (or portable code, if the processor lacks it), with blocking `tile`, in at
    /// least as many groups as pay off on `threads` threads.
    ///
    /// # Panics
    /// If C has more than `isize::MAX` elements, which no allocation can hold.
    pub fn new(isa: Isa, spec: GemmSpec, tile: GemmTile, threads: usize) -> Self {
        let isa = isa.or_portable();
        let (tile_rows, lanes, panel) = register_tile(isa);
        let wide = size_of::<T>() != size_of::<f64>();
        let round = |value: usize, default: usize, unit: usize| {
            (if value == 0 { default } else { value }).next_multiple_of(unit)
        };
        let tile = GemmTile {
            mc: round(tile.mc, 12 * tile_rows, tile_rows),
            nc: round(tile.nc, 1024, panel),
            kc: round(tile.kc, 384, 1),
        };
        let matrices = spec.batch.iter().map(|axis| axis.len).product::<usize>();
        let (m, n, k) = (spec.m, spec.n, spec.k);
        let macs = matrices.saturating_mul(m).saturating_mul(n).saturating_mul(k);
        // Enough groups for every thread; several for each where they are long, so that a thread that
        // is held up does not hold up the others.
        let threads = threads.max(1);
        let per_thread = if threads > 1 { (macs / threads / (64 * MIN_GROUP_MACS)).clamp(1, 2) } else { 1 };
        let wanted = (threads * per_thread).min(macs / MIN_GROUP_MACS).max(1);
        let wanted = wanted.div_ceil(matrices.max(1));

        let direct_a = T::IN_PLACE && (spec.a.row == 1 || spec.a.col == 1);
        let direct_b = T::IN_PLACE && spec.b.col == 1;
        let mut best = (f64::INFINITY, m.max(1), n.max(1));
        for row_parts in 1..=wanted {
            let col_parts = wanted.div_ceil(row_parts);
            let rows = m.div_ceil(row_parts).next_multiple_of(tile_rows).min(m).max(1);
            let cols = n.div_ceil(col_parts).next_multiple_of(lanes).min(n).max(1);
            let parts = m.div_ceil(rows).max(1) * n.div_ceil(cols).max(1);
            // In cycles: one vector multiply-add each, and packing at about half a cycle an element.
            let compute = (rows * cols.next_multiple_of(lanes) / lanes) as f64 * k as f64;
            let copy = 0.5 * (rows + cols) as f64 * k as f64;
            let waves = parts.div_ceil(threads) as f64;
            let cost = waves * (compute + copy);
            if cost < best.0 {
                best = (cost, rows, cols);
            }
        }
        let (_, mut part_rows, mut part_cols) = best;
        if T::WIDENS || !wide {
            part_rows = part_rows.min(256);
            part_cols = part_cols.min(1024);
        }
        let (row_parts, col_parts) = (m.div_ceil(part_rows), n.div_ceil(part_cols));
        let groups = matrices.saturating_mul(row_parts).saturating_mul(col_parts);
        Self {
            isa,
            tile,
            row_parts,
            col_parts,
            part_rows,
            part_cols,
            pack_a: !direct_a || part_cols.div_ceil(panel) >= PACK_A_FROM,
            pack_b: !direct_b || part_rows.div_ceil(tile_rows) >= PACK_B_FROM,
            groups: u32::try_from(groups).unwrap_or(u32::MAX),
            spec,
            dtype: PhantomData,
        }
    }

    /// Independent groups to run; 0 if C is empty.
    pub fn groups(&self) -> u32 {
        self.groups
    }

    /// Bytes of scratch memory that each thread needs, of any alignment.
    pub fn scratch_bytes(&self) -> usize {
        if size_of::<T>() == size_of::<f64>() {
            return 0;
        }
        let (_, lanes, panel) = register_tile(self.isa);
        let kc = self.tile.kc.min(self.spec.k);
        let a = if self.pack_a { self.tile.mc.min(self.part_rows) * kc } else { 0 };
        let cols = if self.pack_b { self.tile.nc } else { panel };
        let b = cols.min(self.part_cols.next_multiple_of(lanes)) * kc;
        let c = if T::WIDENS { self.part_rows * self.part_cols } else { 0 };
        Scratch::bytes_for(a) + Scratch::bytes_for(b) + Scratch::bytes_for(c)
    }

    /// The blocking that the plan uses.
    pub fn tile(&self) -> GemmTile {
        self.tile
    }

    /// The instruction set that the plan uses.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Computes one group's part of C. `bias` is read only where the epilogue names one.
    ///
    /// # Safety
    /// `a`, `b`, `c` and `bias` must be valid for every element that the sizes and strides of the spec
    /// reach from them, and C must overlap none of the others. No other thread may access this group's
    /// part of C meanwhile.
    ///
    /// # Panics
    /// If `group` is not below [`GemmPlan::groups`], or `scratch` is smaller than
    /// [`GemmPlan::scratch_bytes`].
    pub unsafe fn run_group(
        &self,
        group: u32,
        a: *const T,
        b: *const T,
        c: *mut T,
        bias: *const T,
        scratch: &mut [u8],
    ) {
        assert!(group < self.groups, "group {group} of a plan with {} groups", self.groups);
        let mut rest = group as usize;
        let col_part = rest % self.col_parts;
        rest /= self.col_parts;
        let row_part = rest % self.row_parts;
        rest /= self.row_parts;
        let (mut a, mut b, mut c) = (a, b, c);
        for axis in self.spec.batch.iter().rev() {
            let index = (rest % axis.len) as isize;
            rest /= axis.len;
            // SAFETY: `index` is inside the batch, whose matrices the caller vouches for.
            unsafe {
                a = a.offset(index * axis.a);
                b = b.offset(index * axis.b);
                c = c.offset(index * axis.c);
            }
        }
        let (row, col) = (row_part * self.part_rows, col_part * self.part_cols);
        let part = Part {
            a,
            b,
            c,
            bias,
            row,
            rows: self.part_rows.min(self.spec.m - row),
            col,
            cols: self.part_cols.min(self.spec.n - col),
        };
        // SAFETY: the part is inside C since the parts tile it; the caller vouches for the pointers.
        unsafe { T::run(self, part, scratch) }
    }
}

/// Rows of a register tile, lanes of a vector, and columns of a register tile.
fn register_tile(isa: Isa) -> (usize, usize, usize) {
    fn of<S: Simd>() -> (usize, usize, usize) {
        (S::TILE_ROWS, S::LANES, S::LANES * S::TILE_VECTORS)
    }
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => of::<super::simd::Avx512>(),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => of::<super::simd::Avx2>(),
        _ => of::<super::simd::Portable>(),
    }
}

impl GemmElement for f32 {
    const WIDENS: bool = false;
    const IN_PLACE: bool = true;

    unsafe fn run(plan: &GemmPlan<f32>, part: Part<f32>, scratch: &mut [u8]) {
        let output = part.c.wrapping_add(part.row * plan.spec.c_row + part.col);
        let task =
            Group { plan, part, output, output_stride: plan.spec.c_row, scratch: Scratch::new(scratch) };
        // SAFETY: the plan holds an available instruction set; the caller vouches for the part.
        unsafe { plan.isa.invoke(task) }
    }
}

impl GemmElement for f16 {
    const WIDENS: bool = true;
    const IN_PLACE: bool = false;

    unsafe fn run(plan: &GemmPlan<f16>, part: Part<f16>, scratch: &mut [u8]) {
        let mut scratch = Scratch::new(scratch);
        let wide = scratch.take(plan.part_rows * plan.part_cols).as_mut_ptr();
        // SAFETY: the plan holds an available instruction set; `wide` has room for the part, and the
        // caller vouches for the part itself.
        unsafe {
            plan.isa.invoke(Group { plan, part, output: wide, output_stride: part.cols, scratch });
            plan.isa.invoke(Narrow { plan, part, wide });
        }
    }
}

impl GemmElement for f64 {
    const WIDENS: bool = false;
    const IN_PLACE: bool = false;

    unsafe fn run(plan: &GemmPlan<f64>, part: Part<f64>, _scratch: &mut [u8]) {
        // SAFETY: the plan holds an available instruction set; the caller vouches for the part.
        unsafe { plan.isa.invoke(plain::Plain { spec: &plan.spec, part }) }
    }
}

/// One group's part, accumulated in f32 at `output`.
struct Group<'a, T> {
    plan: &'a GemmPlan<T>,
    part: Part<T>,
    output: *mut f32,
    output_stride: usize,
    scratch: Scratch<'a>,
}

/// Cuts `len` items into the fewest pieces of at most `longest`, as even as `unit` allows.
#[inline(always)]
fn even_piece(len: usize, longest: usize, unit: usize) -> usize {
    len.div_ceil(len.div_ceil(longest).max(1)).next_multiple_of(unit).min(longest)
}

impl<T: Element + GemmElement> Task for Group<'_, T> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Group { plan, part, output, output_stride, mut scratch } = self;
        let (spec, tile) = (&plan.spec, plan.tile);
        let lanes = S::LANES;
        let widest = S::LANES * S::TILE_VECTORS;
        let kc = tile.kc.min(spec.k);
        let packed_a = if plan.pack_a { tile.mc.min(part.rows) * kc } else { 0 };
        let packed_a = scratch.take(packed_a).as_mut_ptr();
        let nc = if plan.pack_b { tile.nc } else { part.cols.next_multiple_of(lanes) };
        let packed_b = if plan.pack_b { nc } else { widest }.min(part.cols.next_multiple_of(lanes)) * kc;
        let packed_b = scratch.take(packed_b).as_mut_ptr();
        // The even widths of panels: the last one of a block takes what is left.
        let height = even_piece(part.rows, S::TILE_ROWS, 1);
        let width = even_piece(part.cols, widest, lanes);
        // Rows of A that are packed side by side: several tiles, if they fill a vector together.
        let unit = height * (lanes / height).max(1);

        // SAFETY: all offsets below stay inside the part and its operands, whose blocks are cut by `min`;
        // the packed buffers were taken with room for a block each.
        unsafe {
            let a = part.a.offset(part.row as isize * spec.a.row);
            let b = part.b.offset(part.col as isize * spec.b.col);
            let mut k0 = 0;
            loop {
                let depth = kc.min(spec.k - k0);
                let last = k0 + depth == spec.k;
                for n0 in (0..part.cols).step_by(nc) {
                    let cols = nc.min(part.cols - n0);
                    if plan.pack_b {
                        let src = b.offset(k0 as isize * spec.b.row + n0 as isize * spec.b.col);
                        pack::columns::<S, T>(src, spec.b, depth, cols, width, packed_b);
                    }
                    for m0 in (0..part.rows).step_by(tile.mc) {
                        let rows = tile.mc.min(part.rows - m0);
                        if plan.pack_a {
                            let src = a.offset(m0 as isize * spec.a.row + k0 as isize * spec.a.col);
                            pack::rows::<S, T>(src, spec.a, rows, depth, unit, packed_a);
                        }
                        for j in (0..cols).step_by(width) {
                            let wide = width.min(cols - j);
                            let src = b.offset(k0 as isize * spec.b.row + (n0 + j) as isize * spec.b.col);
                            let (b_panel, b_stride) = if plan.pack_b {
                                (packed_b.add(j * depth).cast_const(), wide.next_multiple_of(lanes) as isize)
                            } else if wide.is_multiple_of(lanes) {
                                (src.cast(), spec.b.row)
                            } else {
                                // A vector that C has only in part must not read past B.
                                if m0 == 0 {
                                    pack::columns::<S, T>(src, spec.b, depth, wide, width, packed_b);
                                }
                                (packed_b.cast_const(), wide.next_multiple_of(lanes) as isize)
                            };
                            for i in (0..rows).step_by(height) {
                                let tall = height.min(rows - i);
                                let src = a.offset((m0 + i) as isize * spec.a.row + k0 as isize * spec.a.col);
                                let (a_panel, a_row, a_k) = if plan.pack_a {
                                    let panel = i - i % unit;
                                    let a_k = unit.min(rows - panel);
                                    (packed_a.add(panel * depth + i - panel).cast_const(), 1, a_k as isize)
                                } else {
                                    (src.cast(), spec.a.row, spec.a.col)
                                };
                                let (row, col) = (part.row + m0 + i, part.col + n0 + j);
                                let finish = T::IS_F32 && last;
                                let bias_at = match spec.epilogue.bias {
                                    Bias::PerRow if finish => part.bias.cast::<f32>().add(row),
                                    Bias::PerColumn if finish => part.bias.cast::<f32>().add(col),
                                    _ => std::ptr::null(),
                                };
                                multiply::<S>(
                                    tall,
                                    wide,
                                    &MicroArgs {
                                        a: a_panel,
                                        a_row,
                                        a_k,
                                        b: b_panel,
                                        b_k: b_stride,
                                        depth,
                                        c: output.add((m0 + i) * output_stride + n0 + j),
                                        c_row: output_stride,
                                        cols: wide,
                                        accumulate: k0 > 0,
                                        bias: bias_at,
                                        bias_per_row: spec.epilogue.bias == Bias::PerRow,
                                        relu: finish && spec.epilogue.relu,
                                    },
                                );
                            }
                        }
                    }
                }
                k0 += depth;
                if k0 >= spec.k {
                    break;
                }
            }
        }
    }
}

/// Rounds a finished f32 part to the storage type, through the epilogue.
struct Narrow<'a, T> {
    plan: &'a GemmPlan<T>,
    part: Part<T>,
    wide: *const f32,
}

impl<T: Element + GemmElement> Task for Narrow<'_, T> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Narrow { plan, part, wide } = self;
        let spec = &plan.spec;
        for i in 0..part.rows {
            for j in (0..part.cols).step_by(S::LANES) {
                let len = S::LANES.min(part.cols - j);
                // SAFETY: row `i` and `len` columns from `j` are inside the part, in `wide` and in C, and
                // the bias has a value for each row or column of C.
                unsafe {
                    let mut v = S::load_first(wide.add(i * part.cols + j), len);
                    match spec.epilogue.bias {
                        Bias::None => {}
                        Bias::PerRow => {
                            v = S::add(v, S::splat((*part.bias.add(part.row + i)).to_f32()));
                        }
                        Bias::PerColumn => {
                            v = S::add(v, T::load_first::<S>(part.bias.add(part.col + j), len));
                        }
                    }
                    if spec.epilogue.relu {
                        v = S::relu(v);
                    }
                    let out = part.c.add((part.row + i) * spec.c_row + part.col + j);
                    T::store_first::<S>(out, v, len);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
