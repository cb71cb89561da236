//! The vocabulary of built-in operations: what a vendor's own library may implement behind
//! [`KernelSource::Builtin`](crate::KernelSource::Builtin).
//!
//! Names, attributes and operand descriptors only: plain data that owns its shapes and asks no driver. Which device
//! implements what is found by trying to load one.

use crate::kernel::{Access, ArgType, Signature};
use crate::{DType, Error, Result};

/// A dense operand: type, shape and strides.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OperandDesc {
    /// Type of the elements.
    pub dtype: DType,
    /// Extent per axis; an empty shape is one element.
    pub shape: Vec<u64>,
    /// Elements between neighbours per axis; 0 repeats.
    pub strides: Vec<i64>,
}

impl OperandDesc {
    /// A row-major operand without gaps.
    pub fn contiguous(dtype: DType, shape: &[u64]) -> Self {
        let mut strides = vec![0; shape.len()];
        let mut step = 1i64;
        for (stride, extent) in strides.iter_mut().zip(shape).rev() {
            *stride = step;
            step = step.saturating_mul(i64::try_from(*extent).unwrap_or(i64::MAX).max(1));
        }
        Self { dtype, shape: shape.to_vec(), strides }
    }

    /// Number of elements; `None` when it does not fit 64 bits.
    pub fn elements(&self) -> Option<u64> {
        self.shape.iter().try_fold(1u64, |product, extent| product.checked_mul(*extent))
    }

    /// Whether the elements lie in row-major order without gaps.
    pub fn is_contiguous(&self) -> bool {
        self.strides == Self::contiguous(self.dtype, &self.shape).strides
    }
}

/// What is done to each element of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Activation {
    /// Nothing.
    Identity,
    /// `max(x, 0)`.
    Relu,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))`.
    GeluTanh,
}

/// Which operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BuiltinKind {
    /// `out = input`. Operands: input, out.
    Copy,
    /// `out = value`, the value being the bits of one element. Operands: out.
    Fill {
        /// Bits of the element, zero-extended.
        value_bits: u64,
    },
    /// `out = lhs + rhs`. Operands: lhs, rhs, out.
    Add,
    /// `out[m, n] = sum over k of lhs[m, k] * rhs[k, n]`, batched over leading axes. Operands: lhs, rhs, out.
    MatMul,
    /// `out = activation(lhs * rhs + bias)`, the product being that of [`MatMul`](Self::MatMul) and the bias, of shape
    /// `[n]`, the same for every row. Operands: lhs, rhs, the bias if there is one, out.
    FusedMatMul {
        /// Whether there is a bias.
        bias: bool,
        /// What is done to the sums.
        activation: Activation,
        /// Whether operands of f32 may be rounded to TF32, whose significands have 11 bits, before they are multiplied.
        allow_tf32: bool,
    },
    /// Fails: the launch is accepted, and its work ends as a `Fault` that writes nothing. For tests of what comes behind.
    /// Operands: out.
    Fault,
}

impl BuiltinKind {
    /// The operation's name in messages and in the plugin interface.
    pub fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Fill { .. } => "fill",
            Self::Add => "add",
            Self::MatMul => "matmul",
            Self::FusedMatMul { .. } => "fused_matmul",
            Self::Fault => "fault",
        }
    }

    /// Operands in all; the last one is written, the others are read.
    pub fn operand_count(self) -> usize {
        match self {
            Self::Fill { .. } | Self::Fault => 1,
            Self::Copy => 2,
            Self::Add | Self::MatMul => 3,
            Self::FusedMatMul { bias, .. } => 3 + usize::from(bias),
        }
    }
}

/// An operation with the operands that it will run on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BuiltinOp {
    /// Which operation.
    pub kind: BuiltinKind,
    /// Descriptors in the operation's order; the last one is written.
    pub operands: Vec<OperandDesc>,
}

impl BuiltinOp {
    /// Checks the operand count and the shapes that the operation's definition demands.
    ///
    /// # Errors
    /// `InvalidArgument` that names the operand.
    pub fn new(kind: BuiltinKind, operands: Vec<OperandDesc>) -> Result<Self> {
        let name = kind.name();
        if operands.len() != kind.operand_count() {
            let (expected, got) = (kind.operand_count(), operands.len());
            return Err(Error::invalid(format!("built-in '{name}' takes {expected} operands, got {got}")));
        }
        for (index, operand) in operands.iter().enumerate() {
            if operand.shape.len() != operand.strides.len() || operand.elements().is_none() {
                return Err(Error::invalid(format!(
                    "operand {index} of built-in '{name}' has no valid layout"
                )));
            }
        }
        let out = &operands[operands.len() - 1];
        let same_shapes = operands.iter().all(|o| o.shape == out.shape && o.dtype == out.dtype);
        if matches!(kind, BuiltinKind::Copy | BuiltinKind::Add) && !same_shapes {
            return Err(Error::invalid(format!(
                "operands of built-in '{name}' must agree in shape and dtype"
            )));
        }
        if let BuiltinKind::FusedMatMul { bias: true, .. } = kind
            && (operands[2].shape.len() != 1 || operands[2].shape.first() != out.shape.last())
        {
            return Err(Error::invalid(format!(
                "the bias of built-in '{name}' must have one element per column of the output, got shape {:?}",
                operands[2].shape
            )));
        }
        Ok(Self { kind, operands })
    }

    /// The operation's name.
    pub fn name(&self) -> &'static str {
        self.kind.name()
    }

    /// The launch signature: every operand as a buffer, then the workspace where there is one.
    pub fn signature(&self, workspace_bytes: u64) -> Signature {
        let last = self.operands.len() - 1;
        let operand = |(index, desc): (usize, &OperandDesc)| ArgType::Buffer {
            dtype: desc.dtype,
            access: if index == last { Access::Write } else { Access::Read },
        };
        let mut args: Vec<_> = self.operands.iter().enumerate().map(operand).collect();
        if workspace_bytes > 0 {
            args.push(ArgType::Buffer { dtype: DType::U8, access: Access::Write });
        }
        Signature::new(args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fused_product_takes_a_bias_of_one_element_per_column() {
        let desc = |shape: &[u64]| OperandDesc::contiguous(DType::F32, shape);
        let op = |bias, operands| {
            let activation = Activation::Relu;
            BuiltinOp::new(BuiltinKind::FusedMatMul { bias, activation, allow_tf32: false }, operands)
        };
        let (lhs, rhs, out) = (desc(&[2, 3]), desc(&[3, 5]), desc(&[2, 5]));
        let plain = op(false, vec![lhs.clone(), rhs.clone(), out.clone()]).unwrap();
        assert_eq!(plain.signature(0).args.len(), 3);
        let operands = |bias: &[u64]| vec![lhs.clone(), rhs.clone(), desc(bias), out.clone()];
        let biased = op(true, operands(&[5])).unwrap();
        assert_eq!(biased.signature(64).args.len(), 5);
        for bad in
            [operands(&[4]), operands(&[1, 5]), operands(&[]), vec![lhs.clone(), rhs.clone(), out.clone()]]
        {
            assert!(op(true, bad).is_err());
        }
    }
}
