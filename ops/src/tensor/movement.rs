//! Methods that move elements without changing them. Most are views that cost nothing.

use super::check_axes;
use crate::cluster::Literal;
use crate::op::Op;
use crate::{Error, Result, Tensor};

/// Most places that an axis may have before it is cut: as many 8-byte elements as the address space holds.
const MAX_PLACES: i128 = i64::MAX as i128 / 8;

impl Tensor {
    /// The same elements, row-major, in another shape.
    ///
    /// # Errors
    /// `Shape` when the number of elements differs.
    #[track_caller]
    pub fn reshape(&self, shape: &[usize]) -> Result<Tensor> {
        super::creation::check_elements("reshape", shape)?;
        if shape.iter().product::<usize>() != self.elements() {
            let message =
                format!("shape {:?} has {} elements, {shape:?} has not", self.shape(), self.elements());
            return Err(Error::shape("reshape", message));
        }
        if shape == self.shape() {
            return Ok(self.clone());
        }
        Ok(Self::build(Op::Reshape, self.dtype(), shape.to_vec(), vec![self.clone()]))
    }

    /// Axes in another order: output axis `i` is input axis `axes[i]`.
    ///
    /// # Errors
    /// `Shape` when `axes` is no permutation.
    #[track_caller]
    pub fn permute(&self, axes: &[usize]) -> Result<Tensor> {
        check_axes("permute", axes, self.rank())?;
        if axes.len() != self.rank() {
            let message = format!("{axes:?} must name each of the {} axes once", self.rank());
            return Err(Error::shape("permute", message));
        }
        if axes.iter().copied().eq(0..self.rank()) {
            return Ok(self.clone());
        }
        let shape = axes.iter().map(|&axis| self.shape()[axis]).collect();
        Ok(Self::build(Op::Permute(axes.to_vec()), self.dtype(), shape, vec![self.clone()]))
    }

    /// The last two axes exchanged.
    ///
    /// # Errors
    /// `Shape` when there are fewer than two axes.
    #[track_caller]
    pub fn transpose(&self) -> Result<Tensor> {
        let rank = self.rank();
        if rank < 2 {
            let message = format!("needs two axes, got shape {:?}", self.shape());
            return Err(Error::shape("transpose", message));
        }
        let mut axes: Vec<_> = (0..rank).collect();
        axes.swap(rank - 2, rank - 1);
        self.permute(&axes)
    }

    /// Repeats axes of extent 1 to `shape`, which has the same number of axes or more (new ones come first).
    ///
    /// # Errors
    /// `Shape` when an extent is neither 1 nor the wanted one.
    #[track_caller]
    pub fn broadcast_to(&self, shape: &[usize]) -> Result<Tensor> {
        const NAME: &str = "broadcast_to";
        if shape == self.shape() {
            return Ok(self.clone());
        }
        super::creation::check_elements(NAME, shape)?;
        let missing = shape.len().checked_sub(self.rank());
        let fits = |missing: usize| {
            self.shape().iter().zip(&shape[missing..]).all(|(&own, &wanted)| own == wanted || own == 1)
        };
        let Some(missing) = missing.filter(|&missing| fits(missing)) else {
            let message =
                format!("shape {:?} does not repeat to {shape:?}; extents must agree or be 1", self.shape());
            return Err(Error::shape(NAME, message));
        };
        let mut aligned = vec![1; missing];
        aligned.extend(self.shape());
        let aligned = self.reshape(&aligned)?;
        if aligned.shape() == shape {
            return Ok(aligned);
        }
        Ok(Self::build(Op::Expand, self.dtype(), shape.to_vec(), vec![aligned]))
    }

    /// Elements `start, start + step, ...` below `end`, per axis.
    ///
    /// # Errors
    /// `Shape` when a range does not lie inside, a step is 0, or the number of axes differs.
    #[track_caller]
    pub fn slice(&self, start: &[usize], end: &[usize], step: &[usize]) -> Result<Tensor> {
        const NAME: &str = "slice";
        if [start.len(), end.len(), step.len()] != [self.rank(); 3] {
            let message = format!("needs start, end and step for each of the {} axes", self.rank());
            return Err(Error::shape(NAME, message));
        }
        let mut shape = Vec::with_capacity(self.rank());
        for axis in 0..self.rank() {
            let (from, to, by) = (start[axis], end[axis], step[axis]);
            if by == 0 || from > to || to > self.shape()[axis] {
                let extent = self.shape()[axis];
                let message =
                    format!("{from}..{to} in steps of {by} is no range of axis {axis}, which has {extent}");
                return Err(Error::shape(NAME, message));
            }
            shape.push((to - from).div_ceil(by));
        }
        if shape == self.shape() {
            return Ok(self.clone());
        }
        let op = Op::Slice { start: start.to_vec(), step: step.to_vec() };
        Ok(Self::build(op, self.dtype(), shape, vec![self.clone()]))
    }

    /// Elements `start..end` of one axis.
    ///
    /// # Errors
    /// As [`slice`](Self::slice).
    #[track_caller]
    pub fn narrow(&self, axis: usize, start: usize, end: usize) -> Result<Tensor> {
        check_axes("narrow", &[axis], self.rank())?;
        let (mut low, mut high) = (vec![0; self.rank()], self.shape().to_vec());
        (low[axis], high[axis]) = (start, end);
        self.slice(&low, &high, &vec![1; self.rank()])
    }

    /// Elements of these axes in reverse order.
    ///
    /// # Errors
    /// `Shape` when an axis is not there or named twice.
    #[track_caller]
    pub fn flip(&self, axes: &[usize]) -> Result<Tensor> {
        check_axes("flip", axes, self.rank())?;
        if axes.is_empty() {
            return Ok(self.clone());
        }
        Ok(Self::build(Op::Flip(axes.to_vec()), self.dtype(), self.shape().to_vec(), vec![self.clone()]))
    }

    /// `value` around and between the elements: `low` before, `high` behind (negative cuts), `interior` between
    /// neighbours.
    ///
    /// # Errors
    /// `Shape` when the number of axes differs or more is cut than there is.
    #[track_caller]
    pub fn pad(&self, low: &[i64], high: &[i64], interior: &[usize], value: f64) -> Result<Tensor> {
        const NAME: &str = "pad";
        if [low.len(), high.len(), interior.len()] != [self.rank(); 3] {
            let message = format!("needs low, high and interior for each of the {} axes", self.rank());
            return Err(Error::shape(NAME, message));
        }
        // Between fewer than two elements there is nothing, however much was asked for.
        let interior: Vec<_> = interior
            .iter()
            .zip(self.shape())
            .map(|(&gap, &extent)| if extent > 1 { gap } else { 0 })
            .collect();
        let mut shape = Vec::with_capacity(self.rank());
        for axis in 0..self.rank() {
            let extent = self.shape()[axis] as i128;
            let spread = if extent == 0 { 0 } else { (extent - 1) * (interior[axis] as i128 + 1) + 1 };
            // What one edge adds the other may cut: each must be small enough to compute places with.
            let largest = spread.max(low[axis].unsigned_abs().max(high[axis].unsigned_abs()).into());
            if largest > MAX_PLACES {
                let message = format!(
                    "axis {axis} of extent {extent} padded by {}, {} and {} between exceeds the address space",
                    low[axis], high[axis], interior[axis]
                );
                return Err(Error::shape(NAME, message));
            }
            let padded = spread + i128::from(low[axis]) + i128::from(high[axis]);
            let Ok(extent) = usize::try_from(padded) else {
                let message = format!(
                    "axis {axis} of extent {extent} padded by {} and {} has {padded}",
                    low[axis], high[axis]
                );
                return Err(Error::shape(NAME, message));
            };
            shape.push(extent);
        }
        super::creation::check_elements(NAME, &shape)?;
        let op = Op::Pad {
            low: low.to_vec(),
            high: high.to_vec(),
            interior,
            value: Literal::new(self.dtype(), value),
        };
        Ok(Self::build(op, self.dtype(), shape, vec![self.clone()]))
    }
}
