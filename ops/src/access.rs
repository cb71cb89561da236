//! How a tensor of the graph is read: an affine view of a value, a constant, or an index function.
//!
//! Movement ops do not compute; they change offsets and strides. [`Access::moved`] follows one of them.

use crate::cluster::{Literal, contiguous_strides};
use crate::op::Op;
use halite_hal::DType;

/// A value that a plan materialises or reads: an index into its table.
pub(crate) type ValueIndex = usize;

/// What an access reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    /// Elements of a value, at the view's position.
    Value(ValueIndex),
    /// A constant.
    Constant(Literal),
    /// The runtime scalar of this node.
    Scalar(usize),
    /// The view's position itself: an index function.
    Position,
}

/// An affine view: element `i` is at position `offset + sum(i[axis] * strides[axis])` of the source.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Access {
    pub(crate) source: Source,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    pub(crate) offset: i64,
    pub(crate) strides: Vec<i64>,
}

impl Access {
    /// The dense row-major view of `source`.
    pub(crate) fn dense(source: Source, dtype: DType, shape: &[usize]) -> Self {
        Self { source, dtype, shape: shape.to_vec(), offset: 0, strides: contiguous_strides(shape) }
    }

    /// The index along `axis`.
    pub(crate) fn iota(axis: usize, dtype: DType, shape: &[usize]) -> Self {
        let mut strides = vec![0; shape.len()];
        strides[axis] = 1;
        Self { source: Source::Position, dtype, shape: shape.to_vec(), offset: 0, strides }
    }

    /// The value read, if it is one.
    pub(crate) fn value(&self) -> Option<ValueIndex> {
        match self.source {
            Source::Value(value) => Some(value),
            _ => None,
        }
    }

    /// Number of elements of the view.
    pub(crate) fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the view reads the elements of a dense tensor of its own shape, in order.
    pub(crate) fn is_dense(&self) -> bool {
        if self.elements() == 0 {
            return true;
        }
        let natural = contiguous_strides(&self.shape);
        self.offset == 0
            && (0..self.shape.len()).all(|axis| self.shape[axis] == 1 || self.strides[axis] == natural[axis])
    }

    /// The view after a movement op to `shape`; `None` when no affine view can express it.
    pub(crate) fn moved(&self, op: &Op, shape: &[usize]) -> Option<Access> {
        let mut view = Access { shape: shape.to_vec(), ..self.clone() };
        if matches!(self.source, Source::Constant(_) | Source::Scalar(_)) {
            view.strides = vec![0; shape.len()];
            view.offset = 0;
            return Some(view);
        }
        match op {
            Op::StopGradient => {}
            Op::Reshape => view.strides = reshape_strides(&self.shape, &self.strides, shape)?,
            Op::Permute(axes) => view.strides = axes.iter().map(|&axis| self.strides[axis]).collect(),
            Op::Expand => {
                for (axis, &extent) in shape.iter().enumerate() {
                    if self.shape[axis] != extent {
                        view.strides[axis] = 0;
                    }
                }
            }
            Op::Slice { start, step } => {
                for axis in 0..shape.len() {
                    // An empty slice may start behind the last element, where nothing is read.
                    if shape[axis] > 0 {
                        view.offset += self.strides[axis] * start[axis] as i64;
                    }
                    // Where nothing follows, the step may be any number, also one that overflows the stride.
                    if shape[axis] > 1 {
                        view.strides[axis] *= step[axis] as i64;
                    }
                }
            }
            Op::Flip(axes) => {
                for &axis in axes {
                    view.offset += self.strides[axis] * (shape[axis] as i64 - 1).max(0);
                    view.strides[axis] = -self.strides[axis];
                }
            }
            _ => return None,
        }
        Some(view)
    }

    /// The view with its axes in another order.
    pub(crate) fn permuted(&self, axes: &[usize]) -> Access {
        Access {
            shape: axes.iter().map(|&axis| self.shape[axis]).collect(),
            strides: axes.iter().map(|&axis| self.strides[axis]).collect(),
            ..self.clone()
        }
    }
}

/// Strides under which a strided tensor of `from` reads as `to`, if there are any. Both have equally many elements.
fn reshape_strides(from: &[usize], strides: &[i64], to: &[usize]) -> Option<Vec<i64>> {
    if from.contains(&0) {
        return Some(contiguous_strides(to));
    }
    let source: Vec<(usize, i64)> =
        from.iter().copied().zip(strides.iter().copied()).filter(|(extent, _)| *extent != 1).collect();
    let mut result = vec![0; to.len()];
    let (mut next_source, mut next_target) = (0, 0);
    while next_target < to.len() {
        if to[next_target] == 1 {
            next_target += 1;
            continue;
        }
        // The smallest groups of axes on both sides that hold equally many elements.
        let (first_source, first_target) = (next_source, next_target);
        let (mut held, mut wanted) = (1, 1);
        while held != wanted || held == 1 {
            if held <= wanted && next_source < source.len() {
                held *= source[next_source].0;
                next_source += 1;
            } else {
                wanted *= to[next_target];
                next_target += 1;
            }
        }
        let group = &source[first_source..next_source];
        if group.windows(2).any(|pair| pair[0].1 != pair[1].1 * pair[1].0 as i64) {
            return None;
        }
        let mut step = group.last()?.1;
        for axis in (first_target..next_target).rev() {
            result[axis] = step;
            step *= to[axis] as i64;
        }
    }
    Some(result)
}

/// Merges neighbouring axes that are regularly spaced in every one of `strides`; drops axes of extent 1. Axes without
/// elements are one axis of extent 0.
pub(crate) fn merge_axes(extents: &[usize], strides: &[Vec<i64>]) -> (Vec<usize>, Vec<Vec<i64>>) {
    if extents.contains(&0) {
        return (vec![0], vec![vec![0]; strides.len()]);
    }
    let mut merged: Vec<usize> = Vec::new();
    let mut steps: Vec<Vec<i64>> = vec![Vec::new(); strides.len()];
    for (axis, &extent) in extents.iter().enumerate() {
        if extent == 1 {
            continue;
        }
        let joins = !merged.is_empty()
            && strides
                .iter()
                .zip(&steps)
                .all(|(from, into)| into.last() == Some(&(from[axis] * extent as i64)));
        if joins {
            *merged.last_mut().expect("joins implies an axis") *= extent;
        } else {
            merged.push(extent);
        }
        for (from, into) in strides.iter().zip(&mut steps) {
            if joins {
                into.pop();
            }
            into.push(from[axis]);
        }
    }
    (merged, steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dense(shape: &[usize]) -> Access {
        Access::dense(Source::Value(0), DType::F32, shape)
    }

    #[test]
    fn reshape_of_a_dense_view_stays_dense() {
        let view = dense(&[2, 3, 4]).moved(&Op::Reshape, &[6, 1, 4]).unwrap();
        assert!(view.is_dense());
        assert!(dense(&[]).moved(&Op::Reshape, &[1, 1]).unwrap().is_dense());
        assert!(dense(&[0, 3]).moved(&Op::Reshape, &[5, 0]).unwrap().is_dense());
    }

    #[test]
    fn reshape_splits_permuted_axes_but_cannot_merge_them() {
        let permuted = dense(&[4, 6]).moved(&Op::Permute(vec![1, 0]), &[6, 4]).unwrap();
        let split = permuted.moved(&Op::Reshape, &[2, 3, 4]).unwrap();
        assert_eq!(split.strides, [3, 1, 6]);
        assert!(permuted.moved(&Op::Reshape, &[24]).is_none());
    }

    #[test]
    fn slice_and_flip_move_the_offset() {
        let slice = Op::Slice { start: vec![1, 2], step: vec![1, 2] };
        let view = dense(&[3, 8]).moved(&slice, &[2, 3]).unwrap();
        assert_eq!((view.offset, view.strides.clone()), (10, vec![8, 2]));
        let flipped = view.moved(&Op::Flip(vec![1]), &[2, 3]).unwrap();
        assert_eq!((flipped.offset, flipped.strides), (14, vec![8, -2]));
    }

    #[test]
    fn axes_without_elements_merge_into_one() {
        assert_eq!(merge_axes(&[3, 0], &[vec![1, 1]]), (vec![0], vec![vec![0]]));
    }

    #[test]
    fn expanded_axes_merge_with_each_other_alone() {
        let (extents, steps) = merge_axes(&[2, 3, 1, 4], &[vec![0, 0, 7, 1]]);
        assert_eq!((extents, steps), (vec![6, 4], vec![vec![0, 1]]));
    }
}
