//! Errors of the op library: at the call for shapes, dtypes and placement, at evaluation for devices.

use std::panic::Location;

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, and where the call stands in the user's source.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Shapes, axes or attributes do not fit.
    #[error("{location}: {op}: {message}")]
    Shape {
        /// The operation.
        op: String,
        /// What was expected, what came, and what to do.
        message: String,
        /// The user's call.
        location: &'static Location<'static>,
    },
    /// Element types do not fit.
    #[error("{location}: {op}: {message}")]
    DType {
        /// The operation.
        op: String,
        /// What was expected, what came, and what to do.
        message: String,
        /// The user's call.
        location: &'static Location<'static>,
    },
    /// Operands live on different devices.
    #[error("{location}: {op}: operands are on {lhs} and {rhs}; move one with to()")]
    Placement {
        /// The operation.
        op: String,
        /// Device of the first operand.
        lhs: String,
        /// Device of the other one.
        rhs: String,
        /// The user's call.
        location: &'static Location<'static>,
    },
    /// A gradient cannot be formed.
    #[error("{location}: grad: {message}")]
    Gradient {
        /// Why, and what to do.
        message: String,
        /// The user's call.
        location: &'static Location<'static>,
    },
    /// No kernel of the device serves an operation, and the profile forbids a fallback.
    #[error(
        "{device}: no kernel for {op}: {reason}; allow 'fallback: {{ unsupported: cpu }}' in the profile, or register a variant"
    )]
    NoKernel {
        /// The device.
        device: String,
        /// The operation.
        op: String,
        /// Why each variant declined.
        reason: String,
    },
    /// The catalog has another operation of that name, or the like.
    #[error("catalog: {0}")]
    Catalog(String),
    /// A profile names what does not exist, or its condition does not evaluate.
    #[error("{0}")]
    Profile(String),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] halite_hal::Error),
}

impl Error {
    #[track_caller]
    pub(crate) fn shape(op: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Shape { op: op.into(), message: message.into(), location: Location::caller() }
    }

    #[track_caller]
    pub(crate) fn dtype(op: impl Into<String>, message: impl Into<String>) -> Self {
        Self::DType { op: op.into(), message: message.into(), location: Location::caller() }
    }

    #[track_caller]
    pub(crate) fn gradient(message: impl Into<String>) -> Self {
        Self::Gradient { message: message.into(), location: Location::caller() }
    }

    /// Whether the same call may succeed later: memory may be freed, a wait may end, a link recover.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Device(error) if error.is_retryable())
    }

    /// Whether the caller's input is at fault, rather than the device or the machine.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Device(error) => matches!(error.kind(), halite_hal::ErrorKind::InvalidArgument),
            _ => true,
        }
    }
}
