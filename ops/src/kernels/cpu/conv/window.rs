//! A zero-padded f32 copy of the source rows that a band of outputs reads.
//!
//! Columns are sorted by their residue modulo the step, so neighbouring outputs of a row read
//! neighbouring elements whatever the stride, and no kernel has to know about padding or strides.

use super::geometry::{Axis, AxisPhase};
use crate::kernels::cpu::simd::{Element, MAX_LANES, Simd};

/// Layout of the copy: `[plane][row][residue][column]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    /// Elements from one plane, row and residue to the next.
    pub(super) plane: usize,
    pub(super) row: usize,
    residue: usize,
    step: usize,
    /// Source column of the first element.
    low: isize,
}

/// Source planes to copy.
#[derive(Debug, Clone, Copy)]
pub(super) struct Planes<T> {
    pub(super) src: *const T,
    pub(super) count: usize,
    pub(super) height: usize,
    pub(super) width: usize,
}

impl Window {
    /// A layout for `rows` rows and every phase of `x`.
    pub(super) fn new(x: &Axis, rows: usize) -> Self {
        let low = x.phases.iter().map(|phase| phase.low).min().unwrap_or(0);
        let end = |phase: &AxisPhase| phase.low + x.span(phase, phase.len) as isize;
        let end = x.phases.iter().map(end).max().unwrap_or(0);
        let residue = ((end - low) as usize).div_ceil(x.step);
        Self { plane: residue * x.step * rows, row: residue * x.step, residue, step: x.step, low }
    }

    /// Elements that a copy of `planes` planes takes, with room for a vector that runs over.
    pub(super) fn len(&self, planes: usize) -> usize {
        planes * self.plane + 2 * MAX_LANES
    }

    /// Where source column `offset` of output 0 lies in a row.
    pub(super) fn column(&self, offset: isize) -> usize {
        let at = (offset - self.low) as usize;
        at % self.step * self.residue + at / self.step
    }

    /// Copies `rows` rows of every plane, the first of which is source row `first`.
    ///
    /// # Safety
    /// The contract of [`Simd`]; `dst` has room for [`Window::len`] elements, and the planes lie one
    /// behind the other at `planes.src`.
    #[inline(always)]
    pub(super) unsafe fn fill<S: Simd, T: Element>(
        &self,
        dst: *mut f32,
        planes: Planes<T>,
        first: isize,
        rows: usize,
    ) {
        let left = ((-self.low).max(0) as usize).min(self.row);
        let skip = self.low.max(0) as usize;
        let copied = if self.step == 1 {
            planes.width.saturating_sub(skip).min(self.row.saturating_sub(left))
        } else {
            0
        };
        // The rows that are there: `top..bottom`.
        let top = ((-first).max(0) as usize).min(rows);
        let bottom = (planes.height as isize - first).clamp(top as isize, rows as isize) as usize;
        let short = self.step == 1 && self.row + left <= S::LANES;
        // SAFETY: rows are written in order, so what a vector writes past its row is overwritten or lies
        // in the spare room at the end; only source elements inside the plane are read.
        unsafe {
            for plane in 0..planes.count {
                let src = planes.src.add(plane * planes.height * planes.width);
                let from = src.wrapping_offset((first + top as isize) * planes.width as isize);
                let mut from = from.wrapping_add(skip);
                let mut to = dst.add(plane * self.plane);
                if short {
                    // One vector holds a row, the padding behind it, and that before the next row.
                    S::store(to, S::splat(0.0));
                    for row in 0..rows {
                        let there = row >= top && row < bottom;
                        let v = if there { T::load_first::<S>(from, copied) } else { S::splat(0.0) };
                        S::store(to.add(left), v);
                        to = to.add(self.row);
                        from = from.wrapping_add(if there { planes.width } else { 0 });
                    }
                    continue;
                }
                clear::<S>(to, 0, top * self.row);
                to = to.add(top * self.row);
                for _ in top..bottom {
                    if self.step == 1 {
                        clear::<S>(to, 0, left);
                        let mut j = 0;
                        while j + S::LANES <= copied {
                            S::store(to.add(left + j), T::load::<S>(from.add(j)));
                            j += S::LANES;
                        }
                        if j < copied {
                            S::store(to.add(left + j), T::load_first::<S>(from.add(j), copied - j));
                            j += S::LANES;
                        }
                        clear::<S>(to, left + j, self.row);
                    } else {
                        clear::<S>(to, 0, self.row);
                        for residue in 0..self.step {
                            for column in 0..self.residue {
                                let x = self.low + (column * self.step + residue) as isize;
                                if x >= 0 && x < planes.width as isize {
                                    let value = (*from.wrapping_sub(skip).offset(x)).to_f32();
                                    *to.add(residue * self.residue + column) = value;
                                }
                            }
                        }
                    }
                    to = to.add(self.row);
                    from = from.wrapping_add(planes.width);
                }
                clear::<S>(to, 0, (rows - bottom) * self.row);
            }
        }
    }
}

/// Clears elements `first..end`, and up to a vector behind them.
#[inline(always)]
unsafe fn clear<S: Simd>(to: *mut f32, first: usize, end: usize) {
    if first < end {
        // SAFETY: the caller has room for a vector past `end`.
        unsafe {
            // The first vector stands alone: a loop would become a call of memset, far too much for the
            // short rows of small images.
            S::store(to.add(first), S::splat(0.0));
            let mut j = first + S::LANES;
            while j < end {
                S::store(to.add(j), S::splat(0.0));
                j += S::LANES;
            }
        }
    }
}
