//! The vocabulary of instructions: data types, pipes, operations, registers and operands.

use std::fmt;

use crate::record::{Field, RecordFault, RecordReader, RecordWriter};

/// Declares an enumeration that is stored as one byte of a record and has a name in text.
macro_rules! codes {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $code:literal $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum $name {
            $($(#[$vmeta])* $variant = $code,)*
        }

        impl $name {
            /// Every value, in the order of the codes.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The byte in a record.
            #[must_use]
            pub const fn code(self) -> u8 {
                self as u8
            }

            /// The value of a byte, if there is one.
            #[must_use]
            pub const fn from_code(code: u8) -> Option<Self> {
                match code {
                    $($code => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// The name in assembler text.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }

            /// The value of a name in assembler text, if there is one.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                match name {
                    $($text => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }

        impl Field for $name {
            fn write(&self, record: &mut RecordWriter) {
                record.small(self.code());
            }

            fn read(record: &mut RecordReader<'_>) -> Result<Self, RecordFault> {
                let (byte, code) = record.small();
                Self::from_code(code).ok_or_else(|| {
                    RecordFault::new(byte, format!("{code} is not a {}", stringify!($name)))
                })
            }

            fn print(&self, text: &mut String) {
                text.push_str(self.name());
            }

            fn parse(text: &str) -> Result<Self, String> {
                Self::from_name(text).ok_or_else(|| {
                    let names: Vec<_> = Self::ALL.iter().map(|v| v.name()).collect();
                    format!("'{text}' is none of {}", names.join(", "))
                })
            }
        }
    };
}

codes! {
    /// Element types. All are little-endian.
    DType {
        /// IEEE 754 binary32.
        F32 = 0 "f32",
        /// IEEE 754 binary16; vector arithmetic computes in f32 and rounds.
        F16 = 1 "f16",
        /// The upper half of a binary32; vector arithmetic computes in f32 and rounds.
        BF16 = 2 "bf16",
        /// Two's complement, wraps.
        I32 = 3 "i32",
        /// Unsigned, wraps.
        U32 = 4 "u32",
        /// Unsigned, wraps; also holds booleans as 0 and 1.
        U8 = 5 "u8",
        /// Two's complement, wraps.
        I64 = 6 "i64",
    }
}

impl DType {
    /// Bytes of one element.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::U8 => 1,
            Self::I64 => 8,
        }
    }

    /// Whether it is a floating-point type.
    #[must_use]
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::BF16)
    }

    /// Elements in a 32-byte block: the width of a fractal's row in L1, L0A and L0B.
    #[must_use]
    pub const fn block_len(self) -> usize {
        32 / self.size()
    }
}

codes! {
    /// The units of a core that run side by side and meet at flags.
    Pipe {
        /// Scalar unit: control flow and addresses.
        S = 0 "s",
        /// Vector unit.
        V = 1 "v",
        /// Matrix unit ("cube").
        M = 2 "m",
        /// L1 to L0A, L0B and the bias table.
        Mte1 = 3 "mte1",
        /// Global memory to L1 and UB.
        Mte2 = 4 "mte2",
        /// UB to global memory.
        Mte3 = 5 "mte3",
        /// L0C to global memory.
        Fix = 6 "fix",
    }
}

codes! {
    /// Which kind of core a kernel runs on.
    CoreKind {
        /// Scalar, MTE2 into L1, MTE1, cube and FIX.
        Cube = 0 "cube",
        /// Scalar, MTE2 into UB, vector unit and MTE3.
        Vector = 1 "vector",
    }
}

impl CoreKind {
    /// Whether cores of this kind have `pipe`.
    #[must_use]
    pub const fn has(self, pipe: Pipe) -> bool {
        match self {
            Self::Cube => matches!(pipe, Pipe::S | Pipe::Mte2 | Pipe::Mte1 | Pipe::M | Pipe::Fix),
            Self::Vector => matches!(pipe, Pipe::S | Pipe::Mte2 | Pipe::V | Pipe::Mte3),
        }
    }
}

codes! {
    /// What a kernel does with a buffer.
    Access {
        /// Reads only.
        Read = 0 "read",
        /// Writes only; what was there is not looked at.
        Write = 1 "write",
        /// Reads and writes.
        ReadWrite = 2 "readwrite",
    }
}

codes! {
    /// Scalar arithmetic on 64-bit two's complement, wrapping.
    AluOp {
        /// `lhs + rhs`
        Add = 0 "add",
        /// `lhs - rhs`
        Sub = 1 "sub",
        /// `lhs * rhs`
        Mul = 2 "mul",
        /// Quotient rounded towards zero; 0 for a zero divisor.
        Div = 3 "div",
        /// Remainder with the sign of `lhs`; 0 for a zero divisor.
        Rem = 4 "rem",
        /// `lhs << rhs`; 0 for shifts of 64 and more.
        Shl = 5 "shl",
        /// Arithmetic `lhs >> rhs`; the sign for shifts of 64 and more.
        Shr = 6 "shr",
        /// The lesser.
        Min = 7 "min",
        /// The greater.
        Max = 8 "max",
        /// Bitwise and.
        And = 9 "and",
        /// Bitwise or.
        Or = 10 "or",
        /// Bitwise exclusive or.
        Xor = 11 "xor",
    }
}

impl AluOp {
    /// The result, as the scalar unit computes it.
    #[must_use]
    pub fn apply(self, lhs: i64, rhs: i64) -> i64 {
        match self {
            Self::Add => lhs.wrapping_add(rhs),
            Self::Sub => lhs.wrapping_sub(rhs),
            Self::Mul => lhs.wrapping_mul(rhs),
            Self::Div if rhs == 0 => 0,
            Self::Div => lhs.wrapping_div(rhs),
            Self::Rem if rhs == 0 => 0,
            Self::Rem => lhs.wrapping_rem(rhs),
            Self::Shl if !(0..64).contains(&rhs) => 0,
            Self::Shl => lhs << rhs,
            Self::Shr if !(0..64).contains(&rhs) => lhs >> 63,
            Self::Shr => lhs >> rhs,
            Self::Min => lhs.min(rhs),
            Self::Max => lhs.max(rhs),
            Self::And => lhs & rhs,
            Self::Or => lhs | rhs,
            Self::Xor => lhs ^ rhs,
        }
    }
}

codes! {
    /// A comparison; with NaN everything but `ne` is false.
    CompareOp {
        /// Equal.
        Eq = 0 "eq",
        /// Not equal.
        Ne = 1 "ne",
        /// Less.
        Lt = 2 "lt",
        /// Less or equal.
        Le = 3 "le",
        /// Greater.
        Gt = 4 "gt",
        /// Greater or equal.
        Ge = 5 "ge",
    }
}

impl CompareOp {
    /// The result for two ordered values.
    #[must_use]
    pub fn holds<T: PartialOrd>(self, lhs: T, rhs: T) -> bool {
        match self {
            Self::Eq => lhs == rhs,
            Self::Ne => lhs != rhs,
            Self::Lt => lhs < rhs,
            Self::Le => lhs <= rhs,
            Self::Gt => lhs > rhs,
            Self::Ge => lhs >= rhs,
        }
    }
}

codes! {
    /// Elementwise operations of two operands.
    BinaryOp {
        /// Sum; integers wrap.
        Add = 0 "add",
        /// Difference; integers wrap.
        Sub = 1 "sub",
        /// Product; integers wrap.
        Mul = 2 "mul",
        /// Quotient; integers round towards zero, and `x / 0` is 0.
        Div = 3 "div",
        /// Remainder with the sign of the dividend; for integers `x % 0` is 0.
        Rem = 4 "rem",
        /// Power; integers wrap, and a negative exponent rounds the true value towards zero (0 to it is 0).
        Pow = 5 "pow",
        /// The greater; NaN if either is NaN.
        Max = 6 "max",
        /// The lesser; NaN if either is NaN.
        Min = 7 "min",
        /// Bitwise and (integers).
        And = 8 "and",
        /// Bitwise or (integers).
        Or = 9 "or",
        /// Bitwise exclusive or (integers).
        Xor = 10 "xor",
        /// Shift left (integers); 0 from the width on and for negative counts.
        Shl = 11 "shl",
        /// Shift right (integers), arithmetic if signed; from the width on and for negative counts it is 0, or the sign if signed.
        Shr = 12 "shr",
        /// The upper half of the double-width product (integers).
        MulHigh = 13 "mulhigh",
    }
}

impl BinaryOp {
    /// Whether the operation exists for `dtype`.
    #[must_use]
    pub const fn supports(self, dtype: DType) -> bool {
        match self {
            Self::And | Self::Or | Self::Xor | Self::Shl | Self::Shr | Self::MulHigh => !dtype.is_float(),
            _ => true,
        }
    }
}

codes! {
    /// Elementwise operations of one operand.
    UnaryOp {
        /// Negation; integers wrap.
        Neg = 0 "neg",
        /// Magnitude; the least integer stays.
        Abs = 1 "abs",
        /// -1, 0 or 1; NaN and signed zeros stay.
        Sign = 2 "sign",
        /// Towards minus infinity.
        Floor = 3 "floor",
        /// Towards plus infinity.
        Ceil = 4 "ceil",
        /// To the nearest, ties to even.
        Round = 5 "round",
        /// Towards zero.
        Trunc = 6 "trunc",
        /// `e^x`
        Exp = 7 "exp",
        /// `e^x - 1`
        Expm1 = 8 "expm1",
        /// Natural logarithm.
        Log = 9 "log",
        /// `ln(1 + x)`
        Log1p = 10 "log1p",
        /// Square root.
        Sqrt = 11 "sqrt",
        /// `1 / sqrt(x)`
        Rsqrt = 12 "rsqrt",
        /// `1 / x`
        Recip = 13 "rcp",
        /// Sine of radians.
        Sin = 14 "sin",
        /// Cosine of radians.
        Cos = 15 "cos",
        /// Hyperbolic tangent.
        Tanh = 16 "tanh",
        /// Error function.
        Erf = 17 "erf",
        /// `max(x, 0)`; NaN stays.
        Relu = 18 "relu",
        /// Bitwise complement (integers); for u8 the complement of a boolean: `x == 0`.
        Not = 19 "not",
    }
}

impl UnaryOp {
    /// Whether the operation exists for `dtype`.
    #[must_use]
    pub const fn supports(self, dtype: DType) -> bool {
        match self {
            Self::Not => !dtype.is_float(),
            Self::Neg | Self::Abs | Self::Sign | Self::Relu => true,
            _ => dtype.is_float(),
        }
    }
}

codes! {
    /// Reductions along a row.
    ///
    /// Sums and products run in 16 lanes (lane j takes the elements j, j+16, ...) which then
    /// combine pairwise (0 with 8, 1 with 9, ..., 0 with 4, ..., 0 with 1), in f32 for float types.
    ReduceOp {
        /// Sum; 0 for an empty row.
        Sum = 0 "sum",
        /// Product; 1 for an empty row.
        Prod = 1 "prod",
        /// Greatest; NaN if any is NaN; the type's lowest value for an empty row.
        Max = 2 "max",
        /// Least; NaN if any is NaN; the type's highest value for an empty row.
        Min = 3 "min",
        /// Position of the first greatest, as i32; the first NaN wins; 0 for an empty row.
        ArgMax = 4 "argmax",
        /// Position of the first least, as i32; the first NaN wins; 0 for an empty row.
        ArgMin = 5 "argmin",
    }
}

codes! {
    /// What the cube starts its accumulators from.
    MmadMode {
        /// Zero.
        Init = 0 "init",
        /// What L0C holds.
        Accumulate = 1 "accumulate",
        /// The bias table: one value for each column.
        Bias = 2 "bias",
    }
}

codes! {
    /// How a store meets what is in memory.
    StoreMode {
        /// Overwrites.
        Plain = 0 "plain",
        /// Adds to it as one operation (f32 only); blocks apply theirs in the order of their index.
        AtomicAdd = 1 "atomic_add",
    }
}

codes! {
    /// The cube's operand that an image-to-column load fills.
    CubeOperand {
        /// The left matrix, in L0A.
        A = 0 "a",
        /// The right matrix, in L0B.
        B = 1 "b",
    }
}

/// Registers of the scalar unit.
pub const REGISTERS: usize = 64;

/// A 64-bit register of the scalar unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reg(u8);

impl Reg {
    /// The register with this index, if it exists.
    #[must_use]
    pub const fn new(index: u8) -> Option<Self> {
        if (index as usize) < REGISTERS { Some(Self(index)) } else { None }
    }

    /// Its index, less than [`REGISTERS`].
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for Reg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0)
    }
}

/// A value that an instruction uses: a constant of the program or a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operand {
    /// A constant, sign-extended to 64 bits. Vector scalars take its 32 bits as they are.
    Imm(i32),
    /// What the register holds when the instruction is issued.
    Reg(Reg),
}

impl Operand {
    /// Zero.
    pub const ZERO: Self = Self::Imm(0);

    /// A constant with the bits of `value`, for vector scalars.
    #[must_use]
    pub const fn f32(value: f32) -> Self {
        Self::Imm(value.to_bits().cast_signed())
    }

    /// The value, given the register file.
    #[must_use]
    pub fn resolve(self, registers: &[i64; REGISTERS]) -> i64 {
        match self {
            Self::Imm(value) => i64::from(value),
            Self::Reg(reg) => registers[reg.index()],
        }
    }

    /// The constant, if it is one.
    #[must_use]
    pub const fn imm(self) -> Option<i32> {
        match self {
            Self::Imm(value) => Some(value),
            Self::Reg(_) => None,
        }
    }
}

impl From<i32> for Operand {
    fn from(value: i32) -> Self {
        Self::Imm(value)
    }
}

impl From<Reg> for Operand {
    fn from(reg: Reg) -> Self {
        Self::Reg(reg)
    }
}

/// One dimension of a strided transfer: how often, and how far each side moves (bytes, signed).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dim {
    /// Steps.
    pub count: Operand,
    /// Bytes between steps on the side that is read; 0 repeats, negative flips.
    pub src_stride: Operand,
    /// Bytes between steps on the side that is written.
    pub dst_stride: Operand,
}

impl Dim {
    /// A dimension of one step.
    pub const ONE: Self =
        Self { count: Operand::Imm(1), src_stride: Operand::ZERO, dst_stride: Operand::ZERO };

    /// A dimension of `count` steps.
    pub fn new(
        count: impl Into<Operand>,
        src_stride: impl Into<Operand>,
        dst_stride: impl Into<Operand>,
    ) -> Self {
        Self { count: count.into(), src_stride: src_stride.into(), dst_stride: dst_stride.into() }
    }
}

/// The index of an instruction within its kernel, where a branch goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Target(pub u32);
