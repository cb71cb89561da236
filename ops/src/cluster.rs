//! Fused elementwise work: one loop nest over an iteration space, as a straight-line program.
//!
//! Fusion builds clusters, kernel variants run them: the CPU interprets one in chunks, the NPU turns one into
//! vector instructions, GPUs into source text. One description serves all of them, so they compute the same.

use halite_hal::DType;
use std::fmt;

/// An elementwise function of one argument. Defined on every dtype that [`UnaryOp::accepts`] names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum UnaryOp {
    /// `-x`; integers wrap.
    Neg,
    /// `|x|`; the least integer stays itself.
    Abs,
    /// -1, 0 or 1; NaN stays NaN, zeros keep their sign.
    Sign,
    /// Largest integer not above.
    Floor,
    /// Smallest integer not below.
    Ceil,
    /// Nearest integer, ties to even.
    Round,
    /// e^x.
    Exp,
    /// Natural logarithm; of a negative number NaN, of zero -inf.
    Log,
    /// Square root; of a negative number NaN.
    Sqrt,
    /// 1 / sqrt(x), computed as such (no approximation).
    Rsqrt,
    /// Sine.
    Sin,
    /// Cosine.
    Cos,
    /// Hyperbolic tangent.
    Tanh,
    /// Logical (bool) or bitwise (integers) complement.
    Not,
}

impl UnaryOp {
    /// Every function, in declaration order.
    pub const ALL: [Self; 14] = [
        Self::Neg,
        Self::Abs,
        Self::Sign,
        Self::Floor,
        Self::Ceil,
        Self::Round,
        Self::Exp,
        Self::Log,
        Self::Sqrt,
        Self::Rsqrt,
        Self::Sin,
        Self::Cos,
        Self::Tanh,
        Self::Not,
    ];

    /// The primitive's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Neg => "neg",
            Self::Abs => "abs",
            Self::Sign => "sign",
            Self::Floor => "floor",
            Self::Ceil => "ceil",
            Self::Round => "round",
            Self::Exp => "exp",
            Self::Log => "log",
            Self::Sqrt => "sqrt",
            Self::Rsqrt => "rsqrt",
            Self::Sin => "sin",
            Self::Cos => "cos",
            Self::Tanh => "tanh",
            Self::Not => "not",
        }
    }

    /// Whether the function is defined on `dtype`.
    pub const fn accepts(self, dtype: DType) -> bool {
        match self {
            Self::Neg | Self::Abs | Self::Sign => !matches!(dtype, DType::Bool),
            Self::Not => !dtype.is_float(),
            _ => dtype.is_float(),
        }
    }
}

/// An elementwise function of two arguments of the same dtype, which is also the result's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum BinaryOp {
    /// Sum; integers wrap.
    Add,
    /// Difference; integers wrap.
    Sub,
    /// Product; integers wrap.
    Mul,
    /// Quotient; integers truncate, and division by zero gives 0.
    Div,
    /// Remainder with the sign of the dividend; by zero it gives 0 for integers, NaN for floats.
    Rem,
    /// Power.
    Pow,
    /// Larger one; NaN if either is.
    Max,
    /// Smaller one; NaN if either is.
    Min,
    /// Logical or bitwise conjunction.
    And,
    /// Logical or bitwise disjunction.
    Or,
    /// Logical or bitwise exclusive disjunction.
    Xor,
    /// Left shift; by the width or more it gives 0.
    Shl,
    /// Right shift, arithmetic for signed types; by the width or more it gives 0 (or -1 for negative numbers).
    Shr,
}

impl BinaryOp {
    /// Every function, in declaration order.
    pub const ALL: [Self; 13] = [
        Self::Add,
        Self::Sub,
        Self::Mul,
        Self::Div,
        Self::Rem,
        Self::Pow,
        Self::Max,
        Self::Min,
        Self::And,
        Self::Or,
        Self::Xor,
        Self::Shl,
        Self::Shr,
    ];

    /// The primitive's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Sub => "sub",
            Self::Mul => "mul",
            Self::Div => "div",
            Self::Rem => "rem",
            Self::Pow => "pow",
            Self::Max => "max",
            Self::Min => "min",
            Self::And => "and",
            Self::Or => "or",
            Self::Xor => "xor",
            Self::Shl => "shl",
            Self::Shr => "shr",
        }
    }

    /// Whether the function is defined on `dtype`.
    pub const fn accepts(self, dtype: DType) -> bool {
        match self {
            Self::And | Self::Or | Self::Xor => !dtype.is_float(),
            Self::Shl | Self::Shr => dtype.is_integer(),
            Self::Pow => dtype.is_float(),
            _ => !matches!(dtype, DType::Bool),
        }
    }
}

/// A comparison; the result is `bool`. Every comparison with NaN is false.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CompareOp {
    /// Equal; zeros of either sign are equal.
    Eq,
    /// Less.
    Lt,
    /// Less or equal.
    Le,
}

impl CompareOp {
    /// Every comparison.
    pub const ALL: [Self; 3] = [Self::Eq, Self::Lt, Self::Le];

    /// The primitive's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Eq => "eq",
            Self::Lt => "lt",
            Self::Le => "le",
        }
    }
}

/// A constant by its bits, so that it can be compared and hashed: the value's bits in its own dtype, zero-extended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Literal {
    /// Type of the value.
    pub dtype: DType,
    /// Bits of the value.
    pub bits: u64,
}

impl Literal {
    /// `value` rounded to `dtype`; casts to integers saturate and NaN becomes 0, as everywhere.
    pub fn new(dtype: DType, value: f64) -> Self {
        let bits = match dtype {
            DType::Bool => u64::from(value != 0.0),
            DType::I8 => value as i8 as u8 as u64,
            DType::U8 => value as u8 as u64,
            DType::I16 => value as i16 as u16 as u64,
            DType::U16 => value as u16 as u64,
            DType::I32 => value as i32 as u32 as u64,
            DType::U32 => value as u32 as u64,
            DType::I64 => value as i64 as u64,
            DType::U64 => value as u64,
            DType::F16 => half::f16::from_f64(value).to_bits() as u64,
            DType::BF16 => half::bf16::from_f64(value).to_bits() as u64,
            DType::F32 => (value as f32).to_bits() as u64,
            _ => value.to_bits(),
        };
        Self { dtype, bits }
    }

    /// The value as `f64` (64-bit integers beyond 2^53 are rounded).
    pub fn to_f64(self) -> f64 {
        let bits = self.bits;
        match self.dtype {
            DType::Bool => f64::from(u8::from(bits != 0)),
            DType::I8 => f64::from(bits as i8),
            DType::U8 => f64::from(bits as u8),
            DType::I16 => f64::from(bits as i16),
            DType::U16 => f64::from(bits as u16),
            DType::I32 => f64::from(bits as i32),
            DType::U32 => f64::from(bits as u32),
            DType::I64 => bits as i64 as f64,
            DType::U64 => bits as f64,
            DType::F16 => half::f16::from_bits(bits as u16).to_f64(),
            DType::BF16 => half::bf16::from_bits(bits as u16).to_f64(),
            DType::F32 => f64::from(f32::from_bits(bits as u32)),
            _ => f64::from_bits(bits),
        }
    }
}

/// How an input is read over the iteration space: element `i` lies at `offset + sum(i[axis] * strides[axis])`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct View {
    /// Type of the elements.
    pub dtype: DType,
    /// First element read, in elements from the start of the buffer.
    pub offset: i64,
    /// Elements between neighbours per axis of the iteration space; 0 broadcasts, negative flips.
    pub strides: Vec<i64>,
}

impl View {
    /// The row-major view of a tensor of `shape`.
    pub fn contiguous(dtype: DType, shape: &[usize]) -> Self {
        Self { dtype, offset: 0, strides: contiguous_strides(shape) }
    }

    /// Whether the view reads exactly the elements of a row-major tensor of `shape`, in order.
    pub fn is_contiguous(&self, shape: &[usize]) -> bool {
        let natural = contiguous_strides(shape);
        self.offset == 0
            && (0..shape.len()).all(|axis| shape[axis] <= 1 || self.strides[axis] == natural[axis])
    }
}

/// Strides of a row-major tensor of `shape`, in elements.
pub fn contiguous_strides(shape: &[usize]) -> Vec<i64> {
    let mut strides = vec![0; shape.len()];
    let mut step = 1i64;
    for (stride, extent) in strides.iter_mut().zip(shape).rev() {
        *stride = step;
        step *= (*extent).max(1) as i64;
    }
    strides
}

/// The number of a step, whose value later steps use.
pub type ValueId = u32;

/// What a step computes. Operands are earlier steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StepOp {
    /// The element of input `n` at this point, through its view.
    Load(u32),
    /// Runtime scalar `n`.
    Scalar(u32),
    /// A constant.
    Constant(Literal),
    /// The index along an axis of the iteration space.
    Index(u32),
    /// A function of one value.
    Unary(UnaryOp, ValueId),
    /// A function of two values of the step's dtype.
    Binary(BinaryOp, ValueId, ValueId),
    /// A comparison of two values of one dtype.
    Compare(CompareOp, ValueId, ValueId),
    /// The second value where the first (`bool`) is true, else the third.
    Select(ValueId, ValueId, ValueId),
    /// Conversion to the step's dtype: floats to integers saturate with NaN as 0, to `bool` is `!= 0`; floats round
    /// to nearest even; integers to integers wrap.
    Cast(ValueId),
    /// The bits of the value as the step's dtype, of the same size.
    Bitcast(ValueId),
}

impl StepOp {
    /// The values that the step uses.
    pub fn operands(&self) -> impl Iterator<Item = ValueId> {
        let operands = match *self {
            Self::Load(_) | Self::Scalar(_) | Self::Constant(_) | Self::Index(_) => [None; 3],
            Self::Unary(_, a) | Self::Cast(a) | Self::Bitcast(a) => [Some(a), None, None],
            Self::Binary(_, a, b) | Self::Compare(_, a, b) => [Some(a), Some(b), None],
            Self::Select(a, b, c) => [Some(a), Some(b), Some(c)],
        };
        operands.into_iter().flatten()
    }
}

/// One step of the program.
///
/// Steps of f16 and bf16 compute in f32 and round the result to their dtype, on every device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Step {
    /// What is computed.
    pub op: StepOp,
    /// Type of the result.
    pub dtype: DType,
}

/// A fused elementwise program over an iteration space.
///
/// Kernel arguments, in order: the inputs, the outputs, the scalars. Each output is dense and row-major over
/// `shape`, of the dtype of the step that it names. An output may be the very memory of an input that is read
/// contiguously (in-place update), so a kernel loads a point of every input before it stores that point.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Cluster {
    /// The iteration space; an empty shape is one point.
    pub shape: Vec<usize>,
    /// How each input buffer is read.
    pub inputs: Vec<View>,
    /// Types of the runtime scalars: `f32`, `i32` or `u32`.
    pub scalars: Vec<DType>,
    /// The program; operands come before their uses.
    pub steps: Vec<Step>,
    /// Steps whose values are stored, in order of the outputs.
    pub outputs: Vec<ValueId>,
}

impl Cluster {
    /// The program that copies one strided input to a dense output.
    pub fn copy(shape: &[usize], view: View) -> Self {
        let dtype = view.dtype;
        Self {
            shape: shape.to_vec(),
            inputs: vec![view],
            scalars: Vec::new(),
            steps: vec![Step { op: StepOp::Load(0), dtype }],
            outputs: vec![0],
        }
    }

    /// Number of points.
    pub fn points(&self) -> usize {
        self.shape.iter().product()
    }

    /// Type of output `n`.
    pub fn output_dtype(&self, output: usize) -> DType {
        self.steps[self.outputs[output] as usize].dtype
    }

    /// Merges neighbouring axes wherever every view allows it, and drops axes of extent 1, so that the innermost
    /// loop is as long as possible. Values do not change. `keep_split` lists axes that must not be merged with
    /// the axis before them (the border between kept and reduced axes).
    pub fn collapse(&mut self, keep_split: Option<usize>) -> Option<usize> {
        let indexed = |steps: &[Step], axis: usize| {
            steps.iter().any(|step| matches!(step.op, StepOp::Index(used) if used as usize == axis))
        };
        let mut split = keep_split;
        let mut axis = self.shape.len();
        while axis > 0 {
            axis -= 1;
            let merge_into_next = axis + 1 < self.shape.len()
                && split != Some(axis + 1)
                && !indexed(&self.steps, axis)
                && !indexed(&self.steps, axis + 1)
                && self
                    .inputs
                    .iter()
                    .all(|view| view.strides[axis] == view.strides[axis + 1] * self.shape[axis + 1] as i64);
            let unit = self.shape[axis] == 1 && !indexed(&self.steps, axis);
            if merge_into_next {
                self.shape[axis + 1] *= self.shape[axis];
            } else if !unit {
                continue;
            }
            self.shape.remove(axis);
            self.inputs.iter_mut().for_each(|view| {
                view.strides.remove(axis);
            });
            for step in &mut self.steps {
                if let StepOp::Index(used) = &mut step.op
                    && *used as usize > axis
                {
                    *used -= 1;
                }
            }
            split = split.map(|s| if s > axis { s - 1 } else { s });
        }
        split
    }
}

impl fmt::Display for Cluster {
    /// One step a line, for tests and `--explain` output.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "over {:?}", self.shape)?;
        for (id, step) in self.steps.iter().enumerate() {
            writeln!(f, "  v{id}: {} = {:?}", step.dtype, step.op)?;
        }
        writeln!(f, "  store {:?}", self.outputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collapse_merges_dense_axes_into_one() {
        let mut cluster = Cluster::copy(&[2, 3, 4], View::contiguous(DType::F32, &[2, 3, 4]));
        cluster.collapse(None);
        assert_eq!((cluster.shape, cluster.inputs[0].strides.clone()), (vec![24], vec![1]));
    }

    #[test]
    fn collapse_respects_broadcasts_and_the_split() {
        let view = View { dtype: DType::F32, offset: 0, strides: vec![0, 4, 1] };
        let mut cluster = Cluster::copy(&[2, 3, 4], view);
        cluster.collapse(None);
        assert_eq!(cluster.shape, [2, 12]);
        let mut dense = Cluster::copy(&[2, 3, 4], View::contiguous(DType::F32, &[2, 3, 4]));
        assert_eq!(dense.collapse(Some(1)), Some(1));
        assert_eq!(dense.shape, [2, 12]);
    }

    #[test]
    fn collapse_drops_unit_axes_and_renumbers_indices() {
        let mut cluster = Cluster::copy(&[1, 5], View::contiguous(DType::F32, &[1, 5]));
        cluster.steps.push(Step { op: StepOp::Index(1), dtype: DType::I32 });
        cluster.collapse(None);
        assert_eq!(cluster.shape, [5]);
        assert_eq!(cluster.steps[1].op, StepOp::Index(0));
    }

    #[test]
    fn literals_saturate_and_keep_their_bits() {
        assert_eq!(Literal::new(DType::I32, 1e20).to_f64(), f64::from(i32::MAX));
        assert_eq!(Literal::new(DType::U8, f64::NAN).to_f64(), 0.0);
        assert!(Literal::new(DType::F16, f64::NAN).to_f64().is_nan());
        assert_eq!(Literal::new(DType::F32, 0.1).to_f64(), f64::from(0.1f32));
    }
}
