//! Windows of 2 x 2 that lie side by side, over planes of f32: the pooling of small networks.
//!
//! The largest are found from pairs of rows first, and then, over many short rows at once, from pairs of columns.
//! Scattering compares each element with its neighbours where it lies.

use super::Larger;
use crate::kernels::cpu::simd::{Isa, Simd, Task};
use std::hint::black_box;

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
        let Self { plane, x, values, dx } = self;
        let (columns, rows) = plane.windows();
        if columns < plane.width || rows * 2 < plane.height {
            dx.fill(0.0);
        }
        if columns == 0 || rows == 0 {
            return;
        }
        match columns {
            16.. => scatter_runs_of_16(plane, x, values, dx),
            8.. => scatter_runs_of_8(plane, x, values, dx),
            4.. => scatter_runs_of_4(plane, x, values, dx),
            _ => scatter_runs_of_2(plane, x, values, dx),
        }
    }
}

/// Elements of a block.
const LANES: usize = 16;

/// The vector code of planes whose windows fill at least `$run` columns.
///
/// A block holds runs of elements from as many pairs of rows as fill it, both elements of a window's row beside each
/// other. Each is compared with its neighbour, so that few lanes have to move: the left one wins a tie. The last run
/// of a row overlaps the one before, and the last pair of rows stands in for those that are missing.
macro_rules! scatter_runs {
    ($name:ident, $run:literal) => {
        #[inline(always)]
        fn $name(plane: Plane, x: &[f32], values: &[f32], dx: &mut [f32]) {
            const RUN: usize = $run;
            const PAIRS: usize = LANES / RUN;
            let (columns, rows) = plane.windows();
            let (area, width) = (plane.height * plane.width, plane.width);
            let pairs = x.len() / area * rows;
            assert!(columns >= RUN && dx.len() == x.len() && values.len() == pairs * columns / 2);
            let mut pair = 0;
            while pair < pairs {
                let numbers: [usize; PAIRS] = std::array::from_fn(|n| (pair + n).min(pairs - 1));
                let starts = numbers.map(|number| number / rows * area + number % rows * 2 * width);
                let mut nan = [0u32; LANES];
                let mut column = 0;
                loop {
                    let (mut a, mut b, mut value) = ([0f32; LANES], [0f32; LANES], [0f32; LANES]);
                    for lane in 0..LANES {
                        let (n, within) = (lane / RUN, lane % RUN);
                        let at = starts[n] + column + within;
                        // SAFETY: `column + RUN <= columns <= width`, and each start is that of a pair of rows
                        // inside x; there is a value for every two columns of every pair.
                        unsafe {
                            a[lane] = *x.as_ptr().add(at);
                            b[lane] = *x.as_ptr().add(at + width);
                            value[lane] =
                                *values.as_ptr().add((numbers[n] * columns + column) / 2 + within / 2);
                        }
                    }
                    let (mut beside_a, mut beside_b) = ([0f32; LANES], [0f32; LANES]);
                    for lane in 0..LANES {
                        beside_a[lane] = a[lane ^ 1];
                        beside_b[lane] = b[lane ^ 1];
                    }
                    let (mut above, mut below) = ([0f32; LANES], [0f32; LANES]);
                    for lane in 0..LANES {
                        let is_left = lane & 1 == 0;
                        let (a, beside_a, b, beside_b) = (a[lane], beside_a[lane], b[lane], beside_b[lane]);
                        nan[lane] |= u32::from(a.is_nan()) | u32::from(b.is_nan());
                        let wins_above = (a > beside_a) | ((a == beside_a) & is_left);
                        let wins_below = (b > beside_b) | ((b == beside_b) & is_left);
                        let largest_above = if a > beside_a { a } else { beside_a };
                        let largest_below = if b > beside_b { b } else { beside_b };
                        let is_below = largest_below > largest_above;
                        above[lane] = if wins_above & !is_below { value[lane] } else { 0.0 };
                        below[lane] = if wins_below & is_below { value[lane] } else { 0.0 };
                    }
                    for (n, start) in starts.iter().enumerate() {
                        let (mut to_above, mut to_below) = ([0f32; RUN], [0f32; RUN]);
                        for within in 0..RUN {
                            to_above[within] = above[n * RUN + within];
                            to_below[within] = below[n * RUN + within];
                        }
                        // SAFETY: as for the loads, since dx is as long as x.
                        unsafe {
                            let to = dx.as_mut_ptr().add(start + column);
                            to.cast::<[f32; RUN]>().write_unaligned(to_above);
                            to.add(width).cast::<[f32; RUN]>().write_unaligned(to_below);
                        }
                    }
                    if column + RUN >= columns {
                        break;
                    }
                    column = (column + RUN).min(columns - RUN);
                    // Keeps the block one vector, as in the loops of elementwise programs.
                    black_box(());
                }
                if nan.iter().any(|lane| *lane != 0) {
                    for (number, start) in numbers.iter().zip(starts) {
                        scatter_with_nan(width, x, &values[number * columns / 2..][..columns / 2], dx, start);
                    }
                }
                pair += PAIRS;
            }
        }
    };
}

scatter_runs!(scatter_runs_of_16, 16);
scatter_runs!(scatter_runs_of_8, 8);
scatter_runs!(scatter_runs_of_4, 4);
scatter_runs!(scatter_runs_of_2, 2);

/// One pair of rows, in the order in which a NaN is larger than any number.
#[cold]
fn scatter_with_nan(width: usize, x: &[f32], values: &[f32], dx: &mut [f32], start: usize) {
    for (window, value) in values.iter().enumerate() {
        let corner = start + 2 * window;
        let places = [corner, corner + 1, corner + width, corner + width + 1];
        let best = places.into_iter().reduce(|best, at| if x[at].beats(x[best]) { at } else { best });
        places.iter().for_each(|at| dx[*at] = 0.0);
        dx[best.unwrap_or(corner)] = *value;
    }
}
