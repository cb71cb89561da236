//! Status codes and element types: how the interface's numbers and this crate's types correspond.

use super::Status;
use crate::{DType, ErrorKind};

/// The status that stands for an error's kind.
#[must_use]
pub fn status_of(kind: &ErrorKind) -> Status {
    match kind {
        ErrorKind::InvalidArgument => super::STATUS_INVALID_ARGUMENT,
        ErrorKind::Unsupported => super::STATUS_UNSUPPORTED,
        ErrorKind::Unavailable => super::STATUS_UNAVAILABLE,
        ErrorKind::OutOfMemory { .. } => super::STATUS_OUT_OF_MEMORY,
        ErrorKind::TooLarge { .. } => super::STATUS_TOO_LARGE,
        ErrorKind::Build { .. } => super::STATUS_BUILD,
        ErrorKind::BadFormat => super::STATUS_BAD_FORMAT,
        ErrorKind::Timeout { .. } => super::STATUS_TIMEOUT,
        ErrorKind::Fault => super::STATUS_FAULT,
        ErrorKind::Link => super::STATUS_LINK,
        ErrorKind::DeviceLost => super::STATUS_DEVICE_LOST,
        ErrorKind::AbiMismatch => super::STATUS_ABI_MISMATCH,
        ErrorKind::Backend { .. } => super::STATUS_BACKEND,
    }
}

/// The code of an element type.
#[must_use]
pub fn dtype_code(dtype: DType) -> u32 {
    match dtype {
        DType::Bool => 0,
        DType::I8 => 1,
        DType::U8 => 2,
        DType::I16 => 3,
        DType::U16 => 4,
        DType::I32 => 5,
        DType::U32 => 6,
        DType::I64 => 7,
        DType::U64 => 8,
        DType::F16 => 9,
        DType::BF16 => 10,
        DType::F32 => 11,
        DType::F64 => 12,
    }
}

/// The element type of a code, if this version knows it.
#[must_use]
pub fn dtype_from_code(code: u32) -> Option<DType> {
    DType::ALL.into_iter().find(|dtype| dtype_code(*dtype) == code)
}
