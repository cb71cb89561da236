//! Elementwise methods. Operands broadcast as in NumPy: axes align at the end, extents of 1 repeat.

use super::{Operand, same_engine};
use crate::cluster::{BinaryOp, CompareOp, Literal, UnaryOp};
use crate::op::Op;
use crate::{DType, Error, Result, Tensor};

macro_rules! unary_methods {
    ($($(#[$doc:meta])* $method:ident => $op:ident),* $(,)?) => {
        impl Tensor {$(
            $(#[$doc])*
            ///
            /// # Errors
            /// `DType` when the function is not defined on the tensor's dtype.
            #[track_caller]
            pub fn $method(&self) -> Result<Tensor> {
                self.unary(UnaryOp::$op)
            }
        )*}
    };
}

unary_methods! {
    /// `-x`; integers wrap.
    neg => Neg,
    /// `|x|`.
    abs => Abs,
    /// -1, 0 or 1; NaN stays NaN. Derivative 0.
    sign => Sign,
    /// Largest integer not above. Derivative 0.
    floor => Floor,
    /// Smallest integer not below. Derivative 0.
    ceil => Ceil,
    /// Nearest integer, ties to even. Derivative 0.
    round => Round,
    /// e^x.
    exp => Exp,
    /// Natural logarithm.
    log => Log,
    /// Square root.
    sqrt => Sqrt,
    /// 1 / sqrt(x).
    rsqrt => Rsqrt,
    /// Sine.
    sin => Sin,
    /// Cosine.
    cos => Cos,
    /// Hyperbolic tangent.
    tanh => Tanh,
    /// Logical (bool) or bitwise (integers) complement.
    not => Not,
}

macro_rules! binary_methods {
    ($($(#[$doc:meta])* $method:ident => $op:ident),* $(,)?) => {
        impl Tensor {$(
            $(#[$doc])*
            ///
            /// # Errors
            /// `Shape` when the shapes do not broadcast, `DType` when the dtypes differ or the function is not
            /// defined on them, `Placement` for operands on different devices.
            #[track_caller]
            pub fn $method<'a>(&self, other: impl Into<Operand<'a>>) -> Result<Tensor> {
                self.binary(BinaryOp::$op, other.into())
            }
        )*}
    };
}

binary_methods! {
    /// Sum.
    add => Add,
    /// Difference.
    sub => Sub,
    /// Elementwise product.
    mul => Mul,
    /// Quotient; integer division truncates, by zero it gives 0.
    div => Div,
    /// Remainder with the sign of the dividend.
    rem => Rem,
    /// Power.
    pow => Pow,
    /// Larger one; NaN if either is. At ties the gradient is shared evenly.
    maximum => Max,
    /// Smaller one; NaN if either is. At ties the gradient is shared evenly.
    minimum => Min,
    /// Logical or bitwise conjunction.
    and => And,
    /// Logical or bitwise disjunction.
    or => Or,
    /// Logical or bitwise exclusive disjunction.
    xor => Xor,
    /// Left shift.
    shl => Shl,
    /// Right shift, arithmetic for signed types.
    shr => Shr,
}

macro_rules! compare_methods {
    ($($(#[$doc:meta])* $method:ident => $op:ident),* $(,)?) => {
        impl Tensor {$(
            $(#[$doc])*
            ///
            /// # Errors
            /// As [`add`](Self::add).
            #[track_caller]
            pub fn $method<'a>(&self, other: impl Into<Operand<'a>>) -> Result<Tensor> {
                self.compare(CompareOp::$op, other.into())
            }
        )*}
    };
}

compare_methods! {
    /// `self == other`, as `bool`; false with NaN.
    eq => Eq,
    /// `self < other`, as `bool`; false with NaN.
    lt => Lt,
    /// `self <= other`, as `bool`; false with NaN.
    le => Le,
}

impl Tensor {
    /// `max(x, 0)`; NaN stays NaN. The derivative at 0 is 0.
    ///
    /// # Errors
    /// `DType` when the tensor holds no floats.
    #[track_caller]
    pub fn relu(&self) -> Result<Tensor> {
        self.require_float("relu")?;
        let zero = self.full_like(0.0);
        self.le(&zero)?.select(&zero, self)
    }

    /// `if_true` where this tensor (`bool`) is true, else `if_false`; all three broadcast.
    ///
    /// # Errors
    /// `Shape`, `DType` or `Placement` when the operands do not fit.
    #[track_caller]
    pub fn select(&self, if_true: &Tensor, if_false: &Tensor) -> Result<Tensor> {
        const NAME: &str = "select";
        same_engine(NAME, self, if_true)?;
        same_engine(NAME, self, if_false)?;
        if self.dtype() != DType::Bool {
            return Err(Error::dtype(
                NAME,
                format!("the condition must be bool, got {}; compare first", self.dtype()),
            ));
        }
        require_same_dtype(NAME, if_true, if_false)?;
        let shape = broadcast(NAME, if_true.shape(), if_false.shape())?;
        let shape = broadcast(NAME, self.shape(), &shape)?;
        let inputs = [self, if_true, if_false]
            .into_iter()
            .map(|t| t.broadcast_to(&shape))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self::build(Op::Select, if_true.dtype(), shape, inputs))
    }

    /// Conversion to `dtype`: floats round to nearest even; to integers they truncate and saturate, NaN becomes 0;
    /// to `bool` is `!= 0`; integers wrap.
    pub fn cast(&self, dtype: DType) -> Result<Tensor> {
        if dtype == self.dtype() {
            return Ok(self.clone());
        }
        Ok(Self::build(Op::Cast, dtype, self.shape().to_vec(), vec![self.clone()]))
    }

    /// The same bits as another type of the same size.
    ///
    /// # Errors
    /// `DType` when the sizes differ or one is `bool`.
    #[track_caller]
    pub fn bitcast(&self, dtype: DType) -> Result<Tensor> {
        if dtype.size() != self.dtype().size() || dtype == DType::Bool || self.dtype() == DType::Bool {
            let message = format!("bits of {} are none of {dtype}; the sizes must agree", self.dtype());
            return Err(Error::dtype("bitcast", message));
        }
        Ok(Self::build(Op::Bitcast, dtype, self.shape().to_vec(), vec![self.clone()]))
    }

    /// The same value, through which no gradient flows.
    pub fn stop_gradient(&self) -> Tensor {
        Self::build(Op::StopGradient, self.dtype(), self.shape().to_vec(), vec![self.clone()])
    }

    #[track_caller]
    pub(crate) fn unary(&self, op: UnaryOp) -> Result<Tensor> {
        if !op.accepts(self.dtype()) {
            return Err(Error::dtype(op.name(), format!("is not defined on {}; cast first", self.dtype())));
        }
        Ok(Self::build(Op::Unary(op), self.dtype(), self.shape().to_vec(), vec![self.clone()]))
    }

    #[track_caller]
    pub(crate) fn binary(&self, op: BinaryOp, other: Operand<'_>) -> Result<Tensor> {
        if !op.accepts(self.dtype()) {
            return Err(Error::dtype(op.name(), format!("is not defined on {}; cast first", self.dtype())));
        }
        let (lhs, rhs) = self.paired(op.name(), other)?;
        Ok(Self::build(Op::Binary(op), lhs.dtype(), lhs.shape().to_vec(), vec![lhs, rhs]))
    }

    #[track_caller]
    pub(crate) fn compare(&self, op: CompareOp, other: Operand<'_>) -> Result<Tensor> {
        let (lhs, rhs) = self.paired(op.name(), other)?;
        Ok(Self::build(Op::Compare(op), DType::Bool, lhs.shape().to_vec(), vec![lhs, rhs]))
    }

    #[track_caller]
    pub(crate) fn require_float(&self, op: &str) -> Result<()> {
        if self.dtype().is_float() {
            return Ok(());
        }
        Err(Error::dtype(op, format!("takes floats, got {}; cast first", self.dtype())))
    }

    /// Both operands with one dtype and one shape.
    #[track_caller]
    fn paired(&self, op: &str, other: Operand<'_>) -> Result<(Tensor, Tensor)> {
        match other {
            Operand::Tensor(other) => {
                same_engine(op, self, other)?;
                require_same_dtype(op, self, other)?;
                let shape = broadcast(op, self.shape(), other.shape())?;
                Ok((self.broadcast_to(&shape)?, other.broadcast_to(&shape)?))
            }
            Operand::Number(value) => {
                let constant = self.constant(Literal::new(self.dtype(), value));
                Ok((self.clone(), constant.broadcast_to(self.shape())?))
            }
        }
    }
}

#[track_caller]
fn require_same_dtype(op: &str, lhs: &Tensor, rhs: &Tensor) -> Result<()> {
    if lhs.dtype() == rhs.dtype() {
        return Ok(());
    }
    let message = format!("operands are {} and {}; cast one of them", lhs.dtype(), rhs.dtype());
    Err(Error::dtype(op, message))
}

#[track_caller]
fn broadcast(op: &str, lhs: &[usize], rhs: &[usize]) -> Result<Vec<usize>> {
    let rank = lhs.len().max(rhs.len());
    let extent =
        |shape: &[usize], axis: usize| (axis + shape.len()).checked_sub(rank).map_or(1, |i| shape[i]);
    // A loop, since a closure would report its own place as the caller's.
    let mut shape = Vec::with_capacity(rank);
    for axis in 0..rank {
        shape.push(match (extent(lhs, axis), extent(rhs, axis)) {
            (l, r) if l == r || r == 1 => l,
            (1, r) => r,
            (l, r) => {
                let message = format!(
                    "shapes {lhs:?} and {rhs:?} do not broadcast: {l} meets {r}; extents must agree or be 1"
                );
                return Err(Error::shape(op, message));
            }
        });
    }
    Ok(shape)
}
