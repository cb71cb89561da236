//! Tiles of an iteration space: dense runs of consecutive points, cut along one axis.

use halite_npu_isa::Operand;

use super::emit::{Emitter, imm};

/// Consecutive axes of an iteration space, cut into tiles along one of them. A tile has a single index on the axes
/// before, up to `tile` on the cut axis, and all of those behind, so its points are consecutive in row-major order.
#[derive(Clone, Debug)]
pub(super) struct Part {
    /// Extents of the axes of this part alone.
    shape: Vec<usize>,
    /// The first axis of the part within the iteration space.
    first: usize,
    /// The cut axis within the part; the number of axes if there is none.
    axis: usize,
    /// Extent of a tile on the cut axis.
    tile: usize,
}

/// Where a tile is; empty axes before the cut one count.
pub(super) struct Located {
    /// Index on each axis up to the cut one.
    pub(super) starts: Vec<Operand>,
    /// Extent on the cut axis.
    pub(super) count: Operand,
    /// Points.
    pub(super) len: Operand,
    /// The first point in row-major order.
    pub(super) linear: Operand,
}

impl Part {
    /// Cuts the axes `first..first + shape.len()` into tiles of at most `points` points that span at most `dims` axes.
    pub(super) fn new(shape: &[usize], first: usize, points: usize, dims: usize) -> Self {
        let mut axis = shape.len();
        let mut inner = 1;
        while axis > 0 && shape.len() - axis < dims && inner * shape[axis - 1] <= points {
            axis -= 1;
            inner *= shape[axis];
        }
        let tile = if shape.is_empty() {
            1
        } else if axis > 0 && shape.len() - axis < dims {
            axis -= 1;
            // Tiles of equal size, as far as they go.
            let most = (points / inner).max(1);
            shape[axis].div_ceil(shape[axis].div_ceil(most))
        } else {
            shape.get(axis).copied().unwrap_or(1)
        };
        Self { shape: shape.to_vec(), first, axis, tile }
    }

    /// Points of the axes behind the cut one.
    pub(super) fn inner(&self) -> usize {
        self.shape.iter().skip(self.axis + 1).product()
    }

    /// Most points of a tile.
    pub(super) fn max_len(&self) -> usize {
        self.tile * self.inner()
    }

    /// Tiles along the cut axis.
    fn cuts(&self) -> usize {
        self.shape.get(self.axis).map_or(1, |extent| extent.div_ceil(self.tile.max(1)))
    }

    /// Number of tiles.
    pub(super) fn tiles(&self) -> usize {
        self.shape[..self.axis].iter().product::<usize>() * self.cuts()
    }

    /// Finds tile number `tile`.
    pub(super) fn locate(&self, e: &mut Emitter, tile: Operand) -> Located {
        let cuts = imm(self.cuts());
        let cut = e.k.rem(tile, cuts);
        let outer = e.k.div(tile, cuts);
        let mut starts = vec![Operand::ZERO; self.axis];
        let mut rest = outer;
        for (i, start) in starts.iter_mut().enumerate().rev() {
            if i == 0 {
                *start = rest;
            } else {
                let extent = e.k.value(self.shape[i] as i64);
                *start = e.k.rem(rest, extent);
                rest = e.k.div(rest, extent);
            }
        }
        let Some(&extent) = self.shape.get(self.axis) else {
            return Located { starts, count: imm(1), len: imm(1), linear: outer };
        };
        let (start, count) = if self.cuts() == 1 {
            (Operand::ZERO, imm(extent))
        } else {
            let start = e.k.mul(cut, imm(self.tile));
            let extent = e.k.value(extent as i64);
            let left = e.k.sub(extent, start);
            (start, if self.is_even() { imm(self.tile) } else { e.k.min(left, imm(self.tile)) })
        };
        starts.push(start);
        let inner = imm(self.inner());
        let len = e.k.mul(count, inner);
        let extent = e.k.value(extent as i64);
        let before = e.k.mul(outer, extent);
        let before = e.k.add(before, start);
        let linear = e.k.mul(before, inner);
        Located { starts, count, len, linear }
    }

    fn is_even(&self) -> bool {
        self.shape[self.axis].is_multiple_of(self.tile)
    }

    /// The axes that a tile spans, outermost first: axis of the iteration space, most and actual extent, and how far
    /// apart its neighbours are among the points of the tile.
    pub(super) fn spans(&self, located: &Located) -> Vec<Span> {
        let mut spans = Vec::new();
        let mut step = 1;
        for axis in (self.axis..self.shape.len()).rev() {
            let count = if axis == self.axis { located.count } else { imm(self.shape[axis]) };
            spans.push(Span { axis: self.first + axis, count, step });
            step *= self.shape[axis];
        }
        spans.reverse();
        spans
    }

    /// The axes before and at the cut, with the tile's index on each.
    pub(super) fn starts<'a>(&self, located: &'a Located) -> impl Iterator<Item = (usize, Operand)> + 'a {
        let first = self.first;
        located.starts.iter().enumerate().map(move |(i, &start)| (first + i, start))
    }
}

/// An axis that a tile spans.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    /// Axis of the iteration space.
    pub(super) axis: usize,
    /// Extent within the tile.
    pub(super) count: Operand,
    /// Points between neighbours.
    pub(super) step: usize,
}
