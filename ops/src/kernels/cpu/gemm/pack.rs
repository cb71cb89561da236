//! Copies of operand blocks in the order in which a register tile reads them, converted to f32.

use super::MatrixStrides;
use crate::kernels::cpu::simd::{Element, Simd};

/// Packs a block of A, `rows x depth`, in panels of `unit` rows, each as `dst[p * unit + i]`; the last
/// panel is as tall as what is left.
///
/// # Safety
/// The contract of [`Simd`]; `src` covers the block, `dst` has room for `rows * depth` elements.
#[inline(always)]
pub(super) unsafe fn rows<S: Simd, T: Element>(
    src: *const T,
    strides: MatrixStrides,
    rows: usize,
    depth: usize,
    unit: usize,
    dst: *mut f32,
) {
    // SAFETY: every index below is inside the block.
    unsafe {
        if strides.row == 1 {
            // Along the contiguous rows first, through all panels: each page of A is visited once.
            for p in 0..depth {
                let from = src.offset(p as isize * strides.col);
                for panel in (0..rows).step_by(unit) {
                    let tall = unit.min(rows - panel);
                    let to = dst.add(panel * depth + p * tall);
                    for i in (0..tall).step_by(S::LANES) {
                        let len = S::LANES.min(tall - i);
                        if len == S::LANES {
                            S::store(to.add(i), T::load::<S>(from.add(panel + i)));
                        } else {
                            S::store_first(to.add(i), T::load_first::<S>(from.add(panel + i), len), len);
                        }
                    }
                }
            }
            return;
        }
        for panel in (0..rows).step_by(unit) {
            let tall = unit.min(rows - panel);
            let (src, dst) = (src.offset(panel as isize * strides.row), dst.add(panel * depth));
            if strides.col == 1 {
                for p in (0..depth).step_by(S::LANES) {
                    let len = S::LANES.min(depth - p);
                    for i in (0..tall).step_by(S::LANES) {
                        let from = src.offset(i as isize * strides.row + p as isize);
                        let rows = S::LANES.min(tall - i);
                        S::transpose(from, strides.row, dst.add(p * tall + i), tall, rows, len);
                    }
                }
            } else {
                for p in 0..depth {
                    for i in 0..tall {
                        let x = *src.offset(i as isize * strides.row + p as isize * strides.col);
                        *dst.add(p * tall + i) = x.to_f32();
                    }
                }
            }
        }
    }
}

/// Packs a block of B, `depth x cols`, in panels of `unit` columns (whole vectors), each as
/// `dst[p * width + j]`; `width` is the panel's columns rounded up to whole vectors, with zeros between.
///
/// # Safety
/// The contract of [`Simd`]; `src` covers the block, `dst` has room for `depth` rows of `cols` rounded up
/// to whole vectors.
#[inline(always)]
pub(super) unsafe fn columns<S: Simd, T: Element>(
    src: *const T,
    strides: MatrixStrides,
    depth: usize,
    cols: usize,
    unit: usize,
    dst: *mut f32,
) {
    // SAFETY: every index below is inside the block.
    unsafe {
        if strides.col == 1 {
            // Along the contiguous rows first, through all panels: each page of B is visited once.
            for p in 0..depth {
                let from = src.offset(p as isize * strides.row);
                for panel in (0..cols).step_by(unit) {
                    let cols = unit.min(cols - panel);
                    let (from, to) = (from.add(panel), dst.add(panel * depth));
                    let to = to.add(p * cols.next_multiple_of(S::LANES));
                    let mut j = 0;
                    while j + S::LANES <= cols {
                        S::store(to.add(j), T::load::<S>(from.add(j)));
                        j += S::LANES;
                    }
                    if j < cols {
                        S::store(to.add(j), T::load_first::<S>(from.add(j), cols - j));
                    }
                }
            }
            return;
        }
        for panel in (0..cols).step_by(unit) {
            let cols = unit.min(cols - panel);
            let width = cols.next_multiple_of(S::LANES);
            let (src, dst) = (src.offset(panel as isize * strides.col), dst.add(panel * depth));
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
}
