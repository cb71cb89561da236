//! Sliding windows: pooling, and the operations that its derivatives are.

use crate::lower::WindowKind;
use crate::op::{Op, WindowAttributes};
use crate::{Error, Result, Tensor};

impl Tensor {
    /// Largest element of each window over the last axes; padding is not looked at; NaN wins.
    ///
    /// # Errors
    /// `Shape` when the attributes do not fit, `DType` when the tensor holds no floats.
    #[track_caller]
    pub fn window_max(&self, attributes: &WindowAttributes) -> Result<Tensor> {
        self.window(WindowKind::Max, attributes)
    }

    /// Sum of each window over the last axes.
    ///
    /// # Errors
    /// As [`window_max`](Self::window_max).
    #[track_caller]
    pub fn window_sum(&self, attributes: &WindowAttributes) -> Result<Tensor> {
        self.window(WindowKind::Sum, attributes)
    }

    /// Max pooling of `[.., height, width]` with square windows that do not overlap.
    ///
    /// # Errors
    /// As [`window_max`](Self::window_max).
    #[track_caller]
    pub fn max_pool2d(&self, size: usize) -> Result<Tensor> {
        self.window(WindowKind::Max, &self.square_window("max_pool2d", size)?)
    }

    /// Mean pooling of `[.., height, width]` with square windows that do not overlap.
    ///
    /// # Errors
    /// As [`window_max`](Self::window_max).
    #[track_caller]
    pub fn mean_pool2d(&self, size: usize) -> Result<Tensor> {
        let attributes = self.square_window("mean_pool2d", size)?;
        self.window(WindowKind::Sum, &attributes)?.mul(1.0 / (size as f64).powi(2))
    }

    #[track_caller]
    fn square_window(&self, op: &str, size: usize) -> Result<WindowAttributes> {
        if self.rank() < 2 {
            return Err(Error::shape(op, format!("needs [.., height, width], got {:?}", self.shape())));
        }
        Ok(WindowAttributes {
            input: self.shape()[self.rank() - 2..].to_vec(),
            window: vec![size; 2],
            stride: vec![size; 2],
            pad_low: vec![0; 2],
            pad_high: vec![0; 2],
        })
    }

    #[track_caller]
    fn window(&self, kind: WindowKind, attributes: &WindowAttributes) -> Result<Tensor> {
        let name = kind.name();
        self.require_float(name)?;
        match check_attributes(self.shape(), attributes) {
            Ok(()) => {
                let leading = &self.shape()[..self.rank() - attributes.window.len()];
                super::creation::check_elements(name, &[leading, &attributes.output()].concat())?;
                Ok(self.window_node(kind, attributes, &[]))
            }
            Err(message) => Err(Error::shape(name, message)),
        }
    }

    /// A window operation whose operands have been checked; `self` is the first input, `rest` the others.
    pub(crate) fn window_node(
        &self,
        kind: WindowKind,
        attributes: &WindowAttributes,
        rest: &[&Tensor],
    ) -> Tensor {
        let leading = self.rank() - attributes.window.len();
        let spatial = match kind {
            WindowKind::ScatterToMax | WindowKind::Spread => attributes.input.clone(),
            WindowKind::Max | WindowKind::Sum | WindowKind::GatherAtMax => attributes.output(),
        };
        let shape = [&self.shape()[..leading], &spatial].concat();
        let mut inputs = vec![self.clone()];
        inputs.extend(rest.iter().map(|&tensor| tensor.clone()));
        let op = Op::Window { kind, attributes: attributes.clone() };
        Self::build(op, self.dtype(), shape, inputs)
    }
}

fn check_attributes(shape: &[usize], a: &WindowAttributes) -> Result<(), String> {
    let axes = a.window.len();
    if [a.input.len(), a.stride.len(), a.pad_low.len(), a.pad_high.len()] != [axes; 4] || axes > shape.len() {
        return Err(format!("needs window, stride and padding for the same axes, at most {}", shape.len()));
    }
    if shape[shape.len() - axes..] != a.input {
        return Err(format!("the window slides over {:?}, but the tensor's shape is {shape:?}", a.input));
    }
    for axis in 0..axes {
        let (window, low, high) = (a.window[axis], a.pad_low[axis], a.pad_high[axis]);
        if window == 0 || a.stride[axis] == 0 {
            return Err(format!("window and stride on axis {axis} must be at least 1"));
        }
        if low >= window || high >= window {
            return Err(format!(
                "padding {low} and {high} on axis {axis} must be smaller than the window, {window}"
            ));
        }
        let extent = a.input[axis];
        let Some(padded) = super::padded_extent(extent, low, high) else {
            return Err(format!(
                "axis {axis} of {extent} padded by {low} and {high} exceeds the address space"
            ));
        };
        // A window without a single element would contain nothing but padding.
        let last = padded.checked_sub(window).map(|room| room / a.stride[axis] * a.stride[axis]);
        if last.is_some_and(|start| extent == 0 || start >= extent + low) {
            return Err(format!(
                "a window on axis {axis} would hold nothing but padding; reduce the padding"
            ));
        }
        if last.is_none() && extent > 0 {
            return Err(format!(
                "a window of {window} does not fit axis {axis}, which has {extent} padded by {low} and {high}"
            ));
        }
    }
    Ok(())
}
