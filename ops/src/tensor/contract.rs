//! Contractions: matrix products and convolutions.

use super::{check_axes, padded_extent, same_engine};
use crate::lower::{ConvGeometry, ConvOperand};
use crate::op::{DotAxes, Op};
use crate::{DType, Error, Result, Tensor};

/// How a convolution moves over its input; one entry per spatial axis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConvOptions {
    /// Input steps per output step.
    pub stride: Vec<usize>,
    /// Input steps per filter step.
    pub dilation: Vec<usize>,
    /// Zeros before the input.
    pub pad_low: Vec<usize>,
    /// Zeros behind the input.
    pub pad_high: Vec<usize>,
    /// Groups of channels that do not mix.
    pub groups: usize,
}

impl ConvOptions {
    /// Stride 1, no dilation, one group, and the same padding on every side of `axes` spatial axes.
    pub fn padded(axes: usize, padding: usize) -> Self {
        Self {
            stride: vec![1; axes],
            dilation: vec![1; axes],
            pad_low: vec![padding; axes],
            pad_high: vec![padding; axes],
            groups: 1,
        }
    }
}

impl Tensor {
    /// Product of matrices: `[..., m, k]` times `[..., k, n]` is `[..., m, n]`. Leading axes must agree; a plain
    /// matrix on the right serves every leading index of the left.
    ///
    /// # Errors
    /// `Shape`, `DType` or `Placement` when the operands do not fit.
    #[track_caller]
    pub fn matmul(&self, rhs: &Tensor) -> Result<Tensor> {
        let (l, r) = (self.rank(), rhs.rank());
        let batch_fits = || r == 2 || (l == r && self.shape()[..l - 2] == rhs.shape()[..r - 2]);
        if l < 2 || r < 2 || self.shape()[l - 1] != rhs.shape()[r - 2] || !batch_fits() {
            let message = format!(
                "shapes {:?} and {:?} do not multiply; [.., m, k] needs [.., k, n]",
                self.shape(),
                rhs.shape()
            );
            return Err(Error::shape("matmul", message));
        }
        let batch: Vec<_> = (0..r - 2).collect();
        let axes = DotAxes {
            lhs_contract: vec![l - 1],
            rhs_contract: vec![r - 2],
            lhs_batch: batch.clone(),
            rhs_batch: batch,
        };
        self.dot_general(rhs, &axes, self.dtype())
    }

    /// General contraction: sums products over the paired `contract` axes, in parallel over the paired `batch` axes.
    /// The result is `[batch..., free axes of self..., free axes of rhs...]` in `out_dtype`: the operands' dtype,
    /// or f32 to keep the accumulator of f16 and bf16.
    ///
    /// # Errors
    /// `Shape`, `DType` or `Placement` when the operands do not fit.
    #[track_caller]
    pub fn dot_general(&self, rhs: &Tensor, axes: &DotAxes, out_dtype: DType) -> Result<Tensor> {
        const NAME: &str = "dot_general";
        same_engine(NAME, self, rhs)?;
        check_contraction_dtypes(NAME, self, rhs, out_dtype)?;
        check_axes(NAME, &[&axes.lhs_contract[..], &axes.lhs_batch].concat(), self.rank())?;
        check_axes(NAME, &[&axes.rhs_contract[..], &axes.rhs_batch].concat(), rhs.rank())?;
        for (role, left, right) in [
            ("contracted", &axes.lhs_contract, &axes.rhs_contract),
            ("batch", &axes.lhs_batch, &axes.rhs_batch),
        ] {
            let extents =
                |tensor: &Tensor, axes: &[usize]| axes.iter().map(|&a| tensor.shape()[a]).collect::<Vec<_>>();
            let (l, r) = (extents(self, left), extents(rhs, right));
            if l != r {
                return Err(Error::shape(
                    NAME,
                    format!("{role} axes have extents {l:?} and {r:?}; they must agree"),
                ));
            }
        }
        let free = |tensor: &Tensor, contract: &[usize], batch: &[usize]| {
            let kept = (0..tensor.rank()).filter(|axis| !contract.contains(axis) && !batch.contains(axis));
            kept.map(|axis| tensor.shape()[axis]).collect::<Vec<_>>()
        };
        let mut shape: Vec<_> = axes.lhs_batch.iter().map(|&axis| self.shape()[axis]).collect();
        shape.extend(free(self, &axes.lhs_contract, &axes.lhs_batch));
        shape.extend(free(rhs, &axes.rhs_contract, &axes.rhs_batch));
        super::creation::check_elements(NAME, &shape)?;
        Ok(Self::build(Op::Dot(axes.clone()), out_dtype, shape, vec![self.clone(), rhs.clone()]))
    }

    /// Convolution (cross-correlation) of an input `[batch, channels, spatial...]` with a filter
    /// `[out_channels, channels / groups, kernel...]`; the result is `[batch, out_channels, out...]`.
    ///
    /// # Errors
    /// `Shape`, `DType` or `Placement` when the operands do not fit.
    #[track_caller]
    pub fn conv(&self, filter: &Tensor, options: &ConvOptions) -> Result<Tensor> {
        const NAME: &str = "conv";
        same_engine(NAME, self, filter)?;
        check_contraction_dtypes(NAME, self, filter, self.dtype())?;
        match conv_geometry(self.shape(), filter.shape(), options) {
            Ok(geometry) => {
                let shape = [&[geometry.batch, geometry.out_channels][..], &geometry.output].concat();
                super::creation::check_elements(NAME, &shape)?;
                Ok(self.conv_operand(filter, ConvOperand::Output, geometry))
            }
            Err(message) => Err(Error::shape(NAME, message)),
        }
    }

    /// [`conv`](Self::conv) over two spatial axes with stride 1 and the same zero padding on every side.
    ///
    /// # Errors
    /// As [`conv`](Self::conv).
    #[track_caller]
    pub fn conv2d(&self, filter: &Tensor, padding: usize) -> Result<Tensor> {
        self.conv(filter, &ConvOptions::padded(2, padding))
    }

    /// The trilinear form solved for one operand; operands in the order of [`ConvOperand`], already checked.
    pub(crate) fn conv_operand(
        &self,
        other: &Tensor,
        operand: ConvOperand,
        geometry: ConvGeometry,
    ) -> Tensor {
        let g = &geometry;
        let shape = match operand {
            ConvOperand::Output => [&[g.batch, g.out_channels][..], &g.output].concat(),
            ConvOperand::Input => [&[g.batch, g.in_channels][..], &g.input].concat(),
            ConvOperand::Filter => [&[g.out_channels, g.in_channels / g.groups][..], &g.kernel].concat(),
        };
        Self::build(Op::Conv { operand, geometry }, self.dtype(), shape, vec![self.clone(), other.clone()])
    }
}

#[track_caller]
fn check_contraction_dtypes(op: &str, lhs: &Tensor, rhs: &Tensor, out: DType) -> Result<()> {
    let dtype = lhs.dtype();
    if dtype != rhs.dtype() {
        return Err(Error::dtype(op, format!("operands are {dtype} and {}; cast one of them", rhs.dtype())));
    }
    if dtype == DType::Bool {
        return Err(Error::dtype(op, "is not defined on bool; cast first"));
    }
    let widened = out == DType::F32 && matches!(dtype, DType::F16 | DType::BF16);
    if out != dtype && !widened {
        return Err(Error::dtype(op, format!("operands of {dtype} cannot give {out}; use {dtype} and cast")));
    }
    Ok(())
}

fn conv_geometry(input: &[usize], filter: &[usize], o: &ConvOptions) -> Result<ConvGeometry, String> {
    let axes = input.len().saturating_sub(2);
    if input.len() < 3 || filter.len() != input.len() {
        return Err(format!(
            "needs input [batch, channels, spatial..] and filter [out, channels, kernel..], got {input:?} and {filter:?}"
        ));
    }
    if [o.stride.len(), o.dilation.len(), o.pad_low.len(), o.pad_high.len()] != [axes; 4] {
        return Err(format!("needs stride, dilation and padding for each of the {axes} spatial axes"));
    }
    if o.groups == 0 || o.stride.contains(&0) || o.dilation.contains(&0) {
        return Err("groups, stride and dilation must be at least 1".into());
    }
    let (channels, out_channels) = (input[1], filter[0]);
    let taken = filter[1].saturating_mul(o.groups);
    if channels != taken || out_channels % o.groups != 0 {
        return Err(format!(
            "input {input:?} has {channels} channels, filter {filter:?} in {} groups takes {taken}",
            o.groups
        ));
    }
    let mut output = Vec::with_capacity(axes);
    for axis in 0..axes {
        let (low, high) = (o.pad_low[axis], o.pad_high[axis]);
        let Some(extent) = padded_extent(input[2 + axis], low, high) else {
            return Err(format!(
                "spatial axis {axis} of {} padded by {low} and {high} exceeds the address space",
                input[2 + axis]
            ));
        };
        let reach = match filter[2 + axis] {
            0 => return Err(format!("filter {filter:?} has no extent on spatial axis {axis}")),
            // What saturates is above every padded extent, and refused below.
            k => (k - 1).saturating_mul(o.dilation[axis]).saturating_add(1),
        };
        if extent < reach {
            return Err(format!(
                "filter reaches over {reach} elements of spatial axis {axis}, padded input has {extent}"
            ));
        }
        output.push((extent - reach) / o.stride[axis] + 1);
    }
    Ok(ConvGeometry {
        batch: input[0],
        in_channels: channels,
        out_channels,
        groups: o.groups,
        input: input[2..].to_vec(),
        kernel: filter[2..].to_vec(),
        output,
        stride: o.stride.clone(),
        dilation: o.dilation.clone(),
        pad_low: o.pad_low.clone(),
        pad_high: o.pad_high.clone(),
    })
}
