//! Copies of operand blocks in the order in which a register tile reads them, converted to f32.

use super::MatrixStrides;
use crate::kernels::cpu::simd::{Element, Simd};

/// Packs a block of A, `rows x depth`, as `dst[p * rows + i]`.
///
/// # Safety
/// The contract of [`Simd`]; `src` covers the block, `dst` has room for `rows * depth` elements.
#[inline(always)]
pub(super) unsafe fn rows<S: Simd, T: Element>(
    src: *const T,
    strides: MatrixStrides,
    rows: usize,
    depth: usize,
    dst: *mut f32,
) {
    // SAFETY: every index below is inside the block.
    unsafe {
        if strides.col == 1 {
            for p in (0..depth).step_by(S::LANES) {
                let len = S::LANES.min(depth - p);
                for i in (0..rows).step_by(S::LANES) {
                    let tall = S::LANES.min(rows - i);
                    let from = src.offset(i as isize * strides.row + p as isize);
                    S::transpose(from, strides.row, dst.add(p * rows + i), rows, tall, len);
                }
            }
        } else if strides.row == 1 && rows == 8 {
            for p in 0..depth {
                let from = src.offset(p as isize * strides.col);
                for i in 0..8 {
                    *dst.add(p * 8 + i) = (*from.add(i)).to_f32();
                }
            }
        } else {
            for p in 0..depth {
                for i in 0..rows {
                    let x = *src.offset(i as isize * strides.row + p as isize * strides.col);
                    *dst.add(p * rows + i) = x.to_f32();
                }
            }
        }
    }
}

/// Packs a block of B, `depth x cols`, as `dst[p * width + j]`, where `width` is `cols` rounded up to
/// whole vectors, with zeros between.
///
/// # Safety
/// The contract of [`Simd`]; `src` covers the block, `dst` has room for `width * depth` elements.
#[inline(always)]
pub(super) unsafe fn columns<S: Simd, T: Element>(
    src: *const T,
    strides: MatrixStrides,
    depth: usize,
    cols: usize,
    dst: *mut f32,
) {
    let width = cols.next_multiple_of(S::LANES);
    // SAFETY: every index below is inside the block.
    unsafe {
        if strides.col == 1 {
            for p in 0..depth {
                let from = src.offset(p as isize * strides.row);
                let to = dst.add(p * width);
                let mut j = 0;
                while j + S::LANES <= cols {
                    S::store(to.add(j), T::load::<S>(from.add(j)));
                    j += S::LANES;
                }
                if j < cols {
                    S::store(to.add(j), T::load_first::<S>(from.add(j), cols - j));
                }
            }
            return;
        }
        if width > cols {
            std::ptr::write_bytes(dst, 0, width * depth);
        }
        if strides.row == 1 {
            for p in (0..depth).step_by(S::LANES) {
                let len = S::LANES.min(depth - p);
                for j in (0..cols).step_by(S::LANES) {
                    let wide = S::LANES.min(cols - j);
                    let from = src.offset(j as isize * strides.col + p as isize);
                    S::transpose(from, strides.col, dst.add(p * width + j), width, wide, len);
                }
            }
        } else {
            for p in 0..depth {
                for j in 0..cols {
                    let x = *src.offset(p as isize * strides.row + j as isize * strides.col);
                    *dst.add(p * width + j) = x.to_f32();
                }
            }
        }
    }
}
