//! Windows of 2 x 2 that lie side by side, over planes of f32: the pooling of small networks.
//!
//! Rows are first brought together in pairs (the largest of both, or a copy of each), so that the loops over windows
//! run over many short rows at once; there they take even and odd elements apart by shuffles.

use super::Larger;
use crate::kernels::cpu::simd::{Isa, Simd, Task};

/// Windows that are processed at once.
const BATCH: usize = 512;

/// Sizes of one plane.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plane {
    /// Rows and columns of x.
    pub(super) height: usize,
    pub(super) width: usize,
}

impl Plane {
    /// Columns that belong to a window, and rows of windows.
    fn windows(self) -> (usize, usize) {
        (self.width / 2 * 2, self.height / 2)
    }
}

/// `out[i] = max` of each window.
pub(super) fn largest(isa: Isa, plane: Plane, x: &[f32], out: &mut [f32]) {
    // SAFETY: `or_portable` is available, and the task has no requirement of its own.
    unsafe { isa.or_portable().invoke(LargestTask { plane, x, out }) }
}

/// `dx = values[i]` at the first largest element of each window, 0 elsewhere.
pub(super) fn scatter(isa: Isa, plane: Plane, x: &[f32], values: &[f32], dx: &mut [f32]) {
    // SAFETY: as above.
    unsafe { isa.or_portable().invoke(ScatterTask { plane, x, values, dx }) }
}

struct LargestTask<'a> {
    plane: Plane,
    x: &'a [f32],
    out: &'a mut [f32],
}

struct ScatterTask<'a> {
    plane: Plane,
    x: &'a [f32],
    values: &'a [f32],
    dx: &'a mut [f32],
}

/// The pairs of rows of many planes, in order: where the upper row begins.
#[inline(always)]
fn pairs(plane: Plane, len: usize) -> impl Iterator<Item = usize> {
    let area = plane.height * plane.width;
    let rows = plane.height / 2;
    (0..len / area.max(1)).flat_map(move |p| (0..rows).map(move |row| p * area + row * 2 * plane.width))
}

impl Task for LargestTask<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { plane, x, mut out } = self;
        let (columns, _) = plane.windows();
        if columns == 0 {
            return;
        }
        let at_once = (2 * BATCH / columns).max(1);
        let mut rows = vec![0f32; at_once * columns];
        let mut filled = 0;
        for start in pairs(plane, x.len()) {
            let upper = &x[start..start + columns];
            let lower = &x[start + plane.width..start + plane.width + columns];
            let row = &mut rows[filled..filled + columns];
            for ((row, a), b) in row.iter_mut().zip(upper).zip(lower) {
                *row = a.larger(*b);
            }
            filled += columns;
            if filled == rows.len() {
                let (now, later) = std::mem::take(&mut out).split_at_mut(filled / 2);
                halve(&rows, now);
                (out, filled) = (later, 0);
            }
        }
        halve(&rows[..filled], &mut out[..filled / 2]);
    }
}

/// `out[i]` is the largest of `x[2i]` and `x[2i + 1]`.
#[inline(always)]
fn halve(x: &[f32], out: &mut [f32]) {
    for (out, pair) in out.iter_mut().zip(x.chunks_exact(2)) {
        *out = pair[0].larger(pair[1]);
    }
}

impl Task for ScatterTask<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { plane, x, mut values, dx } = self;
        let (columns, window_rows) = plane.windows();
        if columns < plane.width || window_rows * 2 < plane.height {
            dx.fill(0.0);
        }
        if columns == 0 {
            return;
        }
        let at_once = (2 * BATCH / columns).max(1);
        let len = at_once * columns;
        let mut memory = vec![0f32; 4 * len];
        let (upper, rest) = memory.split_at_mut(len);
        let (lower, rest) = rest.split_at_mut(len);
        let (to_upper, to_lower) = rest.split_at_mut(len);
        let starts: Vec<usize> = pairs(plane, x.len()).collect();
        for batch in starts.chunks(at_once) {
            for (row, start) in batch.iter().enumerate() {
                copy(&mut upper[row * columns..][..columns], &x[*start..]);
                copy(&mut lower[row * columns..][..columns], &x[*start + plane.width..]);
            }
            let windows = batch.len() * columns / 2;
            let (now, later) = values.split_at(windows);
            choose(upper, lower, now, to_upper, to_lower);
            values = later;
            for (row, start) in batch.iter().enumerate() {
                copy(&mut dx[*start..][..columns], &to_upper[row * columns..]);
                copy(&mut dx[*start + plane.width..][..columns], &to_lower[row * columns..]);
            }
        }
    }
}

/// Copies the first `to.len()` elements.
#[inline(always)]
fn copy(to: &mut [f32], from: &[f32]) {
    let from = &from[..to.len()];
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
}

/// Puts `values[i]` to the first largest of the elements `2i` and `2i + 1` of both rows, and 0 to the others.
#[inline(always)]
fn choose(upper: &[f32], lower: &[f32], values: &[f32], to_upper: &mut [f32], to_lower: &mut [f32]) {
    let n = values.len();
    let (upper, lower) = (&upper[..2 * n], &lower[..2 * n]);
    let (to_upper, to_lower) = (&mut to_upper[..2 * n], &mut to_lower[..2 * n]);
    for i in 0..n {
        let (a, b, c, d) = (upper[2 * i], upper[2 * i + 1], lower[2 * i], lower[2 * i + 1]);
        let right_above = b.beats(a);
        let above = if right_above { b } else { a };
        let right_below = d.beats(c);
        let below = if right_below { d } else { c };
        let is_below = below.beats(above);
        let to_above = if is_below { 0.0 } else { values[i] };
        let to_below = if is_below { values[i] } else { 0.0 };
        to_upper[2 * i] = if right_above { 0.0 } else { to_above };
        to_upper[2 * i + 1] = if right_above { to_above } else { 0.0 };
        to_lower[2 * i] = if right_below { 0.0 } else { to_below };
        to_lower[2 * i + 1] = if right_below { to_below } else { 0.0 };
    }
}
