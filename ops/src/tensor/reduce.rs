//! Reductions, and what is composed of them.

use super::check_axes;
use crate::lower::ReduceKind;
use crate::op::Op;
use crate::{DType, Error, Result, Tensor};

impl Tensor {
    /// Sum over `axes`, which are dropped; 0 over nothing. f16 and bf16 accumulate in f32.
    ///
    /// # Errors
    /// `Shape` when an axis is not there or named twice, `DType` for `bool`.
    #[track_caller]
    pub fn sum(&self, axes: &[usize]) -> Result<Tensor> {
        self.reduce(ReduceKind::Sum, axes)
    }

    /// Sum of all elements.
    ///
    /// # Errors
    /// `DType` for `bool`.
    #[track_caller]
    pub fn sum_all(&self) -> Result<Tensor> {
        self.sum(&(0..self.rank()).collect::<Vec<_>>())
    }

    /// Mean over `axes`, which are dropped; NaN over nothing.
    ///
    /// # Errors
    /// `Shape` when an axis is not there or named twice, `DType` when the tensor holds no floats.
    #[track_caller]
    pub fn mean(&self, axes: &[usize]) -> Result<Tensor> {
        self.require_float("mean")?;
        let sum = self.sum(axes)?;
        let count: usize = axes.iter().map(|&axis| self.shape()[axis]).product();
        sum.div(count as f64)
    }

    /// Largest element over `axes`, which are dropped; NaN if any is; -inf over nothing. The gradient is shared
    /// evenly among equals.
    ///
    /// # Errors
    /// As [`sum`](Self::sum).
    #[track_caller]
    pub fn max(&self, axes: &[usize]) -> Result<Tensor> {
        self.reduce(ReduceKind::Max, axes)
    }

    /// Smallest element over `axes`; as [`max`](Self::max).
    ///
    /// # Errors
    /// As [`sum`](Self::sum).
    #[track_caller]
    pub fn min(&self, axes: &[usize]) -> Result<Tensor> {
        self.reduce(ReduceKind::Min, axes)
    }

    /// Index of the first largest element along `axis`, as `i32`. A NaN counts as larger than any number.
    ///
    /// # Errors
    /// `Shape` when the axis is not there or has extent 0, `DType` for `bool`.
    #[track_caller]
    pub fn argmax(&self, axis: usize) -> Result<Tensor> {
        check_axes("argmax", &[axis], self.rank())?;
        if self.shape()[axis] == 0 {
            return Err(Error::shape("argmax", format!("axis {axis} has no elements")));
        }
        self.reduce(ReduceKind::ArgMax, &[axis])
    }

    /// `log(softmax(x))` along `axis`: `x - max - log(sum(exp(x - max)))`.
    ///
    /// # Errors
    /// `Shape` when the axis is not there, `DType` when the tensor holds no floats.
    #[track_caller]
    pub fn log_softmax(&self, axis: usize) -> Result<Tensor> {
        const NAME: &str = "log_softmax";
        self.require_float(NAME)?;
        check_axes(NAME, &[axis], self.rank())?;
        let mut kept = self.shape().to_vec();
        kept[axis] = 1;
        // The result does not depend on the maximum, so no gradient need flow through it.
        let max = self.max(&[axis])?.reshape(&kept)?.stop_gradient();
        let shifted = self.sub(&max)?;
        let log_sum = shifted.exp()?.sum(&[axis])?.log()?.reshape(&kept)?;
        shifted.sub(&log_sum)
    }

    /// Mean cross-entropy of logits `[batch, classes]` (this tensor) against class indices `[batch]` (`i32`), as a
    /// single f32: `-mean(log_softmax(logits)[label])`. Computed in f32 whatever the logits' dtype. A label outside
    /// the classes contributes 0.
    ///
    /// # Errors
    /// `Shape` or `DType` when the operands do not fit.
    #[track_caller]
    pub fn cross_entropy(&self, labels: &Tensor) -> Result<Tensor> {
        self.cross_entropy_smoothed(labels, 0.0)
    }

    /// [`cross_entropy`](Self::cross_entropy) against smoothed targets: a share `smoothing` of each is spread evenly
    /// over all classes.
    ///
    /// Source: Szegedy et al., "Rethinking the Inception architecture for computer vision", CVPR 2016, section 7.
    ///
    /// # Errors
    /// `Shape` or `DType` when the operands do not fit, or `smoothing` does not lie in `[0, 1]`.
    #[track_caller]
    pub fn cross_entropy_smoothed(&self, labels: &Tensor, smoothing: f64) -> Result<Tensor> {
        const NAME: &str = "cross_entropy";
        self.require_float(NAME)?;
        let [batch, classes] = *self.shape() else {
            let message = format!("logits are [batch, classes], got {:?}", self.shape());
            return Err(Error::shape(NAME, message));
        };
        if labels.shape() != [batch] {
            let message =
                format!("logits {:?} need labels [{batch}], got {:?}", self.shape(), labels.shape());
            return Err(Error::shape(NAME, message));
        }
        if labels.dtype() != DType::I32 {
            return Err(Error::dtype(NAME, format!("labels are i32, got {}; cast them", labels.dtype())));
        }
        if !(0.0..=1.0).contains(&smoothing) {
            return Err(Error::shape(NAME, format!("smoothing is a share from 0 to 1, got {smoothing}")));
        }
        let log_probabilities = self.cast(DType::F32)?.log_softmax(1)?;
        let class = self.engine().iota(&[1, classes], 1, DType::I32)?;
        let is_label = labels.reshape(&[batch, 1])?.eq(&class)?;
        let terms = if smoothing == 0.0 {
            // No product, so that a class of probability 0 does not turn the loss of another into NaN.
            is_label.select(&log_probabilities, &log_probabilities.full_like(0.0))?
        } else {
            let spread = smoothing / classes.max(1) as f64;
            let [hit, miss] =
                [1.0 - smoothing + spread, spread].map(|share| log_probabilities.full_like(share));
            is_label.select(&hit, &miss)?.mul(&log_probabilities)?
        };
        terms.sum(&[0, 1])?.mul(-1.0 / batch.max(1) as f64)
    }

    #[track_caller]
    pub(crate) fn reduce(&self, kind: ReduceKind, axes: &[usize]) -> Result<Tensor> {
        let name = kind.name();
        check_axes(name, axes, self.rank())?;
        if self.dtype() == DType::Bool {
            return Err(Error::dtype(name, "is not defined on bool; cast first"));
        }
        if axes.is_empty() && kind != ReduceKind::ArgMax {
            return Ok(self.clone());
        }
        let mut axes = axes.to_vec();
        axes.sort_unstable();
        let shape =
            (0..self.rank()).filter(|axis| !axes.contains(axis)).map(|axis| self.shape()[axis]).collect();
        let dtype = if kind == ReduceKind::ArgMax { DType::I32 } else { self.dtype() };
        Ok(Self::build(Op::Reduce { kind, axes }, dtype, shape, vec![self.clone()]))
    }
}
