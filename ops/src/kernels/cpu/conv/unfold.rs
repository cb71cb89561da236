//! Convolution with pixels in the lanes: the window is unfolded into a matrix of taps by pixels, which
//! the weights multiply from the left. For few channels, on either side.

use super::geometry::{Correlation, Tap};
use super::window::Window;
use super::{CorrelationJob, Item};
use crate::kernels::cpu::gemm::micro::{MicroArgs, multiply};
use crate::kernels::cpu::simd::{Element, MAX_LANES, Scratch, Simd};

/// Elements of the unfolded matrix that are held at a time, unless one row of outputs needs more.
const CHUNK: usize = 1 << 14;

/// Output rows that are unfolded at a time.
fn chunk_rows(depth: usize, len: usize, rows: usize) -> usize {
    (CHUNK / (depth * len).max(1)).clamp(1, rows.max(1))
}

/// Elements of scratch memory besides the window: weights, unfolded matrix, wide outputs.
pub(super) fn scratch_len(corr: &Correlation, planes: usize, rows: usize) -> [usize; 3] {
    let depth = corr.kernel * corr.src_planes;
    let row = corr.x.phases.iter().map(|phase| phase.len).max().unwrap_or(0);
    let pixels = (CHUNK / depth.max(1)).max(row).min(row * rows);
    [planes * depth, pixels * depth + 2 * MAX_LANES, planes * pixels]
}

/// The weights of `planes` output planes from `first`, as `[plane][source plane][tap]`.
///
/// # Safety
/// `weights` is the group of channels, `dst` has room for the packed weights.
#[inline(always)]
pub(super) unsafe fn pack_weights<T: Element>(
    corr: &Correlation,
    weights: *const T,
    taps: &[Tap],
    first: usize,
    planes: usize,
    dst: *mut f32,
) {
    let mut to = dst;
    for plane in first..first + planes {
        for src in 0..corr.src_planes {
            for tap in taps {
                // SAFETY: the index is inside the weights of this group of channels, and `to` inside the
                // packed copy.
                unsafe {
                    *to = (*weights.add(plane * corr.w_out + src * corr.w_src + tap.index)).to_f32();
                    to = to.add(1);
                }
            }
        }
    }
}

/// What a row of outputs reads.
pub(super) struct Rows<'a> {
    pub(super) window: &'a Window,
    pub(super) src_planes: usize,
    pub(super) taps: &'a [Tap],
    /// Window rows from one output row to the next.
    pub(super) step: usize,
    /// Outputs of a row.
    pub(super) len: usize,
}

impl Rows<'_> {
    /// Unfolds `rows` output rows of the window from `src` on: `dst[k][row * len + q]`.
    ///
    /// # Safety
    /// The contract of [`Simd`]; the window covers the rows, and `dst` has room for the matrix and two
    /// vectors.
    #[inline(always)]
    pub(super) unsafe fn unfold<S: Simd>(&self, src: *const f32, rows: usize, dst: *mut f32) {
        let mut to = dst;
        // SAFETY: rows are written in order, so what a vector writes past its row is overwritten or lies
        // in the spare room at the end; the window has room to read a vector past its last row as well.
        unsafe {
            for plane in 0..self.src_planes {
                for tap in self.taps {
                    let mut from = src.add(plane * self.window.plane + tap.window);
                    for _ in 0..rows {
                        let mut q = 0;
                        while q < self.len {
                            S::store(to.add(q), S::load(from.add(q)));
                            q += S::LANES;
                        }
                        to = to.add(self.len);
                        from = from.wrapping_add(self.step * self.window.row);
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
    matrix: *mut f32,
    wide: *mut f32,
) {
    let corr = job.corr;
    let len = item.x_phase.len;
    let depth = item.taps.len() * corr.src_planes;
    let out_plane = corr.out_plane();
    let in_place = T::IS_F32 && corr.x.out_stride == 1 && corr.y.out_stride == 1;
    let step = corr.y.step;
    let full = corr.kernel * corr.src_planes;
    let chunk = chunk_rows(full, len, item.rows);
    for row0 in (0..item.rows).step_by(chunk) {
        let rows = chunk.min(item.rows - row0);
        let pixels = rows * len;
        // SAFETY: the chunk is inside the item, so its taps are inside the window and its outputs the
        // caller's; the buffers were sized for a chunk by `scratch_len`.
        unsafe {
            let src = window.add(row0 * step * item.window.row);
            let source =
                Rows { window: item.window, src_planes: corr.src_planes, taps: item.taps, step, len };
            source.unfold::<S>(src, rows, matrix);
            let out = item.out_at(job.out, corr, 0, 0);
            let (dst, dst_row) = if in_place {
                (out.cast::<f32>().add((item.row0 + row0) * len), out_plane)
            } else {
                (wide, pixels)
            };
            let widest = S::LANES * S::TILE_VECTORS;
            let width = pixels.div_ceil(pixels.div_ceil(widest)).next_multiple_of(S::LANES);
            let height = item.planes.div_ceil(item.planes.div_ceil(S::TILE_ROWS));
            for j in (0..pixels).step_by(width) {
                let cols = width.min(pixels - j);
                for i in (0..item.planes).step_by(height) {
                    let bias = if in_place && !job.bias.is_null() {
                        job.bias.cast::<f32>().add(item.bias_at + i)
                    } else {
                        std::ptr::null()
                    };
                    multiply::<S>(
                        height.min(item.planes - i),
                        cols,
                        &MicroArgs {
                            a: packed.add(i * depth),
                            a_row: depth as isize,
                            a_k: 1,
                            b: matrix.add(j),
                            b_k: pixels as isize,
                            depth,
                            c: dst.add(i * dst_row + j),
                            c_row: dst_row,
                            cols,
                            accumulate: false,
                            bias,
                            bias_per_row: true,
                            relu: in_place && job.relu,
                        },
                    );
                }
            }
            if !in_place {
                scatter::<T>(job, item, wide, row0, rows);
            }
        }
    }
}

/// Rounds a wide chunk to the storage type, with bias and ReLU, at the phase's places in the planes.
#[inline(always)]
unsafe fn scatter<T: Element>(
    job: &CorrelationJob<T>,
    item: &Item<'_>,
    wide: *const f32,
    row0: usize,
    rows: usize,
) {
    let corr = job.corr;
    let len = item.x_phase.len;
    for plane in 0..item.planes {
        // SAFETY: the chunk is inside the item, whose outputs the caller owns; the bias has a value for
        // every output plane.
        unsafe {
            let out = item.out_at(job.out, corr, 0, plane);
            let bias = if job.bias.is_null() { 0.0 } else { (*job.bias.add(item.bias_at + plane)).to_f32() };
            for row in 0..rows {
                let y = item.y_phase.start + (item.row0 + row0 + row) * corr.y.out_stride;
                for q in 0..len {
                    let x = item.x_phase.start + q * corr.x.out_stride;
                    let value = *wide.add((plane * rows + row) * len + q) + bias;
                    let value = if job.relu && value < 0.0 { 0.0 } else { value };
                    *out.add(y * corr.x.out + x) = T::from_f32(value);
                }
            }
        }
    }
}

/// Takes the packed weights, the unfolded matrix and the wide outputs from `scratch`.
pub(super) fn take<'a>(
    scratch: &mut Scratch<'a>,
    corr: &Correlation,
    planes: usize,
    rows: usize,
) -> [*mut f32; 3] {
    scratch_len(corr, planes, rows).map(|len| scratch.take(len).as_mut_ptr())
}
