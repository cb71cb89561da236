//! Convolution with output channels in the lanes: every pixel of the window is broadcast against packed
//! weights, with nothing unfolded, and the finished tile is transposed into its planes.
//!
//! For many channels. A tile of `R` rows by `M` pixels by `V` vectors of channels stays in registers over
//! all source planes and taps. Taps that read padding are left out: whole rows of them, and the first or
//! last pixel of a row, which is a third of the work for a 4 x 4 image.

use std::array::from_fn;

use super::geometry::{Correlation, Tap};
use super::{CorrelationJob, Item};
use crate::kernels::cpu::simd::{Element, Scratch, Simd, Task};

/// Pixels that are collected before they are transposed, unless one row has more.
pub(super) const TILE_PIXELS: usize = 256;

/// The widest row of pixels in a register tile.
const MAX_PIXELS: usize = 14;

/// Elements of scratch memory besides the window.
pub(super) fn scratch_len(corr: &Correlation, lanes: usize, planes: usize) -> [usize; 2] {
    let width = planes.next_multiple_of(lanes);
    let taps = corr.kernel * corr.src_planes;
    let row = corr.x.phases.iter().map(|phase| phase.len).max().unwrap_or(0);
    [width * taps, 2 * lanes * row.max(TILE_PIXELS)]
}

/// The weights of `planes` output planes from `first`, as `[block][source plane][tap][2 * LANES]`; the
/// last block is one vector wide if the number of vectors is odd.
///
/// # Safety
/// The contract of [`Simd`]; `weights` is the group of channels, `dst` has room for the packed weights.
#[inline(always)]
pub(super) unsafe fn pack_weights<S: Simd, T: Element>(
    corr: &Correlation,
    weights: *const T,
    taps: &[Tap],
    first: usize,
    planes: usize,
    dst: *mut f32,
) {
    let count = taps.len();
    let depth = count * corr.src_planes;
    let whole = count == corr.kernel && taps.iter().enumerate().all(|(t, tap)| tap.index == t);
    if !planes.is_multiple_of(S::LANES) {
        // SAFETY: the caller has room for whole vectors of planes.
        unsafe { std::ptr::write_bytes(dst, 0, planes.next_multiple_of(S::LANES) * depth) };
    }
    for block in (0..planes).step_by(2 * S::LANES) {
        let width = (planes - block).next_multiple_of(S::LANES).min(2 * S::LANES);
        for vector in (0..width).step_by(S::LANES) {
            let rows = S::LANES.min(planes - block - vector);
            // SAFETY: source and destination indices are inside the weights of this group of channels and
            // inside the packed block.
            unsafe {
                let src = weights.add((first + block + vector) * corr.w_out);
                let dst = dst.add(block * depth + vector);
                if whole {
                    // Runs of weights that are contiguous for one output plane: all, or one source plane's.
                    let run = if corr.w_src == count { depth } else { count };
                    for start in (0..depth).step_by(run) {
                        let src = src.add(start / count * corr.w_src);
                        for k in (0..run).step_by(S::LANES) {
                            let cols = S::LANES.min(run - k);
                            let to = dst.add((start + k) * width);
                            S::transpose(src.add(k), corr.w_out as isize, to, width, rows, cols);
                        }
                    }
                } else {
                    for plane in 0..corr.src_planes {
                        for (t, tap) in taps.iter().enumerate() {
                            for row in 0..rows {
                                let value = *src.add(row * corr.w_out + plane * corr.w_src + tap.index);
                                *dst.add((plane * count + t) * width + row) = value.to_f32();
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Computes one item from its window, with weights packed by [`pack_weights`].
///
/// # Safety
/// The contract of [`Simd`]; the window covers the item, and the item's outputs are this group's own.
#[inline(always)]
pub(super) unsafe fn run<S: Simd, T: Element>(
    job: &CorrelationJob<T>,
    item: &Item<'_>,
    window: *const f32,
    packed: *const f32,
    tile: *mut f32,
) {
    let corr = job.corr;
    let len = item.x_phase.len;
    let taps_x = item.x_phase.taps.len();
    let plane_taps = item.taps.len();
    let chunk_rows = (TILE_PIXELS / (len * item.images)).max(1);
    let row_window = corr.y.step * item.window.row;
    for block in (0..item.planes).step_by(2 * S::LANES) {
        let width = (item.planes - block).next_multiple_of(S::LANES).min(2 * S::LANES);
        let vectors = width / S::LANES;
        let most = (S::ACCUMULATORS / (vectors * item.images)).clamp(1, MAX_PIXELS);
        let pixels = len.div_ceil(len.div_ceil(most));
        let pair = 2 * pixels * vectors <= S::ACCUMULATORS;
        for row0 in (0..item.rows).step_by(chunk_rows) {
            let rows = chunk_rows.min(item.rows - row0);
            let image_pixels = rows * len;
            let mut row = 0;
            while row < rows {
                let inside = |row: usize| corr.y.inside(item.y_phase, item.row0 + row0 + row);
                let range = inside(row);
                // Two images, or two rows with the same taps, keep enough multiply-adds in flight.
                let next_row = item.images == 1 && pair && row + 1 < rows && inside(row + 1) == range;
                let (tall, window_step, dst_step) = if next_row {
                    (2, row_window, len)
                } else {
                    (item.images, item.image_window, image_pixels)
                };
                for q in (0..len).step_by(pixels) {
                    let count = pixels.min(len - q);
                    let last = (q + count - 1) * corr.x.step;
                    // SAFETY: rows and columns are inside the item, so their taps are inside the window,
                    // and the tile buffer holds a chunk of rows of every image.
                    unsafe {
                        let args = TileArgs {
                            window: window.add((row0 + row) * row_window + q),
                            plane: item.window.plane,
                            row: window_step,
                            src_planes: corr.src_planes,
                            taps: &item.taps[range.start * taps_x..range.end * taps_x],
                            x_first: -((q * corr.x.step) as isize),
                            x_last: corr.x.src as isize - 1 - last as isize,
                            weights: packed
                                .add(block * plane_taps * corr.src_planes + range.start * taps_x * width),
                            weights_plane: plane_taps * width,
                            dst: tile.add((row * len + q) * width),
                            dst_row: dst_step * width,
                        };
                        multiply::<S>(tall, count, vectors, &args);
                    }
                }
                row += if next_row { 2 } else { 1 };
            }
            for image in 0..item.images {
                // SAFETY: the tile buffer holds the finished chunk of every image.
                unsafe {
                    let tile = tile.add(image * image_pixels * width);
                    flush::<S, T>(job, item, &Chunk { tile, image, block, width, row0, rows });
                }
            }
        }
    }
}

/// Finished pixels of one image: `rows` rows from `row0`, `width` planes from `block`.
struct Chunk {
    tile: *mut f32,
    image: usize,
    block: usize,
    width: usize,
    row0: usize,
    rows: usize,
}

/// Adds the bias, takes the ReLU, and transposes a chunk into the output planes.
#[inline(always)]
unsafe fn flush<S: Simd, T: Element>(job: &CorrelationJob<T>, item: &Item<'_>, chunk: &Chunk) {
    let &Chunk { tile, image, block, width, row0, rows } = chunk;
    let corr = job.corr;
    let len = item.x_phase.len;
    let planes = width.min(item.planes - block);
    let out_plane = corr.out_plane();
    // SAFETY: the chunk is inside the item, whose outputs the caller owns; the bias has a value for every
    // output plane.
    unsafe {
        if !job.bias.is_null() || job.relu {
            for vector in (0..planes).step_by(S::LANES) {
                let mut bias = S::splat(0.0);
                if !job.bias.is_null() {
                    let count = S::LANES.min(planes - vector);
                    bias = T::load_first::<S>(job.bias.add(item.bias_at + block + vector), count);
                }
                for pixel in 0..rows * len {
                    let at = tile.add(pixel * width + vector);
                    let v = S::add(S::load(at), bias);
                    S::store(at, if job.relu { S::relu(v) } else { v });
                }
            }
        }
        let out = item.out_at(job.out, corr, image, block);
        let contiguous = corr.x.out_stride == 1 && corr.y.out_stride == 1;
        for vector in (0..planes).step_by(S::LANES) {
            let count = S::LANES.min(planes - vector);
            let out = out.add(vector * out_plane);
            if contiguous {
                let out = out.add((item.row0 + row0) * len);
                for pixel in (0..rows * len).step_by(S::LANES) {
                    let run = S::LANES.min(rows * len - pixel);
                    let from = tile.add(pixel * width + vector).cast_const();
                    S::transpose(from, width as isize, out.add(pixel), out_plane, run, count);
                }
            } else {
                for row in 0..rows {
                    let y = item.y_phase.start + (item.row0 + row0 + row) * corr.y.out_stride;
                    for q in 0..len {
                        let x = item.x_phase.start + q * corr.x.out_stride;
                        for lane in 0..count {
                            let value = *tile.add((row * len + q) * width + vector + lane);
                            *out.add(lane * out_plane + y * corr.x.out + x) = T::from_f32(value);
                        }
                    }
                }
            }
        }
    }
}

/// Operands of one register tile.
struct TileArgs<'a> {
    /// The window at source plane 0, the tile's first row and pixel.
    window: *const f32,
    plane: usize,
    /// Elements from one row of the tile to the next.
    row: usize,
    src_planes: usize,
    taps: &'a [Tap],
    /// The first pixel reads padding for taps below, the last pixel for taps above these offsets.
    x_first: isize,
    x_last: isize,
    /// Weights of the first tap, and elements from one source plane to the next.
    weights: *const f32,
    weights_plane: usize,
    dst: *mut f32,
    dst_row: usize,
}

#[inline(always)]
unsafe fn multiply<S: Simd>(rows: usize, pixels: usize, vectors: usize, args: &TileArgs<'_>) {
    // SAFETY: passed on from the caller.
    unsafe {
        match (rows, vectors) {
            (1, 1) => by_pixels::<S, 1, 1>(pixels, args),
            (1, 2) => by_pixels::<S, 1, 2>(pixels, args),
            (2, 1) => by_pixels::<S, 2, 1>(pixels, args),
            _ => few_pixels::<S>(pixels, args),
        }
    }
}

#[inline(always)]
unsafe fn by_pixels<S: Simd, const R: usize, const V: usize>(pixels: usize, args: &TileArgs<'_>) {
    // SAFETY: passed on from the caller.
    unsafe {
        match pixels {
            1 => S::invoke(Tile::<R, 1, V>(args)),
            2 => S::invoke(Tile::<R, 2, V>(args)),
            3 => S::invoke(Tile::<R, 3, V>(args)),
            4 => S::invoke(Tile::<R, 4, V>(args)),
            5 => S::invoke(Tile::<R, 5, V>(args)),
            6 => S::invoke(Tile::<R, 6, V>(args)),
            7 => S::invoke(Tile::<R, 7, V>(args)),
            8 => S::invoke(Tile::<R, 8, V>(args)),
            9 => S::invoke(Tile::<R, 9, V>(args)),
            10 => S::invoke(Tile::<R, 10, V>(args)),
            11 => S::invoke(Tile::<R, 11, V>(args)),
            12 => S::invoke(Tile::<R, 12, V>(args)),
            13 => S::invoke(Tile::<R, 13, V>(args)),
            14 => S::invoke(Tile::<R, 14, V>(args)),
            _ => unreachable!("a register tile has at most {MAX_PIXELS} pixels in a row, not {pixels}"),
        }
    }
}

/// Two rows by two vectors, which fit in registers for short rows only.
#[inline(always)]
unsafe fn few_pixels<S: Simd>(pixels: usize, args: &TileArgs<'_>) {
    // SAFETY: passed on from the caller.
    unsafe {
        match pixels {
            1 => S::invoke(Tile::<2, 1, 2>(args)),
            2 => S::invoke(Tile::<2, 2, 2>(args)),
            3 => S::invoke(Tile::<2, 3, 2>(args)),
            4 => S::invoke(Tile::<2, 4, 2>(args)),
            5 => S::invoke(Tile::<2, 5, 2>(args)),
            6 => S::invoke(Tile::<2, 6, 2>(args)),
            7 => S::invoke(Tile::<2, 7, 2>(args)),
            _ => unreachable!("two rows of {pixels} pixels by two vectors do not fit in registers"),
        }
    }
}

/// `R` rows by `M` pixels by `V` vectors of output planes.
struct Tile<'a, const R: usize, const M: usize, const V: usize>(&'a TileArgs<'a>);

impl<const R: usize, const M: usize, const V: usize> Task for Tile<'_, R, M, V> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let args = self.0;
        // SAFETY: the caller's window covers every tap of the tile's pixels, the weights every tap of
        // every source plane, and `dst` the tile.
        unsafe {
            let mut acc = [[[S::splat(0.0); V]; M]; R];
            let mut plane = args.window;
            let mut plane_weights = args.weights;
            for _ in 0..args.src_planes {
                let mut weights = plane_weights;
                for tap in args.taps {
                    let x = plane.add(tap.window);
                    let (first, last) = (tap.x < args.x_first, tap.x > args.x_last);
                    // Three copies of the same step, since the pixels must be known when compiling.
                    if !first && !last {
                        step::<S, R, M, V>(&mut acc, x, args.row, weights, 0, M);
                    } else if first && M > 1 {
                        step::<S, R, M, V>(&mut acc, x, args.row, weights, 1, M);
                    } else if M > 1 {
                        step::<S, R, M, V>(&mut acc, x, args.row, weights, 0, M - 1);
                    }
                    weights = weights.add(V * S::LANES);
                }
                plane = plane.add(args.plane);
                plane_weights = plane_weights.add(args.weights_plane);
            }
            for (r, acc) in acc.iter().enumerate() {
                for (m, acc) in acc.iter().enumerate() {
                    for (v, &acc) in acc.iter().enumerate() {
                        S::store(args.dst.add(r * args.dst_row + (m * V + v) * S::LANES), acc);
                    }
                }
            }
        }
    }
}

/// Adds one tap of one source plane to pixels `first..end` of a tile.
#[inline(always)]
unsafe fn step<S: Simd, const R: usize, const M: usize, const V: usize>(
    acc: &mut [[[S::V; V]; M]; R],
    x: *const f32,
    row: usize,
    weights: *const f32,
    first: usize,
    end: usize,
) {
    // SAFETY: passed on from the caller.
    unsafe {
        let w: [S::V; V] = from_fn(|v| S::load(weights.add(v * S::LANES)));
        for (r, acc) in acc.iter_mut().enumerate() {
            let x = x.add(r * row);
            for (m, acc) in acc[first..end].iter_mut().enumerate() {
                let x = S::splat(*x.add(first + m));
                for v in 0..V {
                    acc[v] = S::mul_add(x, w[v], acc[v]);
                }
            }
        }
    }
}

/// Takes the packed weights and the tile buffer from `scratch`.
pub(super) fn take<'a>(
    scratch: &mut Scratch<'a>,
    corr: &Correlation,
    lanes: usize,
    planes: usize,
) -> (*mut f32, *mut f32) {
    let [packed, tile] = scratch_len(corr, lanes, planes);
    (scratch.take(packed).as_mut_ptr(), scratch.take(tile).as_mut_ptr())
}
