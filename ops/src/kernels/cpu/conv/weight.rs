//! Weight gradients: `dw[o, c, i, j] = sum over n, p, q of dy[n, o, p, q] * x[n, c, ...]`.
//!
//! The batch (with bands of rows, for large images) is cut into slices, a number that depends on the
//! shape alone. Each slice sums into its own partial gradient in the workspace, `[tap][output plane]`;
//! a second phase adds the slices in order. So the result is the same for any number of threads.
//!
//! With many channels, output planes are in the lanes: `dy` is transposed, and each element of the window
//! is broadcast against it (*outer*); what a 3 x 3 kernel reads of the padding is left out. With few,
//! pixels are in the lanes, and the window is unfolded (*inner*): sums over lanes are left to the end of
//! the slice.

use std::array::from_fn;
use std::ops::Range;

use super::geometry::{AxisTap, Correlation, Tap, share};
use super::unfold::Rows;
use super::window::{Planes, Window};
use super::{Method, method_for};
use crate::kernels::cpu::simd::{Element, MAX_LANES, Scratch, Simd, Task};

/// Multiply-adds that a slice is worth, and the most slices.
const SLICE_MACS: usize = 1 << 19;
const MAX_SLICES: usize = 32;

/// Elements of all partial gradients, unless one has more.
const WORKSPACE: usize = 1 << 21;

/// Window and gradient elements of a band, unless one row needs more.
const BAND: usize = 1 << 16;

/// Pixels that are worth a pass over the sums.
const BLOCK_PIXELS: usize = 128;

/// Elements of partial gradients that one group of the second phase adds.
const REDUCE_ELEMENTS: usize = 1 << 16;

/// The most window elements in an outer register tile: one address register each.
const MAX_TAPS: usize = 9;

/// How a weight gradient is cut.
#[derive(Debug, Clone)]
pub(super) struct WeightPlan {
    /// The forward pass.
    pub(super) corr: Correlation,
    method: Method,
    lanes: usize,
    window: Window,
    /// Taps of one source plane, and window offsets of all source planes' taps.
    taps: Vec<Tap>,
    offsets: Vec<usize>,
    band_rows: usize,
    bands: usize,
    block_images: usize,
    items: usize,
    slices: usize,
    /// Parts of the output planes that different groups sum, and planes of a part.
    parts: usize,
    part_planes: usize,
    /// Rows of taps that read no padding, for each output row.
    rows: Vec<Range<usize>>,
    /// Whether the first pixel of a row reads padding at the first tap, the last one at the last tap.
    edges: [bool; 2],
    /// Vectors of taps by vectors of output planes that one group of the second phase adds.
    reduce_blocks: usize,
}

/// Operands.
#[derive(Debug, Clone, Copy)]
pub(super) struct WeightJob<T> {
    pub(super) x: *const T,
    pub(super) dy: *const T,
    pub(super) dw: *mut T,
    pub(super) workspace: *mut f32,
}

impl WeightPlan {
    pub(super) fn new(corr: Correlation, lanes: usize) -> Self {
        let (y, x) = (&corr.y, &corr.x);
        let (y_phase, x_phase) = (&y.phases[0], &x.phases[0]);
        let (rows, len) = (y_phase.len, x_phase.len);
        let depth = corr.src_planes * corr.kernel;
        let wide = corr.out_planes.next_multiple_of(lanes);
        let method = method_for(&corr, lanes);
        let per_row = Window::new(x, y.step).plane * corr.src_planes
            + len * if method == Method::Direct { wide } else { depth };
        let band_rows = (BAND / per_row.max(1)).clamp(1, rows.max(1));
        let bands = rows.div_ceil(band_rows.max(1));
        let pixels = (band_rows * len).max(1);
        let fitting = (BAND / (per_row * rows).max(1)).max(1);
        let block_images = if bands == 1 && method == Method::Direct {
            BLOCK_PIXELS.div_ceil(pixels).min(fitting).min(corr.batch.max(1))
        } else {
            1
        };
        let items = corr.batch.div_ceil(block_images) * bands;
        let macs = corr.batch * corr.out_planes * depth * rows * len;
        let wanted = (macs / SLICE_MACS).clamp(1, MAX_SLICES);
        let affordable = (WORKSPACE / (corr.channel_groups * depth * wide).max(1)).max(1);
        let slices = wanted.min(items.max(1)).min(affordable);
        // Sums are cut along the output planes where there are too few slices for many threads.
        let blocks = wide.div_ceil(2 * lanes).max(1);
        let parts = if method == Method::Direct {
            wanted.div_ceil(slices * corr.channel_groups).min(blocks)
        } else {
            1
        };
        let part_planes = share(blocks, parts) * 2 * lanes;
        let parts = share(wide, part_planes);
        let taps_x = &x_phase.taps;
        let edge = |tap: Option<&AxisTap>, at: usize| {
            tap.is_some_and(|tap| {
                let source = (at * x.step) as isize + tap.offset;
                source < 0 || source >= x.src as isize
            })
        };
        let edges = [edge(taps_x.first(), 0), edge(taps_x.last(), len.saturating_sub(1))];
        let row_taps = (0..rows).map(|row| y.inside(y_phase, row)).collect();
        let window = Window::new(x, y.span(y_phase, band_rows));
        let taps = super::window_taps(&window, y_phase, x_phase, corr.kernel_x);
        let offsets = (0..corr.src_planes)
            .flat_map(|plane| taps.iter().map(move |tap| plane * window.plane + tap.window))
            .collect();
        let reduce_blocks = (REDUCE_ELEMENTS / (slices * lanes * lanes)).max(1);
        Self {
            corr,
            method,
            lanes,
            window,
            taps,
            offsets,
            band_rows,
            bands,
            block_images,
            items,
            slices,
            parts,
            part_planes,
            rows: row_taps,
            edges,
            reduce_blocks,
        }
    }

    fn depth(&self) -> usize {
        self.offsets.len()
    }

    /// Output planes, rounded up to whole vectors.
    fn wide(&self) -> usize {
        self.corr.out_planes.next_multiple_of(self.lanes)
    }

    fn blocks(&self) -> usize {
        self.depth().div_ceil(self.lanes) * self.wide() / self.lanes
    }

    /// Groups of the two phases; the second has none where the first does its work.
    pub(super) fn phases(&self) -> [usize; 2] {
        let groups = self.corr.channel_groups;
        if self.corr.weights() == 0 {
            [0, 0]
        } else if self.slices == 1 {
            [groups * self.parts, 0]
        } else {
            [groups * self.slices * self.parts, groups * share(self.blocks(), 1).div_ceil(self.reduce_blocks)]
        }
    }

    /// f32 elements that the slices share.
    pub(super) fn workspace_len(&self) -> usize {
        self.corr.channel_groups * self.slices * self.depth() * self.wide()
    }

    /// f32 elements of scratch memory: window, gradient or unfolded matrix, sums, wide gradient.
    fn scratch_len(&self) -> [usize; 3] {
        let pixels = self.band_rows * self.corr.x.phases[0].len;
        let images = self.block_images;
        let window = self.window.len(self.corr.src_planes) * images;
        match self.method {
            Method::Direct => {
                let planes = self.part_planes.min(self.wide());
                [window, images * pixels * planes, MAX_LANES * MAX_LANES]
            }
            Method::Unfold => [
                window,
                pixels * (self.depth() + self.corr.out_planes) + 4 * MAX_LANES,
                (self.corr.out_planes * self.depth() * self.lanes).max(MAX_LANES * MAX_LANES),
            ],
        }
    }

    pub(super) fn scratch_bytes(&self) -> usize {
        self.scratch_len().into_iter().map(Scratch::bytes_for).sum()
    }
}

/// One group of one phase.
pub(super) struct WeightGroup<'a, T> {
    pub(super) plan: &'a WeightPlan,
    pub(super) job: WeightJob<T>,
    pub(super) phase: usize,
    pub(super) group: usize,
    pub(super) scratch: Scratch<'a>,
}

impl<T: Element> Task for WeightGroup<'_, T> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { plan, job, phase, group, mut scratch } = self;
        let [window, matrix, sums] = plan.scratch_len().map(|len| scratch.take(len).as_mut_ptr());
        // SAFETY: the caller vouches for the operands and for a workspace of `workspace_len`; each slice
        // has its own part of it, and each group of the second phase its own part of `dw`.
        unsafe {
            if phase == 1 {
                let per = plan.blocks().div_ceil(plan.reduce_blocks);
                let first = group % per * plan.reduce_blocks;
                let last = (first + plan.reduce_blocks).min(plan.blocks());
                reduce::<S, T>(plan, &job, group / per, first..last, sums);
                return;
            }
            let (slice, part) = (group / plan.parts, group % plan.parts);
            let partial = job.workspace.add(slice * plan.depth() * plan.wide());
            let (channels, slice) = (slice / plan.slices, slice % plan.slices);
            let items = slice * plan.items / plan.slices..(slice + 1) * plan.items / plan.slices;
            let planes = part * plan.part_planes..((part + 1) * plan.part_planes).min(plan.wide());
            let tap_blocks = plan.depth().div_ceil(S::LANES);
            let blocks = planes.start / S::LANES * tap_blocks..planes.end / S::LANES * tap_blocks;
            match plan.method {
                Method::Direct => {
                    outer::<S, T>(plan, &job, channels, items, planes, [window, matrix], partial);
                }
                Method::Unfold => inner::<S, T>(plan, &job, channels, items, [window, matrix, sums], partial),
            }
            if plan.slices == 1 {
                reduce::<S, T>(plan, &job, channels, blocks, sums);
            }
        }
    }
}

/// The images and rows of one item.
struct Extent {
    image: usize,
    images: usize,
    row0: usize,
    rows: usize,
}

#[inline(always)]
fn extent(plan: &WeightPlan, item: usize) -> Extent {
    let image = item / plan.bands * plan.block_images;
    let row0 = item % plan.bands * plan.band_rows;
    Extent {
        image,
        images: plan.block_images.min(plan.corr.batch - image),
        row0,
        rows: plan.band_rows.min(plan.corr.y.phases[0].len - row0),
    }
}

/// Copies the window of one image.
#[inline(always)]
unsafe fn fill_window<S: Simd, T: Element>(
    plan: &WeightPlan,
    job: &WeightJob<T>,
    channels: usize,
    image: usize,
    extent: &Extent,
    dst: *mut f32,
) {
    let corr = &plan.corr;
    let phase = &corr.y.phases[0];
    let plane = (image * corr.channel_groups + channels) * corr.src_planes;
    // SAFETY: the image is inside the batch, and `dst` has room for a window.
    unsafe {
        let src = Planes {
            src: job.x.add(plane * corr.src_plane()),
            count: corr.src_planes,
            height: corr.y.src,
            width: corr.x.src,
        };
        let first = (extent.row0 * corr.y.step) as isize + phase.low;
        plan.window.fill::<S, T>(dst, src, first, corr.y.span(phase, extent.rows));
    }
}

/// Sums `items` into the columns `planes` of `partial`, with output planes in the lanes.
#[inline(always)]
unsafe fn outer<S: Simd, T: Element>(
    plan: &WeightPlan,
    job: &WeightJob<T>,
    channels: usize,
    items: Range<usize>,
    planes: Range<usize>,
    [window, gradient]: [*mut f32; 2],
    partial: *mut f32,
) {
    let corr = &plan.corr;
    let (depth, wide, len) = (plan.depth(), plan.wide(), corr.x.phases[0].len);
    let image_window = plan.window.len(corr.src_planes);
    let out_plane = corr.out_plane();
    let there = planes.end.min(corr.out_planes);
    // SAFETY: every item is inside the batch; window and gradient were sized for one item, and lanes of
    // planes that do not exist are cleared.
    unsafe {
        for k in 0..depth {
            std::ptr::write_bytes(partial.add(k * wide + planes.start), 0, planes.len());
        }
        for item in items {
            let extent = extent(plan, item);
            let pixels = extent.rows * len;
            let block_len = extent.images * pixels;
            if there < planes.end {
                std::ptr::write_bytes(gradient, 0, block_len * planes.len());
            }
            for index in 0..extent.images {
                let image = extent.image + index;
                fill_window::<S, T>(plan, job, channels, image, &extent, window.add(index * image_window));
                let dy = (image * corr.channel_groups + channels) * corr.out_planes * out_plane;
                let dy = job.dy.add(dy + extent.row0 * len);
                for plane in (planes.start..there).step_by(S::LANES) {
                    let rows = S::LANES.min(there - plane);
                    // Blocks of two vectors, so that a register tile reads one contiguous stream.
                    let at = plane - planes.start;
                    let block = at - at % (2 * S::LANES);
                    let width = (planes.len() - block).min(2 * S::LANES);
                    let to = gradient.add(block * block_len + index * pixels * width + at - block);
                    for pixel in (0..pixels).step_by(S::LANES) {
                        let cols = S::LANES.min(pixels - pixel);
                        let from = dy.add(plane * out_plane + pixel);
                        S::transpose(from, out_plane as isize, to.add(pixel * width), width, rows, cols);
                    }
                }
            }
            for plane in (0..planes.len()).step_by(2 * S::LANES) {
                let width = (planes.len() - plane).min(2 * S::LANES);
                let vectors = width / S::LANES;
                let square = corr.kernel == 9 && corr.kernel_x == 3 && 9 * vectors <= S::ACCUMULATORS;
                let most = (S::ACCUMULATORS / vectors).min(MAX_TAPS);
                let taps = if square { 9 } else { depth.div_ceil(depth.div_ceil(most)) };
                for k in (0..depth).step_by(taps) {
                    let count = taps.min(depth - k);
                    let args = OuterArgs {
                        window,
                        offsets: &plan.offsets[k..k + count],
                        image: image_window,
                        images: extent.images,
                        row: corr.y.step * plan.window.row,
                        rows: &plan.rows[extent.row0..extent.row0 + extent.rows],
                        len,
                        square,
                        edges: plan.edges,
                        gradient: gradient.add(plane * block_len),
                        sums: partial.add(k * wide + planes.start + plane),
                        sums_row: wide,
                    };
                    if vectors == 2 { by_taps::<S, 2>(&args) } else { by_taps::<S, 1>(&args) }
                }
            }
        }
    }
}

/// Operands of an outer register tile.
struct OuterArgs<'a> {
    window: *const f32,
    /// Window offsets of the tile's taps.
    offsets: &'a [usize],
    /// Elements from one image, and from one output row, to the next in the window.
    image: usize,
    images: usize,
    row: usize,
    /// For each output row, the rows of taps that read no padding.
    rows: &'a [Range<usize>],
    len: usize,
    /// Whether the taps are one plane's 3 x 3, and then which ends of a row read padding.
    square: bool,
    edges: [bool; 2],
    /// `[image][pixel][V * LANES]`.
    gradient: *const f32,
    sums: *mut f32,
    sums_row: usize,
}

#[inline(always)]
unsafe fn by_taps<S: Simd, const V: usize>(args: &OuterArgs<'_>) {
    // SAFETY: passed on from the caller.
    unsafe {
        match args.offsets.len() {
            1 => S::invoke(Outer::<1, V>(args)),
            2 => S::invoke(Outer::<2, V>(args)),
            3 => S::invoke(Outer::<3, V>(args)),
            4 => S::invoke(Outer::<4, V>(args)),
            5 => S::invoke(Outer::<5, V>(args)),
            6 => S::invoke(Outer::<6, V>(args)),
            7 => S::invoke(Outer::<7, V>(args)),
            8 => S::invoke(Outer::<8, V>(args)),
            9 => S::invoke(Outer::<9, V>(args)),
            taps => unreachable!("a register tile has at most {MAX_TAPS} taps, not {taps}"),
        }
    }
}

/// `R` taps by `V` vectors of output planes, summed over the pixels of an item.
struct Outer<'a, const R: usize, const V: usize>(&'a OuterArgs<'a>);

impl<const R: usize, const V: usize> Task for Outer<'_, R, V> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let args = self.0;
        // SAFETY: the caller's window and gradient cover every pixel of the item, and `sums` the tile.
        unsafe {
            let mut acc: [[S::V; V]; R] =
                from_fn(|r| from_fn(|v| S::load(args.sums.add(r * args.sums_row + v * S::LANES))));
            let mut gradient = args.gradient;
            for image in 0..args.images {
                let base = args.window.add(image * args.image);
                for (row, taps) in args.rows.iter().enumerate() {
                    let base = base.add(row * args.row);
                    let x: [*const f32; R] = from_fn(|r| base.add(args.offsets[r]));
                    let pixels = Pixels { x: &x, gradient, len: args.len, edges: args.edges };
                    // Copies of the same loop, since the taps must be known when compiling.
                    match (taps.start, taps.end) {
                        (0, 2) if R == 9 && args.square => pixels.square::<S, V, 0, 2>(&mut acc),
                        (1, 3) if R == 9 && args.square => pixels.square::<S, V, 1, 3>(&mut acc),
                        _ if R == 9 && args.square => pixels.square::<S, V, 0, 3>(&mut acc),
                        _ => {
                            for q in 0..args.len {
                                step::<S, R, V>(&mut acc, &x, q, gradient, 0..1, 0..R);
                                gradient = gradient.add(V * S::LANES);
                            }
                            continue;
                        }
                    }
                    gradient = gradient.add(args.len * V * S::LANES);
                }
            }
            for (r, acc) in acc.iter().enumerate() {
                for (v, &acc) in acc.iter().enumerate() {
                    S::store(args.sums.add(r * args.sums_row + v * S::LANES), acc);
                }
            }
        }
    }
}

/// One row of pixels.
struct Pixels<'a, const R: usize> {
    /// Where each tap reads for the first pixel.
    x: &'a [*const f32; R],
    gradient: *const f32,
    len: usize,
    edges: [bool; 2],
}

impl<const R: usize> Pixels<'_, R> {
    /// Adds a row for a 3 x 3 kernel of which rows `FIRST..END` read no padding.
    #[inline(always)]
    unsafe fn square<S: Simd, const V: usize, const FIRST: usize, const END: usize>(
        self,
        acc: &mut [[S::V; V]; R],
    ) {
        let Self { x, mut gradient, len, edges } = self;
        let [left, right] = if len > 1 { edges } else { [false; 2] };
        // SAFETY: passed on from the caller.
        unsafe {
            if left {
                step::<S, R, V>(acc, x, 0, gradient, FIRST..END, 1..3);
                gradient = gradient.add(V * S::LANES);
            }
            for q in usize::from(left)..len - usize::from(right) {
                step::<S, R, V>(acc, x, q, gradient, FIRST..END, 0..3);
                gradient = gradient.add(V * S::LANES);
            }
            if right {
                step::<S, R, V>(acc, x, len - 1, gradient, FIRST..END, 0..2);
            }
        }
    }
}

/// Adds pixel `q` at the taps in `rows` (of three) and `columns`.
#[inline(always)]
unsafe fn step<S: Simd, const R: usize, const V: usize>(
    acc: &mut [[S::V; V]; R],
    x: &[*const f32; R],
    q: usize,
    gradient: *const f32,
    rows: Range<usize>,
    columns: Range<usize>,
) {
    // SAFETY: passed on from the caller.
    unsafe {
        let g: [S::V; V] = from_fn(|v| S::load(gradient.add(v * S::LANES)));
        for row in rows {
            for column in columns.clone() {
                let tap = 3 * row + column;
                let x = S::splat(*x[tap].add(q));
                for v in 0..V {
                    acc[tap][v] = S::mul_add(x, g[v], acc[tap][v]);
                }
            }
        }
    }
}

/// Sums `items` into `partial` with pixels in the lanes.
#[inline(always)]
unsafe fn inner<S: Simd, T: Element>(
    plan: &WeightPlan,
    job: &WeightJob<T>,
    channels: usize,
    items: Range<usize>,
    [window, matrix, sums]: [*mut f32; 3],
    partial: *mut f32,
) {
    let corr = &plan.corr;
    let (depth, wide, len, planes) = (plan.depth(), plan.wide(), corr.x.phases[0].len, corr.out_planes);
    let out_plane = corr.out_plane();
    // SAFETY: every item is inside the batch; the buffers were sized for one item.
    unsafe {
        std::ptr::write_bytes(sums, 0, planes * depth * S::LANES);
        for item in items {
            let extent = extent(plan, item);
            let pixels = extent.rows * len;
            fill_window::<S, T>(plan, job, channels, extent.image, &extent, window);
            let source = Rows {
                window: &plan.window,
                src_planes: corr.src_planes,
                taps: &plan.taps,
                step: corr.y.step,
                len,
            };
            source.unfold::<S>(window, extent.rows, matrix);
            let dy = (extent.image * corr.channel_groups + channels) * planes * out_plane;
            let dy = job.dy.add(dy + extent.row0 * len);
            let (gradient, gradient_row) = if T::IS_F32 {
                (dy.cast::<f32>(), out_plane)
            } else {
                let copy = matrix.add(depth * pixels + 2 * MAX_LANES);
                for plane in 0..planes {
                    for pixel in (0..pixels).step_by(S::LANES) {
                        let count = S::LANES.min(pixels - pixel);
                        let v = T::load_first::<S>(dy.add(plane * out_plane + pixel), count);
                        S::store_first(copy.add(plane * pixels + pixel), v, count);
                    }
                }
                (copy.cast_const(), pixels)
            };
            let tall = planes.div_ceil(planes.div_ceil(4));
            let most = if S::ACCUMULATORS >= 24 { 6 } else { 3 };
            let taps = depth.div_ceil(depth.div_ceil(most));
            for k in (0..depth).step_by(taps) {
                for plane in (0..planes).step_by(tall) {
                    let args = InnerArgs {
                        gradient: gradient.add(plane * gradient_row),
                        gradient_row,
                        matrix: matrix.add(k * pixels),
                        pixels,
                        sums: sums.add((plane * depth + k) * S::LANES),
                        sums_row: depth * S::LANES,
                    };
                    let count = taps.min(depth - k);
                    match tall.min(planes - plane) {
                        1 => by_columns::<S, 1>(count, &args),
                        2 => by_columns::<S, 2>(count, &args),
                        3 => by_columns::<S, 3>(count, &args),
                        _ => by_columns::<S, 4>(count, &args),
                    }
                }
            }
        }
        for k in 0..depth {
            for plane in 0..wide {
                let sum = if plane < planes {
                    S::sum(S::load(sums.add((plane * depth + k) * S::LANES)))
                } else {
                    0.0
                };
                *partial.add(k * wide + plane) = sum;
            }
        }
    }
}

/// Operands of an inner register tile.
struct InnerArgs {
    gradient: *const f32,
    gradient_row: usize,
    /// Unfolded taps, `pixels` each.
    matrix: *const f32,
    pixels: usize,
    /// A vector of sums for each plane and tap.
    sums: *mut f32,
    sums_row: usize,
}

#[inline(always)]
unsafe fn by_columns<S: Simd, const R: usize>(columns: usize, args: &InnerArgs) {
    // SAFETY: passed on from the caller.
    unsafe {
        match columns {
            1 => S::invoke(Inner::<R, 1>(args)),
            2 => S::invoke(Inner::<R, 2>(args)),
            3 => S::invoke(Inner::<R, 3>(args)),
            4 => S::invoke(Inner::<R, 4>(args)),
            5 => S::invoke(Inner::<R, 5>(args)),
            6 => S::invoke(Inner::<R, 6>(args)),
            _ => unreachable!("a register tile has at most 6 taps, not {columns}"),
        }
    }
}

/// `R` output planes by `C` taps, a vector of pixels at a time.
struct Inner<'a, const R: usize, const C: usize>(&'a InnerArgs);

impl<const R: usize, const C: usize> Task for Inner<'_, R, C> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let args = self.0;
        // SAFETY: the caller's rows have `pixels` elements each, and `sums` a vector for each pair.
        unsafe {
            let mut acc: [[S::V; C]; R] =
                from_fn(|r| from_fn(|c| S::load(args.sums.add(r * args.sums_row + c * S::LANES))));
            let mut pixel = 0;
            while pixel + S::LANES <= args.pixels {
                let x: [S::V; C] = from_fn(|c| S::load(args.matrix.add(c * args.pixels + pixel)));
                for (r, acc) in acc.iter_mut().enumerate() {
                    let g = S::load(args.gradient.add(r * args.gradient_row + pixel));
                    for c in 0..C {
                        acc[c] = S::mul_add(g, x[c], acc[c]);
                    }
                }
                pixel += S::LANES;
            }
            if pixel < args.pixels {
                let count = args.pixels - pixel;
                let x: [S::V; C] =
                    from_fn(|c| S::load_first(args.matrix.add(c * args.pixels + pixel), count));
                for (r, acc) in acc.iter_mut().enumerate() {
                    let g = S::load_first(args.gradient.add(r * args.gradient_row + pixel), count);
                    for c in 0..C {
                        acc[c] = S::mul_add(g, x[c], acc[c]);
                    }
                }
            }
            for (r, acc) in acc.iter().enumerate() {
                for (c, &acc) in acc.iter().enumerate() {
                    S::store(args.sums.add(r * args.sums_row + c * S::LANES), acc);
                }
            }
        }
    }
}

/// Adds the slices of one group of channels in order, block by block, and transposes them into `dw`.
#[inline(always)]
unsafe fn reduce<S: Simd, T: Element>(
    plan: &WeightPlan,
    job: &WeightJob<T>,
    channels: usize,
    blocks: Range<usize>,
    tile: *mut f32,
) {
    let (depth, wide) = (plan.depth(), plan.wide());
    let tap_blocks = depth.div_ceil(S::LANES);
    // SAFETY: blocks are inside the gradient; the workspace has a partial gradient for each slice, and
    // the tile room for a block.
    unsafe {
        let partial = job.workspace.add(channels * plan.slices * depth * wide);
        let dw = job.dw.add(channels * plan.corr.out_planes * depth);
        for block in blocks {
            let (k0, plane) = (block % tap_blocks * S::LANES, block / tap_blocks * S::LANES);
            let taps = S::LANES.min(depth - k0);
            let planes = S::LANES.min(plan.corr.out_planes - plane);
            for k in 0..taps {
                let at = partial.add((k0 + k) * wide + plane);
                let mut sum = S::load(at);
                for slice in 1..plan.slices {
                    sum = S::add(sum, S::load(at.add(slice * depth * wide)));
                }
                S::store(tile.add(k * S::LANES), sum);
            }
            let to = dw.add(plane * depth + k0);
            S::transpose(tile.cast_const(), S::LANES as isize, to, depth, taps, planes);
        }
    }
}
