//! Element types of device memory, and the Rust types that carry them.

use half::{bf16, f16};
use std::fmt;

/// The type of one element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum DType {
    /// One byte, 0 or 1.
    Bool,
    /// Signed 8-bit integer.
    I8,
    /// Unsigned 8-bit integer.
    U8,
    /// Signed 16-bit integer.
    I16,
    /// Unsigned 16-bit integer.
    U16,
    /// Signed 32-bit integer.
    I32,
    /// Unsigned 32-bit integer.
    U32,
    /// Signed 64-bit integer.
    I64,
    /// Unsigned 64-bit integer.
    U64,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary64.
    F64,
}

impl DType {
    /// Every type, in declaration order.
    pub const ALL: [DType; 13] = [
        Self::Bool,
        Self::I8,
        Self::U8,
        Self::I16,
        Self::U16,
        Self::I32,
        Self::U32,
        Self::I64,
        Self::U64,
        Self::F16,
        Self::BF16,
        Self::F32,
        Self::F64,
    ];

    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            Self::Bool | Self::I8 | Self::U8 => 1,
            Self::I16 | Self::U16 | Self::F16 | Self::BF16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::I64 | Self::U64 | Self::F64 => 8,
        }
    }

    /// The lower-case name: `f32`, `bf16`, `bool`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::I8 => "i8",
            Self::U8 => "u8",
            Self::I16 => "i16",
            Self::U16 => "u16",
            Self::I32 => "i32",
            Self::U32 => "u32",
            Self::I64 => "i64",
            Self::U64 => "u64",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::F32 => "f32",
            Self::F64 => "f64",
        }
    }

    /// Whether the type holds floating-point numbers.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::BF16 | Self::F32 | Self::F64)
    }

    /// Whether the type holds integers (`bool` is neither).
    pub const fn is_integer(self) -> bool {
        !self.is_float() && !matches!(self, Self::Bool)
    }

    /// Whether the type holds signed numbers.
    pub const fn is_signed(self) -> bool {
        self.is_float() || matches!(self, Self::I8 | Self::I16 | Self::I32 | Self::I64)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for DType {
    type Err = crate::Error;

    fn from_str(text: &str) -> crate::Result<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == text).ok_or_else(|| {
            let known = Self::ALL.map(DType::name).join(", ");
            crate::Error::invalid(format!("unknown dtype '{text}'; use one of {known}"))
        })
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that lies in device memory as it is.
///
/// # Safety
///
/// Implementors have no padding and are valid for every bit pattern, so that a slice of them can be viewed as
/// bytes and back. The trait is sealed.
pub unsafe trait Element:
    sealed::Sealed + Copy + Default + PartialEq + fmt::Debug + Send + Sync + 'static
{
    /// The element type that this Rust type carries.
    const DTYPE: DType;
}

macro_rules! element {
    ($($rust:ty => $dtype:ident),* $(,)?) => {$(
        impl sealed::Sealed for $rust {}
        // SAFETY: a primitive number (or a transparent wrapper of one): no padding, every bit pattern is valid.
        unsafe impl Element for $rust {
            const DTYPE: DType = DType::$dtype;
        }
    )*};
}

element! {
    i8 => I8, u8 => U8, i16 => I16, u16 => U16, i32 => I32, u32 => U32, i64 => I64, u64 => U64,
    f16 => F16, bf16 => BF16, f32 => F32, f64 => F64,
}

/// Views elements as bytes, in the machine's byte order.
pub fn as_bytes<T: Element>(elements: &[T]) -> &[u8] {
    // SAFETY: `Element` guarantees that T has no padding; the length in bytes is that of the slice.
    unsafe { std::slice::from_raw_parts(elements.as_ptr().cast(), size_of_val(elements)) }
}

/// Copies bytes into a new vector of elements; trailing bytes that fill no element are ignored.
pub fn from_bytes<T: Element>(bytes: &[u8]) -> Vec<T> {
    let len = bytes.len() / size_of::<T>();
    let mut elements = vec![T::default(); len];
    // SAFETY: `Element` guarantees that every bit pattern is valid; both sides hold `len * size_of::<T>()` bytes.
    unsafe {
        std::ptr::copy_nonoverlapping(
            bytes.as_ptr(),
            elements.as_mut_ptr().cast::<u8>(),
            len * size_of::<T>(),
        );
    }
    elements
}

/// One number that is passed to a kernel by value.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Scalar {
    /// 32-bit signed.
    I32(i32),
    /// 32-bit unsigned.
    U32(u32),
    /// 64-bit signed.
    I64(i64),
    /// 64-bit unsigned.
    U64(u64),
    /// Single precision.
    F32(f32),
    /// Double precision.
    F64(f64),
}

impl Scalar {
    /// The type of the number.
    pub const fn dtype(self) -> DType {
        match self {
            Self::I32(_) => DType::I32,
            Self::U32(_) => DType::U32,
            Self::I64(_) => DType::I64,
            Self::U64(_) => DType::U64,
            Self::F32(_) => DType::F32,
            Self::F64(_) => DType::F64,
        }
    }

    /// The number as `f64`; 64-bit integers beyond 2^53 are rounded.
    pub const fn to_f64(self) -> f64 {
        match self {
            Self::I32(v) => v as f64,
            Self::U32(v) => v as f64,
            Self::I64(v) => v as f64,
            Self::U64(v) => v as f64,
            Self::F32(v) => v as f64,
            Self::F64(v) => v,
        }
    }

    /// The bits, zero-extended to 64.
    pub const fn to_bits(self) -> u64 {
        match self {
            Self::I32(v) => v as u32 as u64,
            Self::U32(v) => v as u64,
            Self::I64(v) => v as u64,
            Self::U64(v) => v,
            Self::F32(v) => v.to_bits() as u64,
            Self::F64(v) => v.to_bits(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back() {
        for dtype in DType::ALL {
            assert_eq!(dtype.name().parse::<DType>().ok(), Some(dtype));
        }
        assert!("f33".parse::<DType>().is_err());
    }

    #[test]
    fn bytes_round_trip_and_ignore_a_ragged_end() {
        let values = [1.5f32, f32::NAN, -0.0];
        let back = from_bytes::<f32>(as_bytes(&values));
        assert_eq!(back.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), values.map(f32::to_bits));
        assert_eq!(from_bytes::<u32>(&[1, 0, 0, 0, 9]), [1]);
    }
}
