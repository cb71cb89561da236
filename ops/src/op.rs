//! The primitives, as nodes of the graph know them.

use crate::CustomOp;
use crate::cluster::{BinaryOp, CompareOp, Literal, UnaryOp};
use crate::lower::{ConvGeometry, ConvOperand, ReduceKind, WindowKind};
use halite_hal::Scalar;
use std::sync::Arc;

/// One primitive with its attributes. Shapes and dtypes stand in the node.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub(crate) enum Op {
    /// Data from the host, or the settled value of an earlier evaluation.
    Leaf,
    /// A number that is passed at run time: its value is not part of a plan's key.
    RuntimeScalar(Scalar),
    /// A constant everywhere.
    Full(Literal),
    /// The index along an axis.
    Iota(usize),
    /// Threefry2x32 of the linear index; inputs are the two key words (runtime scalars or constants, `u32`).
    RandomBits,
    Unary(UnaryOp),
    Binary(BinaryOp),
    Compare(CompareOp),
    /// Inputs: condition, value if true, value if false.
    Select,
    Cast,
    Bitcast,
    Reshape,
    /// Output axis `i` is input axis `perm[i]`.
    Permute(Vec<usize>),
    /// Axes of extent 1 are repeated to the node's shape.
    Expand,
    /// From `start` in steps of `step`, to the node's shape.
    Slice {
        start: Vec<usize>,
        step: Vec<usize>,
    },
    /// Reverses these axes.
    Flip(Vec<usize>),
    Pad {
        low: Vec<i64>,
        high: Vec<i64>,
        interior: Vec<usize>,
        value: Literal,
    },
    /// Drops these axes, which are sorted.
    Reduce {
        kind: ReduceKind,
        axes: Vec<usize>,
    },
    /// Output axes: batch, free axes of lhs, free axes of rhs.
    Dot(DotAxes),
    Conv {
        operand: ConvOperand,
        geometry: ConvGeometry,
    },
    Window {
        kind: WindowKind,
        attributes: WindowAttributes,
    },
    /// The identity, with no derivative.
    StopGradient,
    Custom(Arc<dyn CustomOp>),
}

/// Which axes of a contraction pair up.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct DotAxes {
    /// Axes of lhs that are summed over, paired with those of rhs.
    pub lhs_contract: Vec<usize>,
    /// Axes of rhs that are summed over.
    pub rhs_contract: Vec<usize>,
    /// Axes of lhs that run in parallel, paired with those of rhs.
    pub lhs_batch: Vec<usize>,
    /// Axes of rhs that run in parallel.
    pub rhs_batch: Vec<usize>,
}

/// A sliding window over the last axes of a tensor.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WindowAttributes {
    /// Extents of x along the axes that the window slides over.
    pub input: Vec<usize>,
    /// Extents of the window.
    pub window: Vec<usize>,
    /// Steps between windows.
    pub stride: Vec<usize>,
    /// Padding before.
    pub pad_low: Vec<usize>,
    /// Padding behind.
    pub pad_high: Vec<usize>,
}

impl WindowAttributes {
    /// Windows per axis.
    pub fn output(&self) -> Vec<usize> {
        (0..self.window.len())
            .map(|axis| {
                let padded =
                    self.input[axis].saturating_add(self.pad_low[axis]).saturating_add(self.pad_high[axis]);
                padded
                    .checked_sub(self.window[axis])
                    .map_or(0, |room| (room / self.stride[axis]).saturating_add(1))
            })
            .collect()
    }
}

impl Op {
    /// The primitive's name, for messages and traces.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Leaf => "leaf",
            Self::RuntimeScalar(_) => "runtime_scalar",
            Self::Full(_) => "full",
            Self::Iota(_) => "iota",
            Self::RandomBits => "random_bits",
            Self::Unary(op) => op.name(),
            Self::Binary(op) => op.name(),
            Self::Compare(op) => op.name(),
            Self::Select => "select",
            Self::Cast => "cast",
            Self::Bitcast => "bitcast",
            Self::Reshape => "reshape",
            Self::Permute(_) => "permute",
            Self::Expand => "expand",
            Self::Slice { .. } => "slice",
            Self::Flip(_) => "flip",
            Self::Pad { .. } => "pad",
            Self::Reduce { kind, .. } => kind.name(),
            Self::Dot(_) => "dot_general",
            Self::Conv { .. } => "conv_general",
            Self::Window { kind, .. } => kind.name(),
            Self::StopGradient => "stop_gradient",
            Self::Custom(op) => op.name(),
        }
    }

    /// Whether the node computes point by point over its own shape.
    pub(crate) fn is_elementwise(&self) -> bool {
        matches!(
            self,
            Self::RuntimeScalar(_)
                | Self::Full(_)
                | Self::Iota(_)
                | Self::RandomBits
                | Self::Unary(_)
                | Self::Binary(_)
                | Self::Compare(_)
                | Self::Select
                | Self::Cast
                | Self::Bitcast
        )
    }

    /// Appends everything that distinguishes this op for planning; runtime values are left out.
    pub(crate) fn encode(&self, key: &mut Vec<u64>) {
        fn list(key: &mut Vec<u64>, values: &[usize]) {
            key.push(values.len() as u64);
            key.extend(values.iter().map(|&v| v as u64));
        }
        fn signed(key: &mut Vec<u64>, values: &[i64]) {
            key.push(values.len() as u64);
            key.extend(values.iter().map(|&v| v as u64));
        }
        match self {
            Self::Leaf => key.push(1),
            Self::RuntimeScalar(_) => key.push(2),
            Self::Full(literal) => key.extend([3, literal.bits]),
            Self::Iota(axis) => key.extend([4, *axis as u64]),
            Self::RandomBits => key.push(5),
            Self::Unary(op) => key.extend([6, *op as u64]),
            Self::Binary(op) => key.extend([7, *op as u64]),
            Self::Compare(op) => key.extend([8, *op as u64]),
            Self::Select => key.push(9),
            Self::Cast => key.push(10),
            Self::Bitcast => key.push(11),
            Self::Reshape => key.push(12),
            Self::Permute(perm) => {
                key.push(13);
                list(key, perm);
            }
            Self::Expand => key.push(14),
            Self::Slice { start, step } => {
                key.push(15);
                list(key, start);
                list(key, step);
            }
            Self::Flip(axes) => {
                key.push(16);
                list(key, axes);
            }
            Self::Pad { low, high, interior, value } => {
                key.extend([17, value.bits]);
                signed(key, low);
                signed(key, high);
                list(key, interior);
            }
            Self::Reduce { kind, axes } => {
                key.extend([18, *kind as u64]);
                list(key, axes);
            }
            Self::Dot(axes) => {
                key.push(19);
                for side in [&axes.lhs_contract, &axes.rhs_contract, &axes.lhs_batch, &axes.rhs_batch] {
                    list(key, side);
                }
            }
            Self::Conv { operand, geometry: g } => {
                key.extend([20, *operand as u64, g.batch as u64, g.in_channels as u64]);
                key.extend([g.out_channels as u64, g.groups as u64]);
                for sizes in [&g.input, &g.kernel, &g.output, &g.stride, &g.dilation, &g.pad_low, &g.pad_high]
                {
                    list(key, sizes);
                }
            }
            Self::Window { kind, attributes: a } => {
                key.extend([21, *kind as u64]);
                for sizes in [&a.input, &a.window, &a.stride, &a.pad_low, &a.pad_high] {
                    list(key, sizes);
                }
            }
            Self::StopGradient => key.push(22),
            Self::Custom(op) => {
                key.push(23);
                // The catalog makes names unique, but two ops of one name may come from two catalogs.
                key.push(Arc::as_ptr(op).cast::<()>() as u64);
            }
        }
    }
}
